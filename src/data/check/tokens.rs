//! What the tokenizer makes of the rows: how long they are, and which tokens are learned.

use super::Check;
use super::problem::{Code, Problems};
use crate::data::example::Example;
use crate::data::formats::Format;
use crate::data::tokenize::{Counted, Tokenize};
use crate::data::{Labels, Truncate};
use crate::rng;
use rayon::prelude::*;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

/// Bytes of text that are kept to count tokens of.
const SAMPLE_BYTES: usize = 24 << 20;
/// The longest rows, by bytes, are always counted: they decide --max-len.
const LONGEST: usize = 256;
/// Tokens that `tune` allows a row by default.
const DEFAULT: usize = 256;

/// A seeded sample of a stream of unknown length: a row is kept while its own random number lies below a threshold, which
/// is halved whenever the kept rows grow too large.
pub struct Sample {
    seed: u64,
    threshold: u64,
    bytes: usize,
    rows: Vec<(u64, u32, usize, Example)>,
    longest: BinaryHeap<(Reverse<usize>, u32)>,
    long: BTreeMap<u32, (usize, Example)>,
}

impl Sample {
    /// Empty.
    pub fn new(seed: u64) -> Self {
        let (rows, longest, long) = (Vec::new(), BinaryHeap::new(), BTreeMap::new());
        Self { seed, threshold: u64::MAX, bytes: 0, rows, longest, long }
    }

    /// Offers a row.
    pub fn push(&mut self, row: u32, line: usize, example: Example) {
        let bytes = super::whole(&example).len();
        let lot = rng::bits(self.seed, rng::stream("sample", 0), u64::from(row));
        if lot <= self.threshold {
            self.bytes += bytes;
            self.rows.push((lot, row, line, example));
            while self.bytes > SAMPLE_BYTES && self.rows.len() > 1 {
                self.threshold /= 2;
                let most = self.threshold;
                let out: Vec<_> = self.rows.extract_if(.., |r| r.0 > most).collect();
                for (_, row, line, example) in out {
                    let bytes = super::whole(&example).len();
                    self.bytes -= bytes;
                    self.offer_long(bytes, row, line, example);
                }
            }
        } else {
            self.offer_long(bytes, row, line, example);
        }
    }

    fn offer_long(&mut self, bytes: usize, row: u32, line: usize, example: Example) {
        self.longest.push((Reverse(bytes), row));
        self.long.insert(row, (line, example));
        if self.longest.len() > LONGEST
            && let Some((_, shortest)) = self.longest.pop()
        {
            self.long.remove(&shortest);
        }
    }

    /// Whether every row is in it.
    fn whole(&self) -> bool {
        self.threshold == u64::MAX
    }
}

/// Lengths in tokens.
#[derive(Debug, Clone, Default, serde::Serialize)]
pub struct Lengths {
    /// Rows that were counted.
    pub counted: usize,
    /// Whether those are all rows; else a seeded sample, and the longest rows.
    pub all: bool,
    /// Half of the rows have at most so many.
    pub p50: usize,
    /// Nine in ten.
    pub p90: usize,
    /// 99 in 100: the --max-len that covers them.
    pub p99: usize,
    /// All.
    pub p100: usize,
    /// Tokens of the counted rows, and of those that are learned.
    pub tokens: usize,
    /// Tokens that are learned.
    pub learned: usize,
    /// (longest of the bin, rows): bins of powers of two.
    pub histogram: Vec<(usize, usize)>,
}

/// A row as the model will see it.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Shown {
    /// Line of the file.
    pub line: usize,
    /// Text of each token, and whether it is learned.
    pub tokens: Vec<(String, bool)>,
    /// The label, when a text is classified.
    pub label: Option<String>,
}

/// Counts the tokens of the sample, and looks at what is learned of them.
pub(super) fn count(
    check: &Check,
    labels: &Labels,
    sample: Sample,
    problems: &mut Problems,
    dropped: &mut BTreeMap<u32, String>,
) -> (Lengths, Vec<Shown>) {
    let document = Format::of(check.path).is_ok_and(|f| f == Format::Txt);
    let all = sample.whole();
    let mut rows: Vec<(u32, usize, Example)> = sample.rows.into_iter().map(|(_, r, l, e)| (r, l, e)).collect();
    let drawn = rows.len();
    rows.extend(sample.long.into_iter().map(|(r, (l, e))| (r, l, e)));
    let tokenize = Tokenize {
        tokenizer: check.tokenizer,
        template: check.template,
        labels,
        encoder: check.encoder,
        max_len: check.max_len.0,
        truncate: Truncate::Error,
    };
    let counted: Vec<Result<Counted, String>> =
        rows.par_iter().map(|(_, line, e)| tokenize.counted(*line, e)).collect();
    let mut lengths = Lengths { all, ..Lengths::default() };
    let (mut sorted, mut longest, mut shown) = (Vec::new(), 0, Vec::new());
    for (i, ((row, line, example), counted)) in rows.iter().zip(counted).enumerate() {
        let counted = match counted {
            Ok(counted) => counted,
            Err(reason) => {
                let twice = reason.contains("beginning token twice");
                problems.add(if twice { Code::DoubleBos } else { Code::Untrainable }, *line, reason.clone());
                dropped.entry(*row).or_insert(reason);
                continue;
            }
        };
        let n = counted.ids.len();
        longest = longest.max(n);
        if let (Some(bos), [a, b, ..]) = (check.tokenizer.bos(), counted.ids.as_slice())
            && *a == bos
            && *b == bos
        {
            problems.add(Code::DoubleBos, *line, "the text itself begins with it".into());
        }
        let (most, said) = check.max_len;
        match n {
            _ if document => {} // tune cuts a plain text in windows: its lines have no length of their own
            _ if n > most && said => problems.add(Code::TooLong, *line, format!("{n} tokens, --max-len is {most}")),
            _ if n > check.context => {
                problems.add(Code::BeyondContext, *line, format!("{n} tokens, the context has {}", check.context));
            }
            _ if n > DEFAULT && !said => problems.add(Code::LongerThanDefault, *line, format!("{n} tokens")),
            _ => {}
        }
        if i < drawn {
            sorted.push(n);
            lengths.tokens += n;
            lengths.learned += counted.learned.iter().filter(|l| **l).count();
        }
        if shown.len() < check.show && i < drawn && !document {
            shown.push(show(check, *line, &counted, example));
        }
    }
    sorted.sort_unstable();
    lengths.counted = sorted.len();
    if !sorted.is_empty() {
        let covers = |share: f64| sorted[((sorted.len() as f64 * share).ceil() as usize).clamp(1, sorted.len()) - 1];
        (lengths.p50, lengths.p90, lengths.p99) = (covers(0.5), covers(0.9), covers(0.99));
        lengths.p100 = longest;
        let mut end = 4;
        while end / 2 < longest {
            let rows = sorted.partition_point(|n| *n <= end) - sorted.partition_point(|n| *n <= end / 2);
            let rows = if end == 4 { sorted.partition_point(|n| *n <= end) } else { rows };
            lengths.histogram.push((end, rows));
            end *= 2;
        }
    }
    (lengths, shown)
}

fn show(check: &Check, line: usize, counted: &Counted, example: &Example) -> Shown {
    let piece = |id: u32| String::from_utf8_lossy(check.tokenizer.decode_piece(id)).into_owned();
    let name = |id: u32| match piece(id) {
        p if p.is_empty() => check.tokenizer.id_to_token(id).unwrap_or_default().to_owned(),
        p => p,
    };
    let label = match example {
        Example::Classify { label, .. } => Some(label.clone()),
        _ => None,
    };
    let tokens = counted.ids.iter().zip(&counted.learned).map(|(id, learned)| (name(*id), *learned)).collect();
    Shown { line, tokens, label }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_stream_leaves_a_fair_sample_and_the_longest_rows() {
        let mut sample = Sample::new(7);
        let rows = 3000u32;
        for row in 0..rows {
            let long = row % 1000 == 500;
            sample.push(row, row as usize, Example::Text("x".repeat(if long { 200_000 } else { 40_000 })));
        }
        assert!(!sample.whole() && sample.bytes <= SAMPLE_BYTES && sample.rows.len() > 250);
        let early = sample.rows.iter().filter(|r| r.1 < rows / 2).count() as f64 / sample.rows.len() as f64;
        assert!((0.4..0.6).contains(&early), "{early}");
        let kept = |row: &u32| sample.long.contains_key(row) || sample.rows.iter().any(|r| r.1 == *row);
        assert!([500, 1500, 2500].iter().all(kept) && sample.long.len() <= LONGEST);
    }

    #[test]
    fn a_small_stream_is_kept_whole() {
        let mut sample = Sample::new(7);
        (0..100).for_each(|row| sample.push(row, row as usize, Example::Text("x".into())));
        assert!(sample.whole() && sample.rows.len() == 100 && sample.long.is_empty());
    }
}
