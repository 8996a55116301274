//! As [`q4_0`](super::q4_0) with a fifth bit: `x = d (q - 16)`, `q` in 0..=31, `d = max / -16`.

use super::{
    Overflow,
    best::{Int, Levels, scale_of},
    inverse,
    k_search::symmetric_weighted,
    scale, signed_max, truncate,
};
use edgeft_runtime::format::block::BlockQ5_0;

pub(super) fn encode(x: &[f32; 32]) -> Result<BlockQ5_0, Overflow> {
    let d = signed_max(x) / -16.0;
    let id = inverse(d);
    let q = x.map(|v| (truncate(v * id + 16.5) as i8).min(31) as u8);
    let (qh, qs) = split(&q);
    Ok(BlockQ5_0 { d: scale(d)?, qh, qs })
}

/// The same with a weight for each element: the scale is searched.
pub(super) fn weighted(x: &[f32; 32], weights: &[f32; 32]) -> Result<BlockQ5_0, Overflow> {
    let mut codes = [0i8; 32];
    let d = scale(symmetric_weighted(x, weights, 16, &mut codes))?;
    let (qh, qs) = split(&codes.map(|c| c as u8));
    Ok(BlockQ5_0 { d, qh, qs })
}

/// The same, with the scale that leaves the least weighted error.
pub(super) fn best(x: &[f32; 32], weights: &[f32; 32]) -> Result<BlockQ5_0, Overflow> {
    let levels = Int { n: 16, top: 15 };
    let d = scale_of(levels, x, weights)?;
    let id = inverse(d.to_f32());
    let (qh, qs) = split(&x.map(|v| (levels.nearest(v * id) + 16.0) as u8));
    Ok(BlockQ5_0 { d, qh, qs })
}

/// The fifth bits (bit `i` of the little-endian word is element `i`) and the nibbles (`j` low, `j + 16` high).
pub(super) fn split(q: &[u8; 32]) -> ([u8; 4], [u8; 16]) {
    let qh = q.iter().enumerate().fold(0u32, |h, (i, q)| h | u32::from((q >> 4) & 1) << i);
    (qh.to_le_bytes(), std::array::from_fn(|j| (q[j] & 15) | (q[j + 16] & 15) << 4))
}

#[cfg(test)]
mod tests {
    use super::super::{encode, tests::*};
    use edgeft_runtime::format::GgmlType::Q5_0;

    #[test]
    fn known_bytes() {
        // max -16 gives d = 1: code = value + 16; zeros are 16 = fifth bit alone, so qh is all ones but for element 0.
        let mut x = [0.0f32; 32];
        (x[0], x[16], x[31]) = (-16.0, 15.0, -1.0);
        let mut want = vec![0x00, 0x3c, 0xfe, 0xff, 0xff, 0x7f, 0xf0];
        want.resize(21, 0x00);
        want.push(0xf0);
        let mut out = Vec::new();
        encode(Q5_0, &x, &mut out).unwrap();
        assert_eq!(out, want);
    }

    #[test]
    fn error_is_at_most_a_step_on_the_far_side() {
        let x = weights(4096, 6);
        for (x, y) in x.chunks(32).zip(round_trip(Q5_0, &x).chunks(32)) {
            let d = x.iter().fold(0f32, |m, v| m.max(v.abs())) / 16.0;
            for (a, b) in x.iter().zip(y) {
                assert!((a - b).abs() <= d * (1.0 + 16.0 / 2048.0) * 1.001, "{a} {b} {d}");
            }
        }
    }
}
