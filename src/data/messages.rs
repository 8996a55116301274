//! Conversations in the shapes that datasets have → [`Message`]s.

use super::example::{Example, needed, optional};
use super::formats::type_name;
use super::schema::{self, quoted};
use serde_json::{Map, Value};

/// One turn.
#[derive(Debug, Clone, PartialEq)]
pub struct Message {
    /// `system`, `user`, `assistant`, `tool` or `developer`.
    pub role: String,
    /// What is said.
    pub content: String,
    /// Whether the turn is learned: the assistant's turns, unless their `weight` is 0.
    pub learned: bool,
    /// Calls of tools, as the template takes them.
    pub tool_calls: Option<Value>,
}

impl Message {
    /// A turn without tool calls; learned when it is the assistant's.
    pub fn new(role: &str, content: String) -> Self {
        Self { role: role.to_owned(), content, learned: role == "assistant", tool_calls: None }
    }
}

/// The names that datasets give to the speakers.
fn role(name: &str) -> Option<&'static str> {
    Some(match name.to_lowercase().as_str() {
        "user" | "human" => "user",
        "assistant" | "gpt" | "chatgpt" | "model" | "bot" | "function_call" => "assistant",
        "system" => "system",
        "developer" => "developer",
        "tool" | "observation" | "function" | "function_response" => "tool",
        _ => return None,
    })
}

/// A list of turns: `{role, content}` or `{from, value}`.
pub(super) fn messages(value: &Value, field: &str) -> Result<Vec<Message>, String> {
    let parsed;
    let list = match value {
        Value::Array(list) => list,
        // A csv holds the list as JSON text.
        Value::String(text) => match serde_json::from_str::<Value>(text) {
            Ok(Value::Array(list)) => {
                parsed = list;
                &parsed
            }
            _ => return Err(format!("field `{field}` is a string, not a list of turns")),
        },
        other => return Err(format!("field `{field}` is {}, not a list of turns", type_name(other))),
    };
    if list.is_empty() {
        return Err(format!("field `{field}` has no turns"));
    }
    let turn = |(i, value): (usize, &Value)| message(value).map_err(|r| format!("field `{field}`, turn {i}: {r}"));
    list.iter().enumerate().map(turn).collect()
}

fn message(value: &Value) -> Result<Message, String> {
    let Value::Object(turn) = value else { return Err(format!("is {}, not an object", type_name(value))) };
    let (who, what) = if turn.contains_key("role") { ("role", "content") } else { ("from", "value") };
    let name = match turn.get(who) {
        Some(Value::String(name)) => name,
        _ => {
            return Err(format!(
                "has no `role` (or `from`); it has {}",
                quoted(&turn.keys().cloned().collect::<Vec<_>>())
            ));
        }
    };
    let role = role(name).ok_or_else(|| {
        format!(
            "`{who}` is `{name}`; known are system, user (human), assistant (gpt), tool (observation), function_call"
        )
    })?;
    let tool_calls = turn.get("tool_calls").filter(|c| !c.is_null() && c.as_array().is_none_or(|a| !a.is_empty()));
    let content = match turn.get(what) {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Array(parts)) => parts.iter().map(part).collect::<Result<String, _>>()?,
        Some(Value::Null) | None if tool_calls.is_some() => String::new(),
        None => return Err(format!("has no `{what}`")),
        Some(other) => return Err(format!("`{what}` is {}, not a string", type_name(other))),
    };
    let weight = match turn.get("weight") {
        None | Some(Value::Null) => true,
        Some(w) => match w.as_f64() {
            Some(0.0) => false,
            Some(1.0) => true,
            _ => return Err(format!("`weight` is {w}; 1 learns the turn, 0 does not")),
        },
    };
    let learned = role == "assistant" && weight;
    Ok(Message { role: role.to_owned(), content, learned, tool_calls: tool_calls.cloned() })
}

/// One part of a content that is a list.
fn part(value: &Value) -> Result<&str, String> {
    match (value, value.get("type").and_then(Value::as_str), value.get("text")) {
        (Value::String(text), ..) => Ok(text),
        (_, Some("text") | None, Some(Value::String(text))) => Ok(text),
        (_, Some(kind), _) => Err(format!("has a part of type `{kind}`; only text is learned")),
        _ => Err("has a part without `text`".into()),
    }
}

/// Turns as a list, or one string said by `role`.
pub(super) fn turns(value: &Value, field: &str, role: &str) -> Result<Vec<Message>, String> {
    match value {
        Value::String(text) => Ok(vec![Message::new(role, text.clone())]),
        other => messages(other, field),
    }
}

/// The turn of a `system` field beside the conversation.
pub(super) fn system(fields: &Map<String, Value>) -> Result<Vec<Message>, String> {
    let text = optional(fields, "system")?.filter(|s| !s.trim().is_empty());
    Ok(text.map(|s| Message::new("system", s)).into_iter().collect())
}

/// Alpaca's `history`: pairs of what was asked and answered before.
pub(super) fn history(fields: &Map<String, Value>) -> Result<Vec<Message>, String> {
    let pairs = match fields.get("history") {
        None | Some(Value::Null) => return Ok(Vec::new()),
        Some(Value::Array(pairs)) => pairs,
        Some(other) => return Err(format!("field `history` is {}, not a list of pairs", type_name(other))),
    };
    let mut out = Vec::new();
    for (i, pair) in pairs.iter().enumerate() {
        match pair.as_array().map(Vec::as_slice) {
            Some([Value::String(asked), Value::String(answered)]) => {
                out.extend([Message::new("user", asked.clone()), Message::new("assistant", answered.clone())]);
            }
            _ => return Err(format!("field `history`, pair {i}: expected [what was asked, what was answered]")),
        }
    }
    Ok(out)
}

/// A `tools` field: a list, or a list as JSON text.
pub(super) fn tools(fields: &Map<String, Value>) -> Result<Option<Value>, String> {
    match fields.get("tools") {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Array(list)) => Ok((!list.is_empty()).then(|| Value::Array(list.clone()))),
        Some(Value::String(text)) if text.trim().is_empty() => Ok(None),
        Some(Value::String(text)) => match serde_json::from_str::<Value>(text) {
            Ok(Value::Array(list)) => Ok((!list.is_empty()).then_some(Value::Array(list))),
            _ => Err("field `tools` is a string that is not a JSON list".into()),
        },
        Some(other) => Err(format!("field `tools` is {}, not a list", type_name(other))),
    }
}

/// A conversation that teaches something.
pub(super) fn example(messages: Vec<Message>, tools: Option<Value>) -> Result<Example, String> {
    if !messages.iter().any(|m| m.role == "assistant") {
        return Err("no turn is the assistant's: there is nothing to learn".into());
    }
    if !messages.iter().any(|m| m.learned) {
        return Err("every turn of the assistant has `weight` 0: there is nothing to learn".into());
    }
    Ok(Example::Chat { messages, tools })
}

/// `chosen` and `rejected`, with the prompt beside them or inside both.
pub(super) fn preference(fields: &Map<String, Value>) -> Result<Example, String> {
    let mut prompt = system(fields)?;
    for (field, role) in [("prompt", "user"), ("messages", "user"), ("conversations", "user")] {
        if let Some(value) = fields.get(field).filter(|v| !v.is_null()) {
            prompt.extend(turns(value, field, role)?);
        }
    }
    let side = |field: &str| -> Result<Vec<Message>, String> {
        match needed(fields, field)? {
            one @ Value::Object(_) => Ok(vec![message(one).map_err(|r| format!("field `{field}` {r}"))?]),
            other => turns(other, field, "assistant"),
        }
    };
    let (chosen, rejected) = (side("chosen")?, side("rejected")?);
    let shared = chosen.iter().zip(&rejected).take_while(|(a, b)| a == b).count();
    let shared = shared.min(chosen.len() - 1).min(rejected.len() - 1);
    if prompt.is_empty() {
        prompt.extend_from_slice(&chosen[..shared]);
    }
    let last = |side: &[Message], field: &str| match &side[shared..] {
        [one] if one.role == "assistant" => Ok(one.content.clone()),
        rest => Err(format!("field `{field}` has {} turns of its own; expected one, the assistant's", rest.len())),
    };
    let (chosen, rejected) = (last(&chosen, "chosen")?, last(&rejected, "rejected")?);
    if prompt.is_empty() {
        return Err("no `prompt`, and `chosen` and `rejected` do not begin with the same turns".into());
    }
    if chosen == rejected {
        return Err("`chosen` and `rejected` are the same; the row teaches nothing".into());
    }
    prompt.iter_mut().for_each(|m| m.learned = false);
    Ok(Example::Preference { prompt, chosen, rejected })
}

/// An answer to a prompt, and whether it is wanted.
pub(super) fn judged(fields: &Map<String, Value>, prompt: &str, completion: &str) -> Result<Example, String> {
    let mut asked = system(fields)?;
    asked.extend(turns(needed(fields, prompt)?, prompt, "user")?);
    let completion = match turns(needed(fields, completion)?, completion, "assistant")?.as_slice() {
        [one] if one.role == "assistant" => one.content.clone(),
        rest => return Err(format!("field `{completion}` has {} turns; expected one, the assistant's", rest.len())),
    };
    let label = needed(fields, "label")?;
    let wanted = schema::is_yes_or_no(label)
        .ok_or_else(|| format!("field `label` is {label}; expected true (a wanted answer) or false"))?;
    asked.iter_mut().for_each(|m| m.learned = false);
    Ok(Example::Judged { prompt: asked, completion, wanted })
}
