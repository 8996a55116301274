//! Which fields a dataset has, and what can be learned from them: detected from the first rows, printed back, never
//! guessed in silence.

use super::formats::Record;
use serde_json::Value;
use std::fmt;

/// What the rows teach.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Task {
    /// Conversations; only the assistant's turns are learned.
    Chat,
    /// Prompt and completion; only the completion is learned.
    Completion,
    /// Plain text; every token is learned.
    Text,
    /// One label a row.
    Classify,
    /// A question, a context and the answer in it.
    Answer,
    /// Two answers to one prompt, of which the first is the better; or one, wanted or not.
    Preference,
    /// Texts that belong together, and texts that do not.
    Embed,
}

impl fmt::Display for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Chat => "chat",
            Self::Completion => "completion",
            Self::Text => "text",
            Self::Classify => "classify",
            Self::Answer => "answer",
            Self::Preference => "preference",
            Self::Embed => "embed",
        })
    }
}

/// Where in a row its parts stand: the file's own field names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Layout {
    /// `messages` or `conversations`, possibly with `system` and `tools`.
    Messages { field: String },
    /// `instruction`, `input`?, `output`, `system`?, `history`?.
    Alpaca,
    /// `prompt`, `completion`: strings or messages.
    Completion { prompt: String, completion: String },
    /// `question`, `answer`, without a context.
    QuestionAnswer,
    /// One text.
    Text { text: String },
    /// One text or two, and a label.
    Labelled { text: String, pair: Option<String>, label: String },
    /// `question`, `context`, and `answers` or `answer` with `answer_start`.
    Squad,
    /// `chosen`, `rejected`, and the prompt in one of its shapes.
    Preference,
    /// `prompt`, `completion`, and whether the answer is wanted.
    Judged { prompt: String, completion: String },
    /// Two texts that belong together, texts that do not, or how near the two are.
    Vectors { anchor: String, positive: String, negatives: Vec<String>, score: Option<String> },
}

/// What a dataset holds. Prints as `2 fields: text, label -> classify, 2 labels: negative, positive`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Schema {
    /// What the rows teach.
    pub task: Task,
    /// Fields that are read.
    pub used: Vec<String>,
    /// Fields that stand in the file and are not read.
    pub unused: Vec<String>,
    /// Labels of a classification, in the order of their indices; empty otherwise.
    pub labels: Vec<String>,
    pub(super) layout: Layout,
}

impl fmt::Display for Schema {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let s = if self.used.len() == 1 { "" } else { "s" };
        write!(f, "{} field{s}: {}", self.used.len(), self.used.join(", "))?;
        if !self.unused.is_empty() {
            write!(f, " (not read: {})", shortened(&self.unused, 6))?;
        }
        write!(f, " -> {}", self.task)?;
        if !self.labels.is_empty() {
            let s = if self.labels.len() == 1 { "" } else { "s" };
            write!(f, ", {} label{s}: {}", self.labels.len(), shortened(&self.labels, 10))?;
        }
        Ok(())
    }
}

/// Names by comma, nameless columns in words; after `most` of them, how many more.
pub(super) fn shortened(names: &[String], most: usize) -> String {
    let join = |names: &[String]| {
        names.iter().map(|n| if n.is_empty() { "(no name)" } else { n }).collect::<Vec<_>>().join(", ")
    };
    match names.len().checked_sub(most) {
        None | Some(0) => join(names),
        Some(more) => format!("{}, and {more} more", join(&names[..most])),
    }
}

/// Two texts that are judged together.
const PAIRS: [(&str, &str); 11] = [
    ("text", "text_pair"),
    ("text", "pair"),
    ("text", "text2"),
    ("text1", "text2"),
    ("sentence", "sentence2"),
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("question", "passage"),
    ("query", "passage"),
];

/// Two texts that belong together, in the names that retrieval sets have; nothing else is called so.
const TOGETHER: [(&str, &str); 9] = [
    ("anchor", "positive"),
    ("query", "positive"),
    ("question", "positive"),
    ("sentence", "positive"),
    ("query", "document"),
    ("query", "passage"),
    ("query", "answer"),
    ("query", "pos"),
    ("sent0", "sent1"),
];

/// Names that say so only under --task embed, or beside a score.
const PERHAPS_TOGETHER: [(&str, &str); 5] = [
    ("sentence_a", "sentence_b"),
    ("question", "answer"),
    ("title", "body"),
    ("prompt", "completion"),
    ("text1", "text2"),
];

/// Names under which a number for how near two texts are is found.
const SCORES: [&str; 3] = ["score", "similarity_score", "similarity"];

/// Names under which a text to be classified is found, the likeliest first.
const TEXTS: [&str; 20] = [
    "text",
    "sentence",
    "sentence1",
    "review",
    "review_text",
    "review_body",
    "content",
    "comment",
    "utterance",
    "query",
    "question",
    "tweet",
    "headline",
    "description",
    "message",
    "sms",
    "document",
    "body",
    "input",
    "title",
];

/// Names under which a label is found, the likeliest first; a label's name tells more than its number.
const LABELS: [&str; 14] = [
    "label_text",
    "label_name",
    "label",
    "labels",
    "class",
    "category",
    "intent",
    "sentiment",
    "target",
    "emotion",
    "topic",
    "stars",
    "rating",
    "is_spam",
];

/// What each task needs, for the message when nothing fits.
fn needs(task: Option<Task>) -> &'static str {
    match task {
        Some(Task::Chat) => {
            "--task chat needs `messages`, `conversations`, `instruction` + `output`, or `prompt` + `completion`"
        }
        Some(Task::Completion) => "--task completion needs `prompt` + `completion`, or `instruction` + `output`",
        Some(Task::Text) => "--task text needs `text`",
        Some(Task::Classify) => "--task classify needs `text` (or `sentence`, with `sentence2` for pairs) and `label`",
        Some(Task::Answer) => "--task answer needs `question`, `context`, and `answers` or `answer` + `answer_start`",
        Some(Task::Preference) => {
            "--task preference needs `chosen`, `rejected`, and `prompt` unless both begin with it; or `prompt`, `completion`, \
             and a `label` of true or false"
        }
        Some(Task::Embed) => {
            "--task embed needs `anchor` + `positive` (or `query` + `document`, `question` + `answer`), possibly with \
             `negative`; or two sentences and their `score`"
        }
        None => {
            "a row holds `messages`, `conversations`, `instruction` + `output`, `prompt` + `completion`, `text`, \
             `text` + `label`, `question` + `context` + `answers`, `chosen` + `rejected`, or `anchor` + `positive`"
        }
    }
}

/// Reads the schema off the first rows.
///
/// # Errors
/// The fields there are, and those that the task needs.
pub(super) fn detect(first: &[Record], task: Option<Task>) -> Result<Schema, String> {
    let mut names: Vec<String> = Vec::new();
    for record in first {
        names.extend(record.fields.keys().filter(|k| !names.contains(k)).cloned().collect::<Vec<_>>());
    }
    let plain: Vec<String> = names.iter().map(|n| n.trim().to_lowercase().replace([' ', '-'], "_")).collect();
    let find = |name: &str| plain.iter().position(|p| p == name).map(|i| names[i].clone());
    let has = |name: &str| names.iter().any(|n| n == name);

    let text = || TEXTS.iter().find_map(|n| find(n));
    let label = LABELS.iter().find_map(|n| find(n));
    let labelled = label.and_then(|label| {
        let pair = PAIRS.iter().find_map(|(a, b)| Some((find(a)?, find(b)?)));
        let (text, pair) = pair.map_or_else(|| (text(), None), |(a, b)| (Some(a), Some(b)));
        Some(Layout::Labelled { text: text?, pair, label })
    });
    let messages = ["messages", "conversations", "conversation"].iter().find(|n| has(n));
    let completion = [("prompt", "completion"), ("prompt", "response"), ("input", "output")];
    let completion = completion.iter().find(|(a, b)| has(a) && has(b));
    let judges = first.iter().any(|r| r.fields.get("label").is_some_and(|l| is_yes_or_no(l).is_some()));
    let judged = completion.filter(|_| judges);
    let vectors = vectors(&names, &find, task == Some(Task::Embed));
    // The likelier reading of a layout is its first task.
    let readings: [(bool, &[Task], Option<Layout>); 10] = [
        (has("chosen") && has("rejected"), &[Task::Preference], Some(Layout::Preference)),
        (
            judged.is_some(),
            &[Task::Preference],
            judged.map(|(p, c)| Layout::Judged { prompt: (*p).into(), completion: (*c).into() }),
        ),
        (messages.is_some(), &[Task::Chat], messages.map(|f| Layout::Messages { field: (*f).into() })),
        (has("question") && has("context") && (has("answers") || has("answer")), &[Task::Answer], Some(Layout::Squad)),
        (has("instruction") && has("output"), &[Task::Chat, Task::Completion], Some(Layout::Alpaca)),
        (
            completion.is_some(),
            &[Task::Completion, Task::Chat],
            completion.map(|(p, c)| Layout::Completion { prompt: (*p).into(), completion: (*c).into() }),
        ),
        (has("question") && has("answer"), &[Task::Chat, Task::Completion], Some(Layout::QuestionAnswer)),
        (labelled.is_some(), &[Task::Classify], labelled),
        (vectors.is_some(), &[Task::Embed], vectors),
        (has("text") || has("content"), &[Task::Text], {
            let text = if has("text") { "text" } else { "content" };
            Some(Layout::Text { text: text.into() })
        }),
    ];
    let fits = |tasks: &[Task]| task.is_none_or(|t| tasks.contains(&t));
    let Some((_, tasks, Some(layout))) = readings.into_iter().find(|(there, tasks, _)| *there && fits(tasks)) else {
        return Err(format!("the rows have the fields {}, but {}", quoted(&names), needs(task)));
    };
    let task = task.unwrap_or(tasks[0]);
    let conversation = matches!(layout, Layout::Messages { .. } | Layout::Completion { .. });
    if conversation && first.iter().any(|r| matches!(r.fields.get("label"), Some(Value::Bool(_)))) {
        return Err(
            "a true or false `label` beside a conversation marks wanted and unwanted answers (KTO): --task preference \
             learns from them as `prompt` + `completion` + `label`; or keep the rows that are true, without `label`"
                .into(),
        );
    }
    let used: Vec<String> = layout.fields(task).into_iter().filter(|n| names.contains(n)).collect();
    let unused = names.into_iter().filter(|n| !used.contains(n)).collect();
    Ok(Schema { task, used, unused, labels: Vec::new(), layout })
}

impl Layout {
    /// Fields that may be read, in reading order.
    fn fields(&self, task: Task) -> Vec<String> {
        let own = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect();
        match self {
            Self::Messages { field } => own(&["system", field, "tools"]),
            Self::Alpaca if task == Task::Chat => own(&["system", "history", "instruction", "input", "output"]),
            Self::Alpaca => own(&["instruction", "input", "output"]),
            Self::Completion { prompt, completion } => own(&[prompt, completion]),
            Self::QuestionAnswer => own(&["question", "answer"]),
            Self::Text { text } => own(&[text]),
            Self::Labelled { text, pair, label } => {
                [Some(text), pair.as_ref(), Some(label)].into_iter().flatten().cloned().collect()
            }
            Self::Squad => own(&["question", "context", "answers", "answer", "answer_start"]),
            Self::Preference => own(&["system", "prompt", "messages", "conversations", "chosen", "rejected"]),
            Self::Judged { prompt, completion } => own(&["system", prompt, completion, "label"]),
            Self::Vectors { anchor, positive, negatives, score } => {
                [anchor, positive].into_iter().chain(negatives).chain(score).cloned().collect()
            }
        }
    }
}

/// Where texts that belong together stand. `asked`: whether --task embed was given, so that names say less and mean enough.
fn vectors(names: &[String], find: &dyn Fn(&str) -> Option<String>, asked: bool) -> Option<Layout> {
    let both = |(a, b): &(&str, &str)| Some((find(a)?, find(b)?));
    let score = SCORES.iter().find_map(|n| find(n));
    let perhaps = || PERHAPS_TOGETHER.iter().chain(&PAIRS).find_map(both).filter(|_| asked || score.is_some());
    let (anchor, positive) = TOGETHER.iter().find_map(both).or_else(perhaps)?;
    let plain = |n: &String| n.trim().to_lowercase().replace([' ', '-'], "_");
    let far = |n: &&String| {
        let n = plain(n);
        ["negative", "negatives", "hard_negative", "hard_negatives", "neg", "hard_neg"].contains(&n.as_str())
            || n.strip_prefix("negative_").is_some_and(|i| i.bytes().all(|b| b.is_ascii_digit()))
    };
    let negatives = names.iter().filter(far).cloned().collect();
    Some(Layout::Vectors { anchor, positive, negatives, score })
}

/// A true or false, as JSON or a table has it.
pub(super) fn is_yes_or_no(value: &Value) -> Option<bool> {
    match value {
        Value::Bool(b) => Some(*b),
        Value::String(s) => match s.trim().to_lowercase().as_str() {
            "true" => Some(true),
            "false" => Some(false),
            _ => None,
        },
        _ => None,
    }
}

/// Names in backquotes, by comma.
pub(super) fn quoted(names: &[String]) -> String {
    let names: Vec<String> = names.iter().map(|n| format!("`{n}`")).collect();
    shortened(&names, 12)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn detected(row: &str, task: Option<Task>) -> Result<String, String> {
        let fields = serde_json::from_str(row).unwrap();
        detect(&[Record { line: 1, fields }], task).map(|s| s.to_string())
    }

    #[test]
    fn each_shape_is_recognised_and_printed() {
        for (row, print) in [
            (r#"{"messages": [], "id": 1}"#, "1 field: messages (not read: id) -> chat"),
            (r#"{"conversations": [], "tools": ""}"#, "2 fields: conversations, tools -> chat"),
            (r#"{"instruction": "", "input": "", "output": ""}"#, "3 fields: instruction, input, output -> chat"),
            (r#"{"prompt": "", "completion": ""}"#, "2 fields: prompt, completion -> completion"),
            (r#"{"question": "", "answer": ""}"#, "2 fields: question, answer -> chat"),
            (r#"{"text": ""}"#, "1 field: text -> text"),
            (r#"{"text": "", "label": 1}"#, "2 fields: text, label -> classify"),
            (
                r#"{"text": "", "label": 1, "label_text": "a"}"#,
                "2 fields: text, label_text (not read: label) -> classify",
            ),
            (r#"{"sentence1": "", "sentence2": "", "label": 0}"#, "3 fields: sentence1, sentence2, label -> classify"),
            (
                r#"{"Title": "", "Review Text": "", "Rating": ""}"#,
                "2 fields: Review Text, Rating (not read: Title) -> classify",
            ),
            (
                r#"{"id": 1, "question": "", "context": "", "answers": {}}"#,
                "3 fields: question, context, answers (not read: id) -> answer",
            ),
            (
                r#"{"question": "", "context": "", "answer": "", "answer_start": 1}"#,
                "4 fields: question, context, answer, answer_start -> answer",
            ),
            (r#"{"prompt": "", "chosen": "", "rejected": ""}"#, "3 fields: prompt, chosen, rejected -> preference"),
            (r#"{"prompt": "", "completion": "", "label": true}"#, "3 fields: prompt, completion, label -> preference"),
            (
                r#"{"prompt": "", "completion": "", "label": "False"}"#,
                "3 fields: prompt, completion, label -> preference",
            ),
            (r#"{"anchor": "", "positive": "", "id": 1}"#, "2 fields: anchor, positive (not read: id) -> embed"),
            (
                r#"{"query": "", "positive": "", "negative_1": "", "negative_2": ""}"#,
                "4 fields: query, positive, negative_1, negative_2 -> embed",
            ),
            (r#"{"sentence1": "", "sentence2": "", "score": 0.5}"#, "3 fields: sentence1, sentence2, score -> embed"),
            (r#"{"query": "", "passage": "", "label": 1}"#, "3 fields: query, passage, label -> classify"),
        ] {
            assert_eq!(detected(row, None).as_deref(), Ok(print));
        }
    }

    #[test]
    fn the_task_decides_between_two_readings() {
        let alpaca = r#"{"instruction": "", "output": "", "system": "", "text": "", "label": 1}"#;
        let as_task = |task| detected(alpaca, Some(task)).unwrap();
        assert!(as_task(Task::Completion).ends_with("-> completion"));
        assert!(as_task(Task::Text).starts_with("1 field: text"));
        assert!(as_task(Task::Classify).starts_with("2 fields: text, label"));
        let pair = r#"{"question": "", "answer": ""}"#;
        assert_eq!(detected(pair, Some(Task::Embed)).unwrap(), "2 fields: question, answer -> embed");
    }

    #[test]
    fn what_does_not_fit_names_both_sides() {
        assert_eq!(
            detected(r#"{"lable": 1, "txt": ""}"#, Some(Task::Classify)).unwrap_err(),
            "the rows have the fields `lable`, `txt`, but --task classify needs `text` (or `sentence`, with `sentence2` \
             for pairs) and `label`"
        );
        assert!(detected(r#"{"x": 1}"#, None).unwrap_err().contains("`x`, but a row holds `messages`"));
        assert!(detected(r#"{"messages": [], "label": true}"#, None).unwrap_err().contains("KTO"));
    }

    #[test]
    fn many_labels_are_shortened() {
        let labels: Vec<String> = (0..77).map(|i| i.to_string()).collect();
        assert_eq!(shortened(&labels, 3), "0, 1, 2, and 74 more");
        assert_eq!(shortened(&labels[..3], 3), "0, 1, 2");
    }
}
