//! The CPU engine: weights stay where the file is mapped, activations meet them in the kernels.
//!
//! - [`linear`]: weight matrices times activations, on all threads;  [`adapters`]: what stands beside them
//! - [`ops`]: norms, rotary embedding, gates: what stands between two matrices
//! - [`llama`]: Llama, Mistral, Qwen2, Qwen3, Gemma 3, Phi-3, GPT-2;  [`bert`]: BERT, RoBERTa, DistilBERT
//!
//! A row of output depends on its own tokens alone: not on the number of threads, nor on what else is in the batch.

mod adapters;
pub(super) mod bert;
mod linear;
mod llama;
pub(super) mod ops;

use super::{Engine, EngineOptions, Rows, Run};
use crate::error::{Error, Kind, Result};
use crate::format::block::decode;
use crate::format::gguf::Array;
use crate::kernels::Kernels;
use crate::kv_cache::KvCache;
use crate::model::adapter::Adapter;
use crate::model::{Arch, Hparams, Model, Task};
use crate::threads::Pool;
use adapters::Adapters;
use bert::Bert;
use linear::{Compute, Linear, Watch};
use llama::Llama;
use ops::Norm;

/// A model on the CPU.
pub struct CpuEngine {
    model: Model,
    trunk: Trunk,
    compute: Compute,
    cache: KvCache,
    output_dim: usize,
}

enum Trunk {
    Llama(Box<Llama>),
    Bert(Box<Bert>),
}

impl CpuEngine {
    /// Looks up the weights, starts the threads, chooses the kernels.
    ///
    /// # Errors
    /// `Input` when the model is no GGUF file; `Limit` when the options ask for no thread, sequence or context, or a longer
    /// context than the model has positions; `Io` when a thread cannot be started.
    pub fn new(model: Model, options: &EngineOptions) -> Result<Self> {
        model.gguf()?; // this engine reads the tensors of a GGUF file
        let h = model.hparams();
        options.check(h)?;
        let pool = Pool::new(options.threads).map_err(|e| Error::io("threads", e))?;
        let output_dim = match (model.task(), h.arch) {
            (Task::Classify, _) => model.labels().len(),
            (Task::Answer, Arch::Bert) => 2,
            (Task::Embed, _) => h.hidden,
            (Task::Generate | Task::Answer, _) => h.n_vocab,
        };
        let trunk = match h.arch {
            Arch::Llama | Arch::Qwen2 | Arch::Qwen3 | Arch::Gemma3 | Arch::Phi3 | Arch::Gpt2 => {
                Trunk::Llama(Box::new(Llama::new(&model)?))
            }
            Arch::Bert => Trunk::Bert(Box::new(Bert::new(&model)?)),
            Arch::Onnx => return Err(Error::new(Kind::Input, "engine cpu", "has no kernels for an ONNX graph")),
        };
        let cache = KvCache::new(options.n_seqs, h.n_layers, h.n_kv_heads * h.head_dim, options.ctx, options.kv);
        let compute = Compute::new(Kernels::detect()?, pool, Adapters::new(options.n_seqs));
        Ok(Self { compute, trunk, cache, output_dim, model })
    }

    /// Reads one sequence and adds the squares of what went into each matrix of a block, by token as `weights` count it.
    ///
    /// # Errors
    /// What [`Engine::forward`] has; a weight for each token is missing.
    pub fn observe(&mut self, tokens: &[u32], types: Option<&[u8]>, weights: &[f32]) -> Result<()> {
        if weights.len() != tokens.len() {
            let message = format!("there are {} for {} tokens", weights.len(), tokens.len());
            return Err(Error::new(Kind::Input, "weights", message));
        }
        self.compute.watch.get_or_insert_default().weights = weights.to_vec();
        self.truncate(0, 0);
        // A decoder's head is not looked at, and an encoder's is small.
        let rows = if self.model.hparams().causal { Rows::None } else { Rows::Last };
        let done = self.forward(&[Run { seq: 0, tokens, types, rows }], &mut Vec::new());
        self.truncate(0, 0);
        if let Some(watch) = &mut self.compute.watch {
            watch.weights.clear(); // what is read from here on is not counted
        }
        done
    }

    /// What [`CpuEngine::observe`] has added: of each matrix its name, Σ weight x² by input column, and Σ weight.
    pub fn observed(&self) -> Vec<(String, Vec<f64>, f64)> {
        let tensors = self.model.gguf().map(|g| g.tensors.as_slice()).unwrap_or_default();
        let Some(Watch { sums, .. }) = &self.compute.watch else { return Vec::new() };
        let named = sums.iter().map(|(i, (sums, n))| (tensors[*i].name.clone(), sums.clone(), *n));
        named.filter(|(name, ..)| name.starts_with("blk.")).collect()
    }

    /// The instruction set in use.
    pub fn isa(&self) -> &'static str {
        self.compute.kernels.level().name()
    }
}

impl Engine for CpuEngine {
    fn hparams(&self) -> &Hparams {
        self.model.hparams()
    }

    fn output_dim(&self) -> usize {
        self.output_dim
    }

    fn forward(&mut self, runs: &[Run], out: &mut Vec<f32>) -> Result<()> {
        out.clear();
        for (i, run) in runs.iter().enumerate() {
            run.check(self.model.hparams(), self.cache.n_seqs())?;
            if runs[..i].iter().any(|r| r.seq == run.seq) {
                return Err(Error::new(Kind::Input, "sequence", format!("{} stands twice in one batch", run.seq)));
            }
            self.cache.reserve(run.seq, run.tokens.len())?;
        }
        self.compute.adapters.lay(runs, |run| run.tokens.len());
        match &mut self.trunk {
            Trunk::Llama(llama) => llama.forward(&self.model, &mut self.compute, &mut self.cache, runs, out),
            Trunk::Bert(bert) => {
                if runs.iter().any(|run| self.cache.len(run.seq) > 0) {
                    let message = "an encoder reads a text whole; forget the sequence first";
                    return Err(Error::new(Kind::Input, "sequence", message));
                }
                bert.forward(&self.model, &mut self.compute, runs, out)?;
                runs.iter().for_each(|run| self.cache.advance(run.seq, run.tokens.len()));
                Ok(())
            }
        }
    }

    fn len(&self, seq: usize) -> usize {
        self.cache.len(seq)
    }

    fn truncate(&mut self, seq: usize, len: usize) {
        self.cache.truncate(seq, len);
    }

    fn copy(&mut self, from: usize, to: usize, len: usize) -> bool {
        self.cache.copy(from, to, len)
    }

    fn capacity(&self) -> usize {
        self.cache.capacity()
    }

    fn n_seqs(&self) -> usize {
        self.cache.n_seqs()
    }

    fn add_adapter(&mut self, adapter: &Adapter, scale: f32) -> Result<usize> {
        let (places, n_tensors) = (adapter.places(&self.model)?, self.model.gguf()?.tensors.len());
        Ok(self.compute.adapters.push(adapter, scale, &places, n_tensors))
    }

    fn choose(&mut self, seq: usize, adapter: Option<usize>) -> Result<()> {
        if self.compute.adapters.choose(seq, adapter)? {
            self.cache.truncate(seq, 0); // what it holds was computed by other weights
        }
        Ok(())
    }
}

/// Finds tensors of a model.
pub(super) struct Finder<'a>(pub(super) &'a Model);

impl Finder<'_> {
    /// The matrix `{name}.weight` with `{name}.bias` if there is one.
    fn linear(&self, name: &str) -> Result<Linear> {
        let weight = format!("{name}.weight");
        let index =
            self.index(&weight).ok_or_else(|| Error::new(Kind::Input, format!("tensor `{weight}`"), "is missing"))?;
        Ok(Linear { index, rows: None, bias: self.maybe(&format!("{name}.bias")) })
    }

    /// Matrices of so many rows each that lie one below the other in `{name}.weight`.
    fn linears<const N: usize>(&self, name: &str, rows: [usize; N]) -> Result<[Linear; N]> {
        let whole = self.linear(name)?;
        let mut from = 0;
        Ok(rows.map(|n| {
            let rows = from..from + n;
            from += n;
            let bias = whole.bias.as_ref().map(|b| b[rows.clone()].to_vec());
            Linear { index: whole.index, rows: Some(rows), bias }
        }))
    }

    /// The norm `{name}`: a layer norm where `biased`.
    fn norm(&self, name: &str, biased: bool) -> Result<Norm> {
        let bias = if biased { Some(self.vector(&format!("{name}.bias"))?) } else { None };
        Ok(Norm { weight: self.vector(&format!("{name}.weight"))?, bias })
    }

    pub(super) fn index(&self, name: &str) -> Option<usize> {
        self.0.gguf().ok()?.tensors.iter().position(|t| t.name == name)
    }

    /// A small tensor as f32, if there is one.
    pub(super) fn maybe(&self, name: &str) -> Option<Vec<f32>> {
        let (info, bytes) = self.0.tensor(name)?;
        let mut x = vec![0.0; info.dims.iter().product::<u64>() as usize];
        decode(info.ty, bytes, &mut x);
        Some(x)
    }

    pub(super) fn vector(&self, name: &str) -> Result<Vec<f32>> {
        self.maybe(name).ok_or_else(|| Error::new(Kind::Input, format!("tensor `{name}`"), "is missing"))
    }

    /// A head that travels as an f32 array.
    pub(super) fn array(&self, key: &str) -> Result<Vec<f32>> {
        match self.0.gguf()?.array(key)? {
            Array::F32(v) => Ok(v.clone()),
            _ => Err(Error::new(Kind::Input, key, "is no array of f32")),
        }
    }
}

/// Rows of an f32 head array times one hidden state.
fn head(kernels: &Kernels, weight: &[f32], bias: Option<&[f32]>, x: &[f32], out: &mut Vec<f32>) {
    for (i, row) in weight.chunks(x.len()).enumerate() {
        out.push(kernels.dot_f32(row, x) + bias.map_or(0.0, |b| b[i]));
    }
}

/// x = x + y.
fn add(x: &mut [f32], y: &[f32]) {
    x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
}

/// Positions of a run that give rows.
pub(super) fn wanted(run: &Run) -> std::ops::Range<usize> {
    let n = run.tokens.len();
    match run.rows {
        Rows::None => n..n,
        Rows::Last => n - 1..n,
        Rows::All => 0..n,
    }
}
