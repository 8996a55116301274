//! A matrix whose rows are looked up.

use super::nbits::NBits;
use super::{dequantize, to_f32};
use crate::onnx::graph::{Graph, Value};
use edgeft_runtime::format::GgmlType;

/// A matrix whose rows are looked up, and which may be the output matrix as well.
pub(in crate::onnx) enum Table {
    /// Values of a type of floats.
    Floats { values: Value, ty: GgmlType },
    /// Codes, scales, and how many codes share one: standard operators.
    Codes { codes: Value, scales: Value, block: usize },
    /// For ONNX Runtime's own operators.
    NBits(NBits),
}

impl Table {
    /// Rows by index (...): (..., C) in f32. `rank` is that of the index.
    pub fn rows(&self, g: &mut Graph, index: &str, rank: usize) -> Value {
        match self {
            Self::Floats { values, ty } => {
                let values = g.gather(values, index, 0);
                to_f32(g, values, *ty)
            }
            Self::Codes { codes, scales, block } => {
                let codes = g.gather(codes, index, 0);
                let scales = g.gather(scales, index, 0);
                dequantize(g, &codes, &scales, rank as i64, *block)
            }
            Self::NBits(table) => table.rows(g, index),
        }
    }

    /// x (..., C) -> (..., rows): the table as the output matrix. It is turned before it is dequantized, so that ONNX
    /// Runtime turns the codes once, when it loads the model, and never holds the floats.
    pub fn multiply(&self, g: &mut Graph, x: &str) -> Value {
        let w = match self {
            Self::Floats { values, ty } => {
                let values = g.transpose(values, &[1, 0]);
                to_f32(g, values, *ty)
            }
            Self::Codes { codes, scales, block } => {
                let codes = g.transpose(codes, &[1, 0]);
                let scales = g.transpose(scales, &[1, 0]);
                dequantize(g, &codes, &scales, 0, *block)
            }
            Self::NBits(table) => return table.as_matrix(g).multiply(g, x),
        };
        g.op("MatMul", &[x, &w])
    }
}
