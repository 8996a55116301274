//! Log-probabilities of whole sequences, and their gradient: what losses over answers are made of. As in
//! [`super::head`], logits of [`CHUNK`] rows are alive at once; the chunks are made a second time for the gradient, since
//! what a row weighs is known only when the log-probabilities of all are.

use super::head::{self, CHUNK};
use super::{Grads, Pass, linear::Linear};
use candle_core::{Result, Tensor};

/// log p of each row of h: (N, C) that has a target, and 0 of the others.
pub fn log_probs(head: &Linear, h: &Tensor, targets: &[Option<u32>]) -> Result<Vec<f64>> {
    let mut out = vec![0.0; targets.len()];
    for (rows, learned) in chunks(targets) {
        let logits = head.forward(&h.index_select(&Tensor::new(rows.as_slice(), h.device())?, 0)?, Pass::EVAL)?;
        for (row, (nll, _)) in rows.iter().zip(head::by_row(logits, &learned, |_| 0.0)?.0) {
            out[*row as usize] = -nll;
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
        // Its rows are gradients of -log p.
        let weight = |i: usize| -weights[rows[i] as usize] as f32;
        let (_, dlogits) = head::by_row(head.forward(&x, Pass::EVAL)?, &learned, weight)?;
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
