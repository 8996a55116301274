//! Rotary position embedding (RoFormer, arXiv:2104.09864, section 3.4.2), in Hugging Face's pairing (i, i + D/2).

use super::host::{Host, rows_per_task};
use crate::model::config::{Config, RopeScaling};
use candle_core::{Result, Tensor};
use rayon::prelude::*;

/// Frequencies of one model.
pub struct Rope {
    /// (D/2): radians a position.
    inv_freq: Vec<f64>,
    head_dim: usize,
}

/// Cosines and sines of the tokens of one packed batch: (N, D/2) each.
pub struct Angles {
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl Rope {
    /// Frequencies θ^(-2i/D), stretched as the config says.
    pub fn new(config: &Config) -> Self {
        let d = config.head_dim;
        let base = |i: usize| f64::from(config.rope_theta).powf(-(2.0 * i as f64) / d as f64);
        let inv_freq = (0..d / 2).map(|i| base(i) / divisor(base(i), config.rope_scaling)).collect();
        Self { inv_freq, head_dim: d }
    }

    /// Angles for the positions of a batch.
    pub fn angles(&self, positions: &[u32]) -> Angles {
        let all = || positions.iter().flat_map(|p| self.inv_freq.iter().map(move |f| f64::from(*p) * f));
        Angles { cos: all().map(|a| a.cos() as f32).collect(), sin: all().map(|a| a.sin() as f32).collect() }
    }

    /// x: (N, H * D) → the same, each head rotated by its token's position.
    pub fn forward(&self, x: &Tensor, angles: &Angles) -> Result<Tensor> {
        self.rotate(x, angles, 1.0)
    }

    /// A rotation's transpose is the rotation back.
    pub fn backward(&self, dy: &Tensor, angles: &Angles) -> Result<Tensor> {
        self.rotate(dy, angles, -1.0)
    }

    fn rotate(&self, x: &Tensor, angles: &Angles, sign: f32) -> Result<Tensor> {
        let (x, width) = (x.contiguous()?, x.dim(1)?);
        let host = Host::new(&x)?;
        let (d, half) = (self.head_dim, self.head_dim / 2);
        let rows = rows_per_task(width);
        let mut out = vec![0.0; x.elem_count()];
        out.par_chunks_mut(rows * width).zip(host.slice().par_chunks(rows * width)).enumerate().for_each(
            |(task, (out, x))| {
                for (r, (out, x)) in out.chunks_mut(width).zip(x.chunks(width)).enumerate() {
                    let token = task * rows + r;
                    let cos = &angles.cos[token * half..][..half];
                    let sin = &angles.sin[token * half..][..half];
                    for (out, x) in out.chunks_mut(d).zip(x.chunks(d)) {
                        for i in 0..half {
                            let s = sign * sin[i];
                            out[i] = x[i] * cos[i] - x[i + half] * s;
                            out[i + half] = x[i + half] * cos[i] + x[i] * s;
                        }
                    }
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
