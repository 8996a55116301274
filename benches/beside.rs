//! What benches beside a peer share: whole processes, and what their last lines say.

use anyhow::{Context, bail};
use edgeft_runtime::measure::stats::median;
use serde_json::Value;
use std::process::{Command, Output};

/// A peer's command, as `--peer` has it.
pub fn peer(words: &str) -> anyhow::Result<Command> {
    let mut words = words.split_whitespace();
    let mut command = Command::new(words.next().context("--peer is empty")?);
    command.args(words);
    Ok(command)
}

/// The object that a process printed last.
pub fn last_line(ran: &Output, who: &str) -> anyhow::Result<Value> {
    if !ran.status.success() {
        bail!("{who} ended with {}: {}", ran.status, String::from_utf8_lossy(&ran.stderr));
    }
    let text = String::from_utf8_lossy(&ran.stdout);
    let last = text.lines().last().with_context(|| format!("{who} printed nothing"))?;
    serde_json::from_str(last).with_context(|| format!("{who}: its last line is no JSON: {last}"))
}

/// A number of it.
pub fn number(line: &Value, key: &str) -> anyhow::Result<f64> {
    line[key].as_f64().with_context(|| format!("no {key} in {line}"))
}

/// The median of one of the numbers of each run.
pub fn middle<T>(runs: &[T], of: fn(&T) -> f64) -> Option<f64> {
    median(&runs.iter().map(of).collect::<Vec<_>>())
}
