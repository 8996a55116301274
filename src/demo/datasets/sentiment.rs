//! Reviews with a label. Train and test share neither an opinion word nor a sentence pattern, so that a row of the test
//! can be judged only by a model that brought the meaning of its words along.

use std::collections::HashSet;
use std::sync::LazyLock;

use super::Split;
use crate::demo::corpus::LEXICON;
use crate::demo::corpus::grammar::{Grammar, Scene, polish};
use crate::demo::corpus::rng::Rng;

/// The labels, in the order of their indices.
pub const LABELS: [&str; 3] = ["negative", "neutral", "positive"];
/// Rows of each label in the train part.
pub const TRAIN_ROWS_PER_LABEL: usize = 200;
/// Rows of each label in the test part.
pub const TEST_ROWS_PER_LABEL: usize = 100;
/// How many of ten opinion words are the train part's; the others are the test part's.
const TRAIN_WORDS_OF_TEN: usize = 6;

/// One review.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Review {
    /// One or two sentences.
    pub text: String,
    /// One of [`LABELS`].
    pub label: &'static str,
}

static GRAMMAR: LazyLock<Grammar> = LazyLock::new(|| {
    let count = "[count]\ntwo, three, four, five, six";
    Grammar::parse(&[LEXICON, count, include_str!("sentiment.txt")])
});

/// The opinion words of one part.
struct Words {
    good: Vec<&'static str>,
    bad: Vec<&'static str>,
}

/// The reviews of a seed; 600 to train on, 300 to test on, each label a third.
pub fn sentiment(seed: u64) -> Split<Review> {
    let rng = &mut Rng::new(seed, "sentiment");
    let (train_words, test_words) = split_words(rng);
    let train = part(rng, "train", &train_words, TRAIN_ROWS_PER_LABEL);
    let test = part(rng, "test", &test_words, TEST_ROWS_PER_LABEL);
    Split { train, test }
}

fn split_words(rng: &mut Rng) -> (Words, Words) {
    let mut cut = |list: &str| {
        let mut words = GRAMMAR.list(list).to_vec();
        rng.shuffle(&mut words);
        let test = words.split_off(words.len() * TRAIN_WORDS_OF_TEN / 10);
        (words, test)
    };
    let ((good, test_good), (bad, test_bad)) = (cut("pos"), cut("neg"));
    (Words { good, bad }, Words { good: test_good, bad: test_bad })
}

fn part(rng: &mut Rng, name: &str, words: &Words, rows_per_label: usize) -> Vec<Review> {
    let mut rows = Vec::new();
    let mut seen = HashSet::new();
    for label in LABELS {
        let until = rows.len() + rows_per_label;
        while rows.len() < until {
            let text = review(rng, name, words, label);
            if seen.insert(text.clone()) {
                rows.push(Review { text, label });
            }
        }
    }
    rng.shuffle(&mut rows);
    rows
}

fn review<'g>(rng: &'g mut Rng, part: &str, words: &'g Words, label: &str) -> String {
    let scene = &mut Scene::new(&GRAMMAR, rng);
    let item = scene.line("product");
    scene.bind("item", &item);
    let (good, bad) = if label == "negative" { (&words.bad, &words.good) } else { (&words.good, &words.bad) };
    scene.draw_from("good", good);
    scene.draw_from("bad", bad);
    let kind = match label {
        "neutral" => "plain",
        _ => ["one", "not", "but"][scene.rng.weighted(&[68, 18, 14])],
    };
    let mut sentences = Vec::new();
    if scene.rng.chance(50) {
        sentences.push(scene.line(&format!("{part}.open")));
    }
    sentences.push(scene.line(&format!("{part}.{kind}")));
    // A second sentence of the plain kind agrees with the first.
    if scene.rng.chance(if kind == "plain" { 25 } else { 15 }) {
        let more = if kind == "plain" { "plain" } else { "one" };
        sentences.push(scene.line(&format!("{part}.{more}")));
    }
    polish(&sentences.join(" "))
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::demo::corpus;
    use crate::demo::datasets::overlap::{closest, words};

    #[test]
    fn the_parts_are_balanced_deterministic_and_without_duplicates() {
        let data = sentiment(1);
        assert_eq!((data.train.len(), data.test.len()), (600, 300));
        assert_eq!(data, sentiment(1));
        assert_ne!(data.test, sentiment(2).test);
        for label in LABELS {
            let count = |rows: &[Review]| rows.iter().filter(|r| r.label == label).count();
            assert_eq!((count(&data.train), count(&data.test)), (TRAIN_ROWS_PER_LABEL, TEST_ROWS_PER_LABEL), "{label}");
        }
        let all: HashSet<&str> = data.train.iter().chain(&data.test).map(|r| r.text.as_str()).collect();
        assert_eq!(all.len(), 900);
    }

    #[test]
    fn no_row_of_the_test_is_a_near_copy_of_a_train_row() {
        let data = sentiment(1);
        let texts = |rows: &[Review]| rows.iter().map(|r| r.text.clone()).collect::<Vec<_>>();
        let near = closest(&texts(&data.train), &texts(&data.test));
        assert!(near.word_jaccard < 0.6, "{near:?}");
        assert!(near.trigram_jaccard < 0.35, "{near:?}");
    }

    #[test]
    fn the_parts_share_no_opinion_word_and_no_pattern() {
        let (train, test) = split_words(&mut Rng::new(1, "sentiment"));
        for (one, other) in [(&train.good, &test.good), (&train.bad, &test.bad)] {
            assert!(one.iter().all(|word| !other.contains(word)));
            assert!(one.len() > 40 && other.len() > 25, "{} {}", one.len(), other.len());
        }
        // Also in the rows themselves: words of praise and blame that came out of the one part only.
        let data = sentiment(1);
        let opinion: HashSet<&str> = GRAMMAR.list("pos").iter().chain(GRAMMAR.list("neg")).copied().collect();
        let used = |rows: &[Review]| {
            let all: Vec<String> = rows.iter().flat_map(|r| words(&r.text)).collect();
            all.into_iter().filter(|w| opinion.contains(w.as_str())).collect::<HashSet<_>>()
        };
        assert!(used(&data.train).is_disjoint(&used(&data.test)));
        let patterns = |part: &str| -> HashSet<&str> {
            ["open", "one", "not", "but", "plain"]
                .iter()
                .flat_map(|k| GRAMMAR.list(&format!("{part}.{k}")))
                .copied()
                .collect()
        };
        assert!(patterns("train").is_disjoint(&patterns("test")));
        let base: HashSet<&str> = corpus::grammar().lists().flat_map(|(_, lines)| lines.iter().copied()).collect();
        for part in ["train", "test"] {
            assert!(patterns(part).is_disjoint(&base), "a pattern of {part} is in the base corpus");
        }
    }

    /// Multinomial naive Bayes with add-one smoothing: what counting words alone can do.
    fn naive_bayes(train: &[Review], test: &[Review]) -> f64 {
        let mut counts: HashMap<(&str, String), f64> = HashMap::new();
        let mut totals: HashMap<&str, f64> = HashMap::new();
        let mut vocabulary = HashSet::new();
        for row in train {
            for word in words(&row.text) {
                vocabulary.insert(word.clone());
                *counts.entry((row.label, word)).or_default() += 1.0;
                *totals.entry(row.label).or_default() += 1.0;
            }
        }
        let size = vocabulary.len() as f64;
        let right = test.iter().filter(|row| {
            let score = |label: &str| -> f64 {
                let known = words(&row.text).into_iter().filter(|w| vocabulary.contains(w));
                known.map(|w| ((counts.get(&(label, w)).unwrap_or(&0.0) + 1.0) / (totals[label] + size)).ln()).sum()
            };
            LABELS.into_iter().max_by(|a, b| score(a).total_cmp(&score(b))) == Some(row.label)
        });
        right.count() as f64 / test.len() as f64
    }

    #[test]
    fn counting_words_is_not_enough() {
        for seed in 0..5 {
            let data = sentiment(seed);
            let (test, train) = (naive_bayes(&data.train, &data.test), naive_bayes(&data.train, &data.train));
            assert!(test < 0.85, "seed {seed}: naive Bayes gets {test} of the test right");
            assert!(train > 0.85, "seed {seed}: naive Bayes gets only {train} of its own train rows right");
        }
    }
}
