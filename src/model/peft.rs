//! Adapters in PEFT's format: `adapter_config.json` + `adapter_model.safetensors`, readable by PEFT and read from it.
//!
//! Loading is strict both ways: a key that no module takes, and a module that no key fills, are errors by name.

use super::layers::linear::Lora;
use super::load::Checkpoint;
use super::network::{Network, Task};
use crate::error::BadInput;
use crate::rng;
use candle_core::{DType, Device, Tensor};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;

const PREFIX: &str = "base_model.model.";

/// What `adapter_config.json` says.
#[derive(Debug, Clone, PartialEq)]
pub struct AdapterConfig {
    /// Rank.
    pub r: usize,
    /// α.
    pub alpha: f64,
    /// Dropout of the adapter's input while training.
    pub dropout: f32,
    /// s = α/√r instead of α/r (Kalajdzievski, arXiv:2312.03732).
    pub rslora: bool,
    /// Modules that carry an adapter: the last parts of their paths.
    pub target_modules: Vec<String>,
    /// Modules that are trained and stored whole.
    pub modules_to_save: Vec<String>,
    /// Name or path of the base.
    pub base: Option<String>,
}

impl AdapterConfig {
    /// s.
    pub fn scale(&self) -> f64 {
        let r = self.r as f64;
        self.alpha / if self.rslora { r.sqrt() } else { r }
    }

    /// Whether the module at `path` carries an adapter.
    pub fn targets(&self, path: &str) -> bool {
        self.target_modules.iter().any(|t| is_called(path, t))
    }

    /// Reads `adapter_config.json`; what this project does not compute is refused by name.
    pub fn read(dir: &Path) -> anyhow::Result<Self> {
        let path = dir.join("adapter_config.json");
        let text = std::fs::read_to_string(&path)
            .map_err(|e| BadInput(format!("cannot read {}: {e}; an adapter folder holds it", path.display())))?;
        let json: Value =
            serde_json::from_str(&text).map_err(|e| BadInput(format!("{}: not valid JSON: {e}", path.display())))?;
        Self::from_json(&json).map_err(|e| BadInput(format!("{}: {e}", path.display())).into())
    }

    fn from_json(json: &Value) -> Result<Self, String> {
        if json["peft_type"] != "LORA" {
            return Err(format!("peft_type {} is not supported; known: LORA", json["peft_type"]));
        }
        for key in ["use_dora", "lora_bias", "fan_in_fan_out", "use_qalora", "use_bdlora"] {
            if json[key] == true {
                return Err(format!("`{key}` = true is not supported yet"));
            }
        }
        if json["bias"].as_str().is_some_and(|b| b != "none") {
            return Err(format!("bias {} is not supported; known: none", json["bias"]));
        }
        for key in ["rank_pattern", "alpha_pattern"] {
            if json[key].as_object().is_some_and(|m| !m.is_empty()) {
                return Err(format!("`{key}` is not supported yet"));
            }
        }
        for key in [
            "layers_to_transform",
            "layer_replication",
            "trainable_token_indices",
            "target_parameters",
            "exclude_modules",
        ] {
            if json[key].as_array().is_some_and(|a| !a.is_empty()) || json[key].is_u64() || json[key].is_string() {
                return Err(format!("`{key}` is not supported yet"));
            }
        }
        let names = |key: &str| -> Vec<String> {
            let mut names: Vec<String> =
                json[key].as_array().into_iter().flatten().filter_map(|v| v.as_str().map(str::to_owned)).collect();
            names.sort();
            names
        };
        let r = json["r"].as_u64().filter(|r| *r > 0).ok_or("no rank `r`")? as usize;
        if !json["target_modules"].is_array() {
            return Err("`target_modules` must be a list of module names".into());
        }
        Ok(Self {
            r,
            alpha: json["lora_alpha"].as_f64().ok_or("no `lora_alpha`")?,
            dropout: json["lora_dropout"].as_f64().unwrap_or(0.0) as f32,
            rslora: json["use_rslora"] == true,
            target_modules: names("target_modules"),
            modules_to_save: names("modules_to_save"),
            base: json["base_model_name_or_path"].as_str().map(str::to_owned),
        })
    }

    /// `adapter_config.json` as PEFT reads it.
    pub fn to_json(&self, task: &Task) -> Value {
        let task_type = match task {
            Task::Generate => "CAUSAL_LM",
            Task::Classify(_) => "SEQ_CLS",
            Task::Span => "QUESTION_ANS",
        };
        json!({
            "peft_type": "LORA", "task_type": task_type, "base_model_name_or_path": self.base, "revision": null,
            "r": self.r, "lora_alpha": self.alpha, "lora_dropout": self.dropout, "use_rslora": self.rslora, "use_dora": false,
            "target_modules": self.target_modules, "bias": "none", "fan_in_fan_out": false, "rank_pattern": {},
            "alpha_pattern": {}, "layers_to_transform": null, "init_lora_weights": true, "inference_mode": true,
            "modules_to_save": if self.modules_to_save.is_empty() { Value::Null } else { json!(self.modules_to_save) },
        })
    }
}

/// # Errors
/// A target that no module is called: a slip of the pen would leave modules untuned in silence.
pub fn every_target_is_there(network: &mut Network, config: &AdapterConfig) -> anyhow::Result<()> {
    let paths: Vec<String> = network.linears().into_iter().map(|l| l.name.clone()).collect();
    let idle = |target: &&String| !paths.iter().any(|path| is_called(path, target));
    if let Some(target) = config.target_modules.iter().find(idle) {
        crate::bad_input!("no module is called {target}; this model has: {}", last_parts(paths.iter()));
    }
    Ok(())
}

fn is_called(path: &str, target: &str) -> bool {
    path == target || path.ends_with(&format!(".{target}"))
}

/// What modules are called, each once.
fn last_parts<'a>(paths: impl Iterator<Item = &'a String>) -> String {
    let mut names: Vec<&str> = paths.filter_map(|p| p.rsplit('.').next()).collect();
    names.sort_unstable();
    names.dedup();
    names.join(", ")
}

/// Puts fresh adapters on every target: A uniform in ±1/√in, as PEFT's kaiming with a = √5 comes out; B zero. Heads that
/// the task needs become trained.
///
/// # Errors
/// When no module is a target.
pub fn attach(network: &mut Network, config: &AdapterConfig, seed: u64) -> anyhow::Result<()> {
    let device = network.device().clone();
    let fresh = network.fresh.clone();
    let mut attached = 0;
    let mut names = Vec::new();
    for linear in network.linears() {
        names.push(linear.name.clone());
        if fresh.contains(&linear.name) {
            linear.trained = true; // it starts from noise: low rank would not do
            continue;
        }
        if config.targets(&linear.name) {
            linear.lora = Some(fresh_lora(&linear.name, linear.weight.dims()?, config, seed, &device)?);
            attached += 1;
        }
    }
    network.head_modules().into_iter().for_each(|head| head.trained = true);
    if attached == 0 {
        crate::bad_input!(
            "no module is called {}; this model has: {}",
            config.target_modules.join(", "),
            last_parts(names.iter())
        );
    }
    Ok(())
}

fn fresh_lora(
    name: &str,
    (out, input): (usize, usize),
    config: &AdapterConfig,
    seed: u64,
    device: &Device,
) -> anyhow::Result<Lora> {
    let bound = 1.0 / (input as f32).sqrt();
    let stream = rng::stream(&format!("{name}.lora_A"), 0);
    let a: Vec<f32> =
        (0..config.r * input).map(|i| (2.0 * rng::uniform(seed, stream, i as u64) - 1.0) * bound).collect();
    Ok(Lora {
        a: Tensor::from_vec(a, (config.r, input), device)?,
        b: Tensor::zeros((out, config.r), DType::F32, device)?,
        scale: config.scale(),
        dropout: config.dropout,
    })
}

/// Fills the trained tensors of a network (after [`attach`]) from `adapter_model.safetensors` of `dir`.
///
/// # Errors
/// A key without a place, a place without a key, another shape: by name.
pub fn load_into(network: &mut Network, dir: &Path) -> anyhow::Result<()> {
    let path = dir.join("adapter_model.safetensors");
    if !path.is_file() {
        crate::bad_input!("{}: no adapter_model.safetensors; is the run finished?", dir.display());
    }
    let file = Checkpoint::open(&path)?;
    let device = network.device().clone();
    let mut unused: Vec<String> = file.names().map(str::to_owned).collect();
    let mut outcome = Ok(());
    network.trained(&mut |name, tensor| {
        if outcome.is_err() {
            return;
        }
        let key = format!("{PREFIX}{name}");
        unused.retain(|k| *k != key);
        outcome = (|| {
            let Some(found) = file.shape(&key) else {
                crate::bad_input!("{}: no tensor `{key}`, which this model needs", path.display());
            };
            if found != tensor.dims() {
                crate::bad_input!(
                    "{}: tensor `{key}` has shape {found:?}, the base model needs {:?}; is it the base it was tuned on?",
                    path.display(),
                    tensor.dims()
                );
            }
            *tensor = file.tensor(&key, &found, &device)?;
            Ok(())
        })();
    });
    outcome?;
    if let Some(key) = unused.first() {
        crate::bad_input!("{}: no module takes tensor `{key}` ({} such)", path.display(), unused.len());
    }
    Ok(())
}

/// The trained tensors under PEFT's keys.
pub fn tensors(network: &mut Network) -> BTreeMap<String, Tensor> {
    let mut out = BTreeMap::new();
    network.trained(&mut |name, tensor| {
        out.insert(format!("{PREFIX}{name}"), tensor.clone());
    });
    out
}
