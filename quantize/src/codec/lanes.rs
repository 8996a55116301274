//! The searches of [`k_search`](super::k_search) for all groups of a super-block at once, a group in each lane of a vector.
//! A lane does what the plain search does, in its order and without fused operations, so that codes, scales and mins are the
//! same to the last bit; only the choices (`if`) become selections, and codes are told by the candidate that won.
//!
//! The loops are plain Rust over `[f32; L]`, compiled once for each vector width and chosen at run time.

use super::k_search::{Grid, nearest_int};
use pulp::{Arch, NullaryFnOnce};

mod signed;
pub use signed::{descent, symmetric};

/// L groups of N elements, element by element: the L first ones, the L second ones and so on.
type Lanes<const N: usize, const L: usize> = [[f32; L]; N];

/// What an element's error counts.
#[derive(Clone, Copy)]
pub enum Weights<'a, const N: usize, const L: usize> {
    /// The root mean square of its group plus its magnitude.
    RmsPlusMagnitude,
    /// Its magnitude.
    Magnitude,
    /// Its square.
    Square,
    /// These.
    Given(&'a [[f32; N]; L]),
}

/// [`k_search::affine`](super::k_search::affine) of each group: scales and mins.
pub fn affine<const N: usize, const L: usize>(
    x: &[[f32; N]; L],
    weights: Weights<N, L>,
    grid: Grid,
    codes: &mut [[u8; N]; L],
) -> ([f32; L], [f32; L]) {
    Arch::new().dispatch(Affine { x, weights, grid, codes })
}

// A closure would be called from one place for each width, so it would not be inlined, and would be compiled for the narrowest.

struct Affine<'a, const N: usize, const L: usize> {
    x: &'a [[f32; N]; L],
    weights: Weights<'a, N, L>,
    grid: Grid,
    codes: &'a mut [[u8; N]; L],
}

impl<const N: usize, const L: usize> NullaryFnOnce for Affine<'_, N, L> {
    type Output = ([f32; L], [f32; L]);

    #[inline(always)]
    fn call(self) -> Self::Output {
        affine_lanes(&across(self.x), &self.weights.across(self.x), self.grid, self.codes)
    }
}

#[inline(always)]
fn across<const N: usize, const L: usize>(x: &[[f32; N]; L]) -> Lanes<N, L> {
    let mut out = [[0.0; L]; N];
    for (g, x) in x.iter().enumerate() {
        for (i, v) in x.iter().enumerate() {
            out[i][g] = *v;
        }
    }
    out
}

impl<const N: usize, const L: usize> Weights<'_, N, L> {
    #[inline(always)]
    fn across(self, x: &[[f32; N]; L]) -> Lanes<N, L> {
        if let Self::Given(weights) = self {
            return across(weights);
        }
        let mut out = across(x);
        let mut rms = [0f32; L];
        if let Self::RmsPlusMagnitude = self {
            for v in &out {
                for g in 0..L {
                    rms[g] += v[g] * v[g];
                }
            }
            for sum in &mut rms {
                *sum = (*sum / N as f32).sqrt();
            }
        }
        for v in &mut out {
            for g in 0..L {
                v[g] = if let Self::Square = self { v[g] * v[g] } else { rms[g] + v[g].abs() };
            }
        }
        out
    }
}

#[inline(always)]
fn affine_lanes<const N: usize, const L: usize>(
    x: &Lanes<N, L>,
    w: &Lanes<N, L>,
    grid: Grid,
    codes: &mut [[u8; N]; L],
) -> ([f32; L], [f32; L]) {
    let Grid { nmax, first, delta, steps, absolute, bounded } = grid;
    let (mut min, mut max, mut sum_w, mut sum_x) = (x[0], x[0], w[0], [0f32; L]);
    for g in 0..L {
        sum_x[g] = w[0][g] * x[0][g];
    }
    for i in 1..N {
        for g in 0..L {
            let (v, w) = (x[i][g], w[i][g]);
            min[g] = if v < min[g] { v } else { min[g] };
            max[g] = if v > max[g] { v } else { max[g] };
            sum_w[g] += w;
            sum_x[g] += w * v;
        }
    }
    for m in &mut min {
        *m = if *m > 0.0 { 0.0 } else { *m };
    }
    let (lowest, mut scale, mut best) = (min, [0f32; L], [0f32; L]);
    // The candidate whose codes are the best so far: what elements were multiplied by, and their min then.
    let (mut won, mut won_min, mut won_first) = ([0f32; L], min, [true; L]);
    let mut candidate = [[0f32; L]; N];
    for g in 0..L {
        won[g] = nmax as f32 / (max[g] - min[g]);
        scale[g] = 1.0 / won[g];
    }
    for i in 0..N {
        for g in 0..L {
            candidate[i][g] = code(won[g], x[i][g] - min[g], nmax) as f32;
        }
    }
    error(x, w, &candidate, (&scale, &min), absolute, &mut best);
    for step in 0..=steps {
        let (mut inverse, mut this) = ([0f32; L], [0f32; L]);
        let (mut l1, mut l2, mut lx) = ([0f32; L], [0f32; L], [0f32; L]);
        for g in 0..L {
            inverse[g] = (first + delta * step as f32 + nmax as f32) / (max[g] - min[g]);
        }
        for i in 0..N {
            for g in 0..L {
                let v = x[i][g] - min[g];
                let l = if bounded { bounded_code(inverse[g], v, nmax) } else { code(inverse[g], v, nmax) } as f32;
                candidate[i][g] = l;
                l1[g] += w[i][g] * l;
                l2[g] += w[i][g] * l * l;
                lx[g] += w[i][g] * l * x[i][g];
            }
        }
        let (mut this_scale, mut this_min, mut solved) = ([0f32; L], [0f32; L], [false; L]);
        for g in 0..L {
            let det = sum_w[g] * l2[g] - l1[g] * l1[g];
            let free = ((sum_w[g] * lx[g] - sum_x[g] * l1[g]) / det, (l2[g] * sum_x[g] - l1[g] * lx[g]) / det);
            let through_zero = (lx[g] / l2[g], 0.0);
            (this_scale[g], this_min[g]) = if free.1 > 0.0 { through_zero } else { free };
            solved[g] = (det > 0.0) | det.is_nan();
        }
        error(x, w, &candidate, (&this_scale, &this_min), absolute, &mut this);
        for g in 0..L {
            let better = solved[g] & (this[g] < best[g]);
            won[g] = if better { inverse[g] } else { won[g] };
            won_min[g] = if better { min[g] } else { won_min[g] };
            won_first[g] &= !better;
            best[g] = if better { this[g] } else { best[g] };
            scale[g] = if better { this_scale[g] } else { scale[g] };
            min[g] = if better { this_min[g] } else { min[g] };
        }
    }
    for g in 0..L {
        if max[g] <= lowest[g] {
            (scale[g], min[g]) = (0.0, lowest[g]);
            codes[g] = [0; N];
            continue;
        }
        for i in 0..N {
            let (inverse, v) = (won[g], x[i][g] - won_min[g]);
            let c = if bounded & !won_first[g] { bounded_code(inverse, v, nmax) } else { code(inverse, v, nmax) };
            codes[g][i] = c as u8;
        }
    }
    (scale, min.map(|m| -m))
}

#[inline(always)]
fn code(inverse: f32, v: f32, nmax: i32) -> i32 {
    nearest_int(inverse * v).clamp(0, nmax)
}

#[inline(always)]
fn bounded_code(inverse: f32, v: f32, nmax: i32) -> i32 {
    let v = inverse * v;
    let bounded = nearest_int(if v < nmax as f32 { v } else { nmax as f32 });
    if v > 0.0 { bounded } else { 0 }
}

#[inline(always)]
fn error<const N: usize, const L: usize>(
    x: &Lanes<N, L>,
    w: &Lanes<N, L>,
    codes: &Lanes<N, L>,
    (scale, min): (&[f32; L], &[f32; L]),
    absolute: bool,
    sum: &mut [f32; L],
) {
    *sum = [0.0; L];
    for i in 0..N {
        for g in 0..L {
            let diff = scale[g] * codes[i][g] + min[g] - x[i][g];
            sum[g] += w[i][g] * if absolute { diff.abs() } else { diff * diff };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::k_search as plain;
    use super::*;
    use proptest::prelude::*;

    /// Groups of every kind: gaussian-like, of one sign, constant, zero, tiny, huge, some of any bits.
    pub(super) fn group<const N: usize>() -> impl Strategy<Value = [f32; N]> {
        let finite = |b: u32| Some(f32::from_bits(b)).filter(|v| v.is_finite() && v.abs() < 1e7).unwrap_or(0.0);
        let kinds = (0u32..9, prop::collection::vec(any::<u32>(), N));
        kinds.prop_map(move |(kind, bits)| {
            let uniform = |b: u32| b as f32 / u32::MAX as f32 - 0.5;
            std::array::from_fn(|i| match kind {
                0 | 1 => uniform(bits[i]) + uniform(bits[(i + 1) % N]),
                2 => uniform(bits[i]).abs() + 0.1,
                3 => -uniform(bits[i]).abs() - 0.1,
                4 => uniform(bits[0]),
                5 => 0.0,
                6 => uniform(bits[i]) * if bits[0] % 2 == 0 { 1e-40 } else { 1e-14 },
                7 => uniform(bits[i]) * 1e6,
                _ => finite(bits[i]),
            })
        })
    }

    pub(super) fn bits(x: &[f32]) -> Vec<u32> {
        x.iter().map(|v| if v.is_nan() { f32::NAN.to_bits() } else { v.to_bits() }).collect()
    }

    const GRIDS: [Grid; 4] = [
        Grid { nmax: 15, first: -1.0, delta: 0.1, steps: 20, absolute: false, bounded: false },
        Grid { nmax: 31, first: -0.5, delta: 0.1, steps: 15, absolute: false, bounded: false },
        Grid { nmax: 3, first: -0.5, delta: 0.1, steps: 15, absolute: true, bounded: false },
        plain::fine(15),
    ];

    proptest! {
        #[test]
        fn a_lane_finds_what_the_plain_search_finds(
            x in prop::array::uniform8(group::<32>()),
            given in prop::array::uniform8(group::<32>()),
            grid in 0usize..4,
            kind in 0usize..3,
        ) {
            let given = given.map(|w| w.map(f32::abs));
            let grid = GRIDS[grid];
            let weights = [Weights::RmsPlusMagnitude, Weights::Magnitude, Weights::Given(&given)][kind];
            let mut codes = [[0u8; 32]; 8];
            let (scales, mins) = affine(&x, weights, grid, &mut codes);
            for g in 0..8 {
                let rms = (x[g].iter().fold(0f32, |s, v| s + v * v) / 32.0).sqrt();
                let w = match kind {
                    0 => x[g].map(|v| rms + v.abs()),
                    1 => x[g].map(f32::abs),
                    _ => given[g],
                };
                let mut want = [0u8; 32];
                let (scale, min) = plain::affine(&x[g], &w, grid, &mut want);
                prop_assert_eq!(bits(&[scales[g], mins[g]]), bits(&[scale, min]), "group {}", g);
                prop_assert_eq!(codes[g], want, "group {}", g);
            }
        }

    }
}
