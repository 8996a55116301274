//! The cleaned set, and a log of every change: a line of JSON for each row that was left out or altered.

use super::{Check, Report, encoding, personal};
use crate::data::DataError;
use crate::data::formats::{self, Format, Record, Records};
use serde_json::{Value, json};
use std::io::Write as _;
use std::path::{Path, PathBuf};

/// What was written.
#[derive(Debug, Clone)]
pub struct Fixed {
    /// Rows of the cleaned set.
    pub kept: usize,
    /// Rows left out.
    pub dropped: usize,
    /// Rows with altered text.
    pub changed: usize,
    /// The log.
    pub log: PathBuf,
}

/// The file beside OUT that says what was done.
pub fn log_of(out: &Path) -> PathBuf {
    let mut name = out.as_os_str().to_owned();
    name.push(".changes.jsonl");
    name.into()
}

/// Whether OUT's ending fits DATA: rows become jsonl, plain text stays text.
///
/// # Errors
/// The ending that it needs.
pub fn fits(data: &Path, out: &Path) -> Result<(), DataError> {
    let wanted = if Format::of(data)? == Format::Txt { Format::Txt } else { Format::Jsonl };
    let plain = out.extension().is_some_and(|e| e != "gz" && e != "zst");
    if plain && Format::of(out).is_ok_and(|f| f == wanted) {
        return Ok(());
    }
    let ending = if wanted == Format::Txt { ".txt" } else { ".jsonl" };
    let reason = format!("--fix writes {ending}: give OUT that ending");
    Err(DataError::Format { path: out.to_owned(), reason })
}

/// Writes the rows that the report did not find unusable, their text repaired, and with `redact` without personal data.
/// Both files appear whole or not at all.
///
/// # Errors
/// A file that cannot be read again, or written.
pub fn write(check: &Check, report: &Report, out: &Path, redact: bool) -> anyhow::Result<Fixed> {
    let folder = out.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let file = || -> std::io::Result<_> { Ok(std::io::BufWriter::new(tempfile::NamedTempFile::new_in(folder)?)) };
    let (mut rows, mut log) = (file()?, file()?);
    let mut fixed = Fixed { kept: 0, dropped: 0, changed: 0, log: log_of(out) };
    let mut row = 0u32;
    let mut one = |line: usize, value: Option<Value>| -> anyhow::Result<()> {
        let dropped = report.dropped.get(&row);
        row += 1;
        let (Some(mut value), None) = (value, dropped) else {
            fixed.dropped += 1;
            let because = dropped.map_or("it cannot be read", String::as_str);
            writeln!(log, "{}", json!({"line": line, "action": "left out", "because": because}))?;
            return Ok(());
        };
        let mut done = Vec::new();
        alter(&mut value, "", redact, &mut done);
        for (field, what) in &done {
            writeln!(log, "{}", json!({"line": line, "action": "changed", "field": field, "because": what}))?;
        }
        fixed.changed += usize::from(!done.is_empty());
        fixed.kept += 1;
        match value {
            Value::String(text) => writeln!(rows, "{text}")?,
            value => writeln!(rows, "{value}")?,
        }
        Ok(())
    };
    if Format::of(check.path)? == Format::Txt {
        for line in formats::lines(check.path)? {
            let (line, text) = line?;
            one(line, Some(Value::String(text)))?;
        }
    } else {
        for record in Records::open(check.path)?.tolerant() {
            match record {
                Ok(Record { line, fields }) => one(line, Some(Value::Object(fields)))?,
                Err(DataError::Row { line, .. }) => one(line, None)?,
                Err(e) => return Err(e.into()),
            }
        }
    }
    for (file, place) in [(log, fixed.log.as_path()), (rows, out)] {
        let file = file.into_inner().map_err(|e| e.into_error())?;
        file.as_file().sync_all()?;
        publish(file, place)?;
    }
    Ok(fixed)
}

/// Gives a temporary file its name; it is as readable as any other file.
fn publish(file: tempfile::NamedTempFile, place: &Path) -> std::io::Result<()> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        file.as_file().set_permissions(std::fs::Permissions::from_mode(0o644))?;
    }
    file.persist(place).map(drop).map_err(|e| e.error)
}

/// Repairs every text of a row; `done` gets the field and what was done.
fn alter(value: &mut Value, field: &str, redact: bool, done: &mut Vec<(String, &'static str)>) {
    match value {
        Value::String(text) => {
            if let Some(right) = encoding::repair(text) {
                *text = right;
                done.push((field.to_owned(), "characters repaired"));
            }
            if redact && let Some(marked) = personal::redact(text) {
                *text = marked;
                done.push((field.to_owned(), "personal data replaced"));
            }
        }
        Value::Array(list) => list.iter_mut().for_each(|v| alter(v, field, redact, done)),
        Value::Object(fields) => {
            for (name, value) in fields {
                let at = if field.is_empty() { name.clone() } else { format!("{field}.{name}") };
                alter(value, &at, redact, done);
            }
        }
        _ => {}
    }
}
