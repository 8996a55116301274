//! The bytes before the data: magic, version, counts, keys, tensor table, padding. GGUF v3, little-endian.

use super::padding;
use crate::{
    error::{Error, Result},
    plan::Planned,
};
use edgeft_runtime::format::GgmlType;
use edgeft_runtime::format::gguf::{Array, DEFAULT_ALIGNMENT, Gguf, MAGIC, VERSION, Value};

/// A line of the tensor table; dimensions in ggml's order, the fastest first.
struct Line<'a> {
    name: &'a str,
    dims: Vec<u64>,
    ty: GgmlType,
    offset: u64,
}

/// Everything before the first tensor's data, padded.
///
/// # Errors
/// An empty key, or one given twice; llama.cpp refuses such files.
pub fn header(keys: &[(String, Value)], tensors: &[Planned]) -> Result<Vec<u8>> {
    let mut offset = 0u64;
    let lines = tensors.iter().map(|t| {
        let at = offset;
        offset += t.bytes() + padding(t.bytes());
        Line { name: &t.name, dims: t.shape.iter().rev().map(|n| *n as u64).collect(), ty: t.ty, offset: at }
    });
    write(keys, &lines.collect::<Vec<_>>(), DEFAULT_ALIGNMENT)
}

/// The same for the tensors of a file that is there, with other keys: its data can follow as it is.
///
/// # Errors
/// As [`header`].
pub fn header_of(file: &Gguf, keys: &[(String, Value)]) -> Result<Vec<u8>> {
    let lines = file.tensors.iter();
    let lines = lines.map(|t| Line { name: &t.name, dims: t.dims.clone(), ty: t.ty, offset: t.offset });
    write(keys, &lines.collect::<Vec<_>>(), file.alignment)
}

fn write(keys: &[(String, Value)], tensors: &[Line], alignment: u64) -> Result<Vec<u8>> {
    let mut seen = std::collections::HashSet::new();
    for (key, _) in keys {
        let problem = match (key.as_str(), seen.insert(key)) {
            ("", _) => "a key cannot be empty",
            (_, false) => "it is given twice",
            _ => continue,
        };
        return Err(Error::Metadata { key: key.clone(), problem: problem.into() });
    }
    let mut out = Vec::new();
    out.extend(MAGIC);
    out.extend(VERSION.to_le_bytes());
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend((keys.len() as u64).to_le_bytes());
    for (key, value) in keys {
        string(&mut out, key);
        put(&mut out, value);
    }
    for t in tensors {
        string(&mut out, t.name);
        out.extend((t.dims.len() as u32).to_le_bytes());
        for n in &t.dims {
            out.extend(n.to_le_bytes());
        }
        out.extend((t.ty as u32).to_le_bytes());
        out.extend(t.offset.to_le_bytes());
    }
    out.resize((out.len() as u64).next_multiple_of(alignment) as usize, 0);
    Ok(out)
}

fn string(out: &mut Vec<u8>, s: &str) {
    out.extend((s.len() as u64).to_le_bytes());
    out.extend(s.as_bytes());
}

/// Type code and value.
fn put(out: &mut Vec<u8>, value: &Value) {
    out.extend(value.code().to_le_bytes());
    match value {
        Value::U8(v) => out.push(*v),
        Value::I8(v) => out.extend(v.to_le_bytes()),
        Value::U16(v) => out.extend(v.to_le_bytes()),
        Value::I16(v) => out.extend(v.to_le_bytes()),
        Value::U32(v) => out.extend(v.to_le_bytes()),
        Value::I32(v) => out.extend(v.to_le_bytes()),
        Value::F32(v) => out.extend(v.to_le_bytes()),
        Value::Bool(v) => out.push(u8::from(*v)),
        Value::Str(v) => string(out, v),
        Value::Array(v) => array(out, v),
        Value::U64(v) => out.extend(v.to_le_bytes()),
        Value::I64(v) => out.extend(v.to_le_bytes()),
        Value::F64(v) => out.extend(v.to_le_bytes()),
    }
}

/// Element type code, count and elements.
fn array(out: &mut Vec<u8>, array: &Array) {
    out.extend(array.code().to_le_bytes());
    out.extend((array.len() as u64).to_le_bytes());
    match array {
        Array::U8(a) => out.extend(a),
        Array::I8(a) => a.iter().for_each(|v| out.extend(v.to_le_bytes())),
        Array::U16(a) => a.iter().for_each(|v| out.extend(v.to_le_bytes())),
        Array::I16(a) => a.iter().for_each(|v| out.extend(v.to_le_bytes())),
        Array::U32(a) => a.iter().for_each(|v| out.extend(v.to_le_bytes())),
        Array::I32(a) => a.iter().for_each(|v| out.extend(v.to_le_bytes())),
        Array::F32(a) => a.iter().for_each(|v| out.extend(v.to_le_bytes())),
        Array::Bool(a) => a.iter().for_each(|v| out.push(u8::from(*v))),
        Array::Str(a) => a.iter().for_each(|v| string(out, v)),
        Array::U64(a) => a.iter().for_each(|v| out.extend(v.to_le_bytes())),
        Array::I64(a) => a.iter().for_each(|v| out.extend(v.to_le_bytes())),
        Array::F64(a) => a.iter().for_each(|v| out.extend(v.to_le_bytes())),
    }
}
