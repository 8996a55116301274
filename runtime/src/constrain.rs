//! What an answer must look like, held to token by token: a JSON schema, a regular expression or a Lark grammar decides
//! which ids may come next, and the sampler chooses among these.
//!
//! ```text
//! Constraint --Grammar::new (a tokenizer, bounded time)--> Grammar --a generation--> which ids may come --logits-->
//! ```
//!
//! ```
//! # fn main() -> edgeft_runtime::Result<()> {
//! # let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/tiny/generate.gguf");
//! use edgeft_runtime::constrain::{Constraint, Grammar};
//! use edgeft_runtime::{FinishReason, GenerateOptions, Model, Session, SessionOptions};
//! use std::ops::ControlFlow;
//!
//! let model = Model::open(file)?;
//! let mut session = Session::new(&model, &SessionOptions::default())?;
//! let colour = Grammar::new(&Constraint::Regex(" (blue|green)".into()), session.tokenizer()?)?;
//! let options = GenerateOptions { grammar: Some(colour), ..GenerateOptions::default() };
//! let done = session.generate_text("the apple is", &options, &mut |_| ControlFlow::Continue(()))?;
//! assert!([" blue", " green"].contains(&done.text.as_str()));
//! assert_eq!(done.finish_reason, FinishReason::Stop);
//! # Ok(()) }
//! ```
//!
//! The grammars are llguidance's. What stands here is its border: a vocabulary of ours as its trie ([`vocabulary`]), and
//! the bounds that keep a hostile schema from the stack, the memory and the hours of a device ([`bounds`]).

pub mod bounds;
mod held;
mod vocabulary;

use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use llguidance::Matcher;
use llguidance::api::TopLevelGrammar;
use serde_json::{Value as Json, json};

use crate::error::{Error, Kind, Result};
use crate::tokenizer::Tokenizer;
pub(crate) use held::Held;
pub(crate) use vocabulary::Vocabulary;

/// How long a constraint may take to become a grammar.
const PATIENCE: Duration = Duration::from_secs(5);
/// Stack of the thread that compiles: what the bounds on nesting and references need at most, with a factor of four left.
const STACK: usize = 64 << 20;
/// White space that JSON may hold between two of its parts: a space, or a line break with its indentation. JSON itself
/// allows any amount, and a small model can go on with that until its tokens are spent.
const JSON_SPACE: &str = r"[ ]|\n[ \t]{0,20}";

/// What an answer must be.
#[derive(Debug, Clone, PartialEq)]
pub enum Constraint {
    /// A JSON object, whatever is in it.
    Json,
    /// A JSON document that this schema describes (2020-12 and earlier; `$ref` within the document).
    JsonSchema(Json),
    /// A text that this expression matches from its first to its last character.
    Regex(String),
    /// A text of this grammar, in Lark's notation as llguidance reads it.
    Lark(String),
}

/// A constraint that is compiled for one vocabulary; clones share it.
#[derive(Clone)]
pub struct Grammar {
    /// Nothing is taken yet.
    start: Arc<Mutex<Matcher>>,
    /// Ids that end a text of this vocabulary.
    ends: Arc<[u32]>,
    /// Of errors while it is held to.
    place: Arc<str>,
}

impl std::fmt::Debug for Grammar {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Grammar({})", self.place)
    }
}

impl Constraint {
    /// In a word, for errors.
    fn words(&self) -> &'static str {
        match self {
            Self::Json | Self::JsonSchema(_) => "JSON schema",
            Self::Regex(_) => "regular expression",
            Self::Lark(_) => "grammar",
        }
    }

    fn grammar(&self) -> Result<TopLevelGrammar> {
        let any = json!({"type": "object"});
        match self {
            Self::Json => Ok(TopLevelGrammar::from_json_schema(spaced(&any))),
            Self::JsonSchema(schema) => {
                bounds::schema(schema)?;
                Ok(TopLevelGrammar::from_json_schema(spaced(schema)))
            }
            Self::Regex(text) => {
                bounds::text("regular expression", text)?;
                Ok(TopLevelGrammar::from_regex(text))
            }
            Self::Lark(text) => {
                bounds::text("grammar", text)?;
                Ok(TopLevelGrammar::from_lark(text.clone()))
            }
        }
    }
}

/// A schema for llguidance, with the white space that it may leave.
pub(crate) fn spaced(schema: &Json) -> Json {
    let mut schema = schema.clone();
    if let Json::Object(map) = &mut schema {
        map.insert("x-guidance".into(), json!({"whitespace_pattern": JSON_SPACE}));
    }
    schema
}

impl Grammar {
    /// Compiles a constraint for a vocabulary. The trie of the vocabulary is made at the first call and shared after it.
    /// # Errors
    /// [`Kind::Input`] on what is malformed, not known here or cannot be fulfilled; [`Kind::Limit`] on what is too large,
    /// too deep, or not compiled within 5 s.
    pub fn new(constraint: &Constraint, tokenizer: &Tokenizer) -> Result<Self> {
        let words = constraint.words();
        let grammar = constraint.grammar()?;
        let vocabulary = tokenizer.vocabulary()?;
        let until = Instant::now() + PATIENCE;
        let late = || Error::new(Kind::Limit, words, format!("it was not compiled after {} s", PATIENCE.as_secs()));
        // One at a time: what takes too long goes on by itself, and must not be joined by others.
        let turn = vocabulary.turn(until).ok_or_else(late)?;
        let (done, wait) = mpsc::channel();
        let compile = move || {
            let _turn = turn;
            let matcher = Matcher::new(vocabulary.factory.create_parser(grammar));
            let _ = done.send(checked(matcher, words)); // nobody may wait any more
        };
        // A thread of its own for its stack: the library descends a schema and its references by recursion.
        thread::Builder::new()
            .stack_size(STACK)
            .name("constraint".into())
            .spawn(compile)
            .map_err(|e| Error::io(words, e))?;
        let left = until.saturating_duration_since(Instant::now());
        let matcher = wait.recv_timeout(left).map_err(|_| late())??;
        Ok(Self { start: Arc::new(Mutex::new(matcher)), ends: tokenizer.stop_ids().into(), place: words.into() })
    }

    /// The same under another name in errors.
    pub fn named(self, place: &str) -> Self {
        Self { place: place.into(), ..self }
    }

    /// Its name in errors.
    pub fn place(&self) -> &str {
        &self.place
    }

    /// The state of one generation.
    pub(crate) fn begin(&self, stop_ids: &[u32]) -> Held {
        let matcher = self.start.lock().unwrap_or_else(PoisonError::into_inner);
        // Deeply: the lexer's states are counted against a bound, which must not depend on who else goes on.
        Held { matcher: matcher.deep_clone(), stop_ids: stop_ids.to_vec(), grammar: self.clone() }
    }
}

/// A matcher that knows what may come first, or what the library says against its constraint.
fn checked(mut matcher: Matcher, words: &'static str) -> Result<Matcher> {
    if let Some(message) = matcher.get_error() {
        return Err(Error::new(Kind::Input, words, one_line(&message)));
    }
    match matcher.compute_mask_or_eos() {
        Ok(_) => Ok(matcher),
        Err(e) => {
            let why = one_line(&e.to_string());
            Err(Error::new(Kind::Input, words, format!("no text of this vocabulary fulfils it ({why})")))
        }
    }
}

/// The library's own message without its state and back traces.
fn one_line(message: &str) -> String {
    const MOST: usize = 300;
    if message.starts_with("panic: ") {
        return "it cannot be compiled (the library gave up on it)".into();
    }
    let whole = message.split("\n<").next().unwrap_or_default();
    let line = whole.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(MOST) {
        Some((at, _)) => format!("{}...", &line[..at]),
        None => line,
    }
}

const _: () = {
    const fn shared<T: Send + Sync>() {}
    const fn moved<T: Send>() {}
    shared::<Grammar>();
    moved::<Held>();
};

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::sample::{Sampler, Sampling};
    use crate::tokenizer::Specials;

    /// All bytes, some words, and an end.
    pub(crate) fn tokenizer() -> Tokenizer {
        let words = ["{\"", "\":", "\",", "Ġ\"", "name", "true", "age", "]}"];
        // GPT-2's alphabet: printable bytes stand for themselves, the others for characters from U+0100 on.
        let printable = |b: u32| (0x21..0x7f).contains(&b) || (0xa1..0xad).contains(&b) || b > 0xad;
        let mut next = 0x100;
        let mut vocab: Vec<String> = Vec::new();
        for byte in 0..=0xffu32 {
            let c = if printable(byte) { byte } else { next };
            next += u32::from(c == next);
            vocab.push(char::from_u32(c).unwrap().to_string());
        }
        vocab.extend(words.map(str::to_owned));
        let mut map = serde_json::Map::new();
        vocab.iter().enumerate().for_each(|(id, text)| {
            map.entry(text.clone()).or_insert(id.into());
        });
        let added = |id: usize, text: &str| {
            json!({"id": id, "content": text, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true})
        };
        let n = vocab.len();
        let json = json!({"version": "1.0", "truncation": null, "padding": null,
            "added_tokens": [added(n, "<|end|>"), added(n + 1, "<|user|>")], "normalizer": null,
            "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
            "post_processor": null,
            "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
            "model": {"type": "BPE", "vocab": map, "merges": []}});
        let special = Specials { eos: Some(n as u32), ..Specials::default() };
        Tokenizer::from_hf_json(json.to_string().as_bytes(), special).unwrap()
    }

    /// What random logits write under a constraint, and whether it came to its end.
    pub(crate) fn write(constraint: &Constraint, tokenizer: &Tokenizer, seed: u64, most: usize) -> (String, bool) {
        let grammar = Grammar::new(constraint, tokenizer).unwrap();
        let mut held = grammar.begin(tokenizer.stop_ids());
        let mut sampler = Sampler::new(Sampling { temperature: 1.0, seed, ..Sampling::default() }).unwrap();
        let (mut ids, mut bytes) = (Vec::new(), Vec::new());
        for _ in 0..most {
            let mut logits = vec![0.0; tokenizer.vocab_size() + 7]; // an output row may be padded
            held.mask(&mut logits).unwrap();
            let id = sampler.next(&mut logits, &ids).unwrap();
            if tokenizer.stop_ids().contains(&id) {
                return (String::from_utf8(bytes).unwrap(), true);
            }
            ids.push(id);
            bytes.extend_from_slice(tokenizer.decode_piece(id));
            if held.take(id).unwrap() {
                return (String::from_utf8(bytes).unwrap(), true);
            }
        }
        (String::from_utf8_lossy(&bytes).into_owned(), false)
    }

    pub(super) fn schema(schema: Json) -> Constraint {
        Constraint::JsonSchema(schema)
    }

    #[track_caller]
    pub(super) fn refuses(constraint: Constraint, kind: Kind, because: &str) {
        let start = Instant::now();
        let error = Grammar::new(&constraint, &tokenizer()).map(|_| ()).unwrap_err();
        assert!(error.to_string().contains(because), "{error}");
        assert_eq!(error.kind(), kind, "{error}");
        assert!(!error.to_string().contains('\n') && error.to_string().len() < 600, "{error}");
        assert!(start.elapsed() < PATIENCE + Duration::from_secs(1), "it took {:?}", start.elapsed());
    }

    #[test]
    fn whatever_is_drawn_is_a_document_of_the_schema() {
        let (tokenizer, person) = (
            tokenizer(),
            schema(
                json!({"type": "object", "additionalProperties": false, "required": ["name", "age", "tags", "next"],
                "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer", "minimum": 0,
                "maximum": 150}, "tags": {"type": "array", "maxItems": 3, "items": {"enum": ["a", "é", null, 1.5]}},
                "next": {"anyOf": [{"$ref": "#/$defs/end"}, {"type": "boolean"}]}}, "$defs": {"end": {"const": "\"}"}}}),
            ),
        );
        for seed in 0..30 {
            let (text, ended) = write(&person, &tokenizer, seed, 2000);
            assert!(ended, "{text}");
            let read: Json = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"));
            assert!(read["age"].as_u64().is_some_and(|n| n <= 150), "{text}");
            assert!(read["name"].as_str().is_some_and(|s| s.chars().count() <= 12), "{text}");
            let tags = read["tags"].as_array().unwrap();
            assert!(
                tags.len() <= 3 && tags.iter().all(|t| [json!("a"), json!("é"), json!(null), json!(1.5)].contains(t))
            );
            assert!(read["next"].is_boolean() || read["next"] == "\"}", "{text}");
            assert_eq!(read.as_object().unwrap().len(), 4, "{text}");
        }
    }

    #[test]
    fn json_is_an_object_and_white_space_never_goes_on_for_long() {
        let tokenizer = tokenizer();
        for seed in 0..20 {
            let (text, ended) = write(&Constraint::Json, &tokenizer, seed, 3000);
            assert!(text.starts_with('{'), "{text}");
            // Read without its numbers, which may be larger than an f64.
            assert!(!ended || serde_json::from_str::<serde::de::IgnoredAny>(&text).is_ok(), "{text}");
            assert!(!text.contains("\n\n") && !text.contains(&" ".repeat(22)), "{text}");
        }
    }

    #[test]
    fn an_expression_is_matched_from_its_first_to_its_last_character() {
        let tokenizer = tokenizer();
        for seed in 0..20 {
            let (text, ended) = write(&Constraint::Regex("(ja|née?)-[0-9]{2}".into()), &tokenizer, seed, 100);
            let (word, number) = text.split_once('-').unwrap_or_else(|| panic!("{text}"));
            assert!(ended && ["ja", "né", "née"].contains(&word), "{text}");
            assert!(number.len() == 2 && number.parse::<u8>().is_ok(), "{text}");
        }
    }

    #[test]
    fn a_grammar_balances_what_no_expression_can() {
        let tokenizer = tokenizer();
        let lark = Constraint::Lark("start: pair\npair: \"(\" pair \")\" | \"x\"".into());
        for seed in 0..20 {
            let (text, ended) = write(&lark, &tokenizer, seed, 200);
            let depth = text.chars().take_while(|c| *c == '(').count();
            assert!(ended && text == format!("{}x{}", "(".repeat(depth), ")".repeat(depth)), "{text}");
        }
    }

    #[test]
    fn the_end_may_come_only_where_the_text_is_whole_and_control_tokens_never() {
        let tokenizer = tokenizer();
        let grammar = Grammar::new(&Constraint::Regex("ab+".into()), &tokenizer).unwrap();
        let (end, user) = (tokenizer.stop_ids()[0], tokenizer.token_to_id("<|user|>").unwrap());
        let mut held = grammar.begin(&[end]);
        let allowed = |held: &mut Held| {
            let mut logits = vec![0.0; tokenizer.vocab_size()];
            held.mask(&mut logits).unwrap();
            (0u32..).zip(logits).filter(|(_, x)| *x == 0.0).map(|(id, _)| id).collect::<Vec<_>>()
        };
        assert_eq!(allowed(&mut held), [97]);
        assert!(!held.take(97).unwrap());
        assert_eq!(allowed(&mut held), [98], "not whole yet");
        assert!(!held.take(98).unwrap());
        assert_eq!(allowed(&mut held), [98, end], "whole, but it may go on");
        // Another generation ends on another id, and begins anew.
        let mut other = grammar.begin(&[user]);
        assert_eq!(allowed(&mut other), [97]);
        assert!(!other.take(97).unwrap() && !other.take(98).unwrap());
        assert_eq!(allowed(&mut other), [98, user]);
        let mut whole = Grammar::new(&Constraint::Regex("a".into()), &tokenizer).unwrap().begin(&[end]);
        assert!(whole.take(97).unwrap(), "nothing can follow");
    }

    #[test]
    fn what_is_malformed_or_unknown_is_refused_with_its_place() {
        refuses(schema(json!({"type": "thing"})), Kind::Input, "thing");
        refuses(schema(json!({"not": {}})), Kind::Input, "not");
        refuses(schema(json!([1])), Kind::Input, "object or boolean");
        refuses(schema(json!(false)), Kind::Input, "nsatisfiable");
        refuses(
            schema(json!({"type": "object", "properties": {"a": {"minLength": -1}}})),
            Kind::Input,
            "#/properties/a",
        );
        refuses(schema(json!({"x-guidance": {"lenient": true}})), Kind::Input, "x-guidance");
        refuses(schema(json!({"type": "string", "pattern": "(a"})), Kind::Input, "JSON schema");
        refuses(Constraint::Regex("(a".into()), Kind::Input, "regular expression");
        refuses(Constraint::Regex(String::new()), Kind::Input, "empty");
        refuses(Constraint::Lark("start: nowhere".into()), Kind::Input, "nowhere");
        let cannot = tokenizer();
        let error =
            Grammar::new(&Constraint::Lark("start: ANY\nANY: /a/ & /b/".into()), &cannot).map(|_| ()).unwrap_err();
        assert_eq!(error.kind(), Kind::Input, "{error}");
    }
}
