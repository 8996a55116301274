//! A model folder, a RUN or `nano` → GGUF, as a file or in memory. The tokenizer is proven on the way: ids by the GGUF's
//! own fields equal those of tokenizer.json, or nothing is written. An ONNX folder ([`onnx`]) carries tokenizer.json itself.

pub mod adapter;
pub mod onnx;

use crate::error::BadInput;
use crate::merge::Exported;
use crate::model::layers::contrast::Pooling;
use crate::model::network::{Network, Task};
use crate::model::open::{Opened, Place, holds_onnx};
use crate::tune::run_folder;
use anyhow::Context;
use edgeft_quantize::plan::Origin;
use edgeft_quantize::tokenizer::{TokenizerFiles, added_by_template};
use edgeft_quantize::{Importance, Mix, Plan, PlanOptions, Report, plan};
use edgeft_runtime::engine::Backend;
use edgeft_runtime::format::GgmlType;
use edgeft_runtime::format::gguf::Value;
use edgeft_runtime::model::Model;
use edgeft_runtime::tokenizer::{FolderFiles, Specials, Tokenizer};
use std::collections::BTreeMap;
use std::path::Path;

/// `edgeft.plan.search` of a file whose blocks were searched longer than llama.cpp does.
pub const BEST: &str = "best";

/// llama.cpp's `pooling_type` of the first token.
const POOLING_CLS: u32 = 2;

/// Tokenizer files of a model, in the quantizer's words.
pub fn tokenizer_files(opened: &Opened) -> anyhow::Result<TokenizerFiles> {
    if opened.weights.metadata().is_some() {
        // The keys of the base file travel as they are: see `extra`.
        return Ok(TokenizerFiles { chat_template: opened.text.chat_template.clone(), ..TokenizerFiles::default() });
    }
    let Some(json) = opened.text.tokenizer_json.clone() else {
        return Ok(TokenizerFiles { chat_template: opened.text.chat_template.clone(), ..TokenizerFiles::default() });
    };
    let special = specials(opened)?;
    let (first, last) = added_by_template(&json, special.bos.or(special.cls), special.eos.or(special.sep))
        .map_err(|e| BadInput(format!("{}: {e}", opened.name)))?;
    let sentencepiece_model = match opened.base_path.as_ref().map(|p| p.join("tokenizer.model")).filter(|p| p.is_file())
    {
        Some(path) => Some(std::fs::read(path)?),
        None => None,
    };
    Ok(TokenizerFiles {
        tokenizer_json: Some(json),
        chat_template: opened.text.chat_template.clone(),
        bos: special.bos,
        eos: special.eos,
        eot: special.eot,
        pad: special.pad,
        unk: special.unk,
        add_bos: first,
        add_eos: last,
        sentencepiece_model,
    })
}

/// The tokenizer of a model, as training uses it: a folder's tokenizer.json itself, a GGUF file's as the runtime reads it.
///
/// # Errors
/// [`BadInput`] when there is none.
pub fn tokenizer(opened: &Opened) -> anyhow::Result<Tokenizer> {
    if let Some(gguf) = opened.weights.metadata() {
        let way_out = "; or give pre-tokenized .safetensors";
        return Tokenizer::from_gguf(gguf).map_err(|e| BadInput(format!("{}: {e}{way_out}", opened.name)).into());
    }
    let Some(json) = &opened.text.tokenizer_json else {
        return Err(BadInput(format!(
            "{}: no tokenizer.json in the model folder, so text cannot be tokenized; put it there, or give pre-tokenized .safetensors",
            opened.name
        ))
        .into());
    };
    Tokenizer::from_hf_json(json, specials(opened)?)
        .map_err(|e| BadInput(format!("{}: tokenizer.json: {e}", opened.name)).into())
}

/// Ids with a role.
fn specials(opened: &Opened) -> anyhow::Result<Specials> {
    let files = FolderFiles {
        tokenizer_json: opened.text.tokenizer_json.as_deref().unwrap_or(b"null"),
        tokenizer_config: opened.text.tokenizer_config.as_ref().unwrap_or(&serde_json::Value::Null),
        config: &opened.config_json,
        chat_template: opened.text.chat_template.as_deref(),
        encoder: !opened.config.family.is_decoder(),
    };
    Specials::of_folder(&files).map_err(|e| BadInput(format!("{}: {e}", opened.name)).into())
}

/// What the plan for `mix` would be.
pub fn make_plan(opened: &Opened, mix: Mix, options: &PlanOptions) -> anyhow::Result<Plan> {
    plan(&Exported::new(opened)?, mix, options).with_context(|| cannot(opened))
}

/// Under which type a file of `mix` would hold each matrix of a model, by the model's own names.
///
/// # Errors
/// What [`make_plan`] has.
pub fn types(opened: &Opened, mix: Mix) -> anyhow::Result<BTreeMap<String, GgmlType>> {
    let plan = make_plan(opened, mix, &PlanOptions::default())?;
    let source = |origin: &Origin| match origin {
        Origin::Source(placed) => Some(placed.source.clone()),
        Origin::RopeDivisors(_) => None,
    };
    let matrices = plan.tensors.iter().filter(|t| t.shape.len() == 2 && t.ty != GgmlType::F32);
    Ok(matrices.filter_map(|t| Some((source(&t.origin)?, t.ty))).collect())
}

/// The network of a model with its adapter, for evaluation; that of a run under `--qat` as it was trained, through the rounding.
///
/// # Errors
/// What the files have.
pub fn network(opened: &Opened, task: Option<Task>) -> anyhow::Result<Network> {
    let mut network = opened.network(task, 0)?;
    if let Some(qat) = opened.run.as_ref().and_then(|run| run.tune.qat.as_deref()) {
        let mix = qat.parse::<Mix>().map_err(|e| BadInput(format!("{}: tune.toml: qat: {e}", opened.name)))?;
        network.round(&types(opened, mix)?);
    }
    Ok(network)
}

/// Writes a GGUF file.
///
/// # Errors
/// A tensor without a rule, a tokenizer that GGUF's fields do not reproduce, an output that exists.
pub fn to_file(
    opened: &Opened,
    mix: Mix,
    options: &PlanOptions,
    out: &Path,
    force: bool,
    progress: &mut dyn FnMut(u64, u64),
) -> anyhow::Result<Report> {
    let merged = Exported::new(opened)?;
    let plan = plan(&merged, mix, options).with_context(|| cannot(opened))?;
    let files = tokenizer_files(opened)?;
    prove(&merged, &files, &plan).with_context(|| cannot(opened))?;
    let mut keys = extra(opened, &plan)?;
    keys.extend(options.importance.as_ref().map(calibration).unwrap_or_default());
    edgeft_quantize::write_gguf_file(&merged, &files, &plan, &keys, out, force, progress)
        .with_context(|| cannot(opened))
}

/// Bytes of a file before its tensors' data.
///
/// # Errors
/// As [`to_file`].
pub fn header_bytes(opened: &Opened, mix: Mix, options: &PlanOptions) -> anyhow::Result<u64> {
    let merged = Exported::new(opened)?;
    let plan = plan(&merged, mix, options).with_context(|| cannot(opened))?;
    let mut keys = extra(opened, &plan)?;
    keys.extend(options.importance.as_ref().map(calibration).unwrap_or_default());
    let keys = edgeft_quantize::gguf::metadata(&merged, &tokenizer_files(opened)?, &plan, &keys)?;
    Ok(edgeft_quantize::gguf::header(&keys, &plan.tensors)?.len() as u64)
}

/// Writes a GGUF file into memory: how `run`, `serve` and `bench` take a folder or a RUN.
pub fn to_memory(opened: &Opened, mix: Mix) -> anyhow::Result<Vec<u8>> {
    to_memory_with(opened, mix, &PlanOptions::default())
}

/// The same by a plan with options.
///
/// # Errors
/// As [`to_file`].
pub fn to_memory_with(opened: &Opened, mix: Mix, options: &PlanOptions) -> anyhow::Result<Vec<u8>> {
    let merged = Exported::new(opened)?;
    let plan = plan(&merged, mix, options).with_context(|| cannot(opened))?;
    let files = tokenizer_files(opened)?;
    prove(&merged, &files, &plan).with_context(|| cannot(opened))?;
    let mut bytes = Vec::new();
    edgeft_quantize::write_gguf(&merged, &files, &plan, &extra(opened, &plan)?, &mut bytes, &mut |_, _| ())
        .with_context(|| cannot(opened))?;
    Ok(bytes)
}

/// A MODEL in the runtime's form.
pub struct Runnable {
    /// The model.
    pub model: Model,
    /// The engine that was asked for, or the one that takes the model as it is.
    pub backend: Backend,
    /// Size of the GGUF file in memory, when the model was no file of the runtime's: f32, so that it answers as it was tuned; a
    /// smaller type is a choice that `quantize` makes on purpose.
    pub converted_bytes: Option<u64>,
}

impl Runnable {
    /// Opens a MODEL for an engine; without one, for the engine that takes it as it is.
    ///
    /// # Errors
    /// What the files have; ONNX Runtime asked for without an ONNX folder.
    pub fn open(name: &str, backend: Option<Backend>) -> anyhow::Result<Self> {
        let as_it_is = |path: &Path| -> anyhow::Result<Self> {
            let model = Model::open(path)?;
            // A wrong kind of file is told before a library or a driver is missed.
            match backend {
                Some(Backend::Ort) => {
                    model.onnx()?;
                }
                Some(Backend::Cpu | Backend::Gpu) => {
                    model.gguf()?;
                }
                None => {}
            }
            Ok(Self { backend: backend.unwrap_or(model.backend()), model, converted_bytes: None })
        };
        match Place::of(name)? {
            Place::Gguf(path) | Place::Onnx(path) => as_it_is(&path),
            Place::Folder(dir) if backend == Some(Backend::Ort) && holds_onnx(&dir) => as_it_is(&dir),
            _ if backend == Some(Backend::Ort) => {
                crate::bad_input!(
                    "{name}: --engine ort takes an ONNX folder; write one with `edgeft quantize {name} --to onnx --out DIR`"
                )
            }
            _ => {
                let bytes = to_memory(&Opened::open(name, 0)?, Mix::F32)?;
                let converted_bytes = Some(bytes.len() as u64);
                let model = Model::from_bytes(bytes, name)?;
                Ok(Self { backend: backend.unwrap_or(model.backend()), model, converted_bytes })
            }
        }
    }
}

/// What an error of the quantizer, which knows tensors and no folders, begins with.
fn cannot(opened: &Opened) -> String {
    format!("cannot convert {} to GGUF", opened.name)
}

/// The tokenizer keys, read back by the runtime, must give the ids of tokenizer.json.
fn prove(merged: &Exported, files: &TokenizerFiles, plan: &Plan) -> anyhow::Result<()> {
    let Some(json) = &files.tokenizer_json else { return Ok(()) };
    let keys = edgeft_quantize::gguf::metadata(merged, files, plan, &[])?;
    edgeft_quantize::tokenizer::prove(json, &keys, &[])
        .map_err(|e| BadInput(format!("the tokenizer would not survive the export: {e}; nothing was written")))?;
    Ok(())
}

/// Keys that a GGUF file of this model gets besides its shape's: provenance, and under a GGUF base its `tokenizer.*` keys, each
/// as it was.
fn extra(opened: &Opened, plan: &Plan) -> anyhow::Result<Vec<(String, Value)>> {
    let mut keys = provenance(opened, plan)?;
    if opened.task()? == Some(Task::Embed(Pooling::Cls)) {
        keys.push(("bert.pooling_type".into(), Value::U32(POOLING_CLS)));
    }
    let base = opened.weights.metadata().into_iter().flat_map(|gguf| &gguf.metadata);
    keys.extend(base.filter(|(key, _)| key.starts_with("tokenizer.")).cloned());
    Ok(keys)
}

/// llama.cpp's keys for the importance matrix that a file was made with.
fn calibration(matrix: &Importance) -> Vec<(String, Value)> {
    let key = |name: &str, value| (format!("quantize.imatrix.{name}"), value);
    vec![
        key("dataset", Value::Str(matrix.datasets.join(", "))),
        key("entries_count", Value::U32(u32::try_from(matrix.entries.len()).unwrap_or(u32::MAX))),
        key("chunks_count", Value::U32(matrix.chunks)),
    ]
}

/// `edgeft.*` keys: where the file comes from.
fn provenance(opened: &Opened, plan: &Plan) -> anyhow::Result<Vec<(String, Value)>> {
    let text = |key: &str, value: String| (format!("edgeft.{key}"), Value::Str(value));
    let mut keys = vec![text("version", env!("CARGO_PKG_VERSION").into()), text("plan.mix", plan.name())];
    if plan.best {
        keys.push(text("plan.search", BEST.into()));
    }
    match &opened.run {
        Some(run) => {
            keys.push(text("provenance.base_sha256", run.sha256.base.clone()));
            keys.push(text("provenance.data_sha256", run.sha256.data.clone()));
        }
        None => {
            if let Some(path) = &opened.base_path {
                keys.push(text("provenance.base_sha256", run_folder::sha256(path)?));
            }
        }
    }
    if let Some(adapter) = &opened.adapter {
        let file = adapter.join("adapter_model.safetensors");
        keys.push(text("provenance.adapter_sha256", run_folder::sha256(&file)?));
    }
    Ok(keys)
}
