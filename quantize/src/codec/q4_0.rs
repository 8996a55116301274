//! `x = d (q - 8)`, `q` in 0..=15, blocks of 32. The element of largest magnitude gets code 0, so `d` has its sign turned:
//! `d = max / -8`, `q = min(15, floor(x / d + 8.5))`.

use super::{
    Overflow,
    best::{Int, Levels, scale_of},
    inverse,
    k_search::symmetric_weighted,
    scale, signed_max, truncate,
};
use edgeft_runtime::format::block::BlockQ4_0;

pub(super) fn encode(x: &[f32; 32]) -> Result<BlockQ4_0, Overflow> {
    let d = signed_max(x) / -8.0;
    let id = inverse(d);
    let q = |v: f32| (truncate(v * id + 8.5) as i8).min(15) as u8;
    let qs = std::array::from_fn(|j| q(x[j]) | q(x[j + 16]) << 4);
    Ok(BlockQ4_0 { d: scale(d)?, qs })
}

/// The same with a weight for each element: the scale is searched.
pub(super) fn weighted(x: &[f32; 32], weights: &[f32; 32]) -> Result<BlockQ4_0, Overflow> {
    let mut codes = [0i8; 32];
    let d = scale(symmetric_weighted(x, weights, 8, &mut codes))?;
    Ok(BlockQ4_0 { d, qs: std::array::from_fn(|j| codes[j] as u8 | (codes[j + 16] as u8) << 4) })
}

/// The same, with the scale that leaves the least weighted error.
pub(super) fn best(x: &[f32; 32], weights: &[f32; 32]) -> Result<BlockQ4_0, Overflow> {
    let levels = Int { n: 8, top: 7 };
    let d = scale_of(levels, x, weights)?;
    let id = inverse(d.to_f32());
    let q = |v: f32| (levels.nearest(v * id) + 8.0) as u8;
    Ok(BlockQ4_0 { d, qs: std::array::from_fn(|j| q(x[j]) | q(x[j + 16]) << 4) })
}

#[cfg(test)]
mod tests {
    use super::super::{encode, tests::*};
    use edgeft_runtime::format::GgmlType::Q4_0;

    #[test]
    fn known_bytes() {
        // max -8 gives d = 1: code = value + 8. Element 0 is -8 -> 0, element 16 is 7 -> 15, the rest 0 -> 8.
        let mut x = [0.0f32; 32];
        (x[0], x[16], x[1], x[17]) = (-8.0, 7.0, 0.5, -0.5);
        let mut want = vec![0x00, 0x3c, 0xf0, 0x89];
        want.resize(18, 0x88);
        let mut out = Vec::new();
        encode(Q4_0, &x, &mut out).unwrap();
        assert_eq!(out, want);
        // The same with the signs turned: max 8 gives d = -1, and -7 / -1 + 8 = 15.
        let y = x.map(|v| -v);
        out.clear();
        encode(Q4_0, &y, &mut out).unwrap();
        want[1] = 0xbc;
        assert_eq!(out, want);
    }

    #[test]
    fn error_is_at_most_a_step_on_the_far_side() {
        // Half a step inside -8 d ..= 7.5 d; the value +max of the other sign is clipped by one step (15 stands for +7).
        let x = weights(4096, 4);
        for (x, y) in x.chunks(32).zip(round_trip(Q4_0, &x).chunks(32)) {
            let d = x.iter().fold(0f32, |m, v| m.max(v.abs())) / 8.0;
            for (a, b) in x.iter().zip(y) {
                assert!((a - b).abs() <= d * (1.0 + 8.0 / 2048.0) * 1.001, "{a} {b} {d}");
            }
        }
    }
}
