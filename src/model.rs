//! The network while it learns: every forward stands beside its hand-written backward.
//!
//! candle is the tensor and GEMM library here, not the differentiator: its tape would build a gradient for every frozen
//! weight, and its fused kernels cut the tape without a word. So each layer offers `forward` and `backward`, written from
//! the formulas, and candle's slow tape serves as the oracle of the tests.
//!
//! Sequences are packed: a batch is one (N, C) matrix of tokens with [`Segment`]s that say where each sequence begins, so
//! there is no padding to mask and every projection is one GEMM.
//!
//! - [`config`]: `config.json` → [`config::Config`]; what would change the mathematics unseen is refused by name
//! - [`load`]: safetensors or GGUF → named weights; [`gguf`]: a GGUF file as a base, its weights left in their blocks
//! - [`layers`]: linear and adapters, embeddings, norms, rotary embedding, attention, feed-forward, heads
//! - [`trunk`]: what the families have in common; [`llama`]: Llama, Mistral, Qwen2, Qwen3, Phi-3; [`gemma3`]; [`gpt2`];
//!   [`bert`]: BERT, RoBERTa, DistilBERT
//! - [`network`]: a trunk of any family with one head, as trainer, evaluation and merge see it; [`masked`]: the head of
//!   masked language models, which audits read
//! - [`peft`]: adapters, in PEFT's files; [`open`]: MODEL as typed → config, weights, tokenizer, adapter

pub mod bert;
pub mod config;
pub mod gemma3;
pub mod gguf;
pub mod gpt2;
pub mod layers;
pub mod llama;
pub mod load;
pub mod masked;
pub mod network;
pub mod open;
pub mod peft;
pub mod trunk;

use std::ops::Range;

/// Rows `start..start + len` of a packed batch are one sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// First row.
    pub start: usize,
    /// Number of tokens.
    pub len: usize,
    /// Tokens `0..keys` may be attended to; the rest is padding that only asks.
    pub keys: usize,
}

/// Sequences laid end to end.
#[derive(Debug, Clone, Default)]
pub struct Packed {
    /// Token ids, N of them.
    pub ids: Vec<u32>,
    /// Position of each token in its own sequence.
    pub positions: Vec<u32>,
    /// Token types (BERT's segment ids); 0 for decoders.
    pub types: Vec<u32>,
    /// The sequences, in order, without gaps.
    pub segments: Vec<Segment>,
}

impl Packed {
    /// Appends one sequence.
    pub fn push(&mut self, ids: &[u32], positions: &[u32], types: &[u8], keys: usize) {
        self.segments.push(Segment { start: self.ids.len(), len: ids.len(), keys });
        self.ids.extend_from_slice(ids);
        self.positions.extend_from_slice(positions);
        if types.is_empty() {
            self.types.resize(self.ids.len(), 0);
        } else {
            self.types.extend(types.iter().map(|t| u32::from(*t)));
        }
    }

    /// The sequences before number `at`, and the others: each a batch of its own.
    pub fn split_at(&self, at: usize) -> [Self; 2] {
        let (low, high) = self.segments.split_at(at);
        let cut = low.iter().map(|s| s.len).sum();
        let part = |rows: Range<usize>, segments: &[Segment]| Self {
            ids: self.ids[rows.clone()].to_vec(),
            positions: self.positions[rows.clone()].to_vec(),
            types: self.types[rows.clone()].to_vec(),
            segments: segments.iter().map(|s| Segment { start: s.start - rows.start, ..*s }).collect(),
        };
        [part(0..cut, low), part(cut..self.len(), high)]
    }

    /// Number of tokens N.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Whether there is no token.
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }
}
