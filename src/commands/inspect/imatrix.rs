//! An importance matrix: of each matrix how much was counted, and how uneven its columns are.

use crate::cli::Global;
use crate::commands::show;
use crate::error::BadInput;
use edgeft_quantize::Importance;
use serde_json::json;
use std::path::Path;

/// Prints it.
///
/// # Errors
/// Bytes that are none.
pub fn run(path: &Path, bytes: &[u8], global: &Global) -> anyhow::Result<()> {
    let matrix = Importance::read(bytes).map_err(|e| BadInput(format!("{}: {e}", path.display())))?;
    let mut rows = vec![["matrix", "columns", "count", "mean", "largest / mean"].map(str::to_owned).to_vec()];
    let mut entries = Vec::new();
    for (name, entry) in &matrix.entries {
        let means = entry.means();
        let mean = means.iter().map(|v| f64::from(*v)).sum::<f64>() / means.len().max(1) as f64;
        let largest = means.iter().copied().fold(0f32, f32::max);
        let count: f64 = entry.counts.iter().map(|v| f64::from(*v)).sum();
        let unused = means.iter().filter(|v| **v == 0.0).count();
        entries.push(json!({"name": name, "columns": means.len(), "count": count, "mean": mean, "largest": largest,
            "unused_columns": unused}));
        let ratio = if mean > 0.0 { f64::from(largest) / mean } else { 0.0 };
        rows.push(vec![
            name.clone(),
            means.len().to_string(),
            format!("{count:.1}"),
            format!("{mean:.3e}"),
            format!("{ratio:.1}"),
        ]);
    }
    let whole = json!({"file": path, "bytes": bytes.len(), "imatrix": {"datasets": matrix.datasets,
        "chunk_count": matrix.chunks, "chunk_size": matrix.chunk_size, "entries": entries}});
    show::report(global, &whole, || {
        println!(
            "{}: importance matrix, {}, {} matrices, {} chunks of at most {} tokens of {}\n",
            path.display(),
            show::bytes(bytes.len() as u64),
            matrix.entries.len(),
            matrix.chunks,
            matrix.chunk_size,
            matrix.datasets.join(", ")
        );
        print!("{}", show::table(&rows));
    });
    Ok(())
}
