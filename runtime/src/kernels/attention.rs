//! The heads of some tokens that share a key head, against the keys and values of one sequence. Keys and values are unpacked
//! block by block for all of the tokens; each token has the same sums in the same order as alone. The plain loops are the
//! definition; the wider levels compile the same lines, so every level gives the same bits.

use super::exp::exp;
use super::scalar::{LANES, dot_f32, half_to_f32, tree};
use crate::kv_cache::KvRows;
use half::f16;

/// Positions that are unpacked at a time.
const BLOCK: usize = 32;
/// Elements of a head that stay in registers while values are added up.
const WIDE: usize = 64;

/// What one call attends to.
#[derive(Clone, Copy)]
pub struct Seen<'a> {
    /// (T, K * D) keys.
    pub keys: KvRows<'a>,
    /// (T, K * D) values.
    pub values: KvRows<'a>,
    /// Of each token that asks: the first position that is seen, and one past the last.
    pub spans: &'a [(usize, usize)],
    /// Which of the K key heads.
    pub kv_head: usize,
    /// Query heads that share it: G.
    pub group: usize,
    /// Elements of a head: D.
    pub d: usize,
    /// Floats from one token's queries (and outputs) to the next one's.
    pub stride: usize,
    /// K * D.
    pub width: usize,
    /// Factor of the scores, 1/√D.
    pub scale: f32,
}

impl Seen<'_> {
    /// First position that any token sees, and one past the last.
    fn range(&self) -> (usize, usize) {
        self.spans.iter().fold((usize::MAX, 0), |(a, b), (from, to)| (a.min(*from), b.max(*to)))
    }

    /// Floats of scratch.
    pub fn scratch(&self) -> usize {
        let (first, last) = self.range();
        self.spans.len() * self.group * last.saturating_sub(first) + BLOCK * self.d
    }

    /// Unpacks the keys or values of some positions.
    #[inline(always)]
    fn unpack(&self, rows: KvRows, (from, to): (usize, usize), out: &mut [f32], halves: impl Fn(&[f16], &mut [f32])) {
        for (t, row) in (from..to).zip(out.chunks_exact_mut(self.d)) {
            let at = t * self.width + self.kv_head * self.d;
            match rows {
                KvRows::F32(x) => row.copy_from_slice(&x[at..][..row.len()]),
                KvRows::F16(x) => halves(&x[at..][..row.len()], row),
            }
        }
    }
}

/// out[i][g] = Σ softmax(scale q[i][g]·k) v, over the positions of span `i`.
/// - `q`, `out`: (tokens, stride), of which the first (G, D) of each token are used
/// - `scratch`: [`Seen::scratch`] floats
#[inline(always)]
pub fn attend(q: &[f32], seen: &Seen, scratch: &mut [f32], out: &mut [f32]) {
    attend_with(q, seen, scratch, out, unpack_halves);
}

/// The same where a level has an instruction for `halves`.
#[inline(always)]
pub(super) fn attend_with(
    q: &[f32],
    seen: &Seen,
    scratch: &mut [f32],
    out: &mut [f32],
    halves: impl Fn(&[f16], &mut [f32]),
) {
    let (d, group, (first, last)) = (seen.d, seen.group, seen.range());
    let n = last - first;
    let (rows, scores) = scratch[..seen.scratch()].split_at_mut(BLOCK * d);
    let blocks = || (first..last).step_by(BLOCK).map(|from| (from, (from + BLOCK).min(last)));
    let heads = || seen.spans.iter().enumerate().flat_map(|(i, span)| (0..group).map(move |g| (i, g, *span)));
    let at = |i: usize, g: usize| i * seen.stride + g * d;
    for block in blocks() {
        seen.unpack(seen.keys, block, rows, &halves);
        for (i, g, span) in heads() {
            let (q, scores) = (&q[at(i, g)..][..d], &mut scores[(i * group + g) * n..][..n]);
            for t in block.0.max(span.0)..block.1.min(span.1) {
                scores[t - first] = dot_f32(q, &rows[(t - block.0) * d..][..d]) * seen.scale;
            }
        }
    }
    for (i, g, (from, to)) in heads() {
        softmax(&mut scores[(i * group + g) * n..][from - first..to - first]);
        out[at(i, g)..][..d].fill(0.0);
    }
    for block in blocks() {
        seen.unpack(seen.values, block, rows, &halves);
        for (i, g, span) in heads() {
            let (from, to) = (block.0.max(span.0), block.1.min(span.1));
            if from < to {
                let p = &scores[(i * group + g) * n..][from - first..to - first];
                add_up(p, &rows[(from - block.0) * d..], &mut out[at(i, g)..][..d]);
            }
        }
    }
}

/// Adds p[t] * rows[t], in order.
#[inline(always)]
fn add_up(p: &[f32], rows: &[f32], out: &mut [f32]) {
    let d = out.len();
    let (wide, rest) = out.as_chunks_mut::<WIDE>();
    let start = wide.len() * WIDE;
    for (c, out) in wide.iter_mut().enumerate() {
        let mut sums = *out;
        for (p, row) in p.iter().zip(rows.chunks_exact(d)) {
            let row: &[f32; WIDE] = &row.as_chunks().0[c];
            for i in 0..WIDE {
                sums[i] += p * row[i];
            }
        }
        *out = sums;
    }
    for (p, row) in p.iter().zip(rows.chunks_exact(d)) {
        for (o, v) in rest.iter_mut().zip(&row[start..]) {
            *o += p * v;
        }
    }
}

/// Scores become shares of one.
#[inline(always)]
fn softmax(scores: &mut [f32]) {
    let more = |m: f32, s: f32| if s > m { s } else { m };
    let mut most = [f32::NEG_INFINITY; LANES];
    let (chunks, rest) = scores.as_chunks_mut::<LANES>();
    for chunk in chunks.iter() {
        (0..LANES).for_each(|i| most[i] = more(most[i], chunk[i]));
    }
    let max = most.iter().chain(rest.iter()).fold(f32::NEG_INFINITY, |m, s| more(m, *s));
    let mut sums = [0.0; LANES];
    for chunk in chunks {
        for i in 0..LANES {
            chunk[i] = exp(chunk[i] - max);
            sums[i] += chunk[i];
        }
    }
    let mut sum = tree(sums);
    for s in rest {
        *s = exp(*s - max);
        sum += *s;
    }
    let inverse = 1.0 / sum;
    scores.iter_mut().for_each(|s| *s *= inverse);
}

/// Halves as floats.
#[inline(always)]
pub(super) fn unpack_halves(halves: &[f16], out: &mut [f32]) {
    for (out, h) in out.iter_mut().zip(halves) {
        *out = half_to_f32(h.to_bits());
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
            spans: &[(1, n)],
            kv_head: 1,
            group: 2,
            d,
            stride: 2 * d,
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
        let (mut plain, mut scratch) = (vec![0.0; 2 * d], vec![0.0; seen.scratch()]);
        attend(&q, &seen, &mut scratch, &mut plain);
        for (a, b) in plain.iter().zip(&want) {
            assert!((f64::from(*a) - b).abs() < 1e-5, "{a} {b}");
        }
        for level in Kernels::available() {
            let mut out = vec![0.0; 2 * d];
            Kernels { level }.attend(&q, &seen, &mut scratch, &mut out);
            assert_eq!(out, plain, "{level:?}");
        }
    }

    #[test]
    fn tokens_together_are_tokens_alone() {
        // More positions than a block, heads wider than the registers' part (and no multiple of eight), a window that moves along.
        let (d, group, positions, width) = (84, 3, 77, 168);
        let value = |i: usize| ((i * 7919 % 1009) as f32 - 504.0) / 300.0;
        let halves: Vec<half::f16> = (0..positions * width).map(|i| half::f16::from_f32(value(i))).collect();
        let spans: Vec<(usize, usize)> = (0..5).map(|i| (10 * i, positions - 4 + i)).collect();
        let stride = group * d + 7;
        let q: Vec<f32> = (0..spans.len() * stride).map(|i| value(i + 5)).collect();
        let rows = KvRows::F16(&halves);
        let seen = Seen { keys: rows, values: rows, spans: &spans, kv_head: 1, group, d, stride, width, scale: 0.1 };
        let (mut plain, mut scratch) = (vec![0.0; q.len()], vec![0.0; seen.scratch()]);
        attend(&q, &seen, &mut scratch, &mut plain);
        for level in Kernels::available() {
            let (mut out, mut scratch) = (vec![0.0; q.len()], vec![0.0; seen.scratch()]);
            Kernels { level }.attend(&q, &seen, &mut scratch, &mut out);
            assert_eq!(out, plain, "{level:?}");
            for i in 0..spans.len() {
                let mut alone = vec![0.0; group * d];
                let seen = Seen { spans: &spans[i..=i], ..seen };
                Kernels { level }.attend(&q[i * stride..], &seen, &mut scratch, &mut alone);
                assert_eq!(out[i * stride..][..group * d], alone, "{level:?} {i}");
            }
        }
    }
}
