//! Clocks -> first token, ms per token, percentiles. Prints nothing.
//!
//! A [`Case`] says what is run, [`Bench`] runs it over a model and an engine, a [`Measurement`] keeps every raw sample.
//! What the numbers hold:
//!
//! - A generating run starts its clock with the prompt as text. The first token's time (`ttft_ms`) is tokenization, prefill,
//!   and the choice of that token; `prompt_tokens_per_s` is the prompt's tokens over that time. A later token's time
//!   (`itl_ms`) is one forward, the choice, and the text of the piece.
//! - With a batch, all sequences go through one forward: each of its steps gives one token to every sequence, rates count
//!   the tokens of all, and the first token's time is that of the whole batch.
//! - [`Run::engine`] has the same without tokenization, sampling and text, as `llama-bench` counts.
//! - Models that do not generate (classifiers, spans, vectors) give the latency of a whole batch of texts.
//! - A model without a tokenizer is fed with ids; [`Measurement::tokenized`] says so.
//!
//! [`stats`] holds the definitions of median, deviation and percentile; [`bandwidth`] the ceiling; [`energy`] what the
//! package took meanwhile, where it says; [`device`] and [`cgroup`] what this machine is, and what of it is ours; [`report`]
//! the JSON and the table.

pub mod bandwidth;
pub mod cgroup;
pub mod device;
pub mod energy;
pub mod report;
pub mod stats;

use std::path::Path;
use std::time::Instant;

use crate::engine::{Engine, Rows, Run as Step};
use crate::error::{Error, Kind, Result};
use crate::model::{Model, Task};
use crate::sample::{Sampler, Sampling};
use crate::tokenizer::{PieceStream, Tokenizer};
use energy::{Energy, Meter};

/// Prompt tokens of a sequence in one forward, as a session reads them.
const PREFILL: usize = 256;

/// The text that prompts are cut from, repeated as often as it takes.
const TEXT: &str = "The boat left the harbour early, when the light was still grey and the wind came from the west. \
    Nobody spoke. On the far side of the bay a second boat was waiting, and beside it a man with a lamp, who had been \
    there, he said later, since four o'clock in the morning. ";

/// What is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Case {
    /// Tokens of each prompt or text.
    pub prompt: usize,
    /// Tokens generated after it, the first one included.
    pub generate: usize,
    /// Sequences side by side.
    pub batch: usize,
    /// Measured runs.
    pub runs: usize,
    /// Runs before them that do not count.
    pub warmups: usize,
}

impl Default for Case {
    fn default() -> Self {
        Self { prompt: 128, generate: 32, batch: 1, runs: 5, warmups: 1 }
    }
}

impl Case {
    /// This case, with the longest prompt up to its own that a model of `n_ctx` positions has room for.
    pub fn within(self, task: Task, causal: bool, n_ctx: usize) -> Self {
        let after = self.ctx(task, causal) - self.prompt;
        Self { prompt: self.prompt.min(n_ctx.saturating_sub(after)).max(1), ..self }
    }

    /// Positions that a sequence of this case takes.
    pub fn ctx(&self, task: Task, causal: bool) -> usize {
        if generates(task, causal) { self.prompt + self.generate } else { self.prompt }
    }
}

/// Whether a model of this kind is measured token by token.
pub fn generates(task: Task, causal: bool) -> bool {
    causal && matches!(task, Task::Generate | Task::Answer)
}

/// Clocks of one run. Rates count the tokens of all sequences.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Run {
    /// Whole latency of the batch when the model does not generate; else up to the first tokens.
    pub first_ms: f64,
    /// Time of each step after the first token; empty when the model does not generate.
    pub itl_ms: Vec<f64>,
    /// The same, forwards alone.
    pub engine: EngineRun,
}

/// Clocks of the engine's forwards in one run.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct EngineRun {
    /// Of the prompts.
    pub prompt_ms: f64,
    /// Of all steps after them.
    pub decode_ms: f64,
}

/// All runs of a case.
#[derive(Debug, Clone, PartialEq)]
pub struct Measurement {
    /// What was run.
    pub case: Case,
    /// Whether tokens were generated, one by one.
    pub generates: bool,
    /// Whether the first token's time begins with a text; ids otherwise.
    pub tokenized: bool,
    /// First token (or result) of the very first run, in ms: nothing was warm.
    pub cold_first_ms: f64,
    /// Measured runs, in order.
    pub runs: Vec<Run>,
    /// What the CPU's package took during the measured runs, where the system says; all of it, not this process's part.
    pub energy: Option<Energy>,
}

impl Measurement {
    /// Tokens of the prompts a second, one value a run.
    pub fn prompt_rates(&self) -> Vec<f64> {
        self.runs.iter().map(|r| self.prompt_tokens() / r.first_ms * 1e3).collect()
    }

    /// Generated tokens a second after the first, one value a run; empty when there are none.
    pub fn decode_rates(&self) -> Vec<f64> {
        let with_steps = self.runs.iter().filter(|r| !r.itl_ms.is_empty());
        with_steps.map(|r| self.decoded_tokens() / r.itl_ms.iter().sum::<f64>() * 1e3).collect()
    }

    /// As [`Measurement::prompt_rates`], forwards alone.
    pub fn engine_prompt_rates(&self) -> Vec<f64> {
        self.runs.iter().map(|r| self.prompt_tokens() / r.engine.prompt_ms * 1e3).collect()
    }

    /// As [`Measurement::decode_rates`], forwards alone.
    pub fn engine_decode_rates(&self) -> Vec<f64> {
        let with_steps = self.runs.iter().filter(|r| !r.itl_ms.is_empty());
        with_steps.map(|r| self.decoded_tokens() / r.engine.decode_ms * 1e3).collect()
    }

    /// First-token times (or whole latencies) of all runs.
    pub fn first_ms(&self) -> Vec<f64> {
        self.runs.iter().map(|r| r.first_ms).collect()
    }

    /// Times of all steps of all runs.
    pub fn itl_ms(&self) -> Vec<f64> {
        self.runs.iter().flat_map(|r| r.itl_ms.iter().copied()).collect()
    }

    /// Joules over every token of the measured runs, read or generated.
    pub fn joules_per_token(&self) -> Option<f64> {
        let generated = if self.generates { self.case.generate * self.case.batch } else { 0 };
        let tokens = (self.prompt_tokens() + generated as f64) * self.runs.len() as f64;
        self.energy.map(|e| e.joules / tokens)
    }

    fn prompt_tokens(&self) -> f64 {
        (self.case.prompt * self.case.batch) as f64
    }

    fn decoded_tokens(&self) -> f64 {
        (self.case.generate.saturating_sub(1) * self.case.batch) as f64
    }
}

/// A model on an engine, ready to be measured.
pub struct Bench<'a> {
    engine: &'a mut dyn Engine,
    tokenizer: Option<&'a Tokenizer>,
    generates: bool,
    case: Case,
    /// One text a sequence, when there is a tokenizer.
    texts: Vec<String>,
}

impl<'a> Bench<'a> {
    /// # Errors
    /// [`Kind::Input`] on a case of nothing; [`Kind::Limit`] when the engine holds fewer positions or sequences.
    pub fn new(
        model: &Model,
        engine: &'a mut dyn Engine,
        tokenizer: Option<&'a Tokenizer>,
        case: Case,
    ) -> Result<Self> {
        let (task, causal) = (model.task(), model.hparams().causal);
        for (name, value) in [("--prompt", case.prompt), ("--batch", case.batch), ("--runs", case.runs)] {
            if value == 0 {
                return Err(Error::new(Kind::Input, name, "is 0; give at least 1"));
            }
        }
        if generates(task, causal) && case.generate == 0 {
            return Err(Error::new(
                Kind::Input,
                "--generate",
                "is 0; the first token is part of every run, give at least 1",
            ));
        }
        let (needed, room) = (case.ctx(task, causal), engine.capacity().min(model.hparams().n_ctx));
        if needed > room {
            let message = format!("a run takes {needed} positions, the model has {room}; lower --prompt or --generate");
            return Err(Error::new(Kind::Limit, "--prompt", message));
        }
        if case.batch > engine.n_seqs() {
            let message = format!("{} sequences, the engine was set up for {}", case.batch, engine.n_seqs());
            return Err(Error::new(Kind::Limit, "--batch", message));
        }
        let texts = match tokenizer {
            Some(tokenizer) => {
                (0..case.batch).map(|seq| text_of(tokenizer, case.prompt, seq)).collect::<Result<_>>()?
            }
            None => Vec::new(),
        };
        Ok(Self { engine, tokenizer, generates: generates(task, causal), case, texts })
    }

    /// Runs the case; `on_run` hears after each run how many are done, warm-ups included.
    ///
    /// # Errors
    /// `Missing` on a platform without a clock; what the engine gives.
    pub fn measure(&mut self, on_run: &mut dyn FnMut(usize)) -> Result<Measurement> {
        if !crate::clock::THERE {
            return Err(Error::new(
                Kind::Missing,
                "clock",
                "this platform has none to measure by; time it from outside",
            ));
        }
        let mut runs = Vec::with_capacity(self.case.warmups + self.case.runs);
        let mut meter = None;
        for done in 1..=self.case.warmups + self.case.runs {
            if done == self.case.warmups + 1 {
                meter = Meter::start(Path::new(energy::POWERCAP));
            }
            runs.push(self.run()?);
            on_run(done);
        }
        let energy = meter.and_then(|m| m.stop());
        let cold_first_ms = runs.first().map_or(0.0, |r: &Run| r.first_ms);
        let (case, generates, tokenized) = (self.case, self.generates, self.tokenizer.is_some());
        Ok(Measurement { case, generates, tokenized, cold_first_ms, runs: runs.split_off(case.warmups), energy })
    }

    fn run(&mut self) -> Result<Run> {
        let Case { generate, batch, .. } = self.case;
        (0..batch).for_each(|seq| self.engine.truncate(seq, 0));
        let mut out = Run::default();
        let mut rows = Vec::new(); // (batch, output_dim)
        let mut samplers = vec![Sampler::new(Sampling::default())?; batch];

        let start = Instant::now();
        let mut ids = self.prompts()?; // batch of (prompt)
        out.engine.prompt_ms = self.prefill(&ids, &mut rows)?;
        if !self.generates {
            out.first_ms = milliseconds(start);
            return Ok(out);
        }
        let mut streams: Vec<_> = (0..batch).map(|_| self.tokenizer.map(PieceStream::new)).collect();
        for step in 0..generate {
            if step > 0 {
                let begun = Instant::now();
                let last: Vec<[u32; 1]> = ids.iter().map(|ids| [ids.last().copied().unwrap_or_default()]).collect();
                let steps: Vec<Step> = (0..batch).map(|seq| run_of(seq, &last[seq], Rows::Last)).collect();
                self.engine.forward(&steps, &mut rows)?;
                out.engine.decode_ms += milliseconds(begun);
                choose(&mut rows, &mut ids, &mut samplers, &mut streams)?;
                out.itl_ms.push(milliseconds(begun));
            } else {
                choose(&mut rows, &mut ids, &mut samplers, &mut streams)?;
                out.first_ms = milliseconds(start);
            }
        }
        Ok(out)
    }

    /// Exactly `prompt` ids a sequence: the text's own, as long as the tokenizer gives them.
    fn prompts(&self) -> Result<Vec<Vec<u32>>> {
        let n = self.case.prompt;
        let Some(tokenizer) = self.tokenizer else {
            let vocabulary = self.engine.hparams().n_vocab as u32;
            let id = |seq: usize, i: usize| (7 * i + seq) as u32 % vocabulary;
            return Ok((0..self.case.batch).map(|seq| (0..n).map(|i| id(seq, i)).collect()).collect());
        };
        let mut all = Vec::with_capacity(self.texts.len());
        for text in &self.texts {
            let mut ids = tokenizer.encode(text, true)?;
            // The last word may be cut into more tokens than there is room for, or fewer.
            while ids.len() < n {
                ids.push(ids.last().copied().unwrap_or_default());
            }
            ids.truncate(n);
            all.push(ids);
        }
        Ok(all)
    }

    /// Reads all prompts; the time of the forwards, in ms.
    fn prefill(&mut self, ids: &[Vec<u32>], rows: &mut Vec<f32>) -> Result<f64> {
        let begun = Instant::now();
        // A model that does not generate sees a text as a whole.
        let stretch = if self.generates { PREFILL } else { self.case.prompt };
        for from in (0..self.case.prompt).step_by(stretch) {
            let to = (from + stretch).min(self.case.prompt);
            let wanted = if to == self.case.prompt { Rows::Last } else { Rows::None };
            let steps: Vec<Step> =
                ids.iter().enumerate().map(|(seq, ids)| run_of(seq, &ids[from..to], wanted)).collect();
            self.engine.forward(&steps, rows)?;
        }
        Ok(milliseconds(begun))
    }
}

fn run_of(seq: usize, tokens: &[u32], rows: Rows) -> Step<'_> {
    Step { seq, tokens, types: None, rows }
}

/// One id a sequence from its row, and the text of the piece.
fn choose(
    rows: &mut [f32],
    ids: &mut [Vec<u32>],
    samplers: &mut [Sampler],
    streams: &mut [Option<PieceStream>],
) -> Result<()> {
    let width = rows.len() / ids.len();
    for (((row, ids), sampler), stream) in rows.chunks_mut(width).zip(ids).zip(samplers).zip(streams) {
        let id = sampler.next(row, ids)?;
        ids.push(id);
        if let Some(stream) = stream {
            std::hint::black_box(stream.push(id));
        }
    }
    Ok(())
}

/// A text that the tokenizer cuts into about `n` tokens, another one for every sequence.
fn text_of(tokenizer: &Tokenizer, n: usize, seq: usize) -> Result<String> {
    let words: Vec<&str> = TEXT.split_inclusive(' ').collect();
    let mut text = String::new();
    let mut enough = n;
    loop {
        // A token is a character at least, so this ends.
        while text.len() < enough {
            text.extend((0..words.len()).map(|i| words[(i + 3 * seq) % words.len()]));
        }
        let encoding = tokenizer.encode_with_offsets(&text, true)?;
        if encoding.ids.len() >= n {
            let end = encoding.offsets[..n].iter().map(|r| r.end).max().unwrap_or(0);
            text.truncate(end);
            return Ok(text);
        }
        enough = text.len() * 2;
    }
}

fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prompt_shrinks_to_the_room_that_generation_leaves() {
        let case = Case { prompt: 128, generate: 32, ..Case::default() };
        assert_eq!(case.within(Task::Generate, true, 128).prompt, 96);
        assert_eq!(case.within(Task::Classify, true, 128).prompt, 128);
        assert_eq!(case.within(Task::Generate, true, 4096).prompt, 128);
        assert_eq!(case.within(Task::Generate, true, 8).prompt, 1); // refused later, with both numbers
    }
}
