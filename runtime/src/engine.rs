//! A batch of tokens in, output rows out: the only seam between backends.

pub mod cpu;
#[cfg(feature = "gpu")]
pub mod gpu;
#[cfg(feature = "ort")]
pub mod ort;

pub use crate::kv_cache::KvType;

use crate::error::{Error, Kind, Result};
use crate::model::Hparams;
use crate::model::adapter::Adapter;

/// Where the arithmetic is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Backend {
    /// Our own CPU kernels.
    #[default]
    Cpu,
    /// wgpu (feature `gpu`).
    Gpu,
    /// ONNX Runtime (feature `ort`).
    Ort,
}

impl Backend {
    /// As the command line spells it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Gpu => "gpu",
            Self::Ort => "ort",
        }
    }
}

/// Which positions of a run give output rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rows {
    /// None: the tokens only fill the cache.
    None,
    /// The last position; of an encoder that classifies or embeds, the sequence's one row.
    Last,
    /// Every position; of an encoder that classifies or embeds, again the sequence's one row.
    All,
}

/// Tokens appended to one sequence at its current length. Encoders take a whole sequence.
#[derive(Debug, Clone, Copy)]
pub struct Run<'a> {
    /// Slot of the sequence, from 0.
    pub seq: usize,
    /// Token ids.
    pub tokens: &'a [u32],
    /// Token types of an encoder (0 and 1); all 0 when absent.
    pub types: Option<&'a [u8]>,
    /// Which positions give output rows.
    pub rows: Rows,
}

impl Run<'_> {
    /// What every engine asks of a run.
    ///
    /// # Errors
    /// `Input` naming what the model or the engine does not have.
    pub(crate) fn check(&self, h: &Hparams, n_seqs: usize) -> Result<()> {
        let refuse = |place: &str, message: String| Err(Error::new(Kind::Input, place, message));
        if self.seq >= n_seqs {
            return refuse("sequence", format!("is {}, but the engine has {n_seqs}", self.seq));
        }
        if self.tokens.is_empty() {
            return refuse("tokens", "there are none".into());
        }
        if let Some(id) = self.tokens.iter().find(|id| **id as usize >= h.n_vocab) {
            return refuse("token id", format!("{id} is outside the vocabulary of {}", h.n_vocab));
        }
        if let Some(types) = self.types {
            if types.len() != self.tokens.len() {
                return refuse("token types", format!("there are {} for {} tokens", types.len(), self.tokens.len()));
            }
            // A tokenizer may tell two texts apart even where an encoder does not.
            let known = if h.n_token_types == 0 && !h.causal { usize::MAX } else { h.n_token_types.max(1) };
            if let Some(ty) = types.iter().find(|t| usize::from(**t) >= known) {
                return refuse("token type", format!("{ty}, but the model has {}", h.n_token_types.max(1)));
            }
        }
        Ok(())
    }
}

/// How an engine is set up.
#[derive(Debug, Clone, Copy)]
pub struct EngineOptions {
    /// Where to compute.
    pub backend: Backend,
    /// Threads that compute.
    pub threads: usize,
    /// Tokens a sequence may hold.
    pub ctx: usize,
    /// Sequences side by side.
    pub n_seqs: usize,
    /// Type of the cache.
    pub kv: KvType,
}

impl EngineOptions {
    /// What every engine asks of its options.
    ///
    /// # Errors
    /// `Limit` when they ask for no thread, sequence or context, or a longer context than the model has positions.
    pub(crate) fn check(&self, h: &Hparams) -> Result<()> {
        for (name, value) in [("threads", self.threads), ("ctx", self.ctx), ("sequences", self.n_seqs)] {
            if value == 0 {
                return Err(Error::new(Kind::Limit, name, "is 0; the least is 1"));
            }
        }
        if self.ctx > h.n_ctx {
            let message = format!("{} tokens, but the model has {} positions; lower --ctx", self.ctx, h.n_ctx);
            return Err(Error::new(Kind::Limit, "context", message));
        }
        Ok(())
    }
}

/// A backend with a model loaded and a cache allocated.
pub trait Engine: Send {
    /// Shape of the model.
    fn hparams(&self) -> &Hparams;
    /// What computes, where that is more than this program: a library and its version, a device.
    fn runs_on(&self) -> Option<String> {
        None
    }
    /// Numbers in an output row: the vocabulary, the labels, or 2 (start, end) for spans.
    fn output_dim(&self) -> usize;
    /// Runs all `runs` and replaces `out` by their rows, in order of runs and positions.
    ///
    /// # Errors
    /// `Limit` when a sequence would outgrow [`Engine::capacity`]; `Input` on a token id outside the vocabulary.
    fn forward(&mut self, runs: &[Run], out: &mut Vec<f32>) -> Result<()>;
    /// Tokens that a sequence holds.
    fn len(&self, seq: usize) -> usize;
    /// Forgets a sequence's tokens from position `len` on.
    fn truncate(&mut self, seq: usize, len: usize);
    /// Makes `to` hold the first `len` tokens of `from`, as if it had read them; `false` where the engine cannot, and `to` is
    /// then as before. Copied to itself, a sequence stays as it is: that only asks whether the engine can.
    fn copy(&mut self, _from: usize, _to: usize, _len: usize) -> bool {
        false
    }
    /// Tokens that a sequence may hold.
    fn capacity(&self) -> usize;
    /// Number of sequences.
    fn n_seqs(&self) -> usize;
    /// Takes an adapter beside the weights and gives its number, from 0; sequences do without until [`Engine::choose`].
    /// - `scale`: what α/r is multiplied by; 1 is as it was tuned
    ///
    /// # Errors
    /// `Input` or `Shape` for one that does not fit the model; `Input` from an engine that applies none.
    fn add_adapter(&mut self, _adapter: &Adapter, _scale: f32) -> Result<usize> {
        Err(no_adapters("the engine in use"))
    }
    /// What a sequence is computed with from here on: the adapter of a number, or the model alone. Several may be in one
    /// batch. A sequence that had another one forgets its tokens.
    ///
    /// # Errors
    /// `Input` for a sequence or a number that there is not.
    fn choose(&mut self, _seq: usize, adapter: Option<usize>) -> Result<()> {
        adapter.map_or(Ok(()), |_| Err(no_adapters("the engine in use")))
    }
    /// Whether no sequence holds a token.
    fn is_empty(&self) -> bool {
        (0..self.n_seqs()).all(|s| self.len(s) == 0)
    }
}

/// What an engine says that computes with the model's own weights alone.
pub(crate) fn no_adapters(engine: &str) -> Error {
    let message = "applies no adapters; use the engine cpu, or merge the adapter (`edgeft quantize RUN --type q8_0 --out model.gguf`)";
    Error::new(Kind::Input, engine, message)
}
