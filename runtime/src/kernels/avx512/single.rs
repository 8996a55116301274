//! One row of activations: four weight rows at a time, as they are stored, four blocks of 32 codes of each. Two blocks fill a
//! register, and the sums of all sixteen are folded into one: its quarters are the weight rows, their lanes the four strands that
//! the plain loops have, so the bits are theirs. What follows is then done once for four rows: scales are picked out of the
//! blocks by permutation, not one by one.

use std::arch::x86_64::*;
use std::mem::offset_of;

use crate::format::block::{BlockQ4_0, BlockQ4_1, BlockQ5_0, BlockQ5_1, BlockQ8_0};
use crate::kernels::acts::Acts;
use crate::kernels::avx2::{self, widen};
use crate::kernels::{Matrix, scalar};

/// Weight rows at a time.
pub(super) const ROWS: usize = 4;

/// Blocks of 32 codes.
pub(super) trait Single: bytemuck::AnyBitPattern {
    /// Codes of [`Single::pair`] are too large by two to the power of this; by nothing where it is 0.
    const MORE: u32;
    /// Where a block's scale stands.
    const D: usize;
    /// Where its value of code 0 stands, if it does.
    const MIN: Option<usize>;
    /// Unsigned codes of two blocks.
    fn pair(a: &Self, b: &Self) -> __m512i;
}

macro_rules! single {
    ($($block:ty, $more:literal, $min:expr, |$a:ident, $b:ident| $pair:expr;)*) => { $(
        impl Single for $block {
            const MORE: u32 = $more;
            const D: usize = offset_of!($block, d);
            const MIN: Option<usize> = $min;
            #[inline(always)]
            fn pair($a: &Self, $b: &Self) -> __m512i {
                // SAFETY: only `rows` calls it, which is compiled for AVX-512.
                unsafe { $pair }
            }
        }
    )* };
}
single! {
    BlockQ8_0, 7, None, |a, b| bytes(&a.qs, &b.qs);
    BlockQ4_0, 3, None, |a, b| nibbles(&a.qs, &b.qs);
    BlockQ4_1, 0, Some(offset_of!(BlockQ4_1, m)), |a, b| nibbles(&a.qs, &b.qs);
    BlockQ5_0, 4, None, |a, b| fifths(nibbles(&a.qs, &b.qs), a.qh, b.qh);
    BlockQ5_1, 0, Some(offset_of!(BlockQ5_1, m)), |a, b| fifths(nibbles(&a.qs, &b.qs), a.qh, b.qh);
}

/// Signed bytes plus 128.
#[inline]
#[target_feature(enable = "avx512f")]
fn bytes(a: &[i8; 32], b: &[i8; 32]) -> __m512i {
    // SAFETY: each reference makes 32 bytes readable, and the loads need no alignment.
    let (a, b) = unsafe { (_mm256_loadu_si256(a.as_ptr().cast()), _mm256_loadu_si256(b.as_ptr().cast())) };
    _mm512_xor_si512(_mm512_inserti64x4::<1>(_mm512_castsi256_si512(a), b), _mm512_set1_epi8(-128))
}

/// Low nibbles of 16 bytes, then the high ones; of `a`, then of `b`.
#[inline]
#[target_feature(enable = "avx512f")]
fn nibbles(a: &[u8; 16], b: &[u8; 16]) -> __m512i {
    let both = _mm512_mask_broadcast_i32x4(_mm512_broadcast_i32x4(load_16(a)), 0xff00, load_16(b));
    // Shifts by words of 32 bits: what comes from the byte above is masked away.
    let shifts = _mm512_setr_epi32(0, 0, 0, 0, 4, 4, 4, 4, 0, 0, 0, 0, 4, 4, 4, 4);
    _mm512_and_si512(_mm512_srlv_epi32(both, shifts), _mm512_set1_epi8(15))
}

/// 16 more where the fifth bit is set.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn fifths(codes: __m512i, a: [u8; 4], b: [u8; 4]) -> __m512i {
    let set = u64::from(u32::from_le_bytes(a)) | u64::from(u32::from_le_bytes(b)) << 32;
    _mm512_mask_add_epi8(codes, set, codes, _mm512_set1_epi8(16))
}

/// 64 bytes of four blocks, from byte `at` on.
#[inline]
#[target_feature(enable = "avx512f")]
fn line<B>(four: &[B; 4], at: usize) -> __m512i {
    assert!(at + 64 <= size_of::<[B; 4]>());
    // SAFETY: these bytes lie within the reference, as was just seen, and the load needs no alignment.
    unsafe { _mm512_loadu_si512((&raw const *four).cast::<u8>().wrapping_add(at).cast()) }
}

/// Where the halves of four blocks lie that stand `at` bytes from the start of each.
struct Places {
    /// In the first 64 bytes, or in the 64 from `start` on.
    words: [i16; 4],
    /// Those that lie in the latter, a bit each.
    later: u32,
    start: usize,
}

const fn places(block: usize, at: usize) -> Places {
    let mut places = Places { words: [0; 4], later: 0, start: 4 * block - 64 };
    let mut j = 0;
    while j < 4 {
        let byte = j * block + at;
        if byte + 2 > 64 && places.later == 0 && byte < places.start {
            places.start = byte;
        }
        if byte + 2 > 64 {
            places.later |= 1 << j;
        }
        let start = if byte + 2 > 64 { places.start } else { 0 };
        places.words[j] = ((byte - start) / 2) as i16;
        j += 1;
    }
    places
}

/// The halves that stand `at` bytes from the start of each block, as floats: a quarter a row.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn halves<B: Single>(rows: [&[B; 4]; ROWS], at: usize) -> __m512 {
    let Places { words, later, start } = places(size_of::<B>(), at);
    let index = _mm512_set1_epi64(bytemuck::cast::<[i16; 4], i64>(words));
    let mut all = _mm512_setzero_si512();
    for (r, four) in rows.into_iter().enumerate() {
        all = _mm512_mask_permutexvar_epi16(all, (!later & 15) << (4 * r), index, line(four, 0));
        if later != 0 {
            all = _mm512_mask_permutexvar_epi16(all, later << (4 * r), index, line(four, start));
        }
    }
    _mm512_cvtph_ps(_mm512_castsi512_si256(all))
}

/// [`fold`]'s order of blocks 0 to 3.
const IN_ORDER: [i32; 16] = [0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15];

/// The sums of each eight integers. `pairs[r]` is row r: blocks 0 and 1, blocks 2 and 3. Quarter r of what comes out has its
/// four, as `order` picks them.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn fold(pairs: [[__m512i; 2]; ROWS], order: [i32; 16]) -> __m512i {
    // Of blocks 0 and 2 in the lower half, 1 and 3 in the upper: two sums of each in every quarter, still of half a block.
    let two = |[a, b]: [__m512i; 2]| _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
    let one = |a: __m512i, b: __m512i| _mm512_add_epi32(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b));
    let [r0, r1, r2, r3] = pairs;
    let (low, high) = (one(two(r0), two(r1)), one(two(r2), two(r3)));
    let whole = _mm512_add_epi32(
        _mm512_shuffle_i32x4::<0b10_00_10_00>(low, high),
        _mm512_shuffle_i32x4::<0b11_01_11_01>(low, high),
    );
    // SAFETY: `order` is 64 readable bytes.
    _mm512_permutexvar_epi32(unsafe { _mm512_loadu_si512(order.as_ptr().cast()) }, whole)
}

/// Adds up the strands of each row.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn sums_of(strands: __m512, out: &mut [f32]) {
    let mut lanes = [0.0; 16];
    // SAFETY: `lanes` is 64 writable bytes.
    unsafe { _mm512_storeu_ps(lanes.as_mut_ptr(), strands) };
    for (out, strands) in out.iter_mut().zip(lanes.as_chunks::<{ scalar::STRANDS }>().0) {
        *out = scalar::tree(*strands);
    }
}

#[inline]
#[target_feature(enable = "sse2")]
pub(super) fn load_16(bytes: &[u8; 16]) -> __m128i {
    // SAFETY: the reference makes 16 bytes readable, and the load needs no alignment.
    unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) }
}

/// Rows `first..` of `w`, whose blocks are `B`, times the one row of activations.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,f16c")]
pub(super) fn rows<B: Single>(w: &Matrix, first: usize, acts: &Acts, out: &mut [f32]) {
    let x = &acts.q8[0];
    let (qs, _) = x.qs.as_chunks::<64>();
    let (qs, sums, d) = (qs.as_chunks::<2>().0, x.sums.as_chunks::<4>().0, x.d.as_chunks::<4>().0);
    for (i, out) in out.chunks_mut(ROWS).enumerate() {
        let row = first + i * ROWS;
        let (mut whole, mut lasts, mut some_last) = ([&[][..]; ROWS], [[B::zeroed(); 4]; ROWS], false);
        for r in 0..ROWS {
            let blocks: &[B] = bytemuck::cast_slice(w.row((row + r).min(w.rows - 1)));
            let (fours, rest) = blocks.as_chunks::<4>();
            whole[r] = fours;
            // What is missing of the last four is zero, there as in the activations.
            lasts[r].iter_mut().zip(rest).for_each(|(last, block)| *last = *block);
            some_last = !rest.is_empty();
        }
        let n = whole[0].len();
        let ahead = avx2::ahead(ROWS * n * size_of::<[B; 4]>());
        let mut strands = _mm512_setzero_ps();
        for i in 0..n + usize::from(some_last) {
            let mut fours = [&lasts[0]; ROWS];
            for r in 0..ROWS {
                fours[r] = if i < n { &whole[r][i] } else { &lasts[r] };
            }
            let x_qs = [super::load(&qs[i][0]), super::load(&qs[i][1])];
            let mut pairs = [[_mm512_setzero_si512(); 2]; ROWS];
            for r in 0..ROWS {
                let [a, b, c, d] = fours[r];
                avx2::fetch(fours[r], ahead);
                pairs[r][0] = _mm512_dpbusd_epi32(pairs[r][0], B::pair(a, b), x_qs[0]);
                pairs[r][1] = _mm512_dpbusd_epi32(pairs[r][1], B::pair(c, d), x_qs[1]);
            }
            let x_sums = _mm512_broadcast_i32x4(widen(&sums[i]));
            let x_d = _mm512_broadcast_f32x4(avx2::floats(&d[i]));
            let mut codes = fold(pairs, IN_ORDER);
            if B::MORE > 0 {
                codes = _mm512_sub_epi32(codes, _mm512_sll_epi32(x_sums, _mm_cvtsi32_si128(B::MORE as i32)));
            }
            let mut sum = _mm512_mul_ps(_mm512_cvtepi32_ps(codes), _mm512_mul_ps(halves(fours, B::D), x_d));
            if let Some(at) = B::MIN {
                let min = _mm512_mul_ps(_mm512_cvtepi32_ps(x_sums), _mm512_mul_ps(halves(fours, at), x_d));
                sum = _mm512_add_ps(sum, min);
            }
            strands = _mm512_add_ps(strands, sum);
        }
        sums_of(strands, out);
    }
}
