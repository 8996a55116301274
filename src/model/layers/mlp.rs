//! Gates of the feed-forward: SwiGLU (Shazeer, arXiv:2002.05202) and exact GELU (Hendrycks and Gimpel, arXiv:1606.08415).

use super::host::Host;
use super::math::{sigmoid, wide};
use candle_core::{Result, Tensor};
use rayon::prelude::*;

const CHUNK: usize = 16 * 1024;

/// silu(g) ⊙ u. g, u: (N, F).
pub fn swiglu(g: &Tensor, u: &Tensor) -> Result<Tensor> {
    let (gs, us) = (Host::new(g)?, Host::new(u)?);
    let mut out = vec![0.0; g.elem_count()];
    out.par_chunks_mut(CHUNK).zip(gs.slice().par_chunks(CHUNK).zip(us.slice().par_chunks(CHUNK))).for_each(
        |(out, (g, u))| {
            wide(|| {
                for ((out, g), u) in out.iter_mut().zip(g).zip(u) {
                    *out = g * sigmoid(*g) * u;
                }
            })
        },
    );
    Tensor::from_vec(out, g.shape(), g.device())
}

/// (dg, du): dg = dy u σ(g) (1 + g (1 - σ(g))), du = dy silu(g).
pub fn swiglu_backward(g: &Tensor, u: &Tensor, dy: &Tensor) -> Result<(Tensor, Tensor)> {
    let dy = dy.contiguous()?;
    let (gs, us, dys) = (Host::new(g)?, Host::new(u)?, Host::new(&dy)?);
    let (mut dg, mut du) = (vec![0.0; g.elem_count()], vec![0.0; g.elem_count()]);
    dg.par_chunks_mut(CHUNK)
        .zip(du.par_chunks_mut(CHUNK))
        .zip(gs.slice().par_chunks(CHUNK).zip(us.slice().par_chunks(CHUNK).zip(dys.slice().par_chunks(CHUNK))))
        .for_each(|((dg, du), (g, (u, dy)))| {
            wide(|| {
                for (((dg, du), g), (u, dy)) in dg.iter_mut().zip(du).zip(g).zip(u.iter().zip(dy)) {
                    let s = sigmoid(*g);
                    *dg = dy * u * s * (1.0 + g * (1.0 - s));
                    *du = dy * g * s;
                }
            })
        });
    Ok((Tensor::from_vec(dg, g.shape(), g.device())?, Tensor::from_vec(du, g.shape(), g.device())?))
}

/// x Φ(x), with the exact normal distribution function.
pub fn gelu(x: &Tensor) -> Result<Tensor> {
    map(x, x, |x, _| x * phi(x))
}

/// dy (Φ(x) + x φ(x)).
pub fn gelu_backward(x: &Tensor, dy: &Tensor) -> Result<Tensor> {
    const INV_SQRT_2PI: f32 = 0.398_942_3;
    map(x, &dy.contiguous()?, |x, dy| dy * (phi(x) + x * INV_SQRT_2PI * (-0.5 * x * x).exp()))
}

/// dy (1 - y²), from y = tanh(x).
pub fn tanh_backward(y: &Tensor, dy: &Tensor) -> Result<Tensor> {
    map(y, &dy.contiguous()?, |y, dy| dy * (1.0 - y * y))
}

fn map(a: &Tensor, b: &Tensor, f: impl Fn(f32, f32) -> f32 + Sync) -> Result<Tensor> {
    let a = a.contiguous()?;
    let (x, y) = (Host::new(&a)?, Host::new(b)?);
    let mut out = vec![0.0; a.elem_count()];
    out.par_chunks_mut(CHUNK).zip(x.slice().par_chunks(CHUNK).zip(y.slice().par_chunks(CHUNK))).for_each(
        |(out, (a, b))| {
            for i in 0..out.len() {
                out[i] = f(a[i], b[i]);
            }
        },
    );
    Tensor::from_vec(out, a.shape(), a.device())
}

fn phi(x: f32) -> f32 {
    0.5 * (1.0 + candle_core::cpu::erf::erf_f32(x * std::f32::consts::FRAC_1_SQRT_2))
}
