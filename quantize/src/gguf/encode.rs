//! One tensor's values -> its bytes, and the error they leave.

use crate::{
    codec::{CodecError, encode_best_into, encode_into, encode_weighted_into, searches},
    error::Error,
    plan::Planned,
    report::TensorReport,
};
use edgeft_runtime::format::{GgmlType, block::decode};
use rayon::prelude::*;

/// Elements that one task encodes, rounded up to whole rows. A constant, so that sums of errors have one order.
const CHUNK: usize = 1 << 16;

/// The bytes of a tensor.
pub(crate) struct Encoded {
    pub bytes: Vec<u8>,
    squared_error: f64,
    squared: f64,
    elements: usize,
}

impl Encoded {
    /// What became of `t`, when a file spends `bytes` on it.
    pub fn report(&self, t: &Planned, bytes: u64) -> TensorReport {
        TensorReport {
            name: t.name.clone(),
            ty: t.ty,
            reason: t.reason.to_string(),
            fallback: t.fallback(),
            bytes_before: 4 * t.elements() as u64,
            bytes,
            rms_error: self.rms_error(),
            relative_error: self.relative_error(),
        }
    }
    fn rms_error(&self) -> f64 {
        (self.squared_error / self.elements as f64).sqrt()
    }
    fn relative_error(&self) -> f64 {
        if self.squared == 0.0 { 0.0 } else { (self.squared_error / self.squared).sqrt() }
    }
}

/// A value that cannot be encoded; `at` counts elements from the start of the tensor.
pub(crate) struct Failed {
    pub at: usize,
    pub cause: CodecError,
}

/// `importance`, if any, has a number for each column; `best`: by the searches that take longer.
pub(crate) fn encode(t: &Planned, x: &[f32], importance: Option<&[f32]>, best: bool) -> Result<Encoded, Failed> {
    let rows = CHUNK.div_ceil(t.cols());
    let elements = rows * t.cols();
    let row_bytes = t.bytes() as usize / (t.elements() / t.cols());
    let mut bytes = vec![0; t.bytes() as usize];
    let errors: Vec<Result<(f64, f64), CodecError>> = bytes
        .par_chunks_mut(rows * row_bytes)
        .zip(x.par_chunks(elements))
        .map(|(bytes, x)| {
            match importance {
                _ if best && searches(t.ty) => encode_best_into(t.ty, x, importance, bytes)?,
                Some(columns) => encode_weighted_into(t.ty, x, columns, bytes)?,
                None => encode_into(t.ty, x, bytes)?,
            }
            Ok(squares(t.ty, x, bytes))
        })
        .collect();
    let (mut squared_error, mut squared) = (0.0, 0.0);
    for (i, chunk) in errors.into_iter().enumerate() {
        let (e, s) = chunk.map_err(|cause| Failed { at: i * elements + position(cause), cause })?;
        squared_error += e;
        squared += s;
    }
    Ok(Encoded { bytes, squared_error, squared, elements: x.len() })
}

/// Sums of `(x - decoded)^2` and `x^2`.
fn squares(ty: GgmlType, x: &[f32], bytes: &[u8]) -> (f64, f64) {
    let squared = x.iter().map(|v| f64::from(*v).powi(2)).sum();
    if ty == GgmlType::F32 {
        return (0.0, squared);
    }
    let mut y = vec![0.0; x.len()];
    decode(ty, bytes, &mut y);
    (x.iter().zip(&y).map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2)).sum(), squared)
}

fn position(cause: CodecError) -> usize {
    match cause {
        CodecError::NotFinite { at, .. } | CodecError::TooLarge { at, .. } => at,
        CodecError::Length { .. } => 0,
    }
}

/// The error for a head's value that is not finite.
pub(crate) fn not_finite(name: &str, shape: &[usize], at: usize, value: f32) -> Error {
    let cols = shape[shape.len() - 1];
    let cause = CodecError::NotFinite { at: at % cols, value };
    Error::Weight { name: name.to_string(), row: at / cols, column: at % cols, cause }
}
