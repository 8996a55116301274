//! The files of a RUN. The folder grows while it works; each file in it is atomic, and `adapter_model.safetensors` (or
//! `model.safetensors`) appears last.

use super::checkpoint::write_synced;
use super::config::Settings;
use super::events::Events;
use crate::error::BadInput;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

/// `tune.toml` of a RUN: every value resolved, and what it was tuned on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunFile {
    /// Where things came from.
    pub run: Origin,
    /// Every setting.
    pub tune: Settings,
    /// Hashes of what went in: base, data, val, tokenizer, template.
    pub sha256: Hashes,
}

/// Where things came from.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Origin {
    /// MODEL as typed, made absolute when it is a path.
    pub model: String,
    /// DATA.
    pub data: String,
    /// Held-out data, if given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub val: Option<String>,
    /// Adapter that the run began with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub init_adapter: Option<String>,
    /// `nf4`: the projections of the base were rounded to it, and the adapter is merged onto the rounded ones.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub base_rounding: Option<String>,
    /// Labels by index, for a classifier.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub labels: Vec<String>,
    /// Rows of DATA (by number, from 0) that were held out for validation, when `val` was not given.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub held_out: Vec<usize>,
    /// The run is K folds, each a RUN of its own inside.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub folds: Option<usize>,
    /// Which of them this one is, from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fold: Option<usize>,
    /// Version of this program.
    pub edgeft: String,
}

/// sha256 in hex.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Hashes {
    pub base: String,
    pub data: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub val: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokenizer: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub template: Option<String>,
}

impl RunFile {
    /// Whether the base is rounded to NF4 wherever this run is used.
    ///
    /// # Errors
    /// A rounding that is not known: the run is of a later version.
    pub fn rounds_to_nf4(&self) -> anyhow::Result<bool> {
        match self.run.base_rounding.as_deref() {
            None => Ok(false),
            Some("nf4") => Ok(true),
            Some(other) => crate::bad_input!("tune.toml: base-rounding `{other}` is not known; known: nf4"),
        }
    }

    /// Reads `tune.toml` of a RUN.
    pub fn read(run: &Path) -> anyhow::Result<Self> {
        let path = run.join("tune.toml");
        let text = std::fs::read_to_string(&path)
            .map_err(|e| BadInput(format!("cannot read {}: {e}; a RUN folder holds it", path.display())))?;
        toml::from_str(&text).map_err(|e| BadInput(format!("{}: {e}", path.display())).into())
    }
}

/// Whether a folder is a RUN.
pub fn is_run(path: &Path) -> bool {
    path.join("tune.toml").is_file()
}

/// A RUN folder being written.
pub struct RunFolder {
    /// The folder.
    pub path: PathBuf,
    metrics: std::fs::File,
    events: Events,
}

impl RunFolder {
    /// Makes the folder and writes `tune.toml`.
    ///
    /// # Errors
    /// [`BadInput`] when it exists and neither `force` was given nor the run is resumed.
    pub fn create(path: &Path, file: &RunFile, force: bool) -> anyhow::Result<Self> {
        if path.exists() {
            if !force {
                crate::bad_input!(
                    "{} exists; choose another --out, go on in it with --resume, or replace it with --force",
                    path.display()
                );
            }
            // Only what looks like a RUN is ever removed.
            if !is_run(path) && std::fs::read_dir(path)?.next().is_some() {
                crate::bad_input!("{} is not a RUN folder; --force will not remove it", path.display());
            }
            std::fs::remove_dir_all(path)?;
        }
        std::fs::create_dir_all(path).map_err(|e| BadInput(format!("cannot create {}: {e}", path.display())))?;
        write_synced(&path.join("tune.toml"), toml::to_string(file)?.as_bytes())?;
        let metrics = std::fs::File::create(path.join("metrics.jsonl"))?;
        Ok(Self { path: path.to_owned(), metrics, events: Events::create(path, "")? })
    }

    /// Opens a RUN to go on after `step`: later lines of `metrics.jsonl` are dropped, they will be written again.
    pub fn resume(path: &Path, step: usize) -> anyhow::Result<Self> {
        let file = path.join("metrics.jsonl");
        let text = std::fs::read_to_string(&file).unwrap_or_default();
        let kept: String = text
            .lines()
            .filter(|line| {
                serde_json::from_str::<serde_json::Value>(line)
                    .is_ok_and(|v| v["step"].as_u64().is_some_and(|s| s as usize <= step))
            })
            .flat_map(|line| [line, "\n"])
            .collect();
        write_synced(&file, kept.as_bytes())?;
        let metrics = std::fs::OpenOptions::new().append(true).open(&file)?;
        Ok(Self { path: path.to_owned(), metrics, events: Events::create(path, &kept)? })
    }

    /// Appends one line to `metrics.jsonl`, and to the events.
    pub fn metric(&mut self, line: &serde_json::Value) -> anyhow::Result<()> {
        writeln!(self.metrics, "{line}")?;
        self.events.line(line)
    }

    /// Writes one file whole.
    pub fn write(&self, name: &str, bytes: &[u8]) -> anyhow::Result<()> {
        write_synced(&self.path.join(name), bytes)
    }
}

/// sha256 of a file, or of a folder's files in the order of their names.
pub fn sha256(path: &Path) -> anyhow::Result<String> {
    let mut hasher = Sha256::new();
    let mut files = if path.is_dir() {
        std::fs::read_dir(path)?.map(|e| Ok(e?.path())).collect::<std::io::Result<Vec<_>>>()?
    } else {
        vec![path.to_owned()]
    };
    files.retain(|f| {
        f.is_file() && (path.is_file() || f.extension().is_some_and(|e| e == "json" || e == "safetensors"))
    });
    files.sort();
    for file in files {
        let mut reader =
            std::fs::File::open(&file).map_err(|e| BadInput(format!("cannot read {}: {e}", file.display())))?;
        let mut buffer = vec![0; 1 << 16];
        loop {
            let n = reader.read(&mut buffer)?;
            if n == 0 {
                break;
            }
            hasher.update(&buffer[..n]);
        }
    }
    Ok(hex(&hasher.finalize()))
}

/// sha256 of bytes.
pub fn sha256_bytes(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}
