//! `tune --dry-run`: the plan, before a weight is read: what is trained, what it takes in memory and time, and why.

use super::{Read, show};
use crate::cli::Global;
use crate::data::batch::{Course, Row, lengths, units as units_of};
use crate::model::config::Config;
use crate::tune::config::{PreferenceKind, Settings, TuneConfig};
use crate::tune::memory::{Plan, Weights, mib};
use crate::tune::reasons::reasons;
use crate::tune::speed::{Speed, Work};
use serde_json::{Value, json};

/// What is known before the run.
pub struct DryRun<'a> {
    pub given: &'a Settings,
    pub config: &'a TuneConfig,
    pub model: &'a Config,
    pub read: &'a Read,
    pub weights: Weights,
    pub plan: &'a Plan,
}

impl DryRun<'_> {
    /// Measures the machine for a moment, and prints the plan.
    pub fn print(&self, global: &Global) -> anyhow::Result<()> {
        let (c, read, w) = (self.config, self.read, self.weights);
        let units = units_of(&read.train);
        let held_out = units_of(&read.val).len();
        let lengths = lengths(&read.train, &units);
        let longest = read.train.iter().map(|r| r.ids.len()).max().unwrap_or(0);
        let tokens = lengths.iter().sum::<usize>();
        let course = Course::new(lengths, c.size(), c.accumulate, c.seed);
        let per_epoch = course.per_epoch();
        let steps = c.steps.unwrap_or_else(|| course.steps_in(c.epochs.unwrap_or(1.0)));
        let epochs = steps as f64 / per_epoch as f64;
        let evaluations = match c.eval_every {
            _ if read.val.is_empty() => 0,
            Some(n) => steps / n + usize::from(!steps.is_multiple_of(n)),
            None => epochs.ceil() as usize,
        };
        // Time.
        let speed = Speed::measure(self.model.hidden_size, self.model.intermediate_size)?;
        let activations = &self.plan.activations;
        let (only_read, learned): (Vec<Row>, Vec<Row>) = read.train.iter().cloned().partition(Row::is_only_read);
        let learning = Work::learning(activations, &w, c, &learned, self.plan.again).times(epochs)
            + Work::reading(activations, &w, &only_read).times(epochs)
            + Work::steps(&w, steps as f64);
        // The reference: every answer once, before the first step.
        let before = if c.objective().has_reference() { 1.0 } else { 0.0 };
        let reference = Work::reading(activations, &w, &read.train) + Work::reading(activations, &w, &read.val);
        let reading = Work::reading(activations, &w, &read.val).times(evaluations as f64);
        let seconds = speed.seconds(learning + reading + reference.times(before));
        let tokens_per_s = tokens as f64 * epochs / speed.seconds(learning).max(1e-9);
        let within = c.budget.filter(|b| *b < seconds);
        let share = w.trained as f64 / (w.read + if c.adapts() { w.trained } else { 0 }).max(1) as f64;
        let reasons = reasons(self.given, c, self.model);

        let memory: serde_json::Map<String, Value> = self
            .plan
            .terms
            .lines()
            .into_iter()
            .map(|(name, bytes, _)| (format!("{}_bytes", name.replace(' ', "_")), json!(bytes)))
            .collect();
        let line = json!({"data": read.schema, "rows": units.len(), "held_out": held_out, "tokens": tokens,
            "longest": longest, "trainable_params": w.trained, "params": w.read, "share": share,
            "steps": steps, "steps_per_epoch": per_epoch, "evaluations": evaluations,
            "memory": memory, "planned_mib": self.plan.terms.peak() as f64 / 1048576.0,
            "recompute": self.plan.again > 0, "blocks_again": self.plan.again, "parts": self.plan.parts,
            "expected": {"seconds": seconds, "tokens_per_s": tokens_per_s, "gflops": speed.flops / 1e9,
                "fits_budget": c.budget.map(|b| b >= seconds)},
            "settings": c.to_settings(),
            "reasons": reasons.iter().map(|r| json!({"name": r.name, "value": r.value, "why": r.why})).collect::<Vec<_>>()});
        show::report(global, &line, || {
            println!("data      {}", read.schema);
            println!("rows      {} to learn, {held_out} held out; {tokens} tokens, longest {longest}", units.len());
            if units.len() < read.train.len() {
                println!("          {} sequences: {}", read.train.len(), what_belongs(c));
            }
            println!("trained   {} weights, {:.2} % of {}", w.trained, 100.0 * share, w.read);
            println!("steps     {steps}: {per_epoch} an epoch, {evaluations} evaluations");
            println!(
                "time      about {} on this machine ({tokens_per_s:.0} tokens/s; its GEMM just did {:.0} GFLOP/s)",
                time(seconds),
                speed.flops / 1e9
            );
            if let Some(budget) = within {
                println!(
                    "          more than --budget {}: about {:.0} steps fit",
                    time(budget),
                    steps as f64 * budget / seconds
                );
            }
            let bound = c.mem.map_or("no --mem".to_owned(), |m| format!("--mem {}", mib(m)));
            println!("memory    {} at the worst moment ({bound})", mib(self.plan.terms.peak()));
            let rows: Vec<Vec<String>> = self
                .plan
                .terms
                .lines()
                .into_iter()
                .map(|(name, bytes, what)| vec![name.into(), mib(bytes), what.into()])
                .collect();
            indented(&show::table_with(&rows, &[0, 2]));
            if self.plan.parts > 1 {
                println!("          micro-batches in up to {} parts", self.plan.parts);
            }
            if self.plan.again > 0 {
                let of = activations.layers();
                println!("          {} of {of} blocks computed again in the backward, not kept", self.plan.again);
            }
            println!("settings");
            let rows: Vec<Vec<String>> =
                reasons.iter().map(|r| vec![r.name.into(), r.value.clone(), r.why.into()]).collect();
            indented(&show::table_with(&rows, &[0, 1, 2]));
            println!("\nNothing was written. The same command without --dry-run begins.");
        });
        Ok(())
    }
}

/// Which sequences an example has.
fn what_belongs(c: &TuneConfig) -> &'static str {
    match c.preference.map(|p| p.kind) {
        Some(PreferenceKind::Kto) => "each answer, and behind it one that answers another prompt",
        Some(PreferenceKind::Dpo) => "a chosen and a rejected answer each; read once before the first step",
        Some(PreferenceKind::Orpo) => "a chosen and a rejected answer each",
        None => "an anchor each, and the texts that belong to it or do not",
    }
}

fn indented(table: &str) {
    table.lines().for_each(|line| println!("        {line}"));
}

fn time(seconds: f64) -> String {
    match seconds {
        s if s < 90.0 => format!("{s:.0} s"),
        s if s < 5400.0 => format!("{:.0} min", s / 60.0),
        s => format!("{:.1} h", s / 3600.0),
    }
}
