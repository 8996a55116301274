//! What `nano` is made from: a folder with its shape, its tokenizer and its text, ready for `edgeft tune --method full`.

use super::{corpus::corpus, nano, tokenizer};
use anyhow::Context;
use std::io::Write;
use std::path::Path;

/// Seed of the corpus that the embedded model is trained on.
pub const SEED: u64 = 1;
/// Bytes of that corpus.
pub const BYTES: usize = 24_000_000;
/// Bytes of it that settle the tokenizer.
const TOKENIZER_BYTES: usize = 4_000_000;

/// Writes `config.json`, `tokenizer.json`, `tokenizer_config.json` and `corpus.jsonl` (a document a row) into `folder`.
///
/// # Errors
/// What the system says on writing.
pub fn write(folder: &Path, seed: u64, bytes: usize) -> anyhow::Result<()> {
    let tokenizer = tokenizer::nano(seed, TOKENIZER_BYTES.min(bytes)).map_err(|e| anyhow::anyhow!("tokenizer: {e}"))?;
    let json = tokenizer.to_string(false).map_err(|e| anyhow::anyhow!("tokenizer: {e}"))?;
    std::fs::write(folder.join("config.json"), nano::CONFIG)?;
    std::fs::write(folder.join("tokenizer.json"), json)?;
    std::fs::write(folder.join("tokenizer_config.json"), nano::TOKENIZER_CONFIG)?;
    let path = folder.join("corpus.jsonl");
    let file = std::fs::File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
    let mut out = std::io::BufWriter::new(file);
    for text in corpus(seed, bytes) {
        writeln!(out, "{}", serde_json::json!({ "text": text }))?;
    }
    out.flush().with_context(|| format!("cannot write {}", path.display()))
}
