//! ONNX Runtime as an engine: the graph of an ONNX folder computes, this file feeds it and reads its rows.
//!
//! - [`library`]: the library is loaded while the program runs
//! - [`cache`]: keys and values stay ONNX Runtime's own tensors
//! - [`rows`]: outputs become rows
//!
//! Sequences of a batch go through the graph one after another, so a row of output depends on its own tokens alone.

mod cache;
pub mod library;
mod rows;

use super::{Engine, EngineOptions, Rows, Run};
use crate::error::{Error, Kind, Result};
use crate::format::onnx::{Dim, ElementType, Port};
use crate::model::onnx::ports::{CachePort, LayerPorts, Output, Ports};
use crate::model::{Hparams, Model};
use cache::{Memory, Shape};
use library::Library;
use ort::memory::MemoryInfo;
use ort::session::{IoBinding, Session};
use ort::value::{DynValue, Tensor};
use rows::append_rows;

/// From this version on, GroupQueryAttention is given several tokens behind a past (1.20 and 1.21 were tried, with the tests);
/// older ones are given them one by one.
const SEVERAL_BEHIND_A_PAST: u32 = 20;

/// An ONNX folder on ONNX Runtime.
pub struct OrtEngine {
    model: Model,
    library: &'static Library,
    session: Session,
    binding: IoBinding,
    /// Of keys and values in turn, by layer; empty when the graph remembers nothing.
    shapes: Vec<Shape>,
    sequences: Vec<Sequence>,
    ctx: usize,
    output_dim: usize,
}

struct Sequence {
    memory: Memory,
    /// The tokens so far, where the graph remembers nothing and reads them all again.
    tokens: Vec<u32>,
}

impl OrtEngine {
    /// Hands the graph to ONNX Runtime. The graph fixes the type of the cache; `options.kv` is not asked.
    ///
    /// # Errors
    /// `Missing` when no library is loaded, see [`library::load`]; `Input` when the model is no ONNX folder or the library does
    /// not take its graph; `Limit` as every engine.
    pub fn new(model: Model, options: &EngineOptions) -> Result<Self> {
        let folder = model.onnx()?;
        let h = model.hparams();
        options.check(h)?;
        let library = library::loaded()?;
        let file = folder.file();
        let built = || -> std::result::Result<Session, ort::Error> {
            let builder = Session::builder(&library.environment)?
                .with_intra_threads(options.threads)?
                .with_inter_threads(1)?
                // A device has other work for its cores than to wait in a loop.
                .with_intra_op_spinning(false)?
                .with_inter_op_spinning(false)?
                // Every step has another length: a plan for each would only fill the memory.
                .with_memory_pattern(false)?;
            // On x86 CPUs without VNNI, products of 8-bit numbers saturate: other numbers, not just slower ones. The remedy makes
            // weights in blocks fail (in 1.32: a zero point of the wrong rank), whose products are other ones anyway.
            let mut builder = if folder.blocked() { builder } else { builder.with_precise_qmm()? };
            builder.commit_from_file(file)
        };
        let session = built().map_err(|e| {
            let message = format!("ONNX Runtime {} does not take the graph: {}", library.version(), line(&e));
            Error::new(Kind::Input, file.display().to_string(), message)
        })?;
        let binding = session.create_binding().map_err(told)?;
        let ports = folder.ports();
        let shape = |port: &CachePort| Shape {
            heads: port.n_heads.unwrap_or(h.n_kv_heads),
            dim: port.head_dim.unwrap_or(h.head_dim),
            ty: port.ty,
        };
        let shapes = ports.cache.iter().flat_map(|layer| [shape(&layer.key), shape(&layer.value)]).collect();
        let output_dim = match &ports.output {
            Output::Tokens { .. } => h.n_vocab,
            Output::Labels { .. } => model.labels().len(),
            Output::Span { .. } => 2,
            Output::States { .. } => h.hidden,
            Output::Vector { vector } => vector.dims.get(1).and_then(Dim::fixed).map_or(h.hidden, |n| n as usize),
        };
        let sequence = || Sequence { memory: Memory::new(), tokens: Vec::new() };
        let sequences = (0..options.n_seqs).map(|_| sequence()).collect();
        let ctx = options.ctx;
        Ok(Self { library, session, binding, shapes, sequences, ctx, output_dim, model })
    }

    /// One run, in as many steps as the library takes.
    fn run(&mut self, ports: &Ports, run: &Run, out: &mut Vec<f32>) -> Result<()> {
        let behind = self.sequences[run.seq].memory.len > 0 && ports.in_place;
        if behind && run.tokens.len() > 1 && self.library.minor() < SEVERAL_BEHIND_A_PAST {
            let last = run.tokens.len() - 1;
            for (i, token) in run.tokens.chunks(1).enumerate() {
                let rows = if run.rows == Rows::Last && i < last { Rows::None } else { run.rows };
                self.step(ports, &Run { tokens: token, rows, ..*run }, out)?;
            }
            return Ok(());
        }
        self.step(ports, run, out)
    }

    /// One pass through the graph.
    fn step(&mut self, ports: &Ports, run: &Run, out: &mut Vec<f32>) -> Result<()> {
        let remembers = !ports.cache.is_empty();
        let sequence = &mut self.sequences[run.seq];
        let n = run.tokens.len();
        let reread; // all tokens, where the graph remembers nothing
        let (tokens, past) = if remembers {
            (run.tokens, sequence.memory.len)
        } else {
            reread = [sequence.tokens.as_slice(), run.tokens].concat();
            (reread.as_slice(), 0)
        };
        if remembers || run.rows != Rows::None {
            self.binding.clear();
            bind_text(&mut self.binding, ports, tokens, run.types, past)?;
            let cpu = MemoryInfo::default();
            if remembers {
                let room = ports.in_place.then_some(self.ctx);
                sequence.memory.ready(&self.shapes, n, room)?;
                bind_memory(&mut self.binding, ports, &mut sequence.memory, &cpu)?;
            }
            if run.rows != Rows::None {
                for port in ports.output.ports() {
                    self.binding.bind_output_to_device(port.name.as_str(), &cpu).map_err(told)?;
                }
            }
            let mut outputs = self.session.run_binding(&self.binding).map_err(told)?;
            let mut take = |name: &str| {
                outputs
                    .remove(name)
                    .ok_or_else(|| Error::new(Kind::Shape, format!("output `{name}`"), "the graph did not give it"))
            };
            if run.rows != Rows::None {
                let values: Result<Vec<DynValue>> = ports.output.ports().iter().map(|p| take(&p.name)).collect();
                let kept = tokens.len() - n;
                append_rows(&ports.output, &values?, self.output_dim, (kept, n), run.rows, out)?;
            }
            if remembers && !ports.in_place {
                let presents: Result<Vec<DynValue>> = cache_ports(&ports.cache).map(|p| take(&p.present)).collect();
                let presents = presents?;
                must_have_grown(ports, &presents, past + n)?;
                sequence.memory.take(presents);
            }
            drop(outputs);
            self.binding.clear(); // pasts are not held longer than they are needed
        }
        if !remembers {
            sequence.tokens.extend_from_slice(run.tokens);
        }
        sequence.memory.advance(n, !ports.in_place);
        Ok(())
    }
}

impl Engine for OrtEngine {
    fn hparams(&self) -> &Hparams {
        self.model.hparams()
    }

    fn runs_on(&self) -> Option<String> {
        Some(format!("ONNX Runtime {}", self.library.version()))
    }

    fn output_dim(&self) -> usize {
        self.output_dim
    }

    fn forward(&mut self, runs: &[Run], out: &mut Vec<f32>) -> Result<()> {
        out.clear();
        let model = self.model.clone();
        let (h, ports) = (model.hparams(), model.onnx()?.ports());
        for (i, run) in runs.iter().enumerate() {
            run.check(h, self.sequences.len())?;
            if runs[..i].iter().any(|r| r.seq == run.seq) {
                return Err(Error::new(Kind::Input, "sequence", format!("{} stands twice in one batch", run.seq)));
            }
            let (len, n, ctx) = (self.len(run.seq), run.tokens.len(), self.ctx);
            if !h.causal && len > 0 {
                let message = "an encoder reads a text whole; forget the sequence first";
                return Err(Error::new(Kind::Input, "sequence", message));
            }
            if len + n > ctx {
                let message =
                    format!("{len} tokens and {n} more, but the context holds {ctx}; shorten the text or raise --ctx");
                return Err(Error::new(Kind::Limit, "context", message));
            }
        }
        runs.iter().try_for_each(|run| self.run(ports, run, out))
    }

    fn len(&self, seq: usize) -> usize {
        self.sequences[seq].memory.len
    }

    fn truncate(&mut self, seq: usize, len: usize) {
        let sequence = &mut self.sequences[seq];
        sequence.memory.truncate(len);
        sequence.tokens.truncate(len);
    }

    fn capacity(&self) -> usize {
        self.ctx
    }

    fn n_seqs(&self) -> usize {
        self.sequences.len()
    }

    fn add_adapter(&mut self, _: &crate::model::adapter::Adapter, _: f32) -> Result<usize> {
        Err(super::no_adapters("engine ort"))
    }
}

fn cache_ports(layers: &[LayerPorts]) -> impl Iterator<Item = &CachePort> {
    layers.iter().flat_map(|layer| [&layer.key, &layer.value])
}

/// Ids, mask, positions and types, as far as the graph asks for them.
fn bind_text(binding: &mut IoBinding, ports: &Ports, tokens: &[u32], types: Option<&[u8]>, past: usize) -> Result<()> {
    let n = tokens.len();
    let mut bind = |port: Option<&Port>, values: Vec<i64>| -> Result<()> {
        let Some(port) = port else { return Ok(()) };
        binding.bind_input(port.name.as_str(), &integers(port.ty, values)?).map_err(told)
    };
    bind(Some(&ports.ids), tokens.iter().map(|id| i64::from(*id)).collect())?;
    bind(ports.mask.as_ref(), vec![1; past + n])?;
    bind(ports.positions.as_ref(), (past..past + n).map(|p| p as i64).collect())?;
    let mut all = vec![0; n];
    for (slot, ty) in all.iter_mut().rev().zip(types.unwrap_or_default().iter().rev()) {
        *slot = i64::from(*ty);
    }
    bind(ports.types.as_ref(), all)
}

/// Pasts in; presents out, into the same tensors where the graph allows it.
fn bind_memory(binding: &mut IoBinding, ports: &Ports, memory: &mut Memory, cpu: &MemoryInfo) -> Result<()> {
    for (port, tensor) in cache_ports(&ports.cache).zip(&mut memory.tensors) {
        binding.bind_input(port.past.as_str(), tensor).map_err(told)?;
        if ports.in_place {
            binding.bind_output(port.present.as_str(), tensor).map_err(told)?;
        } else {
            binding.bind_output_to_device(port.present.as_str(), cpu).map_err(told)?;
        }
    }
    Ok(())
}

/// (1, n) of the type that the graph asks for.
fn integers(ty: ElementType, values: Vec<i64>) -> Result<DynValue> {
    let shape = [1, values.len()];
    if ty == ElementType::I32 {
        let values: Vec<i32> = values.into_iter().map(|v| v as i32).collect();
        return Ok(Tensor::from_array((shape, values)).map_err(told)?.into_dyn());
    }
    Ok(Tensor::from_array((shape, values)).map_err(told)?.into_dyn())
}

/// Presents must be one past longer, or the next step would read what no token wrote.
fn must_have_grown(ports: &Ports, presents: &[DynValue], positions: usize) -> Result<()> {
    for (port, present) in cache_ports(&ports.cache).zip(presents) {
        let dims: &[i64] = present.shape();
        if dims.len() != 4 || dims[0] != 1 || dims[2] != positions as i64 {
            let message =
                format!("has shape {dims:?}; after {positions} tokens it must be [1, heads, {positions}, head size]");
            return Err(Error::new(Kind::Shape, format!("output `{}`", port.present), message));
        }
    }
    Ok(())
}

/// What ONNX Runtime says, on one line.
fn line<R>(error: &ort::Error<R>) -> String {
    error.message().split_whitespace().collect::<Vec<_>>().join(" ")
}

/// A failure while working.
fn told<R>(error: ort::Error<R>) -> Error {
    Error::new(Kind::Io, "ONNX Runtime", line(&error))
}
