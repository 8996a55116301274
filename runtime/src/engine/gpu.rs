//! The GPU engine, by wgpu: weights, activations and cache stay on the device; token ids go there, output rows come back.
//!
//! - [`device`]: a device chosen and watched;  [`pipelines`]: kernels compiled;  [`pass`]: kernels in a row, one submit
//! - [`weights`], [`load`]: tensors of the file on the device;  [`cache`]: what a sequence remembers
//! - [`ops`]: an operation each;  [`llama`]: Llama, Mistral, Qwen2;  [`bert`]: BERT
//! - `kernels/*.wgsl`, `weights/*.wgsl`: the arithmetic, in f32 throughout
//!
//! Nothing but what WebGPU promises is used: no subgroups, no f16 arithmetic, 16 KiB of workgroup memory, 6 buffers a kernel.
//! A matrix that is larger than a binding is held in parts. Sums run in another order than on the CPU, and in another order
//! for many tokens than for few, so that rows agree within rounding and not to the bit.

mod bert;
mod cache;
mod device;
mod llama;
mod load;
mod ops;
mod pass;
mod pipelines;
mod weights;

use super::{Engine, EngineOptions, Run};
use crate::error::{Error, Kind, Result};
use crate::model::{Arch, Hparams, Model};
use bert::Bert;
use cache::Cache;
use device::Gpu;
use llama::Llama;
use pass::Runner;
use std::collections::BTreeMap;
use weights::Form;

/// What computes, as its driver names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Adapter {
    /// Name of the chip.
    pub name: String,
    /// `vulkan`, `metal`, `dx12`.
    pub backend: String,
    /// Name and version of the driver.
    pub driver: String,
    /// Whether it is the CPU in disguise.
    pub software: bool,
}

impl std::fmt::Display for Adapter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}, {}, {}", self.name, self.backend, self.driver)?;
        if self.software { f.write_str(", in software") } else { Ok(()) }
    }
}

/// The adapter that `--engine gpu` would use.
///
/// # Errors
/// `Missing` when there is none.
pub fn describe() -> Result<Adapter> {
    Ok(device::describe(&device::adapter()?.get_info()))
}

/// What this engine has no kernels for yet.
///
/// # Errors
/// `Input` naming the family, and the engine that takes it.
fn refuse(model: &Model) -> Result<()> {
    let h = model.hparams();
    let name = match h.arch {
        Arch::Llama | Arch::Qwen2 => return Ok(()),
        Arch::Bert if h.n_token_types > 0 => return Ok(()),
        Arch::Bert => "bert without token types (distilbert)",
        other => other.name(),
    };
    Err(Error::new(Kind::Input, "engine gpu", format!("has no kernels for {name} yet; use --engine cpu")))
}

/// A model on a GPU.
pub struct GpuEngine {
    model: Model,
    trunk: Trunk,
    runner: Runner,
    cache: Cache,
}

enum Trunk {
    Llama(Box<Llama>),
    Bert(Box<Bert>),
}

impl GpuEngine {
    /// Opens the adapter that is fastest, and puts the model there.
    ///
    /// # Errors
    /// `Missing` when there is no adapter; `Limit` when the model or the options ask for more than it has; `Io` when its
    /// driver fails.
    pub fn new(model: Model, options: &EngineOptions) -> Result<Self> {
        model.gguf()?;
        options.check(model.hparams())?;
        refuse(&model)?;
        Self::on(Gpu::open(|_| ())?, model, options)
    }

    fn on(gpu: Gpu, model: Model, options: &EngineOptions) -> Result<Self> {
        let h = model.hparams();
        let mut runner = Runner::new(gpu)?;
        let layers = if h.arch == Arch::Bert { 0 } else { h.n_layers };
        let cache = Cache::new(options.n_seqs, layers, h.n_kv_heads * h.head_dim, options.ctx, options.kv);
        let trunk = match h.arch {
            Arch::Llama | Arch::Qwen2 => {
                let most_tokens = options.ctx.saturating_mul(options.n_seqs);
                Trunk::Llama(Box::new(Llama::new(&model, &mut runner, &cache, most_tokens)?))
            }
            Arch::Bert => Trunk::Bert(Box::new(Bert::new(&model, &mut runner, options.ctx)?)),
            _ => return Err(Error::new(Kind::Input, "engine gpu", "has no kernels for an ONNX graph")),
        };
        // Weights are on their way; what the driver has against them is told now.
        runner.gpu.queue.submit([]);
        runner.gpu.wait()?;
        Ok(Self { model, trunk, runner, cache })
    }

    /// What computes.
    pub fn adapter(&self) -> &Adapter {
        self.runner.gpu.adapter()
    }
}

impl Engine for GpuEngine {
    fn hparams(&self) -> &Hparams {
        self.model.hparams()
    }

    fn output_dim(&self) -> usize {
        match &self.trunk {
            Trunk::Llama(llama) => llama.output_dim(),
            Trunk::Bert(bert) => bert.output_dim(),
        }
    }

    fn forward(&mut self, runs: &[Run], out: &mut Vec<f32>) -> Result<()> {
        out.clear();
        self.runner.gpu.check()?;
        let h = self.model.hparams();
        for (i, run) in runs.iter().enumerate() {
            run.check(h, self.cache.n_seqs())?;
            if runs[..i].iter().any(|r| r.seq == run.seq) {
                return Err(Error::new(Kind::Input, "sequence", format!("{} stands twice in one batch", run.seq)));
            }
            if self.cache.reserve(&self.runner.gpu, run.seq, run.tokens.len())? {
                self.runner.forget_buffers();
            }
        }
        match &mut self.trunk {
            Trunk::Llama(llama) => llama.forward(h, &mut self.runner, &mut self.cache, runs, out),
            Trunk::Bert(bert) => {
                if runs.iter().any(|r| self.cache.len(r.seq) > 0) {
                    let message = "an encoder reads a text whole; forget the sequence first";
                    return Err(Error::new(Kind::Input, "sequence", message));
                }
                bert.forward(h, &mut self.runner, runs, out)?;
                runs.iter().for_each(|r| self.cache.advance(r.seq, r.tokens.len()));
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

    fn capacity(&self) -> usize {
        self.cache.capacity()
    }

    fn n_seqs(&self) -> usize {
        self.cache.n_seqs()
    }

    fn add_adapter(&mut self, _: &crate::model::adapter::Adapter, _: f32) -> Result<usize> {
        Err(super::no_adapters("engine gpu"))
    }

    fn runs_on(&self) -> Option<String> {
        let widened = widened(&self.model);
        let adapter = self.adapter();
        Some(if widened.is_empty() { adapter.to_string() } else { format!("{adapter}; held as f32: {widened}") })
    }
}

/// Types of a model's tensors for which there are no kernels, each with the number of its tensors.
fn widened(model: &Model) -> String {
    let mut types = BTreeMap::new();
    for tensor in model.gguf().iter().flat_map(|gguf| &gguf.tensors).filter(|t| Form::of(t.ty).ty() != t.ty) {
        *types.entry(tensor.ty).or_insert(0) += 1;
    }
    types.into_iter().map(|(ty, n)| format!("{n} of {ty}")).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    mod engine;

    use super::*;
    use std::io::Write;

    /// A device for a test. Without an adapter the test says so and has nothing to do, unless EDGEFT_REQUIRE names `gpu`.
    pub fn device(test: &str, lower: impl FnOnce(&mut wgpu::Limits)) -> Option<Gpu> {
        match Gpu::open(lower) {
            Ok(gpu) => Some(gpu),
            Err(e) => {
                let required = std::env::var("EDGEFT_REQUIRE").unwrap_or_default();
                assert!(e.kind() == Kind::Missing && !required.split(',').any(|r| r == "gpu"), "{test}: {e}");
                // Not by `eprintln!`, which tests that pass swallow.
                let _ = writeln!(std::io::stderr(), "skipped {test}: {e}");
                None
            }
        }
    }

    /// Numbers that look random and are always the same.
    pub struct Draw(pub u64);

    impl Draw {
        /// 0..n.
        pub fn below(&mut self, n: u64) -> u64 {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (self.0 >> 33) % n
        }

        /// -1..1.
        pub fn number(&mut self) -> f32 {
            self.below(1 << 20) as f32 / (1 << 19) as f32 - 1.0
        }

        /// Some of them.
        pub fn numbers(&mut self, n: usize) -> Vec<f32> {
            (0..n).map(|_| self.number()).collect()
        }
    }
}
