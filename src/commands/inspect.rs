//! `edgeft inspect`: what is in a GGUF, safetensors or ONNX file, or an importance matrix.

mod imatrix;
mod onnx;

use super::show;
use crate::cli::Global;
use crate::error::BadInput;
use edgeft_runtime::format::gguf::{Array, Gguf, Value};
use edgeft_runtime::format::map::Mapped;
use serde_json::json;
use std::path::PathBuf;
use std::process::ExitCode;

/// Flags of `inspect`.
#[derive(clap::Args)]
#[command(
    after_help = "Example:\n  edgeft inspect model.gguf\n  edgeft inspect model-onnx/model.onnx\nNext:\n  edgeft run model.gguf -p \"...\""
)]
pub struct InspectArgs {
    /// GGUF, safetensors or ONNX file, or an importance matrix (GGUF or .dat)
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
}

/// Runs the verb.
pub fn run(args: &InspectArgs, global: &Global) -> anyhow::Result<ExitCode> {
    let path = &args.file;
    let bytes = Mapped::open(path).map_err(|e| BadInput(format!("cannot read {}: {e}", path.display())))?;
    if path.extension().is_some_and(|e| e == "safetensors") {
        return safetensors(args, &bytes, global);
    }
    if path.extension().is_some_and(|e| e == "onnx") {
        return onnx::run(path, &bytes, global);
    }
    if path.extension().is_some_and(|e| e == "dat") {
        imatrix::run(path, &bytes, global)?;
        return Ok(ExitCode::SUCCESS);
    }
    let gguf = Gguf::parse(&bytes).map_err(|e| BadInput(format!("{}: {e}", path.display())))?;
    if gguf.str("general.type").is_ok_and(|kind| kind == "imatrix") {
        imatrix::run(path, &bytes, global)?;
        return Ok(ExitCode::SUCCESS);
    }
    let metadata: serde_json::Map<_, _> = gguf.metadata.iter().map(|(k, v)| (k.clone(), value_json(v))).collect();
    let tensors: Vec<_> = gguf
        .tensors
        .iter()
        .map(|t| json!({"name": t.name, "type": t.ty.name(), "dims": t.dims, "offset": gguf.data_start + t.offset, "bytes": t.bytes}))
        .collect();
    let whole = json!({"file": path, "bytes": bytes.len(), "version": gguf.version, "alignment": gguf.alignment,
        "metadata": metadata, "tensors": tensors});
    show::report(global, &whole, || {
        println!(
            "{}: GGUF version {}, {}, {} keys, {} tensors\n",
            path.display(),
            gguf.version,
            show::bytes(bytes.len() as u64),
            gguf.metadata.len(),
            gguf.tensors.len()
        );
        for (key, value) in &gguf.metadata {
            println!("  {key} = {}", short(value));
        }
        println!();
        let rows: Vec<Vec<String>> = gguf
            .tensors
            .iter()
            .map(|t| vec![t.name.clone(), format!("{:?}", t.dims), t.ty.name().into(), show::bytes(t.bytes)])
            .collect();
        print!("{}", show::table(&rows));
    });
    Ok(ExitCode::SUCCESS)
}

fn safetensors(args: &InspectArgs, bytes: &[u8], global: &Global) -> anyhow::Result<ExitCode> {
    let view = safetensors::SafeTensors::deserialize(bytes)
        .map_err(|e| BadInput(format!("{}: not a whole safetensors file: {e}", args.file.display())))?;
    let mut rows: Vec<(String, String, Vec<usize>, usize)> = view
        .tensors()
        .into_iter()
        .map(|(name, t)| (name, format!("{:?}", t.dtype()), t.shape().to_vec(), t.data().len()))
        .collect();
    rows.sort();
    let tensors: Vec<_> =
        rows.iter().map(|(n, d, s, b)| json!({"name": n, "type": d, "dims": s, "bytes": b})).collect();
    show::report(global, &json!({"file": args.file, "bytes": bytes.len(), "tensors": tensors}), || {
        println!("{}: safetensors, {}, {} tensors\n", args.file.display(), show::bytes(bytes.len() as u64), rows.len());
        let cells: Vec<Vec<String>> = rows
            .iter()
            .map(|(n, d, s, b)| vec![n.clone(), format!("{s:?}"), d.clone(), show::bytes(*b as u64)])
            .collect();
        print!("{}", show::table(&cells));
    });
    Ok(ExitCode::SUCCESS)
}

/// Numbers and texts as JSON; long arrays by their length.
fn value_json(value: &Value) -> serde_json::Value {
    match value {
        Value::U8(v) => json!(v),
        Value::I8(v) => json!(v),
        Value::U16(v) => json!(v),
        Value::I16(v) => json!(v),
        Value::U32(v) => json!(v),
        Value::I32(v) => json!(v),
        Value::F32(v) => json!(v),
        Value::Bool(v) => json!(v),
        Value::Str(v) => json!(v),
        Value::U64(v) => json!(v),
        Value::I64(v) => json!(v),
        Value::F64(v) => json!(v),
        Value::Array(Array::Str(v)) if v.len() <= 64 => json!(v),
        Value::Array(a) => json!({ "array_of": a.len() }),
    }
}

fn short(value: &Value) -> String {
    let text = match value {
        Value::Array(Array::Str(v)) => format!("[{} strings] {:?}", v.len(), &v[..v.len().min(6)]),
        Value::Array(a) => format!("[{} numbers]", a.len()),
        other => value_json(other).to_string(),
    };
    clipped(&text)
}

/// At most a hundred characters.
fn clipped(text: &str) -> String {
    match text.char_indices().nth(100) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text.to_owned(),
    }
}
