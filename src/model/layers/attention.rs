//! Grouped-query attention over packed sequences (arXiv:1706.03762, arXiv:2305.13245), a few queries of a head at a time: the
//! scores of no whole sequence stand anywhere, and keys that none of the few may see are not multiplied.
//! The backward computes the probabilities again instead of keeping them.

use super::host::Host;
use super::mat::{By, Mat, Onto, product};
use super::math::{self, wide};
use crate::model::Segment;
use crate::model::config::Config;
use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;
use std::ops::Range;

/// Queries whose scores are alive at once, a thread.
pub const QUERIES: usize = 64;

/// Shape of the heads, and who sees whom.
#[derive(Debug, Clone, Copy)]
pub struct Attention {
    /// H: query heads.
    pub n_heads: usize,
    /// K: key and value heads; divides H.
    pub n_kv_heads: usize,
    /// D.
    pub head_dim: usize,
    /// What scores are multiplied by: 1/√D, but for Gemma.
    pub scale: f32,
    /// A token sees only itself and what came before.
    pub causal: bool,
    /// A token sees itself and the `window - 1` tokens before it.
    pub window: Option<usize>,
}

/// Some queries of a sequence.
#[derive(Clone, Copy)]
struct Block {
    /// Which sequence, and where it stands.
    of: usize,
    start: usize,
    /// Tokens of it that may be seen.
    keys: usize,
    /// The first query, counted within the sequence, and how many.
    first: usize,
    len: usize,
}

/// Heads of the packed batch: (N, heads D).
#[derive(Clone, Copy)]
struct Heads<'a> {
    values: &'a [f32],
    heads: usize,
    dim: usize,
}

impl<'a> Heads<'a> {
    /// (rows, D) of head `h`.
    fn rows(&self, h: usize, rows: Range<usize>) -> Mat<'a> {
        let width = self.heads * self.dim;
        // A range of no rows may stand at the end.
        let at = (rows.start * width + h * self.dim).min(self.values.len());
        Mat::new(&self.values[at..], (rows.len(), self.dim), width)
    }
}

/// Gradients of one head of one sequence of T tokens, (T, D) each.
struct HeadGrads {
    dq: Vec<f32>,
    dk: Vec<f32>,
    dv: Vec<f32>,
}

impl Attention {
    /// As a config says for one layer.
    pub fn of(config: &Config, layer: usize) -> Self {
        Self {
            n_heads: config.num_attention_heads,
            n_kv_heads: config.num_key_value_heads,
            head_dim: config.head_dim,
            scale: 1.0 / config.query_pre_attn_scalar.sqrt(),
            causal: config.family.is_decoder(),
            window: config.window(layer),
        }
    }

    /// q: (N, H D), k and v: (N, K D) → (N, H D). softmax(s q kᵀ) v within each segment.
    pub fn forward(&self, q: &Tensor, k: &Tensor, v: &Tensor, segments: &[Segment]) -> Result<Tensor> {
        let width = self.n_heads * self.head_dim;
        let (shape, device) = (q.shape().clone(), q.device().clone());
        let (hq, hk, hv) = (Host::new(q)?, Host::new(k)?, Host::new(v)?);
        let [q, k, v] = self.heads([&hq, &hk, &hv])?;
        let mut out = vec![0.0; shape.elem_count()];
        blocks(segments, width, &mut out)?.into_par_iter().for_each(|(block, out)| {
            let seen = self.seen_by(&block);
            let mut p = vec![0.0; block.len * seen.len()];
            for h in 0..self.n_heads {
                self.probabilities(&mut p, q, k, h, &block);
                let (p, v) = (Mat::new(&p, (block.len, seen.len()), seen.len()), v.rows(self.kv(h), block.at(&seen)));
                product(&mut out[h * self.head_dim..], width, p, v, Onto::Nothing, By::One);
            }
        });
        Tensor::from_vec(out, shape, &device)
    }

    /// (dq, dk, dv). With dP = dO Vᵀ: dS = s P ⊙ (dP - rowsum(P ⊙ dP)), dQ = dS K, dK = dSᵀ Q, dV = Pᵀ dO.
    pub fn backward(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        dy: &Tensor,
        segments: &[Segment],
    ) -> Result<(Tensor, Tensor, Tensor)> {
        let (q_shape, kv_shape, device) = (q.shape(), k.shape(), q.device());
        let (hq, hk, hv, hdy) = (Host::new(q)?, Host::new(k)?, Host::new(v)?, Host::new(dy)?);
        let [hq, hk, hv] = self.heads([&hq, &hk, &hv])?;
        let hdy = Heads { values: hdy.slice(), ..hq };
        let tasks = segments.len() * self.n_heads;
        let grads: Vec<HeadGrads> = (0..tasks)
            .into_par_iter()
            .map(|i| self.head_backward(hq, hk, hv, hdy, i % self.n_heads, &segments[i / self.n_heads]))
            .collect();
        let dq = self.joined(&grads, self.n_heads, segments, q_shape.elem_count(), |g| &g.dq)?;
        let dk = self.joined(&grads, self.n_kv_heads, segments, kv_shape.elem_count(), |g| &g.dk)?;
        let dv = self.joined(&grads, self.n_kv_heads, segments, kv_shape.elem_count(), |g| &g.dv)?;
        Ok((
            Tensor::from_vec(dq, q_shape, device)?,
            Tensor::from_vec(dk, kv_shape, device)?,
            Tensor::from_vec(dv, kv_shape, device)?,
        ))
    }

    fn head_backward(&self, q: Heads, k: Heads, v: Heads, dy: Heads, h: usize, segment: &Segment) -> HeadGrads {
        let (d, g) = (self.head_dim, self.kv(h));
        let zeros = || vec![0.0; segment.len * d];
        let mut grads = HeadGrads { dq: zeros(), dk: zeros(), dv: zeros() };
        let (mut p, mut dp) = (Vec::new(), Vec::new());
        for block in blocks_of(0, segment) {
            let seen = self.seen_by(&block);
            let width = seen.len();
            p.resize(block.len * width, 0.0);
            dp.resize(block.len * width, 0.0);
            self.probabilities(&mut p, q, k, h, &block);
            let (keys, queries) = (block.at(&seen), block.at(&(block.first..block.first + block.len)));
            let (k, v, q, dy) =
                (k.rows(g, keys.clone()), v.rows(g, keys), q.rows(h, queries.clone()), dy.rows(h, queries));
            let scores = |values| Mat::new(values, (block.len, width), width);
            product(&mut grads.dv[seen.start * d..], d, scores(&p).t(), dy, Onto::Sum, By::One);
            product(&mut dp, width, dy, v.t(), Onto::Nothing, By::One);
            self.softmax_backward(&p, &mut dp, width);
            product(&mut grads.dq[block.first * d..], d, scores(&dp), k, Onto::Nothing, By::One);
            product(&mut grads.dk[seen.start * d..], d, scores(&dp).t(), q, Onto::Sum, By::One);
        }
        grads
    }

    /// Rows of the packed batch out of the heads of each sequence; what shares a head there is summed, in order.
    fn joined(
        &self,
        grads: &[HeadGrads],
        heads: usize,
        segments: &[Segment],
        elements: usize,
        part: impl Fn(&HeadGrads) -> &Vec<f32> + Sync,
    ) -> Result<Vec<f32>> {
        let (d, per, mut out) = (self.head_dim, self.n_heads / heads, vec![0.0; elements]);
        blocks(segments, heads * d, &mut out)?.into_par_iter().for_each(|(block, out)| {
            let of = &grads[block.of * self.n_heads..][..self.n_heads];
            for (t, row) in out.chunks_mut(heads * d).enumerate() {
                for (row, of) in row.chunks_mut(d).zip(of.chunks(per)) {
                    for g in of {
                        let values = &part(g)[(block.first + t) * d..][..d];
                        row.iter_mut().zip(values).for_each(|(sum, v)| *sum += v);
                    }
                }
            }
        });
        Ok(out)
    }

    /// softmax(s q kᵀ): (queries, keys that one of them sees), of query head `h`.
    fn probabilities(&self, p: &mut [f32], q: Heads, k: Heads, h: usize, block: &Block) {
        let seen = self.seen_by(block);
        let width = seen.len();
        let (q, k) =
            (q.rows(h, block.at(&(block.first..block.first + block.len))), k.rows(self.kv(h), block.at(&seen)));
        product(p, width, q, k.t(), Onto::Nothing, By::One);
        for (t, p) in p.chunks_mut(width.max(1)).enumerate() {
            let own = self.seen(block.first + t, block.keys);
            let (begin, end) = (own.start - seen.start, own.end - seen.start);
            p[..begin].fill(0.0);
            p[end..].fill(0.0);
            let (own, scale) = (&mut p[begin..end], self.scale);
            wide!(|own: &'a mut [f32], scale: f32| -> () {
                let max = math::max(own);
                for s in own.iter_mut() {
                    *s = math::exp((*s - max) * scale);
                }
                let inverse = 1.0 / math::sum(own, |p| p);
                for p in own {
                    *p *= inverse;
                }
            });
        }
    }

    /// dP becomes dS.
    fn softmax_backward(&self, p: &[f32], dp: &mut [f32], width: usize) {
        for (dp, p) in dp.chunks_mut(width.max(1)).zip(p.chunks(width.max(1))) {
            let scale = self.scale;
            wide!(|p: &'a [f32], dp: &'a mut [f32], scale: f32| -> () {
                let along = math::sum2(p, dp, |p, d| p * d);
                for (d, p) in dp.iter_mut().zip(p) {
                    *d = p * (*d - along) * scale;
                }
            });
        }
    }

    /// Keys that token `t` of a sequence sees, of the `keys` that may be seen.
    fn seen(&self, t: usize, keys: usize) -> Range<usize> {
        let end = if self.causal { (t + 1).min(keys) } else { keys };
        let begin = self.window.map_or(0, |w| (t + 1).saturating_sub(w)).min(end);
        begin..end
    }

    /// Keys that any query of a block sees.
    fn seen_by(&self, block: &Block) -> Range<usize> {
        self.seen(block.first, block.keys).start..self.seen(block.first + block.len - 1, block.keys).end
    }

    /// The key head of a query head.
    fn kv(&self, h: usize) -> usize {
        h / (self.n_heads / self.n_kv_heads)
    }

    fn heads<'a>(&self, [q, k, v]: [&'a Host; 3]) -> Result<[Heads<'a>; 3]> {
        let heads = |host: &'a Host, heads| Heads { values: host.slice(), heads, dim: self.head_dim };
        let out = [heads(q, self.n_heads), heads(k, self.n_kv_heads), heads(v, self.n_kv_heads)];
        let tokens = out.map(|h| h.values.len() / (h.heads * h.dim));
        if tokens.iter().any(|n| *n != tokens[0]) {
            bail!("queries, keys and values of {tokens:?} tokens");
        }
        Ok(out)
    }
}

impl Block {
    /// Rows of the batch.
    fn at(&self, rows: &Range<usize>) -> Range<usize> {
        self.start + rows.start..self.start + rows.end
    }
}

/// Queries of one sequence, a few at a time.
fn blocks_of(of: usize, segment: &Segment) -> impl Iterator<Item = Block> {
    let Segment { start, len, keys, .. } = *segment;
    (0..len).step_by(QUERIES).map(move |first| Block { of, start, keys, first, len: QUERIES.min(len - first) })
}

/// The same of all sequences, each with its rows of `out`, which are `width` wide.
fn blocks<'a>(segments: &[Segment], width: usize, mut out: &'a mut [f32]) -> Result<Vec<(Block, &'a mut [f32])>> {
    let tokens: usize = segments.iter().map(|s| s.len).sum();
    if tokens * width != out.len() {
        bail!("segments of {tokens} tokens in a batch of {}", out.len() / width);
    }
    let mut all = Vec::new();
    for block in segments.iter().enumerate().flat_map(|(i, s)| blocks_of(i, s)) {
        let (own, rest) = out.split_at_mut(block.len * width);
        all.push((block, own));
        out = rest;
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::super::made::tensor;
    use super::*;

    fn values(t: &Tensor) -> Vec<f64> {
        t.flatten_all().unwrap().to_vec1::<f32>().unwrap().into_iter().map(f64::from).collect()
    }

    /// The definition, query by query: (o, dq, dk, dv).
    fn plain(a: &Attention, [q, k, v, dy]: [&Tensor; 4], segments: &[Segment]) -> [Vec<f64>; 4] {
        let [q, k, v, dy] = [q, k, v, dy].map(values);
        let (d, wide, narrow) = (a.head_dim, a.n_heads * a.head_dim, a.n_kv_heads * a.head_dim);
        let (mut o, mut dq) = (vec![0.0; q.len()], vec![0.0; q.len()]);
        let (mut dk, mut dv) = (vec![0.0; k.len()], vec![0.0; k.len()]);
        for s in segments {
            for (t, h) in (0..s.len).flat_map(|t| (0..a.n_heads).map(move |h| (t, h))) {
                let sees = |j: &usize| (!a.causal || *j <= t) && a.window.is_none_or(|w| j + w > t);
                let seen: Vec<usize> = (0..s.keys).filter(sees).collect();
                let own = (s.start + t) * wide + h * d;
                let at = |j: usize| (s.start + j) * narrow + h * a.n_kv_heads / a.n_heads * d;
                let dot = |x: &[f64], i: usize, y: &[f64], j: usize| (0..d).map(|c| x[i + c] * y[j + c]).sum::<f64>();
                let e: Vec<f64> = seen.iter().map(|j| (f64::from(a.scale) * dot(&q, own, &k, at(*j))).exp()).collect();
                let sum: f64 = e.iter().sum();
                let dp: Vec<f64> = seen.iter().map(|j| dot(&dy, own, &v, at(*j))).collect();
                let along: f64 = e.iter().zip(&dp).map(|(e, dp)| e / sum * dp).sum();
                for ((j, e), dp) in seen.iter().zip(&e).zip(&dp) {
                    let (p, j) = (e / sum, at(*j));
                    let ds = f64::from(a.scale) * p * (dp - along);
                    for c in 0..d {
                        o[own + c] += p * v[j + c];
                        dv[j + c] += p * dy[own + c];
                        dq[own + c] += ds * k[j + c];
                        dk[j + c] += ds * q[own + c];
                    }
                }
            }
        }
        [o, dq, dk, dv]
    }

    /// Sequences of one block, of just one, of one and a token, of several; padding that only asks; windows within and over a
    /// block; heads that share keys.
    #[test]
    fn a_few_queries_at_a_time_give_what_all_pairs_give() {
        for (n_heads, n_kv_heads, causal, window) in [
            (4, 2, true, None),
            (2, 2, false, None),
            (6, 1, true, Some(7)),
            (2, 1, true, Some(100)),
            (2, 2, true, Some(1)),
        ] {
            let a = Attention { n_heads, n_kv_heads, head_dim: 8, scale: 0.35, causal, window };
            let mut segments = Vec::new();
            let mut n = 0;
            for (len, keys) in [(1, 1), (QUERIES, QUERIES), (5, 3), (QUERIES + 1, QUERIES + 1), (200, 150)] {
                segments.push(Segment { start: n, len, keys });
                n += len;
            }
            let (q, k, v) = (tensor(n, n_heads * 8, 1), tensor(n, n_kv_heads * 8, 2), tensor(n, n_kv_heads * 8, 3));
            let dy = tensor(n, n_heads * 8, 4);
            let want = plain(&a, [&q, &k, &v, &dy], &segments);
            let o = a.forward(&q, &k, &v, &segments).unwrap();
            let (dq, dk, dv) = a.backward(&q, &k, &v, &dy, &segments).unwrap();
            for ((got, want), name) in [o, dq, dk, dv].iter().zip(&want).zip(["o", "dq", "dk", "dv"]) {
                let off = values(got).iter().zip(want).map(|(g, w)| (g - w).abs()).fold(0.0, f64::max);
                assert!(off < 2e-5, "{name} of {a:?}: {off}");
            }
        }
    }

    #[test]
    fn segments_that_do_not_fill_the_batch_are_an_error() {
        let a = Attention { n_heads: 1, n_kv_heads: 1, head_dim: 4, scale: 0.5, causal: true, window: None };
        let (x, short) = (tensor(5, 4, 1), [Segment { start: 0, len: 4, keys: 4 }]);
        let error = a.forward(&x, &x, &x, &short).unwrap_err().to_string();
        assert!(error.starts_with("segments of 4 tokens in a batch of 5"), "{error}");
        assert!(a.forward(&x, &tensor(4, 4, 1), &x, &short).is_err());
    }
}
