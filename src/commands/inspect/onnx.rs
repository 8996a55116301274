//! The part of `inspect` for ONNX: opset, inputs, outputs, operators, tensors by type.

use super::clipped;
use crate::cli::Global;
use crate::commands::show;
use crate::error::BadInput;
use edgeft_runtime::format::onnx::{Dim, ElementType, Onnx, Port};
use serde_json::json;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitCode;

pub fn run(path: &Path, bytes: &[u8], global: &Global) -> anyhow::Result<ExitCode> {
    let file = Onnx::parse(bytes).map_err(|e| BadInput(format!("{}: {e}", path.display())))?;
    let outside = files_outside(path, &file)?;
    let mut types: BTreeMap<&str, (usize, u64)> = BTreeMap::new();
    for t in &file.weights {
        let (n, sum) = types.entry(t.ty.name()).or_default();
        (*n, *sum) = (*n + 1, sum.saturating_add(t.stored_bytes().unwrap_or(0)));
    }
    let ports = |list: &[Port]| -> Vec<_> {
        list.iter().map(|v| json!({"name": v.name, "type": type_name(v), "dims": dims(v)})).collect()
    };
    let tensors: Vec<_> = file
        .weights
        .iter()
        .map(|t| {
            let (location, offset) = t.external.as_ref().map(|e| (&e.location, e.offset)).unzip();
            json!({"name": t.name, "type": t.ty.name(), "dims": t.dims, "bytes": t.stored_bytes(), "file": location, "offset": offset})
        })
        .collect();
    let opsets: serde_json::Map<_, _> =
        file.opsets.iter().map(|(d, v)| (if d.is_empty() { "ai.onnx".into() } else { d.clone() }, json!(v))).collect();
    let metadata: serde_json::Map<_, _> = file.metadata.iter().map(|(k, v)| (k.clone(), json!(v))).collect();
    let by_type: BTreeMap<_, _> = types.iter().map(|(ty, (n, b))| (ty, json!({"tensors": n, "bytes": b}))).collect();
    let whole = json!({"file": path, "bytes": bytes.len(), "ir_version": file.ir_version, "opsets": opsets,
        "producer": file.producer, "inputs": ports(&file.inputs), "outputs": ports(&file.outputs),
        "operators": file.operators, "types": by_type, "data_files": outside, "metadata": metadata, "tensors": tensors});
    show::report(global, &whole, || {
        let versions: Vec<_> = opsets.iter().map(|(domain, version)| format!("{domain} {version}")).collect();
        println!(
            "{}: ONNX, IR {}, opset {}, {}, {} nodes, {} tensors",
            path.display(),
            file.ir_version,
            versions.join(", "),
            show::bytes(bytes.len() as u64),
            file.operators.values().sum::<usize>(),
            file.weights.len()
        );
        for (name, size) in &outside {
            match size {
                Some(size) => println!("  {name}: {}", show::bytes(*size)),
                None => println!("  {name}: not there; the model cannot run without it"),
            }
        }
        println!();
        for (key, value) in &file.metadata {
            println!("  {key} = {}", clipped(value));
        }
        println!();
        let rows = |word: &str, list: &[Port]| -> Vec<Vec<String>> {
            list.iter()
                .map(|v| vec![word.into(), v.name.clone(), type_name(v).into(), format!("[{}]", dims(v).join(", "))])
                .collect()
        };
        print!(
            "{}",
            show::table_with(&[rows("input", &file.inputs), rows("output", &file.outputs)].concat(), &[0, 1, 2, 3])
        );
        println!();
        let operators: Vec<_> = file.operators.iter().map(|(op, n)| format!("{n} {op}")).collect();
        println!("  {}\n", operators.join(", "));
        for (ty, (n, sum)) in &types {
            println!("  {n} {ty}: {}", show::bytes(*sum));
        }
        println!();
        let size = |n: Option<u64>| n.map_or_else(|| "?".to_owned(), show::bytes);
        let rows: Vec<_> = file
            .weights
            .iter()
            .map(|t| vec![t.name.clone(), format!("{:?}", t.dims), t.ty.name().to_owned(), size(t.stored_bytes())])
            .collect();
        print!("{}", show::table(&rows));
    });
    Ok(ExitCode::SUCCESS)
}

fn type_name(port: &Port) -> &'static str {
    if port.ty == ElementType::default() { "not a tensor" } else { port.ty.name() }
}

/// Numbers, or names of numbers that the caller chooses.
fn dims(port: &Port) -> Vec<String> {
    let text = |dim: &Dim| match dim {
        Dim::Fixed(n) => n.to_string(),
        Dim::Named(name) => name.clone(),
        Dim::Unknown => "?".to_owned(),
    };
    port.dims.iter().map(text).collect()
}

/// Files beside the model that hold its weights, and their sizes; `None` for one that is not there.
///
/// # Errors
/// A file that is not in the model's folder, or one that ends before a tensor does.
fn files_outside(path: &Path, file: &Onnx) -> anyhow::Result<BTreeMap<String, Option<u64>>> {
    let mut files = BTreeMap::new();
    let folder = path.parent().unwrap_or(Path::new(""));
    for t in &file.weights {
        let Some(e) = &t.external else { continue };
        if Path::new(&e.location).file_name().is_none_or(|name| name != e.location.as_str()) {
            crate::bad_input!(
                "{}: tensor `{}` is in `{}`, which is not a file beside it",
                path.display(),
                t.name,
                e.location
            );
        }
        let size = *files
            .entry(e.location.clone())
            .or_insert_with(|| std::fs::metadata(folder.join(&e.location)).ok().map(|m| m.len()));
        let end = e.offset.saturating_add(t.stored_bytes().unwrap_or(0));
        if let Some(size) = size.filter(|size| end > *size) {
            crate::bad_input!(
                "{}: tensor `{}` ends at byte {end} of {}, which has {size} bytes; fetch it again",
                path.display(),
                t.name,
                e.location
            );
        }
    }
    Ok(files)
}
