//! Messages -> text, by the Jinja template inside the file, as transformers renders it; and the spans of that text which an
//! assistant is taught.
//!
//! Template and tokenizer travel together, so training and serving render alike. A file without a template has no chat: a
//! guessed one would look right and answer badly. Templates are input like any other: a render is bounded in steps and in
//! output.

use std::io::{self, Write};
use std::ops::Range;
use std::sync::Mutex;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Value, ValueKind};
use minijinja::{Environment, ErrorKind};
use serde_json::Value as Json;

use crate::error::{Error, Kind, Result};
use crate::tokenizer::Tokenizer;

/// Steps a render may take.
const FUEL: u64 = 10_000_000;
/// Bytes a render may give, beside four times its input.
const OUTPUT: usize = 1 << 20;
/// Marks around `{% generation %}` blocks; private-use characters that a message may not hold.
const MARKS: (char, char) = ('\u{F8FFE}', '\u{F8FFF}');

/// One turn of a chat.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Message {
    /// `system`, `user`, `assistant`, `tool`, or what else the template knows.
    pub role: String,
    /// The text.
    pub content: String,
    /// Further fields that the template may read, such as `tool_calls`, in order.
    pub extra: Vec<(String, Json)>,
}

impl Message {
    /// A turn of plain text.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into(), extra: Vec::new() }
    }

    /// Whether it calls functions, so that it may say nothing besides.
    pub fn calls(&self) -> bool {
        self.extra.iter().any(|(name, _)| name == "tool_calls")
    }
}

/// A rendered chat with the byte ranges that an assistant is taught, in order, without overlap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taught {
    /// The whole chat.
    pub text: String,
    /// Ranges of `text`.
    pub learned: Vec<Range<usize>>,
}

/// A chat template, ready to render.
#[derive(Debug, Clone)]
pub struct ChatTemplate {
    source: String,
    env: Environment<'static>,
    bos_token: String,
    eos_token: String,
    has_generation: bool,
}

impl ChatTemplate {
    /// The date that `strftime_now` gives unless another is set: the one that Llama's templates fall back to. A date that
    /// moved would change what a model reads from one day to the next.
    pub const DATE: (u16, u8, u8) = (2024, 7, 26);

    /// # Errors
    /// [`Kind::Input`] with the line when the template is not Jinja that is known here.
    pub fn new(source: &str, bos_token: &str, eos_token: &str) -> Result<Self> {
        Self::with_date(source, bos_token, eos_token, Self::DATE)
    }

    /// As [`ChatTemplate::new`], with the (year, month, day) that `strftime_now` gives.
    /// # Errors
    /// As [`ChatTemplate::new`].
    pub fn with_date(source: &str, bos_token: &str, eos_token: &str, date: (u16, u8, u8)) -> Result<Self> {
        if source.contains([MARKS.0, MARKS.1]) {
            return Err(input(format!("the template holds U+{:X}, which is kept for marks", MARKS.0 as u32)));
        }
        let (compiled, has_generation) = generation_as_filter(source);
        let mut env = Environment::new();
        env.set_syntax(
            SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build().map_err(|e| template_error(&e))?,
        );
        env.set_fuel(Some(FUEL));
        env.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        env.add_filter("tojson", to_json);
        env.add_filter("__generation", |body: String, marked: bool| match marked {
            true => format!("{}{body}{}", MARKS.0, MARKS.1),
            false => body,
        });
        env.add_function("raise_exception", |message: String| -> Result<Value, minijinja::Error> {
            Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
        });
        env.add_function("strftime_now", move |format: String| strftime(&format, date));
        env.add_template_owned("chat", compiled).map_err(|e| template_error(&e))?;
        let (bos_token, eos_token) = (bos_token.to_string(), eos_token.to_string());
        Ok(Self { source: source.to_string(), env, bos_token, eos_token, has_generation })
    }

    /// The template as the file holds it.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The text of `messages`; with `add_generation_prompt`, up to where the assistant begins to speak. `tools` is a list of
    /// JSON schemas. The text already holds BOS where the template writes it: encode it without special tokens.
    /// # Errors
    /// [`Kind::Input`] with the template's own words when it refuses the messages; [`Kind::Limit`] when a render takes too
    /// many steps or gives too much text.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool, tools: Option<&[Json]>) -> Result<String> {
        self.render_with(messages, add_generation_prompt, tools, false)
    }

    fn render_with(&self, messages: &[Message], prompt: bool, tools: Option<&[Json]>, marked: bool) -> Result<String> {
        let context = [
            ("messages", messages.iter().map(message).collect::<Value>()),
            ("add_generation_prompt", prompt.into()),
            ("bos_token", self.bos_token.as_str().into()),
            ("eos_token", self.eos_token.as_str().into()),
            // transformers gives both names always: `tools is defined` holds without tools.
            ("tools", tools.map_or(Value::from(()), |tools| tools.iter().map(value).collect())),
            ("documents", Value::from(())),
            ("__marked", marked.into()),
        ];
        let given: usize = messages.iter().map(|m| m.content.len()).sum();
        let out = Mutex::new(Bounded { bytes: Vec::new(), left: OUTPUT.saturating_add(4 * given) });
        let template = self.env.get_template("chat").map_err(|e| template_error(&e))?;
        template.render_captured_to(Value::from_pairs(context), Shared(&out)).map_err(|e| template_error(&e))?;
        let bytes = out.into_inner().map_err(|_| input("the render was interrupted".into()))?.bytes;
        String::from_utf8(bytes).map_err(|_| input("the template gives text that is not UTF-8".into()))
    }

    /// The chat as training sees it, with what the assistant is taught: every assistant turn from where a generation prompt
    /// ends to its end-of-turn mark.
    ///
    /// A template with `{% generation %}` blocks says it itself. For others, the chat is rendered turn by turn: each render
    /// must begin with the one before it, or the template rewrites earlier turns and no span can be trusted.
    /// # Errors
    /// [`Kind::Input`] when the renders disagree, and names the turn; otherwise as [`ChatTemplate::render`].
    pub fn spans(&self, messages: &[Message], tools: Option<&[Json]>) -> Result<Taught> {
        if self.has_generation { self.marked_spans(messages, tools) } else { self.prefix_spans(messages, tools) }
    }

    fn marked_spans(&self, messages: &[Message], tools: Option<&[Json]>) -> Result<Taught> {
        if let Some(turn) = messages.iter().position(|m| m.content.contains([MARKS.0, MARKS.1])) {
            return Err(input(format!("message {turn} holds U+{:X}, which is kept for marks", MARKS.0 as u32)));
        }
        let marked = self.render_with(messages, false, tools, true)?;
        let (mut text, mut learned, mut open) = (String::new(), Vec::new(), None);
        for c in marked.chars() {
            match c {
                c if c == MARKS.0 => open = Some(text.len()),
                c if c == MARKS.1 => learned.extend(open.take().map(|from| from..text.len()).filter(|r| !r.is_empty())),
                c => text.push(c),
            }
        }
        Ok(Taught { text, learned })
    }

    fn prefix_spans(&self, messages: &[Message], tools: Option<&[Json]>) -> Result<Taught> {
        let text = self.render(messages, false, tools)?;
        let mut learned: Vec<Range<usize>> = Vec::new();
        for (turn, message) in messages.iter().enumerate().filter(|(_, m)| m.role == "assistant") {
            let disagree = |what: &str| {
                input(format!(
                    "message {turn}: {what}; what the assistant is taught cannot be told. Use a template with \
                     {{% generation %}} blocks, or one that leaves earlier turns as they are"
                ))
            };
            let prompt =
                self.render(&messages[..turn], true, tools).map_err(|e| e.at(&format!("before message {turn}")))?;
            let mut upto = self.render(&messages[..=turn], false, tools)?;
            // Some templates close a whole chat, not each turn, with EOS.
            if !text.starts_with(&upto) && !self.eos_token.is_empty() && upto.ends_with(&self.eos_token) {
                upto.truncate(upto.len() - self.eos_token.len());
            }
            if !text.starts_with(&upto) {
                return Err(disagree("the template writes this turn differently once others follow it"));
            }
            if !upto.starts_with(&prompt) {
                return Err(disagree("the template's generation prompt is not how it begins this turn"));
            }
            let end = end_of_turn(&upto, prompt.len(), message);
            if learned.last().is_some_and(|last| last.end > prompt.len()) {
                return Err(disagree("the template's turns overlap"));
            }
            learned.push(prompt.len()..end);
        }
        Ok(Taught { text, learned })
    }
}

/// Where the taught part of a turn ends: behind the end-of-turn mark, before the line break that only parts turns. Where
/// the line break is all there is, it is the mark.
fn end_of_turn(upto: &str, from: usize, message: &Message) -> usize {
    let body = message.content.trim();
    let behind = upto[from..].rfind(body).map_or(from, |at| from + at + body.len());
    let tail = &upto[behind..];
    let lead = tail.len() - tail.trim_start().len();
    match tail[lead..].lines().next() {
        Some(mark) => behind + lead + mark.trim_end().len(),
        None => upto.len(),
    }
}

/// Ids of a chat up to where the assistant begins to speak.
/// # Errors
/// [`Kind::Missing`] when the model has no chat template; as [`ChatTemplate::render`].
pub fn chat_ids(
    chat: Option<&ChatTemplate>,
    tokenizer: &Tokenizer,
    messages: &[Message],
    tools: Option<&[Json]>,
) -> Result<Vec<u32>> {
    let chat = chat.ok_or_else(|| {
        let way_out = "the model has none, and a guessed one would answer badly; complete a plain prompt instead";
        Error::new(Kind::Missing, "chat template", way_out)
    })?;
    tokenizer.encode(&chat.render(messages, true, tools)?, false)
}

/// The prompt of a question over a text, in training and in serving. The completion is a space, the answer, and EOS.
pub fn answer_prompt(question: &str, context: &str) -> String {
    format!("Context: {context}\nQuestion: {question}\nAnswer:")
}

/// minijinja has no `{% generation %}`; a filter block has the same shape, keeps the whitespace marks, and sees the body.
fn generation_as_filter(source: &str) -> (String, bool) {
    let (mut out, mut rest, mut found) = (String::with_capacity(source.len()), source, false);
    while let Some(at) = rest.find("{%") {
        let Some(len) = rest[at..].find("%}") else { break };
        let tag = &rest[at + 2..at + len];
        let (left, inner) = tag.strip_prefix(['-', '+']).map_or(("", tag), |inner| (&tag[..1], inner));
        let (right, inner) = inner.strip_suffix(['-', '+']).map_or(("", inner), |i| (&inner[inner.len() - 1..], i));
        let with = match inner.trim() {
            "generation" => Some("filter __generation(__marked)"),
            "endgeneration" => Some("endfilter"),
            _ => None,
        };
        out.push_str(&rest[..at]);
        match with {
            Some(with) => out.push_str(&format!("{{%{left} {with} {right}%}}")),
            None => out.push_str(&rest[at..at + len + 2]),
        }
        found |= with.is_some();
        rest = &rest[at + len + 2..];
    }
    out.push_str(rest);
    (out, found)
}

fn message(message: &Message) -> Value {
    let own = [("role", message.role.as_str().into()), ("content", message.content.as_str().into())];
    Value::from_pairs(own.into_iter().chain(message.extra.iter().map(|(k, v)| (k.as_str(), value(v)))))
}

fn value(json: &Json) -> Value {
    match json {
        Json::Null => Value::from(()),
        Json::Bool(b) => (*b).into(),
        Json::Number(n) => match (n.as_i64(), n.as_u64()) {
            (Some(i), _) => i.into(),
            (None, Some(u)) => u.into(),
            (None, None) => n.as_f64().unwrap_or(f64::NAN).into(),
        },
        Json::String(s) => s.as_str().into(),
        Json::Array(all) => all.iter().map(value).collect(),
        Json::Object(map) => Value::from_pairs(map.iter().map(|(k, v)| (k.as_str(), value(v)))),
    }
}

/// Python's `json.dumps(x, ensure_ascii=False)`: minijinja's own filter escapes for HTML, which a model never saw.
fn to_json(value: &Value, kwargs: Kwargs) -> Result<Value, minijinja::Error> {
    let indent: Option<usize> = kwargs.get("indent")?;
    let _: Option<bool> = kwargs.get("ensure_ascii")?;
    let _: Option<bool> = kwargs.get("sort_keys")?;
    kwargs.assert_all_used()?;
    let mut out = String::new();
    dump(value, indent, 0, &mut out)?;
    Ok(Value::from_safe_string(out))
}

fn dump(value: &Value, indent: Option<usize>, depth: usize, out: &mut String) -> Result<(), minijinja::Error> {
    if depth > 64 {
        return Err(minijinja::Error::new(ErrorKind::InvalidOperation, "tojson: nested deeper than 64"));
    }
    let line = |out: &mut String, depth: usize| {
        if let Some(indent) = indent {
            out.push('\n');
            out.push_str(&" ".repeat(indent.min(16) * depth));
        }
    };
    let comma = if indent.is_some() { "," } else { ", " };
    match value.kind() {
        ValueKind::Undefined | ValueKind::None => out.push_str("null"),
        ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
        ValueKind::Number => out.push_str(&value.to_string()),
        ValueKind::String => out.push_str(&Json::from(value.as_str().unwrap_or_default()).to_string()),
        ValueKind::Map => {
            out.push('{');
            for (i, key) in value.try_iter()?.enumerate() {
                out.push_str(if i > 0 { comma } else { "" });
                line(out, depth + 1);
                out.push_str(&Json::from(key.to_string()).to_string());
                out.push_str(": ");
                dump(&value.get_item(&key)?, indent, depth + 1, out)?;
            }
            if value.len() != Some(0) {
                line(out, depth);
            }
            out.push('}');
        }
        ValueKind::Seq | ValueKind::Iterable => {
            out.push('[');
            let mut any = false;
            for item in value.try_iter()? {
                out.push_str(if any { comma } else { "" });
                any = true;
                line(out, depth + 1);
                dump(&item, indent, depth + 1, out)?;
            }
            if any {
                line(out, depth);
            }
            out.push(']');
        }
        kind => {
            return Err(minijinja::Error::new(ErrorKind::InvalidOperation, format!("tojson: {kind} is not JSON")));
        }
    }
    Ok(())
}

/// C's `strftime` for a date at midnight: the fields that templates ask for.
fn strftime(format: &str, (year, month, day): (u16, u8, u8)) -> Result<String, minijinja::Error> {
    const MONTHS: [&str; 12] = [
        "January",
        "February",
        "March",
        "April",
        "May",
        "June",
        "July",
        "August",
        "September",
        "October",
        "November",
        "December",
    ];
    const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];
    let month_name = MONTHS[(month as usize + 11) % 12];
    // Sakamoto's day of the week: years begin in March.
    let shift = [0, 3, 2, 5, 0, 3, 5, 1, 4, 6, 2, 4][(month as usize + 11) % 12];
    let y = year as usize - (month < 3) as usize;
    let weekday = DAYS[(y + y / 4 - y / 100 + y / 400 + shift + day as usize) % 7];
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        match chars.next() {
            Some('Y') => out.push_str(&year.to_string()),
            Some('y') => out.push_str(&format!("{:02}", year % 100)),
            Some('m') => out.push_str(&format!("{month:02}")),
            Some('d') => out.push_str(&format!("{day:02}")),
            Some('e') => out.push_str(&format!("{day:2}")),
            Some('B') => out.push_str(month_name),
            Some('b' | 'h') => out.push_str(&month_name[..3]),
            Some('A') => out.push_str(weekday),
            Some('a') => out.push_str(&weekday[..3]),
            Some('F') => out.push_str(&format!("{year}-{month:02}-{day:02}")),
            Some('H' | 'M' | 'S') => out.push_str("00"),
            Some('%') => out.push('%'),
            other => {
                let field = other.map_or("%".into(), |c| format!("%{c}"));
                let message = format!("strftime_now: the field {field} is not known here");
                return Err(minijinja::Error::new(ErrorKind::InvalidOperation, message));
            }
        }
    }
    Ok(out)
}

/// What a render has given so far, up to a bound.
struct Bounded {
    bytes: Vec<u8>,
    left: usize,
}

/// The renderer takes its writer for good; this lends it.
struct Shared<'a>(&'a Mutex<Bounded>);

impl Write for Shared<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut out = self.0.lock().map_err(|_| io::Error::other("poisoned"))?;
        out.left = out.left.checked_sub(bytes.len()).ok_or(io::ErrorKind::FileTooLarge)?;
        out.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn template_error(error: &minijinja::Error) -> Error {
    let at = error.line().map_or("chat template".to_string(), |line| format!("chat template, line {line}"));
    match error.kind() {
        ErrorKind::OutOfFuel => Error::new(Kind::Limit, at, format!("the render takes more than {FUEL} steps")),
        ErrorKind::WriteFailure => Error::new(Kind::Limit, at, "the render gives far more text than it was given"),
        _ => Error::new(Kind::Input, at, error.detail().map_or_else(|| error.to_string(), str::to_string)),
    }
}

fn input(message: String) -> Error {
    Error::new(Kind::Input, "chat template", message)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHATML: &str = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}\
        {% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

    fn chat() -> Vec<Message> {
        vec![
            Message::new("user", "Hi"),
            Message::new("assistant", "Hello 😀"),
            Message::new("user", "Bye"),
            Message::new("assistant", "So long"),
        ]
    }

    fn template(source: &str) -> ChatTemplate {
        ChatTemplate::new(source, "<s>", "</s>").unwrap()
    }

    #[track_caller]
    fn check_spans(source: &str, want: &[&str]) {
        let taught = template(source).spans(&chat(), None).unwrap();
        assert_eq!(taught.learned.iter().map(|r| &taught.text[r.clone()]).collect::<Vec<_>>(), want);
        assert_eq!(taught.text, template(source).render(&chat(), false, None).unwrap());
    }

    #[track_caller]
    fn check(source: &str, want: &str) {
        assert_eq!(template(source).render(&chat()[..1], true, None).unwrap(), want);
    }

    #[track_caller]
    fn refuses(source: &str, kind: Kind, because: &str) {
        let error = ChatTemplate::new(source, "<s>", "</s>").and_then(|t| t.render(&chat(), false, None)).unwrap_err();
        assert_eq!((error.kind(), error.to_string().as_str()), (kind, because));
    }

    #[test]
    fn a_chat_renders_as_jinja2_with_trimmed_blocks_does() {
        check(CHATML, "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n");
        check("{{ bos_token }}\n  {% if true %}\nx{{ eos_token }}\n  {%- endif %}\n", "<s>\nx</s>");
        check("{{ messages[0].content.strip().upper() }} {{ messages[-1]['role'] }}", "HI user");
        check("{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}x{% endfor %}", "");
        check("{{ strftime_now('%d %b %Y, %A') }}", "26 Jul 2024, Friday");
        check("{{ tools is none }} {{ 'tool_calls' in messages[0] }}", "True False");
    }

    #[test]
    fn tojson_is_pythons() {
        let tool = serde_json::json!({"name": "f<é>", "parameters": {"b": [1, 2.5, null, true], "a": {}}});
        let render = |source: &str| template(source).render(&[], false, Some(std::slice::from_ref(&tool))).unwrap();
        assert_eq!(
            render("{{ tools[0] | tojson }}"),
            r#"{"name": "f<é>", "parameters": {"b": [1, 2.5, null, true], "a": {}}}"#
        );
        assert_eq!(render("{{ tools[0].parameters.b[:2] | tojson(indent=4) }}"), "[\n    1,\n    2.5\n]");
    }

    #[test]
    fn an_assistant_is_taught_its_turns_up_to_the_end_mark() {
        check_spans(CHATML, &["Hello 😀<|im_end|>", "So long<|im_end|>"]);
        check_spans(
            "{% for m in messages %}{{ m.role[0] + ': ' + m.content + '\n' }}{% endfor %}\
             {% if add_generation_prompt %}{{ 'a: ' }}{% endif %}",
            &["Hello 😀\n", "So long\n"],
        );
        check_spans(
            "{% for m in messages %}{{ '[' + m.role + ']' + m.content + '/' }}{% endfor %}\
             {% if add_generation_prompt %}[assistant]{% else %}{{ eos_token }}{% endif %}",
            &["Hello 😀/", "So long/</s>"],
        );
    }

    #[test]
    fn generation_blocks_say_it_themselves() {
        check_spans(
            "{% for m in messages %}{% if m.role == 'assistant' %}A:{%- generation -%}\n {{ m.content }}<e>\n\
             {%- endgeneration %}\n{% else %}U:{{ m.content }}{% endif %}{% endfor %}",
            &["Hello 😀<e>", "So long<e>"],
        );
    }

    #[test]
    fn renders_that_disagree_are_refused() {
        let forgets =
            "{% for m in messages %}{% if m.role == 'user' or loop.last %}{{ m.content }}{% endif %}{% endfor %}";
        let error = template(forgets).spans(&chat(), None).unwrap_err().to_string();
        assert!(error.starts_with("chat template: message 1: the template writes this turn differently"), "{error}");
    }

    #[test]
    fn a_template_that_refuses_or_runs_away_is_an_error() {
        refuses("{{ raise_exception('no system role') }}", Kind::Input, "chat template, line 1: no system role");
        refuses("\n{% for %}", Kind::Input, "chat template, line 2: unexpected end of block, expected in");
        let long = "{% for i in range(9999) %}{% for j in range(9999) %}{% endfor %}{% endfor %}";
        refuses(long, Kind::Limit, "chat template, line 1: the render takes more than 10000000 steps");
        let wide = "{% for i in range(9999) %}{{ 'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx' * 100 }}{% endfor %}";
        refuses(wide, Kind::Limit, "chat template: the render gives far more text than it was given");
    }
}
