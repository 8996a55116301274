//! BERT (arXiv:1810.04805): learned positions, post-norm blocks, GELU.

use super::Packed;
use super::config::Config;
use super::layers::attention::Attention;
use super::layers::linear::Linear;
use super::layers::norm::Norm;
use super::layers::{Grads, Pass, mlp, noise};
use super::load::Checkpoint;
use candle_core::{Device, Result, Tensor};

/// The trunk: embeddings and encoder.
pub struct Bert {
    word_embeddings: Tensor,       // (V, C)
    position_embeddings: Tensor,   // (T, C)
    token_type_embeddings: Tensor, // (types, C)
    embedding_norm: Norm,
    layers: Vec<Layer>,
}

struct Layer {
    query: Linear,
    key: Linear,
    value: Linear,
    attention_output: Linear,
    attention_norm: Norm,
    intermediate: Linear,
    output: Linear,
    output_norm: Norm,
    attention: Attention,
}

struct Saved {
    x: Tensor,       // (N, C)
    q: Tensor,       // (N, C)
    k: Tensor,       // (N, C)
    v: Tensor,       // (N, C)
    o: Tensor,       // (N, C)
    before1: Tensor, // (N, C) input of the attention norm
    x1: Tensor,      // (N, C)
    wide: Tensor,    // (N, F) before GELU
    h: Tensor,       // (N, F)
    before2: Tensor, // (N, C) input of the output norm
}

/// What a forward keeps for the backward of the whole trunk.
pub struct Trace(Vec<Kept>);

enum Kept {
    Whole(Box<Saved>),
    Input(Tensor),
}

/// Name of a tensor in the checkpoint: encoders are saved with and without the `bert.` prefix, and old ones call a norm's
/// weight and bias gamma and beta.
pub fn checkpoint_name(weights: &Checkpoint, name: &str) -> String {
    let bare = name.strip_prefix("bert.").unwrap_or(name);
    let old = |n: &str| n.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta");
    [name.to_owned(), bare.to_owned(), old(name), old(bare)]
        .into_iter()
        .find(|n| weights.contains(n))
        .unwrap_or_else(|| name.to_owned())
}

impl Bert {
    /// Reads the trunk from a checkpoint. Modules are named with the `bert.` prefix, as PEFT meets them.
    pub fn load(config: &Config, weights: &Checkpoint, device: &Device) -> anyhow::Result<Self> {
        let (c, f) = (config.hidden_size, config.intermediate_size);
        let get = |name: &str, shape: &[usize]| weights.tensor(&checkpoint_name(weights, name), shape, device);
        let linear = |name: String, out: usize, input: usize| -> anyhow::Result<Linear> {
            let (weight, bias) =
                (get(&format!("{name}.weight"), &[out, input])?, get(&format!("{name}.bias"), &[out])?);
            Ok(Linear::new(name, weight, Some(bias)))
        };
        let norm = |name: String| -> anyhow::Result<Norm> {
            let (weight, bias) = (get(&format!("{name}.weight"), &[c])?, get(&format!("{name}.bias"), &[c])?);
            Ok(Norm { name, weight, bias: Some(bias), eps: config.norm_eps, trained: false })
        };
        let attention = Attention {
            n_heads: config.num_attention_heads,
            n_kv_heads: config.num_attention_heads,
            head_dim: config.head_dim,
            causal: false,
            window: None,
        };
        let layers = (0..config.num_hidden_layers)
            .map(|i| {
                let at = |part: &str| format!("bert.encoder.layer.{i}.{part}");
                Ok(Layer {
                    query: linear(at("attention.self.query"), c, c)?,
                    key: linear(at("attention.self.key"), c, c)?,
                    value: linear(at("attention.self.value"), c, c)?,
                    attention_output: linear(at("attention.output.dense"), c, c)?,
                    attention_norm: norm(at("attention.output.LayerNorm"))?,
                    intermediate: linear(at("intermediate.dense"), f, c)?,
                    output: linear(at("output.dense"), c, f)?,
                    output_norm: norm(at("output.LayerNorm"))?,
                    attention,
                })
            })
            .collect::<anyhow::Result<_>>()?;
        let embedding = |part: &str, rows: usize| get(&format!("bert.embeddings.{part}.weight"), &[rows, c]);
        Ok(Self {
            word_embeddings: embedding("word_embeddings", config.vocab_size)?,
            position_embeddings: embedding("position_embeddings", config.max_position_embeddings)?,
            token_type_embeddings: embedding("token_type_embeddings", config.type_vocab_size)?,
            embedding_norm: norm("bert.embeddings.LayerNorm".into())?,
            layers,
        })
    }

    /// Hidden states of the last layer (N, C), without keeping anything.
    pub fn forward(&self, batch: &Packed, pass: Pass) -> Result<Tensor> {
        let mut x = self.embed(batch, pass)?;
        for layer in &self.layers {
            x = layer.forward(&x, batch, pass)?.0;
        }
        Ok(x)
    }

    /// As [`Bert::forward`], keeping what the backward needs: everything, or with `recompute` only each layer's input.
    pub fn forward_keep(&self, batch: &Packed, pass: Pass, recompute: bool) -> Result<(Tensor, Trace)> {
        let mut x = self.embed(batch, pass)?;
        let mut kept = Vec::with_capacity(self.layers.len());
        for layer in &self.layers {
            let (y, saved) = layer.forward(&x, batch, pass)?;
            kept.push(if recompute { Kept::Input(x) } else { Kept::Whole(Box::new(saved)) });
            x = y;
        }
        Ok((x, Trace(kept)))
    }

    /// From the gradient of the last hidden states, the gradients of all that is trained. The embeddings stay frozen.
    pub fn backward(&self, batch: &Packed, trace: Trace, dh: &Tensor, pass: Pass, grads: &mut Grads) -> Result<()> {
        let mut dx = dh.clone();
        for (i, (layer, kept)) in self.layers.iter().zip(trace.0).enumerate().rev() {
            let saved = match kept {
                Kept::Whole(saved) => *saved,
                Kept::Input(x) => layer.forward(&x, batch, pass)?.1,
            };
            match layer.backward(saved, &dx, batch, pass, grads, i > 0)? {
                Some(below) => dx = below,
                None => break,
            }
        }
        Ok(())
    }

    fn embed(&self, batch: &Packed, pass: Pass) -> Result<Tensor> {
        let device = self.word_embeddings.device();
        let pick = |table: &Tensor, ids: &[u32]| table.index_select(&Tensor::new(ids, device)?, 0);
        let words = noise::neftune(pick(&self.word_embeddings, &batch.ids)?, &batch.segments, pass)?;
        let x = (words + pick(&self.token_type_embeddings, &batch.types)?)?;
        self.embedding_norm.forward(&(x + pick(&self.position_embeddings, &batch.positions)?)?)
    }

    /// Every projection, in network order.
    pub fn linears(&mut self) -> impl Iterator<Item = &mut Linear> {
        self.layers.iter_mut().flat_map(|l| {
            [&mut l.query, &mut l.key, &mut l.value, &mut l.attention_output, &mut l.intermediate, &mut l.output]
        })
    }

    /// The layers' norms, in network order. The embeddings' own norm stays frozen with them.
    pub fn norms(&mut self) -> impl Iterator<Item = &mut Norm> {
        self.layers.iter_mut().flat_map(|l| [&mut l.attention_norm, &mut l.output_norm])
    }
}

impl Layer {
    /// x: (N, C) → (N, C). x₁ = norm(x + dense(attention x)); y = norm(x₁ + output(gelu(intermediate x₁))).
    fn forward(&self, x: &Tensor, batch: &Packed, pass: Pass) -> Result<(Tensor, Saved)> {
        let q = self.query.forward(x, pass)?;
        let k = self.key.forward(x, pass)?;
        let v = self.value.forward(x, pass)?;
        let o = self.attention.forward(&q, &k, &v, &batch.segments)?;
        let before1 = (x + self.attention_output.forward(&o, pass)?)?;
        let x1 = self.attention_norm.forward(&before1)?;
        let wide = self.intermediate.forward(&x1, pass)?; // (N, F)
        let h = mlp::gelu(&wide)?;
        let before2 = (&x1 + self.output.forward(&h, pass)?)?;
        let y = self.output_norm.forward(&before2)?;
        Ok((y, Saved { x: x.clone(), q, k, v, o, before1, x1, wide, h, before2 }))
    }

    fn backward(
        &self,
        s: Saved,
        dy: &Tensor,
        batch: &Packed,
        pass: Pass,
        grads: &mut Grads,
        want_dx: bool,
    ) -> Result<Option<Tensor>> {
        let d2 = self.output_norm.backward(&s.before2, dy, grads)?;
        let dh = self.output.backward(&s.h, &d2, pass, grads)?;
        let dwide = mlp::gelu_backward(&s.wide, &dh)?;
        let dx1 = (&d2 + self.intermediate.backward(&s.x1, &dwide, pass, grads)?)?;
        let d1 = self.attention_norm.backward(&s.before1, &dx1, grads)?;
        let d_o = self.attention_output.backward(&s.o, &d1, pass, grads)?;
        let (dq, dk, dv) = self.attention.backward(&s.q, &s.k, &s.v, &d_o, &batch.segments)?;
        let mut dx = d1;
        for (layer, grad) in [(&self.query, &dq), (&self.key, &dk), (&self.value, &dv)] {
            if let Some(part) = layer.backward_weights(&s.x, grad, pass, grads, want_dx)? {
                dx = (dx + part)?;
            }
        }
        Ok(want_dx.then_some(dx))
    }
}
