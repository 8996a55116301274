//! A file of rows → a file for each part. Read twice: once for the keys of the rows, once to write them out as they stand.

use super::{folds, normal, parts};
use crate::data::check::twins::hash;
use crate::data::example::{self, Example, FIRST};
use crate::data::formats::{Format, Record, Records};
use crate::data::{DataError, schema};
use crate::error::BadInput;
use serde_json::Value;
use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

/// How a file is parted.
#[derive(Debug, Clone, Default)]
pub struct Division {
    /// Share that is held out while learning.
    pub val: f64,
    /// Share that is kept for the last judgement.
    pub test: f64,
    /// Folds for cross-validation, instead of one held-out part.
    pub folds: Option<usize>,
    /// Field whose values every part gets its share of; the label of classification rows when not given.
    pub stratify: Option<String>,
    /// Field whose equal values stay together.
    pub group: Option<String>,
    /// Whether rows that repeat another are left out.
    pub dedup: bool,
    /// Seed.
    pub seed: u64,
}

/// What was written.
#[derive(Debug, Clone)]
pub struct Divided {
    /// Rows of the file.
    pub rows: usize,
    /// Rows left out because they repeat another.
    pub repeats: usize,
    /// By what the parts were balanced.
    pub stratified_by: Option<String>,
    /// Path within the folder, and rows.
    pub files: Vec<(PathBuf, usize)>,
}

/// Where a row goes.
const OUT: usize = usize::MAX;

/// Parts `path` into files of its own format in `folder` (json becomes jsonl).
///
/// # Errors
/// A row that cannot be read, a field that a row lacks, or fewer groups of rows than parts.
pub fn divide(path: &Path, how: &Division, folder: &Path) -> anyhow::Result<Divided> {
    let format = Format::of(path)?;
    if matches!(format, Format::Txt | Format::Tokens) {
        let reason = "rows are parted, and this file has no rows with named fields; `tune` holds windows of a text out by itself";
        return Err(DataError::Format { path: path.to_owned(), reason: reason.into() }.into());
    }
    let keys = Keys::read(path, how)?;
    let kept: Vec<usize> = (0..keys.groups.len()).filter(|row| !(how.dedup && keys.repeats[*row])).collect();
    let pick = |all: &[usize]| -> Vec<usize> { kept.iter().map(|row| all[*row]).collect() };
    let (groups, strata) = (pick(&keys.groups), pick(&keys.strata));
    let distinct = groups.iter().collect::<std::collections::BTreeSet<_>>().len();
    let wanted = how.folds.unwrap_or(1 + usize::from(how.val > 0.0)) + usize::from(how.test > 0.0);
    if distinct < wanted {
        return Err(BadInput(format!(
            "{}: {distinct} groups of rows that may be parted, but {wanted} parts were asked for",
            path.display()
        ))
        .into());
    }
    // The test part first, so that it is the same whatever the folds.
    let shares = if how.folds.is_some() { vec![how.test] } else { vec![how.test, how.val] };
    let part = parts(&groups, &strata, &shares, how.seed);
    let ending = match format {
        Format::Csv => "csv",
        Format::Tsv => "tsv",
        _ => "jsonl",
    };
    let name = |part: &str| PathBuf::from(format!("{part}.{ending}"));
    let mut of = vec![OUT; keys.groups.len()]; // 0 train, 1 test, 2 val; with folds 2 + fold
    kept.iter().zip(&part).for_each(|(row, part)| of[*row] = *part);
    let mut files: Vec<(PathBuf, Vec<usize>)> = Vec::new();
    if how.test > 0.0 {
        files.push((name("test"), vec![1]));
    }
    match how.folds {
        None => {
            files.push((name("train"), vec![0]));
            if how.val > 0.0 {
                files.push((name("val"), vec![2]));
            }
        }
        Some(k) => {
            let rest: Vec<usize> = kept.iter().copied().filter(|row| of[*row] == 0).collect();
            let (groups, strata): (Vec<_>, Vec<_>) = rest.iter().map(|r| (keys.groups[*r], keys.strata[*r])).unzip();
            rest.iter().zip(folds(&groups, &strata, k, how.seed)).for_each(|(row, fold)| of[*row] = 2 + fold);
            for fold in 0..k {
                let dir = PathBuf::from(format!("fold-{}", fold + 1));
                files.push((dir.join(name("train")), (0..k).filter(|f| *f != fold).map(|f| 2 + f).collect()));
                files.push((dir.join(name("val")), vec![2 + fold]));
            }
        }
    }
    let mut writers = Vec::new();
    for (file, takes) in files {
        writers.push((Writer::create(&folder.join(&file), format)?, file, takes));
    }
    for (row, record) in Records::open(path)?.enumerate() {
        let record = record?;
        for (writer, _, takes) in &mut writers {
            if takes.contains(&of[row]) {
                writer.row(&record)?;
            }
        }
    }
    let files =
        writers.into_iter().map(|(writer, file, _)| Ok((file, writer.finish()?))).collect::<anyhow::Result<_>>()?;
    let repeats = keys.groups.len() - kept.len();
    Ok(Divided { rows: keys.groups.len(), repeats, stratified_by: keys.stratified_by, files })
}

/// What decides where each row may go.
struct Keys {
    /// Rows of one number stay together.
    groups: Vec<usize>,
    strata: Vec<usize>,
    /// Whether all that the row says was said by an earlier one.
    repeats: Vec<bool>,
    stratified_by: Option<String>,
}

impl Keys {
    fn read(path: &Path, how: &Division) -> anyhow::Result<Self> {
        let mut records = Records::open(path)?;
        let first = records.by_ref().take(FIRST).collect::<Result<Vec<_>, _>>()?;
        // Rows of no known task can be parted too: their whole content is their key.
        let schema = schema::detect(&first, None).ok();
        let mut stratified_by = how.stratify.clone();
        let (mut texts, mut contents, mut named, mut strata) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let mut values: BTreeMap<String, usize> = BTreeMap::new();
        for record in first.into_iter().map(Ok).chain(records) {
            let Record { line, fields } = record?;
            let field = |name: &str| match fields.get(name) {
                Some(Value::String(s)) => Ok(s.clone()),
                Some(value) => Ok(value.to_string()),
                None => {
                    let reason = format!(
                        "no field `{name}`; the row has {}",
                        schema::quoted(&fields.keys().cloned().collect::<Vec<_>>())
                    );
                    Err(DataError::Row { path: path.to_owned(), line, reason })
                }
            };
            let example = schema
                .as_ref()
                .map(|s| example::parse(&fields, s))
                .transpose()
                .map_err(|reason| DataError::Row { path: path.to_owned(), line, reason })?;
            let whole = Value::Object(fields.clone()).to_string();
            texts.push(hash(&normal(&example.as_ref().map_or_else(|| whole.clone(), Example::text))));
            contents.push(hash(&normal(&whole)));
            if let Some(name) = &how.group {
                named.push(hash(&field(name)?));
            }
            let stratum = match (&how.stratify, &example) {
                (Some(name), _) => field(name)?,
                (None, Some(Example::Classify { label, .. })) => {
                    stratified_by.get_or_insert_with(|| "label".into());
                    label.clone()
                }
                (None, Some(Example::Judged { wanted, .. })) => {
                    stratified_by.get_or_insert_with(|| "label".into());
                    wanted.to_string()
                }
                _ => String::new(),
            };
            let next = values.len();
            strata.push(*values.entry(stratum).or_insert(next));
        }
        let groups = joined(&[&texts, &named]);
        let mut seen = std::collections::BTreeSet::new();
        let repeats = contents.into_iter().map(|c| !seen.insert(c)).collect();
        Ok(Self { groups, strata, repeats, stratified_by })
    }
}

/// Numbers rows so that rows that share a key in any column have one number: the first row of the group.
fn joined(columns: &[&Vec<u64>]) -> Vec<usize> {
    let n = columns.iter().map(|c| c.len()).max().unwrap_or(0);
    let mut parent: Vec<usize> = (0..n).collect();
    fn root(parent: &mut [usize], mut row: usize) -> usize {
        while parent[row] != row {
            parent[row] = parent[parent[row]];
            row = parent[row];
        }
        row
    }
    for column in columns {
        let mut first: BTreeMap<u64, usize> = BTreeMap::new();
        for (row, key) in column.iter().enumerate() {
            let other = *first.entry(*key).or_insert(row);
            let (a, b) = (root(&mut parent, row), root(&mut parent, other));
            parent[a.max(b)] = a.min(b);
        }
    }
    (0..n).map(|row| root(&mut parent, row)).collect()
}

/// Writes rows in the format that they came in.
enum Writer {
    Lines(std::io::BufWriter<std::fs::File>, usize),
    Table { writer: Box<csv::Writer<std::fs::File>>, names: Vec<String>, rows: usize },
}

impl Writer {
    fn create(path: &Path, format: Format) -> anyhow::Result<Self> {
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent)?;
        }
        let file = std::fs::File::create(path)?;
        let delimiter = match format {
            Format::Csv => b',',
            Format::Tsv => b'\t',
            _ => return Ok(Self::Lines(std::io::BufWriter::new(file), 0)),
        };
        let writer = Box::new(csv::WriterBuilder::new().delimiter(delimiter).from_writer(file));
        Ok(Self::Table { writer, names: Vec::new(), rows: 0 })
    }

    fn row(&mut self, record: &Record) -> anyhow::Result<()> {
        match self {
            Self::Lines(out, rows) => {
                serde_json::to_writer(&mut *out, &record.fields)?;
                out.write_all(b"\n")?;
                *rows += 1;
            }
            Self::Table { writer, names, rows } => {
                if *rows == 0 {
                    *names = record.fields.keys().cloned().collect();
                    writer.write_record(&*names)?;
                }
                writer
                    .write_record(names.iter().map(|n| record.fields.get(n).and_then(Value::as_str).unwrap_or("")))?;
                *rows += 1;
            }
        }
        Ok(())
    }

    fn finish(self) -> anyhow::Result<usize> {
        match self {
            Self::Lines(mut out, rows) => {
                out.flush()?;
                Ok(rows)
            }
            Self::Table { mut writer, rows, .. } => {
                writer.flush()?;
                Ok(rows)
            }
        }
    }
}
