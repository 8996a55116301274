//! tokenizer.json -> GGUF tokenizer keys, and the proof that both give the same ids.
//!
//! A file carries its tokenizer twice: as `tokenizer.ggml.*`, which llama.cpp rebuilds a tokenizer from, and whole as
//! `tokenizer.huggingface.json`, which this project's runtime reads. The first is a translation into three fixed algorithms,
//! so it is matched by structure, never by name, and [`prove`] then encodes hard text both ways.
//!
//! - [`bpe`]: byte-level BPE, `gpt2`, with the pre-tokenizer chosen by its regex
//! - [`sentencepiece`]: BPE over characters with byte fallback, `llama`
//! - [`wordpiece`]: WordPiece, `bert`

pub mod bpe;
mod json;
pub mod proof;
pub mod sentencepiece;
pub mod wordpiece;

pub use proof::{FirstDifference, prove};

use crate::{
    error::{Error, Result},
    source::{Arch, ModelSpec},
};
use edgeft_runtime::format::gguf::{Array, Value};
use json::Json;
use regex::Regex;

/// What a model folder says about its tokenizer. Ids are those of the tokens' rows.
#[derive(Debug, Clone, Default)]
pub struct TokenizerFiles {
    /// `tokenizer.json`, whole. Without it the file says `no_vocab`.
    pub tokenizer_json: Option<Vec<u8>>,
    /// The chat template's text.
    pub chat_template: Option<String>,
    /// Beginning of sequence.
    pub bos: Option<u32>,
    /// End of sequence.
    pub eos: Option<u32>,
    /// End of a turn, where it is not `eos`.
    pub eot: Option<u32>,
    /// Padding.
    pub pad: Option<u32>,
    /// Unknown.
    pub unk: Option<u32>,
    /// Whether encoding with special tokens puts `bos` first.
    pub add_bos: bool,
    /// Whether encoding with special tokens puts `eos` last.
    pub add_eos: bool,
    /// `tokenizer.model`, for SentencePiece scores; without it they come from the order of the merges.
    pub sentencepiece_model: Option<Vec<u8>>,
}

/// `tokenizer.ggml.token_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
pub enum TokenType {
    /// Text.
    Normal = 1,
    /// Stands for what cannot be encoded.
    Unknown = 2,
    /// Not text: bos, eos, turn markers.
    Control = 3,
    /// Added by hand, matched before everything else.
    UserDefined = 4,
    /// No token: a row of the embedding that the tokenizer does not reach.
    Unused = 5,
    /// One byte.
    Byte = 6,
}

/// A tokenizer in GGUF's terms.
#[derive(Debug, Clone)]
pub struct Vocabulary {
    /// `tokenizer.ggml.model`.
    pub model: &'static str,
    /// `tokenizer.ggml.pre`, for byte-level BPE.
    pub pre: Option<&'static str>,
    /// By id, padded to the rows of the embedding.
    pub tokens: Vec<String>,
    /// By id.
    pub types: Vec<TokenType>,
    /// By id, for SentencePiece.
    pub scores: Option<Vec<f32>>,
    /// "a b", best first, for byte-level BPE.
    pub merges: Option<Vec<String>>,
    /// Keys that only one algorithm has.
    pub more: Vec<(&'static str, Value)>,
}

/// The tokenizer's keys, in file order.
///
/// # Errors
/// A tokenizer.json that is malformed or that GGUF cannot express, more tokens than embedding rows, a special id beyond them.
pub fn keys(files: &TokenizerFiles, spec: &ModelSpec) -> Result<Vec<(String, Value)>> {
    let mut keys: Vec<(String, Value)> = Vec::new();
    let mut put = |key: &str, value: Value| keys.push((format!("tokenizer.{key}"), value));
    match &files.tokenizer_json {
        None => put("ggml.model", Value::Str("no_vocab".into())),
        Some(bytes) => {
            let mut v = vocabulary(bytes, files.sentencepiece_model.as_deref(), spec.vocab_size)?;
            if spec.arch.is_encoder() && v.model == "gpt2" {
                v.more.extend(bpe::frame(&Json::parse(bytes)?)?);
            }
            put("ggml.model", Value::Str(v.model.into()));
            if let Some(pre) = v.pre {
                put("ggml.pre", Value::Str(pre.into()));
            }
            put("ggml.tokens", Value::Array(Array::Str(v.tokens)));
            if let Some(scores) = v.scores {
                put("ggml.scores", Value::Array(Array::F32(scores)));
            }
            put("ggml.token_type", Value::Array(Array::I32(v.types.iter().map(|t| *t as i32).collect())));
            if let Some(merges) = v.merges {
                put("ggml.merges", Value::Array(Array::Str(merges)));
            }
            let given = [
                ("ggml.bos_token_id", files.bos),
                ("ggml.eos_token_id", files.eos),
                ("ggml.eot_token_id", files.eot),
                ("ggml.unknown_token_id", files.unk),
                ("ggml.padding_token_id", files.pad),
            ];
            for (key, id) in given {
                if let Some(id) = id {
                    put(key, Value::U32(id));
                }
            }
            for (key, value) in v.more {
                if !given.iter().any(|(k, id)| *k == key && id.is_some()) {
                    put(key, value);
                }
            }
            put("ggml.add_bos_token", Value::Bool(files.add_bos));
            put("ggml.add_eos_token", Value::Bool(files.add_eos));
            let text = std::str::from_utf8(bytes).map_err(|e| Error::Tokenizer(e.to_string()))?;
            put("huggingface.json", Value::Str(text.into()));
        }
    }
    if let Some(template) = &files.chat_template {
        put("chat_template", Value::Str(template.clone()));
    }
    if spec.arch.is_encoder() {
        // llama.cpp loads no encoder without one.
        put("ggml.token_type_count", Value::U32(spec.type_vocab_size.max(1) as u32));
    }
    for (key, value) in &keys {
        if let Value::U32(id) = value
            && key.ends_with("_token_id")
            && *id as usize >= spec.vocab_size
        {
            let problem = format!("it is {id}, but the embedding has {} rows", spec.vocab_size);
            return Err(Error::Metadata { key: key.clone(), problem });
        }
    }
    Ok(keys)
}

/// Translates a tokenizer.json, padded to `rows` tokens.
///
/// # Errors
/// As [`keys`].
pub fn vocabulary(tokenizer_json: &[u8], sentencepiece_model: Option<&[u8]>, rows: usize) -> Result<Vocabulary> {
    let json = Json::parse(tokenizer_json)?;
    let mut v = match json.kind()? {
        json::Kind::ByteLevel => bpe::vocabulary(&json)?,
        json::Kind::SentencePiece => sentencepiece::vocabulary(&json, sentencepiece_model)?,
        json::Kind::WordPiece => wordpiece::vocabulary(&json)?,
    };
    if v.tokens.len() > rows {
        return Err(Error::MoreTokensThanRows { tokens: v.tokens.len(), rows });
    }
    for id in v.tokens.len()..rows {
        v.tokens.push(unused(id));
    }
    v.types.resize(rows, TokenType::Unused);
    if let Some(scores) = &mut v.scores {
        scores.resize(rows, sentencepiece::LOWEST);
    }
    Ok(v)
}

/// The name of a row without a token, as llama.cpp's converter writes it.
fn unused(id: usize) -> String {
    format!("[PAD{id}]")
}

/// The name under which llama.cpp reads a tokenizer as it is meant. Phi-3's markers take the spaces behind them along, which
/// no key says: llama.cpp does so in models that are called Phi-3.
///
/// # Errors
/// A malformed tokenizer.json.
pub(crate) fn telling_name(files: &TokenizerFiles, spec: &ModelSpec) -> Result<Option<String>> {
    let Some(bytes) = &files.tokenizer_json else { return Ok(None) };
    let json = Json::parse(bytes)?;
    let strips = json.added()?.iter().any(|(_, token, _)| json.strips(token, "rstrip"));
    let called = Regex::new("(?i)(phi)-?3").map_err(|e| Error::Tokenizer(e.to_string()))?;
    Ok(match (strips, called.is_match(&spec.name)) {
        (true, false) if spec.arch == Arch::Phi3 => Some(format!("{} (phi3)", spec.name)),
        // A model that is only called so would lose spaces there.
        (false, true) => Some(called.replace_all(&spec.name, "$1 3").into_owned()),
        _ => None,
    })
}

/// Whether the post-processor puts `bos` first and `eos` last when a single text is encoded with special tokens.
///
/// # Errors
/// A malformed tokenizer.json.
pub fn added_by_template(tokenizer_json: &[u8], bos: Option<u32>, eos: Option<u32>) -> Result<(bool, bool)> {
    let (first, last) = Json::parse(tokenizer_json)?.template()?;
    Ok((first.is_some() && first == bos, last.is_some() && last == eos))
}

#[cfg(test)]
mod tests;
