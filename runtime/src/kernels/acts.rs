//! Activations in the precision of the weights they meet, as in ggml: eight bits for quantized weights (its `q8_0` and
//! `q8_K`), halves for halves. An engine that keeps more bits in one place gives other texts than llama.cpp, because the
//! difference turns codes of the next place.

use crate::format::GgmlType;
use half::f16;

/// One row of activations in eight bits: `x[i] = d[i / block] * qs[i]`, `qs` in -127..=127. The parts lie apart, so that a
/// register takes any number of blocks. Blocks of 32 are filled up with zeros to a multiple of four.
#[derive(Debug, Default, Clone)]
pub struct Codes {
    /// (blocks) scales.
    pub d: Vec<f32>,
    /// (blocks, block) codes.
    pub qs: Vec<i8>,
    /// Sums of each 32 codes.
    pub sums: Vec<i16>,
    /// For kernels that take many rows: by 32 codes, and by 16.
    pub turned: [Turned; 2],
}

/// Codes by fours of blocks: a register of weights holds the same step of four blocks of several rows, and meets it here.
#[derive(Debug, Default, Clone)]
pub struct Turned {
    /// (fours of blocks, block / 4 steps): four codes of each of the four blocks.
    pub qs: Vec<[i8; 16]>,
    /// (fours of blocks): -128 times each block's sum. Unsigned weight codes `w + 128` then give `Σ w x` exactly.
    pub minus128: Vec<[i32; 4]>,
    /// (fours of blocks): scales, where each block has its own.
    pub d: Vec<[f32; 4]>,
}

/// A row in blocks of 32, four of them at a time.
#[derive(Debug, Default, Clone, Copy)]
pub struct Fours<'a> {
    /// Codes.
    pub qs: &'a [[[i8; 32]; 4]],
    /// Their sums.
    pub sums: &'a [[i16; 4]],
    /// Their scales.
    pub d: &'a [[f32; 4]],
}

impl Codes {
    /// Some fours of blocks of 32.
    #[inline(always)]
    pub fn fours(&self, some: std::ops::Range<usize>) -> Fours<'_> {
        Fours {
            qs: &self.qs.as_chunks::<32>().0.as_chunks::<4>().0[some.clone()],
            sums: &self.sums.as_chunks::<4>().0[some.clone()],
            d: &self.d.as_chunks::<4>().0[some],
        }
    }

    /// Takes a row in blocks of `B`.
    fn fill<const B: usize>(&mut self, x: &[f32], quantize: fn(&[f32; B]) -> (f32, [i8; B])) {
        self.d.clear();
        self.qs.clear();
        self.sums.clear();
        for x in x.as_chunks::<B>().0 {
            let (d, qs) = quantize(x);
            self.d.push(d);
            self.qs.extend_from_slice(&qs);
            self.sums.extend(qs.as_chunks::<32>().0.iter().map(|qs| qs.iter().map(|q| i16::from(*q)).sum::<i16>()));
        }
        while B == 32 && !self.d.len().is_multiple_of(4) {
            self.d.push(0.0);
            self.sums.push(0);
            self.qs.extend_from_slice(&[0; 32]);
        }
    }

    /// Fills `turned` for blocks of `width`, 32 or 16.
    fn turn(&mut self, width: usize) {
        let Self { d, qs, turned, .. } = self;
        let turned = &mut turned[usize::from(width == 16)];
        turned.qs.clear();
        turned.minus128.clear();
        turned.d.clear();
        for (i, four) in qs.chunks(4 * width).enumerate() {
            let (mut sums, mut scales) = ([0; 4], [0.0; 4]);
            let start = turned.qs.len();
            turned.qs.resize(start + width / 4, [0; 16]);
            for (j, block) in four.chunks(width).enumerate() {
                for (step, four) in turned.qs[start..].iter_mut().zip(block.as_chunks::<4>().0) {
                    step[4 * j..][..4].copy_from_slice(four);
                }
                sums[j] = -128 * block.iter().map(|q| i32::from(*q)).sum::<i32>();
                scales[j] = d[(4 * i + j) * width / (qs.len() / d.len())];
            }
            turned.minus128.push(sums);
            turned.d.push(scales);
        }
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

/// Weights of 32 or 16 codes that share a scale, where the kernel for many rows asks for them turned.
pub type Turn = Option<usize>;

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
    /// (n) rows in blocks of 32, when prepared.
    pub q8: Vec<Codes>,
    /// (n) rows in blocks of 256, when prepared.
    pub q8k: Vec<Codes>,
    /// What is prepared.
    ready: Vec<(Form, Turn)>,
}

/// Calls a function for each element of a slice, in any order: a pool of threads, or a plain loop.
pub type ForEach<'a> = &'a dyn Fn(&mut [Codes], &(dyn Fn(usize, &mut Codes) + Sync));

impl Acts {
    /// Takes new rows; forgets the forms of the old ones.
    pub fn set(&mut self, x: &[f32], cols: usize) {
        self.x.clear();
        self.x.extend_from_slice(x);
        (self.n, self.cols) = (x.len() / cols, cols);
        self.ready.clear();
    }

    /// (n, cols) for weights of a float type; [`Acts::prepare`] comes first.
    pub fn floats(&self, ty: GgmlType) -> &[f32] {
        if Form::of(ty) == Form::F16 { &self.halves } else { &self.x }
    }

    /// Makes a form, unless it is there.
    pub fn prepare(&mut self, form: Form, turn: Turn) {
        self.prepare_with(form, turn, &|rows, f| rows.iter_mut().enumerate().for_each(|(t, row)| f(t, row)));
    }

    /// The same, row by row as `for_each` goes.
    pub fn prepare_with(&mut self, form: Form, turn: Turn, for_each: ForEach) {
        for step in [(form, None), (form, turn)] {
            if self.ready.contains(&step) {
                continue;
            }
            self.ready.push(step);
            let (x, cols) = (&self.x, self.cols);
            let rows = match form {
                Form::F32 => continue,
                Form::F16 => {
                    self.halves.clear();
                    self.halves.extend(x.iter().map(|x| half_precision(*x)));
                    continue;
                }
                Form::Q8 => &mut self.q8,
                Form::Q8K => &mut self.q8k,
            };
            rows.resize(rows.len().max(self.n), Codes::default());
            for_each(&mut rows[..self.n], &|t, row| match (step, &x[t * cols..][..cols]) {
                ((_, Some(width)), _) => row.turn(width),
                ((Form::Q8K, None), x) => row.fill(x, quantize_q8k),
                ((_, None), x) => row.fill(x, quantize_q8),
            });
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
        acts.prepare(Form::Q8, None);
        acts.prepare(Form::Q8K, None);
        for codes in acts.q8.iter().chain(&acts.q8k) {
            for (block, sum) in codes.qs.chunks(32).zip(&codes.sums) {
                assert_eq!(block.iter().map(|q| i16::from(*q)).sum::<i16>(), *sum);
            }
        }
        assert_eq!((acts.q8.len(), acts.q8[1].d.len()), (2, 8));
        assert_eq!((acts.q8k.len(), acts.q8k[1].d.len(), acts.q8k[1].sums.len()), (2, 1, 8));
    }

    #[test]
    fn turned_codes_are_the_same_codes() {
        // Five blocks of 32: the last four of them are short of three.
        let x: Vec<f32> = (0..320).map(|i| ((i * 31 % 77) as f32 - 30.0) * 0.1).collect();
        for width in [32, 16] {
            let mut acts = Acts::default();
            acts.set(&x, 160);
            acts.prepare(Form::Q8, Some(width));
            for row in &acts.q8 {
                let turned = &row.turned[usize::from(width == 16)];
                assert_eq!((row.d.len(), row.qs.len(), turned.qs.len()), (8, 256, 256 / 16));
                for (i, q) in row.qs.iter().enumerate() {
                    let (block, within) = (i / width, i % width);
                    let step = block / 4 * (width / 4) + within / 4;
                    assert_eq!(turned.qs[step][block % 4 * 4 + within % 4], *q, "{width} {i}");
                    assert_eq!(turned.d[block / 4][block % 4], row.d[i / 32]);
                }
                let sum: i32 = row.qs.iter().map(|q| i32::from(*q)).sum();
                assert_eq!(turned.minus128.iter().flatten().sum::<i32>(), -128 * sum);
                assert_eq!(turned.qs.iter().flatten().map(|q| i32::from(*q)).sum::<i32>(), sum);
            }
        }
    }

    #[test]
    fn zeros_stay_zeros() {
        assert_eq!(quantize_q8(&[0.0; 32]), (0.0, [0; 32]));
        assert_eq!(quantize_q8k(&[0.0; 256]), (0.0, [0; 256]));
    }
}
