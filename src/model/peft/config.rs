//! `adapter_config.json`, as PEFT writes and reads it.

use super::mlx;
use super::targets::{Patterns, is_called, layer_of, whole};
use crate::error::BadInput;
use crate::model::network::Task;
use serde_json::{Map, Value, json};
use std::path::Path;

/// What stands beside a weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Kind {
    /// A low-rank pair.
    #[default]
    Lora,
    /// A low-rank pair and a magnitude.
    Dora,
    /// A vector that scales.
    Ia3,
}

/// What `adapter_config.json` says.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct AdapterConfig {
    /// What stands beside a weight.
    pub kind: Kind,
    /// Rank.
    pub r: usize,
    /// α.
    pub alpha: f64,
    /// Dropout of the adapter's input while training.
    pub dropout: f32,
    /// s = α/√r instead of α/r (Kalajdzievski, arXiv:2312.03732).
    pub rslora: bool,
    /// Ranks of modules that have their own.
    pub rank_pattern: Patterns<usize>,
    /// α of modules that have their own.
    pub alpha_pattern: Patterns<f64>,
    /// Modules that carry an adapter: the last parts of their paths.
    pub target_modules: Vec<String>,
    /// A pattern for whole paths, instead of `target_modules`.
    pub target_pattern: Option<String>,
    /// (IA)³: which of them are scaled at their input.
    pub feedforward_modules: Vec<String>,
    /// The layers that carry adapters; all of them when `None`.
    pub layers: Option<Vec<usize>>,
    /// What stands before a layer's number in a path; any name when empty.
    pub layers_pattern: Vec<String>,
    /// Modules that are trained and stored whole.
    pub modules_to_save: Vec<String>,
    /// Name or path of the base.
    pub base: Option<String>,
}

/// What changes the mathematics and is not computed here: refused when it is given.
const UNSUPPORTED: [&str; 13] = [
    "lora_bias",
    "use_qalora",
    "use_bdlora",
    "layer_replication",
    "trainable_token_indices",
    "target_parameters",
    "exclude_modules",
    "alora_invocation_tokens",
    "arrow_config",
    "monteclora_config",
    "velora_config",
    "kasa_config",
    "ensure_weight_tying",
];

impl AdapterConfig {
    /// r of the module at `path`.
    pub fn rank(&self, path: &str) -> usize {
        self.rank_pattern.get(path).unwrap_or(self.r)
    }

    /// s of the module at `path`.
    pub fn scale(&self, path: &str) -> f64 {
        let (r, alpha) = (self.rank(path) as f64, self.alpha_pattern.get(path).unwrap_or(self.alpha));
        alpha / if self.rslora { r.sqrt() } else { r }
    }

    /// Whether the module at `path` carries an adapter.
    pub fn targets(&self, path: &str) -> bool {
        if let Some(pattern) = &self.target_pattern {
            return whole(pattern).is_ok_and(|p| p.is_match(path));
        }
        // PEFT asks for the layer only where a name stands for many modules.
        self.target_modules.iter().any(|t| path == t)
            || self.target_modules.iter().any(|t| is_called(path, t)) && self.in_layers(path)
    }

    fn in_layers(&self, path: &str) -> bool {
        let Some(layers) = &self.layers else { return true };
        layer_of(path, &self.layers_pattern).is_some_and(|layer| layers.contains(&layer))
    }

    /// Whether (IA)³ scales what the module at `path` takes, not what it gives.
    pub fn is_feedforward(&self, path: &str) -> bool {
        self.feedforward_modules.iter().any(|m| path.ends_with(m.as_str()))
    }

    /// Reads `adapter_config.json`; what this project does not compute is refused by name.
    pub fn read(dir: &Path) -> anyhow::Result<Self> {
        let path = dir.join("adapter_config.json");
        let text = std::fs::read_to_string(&path)
            .map_err(|e| BadInput(format!("cannot read {}: {e}; an adapter folder holds it", path.display())))?;
        let json: Value =
            serde_json::from_str(&text).map_err(|e| BadInput(format!("{}: not valid JSON: {e}", path.display())))?;
        if mlx::is_at(dir) {
            return mlx::config(dir, &json);
        }
        Self::from_json(&json).map_err(|e| BadInput(format!("{}: {e}", path.display())).into())
    }

    fn from_json(json: &Value) -> Result<Self, String> {
        let kind = match json["peft_type"].as_str() {
            Some("LORA") if json["use_dora"] == true => Kind::Dora,
            Some("LORA") => Kind::Lora,
            Some("IA3") => Kind::Ia3,
            _ => return Err(format!("peft_type {} is not supported; known: LORA, IA3", json["peft_type"])),
        };
        if let Some(key) = UNSUPPORTED.iter().find(|key| is_given(&json[**key])) {
            return Err(format!("`{key}` = {} is not supported", json[*key]));
        }
        if json["bias"].as_str().is_some_and(|b| b != "none") {
            return Err(format!("bias {} is not supported; known: none", json["bias"]));
        }
        // These take a part of the base's weights into the pair: beside the base as it is, the pair would be wrong.
        let changed = |init: &str| ["pissa", "olora", "corda", "loftq", "lora_ga"].iter().any(|i| init.starts_with(i));
        if let Some(init) = json["init_lora_weights"].as_str().filter(|init| changed(init)) {
            return Err(format!(
                "`init_lora_weights` = {init} has changed the base; let PEFT save it with path_initial_model_for_weight_conversion"
            ));
        }
        let (target_modules, target_pattern) = match &json["target_modules"] {
            Value::Array(_) => (names(&json["target_modules"]), None),
            Value::String(pattern) => {
                whole(pattern)?;
                (Vec::new(), Some(pattern.clone()))
            }
            _ => return Err("`target_modules` must be a list of module names, or a pattern".into()),
        };
        let layers = match &json["layers_to_transform"] {
            Value::Null => None,
            Value::Array(list) if list.is_empty() => None,
            one_or_more => Some(numbers(one_or_more).ok_or("`layers_to_transform` must be layer numbers")?),
        };
        if target_pattern.is_some() && layers.is_some() {
            return Err("`layers_to_transform` goes with a list of `target_modules`, not with a pattern".into());
        }
        let base = json["base_model_name_or_path"].as_str().map(str::to_owned);
        let common = Self {
            kind,
            target_modules,
            target_pattern,
            modules_to_save: names(&json["modules_to_save"]),
            base,
            ..Self::default()
        };
        if kind == Kind::Ia3 {
            return Ok(Self { feedforward_modules: names(&json["feedforward_modules"]), ..common });
        }
        let positive = |v: &Value| v.as_u64().filter(|r| *r > 0).map(|r| r as usize);
        Ok(Self {
            r: positive(&json["r"]).ok_or("no rank `r`")?,
            alpha: json["lora_alpha"].as_f64().ok_or("no `lora_alpha`")?,
            dropout: json["lora_dropout"].as_f64().unwrap_or(0.0) as f32,
            rslora: json["use_rslora"] == true,
            rank_pattern: patterns(&json["rank_pattern"], positive).map_err(|e| format!("`rank_pattern`: {e}"))?,
            alpha_pattern: patterns(&json["alpha_pattern"], Value::as_f64)
                .map_err(|e| format!("`alpha_pattern`: {e}"))?,
            layers,
            layers_pattern: names(&json["layers_pattern"]),
            ..common
        })
    }

    /// `adapter_config.json` as PEFT reads it.
    pub fn to_json(&self, task: &Task) -> Value {
        let task_type = match task {
            Task::Generate => "CAUSAL_LM",
            Task::Classify(_) => "SEQ_CLS",
            Task::Span => "QUESTION_ANS",
            Task::Embed(_) => super::file::TRUNK_ALONE,
        };
        let list = |names: &[String]| if names.is_empty() { Value::Null } else { json!(names) };
        let targets = self.target_pattern.as_ref().map_or_else(|| json!(self.target_modules), |p| json!(p));
        let mut out = json!({
            "peft_type": if self.kind == Kind::Ia3 { "IA3" } else { "LORA" }, "task_type": task_type,
            "base_model_name_or_path": self.base, "revision": null, "target_modules": targets, "fan_in_fan_out": false,
            "inference_mode": true, "modules_to_save": list(&self.modules_to_save),
        });
        let own = if self.kind == Kind::Ia3 {
            json!({"feedforward_modules": self.feedforward_modules, "init_ia3_weights": true})
        } else {
            let ranks: Map<_, _> = self.rank_pattern.0.iter().map(|(k, r)| (k.clone(), json!(r))).collect();
            let alphas: Map<_, _> = self.alpha_pattern.0.iter().map(|(k, a)| (k.clone(), json!(a))).collect();
            json!({
                "r": self.r, "lora_alpha": self.alpha, "lora_dropout": self.dropout, "use_rslora": self.rslora,
                "use_dora": self.kind == Kind::Dora, "bias": "none", "rank_pattern": ranks, "alpha_pattern": alphas,
                "layers_to_transform": self.layers, "layers_pattern": list(&self.layers_pattern), "init_lora_weights": true,
            })
        };
        if let (Value::Object(out), Value::Object(own)) = (&mut out, own) {
            out.extend(own);
        }
        out
    }
}

/// Neither null, false, empty, nor a string of nothing.
fn is_given(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => false,
        Value::Array(list) => !list.is_empty(),
        Value::Object(map) => !map.is_empty(),
        Value::String(text) => !text.is_empty(),
        _ => true,
    }
}

/// One name or a list of them, sorted.
fn names(value: &Value) -> Vec<String> {
    let mut names: Vec<String> = match value {
        Value::String(one) => vec![one.clone()],
        list => list.as_array().into_iter().flatten().filter_map(|v| v.as_str().map(str::to_owned)).collect(),
    };
    names.sort();
    names
}

/// One number or a list of them.
fn numbers(value: &Value) -> Option<Vec<usize>> {
    match value {
        Value::Array(list) => list.iter().map(|v| v.as_u64().map(|n| n as usize)).collect(),
        one => Some(vec![one.as_u64()? as usize]),
    }
}

fn patterns<T: Copy>(value: &Value, read: impl Fn(&Value) -> Option<T>) -> Result<Patterns<T>, String> {
    let mut out = Vec::new();
    for (key, value) in value.as_object().into_iter().flatten() {
        whole(key)?;
        out.push((key.clone(), read(value).ok_or_else(|| format!("`{key}` cannot be {value}"))?));
    }
    Ok(Patterns(out))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lora(extra: Value) -> Value {
        let mut json = json!({"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]});
        json.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        json
    }

    #[test]
    fn modules_may_have_a_rank_and_an_alpha_of_their_own() {
        let json = lora(json!({"rank_pattern": {"layers.0.self_attn.q_proj": 2}, "alpha_pattern": {"v_proj": 16.0}}));
        let config = AdapterConfig::from_json(&json).unwrap();
        let (q0, q1, v1) =
            ("model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj", "model.layers.1.self_attn.v_proj");
        assert_eq!((config.rank(q0), config.scale(q0)), (2, 4.0));
        assert_eq!((config.rank(q1), config.scale(q1)), (4, 2.0));
        assert_eq!((config.rank(v1), config.scale(v1)), (4, 4.0));
        let error = AdapterConfig::from_json(&lora(json!({"rank_pattern": {"q_proj": 0}}))).unwrap_err();
        assert!(error.contains("`rank_pattern`: `q_proj` cannot be 0"), "{error}");
    }

    #[test]
    fn targets_are_names_or_a_pattern_in_all_layers_or_some() {
        let config = AdapterConfig::from_json(&lora(json!({"layers_to_transform": [1, 3]}))).unwrap();
        assert!(config.targets("model.layers.3.self_attn.q_proj"));
        assert!(!config.targets("model.layers.2.self_attn.q_proj"));
        assert!(!config.targets("model.layers.3.mlp.up_proj"));
        let one =
            AdapterConfig::from_json(&lora(json!({"layers_to_transform": 1, "layers_pattern": "layers"}))).unwrap();
        assert!(one.targets("model.layers.1.self_attn.q_proj") && !one.targets("model.layers.0.self_attn.q_proj"));
        let pattern = AdapterConfig::from_json(&lora(json!({"target_modules": ".*\\.[01]\\..*_proj"}))).unwrap();
        assert!(pattern.targets("model.layers.1.mlp.up_proj") && !pattern.targets("model.layers.2.mlp.up_proj"));
    }

    #[test]
    fn what_is_written_is_read_back() {
        let full = AdapterConfig {
            kind: Kind::Dora,
            r: 4,
            alpha: 8.0,
            dropout: 0.5,
            rslora: true,
            rank_pattern: Patterns(vec![("q_proj".into(), 2)]),
            alpha_pattern: Patterns(vec![("q_proj".into(), 1.5)]),
            target_modules: vec!["q_proj".into()],
            layers: Some(vec![1, 2]),
            modules_to_save: vec!["score".into()],
            base: Some("base".into()),
            ..AdapterConfig::default()
        };
        let ia3 = AdapterConfig {
            kind: Kind::Ia3,
            target_modules: vec!["down_proj".into(), "k_proj".into()],
            feedforward_modules: vec!["down_proj".into()],
            ..AdapterConfig::default()
        };
        for config in [full, ia3] {
            assert_eq!(AdapterConfig::from_json(&config.to_json(&Task::Generate)).unwrap(), config);
        }
    }

    #[test]
    fn what_is_not_computed_is_refused_by_name() {
        for (extra, name) in [
            (json!({"peft_type": "VERA"}), "VERA"),
            (json!({"bias": "all"}), "bias"),
            (json!({"lora_bias": true}), "lora_bias"),
            (json!({"target_parameters": ["experts"]}), "target_parameters"),
            (json!({"target_modules": "(?<!x)q_proj"}), "(?<!x)q_proj"),
            (json!({"target_modules": null}), "target_modules"),
            (json!({"init_lora_weights": "pissa_niter_4"}), "pissa_niter_4"),
        ] {
            let error = AdapterConfig::from_json(&lora(extra)).unwrap_err();
            assert!(error.contains(name), "{error}");
        }
    }
}
