//! Questions over a short context; the answer is a piece of the context. The people of the test, and half of its
//! sentence patterns, do not occur in the train part.

use std::collections::HashSet;
use std::sync::LazyLock;

use super::Split;
use crate::demo::corpus::LEXICON;
use crate::demo::corpus::grammar::{Grammar, Scene, polish};
use crate::demo::corpus::recall::{self, Fact, RELATIONS};
use crate::demo::corpus::rng::Rng;

/// Rows to tune on.
pub const TRAIN_ROWS: usize = 700;
/// Rows held out.
pub const TEST_ROWS: usize = 200;

/// One question about a context.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// What is asked.
    pub question: String,
    /// Two to four facts, a sentence each.
    pub context: String,
    /// One word of the context, or a number.
    pub answer: String,
    /// Where the answer begins in the context, in characters, which are bytes too: the text is ASCII.
    pub answer_start: usize,
}

static GRAMMAR: LazyLock<Grammar> = LazyLock::new(|| Grammar::parse(&[LEXICON, include_str!("answer.txt")]));

/// The questions of a seed. The test part has a stream of its own, so that it stays what it is when the train part grows.
pub fn answer(seed: u64) -> Split<Question> {
    let (train_people, test_people) = split_people(&mut Rng::new(seed, "answer people"));
    let part = |name, people: &[&'static str], n| part(&mut Rng::new(seed, &format!("answer {name}")), name, people, n);
    Split { train: part("train", &train_people, TRAIN_ROWS), test: part("test", &test_people, TEST_ROWS) }
}

fn split_people(rng: &mut Rng) -> (Vec<&'static str>, Vec<&'static str>) {
    let mut train = recall::people(&GRAMMAR);
    rng.shuffle(&mut train);
    let test = train.split_off(train.len() * 6 / 10);
    (train, test)
}

fn part(rng: &mut Rng, name: &str, people: &[&'static str], n: usize) -> Vec<Question> {
    let (mut rows, mut seen) = (Vec::new(), HashSet::new());
    while rows.len() < n {
        let row = question(rng, name, people);
        if seen.insert((row.context.clone(), row.question.clone())) {
            rows.push(row);
        }
    }
    rows
}

fn question(rng: &mut Rng, part: &str, people: &[&'static str]) -> Question {
    let scene = &mut Scene::new(&GRAMMAR, rng);
    let facts = recall::facts(scene, &GRAMMAR, people, 4);
    recall::bystanders(scene, &facts, people);
    let asked = scene.rng.below(facts.len());
    let (mut context, mut answer_start) = (String::new(), 0);
    for (i, fact) in facts.iter().enumerate() {
        let line = pattern(scene, fact, "tell", part);
        let sentence = polish(&scene.expand(line));
        if !context.is_empty() {
            context.push(' ');
        }
        if i == asked {
            answer_start = context.len() + position(line, &sentence, &fact.value);
        }
        context.push_str(&sentence);
    }
    let fact = &facts[asked];
    let line = pattern(scene, fact, "ask", part);
    let question = polish(&scene.expand(line));
    Question { question, context, answer: fact.value.clone(), answer_start }
}

/// A line for the fact, of the lines for both parts and those for this part alone.
fn pattern(scene: &mut Scene, fact: &Fact, kind: &str, part: &str) -> &'static str {
    recall::face(scene, fact);
    let name = format!("{}.{kind}", RELATIONS[fact.relation].name);
    let lines = [GRAMMAR.list(&name), GRAMMAR.list(&format!("{name}.{part}"))].concat();
    lines[scene.rng.below(lines.len())]
}

/// Where the value stands in its sentence: the last place as a whole word if the line ends with it, else the first.
fn position(line: &str, sentence: &str, value: &str) -> usize {
    let whole = |at: &usize| {
        let word = |b: Option<&u8>| b.is_some_and(u8::is_ascii_alphanumeric);
        let bytes = sentence.as_bytes();
        !word(at.checked_sub(1).and_then(|i| bytes.get(i))) && !word(bytes.get(at + value.len()))
    };
    let mut places = sentence.match_indices(value).map(|(at, _)| at).filter(whole);
    let place = if line.ends_with("{v}.") { places.last() } else { places.next() };
    place.unwrap_or_else(|| panic!("`{value}` is not in `{sentence}`"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::datasets::overlap::{closest, words};

    #[test]
    fn every_answer_stands_where_it_says_and_is_short() {
        let data = answer(1);
        assert_eq!((data.train.len(), data.test.len()), (TRAIN_ROWS, TEST_ROWS));
        assert_eq!(data, answer(1));
        for row in data.train.iter().chain(&data.test) {
            let end = row.answer_start + row.answer.len();
            assert_eq!(&row.context[row.answer_start..end], row.answer, "{row:?}");
            assert!(row.context.is_ascii() && row.answer.split(' ').count() <= 3, "{row:?}");
            assert!((2..=4).contains(&row.context.matches('.').count()), "{row:?}");
            assert!(row.question.ends_with('?') && !row.question.contains(['{', '[']), "{row:?}");
        }
    }

    #[test]
    fn the_test_asks_about_other_people_and_in_other_words() {
        let data = answer(1);
        let named = |rows: &[Question]| -> HashSet<String> {
            let people: HashSet<String> = recall::people(&GRAMMAR).iter().map(|p| p.to_lowercase()).collect();
            rows.iter()
                .flat_map(|r| words(&format!("{} {}", r.context, r.question)))
                .filter(|w| people.contains(w))
                .collect()
        };
        assert!(named(&data.train).is_disjoint(&named(&data.test)));
        let texts =
            |rows: &[Question]| rows.iter().map(|r| format!("{} {}", r.context, r.question)).collect::<Vec<_>>();
        let near = closest(&texts(&data.train), &texts(&data.test));
        assert!(near.word_jaccard < 0.8, "{near:?}");
        assert!(near.trigram_jaccard < 0.6, "{near:?}");
    }

    #[test]
    fn the_last_or_the_first_word_of_the_context_is_no_good_guess() {
        let rows = answer(1).test;
        let right = |guess: fn(&[String]) -> String| {
            rows.iter().filter(|r| guess(&words(&r.context)) == r.answer.to_lowercase()).count() as f64
                / rows.len() as f64
        };
        let last = right(|words| words[words.len() - 1].clone());
        let first = right(|words| words[0].clone());
        assert!(last < 0.45 && first < 0.2, "last {last}, first {first}");
    }
}
