//! One generation between two steps of the engine: what is to be read next, and what a row of logits makes of it. A prompt's
//! stretches and the answer's tokens are one thing here: tokens that the cache does not hold yet.

use std::ops::ControlFlow;
use std::sync::Arc;

use super::stop::StopStrings;
use super::{FinishReason, GenerateOptions, Generation, Piece, Timings, TokenLogprobs};
use crate::clock::Clock;
#[cfg(feature = "constrain")]
use crate::constrain::Held;
use crate::engine::Rows;
use crate::error::Result;
use crate::sample::{Sampler, logprob, top_logprobs};
use crate::tokenizer::{Pieces, Tokenizer};

/// See the module.
pub(super) struct Progress {
    tokenizer: Option<Arc<Tokenizer>>,
    sampler: Sampler,
    stop: StopStrings,
    stop_ids: Vec<u32>,
    pieces: Pieces,
    logprobs: Option<usize>,
    max_tokens: usize,
    /// What the text is held to.
    #[cfg(feature = "constrain")]
    held: Option<Held>,
    /// Prompt and answer.
    tokens: Vec<u32>,
    /// Of these, what the cache holds.
    read: usize,
    out: Generation,
    start: Clock,
    /// When the last token came, and time between tokens so far, in ms.
    last: Option<f64>,
    decode_ms: f64,
}

impl Progress {
    /// Nothing is read yet.
    /// - `room`: tokens that prompt and answer may hold together
    pub fn new(
        tokenizer: Option<Arc<Tokenizer>>,
        room: usize,
        prompt: &[u32],
        options: &GenerateOptions,
    ) -> Result<Self> {
        let own_ids = || tokenizer.as_ref().map_or_else(Vec::new, |t| t.stop_ids().to_vec());
        let stop_ids = options.stop_ids.clone().unwrap_or_else(own_ids);
        #[cfg(feature = "constrain")]
        let held = options.grammar.as_ref().map(|grammar| grammar.begin(&stop_ids));
        #[cfg(feature = "constrain")]
        let own_text = options.own_text && held.is_none(); // a grammar says each byte, also of the first word
        #[cfg(not(feature = "constrain"))]
        let own_text = options.own_text;
        Ok(Self {
            sampler: Sampler::new(options.sampling.clone())?,
            stop: StopStrings::new(&options.stop)?,
            stop_ids,
            #[cfg(feature = "constrain")]
            pieces: Pieces::new(own_text).show(options.show.clone()),
            #[cfg(not(feature = "constrain"))]
            pieces: Pieces::new(own_text),
            #[cfg(feature = "constrain")]
            held,
            logprobs: options.logprobs,
            max_tokens: options.max_tokens.min(room - prompt.len()),
            tokens: prompt.to_vec(),
            read: 0,
            out: Generation {
                token_ids: Vec::new(),
                text: String::new(),
                finish_reason: FinishReason::Length,
                timings: Timings { prompt_tokens: prompt.len(), ..Timings::default() },
            },
            start: Clock::start(),
            last: None,
            decode_ms: 0.0,
            tokenizer,
        })
    }

    /// Whether no token is asked for.
    pub fn wants_nothing(&self) -> bool {
        self.max_tokens == 0
    }

    /// The cache holds so many of the prompt's tokens already.
    pub fn cached(&mut self, n: usize) {
        self.out.timings.cached_tokens = n;
        self.read = n;
    }

    /// Tokens that the cache holds.
    pub fn held(&self) -> usize {
        self.read
    }

    /// Tokens that the cache does not hold yet: one, once the prompt is read.
    pub fn unread(&self) -> usize {
        self.tokens.len() - self.read
    }

    /// Whether the prompt is read and a token has come.
    pub fn has_begun(&self) -> bool {
        self.last.is_some()
    }

    /// What the engine must read next, at most `most` tokens, and whether the last one's row is wanted.
    pub fn next(&self, most: usize) -> (&[u32], Rows) {
        let rest = &self.tokens[self.read..];
        if rest.len() > most { (&rest[..most], Rows::None) } else { (rest, Rows::Last) }
    }

    /// The engine has read `n` tokens; breaks when the answer has ended, or `on_piece` breaks it off.
    /// - `row`: `(V)`, of the last token, where it was wanted; the sampler changes it
    pub fn take(
        &mut self,
        n: usize,
        row: Option<&mut [f32]>,
        on_piece: &mut dyn FnMut(&Piece) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>> {
        self.read += n;
        let Some(row) = row else {
            return Ok(self.tell(&Piece { token: None, text: "", logprobs: None }, on_piece));
        };
        let plain = self.logprobs.map(|_| row.to_vec()); // bias, penalties and constraints change the row
        #[cfg(feature = "constrain")]
        if let Some(held) = &mut self.held {
            held.mask(row)?;
        }
        let id = self.sampler.next(row, &self.tokens)?;
        let now = self.start.ms();
        match self.last.replace(now) {
            None => self.out.timings.ttft_ms = now,
            Some(before) => {
                self.out.timings.itl_ms.push(now - before);
                self.decode_ms += now - before;
            }
        }
        if self.stop_ids.contains(&id) {
            return Ok(self.end(FinishReason::Stop, on_piece));
        }
        self.tokens.push(id);
        self.out.token_ids.push(id);
        let text = self.tokenizer.as_ref().map_or_else(String::new, |t| self.pieces.push(t, id));
        let text = self.stop.push(&text);
        self.out.text.push_str(&text);
        let logprobs = plain
            .zip(self.logprobs)
            .and_then(|(row, n)| Some(TokenLogprobs { logprob: logprob(&row, id)?, top: top_logprobs(&row, n) }));
        if self.tell(&Piece { token: Some(id), text: &text, logprobs }, on_piece).is_break() {
            return Ok(ControlFlow::Break(()));
        }
        if self.is_whole(id)? || self.stop.hit() {
            return Ok(self.end(FinishReason::Stop, on_piece));
        }
        if self.out.token_ids.len() == self.max_tokens {
            return Ok(self.end(FinishReason::Length, on_piece));
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Whether the text, with this id, is all that its constraint allows.
    #[cfg(feature = "constrain")]
    fn is_whole(&mut self, id: u32) -> Result<bool> {
        self.held.as_mut().map_or(Ok(false), |held| held.take(id))
    }

    #[cfg(not(feature = "constrain"))]
    fn is_whole(&mut self, _id: u32) -> Result<bool> {
        Ok(false)
    }

    fn tell(&mut self, piece: &Piece, on_piece: &mut dyn FnMut(&Piece) -> ControlFlow<()>) -> ControlFlow<()> {
        let goes_on = on_piece(piece);
        if goes_on.is_break() {
            self.out.finish_reason = FinishReason::Cancelled;
        }
        goes_on
    }

    /// Gives the text that was held back.
    fn end(&mut self, reason: FinishReason, on_piece: &mut dyn FnMut(&Piece) -> ControlFlow<()>) -> ControlFlow<()> {
        self.out.finish_reason = reason;
        let mut rest = self.stop.push(&self.pieces.finish());
        rest.push_str(&self.stop.finish());
        self.out.text.push_str(&rest);
        if !rest.is_empty() {
            let _ = self.tell(&Piece { token: None, text: &rest, logprobs: None }, on_piece); // it has ended either way
        }
        ControlFlow::Break(())
    }

    /// What was generated.
    pub fn finish(self) -> Generation {
        let mut out = self.out;
        let n = out.timings.itl_ms.len();
        out.timings.decode_tokens_per_s = (n > 0 && self.decode_ms > 0.0).then(|| n as f64 / self.decode_ms * 1e3);
        out
    }
}
