//! The meaning of every kernel, in plain loops. They are `inline(always)`: the wider levels compile the same lines for
//! wider registers. No sum is ever contracted or reordered by the compiler, so all levels give the same bits.

use super::Matrix;
use super::acts::{ActQ8, ActQ8K, Acts};
use crate::format::GgmlType;
use crate::format::block::{self, BlockQ4_0, BlockQ4_1, BlockQ4K, BlockQ5_0, BlockQ5_1, BlockQ5K, BlockQ6K, BlockQ8_0, scale_min_k4};
use bytemuck::AnyBitPattern;

/// Partial sums of a float dot product; their tree of additions is part of its meaning.
const LANES: usize = 16;

/// Sum of a[i] * b[i]: lane `i % 16` sums its own elements in order, then the lanes are added as a tree, then the tail.
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
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] += lanes[i + width];
        }
        width /= 2;
    }
    let tail: f32 = a_tail.iter().zip(b_tail).map(|(a, b)| a * b).sum();
    lanes[0] + tail
}

/// See [`super::Kernels::rows`].
#[inline(always)]
pub fn rows(w: &Matrix, first: usize, acts: &Acts, out: &mut [f32], scratch: &mut [f32]) {
    let n = acts.n;
    for (i, out) in out.chunks_mut(n).enumerate() {
        let row = w.row(first + i);
        match w.ty {
            GgmlType::F32 => match bytemuck::try_cast_slice::<u8, f32>(row) {
                Ok(row) => floats(row, acts, out),
                Err(_) => {
                    block::decode(w.ty, row, scratch);
                    floats(scratch, acts, out);
                }
            },
            GgmlType::F16 => {
                halves(row, scratch);
                floats(scratch, acts, out);
            }
            GgmlType::Q8_0 => q8(row, acts, out, dot_q8_0),
            GgmlType::Q4_0 => q8(row, acts, out, dot_q4_0),
            GgmlType::Q4_1 => q8(row, acts, out, dot_q4_1),
            GgmlType::Q5_0 => q8(row, acts, out, dot_q5_0),
            GgmlType::Q5_1 => q8(row, acts, out, dot_q5_1),
            GgmlType::Q4_K => q8k(row, acts, out, dot_q4_k),
            GgmlType::Q5_K => q8k(row, acts, out, dot_q5_k),
            GgmlType::Q6_K => q8k(row, acts, out, dot_q6_k),
            _ => {
                block::decode(w.ty, row, scratch);
                floats(scratch, acts, out);
            }
        }
    }
}

#[inline(always)]
fn floats(row: &[f32], acts: &Acts, out: &mut [f32]) {
    for (out, x) in out.iter_mut().zip(acts.x.chunks(acts.cols)) {
        *out = dot_f32(row, x);
    }
}

/// f16 → f32 without a branch in the usual case; exact.
#[inline(always)]
pub fn half_to_f32(h: u16) -> f32 {
    let (sign, rest) = (u32::from(h & 0x8000) << 16, u32::from(h & 0x7fff));
    // The exponent moves from bias 15 to 127 by a power of two, which also normalizes subnormals.
    let finite = f32::from_bits(rest << 13) * f32::from_bits(0x7780_0000);
    let special = f32::from_bits((rest << 13) | 0x7f80_0000);
    f32::from_bits(if rest >= 0x7c00 { special } else { finite }.to_bits() | sign)
}

#[inline(always)]
fn halves(row: &[u8], out: &mut [f32]) {
    for (b, x) in row.chunks_exact(2).zip(out) {
        *x = half_to_f32(u16::from_le_bytes([b[0], b[1]]));
    }
}

/// A row of weight blocks against every activation row.
#[inline(always)]
fn q8<B: AnyBitPattern>(row: &[u8], acts: &Acts, out: &mut [f32], dot: impl Fn(&B, &ActQ8) -> f32) {
    let w: &[B] = bytemuck::cast_slice(row);
    for (out, x) in out.iter_mut().zip(acts.q8.chunks(w.len())) {
        *out = w.iter().zip(x).map(|(w, x)| dot(w, x)).sum();
    }
}

#[inline(always)]
fn q8k<B: AnyBitPattern>(row: &[u8], acts: &Acts, out: &mut [f32], dot: impl Fn(&B, &ActQ8K) -> f32) {
    let w: &[B] = bytemuck::cast_slice(row);
    for (out, x) in out.iter_mut().zip(acts.q8k.chunks(w.len())) {
        *out = w.iter().zip(x).map(|(w, x)| dot(w, x)).sum();
    }
}

/// Integer dot product of signed bytes.
#[inline(always)]
fn dot_i8<const N: usize>(a: &[i8; N], b: &[i8]) -> i32 {
    let mut sum = 0;
    for i in 0..N {
        sum += i32::from(i16::from(a[i]) * i16::from(b[i]));
    }
    sum
}

#[inline(always)]
fn dot_q8_0(w: &BlockQ8_0, x: &ActQ8) -> f32 {
    dot_i8(&w.qs, &x.qs) as f32 * (half_to_f32(w.d.to_bits()) * x.d)
}

/// Codes of a nibble block: element j low, j + 16 high.
#[inline(always)]
fn nibbles(qs: &[u8; 16]) -> [i8; 32] {
    let mut out = [0; 32];
    for j in 0..16 {
        out[j] = (qs[j] & 15) as i8;
        out[j + 16] = (qs[j] >> 4) as i8;
    }
    out
}

#[inline(always)]
fn dot_q4_0(w: &BlockQ4_0, x: &ActQ8) -> f32 {
    (dot_i8(&nibbles(&w.qs), &x.qs) - 8 * x.sum) as f32 * (half_to_f32(w.d.to_bits()) * x.d)
}

#[inline(always)]
fn dot_q4_1(w: &BlockQ4_1, x: &ActQ8) -> f32 {
    let (d, m) = (half_to_f32(w.d.to_bits()), half_to_f32(w.m.to_bits()));
    (d * dot_i8(&nibbles(&w.qs), &x.qs) as f32 + m * x.sum as f32) * x.d
}

#[inline(always)]
fn fives(qh: [u8; 4], qs: &[u8; 16]) -> [i8; 32] {
    block::codes5(qh, qs).map(|q| q as i8)
}

#[inline(always)]
fn dot_q5_0(w: &BlockQ5_0, x: &ActQ8) -> f32 {
    (dot_i8(&fives(w.qh, &w.qs), &x.qs) - 16 * x.sum) as f32 * (half_to_f32(w.d.to_bits()) * x.d)
}

#[inline(always)]
fn dot_q5_1(w: &BlockQ5_1, x: &ActQ8) -> f32 {
    let (d, m) = (half_to_f32(w.d.to_bits()), half_to_f32(w.m.to_bits()));
    (d * dot_i8(&fives(w.qh, &w.qs), &x.qs) as f32 + m * x.sum as f32) * x.d
}

#[inline(always)]
fn dot_q4_k(w: &BlockQ4K, x: &ActQ8K) -> f32 {
    let (mut sum, mut mins) = (0, 0);
    for pair in 0..4 {
        let qs = &w.qs[pair * 32..][..32];
        let (mut low, mut high) = ([0i8; 32], [0i8; 32]);
        for i in 0..32 {
            low[i] = (qs[i] & 15) as i8;
            high[i] = (qs[i] >> 4) as i8;
        }
        for (g, codes) in [(2 * pair, &low), (2 * pair + 1, &high)] {
            let (scale, min) = scale_min_k4(g, &w.scales);
            sum += i32::from(scale) * dot_i8(codes, &x.qs[g * 32..][..32]);
            mins += i32::from(min) * x.sums[g];
        }
    }
    x.d * (half_to_f32(w.d.to_bits()) * sum as f32 - half_to_f32(w.dmin.to_bits()) * mins as f32)
}

#[inline(always)]
fn dot_q5_k(w: &BlockQ5K, x: &ActQ8K) -> f32 {
    let (mut sum, mut mins) = (0, 0);
    for g in 0..8 {
        let qs = &w.qs[g / 2 * 32..][..32];
        let shift = 4 * (g % 2);
        let mut codes = [0i8; 32];
        for i in 0..32 {
            codes[i] = ((qs[i] >> shift & 15) | (w.qh[i] >> g & 1) << 4) as i8;
        }
        let (scale, min) = scale_min_k4(g, &w.scales);
        sum += i32::from(scale) * dot_i8(&codes, &x.qs[g * 32..][..32]);
        mins += i32::from(min) * x.sums[g];
    }
    x.d * (half_to_f32(w.d.to_bits()) * sum as f32 - half_to_f32(w.dmin.to_bits()) * mins as f32)
}

#[inline(always)]
fn dot_q6_k(w: &BlockQ6K, x: &ActQ8K) -> f32 {
    let mut sum = 0;
    for half in 0..2 {
        let (ql, qh) = (&w.ql[half * 64..][..64], &w.qh[half * 32..][..32]);
        for quarter in 0..4 {
            let mut codes = [0i8; 32];
            let (low, shift) = (&ql[quarter % 2 * 32..][..32], 4 * (quarter / 2));
            for i in 0..32 {
                codes[i] = ((low[i] >> shift & 15) | (qh[i] >> (2 * quarter) & 3) << 4) as i8 - 32;
            }
            let at = half * 128 + quarter * 32;
            for s in 0..2 {
                let mut part = [0i8; 16];
                part.copy_from_slice(&codes[s * 16..][..16]);
                sum += i32::from(w.scales[at / 16 + s]) * dot_i8(&part, &x.qs[at + s * 16..][..16]);
            }
        }
    }
    x.d * half_to_f32(w.d.to_bits()) * sum as f32
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::f16;
    use proptest::prelude::*;

    #[test]
    fn every_half_decodes_exactly() {
        for bits in 0..=u16::MAX {
            let (ours, theirs) = (half_to_f32(bits), f16::from_bits(bits).to_f32());
            assert!(ours.to_bits() == theirs.to_bits() || (ours.is_nan() && theirs.is_nan()), "{bits:04x}: {ours} {theirs}");
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
        GgmlType::F32, GgmlType::F16, GgmlType::BF16, GgmlType::Q8_0, GgmlType::Q4_0, GgmlType::Q4_1, GgmlType::Q5_0,
        GgmlType::Q5_1, GgmlType::Q4_K, GgmlType::Q5_K, GgmlType::Q6_K,
    ];

    proptest! {
        /// Integer kernels against decoded weights times the rounded activations, summed in f64.
        #[test]
        fn kernels_agree_with_decoded_weights(seed in any::<u64>(), blocks in 1usize..4, n in 1usize..4) {
            let mut state = seed | 1;
            let mut byte = || { state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407); (state >> 56) as u8 };
            for ty in TYPES {
                let cols = 256 * blocks;
                let data: Vec<u8> = (0..2).flat_map(|_| row(ty, cols, &mut byte)).collect();
                let w = Matrix { ty, rows: 2, cols, data: &data };
                let x: Vec<f32> = (0..n * cols).map(|_| (f32::from(byte()) - 127.5) / 50.0).collect();
                let mut acts = Acts::default();
                acts.set(&x, cols);
                acts.prepare(super::super::acts::Form::of(ty));
                let (mut out, mut scratch, mut decoded) = (vec![0.0; 2 * n], vec![0.0; cols], vec![0.0; cols]);
                rows(&w, 0, &acts, &mut out, &mut scratch);
                for r in 0..2 {
                    block::decode(ty, w.row(r), &mut decoded);
                    for t in 0..n {
                        let seen = |i: usize| match super::super::acts::Form::of(ty) {
                            super::super::acts::Form::F32 => x[t * cols + i],
                            super::super::acts::Form::Q8 => { let b = &acts.q8[(t * cols + i) / 32]; b.d * f32::from(b.qs[i % 32]) }
                            super::super::acts::Form::Q8K => { let b = &acts.q8k[(t * cols + i) / 256]; b.d * f32::from(b.qs[i % 256]) }
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
        fn levels_agree_to_the_bit(seed in any::<u64>(), n in 1usize..4) {
            let mut state = seed | 1;
            let mut byte = || { state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407); (state >> 56) as u8 };
            for ty in TYPES {
                let cols = 512;
                let data = row(ty, cols, &mut byte);
                let w = Matrix { ty, rows: 1, cols, data: &data };
                let x: Vec<f32> = (0..n * cols).map(|_| (f32::from(byte()) - 127.5) / 50.0).collect();
                let mut acts = Acts::default();
                acts.set(&x, cols);
                acts.prepare(super::super::acts::Form::of(ty));
                let (mut want, mut scratch) = (vec![0.0; n], vec![0.0; cols]);
                rows(&w, 0, &acts, &mut want, &mut scratch);
                for level in super::super::Kernels::available() {
                    let mut got = vec![0.0; n];
                    super::super::Kernels { level }.rows(&w, 0, &acts, &mut got, &mut scratch);
                    prop_assert_eq!(&got, &want, "{} {:?}", ty, level);
                }
            }
        }
    }
}
