//! The kernels in AVX2: 16 lanes are two registers, so a block of 32 weights, or each half of 64, has its own. Types without a
//! function here run the loops of [`super::scalar`], compiled for this level.

use std::arch::x86_64::*;

use half::f16;

use super::Matrix;
use super::acts::Acts;
use super::attention::{self, Seen};
use super::scalar::{self, TILE};
use crate::format::GgmlType;
use crate::format::block::{self, BlockQ4_0, BlockQ4_1, BlockQ4K, BlockQ5_0, BlockQ5_1, BlockQ5K, BlockQ6K, BlockQ8_0};

/// Exists only where the CPU has AVX2, FMA and F16C.
#[derive(Debug, Clone, Copy)]
pub struct Avx2(());

impl Avx2 {
    /// Asks the CPU.
    pub fn detect() -> Option<Self> {
        (is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c"))
            .then_some(Self(()))
    }

    /// See [`super::Kernels::rows`].
    pub fn rows(self, w: &Matrix, first: usize, acts: &Acts, out: &mut [f32], scratch: &mut [f32]) {
        // SAFETY: `Self` exists only after `detect` saw the features that the function is compiled for.
        unsafe { rows(w, first, acts, out, scratch) }
    }

    /// See [`super::Kernels::dot_f32`].
    pub fn dot_f32(self, a: &[f32], b: &[f32]) -> f32 {
        // SAFETY: as above.
        unsafe { dot_f32(a, b) }
    }

    /// See [`super::Kernels::attend`].
    pub fn attend(self, q: &[f32], seen: &Seen, scores: &mut [f32], row: &mut [f32], out: &mut [f32]) {
        // SAFETY: as above.
        unsafe { attend(q, seen, scores, row, out) }
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn rows(w: &Matrix, first: usize, acts: &Acts, out: &mut [f32], scratch: &mut [f32]) {
    /// A full tile at once, what is left over row by row.
    macro_rules! tiles {
        ($dot:ident) => {
            scalar::tiles(w, first, acts, out, |row, acts, from, out| {
                if out.len() == TILE {
                    $dot::<TILE>(row, acts, from, out);
                } else {
                    (0..out.len()).for_each(|t| $dot::<1>(row, acts, from + t, &mut out[t..t + 1]));
                }
            })
        };
    }
    match w.ty {
        GgmlType::Q8_0 => tiles!(dot_q8_0),
        GgmlType::Q4_0 => tiles!(dot_q4_0),
        GgmlType::Q4_1 => tiles!(dot_q4_1),
        GgmlType::Q5_0 => tiles!(dot_q5_0),
        GgmlType::Q5_1 => tiles!(dot_q5_1),
        GgmlType::Q4_K => tiles!(dot_q4_k),
        GgmlType::Q5_K => tiles!(dot_q5_k),
        GgmlType::Q6_K => tiles!(dot_q6_k),
        GgmlType::F16 => tiles!(dot_f16),
        GgmlType::F32 => tiles!(dot_f32_row),
        _ => scalar::rows(w, first, acts, out, scratch),
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn dot_f32(a: &[f32], b: &[f32]) -> f32 {
    scalar::dot_f32(a, b)
}

#[target_feature(enable = "avx2,fma,f16c")]
fn attend(q: &[f32], seen: &Seen, scores: &mut [f32], row: &mut [f32], out: &mut [f32]) {
    attention::attend(q, seen, scores, row, out);
}

#[inline]
#[target_feature(enable = "avx")]
fn load<T: bytemuck::Pod>(values: &T) -> __m256i {
    const { assert!(size_of::<T>() == 32) };
    // SAFETY: the reference makes 32 bytes readable, any bytes are a register, and the load needs no alignment.
    unsafe { _mm256_loadu_si256((&raw const *values).cast()) }
}

#[inline]
#[target_feature(enable = "sse2")]
fn load_128<T: bytemuck::Pod>(values: &T) -> __m128i {
    const { assert!(size_of::<T>() == 16) };
    // SAFETY: as in `load`, of 16 bytes.
    unsafe { _mm_loadu_si128((&raw const *values).cast()) }
}

/// Both halves of the lanes, as the plain loops keep them.
#[inline]
#[target_feature(enable = "avx")]
fn lanes_of([low, high]: [__m256; 2]) -> [f32; scalar::LANES] {
    let mut out = [0.0; scalar::LANES];
    let (a, b) = out.split_at_mut(8);
    // SAFETY: each half is 32 writable bytes.
    unsafe {
        _mm256_storeu_ps(a.as_mut_ptr(), low);
        _mm256_storeu_ps(b.as_mut_ptr(), high);
    }
    out
}

#[inline]
#[target_feature(enable = "sse2,f16c")]
fn f32_of(h: f16) -> f32 {
    _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(i32::from(h.to_bits()))))
}

/// Pairs of products of signed codes, 16 bits: at most 2 * 128 * 127.
#[inline]
#[target_feature(enable = "avx2")]
fn pairs(w: __m256i, magnitudes: __m256i, x: __m256i) -> __m256i {
    _mm256_maddubs_epi16(magnitudes, _mm256_sign_epi8(x, w))
}

/// Low nibbles of 16 bytes, then the high ones.
#[inline]
#[target_feature(enable = "avx2")]
fn nibbles(bytes: &[u8; 16]) -> __m256i {
    let low = load_128(bytes);
    _mm256_and_si256(_mm256_set_m128i(_mm_srli_epi16::<4>(low), low), _mm256_set1_epi8(15))
}

/// 16 where the fifth bit is set.
#[inline]
#[target_feature(enable = "avx2")]
fn fifths(qh: [u8; 4]) -> __m256i {
    let byte_of = _mm256_setr_epi64x(0, 0x0101_0101_0101_0101, 0x0202_0202_0202_0202, 0x0303_0303_0303_0303);
    let bit = _mm256_set1_epi64x(0x8040_2010_0804_0201u64 as i64);
    let bytes = _mm256_shuffle_epi8(_mm256_set1_epi32(i32::from_le_bytes(qh)), byte_of);
    _mm256_and_si256(_mm256_cmpeq_epi8(_mm256_and_si256(bytes, bit), bit), _mm256_set1_epi8(16))
}

/// Blocks of 32 signed codes.
macro_rules! dot_of_blocks {
    ($name:ident, $block:ty, $codes:expr $(, $min:ident)?) => {
        #[inline]
        #[target_feature(enable = "avx2,fma,f16c")]
        fn $name<const T: usize>(row: &[u8], acts: &Acts, from: usize, out: &mut [f32]) {
            let blocks: &[$block] = bytemuck::cast_slice(row);
            let (mut x, mut d) = ([&[][..]; T], [&[][..]; T]);
            for t in 0..T {
                x[t] = acts.q8.qs[(from + t) * acts.cols..][..acts.cols].as_chunks::<32>().0;
                d[t] = &acts.q8.d[(from + t) * blocks.len()..][..blocks.len()];
            }
            let mut lanes = [[_mm256_setzero_ps(); 2]; T];
            let (twos, odd) = blocks.as_chunks::<2>();
            let ones = _mm256_set1_epi16(1);
            for (i, two) in twos.iter().enumerate() {
                for half in 0..2 {
                    let w: __m256i = $codes(&two[half]);
                    let magnitudes = _mm256_abs_epi8(w);
                    let scale = f32_of(two[half].d);
                    $(let min = f32_of(two[half].$min);)?
                    for t in 0..T {
                        let x_scale = d[t][2 * i + half];
                        let sums = _mm256_madd_epi16(pairs(w, magnitudes, load(&x[t][2 * i + half])), ones);
                        let sums = _mm256_mul_ps(_mm256_cvtepi32_ps(sums), _mm256_set1_ps(scale * x_scale));
                        $(
                            // Named after the field that holds the value of code 0.
                            let $min = load(&acts.q8.minus128[(from + t) * acts.cols / 4..].as_chunks::<8>().0[2 * i + half]);
                            let $min = _mm256_sub_epi32(_mm256_setzero_si256(), _mm256_srai_epi32::<7>($min));
                            let $min = _mm256_mul_ps(_mm256_cvtepi32_ps($min), _mm256_set1_ps(min * x_scale));
                            let sums = _mm256_add_ps(sums, $min);
                        )?
                        lanes[t][half] = _mm256_add_ps(lanes[t][half], sums);
                    }
                }
            }
            for t in 0..T {
                let mut last = [lanes_of(lanes[t])];
                if let [odd] = odd {
                    scalar::q8_pair(blocks.len() / 2, std::slice::from_ref(odd), acts, from + t, &mut last);
                }
                out[t] = scalar::tree(last[0]);
            }
        }
    };
}

dot_of_blocks!(dot_q8_0, BlockQ8_0, |w: &BlockQ8_0| load(&w.qs));
dot_of_blocks!(dot_q4_0, BlockQ4_0, |w: &BlockQ4_0| _mm256_sub_epi8(nibbles(&w.qs), _mm256_set1_epi8(8)));
dot_of_blocks!(dot_q4_1, BlockQ4_1, |w: &BlockQ4_1| nibbles(&w.qs), m);
dot_of_blocks!(dot_q5_0, BlockQ5_0, |w: &BlockQ5_0| {
    _mm256_sub_epi8(_mm256_or_si256(nibbles(&w.qs), fifths(w.qh)), _mm256_set1_epi8(16))
});
dot_of_blocks!(dot_q5_1, BlockQ5_1, |w: &BlockQ5_1| _mm256_or_si256(nibbles(&w.qs), fifths(w.qh)), m);

/// Q4_K and Q5_K: unsigned codes, scales and mins of six bits.
macro_rules! dot_with_mins {
    ($name:ident, $block:ty, $codes:ident) => {
        #[inline]
        #[target_feature(enable = "avx2,fma,f16c")]
        fn $name<const T: usize>(row: &[u8], acts: &Acts, from: usize, out: &mut [f32]) {
            let blocks: &[$block] = bytemuck::cast_slice(row);
            let mut lanes = [[_mm256_setzero_ps(); 2]; T];
            let mut min_lanes = [_mm_setzero_ps(); T];
            for (b, w) in blocks.iter().enumerate() {
                let (scales, mins) = scalar::scales_mins(&w.scales);
                let mins = _mm_cvtepu8_epi16(_mm_cvtsi64_si128(mins as i64));
                let (d, dmin) = (f32_of(w.d), f32_of(w.dmin));
                let mut sums = [[_mm256_setzero_si256(); 2]; T];
                for quarter in 0..4 {
                    let codes: [__m256i; 2] = $codes(w, quarter);
                    for half in 0..2 {
                        let scale = _mm256_set1_epi16((scales >> (8 * (2 * quarter + half)) & 255) as i16);
                        for t in 0..T {
                            let x = acts.q8k.qs[(from + t) * acts.cols + b * 256 + quarter * 64..].as_chunks::<32>().0;
                            let part = _mm256_madd_epi16(_mm256_maddubs_epi16(codes[half], load(&x[half])), scale);
                            sums[t][half] = _mm256_add_epi32(sums[t][half], part);
                        }
                    }
                }
                for t in 0..T {
                    let at = (from + t) * blocks.len() + b;
                    let scale = acts.q8k.d[at];
                    for half in 0..2 {
                        let scale = _mm256_set1_ps(d * scale);
                        let product = _mm256_mul_ps(_mm256_cvtepi32_ps(sums[t][half]), scale);
                        lanes[t][half] = _mm256_add_ps(lanes[t][half], product);
                    }
                    let sums = _mm_madd_epi16(mins, load_128::<[i16; 8]>(&acts.q8k.sums.as_chunks().0[at]));
                    min_lanes[t] =
                        _mm_add_ps(min_lanes[t], _mm_mul_ps(_mm_cvtepi32_ps(sums), _mm_set1_ps(dmin * scale)));
                }
            }
            for t in 0..T {
                let mut mins = [0.0; 4];
                // SAFETY: `mins` is 16 writable bytes.
                unsafe { _mm_storeu_ps(mins.as_mut_ptr(), min_lanes[t]) };
                out[t] = scalar::tree(lanes_of(lanes[t])) - scalar::tree(mins);
            }
        }
    };
}

dot_with_mins!(dot_q4_k, BlockQ4K, codes_q4_k);
dot_with_mins!(dot_q5_k, BlockQ5K, codes_q5_k);

#[inline]
#[target_feature(enable = "avx2")]
fn codes_q4_k(w: &BlockQ4K, quarter: usize) -> [__m256i; 2] {
    let (both, low) = (load(&w.qs.as_chunks::<32>().0[quarter]), _mm256_set1_epi8(15));
    [_mm256_and_si256(both, low), _mm256_and_si256(_mm256_srli_epi16::<4>(both), low)]
}

#[inline]
#[target_feature(enable = "avx2")]
fn codes_q5_k(w: &BlockQ5K, quarter: usize) -> [__m256i; 2] {
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
fn dot_q6_k<const T: usize>(row: &[u8], acts: &Acts, from: usize, out: &mut [f32]) {
    let blocks: &[BlockQ6K] = bytemuck::cast_slice(row);
    let mut lanes = [[_mm256_setzero_ps(); 2]; T];
    for (b, w) in blocks.iter().enumerate() {
        let d = f32_of(w.d);
        let mut sums = [[_mm256_setzero_si256(); 2]; T];
        for quarter in 0..4 {
            let codes = codes_q6_k(w, quarter);
            for half in 0..2 {
                let magnitudes = _mm256_abs_epi8(codes[half]);
                let scale = |i: usize| _mm_set1_epi16(i16::from(w.scales[quarter * 4 + half * 2 + i]));
                let scale = _mm256_set_m128i(scale(1), scale(0));
                for t in 0..T {
                    let x = acts.q8k.qs[(from + t) * acts.cols + b * 256 + quarter * 64..].as_chunks::<32>().0;
                    let part = _mm256_madd_epi16(pairs(codes[half], magnitudes, load(&x[half])), scale);
                    sums[t][half] = _mm256_add_epi32(sums[t][half], part);
                }
            }
        }
        for t in 0..T {
            let scale = _mm256_set1_ps(d * acts.q8k.d[(from + t) * blocks.len() + b]);
            for half in 0..2 {
                let product = _mm256_mul_ps(_mm256_cvtepi32_ps(sums[t][half]), scale);
                lanes[t][half] = _mm256_add_ps(lanes[t][half], product);
            }
        }
    }
    (0..T).for_each(|t| out[t] = scalar::tree(lanes_of(lanes[t])));
}

/// Signed codes of 64 values.
#[inline]
#[target_feature(enable = "avx2")]
fn codes_q6_k(w: &BlockQ6K, quarter: usize) -> [__m256i; 2] {
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

/// Rows of floats, 16 of them two registers.
macro_rules! dot_of_floats {
    ($name:ident, $ty:expr, $bytes:literal, $load:expr) => {
        #[inline]
        #[target_feature(enable = "avx2,fma,f16c")]
        fn $name<const T: usize>(row: &[u8], acts: &Acts, from: usize, out: &mut [f32]) {
            let (chunks, rest) = row.as_chunks::<{ 16 * $bytes }>();
            let mut x = [(&[][..], &[][..]); T];
            for t in 0..T {
                x[t] = acts.floats($ty)[(from + t) * acts.cols..][..acts.cols].as_chunks::<16>();
            }
            let mut lanes = [[_mm256_setzero_ps(); 2]; T];
            for (c, chunk) in chunks.iter().enumerate() {
                let halves = chunk.as_chunks::<{ 8 * $bytes }>().0;
                for half in 0..2 {
                    let w: __m256 = $load(&halves[half]);
                    for t in 0..T {
                        let x = _mm256_castsi256_ps(load(&x[t].0[c].as_chunks::<8>().0[half]));
                        lanes[t][half] = _mm256_add_ps(lanes[t][half], _mm256_mul_ps(w, x));
                    }
                }
            }
            let mut last = [0.0; 16];
            let last = &mut last[..rest.len() / $bytes];
            block::decode($ty, rest, last);
            (0..T).for_each(|t| out[t] = scalar::tree(lanes_of(lanes[t])) + scalar::tail(last, x[t].1));
        }
    };
}

dot_of_floats!(dot_f16, GgmlType::F16, 2, |half: &[u8; 16]| _mm256_cvtph_ps(load_128(half)));
dot_of_floats!(dot_f32_row, GgmlType::F32, 4, |half: &[u8; 32]| _mm256_castsi256_ps(load(half)));
