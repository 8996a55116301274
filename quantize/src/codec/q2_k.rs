//! `x = d scale q - dmin min`, `q` in 0..=3, super-blocks of 256: 16 groups of 16, scale and min in four bits each.

use super::{
    Overflow,
    best::{Affine, super_affine},
    k_search::{Grid, fine, nearest_int, sub_scales},
    lanes::{Weights, affine},
    scale,
    weighted::weights,
};
use bytemuck::{cast, cast_ref};
use edgeft_runtime::format::block::BlockQ2K;
use half::f16;

const GRID: Grid = Grid { nmax: 3, first: -0.5, delta: 0.1, steps: 15, absolute: true, bounded: false };

pub(super) fn encode(x: &[f32; 256]) -> Result<BlockQ2K, Overflow> {
    let mut codes = [[0u8; 16]; 16];
    let (fitted, mins) = affine(cast_ref(x), Weights::Magnitude, GRID, &mut codes);
    let largest = |v: &[f32; 16]| v.iter().fold(0f32, |m, &s| if s > m { s } else { m });
    let (max_scale, max_min) = (largest(&fitted), largest(&mins));
    let four_bits = |v: &[f32; 16], max: f32| v.map(|s| if max > 0.0 { nearest_int(15.0 / max * s) as u8 } else { 0 });
    let (low, high) = (four_bits(&fitted, max_scale), four_bits(&mins, max_min));
    let scales: [u8; 16] = std::array::from_fn(|j| low[j] | high[j] << 4);
    Ok(finish(x, scales, scale(max_scale / 15.0)?, scale(max_min / 15.0)?, cast(codes)))
}

/// The same with the importance of each column.
pub(super) fn weighted(x: &[f32; 256], importance: &[f32; 256]) -> Result<BlockQ2K, Overflow> {
    let sigma2 = x.iter().fold(0f32, |s, v| s + v * v) / 256.0;
    let mut codes = [[0u8; 16]; 16];
    let weights: [[f32; 16]; 16] = cast(weights(x, importance, sigma2));
    let sums = weights.map(|w| w.iter().fold(0f32, |s, w| s + w));
    let (fitted, mins) = affine(cast_ref(x), Weights::Given(&weights), fine(3), &mut codes);
    let (mut low, mut high) = ([0u8; 16], [0u8; 16]);
    let d = scale(sub_scales(&fitted, &sums, 15, &mut low))?;
    let dmin = scale(sub_scales(&mins, &sums, 15, &mut high))?;
    Ok(finish(x, std::array::from_fn(|j| low[j] | high[j] << 4), d, dmin, cast(codes)))
}

/// The same, with scales and mins chosen together.
pub(super) fn best(x: &[f32; 256], weights: &[f32; 256]) -> Result<BlockQ2K, Overflow> {
    let Affine { d, dmin, scales, mins } = super_affine::<16>(x, weights, 3, 15)?;
    Ok(finish(x, std::array::from_fn(|j| scales[j] | mins[j] << 4), d, dmin, [0; 256]))
}

/// Codes rounded once more against what the four bits really say.
fn finish(x: &[f32; 256], scales: [u8; 16], d: f16, dmin: f16, mut codes: [u8; 256]) -> BlockQ2K {
    for (j, (x, codes)) in x.chunks_exact(16).zip(codes.chunks_exact_mut(16)).enumerate() {
        let step = d.to_f32() * f32::from(scales[j] & 15);
        if step == 0.0 {
            continue; // every code decodes to the same value; ggml leaves those of the fit
        }
        let min = dmin.to_f32() * f32::from(scales[j] >> 4);
        for (c, &v) in codes.iter_mut().zip(x) {
            *c = nearest_int((v + min) / step).clamp(0, 3) as u8;
        }
    }
    BlockQ2K { scales, qs: pairs(&codes), d, dmin }
}

/// Two-bit codes, 32 bytes for every 128 elements: bits `2g` and `2g + 1` of a byte belong to the `g`-th 32.
pub(super) fn pairs(q: &[u8; 256]) -> [u8; 64] {
    std::array::from_fn(|i| {
        let j = i / 32 * 128 + i % 32;
        q[j] | q[j + 32] << 2 | q[j + 64] << 4 | q[j + 96] << 6
    })
}

#[cfg(test)]
mod tests {
    use super::super::encode;
    use edgeft_runtime::format::GgmlType::Q2_K;

    #[test]
    fn known_bytes() {
        // Every group is 0 ..= 3 four times: scale 1, min 0, so d = 1/15 (f16 0x2c44), scales 15, codes are the values.
        let x: [f32; 256] = std::array::from_fn(|i| (i % 4) as f32);
        let mut out = Vec::new();
        encode(Q2_K, &x, &mut out).unwrap();
        let mut want = vec![0x0f; 16];
        want.extend((0..64u8).map(|i| (i % 4) * 0x55));
        want.extend([0x44, 0x2c, 0, 0]);
        assert_eq!(out, want);
    }
}
