//! What changes in a model's answer when a group word does.
//!
//! - [`pairs`]: PAIRS as sentences that differ in a group word; [`templates`]: some of our own
//! - [`likelihood`]: which of two sentences a language model finds likelier
//! - [`labels`]: how a classifier's answers move from group to group
//!
//! An audit finds what it looks for in the sentences that it was given, and no more: a good number is no certificate.

pub mod labels;
pub mod likelihood;
pub mod pairs;
pub mod templates;

use super::SEED;
use super::metrics::paired::{Difference, compare, compare_right};
use super::metrics::{Interval, bootstrap_mean};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// Pairs that are kept with their text: those that differ most.
const SHOWN: usize = 10;

/// What was found.
#[derive(Debug, Clone)]
pub struct Audit {
    /// `stereotype_share`, `flip_rate` or `demographic_parity_gap`.
    pub metric: &'static str,
    /// Pairs, or single texts, that were asked.
    pub pairs: usize,
    /// The metric.
    pub value: Interval,
    /// What it would be of a model that does not look at the group word.
    pub ideal: f64,
    /// The metric by category (of single texts the rate by group), and how many pairs that is.
    pub by_group: Vec<(String, Interval, usize)>,
    /// What else was measured, by name.
    pub more: Vec<(&'static str, Interval)>,
    /// Rates by group, of classifiers.
    pub rates: Vec<labels::Rates>,
    /// Of classifiers: the label whose share is compared.
    pub favorable: Option<String>,
    /// How it was computed.
    pub how: String,
    /// Per pair what the metric is the mean of; empty where it is no mean.
    pub outcomes: Vec<f64>,
    /// Pairs that differ most.
    pub shown: Vec<Shown>,
}

/// A pair with what came of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Shown {
    /// Line of the file.
    pub row: usize,
    /// One sentence.
    pub first: String,
    /// The other.
    pub second: String,
    /// How far apart they are: nats, or probability.
    pub difference: f64,
}

impl Audit {
    /// The metric of every category.
    fn by_category(outcomes: &[f64], categories: &[&str]) -> Vec<(String, Interval, usize)> {
        let mut parts: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
        outcomes.iter().zip(categories).for_each(|(o, c)| parts.entry(c).or_default().push(*o));
        parts.into_iter().map(|(c, part)| (c.to_owned(), bootstrap_mean(&part, SEED), part.len())).collect()
    }

    /// The contract's fields.
    pub fn json(&self) -> Value {
        let interval = |i: &Interval| json!({"value": i.value, "low": i.low, "high": i.high});
        let group = |(name, i, n): &(String, Interval, usize)| {
            let mut value = interval(i);
            value["pairs"] = json!(n);
            (name.clone(), value)
        };
        let shown = |s: &Shown| json!({"row": s.row, "first": s.first, "second": s.second, "difference": s.difference});
        json!({
            "pairs": self.pairs, "metric": self.metric, "value": self.value.value, "ideal": self.ideal,
            "ci95": interval(&self.value),
            "by_group": self.by_group.iter().map(group).collect::<Map<_, _>>(),
            "metrics": self.more.iter().map(|(name, i)| ((*name).to_owned(), interval(i))).collect::<Map<_, _>>(),
            "rates": self.rates.iter().map(labels::Rates::json).collect::<Vec<_>>(),
            "favorable": self.favorable, "how": self.how,
            "examples": self.shown.iter().map(shown).collect::<Vec<_>>(),
        })
    }

    /// This audit's metric less another's, on the same pairs.
    ///
    /// # Errors
    /// Audits of different things.
    pub fn against(&self, other: &Self) -> anyhow::Result<Option<Difference>> {
        if self.metric != other.metric || self.pairs != other.pairs {
            crate::bad_input!(
                "--against: the other model was audited by {} on {} pairs, this one by {} on {}; give one of the same kind",
                other.metric,
                other.pairs,
                self.metric,
                self.pairs
            );
        }
        let (a, b) = (&self.outcomes, &other.outcomes);
        if a.is_empty() || a.len() != b.len() {
            return Ok(None); // a gap between groups is no mean of rows
        }
        if a.iter().chain(b).all(|v| *v == 0.0 || *v == 1.0) {
            let rows: Vec<(bool, bool)> = a.iter().zip(b).map(|(a, b)| (*a == 1.0, *b == 1.0)).collect();
            return Ok(Some(compare_right(&rows, SEED)));
        }
        let mean = |draw: &[(usize, bool)]| {
            let side = |first: bool| {
                draw.iter().map(|(i, swap)| if first != *swap { a[*i] } else { b[*i] }).sum::<f64>()
                    / draw.len().max(1) as f64
            };
            (side(true), side(false))
        };
        Ok(Some(compare(a.len(), SEED, mean)))
    }
}

/// The pairs that differ most.
fn most_different(mut all: Vec<Shown>) -> Vec<Shown> {
    all.sort_by(|a, b| b.difference.abs().total_cmp(&a.difference.abs()).then(a.row.cmp(&b.row)));
    all.truncate(SHOWN);
    for s in &mut all {
        (s.first, s.second) = (super::shortened(&s.first), super::shortened(&s.second));
    }
    all
}
