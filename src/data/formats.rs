//! Files → rows of named fields. The ending of the name says the format; `.gz` and `.zst` are opened on the way.
//!
//! Rows are read one at a time; only a `txt` is read whole.
//!
//! - [`stream`]: a file → its bytes, unpacked; [`text`]: its lines, or the whole of it
//! - [`objects`]: JSON text → the bytes of one object after another; [`parquet`]: columns → rows

mod objects;
mod parquet;
mod stream;
mod text;

use super::DataError;
use objects::Objects;
use serde_json::{Map, Value};
use std::io::BufRead;
use std::path::{Path, PathBuf};
use stream::{Packing, stream};
use text::Lines;

pub use text::{lines, read_text};

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
    /// Columns, as the hub keeps its datasets.
    Parquet,
    /// Plain text, one document.
    Txt,
    /// Pre-tokenized safetensors, see [`super::tokens`].
    Tokens,
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
    if path.is_dir() {
        return Err(DataError::Open { path: path.to_owned(), reason: "it is a folder; DATA is one file".into() });
    }
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
        Some("parquet") if packing == Packing::None => Format::Parquet,
        _ => {
            return refuse(
                "the ending of its name says no format; DATA is .jsonl, .json, .csv, .tsv or .txt, \
                 possibly with .gz or .zst behind it, .parquet, or pre-tokenized .safetensors"
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
    /// Whether to go on behind a row that cannot be read.
    tolerant: bool,
    /// Whether the file's own structure is lost, so that nothing behind can be read.
    lost: bool,
}

enum Reader {
    Lines(Lines),
    Objects(Objects),
    Parquet(Box<parquet::Rows>),
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
            Format::Parquet => Reader::Parquet(Box::new(parquet::Rows::open(path)?)),
            Format::Csv | Format::Tsv => table(path, stream(path, packing)?, format == Format::Tsv)?,
            Format::Txt | Format::Tokens => {
                let reason = "has no named fields: it holds plain text or tokens; give a .jsonl, .json, .csv or .tsv";
                return Err(DataError::Format { path: path.to_owned(), reason: reason.into() });
            }
        };
        Ok(Self { path: path.to_owned(), reader, any: false, done: false, tolerant: false, lost: false })
    }

    /// Goes on behind a row that cannot be read, where the file's structure says where the next one begins.
    pub fn tolerant(self) -> Self {
        Self { tolerant: true, ..self }
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
                let next = objects.next(path).inspect_err(|_| self.lost = true)?;
                let Some((line, bytes)) = next else { return Ok(None) };
                let value = serde_json::from_slice(&bytes).map_err(|e| {
                    row(line + e.line().saturating_sub(1), format!("not valid JSON: {}", json_reason(&e)))
                })?;
                object(value).map(|fields| Some(Record { line, fields })).map_err(|r| row(line, r))
            }
            Reader::Parquet(rows) => {
                let next = rows.next(path).inspect_err(|_| self.lost = true)?;
                Ok(next.map(|fields| Record { line: rows.row, fields }))
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
        let goes_on = self.tolerant && !self.lost && matches!(next, Err(DataError::Row { .. }));
        self.done = !matches!(next, Ok(Some(_))) && !goes_on;
        match next {
            Ok(None) if !self.any => Some(Err(DataError::Empty { path: self.path.clone() })),
            Ok(None) => None,
            Ok(Some(record)) => {
                self.any = true;
                Some(Ok(record))
            }
            Err(e) => {
                self.any = true;
                Some(Err(e))
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
    DataError::Read { path: path.to_owned(), line, reason: e.to_string(), system: e.raw_os_error().is_some() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn write(name: &str, bytes: &[u8]) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        (dir, path)
    }

    /// (line, value of field `a`) of every row.
    fn rows(name: &str, bytes: &[u8]) -> Vec<(usize, String)> {
        let (_dir, path) = write(name, bytes);
        Records::open(&path)
            .unwrap()
            .map(|r| r.unwrap())
            .map(|r| (r.line, r.fields["a"].as_str().map_or_else(|| r.fields["a"].to_string(), str::to_owned)))
            .collect()
    }

    #[test]
    fn a_tolerant_reader_goes_on_behind_rows_that_cannot_be_read() {
        for (name, text, want) in [
            ("d.jsonl", "{\"a\": 1}\n{\"a\": \n\n[]\n{\"a\": 2}\n", vec![Ok(1), Err(2), Err(4), Ok(5)]),
            ("d.csv", "a,b\n1,2\n1\n1,2,3\n3,4\n", vec![Ok(2), Err(3), Err(4), Ok(5)]),
            ("d.json", "[{\"a\": 1},\n{\"a\": x},\n{\"a\": 2}]", vec![Ok(1), Err(2), Ok(3)]),
            ("d.json", "[{\"a\": 1},\n 7,\n{\"a\": 2}]", vec![Ok(1), Err(2)]), // where the next begins is not known
        ] {
            let (_dir, path) = write(name, text.as_bytes());
            let rows = Records::open(&path).unwrap().tolerant().map(|r| match r {
                Ok(r) => Ok(r.line),
                Err(DataError::Row { line, .. }) => Err(line),
                Err(e) => panic!("{e}"),
            });
            assert_eq!(rows.collect::<Vec<_>>(), want, "{text}");
        }
    }

    #[test]
    fn utf_16_is_refused_with_the_way_out() {
        let bytes: Vec<u8> = "\u{feff}{\"a\": 1}\n".encode_utf16().flat_map(u16::to_le_bytes).collect();
        for (name, bytes) in [("d.jsonl", bytes.clone()), ("d.txt", bytes)] {
            let (_dir, path) = write(name, &bytes);
            let read = || -> Result<(), DataError> {
                if name.ends_with("txt") { read_text(&path).map(drop) } else { Records::open(&path).map(drop) }
            };
            assert!(read().unwrap_err().to_string().contains("iconv -f utf-16 -t utf-8"), "{name}");
        }
    }

    #[track_caller]
    fn refuses(name: &str, bytes: &[u8], because: &str) {
        let (_dir, path) = write(name, bytes);
        let error =
            Records::open(&path).and_then(|mut rows| rows.try_for_each(|r| r.map(drop))).unwrap_err().to_string();
        let error = error.rsplit_once('/').map_or(error.as_str(), |(_, e)| e);
        assert!(error.starts_with(because), "{error}");
    }

    fn gz(bytes: &[u8]) -> Vec<u8> {
        let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        out.write_all(bytes).unwrap();
        out.finish().unwrap()
    }

    fn zst(bytes: &[u8]) -> Vec<u8> {
        zstd::encode_all(bytes, 1).unwrap()
    }

    const TWO: &[u8] = b"{\"a\": \"x\"}\n\n{\"a\": \"y\"}";

    fn two() -> Vec<(usize, String)> {
        vec![(1, "x".into()), (3, "y".into())]
    }

    #[test]
    fn jsonl_skips_empty_lines_and_counts_them() {
        assert_eq!(rows("d.jsonl", TWO), two());
        assert_eq!(rows("d.jsonl", &[b"\xef\xbb\xbf", TWO].concat()), two());
        assert_eq!(rows("d.ndjson", &String::from_utf8_lossy(TWO).replace('\n', "\r\n").into_bytes()), two());
    }

    #[test]
    fn packed_files_are_opened_on_the_way_whatever_the_number_of_members() {
        let (head, tail) = TWO.split_at(14);
        assert_eq!(rows("d.jsonl.gz", &gz(TWO)), two());
        assert_eq!(rows("d.jsonl.gz", &[gz(head), gz(tail)].concat()), two());
        assert_eq!(rows("d.JSONL.ZST", &zst(TWO)), two());
        assert_eq!(rows("d.jsonl.zst", &[zst(head), zst(tail)].concat()), two());
    }

    #[test]
    fn json_is_an_array_or_objects_one_after_another() {
        assert_eq!(
            rows("d.json", b"[{\"a\": \"}\\\"]\"},\n {\"a\": [{}]}\n]\n"),
            [(1, "}\"]".into()), (2, "[{}]".into())]
        );
        assert_eq!(rows("d.json", TWO), two());
    }

    #[test]
    fn csv_keeps_line_breaks_inside_quotes() {
        let text = b"a,b\n\"x, \"\"y\"\"\nz\",1\nw,2\n";
        assert_eq!(rows("d.csv", text), [(2, "x, \"y\"\nz".into()), (4, "w".into())]);
        assert_eq!(rows("d.tsv", b"b\ta\n1\tx, y\n"), [(2, "x, y".into())]);
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line() {
        refuses(
            "d.jsonl",
            b"{\"a\": 1}\n{\"a\": 1\n",
            "d.jsonl:2: not valid JSON: EOF while parsing an object, column",
        );
        refuses("d.jsonl", b"{\"a\": 1}\n[1]\n", "d.jsonl:2: a row is an object with named fields, not a list");
        refuses("d.jsonl", b"{\"a\": 1}\n{\"a\": \"\xff\"}\n", "d.jsonl:2: not UTF-8 after 7 bytes; convert");
        refuses("d.jsonl", b"\n \n", "d.jsonl: no rows in it");
        refuses("d.json", b"[{\"a\": 1},\n{\"a\": }]", "d.json:2: not valid JSON: expected value, column");
        refuses("d.json", b"[{\"a\": 1}\n{\"a\": 2}]", "d.json:2: not valid JSON: `,` or `]` is missing before this");
        refuses("d.json", b"[{\"a\": 1}\n", "d.json:2: not valid JSON: the file ends inside the array");
        refuses("d.json", b"[\n{\"a\": 1", "d.json:2: not valid JSON: the file ends inside this object");
        refuses("d.json", b"7", "d.json:1: not valid JSON: expected an array of objects");
        refuses("d.json", b"[{}]]", "d.json:1: not valid JSON: expected an array of objects");
        refuses("d.csv", b"a,b\n1,2\n3\n", "d.csv:3: 1 fields, but the header names 2; a comma inside");
        refuses("d.csv", b"a,a\n1,2\n", "d.csv:1: the header names `a` twice");
        refuses("d.csv", b"a\n1\n\xff\n", "d.csv:3: not UTF-8");
        refuses("d.csv", b"a,b\n", "d.csv: no rows in it");
        refuses("d.csv", b"", "d.csv: no rows in it");
        refuses("d.parquet", b"PAR1", "d.parquet: no parquet file that can be read (");
        refuses("d.xlsx", b"", "d.xlsx: the ending of its name says no format");
        refuses("d.txt", b"words", "d.txt: has no named fields");
        refuses("d.jsonl.gz", &gz(TWO)[..20], "d.jsonl.gz: cannot be read to its end");
        refuses("d.jsonl.gz", TWO, "d.jsonl.gz: cannot be read to its end after line 0: invalid gzip header");
        refuses("d.jsonl.zst", &zst(TWO)[..12], "d.jsonl.zst: cannot be read to its end");
    }

    #[test]
    fn a_missing_file_and_a_folder_say_so() {
        let error = Records::open(Path::new("nowhere/d.jsonl")).err().unwrap().to_string();
        assert!(error.starts_with("cannot open nowhere/d.jsonl: "), "{error}");
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("d.jsonl");
        std::fs::create_dir(&folder).unwrap();
        assert!(Records::open(&folder).err().unwrap().to_string().ends_with("it is a folder; DATA is one file"));
    }

    #[test]
    fn text_is_read_whole() {
        let (_dir, path) = write("d.txt.gz", &gz("one\ntwo é\n".as_bytes()));
        assert_eq!(read_text(&path).unwrap(), "one\ntwo é\n");
        let (_dir, path) = write("d.txt", b"one\ntw\xffo\n");
        assert!(read_text(&path).unwrap_err().to_string().contains("d.txt:2: not UTF-8 after 6 bytes"));
        let (_dir, path) = write("d.txt", b" \n");
        assert!(matches!(read_text(&path), Err(DataError::Empty { .. })));
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_it_panic_or_go_on_for_ever(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200), which in 0usize..6) {
            let name = ["d.jsonl", "d.json", "d.csv", "d.tsv", "d.jsonl.gz", "d.json.zst"][which];
            let (_dir, path) = write(name, &bytes);
            if let Ok(rows) = Records::open(&path) {
                proptest::prop_assert!(rows.count() <= bytes.len() + 1);
            }
        }
    }
}
