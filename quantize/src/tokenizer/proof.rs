//! The proof that a file's two tokenizers are one: hard text, encoded by tokenizer.json and by the `tokenizer.ggml.*` keys.

use super::json::Json;
use crate::error::BoxError;
use edgeft_runtime::{
    format::gguf::{DEFAULT_ALIGNMENT, Gguf, VERSION, Value},
    tokenizer::{Specials, Tokenizer},
};

/// Why a proof failed.
#[derive(Debug, thiserror::Error)]
pub enum ProofError {
    /// Both tokenizers work, and disagree.
    #[error(transparent)]
    Difference(#[from] FirstDifference),
    /// One of them cannot be built, or refuses a text.
    #[error("{which} cannot be used")]
    Unusable {
        /// "tokenizer.json" or "tokenizer.ggml.*".
        which: &'static str,
        /// What it said.
        source: BoxError,
    },
}

/// The first text that the two tokenizers encode differently.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?}{with} differs from id {at} on: tokenizer.json gives {expected:?}, the GGUF keys give {got:?}",
    with = if *.add_special { " with special tokens" } else { "" },
)]
pub struct FirstDifference {
    /// The text.
    pub text: String,
    /// Whether special tokens were added.
    pub add_special: bool,
    /// Position of the first id that differs.
    pub at: usize,
    /// Ids by tokenizer.json.
    pub expected: Vec<u32>,
    /// Ids by `tokenizer.ggml.*`.
    pub got: Vec<u32>,
}

/// Encodes `texts`, a built-in list of hard cases and every added token of the tokenizer.json both ways, with and without
/// special tokens; returns how many encodings agreed. The keys are those of [`crate::gguf::metadata`], so the proof needs no
/// file.
///
/// Text that is not in Unicode's normal form C is left out of the built-in list when the tokenizer.json normalizes:
/// llama.cpp does not, and no key can tell it to. For the same reason a token that takes the spaces before it along
/// (RoBERTa's `<mask>`) is tried without any there; and where runs of spaces are tokens of their own (Gemma's), which llama.cpp
/// looks for as spaces, a U+2581 that is written out is not tried.
///
/// # Errors
/// The first difference, or a tokenizer that cannot be built.
pub fn prove(tokenizer_json: &[u8], keys: &[(String, Value)], texts: &[String]) -> Result<usize, ProofError> {
    let gguf = Gguf {
        version: VERSION,
        alignment: DEFAULT_ALIGNMENT,
        data_start: 0,
        metadata: keys.to_vec(),
        tensors: Vec::new(),
    };
    const JSON: &str = "tokenizer.json";
    const KEYS: &str = "tokenizer.ggml.*";
    let unusable = |which| move |e: edgeft_runtime::Error| ProofError::Unusable { which, source: e.into() };
    let expected = Tokenizer::from_hf_json(tokenizer_json, Specials::default()).map_err(unusable(JSON))?;
    let got = Tokenizer::from_ggml_fields(&gguf).map_err(unusable(KEYS))?;
    let json = Json::parse(tokenizer_json).map_err(|e| ProofError::Unusable { which: JSON, source: e.into() })?;
    let mut agreed = 0;
    for text in texts.iter().cloned().chain(hard(&json)) {
        for add_special in [false, true] {
            let a = expected.encode(&text, add_special).map_err(unusable(JSON))?;
            let b = got.encode(&text, add_special).map_err(unusable(KEYS))?;
            if a != b {
                let at = a.iter().zip(&b).take_while(|(a, b)| a == b).count();
                return Err(FirstDifference { text, add_special, at, expected: a, got: b }.into());
            }
            agreed += 1;
        }
    }
    Ok(agreed)
}

/// Text that has told tokenizers apart before.
const HARD: &[&str] = &[
    "",
    " ",
    "  ",
    "   ",
    "\n",
    "\n\n",
    "\n\n\n",
    "\t",
    "\t\t\ta",
    "\r\n",
    " \n \n  x",
    "a  b   c    d     e      f",
    "  leading",
    "trailing  ",
    "line one\nline two\r\n\r\n  indented\n\ttabbed\n",
    "0",
    "12 123 1234 12345 123456789012345",
    "3.14159, 1,000,000 and -0.5e-7",
    "2\u{b2} \u{bd} \u{2167} \u{663}\u{664}",
    "abc123def456",
    "I'm you're he's we'll they'd I've don't",
    "I'M YOU'RE HE'S WE'LL THEY'D I'VE DON'T",
    "it\u{2019}s \u{2018}quoted\u{2019} \u{201c}twice\u{201d}",
    "'s 't 're 've 'm 'll 'd",
    "Hello, y'all! How are you \u{1f601} ?\u{6211}\u{60f3}\u{5728}apple\u{5de5}\u{4f5c}1314151\u{5929}\u{ff5e}",
    "na\u{ef}ve caf\u{e9} \u{c5}ngstr\u{f6}m \u{df}",
    "\u{41f}\u{440}\u{438}\u{432}\u{435}\u{442}, \u{43c}\u{438}\u{440}!",
    "\u{395}\u{3bb}\u{3bb}\u{3b7}\u{3bd}\u{3b9}\u{3ba}\u{3ac}",
    "\u{645}\u{631}\u{62d}\u{628}\u{627} \u{5e9}\u{5dc}\u{5d5}\u{5dd}",
    "\u{928}\u{92e}\u{938}\u{94d}\u{924}\u{947}",
    "\u{e2a}\u{e27}\u{e31}\u{e2a}\u{e14}\u{e35}",
    "\u{4f60}\u{597d}\u{ff0c}\u{4e16}\u{754c}\u{3002}",
    "\u{3053}\u{3093}\u{306b}\u{3061}\u{306f}\u{4e16}\u{754c}",
    "\u{c548}\u{b155}\u{d558}\u{c138}\u{c694}",
    "\u{1f642}\u{1f642} \u{1f468}\u{200d}\u{1f469}\u{200d}\u{1f467} \u{1f1e9}\u{1f1ea} \u{1f44d}\u{1f3fd}",
    "zero\u{200b}width no\u{a0}break wide\u{3000}space \u{feff}mark",
    "!!! ??? ... --- ___ *** ((())) [[]] {{}} <<>> ~~ ^^ || && $$ ## @@ %%",
    "fn main() {\n    println!(\"{}\", x_1 + 0xff); // ok\n}",
    "a->b a=>b a==b a!=b a<=b i++ --j",
    "https://example.com/path?q=1&r=%20#top user@example.com C:\\dir\\file.txt",
    "{\"key\": [1, 2.5, null, true]}",
    "<s> </s> <unk> <pad> <|endoftext|> <|im_start|>user\nhi<|im_end|>\n",
    "[CLS] [SEP] [MASK] [UNK] [PAD] ##ing un##able",
    "<0x0A> <0xFF> \u{2581} \u{2581}\u{2581}a \u{120} \u{10a}",
    "The QUICK bRoWn fOX; jumps_over the-lazy dog's back.",
    "supercalifragilisticexpialidociouspneumonoultramicroscopicsilicovolcanoconiosis",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
];

/// Not in normal form C: an `e` and its accent apart, a Hangul syllable in letters.
const DECOMPOSED: &[&str] = &["cafe\u{301}", "\u{1112}\u{1161}\u{11ab}"];

fn hard(json: &Json) -> Vec<String> {
    const SPACE: char = '\u{2581}';
    let added = json.added().unwrap_or_default();
    let runs = added.iter().any(|(_, token, special)| !special && token.contains(SPACE));
    let tried = HARD.iter().filter(|text| !(runs && text.contains(SPACE)));
    let mut texts: Vec<String> = tried.map(ToString::to_string).collect();
    let normalizes = |n: &&serde_json::Value| n["type"].as_str().is_some_and(|t| t.starts_with("NF"));
    if !json.normalizers().iter().any(normalizes) {
        texts.extend(DECOMPOSED.iter().map(ToString::to_string));
    }
    for (_, token, special) in added {
        if !special && token.contains(SPACE) {
            let token = token.replace(SPACE, " ");
            texts.extend([format!("a{token}b"), format!("one{token}two\n{token}three{token}\n")]);
            continue;
        }
        let (space, line) = if json.strips(&token, "lstrip") { ("", "") } else { (" ", "\n") };
        texts.push(token.clone());
        texts.push(format!("a{token}b"));
        texts.push(format!("one{space}{token} two{line}{token}{token}\n"));
    }
    texts
}
