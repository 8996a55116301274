//! DATA as the rows that a subject is judged on.

use super::subject::Subject;
use crate::data::batch::{Row, Target};
use crate::data::example::Example;
use crate::data::read::{Reading, Rows, TextSide};
use crate::data::schema::Task as TaskName;
use crate::demo::corpus::corpus;
use crate::error::BadInput;
use crate::model::network::Task;
use crate::tune::run_folder::RunFile;
use std::path::Path;

/// Seed and size of the embedded sample; the seed is none that a model was trained on.
const SAMPLE_SEED: u64 = 77;
const SAMPLE_BYTES: usize = 16_000;

/// Rows to judge on, and what stands behind them.
pub struct Judged {
    /// What the rows ask.
    pub task: TaskName,
    /// Labels by index.
    pub labels: Vec<String>,
    /// Rows of ids. Of a question that an encoder answers, every window.
    pub rows: Vec<Row>,
    /// The texts behind the rows: what two tokenizers must cut alike.
    pub texts: Vec<String>,
    /// The questions behind the rows, when they are questions.
    pub questions: Vec<Question>,
    /// How near the two texts of each example are, where the data says so.
    pub scores: Vec<f64>,
    /// Line and example of what can be written: conversations, and prompts with their completions.
    pub asked: Vec<(usize, Example)>,
}

/// A question, its context, and every right answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// Line of the file.
    pub source: usize,
    /// What is asked.
    pub question: String,
    /// Where the answer stands.
    pub context: String,
    /// Right answers; none when the context does not say.
    pub answers: Vec<String>,
}

impl Judged {
    /// Nothing to judge, yet.
    pub fn of(task: TaskName) -> Self {
        let (labels, rows, texts) = (Vec::new(), Vec::new(), Vec::new());
        Self { task, labels, rows, texts, questions: Vec::new(), scores: Vec::new(), asked: Vec::new() }
    }

    /// The text of each row, where every row is an example of its own.
    pub fn texts_of_rows(&self) -> Option<&[String]> {
        (self.texts.len() == self.rows.len()).then_some(&self.texts[..])
    }

    /// How many things are judged: questions, or rows.
    pub fn len(&self) -> usize {
        if self.task == TaskName::Answer && !self.questions.is_empty() { self.questions.len() } else { self.rows.len() }
    }

    /// Whether there is nothing to judge.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Reads DATA for `subject`. Without a task, the model's own; rows longer than the model's context are an error.
///
/// # Errors
/// What is wrong with DATA, with its line; a label that the model does not have.
pub fn read_judged(
    subject: &Subject,
    data: &Path,
    task: Option<TaskName>,
    max_len: Option<usize>,
) -> anyhow::Result<Judged> {
    if let Some(asked) = max_len
        && asked > subject.n_ctx()
    {
        crate::bad_input!("--max-len {asked}, but the model has {} positions", subject.n_ctx());
    }
    let task = task.or(own_task(subject));
    let rows = read(subject, data, task, max_len.unwrap_or(subject.n_ctx()), None)?;
    Ok(judged(&rows, None))
}

/// The rows that a run held out: those of `--val`, or by number those of its DATA.
///
/// # Errors
/// When the run held nothing out, or DATA is no longer what it was.
pub fn held_out(subject: &Subject, run: &RunFile) -> anyhow::Result<Judged> {
    let max_len = run.tune.max_len.unwrap_or(subject.n_ctx());
    let read = |path: &str| read(subject, Path::new(path), run.tune.task, max_len, run.tune.truncate);
    if let Some(val) = &run.run.val {
        return Ok(judged(&read(val)?, None));
    }
    if run.run.held_out.is_empty() {
        crate::bad_input!("the run held no rows out; give --data");
    }
    let found = crate::tune::run_folder::sha256(Path::new(&run.run.data))?;
    if found != run.sha256.data {
        return Err(BadInput(format!(
            "{}: not the file that the run was tuned on any more; give --data",
            run.run.data
        ))
        .into());
    }
    Ok(judged(&read(&run.run.data)?, Some(&run.run.held_out)))
}

/// Texts of the embedded corpus, without labels: what two stages are compared on when nothing else is at hand;
/// cut to `max_len` tokens.
///
/// # Errors
/// A model that reads questions, which these texts do not ask.
pub fn embedded_sample(subject: &Subject, max_len: usize) -> anyhow::Result<Judged> {
    if subject.task() == Some(Task::Span) {
        crate::bad_input!("a model that answers questions needs some to be compared on; give --data");
    }
    let tokenizer = subject.tokenizer()?;
    let texts: Vec<String> = corpus(SAMPLE_SEED, SAMPLE_BYTES).collect();
    let language = subject.task() == Some(Task::Generate);
    let rows = texts
        .iter()
        .enumerate()
        .map(|(i, text)| {
            let mut ids = tokenizer.encode(text, true)?;
            ids.truncate(max_len);
            let learned = vec![true; ids.len()];
            Ok(if language { Row::language(ids, &learned, i) } else { Row::new(ids, Target::None, i) })
        })
        .collect::<anyhow::Result<_>>()?;
    let task = if language { TaskName::Text } else { TaskName::Classify };
    Ok(Judged { rows, texts, ..Judged::of(task) })
}

/// What the model says of itself.
fn own_task(subject: &Subject) -> Option<TaskName> {
    match subject.task() {
        Some(Task::Classify(_)) => Some(TaskName::Classify),
        Some(Task::Span) => Some(TaskName::Answer),
        Some(Task::Embed(_)) => Some(TaskName::Embed),
        Some(Task::Generate) | None => None,
    }
}

fn read(
    subject: &Subject,
    data: &Path,
    task: Option<TaskName>,
    max_len: usize,
    truncate: Option<crate::data::Truncate>,
) -> anyhow::Result<Rows> {
    let labels = match subject.task() {
        Some(Task::Classify(labels)) => labels,
        _ => Vec::new(),
    };
    let reading = Reading {
        task,
        labels: (!labels.is_empty()).then_some(&labels),
        max_len,
        truncate,
        encoder: !subject.is_decoder(),
    };
    let template = subject.template();
    let tokenizer = || subject.tokenizer();
    Rows::read(data, &reading, &TextSide { tokenizer: &tokenizer, template: template.as_deref() })
}

/// All rows, or those of the numbers by which some were held out.
pub fn judged(rows: &Rows, only: Option<&[usize]>) -> Judged {
    let keep = |number: usize| only.is_none_or(|held| held.binary_search(&number).is_ok());
    let examples: Vec<&(usize, Example)> = match &rows.examples {
        None => Vec::new(),
        Some(data) if data.rows.len() > 1 => (0..data.rows.len()).filter(|i| keep(*i)).map(|i| &data.rows[i]).collect(),
        Some(data) => data.rows.iter().collect(),
    };
    let question = |(line, e): &&(usize, Example)| match e {
        Example::Answer { question, context, answers } => Some(Question {
            source: *line,
            question: question.clone(),
            context: context.clone(),
            answers: answers.iter().map(|a| a.text.clone()).collect(),
        }),
        _ => None,
    };
    let score = |(_, e): &&(usize, Example)| match e {
        Example::Embed { score, .. } => *score,
        _ => None,
    };
    let written = |(_, e): &&&(usize, Example)| matches!(e, Example::Chat { .. } | Example::Completion { .. });
    Judged {
        task: rows.task,
        labels: rows.labels.clone(),
        rows: match only {
            None => rows.rows.clone(),
            Some(held) => rows.part(held).1,
        },
        texts: examples.iter().map(|(_, e)| e.text()).collect(),
        scores: examples.iter().filter_map(score).collect(),
        questions: examples.iter().filter_map(question).collect(),
        asked: examples.iter().filter(written).map(|e| (*e).clone()).collect(),
    }
}
