//! `x = d q`, `q` in -127..=127, blocks of 32: `d = max|x| / 127`, `q = round(x / d)` away from zero at halves.

use super::{
    Overflow,
    best::{Int, Levels, scale_of},
    inverse,
    k_search::nearest_int,
    magnitude, scale, truncate,
};
use edgeft_runtime::format::block::BlockQ8_0;

pub(super) fn encode(x: &[f32; 32]) -> Result<BlockQ8_0, Overflow> {
    let d = magnitude(x) / 127.0;
    let id = inverse(d);
    let mut qs = [0; 32];
    if id.is_finite() {
        for (q, v) in qs.iter_mut().zip(x) {
            *q = away_from_zero(v * id) as i8;
        }
    } else {
        qs = x.map(|v| truncate((v * id).round()) as i8);
    }
    Ok(BlockQ8_0 { d: scale(d)?, qs })
}

/// [`f32::round`] of `|v| < 2^22`, as vectors can do it: halves went to the even neighbour and are sent back.
#[inline(always)]
fn away_from_zero(v: f32) -> i32 {
    let even = nearest_int(v);
    let rest = v - even as f32;
    even + i32::from((rest == 0.5) & (v > 0.0)) - i32::from((rest == -0.5) & (v < 0.0))
}

/// The same, with the scale that leaves the least weighted error.
pub(super) fn best(x: &[f32; 32], weights: &[f32; 32]) -> Result<BlockQ8_0, Overflow> {
    let levels = Int { n: 127, top: 127 };
    let d = scale_of(levels, x, weights)?;
    let id = inverse(d.to_f32());
    Ok(BlockQ8_0 { d, qs: x.map(|v| levels.nearest(v * id) as i8) })
}

#[cfg(test)]
mod tests {
    use super::super::{encode, tests::*};
    use super::away_from_zero;
    use edgeft_runtime::format::GgmlType::Q8_0;

    #[test]
    fn known_bytes() {
        // max 127 gives d = 1 (f16 0x3c00), so the codes are the rounded values; 2.5 goes away from zero.
        let mut x = [0.0f32; 32];
        (x[0], x[1], x[2], x[3], x[31]) = (127.0, -127.0, 2.5, -2.5, 0.49);
        let mut want = vec![0x00, 0x3c, 127, 0x81, 3, 0xfd];
        want.resize(34, 0);
        let mut out = Vec::new();
        encode(Q8_0, &x, &mut out).unwrap();
        assert_eq!(out, want);
    }

    #[test]
    fn halves_go_away_from_zero_and_all_else_to_the_nearest() {
        for i in -100_000..=100_000 {
            for v in [i as f32 / 512.0, (i as f32 / 512.0).next_up(), (i as f32 / 512.0).next_down()] {
                assert_eq!(away_from_zero(v) as f32, v.round(), "{v}");
            }
        }
    }

    #[test]
    fn error_is_at_most_half_a_step_and_the_rounding_of_the_scale() {
        // |x - d q| <= d / 2 + 127 * (d rounded to f16: d * 2^-11)
        let x = weights(4096, 3);
        for (x, y) in x.chunks(32).zip(round_trip(Q8_0, &x).chunks(32)) {
            let d = x.iter().fold(0f32, |m, v| m.max(v.abs())) / 127.0;
            for (a, b) in x.iter().zip(y) {
                assert!((a - b).abs() <= d * (0.5 + 127.0 / 2048.0) * 1.001, "{a} {b} {d}");
            }
        }
    }
}
