//! WordPiece (`bert`). GGUF marks the start of a word with U+2581 where tokenizer.json marks its continuation with `##`.

use super::{
    Vocabulary,
    json::{Json, refuse},
};
use crate::error::Result;
use edgeft_runtime::format::gguf::Value;

pub(super) fn vocabulary(json: &Json) -> Result<Vocabulary> {
    let prefix = json.str("/model/continuing_subword_prefix").unwrap_or("##");
    if prefix != "##" {
        return refuse(format!("continuing_subword_prefix is `{prefix}`, but GGUF's WordPiece knows only `##`"));
    }
    let (tokens, types) = json.tokens(|t| match t.strip_prefix("##") {
        Some(rest) => rest.to_string(),
        None => format!("\u{2581}{t}"),
    })?;
    let mut more = Vec::new();
    let (first, last) = json.template()?;
    // llama.cpp puts bos before and sep after, so they are BERT's [CLS] and [SEP].
    for (key, id) in [
        ("ggml.bos_token_id", first),
        ("ggml.cls_token_id", first),
        ("ggml.seperator_token_id", last),
        ("ggml.unknown_token_id", json.id(json.str("/model/unk_token").unwrap_or("[UNK]"))?),
        ("ggml.padding_token_id", json.id("[PAD]")?),
        ("ggml.mask_token_id", json.id("[MASK]")?),
    ] {
        if let Some(id) = id {
            more.push((key, Value::U32(id)));
        }
    }
    let normalizer = json.normalizers().into_iter().find(|n| n["type"] == "BertNormalizer");
    let Some(normalizer) = normalizer else {
        return refuse("a WordPiece without a BertNormalizer has no GGUF translation");
    };
    let lowercase = normalizer["lowercase"] != false;
    // null means: as lowercase says.
    let strip_accents = normalizer["strip_accents"].as_bool().unwrap_or(lowercase);
    more.push(("ggml.normalizer.lowercase", Value::Bool(lowercase)));
    more.push(("ggml.normalizer.strip_accents", Value::Bool(strip_accents)));
    Ok(Vocabulary { model: "bert", pre: None, tokens, types, scores: None, merges: None, more })
}
