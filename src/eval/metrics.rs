//! What predictions are worth: a number, its interval, and the counts behind it.
//!
//! - [`calibration`]: whether probabilities mean what they say; [`ranking`]: how well scores part two classes
//! - [`overlap`]: what a written text shares with a reference; [`no_answer`]: when to stay silent
//! - [`paired`]: whether one model is better than another on the same rows

pub mod calibration;
pub mod no_answer;
pub mod overlap;
pub mod paired;
pub mod ranking;

use crate::rng;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

/// A metric and its 95 % interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Interval {
    /// Over all rows.
    pub value: f64,
    /// 2.5th percentile of the resamples.
    pub low: f64,
    /// 97.5th percentile of the resamples.
    pub high: f64,
}

/// Resamples that an interval is read from.
const RESAMPLES: usize = 1000;

/// Percentile bootstrap (Efron 1979): the metric of 1,000 draws of n rows with replacement, a function of the seed.
/// `metric` takes row numbers; it is called with 0..n for the value.
pub fn bootstrap(n: usize, seed: u64, metric: impl Fn(&[usize]) -> f64 + Sync) -> Interval {
    let value = metric(&(0..n).collect::<Vec<_>>());
    if n < 2 {
        return Interval { value, low: value, high: value };
    }
    let mut values: Vec<f64> = (0..RESAMPLES)
        .into_par_iter()
        .map(|draw| {
            let stream = rng::stream("bootstrap", draw as u64);
            let row = |i: usize| (rng::bits(seed, stream, i as u64) % n as u64) as usize;
            metric(&(0..n).map(row).collect::<Vec<_>>())
        })
        .collect();
    values.sort_by(f64::total_cmp);
    Interval { value, low: percentile(&values, 0.025), high: percentile(&values, 0.975) }
}

/// Of the mean of one value a row.
pub fn bootstrap_mean(values: &[f64], seed: u64) -> Interval {
    bootstrap(values.len(), seed, |rows| rows.iter().map(|i| values[*i]).sum::<f64>() / rows.len().max(1) as f64)
}

/// A percentile of ascending values, between two of them by straight line (numpy's default).
pub fn percentile(ascending: &[f64], share: f64) -> f64 {
    let Some(last) = ascending.len().checked_sub(1) else { return f64::NAN };
    let at = share * last as f64;
    let (low, high) = (ascending[at.floor() as usize], ascending[at.ceil() as usize]);
    low + (high - low) * at.fract()
}

/// exp of the mean negative log-likelihood: `nll` is summed over `count` tokens, in nats.
pub fn perplexity(nll: f64, count: usize) -> f64 {
    (nll / count as f64).exp()
}

/// Perplexity with its interval, from (summed negative log-likelihood, tokens) of each row.
pub fn perplexity_interval(rows: &[(f64, usize)], seed: u64) -> Interval {
    bootstrap(rows.len(), seed, |draw| {
        let (nll, count) = draw.iter().fold((0.0, 0), |(n, c), i| (n + rows[*i].0, c + rows[*i].1));
        perplexity(nll, count)
    })
}

/// Counts of a classification: `matrix[truth][predicted]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Confusion {
    /// Labels by index.
    pub labels: Vec<String>,
    /// Rows are the truth, columns what was predicted.
    pub matrix: Vec<Vec<usize>>,
}

/// One class of a classification. A ratio without a denominator is 0, as in scikit-learn.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PerClass {
    /// Its name.
    pub label: String,
    /// Of the rows predicted so, how many are so.
    pub precision: f64,
    /// Of the rows that are so, how many were predicted so.
    pub recall: f64,
    /// Harmonic mean of both.
    pub f1: f64,
    /// Rows that are so.
    pub support: usize,
}

impl Confusion {
    /// Counts (truth, predicted) pairs of label indices.
    pub fn count(labels: &[String], pairs: &[(u32, u32)]) -> Self {
        let mut matrix = vec![vec![0; labels.len()]; labels.len()];
        for (truth, predicted) in pairs {
            matrix[*truth as usize][*predicted as usize] += 1;
        }
        Self { labels: labels.to_vec(), matrix }
    }

    /// Rows counted.
    pub fn total(&self) -> usize {
        self.matrix.iter().flatten().sum()
    }

    /// Share of rows predicted right.
    pub fn accuracy(&self) -> f64 {
        let right: usize = (0..self.labels.len()).map(|c| self.matrix[c][c]).sum();
        ratio(right, self.total())
    }

    /// Precision, recall and F1 of each label.
    pub fn per_class(&self) -> Vec<PerClass> {
        let class = |c: usize| {
            let (right, support) = (self.matrix[c][c], self.matrix[c].iter().sum());
            let predicted: usize = self.matrix.iter().map(|row| row[c]).sum();
            PerClass {
                label: self.labels[c].clone(),
                precision: ratio(right, predicted),
                recall: ratio(right, support),
                f1: ratio(2 * right, predicted + support),
                support,
            }
        };
        (0..self.labels.len()).map(class).collect()
    }

    /// Mean F1 of the labels that were true or predicted at least once.
    pub fn macro_f1(&self) -> f64 {
        let seen = |c: &usize| {
            self.matrix[*c].iter().sum::<usize>() + self.matrix.iter().map(|row| row[*c]).sum::<usize>() > 0
        };
        let classes = self.per_class();
        let f1: Vec<f64> = (0..self.labels.len()).filter(seen).map(|c| classes[c].f1).collect();
        f1.iter().sum::<f64>() / f1.len().max(1) as f64
    }
}

fn ratio(part: usize, whole: usize) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

/// Accuracy and macro F1 with their intervals, from (truth, predicted) pairs.
pub fn classification_intervals(labels: &[String], pairs: &[(u32, u32)], seed: u64) -> (Interval, Interval) {
    let drawn = |rows: &[usize]| Confusion::count(labels, &rows.iter().map(|i| pairs[*i]).collect::<Vec<_>>());
    let accuracy = bootstrap(pairs.len(), seed, |rows| drawn(rows).accuracy());
    (accuracy, bootstrap(pairs.len(), seed, |rows| drawn(rows).macro_f1()))
}

/// Answers as SQuAD compares them (Rajpurkar et al., arXiv:1606.05250, section 6.1): lower case, without ASCII
/// punctuation, without the words a, an, the, one space between words.
pub fn normalize_answer(text: &str) -> String {
    let text: String = text.to_lowercase().chars().filter(|c| !c.is_ascii_punctuation()).collect();
    let mut out = String::with_capacity(text.len());
    let mut word = String::new();
    for c in text.chars().chain([' ']) {
        if c.is_alphanumeric() {
            word.push(c);
            continue;
        }
        if !matches!(word.as_str(), "a" | "an" | "the") {
            out.push_str(&word);
        } else {
            out.push(' ');
        }
        word.clear();
        out.push(c);
    }
    out.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// 1 when the answers are equal once normalized, else 0.
pub fn exact_match(predicted: &str, truth: &str) -> f64 {
    f64::from(u8::from(normalize_answer(predicted) == normalize_answer(truth)))
}

/// F1 of the words that both answers share, each as often as in both. Two empty answers agree.
pub fn token_f1(predicted: &str, truth: &str) -> f64 {
    let (predicted, truth) = (normalize_answer(predicted), normalize_answer(truth));
    let (mut p, mut t): (Vec<&str>, Vec<&str>) =
        (predicted.split_whitespace().collect(), truth.split_whitespace().collect());
    if p.is_empty() || t.is_empty() {
        return f64::from(u8::from(p.is_empty() && t.is_empty()));
    }
    p.sort_unstable();
    t.sort_unstable();
    let (mut i, mut j, mut shared) = (0, 0, 0);
    while i < p.len() && j < t.len() {
        match p[i].cmp(t[j]) {
            std::cmp::Ordering::Equal => (i, j, shared) = (i + 1, j + 1, shared + 1),
            std::cmp::Ordering::Less => i += 1,
            std::cmp::Ordering::Greater => j += 1,
        }
    }
    ratio(2 * shared, p.len() + t.len())
}

/// The best (exact match, F1) over the right answers; no right answer means that an empty one is right.
pub fn answer_scores(predicted: &str, truths: &[String]) -> (f64, f64) {
    if truths.is_empty() {
        return (exact_match(predicted, ""), token_f1(predicted, ""));
    }
    truths.iter().fold((0.0, 0.0), |(em, f1), truth| {
        (f64::max(em, exact_match(predicted, truth)), f64::max(f1, token_f1(predicted, truth)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn close(got: f64, want: f64) {
        assert!((got - want).abs() < 1e-9, "{got}, not {want}");
    }

    /// 24 rows, 4 classes of which "d" never comes. Numbers below: scikit-learn's `accuracy_score`, `confusion_matrix`,
    /// `precision_recall_fscore_support(labels=range(4), zero_division=0)` and `f1_score(average="macro")` on the same pairs.
    fn recorded() -> Confusion {
        let truth = [0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 0, 0, 1, 1, 2, 2, 2, 0, 1, 0, 2, 1, 0, 0];
        let predicted = [0, 1, 1, 0, 1, 2, 1, 1, 2, 0, 0, 2, 0, 1, 2, 1, 2, 0, 1, 0, 0, 1, 0, 1];
        let pairs: Vec<(u32, u32)> = truth.into_iter().zip(predicted).collect();
        Confusion::count(&["a", "b", "c", "d"].map(String::from), &pairs)
    }

    #[test]
    fn classification_matches_recorded_scores() {
        let c = recorded();
        assert_eq!(c.matrix, [[7, 2, 1, 0], [1, 6, 0, 0], [1, 2, 4, 0], [0, 0, 0, 0]]);
        close(c.accuracy(), 0.7083333333333334);
        close(c.macro_f1(), 0.7031303749570004);
        let classes = [
            (0.7777777777777778, 0.7, 0.7368421052631579, 10),
            (0.6, 0.8571428571428571, 0.7058823529411765, 7),
            (0.8, 0.5714285714285714, 0.6666666666666666, 7),
            (0.0, 0.0, 0.0, 0),
        ];
        for (class, (precision, recall, f1, support)) in c.per_class().iter().zip(classes) {
            close(class.precision, precision);
            close(class.recall, recall);
            close(class.f1, f1);
            assert_eq!(class.support, support);
        }
    }

    #[test]
    fn answers_are_compared_as_squad_does() {
        for (raw, normal) in [
            ("The  Quick, brown fox!", "quick brown fox"),
            ("a.b an apple a", "ab apple"),
            ("Theory of the_a", "theory of thea"),
            ("the", ""),
            ("U.S. 50%", "us 50"),
            ("a–b", "–b"),
            ("\u{a0}Café the\n", "café"),
        ] {
            assert_eq!(normalize_answer(raw), normal, "{raw}");
        }
    }

    #[test]
    fn f1_counts_shared_words_as_often_as_both_have_them() {
        close(token_f1("the cat sat", "cat sat down"), 2.0 * (2.0 / 2.0) * (2.0 / 3.0) / (1.0 + 2.0 / 3.0));
        close(token_f1("cat cat", "cat"), 2.0 / 3.0);
        close(token_f1("dog", "cat"), 0.0);
        close(token_f1("the", ""), 1.0);
        close(token_f1("dog", ""), 0.0);
        close(exact_match("The cat.", "cat"), 1.0);
        let truths = ["a dog".to_owned(), "cats and dogs".to_owned()];
        let (em, f1) = answer_scores("cats dogs", &truths);
        close(em, 0.0);
        close(f1, 0.8);
        assert_eq!(answer_scores("", &[]), (1.0, 1.0));
        assert_eq!(answer_scores("x", &[]), (0.0, 0.0));
    }

    #[test]
    fn perplexity_of_a_fair_guess_among_v_is_v() {
        close(perplexity(5.0 * 50f64.ln(), 5), 50.0);
        close(perplexity_interval(&[(2f64.ln(), 1), (3.0 * 2f64.ln(), 3)], 0).value, 2.0);
    }

    #[test]
    fn an_interval_covers_what_theory_says() {
        // 400 coin flips with 300 heads: 0.75 ± 1.96 · sqrt(0.75 · 0.25 / 400) = 0.7076 .. 0.7924
        let values: Vec<f64> = (0..400).map(|i| f64::from(u8::from(i % 4 != 0))).collect();
        let interval = bootstrap_mean(&values, 7);
        close(interval.value, 0.75);
        assert!((interval.low - 0.7076).abs() < 0.008 && (interval.high - 0.7924).abs() < 0.008, "{interval:?}");
        assert_eq!(bootstrap_mean(&values, 7), interval);
        assert_ne!(bootstrap_mean(&values, 8), interval);
        assert_eq!(bootstrap_mean(&[0.5], 0), Interval { value: 0.5, low: 0.5, high: 0.5 });
    }

    #[test]
    fn macro_f1_resamples_with_the_rows() {
        let labels = ["a".to_owned(), "b".to_owned()];
        let pairs = [(0, 0), (1, 1), (0, 1), (1, 1), (0, 0), (1, 0), (0, 0), (1, 1)];
        let (accuracy, f1) = classification_intervals(&labels, &pairs, 0);
        close(accuracy.value, 0.75);
        close(f1.value, 0.75);
        assert!(accuracy.low < 0.75 && accuracy.high > 0.75 && f1.low < 0.75 && f1.high <= 1.0);
    }

    #[test]
    fn percentiles_lie_on_the_line_between() {
        close(percentile(&[1.0, 2.0, 4.0], 0.75), 3.0);
        close(percentile(&[1.0], 0.3), 1.0);
        assert!(percentile(&[], 0.5).is_nan());
    }
}
