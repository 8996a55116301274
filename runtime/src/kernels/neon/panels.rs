//! Many rows of activations at once, where the CPU has `sdot`. Four weight rows are unpacked into a panel: a register holds four
//! neighbouring codes of four blocks of one row, and meets the same step of four blocks of an activation row
//! ([`super::super::acts::Turned`]). Its lanes are then the four strands that the plain loops have, so the bits are theirs, and
//! nothing is folded. What unpacking costs is shared by the activation rows.

use std::arch::aarch64::*;

use bytemuck::{Pod, Zeroable};

use super::blocks::{Block32, halves_of};
use super::shares::{Block256, codes_q6_k, mins_of, neighbours, scales_of, scales_q6_k};
use super::{DotProd, floats, load, load_i16, put, store, tree};
use crate::format::GgmlType;
use crate::format::block::{BlockQ4_0, BlockQ4_1, BlockQ4K, BlockQ5_0, BlockQ5_1, BlockQ5K, BlockQ6K, BlockQ8_0};
use crate::kernels::Matrix;
use crate::kernels::acts::{Acts, Codes, Turn};
use crate::kernels::scalar;
use crate::kernels::tiles::{fours, panels};

/// Weight rows of a panel.
const ROWS: usize = 4;
/// Rows of activations that are worth a panel.
const MANY: usize = 2;

/// A step of four blocks of each row.
type Step = [[i8; 16]; ROWS];

/// How activations must be turned for panels, where they are used.
pub(super) fn turn(ty: GgmlType, n: usize) -> Turn {
    match ty {
        _ if n < MANY => None,
        GgmlType::Q6_K => Some(16),
        GgmlType::Q8_0 | GgmlType::Q4_0 | GgmlType::Q4_1 | GgmlType::Q5_0 | GgmlType::Q5_1 => Some(32),
        GgmlType::Q4_K | GgmlType::Q5_K => Some(32),
        _ => None,
    }
}

/// Rows `first..` of `w` times all rows of activations, `out[r][t]`.
#[target_feature(enable = "neon")]
pub(super) fn rows(cpu: DotProd, w: &Matrix, first: usize, acts: &Acts, out: &mut [f32], scratch: &mut [f32]) {
    for (i, out) in out.chunks_mut(ROWS * acts.n).enumerate() {
        let row = first + i * ROWS;
        match w.ty {
            GgmlType::Q8_0 => blocks::<BlockQ8_0>(cpu, w, row, acts, out, scratch),
            GgmlType::Q4_0 => blocks::<BlockQ4_0>(cpu, w, row, acts, out, scratch),
            GgmlType::Q4_1 => blocks::<BlockQ4_1>(cpu, w, row, acts, out, scratch),
            GgmlType::Q5_0 => blocks::<BlockQ5_0>(cpu, w, row, acts, out, scratch),
            GgmlType::Q5_1 => blocks::<BlockQ5_1>(cpu, w, row, acts, out, scratch),
            GgmlType::Q4_K => shares::<BlockQ4K>(cpu, w, row, acts, out, scratch),
            GgmlType::Q5_K => shares::<BlockQ5K>(cpu, w, row, acts, out, scratch),
            _ => sixteens(cpu, w, row, acts, out, scratch),
        }
    }
}

/// Adds up the strands.
#[inline]
#[target_feature(enable = "neon")]
fn finish<const T: usize>(sums: [[float32x4_t; T]; ROWS], n: usize, from: usize, out: &mut [f32]) {
    for (sums, out) in sums.into_iter().zip(out.chunks_mut(n)) {
        (0..T).for_each(|t| out[from + t] = tree(sums[t]));
    }
}

/// The sums of `N` steps of four blocks: of each weight row with each of T activation rows.
#[inline]
#[target_feature(enable = "neon")]
fn meet<const N: usize, const T: usize>(cpu: DotProd, w: &[Step; N], x: [&[[i8; 16]; N]; T]) -> [[int32x4_t; T]; ROWS] {
    let mut sums = [[vdupq_n_s32(0); T]; ROWS];
    for step in 0..N {
        for r in 0..ROWS {
            let codes = load(&w[step][r]);
            for t in 0..T {
                sums[r][t] = cpu.add_products(sums[r][t], codes, load(&x[t][step]));
            }
        }
    }
    sums
}

/// The same step of four times 16 codes side by side: row `r` of four steps.
#[inline]
#[target_feature(enable = "neon")]
fn side_by_side([a, b, c, d]: [int8x16_t; 4], steps: &mut [Step; 4], r: usize) {
    let word = |x: int8x16_t| vreinterpretq_s32_s8(x);
    let (ab, ab2) = (vtrn1q_s32(word(a), word(b)), vtrn2q_s32(word(a), word(b)));
    let (cd, cd2) = (vtrn1q_s32(word(c), word(d)), vtrn2q_s32(word(c), word(d)));
    let pair = |x: int32x4_t| vreinterpretq_s64_s32(x);
    let lines = [
        vtrn1q_s64(pair(ab), pair(cd)),
        vtrn1q_s64(pair(ab2), pair(cd2)),
        vtrn2q_s64(pair(ab), pair(cd)),
        vtrn2q_s64(pair(ab2), pair(cd2)),
    ];
    for i in 0..4 {
        store(vreinterpretq_s8_s64(lines[i]), &mut steps[i][r]);
    }
}

/// `n` parts of a panel.
#[inline(always)]
fn panel_of<P: Pod>(scratch: &mut [f32], n: usize) -> &mut [P] {
    bytemuck::cast_slice_mut(&mut scratch[..n * size_of::<P>() / size_of::<f32>()])
}

/// Four blocks of 32 codes of four rows.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Panel32 {
    codes: [Step; 8],
    /// Scales.
    d: [[f32; 4]; ROWS],
    /// Values of code 0, where blocks have some.
    m: [[f32; 4]; ROWS],
}

#[target_feature(enable = "neon")]
fn blocks<B: Block32>(cpu: DotProd, w: &Matrix, row: usize, acts: &Acts, out: &mut [f32], scratch: &mut [f32]) {
    let panel: &mut [Panel32] = panel_of(scratch, (acts.cols / 32).div_ceil(4));
    for r in 0..ROWS {
        let (fours, last) = fours::<B>(w.row((row + r).min(w.rows - 1)));
        for (four, panel) in fours.iter().chain(&last).zip(&mut *panel) {
            let signed = |half: usize| {
                let zero = vdupq_n_s8(B::ZERO);
                let of = |block: &B| vsubq_s8(block.cheap()[half], zero);
                [of(&four[0]), of(&four[1]), of(&four[2]), of(&four[3])]
            };
            let steps = panel.codes.as_chunks_mut::<4>().0;
            side_by_side(signed(0), &mut steps[0], r);
            side_by_side(signed(1), &mut steps[1], r);
            let [d, m] = halves_of(four);
            put(d, &mut panel.d[r]);
            if B::MIN {
                put(m, &mut panel.m[r]);
            }
        }
    }
    let panel = &*panel;
    panels!(finish, acts, acts.q8, out, |x| multiply_blocks::<B, _>(cpu, panel, x));
}

#[inline]
#[target_feature(enable = "neon")]
fn multiply_blocks<B: Block32, const T: usize>(
    cpu: DotProd,
    panel: &[Panel32],
    x: [&Codes; T],
) -> [[float32x4_t; T]; ROWS] {
    let mut steps = [&[][..]; T];
    (0..T).for_each(|t| steps[t] = x[t].turned[0].qs.as_chunks::<8>().0);
    let mut sums = [[vdupq_n_f32(0.0); T]; ROWS];
    for (i, panel) in panel.iter().enumerate() {
        let mut now = [&[[0; 16]; 8]; T];
        (0..T).for_each(|t| now[t] = &steps[t][i]);
        let whole = meet(cpu, &panel.codes, now);
        for t in 0..T {
            let x_d = floats(&x[t].turned[0].d[i]);
            for r in 0..ROWS {
                let mut sum = vmulq_f32(vcvtq_f32_s32(whole[r][t]), vmulq_f32(floats(&panel.d[r]), x_d));
                if B::MIN {
                    let x_sums = vcvtq_f32_s32(vmovl_s16(load_i16(&x[t].sums.as_chunks().0[i])));
                    sum = vaddq_f32(sum, vmulq_f32(x_sums, vmulq_f32(floats(&panel.m[r]), x_d)));
                }
                sums[r][t] = vaddq_f32(sums[r][t], sum);
            }
        }
    }
    sums
}

/// A block of 256 codes of four rows.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Panel256 {
    /// By fours of shares.
    codes: [Step; 16],
    /// Of each four of shares: theirs.
    scales: [[[i32; 4]; ROWS]; 4],
    /// Mins of shares of 32, where blocks have some.
    mins: [[i16; 8]; ROWS],
    /// Scales of the scales, and of the mins.
    d: [[f32; 2]; ROWS],
}

#[target_feature(enable = "neon")]
fn shares<B: Block256>(cpu: DotProd, w: &Matrix, row: usize, acts: &Acts, out: &mut [f32], scratch: &mut [f32]) {
    let panel: &mut [Panel256] = panel_of(scratch, acts.cols / 256);
    for r in 0..ROWS {
        let blocks: &[B] = bytemuck::cast_slice(w.row((row + r).min(w.rows - 1)));
        for (block, panel) in blocks.iter().zip(&mut *panel) {
            let steps = panel.codes.as_chunks_mut::<4>().0;
            let scales = scales_of(block);
            for half in 0..2 {
                let ([a, b], [c, d]) = (block.quarter(2 * half), block.quarter(2 * half + 1));
                side_by_side([a[0], b[0], c[0], d[0]], &mut steps[2 * half], r);
                side_by_side([a[1], b[1], c[1], d[1]], &mut steps[2 * half + 1], r);
                store(vreinterpretq_s8_s32(scales[half]), &mut panel.scales[half][r]);
            }
            store(vreinterpretq_s8_s16(mins_of(block)), &mut panel.mins[r]);
            let halves = block.halves();
            panel.d[r] = [vgetq_lane_f32::<0>(halves), vgetq_lane_f32::<1>(halves)];
        }
    }
    let panel = &*panel;
    panels!(finish, acts, acts.q8k, out, |x| multiply_shares::<2, 8, _>(cpu, panel, x));
}

#[target_feature(enable = "neon")]
fn sixteens(cpu: DotProd, w: &Matrix, row: usize, acts: &Acts, out: &mut [f32], scratch: &mut [f32]) {
    let panel: &mut [Panel256] = panel_of(scratch, acts.cols / 256);
    for r in 0..ROWS {
        let blocks: &[BlockQ6K] = bytemuck::cast_slice(w.row((row + r).min(w.rows - 1)));
        for (block, panel) in blocks.iter().zip(&mut *panel) {
            let steps = panel.codes.as_chunks_mut::<4>().0;
            let scales = scales_q6_k(block);
            for half in 0..2 {
                let [first, second] = codes_q6_k(block, half);
                side_by_side(first, &mut steps[2 * half], r);
                side_by_side(second, &mut steps[2 * half + 1], r);
            }
            (0..4).for_each(|i| store(vreinterpretq_s8_s32(scales[i]), &mut panel.scales[i][r]));
            panel.d[r] = [scalar::half_to_f32(block.d.to_bits()), 0.0];
        }
    }
    let panel = &*panel;
    panels!(finish, acts, acts.q8k, out, |x| multiply_shares::<4, 4, _>(cpu, panel, x));
}

/// Blocks of `F` fours of shares, each of `N` steps. Shares of 32 have mins.
#[inline]
#[target_feature(enable = "neon")]
fn multiply_shares<const F: usize, const N: usize, const T: usize>(
    cpu: DotProd,
    panel: &[Panel256],
    x: [&Codes; T],
) -> [[float32x4_t; T]; ROWS] {
    let mut steps = [&[][..]; T];
    (0..T).for_each(|t| steps[t] = x[t].turned[usize::from(N == 4)].qs.as_chunks::<N>().0);
    let mut sums = [[vdupq_n_f32(0.0); T]; ROWS];
    for (b, panel) in panel.iter().enumerate() {
        let mut scaled = [[vdupq_n_s32(0); T]; ROWS];
        for four in 0..F {
            let mut now = [&[[0; 16]; N]; T];
            (0..T).for_each(|t| now[t] = &steps[t][F * b + four]);
            let whole = meet(cpu, &panel.codes.as_chunks::<N>().0[four], now);
            for r in 0..ROWS {
                let scales = vreinterpretq_s32_s8(load(&panel.scales[four][r]));
                (0..T).for_each(|t| scaled[r][t] = vmlaq_s32(scaled[r][t], whole[r][t], scales));
            }
        }
        for r in 0..ROWS {
            let (mins, [d, dmin]) = (vreinterpretq_s16_s8(load(&panel.mins[r])), panel.d[r]);
            for t in 0..T {
                let x_d = x[t].d[b];
                sums[r][t] = vaddq_f32(sums[r][t], vmulq_n_f32(vcvtq_f32_s32(scaled[r][t]), d * x_d));
                if N == 8 {
                    let min = vcvtq_f32_s32(neighbours(mins, &x[t].sums.as_chunks().0[b]));
                    sums[r][t] = vsubq_f32(sums[r][t], vmulq_n_f32(min, dmin * x_d));
                }
            }
        }
    }
    sums
}
