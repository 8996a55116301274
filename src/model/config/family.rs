//! Families of networks, and what each calls its parts.

/// Family of networks, named after `model_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Family {
    Llama,
    Mistral,
    Qwen2,
    Qwen3,
    Gemma3,
    Phi3,
    Gpt2,
    Bert,
    Roberta,
    DistilBert,
}

/// How `config.json` of a family spells the sizes.
pub(super) struct Names {
    pub hidden_size: &'static str,
    pub intermediate_size: &'static str,
    pub num_hidden_layers: &'static str,
    pub num_attention_heads: &'static str,
    pub max_position_embeddings: &'static str,
    pub norm_eps: &'static str,
    pub activation: &'static str,
}

impl Family {
    /// Every family, in the order in which they are listed to a user.
    pub const ALL: [Self; 10] = [
        Self::Llama,
        Self::Mistral,
        Self::Qwen2,
        Self::Qwen3,
        Self::Gemma3,
        Self::Phi3,
        Self::Gpt2,
        Self::Bert,
        Self::Roberta,
        Self::DistilBert,
    ];

    /// `model_type` as `config.json` spells it.
    pub fn model_type(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Mistral => "mistral",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
            Self::Gemma3 => "gemma3_text",
            Self::Phi3 => "phi3",
            Self::Gpt2 => "gpt2",
            Self::Bert => "bert",
            Self::Roberta => "roberta",
            Self::DistilBert => "distilbert",
        }
    }

    /// The family of a `model_type`.
    ///
    /// # Errors
    /// One that is not known, with those that are.
    pub(super) fn of(model_type: Option<&str>) -> Result<Self, String> {
        let known = || Self::ALL.map(Self::model_type).join(", ");
        match (model_type, model_type.and_then(|name| Self::ALL.into_iter().find(|f| f.model_type() == name))) {
            (_, Some(family)) => Ok(family),
            (Some(other), None) => Err(format!("model_type `{other}` is not supported; known: {}", known())),
            (None, None) => Err(format!("no `model_type`; known: {}", known())),
        }
    }

    /// Beginning of its class names in transformers, such as `LlamaForCausalLM`.
    pub fn class(self) -> &'static str {
        match self {
            Self::Llama => "Llama",
            Self::Mistral => "Mistral",
            Self::Qwen2 => "Qwen2",
            Self::Qwen3 => "Qwen3",
            Self::Gemma3 => "Gemma3",
            Self::Phi3 => "Phi3",
            Self::Gpt2 => "GPT2",
            Self::Bert => "Bert",
            Self::Roberta => "Roberta",
            Self::DistilBert => "DistilBert",
        }
    }

    /// Whether the network reads left to right (and can generate).
    pub fn is_decoder(self) -> bool {
        !matches!(self, Self::Bert | Self::Roberta | Self::DistilBert)
    }

    /// Whether positions are rows of a table, not rotations: the table's end is the end of the context.
    pub fn learns_positions(self) -> bool {
        !self.rotates()
    }

    /// Whether positions are rotations of queries and keys.
    pub fn rotates(self) -> bool {
        self.is_decoder() && self != Self::Gpt2
    }

    /// Whether queries and keys are normed head by head, before they are rotated.
    pub fn norms_heads(self) -> bool {
        matches!(self, Self::Qwen3 | Self::Gemma3)
    }

    /// Whether the feed-forward multiplies with a gate: two wide activations, not one.
    pub fn gates(self) -> bool {
        self.rotates()
    }

    /// Whether its projections lie in files as (in, out): GPT-2's `Conv1D`, PEFT's `fan_in_fan_out`.
    pub fn stores_transposed(self) -> bool {
        self == Self::Gpt2
    }

    /// Every projection of a block, as PEFT's `target_modules` names them. RoBERTa's are not called `dense` alone: so is
    /// the first layer of its classifier, which is trained whole.
    pub fn projections(self) -> &'static [&'static str] {
        match self {
            Self::Llama | Self::Mistral | Self::Qwen2 | Self::Qwen3 | Self::Gemma3 => {
                &["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
            }
            Self::Phi3 => &["qkv_proj", "o_proj", "gate_up_proj", "down_proj"],
            Self::Gpt2 => &["c_attn", "c_proj", "c_fc"],
            Self::Bert => &["query", "key", "value", "dense"],
            Self::Roberta => &["query", "key", "value", "intermediate.dense", "output.dense"],
            Self::DistilBert => &["q_lin", "k_lin", "v_lin", "out_lin", "lin1", "lin2"],
        }
    }

    /// What the names of the trunk's tensors begin with.
    pub fn prefix(self) -> &'static str {
        match self {
            Self::Gpt2 => "transformer.",
            Self::Bert => "bert.",
            Self::Roberta => "roberta.",
            Self::DistilBert => "distilbert.",
            _ => "model.",
        }
    }

    pub(super) fn names(self) -> Names {
        let usual = Names {
            hidden_size: "hidden_size",
            intermediate_size: "intermediate_size",
            num_hidden_layers: "num_hidden_layers",
            num_attention_heads: "num_attention_heads",
            max_position_embeddings: "max_position_embeddings",
            norm_eps: "rms_norm_eps",
            activation: "hidden_act",
        };
        match self {
            Self::Gpt2 => Names {
                hidden_size: "n_embd",
                intermediate_size: "n_inner",
                num_hidden_layers: "n_layer",
                num_attention_heads: "n_head",
                max_position_embeddings: "n_positions",
                norm_eps: "layer_norm_epsilon",
                activation: "activation_function",
            },
            Self::DistilBert => Names {
                hidden_size: "dim",
                intermediate_size: "hidden_dim",
                num_hidden_layers: "n_layers",
                num_attention_heads: "n_heads",
                activation: "activation",
                norm_eps: "", // transformers has it as a constant
                ..usual
            },
            Self::Bert | Self::Roberta => Names { norm_eps: "layer_norm_eps", ..usual },
            Self::Gemma3 => Names { activation: "hidden_activation", ..usual },
            _ => usual,
        }
    }

    /// Values that transformers takes where a key is not there.
    pub(super) fn default_norm_eps(self) -> f64 {
        match self {
            Self::Phi3 | Self::Gpt2 => 1e-5,
            Self::Bert | Self::Roberta | Self::DistilBert => 1e-12,
            _ => 1e-6,
        }
    }

    pub(super) fn default_head_dim(self) -> Option<usize> {
        match self {
            Self::Qwen3 => Some(128),
            Self::Gemma3 => Some(256),
            _ => None,
        }
    }

    pub(super) fn ties_by_default(self) -> bool {
        matches!(self, Self::Gemma3 | Self::Gpt2) || !self.is_decoder()
    }
}
