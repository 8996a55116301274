//! `tokenizer.json` -> [`Tokenizer`]: the `tokenizers` crate cuts, this file decodes, so that bytes can stream.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::LazyLock;

use serde_json::Value as Json;

use super::{Coder, Encoding, Joining, Specials, Token, TokenKind, Tokenizer, input};
use crate::error::Result;

pub(super) fn build(json: &[u8], mut special: Specials) -> Result<Tokenizer> {
    // First of all: the crate panics on a decoder that is not JSON.
    let parsed: Json =
        serde_json::from_slice(json).map_err(|e| input(format!("the tokenizer.json is not JSON: {e}")))?;
    let mut coder = tokenizers::Tokenizer::from_bytes(json)
        .map_err(|e| input(format!("the tokenizer.json cannot be read: {e}")))?;
    coder.with_padding(None);
    coder.with_truncation(None).map_err(|e| input(format!("truncation cannot be switched off: {e}")))?;
    let decoding = Decoding::of(&parsed)?;

    let vocab = coder.get_vocab(true);
    let size = vocab.values().max().map_or(0, |&id| id as usize + 1);
    if size > 4 * vocab.len() + 1024 {
        return Err(input(format!("the largest id is {}, but only {} tokens are named", size - 1, vocab.len())));
    }
    let mut texts: Vec<Option<String>> = vec![None; size];
    for (text, id) in vocab {
        texts[id as usize] = Some(text);
    }
    let added = coder.get_added_tokens_decoder();
    for (&id, token) in added.iter() {
        texts[id as usize] = Some(token.content.clone());
    }
    let tokens = (0u32..).zip(texts).map(|(id, text)| match (added.get(&id), text) {
        (Some(token), _) => {
            let kind = if token.special { TokenKind::Control } else { TokenKind::UserDefined };
            decoding.added(token.content.clone(), kind)
        }
        (None, Some(text)) => decoding.token(text),
        (None, None) => Token { text: String::new(), bytes: Vec::new(), kind: TokenKind::Unused },
    });
    let tokens: Vec<Token> = tokens.collect();

    let named = |name: &str| coder.token_to_id(name);
    let joining = decoding.joining();
    if joining == Joining::Words {
        special.cls = special.cls.or_else(|| named("[CLS]"));
        special.sep = special.sep.or_else(|| named("[SEP]"));
        special.unk = special.unk.or_else(|| named("[UNK]"));
        special.pad = special.pad.or_else(|| named("[PAD]"));
        special.mask = special.mask.or_else(|| named("[MASK]"));
        special.bos = special.bos.or(special.cls);
        special.eos = special.eos.or(special.sep);
    }
    Tokenizer::assemble(Coder::Hf(Box::new(coder)), tokens, special, joining)
}

/// Ids and the bytes of `text` they cover, without special tokens.
pub(super) fn pieces(coder: &tokenizers::Tokenizer, text: &str) -> Result<Vec<(u32, Range<usize>)>> {
    let encoding = coder.encode(text, false).map_err(|e| input(format!("the text cannot be encoded: {e}")))?;
    let offsets = encoding.get_offsets().iter().map(|&(from, to)| whole(text, from..to));
    Ok(encoding.get_ids().iter().copied().zip(offsets).collect())
}

/// A text, or two, with the special tokens of the file's own template.
pub(super) fn encode(coder: &tokenizers::Tokenizer, a: &str, b: Option<&str>) -> Result<Encoding> {
    let encoding = match b {
        Some(b) => coder.encode((a, b), true),
        None => coder.encode(a, true),
    };
    let encoding = encoding.map_err(|e| input(format!("the text cannot be encoded: {e}")))?;
    let sequence: Vec<Option<u8>> = encoding.get_sequence_ids().into_iter().map(|s| s.map(|s| s as u8)).collect();
    let offsets = encoding.get_offsets().iter().zip(&sequence).map(|(&(from, to), sequence)| match sequence {
        Some(0) => whole(a, from..to),
        Some(_) => whole(b.unwrap_or_default(), from..to),
        None => 0..0,
    });
    Ok(Encoding {
        offsets: offsets.collect(),
        ids: encoding.get_ids().to_vec(),
        type_ids: encoding.get_type_ids().to_vec(),
        sequence,
    })
}

/// `range` widened to whole characters.
fn whole(text: &str, range: Range<usize>) -> Range<usize> {
    let start = text.floor_char_boundary(range.start);
    start..text.ceil_char_boundary(range.end.max(start))
}

/// How the file's decoder spells bytes.
enum Decoding {
    /// GPT-2's 256 printable characters.
    ByteLevel,
    /// U+2581 for a space, `<0xNN>` for a byte; `strip` drops the first space.
    SentencePiece { strip: bool },
    /// Words parted by spaces; pieces inside a word begin with the prefix.
    WordPiece { prefix: String },
}

impl Decoding {
    fn of(json: &Json) -> Result<Self> {
        let decoder = &json["decoder"];
        let kind = |d: &Json| d["type"].as_str().unwrap_or("none").to_string();
        Ok(match kind(decoder).as_str() {
            "ByteLevel" => Self::ByteLevel,
            "WordPiece" => Self::WordPiece { prefix: decoder["prefix"].as_str().unwrap_or("##").to_string() },
            "Metaspace" => Self::SentencePiece { strip: prepends(decoder) },
            "Sequence" => {
                let empty = Vec::new();
                let all = decoder["decoders"].as_array().unwrap_or(&empty);
                let known = ["Replace", "ByteFallback", "Fuse", "Strip", "Metaspace", "ByteLevel"];
                if let Some(odd) = all.iter().map(kind).find(|k| !known.contains(&k.as_str())) {
                    return Err(input(format!("the decoder `{odd}` is not known here")));
                }
                if all.iter().any(|d| kind(d) == "ByteLevel") {
                    Self::ByteLevel
                } else {
                    let strips = |d: &Json| kind(d) == "Strip" && d["start"].as_u64() > Some(0);
                    Self::SentencePiece {
                        strip: all.iter().any(|d| strips(d) || (kind(d) == "Metaspace" && prepends(d))),
                    }
                }
            }
            // Without a decoder, transformers parts tokens by spaces; a WordLevel vocabulary reads the same so.
            "none" => Self::WordPiece { prefix: "##".into() },
            other => return Err(input(format!("the decoder `{other}` is not known here"))),
        })
    }

    fn token(&self, text: String) -> Token {
        match self {
            Self::ByteLevel => byte_level(text, TokenKind::Normal),
            Self::SentencePiece { .. } => {
                let kind = if hex_byte(&text).is_some() { TokenKind::Byte } else { TokenKind::Normal };
                sentence_piece(text, kind)
            }
            Self::WordPiece { prefix } => word_piece(text, TokenKind::Normal, prefix),
        }
    }

    /// An added token is spelled plainly; but WordPiece parts it from its neighbour, and SentencePiece writes a space as in
    /// any other (Gemma's runs of them).
    fn added(&self, text: String, kind: TokenKind) -> Token {
        match self {
            Self::SentencePiece { .. } if kind == TokenKind::UserDefined => sentence_piece(text, kind),
            Self::WordPiece { prefix } => word_piece(text, kind, prefix),
            _ => Token { bytes: text.clone().into_bytes(), text, kind },
        }
    }

    fn joining(&self) -> Joining {
        match self {
            Self::ByteLevel => Joining::Bytes { strip: false },
            Self::SentencePiece { strip } => Joining::Bytes { strip: *strip },
            Self::WordPiece { .. } => Joining::Words,
        }
    }
}

/// Whether a Metaspace decoder takes back the space that its pre-tokenizer put first.
fn prepends(metaspace: &Json) -> bool {
    match (metaspace["prepend_scheme"].as_str(), metaspace["add_prefix_space"].as_bool()) {
        (Some(scheme), _) => scheme != "never",
        (None, add) => add.unwrap_or(true),
    }
}

/// `<0xNN>` -> the byte.
fn hex_byte(text: &str) -> Option<u8> {
    let digits = text.strip_prefix("<0x")?.strip_suffix('>')?;
    (digits.len() == 2).then(|| u8::from_str_radix(digits, 16).ok())?
}

/// A token of a SentencePiece vocabulary.
pub(super) fn sentence_piece(text: String, kind: TokenKind) -> Token {
    let bytes = match (kind, hex_byte(&text)) {
        (TokenKind::Byte, Some(byte)) => vec![byte],
        (TokenKind::Normal | TokenKind::UserDefined | TokenKind::Byte, _) => text.replace('\u{2581}', " ").into_bytes(),
        _ => text.clone().into_bytes(),
    };
    Token { text, bytes, kind }
}

/// A token of a WordPiece vocabulary: a word start brings the space before it.
pub(super) fn word_piece(text: String, kind: TokenKind, prefix: &str) -> Token {
    let bytes = match text.strip_prefix(prefix) {
        Some(inner) if kind == TokenKind::Normal && !inner.is_empty() => inner.as_bytes().to_vec(),
        _ => format!(" {text}").into_bytes(),
    };
    Token { text, bytes, kind }
}

/// A token of a byte-level vocabulary; added tokens are spelled plainly.
pub(super) fn byte_level(text: String, kind: TokenKind) -> Token {
    let plain = matches!(kind, TokenKind::Control | TokenKind::UserDefined);
    let bytes: Option<Vec<u8>> = if plain { None } else { text.chars().map(|c| BYTE_OF.get(&c).copied()).collect() };
    Token { bytes: bytes.unwrap_or_else(|| text.clone().into_bytes()), text, kind }
}

/// GPT-2's printable character -> byte: printable Latin-1 stands for itself, the other 68 follow from U+0100 on.
static BYTE_OF: LazyLock<HashMap<char, u8>> = LazyLock::new(|| {
    let printable = |b: u8| matches!(b, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    let rest = (0..=255u8).filter(|&b| !printable(b));
    let own = (0..=255u8).filter(|&b| printable(b)).map(|b| (b as char, b));
    own.chain(('\u{100}'..).zip(rest)).collect()
});
