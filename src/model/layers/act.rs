//! Activations, and the gates that multiply with them: SwiGLU and GEGLU (Shazeer, arXiv:2002.05202), GELU exact and by tanh
//! (Hendrycks and Gimpel, arXiv:1606.08415).

use super::host::Host;
use super::math::{exp, normal, sigmoid, wide};
use candle_core::{Result, Tensor};
use rayon::prelude::*;

const CHUNK: usize = 16 * 1024;
/// √(2/π)
const SQRT_2_OVER_PI: f32 = 0.797_884_6;
const CUBIC: f32 = 0.044_715;

/// A loop for each activation: a choice inside the loop would keep it from being vectorized.
macro_rules! each {
    ($act:expr, $name:ident => $body:expr) => {
        match $act {
            Act::Silu => each!(@ Silu, $name => $body),
            Act::Gelu => each!(@ Gelu, $name => $body),
            Act::GeluTanh => each!(@ GeluTanh, $name => $body),
            Act::Tanh => each!(@ Tanh, $name => $body),
            Act::Relu => each!(@ Relu, $name => $body),
        }
    };
    (@ $variant:ident, $name:ident => $body:expr) => {{
        const $name: Act = Act::$variant;
        $body
    }};
}

/// A tensor whose elements are made of those of two others.
macro_rules! map {
    ($a:expr, $b:expr, |$x:ident, $y:ident| $value:expr) => {
        chunks($a, $b, |out, a, b| {
            wide!(|out: &'a mut [f32], a: &'a [f32], b: &'a [f32]| -> () {
                for ((out, a), b) in out.iter_mut().zip(a).zip(b) {
                    let ($x, $y) = (*a, *b);
                    *out = $value;
                }
            });
        })
    };
}

/// An activation, element by element.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    /// x σ(x).
    Silu,
    /// x Φ(x), with the exact normal distribution function.
    Gelu,
    /// x (1 + tanh(√(2/π) (x + 0.044715 x³))) / 2: `gelu_new`, `gelu_pytorch_tanh`.
    GeluTanh,
    /// tanh(x).
    Tanh,
    /// max(x, 0).
    Relu,
}

impl Act {
    #[inline(always)]
    fn value(self, x: f32) -> f32 {
        match self {
            Self::Silu => x * sigmoid(x),
            Self::Gelu => x * normal(x),
            // (1 + tanh u) / 2 is σ(2u).
            Self::GeluTanh => x * sigmoid(2.0 * SQRT_2_OVER_PI * (x + CUBIC * x * x * x)),
            Self::Tanh => x.tanh(),
            Self::Relu => x.max(0.0),
        }
    }

    /// dy/dx.
    #[inline(always)]
    fn slope(self, x: f32) -> f32 {
        const INV_SQRT_2PI: f32 = 0.398_942_3;
        match self {
            Self::Silu => {
                let s = sigmoid(x);
                s * (1.0 + x * (1.0 - s))
            }
            Self::Gelu => normal(x) + x * INV_SQRT_2PI * exp(-0.5 * x * x),
            Self::GeluTanh => {
                let s = sigmoid(2.0 * SQRT_2_OVER_PI * (x + CUBIC * x * x * x));
                s + 2.0 * x * s * (1.0 - s) * SQRT_2_OVER_PI * (1.0 + 3.0 * CUBIC * x * x)
            }
            Self::Tanh => {
                let t = x.tanh();
                1.0 - t * t
            }
            Self::Relu => f32::from(u8::from(x > 0.0)),
        }
    }

    /// x: (N, F) → the same.
    pub fn forward(self, x: &Tensor) -> Result<Tensor> {
        each!(self, ACT => map!(x, x, |x, _y| ACT.value(x)))
    }

    /// From x, what went in.
    pub fn backward(self, x: &Tensor, dy: &Tensor) -> Result<Tensor> {
        each!(self, ACT => map!(x, dy, |x, dy| dy * ACT.slope(x)))
    }

    /// act(g) ⊙ u. g, u: (N, F).
    pub fn gate(self, g: &Tensor, u: &Tensor) -> Result<Tensor> {
        each!(self, ACT => map!(g, u, |g, u| ACT.value(g) * u))
    }

    /// (dg, du): dg = dy u act'(g), du = dy act(g).
    pub fn gate_backward(self, g: &Tensor, u: &Tensor, dy: &Tensor) -> Result<(Tensor, Tensor)> {
        let (g, u, dy) = (g.contiguous()?, u.contiguous()?, dy.contiguous()?);
        let (gs, us, dys) = (Host::new(&g)?, Host::new(&u)?, Host::new(&dy)?);
        let (mut dg, mut du) = (vec![0.0; g.elem_count()], vec![0.0; g.elem_count()]);
        let into = dg.par_chunks_mut(CHUNK).zip(du.par_chunks_mut(CHUNK));
        let from = gs.slice().par_chunks(CHUNK).zip(us.slice().par_chunks(CHUNK).zip(dys.slice().par_chunks(CHUNK)));
        each!(self, ACT => into.zip(from).for_each(|((dg, du), (g, (u, dy)))| {
            wide!(|dg: &'a mut [f32], du: &'a mut [f32], g: &'a [f32], u: &'a [f32], dy: &'a [f32]| -> () {
                for (((dg, du), g), (u, dy)) in dg.iter_mut().zip(du).zip(g).zip(u.iter().zip(dy)) {
                    *dg = dy * u * ACT.slope(*g);
                    *du = dy * ACT.value(*g);
                }
            });
        }));
        Ok((Tensor::from_vec(dg, g.shape(), g.device())?, Tensor::from_vec(du, g.shape(), g.device())?))
    }
}

/// Hands the tensors' values to `f`, a chunk of each at a time.
fn chunks(a: &Tensor, b: &Tensor, f: impl Fn(&mut [f32], &[f32], &[f32]) + Sync) -> Result<Tensor> {
    let (a, b) = (a.contiguous()?, b.contiguous()?);
    let (x, y) = (Host::new(&a)?, Host::new(&b)?);
    let mut out = vec![0.0; a.elem_count()];
    let from = x.slice().par_chunks(CHUNK).zip(y.slice().par_chunks(CHUNK));
    out.par_chunks_mut(CHUNK).zip(from).for_each(|(out, (a, b))| f(out, a, b));
    Tensor::from_vec(out, a.shape(), a.device())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By hand: σ(1) = 0.731059, Φ(1) = 0.841345, tanh(√(2/π) · 1.044715) = 0.682384, tanh(1) = 0.761594.
    #[test]
    fn values_at_one_are_the_formulas() {
        for (act, at_one) in [
            (Act::Silu, 0.731_058_6),
            (Act::Gelu, 0.841_344_7),
            (Act::GeluTanh, 0.841_192),
            (Act::Tanh, 0.761_594_2),
            (Act::Relu, 1.0),
        ] {
            assert!((act.value(1.0) - at_one).abs() < 1e-6, "{act:?}: {}", act.value(1.0));
        }
    }

    #[test]
    fn slopes_are_differences_of_values() {
        for act in [Act::Silu, Act::Gelu, Act::GeluTanh, Act::Tanh, Act::Relu] {
            for x in [-3.0, -1.1, -0.2, 0.3, 0.9, 2.7f32] {
                let step = 1e-2;
                let difference = (act.value(x + step) - act.value(x - step)) / (2.0 * step);
                assert!((act.slope(x) - difference).abs() < 2e-4, "{act:?} at {x}: {} {difference}", act.slope(x));
            }
        }
    }
}
