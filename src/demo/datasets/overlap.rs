//! How near the rows of a test come to the rows that were trained on.

use std::collections::HashSet;

/// The largest overlaps between a row of one part and a row of the other.
#[derive(Debug)]
pub struct Overlap {
    /// Words in both, over words in either.
    pub word_jaccard: f64,
    /// The same of runs of three words.
    pub trigram_jaccard: f64,
    /// The two rows with the most words in common.
    pub rows: (String, String),
}

/// The words of a text in lower case, without punctuation.
pub fn words(text: &str) -> Vec<String> {
    let clean = text.to_lowercase();
    clean.split(|c: char| !c.is_alphanumeric() && c != '-').filter(|w| !w.is_empty()).map(String::from).collect()
}

/// Compares every test row with every train row.
pub fn closest(train: &[String], test: &[String]) -> Overlap {
    let sets = |rows: &[String]| -> Vec<(HashSet<String>, HashSet<String>)> {
        rows.iter()
            .map(|row| {
                let words = words(row);
                let trigrams = words.windows(3).map(|w| w.join(" ")).collect();
                (words.into_iter().collect(), trigrams)
            })
            .collect()
    };
    let (train_sets, test_sets) = (sets(train), sets(test));
    let mut most = Overlap { word_jaccard: 0.0, trigram_jaccard: 0.0, rows: (String::new(), String::new()) };
    for (i, a) in train_sets.iter().enumerate() {
        for (j, b) in test_sets.iter().enumerate() {
            let by_word = jaccard(&a.0, &b.0);
            if by_word > most.word_jaccard {
                (most.word_jaccard, most.rows) = (by_word, (train[i].clone(), test[j].clone()));
            }
            most.trigram_jaccard = most.trigram_jaccard.max(jaccard(&a.1, &b.1));
        }
    }
    most
}

fn jaccard(a: &HashSet<String>, b: &HashSet<String>) -> f64 {
    let both = a.intersection(b).count();
    both as f64 / (a.len() + b.len() - both).max(1) as f64
}
