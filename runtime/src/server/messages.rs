//! The turns of a chat: text, what was called, and what came of it; and the ids that the model's template makes of them.

use super::Serving;
use super::wire::{ApiError, ApiResult, Fields, wrong};
use crate::chat::{Message, chat_ids};
use crate::tokenizer::Tokenizer;
use axum::http::StatusCode;
use serde_json::Value;
#[cfg(feature = "constrain")]
use serde_json::json;

/// `messages`.
pub(super) fn read_messages(value: Value) -> ApiResult<Vec<Message>> {
    let Value::Array(all) = value else { return Err(wrong("messages", "an array", &value)) };
    if all.is_empty() {
        return Err(ApiError::field("messages", "it is empty; give at least one message"));
    }
    all.into_iter().enumerate().map(|(i, value)| read_message(value, &format!("messages[{i}]"))).collect()
}

fn read_message(value: Value, name: &str) -> ApiResult<Message> {
    let mut fields = Fields::of(value, name)?;
    let role = fields.required_string("role")?;
    let mut message = Message::new(role, "");
    #[cfg(feature = "constrain")]
    read_calls(&mut fields, &mut message)?;
    let at = fields.name("content");
    message.content = match fields.take("content") {
        None if message.calls() => String::new(),
        None => return Err(fields.missing("content")),
        Some(Value::String(text)) => text,
        Some(Value::Array(parts)) => parts
            .into_iter()
            .enumerate()
            .map(|(i, part)| read_part(part, &format!("{at}[{i}]")))
            .collect::<ApiResult<_>>()?,
        Some(other) => return Err(wrong(&at, "a string, or an array of text parts", &other)),
    };
    if let Some(name) = fields.string("name")? {
        message.extra.push(("name".into(), name.into()));
    }
    fields.finish()?;
    Ok(message)
}

/// A part of a message's content; only text is known.
fn read_part(value: Value, name: &str) -> ApiResult<String> {
    let mut part = Fields::of(value, name)?;
    let kind = part.required_string("type")?;
    if kind != "text" {
        return Err(ApiError::field(&part.name("type"), format!("`{kind}` is not supported; only `text` is")));
    }
    let text = part.required_string("text")?;
    part.finish()?;
    Ok(text)
}

/// The fields of a message that say what was called, and what came of it, as templates take them.
#[cfg(feature = "constrain")]
fn read_calls(fields: &mut Fields, message: &mut Message) -> ApiResult<()> {
    if message.role == "assistant"
        && let Some(calls) = fields.take("tool_calls")
    {
        let at = fields.name("tool_calls");
        let Value::Array(all) = calls else { return Err(wrong(&at, "an array", &calls)) };
        let calls = all.into_iter().enumerate().map(|(i, call)| read_call(call, &format!("{at}[{i}]")));
        message.extra.push(("tool_calls".into(), calls.collect::<ApiResult<Vec<_>>>()?.into()));
    }
    if message.role == "tool"
        && let Some(id) = fields.string("tool_call_id")?
    {
        message.extra.push(("tool_call_id".into(), id.into()));
    }
    Ok(())
}

/// A call that was made. Templates print its arguments as JSON, so they are parsed: the text of a text would be quoted twice.
#[cfg(feature = "constrain")]
fn read_call(value: Value, name: &str) -> ApiResult<Value> {
    let mut call = Fields::of(value, name)?;
    let id = call.string("id")?;
    let kind = call.required_string("type")?;
    if kind != "function" {
        return Err(ApiError::field(&call.name("type"), format!("`{kind}` is not supported; only `function` is")));
    }
    let at = call.name("function");
    let function = call.take("function").ok_or_else(|| call.missing("function"))?;
    call.finish()?;
    let mut function = Fields::of(function, &at)?;
    let (name, arguments) = (function.required_string("name")?, function.required_string("arguments")?);
    let at = function.name("arguments");
    function.finish()?;
    let arguments: Value = serde_json::from_str(if arguments.trim().is_empty() { "{}" } else { &arguments })
        .map_err(|e| ApiError::field(&at, format!("it is no JSON: {e}")))?;
    Ok(json!({"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}))
}

/// Ids of a chat. A message that spells a control token could forge a turn, so it is refused.
pub(super) fn render(
    serving: &Serving,
    tokenizer: &Tokenizer,
    messages: &[Message],
    tools: Option<&[Value]>,
) -> ApiResult<Vec<u32>> {
    let Some(chat) = &serving.chat else {
        let message = "the model has no chat template, and a guessed one would answer badly; send a plain prompt to \
                       /v1/completions, or serve a model that was tuned on chats";
        return Err(ApiError::new(StatusCode::BAD_REQUEST, "no_chat_template", message));
    };
    for (i, message) in messages.iter().enumerate() {
        let own = [message.role.as_str(), &message.content].into_iter();
        unforged(tokenizer, format!("messages[{i}]"), own.chain(message.extra.iter().flat_map(|(_, v)| texts(v))))?;
        if message.calls() && !chat.source().contains("tool_calls") {
            let param = format!("messages[{i}].tool_calls");
            let error = ApiError::field(&param, "the model's chat template knows no calls of tools; leave it out");
            return Err(ApiError { code: Some("unsupported_by_model"), ..error });
        }
    }
    for (i, tool) in tools.unwrap_or_default().iter().enumerate() {
        unforged(tokenizer, format!("tools[{i}]"), texts(tool).into_iter())?;
    }
    Ok(chat_ids(Some(chat), tokenizer, messages, tools)?)
}

/// Texts that spell no control token.
fn unforged<'a>(tokenizer: &Tokenizer, param: String, mut texts: impl Iterator<Item = &'a str>) -> ApiResult<()> {
    match texts.find_map(|text| tokenizer.control_token_in(text)) {
        None => Ok(()),
        Some(token) => {
            Err(ApiError::field(&param, format!("it spells the control token {token}, which only the template may")))
        }
    }
}

/// Every text inside of a value, keys too.
fn texts(value: &Value) -> Vec<&str> {
    match value {
        Value::String(text) => vec![text],
        Value::Array(all) => all.iter().flat_map(texts).collect(),
        Value::Object(map) => map.iter().flat_map(|(key, v)| [vec![key.as_str()], texts(v)].concat()).collect(),
        _ => Vec::new(),
    }
}

#[cfg(all(test, feature = "constrain"))]
mod tests {
    use super::*;

    #[test]
    fn what_was_called_reaches_the_template_as_json_and_not_as_text_of_json() {
        let call = |arguments: &str| {
            json!([{"role": "assistant", "tool_calls": [{"id": "1", "type": "function",
                "function": {"name": "f", "arguments": arguments}}]}, {"role": "tool", "tool_call_id": "1", "content": "2"}])
        };
        let read = read_messages(call("{\"b\": 1, \"a\": [2]}")).unwrap();
        let want = json!([{"id": "1", "type": "function", "function": {"name": "f", "arguments": {"b": 1, "a": [2]}}}]);
        assert_eq!((read[0].content.as_str(), &read[0].extra), ("", &vec![("tool_calls".to_owned(), want)]));
        assert_eq!(read[1].extra, [("tool_call_id".to_owned(), "1".into())]);
        let error = read_messages(call("{")).unwrap_err();
        assert_eq!(error.param.as_deref(), Some("messages[0].tool_calls[0].function.arguments"), "{error:?}");
        let user = json!([{"role": "user", "content": "a", "tool_call_id": "1"}]);
        assert_eq!(read_messages(user).unwrap_err().param.as_deref(), Some("messages[0].tool_call_id"));
    }
}
