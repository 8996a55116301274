//! Activations, rounded to eight bits where the weights they meet are quantized (ggml's `q8_0` and `q8_K`).

use crate::format::GgmlType;
use half::f16;

/// 32 activations: `x[i] = d * qs[i]`. The scale is rounded to f16 first, as in a file.
#[derive(Debug, Clone, Copy)]
pub struct ActQ8 {
    /// Scale.
    pub d: f32,
    /// Sum of the codes.
    pub sum: i32,
    /// Codes.
    pub qs: [i8; 32],
}

/// 256 activations: `x[i] = d * qs[i]`, with the sums of each 32 for the mins of the K types.
#[derive(Debug, Clone, Copy)]
pub struct ActQ8K {
    /// Scale.
    pub d: f32,
    /// Codes.
    pub qs: [i8; 256],
    /// Sums of 32 codes each.
    pub sums: [i32; 8],
}

/// How activations must be prepared for a weight type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// As they are.
    F32,
    /// [`ActQ8`].
    Q8,
    /// [`ActQ8K`].
    Q8K,
}

impl Form {
    /// The form for weights of `ty`.
    pub fn of(ty: GgmlType) -> Self {
        match ty {
            GgmlType::Q8_0 | GgmlType::Q4_0 | GgmlType::Q4_1 | GgmlType::Q5_0 | GgmlType::Q5_1 => Self::Q8,
            GgmlType::Q4_K | GgmlType::Q5_K | GgmlType::Q6_K => Self::Q8K,
            _ => Self::F32,
        }
    }
}

/// n rows of activations in every form that was asked for. Buffers are kept between uses.
#[derive(Debug, Default)]
pub struct Acts {
    /// Rows.
    pub n: usize,
    /// Elements of a row.
    pub cols: usize,
    /// (n, cols).
    pub x: Vec<f32>,
    /// (n, cols / 32), when prepared.
    pub q8: Vec<ActQ8>,
    /// (n, cols / 256), when prepared.
    pub q8k: Vec<ActQ8K>,
}

impl Acts {
    /// Takes new rows; forgets the forms of the old ones.
    pub fn set(&mut self, x: &[f32], cols: usize) {
        self.x.clear();
        self.x.extend_from_slice(x);
        (self.n, self.cols) = (x.len() / cols, cols);
        self.q8.clear();
        self.q8k.clear();
    }

    /// Makes a form, unless it is there.
    pub fn prepare(&mut self, form: Form) {
        match form {
            Form::F32 => {}
            Form::Q8 if self.q8.is_empty() => {
                let (blocks, _) = self.x.as_chunks::<32>();
                self.q8.extend(blocks.iter().map(quantize_q8));
            }
            Form::Q8K if self.q8k.is_empty() => {
                let (blocks, _) = self.x.as_chunks::<256>();
                self.q8k.extend(blocks.iter().map(quantize_q8k));
            }
            Form::Q8 | Form::Q8K => {}
        }
    }
}

/// d = max|x| / 127, q = round(x / d).
pub fn quantize_q8(x: &[f32; 32]) -> ActQ8 {
    let max = x.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    let d = max / 127.0;
    let inverse = if d == 0.0 { 0.0 } else { 1.0 / d };
    let qs: [i8; 32] = std::array::from_fn(|i| (x[i] * inverse).round_ties_even() as i8);
    ActQ8 { d: f16::from_f32(d).to_f32(), sum: qs.iter().map(|q| i32::from(*q)).sum(), qs }
}

/// The largest magnitude becomes -128 (ggml's `quantize_row_q8_K`), the scale stays f32.
pub fn quantize_q8k(x: &[f32; 256]) -> ActQ8K {
    let max = x.iter().fold(0.0f32, |m, v| if v.abs() > m.abs() { *v } else { m });
    let inverse = if max == 0.0 { 0.0 } else { -127.0 / max };
    let qs: [i8; 256] = std::array::from_fn(|i| (x[i] * inverse).round_ties_even().min(127.0) as i8);
    let sums = std::array::from_fn(|g| qs[g * 32..][..32].iter().map(|q| i32::from(*q)).sum());
    ActQ8K { d: if max == 0.0 { 0.0 } else { 1.0 / inverse }, qs, sums }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_stays_within_half_a_step() {
        let x: [f32; 256] = std::array::from_fn(|i| ((i * 37 % 101) as f32 - 50.0) * 0.013);
        let k = quantize_q8k(&x);
        for (i, v) in x.iter().enumerate() {
            assert!((k.d * f32::from(k.qs[i]) - v).abs() <= k.d.abs() * 0.5001, "{i}");
        }
        let q = quantize_q8(x[..32].try_into().unwrap());
        for i in 0..32 {
            // the scale itself is rounded to eleven bits
            assert!((q.d * f32::from(q.qs[i]) - x[i]).abs() <= q.d * 0.5 + x[i].abs() / 2048.0 + 1e-7, "{i}");
        }
        assert_eq!(k.sums.iter().sum::<i32>(), k.qs.iter().map(|q| i32::from(*q)).sum::<i32>());
    }

    #[test]
    fn zeros_stay_zeros() {
        let q = quantize_q8(&[0.0; 32]);
        assert_eq!((q.d, q.qs, q.sum), (0.0, [0; 32], 0));
        let k = quantize_q8k(&[0.0; 256]);
        assert_eq!((k.d, k.sums), (0.0, [0; 8]));
    }
}
