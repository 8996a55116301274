//! The loop, top to bottom: batch, loss, backward, clip, step, report.

use super::budget::Budget;
use super::checkpoint::{self, State};
use super::config::TuneConfig;
use super::guard;
use super::memory::Activations;
use super::objective::{Found, Objective};
use super::optimizer::{self, AdamW};
use super::run_folder::RunFolder;
use crate::data::batch::{Course, Row, lengths, rows_of, units};
use crate::model::layers::{Grads, Pass};
use crate::model::network::Network;
use anyhow::Context;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;
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
pub trait Watch: Send {
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
    /// `steps`, `patience`, `budget` or `interrupted`.
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
    /// What is minimized.
    pub objective: Objective,
    /// Rows to learn.
    pub train: &'a [Row],
    /// Rows held out.
    pub val: &'a [Row],
    /// What a micro-batch may hold in memory.
    pub activations: Activations,
    /// When the command began: what `--budget` counts from.
    pub since: Instant,
    /// Where the run is written.
    pub folder: &'a mut RunFolder,
}

impl Trainer<'_> {
    /// Runs to the end, or until `watch` stops it. `from` is a checkpoint to go on from.
    ///
    /// # Errors
    /// A step that cannot be taken, by its number; what candle and the disk report.
    pub fn run(&mut self, from: Option<&Path>, watch: &mut dyn Watch) -> anyhow::Result<Outcome> {
        // On a thread of the pool: from outside, every product would be handed over and waited for.
        rayon::scope(|_| self.learn(from, watch))
    }

    fn learn(&mut self, from: Option<&Path>, watch: &mut dyn Watch) -> anyhow::Result<Outcome> {
        let c = self.config;
        let units = units(self.train);
        let mut course = Course::new(lengths(self.train, &units), c.size(), c.accumulate, c.seed);
        let per_epoch = course.per_epoch();
        let asked = c.steps.unwrap_or_else(|| course.steps_in(c.epochs.unwrap_or(1.0)));
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
        let val_tokens: usize = self.val.iter().map(|r| r.ids.len()).sum();
        let mut budget = c.budget.map(|seconds| Budget::new(seconds, state.seconds, self.since, val_tokens));
        // A budget shortens the run once its first steps have shown what one takes; a run that goes on begins with that.
        let mut steps = state.planned.unwrap_or(asked);

        while state.step < steps {
            let warmup = if c.warmup < 1.0 { (c.warmup * steps as f64) as usize } else { c.warmup as usize };
            let (batches, epoch_ends) = course.step(state.step);
            let micro: Vec<Vec<&Row>> = batches.iter().map(|b| rows_of(self.train, &units, b)).collect();
            let targets: usize = micro.iter().flatten().filter(|r| !r.is_only_read()).map(|r| r.learned()).sum();
            let tokens: usize = micro.iter().flatten().map(|r| r.ids.len()).sum();
            let attends = micro.iter().any(|b| guard::attends(b));
            if targets == 0 {
                anyhow::bail!("step {}: no token of its rows is learned", state.step + 1);
            }

            let mut grads = Grads::default();
            let pass = Pass { train: true, seed: c.seed, step: state.micro, noise: c.neftune, ..Pass::EVAL };
            let found = self.objective.learn(self.network, &micro, &self.activations, pass, &mut grads)?;
            state.micro += micro.len() as u64;
            let mean = found.loss;
            let norm = optimizer::global_norm(&grads)?;
            if !mean.is_finite() || !norm.is_finite() {
                let first = guard::first_not_finite(&grads)?.map_or(String::new(), |n| format!(" (first in `{n}`)"));
                anyhow::bail!(
                    "step {}: the loss is {mean} and the gradient's norm {norm}{first}; lower --lr (now {}) or keep --clip on",
                    state.step + 1,
                    c.lr
                );
            }
            if state.step < first_step + guard::STEPS && found.teaches {
                guard::every_weight_learns(self.network, &grads, attends)
                    .with_context(|| format!("step {}", state.step + 1))?;
            }
            let factor = if c.clip > 0.0 && norm > c.clip { c.clip / norm } else { 1.0 };
            let lr = c.lr * c.schedule.factor(state.step, warmup, steps);
            optimizer.step(self.network, &grads, lr as f32, factor as f32)?;
            drop(grads);

            state.step += 1;
            state.loss = mean;
            state.tokens += tokens;
            let elapsed = start.elapsed().as_secs_f64();
            curve.push((state.step, mean));
            let line = json!({"step": state.step, "loss": mean, "lr": lr, "grad_norm": norm, "tokens": state.tokens,
                "learned_tokens": targets, "seconds": state.seconds + elapsed});
            self.folder.metric(&with(line, &found, ""))?;
            let tokens_per_s = (state.tokens - first_token) as f64 / elapsed.max(1e-9);

            let mut enough = false;
            if let Some(budget) = &mut budget {
                let evals_left = |last: usize| match c.eval_every {
                    Some(n) => last / n - state.step / n + 1,
                    None => last / per_epoch - state.step / per_epoch + 1,
                };
                let mean_tokens = course.mean_tokens();
                budget.took(state.tokens - first_token, elapsed);
                let planned = state.planned.map(|last| last.max(state.step));
                if let Some(last) = budget.decide((state.step, asked), planned, mean_tokens, &evals_left) {
                    state.planned = Some(last);
                    steps = last;
                    self.save(&optimizer, &state, elapsed)?;
                    saved_at = state.step;
                }
                enough = state.step < steps && budget.is_spent(mean_tokens);
            }
            watch.step(StepReport { step: state.step, steps, loss: mean, lr, tokens_per_s });

            let due = c.eval_every.map_or(epoch_ends, |n| state.step.is_multiple_of(n));
            if !self.val.is_empty() && (due || enough || state.step == steps) {
                let found = self.judge()?;
                let (val, accuracy) = (found.loss, found.accuracy);
                val_curve.push((state.step, val));
                let line = json!({"step": state.step, "val_loss": val, "val_accuracy": accuracy});
                self.folder.metric(&with(line, &found, "val_"))?;
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
            let due = c.save_every.map_or(epoch_ends, |n| state.step.is_multiple_of(n));
            if (interrupted || enough || due) && saved_at != state.step && state.step < steps {
                self.save(&optimizer, &state, elapsed)?;
                saved_at = state.step;
            }
            if interrupted && state.step < steps {
                stopped_by = "interrupted";
                break;
            }
            if enough {
                break;
            }
        }
        if stopped_by == "steps" && state.step < asked {
            stopped_by = "budget";
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

    /// The rows held out, judged as they are learned.
    ///
    /// # Errors
    /// What candle reports.
    pub fn judge(&self) -> anyhow::Result<Found> {
        self.objective.judge(self.network, self.val, self.config.size(), &self.activations)
    }
}

/// A line of `metrics.jsonl` with what the objective has to say besides.
fn with(mut line: Value, found: &Found, prefix: &str) -> Value {
    for (name, value) in &found.fields {
        line[format!("{prefix}{name}")] = value.clone();
    }
    line
}
