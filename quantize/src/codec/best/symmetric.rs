//! Scales of blocks without a min: `x ~ scale * level`.

use super::{LANES, between, round, sum};
use crate::codec::{Overflow, scale, signed_max};
use edgeft_runtime::format::block::IQ4_VALUES;
use half::f16;

/// The levels that a code stands for.
pub(crate) trait Levels: Copy {
    /// The level nearest to `v`.
    fn nearest(self, v: f32) -> f32;
    /// The scale that fits a group best, whatever its sign.
    fn fit(self, x: &[f32], w: &[f32]) -> f32;
}

/// The integers from `-n` to `top`.
#[derive(Clone, Copy)]
pub(crate) struct Int {
    pub n: i32,
    pub top: i32,
}

/// IQ4's sixteen levels, which lie closer around 0.
#[derive(Clone, Copy)]
pub(crate) struct Iq4;

impl Levels for Int {
    fn nearest(self, v: f32) -> f32 {
        round(between(v, -self.n as f32, self.top as f32))
    }

    fn fit(self, x: &[f32], w: &[f32]) -> f32 {
        if self.n <= 8 {
            let (up, down) = (half_line(x, w, self.n, self.top), half_line(x, w, self.top, self.n));
            return if up.1 >= down.1 { up.0 } else { -down.0 };
        }
        // Many small steps: what a grid misses of the exact scale is little, and the exact one takes long.
        let n = self.n as f32;
        on_places(self, x, w, (0..24).map(|i| n * (0.9 + 0.008 * i as f32)), 1)
    }
}

/// The scale of one sign, and what it takes off the error: exactly, for codes change only where `|x| t` passes a half, so all
/// fits there are lie between those places. Codes reach `low` for negative elements and `high` for positive ones.
fn half_line(x: &[f32], w: &[f32], low: i32, high: i32) -> (f32, f64) {
    // Where an element's code becomes k: (k - 1/2) / |x|. At most 32 elements of 32 codes, or 16 of as many.
    let mut places: Vec<(f32, u16, u16)> = Vec::with_capacity(x.len() * low.max(high) as usize);
    for (i, v) in x.iter().enumerate().filter(|(_, v)| **v != 0.0) {
        let most = if *v < 0.0 { low } else { high };
        places.extend((1..=most).map(|k| ((k as f32 - 0.5) / v.abs(), i as u16, k as u16)));
    }
    places.sort_unstable_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    let (mut lx, mut l2) = (0f64, 0f64);
    let mut best = (0f32, 0f64);
    for (_, i, k) in places {
        let (v, w) = (f64::from(x[usize::from(i)].abs()), f64::from(w[usize::from(i)]));
        lx += w * v;
        l2 += w * (2.0 * f64::from(k) - 1.0);
        let taken = lx * lx / l2;
        if taken > best.1 {
            best = ((lx / l2) as f32, taken);
        }
    }
    best
}

impl Levels for Iq4 {
    fn nearest(self, v: f32) -> f32 {
        f32::from(IQ4_VALUES[crate::codec::iq4::level(v)])
    }

    /// The largest element on every place about the ends of the levels, then least squares twice.
    fn fit(self, x: &[f32], w: &[f32]) -> f32 {
        on_places(self, x, w, (84..=148).step_by(2).map(|p| p as f32), 2)
    }
}

/// The largest element on each place, in both signs, then least squares so many times: the scale that takes most off the error.
fn on_places<L: Levels>(levels: L, x: &[f32], w: &[f32], places: impl Iterator<Item = f32>, fits: usize) -> f32 {
    let max = signed_max(x);
    if max == 0.0 {
        return 0.0;
    }
    let mut best = (0f32, 0f32);
    for place in places.flat_map(|p| [p, -p]) {
        let mut step = max / place;
        for _ in 0..fits {
            let (lx, l2) = sums(levels, x, w, step);
            if l2 <= 0.0 {
                break;
            }
            if lx * lx / l2 > best.1 {
                best = (lx / l2, lx * lx / l2);
            }
            step = lx / l2;
        }
    }
    best.0
}

/// Σ w x level, Σ w level² at a step.
fn sums<L: Levels>(levels: L, x: &[f32], w: &[f32], step: f32) -> (f32, f32) {
    let inverse = 1.0 / step;
    let (mut lx, mut l2) = ([0f32; LANES], [0f32; LANES]);
    if !inverse.is_finite() {
        return (0.0, 0.0);
    }
    for (x, w) in x.as_chunks::<LANES>().0.iter().zip(w.as_chunks::<LANES>().0) {
        for i in 0..LANES {
            let l = levels.nearest(x[i] * inverse);
            lx[i] += w[i] * x[i] * l;
            l2[i] += w[i] * l * l;
        }
    }
    (sum(lx), sum(l2))
}

/// Σ w (x - step level)²; of a step of 0, Σ w x².
fn error<L: Levels>(levels: L, x: &[f32], w: &[f32], step: f32) -> f32 {
    let inverse = if step == 0.0 || !(1.0 / step).is_finite() { 0.0 } else { 1.0 / step };
    let mut out = [0f32; LANES];
    for (x, w) in x.as_chunks::<LANES>().0.iter().zip(w.as_chunks::<LANES>().0) {
        for i in 0..LANES {
            let d = x[i] - step * levels.nearest(x[i] * inverse);
            out[i] += w[i] * d * d;
        }
    }
    sum(out)
}

/// The f16 scale of a block that has one alone.
pub(crate) fn scale_of<L: Levels>(levels: L, x: &[f32], w: &[f32]) -> Result<f16, Overflow> {
    scale(levels.fit(x, w))
}

/// Scale and signed sub-scales (`low..=high`) of a super-block of `G` groups.
pub(crate) fn super_symmetric<const G: usize, L: Levels>(
    levels: L,
    x: &[f32; 256],
    w: &[f32; 256],
    low: i32,
    high: i32,
) -> Result<(f16, [i32; G]), Overflow> {
    let n = 256 / G;
    let part = |j: usize| n * j..n * (j + 1);
    let fitted: [f32; G] = std::array::from_fn(|j| levels.fit(&x[part(j)], &w[part(j)]));
    let top = signed_max(&fitted);
    if top == 0.0 {
        return Ok((f16::ZERO, [0; G]));
    }
    let choose = |d: f16| -> (f32, [i32; G]) {
        let (d, mut all, mut scales) = (d.to_f32(), 0f32, [0; G]);
        for j in 0..G {
            let near = round(between(fitted[j] / d, low as f32, high as f32)) as i32;
            let mut best = (f32::INFINITY, near);
            for s in (near - 2).max(low)..=(near + 2).min(high) {
                let e = error(levels, &x[part(j)], &w[part(j)], d * s as f32);
                if e < best.0 {
                    best = (e, s);
                }
            }
            scales[j] = best.1;
            all += best.0;
        }
        (all, scales)
    };
    // The largest on its last place, then nearer and beyond, in both signs.
    let mut best: Option<(f32, f16, [i32; G])> = None;
    for end in [low as f32, high as f32] {
        for share in [1.06, 1.03, 1.0, 0.97, 0.94, 0.91, 0.88, 0.84, 0.8, 0.75] {
            let d = f16::from_f32(top / (end * share));
            if d == f16::ZERO || !d.is_finite() {
                continue;
            }
            let (e, scales) = choose(d);
            if best.as_ref().is_none_or(|b| e < b.0) {
                best = Some((e, d, scales));
            }
        }
    }
    let Some(mut best) = best else { return Ok((scale(top / low as f32)?, [0; G])) };
    for _ in 0..4 {
        let (mut lx, mut l2) = (0f64, 0f64);
        for j in 0..G {
            let s = best.2[j] as f32;
            if s == 0.0 {
                continue;
            }
            let (a, b) = sums(levels, &x[part(j)], &w[part(j)], best.1.to_f32() * s);
            lx += f64::from(a * s);
            l2 += f64::from(b * s * s);
        }
        let d = if l2 > 0.0 { f16::from_f32((lx / l2) as f32) } else { break };
        if d == f16::ZERO || !d.is_finite() || d == best.1 {
            break;
        }
        let (e, scales) = choose(d);
        if e >= best.0 {
            break;
        }
        best = (e, d, scales);
    }
    Ok((best.1, best.2))
}
