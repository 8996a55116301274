//! As [`q4_k`](super::q4_k) with a fifth bit: `q` in 0..=31, bit `2g` (and `2g + 1`) of `qh[j]` belongs to element `j` of
//! the first (second) 32 of the `g`-th 64.

use super::{
    Overflow,
    k_search::Grid,
    q4_k::{Groups, groups, groups_best, groups_two, groups_weighted},
};
use edgeft_runtime::format::block::BlockQ5K;

const GRID: Grid = Grid { nmax: 31, first: -0.5, delta: 0.1, steps: 15, absolute: false, bounded: false };

pub(super) fn encode(x: &[f32; 256]) -> Result<BlockQ5K, Overflow> {
    Ok(block(groups(x, GRID)?))
}

/// Two at a time.
pub(super) fn encode_two(x: &[[f32; 256]; 2]) -> [Result<BlockQ5K, Overflow>; 2] {
    groups_two(x, GRID).map(|groups| groups.map(block))
}

/// The same with the importance of each column.
pub(super) fn weighted(x: &[f32; 256], importance: &[f32; 256]) -> Result<BlockQ5K, Overflow> {
    Ok(block(groups_weighted(x, importance, 31)?))
}

/// The same, with scales and mins chosen together.
pub(super) fn best(x: &[f32; 256], weights: &[f32; 256]) -> Result<BlockQ5K, Overflow> {
    Ok(block(groups_best(x, weights, 31)?))
}

fn block(groups: Groups) -> BlockQ5K {
    let Groups { d, dmin, scales, codes } = groups;
    let qs = std::array::from_fn(|i| {
        let j = i / 32 * 64 + i % 32;
        (codes[j] & 15) | (codes[j + 32] & 15) << 4
    });
    let qh = std::array::from_fn(|j| (0..8).fold(0, |h, g| h | (codes[32 * g + j] >> 4) << g));
    BlockQ5K { d, dmin, scales, qh, qs }
}

#[cfg(test)]
mod tests {
    use super::super::{encode, tests::*};
    use edgeft_runtime::format::GgmlType::Q5_K;

    #[test]
    fn known_bytes() {
        // Every group is 0 ..= 31: scale 1, min 0; element j of a group has the fifth bit when j >= 16.
        let x: [f32; 256] = std::array::from_fn(|i| (i % 32) as f32);
        let mut out = Vec::new();
        encode(Q5_K, &x, &mut out).unwrap();
        let mut want = vec![0x10, 0x24, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0x0f, 0x0f, 0x0f, 0x0f];
        want.extend([0u8; 16]);
        want.extend([0xffu8; 16]);
        want.extend((0..128u8).map(|i| (i % 16) | (i % 16) << 4));
        assert_eq!(out, want);
    }

    #[test]
    fn error_is_bounded_by_the_step_of_the_group() {
        let x = weights(4096, 9);
        for (x, y) in x.chunks(256).zip(round_trip(Q5_K, &x).chunks(256)) {
            let span = |g: &[f32]| super::super::min_max(g).1.max(0.0) - super::super::min_max(g).0.min(0.0);
            let top = x.chunks(32).map(span).fold(0f32, f32::max);
            let low = x.iter().fold(0f32, |m, v| m.max(-v));
            for (x, y) in x.chunks(32).zip(y.chunks(32)) {
                let bound = span(x) / 31.0 * 2.0 + top / 126.0 * 1.2 + low / 126.0 * 1.2;
                for (a, b) in x.iter().zip(y) {
                    assert!((a - b).abs() <= bound, "{a} {b} {bound}");
                }
            }
        }
    }
}
