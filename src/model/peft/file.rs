//! The tensors of an adapter, one at a time, under the names that its modules give them: PEFT's file without its prefix, or
//! mlx-lm's, whose pairs lie transposed.

use super::mlx;
use crate::model::load::Checkpoint;
use candle_core::{Device, Tensor};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// What PEFT writes before every name.
pub const PREFIX: &str = "base_model.model.";

/// PEFT's `task_type` of an adapter on a trunk without a head.
pub const TRUNK_ALONE: &str = "FEATURE_EXTRACTION";

/// An adapter's tensors.
pub struct AdapterFile {
    /// The file.
    pub path: PathBuf,
    tensors: Checkpoint,
    /// Name as a module gives it → (key in the file, whether it lies transposed).
    keys: BTreeMap<String, (String, bool)>,
}

impl AdapterFile {
    /// Opens the weights in an adapter's folder. `trunk` is what the names of the network's trunk begin with: an adapter for
    /// vectors stands on the trunk alone, whose modules PEFT calls without it.
    ///
    /// # Errors
    /// No file, or a key that is nobody's, by name.
    pub fn open(dir: &Path, trunk: &str) -> anyhow::Result<Self> {
        let bare = std::fs::read(dir.join("adapter_config.json"))
            .ok()
            .and_then(|bytes| serde_json::from_slice::<serde_json::Value>(&bytes).ok())
            .is_some_and(|config| config["task_type"] == TRUNK_ALONE);
        let mlx = mlx::is_at(dir);
        let path = dir.join(if mlx { mlx::WEIGHTS } else { "adapter_model.safetensors" });
        if !path.is_file() {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            crate::bad_input!("{}: no {name}; is the run finished?", dir.display());
        }
        let tensors = Checkpoint::open(&path)?;
        let mut keys = BTreeMap::new();
        for key in tensors.names() {
            let (name, transposed) = match key.strip_prefix(PREFIX) {
                Some(name) if bare && !name.starts_with(trunk) => (format!("{trunk}{name}"), false),
                Some(name) => (name.to_owned(), false),
                None if mlx => mlx::name(key),
                None => crate::bad_input!("{}: tensor `{key}` does not begin with `{PREFIX}`", path.display()),
            };
            keys.insert(name, (key.to_owned(), transposed));
        }
        Ok(Self { path, tensors, keys })
    }

    /// Names of all tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.keys.keys().map(String::as_str)
    }

    /// How the file itself calls a tensor.
    pub fn key<'a>(&'a self, name: &'a str) -> &'a str {
        self.keys.get(name).map_or(name, |(key, _)| key)
    }

    /// Shape of a tensor, if it is there.
    pub fn shape(&self, name: &str) -> Option<Vec<usize>> {
        let (key, transposed) = self.keys.get(name)?;
        let mut shape = self.tensors.shape(key)?;
        if *transposed {
            shape.reverse();
        }
        Some(shape)
    }

    /// Values of a tensor as f32.
    pub fn tensor(&self, name: &str, device: &Device) -> anyhow::Result<Tensor> {
        let Some((key, transposed)) = self.keys.get(name) else {
            crate::bad_input!("{}: no tensor `{PREFIX}{name}`", self.path.display());
        };
        let (shape, values) = self.tensors.read(key)?;
        let tensor = Tensor::from_vec(values, shape, device)?;
        Ok(if *transposed { tensor.t()?.contiguous()? } else { tensor })
    }
}
