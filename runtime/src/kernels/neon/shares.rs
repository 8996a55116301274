//! Blocks of 256 codes, whose shares of 32 or 16 have integer scales: four shares are folded into a register, whose lanes are
//! the plain loops' strands, and scaled there.

use std::arch::aarch64::*;

use super::{Dot, Multiply, eight, load, load_u8, quad, tree};
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
                // SAFETY: only `meet_shares` calls it, which is compiled for NEON.
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
    pub(super) fn meet_shares<const T: usize>(self, row: &[u8], acts: &Acts, from: usize, out: &mut [f32]) {
        let blocks: &[B] = bytemuck::cast_slice(row);
        let x: [&Codes; T] = std::array::from_fn(|t| &acts.q8k[from + t]);
        let mut strands = [vdupq_n_f32(0.0); T];
        for (b, w) in blocks.iter().enumerate() {
            let (scales, mins) = scalar::scales_mins(w.packed());
            let words = |bytes: u64| vreinterpretq_s16_u16(vmovl_u8(vcreate_u8(bytes)));
            let (scales, mins) = (words(scales), words(mins));
            let scales = [vmovl_s16(vget_low_s16(scales)), vmovl_high_s16(scales)];
            let halves = w.halves();
            let mut sums = [vdupq_n_s32(0); T];
            for half in 0..2 {
                let ([a, b2], [c, d]) = (w.quarter(2 * half), w.quarter(2 * half + 1));
                for t in 0..T {
                    let qs = &x[t].qs.as_chunks::<32>().0.as_chunks::<4>().0[2 * b + half];
                    let four = self.cpu.blocks(true, [a, b2, c, d], eight(qs));
                    sums[t] = vmlaq_s32(sums[t], four, scales[half]);
                }
            }
            for t in 0..T {
                let scale = vmulq_n_f32(halves, x[t].d[b]);
                let sum = vmulq_laneq_f32::<0>(vcvtq_f32_s32(sums[t]), scale);
                // Neighbours share a strand.
                let x_sums = load_words(&x[t].sums.as_chunks().0[b]);
                let low = vmull_s16(vget_low_s16(mins), vget_low_s16(x_sums));
                let min = vcvtq_f32_s32(vpaddq_s32(low, vmull_high_s16(mins, x_sums)));
                let min = vmulq_laneq_f32::<1>(min, scale);
                strands[t] = vsubq_f32(vaddq_f32(strands[t], sum), min);
            }
        }
        (0..T).for_each(|t| out[t] = tree(strands[t]));
    }
}

#[inline]
#[target_feature(enable = "neon")]
fn load_words(sums: &[i16; 8]) -> int16x8_t {
    vreinterpretq_s16_s8(load(bytemuck::cast_ref(sums)))
}

/// A quarter's 32 bytes.
#[inline]
#[target_feature(enable = "neon")]
fn nibbles(qs: &[u8; 128], quarter: usize) -> [[uint8x16_t; 2]; 2] {
    let qs = qs.as_chunks::<16>().0;
    let both = [load_u8(&qs[2 * quarter]), load_u8(&qs[2 * quarter + 1])];
    [both.map(|both| vandq_u8(both, vdupq_n_u8(15))), both.map(|both| vshrq_n_u8::<4>(both))]
}

#[inline]
#[target_feature(enable = "neon")]
fn codes_q4_k(w: &BlockQ4K, quarter: usize) -> [[int8x16_t; 2]; 2] {
    nibbles(&w.qs, quarter).map(|two| two.map(|codes| vreinterpretq_s8_u8(codes)))
}

#[inline]
#[target_feature(enable = "neon")]
fn codes_q5_k(w: &BlockQ5K, quarter: usize) -> [[int8x16_t; 2]; 2] {
    let nibbles = nibbles(&w.qs, quarter);
    let high = w.qh.as_chunks::<16>().0;
    let of = |half: usize, i: usize| {
        let set = vtstq_u8(load_u8(&high[i]), vdupq_n_u8(1 << (2 * quarter + half)));
        vreinterpretq_s8_u8(vorrq_u8(nibbles[half][i], vandq_u8(set, vdupq_n_u8(16))))
    };
    [[of(0, 0), of(0, 1)], [of(1, 0), of(1, 1)]]
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
            let scales = load(&w.scales);
            let (low, high) = (vmovl_s8(vget_low_s8(scales)), vmovl_high_s8(scales));
            let scales = [
                vmovl_s16(vget_low_s16(low)),
                vmovl_high_s16(low),
                vmovl_s16(vget_low_s16(high)),
                vmovl_high_s16(high),
            ];
            let mut sums = [vdupq_n_s32(0); T];
            for quarter in 0..4 {
                let codes = codes_q6_k(w, quarter);
                for t in 0..T {
                    let qs = &x[t].qs.as_chunks::<16>().0.as_chunks::<4>().0[4 * b + quarter];
                    let qs = [load(&qs[0]), load(&qs[1]), load(&qs[2]), load(&qs[3])];
                    sums[t] = vmlaq_s32(sums[t], self.cpu.sixteens(codes, qs), scales[quarter]);
                }
            }
            for t in 0..T {
                let sum = vmulq_f32(vcvtq_f32_s32(sums[t]), vmulq_n_f32(d, x[t].d[b]));
                strands[t] = vaddq_f32(strands[t], sum);
            }
        }
        (0..T).for_each(|t| out[t] = tree(strands[t]));
    }
}

/// Signed codes of 64 values.
#[inline]
#[target_feature(enable = "neon")]
fn codes_q6_k(w: &BlockQ6K, quarter: usize) -> [int8x16_t; 4] {
    let (half, second) = (quarter / 2, quarter % 2 == 1);
    let (low, high) = (&w.ql.as_chunks::<16>().0[4 * half..][..4], &w.qh.as_chunks::<16>().0[2 * half..][..2]);
    // The first 64 of a half take the low nibbles and bits 0..4 of `qh`, the second 64 the high nibbles and bits 4..8.
    let of = |i: usize| {
        let (low, high) = (load_u8(&low[i]), load_u8(&high[i % 2]));
        let low = if second { vshrq_n_u8::<4>(low) } else { vandq_u8(low, vdupq_n_u8(15)) };
        let high = match (second, i / 2) {
            (false, 0) => vshlq_n_u8::<4>(high),
            (false, _) => vshlq_n_u8::<2>(high),
            (true, 0) => high,
            (true, _) => vshrq_n_u8::<2>(high),
        };
        let code = vorrq_u8(low, vandq_u8(high, vdupq_n_u8(0x30)));
        vsubq_s8(vreinterpretq_s8_u8(code), vdupq_n_s8(32))
    };
    [of(0), of(1), of(2), of(3)]
}
