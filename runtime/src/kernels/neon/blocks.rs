//! Blocks of 32 codes, four at a time.

use std::arch::aarch64::*;

use half::f16;

use super::{Dot, Multiply, each, eight, floats, load_i16, load_u8, nibbles, quad, signed, tree, two};
use crate::format::block::{BlockQ4_0, BlockQ4_1, BlockQ5_0, BlockQ5_1, BlockQ8_0};
use crate::kernels::acts::Acts;
use crate::kernels::scalar;
use crate::kernels::tiles::fours;

/// Blocks of 32 codes as registers have them.
pub(super) trait Block32: scalar::Block32 {
    /// What [`scalar::Block32::codes`] has as 0.
    const ZERO: i8;
    /// Whether no code is beyond ±31.
    const SMALL: bool;
    /// Codes in order, as they are cheapest.
    fn cheap(&self) -> [int8x16_t; 2];
    /// The scale, and the value of code 0 where there is one.
    fn halves(&self) -> [f16; 2];
}

macro_rules! blocks {
    ($($block:ty, $codes:ident - $zero:literal, $small:literal, $min:ident;)*) => { $(
        impl Block32 for $block {
            const ZERO: i8 = $zero;
            const SMALL: bool = $small;
            #[inline(always)]
            fn cheap(&self) -> [int8x16_t; 2] {
                // SAFETY: only `blocks` and the panels call it, which are compiled for NEON.
                unsafe { $codes(self) }
            }
            #[inline(always)]
            fn halves(&self) -> [f16; 2] {
                [self.d, self.$min]
            }
        }
    )* };
}
blocks! {
    BlockQ8_0, codes_q8_0 - 0, false, d;
    BlockQ4_0, codes_q4_0 - 8, true, d;
    BlockQ4_1, codes_q4_1 - 0, true, m;
    BlockQ5_0, codes_q5_0 - 0, true, d;
    BlockQ5_1, codes_q5_1 - -16, true, m;
}

/// Scales of four blocks, and their values of code 0 where there are some.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn halves_of<B: Block32>([a, b, c, d]: &[B; 4]) -> [float32x4_t; 2] {
    let of = |i: usize| quad([a.halves()[i], b.halves()[i], c.halves()[i], d.halves()[i]]);
    [of(0), of(1)]
}

impl<M: Multiply, B: Block32> Dot<M, B> {
    /// A weight row with `T` rows of activations.
    #[inline]
    #[target_feature(enable = "neon")]
    pub(super) fn blocks<const T: usize>(self, row: &[u8], acts: &Acts, from: usize, out: &mut [f32]) {
        let (whole, last) = fours::<B>(row);
        let mut strands = [vdupq_n_f32(0.0); T];
        // In turn: a choice in the loop would be made again for each address.
        for (part, first) in [(whole, 0), (last.as_slice(), whole.len())] {
            let mut x = [Default::default(); T];
            (0..T).for_each(|t| x[t] = acts.q8[from + t].fours(first..first + part.len()));
            for (i, four) in part.iter().enumerate() {
                let w = [four[0].cheap(), four[1].cheap(), four[2].cheap(), four[3].cheap()];
                let [scales, mins] = halves_of(four);
                each!(t < T, {
                    let (x_sums, x_scales) = (load_i16(&x[t].sums[i]), floats(&x[t].d[i]));
                    let mut sums = self.cpu.blocks(B::SMALL, w, eight(&x[t].qs[i]));
                    if B::ZERO != 0 {
                        // Each code is too large by that.
                        sums = vmlsl_s16(sums, x_sums, vdup_n_s16(B::ZERO.into()));
                    }
                    let mut sums = vmulq_f32(vcvtq_f32_s32(sums), vmulq_f32(scales, x_scales));
                    if B::MIN {
                        let x_sums = vcvtq_f32_s32(vmovl_s16(x_sums));
                        sums = vaddq_f32(sums, vmulq_f32(x_sums, vmulq_f32(mins, x_scales)));
                    }
                    strands[t] = vaddq_f32(strands[t], sums);
                });
            }
        }
        (0..T).for_each(|t| out[t] = tree(strands[t]));
    }
}

#[inline]
#[target_feature(enable = "neon")]
fn codes_q8_0(w: &BlockQ8_0) -> [int8x16_t; 2] {
    two(&w.qs)
}

#[inline]
#[target_feature(enable = "neon")]
fn codes_q4_0(w: &BlockQ4_0) -> [int8x16_t; 2] {
    signed(nibbles(&w.qs))
}

#[inline]
#[target_feature(enable = "neon")]
fn codes_q4_1(w: &BlockQ4_1) -> [int8x16_t; 2] {
    signed(nibbles(&w.qs))
}

#[inline]
#[target_feature(enable = "neon")]
fn codes_q5_0(w: &BlockQ5_0) -> [int8x16_t; 2] {
    fives(w.qh, &w.qs)
}

#[inline]
#[target_feature(enable = "neon")]
fn codes_q5_1(w: &BlockQ5_1) -> [int8x16_t; 2] {
    fives(w.qh, &w.qs)
}

/// Nibbles with the fifth bits of `qh`, less 16: where that bit is not set, the high half of the byte is.
#[inline]
#[target_feature(enable = "neon")]
fn fives(qh: [u8; 4], qs: &[u8; 16]) -> [int8x16_t; 2] {
    const BITS: [u8; 16] = [1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128];
    const BYTES: [u8; 16] = [0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1];
    let (bits, bytes) = (load_u8(&BITS), load_u8(&BYTES));
    let unset = vreinterpretq_u8_u32(vdupq_n_u32(!u32::from_le_bytes(qh)));
    let [low, high] = nibbles(qs);
    let five =
        |nibbles: uint8x16_t, bytes: uint8x16_t| vsliq_n_u8::<4>(nibbles, vtstq_u8(vqtbl1q_u8(unset, bytes), bits));
    signed([five(low, bytes), five(high, vaddq_u8(bytes, vdupq_n_u8(2)))])
}
