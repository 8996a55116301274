//! Values of `config.json` by key.

use super::{Family, RopeScaling};
use crate::model::layers::act::Act;
use serde_json::{Map, Value};

/// The keys of a config.
pub(super) struct Keys<'a>(pub &'a Map<String, Value>);

/// What a config says of rotations.
pub(super) struct Rope {
    pub theta: f32,
    pub scaling: RopeScaling,
    /// In layers with a window, where that differs.
    pub local: Option<(f32, RopeScaling)>,
    pub rotary_dim: usize,
}

/// Keys of `rope_parameters` or `rope_scaling`.
const ROPE_KEYS: [&str; 8] = [
    "rope_type",
    "type",
    "rope_theta",
    "partial_rotary_factor",
    "factor",
    "low_freq_factor",
    "high_freq_factor",
    "original_max_position_embeddings",
];

impl Keys<'_> {
    pub fn text(&self, key: &str) -> Option<&str> {
        self.0.get(key).and_then(Value::as_str)
    }

    pub fn number(&self, key: &str) -> Option<f64> {
        self.0.get(key).and_then(Value::as_f64)
    }

    pub fn flag(&self, key: &str) -> Option<bool> {
        self.0.get(key).and_then(Value::as_bool)
    }

    pub fn optional_size(&self, key: &str) -> Result<Option<usize>, String> {
        match self.0.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(v) => match v.as_u64() {
                Some(n) if (1..1 << 31).contains(&n) => Ok(Some(n as usize)),
                _ => Err(format!("`{key}` is {v}, expected a whole number from 1")),
            },
        }
    }

    pub fn size(&self, key: &str) -> Result<usize, String> {
        self.optional_size(key)?.ok_or_else(|| format!("no `{key}`"))
    }

    pub fn ids(&self, key: &str) -> Vec<u32> {
        match self.0.get(key) {
            Some(Value::Array(a)) => a.iter().filter_map(|v| v.as_u64()).map(|v| v as u32).collect(),
            Some(v) => v.as_u64().map(|v| v as u32).into_iter().collect(),
            None => Vec::new(),
        }
    }

    pub fn labels(&self) -> Vec<String> {
        let Some(map) = self.0.get("id2label").and_then(Value::as_object) else { return Vec::new() };
        let mut pairs: Vec<(usize, String)> =
            map.iter().filter_map(|(k, v)| Some((k.parse().ok()?, v.as_str()?.to_owned()))).collect();
        pairs.sort();
        pairs.into_iter().map(|(_, label)| label).collect()
    }

    /// The activation of the feed-forward; a family has one.
    pub fn activation(&self, family: Family, key: &str) -> Result<Act, String> {
        let known: &[(&str, Act)] = match family {
            Family::Bert | Family::Roberta | Family::DistilBert => &[("gelu", Act::Gelu)],
            Family::Gpt2 => &[("gelu_new", Act::GeluTanh), ("gelu_pytorch_tanh", Act::GeluTanh)],
            Family::Gemma3 => &[("gelu_pytorch_tanh", Act::GeluTanh)],
            _ => &[("silu", Act::Silu)],
        };
        let mut found = known[0].1;
        // Early Gemma configs have Llama's key beside their own.
        for key in [key, "hidden_act"] {
            if let Some(name) = self.text(key) {
                let Some((_, act)) = known.iter().find(|(n, _)| *n == name) else {
                    let known: Vec<&str> = known.iter().map(|k| k.0).collect();
                    let (family, known) = (family.model_type(), known.join(", "));
                    return Err(format!("{key} `{name}` is not supported for {family}; known: {known}"));
                };
                found = *act;
            }
        }
        Ok(found)
    }

    /// The window, and in which layers it holds.
    pub fn windows(&self, family: Family, n_layers: usize) -> Result<(Option<usize>, Vec<bool>), String> {
        let all = |local: bool| vec![local; n_layers];
        let window = match family {
            Family::Mistral | Family::Phi3 => self.optional_size("sliding_window")?,
            Family::Gemma3 => Some(self.optional_size("sliding_window")?.unwrap_or(4096)),
            Family::Qwen2 | Family::Qwen3 if self.flag("use_sliding_window") == Some(true) => {
                self.optional_size("sliding_window")?
            }
            _ => None,
        };
        let local = match (self.layer_types(n_layers)?, family) {
            (Some(local), Family::Gemma3 | Family::Qwen2 | Family::Qwen3) => local,
            // One kind for all: what the family does anyway, or what it cannot do.
            (Some(local), _) if local.iter().all(|l| !l || window.is_some()) => all(window.is_some()),
            (Some(_), _) => return Err(format!("layer_types has windows, which {} has not", family.model_type())),
            (None, Family::Gemma3) => {
                let pattern = match self.optional_size("sliding_window_pattern")? {
                    Some(n) => n,
                    None => self.optional_size("_sliding_window_pattern")?.unwrap_or(6),
                };
                (1..=n_layers).map(|i| !i.is_multiple_of(pattern)).collect()
            }
            (None, Family::Qwen2 | Family::Qwen3) if window.is_some() => {
                let from = self.number("max_window_layers").unwrap_or(28.0) as usize;
                (0..n_layers).map(|i| i >= from).collect()
            }
            (None, _) => all(window.is_some()),
        };
        if window.is_none() && local.contains(&true) {
            return Err(
                "layer_types has `sliding_attention`, but there is no window (use_sliding_window, sliding_window)"
                    .into(),
            );
        }
        Ok((window.filter(|_| local.contains(&true)), local))
    }

    /// `layer_types`: whether each layer is local.
    fn layer_types(&self, n_layers: usize) -> Result<Option<Vec<bool>>, String> {
        let Some(kinds) = self.0.get("layer_types").and_then(Value::as_array) else { return Ok(None) };
        if kinds.len() != n_layers {
            return Err(format!("layer_types has {} entries for {n_layers} layers", kinds.len()));
        }
        let local = |kind: &Value| match kind.as_str() {
            Some("full_attention") => Ok(false),
            Some("sliding_attention") => Ok(true),
            _ => Err(format!("layer type {kind} is not supported; known: full_attention, sliding_attention")),
        };
        kinds.iter().map(local).collect::<Result<Vec<_>, _>>().map(Some)
    }

    pub fn query_pre_attn_scalar(&self, family: Family, head_dim: usize) -> Result<f32, String> {
        if family != Family::Gemma3 {
            return Ok(head_dim as f32);
        }
        match self.number("query_pre_attn_scalar").unwrap_or(256.0) {
            n if n > 0.0 => Ok(n as f32),
            n => Err(format!("`query_pre_attn_scalar` is {n}, expected more than 0")),
        }
    }

    pub fn rope(&self, family: Family, head_dim: usize) -> Result<Rope, String> {
        let whole = Rope { theta: 10_000.0, scaling: RopeScaling::None, local: None, rotary_dim: head_dim };
        if !family.rotates() {
            return Ok(whole);
        }
        let map = |key: &str| self.0.get(key).and_then(Value::as_object);
        let parameters = map("rope_parameters");
        if family != Family::Gemma3 {
            let map = parameters.or(map("rope_scaling"));
            let theta = theta(parameters).or(self.number("rope_theta")).unwrap_or(10_000.0) as f32;
            let factor = map.and_then(|m| m.get("partial_rotary_factor")).and_then(Value::as_f64);
            let factor = factor.or(self.number("partial_rotary_factor")).unwrap_or(1.0);
            if !(factor > 0.0 && factor <= 1.0 && (factor == 1.0 || family == Family::Phi3)) {
                return Err(format!("partial_rotary_factor {factor} is not supported for {}", family.model_type()));
            }
            let rotary_dim = (head_dim as f64 * factor) as usize;
            return Ok(Rope { theta, scaling: scaling(map)?, rotary_dim, ..whole });
        }
        // By kind of layer, or in the older keys: `rope_theta` and `rope_scaling` of the layers that see all, and a base of
        // the local ones, which are never stretched.
        let kind = |kind: &str| parameters.and_then(|p| p.get(kind)).and_then(Value::as_object);
        if let (Some(p), None) = (parameters, kind("full_attention").or(kind("sliding_attention"))) {
            let keys: Vec<&str> = p.keys().map(String::as_str).collect();
            return Err(format!("rope_parameters has {}; expected full_attention, sliding_attention", keys.join(", ")));
        }
        let (full, local) = (kind("full_attention"), kind("sliding_attention"));
        let theta_local = theta(local).or(self.number("rope_local_base_freq")).unwrap_or(10_000.0) as f32;
        Ok(Rope {
            theta: theta(full).or(self.number("rope_theta")).unwrap_or(1_000_000.0) as f32,
            scaling: scaling(full.or(map("rope_scaling")))?,
            local: Some((theta_local, scaling(local)?)),
            ..whole
        })
    }
}

fn theta(map: Option<&Map<String, Value>>) -> Option<f64> {
    map?.get("rope_theta").and_then(Value::as_f64)
}

fn scaling(map: Option<&Map<String, Value>>) -> Result<RopeScaling, String> {
    let Some(map) = map else { return Ok(RopeScaling::None) };
    let number =
        |key: &str| map.get(key).and_then(Value::as_f64).ok_or_else(|| format!("rope scaling needs a number `{key}`"));
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
    let unheard = |(key, value): &(&String, &Value)| !(ROPE_KEYS.contains(&key.as_str()) || value.is_null());
    match map.iter().find(unheard) {
        Some((key, value)) => Err(format!("rope scaling has `{key}` = {value}, which is not known for `{kind}`")),
        None => Ok(scaling),
    }
}
