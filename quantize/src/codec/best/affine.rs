//! Scales and mins: `x ~ scale * code + low`, codes from 0.

use super::{LANES, between, round, sum};
use crate::codec::{Overflow, min_max, scale};
use half::f16;

/// A group under one scale and one min: what its error is, and what least squares asks for.
#[derive(Clone, Copy)]
struct Sums {
    error: f32,
    /// Σ w code, Σ w code², Σ w code x.
    c: f32,
    cc: f32,
    cx: f32,
}

fn sums(x: &[f32], w: &[f32], top: f32, step: f32, low: f32) -> Sums {
    let inverse = if step > 0.0 && (1.0 / step).is_finite() { 1.0 / step } else { 0.0 };
    let (mut error, mut c, mut cc, mut cx) = ([0f32; LANES], [0f32; LANES], [0f32; LANES], [0f32; LANES]);
    for (x, w) in x.as_chunks::<LANES>().0.iter().zip(w.as_chunks::<LANES>().0) {
        for i in 0..LANES {
            let code = round(between((x[i] - low) * inverse, 0.0, top));
            let d = x[i] - step * code - low;
            error[i] += w[i] * d * d;
            c[i] += w[i] * code;
            cc[i] += w[i] * code * code;
            cx[i] += w[i] * code * x[i];
        }
    }
    Sums { error: sum(error), c: sum(c), cc: sum(cc), cx: sum(cx) }
}

/// Scale and low end that fit a group best: the ends of its range moved in, each followed by least squares. `under`: the low end
/// may not be above 0, as in K types.
fn fit(x: &[f32], w: &[f32], top: i32, under: bool) -> (f32, f32) {
    let (mut min, mut max) = min_max(x);
    if under {
        (min, max) = (min.min(0.0), max.max(0.0));
    }
    let (sw, sx) = x.iter().zip(w).fold((0f32, 0f32), |(a, b), (x, w)| (a + w, b + w * x));
    if max <= min {
        return (0.0, min);
    }
    let (range, top) = (max - min, top as f32);
    let mut best = (f32::INFINITY, 0f32, min);
    for a in 0..5 {
        for b in 0..5 {
            let mut low = min + range * a as f32 * 0.5 / top;
            low = if under { low.min(0.0) } else { low };
            let mut step = (max - range * b as f32 * 0.5 / top - low) / top;
            for _ in 0..3 {
                if step <= 0.0 {
                    break;
                }
                let s = sums(x, w, top, step, low);
                if s.error < best.0 {
                    best = (s.error, step, low);
                }
                let det = sw * s.cc - s.c * s.c;
                if det <= 0.0 {
                    break;
                }
                (step, low) = ((sw * s.cx - sx * s.c) / det, (s.cc * sx - s.c * s.cx) / det);
                if under && low > 0.0 {
                    (step, low) = (s.cx / s.cc, 0.0);
                }
            }
        }
    }
    (best.1, best.2)
}

/// Scale and low end of a block that has its own, as f16.
pub(crate) fn pair(x: &[f32], w: &[f32], top: i32) -> Result<(f16, f16), Overflow> {
    let (step, low) = fit(x, w, top, false);
    Ok((scale(step)?, scale(low)?))
}

/// Scales of a super-block of `G` groups: `d scale code - dmin min`.
pub(crate) struct Affine<const G: usize> {
    pub d: f16,
    pub dmin: f16,
    pub scales: [u8; G],
    pub mins: [u8; G],
}

/// Those with the least error; scales and mins reach `most`, codes `top`.
pub(crate) fn super_affine<const G: usize>(
    x: &[f32; 256],
    w: &[f32; 256],
    top: i32,
    most: i32,
) -> Result<Affine<G>, Overflow> {
    let n = 256 / G;
    let part = |j: usize| n * j..n * (j + 1);
    let fitted: [(f32, f32); G] = std::array::from_fn(|j| {
        let (step, low) = fit(&x[part(j)], &w[part(j)], top, true);
        (step, -low)
    });
    let weight: [f32; G] = std::array::from_fn(|j| w[part(j)].iter().sum());
    let total: [f32; G] = std::array::from_fn(|j| x[part(j)].iter().zip(&w[part(j)]).map(|(x, w)| x * w).sum());
    let largest = |of: fn(&(f32, f32)) -> f32| fitted.iter().map(of).fold(0f32, f32::max);
    let (s_top, m_top) = (largest(|f| f.0) / most as f32, largest(|f| f.1) / most as f32);
    scale(s_top)?;
    scale(m_top)?;
    let (top, most) = (top as f32, most as f32);
    let integer = |v: f32, unit: f32| if unit > 0.0 { round(between(v / unit, 0.0, most)) } else { 0.0 };
    let choose = |d: f16, dmin: f16| -> (f32, [f32; G], [f32; G]) {
        let (d, dmin) = (d.to_f32(), dmin.to_f32());
        let (mut all, mut scales, mut mins) = (0f32, [0f32; G], [0f32; G]);
        for j in 0..G {
            let (x, w, near) = (&x[part(j)], &w[part(j)], integer(fitted[j].0, d));
            let mut best = (f32::INFINITY, 0f32, 0f32);
            for s in [near, near - 1.0, near + 1.0].into_iter().filter(|s| (0.0..=most).contains(s)) {
                let mut m = integer(fitted[j].1, dmin);
                for _ in 0..3 {
                    let at = sums(x, w, top, d * s, -dmin * m);
                    if at.error < best.0 {
                        best = (at.error, s, m);
                    }
                    // The min that these codes ask for.
                    let next = integer((d * s * at.c - total[j]) / weight[j], dmin);
                    if next == m {
                        break;
                    }
                    m = next;
                }
            }
            // One up and one down from there.
            for m in [best.2 - 1.0, best.2 + 1.0].into_iter().filter(|m| (0.0..=most).contains(m)) {
                let at = sums(x, w, top, d * best.1, -dmin * m);
                if at.error < best.0 {
                    best = (at.error, best.1, m);
                }
            }
            all += best.0;
            (scales[j], mins[j]) = (best.1, best.2);
        }
        (all, scales, mins)
    };
    let near = |unit: f32, share: f32| f16::from_f32(unit * share);
    const SHARES: [f32; 9] = [1.0, 0.94, 0.97, 1.03, 1.06, 1.1, 1.14, 1.19, 1.25];
    let mut best = (f32::INFINITY, f16::ZERO, f16::ZERO, [0f32; G], [0f32; G]);
    let consider = |best: &mut (f32, f16, f16, [f32; G], [f32; G]), d: f16, dmin: f16| {
        let (e, scales, mins) = choose(d, dmin);
        let better = e < best.0;
        if better {
            *best = (e, d, dmin, scales, mins);
        }
        better
    };
    for share in SHARES {
        consider(&mut best, near(s_top, share), near(m_top, 1.0));
    }
    for share in SHARES.into_iter().skip(1).filter(|_| m_top > 0.0) {
        let d = best.1;
        consider(&mut best, d, near(m_top, share));
    }
    for _ in 0..4 {
        // Both together by least squares: x ~ d a - dmin b, with a = scale code and b = min.
        let (mut aa, mut ab, mut bb, mut ax, mut bx) = (0f64, 0f64, 0f64, 0f64, 0f64);
        for j in 0..G {
            let (s, m) = (best.3[j], best.4[j]);
            let at = sums(&x[part(j)], &w[part(j)], top, best.1.to_f32() * s, -best.2.to_f32() * m);
            let (s, m) = (f64::from(s), f64::from(m));
            let (c, cc, cx) = (f64::from(at.c), f64::from(at.cc), f64::from(at.cx));
            aa += s * s * cc;
            ab += s * m * c;
            bb += m * m * f64::from(weight[j]);
            ax += s * cx;
            bx += m * f64::from(total[j]);
        }
        let det = aa * bb - ab * ab;
        let (d, dmin) = match det > 1e-9 * aa * bb {
            true => ((ax * bb - bx * ab) / det, (ax * ab - bx * aa) / det),
            false if aa > 0.0 => ((ax + ab * f64::from(best.2.to_f32())) / aa, f64::from(best.2.to_f32())),
            false => break,
        };
        if !(d > 0.0 && dmin >= 0.0) {
            break;
        }
        let (d, dmin) = (f16::from_f64(d), f16::from_f64(dmin));
        if !(d.is_finite() && dmin.is_finite() && consider(&mut best, d, dmin)) {
            break;
        }
    }
    Ok(Affine { d: best.1, dmin: best.2, scales: best.3.map(|s| s as u8), mins: best.4.map(|m| m as u8) })
}
