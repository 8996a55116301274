//! What a run takes in memory, told before a weight is read; and, under `--mem`, how it is made to fit.
//!
//! - [`activations`]: what a micro-batch takes, and how it is cut in parts
//! - [`weights`]: how many weights are read, and how many of them are trained
//!
//! Planned against the peak resident set that was measured, on Linux with glibc, two threads, 2026-11-28; random weights
//! where no name is given. Planned is the worst of an epoch, measured is after four steps of it, or forty of sentences:
//!
//! | network | rows | planned MiB | measured MiB | off |
//! |---|---|---|---|---|
//! | 6 layers, C 512, F 1376, V 32000, tied, f32 file | 1 of 128 tokens | 217 | 204 | +6.7 % |
//! | the same | 4 of 256 | 342 | 351 | -2.6 % |
//! | the same | 2 of 512 | 342 | 348 | -1.7 % |
//! | the same | 1 of 1024 | 342 | 341 | +0.1 % |
//! | the same, `--method full` | 4 of 128 | 767 | 761 | +0.8 % |
//! | 12 layers, C 576, F 1536, V 49152, tied, f16 file | 2 of 256 | 524 | 521 | +0.7 % |
//! | the same | 8 of 256 | 667 | 680 | -1.9 % |
//! | MiniLM (BERT, 6 layers, C 384), a classifier | 16 of 64 | 251 | 252 | -0.7 % |
//! | the same | 16 of 256 | 616 | 644 | -4.3 % |
//! | the same | 16 sentences | 213 | 208 | +2.3 % |
//! | stories260K | 16 of 256 | 97 | 88 | +11.0 % |
//! | nano | 16 sentences | 142 | 148 | -3.9 % |

pub mod activations;
pub mod weights;

pub use activations::{Activations, Taken};
pub use weights::Weights;

use super::config::{Method, TuneConfig};
use crate::data::batch::{Row, Target, lengths, order, rows_of, units as units_of};

/// Resident bytes of `edgeft tune` besides what is counted: code, threads and their stacks, buffers of the GEMM.
const PROGRAM_BYTES: u64 = 26 << 20;
/// A tokenizer in memory against its `tokenizer.json`, at its peak.
const TEXT_FACTOR: u64 = 8;
/// Rows in memory: ids, positions and targets of a token, and what a row holds besides.
const TOKEN_BYTES: u64 = 16;
const ROW_BYTES: u64 = 160;

/// What a run takes, term by term, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Terms {
    /// The program, the tokenizer and the rows.
    pub program: u64,
    /// Weights of the network.
    pub weights: u64,
    /// What is trained beside them: adapters and heads.
    pub adapters: u64,
    /// AdamW's two moments.
    pub moments: u64,
    /// Gradients of what is trained, and the largest of them once more, or twice, while it is summed or applied.
    pub gradients: u64,
    /// Activations at the worst moment of the worst micro-batch.
    pub activations: Taken,
    /// Before the first step: the largest tensor of the file, while it is copied.
    pub loading: u64,
}

impl Terms {
    /// All of it at the worst moment.
    pub fn peak(&self) -> u64 {
        self.with(self.standing(), self.activations)
    }

    /// The same with other things that stand and other activations; never less than what reading the weights takes.
    fn with(&self, standing: u64, activations: Taken) -> u64 {
        (standing + activations.peak()).max(self.program + self.weights + self.loading)
    }

    /// What stands there whatever the micro-batch.
    fn standing(&self) -> u64 {
        self.program + self.weights + self.adapters + self.moments + self.gradients
    }

    /// (name, bytes, what it is) of every term, for people.
    pub fn lines(&self) -> Vec<(&'static str, u64, &'static str)> {
        let a = &self.activations;
        let at_work = if a.head > a.block { "the head at work" } else { "one block at work, with its attention" };
        vec![
            ("program", self.program, "code, tokenizer, rows"),
            ("weights", self.weights, "the network"),
            ("adapters", self.adapters, "what is trained beside it"),
            ("moments", self.moments, "AdamW's two for each trained weight"),
            ("gradients", self.gradients, "of what is trained"),
            ("kept", a.kept, "activations kept for the backward"),
            ("at work", a.block.max(a.head), at_work),
            ("loading", self.loading, "not with the last five: the largest tensor, while it is read"),
        ]
    }
}

/// A run's memory, and how micro-batches are cut for it.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Term by term.
    pub terms: Terms,
    /// Cuts micro-batches.
    pub activations: Activations,
    /// The most parts that a micro-batch is cut in.
    pub parts: usize,
    /// The most blocks that a part computes again in its backward.
    pub again: usize,
}

impl Plan {
    /// For rows to learn and rows held out; `tokenizer` is the size of `tokenizer.json`.
    ///
    /// # Errors
    /// [`crate::error::BadInput`] when no cut fits `--mem`: with every term, and what would fit.
    pub fn new(
        config: &TuneConfig,
        mut activations: Activations,
        weights: &Weights,
        (train, val): (&[Row], &[Row]),
        tokenizer: usize,
    ) -> anyhow::Result<Self> {
        let full = config.method == Method::Full;
        let tokens = |rows: &[Row]| rows.iter().map(|r| r.ids.len() as u64).sum::<u64>();
        let program = PROGRAM_BYTES
            + TEXT_FACTOR * tokenizer as u64
            + TOKEN_BYTES * (tokens(train) + tokens(val))
            + ROW_BYTES * (train.len() + val.len()) as u64;
        let terms = Terms {
            program,
            weights: weights.bytes,
            adapters: if full { 0 } else { 4 * weights.trained },
            moments: 8 * weights.trained,
            // Halves of a batch are learned from side by side, each with gradients of its own. Not of whole matrices; there the
            // largest is the table of words, whose two gradients are summed when it is the head too.
            gradients: if full {
                4 * (weights.trained + 2 * weights.largest)
            } else {
                4 * (2 * weights.trained + weights.largest)
            },
            activations: Taken::default(),
            loading: weights.loading,
        };
        activations.room = config.mem.map(|mem| mem.saturating_sub(terms.standing()));
        let mut plan = Self { terms, activations, parts: 1, again: 0 };
        plan.walk(config, train, val);
        match config.mem {
            Some(mem) if plan.terms.peak() > mem => Err(plan.refusal(mem, config, weights, train)),
            _ => Ok(plan),
        }
    }

    /// Takes the worst of an epoch's micro-batches, and of the evaluation's.
    fn walk(&mut self, config: &TuneConfig, train: &[Row], val: &[Row]) {
        let units = units_of(train);
        for batch in order(&lengths(train, &units), config.size(), config.seed, 0, true) {
            let rows = rows_of(train, &units, &batch);
            let (read, learned): (Vec<&Row>, Vec<&Row>) = rows.into_iter().partition(|r| r.is_only_read());
            let parts = self.activations.parts(&learned);
            self.parts = self.parts.max(parts.len());
            for (part, again) in parts {
                self.again = self.again.max(again);
                self.worst(self.activations.taken(part, again as u64));
            }
            for part in self.activations.read_parts(&read) {
                self.worst(self.activations.reading(part));
            }
        }
        let held = units_of(val);
        let all: Vec<usize> = {
            let tokens = lengths(val, &held);
            let mut all: Vec<usize> = (0..held.len()).collect();
            all.sort_by_key(|i| (tokens[*i], val[held[*i].start].keys));
            all
        };
        for batch in all.chunks(config.batch) {
            for part in self.activations.read_parts(&rows_of(val, &held, batch)) {
                self.worst(self.activations.reading(part));
            }
        }
    }

    fn worst(&mut self, taken: Taken) {
        if taken.peak() > self.terms.activations.peak() {
            self.terms.activations = taken;
        }
    }

    fn refusal(&self, mem: u64, config: &TuneConfig, weights: &Weights, train: &[Row]) -> anyhow::Error {
        let t = &self.terms;
        let longest = train.iter().map(|r| r.ids.len()).max().unwrap_or(0);
        let mut ways = Vec::new();
        let mut shorter = longest;
        while shorter > 16 {
            shorter /= 2;
            let row = Row::new(vec![0; shorter], Target::Tokens(vec![Some(0); shorter]), 0);
            let needs = t.with(t.standing(), self.activations.taken(&[&row], self.activations.most_again()));
            if needs <= mem {
                ways.push(format!("--max-len {shorter} ({})", mib(needs)));
                break;
            }
        }
        if config.method != Method::Full {
            let mut rank = config.rank;
            while rank > 1 {
                rank /= 2;
                let saved = (t.adapters + t.moments + t.gradients) * (config.rank - rank) as u64 / config.rank as u64;
                let needs = t.with(t.standing() - saved, t.activations);
                if needs <= mem {
                    ways.push(format!("--rank {rank} ({})", mib(needs)));
                    break;
                }
            }
        } else {
            ways.push("--method lora, which keeps no moments of frozen weights".to_owned());
        }
        // A base in few bits has less to give.
        if config.method != Method::Qlora && weights.bytes == 4 * weights.read {
            ways.push("--method qlora, which keeps the weights in 4 bits".to_owned());
        }
        ways.push(format!("--mem {}", mib(t.peak().next_multiple_of(1 << 20))));
        let terms: Vec<String> = t
            .lines()
            .into_iter()
            .filter(|l| l.1 > 0)
            .map(|(name, bytes, _)| format!("{name} {}", mib(bytes)))
            .collect();
        crate::error::BadInput(format!(
            "--mem {}: one row of {longest} tokens at a time, with activations computed again, takes {}: {}. What would \
             fit: {}",
            mib(mem),
            mib(t.peak()),
            terms.join(", "),
            ways.join("; ")
        ))
        .into()
    }
}

/// Bytes as `123MiB`, rounded up, as `--mem` takes them.
pub fn mib(bytes: u64) -> String {
    format!("{}MiB", bytes.div_ceil(1 << 20))
}

/// `2GiB`, `800MiB`, `1.5G`, `500MB` or a number, in bytes. A bare K, M, G or T counts in 1024s.
///
/// # Errors
/// What is no size, in words for a person.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let refuse = || format!("`{text}` is no size; write 2GiB, 800MiB, 1.5G or 500MB");
    let at = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = (text[..at].parse::<f64>().map_err(|_| refuse())?, text[at..].trim().to_lowercase());
    let power = |base: f64, letter: &str| "kmgt".find(letter).map(|i| base.powi(i as i32 + 1));
    let factor = match (unit.as_str(), unit.len()) {
        ("" | "b", _) => Some(1.0),
        (u, 1) => power(1024.0, u),
        (u, 3) if u.ends_with("ib") => power(1024.0, &u[..1]),
        (u, 2) if u.ends_with('b') => power(1000.0, &u[..1]),
        _ => None,
    };
    let bytes = number * factor.ok_or_else(refuse)?;
    if bytes >= 1.0 && bytes < 2f64.powi(60) { Ok(bytes as u64) } else { Err(refuse()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::schema::Task;
    use crate::model::config::Config;
    use crate::tune::config::Settings;
    use serde_json::json;

    fn small() -> Config {
        let json = json!({"model_type": "llama", "vocab_size": 1000, "hidden_size": 256, "intermediate_size": 512,
            "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 2048,
            "rms_norm_eps": 1e-5, "rope_theta": 1e4});
        Config::from_json(&json).unwrap()
    }

    fn rows(lengths: &[usize]) -> Vec<Row> {
        lengths.iter().map(|n| Row::new(vec![1; *n], Target::Tokens(vec![Some(1); *n]), 1)).collect()
    }

    fn plan(mem: Option<u64>, rows: &[Row]) -> anyhow::Result<Plan> {
        let model = small();
        let settings = Settings { mem: mem.map(crate::tune::config::Mem), max_len: Some(2048), ..Settings::default() };
        let config = TuneConfig::resolve(&settings, Task::Text, &model)?;
        let weights = Weights {
            read: 3_000_000,
            trained: 100_000,
            largest: 8192,
            projections: 2_500_000,
            bytes: 12_000_000,
            loading: 0,
        };
        Plan::new(&config, Activations::new(&model, true, false), &weights, (rows, &[]), 0)
    }

    #[test]
    fn a_tighter_bound_cuts_then_computes_again_then_refuses_with_what_would_fit() {
        let rows = rows(&[600; 16]);
        let free = plan(None, &rows).unwrap();
        assert_eq!((free.parts, free.again), (1, 0));
        let mut seen = vec![(1, 0)];
        let mut mem = free.terms.peak();
        let refusal = loop {
            match plan(Some(mem), &rows) {
                Ok(p) => {
                    assert!(p.terms.peak() <= mem, "{} > {mem}", p.terms.peak());
                    seen.push((p.parts, p.again));
                }
                Err(e) => break e.to_string(),
            }
            mem -= mem / 50;
        };
        assert_eq!(seen[1], (1, 0));
        assert!(seen.iter().any(|(parts, again)| *parts > 1 && *again == 0), "{seen:?}");
        assert!(seen.iter().any(|(_, again)| (1..4).contains(again)), "{seen:?}");
        assert_eq!(*seen.last().unwrap(), (16, 3), "{seen:?}");
        for word in ["--mem ", "weights 12MiB", "--max-len ", "one row of 600 tokens"] {
            assert!(refusal.contains(word), "no `{word}` in: {refusal}");
        }
        // What the refusal names fits.
        let at = refusal.rfind("--mem ").unwrap() + 6;
        plan(Some(parse_bytes(&refusal[at..]).unwrap()), &rows).unwrap();
    }

    #[test]
    fn reading_the_weights_is_a_moment_of_its_own() {
        let terms = Terms { program: 10, weights: 100, adapters: 1, moments: 2, gradients: 3, ..Terms::default() };
        assert_eq!(Terms { loading: 4, ..terms }.peak(), 116);
        assert_eq!(Terms { loading: 40, ..terms }.peak(), 150);
    }

    #[test]
    fn every_row_is_in_one_part_in_order() {
        let all = rows(&[10, 10, 40, 200, 200, 900]);
        let refs: Vec<&Row> = all.iter().collect();
        let tightest = plan(None, &all).unwrap().activations;
        for room in [0, 1 << 20, 4 << 20, 16 << 20, 1 << 30] {
            let mut activations = tightest.clone();
            activations.room = Some(room);
            let parts = activations.parts(&refs);
            let joined: Vec<usize> = parts.iter().flat_map(|(p, _)| p.iter().map(|r| r.ids.len())).collect();
            assert_eq!(joined, [10, 10, 40, 200, 200, 900]);
            let read: Vec<usize> = activations.read_parts(&refs).concat().iter().map(|r| r.ids.len()).collect();
            assert_eq!(read, joined);
        }
    }

    #[test]
    fn sizes_are_read_as_people_write_them() {
        for (text, bytes) in [
            ("2GiB", 2 << 30),
            ("800MiB", 800 << 20),
            ("1.5G", 3 << 29),
            ("500MB", 500_000_000),
            ("4096", 4096),
            ("64k", 65536),
        ] {
            assert_eq!(parse_bytes(text), Ok(bytes), "{text}");
        }
        for text in ["", "GiB", "2XB", "-1G", "0", "two", "2 Gi"] {
            assert!(parse_bytes(text).is_err(), "{text}");
        }
    }
}
