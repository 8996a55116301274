//! A folder appears under its final name only when every file in it is whole and on the disk.

use super::{
    DATA_FILE, Operators,
    proto::{ModelProto, StringStringEntryProto},
    text, write_onnx,
};
use crate::{
    error::{Error, Result},
    plan::Plan,
    report::Report,
    source::TensorSource,
    stream::sha256,
};
use edgeft_runtime::format::gguf::Value;
use prost::Message;
use std::{
    fs::{self, File},
    io::{self, BufWriter, ErrorKind, Write},
    path::{Path, PathBuf},
};

/// Name of the graph's file.
pub const MODEL_FILE: &str = "model.onnx";

/// Writes an ONNX folder: beside its final name, flushed to the disk, then renamed. Whatever fails, the final name holds
/// what it held before, and the partial folder is gone. `files` (name and bytes) lie beside the model: tokenizer, configs.
///
/// # Errors
/// An existing `path` without `force`, or with it, when it is not an ONNX folder; what [`write_onnx`] refuses; a full disk.
pub fn write_onnx_folder(
    source: &dyn TensorSource,
    plan: &Plan,
    operators: Operators,
    extra: &[(String, Value)],
    files: &[(&str, Vec<u8>)],
    path: &Path,
    force: bool,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Report> {
    write_folder(path, force, |folder| {
        let at = |name: &str| folder.join(name);
        let failed = |name: &str| {
            let path = path.join(name);
            move |source| Error::File { path: path.clone(), source }
        };
        let file = File::create(at(DATA_FILE)).map_err(failed(DATA_FILE))?;
        let mut data = BufWriter::with_capacity(1 << 20, &file);
        let (model, mut report) =
            write_onnx(source, plan, operators, extra, &mut data, progress).map_err(|e| match e {
                Error::Write(source) => failed(DATA_FILE)(source),
                other => other,
            })?;
        drop(data);
        file.sync_all().map_err(failed(DATA_FILE))?;
        for (name, bytes) in files.iter().map(|(n, b)| (*n, b)).chain([(MODEL_FILE, &model)]) {
            write_synced(&at(name), bytes).map_err(failed(name))?;
        }
        report.bytes += files.iter().map(|(_, bytes)| bytes.len() as u64).sum::<u64>();
        Ok(report)
    })
}

/// Adds keys to the metadata of a finished folder; nothing else changes. Returns the new SHA-256 of `model.onnx`.
///
/// # Errors
/// A folder without `model.onnx`; a value that ONNX has no text for; a full disk, which leaves the file as it was.
pub fn add_keys(folder: &Path, keys: &[(String, Value)]) -> Result<String> {
    let path = folder.join(MODEL_FILE);
    let failed = |source| Error::File { path: path.clone(), source };
    let mut bytes = fs::read(&path).map_err(failed)?;
    let entry = |(key, value): &(String, Value)| {
        Ok::<_, Error>(StringStringEntryProto { key: key.clone(), value: text(key, value)? })
    };
    let metadata_props = keys.iter().map(entry).collect::<Result<_>>()?;
    // Of a repeated field that stands in two places protobuf reads one after the other.
    bytes.extend(ModelProto { metadata_props, ..ModelProto::default() }.encode_to_vec());
    let partial = folder.join(format!(".{MODEL_FILE}.{}.partial", std::process::id()));
    let written = write_synced(&partial, &bytes).and_then(|()| fs::rename(&partial, &path));
    written.inspect_err(|_| drop(fs::remove_file(&partial))).map_err(failed)?;
    Ok(sha256(&bytes))
}

/// A name may have a folder in it.
fn write_synced(path: &Path, bytes: &[u8]) -> io::Result<()> {
    if let Some(above) = path.parent() {
        std::fs::create_dir_all(above)?;
    }
    let mut file = File::create(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// Runs `write` on a temporary sibling of `path`, then renames it.
fn write_folder<T>(path: &Path, force: bool, write: impl FnOnce(&Path) -> Result<T>) -> Result<T> {
    refuse_existing(path, force)?;
    let at = |source| Error::File { path: path.to_path_buf(), source };
    let partial = Partial::beside(path).map_err(at)?;
    let result = write(&partial.path)?;
    sync_folder(&partial.path);
    partial.rename(path).map_err(at)?;
    Ok(result)
}

/// `force` replaces what a run of this kind wrote, and nothing else: a slip in a path must not cost a folder.
fn refuse_existing(path: &Path, force: bool) -> Result<()> {
    if path.symlink_metadata().is_err() {
        return Ok(());
    }
    if !force {
        return Err(Error::Exists(path.to_path_buf()));
    }
    let empty = || fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_none());
    if path.join(MODEL_FILE).is_file() || empty() { Ok(()) } else { Err(Error::NotOurs(path.to_path_buf())) }
}

/// A folder that removes itself unless it is renamed.
struct Partial {
    path: PathBuf,
}

impl Partial {
    fn beside(path: &Path) -> io::Result<Self> {
        for n in 0.. {
            let partial = sibling(path, n)?;
            match fs::create_dir(&partial) {
                Err(e) if e.kind() == ErrorKind::AlreadyExists && n < 100 => {}
                Err(e) => return Err(e),
                Ok(()) => return Ok(Self { path: partial }),
            }
        }
        unreachable!("the loop returns at the hundredth name")
    }

    /// The old folder steps aside first, and comes back should the new one not get its name.
    fn rename(self, to: &Path) -> io::Result<()> {
        let old = self.path.with_extension("old");
        let replaces = to.symlink_metadata().is_ok();
        if replaces {
            fs::rename(to, &old)?;
        }
        if let Err(e) = fs::rename(&self.path, to) {
            if replaces {
                fs::rename(&old, to)?;
            }
            return Err(e);
        }
        sync_folder(to.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new(".")));
        if replaces {
            fs::remove_dir_all(&old)?;
        }
        Ok(())
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        // After the rename nothing has this name any more.
        let _ = fs::remove_dir_all(&self.path);
    }
}

fn sibling(path: &Path, n: usize) -> io::Result<PathBuf> {
    let name = path.file_name().ok_or(ErrorKind::InvalidFilename)?.to_string_lossy();
    Ok(path.with_file_name(format!(".{name}.{}.{n}.partial", std::process::id())))
}

/// A new name is on the disk when its folder is. Some systems cannot open folders; the names stand regardless.
fn sync_folder(path: &Path) {
    if let Ok(folder) = File::open(path) {
        let _ = folder.sync_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        plan::{Mix, PlanOptions, plan},
        source::tests::Tiny,
    };

    fn entries(dir: &Path) -> Vec<String> {
        let mut names: Vec<String> =
            fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_folder_appears_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let (path, mut tiny) = (dir.path().join("m"), Tiny::llama());
        let plan = plan(&tiny, Mix::Q8_0, &PlanOptions::default()).unwrap();
        let write = |tiny: &Tiny, force| {
            let files = [("config.json", b"{}".to_vec())];
            write_onnx_folder(tiny, &plan, Operators::Portable, &[], &files, &path, force, &mut |_, _| {})
        };
        let spoilt = "model.layers.1.mlp.up_proj.weight";
        let good = tiny.tensors[spoilt].1[0];
        tiny.tensors.get_mut(spoilt).unwrap().1[0] = f32::NAN;
        assert!(write(&tiny, false).unwrap_err().to_string().contains("up_proj"));
        assert!(entries(dir.path()).is_empty());
        tiny.tensors.get_mut(spoilt).unwrap().1[0] = good;
        let report = write(&tiny, false).unwrap();
        assert_eq!(entries(dir.path()), ["m"]);
        assert_eq!(entries(&path), ["config.json", "model.onnx", "model.onnx.data"]);
        let size: u64 = entries(&path).iter().map(|n| path.join(n).metadata().unwrap().len()).sum();
        assert_eq!(report.bytes, size);
        // An existing folder is refused; a failed forced write leaves the old one, a good one replaces it.
        assert!(matches!(write(&tiny, false), Err(Error::Exists(_))));
        let before = fs::read(path.join(MODEL_FILE)).unwrap();
        tiny.tensors.get_mut(spoilt).unwrap().1[0] = f32::INFINITY;
        assert!(write(&tiny, true).is_err());
        assert_eq!(
            (entries(dir.path()), fs::read(path.join(MODEL_FILE)).unwrap()),
            (vec!["m".to_string()], before.clone())
        );
        tiny.tensors.get_mut(spoilt).unwrap().1[0] = -good;
        write(&tiny, true).unwrap();
        assert_eq!(entries(dir.path()), ["m"]);
        assert_ne!(fs::read(path.join(MODEL_FILE)).unwrap(), before); // it seals other data
    }

    #[test]
    fn force_replaces_a_model_and_no_other_folder() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("photos");
        fs::create_dir(&path).unwrap();
        write_folder(&path, true, |_| Ok(())).unwrap(); // empty
        fs::write(path.join("a.jpg"), "x").unwrap();
        let e = write_folder(&path, true, |_| Ok(())).unwrap_err().to_string();
        assert!(e.contains("photos") && e.contains("holds no model.onnx"), "{e}");
        assert_eq!(entries(&path), ["a.jpg"]);
    }

    #[test]
    fn a_panic_while_writing_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m");
        let caught = std::panic::catch_unwind(|| write_folder::<()>(&path, false, |_| panic!("a source died")));
        assert!(caught.is_err() && entries(dir.path()).is_empty());
    }
}
