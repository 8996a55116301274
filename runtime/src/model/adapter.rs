//! A GGUF adapter (LoRA, arXiv:2106.09685): low-rank pairs that stand beside a base of any block type, as llama.cpp's
//! `convert_lora_to_gguf.py` and `edgeft quantize RUN --adapter-only` write them.
//!
//! y = W x + α/r B (A x). A is kept as the file has it and B turned, both in f32, so that each number of A x adds one row to y.

use super::Model;
use super::gguf::GgufFile;
use crate::error::{Error, Kind, Result};
use crate::format::GgmlType;
use crate::format::block::decode;
use crate::format::gguf::{Gguf, GgufError};
use std::path::Path;
use std::sync::Arc;

/// The one matrix whose rows are looked up.
const EMBEDDING: &str = "token_embd.weight";
/// Matrices of a block that activations go through.
const OF_A_BLOCK: [&str; 8] =
    ["attn_q", "attn_k", "attn_v", "attn_qkv", "attn_output", "ffn_gate", "ffn_up", "ffn_down"];
/// The same outside of blocks.
const OF_A_HEAD: [&str; 4] = ["output.weight", "cls.weight", "cls.output.weight", EMBEDDING];

/// A checked adapter. Cloning shares the numbers.
#[derive(Clone)]
pub struct Adapter(Arc<Inner>);

struct Inner {
    name: String,
    arch: String,
    pairs: Vec<Pair>,
}

/// What is added to one matrix (out, in).
pub(crate) struct Pair {
    tensor: String,
    /// α/r.
    pub scale: f32,
    /// r.
    pub rank: usize,
    /// Output size of the whole matrix; of an embedding, C.
    pub out: usize,
    /// (r, in); of an embedding (V, r).
    pub a: Vec<f32>,
    /// (r, out): B turned.
    pub b: Vec<f32>,
}

impl Pair {
    /// Whether rows are looked up.
    pub fn is_embedding(&self) -> bool {
        self.tensor == EMBEDDING
    }
}

impl std::fmt::Debug for Adapter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Adapter({}, {})", self.0.name, self.0.arch)
    }
}

impl Adapter {
    /// Reads a GGUF adapter.
    ///
    /// # Errors
    /// `Io` when it cannot be opened; `Input` or `Shape` naming what is wrong inside, or what is no low-rank pair.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        if path.is_dir() {
            let message =
                "is a folder; an adapter is one file, as `edgeft quantize RUN --adapter-only --out FILE` writes it";
            return Err(Error::new(Kind::Input, path.display().to_string(), message));
        }
        Self::of(GgufFile::open(path)?, &path.display().to_string())
    }

    /// The same from memory; `name` stands in messages.
    ///
    /// # Errors
    /// As [`Adapter::open`].
    pub fn from_bytes(bytes: Vec<u8>, name: &str) -> Result<Self> {
        Self::of(GgufFile::from_bytes(bytes).map_err(|e| e.at(name))?, name)
    }

    /// `FILE`, or `FILE=SCALE` (also `FILE:SCALE`), as command lines give it: the adapter, and its scale, 1 unless given.
    ///
    /// # Errors
    /// As [`Adapter::open`].
    pub fn named(text: &str) -> Result<(Self, f32)> {
        let scaled = || {
            let (file, scale) = text.rsplit_once(['=', ':'])?;
            Some((file, scale.parse::<f32>().ok().filter(|s| s.is_finite())?))
        };
        let (file, scale) = scaled().filter(|_| !Path::new(text).is_file()).unwrap_or((text, 1.0));
        Ok((Self::open(file)?, scale))
    }

    /// One pair of these numbers: B is (r, out).
    #[cfg(test)]
    pub(crate) fn of_one(tensor: &str, rank: usize, a: Vec<f32>, b: Vec<f32>) -> Self {
        let (tensor, out) = (tensor.to_owned(), b.len() / rank);
        let pairs = vec![Pair { tensor, scale: 1.0, rank, out, a, b }];
        Self(Arc::new(Inner { name: "one".into(), arch: "llama".into(), pairs }))
    }

    fn of(file: GgufFile, name: &str) -> Result<Self> {
        let inner = read(&file, name).map_err(|e| e.at(name))?;
        Ok(Self(Arc::new(inner)))
    }

    /// File name or given name.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Memory that it takes.
    pub fn bytes(&self) -> u64 {
        self.0.pairs.iter().map(|p| 4 * (p.a.len() + p.b.len()) as u64).sum()
    }

    pub(crate) fn pairs(&self) -> &[Pair] {
        &self.0.pairs
    }

    /// The place of each pair's matrix in the table of its base.
    ///
    /// # Errors
    /// `Input` for another architecture, or a matrix that the base lacks; `Shape` for one of another shape.
    pub(crate) fn places(&self, model: &Model) -> Result<Vec<usize>> {
        let (gguf, arch) = (model.gguf()?, model.hparams().arch.name());
        let Inner { name, arch: made_for, pairs } = &*self.0;
        if made_for != arch {
            let message = format!("the adapter is for `{made_for}`, the model is `{arch}`");
            return Err(Error::new(Kind::Input, name, message));
        }
        pairs.iter().map(|pair| place(pair, gguf).map_err(|e| e.at(name))).collect()
    }
}

fn place(pair: &Pair, gguf: &Gguf) -> Result<usize> {
    let wrong = |kind, message: String| {
        Err(Error::new(kind, format!("tensor `{}`", pair.tensor), message + "; is it the base that it was tuned on?"))
    };
    let Some(at) = gguf.tensors.iter().position(|t| t.name == pair.tensor) else {
        return wrong(Kind::Input, "the adapter has a pair for it, the model has no such tensor".into());
    };
    let dims = &gguf.tensors[at].dims;
    let whole = |i: usize| dims.get(i).map_or(1, |d| *d as usize);
    let found =
        if pair.is_embedding() { [pair.a.len() / pair.rank, pair.out] } else { [pair.out, pair.a.len() / pair.rank] };
    if found != [whole(1), whole(0)] {
        let message = format!("the adapter's pair gives {found:?}, the model has {:?}", [whole(1), whole(0)]);
        return wrong(Kind::Shape, message);
    }
    Ok(at)
}

fn read(file: &GgufFile, name: &str) -> Result<Inner> {
    let gguf = &file.gguf;
    let refuse = |place: &str, message: String| Err(Error::new(Kind::Input, place, message));
    for (key, wanted) in [("general.type", "adapter"), ("adapter.type", "lora")] {
        let found = match gguf.str(key) {
            Err(GgufError::NoKey(_)) => "missing",
            other => other?,
        };
        if found != wanted {
            let message =
                format!("is {found}, where an adapter has `{wanted}`; `edgeft quantize RUN --adapter-only` writes one");
            return refuse(key, message);
        }
    }
    if gguf.get("adapter.alora.invocation_tokens").is_some() {
        return refuse(
            "adapter.alora.invocation_tokens",
            "an adapter that words of the prompt switch on is not read".into(),
        );
    }
    let arch = gguf.str("general.architecture")?.to_owned();
    let alpha = match gguf.f32("adapter.lora.alpha") {
        Err(GgufError::NoKey(_)) => 0.0,
        other => other?,
    };
    if !alpha.is_finite() {
        return refuse("adapter.lora.alpha", format!("is {alpha}"));
    }
    let mut pairs = Vec::new();
    for t in &gguf.tensors {
        if let Some(tensor) = t.name.strip_suffix(".lora_a") {
            pairs.push(pair(file, tensor, alpha)?);
        } else if t.name.strip_suffix(".lora_b").is_none_or(|base| gguf.tensor(&format!("{base}.lora_a")).is_none()) {
            let message = "is no half of a low-rank pair (lora_a, lora_b), and nothing else is applied beside a base (DoRA's \
                           lengths neither); merge the adapter instead";
            return refuse(&format!("tensor `{}`", t.name), message.into());
        }
    }
    if pairs.is_empty() {
        return refuse("", "an adapter without a tensor".into());
    }
    Ok(Inner { name: name.to_owned(), arch, pairs })
}

fn pair(file: &GgufFile, tensor: &str, alpha: f32) -> Result<Pair> {
    let block = |rest: &str| {
        rest.split_once('.')
            .is_some_and(|(_, part)| part.strip_suffix(".weight").is_some_and(|part| OF_A_BLOCK.contains(&part)))
    };
    if !OF_A_HEAD.contains(&tensor) && !tensor.strip_prefix("blk.").is_some_and(block) {
        let message =
            "a pair beside it is not applied, only beside the matrices of blocks, the head and the token embedding";
        return Err(Error::new(Kind::Input, format!("tensor `{tensor}`"), message));
    }
    let ([a_cols, a_rows], a) = half(file, &format!("{tensor}.lora_a"))?;
    let ([rank, out], b) = half(file, &format!("{tensor}.lora_b"))?;
    // Of an embedding, A has a row for each token.
    let of_a = if tensor == EMBEDDING { a_cols } else { a_rows };
    if of_a != rank {
        let message = format!("lora_a is {:?} and lora_b {:?}: no common rank", [a_rows, a_cols], [out, rank]);
        return Err(Error::new(Kind::Shape, format!("tensor `{tensor}`"), message));
    }
    let mut turned = vec![0.0; b.len()];
    for (i, row) in b.chunks(rank).enumerate() {
        row.iter().enumerate().for_each(|(k, v)| turned[k * out + i] = *v);
    }
    // llama.cpp takes no α as α = r.
    let scale = if alpha == 0.0 { 1.0 } else { alpha / rank as f32 };
    Ok(Pair { tensor: tensor.to_owned(), scale, rank, out, a, b: turned })
}

/// A matrix of floats, with ggml's dimensions.
fn half(file: &GgufFile, name: &str) -> Result<([usize; 2], Vec<f32>)> {
    let wrong = |kind, message: String| Err(Error::new(kind, format!("tensor `{name}`"), message));
    let Some((info, bytes)) = file.tensor(name) else {
        return wrong(Kind::Input, "is missing".into());
    };
    if info.dims.len() > 2 {
        return wrong(Kind::Shape, format!("has {} dimensions, half of a pair has 2", info.dims.len()));
    }
    if !matches!(info.ty, GgmlType::F32 | GgmlType::F16 | GgmlType::BF16) {
        return wrong(Kind::Input, format!("is {}; an adapter is read in f32, f16 or bf16", info.ty));
    }
    let dims = [0, 1].map(|i| info.dims.get(i).map_or(1, |d| *d as usize));
    let mut x = vec![0.0; dims[0] * dims[1]];
    decode(info.ty, bytes, &mut x);
    match x.iter().position(|v| !v.is_finite()) {
        Some(at) => wrong(Kind::Input, format!("row {}, column {} is {}", at / dims[0], at % dims[0], x[at])),
        None => Ok((dims, x)),
    }
}
