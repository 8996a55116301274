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
    /// The last step, once a budget has decided it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub planned: Option<usize>,
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
    let moments = optimizer.moments.iter().flat_map(|(name, m)| [(name, "m", &m.m), (name, "v", &m.v)]);
    let moments = moments.map(|(name, which, values)| (format!("{name}.{which}"), Floats::Slice(values)));
    write_floats(&temporary.join("optimizer.safetensors"), moments)?;
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

/// Writes named f32 tensors as safetensors with PEFT's metadata, atomically.
pub fn write_tensors(path: &Path, tensors: &BTreeMap<String, Tensor>) -> anyhow::Result<()> {
    write_floats(path, tensors.iter().map(|(name, t)| (name.clone(), Floats::Tensor(t))))
}

/// f32 values on their way to a file.
enum Floats<'a> {
    Tensor(&'a Tensor),
    Slice(&'a [f32]),
}

/// The shape of a tensor whose bytes follow later: makes the library write the header alone.
struct Promise(Vec<usize>);

impl safetensors::View for Promise {
    fn dtype(&self) -> safetensors::Dtype {
        safetensors::Dtype::F32
    }

    fn shape(&self) -> &[usize] {
        &self.0
    }

    fn data(&self) -> std::borrow::Cow<'_, [u8]> {
        (&[]).into()
    }

    fn data_len(&self) -> usize {
        4 * self.0.iter().product::<usize>()
    }
}

/// One tensor's bytes at a time are in memory beside the tensors themselves: a file of every weight, held whole, would be
/// the peak of a run.
fn write_floats<'a>(path: &Path, named: impl Iterator<Item = (String, Floats<'a>)>) -> anyhow::Result<()> {
    use anyhow::Context;
    use std::io::Write;
    let mut named: Vec<(String, Floats)> = named.collect();
    named.sort_by(|a, b| a.0.cmp(&b.0)); // the header's order, where all are of one type
    let shape = |f: &Floats| match f {
        Floats::Tensor(t) => t.dims().to_vec(),
        Floats::Slice(values) => vec![values.len()],
    };
    let meta = [("format".to_owned(), "pt".to_owned())].into_iter().collect();
    let header = safetensors::serialize(named.iter().map(|(n, f)| (n.as_str(), Promise(shape(f)))), Some(meta))?;
    let mut file = beside(path)?;
    let mut write = |bytes: &[u8]| file.write_all(bytes).with_context(|| format!("cannot write {}", path.display()));
    write(&header)?;
    let bytes = |values: &[f32]| values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
    for (_, floats) in &named {
        match floats {
            Floats::Tensor(t) => write(&bytes(Host::new(&t.contiguous()?)?.slice()))?,
            Floats::Slice(values) => values.chunks(1 << 20).try_for_each(|part| write(&bytes(part)))?,
        }
    }
    file.as_file().sync_all().with_context(|| format!("cannot write {}", path.display()))?;
    finish(file, path)
}

fn beside(path: &Path) -> anyhow::Result<tempfile::NamedTempFile> {
    use anyhow::Context;
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    tempfile::NamedTempFile::new_in(folder).with_context(|| format!("cannot write in {}", folder.display()))
}

/// Writes beside the final name, flushes, renames.
pub fn write_synced(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    use anyhow::Context;
    use std::io::Write;
    let mut file = beside(path)?;
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
