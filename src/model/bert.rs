//! BERT (arXiv:1810.04805), RoBERTa (arXiv:1907.11692: positions count from behind the padding's row) and DistilBERT
//! (arXiv:1910.01108: no token types, names of its own): learned positions, post-norm blocks, GELU.

use super::config::Family;
use super::layers::Grads;
use super::layers::attention::Attention;
use super::layers::feed_forward::{self, FeedForward};
use super::layers::fused;
use super::layers::linear::Linear;
use super::layers::norm::Norm;
use super::layers::projections::Projections;
use super::layers::self_attention::{self, SelfAttention};
use super::trunk::{Block, Context, Embeddings, Parts, Stack};
use candle_core::{Result, Tensor};

/// x₁ = norm(x + attention x); y = norm(x₁ + mlp x₁).
pub struct PostNorm {
    attention: SelfAttention,
    attention_norm: Norm,
    mlp: FeedForward,
    output_norm: Norm,
}

/// What one block keeps for its backward.
pub struct Saved {
    x: Tensor, // (N, C)
    attention: self_attention::Saved,
    before1: Tensor, // (N, C) input of the attention norm
    mlp: feed_forward::Saved,
    before2: Tensor, // (N, C) input of the output norm
}

/// Names of a layer's parts, in the order q, k, v, out, norm, up, down, norm.
const BERT: [&str; 8] = [
    "attention.self.query",
    "attention.self.key",
    "attention.self.value",
    "attention.output.dense",
    "attention.output.LayerNorm",
    "intermediate.dense",
    "output.dense",
    "output.LayerNorm",
];
const DISTILBERT: [&str; 8] = [
    "attention.q_lin",
    "attention.k_lin",
    "attention.v_lin",
    "attention.out_lin",
    "sa_layer_norm",
    "ffn.lin1",
    "ffn.lin2",
    "output_layer_norm",
];

/// Reads the trunk from a checkpoint. Modules are named with the family's prefix, as PEFT meets them.
pub fn load(parts: &Parts) -> anyhow::Result<Stack<PostNorm>> {
    let config = parts.config;
    let (c, f, prefix) = (config.hidden_size, config.intermediate_size, config.family.prefix());
    let (layers, names) = match config.family {
        Family::DistilBert => ("transformer.layer", DISTILBERT),
        _ => ("encoder.layer", BERT),
    };
    let blocks = (0..config.num_hidden_layers).map(|i| {
        let [query, key, value, out, attention_norm, up, down, output_norm] =
            names.map(|part| format!("{prefix}{layers}.{i}.{part}"));
        let square = |name: String| parts.linear(name, c, c, true);
        Ok(PostNorm {
            attention: SelfAttention {
                qkv: Projections::Apart(vec![square(query)?, square(key)?, square(value)?]),
                qk_norms: None,
                attention: Attention::of(config, i),
                out: square(out)?,
            },
            attention_norm: parts.layer_norm(attention_norm)?,
            mlp: FeedForward {
                up: Projections::Apart(vec![parts.linear(up, f, c, true)?]),
                act: config.activation,
                down: parts.linear(down, c, f, true)?,
            },
            output_norm: parts.layer_norm(output_norm)?,
        })
    });
    let at = |part: &str| format!("{prefix}embeddings.{part}");
    // transformers gives the tables of words (and RoBERTa's of positions) a padding row that never learns.
    let padding = Some(config.pad_token_id.unwrap_or(u32::from(config.family == Family::Roberta)));
    let positions = config.max_position_embeddings + config.position_offset;
    let counts = padding.filter(|_| config.family == Family::Roberta);
    let types = match config.type_vocab_size {
        0 => None,
        n => Some(parts.embedding(at("token_type_embeddings"), n, None)?),
    };
    Ok(Stack {
        blocks: blocks.collect::<anyhow::Result<_>>()?,
        embeddings: Embeddings {
            words: parts.embedding(at("word_embeddings"), config.vocab_size, padding)?,
            scale: 1.0,
            positions: Some(parts.embedding(at("position_embeddings"), positions, counts)?),
            types,
            norm: Some(parts.layer_norm(at("LayerNorm"))?),
        },
        norm: None,
        ropes: Vec::new(),
        lowest: 0,
        whole: false,
    })
}

impl Block for PostNorm {
    type Saved = Saved;

    fn forward(&self, x: &Tensor, at: &Context) -> Result<(Tensor, Saved)> {
        let (o, attention) = self.attention.forward(x, &at.batch.segments, None, at.pass)?;
        fused::add(&o, x)?;
        let before1 = o;
        let x1 = self.attention_norm.forward(&before1)?;
        let (h, mlp) = self.mlp.forward(&x1, at.pass)?;
        fused::add(&h, &x1)?;
        let before2 = h;
        let y = self.output_norm.forward(&before2)?;
        Ok((y, Saved { x: x.clone(), attention, before1, mlp, before2 }))
    }

    fn backward(
        &self,
        s: Saved,
        dy: &Tensor,
        at: &Context,
        grads: &mut Grads,
        want_dx: bool,
    ) -> Result<Option<Tensor>> {
        let d2 = self.output_norm.backward(&s.before2, dy, grads)?;
        let x1 = self.attention_norm.forward(&s.before1)?;
        let dx1 = self.mlp.backward(&x1, s.mlp, &d2, at.pass, grads)?;
        fused::add(&dx1, &d2)?;
        let d1 = self.attention_norm.backward(&s.before1, &dx1, grads)?;
        let segments = &at.batch.segments;
        let dx = self.attention.backward(&s.x, s.attention, &d1, segments, None, at.pass, grads, want_dx)?;
        if let Some(dx) = &dx {
            fused::add(dx, &d1)?;
        }
        Ok(dx)
    }

    fn linears(&mut self) -> Vec<&mut Linear> {
        self.attention.linears().chain(self.mlp.linears()).collect()
    }

    fn norms(&mut self) -> Vec<&mut Norm> {
        vec![&mut self.attention_norm, &mut self.output_norm]
    }
}
