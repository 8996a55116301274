//! A model folder, a RUN or `nano` → an ONNX folder: graph, weights, tokenizer, and the configs that other programs read.

use super::{provenance, specials};
use crate::merge::{Exported, merged_config};
use crate::model::layers::contrast::Pooling;
use crate::model::network::Task;
use crate::model::open::{Opened, POOLING_FILE};
use anyhow::Context;
use edgeft_quantize::onnx::{MODEL_FILE, Operators};
use edgeft_quantize::{Mix, PlanOptions, Report, plan, write_onnx_folder};
use serde_json::{Value, json};
use std::path::Path;

/// Writes an ONNX folder.
///
/// # Errors
/// A tensor without a rule, a type that ONNX's operators cannot express, an output that exists.
pub fn to_folder(
    opened: &Opened,
    mix: Mix,
    options: &PlanOptions,
    operators: Operators,
    out: &Path,
    force: bool,
    progress: &mut dyn FnMut(u64, u64),
) -> anyhow::Result<Report> {
    let merged = Exported::new(opened)?;
    let cannot = || format!("cannot convert {} to ONNX", opened.name);
    let plan = plan(&merged, mix, options).with_context(cannot)?;
    let (keys, files) = (provenance(opened, &plan)?, files(opened, operators)?);
    write_onnx_folder(&merged, &plan, operators, &keys, &files, out, force, progress).with_context(cannot)
}

/// What lies beside the model, by name.
fn files(opened: &Opened, operators: Operators) -> anyhow::Result<Vec<(&'static str, Vec<u8>)>> {
    let pretty = |json: &Value| serde_json::to_vec_pretty(json);
    let mut files = vec![("config.json", pretty(&merged_config(opened)?)?)];
    if let Some(json) = &opened.text.tokenizer_json {
        files.push(("tokenizer.json", json.clone()));
        let mut config = opened.text.tokenizer_config.clone().unwrap_or_else(|| json!({}));
        // One place for the template, and the one that everybody reads.
        if let (Some(template), Some(config)) = (&opened.text.chat_template, config.as_object_mut()) {
            config.insert("chat_template".into(), json!(template));
        }
        files.push(("tokenizer_config.json", pretty(&config)?));
    }
    files.extend(pooling_files(opened, opened.task()?.as_ref())?);
    if matches!(opened.task()?, Some(Task::Generate)) {
        files.push(("genai_config.json", pretty(&genai_config(opened, operators)?)?));
    }
    Ok(files)
}

/// What sentence-transformers reads of a model that gives vectors: pooling, and the modules in order; none of others.
pub fn pooling_files(opened: &Opened, task: Option<&Task>) -> anyhow::Result<Vec<(&'static str, Vec<u8>)>> {
    let Some(Task::Embed(pooling)) = task else { return Ok(Vec::new()) };
    let pooling = json!({
        "word_embedding_dimension": opened.config.hidden_size,
        "pooling_mode_cls_token": *pooling == Pooling::Cls,
        "pooling_mode_mean_tokens": *pooling == Pooling::Mean,
        "pooling_mode_max_tokens": false,
        "pooling_mode_mean_sqrt_len_tokens": false,
    });
    let module = |i: usize, path: &str, name: &str| json!({"idx": i, "name": i.to_string(), "path": path, "type": format!("sentence_transformers.models.{name}")});
    let modules =
        json!([module(0, "", "Transformer"), module(1, "1_Pooling", "Pooling"), module(2, "2_Normalize", "Normalize")]);
    let sentences = json!({"max_seq_length": opened.config.max_position_embeddings, "do_lower_case": false});
    [(POOLING_FILE, pooling), ("modules.json", modules), ("sentence_bert_config.json", sentences)]
        .into_iter()
        .map(|(name, json)| Ok((name, serde_json::to_vec_pretty(&json)?)))
        .collect()
}

/// `genai_config.json` of onnxruntime-genai: shape, names of inputs and outputs, ids that end a text.
fn genai_config(opened: &Opened, operators: Operators) -> anyhow::Result<Value> {
    let config = &opened.config;
    let special = specials(opened)?;
    let mut ends = config.eos_token_ids.clone();
    ends.extend([special.eos, special.eot].into_iter().flatten());
    let mut seen = std::collections::BTreeSet::new();
    ends.retain(|id| seen.insert(*id));
    let pad = special.pad.or(ends.first().copied());
    let mut model = json!({
        "type": config.family.model_type(),
        "vocab_size": config.vocab_size,
        "context_length": config.max_position_embeddings,
        "decoder": {
            "session_options": {"provider_options": []},
            "filename": MODEL_FILE,
            "head_size": config.head_dim,
            "hidden_size": config.hidden_size,
            "num_attention_heads": config.num_attention_heads,
            "num_key_value_heads": config.num_key_value_heads,
            "num_hidden_layers": config.num_hidden_layers,
            "inputs": {
                "input_ids": "input_ids",
                "attention_mask": "attention_mask",
                "past_key_names": "past_key_values.%d.key",
                "past_value_names": "past_key_values.%d.value",
            },
            "outputs": {
                "logits": "logits",
                "present_key_names": "present.%d.key",
                "present_value_names": "present.%d.value",
            },
        },
    });
    if operators.takes_positions(config.head_dim) {
        model["decoder"]["inputs"]["position_ids"] = json!("position_ids");
    }
    // A key that is there must be a number; a model without such a token has no key.
    for (key, id) in [("bos_token_id", special.bos), ("pad_token_id", pad)] {
        if let Some(id) = id {
            model[key] = json!(id);
        }
    }
    if !ends.is_empty() {
        model["eos_token_id"] = json!(ends);
    }
    Ok(json!({
        "model": model,
        "search": {
            "max_length": config.max_position_embeddings,
            // In standard operators the cache grows by concatenation: past and present are two buffers.
            "past_present_share_buffer": operators == Operators::Ort,
            "do_sample": false,
            "num_beams": 1,
            "num_return_sequences": 1,
            "temperature": 1.0,
            "top_k": 1,
            "top_p": 1.0,
            "repetition_penalty": 1.0,
            "length_penalty": 1.0,
            "early_stopping": true,
        },
    }))
}
