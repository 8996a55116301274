//! What the session gave -> JSON in OpenAI's shapes, whole or in chunks.

#[cfg(feature = "constrain")]
use super::calls::{Call, Reader, Said};
use super::wire::{ApiError, ApiResult};
use crate::session::{Answer, FinishReason, Generation, LabelScore, TokenLogprobs};
use crate::tokenizer::Tokenizer;
use axum::http::StatusCode;
use serde_json::{Map, Value, json};
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

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

/// A chat's message of text alone.
pub(super) fn said(text: &str) -> Value {
    json!({"role": "assistant", "content": text})
}

/// An answer in one piece: all its choices, each with its log-probabilities.
/// - `message`: what a chat's text says, or calls
pub(super) fn whole(head: &Head, all: &[(Generation, Value)], message: impl Fn(&str) -> Value) -> ApiResult<Value> {
    let choice = |(index, (generation, logprobs)): (usize, &(Generation, Value))| {
        let mut reason = finish_reason(generation)?;
        let text = &generation.text;
        let mut choice = match head.chat {
            true => json!({"index": index, "message": message(text)}),
            false => json!({"index": index, "text": text}),
        };
        if choice["message"].get("tool_calls").is_some() {
            reason = called(reason);
        }
        choice["logprobs"] = logprobs.clone();
        choice["finish_reason"] = reason.into();
        Ok(choice)
    };
    let choices = all.iter().enumerate().map(choice).collect::<ApiResult<Vec<_>>>()?;
    let mut out = head.object(if head.chat { "chat.completion" } else { "text_completion" }, choices.into());
    out["usage"] = Usage::of(all.iter().map(|(generation, _)| generation)).json();
    Ok(out)
}

#[cfg(feature = "constrain")]
impl Call {
    /// With an id of its own: nine letters and digits, which every template takes.
    fn json(self) -> Value {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let mark = RandomState::new().hash_one(COUNT.fetch_add(1, Ordering::Relaxed));
        let id = &format!("{mark:016x}")[..9];
        json!({"id": id, "type": "function", "function": {"name": self.name, "arguments": self.arguments}})
    }
}

#[cfg(feature = "constrain")]
impl Reader {
    /// A whole text as a chat's message.
    pub fn message(mut self, text: &str) -> Value {
        let (mut content, mut calls) = (String::new(), Vec::new());
        let all = self.push(text).into_iter().chain(self.finish());
        for said in all {
            match said {
                Said::Text(text) => content.push_str(&text),
                Said::Call(call) => calls.push(call.json()),
            }
        }
        if calls.is_empty() {
            return said(&content);
        }
        let content = if content.is_empty() { Value::Null } else { content.into() };
        json!({"role": "assistant", "content": content, "tool_calls": calls})
    }
}

/// An answer in chunks.
pub(super) struct Chunks {
    head: Head,
    include_usage: bool,
    choices: Vec<Choice>,
    ended: usize,
    usage: Usage,
}

/// Why an answer ended that calls functions, unless it was cut.
fn called(reason: &'static str) -> &'static str {
    if reason == "stop" { "tool_calls" } else { reason }
}

/// What is told of one choice so far.
struct Choice {
    logprobs: Logprobs,
    begun: bool,
    /// Parts its text from its calls, where functions are offered; and the calls so far.
    #[cfg(feature = "constrain")]
    reader: Option<(Reader, usize)>,
    /// Tokens whose text is still held back: half a character, or what may become a stop string.
    held: Vec<(u32, TokenLogprobs)>,
}

impl Chunks {
    pub fn new(head: Head, tokenizer: Option<&Arc<Tokenizer>>, n: usize, include_usage: bool) -> Self {
        let choice = || Choice {
            logprobs: Logprobs::new(tokenizer.cloned(), head.chat),
            begun: false,
            #[cfg(feature = "constrain")]
            reader: None,
            held: Vec::new(),
        };
        Self { choices: (0..n).map(|_| choice()).collect(), head, include_usage, ended: 0, usage: Usage::default() }
    }

    /// The same, with the calls of functions told from the text.
    #[cfg(feature = "constrain")]
    pub fn reading(mut self, reader: Option<Reader>) -> Self {
        self.choices.iter_mut().for_each(|choice| choice.reader = reader.clone().map(|reader| (reader, 0)));
        self
    }

    /// Chunks of what a reader makes of a text.
    #[cfg(feature = "constrain")]
    fn told(&mut self, index: usize, said: Vec<Said>, out: &mut Vec<Value>) {
        for one in said {
            let logprobs = self.release(index);
            let delta = match one {
                Said::Text(text) => json!({"content": text}),
                Said::Call(call) => {
                    let n = self.choices[index].reader.as_mut().map_or(0, |(_, n)| std::mem::replace(n, *n + 1));
                    let mut call = call.json();
                    call["index"] = n.into();
                    json!({"tool_calls": [call]})
                }
            };
            out.push(self.chunk(index, delta, "", logprobs, Value::Null));
        }
    }

    /// Whether every choice has ended.
    pub fn done(&self) -> bool {
        self.ended == self.choices.len()
    }

    /// A chat begins with its role alone.
    fn begin(&mut self, index: usize, out: &mut Vec<Value>) {
        if !std::mem::replace(&mut self.choices[index].begun, true) && self.head.chat {
            out.push(self.chunk(index, json!({"role": "assistant", "content": ""}), "", Value::Null, Value::Null));
        }
    }

    fn chunk(&self, index: usize, delta: Value, text: &str, logprobs: Value, reason: Value) -> Value {
        let mut choice = match self.head.chat {
            true => json!({"index": index, "delta": delta}),
            false => json!({"index": index, "text": text}),
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

    fn release(&mut self, index: usize) -> Value {
        let choice = &mut self.choices[index];
        choice.logprobs.json(&std::mem::take(&mut choice.held))
    }

    /// Chunks of a token; none while its text is held back.
    pub fn piece(
        &mut self,
        index: usize,
        token: Option<u32>,
        text: &str,
        logprobs: Option<TokenLogprobs>,
    ) -> Vec<Value> {
        let mut out = Vec::new();
        self.begin(index, &mut out);
        self.choices[index].held.extend(token.zip(logprobs));
        #[cfg(feature = "constrain")]
        if let Some((reader, _)) = &mut self.choices[index].reader {
            let said = reader.push(text);
            self.told(index, said, &mut out);
            return out;
        }
        if !text.is_empty() {
            let logprobs = self.release(index);
            out.push(self.chunk(index, json!({"content": text}), text, logprobs, Value::Null));
        }
        out
    }

    /// The chunk with the reason, and after the last choice the one with the usage when that was asked for.
    pub fn end(&mut self, index: usize, generation: &Generation) -> ApiResult<Vec<Value>> {
        #[cfg_attr(not(feature = "constrain"), expect(unused_mut))]
        let mut reason = finish_reason(generation)?;
        let mut out = Vec::new();
        self.begin(index, &mut out);
        #[cfg(feature = "constrain")]
        if let Some((reader, _)) = &mut self.choices[index].reader {
            let said = reader.finish();
            reason = if reader.called() { called(reason) } else { reason };
            self.told(index, said, &mut out);
        }
        let logprobs = self.release(index);
        out.push(self.chunk(index, json!({}), "", logprobs, reason.into()));
        self.ended += 1;
        self.usage.add(generation);
        if self.include_usage && self.done() {
            let mut last = self.object(json!([]));
            last["usage"] = self.usage.json();
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

    /// The answer was not whole in time.
    pub fn too_late(most: Duration) -> Self {
        let message = format!(
            "the answer was not whole after {} s; ask for fewer tokens, or start the server with a longer --deadline",
            most.as_secs_f32()
        );
        Self::new(StatusCode::GATEWAY_TIMEOUT, "deadline_exceeded", message)
    }
}

/// A client that is still there never asked to break off: only a server that stops does.
pub(super) fn finish_reason(generation: &Generation) -> ApiResult<&'static str> {
    match generation.finish_reason {
        FinishReason::Cancelled => Err(ApiError::broken_off()),
        reason => Ok(reason.as_str()),
    }
}

/// Tokens of all choices of one answer; the prompt counts once.
#[derive(Default)]
struct Usage {
    prompt: Option<(usize, usize)>,
    completion: usize,
}

impl Usage {
    fn of<'a>(all: impl Iterator<Item = &'a Generation>) -> Self {
        let mut usage = Self::default();
        all.for_each(|generation| usage.add(generation));
        usage
    }

    fn add(&mut self, generation: &Generation) {
        let timings = &generation.timings;
        // Of several answers, the first read the prompt and the others found it read.
        let (_, cached) = self.prompt.get_or_insert((timings.prompt_tokens, timings.cached_tokens));
        *cached = timings.cached_tokens.min(*cached);
        self.completion += generation.token_ids.len();
    }

    fn json(&self) -> Value {
        let (prompt, cached) = self.prompt.unwrap_or_default();
        json!({
            "prompt_tokens": prompt,
            "completion_tokens": self.completion,
            "total_tokens": prompt + self.completion,
            "prompt_tokens_details": {"cached_tokens": cached},
        })
    }
}

/// `POST /v1/embeddings`.
pub(super) fn embedded(model: &str, all: &[Vec<f32>], in_base64: bool, tokens: usize) -> Value {
    let vector = |v: &[f32]| match in_base64 {
        true => base64(&v.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>()).into(),
        false => Value::from(v),
    };
    let one = |(index, v): (usize, &Vec<f32>)| json!({"object": "embedding", "index": index, "embedding": vector(v)});
    let data: Vec<Value> = all.iter().enumerate().map(one).collect();
    json!({"object": "list", "model": model, "data": data, "usage": {"prompt_tokens": tokens, "total_tokens": tokens}})
}

/// RFC 4648, section 4, with padding.
pub(super) fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for three in bytes.chunks(3) {
        let bits = (0..3).fold(0u32, |bits, i| bits << 8 | u32::from(three.get(i).copied().unwrap_or(0)));
        for i in 0..4 {
            let digit = DIGITS[(bits >> (18 - 6 * i) & 63) as usize] as char;
            out.push(if i <= three.len() { digit } else { '=' });
        }
    }
    out
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

#[cfg(test)]
mod tests {
    use super::base64;

    #[test]
    fn base64_is_what_the_rfc_shows() {
        let vectors =
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foob", "Zm9vYg=="), ("fooba", "Zm9vYmE=")];
        for (bytes, want) in vectors {
            assert_eq!(base64(bytes.as_bytes()), want);
        }
        assert_eq!(base64(&[0xfb, 0xff, 0xfe]), "+//+");
    }
}
