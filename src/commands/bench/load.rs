//! `edgeft bench --server`: clients that ask a server at once, or at a rate, and how long they wait for each token. Two
//! servers take turns, so that what the machine does meanwhile meets both.

use super::BenchArgs;
use super::client::{Completed, Place};
use crate::cli::Global;
use crate::commands::show;
use crate::rng;
use edgeft_runtime::measure::report::percentiles;
use serde_json::{Value, json};
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Turns that each of two servers gets at a load.
const TURNS: u32 = 2;
/// Most requests under way when they come at a rate; what comes beyond is counted as failed.
const MOST_UNDER_WAY: usize = 512;
/// How long a client rests that was refused.
const AFTER_FAILURE: Duration = Duration::from_millis(100);
/// Words of prompts: common ones, a token each in most vocabularies.
const WORDS: [&str; 16] = [
    "the", "sea", "is", "wide", "and", "old", "men", "look", "at", "it", "from", "a", "hill", "near", "their", "house",
];

/// A load.
#[derive(Debug, Clone, Copy)]
enum Load {
    /// So many clients, each of which asks again once it is answered.
    Clients(usize),
    /// So many requests a second, whether or not earlier ones are answered.
    Rate(f64),
}

/// A server, and what it is asked.
struct Target {
    url: String,
    place: Place,
    model: String,
    /// Words of a prompt of about the tokens that are asked for.
    words: usize,
    generate: usize,
}

/// What clients saw.
#[derive(Default)]
struct Seen {
    requests: usize,
    failed: usize,
    /// Of the last that failed.
    why: Option<String>,
    first_ms: Vec<f64>,
    next_ms: Vec<f64>,
    /// Tokens that came while time ran, and that time.
    tokens: f64,
    seconds: f64,
}

/// Runs the verb.
pub fn run(args: &BenchArgs, global: &Global) -> anyhow::Result<ExitCode> {
    if args.server.len() > 2 {
        crate::bad_input!("--server is given {} times; two can be compared", args.server.len());
    }
    let loads: Vec<Load> = match args.rate {
        Some(rate) if !(rate > 0.0 && rate.is_finite()) => crate::bad_input!("--rate {rate}: give requests a second"),
        Some(rate) => vec![Load::Rate(rate)],
        None => args.concurrency.iter().map(|n| Load::Clients(*n)).collect(),
    };
    if let Some(n) = args.concurrency.iter().find(|n| !(1..=MOST_UNDER_WAY).contains(*n)) {
        crate::bad_input!("--concurrency {n}: give 1 to {MOST_UNDER_WAY}");
    }
    let places = args.server.iter().map(|url| Place::parse(url)).collect::<anyhow::Result<Vec<_>>>()?;
    let targets = places.into_iter().zip(&args.server).map(|(place, url)| Target::new(place, url, args));
    let targets = targets.collect::<anyhow::Result<Vec<Target>>>()?;

    let turns = if targets.len() > 1 { TURNS } else { 1 };
    let turn = Duration::from_secs_f64(args.seconds) / turns;
    let bar = show::bar((loads.len() * targets.len()) as u64 * u64::from(turns), "measuring");
    let mut rows = Vec::new();
    let mut ratios = Vec::new();
    for load in loads {
        let mut seen: Vec<Seen> = targets.iter().map(|_| Seen::default()).collect();
        for _ in 0..turns {
            for (target, seen) in targets.iter().zip(&mut seen) {
                seen.add(measure(target, load, turn));
                bar.inc(1);
            }
        }
        let these: Vec<Value> = targets.iter().zip(&seen).map(|(target, seen)| seen.row(target, load)).collect();
        if let [a, b] = &these[..] {
            ratios.push(ratio(a, b, load));
        }
        rows.extend(these);
    }
    bar.finish_and_clear();
    if let Some(row) = rows.iter().find(|row| row["ttft_ms"]["p50"].is_null()) {
        let why = row["why"].as_str().unwrap_or("no answer had a token");
        anyhow::bail!("{}: no token of {} requests: {why}", row["server"].as_str().unwrap_or(""), row["requests"]);
    }
    let mut whole = json!({"rows": rows});
    if !ratios.is_empty() {
        whole["ratios"] = ratios.into();
    }
    show::report(global, &whole, || print(&whole));
    Ok(ExitCode::SUCCESS)
}

impl Target {
    /// Asks for the model's name and how many words make a prompt of so many tokens.
    fn new(place: Place, url: &str, args: &BenchArgs) -> anyhow::Result<Self> {
        let at = |e: anyhow::Error| e.context(url.to_owned());
        let model = args.served.clone().map_or_else(|| place.model(), Ok).map_err(at)?;
        let wanted = args.prompt.unwrap_or(128).max(1);
        let mut target = Self { url: url.to_owned(), place, model, words: wanted, generate: args.generate.max(1) };
        let done = target.place.complete(&target.body(1)).map_err(at)?;
        if let Some(tokens) = done.prompt_tokens.filter(|n| *n > 0) {
            target.words = (wanted * target.words).div_ceil(tokens).max(1);
        }
        Ok(target)
    }

    /// A request like no other, so that no cache has its answer.
    fn body(&self, max_tokens: usize) -> Value {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let n = COUNT.fetch_add(1, Ordering::Relaxed);
        let seed = u64::from(std::process::id());
        let word = |i: usize| WORDS[(rng::bits(seed, n, i as u64) % WORDS.len() as u64) as usize];
        let prompt: Vec<&str> = (0..self.words).map(word).collect();
        json!({"model": self.model, "prompt": prompt.join(" "), "max_tokens": max_tokens, "temperature": 0,
            "stream": true, "stream_options": {"include_usage": true}})
    }
}

/// One turn of a server under a load. Requests under way at its end are let end, and their later tokens are not counted.
fn measure(target: &Target, load: Load, turn: Duration) -> Seen {
    let seen = Mutex::new(Seen { seconds: turn.as_secs_f64(), ..Seen::default() });
    let (start, end) = (Instant::now(), Instant::now() + turn);
    let ask = |due: Instant| {
        let done = target.place.complete(&target.body(target.generate));
        if done.is_err() {
            std::thread::sleep(AFTER_FAILURE);
        }
        seen.lock().unwrap_or_else(|e| e.into_inner()).note(done, due, end);
    };
    let under_way = AtomicU64::new(0);
    std::thread::scope(|scope| match load {
        Load::Clients(n) => {
            for _ in 0..n {
                scope.spawn(|| {
                    while Instant::now() < end {
                        ask(Instant::now());
                    }
                });
            }
        }
        Load::Rate(rate) => {
            for i in 0u32.. {
                let due = start + Duration::from_secs_f64(f64::from(i) / rate);
                if due >= end {
                    break;
                }
                std::thread::sleep(due.saturating_duration_since(Instant::now()));
                if under_way.load(Ordering::Relaxed) >= MOST_UNDER_WAY as u64 {
                    let why = Err(anyhow::anyhow!("{MOST_UNDER_WAY} requests are under way already"));
                    seen.lock().unwrap_or_else(|e| e.into_inner()).note(why, due, end);
                    continue;
                }
                under_way.fetch_add(1, Ordering::Relaxed);
                let (ask, under_way) = (&ask, &under_way);
                scope.spawn(move || {
                    ask(due);
                    under_way.fetch_sub(1, Ordering::Relaxed);
                });
            }
        }
    });
    seen.into_inner().unwrap_or_else(|e| e.into_inner())
}

impl Seen {
    /// An answer, or why there is none. Who waited to be asked waited for the first token too.
    fn note(&mut self, done: anyhow::Result<Completed>, due: Instant, end: Instant) {
        self.requests += 1;
        let done = match done {
            Ok(done) if !done.tokens.is_empty() => done,
            Ok(done) if done.ended => return, // the model had nothing to say, and no token to wait for
            Ok(_) => return self.fail("an answer without an end".into()),
            Err(e) => return self.fail(format!("{e:#}")),
        };
        let ms = |from: Instant, to: Instant| to.saturating_duration_since(from).as_secs_f64() * 1e3;
        self.first_ms.push(ms(due.min(done.start), done.tokens[0]));
        self.next_ms.extend(done.tokens.windows(2).map(|w| ms(w[0], w[1])));
        // Several tokens may come as one piece of text.
        let each = done.completion_tokens.unwrap_or(done.tokens.len()) as f64 / done.tokens.len() as f64;
        self.tokens += each * done.tokens.iter().filter(|at| **at <= end).count() as f64;
    }

    fn fail(&mut self, why: String) {
        self.failed += 1;
        self.why = Some(why);
    }

    fn add(&mut self, other: Self) {
        self.requests += other.requests;
        self.failed += other.failed;
        self.why = other.why.or(self.why.take());
        self.first_ms.extend(other.first_ms);
        self.next_ms.extend(other.next_ms);
        self.tokens += other.tokens;
        self.seconds += other.seconds;
    }

    fn row(&self, target: &Target, load: Load) -> Value {
        let (concurrency, rate) = match load {
            Load::Clients(n) => (json!(n), Value::Null),
            Load::Rate(rate) => (Value::Null, json!(rate)),
        };
        let per_s = self.tokens / self.seconds;
        json!({"server": target.url, "concurrency": concurrency, "rate": rate, "requests": self.requests,
            "failed": self.failed, "why": self.why, "ttft_ms": percentiles(&self.first_ms),
            "itl_ms": percentiles(&self.next_ms), "tokens_per_s": (per_s * 100.0).round() / 100.0})
    }
}

/// The first server's numbers over the second's.
fn ratio(a: &Value, b: &Value, load: Load) -> Value {
    let over = |path: &str| {
        let (a, b) = (a.pointer(path)?.as_f64()?, b.pointer(path)?.as_f64()?);
        (b > 0.0).then(|| (a / b * 1000.0).round() / 1000.0)
    };
    let part = |name: &str| {
        let at = |p: &str| over(&format!("/{name}/{p}"));
        json!({"p50": at("p50"), "p90": at("p90"), "p99": at("p99")})
    };
    let concurrency = if let Load::Clients(n) = load { json!(n) } else { Value::Null };
    json!({"concurrency": concurrency, "tokens_per_s": over("/tokens_per_s"), "ttft_ms": part("ttft_ms"),
        "itl_ms": part("itl_ms")})
}

fn print(whole: &Value) {
    let of = |value: &Value| if value.is_null() { "-".to_owned() } else { value.to_string() };
    let columns = |row: &Value, name: String, counts: [String; 2]| {
        let times = |part: &str| ["p50", "p90", "p99"].map(|p| of(&row[part][p])).join(" / ");
        let [requests, failed] = counts;
        vec![name, requests, failed, times("ttft_ms"), times("itl_ms"), of(&row["tokens_per_s"])]
    };
    let load = |row: &Value| match (&row["concurrency"], &row["rate"]) {
        (Value::Null, rate) => format!("{} a second", of(rate)),
        (n, _) => format!("{n} at once"),
    };
    let head = ["load", "requests", "failed", "first token ms p50 / p90 / p99", "next token ms", "tokens/s"];
    let mut table = vec![head.map(str::to_owned).to_vec()];
    let rows = whole["rows"].as_array().map_or(&[][..], Vec::as_slice);
    for row in rows {
        let name = format!("{} {}", row["server"].as_str().unwrap_or_default(), load(row));
        table.push(columns(row, name, [of(&row["requests"]), of(&row["failed"])]));
    }
    for row in whole["ratios"].as_array().map_or(&[][..], Vec::as_slice) {
        table.push(columns(row, format!("first / second, {}", load(row)), [String::new(), String::new()]));
    }
    print!("{}", show::table_with(&table, &[0]));
    for row in rows.iter().filter(|row| !row["why"].is_null()) {
        println!("{} of {} failed: {}", row["failed"], row["requests"], row["why"].as_str().unwrap_or_default());
    }
}
