//! The bytes of a file, unpacked on the way.

use super::{DataError, read_error};
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

/// How a file is packed, by the end of its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packing {
    None,
    Gzip,
    Zstd,
}

/// The file's bytes, unpacked, without a byte order mark.
pub fn stream(path: &Path, packing: Packing) -> Result<Box<dyn BufRead>, DataError> {
    let cannot = |e: std::io::Error| DataError::Open { path: path.to_owned(), reason: e.to_string() };
    let file = BufReader::with_capacity(1 << 16, File::open(path).map_err(cannot)?);
    let mut reader: Box<dyn BufRead> = match packing {
        Packing::None => Box::new(file),
        Packing::Gzip => Box::new(BufReader::new(flate2::bufread::MultiGzDecoder::new(file))),
        Packing::Zstd => Box::new(BufReader::new(zstd::Decoder::with_buffer(file).map_err(cannot)?)),
    };
    let first = reader.fill_buf().map_err(|e| read_error(path, 0, &e))?;
    if first.starts_with(b"\xff\xfe") || first.starts_with(b"\xfe\xff") {
        let reason = "it is UTF-16; convert it first: iconv -f utf-16 -t utf-8 IN > OUT".to_owned();
        return Err(DataError::Format { path: path.to_owned(), reason });
    }
    if first.starts_with(b"\xef\xbb\xbf") {
        reader.consume(3);
    }
    Ok(reader)
}
