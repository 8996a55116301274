//! Rotary position embedding (RoFormer, arXiv:2104.09864, section 3.4.2), in Hugging Face's pairing (i, i + R/2)
//! of the R dimensions of a head that are rotated: all D of them, or the first part (`partial_rotary_factor`).

use super::host::{Host, rows_per_task};
use super::math::wide;
use crate::model::config::{Config, RopeScaling};
use candle_core::{Result, Tensor};
use rayon::prelude::*;

/// Frequencies of one kind of layer.
pub struct Rope {
    /// (R/2): radians a position, R dimensions rotated.
    inv_freq: Vec<f64>,
    head_dim: usize,
}

/// Cosines and sines of the tokens of one packed batch: (N, R/2) each.
pub struct Angles {
    cos: Vec<f32>,
    sin: Vec<f32>,
    head_dim: usize,
    half: usize,
}

impl Rope {
    /// Frequencies θ^(-2i/R), stretched as the config says.
    pub fn new(theta: f32, scaling: RopeScaling, rotary_dim: usize, head_dim: usize) -> Self {
        let base = |i: usize| f64::from(theta).powf(-(2.0 * i as f64) / rotary_dim as f64);
        let inv_freq = (0..rotary_dim / 2).map(|i| base(i) / divisor(base(i), scaling)).collect();
        Self { inv_freq, head_dim }
    }

    /// Those of a network: first of the layers that see all, then, where it has another, of the local ones.
    pub fn of(config: &Config) -> Vec<Self> {
        let one = |(theta, scaling)| Self::new(theta, scaling, config.rotary_dim, config.head_dim);
        let full = (config.rope_theta, config.rope_scaling);
        if config.family.rotates() {
            std::iter::once(full).chain(config.local_rope).map(one).collect()
        } else {
            Vec::new()
        }
    }

    /// Angles for the positions of a batch.
    pub fn angles(&self, positions: &[u32]) -> Angles {
        let all = || positions.iter().flat_map(|p| self.inv_freq.iter().map(move |f| f64::from(*p) * f));
        Angles {
            cos: all().map(|a| a.cos() as f32).collect(),
            sin: all().map(|a| a.sin() as f32).collect(),
            head_dim: self.head_dim,
            half: self.inv_freq.len(),
        }
    }
}

impl Angles {
    /// x: (N, H * D) → the same, the first R dimensions of each head rotated by its token's position.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.rotate(x, 1.0)
    }

    /// A rotation's transpose is the rotation back.
    pub fn backward(&self, dy: &Tensor) -> Result<Tensor> {
        self.rotate(dy, -1.0)
    }

    fn rotate(&self, x: &Tensor, sign: f32) -> Result<Tensor> {
        let (x, width) = (x.contiguous()?, x.dim(1)?);
        let host = Host::new(&x)?;
        let (d, half) = (self.head_dim, self.half);
        let rows = rows_per_task(width);
        let mut out = vec![0.0; x.elem_count()];
        out.par_chunks_mut(rows * width).zip(host.slice().par_chunks(rows * width)).enumerate().for_each(
            |(task, (out, x))| {
                for (r, (out, x)) in out.chunks_mut(width).zip(x.chunks(width)).enumerate() {
                    let token = task * rows + r;
                    let cos = &self.cos[token * half..][..half];
                    let sin = &self.sin[token * half..][..half];
                    wide!(|out: &'a mut [f32],
                           x: &'a [f32],
                           cos: &'a [f32],
                           sin: &'a [f32],
                           d: usize,
                           sign: f32|
                     -> () {
                        let half = cos.len();
                        for (out, x) in out.chunks_mut(d).zip(x.chunks(d)) {
                            let ((low, high), (x_low, x_high)) = (out.split_at_mut(half), x.split_at(half));
                            high[half..].copy_from_slice(&x_high[half..]);
                            let into = low.iter_mut().zip(high);
                            for ((low, high), ((a, b), (cos, sin))) in
                                into.zip(x_low.iter().zip(x_high).zip(cos.iter().zip(sin)))
                            {
                                *low = a * cos - b * (sign * sin);
                                *high = b * cos + a * (sign * sin);
                            }
                        }
                    });
                }
            },
        );
        Tensor::from_vec(out, x.shape(), x.device())
    }
}

/// What a base frequency is divided by.
pub fn divisor(freq: f64, scaling: RopeScaling) -> f64 {
    match scaling {
        RopeScaling::None => 1.0,
        RopeScaling::Linear { factor } => f64::from(factor),
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } => {
            let wavelength = 2.0 * std::f64::consts::PI / freq;
            let (context, low, high) =
                (original_max_position_embeddings as f64, f64::from(low_freq_factor), f64::from(high_freq_factor));
            if wavelength < context / high {
                1.0
            } else if wavelength > context / low {
                f64::from(factor)
            } else {
                let smooth = (context / wavelength - low) / (high - low);
                1.0 / ((1.0 - smooth) / f64::from(factor) + smooth)
            }
        }
    }
}
