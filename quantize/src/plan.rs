//! Which tensor gets which block type, with the reason beside it, before a single weight is read.
//!
//! The rules are llama.cpp's, so that `q4_k_m` here is the file that `llama-quantize` would write; what its log only warns
//! about is part of the plan: rows that are not a multiple of 256 elements cannot have a K type and get a larger one, and
//! small models are exactly the ones this hits. [`Plan::bits_per_weight`] is what the file really spends, and
//! [`PlanOptions::strict`] refuses to call such a file by the mix's name.

mod mix;

pub use mix::{Mix, Reason};
pub use regex::Regex;

use crate::{
    codec::uses_importance,
    error::{Error, Result},
    importance::{Coverage, Importance},
    names::{Destination, Placed, Skipped, place},
    source::{ModelSpec, RopeScaling, TensorSource},
};
use edgeft_runtime::format::{GgmlType, gguf::MAX_NAME};
use std::collections::BTreeMap;

/// What the user may change about a mix.
#[derive(Debug, Clone, Default)]
pub struct PlanOptions {
    /// Refuse when any tensor cannot have the type that the mix (or an override) gives it.
    pub strict: bool,
    /// Searched in GGUF names, the first match wins. It reaches matrices only: vectors stay f32.
    pub overrides: Vec<(Regex, GgmlType)>,
    /// Which columns matter; without it, all alike.
    pub importance: Option<Importance>,
    /// Types of single tensors by GGUF name, with the reason, where something better than the mix's rule is known; the user's
    /// own `overrides` win over them.
    pub chosen: BTreeMap<String, (GgmlType, Reason)>,
    /// Search longer inside each block than llama.cpp does: less error in the same bytes.
    pub best: bool,
}

/// Every tensor of the file to be, in file order.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The mix it was made for.
    pub mix: Mix,
    /// In the order of the file: outside of blocks by name, then block by block by name.
    pub tensors: Vec<Planned>,
    /// Heads that travel as f32-array keys: key and source tensor.
    pub keys: Vec<(&'static str, Placed)>,
    /// Source tensors that are left out, and why.
    pub skipped: Vec<Skipped>,
    /// Whether the token embedding is also the output matrix.
    pub tied: bool,
    /// Importance of the columns of those matrices that have statistics and a type that looks at them.
    pub importance: BTreeMap<String, Vec<f32>>,
    /// Which have, if there was an importance matrix.
    pub coverage: Option<Coverage>,
    /// Whether blocks are searched longer than llama.cpp does.
    pub best: bool,
}

/// One tensor of the file to be.
#[derive(Debug, Clone)]
pub struct Planned {
    /// GGUF name.
    pub name: String,
    /// Shape, rows first; 1-D tensors have one entry.
    pub shape: Vec<usize>,
    /// Where the values come from.
    pub origin: Origin,
    /// Type in the file.
    pub ty: GgmlType,
    /// Type that the mix or an override asked for; differs from `ty` when the rows are not whole blocks of it.
    pub wanted: GgmlType,
    /// Why it was asked for.
    pub reason: Reason,
}

/// Where a planned tensor's values come from.
#[derive(Debug, Clone)]
pub enum Origin {
    /// A tensor of the source.
    Source(Placed),
    /// Divisors of the rotary frequencies, from the config.
    RopeDivisors(Vec<f32>),
}

impl Planned {
    /// Elements.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }
    /// Elements of a row: ggml's first dimension.
    pub fn cols(&self) -> usize {
        self.shape[self.shape.len() - 1]
    }
    /// Bytes in the file, without padding.
    pub fn bytes(&self) -> u64 {
        let rows = (self.elements() / self.cols()) as u64;
        rows * self.ty.row_bytes(self.cols()).expect("the plan only gives types that fit the row") as u64
    }
    /// "rows of 96 are not whole q4_k blocks of 256: q5_0", or nothing.
    pub fn fallback(&self) -> Option<String> {
        let (cols, wanted) = (self.cols(), self.wanted);
        (self.ty != wanted)
            .then(|| format!("rows of {cols} are not whole {wanted} blocks of {}: {}", wanted.block_len(), self.ty))
    }
}

impl Plan {
    /// What the file is called: the mix, or where its types were chosen one by one the type of most and the true bits.
    pub fn name(&self) -> String {
        if self.tensors.iter().any(|t| t.reason == Reason::Budget) {
            return format!("{}-{:.2}bpw", self.mix.base(), self.bits_per_weight());
        }
        self.mix.name().to_owned()
    }
    /// Elements of all tensors.
    pub fn elements(&self) -> u64 {
        self.tensors.iter().map(|t| t.elements() as u64).sum()
    }
    /// Bytes of all tensors, without padding and metadata.
    pub fn bytes(&self) -> u64 {
        self.tensors.iter().map(Planned::bytes).sum()
    }
    /// What a weight really takes in this file.
    pub fn bits_per_weight(&self) -> f64 {
        8.0 * self.bytes() as f64 / self.elements() as f64
    }
    /// How many tensors get each type.
    pub fn types(&self) -> BTreeMap<GgmlType, usize> {
        let mut types = BTreeMap::new();
        for t in &self.tensors {
            *types.entry(t.ty).or_insert(0) += 1;
        }
        types
    }
    /// The importance of a tensor's columns, where it is known and of use.
    pub fn importance_of(&self, t: &Planned) -> Option<&[f32]> {
        self.importance.get(&t.name).map(Vec::as_slice)
    }
    /// Tensors that do not get what was asked for.
    pub fn fallbacks(&self) -> impl Iterator<Item = &Planned> {
        self.tensors.iter().filter(|t| t.ty != t.wanted)
    }
}

/// Plans a file. Weights are read only to see whether an output matrix repeats the token embedding.
///
/// # Errors
/// What [`place`] refuses; a spec that contradicts itself; a name too long for GGUF; an override that does nothing;
/// an importance matrix of another model; with [`PlanOptions::strict`], any fallback.
pub fn plan(source: &dyn TensorSource, mix: Mix, options: &PlanOptions) -> Result<Plan> {
    let spec = source.spec();
    check(spec)?;
    let (mut placed, mut skipped) = place(spec, &source.tensors())?;
    let tied = drop_repeated_output(source, &mut placed, &mut skipped)?;
    let mut keys = Vec::new();
    let mut tensors = Vec::new();
    for p in placed {
        match p.to.clone() {
            Destination::Key(key) => keys.push((key, p)),
            Destination::Tensor(name) => tensors.push((name, p.change.shape(&p.shape), Origin::Source(p))),
        }
    }
    if let Some(divisors) = rope_divisors(spec) {
        tensors.push(("rope_freqs.weight".into(), vec![divisors.len()], Origin::RopeDivisors(divisors)));
    }
    tensors.sort_by(|a, b| file_order(&a.0).cmp(&file_order(&b.0)));
    let mut used = vec![false; options.overrides.len()];
    let tensors = tensors
        .into_iter()
        .map(|(name, shape, origin)| choose(spec, mix, tied, options, &mut used, name, shape, origin))
        .collect::<Result<Vec<_>>>()?;
    if let Some(i) = used.iter().position(|u| !u) {
        return Err(Error::IdleOverride { pattern: options.overrides[i].0.to_string() });
    }
    let (importance, coverage) = match &options.importance {
        Some(matrix) => covered(matrix, &tensors).map(|(columns, coverage)| (columns, Some(coverage)))?,
        None => (BTreeMap::new(), None),
    };
    let plan = Plan { mix, tensors, keys, skipped, tied, importance, coverage, best: options.best };
    if options.strict && plan.fallbacks().next().is_some() {
        let list = plan.fallbacks().map(|t| format!("`{}`: {}", t.name, t.fallback().unwrap_or_default())).collect();
        return Err(Error::Fallbacks { mix: mix.name(), list });
    }
    Ok(plan)
}

fn choose(
    spec: &ModelSpec,
    mix: Mix,
    tied: bool,
    options: &PlanOptions,
    used: &mut [bool],
    name: String,
    shape: Vec<usize>,
    origin: Origin,
) -> Result<Planned> {
    if name.len() > MAX_NAME {
        return Err(Error::LongName { name, max: MAX_NAME });
    }
    let kept = if matches!(origin, Origin::RopeDivisors(_)) {
        Some(Reason::Computed)
    } else if shape.len() < 2 || shape[0] == 1 {
        Some(Reason::Vector)
    } else if matches!(name.as_str(), "position_embd.weight" | "token_types.weight") {
        Some(Reason::Lookup)
    } else {
        None
    };
    let (wanted, reason) = match kept {
        Some(reason) => (GgmlType::F32, reason),
        None => match options.overrides.iter().position(|(pattern, _)| pattern.is_match(&name)) {
            Some(i) => {
                used[i] = true;
                let (pattern, ty) = &options.overrides[i];
                (*ty, Reason::Override(pattern.to_string()))
            }
            None => match options.chosen.get(&name) {
                Some((ty, reason)) => (*ty, reason.clone()),
                None => mix::wanted(mix, spec, &name, tied, options.importance.is_some()),
            },
        },
    };
    let ty = mix::fallback(wanted, shape[shape.len() - 1]);
    Ok(Planned { name, shape, origin, ty, wanted, reason })
}

/// Importance by tensor, of those whose type looks at it.
fn covered(matrix: &Importance, tensors: &[Planned]) -> Result<(BTreeMap<String, Vec<f32>>, Coverage)> {
    let (mut columns, mut without) = (BTreeMap::new(), Vec::new());
    for t in tensors.iter().filter(|t| uses_importance(t.ty)) {
        match matrix.columns(&t.name, t.cols())? {
            Some(importance) => {
                columns.insert(t.name.clone(), importance);
            }
            None => without.push(t.name.clone()),
        }
    }
    let coverage = Coverage { with: columns.len(), without };
    Ok((columns, coverage))
}

/// Tensors outside of blocks first, then block by block; by name within each.
fn file_order(name: &str) -> (Option<usize>, &str) {
    (mix::block(name).map(|b| b.0), name)
}

/// An output matrix with the very bits of the token embedding is written once, as the embedding. Returns whether the file
/// has no output matrix of its own. The tensors decide, never the config's flag.
fn drop_repeated_output(
    source: &dyn TensorSource,
    placed: &mut Vec<Placed>,
    skipped: &mut Vec<Skipped>,
) -> Result<bool> {
    let find = |name: &str| placed.iter().position(|p| p.to == Destination::Tensor(name.into()));
    let (Some(output), Some(embedding)) = (find("output.weight"), find("token_embd.weight")) else { return Ok(true) };
    let read = |p: &Placed| source.read(&p.source).map_err(|e| Error::Source { name: p.source.clone(), source: e });
    let (a, b) = (read(&placed[output])?, read(&placed[embedding])?);
    let same = a.len() == b.len() && a.iter().zip(&b).all(|(a, b)| a.to_bits() == b.to_bits());
    if same {
        let p = placed.remove(output);
        skipped.push((p.source, "the same bits as the token embedding, which is written once"));
    }
    Ok(same)
}

/// What each rotary frequency is divided by under Llama 3.1's scaling; `None` without it. `(D / 2)`, as `rope_freqs.weight`.
fn rope_divisors(spec: &ModelSpec) -> Option<Vec<f32>> {
    let rope = spec.rope?;
    let RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } =
        rope.scaling
    else {
        return None;
    };
    let (factor, low, high) = (f64::from(factor), f64::from(low_freq_factor), f64::from(high_freq_factor));
    let original = original_max_position_embeddings as f64;
    let d = spec.rotary_dim();
    let divisor = |i: usize| {
        let wavelength = std::f64::consts::TAU * f64::from(rope.theta).powf(2.0 * i as f64 / d as f64);
        if wavelength < original / high {
            1.0
        } else if wavelength > original / low {
            factor
        } else {
            let smooth = (original / wavelength - low) / (high - low);
            1.0 / ((1.0 - smooth) / factor + smooth)
        }
    };
    Some((0..d / 2).map(|i| divisor(i) as f32).collect())
}

/// The numbers that later lines divide by or index with.
fn check(spec: &ModelSpec) -> Result<()> {
    let fail = |field, value: String, need| Err(Error::Spec { field, value, need });
    for (field, value) in [
        ("vocab_size", spec.vocab_size),
        ("n_ctx", spec.n_ctx),
        ("hidden_size", spec.hidden_size),
        ("intermediate_size", spec.intermediate_size),
        ("n_layers", spec.n_layers),
        ("n_heads", spec.n_heads),
        ("n_kv_heads", spec.n_kv_heads),
        ("head_dim", spec.head_dim),
    ] {
        if value == 0 || u32::try_from(value).is_err() {
            return fail(field, value.to_string(), "it must be between 1 and 2^32 - 1");
        }
    }
    if !spec.n_heads.is_multiple_of(spec.n_kv_heads) {
        return fail("n_kv_heads", spec.n_kv_heads.to_string(), "it must divide n_heads");
    }
    if spec.rope.is_some() != spec.arch.rotates() {
        let need = "the families of Llama have rotary positions, and GPT-2 and the encoders have none";
        return fail("rope", format!("{:?}", spec.rope), need);
    }
    let rotated = spec.rotary_dim();
    if !rotated.is_multiple_of(2) {
        let field = if rotated == spec.head_dim { "head_dim" } else { "rope.dims" };
        return fail(field, rotated.to_string(), "rotary positions need pairs");
    }
    if rotated > spec.head_dim || spec.rope.is_some_and(|r| r.dims == Some(0)) {
        return fail("rope.dims", rotated.to_string(), "it must be between 2 and head_dim");
    }
    if !(spec.local_layers.is_empty() || spec.local_layers.len() == spec.n_layers) {
        return fail("local_layers", format!("{} long", spec.local_layers.len()), "there must be one for each layer");
    }
    if spec.norm_eps <= 0.0 || !spec.norm_eps.is_finite() {
        return fail("norm_eps", spec.norm_eps.to_string(), "it must be positive");
    }
    Ok(())
}

#[cfg(test)]
mod tests;
