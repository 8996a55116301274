//! `x = d IQ4_VALUES[q]`: sixteen levels that lie closer around 0. IQ4_NL has a scale for each 32 elements; IQ4_XS, super-blocks
//! of 256, six-bit scales for 8 groups of 32, the one of largest magnitude -32.
//!
//! Each scale is searched: the largest element on the first level, then on fifteen places around it, each refit by least
//! squares, weighted by `x^2` or, with importance, by `importance sqrt(sigma^2 + x^2)`.

use super::{
    Overflow,
    best::{Iq4, scale_of, super_symmetric},
    k_search::{GROUP_EPS, nearest_int},
    scale, signed_max,
    weighted::weights,
};
use edgeft_runtime::format::block::{BlockIq4Nl, BlockIq4Xs, IQ4_VALUES};
use half::f16;

/// Places on each side of the first level that the largest element is tried on.
const TRIES: i32 = 7;

pub(super) fn encode_nl(x: &[f32; 32], importance: Option<&[f32; 32]>) -> Result<BlockIq4Nl, Overflow> {
    let d = fit(x, &weights_of(x, importance.map(|w| &w[..]), sigma2(x)));
    let inverse = super::inverse(d);
    Ok(BlockIq4Nl { d: scale(d)?, qs: pairs(x, inverse) })
}

pub(super) fn encode_xs(x: &[f32; 256], importance: Option<&[f32; 256]>) -> Result<BlockIq4Xs, Overflow> {
    let sigma2 = sigma2(x);
    let (groups, _) = x.as_chunks::<32>();
    let fitted: [f32; 8] =
        std::array::from_fn(|j| fit(&groups[j], &weights_of(&groups[j], importance.map(|w| &w[32 * j..]), sigma2)));
    let d = -signed_max(&fitted) / 32.0;
    let inverse = super::inverse(d);
    let scales = fitted.map(|s| nearest_int(inverse * s).clamp(-32, 31));
    Ok(pack_xs(x, scale(d)?, scales, |l| super::inverse(d * l as f32)))
}

/// A block of these scales; `inverse` is what elements of a group are multiplied by.
fn pack_xs(x: &[f32; 256], d: f16, scales: [i32; 8], inverse: impl Fn(i32) -> f32) -> BlockIq4Xs {
    let (mut scales_h, mut scales_l, mut qs) = (0u16, [0u8; 4], [0u8; 128]);
    for (j, (x, qs)) in x.as_chunks::<32>().0.iter().zip(qs.chunks_exact_mut(16)).enumerate() {
        let l = scales[j];
        qs.copy_from_slice(&pairs(x, inverse(l)));
        let six_bits = (l + 32) as u8;
        scales_l[j / 2] |= (six_bits & 15) << (4 * (j % 2));
        scales_h |= u16::from(six_bits >> 4) << (2 * j);
    }
    BlockIq4Xs { d, scales_h: scales_h.to_le_bytes(), scales_l, qs }
}

/// IQ4_NL with the scale that leaves the least weighted error.
pub(super) fn best_nl(x: &[f32; 32], weights: &[f32; 32]) -> Result<BlockIq4Nl, Overflow> {
    let d = scale_of(Iq4, x, weights)?;
    Ok(BlockIq4Nl { d, qs: pairs(x, super::inverse(d.to_f32())) })
}

/// IQ4_XS with all scales chosen together.
pub(super) fn best_xs(x: &[f32; 256], weights: &[f32; 256]) -> Result<BlockIq4Xs, Overflow> {
    let (d, scales) = super_symmetric::<8, _>(Iq4, x, weights, -32, 31)?;
    Ok(pack_xs(x, d, scales, |l| super::inverse(d.to_f32() * l as f32)))
}

/// Twice the mean square.
fn sigma2(x: &[f32]) -> f32 {
    x.iter().fold(0f32, |s, v| s + v * v) * (2.0 / x.len() as f32)
}

fn weights_of(x: &[f32; 32], importance: Option<&[f32]>, sigma2: f32) -> [f32; 32] {
    match importance {
        Some(importance) => weights(x, importance, sigma2),
        None => x.map(|v| v * v),
    }
}

/// The scale of a group; 0 for a group of zeros.
fn fit(x: &[f32; 32], weights: &[f32; 32]) -> f32 {
    let max = signed_max(x);
    if max.abs() < GROUP_EPS {
        return 0.0;
    }
    let sums = |inverse: f32| {
        let (mut qx, mut q2) = (0f32, 0f32);
        for (&v, &w) in x.iter().zip(weights) {
            let q = f32::from(IQ4_VALUES[level(inverse * v)]);
            qx += w * q * v;
            q2 += w * q * q;
        }
        (qx, q2)
    };
    let first = f32::from(IQ4_VALUES[0]);
    let (qx, q2) = sums(1.0 / (-max / first));
    let mut d = if q2 > 0.0 { qx / q2 } else { 0.0 };
    let mut best = d * qx;
    for step in -TRIES..=TRIES {
        let (qx, q2) = sums((step as f32 + first) / max);
        if q2 > 0.0 && qx * qx > best * q2 {
            d = qx / q2;
            best = d * qx;
        }
    }
    d
}

/// Index of the level nearest to `v`; of two as near the upper.
pub(super) fn level(v: f32) -> usize {
    let value = |i: usize| f32::from(IQ4_VALUES[i]);
    if v <= value(0) {
        return 0;
    }
    if v >= value(15) {
        return 15;
    }
    let (mut low, mut high) = (0, 15);
    while high - low > 1 {
        let middle = (low + high) / 2;
        if v < value(middle) { high = middle } else { low = middle }
    }
    if v - value(high - 1) < value(high) - v { high - 1 } else { high }
}

/// Codes of 32 elements: `j` low, `j + 16` high.
fn pairs(x: &[f32; 32], inverse: f32) -> [u8; 16] {
    std::array::from_fn(|j| level(inverse * x[j]) as u8 | (level(inverse * x[j + 16]) as u8) << 4)
}

#[cfg(test)]
mod tests {
    use super::super::{encode, tests::*};
    use edgeft_runtime::format::GgmlType::{IQ4_NL, IQ4_XS};
    use edgeft_runtime::format::block::IQ4_VALUES;

    #[test]
    fn known_bytes() {
        // The levels themselves, twice: d = 1, and every code is its index.
        let x: [f32; 32] = std::array::from_fn(|i| f32::from(IQ4_VALUES[i % 16]));
        let mut out = Vec::new();
        encode(IQ4_NL, &x, &mut out).unwrap();
        let mut want = vec![0x00, 0x3c];
        want.extend((0..16u8).map(|i| i * 0x11));
        assert_eq!(out, want);
        // Eight groups of it: the scale of each is 1 and becomes -32, six bits of 0; d = -1/32.
        let x: [f32; 256] = std::array::from_fn(|i| x[i % 32]);
        out.clear();
        encode(IQ4_XS, &x, &mut out).unwrap();
        assert_eq!(out[..8], [0x00, 0xa8, 0, 0, 0, 0, 0, 0]);
        assert!(out[8..].iter().enumerate().all(|(i, b)| *b == (i % 16) as u8 * 0x11), "{out:?}");
    }

    #[test]
    fn levels_are_the_nearest() {
        for i in 0..1300 {
            let v = i as f32 * 0.2 - 130.0;
            let distance = |l: i8| (f32::from(l) - v).abs();
            let nearest = IQ4_VALUES.iter().map(|l| distance(*l)).fold(f32::MAX, f32::min);
            assert_eq!(distance(IQ4_VALUES[super::level(v)]), nearest, "{v}");
        }
    }

    #[test]
    fn the_error_is_smaller_than_that_of_even_levels() {
        let x = weights(8192, 21);
        let rms = |ty| {
            let y = round_trip(ty, &x);
            x.iter().zip(&y).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>()
        };
        assert!(rms(IQ4_NL) < rms(edgeft_runtime::format::GgmlType::Q4_0));
        assert!(rms(IQ4_XS) < rms(edgeft_runtime::format::GgmlType::Q4_0));
    }
}
