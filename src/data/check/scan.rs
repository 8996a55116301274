//! One reading of a file: rows → facts about each, in chunks that all threads share.

use super::encoding::{self, Damage};
use super::personal::{self, Personal};
use super::problem::{Code, Problems};
use super::tokens::Sample;
use super::twins::{self, Key, Keys};
use super::{Check, HELD, compared, whole};
use crate::data::example::{self, Example, FIRST};
use crate::data::formats::{self, Format, Record, Records};
use crate::data::schema::{self, Layout, Schema};
use crate::data::split::normal;
use crate::data::{DataError, Task};
use rayon::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// Rows that are parsed at once.
const CHUNK: usize = 2048;

/// Which file is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The rows to learn from.
    Learned,
    /// The rows held out.
    Held,
}

/// A reading of one file, and what it found.
pub struct Scan<'a> {
    check: &'a Check<'a>,
    side: Side,
    rows: Rows,
    /// What the fields say.
    pub schema: Schema,
    /// Line of each row.
    pub lines: Vec<u32>,
    /// Rows of each label.
    pub labels: BTreeMap<String, usize>,
    /// Rows to count tokens of.
    pub sample: Sample,
    /// Rows that cannot be used, and why.
    pub dropped: BTreeMap<u32, String>,
}

/// The rows of a file, one at a time.
type Rows = Box<dyn Iterator<Item = Result<Raw, DataError>>>;

/// A row before it is understood.
enum Raw {
    Fields(Record),
    Text(usize, String),
}

/// What is known of one row.
struct Facts {
    line: usize,
    outcome: Result<Known, (Code, String)>,
}

struct Known {
    example: Example,
    hash: u64,
    bands: Vec<u64>,
    personal: BTreeSet<Personal>,
    damage: Vec<Damage>,
    control: Option<String>,
}

impl<'a> Scan<'a> {
    /// Opens a file and settles its schema by the first rows that can be read.
    pub fn new(check: &'a Check<'a>, path: &Path, side: Side) -> anyhow::Result<Self> {
        let (schema, rows) = open(path, check.task)?;
        let sample = Sample::new(check.seed);
        let (lines, labels, dropped) = (Vec::new(), BTreeMap::new(), BTreeMap::new());
        Ok(Self { check, side, rows, schema, lines, labels, sample, dropped })
    }

    /// Reads to the end. `tick` hears of the rows so far.
    pub fn run(
        &mut self,
        exact: &mut Keys,
        near: &mut Keys,
        problems: &mut Problems,
        tick: &mut dyn FnMut(usize),
    ) -> anyhow::Result<()> {
        while let Some(chunk) = self.chunk()? {
            let reader = RowReader { check: self.check, schema: &self.schema };
            let facts: Vec<Facts> = chunk.into_par_iter().map(|raw| reader.facts(raw)).collect();
            for fact in facts {
                self.keep(fact, exact, near, problems)?;
            }
            tick(self.lines.len());
        }
        Ok(())
    }

    /// Reads to the end for the texts of some rows alone.
    pub fn texts(&mut self, wanted: &BTreeSet<u32>, f: &mut dyn FnMut(u32, &str)) -> anyhow::Result<()> {
        let mut row = self.first();
        while let Some(chunk) = self.chunk()? {
            for raw in chunk {
                if wanted.contains(&row)
                    && let Ok(raw) = raw
                    && let Ok(example) = (RowReader { check: self.check, schema: &self.schema }).example(raw)
                {
                    f(row, &compared(&example));
                }
                row += 1;
            }
        }
        Ok(())
    }

    fn first(&self) -> u32 {
        if self.side == Side::Held { HELD } else { 0 }
    }

    /// The next rows, or none at the end. Rows that cannot be read are rows too; a file that cannot be read on is an error.
    fn chunk(&mut self) -> Result<Option<Vec<Result<Raw, DataError>>>, DataError> {
        let mut chunk = Vec::new();
        for raw in self.rows.by_ref().take(CHUNK) {
            match raw {
                Err(e @ (DataError::Read { .. } | DataError::Open { .. } | DataError::Empty { .. })) => return Err(e),
                raw => chunk.push(raw),
            }
        }
        Ok((!chunk.is_empty()).then_some(chunk))
    }

    fn keep(&mut self, fact: Facts, exact: &mut Keys, near: &mut Keys, problems: &mut Problems) -> std::io::Result<()> {
        let row = self.first() + self.lines.len() as u32;
        let held = self.side == Side::Held;
        let line = fact.line;
        self.lines.push(line as u32);
        let note = |text: String| if held { format!("held-out file: {text}") } else { text };
        let known = match fact.outcome {
            Ok(known) => known,
            Err((code, reason)) => {
                problems.add(code, line, note(reason.clone()));
                self.dropped.insert(row, reason);
                return Ok(());
            }
        };
        let mut label = 0;
        if let Example::Classify { label: name, .. } = &known.example {
            *self.labels.entry(name.clone()).or_default() += 1;
            label = twins::hash(name) as u32;
        }
        // The same answer to the same prompt, wanted here and unwanted there, contradicts itself as labels do.
        if let Example::Judged { wanted, .. } = &known.example {
            label = u32::from(*wanted);
        }
        // A plain text's lines repeat by nature: headings, refrains, blank speeches.
        if self.rows_are_examples() {
            exact.push(Key { hash: known.hash, row, label })?;
            known.bands.iter().try_for_each(|hash| near.push(Key { hash: *hash, row, label }))?;
        }
        for kind in known.personal {
            let code = match kind {
                Personal::Email => Code::Email,
                Personal::Card => Code::PaymentCard,
                Personal::Iban => Code::BankAccount,
                Personal::Phone => Code::Phone,
            };
            problems.add(code, line, note(String::new()));
        }
        for kind in known.damage {
            let code = match kind {
                Damage::Mojibake => Code::Mojibake,
                Damage::Replaced => Code::LostCharacters,
                Damage::Control => Code::ControlCharacters,
            };
            problems.add(code, line, note(String::new()));
        }
        if let Some(token) = known.control {
            problems.add(Code::ControlToken, line, note(format!("`{token}`")));
        }
        if !held {
            self.sample.push(row, line, known.example);
        }
        Ok(())
    }

    fn rows_are_examples(&self) -> bool {
        !matches!(&self.schema.layout, Layout::Text { text } if text.is_empty())
    }
}

/// Understands one row at a time, on any thread.
struct RowReader<'a> {
    check: &'a Check<'a>,
    schema: &'a Schema,
}

impl RowReader<'_> {
    fn example(&self, raw: Raw) -> Result<Example, String> {
        match raw {
            Raw::Text(_, text) => Ok(Example::Text(text)),
            Raw::Fields(record) => example::parse(&record.fields, self.schema),
        }
    }

    fn facts(&self, raw: Result<Raw, DataError>) -> Facts {
        let raw = match raw {
            Ok(raw) => raw,
            Err(DataError::Row { line, reason, .. }) => return Facts { line, outcome: Err((Code::BadRow, reason)) },
            Err(e) => return Facts { line: 0, outcome: Err((Code::BadRow, e.to_string())) },
        };
        let line = match &raw {
            Raw::Fields(record) => record.line,
            Raw::Text(line, _) => *line,
        };
        let outcome = self.example(raw).map_err(|reason| (Code::BadRow, reason)).and_then(|e| self.known(e));
        Facts { line, outcome }
    }

    fn known(&self, example: Example) -> Result<Known, (Code, String)> {
        if let Some(empty) = empty(&example) {
            return Err((Code::Empty, format!("{empty} is empty")));
        }
        let text = whole(&example);
        let control = self.check.tokenizer.control_token_in(&text).map(str::to_owned);
        Ok(Known {
            hash: twins::hash(&normal(&text)),
            bands: twins::bands(&twins::shingles(&compared(&example))),
            personal: personal::find(&text).into_iter().map(|(kind, _)| kind).collect(),
            damage: encoding::damage(&text.replace('\u{0}', " ")),
            control,
            example,
        })
    }
}

/// The rows of a file and their schema. A plain text's rows are its lines that are not blank.
fn open(path: &Path, task: Option<Task>) -> anyhow::Result<(Schema, Rows)> {
    if Format::of(path)? == Format::Txt {
        if let Some(other) = task.filter(|t| *t != Task::Text) {
            let reason =
                format!("a txt file is one plain text; --task {other} needs rows with named fields (jsonl, csv)");
            return Err(DataError::Format { path: path.to_owned(), reason }.into());
        }
        let layout = Layout::Text { text: String::new() };
        let schema = Schema { task: Task::Text, used: vec!["text".into()], unused: vec![], labels: vec![], layout };
        let lines = formats::lines(path)?.map(|l| l.map(|(line, text)| Raw::Text(line, text)));
        return Ok((schema, Box::new(lines)));
    }
    let mut records = Records::open(path)?.tolerant();
    let mut first: Vec<Result<Record, DataError>> = Vec::new();
    let mut good = Vec::new();
    while good.len() < FIRST {
        let Some(record) = records.next() else { break };
        good.extend(record.as_ref().ok().cloned());
        first.push(record);
    }
    if good.is_empty() {
        return Err(first
            .into_iter()
            .find_map(Result::err)
            .unwrap_or(DataError::Empty { path: path.to_owned() })
            .into());
    }
    let line = good[0].line;
    let row = |reason| DataError::Row { path: path.to_owned(), line, reason };
    let schema = schema::detect(&good, task).map_err(row)?;
    Ok((schema, Box::new(first.into_iter().chain(records).map(|r| r.map(Raw::Fields)))))
}

/// The part of a row that should hold text and does not.
fn empty(example: &Example) -> Option<&'static str> {
    let blank = |s: &str| s.trim().is_empty();
    match example {
        Example::Text(text) | Example::Document(text) => blank(text).then_some("the text"),
        Example::Completion { completion, .. } => blank(completion).then_some("the completion"),
        Example::Classify { text, pair, .. } => {
            (blank(text) && pair.as_deref().is_none_or(blank)).then_some("the text to classify")
        }
        Example::Answer { question, context, .. } => match (blank(question), blank(context)) {
            (true, _) => Some("the question"),
            (_, true) => Some("the context"),
            _ => None,
        },
        Example::Chat { messages, .. } => {
            let said =
                |m: &&crate::data::messages::Message| m.learned && (!blank(&m.content) || m.tool_calls.is_some());
            (!messages.iter().any(|m| said(&m))).then_some("every answer of the assistant")
        }
        Example::Preference { chosen, rejected, .. } => match (blank(chosen), blank(rejected)) {
            (true, _) => Some("`chosen`"),
            (_, true) => Some("`rejected`"),
            _ => None,
        },
        Example::Judged { completion, .. } => blank(completion).then_some("the completion"),
        Example::Embed { anchor, positive, .. } => match (blank(anchor), blank(positive)) {
            (true, _) => Some("the anchor"),
            (_, true) => Some("the positive"),
            _ => None,
        },
    }
}
