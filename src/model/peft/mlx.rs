//! Adapters of mlx-lm (`adapters.safetensors`): pairs that lie transposed, a scale that is not divided by the rank, and no
//! list of modules but the tensors themselves.

use super::config::{AdapterConfig, Kind};
use crate::error::BadInput;
use crate::model::load::Checkpoint;
use serde_json::Value;
use std::path::Path;

/// Name of the weights.
pub const WEIGHTS: &str = "adapters.safetensors";

/// Whether an adapter's folder is one of mlx-lm's.
pub fn is_at(dir: &Path) -> bool {
    dir.join(WEIGHTS).is_file() && !dir.join("adapter_model.safetensors").is_file()
}

/// A key as PEFT would call it, and whether the tensor lies transposed.
pub fn name(key: &str) -> (String, bool) {
    let parts = [
        (".lora_a", ".lora_A.weight", true),
        (".lora_b", ".lora_B.weight", true),
        (".m", ".lora_magnitude_vector", false),
    ];
    let found = parts.iter().find_map(|(end, peft, transposed)| Some((key.strip_suffix(end)?, peft, *transposed)));
    found.map_or_else(|| (key.to_owned(), false), |(module, peft, transposed)| (format!("{module}{peft}"), transposed))
}

/// `adapter_config.json` of mlx-lm, and the modules that its tensors name.
pub fn config(dir: &Path, json: &Value) -> anyhow::Result<AdapterConfig> {
    let file = dir.join("adapter_config.json");
    let wrong = |what: &str| BadInput(format!("{}: {what}", file.display()));
    let kind = match json["fine_tune_type"].as_str() {
        Some("lora") | None => Kind::Lora,
        Some("dora") => Kind::Dora,
        Some(other) => {
            return Err(wrong(&format!("fine_tune_type `{other}` is not supported; known: lora, dora")).into());
        }
    };
    let parameters = &json["lora_parameters"];
    let scale = parameters["scale"].as_f64().ok_or_else(|| wrong("no `lora_parameters.scale`"))?;
    let weights = Checkpoint::open(&dir.join(WEIGHTS))?;
    let first = weights.names().find(|n| n.ends_with(".lora_a")).and_then(|n| weights.shape(n));
    let Some([_, r]) = first.as_deref() else {
        crate::bad_input!("{}: no tensor ends in `.lora_a`", dir.join(WEIGHTS).display());
    };
    let modules = weights.names().filter_map(|n| n.strip_suffix(".lora_a").map(str::to_owned)).collect();
    Ok(AdapterConfig {
        kind,
        r: *r,
        alpha: scale * *r as f64,
        dropout: parameters["dropout"].as_f64().unwrap_or(0.0) as f32,
        target_modules: modules,
        base: json["model"].as_str().map(str::to_owned),
        ..AdapterConfig::default()
    })
}
