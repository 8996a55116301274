//! Layers: each forward beside its hand-written backward.
//!
//! Activations are (N, C) f32 tensors, N tokens of a packed batch. `backward` takes what the forward saw, and the gradient
//! of what it gave; it returns the gradient of its input and adds those of its trained weights to [`Grads`].
//!
//! - [`linear`]: y = x Wᵀ + b, frozen or trained; [`projections`]: several of one input
//! - [`weight`]: its W, dense or quantized, [`nf4`] among the forms
//! - [`adapter`]: what is trained beside it: [`lora`], [`dora`], [`ia3`]
//! - [`embedding`]; [`norm`]: RMSNorm, LayerNorm; [`rope`]; [`attention`]; [`act`]: activations and gates
//! - [`self_attention`], [`feed_forward`]: the two halves of a block
//! - [`noise`]: what NEFTune adds to embeddings
//! - [`mat`], [`low_rank`], [`math`], [`fused`]: the products and loops they share, where they lie, vectorized and in place
//! - [`head`]: chunked linear cross-entropy, and the losses of classification and spans
//! - [`sequence`]: log-probabilities of whole answers; [`contrast`]: vectors of texts, and the loss that parts them

pub mod act;
pub mod adapter;
pub mod attention;
pub mod contrast;
pub mod dora;
pub mod embedding;
pub mod feed_forward;
pub mod fused;
pub mod head;
pub mod host;
pub mod ia3;
pub mod linear;
pub mod lora;
pub mod low_rank;
#[cfg(test)]
mod made;
pub mod mat;
pub mod math;
pub mod nf4;
pub mod noise;
pub mod norm;
pub mod projections;
pub mod rope;
pub mod self_attention;
pub mod sequence;
pub mod weight;

use super::Packed;
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
    /// Tokens of the micro-batch that stand before these rows, where it is computed in parts: a part draws what the whole
    /// would have drawn for it.
    pub first: usize,
    /// Rows that stand before them.
    pub first_row: usize,
    /// NEFTune's α; 0 adds no noise.
    pub noise: f32,
}

impl Pass {
    /// No dropout, no noise: evaluation, verification.
    pub const EVAL: Pass = Pass { train: false, seed: 0, step: 0, first: 0, first_row: 0, noise: 0.0 };

    /// The same for the rows that stand behind these.
    pub fn behind(self, rows: &Packed) -> Pass {
        Pass { first: self.first + rows.len(), first_row: self.first_row + rows.segments.len(), ..self }
    }

    /// The same for a layer that sees one vector a row, as a head behind a pooler does.
    pub fn of_rows(self) -> Pass {
        Pass { first: self.first_row, ..self }
    }
}
