//! Layers: each forward beside its hand-written backward.
//!
//! Activations are (N, C) f32 tensors, N tokens of a packed batch. `backward` takes what the forward saw, and the gradient
//! of what it gave; it returns the gradient of its input and adds those of its trained weights to [`Grads`].
//!
//! - [`linear`]: y = x Wᵀ + b, frozen or trained, with LoRA beside it
//! - [`norm`]: RMSNorm, LayerNorm; [`rope`]; [`attention`]; [`mlp`]: SwiGLU and GELU
//! - [`math`], [`fused`]: the loops they share, vectorized and in place
//! - [`head`]: chunked linear cross-entropy, and the losses of classification and spans

pub mod attention;
pub mod fused;
pub mod head;
pub mod host;
pub mod linear;
pub mod math;
pub mod mlp;
pub mod norm;
pub mod rope;

use candle_core::{Result, Tensor};
use std::collections::BTreeMap;

/// Gradients by weight name, summed over micro-batches. Ordered, so that every sum over it has one order.
#[derive(Default)]
pub struct Grads(pub BTreeMap<String, Tensor>);

impl Grads {
    /// Adds `grad` to what is there under `name`.
    pub fn add(&mut self, name: &str, grad: Tensor) -> Result<()> {
        match self.0.get_mut(name) {
            Some(sum) => *sum = (&*sum + grad)?,
            None => {
                self.0.insert(name.to_owned(), grad);
            }
        }
        Ok(())
    }
}

/// What a forward pass needs to know besides its input.
#[derive(Debug, Clone, Copy)]
pub struct Pass {
    /// Dropout acts only while training.
    pub train: bool,
    /// Seed of the run.
    pub seed: u64,
    /// Counter of the micro-batch in the run: dropout draws its mask from (seed, site, step), never from a state.
    pub step: u64,
}

impl Pass {
    /// No dropout: evaluation, verification.
    pub const EVAL: Pass = Pass { train: false, seed: 0, step: 0 };
}
