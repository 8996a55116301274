//! The fields of each request's body, once: what a body may hold is checked against these tables, and `/openapi.json` is
//! written from them.

use super::ask::{MAX_INPUTS, MAX_LOGPROBS, MAX_N, MAX_STOPS};
#[cfg(feature = "constrain")]
use super::tools::MAX_TOOLS;
use serde_json::{Map, Value, json};

/// One field of a body.
pub(super) struct Field {
    pub name: &'static str,
    required: bool,
    schema: fn() -> Value,
}

const fn must(name: &'static str, schema: fn() -> Value) -> Field {
    Field { name, required: true, schema }
}

const fn may(name: &'static str, schema: fn() -> Value) -> Field {
    Field { name, required: false, schema }
}

fn string() -> Value {
    json!({"type": "string"})
}

fn boolean() -> Value {
    json!({"type": "boolean"})
}

fn integer() -> Value {
    json!({"type": "integer"})
}

fn from_one() -> Value {
    json!({"type": "integer", "minimum": 1})
}

fn from_zero() -> Value {
    json!({"type": "integer", "minimum": 0})
}

fn alternatives() -> Value {
    json!({"type": "integer", "minimum": 0, "maximum": MAX_LOGPROBS})
}

fn share() -> Value {
    json!({"type": "number", "minimum": 0, "maximum": 1})
}

fn signed_penalty() -> Value {
    json!({"type": "number", "minimum": -2, "maximum": 2})
}

fn ids() -> Value {
    json!({"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": u32::MAX}})
}

fn messages() -> Value {
    let part = json!({"type": "object", "required": ["type", "text"], "additionalProperties": false,
        "properties": {"type": {"const": "text"}, "text": string()}});
    let content = json!({"anyOf": [string(), {"type": "array", "items": part}]});
    let message = json!({"type": "object", "required": ["role", "content"], "additionalProperties": false,
        "properties": {"role": string(), "content": content, "name": string()}});
    #[cfg(feature = "constrain")]
    let message = turns(message);
    json!({"type": "array", "minItems": 1, "items": message})
}

/// Any of these messages, one that calls functions, or one that says what came of a call.
#[cfg(feature = "constrain")]
fn turns(mut any: Value) -> Value {
    let call = json!({"type": "object", "required": ["type", "function"], "additionalProperties": false, "properties": {
        "id": string(), "type": {"const": "function"}, "function": {"type": "object",
        "required": ["name", "arguments"], "additionalProperties": false,
        "properties": {"name": string(), "arguments": string()}}}});
    let mut caller = any.clone();
    caller["required"] = json!(["role", "tool_calls"]);
    caller["properties"]["role"] = json!({"const": "assistant"});
    caller["properties"]["content"] = json!({"anyOf": [any["properties"]["content"], {"type": "null"}]});
    caller["properties"]["tool_calls"] = json!({"type": "array", "items": call});
    any["properties"]["tool_call_id"] = string();
    json!({"anyOf": [any, caller]})
}

#[cfg(feature = "constrain")]
fn response_format() -> Value {
    let kind = |kind: &str| {
        json!({"type": "object", "required": ["type"], "additionalProperties": false, "properties":
            {"type": {"const": kind}}})
    };
    let mut by_schema = kind("json_schema");
    by_schema["required"] = json!(["type", "json_schema"]);
    by_schema["properties"]["json_schema"] = json!({"type": "object", "required": ["name", "schema"],
        "additionalProperties": false, "properties": {"name": name(), "description": string(),
        "schema": {"type": "object"}, "strict": boolean()}});
    json!({"anyOf": [kind("text"), kind("json_object"), by_schema]})
}

#[cfg(feature = "constrain")]
fn name() -> Value {
    json!({"type": "string", "pattern": "^[a-zA-Z0-9_-]{1,64}$"})
}

#[cfg(feature = "constrain")]
fn tools() -> Value {
    let function = json!({"type": "object", "required": ["name"], "additionalProperties": false, "properties":
        {"name": name(), "description": string(), "parameters": {"type": "object"}, "strict": boolean()}});
    json!({"type": "array", "maxItems": MAX_TOOLS, "items": {"type": "object", "required": ["type", "function"],
        "additionalProperties": false, "properties": {"type": {"const": "function"}, "function": function}}})
}

#[cfg(feature = "constrain")]
fn tool_choice() -> Value {
    let named = json!({"type": "object", "required": ["type", "function"], "additionalProperties": false, "properties":
        {"type": {"const": "function"}, "function": {"type": "object", "required": ["name"],
        "additionalProperties": false, "properties": {"name": name()}}}});
    json!({"anyOf": [{"enum": ["none", "auto", "required"]}, named]})
}

fn prompt() -> Value {
    json!({"anyOf": [string(), {"type": "array", "items": string(), "minItems": 1, "maxItems": 1}, ids()]})
}

fn texts() -> Value {
    json!({"anyOf": [string(), {"type": "array", "items": string(), "minItems": 1, "maxItems": MAX_INPUTS}]})
}

fn texts_or_ids() -> Value {
    let each = json!({"anyOf": [string(), ids()]});
    json!({"anyOf": [string(), ids(), {"type": "array", "items": each, "minItems": 1, "maxItems": MAX_INPUTS}]})
}

fn stop() -> Value {
    json!({"anyOf": [string(), {"type": "array", "items": string(), "maxItems": MAX_STOPS}]})
}

/// Fields of chats and completions alike; a macro, since tables are constants.
macro_rules! generating {
    ($($own:expr),* $(,)?) => {
        &[
            $($own,)*
            may("model", string),
            may("max_tokens", from_one),
            may("temperature", || json!({"type": "number", "minimum": 0, "maximum": 100})),
            may("top_p", || json!({"type": "number", "exclusiveMinimum": 0, "maximum": 1})),
            may("top_k", from_zero),
            may("min_p", share),
            may("repeat_penalty", || json!({"type": "number", "exclusiveMinimum": 0, "maximum": 100})),
            may("frequency_penalty", signed_penalty),
            may("presence_penalty", signed_penalty),
            may("logit_bias", || json!({"type": "object", "additionalProperties":
                {"type": "number", "minimum": -100, "maximum": 100}})),
            may("seed", integer),
            may("n", || json!({"type": "integer", "minimum": 1, "maximum": MAX_N})),
            may("stop", stop),
            may("stream", boolean),
            may("stream_options", || json!({"type": "object", "additionalProperties": false,
                "properties": {"include_usage": boolean()}})),
            may("user", string),
            #[cfg(feature = "constrain")]
            may("response_format", response_format),
        ]
    };
}

pub(super) const CHAT: &[Field] = generating![
    must("messages", messages),
    may("max_completion_tokens", from_one),
    may("logprobs", boolean),
    may("top_logprobs", alternatives),
    #[cfg(feature = "constrain")]
    may("tools", tools),
    #[cfg(feature = "constrain")]
    may("tool_choice", tool_choice),
    #[cfg(feature = "constrain")]
    may("parallel_tool_calls", boolean),
];
pub(super) const COMPLETION: &[Field] = generating![must("prompt", prompt), may("logprobs", alternatives)];
pub(super) const EMBEDDINGS: &[Field] = &[
    must("input", texts_or_ids),
    may("model", string),
    may("encoding_format", || json!({"enum": ["float", "base64"]})),
    may("user", string),
];
pub(super) const CLASSIFY: &[Field] = &[must("input", texts), may("model", string)];
pub(super) const ANSWER: &[Field] = &[must("question", string), must("context", string), may("model", string)];
pub(super) const TOKENIZE: &[Field] = &[must("text", string), may("model", string)];
pub(super) const DETOKENIZE: &[Field] = &[must("ids", ids), may("model", string)];
pub(super) const INFER: &[Field] = &[
    must("inputs", || {
        let input = json!({"type": "object", "required": ["name", "shape", "datatype", "data"],
            "additionalProperties": false, "properties": {"name": string(), "datatype": {"const": "BYTES"},
            "shape": {"type": "array", "items": from_zero()}, "data": {"type": "array", "items": string()}}});
        json!({"type": "array", "minItems": 1, "items": input})
    }),
    may("id", string),
    may("parameters", || json!({"type": "object"})),
    may("outputs", || {
        json!({"type": "array", "items": {"type": "object", "required": ["name"], "additionalProperties": false,
            "properties": {"name": string()}}})
    }),
];

/// The JSON schema of a body of these fields; `null` is the same as absent.
pub(super) fn of(table: &[Field]) -> Value {
    let property = |f: &Field| {
        let schema = (f.schema)();
        let schema = if f.required { schema } else { json!({"anyOf": [schema, {"type": "null"}]}) };
        (f.name.to_owned(), schema)
    };
    let required: Vec<&str> = table.iter().filter(|f| f.required).map(|f| f.name).collect();
    json!({"type": "object", "properties": table.iter().map(property).collect::<Map<_, _>>(), "required": required,
        "additionalProperties": false})
}

#[cfg(test)]
mod tests {
    use super::super::config::Served;
    use super::*;
    use crate::server::ask::{self, Completion, Embeddings};
    use crate::server::names::Names;
    use crate::server::v2::Infer;
    use crate::server::wire::ApiError;

    type Read = fn(&[u8]) -> Option<ApiError>;

    fn m() -> Names {
        Names::new(&[Served::new("m")])
    }

    /// A field of a table that no reader takes out would be refused by name; a wrong type shows that it was read.
    #[test]
    fn every_field_of_a_table_is_read() {
        let all: [(&[Field], Value, Read); 8] = [
            (CHAT, json!({"messages": [{"role": "user", "content": "a"}]}), |b| Completion::chat(b, &m()).err()),
            (COMPLETION, json!({"prompt": "a"}), |b| Completion::text(b, &m()).err()),
            (EMBEDDINGS, json!({"input": "a"}), |b| Embeddings::read(b, &m()).err()),
            (CLASSIFY, json!({"input": "a"}), |b| ask::classify(b, &m()).err()),
            (ANSWER, json!({"question": "a", "context": "b"}), |b| ask::answer(b, &m()).err()),
            (TOKENIZE, json!({"text": "a"}), |b| ask::tokenize(b, &m()).err()),
            (DETOKENIZE, json!({"ids": [1]}), |b| ask::detokenize(b, &m()).err()),
            (INFER, json!({"inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": ["a"]}]}), |b| {
                Infer::read(b).err()
            }),
        ];
        for (table, good, read) in all {
            assert_eq!(read(good.to_string().as_bytes()), None);
            for field in table {
                let mut bad = good.clone();
                bad[field.name] = json!(true);
                if (field.schema)() == boolean() {
                    bad[field.name] = json!("true");
                }
                let error = read(bad.to_string().as_bytes()).unwrap_or_else(|| panic!("`{}` is not read", field.name));
                assert_eq!((error.code, error.param.as_deref()), (Some("invalid_type"), Some(field.name)), "{error:?}");
                if field.required {
                    let mut missing = good.clone();
                    missing.as_object_mut().unwrap().remove(field.name);
                    let error = read(missing.to_string().as_bytes()).unwrap();
                    assert_eq!(error.code, Some("missing_parameter"), "{error:?}");
                }
            }
        }
    }
}
