//! Prompt -> prefill -> decode -> whole UTF-8 pieces; a text -> labels; a question -> a span. One sequence at a time, or
//! several side by side: [`batch`].
//!
//! A session owns an engine and remembers which tokens its caches hold, so a prompt that begins like an earlier one is
//! read only from where they part: [`slots`].

mod adapters;
mod answer;
pub mod batch;
mod progress;
mod slots;
mod stop;
mod text;

use std::ops::ControlFlow;
use std::sync::Arc;

pub use crate::chat::chat_ids;
#[cfg(feature = "constrain")]
use crate::constrain::Grammar;
use crate::engine::{Backend, Engine, EngineOptions, KvType, Rows, Run};
use crate::error::{Error, Kind, Result};
use crate::model::{Model, Task};
use crate::sample::{Sampling, softmax};
use crate::tokenizer::Tokenizer;
#[cfg(feature = "server")]
pub(crate) use answer::Search;
pub use answer::{Answer, MAX_WRITTEN, Span, best_span};
use progress::Progress;
use slots::Slots;

/// Prompt tokens between two looks at whether somebody still waits.
const PREFILL: usize = 256;
/// Context where none is asked for: the model's own, up to this many tokens, since the cache is allocated at once.
const DEFAULT_CTX: usize = 4096;

/// How a session is set up.
#[derive(Debug, Clone)]
pub struct SessionOptions {
    /// Where to compute.
    pub backend: Backend,
    /// Tokens that prompt and answer may hold together; `None` is the model's own context, at most 4096.
    pub ctx: Option<usize>,
    /// Threads that compute; `None` is as many as the process may really use.
    pub threads: Option<usize>,
    /// Type of the key and value cache.
    pub kv: KvType,
}

impl Default for SessionOptions {
    fn default() -> Self {
        Self { backend: Backend::Cpu, ctx: None, threads: None, kv: KvType::F16 }
    }
}

impl SessionOptions {
    /// The engine's options for `n_seqs` sequences of `model`.
    pub fn engine(&self, model: &Model, n_seqs: usize) -> EngineOptions {
        let cores = || std::thread::available_parallelism().map_or(1, |n| n.get());
        EngineOptions {
            backend: self.backend,
            threads: self.threads.unwrap_or_else(cores),
            ctx: self.ctx.unwrap_or(model.hparams().n_ctx.min(DEFAULT_CTX)),
            n_seqs,
            kv: self.kv,
        }
    }
}

/// What to generate, and when to stop.
#[derive(Debug, Clone)]
pub struct GenerateOptions {
    /// At most so many tokens; the room left in the context bounds it too.
    pub max_tokens: usize,
    /// How ids are chosen.
    pub sampling: Sampling,
    /// Texts that end the answer; they are not part of it, even where they span tokens.
    pub stop: Vec<String>,
    /// Ids that end the answer; `None` is the tokenizer's own set, empty never stops.
    pub stop_ids: Option<Vec<u32>>,
    /// Log-probabilities of each token and of this many of the likeliest, as the model alone has them: before biases,
    /// penalties and constraints.
    pub logprobs: Option<usize>,
    /// The answer is a text of its own (a chat turn), not the prompt's continuation: a SentencePiece space before its first
    /// word is dropped, unless a grammar says how it begins.
    pub own_text: bool,
    /// What the text must be. It ends once it is whole and nothing can follow; where `max_tokens` comes first, it is the
    /// beginning of such a text.
    #[cfg(feature = "constrain")]
    pub grammar: Option<Grammar>,
    /// Control tokens that the text shows all the same, such as the mark of a tool's call.
    #[cfg(feature = "constrain")]
    pub show: Vec<u32>,
}

impl Default for GenerateOptions {
    fn default() -> Self {
        Self {
            max_tokens: 256,
            sampling: Sampling::default(),
            stop: Vec::new(),
            stop_ids: None,
            logprobs: None,
            own_text: false,
            #[cfg(feature = "constrain")]
            grammar: None,
            #[cfg(feature = "constrain")]
            show: Vec::new(),
        }
    }
}

/// Log-probabilities, in nats, at one position.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenLogprobs {
    /// Of the token that was taken.
    pub logprob: f64,
    /// The likeliest tokens, likeliest first.
    pub top: Vec<(u32, f64)>,
}

/// What a generation gives as it goes. Both fields may be empty: between stretches of a long prompt, and while a character
/// or a stop string is unfinished.
#[derive(Debug, Clone)]
pub struct Piece<'a> {
    /// The token just taken.
    pub token: Option<u32>,
    /// Text that is whole and cannot become a stop string.
    pub text: &'a str,
    /// When asked for.
    pub logprobs: Option<TokenLogprobs>,
}

/// Why a generation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishReason {
    /// The model, or a stop string, ended it.
    Stop,
    /// `max_tokens`, or the context, was full.
    Length,
    /// The caller broke off.
    Cancelled,
}

impl FinishReason {
    /// `stop`, `length` or `cancelled`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::Cancelled => "cancelled",
        }
    }
}

/// Clocks of one generation; all 0 on a platform that has none (`wasm32-unknown-unknown`).
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Timings {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Of these, tokens that the cache still held.
    pub cached_tokens: usize,
    /// From the call to the first token.
    pub ttft_ms: f64,
    /// Tokens after the first, a second; `None` with fewer than two.
    pub decode_tokens_per_s: Option<f64>,
    /// Time of each token after the first.
    pub itl_ms: Vec<f64>,
}

/// A finished generation.
#[derive(Debug, Clone, PartialEq)]
pub struct Generation {
    /// Without the id that ended it.
    pub token_ids: Vec<u32>,
    /// Without the string that ended it.
    pub text: String,
    /// Why it ended.
    pub finish_reason: FinishReason,
    /// How long it took.
    pub timings: Timings,
}

/// A label with its probability.
#[derive(Debug, Clone, PartialEq)]
pub struct LabelScore {
    /// As the model names it.
    pub label: String,
    /// In [0, 1]; all labels sum to 1.
    pub score: f32,
}

/// One engine.
pub struct Session {
    engine: Box<dyn Engine>,
    tokenizer: Option<Arc<Tokenizer>>,
    task: Task,
    labels: Vec<String>,
    slots: Slots,
    n_adapters: usize,
    /// Rows of the last step of a batch, kept for their memory.
    rows: Vec<f32>,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Session({:?}, {} of {} tokens)", self.task, self.slots.len(), self.capacity())
    }
}

impl Session {
    /// Loads `model` into an engine, and allocates its cache.
    /// # Errors
    /// As [`Model::engine`]; a malformed tokenizer, while a missing one only rules out text.
    pub fn new(model: &Model, options: &SessionOptions) -> Result<Self> {
        Self::with_slots(model, options, 1)
    }

    /// The same with `n` caches, each of the whole context: see [`Session::take_slot`].
    /// # Errors
    /// As [`Session::new`].
    pub fn with_slots(model: &Model, options: &SessionOptions, n: usize) -> Result<Self> {
        let tokenizer = match model.tokenizer() {
            Ok(tokenizer) => Some(tokenizer),
            Err(e) if e.kind() == Kind::Missing => None,
            Err(e) => return Err(e),
        };
        let engine = model.engine(&options.engine(model, n))?;
        Ok(Self::from_parts(engine, tokenizer, model.task(), model.labels().to_vec()))
    }

    /// A session on an engine that is already there, with a cache for each of its sequences.
    pub fn from_parts(
        engine: Box<dyn Engine>,
        tokenizer: Option<Arc<Tokenizer>>,
        task: Task,
        labels: Vec<String>,
    ) -> Self {
        let slots = Slots::new(engine.n_seqs());
        Self { engine, tokenizer, task, labels, slots, n_adapters: 0, rows: Vec::new() }
    }

    /// Tokens that prompt and answer may hold together.
    pub fn capacity(&self) -> usize {
        self.engine.capacity()
    }

    /// See [`Engine::runs_on`].
    pub fn runs_on(&self) -> Option<String> {
        self.engine.runs_on()
    }

    /// What the model is for.
    pub fn task(&self) -> Task {
        self.task
    }

    /// Text <-> ids of the model.
    /// # Errors
    /// [`Kind::Missing`] when the model carries no tokenizer.
    pub fn tokenizer(&self) -> Result<&Arc<Tokenizer>> {
        self.tokenizer.as_ref().ok_or_else(|| {
            Error::new(Kind::Missing, "tokenizer", "the model carries no tokenizer, so it takes token ids and no text")
        })
    }

    /// Forgets what the cache in use holds.
    pub fn reset(&mut self) {
        if !self.slots.find_idle() {
            return; // all are held by generations that go on
        }
        self.engine.truncate(self.slots.seq(), 0);
        self.slots.tokens().clear();
    }

    /// Continues `prompt`. `on_piece` sees every token as it comes and breaks the generation off by its answer.
    /// # Errors
    /// [`Kind::Limit`] when the prompt leaves no room in the context; [`Kind::Input`] on an empty prompt, a number out of
    /// range, or a model that does not generate; what the engine gives.
    pub fn generate(
        &mut self,
        prompt: &[u32],
        options: &GenerateOptions,
        on_piece: &mut dyn FnMut(&Piece) -> ControlFlow<()>,
    ) -> Result<Generation> {
        self.may_generate(prompt)?;
        self.find_idle()?;
        let generation = self.run(prompt, options, on_piece);
        if generation.is_err() {
            self.reset(); // the cache may hold half a step
        }
        generation
    }

    fn run(
        &mut self,
        prompt: &[u32],
        options: &GenerateOptions,
        on_piece: &mut dyn FnMut(&Piece) -> ControlFlow<()>,
    ) -> Result<Generation> {
        let mut one = Progress::new(self.tokenizer.clone(), self.capacity(), prompt, options)?;
        if one.wants_nothing() {
            return Ok(one.finish());
        }
        self.settle(self.slots.seq(), self.slots.adapter)?;
        one.cached(self.keep_common(prompt));
        let mut row = Vec::new(); // (V)
        loop {
            let (tokens, rows) = one.next(PREFILL);
            let n = tokens.len();
            self.step(tokens, rows, &mut row)?;
            let row = (rows == Rows::Last).then_some(row.as_mut_slice());
            if one.take(n, row, on_piece)?.is_break() {
                return Ok(one.finish());
            }
        }
    }

    fn step(&mut self, tokens: &[u32], rows: Rows, out: &mut Vec<f32>) -> Result<()> {
        self.engine.forward(&[Run { seq: self.slots.seq(), tokens, types: None, rows }], out)?;
        self.slots.tokens().extend_from_slice(tokens);
        Ok(())
    }

    /// Keeps of the cache what `prompt` begins with, all but the last token, whose row is wanted.
    fn keep_common(&mut self, prompt: &[u32]) -> usize {
        let cached = self.slots.tokens();
        let common = prompt.iter().zip(&*cached).take_while(|(a, b)| a == b).count().min(prompt.len() - 1);
        cached.truncate(common);
        self.engine.truncate(self.slots.seq(), common);
        common
    }

    /// Labels of a text given as ids, with special tokens, likeliest first.
    /// # Errors
    /// [`Kind::Limit`] when it is longer than the context; [`Kind::Input`] when the model does not classify.
    pub fn classify(&mut self, ids: &[u32]) -> Result<Vec<LabelScore>> {
        self.must_be("classify", &[Task::Classify])?;
        let row = self.whole(ids, None, Rows::Last)?;
        Ok(self.labelled(&row))
    }

    /// What a row of a classifier says, likeliest first.
    pub(crate) fn labelled(&self, row: &[f32]) -> Vec<LabelScore> {
        let mut all: Vec<LabelScore> =
            self.labels.iter().cloned().zip(softmax(row)).map(|(label, score)| LabelScore { label, score }).collect();
        all.sort_by(|a, b| b.score.total_cmp(&a.score));
        all
    }

    /// The vector of a text given as ids, of length 1.
    /// # Errors
    /// As [`Session::classify`].
    pub fn embed(&mut self, ids: &[u32]) -> Result<Vec<f32>> {
        self.must_be("embed", &[Task::Embed])?;
        let mut row = self.whole(ids, None, Rows::Last)?;
        unit(&mut row);
        Ok(row)
    }

    /// Output rows of every position of `ids`, `(T, output_dim)`, from an empty cache; what `verify` compares.
    /// # Errors
    /// [`Kind::Limit`] when `ids` are more than the context holds.
    pub fn logits(&mut self, ids: &[u32], types: Option<&[u8]>) -> Result<Vec<f32>> {
        self.whole(ids, types, Rows::All)
    }

    /// Numbers in an output row.
    pub fn output_dim(&self) -> usize {
        self.engine.output_dim()
    }

    /// A whole sequence from an empty cache, which is empty again afterwards.
    fn whole(&mut self, ids: &[u32], types: Option<&[u8]>, rows: Rows) -> Result<Vec<f32>> {
        self.may_read(ids)?;
        self.find_idle()?;
        self.reset();
        self.settle(self.slots.seq(), self.slots.adapter)?;
        let mut out = Vec::new();
        let result = self.engine.forward(&[Run { seq: self.slots.seq(), tokens: ids, types, rows }], &mut out);
        self.reset();
        result.map(|()| out)
    }

    fn may_read(&self, ids: &[u32]) -> Result<()> {
        if ids.is_empty() {
            return Err(Error::new(Kind::Input, "text", "it has no tokens"));
        }
        if ids.len() > self.capacity() {
            return Err(too_long("text", ids.len(), self.capacity(), "is too long"));
        }
        Ok(())
    }

    fn may_generate(&self, prompt: &[u32]) -> Result<()> {
        self.must_be("generate", &[Task::Generate, Task::Answer])?;
        if prompt.is_empty() {
            return Err(Error::new(Kind::Input, "prompt", "it has no tokens"));
        }
        if prompt.len() >= self.capacity() {
            return Err(too_long("prompt", prompt.len(), self.capacity(), "leaves no room for an answer"));
        }
        Ok(())
    }

    fn find_idle(&mut self) -> Result<()> {
        match self.slots.find_idle() {
            true => Ok(()),
            false => Err(Error::new(Kind::Limit, "sequences", "all are held by generations that go on; end one first")),
        }
    }

    fn must_be(&self, verb: &str, tasks: &[Task]) -> Result<()> {
        if tasks.contains(&self.task) {
            return Ok(());
        }
        Err(Error::new(
            Kind::Input,
            "model",
            format!("its task is {:?}, so it cannot {verb}", self.task).to_lowercase(),
        ))
    }
}

/// Brings a vector to length 1.
pub(crate) fn unit(row: &mut [f32]) {
    let norm = row.iter().map(|&x| x as f64 * x as f64).sum::<f64>().sqrt();
    if norm > 0.0 {
        row.iter_mut().for_each(|x| *x = (*x as f64 / norm) as f32);
    }
}

fn too_long(what: &str, tokens: usize, capacity: usize, so: &str) -> Error {
    let message =
        format!("{tokens} tokens, but the context holds {capacity}: the {what} {so}; shorten it or raise --ctx");
    Error::new(Kind::Limit, what, message)
}
