//! Weights: read from the source, encoded as the plan says, streamed to `model.onnx.data`; the graph learns where each is.
//!
//! | type in the plan | in the data file | in the graph |
//! |---|---|---|
//! | `f32` | f32 | as it is |
//! | `f16`, `bf16` | the same halves | `Cast` |
//! | `q8_0` | INT8 codes and f32 scales of 32 | blocked `DequantizeLinear` |
//! | `q4_0` | INT4 codes and f32 scales of 32 | the same |
//! | `q6_k` | INT8 codes and f32 scales of 16 | the same |
//!
//! A matrix is stored turned, (in, out), the way `MatMul` reads it, so that blocks lie along axis 0: ONNX Runtime then
//! multiplies the codes themselves (its `MatMulNBits`). A [`table`], whose rows are gathered, keeps its rows. Where the graph
//! has ONNX Runtime's own operators, codes are those of [`nbits`].

mod nbits;
mod table;

use super::Operators;
use super::codes::{self, Codes, nibbles, split, transpose};
use super::graph::{Graph, OPSET, OPSET_BLOCKS, Value, int};
use super::proto::{DataLocation, DataType, StringStringEntryProto, TensorProto};
use crate::{
    error::{Error, Result},
    gguf::{
        encode::{Encoded, encode},
        read,
    },
    names::{Change, Placed},
    plan::{Origin, Plan, Planned, Reason},
    report::TensorReport,
    source::TensorSource,
    stream::Hashed,
};
use edgeft_runtime::format::GgmlType;
use nbits::NBits;
use std::collections::BTreeMap;
use std::io::Write;
pub(super) use table::Table;

/// Name of the file beside `model.onnx`.
pub const DATA_FILE: &str = "model.onnx.data";

/// Where tensors begin: small ones at a cache line; large ones where every system can map a file, as ONNX Runtime's own
/// writer has them.
const ALIGNMENT: u64 = 64;
const ALIGNMENT_LARGE: u64 = 1 << 16;
const LARGE: u64 = 1 << 20;

/// Types that have a form in ONNX's operators.
pub(super) const TYPES: [GgmlType; 6] =
    [GgmlType::F32, GgmlType::F16, GgmlType::BF16, GgmlType::Q8_0, GgmlType::Q4_0, GgmlType::Q6_K];

/// The weights of a plan on their way out.
pub(super) struct Weights<'a> {
    source: &'a dyn TensorSource,
    operators: Operators,
    planned: Vec<Planned>,
    importance: BTreeMap<String, Vec<f32>>,
    best: bool,
    written: Vec<bool>,
    data: Hashed<'a>,
    progress: &'a mut dyn FnMut(u64, u64),
    pub reports: Vec<TensorReport>,
    /// Bytes without padding.
    pub payload: u64,
}

impl<'a> Weights<'a> {
    /// # Errors
    /// A type that has no form here.
    pub fn new(
        source: &'a dyn TensorSource,
        plan: &Plan,
        operators: Operators,
        data: &'a mut dyn Write,
        progress: &'a mut dyn FnMut(u64, u64),
    ) -> Result<Self> {
        let mut planned = plan.tensors.clone();
        planned.extend(plan.keys.iter().map(|(key, placed)| Planned {
            name: (*key).to_owned(),
            shape: placed.shape.clone(),
            origin: Origin::Source(placed.clone()),
            ty: GgmlType::F32,
            wanted: GgmlType::F32,
            reason: Reason::Vector,
        }));
        if let Some(t) = planned.iter().find(|t| !TYPES.contains(&t.ty)) {
            return Err(Error::OnnxType { name: t.name.clone(), ty: t.ty });
        }
        let written = vec![false; planned.len()];
        Ok(Self {
            source,
            operators,
            planned,
            importance: plan.importance.clone(),
            best: plan.best,
            written,
            data: Hashed::new(data),
            progress,
            reports: Vec::new(),
            payload: 0,
        })
    }

    /// The lowest opset that has the operators for these types.
    pub fn opset(&self) -> i64 {
        let blocks = self.planned.iter().any(|t| t.ty.block_len() > 1);
        if blocks && self.operators == Operators::Portable { OPSET_BLOCKS } else { OPSET }
    }

    /// Whether the plan has a tensor, by its GGUF name.
    pub fn has(&self, name: &str) -> bool {
        self.planned.iter().any(|t| t.name == name)
    }

    /// Divisors of the rotary frequencies, when the plan has them.
    pub fn rope_divisors(&mut self) -> Option<Vec<f32>> {
        let (i, divisors) = self.planned.iter().enumerate().find_map(|(i, t)| match &t.origin {
            Origin::RopeDivisors(x) => Some((i, x.clone())),
            Origin::Source(_) => None,
        })?;
        self.written[i] = true;
        Some(divisors)
    }

    /// (C) floats: a norm's weight, a bias.
    pub fn vector(&mut self, g: &mut Graph, name: &str) -> Result<Value> {
        let (t, placed, encoded) = self.take(name)?;
        let value = self.external(g, &placed.source, DataType::Float, &placed.shape, &encoded.bytes)?;
        self.done(&t, &encoded, encoded.bytes.len());
        Ok(value)
    }

    /// x (..., in) -> (..., out), by a matrix that is (out, in) in the source.
    pub fn multiply(&mut self, g: &mut Graph, x: &str, name: &str) -> Result<Value> {
        let codes = |t: &Planned| t.name == name && t.ty.block_len() > 1;
        if self.operators == Operators::Ort && self.planned.iter().any(codes) {
            let shape =
                |out: usize, input: usize, block: usize, bits: usize| vec![out, input / block, block * bits / 8];
            return Ok(self.nbits(g, name, shape)?.multiply(g, x));
        }
        let w = self.matrix(g, name)?;
        Ok(g.op("MatMul", &[x, &w]))
    }

    /// Codes for ONNX Runtime's own operators, in the shape that (rows, columns, block, bits) have.
    fn nbits(
        &mut self,
        g: &mut Graph,
        name: &str,
        shape: impl Fn(usize, usize, usize, usize) -> Vec<usize>,
    ) -> Result<NBits> {
        let (t, placed, encoded) = self.take(name)?;
        let [out, input] = *placed.shape.as_slice() else { return Err(self.stale(name, "is no matrix")) };
        let Some(split) = split(t.ty, &encoded.bytes) else { return Err(self.stale(name, "has no codes")) };
        let (bits, block, name) = (codes::bits(t.ty), split.block, placed.source.as_str());
        let bytes = nbits::bytes(&split, bits);
        let codes = self.external(g, name, DataType::Uint8, &shape(out, input, block, bits), &bytes)?;
        let scales = self.scales(g, name, &[out, input / block], &split.scales)?;
        self.done(&t, &encoded, bytes.len() + 4 * out * input / block);
        Ok(NBits { codes, scales, bits, block, out, input })
    }

    /// Floats that the config gives, too many to lie in the graph.
    pub fn computed(&mut self, g: &mut Graph, name: &str, shape: &[usize], values: &[f32]) -> Result<Value> {
        let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        self.external(g, name, DataType::Float, shape, &bytes)
    }

    /// (out, in) in the source -> (in, out) f32 in the graph: what `MatMul` takes on its right.
    fn matrix(&mut self, g: &mut Graph, name: &str) -> Result<Value> {
        let (t, placed, encoded) = self.take(name)?;
        let [out, input] = *placed.shape.as_slice() else { return Err(self.stale(name, "is no matrix")) };
        let name = placed.source.as_str();
        let Some(Codes { codes, scales, block }) = split(t.ty, &encoded.bytes) else {
            let bytes = transpose_elements(&encoded.bytes, t.ty.block_bytes(), out);
            let value = self.external(g, name, float_type(t.ty), &[input, out], &bytes)?;
            self.done(&t, &encoded, bytes.len());
            return Ok(to_f32(g, value, t.ty));
        };
        let (codes, scales) = (transpose(&codes, out), transpose(&scales, out));
        let (ty, bytes) = match codes::bits(t.ty) {
            4 => (DataType::Int4, nibbles(&codes)),
            _ => (DataType::Int8, bytemuck::cast_slice(&codes).to_vec()),
        };
        let codes = self.external(g, name, ty, &[input, out], &bytes)?;
        let scales = self.scales(g, name, &[input / block, out], &scales)?;
        self.done(&t, &encoded, bytes.len() + 4 * input / block * out);
        Ok(dequantize(g, &codes, &scales, 0, block))
    }

    /// (rows, C), kept in that order. Codes of four bits are stored in eight where the operators are standard: `Gather` does
    /// not take INT4.
    pub fn table(&mut self, g: &mut Graph, name: &str) -> Result<Table> {
        let codes = |t: &Planned| t.name == name && t.ty.block_len() > 1;
        if self.operators == Operators::Ort && self.planned.iter().any(codes) {
            let shape = |rows: usize, cols: usize, _: usize, bits: usize| vec![rows, cols * bits / 8];
            return self.nbits(g, name, shape).map(Table::NBits);
        }
        let (t, placed, encoded) = self.take(name)?;
        let [rows, cols] = *placed.shape.as_slice() else { return Err(self.stale(name, "is no matrix")) };
        let name = placed.source.as_str();
        let Some(Codes { codes, scales, block }) = split(t.ty, &encoded.bytes) else {
            let values = self.external(g, name, float_type(t.ty), &placed.shape, &encoded.bytes)?;
            self.done(&t, &encoded, encoded.bytes.len());
            return Ok(Table::Floats { values, ty: t.ty });
        };
        let stored = self.external(g, name, DataType::Int8, &placed.shape, bytemuck::cast_slice(&codes))?;
        let scales = self.scales(g, name, &[rows, cols / block], &scales)?;
        self.done(&t, &encoded, codes.len() + 4 * rows * cols / block);
        let codes = stored;
        Ok(Table::Codes { codes, scales, block })
    }

    /// What no node asked for, and the SHA-256 and length of the data file.
    pub fn finish(self) -> Result<(Vec<String>, String, u64)> {
        let unused = self.planned.into_iter().zip(self.written).filter(|(_, w)| !w).map(|(t, _)| match t.origin {
            Origin::Source(placed) => placed.source,
            Origin::RopeDivisors(_) => t.name,
        });
        let unused = unused.collect();
        let bytes = self.data.bytes;
        Ok((unused, self.data.finish()?, bytes))
    }

    /// A planned tensor, once, in its type.
    fn take(&mut self, name: &str) -> Result<(Planned, Placed, Encoded)> {
        let found = self.planned.iter().position(|t| t.name == name).filter(|i| !self.written[*i]);
        let Some(i) = found else { return Err(self.stale(name, "is missing")) };
        let t = self.planned[i].clone();
        let Origin::Source(mut placed) = t.origin.clone() else { return Err(self.stale(name, "is computed")) };
        // Heads keep the source's order of pairs here; what else changes on the way to GGUF changes here too.
        let change = if let Change::Interleave(_) = placed.change { Change::None } else { placed.change };
        let x = change.apply(read(self.source, &placed)?, &placed.shape);
        let encoded = encode(&t, &x, self.importance.get(&t.name).map(Vec::as_slice), self.best).map_err(|e| {
            let (row, column) = change.source_of(e.at, &placed.shape);
            Error::Weight { name: placed.source.clone(), row, column, cause: e.cause }
        })?;
        placed.shape = change.shape(&placed.shape);
        self.written[i] = true;
        Ok((t, placed, encoded))
    }

    fn stale(&self, name: &str, what: &str) -> Error {
        Error::StalePlan(format!("`{name}` {what}"))
    }

    fn done(&mut self, t: &Planned, encoded: &Encoded, bytes: usize) {
        self.payload += bytes as u64;
        self.reports.push(encoded.loss().report(t, bytes as u64));
        let elements = |(t, w): (&Planned, &bool)| if *w { t.elements() as u64 } else { 0 };
        let done = self.planned.iter().zip(&self.written).map(elements).sum();
        (self.progress)(done, self.planned.iter().map(|t| t.elements() as u64).sum());
    }

    fn scales(&mut self, g: &mut Graph, name: &str, shape: &[usize], scales: &[f32]) -> Result<Value> {
        let bytes: Vec<u8> = scales.iter().flat_map(|s| s.to_le_bytes()).collect();
        self.external(g, &format!("{name}.scale"), DataType::Float, shape, &bytes)
    }

    /// Appends to the data file, and tells the graph where.
    fn external(&mut self, g: &mut Graph, name: &str, ty: DataType, shape: &[usize], bytes: &[u8]) -> Result<Value> {
        let length = bytes.len() as u64;
        self.data.pad(if length >= LARGE { ALIGNMENT_LARGE } else { ALIGNMENT })?;
        let offset = self.data.bytes;
        self.data.write(bytes)?;
        let entry = |key: &str, value: String| StringStringEntryProto { key: key.into(), value };
        Ok(g.initializer(TensorProto {
            dims: shape.iter().map(|n| *n as i64).collect(),
            data_type: ty as i32,
            name: name.to_owned(),
            raw_data: None,
            external_data: vec![
                entry("location", DATA_FILE.into()),
                entry("offset", offset.to_string()),
                entry("length", length.to_string()),
            ],
            data_location: DataLocation::External as i32,
        }))
    }
}

fn dequantize(g: &mut Graph, codes: &str, scales: &str, axis: i64, block: usize) -> Value {
    g.op_with("DequantizeLinear", &[codes, scales], vec![int("axis", axis), int("block_size", block as i64)])
}

fn float_type(ty: GgmlType) -> DataType {
    match ty {
        GgmlType::F16 => DataType::Float16,
        GgmlType::BF16 => DataType::Bfloat16,
        _ => DataType::Float,
    }
}

fn to_f32(g: &mut Graph, value: Value, ty: GgmlType) -> Value {
    if ty == GgmlType::F32 { value } else { g.cast(&value, DataType::Float) }
}

/// (R, C) elements of 2 or 4 bytes -> (C, R).
fn transpose_elements(bytes: &[u8], size: usize, rows: usize) -> Vec<u8> {
    if size == 2 {
        transpose(bytes.as_chunks::<2>().0, rows).into_flattened()
    } else {
        transpose(bytes.as_chunks::<4>().0, rows).into_flattened()
    }
}
