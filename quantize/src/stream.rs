//! A stream with a count and a hash of what went through.

use crate::error::{Error, Result};
use sha2::{Digest, Sha256};
use std::io::Write;

pub(crate) struct Hashed<'a> {
    out: &'a mut dyn Write,
    hash: Sha256,
    /// So far.
    pub bytes: u64,
}

impl<'a> Hashed<'a> {
    pub fn new(out: &'a mut dyn Write) -> Self {
        Self { out, hash: Sha256::new(), bytes: 0 }
    }

    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.out.write_all(bytes).map_err(Error::Write)?;
        self.hash.update(bytes);
        self.bytes += bytes.len() as u64;
        Ok(())
    }

    /// Zeros up to the next multiple of `alignment`.
    pub fn pad(&mut self, alignment: u64) -> Result<()> {
        let padding = self.bytes.next_multiple_of(alignment) - self.bytes;
        self.write(&vec![0; padding as usize])
    }

    /// Flushes; SHA-256 of all bytes, lower-case hexadecimal.
    pub fn finish(self) -> Result<String> {
        self.out.flush().map_err(Error::Write)?;
        Ok(hex(&self.hash.finalize()))
    }
}

/// SHA-256 of bytes, lower-case hexadecimal.
pub(crate) fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}
