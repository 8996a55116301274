//! `x = d (scale - 32) q`, `q` in -4..=3, super-blocks of 256: 16 groups of 16, scales in six bits.
//!
//! The group scale of largest magnitude becomes -32, so `d` has its sign turned. Two bits of a code lie in `qs`, the third
//! in `hmask`: bit `g` of `hmask[j]` belongs to element `j` of the `g`-th 32.

use super::{
    Overflow,
    best::{Int, super_symmetric},
    k_search::{nearest_int, symmetric_weighted},
    lanes::{Weights, descent, symmetric},
    q2_k::pairs,
    scale, signed_max,
    weighted::weights,
};
use bytemuck::{cast, cast_ref};
use edgeft_runtime::format::block::BlockQ3K;
use half::f16;

pub(super) fn encode(x: &[f32; 256]) -> Result<BlockQ3K, Overflow> {
    let mut codes = [[0i8; 16]; 16];
    let fitted = descent(cast_ref(x), 4, &mut codes);
    let codes = cast(codes);
    let max_scale = signed_max(&fitted);
    let (mut d, mut six_bits) = (f16::ZERO, [0u8; 16]);
    if max_scale != 0.0 {
        let inverse = -32.0 / max_scale;
        d = scale(1.0 / inverse)?;
        six_bits = fitted.map(|s| ((nearest_int(inverse * s) as i8).clamp(-32, 31) + 32) as u8);
        return Ok(finish(x, six_bits, d, codes, pack(&six_bits)));
    }
    // No scales at all: not even the 32 that stands for 0 is written.
    Ok(finish(x, six_bits, d, codes, [0; 12]))
}

/// The same with the importance of each column.
pub(super) fn weighted(x: &[f32; 256], importance: &[f32; 256]) -> Result<BlockQ3K, Overflow> {
    let sigma2 = 2.0 * x.iter().fold(0f32, |s, v| s + v * v) / 256.0;
    let (mut codes, mut six_bits) = ([[0i8; 16]; 16], [0i8; 16]);
    let weights: [[f32; 16]; 16] = cast(weights(x, importance, sigma2));
    let sums = weights.map(|w| w.iter().fold(0f32, |s, w| s + w));
    let fitted = symmetric(cast_ref(x), Weights::Given(&weights), 4, &mut codes);
    let d = scale(symmetric_weighted(&fitted, &sums, 32, &mut six_bits))?;
    let six_bits = six_bits.map(|s| s as u8);
    Ok(finish(x, six_bits, d, cast(codes), pack(&six_bits)))
}

/// The same, with all scales chosen together.
pub(super) fn best(x: &[f32; 256], weights: &[f32; 256]) -> Result<BlockQ3K, Overflow> {
    let (d, scales) = super_symmetric::<16, _>(Int { n: 4, top: 3 }, x, weights, -32, 31)?;
    let six_bits = scales.map(|s| (s + 32) as u8);
    Ok(finish(x, six_bits, d, [4; 256], pack(&six_bits)))
}

fn pack(six_bits: &[u8; 16]) -> [u8; 12] {
    let mut scales = [0u8; 12];
    for (j, s) in six_bits.iter().enumerate() {
        scales[j % 8] |= (s & 15) << (4 * (j / 8));
        scales[j % 4 + 8] |= (s >> 4) << (2 * (j / 4));
    }
    scales
}

/// Codes rounded once more against what the six bits really say.
fn finish(x: &[f32; 256], six_bits: [u8; 16], d: f16, mut codes: [i8; 256], scales: [u8; 12]) -> BlockQ3K {
    for (j, (x, codes)) in x.chunks_exact(16).zip(codes.chunks_exact_mut(16)).enumerate() {
        let step = d.to_f32() * (f32::from(six_bits[j]) - 32.0);
        if step == 0.0 {
            continue; // every code decodes to 0; ggml leaves those of the fit
        }
        for (c, &v) in codes.iter_mut().zip(x) {
            *c = (nearest_int(v / step).clamp(-4, 3) + 4) as i8;
        }
    }
    let q = codes.map(|c| c as u8);
    let hmask = std::array::from_fn(|j| (0..8).fold(0, |h, g| h | (q[32 * g + j] >> 2) << g));
    BlockQ3K { hmask, qs: pairs(&q.map(|q| q & 3)), scales, d }
}

#[cfg(test)]
mod tests {
    use super::super::encode;
    use edgeft_runtime::format::GgmlType::Q3_K;

    #[test]
    fn known_bytes() {
        // Every group is -4 ..= 3 twice: scale 1, so d = -1/32 and all six-bit scales 0 (-32): code = x + 4.
        let x: [f32; 256] = std::array::from_fn(|i| (i % 8) as f32 - 4.0);
        let mut out = Vec::new();
        encode(Q3_K, &x, &mut out).unwrap();
        let mut want: Vec<u8> = (0..32).map(|i| if i % 8 >= 4 { 0xff } else { 0 }).collect();
        want.extend((0..64u8).map(|i| (i % 4) * 0x55));
        want.extend([0; 12]);
        want.extend([0x00, 0xa8]); // -2^-5
        assert_eq!(out, want);
    }
}
