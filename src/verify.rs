//! Two stages of one model, held against each other on the same rows: KL divergence, top-1 agreement, perplexity. The gate.

#![allow(clippy::neg_cmp_op_on_partial_ord)] // `!(x <= bound)` is the gate that NaN does not pass

use crate::data::batch::{Row, Target};
use crate::data::tokens::{Outputs, Reference};
use crate::eval::metrics::percentile;
use crate::eval::subject::Logits;
use crate::eval::subject::Subject;
use crate::model::network::Task;
use crate::retention::Retention;
use edgeft_runtime::format::gguf::Value;
use serde::Serialize;

/// What was measured. Fields that do not apply are null.
#[derive(Debug, Clone, Serialize)]
#[allow(missing_docs)]
pub struct Verification {
    pub pass: bool,
    /// Rows of logits that were compared.
    pub positions: usize,
    /// Largest difference of two logits.
    pub max_abs: f64,
    /// Mean of KL(reference ‖ subject), nats.
    pub mean_kl: f64,
    pub p99_kl: f64,
    /// Share of positions whose largest logit is at the same place.
    pub top1: f64,
    pub perplexity: Option<Sides>,
    /// Whether both sides cut every text into the same ids.
    pub tokens_identical: Option<bool>,
    /// Whether both sides carry the same chat template.
    pub template_identical: Option<bool>,
    /// The first place where a bound or an identity broke.
    pub first_difference: Option<String>,
    /// Accuracy of both sides, where rows have labels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub accuracy: Option<Sides>,
    /// Exact match of both sides, where rows are questions with their answers as text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exact_match: Option<Sides>,
    /// The bounds that were applied.
    pub bounds: Bounds,
    /// How much of what tuning changed is left, where the subject is a quantized file and the reference the RUN.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retention: Option<Retention>,
}

/// One number of each side.
#[derive(Debug, Clone, Copy, Serialize)]
#[allow(missing_docs)]
pub struct Sides {
    pub subject: f64,
    pub reference: f64,
}

/// What the measurement must keep.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[allow(missing_docs)]
pub struct Bounds {
    pub max_kl: Option<f64>,
    pub min_top1: Option<f64>,
    pub max_abs: Option<f64>,
}

impl Sides {
    /// What a task metric may not do: fall by more than 0.01. NaN has fallen.
    fn fall(self, name: &str) -> Option<String> {
        let Self { subject, reference } = self;
        let held = subject >= reference - 0.01;
        (!held).then(|| format!("{name} fell from {reference:.4} to {subject:.4}, more than 0.01"))
    }
}

impl Bounds {
    /// The contract's bounds for a type or mix; none for a type it does not name.
    pub fn of_type(name: &str) -> Option<Self> {
        // A file of chosen types is called by the type of most and its bits: q4_k-4.63bpw.
        let (kl, top1) = match name.split('-').next().unwrap_or(name) {
            "f32" => (1e-6, 0.99),
            "f16" | "bf16" => (1e-4, 0.99),
            "q8_0" => (0.005, 0.97),
            "q6_k" => (0.02, 0.95),
            n if n.starts_with("q5") => (0.05, 0.92),
            n if n.starts_with("q4") || n.starts_with("iq4") => (0.15, 0.85),
            _ => return None,
        };
        Some(Self { max_kl: Some(kl), min_top1: Some(top1), max_abs: None })
    }
}

/// Sums while rows go by.
#[derive(Default)]
struct Sums {
    kl: Vec<f64>,
    max_abs: f64,
    max_at: String,
    agree: usize,
    worst: Option<(f64, String)>,
    nll: [f64; 2],
    learned: usize,
    right: [usize; 2],
    labelled: usize,
}

/// Compares two subjects on rows.
///
/// # Errors
/// What either side reports; other numbers of logits.
pub fn compare(
    subject: &mut Subject,
    reference: &mut Subject,
    rows: &[Row],
    bounds: Bounds,
) -> anyhow::Result<Verification> {
    let mut sums = Sums::default();
    for row in rows {
        let (a, b) = (subject.logits(row)?, reference.logits(row)?);
        if a.width != b.width {
            crate::bad_input!(
                "the subject gives {} numbers a position, the reference {}; are they the same model?",
                a.width,
                b.width
            );
        }
        if subject.task() == Some(Task::Span) {
            for s in 0..2 {
                let (a, b) = (side(&a.values, s), side(&b.values, s));
                sums.add(row, &a, &b, a.len())?;
            }
        } else {
            sums.add(row, &a.values, &b.values, a.width)?;
        }
    }
    Ok(sums.finish(bounds))
}

/// Mean KL divergence of a subject from logits that a reference gave on the same rows, nats a position.
///
/// # Errors
/// What the subject reports; other numbers of logits.
pub fn divergence(subject: &mut Subject, reference: &[Logits], rows: &[Row]) -> anyhow::Result<f64> {
    let mut sums = Sums::default();
    let span = subject.task() == Some(Task::Span);
    for (row, b) in rows.iter().zip(reference) {
        let a = subject.logits(row)?;
        if span {
            for s in 0..2 {
                let (a, b) = (side(&a.values, s), side(&b.values, s));
                sums.add(row, &a, &b, a.len())?;
            }
        } else {
            sums.add(row, &a.values, &b.values, a.width)?;
        }
    }
    Ok(sums.kl.iter().sum::<f64>() / sums.kl.len().max(1) as f64)
}

/// Compares a subject with recorded outputs.
pub fn compare_recorded(subject: &mut Subject, reference: &Reference, bounds: Bounds) -> anyhow::Result<Verification> {
    let mut sums = Sums::default();
    for (i, row) in reference.rows.iter().enumerate() {
        let a = subject.logits(row)?;
        match &reference.outputs {
            Outputs::Tokens { vocab, logits } => {
                if a.width != *vocab {
                    crate::bad_input!("the subject gives {} logits a position, the reference {vocab}", a.width);
                }
                sums.add(row, &a.values, &logits[i], a.width)?;
            }
            Outputs::Class { logits } => sums.add(row, &a.values, &logits[i], a.width)?,
            Outputs::Span { start, end } => {
                if a.width != 2 {
                    crate::bad_input!(
                        "the reference answers with spans, the subject gives {} numbers a position",
                        a.width
                    );
                }
                sums.add(row, &side(&a.values, 0), &start[i], start[i].len())?;
                sums.add(row, &side(&a.values, 1), &end[i], end[i].len())?;
            }
        }
    }
    Ok(sums.finish(bounds))
}

/// Start (0) or end (1) logits of (T, 2): a span head's softmax runs over the positions, once for each.
fn side(values: &[f32], which: usize) -> Vec<f32> {
    values.iter().skip(which).step_by(2).copied().collect()
}

impl Sums {
    /// (n, width) logits of both sides.
    fn add(&mut self, row: &Row, subject: &[f32], reference: &[f32], width: usize) -> anyhow::Result<()> {
        if subject.len() != reference.len() || width == 0 {
            crate::bad_input!(
                "row {}: the subject gives {} numbers, the reference {}",
                row.source,
                subject.len(),
                reference.len()
            );
        }
        for (position, (a, b)) in subject.chunks(width).zip(reference.chunks(width)).enumerate() {
            for (i, (x, y)) in a.iter().zip(b).enumerate() {
                let difference = f64::from((x - y).abs());
                if !(difference <= self.max_abs) {
                    self.max_abs = difference;
                    self.max_at = format!("row {}, position {position}, logit {i}: {x} against {y}", row.source);
                }
            }
            let (p, q) = (log_softmax(b), log_softmax(a));
            let kl: f64 = p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum();
            let kl = if kl < 0.0 { 0.0 } else { kl }; // rounding; `max` would turn NaN into 0, and NaN must fail
            let agree = argmax(a) == argmax(b);
            self.agree += usize::from(agree);
            if !agree && self.worst.as_ref().is_none_or(|(worst, _)| kl > *worst) {
                let place = format!(
                    "row {}, position {position}: top 1 is {} against {}, KL {kl:.4}",
                    row.source,
                    argmax(a),
                    argmax(b)
                );
                self.worst = Some((kl, place));
            }
            self.kl.push(kl);
            match &row.target {
                Target::Tokens(targets) | Target::Answer { tokens: targets, .. } => {
                    if let Some(Some(t)) = targets.get(position) {
                        self.nll[0] -= q[*t as usize];
                        self.nll[1] -= p[*t as usize];
                        self.learned += 1;
                    }
                }
                Target::Class(c) => {
                    self.right[0] += usize::from(argmax(a) == *c as usize);
                    self.right[1] += usize::from(argmax(b) == *c as usize);
                    self.labelled += 1;
                }
                Target::Span { .. } | Target::Vector(_) | Target::None => {}
            }
        }
        Ok(())
    }

    fn finish(mut self, bounds: Bounds) -> Verification {
        let n = self.kl.len().max(1) as f64;
        let mean_kl = self.kl.iter().sum::<f64>() / n;
        self.kl.sort_by(f64::total_cmp);
        let p99_kl = if self.kl.is_empty() { 0.0 } else { percentile(&self.kl, 0.99) };
        let top1 = self.agree as f64 / n;
        let accuracy = (self.labelled > 0).then(|| Sides {
            subject: self.right[0] as f64 / self.labelled as f64,
            reference: self.right[1] as f64 / self.labelled as f64,
        });
        let mut broken = Vec::new();
        if self.kl.is_empty() {
            broken.push("nothing was compared".to_owned());
        }
        // NaN must fail: every comparison is written so that it does.
        if bounds.max_kl.is_some_and(|b| !(mean_kl <= b)) {
            broken.push(format!("mean KL {mean_kl:.2e} over {:.2e}", bounds.max_kl.unwrap_or_default()));
        }
        if bounds.min_top1.is_some_and(|b| !(top1 >= b)) {
            broken.push(format!("top-1 agreement {top1:.4} under {:.4}", bounds.min_top1.unwrap_or_default()));
        }
        if bounds.max_abs.is_some_and(|b| !(self.max_abs <= b)) {
            broken.push(format!(
                "largest difference {:.2e} over {:.2e} at {}",
                self.max_abs,
                bounds.max_abs.unwrap_or_default(),
                self.max_at
            ));
        }
        broken.extend(accuracy.and_then(|a| a.fall("accuracy")));
        let perplexity = (self.learned > 0).then(|| Sides {
            subject: (self.nll[0] / self.learned as f64).exp(),
            reference: (self.nll[1] / self.learned as f64).exp(),
        });
        let pass = broken.is_empty();
        if !pass && let Some((_, place)) = self.worst {
            broken.push(place);
        }
        Verification {
            pass,
            positions: self.kl.len(),
            max_abs: self.max_abs,
            mean_kl,
            p99_kl,
            top1,
            perplexity,
            tokens_identical: None,
            template_identical: None,
            first_difference: (!pass).then(|| broken.join("; ")),
            accuracy,
            exact_match: None,
            bounds,
            retention: None,
        }
    }
}

impl Verification {
    /// Adds how often each side's answers are right; the subject's may not be much fewer.
    pub fn require_exact_match(&mut self, sides: Sides) {
        self.exact_match = Some(sides);
        if let Some(place) = sides.fall("exact match") {
            self.fail(place);
        }
    }

    /// Adds an identity that must hold as well.
    pub fn require(&mut self, identical: bool, what: &str, difference: Option<String>) {
        match what {
            "tokens" => self.tokens_identical = Some(identical),
            _ => self.template_identical = Some(identical),
        }
        if !identical {
            self.fail(difference.unwrap_or_else(|| format!("{what} differ")));
        }
    }

    /// The results as `edgeft.verification.*` keys of the file that was examined.
    pub fn keys(&self, against: &str, data: &str, data_sha256: &str) -> Vec<(String, Value)> {
        let mut keys = vec![
            ("pass", Value::Bool(self.pass)),
            ("against", Value::Str(against.to_owned())),
            ("data", Value::Str(data.to_owned())),
            ("data_sha256", Value::Str(data_sha256.to_owned())),
            ("positions", Value::U64(self.positions as u64)),
        ];
        for (name, value) in
            [("mean_kl", self.mean_kl), ("p99_kl", self.p99_kl), ("top1", self.top1), ("max_abs", self.max_abs)]
        {
            keys.push((name, Value::F64(value)));
        }
        for (names, sides) in [
            (["perplexity", "reference_perplexity"], self.perplexity),
            (["accuracy", "reference_accuracy"], self.accuracy),
            (["exact_match", "reference_exact_match"], self.exact_match),
        ] {
            if let Some(Sides { subject, reference }) = sides {
                keys.extend([(names[0], Value::F64(subject)), (names[1], Value::F64(reference))]);
            }
        }
        for (name, same) in
            [("tokens_identical", self.tokens_identical), ("template_identical", self.template_identical)]
        {
            keys.extend(same.map(|same| (name, Value::Bool(same))));
        }
        for (name, bound) in
            [("max_kl", self.bounds.max_kl), ("min_top1", self.bounds.min_top1), ("bound_max_abs", self.bounds.max_abs)]
        {
            keys.extend(bound.map(|bound| (name, Value::F64(bound))));
        }
        keys.into_iter().map(|(name, value)| (format!("edgeft.verification.{name}"), value)).collect()
    }

    fn fail(&mut self, place: String) {
        self.pass = false;
        self.first_difference = Some(match self.first_difference.take() {
            Some(before) => format!("{before}; {place}"),
            None => place,
        });
    }
}

fn argmax(x: &[f32]) -> usize {
    x.iter().enumerate().fold(0, |best, (i, v)| if *v > x[best] { i } else { best })
}

fn log_softmax(x: &[f32]) -> Vec<f64> {
    let max = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = x.iter().map(|v| f64::from(v - max).exp()).sum();
    x.iter().map(|v| f64::from(v - max) - sum.ln()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row() -> Row {
        Row::new(vec![0, 1], Target::Tokens(vec![Some(1), None]), 0)
    }

    fn measure(a: &[f32], b: &[f32], bounds: Bounds) -> Verification {
        let mut sums = Sums::default();
        sums.add(&row(), a, b, 2).unwrap();
        sums.finish(bounds)
    }

    #[test]
    fn kl_of_two_coins_is_by_hand() {
        // reference: (0.5, 0.5), subject: (0.8, 0.2): KL = 0.5 ln(0.5/0.8) + 0.5 ln(0.5/0.2) = 0.2231
        let v = measure(
            &[4f32.ln(), 0.0, 0.0, 0.0],
            &[0.0, 0.0, 0.0, 0.0],
            Bounds { max_kl: None, min_top1: None, max_abs: None },
        );
        assert!((v.mean_kl - 0.223_143_55 / 2.0).abs() < 1e-7, "{}", v.mean_kl);
        let p = v.perplexity.unwrap();
        assert!((p.subject - 5.0).abs() < 1e-6 && (p.reference - 2.0).abs() < 1e-6, "{p:?}");
        assert!(v.pass);
    }

    #[test]
    fn the_gate_fails_closed_on_nan_and_on_nothing() {
        let bounds = Bounds::of_type("f32").unwrap();
        assert!(!measure(&[f32::NAN, 0.0, 0.0, 0.0], &[0.0; 4], bounds).pass);
        assert!(!Sums::default().finish(bounds).pass);
        let bound_by_nothing = Bounds { max_kl: None, min_top1: None, max_abs: None };
        let mut v = measure(&[0.0; 4], &[0.0; 4], bound_by_nothing);
        v.require_exact_match(Sides { subject: 0.495, reference: 0.5 });
        assert!(v.pass);
        v.require_exact_match(Sides { subject: f64::NAN, reference: 0.5 });
        assert!(!v.pass);
        let mut v = measure(&[0.0; 4], &[0.0; 4], bound_by_nothing);
        v.require_exact_match(Sides { subject: 0.48, reference: 0.5 });
        assert!(!v.pass && v.first_difference.as_ref().unwrap().contains("from 0.5000 to 0.4800"), "{v:?}");
        let v = measure(&[1.0, 0.0, 0.0, 0.0], &[0.0, 1.0, 0.0, 0.0], bounds);
        assert!(!v.pass && v.first_difference.as_ref().unwrap().contains("row 0, position 0"), "{v:?}");
    }
}
