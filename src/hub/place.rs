//! Blobs → a folder: one of the user's, which appears whole, or a snapshot in Hugging Face's cache.

use super::download::{Store, lock};
use super::hash::Hash;
use super::{Address, HubError};
use std::collections::BTreeSet;
use std::fs::File;
use std::path::{Path, PathBuf};

/// What the two have in common: somewhere to collect blobs, and a way to make a folder of them.
pub trait Place {
    /// Where blobs are collected.
    ///
    /// # Errors
    /// [`HubError::Write`].
    fn store(&self) -> Result<Store, HubError>;

    /// Makes the folder of (path in it, blob), and gives its name.
    ///
    /// # Errors
    /// [`HubError::Write`].
    fn lay_out(&self, store: &Store, commit: &str, files: &[(&Path, &Hash)]) -> Result<PathBuf, HubError>;
}

/// A folder of the user's. Blobs are collected in `DIR.partial` beside it, where the next call finds them.
pub struct Folder {
    path: PathBuf,
    partial: PathBuf,
    spare: Option<PathBuf>,
    _lock: File,
}

impl Folder {
    /// Prepares `path`, which is checked already; blobs that a cache has are copied from there.
    ///
    /// # Errors
    /// [`HubError::Busy`] when another process works on the same folder.
    pub fn new(path: &Path, cache: Option<&Cache>) -> Result<Self, HubError> {
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(".partial");
        let partial = path.with_file_name(name);
        let ours = partial.join(LOCK).exists();
        if !ours && std::fs::read_dir(&partial).is_ok_and(|mut entries| entries.next().is_some()) {
            let reason = "is in the way, and not of an earlier pull; move it, or choose another --out".to_owned();
            return Err(HubError::Exists { path: partial, reason });
        }
        std::fs::create_dir_all(&partial).map_err(HubError::write(&partial))?;
        let _lock = lock(&partial.join(LOCK), &partial)?;
        Ok(Self { path: path.to_owned(), partial, spare: cache.map(Cache::blobs), _lock })
    }
}

/// Locked while a process works there; its name says whose folder this is.
const LOCK: &str = ".edgeft-pull";

impl Drop for Folder {
    /// When nothing came, nothing stays.
    fn drop(&mut self) {
        let mut entries = std::fs::read_dir(&self.partial).into_iter().flatten().flatten();
        if entries.all(|e| e.file_name() == LOCK) {
            let _ = std::fs::remove_file(self.partial.join(LOCK));
            let _ = std::fs::remove_dir(&self.partial);
        }
    }
}

impl Place for Folder {
    fn store(&self) -> Result<Store, HubError> {
        Ok(Store { blobs: self.partial.clone(), locks: None, spare: self.spare.clone() })
    }

    fn lay_out(&self, store: &Store, _: &str, files: &[(&Path, &Hash)]) -> Result<PathBuf, HubError> {
        let (new, old) = (self.partial.join("new"), self.partial.join("old"));
        clear(&new)?;
        clear(&old)?;
        let mut named = BTreeSet::new();
        for (path, hash) in files {
            let to = new.join(path);
            parent(&to)?;
            let from = store.blob(hash);
            // A second name costs no space. Not a third: whoever edits one file must not change another.
            if !named.insert(*hash) || std::fs::hard_link(&from, &to).is_err() {
                std::fs::copy(&from, &to).map_err(HubError::write(&to))?;
            }
        }
        if self.path.symlink_metadata().is_ok() {
            std::fs::rename(&self.path, &old).map_err(HubError::write(&self.path))?;
        }
        if let Err(e) = std::fs::rename(&new, &self.path) {
            let _ = std::fs::rename(&old, &self.path);
            return Err(HubError::Write { path: self.path.clone(), source: e });
        }
        std::fs::remove_dir_all(&self.partial).map_err(HubError::write(&self.partial))?;
        Ok(self.path.clone())
    }
}

/// Whether an output may be written.
///
/// # Errors
/// [`HubError::Exists`]: with `force` only a model folder, or an empty one, is replaced.
pub fn refuse_existing(path: &Path, force: bool) -> Result<(), HubError> {
    let refuse = |reason: &str| Err(HubError::Exists { path: path.to_owned(), reason: reason.to_owned() });
    if path.file_name().is_none() {
        return refuse("is no name for a new folder; choose another --out");
    }
    if path.symlink_metadata().is_err() {
        return Ok(());
    }
    if !force {
        return refuse("exists; choose another --out, or replace it with --force");
    }
    let Ok(entries) = std::fs::read_dir(path) else {
        return refuse("is no folder; choose another --out");
    };
    let names: Vec<String> = entries.flatten().map(|e| e.file_name().to_string_lossy().into_owned()).collect();
    let weights = |n: &String| n == "config.json" || n.ends_with(".safetensors") || n.ends_with(".gguf");
    match names.is_empty() || names.iter().any(weights) {
        true => Ok(()),
        false => {
            refuse("is no model folder, and --force replaces no other; remove it yourself, or choose another --out")
        }
    }
}

/// A repository in Hugging Face's cache: `blobs/HASH`, `snapshots/COMMIT/NAME` that point there, `refs/REVISION` that
/// holds a commit. `hf-hub` knows the names; other programs lock the same files.
pub struct Cache {
    repo: hf_hub::CacheRepo,
    folder: PathBuf,
    locks: PathBuf,
    revision: String,
}

impl Cache {
    /// In the cache at `root`, such as `HF_HOME/hub`.
    pub fn new(root: &Path, address: &Address) -> Self {
        let name = address.repo().folder_name();
        Self {
            repo: hf_hub::Cache::new(root.to_owned()).repo(address.repo()),
            folder: root.join(&name),
            locks: root.join(".locks").join(&name),
            revision: address.revision.clone(),
        }
    }

    fn blobs(&self) -> PathBuf {
        self.folder.join("blobs")
    }
}

impl Place for Cache {
    fn store(&self) -> Result<Store, HubError> {
        let blobs = self.blobs();
        std::fs::create_dir_all(&blobs).map_err(HubError::write(&blobs))?;
        Ok(Store { blobs, locks: Some(self.locks.clone()), spare: None })
    }

    fn lay_out(&self, store: &Store, commit: &str, files: &[(&Path, &Hash)]) -> Result<PathBuf, HubError> {
        let snapshot = self.repo.pointer_path(commit);
        // A new snapshot appears whole; one that is there, perhaps with other files of the commit, is added to.
        let new = snapshot.with_file_name(format!(".{commit}.partial"));
        let fresh = !snapshot.exists();
        let at = if fresh { &new } else { &snapshot };
        if fresh {
            clear(&new)?;
        }
        for (path, hash) in files {
            point(&at.join(path), &store.blob(hash), path.components().count() + 1, hash)?;
        }
        if fresh {
            std::fs::rename(&new, &snapshot).map_err(HubError::write(&snapshot))?;
        }
        if self.revision != commit {
            self.repo.create_ref(commit).map_err(HubError::write(&self.folder.join("refs").join(&self.revision)))?;
        }
        Ok(snapshot)
    }
}

/// Makes `link` stand for `blob`, which lies in `blobs` of the folder `up` folders above.
fn point(link: &Path, blob: &Path, up: usize, hash: &Hash) -> Result<(), HubError> {
    parent(link)?;
    if let (Ok(there), Ok(wanted)) = (link.canonicalize(), blob.canonicalize())
        && there == wanted
    {
        return Ok(());
    }
    clear(link)?;
    let relative: PathBuf = std::iter::repeat_n("..", up).chain(["blobs", hash.hex()]).collect();
    symlink_or_copy(&relative, blob, link).map_err(HubError::write(link))
}

#[cfg(unix)]
fn symlink_or_copy(relative: &Path, blob: &Path, link: &Path) -> std::io::Result<()> {
    std::os::unix::fs::symlink(relative, link).or_else(|_| std::fs::copy(blob, link).map(|_| ()))
}

#[cfg(not(unix))]
fn symlink_or_copy(_: &Path, blob: &Path, link: &Path) -> std::io::Result<()> {
    std::fs::copy(blob, link).map(|_| ())
}

/// Makes the folders above a file.
fn parent(path: &Path) -> Result<(), HubError> {
    let Some(parent) = path.parent() else { return Ok(()) };
    std::fs::create_dir_all(parent).map_err(HubError::write(parent))
}

/// Removes what an earlier call left.
fn clear(path: &Path) -> Result<(), HubError> {
    match path.symlink_metadata() {
        Err(_) => Ok(()),
        Ok(m) if m.is_dir() => std::fs::remove_dir_all(path).map_err(HubError::write(path)),
        Ok(_) => std::fs::remove_file(path).map_err(HubError::write(path)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn force_replaces_a_model_folder_and_no_other() {
        let top = tempfile::tempdir().unwrap();
        let (model, letters, empty) = (top.path().join("model"), top.path().join("letters"), top.path().join("empty"));
        for (folder, file) in [(&model, "config.json"), (&letters, "letter.txt")] {
            std::fs::create_dir(folder).unwrap();
            std::fs::write(folder.join(file), "x").unwrap();
        }
        std::fs::create_dir(&empty).unwrap();
        for (path, force, fine) in [
            (&model, false, false),
            (&model, true, true),
            (&letters, true, false),
            (&letters.join("letter.txt"), true, false),
            (&empty, false, false),
            (&empty, true, true),
            (&top.path().join("new"), false, true),
            (&PathBuf::from("/"), true, false),
            (&PathBuf::from("a/.."), true, false),
        ] {
            assert_eq!(refuse_existing(path, force).is_ok(), fine, "{} {force}", path.display());
        }
    }
}
