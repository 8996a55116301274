//! RMSNorm (Zhang and Sennrich, arXiv:1910.07467) and LayerNorm (Ba et al., arXiv:1607.06450), row by row.

use super::Grads;
use super::host::{Host, rows_per_task};
use super::math::{self, wide};
use candle_core::{Result, Tensor};
use rayon::prelude::*;

/// Normalization over the last dimension.
pub struct Norm {
    /// Module path.
    pub name: String,
    /// (C).
    pub weight: Tensor,
    /// (C) for LayerNorm, which also subtracts the mean; absent for RMSNorm.
    pub bias: Option<Tensor>,
    /// Added to the weight: 1 where files hold w - 1 (Gemma), else 0.
    pub offset: f32,
    /// Added to the variance (or mean square) before the root.
    pub eps: f32,
    /// Whether weight and bias are trained.
    pub trained: bool,
}

impl Norm {
    /// A frozen norm, with an offset of 0.
    pub fn new(name: String, weight: Tensor, bias: Option<Tensor>, eps: f32) -> Self {
        Self { name, weight, bias, offset: 0.0, eps, trained: false }
    }

    /// x: (N, H D) → the same, the norm over each D (q and k norms of Qwen3 and Gemma 3).
    pub fn forward_heads(&self, x: &Tensor) -> Result<Tensor> {
        self.forward(&self.heads(x)?)?.reshape(x.shape())
    }

    /// The gradient of x for [`Norm::forward_heads`].
    pub fn backward_heads(&self, x: &Tensor, dy: &Tensor, grads: &mut Grads) -> Result<Tensor> {
        self.backward(&self.heads(x)?, &self.heads(dy)?, grads)?.reshape(x.shape())
    }

    fn heads(&self, x: &Tensor) -> Result<Tensor> {
        x.contiguous()?.reshape(((), self.weight.dim(0)?))
    }

    /// x: (N, C) → (N, C). y = (x - μ) r w + b with r = 1/√(mean((x - μ)²) + ε); RMSNorm has μ = 0 and no b.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (x, width) = (x.contiguous()?, x.dim(1)?);
        let (xs, w) = (Host::new(&x)?, Host::new(&self.weight)?);
        let bias = self.bias.as_ref().map(Host::new).transpose()?;
        let (xs, w, bias, more) = (xs.slice(), w.slice(), bias.as_ref().map(Host::slice), self.offset);
        let mut out = vec![0.0; xs.len()];
        let rows = rows_per_task(width);
        out.par_chunks_mut(rows * width).zip(xs.par_chunks(rows * width)).for_each(|(out, xs)| {
            let norm = self;
            wide!(|norm: &'a Norm,
                   out: &'a mut [f32],
                   xs: &'a [f32],
                   w: &'a [f32],
                   bias: Option<&'a [f32]>,
                   more: f32|
             -> () {
                for (out, x) in out.chunks_mut(w.len()).zip(xs.chunks(w.len())) {
                    let (mean, r) = norm.moments(x);
                    match bias {
                        Some(b) => {
                            for (((out, x), w), b) in out.iter_mut().zip(x).zip(w).zip(b) {
                                *out = (x - mean) * r * (w + more) + b;
                            }
                        }
                        None => {
                            for ((out, x), w) in out.iter_mut().zip(x).zip(w) {
                                *out = x * r * (w + more);
                            }
                        }
                    }
                }
            });
        });
        Tensor::from_vec(out, x.shape(), x.device())
    }

    /// With x̂ = (x - μ) r and g = w ⊙ dy, w with its offset: dx = r (g - x̂ mean(g ⊙ x̂)), minus r mean(g) for LayerNorm; dw = Σ dy ⊙ x̂, db = Σ dy.
    pub fn backward(&self, x: &Tensor, dy: &Tensor, grads: &mut Grads) -> Result<Tensor> {
        let (x, dy, width) = (x.contiguous()?, dy.contiguous()?, x.dim(1)?);
        let (xs, dys, w) = (Host::new(&x)?, Host::new(&dy)?, Host::new(&self.weight)?);
        let (xs, dys, w, more) = (xs.slice(), dys.slice(), w.slice(), self.offset);
        let centred = self.bias.is_some();
        let mut dx = vec![0.0; xs.len()];
        let rows = rows_per_task(width);
        dx.par_chunks_mut(rows * width).zip(xs.par_chunks(rows * width).zip(dys.par_chunks(rows * width))).for_each(
            |(dx, (xs, dys))| {
                let norm = self;
                wide!(|norm: &'a Norm,
                       dx: &'a mut [f32],
                       xs: &'a [f32],
                       dys: &'a [f32],
                       w: &'a [f32],
                       more: f32|
                 -> () {
                    let width = w.len();
                    for (dx, (x, dy)) in dx.chunks_mut(width).zip(xs.chunks(width).zip(dys.chunks(width))) {
                        let (mean, r) = norm.moments(x);
                        for ((g, w), dy) in dx.iter_mut().zip(w).zip(dy) {
                            *g = (w + more) * dy;
                        }
                        let along = math::sum2(dx, x, |g, x| g * (x - mean) * r) / width as f32;
                        let shift = if norm.bias.is_some() { math::sum(dx, |g| g) / width as f32 } else { 0.0 };
                        for (g, x) in dx.iter_mut().zip(x) {
                            *g = r * (*g - shift - (x - mean) * r * along);
                        }
                    }
                });
            },
        );
        if self.trained {
            let (mut dw, mut db) = (vec![0.0f32; width], vec![0.0f32; width]);
            for (x, dy) in xs.chunks(width).zip(dys.chunks(width)) {
                let (mean, r) = self.moments(x);
                for i in 0..width {
                    dw[i] += dy[i] * (x[i] - mean) * r;
                    db[i] += dy[i];
                }
            }
            grads.add(&format!("{}.weight", self.name), Tensor::from_vec(dw, width, x.device())?)?;
            if centred {
                grads.add(&format!("{}.bias", self.name), Tensor::from_vec(db, width, x.device())?)?;
            }
        }
        Tensor::from_vec(dx, x.shape(), x.device())
    }

    /// Mean (0 for RMSNorm) and reciprocal root of one row.
    #[inline(always)]
    fn moments(&self, x: &[f32]) -> (f32, f32) {
        let n = x.len() as f32;
        let mean = if self.bias.is_some() { math::sum(x, |v| v) / n } else { 0.0 };
        let square = math::sum(x, |v| (v - mean) * (v - mean)) / n;
        (mean, 1.0 / (square + self.eps).sqrt())
    }

    /// Calls `f` with the name and the place of every trained tensor.
    pub fn trained(&mut self, f: &mut dyn FnMut(String, &mut Tensor)) {
        if self.trained {
            f(format!("{}.weight", self.name), &mut self.weight);
            if let Some(b) = &mut self.bias {
                f(format!("{}.bias", self.name), b);
            }
        }
    }
}
