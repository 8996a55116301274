//! Parquet: rows of named fields, nested ones as JSON. Every compression that Arrow writes is read.

use super::DataError;
use parquet::file::reader::FileReader;
use parquet::file::serialized_reader::SerializedFileReader;
use parquet::record::reader::RowIter;
use parquet::record::{Field, Row};
use serde_json::{Map, Number, Value, json};
use std::fs::File;
use std::path::Path;

/// The rows of a file, one at a time.
pub struct Rows {
    rows: RowIter<'static>,
    /// Rows read so far: what stands for a line.
    pub row: usize,
}

/// What to do with a file that is not read.
const WAY_OUT: &str = "convert it first: \
    python -c \"import pandas; pandas.read_parquet('data.parquet').to_json('data.jsonl', orient='records', lines=True)\"";

impl Rows {
    /// # Errors
    /// A file that is not there, no parquet, or packed in a way that is not read.
    pub fn open(path: &Path) -> Result<Self, DataError> {
        let refuse = |reason: String| DataError::Format { path: path.to_owned(), reason };
        let file = File::open(path).map_err(|e| DataError::Open { path: path.to_owned(), reason: e.to_string() })?;
        let reader = guarded(|| SerializedFileReader::new(file))
            .and_then(|opened| opened.map_err(|e| e.to_string()))
            .map_err(|e| refuse(format!("no parquet file that can be read ({e}); {WAY_OUT}")))?;
        let metadata = reader.metadata();
        use parquet::basic::Compression::{BROTLI, GZIP, LZ4, LZ4_RAW, SNAPPY, UNCOMPRESSED, ZSTD};
        for group in metadata.row_groups() {
            for column in group.columns() {
                let packing = column.compression();
                if !matches!(packing, UNCOMPRESSED | SNAPPY | GZIP(_) | BROTLI(_) | LZ4 | LZ4_RAW | ZSTD(_)) {
                    let name = column.column_path().string();
                    return Err(refuse(format!(
                        "column `{name}` is packed with {packing:?}, which is not read; {WAY_OUT}"
                    )));
                }
            }
        }
        Ok(Self { rows: reader.into_iter(), row: 0 })
    }

    /// The next row.
    ///
    /// # Errors
    /// A page that is not what its header says.
    pub fn next(&mut self, path: &Path) -> Result<Option<Map<String, Value>>, DataError> {
        let damaged = |reason: String| DataError::Read { path: path.to_owned(), line: self.row, reason, system: false };
        // The crate asserts some of what a page claims; the command's panic hook keeps silent about it.
        let Some(row) = guarded(|| self.rows.next()).map_err(&damaged)? else { return Ok(None) };
        let row = row.map_err(|e| damaged(e.to_string()))?;
        self.row += 1;
        Ok(Some(object(&row)))
    }
}

/// Runs a part of the crate: what it panics over becomes an error, and nothing of it is used again.
fn guarded<T>(part: impl FnOnce() -> T) -> Result<T, String> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(part))
        .map_err(|_| "its pages contradict one another".to_owned())
}

fn object(row: &Row) -> Map<String, Value> {
    row.get_column_iter().map(|(name, field)| (name.clone(), value(field))).collect()
}

fn value(field: &Field) -> Value {
    let real = |v: f64| Number::from_f64(v).map_or(Value::Null, Value::Number);
    match field {
        Field::Null => Value::Null,
        Field::Bool(v) => json!(v),
        Field::Byte(v) => json!(v),
        Field::Short(v) => json!(v),
        Field::Int(v) | Field::Date(v) | Field::TimeMillis(v) => json!(v),
        Field::Long(v) | Field::TimeMicros(v) | Field::TimestampMillis(v) | Field::TimestampMicros(v) => json!(v),
        Field::UByte(v) => json!(v),
        Field::UShort(v) => json!(v),
        Field::UInt(v) => json!(v),
        Field::ULong(v) => json!(v),
        Field::Float16(v) => real(f64::from(*v)),
        Field::Float(v) => real(f64::from(*v)),
        Field::Double(v) => real(*v),
        Field::Str(v) => json!(v),
        Field::Bytes(v) => json!(String::from_utf8_lossy(v.data())),
        Field::Group(row) => object(row).into(),
        Field::ListInternal(list) => list.elements().iter().map(value).collect(),
        Field::MapInternal(map) => map
            .entries()
            .iter()
            .map(|(k, v)| (k.to_string().trim_matches('"').to_owned(), value(v)))
            .collect::<Map<_, _>>()
            .into(),
        other => json!(other.to_string()), // a decimal, as it is printed
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Record, Records};
    use std::path::PathBuf;

    fn write(bytes: &[u8]) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("d.parquet");
        std::fs::write(&path, bytes).unwrap();
        (dir, path)
    }

    /// Four rows that pyarrow wrote, in two groups: see tests/fixtures/README.md.
    const PARQUET: &[u8] = include_bytes!("../../../tests/fixtures/rows.parquet");

    #[test]
    fn parquet_rows_are_those_that_pyarrow_wrote() {
        let packed: [(&str, &[u8]); 5] = [
            ("snappy", PARQUET),
            ("gzip", include_bytes!("../../../tests/fixtures/rows_gzip.parquet")),
            ("zstd", include_bytes!("../../../tests/fixtures/rows_zstd.parquet")),
            ("brotli", include_bytes!("../../../tests/fixtures/rows_brotli.parquet")),
            ("lz4", include_bytes!("../../../tests/fixtures/rows_lz4.parquet")),
        ];
        for (name, bytes) in packed {
            let (_dir, path) = write(bytes);
            let rows: Vec<Record> = Records::open(&path).unwrap().map(|r| r.unwrap()).collect();
            let line = |r: &Record| (r.line, serde_json::to_string(&r.fields).unwrap());
            let want = [
                r#"{"text":"good é","label":1,"score":0.5,"answers":{"text":["é"],"answer_start":[5]},"messages":[{"role":"user","content":"hi"}]}"#,
                r#"{"text":"line\nbreak","label":0,"score":-2.25,"answers":{"text":[],"answer_start":[]},"messages":[]}"#,
                r#"{"text":null,"label":2,"score":null,"answers":null,"messages":null}"#,
                r#"{"text":"last","label":9007199254740993,"score":1e+300,"answers":{"text":["a","b"],"answer_start":[0,1]},"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b"}]}"#,
            ];
            let want: Vec<(usize, String)> = want.iter().zip(1..).map(|(w, i)| (i, (*w).to_owned())).collect();
            assert_eq!(rows.iter().map(line).collect::<Vec<_>>(), want, "{name}");
        }
    }

    #[test]
    fn a_damaged_parquet_is_an_error_and_no_panic() {
        for at in (0..PARQUET.len()).step_by(7) {
            for bit in [0x01, 0x80] {
                let mut bytes = PARQUET.to_vec();
                bytes[at] ^= bit;
                let (_dir, path) = write(&bytes);
                if let Ok(rows) = Records::open(&path) {
                    assert!(rows.count() <= 1000, "{at}");
                }
            }
        }
    }

    #[test]
    fn what_is_not_read_is_refused_with_the_way_out() {
        // At last the footer says of each column its path, then its codec, an enum: SNAPPY is 1, LZO 3, and thrift doubles them.
        let (snappy, lzo) = (b"\x04text\x15\x02", b"\x04text\x15\x06");
        let at = PARQUET.windows(snappy.len()).rposition(|w| w == snappy).unwrap();
        let packed = [&PARQUET[..at], lzo, &PARQUET[at + lzo.len()..]].concat();
        for (bytes, why) in
            [(&PARQUET[..700], "no parquet file that can be read"), (&packed[..], "column `text` is packed with LZO")]
        {
            let (_dir, path) = write(bytes);
            let error = Records::open(&path).err().unwrap().to_string();
            assert!(error.contains(why) && error.contains("convert it first"), "{error}");
        }
    }
}
