//! `tools` and `tool_choice`: functions that an answer may call, and the grammar of a call that it must make.

use super::calls::{Form, Reader};
use super::shape::{Wanted, check_name};
use super::wire::{ApiError, ApiResult, Fields, wrong};
use crate::chat::ChatTemplate;
use crate::constrain::{Constraint, bounds, spaced};
use crate::tokenizer::Tokenizer;
use axum::http::StatusCode;
use serde_json::{Value, json};

/// Most functions in a request.
pub(super) const MAX_TOOLS: usize = 64;
/// Most calls in an answer that must call; the model says how many.
const MAX_CALLS: usize = 8;

/// A function that may be called.
#[derive(Debug, Clone, PartialEq)]
struct Function {
    name: String,
    /// JSON schema of its arguments.
    parameters: Value,
}

/// What of the functions an answer must call.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Choice {
    /// Text or calls, as the model likes.
    Auto,
    /// One at least.
    Required,
    /// This one.
    Named(usize),
}

/// Functions that an answer may, or must, call.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Offer {
    /// As the template takes them, which is as they came.
    tools: Vec<Value>,
    functions: Vec<Function>,
    choice: Choice,
    /// Several calls in one answer.
    parallel: bool,
}

impl Offer {
    /// The fields `tools`, `tool_choice` and `parallel_tool_calls`; `None` when nothing is offered.
    pub fn read(fields: &mut Fields) -> ApiResult<Option<Self>> {
        let (tools, choice) = (fields.take("tools"), fields.take("tool_choice"));
        let parallel = fields.bool("parallel_tool_calls")?;
        let tools = match tools {
            None => Vec::new(),
            Some(Value::Array(all)) => all,
            Some(other) => return Err(wrong("tools", "an array", &other)),
        };
        if tools.len() > MAX_TOOLS {
            return Err(ApiError::field("tools", format!("{} tools; at most {MAX_TOOLS} are supported", tools.len())));
        }
        let mut functions: Vec<Function> = Vec::new();
        for (i, tool) in tools.iter().enumerate() {
            let function = read_tool(tool.clone(), &format!("tools[{i}]"))?;
            if functions.iter().any(|f| f.name == function.name) {
                let message = format!("`{}` is offered twice", function.name);
                return Err(ApiError::field(&format!("tools[{i}].function.name"), message));
            }
            functions.push(function);
        }
        let choice = match choice {
            None => Some(Choice::Auto),
            Some(value) => read_choice(value, &functions)?,
        };
        match choice {
            Some(choice) if !functions.is_empty() => {
                Ok(Some(Self { tools, functions, choice, parallel: parallel.unwrap_or(true) }))
            }
            Some(Choice::Required | Choice::Named(_)) => Err(ApiError::field("tool_choice", "needs `tools`")),
            _ => Ok(None),
        }
    }

    /// As the template takes them.
    pub fn into_tools(self) -> Vec<Value> {
        self.tools
    }

    fn must_call(&self) -> bool {
        self.choice != Choice::Auto
    }

    /// Reads the calls of an answer.
    pub fn reader(&self, form: Form) -> Reader {
        let names = self.functions.iter().map(|f| f.name.clone()).collect();
        Reader::new(form, names, self.must_call() && form.forced_mark().is_some())
    }

    /// The constraint under which an answer can only be calls, where it must.
    pub fn wanted(&self, form: Form) -> Option<Wanted> {
        let may: Vec<&Function> = match self.choice {
            Choice::Auto => return None,
            Choice::Required => self.functions.iter().collect(),
            Choice::Named(i) => vec![&self.functions[i]],
        };
        let several = self.parallel && self.choice == Choice::Required && form != Form::Llama;
        let param = match self.choice {
            Choice::Named(i) => format!("tools[{i}].function.parameters"),
            _ => "tools".to_owned(),
        };
        Some(Wanted { constraint: Constraint::Lark(lark(&may, form, several)), param })
    }

    /// Ids that a prompt ends with, so that a call must follow.
    pub fn forced(&self, form: Form, tokenizer: &Tokenizer) -> ApiResult<Vec<u32>> {
        match form.forced_mark().filter(|_| self.must_call()) {
            Some(mark) => Ok(tokenizer.encode(mark, false)?),
            None => Ok(Vec::new()),
        }
    }
}

/// A grammar of calls, each to one of these functions.
fn lark(may: &[&Function], form: Form, several: bool) -> String {
    let text = |s: &str| Value::from(s).to_string();
    let more = |between: &str| match several {
        true => format!(" ({} call){{0,{}}}", text(between), MAX_CALLS - 1),
        false => String::new(),
    };
    let (open, close) = ("<tool_call>\n", "\n</tool_call>");
    let mut out = match form {
        Form::Hermes => {
            format!("start: one{}\none: {} call {}\n", more_tagged(several, &text("\n")), text(open), text(close))
        }
        Form::Mistral => format!("start: \"[\" call{} \"]\"\n", more(", ")),
        Form::Llama => "start: call\n".to_owned(),
    };
    let names: Vec<String> = (0..may.len()).map(|i| format!("f{i}")).collect();
    out.push_str(&format!("call: {}\n", names.join(" | ")));
    for (i, function) in may.iter().enumerate() {
        let head = format!("{{\"name\": {}, \"{}\": ", text(&function.name), form.arguments());
        out.push_str(&format!("f{i}: {} a{i} \"}}\"\na{i}: %json {}\n", text(&head), spaced(&function.parameters)));
    }
    out
}

fn more_tagged(several: bool, between: &str) -> String {
    if several { format!(" ({between} one){{0,{}}}", MAX_CALLS - 1) } else { String::new() }
}

fn read_tool(value: Value, name: &str) -> ApiResult<Function> {
    let mut tool = Fields::of(value, name)?;
    let kind = tool.required_string("type")?;
    if kind != "function" {
        return Err(ApiError::field(&tool.name("type"), format!("`{kind}` is not supported; only `function` is")));
    }
    let at = tool.name("function");
    let function = tool.take("function").ok_or_else(|| tool.missing("function"))?;
    tool.finish()?;
    let mut function = Fields::of(function, &at)?;
    let name = function.required_string("name")?;
    check_name(&function.name("name"), &name)?;
    function.string("description")?; // the template shows it
    function.bool("strict")?; // arguments that are constrained are so either way
    let at = function.name("parameters");
    let parameters = function.take("parameters").unwrap_or_else(|| json!({"type": "object", "properties": {}}));
    function.finish()?;
    if !parameters.is_object() {
        return Err(wrong(&at, "a JSON schema, which is an object", &parameters));
    }
    bounds::schema(&parameters).map_err(|e| ApiError::field(&at, e))?;
    Ok(Function { name, parameters })
}

/// `tool_choice`; `None` when nothing may be called.
fn read_choice(value: Value, functions: &[Function]) -> ApiResult<Option<Choice>> {
    const KNOWN: &str = "give none, auto, required, or {\"type\": \"function\", \"function\": {\"name\": ..}}";
    if let Value::String(word) = &value {
        return match word.as_str() {
            "none" => Ok(None),
            "auto" => Ok(Some(Choice::Auto)),
            "required" => Ok(Some(Choice::Required)),
            other => Err(ApiError::field("tool_choice", format!("`{other}` is not known; {KNOWN}"))),
        };
    }
    if !value.is_object() {
        return Err(wrong("tool_choice", "a string or an object", &value));
    }
    let mut fields = Fields::of(value, "tool_choice")?;
    let kind = fields.required_string("type")?;
    if kind != "function" {
        return Err(ApiError::field("tool_choice.type", format!("`{kind}` is not known; {KNOWN}")));
    }
    let function = fields.take("function").ok_or_else(|| fields.missing("function"))?;
    fields.finish()?;
    let mut function = Fields::of(function, "tool_choice.function")?;
    let name = function.required_string("name")?;
    function.finish()?;
    match functions.iter().position(|f| f.name == name) {
        Some(i) => Ok(Some(Choice::Named(i))),
        None => Err(ApiError::field("tool_choice.function.name", format!("no function `{name}` in `tools`"))),
    }
}

/// The form in which a template's model writes its calls.
/// # Errors
/// 400 for a template that takes no tools, or shows them in a form that is not known here.
pub(super) fn form(chat: &ChatTemplate, param: &str) -> ApiResult<Form> {
    let refused = |why: &str| {
        let message = format!("`{param}`: {why}; leave it out, or serve a model that was tuned on tools");
        let error = ApiError::new(StatusCode::BAD_REQUEST, "unsupported_by_model", message);
        ApiError { param: Some(param.to_owned()), ..error }
    };
    if !chat.source().contains("tools") && !chat.source().contains("tool_calls") {
        return Err(refused("the model's chat template takes no tools"));
    }
    Form::of(chat.source()).ok_or_else(|| refused("the model's chat template has calls in a form not known here"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::constrain::tests::{tokenizer, write};
    use crate::server::calls::Said;

    fn offer(choice: Value) -> Offer {
        let schema = json!({"type": "object", "additionalProperties": false, "required": ["to"], "properties":
            {"to": {"$ref": "#/$defs/to"}}, "$defs": {"to": {"enum": ["a\"b", "{é}"]}}});
        let tool = |name: &str| json!({"type": "function", "function": {"name": name, "parameters": schema}});
        let body = json!({"tools": [tool("f"), tool("g-2")], "tool_choice": choice});
        Offer::read(&mut Fields::parse(body.to_string().as_bytes()).unwrap()).unwrap().unwrap()
    }

    #[test]
    fn what_a_forced_grammar_writes_is_read_as_calls_in_every_form() {
        let tokenizer = tokenizer();
        for form in [Form::Hermes, Form::Llama, Form::Mistral] {
            let mut most = 0;
            for seed in 0..12 {
                let named = json!({"type": "function", "function": {"name": "g-2"}});
                let offer = offer(if seed % 2 == 0 { "required".into() } else { named });
                let wanted = offer.wanted(form).unwrap();
                let (text, ended) = write(&wanted.constraint, &tokenizer, seed, 3000);
                assert!(ended, "{text}");
                let mut reader = offer.reader(form);
                let mut said = reader.push(&text);
                said.extend(reader.finish());
                for one in &said {
                    let Said::Call(call) = one else { panic!("{form:?}: {one:?} in {text}") };
                    let arguments: Value = serde_json::from_str(&call.arguments).unwrap();
                    assert!(arguments["to"] == "a\"b" || arguments["to"] == "{é}", "{text}");
                    assert!(call.name == "g-2" || (call.name == "f" && seed % 2 == 0), "{text}");
                }
                assert!(!said.is_empty() && said.len() <= MAX_CALLS && (seed % 2 == 0 || said.len() == 1), "{text}");
                most = most.max(said.len());
            }
            assert_eq!(most > 1, form != Form::Llama, "{form:?} writes up to {most} calls");
        }
    }

    #[test]
    fn a_choice_of_none_offers_nothing_and_auto_holds_nothing() {
        let auto = offer("auto".into());
        assert!(auto.wanted(Form::Hermes).is_none() && auto.forced(Form::Mistral, &tokenizer()).unwrap().is_empty());
        assert_eq!(auto.clone().into_tools()[0]["function"]["name"], "f");
        let none = json!({"tools": auto.into_tools(), "tool_choice": "none"}).to_string();
        assert_eq!(Offer::read(&mut Fields::parse(none.as_bytes()).unwrap()), Ok(None));
    }
}
