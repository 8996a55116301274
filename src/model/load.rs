//! safetensors files, or a GGUF file, → named weights under Hugging Face's names.
//!
//! Files are mapped and converted one tensor at a time (f32, f16, bf16 on disk). Sharded checkpoints are read through
//! `model.safetensors.index.json`.

use super::gguf::GgufBase;
use super::layers::nf4::Nf4;
use super::layers::weight::{Rows, Weight};
use crate::error::BadInput;
use crate::rng;
use candle_core::{Device, Tensor};
use edgeft_runtime::format::GgmlType;
use edgeft_runtime::format::gguf::Gguf;
use half::slice::HalfFloatSliceExt;
use rayon::prelude::*;
use safetensors::{Dtype, SafeTensors};
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The safetensors files of a folder, or a GGUF file, mapped.
pub struct Checkpoint {
    files: Vec<(PathBuf, Bytes)>,
    /// Tensor name → index into `files`.
    place: BTreeMap<String, usize>,
    random: Option<Random>,
    gguf: Option<GgufBase>,
    /// Whether projections are rounded to NF4 as they are read.
    nf4: bool,
}

/// A start from noise: every tensor that is asked for exists.
#[derive(Debug, Clone, Copy)]
pub struct Random {
    /// Seed of the values.
    pub seed: u64,
    /// Standard deviation of matrices, `initializer_range`.
    pub deviation: f32,
    /// Blocks in the network: what writes into the residual stream starts smaller by √(2 n), as GPT-2 did.
    pub n_layers: usize,
}

impl Random {
    fn values(&self, name: &str, shape: &[usize]) -> Vec<f32> {
        let n = shape.iter().product();
        if shape.len() == 1 {
            return vec![if name.ends_with("bias") { 0.0 } else { 1.0 }; n];
        }
        let residual = ["o_proj.weight", "down_proj.weight", "c_proj.weight"].iter().any(|end| name.ends_with(end));
        let scale = if residual { self.deviation / (2.0 * self.n_layers as f32).sqrt() } else { self.deviation };
        let stream = rng::stream(name, 0);
        (0..n as u64).map(|i| rng::normal(self.seed, stream, i) * scale).collect()
    }
}

/// Bytes of one file.
enum Bytes {
    Mapped(memmap2::Mmap),
    /// A model that travels inside this program.
    Embedded(&'static [u8]),
}

impl std::ops::Deref for Bytes {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        match self {
            Self::Mapped(map) => map,
            Self::Embedded(bytes) => bytes,
        }
    }
}

/// What the names of a trunk's tensors may begin with.
const PREFIXES: [&str; 5] = ["model.", "transformer.", "bert.", "roberta.", "distilbert."];
impl Bytes {
    /// Gives the pages of a part back to the system once it has been copied out: a model would stand in memory twice while
    /// it is read, as a file and as f32.
    #[allow(unsafe_code)]
    fn release(&self, from: usize, len: usize) {
        #[cfg(unix)]
        if let Self::Mapped(map) = self {
            // SAFETY: the map is shared and read-only, so what is dropped is read from the file again when it is asked for.
            // A system that refuses keeps the pages, which costs memory and nothing else.
            let _ = unsafe { map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, from, len) };
        }
        #[cfg(not(unix))]
        let _ = (from, len);
    }
}

impl Checkpoint {
    /// Reads a safetensors file that is part of this program.
    pub fn embedded(name: &str, bytes: &'static [u8]) -> anyhow::Result<Self> {
        let file = PathBuf::from(name);
        let place = parse(&file, bytes)?.names().into_iter().map(|n| (n.to_string(), 0)).collect();
        Ok(Self { files: vec![(file, Bytes::Embedded(bytes))], place, random: None, gguf: None, nf4: false })
    }

    /// A GGUF file.
    ///
    /// # Errors
    /// [`BadInput`] naming the file: cut short, of another kind, a tensor that no module takes.
    pub fn gguf(path: &Path) -> anyhow::Result<Self> {
        let base = GgufBase::open(path)?;
        let place = base.names().map(|name| (name.to_owned(), 0)).collect();
        Ok(Self { files: Vec::new(), place, random: None, gguf: Some(base), nf4: false })
    }

    /// The same with every projection rounded to NF4: what is read from now on is what an adapter was, or will be, trained on.
    pub fn in_nf4(self) -> Self {
        Self { nf4: true, ..self }
    }

    fn rounds(&self, name: &str, shape: &[usize]) -> bool {
        self.nf4 && is_projection(name, shape)
    }

    /// Metadata of the GGUF file that this is.
    pub fn metadata(&self) -> Option<&Gguf> {
        self.gguf.as_ref().map(GgufBase::gguf)
    }

    /// What a GGUF file divides its rotary frequencies by, where it says so.
    pub fn rope_divisors(&self) -> Option<Vec<f32>> {
        self.gguf.as_ref()?.rope_divisors()
    }

    /// No file: a network that starts from random weights.
    pub fn random(random: Random) -> Self {
        Self { files: Vec::new(), place: BTreeMap::new(), random: Some(random), gguf: None, nf4: false }
    }

    /// Opens `model.safetensors`, the shards of `model.safetensors.index.json`, or the one file given.
    ///
    /// # Errors
    /// [`BadInput`] naming the file: missing, cut short, a name that stands twice.
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        let mut files = Vec::new();
        let mut place = BTreeMap::new();
        for file in files_of(path)? {
            let map = map(&file)?;
            let view = parse(&file, &map)?;
            for name in view.names() {
                if place.insert(name.to_string(), files.len()).is_some() {
                    crate::bad_input!("{}: tensor `{name}` also stands in another file", file.display());
                }
            }
            drop(view);
            files.push((file, map));
        }
        Ok(Self { files, place, random: None, gguf: None, nf4: false })
    }

    /// Whether there is no file, and every tensor is noise.
    pub fn is_random(&self) -> bool {
        self.random.is_some()
    }

    /// What a weight of this name and shape takes in memory once it is read: its blocks where it stays in them, else f32.
    pub fn resident_bytes(&self, name: &str, shape: &[usize]) -> u64 {
        let n: usize = shape.iter().product();
        let blocks = self.gguf.as_ref().filter(|_| shape.len() == 2).and_then(|g| g.rows(name)).and_then(|rows| {
            let (out, input) = rows.dims();
            rows.ty().row_bytes(input).map(|bytes| bytes * out)
        });
        let bytes = match blocks {
            Some(bytes) => bytes,
            None if self.rounds(name, shape) => Nf4::bytes(n),
            None => 4 * n,
        };
        bytes as u64
    }

    /// What reading it takes besides, while it is copied: its bytes in the file, which are mapped, and, where it is rounded, its
    /// values in f32. A GGUF file stays mapped, and is counted as the blocks that it holds.
    pub fn loading_bytes(&self, name: &str, shape: &[usize]) -> u64 {
        let Some((file, map)) = self.place.get(name).and_then(|at| self.files.get(*at)) else { return 0 };
        let stored = parse(file, map).ok().and_then(|view| Some(view.tensor(name).ok()?.data().len())).unwrap_or(0);
        let values = if self.rounds(name, shape) { 4 * shape.iter().product::<usize>() } else { 0 };
        (stored + values) as u64
    }

    /// Bytes of a model that travels inside this program: its pages stay in memory once they were read.
    pub fn embedded_bytes(&self) -> u64 {
        let embedded = |bytes: &Bytes| matches!(bytes, Bytes::Embedded(_));
        self.files.iter().filter(|(_, bytes)| embedded(bytes)).map(|(_, bytes)| bytes.len() as u64).sum()
    }

    /// Names of all tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.place.keys().map(String::as_str)
    }

    /// Whether a tensor of that name exists.
    pub fn contains(&self, name: &str) -> bool {
        self.random.is_some() || self.place.contains_key(name)
    }

    /// Name of a tensor as this checkpoint spells it: trunks are saved with and without their prefix, and old BERTs call a
    /// norm's weight and bias gamma and beta.
    pub fn called(&self, name: &str) -> String {
        let bare = PREFIXES.iter().find_map(|p| name.strip_prefix(p)).unwrap_or(name);
        let old =
            |n: &str| n.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta");
        let spellings = [name.to_owned(), bare.to_owned(), old(name), old(bare)];
        spellings.into_iter().find(|n| self.contains(n)).unwrap_or_else(|| name.to_owned())
    }

    /// Shape of a tensor, if it exists.
    pub fn shape(&self, name: &str) -> Option<Vec<usize>> {
        if let Some(gguf) = &self.gguf {
            return gguf.shape(name);
        }
        let (file, map) = &self.files[*self.place.get(name)?];
        parse(file, map).ok()?.tensor(name).ok().map(|t| t.shape().to_vec())
    }

    /// Values of a tensor as f32, row-major, with its shape.
    pub fn read(&self, name: &str) -> anyhow::Result<(Vec<usize>, Vec<f32>)> {
        let (shape, values) = self.stored(name)?;
        if self.rounds(name, &shape) {
            let values = Nf4::quantize(&values, shape[0], shape[1]).dequantize();
            return Ok((shape, values));
        }
        Ok((shape, values))
    }

    /// Values as the file has them.
    fn stored(&self, name: &str) -> anyhow::Result<(Vec<usize>, Vec<f32>)> {
        let Some(&at) = self.place.get(name) else {
            crate::bad_input!("{}: no tensor `{name}`", self.file(0).display());
        };
        if let Some(gguf) = &self.gguf {
            let (Some(shape), Some(values)) = (gguf.shape(name), gguf.read(name)) else {
                crate::bad_input!("{}: tensor `{name}` cannot be read", gguf.path().display());
            };
            return Ok((shape, values));
        }
        let (file, map) = &self.files[at];
        let view = parse(file, map)?;
        let tensor = view.tensor(name)?;
        let values = values(file, map, name, tensor.dtype(), tensor.data())?;
        Ok((tensor.shape().to_vec(), values))
    }

    /// Some rows of a matrix as [`Checkpoint::read`] gives them; `None` for what is none, or is only read whole.
    pub fn rows(&self, name: &str, rows: Range<usize>) -> anyhow::Result<Option<Vec<f32>>> {
        let Some(shape) = self.shape(name) else { return Ok(None) };
        let [all, cols] = shape[..] else { return Ok(None) };
        if self.random.is_some() || self.rounds(name, &shape) || rows.end > all {
            return Ok(None);
        }
        if let Some(gguf) = &self.gguf {
            let Some(blocks) = gguf.rows(name) else { return Ok(None) };
            let mut out = vec![0.0; rows.len() * cols];
            out.par_chunks_mut(cols).zip(rows).for_each(|(out, row)| blocks.decode(row, out));
            return Ok(Some(out));
        }
        let Some(&at) = self.place.get(name) else { return Ok(None) };
        let (file, map) = &self.files[at];
        let view = parse(file, map)?;
        let tensor = view.tensor(name)?;
        let row_bytes = tensor.data().len() / all;
        let data = &tensor.data()[rows.start * row_bytes..rows.end * row_bytes];
        values(file, map, name, tensor.dtype(), data).map(Some)
    }

    /// A tensor on `device`, whose shape must be `shape`.
    pub fn tensor(&self, name: &str, shape: &[usize], device: &Device) -> anyhow::Result<Tensor> {
        if let Some(random) = self.random {
            return Ok(Tensor::from_vec(random.values(name, shape), shape, device)?);
        }
        let (found, values) = self.read(name)?;
        if found != shape {
            self.other_shape(name, &found, shape)?;
        }
        if let Some(at) = values.iter().position(|v| !v.is_finite()) {
            let (file, _) = &self.files[self.place[name]];
            let columns = shape.last().copied().unwrap_or(1).max(1);
            crate::bad_input!(
                "{}: tensor `{name}` holds {} at row {}, column {}; the file is damaged or its training diverged: fetch it again",
                file.display(),
                values[at],
                at / columns,
                at % columns
            );
        }
        Ok(Tensor::from_vec(values, shape, device)?)
    }

    /// A matrix as a layer uses it, whose shape must be (out, in). What a GGUF file holds in fewer than 32 bits stays in the
    /// file, in its blocks; what is rounded to NF4 stays in that.
    pub fn weight(&self, name: &str, shape: [usize; 2], device: &Device) -> anyhow::Result<Weight> {
        if let Some(rows) = self.gguf.as_ref().and_then(|g| g.rows(name)).filter(|r| r.ty() != GgmlType::F32) {
            let (out, input) = rows.dims();
            if [out, input] != shape {
                self.other_shape(name, &[out, input], &shape)?;
            }
            return Ok(Weight::Frozen(Arc::new(rows)));
        }
        if self.rounds(name, &shape) {
            let (found, values) = self.stored(name)?;
            if found != shape {
                self.other_shape(name, &found, &shape)?;
            }
            return Ok(Weight::Frozen(Arc::new(Nf4::quantize(&values, shape[0], shape[1]))));
        }
        Ok(self.tensor(name, &shape, device)?.into())
    }

    fn other_shape(&self, name: &str, found: &[usize], expected: &[usize]) -> anyhow::Result<()> {
        let (file, source) =
            (self.file(self.place[name]), if self.gguf.is_some() { "its metadata" } else { "config.json" });
        crate::bad_input!("{}: tensor `{name}` has shape {found:?}, {source} says {expected:?}", file.display());
    }

    fn file(&self, at: usize) -> PathBuf {
        match &self.gguf {
            Some(gguf) => gguf.path().to_owned(),
            None => self.files.get(at).map_or_else(PathBuf::new, |f| f.0.clone()),
        }
    }
}

/// A matrix inside a block: what QLoRA rounds. Embeddings, output heads and vectors are left as they are, as bitsandbytes
/// leaves them.
fn is_projection(name: &str, shape: &[usize]) -> bool {
    shape.len() == 2
        && name.ends_with(".weight")
        && name.split('.').any(|part| matches!(part, "layers" | "layer" | "h"))
}

fn files_of(path: &Path) -> anyhow::Result<Vec<PathBuf>> {
    if path.is_file() {
        return Ok(vec![path.to_owned()]);
    }
    let single = path.join("model.safetensors");
    if single.is_file() {
        return Ok(vec![single]);
    }
    let index = path.join("model.safetensors.index.json");
    if !index.is_file() {
        crate::bad_input!(
            "{}: neither model.safetensors nor model.safetensors.index.json; PyTorch .bin files are not read",
            path.display()
        );
    }
    let json: serde_json::Value = serde_json::from_slice(&std::fs::read(&index)?)
        .map_err(|e| BadInput(format!("{}: not valid JSON: {e}", index.display())))?;
    let Some(map) = json["weight_map"].as_object() else {
        crate::bad_input!("{}: no `weight_map`", index.display());
    };
    let mut names: Vec<&str> = map.values().filter_map(|v| v.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    for name in &names {
        // A shard name is a file name: a path out of the folder is an attack, not a checkpoint.
        if name.contains(['/', '\\']) || name.contains("..") {
            crate::bad_input!("{}: shard name `{name}` leaves the folder", index.display());
        }
    }
    Ok(names.into_iter().map(|n| path.join(n)).collect())
}

#[allow(unsafe_code)]
fn map(file: &Path) -> anyhow::Result<Bytes> {
    let handle = std::fs::File::open(file).map_err(|e| BadInput(format!("cannot open {}: {e}", file.display())))?;
    if handle.metadata()?.len() == 0 {
        crate::bad_input!("{}: the file is empty", file.display());
    }
    // SAFETY: the map is read-only and lives as long as the checkpoint; a file changed under us is the caller's breach,
    // as with every reader that maps, and what is read is copied out at once.
    Ok(Bytes::Mapped(unsafe { memmap2::Mmap::map(&handle)? }))
}

/// Values as f32 of a stretch of a file's tensor; its pages may leave memory afterwards.
fn values(file: &Path, map: &Bytes, name: &str, dtype: Dtype, data: &[u8]) -> anyhow::Result<Vec<f32>> {
    let values = match dtype {
        Dtype::F32 => wide(data, |bytes: &[u8; 4], out| *out = f32::from_le_bytes(*bytes)),
        Dtype::BF16 => wide(data, |bytes: &[u8; 2], out| *out = half::bf16::from_le_bytes(*bytes).to_f32()),
        Dtype::F16 => {
            let mut out = vec![0.0; data.len() / 2];
            data.par_chunks(2 * STRETCH).zip(out.par_chunks_mut(STRETCH)).for_each(|(bytes, out)| {
                let (pairs, _) = bytes.as_chunks::<2>();
                let halves: Vec<half::f16> = pairs.iter().map(|b| half::f16::from_le_bytes(*b)).collect();
                halves.convert_to_f32_slice(out);
            });
            out
        }
        other => {
            crate::bad_input!("{}: tensor `{name}` is {other:?}; weights must be F32, F16 or BF16", file.display())
        }
    };
    map.release(data.as_ptr() as usize - map.as_ptr() as usize, data.len());
    Ok(values)
}

/// Values that one task reads.
const STRETCH: usize = 1 << 14;

fn wide<const N: usize>(data: &[u8], read: impl Fn(&[u8; N], &mut f32) + Sync) -> Vec<f32> {
    let mut out = vec![0.0; data.len() / N];
    data.par_chunks(N * STRETCH).zip(out.par_chunks_mut(STRETCH)).for_each(|(bytes, out)| {
        bytes.as_chunks::<N>().0.iter().zip(out).for_each(|(bytes, out)| read(bytes, out));
    });
    out
}

fn parse<'a>(file: &Path, bytes: &'a [u8]) -> anyhow::Result<SafeTensors<'a>> {
    SafeTensors::deserialize(bytes)
        .map_err(|e| BadInput(format!("{}: not a whole safetensors file: {e}; fetch it again", file.display())).into())
}
