//! What a run needs to go on as if nothing had happened: trained weights, moments, and how far it was.
//!
//! `checkpoints/step-N/` holds `weights.safetensors`, `optimizer.safetensors` and `state.json`; the folder appears whole,
//! by rename. Order and dropout need no state: both are functions of (seed, step).

use super::optimizer::{AdamW, Moments};
use crate::error::BadInput;
use crate::model::layers::host::Host;
use crate::model::load::Checkpoint as Tensors;
use crate::model::network::Network;
use candle_core::Tensor;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// How far the run is.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// Optimizer steps done.
    pub step: usize,
    /// Micro-batches done.
    pub micro: u64,
    /// Best validation loss so far, and its step.
    pub best: Option<(f64, usize)>,
    /// Evaluations since the best one.
    pub stale: usize,
    /// Loss of the last step.
    pub loss: f64,
    /// Tokens seen.
    pub tokens: usize,
    /// Seconds spent in earlier processes.
    pub seconds: f64,
}

/// Writes `checkpoints/step-N` and removes older ones but the best.
pub fn save(run: &Path, network: &mut Network, optimizer: &AdamW, state: &State) -> anyhow::Result<()> {
    let folder = run.join("checkpoints");
    std::fs::create_dir_all(&folder)?;
    let temporary = folder.join(format!(".step-{}.partial", state.step));
    if temporary.exists() {
        std::fs::remove_dir_all(&temporary)?;
    }
    std::fs::create_dir(&temporary)?;
    write_tensors(&temporary.join("weights.safetensors"), &weights(network))?;
    write_tensors(&temporary.join("optimizer.safetensors"), &moments(optimizer, network)?)?;
    write_synced(&temporary.join("state.json"), serde_json::to_string_pretty(state)?.as_bytes())?;
    let place = folder.join(format!("step-{}", state.step));
    if place.exists() {
        std::fs::remove_dir_all(&place)?;
    }
    std::fs::rename(&temporary, &place)?;
    for (step, old) in list(run)? {
        if step != state.step && state.best.is_none_or(|(_, best)| best != step) {
            std::fs::remove_dir_all(old)?;
        }
    }
    Ok(())
}

/// The newest checkpoint of a run, if there is one.
pub fn newest(run: &Path) -> anyhow::Result<Option<PathBuf>> {
    Ok(list(run)?.into_iter().max_by_key(|(step, _)| *step).map(|(_, path)| path))
}

fn list(run: &Path) -> anyhow::Result<Vec<(usize, PathBuf)>> {
    let folder = run.join("checkpoints");
    if !folder.is_dir() {
        return Ok(Vec::new());
    }
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        let step = path
            .file_name()
            .and_then(|n| n.to_str())
            .and_then(|n| n.strip_prefix("step-"))
            .and_then(|n| n.parse().ok());
        if let Some(step) = step {
            found.push((step, path));
        }
    }
    Ok(found)
}

/// Puts a checkpoint back.
pub fn load(folder: &Path, network: &mut Network, optimizer: &mut AdamW) -> anyhow::Result<State> {
    let text = std::fs::read_to_string(folder.join("state.json"))
        .map_err(|e| BadInput(format!("cannot read {}: {e}", folder.join("state.json").display())))?;
    let state: State = serde_json::from_str(&text)?;
    restore_weights(folder, network)?;
    let file = Tensors::open(&folder.join("optimizer.safetensors"))?;
    optimizer.t = state.step as u64;
    let mut moments: BTreeMap<String, Moments> = BTreeMap::new();
    for key in file.names() {
        let values = file.read(key)?.1;
        if let Some(name) = key.strip_suffix(".m") {
            moments.entry(name.to_owned()).or_default().m = values;
        } else if let Some(name) = key.strip_suffix(".v") {
            moments.entry(name.to_owned()).or_default().v = values;
        }
    }
    optimizer.moments = moments;
    Ok(state)
}

/// Puts the weights of a checkpoint back, and nothing else.
pub fn restore_weights(folder: &Path, network: &mut Network) -> anyhow::Result<()> {
    let file = Tensors::open(&folder.join("weights.safetensors"))?;
    let device = network.device().clone();
    let mut outcome = Ok(());
    for _ in 0..2 {
        // twice: tied tensors follow on the second visit
        network.trained(&mut |name, tensor| {
            if outcome.is_ok() {
                outcome = file.tensor(&name, tensor.dims(), &device).map(|t| *tensor = t);
            }
        });
    }
    outcome
}

fn weights(network: &mut Network) -> BTreeMap<String, Tensor> {
    let mut out = BTreeMap::new();
    network.trained(&mut |name, tensor| {
        out.insert(name, tensor.clone());
    });
    out
}

fn moments(optimizer: &AdamW, network: &Network) -> anyhow::Result<BTreeMap<String, Tensor>> {
    let mut out = BTreeMap::new();
    for (name, moments) in &optimizer.moments {
        for (suffix, values) in [("m", &moments.m), ("v", &moments.v)] {
            out.insert(format!("{name}.{suffix}"), Tensor::from_slice(values, values.len(), network.device())?);
        }
    }
    Ok(out)
}

/// Writes named f32 tensors as safetensors with PEFT's metadata, atomically.
pub fn write_tensors(path: &Path, tensors: &BTreeMap<String, Tensor>) -> anyhow::Result<()> {
    let mut bytes: Vec<(String, Vec<usize>, Vec<u8>)> = Vec::with_capacity(tensors.len());
    for (name, tensor) in tensors {
        let tensor = tensor.contiguous()?;
        let raw = Host::new(&tensor)?.slice().iter().flat_map(|v| v.to_le_bytes()).collect();
        bytes.push((name.clone(), tensor.dims().to_vec(), raw));
    }
    let views = bytes
        .iter()
        .map(|(name, shape, raw)| {
            Ok((name.as_str(), safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.clone(), raw)?))
        })
        .collect::<Result<Vec<_>, safetensors::SafeTensorError>>()?;
    let meta = [("format".to_owned(), "pt".to_owned())].into_iter().collect();
    write_synced(path, &safetensors::serialize(views, Some(meta))?)
}

/// Writes beside the final name, flushes, renames.
pub fn write_synced(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    use anyhow::Context;
    use std::io::Write;
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut file =
        tempfile::NamedTempFile::new_in(folder).with_context(|| format!("cannot write in {}", folder.display()))?;
    file.write_all(bytes)
        .and_then(|()| file.as_file().sync_all())
        .with_context(|| format!("cannot write {}", path.display()))?;
    finish(file, path)
}

/// Gives a written and flushed file its name, as readable as any other file: temporary files are private.
pub fn finish(file: tempfile::NamedTempFile, path: &Path) -> anyhow::Result<()> {
    use anyhow::Context;
    let file = file.persist(path).with_context(|| format!("cannot write {}", path.display()))?;
    readable(&file)?;
    Ok(())
}

#[cfg(unix)]
fn readable(file: &std::fs::File) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    file.set_permissions(std::fs::Permissions::from_mode(0o644))
}

#[cfg(not(unix))]
fn readable(_: &std::fs::File) -> std::io::Result<()> {
    Ok(())
}
