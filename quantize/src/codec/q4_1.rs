//! `x = d q + m`, `q` in 0..=15, blocks of 32: `m = min`, `d = (max - min) / 15`, `q = floor((x - m) / d + 0.5)`.

use super::{
    Overflow,
    best::pair,
    inverse,
    k_search::{affine, fine, nearest_int},
    min_max, scale, truncate,
};
use edgeft_runtime::format::block::BlockQ4_1;
use half::f16;

pub(super) fn encode(x: &[f32; 32]) -> Result<BlockQ4_1, Overflow> {
    let (min, max) = min_max(x);
    let d = (max - min) / 15.0;
    let id = inverse(d);
    let q = |v: f32| (truncate((v - min) * id + 0.5) as i8).min(15) as u8;
    let qs = std::array::from_fn(|j| q(x[j]) | q(x[j + 16]) << 4);
    Ok(BlockQ4_1 { d: scale(d)?, m: scale(min)?, qs })
}

/// The same with a weight for each element: scale and min are searched.
pub(super) fn weighted(x: &[f32; 32], weights: &[f32; 32]) -> Result<BlockQ4_1, Overflow> {
    let mut codes = [0u8; 32];
    let (d, min) = affine(x, weights, fine(15), &mut codes);
    Ok(BlockQ4_1 { d: scale(d)?, m: scale(-min)?, qs: std::array::from_fn(|j| codes[j] | codes[j + 16] << 4) })
}

/// The same, with the scale and min that leave the least weighted error.
pub(super) fn best(x: &[f32; 32], weights: &[f32; 32]) -> Result<BlockQ4_1, Overflow> {
    let (d, m) = pair(x, weights, 15)?;
    let q = codes(x, d, m, 15);
    Ok(BlockQ4_1 { d, m, qs: std::array::from_fn(|j| q[j] | q[j + 16] << 4) })
}

/// The codes nearest to the elements, under a scale and min as they stand in the block.
pub(super) fn codes(x: &[f32; 32], d: f16, m: f16, nmax: i32) -> [u8; 32] {
    let (id, m) = (inverse(d.to_f32()), m.to_f32());
    x.map(|v| nearest_int((v - m) * id).clamp(0, nmax) as u8)
}

#[cfg(test)]
mod tests {
    use super::super::{encode, tests::*};
    use edgeft_runtime::format::GgmlType::Q4_1;

    #[test]
    fn known_bytes() {
        // -5 ..= 10 gives d = 1, m = -5: code = value + 5, halves up.
        let mut x = [0.0f32; 32];
        (x[0], x[16], x[1], x[15], x[31]) = (-5.0, 10.0, 0.5, -4.6, 9.4);
        let mut want = vec![0x00, 0x3c, 0x00, 0xc5, 0xf0, 0x56];
        want.resize(19, 0x55);
        want.push(0xe0);
        let mut out = Vec::new();
        encode(Q4_1, &x, &mut out).unwrap();
        assert_eq!(out, want);
    }

    #[test]
    fn error_is_at_most_half_a_step_and_the_rounding_of_both_scales() {
        let x = weights(4096, 5);
        for (x, y) in x.chunks(32).zip(round_trip(Q4_1, &x).chunks(32)) {
            let (min, max) = super::min_max(x);
            let d = (max - min) / 15.0;
            for (a, b) in x.iter().zip(y) {
                let bound = d * (0.5 + 15.0 / 2048.0) + min.abs() / 2048.0;
                assert!((a - b).abs() <= bound * 1.001, "{a} {b} {bound}");
            }
        }
    }
}
