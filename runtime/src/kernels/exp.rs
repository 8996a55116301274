//! The exponential, in lines that any level compiles.

/// e^x to 2e-7 of it; 0 below -87, e^88 above 88. x = n ln 2 + r, |r| ≤ ln 2 / 2, and e^r by the polynomial of Cephes' `expf`:
/// plain arithmetic, which any register takes, and the same on every system.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    const MAGIC: f32 = 12_582_912.0; // 1.5 * 2^23: a sum's last bits are a whole number
    let x = if x > 88.0 { 88.0 } else { x };
    let shifted = x * std::f32::consts::LOG2_E + MAGIC;
    let n = shifted - MAGIC;
    let r = (x - n * 0.693_359_4) - n * -2.121_944_4e-4;
    let mut p = 1.987_569_1e-4;
    for c in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        p = p * r + c;
    }
    let power = f32::from_bits((shifted.to_bits() << 23).wrapping_add(1.0f32.to_bits()));
    let value = (p * (r * r) + r + 1.0) * power;
    if x < -87.0 { 0.0 } else { value }
}

#[cfg(test)]
mod tests {
    use super::exp;

    #[test]
    fn powers_are_those_of_the_standard_library() {
        for i in -870_000..880_000 {
            let x = i as f32 * 1e-4;
            let (ours, theirs) = (exp(x), f64::from(x).exp());
            assert!((f64::from(ours) - theirs).abs() <= 2e-7 * theirs, "{x}: {ours} {theirs}");
        }
        assert_eq!((exp(-88.0), exp(f32::NEG_INFINITY), exp(0.0)), (0.0, 0.0, 1.0));
        assert!(exp(f32::INFINITY) > 1e38 && exp(f32::NAN).is_nan());
    }
}
