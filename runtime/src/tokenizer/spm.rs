//! SentencePiece BPE as llama.cpp runs it: of all neighbours whose join is in the vocabulary, the pair with the best score is
//! joined first, the leftmost on a tie; a character that the vocabulary lacks becomes its bytes.
//!
//! Spaces are written U+2581 inside the vocabulary, and one is put before the text and after every special token.

use std::cmp::Ordering;
use std::collections::{BinaryHeap, HashMap, HashSet};
use std::ops::Range;

use super::{Token, TokenKind, input};
use crate::error::Result;

const SPACE: &str = "\u{2581}";
const NONE: usize = usize::MAX;

/// The vocabulary, ready to encode.
pub(super) struct Spm {
    ids: HashMap<String, u32>,
    scores: Vec<f32>,
    /// Tokens that are split out first, longest first.
    special: Vec<(String, u32)>,
    /// Ids of those that take the spaces behind them along.
    strips: HashSet<u32>,
    /// Bytes that some special token begins with: most text is passed over by a look here.
    special_starts: [bool; 256],
    /// `<0xNN>` of each byte, or the token that is that byte.
    bytes: Vec<Option<u32>>,
    unk: Option<u32>,
    add_space_prefix: bool,
}

impl Spm {
    /// - `strips`: whether a token that is split out takes the spaces behind it along
    pub fn new(
        tokens: &[Token],
        scores: Vec<f32>,
        unk: Option<u32>,
        add_space_prefix: bool,
        strips: impl Fn(&Token) -> bool,
    ) -> Self {
        let mut ids = HashMap::with_capacity(tokens.len());
        for (id, token) in (0u32..).zip(tokens) {
            ids.entry(token.text.clone()).or_insert(id);
        }
        let whole = |k| matches!(k, TokenKind::Control | TokenKind::UserDefined | TokenKind::Unknown);
        let mut special: Vec<_> = (0u32..)
            .zip(tokens)
            .filter(|(_, t)| whole(t.kind) && !t.text.is_empty())
            .map(|(id, t)| {
                // A user-defined token stands for its text, where the vocabulary writes U+2581 for a space.
                let text = if t.kind == TokenKind::UserDefined { t.text.replace(SPACE, " ") } else { t.text.clone() };
                (text, id)
            })
            .collect();
        let strips = special.iter().map(|(_, id)| *id).filter(|id| strips(&tokens[*id as usize])).collect();
        special.sort_by_key(|(text, _)| std::cmp::Reverse(text.len()));
        let mut special_starts = [false; 256];
        for (text, _) in &special {
            special_starts[text.as_bytes()[0] as usize] = true;
        }
        let byte = |b: u8| {
            let own = ids.get(&format!("<0x{b:02X}>")).copied();
            own.or_else(|| std::str::from_utf8(&[b]).ok().and_then(|s| ids.get(s).copied()))
        };
        let bytes = (0..=255).map(byte).collect();
        Self { bytes, ids, scores, special, strips, special_starts, unk, add_space_prefix }
    }

    pub fn id(&self, token: &str) -> Option<u32> {
        self.ids.get(token).copied()
    }

    /// Ids and the bytes of `text` they cover.
    pub fn encode(&self, text: &str) -> Result<Vec<(u32, Range<usize>)>> {
        let mut out = Vec::new();
        let mut start = 0; // of the ordinary text that waits
        let mut at = 0;
        while at < text.len() {
            let here = &text[at..];
            let special = self.special_starts[here.as_bytes()[0] as usize]
                .then(|| self.special.iter().find(|(s, _)| here.starts_with(s.as_str())))
                .flatten();
            match special {
                Some((s, id)) => {
                    self.encode_plain(text, start..at, &mut out)?;
                    out.push((*id, at..at + s.len()));
                    at += s.len();
                    if self.strips.contains(id) {
                        let rest = &text[at..];
                        at += rest.len()
                            - rest.trim_start_matches(|c: char| c.is_ascii_whitespace() || c == '\x0b').len();
                    }
                    start = at;
                }
                None => at += here.chars().next().map_or(1, char::len_utf8),
            }
        }
        self.encode_plain(text, start..text.len(), &mut out)?;
        Ok(out)
    }

    /// Text without special tokens. Every stretch of it begins the text or follows a special token, so each gets its space.
    fn encode_plain(&self, text: &str, range: Range<usize>, out: &mut Vec<(u32, Range<usize>)>) -> Result<()> {
        if range.is_empty() {
            return Ok(());
        }
        let mut escaped = String::with_capacity(range.len() + 8);
        let mut symbols: Vec<Symbol> = Vec::with_capacity(range.len() + 1);
        let mut push = |escaped: &mut String, piece: &str, source: Range<usize>| {
            let from = escaped.len();
            escaped.push_str(piece);
            let n = symbols.len();
            symbols.push(Symbol { text: from..escaped.len(), source, prev: n.wrapping_sub(1), next: n + 1 });
        };
        if self.add_space_prefix {
            let first = text[range.start..].chars().next().map_or(0, char::len_utf8);
            push(&mut escaped, SPACE, range.start..range.start + first);
        }
        for (i, c) in text[range.clone()].char_indices() {
            let source = range.start + i..range.start + i + c.len_utf8();
            match c {
                ' ' => push(&mut escaped, SPACE, source),
                c => push(&mut escaped, c.encode_utf8(&mut [0; 4]), source),
            }
        }
        if let Some(last) = symbols.last_mut() {
            last.next = NONE;
        }
        self.join(&escaped, &mut symbols);
        for symbol in symbols.into_iter().filter(|s| !s.text.is_empty()) {
            self.emit(&escaped[symbol.text], symbol.source, out)?;
        }
        Ok(())
    }

    /// Joins neighbours, best score first, until no join is in the vocabulary.
    fn join(&self, escaped: &str, symbols: &mut [Symbol]) {
        let mut queue = BinaryHeap::new();
        for right in 1..symbols.len() {
            self.consider(escaped, symbols, right - 1, right, &mut queue);
        }
        while let Some(pair) = queue.pop() {
            let (left, right) = (pair.left, pair.right);
            let joined = symbols[left].text.start..symbols[right].text.end;
            // Either may have been joined with another since: then the lengths no longer add up.
            if symbols[left].text.is_empty() || symbols[right].text.is_empty() || joined.len() != pair.len {
                continue;
            }
            symbols[left].text = joined;
            symbols[left].source.end = symbols[right].source.end;
            symbols[right].text = 0..0;
            let next = symbols[right].next;
            symbols[left].next = next;
            if next != NONE {
                symbols[next].prev = left;
                self.consider(escaped, symbols, left, next, &mut queue);
            }
            let prev = symbols[left].prev;
            if prev != NONE {
                self.consider(escaped, symbols, prev, left, &mut queue);
            }
        }
    }

    fn consider(&self, escaped: &str, symbols: &[Symbol], left: usize, right: usize, queue: &mut BinaryHeap<Pair>) {
        let text = symbols[left].text.start..symbols[right].text.end;
        if let Some(&id) = self.ids.get(&escaped[text.clone()]) {
            queue.push(Pair { score: self.scores[id as usize], left, right, len: text.len() });
        }
    }

    fn emit(&self, text: &str, source: Range<usize>, out: &mut Vec<(u32, Range<usize>)>) -> Result<()> {
        if let Some(&id) = self.ids.get(text) {
            out.push((id, source));
            return Ok(());
        }
        for byte in text.bytes() {
            let id = self.bytes[byte as usize].or(self.unk).ok_or_else(|| {
                input(format!("the vocabulary spells neither {text:?} nor byte 0x{byte:02X}, and has no unknown token"))
            })?;
            out.push((id, source.clone()));
        }
        Ok(())
    }
}

/// A stretch of the escaped text that is one token so far; a linked list, since joins take from its middle.
struct Symbol {
    text: Range<usize>,
    source: Range<usize>,
    prev: usize,
    next: usize,
}

/// Two neighbours whose join is in the vocabulary.
struct Pair {
    score: f32,
    left: usize,
    right: usize,
    len: usize,
}

impl Ord for Pair {
    fn cmp(&self, other: &Self) -> Ordering {
        self.score.total_cmp(&other.score).then_with(|| other.left.cmp(&self.left))
    }
}

impl PartialOrd for Pair {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Pair {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Pair {}

#[cfg(test)]
mod tests {
    use super::*;

    /// `<unk> <s>`, three bytes, then words: the score is minus the rank.
    fn toy(add_space_prefix: bool) -> Spm {
        let token = |text: &str, kind| Token { text: text.into(), bytes: vec![], kind };
        let mut tokens = vec![token("<unk>", TokenKind::Unknown), token("<s>", TokenKind::Control)];
        tokens.extend(["<0xF0>", "<0x9F>", "<0x98>", "<0x80>"].map(|t| token(t, TokenKind::Byte)));
        tokens.extend(["ab", "bc", "▁a", "▁", "a", "b", "c"].map(|t| token(t, TokenKind::Normal)));
        let scores = vec![0., 0., 0., 0., 0., 0., -1., -2., -3., -4., -5., -6., -7.];
        Spm::new(&tokens, scores, Some(0), add_space_prefix, |_| false)
    }

    #[track_caller]
    fn check(spm: &Spm, text: &str, want: &[&str]) {
        let name = |id: u32| spm.ids.iter().find(|(_, v)| **v == id).unwrap().0.as_str();
        let got = spm.encode(text).unwrap();
        assert_eq!(got.iter().map(|(id, _)| name(*id)).collect::<Vec<_>>(), want);
        assert!(got.iter().all(|(_, r)| text.get(r.clone()).is_some()), "offsets cut a character: {got:?}");
    }

    #[test]
    fn the_best_score_is_joined_first_and_the_leftmost_on_a_tie() {
        check(&toy(false), "abc", &["ab", "c"]);
        check(&toy(false), "abab", &["ab", "ab"]);
        check(&toy(true), "a", &["▁a"]);
        check(&toy(true), "ab", &["▁", "ab"]); // `ab` outranks `▁a`
    }

    #[test]
    fn a_missing_character_becomes_bytes_and_a_missing_byte_unknown() {
        check(&toy(false), "a😀", &["a", "<0xF0>", "<0x9F>", "<0x98>", "<0x80>"]);
        check(&toy(false), "z", &["<unk>"]);
    }

    #[test]
    fn a_token_that_strips_takes_the_spaces_behind_it() {
        let plain = toy(true);
        let mut strips = toy(true);
        strips.strips.insert(1);
        check(&plain, "<s> \na", &["<s>", "▁", "▁", "<unk>", "a"]);
        check(&strips, "<s> \n a <s>", &["<s>", "▁a", "▁", "<s>"]);
        check(&strips, "<s>\t", &["<s>"]);
    }

    #[test]
    fn special_tokens_are_split_out_and_followed_by_a_space() {
        check(&toy(true), "<s>a<s>", &["<s>", "▁a", "<s>"]);
        check(&toy(true), "", &[]);
    }
}
