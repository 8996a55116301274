//! `x = d scale (q - 32)`, `q` in 0..=63, super-blocks of 256: 16 groups of 16 with signed eight-bit scales.
//!
//! The group scale of largest magnitude becomes -128, so `d` has its sign turned.

use super::{
    Overflow,
    best::{Int, super_symmetric},
    k_search::{GROUP_EPS, nearest_int},
    lanes::{Weights, symmetric},
    scale, signed_max,
};
use bytemuck::{Zeroable, cast, cast_ref};
use edgeft_runtime::format::block::BlockQ6K;
use half::f16;

pub(super) fn encode(x: &[f32; 256]) -> Result<BlockQ6K, Overflow> {
    by(x, Weights::Square)
}

/// The same with the importance of each column, which alone is the weight.
pub(super) fn weighted(x: &[f32; 256], importance: &[f32; 256]) -> Result<BlockQ6K, Overflow> {
    by(x, Weights::Given(cast_ref(importance)))
}

/// The same, with all scales chosen together.
pub(super) fn best(x: &[f32; 256], weights: &[f32; 256]) -> Result<BlockQ6K, Overflow> {
    let (d, scales) = super_symmetric::<16, _>(Int { n: 32, top: 31 }, x, weights, -128, 127)?;
    Ok(finish(x, d, scales.map(|s| s as i8), [32; 256]))
}

fn by(x: &[f32; 256], weights: Weights<16, 16>) -> Result<BlockQ6K, Overflow> {
    let mut codes = [[0i8; 16]; 16];
    let fitted = symmetric(cast_ref(x), weights, 32, &mut codes);
    let max_scale = signed_max(&fitted);
    if max_scale.abs() < GROUP_EPS {
        return Ok(BlockQ6K::zeroed());
    }
    let inverse = -128.0 / max_scale;
    let d = scale(1.0 / inverse)?;
    let scales = fitted.map(|s| nearest_int(inverse * s).min(127) as i8);
    Ok(finish(x, d, scales, cast(codes)))
}

/// Codes rounded once more against what the scales really say.
fn finish(x: &[f32; 256], d: f16, scales: [i8; 16], mut codes: [i8; 256]) -> BlockQ6K {
    for (j, (x, codes)) in x.chunks_exact(16).zip(codes.chunks_exact_mut(16)).enumerate() {
        let step = d.to_f32() * f32::from(scales[j]);
        if step == 0.0 {
            continue; // every code decodes to 0; ggml leaves those of the fit
        }
        for (c, &v) in codes.iter_mut().zip(x) {
            *c = (nearest_int(v / step).clamp(-32, 31) + 32) as i8;
        }
    }
    let q = codes.map(|c| c as u8);
    // A half of 128 elements takes 64 bytes of low nibbles (first 64 elements low, last 64 high) and 32 of high pairs.
    let ql = std::array::from_fn(|i| {
        let j = i / 64 * 128 + i % 64;
        (q[j] & 15) | (q[j + 64] & 15) << 4
    });
    let qh = std::array::from_fn(|i| {
        let j = i / 32 * 128 + i % 32;
        (q[j] >> 4) | (q[j + 32] >> 4) << 2 | (q[j + 64] >> 4) << 4 | (q[j + 96] >> 4) << 6
    });
    BlockQ6K { ql, qh, scales, d }
}

#[cfg(test)]
mod tests {
    use super::super::{encode, tests::*};
    use edgeft_runtime::format::GgmlType::Q6_K;

    #[test]
    fn known_bytes() {
        // Groups hold -32 and fifteen 31s: scale 1 in each, so d = -1/128 and all scales -128: d * scale = 1, code = x + 32.
        let x: [f32; 256] = std::array::from_fn(|i| if i % 16 == 0 { -32.0 } else { 31.0 });
        let mut out = Vec::new();
        encode(Q6_K, &x, &mut out).unwrap();
        let mut want: Vec<u8> = (0..128).map(|i| if i % 16 == 0 { 0x00 } else { 0xff }).collect();
        want.extend((0..64).map(|i| if i % 16 == 0 { 0x00 } else { 0xff }));
        want.extend([0x80; 16]);
        want.extend([0x00, 0xa0]); // -2^-7
        assert_eq!(out, want);
    }

    #[test]
    fn error_is_bounded_by_the_step_of_the_group() {
        // The largest magnitude of a group is 32 steps of its scale (31 on the far side), the scale is rounded to a 128th
        // of the largest; the search moves the grid by at most 0.9 / 32.
        let x = weights(4096, 10);
        for (x, y) in x.chunks(256).zip(round_trip(Q6_K, &x).chunks(256)) {
            let amax = |g: &[f32]| super::signed_max(g).abs();
            for (x, y) in x.chunks(16).zip(y.chunks(16)) {
                let bound = amax(x) / 32.0 * 2.0;
                for (a, b) in x.iter().zip(y) {
                    assert!((a - b).abs() <= bound, "{a} {b} {bound}");
                }
            }
        }
    }
}
