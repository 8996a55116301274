//! safetensors files → named f32 tensors.
//!
//! Files are mapped and converted one tensor at a time (f32, f16, bf16 on disk). Sharded checkpoints are read through
//! `model.safetensors.index.json`.

use crate::error::BadInput;
use crate::rng;
use candle_core::{Device, Tensor};
use safetensors::{Dtype, SafeTensors};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The safetensors files of a folder, mapped.
pub struct Checkpoint {
    files: Vec<(PathBuf, Bytes)>,
    /// Tensor name → index into `files`.
    place: BTreeMap<String, usize>,
    random: Option<Random>,
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
        let residual = ["o_proj.weight", "down_proj.weight"].iter().any(|end| name.ends_with(end));
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
        Ok(Self { files: vec![(file, Bytes::Embedded(bytes))], place, random: None })
    }

    /// No file: a network that starts from random weights.
    pub fn random(random: Random) -> Self {
        Self { files: Vec::new(), place: BTreeMap::new(), random: Some(random) }
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
        Ok(Self { files, place, random: None })
    }

    /// Whether there is no file, and every tensor is noise.
    pub fn is_random(&self) -> bool {
        self.random.is_some()
    }

    /// Names of all tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.place.keys().map(String::as_str)
    }

    /// Whether a tensor of that name exists.
    pub fn contains(&self, name: &str) -> bool {
        self.random.is_some() || self.place.contains_key(name)
    }

    /// Shape of a tensor, if it exists.
    pub fn shape(&self, name: &str) -> Option<Vec<usize>> {
        let (file, map) = &self.files[*self.place.get(name)?];
        parse(file, map).ok()?.tensor(name).ok().map(|t| t.shape().to_vec())
    }

    /// Values of a tensor as f32, row-major, with its shape.
    pub fn read(&self, name: &str) -> anyhow::Result<(Vec<usize>, Vec<f32>)> {
        let Some(&at) = self.place.get(name) else {
            let file = self.files.first().map_or_else(PathBuf::new, |f| f.0.clone());
            crate::bad_input!("{}: no tensor `{name}`", file.display());
        };
        let (file, map) = &self.files[at];
        let view = parse(file, map)?;
        let tensor = view.tensor(name)?;
        let data = tensor.data();
        let values = match tensor.dtype() {
            Dtype::F32 => data.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
            Dtype::F16 => data.chunks_exact(2).map(|b| half::f16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
            Dtype::BF16 => data.chunks_exact(2).map(|b| half::bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
            other => {
                crate::bad_input!("{}: tensor `{name}` is {other:?}; weights must be F32, F16 or BF16", file.display())
            }
        };
        let shape = tensor.shape().to_vec();
        let (from, len) = (data.as_ptr() as usize - map.as_ptr() as usize, data.len());
        map.release(from, len);
        Ok((shape, values))
    }

    /// A tensor on `device`, whose shape must be `shape`.
    pub fn tensor(&self, name: &str, shape: &[usize], device: &Device) -> anyhow::Result<Tensor> {
        if let Some(random) = self.random {
            return Ok(Tensor::from_vec(random.values(name, shape), shape, device)?);
        }
        let (found, values) = self.read(name)?;
        if found != shape {
            let (file, _) = &self.files[self.place[name]];
            crate::bad_input!("{}: tensor `{name}` has shape {found:?}, config.json says {shape:?}", file.display());
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

fn parse<'a>(file: &Path, bytes: &'a [u8]) -> anyhow::Result<SafeTensors<'a>> {
    SafeTensors::deserialize(bytes)
        .map_err(|e| BadInput(format!("{}: not a whole safetensors file: {e}; fetch it again", file.display())).into())
}
