//! Self-attention of one block: projections, norms and rotations of queries and keys where a family has them, attention, and
//! the projection back.

use super::attention::Attention;
use super::linear::Linear;
use super::norm::Norm;
use super::projections::Projections;
use super::rope::Angles;
use super::{Grads, Pass};
use crate::model::Segment;
use candle_core::{Result, Tensor};

/// What one block attends with.
pub struct SelfAttention {
    /// Queries, keys and values.
    pub qkv: Projections,
    /// Norms of each head's query and key (Qwen3, Gemma 3).
    pub qk_norms: Option<[Norm; 2]>,
    /// Who sees whom.
    pub attention: Attention,
    /// Back to (N, C).
    pub out: Linear,
}

/// What the backward needs besides the input.
pub struct Saved {
    bare: Option<[Tensor; 2]>, // q (N, H D) and k (N, K D) before their norms
    q: Tensor,                 // (N, H D) as attended with
    k: Tensor,                 // (N, K D)
    v: Tensor,                 // (N, K D)
    o: Tensor,                 // (N, H D)
}

impl SelfAttention {
    /// x: (N, C) → (N, C). `angles` rotate queries and keys, where positions are rotations.
    pub fn forward(
        &self,
        x: &Tensor,
        segments: &[Segment],
        angles: Option<&Angles>,
        pass: Pass,
    ) -> Result<(Tensor, Saved)> {
        let [mut q, mut k, v] = three(self.qkv.forward(x, pass)?)?;
        let mut bare = None;
        if let Some([q_norm, k_norm]) = &self.qk_norms {
            let normed = (q_norm.forward_heads(&q)?, k_norm.forward_heads(&k)?);
            bare = Some([q, k]);
            (q, k) = normed;
        }
        if let Some(angles) = angles {
            (q, k) = (angles.forward(&q)?, angles.forward(&k)?);
        }
        let o = self.attention.forward(&q, &k, &v, segments)?;
        let y = self.out.forward(&o, pass)?;
        Ok((y, Saved { bare, q, k, v, o }))
    }

    /// The gradient of x; only when `want_dx`.
    pub fn backward(
        &self,
        x: &Tensor,
        s: Saved,
        dy: &Tensor,
        segments: &[Segment],
        angles: Option<&Angles>,
        pass: Pass,
        grads: &mut Grads,
        want_dx: bool,
    ) -> Result<Option<Tensor>> {
        let d_o = self.out.backward(&s.o, dy, pass, grads)?;
        drop(s.o);
        let (mut dq, mut dk, dv) = self.attention.backward(&s.q, &s.k, &s.v, &d_o, segments)?;
        drop((s.q, s.k, s.v, d_o));
        if let Some(angles) = angles {
            (dq, dk) = (angles.backward(&dq)?, angles.backward(&dk)?);
        }
        if let (Some([q_norm, k_norm]), Some([q, k])) = (&self.qk_norms, &s.bare) {
            (dq, dk) = (q_norm.backward_heads(q, &dq, grads)?, k_norm.backward_heads(k, &dk, grads)?);
        }
        self.qkv.backward(x, &[dq, dk, dv], pass, grads, want_dx)
    }

    /// Every projection, in order.
    pub fn linears(&mut self) -> impl Iterator<Item = &mut Linear> {
        self.qkv.linears().iter_mut().chain(std::iter::once(&mut self.out))
    }

    /// Its norms.
    pub fn norms(&mut self) -> impl Iterator<Item = &mut Norm> {
        self.qk_norms.iter_mut().flatten()
    }
}

fn three(parts: Vec<Tensor>) -> Result<[Tensor; 3]> {
    parts.try_into().map_err(|p: Vec<Tensor>| candle_core::Error::Msg(format!("{} parts, not q, k and v", p.len())))
}
