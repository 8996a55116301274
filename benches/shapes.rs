//! Networks of known shapes with random weights, which time and memory do not depend on.

use anyhow::bail;
use candle_core::{DType, Device, Tensor};
use serde_json::json;
use std::collections::HashMap;
use std::path::Path;

/// Layers, hidden size, heads, key heads, feed-forward, vocabulary.
const SHAPES: [(&str, [usize; 6]); 3] = [
    ("smollm2-135m", [30, 576, 9, 3, 1536, 49152]),
    ("smollm2-360m", [32, 960, 15, 5, 2560, 49152]),
    ("llama-3.2-1b", [16, 2048, 32, 8, 8192, 128_256]),
];

/// Writes random weights of a shape as a Hugging Face folder: time and memory depend on shapes. Gives the vocabulary's size.
pub fn write_model(shape: &str, dtype: DType, folder: &Path) -> anyhow::Result<usize> {
    let Some((_, dims)) = SHAPES.iter().find(|(name, _)| *name == shape) else {
        bail!("--shape {shape}: known are {}", SHAPES.map(|s| s.0).join(", "));
    };
    let [layers, c, h, k, f, v] = *dims;
    let d = c / h;
    let noise = |rows: usize, cols: usize| Tensor::randn(0f32, 0.02, (rows, cols), &Device::Cpu)?.to_dtype(dtype);
    let ones = || Tensor::ones(c, dtype, &Device::Cpu);
    let mut tensors = HashMap::new();
    tensors.insert("model.embed_tokens.weight".to_owned(), noise(v, c)?);
    tensors.insert("model.norm.weight".to_owned(), ones()?);
    for i in 0..layers {
        let at = |part: &str| format!("model.layers.{i}.{part}.weight");
        tensors.insert(at("input_layernorm"), ones()?);
        tensors.insert(at("post_attention_layernorm"), ones()?);
        for (name, rows, cols) in [
            ("self_attn.q_proj", c, c),
            ("self_attn.k_proj", k * d, c),
            ("self_attn.v_proj", k * d, c),
            ("self_attn.o_proj", c, c),
            ("mlp.gate_proj", f, c),
            ("mlp.up_proj", f, c),
            ("mlp.down_proj", c, f),
        ] {
            tensors.insert(at(name), noise(rows, cols)?);
        }
    }
    candle_core::safetensors::save(&tensors, folder.join("model.safetensors"))?;
    let config = json!({"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": v, "hidden_size": c,
        "intermediate_size": f, "num_hidden_layers": layers, "num_attention_heads": h, "num_key_value_heads": k,
        "max_position_embeddings": 8192, "rms_norm_eps": 1e-6, "rope_theta": 1e4, "hidden_act": "silu",
        "tie_word_embeddings": true});
    std::fs::write(folder.join("config.json"), config.to_string())?;
    Ok(v)
}
