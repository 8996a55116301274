//! Llama (arXiv:2302.13971), Mistral (arXiv:2310.06825: a sliding window) and Qwen2 (arXiv:2407.10671: biases on q, k, v):
//! pre-norm blocks of rotary attention and SwiGLU.

use super::Packed;
use super::config::Config;
use super::layers::attention::Attention;
use super::layers::linear::Linear;
use super::layers::norm::Norm;
use super::layers::rope::{Angles, Rope};
use super::layers::{Grads, Pass, mlp, noise};
use super::load::Checkpoint;
use candle_core::{Device, Result, Tensor};

/// The trunk: everything but the head.
pub struct Llama {
    /// (V, C).
    pub embed_tokens: Tensor,
    /// Whether the embedding is trained (full fine-tuning).
    pub embed_trained: bool,
    blocks: Vec<Block>,
    norm: Norm,
    rope: Rope,
}

struct Block {
    input_layernorm: Norm,
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    o_proj: Linear,
    post_attention_layernorm: Norm,
    gate_proj: Linear,
    up_proj: Linear,
    down_proj: Linear,
    attention: Attention,
}

/// What one block keeps for its backward.
struct Saved {
    x: Tensor,    // (N, C) input of the block
    n1: Tensor,   // (N, C) normed input
    q: Tensor,    // (N, H D) rotated
    k: Tensor,    // (N, K D) rotated
    v: Tensor,    // (N, K D)
    o: Tensor,    // (N, H D) attention output
    x1: Tensor,   // (N, C) after attention
    n2: Tensor,   // (N, C)
    gate: Tensor, // (N, F)
    up: Tensor,   // (N, F)
    h: Tensor,    // (N, F)
}

/// What a forward keeps for the backward of the whole trunk.
pub struct Trace {
    angles: Angles,
    blocks: Vec<Kept>,
    last: Tensor, // (N, C) input of the final norm
}

enum Kept {
    Whole(Box<Saved>),
    /// Only the block's input: the backward runs its forward again.
    Input(Tensor),
}

impl Llama {
    /// Reads the trunk from a checkpoint.
    pub fn load(config: &Config, weights: &Checkpoint, device: &Device) -> anyhow::Result<Self> {
        let (c, f) = (config.hidden_size, config.intermediate_size);
        let linear = |name: String, out: usize, input: usize, bias: bool| -> anyhow::Result<Linear> {
            let weight = weights.tensor(&format!("{name}.weight"), &[out, input], device)?;
            let bias = bias.then(|| weights.tensor(&format!("{name}.bias"), &[out], device)).transpose()?;
            Ok(Linear::new(name, weight, bias))
        };
        let norm = |name: String| -> anyhow::Result<Norm> {
            let weight = weights.tensor(&format!("{name}.weight"), &[c], device)?;
            Ok(Norm { name, weight, bias: None, eps: config.norm_eps, trained: false })
        };
        let attention = Attention {
            n_heads: config.num_attention_heads,
            n_kv_heads: config.num_key_value_heads,
            head_dim: config.head_dim,
            causal: true,
            window: config.sliding_window,
        };
        let blocks = (0..config.num_hidden_layers)
            .map(|i| {
                let at = |part: &str| format!("model.layers.{i}.{part}");
                Ok(Block {
                    input_layernorm: norm(at("input_layernorm"))?,
                    q_proj: linear(at("self_attn.q_proj"), config.q_dim(), c, config.attention_bias)?,
                    k_proj: linear(at("self_attn.k_proj"), config.kv_dim(), c, config.attention_bias)?,
                    v_proj: linear(at("self_attn.v_proj"), config.kv_dim(), c, config.attention_bias)?,
                    o_proj: linear(at("self_attn.o_proj"), c, config.q_dim(), config.attention_out_bias)?,
                    post_attention_layernorm: norm(at("post_attention_layernorm"))?,
                    gate_proj: linear(at("mlp.gate_proj"), f, c, config.mlp_bias)?,
                    up_proj: linear(at("mlp.up_proj"), f, c, config.mlp_bias)?,
                    down_proj: linear(at("mlp.down_proj"), c, f, config.mlp_bias)?,
                    attention,
                })
            })
            .collect::<anyhow::Result<_>>()?;
        Ok(Self {
            embed_tokens: weights.tensor("model.embed_tokens.weight", &[config.vocab_size, c], device)?,
            embed_trained: false,
            blocks,
            norm: norm("model.norm".into())?,
            rope: Rope::new(config),
        })
    }

    /// Final hidden states (N, C), without keeping anything.
    pub fn forward(&self, batch: &Packed, pass: Pass) -> Result<Tensor> {
        let angles = self.rope.angles(&batch.positions);
        let mut x = self.embed(batch, pass)?;
        for block in &self.blocks {
            x = block.forward(&x, &self.rope, &angles, batch, pass)?.0;
        }
        self.norm.forward(&x)
    }

    /// As [`Llama::forward`], keeping what the backward needs: everything, or with `recompute` only each block's input.
    pub fn forward_keep(&self, batch: &Packed, pass: Pass, recompute: bool) -> Result<(Tensor, Trace)> {
        let angles = self.rope.angles(&batch.positions);
        let mut x = self.embed(batch, pass)?;
        let mut blocks = Vec::with_capacity(self.blocks.len());
        for block in &self.blocks {
            let (y, saved) = block.forward(&x, &self.rope, &angles, batch, pass)?;
            blocks.push(if recompute { Kept::Input(x) } else { Kept::Whole(Box::new(saved)) });
            x = y;
        }
        Ok((self.norm.forward(&x)?, Trace { angles, blocks, last: x }))
    }

    /// From the gradient of the final hidden states, the gradients of all that is trained.
    pub fn backward(&self, batch: &Packed, trace: Trace, dh: &Tensor, pass: Pass, grads: &mut Grads) -> Result<()> {
        let mut dx = self.norm.backward(&trace.last, dh, grads)?;
        for (block, kept) in self.blocks.iter().zip(trace.blocks).rev() {
            let saved = match kept {
                Kept::Whole(saved) => *saved,
                Kept::Input(x) => block.forward(&x, &self.rope, &trace.angles, batch, pass)?.1,
            };
            dx = block.backward(saved, &dx, &self.rope, &trace.angles, batch, pass, grads)?;
        }
        if self.embed_trained {
            let index = Tensor::new(batch.ids.as_slice(), dx.device())?;
            grads.add("model.embed_tokens.weight", self.embed_tokens.zeros_like()?.index_add(&index, &dx, 0)?)?;
        }
        Ok(())
    }

    fn embed(&self, batch: &Packed, pass: Pass) -> Result<Tensor> {
        let ids = Tensor::new(batch.ids.as_slice(), self.embed_tokens.device())?;
        noise::neftune(self.embed_tokens.index_select(&ids, 0)?, &batch.segments, pass)
    }

    /// Every projection, in network order.
    pub fn linears(&mut self) -> impl Iterator<Item = &mut Linear> {
        self.blocks.iter_mut().flat_map(|b| {
            [
                &mut b.q_proj,
                &mut b.k_proj,
                &mut b.v_proj,
                &mut b.o_proj,
                &mut b.gate_proj,
                &mut b.up_proj,
                &mut b.down_proj,
            ]
        })
    }

    /// Every norm, in network order.
    pub fn norms(&mut self) -> impl Iterator<Item = &mut Norm> {
        let blocks = self.blocks.iter_mut().flat_map(|b| [&mut b.input_layernorm, &mut b.post_attention_layernorm]);
        blocks.chain(std::iter::once(&mut self.norm))
    }
}

impl Block {
    /// x: (N, C) → (N, C). x₁ = x + o(attention(norm x)); y = x₁ + down(silu(gate norm x₁) ⊙ up norm x₁).
    fn forward(&self, x: &Tensor, rope: &Rope, angles: &Angles, batch: &Packed, pass: Pass) -> Result<(Tensor, Saved)> {
        let n1 = self.input_layernorm.forward(x)?;
        let q = rope.forward(&self.q_proj.forward(&n1, pass)?, angles)?; // (N, H D)
        let k = rope.forward(&self.k_proj.forward(&n1, pass)?, angles)?; // (N, K D)
        let v = self.v_proj.forward(&n1, pass)?; // (N, K D)
        let o = self.attention.forward(&q, &k, &v, &batch.segments)?;
        let x1 = (x + self.o_proj.forward(&o, pass)?)?;
        let n2 = self.post_attention_layernorm.forward(&x1)?;
        let gate = self.gate_proj.forward(&n2, pass)?; // (N, F)
        let up = self.up_proj.forward(&n2, pass)?;
        let h = mlp::swiglu(&gate, &up)?;
        let y = (&x1 + self.down_proj.forward(&h, pass)?)?;
        Ok((y, Saved { x: x.clone(), n1, q, k, v, o, x1, n2, gate, up, h }))
    }

    fn backward(
        &self,
        s: Saved,
        dy: &Tensor,
        rope: &Rope,
        angles: &Angles,
        batch: &Packed,
        pass: Pass,
        grads: &mut Grads,
    ) -> Result<Tensor> {
        let dh = self.down_proj.backward(&s.h, dy, pass, grads)?;
        let (dgate, dup) = mlp::swiglu_backward(&s.gate, &s.up, &dh)?;
        let dn2 = (self.gate_proj.backward(&s.n2, &dgate, pass, grads)?
            + self.up_proj.backward(&s.n2, &dup, pass, grads)?)?;
        let dx1 = (dy + self.post_attention_layernorm.backward(&s.x1, &dn2, grads)?)?;
        let d_o = self.o_proj.backward(&s.o, &dx1, pass, grads)?;
        let (dq, dk, dv) = self.attention.backward(&s.q, &s.k, &s.v, &d_o, &batch.segments)?;
        let dn1 = (self.q_proj.backward(&s.n1, &rope.backward(&dq, angles)?, pass, grads)?
            + self.k_proj.backward(&s.n1, &rope.backward(&dk, angles)?, pass, grads)?)?;
        let dn1 = (dn1 + self.v_proj.backward(&s.n1, &dv, pass, grads)?)?;
        dx1 + self.input_layernorm.backward(&s.x, &dn1, grads)?
    }
}
