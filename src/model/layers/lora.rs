//! LoRA (Hu et al., arXiv:2106.09685): y = W x + b + s B A x, with s = α/r, or α/√r for rsLoRA (arXiv:2312.03732).

use super::fused;
use super::host::{Host, rows_per_task};
use super::linear::Linear;
use super::low_rank;
use super::mat::matmul;
use super::{Grads, Pass};
use crate::rng;
use candle_core::{Result, Tensor};
use rayon::prelude::*;

/// Low-rank pair beside a weight.
pub struct Lora {
    /// (r, in).
    pub a: Tensor,
    /// (out, r), zero at first, so that step 0 changes nothing.
    pub b: Tensor,
    /// s.
    pub scale: f64,
    /// Probability of dropping an input element of A while training.
    pub dropout: f32,
}

impl Lora {
    /// x: (N, in) → (N, out).
    pub fn forward(&self, linear: &Linear, x: &Tensor, pass: Pass) -> Result<Tensor> {
        let y = linear.plain(x)?;
        let z = low_rank::down(&self.dropped(x, &linear.name, pass)?, &self.a.t()?)?; // (N, r)
        low_rank::add(&y, &z, &self.b.t()?, self.scale)?;
        Ok(y)
    }

    /// With z = x Aᵀ: dB = s dyᵀ z, dz = s dy B, dA = dzᵀ x, dx = dy W + dz A.
    pub fn backward(
        &self,
        linear: &Linear,
        x: &Tensor,
        dy: &Tensor,
        pass: Pass,
        grads: &mut Grads,
        want_dx: bool,
    ) -> Result<Option<Tensor>> {
        let dropped = self.dropped(x, &linear.name, pass)?;
        let dz = self.weight_grads(&linear.name, &dropped, dy, grads)?;
        if !want_dx {
            return Ok(None);
        }
        let dx = linear.project_back(dy)?;
        if self.drops(pass) {
            fused::add(&dx, &self.dropped(&matmul(&dz, &self.a)?, &linear.name, pass)?)?;
        } else {
            low_rank::add(&dx, &dz, &self.a, 1.0)?;
        }
        Ok(Some(dx))
    }

    /// W' = W + s B A, in f32. W: (out, in).
    pub fn folded(&self, weight: &Tensor) -> Result<Tensor> {
        weight + (self.b.matmul(&self.a)? * self.scale)?
    }

    /// s B A x. x: (N, in), dropout done.
    pub(super) fn delta(&self, x: &Tensor) -> Result<Tensor> {
        matmul(&low_rank::down(x, &self.a.t()?)?, &self.b.t()?)? * self.scale
    }

    /// Adds dA and dB for the gradient `dy` of s B A x; returns dz: (N, r).
    pub(super) fn weight_grads(&self, name: &str, x: &Tensor, dy: &Tensor, grads: &mut Grads) -> Result<Tensor> {
        let z = low_rank::down(x, &self.a.t()?)?;
        let dz = (low_rank::down(dy, &self.b)? * self.scale)?;
        grads.add(&format!("{name}.lora_B.weight"), (low_rank::across(dy, &z)? * self.scale)?)?;
        grads.add(&format!("{name}.lora_A.weight"), low_rank::across(x, &dz)?.t()?.contiguous()?)?;
        Ok(dz)
    }

    /// Calls `f` with the name and the place of A and B.
    pub fn trained(&mut self, name: &str, f: &mut dyn FnMut(String, &mut Tensor)) {
        f(format!("{name}.lora_A.weight"), &mut self.a);
        f(format!("{name}.lora_B.weight"), &mut self.b);
    }

    /// Whether elements are dropped in this pass.
    pub(super) fn drops(&self, pass: Pass) -> bool {
        pass.train && self.dropout > 0.0
    }

    /// x with elements dropped and the rest scaled by 1/(1-p). The mask is a function of (seed, module, step, element), so
    /// the backward draws the same one again instead of keeping it.
    pub(super) fn dropped(&self, x: &Tensor, name: &str, pass: Pass) -> Result<Tensor> {
        if !self.drops(pass) {
            return Ok(x.clone());
        }
        let x = x.contiguous()?;
        let host = Host::new(&x)?;
        let width = x.dim(1)?;
        let stream = rng::stream(name, pass.step);
        let (keep, p) = (1.0 / (1.0 - self.dropout), self.dropout);
        let rows = rows_per_task(width);
        let mut out = vec![0.0; x.elem_count()];
        out.par_chunks_mut(rows * width).zip(host.slice().par_chunks(rows * width)).enumerate().for_each(
            |(task, (out, x))| {
                for (i, (out, x)) in out.iter_mut().zip(x).enumerate() {
                    let index = ((pass.first + task * rows) * width + i) as u64;
                    *out = if rng::uniform(pass.seed, stream, index) < p { 0.0 } else { x * keep };
                }
            },
        );
        Tensor::from_vec(out, x.shape(), x.device())
    }
}
