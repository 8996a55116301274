//! Keys of `config.json` that are known, by family. Nothing is guessed: a key that nobody here has heard of, with a value
//! that could mean something, is refused by name.

use super::family::Family;
use serde_json::{Map, Value};

/// Metadata, and what only generation or training by other programs looks at.
const FREE: &[&str] = &[
    "architectures",
    "auto_map",
    "bad_words_ids",
    "cache_implementation",
    "chunk_size_feed_forward",
    "directionality",
    "diversity_penalty",
    "do_sample",
    "dtype",
    "early_stopping",
    "encoder_no_repeat_ngram_size",
    "finetuning_task",
    "gradient_checkpointing",
    "id2label",
    "initializer_factor",
    "initializer_range",
    "is_llama_config",
    "keys_to_ignore_at_inference",
    "label2id",
    "language",
    "length_penalty",
    "max_length",
    "max_sequence_length",
    "min_length",
    "model_max_length",
    "model_type",
    "name_or_path",
    "no_repeat_ngram_size",
    "num_beam_groups",
    "num_beams",
    "num_labels",
    "num_return_sequences",
    "output_attentions",
    "output_hidden_states",
    "output_past",
    "output_scores",
    "pooler_fc_size",
    "pooler_num_attention_heads",
    "pooler_num_fc_layers",
    "pooler_size_per_head",
    "pooler_type",
    "predict_special_tokens",
    "prefix",
    "pretraining_tp", // another order of the same sums
    "remove_invalid_values",
    "reorder_and_upcast_attn", // the same in f32
    "repetition_penalty",
    "return_dict",
    "return_dict_in_generate",
    "sentence_transformers",
    "seq_length",
    "task_specific_params",
    "temperature",
    "tie_weights_",
    "tie_word_embeddings",
    "tokenizer_class",
    "top_k",
    "top_p",
    "torch_dtype",
    "torchscript",
    "transformers.js_config",
    "transformers_version",
    "typical_p",
    "unsloth_fixed",
    "unsloth_version",
    "use_bfloat16",
    "use_cache",
    "use_flash_attn",
    "vocab_size",
];

/// Keys whose absence alone is neutral: a value of any kind means another network.
const REFUSED: &[&str] = &[
    "quantization_config",
    "embedding_multiplier",
    "residual_multiplier",
    "logits_scaling",
    "attention_multiplier",
    "final_logit_softcapping",
    "attn_logit_softcapping",
    "num_local_experts",
    "no_rope_layers",
];

/// Keys of which the number 1 is neutral.
const FACTORS: &[&str] = &["full_attn_mod", "interpolate_factor", "partial_rotary_factor"];

/// Keys that the reader of a family looks at.
fn read(family: Family) -> &'static [&'static str] {
    match family {
        Family::Llama => &["attention_bias", "mlp_bias"],
        Family::Mistral => &["sliding_window"],
        Family::Qwen2 => &["attention_bias", "sliding_window", "use_sliding_window", "max_window_layers"],
        Family::Qwen3 => &["attention_bias", "sliding_window", "use_sliding_window", "max_window_layers"],
        Family::Gemma3 => &[
            "attention_bias",
            "hidden_act",
            "query_pre_attn_scalar",
            "rope_local_base_freq",
            "sliding_window",
            "sliding_window_pattern",
            "_sliding_window_pattern",
        ],
        // The last is read by `longrope` alone, which is refused.
        Family::Phi3 => &["sliding_window", "partial_rotary_factor", "original_max_position_embeddings"],
        Family::Gpt2 => &["n_ctx", "n_special"],
        Family::Bert | Family::Roberta => &["type_vocab_size"],
        Family::DistilBert => &[],
    }
}

/// The one value of a key that is computed, which is also what its absence means.
fn fixed(family: Family, key: &str) -> Option<Value> {
    match (family, key) {
        (Family::Gpt2, "scale_attn_weights") => Some(true.into()),
        (Family::Bert | Family::Roberta, "position_embedding_type") => Some("absolute".into()),
        _ => None,
    }
}

/// # Errors
/// The first key that may change the mathematics, by name.
pub(super) fn check(family: Family, keys: &Map<String, Value>) -> Result<(), String> {
    let name = family.model_type();
    for (key, value) in keys {
        let key = key.as_str();
        let off = match value {
            Value::Null | Value::Bool(false) => true,
            Value::Array(a) => a.is_empty(),
            Value::Object(o) => o.is_empty(),
            Value::String(s) => s.is_empty(),
            _ => false,
        };
        if read(family).contains(&key) {
            continue;
        }
        if REFUSED.contains(&key) || FACTORS.contains(&key) {
            let one = FACTORS.contains(&key) && value.as_f64() == Some(1.0);
            if !(value.is_null() || one) {
                return Err(format!("`{key}` changes the mathematics and is not supported yet"));
            }
            continue;
        }
        if let Some(only) = fixed(family, key) {
            if !value.is_null() && *value != only {
                let plain = |v: &Value| v.as_str().map_or_else(|| v.to_string(), str::to_owned);
                return Err(format!("{key} `{}` is not supported; known: {}", plain(value), plain(&only)));
            }
            continue;
        }
        if key == "problem_type" && !off && value != "single_label_classification" {
            return Err(format!("problem_type {value} is not supported; known: single_label_classification"));
        }
        if !(off || is_free(family, key)) {
            return Err(format!(
                "`{key}` is {value}: not a key that is known for {name}, and it may change the mathematics; if it does not, take it \
                 out of config.json"
            ));
        }
    }
    Ok(())
}

fn is_free(family: Family, key: &str) -> bool {
    let n = family.names();
    let sizes = [
        n.hidden_size,
        n.intermediate_size,
        n.num_hidden_layers,
        n.num_attention_heads,
        n.max_position_embeddings,
        n.norm_eps,
        n.activation,
    ];
    let rotary = ["head_dim", "num_key_value_heads", "rope_theta", "rope_scaling", "rope_parameters", "layer_types"];
    FREE.contains(&key)
        || sizes.contains(&key)
        || (family.rotates() && rotary.contains(&key))
        || key == "problem_type"
        // A base's own dropout is not applied while an adapter learns, and never when it answers.
        || key.ends_with("dropout")
        || key.ends_with("dropout_prob")
        || key.ends_with("_pdrop")
        || key.ends_with("_token_id")
        || key.starts_with('_')
        || key.starts_with("summary_")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn refusal(family: Family, json: Value) -> Option<String> {
        check(family, json.as_object().unwrap()).err()
    }

    #[test]
    fn keys_that_are_off_or_metadata_pass() {
        let json = json!({"unheard_of": null, "also": false, "empty": [], "summary_type": "cls_index", "attn_pdrop": 0.1,
            "_name_or_path": "gpt2", "n_ctx": 1024, "scale_attn_weights": true, "problem_type": "single_label_classification"});
        assert_eq!(refusal(Family::Gpt2, json), None);
        assert_eq!(refusal(Family::Phi3, json!({"partial_rotary_factor": 0.75, "interpolate_factor": 1})), None);
    }

    #[test]
    fn a_key_of_another_family_is_refused_by_name() {
        let told = refusal(Family::Llama, json!({"query_pre_attn_scalar": 256})).unwrap();
        assert!(told.starts_with("`query_pre_attn_scalar` is 256: not a key that is known for llama"), "{told}");
        assert!(refusal(Family::Bert, json!({"rope_theta": 10000.0})).is_some());
        assert!(refusal(Family::Mistral, json!({"attention_bias": true})).is_some());
        assert!(refusal(Family::DistilBert, json!({"sinusoidal_pos_embds": true})).is_some());
    }

    #[test]
    fn what_is_known_to_change_the_mathematics_is_refused() {
        for (family, key, value) in [
            (Family::Gemma3, "final_logit_softcapping", json!(30.0)),
            (Family::Gemma3, "use_bidirectional_attention", json!(true)),
            (Family::Gpt2, "scale_attn_by_inverse_layer_idx", json!(true)),
            (Family::Gpt2, "scale_attn_weights", json!(false)),
            (Family::Llama, "partial_rotary_factor", json!(0.5)),
            (Family::Roberta, "position_embedding_type", json!("relative_key")),
            (Family::Bert, "is_decoder", json!(true)),
            (Family::Bert, "problem_type", json!("multi_label_classification")),
        ] {
            let told = refusal(family, json!({ key: value })).unwrap_or_else(|| panic!("{key} passed"));
            assert!(told.contains(key), "{told}");
        }
    }
}
