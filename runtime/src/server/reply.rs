//! What the session gave -> JSON in OpenAI's shapes, whole or in chunks.

use super::wire::{ApiError, ApiResult};
use crate::session::{Answer, FinishReason, Generation, LabelScore, TokenLogprobs};
use crate::tokenizer::Tokenizer;
use axum::http::StatusCode;
use serde_json::{Map, Value, json};
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

/// What all objects of one answer share.
#[derive(Clone)]
pub(super) struct Head {
    id: String,
    created: u64,
    model: Arc<str>,
    chat: bool,
}

impl Head {
    pub fn new(chat: bool, model: Arc<str>) -> Self {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        // Unlike any other answer's, also after a restart: the hasher's keys are random.
        let mark = RandomState::new().hash_one(COUNT.fetch_add(1, Ordering::Relaxed));
        let id = format!("{}-{mark:016x}", if chat { "chatcmpl" } else { "cmpl" });
        Self { id, created: now(), model, chat }
    }

    fn object(&self, kind: &str, choices: Value) -> Value {
        json!({"id": self.id, "object": kind, "created": self.created, "model": &*self.model, "choices": choices})
    }
}

/// Seconds since 1970.
pub(super) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

/// Log-probabilities of the tokens of one answer, in the shape of its endpoint.
pub(super) struct Logprobs {
    tokenizer: Option<Arc<Tokenizer>>,
    chat: bool,
    /// Characters so far, for `text_offset`.
    offset: usize,
}

impl Logprobs {
    pub fn new(tokenizer: Option<Arc<Tokenizer>>, chat: bool) -> Self {
        Self { tokenizer, chat, offset: 0 }
    }

    fn bytes(&self, id: u32) -> &[u8] {
        self.tokenizer.as_ref().map_or(&[], |t| t.decode_piece(id))
    }

    fn text(&self, id: u32) -> String {
        String::from_utf8_lossy(self.bytes(id)).into_owned()
    }

    /// The log-probabilities of a few tokens in order, or `null` for none.
    pub fn json(&mut self, tokens: &[(u32, TokenLogprobs)]) -> Value {
        if tokens.is_empty() {
            return Value::Null;
        }
        if self.chat {
            let entry = |id: u32, p: f64| json!({"token": self.text(id), "logprob": p, "bytes": self.bytes(id)});
            let all: Vec<Value> = tokens
                .iter()
                .map(|(id, l)| {
                    let mut one = entry(*id, l.logprob);
                    one["top_logprobs"] = l.top.iter().map(|&(id, p)| entry(id, p)).collect();
                    one
                })
                .collect();
            return json!({"content": all, "refusal": null});
        }
        let mut offsets = Vec::with_capacity(tokens.len());
        for (id, _) in tokens {
            offsets.push(self.offset);
            self.offset += self.text(*id).chars().count();
        }
        let top = |l: &TokenLogprobs| l.top.iter().map(|&(id, p)| (self.text(id), p.into())).collect::<Map<_, _>>();
        json!({
            "tokens": tokens.iter().map(|(id, _)| self.text(*id)).collect::<Vec<_>>(),
            "token_logprobs": tokens.iter().map(|(_, l)| l.logprob).collect::<Vec<_>>(),
            "top_logprobs": tokens.iter().map(|(_, l)| top(l)).collect::<Vec<_>>(),
            "text_offset": offsets,
        })
    }
}

/// An answer in one piece.
pub(super) fn whole(head: &Head, generation: &Generation, logprobs: Value) -> ApiResult<Value> {
    let reason = finish_reason(generation)?;
    let text = &generation.text;
    let mut choice = match head.chat {
        true => json!({"index": 0, "message": {"role": "assistant", "content": text}}),
        false => json!({"index": 0, "text": text}),
    };
    choice["logprobs"] = logprobs;
    choice["finish_reason"] = reason.into();
    let mut out = head.object(if head.chat { "chat.completion" } else { "text_completion" }, json!([choice]));
    out["usage"] = usage(generation);
    Ok(out)
}

/// An answer in chunks.
pub(super) struct Chunks {
    head: Head,
    logprobs: Logprobs,
    include_usage: bool,
    begun: bool,
    /// Tokens whose text is still held back: half a character, or what may become a stop string.
    held: Vec<(u32, TokenLogprobs)>,
}

impl Chunks {
    pub fn new(head: Head, logprobs: Logprobs, include_usage: bool) -> Self {
        Self { head, logprobs, include_usage, begun: false, held: Vec::new() }
    }

    /// A chat begins with its role alone.
    fn begin(&mut self, out: &mut Vec<Value>) {
        if !std::mem::replace(&mut self.begun, true) && self.head.chat {
            out.push(self.chunk(json!({"role": "assistant", "content": ""}), "", Value::Null, Value::Null));
        }
    }

    fn chunk(&self, delta: Value, text: &str, logprobs: Value, reason: Value) -> Value {
        let mut choice = match self.head.chat {
            true => json!({"index": 0, "delta": delta}),
            false => json!({"index": 0, "text": text}),
        };
        choice["logprobs"] = logprobs;
        choice["finish_reason"] = reason;
        self.object(json!([choice]))
    }

    fn object(&self, choices: Value) -> Value {
        let kind = if self.head.chat { "chat.completion.chunk" } else { "text_completion" };
        let mut out = self.head.object(kind, choices);
        if self.include_usage {
            out["usage"] = Value::Null;
        }
        out
    }

    /// Chunks of a token; none while its text is held back.
    pub fn piece(&mut self, token: Option<u32>, text: &str, logprobs: Option<TokenLogprobs>) -> Vec<Value> {
        let mut out = Vec::new();
        self.begin(&mut out);
        self.held.extend(token.zip(logprobs));
        if !text.is_empty() {
            let logprobs = self.logprobs.json(&std::mem::take(&mut self.held));
            out.push(self.chunk(json!({"content": text}), text, logprobs, Value::Null));
        }
        out
    }

    /// The chunk with the reason, and the one with the usage when that was asked for.
    pub fn end(&mut self, generation: &Generation) -> ApiResult<Vec<Value>> {
        let reason = finish_reason(generation)?;
        let mut out = Vec::new();
        self.begin(&mut out);
        let logprobs = self.logprobs.json(&std::mem::take(&mut self.held));
        out.push(self.chunk(json!({}), "", logprobs, reason.into()));
        if self.include_usage {
            let mut last = self.object(json!([]));
            last["usage"] = usage(generation);
            out.push(last);
        }
        Ok(out)
    }
}

impl ApiError {
    /// The server stops, or the engine is gone, before an answer was whole.
    pub fn broken_off() -> Self {
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "broken_off",
            "the server stopped before the answer was whole; ask again",
        )
    }
}

/// A client that is still there never asked to break off: only a server that stops does.
fn finish_reason(generation: &Generation) -> ApiResult<&'static str> {
    match generation.finish_reason {
        FinishReason::Cancelled => Err(ApiError::broken_off()),
        reason => Ok(reason.as_str()),
    }
}

fn usage(generation: &Generation) -> Value {
    let (prompt, completion) = (generation.timings.prompt_tokens, generation.token_ids.len());
    json!({
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": generation.timings.cached_tokens},
    })
}

/// `POST /v1/classify`.
pub(super) fn classified(model: &str, all: &[Vec<LabelScore>], tokens: usize) -> Value {
    let data: Vec<Value> = all
        .iter()
        .enumerate()
        .map(|(index, scores)| {
            let map: Map<String, Value> = scores.iter().map(|s| (s.label.clone(), s.score.into())).collect();
            json!({"index": index, "label": scores.first().map(|s| &s.label), "scores": map})
        })
        .collect();
    json!({"model": model, "data": data, "usage": {"prompt_tokens": tokens, "total_tokens": tokens}})
}

/// `POST /v1/answer`.
pub(super) fn answered(model: &str, answer: &Answer) -> Value {
    json!({"model": model, "answer": answer.answer, "start": answer.start, "end": answer.end, "score": answer.score,
        "no_answer_score": answer.no_answer_score})
}
