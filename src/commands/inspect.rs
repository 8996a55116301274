//! `edgeft inspect`: what is in a GGUF, safetensors or ONNX file, or an importance matrix.

mod imatrix;
mod onnx;
mod stats;

use self::stats::Stats;
use super::show;
use crate::cli::Global;
use crate::error::BadInput;
use edgeft_runtime::format::gguf::{Array, Gguf, TensorInfo, Value};
use edgeft_runtime::format::map::Mapped;
use serde_json::json;
use std::path::PathBuf;
use std::process::ExitCode;

/// Flags of `inspect`.
#[derive(clap::Args)]
#[command(
    after_help = "Example:\n  edgeft inspect model.gguf\n  edgeft inspect model-onnx/model.onnx\n  edgeft inspect model.gguf --stats\nNext:\n  edgeft run model.gguf -p \"...\""
)]
pub struct InspectArgs {
    /// GGUF, safetensors or ONNX file, or an importance matrix (GGUF or .dat)
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Decode every tensor of a GGUF or safetensors file: least, largest, mean, rms, zeros; and the SHA-256 of the file
    #[arg(long)]
    pub stats: bool,
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
    let stats: Vec<Stats> = match args.stats {
        true => gguf.tensors.iter().map(|t| Stats::of_blocks(t.ty, gguf.data(&bytes, t))).collect(),
        false => Vec::new(),
    };
    let tensors: Vec<_> = gguf
        .tensors
        .iter()
        .enumerate()
        .map(|(i, t)| {
            let mut json = json!({"name": t.name, "type": t.ty.name(), "dims": t.dims,
                "offset": gguf.data_start + t.offset, "bytes": t.bytes});
            if let Some(stats) = stats.get(i) {
                json["stats"] = stats.json();
            }
            json
        })
        .collect();
    let hash = if args.stats { Some(stats::sha256(path)?) } else { None };
    let mut whole = json!({"file": path, "bytes": bytes.len(), "version": gguf.version, "alignment": gguf.alignment,
        "metadata": metadata, "tensors": tensors});
    if let Some(hash) = &hash {
        whole["sha256"] = json!(hash);
    }
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
        if let Some(line) = verified(&gguf) {
            println!("  {line}\n");
        }
        if let Some(hash) = &hash {
            println!("  sha256 {hash}\n");
        }
        let cells = |(i, t): (usize, &TensorInfo)| {
            let mut row = vec![t.name.clone(), format!("{:?}", t.dims), t.ty.name().into(), show::bytes(t.bytes)];
            row.extend(stats.get(i).map(Stats::cells).unwrap_or_default());
            row
        };
        let mut rows: Vec<Vec<String>> = gguf.tensors.iter().enumerate().map(cells).collect();
        if args.stats {
            rows.insert(
                0,
                ["tensor", "dims", "type", "bytes"].into_iter().chain(Stats::HEADS).map(str::to_owned).collect(),
            );
        }
        print!("{}", show::table(&rows));
    });
    Ok(ExitCode::SUCCESS)
}

/// What `quantize --verify` measured, in a line.
fn verified(gguf: &Gguf) -> Option<String> {
    let get = |name: &str| gguf.get(&format!("edgeft.verification.{name}"));
    let number = |name: &str| match get(name) {
        Some(Value::F64(v)) => Some(*v),
        _ => None,
    };
    let text = |name: &str| gguf.str(&format!("edgeft.verification.{name}")).unwrap_or("?");
    let word = if *get("pass")? == Value::Bool(true) { "pass" } else { "FAIL" };
    let mut line = format!("verified: {word} against {} on {}", text("against"), text("data"));
    if let (Some(kl), Some(top1)) = (number("mean_kl"), number("top1")) {
        line += &format!(": mean KL {kl:.2e}, same top 1 {:.2} %", 100.0 * top1);
    }
    for (name, words) in [("perplexity", "perplexity"), ("accuracy", "accuracy"), ("exact_match", "exact match")] {
        if let (Some(a), Some(b)) = (number(name), number(&format!("reference_{name}"))) {
            line += &format!(", {words} {a:.3} against {b:.3}");
        }
    }
    Some(line)
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
    let stats: Vec<Option<Stats>> = match args.stats {
        true => rows
            .iter()
            .map(|r| view.tensor(&r.0).ok().and_then(|t| Stats::of_safetensors(t.dtype(), t.data())))
            .collect(),
        false => Vec::new(),
    };
    let of = |i: usize| stats.get(i).and_then(Option::as_ref);
    let tensors: Vec<_> = rows
        .iter()
        .enumerate()
        .map(|(i, (n, d, s, b))| {
            let mut json = json!({"name": n, "type": d, "dims": s, "bytes": b});
            if let Some(stats) = of(i) {
                json["stats"] = stats.json();
            }
            json
        })
        .collect();
    let mut whole = json!({"file": args.file, "bytes": bytes.len(), "tensors": tensors});
    if args.stats {
        whole["sha256"] = json!(stats::sha256(&args.file)?);
    }
    show::report(global, &whole, || {
        println!("{}: safetensors, {}, {} tensors\n", args.file.display(), show::bytes(bytes.len() as u64), rows.len());
        let cell = |(i, (n, d, s, b)): (usize, &(String, String, Vec<usize>, usize))| {
            let mut row = vec![n.clone(), format!("{s:?}"), d.clone(), show::bytes(*b as u64)];
            row.extend(of(i).map(Stats::cells).unwrap_or_default());
            row
        };
        let mut cells: Vec<Vec<String>> = rows.iter().enumerate().map(cell).collect();
        if args.stats {
            let heads = ["tensor", "dims", "type", "bytes"].into_iter().chain(Stats::HEADS);
            cells.insert(0, heads.map(str::to_owned).collect());
            println!("  sha256 {}\n", whole["sha256"].as_str().unwrap_or_default());
        }
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
