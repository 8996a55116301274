//! Small datasets with a rule that can be learned.

use super::tensors::{Tensors, Values};
use edgeft::rng;
use serde_json::json;

/// Words that the rows are made of.
pub const WORDS: [&str; 40] = [
    "apple",
    "river",
    "stone",
    "lamp",
    "chair",
    "garden",
    "window",
    "bread",
    "train",
    "cloud",
    "red",
    "green",
    "blue",
    "good",
    "great",
    "lovely",
    "fine",
    "bad",
    "awful",
    "poor",
    "broken",
    "was",
    "the",
    "a",
    "it",
    "of",
    "in",
    "house",
    "what",
    "colour",
    "is",
    "this",
    "very",
    "and",
    "answer",
    "question",
    "user",
    "assistant",
    "on",
    "table",
];

const THINGS: usize = 10;
const COLOURS: [&str; 3] = ["red", "green", "blue"];

/// `n` chats: the colour of a thing is a function of the thing.
pub fn chats(n: usize) -> String {
    lines(n, |i| {
        let colour = COLOURS[i % THINGS % COLOURS.len()];
        json!({"messages": [
            {"role": "user", "content": format!("what colour is the {}", WORDS[i % THINGS])},
            {"role": "assistant", "content": colour},
        ]})
    })
}

/// Every thing's colour twice: as a sentence, and as a chat in the tiny models' template.
pub fn colours() -> String {
    lines(2 * THINGS, |i| {
        let (thing, colour) = (WORDS[i / 2], COLOURS[i / 2 % COLOURS.len()]);
        let sentence = format!("the {thing} is {colour}");
        let chat = format!(
            "<|im_start|>user\nwhat colour is the {thing}<|im_end|>\n<|im_start|>assistant\n{colour}<|im_end|>\n"
        );
        json!({"text": if i % 2 == 0 { sentence } else { chat }})
    })
}

/// `n` labelled sentences: one word of praise or blame decides.
pub fn reviews(n: usize) -> String {
    lines(n, |i| {
        let good = i % 2 == 0;
        let word =
            if good { ["good", "great", "lovely", "fine"] } else { ["bad", "awful", "poor", "broken"] }[i / 2 % 4];
        let text = format!("the {} was very {word} in the {}", WORDS[i / 2 * 7 % THINGS], WORDS[i / 2 * 3 % THINGS]);
        json!({"text": text, "label": if good { "positive" } else { "negative" }})
    })
}

/// `n` questions whose answer is the word behind the thing that is asked for.
pub fn questions(n: usize) -> String {
    lines(n, |i| {
        let (thing, colour) = (WORDS[i % THINGS], COLOURS[i % COLOURS.len()]);
        let context = format!("the {thing} is {colour} and it was on the table");
        let start = context.find(colour).expect("the colour");
        json!({"question": format!("what colour is the {thing}"), "context": context,
            "answers": {"text": [colour], "answer_start": [start]}})
    })
}

fn lines(n: usize, row: impl Fn(usize) -> serde_json::Value) -> String {
    (0..n).map(|i| format!("{}\n", row(i))).collect()
}

/// Pre-tokenized rows of random ids, of unequal lengths, padded behind: every token behind the third is learned.
pub fn ids(n_rows: usize, n_cols: usize, seed: u64) -> Tensors {
    let stream = rng::stream("ids", 0);
    let (mut ids, mut mask, mut labels) = (Vec::new(), Vec::new(), Vec::new());
    for row in 0..n_rows {
        let len = n_cols - row * 5 % (n_cols / 2);
        for col in 0..n_cols {
            let word = rng::bits(seed, stream, (row * n_cols + col) as u64);
            let id = 5 + (word % (super::tiny::VOCAB as u64 - 5)) as i64;
            ids.push(if col < len { id } else { 0 });
            mask.push(i64::from(col < len));
            labels.push(if (3..len).contains(&col) { id } else { -100 });
        }
    }
    let shape = vec![n_rows, n_cols];
    [("input_ids", ids), ("attention_mask", mask), ("labels", labels)]
        .into_iter()
        .map(|(name, values)| (name.to_owned(), (shape.clone(), Values::I64(values))))
        .collect()
}

/// The same rows with a class each, counted round.
pub fn classes(n_rows: usize, n_cols: usize, n_classes: usize, seed: u64) -> Tensors {
    let mut tensors = ids(n_rows, n_cols, seed);
    let labels = (0..n_rows).map(|i| (i % n_classes) as i64).collect();
    tensors.insert("labels".into(), (vec![n_rows], Values::I64(labels)));
    tensors
}

/// The same rows with a span each.
pub fn spans(n_rows: usize, n_cols: usize, seed: u64) -> Tensors {
    let mut tensors = ids(n_rows, n_cols, seed);
    tensors.remove("labels");
    for (name, at) in [("start_positions", 1), ("end_positions", 3)] {
        let values = (0..n_rows).map(|i| (at + i % 4) as i64).collect();
        tensors.insert(name.into(), (vec![n_rows], Values::I64(values)));
    }
    tensors
}
