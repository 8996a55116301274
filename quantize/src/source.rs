//! Where the tensors come from: names and shapes first, then one tensor at a time in f32, so that two never have to be in
//! memory together.

use crate::error::BoxError;

/// A model as the writer needs it, in Hugging Face's names and row order.
pub trait TensorSource: Sync {
    /// What the config says.
    fn spec(&self) -> &ModelSpec;
    /// Hugging Face name and shape (rows first) of every tensor.
    fn tensors(&self) -> Vec<(String, Vec<usize>)>;
    /// All values of one tensor, row-major.
    ///
    /// # Errors
    /// Whatever the source meets; the writer adds the tensor's name.
    fn read(&self, name: &str) -> Result<Vec<f32>, BoxError>;
}

/// The numbers of a config that a GGUF file repeats.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelSpec {
    /// Family.
    pub arch: Arch,
    /// `general.name`.
    pub name: String,
    /// Rows of the token embedding.
    pub vocab_size: usize,
    /// Longest context, in tokens.
    pub n_ctx: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width inside the feed-forward block.
    pub intermediate_size: usize,
    /// Blocks.
    pub n_layers: usize,
    /// Query heads.
    pub n_heads: usize,
    /// Key and value heads.
    pub n_kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Epsilon of the (RMS or layer) norms.
    pub norm_eps: f32,
    /// Rotary positions; none in BERT.
    pub rope: Option<RopeSpec>,
    /// Tokens a position may look back, itself included.
    pub sliding_window: Option<usize>,
    /// What the model is for.
    pub task: Task,
    /// Rows of BERT's token type embedding; 0 elsewhere.
    pub type_vocab_size: usize,
}

/// Model family, by the layout of its blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arch {
    /// Llama, Mistral, SmolLM and whatever else `LlamaForCausalLM` describes.
    Llama,
    /// Qwen2 and Qwen2.5: Llama with biases on q, k and v, and rotary pairs half a head apart.
    Qwen2,
    /// BERT encoders.
    Bert,
}

impl Arch {
    /// `general.architecture`, which is also the prefix of the architecture's keys.
    pub fn name(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Qwen2 => "qwen2",
            Self::Bert => "bert",
        }
    }
}

/// Rotary position embedding.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RopeSpec {
    /// Base wavelength.
    pub theta: f32,
    /// How positions beyond the trained context are squeezed.
    pub scaling: RopeScaling,
}

/// Scaling of rotary positions.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum RopeScaling {
    /// As trained.
    None,
    /// Every position divided by `factor`.
    Linear {
        /// Divisor.
        factor: f32,
    },
    /// Llama 3.1: long wavelengths are divided by `factor`, short ones kept, those between blended.
    Llama3 {
        /// Divisor of the long wavelengths.
        factor: f32,
        /// Wavelengths above `original / low_freq_factor` are long.
        low_freq_factor: f32,
        /// Wavelengths below `original / high_freq_factor` are short.
        high_freq_factor: f32,
        /// Context of the first training.
        original_max_position_embeddings: usize,
    },
}

/// What the model is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Task {
    /// Next tokens.
    Generate,
    /// One label for a text.
    Classify {
        /// Names, in the order of the logits.
        labels: Vec<String>,
    },
    /// A span of the context (BERT), or generated text (decoders).
    Answer,
    /// A vector for a text.
    Embed,
}

impl Task {
    /// `edgeft.task`.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Generate => "generate",
            Self::Classify { .. } => "classify",
            Self::Answer => "answer",
            Self::Embed => "embed",
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::collections::BTreeMap;

    /// A model in memory, with values from a seed.
    pub(crate) struct Tiny {
        pub spec: ModelSpec,
        pub tensors: BTreeMap<String, (Vec<usize>, Vec<f32>)>,
    }

    impl TensorSource for Tiny {
        fn spec(&self) -> &ModelSpec {
            &self.spec
        }
        fn tensors(&self) -> Vec<(String, Vec<usize>)> {
            self.tensors.iter().map(|(n, (s, _))| (n.clone(), s.clone())).collect()
        }
        fn read(&self, name: &str) -> Result<Vec<f32>, BoxError> {
            Ok(self.tensors.get(name).ok_or("no such tensor")?.1.clone())
        }
    }

    impl Tiny {
        pub(crate) fn put(&mut self, name: &str, shape: &[usize]) {
            let seed = self.tensors.len() as u64 + 1;
            let values = crate::codec::tests::weights(shape.iter().product(), seed);
            self.tensors.insert(name.to_string(), (shape.to_vec(), values));
        }

        /// Two layers, width 64, 4 heads and 2 key heads of 16, feed-forward 96, 40 tokens; untied.
        pub(crate) fn llama() -> Self {
            Self::decoder(Arch::Llama, 64, 96, 2)
        }

        pub(crate) fn decoder(arch: Arch, hidden: usize, inner: usize, n_layers: usize) -> Self {
            let (n_heads, n_kv_heads, head_dim) = (4, 2, hidden / 4);
            let spec = ModelSpec {
                arch,
                name: "tiny".into(),
                vocab_size: 40,
                n_ctx: 128,
                hidden_size: hidden,
                intermediate_size: inner,
                n_layers,
                n_heads,
                n_kv_heads,
                head_dim,
                norm_eps: 1e-6,
                rope: Some(RopeSpec { theta: 10_000.0, scaling: RopeScaling::None }),
                sliding_window: None,
                task: Task::Generate,
                type_vocab_size: 0,
            };
            let mut tiny = Self { spec, tensors: BTreeMap::new() };
            tiny.put("model.embed_tokens.weight", &[40, hidden]);
            tiny.put("lm_head.weight", &[40, hidden]);
            tiny.put("model.norm.weight", &[hidden]);
            for i in 0..n_layers {
                let mut put = |n: &str, s: &[usize]| tiny.put(&format!("model.layers.{i}.{n}"), s);
                put("input_layernorm.weight", &[hidden]);
                put("post_attention_layernorm.weight", &[hidden]);
                put("self_attn.q_proj.weight", &[hidden, hidden]);
                put("self_attn.k_proj.weight", &[hidden / 2, hidden]);
                put("self_attn.v_proj.weight", &[hidden / 2, hidden]);
                put("self_attn.o_proj.weight", &[hidden, hidden]);
                put("mlp.gate_proj.weight", &[inner, hidden]);
                put("mlp.up_proj.weight", &[inner, hidden]);
                put("mlp.down_proj.weight", &[hidden, inner]);
                if arch == Arch::Qwen2 {
                    put("self_attn.q_proj.bias", &[hidden]);
                    put("self_attn.k_proj.bias", &[hidden / 2]);
                    put("self_attn.v_proj.bias", &[hidden / 2]);
                }
            }
            tiny
        }

        /// One layer of BERT, width 64, with a pooler and a three-way classifier.
        pub(crate) fn bert() -> Self {
            let mut tiny = Self::decoder(Arch::Bert, 64, 96, 0);
            tiny.spec.n_layers = 1;
            tiny.spec.n_kv_heads = 4;
            tiny.spec.rope = None;
            tiny.spec.type_vocab_size = 2;
            tiny.spec.task = Task::Classify { labels: ["a", "b", "c"].map(String::from).to_vec() };
            tiny.tensors.clear();
            for (name, shape) in [
                ("bert.embeddings.word_embeddings.weight", &[40, 64][..]),
                ("bert.embeddings.position_embeddings.weight", &[128, 64]),
                ("bert.embeddings.token_type_embeddings.weight", &[2, 64]),
                ("bert.embeddings.LayerNorm.gamma", &[64]),
                ("bert.embeddings.LayerNorm.beta", &[64]),
                ("bert.pooler.dense.weight", &[64, 64]),
                ("bert.pooler.dense.bias", &[64]),
                ("classifier.weight", &[3, 64]),
                ("classifier.bias", &[3]),
            ] {
                tiny.put(name, shape);
            }
            for (name, shape) in [
                ("attention.self.query", [64, 64]),
                ("attention.self.key", [64, 64]),
                ("attention.self.value", [64, 64]),
                ("attention.output.dense", [64, 64]),
                ("intermediate.dense", [96, 64]),
                ("output.dense", [64, 96]),
            ] {
                tiny.put(&format!("bert.encoder.layer.0.{name}.weight"), &shape);
                tiny.put(&format!("bert.encoder.layer.0.{name}.bias"), &shape[..1]);
            }
            for norm in ["attention.output.LayerNorm", "output.LayerNorm"] {
                tiny.put(&format!("bert.encoder.layer.0.{norm}.weight"), &[64]);
                tiny.put(&format!("bert.encoder.layer.0.{norm}.bias"), &[64]);
            }
            tiny
        }
    }
}
