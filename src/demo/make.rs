//! What `nano` is made from: a folder with its shape, its tokenizer and its text in three courses, ready for
//! `edgeft tune --method full`.

use super::corpus::{FIRST, SECOND, Shares, THIRD, mixed};
use super::{nano, tokenizer};
use anyhow::Context;
use std::io::Write;
use std::path::Path;

/// Name, seed and shares of each course.
const COURSES: [(&str, u64, Shares); 3] =
    [("first.jsonl", 1, FIRST), ("second.jsonl", 2, SECOND), ("third.jsonl", 3, THIRD)];
/// Bytes of a course.
pub const BYTES: usize = 24_000_000;
/// Seed of the text that the tokenizer is trained on.
const TOKENIZER_SEED: u64 = 1;
/// Bytes of it that settle the tokenizer.
const TOKENIZER_BYTES: usize = 4_000_000;

/// Writes `config.json`, `tokenizer.json`, `tokenizer_config.json`, `first.jsonl`, `second.jsonl` and `third.jsonl` (a
/// document a row).
///
/// # Errors
/// What the system says on writing.
pub fn write(folder: &Path, bytes: usize) -> anyhow::Result<()> {
    let tokenizer =
        tokenizer::nano(TOKENIZER_SEED, TOKENIZER_BYTES.min(bytes)).map_err(|e| anyhow::anyhow!("tokenizer: {e}"))?;
    let json = tokenizer.to_string(false).map_err(|e| anyhow::anyhow!("tokenizer: {e}"))?;
    std::fs::write(folder.join("config.json"), nano::CONFIG)?;
    std::fs::write(folder.join("tokenizer.json"), json)?;
    std::fs::write(folder.join("tokenizer_config.json"), nano::TOKENIZER_CONFIG)?;
    let words = tokenizer::whole_words(&tokenizer);
    for (name, seed, shares) in COURSES {
        let path = folder.join(name);
        let file = std::fs::File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
        let mut out = std::io::BufWriter::new(file);
        for text in mixed(seed, bytes, shares, words.clone()) {
            writeln!(out, "{}", serde_json::json!({ "text": text }))?;
        }
        out.flush().with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}
