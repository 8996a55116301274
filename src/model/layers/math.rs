//! Row loops as the CPU's widest vectors. What stands inside [`wide!`] is compiled once for each level (baseline, AVX2 and
//! AVX-512) and chosen at run time. Sums have sixteen fixed lanes and additions are fused only where that is written, so every
//! level gives the same bits.

/// Runs a block compiled for the widest vectors that this CPU has; what it takes from outside is named with its type. A closure
/// would not do: it is called from one place for each level, so it would not be inlined, and would be compiled for the baseline.
/// For the same reason the block loops with `for`, and calls only what is always inlined.
macro_rules! wide {
    (|$($name:ident: $type:ty),* $(,)?| -> $out:ty $body:block) => {{
        struct Wide<'a> {
            $($name: $type),*
        }
        impl<'a> pulp::NullaryFnOnce for Wide<'a> {
            type Output = $out;
            #[inline(always)]
            fn call(self) -> $out {
                let Self { $($name),* } = self;
                $body
            }
        }
        pulp::Arch::new().dispatch(Wide { $($name),* })
    }};
}
pub(super) use wide;

/// eˣ within 2 ULP for x in [-87, 88], held at the ends beyond; NaN stays NaN. x = n ln 2 + r by the two-part constant of
/// Cody and Waite, eʳ by the minimax polynomial of Cephes' `expf` (Moshier).
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    /// Adding it rounds to a whole number, which then stands in the lowest bits.
    const ROUND: f32 = 12_582_912.0; // 1.5 · 2²³
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    let x = x.clamp(-87.336_54, 88.376_26);
    let t = x * std::f32::consts::LOG2_E + ROUND;
    let n = t - ROUND;
    let r = n.mul_add(-LN_2_LOW, n.mul_add(-LN_2_HIGH, x));
    let p = polynomial([0.5, 1.666_666_5e-1, 4.166_579_6e-2, 8.333_452e-3, 1.398_199_9e-3, 1.987_569_1e-4], r);
    let p = p.mul_add(r * r, r) + 1.0;
    // Times 2ⁿ: n is added to the exponent.
    f32::from_bits(p.to_bits().wrapping_add(t.to_bits() << 23))
}

/// 1 / (1 + e⁻ˣ).
#[inline(always)]
pub fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// 1 - e⁻ˣᵖ⁽ˣ⁾ and x p(x²), fitted here for the smallest largest error (by least squares that were reweighted until the errors
/// stood level): -ln(erfc x) / x on [1, 4] and erf(√s) / √s on [0, 1].
const ERF_FAR: [f32; 8] = [
    1.128_596_5,
    0.635_423_6,
    0.105_643_6,
    -2.306_548_9e-2,
    3.166_247e-3,
    -1.331_718_2e-4,
    -2.950_671e-5,
    3.643_177_5e-6,
];
#[expect(clippy::approx_constant, reason = "fitted: 2/√π is one ULP more")]
const ERF_NEAR: [f32; 7] =
    [1.128_379_1, -0.376_126_26, 0.112_836, -2.685_444_4e-2, 5.189_535e-3, -8.020_841e-4, 7.889_119e-5];

/// erf x within 3 ULP; NaN stays NaN.
#[inline(always)]
pub fn erf(x: f32) -> f32 {
    let a = x.abs();
    let near = x * polynomial(ERF_NEAR, x * x);
    // From 4 on it is 1 to the last bit.
    let a4 = if a > 4.0 { 4.0 } else { a };
    let far = (1.0 - exp(-a4 * polynomial(ERF_FAR, a4))).copysign(x);
    if a < 1.0 { near } else { far }
}

/// Φ(x), the normal distribution function.
#[inline(always)]
pub fn normal(x: f32) -> f32 {
    0.5 * (1.0 + erf(x * std::f32::consts::FRAC_1_SQRT_2))
}

/// Σ cᵢ xⁱ.
#[inline(always)]
fn polynomial<const N: usize>(c: [f32; N], x: f32) -> f32 {
    let mut sum = c[N - 1];
    for i in (0..N - 1).rev() {
        sum = sum.mul_add(x, c[i]);
    }
    sum
}

/// Lanes of a sum: two AVX2 vectors, enough to hide the latency of an addition.
const LANES: usize = 16;

/// Σ f(aᵢ).
#[inline(always)]
pub fn sum(a: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0.0; LANES];
    let (whole, rest) = a.as_chunks::<LANES>();
    for a in whole {
        for l in 0..LANES {
            lanes[l] += f(a[l]);
        }
    }
    fold(lanes) + rest.iter().map(|a| f(*a)).sum::<f32>()
}

/// Σ f(aᵢ, bᵢ) over two slices of one length.
#[inline(always)]
pub fn sum2(a: &[f32], b: &[f32], f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [0.0; LANES];
    let ((whole_a, rest_a), (whole_b, rest_b)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    for (a, b) in whole_a.iter().zip(whole_b) {
        for l in 0..LANES {
            lanes[l] += f(a[l], b[l]);
        }
    }
    fold(lanes) + rest_a.iter().zip(rest_b).map(|(a, b)| f(*a, *b)).sum::<f32>()
}

/// The largest of a slice; -∞ for none. NaN is passed over.
#[inline(always)]
pub fn max(a: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (whole, rest) = a.as_chunks::<LANES>();
    for a in whole {
        for l in 0..LANES {
            lanes[l] = if a[l] > lanes[l] { a[l] } else { lanes[l] };
        }
    }
    lanes.iter().chain(rest).fold(f32::NEG_INFINITY, |m, v| if *v > m { *v } else { m })
}

#[inline(always)]
fn fold(mut lanes: [f32; LANES]) -> f32 {
    for half in [8, 4, 2, 1] {
        for l in 0..half {
            lanes[l] += lanes[l + half];
        }
    }
    lanes[0]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Steps between two floats of one sign.
    fn ulps(a: f32, b: f32) -> u32 {
        a.to_bits().abs_diff(b.to_bits())
    }

    #[test]
    fn exp_is_within_two_ulp_of_the_double() {
        let mut worst = 0;
        for i in 0..2_000_000 {
            let x = -87.0 + i as f32 * (175.0 / 2_000_000.0);
            worst = worst.max(ulps(exp(x), f64::from(x).exp() as f32));
        }
        assert!(worst <= 2, "{worst} ULP");
        assert_eq!(exp(0.0), 1.0);
    }

    #[test]
    fn erf_is_within_three_ulp_of_the_double() {
        let mut worst = 0;
        for i in 0..1_000_000 {
            let x = -5.0 + i as f32 * 1e-5;
            worst = worst.max(ulps(erf(x), candle_core::cpu::erf::erf_f64(f64::from(x)) as f32));
        }
        assert!(worst <= 3, "{worst} ULP");
        assert_eq!((erf(0.0), erf(f32::INFINITY), erf(f32::NEG_INFINITY)), (0.0, 1.0, -1.0));
        assert!(erf(f32::NAN).is_nan() && normal(f32::NAN).is_nan());
    }

    #[test]
    fn exp_holds_at_the_ends_and_keeps_nan() {
        assert!(exp(-1000.0) < 2e-38 && exp(f32::NEG_INFINITY) < 2e-38);
        assert!(exp(1000.0) > 2e38 && exp(1000.0).is_finite());
        assert!(exp(f32::NAN).is_nan() && sigmoid(f32::NAN).is_nan());
    }

    #[test]
    fn every_level_gives_the_same_bits() {
        let a: Vec<f32> = (0..1003).map(|i| ((i * 7919) % 2003) as f32 / 100.0 - 10.0).collect();
        #[inline(always)]
        fn all(a: &[f32]) -> (Vec<u32>, [u32; 3]) {
            let mut bits = Vec::new();
            for x in a {
                bits.extend([exp(*x).to_bits(), erf(*x).to_bits()]);
            }
            (bits, [sum(a, |x| x * x), sum2(a, a, |x, y| x * sigmoid(y)), max(a)].map(f32::to_bits))
        }
        let plain = all(&a);
        let a = &a[..];
        assert_eq!(wide!(|a: &'a [f32]| -> (Vec<u32>, [u32; 3]) { all(a) }), plain);
    }

    #[test]
    fn sums_of_every_length_are_the_plain_sums() {
        for n in 0..70 {
            let a: Vec<f32> = (0..n).map(|i| (i * i % 17) as f32).collect();
            assert_eq!(sum(&a, |x| x), a.iter().sum::<f32>(), "{n}");
            assert_eq!(sum2(&a, &a, |x, y| x * y), a.iter().map(|x| x * x).sum::<f32>(), "{n}");
            assert_eq!(max(&a), a.iter().copied().fold(f32::NEG_INFINITY, f32::max), "{n}");
        }
    }
}
