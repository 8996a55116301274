//! Losses. The language-model head never holds logits for the whole batch: rows without a label are left out before the
//! head, and the rest pass through it [`CHUNK`] at a time, each chunk turned into its gradient before the next.

use super::fused;
use super::math::{self, wide};
use super::{Grads, linear::Linear};
use candle_core::{Result, Tensor};
use parking_lot::Mutex;
use rayon::prelude::*;

/// Rows of logits alive at once.
pub const CHUNK: usize = 256;

/// Logits that are summed in f32.
const BLOCK: usize = 1024;

/// Sums over the learned targets of a batch: nothing is divided before the optimizer step knows the whole count.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct LossSum {
    /// Negative log-likelihood in nats, summed.
    pub nll: f64,
    /// Targets that it was summed over.
    pub count: usize,
    /// Targets that the largest logit got right.
    pub right: usize,
}

impl std::ops::AddAssign for LossSum {
    fn add_assign(&mut self, o: Self) {
        self.nll += o.nll;
        self.count += o.count;
        self.right += o.right;
    }
}

/// Cross-entropy of (N, V) logits against one target a row. The logits become their gradient, (p - onehot) * `weight`.
pub fn cross_entropy(logits: Tensor, targets: &[u32], weight: f32) -> Result<(LossSum, Tensor)> {
    let (rows, grad) = by_row(logits, targets, |_| weight)?;
    let mut loss = LossSum { count: targets.len(), ..Default::default() };
    for (nll, right) in rows {
        loss.nll += nll;
        loss.right += usize::from(right);
    }
    Ok((loss, grad))
}

/// Of each row, its nats and whether its largest logit is the target. The logits become their gradient, each row times its
/// weight, in place: a batch of them is the largest thing that a step makes.
pub(super) fn by_row(
    logits: Tensor,
    targets: &[u32],
    weight: impl Fn(usize) -> f32 + Sync,
) -> Result<(Vec<(f64, bool)>, Tensor)> {
    let width = logits.dim(1)?;
    let logits = logits.contiguous()?;
    let rows = Mutex::new(Vec::new());
    fused::change(&logits, |values| {
        let all = values.par_chunks_mut(width).zip(targets).enumerate();
        *rows.lock() = all.map(|(i, (x, target))| row(x, *target as usize, weight(i))).collect();
    })?;
    Ok((rows.into_inner(), logits))
}

/// One row: nats, and whether its largest logit is the target.
fn row(x: &mut [f32], target: usize, weight: f32) -> (f64, bool) {
    let logit = x[target];
    let values = &mut *x;
    let (others, own, max, right) =
        wide!(|values: &'a mut [f32], target: usize, weight: f32| -> (f64, f64, f32, bool) {
            let max = math::max(values);
            let right = values.iter().position(|x| *x == max) == Some(target);
            for x in values.iter_mut() {
                *x = math::exp(*x - max);
            }
            let own = f64::from(std::mem::take(&mut values[target]));
            // Blocks in f32, their sums in f64: a vocabulary of 10⁵ small terms loses nothing.
            let mut others = 0.0;
            for block in values.chunks(BLOCK) {
                others += f64::from(math::sum(block, |g| g));
            }
            let scale = (f64::from(weight) / (others + own)) as f32;
            for x in values {
                *x *= scale;
            }
            (others, own, max, right)
        });
    let sum = others + own;
    // p - 1 of the target as what the others have: near a certain answer the difference would be rounding alone.
    x[target] = -(f64::from(weight) * others / sum) as f32;
    (sum.ln() - f64::from(logit - max), right)
}

/// Cross-entropy of `head(h)` at the learned rows of h: (N, C).
///
/// `targets[i]` is what row i must predict. Returns the sums and, when `weight` is given, the gradient of h for a loss of
/// `weight` times the summed nats; the head's own gradient goes to `grads` when it is trained.
pub fn linear_cross_entropy(
    head: &Linear,
    h: &Tensor,
    targets: &[Option<u32>],
    weight: Option<f32>,
    grads: &mut Grads,
) -> Result<(LossSum, Option<Tensor>)> {
    let rows: Vec<u32> = (0..targets.len() as u32).filter(|i| targets[*i as usize].is_some()).collect();
    let learned: Vec<u32> = targets.iter().flatten().copied().collect();
    let mut loss = LossSum::default();
    let mut parts = Vec::new();
    // One place for the logits of every chunk: the system is slow to give so much anew.
    let room = Tensor::zeros((rows.len().min(CHUNK), head.dims()?.0), h.dtype(), h.device())?;
    for (rows, learned) in rows.chunks(CHUNK).zip(learned.chunks(CHUNK)) {
        let index = Tensor::new(rows, h.device())?;
        let x = h.index_select(&index, 0)?;
        let logits = if head.adapter.is_none() {
            let logits = room.narrow(0, 0, rows.len())?;
            head.plain_into(&x, &logits)?;
            logits
        } else {
            head.forward(&x, super::Pass::EVAL)?
        };
        let (sum, dlogits) = cross_entropy(logits, learned, weight.unwrap_or(0.0))?;
        loss += sum;
        if weight.is_some() {
            parts.push(head.backward(&x, &dlogits, super::Pass::EVAL, grads)?);
        }
    }
    if weight.is_none() {
        return Ok((loss, None));
    }
    let dh = Tensor::zeros(h.shape(), h.dtype(), h.device())?;
    if parts.is_empty() {
        return Ok((loss, Some(dh)));
    }
    let index = Tensor::new(rows.as_slice(), h.device())?;
    Ok((loss, Some(dh.index_add(&index, &Tensor::cat(&parts, 0)?, 0)?)))
}
