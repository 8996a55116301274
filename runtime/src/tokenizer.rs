//! Text <-> ids, from the vocabulary inside the file.
//!
//! A GGUF of ours carries its tokenizer twice: `tokenizer.huggingface.json`, the file the model was tuned with, and
//! `tokenizer.ggml.*`, which llama.cpp reads. [`Tokenizer::from_gguf`] prefers the first, because it cannot drift from the
//! training side; [`Tokenizer::from_ggml_fields`] always takes the second, so that a writer can prove that both agree.
//!
//! - [`ggml`]: `tokenizer.ggml.*` -> [`Tokenizer`]
//! - [`hf`]: `tokenizer.json` -> [`Tokenizer`]
//! - [`spm`]: SentencePiece BPE: merges ranked by score, bytes for what the vocabulary lacks
//! - [`FolderFiles`]: the files of a Hugging Face folder -> [`Specials`]
//! - [`stream`]: ids, one at a time -> whole UTF-8 pieces

pub mod ggml;
pub mod hf;
mod specials;
pub mod spm;
pub mod stream;

use std::ops::Range;
#[cfg(feature = "constrain")]
use std::sync::{Arc, OnceLock};

#[cfg(feature = "constrain")]
use crate::constrain::Vocabulary;
use crate::error::{Error, Kind, Result};
use crate::format::gguf::Gguf;
pub use specials::FolderFiles;
pub use stream::PieceStream;
pub(crate) use stream::Pieces;

/// What a vocabulary entry is for; GGUF's `token_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenKind {
    /// Ordinary text.
    Normal,
    /// Stands for what the vocabulary cannot spell.
    Unknown,
    /// Steers the model (`<s>`, `<|im_end|>`); it is never shown.
    Control,
    /// Added to the vocabulary as a whole; matched before anything else, and shown.
    UserDefined,
    /// A hole in the numbering, or padding of the vocabulary; no text gives it.
    Unused,
    /// One byte, `<0xNN>`.
    Byte,
}

/// One entry of the vocabulary.
#[derive(Debug, Clone)]
struct Token {
    /// As the vocabulary spells it (`▁the`, `Ġthe`, `##ing`).
    text: String,
    /// What it adds to the decoded text.
    bytes: Vec<u8>,
    kind: TokenKind,
}

/// Ids with a role, and what is put around a text. `None` in `add_bos` or `add_eos`: as the tokenizer's own template says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Specials {
    /// Begins a text.
    pub bos: Option<u32>,
    /// Ends a text.
    pub eos: Option<u32>,
    /// Ends a turn of a chat.
    pub eot: Option<u32>,
    /// Ends a message that waits for a tool.
    pub eom: Option<u32>,
    /// Stands for what cannot be spelled.
    pub unk: Option<u32>,
    /// Fills a batch.
    pub pad: Option<u32>,
    /// Stands between two texts (BERT).
    pub sep: Option<u32>,
    /// Stands before a text that is classified (BERT).
    pub cls: Option<u32>,
    /// Stands for a hidden word (BERT).
    pub mask: Option<u32>,
    /// Whether `bos` is put before a text.
    pub add_bos: Option<bool>,
    /// Whether `eos` is put after a text.
    pub add_eos: Option<bool>,
}

/// A text as ids, with where each came from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Encoding {
    /// Token ids, `(T)`.
    pub ids: Vec<u32>,
    /// Bytes of the source text that each id covers, `(T)`; empty for ids that no text gave. They begin and end between
    /// characters, so several byte tokens of one character share its range.
    pub offsets: Vec<Range<usize>>,
    /// Which text an id came from: 0 or 1; `None` for ids that no text gave, `(T)`.
    pub sequence: Vec<Option<u8>>,
    /// BERT's segment of each id, 0 or 1, `(T)`.
    pub type_ids: Vec<u32>,
}

impl Encoding {
    fn push_special(&mut self, id: u32, type_id: u32) {
        self.ids.push(id);
        self.offsets.push(0..0);
        self.sequence.push(None);
        self.type_ids.push(type_id);
    }

    fn push_text(&mut self, text: Vec<(u32, Range<usize>)>, sequence: u8) {
        for (id, range) in text {
            self.ids.push(id);
            self.offsets.push(range);
            self.sequence.push(Some(sequence));
            self.type_ids.push(sequence as u32);
        }
    }
}

/// The algorithm that cuts a text.
enum Coder {
    Spm(Box<spm::Spm>),
    Hf(Box<tokenizers::Tokenizer>),
}

/// How ids become text again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Joining {
    /// Pieces stand side by side; `strip` drops one space before the first.
    Bytes { strip: bool },
    /// WordPiece: words are parted by spaces, and spaces before punctuation are taken back.
    Words,
}

/// Text <-> ids for one model.
pub struct Tokenizer {
    coder: Coder,
    tokens: Vec<Token>,
    special: Specials,
    stop: Vec<u32>,
    joining: Joining,
    /// Made when a constraint first asks for it.
    #[cfg(feature = "constrain")]
    vocabulary: OnceLock<Arc<Vocabulary>>,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tokenizer({} tokens, {:?})", self.tokens.len(), self.special)
    }
}

/// Control tokens that end an answer whatever role the file gives them; fine-tunes often forget to say so.
const ENDS: [&str; 10] = [
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|eom_id|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<EOT>",
    "<end_of_utterance>",
    "</s>",
];

impl Tokenizer {
    /// The tokenizer inside a GGUF: `tokenizer.huggingface.json` when it is there, `tokenizer.ggml.*` otherwise.
    /// # Errors
    /// [`Kind::Missing`] when the file carries none; [`Kind::Input`] when it is malformed or of a kind not known here.
    pub fn from_gguf(gguf: &Gguf) -> Result<Self> {
        match ggml::text(gguf, "tokenizer.huggingface.json")? {
            Some(json) => Self::from_hf_json(json.as_bytes(), ggml::specials(gguf)?),
            None => Self::from_ggml_fields(gguf),
        }
    }

    /// The tokenizer that llama.cpp would see: always from `tokenizer.ggml.*`.
    /// # Errors
    /// As [`Tokenizer::from_gguf`].
    pub fn from_ggml_fields(gguf: &Gguf) -> Result<Self> {
        ggml::build(gguf)
    }

    /// The tokenizer of a Hugging Face `tokenizer.json`; padding and truncation that it asks for are switched off.
    /// # Errors
    /// [`Kind::Input`] when the file cannot be read or a special id lies outside the vocabulary.
    pub fn from_hf_json(json: &[u8], special: Specials) -> Result<Self> {
        hf::build(json, special)
    }

    fn assemble(coder: Coder, tokens: Vec<Token>, special: Specials, joining: Joining) -> Result<Self> {
        let named = [
            ("bos", special.bos),
            ("eos", special.eos),
            ("eot", special.eot),
            ("eom", special.eom),
            ("unknown", special.unk),
            ("padding", special.pad),
            ("separator", special.sep),
            ("cls", special.cls),
            ("mask", special.mask),
        ];
        for (name, id) in named {
            if let Some(id) = id.filter(|&id| id as usize >= tokens.len()) {
                return Err(input(format!("the {name} token is {id}, but the vocabulary has {} tokens", tokens.len())));
            }
        }
        for (add, id, name) in [(special.add_bos, special.bos, "bos"), (special.add_eos, special.eos, "eos")] {
            if add == Some(true) && id.is_none() {
                return Err(input(format!("add_{name}_token is true, but no {name} token is named")));
            }
        }
        let mut stop: Vec<u32> = [special.eos, special.eot, special.eom].into_iter().flatten().collect();
        let ends = |t: &Token| t.kind == TokenKind::Control && ENDS.contains(&t.text.as_str());
        stop.extend((0u32..).zip(&tokens).filter(|(_, t)| ends(t)).map(|(id, _)| id));
        stop.sort_unstable();
        stop.dedup();
        Ok(Self {
            coder,
            tokens,
            special,
            stop,
            joining,
            #[cfg(feature = "constrain")]
            vocabulary: OnceLock::new(),
        })
    }

    /// The ids of `text`. Special tokens spelled out in the text (`<|im_end|>`) become their ids, as in transformers; with
    /// `add_special`, the model's BOS and EOS (or CLS and SEP) are put around it. A rendered chat template already holds
    /// them, so it is encoded without.
    /// # Errors
    /// [`Kind::Input`] when the vocabulary cannot spell the text.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>> {
        Ok(self.encode_with_offsets(text, add_special)?.ids)
    }

    /// As [`Tokenizer::encode`], with the bytes of `text` that each id covers.
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_with_offsets(&self, text: &str, add_special: bool) -> Result<Encoding> {
        if let (Coder::Hf(hf), true) = (&self.coder, add_special && self.own_template()) {
            return hf::encode(hf, text, None);
        }
        let mut out = Encoding::default();
        let (before, after) = self.frame(add_special);
        if let Some(id) = before {
            out.push_special(id, 0);
        }
        out.push_text(self.pieces(text)?, 0);
        if let Some(id) = after {
            out.push_special(id, 0);
        }
        Ok(out)
    }

    /// Two texts as one sequence with the model's special tokens: `[CLS] a [SEP] b [SEP]` for BERT.
    /// # Errors
    /// As [`Tokenizer::encode`]; [`Kind::Missing`] when the vocabulary has no separator.
    pub fn encode_pair(&self, a: &str, b: &str) -> Result<Encoding> {
        if let Coder::Hf(hf) = &self.coder
            && hf.get_post_processor().is_some()
        {
            return hf::encode(hf, a, Some(b));
        }
        let sep = self.special.sep.or(self.special.eos).ok_or_else(|| {
            Error::new(Kind::Missing, "tokenizer", "the vocabulary has no separator token to part two texts")
        })?;
        let mut out = Encoding::default();
        if let Some(id) = self.special.cls.or(self.special.bos) {
            out.push_special(id, 0);
        }
        out.push_text(self.pieces(a)?, 0);
        out.push_special(sep, 0);
        out.push_text(self.pieces(b)?, 1);
        out.push_special(sep, 1);
        Ok(out)
    }

    /// What stands before and after a text.
    fn frame(&self, add_special: bool) -> (Option<u32>, Option<u32>) {
        let put = |add: Option<bool>, id: Option<u32>| id.filter(|_| add_special && add == Some(true));
        (put(self.special.add_bos, self.special.bos), put(self.special.add_eos, self.special.eos))
    }

    /// Whether nothing overrides the special tokens that `tokenizer.json` itself adds.
    fn own_template(&self) -> bool {
        self.special.add_bos.is_none() && self.special.add_eos.is_none()
    }

    fn pieces(&self, text: &str) -> Result<Vec<(u32, Range<usize>)>> {
        match &self.coder {
            Coder::Spm(spm) => spm.encode(text),
            Coder::Hf(hf) => hf::pieces(hf, text),
        }
    }

    /// The bytes that `id` adds to a text: perhaps half a character, nothing for an id outside the vocabulary. Control tokens
    /// give their name.
    pub fn decode_piece(&self, id: u32) -> &[u8] {
        self.tokens.get(id as usize).map_or(&[], |t| &t.bytes)
    }

    /// The text of `ids`; with `skip_special`, without control tokens. Bytes that are not UTF-8 become U+FFFD.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> String {
        let mut stream = PieceStream::new(self).skip_special(skip_special).from_the_start();
        let mut text = String::new();
        for &id in ids {
            text.push_str(&stream.push(id));
        }
        text.push_str(&stream.finish());
        text
    }

    /// Number of tokens, holes included: one more than the largest id.
    pub fn vocab_size(&self) -> usize {
        self.tokens.len()
    }

    /// `id` as the vocabulary spells it.
    pub fn id_to_token(&self, id: u32) -> Option<&str> {
        self.tokens.get(id as usize).map(|t| t.text.as_str())
    }

    /// The id that the vocabulary spells `token`.
    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        match &self.coder {
            Coder::Spm(spm) => spm.id(token),
            // WordPiece built from GGUF fields spells its words otherwise than the file does, hence the scan.
            Coder::Hf(hf) => hf
                .token_to_id(token)
                .filter(|&id| self.id_to_token(id) == Some(token))
                .or_else(|| self.tokens.iter().position(|t| t.text == token).map(|i| i as u32)),
        }
    }

    /// What `id` is for; `None` outside the vocabulary.
    pub fn kind(&self, id: u32) -> Option<TokenKind> {
        self.tokens.get(id as usize).map(|t| t.kind)
    }

    /// The first control token that `text` spells out; [`Tokenizer::encode`] would take it for the token itself.
    pub fn control_token_in(&self, text: &str) -> Option<&str> {
        let control = self.tokens.iter().filter(|t| t.kind == TokenKind::Control && !t.text.is_empty());
        control.map(|t| t.text.as_str()).find(|token| text.contains(token))
    }

    /// Ids with a role.
    pub fn specials(&self) -> &Specials {
        &self.special
    }

    /// The id that begins a text.
    pub fn bos(&self) -> Option<u32> {
        self.special.bos
    }

    /// The id that ends a text.
    pub fn eos(&self) -> Option<u32> {
        self.special.eos
    }

    /// The id that ends a turn of a chat.
    pub fn eot(&self) -> Option<u32> {
        self.special.eot
    }

    /// Whether `encode(.., true)` puts BOS before a text.
    pub fn add_bos(&self) -> bool {
        let probe =
            || self.encode("", true).is_ok_and(|ids| ids.first().is_some_and(|&id| Some(id) == self.special.bos));
        self.special.add_bos.unwrap_or_else(probe)
    }

    /// Whether `encode(.., true)` puts EOS after a text.
    pub fn add_eos(&self) -> bool {
        let bos = self.add_bos() as usize;
        let eos =
            |ids: &[u32]| ids.get(bos..).and_then(|rest| rest.last()).is_some_and(|&id| Some(id) == self.special.eos);
        self.special.add_eos.unwrap_or_else(|| self.encode("", true).is_ok_and(|ids| eos(&ids)))
    }

    /// What constraints are compiled for, made once.
    #[cfg(feature = "constrain")]
    pub(crate) fn vocabulary(&self) -> Result<Arc<Vocabulary>> {
        if let Some(made) = self.vocabulary.get() {
            return Ok(made.clone());
        }
        let made = Arc::new(Vocabulary::new(self)?);
        Ok(self.vocabulary.get_or_init(|| made).clone())
    }

    /// Ids that end an answer, sorted: EOS, EOT, EOM, and control tokens known to end turns.
    pub fn stop_ids(&self) -> &[u32] {
        &self.stop
    }
}

fn input(message: String) -> Error {
    Error::new(Kind::Input, "tokenizer", message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::gguf::{Array, Value};

    /// A GGUF that holds nothing but these keys.
    fn gguf(keys: Vec<(&str, Value)>) -> Gguf {
        let metadata = keys.into_iter().map(|(k, v)| (k.to_string(), v)).collect();
        Gguf { version: 3, alignment: 32, data_start: 0, metadata, tensors: vec![] }
    }

    fn strings(all: &[&str]) -> Value {
        Value::Array(Array::Str(all.iter().map(|s| s.to_string()).collect()))
    }

    fn byte_level(pre: &str) -> Gguf {
        // 0xC3 and 0xA9 (é) are printable in GPT-2's alphabet as themselves.
        let tokens = ["<|end|>", "a", "b", "ab", "Ġ", "1", "11", "Ã", "©", "Ċ"];
        let mut kinds = vec![1; tokens.len()];
        kinds[0] = 3;
        gguf(vec![
            ("tokenizer.ggml.model", Value::Str("gpt2".into())),
            ("tokenizer.ggml.pre", Value::Str(pre.into())),
            ("tokenizer.ggml.tokens", strings(&tokens)),
            ("tokenizer.ggml.token_type", Value::Array(Array::I32(kinds))),
            ("tokenizer.ggml.merges", strings(&["a b", "1 1"])),
            ("tokenizer.ggml.eos_token_id", Value::U32(0)),
        ])
    }

    #[track_caller]
    fn check(gguf: &Gguf, text: &str, want: &[&str]) {
        let tokenizer = Tokenizer::from_gguf(gguf).unwrap();
        let ids = tokenizer.encode(text, false).unwrap();
        assert_eq!(ids.iter().map(|&id| tokenizer.id_to_token(id).unwrap()).collect::<Vec<_>>(), want);
        assert_eq!(tokenizer.decode(&ids, false), text);
    }

    #[test]
    fn byte_level_cuts_as_its_pre_tokenizer_says() {
        check(&byte_level("gpt-2"), "ab 11", &["ab", "Ġ", "11"]);
        check(&byte_level("smollm"), "ab 11", &["ab", "Ġ", "1", "1"]);
        check(&byte_level("qwen2"), "ab11", &["ab", "1", "1"]);
        check(&byte_level("llama-bpe"), "a<|end|>b\né", &["a", "<|end|>", "b", "Ċ", "Ã", "©"]);
    }

    #[test]
    fn what_is_not_known_is_refused_by_name() {
        let refused = |gguf: &Gguf| Tokenizer::from_gguf(gguf).unwrap_err();
        assert_eq!(
            refused(&byte_level("tekken")).to_string(),
            "tokenizer.ggml.pre: the pre-tokenizer `tekken` is not known here"
        );
        let other = gguf(vec![("tokenizer.ggml.model", Value::Str("rwkv".into()))]);
        assert!(refused(&other).to_string().contains("`rwkv`"), "{}", refused(&other));
        let none = gguf(vec![("tokenizer.ggml.model", Value::Str("no_vocab".into()))]);
        assert_eq!(refused(&none).kind(), Kind::Missing);
        let mut far = byte_level("gpt-2");
        far.metadata.push(("tokenizer.ggml.bos_token_id".into(), Value::U32(10)));
        assert_eq!(refused(&far).to_string(), "tokenizer: the bos token is 10, but the vocabulary has 10 tokens");
    }

    #[test]
    fn wordpiece_frames_texts_and_takes_spaces_back_before_punctuation() {
        let tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "▁a", "▁cat", "s", "▁.", "▁what"];
        let kinds = vec![3, 3, 3, 3, 1, 1, 1, 1, 1];
        let bert = gguf(vec![
            ("tokenizer.ggml.model", Value::Str("bert".into())),
            ("tokenizer.ggml.tokens", strings(&tokens)),
            ("tokenizer.ggml.token_type", Value::Array(Array::I32(kinds))),
        ]);
        let tokenizer = Tokenizer::from_gguf(&bert).unwrap();
        let ids = tokenizer.encode("A càts.  dog", true).unwrap();
        assert_eq!(ids, [2, 4, 5, 6, 7, 1, 3]);
        assert_eq!(tokenizer.decode(&ids, true), "a cats.");
        let pair = tokenizer.encode_pair("what", "a cat").unwrap();
        assert_eq!(pair.ids, [2, 8, 3, 4, 5, 3]);
        assert_eq!(pair.type_ids, [0, 0, 0, 1, 1, 1]);
        assert_eq!(pair.offsets[4], 2..5);
        assert!(tokenizer.add_bos() && tokenizer.add_eos());
    }

    #[test]
    fn half_a_character_waits_for_its_other_half() {
        let tokenizer = Tokenizer::from_gguf(&byte_level("gpt-2")).unwrap();
        let mut stream = PieceStream::new(&tokenizer);
        assert_eq!([1, 7, 8, 0].map(|id| stream.push(id)), ["a", "", "é", ""]);
        assert_eq!([7, 1].map(|id| stream.push(id)), ["", "\u{FFFD}a"]);
        stream.push(7);
        assert_eq!(stream.finish(), "\u{FFFD}");
        assert_eq!(tokenizer.decode(&[0, 1], false), "<|end|>a");
    }

    #[test]
    fn tokenizer_json_wins_and_llama_cpp_fields_can_still_be_asked_for() {
        let json = r#"{"version":"1.0","truncation":{"max_length":1,"strategy":"LongestFirst","stride":0},"padding":null,
            "added_tokens":[{"id":2,"content":"</s>","single_word":false,"lstrip":false,"rstrip":false,"normalized":false,"special":true}],
            "normalizer":null,"pre_tokenizer":null,"post_processor":null,
            "decoder":{"type":"ByteLevel","add_prefix_space":false,"trim_offsets":true,"use_regex":true},
            "model":{"type":"BPE","vocab":{"a":0,"b":1},"merges":[]}}"#;
        let mut both = byte_level("gpt-2");
        both.metadata.push(("tokenizer.huggingface.json".into(), Value::Str(json.into())));
        both.metadata.push(("tokenizer.ggml.add_eos_token".into(), Value::Bool(true)));
        let tokenizer = Tokenizer::from_gguf(&both).unwrap();
        assert_eq!(tokenizer.encode("ab</s>b", true).unwrap(), [0, 1, 2, 1, 0]); // eos is 0 in this file; nothing is cut
        assert_eq!(tokenizer.stop_ids(), [0, 2]);
        assert_eq!(Tokenizer::from_ggml_fields(&both).unwrap().encode("ab", false).unwrap(), [3]);
    }
}
