//! Word tokenizers for the tests of this folder: one token a word, so that expected rows can be written as words.

use edgeft_runtime::tokenizer::{Specials, Tokenizer};
use serde_json::json;

const SPECIAL: [&str; 7] = ["<unk>", "<s>", "</s>", "<|end|>", "[CLS]", "[SEP]", "<|bot|>"];
const WORDS: [&str; 16] =
    ["a", "b", "c", "d", "e", "f", "g", "h", "é", "Context:", "Question:", "Answer:", "user", "bot", "is", "."];

fn build(post_processor: serde_json::Value, specials: Specials) -> Tokenizer {
    let added: Vec<_> = (0..)
        .zip(SPECIAL)
        .map(|(id, content): (u32, _)| {
            json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true})
        })
        .collect();
    let vocab: serde_json::Map<_, _> =
        SPECIAL.iter().chain(&WORDS).enumerate().map(|(id, word)| ((*word).to_owned(), json!(id))).collect();
    let json = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": null,
        "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": post_processor, "decoder": null,
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "<unk>"}
    });
    Tokenizer::from_hf_json(json.to_string().as_bytes(), specials).unwrap()
}

/// Puts `<s>` before a text; a text ends with `</s>`, a turn with `<|end|>`.
pub fn decoder() -> Tokenizer {
    let specials = Specials {
        bos: Some(1),
        eos: Some(2),
        eot: Some(3),
        add_bos: Some(true),
        add_eos: Some(false),
        ..Specials::default()
    };
    build(json!(null), specials)
}

/// `[CLS] a [SEP]` and `[CLS] a [SEP] b [SEP]`.
pub fn encoder() -> Tokenizer {
    let special = |id: &str, type_id: u32| json!({"SpecialToken": {"id": id, "type_id": type_id}});
    let text = |id: &str, type_id: u32| json!({"Sequence": {"id": id, "type_id": type_id}});
    let token = |id: &str, n: u32| json!({"id": id, "ids": [n], "tokens": [id]});
    let post = json!({
        "type": "TemplateProcessing",
        "single": [special("[CLS]", 0), text("A", 0), special("[SEP]", 0)],
        "pair": [special("[CLS]", 0), text("A", 0), special("[SEP]", 0), text("B", 1), special("[SEP]", 1)],
        "special_tokens": {"[CLS]": token("[CLS]", 4), "[SEP]": token("[SEP]", 5)}
    });
    build(post, Specials { cls: Some(4), sep: Some(5), ..Specials::default() })
}

/// Ids as the words they stand for.
pub fn words(tokenizer: &Tokenizer, ids: &[u32]) -> String {
    ids.iter().map(|id| tokenizer.id_to_token(*id).unwrap()).collect::<Vec<_>>().join(" ")
}
