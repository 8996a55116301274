//! Two readers, one file: gguf-rs (written elsewhere, from the same spec) against `edgeft_runtime::format::gguf`.
//!
//! gguf-rs 0.1.8 is right about everything that is compared here. What it is known to get wrong is left out by name:
//! - sizes of types 10 and up that are not 256-element K types: it guesses the block length from the code, so bf16 and
//!   iq4_nl come out wrong ([`size_is_known`]);
//! - `general.file_type` as text: its table is another one from 11 up; the number itself is compared;
//! - number types: values come as JSON, so u32 and i64 look alike, and NaN is null.
#![forbid(unsafe_code)]

use edgeft_runtime::format::gguf::{Array, Gguf, Value};
use serde_json::{Value as Json, json};
use std::path::Path;

/// What both readers agree on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Agreement {
    /// Metadata keys.
    pub keys: usize,
    /// Tensors.
    pub tensors: usize,
    /// Bytes of the file.
    pub bytes: u64,
}

/// Compares version, alignment, every key and its value, every tensor's name, dimensions, type, offset and size, and where
/// the data starts and ends.
///
/// # Errors
/// The first thing that either reader refuses or on which they differ.
pub fn compare(path: &Path) -> Result<Agreement, String> {
    let bytes = std::fs::read(path).map_err(|e| e.to_string())?;
    let ours = Gguf::parse(&bytes).map_err(|e| format!("edgeft refuses it: {e}"))?;
    let name = path.to_str().ok_or("gguf-rs wants a UTF-8 path")?;
    let theirs = gguf_rs::get_gguf_container_array_size(name, u64::MAX)
        .and_then(|mut file| file.decode())
        .map_err(|e| format!("gguf-rs refuses it: {e}"))?;
    same("version", format!("v{}", ours.version), theirs.get_version())?;
    same("alignment", ours.alignment, theirs.alignment())?;
    same("start of the data", ours.data_start, theirs.data_offset())?;
    same("number of keys", ours.metadata.len() as u64, theirs.num_kv())?;
    for (key, value) in &ours.metadata {
        let other = theirs.metadata().get(key).ok_or_else(|| format!("gguf-rs has no key `{key}`"))?;
        same(&format!("key `{key}`"), &to_json(value), other)?;
    }
    same("number of tensors", ours.tensors.len(), theirs.tensors().len())?;
    for (a, b) in ours.tensors.iter().zip(theirs.tensors()) {
        same("tensor name", &a.name, &b.name)?;
        let of = |what: &str| format!("{what} of `{}`", a.name);
        same(&of("type"), a.ty as u32, b.kind)?;
        same(&of("shape"), &a.dims, &b.shape)?;
        same(&of("offset"), a.offset, b.offset)?;
        if size_is_known(b.kind) {
            same(&of("size"), a.bytes, b.size)?;
        }
        let end = theirs.data_offset() + b.offset + a.bytes;
        if end > bytes.len() as u64 {
            return Err(format!("`{}` ends at byte {end}, but the file has {}", a.name, bytes.len()));
        }
    }
    Ok(Agreement { keys: ours.metadata.len(), tensors: ours.tensors.len(), bytes: bytes.len() as u64 })
}

/// Whether gguf-rs 0.1.8 guesses the block length of this type code right: f32, f16, the 32-element types and K types.
pub fn size_is_known(code: u32) -> bool {
    matches!(code, 0..=3 | 6..=8 | 10..=14)
}

fn same<T: PartialEq + std::fmt::Debug>(what: &str, ours: T, theirs: T) -> Result<(), String> {
    if ours == theirs { Ok(()) } else { Err(format!("{what}: edgeft reads {ours:?}, gguf-rs reads {theirs:?}")) }
}

/// A value as gguf-rs gives it.
fn to_json(value: &Value) -> Json {
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
        Value::Array(a) => match a {
            Array::U8(v) => json!(v),
            Array::I8(v) => json!(v),
            Array::U16(v) => json!(v),
            Array::I16(v) => json!(v),
            Array::U32(v) => json!(v),
            Array::I32(v) => json!(v),
            Array::F32(v) => json!(v),
            Array::Bool(v) => json!(v),
            Array::Str(v) => json!(v),
            Array::U64(v) => json!(v),
            Array::I64(v) => json!(v),
            Array::F64(v) => json!(v),
        },
    }
}
