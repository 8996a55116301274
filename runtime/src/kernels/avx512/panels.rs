//! Many rows of activations at once. Eight weight rows are unpacked into a panel: a register holds four neighbouring codes of
//! four rows times four blocks, and meets the same step of four blocks of an activation row ([`super::super::acts::Turned`]) in
//! all four of its quarters. A quarter is then a row, and its four lanes are the four strands that the plain loops have, so the
//! bits are theirs. What unpacking costs is shared by the activation rows.

use std::arch::x86_64::*;

use crate::format::GgmlType;
use crate::format::block::{BlockQ4_0, BlockQ4_1, BlockQ4K, BlockQ5_0, BlockQ5_1, BlockQ5K, BlockQ6K, BlockQ8_0};
use crate::kernels::Matrix;
use crate::kernels::acts::{Acts, Codes};
use crate::kernels::avx2::{
    codes_q4_0, codes_q4_1, codes_q4_k, codes_q5_0, codes_q5_1, codes_q5_k, codes_q6_k, codes_q8_0, quad,
};
use crate::kernels::scalar;
use crate::kernels::tiles::{fours, panels};

/// Weight rows of a panel: two registers of four.
const ROWS: usize = 8;
/// A register of a panel.
type Line = [f32; 16];

/// Rows `first..` of `w` times all rows of activations, `out[r][t]`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,f16c")]
pub(super) fn rows(w: &Matrix, first: usize, acts: &Acts, out: &mut [f32], scratch: &mut [f32]) {
    // To a line of the cache: a register that lies across two of them is read twice.
    let start = scratch.as_ptr().align_offset(64).min(scratch.len());
    let panel = scratch[start..].as_chunks_mut::<16>().0;
    for (i, out) in out.chunks_mut(ROWS * acts.n).enumerate() {
        let rows: [Option<&[u8]>; ROWS] =
            std::array::from_fn(|r| (r < out.len() / acts.n).then(|| w.row(first + i * ROWS + r)));
        match w.ty {
            GgmlType::Q8_0 => blocks::<BlockQ8_0>(rows, acts, out, panel),
            GgmlType::Q4_0 => blocks::<BlockQ4_0>(rows, acts, out, panel),
            GgmlType::Q4_1 => blocks::<BlockQ4_1>(rows, acts, out, panel),
            GgmlType::Q5_0 => blocks::<BlockQ5_0>(rows, acts, out, panel),
            GgmlType::Q5_1 => blocks::<BlockQ5_1>(rows, acts, out, panel),
            GgmlType::Q4_K => shares::<BlockQ4K>(rows, acts, out, panel),
            GgmlType::Q5_K => shares::<BlockQ5K>(rows, acts, out, panel),
            _ => sixteens(rows, acts, out, panel),
        }
    }
}

/// Adds up the strands: quarter `r` of register `half` is row `4 * half + r`.
#[inline]
#[target_feature(enable = "avx512f")]
fn store<const T: usize>(sums: [[__m512; T]; 2], n: usize, from: usize, out: &mut [f32]) {
    for half in 0..2 {
        for t in 0..T {
            let strands = sums[half][t];
            let two = _mm512_add_ps(strands, _mm512_permute_ps::<0b01_00_11_10>(strands));
            let one = _mm512_add_ps(two, _mm512_permute_ps::<0b10_11_00_01>(two));
            let mut lanes = [0.0; 16];
            // SAFETY: `lanes` is 64 writable bytes.
            unsafe { _mm512_storeu_ps(lanes.as_mut_ptr(), one) };
            for (r, out) in out.chunks_mut(n).skip(4 * half).take(4).enumerate() {
                out[from + t] = lanes[4 * r];
            }
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn codes_of(line: &Line) -> __m512i {
    _mm512_castps_si512(floats_of(line))
}

#[inline]
#[target_feature(enable = "avx512f")]
fn floats_of(line: &Line) -> __m512 {
    // SAFETY: the reference makes 64 bytes readable, and the load needs no alignment.
    unsafe { _mm512_loadu_ps(line.as_ptr()) }
}

/// 16 bytes in every quarter.
#[inline]
#[target_feature(enable = "avx512f")]
fn four_times<T: bytemuck::Pod>(bytes: &T) -> __m512i {
    const { assert!(size_of::<T>() == 16) };
    // SAFETY: the reference makes 16 bytes readable, and the load needs no alignment.
    _mm512_broadcast_i32x4(unsafe { _mm_loadu_si128((&raw const *bytes).cast()) })
}

/// Bytes `16 * quarter..` of a line.
#[inline]
fn quarter(line: &mut Line, quarter: usize) -> &mut [f32; 4] {
    &mut line.as_chunks_mut::<4>().0[quarter]
}

#[inline]
#[target_feature(enable = "sse2")]
fn put(line: &mut Line, at: usize, value: __m128i) {
    // SAFETY: a quarter is 16 writable bytes.
    unsafe { _mm_storeu_si128(quarter(line, at).as_mut_ptr().cast(), value) };
}

/// whole += the products of N steps of four rows, `low`, and of the next four, `high`, with the `i`th N steps of T activation
/// rows.
#[inline]
#[target_feature(enable = "avx512f,avx512vnni")]
fn meet<const N: usize, const T: usize>(
    whole: &mut [[__m512i; T]; 2],
    [low, high]: [&[Line; N]; 2],
    steps: &[&[[[i8; 16]; N]]; T],
    i: usize,
) {
    for step in 0..N {
        let w = [codes_of(&low[step]), codes_of(&high[step])];
        for t in 0..T {
            let x = four_times(&steps[t][i][step]);
            whole[0][t] = _mm512_dpbusd_epi32(whole[0][t], w[0], x);
            whole[1][t] = _mm512_dpbusd_epi32(whole[1][t], w[1], x);
        }
    }
}

/// The same step of four blocks side by side: 8 lines of `lines`, quarter `r`.
#[inline]
#[target_feature(enable = "avx2")]
fn turn([a, b, c, d]: [__m256i; 4], lines: &mut [Line], r: usize) {
    let (ab, cd) = (_mm256_unpacklo_epi32(a, b), _mm256_unpacklo_epi32(c, d));
    let (ab2, cd2) = (_mm256_unpackhi_epi32(a, b), _mm256_unpackhi_epi32(c, d));
    let steps = [
        _mm256_unpacklo_epi64(ab, cd),
        _mm256_unpackhi_epi64(ab, cd),
        _mm256_unpacklo_epi64(ab2, cd2),
        _mm256_unpackhi_epi64(ab2, cd2),
    ];
    for (g, step) in steps.into_iter().enumerate() {
        put(&mut lines[g], r, _mm256_castsi256_si128(step));
        put(&mut lines[g + 4], r, _mm256_extracti128_si256::<1>(step));
    }
}

/// Blocks of 32 codes.
trait Block32: bytemuck::AnyBitPattern + scalar::Block32 {
    /// Codes plus 128.
    fn unsigned(&self) -> __m256i;
    /// Scales of four.
    fn scales_of(four: &[Self; 4]) -> __m128;
    /// Values of code 0 of four, where [`scalar::Block32::MIN`] says so.
    fn mins_of(four: &[Self; 4]) -> __m128;
}

macro_rules! unsigned {
    ($($block:ty, $codes:ident + $more:literal, $min:ident;)*) => { $(
        impl Block32 for $block {
            #[inline(always)]
            fn unsigned(&self) -> __m256i {
                // SAFETY: only `blocks` calls it, which is compiled for AVX-512.
                unsafe { _mm256_add_epi8($codes(self), _mm256_set1_epi8($more as i8)) }
            }
            #[inline(always)]
            fn scales_of([a, b, c, d]: &[Self; 4]) -> __m128 {
                // SAFETY: as above.
                unsafe { quad([a.d, b.d, c.d, d.d]) }
            }
            #[inline(always)]
            fn mins_of([a, b, c, d]: &[Self; 4]) -> __m128 {
                // SAFETY: as above.
                unsafe { quad([a.$min, b.$min, c.$min, d.$min]) }
            }
        }
    )* };
}
unsigned! {
    BlockQ8_0, codes_q8_0 + 128u8, d;
    BlockQ4_0, codes_q4_0 + 120u8, d;
    BlockQ4_1, codes_q4_1 + 128u8, m;
    BlockQ5_0, codes_q5_0 + 112u8, d;
    BlockQ5_1, codes_q5_1 + 128u8, m;
}

/// Lines of four blocks of eight rows: codes plus 128, scales, and mins where there are some.
const fn lines_of<B: Block32>() -> usize {
    if B::MIN { 20 } else { 18 }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,f16c")]
fn blocks<B: Block32>(rows: [Option<&[u8]>; ROWS], acts: &Acts, out: &mut [f32], panel: &mut [Line]) {
    let lines = lines_of::<B>();
    let panel = &mut panel[..(acts.cols / 32).div_ceil(4) * lines];
    if rows[ROWS - 1].is_none() {
        panel.as_flattened_mut().fill(0.0);
    }
    for (r, row) in rows.into_iter().enumerate() {
        let Some(row) = row else { break };
        let (half, r) = (r / 4, r % 4);
        let (fours, last) = fours::<B>(row);
        for (four, lines) in fours.iter().chain(&last).zip(panel.chunks_mut(lines)) {
            let [a, b, c, d] = four;
            turn([a.unsigned(), b.unsigned(), c.unsigned(), d.unsigned()], &mut lines[8 * half..], r);
            put(&mut lines[16 + half], r, _mm_castps_si128(B::scales_of(four)));
            if B::MIN {
                put(&mut lines[18 + half], r, _mm_castps_si128(B::mins_of(four)));
            }
        }
    }
    let panel = &*panel;
    panels!(store, acts, acts.q8, out, |x| multiply_blocks::<B, _>(panel, x));
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,f16c")]
fn multiply_blocks<B: Block32, const T: usize>(panel: &[Line], x: [&Codes; T]) -> [[__m512; T]; 2] {
    let mut steps = [&[][..]; T];
    (0..T).for_each(|t| steps[t] = x[t].turned[0].qs.as_chunks::<8>().0);
    let mut sums = [[_mm512_setzero_ps(); T]; 2];
    for (i, lines) in panel.chunks_exact(lines_of::<B>()).enumerate() {
        let mut minus128 = [_mm512_setzero_si512(); T];
        for t in 0..T {
            minus128[t] = four_times(&x[t].turned[0].minus128[i]);
        }
        let mut whole = [minus128; 2];
        let codes = lines.as_chunks::<8>().0;
        meet(&mut whole, [&codes[0], &codes[1]], &steps, i);
        let d = [floats_of(&lines[16]), floats_of(&lines[17])];
        for t in 0..T {
            let x_d = _mm512_castsi512_ps(four_times(&x[t].turned[0].d[i]));
            for half in 0..2 {
                let sum = _mm512_mul_ps(_mm512_cvtepi32_ps(whole[half][t]), _mm512_mul_ps(d[half], x_d));
                let sum = if B::MIN {
                    let x_sum = _mm512_sub_epi32(_mm512_setzero_si512(), _mm512_srai_epi32::<7>(minus128[t]));
                    let scale = _mm512_mul_ps(floats_of(&lines[18 + half]), x_d);
                    _mm512_add_ps(sum, _mm512_mul_ps(_mm512_cvtepi32_ps(x_sum), scale))
                } else {
                    sum
                };
                sums[half][t] = _mm512_add_ps(sums[half][t], sum);
            }
        }
    }
    sums
}

/// Blocks of 256 codes with scales and mins of each 32.
trait Block256: bytemuck::AnyBitPattern + scalar::Block256 {
    /// Unsigned codes of a quarter.
    fn quarter(&self, quarter: usize) -> [__m256i; 2];
    /// Packed scales and mins, and what they are scaled by.
    fn packed(&self) -> (&[u8; 12], [f32; 2]);
}

macro_rules! quarters {
    ($($block:ty, $codes:ident;)*) => { $(
        impl Block256 for $block {
            #[inline(always)]
            fn quarter(&self, quarter: usize) -> [__m256i; 2] {
                // SAFETY: only `shares` calls it, which is compiled for AVX-512.
                unsafe { $codes(self, quarter) }
            }
            #[inline(always)]
            fn packed(&self) -> (&[u8; 12], [f32; 2]) {
                (&self.scales, [self.d, self.dmin].map(|h| scalar::half_to_f32(h.to_bits())))
            }
        }
    )* };
}
quarters! {
    BlockQ4K, codes_q4_k;
    BlockQ5K, codes_q5_k;
}

/// Lines of a block of eight rows: 2 × 16 of codes, 2 × 2 of scales, 2 of mins in pairs, 2 of d, 2 of dmin.
const SHARES: usize = 42;

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,f16c")]
fn shares<B: Block256>(rows: [Option<&[u8]>; ROWS], acts: &Acts, out: &mut [f32], panel: &mut [Line]) {
    let panel = &mut panel[..acts.cols / 256 * SHARES];
    if rows[ROWS - 1].is_none() {
        panel.as_flattened_mut().fill(0.0);
    }
    for (r, row) in rows.into_iter().enumerate() {
        let Some(row) = row else { break };
        let (half, r) = (r / 4, r % 4);
        let row: &[B] = bytemuck::cast_slice(row);
        for (block, lines) in row.iter().zip(panel.chunks_mut(SHARES)) {
            let (packed, [d, dmin]) = block.packed();
            let (scales, mins) = scalar::scales_mins(packed);
            let scales = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_cvtsi64_si128(scales as i64)));
            put(&mut lines[32 + half], r, _mm_castps_si128(_mm256_castps256_ps128(scales)));
            put(&mut lines[34 + half], r, _mm_castps_si128(_mm256_extractf128_ps::<1>(scales)));
            put(&mut lines[36 + half], r, _mm_cvtepu8_epi16(_mm_cvtsi64_si128(mins as i64)));
            *quarter(&mut lines[38 + half], r) = [d; 4];
            *quarter(&mut lines[40 + half], r) = [dmin; 4];
            for four in 0..2 {
                let ([a, b], [c, d]) = (block.quarter(2 * four), block.quarter(2 * four + 1));
                turn([a, b, c, d], &mut lines[16 * half + 8 * four..], r);
            }
        }
    }
    let panel = &*panel;
    panels!(store, acts, acts.q8k, out, |x| multiply_shares(panel, x));
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,f16c")]
fn multiply_shares<const T: usize>(panel: &[Line], x: [&Codes; T]) -> [[__m512; T]; 2] {
    let mut steps = [&[][..]; T];
    (0..T).for_each(|t| steps[t] = x[t].turned[0].qs.as_chunks::<8>().0);
    let mut sums = [[_mm512_setzero_ps(); T]; 2];
    for (b, lines) in panel.chunks_exact(SHARES).enumerate() {
        // Integers below 63 * 32 * 31 * 127 * 2 < 2^24: floats hold them, and their fused sum, exactly.
        let mut scaled = [[_mm512_setzero_ps(); T]; 2];
        for four in 0..2 {
            let mut whole = [[_mm512_setzero_si512(); T]; 2];
            let codes = lines.as_chunks::<8>().0;
            meet(&mut whole, [&codes[four], &codes[2 + four]], &steps, 2 * b + four);
            for half in 0..2 {
                let scale = floats_of(&lines[32 + 2 * four + half]);
                for t in 0..T {
                    scaled[half][t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(whole[half][t]), scale, scaled[half][t]);
                }
            }
        }
        for half in 0..2 {
            let (mins, d, dmin) =
                (codes_of(&lines[36 + half]), floats_of(&lines[38 + half]), floats_of(&lines[40 + half]));
            for t in 0..T {
                let x_d = _mm512_set1_ps(x[t].d[b]);
                let min = _mm512_madd_epi16(mins, four_times::<[i16; 8]>(&x[t].sums.as_chunks().0[b]));
                let min = _mm512_mul_ps(_mm512_cvtepi32_ps(min), _mm512_mul_ps(dmin, x_d));
                let sum = _mm512_mul_ps(scaled[half][t], _mm512_mul_ps(d, x_d));
                sums[half][t] = _mm512_sub_ps(_mm512_add_ps(sums[half][t], sum), min);
            }
        }
    }
    sums
}

/// Lines of a block of Q6_K of eight rows: 2 × 16 of codes plus 128, 2 × 4 of scales, 2 of d.
const SIXTEENS: usize = 42;

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,f16c")]
fn sixteens(rows: [Option<&[u8]>; ROWS], acts: &Acts, out: &mut [f32], panel: &mut [Line]) {
    let panel = &mut panel[..acts.cols / 256 * SIXTEENS];
    if rows[ROWS - 1].is_none() {
        panel.as_flattened_mut().fill(0.0);
    }
    for (r, row) in rows.into_iter().enumerate() {
        let Some(row) = row else { break };
        let (half, r) = (r / 4, r % 4);
        let row: &[BlockQ6K] = bytemuck::cast_slice(row);
        for (block, lines) in row.iter().zip(panel.chunks_mut(SIXTEENS)) {
            *quarter(&mut lines[40 + half], r) = [scalar::half_to_f32(block.d.to_bits()); 4];
            for (q, scales) in block.scales.as_chunks::<4>().0.iter().enumerate() {
                let scales = _mm_cvtepi8_epi32(_mm_cvtsi32_si128(i32::from_le_bytes(scales.map(|s| s as u8))));
                put(&mut lines[32 + 2 * q + half], r, scales);
                let [ab, cd] = codes_q6_k(block, q).map(|c| _mm256_xor_si256(c, _mm256_set1_epi8(-128)));
                let [a, c] = [ab, cd].map(|two| _mm256_castsi256_si128(two));
                let [b, d] = [ab, cd].map(|two| _mm256_extracti128_si256::<1>(two));
                let (low, high) = (_mm_unpacklo_epi32(a, b), _mm_unpackhi_epi32(a, b));
                let (low2, high2) = (_mm_unpacklo_epi32(c, d), _mm_unpackhi_epi32(c, d));
                let steps = [
                    _mm_unpacklo_epi64(low, low2),
                    _mm_unpackhi_epi64(low, low2),
                    _mm_unpacklo_epi64(high, high2),
                    _mm_unpackhi_epi64(high, high2),
                ];
                let lines = &mut lines[16 * half + 4 * q..];
                steps.into_iter().zip(lines).for_each(|(step, line)| put(line, r, step));
            }
        }
    }
    let panel = &*panel;
    panels!(store, acts, acts.q8k, out, |x| multiply_sixteens(panel, x));
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,f16c")]
fn multiply_sixteens<const T: usize>(panel: &[Line], x: [&Codes; T]) -> [[__m512; T]; 2] {
    let mut steps = [&[][..]; T];
    (0..T).for_each(|t| steps[t] = x[t].turned[1].qs.as_chunks::<4>().0);
    let mut sums = [[_mm512_setzero_ps(); T]; 2];
    for (b, lines) in panel.chunks_exact(SIXTEENS).enumerate() {
        let mut scaled = [[_mm512_setzero_si512(); T]; 2];
        for q in 0..4 {
            let mut whole = [[_mm512_setzero_si512(); T]; 2];
            for t in 0..T {
                let minus128 = four_times(&x[t].turned[1].minus128[4 * b + q]);
                (whole[0][t], whole[1][t]) = (minus128, minus128);
            }
            let codes = lines.as_chunks::<4>().0;
            meet(&mut whole, [&codes[q], &codes[4 + q]], &steps, 4 * b + q);
            for half in 0..2 {
                let scale = codes_of(&lines[32 + 2 * q + half]);
                for t in 0..T {
                    let product = _mm512_mullo_epi32(whole[half][t], scale);
                    scaled[half][t] = _mm512_add_epi32(scaled[half][t], product);
                }
            }
        }
        for half in 0..2 {
            let d = floats_of(&lines[40 + half]);
            for t in 0..T {
                let scale = _mm512_mul_ps(d, _mm512_set1_ps(x[t].d[b]));
                sums[half][t] = _mm512_add_ps(sums[half][t], _mm512_mul_ps(_mm512_cvtepi32_ps(scaled[half][t]), scale));
            }
        }
    }
    sums
}
