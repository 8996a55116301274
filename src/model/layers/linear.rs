//! y = x Wᵀ + b + s (x Aᵀ) Bᵀ. A frozen W costs its backward one GEMM (dx), never a weight-sized gradient.

use super::host::{Host, rows_per_task};
use super::{Grads, Pass};
use crate::rng;
use candle_core::{Result, Tensor};
use rayon::prelude::*;

/// Low-rank pair beside a weight (Hu et al., arXiv:2106.09685).
pub struct Lora {
    /// (r, in).
    pub a: Tensor,
    /// (out, r), zero at first, so that step 0 changes nothing.
    pub b: Tensor,
    /// α/r, or α/√r for rsLoRA.
    pub scale: f64,
    /// Probability of dropping an input element of A while training.
    pub dropout: f32,
}

/// Fully connected layer.
pub struct Linear {
    /// Module path as PEFT names it, such as `model.layers.0.self_attn.q_proj`.
    pub name: String,
    /// (out, in).
    pub weight: Tensor,
    /// (out).
    pub bias: Option<Tensor>,
    /// Whether weight and bias are trained.
    pub trained: bool,
    /// The adapter, if this module is a target.
    pub lora: Option<Lora>,
}

impl Linear {
    /// A frozen layer.
    pub fn new(name: String, weight: Tensor, bias: Option<Tensor>) -> Self {
        Self { name, weight, bias, trained: false, lora: None }
    }

    /// x: (N, in) → (N, out).
    pub fn forward(&self, x: &Tensor, pass: Pass) -> Result<Tensor> {
        let y = x.matmul(&self.weight.t()?)?;
        let y = match &self.bias {
            Some(b) => y.broadcast_add(b)?,
            None => y,
        };
        match &self.lora {
            Some(lora) => {
                let z = lora.dropped(x, &self.name, pass)?.matmul(&lora.a.t()?)?; // (N, r)
                y + (z.matmul(&lora.b.t()?)? * lora.scale)?
            }
            None => Ok(y),
        }
    }

    /// The gradient of x, from x and dy: (N, out). With z = x Aᵀ: dB = s dyᵀ z, dz = s dy B, dA = dzᵀ x, dx = dy W + dz A.
    pub fn backward(&self, x: &Tensor, dy: &Tensor, pass: Pass, grads: &mut Grads) -> Result<Tensor> {
        self.backward_weights(x, dy, pass, grads, true)?
            .ok_or_else(|| candle_core::Error::Msg("dx was asked for and not made".into()))
    }

    /// As [`Linear::backward`]; dx only when `want_dx` (the lowest trained layer has nobody below it).
    pub fn backward_weights(
        &self,
        x: &Tensor,
        dy: &Tensor,
        pass: Pass,
        grads: &mut Grads,
        want_dx: bool,
    ) -> Result<Option<Tensor>> {
        let mut dx = if want_dx { Some(dy.matmul(&self.weight)?) } else { None };
        if self.trained {
            grads.add(&format!("{}.weight", self.name), dy.t()?.matmul(x)?)?;
            if self.bias.is_some() {
                grads.add(&format!("{}.bias", self.name), dy.sum(0)?)?;
            }
        }
        if let Some(lora) = &self.lora {
            let dropped = lora.dropped(x, &self.name, pass)?;
            let z = dropped.matmul(&lora.a.t()?)?;
            let dz = (dy.matmul(&lora.b)? * lora.scale)?;
            grads.add(&format!("{}.lora_B.weight", self.name), (dy.t()?.matmul(&z)? * lora.scale)?)?;
            grads.add(&format!("{}.lora_A.weight", self.name), dz.t()?.matmul(&dropped)?)?;
            if let Some(sum) = dx {
                let through = lora.dropped(&dz.matmul(&lora.a)?, &self.name, pass)?;
                dx = Some((sum + through)?);
            }
        }
        Ok(dx)
    }

    /// W' = W + s B A, in f32.
    pub fn folded(&self) -> Result<Tensor> {
        match &self.lora {
            Some(lora) => &self.weight + (lora.b.matmul(&lora.a)? * lora.scale)?,
            None => Ok(self.weight.clone()),
        }
    }

    /// Calls `f` with the name and the place of every trained tensor.
    pub fn trained(&mut self, f: &mut dyn FnMut(String, &mut Tensor)) {
        if self.trained {
            f(format!("{}.weight", self.name), &mut self.weight);
            if let Some(b) = &mut self.bias {
                f(format!("{}.bias", self.name), b);
            }
        }
        if let Some(lora) = &mut self.lora {
            f(format!("{}.lora_A.weight", self.name), &mut lora.a);
            f(format!("{}.lora_B.weight", self.name), &mut lora.b);
        }
    }
}

impl Lora {
    /// x with elements dropped and the rest scaled by 1/(1-p). The mask is a function of (seed, module, step, element), so
    /// the backward draws the same one again instead of keeping it.
    fn dropped(&self, x: &Tensor, name: &str, pass: Pass) -> Result<Tensor> {
        if !pass.train || self.dropout == 0.0 {
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
