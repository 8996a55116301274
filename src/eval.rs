//! A model and a dataset become numbers with intervals.
//!
//! - [`metrics`]: accuracy, F1, exact match, perplexity, bootstrap; pure functions
//! - [`subject`]: a model on an engine, asked for logits
//! - [`rows`]: DATA as the rows that the subject is judged on
//! - [`answer`]: spans and generated answers → text; [`preference`]: pairs of answers; [`vectors`]: texts by what lies near

pub mod answer;
pub mod metrics;
pub mod preference;
pub mod rows;
pub mod subject;
pub mod vectors;

use crate::data::batch::Target;
use crate::data::schema::Task as TaskName;
use crate::model::network::Task;
use metrics::{Confusion, Interval};
use rows::Judged;
use serde_json::{Value, json};
use std::fmt;
use subject::Subject;

/// Seed of the bootstrap: intervals of the same predictions are the same.
const SEED: u64 = 0;

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
    /// Exact match and F1, for answers.
    pub answers: Option<(Interval, Interval)>,
    /// For pairs of answers.
    pub preferred: Option<preference::Preferred>,
    /// For vectors.
    pub vectors: Option<vectors::Vectors>,
    /// A line a row.
    pub predictions: Vec<Value>,
}

/// Numbers of a classification.
pub struct Classes {
    /// Rows are the truth.
    pub confusion: Confusion,
    /// Share of rows right.
    pub accuracy: Interval,
    /// Mean F1 of the labels.
    pub macro_f1: Interval,
}

/// Judges.
pub fn evaluate(subject: &mut Subject, judged: &Judged, progress: &mut dyn FnMut(usize)) -> anyhow::Result<Evaluation> {
    fits(subject, judged.task)?;
    match judged.task {
        TaskName::Classify => classify(subject, judged, progress),
        TaskName::Answer => answer::evaluate(subject, judged, progress),
        TaskName::Preference => preference::evaluate(subject, judged, progress),
        TaskName::Embed => vectors::evaluate(subject, judged, progress),
        _ => text(subject, judged, progress),
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

fn classify(subject: &mut Subject, judged: &Judged, progress: &mut dyn FnMut(usize)) -> anyhow::Result<Evaluation> {
    let labels = judged.labels.clone();
    let mut pairs = Vec::new();
    let (mut nll, mut predictions) = (0.0, Vec::new());
    for (i, row) in judged.rows.iter().enumerate() {
        let Target::Class(truth) = row.target else { anyhow::bail!("row {}: no label", row.source) };
        let logits = subject.logits(row)?;
        let p = softmax(&logits.values);
        if p.len() != labels.len() {
            crate::bad_input!("the model has {} labels, the data {}", p.len(), labels.len());
        }
        let best = (0..p.len()).fold(0, |b, i| if p[i] > p[b] { i } else { b });
        nll -= p[truth as usize].max(1e-30).ln();
        pairs.push((truth, best as u32));
        let scores: serde_json::Map<String, Value> = labels.iter().cloned().zip(p.iter().map(|p| json!(p))).collect();
        predictions.push(json!({"label": labels[truth as usize], "predicted": labels[best], "scores": scores}));
        progress(i + 1);
    }
    let (accuracy, macro_f1) = metrics::classification_intervals(&labels, &pairs, SEED);
    let loss = Some(nll / pairs.len().max(1) as f64);
    let classes = Some(Classes { confusion: Confusion::count(&labels, &pairs), accuracy, macro_f1 });
    Ok(Evaluation { classes, ..Evaluation::new(TaskName::Classify, pairs.len(), loss, predictions) })
}

fn text(subject: &mut Subject, judged: &Judged, progress: &mut dyn FnMut(usize)) -> anyhow::Result<Evaluation> {
    let mut sums: Vec<(f64, usize)> = Vec::new();
    let mut predictions = Vec::new();
    for (i, row) in judged.rows.iter().enumerate() {
        let Target::Tokens(targets) = &row.target else { anyhow::bail!("row {}: no tokens to predict", row.source) };
        let logits = subject.logits(row)?;
        let (mut nll, mut count) = (0.0, 0);
        for (target, x) in targets.iter().zip(logits.values.chunks(logits.width)) {
            if let Some(t) = target {
                let max = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                let sum: f64 = x.iter().map(|v| f64::from(v - max).exp()).sum();
                nll += sum.ln() - f64::from(x[*t as usize] - max);
                count += 1;
            }
        }
        sums.push((nll, count));
        predictions.push(json!({"row": row.source, "nll": nll, "tokens": count}));
        progress(i + 1);
    }
    let (nll, count) = sums.iter().fold((0.0, 0), |(a, n), (b, m)| (a + b, n + m));
    let perplexity = Some(metrics::perplexity_interval(&sums, SEED));
    let loss = Some(nll / count.max(1) as f64);
    Ok(Evaluation { perplexity, ..Evaluation::new(judged.task, sums.len(), loss, predictions) })
}

/// Probabilities of logits.
pub fn softmax(x: &[f32]) -> Vec<f64> {
    let max = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let e: Vec<f64> = x.iter().map(|v| f64::from(v - max).exp()).collect();
    let sum: f64 = e.iter().sum();
    e.into_iter().map(|v| v / sum).collect()
}

impl Evaluation {
    /// With nothing but these.
    fn new(task: TaskName, examples: usize, loss: Option<f64>, predictions: Vec<Value>) -> Self {
        let (perplexity, classes, answers, preferred, vectors) = (None, None, None, None, None);
        Self { task, examples, loss, perplexity, classes, answers, preferred, vectors, predictions }
    }

    /// Every other number with its name, as JSON has it.
    fn others(&self) -> Vec<(&'static str, Interval)> {
        let mut all = Vec::new();
        if let Some(p) = &self.preferred {
            all.push(("accuracy", p.accuracy));
            all.push(("accuracy_per_token", p.accuracy_per_token));
            all.push(("margin", p.margin));
        }
        if let Some(v) = &self.vectors {
            match v.spearman {
                Some(spearman) => all.push(("spearman", spearman)),
                None => {
                    all.push(("accuracy_at_1", v.accuracy_at_1));
                    all.push(("recall_at_10", v.recall_at_10));
                    all.push(("mrr", v.mrr));
                }
            }
        }
        all
    }

    /// The contract's fields.
    pub fn json(&self) -> Value {
        let mut out = json!({"task": self.task, "examples": self.examples, "loss": self.loss,
            "perplexity": self.perplexity.as_ref().map(|p| p.value)});
        let mut ci = serde_json::Map::new();
        let mut add = |name: &str, i: &Interval| {
            ci.insert(name.to_owned(), json!({"value": i.value, "low": i.low, "high": i.high}));
        };
        if let Some(p) = &self.perplexity {
            add("perplexity", p);
        }
        if let Some(c) = &self.classes {
            let per_class: Vec<Value> = c
                .confusion
                .per_class()
                .into_iter()
                .map(|p| json!({"label": p.label, "precision": p.precision, "recall": p.recall, "f1": p.f1, "support": p.support}))
                .collect();
            out["accuracy"] = json!(c.accuracy.value);
            out["macro_f1"] = json!(c.macro_f1.value);
            out["per_class"] = per_class.into();
            out["confusion"] = json!(c.confusion.matrix);
            out["labels"] = json!(c.confusion.labels);
            add("accuracy", &c.accuracy);
            add("macro_f1", &c.macro_f1);
        }
        if let Some((em, f1)) = &self.answers {
            out["exact_match"] = json!(em.value);
            out["f1"] = json!(f1.value);
            add("exact_match", em);
            add("f1", f1);
        }
        for (name, interval) in self.others() {
            out[name] = json!(interval.value);
            add(name, &interval);
        }
        if let Some(v) = self.vectors.as_ref().filter(|v| v.spearman.is_none()) {
            out["candidates"] = json!(v.candidates);
        }
        out["ci95"] = ci.into();
        out
    }

    /// The one number that the task is judged by, with its name.
    pub fn headline(&self) -> (&'static str, f64) {
        match (&self.classes, &self.answers, &self.perplexity) {
            (Some(c), ..) => ("accuracy", c.accuracy.value),
            (_, Some((em, _)), _) => ("exact match", em.value),
            (.., Some(p)) => ("perplexity", p.value),
            _ if !self.others().is_empty() => (self.others()[0].0, self.others()[0].1.value),
            _ => ("loss", self.loss.unwrap_or(f64::NAN)),
        }
    }
}

impl fmt::Display for Evaluation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let of = |i: &Interval, unit: f64| {
            format!("{:.2} (95 %: {:.2} to {:.2})", i.value * unit, i.low * unit, i.high * unit)
        };
        writeln!(f, "{} rows, task {}", self.examples, self.task)?;
        if let Some(p) = &self.perplexity {
            writeln!(f, "  perplexity  {}", of(p, 1.0))?;
        }
        if let Some((em, f1)) = &self.answers {
            writeln!(f, "  exact match {} %\n  F1          {} %", of(em, 100.0), of(f1, 100.0))?;
        }
        if let Some(c) = &self.classes {
            writeln!(f, "  accuracy    {} %\n  macro F1    {} %", of(&c.accuracy, 100.0), of(&c.macro_f1, 100.0))?;
            for p in c.confusion.per_class() {
                writeln!(
                    f,
                    "  {:<12} F1 {:.3}, precision {:.3}, recall {:.3}, {} rows",
                    p.label, p.f1, p.precision, p.recall, p.support
                )?;
            }
        }
        for (name, interval) in self.others() {
            writeln!(f, "  {:<18} {}", name.replace('_', " "), Shown(&interval))?;
        }
        if let Some(v) = self.vectors.as_ref().filter(|v| v.spearman.is_none()) {
            writeln!(f, "  among {} different texts", v.candidates)?;
        }
        if let Some(loss) = self.loss {
            writeln!(f, "  loss        {loss:.4}")?;
        }
        Ok(())
    }
}

/// A number and its interval, four digits each.
struct Shown<'a>(&'a Interval);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.4} (95 %: {:.4} to {:.4})", self.0.value, self.0.low, self.0.high)
    }
}
