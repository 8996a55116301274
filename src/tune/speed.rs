//! How long a run will take on this machine: its arithmetic counted, over what a short calibration measures.
//!
//! GEMMs are counted in floating-point operations, everything between them (norms, activations, copies, sums) in floats that
//! are read or written. Both rates are measured for a fraction of a second on shapes of the model at hand, at their best: a
//! machine that does other things at the same time takes longer than is said here. What a GEMM of few columns or an
//! exponential costs against these two is a constant below, from runs of five networks on one AVX-512 core. Said against
//! the time that it took there, on another such core, 2026-11-28: 1.04 (6 layers of 512, rows of 256), 0.90 (the same, 1024),
//! 0.67 (12 layers of 576), 1.03 (stories260K), 0.66 (nano), 0.65 (MiniLM): take it as six tenths to all of what it will be.

use super::config::{Method, TuneConfig};
use super::memory::{Activations, Weights};
use crate::data::batch::Row;
use candle_core::{DType, Device, Result, Tensor};
use std::time::{Duration, Instant};

/// Rows of the calibration's matrices: enough for the GEMM's full speed, few enough that a call is over before the system
/// gives the core to somebody else.
const ROWS: usize = 128;
/// How long, and how often, each of the two is measured.
const LEAST: Duration = Duration::from_millis(200);
const LEAST_CALLS: usize = 12;
/// An exponential costs as much as so many floats that are read or written.
const EXP: f64 = 20.0;
/// Attention's products over heads narrower than this lose speed in proportion.
const WIDE_HEAD: f64 = 64.0;
/// Products with low-rank matrices run at this share of a GEMM's speed.
const LOW_RANK: f64 = 0.33;

/// What this machine does in a second.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Speed {
    /// Floating-point operations of a GEMM.
    pub flops: f64,
    /// Floats read or written between GEMMs.
    pub floats: f64,
}

/// What is to be done.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Work {
    /// Floating-point operations.
    pub flops: f64,
    /// Floats read or written.
    pub floats: f64,
}

impl Speed {
    /// Measures on (128, C) by (C, F), and on sums of (128, F).
    pub fn measure(hidden: usize, wide: usize) -> Result<Self> {
        let ones = |a: usize, b: usize| Tensor::ones((a, b), DType::F32, &Device::Cpu);
        let (x, w, h) = (ones(ROWS, hidden)?, ones(wide, hidden)?, ones(ROWS, wide)?);
        let w = w.t()?;
        let gemm_s = per_call(&mut || x.matmul(&w).map(drop))?;
        let sum_s = per_call(&mut || (&h + &h).map(drop))?;
        Ok(Self { flops: 2.0 * (ROWS * hidden * wide) as f64 / gemm_s, floats: 3.0 * (ROWS * wide) as f64 / sum_s })
    }

    /// Seconds that the work takes.
    pub fn seconds(&self, work: Work) -> f64 {
        work.flops / self.flops + work.floats / self.floats
    }
}

/// The fastest call of as many as fit: what else the machine does is no property of it.
fn per_call(call: &mut dyn FnMut() -> Result<()>) -> Result<f64> {
    let (since, mut best, mut calls) = (Instant::now(), f64::INFINITY, 0);
    while since.elapsed() < LEAST || calls < LEAST_CALLS {
        calls += 1;
        let begun = Instant::now();
        call()?;
        best = best.min(begun.elapsed().as_secs_f64());
    }
    Ok(best.max(1e-9))
}

impl Work {
    /// Of learning from rows once: a forward, a backward, and another forward of the `again` blocks that are computed again.
    pub fn learning(a: &Activations, weights: &Weights, config: &TuneConfig, rows: &[Row], again: usize) -> Self {
        let forwards = 1.0 + again as f64 / a.layers() as f64;
        let full = if config.method == Method::Full { 1.0 } else { 0.0 };
        let beside = if config.method == Method::Full { 0.0 } else { weights.trained as f64 };
        let narrow = (WIDE_HEAD / a.head_dim()).max(1.0);
        let mut out = Self::default();
        for row in rows {
            let (tokens, learned) = (row.ids.len() as f64, row.learned() as f64);
            out.flops += tokens * 2.0 * weights.projections as f64 * (forwards + 1.0 + full);
            out.flops += tokens * 6.0 * beside / LOW_RANK;
            // Scores and values forward; in the backward the scores again, and four products more.
            out.flops += narrow * a.pairs(tokens) * a.attention_width() * (4.0 * forwards + 10.0);
            out.flops += learned * 2.0 * a.logits_width() * (2.0 + full);
            out.floats += tokens * a.passes(forwards) + learned * 8.0 * a.vocab() as f64;
            out.floats +=
                a.pairs(tokens) * a.heads_in_all() * (4.0 * forwards + 8.0) + a.exps(tokens) * EXP * (forwards + 1.0);
        }
        out
    }

    /// Of reading rows: a forward.
    pub fn reading(a: &Activations, weights: &Weights, rows: &[Row]) -> Self {
        let mut out = Self::default();
        for row in rows {
            let (tokens, learned) = (row.ids.len() as f64, row.learned() as f64);
            out.flops += tokens * 2.0 * weights.projections as f64 + a.pairs(tokens) * a.attention_width() * 4.0;
            out.flops += learned * 2.0 * a.logits_width();
            out.floats += tokens * a.passes(0.5) + learned * 5.0 * a.vocab() as f64;
        }
        out
    }

    /// The optimizer's steps over what is trained.
    pub fn steps(weights: &Weights, steps: f64) -> Self {
        Self { flops: 0.0, floats: steps * 12.0 * weights.trained as f64 }
    }

    /// So many times.
    pub fn times(self, n: f64) -> Self {
        Self { flops: self.flops * n, floats: self.floats * n }
    }
}

impl std::ops::Add for Work {
    type Output = Self;
    fn add(self, o: Self) -> Self {
        Self { flops: self.flops + o.flops, floats: self.floats + o.floats }
    }
}
