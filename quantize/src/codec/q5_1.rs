//! As [`q4_1`](super::q4_1) with a fifth bit: `x = d q + m`, `q` in 0..=31, `d = (max - min) / 31`.

use super::{
    Overflow,
    best::pair,
    inverse,
    k_search::{affine, fine},
    min_max,
    q4_1::codes,
    q5_0::split,
    scale, truncate,
};
use edgeft_runtime::format::block::BlockQ5_1;

pub(super) fn encode(x: &[f32; 32]) -> Result<BlockQ5_1, Overflow> {
    let (min, max) = min_max(x);
    let d = (max - min) / 31.0;
    let id = inverse(d);
    let q = x.map(|v| truncate((v - min) * id + 0.5) as u8);
    let (qh, qs) = split(&q);
    Ok(BlockQ5_1 { d: scale(d)?, m: scale(min)?, qh, qs })
}

/// The same with a weight for each element: scale and min are searched.
pub(super) fn weighted(x: &[f32; 32], weights: &[f32; 32]) -> Result<BlockQ5_1, Overflow> {
    let mut codes = [0u8; 32];
    let (d, min) = affine(x, weights, fine(31), &mut codes);
    let (qh, qs) = split(&codes);
    Ok(BlockQ5_1 { d: scale(d)?, m: scale(-min)?, qh, qs })
}

/// The same, with the scale and min that leave the least weighted error.
pub(super) fn best(x: &[f32; 32], weights: &[f32; 32]) -> Result<BlockQ5_1, Overflow> {
    let (d, m) = pair(x, weights, 31)?;
    let (qh, qs) = split(&codes(x, d, m, 31));
    Ok(BlockQ5_1 { d, m, qh, qs })
}

#[cfg(test)]
mod tests {
    use super::super::{encode, tests::*};
    use edgeft_runtime::format::GgmlType::Q5_1;

    #[test]
    fn known_bytes() {
        // 1 ..= 32 gives d = 1, m = 1: code = value - 1, so element i is i: low nibbles repeat, the fifth bit is i >= 16.
        let x: [f32; 32] = std::array::from_fn(|i| i as f32 + 1.0);
        let mut want = vec![0x00, 0x3c, 0x00, 0x3c, 0x00, 0x00, 0xff, 0xff];
        want.extend((0..16u8).map(|j| j | j << 4));
        let mut out = Vec::new();
        encode(Q5_1, &x, &mut out).unwrap();
        assert_eq!(out, want);
    }

    #[test]
    fn error_is_at_most_half_a_step_and_the_rounding_of_both_scales() {
        let x = weights(4096, 7);
        for (x, y) in x.chunks(32).zip(round_trip(Q5_1, &x).chunks(32)) {
            let (min, max) = super::min_max(x);
            let d = (max - min) / 31.0;
            for (a, b) in x.iter().zip(y) {
                let bound = d * (0.5 + 31.0 / 2048.0) + min.abs() / 2048.0;
                assert!((a - b).abs() <= bound * 1.001, "{a} {b} {bound}");
            }
        }
    }
}
