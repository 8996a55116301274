//! `--verify`: nothing is called by its name before it has passed, and what was measured goes with it.

use super::Target;
use crate::cli::Global;
use crate::commands::{show, verify};
use crate::tune::run_folder::sha256;
use crate::verify::{Bounds, Verification};
use edgeft_quantize::gguf::copy_with_keys;
use edgeft_quantize::onnx::add_keys;
use serde_json::Value;
use std::path::{Path, PathBuf};

/// Where a file waits for its verification: beside its final name.
pub fn staging(place: &Path) -> PathBuf {
    let name = place.file_name().unwrap_or_default().to_string_lossy();
    place.with_file_name(format!(".{name}.{}.unverified.gguf", std::process::id()))
}

/// A file that is gone when its verification ends otherwise than well.
pub struct Removed(pub PathBuf);

impl Drop for Removed {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0); // after a rename there is none
    }
}

/// What is asked of a file that was just written.
pub struct Gate<'a> {
    /// What it was made from, as typed.
    pub model: &'a str,
    /// Rows to compare on.
    pub data: &'a Path,
    /// Bounds, if given; else by the file's type.
    pub bounds: Option<Bounds>,
    /// Whether what stands under the final name may be replaced.
    pub force: bool,
}

impl Gate<'_> {
    /// Examines the file at `staged` (or the folder at `place`); one that passes gets its final name, and the results as keys.
    /// `line` hears of both. Returns whether it passed.
    ///
    /// # Errors
    /// What verifying and writing have.
    pub fn pass(
        &self,
        to: Target,
        staged: Option<&Path>,
        place: &Path,
        line: &mut Value,
        global: &Global,
    ) -> anyhow::Result<bool> {
        let verification = verify::verify(&verify::Question {
            subject: &staged.unwrap_or(place).display().to_string(),
            adapter: None,
            reference: self.model,
            data: Some(self.data),
            engine: None,
            bounds: self.bounds,
            threads: global.threads(),
        })?;
        if !global.json {
            verify::print(&verification);
        }
        let data = self.data.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let hash = sha256(self.data)?;
        if verification.pass {
            self.publish(&verification, to, staged, place, line, [&data, &hash])?;
        }
        let mut verified = serde_json::to_value(&verification)?;
        (verified["data"], verified["data_sha256"]) = (data.into(), hash.into());
        verify::keep(&mut verified, &place.display().to_string(), self.model)?;
        line["verify"] = verified;
        Ok(verification.pass)
    }

    fn publish(
        &self,
        verification: &Verification,
        to: Target,
        staged: Option<&Path>,
        place: &Path,
        line: &mut Value,
        [data, hash]: [&str; 2],
    ) -> anyhow::Result<()> {
        let keys = verification.keys(&show::model_name(self.model), data, hash);
        match (to, staged) {
            (Target::Gguf, Some(staged)) => {
                let (bytes, sha256) = copy_with_keys(staged, &keys, place, self.force)?;
                (line["bytes"], line["sha256"]) = (bytes.into(), sha256.into());
            }
            _ => {
                let before = line["bytes"].as_u64().unwrap_or(0);
                let model = place.join(edgeft_quantize::onnx::MODEL_FILE);
                let size = || Ok::<_, std::io::Error>(std::fs::metadata(&model)?.len());
                let was = size()?;
                line["sha256"] = add_keys(place, &keys)?.into();
                line["bytes"] = (before + size()? - was).into();
            }
        }
        Ok(())
    }
}
