//! The kernels in AVX2: 32 codes are a register, and four blocks' sums are folded into one. Types without a function here run
//! the loops of [`super::scalar`], compiled for this level.

mod shares;

use std::arch::x86_64::*;

use half::f16;

use super::Matrix;
use super::acts::Acts;
use super::attention::{self, Seen};
use super::scalar::{self, TILE};
use super::tiles::tiles;
use crate::format::GgmlType;
use crate::format::block::{self, BlockQ4_0, BlockQ4_1, BlockQ5_0, BlockQ5_1, BlockQ8_0};
pub(super) use shares::{codes_q4_k, codes_q5_k, codes_q6_k, dot_q4_k, dot_q5_k, dot_q6_k};

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
    pub fn attend(self, q: &[f32], seen: &Seen, scratch: &mut [f32], out: &mut [f32]) {
        // SAFETY: as above.
        unsafe { attend(q, seen, scratch, out) }
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn rows(w: &Matrix, first: usize, acts: &Acts, out: &mut [f32], scratch: &mut [f32]) {
    match w.ty {
        GgmlType::Q8_0 => grid!(dot_q8_0, w, first, acts, out),
        GgmlType::Q4_0 => grid!(dot_q4_0, w, first, acts, out),
        GgmlType::Q4_1 => grid!(dot_q4_1, w, first, acts, out),
        GgmlType::Q5_0 => grid!(dot_q5_0, w, first, acts, out),
        GgmlType::Q5_1 => grid!(dot_q5_1, w, first, acts, out),
        GgmlType::Q4_K => tiles!([dot_q4_k], w, first, acts, out),
        GgmlType::Q5_K => tiles!([dot_q5_k], w, first, acts, out),
        GgmlType::Q6_K => tiles!([dot_q6_k], w, first, acts, out),
        GgmlType::F16 => tiles!([dot_f16], w, first, acts, out),
        GgmlType::F32 => tiles!([dot_f32_row], w, first, acts, out),
        _ => scalar::rows(w, first, acts, out, scratch),
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn dot_f32(a: &[f32], b: &[f32]) -> f32 {
    scalar::dot_f32(a, b)
}

#[target_feature(enable = "avx2,fma,f16c")]
fn attend(q: &[f32], seen: &Seen, scratch: &mut [f32], out: &mut [f32]) {
    attention::attend(q, seen, scratch, out);
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
    // Shifts by words of 32 bits: what comes from the byte above is masked away.
    let both = _mm256_broadcastsi128_si256(load_128(bytes));
    _mm256_and_si256(_mm256_srlv_epi32(both, _mm256_setr_epi32(0, 0, 0, 0, 4, 4, 4, 4)), _mm256_set1_epi8(15))
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

/// The sums of the eight integers of each of four registers.
#[inline]
#[target_feature(enable = "avx2")]
fn fold([a, b, c, d]: [__m256i; 4]) -> __m128i {
    let four = _mm256_hadd_epi32(_mm256_hadd_epi32(a, b), _mm256_hadd_epi32(c, d));
    _mm_add_epi32(_mm256_castsi256_si128(four), _mm256_extracti128_si256::<1>(four))
}

/// Four halves as floats.
#[inline]
#[target_feature(enable = "avx2,f16c")]
pub(super) fn quad(halves: [f16; 4]) -> __m128 {
    let bits = |i: usize| u64::from(halves[i].to_bits());
    _mm_cvtph_ps(_mm_cvtsi64_si128((bits(0) | bits(1) << 16 | bits(2) << 32 | bits(3) << 48) as i64))
}

/// Sums of products of four blocks of signed codes with four of activations.
#[inline]
#[target_feature(enable = "avx2")]
fn signed<const MORE: u32>(w: [__m256i; 4], x: &[[i8; 32]; 4], _sums: &[i16; 4]) -> __m128i {
    let ones = _mm256_set1_epi16(1);
    let of = |j: usize| _mm256_madd_epi16(pairs(w[j], _mm256_abs_epi8(w[j]), load(&x[j])), ones);
    fold([of(0), of(1), of(2), of(3)])
}

/// The same of codes that are too large by two to the power of `MORE`, and by nothing where that is 0; at most 31.
#[inline]
#[target_feature(enable = "avx2")]
fn unsigned<const MORE: u32>(w: [__m256i; 4], x: &[[i8; 32]; 4], sums: &[i16; 4]) -> __m128i {
    let ones = _mm256_set1_epi16(1);
    let of = |j: usize| _mm256_madd_epi16(_mm256_maddubs_epi16(w[j], load(&x[j])), ones);
    less::<MORE>(fold([of(0), of(1), of(2), of(3)]), sums)
}

/// Takes away what codes are too large by.
#[inline]
#[target_feature(enable = "avx2")]
fn less<const MORE: u32>(all: __m128i, sums: &[i16; 4]) -> __m128i {
    if MORE == 0 { all } else { _mm_sub_epi32(all, _mm_sll_epi32(widen(sums), _mm_cvtsi32_si128(MORE as i32))) }
}

/// `R` weight rows with `T` rows of activations, of which one is 1: `out[r + t]`, as far as `out` goes. Blocks of 32 codes go
/// four at a time; `$sums::<$more>` makes their integers. Several weight rows have sums that do not wait for each other.
macro_rules! dot_of_blocks {
    ($name:ident, $block:ty, $codes:expr, $sums:ident, $more:literal $(, $min:ident)?) => {
        #[inline]
        #[target_feature(enable = "avx2,fma,f16c")]
        fn $name<const R: usize, const T: usize>(w: &Matrix, row: usize, acts: &Acts, from: usize, out: &mut [f32]) {
            // Slices of its own: with `tiles::fours` and `Codes::fours`, whose lengths are cut first, decoding lost a tenth.
            let (mut fours, mut lasts) = ([&[][..]; R], [[<$block as bytemuck::Zeroable>::zeroed(); 4]; R]);
            let mut some_last = false;
            for r in 0..R {
                let blocks: &[$block] = bytemuck::cast_slice(w.row((row + r).min(w.rows - 1)));
                let (four, rest) = blocks.as_chunks::<4>();
                fours[r] = four;
                // What is missing of the last four is zero, there as in the activations.
                lasts[r].iter_mut().zip(rest).for_each(|(last, block)| *last = *block);
                some_last = !rest.is_empty();
            }
            let ahead = ahead(R * fours[0].len() * size_of::<[$block; 4]>());
            let mut x = [(&[][..], &[][..], &[][..]); T];
            for t in 0..T {
                let row = &acts.q8[from + t];
                x[t] = (
                    row.qs.as_chunks::<32>().0.as_chunks::<4>().0,
                    row.sums.as_chunks::<4>().0,
                    row.d.as_chunks::<4>().0,
                );
            }
            let mut strands = [[_mm_setzero_ps(); T]; R];
            let n = fours[0].len();
            for i in 0..n + usize::from(some_last) {
                for r in 0..R {
                    let four = if i < n { &fours[r][i] } else { &lasts[r] };
                    if T == 1 {
                        fetch(four, ahead);
                    }
                    let w: [__m256i; 4] = [$codes(&four[0]), $codes(&four[1]), $codes(&four[2]), $codes(&four[3])];
                    let scales = quad([four[0].d, four[1].d, four[2].d, four[3].d]);
                    $(let mins = quad([four[0].$min, four[1].$min, four[2].$min, four[3].$min]);)?
                    for t in 0..T {
                        let (qs, x_sums) = (&x[t].0[i], &x[t].1[i]);
                        let x_scales = floats(&x[t].2[i]);
                        let sums = _mm_cvtepi32_ps($sums::<$more>(w, qs, x_sums));
                        let sums = _mm_mul_ps(sums, _mm_mul_ps(scales, x_scales));
                        $(
                            // Named after the field that holds the value of code 0.
                            let $min = _mm_cvtepi32_ps(widen(x_sums));
                            let sums = _mm_add_ps(sums, _mm_mul_ps($min, _mm_mul_ps(mins, x_scales)));
                        )?
                        strands[r][t] = _mm_add_ps(strands[r][t], sums);
                    }
                }
            }
            for r in 0..R {
                for t in 0..T {
                    if let Some(out) = out.get_mut(r + t) {
                        *out = scalar::tree(strands_of(strands[r][t]));
                    }
                }
            }
        }
    };
}
/// Calls `$dot` for all rows of weights, four at a time, and the one row of activations.
macro_rules! fours {
    ($dot:ident, $w:ident, $first:ident, $acts:ident, $out:ident) => {
        (0..$out.len()).step_by(4).for_each(|r| $dot::<4, 1>($w, $first + r, $acts, 0, &mut $out[r..]))
    };
}
use fours;

/// The same of any number of rows of activations, of which several meet one row of weights at a time.
macro_rules! grid {
    ($dot:ident, $w:ident, $first:ident, $acts:ident, $out:ident) => {{
        let n = $acts.n;
        if n == 1 {
            return fours!($dot, $w, $first, $acts, $out);
        }
        for from in (0..n).step_by(TILE) {
            for (r, out) in $out.chunks_mut(n).enumerate() {
                if from + TILE <= n {
                    $dot::<1, TILE>($w, $first + r, $acts, from, &mut out[from..]);
                } else {
                    (from..n).for_each(|t| $dot::<1, 1>($w, $first + r, $acts, t, &mut out[t..]));
                }
            }
        }
    }};
}
use grid;

/// What memory takes time to bring: 4 KiB at 20 GB/s are 200 ns.
pub(super) const AHEAD: usize = 4096;

/// Bytes from what is read to what is asked for: the same place of later rows, unless they lie too far to stay in the nearest
/// cache.
#[inline(always)]
pub(super) fn ahead(rows: usize) -> usize {
    if rows <= 4 * AHEAD { AHEAD.next_multiple_of(rows.max(1)) } else { AHEAD }
}

/// Asks for what lies `ahead`: one row of activations uses up weights faster than a CPU of itself brings them.
#[inline]
#[target_feature(enable = "sse")]
pub(super) fn fetch<const N: usize, B>(blocks: &[B; N], ahead: usize) {
    for line in (0..size_of::<[B; N]>()).step_by(64) {
        // No address makes a prefetch fail, and nothing is read.
        _mm_prefetch::<_MM_HINT_T0>(blocks.as_ptr().cast::<i8>().wrapping_add(ahead + line));
    }
}

/// Four floats as a register.
#[inline]
#[target_feature(enable = "sse2")]
pub(super) fn floats(x: &[f32; 4]) -> __m128 {
    _mm_castsi128_ps(load_128(x))
}

/// Four sums as integers of 32 bits.
#[inline]
#[target_feature(enable = "sse4.1")]
pub(super) fn widen(sums: &[i16; 4]) -> __m128i {
    _mm_cvtepi16_epi32(_mm_cvtsi64_si128(bytemuck::cast::<[i16; 4], i64>(*sums)))
}

/// As the plain loops keep them.
#[inline]
#[target_feature(enable = "sse2")]
pub(super) fn strands_of(strands: __m128) -> [f32; scalar::STRANDS] {
    let mut out = [0.0; scalar::STRANDS];
    // SAFETY: `out` is 16 writable bytes.
    unsafe { _mm_storeu_ps(out.as_mut_ptr(), strands) };
    out
}

dot_of_blocks!(dot_q8_0, BlockQ8_0, codes_q8_0, signed, 0);
dot_of_blocks!(dot_q4_0, BlockQ4_0, codes_q4_0, unsigned, 3);
dot_of_blocks!(dot_q4_1, BlockQ4_1, codes_q4_1, unsigned, 0, m);
dot_of_blocks!(dot_q5_0, BlockQ5_0, codes_q5_0, unsigned, 4);
dot_of_blocks!(dot_q5_1, BlockQ5_1, codes_q5_1, unsigned, 0, m);

/// Signed codes of a block, in order.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn codes_q8_0(w: &BlockQ8_0) -> __m256i {
    load(&w.qs)
}

/// Codes as they are stored, 8 more than they mean.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn codes_q4_0(w: &BlockQ4_0) -> __m256i {
    nibbles(&w.qs)
}

/// Codes as they are stored.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn codes_q4_1(w: &BlockQ4_1) -> __m256i {
    nibbles(&w.qs)
}

/// Codes as they are stored, 16 more than they mean.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn codes_q5_0(w: &BlockQ5_0) -> __m256i {
    _mm256_or_si256(nibbles(&w.qs), fifths(w.qh))
}

/// Codes as they are stored.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn codes_q5_1(w: &BlockQ5_1) -> __m256i {
    _mm256_or_si256(nibbles(&w.qs), fifths(w.qh))
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
