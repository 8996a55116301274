//! BPE over characters with byte fallback (`llama`). GGUF's algorithm merges the neighbours whose joined piece scores best;
//! tokenizer.json lists merges, best first. A piece's score is therefore minus the rank of the first merge that makes it.

use super::{
    TokenType, Vocabulary,
    json::{Json, refuse},
};
use crate::error::{Error, Result};
use edgeft_runtime::format::gguf::Value;
use std::collections::HashMap;

/// Score of a piece that no merge may make, below every rank that f32 tells apart.
pub(super) const LOWEST: f32 = -1e9;

pub(super) fn vocabulary(json: &Json, model: Option<&[u8]>) -> Result<Vocabulary> {
    if json.at("/model/byte_fallback").is_none_or(|v| v != true) {
        return refuse("a BPE without a ByteLevel step and without `byte_fallback` has no GGUF translation");
    }
    let (mut tokens, mut types) = json.tokens(str::to_string)?;
    let unknown = json.str("/model/unk_token");
    for (token, kind) in tokens.iter_mut().zip(&mut types) {
        if Some(token.as_str()) == unknown {
            *kind = TokenType::Unknown;
        } else if *kind == TokenType::Normal && is_byte(token) {
            *kind = TokenType::Byte;
        } else if *kind == TokenType::UserDefined {
            *token = token.replace('\u{2581}', " ");
        }
    }
    let scores = match model {
        Some(model) => from_model(model, &tokens)?,
        None => from_merges(json, &tokens, &types)?,
    };
    let more = vec![("ggml.add_space_prefix", Value::Bool(prefix(json)?))];
    Ok(Vocabulary { model: "llama", pre: Some("default"), tokens, types, scores: Some(scores), merges: None, more })
}

/// `<0x00>` ..= `<0xFF>`.
fn is_byte(token: &str) -> bool {
    let hex = token.strip_prefix("<0x").and_then(|t| t.strip_suffix('>'));
    hex.is_some_and(|h| h.len() == 2 && u8::from_str_radix(h, 16).is_ok())
}

/// Minus the rank of the first merge that makes each piece; single characters never come from a merge and rank last.
fn from_merges(json: &Json, tokens: &[String], types: &[TokenType]) -> Result<Vec<f32>> {
    let merges = json.merges()?;
    let mut rank: HashMap<String, usize> = HashMap::with_capacity(merges.len());
    for (i, (a, b)) in merges.iter().enumerate() {
        rank.entry(format!("{a}{b}")).or_insert(i);
    }
    let mut last = merges.len();
    let mut score = |token: &String, kind: &TokenType| match kind {
        TokenType::Normal => match rank.get(token) {
            Some(&r) => -(r as f32),
            None if token.chars().count() == 1 => {
                last += 1;
                -(last as f32)
            }
            None => LOWEST,
        },
        TokenType::Unused | TokenType::UserDefined => LOWEST,
        TokenType::Unknown | TokenType::Control | TokenType::Byte => 0.0,
    };
    Ok(tokens.iter().zip(types).map(|(t, k)| score(t, k)).collect())
}

/// Whether a space goes before the text.
fn prefix(json: &Json) -> Result<bool> {
    let normalizers = json.normalizers();
    let pre_tokenizers = json.pre_tokenizers();
    let (mut prefix, mut spaces) = (false, false);
    for step in &normalizers {
        match step["type"].as_str() {
            Some("Prepend") if step["prepend"] == "\u{2581}" => prefix = true,
            Some("Replace") if step["pattern"]["String"] == " " && step["content"] == "\u{2581}" => spaces = true,
            _ => return refuse(format!("the normalizer {step} has no GGUF translation")),
        }
    }
    for step in &pre_tokenizers {
        match step["type"].as_str() {
            Some("Metaspace") if step["replacement"] == "\u{2581}" => {
                spaces = true;
                prefix |= match step["prepend_scheme"].as_str() {
                    Some(scheme) => scheme != "never",
                    None => step["add_prefix_space"] != false,
                };
            }
            // Gemma's: it would cut behind spaces, of which the normalizer has left none.
            Some("Split") if spaces && step["pattern"]["String"] == " " => {}
            _ => return refuse(format!("the pre-tokenizer {step} has no GGUF translation for SentencePiece")),
        }
    }
    if !spaces {
        return refuse("nothing turns spaces into U+2581, which GGUF's SentencePiece algorithm always does");
    }
    Ok(prefix)
}

/// Scores from a `tokenizer.model`: a protobuf whose field 1 repeats pieces of text (1) and score (2). Pieces that the
/// model does not have (added later) rank lowest.
fn from_model(model: &[u8], tokens: &[String]) -> Result<Vec<f32>> {
    let bad = |what: &str| Error::Tokenizer(format!("tokenizer.model: {what}"));
    let mut scores = HashMap::new();
    for field in fields(model) {
        let (1, Field::Bytes(piece)) = field.ok_or_else(|| bad("not a protobuf message"))? else { continue };
        let (mut text, mut score) = (None, 0.0);
        for field in fields(piece) {
            match field.ok_or_else(|| bad("a piece is cut short"))? {
                (1, Field::Bytes(b)) => text = std::str::from_utf8(b).ok(),
                (2, Field::Fixed32(b)) => score = f32::from_le_bytes(b),
                _ => {}
            }
        }
        scores.insert(text.ok_or_else(|| bad("a piece has no text"))?.to_string(), score);
    }
    if scores.is_empty() {
        return Err(bad("it has no pieces"));
    }
    Ok(tokens.iter().map(|t| scores.get(t).copied().unwrap_or(LOWEST)).collect())
}

enum Field<'a> {
    Other,
    Fixed32([u8; 4]),
    Bytes(&'a [u8]),
}

/// Number and value of each field of a protobuf message; `None` once where it is malformed.
fn fields(mut b: &[u8]) -> impl Iterator<Item = Option<(u64, Field<'_>)>> {
    let mut broken = false;
    std::iter::from_fn(move || {
        if b.is_empty() || broken {
            return None;
        }
        let field = field(&mut b);
        broken = field.is_none();
        Some(field)
    })
}

fn field<'a>(b: &mut &'a [u8]) -> Option<(u64, Field<'a>)> {
    let key = varint(b)?;
    let mut take = |n: usize| {
        let (head, rest) = b.split_at_checked(n)?;
        *b = rest;
        Some(head)
    };
    let value = match key & 7 {
        0 => {
            varint(b)?;
            Field::Other
        }
        1 => take(8).map(|_| Field::Other)?,
        5 => Field::Fixed32(take(4)?.try_into().ok()?),
        2 => {
            let n = usize::try_from(varint(b)?).ok()?;
            let (head, rest) = b.split_at_checked(n)?;
            *b = rest;
            Field::Bytes(head)
        }
        _ => return None,
    };
    Some((key >> 3, value))
}

fn varint(b: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = b.split_first()?;
        *b = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}
