//! `config.json` → [`Config`]. Nothing is guessed: an unknown `model_type`, or a key whose value would change the
//! mathematics in a way that is not implemented, is refused by name.
//!
//! - [`family`](Family): what each family is called and calls its parts
//! - `known`: which keys a family may have; `keys`: reading them

mod family;
mod keys;
mod known;
#[cfg(test)]
mod tests;

pub use family::Family;

use super::layers::act::Act;
use crate::data::batch::Room;
use crate::error::BadInput;
use keys::Keys;
use serde_json::Value;
use std::path::Path;

/// How rotary frequencies are stretched beyond the length of pre-training.
#[derive(Debug, Clone, Copy, PartialEq)]
#[allow(missing_docs)]
pub enum RopeScaling {
    None,
    /// Positions divided by `factor`.
    Linear {
        factor: f32,
    },
    /// Llama 3.1: low frequencies divided by `factor`, high ones kept, a ramp between.
    Llama3 {
        factor: f32,
        low_freq_factor: f32,
        high_freq_factor: f32,
        original_max_position_embeddings: usize,
    },
}

/// Shape of a network. Field names are those of Llama's `config.json`, whatever the family's own are.
#[derive(Debug, Clone)]
#[allow(missing_docs)]
pub struct Config {
    pub family: Family,
    pub vocab_size: usize,
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    pub num_key_value_heads: usize,
    pub head_dim: usize,
    /// Positions that a row may have. RoBERTa's table has [`Config::position_offset`] rows more.
    pub max_position_embeddings: usize,
    /// Row of the position table where a row's first token stands: RoBERTa's `pad_token_id + 1`, else 0.
    pub position_offset: usize,
    /// Epsilon of the norms, which each family spells in its own way.
    pub norm_eps: f32,
    pub activation: Act,
    pub rope_theta: f32,
    pub rope_scaling: RopeScaling,
    /// Base and stretch in layers with a window, where they are not those of the other layers (Gemma 3).
    pub local_rope: Option<(f32, RopeScaling)>,
    /// Dimensions of a head that are rotated, from its first on.
    pub rotary_dim: usize,
    /// Attention scores are divided by the root of this; `head_dim`, or Gemma's `query_pre_attn_scalar`.
    pub query_pre_attn_scalar: f32,
    /// A token sees itself and the `sliding_window - 1` tokens before it, in the layers that are local.
    pub sliding_window: Option<usize>,
    /// By layer: whether the window holds there.
    pub local_layers: Vec<bool>,
    pub tie_word_embeddings: bool,
    pub attention_bias: bool,
    pub attention_out_bias: bool,
    pub mlp_bias: bool,
    pub type_vocab_size: usize,
    pub initializer_range: f32,
    pub bos_token_id: Option<u32>,
    /// One or several ends of text.
    pub eos_token_ids: Vec<u32>,
    pub pad_token_id: Option<u32>,
    /// The class of the checkpoint, such as `LlamaForCausalLM`.
    pub architecture: Option<String>,
    /// Labels by index, when the checkpoint is a classifier.
    pub labels: Vec<String>,
}

/// Far more than any network has: what is made for each layer must not fill the memory before a weight is read.
const MOST_LAYERS: usize = 10_000;

impl Config {
    /// Reads `config.json`.
    ///
    /// # Errors
    /// [`BadInput`] naming the file and the key.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|e| {
            BadInput(format!("cannot read {}: {e}; a model folder holds config.json and *.safetensors", path.display()))
        })?;
        let value: Value =
            serde_json::from_str(&text).map_err(|e| BadInput(format!("{}: not valid JSON: {e}", path.display())))?;
        Self::from_json(&value).map_err(|e| BadInput(format!("{}: {e}", path.display())).into())
    }

    /// The same from parsed JSON; the message names the key.
    pub fn from_json(json: &Value) -> Result<Self, String> {
        let keys = Keys(json.as_object().ok_or("not a JSON object")?);
        let family = Family::of(keys.text("model_type"))?;
        let names = family.names();
        let activation = keys.activation(family, names.activation)?;
        known::check(family, keys.0)?;
        let hidden_size = keys.size(names.hidden_size)?;
        let num_attention_heads = keys.size(names.num_attention_heads)?;
        let head_dim = if family.rotates() { keys.optional_size("head_dim")? } else { None };
        let head_dim = match head_dim.or(family.default_head_dim()) {
            Some(d) => d,
            None if hidden_size.is_multiple_of(num_attention_heads) => hidden_size / num_attention_heads,
            None => {
                return Err(format!(
                    "{} {hidden_size} is not a multiple of {} {num_attention_heads}, and head_dim is not given",
                    names.hidden_size, names.num_attention_heads
                ));
            }
        };
        let num_key_value_heads = keys.optional_size("num_key_value_heads")?.unwrap_or(num_attention_heads);
        if !num_attention_heads.is_multiple_of(num_key_value_heads) {
            return Err(format!(
                "num_attention_heads {num_attention_heads} is not a multiple of num_key_value_heads {num_key_value_heads}"
            ));
        }
        let num_hidden_layers = keys.size(names.num_hidden_layers)?;
        if num_hidden_layers > MOST_LAYERS {
            return Err(format!(
                "`{}` is {num_hidden_layers}; at most {MOST_LAYERS} are read",
                names.num_hidden_layers
            ));
        }
        let rope = keys.rope(family, head_dim)?;
        if family.rotates() && rope.rotary_dim % 2 != 0 {
            return Err(if rope.rotary_dim == head_dim {
                format!("head_dim {head_dim} is odd; rotary embedding needs pairs")
            } else {
                format!("partial_rotary_factor rotates {} of {head_dim} dimensions; pairs are needed", rope.rotary_dim)
            });
        }
        let (sliding_window, local_layers) = keys.windows(family, num_hidden_layers)?;
        let bias = keys.flag("attention_bias").unwrap_or(false);
        let pad_token_id = keys.ids("pad_token_id").first().copied();
        let table = keys.size(names.max_position_embeddings)?;
        let position_offset = if family == Family::Roberta { pad_token_id.unwrap_or(1) as usize + 1 } else { 0 };
        let max_position_embeddings = table.checked_sub(position_offset).filter(|n| *n > 0).ok_or_else(|| {
            format!("max_position_embeddings {table} leaves no position behind pad_token_id {}", position_offset - 1)
        })?;
        let intermediate_size = match family {
            Family::Gpt2 => keys.optional_size(names.intermediate_size)?.unwrap_or(4 * hidden_size),
            _ => keys.size(names.intermediate_size)?,
        };
        Ok(Self {
            family,
            vocab_size: keys.size("vocab_size")?,
            hidden_size,
            intermediate_size,
            num_hidden_layers,
            num_attention_heads,
            num_key_value_heads,
            head_dim,
            max_position_embeddings,
            position_offset,
            norm_eps: keys.number(names.norm_eps).unwrap_or(family.default_norm_eps()) as f32,
            activation,
            rope_theta: rope.theta,
            rope_scaling: rope.scaling,
            local_rope: rope.local,
            rotary_dim: rope.rotary_dim,
            query_pre_attn_scalar: keys.query_pre_attn_scalar(family, head_dim)?,
            sliding_window,
            local_layers,
            tie_word_embeddings: keys.flag("tie_word_embeddings").unwrap_or(family.ties_by_default()),
            attention_bias: family == Family::Qwen2 || bias,
            attention_out_bias: family != Family::Qwen2 && bias,
            mlp_bias: keys.flag("mlp_bias").unwrap_or(false),
            type_vocab_size: keys.optional_size("type_vocab_size")?.unwrap_or(0),
            initializer_range: keys.number("initializer_range").unwrap_or(0.02) as f32,
            bos_token_id: keys.ids("bos_token_id").first().copied(),
            eos_token_ids: keys.ids("eos_token_id"),
            pad_token_id,
            architecture: keys.0.get("architectures").and_then(|a| a[0].as_str()).map(str::to_owned),
            labels: keys.labels(),
        })
    }

    /// What a row may ask of the network.
    pub fn room(&self) -> Room {
        Room {
            vocab: self.vocab_size,
            positions: if self.family.learns_positions() { self.max_position_embeddings } else { usize::MAX },
            types: if self.type_vocab_size > 0 { self.type_vocab_size } else { usize::MAX },
        }
    }

    /// Tokens that a position of this layer sees, itself included; `None` is all.
    pub fn window(&self, layer: usize) -> Option<usize> {
        self.sliding_window.filter(|_| self.local_layers[layer])
    }

    /// Query width: heads times head size.
    pub fn q_dim(&self) -> usize {
        self.num_attention_heads * self.head_dim
    }

    /// Key and value width.
    pub fn kv_dim(&self) -> usize {
        self.num_key_value_heads * self.head_dim
    }
}
