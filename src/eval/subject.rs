//! A model under examination, on the engine that was asked for.

use crate::data::batch::{Room, Row};
use crate::export::{self, Runnable};
use crate::model::layers::contrast::Pooling;
use crate::model::network::{Network, Task};
use crate::model::open::{Opened, Place};
use edgeft_quantize::Mix;
use edgeft_runtime::Adapter;
use edgeft_runtime::engine::{Backend, Engine, EngineOptions, KvType, Rows, Run};
use edgeft_runtime::model::{Model, Task as ModelTask};
use edgeft_runtime::sample::argmax;
use edgeft_runtime::tokenizer::Tokenizer;
use std::path::Path;
use std::sync::Arc;

/// Where the arithmetic is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum EngineName {
    /// The learning half's own forward: Hugging Face folders and RUNs
    Candle,
    /// The device's CPU kernels: GGUF, or anything else converted in memory
    Cpu,
    /// A GPU, by wgpu: the same files
    Gpu,
    /// ONNX Runtime: ONNX folders
    Ort,
}

impl EngineName {
    /// The runtime's backend; `None` for the learning half's own.
    fn backend(self) -> Option<Backend> {
        match self {
            Self::Candle => None,
            Self::Cpu => Some(Backend::Cpu),
            Self::Gpu => Some(Backend::Gpu),
            Self::Ort => Some(Backend::Ort),
        }
    }
}

/// Output rows of one sequence.
pub struct Logits {
    /// Rows of `width` numbers.
    pub values: Vec<f32>,
    /// V, the labels, or 2.
    pub width: usize,
}

/// A model that can be asked for logits.
pub enum Subject {
    /// On candle.
    Candle(Box<CandleSubject>),
    /// On one of the runtime's engines.
    Runtime(Box<RuntimeSubject>),
}

/// A network of the learning half.
pub struct CandleSubject {
    /// The network.
    pub network: Network,
    /// Its files.
    pub opened: Opened,
}

/// A model in the runtime.
pub struct RuntimeSubject {
    /// The model.
    pub model: Model,
    engine: Box<dyn Engine>,
}

impl Subject {
    /// Opens MODEL. Without an engine: GGUF on `cpu`, an ONNX folder on `ort`, everything else on `candle`. `task` wins over
    /// what the model says of itself. Engines get an f32 cache.
    pub fn open(model: &str, engine: Option<EngineName>, task: Option<Task>, threads: usize) -> anyhow::Result<Self> {
        let native = match Place::of(model)? {
            Place::Gguf(_) => Some(EngineName::Cpu),
            Place::Onnx(_) => Some(EngineName::Ort),
            _ => None,
        };
        let Some(backend) = engine.or(native).unwrap_or(EngineName::Candle).backend() else {
            if let Some(native) = native {
                let (kind, name) =
                    if native == EngineName::Cpu { ("a GGUF file", "cpu") } else { ("an ONNX folder", "ort") };
                crate::bad_input!(
                    "{model}: {kind} runs on --engine {name}; candle takes Hugging Face folders and RUNs"
                );
            }
            let opened = Opened::open(model, 0)?;
            let network = export::network(&opened, task)?;
            return Ok(Self::on_candle(network, opened));
        };
        Self::on_runtime(Runnable::open(model, Some(backend))?, threads, usize::MAX)
    }

    /// MODEL with a GGUF adapter beside it, on one of the runtime's engines: on `cpu` unless told.
    ///
    /// # Errors
    /// An adapter that does not fit; an engine that applies none.
    pub fn beside(
        model: &str,
        (adapter, scale): (&Adapter, f32),
        engine: Option<EngineName>,
        threads: usize,
    ) -> anyhow::Result<Self> {
        let mut subject = Self::open(model, engine.or(Some(EngineName::Cpu)), None, threads)?;
        let Self::Runtime(s) = &mut subject else {
            crate::bad_input!("--engine candle takes adapter folders; a GGUF adapter runs on --engine cpu");
        };
        let number = s.engine.add_adapter(adapter, scale)?;
        s.engine.choose(0, Some(number))?;
        Ok(subject)
    }

    /// The same model on the `cpu` engine, whose cache makes writing as fast as reading; `None` for one that is on an engine
    /// already, and for a network that cannot leave. It holds at most `ctx` tokens.
    ///
    /// # Errors
    /// What the conversion has.
    pub fn writer(&self, threads: usize, ctx: usize) -> anyhow::Result<Option<Self>> {
        let Self::Candle(s) = self else { return Ok(None) };
        if !crate::merge::can_leave(&s.opened.config, Some(&s.network.task)) {
            return Ok(None);
        }
        let model = Model::from_bytes(export::to_memory(&s.opened, Mix::F32)?, &s.opened.name)?;
        let runnable = Runnable { backend: Backend::Cpu, model, converted_bytes: None };
        Self::on_runtime(runnable, threads, ctx).map(Some)
    }

    /// A GGUF file in memory, on the `cpu` engine, which holds at most `ctx` tokens.
    ///
    /// # Errors
    /// Bytes that are no model.
    pub fn of_bytes(bytes: Vec<u8>, name: &str, threads: usize, ctx: usize) -> anyhow::Result<Self> {
        let runnable =
            Runnable { model: Model::from_bytes(bytes, name)?, backend: Backend::Cpu, converted_bytes: None };
        Self::on_runtime(runnable, threads, ctx)
    }

    /// A base model under an adapter folder, on `candle`.
    ///
    /// # Errors
    /// A base that is a GGUF or a RUN; an adapter that does not fit.
    pub fn with_adapter(model: &str, adapter: &Path) -> anyhow::Result<Self> {
        let opened = Opened::open(model, 0)?.with_adapter(adapter)?;
        let network = export::network(&opened, None)?;
        Ok(Self::on_candle(network, opened))
    }

    /// A network that is already there, with the files it came from.
    pub fn on_candle(network: Network, opened: Opened) -> Self {
        Self::Candle(Box::new(CandleSubject { network, opened }))
    }

    fn on_runtime(runnable: Runnable, threads: usize, ctx: usize) -> anyhow::Result<Self> {
        let Runnable { model, backend, .. } = runnable;
        let ctx = model.hparams().n_ctx.min(ctx);
        let engine = model.engine(&EngineOptions { backend, threads, ctx, n_seqs: 1, kv: KvType::F32 })?;
        Ok(Self::Runtime(Box::new(RuntimeSubject { model, engine })))
    }

    /// What computes, where that is more than this program: see [`Engine::runs_on`].
    pub fn runs_on(&self) -> Option<String> {
        match self {
            Self::Candle(_) => None,
            Self::Runtime(s) => s.engine.runs_on(),
        }
    }

    /// What the model answers.
    pub fn task(&self) -> Option<Task> {
        match self {
            Self::Candle(s) => Some(s.network.task.clone()),
            Self::Runtime(s) => match s.model.task() {
                ModelTask::Generate => Some(Task::Generate),
                ModelTask::Classify => Some(Task::Classify(s.model.labels().to_vec())),
                ModelTask::Answer if !self.is_decoder() => Some(Task::Span),
                ModelTask::Answer => Some(Task::Generate),
                // Which tokens are pooled is the file's matter.
                ModelTask::Embed => Some(Task::Embed(Pooling::default())),
            },
        }
    }

    /// Whether the model reads left to right.
    pub fn is_decoder(&self) -> bool {
        match self {
            Self::Candle(s) => s.opened.config.family.is_decoder(),
            Self::Runtime(s) => s.model.hparams().causal,
        }
    }

    /// Positions that the model has.
    pub fn n_ctx(&self) -> usize {
        match self {
            Self::Candle(s) => s.opened.config.max_position_embeddings,
            Self::Runtime(s) => s.model.hparams().n_ctx,
        }
    }

    /// What a row may ask of it.
    fn room(&self) -> Room {
        match self {
            Self::Candle(s) => s.opened.config.room(),
            Self::Runtime(s) => {
                let h = s.model.hparams();
                // Learned positions are rows of a table: GPT-2's, as an encoder's.
                let positions = if h.causal && h.rotary_dim > 0 { usize::MAX } else { h.n_ctx };
                let types = if h.causal || h.n_token_types == 0 { usize::MAX } else { h.n_token_types };
                Room { vocab: h.n_vocab, positions, types }
            }
        }
    }

    /// Its tokenizer.
    pub fn tokenizer(&self) -> anyhow::Result<Arc<Tokenizer>> {
        match self {
            Self::Candle(s) => Ok(Arc::new(export::tokenizer(&s.opened)?)),
            Self::Runtime(s) => Ok(s.model.tokenizer()?),
        }
    }

    /// Jinja source of its chat template.
    pub fn template(&self) -> Option<String> {
        match self {
            Self::Candle(s) => s.opened.text.chat_template.clone(),
            Self::Runtime(s) => s.model.chat_source().ok().flatten().map(str::to_owned),
        }
    }

    /// Name of the type or mix of its weights.
    pub fn type_name(&self) -> String {
        match self {
            Self::Candle(_) => "f32".into(),
            Self::Runtime(s) => match (s.model.gguf(), s.model.onnx()) {
                (Ok(gguf), _) => match gguf.str("edgeft.plan.mix") {
                    Ok(mix) => mix.to_owned(),
                    Err(_) => Mix::all()
                        .find(|m| gguf.u32("general.file_type").ok() == Some(m.file_type()))
                        .map_or_else(|| "f32".into(), |m| m.name().to_owned()),
                },
                (_, Ok(folder)) => folder.type_name(),
                _ => "f32".into(),
            },
        }
    }

    /// Output rows of one sequence: (T, V) for generation, (1, labels) for classification, (T, 2) for spans,
    /// (1, C) for vectors. Padding is left out.
    pub fn logits(&mut self, row: &Row) -> anyhow::Result<Logits> {
        if let Some(what) = row.misfit(self.room()) {
            crate::bad_input!("row {}: {what}", row.source);
        }
        match self {
            Self::Candle(s) => {
                let mut packed = crate::model::Packed::default();
                let n = row.keys.min(row.ids.len());
                let types = if row.types.is_empty() { &[][..] } else { &row.types[..n] };
                packed.push(&row.ids[..n], &row.positions[..n], types, n);
                let logits = s.network.logits(&packed)?;
                Ok(Logits { width: logits.dim(1)?, values: logits.flatten_all()?.to_vec1()? })
            }
            Self::Runtime(s) => {
                let n = row.keys.min(row.ids.len());
                // The cache numbers positions itself. A shift of all of them changes nothing where they are rotations.
                let h = s.model.hparams();
                let first = if h.causal && h.rotary_dim > 0 { row.positions[0] } else { 0 };
                if !row.positions[..n].iter().copied().eq(first..first + n as u32) {
                    crate::bad_input!(
                        "row {}: padding before or between its tokens, which only --engine candle takes",
                        row.source
                    );
                }
                let rows = match s.model.task() {
                    ModelTask::Classify | ModelTask::Embed => Rows::Last,
                    ModelTask::Generate | ModelTask::Answer => Rows::All,
                };
                let types = (!row.types.is_empty()).then(|| &row.types[..n]);
                let mut values = Vec::new();
                s.engine.truncate(0, 0);
                s.engine.forward(&[Run { seq: 0, tokens: &row.ids[..n], types, rows }], &mut values)?;
                Ok(Logits { values, width: s.engine.output_dim() })
            }
        }
    }

    /// Greedy continuation of a prompt, until `ended` says so of what was written, or `max_tokens`.
    pub fn greedy(
        &mut self,
        prompt: &[u32],
        max_tokens: usize,
        ended: &dyn Fn(&[u32]) -> bool,
    ) -> anyhow::Result<Vec<u32>> {
        let mut ids = prompt.to_vec();
        if let Self::Runtime(s) = self {
            s.engine.truncate(0, 0);
        }
        for _ in 0..max_tokens.min(self.n_ctx().saturating_sub(prompt.len())) {
            let last = match self {
                Self::Candle(s) => {
                    let mut packed = crate::model::Packed::default();
                    let positions: Vec<u32> = (0..ids.len() as u32).collect();
                    packed.push(&ids, &positions, &[], ids.len());
                    let logits = s.network.logits(&packed)?;
                    logits.get(ids.len() - 1)?.to_vec1::<f32>()?
                }
                Self::Runtime(s) => {
                    let mut values = Vec::new();
                    let tokens = &ids[s.engine.len(0)..];
                    s.engine.forward(&[Run { seq: 0, tokens, types: None, rows: Rows::Last }], &mut values)?;
                    values
                }
            };
            let Some(next) = argmax(&last) else { anyhow::bail!("the logits are not numbers") };
            ids.push(next);
            if ended(&ids[prompt.len()..]) {
                break;
            }
        }
        Ok(ids.split_off(prompt.len()))
    }
}
