//! Answers that are preferred to others: which of the two the model finds likelier.

use super::metrics::{Interval, bootstrap_mean};
use super::rows::Judged;
use super::subject::Subject;
use super::{Evaluation, Outcomes, SEED};
use crate::data::batch::{Row, Side};
use crate::data::schema::Task as TaskName;
use serde_json::{Value, json};

/// Numbers of pairs, by the model alone: what it was before it was tuned is another model, judged by itself.
pub struct Preferred {
    /// Share of pairs whose chosen answer is the likelier as a whole.
    pub accuracy: Interval,
    /// Share of pairs whose chosen answer is the likelier a token.
    pub accuracy_per_token: Interval,
    /// log p of the chosen answer less that of the rejected one, in nats, on average.
    pub margin: Interval,
}

/// Reads every answer. The loss is nats a token of the chosen (or wanted) answers.
///
/// # Errors
/// Rows of answers one by one, which have nothing to be compared with; what the engine says.
pub fn evaluate(subject: &mut Subject, judged: &Judged, progress: &mut dyn FnMut(usize)) -> anyhow::Result<Evaluation> {
    let (mut whole, mut a_token, mut margins) = (Vec::new(), Vec::new(), Vec::new());
    let (mut nll, mut tokens, mut predictions) = (0.0, 0, Vec::<Value>::new());
    for (i, pair) in judged.rows.chunk_by(|_, b| !b.begins()).enumerate() {
        let [chosen, rejected] = pair else {
            crate::bad_input!(
                "row {}: a preference is judged by pairs (`chosen` and `rejected`); answers with a `label` have no other to be held against",
                pair[0].source
            );
        };
        if chosen.target.side() != Some(Side::Chosen) {
            crate::bad_input!("row {}: no chosen answer", chosen.source);
        }
        let (c, r) = (log_p(subject, chosen)?, log_p(subject, rejected)?);
        let mean = |log_p: f64, row: &Row| log_p / row.learned().max(1) as f64;
        let better = |better: bool| f64::from(u8::from(better));
        whole.push(better(c > r));
        a_token.push(better(mean(c, chosen) > mean(r, rejected)));
        margins.push(c - r);
        nll -= c;
        tokens += chosen.learned();
        predictions.push(json!({"row": chosen.source, "chosen": c, "rejected": r}));
        progress(i + 1);
    }
    let preferred = Preferred {
        accuracy: bootstrap_mean(&whole, SEED),
        accuracy_per_token: bootstrap_mean(&a_token, SEED),
        margin: bootstrap_mean(&margins, SEED),
    };
    let (loss, preferred) = (Some(nll / tokens.max(1) as f64), Some(preferred));
    let outcomes = Outcomes::Pairs(whole.iter().map(|better| *better == 1.0).collect());
    Ok(Evaluation { loss, preferred, ..Evaluation::new(TaskName::Preference, whole.len(), outcomes, predictions) })
}

/// log p of the learned tokens of a row, in nats.
fn log_p(subject: &mut Subject, row: &Row) -> anyhow::Result<f64> {
    let Some(targets) = row.target.tokens() else { crate::bad_input!("row {}: no tokens to predict", row.source) };
    let logits = subject.logits(row)?;
    let mut sum = 0.0;
    for (target, x) in targets.iter().zip(logits.values.chunks(logits.width)) {
        if let Some(t) = target {
            let max = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let all: f64 = x.iter().map(|v| f64::from(v - max).exp()).sum();
            sum += f64::from(x[*t as usize] - max) - all.ln();
        }
    }
    Ok(sum)
}
