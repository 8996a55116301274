//! Blocks of 256 codes, whose shares of 32 or 16 have integer scales: four shares are folded into a register, whose lanes are
//! the plain loops' strands, and scaled there.

use std::arch::aarch64::*;

use super::{Dot, Multiply, each, eight, load, load_u8, nibbles, quad, signed, tree};
use crate::format::block::{BlockQ4K, BlockQ5K, BlockQ6K};
use crate::kernels::acts::{Acts, Codes};
use crate::kernels::scalar;

/// Blocks of unsigned codes with scales and mins of each 32.
pub(super) trait Block256: scalar::Block256 {
    /// The 64 codes of a quarter.
    fn quarter(&self, quarter: usize) -> [[int8x16_t; 2]; 2];
    /// Packed scales and mins.
    fn packed(&self) -> &[u8; 12];
    /// What scales and mins are scaled by.
    fn halves(&self) -> float32x4_t;
}

macro_rules! quarters {
    ($($block:ty, $codes:ident;)*) => { $(
        impl Block256 for $block {
            #[inline(always)]
            fn quarter(&self, quarter: usize) -> [[int8x16_t; 2]; 2] {
                // SAFETY: only `shares` and the panels call it, which are compiled for NEON.
                unsafe { $codes(self, quarter) }
            }
            #[inline(always)]
            fn packed(&self) -> &[u8; 12] {
                &self.scales
            }
            #[inline(always)]
            fn halves(&self) -> float32x4_t {
                // SAFETY: as above.
                unsafe { quad([self.d, self.dmin, self.d, self.dmin]) }
            }
        }
    )* };
}
quarters! {
    BlockQ4K, codes_q4_k;
    BlockQ5K, codes_q5_k;
}

impl<M: Multiply, B: Block256> Dot<M, B> {
    /// A weight row with `T` rows of activations.
    #[inline]
    #[target_feature(enable = "neon")]
    pub(super) fn shares<const T: usize>(self, row: &[u8], acts: &Acts, from: usize, out: &mut [f32]) {
        let blocks: &[B] = bytemuck::cast_slice(row);
        let x: [&Codes; T] = std::array::from_fn(|t| &acts.q8k[from + t]);
        let mut strands = [vdupq_n_f32(0.0); T];
        for (b, w) in blocks.iter().enumerate() {
            let (scales, mins, halves) = (scales_of(w), mins_of(w), w.halves());
            let mut sums = [vdupq_n_s32(0); T];
            for half in 0..2 {
                let ([a, b2], [c, d]) = (w.quarter(2 * half), w.quarter(2 * half + 1));
                each!(t < T, {
                    let qs = &x[t].qs.as_chunks::<32>().0.as_chunks::<4>().0[2 * b + half];
                    let four = self.cpu.blocks(true, [a, b2, c, d], eight(qs));
                    sums[t] = vmlaq_s32(sums[t], four, scales[half]);
                });
            }
            for t in 0..T {
                let scale = vmulq_n_f32(halves, x[t].d[b]);
                let sum = vmulq_laneq_f32::<0>(vcvtq_f32_s32(sums[t]), scale);
                let min = vmulq_laneq_f32::<1>(vcvtq_f32_s32(neighbours(mins, &x[t].sums.as_chunks().0[b])), scale);
                strands[t] = vsubq_f32(vaddq_f32(strands[t], sum), min);
            }
        }
        (0..T).for_each(|t| out[t] = tree(strands[t]));
    }
}

/// Scales of each four shares.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn scales_of<B: Block256>(w: &B) -> [int32x4_t; 2] {
    let words = words_of(scalar::scales_mins(w.packed()).0);
    [vmovl_s16(vget_low_s16(words)), vmovl_high_s16(words)]
}

/// Mins of the eight shares.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn mins_of<B: Block256>(w: &B) -> int16x8_t {
    words_of(scalar::scales_mins(w.packed()).1)
}

/// Eight bytes as words of 16 bits.
#[inline]
#[target_feature(enable = "neon")]
fn words_of(bytes: u64) -> int16x8_t {
    vreinterpretq_s16_u16(vmovl_u8(vcreate_u8(bytes)))
}

/// Mins times the sums of activations: those of two neighbours are of one strand.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn neighbours(mins: int16x8_t, x_sums: &[i16; 8]) -> int32x4_t {
    let x_sums = vreinterpretq_s16_s8(load(x_sums));
    vpaddq_s32(vmull_s16(vget_low_s16(mins), vget_low_s16(x_sums)), vmull_high_s16(mins, x_sums))
}

#[inline]
#[target_feature(enable = "neon")]
fn codes_q4_k(w: &BlockQ4K, quarter: usize) -> [[int8x16_t; 2]; 2] {
    let qs = &w.qs.as_chunks::<16>().0.as_chunks::<2>().0[quarter];
    let ([low, high], [low2, high2]) = (nibbles(&qs[0]), nibbles(&qs[1]));
    [signed([low, low2]), signed([high, high2])]
}

#[inline]
#[target_feature(enable = "neon")]
fn codes_q5_k(w: &BlockQ5K, quarter: usize) -> [[int8x16_t; 2]; 2] {
    let qs = &w.qs.as_chunks::<16>().0.as_chunks::<2>().0[quarter];
    let fives = w.qh.as_chunks::<16>().0;
    // The bit goes to place 4, to the left or to the right, and from there into the code.
    let with_fifth = |nibbles: uint8x16_t, i: usize, bit: usize| {
        vbslq_u8(vdupq_n_u8(16), vshlq_u8(load_u8(&fives[i]), vdupq_n_s8(4 - bit as i8)), nibbles)
    };
    let ([low, high], [low2, high2]) = (nibbles(&qs[0]), nibbles(&qs[1]));
    let (bit, next) = (2 * quarter, 2 * quarter + 1);
    [
        signed([with_fifth(low, 0, bit), with_fifth(low2, 1, bit)]),
        signed([with_fifth(high, 0, next), with_fifth(high2, 1, next)]),
    ]
}

impl<M: Multiply> Dot<M, BlockQ6K> {
    /// A weight row with `T` rows of activations.
    #[inline]
    #[target_feature(enable = "neon")]
    pub(super) fn sixteens<const T: usize>(self, row: &[u8], acts: &Acts, from: usize, out: &mut [f32]) {
        let blocks: &[BlockQ6K] = bytemuck::cast_slice(row);
        let x: [&Codes; T] = std::array::from_fn(|t| &acts.q8k[from + t]);
        let mut strands = [vdupq_n_f32(0.0); T];
        for (b, w) in blocks.iter().enumerate() {
            let d = quad([w.d; 4]);
            let scales = scales_q6_k(w);
            let mut sums = [vdupq_n_s32(0); T];
            for half in 0..2 {
                let codes = codes_q6_k(w, half);
                each!(t < T, {
                    let qs: &[[[i8; 16]; 4]; 2] =
                        &x[t].qs.as_chunks::<16>().0.as_chunks::<4>().0.as_chunks().0[2 * b + half];
                    for i in 0..2 {
                        let qs = [load(&qs[i][0]), load(&qs[i][1]), load(&qs[i][2]), load(&qs[i][3])];
                        sums[t] = vmlaq_s32(sums[t], self.cpu.sixteens(codes[i], qs), scales[2 * half + i]);
                    }
                });
            }
            for t in 0..T {
                let sum = vmulq_f32(vcvtq_f32_s32(sums[t]), vmulq_n_f32(d, x[t].d[b]));
                strands[t] = vaddq_f32(strands[t], sum);
            }
        }
        (0..T).for_each(|t| out[t] = tree(strands[t]));
    }
}

/// Scales of each four shares.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn scales_q6_k(w: &BlockQ6K) -> [int32x4_t; 4] {
    let bytes = load(&w.scales);
    let (low, high) = (vmovl_s8(vget_low_s8(bytes)), vmovl_high_s8(bytes));
    [vmovl_s16(vget_low_s16(low)), vmovl_high_s16(low), vmovl_s16(vget_low_s16(high)), vmovl_high_s16(high)]
}

/// Signed codes of twice 64 values.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn codes_q6_k(w: &BlockQ6K, half: usize) -> [[int8x16_t; 4]; 2] {
    let qh = &w.qh.as_chunks::<16>().0.as_chunks::<2>().0[half];
    let [a, b, c, d] = &w.ql.as_chunks::<16>().0.as_chunks::<4>().0[half];
    let high = [load_u8(&qh[0]), load_u8(&qh[1])];
    let join = |low: uint8x16_t, high: uint8x16_t| {
        let code = vbslq_u8(vdupq_n_u8(0x30), high, low);
        vsubq_s8(vreinterpretq_s8_u8(code), vdupq_n_s8(32))
    };
    // The first 64 take the low nibbles and bits 0..4 of `qh`, the second 64 the high nibbles and bits 4..8.
    let ([a, a2], [b, b2], [c, c2], [d, d2]) = (nibbles(a), nibbles(b), nibbles(c), nibbles(d));
    let bits = |i: usize| (vshlq_n_u8::<4>(high[i]), vshlq_n_u8::<2>(high[i]), high[i], vshrq_n_u8::<2>(high[i]));
    let ((e, f, e2, f2), (g, h, g2, h2)) = (bits(0), bits(1));
    [[join(a, e), join(b, g), join(c, f), join(d, h)], [join(a2, e2), join(b2, g2), join(c2, f2), join(d2, h2)]]
}
