//! y = x Wᵀ + b. A frozen W costs its backward one GEMM (dx), never a weight-sized gradient.

use super::adapter::Adapter;
use super::fused;
use super::weight::Weight;
use super::{Grads, Pass};
use candle_core::{Result, Tensor};

/// Fully connected layer.
pub struct Linear {
    /// Module path as PEFT names it, such as `model.layers.0.self_attn.q_proj`.
    pub name: String,
    /// (out, in).
    pub weight: Weight,
    /// (out).
    pub bias: Option<Tensor>,
    /// Whether weight and bias are trained.
    pub trained: bool,
    /// The adapter, if this module is a target.
    pub adapter: Option<Adapter>,
}

impl Linear {
    /// A frozen layer.
    pub fn new(name: String, weight: impl Into<Weight>, bias: Option<Tensor>) -> Self {
        Self { name, weight: weight.into(), bias, trained: false, adapter: None }
    }

    /// x: (N, in) → (N, out), through the adapter if there is one.
    pub fn forward(&self, x: &Tensor, pass: Pass) -> Result<Tensor> {
        match &self.adapter {
            Some(adapter) => adapter.forward(self, x, pass),
            None => self.plain(x),
        }
    }

    /// The gradient of x, from x and dy: (N, out).
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
        if self.trained {
            grads.add(&format!("{}.weight", self.name), dy.t()?.matmul(x)?)?;
            if self.bias.is_some() {
                grads.add(&format!("{}.bias", self.name), dy.sum(0)?)?;
            }
        }
        match &self.adapter {
            Some(adapter) => adapter.backward(self, x, dy, pass, grads, want_dx),
            None if want_dx => self.project_back(dy).map(Some),
            None => Ok(None),
        }
    }

    /// (out, in) of W.
    pub fn dims(&self) -> Result<(usize, usize)> {
        self.weight.dims()
    }

    /// W as f32: (out, in).
    pub fn dense(&self) -> Result<Tensor> {
        self.weight.dense()
    }

    /// x Wᵀ + b, without the adapter.
    pub(super) fn plain(&self, x: &Tensor) -> Result<Tensor> {
        let y = self.project(x)?;
        if let Some(b) = &self.bias {
            fused::add_row(&y, b)?;
        }
        Ok(y)
    }

    /// [`Linear::plain`] in the place of y: (N, out).
    pub(super) fn plain_into(&self, x: &Tensor, y: &Tensor) -> Result<()> {
        self.weight.forward_into(x, y)?;
        self.bias.as_ref().map_or(Ok(()), |b| fused::add_row(y, b))
    }

    /// x Wᵀ: (N, in) → (N, out).
    pub(super) fn project(&self, x: &Tensor) -> Result<Tensor> {
        self.weight.forward(x)
    }

    /// dy W: (N, out) → (N, in).
    pub(super) fn project_back(&self, dy: &Tensor) -> Result<Tensor> {
        self.weight.backward(dy)
    }

    /// Calls `f` with the name and the place of every trained tensor.
    pub fn trained(&mut self, f: &mut dyn FnMut(String, &mut Tensor)) {
        if self.trained {
            if let Some(w) = self.weight.trainable() {
                f(format!("{}.weight", self.name), w);
            }
            if let Some(b) = &mut self.bias {
                f(format!("{}.bias", self.name), b);
            }
        }
        if let Some(adapter) = &mut self.adapter {
            adapter.trained(&self.name, f);
        }
    }
}
