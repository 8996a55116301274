//! A question over a context: a span of the context from an encoder, a short generation from a decoder.

use std::ops::ControlFlow;
use std::ops::Range;

use super::{FinishReason, GenerateOptions, Generation, Session, too_long};
use crate::chat::answer_prompt;
use crate::engine::Rows;
use crate::error::{Error, Kind, Result};
use crate::model::Task;
use crate::sample::softmax;
use crate::tokenizer::Encoding;

/// Longest answer span, in tokens.
const MAX_ANSWER: usize = 30;
/// Context tokens that neighbouring windows share, when a context does not fit at once.
const OVERLAP: usize = 128;
/// Longest answer that a decoder writes, in tokens.
pub const MAX_WRITTEN: usize = 64;

/// An answer to a question.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// The text.
    pub answer: String,
    /// First character in the context, counted in Unicode characters; `None` from a decoder.
    pub start: Option<usize>,
    /// One past the last character; `None` from a decoder.
    pub end: Option<usize>,
    /// Probability of the span's start times that of its end; from a decoder, the geometric mean over its tokens.
    pub score: f64,
    /// The same for "the context does not say"; `None` from a decoder.
    pub no_answer_score: Option<f64>,
}

impl Session {
    /// Answers `question` from `context`. An encoder reads a context that is too long in overlapping windows.
    /// # Errors
    /// [`Kind::Input`] on an empty question or context, or a model that does not answer; [`Kind::Limit`] when the question,
    /// or a decoder's prompt, does not fit.
    pub fn answer(&mut self, question: &str, context: &str) -> Result<Answer> {
        if self.finds_spans() {
            let mut search = self.search(question, context.to_owned())?;
            loop {
                let rows = self.whole(search.ids(), Some(search.types()), Rows::All)?; // (T, 2)
                if search.take(&rows).is_break() {
                    return search.finish();
                }
            }
        }
        let (prompt, options) = self.question(question, context)?;
        let mut logprobs = Vec::new();
        let out = self.generate(&prompt, &options, &mut |piece| {
            logprobs.extend(piece.logprobs.as_ref().map(|l| l.logprob));
            ControlFlow::Continue(())
        })?;
        debug_assert_ne!(out.finish_reason, FinishReason::Cancelled);
        Ok(Answer::written(&out, &logprobs))
    }

    /// Whether an answer is a span of its context, rather than written.
    pub(crate) fn finds_spans(&self) -> bool {
        self.task() == Task::Answer && self.output_dim() == 2
    }

    fn may_answer(&self, question: &str, context: &str) -> Result<()> {
        self.must_be("answer questions", &[Task::Answer, Task::Generate])?;
        match [("question", question), ("context", context)].iter().find(|(_, text)| text.trim().is_empty()) {
            Some((name, _)) => Err(Error::new(Kind::Input, *name, "it is empty")),
            None => Ok(()),
        }
    }

    /// What an encoder reads to answer.
    pub(crate) fn search(&self, question: &str, context: String) -> Result<Search> {
        self.may_answer(question, &context)?;
        let pair = self.tokenizer()?.encode_pair(question, &context)?;
        let windows = windows(&pair, self.capacity())?;
        let mut search = Search {
            ids: Vec::new(),
            types: Vec::new(),
            context,
            pair,
            windows: windows.into_iter(),
            window: Vec::new(),
            best: None,
            no_answer: f64::INFINITY,
        };
        let _ = search.turn(); // there is one window at least
        Ok(search)
    }

    /// What a decoder goes on with to answer.
    pub(crate) fn question(&self, question: &str, context: &str) -> Result<(Vec<u32>, GenerateOptions)> {
        self.may_answer(question, context)?;
        let prompt = self.tokenizer()?.encode(&answer_prompt(question, context), true)?;
        let options = GenerateOptions {
            max_tokens: MAX_WRITTEN,
            stop: vec!["\n".into()],
            logprobs: Some(0),
            ..GenerateOptions::default()
        };
        Ok((prompt, options))
    }
}

impl Answer {
    /// What a decoder wrote, and the log-probabilities of its tokens.
    pub(crate) fn written(out: &Generation, logprobs: &[f64]) -> Self {
        let mean = logprobs.iter().sum::<f64>() / logprobs.len().max(1) as f64;
        let score = if logprobs.is_empty() { 0.0 } else { mean.exp() };
        Self { answer: out.text.trim().to_string(), start: None, end: None, score, no_answer_score: None }
    }
}

/// A search for a span, window by window.
pub(crate) struct Search {
    context: String,
    pair: Encoding,
    windows: std::vec::IntoIter<Vec<usize>>,
    /// Positions of the pair that are to be read next, their ids and types.
    window: Vec<usize>,
    ids: Vec<u32>,
    types: Vec<u8>,
    best: Option<Span>,
    no_answer: f64,
}

impl Search {
    /// What is to be read next.
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// Question or context, of each.
    pub fn types(&self) -> &[u8] {
        &self.types
    }

    /// Turns to the next window.
    fn turn(&mut self) -> ControlFlow<()> {
        let Some(window) = self.windows.next() else { return ControlFlow::Break(()) };
        self.ids = window.iter().map(|&i| self.pair.ids[i]).collect();
        self.types = window.iter().map(|&i| self.pair.type_ids[i] as u8).collect();
        self.window = window;
        ControlFlow::Continue(())
    }

    /// Takes the rows (T, 2) of what was to be read; breaks when nothing is left.
    pub fn take(&mut self, rows: &[f32]) -> ControlFlow<()> {
        let window = &self.window;
        let in_context: Vec<bool> = window.iter().map(|&i| self.pair.sequence[i] == Some(1)).collect();
        let (span, none) = best_span(rows, &in_context);
        self.no_answer = self.no_answer.min(none);
        if let Some(span) = span.filter(|s| self.best.as_ref().is_none_or(|b| s.score > b.score)) {
            let tokens = window[span.tokens.start]..window[span.tokens.end - 1] + 1;
            self.best = Some(Span { tokens, ..span });
        }
        self.turn()
    }

    /// The best span of all windows.
    pub fn finish(&self) -> Result<Answer> {
        let Self { context, pair, .. } = self;
        let best = self.best.as_ref().ok_or_else(|| Error::new(Kind::Input, "context", "it has no tokens"))?;
        let bytes = pair.offsets[best.tokens.start].start..pair.offsets[best.tokens.end - 1].end;
        let chars = |upto: usize| context[..upto].chars().count();
        Ok(Answer {
            answer: context[bytes.clone()].to_string(),
            start: Some(chars(bytes.start)),
            end: Some(chars(bytes.end)),
            score: best.score,
            no_answer_score: Some(self.no_answer),
        })
    }
}

/// Positions of `pair` that each window holds: the whole of it when it fits; otherwise question and special tokens with a
/// stretch of the context.
fn windows(pair: &Encoding, capacity: usize) -> Result<Vec<Vec<usize>>> {
    let n = pair.ids.len();
    if n <= capacity {
        return Ok(vec![(0..n).collect()]);
    }
    let from = pair.sequence.iter().position(|s| *s == Some(1)).unwrap_or(n);
    let to = pair.sequence.iter().rposition(|s| *s == Some(1)).map_or(n, |i| i + 1);
    let around = n - (to - from);
    let room = capacity.saturating_sub(around);
    if room == 0 {
        return Err(too_long("question", around, capacity, "leaves no room for the context"));
    }
    let overlap = OVERLAP.min(room / 2);
    let mut all = Vec::new();
    let mut at = from;
    loop {
        let end = (at + room).min(to);
        all.push((0..from).chain(at..end).chain(to..n).collect());
        if end == to {
            return Ok(all);
        }
        at = end - overlap;
    }
}

/// Tokens of a window, and how likely they are the answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Span {
    /// Positions in the window.
    pub tokens: Range<usize>,
    /// Probability of the start times that of the end.
    pub score: f64,
}

/// The likeliest span inside the context, and the probability that there is none, which BERT puts on its first token.
/// - `rows`: `(T, 2)`, start and end logits.   `in_context`: `(T)`.
pub fn best_span(rows: &[f32], in_context: &[bool]) -> (Option<Span>, f64) {
    // Probabilities over the context and the first token; the question cannot hold the answer.
    let allowed = |i: usize| i == 0 || in_context[i];
    let column = |c: usize| -> Vec<f64> {
        let logits: Vec<f32> =
            (0..in_context.len()).map(|i| if allowed(i) { rows[2 * i + c] } else { f32::NEG_INFINITY }).collect();
        softmax(&logits).into_iter().map(f64::from).collect()
    };
    let (start, end) = (column(0), column(1));
    let mut best: Option<Span> = None;
    for s in (0..in_context.len()).filter(|&s| in_context[s]) {
        for e in (s..in_context.len().min(s + MAX_ANSWER)).take_while(|&e| in_context[e]) {
            let score = start[s] * end[e];
            if best.as_ref().is_none_or(|b| score > b.score) {
                best = Some(Span { tokens: s..e + 1, score });
            }
        }
    }
    (best, start[0] * end[0])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_lies_in_the_context_and_does_not_end_before_it_starts() {
        let in_context = [false, false, true, true, true];
        // The question holds the best start, and the best end comes before the best start of the context.
        let start = [0.0, 9.0, 1.0, 5.0, 2.0];
        let end = [0.0, 9.0, 6.0, 1.0, 4.0];
        let rows: Vec<f32> = start.iter().zip(end).flat_map(|(&s, e)| [s, e]).collect();
        let (span, none) = best_span(&rows, &in_context);
        let span = span.unwrap();
        assert_eq!(span.tokens, 3..5);
        let p =
            |logits: [f64; 5], i: usize| logits[i].exp() / [0, 2, 3, 4].map(|j| logits[j].exp()).iter().sum::<f64>();
        let want = p(start.map(f64::from), 3) * p(end.map(f64::from), 4);
        assert!((span.score - want).abs() < 1e-6, "{} {want}", span.score);
        assert!((none - p(start.map(f64::from), 0) * p(end.map(f64::from), 0)).abs() < 1e-6);
    }

    #[test]
    fn a_span_is_never_longer_than_the_bound() {
        let n = 100;
        let mut rows = vec![0.0f32; 2 * n];
        (rows[2], rows[2 * 99 + 1]) = (20.0, 20.0);
        let mut in_context = vec![true; n];
        in_context[0] = false;
        assert!(best_span(&rows, &in_context).0.unwrap().tokens.len() <= MAX_ANSWER);
    }

    #[test]
    fn windows_cover_the_context_and_share_its_edges() {
        let sequence: Vec<Option<u8>> =
            std::iter::once(None).chain([Some(0); 3]).chain([None]).chain([Some(1); 40]).chain([None]).collect();
        let pair = Encoding { ids: vec![7; sequence.len()], sequence, ..Encoding::default() };
        let all = windows(&pair, 16).unwrap(); // 6 around, 10 of the context, 5 shared
        assert_eq!(all[0], [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 45]);
        assert_eq!(all[1][5..8], [10, 11, 12]);
        assert!(all.iter().all(|w| w.len() <= 16));
        assert!((5..45).all(|i| all.iter().any(|w| w.contains(&i))));
        assert_eq!(windows(&pair, 46).unwrap().len(), 1);
        let error = windows(&pair, 6).unwrap_err().to_string();
        assert!(error.starts_with("question: 6 tokens, but the context holds 6"), "{error}");
    }
}
