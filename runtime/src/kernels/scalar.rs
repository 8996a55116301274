//! The meaning of every kernel, in plain loops. They are `inline(always)`: a wider level compiles the same lines for wider
//! registers, or says the same in its own instructions. No float sum is ever contracted or reordered, so all levels give the
//! same bits.
//!
//! Sums go by lanes. Of float rows, lane `i % 16` sums its own products in order. Of quantized rows, the products of four
//! neighbours are summed as integers, which is exact in any order; lane `i % 64 / 4` sums these, each times the scales of its
//! block. At the end the lanes are added as a tree.

use super::Matrix;
use super::acts::{Acts, GROUP};
use crate::format::GgmlType;
use crate::format::block::{self, BlockQ4_0, BlockQ4_1, BlockQ4K, BlockQ5_0, BlockQ5_1, BlockQ5K, BlockQ6K, BlockQ8_0};
use bytemuck::AnyBitPattern;

/// Partial sums of a dot product; their tree of additions is part of its meaning.
pub(super) const LANES: usize = 16;

/// Activation rows that share one reading of a weight row.
pub(super) const TILE: usize = 4;

/// The lanes' sum: each half onto the other, until one is left.
#[inline(always)]
pub(super) fn tree<const N: usize>(mut lanes: [f32; N]) -> f32 {
    let mut width = N / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] += lanes[i + width];
        }
        width /= 2;
    }
    lanes[0]
}

/// Sum of a[i] * b[i]; what is left over of the lanes comes last.
#[inline(always)]
pub fn dot_f32(a: &[f32], b: &[f32]) -> f32 {
    let (a, a_tail) = a.as_chunks::<LANES>();
    let (b, b_tail) = b.as_chunks::<LANES>();
    let mut lanes = [0.0f32; LANES];
    for (a, b) in a.iter().zip(b) {
        for i in 0..LANES {
            lanes[i] += a[i] * b[i];
        }
    }
    tree(lanes) + tail(a_tail, b_tail)
}

/// Products in order: what 16 lanes leave over.
#[inline(always)]
pub(super) fn tail(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// See [`super::Kernels::rows`].
#[inline(always)]
pub fn rows(w: &Matrix, first: usize, acts: &Acts, out: &mut [f32], scratch: &mut [f32]) {
    match w.ty {
        GgmlType::Q8_0 => tiles(w, first, acts, out, q8::<BlockQ8_0>),
        GgmlType::Q4_0 => tiles(w, first, acts, out, q8::<BlockQ4_0>),
        GgmlType::Q4_1 => tiles(w, first, acts, out, q8::<BlockQ4_1>),
        GgmlType::Q5_0 => tiles(w, first, acts, out, q8::<BlockQ5_0>),
        GgmlType::Q5_1 => tiles(w, first, acts, out, q8::<BlockQ5_1>),
        GgmlType::Q4_K => tiles(w, first, acts, out, q8k::<BlockQ4K>),
        GgmlType::Q5_K => tiles(w, first, acts, out, q8k::<BlockQ5K>),
        GgmlType::Q6_K => tiles(w, first, acts, out, q8k::<BlockQ6K>),
        _ => float_rows(w, first, acts, out, scratch, |row, x, out| *out = dot_f32(row, x)),
    }
}

/// Calls `dot(row, acts, from, out)` for every weight row and every tile of activation rows `from..from + out.len()`. Tiles
/// go by outside, so that their codes stay near while the weight rows pass.
#[inline(always)]
pub(super) fn tiles(
    w: &Matrix,
    first: usize,
    acts: &Acts,
    out: &mut [f32],
    dot: impl Fn(&[u8], &Acts, usize, &mut [f32]),
) {
    let n = acts.n;
    for from in (0..n).step_by(TILE) {
        let to = (from + TILE).min(n);
        for (i, out) in out.chunks_mut(n).enumerate() {
            dot(w.row(first + i), acts, from, &mut out[from..to]);
        }
    }
}

/// Calls `dot(row, x, out)` for every weight row as floats and every activation row.
#[inline(always)]
pub(super) fn float_rows(
    w: &Matrix,
    first: usize,
    acts: &Acts,
    out: &mut [f32],
    scratch: &mut [f32],
    dot: impl Fn(&[f32], &[f32], &mut f32),
) {
    for (i, out) in out.chunks_mut(acts.n).enumerate() {
        let bytes = w.row(first + i);
        let row = match (w.ty, bytemuck::try_cast_slice::<u8, f32>(bytes)) {
            (GgmlType::F32, Ok(row)) => row,
            (GgmlType::F16, _) => {
                halves(bytes, scratch);
                &*scratch
            }
            _ => {
                block::decode(w.ty, bytes, scratch);
                &*scratch
            }
        };
        out.iter_mut().zip(acts.floats(w.ty).chunks(acts.cols)).for_each(|(out, x)| dot(row, x, out));
    }
}

/// f16 → f32 without a branch in the usual case; exact.
#[inline(always)]
pub fn half_to_f32(h: u16) -> f32 {
    let (sign, rest) = (u32::from(h & 0x8000) << 16, u32::from(h & 0x7fff));
    // Subnormal halves are whole multiples of 2^-24; as subnormal floats on the way they would stall most CPUs.
    let subnormal = (rest as i32 as f32 * f32::from_bits(0x3380_0000)).to_bits();
    let normal = (rest << 13) + (112 << 23); // the exponent moves from bias 15 to 127
    let special = (rest << 13) | 0x7f80_0000;
    let magnitude = if rest < 0x400 { subnormal } else { normal };
    f32::from_bits(if rest >= 0x7c00 { special } else { magnitude } | sign)
}

#[inline(always)]
pub(super) fn halves(row: &[u8], out: &mut [f32]) {
    for (b, x) in row.chunks_exact(2).zip(out) {
        *x = half_to_f32(u16::from_le_bytes([b[0], b[1]]));
    }
}

/// A block of 32 weights: codes, their scale, and the value of code 0.
pub(super) trait Block32: AnyBitPattern {
    /// Whether [`Block32::scales`] has a second number.
    const MIN: bool;
    /// The codes, in -128..=127, in order.
    fn codes(&self) -> [i8; 32];
    /// `x = scales().0 * code + scales().1`.
    fn scales(&self) -> (f32, f32);
}

/// A weight row against a tile of activation rows in blocks of 32.
#[inline(always)]
pub(super) fn q8<B: Block32>(row: &[u8], acts: &Acts, from: usize, out: &mut [f32]) {
    let w: &[B] = bytemuck::cast_slice(row);
    let mut lanes = [[0.0f32; LANES]; TILE];
    for (i, pair) in w.chunks(2).enumerate() {
        q8_pair(i, pair, acts, from, &mut lanes[..out.len()]);
    }
    for (out, lanes) in out.iter_mut().zip(&lanes) {
        *out = tree(*lanes);
    }
}

/// Adds blocks `2 * i` and the next, where there is one, to the lanes of a tile.
#[inline(always)]
pub(super) fn q8_pair<B: Block32>(i: usize, w: &[B], acts: &Acts, from: usize, lanes: &mut [[f32; LANES]]) {
    let (mut codes, mut scales) = ([0i8; 64], [(0.0, 0.0); 2]);
    for (b, w) in w.iter().enumerate() {
        codes[b * 32..][..32].copy_from_slice(&w.codes());
        scales[b] = w.scales();
    }
    for (t, lanes) in lanes.iter_mut().enumerate() {
        let at = (from + t) * acts.cols + i * 64;
        let (mut sums, mut alone) = ([0i32; LANES], [0i8; 64]);
        let qs = &acts.q8.qs[at..][..32 * w.len()];
        fours(
            &codes,
            qs.try_into().unwrap_or_else(|_| {
                alone[..qs.len()].copy_from_slice(qs);
                &alone
            }),
            &mut sums,
        );
        for b in 0..w.len() {
            let (x, (d, m)) = (acts.q8.d[at / 32 + b], scales[b]);
            let minus128 = &acts.q8.minus128[at / GROUP + b * 8..][..8];
            for g in 0..8 {
                let sum = sums[b * 8 + g] as f32 * (d * x);
                // Codes of zero count the sum of the activations.
                lanes[b * 8 + g] += if B::MIN { sum + -(minus128[g] >> 7) as f32 * (m * x) } else { sum };
            }
        }
    }
}

/// Integer products of four neighbours, summed. On its own, because the compiler puts these loops into registers only as long
/// as it does not see the arrays' makers; the wider levels have instructions for it.
#[inline(never)]
fn fours(a: &[i8; 64], b: &[i8; 64], out: &mut [i32; LANES]) {
    let mut products = [0i16; 64];
    for i in 0..64 {
        products[i] = i16::from(a[i]) * i16::from(b[i]);
    }
    for (out, four) in out.iter_mut().zip(products.as_chunks::<GROUP>().0) {
        *out = i32::from(four[0]) + i32::from(four[1]) + i32::from(four[2]) + i32::from(four[3]);
    }
}

impl Block32 for BlockQ8_0 {
    const MIN: bool = false;
    #[inline(always)]
    fn codes(&self) -> [i8; 32] {
        self.qs
    }
    #[inline(always)]
    fn scales(&self) -> (f32, f32) {
        (half_to_f32(self.d.to_bits()), 0.0)
    }
}

/// Codes of a nibble block, less `zero`: element j low, j + 16 high.
#[inline(always)]
fn nibbles(qs: &[u8; 16], zero: i8) -> [i8; 32] {
    let mut out = [0; 32];
    for j in 0..16 {
        out[j] = (qs[j] & 15) as i8 - zero;
        out[j + 16] = (qs[j] >> 4) as i8 - zero;
    }
    out
}

impl Block32 for BlockQ4_0 {
    const MIN: bool = false;
    #[inline(always)]
    fn codes(&self) -> [i8; 32] {
        nibbles(&self.qs, 8)
    }
    #[inline(always)]
    fn scales(&self) -> (f32, f32) {
        (half_to_f32(self.d.to_bits()), 0.0)
    }
}

impl Block32 for BlockQ4_1 {
    const MIN: bool = true;
    #[inline(always)]
    fn codes(&self) -> [i8; 32] {
        nibbles(&self.qs, 0)
    }
    #[inline(always)]
    fn scales(&self) -> (f32, f32) {
        (half_to_f32(self.d.to_bits()), half_to_f32(self.m.to_bits()))
    }
}

/// Codes of a five-bit block, less `zero`; bit i of `qh` is the fifth of element i.
#[inline(always)]
fn fives(qh: [u8; 4], qs: &[u8; 16], zero: i8) -> [i8; 32] {
    let high = u32::from_le_bytes(qh);
    let mut out = nibbles(qs, zero);
    for i in 0..32 {
        out[i] += ((high >> i & 1) << 4) as i8;
    }
    out
}

impl Block32 for BlockQ5_0 {
    const MIN: bool = false;
    #[inline(always)]
    fn codes(&self) -> [i8; 32] {
        fives(self.qh, &self.qs, 16)
    }
    #[inline(always)]
    fn scales(&self) -> (f32, f32) {
        (half_to_f32(self.d.to_bits()), 0.0)
    }
}

impl Block32 for BlockQ5_1 {
    const MIN: bool = true;
    #[inline(always)]
    fn codes(&self) -> [i8; 32] {
        fives(self.qh, &self.qs, 0)
    }
    #[inline(always)]
    fn scales(&self) -> (f32, f32) {
        (half_to_f32(self.d.to_bits()), half_to_f32(self.m.to_bits()))
    }
}

/// A block of 256 weights with integer scales under a float one.
pub(super) trait Block256: AnyBitPattern {
    /// The codes, in order.
    fn codes(&self) -> [i8; 256];
    /// Scale of each 16 codes.
    fn scales(&self) -> [i32; 16];
    /// Scale of the scales.
    fn d(&self) -> f32;
    /// What is taken away from each 32 values, and the scale of that; `None` where codes are signed.
    fn mins(&self) -> Option<([i32; 8], f32)>;
}

/// A weight row against a tile of activation rows in blocks of 256.
#[inline(always)]
pub(super) fn q8k<B: Block256>(row: &[u8], acts: &Acts, from: usize, out: &mut [f32]) {
    let w: &[B] = bytemuck::cast_slice(row);
    let mut lanes = [[0.0f32; LANES]; TILE];
    let mut min_lanes = [[0.0f32; 4]; TILE];
    for (b, w) in w.iter().enumerate() {
        let (codes, scales, d) = (w.codes(), w.scales(), w.d());
        for t in 0..out.len() {
            let at = (from + t) * acts.cols + b * 256;
            let (qs, x) = (&acts.q8k.qs[at..][..256], acts.q8k.d[at / 256]);
            let (mut part, mut sums) = ([0i32; LANES], [0i32; LANES]);
            for (quarter, (codes, qs)) in codes.as_chunks::<64>().0.iter().zip(qs.as_chunks::<64>().0).enumerate() {
                fours(codes, qs, &mut part);
                for lane in 0..LANES {
                    sums[lane] += part[lane] * scales[quarter * 4 + lane / 4];
                }
            }
            for lane in 0..LANES {
                lanes[t][lane] += sums[lane] as f32 * (d * x);
            }
            if let Some((mins, dmin)) = w.mins() {
                let sums = &acts.q8k.sums[at / 32..][..8];
                for i in 0..4 {
                    let sum = mins[2 * i] * i32::from(sums[2 * i]) + mins[2 * i + 1] * i32::from(sums[2 * i + 1]);
                    min_lanes[t][i] += sum as f32 * (dmin * x);
                }
            }
        }
    }
    for (out, (lanes, min_lanes)) in out.iter_mut().zip(lanes.into_iter().zip(min_lanes)) {
        *out = tree(lanes) - tree(min_lanes);
    }
}

/// Scales and mins of Q4_K and Q5_K, six bits each in twelve bytes: eight bytes of each, the first one lowest.
#[inline(always)]
pub(super) fn scales_mins(packed: &[u8; 12]) -> (u64, u64) {
    let word = |i: usize| u32::from_le_bytes([packed[i], packed[i + 1], packed[i + 2], packed[i + 3]]);
    let (a, b, c) = (word(0), word(4), word(8));
    let (six, four, two) = (0x3f3f_3f3f, 0x0f0f_0f0f, 0x0303_0303);
    let join = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
    (join(a & six, (c & four) | (a >> 6 & two) << 4), join(b & six, (c >> 4 & four) | (b >> 6 & two) << 4))
}

/// Eight bytes, the lowest first.
#[inline(always)]
fn bytes(packed: u64) -> [i32; 8] {
    let mut out = [0; 8];
    for i in 0..8 {
        out[i] = (packed >> (8 * i) & 255) as i32;
    }
    out
}

/// Each of eight scales for two sixteens.
#[inline(always)]
fn twice(scales: u64) -> [i32; 16] {
    let bytes = scales.to_le_bytes();
    let mut out = [0; 16];
    for i in 0..16 {
        out[i] = i32::from(bytes[i / 2]);
    }
    out
}

impl Block256 for BlockQ4K {
    #[inline(always)]
    fn codes(&self) -> [i8; 256] {
        let mut out = [0; 256];
        for (out, qs) in out.as_chunks_mut::<64>().0.iter_mut().zip(self.qs.as_chunks::<32>().0) {
            let (low, high) = out.split_at_mut(32);
            for i in 0..32 {
                low[i] = (qs[i] & 15) as i8;
            }
            for i in 0..32 {
                high[i] = (qs[i] >> 4) as i8;
            }
        }
        out
    }
    #[inline(always)]
    fn scales(&self) -> [i32; 16] {
        twice(scales_mins(&self.scales).0)
    }
    #[inline(always)]
    fn d(&self) -> f32 {
        half_to_f32(self.d.to_bits())
    }
    #[inline(always)]
    fn mins(&self) -> Option<([i32; 8], f32)> {
        Some((bytes(scales_mins(&self.scales).1), half_to_f32(self.dmin.to_bits())))
    }
}

impl Block256 for BlockQ5K {
    #[inline(always)]
    fn codes(&self) -> [i8; 256] {
        let mut out = [0; 256];
        for (p, (out, qs)) in out.as_chunks_mut::<64>().0.iter_mut().zip(self.qs.as_chunks::<32>().0).enumerate() {
            for i in 0..32 {
                out[i] = ((qs[i] & 15) | (self.qh[i] >> (2 * p) & 1) << 4) as i8;
                out[i + 32] = ((qs[i] >> 4) | (self.qh[i] >> (2 * p + 1) & 1) << 4) as i8;
            }
        }
        out
    }
    #[inline(always)]
    fn scales(&self) -> [i32; 16] {
        twice(scales_mins(&self.scales).0)
    }
    #[inline(always)]
    fn d(&self) -> f32 {
        half_to_f32(self.d.to_bits())
    }
    #[inline(always)]
    fn mins(&self) -> Option<([i32; 8], f32)> {
        Some((bytes(scales_mins(&self.scales).1), half_to_f32(self.dmin.to_bits())))
    }
}

impl Block256 for BlockQ6K {
    #[inline(always)]
    fn codes(&self) -> [i8; 256] {
        let mut out = [0; 256];
        for (half, out) in out.as_chunks_mut::<128>().0.iter_mut().enumerate() {
            let (ql, qh) = (&self.ql[half * 64..][..64], &self.qh[half * 32..][..32]);
            for i in 0..32 {
                let code = |low: u8, high: u8| ((low & 15) | (high & 3) << 4) as i8 - 32;
                out[i] = code(ql[i], qh[i]);
                out[i + 32] = code(ql[i + 32], qh[i] >> 2);
                out[i + 64] = code(ql[i] >> 4, qh[i] >> 4);
                out[i + 96] = code(ql[i + 32] >> 4, qh[i] >> 6);
            }
        }
        out
    }
    #[inline(always)]
    fn scales(&self) -> [i32; 16] {
        let mut out = [0; 16];
        for i in 0..16 {
            out[i] = i32::from(self.scales[i]);
        }
        out
    }
    #[inline(always)]
    fn d(&self) -> f32 {
        half_to_f32(self.d.to_bits())
    }
    #[inline(always)]
    fn mins(&self) -> Option<([i32; 8], f32)> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::super::acts::Form;
    use super::*;
    use half::f16;
    use proptest::prelude::*;

    #[test]
    fn every_half_decodes_exactly() {
        for bits in 0..=u16::MAX {
            let (ours, theirs) = (half_to_f32(bits), f16::from_bits(bits).to_f32());
            assert!(
                ours.to_bits() == theirs.to_bits() || (ours.is_nan() && theirs.is_nan()),
                "{bits:04x}: {ours} {theirs}"
            );
        }
    }

    /// A row of valid blocks: random codes, scales that stay finite.
    fn row(ty: GgmlType, cols: usize, seed: &mut impl FnMut() -> u8) -> Vec<u8> {
        let mut bytes: Vec<u8> = (0..ty.row_bytes(cols).unwrap()).map(|_| seed()).collect();
        let size = ty.block_bytes();
        let scales: &[usize] = match ty {
            GgmlType::Q8_0 | GgmlType::Q4_0 | GgmlType::Q5_0 => &[0],
            GgmlType::Q4_1 | GgmlType::Q5_1 | GgmlType::Q4_K | GgmlType::Q5_K => &[0, 2],
            GgmlType::Q6_K => &[208],
            _ => &[],
        };
        for block in bytes.chunks_mut(size) {
            for at in scales {
                let value = f16::from_f32(0.001 + f32::from(block[*at]) / 4096.0);
                block[*at..at + 2].copy_from_slice(&value.to_le_bytes());
            }
        }
        if ty == GgmlType::F16 {
            bytes.chunks_mut(2).for_each(|b| b[1] &= 0xbb); // no infinities
        }
        if ty == GgmlType::F32 || ty == GgmlType::BF16 {
            let size = ty.block_bytes();
            bytes.chunks_mut(size).for_each(|b| b[size - 1] = 0x3e | (b[size - 1] & 0x80));
        }
        bytes
    }

    const TYPES: [GgmlType; 11] = [
        GgmlType::F32,
        GgmlType::F16,
        GgmlType::BF16,
        GgmlType::Q8_0,
        GgmlType::Q4_0,
        GgmlType::Q4_1,
        GgmlType::Q5_0,
        GgmlType::Q5_1,
        GgmlType::Q4_K,
        GgmlType::Q5_K,
        GgmlType::Q6_K,
    ];

    proptest! {
        /// Integer kernels against decoded weights times the rounded activations, summed in f64.
        #[test]
        fn kernels_agree_with_decoded_weights(seed in any::<u64>(), blocks in 1usize..4, n in 1usize..6) {
            let mut state = seed | 1;
            let mut byte = || { state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407); (state >> 56) as u8 };
            for ty in TYPES {
                let cols = 256 * blocks;
                let data: Vec<u8> = (0..2).flat_map(|_| row(ty, cols, &mut byte)).collect();
                let w = Matrix { ty, rows: 2, cols, data: &data };
                let x: Vec<f32> = (0..n * cols).map(|_| (f32::from(byte()) - 127.5) / 50.0).collect();
                let mut acts = Acts::default();
                acts.set(&x, cols);
                acts.prepare(Form::of(ty));
                let (mut out, mut scratch, mut decoded) = (vec![0.0; 2 * n], vec![0.0; cols], vec![0.0; cols]);
                rows(&w, 0, &acts, &mut out, &mut scratch);
                for r in 0..2 {
                    block::decode(ty, w.row(r), &mut decoded);
                    for t in 0..n {
                        let seen = |i: usize| match Form::of(ty) {
                            Form::F32 => x[t * cols + i],
                            Form::F16 => f32::from(half::f16::from_f32(x[t * cols + i])),
                            Form::Q8 => acts.q8.d[(t * cols + i) / 32] * f32::from(acts.q8.qs[t * cols + i]),
                            Form::Q8K => acts.q8k.d[(t * cols + i) / 256] * f32::from(acts.q8k.qs[t * cols + i]),
                        };
                        let products: Vec<f64> = (0..cols).map(|i| f64::from(decoded[i]) * f64::from(seen(i))).collect();
                        let (want, size): (f64, f64) = (products.iter().sum(), products.iter().map(|p| p.abs()).sum());
                        // One rounding a product, a partial sum and a block's scale: cols + 8 of them at most, and the mins
                        // are subtracted from sums twice as large.
                        let bound = (cols + 8) as f64 * f64::from(f32::EPSILON) * 4.0 * size + 1e-6;
                        prop_assert!((f64::from(out[r * n + t]) - want).abs() <= bound, "{} {} {}", ty, out[r * n + t], want);
                    }
                }
            }
        }

        /// Every level gives the same bits.
        #[test]
        fn levels_agree_to_the_bit(seed in any::<u64>(), n in 1usize..7, blocks in 1usize..6, odd in 0usize..40) {
            let mut state = seed | 1;
            let mut byte = || { state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407); (state >> 56) as u8 };
            for ty in TYPES {
                // Floats leave over a part of their lanes, blocks of 32 a half of theirs.
                let cols = blocks * ty.block_len() + if ty.block_len() == 1 { odd } else { 0 };
                let data: Vec<u8> = (0..3).flat_map(|_| row(ty, cols, &mut byte)).collect();
                let w = Matrix { ty, rows: 3, cols, data: &data };
                let x: Vec<f32> = (0..n * cols).map(|_| (f32::from(byte()) - 127.5) / 50.0).collect();
                let mut acts = Acts::default();
                acts.set(&x, cols);
                acts.prepare(Form::of(ty));
                let (mut want, mut scratch) = (vec![0.0; 2 * n], vec![0.0; cols]);
                rows(&w, 1, &acts, &mut want, &mut scratch);
                for level in super::super::Kernels::available() {
                    let mut got = vec![0.0; 2 * n];
                    super::super::Kernels { level }.rows(&w, 1, &acts, &mut got, &mut scratch);
                    prop_assert_eq!(&got, &want, "{} {:?}", ty, level);
                }
            }
        }
    }
}
