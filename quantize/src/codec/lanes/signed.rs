//! The searches for codes that lie around zero.

use super::{Lanes, Weights, across};
use crate::codec::k_search::{GROUP_EPS, nearest_int};
use pulp::{Arch, NullaryFnOnce};

/// [`k_search::symmetric_weighted`](crate::codec::k_search::symmetric_weighted) of each group: scales.
pub fn symmetric<const N: usize, const L: usize>(
    x: &[[f32; N]; L],
    weights: Weights<N, L>,
    nmax: i32,
    codes: &mut [[i8; N]; L],
) -> [f32; L] {
    Arch::new().dispatch(Symmetric { x, weights, nmax, codes })
}

/// [`k_search::descent`](crate::codec::k_search::descent) of each group: scales.
pub fn descent<const N: usize, const L: usize>(x: &[[f32; N]; L], nmax: i32, codes: &mut [[i8; N]; L]) -> [f32; L] {
    Arch::new().dispatch(Descent { x, nmax, codes })
}

struct Symmetric<'a, const N: usize, const L: usize> {
    x: &'a [[f32; N]; L],
    weights: Weights<'a, N, L>,
    nmax: i32,
    codes: &'a mut [[i8; N]; L],
}

struct Descent<'a, const N: usize, const L: usize> {
    x: &'a [[f32; N]; L],
    nmax: i32,
    codes: &'a mut [[i8; N]; L],
}

impl<const N: usize, const L: usize> NullaryFnOnce for Symmetric<'_, N, L> {
    type Output = [f32; L];

    #[inline(always)]
    fn call(self) -> [f32; L] {
        symmetric_lanes(&across(self.x), &self.weights.across(self.x), self.nmax, self.codes)
    }
}

impl<const N: usize, const L: usize> NullaryFnOnce for Descent<'_, N, L> {
    type Output = [f32; L];

    #[inline(always)]
    fn call(self) -> [f32; L] {
        descent_lanes(&across(self.x), self.nmax, self.codes)
    }
}

#[inline(always)]
fn largest<const N: usize, const L: usize>(x: &Lanes<N, L>) -> [f32; L] {
    let mut max = [0f32; L];
    for x in x {
        for g in 0..L {
            max[g] = if x[g].abs() > max[g].abs() { x[g] } else { max[g] };
        }
    }
    max
}

#[inline(always)]
fn signed_code(inverse: f32, v: f32, nmax: i32) -> i32 {
    nearest_int(inverse * v).clamp(-nmax, nmax - 1)
}

#[inline(always)]
fn symmetric_lanes<const N: usize, const L: usize>(
    x: &Lanes<N, L>,
    w: &Lanes<N, L>,
    nmax: i32,
    codes: &mut [[i8; N]; L],
) -> [f32; L] {
    let max = largest(x);
    let (mut won, mut scale, mut best) = ([0f32; L], [0f32; L], [0f32; L]);
    // The first is taken whatever it leaves.
    for step in [0, -9, -8, -7, -6, -5, -4, -3, -2, -1, 1, 2, 3, 4, 5, 6, 7, 8, 9] {
        let (mut inverse, mut lx, mut l2) = ([0f32; L], [0f32; L], [0f32; L]);
        for g in 0..L {
            inverse[g] = -(nmax as f32 + 0.1 * step as f32) / max[g];
        }
        for i in 0..N {
            for g in 0..L {
                let l = signed_code(inverse[g], x[i][g], nmax) as f32;
                lx[g] += w[i][g] * x[i][g] * l;
                l2[g] += w[i][g] * l * l;
            }
        }
        for g in 0..L {
            let better = (step == 0) | ((l2[g] > 0.0) & (lx[g] * lx[g] > best[g] * l2[g]));
            // Divided whatever it is by: a selection, not a branch.
            let ratio = lx[g] / l2[g];
            let fitted = if l2[g] == 0.0 { 0.0 } else { ratio };
            won[g] = if better { inverse[g] } else { won[g] };
            scale[g] = if better { fitted } else { scale[g] };
            best[g] = if better { fitted * lx[g] } else { best[g] };
        }
    }
    for g in 0..L {
        let zero = max[g].abs() < GROUP_EPS;
        scale[g] = if zero { 0.0 } else { scale[g] };
        for i in 0..N {
            codes[g][i] = if zero { 0 } else { (signed_code(won[g], x[i][g], nmax) + nmax) as i8 };
        }
    }
    scale
}

#[inline(always)]
fn descent_lanes<const N: usize, const L: usize>(x: &Lanes<N, L>, nmax: i32, codes: &mut [[i8; N]; L]) -> [f32; L] {
    let max = largest(x);
    let (mut c, mut lx, mut l2) = ([[0i32; L]; N], [0f32; L], [0f32; L]);
    for i in 0..N {
        for g in 0..L {
            let v = x[i][g];
            c[i][g] = signed_code(-(nmax as f32) / max[g], v, nmax);
            let (w, l) = (v * v, c[i][g] as f32);
            lx[g] += w * v * l;
            l2[g] += w * l * l;
        }
    }
    // A lane in which a pass changes nothing changes nothing in later ones either.
    for _ in 0..5 {
        let mut changed = [false; L];
        for i in 0..N {
            for g in 0..L {
                let v = x[i][g];
                let (w, l) = (v * v, c[i][g] as f32);
                let (without_lx, without_l2) = (lx[g] - w * v * l, l2[g] - w * l * l);
                let new = nearest_int(v * without_l2 / without_lx).clamp(-nmax, nmax - 1);
                let l = new as f32;
                let (new_lx, new_l2) = (without_lx + w * v * l, without_l2 + w * l * l);
                let better = ((without_lx > 0.0) | without_lx.is_nan())
                    & (new != c[i][g])
                    & (new_l2 > 0.0)
                    & (new_lx * new_lx * l2[g] > lx[g] * lx[g] * new_l2);
                c[i][g] = if better { new } else { c[i][g] };
                lx[g] = if better { new_lx } else { lx[g] };
                l2[g] = if better { new_l2 } else { l2[g] };
                changed[g] |= better;
            }
        }
        if !changed.contains(&true) {
            break;
        }
    }
    let mut scale = [0f32; L];
    for g in 0..L {
        let zero = max[g].abs() < GROUP_EPS;
        scale[g] = if !zero && l2[g] > 0.0 { lx[g] / l2[g] } else { 0.0 };
        for i in 0..N {
            codes[g][i] = if zero { 0 } else { (c[i][g] + nmax) as i8 };
        }
    }
    scale
}

#[cfg(test)]
mod tests {
    use super::super::tests::{bits, group};
    use super::*;
    use crate::codec::k_search as plain;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn signed_lanes_find_what_the_plain_searches_find(
            x in prop::array::uniform16(group::<16>()),
            given in prop::array::uniform16(group::<16>()),
            nmax in prop::sample::select(vec![4, 32]),
        ) {
            let given = given.map(|w| w.map(f32::abs));
            let (mut own, mut by, mut down) = ([[0i8; 16]; 16], [[0i8; 16]; 16], [[0i8; 16]; 16]);
            let own_scales = symmetric(&x, Weights::Square, nmax, &mut own);
            let by_scales = symmetric(&x, Weights::Given(&given), nmax, &mut by);
            let down_scales = descent(&x, nmax, &mut down);
            for g in 0..16 {
                let (mut a, mut b, mut c) = ([0i8; 16], [0i8; 16], [0i8; 16]);
                let want = [
                    plain::symmetric(&x[g], nmax, &mut a),
                    plain::symmetric_weighted(&x[g], &given[g], nmax, &mut b),
                    plain::descent(&x[g], nmax, &mut c),
                ];
                let found = [own_scales[g], by_scales[g], down_scales[g]];
                prop_assert_eq!(bits(&found), bits(&want), "group {}", g);
                prop_assert_eq!((own[g], by[g], down[g]), (a, b, c), "group {}", g);
            }
        }
    }
}
