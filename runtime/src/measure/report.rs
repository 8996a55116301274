//! A measurement as JSON (the contract's `bench`) and as a table for people.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::device::Device;
use super::stats::{mad, median, percentile};
use super::{Measurement, bandwidth, device};
use crate::engine::KvType;
use crate::model::Model;

/// Steps of which the hundredth slowest still says something: two of them lie beyond it.
pub const ENOUGH_FOR_P99: usize = 200;

/// What decoding cannot exceed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ceiling {
    /// Speed of a plain read, by as many threads, of as many bytes as a forward reads (bounded by the memory there is);
    /// `None` where another device's memory is read.
    pub gb_per_s: Option<f64>,
    /// That speed over the bytes of a forward, times the sequences that share it; `None` for a model that does not decode.
    pub decode_tokens_per_s: Option<f64>,
    /// What was measured, as a part of it.
    pub share: Option<f64>,
}

impl Ceiling {
    /// Of a device whose memory this process cannot read.
    pub const UNKNOWN: Self = Self { gb_per_s: None, decode_tokens_per_s: None, share: None };

    /// Reads memory for about half a second. Take [`device::peak_mib`] before: the buffer counts too.
    pub fn measure(model: &Model, measurement: &Measurement, threads: usize, kv: KvType) -> Self {
        let case = &measurement.case;
        let depth = case.prompt + case.generate / 2;
        let weights = bandwidth::weight_bytes(model);
        let bytes = weights + case.batch as u64 * bandwidth::kv_bytes(model, depth, kv);
        let gb_per_s = bandwidth::read_gb_per_s(buffer(bytes), threads);
        let ceiling = measurement.generates.then(|| gb_per_s * 1e9 / bytes as f64 * case.batch as f64);
        let decode = median(&measurement.decode_rates());
        let share = decode.zip(ceiling).map(|(have, most)| have / most);
        Self { gb_per_s: Some(gb_per_s), decode_tokens_per_s: ceiling, share }
    }
}

/// Bytes to read when a forward reads `bytes`: past eight times the caches more tells nothing, and a quarter of the free
/// memory is enough.
pub fn buffer(bytes: u64) -> usize {
    let cache = device::last_cache_bytes().unwrap_or(32 << 20);
    let most = device::available_bytes().map_or(u64::MAX, |b| b / 4);
    bytes.min(8 * cache).min(most) as usize
}

/// Everything that a bench says.
#[derive(Debug, Clone, PartialEq)]
pub struct Report {
    /// `cpu`, `gpu` or `ort`.
    pub engine: &'static str,
    /// The model as it was named.
    pub model: String,
    /// Threads that computed.
    pub threads: usize,
    /// Type of the cache.
    pub kv: KvType,
    /// From opening the model to an engine that takes tokens, in ms; the first thing this process did. Weights that are
    /// mapped are read by the first forward: see [`Report::cold_start_ms`].
    pub load_ms: f64,
    /// Peak resident set, in MiB, after the last run.
    pub peak_mib: Option<f64>,
    /// The clocks.
    pub measurement: Measurement,
    /// What decoding cannot exceed here.
    pub ceiling: Ceiling,
    /// Where.
    pub device: Device,
}

impl Report {
    /// From opening the model to the first token (or result) of a process that began with nothing, in ms.
    pub fn cold_start_ms(&self) -> f64 {
        self.load_ms + self.measurement.cold_first_ms
    }

    /// The contract's fields; what does not apply is null. `runs` keeps every raw sample.
    pub fn json(&self) -> Value {
        let m = &self.measurement;
        let itl = m.itl_ms();
        let first = m.first_ms();
        let only = |applies: bool, value: Value| if applies { value } else { Value::Null };
        json!({
            "engine": self.engine,
            "model": self.model,
            "threads": self.threads,
            "prompt": m.case.prompt,
            "generate": only(m.generates, json!(m.case.generate)),
            "batch": m.case.batch,
            "prompt_tokens_per_s": rounded(median(&m.prompt_rates())),
            "decode_tokens_per_s": rounded(median(&m.decode_rates())),
            "ttft_ms": only(m.generates, rounded(median(&first))),
            "itl_ms": only(m.generates, percentiles(&itl)),
            "latency_ms": only(!m.generates, percentiles(&first)),
            "load_ms": rounded(Some(self.load_ms)),
            "cold_start_ms": rounded(Some(self.cold_start_ms())),
            "peak_mib": self.peak_mib,
            "ceiling": {
                "gb_per_s": rounded(self.ceiling.gb_per_s),
                "decode_tokens_per_s": rounded(self.ceiling.decode_tokens_per_s),
                "share": rounded(self.ceiling.share),
            },
            "engine_only": {
                "prompt_tokens_per_s": rounded(median(&m.engine_prompt_rates())),
                "decode_tokens_per_s": rounded(median(&m.engine_decode_rates())),
            },
            "energy": m.energy.map(|e| json!({
                "source": "rapl",
                "joules": rounded(Some(e.joules)),
                "joules_per_token": rounded(m.joules_per_token()),
                "watts": rounded(Some(e.joules / e.seconds)),
            })),
            "kv": kv_name(self.kv),
            "version": env!("CARGO_PKG_VERSION"),
            "includes": {"tokenization": m.tokenized, "sampling": m.generates},
            "device": {
                "cpu": self.device.cpu,
                "cores": self.device.cores,
                "isa": self.device.isa,
                "memory_mib": self.device.memory_mib,
                "runs_on": self.device.runs_on,
            },
            "runs": self.runs(),
        })
    }

    fn runs(&self) -> Vec<Value> {
        let m = &self.measurement;
        let rates =
            m.prompt_rates().into_iter().zip(m.decode_rates().into_iter().map(Some).chain(std::iter::repeat(None)));
        let name = if m.generates { "ttft_ms" } else { "latency_ms" };
        m.runs
            .iter()
            .zip(rates)
            .map(|(run, (prompt, decode))| {
                let itl: Vec<Value> = run.itl_ms.iter().map(|t| rounded(Some(*t))).collect();
                json!({
                    "prompt_tokens_per_s": rounded(Some(prompt)),
                    "decode_tokens_per_s": rounded(decode),
                    name: rounded(Some(run.first_ms)),
                    "itl_ms": itl,
                })
            })
            .collect()
    }

    /// Rows of a table: what, median ± deviation with its unit, a remark.
    pub fn rows(&self) -> Vec<[String; 3]> {
        let m = &self.measurement;
        let mut rows = Vec::new();
        let mut row = |what: &str, value: String, note: String| rows.push([what.to_owned(), value, note]);
        let from = if m.tokenized { "with tokenization" } else { "from ids: the model has no tokenizer" };
        let texts = if m.case.batch == 1 { "a text".to_owned() } else { format!("{} texts at once", m.case.batch) };
        row("prompt", spread(&m.prompt_rates(), "tokens/s"), format!("{} tokens, {from}", m.case.prompt));
        if m.generates {
            row("first token", spread(&m.first_ms(), "ms"), "median ± median absolute deviation of the runs".into());
            if !m.decode_rates().is_empty() {
                let share = self.ceiling.share.zip(self.ceiling.decode_tokens_per_s);
                let share = share.map(|(share, most)| format!("{:.0} % of the ceiling of {most:.0}", 100.0 * share));
                row("decode", spread(&m.decode_rates(), "tokens/s"), share.unwrap_or_default());
            }
            let itl = m.itl_ms();
            let at = |share: f64| percentile(&itl, share).map_or("-".to_owned(), |v| format!("{v:.2}"));
            let p99 = match itl.len() {
                n if n < ENOUGH_FOR_P99 => format!("p99 takes {ENOUGH_FOR_P99} steps, here are {n}"),
                _ => format!("p99 {}", at(0.99)),
            };
            row("next token", format!("{} ms", at(0.5)), format!("p90 {}; {p99}", at(0.9)));
        } else {
            let at = |share: f64| percentile(&m.first_ms(), share).map_or("-".to_owned(), |v| format!("{v:.2}"));
            row("latency", spread(&m.first_ms(), "ms"), format!("{texts}; p90 {}", at(0.9)));
        }
        row(
            "load",
            format!("{:.1} ms", self.load_ms),
            format!("first result of a new process after {:.1} ms", self.cold_start_ms()),
        );
        if let Some(peak) = self.peak_mib {
            row("peak memory", format!("{peak:.1} MiB"), "resident set of the process".into());
        }
        if let Some(speed) = self.ceiling.gb_per_s {
            row("plain read", format!("{speed:.1} GB/s"), "of as many bytes as a forward reads: the ceiling".into());
        }
        if let Some((joules, energy)) = m.joules_per_token().zip(m.energy) {
            let watts = energy.joules / energy.seconds;
            row("energy", format!("{:.2} mJ/token", 1e3 * joules), format!("{watts:.1} W of the whole CPU package"));
        }
        rows
    }
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let case = &self.measurement.case;
        let mut what = format!("prompt {}", case.prompt);
        if self.measurement.generates {
            write!(what, ", generate {}", case.generate)?;
        }
        let threads = if self.threads == 1 { "1 thread".to_owned() } else { format!("{} threads", self.threads) };
        writeln!(
            f,
            "{}: {what}, batch {}, {threads}, {} runs after {}",
            self.model, case.batch, case.runs, case.warmups
        )?;
        writeln!(f, "{}\n", self.device)?;
        for [what, value, note] in self.rows() {
            writeln!(f, "{}", format!("  {what:<12} {value:<24} {note}").trim_end())?;
        }
        Ok(())
    }
}

/// p99 is null of fewer samples than [`ENOUGH_FOR_P99`]: it would be the slowest one by another name.
pub fn percentiles(samples: &[f64]) -> Value {
    let enough = samples.len() >= ENOUGH_FOR_P99;
    json!({
        "p50": rounded(percentile(samples, 0.5)),
        "p90": rounded(percentile(samples, 0.9)),
        "p99": rounded(percentile(samples, 0.99).filter(|_| enough)),
    })
}

fn kv_name(kv: KvType) -> &'static str {
    match kv {
        KvType::F32 => "f32",
        KvType::F16 => "f16",
    }
}

fn spread(samples: &[f64], unit: &str) -> String {
    match (median(samples), mad(samples)) {
        (Some(median), Some(mad)) => {
            let places = if median < 10.0 {
                2
            } else if median < 1000.0 {
                1
            } else {
                0
            };
            format!("{median:.places$} {unit} ± {mad:.places$}")
        }
        _ => "-".to_owned(),
    }
}

/// Five significant digits: more would be noise. Null when there is no finite number.
fn rounded(value: Option<f64>) -> Value {
    match value {
        Some(v) if v.is_finite() && v != 0.0 => {
            let scale = 10f64.powi(4 - v.abs().log10().floor() as i32);
            json!((v * scale).round() / scale)
        }
        Some(0.0) => json!(0.0),
        _ => Value::Null,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measure::energy::Energy;
    use crate::measure::{Case, EngineRun, Run};

    fn report(generates: bool) -> Report {
        let run = |first_ms: f64, step: f64| Run {
            first_ms,
            itl_ms: if generates { vec![step; 2] } else { vec![] },
            engine: EngineRun { prompt_ms: first_ms / 2.0, decode_ms: if generates { step } else { 0.0 } },
        };
        let case = Case { prompt: 100, generate: 3, batch: 2, runs: 2, warmups: 1 };
        let runs = vec![run(100.0, 10.0), run(50.0, 20.0)];
        Report {
            engine: "cpu",
            model: "m.gguf".into(),
            threads: 2,
            kv: KvType::F16,
            load_ms: 5.0,
            peak_mib: Some(12.5),
            measurement: Measurement { case, generates, tokenized: true, cold_first_ms: 120.0, runs, energy: None },
            ceiling: Ceiling {
                gb_per_s: Some(10.0),
                decode_tokens_per_s: generates.then_some(300.0),
                share: generates.then_some(0.5),
            },
            device: Device { cpu: "a CPU".into(), cores: 2, isa: "scalar", memory_mib: None, runs_on: None },
        }
    }

    #[test]
    fn rates_count_the_tokens_of_all_sequences() {
        let json = report(true).json();
        // 200 prompt tokens in 100 and 50 ms; 4 tokens after the first ones in 20 and 40 ms
        assert_eq!(json["prompt_tokens_per_s"], 3000.0);
        assert_eq!(json["decode_tokens_per_s"], 150.0);
        assert_eq!(json["ttft_ms"], 75.0);
        assert_eq!(json["itl_ms"]["p50"], 15.0);
        assert_eq!(json["engine_only"]["prompt_tokens_per_s"], 6000.0);
        assert_eq!(json["engine_only"]["decode_tokens_per_s"], 300.0);
        assert_eq!(json["cold_start_ms"], 125.0);
        assert_eq!(json["runs"][1]["itl_ms"], json!([20.0, 20.0]));
    }

    #[test]
    fn what_does_not_apply_is_null() {
        let json = report(false).json();
        for field in ["generate", "decode_tokens_per_s", "ttft_ms", "itl_ms"] {
            assert!(json[field].is_null(), "{field}");
        }
        assert!(json["ceiling"]["share"].is_null() && json["runs"][0]["decode_tokens_per_s"].is_null());
        assert_eq!(json["latency_ms"]["p50"], 75.0);
        assert!(report(true).json()["latency_ms"].is_null());
    }

    #[test]
    fn p99_is_null_until_two_steps_in_two_hundred_lie_beyond_it() {
        let mut report = report(true);
        assert!(report.json()["itl_ms"]["p99"].is_null() && report.json()["itl_ms"]["p90"].is_number());
        report.measurement.runs[0].itl_ms = vec![1.0; 198];
        assert_eq!(report.measurement.itl_ms().len(), 200);
        assert!(report.json()["itl_ms"]["p99"].is_number());
    }

    #[test]
    fn energy_is_shared_by_every_token_read_or_generated() {
        let mut report = report(true);
        assert!(report.json()["energy"].is_null());
        // 2 runs of 2 sequences of 100 + 3 tokens
        report.measurement.energy = Some(Energy { joules: 4.12, seconds: 2.0 });
        let json = report.json();
        assert_eq!((&json["energy"]["joules_per_token"], &json["energy"]["watts"]), (&json!(0.01), &json!(2.06)));
        assert!(report.to_string().contains("10.00 mJ/token"), "{report}");
    }

    #[test]
    fn another_device_is_named_and_has_no_ceiling() {
        let mut report = report(true);
        report.ceiling = Ceiling::UNKNOWN;
        report.device.runs_on = Some("a GPU".into());
        let (json, text) = (report.json(), report.to_string());
        assert!(json["ceiling"]["gb_per_s"].is_null() && json["device"]["runs_on"] == "a GPU", "{json}");
        assert!(text.contains("runs on a GPU") && text.contains("decode") && !text.contains("plain read"), "{text}");
    }

    #[test]
    fn every_row_of_the_table_has_a_unit() {
        for generates in [true, false] {
            for [what, value, _] in report(generates).rows() {
                assert!(
                    [" ms", " tokens/s", " MiB", " GB/s", " mJ/token"].iter().any(|u| value.contains(u)),
                    "{what}: {value}"
                );
            }
        }
    }

    #[test]
    fn numbers_keep_five_digits() {
        assert_eq!(rounded(Some(123_456.7)), json!(123_460.0));
        assert_eq!(rounded(Some(0.001_234_567)), json!(0.001_234_6));
        assert_eq!(rounded(Some(f64::NAN)), Value::Null);
        assert_eq!(rounded(None), Value::Null);
    }
}
