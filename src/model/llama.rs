//! Llama (arXiv:2302.13971) and its kin: Mistral (arXiv:2310.06825: a sliding window), Qwen2 (arXiv:2407.10671: biases on q,
//! k, v), Qwen3 (arXiv:2505.09388: norms of each head's query and key) and Phi-3 (arXiv:2404.14219: q, k, v in one matrix,
//! gate and up in another): pre-norm blocks of rotary attention and a gated feed-forward.

use super::config::{Config, Family};
use super::layers::Grads;
use super::layers::attention::Attention;
use super::layers::feed_forward::{self, FeedForward};
use super::layers::fused;
use super::layers::linear::Linear;
use super::layers::norm::Norm;
use super::layers::projections::Projections;
use super::layers::rope::Rope;
use super::layers::self_attention::{self, SelfAttention};
use super::trunk::{Block, Context, Embeddings, Parts, Stack};
use candle_core::{Result, Tensor};

/// x₁ = x + attention(norm x); y = x₁ + mlp(norm x₁). GPT-2's block is one too.
pub struct PreNorm {
    /// Before the attention.
    pub input_norm: Norm,
    /// The attention.
    pub attention: SelfAttention,
    /// Before the feed-forward.
    pub post_attention_norm: Norm,
    /// The feed-forward.
    pub mlp: FeedForward,
}

/// What one block keeps for its backward: what costs a GEMM to make. Norms and activations are made again.
pub struct Saved {
    x: Tensor, // (N, C) input of the block
    attention: self_attention::Saved,
    x1: Tensor, // (N, C) after attention
    mlp: feed_forward::Saved,
}

/// Reads the trunk from a checkpoint.
pub fn load(parts: &Parts) -> anyhow::Result<Stack<PreNorm>> {
    let config = parts.config;
    let c = config.hidden_size;
    let blocks = (0..config.num_hidden_layers).map(|i| {
        let at = |part: &str| format!("model.layers.{i}.{part}");
        Ok(PreNorm {
            input_norm: parts.rms_norm(at("input_layernorm"), c)?,
            attention: attention(parts, i)?,
            post_attention_norm: parts.rms_norm(at("post_attention_layernorm"), c)?,
            mlp: mlp(parts, i)?,
        })
    });
    Ok(Stack {
        blocks: blocks.collect::<anyhow::Result<_>>()?,
        embeddings: Embeddings {
            words: parts.embedding("model.embed_tokens".into(), config.vocab_size, None)?,
            scale: 1.0,
            positions: None,
            types: None,
            norm: None,
        },
        norm: Some(parts.rms_norm("model.norm".into(), c)?),
        ropes: Rope::of(config),
        lowest: 0,
        whole: false,
    })
}

/// The attention of layer `i`, in the names that Llama gave.
pub fn attention(parts: &Parts, i: usize) -> anyhow::Result<SelfAttention> {
    let config: &Config = parts.config;
    let (c, q, kv) = (config.hidden_size, config.q_dim(), config.kv_dim());
    let at = |part: &str| format!("model.layers.{i}.self_attn.{part}");
    let qkv = if config.family == Family::Phi3 {
        Projections::Joined(parts.linear(at("qkv_proj"), q + 2 * kv, c, false)?, vec![q, kv, kv])
    } else {
        let one = |part: &str, out: usize| parts.linear(at(part), out, c, config.attention_bias);
        Projections::Apart(vec![one("q_proj", q)?, one("k_proj", kv)?, one("v_proj", kv)?])
    };
    let qk_norms = if config.family.norms_heads() {
        let norm = |part: &str| parts.rms_norm(at(part), config.head_dim);
        Some([norm("q_norm")?, norm("k_norm")?])
    } else {
        None
    };
    let out = parts.linear(at("o_proj"), c, q, config.attention_out_bias)?;
    Ok(SelfAttention { qkv, qk_norms, attention: Attention::of(config, i), out })
}

/// The feed-forward of layer `i`, in the names that Llama gave.
pub fn mlp(parts: &Parts, i: usize) -> anyhow::Result<FeedForward> {
    let (config, c, f) = (parts.config, parts.config.hidden_size, parts.config.intermediate_size);
    let at = |part: &str| format!("model.layers.{i}.mlp.{part}");
    let up = if config.family == Family::Phi3 {
        Projections::Joined(parts.linear(at("gate_up_proj"), 2 * f, c, false)?, vec![f, f])
    } else {
        let one = |part: &str| parts.linear(at(part), f, c, config.mlp_bias);
        Projections::Apart(vec![one("gate_proj")?, one("up_proj")?])
    };
    Ok(FeedForward { up, act: config.activation, down: parts.linear(at("down_proj"), c, f, config.mlp_bias)? })
}

impl Block for PreNorm {
    type Saved = Saved;

    fn forward(&self, x: &Tensor, at: &Context) -> Result<(Tensor, Saved)> {
        let n1 = self.input_norm.forward(x)?;
        let (o, attention) = self.attention.forward(&n1, &at.batch.segments, at.angles.first(), at.pass)?;
        fused::add(&o, x)?;
        let x1 = o;
        let n2 = self.post_attention_norm.forward(&x1)?;
        let (h, mlp) = self.mlp.forward(&n2, at.pass)?;
        fused::add(&h, &x1)?;
        Ok((h, Saved { x: x.clone(), attention, x1, mlp }))
    }

    fn backward(
        &self,
        s: Saved,
        dy: &Tensor,
        at: &Context,
        grads: &mut Grads,
        want_dx: bool,
    ) -> Result<Option<Tensor>> {
        let n2 = self.post_attention_norm.forward(&s.x1)?;
        let dn2 = self.mlp.backward(&n2, s.mlp, dy, at.pass, grads)?;
        drop(n2);
        let dx1 = self.post_attention_norm.backward(&s.x1, &dn2, grads)?;
        fused::add(&dx1, dy)?;
        let (segments, angles) = (&at.batch.segments, at.angles.first());
        let want_dn1 = want_dx || self.input_norm.trained;
        let n1 = self.input_norm.forward(&s.x)?;
        let dn1 = self.attention.backward(&n1, s.attention, &dx1, segments, angles, at.pass, grads, want_dn1)?;
        let Some(dn1) = dn1 else { return Ok(None) };
        let dx = self.input_norm.backward(&s.x, &dn1, grads)?;
        fused::add(&dx, &dx1)?;
        Ok(Some(dx))
    }

    fn linears(&mut self) -> Vec<&mut Linear> {
        self.attention.linears().chain(self.mlp.linears()).collect()
    }

    fn norms(&mut self) -> Vec<&mut Norm> {
        let [input, post] = [&mut self.input_norm, &mut self.post_attention_norm];
        std::iter::once(input).chain(self.attention.norms()).chain([post]).collect()
    }
}
