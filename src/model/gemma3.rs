//! Gemma 3, text (arXiv:2503.19786): norms before and behind each half of a block, their weights stored less 1; norms of
//! each head's query and key; words multiplied by √C; five local layers with a window and a rotation base of their own for
//! each layer that sees all.

use super::layers::Grads;
use super::layers::feed_forward::{self, FeedForward};
use super::layers::fused;
use super::layers::linear::Linear;
use super::layers::norm::Norm;
use super::layers::rope::Rope;
use super::layers::self_attention::{self, SelfAttention};
use super::llama;
use super::trunk::{Block, Context, Embeddings, Parts, Stack};
use candle_core::{Result, Tensor};

/// x₁ = x + norm(attention(norm x)); y = x₁ + norm(mlp(norm x₁)).
pub struct Sandwich {
    input_layernorm: Norm,
    attention: SelfAttention,
    post_attention_layernorm: Norm,
    pre_feedforward_layernorm: Norm,
    mlp: FeedForward,
    post_feedforward_layernorm: Norm,
    /// Which of the two rotations.
    rope: usize,
}

/// What one block keeps for its backward.
pub struct Saved {
    x: Tensor, // (N, C) input of the block
    attention: self_attention::Saved,
    o: Tensor,  // (N, C) before the norm behind the attention
    x1: Tensor, // (N, C) after attention
    mlp: feed_forward::Saved,
    h: Tensor, // (N, C) before the norm behind the feed-forward
}

/// Reads the trunk from a checkpoint.
pub fn load(parts: &Parts) -> anyhow::Result<Stack<Sandwich>> {
    let config = parts.config;
    let c = config.hidden_size;
    let shifted = |norm: Norm| -> anyhow::Result<Norm> {
        // A network that starts from noise starts from norms of 1, stored as 0.
        let weight = if parts.weights.is_random() { norm.weight.zeros_like()? } else { norm.weight };
        Ok(Norm { weight, offset: 1.0, ..norm })
    };
    let blocks = (0..config.num_hidden_layers).map(|i| {
        let norm = |part: &str| shifted(parts.rms_norm(format!("model.layers.{i}.{part}"), c)?);
        let mut attention = llama::attention(parts, i)?;
        attention.qk_norms = match attention.qk_norms {
            Some([q, k]) => Some([shifted(q)?, shifted(k)?]),
            None => None,
        };
        Ok(Sandwich {
            input_layernorm: norm("input_layernorm")?,
            attention,
            post_attention_layernorm: norm("post_attention_layernorm")?,
            pre_feedforward_layernorm: norm("pre_feedforward_layernorm")?,
            mlp: llama::mlp(parts, i)?,
            post_feedforward_layernorm: norm("post_feedforward_layernorm")?,
            rope: usize::from(config.local_layers[i]),
        })
    });
    Ok(Stack {
        blocks: blocks.collect::<anyhow::Result<_>>()?,
        embeddings: Embeddings {
            words: parts.embedding("model.embed_tokens".into(), config.vocab_size, None)?,
            scale: f64::from((c as f32).sqrt()),
            positions: None,
            types: None,
            norm: None,
        },
        norm: Some(shifted(parts.rms_norm("model.norm".into(), c)?)?),
        ropes: Rope::of(config),
        lowest: 0,
        whole: false,
    })
}

impl Block for Sandwich {
    type Saved = Saved;

    fn forward(&self, x: &Tensor, at: &Context) -> Result<(Tensor, Saved)> {
        let n1 = self.input_layernorm.forward(x)?;
        let angles = at.angles.get(self.rope);
        let (o, attention) = self.attention.forward(&n1, &at.batch.segments, angles, at.pass)?;
        let x1 = self.post_attention_layernorm.forward(&o)?;
        fused::add(&x1, x)?;
        let n2 = self.pre_feedforward_layernorm.forward(&x1)?;
        let (h, mlp) = self.mlp.forward(&n2, at.pass)?;
        let y = self.post_feedforward_layernorm.forward(&h)?;
        fused::add(&y, &x1)?;
        Ok((y, Saved { x: x.clone(), attention, o, x1, mlp, h }))
    }

    fn backward(
        &self,
        s: Saved,
        dy: &Tensor,
        at: &Context,
        grads: &mut Grads,
        want_dx: bool,
    ) -> Result<Option<Tensor>> {
        let dh = self.post_feedforward_layernorm.backward(&s.h, dy, grads)?;
        let n2 = self.pre_feedforward_layernorm.forward(&s.x1)?;
        let dn2 = self.mlp.backward(&n2, s.mlp, &dh, at.pass, grads)?;
        let dx1 = self.pre_feedforward_layernorm.backward(&s.x1, &dn2, grads)?;
        fused::add(&dx1, dy)?;
        let d_o = self.post_attention_layernorm.backward(&s.o, &dx1, grads)?;
        let (segments, angles) = (&at.batch.segments, at.angles.get(self.rope));
        let want_dn1 = want_dx || self.input_layernorm.trained;
        let n1 = self.input_layernorm.forward(&s.x)?;
        let dn1 = self.attention.backward(&n1, s.attention, &d_o, segments, angles, at.pass, grads, want_dn1)?;
        let Some(dn1) = dn1 else { return Ok(None) };
        let dx = self.input_layernorm.backward(&s.x, &dn1, grads)?;
        fused::add(&dx, &dx1)?;
        Ok(Some(dx))
    }

    fn linears(&mut self) -> Vec<&mut Linear> {
        self.attention.linears().chain(self.mlp.linears()).collect()
    }

    fn norms(&mut self) -> Vec<&mut Norm> {
        let outer = [
            &mut self.input_layernorm,
            &mut self.post_attention_layernorm,
            &mut self.pre_feedforward_layernorm,
            &mut self.post_feedforward_layernorm,
        ];
        outer.into_iter().chain(self.attention.norms()).collect()
    }
}
