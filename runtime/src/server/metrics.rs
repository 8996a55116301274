//! What is counted while the server runs, in Prometheus' text format. Numbers are atomics of their own: a scrape never
//! waits for the engine.

use super::queue::Queue;
use super::routes::ROUTES;
use crate::session::Generation;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Upper bounds of the buckets, in seconds: from a token of a tiny model to a long prompt on a slow device.
const BOUNDS: [f64; 14] = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0];

/// How often something took how long.
#[derive(Default)]
pub(super) struct Histogram {
    /// One a bucket, and one for what is above all bounds.
    counts: [AtomicU64; BOUNDS.len() + 1],
    nanos: AtomicU64,
}

impl Histogram {
    pub fn observe(&self, took: Duration) {
        let bucket = BOUNDS.iter().position(|bound| took.as_secs_f64() <= *bound).unwrap_or(BOUNDS.len());
        self.counts[bucket].fetch_add(1, Relaxed);
        self.nanos.fetch_add(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX), Relaxed);
    }

    fn write(&self, out: &mut String, name: &str, help: &str) {
        head(out, name, "histogram", help);
        let bounds = BOUNDS.iter().map(f64::to_string).chain(["+Inf".into()]);
        buckets(out, name, &self.counts, bounds, self.nanos.load(Relaxed) as f64 * 1e-9);
    }
}

/// Upper bounds of the buckets of [`Sizes`].
const SIZES: [usize; 7] = [1, 2, 4, 8, 16, 32, 64];

/// How often something had which size.
#[derive(Default)]
pub(super) struct Sizes {
    counts: [AtomicU64; SIZES.len() + 1],
    sum: AtomicU64,
}

impl Sizes {
    pub fn observe(&self, size: usize) {
        let bucket = SIZES.iter().position(|bound| size <= *bound).unwrap_or(SIZES.len());
        self.counts[bucket].fetch_add(1, Relaxed);
        self.sum.fetch_add(size as u64, Relaxed);
    }

    fn write(&self, out: &mut String, name: &str, help: &str) {
        head(out, name, "histogram", help);
        let bounds = SIZES.iter().map(usize::to_string).chain(["+Inf".into()]);
        buckets(out, name, &self.counts, bounds, self.sum.load(Relaxed) as f64);
    }
}

/// Counts add up from bucket to bucket.
fn buckets(out: &mut String, name: &str, counts: &[AtomicU64], bounds: impl Iterator<Item = String>, total: f64) {
    let mut sum = 0;
    for (count, bound) in counts.iter().zip(bounds) {
        sum += count.load(Relaxed);
        let _ = writeln!(out, "{name}_bucket{{le=\"{bound}\"}} {sum}");
    }
    let _ = writeln!(out, "{name}_sum {total}\n{name}_count {sum}");
}

/// All that is counted.
#[derive(Default)]
pub(super) struct Metrics {
    /// From the request to its first token.
    pub first_token: Histogram,
    /// Between two tokens of one answer.
    pub inter_token: Histogram,
    /// From the request until the engine takes it up.
    pub queued: Histogram,
    prompt_tokens: AtomicU64,
    cached_tokens: AtomicU64,
    completion_tokens: AtomicU64,
    running: AtomicUsize,
    /// Sequences, or texts, that the engine computes in one step.
    pub batch: Sizes,
    slots: AtomicUsize,
    slots_busy: AtomicUsize,
    models: AtomicUsize,
    models_loaded: AtomicU64,
    models_unloaded: AtomicU64,
    /// By index of the route, its end for what is none, and status: as many entries as there are of these, whatever clients do.
    requests: Mutex<BTreeMap<(usize, u16), u64>>,
}

/// A request is being computed until this is dropped.
pub(super) struct Running<'a>(&'a AtomicUsize);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

impl Metrics {
    pub fn run(&self) -> Running<'_> {
        self.running.fetch_add(1, Relaxed);
        Running(&self.running)
    }

    /// How many models are loaded, and how much may go on at a time with all of them.
    pub fn set_models(&self, models: usize, slots: usize) {
        self.models.store(models, Relaxed);
        self.slots.store(slots, Relaxed);
    }

    pub fn model_loaded(&self) {
        self.models_loaded.fetch_add(1, Relaxed);
    }

    pub fn model_unloaded(&self) {
        self.models_unloaded.fetch_add(1, Relaxed);
    }

    /// How much goes on.
    pub fn busy(&self, n: usize) {
        self.slots_busy.store(n, Relaxed);
    }

    pub fn generated(&self, generation: &Generation) {
        let timings = &generation.timings;
        self.prompt_tokens.fetch_add(timings.prompt_tokens as u64, Relaxed);
        self.cached_tokens.fetch_add(timings.cached_tokens as u64, Relaxed);
        self.completion_tokens.fetch_add(generation.token_ids.len() as u64, Relaxed);
    }

    /// Tokens of a text that was classified or embedded.
    pub fn read(&self, tokens: usize) {
        self.prompt_tokens.fetch_add(tokens as u64, Relaxed);
    }

    pub fn answered(&self, route: Option<usize>, status: u16) {
        let mut all = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        *all.entry((route.unwrap_or(ROUTES.len()), status)).or_default() += 1;
    }

    /// The page that `/metrics` gives.
    pub fn text(&self, queue: &Queue, ready: bool) -> String {
        let mut out = String::new();
        head(&mut out, "edgeft_requests_total", "counter", "Requests by route and status.");
        for (&(route, status), n) in self.requests.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            let (method, path) = ROUTES.get(route).map_or(("", "none"), |r| (r.verb.as_str(), r.path));
            let labels = format!("method=\"{method}\",route=\"{path}\",status=\"{status}\"");
            let _ = writeln!(out, "edgeft_requests_total{{{labels}}} {n}");
        }
        self.queued.write(&mut out, "edgeft_queue_seconds", "From a request until the engine takes it up.");
        self.first_token.write(&mut out, "edgeft_first_token_seconds", "From a request to its first token.");
        self.inter_token.write(&mut out, "edgeft_inter_token_seconds", "Between two tokens of one answer.");
        self.batch.write(&mut out, "edgeft_batch_size", "Answers, or texts, that the engine computes in one step.");
        let mut one = |name: &str, kind: &str, help: &str, value: u64| {
            head(&mut out, name, kind, help);
            let _ = writeln!(out, "{name} {value}");
        };
        let counters = [
            ("edgeft_prompt_tokens_total", "Tokens of prompts and texts.", &self.prompt_tokens),
            ("edgeft_cached_prompt_tokens_total", "Of these, tokens that a cache still held.", &self.cached_tokens),
            ("edgeft_completion_tokens_total", "Tokens generated.", &self.completion_tokens),
            ("edgeft_model_loads_total", "Times that a model was loaded.", &self.models_loaded),
            ("edgeft_model_unloads_total", "Times that a model made room for another.", &self.models_unloaded),
        ];
        counters.into_iter().for_each(|(name, help, value)| one(name, "counter", help, value.load(Relaxed)));
        one("edgeft_requests_running", "gauge", "Requests being computed.", self.running.load(Relaxed) as u64);
        one("edgeft_requests_waiting", "gauge", "Requests that wait for the engine.", queue.waiting() as u64);
        let slots = [
            ("edgeft_slots", "Answers, or lists of texts, that may go on at a time.", &self.slots),
            ("edgeft_slots_busy", "Of these, how many do.", &self.slots_busy),
            ("edgeft_models_loaded", "Models that are loaded.", &self.models),
        ];
        slots.into_iter().for_each(|(name, help, n)| one(name, "gauge", help, n.load(Relaxed) as u64));
        one("edgeft_ready", "gauge", "1 once the model answers, 0 before and while draining.", u64::from(ready));
        if let Some(bytes) = resident_bytes() {
            one("process_resident_memory_bytes", "gauge", "Memory in use.", bytes);
        }
        out
    }
}

fn head(out: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

/// Memory of this process, where the system tells it in `/proc`.
fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_add_up_and_their_bounds_are_inclusive() {
        let histogram = Histogram::default();
        [1, 2, 40_000].iter().for_each(|ms| histogram.observe(Duration::from_millis(*ms)));
        let mut out = String::new();
        histogram.write(&mut out, "x", "X.");
        for line in ["x_bucket{le=\"0.001\"} 1", "x_bucket{le=\"0.002\"} 2", "x_bucket{le=\"30\"} 2"] {
            assert!(out.lines().any(|l| l == line), "{line}: {out}");
        }
        assert!(out.ends_with("x_bucket{le=\"+Inf\"} 3\nx_sum 40.003\nx_count 3\n"), "{out}");
    }
}
