//! One row of activations: four weight rows at a time, as they are stored, a block of 256 codes of each. As in
//! [`single`](super::single) their sums come to stand in one register, a row in each quarter with its four strands. Products of
//! bytes are made in pairs, and pairs meet the scales of their shares as words of 16 bits.

use std::arch::x86_64::*;

use super::single::{ROWS, fold, load_16, sums_of};
use crate::format::block::{BlockQ4K, BlockQ5K, BlockQ6K};
use crate::kernels::Matrix;
use crate::kernels::acts::Acts;
use crate::kernels::avx2::{AHEAD, fetch, quad};

/// Blocks of eight shares of 32 unsigned codes, with scales and mins of six bits.
pub(super) trait Shares: bytemuck::AnyBitPattern {
    /// Scales, and below them what they are scaled by: the block's first bytes.
    fn head(&self) -> &[u8; 16];
    /// Codes of shares 0 and 2, 1 and 3 of a half.
    fn codes(&self, half: usize) -> [__m512i; 2];
}

impl Shares for BlockQ4K {
    #[inline(always)]
    fn head(&self) -> &[u8; 16] {
        &bytemuck::cast_ref::<Self, [[u8; 16]; 9]>(self)[0]
    }
    #[inline(always)]
    fn codes(&self, half: usize) -> [__m512i; 2] {
        // SAFETY: only `shares` calls it, which is compiled for AVX-512.
        unsafe { nibbles(&self.qs.as_chunks::<64>().0[half]) }
    }
}

impl Shares for BlockQ5K {
    #[inline(always)]
    fn head(&self) -> &[u8; 16] {
        &bytemuck::cast_ref::<Self, [[u8; 16]; 11]>(self)[0]
    }
    #[inline(always)]
    fn codes(&self, half: usize) -> [__m512i; 2] {
        // SAFETY: as above.
        unsafe { fifths(nibbles(&self.qs.as_chunks::<64>().0[half]), &self.qh, half) }
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load_64(bytes: &[u8; 64]) -> __m512i {
    super::load(bytemuck::cast_ref(bytes))
}

/// The same 32 bytes in both halves.
#[inline]
#[target_feature(enable = "avx512f")]
fn twice(bytes: &[u8; 32]) -> __m512i {
    // SAFETY: the reference makes 32 bytes readable, and the load needs no alignment.
    _mm512_broadcast_i64x4(unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) })
}

/// Low nibbles, and high ones.
#[inline]
#[target_feature(enable = "avx512f")]
fn nibbles(both: &[u8; 64]) -> [__m512i; 2] {
    let (both, low) = (load_64(both), _mm512_set1_epi8(15));
    [_mm512_and_si512(both, low), _mm512_and_si512(_mm512_srli_epi32::<4>(both), low)]
}

/// 16 more where the bit of a code's share is set.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn fifths([even, odd]: [__m512i; 2], qh: &[u8; 32], half: usize) -> [__m512i; 2] {
    let (qh, more) = (twice(qh), _mm512_set1_epi8(16));
    let bits = |share: usize| {
        let bit = |share: usize| _mm256_set1_epi8((1u8 << (4 * half + share)) as i8);
        _mm512_inserti64x4::<1>(_mm512_castsi256_si512(bit(share)), bit(share + 2))
    };
    [
        _mm512_mask_add_epi8(even, _mm512_test_epi8_mask(qh, bits(0)), even, more),
        _mm512_mask_add_epi8(odd, _mm512_test_epi8_mask(qh, bits(1)), odd, more),
    ]
}

/// The same four words of 32 bits in every quarter.
#[inline]
#[target_feature(enable = "avx512f")]
fn quarters(words: [u32; 4]) -> __m512i {
    _mm512_broadcast_i32x4(load_16(&bytemuck::cast(words)))
}

/// Words of 16 bits: `word(i)` for each of the 32.
#[inline(always)]
fn words(word: impl Fn(usize) -> usize) -> [u8; 64] {
    let mut words = [0i16; 32];
    for (i, w) in words.iter_mut().enumerate() {
        *w = word(i) as i16;
    }
    bytemuck::cast(words)
}

/// The blocks of four rows, from row `row` on; behind the last row it comes again.
#[inline(always)]
fn blocks_of<'a, B: bytemuck::AnyBitPattern>(w: &Matrix<'a>, row: usize) -> [&'a [B]; ROWS] {
    let mut rows = [&[][..]; ROWS];
    for (r, blocks) in rows.iter_mut().enumerate() {
        *blocks = bytemuck::cast_slice(w.row((row + r).min(w.rows - 1)));
    }
    rows
}

/// Rows `first..` of `w`, whose blocks are `B`, times the one row of activations.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,f16c")]
pub(super) fn shares<B: Shares>(w: &Matrix, first: usize, acts: &Acts, out: &mut [f32]) {
    let x = &acts.q8k[0];
    let (qs, x_sums) = (x.qs.as_chunks::<64>().0.as_chunks::<4>().0, x.sums.as_chunks::<8>().0);
    for (i, out) in out.chunks_mut(ROWS).enumerate() {
        let rows = blocks_of::<B>(w, first + i * ROWS);
        let mut strands = _mm512_setzero_ps();
        for b in 0..rows[0].len() {
            let mut head = _mm512_setzero_si512();
            for r in 0..ROWS {
                fetch(std::array::from_ref(&rows[r][b]), AHEAD);
                head = _mm512_mask_broadcast_i32x4(head, 0xf << (4 * r), load_16(rows[r][b].head()));
            }
            // As `scalar::scales_mins` has it, for four rows: eight scales low in a quarter, eight mins high.
            let low = _mm512_srlv_epi32(_mm512_shuffle_epi32::<0b11_10_11_01>(head), quarters([0, 0, 0, 4]));
            let low = _mm512_and_si512(low, quarters([0x3f3f_3f3f, 0x0f0f_0f0f, 0x3f3f_3f3f, 0x0f0f_0f0f]));
            let high = _mm512_srli_epi32::<2>(_mm512_shuffle_epi32::<0b10_00_01_00>(head));
            let high = _mm512_and_si512(high, quarters([0, 0x3030_3030, 0, 0x3030_3030]));
            let both = _mm512_or_si512(low, high);
            let scales = _mm512_unpacklo_epi8(both, _mm512_setzero_si512());
            let mins = _mm512_unpackhi_epi8(both, _mm512_setzero_si512());
            let mut sums = [[_mm512_setzero_si512(); 2]; ROWS];
            for half in 0..2 {
                let (a, c) = (super::load(&qs[b][2 * half]), super::load(&qs[b][2 * half + 1]));
                let x = [_mm512_shuffle_i64x2::<0b01_00_01_00>(a, c), _mm512_shuffle_i64x2::<0b11_10_11_10>(a, c)];
                for r in 0..ROWS {
                    let codes = rows[r][b].codes(half);
                    for odd in 0..2 {
                        let pairs = _mm512_maddubs_epi16(codes[odd], x[odd]);
                        let at = load_64(&words(|i| 8 * r + 4 * half + odd + i / 16 * 2));
                        let scale = _mm512_permutexvar_epi16(at, scales);
                        sums[r][odd] = _mm512_dpwssd_epi32(sums[r][odd], pairs, scale);
                    }
                }
            }
            let half_at = |word: usize| {
                let at = load_64(&words(|i| i / 4 * 8 % 32 + word));
                _mm512_cvtph_ps(_mm512_castsi512_si256(_mm512_permutexvar_epi16(at, head)))
            };
            let x_d = _mm512_set1_ps(x.d[b]);
            let sum = fold(sums, [0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15]);
            let sum = _mm512_mul_ps(_mm512_cvtepi32_ps(sum), _mm512_mul_ps(half_at(0), x_d));
            let min = _mm512_madd_epi16(mins, _mm512_broadcast_i32x4(load_16(bytemuck::cast_ref(&x_sums[b]))));
            let min = _mm512_mul_ps(_mm512_cvtepi32_ps(min), _mm512_mul_ps(half_at(1), x_d));
            strands = _mm512_sub_ps(_mm512_add_ps(strands, sum), min);
        }
        sums_of(strands, out);
    }
}

/// The same of Q6_K: sixteen shares of 16 codes, which mean 32 less than they say, with signed scales.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,f16c")]
pub(super) fn sixteens(w: &Matrix, first: usize, acts: &Acts, out: &mut [f32]) {
    let x = &acts.q8k[0];
    let qs = x.qs.as_chunks::<64>().0.as_chunks::<4>().0;
    for (i, out) in out.chunks_mut(ROWS).enumerate() {
        let rows = blocks_of::<BlockQ6K>(w, first + i * ROWS);
        let mut strands = _mm512_setzero_ps();
        for b in 0..rows[0].len() {
            let (mut x_qs, mut thirty_two) = ([_mm512_setzero_si512(); 4], [_mm512_setzero_si512(); 4]);
            for k in 0..4 {
                x_qs[k] = super::load(&qs[b][k]);
                thirty_two[k] = _mm512_maddubs_epi16(_mm512_set1_epi8(32), x_qs[k]);
            }
            let mut sums = [_mm512_setzero_si512(); ROWS];
            for r in 0..ROWS {
                let w = &rows[r][b];
                fetch(std::array::from_ref(w), AHEAD);
                let scales = load_16(bytemuck::cast_ref::<[i8; 16], [u8; 16]>(&w.scales));
                let scales = _mm512_castsi256_si512(_mm256_cvtepi8_epi16(scales));
                for half in 0..2 {
                    let ql = load_64(&w.ql.as_chunks::<64>().0[half]);
                    let qh = twice(&w.qh.as_chunks::<32>().0[half]);
                    // Bits 0 and 1, 2 and 3 of `qh` go above the low nibbles, bits 4 and 5, 6 and 7 above the high ones.
                    let shifts = |a: i32, b: i32| _mm512_setr_epi32(a, a, a, a, a, a, a, a, b, b, b, b, b, b, b, b);
                    let join = |low: __m512i, high: __m512i| {
                        let code = _mm512_ternarylogic_epi32::<0xca>(_mm512_set1_epi8(15), low, high);
                        _mm512_and_si512(code, _mm512_set1_epi8(63))
                    };
                    let codes = [
                        join(ql, _mm512_sllv_epi32(qh, shifts(4, 2))),
                        join(_mm512_srli_epi32::<4>(ql), _mm512_srlv_epi32(qh, shifts(0, 2))),
                    ];
                    for odd in 0..2 {
                        let k = 2 * half + odd;
                        let pairs = _mm512_sub_epi16(_mm512_maddubs_epi16(codes[odd], x_qs[k]), thirty_two[k]);
                        let scale = _mm512_permutexvar_epi16(load_64(&words(|i| 4 * k + i / 8)), scales);
                        sums[r] = _mm512_dpwssd_epi32(sums[r], pairs, scale);
                    }
                }
            }
            // A quarter is a strand here; adding up within it brings the rows beside each other.
            let add =
                |a: __m512i, b: __m512i| _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
            let (a, c) = (add(sums[0], sums[1]), add(sums[2], sums[3]));
            let sum = _mm512_add_epi32(_mm512_unpacklo_epi64(a, c), _mm512_unpackhi_epi64(a, c));
            let turned = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
            let sum = _mm512_cvtepi32_ps(_mm512_permutexvar_epi32(turned, sum));
            let d = quad([rows[0][b].d, rows[1][b].d, rows[2][b].d, rows[3][b].d]);
            let by_row = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
            let d = _mm512_permutexvar_ps(by_row, _mm512_castps128_ps512(d));
            strands = _mm512_add_ps(strands, _mm512_mul_ps(sum, _mm512_mul_ps(d, _mm512_set1_ps(x.d[b]))));
        }
        sums_of(strands, out);
    }
}
