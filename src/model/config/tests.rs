//! What is read, and what is refused.

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
        "model_type `mamba` is not supported; known: llama, mistral, qwen2, qwen3, gemma3_text, phi3, gpt2, bert, roberta, \
         distilbert",
    );
    refuses("hidden_act", json!("gelu"), "hidden_act `gelu` is not supported for llama; known: silu");
    refuses(
        "rope_scaling",
        json!({"type": "yarn", "factor": 4.0}),
        "rope type `yarn` is not supported; known: default, linear, llama3",
    );
    refuses("num_key_value_heads", json!(3), "num_attention_heads 2 is not a multiple of num_key_value_heads 3");
    refuses("hidden_size", json!(-1), "`hidden_size` is -1, expected a whole number from 1");
    refuses("quantization_config", json!({}), "`quantization_config` changes the mathematics and is not supported yet");
}

/// Llama's config under another name, with more keys.
fn kin(family: &str, more: Value) -> Result<Config, String> {
    let mut json = llama();
    json["model_type"] = family.into();
    for (key, value) in more.as_object().unwrap() {
        json[key] = value.clone();
    }
    Config::from_json(&json)
}

#[test]
fn windows_hold_where_the_layers_say() {
    let local = |config: Config| (0..config.num_hidden_layers).map(|i| config.window(i)).collect::<Vec<_>>();
    let gemma = |more| kin("gemma3_text", more);
    let five = json!({"num_hidden_layers": 5, "sliding_window": 3, "sliding_window_pattern": 2});
    assert_eq!(local(gemma(five).unwrap()), [Some(3), None, Some(3), None, Some(3)]);
    let listed = json!({"num_hidden_layers": 2, "layer_types": ["full_attention", "sliding_attention"]});
    assert_eq!(local(gemma(listed).unwrap()), [None, Some(4096)]);
    let qwen = json!({"num_hidden_layers": 3, "sliding_window": 7, "use_sliding_window": true, "max_window_layers": 1});
    assert_eq!(local(kin("qwen3", qwen).unwrap()), [None, Some(7), Some(7)]);
    let off = json!({"sliding_window": 7, "use_sliding_window": false});
    assert_eq!(local(kin("qwen2", off).unwrap()), [None]);
    assert_eq!(local(kin("mistral", json!({"sliding_window": 7})).unwrap()), [Some(7)]);
    let odd = kin("qwen2", json!({"layer_types": ["sliding_attention"]})).unwrap_err();
    assert!(odd.contains("there is no window"), "{odd}");
    let unknown = kin("qwen3", json!({"layer_types": ["linear_attention"]})).unwrap_err();
    assert!(unknown.contains("layer type \"linear_attention\" is not supported"), "{unknown}");
    let short = kin("gemma3_text", json!({"layer_types": []})).unwrap_err();
    assert_eq!(short, "layer_types has 0 entries for 1 layers");
}

#[test]
fn gemma_rotates_its_two_kinds_of_layers_apart_in_either_spelling() {
    let now = json!({"rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}});
    let then =
        json!({"rope_theta": 1e6, "rope_local_base_freq": 1e4, "rope_scaling": {"rope_type": "linear", "factor": 8.0}});
    for spelling in [now, then] {
        let config = kin("gemma3_text", spelling).unwrap();
        assert_eq!((config.rope_theta, config.rope_scaling), (1e6, RopeScaling::Linear { factor: 8.0 }));
        assert_eq!(config.local_rope, Some((1e4, RopeScaling::None)));
    }
    let flat = kin("gemma3_text", json!({"rope_parameters": {"rope_theta": 1e4, "rope_type": "default"}})).unwrap_err();
    assert!(flat.contains("expected full_attention"), "{flat}");
}

#[test]
fn a_part_of_a_head_is_rotated_where_phi3_says() {
    let phi = |factor: f64| kin("phi3", json!({"head_dim": 16, "partial_rotary_factor": factor}));
    assert_eq!((phi(1.0).unwrap().rotary_dim, phi(0.75).unwrap().rotary_dim), (16, 12));
    assert_eq!(phi(0.7).unwrap_err(), "partial_rotary_factor rotates 11 of 16 dimensions; pairs are needed");
    let known =
        kin("phi3", json!({"rope_scaling": {"type": "linear", "factor": 2.0, "attention_factor": 1.5}})).unwrap_err();
    assert!(known.contains("`attention_factor` = 1.5"), "{known}");
}

#[test]
fn each_family_spells_its_sizes_in_its_own_way() {
    let gpt2 =
        json!({"model_type": "gpt2", "vocab_size": 8, "n_embd": 15, "n_layer": 1, "n_head": 5, "n_positions": 32});
    let config = Config::from_json(&gpt2).unwrap();
    assert_eq!((config.hidden_size, config.intermediate_size, config.head_dim), (15, 60, 3));
    assert_eq!((config.room().positions, config.tie_word_embeddings, config.activation), (32, true, Act::GeluTanh));
    let distilbert = json!({"model_type": "distilbert", "vocab_size": 8, "dim": 12, "hidden_dim": 16, "n_layers": 1, "n_heads": 2,
        "max_position_embeddings": 32});
    let config = Config::from_json(&distilbert).unwrap();
    assert_eq!((config.norm_eps, config.room().types), (1e-12, usize::MAX));
    let roberta = json!({"model_type": "roberta", "vocab_size": 8, "hidden_size": 12, "intermediate_size": 16,
        "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 514, "type_vocab_size": 1});
    let config = Config::from_json(&roberta).unwrap();
    assert_eq!((config.max_position_embeddings, config.position_offset, config.room().types), (512, 2, 1));
}
