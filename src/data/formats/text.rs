//! Plain text: the lines of a file, or the whole of it.

use super::stream::stream;
use super::{DataError, kind, not_utf8, read_error};
use std::io::{BufRead, Read};
use std::path::Path;

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

/// The lines of a `txt` that are not blank, with their numbers from 1, one at a time.
///
/// # Errors
/// As [`read_text`], while it is read.
pub fn lines(path: &Path) -> Result<impl Iterator<Item = Result<(usize, String), DataError>> + use<>, DataError> {
    let (_, packing) = kind(path)?;
    let (mut lines, path) = (Lines::new(stream(path, packing)?), path.to_owned());
    Ok(std::iter::from_fn(move || {
        loop {
            match lines.next(&path) {
                Ok(Some(text)) if text.trim().is_empty() => {}
                Ok(Some(text)) => return Some(Ok((lines.line, text.trim_end_matches(['\n', '\r']).to_owned()))),
                Ok(None) => return None,
                Err(e) => return Some(Err(e)),
            }
        }
    }))
}

fn lines_in(bytes: &[u8]) -> usize {
    bytes.iter().filter(|b| **b == b'\n').count()
}

/// The lines of a file, one at a time.
pub struct Lines {
    reader: Box<dyn BufRead>,
    /// Lines read so far.
    pub line: usize,
}

impl Lines {
    pub fn new(reader: Box<dyn BufRead>) -> Self {
        Self { reader, line: 0 }
    }

    /// The next line with its end; none behind the last.
    pub fn next(&mut self, path: &Path) -> Result<Option<String>, DataError> {
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
