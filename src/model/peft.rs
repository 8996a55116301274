//! Adapters in PEFT's format: `adapter_config.json` + `adapter_model.safetensors`, readable by PEFT and read from it.
//!
//! Loading is strict both ways: a key that no module takes, and a module that no key fills, are errors by name.
//!
//! - [`config`]: `adapter_config.json`; [`targets`]: which modules it means
//! - [`file`]: the tensors under their modules' names; [`mlx`]: mlx-lm's files, read as PEFT's
//! - [`fold`]: an adapter folded into its weights
//! - [`pissa`]: pairs that start as the largest part of their weight, and leave as plain ones; [`svd`] finds that part

pub mod config;
pub mod file;
pub mod fold;
pub mod mlx;
pub mod pissa;
pub mod svd;
pub mod targets;

pub use config::{AdapterConfig, Kind};

use super::layers::adapter::Adapter;
use super::layers::dora::Dora;
use super::layers::ia3::Ia3;
use super::layers::linear::Linear;
use super::layers::lora::Lora;
use super::network::Network;
use crate::rng;
use candle_core::{DType, Device, Tensor};
use file::{AdapterFile, PREFIX};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use targets::is_called;

/// # Errors
/// A target that no module is called, a layer that is not there: a slip of the pen would leave modules untuned in silence.
pub fn every_target_is_there(network: &mut Network, config: &AdapterConfig) -> anyhow::Result<()> {
    let layers = network.config.num_hidden_layers;
    if let Some(layer) = config.layers.iter().flatten().find(|layer| **layer >= layers) {
        crate::bad_input!("no layer {layer}: this model has layers 0-{}", layers - 1);
    }
    let paths: Vec<String> = network.linears().into_iter().map(|l| l.name.clone()).collect();
    let idle = |target: &&String| !paths.iter().any(|path| is_called(path, target));
    if let Some(target) = config.target_modules.iter().find(idle) {
        crate::bad_input!("no module is called {target}; this model has: {}", last_parts(paths.iter()));
    }
    Ok(())
}

/// What modules are called, each once.
fn last_parts<'a>(paths: impl Iterator<Item = &'a String>) -> String {
    let mut names: Vec<&str> = paths.filter_map(|p| p.rsplit('.').next()).collect();
    names.sort_unstable();
    names.dedup();
    names.join(", ")
}

/// Puts fresh adapters on every target: A uniform in ±1/√in, as PEFT's kaiming with a = √5 comes out; B zero; magnitudes the
/// norms of rows; (IA)³'s vectors ones. Heads that the task needs become trained.
///
/// # Errors
/// When no module is a target.
pub fn attach(network: &mut Network, config: &AdapterConfig, seed: u64) -> anyhow::Result<()> {
    let device = network.device().clone();
    let fresh = network.fresh.clone();
    network.train_whole(&config.modules_to_save)?;
    let mut attached = 0;
    let mut names = Vec::new();
    for linear in network.linears() {
        names.push(linear.name.clone());
        if fresh.contains(&linear.name) {
            linear.trained = true; // it starts from noise: low rank would not do
            continue;
        }
        if config.targets(&linear.name) && !linear.trained {
            linear.adapter = Some(fresh_adapter(linear, config, seed, &device)?);
            attached += 1;
        }
    }
    network.head_modules().into_iter().for_each(|head| head.trained = true);
    network.end_at_lowest();
    if attached == 0 {
        let wanted = config.target_pattern.clone().unwrap_or_else(|| config.target_modules.join(", "));
        crate::bad_input!("no module is called {wanted}; this model has: {}", last_parts(names.iter()));
    }
    Ok(())
}

fn fresh_adapter(linear: &Linear, config: &AdapterConfig, seed: u64, device: &Device) -> anyhow::Result<Adapter> {
    let (out, input) = linear.dims()?;
    let name = &linear.name;
    if config.kind == Kind::Ia3 {
        let feedforward = config.is_feedforward(name);
        let shape = if feedforward { (1, input) } else { (out, 1) };
        return Ok(Adapter::Ia3(Ia3 { l: Tensor::ones(shape, DType::F32, device)?, feedforward }));
    }
    let r = config.rank(name);
    let bound = 1.0 / (input as f32).sqrt();
    let stream = rng::stream(&format!("{name}.lora_A"), 0);
    let a: Vec<f32> = (0..r * input).map(|i| (2.0 * rng::uniform(seed, stream, i as u64) - 1.0) * bound).collect();
    let pair = Lora {
        a: Tensor::from_vec(a, (r, input), device)?,
        b: Tensor::zeros((out, r), DType::F32, device)?,
        scale: config.scale(name),
        dropout: config.dropout,
    };
    Ok(match config.kind {
        Kind::Dora => Adapter::Dora(Dora::new(pair, &linear.dense()?)?),
        _ => Adapter::Lora(pair),
    })
}

/// Fills the trained tensors of a network (after [`attach`]) from the adapter in `dir`.
///
/// # Errors
/// A key without a place, a place without a key, another shape: by name.
pub fn load_into(network: &mut Network, dir: &Path) -> anyhow::Result<()> {
    let file = AdapterFile::open(dir, network.config.family.prefix())?;
    let path = file.path.display();
    let device = network.device().clone();
    let mut unused: BTreeSet<String> = file.names().map(str::to_owned).collect();
    let mut outcome = Ok(());
    network.trained(&mut |name, tensor| {
        if outcome.is_err() {
            return;
        }
        unused.remove(&name);
        outcome = (|| {
            let Some(found) = file.shape(&name) else {
                crate::bad_input!("{path}: no tensor `{PREFIX}{name}`, which this model needs");
            };
            if found != tensor.dims() {
                crate::bad_input!(
                    "{path}: tensor `{}` has shape {found:?}, the base model needs {:?}; is it the base it was tuned on?",
                    file.key(&name),
                    tensor.dims()
                );
            }
            *tensor = file.tensor(&name, &device)?;
            Ok(())
        })();
    });
    outcome?;
    if let Some(name) = unused.first() {
        crate::bad_input!("{path}: no module takes tensor `{}` ({} such)", file.key(name), unused.len());
    }
    Ok(())
}

/// Keys of an adapter for vectors, as PEFT meets the modules of the trunk alone.
pub fn on_the_trunk(tensors: BTreeMap<String, Tensor>, trunk: &str) -> BTreeMap<String, Tensor> {
    let from = format!("{PREFIX}{trunk}");
    let bare = |name: String| name.strip_prefix(&from).map(|rest| format!("{PREFIX}{rest}")).unwrap_or(name);
    tensors.into_iter().map(|(name, tensor)| (bare(name), tensor)).collect()
}

/// The trained tensors under PEFT's keys.
pub fn tensors(network: &mut Network) -> BTreeMap<String, Tensor> {
    let mut out = BTreeMap::new();
    network.trained(&mut |name, tensor| {
        out.insert(format!("{PREFIX}{name}"), tensor.clone());
    });
    out
}
