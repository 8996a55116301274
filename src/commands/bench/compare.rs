//! Two benches of one case -> is the later one slower? By 5 % or more, and beyond what chance gives one time in a hundred.

use super::BenchArgs;
use super::rank_test::{least_p, p_greater};
use crate::commands::show;
use crate::error::BadInput;
use edgeft_runtime::measure::report::Report;
use edgeft_runtime::measure::stats::median;
use serde::Serialize;
use serde_json::Value;
use std::path::{Path, PathBuf};

/// A change smaller than this is not called slower.
const LEAST_CHANGE: f64 = 0.05;
/// One-sided level of the test.
const LEVEL: f64 = 0.01;

/// What is compared, field and name; more of it is better.
const METRICS: [(&str, &str); 2] = [("prompt_tokens_per_s", "prompt"), ("decode_tokens_per_s", "decode")];

/// An earlier bench.
pub struct Earlier {
    file: PathBuf,
    json: Value,
}

/// One metric, before and now.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Change {
    /// Field of the contract.
    pub metric: &'static str,
    /// Median before.
    pub before: f64,
    /// Median now.
    pub now: f64,
    /// now / before - 1: negative is slower.
    pub change: f64,
    /// Chance of runs that look as much slower, or more, if nothing had changed.
    pub p: f64,
    /// Both bounds are passed.
    pub slower: bool,
}

/// All metrics, before and now.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Comparison {
    /// The earlier line.
    pub file: PathBuf,
    /// No metric is slower.
    pub pass: bool,
    /// What differs in the setting, though the case is the same.
    pub notes: Vec<String>,
    /// By metric.
    pub metrics: Vec<Change>,
}

impl Earlier {
    /// The last line of a file, as `--json` printed it.
    ///
    /// # Errors
    /// A file that cannot be read, or whose last line is no bench.
    pub fn read(file: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(file)
            .map_err(|e| BadInput(format!("--compare: cannot read {}: {e}", file.display())))?;
        let lines = text.lines().enumerate().filter(|(_, l)| !l.trim().is_empty());
        let Some((at, line)) = lines.last() else {
            crate::bad_input!(
                "--compare: {} is empty; make it with `edgeft bench MODEL --json > {}`",
                file.display(),
                file.display()
            );
        };
        let json: Value = serde_json::from_str(line)
            .map_err(|e| BadInput(format!("--compare: {} line {}: not a JSON object: {e}", file.display(), at + 1)))?;
        let earlier = Self { file: file.to_owned(), json };
        if earlier.samples("prompt_tokens_per_s").is_empty() {
            crate::bad_input!(
                "--compare: {} line {}: no field `runs` with `prompt_tokens_per_s`; it must be a line of `edgeft bench --json`",
                file.display(),
                at + 1
            );
        }
        Ok(earlier)
    }

    /// # Errors
    /// Another case, or so few runs that no difference could be shown.
    pub fn must_be_comparable(&self, args: &BenchArgs, threads: usize) -> anyhow::Result<()> {
        for (name, now) in [("batch", args.batch), ("threads", threads), ("generate", args.generate)] {
            self.must_be_same(name, now)?;
        }
        if let Some(prompt) = args.prompt {
            self.must_be_same("prompt", prompt)?;
        }
        let (before, now) = (self.json["adapter"].as_str(), args.adapter.as_deref());
        if before != now {
            let told = |adapter: Option<&str>| adapter.map_or("no adapter".to_owned(), |a| format!("--adapter {a}"));
            crate::bad_input!(
                "--compare: {} was measured with {}, this run has {}; measure the same case",
                self.file.display(),
                told(before),
                told(now)
            );
        }
        let before = self.samples("prompt_tokens_per_s").len();
        let least = least_p(before, args.runs);
        if least >= LEVEL {
            crate::bad_input!(
                "--compare: {before} runs in {} and --runs {} cannot show a difference at the level of {LEVEL} (the least p is {least:.3}); \
                5 runs on both sides are enough",
                self.file.display(),
                args.runs
            );
        }
        Ok(())
    }

    fn must_be_same(&self, name: &str, now: usize) -> anyhow::Result<()> {
        match self.json[name].as_u64() {
            Some(before) if before != now as u64 => {
                crate::bad_input!(
                    "--compare: {} was measured with --{name} {before}, this run has {now}; measure the same case",
                    self.file.display()
                )
            }
            _ => Ok(()), // null where it does not apply
        }
    }

    /// # Errors
    /// Another length of the prompt, or not the same metrics on both sides.
    pub fn compare(&self, report: &Report) -> anyhow::Result<Comparison> {
        self.must_be_same("prompt", report.measurement.case.prompt)?; // where it was the model's own
        let now = [report.measurement.prompt_rates(), report.measurement.decode_rates()];
        let mut metrics = Vec::new();
        for ((metric, _), now) in METRICS.into_iter().zip(now) {
            let before = self.samples(metric);
            if before.is_empty() != now.is_empty() {
                crate::bad_input!(
                    "--compare: {}: only one of the two models decodes, so {metric} cannot be compared",
                    self.file.display()
                );
            }
            metrics.extend(change(metric, &before, &now));
        }
        let json = report.json();
        let notes = ["model", "device", "engine"]
            .into_iter()
            .filter(|field| self.json[*field] != json[*field])
            .map(|field| format!("the {field} was {}, now it is {}", plain(&self.json[field]), plain(&json[field])))
            .collect();
        Ok(Comparison { file: self.file.clone(), pass: !metrics.iter().any(|m| m.slower), notes, metrics })
    }

    /// One number a run; empty where the field does not apply.
    fn samples(&self, metric: &str) -> Vec<f64> {
        self.json["runs"].as_array().into_iter().flatten().filter_map(|run| run[metric].as_f64()).collect()
    }
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// Rates of two sides; `None` when there are none.
fn change(metric: &'static str, before: &[f64], now: &[f64]) -> Option<Change> {
    let (a, b) = (median(before)?, median(now)?);
    let (change, p) = (b / a - 1.0, p_greater(before, now));
    Some(Change { metric, before: a, now: b, change, p, slower: change <= -LEAST_CHANGE && p < LEVEL })
}

impl Comparison {
    /// What was slower, in a line.
    pub fn verdict(&self) -> String {
        let slower = self.metrics.iter().filter(|m| m.slower);
        let all: Vec<String> =
            slower.map(|m| format!("{} fell by {:.1} % (p = {:.4})", m.metric, -100.0 * m.change, m.p)).collect();
        format!("slower than {}: {}", self.file.display(), all.join(", "))
    }
}

impl std::fmt::Display for Comparison {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "Against {}:", self.file.display())?;
        for note in &self.notes {
            writeln!(f, "  note: {note}")?;
        }
        let mut rows = vec![["tokens/s", "before", "now", "change", "p (slower)", ""].map(str::to_owned).to_vec()];
        for m in &self.metrics {
            let name = METRICS.iter().find(|(field, _)| *field == m.metric).map_or(m.metric, |(_, name)| name);
            rows.push(vec![
                name.into(),
                format!("{:.1}", m.before),
                format!("{:.1}", m.now),
                format!("{:+.1} %", 100.0 * m.change),
                format!("{:.4}", m.p),
                if m.slower { "SLOWER" } else { "ok" }.into(),
            ]);
        }
        f.write_str(show::table_with(&rows, &[0, 5]).trim_end_matches('\n'))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slower_needs_both_the_size_and_the_certainty() {
        let before = [100.0, 101.0, 102.0, 103.0, 104.0];
        let by = |f: f64| change("decode_tokens_per_s", &before, &before.map(|x| x * f)).unwrap();
        assert!(by(0.90).slower);
        // certain but small: 1/252 by chance, 4 %
        let small = by(0.96);
        assert!(!small.slower && small.p < LEVEL, "{small:?}");
        // large but uncertain
        let noisy = change("decode_tokens_per_s", &before, &[50.0, 60.0, 70.0, 105.0, 110.0]).unwrap();
        assert!(!noisy.slower && noisy.change < -LEAST_CHANGE && noisy.p > LEVEL, "{noisy:?}");
        assert!(!by(1.5).slower);
        assert_eq!(change("decode_tokens_per_s", &[], &[]), None);
    }

    #[test]
    fn a_file_that_is_no_bench_is_refused_with_its_line() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("before.json");
        for (text, because) in [
            ("", "is empty"),
            ("{}\nnot json\n", "line 2: not a JSON object"),
            ("{\"runs\":5}\n", "line 1: no field `runs`"),
        ] {
            std::fs::write(&file, text).unwrap();
            let error = Earlier::read(&file).err().unwrap().to_string();
            assert!(error.contains(because), "{error}");
        }
    }
}
