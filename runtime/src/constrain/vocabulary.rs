//! A tokenizer of ours as llguidance's trie of byte strings.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Instant;

use llguidance::ParserFactory;
use llguidance::toktrie::{ApproximateTokEnv, INVALID_TOKEN, TokEnv, TokRxInfo, TokTrie};

use crate::error::{Error, Kind, Result};
use crate::tokenizer::{TokenKind, Tokenizer};

/// States of a lexer, 1 to 2 KB each; what a large schema needs is a few thousand.
const MAX_STATES: usize = 20_000;
/// Longest token that the trie can hold; a longer one is spelled by shorter ones.
const MAX_TOKEN: usize = 1023;
/// Most ids that the trie can number.
const MAX_IDS: usize = 1 << 22;

/// The byte strings of a vocabulary as a trie, and what compiles grammars for it.
pub(crate) struct Vocabulary {
    pub factory: ParserFactory,
    /// Whether somebody compiles.
    busy: Mutex<bool>,
    free: Condvar,
}

/// The right to compile, until it is dropped.
pub(super) struct Turn(Arc<Vocabulary>);

impl Vocabulary {
    /// # Errors
    /// [`Kind::Limit`] for a vocabulary larger than the trie can number.
    pub fn new(tokenizer: &Tokenizer) -> Result<Self> {
        let n = tokenizer.vocab_size();
        if n > MAX_IDS {
            let message = format!("{n} tokens, but a constraint can tell at most {MAX_IDS} apart");
            return Err(Error::new(Kind::Limit, "tokenizer", message));
        }
        let stop = tokenizer.stop_ids();
        let bytes: Vec<Vec<u8>> = (0..n as u32).map(|id| text_of(tokenizer, id, stop)).collect();
        let info = TokRxInfo::new(n as u32, stop.first().copied().unwrap_or(INVALID_TOKEN));
        let trie = TokTrie::from(&info, &bytes);
        let trie = if stop.is_empty() { trie } else { trie.with_eos_tokens(stop) };
        let env: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
        let mut factory =
            ParserFactory::new_simple(&env).map_err(|e| Error::new(Kind::Input, "tokenizer", e.to_string()))?;
        factory.quiet();
        let limits = factory.limits_mut();
        limits.max_lexer_states = MAX_STATES;
        limits.verbose_errors = false;
        Ok(Self { factory, busy: Mutex::new(false), free: Condvar::new() })
    }

    /// Waits for the right to compile; `None` when it is not there in time.
    pub(super) fn turn(self: &Arc<Self>, until: Instant) -> Option<Turn> {
        let busy = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
        let left = until.saturating_duration_since(Instant::now());
        let (mut busy, _) =
            self.free.wait_timeout_while(busy, left, |busy| *busy).unwrap_or_else(PoisonError::into_inner);
        if std::mem::replace(&mut *busy, true) {
            return None;
        }
        Some(Turn(self.clone()))
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        *self.0.busy.lock().unwrap_or_else(PoisonError::into_inner) = false;
        self.0.free.notify_one();
    }
}

/// What an id adds to a text that is held to a grammar; empty for what may not stand in one. Control tokens steer the model
/// and are never text; those that end an answer are told apart by their ids.
fn text_of(tokenizer: &Tokenizer, id: u32, stop: &[u32]) -> Vec<u8> {
    let text = matches!(tokenizer.kind(id), Some(TokenKind::Normal | TokenKind::UserDefined | TokenKind::Byte));
    let bytes = tokenizer.decode_piece(id);
    // 0xFF stands in no UTF-8, and marks special tokens in the trie.
    let known = bytes.len() <= MAX_TOKEN && !bytes.contains(&TokTrie::SPECIAL_TOKEN_MARKER);
    if text && known && !stop.contains(&id) { bytes.to_vec() } else { Vec::new() }
}
