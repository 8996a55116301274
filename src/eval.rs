//! A model and a dataset become numbers with intervals.
//!
//! - [`metrics`]: accuracy, F1, exact match, perplexity, calibration, ROUGE-L, bootstrap, paired tests; pure functions
//! - [`subject`]: a model on an engine, asked for logits; [`rows`]: DATA as the rows that it is judged on
//! - [`classes`]: labels; [`answer`]: spans and generated answers → text; [`text`]: perplexity, also with a stride
//! - [`preference`]: pairs of answers; [`vectors`]: texts by what lies near
//! - [`written`]: what a model writes, against what should have been written
//! - [`against`]: two models on the same rows
//! - [`folds`]: one number a fold → mean and deviation; [`audit`]: what changes with a group word
//! - [`show`]: an evaluation as JSON and as lines

pub mod against;
pub mod answer;
pub mod audit;
pub mod classes;
pub mod folds;
pub mod metrics;
pub mod preference;
pub mod rows;
pub mod show;
pub mod subject;
pub mod text;
pub mod vectors;
pub mod written;

use crate::data::schema::Task as TaskName;
use crate::model::network::Task;
use answer::Answers;
use classes::Classes;
use metrics::Interval;
use rows::Judged;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use subject::Subject;
use written::Written;

/// Seed of the bootstrap: intervals of the same predictions are the same.
pub const SEED: u64 = 0;

/// Rows that went most wrong and are kept with their text.
const WORST: usize = 20;
/// Characters of a text that are kept with them.
const LONGEST: usize = 400;

/// What was measured.
pub struct Evaluation {
    /// What the rows asked.
    pub task: TaskName,
    /// Rows judged.
    pub examples: usize,
    /// Mean nats a target.
    pub loss: Option<f64>,
    /// Its exponential, for text.
    pub perplexity: Option<Interval>,
    /// For classification.
    pub classes: Option<Classes>,
    /// For answers.
    pub answers: Option<Answers>,
    /// For pairs of answers.
    pub preferred: Option<preference::Preferred>,
    /// For vectors.
    pub vectors: Option<vectors::Vectors>,
    /// Of what was written, where it was.
    pub written: Option<Written>,
    /// The rows that went most wrong, worst first.
    pub worst: Vec<Worst>,
    /// What came of each row: what two models are compared by.
    pub outcomes: Outcomes,
    /// A line a row.
    pub predictions: Vec<Value>,
}

/// What came of each row.
#[derive(Debug, Clone)]
pub enum Outcomes {
    /// The right label and the one that was predicted.
    Classes(Vec<(u32, u32)>),
    /// Exact match and F1.
    Answers(Vec<(f64, f64)>),
    /// Summed nats and targets.
    Text(Vec<(f64, usize)>),
    /// Whether the chosen answer was the likelier.
    Pairs(Vec<bool>),
    /// One over the place of the first right text.
    Places(Vec<f64>),
    /// Cosines, and what people said.
    Scores(Vec<(f64, f64)>),
}

impl Evaluation {
    /// With nothing but these.
    fn new(task: TaskName, examples: usize, outcomes: Outcomes, predictions: Vec<Value>) -> Self {
        let (loss, perplexity, classes, answers, preferred) = (None, None, None, None, None);
        let (vectors, written, worst) = (None, None, Vec::new());
        Self {
            task,
            examples,
            loss,
            perplexity,
            classes,
            answers,
            preferred,
            vectors,
            written,
            worst,
            outcomes,
            predictions,
        }
    }
}

/// A row that went wrong.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Worst {
    /// Line of the file (of a pre-tokenized file the row).
    pub row: usize,
    /// What was asked.
    pub text: String,
    /// What would have been right.
    pub right: String,
    /// What was predicted.
    pub predicted: String,
    /// How wrong it was: the probability of the wrong label, 1 - F1 of an answer, nats a token of a text.
    pub badness: f64,
}

/// What is fitted before rows are judged, and on which other rows.
#[derive(Default)]
pub struct Fit<'a> {
    /// Rows to fit on, and what they are called.
    pub on: Option<(&'a Judged, String)>,
    /// Chance of "no answer" above which a question stays unanswered; when not given, it is fitted, or one half.
    pub threshold: Option<f64>,
}

/// Judges, with nothing to fit.
///
/// # Errors
/// A task that the model has no head for; what the engine says.
pub fn evaluate(subject: &mut Subject, judged: &Judged, progress: &mut dyn FnMut(usize)) -> anyhow::Result<Evaluation> {
    evaluate_with(subject, judged, &Fit::default(), progress)
}

/// Judges. `progress` counts the rows that are fitted on, too.
///
/// # Errors
/// As [`evaluate`].
pub fn evaluate_with(
    subject: &mut Subject,
    judged: &Judged,
    fit: &Fit,
    progress: &mut dyn FnMut(usize),
) -> anyhow::Result<Evaluation> {
    fits(subject, judged.task)?;
    match judged.task {
        TaskName::Classify => classes::evaluate(subject, judged, fit, progress),
        TaskName::Answer => answer::evaluate(subject, judged, fit, progress),
        TaskName::Preference => preference::evaluate(subject, judged, progress),
        TaskName::Embed => vectors::evaluate(subject, judged, progress),
        _ => text::evaluate(subject, judged, progress),
    }
}

/// A model is judged on what it answers.
fn fits(subject: &Subject, task: TaskName) -> anyhow::Result<()> {
    let (ok, is) = match subject.task() {
        Some(Task::Classify(_)) => (task == TaskName::Classify, "it classifies"),
        Some(Task::Span) => (task == TaskName::Answer, "it answers questions"),
        Some(Task::Generate) if task == TaskName::Embed => (false, "it generates text and gives no vectors here"),
        Some(Task::Generate) => (task != TaskName::Classify, "it generates text and has no classifier"),
        Some(Task::Embed(_)) => (task == TaskName::Embed, "it gives vectors"),
        None => (false, "it has no head"),
    };
    if !ok {
        crate::bad_input!(
            "the model cannot be judged on --task {task}: {is}; tune it for the task first, or give other rows"
        );
    }
    Ok(())
}

/// The worst of rows, each with how bad it is.
fn worst_of(mut rows: Vec<Worst>) -> Vec<Worst> {
    rows.sort_by(|a, b| b.badness.total_cmp(&a.badness).then(a.row.cmp(&b.row)));
    rows.truncate(WORST);
    for row in &mut rows {
        row.text = shortened(&row.text);
        row.right = shortened(&row.right);
        row.predicted = shortened(&row.predicted);
    }
    rows
}

/// A text as it is kept: its parts by a bar, and not longer than is read.
fn shortened(text: &str) -> String {
    let text = text.replace('\u{0}', " | ");
    match text.char_indices().nth(LONGEST) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text,
    }
}

/// Probabilities of logits.
pub fn softmax(x: &[f32]) -> Vec<f64> {
    let max = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let e: Vec<f64> = x.iter().map(|v| f64::from(v - max).exp()).collect();
    let sum: f64 = e.iter().sum();
    e.into_iter().map(|v| v / sum).collect()
}
