//! JSON text as one object after another: an array of them, or a sequence.

use super::{DataError, read_error};
use std::io::BufRead;
use std::path::Path;

/// Splits a JSON array of objects (or objects one after another) into the bytes of each, without holding the whole.
pub struct Objects {
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
    pub fn new(reader: Box<dyn BufRead>) -> Self {
        Self { reader, line: 1, state: Top::Start }
    }

    /// The next object's first line and bytes; none at the end.
    pub fn next(&mut self, path: &Path) -> Result<Option<(usize, Vec<u8>)>, DataError> {
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
                (Top::AfterElement, _) => {
                    return Err(row(self.line, "not valid JSON: `,` or `]` is missing before this"));
                }
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
