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
const POOLING_FIRST: u32 = 2;
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
    if let Some(rope) = spec.rope {
        own("attention.layer_norm_rms_epsilon", Value::F32(spec.norm_eps));
        for key in ["attention.key_length", "attention.value_length"] {
            own(key, Value::U32(spec.head_dim as u32));
        }
        own("rope.dimension_count", Value::U32(spec.rotary_dim() as u32));
        own("rope.freq_base", Value::F32(rope.theta));
        if let Some(theta) = rope.local_theta {
            own("rope.freq_base_swa", Value::F32(theta));
        }
        // Llama 3's scaling is the tensor rope_freqs.weight, not a key.
        if let RopeScaling::Linear { factor } = rope.scaling {
            own("rope.scaling.type", text("linear"));
            own("rope.scaling.factor", Value::F32(factor));
        }
    } else {
        own("attention.layer_norm_epsilon", Value::F32(spec.norm_eps));
    }
    if spec.arch.is_encoder() {
        own("attention.causal", Value::Bool(false));
        let pooling = match spec.task {
            // Its head travels as keys; what llama.cpp can give is what the head looks at.
            Task::Classify { .. } if spec.arch == Arch::DistilBert => POOLING_FIRST,
            Task::Classify { .. } => POOLING_RANK,
            Task::Answer => POOLING_NONE,
            Task::Generate | Task::Embed => POOLING_MEAN,
        };
        own("pooling_type", Value::U32(pooling));
        if let Task::Classify { labels } = &spec.task {
            own("classifier.output_labels", list(labels));
        }
    }
    let window = spec.sliding_window.map_or(0, |w| w as u32);
    match spec.arch {
        // llama.cpp's converter writes 0 for none: so it tells Phi-4 from Phi-3.
        Arch::Phi3 => own("attention.sliding_window", Value::U32(window)),
        Arch::Gemma3 if window > 0 => {
            own("attention.sliding_window", Value::U32(window));
            match period(&spec.local_layers, spec.n_layers) {
                Some(n) => own("attention.sliding_window_pattern", Value::U32(n)),
                None => put("edgeft.attention.local_layers", Value::Array(Array::Bool(spec.local_layers.clone()))),
            }
        }
        _ if window > 0 => put("edgeft.attention.sliding_window", Value::U32(window)),
        _ => {}
    }
    // llama.cpp takes Gemma 3's from its size; one that was tuned to another is read by this project alone.
    if let Some(scale) = spec.attention_scale {
        put("edgeft.attention.scale", Value::F32(scale));
    }
    put("edgeft.task", text(spec.task.name()));
    if let Task::Classify { labels } = &spec.task {
        put("edgeft.labels", list(labels));
    }
    keys
}

/// llama.cpp's `sliding_window_pattern`: every n-th layer sees all, the others are local, and 0 makes all of them so. `None`
/// when no number says what `local` does.
fn period(local: &[bool], n_layers: usize) -> Option<u32> {
    if local.iter().all(|l| *l) {
        return Some(0);
    }
    (1..=n_layers).find(|n| local.iter().enumerate().all(|(i, l)| *l == (i % n < n - 1))).map(|n| n as u32)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_period_says_which_layers_are_local() {
        let of = |s: &str| period(&s.chars().map(|c| c == 'l').collect::<Vec<_>>(), s.len());
        assert_eq!(of("lllllglllllgll"), Some(6));
        assert_eq!((of("llg"), of("lg"), of("lllg"), of("gg")), (Some(3), Some(2), Some(4), Some(1)));
        assert_eq!((of("lll"), of("")), (Some(0), Some(0)));
        assert_eq!((of("gl"), of("llgg"), of("lgll")), (None, None, None));
    }
}
