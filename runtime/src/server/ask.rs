//! Request bodies -> what is asked, checked before anything is queued.

use super::messages::read_messages;
use super::names::{Names, Target};
use super::schema::{ANSWER, CHAT, CLASSIFY, COMPLETION, DETOKENIZE, EMBEDDINGS, TOKENIZE};
#[cfg(feature = "constrain")]
use super::shape;
use super::wire::{ApiError, ApiResult, Fields, wrong};
use crate::chat::Message;
use crate::sample::Sampling;
use axum::http::StatusCode;
use serde_json::Value;

/// Most stop strings, as OpenAI's API has it.
pub(super) const MAX_STOPS: usize = 4;
/// Longest stop string, in bytes: text is held back by that much.
const MAX_STOP_BYTES: usize = 128;
/// Most alternatives a position.
pub(super) const MAX_LOGPROBS: usize = 20;
/// Most texts in one call of classify, embeddings or infer.
pub(super) const MAX_INPUTS: usize = 64;
/// Most answers to one prompt.
pub(super) const MAX_N: usize = 4;
/// Most ids that one request may push up or down.
const MAX_BIASES: usize = 1024;

/// What a prompt is made of.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Prompt {
    /// Turns of a chat.
    Messages(Vec<Message>),
    /// A text to go on with.
    Text(String),
    /// Ids to go on with.
    Ids(Vec<u32>),
}

/// A chat or a completion.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Completion {
    pub prompt: Prompt,
    /// What `model` names.
    pub target: Target,
    /// `None`: what room the context leaves.
    pub max_tokens: Option<usize>,
    pub sampling: Sampling,
    pub stop: Vec<String>,
    pub logprobs: Option<usize>,
    /// Answers; number `i` is drawn with the seed plus `i`.
    pub n: usize,
    pub stream: bool,
    pub include_usage: bool,
    /// What it must be.
    #[cfg(feature = "constrain")]
    pub shape: shape::Shape,
}

impl Completion {
    pub fn is_chat(&self) -> bool {
        matches!(self.prompt, Prompt::Messages(_))
    }

    /// `POST /v1/chat/completions`.
    pub fn chat(body: &[u8], names: &Names) -> ApiResult<Self> {
        let mut fields = Fields::known(body, CHAT)?;
        let target = names.asked(&mut fields)?;
        let messages = fields.take("messages").ok_or_else(|| fields.missing("messages"))?;
        let prompt = Prompt::Messages(read_messages(messages)?);
        let top = fields.count("top_logprobs", 0)?;
        let logprobs = match (fields.bool("logprobs")?.unwrap_or(false), top) {
            (true, top) => Some(top.unwrap_or(0)),
            (false, None | Some(0)) => None,
            (false, Some(_)) => return Err(ApiError::field("top_logprobs", "needs `logprobs`: true")),
        };
        let longer = fields.count("max_completion_tokens", 1)?;
        #[cfg(feature = "constrain")]
        let shape = shape::Shape::of_chat(&mut fields)?;
        let rest = Self::rest(fields, prompt, logprobs, longer)?;
        Ok(Self {
            target,
            #[cfg(feature = "constrain")]
            shape,
            ..rest
        })
    }

    /// `POST /v1/completions`.
    pub fn text(body: &[u8], names: &Names) -> ApiResult<Self> {
        let mut fields = Fields::known(body, COMPLETION)?;
        let target = names.asked(&mut fields)?;
        let prompt = read_prompt(fields.take("prompt").ok_or_else(|| fields.missing("prompt"))?)?;
        let logprobs = fields.count("logprobs", 0)?;
        #[cfg(feature = "constrain")]
        let shape = shape::Shape::of_text(&mut fields)?;
        let rest = Self::rest(fields, prompt, logprobs, None)?;
        Ok(Self {
            target,
            #[cfg(feature = "constrain")]
            shape,
            ..rest
        })
    }

    /// The fields that both have. Greedy by default, as `edgeft run`.
    pub fn rest(
        mut fields: Fields,
        prompt: Prompt,
        logprobs: Option<usize>,
        max_completion_tokens: Option<usize>,
    ) -> ApiResult<Self> {
        if let Some(n) = logprobs.filter(|n| *n > MAX_LOGPROBS) {
            let name = if matches!(prompt, Prompt::Messages(_)) { "top_logprobs" } else { "logprobs" };
            return Err(ApiError::field(name, format!("{n} is more than {MAX_LOGPROBS}")));
        }
        let n = fields.count("n", 1)?.unwrap_or(1);
        if n > MAX_N {
            return Err(ApiError::field("n", format!("{n} answers are asked for; at most {MAX_N} are supported")));
        }
        fields.string("user")?; // it identifies a person; nothing here needs that
        let mut sampling = Sampling::default();
        sampling.temperature = fields.number("temperature")?.unwrap_or(sampling.temperature);
        sampling.top_p = fields.number("top_p")?.unwrap_or(sampling.top_p);
        sampling.top_k = fields.count("top_k", 0)?.unwrap_or(sampling.top_k);
        sampling.min_p = fields.number("min_p")?.unwrap_or(sampling.min_p);
        sampling.seed = fields.seed("seed")?.unwrap_or(sampling.seed);
        sampling.repeat_penalty = fields.number("repeat_penalty")?.unwrap_or(sampling.repeat_penalty);
        sampling.frequency_penalty = fields.number("frequency_penalty")?.unwrap_or(sampling.frequency_penalty);
        sampling.presence_penalty = fields.number("presence_penalty")?.unwrap_or(sampling.presence_penalty);
        sampling.logit_bias = fields.take("logit_bias").map_or(Ok(Vec::new()), read_biases)?;
        sampling.check().map_err(|e| ApiError { param: Some(e.place().to_owned()), ..e.into() })?;
        let max_tokens = match (fields.count("max_tokens", 1)?, max_completion_tokens) {
            (Some(a), Some(b)) if a != b => {
                let message = format!("`max_tokens` is {a} and `max_completion_tokens` is {b}; give one");
                let error = ApiError::new(StatusCode::BAD_REQUEST, "invalid_value", message);
                return Err(ApiError { param: Some("max_tokens".into()), ..error });
            }
            (a, b) => a.or(b),
        };
        let stop = fields.take("stop").map_or(Ok(Vec::new()), read_stop)?;
        let stream = fields.bool("stream")?.unwrap_or(false);
        let include_usage = match fields.take("stream_options") {
            None => false,
            Some(value) => {
                let mut options = Fields::of(value, "stream_options")?;
                if !stream {
                    return Err(ApiError::field("stream_options", "needs `stream`: true"));
                }
                let include = options.bool("include_usage")?.unwrap_or(false);
                options.finish()?;
                include
            }
        };
        fields.finish()?;
        Ok(Self {
            prompt,
            target: Target::default(),
            max_tokens,
            sampling,
            stop,
            logprobs,
            n,
            stream,
            include_usage,
            #[cfg(feature = "constrain")]
            shape: shape::Shape::default(),
        })
    }
}

/// `POST /v1/classify`: the model and the texts.
pub(super) fn classify(body: &[u8], names: &Names) -> ApiResult<(Target, Vec<String>)> {
    let mut fields = Fields::known(body, CLASSIFY)?;
    let target = names.asked(&mut fields)?;
    let inputs = match fields.take("input") {
        None => return Err(fields.missing("input")),
        Some(Value::String(text)) => vec![text],
        Some(Value::Array(all)) => all
            .into_iter()
            .enumerate()
            .map(|(i, value)| match value {
                Value::String(text) => Ok(text),
                other => Err(wrong(&format!("input[{i}]"), "a string", &other)),
            })
            .collect::<ApiResult<_>>()?,
        Some(other) => return Err(wrong("input", "a string, or an array of strings", &other)),
    };
    fields.finish()?;
    inputs_within("input", inputs.len())?;
    Ok((target, inputs))
}

/// A number of texts that one request may hold.
pub(super) fn inputs_within(name: &str, n: usize) -> ApiResult<()> {
    match n {
        1..=MAX_INPUTS => Ok(()),
        _ => Err(ApiError::field(name, format!("{n} texts; give 1 to {MAX_INPUTS}"))),
    }
}

/// `POST /v1/embeddings`.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Embeddings {
    /// What `model` names.
    pub target: Target,
    /// Texts and ids, never messages.
    pub inputs: Vec<Prompt>,
    /// Little-endian f32 in base64, which is what OpenAI's own clients ask for.
    pub base64: bool,
}

impl Embeddings {
    pub fn read(body: &[u8], names: &Names) -> ApiResult<Self> {
        let mut fields = Fields::known(body, EMBEDDINGS)?;
        let target = names.asked(&mut fields)?;
        let inputs = match fields.take("input").ok_or_else(|| fields.missing("input"))? {
            Value::Array(all) if all.iter().any(|v| v.is_string() || v.is_array()) => all
                .into_iter()
                .enumerate()
                .map(|(i, value)| match value {
                    Value::String(text) => Ok(Prompt::Text(text)),
                    Value::Array(ids) => Ok(Prompt::Ids(read_ids(&format!("input[{i}]"), &ids)?)),
                    other => Err(wrong(&format!("input[{i}]"), "a string, or token ids", &other)),
                })
                .collect::<ApiResult<_>>()?,
            Value::Array(all) if all.is_empty() => Vec::new(),
            Value::Array(ids) => vec![Prompt::Ids(read_ids("input", &ids)?)],
            Value::String(text) => vec![Prompt::Text(text)],
            other => return Err(wrong("input", "a string, token ids, or an array of these", &other)),
        };
        let base64 = match fields.string("encoding_format")?.as_deref() {
            None | Some("float") => false,
            Some("base64") => true,
            Some(other) => {
                return Err(ApiError::field(
                    "encoding_format",
                    format!("`{other}` is not known; give float or base64"),
                ));
            }
        };
        fields.string("user")?; // as in a completion
        fields.finish()?;
        inputs_within("input", inputs.len())?;
        Ok(Self { target, inputs, base64 })
    }
}

/// `POST /v1/answer`: the model, question and context.
pub(super) fn answer(body: &[u8], names: &Names) -> ApiResult<(Target, String, String)> {
    let mut fields = Fields::known(body, ANSWER)?;
    let target = names.asked(&mut fields)?;
    let (question, context) = (fields.required_string("question")?, fields.required_string("context")?);
    fields.finish()?;
    for (name, text) in [("question", &question), ("context", &context)] {
        if text.trim().is_empty() {
            return Err(ApiError::field(name, "it is empty"));
        }
    }
    Ok((target, question, context))
}

/// `POST /tokenize`: the model and the text.
pub(super) fn tokenize(body: &[u8], names: &Names) -> ApiResult<(Target, String)> {
    let mut fields = Fields::known(body, TOKENIZE)?;
    let target = names.asked(&mut fields)?;
    let text = fields.required_string("text")?;
    fields.finish()?;
    Ok((target, text))
}

/// `POST /detokenize`: the model and the ids.
pub(super) fn detokenize(body: &[u8], names: &Names) -> ApiResult<(Target, Vec<u32>)> {
    let mut fields = Fields::known(body, DETOKENIZE)?;
    let target = names.asked(&mut fields)?;
    let ids = match fields.take("ids").ok_or_else(|| fields.missing("ids"))? {
        Value::Array(all) => read_ids("ids", &all)?,
        other => return Err(wrong("ids", "an array of token ids", &other)),
    };
    fields.finish()?;
    Ok((target, ids))
}

fn read_prompt(value: Value) -> ApiResult<Prompt> {
    const WANT: &str = "a string, an array with one string, or token ids";
    match value {
        Value::String(text) => Ok(Prompt::Text(text)),
        Value::Array(all) => match all.as_slice() {
            [] => Err(ApiError::field("prompt", "it is empty")),
            [Value::String(text)] => Ok(Prompt::Text(text.clone())),
            [one @ Value::Array(_)] => read_prompt(one.clone()),
            [Value::String(_) | Value::Array(_), ..] => {
                Err(ApiError::field("prompt", format!("{} prompts; send one a request", all.len())))
            }
            all => Ok(Prompt::Ids(read_ids("prompt", all)?)),
        },
        other => Err(wrong("prompt", WANT, &other)),
    }
}

fn read_ids(name: &str, all: &[Value]) -> ApiResult<Vec<u32>> {
    let id = |v: &Value| v.as_u64().and_then(|n| u32::try_from(n).ok());
    let read = |(i, v)| id(v).ok_or_else(|| wrong(&format!("{name}[{i}]"), "a token id", v));
    all.iter().enumerate().map(read).collect()
}

/// `{"50256": -100}`: ids, spelled as JSON keys, with what is added to their logits.
fn read_biases(value: Value) -> ApiResult<Vec<(u32, f32)>> {
    let Value::Object(map) = value else { return Err(wrong("logit_bias", "an object of token ids", &value)) };
    if map.len() > MAX_BIASES {
        return Err(ApiError::field("logit_bias", format!("{} ids; at most {MAX_BIASES} are supported", map.len())));
    }
    let read = |(id, bias): (&String, &Value)| {
        let name = format!("logit_bias.{id}");
        let number = bias.as_f64().ok_or_else(|| wrong(&name, "a number from -100 to 100", bias))?;
        let id = id.parse().map_err(|_| ApiError::field(&name, "its name is not a token id"))?;
        Ok((id, number as f32))
    };
    map.iter().map(read).collect()
}

fn read_stop(value: Value) -> ApiResult<Vec<String>> {
    let stops = match value {
        Value::String(stop) => vec![stop],
        Value::Array(all) => all
            .into_iter()
            .map(|v| v.as_str().map(str::to_owned).ok_or_else(|| wrong("stop", "strings", &v)))
            .collect::<ApiResult<_>>()?,
        other => return Err(wrong("stop", "a string, or an array of strings", &other)),
    };
    if stops.len() > MAX_STOPS {
        return Err(ApiError::field(
            "stop",
            format!("{} stop strings; at most {MAX_STOPS} are supported", stops.len()),
        ));
    }
    if let Some(odd) = stops.iter().find(|s| s.is_empty() || s.len() > MAX_STOP_BYTES) {
        return Err(ApiError::field(
            "stop",
            format!("a stop string of {} bytes; give 1 to {MAX_STOP_BYTES}", odd.len()),
        ));
    }
    Ok(stops)
}

#[cfg(test)]
mod tests {
    use super::super::config::Served;
    use super::*;
    use serde_json::json;

    fn names() -> Names {
        Names::new(&[Served { adapters: vec!["a".into()], ..Served::new("m") }, Served::new("other")])
    }

    fn text(body: Value) -> ApiResult<Completion> {
        Completion::text(body.to_string().as_bytes(), &names())
    }

    fn chat(body: Value) -> ApiResult<Completion> {
        Completion::chat(body.to_string().as_bytes(), &names())
    }

    #[track_caller]
    fn refused(outcome: ApiResult<Completion>, param: &str, message: &str) {
        let e = outcome.unwrap_err();
        assert_eq!(e.param.as_deref(), Some(param), "{}", e.message);
        assert!(e.message.contains(message), "{}", e.message);
    }

    #[test]
    fn a_prompt_is_a_text_or_ids() {
        let prompt = |v: Value| text(json!({"prompt": v})).unwrap().prompt;
        assert_eq!(prompt(json!("a")), Prompt::Text("a".into()));
        assert_eq!(prompt(json!(["a"])), Prompt::Text("a".into()));
        assert_eq!(prompt(json!([1, 2])), Prompt::Ids(vec![1, 2]));
        assert_eq!(prompt(json!([[1, 2]])), Prompt::Ids(vec![1, 2]));
        refused(text(json!({"prompt": ["a", "b"]})), "prompt", "2 prompts");
        refused(text(json!({"prompt": [1, -2]})), "prompt[1]", "-2");
        refused(text(json!({"prompt": [1, 4_294_967_296u64]})), "prompt[1]", "4294967296");
        refused(text(json!({})), "prompt", "missing");
    }

    #[test]
    fn numbers_out_of_range_and_unknown_fields_are_refused_by_name() {
        let with = |name: &str, value: Value| text(json!({"prompt": "a", name: value}));
        refused(with("temperature", json!(-1)), "temperature", "-1");
        refused(with("temperature", json!(1e40)), "temperature", "100");
        refused(with("top_p", json!(0)), "top_p", "above 0");
        refused(with("max_tokens", json!(0)), "max_tokens", "from 1 on");
        refused(with("n", json!(5)), "n", "at most 4");
        refused(with("frequency_penalty", json!(-2.5)), "frequency_penalty", "-2.5");
        refused(with("logit_bias", json!({"7": 101})), "logit_bias", "101");
        refused(with("logit_bias", json!({"x": 1})), "logit_bias.x", "token id");
        refused(with("logprobs", json!(21)), "logprobs", "21");
        refused(with("stop", json!(["a", "b", "c", "d", "e"])), "stop", "5 stop strings");
        refused(with("stop", json!("")), "stop", "0 bytes");
        refused(with("stream_options", json!({"include_usage": true})), "stream_options", "stream");
        refused(with("echo", json!(true)), "echo", "not supported");
        refused(with("messages", json!([])), "messages", "not supported");
    }

    #[test]
    fn messages_are_text_and_nothing_is_dropped_in_silence() {
        let parts = json!([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]);
        let asked = chat(json!({"model": "m", "messages": [{"role": "user", "content": parts}], "user": "x", "n": 1}));
        assert_eq!(asked.unwrap().prompt, Prompt::Messages(vec![Message::new("user", "ab")]));
        let one = |m: Value| chat(json!({"messages": [m]}));
        refused(one(json!({"role": "user"})), "messages[0].content", "missing");
        refused(one(json!({"role": 1, "content": "a"})), "messages[0].role", "a string");
        refused(
            one(json!({"role": "user", "content": "a", "tool_calls": []})),
            "messages[0].tool_calls",
            "not supported",
        );
        let image = json!([{"type": "image_url", "image_url": {}}]);
        refused(one(json!({"role": "user", "content": image})), "messages[0].content[0].type", "image_url");
        refused(chat(json!({"messages": []})), "messages", "empty");
        refused(
            chat(json!({"messages": [{"role": "user", "content": "a"}], "top_logprobs": 2})),
            "top_logprobs",
            "logprobs",
        );
    }

    #[test]
    fn another_models_name_is_not_found() {
        let e = text(json!({"model": "another", "prompt": "a"})).unwrap_err();
        assert_eq!((e.status, e.code), (StatusCode::NOT_FOUND, Some("model_not_found")));
        assert!(e.message.contains("`another`") && e.message.contains("`m`"), "{}", e.message);
        let target = |name: &str| text(json!({"model": name, "prompt": "a"})).unwrap().target;
        let of = |model, adapter| Target { model, adapter };
        assert_eq!([target("m"), target("m:a"), target("other")], [of(0, None), of(0, Some(0)), of(1, None)]);
        assert_eq!(text(json!({"prompt": "a"})).unwrap().target, of(0, None));
        assert!(text(json!({"model": "m:b", "prompt": "a"})).unwrap_err().message.contains("`m`, `m:a`"));
    }
}
