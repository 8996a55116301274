//! DATA → an importance matrix: what goes into each matrix of a model while it reads rows that it was tuned on, or will be asked.
//!
//! The model is read in f32 by the device's own CPU engine, adapter folded in, so that the names are GGUF's.

use crate::data::batch::Row;
use crate::eval::rows::read_judged;
use crate::eval::subject::{EngineName, Subject};
use edgeft_quantize::importance::{Entry, Importance};
use edgeft_runtime::engine::cpu::CpuEngine;
use edgeft_runtime::engine::{Backend, EngineOptions, KvType};
use std::path::Path;

/// Tokens that are read at most: more change the means by little and take long.
pub const MOST_TOKENS: usize = 1 << 17;

/// What a token counts that the model only reads: learned ones look back at it, and count 1.
const READ: f32 = 0.1;

/// An importance matrix of `model` on the rows of `data`, and how many rows of how many were read.
///
/// # Errors
/// What is wrong with DATA; a row with padding before its tokens.
pub fn calibrate(
    model: &str,
    data: &Path,
    threads: usize,
    progress: &mut dyn FnMut(usize, usize),
) -> anyhow::Result<(Importance, usize, usize)> {
    let subject = Subject::open(model, Some(EngineName::Cpu), None, threads)?;
    let rows = read_judged(&subject, data, None, None)?.rows;
    if rows.is_empty() {
        crate::bad_input!("{}: no rows to calibrate on", data.display());
    }
    let model = match subject {
        Subject::Runtime(s) => s.model.clone(),
        Subject::Candle(_) => anyhow::bail!("the CPU engine was asked for"),
    };
    let tokens: usize = rows.iter().map(|r| r.keys.min(r.ids.len())).sum();
    // Evenly spaced rows: data is often sorted by something.
    let step = tokens.div_ceil(MOST_TOKENS).max(1);
    let read: Vec<&Row> = rows.iter().step_by(step).collect();
    let ctx = read.iter().map(|r| r.ids.len()).max().unwrap_or(1).min(model.hparams().n_ctx);
    let options = EngineOptions { backend: Backend::Cpu, threads, ctx, n_seqs: 1, kv: KvType::F32 };
    let mut engine = CpuEngine::new(model, &options)?;
    for (i, row) in read.iter().enumerate() {
        let n = row.keys.min(row.ids.len());
        let first = row.positions[0];
        if !row.positions[..n].iter().copied().eq(first..first + n as u32) {
            crate::bad_input!("{}: row {}: padding before or between its tokens", data.display(), row.source);
        }
        let types = (!row.types.is_empty()).then(|| &row.types[..n]);
        engine.observe(&row.ids[..n], types, &weights(row, n))?;
        progress(i + 1, read.len());
    }
    let entries = engine.observed().into_iter().map(|(name, sums, count)| {
        (name, Entry { sums: sums.into_iter().map(|s| s as f32).collect(), counts: vec![count as f32] })
    });
    let file = data.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let chunks = u32::try_from(read.len()).unwrap_or(u32::MAX);
    let matrix = Importance { entries: entries.collect(), datasets: vec![file], chunks, chunk_size: ctx as u32 };
    Ok((matrix, read.len(), rows.len()))
}

/// What each token counts: 1 where the model learns what comes next, or where rows do not say.
fn weights(row: &Row, n: usize) -> Vec<f32> {
    match row.target.tokens() {
        Some(targets) if targets.iter().any(Option::is_some) => {
            (0..n).map(|i| if matches!(targets.get(i), Some(Some(_))) { 1.0 } else { READ }).collect()
        }
        _ => vec![1.0; n],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::batch::Target;

    #[test]
    fn learned_tokens_count_most() {
        let learned = Row::new(vec![5, 6, 7], Target::Tokens(vec![None, Some(7), None]), 1);
        assert_eq!(weights(&learned, 3), [READ, 1.0, READ]);
        assert_eq!(weights(&Row::new(vec![5, 6], Target::Class(1), 1), 2), [1.0, 1.0]);
    }
}
