//! A stream becomes a file under its final name only when it is whole and on the disk.

use super::{header::header_of, write_gguf};
use crate::{
    error::{Error, Result},
    metadata,
    plan::Plan,
    report::Report,
    source::TensorSource,
    stream::Hashed,
    tokenizer::TokenizerFiles,
};
use edgeft_runtime::format::gguf::{Gguf, Value};
use edgeft_runtime::format::map::Mapped;
use std::{
    fs::{File, OpenOptions},
    io::{BufWriter, Write},
    path::{Path, PathBuf},
};

/// Writes a model as a GGUF file: beside its final name, flushed to the disk, then renamed. Whatever fails, nothing new is
/// under the final name and the partial file is gone.
///
/// # Errors
/// An existing `path` without `force`; what [`write_gguf`] refuses; a full disk.
pub fn write_gguf_file(
    source: &dyn TensorSource,
    tokenizer: &TokenizerFiles,
    plan: &Plan,
    extra: &[(String, Value)],
    path: &Path,
    force: bool,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Report> {
    write_file(path, force, |out| write_gguf(source, tokenizer, plan, extra, out, progress))
}

/// Copies a GGUF file under another name with keys added, or replaced by those of the same name; the tensors' bytes are as they
/// were. Whatever fails, nothing new is under the new name. Returns size and SHA-256 of the copy.
///
/// # Errors
/// A `from` that is no GGUF file; an existing `to` without `force`; a key that only the writer may set; a full disk.
pub fn copy_with_keys(from: &Path, keys: &[(String, Value)], to: &Path, force: bool) -> Result<(u64, String)> {
    let bytes = Mapped::open(from).map_err(|source| Error::File { path: from.to_path_buf(), source })?;
    let file = Gguf::parse(&bytes).map_err(|e| Error::NotGguf { path: from.to_path_buf(), source: e })?;
    let mut all = file.metadata.clone();
    metadata::extend(&mut all, keys)?;
    let header = header_of(&file, &all)?;
    write_file(to, force, |out| {
        let mut out = Hashed::new(out);
        out.write(&header)?;
        out.write(&bytes[file.data_start as usize..])?;
        Ok((out.bytes, out.finish()?))
    })
}

/// Runs `write` on a temporary sibling of `path`, then renames it.
fn write_file<T>(path: &Path, force: bool, write: impl FnOnce(&mut dyn Write) -> Result<T>) -> Result<T> {
    if !force && path.symlink_metadata().is_ok() {
        return Err(Error::Exists(path.to_path_buf()));
    }
    let at = |source| Error::File { path: path.to_path_buf(), source };
    let partial = Partial::beside(path).map_err(at)?;
    let mut out = BufWriter::with_capacity(1 << 20, &partial.file);
    let result = write(&mut out).map_err(|e| match e {
        Error::Write(source) => at(source),
        other => other,
    })?;
    out.flush().map_err(at)?;
    drop(out);
    partial.file.sync_all().map_err(at)?;
    partial.rename(path).map_err(at)?;
    Ok(result)
}

/// A file that removes itself unless it is renamed.
struct Partial {
    file: File,
    path: Option<PathBuf>,
}

impl Partial {
    fn beside(path: &Path) -> std::io::Result<Self> {
        let name = path.file_name().ok_or(std::io::ErrorKind::InvalidFilename)?.to_string_lossy();
        for n in 0.. {
            let partial = path.with_file_name(format!(".{name}.{}.{n}.partial", std::process::id()));
            match OpenOptions::new().write(true).create_new(true).open(&partial) {
                Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists && n < 100 => {}
                Err(e) => return Err(e),
                Ok(file) => return Ok(Self { file, path: Some(partial) }),
            }
        }
        unreachable!("the loop returns at the hundredth name")
    }

    fn rename(mut self, to: &Path) -> std::io::Result<()> {
        if let Some(from) = &self.path {
            std::fs::rename(from, to)?;
            self.path = None;
        }
        // The new name is on the disk when the folder is. Some systems cannot open folders; the rename stands regardless.
        let folder = to.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        if let Ok(folder) = File::open(folder) {
            let _ = folder.sync_all();
        }
        Ok(())
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            let _ = std::fs::remove_file(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;

    fn entries(dir: &Path) -> Vec<String> {
        let mut names: Vec<String> =
            std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_file_appears_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.gguf");
        let full = |out: &mut dyn Write| {
            out.write_all(b"half of it").map_err(Error::Write)?;
            Err::<(), _>(Error::Write(io::ErrorKind::StorageFull.into()))
        };
        let e = write_file(&path, false, full).unwrap_err();
        assert_eq!(e.to_string(), format!("cannot write `{}`", path.display()));
        assert!(entries(dir.path()).is_empty());
        let whole = |out: &mut dyn Write| out.write_all(b"whole").map_err(Error::Write);
        write_file(&path, false, whole).unwrap();
        assert_eq!((entries(dir.path()), std::fs::read(&path).unwrap()), (vec!["m.gguf".into()], b"whole".to_vec()));
        // An existing file is refused, and a failed forced write leaves the old bytes.
        assert!(matches!(write_file(&path, false, whole), Err(Error::Exists(_))));
        assert!(write_file(&path, true, full).is_err());
        assert_eq!((entries(dir.path()), std::fs::read(&path).unwrap()), (vec!["m.gguf".into()], b"whole".to_vec()));
        write_file(&path, true, |out| out.write_all(b"new").map_err(Error::Write)).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"new");
    }

    #[test]
    fn a_panic_while_writing_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.gguf");
        let caught = std::panic::catch_unwind(|| write_file::<()>(&path, false, |_| panic!("a source died")));
        assert!(caught.is_err() && entries(dir.path()).is_empty());
    }
}
