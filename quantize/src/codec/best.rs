//! The same blocks, searched harder than ggml's quantizers search them: same bytes a block, read by the same readers, less error.
//!
//! What is made small is `Σ weight (x - decoded)^2`, a block at a time: the weights are the importance of the columns, or 1 for
//! all. A scale that stands alone is found exactly ([`symmetric`]); the scales of a super-block, which are integers times one f16,
//! are chosen together ([`symmetric`], [`affine`]): each candidate of the f16 is tried with the integers around each group's own
//! best, then refit by least squares until nothing gets better. Unlike ggml's, these sums need no certain order of rounding, so
//! they run in lanes; a block's bytes depend on nothing but the block and its weights.
//!
//! ggml counts large elements more in the K types (by |x|, x^2 or rms + |x|). Tried here on nano's q4_k_m with the same weights: the
//! KL of its own text fell by 5 % more, that of three foreign texts rose by 4 to 6 %. So all elements count alike.

mod affine;
mod symmetric;

use super::{
    CodecError, Overflow, blocks_with, encode_into, encode_weighted_into, iq4, q2_k, q3_k, q4_0, q4_1, q4_k, q5_0,
    q5_1, q5_k, q6_k, q8_0, uses_importance, weighted::rows,
};
use bytemuck::Pod;
use edgeft_runtime::format::{GgmlType, block::decode};

pub(super) use affine::{Affine, pair, super_affine};
pub(super) use symmetric::{Int, Iq4, Levels, scale_of, super_symmetric};

/// Lanes of the sums: what the compiler turns into vectors.
const LANES: usize = 8;

/// Whether a search can make a difference: rounding alone decides in the others.
pub fn searches(ty: GgmlType) -> bool {
    uses_importance(ty) || ty == GgmlType::Q8_0
}

/// Writes rows as blocks of `ty` over `out`, with the least error that the searches find. With importance, rows have its length.
///
/// # Errors
/// As [`encode_into`], which types that nothing is searched for go through.
///
/// # Panics
/// When `out` has another size than the blocks, or `x` is not whole rows.
pub fn encode_best_into(ty: GgmlType, x: &[f32], importance: Option<&[f32]>, out: &mut [u8]) -> Result<(), CodecError> {
    if !searches(ty) {
        return encode_into(ty, x, out);
    }
    let bytes = ty.row_bytes(x.len()).ok_or(CodecError::Length { ty, n: x.len() })?;
    assert_eq!(out.len(), bytes, "bytes for {} elements of {ty}", x.len());
    if let Some(at) = x.iter().position(|v| !v.is_finite()) {
        return Err(CodecError::NotFinite { at, value: x[at] });
    }
    let n = importance.map_or(x.len().max(1), <[f32]>::len);
    assert!(x.len().is_multiple_of(n), "{} elements in rows of {n}", x.len());
    // The searches square their numbers and divide by scales: what is so small or so large that those leave f32 takes ggml's way.
    let (small, large) = (1e-12, 1e12);
    let tame = |b: &[f32]| {
        let top = b.iter().fold(0f32, |m, v| m.max(v.abs()));
        top == 0.0 || (top > small && top < large)
    };
    if !x.chunks(ty.block_len()).all(tame) {
        return match importance {
            Some(columns) => encode_weighted_into(ty, x, columns, out),
            None => encode_into(ty, x, out),
        };
    }
    let row_bytes = ty.row_bytes(n).ok_or(CodecError::Length { ty, n })?;
    rows((x, n), (out, row_bytes), |x, out| row(ty, x, importance, out))
}

fn row(ty: GgmlType, x: &[f32], importance: Option<&[f32]>, out: &mut [u8]) -> Result<(), CodecError> {
    /// `f` with the weights of its block; ggml's block where that one is nearer all the same, as chance in a rounded scale has it.
    fn each<const N: usize, B: Pod>(
        ty: GgmlType,
        x: &[f32],
        importance: Option<&[f32]>,
        out: &mut [u8],
        f: impl Fn(&[f32; N], &[f32; N]) -> Result<B, Overflow>,
    ) -> Result<(), CodecError> {
        blocks_with(ty, x, out, |i, x: &[f32; N]| {
            let weights = weights(importance.map(|w| &w[N * i..][..N]));
            let error = |block: &B| {
                let mut y = [0f32; N];
                decode(ty, bytemuck::bytes_of(block), &mut y);
                (0..N).map(|i| f64::from(weights[i]) * f64::from(x[i] - y[i]).powi(2)).sum::<f64>()
            };
            let mut plain = B::zeroed();
            let plain = encode_into(ty, x, bytemuck::bytes_of_mut(&mut plain)).is_ok().then_some(plain);
            match (f(x, &weights), plain) {
                (Ok(found), Some(plain)) if error(&plain) < error(&found) => Ok(plain),
                (Err(Overflow), Some(plain)) => Ok(plain),
                (found, _) => found,
            }
        })
    }
    match ty {
        GgmlType::Q8_0 => each(ty, x, importance, out, q8_0::best),
        GgmlType::Q4_0 => each(ty, x, importance, out, q4_0::best),
        GgmlType::Q4_1 => each(ty, x, importance, out, q4_1::best),
        GgmlType::Q5_0 => each(ty, x, importance, out, q5_0::best),
        GgmlType::Q5_1 => each(ty, x, importance, out, q5_1::best),
        GgmlType::Q2_K => each(ty, x, importance, out, q2_k::best),
        GgmlType::Q3_K => each(ty, x, importance, out, q3_k::best),
        GgmlType::Q4_K => each(ty, x, importance, out, q4_k::best),
        GgmlType::Q5_K => each(ty, x, importance, out, q5_k::best),
        GgmlType::Q6_K => each(ty, x, importance, out, q6_k::best),
        GgmlType::IQ4_NL => each(ty, x, importance, out, iq4::best_nl),
        GgmlType::IQ4_XS => each(ty, x, importance, out, iq4::best_xs),
        GgmlType::F32 | GgmlType::F16 | GgmlType::BF16 => encode_into(ty, x, out),
    }
}

/// What each element's error counts: its column's importance over the block's largest, and never nothing, since a column that no
/// calibration row reached may be reached by another text.
fn weights<const N: usize>(importance: Option<&[f32]>) -> [f32; N] {
    let Some(columns) = importance else { return [1.0; N] };
    let top = columns.iter().fold(0f32, |m, v| m.max(*v));
    if !(top > 0.0 && top.is_finite()) {
        return [1.0; N];
    }
    std::array::from_fn(|i| (columns[i] / top).max(1e-4))
}

/// Nearest integer of `|v| < 2^22`, halves to even, as a float: the addition that [`nearest_int`](super::k_search::nearest_int) is.
fn round(v: f32) -> f32 {
    (v + 12_582_912.0) - 12_582_912.0
}

/// The smaller and the larger, as one instruction: nothing here is NaN.
fn between(v: f32, low: f32, high: f32) -> f32 {
    let v = if v > low { v } else { low };
    if v < high { v } else { high }
}

fn sum(lanes: [f32; LANES]) -> f32 {
    lanes.iter().sum()
}

#[cfg(test)]
mod tests {
    use super::super::{WRITTEN, encode, tests::weights as values};
    use super::*;

    fn error(ty: GgmlType, x: &[f32], bytes: &[u8], importance: Option<&[f32]>) -> f64 {
        let mut y = vec![0.0; x.len()];
        decode(ty, bytes, &mut y);
        let weight = |i: usize| importance.map_or(1.0, |w| f64::from(w[i % w.len()]));
        x.iter().zip(&y).enumerate().map(|(i, (a, b))| weight(i) * f64::from(a - b).powi(2)).sum()
    }

    fn best(ty: GgmlType, x: &[f32], importance: Option<&[f32]>) -> Vec<u8> {
        let mut out = vec![0; ty.row_bytes(x.len()).unwrap()];
        encode_best_into(ty, x, importance, &mut out).unwrap();
        out
    }

    /// The squared error falls in every type, by the share that each search is worth at least.
    #[test]
    fn every_type_leaves_less_error() {
        let x = values(64 * 512, 77);
        use GgmlType::*;
        for (ty, most) in [
            (Q8_0, 1.0),
            (Q4_0, 0.94),
            (Q4_1, 0.9),
            (Q5_0, 0.95),
            (Q5_1, 0.95),
            (Q2_K, 0.9),
            (Q3_K, 0.94),
            (Q4_K, 0.95),
            (Q5_K, 0.97),
            (Q6_K, 0.99),
            (IQ4_NL, 0.97),
            (IQ4_XS, 0.97),
        ] {
            let mut plain = Vec::new();
            encode(ty, &x, &mut plain).unwrap();
            let (a, b) = (error(ty, &x, &best(ty, &x, None), None), error(ty, &x, &plain, None));
            assert!(a < most * b, "{ty}: {:.4} of ggml's error", a / b);
        }
    }

    #[test]
    fn importance_is_what_the_error_counts() {
        let (rows, n) = (32, 512);
        let x = values(rows * n, 31);
        let importance: Vec<f32> = values(n, 5).iter().map(|v| (v * 90.0).powi(2) + 1e-3).collect();
        for ty in WRITTEN.into_iter().filter(|t| uses_importance(*t)) {
            let mut weighted = vec![0; ty.row_bytes(x.len()).unwrap()];
            encode_weighted_into(ty, &x, &importance, &mut weighted).unwrap();
            let ours = error(ty, &x, &best(ty, &x, Some(&importance)), Some(&importance));
            let theirs = error(ty, &x, &weighted, Some(&importance));
            assert!(ours < theirs, "{ty}: {:.4} of ggml's weighted error", ours / theirs);
        }
    }

    #[test]
    fn odd_rows_are_no_worse_than_ggml_has_them() {
        let rows: [(&str, Vec<f32>); 7] = [
            ("zero", vec![0.0; 512]),
            ("constant", vec![0.37; 512]),
            ("negative", values(512, 3).iter().map(|v| -v.abs() - 0.5).collect()),
            ("sparse", values(512, 4).iter().enumerate().map(|(i, v)| if i % 11 == 0 { *v } else { 0.0 }).collect()),
            ("denormal", values(512, 5).iter().map(|v| v * 1e-41).collect()),
            ("huge", values(512, 6).iter().map(|v| v * 40_000.0).collect()),
            ("two", values(512, 7).iter().map(|v| if *v > 0.0 { 0.5 } else { -0.25 }).collect()),
        ];
        for ty in WRITTEN {
            for (name, x) in &rows {
                let mut plain = Vec::new();
                encode(ty, x, &mut plain).unwrap();
                let (a, b) = (error(ty, x, &best(ty, x, None), None), error(ty, x, &plain, None));
                assert!(a.is_finite() && a <= b * 1.001 + 1e-60, "{ty}, {name}: {a} against {b}");
            }
        }
    }

    #[test]
    fn what_no_block_holds_is_refused_by_its_place() {
        let mut x = vec![0.5; 512];
        x[300] = f32::NAN;
        let out = &mut vec![0; 288];
        let e = encode_best_into(GgmlType::Q4_K, &x, None, out).unwrap_err();
        assert!(matches!(e, CodecError::NotFinite { at: 300, .. }), "{e}");
        x[300] = -3.4e38;
        let e = encode_best_into(GgmlType::Q4_K, &x, Some(&[1.0; 256]), out).unwrap_err();
        assert_eq!(e, CodecError::TooLarge { ty: GgmlType::Q4_K, at: 300, value: -3.4e38 });
    }
}
