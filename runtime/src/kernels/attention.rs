//! One token's heads against the keys and values of one sequence. The plain loops are the definition; the wider levels
//! compile the same lines, so every level gives the same bits.

use super::scalar::{dot_f32, half_to_f32};
use crate::kv_cache::KvRows;

/// What one call attends to.
#[derive(Clone, Copy)]
pub struct Seen<'a> {
    /// (T, K * D) keys.
    pub keys: KvRows<'a>,
    /// (T, K * D) values.
    pub values: KvRows<'a>,
    /// First position that is seen, and one past the last.
    pub span: (usize, usize),
    /// Which of the K key heads.
    pub kv_head: usize,
    /// K * D.
    pub width: usize,
    /// Factor of the scores, 1/√D.
    pub scale: f32,
}

/// out[g] = Σ softmax(scale q[g]·k) v, over the positions of `seen.span`.
/// - `q`, `out`: (G, D), the query heads that share one key head
/// - `scores`: scratch of G times the span's length;  `row`: scratch of D
#[inline(always)]
pub fn attend(q: &[f32], seen: &Seen, scores: &mut [f32], row: &mut [f32], out: &mut [f32]) {
    let d = row.len();
    let (from, to) = seen.span;
    let n = to - from;
    for t in 0..n {
        load(seen.keys, (from + t) * seen.width + seen.kv_head * d, row);
        for (g, q) in q.chunks(d).enumerate() {
            scores[g * n + t] = dot_f32(q, row) * seen.scale;
        }
    }
    for scores in scores.chunks_mut(n) {
        let max = scores.iter().fold(f32::NEG_INFINITY, |m, s| m.max(*s));
        let mut sum = 0.0;
        for s in scores.iter_mut() {
            *s = (*s - max).exp();
            sum += *s;
        }
        let inverse = 1.0 / sum;
        scores.iter_mut().for_each(|s| *s *= inverse);
    }
    out.fill(0.0);
    for t in 0..n {
        load(seen.values, (from + t) * seen.width + seen.kv_head * d, row);
        for (g, out) in out.chunks_mut(d).enumerate() {
            let p = scores[g * n + t];
            for (o, v) in out.iter_mut().zip(row.iter()) {
                *o += p * v;
            }
        }
    }
}

#[inline(always)]
fn load(rows: KvRows, at: usize, row: &mut [f32]) {
    match rows {
        KvRows::F32(x) => row.copy_from_slice(&x[at..][..row.len()]),
        KvRows::F16(x) => {
            for (r, h) in row.iter_mut().zip(&x[at..]) {
                *r = half_to_f32(h.to_bits());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Kernels;
    use super::*;

    #[test]
    fn a_weighted_mean_of_the_values_at_every_level() {
        let (d, n, width) = (8, 5, 16);
        let value = |i: usize| ((i * 37 % 29) as f32 - 14.0) / 9.0;
        let keys: Vec<f32> = (0..n * width).map(value).collect();
        let values: Vec<f32> = (0..n * width).map(|i| value(i + 7)).collect();
        let q: Vec<f32> = (0..2 * d).map(|i| value(i + 3)).collect();
        let seen = Seen {
            keys: KvRows::F32(&keys),
            values: KvRows::F32(&values),
            span: (1, n),
            kv_head: 1,
            width,
            scale: 0.5,
        };
        let mut want = vec![0.0f64; 2 * d];
        for g in 0..2 {
            let score = |t: usize| 0.5 * (0..d).map(|i| f64::from(q[g * d + i] * keys[t * width + d + i])).sum::<f64>();
            let total: f64 = (1..n).map(|t| score(t).exp()).sum();
            for t in 1..n {
                (0..d).for_each(|i| want[g * d + i] += score(t).exp() / total * f64::from(values[t * width + d + i]));
            }
        }
        let (mut plain, mut scores, mut row) = (vec![0.0; 2 * d], vec![0.0; 2 * (n - 1)], vec![0.0; d]);
        attend(&q, &seen, &mut scores, &mut row, &mut plain);
        for (a, b) in plain.iter().zip(&want) {
            assert!((f64::from(*a) - b).abs() < 1e-5, "{a} {b}");
        }
        for level in Kernels::available() {
            let mut out = vec![0.0; 2 * d];
            Kernels { level }.attend(&q, &seen, &mut scores, &mut row, &mut out);
            assert_eq!(out, plain, "{level:?}");
        }
    }
}
