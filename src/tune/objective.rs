//! What a step minimizes: targets of rows by themselves, answers that are preferred to others, or vectors among others.
//!
//! A row by itself needs one forward and one backward. A preference does too, since what an answer weighs follows from the
//! log-probabilities that its forward gives; KTO reads its mismatched answers first, for all of the step. Vectors are learned
//! from all vectors of a micro-batch: where one is computed in parts, its vectors are made first, and each part runs again for
//! its gradient (Gao et al., arXiv:2101.06983), so that memory bounds the part and not the number of negatives.

use super::contrast::{self, Contrast};
use super::memory::Activations;
use super::preference::{Kind, Preference, Step, Tally};
use crate::data::batch::{Row, Side, Size, Target, cut_by, lengths, rows_of, units};
use crate::model::layers::contrast::Contrasted;
use crate::model::layers::head::LossSum;
use crate::model::layers::{Grads, Pass};
use crate::model::network::Network;
use candle_core::Tensor;
use serde_json::{Map, Value};

/// What is minimized.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Objective {
    /// Nats of each target.
    Targets,
    /// Answers against each other.
    Preference(Preference),
    /// Vectors among others.
    Contrast(Contrast),
}

/// What a step, or an evaluation, found.
#[derive(Debug, Clone, Default)]
pub struct Found {
    /// Mean loss.
    pub loss: f64,
    /// Share of what is told right: targets, pairs, anchors.
    pub accuracy: f64,
    /// Whether anything could be learned: an anchor without any other text has nothing to be told from.
    pub teaches: bool,
    /// Written beside the loss.
    pub fields: Map<String, Value>,
}

impl Objective {
    /// The gradient of the mean loss of a step's micro-batches. `pass` is that of the first of them.
    pub fn learn(
        &self,
        network: &Network,
        micro: &[Vec<&Row>],
        activations: &Activations,
        pass: Pass,
        grads: &mut Grads,
    ) -> anyhow::Result<Found> {
        let passes = (0..).map(|i| Pass { step: pass.step + i, ..pass });
        match self {
            Self::Targets => {
                let targets: usize = micro.iter().flatten().map(|r| r.learned()).sum();
                let mut sum = LossSum::default();
                for (rows, pass) in micro.iter().zip(passes) {
                    each_part(activations, rows, pass, &mut |part, again, pass| {
                        sum += network.loss_and_grad(part, 1.0 / targets as f32, pass, again, grads)?;
                        Ok(())
                    })?;
                }
                Ok(of_targets(&sum))
            }
            Self::Preference(preference) => {
                let all: Vec<&Row> = micro.iter().flatten().copied().collect();
                let step = preference_step(preference, network, &all, activations)?;
                let mut tally = Tally::default();
                for (rows, pass) in micro.iter().zip(passes) {
                    let rows: Vec<&Row> = rows.iter().filter(|r| !r.is_only_read()).copied().collect();
                    each_part(activations, &rows, pass, &mut |part, again, pass| {
                        let mut slopes = |log_probs: &[f64]| preference.slopes(part, log_probs, &step, &mut tally);
                        network.learn_log_probs(part, pass, again, grads, &mut slopes)?;
                        Ok(())
                    })?;
                }
                Ok(of_preference(preference, &tally, &step))
            }
            Self::Contrast(contrast) => {
                let anchors: usize = micro.iter().map(|rows| contrast::anchors(rows)).sum();
                let mut sums = Contrasted::default();
                for (rows, pass) in micro.iter().zip(passes) {
                    add(&mut sums, vectors(contrast, network, rows, activations, pass, anchors, grads)?);
                }
                Ok(of_contrast(&sums))
            }
        }
    }

    /// The mean loss of rows, nothing learned.
    pub fn judge(
        &self,
        network: &Network,
        rows: &[Row],
        size: Size,
        activations: &Activations,
    ) -> anyhow::Result<Found> {
        let units = units(rows);
        let tokens = lengths(rows, &units);
        let mut order: Vec<usize> = (0..units.len()).collect();
        // Vectors are judged in the order of the file: sorted by length, a batch would tell itself apart by length.
        if !matches!(self, Self::Contrast(_)) {
            order.sort_by_key(|i| (tokens[*i], rows[units[*i].start].keys));
        }
        let batches: Vec<&[usize]> = match size {
            Size::Rows(n) => order.chunks(n).collect(),
            Size::Tokens(most) => cut_by(&order, most, |i| tokens[*i]),
        };
        let batches: Vec<Vec<&Row>> = batches.into_iter().map(|b| rows_of(rows, &units, b)).collect();
        match self {
            Self::Targets => {
                let mut sum = LossSum::default();
                for rows in &batches {
                    for part in activations.read_parts(rows) {
                        sum += network.loss(part)?;
                    }
                }
                Ok(of_targets(&sum))
            }
            Self::Preference(preference) => {
                let all: Vec<&Row> = batches.iter().flatten().copied().collect();
                let step = preference_step(preference, network, &all, activations)?;
                let mut tally = Tally::default();
                for rows in &batches {
                    let rows: Vec<&Row> = rows.iter().filter(|r| !r.is_only_read()).copied().collect();
                    for part in activations.read_parts(&rows) {
                        preference.slopes(part, &network.log_probs(part)?, &step, &mut tally);
                    }
                }
                Ok(of_preference(preference, &tally, &step))
            }
            Self::Contrast(contrast) => {
                let mut sums = Contrasted::default();
                for rows in &batches {
                    let mut all = Vec::new();
                    for part in activations.read_parts(rows) {
                        all.push(network.vectors(part, Pass::EVAL)?);
                    }
                    if !all.is_empty() {
                        add(&mut sums, contrast.learn(&Tensor::cat(&all, 0)?, rows, 0.0)?.0);
                    }
                }
                Ok(of_contrast(&sums))
            }
        }
    }

    /// Whether answers are held against the network as it was.
    pub fn has_reference(&self) -> bool {
        matches!(self, Self::Preference(p) if p.kind.has_reference())
    }
}

/// log p of each answer under the network as it is now, part by part; `tick` hears of the rows so far.
pub fn log_probs(
    network: &Network,
    rows: &[Row],
    activations: &Activations,
    size: Size,
    tick: &mut dyn FnMut(usize),
) -> anyhow::Result<Vec<f64>> {
    let mut order: Vec<usize> = (0..rows.len()).collect();
    order.sort_by_key(|i| rows[*i].ids.len());
    let batches: Vec<&[usize]> = match size {
        Size::Rows(n) => order.chunks(2 * n).collect(),
        Size::Tokens(most) => cut_by(&order, most, |i| rows[*i].ids.len()),
    };
    let (mut out, mut done) = (vec![0.0; rows.len()], 0);
    for batch in batches {
        let picked: Vec<&Row> = batch.iter().map(|i| &rows[*i]).collect();
        let mut found = Vec::with_capacity(batch.len());
        for part in activations.read_parts(&picked) {
            found.extend(network.log_probs(part)?);
        }
        batch.iter().zip(found).for_each(|(i, log_p)| out[*i] = log_p);
        done += batch.len();
        tick(done);
    }
    Ok(out)
}

/// What is done with a part: its rows, whether it computes again, and its place in the whole.
type OnPart<'a> = dyn FnMut(&[&Row], usize, Pass) -> candle_core::Result<()> + 'a;

/// Calls `f` for each part of a micro-batch, with how many blocks it computes again and its place in the whole.
fn each_part(activations: &Activations, rows: &[&Row], mut pass: Pass, f: &mut OnPart) -> candle_core::Result<()> {
    for (part, again) in activations.parts(rows) {
        f(part, again, pass)?;
        pass.first += part.iter().map(|r| r.ids.len()).sum::<usize>();
        pass.first_row += part.len();
    }
    Ok(())
}

/// What the step divides by; and for KTO how far the network has drifted on its mismatched answers.
fn preference_step(
    preference: &Preference,
    network: &Network,
    rows: &[&Row],
    activations: &Activations,
) -> anyhow::Result<Step> {
    let examples = rows.iter().filter(|r| r.begins()).count();
    let chosen = rows.iter().filter(|r| r.target.side() == Some(Side::Chosen));
    let chosen_tokens = chosen.map(|r| r.learned()).sum();
    let mut drift = 0.0;
    if preference.kind == Kind::Kto {
        let mut read: Vec<&Row> = rows.iter().filter(|r| r.is_only_read()).copied().collect();
        read.sort_by_key(|r| r.ids.len());
        let (mut sum, n) = (0.0, read.len().max(1) as f64);
        // As many rows at a time as a step learns from, or fewer.
        for batch in read.chunks(examples.clamp(1, 16)) {
            for part in activations.read_parts(batch) {
                for (row, log_p) in part.iter().zip(network.log_probs(part)?) {
                    if let Target::Answer { reference, .. } = row.target {
                        sum += log_p - reference;
                    }
                }
            }
        }
        drift = (sum / n).max(0.0);
    }
    Ok(Step { examples, chosen_tokens, drift })
}

/// The gradient of the vectors of one micro-batch.
fn vectors(
    contrast: &Contrast,
    network: &Network,
    rows: &[&Row],
    activations: &Activations,
    pass: Pass,
    anchors: usize,
    grads: &mut Grads,
) -> candle_core::Result<Contrasted> {
    let weight = 1.0 / anchors.max(1) as f64;
    let parts = activations.parts(rows);
    if let [(part, again)] = parts[..] {
        let mut found = Contrasted::default();
        network.learn_vectors(part, pass, again, grads, &mut |v| {
            let (sums, dv) = contrast.learn(v, part, weight)?;
            found = sums;
            Ok(dv)
        })?;
        return Ok(found);
    }
    let mut made = Vec::with_capacity(parts.len());
    each_part(activations, rows, pass, &mut |part, _, pass| {
        made.push(network.vectors(part, pass)?);
        Ok(())
    })?;
    let (sums, dv) = contrast.learn(&Tensor::cat(&made, 0)?, rows, weight)?;
    drop(made);
    let mut at = 0;
    each_part(activations, rows, pass, &mut |part, again, pass| {
        let own = dv.narrow(0, at, part.len())?;
        at += part.len();
        network.learn_vectors(part, pass, again, grads, &mut |_| Ok(own.clone()))
    })?;
    Ok(sums)
}

fn add(sums: &mut Contrasted, more: Contrasted) {
    sums.nll += more.nll;
    sums.count += more.count;
    sums.right += more.right;
    sums.own += more.own;
    sums.other += more.other;
}

fn of_targets(sum: &LossSum) -> Found {
    let n = sum.count.max(1) as f64;
    Found { loss: sum.nll / n, accuracy: sum.right as f64 / n, teaches: true, fields: Map::new() }
}

fn of_preference(preference: &Preference, tally: &Tally, step: &Step) -> Found {
    let mut fields = tally.fields();
    if preference.kind == Kind::Kto {
        fields.insert("kl".into(), step.drift.into());
    }
    let accuracy = tally.right as f64 / tally.examples.max(1) as f64;
    Found { loss: preference.loss(tally), accuracy, teaches: true, fields }
}

fn of_contrast(sums: &Contrasted) -> Found {
    let n = sums.count.max(1) as f64;
    Found {
        loss: sums.nll / n,
        accuracy: sums.right as f64 / n,
        teaches: sums.nll > 0.0,
        fields: contrast::fields(sums),
    }
}
