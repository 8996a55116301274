//! The meaning of every kernel, in plain loops. They are `inline(always)`: a wider level compiles the same lines for wider
//! registers, or says the same in its own instructions. No float sum is ever contracted or reordered, so all levels give the
//! same bits.
//!
//! Of float rows, lane `i % 16` sums its own products in order. Of quantized rows, the products of codes that share a scale are
//! summed as integers, which is exact in any order; block `i` of 32 adds its sum, times the scales, to strand `i % 4`. A block
//! of 256 has shares of 32 or 16 codes with integer scales: share `i` adds to the integer of strand `i % 4`, and the four are
//! scaled and added once a block. At the end lanes or strands are added as a tree.

use super::Matrix;
use super::acts::Acts;
use crate::format::GgmlType;
use crate::format::block::{self, BlockQ4_0, BlockQ4_1, BlockQ4K, BlockQ5_0, BlockQ5_1, BlockQ5K, BlockQ6K, BlockQ8_0};
use bytemuck::AnyBitPattern;

/// Partial sums of a dot product; their tree of additions is part of its meaning.
pub(super) const LANES: usize = 16;

/// Strands of a row of blocks: block `i` (or a scale's share of a block of 256) adds to strand `i % 4`.
pub(super) const STRANDS: usize = 4;

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
                halves(bytes, &mut scratch[..w.cols]);
                &scratch[..w.cols]
            }
            _ => {
                block::decode(w.ty, bytes, &mut scratch[..w.cols]);
                &scratch[..w.cols]
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
    for (x, out) in acts.q8[from..].iter().zip(out) {
        let (qs, mut strands) = (x.qs.as_chunks::<32>().0, [0.0; STRANDS]);
        for (i, w) in w.iter().enumerate() {
            let (d, m) = w.scales();
            let sum = products(&w.codes(), &qs[i]) as f32 * (d * x.d[i]);
            // Codes of zero count the sum of the activations.
            strands[i % STRANDS] += if B::MIN { sum + f32::from(x.sums[i]) * (m * x.d[i]) } else { sum };
        }
        *out = tree(strands);
    }
}

/// Integer products, summed. On its own, because the compiler puts this loop into registers only as long as it does not see the
/// arrays' makers; the wider levels have instructions for it.
#[inline(never)]
fn products(a: &[i8; 32], b: &[i8; 32]) -> i32 {
    a.iter().zip(b).map(|(a, b)| i32::from(i16::from(*a) * i16::from(*b))).sum()
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
    /// Codes that share a scale, 32 or 16.
    const SHARE: usize;
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
    let mut strands = [[0.0f32; STRANDS]; TILE];
    for (b, w) in w.iter().enumerate() {
        let (codes, scales, d) = (w.codes(), w.scales(), w.d());
        for (t, strands) in strands[..out.len()].iter_mut().enumerate() {
            let x = &acts.q8k[from + t];
            let qs = &x.qs.as_chunks::<256>().0[b];
            let mut sums = [0i32; STRANDS];
            match B::SHARE {
                32 => {
                    let (codes, qs) = (codes.as_chunks::<32>().0, qs.as_chunks::<32>().0);
                    (0..8).for_each(|i| sums[i % STRANDS] += scales[2 * i] * products(&codes[i], &qs[i]));
                }
                _ => {
                    let (codes, qs) = (codes.as_chunks::<16>().0, qs.as_chunks::<16>().0);
                    (0..16).for_each(|i| sums[i % STRANDS] += scales[i] * sixteen(&codes[i], &qs[i]));
                }
            }
            for i in 0..STRANDS {
                strands[i] += sums[i] as f32 * (d * x.d[b]);
            }
            if let Some((mins, dmin)) = w.mins() {
                let sums = &x.sums[8 * b..][..8];
                for i in 0..STRANDS {
                    let sum = mins[2 * i] * i32::from(sums[2 * i]) + mins[2 * i + 1] * i32::from(sums[2 * i + 1]);
                    strands[i] -= sum as f32 * (dmin * x.d[b]);
                }
            }
        }
    }
    for (out, strands) in out.iter_mut().zip(strands) {
        *out = tree(strands);
    }
}

/// As `products`, of half as many.
#[inline(never)]
fn sixteen(a: &[i8; 16], b: &[i8; 16]) -> i32 {
    a.iter().zip(b).map(|(a, b)| i32::from(i16::from(*a) * i16::from(*b))).sum()
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
    const SHARE: usize = 32;
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
    const SHARE: usize = 32;
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
    const SHARE: usize = 16;
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
    use super::super::Kernels;
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

    /// Every level gives the plain loops' bits, for all rows but the first.
    fn levels_agree(w: &Matrix, x: &[f32], what: &str) {
        let mut acts = Acts::default();
        acts.set(x, w.cols);
        acts.prepare(Form::of(w.ty), None);
        let (n, size) = (acts.n, (w.rows - 1) * acts.n);
        let (mut want, mut scratch) = (vec![0.0; size], vec![0.0; Kernels::scratch(w.cols)]);
        rows(w, 1, &acts, &mut want, &mut scratch);
        for level in Kernels::available() {
            let (kernels, mut got) = (Kernels::of(level).unwrap(), vec![0.0; size]);
            acts.prepare(Form::of(w.ty), kernels.turn(w.ty, n));
            kernels.rows(w, 1, &acts, &mut got, &mut scratch);
            assert_eq!(got, want, "{} {level:?} {what}", w.ty);
        }
    }

    /// Largest codes against largest activations: no level's narrower sums run over.
    #[test]
    fn levels_agree_at_the_ends() {
        let cols = 512;
        for ty in TYPES.into_iter().filter(|ty| ty.block_len() > 1) {
            for (fill, sign) in [(0x00, 1.0), (0x7f, 1.0), (0x80, -1.0), (0x80, 1.0), (0xff, 1.0), (0xff, -1.0)] {
                let data: Vec<u8> = (0..9).flat_map(|_| row(ty, cols, &mut || fill)).collect();
                let w = Matrix { ty, rows: 9, cols, data: &data };
                for n in [1, 6] {
                    let x: Vec<f32> = (0..n * cols).map(|i| if i / cols % 2 == 0 { sign } else { -sign }).collect();
                    levels_agree(&w, &x, &format!("{fill:02x} {sign}"));
                }
            }
        }
    }

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
                acts.prepare(Form::of(ty), None);
                let (mut out, mut decoded) = (vec![0.0; 2 * n], vec![0.0; cols]);
                let mut scratch = vec![0.0; Kernels::scratch(cols)];
                rows(&w, 0, &acts, &mut out, &mut scratch);
                for r in 0..2 {
                    block::decode(ty, w.row(r), &mut decoded);
                    for t in 0..n {
                        let seen = |i: usize| match Form::of(ty) {
                            Form::F32 => x[t * cols + i],
                            Form::F16 => f32::from(half::f16::from_f32(x[t * cols + i])),
                            Form::Q8 => acts.q8[t].d[i / 32] * f32::from(acts.q8[t].qs[i]),
                            Form::Q8K => acts.q8k[t].d[i / 256] * f32::from(acts.q8k[t].qs[i]),
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
        fn levels_agree_to_the_bit(seed in any::<u64>(), n in 1usize..15, blocks in 1usize..6, odd in 0usize..40) {
            let mut state = seed | 1;
            let mut byte = || { state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407); (state >> 56) as u8 };
            for ty in TYPES {
                // 13 rows fill no panel; floats leave over a part of their lanes, blocks of 32 a half of theirs.
                let cols = blocks * ty.block_len() + if ty.block_len() == 1 { odd } else { 0 };
                let data: Vec<u8> = (0..14).flat_map(|_| row(ty, cols, &mut byte)).collect();
                let w = Matrix { ty, rows: 14, cols, data: &data };
                let x: Vec<f32> = (0..n * cols).map(|_| (f32::from(byte()) - 127.5) / 50.0).collect();
                levels_agree(&w, &x, "");
            }
        }
    }
}
