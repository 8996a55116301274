//! Several sequences side by side: one step of the engine reads a token of each generation that goes on, and a stretch of
//! each prompt that is not read yet. On the CPU, a sequence's rows are the same bits whoever goes on beside it.
//!
//! What fails fails alone: when a step of several goes wrong, each is tried by itself from where it was.

use std::ops::{ControlFlow, Range};
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::progress::Progress;
use super::{GenerateOptions, Generation, Piece, Session};
use crate::engine::{Engine, Rows, Run};
use crate::error::{Error, Kind, Result};
use crate::model::Task;

/// A generation that goes on beside others, on a sequence of its own; [`Session::end`] gives the sequence back.
#[must_use]
pub struct Live {
    seq: usize,
    progress: Progress,
    failed: bool,
}

impl Live {
    /// Whether its prompt is read.
    pub fn has_begun(&self) -> bool {
        self.progress.has_begun()
    }
}

impl std::fmt::Debug for Live {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "Live(sequence {}, {} tokens read, {} to read)",
            self.seq,
            self.progress.held(),
            self.progress.unread()
        )
    }
}

/// A text that is read whole.
#[cfg(feature = "server")]
#[derive(Debug, Clone, Copy)]
pub(crate) struct Text<'a> {
    pub ids: &'a [u32],
    pub types: Option<&'a [u8]>,
    pub rows: Rows,
    /// What it is computed with beside the model.
    pub adapter: Option<usize>,
}

impl Session {
    /// Sequences side by side.
    pub fn n_seqs(&self) -> usize {
        self.engine.n_seqs()
    }

    /// Whether the beginning of one sequence can become another's, so that answers to one prompt need not wait for each other.
    pub fn copies(&mut self) -> bool {
        self.engine.copy(0, 0, 0)
    }

    /// Begins a generation beside those that go on, to its end under the adapter in use; `None` while every sequence is held.
    /// It goes on from what a cache of `owner` under this adapter holds of `prompt`, be it the cache of a generation that goes
    /// on.
    /// # Errors
    /// As [`Session::generate`].
    pub fn begin(&mut self, owner: u64, prompt: &[u32], options: &GenerateOptions) -> Result<Option<Live>> {
        self.may_generate(prompt)?;
        let mut progress = Progress::new(self.tokenizer.clone(), self.capacity(), prompt, options)?;
        if progress.wants_nothing() {
            return Err(Error::new(Kind::Input, "max_tokens", "0; the least is 1"));
        }
        let Some((seq, emptied)) = self.slots.hold(owner, prompt) else { return Ok(None) };
        if emptied {
            self.engine.truncate(seq, 0);
        }
        if let Err(e) = self.settle(seq, self.slots.adapter) {
            self.slots.free(seq);
            return Err(e);
        }
        let most = prompt.len() - 1; // the last token's row is wanted
        let (own, other) = self.slots.common(seq, owner, prompt);
        let mut common = own.min(most);
        if let Some((from, n)) = other.map(|(from, n)| (from, n.min(most))).filter(|(_, n)| *n > common)
            && self.engine.copy(from, seq, n)
        {
            common = n;
            *self.slots.tokens_of(seq) = prompt[..n].to_vec();
        }
        self.keep(seq, common);
        progress.cached(common);
        Ok(Some(Live { seq, progress, failed: false }))
    }

    fn keep(&mut self, seq: usize, len: usize) {
        self.engine.truncate(seq, len);
        self.slots.tokens_of(seq).truncate(len);
    }

    /// Ends a generation, however far it is: its sequence is free at once. What it read stays in the cache for a prompt that
    /// begins like it, unless its step failed.
    pub fn end(&mut self, live: Live) -> Generation {
        let read = if live.failed { 0 } else { live.progress.held() };
        self.keep(live.seq, read);
        self.slots.free(live.seq);
        live.progress.finish()
    }

    /// One step of the engine for all of them: a token of each that has begun, and together at most `most` tokens of prompts,
    /// in even shares. Gives of each whether it goes on; one that failed or broke off is to be ended.
    /// - `on_piece`: as in [`Session::generate`], with what the caller keeps beside the generation
    pub fn advance<T>(
        &mut self,
        all: &mut [(Live, T)],
        most: usize,
        mut on_piece: impl FnMut(&mut T, &Piece) -> ControlFlow<()>,
    ) -> Vec<Result<ControlFlow<()>>> {
        let shares = shares(all.iter().map(|(live, _)| live.progress.unread()), most);
        let taking: Vec<usize> = (0..all.len()).filter(|i| shares[*i] > 0).collect();
        let runs: Vec<Run> = taking.iter().map(|&i| all[i].0.run(shares[i])).collect();
        let mut out = std::mem::take(&mut self.rows);
        let rows = forward_each(&mut *self.engine, self.task, &runs, &mut out);
        let mut outcomes: Vec<Result<ControlFlow<()>>> = all.iter().map(|_| Ok(ControlFlow::Continue(()))).collect();
        for (&i, rows) in taking.iter().zip(rows) {
            let (live, beside) = &mut all[i];
            outcomes[i] = rows.and_then(|rows| {
                let (tokens, _) = live.progress.next(shares[i]);
                self.slots.tokens_of(live.seq).extend_from_slice(tokens);
                let row = if rows.is_empty() { None } else { Some(&mut out[rows]) };
                guarded(|| live.progress.take(shares[i], row, &mut |piece| on_piece(beside, piece)))
            });
            live.failed = outcomes[i].is_err();
        }
        self.rows = out;
        outcomes
    }

    /// How many texts can be read side by side.
    #[cfg(feature = "server")]
    pub(crate) fn idle(&self) -> usize {
        self.slots.idle().count()
    }

    /// Reads texts side by side, each from an empty cache that is empty again afterwards, and hands on the rows of each, or
    /// why it has none. At most as many texts as sequences are idle.
    #[cfg(feature = "server")]
    pub(crate) fn read(&mut self, texts: &[Text], mut on_rows: impl FnMut(usize, Result<&mut [f32]>)) {
        let seqs: Vec<usize> = self.slots.idle().collect();
        let mut taking = Vec::with_capacity(texts.len());
        for (i, text) in texts.iter().enumerate() {
            let Some(seq) = seqs.get(taking.len()) else { break };
            match self.may_read(text.ids).and_then(|()| self.settle(*seq, text.adapter)) {
                Ok(()) => taking.push(i),
                Err(e) => on_rows(i, Err(e)),
            }
        }
        seqs.iter().take(taking.len()).for_each(|seq| self.keep(*seq, 0));
        let run = |(i, seq): (&usize, &usize)| {
            let Text { ids: tokens, types, rows, .. } = texts[*i];
            Run { seq: *seq, tokens, types, rows }
        };
        let runs: Vec<Run> = taking.iter().zip(&seqs).map(run).collect();
        let mut out = std::mem::take(&mut self.rows);
        let rows = forward_each(&mut *self.engine, self.task, &runs, &mut out);
        for (&i, rows) in taking.iter().zip(rows) {
            match rows {
                Ok(rows) => on_rows(i, Ok(&mut out[rows])),
                Err(e) => on_rows(i, Err(e)),
            }
        }
        self.rows = out;
        seqs.iter().take(taking.len()).for_each(|seq| self.keep(*seq, 0));
    }
}

impl Live {
    fn run(&self, most: usize) -> Run<'_> {
        let (tokens, rows) = self.progress.next(most);
        Run { seq: self.seq, tokens, types: None, rows }
    }
}

/// Tokens that each reads in a step, of what each has not read yet: the one token of those that go on, and of prompts together
/// at most `most`. What is left of the shortest comes first, so that nobody waits for a longer one than his own; a quarter is
/// the oldest prompt's, so that short ones cannot hold up a long one for ever.
/// - `unread`: the oldest first
fn shares(unread: impl Iterator<Item = usize>, most: usize) -> Vec<usize> {
    let unread: Vec<usize> = unread.collect();
    let mut shares = unread.clone();
    let mut prompts: Vec<usize> = (0..unread.len()).filter(|&i| unread[i] > 1).collect();
    prompts.iter().for_each(|&i| shares[i] = 0);
    let mut left = most.max(1);
    let mut give = |i: usize, most: usize| {
        let more = (unread[i] - shares[i]).min(most).min(left);
        shares[i] += more;
        left -= more;
    };
    if let Some(&oldest) = prompts.first() {
        give(oldest, most.div_ceil(4).max(1));
    }
    prompts.sort_by_key(|&i| unread[i]);
    prompts.into_iter().for_each(|i| give(i, usize::MAX));
    shares
}

/// Runs all in one step, and gives where each one's rows are in `out`. When that fails, each is run by itself from where it
/// was, so that what is wrong with one is its own.
fn forward_each(engine: &mut dyn Engine, task: Task, runs: &[Run], out: &mut Vec<f32>) -> Vec<Result<Range<usize>>> {
    out.clear();
    if runs.is_empty() {
        return Vec::new();
    }
    let lens: Vec<usize> = runs.iter().map(|run| engine.len(run.seq)).collect();
    match guarded(|| engine.forward(runs, out)) {
        Ok(()) => {
            let dim = engine.output_dim();
            let whole = !engine.hparams().causal && matches!(task, Task::Classify | Task::Embed);
            let mut at = 0;
            let range = |run: &Run| {
                let n = match run.rows {
                    Rows::None => 0,
                    Rows::All if !whole => run.tokens.len(),
                    Rows::All | Rows::Last => 1,
                };
                at += n * dim;
                Ok(at - n * dim..at)
            };
            runs.iter().map(range).collect()
        }
        Err(e) => {
            runs.iter().zip(&lens).for_each(|(run, len)| engine.truncate(run.seq, *len));
            if let [_] = runs {
                return vec![Err(e)];
            }
            out.clear();
            let mut rows = Vec::new();
            let alone = |run: &Run| {
                let found = forward_each(engine, task, std::slice::from_ref(run), &mut rows).remove(0)?;
                out.extend_from_slice(&rows[found]);
                Ok(out.len())
            };
            let ends: Vec<Result<usize>> = runs.iter().map(alone).collect();
            let mut from = 0;
            ends.into_iter().map(|end| end.map(|to| std::mem::replace(&mut from, to)..to)).collect()
        }
    }
}

/// A panic becomes an error: a bug in one request must not take the others with it.
pub(crate) fn guarded<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| {
        Err(Error::new(Kind::Shape, "engine", "it failed on this request; please report this as a bug"))
    })
}

#[cfg(test)]
mod tests {
    use super::shares;

    #[test]
    fn short_prompts_are_read_first_and_the_oldest_is_never_left_out() {
        for (unread, most, want) in [
            (&[1, 64, 64, 1000][..], 64, &[1, 64, 0, 0][..]),
            (&[1000, 1, 40, 40], 64, &[16, 1, 40, 8]),
            (&[1000, 40], 256, &[216, 40]),
            (&[3, 2, 2], 64, &[3, 2, 2]),
            (&[1, 1], 64, &[1, 1]),
            (&[5, 5], 1, &[1, 0]),
        ] {
            assert_eq!(shares(unread.iter().copied(), most), want, "{unread:?} of {most}");
        }
    }
}
