//! A domain to adapt to: pages from the log of a lighthouse, in a form and in words that the base corpus does not have.

use std::collections::HashSet;
use std::sync::LazyLock;

use super::Split;
use crate::demo::corpus::grammar::{Grammar, Scene, polish};
use crate::demo::corpus::{LEXICON, rng::Rng};

/// Pages to tune on.
pub const TRAIN_ROWS: usize = 300;
/// Pages held out.
pub const TEST_ROWS: usize = 60;

/// One page of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    /// Six lines, 60 to 120 words.
    pub text: String,
}

static GRAMMAR: LazyLock<Grammar> = LazyLock::new(|| Grammar::parse(&[LEXICON, include_str!("story.txt")]));

/// The pages of a seed; 300 to train on, 60 to test on.
pub fn story(seed: u64) -> Split<Log> {
    let rng = &mut Rng::new(seed, "story");
    let (mut rows, mut seen) = (Vec::new(), HashSet::new());
    while rows.len() < TRAIN_ROWS + TEST_ROWS {
        let text = polish(&Scene::new(&GRAMMAR, rng).line("page"));
        let words = text.split_whitespace().count();
        if (60..=120).contains(&words) && seen.insert(text.clone()) {
            rows.push(Log { text });
        }
    }
    let test = rows.split_off(TRAIN_ROWS);
    Split { train: rows, test }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::corpus::corpus;
    use crate::demo::datasets::overlap::{closest, words};

    #[test]
    fn the_pages_are_different_and_no_test_page_is_a_near_copy() {
        let data = story(1);
        assert_eq!((data.train.len(), data.test.len()), (TRAIN_ROWS, TEST_ROWS));
        assert_eq!(data, story(1));
        let texts = |rows: &[Log]| rows.iter().map(|r| r.text.clone()).collect::<Vec<_>>();
        let near = closest(&texts(&data.train), &texts(&data.test));
        assert!(near.word_jaccard < 0.7 && near.trigram_jaccard < 0.6, "{near:?}");
    }

    #[test]
    fn many_words_of_the_domain_are_new_to_the_base_model() {
        let base: HashSet<String> = corpus(1, 1_000_000).flat_map(|d| words(&d)).collect();
        let domain: HashSet<String> = story(1).test.iter().flat_map(|r| words(&r.text)).collect();
        let new = domain.iter().filter(|w| !base.contains(*w) && w.chars().all(char::is_alphabetic)).count();
        assert!(new >= 100, "only {new} of {} words are new", domain.len());
    }
}
