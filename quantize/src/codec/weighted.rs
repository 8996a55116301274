//! Rows become blocks where some columns matter more than others: by what went into them on calibration data.
//!
//! As ggml's quantizers with an importance matrix: an element's error counts `importance sqrt(sigma^2 + x^2)`, with sigma^2 of
//! the row (blocks of 32) or of the super-block; the grids are finer, and the scales of a super-block are fitted together.

use super::{CodecError, blocks_with, encode_into, finite, iq4, q2_k, q3_k, q4_0, q4_1, q4_k, q5_0, q5_1, q5_k, q6_k};
use edgeft_runtime::format::GgmlType;

/// Whether a type's codes depend on the importance of columns.
pub fn uses_importance(ty: GgmlType) -> bool {
    !matches!(ty, GgmlType::F32 | GgmlType::F16 | GgmlType::BF16 | GgmlType::Q8_0)
}

/// Writes rows of `importance.len()` elements as blocks of `ty` over `out`, each column's error counted by its importance.
///
/// # Errors
/// As [`encode_into`], which types that do not look at importance go through.
///
/// # Panics
/// When `out` has another size than the blocks, or `x` is not whole rows.
pub fn encode_weighted_into(ty: GgmlType, x: &[f32], importance: &[f32], out: &mut [u8]) -> Result<(), CodecError> {
    let n = importance.len();
    let row_bytes = ty.row_bytes(n).ok_or(CodecError::Length { ty, n })?;
    if !uses_importance(ty) {
        return encode_into(ty, x, out);
    }
    assert!(x.len().is_multiple_of(n), "{} elements in rows of {n}", x.len());
    assert_eq!(out.len(), x.len() / n * row_bytes, "bytes for {} elements of {ty}", x.len());
    finite(x)?;
    rows((x, n), (out, row_bytes), |x, out| row(ty, x, importance, out))
}

/// Calls `f` for each row of n numbers and its bytes; what is too large is told by its place in `x`.
pub(super) fn rows(
    (x, n): (&[f32], usize),
    (out, row_bytes): (&mut [u8], usize),
    f: impl Fn(&[f32], &mut [u8]) -> Result<(), CodecError>,
) -> Result<(), CodecError> {
    for (i, (x, out)) in x.chunks_exact(n).zip(out.chunks_exact_mut(row_bytes)).enumerate() {
        f(x, out).map_err(|e| match e {
            CodecError::TooLarge { ty, at, value } => CodecError::TooLarge { ty, at: i * n + at, value },
            other => other,
        })?;
    }
    Ok(())
}

fn row(ty: GgmlType, x: &[f32], importance: &[f32], out: &mut [u8]) -> Result<(), CodecError> {
    let sigma2 = x.iter().fold(0f32, |s, v| s + v * v) / x.len() as f32;
    let (by_32, _) = importance.as_chunks::<32>();
    let (by_256, _) = importance.as_chunks::<256>();
    match ty {
        GgmlType::Q4_0 => blocks_with(ty, x, out, |i, x| q4_0::weighted(x, &weights(x, &by_32[i], sigma2))),
        GgmlType::Q4_1 => blocks_with(ty, x, out, |i, x| q4_1::weighted(x, &weights(x, &by_32[i], sigma2))),
        GgmlType::Q5_0 => blocks_with(ty, x, out, |i, x| q5_0::weighted(x, &weights(x, &by_32[i], sigma2))),
        GgmlType::Q5_1 => blocks_with(ty, x, out, |i, x| q5_1::weighted(x, &weights(x, &by_32[i], sigma2))),
        GgmlType::Q2_K => blocks_with(ty, x, out, |i, x| q2_k::weighted(x, &by_256[i])),
        GgmlType::Q3_K => blocks_with(ty, x, out, |i, x| q3_k::weighted(x, &by_256[i])),
        GgmlType::Q4_K => blocks_with(ty, x, out, |i, x| q4_k::weighted(x, &by_256[i])),
        GgmlType::Q5_K => blocks_with(ty, x, out, |i, x| q5_k::weighted(x, &by_256[i])),
        GgmlType::Q6_K => blocks_with(ty, x, out, |i, x| q6_k::weighted(x, &by_256[i])),
        GgmlType::IQ4_NL => blocks_with(ty, x, out, |i, x| iq4::encode_nl(x, Some(&by_32[i]))),
        GgmlType::IQ4_XS => blocks_with(ty, x, out, |i, x| iq4::encode_xs(x, Some(&by_256[i]))),
        GgmlType::F32 | GgmlType::F16 | GgmlType::BF16 | GgmlType::Q8_0 => encode_into(ty, x, out),
    }
}

/// What each element's error counts.
pub(super) fn weights<const N: usize>(x: &[f32; N], importance: &[f32], sigma2: f32) -> [f32; N] {
    std::array::from_fn(|i| importance[i] * (sigma2 + x[i] * x[i]).sqrt())
}

#[cfg(test)]
mod tests {
    use super::super::{WRITTEN, tests::weights};
    use super::*;
    use edgeft_runtime::format::block::decode;

    /// Errors that importance weighs are smaller with it than without, in every type that looks at it.
    #[test]
    fn importance_lowers_what_it_weighs() {
        let (rows, n) = (16, 512);
        let x = weights(rows * n, 31);
        let importance: Vec<f32> = weights(n, 5).iter().map(|v| (v * 90.0).powi(2) + 1e-3).collect();
        for ty in WRITTEN.into_iter().filter(|t| uses_importance(*t)) {
            let error = |bytes: &[u8]| {
                let mut y = vec![0.0; x.len()];
                decode(ty, bytes, &mut y);
                let each = x.iter().zip(&y).enumerate();
                each.map(|(i, (a, b))| f64::from(importance[i % n]) * f64::from(a - b).powi(2)).sum::<f64>()
            };
            let mut plain = vec![0; rows * ty.row_bytes(n).unwrap()];
            let mut weighted = plain.clone();
            encode_into(ty, &x, &mut plain).unwrap();
            encode_weighted_into(ty, &x, &importance, &mut weighted).unwrap();
            assert!(error(&weighted) < 0.97 * error(&plain), "{ty}: {} {}", error(&weighted), error(&plain));
        }
    }

    #[test]
    fn a_value_too_large_is_named_by_its_place_in_all_rows() {
        let mut x = vec![0.5; 512];
        x[301] = -3.4e38;
        let e = encode_weighted_into(GgmlType::Q4_K, &x, &[1.0; 256], &mut vec![0; 288]).unwrap_err();
        assert_eq!(e, CodecError::TooLarge { ty: GgmlType::Q4_K, at: 301, value: -3.4e38 });
    }
}
