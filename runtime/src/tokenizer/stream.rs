//! Ids, one at a time -> whole UTF-8 pieces: half a character waits for its other half.

use super::{Joining, TokenKind, Tokenizer};

/// Assembles text from ids as they come.
///
/// By default the ids continue a text (a prompt), so a leading space is kept; [`PieceStream::from_the_start`] drops the one
/// that SentencePiece puts before every text.
pub struct PieceStream<'a> {
    tokenizer: &'a Tokenizer,
    pieces: Pieces,
}

/// The same for those who hold the tokenizer elsewhere.
pub(crate) struct Pieces {
    waiting: Vec<u8>,
    skip_special: bool,
    /// Control tokens that are shown all the same.
    shown: Vec<u32>,
    first: bool,
}

impl<'a> PieceStream<'a> {
    /// A stream that continues a text and hides control tokens.
    pub fn new(tokenizer: &'a Tokenizer) -> Self {
        Self { tokenizer, pieces: Pieces::new(false) }
    }

    /// Whether control tokens are left out.
    pub fn skip_special(mut self, skip: bool) -> Self {
        self.pieces.skip_special = skip;
        self
    }

    /// The ids begin a text of their own.
    pub fn from_the_start(mut self) -> Self {
        self.pieces.first = true;
        self
    }

    /// The text that is whole once `id` is there; often one word, empty while a character is unfinished.
    pub fn push(&mut self, id: u32) -> String {
        self.pieces.push(self.tokenizer, id)
    }

    /// What still waits, with U+FFFD for half a character.
    pub fn finish(&mut self) -> String {
        self.pieces.finish()
    }
}

impl Pieces {
    /// - `first`: the ids begin a text of their own
    pub fn new(first: bool) -> Self {
        Self { waiting: Vec::new(), skip_special: true, shown: Vec::new(), first }
    }

    /// These are shown, also where control tokens are hidden.
    #[cfg(feature = "constrain")]
    pub fn show(self, shown: Vec<u32>) -> Self {
        Self { shown, ..self }
    }

    /// See [`PieceStream::push`].
    pub fn push(&mut self, tokenizer: &Tokenizer, id: u32) -> String {
        let hidden = |kind| matches!(kind, TokenKind::Control | TokenKind::Unknown | TokenKind::Unused);
        if self.skip_special && tokenizer.kind(id).is_none_or(hidden) && !self.shown.contains(&id) {
            return String::new();
        }
        let piece = tokenizer.decode_piece(id);
        let piece = match tokenizer.joining {
            Joining::Bytes { strip } if strip && self.first => piece.strip_prefix(b" ").unwrap_or(piece),
            Joining::Words if self.first || closes(piece) => piece.strip_prefix(b" ").unwrap_or(piece),
            _ => piece,
        };
        self.first = false;
        self.waiting.extend_from_slice(piece);
        self.take_whole()
    }

    /// See [`PieceStream::finish`].
    pub fn finish(&mut self) -> String {
        String::from_utf8_lossy(&std::mem::take(&mut self.waiting)).into_owned()
    }

    fn take_whole(&mut self) -> String {
        let mut out = String::new();
        loop {
            match std::str::from_utf8(&self.waiting) {
                Ok(text) => {
                    out.push_str(text);
                    self.waiting.clear();
                    return out;
                }
                Err(e) => {
                    let (whole, rest) = self.waiting.split_at(e.valid_up_to());
                    out.push_str(std::str::from_utf8(whole).unwrap_or_default());
                    match e.error_len() {
                        // Never UTF-8, whatever follows.
                        Some(bad) => {
                            out.push(char::REPLACEMENT_CHARACTER);
                            self.waiting = rest[bad..].to_vec();
                        }
                        None => {
                            self.waiting = rest.to_vec();
                            return out;
                        }
                    }
                }
            }
        }
    }
}

/// Punctuation that WordPiece's clean-up pulls to the word before it.
fn closes(piece: &[u8]) -> bool {
    matches!(piece, b" ." | b" ?" | b" !" | b" ,")
}
