//! `config.json` → [`Config`]. Nothing is guessed: an unknown `model_type`, or a key whose value would change the
//! mathematics in a way that is not implemented, is refused by name.

use crate::data::batch::Room;
use crate::error::BadInput;
use serde_json::Value;
use std::path::Path;

/// Family of networks, named after `model_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Family {
    Llama,
    Mistral,
    Qwen2,
    Bert,
}

impl Family {
    /// `model_type` as `config.json` spells it.
    pub fn model_type(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Mistral => "mistral",
            Self::Qwen2 => "qwen2",
            Self::Bert => "bert",
        }
    }

    /// Whether the network reads left to right (and can generate).
    pub fn is_decoder(self) -> bool {
        self != Self::Bert
    }
}

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

/// Shape of a network. Field names are `config.json`'s.
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
    pub max_position_embeddings: usize,
    /// `rms_norm_eps`, or BERT's `layer_norm_eps`.
    pub norm_eps: f32,
    pub rope_theta: f32,
    pub rope_scaling: RopeScaling,
    /// A token sees itself and the `sliding_window - 1` tokens before it.
    pub sliding_window: Option<usize>,
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
const KNOWN: &str = "llama, mistral, qwen2, bert";

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
        let family = match keys.text("model_type") {
            Some("llama") => Family::Llama,
            Some("mistral") => Family::Mistral,
            Some("qwen2") => Family::Qwen2,
            Some("bert") => Family::Bert,
            Some(other) => return Err(format!("model_type `{other}` is not supported; known: {KNOWN}")),
            None => return Err(format!("no `model_type`; known: {KNOWN}")),
        };
        keys.refuse_unknown_mathematics(family)?;
        let hidden_size = keys.size("hidden_size")?;
        let num_attention_heads = keys.size("num_attention_heads")?;
        let head_dim = match keys.optional_size("head_dim")? {
            Some(d) => d,
            None if hidden_size.is_multiple_of(num_attention_heads) => hidden_size / num_attention_heads,
            None => {
                return Err(format!(
                    "hidden_size {hidden_size} is not a multiple of num_attention_heads {num_attention_heads}, and head_dim is not given"
                ));
            }
        };
        let num_key_value_heads = keys.optional_size("num_key_value_heads")?.unwrap_or(num_attention_heads);
        if !num_attention_heads.is_multiple_of(num_key_value_heads) {
            return Err(format!(
                "num_attention_heads {num_attention_heads} is not a multiple of num_key_value_heads {num_key_value_heads}"
            ));
        }
        if family.is_decoder() && head_dim % 2 != 0 {
            return Err(format!("head_dim {head_dim} is odd; rotary embedding needs pairs"));
        }
        let num_hidden_layers = keys.size("num_hidden_layers")?;
        if num_hidden_layers > MOST_LAYERS {
            return Err(format!("`num_hidden_layers` is {num_hidden_layers}; at most {MOST_LAYERS} are read"));
        }
        let (rope_theta, rope_scaling) = keys.rope()?;
        let bias = keys.flag("attention_bias").unwrap_or(false);
        Ok(Self {
            family,
            vocab_size: keys.size("vocab_size")?,
            hidden_size,
            intermediate_size: keys.size("intermediate_size")?,
            num_hidden_layers,
            num_attention_heads,
            num_key_value_heads,
            head_dim,
            max_position_embeddings: keys.size("max_position_embeddings")?,
            norm_eps: keys.number("rms_norm_eps").or(keys.number("layer_norm_eps")).unwrap_or(1e-6) as f32,
            rope_theta,
            rope_scaling,
            sliding_window: match family {
                Family::Mistral => keys.optional_size("sliding_window")?,
                _ => None,
            },
            tie_word_embeddings: keys.flag("tie_word_embeddings").unwrap_or(family == Family::Bert),
            attention_bias: family == Family::Qwen2 || bias,
            attention_out_bias: family == Family::Llama && bias,
            mlp_bias: keys.flag("mlp_bias").unwrap_or(false),
            type_vocab_size: keys.optional_size("type_vocab_size")?.unwrap_or(0),
            initializer_range: keys.number("initializer_range").unwrap_or(0.02) as f32,
            bos_token_id: keys.ids("bos_token_id").first().copied(),
            eos_token_ids: keys.ids("eos_token_id"),
            pad_token_id: keys.ids("pad_token_id").first().copied(),
            architecture: keys.0.get("architectures").and_then(|a| a[0].as_str()).map(str::to_owned),
            labels: keys.labels(),
        })
    }

    /// What a row may ask of the network.
    pub fn room(&self) -> Room {
        let encoder = !self.family.is_decoder();
        Room {
            vocab: self.vocab_size,
            positions: if encoder { self.max_position_embeddings } else { usize::MAX },
            types: if encoder { self.type_vocab_size } else { usize::MAX },
        }
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

struct Keys<'a>(&'a serde_json::Map<String, Value>);

impl Keys<'_> {
    fn text(&self, key: &str) -> Option<&str> {
        self.0.get(key).and_then(Value::as_str)
    }

    fn number(&self, key: &str) -> Option<f64> {
        self.0.get(key).and_then(Value::as_f64)
    }

    fn flag(&self, key: &str) -> Option<bool> {
        self.0.get(key).and_then(Value::as_bool)
    }

    fn optional_size(&self, key: &str) -> Result<Option<usize>, String> {
        match self.0.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(v) => match v.as_u64() {
                Some(n) if (1..1 << 31).contains(&n) => Ok(Some(n as usize)),
                _ => Err(format!("`{key}` is {v}, expected a whole number from 1")),
            },
        }
    }

    fn size(&self, key: &str) -> Result<usize, String> {
        self.optional_size(key)?.ok_or_else(|| format!("no `{key}`"))
    }

    fn ids(&self, key: &str) -> Vec<u32> {
        match self.0.get(key) {
            Some(Value::Array(a)) => a.iter().filter_map(|v| v.as_u64()).map(|v| v as u32).collect(),
            Some(v) => v.as_u64().map(|v| v as u32).into_iter().collect(),
            None => Vec::new(),
        }
    }

    fn labels(&self) -> Vec<String> {
        let Some(map) = self.0.get("id2label").and_then(Value::as_object) else { return Vec::new() };
        let mut pairs: Vec<(usize, String)> =
            map.iter().filter_map(|(k, v)| Some((k.parse().ok()?, v.as_str()?.to_owned()))).collect();
        pairs.sort();
        pairs.into_iter().map(|(_, label)| label).collect()
    }

    fn rope(&self) -> Result<(f32, RopeScaling), String> {
        let nested = |key: &str| self.0.get(key).and_then(Value::as_object);
        let theta = nested("rope_parameters")
            .and_then(|m| m.get("rope_theta"))
            .and_then(Value::as_f64)
            .or(self.number("rope_theta"))
            .unwrap_or(10_000.0) as f32;
        let Some(map) = nested("rope_parameters").or(nested("rope_scaling")) else {
            return Ok((theta, RopeScaling::None));
        };
        let number = |key: &str| {
            map.get(key).and_then(Value::as_f64).ok_or_else(|| format!("rope scaling needs a number `{key}`"))
        };
        let kind = map.get("rope_type").or(map.get("type")).and_then(Value::as_str).unwrap_or("default");
        let scaling = match kind {
            "default" => RopeScaling::None,
            "linear" => RopeScaling::Linear { factor: number("factor")? as f32 },
            "llama3" => RopeScaling::Llama3 {
                factor: number("factor")? as f32,
                low_freq_factor: number("low_freq_factor")? as f32,
                high_freq_factor: number("high_freq_factor")? as f32,
                original_max_position_embeddings: number("original_max_position_embeddings")? as usize,
            },
            other => return Err(format!("rope type `{other}` is not supported; known: default, linear, llama3")),
        };
        Ok((theta, scaling))
    }

    /// Keys that silently change what the network computes.
    fn refuse_unknown_mathematics(&self, family: Family) -> Result<(), String> {
        let act = self.text("hidden_act").unwrap_or(if family == Family::Bert { "gelu" } else { "silu" });
        let known_act = if family == Family::Bert { "gelu" } else { "silu" };
        if act != known_act {
            return Err(format!("hidden_act `{act}` is not supported for {}; known: {known_act}", family.model_type()));
        }
        if self.flag("use_sliding_window") == Some(true) {
            return Err("use_sliding_window = true is not supported yet".into());
        }
        if let Some(kinds) = self.0.get("layer_types").and_then(Value::as_array)
            && family != Family::Mistral
            && kinds.iter().any(|k| k != "full_attention")
        {
            return Err("layer_types other than full_attention are not supported yet".into());
        }
        if let Some(kind) = self.text("position_embedding_type")
            && kind != "absolute"
        {
            return Err(format!("position_embedding_type `{kind}` is not supported; known: absolute"));
        }
        if self.flag("is_decoder") == Some(true) || self.flag("add_cross_attention") == Some(true) {
            return Err("a BERT with is_decoder or add_cross_attention is not supported".into());
        }
        for key in [
            "quantization_config",
            "embedding_multiplier",
            "residual_multiplier",
            "logits_scaling",
            "attention_multiplier",
            "final_logit_softcapping",
            "attn_logit_softcapping",
            "partial_rotary_factor",
            "num_local_experts",
            "no_rope_layers",
        ] {
            if self.0.get(key).is_some_and(|v| !v.is_null()) {
                return Err(format!("`{key}` changes the mathematics and is not supported yet"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn llama() -> Value {
        json!({"model_type": "llama", "vocab_size": 8, "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1,
            "num_attention_heads": 2, "max_position_embeddings": 32, "rms_norm_eps": 1e-5})
    }

    #[track_caller]
    fn refuses(key: &str, value: Value, because: &str) {
        let mut json = llama();
        json[key] = value;
        assert_eq!(Config::from_json(&json).unwrap_err(), because);
    }

    #[test]
    fn defaults_follow_transformers() {
        let config = Config::from_json(&llama()).unwrap();
        assert_eq!((config.head_dim, config.num_key_value_heads, config.tie_word_embeddings), (4, 2, false));
        assert_eq!((config.rope_theta, config.rope_scaling), (10_000.0, RopeScaling::None));
    }

    #[test]
    fn refuses_what_it_would_have_to_guess() {
        refuses(
            "model_type",
            json!("mamba"),
            "model_type `mamba` is not supported; known: llama, mistral, qwen2, bert",
        );
        refuses("hidden_act", json!("gelu"), "hidden_act `gelu` is not supported for llama; known: silu");
        refuses(
            "rope_scaling",
            json!({"type": "yarn", "factor": 4.0}),
            "rope type `yarn` is not supported; known: default, linear, llama3",
        );
        refuses("num_key_value_heads", json!(3), "num_attention_heads 2 is not a multiple of num_key_value_heads 3");
        refuses("hidden_size", json!(-1), "`hidden_size` is -1, expected a whole number from 1");
        refuses(
            "quantization_config",
            json!({}),
            "`quantization_config` changes the mathematics and is not supported yet",
        );
    }
}
