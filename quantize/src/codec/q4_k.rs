//! `x = d scale q - dmin min`, `q` in 0..=15, super-blocks of 256: 8 groups of 32, scales and mins in six bits.
//!
//! Each group is fitted by itself ([`affine`](super::k_search::affine)) with weights `rms + |x|`; the largest scale and the
//! largest min then set `d` and `dmin`, and the codes are rounded once more against what the six bits really say.

use super::{
    Overflow,
    best::{Affine, super_affine},
    k_search::{Grid, fine, nearest_int, sub_scales},
    lanes::{Weights, affine},
    scale,
    weighted::weights,
};
use bytemuck::{cast, cast_ref};
use edgeft_runtime::format::block::{BlockQ4K, scale_min_k4};
use half::f16;

const GRID: Grid = Grid { nmax: 15, first: -1.0, delta: 0.1, steps: 20, absolute: false, bounded: false };

pub(super) fn encode(x: &[f32; 256]) -> Result<BlockQ4K, Overflow> {
    Ok(block(groups(x, GRID)?))
}

/// Two at a time.
pub(super) fn encode_two(x: &[[f32; 256]; 2]) -> [Result<BlockQ4K, Overflow>; 2] {
    groups_two(x, GRID).map(|groups| groups.map(block))
}

/// The same with the importance of each column.
pub(super) fn weighted(x: &[f32; 256], importance: &[f32; 256]) -> Result<BlockQ4K, Overflow> {
    Ok(block(groups_weighted(x, importance, 15)?))
}

/// The same, with scales and mins chosen together.
pub(super) fn best(x: &[f32; 256], weights: &[f32; 256]) -> Result<BlockQ4K, Overflow> {
    Ok(block(groups_best(x, weights, 15)?))
}

fn block(groups: Groups) -> BlockQ4K {
    let Groups { d, dmin, scales, codes } = groups;
    // 32 bytes for every 64 elements: the first 32 low, the next 32 high.
    let qs = std::array::from_fn(|i| {
        let j = i / 32 * 64 + i % 32;
        codes[j] | codes[j + 32] << 4
    });
    BlockQ4K { d, dmin, scales, qs }
}

/// What Q4_K and Q5_K share: the scales of eight groups and 256 codes of `0..=nmax`.
pub(super) struct Groups {
    pub d: f16,
    pub dmin: f16,
    pub scales: [u8; 12],
    pub codes: [u8; 256],
}

pub(super) fn groups(x: &[f32; 256], grid: Grid) -> Result<Groups, Overflow> {
    let mut codes = [[0u8; 32]; 8];
    let (scales, mins) = affine(cast_ref(x), Weights::RmsPlusMagnitude, grid, &mut codes);
    rounded(x, grid.nmax, scales, mins, cast(codes))
}

/// The same of two super-blocks, whose sixteen groups fill the widest vectors.
pub(super) fn groups_two(x: &[[f32; 256]; 2], grid: Grid) -> [Result<Groups, Overflow>; 2] {
    let mut codes = [[0u8; 32]; 16];
    let (scales, mins) = affine(cast_ref(x), Weights::RmsPlusMagnitude, grid, &mut codes);
    let (scales, mins): ([[f32; 8]; 2], [[f32; 8]; 2]) = (cast(scales), cast(mins));
    let codes: [[u8; 256]; 2] = cast(codes);
    std::array::from_fn(|i| rounded(&x[i], grid.nmax, scales[i], mins[i], codes[i]))
}

/// Scales and mins of the groups in six bits, and the codes under these.
fn rounded(x: &[f32; 256], nmax: i32, scales: [f32; 8], mins: [f32; 8], codes: [u8; 256]) -> Result<Groups, Overflow> {
    let largest = |v: &[f32; 8]| v.iter().fold(0f32, |m, &s| if s > m { s } else { m });
    let (max_scale, max_min) = (largest(&scales), largest(&mins));
    let inverse = |max: f32| if max > 0.0 { 63.0 / max } else { 0.0 };
    let (inverse_scale, inverse_min) = (inverse(max_scale), inverse(max_min));
    let six_bits = |v: f32| (nearest_int(v) as u8).min(63);
    let scales = scales.map(|s| six_bits(inverse_scale * s));
    let mins = mins.map(|m| six_bits(inverse_min * m));
    Ok(finish(x, nmax, scales, mins, [scale(max_scale / 63.0)?, scale(max_min / 63.0)?], codes))
}

/// What Q4_K and Q5_K share where columns have an importance: a finer search, and scales fitted together.
pub(super) fn groups_weighted(x: &[f32; 256], importance: &[f32; 256], nmax: i32) -> Result<Groups, Overflow> {
    let sigma2 = 2.0 * x.iter().fold(0f32, |s, v| s + v * v) / 256.0;
    let mut codes = [[0u8; 32]; 8];
    let weights: [[f32; 32]; 8] = cast(weights(x, importance, sigma2));
    let sums = weights.map(|w| w.iter().fold(0f32, |s, w| s + w));
    let (fitted, fitted_mins) = affine(cast_ref(x), Weights::Given(&weights), fine(nmax), &mut codes);
    let (mut scales, mut mins) = ([0u8; 8], [0u8; 8]);
    let d = scale(sub_scales(&fitted, &sums, 63, &mut scales))?;
    let dmin = scale(sub_scales(&fitted_mins, &sums, 63, &mut mins))?;
    Ok(finish(x, nmax, scales, mins, [d, dmin], cast(codes)))
}

/// What Q4_K and Q5_K share where scales and mins are chosen together.
pub(super) fn groups_best(x: &[f32; 256], weights: &[f32; 256], nmax: i32) -> Result<Groups, Overflow> {
    let Affine { d, dmin, scales, mins } = super_affine::<8>(x, weights, nmax, 63)?;
    Ok(finish(x, nmax, scales, mins, [d, dmin], [0; 256]))
}

/// Codes rounded once more against what the six bits really say.
fn finish(
    x: &[f32; 256],
    nmax: i32,
    scales: [u8; 8],
    mins: [u8; 8],
    [d, dmin]: [f16; 2],
    mut codes: [u8; 256],
) -> Groups {
    let mut packed = [0u8; 12];
    for j in 0..8 {
        let (s, m) = (scales[j], mins[j]);
        if j < 4 {
            packed[j] = s;
            packed[j + 4] = m;
        } else {
            packed[j + 4] = (s & 15) | (m & 15) << 4;
            packed[j - 4] |= (s >> 4) << 6;
            packed[j] |= (m >> 4) << 6;
        }
    }
    for (j, (x, codes)) in x.chunks_exact(32).zip(codes.chunks_exact_mut(32)).enumerate() {
        let (s, m) = scale_min_k4(j, &packed);
        let step = d.to_f32() * f32::from(s);
        if step == 0.0 {
            continue; // every code decodes to the same value; ggml leaves those of the fit
        }
        let min = dmin.to_f32() * f32::from(m);
        for (c, &v) in codes.iter_mut().zip(x) {
            *c = nearest_int((v + min) / step).clamp(0, nmax) as u8;
        }
    }
    Groups { d, dmin, scales: packed, codes }
}

#[cfg(test)]
mod tests {
    use super::super::{encode, tests::*};
    use edgeft_runtime::format::GgmlType::Q4_K;

    #[test]
    fn known_bytes() {
        // Every group is 0 ..= 15 twice: scale 1 in each, min 0, so d = 1/63, all scales 63, and the codes are the values.
        let x: [f32; 256] = std::array::from_fn(|i| (i % 16) as f32);
        let mut out = Vec::new();
        encode(Q4_K, &x, &mut out).unwrap();
        // d: 1/63 in f16 is 0x2410 (2^-6 * (1 + 16/1024)); sc: low four groups 63 with the high two bits of the upper
        // four's 63 = 0b11 above, mins 0, and 0x0f for the upper four.
        let mut want = vec![0x10, 0x24, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0x0f, 0x0f, 0x0f, 0x0f];
        want.extend((0..128u8).map(|i| (i % 16) | (i % 16) << 4));
        assert_eq!(out, want);
    }

    #[test]
    fn error_is_bounded_by_the_step_of_the_group() {
        // Codes span a group's range with 15 steps; the scale is a 63rd of the largest group's, rounded: half a step of the
        // group, half a 63rd of the largest scale times 15, the same for the min, and f16 rounding of d and dmin.
        let x = weights(4096, 8);
        for (x, y) in x.chunks(256).zip(round_trip(Q4_K, &x).chunks(256)) {
            let span = |g: &[f32]| super::super::min_max(g).1.max(0.0) - super::super::min_max(g).0.min(0.0);
            let top = x.chunks(32).map(span).fold(0f32, f32::max);
            let low = x.iter().fold(0f32, |m, v| m.max(-v));
            for (x, y) in x.chunks(32).zip(y.chunks(32)) {
                // The fit may clip the extremes by a step to serve the rest.
                let bound = span(x) / 15.0 * 2.0 + top / 126.0 * 1.2 + low / 126.0 * 1.2;
                for (a, b) in x.iter().zip(y) {
                    assert!((a - b).abs() <= bound, "{a} {b} {bound}");
                }
            }
        }
    }
}
