//! A GGUF file as a model: shape and task from the metadata, every tensor checked against both.

use super::{Arch, Hparams, Task, input};
use crate::error::{Error, Kind, Result};
use crate::format::GgmlType;
use crate::format::gguf::{Array, Gguf, GgufError, TensorInfo, Value};
use crate::format::map::Mapped;
use crate::kernels::Matrix;
use std::path::Path;

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

/// The bytes of a file with the table that finds tensors in them.
pub(super) struct GgufFile {
    bytes: Bytes,
    pub gguf: Gguf,
}

impl GgufFile {
    /// Maps a file.
    pub fn open(path: &Path) -> Result<Self> {
        let place = path.display().to_string();
        let mapped = Mapped::open(path).map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => Error::new(Kind::Input, &place, "no such file"),
            std::io::ErrorKind::InvalidData | std::io::ErrorKind::InvalidInput => {
                Error::new(Kind::Input, &place, e.to_string())
            }
            _ => Error::io(&place, e),
        })?;
        Self::new(Bytes::Mapped(mapped)).map_err(|e| e.at(&place))
    }

    /// The same from memory.
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Self> {
        Self::new(Bytes::Owned(bytes))
    }

    fn new(bytes: Bytes) -> Result<Self> {
        let gguf = Gguf::parse(&bytes)?;
        Ok(Self { bytes, gguf })
    }

    /// Shape, task and labels, once every tensor fits them.
    pub fn check(&self) -> Result<(Hparams, Task, Vec<String>)> {
        let (gguf, bytes) = (&self.gguf, &self.bytes);
        let (hparams, task, labels) = read(gguf)?;
        check_tensors(gguf, &hparams, task, labels.len())?;
        // Blocks begin with a 16-bit scale, and kernels read them where they lie.
        if let Some(t) = gguf.tensors.iter().find(|t| !gguf.data(bytes, t).as_ptr().addr().is_multiple_of(2)) {
            let message = format!("begins at an odd byte (offset {}, general.alignment {})", t.offset, gguf.alignment);
            return Err(Error::new(Kind::Input, format!("tensor `{}`", t.name), message));
        }
        Ok((hparams, task, labels))
    }

    pub fn tensor(&self, name: &str) -> Option<(&TensorInfo, &[u8])> {
        let info = self.gguf.tensor(name)?;
        Some((info, self.gguf.data(&self.bytes, info)))
    }

    /// A weight matrix (rows, cols) by its place in the table.
    pub fn matrix(&self, index: usize) -> Matrix<'_> {
        let info = &self.gguf.tensors[index];
        let dim = |i: usize| info.dims.get(i).map_or(1, |d| *d as usize);
        Matrix { ty: info.ty, rows: dim(1), cols: dim(0), data: self.gguf.data(&self.bytes, info) }
    }

    pub fn chat_source(&self) -> Result<Option<&str>> {
        match self.gguf.str("tokenizer.chat_template") {
            Ok(source) => Ok(Some(source)),
            Err(GgufError::NoKey(_)) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }
}

/// Shape, task and labels from the metadata.
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
        Ok(name) => Task::from_name(name)
            .ok_or_else(|| input(format!("edgeft.task is `{name}`; known: generate, classify, answer, embed")))?,
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
