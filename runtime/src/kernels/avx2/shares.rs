//! Blocks of 256 codes, whose shares of 32 or 16 have integer scales.

use std::arch::x86_64::*;

use super::{AHEAD, f32_of, fetch, fold, load, load_128, pairs, strands_of};
use crate::format::block::{BlockQ4K, BlockQ5K, BlockQ6K};
use crate::kernels::acts::{Acts, Codes};
use crate::kernels::scalar;

/// Q4_K and Q5_K: unsigned codes, scales and mins of six bits.
macro_rules! dot_with_mins {
    ($name:ident, $block:ty, $codes:ident) => {
        #[inline]
        #[target_feature(enable = "avx2,fma,f16c")]
        pub(in crate::kernels) fn $name<const T: usize>(row: &[u8], acts: &Acts, from: usize, out: &mut [f32]) {
            let blocks: &[$block] = bytemuck::cast_slice(row);
            let x: [&Codes; T] = std::array::from_fn(|t| &acts.q8k[from + t]);
            let mut strands = [_mm_setzero_ps(); T];
            for (b, w) in blocks.iter().enumerate() {
                if T == 1 {
                    fetch(std::array::from_ref(w), AHEAD);
                }
                let (scales, mins) = scalar::scales_mins(&w.scales);
                let mins = _mm_cvtepu8_epi16(_mm_cvtsi64_si128(mins as i64));
                let (d, dmin) = (f32_of(w.d), f32_of(w.dmin));
                let mut sums = [[_mm256_setzero_si256(); 4]; T];
                for quarter in 0..4 {
                    let codes: [__m256i; 2] = $codes(w, quarter);
                    for half in 0..2 {
                        let share = 2 * quarter + half;
                        let scale = _mm256_set1_epi16((scales >> (8 * share) & 255) as i16);
                        for t in 0..T {
                            let qs = load(&x[t].qs.as_chunks::<32>().0[8 * b + share]);
                            let part = _mm256_madd_epi16(_mm256_maddubs_epi16(codes[half], qs), scale);
                            sums[t][share % 4] = _mm256_add_epi32(sums[t][share % 4], part);
                        }
                    }
                }
                for t in 0..T {
                    let scale = x[t].d[b];
                    let sum = _mm_mul_ps(_mm_cvtepi32_ps(fold(sums[t])), _mm_set1_ps(d * scale));
                    let min = _mm_madd_epi16(mins, load_128::<[i16; 8]>(&x[t].sums.as_chunks().0[b]));
                    let min = _mm_mul_ps(_mm_cvtepi32_ps(min), _mm_set1_ps(dmin * scale));
                    strands[t] = _mm_sub_ps(_mm_add_ps(strands[t], sum), min);
                }
            }
            (0..T).for_each(|t| out[t] = scalar::tree(strands_of(strands[t])));
        }
    };
}

dot_with_mins!(dot_q4_k, BlockQ4K, codes_q4_k);
dot_with_mins!(dot_q5_k, BlockQ5K, codes_q5_k);

#[inline]
#[target_feature(enable = "avx2")]
pub(in crate::kernels) fn codes_q4_k(w: &BlockQ4K, quarter: usize) -> [__m256i; 2] {
    let (both, low) = (load(&w.qs.as_chunks::<32>().0[quarter]), _mm256_set1_epi8(15));
    [_mm256_and_si256(both, low), _mm256_and_si256(_mm256_srli_epi16::<4>(both), low)]
}

#[inline]
#[target_feature(enable = "avx2")]
pub(in crate::kernels) fn codes_q5_k(w: &BlockQ5K, quarter: usize) -> [__m256i; 2] {
    let (both, low) = (load(&w.qs.as_chunks::<32>().0[quarter]), _mm256_set1_epi8(15));
    let high = load(&w.qh);
    let fifth = |bit: u8| {
        let bit = _mm256_set1_epi8(bit as i8);
        _mm256_and_si256(_mm256_cmpeq_epi8(_mm256_and_si256(high, bit), bit), _mm256_set1_epi8(16))
    };
    [
        _mm256_or_si256(_mm256_and_si256(both, low), fifth(1 << (2 * quarter))),
        _mm256_or_si256(_mm256_and_si256(_mm256_srli_epi16::<4>(both), low), fifth(2 << (2 * quarter))),
    ]
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(in crate::kernels) fn dot_q6_k<const T: usize>(row: &[u8], acts: &Acts, from: usize, out: &mut [f32]) {
    let blocks: &[BlockQ6K] = bytemuck::cast_slice(row);
    let x: [&Codes; T] = std::array::from_fn(|t| &acts.q8k[from + t]);
    let mut strands = [_mm_setzero_ps(); T];
    for (b, w) in blocks.iter().enumerate() {
        if T == 1 {
            fetch(std::array::from_ref(w), AHEAD);
        }
        let d = f32_of(w.d);
        // Of each half of 64 codes: the first share's sums low, the second's high.
        let mut sums = [[_mm256_setzero_si256(); 2]; T];
        for quarter in 0..4 {
            let codes = codes_q6_k(w, quarter);
            for half in 0..2 {
                let magnitudes = _mm256_abs_epi8(codes[half]);
                let scale = |i: usize| _mm_set1_epi16(i16::from(w.scales[quarter * 4 + half * 2 + i]));
                let scale = _mm256_set_m128i(scale(1), scale(0));
                for t in 0..T {
                    let qs = load(&x[t].qs.as_chunks::<32>().0[8 * b + 2 * quarter + half]);
                    let part = _mm256_madd_epi16(pairs(codes[half], magnitudes, qs), scale);
                    sums[t][half] = _mm256_add_epi32(sums[t][half], part);
                }
            }
        }
        for t in 0..T {
            let two = _mm256_hadd_epi32(sums[t][0], sums[t][1]);
            let two = _mm256_hadd_epi32(two, two);
            let four = _mm_unpacklo_epi32(_mm256_castsi256_si128(two), _mm256_extracti128_si256::<1>(two));
            let sum = _mm_mul_ps(_mm_cvtepi32_ps(four), _mm_set1_ps(d * x[t].d[b]));
            strands[t] = _mm_add_ps(strands[t], sum);
        }
    }
    (0..T).for_each(|t| out[t] = scalar::tree(strands_of(strands[t])));
}

/// Signed codes of 64 values.
#[inline]
#[target_feature(enable = "avx2")]
pub(in crate::kernels) fn codes_q6_k(w: &BlockQ6K, quarter: usize) -> [__m256i; 2] {
    let ql = w.ql.as_chunks::<32>().0;
    let high = load(&w.qh.as_chunks::<32>().0[quarter / 2]);
    let first = quarter / 2 * 2;
    let (a, b) = (load(&ql[first]), load(&ql[first + 1]));
    // The first 64 of a half take the low nibbles and bits 0..4 of `qh`, the second 64 the high nibbles and bits 4..8.
    let (a, b, high) = match quarter % 2 {
        0 => (a, b, high),
        _ => (_mm256_srli_epi16::<4>(a), _mm256_srli_epi16::<4>(b), _mm256_srli_epi16::<4>(high)),
    };
    let join = |low: __m256i, high: __m256i| {
        let high = _mm256_and_si256(high, _mm256_set1_epi8(0x30));
        let code = _mm256_or_si256(_mm256_and_si256(low, _mm256_set1_epi8(15)), high);
        _mm256_sub_epi8(code, _mm256_set1_epi8(32))
    };
    [join(a, _mm256_slli_epi16::<4>(high)), join(b, _mm256_slli_epi16::<2>(high))]
}
