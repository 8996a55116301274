//! Several projections of one input: a matrix each (Llama, BERT), or one matrix that holds them side by side (Phi-3's
//! `qkv_proj`, GPT-2's `c_attn`).

use super::fused;
use super::linear::Linear;
use super::{Grads, Pass};
use candle_core::{Result, Tensor};

/// Projections of one input.
pub enum Projections {
    /// A module each.
    Apart(Vec<Linear>),
    /// One module; its outputs are cut into these widths.
    Joined(Linear, Vec<usize>),
}

impl Projections {
    /// x: (N, in) → (N, out) of each.
    pub fn forward(&self, x: &Tensor, pass: Pass) -> Result<Vec<Tensor>> {
        match self {
            Self::Apart(linears) => linears.iter().map(|l| l.forward(x, pass)).collect(),
            Self::Joined(linear, widths) => {
                let y = linear.forward(x, pass)?;
                let mut from = 0;
                let cut = widths.iter().map(|width| {
                    from += width;
                    y.narrow(1, from - width, *width)?.contiguous()
                });
                cut.collect()
            }
        }
    }

    /// The gradient of x, from x and the gradient of each output; only when `want_dx`.
    pub fn backward(
        &self,
        x: &Tensor,
        dys: &[Tensor],
        pass: Pass,
        grads: &mut Grads,
        want_dx: bool,
    ) -> Result<Option<Tensor>> {
        match self {
            Self::Apart(linears) => {
                let mut dx: Option<Tensor> = None;
                for (linear, dy) in linears.iter().zip(dys) {
                    let part = linear.backward_weights(x, dy, pass, grads, want_dx)?;
                    dx = match (dx, part) {
                        (Some(sum), Some(part)) => {
                            fused::add(&sum, &part)?;
                            Some(sum)
                        }
                        (sum, part) => sum.or(part),
                    };
                }
                Ok(dx)
            }
            Self::Joined(linear, _) => linear.backward_weights(x, &Tensor::cat(dys, 1)?, pass, grads, want_dx),
        }
    }

    /// The modules, in order.
    pub fn linears(&mut self) -> &mut [Linear] {
        match self {
            Self::Apart(linears) => linears,
            Self::Joined(linear, _) => std::slice::from_mut(linear),
        }
    }
}
