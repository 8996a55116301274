//! `tokenizer.ggml.*` -> [`Tokenizer`]: the vocabulary as llama.cpp reads it.
//!
//! Keys and defaults follow llama.cpp's `llama-vocab.cpp`. A kind or a pre-tokenizer that is not known here is refused by
//! name: a near miss would give other ids without a word.

use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::models::wordpiece::WordPiece;
use tokenizers::normalizers::BertNormalizer;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::bert::BertPreTokenizer;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken, SplitDelimiterBehavior};

use super::spm::Spm;
use super::{Coder, Joining, Specials, Token, TokenKind, Tokenizer, hf, input};
use crate::error::{Error, Kind, Result};
use crate::format::gguf::{Array, Gguf, Value};

const WORD_START: char = '\u{2581}';

/// Contractions, letters, digits, other signs, spaces: GPT-2's cut, but for the last run of spaces, which falls out by itself.
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)";

pub(super) fn build(gguf: &Gguf) -> Result<Tokenizer> {
    let model = text(gguf, "tokenizer.ggml.model")?.unwrap_or("no_vocab");
    match model {
        "llama" => spm(gguf),
        "gpt2" => bpe(gguf),
        "bert" => wordpiece(gguf),
        "no_vocab" | "none" => Err(Error::new(
            Kind::Missing,
            "tokenizer.ggml.model",
            "the file carries no tokenizer; give token ids, or export it from a folder that has a tokenizer.json",
        )),
        other => Err(Error::new(
            Kind::Input,
            "tokenizer.ggml.model",
            format!("`{other}` is not a tokenizer known here (llama, gpt2 and bert are)"),
        )),
    }
}

/// A string key; `None` when it is absent.
pub(super) fn text<'a>(gguf: &'a Gguf, key: &str) -> Result<Option<&'a str>> {
    match gguf.get(key) {
        None => Ok(None),
        Some(Value::Str(s)) => Ok(Some(s)),
        Some(_) => Err(wrong(key, "a string")),
    }
}

fn wrong(key: &str, want: &str) -> Error {
    Error::new(Kind::Input, key, format!("not {want}"))
}

fn flag(gguf: &Gguf, key: &str) -> Result<Option<bool>> {
    match gguf.get(key) {
        None => Ok(None),
        Some(Value::Bool(b)) => Ok(Some(*b)),
        Some(_) => Err(wrong(key, "a bool")),
    }
}

/// An id key; llama.cpp writes 0xFFFFFFFF for none.
fn id(gguf: &Gguf, name: &str) -> Result<Option<u32>> {
    let key = format!("tokenizer.ggml.{name}_token_id");
    let id = match gguf.get(&key) {
        None => return Ok(None),
        Some(Value::U32(x)) => Some(*x),
        Some(Value::I32(x)) => u32::try_from(*x).ok(),
        Some(Value::U64(x)) => u32::try_from(*x).ok(),
        Some(Value::I64(x)) => u32::try_from(*x).ok(),
        Some(_) => return Err(wrong(&key, "an integer")),
    };
    Ok(id.filter(|&x| x != u32::MAX))
}

pub(super) fn specials(gguf: &Gguf) -> Result<Specials> {
    let mut special = Specials {
        bos: id(gguf, "bos")?,
        eos: id(gguf, "eos")?,
        eot: id(gguf, "eot")?,
        eom: id(gguf, "eom")?,
        unk: id(gguf, "unknown")?,
        pad: id(gguf, "padding")?,
        sep: id(gguf, "seperator")?, // spelled so in the format
        cls: id(gguf, "cls")?,
        mask: id(gguf, "mask")?,
        add_bos: flag(gguf, "tokenizer.ggml.add_bos_token")?,
        add_eos: flag(gguf, "tokenizer.ggml.add_eos_token")?,
    };
    if text(gguf, "tokenizer.ggml.model")? == Some("bert") {
        // BERT's frame is [CLS] .. [SEP] whatever these say; the pair template needs both as well.
        (special.add_bos, special.add_eos) = (None, None);
    }
    Ok(special)
}

/// Vocabulary texts and kinds, ids `0..V`.
fn vocabulary(gguf: &Gguf) -> Result<Vec<(String, TokenKind)>> {
    let key = "tokenizer.ggml.tokens";
    let texts = match gguf.get(key) {
        Some(Value::Array(Array::Str(x))) if !x.is_empty() => x,
        Some(Value::Array(Array::Str(_))) => return Err(wrong(key, "a vocabulary: it is empty")),
        Some(_) => return Err(wrong(key, "an array of strings")),
        None => return Err(Error::new(Kind::Missing, key, "the file has no vocabulary")),
    };
    let key = "tokenizer.ggml.token_type";
    let kinds: Vec<i64> = match gguf.get(key) {
        None => vec![1; texts.len()],
        Some(Value::Array(Array::I32(x))) => x.iter().map(|&k| k as i64).collect(),
        Some(Value::Array(Array::U32(x))) => x.iter().map(|&k| k as i64).collect(),
        Some(_) => return Err(wrong(key, "an array of i32")),
    };
    if kinds.len() != texts.len() {
        return Err(Error::new(Kind::Input, key, format!("{} token types, but {} tokens", kinds.len(), texts.len())));
    }
    let kind = |k: i64| match k {
        2 => TokenKind::Unknown,
        3 => TokenKind::Control,
        4 => TokenKind::UserDefined,
        5 => TokenKind::Unused,
        6 => TokenKind::Byte,
        _ => TokenKind::Normal,
    };
    Ok(texts.iter().zip(kinds).map(|(t, k)| (t.clone(), kind(k))).collect())
}

fn spm(gguf: &Gguf) -> Result<Tokenizer> {
    let vocabulary = vocabulary(gguf)?;
    let key = "tokenizer.ggml.scores";
    let scores = match gguf.get(key) {
        Some(Value::Array(Array::F32(x))) if x.len() == vocabulary.len() => x.clone(),
        Some(Value::Array(Array::F32(x))) => {
            return Err(Error::new(Kind::Input, key, format!("{} scores, but {} tokens", x.len(), vocabulary.len())));
        }
        Some(_) => return Err(wrong(key, "an array of f32")),
        None => {
            return Err(Error::new(Kind::Missing, key, "a SentencePiece vocabulary needs scores to rank its merges"));
        }
    };
    let mut special = specials(gguf)?;
    // llama.cpp's numbering of a SentencePiece vocabulary that names no roles.
    let known = |n: u32| (n as usize) < vocabulary.len();
    special.unk = special.unk.or(Some(0).filter(|_| gguf.get("tokenizer.ggml.unknown_token_id").is_none()));
    special.bos = special.bos.or(Some(1).filter(|&n| known(n) && gguf.get("tokenizer.ggml.bos_token_id").is_none()));
    special.eos = special.eos.or(Some(2).filter(|&n| known(n) && gguf.get("tokenizer.ggml.eos_token_id").is_none()));
    special.add_bos = special.add_bos.or(Some(special.bos.is_some()));
    special.add_eos = special.add_eos.or(Some(false));

    let prefix = flag(gguf, "tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
    let tokens: Vec<Token> = vocabulary.into_iter().map(|(text, kind)| hf::sentence_piece(text, kind)).collect();
    let phi3 = is_phi3(gguf)?;
    let strips = |t: &Token| phi3 && strips_in_phi3(&t.text);
    let coder = Coder::Spm(Box::new(Spm::new(&tokens, scores, special.unk, prefix, strips)));
    Tokenizer::assemble(coder, tokens, special, Joining::Bytes { strip: prefix })
}

/// Whether llama.cpp takes a file for one of Phi-3, whose markers take the spaces behind them along. No key says so: it
/// looks at the model's name.
fn is_phi3(gguf: &Gguf) -> Result<bool> {
    let name = text(gguf, "general.name")?.unwrap_or_default().to_lowercase();
    Ok(name.contains("phi-3") || name.contains("phi3"))
}

/// Which tokens of Phi-3 do that, of those that are split out.
fn strips_in_phi3(token: &str) -> bool {
    !["<unk>", "<s>", "<|endoftext|>"].contains(&token)
}

fn bpe(gguf: &Gguf) -> Result<Tokenizer> {
    let vocabulary = vocabulary(gguf)?;
    let key = "tokenizer.ggml.merges";
    let merges = match gguf.get(key) {
        Some(Value::Array(Array::Str(x))) => x,
        Some(_) => return Err(wrong(key, "an array of strings")),
        None => return Err(Error::new(Kind::Missing, key, "a byte-level BPE vocabulary needs its merges")),
    };
    let merges = merges
        .iter()
        .enumerate()
        .map(|(i, m)| {
            // A first character may itself be a space, so the parting one is looked for behind it.
            let from = m.chars().next().map_or(0, char::len_utf8);
            let at = m[from..].find(' ').map(|at| from + at);
            let at = at.ok_or_else(|| Error::new(Kind::Input, key, format!("merge {i} is not two tokens: {m:?}")))?;
            Ok((m[..at].to_string(), m[at + 1..].to_string()))
        })
        .collect::<Result<Vec<_>>>()?;

    let key = "tokenizer.ggml.pre";
    let pre = text(gguf, key)?.ok_or_else(|| {
        Error::new(
            Kind::Missing,
            key,
            "the file does not say how text is cut before its merges; convert the model again",
        )
    })?;
    let Cut { splits, ignore_merges, add_bos } =
        cut(pre).ok_or_else(|| Error::new(Kind::Input, key, format!("the pre-tokenizer `{pre}` is not known here")))?;

    let ids = (0u32..).zip(&vocabulary).map(|(id, (text, _))| (text.clone(), id));
    let model = BPE::builder()
        .vocab_and_merges(ids.collect::<Vocab>(), merges)
        .ignore_merges(ignore_merges)
        .build()
        .map_err(|e| input(format!("the merges do not fit the vocabulary: {e}")))?;
    let mut coder = tokenizers::Tokenizer::new(model);
    coder.with_pre_tokenizer(Some(splits));
    let added = vocabulary.iter().filter_map(|(text, kind)| match kind {
        TokenKind::Control | TokenKind::Unknown => Some(AddedToken::from(text.as_str(), true).normalized(false)),
        TokenKind::UserDefined => Some(AddedToken::from(text.as_str(), false).normalized(false)),
        _ => None,
    });
    coder.add_tokens(added).map_err(|e| input(format!("the special tokens cannot be added: {e}")))?;

    let mut special = specials(gguf)?;
    special.add_bos = special.add_bos.or(Some(add_bos && special.bos.is_some()));
    special.add_eos = special.add_eos.or(Some(false));
    let tokens = vocabulary.into_iter().map(|(text, kind)| hf::byte_level(text, kind)).collect();
    Tokenizer::assemble(Coder::Hf(Box::new(coder)), tokens, special, Joining::Bytes { strip: false })
}

/// How a byte-level vocabulary cuts text before it merges.
struct Cut {
    splits: PreTokenizerWrapper,
    /// A stretch that is a token as a whole is taken so, whatever the merges say.
    ignore_merges: bool,
    /// Default of `add_bos_token`.
    add_bos: bool,
}

/// llama.cpp's `tokenizer.ggml.pre` names, to its `llama-vocab.cpp` tables.
fn cut(pre: &str) -> Option<Cut> {
    let bytes = |regex| PreTokenizerWrapper::ByteLevel(ByteLevel::new(false, true, regex));
    let all = |splits| PreTokenizerWrapper::Sequence(Sequence::new(splits));
    let by = |regex: &str| {
        let split = Split::new(SplitPattern::Regex(regex.into()), SplitDelimiterBehavior::Isolated, false);
        PreTokenizerWrapper::Split(split.expect("a fixed pattern"))
    };
    // Words with one sign before them; digits by three (Llama 3) or singly (Qwen 2).
    let modern = |digits: &str| {
        let words = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+";
        let rest = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
        all(vec![by(&format!("{words}|{digits}|{rest}")), bytes(false)])
    };
    let plain = |splits| Cut { splits, ignore_merges: false, add_bos: false };
    Some(match pre {
        "gpt-2" | "phi-2" | "jina-es" | "jina-de" | "jina-v1-en" | "jina-v2-es" | "jina-v2-de" | "jina-v2-code"
        | "roberta-bpe" | "gigachat" | "a.x-4.0" | "mellum" => plain(bytes(true)),
        "smollm" | "codeshell" | "refact" | "command-r" | "starcoder" => {
            plain(all(vec![PreTokenizerWrapper::Digits(Digits::new(true)), bytes(true)]))
        }
        "llama3" | "llama-v3" | "llama-bpe" | "falcon3" | "pixtral" => {
            Cut { splits: modern(r"\p{N}{1,3}"), ignore_merges: true, add_bos: true }
        }
        "qwen2" | "deepseek-r1-qwen" => plain(modern(r"\p{N}")),
        "default" => {
            plain(all(vec![by(r"[\p{P}\$\+<=>\^~\|]+"), by(GPT2), by(r"\p{N}+"), by("[0-9][0-9][0-9]"), bytes(false)]))
        }
        _ => return None,
    })
}

fn wordpiece(gguf: &Gguf) -> Result<Tokenizer> {
    let vocabulary = vocabulary(gguf)?;
    let mut special = specials(gguf)?;
    let named = |name: &str| vocabulary.iter().position(|(text, _)| text == name).map(|i| i as u32);
    special.cls = special.cls.or(special.bos).or_else(|| named("[CLS]"));
    special.sep = special.sep.or(special.eos).or_else(|| named("[SEP]"));
    special.unk = special.unk.or_else(|| named("[UNK]"));
    special.mask = special.mask.or_else(|| named("[MASK]"));
    special.pad = special.pad.or_else(|| named("[PAD]"));
    special.bos = special.cls;
    special.eos = special.sep;
    special.add_bos = Some(special.cls.is_some());
    special.add_eos = Some(special.sep.is_some());
    let unk = special.unk.and_then(|id| vocabulary.get(id as usize)).map(|(text, _)| text.clone());
    let unk = unk.ok_or_else(|| {
        Error::new(Kind::Missing, "tokenizer.ggml.unknown_token_id", "a WordPiece vocabulary needs an unknown token")
    })?;

    // Back to BERT's own spelling: word starts are bare, the other pieces begin with ##.
    let spelled = |text: &str, kind: TokenKind| match text.strip_prefix(WORD_START) {
        Some(word) => word.to_string(),
        None if kind != TokenKind::Normal || (text.len() > 2 && text.starts_with('[') && text.ends_with(']')) => {
            text.into()
        }
        None => format!("##{text}"),
    };
    let tokens: Vec<Token> =
        vocabulary.iter().map(|(text, kind)| hf::word_piece(spelled(text, *kind), *kind, "##")).collect();
    let ids = (0u32..).zip(&tokens).map(|(id, t)| (t.text.clone(), id));
    let model = WordPiece::builder()
        .vocab(ids.collect::<Vocab>())
        .unk_token(unk)
        .max_input_chars_per_word(usize::MAX) // llama.cpp sets no bound
        .build()
        .map_err(|e| input(format!("the WordPiece vocabulary cannot be used: {e}")))?;
    let mut coder = tokenizers::Tokenizer::new(model);
    coder
        .with_normalizer(Some(BertNormalizer::new(true, true, Some(true), true)))
        .map_err(|e| input(format!("the normalizer cannot be set: {e}")))?
        .with_pre_tokenizer(Some(BertPreTokenizer));
    let added = vocabulary.iter().filter(|(_, kind)| matches!(kind, TokenKind::Control | TokenKind::Unknown));
    let added = added.map(|(text, _)| AddedToken::from(text.as_str(), true).normalized(false));
    coder.add_tokens(added).map_err(|e| input(format!("the special tokens cannot be added: {e}")))?;
    Tokenizer::assemble(Coder::Hf(Box::new(coder)), tokens, special, Joining::Words)
}
