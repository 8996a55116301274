//! f32 rows become block bytes, one format a file: formula, search, and tests of the error it may leave.
//!
//! Every encoder gives the bytes of ggml's reference quantizer (`quantize_row_*_ref` in `ggml-quants.c`; of `quantize_iq4_*` for
//! those two), and with an importance for each column those of its quantizers with an importance matrix: sums run in element order, nothing is fused, and halves round to even where ggml adds `1.5 * 2^23`.
//! Decoding lives in [`edgeft_runtime::format::block`]; the tests here end in it.
//!
//! Two things differ from ggml on purpose. A value that is not finite is refused, and so is one whose block scale would
//! not fit in f16; ggml writes an infinite scale and leaves it to the reader to notice.

mod best;
pub mod float;
mod iq4;
pub mod k_search;
mod lanes;
pub mod q2_k;
pub mod q3_k;
pub mod q4_0;
pub mod q4_1;
pub mod q4_k;
pub mod q5_0;
pub mod q5_1;
pub mod q5_k;
pub mod q6_k;
pub mod q8_0;
mod weighted;

pub use best::{encode_best_into, searches};
pub use weighted::{encode_weighted_into, uses_importance};

use bytemuck::Pod;
use edgeft_runtime::format::GgmlType;
use half::f16;

/// Why a row could not be encoded. Positions count elements from the start of the slice.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
pub enum CodecError {
    /// The slice is not a whole number of blocks.
    #[error("{n} elements are not a whole number of {ty} blocks of {}", ty.block_len())]
    Length {
        /// Type asked for.
        ty: GgmlType,
        /// Elements given.
        n: usize,
    },
    /// NaN or an infinity.
    #[error("element {at} is {value}, which no type can hold")]
    NotFinite {
        /// Where.
        at: usize,
        /// What.
        value: f32,
    },
    /// Finite, but the block's f16 scale (or the element itself, in f16 and bf16) would be infinite.
    #[error("element {at} is {value:e}, too large for {ty}")]
    TooLarge {
        /// Type asked for.
        ty: GgmlType,
        /// The largest element of the block that overflows.
        at: usize,
        /// What.
        value: f32,
    },
}

impl CodecError {
    /// What is wrong with the element, for callers that know a better name for its place.
    pub fn problem(&self) -> String {
        match self {
            Self::NotFinite { value, .. } => format!("{value} is a value that no type can hold"),
            Self::TooLarge { ty, value, .. } => format!("{value:e} is too large for {ty}"),
            Self::Length { .. } => self.to_string(),
        }
    }
}

/// Types that [`encode`] writes.
pub const WRITTEN: [GgmlType; 15] = [
    GgmlType::F32,
    GgmlType::F16,
    GgmlType::BF16,
    GgmlType::Q8_0,
    GgmlType::Q4_0,
    GgmlType::Q4_1,
    GgmlType::Q5_0,
    GgmlType::Q5_1,
    GgmlType::Q2_K,
    GgmlType::Q3_K,
    GgmlType::Q4_K,
    GgmlType::Q5_K,
    GgmlType::Q6_K,
    GgmlType::IQ4_NL,
    GgmlType::IQ4_XS,
];

/// Appends `x` as blocks of `ty` to `out`; `out` is unchanged when this fails.
///
/// # Errors
/// [`CodecError`]: a length that is not whole blocks, a value that is not finite or too large.
pub fn encode(ty: GgmlType, x: &[f32], out: &mut Vec<u8>) -> Result<(), CodecError> {
    let bytes = ty.row_bytes(x.len()).ok_or(CodecError::Length { ty, n: x.len() })?;
    let start = out.len();
    out.resize(start + bytes, 0);
    encode_into(ty, x, &mut out[start..]).inspect_err(|_| out.truncate(start))
}

/// Writes `x` as blocks of `ty` over `out`, which must have exactly `ty.row_bytes(x.len())` bytes.
///
/// # Errors
/// As [`encode`]; `out` may then hold part of the blocks.
///
/// # Panics
/// When `out` has another size.
pub fn encode_into(ty: GgmlType, x: &[f32], out: &mut [u8]) -> Result<(), CodecError> {
    let bytes = ty.row_bytes(x.len()).ok_or(CodecError::Length { ty, n: x.len() })?;
    assert_eq!(out.len(), bytes, "bytes for {} elements of {ty}", x.len());
    finite(x)?;
    match ty {
        GgmlType::F32 => blocks(ty, x, out, float::f32),
        GgmlType::F16 => blocks(ty, x, out, float::f16),
        GgmlType::BF16 => blocks(ty, x, out, float::bf16),
        GgmlType::Q8_0 => blocks(ty, x, out, q8_0::encode),
        GgmlType::Q4_0 => blocks(ty, x, out, q4_0::encode),
        GgmlType::Q4_1 => blocks(ty, x, out, q4_1::encode),
        GgmlType::Q5_0 => blocks(ty, x, out, q5_0::encode),
        GgmlType::Q5_1 => blocks(ty, x, out, q5_1::encode),
        GgmlType::Q2_K => blocks(ty, x, out, q2_k::encode),
        GgmlType::Q3_K => blocks(ty, x, out, q3_k::encode),
        GgmlType::Q4_K => pairs(ty, x, out, q4_k::encode_two, q4_k::encode),
        GgmlType::Q5_K => pairs(ty, x, out, q5_k::encode_two, q5_k::encode),
        GgmlType::Q6_K => blocks(ty, x, out, q6_k::encode),
        GgmlType::IQ4_NL => blocks(ty, x, out, |x| iq4::encode_nl(x, None)),
        GgmlType::IQ4_XS => blocks(ty, x, out, |x| iq4::encode_xs(x, None)),
    }
}

/// Marker that a scale does not fit in f16; [`blocks`] turns it into [`CodecError::TooLarge`].
#[derive(Debug)]
pub struct Overflow;

/// `d` as f16, refused when it would be infinite.
fn scale(d: f32) -> Result<f16, Overflow> {
    Some(f16::from_f32(d)).filter(|h| h.is_finite()).ok_or(Overflow)
}

/// Largest magnitude that blocks of `ty` reach: the largest f16 scale times the largest integers beside it. Beyond it the
/// searches would square their way to infinity before any scale is rounded.
fn largest(ty: GgmlType) -> f32 {
    let steps = match ty {
        GgmlType::Q8_0 => 127.0,
        GgmlType::Q2_K => 15.0 * 3.0 + 15.0,
        GgmlType::Q3_K => 32.0 * 4.0,
        GgmlType::Q4_K => 63.0 * 15.0 + 63.0,
        GgmlType::Q5_K => 63.0 * 31.0 + 63.0,
        GgmlType::Q6_K => 128.0 * 32.0,
        GgmlType::IQ4_NL => 127.0,
        GgmlType::IQ4_XS => 32.0 * 127.0,
        _ => return f32::MAX,
    };
    steps * f16::MAX.to_f32()
}

/// # Errors
/// The first value that is not finite.
fn finite(x: &[f32]) -> Result<(), CodecError> {
    const EXPONENT: u32 = 0x7f80_0000;
    for (i, part) in x.chunks(64).enumerate() {
        // Without a branch for each value, so that vectors of them are looked at.
        let any = part.iter().fold(false, |any, v| any | (v.to_bits() & EXPONENT == EXPONENT));
        if any && let Some(j) = part.iter().position(|v| !v.is_finite()) {
            return Err(CodecError::NotFinite { at: 64 * i + j, value: part[j] });
        }
    }
    Ok(())
}

/// The largest magnitude. Bits of positive floats are in the order of their values, and integers need no care for NaN.
#[inline(always)]
fn magnitude(x: &[f32]) -> f32 {
    f32::from_bits(x.iter().fold(0, |m, v| m.max(v.to_bits() & 0x7fff_ffff)))
}

/// The block's error for a scale that overflows, at its largest element.
fn too_large<const N: usize>(ty: GgmlType, i: usize, block: &[f32; N]) -> CodecError {
    let (at, _) = block.iter().enumerate().fold((0, 0f32), |m, (j, v)| if v.abs() > m.1 { (j, v.abs()) } else { m });
    CodecError::TooLarge { ty, at: i * N + at, value: block[at] }
}

/// Runs `two` over pairs of super-blocks, and `one` over the last of an odd number.
fn pairs<B: Pod>(
    ty: GgmlType,
    x: &[f32],
    out: &mut [u8],
    two: impl Fn(&[[f32; 256]; 2]) -> [Result<B, Overflow>; 2],
    one: impl Fn(&[f32; 256]) -> Result<B, Overflow>,
) -> Result<(), CodecError> {
    let limit = largest(ty);
    let (paired, rest) = x.as_chunks::<256>().0.as_chunks::<2>();
    let (paired_out, rest_out) = out.split_at_mut(2 * paired.len() * size_of::<B>());
    for (i, (pair, bytes)) in paired.iter().zip(paired_out.chunks_exact_mut(2 * size_of::<B>())).enumerate() {
        let fits = pair.iter().all(|block| magnitude(block) <= limit);
        let encoded = if fits { two(pair) } else { [one_of(&pair[0], limit, &one), one_of(&pair[1], limit, &one)] };
        for (j, (encoded, bytes)) in encoded.into_iter().zip(bytes.chunks_exact_mut(size_of::<B>())).enumerate() {
            let block = encoded.map_err(|Overflow| too_large(ty, 2 * i + j, &pair[j]))?;
            bytes.copy_from_slice(bytemuck::bytes_of(&block));
        }
    }
    if let ([block], bytes) = (rest, rest_out) {
        let encoded = one_of(block, limit, &one).map_err(|Overflow| too_large(ty, 2 * paired.len(), block))?;
        bytes.copy_from_slice(bytemuck::bytes_of(&encoded));
    }
    Ok(())
}

fn one_of<const N: usize, B>(
    block: &[f32; N],
    limit: f32,
    f: impl Fn(&[f32; N]) -> Result<B, Overflow>,
) -> Result<B, Overflow> {
    if magnitude(block) > limit { Err(Overflow) } else { f(block) }
}

/// Runs `f` over whole blocks of `N`; `out` has one `B` a block.
fn blocks<const N: usize, B: Pod>(
    ty: GgmlType,
    x: &[f32],
    out: &mut [u8],
    f: impl Fn(&[f32; N]) -> Result<B, Overflow>,
) -> Result<(), CodecError> {
    blocks_with(ty, x, out, |_, x| f(x))
}

/// The same for an `f` that asks which block it is.
fn blocks_with<const N: usize, B: Pod>(
    ty: GgmlType,
    x: &[f32],
    out: &mut [u8],
    f: impl Fn(usize, &[f32; N]) -> Result<B, Overflow>,
) -> Result<(), CodecError> {
    debug_assert_eq!((N, size_of::<B>()), (ty.block_len(), ty.block_bytes()));
    let limit = largest(ty);
    let (rows, _) = x.as_chunks::<N>();
    for (i, (block, bytes)) in rows.iter().zip(out.chunks_exact_mut(size_of::<B>())).enumerate() {
        let encoded = one_of(block, limit, |block| f(i, block)).map_err(|Overflow| too_large(ty, i, block))?;
        bytes.copy_from_slice(bytemuck::bytes_of(&encoded));
    }
    Ok(())
}

/// The element of largest magnitude with its sign, the first of equals; 0 for zeros.
fn signed_max(x: &[f32]) -> f32 {
    x.iter().fold(0f32, |m, &v| if v.abs() > m.abs() { v } else { m })
}

/// Smallest and largest element.
fn min_max(x: &[f32]) -> (f32, f32) {
    x.iter().fold((f32::MAX, -f32::MAX), |(lo, hi), &v| (if v < lo { v } else { lo }, if v > hi { v } else { hi }))
}

/// `1 / d`, or 0 for 0: a block of equal values then encodes as zeros.
fn inverse(d: f32) -> f32 {
    if d == 0.0 { 0.0 } else { 1.0 / d }
}

/// Truncates as x86-64 does: what does not fit in 32 bits becomes the smallest integer. Reached only when a subnormal scale
/// has an infinite inverse; the scale is then 0 in f16, and the integers only have to be the same everywhere.
fn truncate(v: f32) -> i32 {
    if (-2_147_483_648.0..2_147_483_648.0).contains(&v) { v as i32 } else { i32::MIN }
}

#[cfg(test)]
mod golden;

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use edgeft_runtime::format::block::decode;
    use proptest::prelude::*;

    /// A round trip through `ty`.
    pub(crate) fn round_trip(ty: GgmlType, x: &[f32]) -> Vec<f32> {
        let mut bytes = Vec::new();
        encode(ty, x, &mut bytes).unwrap();
        let mut y = vec![0.0; x.len()];
        decode(ty, &bytes, &mut y);
        y
    }

    /// Deterministic values that look like weights: a sum of uniform draws, a few of them far out.
    pub(crate) fn weights(n: usize, seed: u64) -> Vec<f32> {
        let mut s = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut uniform = move || {
            s ^= s << 13;
            s ^= s >> 7;
            s ^= s << 17;
            (s >> 40) as f32 / (1u64 << 24) as f32 - 0.5
        };
        (0..n)
            .map(|i| {
                let v = (0..6).map(|_| uniform()).sum::<f32>() * 0.05;
                if i % 97 == 0 { v * 6.0 } else { v }
            })
            .collect()
    }

    #[test]
    fn zeros_stay_zeros_in_every_type() {
        for ty in WRITTEN {
            assert_eq!(round_trip(ty, &[0.0; 512]), [0.0; 512], "{ty}");
        }
    }

    #[test]
    fn equal_values_survive_within_the_scale_rounding() {
        // One f16 scale (11 bits) and, in K types, a six-bit scale and a min: equal values sit on the extreme code.
        for ty in WRITTEN {
            for v in [1.0f32, -1.0, 0.037, -3.25] {
                for y in round_trip(ty, &[v; 256]) {
                    assert!((y - v).abs() <= v.abs() * 0.01, "{ty}: {v} -> {y}");
                }
            }
        }
    }

    #[test]
    fn a_row_that_is_not_whole_blocks_is_refused_and_leaves_nothing() {
        let mut out = vec![7];
        let e = encode(GgmlType::Q4_K, &[0.0; 288], &mut out).unwrap_err();
        assert_eq!(e.to_string(), "288 elements are not a whole number of q4_k blocks of 256");
        assert_eq!(out, [7]);
    }

    #[test]
    fn nan_and_infinity_are_refused_by_position() {
        for ty in WRITTEN {
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let mut x = vec![0.5; 512];
                x[300] = bad;
                let mut out = vec![1, 2];
                let e = encode(ty, &x, &mut out).unwrap_err();
                assert!(matches!(e, CodecError::NotFinite { at: 300, .. }), "{ty}: {e}");
                assert_eq!(out, [1, 2], "{ty}");
            }
        }
    }

    #[test]
    fn values_beyond_the_scale_are_refused_by_position() {
        for ty in WRITTEN.into_iter().filter(|t| !matches!(t, GgmlType::F32)) {
            let mut x = vec![0.5; 512];
            x[301] = -3.4e38;
            let e = encode(ty, &x, &mut Vec::new()).unwrap_err();
            assert_eq!(e, CodecError::TooLarge { ty, at: 301, value: -3.4e38 });
        }
    }

    #[test]
    fn subnormal_blocks_do_not_turn_into_noise() {
        // 1e-40 has a subnormal inverse overflow: the scale is 0 in f16, so every element must decode to 0.
        for ty in WRITTEN.into_iter().filter(|t| !matches!(t, GgmlType::F32 | GgmlType::BF16)) {
            let x: Vec<f32> = (0..256).map(|i| (i as f32 - 128.0) * 1e-42).collect();
            assert_eq!(round_trip(ty, &x), [0.0; 256], "{ty}");
        }
    }

    #[test]
    fn more_bits_leave_less_error() {
        let x = weights(4096, 11);
        let rms = |ty| {
            let y = round_trip(ty, &x);
            (x.iter().zip(&y).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>() / x.len() as f64).sqrt()
        };
        use GgmlType::*;
        for order in [&[Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, Q8_0, F16, F32][..], &[Q4_0, Q4_1, Q5_0, Q5_1, Q8_0]] {
            for pair in order.windows(2) {
                assert!(rms(pair[0]) > rms(pair[1]), "{} {} {} {}", pair[0], rms(pair[0]), pair[1], rms(pair[1]));
            }
        }
    }

    proptest! {
        /// Whatever finite values come in, the bytes are the right length, and what is not refused decodes to finite values
        /// no farther away than the block's range.
        #[test]
        fn any_finite_row_is_refused_or_decodes_inside_its_range(
            bits in prop::collection::vec(any::<u32>(), 256),
            spread in 0u32..3,
        ) {
            let x: Vec<f32> = bits.iter().map(|&b| {
                let v = f32::from_bits(b);
                let v = if v.is_finite() { v } else { 0.0 };
                match spread { 0 => v, 1 => v % 8.0, _ => (b as f32 / u32::MAX as f32 - 0.5) * 2.0 }
            }).collect();
            let range = x.iter().fold(0f32, |m, v| m.max(v.abs()));
            for ty in WRITTEN {
                let mut bytes = Vec::new();
                match encode(ty, &x, &mut bytes) {
                    Err(e) => {
                        let too_large = matches!(e, CodecError::TooLarge { .. });
                        prop_assert!(too_large && range > 60_000.0, "{ty}: {e}");
                        prop_assert!(bytes.is_empty());
                    }
                    Ok(()) => {
                        prop_assert_eq!(Some(bytes.len()), ty.row_bytes(256));
                        let mut y = vec![0.0; 256];
                        decode(ty, &bytes, &mut y);
                        for (a, b) in x.iter().zip(&y) {
                            prop_assert!(b.is_finite() && (a - b).abs() <= range * 1.01 + 1e-4, "{ty}: {a} -> {b}");
                        }
                    }
                }
            }
        }
    }
}
