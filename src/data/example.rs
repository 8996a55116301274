//! A line becomes an [`Example`].

use super::formats::{self, Format, Record, Records, type_name};
use super::messages::{self, Message};
use super::schema::{self, Layout, Schema, Task, quoted};
use super::{DataError, Labels};
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};

/// What one row says.
#[derive(Debug, Clone, PartialEq)]
pub enum Example {
    /// A row of plain text.
    Text(String),
    /// A plain text file, whole.
    Document(String),
    /// What is given, and what is to follow.
    Completion {
        /// Given.
        prompt: String,
        /// Learned.
        completion: String,
    },
    /// A conversation.
    Chat {
        /// Its turns.
        messages: Vec<Message>,
        /// Tools that the assistant may call, as the template takes them.
        tools: Option<Value>,
    },
    /// A text, or two, and its label.
    Classify {
        /// The text.
        text: String,
        /// The second text of a pair.
        pair: Option<String>,
        /// The label's name.
        label: String,
    },
    /// A question about a context.
    Answer {
        /// The question.
        question: String,
        /// Where the answer stands.
        context: String,
        /// Right answers; none when the context does not say.
        answers: Vec<Span>,
    },
    /// Two answers, the first of which is better.
    Preference {
        /// What both answer.
        prompt: Vec<Message>,
        /// The better answer.
        chosen: String,
        /// The worse answer.
        rejected: String,
    },
    /// One answer, and whether it is wanted.
    Judged {
        /// What it answers.
        prompt: Vec<Message>,
        /// The answer.
        completion: String,
        /// Whether it is wanted.
        wanted: bool,
    },
    /// Texts that belong together, and texts that do not.
    Embed {
        /// What is asked for.
        anchor: String,
        /// What should lie near it.
        positive: String,
        /// What should not.
        negatives: Vec<String>,
        /// How near the first two are, in the data's own unit.
        score: Option<f64>,
    },
}

/// An answer and where it stands in its context.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    /// The answer's words.
    pub text: String,
    /// Characters (not bytes) before it in the context, if known.
    pub start: Option<usize>,
}

impl Example {
    /// The text that makes two rows the same when data is split: the label and the answer do not count, and questions
    /// about one context stay together.
    pub fn text(&self) -> String {
        let turns = |messages: &[Message]| {
            messages.iter().map(|m| format!("{}\u{0}{}", m.role, m.content)).collect::<Vec<_>>().join("\u{0}")
        };
        match self {
            Self::Text(text) | Self::Document(text) => text.clone(),
            Self::Completion { prompt, .. } => prompt.clone(),
            Self::Chat { messages, .. } => {
                let asked = messages.iter().rposition(|m| m.role == "assistant").unwrap_or(messages.len());
                turns(&messages[..asked])
            }
            Self::Classify { text, pair: None, .. } => text.clone(),
            Self::Classify { text, pair: Some(pair), .. } => format!("{text}\u{0}{pair}"),
            Self::Answer { context, .. } => context.clone(),
            Self::Preference { prompt, .. } | Self::Judged { prompt, .. } => turns(prompt),
            Self::Embed { anchor, .. } => anchor.clone(),
        }
    }
}

/// All rows of a file.
#[derive(Debug, Clone)]
pub struct Dataset {
    /// The file, as the user named it.
    pub path: PathBuf,
    /// What was detected.
    pub schema: Schema,
    /// Line of the file and what it says.
    pub rows: Vec<(usize, Example)>,
}

/// Rows that are looked at before the schema is settled: optional fields may be missing in the first.
pub(super) const FIRST: usize = 16;

impl Dataset {
    /// Reads a file of text: any [`Format`] but pre-tokenized rows. Without a task, the fields say what it is.
    ///
    /// # Errors
    /// [`DataError`], with file and line.
    pub fn read(path: &Path, task: Option<Task>) -> Result<Self, DataError> {
        if Format::of(path)? == Format::Txt {
            if let Some(other) = task.filter(|t| *t != Task::Text) {
                let reason =
                    format!("a txt file is one plain text; --task {other} needs rows with named fields (jsonl, csv)");
                return Err(DataError::Format { path: path.to_owned(), reason });
            }
            let layout = Layout::Text { text: "text".into() };
            let schema = Schema { task: Task::Text, used: vec!["text".into()], unused: vec![], labels: vec![], layout };
            let rows = vec![(1, Example::Document(formats::read_text(path)?))];
            return Ok(Self { path: path.to_owned(), schema, rows });
        }
        let mut records = Records::open(path)?;
        let first = records.by_ref().take(FIRST).collect::<Result<Vec<_>, _>>()?;
        let row = |line, reason| DataError::Row { path: path.to_owned(), line, reason };
        let mut schema = schema::detect(&first, task).map_err(|r| row(first[0].line, r))?;
        let mut rows = Vec::new();
        for record in first.into_iter().map(Ok).chain(records) {
            let Record { line, fields } = record?;
            rows.push((line, parse(&fields, &schema).map_err(|r| row(line, r))?));
        }
        if schema.task == Task::Classify {
            schema.labels = Labels::of(&rows).names().to_vec();
        }
        Ok(Self { path: path.to_owned(), schema, rows })
    }
}

/// One row by the layout that was detected.
pub(super) fn parse(fields: &Map<String, Value>, schema: &Schema) -> Result<Example, String> {
    match &schema.layout {
        Layout::Text { text } => Ok(Example::Text(string(fields, text)?)),
        Layout::Labelled { text, pair, label } => Ok(Example::Classify {
            text: string(fields, text)?,
            pair: pair.as_ref().map(|p| string(fields, p)).transpose()?,
            label: label_of(fields, label)?,
        }),
        Layout::Squad => answer(fields),
        Layout::Messages { field } => {
            let mut messages = messages::system(fields)?;
            messages.extend(messages::messages(needed(fields, field)?, field)?);
            messages::example(messages, messages::tools(fields)?)
        }
        Layout::Alpaca => {
            let prompt = match optional(fields, "input")? {
                Some(input) if !input.trim().is_empty() => format!("{}\n{input}", string(fields, "instruction")?),
                _ => string(fields, "instruction")?,
            };
            let output = string(fields, "output")?;
            if schema.task == Task::Completion {
                return Ok(Example::Completion { prompt: format!("{prompt}\n"), completion: output });
            }
            let mut messages = messages::system(fields)?;
            messages.extend(messages::history(fields)?);
            messages.extend([Message::new("user", prompt), Message::new("assistant", output)]);
            messages::example(messages, None)
        }
        Layout::QuestionAnswer => pair_of(schema.task, string(fields, "question")?, "\n", string(fields, "answer")?),
        Layout::Completion { prompt, completion } => {
            let (given, learned) = (needed(fields, prompt)?, needed(fields, completion)?);
            if given.is_array() || learned.is_array() {
                let mut messages = messages::turns(given, prompt, "user")?;
                messages.iter_mut().for_each(|m| m.learned = false);
                messages.extend(messages::turns(learned, completion, "assistant")?);
                if schema.task == Task::Completion {
                    return Err(format!("`{prompt}` and `{completion}` are messages; use --task chat"));
                }
                return messages::example(messages, messages::tools(fields)?);
            }
            pair_of(schema.task, string(fields, prompt)?, "", string(fields, completion)?)
        }
        Layout::Preference => messages::preference(fields),
        Layout::Judged { prompt, completion } => messages::judged(fields, prompt, completion),
        Layout::Vectors { anchor, positive, negatives, score } => {
            vectors(fields, [anchor, positive], negatives, score.as_deref())
        }
    }
}

/// Two texts, those that are far from the first, and how near the two are.
fn vectors(
    fields: &Map<String, Value>,
    [anchor, positive]: [&str; 2],
    negatives: &[String],
    score: Option<&str>,
) -> Result<Example, String> {
    let text = |name: &str| match string(fields, name)? {
        blank if blank.trim().is_empty() => Err(format!("field `{name}` is empty; its vector would say nothing")),
        text => Ok(text),
    };
    let mut far = Vec::new();
    for name in negatives {
        match fields.get(name) {
            None | Some(Value::Null) => {}
            Some(Value::Array(list)) => {
                for (i, one) in list.iter().enumerate() {
                    let Value::String(one) = one else {
                        return Err(format!("field `{name}`, text {i} is {}, not a string", type_name(one)));
                    };
                    far.push(one.clone());
                }
            }
            Some(_) => far.push(text(name)?),
        }
    }
    let number = |name: &str| match needed(fields, name)? {
        Value::Number(n) => Ok(n.as_f64()),
        Value::String(s) => Ok(s.trim().parse().ok().filter(|v: &f64| v.is_finite())),
        other => Err(format!("field `{name}` is {}, not a number", type_name(other))),
    };
    let score = match score {
        None => None,
        Some(name) => Some(number(name)?.ok_or_else(|| format!("field `{name}` is not a number"))?),
    };
    Ok(Example::Embed { anchor: text(anchor)?, positive: text(positive)?, negatives: far, score })
}

/// Prompt and completion, verbatim but for what stands `between`; or two turns of a conversation.
fn pair_of(task: Task, prompt: String, between: &str, completion: String) -> Result<Example, String> {
    if task == Task::Completion {
        return Ok(Example::Completion { prompt: prompt + between, completion });
    }
    messages::example(vec![Message::new("user", prompt), Message::new("assistant", completion)], None)
}

fn answer(fields: &Map<String, Value>) -> Result<Example, String> {
    let (question, context) = (string(fields, "question")?, string(fields, "context")?);
    let answers = match (fields.get("answers"), fields.get("answer")) {
        (None | Some(Value::Null), None) => return Err(missing(fields, "answers")),
        (Some(Value::Array(list)), _) => {
            list.iter().map(|a| span(a, None, "answers")).collect::<Result<Vec<_>, _>>()?
        }
        (Some(Value::Object(columns)), _) => {
            let texts = match columns.get("text") {
                Some(Value::Array(texts)) => texts.as_slice(),
                Some(text @ Value::String(_)) => std::slice::from_ref(text),
                _ => return Err("field `answers` has no list `text`".into()),
            };
            let starts = match columns.get("answer_start") {
                Some(Value::Array(starts)) => starts.as_slice(),
                Some(start @ Value::Number(_)) => std::slice::from_ref(start),
                _ => &[],
            };
            if !starts.is_empty() && starts.len() != texts.len() {
                let (t, s) = (texts.len(), starts.len());
                return Err(format!("field `answers` has {t} `text` but {s} `answer_start`"));
            }
            let spans = texts.iter().enumerate().map(|(i, t)| span(t, starts.get(i), "answers"));
            spans.collect::<Result<Vec<_>, _>>()?
        }
        (Some(Value::Null) | None, Some(Value::Null)) => Vec::new(),
        (Some(Value::Null) | None, Some(one)) => vec![span(one, fields.get("answer_start"), "answer")?],
        (Some(other), _) => {
            return Err(format!("field `answers` is {}, not a list or {{text, answer_start}}", type_name(other)));
        }
    };
    let answers: Vec<Span> = answers.into_iter().filter(|a| !a.text.is_empty()).collect();
    for answer in &answers {
        let Some(start) = answer.start else { continue };
        let there: String = context.chars().skip(start).take(answer.text.chars().count()).collect();
        if there != answer.text {
            let a = &answer.text;
            return Err(match context.find(a.as_str()) {
                Some(at) => format!(
                    "`answer_start` {start} points at `{there}`, not at `{a}`, which first stands at character {}",
                    context[..at].chars().count()
                ),
                None => format!("`answer_start` {start} points at `{there}`, and `{a}` is nowhere in the context"),
            });
        }
    }
    Ok(Example::Answer { question, context, answers })
}

/// An answer: a string, or an object with `text` and `answer_start`.
fn span(value: &Value, start: Option<&Value>, field: &str) -> Result<Span, String> {
    let (text, start) = match value {
        Value::Object(o) => (o.get("text").unwrap_or(&Value::Null), o.get("answer_start")),
        other => (other, start),
    };
    let Value::String(text) = text else {
        return Err(format!("field `{field}`: the answer is {}, not a string", type_name(text)));
    };
    let start = match start {
        None | Some(Value::Null) => None,
        Some(Value::String(s)) if s.trim().is_empty() => None,
        Some(Value::String(s)) => Some(s.trim().parse().map_err(|_| format!("`answer_start` `{s}` is not a number"))?),
        Some(n) => match n.as_i64() {
            Some(-1) => None, // some sets mark "not said" so
            Some(n) if n >= 0 => Some(n as usize),
            _ => return Err(format!("`answer_start` is {n}; it counts the characters before the answer")),
        },
    };
    Ok(Span { text: text.clone(), start })
}

fn label_of(fields: &Map<String, Value>, name: &str) -> Result<String, String> {
    match needed(fields, name)? {
        Value::String(s) if s.trim().is_empty() => Err(format!("field `{name}` is empty; every row needs a label")),
        Value::String(s) => Ok(s.clone()),
        Value::Bool(b) => Ok(b.to_string()),
        Value::Number(n) => match (n.as_i64(), n.as_f64()) {
            (Some(i), _) => Ok(i.to_string()),
            (None, Some(f)) if f.fract() == 0.0 && f.abs() < 9e15 => Ok((f as i64).to_string()),
            _ => Err(format!("field `{name}` is {n}; a label is a name or a whole number")),
        },
        Value::Array(list) if list.len() == 1 => {
            let one: Map<String, Value> = [(name.to_owned(), list[0].clone())].into_iter().collect();
            label_of(&one, name)
        }
        other => Err(format!("field `{name}` is {}; a row has one label, a name or a whole number", type_name(other))),
    }
}

/// A field that has to be there.
pub(super) fn needed<'a>(fields: &'a Map<String, Value>, name: &str) -> Result<&'a Value, String> {
    match fields.get(name) {
        None => Err(missing(fields, name)),
        Some(Value::Null) => Err(format!("field `{name}` is null")),
        Some(value) => Ok(value),
    }
}

/// A field that has to be there and hold text.
pub(super) fn string(fields: &Map<String, Value>, name: &str) -> Result<String, String> {
    match needed(fields, name)? {
        Value::String(s) => Ok(s.clone()),
        other => Err(format!("field `{name}` is {}, not a string", type_name(other))),
    }
}

/// A field that may be missing or null, and else holds text.
pub(super) fn optional(fields: &Map<String, Value>, name: &str) -> Result<Option<String>, String> {
    match fields.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(_) => string(fields, name).map(Some),
    }
}

fn missing(fields: &Map<String, Value>, name: &str) -> String {
    let names: Vec<String> = fields.keys().cloned().collect();
    match names.is_empty() {
        true => format!("no field `{name}`; the row is empty"),
        false => format!("no field `{name}`; the row has {}", quoted(&names)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(row: &str, task: Option<Task>) -> Result<Example, String> {
        let fields: Map<String, Value> = serde_json::from_str(row).unwrap();
        let schema = schema::detect(&[Record { line: 1, fields: fields.clone() }], task)?;
        parse(&fields, &schema)
    }

    /// `role: content` of each turn; `*` marks those that are learned.
    fn chat(row: &str) -> Vec<String> {
        match read(row, Some(Task::Chat)).unwrap() {
            Example::Chat { messages, .. } => messages
                .iter()
                .map(|m| format!("{}{}: {}", m.role, if m.learned { "*" } else { "" }, m.content))
                .collect(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn conversations_in_every_shape_become_turns() {
        let asked = ["user: a", "assistant*: b"];
        assert_eq!(
            chat(r#"{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}"#),
            asked
        );
        assert_eq!(
            chat(
                r#"{"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}, {"role": "assistant", "content": "b"}]}"#
            ),
            asked
        );
        assert_eq!(
            chat(r#"{"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}"#),
            asked
        );
        assert_eq!(chat(r#"{"prompt": "a", "completion": "b"}"#), asked);
        assert_eq!(chat(r#"{"question": "a", "answer": "b"}"#), asked);
        assert_eq!(
            chat(
                r#"{"prompt": [{"role": "user", "content": "a"}], "completion": [{"role": "assistant", "content": "b"}]}"#
            ),
            asked
        );
        assert_eq!(
            chat(r#"{"system": "s", "history": [["x", "y"]], "instruction": "a", "input": "i", "output": "b"}"#),
            ["system: s", "user: x", "assistant*: y", "user: a\ni", "assistant*: b"]
        );
        assert_eq!(
            chat(
                r#"{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": 0},
                    {"role": "user", "content": "c"}, {"role": "assistant", "content": "d", "weight": 1}]}"#
            ),
            ["user: a", "assistant: b", "user: c", "assistant*: d"]
        );
        assert_eq!(
            chat(
                r#"{"conversations": [{"from": "human", "value": "a"}, {"from": "function_call", "value": "{}"},
                    {"from": "observation", "value": "1"}, {"from": "gpt", "value": "b"}], "tools": "[]"}"#
            ),
            ["user: a", "assistant*: {}", "tool: 1", "assistant*: b"]
        );
    }

    #[test]
    fn answers_in_every_shape_become_spans() {
        let cat = |start| vec![Span { text: "é cat".into(), start }];
        for (row, answers) in [
            (r#""answers": {"text": ["é cat"], "answer_start": [2]}"#, cat(Some(2))),
            (r#""answers": [{"text": "é cat", "answer_start": 2}]"#, cat(Some(2))),
            (r#""answer": "é cat", "answer_start": 2"#, cat(Some(2))),
            (r#""answer": "é cat", "answer_start": "2""#, cat(Some(2))),
            (r#""answer": {"text": "é cat", "answer_start": 2}"#, cat(Some(2))),
            (r#""answer": "é cat""#, cat(None)),
            (r#""answers": {"text": [], "answer_start": []}"#, vec![]),
            (r#""answer": "", "answer_start": -1"#, vec![]),
        ] {
            let row = format!(r#"{{"question": "q", "context": "a é cat", {row}}}"#);
            let want = Example::Answer { question: "q".into(), context: "a é cat".into(), answers };
            assert_eq!(read(&row, Some(Task::Answer)), Ok(want), "{row}");
        }
    }

    #[test]
    fn labels_are_names_whole_numbers_or_booleans() {
        for (label, name) in [(r#""a""#, "a"), ("3", "3"), ("3.0", "3"), ("true", "true"), (r#"["a"]"#, "a")] {
            let row = format!(r#"{{"text": "t", "label": {label}}}"#);
            let want = Example::Classify { text: "t".into(), pair: None, label: name.into() };
            assert_eq!(read(&row, None), Ok(want));
        }
    }

    #[test]
    fn preferences_find_their_prompt() {
        let want = Example::Preference {
            prompt: vec![Message::new("user", "a".into())],
            chosen: "b".into(),
            rejected: "c".into(),
        };
        for row in [
            r#"{"prompt": "a", "chosen": "b", "rejected": "c"}"#,
            r#"{"conversations": [{"from": "human", "value": "a"}], "chosen": {"from": "gpt", "value": "b"},
                "rejected": {"from": "gpt", "value": "c"}}"#,
            r#"{"chosen": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
                "rejected": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "c"}]}"#,
        ] {
            assert_eq!(read(row, None).as_ref(), Ok(&want), "{row}");
        }
    }

    #[test]
    fn alpaca_as_completion_keeps_prompt_and_answer_apart() {
        let row = r#"{"instruction": "a", "input": "", "output": "b"}"#;
        let want = Example::Completion { prompt: "a\n".into(), completion: "b".into() };
        assert_eq!(read(row, Some(Task::Completion)), Ok(want));
    }

    #[test]
    fn what_is_wrong_is_named_by_its_field() {
        for (row, because) in [
            (r#"{"text": 1}"#, "field `text` is a number, not a string"),
            (r#"{"text": null, "label": "a"}"#, "field `text` is null"),
            (r#"{"text": "a", "label": ""}"#, "field `label` is empty"),
            (r#"{"text": "a", "label": 0.5}"#, "field `label` is 0.5; a label is a name or a whole number"),
            (r#"{"text": "a", "label": ["a", "b"]}"#, "field `label` is a list; a row has one label"),
            (r#"{"messages": []}"#, "field `messages` has no turns"),
            (
                r#"{"messages": [{"content": "a"}]}"#,
                "field `messages`, turn 0: has no `role` (or `from`); it has `content`",
            ),
            (
                r#"{"messages": [{"role": "king", "content": "a"}]}"#,
                "field `messages`, turn 0: `role` is `king`; known are",
            ),
            (r#"{"messages": [{"role": "user"}]}"#, "field `messages`, turn 0: has no `content`"),
            (
                r#"{"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}"#,
                "field `messages`, turn 0: has a part of type `image_url`; only text is learned",
            ),
            (r#"{"messages": [{"role": "user", "content": "a"}]}"#, "no turn is the assistant's"),
            (
                r#"{"messages": [{"role": "assistant", "content": "a", "weight": 0}]}"#,
                "every turn of the assistant has `weight` 0",
            ),
            (
                r#"{"question": "q", "context": "a cat", "answer": "cat", "answer_start": 1}"#,
                "`answer_start` 1 points at ` ca`, not at `cat`, which first stands at character 2",
            ),
            (
                r#"{"question": "q", "context": "a cat", "answer": "dog", "answer_start": 9}"#,
                "`answer_start` 9 points at ``, and `dog` is nowhere in the context",
            ),
            (
                r#"{"question": "q", "context": "a", "answers": {"text": ["a"], "answer_start": [0, 1]}}"#,
                "field `answers` has 1 `text` but 2 `answer_start`",
            ),
            (
                r#"{"chosen": "a", "rejected": "b"}"#,
                "no `prompt`, and `chosen` and `rejected` do not begin with the same turns",
            ),
            (r#"{"prompt": "p", "chosen": "a", "rejected": "a"}"#, "`chosen` and `rejected` are the same"),
        ] {
            let error = read(row, None).unwrap_err();
            assert!(error.starts_with(because), "{error}");
        }
    }

    #[test]
    fn a_row_that_lacks_a_field_names_file_line_field_and_what_it_has() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("d.jsonl");
        std::fs::write(&path, "{\"text\": \"a\", \"label\": \"x\"}\n{\"text\": \"b\", \"lable\": \"y\"}\n").unwrap();
        let error = Dataset::read(&path, None).unwrap_err();
        assert!(error.is_bad_input());
        let error = error.to_string();
        assert!(error.ends_with("d.jsonl:2: no field `label`; the row has `text`, `lable`"), "{error}");
    }

    #[test]
    fn a_dataset_prints_what_it_holds() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("d.csv");
        std::fs::write(&path, "text,label\nfine,positive\nbad,negative\nbad,negative\n").unwrap();
        let data = Dataset::read(&path, None).unwrap();
        assert_eq!(data.schema.to_string(), "2 fields: text, label -> classify, 2 labels: negative, positive");
        assert_eq!(data.rows[1].0, 3);
        let path = dir.path().join("d.txt");
        std::fs::write(&path, "once upon\n a time\n").unwrap();
        assert_eq!(Dataset::read(&path, None).unwrap().rows, [(1, Example::Document("once upon\n a time\n".into()))]);
        let error = Dataset::read(&path, Some(Task::Classify)).unwrap_err().to_string();
        assert!(
            error.ends_with("a txt file is one plain text; --task classify needs rows with named fields (jsonl, csv)")
        );
    }
}
