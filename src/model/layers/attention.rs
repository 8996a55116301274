//! Grouped-query attention over packed sequences (arXiv:1706.03762, arXiv:2305.13245).
//!
//! Neighbouring sequences of equal length are one batched GEMM. Within it the G query heads that share a key head are
//! stacked as rows, so keys and values are never repeated: scores are (n K, G T, T).
//! The backward computes the probabilities again instead of keeping them.

use super::fused;
use super::math::{self, wide};
use crate::model::Segment;
use crate::model::config::Config;
use candle_core::{Result, Tensor};
use rayon::prelude::*;

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

/// Sequences of one shape, next to each other in the batch.
struct Group {
    start: usize,
    n: usize,
    len: usize,
    keys: usize,
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
        let parts = groups(segments)
            .iter()
            .map(|g| {
                let p = self.probabilities(q, k, g)?;
                self.join_q(&p.matmul(&self.split_kv(v, g)?)?, g)
            })
            .collect::<Result<Vec<_>>>()?;
        Tensor::cat(&parts, 0)
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
        let (mut dq, mut dk, mut dv) = (Vec::new(), Vec::new(), Vec::new());
        for g in &groups(segments) {
            let p = self.probabilities(q, k, g)?;
            let dout = self.split_q(dy, g)?;
            dv.push(self.join_kv(&p.t()?.matmul(&dout)?, g)?);
            let dp = dout.matmul(&self.split_kv(v, g)?.t()?)?;
            self.softmax_backward(&p, &dp)?;
            let ds = dp;
            dq.push(self.join_q(&ds.matmul(&self.split_kv(k, g)?)?, g)?);
            dk.push(self.join_kv(&ds.t()?.matmul(&self.split_q(q, g)?)?, g)?);
        }
        Ok((Tensor::cat(&dq, 0)?, Tensor::cat(&dk, 0)?, Tensor::cat(&dv, 0)?))
    }

    /// (n K, G T, T).
    fn probabilities(&self, q: &Tensor, k: &Tensor, g: &Group) -> Result<Tensor> {
        let scores = self.split_q(q, g)?.matmul(&self.split_kv(k, g)?.t()?)?;
        let len = g.len;
        fused::change(&scores, |scores| {
            scores.par_chunks_mut(len * len).for_each(|scores| {
                for (t, s) in scores.chunks_mut(len).enumerate() {
                    let end = if self.causal { (t + 1).min(g.keys) } else { g.keys };
                    let begin = self.window.map_or(0, |w| (t + 1).saturating_sub(w)).min(end);
                    s[..begin].fill(0.0);
                    s[end..].fill(0.0);
                    let (seen, scale) = (&mut s[begin..end], self.scale);
                    wide!(|seen: &'a mut [f32], scale: f32| -> () {
                        let max = math::max(seen);
                        for s in seen.iter_mut() {
                            *s = math::exp((*s - max) * scale);
                        }
                        let inverse = 1.0 / math::sum(seen, |p| p);
                        for p in seen {
                            *p *= inverse;
                        }
                    });
                }
            });
        })?;
        Ok(scores)
    }

    /// dP becomes dS.
    fn softmax_backward(&self, p: &Tensor, dp: &Tensor) -> Result<()> {
        let width = p.dim(2)?;
        let chunk = width * super::host::rows_per_task(width);
        fused::change_by(dp, p, |dp, p| {
            dp.par_chunks_mut(chunk).zip(p.par_chunks(chunk)).for_each(|(dp, p)| {
                for (dp, p) in dp.chunks_mut(width).zip(p.chunks(width)) {
                    let scale = self.scale;
                    wide!(|p: &'a [f32], dp: &'a mut [f32], scale: f32| -> () {
                        let along = math::sum2(p, dp, |p, d| p * d);
                        for (d, p) in dp.iter_mut().zip(p) {
                            *d = p * (*d - along) * scale;
                        }
                    });
                }
            });
        })
    }

    /// Rows of the group of (N, H D) → (n K, G T, D).
    fn split_q(&self, x: &Tensor, g: &Group) -> Result<Tensor> {
        let (k, d, per) = (self.n_kv_heads, self.head_dim, self.n_heads / self.n_kv_heads);
        x.narrow(0, g.start, g.n * g.len)?
            .reshape((g.n, g.len, k, per, d))?
            .permute((0, 2, 3, 1, 4))?
            .contiguous()?
            .reshape((g.n * k, per * g.len, d))
    }

    /// The way back of [`Attention::split_q`].
    fn join_q(&self, x: &Tensor, g: &Group) -> Result<Tensor> {
        let (k, d, per) = (self.n_kv_heads, self.head_dim, self.n_heads / self.n_kv_heads);
        x.reshape((g.n, k, per, g.len, d))?.permute((0, 3, 1, 2, 4))?.reshape((g.n * g.len, self.n_heads * d))
    }

    /// Rows of the group of (N, K D) → (n K, T, D).
    fn split_kv(&self, x: &Tensor, g: &Group) -> Result<Tensor> {
        let (k, d) = (self.n_kv_heads, self.head_dim);
        x.narrow(0, g.start, g.n * g.len)?.reshape((g.n, g.len, k, d))?.transpose(1, 2)?.contiguous()?.reshape((
            g.n * k,
            g.len,
            d,
        ))
    }

    /// The way back of [`Attention::split_kv`].
    fn join_kv(&self, x: &Tensor, g: &Group) -> Result<Tensor> {
        let (k, d) = (self.n_kv_heads, self.head_dim);
        x.reshape((g.n, k, g.len, d))?.transpose(1, 2)?.reshape((g.n * g.len, k * d))
    }
}

fn groups(segments: &[Segment]) -> Vec<Group> {
    let mut out: Vec<Group> = Vec::new();
    for s in segments {
        match out.last_mut() {
            Some(g) if g.len == s.len && g.keys == s.keys => g.n += 1,
            _ => out.push(Group { start: s.start, n: 1, len: s.len, keys: s.keys }),
        }
    }
    out
}
