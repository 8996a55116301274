//! PiSSA (Meng et al., arXiv:2404.02948): a pair starts as the largest part of its weight, A = √(S/s) Vᵀ and B = U √(S/s) of the
//! r largest singular values, and the frozen weight keeps the rest, W - s B A. What is learned leaves as a plain pair of
//! twice the rank beside the weight as it was, [B' | -B₀] [A' ; A₀], so no one needs the changed base.

use super::config::{AdapterConfig, Kind};
use super::svd;
use crate::model::layers::adapter::Adapter;
use crate::model::layers::weight::Weight;
use crate::model::network::Network;
use crate::rng;
use candle_core::Tensor;
use std::collections::BTreeMap;

/// The pairs as they started: module → (A₀, B₀).
pub struct Start(BTreeMap<String, (Tensor, Tensor)>);

/// Moves the largest part of each weight that has a fresh pair (after [`super::attach`]) into it. The same weights and
/// seed give the same start, so a run that goes on finds its own again.
///
/// # Errors
/// An adapter that is no plain pair.
pub fn start(network: &mut Network, seed: u64) -> anyhow::Result<Start> {
    let mut pairs = BTreeMap::new();
    for linear in network.linears() {
        let name = linear.name.clone();
        if linear.adapter.is_some() && matches!(linear.weight, Weight::Frozen(_)) {
            crate::bad_input!(
                "--init pissa moves `{name}` out of the base, and a base in few bits cannot be changed; use --init lora"
            );
        }
        let weight = linear.dense()?;
        let pair = match &mut linear.adapter {
            None => continue,
            Some(Adapter::Lora(pair)) => pair,
            Some(_) => crate::bad_input!("`{name}`: PiSSA starts plain pairs alone; use --method lora or rslora"),
        };
        let r = pair.a.dim(0)?;
        let found = svd::largest(&weight, r, seed, rng::stream(&format!("{name}.pissa"), 0))?;
        // A weight with fewer singular values than r leaves rows of A and columns of B at zero: they could never learn.
        if found.s.len() < r || found.s.iter().any(|s| *s <= 0.0) {
            crate::bad_input!("`{name}`: --rank {r}, but the weight has fewer singular values that are not zero");
        }
        let roots: Vec<f32> = found.s.iter().map(|s| (s / pair.scale).sqrt() as f32).collect();
        let roots = Tensor::from_vec(roots, (1, r), weight.device())?;
        pair.a = found.v.broadcast_mul(&roots)?.t()?.contiguous()?;
        pair.b = found.u.broadcast_mul(&roots)?;
        let rest = (&weight - (pair.b.matmul(&pair.a)? * pair.scale)?)?;
        pairs.insert(name, (pair.a.clone(), pair.b.clone()));
        linear.weight = rest.into();
    }
    Ok(Start(pairs))
}

impl Start {
    /// The tensors of the adapter (PEFT's keys) beside the base as it was.
    pub fn plain(&self, mut tensors: BTreeMap<String, Tensor>) -> anyhow::Result<BTreeMap<String, Tensor>> {
        for (name, (a, b)) in &self.0 {
            for (side, start, along) in [("A", a, 0), ("B", &b.neg()?, 1)] {
                if let Some(tensor) = tensors.get_mut(&format!("{}{name}.lora_{side}.weight", super::PREFIX)) {
                    *tensor = Tensor::cat(&[&*tensor, start], along)?;
                }
            }
        }
        Ok(tensors)
    }

    /// The adapter's configuration, as wide as [`Start::plain`] makes it: s stays as it was.
    pub fn widened(config: &AdapterConfig) -> AdapterConfig {
        assert_eq!(config.kind, Kind::Lora, "PiSSA starts plain pairs alone");
        let times = if config.rslora { std::f64::consts::SQRT_2 } else { 2.0 };
        let mut wide = config.clone();
        wide.r *= 2;
        wide.alpha *= times;
        wide.rank_pattern.0.iter_mut().for_each(|(_, r)| *r *= 2);
        wide.alpha_pattern.0.iter_mut().for_each(|(_, alpha)| *alpha *= times);
        wide
    }
}
