//! What a model takes and reads: from a GGUF file, or from the plan of one that is not written yet.

use crate::error::BadInput;
use crate::export;
use crate::model::config::Config;
use crate::model::network::Task;
use crate::model::open::{Opened, Place};
use edgeft_quantize::{Mix, PlanOptions};
use edgeft_runtime::format::GgmlType;
use edgeft_runtime::measure::{bandwidth, generates};
use edgeft_runtime::model::Model;
use std::collections::BTreeMap;
use std::path::Path;

/// Context where none is asked for, as the runtime has it: the model's own, up to this many tokens.
const DEFAULT_CTX: usize = 4096;
/// Tokens of a prompt that the runtime reads at a time.
const PREFILL: usize = 256;
/// Resident bytes of `edgeft-run serve` besides the model: code, threads, regular expressions of a tokenizer, a template.
/// Measured on x86-64 on 2026-11-28: 7 to 12.4 MiB, the most where all features of the workspace are linked in.
const PROGRAM_BYTES: u64 = 14 << 20;
/// A tokenizer in memory against the keys that it is built from, at its peak; measured on the same day on byte-level BPE and
/// WordPiece: 9 to 12.
const TEXT_FACTOR: u64 = 12;

/// Sizes of a model, in bytes and numbers.
#[derive(Debug, Clone, PartialEq)]
pub struct Footprint {
    /// As it was named.
    pub name: String,
    /// Its mix, or the commonest type of its weights.
    pub ty: String,
    /// All tensors.
    pub weights: u64,
    /// What one forward reads of them, by type.
    pub read: BTreeMap<GgmlType, u64>,
    /// Matrices that a forward multiplies, one after the other, and attention once a layer.
    pub steps: usize,
    /// Vocabulary, template and the other keys.
    pub text: u64,
    /// Whether it is measured token by token.
    pub generates: bool,
    /// Positions it was made for.
    pub n_ctx: usize,
    /// Elements of a row in the residual stream (C).
    pub hidden: usize,
    /// Elements of the longest output of a matrix, the vocabulary apart.
    widest: usize,
    vocabulary: usize,
    n_layers: usize,
    /// Numbers of a key row, K * D.
    kv_width: usize,
    /// By layer: tokens that a position sees there; `None` is all.
    windows: Vec<Option<usize>>,
}

/// A tensor as the sums below need it: GGUF's name, rows, columns, type, bytes.
type Tensor<'a> = (&'a str, u64, usize, GgmlType, u64);

/// What ONNX Runtime needs is its own affair.
fn no_prediction(model: &str) -> anyhow::Error {
    let line =
        format!("{model}: predictions are made for GGUF files; give the model that the ONNX folder was made from");
    BadInput(line).into()
}

impl Footprint {
    /// Of a MODEL: a GGUF file as it is, everything else as `mix` would store it. No weight is read but to see whether the
    /// output repeats the embedding.
    ///
    /// # Errors
    /// What cannot be opened or planned.
    pub fn of(model: &str, mix: Mix) -> anyhow::Result<Self> {
        match Place::of(model)? {
            Place::Gguf(path) => Self::of_model(&Model::open(&path)?, std::fs::metadata(&path)?.len()),
            Place::Onnx(_) => Err(no_prediction(model)),
            _ => Self::of_plan(&Opened::open(model, 0)?, mix),
        }
    }

    /// Of a file of `file_bytes`.
    ///
    /// # Errors
    /// An ONNX folder, whose engine keeps its own account of memory.
    pub fn of_model(model: &Model, file_bytes: u64) -> anyhow::Result<Self> {
        let (h, gguf) = (model.hparams(), model.gguf().map_err(|_| no_prediction(model.name()))?);
        let dim = |dims: &[u64], i: usize| dims.get(i).copied().unwrap_or(1);
        let tensors: Vec<Tensor> = gguf
            .tensors
            .iter()
            .map(|t| (t.name.as_str(), dim(&t.dims, 1), dim(&t.dims, 0) as usize, t.ty, t.bytes))
            .collect();
        let file_type = gguf.u32("general.file_type").ok();
        let mix = file_type.and_then(|code| Mix::all().find(|m| m.file_type() == code)).map(|m| m.name().to_owned());
        let by_type = tensors.iter().fold(BTreeMap::new(), |mut sums: BTreeMap<GgmlType, u64>, t| {
            *sums.entry(t.3).or_default() += t.4;
            sums
        });
        let most = by_type.iter().max_by_key(|(_, bytes)| **bytes).map_or("f32", |(ty, _)| ty.name());
        let shape = Self {
            name: Path::new(model.name())
                .file_name()
                .map_or_else(|| model.name().into(), |n| n.to_string_lossy().into()),
            ty: mix.unwrap_or_else(|| most.to_owned()),
            generates: generates(model.task(), h.causal),
            n_ctx: h.n_ctx,
            hidden: h.hidden,
            widest: h.ffn.max(h.n_heads * h.head_dim),
            vocabulary: h.n_vocab,
            n_layers: h.n_layers,
            kv_width: if h.causal { h.n_kv_heads * h.head_dim } else { 0 },
            windows: (0..h.n_layers).map(|layer| h.window(layer)).collect(),
            text: file_bytes.saturating_sub(model.weight_bytes()),
            weights: 0,
            read: BTreeMap::new(),
            steps: 0,
        };
        Ok(shape.with(&tensors))
    }

    /// Of a file that `mix` would make.
    ///
    /// # Errors
    /// What cannot be planned.
    pub fn of_plan(opened: &Opened, mix: Mix) -> anyhow::Result<Self> {
        let plan = export::make_plan(opened, mix, &PlanOptions::default())?;
        let tensors: Vec<Tensor> = plan
            .tensors
            .iter()
            .map(|t| (t.name.as_str(), (t.elements() / t.cols()) as u64, t.cols(), t.ty, t.bytes()))
            .collect();
        let config: &Config = &opened.config;
        let decoder = config.family.is_decoder();
        let head_dim = config.head_dim;
        let shape = Self {
            name: opened.name.clone(),
            ty: mix.name().to_owned(),
            generates: decoder && !matches!(opened.task()?, Some(Task::Classify(_))),
            n_ctx: config.max_position_embeddings,
            hidden: config.hidden_size,
            widest: config.intermediate_size.max(config.num_attention_heads * head_dim),
            vocabulary: config.vocab_size,
            n_layers: config.num_hidden_layers,
            kv_width: if decoder { config.num_key_value_heads * head_dim } else { 0 },
            windows: (0..config.num_hidden_layers).map(|layer| config.window(layer)).collect(),
            // The GGUF carries tokenizer.json, and its vocabulary and merges a second time.
            text: 2 * opened.text.tokenizer_json.as_ref().map_or(0, Vec::len) as u64,
            weights: 0,
            read: BTreeMap::new(),
            steps: 0,
        };
        Ok(shape.with(&tensors))
    }

    fn with(mut self, tensors: &[Tensor]) -> Self {
        let tied = self.generates && !tensors.iter().any(|t| t.0 == "output.weight");
        self.steps = self.n_layers;
        for &(name, rows, _, ty, bytes) in tensors {
            let read = bandwidth::bytes_read(name, rows, bytes, tied);
            self.weights += bytes;
            *self.read.entry(ty).or_default() += read;
            self.steps += usize::from(rows > 1 && read == bytes);
        }
        self
    }

    /// With an adapter of so many bytes beside the weights, all read in each forward.
    pub fn with_adapter(mut self, bytes: u64) -> Self {
        if bytes > 0 {
            self.weights += bytes;
            *self.read.entry(GgmlType::F32).or_default() += bytes;
        }
        self
    }

    /// Tokens that a session holds unless told otherwise.
    pub fn default_ctx(&self) -> usize {
        self.n_ctx.min(DEFAULT_CTX)
    }

    /// Bytes of weights that one forward reads.
    pub fn weights_read(&self) -> u64 {
        self.read.values().sum()
    }

    /// Bytes of an f16 cache of `tokens`.
    pub fn cache(&self, tokens: usize) -> u64 {
        (2 * 2 * self.n_layers * self.kv_width * tokens) as u64
    }

    /// What a token at that depth reads of the cache: a window sees no further back.
    pub fn cache_read(&self, depth: usize) -> u64 {
        let seen: usize = self.windows.iter().map(|w| w.map_or(depth, |w| w.min(depth))).sum();
        (2 * 2 * self.kv_width * seen) as u64
    }

    /// Buffers of a pass over a prompt: residual stream, queries, keys, values, gate, up, their sums and their codes, each in
    /// f32, and a row of logits.
    pub fn activations(&self, ctx: usize) -> u64 {
        let tokens = ctx.min(PREFILL);
        let row = 3 * self.hidden + 2 * self.kv_width + 6 * self.widest;
        4 * (tokens * row + self.vocabulary) as u64
    }

    /// The tokenizer in memory.
    pub fn text(&self) -> u64 {
        TEXT_FACTOR * self.text
    }

    /// The program itself.
    pub fn program(&self) -> u64 {
        PROGRAM_BYTES
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_and_the_file_made_by_it_have_the_same_footprint() {
        let opened = Opened::open("nano", 0).unwrap();
        for mix in [Mix::F32, Mix::Q8_0, Mix::Q4_K_M] {
            let planned = Footprint::of_plan(&opened, mix).unwrap();
            let bytes = export::to_memory(&opened, mix).unwrap();
            let file_bytes = bytes.len() as u64;
            let written = Footprint::of_model(&Model::from_bytes(bytes, "nano").unwrap(), file_bytes).unwrap();
            // Only the text is not known to the byte before it is written.
            assert_eq!(Footprint { text: 0, ..planned.clone() }, Footprint { text: 0, ..written.clone() }, "{mix}");
            let (a, b) = (planned.text as f64, written.text as f64);
            assert!((a / b).ln().abs() < 0.5, "{mix}: {a} {b}");
        }
    }

    #[test]
    fn the_bytes_of_a_forward_are_those_that_the_runtime_counts() {
        let opened = Opened::open("nano", 0).unwrap();
        let bytes = export::to_memory(&opened, Mix::Q8_0).unwrap();
        let model = Model::from_bytes(bytes, "nano").unwrap();
        let footprint = Footprint::of_model(&model, 0).unwrap();
        assert_eq!(footprint.weights_read(), bandwidth::weight_bytes(&model));
        assert_eq!(footprint.cache_read(100), bandwidth::kv_bytes(&model, 100, edgeft_runtime::engine::KvType::F16));
        assert_eq!((footprint.text, footprint.ty.as_str()), (0, "q8_0"));
    }
}
