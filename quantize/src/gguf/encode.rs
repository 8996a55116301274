//! A tensor's values, or some rows of them -> bytes, and the error they leave.

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

/// Rows that are read and encoded at a time of a matrix that is large: whole tasks, so that sums have the order they would have
/// without.
pub(crate) fn slab_rows(cols: usize) -> usize {
    64 * CHUNK.div_ceil(cols)
}

/// The bytes of a tensor, or of some rows of it.
pub(crate) struct Encoded {
    pub bytes: Vec<u8>,
    /// A task each.
    losses: Vec<Loss>,
}

/// What encoding lost.
#[derive(Default, Clone, Copy)]
pub(crate) struct Loss {
    squared_error: f64,
    squared: f64,
    elements: usize,
}

impl Encoded {
    /// What encoding all of this lost.
    pub fn loss(&self) -> Loss {
        let mut loss = Loss::default();
        loss.add(self);
        loss
    }
}

impl Loss {
    pub fn add(&mut self, encoded: &Encoded) {
        for loss in &encoded.losses {
            self.squared_error += loss.squared_error;
            self.squared += loss.squared;
            self.elements += loss.elements;
        }
    }

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

/// A value that cannot be encoded; `at` counts elements from the start of what was to be encoded.
pub(crate) struct Failed {
    pub at: usize,
    pub cause: CodecError,
}

/// Encodes whole rows. `importance`, if any, has a number for each column; `best`: by the searches that take longer.
pub(crate) fn encode(t: &Planned, x: &[f32], importance: Option<&[f32]>, best: bool) -> Result<Encoded, Failed> {
    let rows = CHUNK.div_ceil(t.cols());
    let elements = rows * t.cols();
    let row_bytes = t.bytes() as usize / (t.elements() / t.cols());
    let mut bytes = vec![0; x.len() / t.cols() * row_bytes];
    let losses: Vec<Result<Loss, CodecError>> = bytes
        .par_chunks_mut(rows * row_bytes)
        .zip(x.par_chunks(elements))
        .map(|(bytes, x)| {
            match importance {
                _ if best && searches(t.ty) => encode_best_into(t.ty, x, importance, bytes)?,
                Some(columns) => encode_weighted_into(t.ty, x, columns, bytes)?,
                None => encode_into(t.ty, x, bytes)?,
            }
            Ok(loss(t.ty, x, bytes))
        })
        .collect();
    let failed = |(i, loss): (usize, Result<Loss, CodecError>)| {
        loss.map_err(|cause| Failed { at: i * elements + position(cause), cause })
    };
    let losses = losses.into_iter().enumerate().map(failed).collect::<Result<_, _>>()?;
    Ok(Encoded { bytes, losses })
}

/// Sums of `(x - decoded)^2` and `x^2`, in eight shares that are added at the end: a single sum would wait for each addition.
fn loss(ty: GgmlType, x: &[f32], bytes: &[u8]) -> Loss {
    let mut y = vec![0.0; x.len()];
    decode(ty, bytes, &mut y);
    let (mut errors, mut squares) = ([0f64; 8], [0f64; 8]);
    for (x, y) in x.chunks(8).zip(y.chunks(8)) {
        for (i, (a, b)) in x.iter().zip(y).enumerate() {
            let (a, b) = (f64::from(*a), f64::from(*b));
            errors[i] += (a - b) * (a - b);
            squares[i] += a * a;
        }
    }
    Loss { squared_error: errors.iter().sum(), squared: squares.iter().sum(), elements: x.len() }
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
