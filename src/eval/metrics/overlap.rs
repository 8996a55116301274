//! How much of a reference a written text holds: ROUGE-L by words, chrF by characters.

use super::{Interval, bootstrap};
use std::collections::BTreeMap;

/// Longest run of characters that chrF counts, and how much more recall weighs than precision.
const ORDER: usize = 6;
const BETA: f64 = 2.0;

/// F1 of the longest common subsequence of words (Lin 2004), as Google's `rouge_score` counts it without a stemmer: words
/// are runs of ASCII letters and digits, in lower case. Text of other scripts has no such words, and scores 0.
pub fn rouge_l(written: &str, reference: &str) -> f64 {
    let (written, reference) = (words(written), words(reference));
    if written.is_empty() || reference.is_empty() {
        return 0.0;
    }
    let shared = longest_common(&written, &reference) as f64;
    let (precision, recall) = (shared / written.len() as f64, shared / reference.len() as f64);
    if shared > 0.0 { 2.0 * precision * recall / (precision + recall) } else { 0.0 }
}

fn words(text: &str) -> Vec<String> {
    let text = text.to_lowercase();
    let split = text.split(|c: char| !(c.is_ascii_lowercase() || c.is_ascii_digit()));
    split.filter(|w| !w.is_empty()).map(str::to_owned).collect()
}

fn longest_common(a: &[String], b: &[String]) -> usize {
    let mut row = vec![0usize; b.len() + 1];
    for x in a {
        let mut before = 0; // what row[j] was one x ago
        for (j, y) in b.iter().enumerate() {
            let above = row[j + 1];
            row[j + 1] = if x == y { before + 1 } else { above.max(row[j]) };
            before = above;
        }
    }
    row[b.len()]
}

/// Runs of 1 to 6 characters: how many were written, stand in the reference, and are in both.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Chrf([[usize; 3]; ORDER]);

impl Chrf {
    /// Counts one pair of texts; spaces do not count.
    pub fn count(written: &str, reference: &str) -> Self {
        let solid = |text: &str| text.chars().filter(|c| !c.is_whitespace()).collect::<Vec<char>>();
        let (written, reference) = (solid(written), solid(reference));
        let mut out = Self::default();
        for (n, counts) in (1..).zip(out.0.iter_mut()) {
            let (ours, theirs) = (runs(&written, n), runs(&reference, n));
            let shared = ours.iter().map(|(run, times)| (*times).min(theirs.get(run).copied().unwrap_or(0))).sum();
            let total = |runs: &BTreeMap<&[char], usize>| runs.values().sum::<usize>();
            *counts = [if theirs.is_empty() { 0 } else { total(&ours) }, total(&theirs), shared];
        }
        out
    }

    fn add(&mut self, other: &Self) {
        self.0.iter_mut().zip(&other.0).for_each(|(a, b)| a.iter_mut().zip(b).for_each(|(a, b)| *a += b));
    }

    /// chrF2 of a corpus (Popović 2015), 0 to 100: F2 of the mean precision and the mean recall over the lengths that both
    /// sides have, as sacrebleu prints it.
    pub fn score<'a>(rows: impl IntoIterator<Item = &'a Self>) -> f64 {
        let mut sum = Self::default();
        rows.into_iter().for_each(|row| sum.add(row));
        let (mut precision, mut recall, mut lengths) = (0.0, 0.0, 0);
        for [written, reference, shared] in sum.0 {
            if written > 0 && reference > 0 {
                precision += shared as f64 / written as f64;
                recall += shared as f64 / reference as f64;
                lengths += 1;
            }
        }
        if precision + recall == 0.0 {
            return 0.0;
        }
        let (precision, recall) = (precision / f64::from(lengths), recall / f64::from(lengths));
        100.0 * (1.0 + BETA * BETA) * precision * recall / (BETA * BETA * precision + recall)
    }

    /// The same with its interval.
    pub fn interval(rows: &[Self], seed: u64) -> Interval {
        bootstrap(rows.len(), seed, |draw| Self::score(draw.iter().map(|i| &rows[*i])))
    }
}

fn runs(text: &[char], n: usize) -> BTreeMap<&[char], usize> {
    let mut out = BTreeMap::new();
    text.windows(n).for_each(|run| *out.entry(run).or_insert(0) += 1);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Written, reference, `rouge_score` 0.1.2's rougeL F, `sacrebleu` 2.6.0's `CHRF().sentence_score`.
    const RECORDED: [(&str, &str, f64, f64); 8] = [
        ("The cat sat on the mat.", "the cat is on the mat", 0.8333333333333334, 57.3804729066298),
        ("Hello, world!  It's 5 o'clock.", "hello world its five o clock", 0.6153846153846153, 32.32662892972332),
        ("", "something", 0.0, 0.0),
        ("same text", "same text", 1.0, 100.0),
        ("Größe über alles: 42", "Grosse uber alles 42", 0.4444444444444445, 44.03401745313509),
        ("a b c d e f g", "g f e d c b a", 0.14285714285714285, 16.666666666666664),
        ("one two three four", "two four six one three four five", 0.5454545454545454, 41.03154404532311),
        ("answer is 18", "", 0.0, 0.0),
    ];

    #[test]
    fn both_match_recorded_scores() {
        for (written, reference, rouge, chrf) in RECORDED {
            assert!((rouge_l(written, reference) - rouge).abs() < 1e-12, "{written}: {}", rouge_l(written, reference));
            let ours = Chrf::score([&Chrf::count(written, reference)]);
            assert!((ours - chrf).abs() < 1e-9, "{written}: {ours}, not {chrf}");
        }
        // `CHRF().corpus_score` of all eight.
        let rows: Vec<Chrf> = RECORDED.iter().map(|(w, r, ..)| Chrf::count(w, r)).collect();
        assert!((Chrf::score(&rows) - 41.7247993830581).abs() < 1e-9, "{}", Chrf::score(&rows));
        let interval = Chrf::interval(&rows, 0);
        assert!(interval.low < interval.value && interval.value < interval.high);
    }
}
