//! The text that the embedded model is trained on: plain English written by a grammar, a pure function of a seed.
//!
//! Seven kinds of documents: facts that are told and then asked for ([`recall`]), opinions and what they lead to
//! ([`opinions`]), stories, plain facts and instructions, chats ([`chats`]), words said again ([`echoes`]), and facts
//! drilled ([`recall::drill`]). The model reads them in three courses, [`FIRST`], [`SECOND`] and [`THIRD`]. The text never
//! holds the labels or the formats of the datasets that the model is tuned on later.

pub mod chats;
pub mod echoes;
pub mod grammar;
pub mod opinions;
pub mod recall;
pub mod rng;

use std::sync::LazyLock;

use grammar::{Grammar, Scene, polish};
use rng::Rng;

/// How often a document of each kind is drawn: recall, opinions, stories, plain facts, chats, echoes, drills.
pub type Shares = [usize; 7];
/// Of the first course, and of the tokenizer's text.
pub const FIRST: Shares = [42, 38, 8, 5, 7, 0, 0];
/// Of the second: nothing but echoes, until looking back is learned.
pub const SECOND: Shares = [0, 0, 0, 0, 0, 1, 0];
/// Of the third: everything, with enough echoes to keep it.
pub const THIRD: Shares = [34, 26, 5, 3, 5, 6, 26];

/// The lists behind [`key_words`].
const KEY_LISTS: [&str; 12] =
    ["pos", "neg", "plain", "product", "room", "spot", "colour", "food", "job", "material", "event", "garment"];

/// The word lists alone, which the datasets draw on too.
pub const LEXICON: &str = include_str!("corpus/lexicon.txt");

static GRAMMAR: LazyLock<Grammar> = LazyLock::new(|| {
    Grammar::parse(&[
        LEXICON,
        include_str!("corpus/opinions.txt"),
        include_str!("corpus/recall.txt"),
        include_str!("corpus/stories.txt"),
        include_str!("corpus/plain.txt"),
        include_str!("corpus/chats.txt"),
    ])
});

/// The grammar of the base corpus.
pub fn grammar() -> &'static Grammar {
    &GRAMMAR
}

/// Documents until about `bytes` bytes are written: the one that reaches the number is the last.
/// The same seed gives the same documents, and a larger `bytes` only adds to them.
pub fn corpus(seed: u64, bytes: usize) -> Corpus {
    mixed(seed, bytes, FIRST, Vec::new())
}

/// The same in other shares; echoes are made of `words`.
pub fn mixed(seed: u64, bytes: usize, shares: Shares, words: Vec<String>) -> Corpus {
    Corpus { rng: Rng::new(seed, "corpus"), bytes_left: bytes, shares, words }
}

/// The words that the demo is about, opinions and whatever is asked for, each in many short documents, for a tokenizer's
/// training alone: a word that is one token has its meaning in one place and is copied in one step.
pub fn key_words(times: usize) -> impl Iterator<Item = String> {
    let words = KEY_LISTS.iter().flat_map(|list| grammar().list(list));
    words.flat_map(move |word| std::iter::repeat_n(format!(" {word}"), times))
}

/// The iterator behind [`corpus`].
pub struct Corpus {
    rng: Rng,
    bytes_left: usize,
    shares: Shares,
    words: Vec<String>,
}

impl Iterator for Corpus {
    type Item = String;

    fn next(&mut self) -> Option<String> {
        if self.bytes_left == 0 {
            return None;
        }
        let kind = self.rng.weighted(&self.shares);
        let text = if kind == 5 { echoes::document(&mut self.rng, &self.words) } else { self.told(kind) };
        self.bytes_left = self.bytes_left.saturating_sub(text.len());
        Some(text)
    }
}

impl Corpus {
    /// A document of any kind but echoes.
    fn told(&mut self, kind: usize) -> String {
        let mut scene = Scene::new(grammar(), &mut self.rng);
        match kind {
            0 => polish(&recall::document(&mut scene)),
            1 => polish(&opinions::document(&mut scene)),
            2 => polish(&story(&mut scene)),
            3 => polish(&plain(&mut scene)),
            4 => chats::document(&mut scene),
            _ => polish(&recall::drill(&mut scene)),
        }
    }
}

fn story(scene: &mut Scene) -> String {
    let (a, b) = (scene.person(), scene.person());
    scene.bind_person("a", &a);
    scene.bind_person("b", &b);
    scene.line("arc")
}

fn plain(scene: &mut Scene) -> String {
    match scene.rng.weighted(&[35, 20, 15, 15, 15]) {
        0 => (0..scene.rng.within(3, 6)).map(|_| scene.line("about")).collect::<Vec<_>>().join(" "),
        1 => scene.line("steps"),
        2 => scene.line("letter"),
        3 => scene.line("plan"),
        _ => (0..scene.rng.within(2, 3)).map(|_| scene.line("report")).collect::<Vec<_>>().join(" "),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn text(bytes: usize) -> String {
        corpus(5, bytes).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn the_same_seed_gives_the_same_text_and_a_longer_one_begins_with_it() {
        let (short, long): (Vec<_>, Vec<_>) = (corpus(3, 20_000).collect(), corpus(3, 40_000).collect());
        assert_eq!(short, corpus(3, 20_000).collect::<Vec<_>>());
        assert_eq!(short[..], long[..short.len()]);
        assert_ne!(short[..4], corpus(4, 20_000).collect::<Vec<_>>()[..4]);
    }

    #[test]
    fn documents_repeat_little_and_leave_no_slot_behind() {
        let documents: Vec<String> = corpus(7, 500_000).collect();
        let different: HashSet<&String> = documents.iter().filter(|d| d.len() > 200).collect();
        let long = documents.iter().filter(|d| d.len() > 200).count();
        assert!(different.len() * 100 >= long * 99, "{} of {long} long documents are different", different.len());
        for document in &documents {
            assert!(document.is_ascii(), "{document}");
            assert!(!document.contains(['{', '}', '[', ']', '\\']), "{document}");
            assert!(!document.contains("  ") && !document.contains(" ."), "{document}");
            for wrong in [" a a", " a e", " a i", " a o", " an b", " an s", " an t"] {
                assert!(!document.contains(wrong), "`{wrong}` in {document}");
            }
        }
    }

    #[test]
    fn the_lists_are_rich_and_keep_apart() {
        let lists = |name: &str| grammar().list(name).iter().copied().collect::<HashSet<_>>();
        let (pos, neg, plain) = (lists("pos"), lists("neg"), lists("plain"));
        assert!(pos.len() >= 80 && neg.len() >= 80 && plain.len() >= 60, "{} {} {}", pos.len(), neg.len(), plain.len());
        assert!(pos.is_disjoint(&neg) && pos.is_disjoint(&plain) && neg.is_disjoint(&plain));
        for (name, list) in grammar().lists() {
            if !name.contains('.') && !["op", "sorry", "glad"].contains(&name) {
                assert_eq!(list.iter().collect::<HashSet<_>>().len(), list.len(), "`{name}` repeats a line");
            }
        }
    }

    #[test]
    fn opinion_words_come_often_enough_to_be_learned() {
        // A megabyte holds about thirty of each: too few to tell chance from a fault, so eight of them are counted.
        let text = text(8_000_000).to_lowercase();
        let mut counts = std::collections::HashMap::new();
        for word in text.split(|c: char| !c.is_ascii_alphabetic() && c != '-') {
            *counts.entry(word).or_insert(0) += 1;
        }
        for word in ["pos", "neg"].iter().flat_map(|list| grammar().list(list)) {
            let count = counts.get(word).copied().unwrap_or(0);
            assert!(count >= 8 * 25, "`{word}` comes {count} times in eight megabytes");
        }
    }

    #[test]
    fn the_text_holds_no_label_and_no_format_of_a_dataset() {
        let text = text(1_000_000).to_lowercase();
        for word in [
            "positive",
            "negative",
            "neutral",
            "context:",
            "question:",
            "answer:",
            "lighthouse",
            "barometer",
            "sentiment",
        ] {
            assert!(!text.contains(word), "the base corpus holds `{word}`");
        }
    }
}
