//! A GGUF file as a model: shape and task from the metadata, every tensor checked against both.
//!
//! - [`tensors`]: which tensors each family has, and of what shape

mod tensors;

use super::{Act, Arch, Hparams, Task, input};
use crate::error::{Error, Kind, Result};
use crate::format::gguf::{Array, Gguf, GgufError, TensorInfo, Value};
use crate::format::map::Mapped;
use crate::kernels::Matrix;
use std::path::Path;

/// Far more than any network has: what is kept for each layer must not fill the memory before a tensor is looked for.
const MOST_LAYERS: usize = 10_000;
/// Blocks of Gemma 3 27B, whose scores llama.cpp scales by the width of the model over its heads.
const LAYERS_OF_GEMMA_27B: usize = 62;

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
        tensors::check(gguf, &hparams, task, labels.len())?;
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
    if gguf.str("general.type") == Ok("adapter") {
        return Err(input("is an adapter and no model; give it to --adapter, beside its base".into()));
    }
    let arch = match gguf.str("general.architecture")? {
        "llama" => Arch::Llama,
        "qwen2" => Arch::Qwen2,
        "qwen3" => Arch::Qwen3,
        "gemma3" => Arch::Gemma3,
        "phi3" => Arch::Phi3,
        "gpt2" => Arch::Gpt2,
        "bert" => Arch::Bert,
        other => {
            return Err(input(format!(
                "architecture `{other}` is not supported; known: llama, qwen2, qwen3, gemma3, phi3, gpt2, bert"
            )));
        }
    };
    let keys = Keys { gguf, arch };
    let (hidden, n_heads) = (keys.size("embedding_length")?, keys.size("attention.head_count")?);
    let n_kv_heads = keys.optional("attention.head_count_kv")?.unwrap_or(n_heads);
    if n_heads == 0 || n_kv_heads == 0 || n_heads % n_kv_heads != 0 {
        return Err(input(format!("{n_heads} heads cannot share {n_kv_heads} key heads")));
    }
    let head_dim = match keys.optional("attention.key_length")? {
        Some(d) => d,
        None if hidden.is_multiple_of(n_heads) => hidden / n_heads,
        None => {
            return Err(input(format!(
                "embedding_length {hidden} is no multiple of {n_heads} heads, and key_length is not given"
            )));
        }
    };
    if let Some(v) = keys.optional("attention.value_length")?
        && v != head_dim
    {
        return Err(input(format!("value_length {v} differs from key_length {head_dim}, which is not supported")));
    }
    let layer_norms = matches!(arch, Arch::Gpt2 | Arch::Bert);
    let eps = if layer_norms { "attention.layer_norm_epsilon" } else { "attention.layer_norm_rms_epsilon" };
    let rotary_dim = if layer_norms { 0 } else { keys.optional("rope.dimension_count")?.unwrap_or(head_dim) };
    if !layer_norms && rotary_dim != head_dim && (arch != Arch::Phi3 || rotary_dim == 0 || rotary_dim > head_dim) {
        return Err(input(format!(
            "rope.dimension_count {rotary_dim} of head size {head_dim}: partial rotary embedding is not supported"
        )));
    }
    let rope_factor = match gguf.str(&keys.name("rope.scaling.type")) {
        Err(GgufError::NoKey(_)) | Ok("none") => 1.0,
        Ok("linear") => gguf.f32(&keys.name("rope.scaling.factor"))?,
        Ok(other) => return Err(input(format!("rope scaling `{other}` is not supported; known: none, linear"))),
        Err(e) => return Err(e.into()),
    };
    if let Some(long) = gguf.tensors.iter().find(|t| t.name.starts_with("rope_factors_")) {
        return Err(input(format!("tensor `{}`: rotations of two lengths (longrope) are not supported", long.name)));
    }
    for part in ["attn_logit_softcapping", "final_logit_softcapping"] {
        let cap = keys.float(part, 0.0)?;
        if cap != 0.0 {
            return Err(input(format!("{} is {cap}: capped logits are not supported", keys.name(part))));
        }
    }
    let embedding = gguf.tensor("token_embd.weight").ok_or_else(|| missing("token_embd.weight"))?;
    let n_layers = keys.size("block_count")?;
    let (sliding_window, local_layers) = keys.windows(n_layers.min(MOST_LAYERS))?;
    let hparams = Hparams {
        arch,
        n_vocab: embedding.dims.get(1).copied().unwrap_or(0) as usize,
        n_ctx: keys.size("context_length")?,
        hidden,
        ffn: keys.size("feed_forward_length")?,
        n_layers,
        n_heads,
        n_kv_heads,
        head_dim,
        norm_eps: gguf.f32(&keys.name(eps))?,
        rotary_dim,
        rope_theta: keys.float("rope.freq_base", 10_000.0)?,
        rope_factor,
        local_rope_theta: match arch {
            Arch::Gemma3 if sliding_window.is_some() => Some(keys.float("rope.freq_base_swa", 10_000.0)?),
            _ => None,
        },
        sliding_window,
        local_layers,
        attention_scale: keys.attention_scale(hidden, n_layers, n_heads, head_dim)?,
        embedding_scale: if arch == Arch::Gemma3 { (hidden as f32).sqrt() } else { 1.0 },
        activation: match arch {
            Arch::Bert => Act::Gelu,
            Arch::Gemma3 | Arch::Gpt2 => Act::GeluTanh,
            _ => Act::Silu,
        },
        // An encoder without the table (DistilBERT) knows no types, whatever llama.cpp must be told.
        n_token_types: match gguf.tensor("token_types.weight") {
            Some(_) if arch == Arch::Bert => gguf.u32("tokenizer.ggml.token_type_count")? as usize,
            _ => 0,
        },
        causal: arch != Arch::Bert,
    };
    for (name, value) in [
        ("embedding_length", hidden),
        ("head size", head_dim),
        ("context_length", hparams.n_ctx),
        ("feed_forward_length", hparams.ffn),
    ] {
        if value == 0 || value > 1 << 28 {
            return Err(input(format!("{name} is {value}")));
        }
    }
    if n_layers == 0 || n_layers > MOST_LAYERS {
        return Err(input(format!("block_count is {n_layers}; at most {MOST_LAYERS} are read")));
    }
    if rotary_dim % 2 != 0 {
        return Err(input(format!("head size {rotary_dim} is odd; rotary embedding needs pairs")));
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

/// Keys of one architecture.
struct Keys<'a> {
    gguf: &'a Gguf,
    arch: Arch,
}

impl Keys<'_> {
    fn name(&self, part: &str) -> String {
        format!("{}.{part}", self.arch.name())
    }

    fn size(&self, part: &str) -> Result<usize> {
        Ok(self.gguf.u32(&self.name(part))? as usize)
    }

    fn optional(&self, part: &str) -> Result<Option<usize>> {
        self.number(&self.name(part))
    }

    fn number(&self, key: &str) -> Result<Option<usize>> {
        match self.gguf.u32(key) {
            Ok(v) => Ok(Some(v as usize)),
            Err(GgufError::NoKey(_)) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    fn float(&self, part: &str, default: f32) -> Result<f32> {
        match self.gguf.f32(&self.name(part)) {
            Err(GgufError::NoKey(_)) => Ok(default),
            other => Ok(other?),
        }
    }

    /// The window, and in which layers it holds: empty is all of them.
    fn windows(&self, n_layers: usize) -> Result<(Option<usize>, Vec<bool>)> {
        let window = match self.arch {
            Arch::Gemma3 | Arch::Phi3 => self.optional("attention.sliding_window")?.filter(|w| *w > 0),
            _ => self.number("edgeft.attention.sliding_window")?,
        };
        if self.arch != Arch::Gemma3 || window.is_none() {
            return Ok((window, Vec::new()));
        }
        let wrong = |key: &str, n: usize| input(format!("{key} has {n} layers, block_count is {n_layers}"));
        let key = self.name("attention.sliding_window_pattern");
        for key in ["edgeft.attention.local_layers", &key] {
            let local: Vec<bool> = match self.gguf.get(key) {
                Some(Value::Array(Array::Bool(local))) => local.clone(),
                Some(Value::Array(Array::U32(local))) => local.iter().map(|l| *l != 0).collect(),
                Some(Value::Array(Array::I32(local))) => local.iter().map(|l| *l != 0).collect(),
                _ => continue,
            };
            return if local.len() == n_layers { Ok((window, local)) } else { Err(wrong(key, local.len())) };
        }
        // Every n-th layer sees all; llama.cpp takes 6 where nothing is said, and 0 for none.
        Ok((
            window,
            match self.number(&key)?.unwrap_or(6) {
                0 => Vec::new(),
                n => (0..n_layers).map(|i| i % n < n - 1).collect(),
            },
        ))
    }

    /// 1/√D, but for what our own key says, and for the largest Gemma 3, which llama.cpp knows by its layers.
    fn attention_scale(&self, hidden: usize, n_layers: usize, n_heads: usize, head_dim: usize) -> Result<f32> {
        match self.gguf.f32("edgeft.attention.scale") {
            Ok(scale) if scale.is_finite() && scale > 0.0 => Ok(scale),
            Ok(scale) => Err(input(format!("edgeft.attention.scale is {scale}"))),
            Err(GgufError::NoKey(_)) if self.arch == Arch::Gemma3 && n_layers == LAYERS_OF_GEMMA_27B => {
                Ok(1.0 / ((hidden / n_heads) as f32).sqrt())
            }
            Err(GgufError::NoKey(_)) => Ok(1.0 / (head_dim as f32).sqrt()),
            Err(e) => Err(e.into()),
        }
    }
}

fn missing(name: &str) -> Error {
    Error::new(Kind::Input, format!("tensor `{name}`"), "is missing")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::GgmlType;
    use crate::format::gguf::{DEFAULT_ALIGNMENT, VERSION};

    /// Metadata of a small Gemma 3, with keys put over it, and one tensor.
    fn gemma3(more: &[(&str, Value)]) -> Gguf {
        let mut keys: Vec<(String, Value)> = vec![("general.architecture".into(), Value::Str("gemma3".into()))];
        for (key, n) in [
            ("context_length", 64),
            ("embedding_length", 64),
            ("block_count", 7),
            ("feed_forward_length", 96),
            ("attention.head_count", 4),
            ("attention.head_count_kv", 2),
            ("attention.sliding_window", 16),
        ] {
            keys.push((format!("gemma3.{key}"), Value::U32(n)));
        }
        keys.push(("gemma3.attention.layer_norm_rms_epsilon".into(), Value::F32(1e-6)));
        for (key, value) in more {
            keys.retain(|(k, _)| k != key);
            keys.push(((*key).to_owned(), value.clone()));
        }
        let name = "token_embd.weight".to_owned();
        let embedding = TensorInfo { name, ty: GgmlType::F32, dims: vec![64, 40], offset: 0, bytes: 64 * 40 * 4 };
        let tensors = vec![embedding];
        Gguf { version: VERSION, alignment: DEFAULT_ALIGNMENT, data_start: 0, metadata: keys, tensors }
    }

    #[test]
    fn windows_go_by_layer_as_llama_cpp_has_them() {
        let local = |more: &[(&str, Value)]| -> String {
            let (h, ..) = read(&gemma3(more)).unwrap();
            (0..7).map(|i| if h.window(i).is_some() { 'l' } else { 'g' }).collect()
        };
        const PATTERN: &str = "gemma3.attention.sliding_window_pattern";
        assert_eq!(local(&[]), "lllllgl"); // every sixth where nothing is said
        assert_eq!(local(&[(PATTERN, Value::U32(3))]), "llgllgl");
        assert_eq!(local(&[(PATTERN, Value::U32(1))]), "ggggggg");
        assert_eq!(local(&[(PATTERN, Value::U32(0))]), "lllllll");
        let flags: Vec<bool> = "gllggll".chars().map(|c| c == 'l').collect();
        for key in [PATTERN, "edgeft.attention.local_layers"] {
            assert_eq!(local(&[(key, Value::Array(Array::Bool(flags.clone())))]), "gllggll");
        }
        assert_eq!(local(&[("gemma3.attention.sliding_window", Value::U32(0))]), "ggggggg");
        let (h, ..) = read(&gemma3(&[])).unwrap();
        assert_eq!((h.seen(100), h.seen(10)), (6 * 16 + 100, 70));
        assert_eq!((h.local_rope_theta, h.embedding_scale, h.attention_scale), (Some(1e4), 8.0, 0.25));
    }

    #[test]
    fn the_largest_gemma3_has_a_scale_of_its_own() {
        let blocks = ("gemma3.block_count", Value::U32(62));
        let length = ("gemma3.attention.key_length", Value::U32(4));
        let scale = |more: &[(&str, Value)]| read(&gemma3(more)).unwrap().0.attention_scale;
        assert_eq!(scale(&[blocks.clone(), length.clone()]), 0.25); // 64 over 4 heads
        assert_eq!(scale(std::slice::from_ref(&length)), 0.5);
        assert_eq!(scale(&[blocks, length, ("edgeft.attention.scale", Value::F32(0.125))]), 0.125);
    }

    #[test]
    fn what_would_be_another_network_is_refused_by_key() {
        let refuses = |more: &[(&str, Value)], because: &str| {
            let told = read(&gemma3(more)).unwrap_err().to_string();
            assert!(told.contains(because), "{told}");
        };
        refuses(&[("gemma3.final_logit_softcapping", Value::F32(30.0))], "final_logit_softcapping is 30");
        refuses(&[("gemma3.rope.dimension_count", Value::U32(8))], "partial rotary embedding");
        refuses(&[("gemma3.block_count", Value::U32(100_000))], "block_count is 100000; at most 10000");
        refuses(&[("edgeft.attention.scale", Value::F32(f32::NAN))], "edgeft.attention.scale is NaN");
        refuses(
            &[("edgeft.attention.local_layers", Value::Array(Array::Bool(vec![true])))],
            "local_layers has 1 layers, block_count is 7",
        );
        let mut long = gemma3(&[]);
        long.tensors[0].name = "rope_factors_long.weight".into();
        assert!(read(&long).unwrap_err().to_string().contains("longrope"));
    }
}
