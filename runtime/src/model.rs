//! A GGUF file or an ONNX folder as a model: its shape, its task, its labels, its text side. What follows asks no more where
//! a model came from, but for the engines, which read one kind of file each.
//!
//! - [`gguf`]: metadata -> shape and task, every tensor checked against both;  [`adapter`]: what stands beside them
//! - [`onnx`]: the files of a folder -> the same, the graph's inputs and outputs checked against them

pub mod adapter;
pub mod gguf;
pub mod onnx;

use crate::chat::{ChatTemplate, Message, chat_ids};
use crate::engine::cpu::CpuEngine;
#[cfg(feature = "ort")]
use crate::engine::ort::OrtEngine;
use crate::engine::{Backend, Engine, EngineOptions, KvType};
use crate::error::{Error, Kind, Result};
use crate::format::GgmlType;
use crate::format::gguf::{Gguf, TensorInfo};
use crate::kernels::Matrix;
use crate::tokenizer::Tokenizer;
use gguf::GgufFile;
use onnx::OnnxFolder;
use std::path::Path;
use std::sync::{Arc, OnceLock};

/// Family, named as `general.architecture`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Arch {
    Llama,
    Qwen2,
    Qwen3,
    Gemma3,
    Phi3,
    Gpt2,
    /// BERT, RoBERTa, DistilBERT.
    Bert,
    /// Whatever the graph of an ONNX folder computes.
    Onnx,
}

impl Arch {
    /// `general.architecture`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
            Self::Gemma3 => "gemma3",
            Self::Phi3 => "phi3",
            Self::Gpt2 => "gpt2",
            Self::Bert => "bert",
            Self::Onnx => "onnx",
        }
    }
}

/// What a feed-forward bends with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    /// x σ(x).
    Silu,
    /// x Φ(x), with the exact normal distribution function.
    Gelu,
    /// x (1 + tanh(√(2/π) (x + 0.044715 x³))) / 2.
    GeluTanh,
}

/// What a model answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Task {
    /// Next tokens.
    Generate,
    /// One of [`Model::labels`].
    Classify,
    /// A span of a context (encoders), or generated words (decoders).
    Answer,
    /// A vector.
    Embed,
}

impl Task {
    /// As `edgeft.task` spells it.
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "generate" => Some(Self::Generate),
            "classify" => Some(Self::Classify),
            "answer" => Some(Self::Answer),
            "embed" => Some(Self::Embed),
            _ => None,
        }
    }
}

/// Shape of a model, from its metadata. An ONNX graph carries in itself what only kernels ask for: norm_eps, what speaks of
/// rotations, and factors are then 0.
#[derive(Debug, Clone, PartialEq)]
pub struct Hparams {
    /// Family.
    pub arch: Arch,
    /// V: rows of the embedding.
    pub n_vocab: usize,
    /// Positions it was made for.
    pub n_ctx: usize,
    /// C.
    pub hidden: usize,
    /// F.
    pub ffn: usize,
    /// Blocks.
    pub n_layers: usize,
    /// H.
    pub n_heads: usize,
    /// K.
    pub n_kv_heads: usize,
    /// D.
    pub head_dim: usize,
    /// Added under the root of every norm.
    pub norm_eps: f32,
    /// Dimensions of a head that are rotated, from its first on; 0 where positions are learned.
    pub rotary_dim: usize,
    /// Base wavelength of the rotary embedding.
    pub rope_theta: f32,
    /// Positions are divided by this (linear scaling).
    pub rope_factor: f32,
    /// Base wavelength in local layers, whose positions are never divided, where that is another.
    pub local_rope_theta: Option<f32>,
    /// A token sees itself and the `sliding_window - 1` before it, in local layers.
    pub sliding_window: Option<usize>,
    /// By layer: whether the window holds there. Empty where it holds in all.
    pub local_layers: Vec<bool>,
    /// What scores are multiplied by: 1/√D, but for Gemma.
    pub attention_scale: f32,
    /// What the rows of the token embedding are multiplied by: 1, but for Gemma's √C.
    pub embedding_scale: f32,
    /// What the feed-forward bends with.
    pub activation: Act,
    /// Token types of an encoder.
    pub n_token_types: usize,
    /// Whether a token sees only what came before.
    pub causal: bool,
}

impl Hparams {
    /// Whether a layer is local: it has the window, if there is one, and the rotations of local layers.
    pub fn is_local(&self, layer: usize) -> bool {
        self.local_layers.get(layer).copied().unwrap_or(true)
    }

    /// Tokens that a position of this layer sees, itself included; `None` is all.
    pub fn window(&self, layer: usize) -> Option<usize> {
        self.sliding_window.filter(|_| self.is_local(layer))
    }

    /// Positions that all layers together see at `depth` tokens.
    pub fn seen(&self, depth: usize) -> usize {
        (0..self.n_layers).map(|layer| self.window(layer).map_or(depth, |w| w.min(depth))).sum()
    }
}

/// Where a model came from.
enum Source {
    Gguf(GgufFile),
    Onnx(Box<OnnxFolder>),
}

struct Inner {
    name: String,
    source: Source,
    hparams: Hparams,
    task: Task,
    labels: Vec<String>,
    tokenizer: OnceLock<Arc<Tokenizer>>,
    chat: OnceLock<Option<ChatTemplate>>,
}

/// A checked model. Cloning shares the bytes.
#[derive(Clone)]
pub struct Model(Arc<Inner>);

impl std::fmt::Debug for Model {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Model({}, {})", self.0.name, self.0.hparams.arch.name())
    }
}

impl Model {
    /// Maps and checks a GGUF file, or reads and checks an ONNX folder.
    ///
    /// # Errors
    /// `Io` when it cannot be opened; `Input` or `Shape` naming what is wrong inside.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let name = path.display().to_string();
        if path.is_dir() {
            let (folder, hparams, task, labels) = OnnxFolder::open(path).map_err(|e| e.at(&name))?;
            return Ok(Self::new(&name, Source::Onnx(Box::new(folder)), hparams, task, labels));
        }
        Self::of_gguf(GgufFile::open(path)?, &name)
    }

    /// A GGUF file from memory; `name` stands in messages.
    pub fn from_bytes(bytes: Vec<u8>, name: &str) -> Result<Self> {
        Self::of_gguf(GgufFile::from_bytes(bytes).map_err(|e| e.at(name))?, name)
    }

    fn of_gguf(file: GgufFile, name: &str) -> Result<Self> {
        let (hparams, task, labels) = file.check().map_err(|e| e.at(name))?;
        Ok(Self::new(name, Source::Gguf(file), hparams, task, labels))
    }

    fn new(name: &str, source: Source, hparams: Hparams, task: Task, labels: Vec<String>) -> Self {
        let (tokenizer, chat) = (OnceLock::new(), OnceLock::new());
        Self(Arc::new(Inner { name: name.to_owned(), source, hparams, task, labels, tokenizer, chat }))
    }

    /// File name or given name.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Header and table of a GGUF file.
    ///
    /// # Errors
    /// `Input` when the model is an ONNX folder, whose weights lie in its graph.
    pub fn gguf(&self) -> Result<&Gguf> {
        match &self.0.source {
            Source::Gguf(file) => Ok(&file.gguf),
            Source::Onnx(_) => {
                let message = "an ONNX folder runs on the engine ort; for another one, write a GGUF file of the model it was \
                    made from (`edgeft quantize MODEL --type f32 --out model.gguf`)";
                Err(Error::new(Kind::Input, &self.0.name, message))
            }
        }
    }

    /// Files and graph of an ONNX folder.
    ///
    /// # Errors
    /// `Input` when the model is a GGUF file.
    pub fn onnx(&self) -> Result<&OnnxFolder> {
        match &self.0.source {
            Source::Onnx(folder) => Ok(folder),
            Source::Gguf(_) => {
                let message = "the engine ort takes an ONNX folder; write one with `edgeft quantize MODEL --to onnx --out DIR`, \
                    or use the engine cpu";
                Err(Error::new(Kind::Input, &self.0.name, message))
            }
        }
    }

    /// The engine that takes the model as it is.
    pub fn backend(&self) -> Backend {
        match &self.0.source {
            Source::Gguf(_) => Backend::Cpu,
            Source::Onnx(_) => Backend::Ort,
        }
    }

    /// Shape.
    pub fn hparams(&self) -> &Hparams {
        &self.0.hparams
    }

    /// What it answers.
    pub fn task(&self) -> Task {
        self.0.task
    }

    /// Labels of a classifier, in the order of the logits.
    pub fn labels(&self) -> &[String] {
        &self.0.labels
    }

    /// A tensor's table line and bytes; none in an ONNX folder.
    pub fn tensor(&self, name: &str) -> Option<(&TensorInfo, &[u8])> {
        match &self.0.source {
            Source::Gguf(file) => file.tensor(name),
            Source::Onnx(_) => None,
        }
    }

    /// A weight matrix (rows, cols) by its place in the table; see [`Gguf::tensors`]. An ONNX folder has no table: an engine
    /// that reads one asks [`Model::gguf`] first.
    pub fn matrix(&self, index: usize) -> Matrix<'_> {
        match &self.0.source {
            Source::Gguf(file) => file.matrix(index),
            Source::Onnx(_) => Matrix { ty: GgmlType::F32, rows: 0, cols: 0, data: &[] },
        }
    }

    /// Bytes of all tensors: what a token's pass reads at most.
    pub fn weight_bytes(&self) -> u64 {
        match &self.0.source {
            Source::Gguf(file) => file.gguf.tensors.iter().map(|t| t.bytes).sum(),
            Source::Onnx(folder) => folder.weights().iter().map(|w| w.bytes).sum(),
        }
    }

    /// Type of the cache where the model itself fixes it, as an ONNX graph does; otherwise the engine's options choose.
    pub fn kv(&self) -> Option<KvType> {
        match &self.0.source {
            Source::Gguf(_) => None,
            Source::Onnx(folder) => folder.kv(),
        }
    }

    /// Text <-> ids; built at the first call.
    ///
    /// # Errors
    /// `Missing` when the model has no vocabulary.
    pub fn tokenizer(&self) -> Result<Arc<Tokenizer>> {
        if let Some(t) = self.0.tokenizer.get() {
            return Ok(t.clone());
        }
        let built = match &self.0.source {
            Source::Gguf(file) => Tokenizer::from_gguf(&file.gguf),
            Source::Onnx(folder) => folder.tokenizer(),
        };
        let built = Arc::new(built.map_err(|e| e.at(&self.0.name))?);
        Ok(self.0.tokenizer.get_or_init(|| built).clone())
    }

    /// Jinja source of the chat template, if there is one.
    ///
    /// # Errors
    /// A key of another type than text.
    pub fn chat_source(&self) -> Result<Option<&str>> {
        match &self.0.source {
            Source::Gguf(file) => file.chat_source().map_err(|e| e.at(&self.0.name)),
            Source::Onnx(folder) => Ok(folder.chat_source()),
        }
    }

    /// The chat template of the model, if there is one.
    ///
    /// # Errors
    /// A template that does not compile.
    pub fn chat(&self) -> Result<Option<&ChatTemplate>> {
        if let Some(chat) = self.0.chat.get() {
            return Ok(chat.as_ref());
        }
        let built = match self.chat_source()? {
            None => None,
            Some(source) => {
                let tokenizer = self.tokenizer()?;
                let text = |id: Option<u32>| id.and_then(|id| tokenizer.id_to_token(id)).unwrap_or_default().to_owned();
                let (bos, eos) = (text(tokenizer.bos()), text(tokenizer.eos()));
                Some(ChatTemplate::new(source, &bos, &eos).map_err(|e| e.at(&self.0.name))?)
            }
        };
        Ok(self.0.chat.get_or_init(|| built).as_ref())
    }

    /// The prompt of a chat: ids up to where the assistant begins to speak, by the template inside the file.
    ///
    /// # Errors
    /// `Missing` without a tokenizer or template; a template that does not compile or does not take the messages.
    pub fn chat_ids(&self, messages: &[Message]) -> Result<Vec<u32>> {
        chat_ids(self.chat()?, &*self.tokenizer()?, messages, None)
    }

    /// Loads the model into an engine.
    ///
    /// # Errors
    /// `Missing` for an engine that this build or this machine lacks; `Input` for one that does not take files of this kind;
    /// `Limit` when the options ask for nothing or too much.
    pub fn engine(&self, options: &EngineOptions) -> Result<Box<dyn Engine>> {
        match options.backend {
            Backend::Cpu => Ok(Box::new(CpuEngine::new(self.clone(), options)?)),
            #[cfg(feature = "gpu")]
            Backend::Gpu => Ok(Box::new(crate::engine::gpu::GpuEngine::new(self.clone(), options)?)),
            #[cfg(feature = "ort")]
            Backend::Ort => Ok(Box::new(OrtEngine::new(self.clone(), options)?)),
            #[allow(unreachable_patterns)] // a build with every engine has none left
            other => {
                let name = other.name();
                Err(Error::new(
                    Kind::Missing,
                    format!("engine {name}"),
                    format!("not in this build; build with `--features {name}`"),
                ))
            }
        }
    }
}

fn input(message: String) -> Error {
    Error::new(Kind::Input, "", message)
}
