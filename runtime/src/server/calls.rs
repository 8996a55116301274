//! Text of a model -> what it says and the functions it calls, as it comes. Models write calls in the form that their chat
//! templates show them; which form that is, is told from the template's text.

use serde_json::Value;

/// How a model writes its calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// `<tool_call>{"name": .., "arguments": {..}}</tool_call>`: Hermes, Qwen 2.5 and 3.
    Hermes,
    /// The whole answer is `{"name": .., "parameters": {..}}`: Llama 3.1 and 3.2.
    Llama,
    /// `[TOOL_CALLS][{"name": .., "arguments": {..}}, ..]`: Mistral up to its tokenizer's version 3.
    Mistral,
}

const OPEN: &str = "<tool_call>";
const CLOSE: &str = "</tool_call>";
const LIST: &str = "[TOOL_CALLS]";
const PYTHON: &str = "<|python_tag|>";

impl Form {
    /// The form that a template shows; `None` for one that is not known here.
    pub fn of(template: &str) -> Option<Self> {
        let has = |mark: &str| template.contains(mark);
        match () {
            // Qwen3-Coder and GLM put XML between the same tags.
            () if has(OPEN) && !has("<function=") && !has("<arg_key>") => Some(Self::Hermes),
            // Later Mistrals part names from arguments by another token.
            () if has(LIST) && !has("[ARGS]") => Some(Self::Mistral),
            () if has("\"parameters\": ") && has("ipython") => Some(Self::Llama),
            () => None,
        }
    }

    /// What stands before calls, where it may be a control token that a text would not show.
    pub fn marks(self) -> &'static [&'static str] {
        match self {
            Self::Hermes => &[OPEN, CLOSE],
            Self::Mistral => &[LIST],
            Self::Llama => &[PYTHON],
        }
    }

    /// The prompt's last words where a call is forced, if the model writes these by a control token.
    pub fn forced_mark(self) -> Option<&'static str> {
        match self {
            Self::Mistral => Some(LIST),
            Self::Hermes | Self::Llama => None,
        }
    }

    /// The key of the arguments.
    pub fn arguments(self) -> &'static str {
        if self == Self::Llama { "parameters" } else { "arguments" }
    }
}

/// A call as a model wrote it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Call {
    pub name: String,
    /// JSON, as text.
    pub arguments: String,
}

/// What became of a piece of text.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Said {
    Text(String),
    Call(Call),
}

/// Reads one answer.
#[derive(Debug, Clone)]
pub(super) struct Reader {
    form: Form,
    /// Functions that may be called; a call of another is text.
    names: Vec<String>,
    buffer: String,
    /// What is held back is a call, as far as it goes.
    inside: bool,
    /// Of a form in which the whole answer is a call: this one is text.
    plain: bool,
    called: bool,
}

impl Reader {
    /// - `inside`: the prompt ends with the mark of a call
    pub fn new(form: Form, names: Vec<String>, inside: bool) -> Self {
        Self { form, names, buffer: String::new(), inside, plain: false, called: false }
    }

    /// Whether the answer calls a function so far.
    pub fn called(&self) -> bool {
        self.called
    }

    /// Takes text; gives what is certain by now.
    pub fn push(&mut self, text: &str) -> Vec<Said> {
        self.buffer.push_str(text);
        let mut out = Vec::new();
        while self.step(&mut out) {}
        out
    }

    fn step(&mut self, out: &mut Vec<Said>) -> bool {
        if self.inside {
            // The other forms have no end but the answer's.
            let end = if self.form == Form::Hermes { self.buffer.find(CLOSE) } else { None };
            let Some(end) = end else { return false };
            let rest = self.buffer.split_off(end + CLOSE.len());
            let whole = std::mem::replace(&mut self.buffer, rest);
            self.inside = false;
            self.read(&whole[..end], &format!("{OPEN}{whole}"), out);
            return true;
        }
        if self.form == Form::Llama {
            let start = self.buffer.trim_start();
            self.inside = !self.plain && (start.starts_with('{') || start.starts_with(PYTHON));
            self.plain |= !self.inside && !PYTHON.starts_with(start); // an empty start is not sure yet
            if self.plain && !self.buffer.is_empty() {
                out.push(Said::Text(std::mem::take(&mut self.buffer)));
            }
            return false;
        }
        let mark = if self.form == Form::Hermes { OPEN } else { LIST };
        if let Some(at) = self.buffer.find(mark) {
            let rest = self.buffer.split_off(at + mark.len());
            self.buffer.truncate(at);
            self.say(at, out);
            self.buffer = rest;
            self.inside = true;
            return true;
        }
        // What may become the mark is held back, and white space that a mark may follow.
        let most = (1..mark.len()).rev().find(|n| self.buffer.ends_with(&mark[..*n])).unwrap_or(0);
        self.say(self.buffer.len() - most, out);
        false
    }

    /// Gives the text up to a byte but for the white space at its end, which belongs to a call that may follow.
    fn say(&mut self, upto: usize, out: &mut Vec<Said>) {
        let solid = self.buffer[..upto].trim_end().len();
        if solid > 0 {
            let rest = self.buffer.split_off(solid);
            out.push(Said::Text(std::mem::replace(&mut self.buffer, rest)));
        }
    }

    /// The answer has ended: gives what was held back.
    pub fn finish(&mut self) -> Vec<Said> {
        let (mut out, rest) = (Vec::new(), std::mem::take(&mut self.buffer));
        match (self.inside, self.form) {
            (true, form) => {
                let mark = if form == Form::Llama { "" } else { form.marks()[0] };
                self.read(&rest, &format!("{mark}{rest}"), &mut out);
            }
            (false, _) if rest.is_empty() || (self.called && rest.trim().is_empty()) => {}
            (false, _) => out.push(Said::Text(rest)),
        }
        out
    }

    /// Reads what stands where calls stand; `shown` is what it is where it is none.
    fn read(&mut self, json: &str, shown: &str, out: &mut Vec<Said>) {
        let json = json.trim().trim_start_matches(PYTHON);
        let calls = match serde_json::from_str(json) {
            Ok(Value::Array(all)) if self.form == Form::Mistral => all.iter().map(|v| self.call(v)).collect(),
            Ok(one @ Value::Object(_)) => self.call(&one).map(|call| vec![call]),
            _ => None,
        };
        match calls.filter(|calls: &Vec<Call>| !calls.is_empty()) {
            Some(calls) => {
                self.called = true;
                out.extend(calls.into_iter().map(Said::Call));
            }
            None => out.push(Said::Text(shown.to_owned())),
        }
    }

    fn call(&self, value: &Value) -> Option<Call> {
        let name = value["name"].as_str().filter(|name| self.names.iter().any(|n| n == name))?;
        let arguments = value.get("arguments").or_else(|| value.get("parameters"));
        let arguments = match arguments {
            None | Some(Value::Null) => "{}".to_owned(),
            Some(Value::String(json)) => json.clone(),
            Some(json) => json.to_string(),
        };
        Some(Call { name: name.to_owned(), arguments })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(name: &str, arguments: &str) -> Said {
        Said::Call(Call { name: name.into(), arguments: arguments.into() })
    }

    fn text(text: &str) -> Said {
        Said::Text(text.into())
    }

    /// What becomes of a text, however it is cut.
    #[track_caller]
    fn check(form: Form, said: &str, want: &[Said]) {
        for step in [1, 2, 3, 7, said.len().max(1)] {
            let mut reader = Reader::new(form, vec!["f".into(), "g".into()], false);
            let mut out = Vec::new();
            let chars: Vec<char> = said.chars().collect();
            for part in chars.chunks(step) {
                out.extend(reader.push(&part.iter().collect::<String>()));
            }
            out.extend(reader.finish());
            let mut joined: Vec<Said> = Vec::new();
            for one in out {
                match (joined.last_mut(), one) {
                    (Some(Said::Text(before)), Said::Text(more)) => before.push_str(&more),
                    (_, one) => joined.push(one),
                }
            }
            assert_eq!(joined, want, "in steps of {step}");
            assert_eq!(reader.called(), want.iter().any(|s| matches!(s, Said::Call(_))));
        }
    }

    #[test]
    fn the_form_is_told_from_the_template() {
        assert_eq!(Form::of("...<tool_call>\n{\"name\": ..."), Some(Form::Hermes));
        assert_eq!(Form::of("<tool_call>\n<function=f>"), None);
        assert_eq!(Form::of("{{ '[TOOL_CALLS] [' }}"), Some(Form::Mistral));
        assert_eq!(Form::of("[TOOL_CALLS]f[ARGS]{}"), None);
        assert_eq!(Form::of("Environment: ipython {{- '\"parameters\": ' }}"), Some(Form::Llama));
        assert_eq!(Form::of("{{ tools }}"), None);
    }

    #[test]
    fn calls_between_tags_are_calls_and_the_rest_is_text() {
        let one = "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"b\": 1, \"a\": \"</x>\"}}\n</tool_call>";
        let f = call("f", "{\"b\":1,\"a\":\"</x>\"}");
        check(Form::Hermes, one, std::slice::from_ref(&f));
        let two = format!("I look.\n{one}\n<tool_call>{{\"name\":\"g\"}}</tool_call>\n");
        check(Form::Hermes, &two, &[text("I look."), f.clone(), call("g", "{}")]);
        check(Form::Hermes, "a < b and <tool", &[text("a < b and <tool")]);
        check(Form::Hermes, " spaces stay \n", &[text(" spaces stay \n")]);
        check(Form::Hermes, &one[..one.len() - 13], &[f]); // the end of the answer ends the call too
    }

    #[test]
    fn what_is_no_call_of_an_offered_function_is_shown_as_it_is() {
        let other = "<tool_call>{\"name\": \"h\", \"arguments\": {}}</tool_call>";
        check(Form::Hermes, other, &[text(other)]);
        check(Form::Hermes, "<tool_call>{\"name\": ", &[text("<tool_call>{\"name\": ")]);
        check(Form::Llama, "{\"name\": \"h\"}", &[text("{\"name\": \"h\"}")]);
        check(Form::Mistral, "[TOOL_CALLS][]", &[text("[TOOL_CALLS][]")]);
    }

    #[test]
    fn llama_calls_with_its_whole_answer_alone() {
        let f = call("f", "{\"a\":1}");
        check(Form::Llama, "{\"name\": \"f\", \"parameters\": {\"a\": 1}}", std::slice::from_ref(&f));
        check(Form::Llama, "\n<|python_tag|>{\"name\": \"f\", \"parameters\": {\"a\": 1}}", &[f]);
        check(Form::Llama, "It is {\"name\": \"f\"}", &[text("It is {\"name\": \"f\"}")]);
    }

    #[test]
    fn mistral_calls_in_a_list() {
        let said = "[TOOL_CALLS] [{\"name\": \"f\", \"arguments\": {\"a\": 1}}, {\"name\": \"g\", \"arguments\": {}}]";
        check(Form::Mistral, said, &[call("f", "{\"a\":1}"), call("g", "{}")]);
        check(Form::Mistral, "No [TOOLS] here", &[text("No [TOOLS] here")]);
        let mut forced = Reader::new(Form::Mistral, vec!["f".into()], true);
        assert_eq!(forced.push("[{\"name\": \"f\", \"arguments\": {}}]"), []);
        assert_eq!(forced.finish(), [call("f", "{}")]);
    }
}
