//! How many weights a run reads and trains, from the names and shapes in the checkpoint's header: nothing is loaded.

use crate::data::schema::Task;
use crate::model::config::{Config, Family};
use crate::model::load::Checkpoint;
use crate::model::peft::targets::is_called;
use crate::model::peft::{AdapterConfig, Kind};

/// Numbers of weights.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Weights {
    /// Read into memory, as f32.
    pub read: u64,
    /// Trained: adapters and heads, or every weight.
    pub trained: u64,
    /// Of the largest trained tensor.
    pub largest: u64,
    /// Of the blocks' projections: what a token passes through.
    pub projections: u64,
    /// What those that are read take in memory: four bytes each, or their blocks.
    pub bytes: u64,
    /// What reading the largest of them takes besides, for a moment.
    pub loading: u64,
}

impl Weights {
    /// Counts. `adapter` is what is put on the network, or nothing when every weight is trained; `labels` is how many a
    /// classifier tells apart.
    pub fn count(
        config: &Config,
        checkpoint: &Checkpoint,
        task: Task,
        labels: usize,
        adapter: Option<&AdapterConfig>,
    ) -> Self {
        let decoder = config.family.is_decoder();
        let tensors = if checkpoint.is_random() { of_config(config) } else { of_files(checkpoint) };
        let is_head = |name: &str| HEADS.iter().any(|h| name.contains(h));
        let used = |name: &str| {
            let unused = name.starts_with("cls.")
                || name.ends_with("inv_freq")
                || name.ends_with("position_ids")
                || is_head(name)
                || (name.contains("pooler") && task != Task::Classify)
                || (name.contains("lm_head")
                    && (config.tie_word_embeddings || matches!(task, Task::Classify | Task::Embed)));
            !unused
        };
        let mut out = Self::default();
        let mut train = |n: u64| {
            out.trained += n;
            out.largest = out.largest.max(n);
        };
        let (mut read, mut projections, mut bytes, mut loading) = (0, 0, 0, 0);
        for (name, shape) in tensors.iter().filter(|(name, _)| used(name)) {
            let n: u64 = shape.iter().map(|d| *d as u64).product();
            read += n;
            bytes += checkpoint.resident_bytes(name, shape);
            loading = checkpoint.loading_bytes(name, shape).max(loading);
            if shape.len() == 2 && in_a_layer(name) {
                projections += n;
            }
            let Some(adapter) = adapter else {
                train(n);
                continue;
            };
            let module = name.strip_suffix(".weight").unwrap_or(name);
            let projection = shape.len() == 2 && (in_a_layer(name) || name.contains("pooler"));
            if projection && adapter.targets(module) {
                let (out, input) = match config.family.stores_transposed() {
                    true => (shape[1], shape[0]),
                    false => (shape[0], shape[1]),
                };
                let r = adapter.rank(module);
                match adapter.kind {
                    Kind::Ia3 if adapter.is_feedforward(module) => train(input as u64),
                    Kind::Ia3 => train(out as u64),
                    Kind::Lora | Kind::Dora => {
                        train((r * out) as u64);
                        train((r * input) as u64);
                        if adapter.kind == Kind::Dora {
                            train(out as u64);
                        }
                    }
                }
            } else if adapter.modules_to_save.iter().any(|m| is_called(module, m)) {
                train(n);
            }
        }
        let c = config.hidden_size as u64;
        let head = match (task, decoder) {
            (Task::Classify, true) => vec![labels as u64 * c],
            (Task::Classify, false) if matches!(config.family, Family::Roberta | Family::DistilBert) => {
                vec![c * c, c, labels as u64 * c, labels as u64]
            }
            (Task::Classify, false) => vec![labels as u64 * c, labels as u64],
            (Task::Answer, false) => vec![2 * c, 2],
            _ => Vec::new(),
        };
        let no_pooler = task == Task::Classify
            && config.family == Family::Bert
            && !tensors.iter().any(|(n, _)| n.contains("pooler"));
        let pooler = if no_pooler { vec![c * c, c] } else { Vec::new() };
        for n in head.into_iter().chain(pooler) {
            train(n);
            read += n;
            bytes += 4 * n;
        }
        bytes += checkpoint.embedded_bytes();
        (out.read, out.projections, out.bytes, out.loading) = (read, projections, bytes, loading);
        out
    }

    /// The first target of an adapter that no module is called, and what modules are called.
    pub fn missing_target(checkpoint: &Checkpoint, adapter: &AdapterConfig) -> Option<(String, String)> {
        let modules: Vec<&str> = checkpoint
            .names()
            .filter(|n| (in_a_layer(n) || n.contains("pooler")) && checkpoint.shape(n).is_some_and(|s| s.len() == 2))
            .filter_map(|n| n.strip_suffix(".weight"))
            .collect();
        let only = |target: &String| AdapterConfig { target_modules: vec![target.clone()], ..adapter.clone() };
        let idle = |target: &&String| !modules.iter().any(|m| only(target).targets(m));
        let target = adapter.target_modules.iter().find(idle)?;
        let mut names: Vec<&str> = modules.iter().filter_map(|m| m.rsplit('.').next()).collect();
        names.sort_unstable();
        names.dedup();
        Some((target.clone(), names.join(", ")))
    }
}

/// Output modules, which a task brings along by itself.
const HEADS: [&str; 3] = ["score.", "classifier.", "qa_outputs."];

fn in_a_layer(name: &str) -> bool {
    name.split('.').any(|part| part.bytes().all(|b| b.is_ascii_digit()))
}

fn of_files(checkpoint: &Checkpoint) -> Vec<(String, Vec<usize>)> {
    checkpoint.names().filter_map(|n| Some((n.to_owned(), checkpoint.shape(n)?))).collect()
}

/// Of a decoder that starts from noise, which no file holds.
fn of_config(config: &Config) -> Vec<(String, Vec<usize>)> {
    let (v, c, f) = (config.vocab_size, config.hidden_size, config.intermediate_size);
    let (q, kv) = (config.q_dim(), config.kv_dim());
    let mut out = vec![("model.embed_tokens.weight".to_owned(), vec![v, c]), ("model.norm.weight".into(), vec![c])];
    if !config.tie_word_embeddings {
        out.push(("lm_head.weight".into(), vec![v, c]));
    }
    for i in 0..config.num_hidden_layers {
        let shapes = [
            ("self_attn.q_proj", vec![q, c]),
            ("self_attn.k_proj", vec![kv, c]),
            ("self_attn.v_proj", vec![kv, c]),
            ("self_attn.o_proj", vec![c, q]),
            ("mlp.gate_proj", vec![f, c]),
            ("mlp.up_proj", vec![f, c]),
            ("mlp.down_proj", vec![c, f]),
            ("input_layernorm", vec![c]),
            ("post_attention_layernorm", vec![c]),
        ];
        out.extend(shapes.into_iter().map(|(n, s)| (format!("model.layers.{i}.{n}.weight"), s)));
    }
    out
}
