//! A RUN's adapter as a file of its own: llama.cpp's GGUF adapter, which stands beside a base of any block type, unmerged.
//!
//! llama.cpp multiplies a pair by `adapter.lora.alpha / r`; what else a run may say (α/√r, an α or a rank of a module's own) is
//! folded into that number or into B. Rows of B move as the rows of its matrix do on the way to GGUF.

use super::cannot;
use crate::merge::Exported;
use crate::model::open::Opened;
use crate::model::peft::fold::Fold;
use crate::model::peft::{AdapterConfig, Kind};
use crate::tune::checkpoint::write_synced;
use crate::tune::run_folder;
use anyhow::Context;
use candle_core::Device;
use edgeft_quantize::gguf::{Floats, floats};
use edgeft_quantize::plan::Origin;
use edgeft_quantize::{Mix, PlanOptions, TensorSource, plan};
use edgeft_runtime::format::gguf::Value;
use std::collections::BTreeMap;
use std::path::Path;

/// What was written.
pub struct Written {
    /// Matrices that have a pair.
    pub modules: usize,
    /// `adapter.lora.alpha`.
    pub alpha: f32,
    /// Size of the file.
    pub bytes: u64,
}

/// Writes the adapter of `opened` to `out`, whole or not at all.
///
/// # Errors
/// No adapter; one that is no low-rank pairs, or more than those; a matrix that GGUF has no tensor of its own for.
pub fn to_file(opened: &Opened, out: &Path) -> anyhow::Result<Written> {
    let Some(dir) = &opened.adapter else {
        crate::bad_input!("{}: no adapter; --adapter-only takes a RUN tuned with --method lora or qlora", opened.name);
    };
    let config = AdapterConfig::read(dir)?;
    let merge = format!("merge it instead: edgeft quantize {} --type q8_0 --out model.gguf", opened.name);
    match config.kind {
        Kind::Lora => {}
        Kind::Dora => crate::bad_input!(
            "{}: DoRA scales each row of the merged weight to a learned length, which pairs beside the base cannot express; {merge}",
            opened.name
        ),
        Kind::Ia3 => crate::bad_input!(
            "{}: (IA)³ scales activations, and GGUF adapters hold low-rank pairs alone; {merge}",
            opened.name
        ),
    }
    let family = opened.config.family;
    let fold = Fold::open(dir, family.prefix())?;
    if let Some(name) = fold.whole().next() {
        crate::bad_input!(
            "{}: the run trained `{name}` whole (a head, or --modules-to-save), and GGUF adapters hold low-rank pairs alone; {merge}",
            opened.name
        );
    }
    let exported = Exported::new(opened)?;
    let plan = plan(&exported, Mix::F32, &PlanOptions::default()).with_context(|| cannot(opened))?;
    let places: BTreeMap<&str, _> = plan
        .tensors
        .iter()
        .filter_map(|t| match &t.origin {
            Origin::Source(placed) => Some((placed.source.as_str(), (t.name.as_str(), placed.change))),
            Origin::RopeDivisors(_) => None,
        })
        .collect();
    let modules = fold.modules();
    // The first pair's product of scale and rank; those that say otherwise carry the rest in B.
    let product = |module: &str| config.scale(module) * config.rank(module) as f64;
    let alpha = modules.iter().map(|m| product(m)).find(|p| *p != 0.0).unwrap_or(1.0) as f32;
    let mut tensors = Vec::new();
    for module in &modules {
        let weight = opened.weights.called(&format!("{module}.weight"));
        let Some((name, change)) = places.get(weight.as_str()) else {
            crate::bad_input!(
                "{}: `{module}` has no matrix of its own in a GGUF file (it is tied to another); {merge}",
                opened.name
            );
        };
        let part = |end: &str| -> anyhow::Result<(Vec<usize>, Vec<f32>)> {
            let tensor = fold.file.tensor(&format!("{module}.{end}.weight"), &Device::Cpu)?;
            Ok((tensor.dims().to_vec(), tensor.flatten_all()?.to_vec1()?))
        };
        let ((a_shape, a), (b_shape, b)) = (part("lora_A")?, part("lora_B")?);
        // GPT-2's matrices lie turned in a checkpoint; its pairs do not.
        let mut b = match change {
            edgeft_quantize::names::Change::Turn => b,
            change => change.apply(b, &b_shape),
        };
        let rest = product(module) / f64::from(alpha);
        if (rest - 1.0).abs() > 1e-7 {
            b.iter_mut().for_each(|v| *v = (f64::from(*v) * rest) as f32);
        }
        tensors.push(Floats { name: format!("{name}.lora_a"), shape: a_shape, values: a });
        tensors.push(Floats { name: format!("{name}.lora_b"), shape: b_shape, values: b });
    }
    let text = |key: &str, value: &str| (key.to_owned(), Value::Str(value.to_owned()));
    let spec = exported.spec();
    let mut keys = vec![
        text("general.architecture", spec.arch.name()),
        text("general.type", "adapter"),
        text("general.name", &spec.name),
        text("adapter.type", "lora"),
        ("adapter.lora.alpha".into(), Value::F32(alpha)),
        text("edgeft.version", env!("CARGO_PKG_VERSION")),
        text("edgeft.provenance.adapter_sha256", &run_folder::sha256(&fold.file.path)?),
    ];
    if let Some(run) = &opened.run {
        keys.push(text("edgeft.provenance.base_sha256", &run.sha256.base));
    }
    let bytes = floats(&keys, tensors).with_context(|| cannot(opened))?;
    write_synced(out, &bytes)?;
    Ok(Written { modules: modules.len(), alpha, bytes: bytes.len() as u64 })
}
