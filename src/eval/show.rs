//! An evaluation as the contract's JSON, and as lines for people.

use super::answer::Silence;
use super::classes::Calibration;
use super::metrics::Interval;
use super::metrics::calibration::{BINS, is_unbounded};
use super::metrics::paired::Difference;
use super::{Evaluation, written::Written};
use serde_json::{Map, Value, json};
use std::fmt;

/// A metric as `ci95` holds it.
fn interval(i: &Interval) -> Value {
    json!({"value": i.value, "low": i.low, "high": i.high})
}

impl Evaluation {
    /// Every metric with an interval, by the name that JSON has for it.
    pub fn metrics(&self) -> Vec<(&'static str, Interval)> {
        let mut out = Vec::new();
        let mut add = |name, i: Option<&Interval>| out.extend(i.map(|i| (name, *i)));
        add("perplexity", self.perplexity.as_ref());
        if let Some(c) = &self.classes {
            add("accuracy", Some(&c.accuracy));
            add("macro_f1", Some(&c.macro_f1));
            add("auroc", c.auroc.as_ref().map(|(i, _)| i));
            add("ece", Some(&c.calibration.ece));
        }
        if let Some(a) = &self.answers {
            add("exact_match", Some(&a.exact_match));
            add("f1", Some(&a.f1));
        }
        if let Some(w) = &self.written {
            add("rouge_l", Some(&w.rouge_l));
            add("chrf", Some(&w.chrf));
        }
        if let Some(p) = &self.preferred {
            add("accuracy", Some(&p.accuracy));
            add("accuracy_per_token", Some(&p.accuracy_per_token));
            add("margin", Some(&p.margin));
        }
        if let Some(v) = &self.vectors {
            match &v.spearman {
                Some(spearman) => add("spearman", Some(spearman)),
                None => {
                    add("accuracy_at_1", Some(&v.accuracy_at_1));
                    add("recall_at_10", Some(&v.recall_at_10));
                    add("mrr", Some(&v.mrr));
                }
            }
        }
        out
    }

    /// The contract's fields.
    pub fn json(&self) -> Value {
        let mut out = json!({"task": self.task, "examples": self.examples, "loss": self.loss, "perplexity": null});
        let mut ci = Map::new();
        for (name, i) in self.metrics() {
            out[name] = json!(i.value);
            ci.insert(name.to_owned(), interval(&i));
        }
        if let Some(c) = &self.classes {
            out["per_class"] = json!(c.confusion.per_class());
            out["confusion"] = json!(c.confusion.matrix);
            out["labels"] = json!(c.confusion.labels);
            out["auroc_of"] = json!(c.auroc.as_ref().map(|(_, label)| label));
            out["calibration"] = calibration(&c.calibration);
        }
        if let Some(silence) = self.answers.as_ref().and_then(|a| a.silence.as_ref()) {
            out["unanswerable"] = unanswerable(silence);
        }
        if let Some(w) = &self.written {
            out["written"] = json!({"rows": w.rows, "of": w.of, "max_new": w.max_new, "cut": w.cut});
        }
        if let Some(v) = self.vectors.as_ref().filter(|v| v.spearman.is_none()) {
            out["candidates"] = json!(v.candidates);
        }
        out["ci95"] = ci.into();
        out["worst"] = json!(self.worst);
        out
    }

    /// The one number that the task is judged by, with its name.
    pub fn headline(&self) -> (&'static str, f64) {
        match (&self.classes, &self.answers, &self.perplexity) {
            (Some(c), ..) => ("accuracy", c.accuracy.value),
            (_, Some(a), _) => ("exact match", a.exact_match.value),
            (.., Some(p)) => ("perplexity", p.value),
            _ => self.metrics().first().map_or(("loss", self.loss.unwrap_or(f64::NAN)), |(name, i)| (*name, i.value)),
        }
    }
}

fn calibration(c: &Calibration) -> Value {
    let fitted = c.fitted.as_ref();
    json!({
        "ece": c.ece.value, "bins": c.bins, "nll": c.nll,
        "temperature": fitted.map(|f| f.temperature), "fitted_on": fitted.map(|f| &f.on), "fitted_rows": fitted.map(|f| f.rows),
        "ece_at_temperature": fitted.map(|f| interval(&f.ece)), "nll_at_temperature": fitted.map(|f| f.nll),
    })
}

fn unanswerable(s: &Silence) -> Value {
    let part = |(exact, f1, n): &(Interval, Interval, usize)| json!({"exact_match": interval(exact), "f1": interval(f1), "total": n});
    let best = |b: Option<(f64, f64)>| b.map(|(threshold, value)| json!({"threshold": threshold, "value": value}));
    json!({
        "has_answer": part(&s.has_answer), "no_answer": part(&s.no_answer),
        "threshold": s.threshold.as_ref().map(|t| t.0), "threshold_from": s.threshold.as_ref().map(|t| &t.1),
        "best_exact": best(s.best_exact), "best_f1": best(s.best_f1),
    })
}

/// Differences of two models, as JSON by metric.
pub fn differences(found: &[(&'static str, Difference)]) -> Value {
    found.iter().map(|(name, d)| ((*name).to_owned(), json!(d))).collect::<Map<_, _>>().into()
}

/// One difference as a line.
pub fn difference_line(name: &str, d: &Difference) -> String {
    let percent = ["accuracy", "macro_f1", "exact_match", "f1"].contains(&name);
    let (unit, sign) = if percent { (100.0, " %") } else { (1.0, "") };
    let test = if d.test == "mcnemar" { "McNemar's exact test" } else { "randomization" };
    format!(
        "  {:<11} {:.2}{sign} against {:.2}{sign}: {:+.2} (95 %: {:+.2} to {:+.2}), p = {:.3} by {test}",
        name.replace('_', " "),
        unit * d.subject,
        unit * d.against,
        unit * d.difference,
        unit * d.low,
        unit * d.high,
        d.p
    )
}

/// A value and its interval, in `unit`s.
fn of(i: &Interval, unit: f64) -> String {
    format!("{:.2} (95 %: {:.2} to {:.2})", i.value * unit, i.low * unit, i.high * unit)
}

impl fmt::Display for Evaluation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} rows, task {}", self.examples, self.task)?;
        if let Some(p) = &self.perplexity {
            writeln!(f, "  perplexity  {}", of(p, 1.0))?;
        }
        if let Some(a) = &self.answers {
            writeln!(f, "  exact match {} %\n  F1          {} %", of(&a.exact_match, 100.0), of(&a.f1, 100.0))?;
            if let Some(s) = &a.silence {
                s.fmt(f)?;
            }
        }
        if let Some(c) = &self.classes {
            writeln!(f, "  accuracy    {} %\n  macro F1    {} %", of(&c.accuracy, 100.0), of(&c.macro_f1, 100.0))?;
            if let Some((area, label)) = &c.auroc {
                writeln!(f, "  AUROC       {} by the probability of {label}", of(area, 100.0))?;
            }
            c.calibration.fmt(f)?;
            for p in c.confusion.per_class() {
                writeln!(
                    f,
                    "  {:<12} F1 {:.3}, precision {:.3}, recall {:.3}, {} rows",
                    p.label, p.f1, p.precision, p.recall, p.support
                )?;
            }
        }
        if self.preferred.is_some() || self.vectors.is_some() {
            for (name, i) in self.metrics() {
                let (name, [value, low, high]) = (name.replace('_', " "), [i.value, i.low, i.high]);
                writeln!(f, "  {name:<18} {value:.4} (95 %: {low:.4} to {high:.4})")?;
            }
        }
        if let Some(v) = self.vectors.as_ref().filter(|v| v.spearman.is_none()) {
            writeln!(f, "  among {} different texts", v.candidates)?;
        }
        if let Some(loss) = self.loss {
            writeln!(f, "  loss        {loss:.4}")?;
        }
        if let Some(w) = &self.written {
            w.fmt(f)?;
        }
        Ok(())
    }
}

impl fmt::Display for Calibration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "  calibration error {} % ({BINS} bins)", of(&self.ece, 100.0))?;
        let Some(fitted) = &self.fitted else { return Ok(()) };
        if is_unbounded(fitted.temperature) {
            return writeln!(f, "  temperature none is best on {}: every row is right, or every row wrong", fitted.on);
        }
        writeln!(
            f,
            "  temperature {:.3}, fitted on {} ({} rows): calibration error {} %, loss {:.4}",
            fitted.temperature,
            fitted.on,
            fitted.rows,
            of(&fitted.ece, 100.0),
            fitted.nll
        )
    }
}

impl fmt::Display for Silence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (exact, f1, n) = &self.has_answer;
        writeln!(f, "  {n} with an answer:    exact match {} %, F1 {} %", of(exact, 100.0), of(f1, 100.0))?;
        let (exact, _, n) = &self.no_answer;
        writeln!(f, "  {n} without an answer: left unanswered {} %", of(exact, 100.0))?;
        if let Some((threshold, from)) = &self.threshold {
            writeln!(f, "  unanswered where the chance of no answer is above {threshold:.4} ({from})")?;
        }
        if let (Some((threshold, f1)), Some((at, exact))) = (self.best_f1, self.best_exact) {
            writeln!(
                f,
                "  best on these rows: F1 {:.2} % above {threshold:.4}, exact match {:.2} % above {at:.4}",
                100.0 * f1,
                100.0 * exact
            )?;
        }
        Ok(())
    }
}

impl fmt::Display for Written {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cut = match self.cut {
            0 => String::new(),
            n => format!("; {n} did not end within {} tokens", self.max_new),
        };
        writeln!(f, "  written     {} of {} rows, greedily{cut}", self.rows, self.of)?;
        writeln!(f, "  ROUGE-L     {} %\n  chrF        {}", of(&self.rouge_l, 100.0), of(&self.chrf, 1.0))
    }
}
