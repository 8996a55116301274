//! A GGUF file as a model: its shape, its task, its tensors checked against both.

use crate::chat::ChatTemplate;
use crate::engine::cpu::CpuEngine;
use crate::engine::{Backend, Engine, EngineOptions};
use crate::error::{Error, Kind, Result};
use crate::format::GgmlType;
use crate::format::gguf::{Array, Gguf, GgufError, TensorInfo, Value};
use crate::format::map::Mapped;
use crate::kernels::Matrix;
use crate::tokenizer::Tokenizer;
use std::path::Path;
use std::sync::{Arc, OnceLock};

/// Family, named as `general.architecture`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Arch {
    Llama,
    Qwen2,
    Bert,
}

impl Arch {
    /// `general.architecture`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Qwen2 => "qwen2",
            Self::Bert => "bert",
        }
    }
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

/// Shape of a model, from its metadata.
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
    /// Base wavelength of the rotary embedding.
    pub rope_theta: f32,
    /// Positions are divided by this (linear scaling).
    pub rope_factor: f32,
    /// A token sees itself and the `sliding_window - 1` before it.
    pub sliding_window: Option<usize>,
    /// Token types of an encoder.
    pub n_token_types: usize,
    /// Whether a token sees only what came before.
    pub causal: bool,
}

enum Bytes {
    Mapped(Mapped),
    Owned(Vec<u8>),
}

impl std::ops::Deref for Bytes {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        match self {
            Self::Mapped(m) => m,
            Self::Owned(v) => v,
        }
    }
}

struct Inner {
    name: String,
    bytes: Bytes,
    gguf: Gguf,
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
    /// Maps and checks a GGUF file.
    ///
    /// # Errors
    /// `Io` when it cannot be opened; `Input` or `Shape` naming what is wrong inside.
    pub fn open(path: &Path) -> Result<Self> {
        let place = path.display().to_string();
        let mapped = Mapped::open(path).map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => Error::new(Kind::Input, &place, "no such file"),
            std::io::ErrorKind::InvalidData | std::io::ErrorKind::InvalidInput => {
                Error::new(Kind::Input, &place, e.to_string())
            }
            _ => Error::io(&place, e),
        })?;
        Self::new(Bytes::Mapped(mapped), &place)
    }

    /// The same from memory; `name` stands in messages.
    pub fn from_bytes(bytes: Vec<u8>, name: &str) -> Result<Self> {
        Self::new(Bytes::Owned(bytes), name)
    }

    fn new(bytes: Bytes, name: &str) -> Result<Self> {
        let gguf = Gguf::parse(&bytes).map_err(|e| Error::from(e).at(name))?;
        let (hparams, task, labels) = read(&gguf).map_err(|e| e.at(name))?;
        check_tensors(&gguf, &hparams, task, labels.len()).map_err(|e| e.at(name))?;
        // Blocks begin with a 16-bit scale, and kernels read them where they lie.
        if let Some(t) = gguf.tensors.iter().find(|t| !gguf.data(&bytes, t).as_ptr().addr().is_multiple_of(2)) {
            let message = format!("begins at an odd byte (offset {}, general.alignment {})", t.offset, gguf.alignment);
            return Err(Error::new(Kind::Input, format!("{name}: tensor `{}`", t.name), message));
        }
        let (tokenizer, chat) = (OnceLock::new(), OnceLock::new());
        Ok(Self(Arc::new(Inner { name: name.to_owned(), bytes, gguf, hparams, task, labels, tokenizer, chat })))
    }

    /// File name or given name.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Header and table.
    pub fn gguf(&self) -> &Gguf {
        &self.0.gguf
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

    /// A tensor's table line and bytes.
    pub fn tensor(&self, name: &str) -> Option<(&TensorInfo, &[u8])> {
        let info = self.0.gguf.tensor(name)?;
        Some((info, self.0.gguf.data(&self.0.bytes, info)))
    }

    /// A weight matrix (rows, cols) by its place in the table; see [`Gguf::tensors`].
    pub fn matrix(&self, index: usize) -> Matrix<'_> {
        let info = &self.0.gguf.tensors[index];
        let dim = |i: usize| info.dims.get(i).map_or(1, |d| *d as usize);
        Matrix { ty: info.ty, rows: dim(1), cols: dim(0), data: self.0.gguf.data(&self.0.bytes, info) }
    }

    /// Bytes of all tensors: what a token's pass reads at most.
    pub fn weight_bytes(&self) -> u64 {
        self.0.gguf.tensors.iter().map(|t| t.bytes).sum()
    }

    /// Text <-> ids; built at the first call.
    ///
    /// # Errors
    /// `Missing` when the file has no vocabulary.
    pub fn tokenizer(&self) -> Result<Arc<Tokenizer>> {
        if let Some(t) = self.0.tokenizer.get() {
            return Ok(t.clone());
        }
        let built = Arc::new(Tokenizer::from_gguf(&self.0.gguf).map_err(|e| e.at(&self.0.name))?);
        Ok(self.0.tokenizer.get_or_init(|| built).clone())
    }

    /// The chat template inside the file, if there is one.
    ///
    /// # Errors
    /// A template that does not compile.
    pub fn chat(&self) -> Result<Option<&ChatTemplate>> {
        if let Some(chat) = self.0.chat.get() {
            return Ok(chat.as_ref());
        }
        let built = match self.0.gguf.str("tokenizer.chat_template") {
            Err(GgufError::NoKey(_)) => None,
            Err(e) => return Err(Error::from(e).at(&self.0.name)),
            Ok(source) => {
                let tokenizer = self.tokenizer()?;
                let text = |id: Option<u32>| id.and_then(|id| tokenizer.id_to_token(id)).unwrap_or_default().to_owned();
                let (bos, eos) = (text(tokenizer.bos()), text(tokenizer.eos()));
                Some(ChatTemplate::new(source, &bos, &eos).map_err(|e| e.at(&self.0.name))?)
            }
        };
        Ok(self.0.chat.get_or_init(|| built).as_ref())
    }

    /// Loads the model into an engine.
    ///
    /// # Errors
    /// `Missing` for an engine that this build or this machine lacks; `Limit` when the options ask for nothing or too much.
    pub fn engine(&self, options: &EngineOptions) -> Result<Box<dyn Engine>> {
        match options.backend {
            Backend::Cpu => Ok(Box::new(CpuEngine::new(self.clone(), options)?)),
            #[cfg(feature = "gpu")]
            Backend::Gpu => Ok(Box::new(crate::engine::gpu::GpuEngine::new(self.clone(), options)?)),
            #[allow(unreachable_patterns)] // for what a build lacks
            Backend::Gpu | Backend::Ort => {
                let name = options.backend.name();
                Err(Error::new(
                    Kind::Missing,
                    format!("engine {name}"),
                    format!("not in this build; build with `--features {name}`"),
                ))
            }
        }
    }
}

fn read(gguf: &Gguf) -> Result<(Hparams, Task, Vec<String>)> {
    let arch = match gguf.str("general.architecture")? {
        "llama" => Arch::Llama,
        "qwen2" => Arch::Qwen2,
        "bert" => Arch::Bert,
        other => {
            return Err(input(format!("architecture `{other}` is not supported; known: llama, qwen2, bert")));
        }
    };
    let key = |part: &str| format!("{}.{part}", arch.name());
    let size = |part: &str| -> Result<usize> { Ok(gguf.u32(&key(part))? as usize) };
    let optional = |part: &str| -> Result<Option<usize>> {
        match gguf.u32(&key(part)) {
            Ok(v) => Ok(Some(v as usize)),
            Err(GgufError::NoKey(_)) => Ok(None),
            Err(e) => Err(e.into()),
        }
    };
    let float = |part: &str, default: f32| match gguf.f32(&key(part)) {
        Err(GgufError::NoKey(_)) => Ok(default),
        other => other,
    };
    let (hidden, n_heads) = (size("embedding_length")?, size("attention.head_count")?);
    let n_kv_heads = optional("attention.head_count_kv")?.unwrap_or(n_heads);
    if n_heads == 0 || n_kv_heads == 0 || n_heads % n_kv_heads != 0 {
        return Err(input(format!("{n_heads} heads cannot share {n_kv_heads} key heads")));
    }
    let head_dim = match optional("attention.key_length")? {
        Some(d) => d,
        None if hidden.is_multiple_of(n_heads) => hidden / n_heads,
        None => {
            return Err(input(format!(
                "embedding_length {hidden} is no multiple of {n_heads} heads, and key_length is not given"
            )));
        }
    };
    if let Some(v) = optional("attention.value_length")?
        && v != head_dim
    {
        return Err(input(format!("value_length {v} differs from key_length {head_dim}, which is not supported")));
    }
    let eps = if arch == Arch::Bert { "attention.layer_norm_epsilon" } else { "attention.layer_norm_rms_epsilon" };
    let rope_dims = optional("rope.dimension_count")?.unwrap_or(head_dim);
    if arch != Arch::Bert && rope_dims != head_dim {
        return Err(input(format!(
            "rope.dimension_count {rope_dims} of head size {head_dim}: partial rotary embedding is not supported"
        )));
    }
    let rope_factor = match gguf.str(&key("rope.scaling.type")) {
        Err(GgufError::NoKey(_)) | Ok("none") => 1.0,
        Ok("linear") => gguf.f32(&key("rope.scaling.factor"))?,
        Ok(other) => return Err(input(format!("rope scaling `{other}` is not supported; known: none, linear"))),
        Err(e) => return Err(e.into()),
    };
    let embedding = gguf.tensor("token_embd.weight").ok_or_else(|| missing("token_embd.weight"))?;
    let sliding_window = match gguf.u32("edgeft.attention.sliding_window") {
        Ok(w) => Some(w as usize),
        Err(GgufError::NoKey(_)) => None,
        Err(e) => return Err(e.into()),
    };
    let hparams = Hparams {
        arch,
        n_vocab: embedding.dims.get(1).copied().unwrap_or(0) as usize,
        n_ctx: size("context_length")?,
        hidden,
        ffn: size("feed_forward_length")?,
        n_layers: size("block_count")?,
        n_heads,
        n_kv_heads,
        head_dim,
        norm_eps: gguf.f32(&key(eps))?,
        rope_theta: float("rope.freq_base", 10_000.0)?,
        rope_factor,
        sliding_window,
        n_token_types: if arch == Arch::Bert { gguf.u32("tokenizer.ggml.token_type_count")? as usize } else { 0 },
        causal: arch != Arch::Bert,
    };
    for (name, value) in [
        ("embedding_length", hidden),
        ("head size", head_dim),
        ("context_length", hparams.n_ctx),
        ("feed_forward_length", hparams.ffn),
        ("block_count", hparams.n_layers),
    ] {
        if value == 0 || value > 1 << 28 {
            return Err(input(format!("{name} is {value}")));
        }
    }
    if arch != Arch::Bert && head_dim % 2 != 0 {
        return Err(input(format!("head size {head_dim} is odd; rotary embedding needs pairs")));
    }
    let labels = match gguf.get("edgeft.labels") {
        Some(Value::Array(Array::Str(labels))) => labels.clone(),
        Some(_) => return Err(input("edgeft.labels is no array of strings".into())),
        None => Vec::new(),
    };
    let task = match gguf.str("edgeft.task") {
        Ok("generate") => Task::Generate,
        Ok("classify") => Task::Classify,
        Ok("answer") => Task::Answer,
        Ok("embed") => Task::Embed,
        Ok(other) => return Err(input(format!("edgeft.task is `{other}`; known: generate, classify, answer, embed"))),
        Err(_) if arch == Arch::Bert => Task::Embed,
        Err(_) => Task::Generate,
    };
    if task == Task::Classify && labels.is_empty() {
        return Err(input("a classifier without edgeft.labels".into()));
    }
    Ok((hparams, task, labels))
}

/// Every tensor that the engine will read, with the shape it must have (ggml order), before anything is computed.
fn check_tensors(gguf: &Gguf, h: &Hparams, task: Task, n_labels: usize) -> Result<()> {
    let need = |name: &str, dims: &[usize]| -> Result<()> {
        let t = gguf.tensor(name).ok_or_else(|| missing(name))?;
        same(t, dims)
    };
    let maybe = |name: &str, dims: &[usize]| gguf.tensor(name).map_or(Ok(()), |t| same(t, dims));
    let (c, f, q, kv) = (h.hidden, h.ffn, h.n_heads * h.head_dim, h.n_kv_heads * h.head_dim);
    need("token_embd.weight", &[c, h.n_vocab])?;
    let array = |key: &str, n: usize| -> Result<()> {
        match gguf.array(key)? {
            Array::F32(v) if v.len() == n => Ok(()),
            other => {
                Err(Error::new(Kind::Shape, key, format!("has {} elements, the model needs {n} f32", other.len())))
            }
        }
    };
    if h.arch == Arch::Bert {
        need("position_embd.weight", &[c, h.n_ctx])?;
        need("token_types.weight", &[c, h.n_token_types])?;
        need("token_embd_norm.weight", &[c])?;
        need("token_embd_norm.bias", &[c])?;
        for i in 0..h.n_layers {
            for (part, out, input) in [
                ("attn_q", q, c),
                ("attn_k", kv, c),
                ("attn_v", kv, c),
                ("attn_output", c, q),
                ("ffn_up", f, c),
                ("ffn_down", c, f),
            ] {
                need(&format!("blk.{i}.{part}.weight"), &[input, out])?;
                need(&format!("blk.{i}.{part}.bias"), &[out])?;
            }
            for part in ["attn_output_norm", "layer_output_norm"] {
                need(&format!("blk.{i}.{part}.weight"), &[c])?;
                need(&format!("blk.{i}.{part}.bias"), &[c])?;
            }
        }
        match task {
            Task::Classify => {
                need("cls.weight", &[c, c])?;
                need("cls.bias", &[c])?;
                need("cls.output.weight", &[c, n_labels])?;
                need("cls.output.bias", &[n_labels])?;
            }
            Task::Answer => {
                array("edgeft.head.qa_outputs.weight", 2 * c)?;
                array("edgeft.head.qa_outputs.bias", 2)?;
            }
            Task::Embed => {}
            Task::Generate => return Err(input("an encoder cannot generate".into())),
        }
        return Ok(());
    }
    need("output_norm.weight", &[c])?;
    maybe("output.weight", &[c, h.n_vocab])?;
    maybe("rope_freqs.weight", &[h.head_dim / 2])?;
    for i in 0..h.n_layers {
        need(&format!("blk.{i}.attn_norm.weight"), &[c])?;
        need(&format!("blk.{i}.ffn_norm.weight"), &[c])?;
        for (part, out, input) in [
            ("attn_q", q, c),
            ("attn_k", kv, c),
            ("attn_v", kv, c),
            ("attn_output", c, q),
            ("ffn_gate", f, c),
            ("ffn_up", f, c),
            ("ffn_down", c, f),
        ] {
            need(&format!("blk.{i}.{part}.weight"), &[input, out])?;
            maybe(&format!("blk.{i}.{part}.bias"), &[out])?;
        }
    }
    if task == Task::Classify {
        array("edgeft.head.score.weight", n_labels * c)?;
    }
    Ok(())
}

fn same(t: &TensorInfo, dims: &[usize]) -> Result<()> {
    let found: Vec<usize> = t.dims.iter().map(|d| *d as usize).collect();
    // ggml drops trailing dimensions of 1.
    let trimmed = |d: &[usize]| -> Vec<usize> {
        let n = d.iter().rposition(|v| *v != 1).map_or(1, |p| p + 1);
        d[..n].to_vec()
    };
    if trimmed(&found) != trimmed(dims) {
        return Err(Error::new(
            Kind::Shape,
            format!("tensor `{}`", t.name),
            format!("has dimensions {found:?}, the metadata says {dims:?}"),
        ));
    }
    if dims.len() == 1 && t.ty != GgmlType::F32 {
        return Err(Error::new(
            Kind::Input,
            format!("tensor `{}`", t.name),
            format!("is {}; norms and biases must be f32", t.ty),
        ));
    }
    Ok(())
}

fn missing(name: &str) -> Error {
    Error::new(Kind::Input, format!("tensor `{name}`"), "is missing")
}

fn input(message: String) -> Error {
    Error::new(Kind::Input, "", message)
}
