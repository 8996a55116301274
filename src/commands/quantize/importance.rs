//! `--calibrate` and `--imatrix`: which columns matter, and how much of a plan knows it.

use crate::calibrate::calibrate;
use crate::cli::Global;
use crate::commands::show;
use crate::error::BadInput;
use crate::tune::checkpoint::write_synced;
use edgeft_quantize::Importance;
use edgeft_quantize::importance::Coverage;
use serde_json::json;
use std::path::PathBuf;

/// Flags about importance.
#[derive(clap::Args)]
pub struct ImportanceArgs {
    /// Compute on the rows of DATA which columns of each matrix matter; e.g. --calibrate train.jsonl
    #[arg(long, value_name = "DATA", conflicts_with = "imatrix")]
    pub calibrate: Option<PathBuf>,
    /// Read that from FILE: an importance matrix of llama.cpp's (GGUF or .dat), or ours
    #[arg(long, value_name = "FILE")]
    pub imatrix: Option<PathBuf>,
    /// Write what --calibrate computed to FILE, which llama-quantize reads too
    #[arg(long, value_name = "FILE", requires = "calibrate")]
    pub save_imatrix: Option<PathBuf>,
}

impl ImportanceArgs {
    /// The importance matrix that was asked for.
    ///
    /// # Errors
    /// A file that is none; data that cannot be read.
    pub fn get(&self, model: &str, force: bool, global: &Global) -> anyhow::Result<Option<Importance>> {
        if let Some(path) = &self.imatrix {
            let bytes =
                std::fs::read(path).map_err(|e| BadInput(format!("--imatrix {}: cannot read: {e}", path.display())))?;
            let matrix =
                Importance::read(&bytes).map_err(|e| BadInput(format!("--imatrix {}: {e}", path.display())))?;
            return Ok(Some(matrix));
        }
        let Some(data) = &self.calibrate else { return Ok(None) };
        if let Some(path) = &self.save_imatrix {
            show::refuse_existing(path, force)?;
        }
        let bar = show::bar(100, "calibrating");
        let mut progress = |done: usize, of: usize| bar.set_position((done * 100 / of.max(1)) as u64);
        let (matrix, read, rows) = calibrate(model, data, global.threads(), &mut progress)?;
        bar.finish_and_clear();
        eprintln!(
            "calibrated on {read} of {rows} rows of {}: statistics of {} matrices",
            data.display(),
            matrix.entries.len()
        );
        if let Some(path) = &self.save_imatrix {
            write_synced(path, &matrix.to_gguf().map_err(|e| BadInput(e.to_string()))?)?;
        }
        Ok(Some(matrix))
    }
}

/// `{"with": 12, "without": [...]}`.
pub fn json_of(coverage: &Coverage) -> serde_json::Value {
    json!({"with": coverage.with, "without": coverage.without})
}

/// A line of what is covered, and the names of what is not.
pub fn print(coverage: &Coverage) {
    let all = coverage.with + coverage.without.len();
    println!("  importance: {} of {all} matrices of block types have statistics", coverage.with);
    if !coverage.without.is_empty() {
        println!("  without, every column alike: {}", coverage.without.join(" "));
    }
}
