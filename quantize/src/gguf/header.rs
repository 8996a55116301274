//! The bytes before the data: magic, version, counts, keys, tensor table, padding. GGUF v3, little-endian.

use super::padding;
use crate::{
    error::{Error, Result},
    plan::Planned,
};
use edgeft_runtime::format::gguf::{Array, MAGIC, VERSION, Value};

/// Everything before the first tensor's data, padded.
///
/// # Errors
/// An empty key, or one given twice; llama.cpp refuses such files.
pub fn header(keys: &[(String, Value)], tensors: &[Planned]) -> Result<Vec<u8>> {
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
    let mut offset = 0u64;
    for t in tensors {
        string(&mut out, &t.name);
        out.extend((t.shape.len() as u32).to_le_bytes());
        // ggml's first dimension is the fastest: shapes are written last first.
        for n in t.shape.iter().rev() {
            out.extend((*n as u64).to_le_bytes());
        }
        out.extend((t.ty as u32).to_le_bytes());
        out.extend(offset.to_le_bytes());
        offset += t.bytes() + padding(t.bytes());
    }
    out.resize(out.len() + padding(out.len() as u64) as usize, 0);
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
