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

/// What the backward needs besides the input.
pub struct Saved {
    wide: Vec<Tensor>, // (N, F) before the activation: one, or gate and up
    h: Tensor,         // (N, F) behind it
}

impl FeedForward {
    /// x: (N, C) → (N, C).
    pub fn forward(&self, x: &Tensor, pass: Pass) -> Result<(Tensor, Saved)> {
        let wide = self.up.forward(x, pass)?;
        let h = match &wide[..] {
            [gate, up] => self.act.gate(gate, up)?,
            [x] => self.act.forward(x)?,
            more => candle_core::bail!("{} projections before the activation, expected 1 or 2", more.len()),
        };
        let y = self.down.forward(&h, pass)?;
        Ok((y, Saved { wide, h }))
    }

    /// The gradient of x.
    pub fn backward(&self, x: &Tensor, s: &Saved, dy: &Tensor, pass: Pass, grads: &mut Grads) -> Result<Tensor> {
        let dh = self.down.backward(&s.h, dy, pass, grads)?;
        let dwide = match &s.wide[..] {
            [gate, up] => {
                let (dgate, dup) = self.act.gate_backward(gate, up, &dh)?;
                vec![dgate, dup]
            }
            wide => vec![self.act.backward(&wide[0], &dh)?],
        };
        let dx = self.up.backward(x, &dwide, pass, grads, true)?;
        dx.ok_or_else(|| candle_core::Error::Msg("dx was asked for and not made".into()))
    }

    /// Every projection, in order.
    pub fn linears(&mut self) -> impl Iterator<Item = &mut Linear> {
        self.up.linears().iter_mut().chain(std::iter::once(&mut self.down))
    }
}
