//! The one place that maps a file.

use std::fs::File;
use std::path::Path;

/// A file's bytes, shared with every process that maps it.
#[derive(Debug)]
pub struct Mapped {
    map: memmap2::Mmap,
    // Held open: the file keeps its inode, so replacing it by rename never changes what is mapped.
    _file: File,
}

impl Mapped {
    /// # Errors
    /// What the system says on opening or mapping; an empty file cannot be mapped.
    pub fn open(path: &Path) -> std::io::Result<Self> {
        let file = File::open(path)?;
        let meta = file.metadata()?;
        if !meta.is_file() {
            return Err(std::io::Error::new(std::io::ErrorKind::InvalidInput, "not a regular file"));
        }
        if meta.len() == 0 {
            return Err(std::io::Error::new(std::io::ErrorKind::InvalidData, "the file is empty"));
        }
        // SAFETY: the mapping is read-only. A writer that truncates the file in place under us is outside the contract of
        // every reader that maps; our own outputs are replaced by rename only.
        let map = unsafe { memmap2::Mmap::map(&file)? };
        Ok(Self { map, _file: file })
    }
}

impl std::ops::Deref for Mapped {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.map
    }
}
