//! Files with weights beside the graph. ONNX Runtime follows the names in the graph wherever they lead, and five times its
//! own guard was walked around (CVE-2022-25882, 2024-27318, 2024-5187, 2026-27489, 2026-34447), so every name is followed
//! here first: it must end at a plain file inside of the folder, which has no second name, and which is long enough.

use crate::error::{Error, Kind, Result};
use crate::format::onnx::External;
use std::collections::HashMap;
use std::path::{Component, Path, PathBuf};

/// ONNX Runtime's own mark for "the offset is an address in memory"; in a file it can only be an attack.
const MEMORY_ADDRESS: &str = "_ORT_MEM_ADDR_";

/// Checks every tensor that `model` (a file) keeps in another file.
///
/// # Errors
/// `Input` naming the tensor, the file and why it is refused.
pub(super) fn check(model: &Path, external: &[External]) -> Result<()> {
    let dir = match model.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    };
    let mut sizes: HashMap<&str, u64> = HashMap::new();
    for tensor in external {
        let location = tensor.location.as_str();
        let refuse = |message: String| {
            let message = format!("its weights are in `{location}`, {message}");
            Err(Error::new(Kind::Input, format!("tensor `{}`", tensor.tensor), message))
        };
        let size = match sizes.get(location) {
            Some(size) => *size,
            None => match size_inside(dir, location) {
                Ok(size) => *sizes.entry(location).or_insert(size),
                Err(because) => return refuse(because),
            },
        };
        let end = tensor.offset.saturating_add(tensor.length.unwrap_or(0));
        if end > size {
            return refuse(format!("up to byte {end}, but that file has {size} bytes; is it whole?"));
        }
    }
    Ok(())
}

/// Size of the file that a location names, once it is known to lie in the folder.
fn size_inside(dir: &Path, location: &str) -> std::result::Result<u64, String> {
    let relative = PathBuf::from(location);
    let plain = |c: Component| matches!(c, Component::Normal(_) | Component::CurDir);
    if location.is_empty() || location.contains(MEMORY_ADDRESS) || location.contains('\0') {
        return Err("which names no file".into());
    }
    if !relative.components().all(plain) {
        return Err("which leads out of the folder; a model may only name files beside it".into());
    }
    let told = |e: std::io::Error| match e.kind() {
        std::io::ErrorKind::NotFound => "which is not in the folder".to_owned(),
        _ => format!("which cannot be read: {e}"),
    };
    let base = dir.canonicalize().map_err(told)?;
    let path = base.join(&relative).canonicalize().map_err(told)?;
    if !path.starts_with(&base) {
        return Err(format!("a link that leads out of the folder, to {}; copy that file here instead", path.display()));
    }
    let meta = path.metadata().map_err(told)?;
    if !meta.is_file() {
        return Err("which is no plain file".into());
    }
    // A hard link to somebody else's file looks like any other file but for this count.
    #[cfg(unix)]
    if std::os::unix::fs::MetadataExt::nlink(&meta) > 1 {
        let names = std::os::unix::fs::MetadataExt::nlink(&meta);
        return Err(format!("a file of {names} names (hard links), one of which may lie elsewhere; copy it instead"));
    }
    Ok(meta.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(location: &str, offset: u64, length: Option<u64>) -> External {
        External { tensor: "w".into(), location: location.into(), offset, length }
    }

    /// A folder with `inside/model.onnx.data` of 8 bytes, and `secret` beside the folder.
    fn folder() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("inside")).unwrap();
        std::fs::write(dir.path().join("inside/model.onnx.data"), [0; 8]).unwrap();
        std::fs::write(dir.path().join("secret"), [1; 8]).unwrap();
        dir
    }

    #[track_caller]
    fn refuses(dir: &Path, location: &str, because: &str) {
        let error = check(&dir.join("inside/model.onnx"), &[tensor(location, 0, Some(8))]).unwrap_err().to_string();
        assert!(error.starts_with("tensor `w`: ") && error.contains(because), "{error}");
    }

    #[test]
    fn a_file_beside_the_model_is_taken_up_to_its_end() {
        let dir = folder();
        let check =
            |offset, length| check(&dir.path().join("inside/model.onnx"), &[tensor("model.onnx.data", offset, length)]);
        check(0, Some(8)).unwrap();
        check(4, None).unwrap();
        let error = check(4, Some(5)).unwrap_err().to_string();
        assert!(error.contains("up to byte 9, but that file has 8 bytes"), "{error}");
        assert!(check(u64::MAX, Some(2)).is_err());
    }

    #[test]
    fn names_that_lead_out_are_refused() {
        let dir = folder();
        refuses(dir.path(), "../secret", "leads out of the folder");
        refuses(dir.path(), "a/../../secret", "leads out of the folder");
        refuses(dir.path(), dir.path().join("secret").to_str().unwrap(), "leads out of the folder");
        refuses(dir.path(), "", "names no file");
        refuses(dir.path(), "*/_ORT_MEM_ADDR_/*", "names no file");
        refuses(dir.path(), "gone.data", "is not in the folder");
        refuses(dir.path(), ".", "no plain file");
    }

    #[cfg(unix)]
    #[test]
    fn links_that_lead_out_are_refused_and_links_inside_are_not() {
        let dir = folder();
        let inside = dir.path().join("inside");
        std::os::unix::fs::symlink("../secret", inside.join("soft")).unwrap();
        refuses(dir.path(), "soft", "a link that leads out of the folder");
        std::os::unix::fs::symlink("..", inside.join("up")).unwrap();
        refuses(dir.path(), "up/secret", "a link that leads out of the folder");
        std::os::unix::fs::symlink("model.onnx.data", inside.join("same")).unwrap();
        check(&inside.join("model.onnx"), &[tensor("same", 0, Some(8))]).unwrap();
        std::fs::hard_link(dir.path().join("secret"), inside.join("hard")).unwrap();
        refuses(dir.path(), "hard", "2 names (hard links)");
    }
}
