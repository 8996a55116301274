//! Files → rows of named fields. The ending of the name says the format; `.gz` and `.zst` are opened on the way.
//!
//! Rows are read one at a time; only a `txt` is read whole.

use super::DataError;
use serde_json::{Map, Value};
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

/// What a file is, by the ending of its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// A JSON object a line.
    Jsonl,
    /// An array of objects (or, as some hubs name it, a jsonl).
    Json,
    /// Comma-separated, with a header; quoted fields may hold line breaks.
    Csv,
    /// The same with tabs.
    Tsv,
    /// Plain text, one document.
    Txt,
    /// Pre-tokenized safetensors, see [`super::tokens`].
    Tokens,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Packing {
    None,
    Gzip,
    Zstd,
}

impl Format {
    /// # Errors
    /// [`DataError::Format`] for an ending that is not read, with what to do about it.
    pub fn of(path: &Path) -> Result<Self, DataError> {
        Ok(kind(path)?.0)
    }
}

fn kind(path: &Path) -> Result<(Format, Packing), DataError> {
    let refuse = |reason: String| Err(DataError::Format { path: path.to_owned(), reason });
    let mut name = path.file_name().map(|n| n.to_string_lossy().to_lowercase()).unwrap_or_default();
    let mut packing = Packing::None;
    for (ending, is) in [(".gz", Packing::Gzip), (".zst", Packing::Zstd)] {
        if let Some(inner) = name.strip_suffix(ending) {
            (name, packing) = (inner.to_owned(), is);
            break;
        }
    }
    let format = match name.rsplit_once('.').map(|(_, ending)| ending) {
        Some("jsonl" | "ndjson") => Format::Jsonl,
        Some("json") => Format::Json,
        Some("csv") => Format::Csv,
        Some("tsv") => Format::Tsv,
        Some("txt" | "text" | "raw") => Format::Txt,
        Some("safetensors") if packing == Packing::None => Format::Tokens,
        Some("parquet") => {
            return refuse(
                "parquet is not read yet; convert it first: \
                 python -c \"import pandas; pandas.read_parquet('data.parquet').to_json('data.jsonl', orient='records', lines=True)\""
                    .into(),
            );
        }
        _ => {
            return refuse(
                "the ending of its name says no format; DATA is .jsonl, .json, .csv, .tsv or .txt, \
                 possibly with .gz or .zst behind it, or pre-tokenized .safetensors"
                    .into(),
            );
        }
    };
    Ok((format, packing))
}

/// One row: named fields in the order of the file.
#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    /// Line of the file where the row begins, from 1.
    pub line: usize,
    /// Its fields; those of csv and tsv are strings.
    pub fields: Map<String, Value>,
}

/// The rows of a file, one at a time.
pub struct Records {
    path: PathBuf,
    reader: Reader,
    any: bool,
    done: bool,
}

enum Reader {
    Lines(Lines),
    Objects(Objects),
    Table { names: Vec<String>, reader: Box<csv::Reader<Box<dyn BufRead>>>, tabs: bool },
}

impl Records {
    /// Opens a file of rows.
    ///
    /// # Errors
    /// [`DataError::Open`], [`DataError::Format`] (a `txt` and a `safetensors` have no fields), or a header that cannot be.
    pub fn open(path: &Path) -> Result<Self, DataError> {
        let (format, packing) = kind(path)?;
        let reader = match format {
            Format::Jsonl => Reader::Lines(Lines::new(stream(path, packing)?)),
            Format::Json => Reader::Objects(Objects::new(stream(path, packing)?)),
            Format::Csv | Format::Tsv => table(path, stream(path, packing)?, format == Format::Tsv)?,
            Format::Txt | Format::Tokens => {
                let reason = "has no named fields: it holds plain text or tokens; give a .jsonl, .json, .csv or .tsv";
                return Err(DataError::Format { path: path.to_owned(), reason: reason.into() });
            }
        };
        Ok(Self { path: path.to_owned(), reader, any: false, done: false })
    }

    fn read(&mut self) -> Result<Option<Record>, DataError> {
        let path = &self.path;
        let row = |line, reason| DataError::Row { path: path.clone(), line, reason };
        match &mut self.reader {
            Reader::Lines(lines) => loop {
                let Some(text) = lines.next(path)? else { return Ok(None) };
                if text.trim().is_empty() {
                    continue;
                }
                let line = lines.line;
                let value = serde_json::from_str(&text).map_err(|e| {
                    row(line, format!("not valid JSON: {}; a jsonl holds one object a line", json_reason(&e)))
                })?;
                return object(value).map(|fields| Some(Record { line, fields })).map_err(|r| row(line, r));
            },
            Reader::Objects(objects) => {
                let Some((line, bytes)) = objects.next(path)? else { return Ok(None) };
                let value = serde_json::from_slice(&bytes).map_err(|e| {
                    row(line + e.line().saturating_sub(1), format!("not valid JSON: {}", json_reason(&e)))
                })?;
                object(value).map(|fields| Some(Record { line, fields })).map_err(|r| row(line, r))
            }
            Reader::Table { names, reader, tabs } => {
                let mut record = csv::StringRecord::new();
                if !reader.read_record(&mut record).map_err(|e| table_error(path, &e, *tabs))? {
                    return Ok(None);
                }
                let line = record.position().map_or(0, |p| p.line() as usize);
                let fields = names.iter().zip(&record).map(|(n, v)| (n.clone(), Value::from(v))).collect();
                Ok(Some(Record { line, fields }))
            }
        }
    }
}

impl Iterator for Records {
    type Item = Result<Record, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        let next = self.read();
        self.done = !matches!(next, Ok(Some(_)));
        match next {
            Ok(None) if !self.any => Some(Err(DataError::Empty { path: self.path.clone() })),
            Ok(None) => None,
            Ok(Some(record)) => {
                self.any = true;
                Some(Ok(record))
            }
            Err(e) => Some(Err(e)),
        }
    }
}

/// The whole text of a `txt`.
///
/// # Errors
/// [`DataError::Empty`] when it holds nothing but blanks, and a row error at the first byte that is not UTF-8.
pub fn read_text(path: &Path) -> Result<String, DataError> {
    let (_, packing) = kind(path)?;
    let mut bytes = Vec::new();
    stream(path, packing)?.read_to_end(&mut bytes).map_err(|e| read_error(path, lines_in(&bytes), &e))?;
    let text = String::from_utf8(bytes).map_err(|e| {
        let at = e.utf8_error().valid_up_to();
        not_utf8(path, lines_in(&e.as_bytes()[..at]) + 1, at)
    })?;
    match text.trim().is_empty() {
        true => Err(DataError::Empty { path: path.to_owned() }),
        false => Ok(text),
    }
}

fn lines_in(bytes: &[u8]) -> usize {
    bytes.iter().filter(|b| **b == b'\n').count()
}

/// The file's bytes, unpacked, without a byte order mark.
fn stream(path: &Path, packing: Packing) -> Result<Box<dyn BufRead>, DataError> {
    let cannot = |e: std::io::Error| DataError::Open { path: path.to_owned(), reason: e.to_string() };
    if path.is_dir() {
        return Err(DataError::Open { path: path.to_owned(), reason: "it is a folder; DATA is one file".into() });
    }
    let file = BufReader::with_capacity(1 << 16, File::open(path).map_err(cannot)?);
    let mut reader: Box<dyn BufRead> = match packing {
        Packing::None => Box::new(file),
        Packing::Gzip => Box::new(BufReader::new(flate2::bufread::MultiGzDecoder::new(file))),
        Packing::Zstd => Box::new(BufReader::new(ZstdFrames { state: Some(Zstd::Between(file)) })),
    };
    if reader.fill_buf().map_err(|e| read_error(path, 0, &e))?.starts_with(b"\xef\xbb\xbf") {
        reader.consume(3);
    }
    Ok(reader)
}

/// A zstd file is any number of frames, one after another.
struct ZstdFrames {
    state: Option<Zstd>,
}

enum Zstd {
    Between(BufReader<File>),
    Inside(Box<ruzstd::decoding::StreamingDecoder<BufReader<File>, ruzstd::decoding::FrameDecoder>>),
}

impl Read for ZstdFrames {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        loop {
            match self.state.take() {
                None => return Ok(0),
                Some(Zstd::Between(mut file)) => {
                    if file.fill_buf()?.is_empty() {
                        return Ok(0);
                    }
                    let decoder = ruzstd::decoding::StreamingDecoder::new(file).map_err(std::io::Error::other)?;
                    self.state = Some(Zstd::Inside(Box::new(decoder)));
                }
                Some(Zstd::Inside(mut decoder)) => match decoder.read(out)? {
                    0 if !out.is_empty() => self.state = Some(Zstd::Between(decoder.into_inner())),
                    n => {
                        self.state = Some(Zstd::Inside(decoder));
                        return Ok(n);
                    }
                },
            }
        }
    }
}

struct Lines {
    reader: Box<dyn BufRead>,
    line: usize,
}

impl Lines {
    fn new(reader: Box<dyn BufRead>) -> Self {
        Self { reader, line: 0 }
    }

    fn next(&mut self, path: &Path) -> Result<Option<String>, DataError> {
        let mut bytes = Vec::new();
        if self.reader.read_until(b'\n', &mut bytes).map_err(|e| read_error(path, self.line, &e))? == 0 {
            return Ok(None);
        }
        self.line += 1;
        match String::from_utf8(bytes) {
            Ok(text) => Ok(Some(text)),
            Err(e) => Err(not_utf8(path, self.line, e.utf8_error().valid_up_to())),
        }
    }
}

/// Splits a JSON array of objects (or objects one after another) into the bytes of each, without holding the whole.
struct Objects {
    reader: Box<dyn BufRead>,
    line: usize,
    /// What may come next at the top level.
    state: Top,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Top {
    Start,
    First,
    AfterElement,
    Element,
    Sequence,
    End,
}

impl Objects {
    fn new(reader: Box<dyn BufRead>) -> Self {
        Self { reader, line: 1, state: Top::Start }
    }

    fn next(&mut self, path: &Path) -> Result<Option<(usize, Vec<u8>)>, DataError> {
        let row = |line, reason: &str| DataError::Row { path: path.to_owned(), line, reason: reason.to_owned() };
        let stray = "not valid JSON: expected an array of objects, like [{...}, {...}]";
        loop {
            let Some(byte) = self.peek(path)? else {
                return match self.state {
                    Top::Start | Top::Sequence | Top::End => Ok(None),
                    _ => Err(row(self.line, "not valid JSON: the file ends inside the array; its last `]` is missing")),
                };
            };
            self.state = match (self.state, byte) {
                (_, b' ' | b'\t' | b'\r') => self.state,
                (_, b'\n') => {
                    self.line += 1;
                    self.state
                }
                (Top::Start, b'[') => Top::First,
                (Top::First | Top::AfterElement, b']') => Top::End,
                (Top::AfterElement, b',') => Top::Element,
                (Top::AfterElement, _) => return Err(row(self.line, "not valid JSON: `,` or `]` is missing before this")),
                (Top::First | Top::Element, b'{') => {
                    let object = self.object(path)?;
                    self.state = Top::AfterElement;
                    return Ok(Some(object));
                }
                (Top::Start | Top::Sequence, b'{') => {
                    let object = self.object(path)?;
                    self.state = Top::Sequence;
                    return Ok(Some(object));
                }
                _ => return Err(row(self.line, stray)),
            };
            self.reader.consume(1);
        }
    }

    fn peek(&mut self, path: &Path) -> Result<Option<u8>, DataError> {
        let line = self.line - 1;
        Ok(self.reader.fill_buf().map_err(|e| read_error(path, line, &e))?.first().copied())
    }

    /// From `{` to the `}` that closes it.
    fn object(&mut self, path: &Path) -> Result<(usize, Vec<u8>), DataError> {
        let (start, mut bytes) = (self.line, Vec::new());
        let (mut depth, mut quoted, mut escaped) = (0usize, false, false);
        loop {
            let buffer = self.reader.fill_buf().map_err(|e| read_error(path, self.line - 1, &e))?;
            if buffer.is_empty() {
                let reason = "not valid JSON: the file ends inside this object".to_owned();
                return Err(DataError::Row { path: path.to_owned(), line: start, reason });
            }
            let mut used = 0;
            for byte in buffer {
                used += 1;
                self.line += usize::from(*byte == b'\n');
                match (quoted, *byte) {
                    (true, _) if escaped => escaped = false,
                    (true, b'\\') => escaped = true,
                    (_, b'"') => quoted = !quoted,
                    (false, b'{' | b'[') => depth += 1,
                    (false, b'}' | b']') => depth -= 1,
                    _ => {}
                }
                if depth == 0 {
                    break;
                }
            }
            bytes.extend_from_slice(&buffer[..used]);
            self.reader.consume(used);
            if depth == 0 {
                return Ok((start, bytes));
            }
        }
    }
}

fn table(path: &Path, reader: Box<dyn BufRead>, tabs: bool) -> Result<Reader, DataError> {
    let delimiter = if tabs { b'\t' } else { b',' };
    let mut reader = csv::ReaderBuilder::new().delimiter(delimiter).from_reader(reader);
    let names: Vec<String> =
        reader.headers().map_err(|e| table_error(path, &e, tabs))?.iter().map(|n| n.trim().to_owned()).collect();
    for (i, name) in names.iter().enumerate() {
        if !name.is_empty() && names[..i].contains(name) {
            let reason = format!("the header names `{name}` twice; rename one of the columns");
            return Err(DataError::Row { path: path.to_owned(), line: 1, reason });
        }
    }
    Ok(Reader::Table { names, reader: Box::new(reader), tabs })
}

fn table_error(path: &Path, e: &csv::Error, tabs: bool) -> DataError {
    let line = e.position().map_or(1, |p| p.line() as usize);
    let reason = match e.kind() {
        csv::ErrorKind::Utf8 { .. } => return not_utf8(path, line, 0),
        csv::ErrorKind::Io(e) => return read_error(path, line, e),
        csv::ErrorKind::UnequalLengths { expected_len, len, .. } => format!(
            "{len} fields, but the header names {expected_len}; {} inside a field needs quotes around it, \
             and a quote inside a quoted field is doubled",
            if tabs { "a tab" } else { "a comma" }
        ),
        _ => e.to_string(),
    };
    DataError::Row { path: path.to_owned(), line, reason }
}

fn object(value: Value) -> Result<Map<String, Value>, String> {
    match value {
        Value::Object(fields) => Ok(fields),
        other => Err(format!("a row is an object with named fields, not {}", type_name(&other))),
    }
}

/// What a JSON value is, in words.
pub(super) fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// serde's message with the column alone: the line is named already.
fn json_reason(e: &serde_json::Error) -> String {
    let text = e.to_string();
    match text.rsplit_once(" at line ") {
        Some((what, _)) => format!("{what}, column {}", e.column()),
        None => text,
    }
}

fn not_utf8(path: &Path, line: usize, byte: usize) -> DataError {
    let place = if byte > 0 { format!(" after {byte} bytes") } else { String::new() };
    let reason = format!("not UTF-8{place}; convert the file first, for example with `iconv -f latin1 -t utf-8`");
    DataError::Row { path: path.to_owned(), line, reason }
}

fn read_error(path: &Path, line: usize, e: &std::io::Error) -> DataError {
    DataError::Read { path: path.to_owned(), line, reason: e.to_string() }
}
