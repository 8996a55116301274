//! Where the tensors come from: names and shapes first, then one tensor at a time in f32, a large matrix some rows at a
//! time, so that two never have to be in memory together.

use crate::error::BoxError;
use std::ops::Range;

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
    /// The values of some rows of a matrix, the same as [`TensorSource::read`] has there; `None` where it can only be read whole.
    /// Either all rows of a matrix can be read so, or none.
    ///
    /// # Errors
    /// As [`TensorSource::read`].
    fn read_rows(&self, _name: &str, _rows: Range<usize>) -> Result<Option<Vec<f32>>, BoxError> {
        Ok(None)
    }
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
    /// Rotary positions; none where positions are learned.
    pub rope: Option<RopeSpec>,
    /// Rows of the source's position table before that of the first position: RoBERTa's; 0 elsewhere.
    pub position_offset: usize,
    /// What scores are multiplied by, where that is not 1/√D: Gemma's.
    pub attention_scale: Option<f32>,
    /// Tokens a position may look back, itself included.
    pub sliding_window: Option<usize>,
    /// By layer: whether the window holds there. Empty where it holds in all.
    pub local_layers: Vec<bool>,
    /// What the model is for.
    pub task: Task,
    /// Rows of BERT's token type embedding; 0 elsewhere.
    pub type_vocab_size: usize,
}

impl ModelSpec {
    /// Whether a layer is local: it has the window, if there is one, and the rotations of local layers.
    pub fn is_local(&self, layer: usize) -> bool {
        self.sliding_window.is_some() && self.local_layers.get(layer).copied().unwrap_or(true)
    }

    /// Dimensions of a head that are rotated; 0 where positions are learned.
    pub fn rotary_dim(&self) -> usize {
        self.rope.map_or(0, |r| r.dims.unwrap_or(self.head_dim))
    }

    /// What scores are multiplied by.
    pub fn scale(&self) -> f32 {
        self.attention_scale.unwrap_or(1.0 / (self.head_dim as f32).sqrt())
    }
}

/// Model family, by the layout of its blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arch {
    /// Llama, Mistral, SmolLM and whatever else `LlamaForCausalLM` describes.
    Llama,
    /// Qwen2 and Qwen2.5: Llama with biases on q, k and v, and rotary pairs half a head apart.
    Qwen2,
    /// Qwen3: norms of each head's query and key.
    Qwen3,
    /// Gemma 3, text: norms before and behind each half of a block, windows in some layers.
    Gemma3,
    /// Phi-3: q, k and v in one matrix, gate and up in another.
    Phi3,
    /// GPT-2: learned positions, layer norms, biases everywhere.
    Gpt2,
    /// BERT encoders.
    Bert,
    /// RoBERTa: BERT whose positions count from behind the padding's row.
    Roberta,
    /// DistilBERT: BERT without token types.
    DistilBert,
}

impl Arch {
    /// `general.architecture`, which is also the prefix of the architecture's keys.
    pub fn name(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
            Self::Gemma3 => "gemma3",
            Self::Phi3 => "phi3",
            Self::Gpt2 => "gpt2",
            Self::Bert | Self::Roberta | Self::DistilBert => "bert",
        }
    }

    /// As `config.json` names the family.
    pub fn model_type(self) -> &'static str {
        match self {
            Self::Gemma3 => "gemma3_text",
            Self::Roberta => "roberta",
            Self::DistilBert => "distilbert",
            other => other.name(),
        }
    }

    /// Whether it reads in both directions.
    pub fn is_encoder(self) -> bool {
        matches!(self, Self::Bert | Self::Roberta | Self::DistilBert)
    }

    /// Whether positions are rotations of queries and keys, not rows of a table.
    pub fn rotates(self) -> bool {
        !self.is_encoder() && self != Self::Gpt2
    }

    /// What a checkpoint may put before the names of the trunk's tensors.
    pub fn prefix(self) -> &'static str {
        match self {
            Self::Gpt2 => "transformer.",
            Self::Bert => "bert.",
            Self::Roberta => "roberta.",
            Self::DistilBert => "distilbert.",
            _ => "model.",
        }
    }
}

/// Rotary position embedding.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RopeSpec {
    /// Base wavelength.
    pub theta: f32,
    /// The same in layers with a window, where it is another: Gemma 3's.
    pub local_theta: Option<f32>,
    /// Dimensions of a head that are rotated, from its first on, where those are not all.
    pub dims: Option<usize>,
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
                rope: Some(RopeSpec { theta: 10_000.0, local_theta: None, dims: None, scaling: RopeScaling::None }),
                position_offset: 0,
                attention_scale: None,
                sliding_window: None,
                local_layers: Vec::new(),
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

        /// Two layers of Gemma 3, the second without a window, heads of 20.
        pub(crate) fn gemma3() -> Self {
            let mut tiny = Self::decoder(Arch::Gemma3, 64, 96, 2);
            tiny.spec.head_dim = 20;
            tiny.spec.attention_scale = Some(30f32.sqrt().recip());
            tiny.spec.sliding_window = Some(8);
            tiny.spec.local_layers = vec![true, false];
            tiny.spec.rope =
                Some(RopeSpec { theta: 1e6, local_theta: Some(1e4), dims: None, scaling: RopeScaling::None });
            tiny.tensors.retain(|name, _| !name.contains("self_attn") && name != "lm_head.weight");
            for i in 0..2 {
                let mut put = |n: &str, s: &[usize]| tiny.put(&format!("model.layers.{i}.{n}"), s);
                put("pre_feedforward_layernorm.weight", &[64]);
                put("post_feedforward_layernorm.weight", &[64]);
                put("self_attn.q_norm.weight", &[20]);
                put("self_attn.k_norm.weight", &[20]);
                put("self_attn.q_proj.weight", &[80, 64]);
                put("self_attn.k_proj.weight", &[40, 64]);
                put("self_attn.v_proj.weight", &[40, 64]);
                put("self_attn.o_proj.weight", &[64, 80]);
            }
            tiny
        }

        /// Phi-3: the matrices of Llama, those that read the same input joined.
        pub(crate) fn phi3() -> Self {
            let mut tiny = Self::decoder(Arch::Phi3, 64, 96, 2);
            tiny.tensors.retain(|name, _| !name.contains("_proj"));
            for i in 0..2 {
                let mut put = |n: &str, s: &[usize]| tiny.put(&format!("model.layers.{i}.{n}"), s);
                put("self_attn.qkv_proj.weight", &[128, 64]);
                put("self_attn.o_proj.weight", &[64, 64]);
                put("mlp.gate_up_proj.weight", &[192, 64]);
                put("mlp.down_proj.weight", &[64, 96]);
            }
            tiny
        }

        /// GPT-2 of two layers.
        pub(crate) fn gpt2() -> Self {
            let mut tiny = Self::decoder(Arch::Gpt2, 64, 96, 2);
            tiny.spec.n_kv_heads = 4;
            tiny.spec.rope = None;
            tiny.tensors.clear();
            tiny.put("transformer.wte.weight", &[40, 64]);
            tiny.put("transformer.wpe.weight", &[128, 64]);
            tiny.put("transformer.ln_f.weight", &[64]);
            tiny.put("transformer.ln_f.bias", &[64]);
            for i in 0..2 {
                let mut put = |n: &str, s: &[usize]| tiny.put(&format!("transformer.h.{i}.{n}"), s);
                for norm in ["ln_1", "ln_2"] {
                    put(&format!("{norm}.weight"), &[64]);
                    put(&format!("{norm}.bias"), &[64]);
                }
                for (n, input, out) in
                    [("attn.c_attn", 64, 192), ("attn.c_proj", 64, 64), ("mlp.c_fc", 64, 96), ("mlp.c_proj", 96, 64)]
                {
                    put(&format!("{n}.weight"), &[input, out]);
                    put(&format!("{n}.bias"), &[out]);
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
