//! Labels: what was predicted, how surely, and how far the sureness can be trusted.

use super::metrics::calibration::{self, Bin, Scored};
use super::metrics::{Confusion, Interval, classification_intervals, ranking};
use super::rows::Judged;
use super::subject::Subject;
use super::{Evaluation, Fit, Outcomes, SEED, Worst, softmax, worst_of};
use crate::data::batch::Target;
use crate::data::schema::Task as TaskName;
use serde_json::{Value, json};

/// Numbers of a classification.
pub struct Classes {
    /// Rows are the truth.
    pub confusion: Confusion,
    /// Share of rows right.
    pub accuracy: Interval,
    /// Mean F1 of the labels.
    pub macro_f1: Interval,
    /// With two labels: how well the probability of the second parts them, and that label.
    pub auroc: Option<(Interval, String)>,
    /// How far probabilities can be trusted.
    pub calibration: Calibration,
}

/// How far probabilities can be trusted.
pub struct Calibration {
    /// Expected calibration error, as the model is.
    pub ece: Interval,
    /// What it is counted from.
    pub bins: Vec<Bin>,
    /// Mean nats of the right labels, as the model is.
    pub nll: f64,
    /// What dividing the logits by one number would do.
    pub fitted: Option<Fitted>,
}

/// A temperature, and what it does on the rows that were judged.
pub struct Fitted {
    /// Logits are divided by it.
    pub temperature: f64,
    /// What it was fitted on.
    pub on: String,
    /// How many rows that were.
    pub rows: usize,
    /// Expected calibration error at it.
    pub ece: Interval,
    /// Mean nats of the right labels at it.
    pub nll: f64,
}

/// Probabilities of every row, and its label.
///
/// # Errors
/// A row without a label, another number of labels than the model has.
pub fn scored(subject: &mut Subject, judged: &Judged, progress: &mut dyn FnMut(usize)) -> anyhow::Result<Vec<Scored>> {
    let mut out = Vec::with_capacity(judged.rows.len());
    for (i, row) in judged.rows.iter().enumerate() {
        let Target::Class(truth) = row.target else { anyhow::bail!("row {}: no label", row.source) };
        let p = softmax(&subject.logits(row)?.values);
        if p.len() != judged.labels.len() {
            crate::bad_input!("the model has {} labels, the data {}", p.len(), judged.labels.len());
        }
        out.push((p, truth));
        progress(i + 1);
    }
    Ok(out)
}

/// Judges a classifier.
///
/// # Errors
/// As [`scored`].
pub fn evaluate(
    subject: &mut Subject,
    judged: &Judged,
    fit: &Fit,
    progress: &mut dyn FnMut(usize),
) -> anyhow::Result<Evaluation> {
    let temperature = match &fit.on {
        None => None,
        Some((rows, on)) if rows.task == TaskName::Classify && !rows.rows.is_empty() => {
            let scored = scored(subject, rows, progress)?;
            Some((calibration::temperature(&scored), on.clone(), scored.len()))
        }
        Some((rows, on)) => crate::bad_input!("{on}: rows for --task {}; a temperature needs labels", rows.task),
    };
    let before = fit.on.as_ref().map_or(0, |(rows, _)| rows.len());
    let scored = scored(subject, judged, &mut |n| progress(before + n))?;
    Ok(judge(judged, &scored, temperature))
}

/// Numbers of probabilities that are there already.
pub fn judge(judged: &Judged, scored: &[Scored], temperature: Option<(f64, String, usize)>) -> Evaluation {
    let labels = &judged.labels;
    let pairs: Vec<(u32, u32)> = scored.iter().map(|(p, t)| (*t, calibration::likeliest(p) as u32)).collect();
    let (accuracy, macro_f1) = classification_intervals(labels, &pairs, SEED);
    let auroc = match &labels[..] {
        [_, second] => {
            let rows: Vec<(f64, bool)> = scored.iter().map(|(p, truth)| (p[1], *truth == 1)).collect();
            ranking::auroc_interval(&rows, SEED).map(|i| (i, second.clone()))
        }
        _ => None,
    };
    let confidences = calibration::confidences(scored);
    let fitted = temperature.map(|(temperature, on, rows)| {
        let mended = calibration::at_temperature(scored, temperature);
        let ece = calibration::ece_interval(&calibration::confidences(&mended), SEED);
        Fitted { temperature, on, rows, ece, nll: calibration::nll(&mended) }
    });
    let nll = calibration::nll(scored);
    let calibration = Calibration {
        ece: calibration::ece_interval(&confidences, SEED),
        bins: calibration::bins(&confidences),
        nll,
        fitted,
    };
    let texts = judged.texts_of_rows();
    let mut wrong = Vec::new();
    let mut predictions = Vec::with_capacity(scored.len());
    for (i, ((p, _), (truth, predicted))) in scored.iter().zip(&pairs).enumerate() {
        let (right, said) = (&labels[*truth as usize], &labels[*predicted as usize]);
        let scores: serde_json::Map<String, Value> = labels.iter().cloned().zip(p.iter().map(|p| json!(p))).collect();
        predictions.push(json!({"row": judged.rows[i].source, "label": right, "predicted": said, "scores": scores}));
        if truth != predicted {
            let text = texts.map_or(String::new(), |t| t[i].clone());
            let badness = p[*predicted as usize];
            let (right, predicted) = (right.clone(), said.clone());
            wrong.push(Worst { row: judged.rows[i].source, text, right, predicted, badness });
        }
    }
    Evaluation {
        loss: Some(nll),
        classes: Some(Classes { confusion: Confusion::count(labels, &pairs), accuracy, macro_f1, auroc, calibration }),
        worst: worst_of(wrong),
        ..Evaluation::new(TaskName::Classify, pairs.len(), Outcomes::Classes(pairs), predictions)
    }
}
