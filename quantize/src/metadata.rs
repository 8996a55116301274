//! The config in GGUF's words: `general.*`, `{arch}.*` and this project's `edgeft.*`, each with the value type that
//! llama.cpp checks.

use crate::{
    error::{Error, Result},
    plan::Plan,
    source::{Arch, ModelSpec, RopeScaling, Task},
};
use edgeft_runtime::format::gguf::{Array, Value};

/// Keys that only the writer may set: they say what the bytes are.
const OWN: [&str; 4] =
    ["general.architecture", "general.alignment", "general.file_type", "general.quantization_version"];

/// llama.cpp's `pooling_type`.
const POOLING_NONE: u32 = 0;
const POOLING_MEAN: u32 = 1;
const POOLING_RANK: u32 = 4;

/// The model's keys, `general.architecture` first.
pub fn model(spec: &ModelSpec, plan: &Plan) -> Vec<(String, Value)> {
    let mut keys: Vec<(String, Value)> = Vec::new();
    let mut put = |key: &str, value: Value| keys.push((key.to_string(), value));
    let text = |s: &str| Value::Str(s.to_string());
    let list = |labels: &[String]| Value::Array(Array::Str(labels.to_vec()));
    put("general.architecture", text(spec.arch.name()));
    put("general.type", text("model"));
    put("general.name", text(&spec.name));
    put("general.file_type", Value::U32(plan.mix.file_type()));
    if plan.tensors.iter().any(|t| t.ty.block_len() > 1) {
        put("general.quantization_version", Value::U32(2));
    }
    let arch = spec.arch.name();
    let mut own = |key: &str, value: Value| put(&format!("{arch}.{key}"), value);
    for (key, n) in [
        ("context_length", spec.n_ctx),
        ("embedding_length", spec.hidden_size),
        ("block_count", spec.n_layers),
        ("feed_forward_length", spec.intermediate_size),
        ("attention.head_count", spec.n_heads),
        ("attention.head_count_kv", spec.n_kv_heads),
        ("vocab_size", spec.vocab_size),
    ] {
        own(key, Value::U32(n as u32));
    }
    match spec.arch {
        Arch::Llama | Arch::Qwen2 => {
            own("attention.layer_norm_rms_epsilon", Value::F32(spec.norm_eps));
            for key in ["attention.key_length", "attention.value_length", "rope.dimension_count"] {
                own(key, Value::U32(spec.head_dim as u32));
            }
        }
        Arch::Bert => {
            own("attention.layer_norm_epsilon", Value::F32(spec.norm_eps));
            own("attention.causal", Value::Bool(false));
            let pooling = match spec.task {
                Task::Classify { .. } => POOLING_RANK,
                Task::Answer => POOLING_NONE,
                Task::Generate | Task::Embed => POOLING_MEAN,
            };
            own("pooling_type", Value::U32(pooling));
            if let Task::Classify { labels } = &spec.task {
                own("classifier.output_labels", list(labels));
            }
        }
    }
    if let Some(rope) = spec.rope {
        own("rope.freq_base", Value::F32(rope.theta));
        // Llama 3's scaling is the tensor rope_freqs.weight, not a key.
        if let RopeScaling::Linear { factor } = rope.scaling {
            own("rope.scaling.type", text("linear"));
            own("rope.scaling.factor", Value::F32(factor));
        }
    }
    put("edgeft.task", text(spec.task.name()));
    if let Task::Classify { labels } = &spec.task {
        put("edgeft.labels", list(labels));
    }
    if let Some(window) = spec.sliding_window {
        put("edgeft.attention.sliding_window", Value::U32(window as u32));
    }
    keys
}

/// Adds the caller's keys: one of the same name is replaced in place, so `bert.pooling_type` can be told.
///
/// # Errors
/// A key that says what the bytes are, an empty one, or one given twice.
pub fn extend(keys: &mut Vec<(String, Value)>, extra: &[(String, Value)]) -> Result<()> {
    for (i, (key, value)) in extra.iter().enumerate() {
        let refuse = |problem: &str| Err(Error::Metadata { key: key.clone(), problem: problem.into() });
        if key.is_empty() {
            return refuse("a key cannot be empty");
        }
        if OWN.contains(&key.as_str()) {
            return refuse("it describes the bytes of the file, so only the writer sets it");
        }
        if extra[..i].iter().any(|(k, _)| k == key) {
            return refuse("it is given twice");
        }
        match keys.iter_mut().find(|(k, _)| k == key) {
            Some(own) => own.1 = value.clone(),
            None => keys.push((key.clone(), value.clone())),
        }
    }
    Ok(())
}
