//! The kernels in AVX-512 with VNNI: 16 lanes are one register. Types without a function here run the loops of
//! [`super::scalar`], compiled for this level.

use std::arch::x86_64::*;

use half::f16;

use super::Matrix;
use super::acts::{Acts, Codes};
use super::attention::{self, Seen};
use super::scalar::{self, TILE};
use crate::format::GgmlType;
use crate::format::block::{self, BlockQ4_0, BlockQ4_1, BlockQ4K, BlockQ5_0, BlockQ5_1, BlockQ5K, BlockQ6K, BlockQ8_0};

/// Exists only where the CPU has AVX-512 F, BW, VL, DQ and VNNI (and F16C, which all of these have).
#[derive(Debug, Clone, Copy)]
pub struct Avx512(());

impl Avx512 {
    /// Asks the CPU.
    pub fn detect() -> Option<Self> {
        let all = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vnni")
            && is_x86_feature_detected!("f16c");
        all.then_some(Self(()))
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

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,f16c")]
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

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,f16c")]
fn dot_f32(a: &[f32], b: &[f32]) -> f32 {
    scalar::dot_f32(a, b)
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,f16c")]
fn attend(q: &[f32], seen: &Seen, scores: &mut [f32], row: &mut [f32], out: &mut [f32]) {
    attention::attend(q, seen, scores, row, out);
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load(bytes: &[i8; 64]) -> __m512i {
    // SAFETY: the reference makes 64 bytes readable, and the load needs no alignment.
    unsafe { _mm512_loadu_si512(bytes.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load_i32(words: &[i32; 16]) -> __m512i {
    // SAFETY: as in `load`.
    unsafe { _mm512_loadu_si512(words.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load_f32(x: &[f32; 16]) -> __m512 {
    // SAFETY: as in `load`.
    unsafe { _mm512_loadu_ps(x.as_ptr()) }
}

#[inline]
#[target_feature(enable = "avx")]
fn load_256(bytes: &[u8; 32]) -> __m256i {
    // SAFETY: as in `load`, of 32 bytes.
    unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "sse2")]
fn load_128(bytes: &[u8; 16]) -> __m128i {
    // SAFETY: as in `load`, of 16 bytes.
    unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn tree(lanes: __m512) -> f32 {
    let mut out = [0.0; 16];
    // SAFETY: `out` is 64 writable bytes.
    unsafe { _mm512_storeu_ps(out.as_mut_ptr(), lanes) };
    scalar::tree(out)
}

/// Row `t` of the codes, 64 at a time, with the sums of their fours.
#[inline(always)]
fn codes_of(codes: &Codes, cols: usize, t: usize) -> (&[[i8; 64]], &[[i32; 16]]) {
    (codes.qs[t * cols..][..cols].as_chunks().0, codes.minus128[t * cols / 4..][..cols / 4].as_chunks().0)
}

/// Σ of four products a lane: `u` are weight codes plus 128.
#[inline]
#[target_feature(enable = "avx512f,avx512vnni")]
fn products(u: __m512i, x: &[i8; 64], minus128: &[i32; 16]) -> __m512i {
    _mm512_dpbusd_epi32(load_i32(minus128), u, load(x))
}

/// Two numbers, eight lanes each.
#[inline]
#[target_feature(enable = "avx512f")]
fn spread(pair: __m128) -> __m512 {
    let which = _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1);
    _mm512_permutexvar_ps(which, _mm512_castps128_ps512(pair))
}

/// Blocks of 32, two of them a register.
macro_rules! dot_of_pairs {
    ($name:ident, $block:ty, $codes:ident $(, $min:ident)?) => {
        #[inline]
        #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,f16c")]
        fn $name<const T: usize>(row: &[u8], acts: &Acts, from: usize, out: &mut [f32]) {
            let blocks: &[$block] = bytemuck::cast_slice(row);
            let (pairs, odd) = blocks.as_chunks::<2>();
            let (mut x, mut d) = ([(&[][..], &[][..]); T], [&[][..]; T]);
            for t in 0..T {
                x[t] = codes_of(&acts.q8, acts.cols, from + t);
                d[t] = acts.q8.d[(from + t) * blocks.len()..].as_chunks::<2>().0;
            }
            let mut lanes = [_mm512_setzero_ps(); T];
            for (p, [a, b]) in pairs.iter().enumerate() {
                let u = $codes(a, b);
                let scales = pair(a.d, b.d);
                $(let mins = pair(a.$min, b.$min);)?
                for t in 0..T {
                    let x_scales = _mm_setr_ps(d[t][p][0], d[t][p][1], 0.0, 0.0);
                    let sums = _mm512_cvtepi32_ps(products(u, &x[t].0[p], &x[t].1[p]));
                    let sums = _mm512_mul_ps(sums, spread(_mm_mul_ps(scales, x_scales)));
                    $(
                        // Named after the field that holds the value of code 0.
                        let $min = _mm512_sub_epi32(_mm512_setzero_si512(), _mm512_srai_epi32::<7>(load_i32(&x[t].1[p])));
                        let $min = _mm512_mul_ps(_mm512_cvtepi32_ps($min), spread(_mm_mul_ps(mins, x_scales)));
                        let sums = _mm512_add_ps(sums, $min);
                    )?
                    lanes[t] = _mm512_add_ps(lanes[t], sums);
                }
            }
            for t in 0..T {
                let mut last = [[0.0; scalar::LANES]];
                // SAFETY: `last` is 64 writable bytes.
                unsafe { _mm512_storeu_ps(last[0].as_mut_ptr(), lanes[t]) };
                if let [odd] = odd {
                    scalar::q8_pair(blocks.len() / 2, std::slice::from_ref(odd), acts, from + t, &mut last);
                }
                out[t] = scalar::tree(last[0]);
            }
        }
    };
}

dot_of_pairs!(dot_q8_0, BlockQ8_0, codes_q8_0);
dot_of_pairs!(dot_q4_0, BlockQ4_0, codes_q4_0);
dot_of_pairs!(dot_q4_1, BlockQ4_1, codes_q4_1, m);
dot_of_pairs!(dot_q5_0, BlockQ5_0, codes_q5_0);
dot_of_pairs!(dot_q5_1, BlockQ5_1, codes_q5_1, m);

/// Two halves as floats.
#[inline]
#[target_feature(enable = "sse2,f16c")]
fn pair(a: f16, b: f16) -> __m128 {
    _mm_cvtph_ps(_mm_cvtsi32_si128(i32::from(a.to_bits()) | i32::from(b.to_bits()) << 16))
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn codes_q8_0(a: &BlockQ8_0, b: &BlockQ8_0) -> __m512i {
    let both = _mm512_inserti64x4::<1>(
        _mm512_castsi256_si512(load_256(bytemuck::cast_ref(&a.qs))),
        load_256(bytemuck::cast_ref(&b.qs)),
    );
    _mm512_xor_si512(both, _mm512_set1_epi8(-128))
}

/// Low nibbles of 16 bytes, then the high ones; then those of the other 16.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn nibble_pairs(a: &[u8; 16], b: &[u8; 16]) -> __m512i {
    let twice = |bytes: &[u8; 16]| _mm256_broadcastsi128_si256(load_128(bytes));
    let both = _mm512_inserti64x4::<1>(_mm512_castsi256_si512(twice(a)), twice(b));
    let four = 0x0004_0004_0004_0004;
    let high = _mm512_set_epi64(four, four, 0, 0, four, four, 0, 0);
    _mm512_and_si512(_mm512_srlv_epi16(both, high), _mm512_set1_epi8(15))
}

/// 16 where the fifth bit of two blocks is set.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn fifths(a: [u8; 4], b: [u8; 4]) -> __m512i {
    let bits = u64::from(u32::from_le_bytes(a)) | u64::from(u32::from_le_bytes(b)) << 32;
    _mm512_maskz_set1_epi8(bits, 16)
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn codes_q4_0(a: &BlockQ4_0, b: &BlockQ4_0) -> __m512i {
    _mm512_add_epi8(nibble_pairs(&a.qs, &b.qs), _mm512_set1_epi8(120)) // code - 8 + 128
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn codes_q4_1(a: &BlockQ4_1, b: &BlockQ4_1) -> __m512i {
    _mm512_add_epi8(nibble_pairs(&a.qs, &b.qs), _mm512_set1_epi8(-128))
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn codes_q5_0(a: &BlockQ5_0, b: &BlockQ5_0) -> __m512i {
    let codes = _mm512_or_si512(nibble_pairs(&a.qs, &b.qs), fifths(a.qh, b.qh));
    _mm512_add_epi8(codes, _mm512_set1_epi8(112)) // code - 16 + 128
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn codes_q5_1(a: &BlockQ5_1, b: &BlockQ5_1) -> __m512i {
    let codes = _mm512_or_si512(nibble_pairs(&a.qs, &b.qs), fifths(a.qh, b.qh));
    _mm512_add_epi8(codes, _mm512_set1_epi8(-128))
}

/// The scales of one 64, from sixteen or eight in a register: `step` lanes share one.
#[inline]
#[target_feature(enable = "avx512f")]
fn scales_of(scales: __m512i, quarter: i32, lanes_each: i32) -> __m512i {
    let lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    let shift = _mm_cvtsi32_si128(lanes_each.trailing_zeros() as i32);
    let which = _mm512_add_epi32(_mm512_srl_epi32(lane, shift), _mm512_set1_epi32(quarter * (16 / lanes_each)));
    _mm512_permutexvar_epi32(which, scales)
}

/// Q4_K and Q5_K: unsigned codes, scales and mins of six bits.
macro_rules! dot_with_mins {
    ($name:ident, $block:ty, $codes:ident) => {
        #[inline]
        #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,f16c")]
        fn $name<const T: usize>(row: &[u8], acts: &Acts, from: usize, out: &mut [f32]) {
            let blocks: &[$block] = bytemuck::cast_slice(row);
            let mut x = [&[][..]; T];
            for t in 0..T {
                x[t] = codes_of(&acts.q8k, acts.cols, from + t).0;
            }
            let mut lanes = [_mm512_setzero_ps(); T];
            let mut min_lanes = [_mm_setzero_ps(); T];
            for (b, w) in blocks.iter().enumerate() {
                let (scales, mins) = scalar::scales_mins(&w.scales);
                let scales = _mm512_castsi256_si512(_mm256_cvtepu8_epi32(_mm_cvtsi64_si128(scales as i64)));
                let scales: [_; 4] = [
                    scales_of(scales, 0, 8),
                    scales_of(scales, 1, 8),
                    scales_of(scales, 2, 8),
                    scales_of(scales, 3, 8),
                ];
                let mins = _mm_cvtepu8_epi16(_mm_cvtsi64_si128(mins as i64));
                let codes = $codes(w);
                let (d, dmin) = (f32_of(w.d), f32_of(w.dmin));
                for t in 0..T {
                    let at = (from + t) * blocks.len() + b;
                    let sums = {
                        let sums: &[i16; 8] = &acts.q8k.sums.as_chunks().0[at];
                        _mm_madd_epi16(mins, load_128(bytemuck::cast_ref(sums)))
                    };
                    let mut sum = _mm512_setzero_si512();
                    for quarter in 0..4 {
                        let part =
                            _mm512_dpbusd_epi32(_mm512_setzero_si512(), codes[quarter], load(&x[t][4 * b + quarter]));
                        sum = _mm512_add_epi32(sum, _mm512_mullo_epi32(part, scales[quarter]));
                    }
                    let scale = acts.q8k.d[at];
                    lanes[t] =
                        _mm512_add_ps(lanes[t], _mm512_mul_ps(_mm512_cvtepi32_ps(sum), _mm512_set1_ps(d * scale)));
                    min_lanes[t] =
                        _mm_add_ps(min_lanes[t], _mm_mul_ps(_mm_cvtepi32_ps(sums), _mm_set1_ps(dmin * scale)));
                }
            }
            for t in 0..T {
                let mut mins = [0.0; 4];
                // SAFETY: `mins` is 16 writable bytes.
                unsafe { _mm_storeu_ps(mins.as_mut_ptr(), min_lanes[t]) };
                out[t] = tree(lanes[t]) - scalar::tree(mins);
            }
        }
    };
}

dot_with_mins!(dot_q4_k, BlockQ4K, codes_q4_k);
dot_with_mins!(dot_q5_k, BlockQ5K, codes_q5_k);

#[inline]
#[target_feature(enable = "sse2,f16c")]
fn f32_of(h: f16) -> f32 {
    _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(i32::from(h.to_bits()))))
}

/// 32 bytes twice, the second copy shifted right by four: low nibbles, then high ones.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn nibbles(bytes: &[u8; 32]) -> __m512i {
    let high = _mm512_inserti64x4::<1>(_mm512_setzero_si512(), _mm256_set1_epi16(4));
    _mm512_and_si512(_mm512_srlv_epi16(_mm512_broadcast_i64x4(load_256(bytes)), high), _mm512_set1_epi8(15))
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn codes_q4_k(w: &BlockQ4K) -> [__m512i; 4] {
    let qs = w.qs.as_chunks::<32>().0;
    [nibbles(&qs[0]), nibbles(&qs[1]), nibbles(&qs[2]), nibbles(&qs[3])]
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn codes_q5_k(w: &BlockQ5K) -> [__m512i; 4] {
    let qs = w.qs.as_chunks::<32>().0;
    let qh = _mm512_broadcast_i64x4(load_256(&w.qh));
    // Bit 2p is the fifth of the low nibbles of quarter p, bit 2p + 1 of the high ones.
    let fifth = |p: u32| {
        let bit =
            _mm512_inserti64x4::<1>(_mm512_set1_epi8((1u8 << (2 * p)) as i8), _mm256_set1_epi8((2u8 << (2 * p)) as i8));
        _mm512_maskz_set1_epi8(_mm512_test_epi8_mask(qh, bit), 16)
    };
    [
        _mm512_or_si512(nibbles(&qs[0]), fifth(0)),
        _mm512_or_si512(nibbles(&qs[1]), fifth(1)),
        _mm512_or_si512(nibbles(&qs[2]), fifth(2)),
        _mm512_or_si512(nibbles(&qs[3]), fifth(3)),
    ]
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,f16c")]
fn dot_q6_k<const T: usize>(row: &[u8], acts: &Acts, from: usize, out: &mut [f32]) {
    let blocks: &[BlockQ6K] = bytemuck::cast_slice(row);
    let mut x = [(&[][..], &[][..]); T];
    for t in 0..T {
        x[t] = codes_of(&acts.q8k, acts.cols, from + t);
    }
    let mut lanes = [_mm512_setzero_ps(); T];
    for (b, w) in blocks.iter().enumerate() {
        let scales = _mm512_cvtepi8_epi32(load_128(bytemuck::cast_ref(&w.scales)));
        let scales: [_; 4] =
            [scales_of(scales, 0, 4), scales_of(scales, 1, 4), scales_of(scales, 2, 4), scales_of(scales, 3, 4)];
        let codes = codes_q6_k(w);
        let d = f32_of(w.d);
        for t in 0..T {
            let mut sum = _mm512_setzero_si512();
            for quarter in 0..4 {
                let part = products(codes[quarter], &x[t].0[4 * b + quarter], &x[t].1[4 * b + quarter]);
                sum = _mm512_add_epi32(sum, _mm512_mullo_epi32(part, scales[quarter]));
            }
            let scale = d * acts.q8k.d[(from + t) * blocks.len() + b];
            lanes[t] = _mm512_add_ps(lanes[t], _mm512_mul_ps(_mm512_cvtepi32_ps(sum), _mm512_set1_ps(scale)));
        }
    }
    (0..T).for_each(|t| out[t] = tree(lanes[t]));
}

/// Codes plus 128.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn codes_q6_k(w: &BlockQ6K) -> [__m512i; 4] {
    let (ql, qh) = (w.ql.as_chunks::<64>().0, w.qh.as_chunks::<32>().0);
    let (four_bits, two_bits) = (_mm512_set1_epi8(15), _mm512_set1_epi8(0x30));
    let join = |low: __m512i, high: __m512i| {
        let code = _mm512_or_si512(_mm512_and_si512(low, four_bits), _mm512_and_si512(high, two_bits));
        _mm512_add_epi8(code, _mm512_set1_epi8(96)) // code - 32 + 128
    };
    let half = |i: usize| {
        let low = load(bytemuck::cast_ref(&ql[i]));
        let high = load_256(&qh[i]);
        // Bits 0..2 and 2..4 of `qh` go to the low nibbles of the two 32, bits 4..6 and 6..8 to the high ones.
        let first =
            _mm512_inserti64x4::<1>(_mm512_castsi256_si512(_mm256_slli_epi16::<4>(high)), _mm256_slli_epi16::<2>(high));
        let second = _mm512_inserti64x4::<1>(_mm512_castsi256_si512(high), _mm256_srli_epi16::<2>(high));
        [join(low, first), join(_mm512_srli_epi16::<4>(low), second)]
    };
    let ([a, b], [c, d]) = (half(0), half(1));
    [a, b, c, d]
}

/// Rows of floats, 16 of them a register.
macro_rules! dot_of_floats {
    ($name:ident, $ty:expr, $bytes:literal, $load:expr) => {
        #[inline]
        #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,f16c")]
        fn $name<const T: usize>(row: &[u8], acts: &Acts, from: usize, out: &mut [f32]) {
            let (chunks, rest) = row.as_chunks::<{ 16 * $bytes }>();
            let mut x = [(&[][..], &[][..]); T];
            for t in 0..T {
                x[t] = acts.floats($ty)[(from + t) * acts.cols..][..acts.cols].as_chunks::<16>();
            }
            let mut lanes = [_mm512_setzero_ps(); T];
            for (c, chunk) in chunks.iter().enumerate() {
                let w = $load(chunk);
                for t in 0..T {
                    lanes[t] = _mm512_add_ps(lanes[t], _mm512_mul_ps(w, load_f32(&x[t].0[c])));
                }
            }
            let mut last = [0.0; 16];
            let last = &mut last[..rest.len() / $bytes];
            block::decode($ty, rest, last);
            (0..T).for_each(|t| out[t] = tree(lanes[t]) + scalar::tail(last, x[t].1));
        }
    };
}

dot_of_floats!(dot_f16, GgmlType::F16, 2, |chunk| _mm512_cvtph_ps(load_256(chunk)));
dot_of_floats!(dot_f32_row, GgmlType::F32, 4, |chunk| _mm512_castsi512_ps(load(bytemuck::cast_ref::<
    [u8; 64],
    [i8; 64],
>(chunk))));
