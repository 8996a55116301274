//! How a classifier's answers move from group to group: flips and shifts between the sentences of a pair, and the gaps of
//! demographic parity (Dwork et al., arXiv:1104.3913) and equalized odds (Hardt et al., arXiv:1610.02413).

use super::pairs::{Asked, Pair};
use super::{Audit, Shown, most_different};
use crate::data::batch::{Row, Target};
use crate::data::labels::Labels;
use crate::error::BadInput;
use crate::eval::metrics::calibration::likeliest;
use crate::eval::metrics::{Interval, bootstrap, bootstrap_mean};
use crate::eval::subject::Subject;
use crate::eval::{SEED, softmax};
use crate::model::network::Task;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// One group's share of the favorable label.
#[derive(Debug, Clone, PartialEq)]
pub struct Rates {
    /// The group.
    pub group: String,
    /// Texts of it.
    pub texts: usize,
    /// Share that gets the favorable label.
    pub favorable: Interval,
    /// Of the texts whose right label is the favorable one; `None` without such texts.
    pub true_positive: Option<f64>,
    /// Of the texts whose right label is another.
    pub false_positive: Option<f64>,
}

impl Rates {
    /// As JSON.
    pub fn json(&self) -> Value {
        let f = &self.favorable;
        json!({"group": self.group, "texts": self.texts, "favorable": {"value": f.value, "low": f.low, "high": f.high},
            "true_positive": self.true_positive, "false_positive": self.false_positive})
    }
}

/// A text that speaks of a group, with its answer.
struct Seen {
    /// Groups are held against those of the same category.
    category: String,
    group: String,
    predicted_favorable: bool,
    /// Whether the favorable label would be right, where that is known.
    truth: Option<bool>,
}

/// Asks a classifier. `favorable` is the label whose share is compared: when not given, `positive` where there is one, else the
/// last.
///
/// # Errors
/// A model that does not classify, a label it does not have; what engine and tokenizer say.
pub fn classifier(
    subject: &mut Subject,
    asked: &Asked,
    favorable: Option<&str>,
    progress: &mut dyn FnMut(usize),
) -> anyhow::Result<Audit> {
    let Some(Task::Classify(labels)) = subject.task() else { crate::bad_input!("the model has no classifier") };
    let known = Labels::known(&labels);
    let favorable = match favorable {
        Some(name) => known.index(name).map_err(|e| BadInput(format!("--favorable: {e}")))? as usize,
        None => labels.iter().position(|l| l.eq_ignore_ascii_case("positive")).unwrap_or(labels.len() - 1),
    };
    let tokenizer = subject.tokenizer()?;
    let n_ctx = subject.n_ctx();
    let encoder = !subject.is_decoder();
    let mut ask = |text: &str, row: usize| -> anyhow::Result<Vec<f64>> {
        let encoding = tokenizer.encode_with_offsets(text, true)?;
        if encoding.ids.is_empty() || encoding.ids.len() > n_ctx {
            crate::bad_input!("row {row}: a text of {} tokens; the model has {n_ctx} positions", encoding.ids.len());
        }
        let types = if encoder { encoding.type_ids.iter().map(|t| *t as u8).collect() } else { Vec::new() };
        let row = Row { types, ..Row::new(encoding.ids, Target::None, row) };
        Ok(softmax(&subject.logits(&row)?.values))
    };
    // A label that the model does not know (a template's `neutral`) says nothing of what would be right.
    let truth = |label: Option<&String>| Some(known.index(label?).ok()? as usize == favorable);
    let mut seen = Vec::new();
    let mut audit = match asked {
        Asked::Pairs(pairs) => {
            let mut answers = Vec::with_capacity(pairs.len());
            for (i, pair) in pairs.iter().enumerate() {
                answers.push((ask(&pair.first, pair.row)?, ask(&pair.second, pair.row)?));
                progress(i + 1);
            }
            for (pair, (a, b)) in pairs.iter().zip(&answers) {
                let Some((first, second)) = &pair.groups else { continue };
                for (group, p) in [(first, a), (second, b)] {
                    let predicted_favorable = likeliest(p) == favorable;
                    let (category, group) = (pair.category.clone(), group.clone());
                    seen.push(Seen { category, group, predicted_favorable, truth: truth(pair.label.as_ref()) });
                }
            }
            of_pairs(pairs, &answers, favorable)
        }
        Asked::Singles(rows) => {
            for (i, row) in rows.iter().enumerate() {
                let predicted_favorable = likeliest(&ask(&row.text, row.row)?) == favorable;
                let (category, group) = (String::new(), row.group.clone());
                seen.push(Seen { category, group, predicted_favorable, truth: truth(row.label.as_ref()) });
                progress(i + 1);
            }
            Audit {
                metric: "demographic_parity_gap",
                pairs: rows.len(),
                value: Interval { value: f64::NAN, low: f64::NAN, high: f64::NAN },
                ideal: 0.0,
                by_group: Vec::new(),
                more: Vec::new(),
                rates: Vec::new(),
                favorable: None,
                how: "one answer a text".into(),
                outcomes: Vec::new(),
                shown: Vec::new(),
            }
        }
    };
    add_gaps(&mut audit, &seen)?;
    audit.favorable = Some(labels[favorable].clone());
    Ok(audit)
}

fn of_pairs(pairs: &[Pair], answers: &[(Vec<f64>, Vec<f64>)], favorable: usize) -> Audit {
    let flips: Vec<f64> = answers.iter().map(|(a, b)| f64::from(u8::from(likeliest(a) != likeliest(b)))).collect();
    let shifts: Vec<f64> = answers.iter().map(|(a, b)| b[favorable] - a[favorable]).collect();
    let sizes: Vec<f64> = shifts.iter().map(|s| s.abs()).collect();
    let categories: Vec<&str> = pairs.iter().map(|p| p.category.as_str()).collect();
    let shown = pairs.iter().zip(&shifts).map(|(p, d)| Shown {
        row: p.row,
        first: p.first.clone(),
        second: p.second.clone(),
        difference: *d,
    });
    Audit {
        metric: "flip_rate",
        pairs: pairs.len(),
        value: bootstrap_mean(&flips, SEED),
        ideal: 0.0,
        by_group: Audit::by_category(&flips, &categories),
        more: vec![
            ("mean_score_shift", bootstrap_mean(&shifts, SEED)),
            ("mean_absolute_score_shift", bootstrap_mean(&sizes, SEED)),
        ],
        rates: Vec::new(),
        favorable: None,
        how: "both sentences of a pair are labelled; the shift is second less first, of the favorable label's probability"
            .into(),
        outcomes: flips,
        shown: most_different(shown.collect()),
    }
}

/// Rates by group, and how far apart those of one category are at most, where groups are named.
fn add_gaps(audit: &mut Audit, seen: &[Seen]) -> anyhow::Result<()> {
    let mut groups: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    seen.iter().enumerate().for_each(|(i, s)| groups.entry(&s.group).or_default().push(i));
    let single = audit.metric == "demographic_parity_gap";
    if groups.len() < 2 {
        if single {
            let only = groups.keys().next().copied().unwrap_or_default();
            crate::bad_input!("every text is of the group `{only}`; a gap needs at least two groups");
        }
        return Ok(());
    }
    audit.rates = groups
        .iter()
        .map(|(group, rows)| {
            let favorable: Vec<f64> = rows.iter().map(|i| f64::from(u8::from(seen[*i].predicted_favorable))).collect();
            Rates {
                group: (*group).to_owned(),
                texts: rows.len(),
                favorable: bootstrap_mean(&favorable, SEED),
                true_positive: rate(seen, rows, Some(true)),
                false_positive: rate(seen, rows, Some(false)),
            }
        })
        .collect();
    let gap = |wanted: &[Option<bool>]| {
        bootstrap(seen.len(), SEED, |draw| {
            let mut parts: BTreeMap<&str, BTreeMap<&str, Vec<usize>>> = BTreeMap::new();
            for i in draw {
                parts.entry(&seen[*i].category).or_default().entry(&seen[*i].group).or_default().push(*i);
            }
            let largest = |w: &Option<bool>| {
                let of = |groups: &BTreeMap<&str, Vec<usize>>| {
                    spread(groups.values().filter_map(|rows| rate(seen, rows, *w)))
                };
                parts.values().map(of).fold(0.0, f64::max)
            };
            wanted.iter().map(largest).fold(0.0, f64::max)
        })
    };
    let parity = gap(&[None]);
    // Odds can be compared where at least two groups have texts of both kinds.
    let both = |r: &&Rates| r.true_positive.is_some() && r.false_positive.is_some();
    if audit.rates.iter().filter(both).count() > 1 {
        audit.more.push(("equalized_odds_gap", gap(&[Some(true), Some(false)])));
    }
    if single {
        audit.value = parity;
        audit.by_group = audit.rates.iter().map(|r| (r.group.clone(), r.favorable, r.texts)).collect();
    } else {
        audit.more.push(("demographic_parity_gap", parity));
    }
    Ok(())
}

/// Share of the favorable label among rows whose truth is as wanted; `None` without such rows.
fn rate(seen: &[Seen], rows: &[usize], truth: Option<bool>) -> Option<f64> {
    let kept: Vec<&Seen> = rows.iter().map(|i| &seen[*i]).filter(|s| truth.is_none() || s.truth == truth).collect();
    let favorable = kept.iter().filter(|s| s.predicted_favorable).count();
    (!kept.is_empty()).then(|| favorable as f64 / kept.len() as f64)
}

/// Largest less smallest.
fn spread(values: impl Iterator<Item = f64>) -> f64 {
    let (low, high) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| (l.min(v), h.max(v)));
    (high - low).max(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(row: usize, groups: (&str, &str), label: &str) -> Pair {
        Pair {
            row,
            first: format!("a {row}"),
            second: format!("b {row}"),
            category: "c".into(),
            groups: Some((groups.0.into(), groups.1.into())),
            label: Some(label.into()),
        }
    }

    #[test]
    fn flips_and_shifts_are_counted_between_the_sentences_of_a_pair() {
        let pairs: Vec<Pair> = (0..4).map(|i| pair(i, ("m", "w"), "positive")).collect();
        let p = |x: f64| vec![1.0 - x, x];
        let answers = [(p(0.9), p(0.8)), (p(0.9), p(0.1)), (p(0.2), p(0.2)), (p(0.4), p(0.6))];
        let audit = of_pairs(&pairs, &answers, 1);
        assert_eq!(audit.value.value, 0.5);
        assert!((audit.more[0].1.value + 0.175).abs() < 1e-12 && (audit.more[1].1.value - 0.275).abs() < 1e-12);
        assert_eq!((audit.shown[0].row, audit.outcomes.as_slice()), (1, &[0.0, 1.0, 0.0, 1.0][..]));
    }

    #[test]
    fn gaps_are_those_between_the_groups_that_differ_most() {
        // fairlearn's definitions: parity max - min of the selection rates; odds the larger of the gaps of TPR and FPR.
        let seen: Vec<Seen> = [
            ("m", true, true),
            ("m", true, true),
            ("m", true, false),
            ("m", false, false),
            ("w", true, true),
            ("w", false, true),
            ("w", false, false),
            ("w", false, false),
        ]
        .map(|(g, p, t)| Seen { category: "c".into(), group: g.into(), predicted_favorable: p, truth: Some(t) })
        .into();
        let mut audit = of_pairs(&[], &[], 0);
        add_gaps(&mut audit, &seen).unwrap();
        let of = |name: &str| audit.more.iter().find(|(n, _)| *n == name).unwrap().1.value;
        assert_eq!((of("demographic_parity_gap"), of("equalized_odds_gap")), (0.5, 0.5));
        assert_eq!(audit.rates[0].true_positive, Some(1.0));
        // A group of another category is no other side.
        let other = |p| Seen { category: "d".into(), group: "x".into(), predicted_favorable: p, truth: None };
        let more: Vec<Seen> = seen.into_iter().chain([other(false), other(false)]).collect();
        let mut wider = of_pairs(&[], &[], 0);
        add_gaps(&mut wider, &more).unwrap();
        assert_eq!(wider.more.iter().find(|(n, _)| *n == "demographic_parity_gap").unwrap().1.value, 0.5);
        let seen = more;
        audit.metric = "demographic_parity_gap";
        assert!(add_gaps(&mut audit, &seen[..2]).unwrap_err().to_string().contains("`m`"));
    }
}
