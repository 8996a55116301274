//! Activations in the precision of the weights they meet, as in ggml: eight bits for quantized weights (its `q8_0` and
//! `q8_K`), halves for halves. An engine that keeps more bits in one place gives other texts than llama.cpp, because the
//! difference turns codes of the next place.

use crate::format::GgmlType;
use half::f16;

/// Codes whose products with weights are summed together as integers, before the scales come in: a lane of a kernel.
pub const GROUP: usize = 4;

/// Rows of activations in eight bits: `x[i] = d[i / block] * qs[i]`, `qs` in -127..=127. The parts lie apart, so that a
/// register takes any number of blocks.
#[derive(Debug, Default)]
pub struct Codes {
    /// (n, cols / block) scales.
    pub d: Vec<f32>,
    /// (n, cols) codes.
    pub qs: Vec<i8>,
    /// (n, cols / 4): -128 times the sum of each four codes. Unsigned weight codes `w + 128` then give `Σ w x` exactly.
    pub minus128: Vec<i32>,
    /// (n, cols / 32): sums of each 32 codes, for the mins of the K types; empty in blocks of 32.
    pub sums: Vec<i16>,
}

impl Codes {
    fn clear(&mut self) {
        self.d.clear();
        self.qs.clear();
        self.minus128.clear();
        self.sums.clear();
    }

    fn push(&mut self, d: f32, qs: &[i8]) {
        self.d.push(d);
        self.qs.extend_from_slice(qs);
        let (groups, _) = qs.as_chunks::<GROUP>();
        self.minus128.extend(groups.iter().map(|g| -128 * g.iter().map(|q| i32::from(*q)).sum::<i32>()));
    }
}

/// How activations must be prepared for a weight type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// As they are.
    F32,
    /// Floats rounded to f16.
    F16,
    /// Codes in blocks of 32.
    Q8,
    /// Codes in blocks of 256.
    Q8K,
}

impl Form {
    /// The form for weights of `ty`.
    pub fn of(ty: GgmlType) -> Self {
        match ty {
            GgmlType::Q8_0 | GgmlType::Q4_0 | GgmlType::Q4_1 | GgmlType::Q5_0 | GgmlType::Q5_1 => Self::Q8,
            GgmlType::Q4_K | GgmlType::Q5_K | GgmlType::Q6_K => Self::Q8K,
            GgmlType::F16 => Self::F16,
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
    /// (n, cols), rounded to f16, when prepared.
    pub halves: Vec<f32>,
    /// In blocks of 32, when prepared.
    pub q8: Codes,
    /// In blocks of 256, when prepared.
    pub q8k: Codes,
}

impl Acts {
    /// Takes new rows; forgets the forms of the old ones.
    pub fn set(&mut self, x: &[f32], cols: usize) {
        self.x.clear();
        self.x.extend_from_slice(x);
        (self.n, self.cols) = (x.len() / cols, cols);
        self.halves.clear();
        self.q8.clear();
        self.q8k.clear();
    }

    /// (n, cols) for weights of a float type; [`Acts::prepare`] comes first.
    pub fn floats(&self, ty: GgmlType) -> &[f32] {
        if Form::of(ty) == Form::F16 { &self.halves } else { &self.x }
    }

    /// Makes a form, unless it is there.
    pub fn prepare(&mut self, form: Form) {
        match form {
            Form::F32 => {}
            Form::F16 if self.halves.is_empty() => self.halves.extend(self.x.iter().map(|x| half_precision(*x))),
            Form::Q8 if self.q8.d.is_empty() => {
                for x in self.x.as_chunks::<32>().0 {
                    let (d, qs) = quantize_q8(x);
                    self.q8.push(d, &qs);
                }
            }
            Form::Q8K if self.q8k.d.is_empty() => {
                for x in self.x.as_chunks::<256>().0 {
                    let (d, qs) = quantize_q8k(x);
                    self.q8k.push(d, &qs);
                    self.q8k.sums.extend(qs.as_chunks::<32>().0.iter().map(sum));
                }
            }
            Form::F16 | Form::Q8 | Form::Q8K => {}
        }
    }
}

/// The nearest f16, halves to even; ±65504, the largest, for what is beyond it.
fn half_precision(x: f32) -> f32 {
    let m = if x.abs() > 65504.0 { 65504.0 } else { x.abs() };
    let bits = m.to_bits();
    let normal = f32::from_bits((bits + 0xfff + (bits >> 13 & 1)) & !0x1fff);
    // Below 2^-14 halves lie 2^-24 apart, as floats from 0.5 to 1 do.
    let small = (m + 0.5) - 0.5;
    let rounded = if m < f32::from_bits(0x3880_0000) { small } else { normal };
    if x.is_nan() { x } else { rounded.copysign(x) }
}

/// At most 32 * 127.
fn sum(qs: &[i8; 32]) -> i16 {
    qs.iter().map(|q| i16::from(*q)).sum()
}

/// d = max|x| / 127, q = round(x / d), halves to even. The scale is rounded to f16 afterwards, as in a file.
pub fn quantize_q8(x: &[f32; 32]) -> (f32, [i8; 32]) {
    let max = magnitude(x);
    let d = max / 127.0;
    let inverse = if d == 0.0 { 0.0 } else { 1.0 / d };
    (f16::from_f32(d).to_f32(), x.map(|v| nearest(v * inverse)))
}

/// The same with a scale that stays f32. ggml's `quantize_row_q8_K` lets the largest value become -127 or 127 by its sign;
/// here it keeps its sign, and the scale is positive.
pub fn quantize_q8k(x: &[f32; 256]) -> (f32, [i8; 256]) {
    let max = magnitude(x);
    let inverse = if max == 0.0 { 0.0 } else { 127.0 / max };
    (if max == 0.0 { 0.0 } else { 1.0 / inverse }, x.map(|v| nearest(v * inverse)))
}

/// max|x|, in eight strands that the compiler may keep in one register.
fn magnitude(x: &[f32]) -> f32 {
    let mut most = [0.0f32; 8];
    for x in x.as_chunks::<8>().0 {
        for i in 0..8 {
            most[i] = if x[i].abs() > most[i] { x[i].abs() } else { most[i] };
        }
    }
    most.into_iter().fold(0.0, f32::max)
}

/// The nearest whole number, halves to even, of a value in -127..=127: added to 1.5 * 2^23, the value's whole part stands in
/// the last byte of the sum.
fn nearest(v: f32) -> i8 {
    (v + 12_582_912.0).to_bits() as i8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_stays_within_half_a_step() {
        let x: [f32; 256] = std::array::from_fn(|i| ((i * 37 % 101) as f32 - 50.0) * 0.013);
        let (d, qs) = quantize_q8k(&x);
        for (i, v) in x.iter().enumerate() {
            assert!((d * f32::from(qs[i]) - v).abs() <= d.abs() * 0.5001, "{i}");
        }
        let (d, qs) = quantize_q8(x[..32].try_into().unwrap());
        for i in 0..32 {
            // the scale itself is rounded to eleven bits
            assert!((d * f32::from(qs[i]) - x[i]).abs() <= d * 0.5 + x[i].abs() / 2048.0 + 1e-7, "{i}");
        }
    }

    #[test]
    fn the_nearest_code_is_that_of_the_standard_library() {
        for i in -127_000..=127_000 {
            let v = i as f32 / 1000.0;
            assert_eq!(nearest(v), v.round_ties_even() as i8, "{v}");
        }
    }

    #[test]
    fn half_precision_is_that_of_the_half_crate() {
        for i in 0..=u32::MAX >> 10 {
            let x = f32::from_bits(i << 10 | i & 0x3ff);
            let want = f16::from_f32(x);
            if want.is_nan() {
                assert!(half_precision(x).is_nan(), "{x}");
            } else {
                let want = want.to_f32().clamp(-65504.0, 65504.0);
                assert_eq!(half_precision(x).to_bits(), want.to_bits(), "{x}");
            }
        }
    }

    #[test]
    fn sums_are_those_of_the_codes() {
        let x: Vec<f32> = (0..512).map(|i| ((i * 31 % 77) as f32 - 30.0) * 0.1).collect();
        let mut acts = Acts::default();
        acts.set(&x, 256);
        acts.prepare(Form::Q8);
        acts.prepare(Form::Q8K);
        for codes in [&acts.q8, &acts.q8k] {
            for (group, sum) in codes.qs.chunks(4).zip(&codes.minus128) {
                assert_eq!(group.iter().map(|q| i32::from(*q)).sum::<i32>() * -128, *sum);
            }
        }
        assert_eq!((acts.q8.d.len(), acts.q8k.d.len(), acts.q8k.sums.len()), (16, 2, 16));
        let whole = |codes: &[i8]| codes.iter().map(|q| i32::from(*q)).sum::<i32>();
        assert_eq!(acts.q8k.sums.iter().map(|s| i32::from(*s)).sum::<i32>(), whole(&acts.q8k.qs));
    }

    #[test]
    fn zeros_stay_zeros() {
        assert_eq!(quantize_q8(&[0.0; 32]), (0.0, [0; 32]));
        assert_eq!(quantize_q8k(&[0.0; 256]), (0.0, [0; 256]));
    }
}
