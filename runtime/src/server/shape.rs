//! `response_format`: what an answer must be, as OpenAI's API says it, and the grammar it becomes.

use super::Serving;
use super::calls::Reader;
use super::tools::{self, Offer};
use super::wire::{ApiError, ApiResult, Fields, wrong};
use crate::constrain::{Constraint, Grammar};
use crate::tokenizer::{TokenKind, Tokenizer};
use serde_json::Value;

/// Longest name of a schema or a function, as OpenAI's API has it.
const MAX_NAME: usize = 64;

/// What an answer must be, and the tools that it may call.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Shape {
    pub wanted: Option<Wanted>,
    pub offer: Option<Offer>,
}

/// A constraint, and the field that asked for it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Wanted {
    pub constraint: Constraint,
    pub param: String,
}

impl Wanted {
    /// # Errors
    /// 400 that names the field, when no grammar becomes of it.
    pub fn grammar(&self, tokenizer: &Tokenizer) -> ApiResult<Grammar> {
        let made = Grammar::new(&self.constraint, tokenizer).map_err(|e| ApiError::field(&self.param, e))?;
        Ok(made.named(&self.param))
    }
}

/// What of a shape a generation takes.
#[derive(Default)]
pub(super) struct Ready {
    pub grammar: Option<Grammar>,
    /// What the prompt ends with, so that a call must follow.
    pub forced: Vec<u32>,
    /// Control tokens that the text shows: the marks of calls.
    pub show: Vec<u32>,
}

impl Shape {
    /// The fields of a chat.
    pub fn of_chat(fields: &mut Fields) -> ApiResult<Self> {
        let shape = Self { offer: Offer::read(fields)?, ..Self::of_text(fields)? };
        match (&shape.wanted, &shape.offer) {
            (Some(_), Some(_)) => {
                let message =
                    "it and `tools` cannot both say what the answer is; leave one out, or set `tool_choice` to none";
                Err(ApiError::field("response_format", message))
            }
            _ => Ok(shape),
        }
    }

    /// The fields of a completion.
    pub fn of_text(fields: &mut Fields) -> ApiResult<Self> {
        Ok(Self { wanted: fields.take("response_format").map_or(Ok(None), read)?, offer: None })
    }

    pub fn is_free(&self) -> bool {
        self.wanted.is_none() && self.offer.is_none()
    }

    /// What reads the calls of an answer, where functions are offered.
    pub fn reader(&self, serving: &Serving) -> ApiResult<Option<Reader>> {
        match (&self.offer, &serving.chat) {
            (Some(offer), Some(chat)) => Ok(Some(offer.reader(tools::form(chat, "tools")?))),
            _ => Ok(None), // a chat without a template is refused for that
        }
    }

    /// # Errors
    /// 400 that names the field, when no grammar becomes of it, or the model takes no tools.
    pub fn ready(&self, serving: &Serving, tokenizer: &Tokenizer) -> ApiResult<Ready> {
        let mut ready = Ready::default();
        let mut wanted = self.wanted.clone();
        if let (Some(offer), Some(chat)) = (&self.offer, &serving.chat) {
            let form = tools::form(chat, "tools")?;
            let control = |id: &u32| tokenizer.kind(*id) == Some(TokenKind::Control);
            ready.show = form.marks().iter().filter_map(|mark| tokenizer.token_to_id(mark)).filter(control).collect();
            ready.forced = offer.forced(form, tokenizer)?;
            wanted = offer.wanted(form);
        }
        ready.grammar = wanted.map(|wanted| wanted.grammar(tokenizer)).transpose()?;
        Ok(ready)
    }
}

/// `response_format`.
pub(super) fn read(value: Value) -> ApiResult<Option<Wanted>> {
    let mut fields = Fields::of(value, "response_format")?;
    let kind = fields.required_string("type")?;
    let wanted = match kind.as_str() {
        "text" => None,
        "json_object" => Some(Wanted { constraint: Constraint::Json, param: "response_format".into() }),
        "json_schema" => {
            let inner = fields.take("json_schema").ok_or_else(|| fields.missing("json_schema"))?;
            Some(read_schema(Fields::of(inner, &fields.name("json_schema"))?)?)
        }
        other => {
            let message = format!("`{other}` is not known; give text, json_object or json_schema");
            return Err(ApiError::field(&fields.name("type"), message));
        }
    };
    fields.finish()?;
    Ok(wanted)
}

fn read_schema(mut fields: Fields) -> ApiResult<Wanted> {
    let name = fields.required_string("name")?;
    check_name(&fields.name("name"), &name)?;
    fields.string("description")?;
    fields.bool("strict")?; // the schema is kept either way
    let param = fields.name("schema");
    let schema = fields.take("schema").ok_or_else(|| fields.missing("schema"))?;
    fields.finish()?;
    if !schema.is_object() {
        return Err(wrong(&param, "a JSON schema, which is an object", &schema));
    }
    Ok(Wanted { constraint: Constraint::JsonSchema(schema), param })
}

/// A name of letters, digits, `_` and `-`.
pub(super) fn check_name(param: &str, name: &str) -> ApiResult<()> {
    let known = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    match name.len() {
        1..=MAX_NAME if name.chars().all(known) => Ok(()),
        _ => Err(ApiError::field(param, format!("give 1 to {MAX_NAME} of the characters a-z A-Z 0-9 _ -"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[track_caller]
    fn refused(value: Value, param: &str, message: &str) {
        let e = read(value).unwrap_err();
        assert_eq!(e.param.as_deref(), Some(param), "{}", e.message);
        assert!(e.message.contains(message), "{}", e.message);
    }

    fn schema(more: Value) -> Value {
        let mut inner = json!({"name": "n", "schema": {"type": "null"}});
        more.as_object().unwrap().iter().for_each(|(k, v)| inner[k] = v.clone());
        json!({"type": "json_schema", "json_schema": inner})
    }

    #[test]
    fn the_three_types_are_read_as_openai_documents_them() {
        assert_eq!(read(json!({"type": "text"})), Ok(None));
        assert_eq!(read(json!({"type": "json_object"})).unwrap().unwrap().constraint, Constraint::Json);
        let strict = read(schema(json!({"strict": true, "description": "nothing"}))).unwrap().unwrap();
        assert_eq!(strict.constraint, Constraint::JsonSchema(json!({"type": "null"})));
        assert_eq!(strict.param, "response_format.json_schema.schema");
    }

    #[test]
    fn what_is_wrong_is_named_by_its_path() {
        refused(json!({}), "response_format.type", "missing");
        refused(json!({"type": "grammar"}), "response_format.type", "json_schema");
        refused(json!({"type": "text", "json_schema": {}}), "response_format.json_schema", "not supported");
        refused(json!({"type": "json_schema"}), "response_format.json_schema", "missing");
        refused(schema(json!({"name": null})), "response_format.json_schema.name", "missing");
        refused(schema(json!({"name": "a b"})), "response_format.json_schema.name", "1 to 64");
        refused(schema(json!({"schema": null})), "response_format.json_schema.schema", "missing");
        refused(schema(json!({"schema": [1]})), "response_format.json_schema.schema", "an object");
        refused(schema(json!({"strict": "yes"})), "response_format.json_schema.strict", "true or false");
        refused(schema(json!({"more": 1})), "response_format.json_schema.more", "not supported");
    }
}
