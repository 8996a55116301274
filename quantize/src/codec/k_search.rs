//! The searches that choose a group's scale (and min) in K types, after ggml's `make_qx_quants`, `make_q3_quants`,
//! `make_qkx2_quants`, and with importance `make_qkx3_quants` and `make_qp_quants`.
//!
//! Every sum is a plain f32 sum in element order: another order, or a fused multiply-add, changes the last bit of an error,
//! and with it which candidate wins. That is why these loops look as they do.
//!
//! They are the definition, a group at a time. Super-blocks go through `codec::lanes`, which must find the same; what
//! no block calls here any more stands for that test.

/// Groups whose largest magnitude is below this count as zero.
pub const GROUP_EPS: f32 = 1e-15;

/// Nearest integer, halves to even, for `|v| < 2^22`: adding `1.5 * 2^23` leaves the integer in the low mantissa bits.
/// Beyond that, and for NaN, the result is some integer of 23 bits; callers clamp it.
#[inline(always)]
pub fn nearest_int(v: f32) -> i32 {
    ((v + 12_582_912.0).to_bits() & 0x007f_ffff) as i32 - 0x0040_0000
}

/// [`symmetric_weighted`] with weights `x^2`.
pub fn symmetric(x: &[f32], nmax: i32, codes: &mut [i8]) -> f32 {
    symmetric_by(x, |i| x[i] * x[i], nmax, codes)
}

/// Symmetric codes `x ~ scale * l`, `l` in `-nmax..nmax`: eighteen scales around the one that puts the largest element on
/// `-nmax`, each refit by weighted least squares, the best kept. Returns the scale; 0 for a group of zeros.
pub fn symmetric_weighted(x: &[f32], weights: &[f32], nmax: i32, codes: &mut [i8]) -> f32 {
    symmetric_by(x, |i| weights[i], nmax, codes)
}

fn symmetric_by(x: &[f32], weight: impl Fn(usize) -> f32, nmax: i32, codes: &mut [i8]) -> f32 {
    let max = super::signed_max(x);
    if max.abs() < GROUP_EPS {
        codes.fill(0);
        return 0.0;
    }
    let code = |inverse: f32, v: f32| nearest_int(inverse * v).clamp(-nmax, nmax - 1);
    let fit = |inverse: f32| {
        let (mut lx, mut l2) = (0f32, 0f32);
        for (i, &v) in x.iter().enumerate() {
            let l = code(inverse, v) as f32;
            let w = weight(i);
            lx += w * v * l;
            l2 += w * l * l;
        }
        (lx, l2)
    };
    let mut keep = |inverse: f32| {
        for (c, &v) in codes.iter_mut().zip(x) {
            *c = (code(inverse, v) + nmax) as i8;
        }
    };
    let inverse = -(nmax as f32) / max;
    keep(inverse);
    let (lx, l2) = fit(inverse);
    let mut scale = if l2 != 0.0 { lx / l2 } else { 0.0 };
    let mut best = scale * lx;
    for step in (-9..=9).filter(|s| *s != 0) {
        let inverse = -(nmax as f32 + 0.1 * step as f32) / max;
        let (lx, l2) = fit(inverse);
        if l2 > 0.0 && lx * lx > best * l2 {
            keep(inverse);
            scale = lx / l2;
            best = scale * lx;
        }
    }
    scale
}

/// Symmetric codes as [`symmetric`], by coordinate descent: each code in turn moves to where the least-squares error is
/// smallest given the others, up to five passes.
pub fn descent(x: &[f32], nmax: i32, codes: &mut [i8]) -> f32 {
    let max = super::signed_max(x);
    if max.abs() < GROUP_EPS {
        codes.fill(0);
        return 0.0;
    }
    let inverse = -(nmax as f32) / max;
    let (mut lx, mut l2) = (0f32, 0f32);
    for (c, &v) in codes.iter_mut().zip(x) {
        *c = nearest_int(inverse * v).clamp(-nmax, nmax - 1) as i8;
        let (w, l) = (v * v, f32::from(*c));
        lx += w * v * l;
        l2 += w * l * l;
    }
    for _ in 0..5 {
        let mut changed = false;
        for (c, &v) in codes.iter_mut().zip(x) {
            let (w, l) = (v * v, f32::from(*c));
            let mut without_lx = lx - w * v * l;
            if without_lx <= 0.0 {
                continue;
            }
            let mut without_l2 = l2 - w * l * l;
            let new = nearest_int(v * without_l2 / without_lx).clamp(-nmax, nmax - 1);
            if new == i32::from(*c) {
                continue;
            }
            let l = new as f32;
            without_lx += w * v * l;
            without_l2 += w * l * l;
            if without_l2 > 0.0 && without_lx * without_lx * l2 > lx * lx * without_l2 {
                *c = new as i8;
                (lx, l2) = (without_lx, without_l2);
                changed = true;
            }
        }
        if !changed {
            break;
        }
    }
    for c in codes.iter_mut() {
        *c += nmax as i8;
    }
    if l2 > 0.0 { lx / l2 } else { 0.0 }
}

/// How [`affine`] looks for its scale.
#[derive(Debug, Clone, Copy)]
pub struct Grid {
    /// Largest code; codes start at 0.
    pub nmax: i32,
    /// First candidate: `(nmax + first) / range`.
    pub first: f32,
    /// Step between candidates.
    pub delta: f32,
    /// Candidates after the first.
    pub steps: i32,
    /// Compare by weighted absolute error instead of weighted squared error.
    pub absolute: bool,
    /// Clamp before rounding, as the searches with importance do.
    pub bounded: bool,
}

/// Codes with a min, `x ~ scale * l - min`, `l` in `0..=nmax`, `min >= 0`: for each candidate of `grid` a weighted least
/// squares fit of scale and min, the best kept. Returns `(scale, min)`. At most 32 elements.
pub fn affine(x: &[f32], weights: &[f32], grid: Grid, codes: &mut [u8]) -> (f32, f32) {
    let Grid { nmax, first, delta, steps, absolute, bounded } = grid;
    let (mut min, mut max) = (x[0], x[0]);
    let mut sum_w = weights[0];
    let mut sum_x = sum_w * x[0];
    for (&v, &w) in x.iter().zip(weights).skip(1) {
        min = if v < min { v } else { min };
        max = if v > max { v } else { max };
        sum_w += w;
        sum_x += w * v;
    }
    min = if min > 0.0 { 0.0 } else { min };
    if max <= min {
        codes.fill(0);
        return (0.0, -min);
    }
    let code = |inverse: f32, v: f32| nearest_int(inverse * v).clamp(0, nmax) as u8;
    // The best min so far may come near the maximum: the step is then too large for [`nearest_int`].
    let bounded_code = |inverse: f32, v: f32| {
        let v = inverse * v;
        if v > 0.0 { nearest_int(if v < nmax as f32 { v } else { nmax as f32 }) as u8 } else { 0 }
    };
    let error = |scale: f32, min: f32, codes: &[u8]| {
        let mut sum = 0f32;
        for ((&c, &v), &w) in codes.iter().zip(x).zip(weights) {
            let diff = scale * f32::from(c) + min - v;
            sum += w * if absolute { diff.abs() } else { diff * diff };
        }
        sum
    };
    let inverse = nmax as f32 / (max - min);
    let mut scale = 1.0 / inverse;
    for (c, &v) in codes.iter_mut().zip(x) {
        *c = code(inverse, v - min);
    }
    let mut best = error(scale, min, codes);
    let mut candidate = [0u8; 32];
    let candidate = &mut candidate[..x.len()];
    for step in 0..=steps {
        // The min of the best fit so far, not of the data: each candidate starts from where the last success ended.
        let inverse = (first + delta * step as f32 + nmax as f32) / (max - min);
        let (mut l1, mut l2, mut lx) = (0f32, 0f32, 0f32);
        for ((c, &v), &w) in candidate.iter_mut().zip(x).zip(weights) {
            *c = if bounded { bounded_code(inverse, v - min) } else { code(inverse, v - min) };
            let l = f32::from(*c);
            l1 += w * l;
            l2 += w * l * l;
            lx += w * l * v;
        }
        let det = sum_w * l2 - l1 * l1;
        if det <= 0.0 {
            continue;
        }
        let mut this_scale = (sum_w * lx - sum_x * l1) / det;
        let mut this_min = (l2 * sum_x - l1 * lx) / det;
        if this_min > 0.0 {
            this_min = 0.0;
            this_scale = lx / l2;
        }
        let this_error = error(this_scale, this_min, candidate);
        if this_error < best {
            codes.copy_from_slice(candidate);
            (best, scale, min) = (this_error, this_scale, this_min);
        }
    }
    (scale, -min)
}

/// The candidates of the searches with importance.
pub const fn fine(nmax: i32) -> Grid {
    Grid { nmax, first: -0.9, delta: 0.05, steps: 36, absolute: false, bounded: true }
}

/// Codes of positive numbers, the scales of a super-block's groups: `x ~ scale * l`, `l` in `0..=nmax`, weighted; eight steps
/// around the one of the largest, then coordinate descent up to five passes. Returns the scale.
pub fn sub_scales(x: &[f32], weights: &[f32], nmax: i32, codes: &mut [u8]) -> f32 {
    let max = x.iter().fold(0f32, |m, &v| if v > m { v } else { m });
    if max < GROUP_EPS {
        codes.fill(0);
        return 0.0;
    }
    let mut inverse = nmax as f32 / max;
    let error = |scale: f32, code: &dyn Fn(f32) -> f32| {
        let mut sum = 0f32;
        for (&v, &w) in x.iter().zip(weights) {
            let diff = v - scale * code(v);
            sum += w * diff * diff;
        }
        sum
    };
    let mut best = error(1.0 / inverse, &|v| f32::from(nearest_int(inverse * v) as u8));
    for step in (-4..=4).filter(|s| *s != 0) {
        let candidate = (0.1 * step as f32 + nmax as f32) / max;
        let this = error(1.0 / candidate, &|v| nearest_int(candidate * v).min(nmax) as f32);
        if this < best {
            (best, inverse) = (this, candidate);
        }
    }
    let (mut lx, mut l2) = (0f32, 0f32);
    for ((c, &v), &w) in codes.iter_mut().zip(x).zip(weights) {
        let l = nearest_int(inverse * v).min(nmax);
        *c = l as u8;
        lx += w * v * l as f32;
        l2 += w * l as f32 * l as f32;
    }
    for _ in 0..5 {
        let mut changed = false;
        for ((c, &v), &w) in codes.iter_mut().zip(x).zip(weights) {
            let l = f32::from(*c);
            let mut without_lx = lx - w * v * l;
            let mut without_l2 = l2 - w * l * l;
            if !(without_lx > 0.0 && without_l2 > 0.0) {
                continue;
            }
            let new = nearest_int(v * without_l2 / without_lx).min(nmax);
            if new == i32::from(*c) {
                continue;
            }
            without_lx += w * v * new as f32;
            without_l2 += w * new as f32 * new as f32;
            if without_lx * without_lx * l2 > lx * lx * without_l2 {
                *c = new as u8;
                (lx, l2) = (without_lx, without_l2);
                changed = true;
            }
        }
        if !changed {
            break;
        }
    }
    if l2 > 0.0 { lx / l2 } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearest_int_rounds_halves_to_even() {
        for (v, want) in
            [(0.5, 0), (1.5, 2), (2.5, 2), (-0.5, 0), (-1.5, -2), (0.49, 0), (-0.51, -1), (4_194_303.0, 4_194_303)]
        {
            assert_eq!(nearest_int(v), want, "{v}");
        }
        assert_eq!(nearest_int(f32::NAN), 0);
    }

    #[test]
    fn exact_grids_are_found_exactly() {
        // 0 ..= 15 in steps of 1/4 from -1: scale 1/4, min 1, and the codes are the indices.
        let x: Vec<f32> = (0..32).map(|i| (i % 16) as f32 * 0.25 - 1.0).collect();
        let mut codes = [0u8; 32];
        let grid = Grid { nmax: 15, first: -1.0, delta: 0.1, steps: 20, absolute: false, bounded: false };
        let (scale, min) = affine(&x, &[1.0; 32], grid, &mut codes);
        assert!((scale - 0.25).abs() < 1e-6 && (min - 1.0).abs() < 1e-6, "{scale} {min}");
        assert!(codes.iter().enumerate().all(|(i, c)| usize::from(*c) == i % 16));
        // -4 ..= 3 in steps of -1/2: the largest magnitude gets code 0, so the scale is negative.
        let x: Vec<f32> = (0..16).map(|i| ((i % 8) as f32 - 4.0) * -0.5).collect();
        let mut codes = [0i8; 16];
        for search in [symmetric, descent] {
            let scale = search(&x, 4, &mut codes);
            assert!((scale + 0.5).abs() < 1e-6, "{scale}");
            assert!(codes.iter().enumerate().all(|(i, c)| *c as usize == i % 8), "{codes:?}");
        }
    }

    #[test]
    fn a_group_of_positive_equals_keeps_its_scale_and_of_negative_equals_its_min() {
        let grid = Grid { nmax: 15, first: -1.0, delta: 0.1, steps: 20, absolute: false, bounded: false };
        let mut codes = [9u8; 32];
        let (scale, min) = affine(&[0.5; 32], &[1.0; 32], grid, &mut codes);
        assert!(min == 0.0 && (scale * f32::from(codes[0]) - 0.5).abs() < 1e-6);
        let (scale, min) = affine(&[-0.5; 32], &[1.0; 32], grid, &mut codes);
        assert!(scale == 0.0 || codes == [0; 32], "{scale} {codes:?}");
        assert!((min - 0.5).abs() < 1e-6);
    }
}
