//! The loop, top to bottom: batch, loss, backward, clip, step, report.

use super::checkpoint::{self, State};
use super::config::TuneConfig;
use super::guard;
use super::optimizer::{self, AdamW};
use super::run_folder::RunFolder;
use crate::data::batch::{self, Row};
use crate::model::layers::head::LossSum;
use crate::model::layers::{Grads, Pass};
use crate::model::network::{Network, count_targets};
use anyhow::Context;
use serde_json::json;
use std::collections::BTreeMap;
use std::time::Instant;

/// What a step tells whoever watches.
#[derive(Debug, Clone, Copy)]
#[allow(missing_docs)]
pub struct StepReport {
    pub step: usize,
    pub steps: usize,
    pub loss: f64,
    pub lr: f64,
    pub tokens_per_s: f64,
}

/// Somebody who watches a run, and may stop it.
pub trait Watch {
    /// After each optimizer step.
    fn step(&mut self, report: StepReport);
    /// After each evaluation: step, validation loss (nats a target), share of targets right.
    fn evaluation(&mut self, step: usize, loss: f64, accuracy: f64);
    /// Asked after each step; true saves a checkpoint and stops.
    fn stop(&mut self) -> bool {
        false
    }
}

/// How a run ended.
#[derive(Debug, Clone)]
#[allow(missing_docs)]
pub struct Outcome {
    pub steps: usize,
    /// Loss of the last step, nats a target.
    pub loss: f64,
    /// Validation loss of the weights that were kept.
    pub val: Option<f64>,
    pub tokens_per_s: f64,
    pub seconds: f64,
    /// `steps`, `patience` or `interrupted`.
    pub stopped_by: &'static str,
    /// (step, loss) of every step.
    pub curve: Vec<(usize, f64)>,
    /// (step, validation loss).
    pub val_curve: Vec<(usize, f64)>,
}

/// One run: a network, its rows, and how to teach them.
pub struct Trainer<'a> {
    /// The network, with what is to be trained marked.
    pub network: &'a mut Network,
    /// Resolved settings.
    pub config: &'a TuneConfig,
    /// Rows to learn.
    pub train: &'a [Row],
    /// Rows held out.
    pub val: &'a [Row],
    /// Where the run is written.
    pub folder: &'a mut RunFolder,
}

/// Activations above this many bytes a micro-batch are computed again instead of kept.
const KEEP_BYTES: usize = 1 << 30;

impl Trainer<'_> {
    /// Runs to the end, or until `watch` stops it. `from` is a checkpoint to go on from.
    pub fn run(&mut self, from: Option<&std::path::Path>, watch: &mut dyn Watch) -> anyhow::Result<Outcome> {
        let c = self.config;
        let lengths: Vec<usize> = self.train.iter().map(|r| r.ids.len()).collect();
        let per_epoch = self.train.len().div_ceil(c.batch).div_ceil(c.accumulate).max(1);
        let steps = c.steps.unwrap_or_else(|| (c.epochs.unwrap_or(1.0) * per_epoch as f64).ceil() as usize);
        let warmup = if c.warmup < 1.0 { (c.warmup * steps as f64) as usize } else { c.warmup as usize };
        let (eval_every, save_every) = (c.eval_every.unwrap_or(per_epoch), c.save_every.unwrap_or(per_epoch));
        let mut optimizer = AdamW {
            beta1: c.beta1 as f32,
            beta2: c.beta2 as f32,
            eps: c.eps as f32,
            weight_decay: c.weight_decay as f32,
            decay_vectors: c.method != super::config::Method::Full,
            lora_plus: c.lora_plus_ratio as f32,
            t: 0,
            moments: BTreeMap::new(),
        };
        let mut state = match from {
            Some(folder) => checkpoint::load(folder, self.network, &mut optimizer)?,
            None => State::default(),
        };
        let (mut curve, mut val_curve) = (Vec::new(), Vec::new());
        let start = Instant::now();
        let (mut stopped_by, mut saved_at) = ("steps", usize::MAX);
        let (first_token, first_step) = (state.tokens, state.step);
        let mut epoch = usize::MAX;
        let mut order: Vec<Vec<usize>> = Vec::new();

        while state.step < steps {
            let now = state.step / per_epoch;
            if now != epoch {
                epoch = now;
                order = batch::order(&lengths, c.batch, c.seed, epoch as u64, true);
            }
            let at = (state.step % per_epoch) * c.accumulate;
            let micro: Vec<Vec<&Row>> =
                order[at..order.len().min(at + c.accumulate)].iter().map(|b| self.rows(b)).collect();
            let targets: usize = micro.iter().map(|b| count_targets(b)).sum();
            let tokens: usize = micro.iter().flatten().map(|r| r.ids.len()).sum();
            let attends = micro.iter().any(|b| guard::attends(b));
            if targets == 0 {
                anyhow::bail!("step {}: no token of its rows is learned", state.step + 1);
            }

            let mut grads = Grads::default();
            let mut loss = LossSum::default();
            for rows in &micro {
                let pass = Pass { train: true, seed: c.seed, step: state.micro };
                loss +=
                    self.network.loss_and_grad(rows, 1.0 / targets as f32, pass, self.recompute(rows), &mut grads)?;
                state.micro += 1;
            }
            let mean = loss.nll / targets as f64;
            let norm = optimizer::global_norm(&grads)?;
            if !mean.is_finite() || !norm.is_finite() {
                let first = guard::first_not_finite(&grads)?.map_or(String::new(), |n| format!(" (first in `{n}`)"));
                anyhow::bail!(
                    "step {}: the loss is {mean} and the gradient's norm {norm}{first}; lower --lr (now {}) or keep --clip on",
                    state.step + 1,
                    c.lr
                );
            }
            if state.step < first_step + guard::STEPS {
                guard::every_weight_learns(self.network, &grads, attends)
                    .with_context(|| format!("step {}", state.step + 1))?;
            }
            let factor = if c.clip > 0.0 && norm > c.clip { c.clip / norm } else { 1.0 };
            let lr = c.lr * c.schedule.factor(state.step, warmup, steps);
            optimizer.step(self.network, &grads, lr as f32, factor as f32)?;

            state.step += 1;
            state.loss = mean;
            state.tokens += tokens;
            let elapsed = start.elapsed().as_secs_f64();
            curve.push((state.step, mean));
            self.folder.metric(
                &json!({"step": state.step, "loss": mean, "lr": lr, "grad_norm": norm, "tokens": state.tokens,
                "learned_tokens": targets, "seconds": state.seconds + elapsed}),
            )?;
            let tokens_per_s = (state.tokens - first_token) as f64 / elapsed.max(1e-9);
            watch.step(StepReport { step: state.step, steps, loss: mean, lr, tokens_per_s });

            if !self.val.is_empty() && (state.step % eval_every == 0 || state.step == steps) {
                let (val, accuracy) = self.evaluate()?;
                val_curve.push((state.step, val));
                self.folder.metric(&json!({"step": state.step, "val_loss": val, "val_accuracy": accuracy}))?;
                watch.evaluation(state.step, val, accuracy);
                if state.best.is_none_or(|(best, _)| val < best) {
                    state.best = Some((val, state.step));
                    state.stale = 0;
                    self.save(&optimizer, &state, elapsed)?;
                    saved_at = state.step;
                } else {
                    state.stale += 1;
                    if c.patience.is_some_and(|p| state.stale >= p) {
                        stopped_by = "patience";
                        break;
                    }
                }
            }
            let interrupted = watch.stop();
            if (interrupted || state.step % save_every == 0) && saved_at != state.step && state.step < steps {
                self.save(&optimizer, &state, elapsed)?;
                saved_at = state.step;
            }
            if interrupted && state.step < steps {
                stopped_by = "interrupted";
                break;
            }
        }
        // Early stopping keeps the best weights, not the last.
        if let (Some(_), Some((_, best))) = (c.patience, state.best)
            && best != state.step
            && stopped_by != "interrupted"
        {
            checkpoint::restore_weights(&self.folder.path.join(format!("checkpoints/step-{best}")), self.network)?;
        }
        let seconds = start.elapsed().as_secs_f64();
        Ok(Outcome {
            steps: state.step,
            loss: state.loss,
            val: if c.patience.is_some() { state.best.map(|b| b.0) } else { val_curve.last().map(|v| v.1) },
            tokens_per_s: (state.tokens - first_token) as f64 / seconds.max(1e-9),
            seconds: state.seconds + seconds,
            stopped_by,
            curve,
            val_curve,
        })
    }

    fn save(&mut self, optimizer: &AdamW, state: &State, elapsed: f64) -> anyhow::Result<()> {
        let state = State { seconds: state.seconds + elapsed, ..state.clone() };
        checkpoint::save(&self.folder.path, self.network, optimizer, &state)
    }

    /// Rows of a batch, the equal lengths together: they share their attention GEMMs.
    fn rows(&self, batch: &[usize]) -> Vec<&Row> {
        by_length(batch.iter().map(|i| &self.train[*i]).collect())
    }

    fn recompute(&self, rows: &[&Row]) -> bool {
        let m = &self.network.config;
        let tokens: usize = rows.iter().map(|r| r.ids.len()).sum();
        let floats = 5 * m.hidden_size + 2 * m.q_dim() + 2 * m.kv_dim() + 3 * m.intermediate_size;
        tokens * floats * 4 * m.num_hidden_layers > KEEP_BYTES
    }

    /// Mean validation loss and share of targets right.
    fn evaluate(&self) -> anyhow::Result<(f64, f64)> {
        let sum = total_loss(self.network, self.val, self.config.batch)?;
        Ok((sum.nll / sum.count.max(1) as f64, sum.right as f64 / sum.count.max(1) as f64))
    }
}

/// Loss sums over rows, `batch` at a time.
pub fn total_loss(network: &Network, rows: &[Row], batch: usize) -> anyhow::Result<LossSum> {
    let mut sum = LossSum::default();
    let all = by_length(rows.iter().collect());
    for rows in all.chunks(batch) {
        sum += network.loss(rows)?;
    }
    Ok(sum)
}

fn by_length(mut rows: Vec<&Row>) -> Vec<&Row> {
    rows.sort_by_key(|r| (r.ids.len(), r.keys)); // stable: equal lengths keep their order
    rows
}
