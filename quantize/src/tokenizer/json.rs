//! tokenizer.json as far as a translation needs it.

use super::{TokenType, unused};
use crate::error::{Error, Result};
use serde_json::Value;
use std::collections::HashMap;

/// The algorithms GGUF has a name for.
pub(super) enum Kind {
    ByteLevel,
    SentencePiece,
    WordPiece,
}

/// A parsed tokenizer.json.
pub(super) struct Json(Value);

/// Shorthand for a refusal.
pub(super) fn refuse<T>(why: impl Into<String>) -> Result<T> {
    Err(Error::Tokenizer(why.into()))
}

impl Json {
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        serde_json::from_slice(bytes).map(Self).map_err(|e| Error::Tokenizer(e.to_string()))
    }

    pub fn at(&self, pointer: &str) -> Option<&Value> {
        self.0.pointer(pointer).filter(|v| !v.is_null())
    }

    pub fn str(&self, pointer: &str) -> Option<&str> {
        self.at(pointer)?.as_str()
    }

    /// The algorithm, by structure: files older than the `type` field have none.
    pub fn kind(&self) -> Result<Kind> {
        let bpe = self.at("/model/merges").is_some();
        match self.str("/model/type") {
            Some("WordPiece") => Ok(Kind::WordPiece),
            Some("BPE") | None if bpe => {
                let steps = self.pre_tokenizers();
                let byte_level = steps.iter().any(|s| s["type"] == "ByteLevel");
                Ok(if byte_level { Kind::ByteLevel } else { Kind::SentencePiece })
            }
            Some(other) => refuse(format!(
                "`model.type` is {other}, which has no GGUF translation here; BPE and WordPiece have. Export without the \
                 tokenizer, or with one of those"
            )),
            None => refuse("`model.type` is missing, and there are no `model.merges`"),
        }
    }

    /// The pre-tokenizer's steps, a sequence flattened.
    pub fn pre_tokenizers(&self) -> Vec<&Value> {
        steps(self.at("/pre_tokenizer"), "pretokenizers")
    }

    /// The normalizer's steps, a sequence flattened.
    pub fn normalizers(&self) -> Vec<&Value> {
        steps(self.at("/normalizer"), "normalizers")
    }

    /// `model.vocab` and `added_tokens` by id, gaps filled with unused rows; `rename` gets each token of the vocabulary that
    /// was not added.
    pub fn tokens(&self, rename: impl Fn(&str) -> String) -> Result<(Vec<String>, Vec<TokenType>)> {
        let Some(vocab) = self.at("/model/vocab").and_then(Value::as_object) else {
            return refuse("`model.vocab` is not an object of token to id");
        };
        let mut by_id: HashMap<usize, (String, TokenType)> = HashMap::with_capacity(vocab.len());
        for (token, id) in vocab {
            let Some(id) = id.as_u64() else {
                return refuse(format!("the id of `{token}` in `model.vocab` is {id}"));
            };
            if let Some((other, _)) = by_id.insert(id as usize, (rename(token), TokenType::Normal)) {
                return refuse(format!("`{other}` and `{token}` in `model.vocab` are both id {id}"));
            }
        }
        for (id, content, special) in self.added()? {
            // llama.cpp takes tokens that look like a marker for one, whatever the flag says.
            let marker = content.starts_with("<|") && content.ends_with("|>");
            let kind = if special || marker { TokenType::Control } else { TokenType::UserDefined };
            by_id.insert(id, (content, kind));
        }
        let n = by_id.keys().max().map_or(0, |m| m + 1);
        if n > by_id.len() + (1 << 20) {
            return refuse(format!("the largest id is {}, but there are {} tokens", n - 1, by_id.len()));
        }
        Ok((0..n).map(|id| by_id.remove(&id).unwrap_or_else(|| (unused(id), TokenType::Unused))).unzip())
    }

    /// Id, content and the special flag of each added token.
    pub fn added(&self) -> Result<Vec<(usize, String, bool)>> {
        let list = self.at("/added_tokens").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        let read =
            |t: &Value| Some((t["id"].as_u64()? as usize, t["content"].as_str()?.to_string(), t["special"] == true));
        list.iter()
            .map(|t| read(t).ok_or_else(|| Error::Tokenizer(format!("`added_tokens` has no id or content in {t}"))))
            .collect()
    }

    /// Whether an added token takes the spaces at a side along: `lstrip`, `rstrip`.
    pub fn strips(&self, token: &str, side: &str) -> bool {
        let list = self.at("/added_tokens").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        list.iter().any(|t| t["content"] == token && t[side] == true)
    }

    /// The id of a token, wherever it is listed.
    pub fn id(&self, token: &str) -> Result<Option<u32>> {
        let added = self.added()?.into_iter().find(|(_, content, _)| content == token).map(|(id, ..)| id as u64);
        let id = added.or_else(|| self.at("/model/vocab")?.get(token)?.as_u64());
        Ok(id.map(|id| id as u32))
    }

    /// `model.merges` as pairs; both spellings exist.
    pub fn merges(&self) -> Result<Vec<(String, String)>> {
        let Some(list) = self.at("/model/merges").and_then(Value::as_array) else {
            return refuse("`model.merges` is not a list");
        };
        let pair = |m: &Value| match m {
            Value::String(s) => s.split_once(' ').map(|(a, b)| (a.to_string(), b.to_string())),
            Value::Array(p) => match p.as_slice() {
                [Value::String(a), Value::String(b)] => Some((a.clone(), b.clone())),
                _ => None,
            },
            _ => None,
        };
        let bad = |i, m| Error::Tokenizer(format!("`model.merges[{i}]` is {m}, not a pair of tokens"));
        list.iter().enumerate().map(|(i, m)| pair(m).ok_or_else(|| bad(i, m))).collect()
    }

    /// Ids that the post-processor puts before and after a single text.
    pub fn template(&self) -> Result<(Option<u32>, Option<u32>)> {
        for step in steps(self.at("/post_processor"), "processors") {
            let (first, last) = match step["type"].as_str() {
                Some("TemplateProcessing") => {
                    let single = step["single"].as_array().map(Vec::as_slice).unwrap_or_default();
                    let special =
                        |piece: Option<&Value>| Some(piece?.pointer("/SpecialToken/id")?.as_str()?.to_string());
                    (special(single.first()), special(single.last()))
                }
                Some("BertProcessing" | "RobertaProcessing") => {
                    let name = |key: &str| Some(step[key][0].as_str()?.to_string());
                    (name("cls"), name("sep"))
                }
                _ => continue,
            };
            let id = |token: Option<String>| token.map_or(Ok(None), |t| self.id(&t));
            return Ok((id(first)?, id(last)?));
        }
        Ok((None, None))
    }
}

fn steps<'a>(step: Option<&'a Value>, list: &str) -> Vec<&'a Value> {
    match step {
        None => Vec::new(),
        Some(s) if s["type"] == "Sequence" => {
            s[list].as_array().map_or(Vec::new(), |a| a.iter().flat_map(|s| steps(Some(s), list)).collect())
        }
        Some(s) => vec![s],
    }
}
