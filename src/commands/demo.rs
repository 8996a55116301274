//! `edgeft demo`: an embedded example through every stage.

use crate::cli::Global;
use crate::demo::make;
use crate::merge::Merged;
use crate::model::open::Opened;
use std::path::PathBuf;
use std::process::ExitCode;

/// Flags of `demo`.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  edgeft demo\n  edgeft demo --task story --out story/\nNext:\n  edgeft run demo/q4_k_m.gguf -p \"...\"")]
pub struct DemoArgs {
    /// What to tune the embedded model for
    #[arg(long, value_enum, default_value = "sentiment")]
    pub task: DemoTask,
    /// Folder for everything it leaves
    #[arg(long, value_name = "DIR", default_value = "demo")]
    pub out: PathBuf,
    /// Replace an existing folder
    #[arg(long)]
    pub force: bool,
    /// Write what the embedded model is made from into --out, and stop
    #[arg(long, hide = true)]
    pub make: bool,
    /// Write the weights of RUN as the embedded model's files into --out, and stop
    #[arg(long, hide = true, value_name = "RUN")]
    pub take: Option<String>,
}

/// What the demo can tune for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum DemoTask {
    /// Product reviews: positive, negative or neutral
    Sentiment,
    /// Pages of a lighthouse's log: text of a domain
    Story,
    /// Questions about a short text
    Answer,
}

/// Runs the verb.
pub fn run(args: &DemoArgs, _global: &Global) -> anyhow::Result<ExitCode> {
    if args.make {
        std::fs::create_dir_all(&args.out)?;
        make::write(&args.out, make::SEED, make::BYTES)?;
        return Ok(ExitCode::SUCCESS);
    }
    if let Some(run) = &args.take {
        let opened = Opened::open(run, 0)?;
        Merged::new(&opened)?.write_safetensors(&args.out.join("model.safetensors"), true)?;
        std::fs::write(args.out.join("tokenizer.json"), opened.text.tokenizer_json.unwrap_or_default())?;
        return Ok(ExitCode::SUCCESS);
    }
    anyhow::bail!("not yet")
}
