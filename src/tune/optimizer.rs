//! AdamW (Loshchilov and Hutter, arXiv:1711.05101) with f32 moments, as torch computes it.

use crate::model::layers::Grads;
use crate::model::layers::host::Host;
use crate::model::network::Network;
use candle_core::{Result, Tensor};
use rayon::prelude::*;
use std::collections::BTreeMap;

/// Moments of one weight.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Moments {
    /// Mean of the gradient.
    pub m: Vec<f32>,
    /// Mean of its square.
    pub v: Vec<f32>,
}

/// Optimizer state. Weights are visited by name in one order, so every sum has one order.
pub struct AdamW {
    /// β₁.
    pub beta1: f32,
    /// β₂.
    pub beta2: f32,
    /// ε, added to the root.
    pub eps: f32,
    /// λ: each step takes `lr λ` of the weight away.
    pub weight_decay: f32,
    /// Whether vectors (norms, biases) decay too, as PEFT's trainers do; full fine-tuning spares them.
    pub decay_vectors: bool,
    /// LoRA+ (Hayou et al., arXiv:2402.12354): how many times faster than the rest B and vectors learn, as PEFT groups them.
    pub lora_plus: f32,
    /// Steps taken.
    pub t: u64,
    /// By weight name.
    pub moments: BTreeMap<String, Moments>,
}

const CHUNK: usize = 16 * 1024;

impl AdamW {
    /// θ ← θ (1 - lr λ) - lr m̂ / (√v̂ + ε), for every trained tensor; gradients are multiplied by `factor` first (clipping).
    pub fn step(&mut self, network: &mut Network, grads: &Grads, lr: f32, factor: f32) -> Result<()> {
        self.t += 1;
        let mut outcome = Ok(());
        network.trained(&mut |name, tensor| {
            if outcome.is_ok() {
                outcome = self.update(&name, tensor, grads, lr, factor);
            }
        });
        // A second visit lets tied tensors follow the ones they are tied to.
        network.trained(&mut |_, _| ());
        outcome
    }

    fn update(&mut self, name: &str, tensor: &mut Tensor, grads: &Grads, lr: f32, factor: f32) -> Result<()> {
        let Some(grad) = grads.0.get(name) else {
            candle_core::bail!("`{name}` is trained but no gradient reached it");
        };
        let grad = grad.contiguous()?;
        let n = tensor.elem_count();
        let moments = self.moments.entry(name.to_owned()).or_default();
        moments.m.resize(n, 0.0);
        moments.v.resize(n, 0.0);
        let (b1, b2, eps) = (self.beta1, self.beta2, self.eps);
        let lr = if name.ends_with(".lora_B.weight") || tensor.rank() == 1 { lr * self.lora_plus } else { lr };
        // Powers in f64: β₂ = 0.999 loses its bias correction in f32 after some thousand steps.
        let c1 = (1.0 - f64::from(b1).powf(self.t as f64)) as f32;
        let c2 = (1.0 - f64::from(b2).powf(self.t as f64)) as f32;
        let decay = if tensor.rank() > 1 || self.decay_vectors { lr * self.weight_decay } else { 0.0 };
        let theta = tensor.contiguous()?;
        let mut out = Host::new(&theta)?.slice().to_vec();
        let g = Host::new(&grad)?;
        out.par_chunks_mut(CHUNK)
            .zip(g.slice().par_chunks(CHUNK))
            .zip(moments.m.par_chunks_mut(CHUNK).zip(moments.v.par_chunks_mut(CHUNK)))
            .for_each(|((theta, g), (m, v))| {
                for i in 0..theta.len() {
                    let g = g[i] * factor;
                    m[i] = b1 * m[i] + (1.0 - b1) * g;
                    v[i] = b2 * v[i] + (1.0 - b2) * g * g;
                    theta[i] -= decay * theta[i];
                    theta[i] -= lr * (m[i] / c1) / ((v[i] / c2).sqrt() + eps);
                }
            });
        *tensor = Tensor::from_vec(out, theta.shape(), theta.device())?;
        Ok(())
    }
}

/// Global norm of all gradients, summed in f64 in the order of their names.
pub fn global_norm(grads: &Grads) -> Result<f64> {
    let mut sum = 0.0f64;
    for grad in grads.0.values() {
        let grad = grad.contiguous()?;
        sum += Host::new(&grad)?.slice().iter().map(|g| f64::from(*g) * f64::from(*g)).sum::<f64>();
    }
    Ok(sum.sqrt())
}
