//! Log-probabilities of whole sequences, and their gradient: what losses over answers are made of. As in
//! [`super::head`], logits of [`CHUNK`] rows are alive at once; the chunks are made a second time for the gradient, since
//! what a row weighs is known only when the log-probabilities of all are.

use super::head::{self, CHUNK};
use super::host::Host;
use super::math::{self, wide};
use super::{Grads, Pass, linear::Linear};
use candle_core::{Result, Tensor};
use rayon::prelude::*;

/// Logits that are summed in f32.
const BLOCK: usize = 1024;

/// log p of each target, in nats: (N, V) logits → N numbers.
fn log_probs_of(logits: &Tensor, targets: &[u32]) -> Result<Vec<f64>> {
    let width = logits.dim(1)?;
    let logits = logits.contiguous()?;
    let host = Host::new(&logits)?;
    Ok(host
        .slice()
        .par_chunks(width)
        .zip(targets)
        .map(|(x, &target)| {
            let (sum, max) = wide(|| {
                let max = math::max(x);
                let sum: f64 = x.chunks(BLOCK).map(|b| f64::from(math::sum(b, |v| math::exp(v - max)))).sum();
                (sum, max)
            });
            f64::from(x[target as usize] - max) - sum.ln()
        })
        .collect())
}

/// log p of each row of h: (N, C) that has a target, and 0 of the others.
pub fn log_probs(head: &Linear, h: &Tensor, targets: &[Option<u32>]) -> Result<Vec<f64>> {
    let mut out = vec![0.0; targets.len()];
    for (rows, learned) in chunks(targets) {
        let logits = head.forward(&h.index_select(&Tensor::new(rows.as_slice(), h.device())?, 0)?, Pass::EVAL)?;
        for (row, log_p) in rows.iter().zip(log_probs_of(&logits, &learned)?) {
            out[*row as usize] = log_p;
        }
    }
    Ok(out)
}

/// The gradient of h: (N, C) for the loss Σ weights\[i\] · log p of row i's target; the head's own goes to `grads` when it is
/// trained.
pub fn backward(
    head: &Linear,
    h: &Tensor,
    targets: &[Option<u32>],
    weights: &[f64],
    grads: &mut Grads,
) -> Result<Tensor> {
    let (mut all, mut parts) = (Vec::new(), Vec::new());
    for (rows, learned) in chunks(targets) {
        let x = h.index_select(&Tensor::new(rows.as_slice(), h.device())?, 0)?;
        // The gradient of -log p, row by row.
        let (_, dlogits) = head::cross_entropy(&head.forward(&x, Pass::EVAL)?, &learned, 1.0)?;
        let weights: Vec<f32> = rows.iter().map(|row| -weights[*row as usize] as f32).collect();
        let dlogits = dlogits.broadcast_mul(&Tensor::from_vec(weights, (rows.len(), 1), h.device())?)?;
        parts.push(head.backward(&x, &dlogits, Pass::EVAL, grads)?);
        all.extend(rows);
    }
    let dh = Tensor::zeros(h.shape(), h.dtype(), h.device())?;
    if parts.is_empty() {
        return Ok(dh);
    }
    dh.index_add(&Tensor::new(all.as_slice(), h.device())?, &Tensor::cat(&parts, 0)?, 0)
}

/// Rows that have a target, and the targets, [`CHUNK`] at a time.
fn chunks(targets: &[Option<u32>]) -> Vec<(Vec<u32>, Vec<u32>)> {
    let learned: Vec<(u32, u32)> =
        targets.iter().enumerate().filter_map(|(i, target)| Some((i as u32, (*target)?))).collect();
    learned.chunks(CHUNK).map(|part| part.iter().copied().unzip()).collect()
}
