//! What is wrong with a dataset, before any weight loads.
//!
//! The file is read as a stream, once for the rows and once more only for what the first reading found suspicious, so a
//! file larger than memory can be checked. Tokens are counted on every row of a small file, and on a seeded sample and the
//! longest rows of a large one; the report says which.
//!
//! - [`problem`]: what is reported, how grave it is, and the way out
//! - [`scan`]: rows → facts: what cannot be read, whom the labels name, what stands in the texts
//! - [`twins`]: rows that say the same, exactly or nearly; [`encoding`], [`personal`]: what stands in the texts
//! - [`tokens`]: lengths, and which tokens of a row are learned
//! - [`fix`]: the cleaned set, and a log of every change

pub mod encoding;
pub mod fix;
pub mod personal;
pub mod problem;
mod scan;
pub mod tokens;
pub mod twins;

use super::example::Example;
use super::formats::Format;
use super::{DataError, Labels, Task};
use edgeft_runtime::chat::ChatTemplate;
use edgeft_runtime::tokenizer::Tokenizer;
use problem::{Code, Problem, Problems};
use scan::{Scan, Side};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use twins::Key;

/// How DATA is checked.
pub struct Check<'a> {
    /// The file.
    pub path: &'a Path,
    /// Rows that will be held out, to find those that are in both.
    pub val: Option<&'a Path>,
    /// What the rows teach; read off their fields when not given.
    pub task: Option<Task>,
    /// Labels that the model already has; none when the rows settle them.
    pub labels: Option<&'a [String]>,
    /// The model's tokenizer.
    pub tokenizer: &'a Tokenizer,
    /// Its chat template.
    pub template: Option<&'a ChatTemplate>,
    /// Whether it is an encoder.
    pub encoder: bool,
    /// Tokens that a row may have, and whether the user said so.
    pub max_len: (usize, bool),
    /// The model's context.
    pub context: usize,
    /// Seed of the sample.
    pub seed: u64,
    /// Rows to show.
    pub show: usize,
}

/// What was found.
#[derive(Debug, Clone)]
pub struct Report {
    /// What the rows teach.
    pub task: Task,
    /// What was detected, for people.
    pub schema: String,
    /// Rows of the file.
    pub rows: usize,
    /// Of those, rows that can be learned from.
    pub usable: usize,
    /// Rows of the held-out file.
    pub val_rows: usize,
    /// Rows of each label.
    pub labels: Vec<(String, usize)>,
    /// Whether it is one plain text, whose rows are lines.
    pub document: bool,
    /// What is wrong, the gravest first.
    pub problems: Vec<Problem>,
    /// Lengths in tokens.
    pub lengths: tokens::Lengths,
    /// Rows as the model will see them.
    pub shown: Vec<tokens::Shown>,
    /// Rows that `--fix` leaves out, by number, and why.
    pub dropped: BTreeMap<u32, String>,
}

/// Rows of the held-out file are numbered from here.
const HELD: u32 = 1 << 31;
/// Keys held in memory: 16 bytes each.
const KEYS: usize = 2 << 20;
/// Shingles of candidates held at once: 8 bytes each.
const CANDIDATE_SHINGLES: usize = 6 << 20;
/// Share of rows from which contradictory labels are an error, and not a warning.
const CONTRADICTIONS: f64 = 0.01;
/// A label with fewer rows is hardly learned, nor can it be judged.
const FEW: usize = 10;
/// Rows of the commonest label to one of the rarest.
const IMBALANCE: usize = 20;

impl Check<'_> {
    /// Reads, compares and counts. `tick` is called with the number of rows read so far.
    ///
    /// # Errors
    /// A file that cannot be read at all, or whose fields fit no task; temporary files that cannot be written.
    pub fn run(&self, tick: &mut dyn FnMut(usize)) -> anyhow::Result<Report> {
        if Format::of(self.path)? == Format::Tokens {
            let reason = "its rows are tokens already: check the texts that they were made of".into();
            return Err(DataError::Format { path: self.path.to_owned(), reason }.into());
        }
        let mut problems = Problems::new();
        let mut exact = twins::Keys::new(KEYS);
        let mut near = twins::Keys::new(KEYS);
        let mut scan = Scan::new(self, self.path, Side::Learned)?;
        scan.run(&mut exact, &mut near, &mut problems, tick)?;
        let held = match self.val {
            Some(path) => {
                let mut held = Scan::new(self, path, Side::Held)?;
                if held.schema.task != scan.schema.task {
                    let (a, b) = (held.schema.task, scan.schema.task);
                    let reason = format!("its rows are for --task {a}, those of {} for {b}", self.path.display());
                    return Err(DataError::Format { path: path.to_owned(), reason }.into());
                }
                held.run(&mut exact, &mut near, &mut problems, tick)?;
                Some(held)
            }
            None => None,
        };
        let mut dropped = std::mem::take(&mut scan.dropped);
        let line = |row: u32| match (&held, row >= HELD) {
            (Some(held), true) => held.lines[(row - HELD) as usize] as usize,
            _ => scan.lines[row as usize] as usize,
        };
        let same = same(exact, &line, scan.lines.len(), &mut problems, &mut dropped)?;
        let near = candidates(near, &same)?;
        self.nearly_same(&near, held.is_some(), &line, &mut problems, &mut dropped)?;
        let labels: Vec<(String, usize)> = scan.labels.iter().map(|(l, n)| (l.clone(), *n)).collect();
        if scan.schema.task == Task::Classify {
            balance(&labels, &mut problems);
        }
        let known = Labels::in_order(labels.iter().map(|(l, _)| l.clone()));
        let known = self.labels.map_or(known, Labels::known);
        let (lengths, shown) = tokens::count(self, &known, scan.sample, &mut problems, &mut dropped);
        let rows = scan.lines.len();
        let schema = super::Schema { labels: known.names().to_vec(), ..scan.schema };
        let unusable = dropped.len();
        Ok(Report {
            task: schema.task,
            schema: schema.to_string(),
            rows,
            usable: rows.saturating_sub(unusable),
            val_rows: held.map_or(0, |h| h.lines.len()),
            labels: known_order(&known, labels),
            document: Format::of(self.path)? == Format::Txt,
            problems: problems.sorted(),
            lengths,
            shown,
            dropped,
        })
    }

    /// Compares the candidates word by word: reads the files once more, for their texts alone.
    fn nearly_same(
        &self,
        groups: &BTreeSet<(u32, u32)>,
        with_held: bool,
        line: &dyn Fn(u32) -> usize,
        problems: &mut Problems,
        dropped: &mut BTreeMap<u32, String>,
    ) -> anyhow::Result<()> {
        if groups.is_empty() {
            return Ok(());
        }
        let wanted: BTreeSet<u32> = groups.iter().flat_map(|(a, b)| [*a, *b]).collect();
        let mut sets = BTreeMap::new();
        let mut room = CANDIDATE_SHINGLES;
        let mut read = |path: &Path, side: Side| -> anyhow::Result<()> {
            Scan::new(self, path, side)?.texts(&wanted, &mut |row, text| {
                let set = twins::shingles(text);
                if set.len() <= room {
                    room -= set.len();
                    sets.insert(row, set);
                }
            })
        };
        read(self.path, Side::Learned)?;
        if let Some(path) = self.val.filter(|_| with_held) {
            read(path, Side::Held)?;
        }
        let mut told = BTreeSet::new();
        for (a, b) in groups {
            let (Some(x), Some(y)) = (sets.get(a), sets.get(b)) else {
                problems.add(Code::NotCompared, line(*b), String::new());
                continue;
            };
            let near = twins::resemblance(x, y);
            if near < twins::NEAR || !told.insert(*b) {
                continue;
            }
            let note = format!("{:.0} % the words of line {}", 100.0 * near, line(*a));
            match (*a >= HELD, *b >= HELD) {
                (false, true) => {
                    problems.add(Code::NearLeak, line(*b), note);
                    dropped.entry(*a).or_insert_with(|| format!("nearly line {} of the held-out file", line(*b)));
                }
                _ => problems.add(Code::NearDuplicate, line(*b), note),
            }
        }
        Ok(())
    }
}

/// Groups of equal rows: repeats, contradictions and leaks. Returns the rows that need no nearer look.
fn same(
    keys: twins::Keys,
    line: &dyn Fn(u32) -> usize,
    rows: usize,
    problems: &mut Problems,
    dropped: &mut BTreeMap<u32, String>,
) -> std::io::Result<BTreeSet<u32>> {
    let mut seen = BTreeSet::new();
    keys.shared(&mut |group: &[Key]| {
        let (first, rest) = (&group[0], &group[1..]);
        seen.extend(rest.iter().map(|k| k.row));
        let learned: Vec<&Key> = group.iter().filter(|k| k.row < HELD).collect();
        if let Some(other) = learned.iter().find(|k| k.label != first.label) {
            for key in &learned {
                let twin = if key.row == first.row { other.row } else { first.row };
                let note = format!("the text of line {}, under another label", line(twin));
                problems.add(Code::Contradiction, line(key.row), note.clone());
                dropped.entry(key.row).or_insert(note);
            }
        } else {
            for key in learned.iter().skip(1) {
                let note = format!("the same as line {}", line(first.row));
                problems.add(Code::Duplicate, line(key.row), note.clone());
                dropped.entry(key.row).or_insert(note);
            }
        }
        let held: Vec<&Key> = group.iter().filter(|k| k.row >= HELD).collect();
        if let (Some(known), Some(leaked)) = (learned.first(), held.first()) {
            for key in &held {
                problems.add(Code::Leak, line(key.row), format!("it is line {} of DATA", line(known.row)));
            }
            for key in &learned {
                let note = format!("line {} of the held-out file", line(leaked.row));
                dropped.entry(key.row).or_insert(note);
            }
        }
    })?;
    if problems.count(Code::Contradiction) as f64 > CONTRADICTIONS * rows as f64 {
        problems.aggravate(Code::Contradiction);
    }
    Ok(seen)
}

/// Pairs of rows that share a band, the earlier first; those of `known` are equal to another already.
fn candidates(keys: twins::Keys, known: &BTreeSet<u32>) -> std::io::Result<BTreeSet<(u32, u32)>> {
    let mut pairs = BTreeSet::new();
    keys.shared(&mut |group: &[Key]| {
        let rows: Vec<u32> = group.iter().map(|k| k.row).filter(|r| !known.contains(r)).collect();
        // Each with the one before it, too: the group's first may be a chance neighbour.
        for pair in rows.windows(2) {
            pairs.insert((rows[0], pair[1]));
            pairs.insert((pair[0], pair[1]));
        }
    })?;
    Ok(pairs)
}

fn balance(labels: &[(String, usize)], problems: &mut Problems) {
    let most = labels.iter().map(|(_, n)| *n).max().unwrap_or(0);
    if labels.len() == 1 {
        problems.add(Code::OneLabel, 0, format!("`{}`", labels[0].0));
    }
    for (label, n) in labels.iter().filter(|_| labels.len() > 1) {
        if *n < FEW {
            problems.add(Code::RareLabel, 0, format!("`{label}` has {n}"));
        } else if n * IMBALANCE < most {
            problems.add(Code::Imbalance, 0, format!("`{label}` has {n}, the commonest {most}"));
        }
    }
}

/// Labels with their counts, in the order of their indices.
fn known_order(known: &Labels, counts: Vec<(String, usize)>) -> Vec<(String, usize)> {
    let counts: BTreeMap<String, usize> = counts.into_iter().collect();
    known.names().iter().map(|n| (n.clone(), counts.get(n).copied().unwrap_or(0))).collect()
}

/// All that a row says, for comparing it with others.
fn whole(example: &Example) -> String {
    match example {
        Example::Completion { prompt, completion } => format!("{prompt}\u{0}{completion}"),
        Example::Answer { question, context, .. } => format!("{question}\u{0}{context}"),
        Example::Chat { messages, .. } => {
            messages.iter().map(|m| format!("{}\u{0}{}", m.role, m.content)).collect::<Vec<_>>().join("\u{0}")
        }
        Example::Preference { chosen, rejected, .. } => format!("{}\u{0}{chosen}\u{0}{rejected}", example.text()),
        Example::Judged { completion, .. } => format!("{}\u{0}{completion}", example.text()),
        Example::Embed { anchor, positive, negatives, .. } => {
            [anchor, positive].into_iter().chain(negatives).map(String::as_str).collect::<Vec<_>>().join("\u{0}")
        }
        _ => example.text(),
    }
}

/// What of a row is held against others word by word: of an answer only the question, since many share their context.
fn compared(example: &Example) -> String {
    match example {
        Example::Answer { question, .. } => question.clone(),
        _ => whole(example),
    }
}
