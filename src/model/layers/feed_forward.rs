//! Feed-forward of one block: down(act(up x)), or down(act(gate x) ⊙ up x).

use super::act::Act;
use super::linear::Linear;
use super::projections::Projections;
use super::{Grads, Pass};
use candle_core::{Result, Tensor};

/// What one block thinks with.
pub struct FeedForward {
    /// (C) → (F) once, or twice: gate, then up.
    pub up: Projections,
    /// Of the gate, or of the only one.
    pub act: Act,
    /// (F) → (C).
    pub down: Linear,
}

/// What the backward needs besides the input: (N, F) before the activation, once, or gate and up.
pub struct Saved(Vec<Tensor>);

impl FeedForward {
    /// x: (N, C) → (N, C).
    pub fn forward(&self, x: &Tensor, pass: Pass) -> Result<(Tensor, Saved)> {
        let wide = self.up.forward(x, pass)?;
        let y = self.down.forward(&self.activated(&wide)?, pass)?;
        Ok((y, Saved(wide)))
    }

    /// (N, F), what goes down.
    fn activated(&self, wide: &[Tensor]) -> Result<Tensor> {
        match wide {
            [gate, up] => self.act.gate(gate, up),
            [x] => self.act.forward(x),
            more => candle_core::bail!("{} projections before the activation, expected 1 or 2", more.len()),
        }
    }

    /// The gradient of x.
    pub fn backward(
        &self,
        x: &Tensor,
        Saved(wide): Saved,
        dy: &Tensor,
        pass: Pass,
        grads: &mut Grads,
    ) -> Result<Tensor> {
        let dh = self.down.backward(&self.activated(&wide)?, dy, pass, grads)?;
        let dwide = match &wide[..] {
            [gate, up] => {
                let (dgate, dup) = self.act.gate_backward(gate, up, &dh)?;
                vec![dgate, dup]
            }
            wide => vec![self.act.backward(&wide[0], &dh)?],
        };
        drop((wide, dh));
        let dx = self.up.backward(x, &dwide, pass, grads, true)?;
        dx.ok_or_else(|| candle_core::Error::Msg("dx was asked for and not made".into()))
    }

    /// Every projection, in order.
    pub fn linears(&mut self) -> impl Iterator<Item = &mut Linear> {
        self.up.linears().iter_mut().chain(std::iter::once(&mut self.down))
    }
}
