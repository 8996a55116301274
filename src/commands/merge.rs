//! `edgeft merge`: fold an adapter into its base.

use super::show;
use crate::cli::Global;
use crate::export::onnx::pooling_files;
use crate::merge::{Merged, merged_config};
use crate::model::network::Task;
use crate::model::open::Opened;
use crate::tune::checkpoint::write_synced;
use anyhow::Context;
use serde_json::json;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

/// Flags of `merge`.
#[derive(clap::Args)]
#[command(
    after_help = "Example:\n  edgeft merge RUN --out merged/\n  edgeft merge --model base/ --adapter adapter/ --out merged/\nNext:\n  edgeft quantize merged/ --type q4_k_m --out model.gguf"
)]
pub struct MergeArgs {
    /// RUN folder whose adapter is folded into its base
    #[arg(value_name = "RUN", required_unless_present = "model", conflicts_with = "model")]
    pub source: Option<String>,
    /// Base model
    #[arg(long, requires = "adapter", value_name = "MODEL")]
    pub model: Option<String>,
    /// Adapter folder (adapter_config.json, adapter_model.safetensors)
    #[arg(long, requires = "model", value_name = "DIR")]
    pub adapter: Option<PathBuf>,
    /// Folder to create; refused if it exists
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Replace an existing folder
    #[arg(long)]
    pub force: bool,
}

/// Runs the verb.
pub fn run(args: &MergeArgs, global: &Global) -> anyhow::Result<ExitCode> {
    let start = Instant::now();
    let mut opened = Opened::open(args.source.as_deref().or(args.model.as_deref()).unwrap_or_default(), 0)?;
    if let Some(adapter) = &args.adapter {
        opened = opened.with_adapter(adapter)?;
    }
    if opened.adapter.is_none() {
        crate::bad_input!("{}: nothing to merge: it has no adapter", opened.name);
    }
    let merged = merge(&opened, &args.out, args.force)?;
    let (bytes, changed, seconds) = (merged.bytes, merged.changed, start.elapsed().as_secs_f64());
    show::report(
        global,
        &json!({"out": args.out, "bytes": bytes, "tensors_changed": changed, "seconds": seconds}),
        || {
            println!(
                "merged {changed} tensors into {} ({}) in {seconds:.1} s\n\nNext:\n  edgeft quantize {} --type q4_k_m --out model.gguf",
                args.out.display(),
                show::bytes(bytes),
                args.out.display()
            );
        },
    );
    Ok(ExitCode::SUCCESS)
}

/// A merged folder.
pub struct MergedFolder {
    /// Tensors that the adapter changed.
    pub changed: usize,
    /// Size of the weights.
    pub bytes: u64,
}

/// Writes a model and its adapter as one Hugging Face folder.
pub fn merge(opened: &Opened, out: &Path, force: bool) -> anyhow::Result<MergedFolder> {
    let folder = show::NewFolder::create(out, force)?;
    let merged = Merged::new(opened)?;
    let bytes = merged
        .write_safetensors(&folder.path().join("model.safetensors"), false)
        .with_context(|| format!("cannot merge {} into {}", opened.name, out.display()))?;
    write_synced(
        &folder.path().join("config.json"),
        serde_json::to_string_pretty(&merged_config(opened)?)?.as_bytes(),
    )?;
    write_text_files(opened, folder.path())?;
    write_pooling_files(opened, opened.task()?.as_ref(), folder.path())?;
    folder.finish()?;
    Ok(MergedFolder { changed: merged.changed(), bytes })
}

/// Tokenizer and template, as they were.
pub fn write_text_files(opened: &Opened, folder: &Path) -> anyhow::Result<()> {
    if let Some(bytes) = &opened.text.tokenizer_json {
        write_synced(&folder.join("tokenizer.json"), bytes)?;
    }
    if let Some(config) = &opened.text.tokenizer_config {
        write_synced(&folder.join("tokenizer_config.json"), serde_json::to_string_pretty(config)?.as_bytes())?;
    }
    if let Some(template) = &opened.text.chat_template {
        write_synced(&folder.join("chat_template.jinja"), template.as_bytes())?;
    }
    Ok(())
}

/// What sentence-transformers reads of a model that gives vectors; nothing of others.
pub fn write_pooling_files(opened: &Opened, task: Option<&Task>, folder: &Path) -> anyhow::Result<()> {
    for (name, bytes) in pooling_files(opened, task)? {
        let path = folder.join(name);
        if let Some(above) = path.parent() {
            std::fs::create_dir_all(above)?;
        }
        write_synced(&path, &bytes)?;
    }
    Ok(())
}
