//! What is trained beside a frozen weight, whichever the method: an adapter sees of its [`Linear`] only `plain`, `project`
//! and `project_back`, so how the frozen weight is stored is no concern of it.

use super::dora::Dora;
use super::ia3::Ia3;
use super::linear::Linear;
use super::lora::Lora;
use super::{Grads, Pass};
use candle_core::{Result, Tensor};

/// An adapter of one module.
pub enum Adapter {
    /// A low-rank pair.
    Lora(Lora),
    /// A low-rank pair that turns, and a magnitude.
    Dora(Dora),
    /// A vector that scales.
    Ia3(Ia3),
}

impl Adapter {
    /// x: (N, in) → (N, out), the frozen layer included.
    pub fn forward(&self, linear: &Linear, x: &Tensor, pass: Pass) -> Result<Tensor> {
        match self {
            Self::Lora(lora) => lora.forward(linear, x, pass),
            Self::Dora(dora) => dora.forward(linear, x, pass),
            Self::Ia3(ia3) => ia3.forward(linear, x),
        }
    }

    /// The gradients of the adapter, and dx when `want_dx`.
    pub fn backward(
        &self,
        linear: &Linear,
        x: &Tensor,
        dy: &Tensor,
        pass: Pass,
        grads: &mut Grads,
        want_dx: bool,
    ) -> Result<Option<Tensor>> {
        match self {
            Self::Lora(lora) => lora.backward(linear, x, dy, pass, grads, want_dx),
            Self::Dora(dora) => dora.backward(linear, x, dy, pass, grads, want_dx),
            Self::Ia3(ia3) => ia3.backward(linear, x, dy, grads, want_dx),
        }
    }

    /// Calls `f` with the name and the place of every tensor of the adapter of module `name`, as PEFT's files call it.
    pub fn trained(&mut self, name: &str, f: &mut dyn FnMut(String, &mut Tensor)) {
        match self {
            Self::Lora(lora) => lora.trained(name, f),
            Self::Dora(dora) => dora.trained(name, f),
            Self::Ia3(ia3) => f(format!("{name}.ia3_l"), &mut ia3.l),
        }
    }
}
