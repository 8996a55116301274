//! A bundle: a folder that holds a model, the program that serves it, and `manifest.json`, which says the size and SHA-256 of
//! every file in it. Read here, written by `edgeft package`; both sides share the numbers below.
//!
//! A hash tells a file that was cut or changed by accident, or by somebody who could not change the manifest as well. It is
//! no signature.

use std::fs::File;
use std::io::Read;
use std::path::{Component, Path, PathBuf};

use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::error::{Error, Kind, Result};

/// What `format` says in every manifest.
pub const FORMAT: &str = "edgeft-bundle";
/// The version that this build writes and reads.
pub const VERSION: u64 = 1;
/// Name of the manifest in its folder.
pub const MANIFEST: &str = "manifest.json";
/// A manifest has a dozen files of some hundred bytes; a larger one is none.
const MOST_BYTES: u64 = 1 << 20;

/// A file of a bundle.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// From the bundle's folder, with `/`; never out of it.
    pub path: String,
    /// Its size.
    pub bytes: u64,
    /// In lower-case hexadecimal.
    pub sha256: String,
}

/// A folder with a manifest that was read, and not yet compared with what lies beside it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bundle {
    /// Where it lies.
    pub folder: PathBuf,
    /// Name of the model, for clients.
    pub name: String,
    /// Name of the target that it was made for.
    pub target: String,
    /// Tokens that prompt and answer may hold together, as planned for that target.
    pub ctx: usize,
    /// Every file but the manifest.
    pub files: Vec<Entry>,
    model: String,
}

impl Bundle {
    /// Whether a folder is meant to be a bundle.
    pub fn is_at(folder: &Path) -> bool {
        folder.join(MANIFEST).is_file()
    }

    /// Reads the manifest of a folder.
    ///
    /// # Errors
    /// `Io` when it cannot be read; `Input` on another format or version, and on a field that is missing or wrong.
    pub fn open(folder: &Path) -> Result<Self> {
        let place = folder.join(MANIFEST);
        let name = place.display().to_string();
        let mut text = String::new();
        let file = File::open(&place).map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => {
                let message = "no such file; a bundle has one, and `edgeft package` writes bundles";
                Error::new(Kind::Input, &name, message)
            }
            _ => Error::io(&name, e),
        })?;
        file.take(MOST_BYTES + 1).read_to_string(&mut text).map_err(|e| match e.kind() {
            std::io::ErrorKind::InvalidData => Error::new(Kind::Input, &name, "not UTF-8"),
            _ => Error::io(&name, e),
        })?;
        if text.len() as u64 > MOST_BYTES {
            return Err(Error::new(Kind::Input, name, format!("larger than {MOST_BYTES} bytes")));
        }
        Self::parse(&text, folder).map_err(|e| e.at(&name))
    }

    fn parse(text: &str, folder: &Path) -> Result<Self> {
        let json: Value =
            serde_json::from_str(text).map_err(|e| Error::new(Kind::Input, "", format!("not valid JSON: {e}")))?;
        let format = text_of(&json, "/format")?;
        if format != FORMAT {
            return Err(wrong("/format", format!("is `{format}`, and `{FORMAT}` in a bundle")));
        }
        let version = number_of(&json, "/version")?;
        if version != VERSION {
            return Err(wrong("/version", format!("is {version}, and this build reads {VERSION}")));
        }
        let count = json["files"].as_array().ok_or_else(|| wrong("/files", "is no list"))?.len();
        let files: Vec<Entry> = (0..count).map(|i| entry(&json, i)).collect::<Result<_>>()?;
        let model = text_of(&json, "/model/file")?.to_owned();
        if !files.iter().any(|f| f.path == model) {
            return Err(wrong("/model/file", format!("`{model}` is not among the files, so nothing vouches for it")));
        }
        let ctx = number_of(&json, "/model/ctx")?;
        Ok(Self {
            folder: folder.to_owned(),
            name: text_of(&json, "/model/name")?.to_owned(),
            target: text_of(&json, "/target/name")?.to_owned(),
            ctx: usize::try_from(ctx).map_err(|_| wrong("/model/ctx", format!("is {ctx}")))?,
            files,
            model,
        })
    }

    /// The model's file.
    pub fn model(&self) -> PathBuf {
        self.folder.join(&self.model)
    }

    /// Compares every file with the manifest: it is there, a plain file, of that size and that SHA-256.
    ///
    /// # Errors
    /// `Input`, naming the first file that differs and both values; `Io` when one cannot be read.
    pub fn verify(&self) -> Result<()> {
        for entry in &self.files {
            let path = self.folder.join(&entry.path);
            let place = path.display().to_string();
            let found = match std::fs::symlink_metadata(&path) {
                Ok(found) => found,
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                    return Err(Error::new(Kind::Input, place, "is in the manifest and not in the bundle"));
                }
                Err(e) => return Err(Error::io(place, e)),
            };
            if !found.is_file() {
                return Err(Error::new(Kind::Input, place, "is no plain file; the manifest says the hash of one"));
            }
            let (again, want) = ("copy the bundle again, or make it anew", entry);
            if found.len() != want.bytes {
                let message = format!("has {} bytes, the manifest says {}; {again}", found.len(), want.bytes);
                return Err(Error::new(Kind::Input, place, message));
            }
            let sha256 = sha256(&path).map_err(|e| Error::io(&place, e))?;
            if sha256 != want.sha256 {
                let message = format!("has SHA-256 {sha256}, the manifest says {}; {again}", want.sha256);
                return Err(Error::new(Kind::Input, place, message));
            }
        }
        Ok(())
    }
}

/// SHA-256 of a file, in lower-case hexadecimal.
///
/// # Errors
/// What reading gives.
pub fn sha256(path: &Path) -> std::io::Result<String> {
    let (mut file, mut hasher, mut buffer) = (File::open(path)?, Sha256::new(), vec![0; 1 << 16]);
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            n => hasher.update(&buffer[..n]),
        }
    }
    Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

fn entry(json: &Value, i: usize) -> Result<Entry> {
    let at = |field: &str| format!("/files/{i}/{field}");
    let path = text_of(json, &at("path"))?;
    let inside = !path.contains('\\') && Path::new(path).components().all(|c| matches!(c, Component::Normal(_)));
    if path.is_empty() || !inside {
        return Err(wrong(&at("path"), format!("`{path}` is no path inside the bundle")));
    }
    let sha256 = text_of(json, &at("sha256"))?;
    if sha256.len() != 64 || !sha256.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)) {
        return Err(wrong(&at("sha256"), format!("`{sha256}` is not 64 lower-case hexadecimal digits")));
    }
    Ok(Entry { path: path.to_owned(), bytes: number_of(json, &at("bytes"))?, sha256: sha256.to_owned() })
}

fn text_of<'a>(json: &'a Value, pointer: &str) -> Result<&'a str> {
    json.pointer(pointer).and_then(Value::as_str).ok_or_else(|| wrong(pointer, "is no text"))
}

fn number_of(json: &Value, pointer: &str) -> Result<u64> {
    json.pointer(pointer).and_then(Value::as_u64).ok_or_else(|| wrong(pointer, "is no whole number"))
}

/// `/files/0/path` is told as `files.0.path`.
fn wrong(pointer: &str, message: impl Into<String>) -> Error {
    Error::new(Kind::Input, format!("field `{}`", pointer.trim_start_matches('/').replace('/', ".")), message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn manifest() -> Value {
        json!({
            "format": FORMAT, "version": VERSION, "target": {"name": "a-board"},
            "model": {"name": "tiny", "file": "model.gguf", "ctx": 64},
            "files": [{"path": "model.gguf", "bytes": 3,
                "sha256": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"}],
        })
    }

    fn bundle(manifest: &Value) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(MANIFEST), manifest.to_string()).unwrap();
        std::fs::write(folder.path().join("model.gguf"), "abc").unwrap(); // FIPS 180-4's own example
        folder
    }

    #[track_caller]
    fn refuses(pointer: &str, value: Value, because: &str) {
        let mut json = manifest();
        *json.pointer_mut(pointer).unwrap() = value;
        let folder = bundle(&json);
        let error = Bundle::open(folder.path()).unwrap_err();
        assert_eq!(error.kind(), Kind::Input);
        assert!(error.to_string().ends_with(because), "{error}");
    }

    #[test]
    fn a_whole_bundle_is_read_and_passes() {
        let folder = bundle(&manifest());
        let bundle = Bundle::open(folder.path()).unwrap();
        assert_eq!((bundle.name.as_str(), bundle.target.as_str(), bundle.ctx), ("tiny", "a-board", 64));
        assert_eq!(bundle.model(), folder.path().join("model.gguf"));
        bundle.verify().unwrap();
    }

    #[test]
    fn every_field_is_checked_where_it_is_read() {
        refuses("/format", json!("zip"), "field `format`: is `zip`, and `edgeft-bundle` in a bundle");
        refuses("/version", json!(2), "field `version`: is 2, and this build reads 1");
        refuses("/files", json!({}), "field `files`: is no list");
        refuses("/model/file", json!("other.gguf"), "so nothing vouches for it");
        refuses("/model/ctx", json!(-1), "field `model.ctx`: is no whole number");
        refuses("/files/0/bytes", json!("3"), "field `files.0.bytes`: is no whole number");
        refuses("/files/0/sha256", json!("BA78"), "is not 64 lower-case hexadecimal digits");
        for path in ["../model.gguf", "/etc/passwd", "a/../../b", "", ".", "a\\b"] {
            refuses("/files/0/path", json!(path), "is no path inside the bundle");
        }
    }

    #[test]
    fn a_file_that_differs_is_named_with_both_values() {
        let folder = bundle(&manifest());
        let model = folder.path().join("model.gguf");
        let verify = || Bundle::open(folder.path()).unwrap().verify().unwrap_err().to_string();
        std::fs::write(&model, "abd").unwrap();
        let error = verify();
        assert!(error.contains("model.gguf: has SHA-256 ") && error.contains("the manifest says ba7816bf"), "{error}");
        std::fs::write(&model, "abcd").unwrap();
        assert!(verify().contains("has 4 bytes, the manifest says 3"), "{}", verify());
        std::fs::remove_file(&model).unwrap();
        assert!(verify().ends_with("is in the manifest and not in the bundle"), "{}", verify());
    }

    #[cfg(unix)]
    #[test]
    fn a_link_out_of_the_bundle_is_no_file_of_it() {
        let folder = bundle(&manifest());
        let outside = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(outside.path(), "abc").unwrap();
        let model = folder.path().join("model.gguf");
        std::fs::remove_file(&model).unwrap();
        std::os::unix::fs::symlink(outside.path(), &model).unwrap();
        let error = Bundle::open(folder.path()).unwrap().verify().unwrap_err().to_string();
        assert!(error.ends_with("is no plain file; the manifest says the hash of one"), "{error}");
    }

    #[test]
    fn a_folder_without_a_manifest_or_with_a_broken_one_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let error = Bundle::open(folder.path()).unwrap_err();
        assert!(!Bundle::is_at(folder.path()) && error.to_string().contains("edgeft package"), "{error}");
        std::fs::write(folder.path().join(MANIFEST), "{").unwrap();
        let error = Bundle::open(folder.path()).unwrap_err().to_string();
        assert!(error.contains("manifest.json: not valid JSON"), "{error}");
        std::fs::write(folder.path().join(MANIFEST), vec![b' '; (1 << 20) + 1]).unwrap();
        assert!(Bundle::open(folder.path()).unwrap_err().to_string().ends_with("larger than 1048576 bytes"));
    }
}
