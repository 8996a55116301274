//! (IA)³ (Liu et al., arXiv:2205.05638): a vector that scales what a module gives (keys, values), or what it takes
//! (feed-forward). Where it scales the output it scales the bias too, as PEFT does.

use super::Grads;
use super::linear::Linear;
use candle_core::{Result, Tensor};

/// A vector over a weight.
pub struct Ia3 {
    /// (out, 1) or, for feed-forward, (1, in): PEFT's shapes. Ones at first.
    pub l: Tensor,
    /// Whether the input is scaled instead of the output.
    pub feedforward: bool,
}

impl Ia3 {
    /// x: (N, in) → (N, out). y = l ⊙ (W x + b), or W (l ⊙ x) + b.
    pub fn forward(&self, linear: &Linear, x: &Tensor) -> Result<Tensor> {
        if self.feedforward {
            return linear.plain(&x.broadcast_mul(&self.l)?);
        }
        linear.plain(x)?.broadcast_mul(&self.l.t()?)
    }

    /// dl = Σ dy ⊙ (W x + b), dx = (l ⊙ dy) W; for feed-forward with g = dy W: dl = Σ g ⊙ x, dx = g ⊙ l.
    pub fn backward(
        &self,
        linear: &Linear,
        x: &Tensor,
        dy: &Tensor,
        grads: &mut Grads,
        want_dx: bool,
    ) -> Result<Option<Tensor>> {
        let name = format!("{}.ia3_l", linear.name);
        if self.feedforward {
            let g = linear.project_back(dy)?;
            grads.add(&name, (&g * x)?.sum_keepdim(0)?)?;
            return if want_dx { g.broadcast_mul(&self.l).map(Some) } else { Ok(None) };
        }
        grads.add(&name, (dy * linear.plain(x)?)?.sum_keepdim(0)?.t()?.contiguous()?)?;
        if !want_dx {
            return Ok(None);
        }
        linear.project_back(&dy.broadcast_mul(&self.l.t()?)?).map(Some)
    }

    /// W' = l ⊙ W, by row or by column as l's shape says. W: (out, in).
    pub fn folded(l: &Tensor, weight: &Tensor) -> Result<Tensor> {
        weight.broadcast_mul(l)
    }
}
