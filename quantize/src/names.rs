//! Hugging Face name -> GGUF name, and the q/k row order GGUF Llama files expect.
//!
//! The table is built from the spec, so it works in both directions: a tensor that no line names is an error, and so is a
//! line without its tensor. Names that differ only in an optional prefix (`model.`, `bert.`) or in TensorFlow's old
//! `gamma`/`beta` are the same line.

use crate::{
    error::{Error, Result},
    source::{Arch, ModelSpec, Task},
};
use std::collections::HashMap;

/// One tensor of the source and its place in the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placed {
    /// Name in the source.
    pub source: String,
    /// Shape in the source, rows first.
    pub shape: Vec<usize>,
    /// Where it goes.
    pub to: Destination,
    /// Heads whose rows turn from half-apart pairs to adjacent pairs ([`interleave_heads`]); none when order is kept.
    pub heads: Option<usize>,
}

/// Where a tensor goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Destination {
    /// A tensor of this name.
    Tensor(String),
    /// An f32 array under this metadata key: heads that llama.cpp has no tensor for, so that the file still loads there.
    Key(&'static str),
}

/// A tensor that is left out on purpose, and why.
pub type Skipped = (String, &'static str);

/// A line of the table.
struct Line {
    source: String,
    shape: Vec<usize>,
    to: Destination,
    heads: Option<usize>,
    required: bool,
}

/// Places every tensor of a source.
///
/// # Errors
/// By name: a tensor that no rule knows, one that is missing, two that are the same, one whose shape is not the config's.
pub fn place(spec: &ModelSpec, tensors: &[(String, Vec<usize>)]) -> Result<(Vec<Placed>, Vec<Skipped>)> {
    let (arch, task) = (spec.arch.name(), spec.task.name());
    let lines = match spec.arch {
        Arch::Llama | Arch::Qwen2 => decoder(spec),
        Arch::Bert => bert(spec),
    };
    let index: HashMap<&str, usize> = lines.iter().enumerate().map(|(i, l)| (l.source.as_str(), i)).collect();
    let mut found: Vec<Option<Placed>> = vec![None; lines.len()];
    let mut skipped = Vec::new();
    for (name, shape) in tensors {
        let canonical = canonical(spec.arch, name);
        let Some(&i) = index.get(canonical.as_str()) else {
            match unused(&canonical) {
                Some(why) => skipped.push((name.clone(), why)),
                None => return Err(Error::UnknownTensor { name: name.clone(), arch, task }),
            }
            continue;
        };
        let line = &lines[i];
        if *shape != line.shape {
            return Err(Error::Shape { name: name.clone(), found: shape.clone(), expected: line.shape.clone() });
        }
        let placed = Placed { source: name.clone(), shape: shape.clone(), to: line.to.clone(), heads: line.heads };
        if let Some(first) = found[i].replace(placed) {
            let gguf = match &line.to {
                Destination::Tensor(name) => name.clone(),
                Destination::Key(key) => (*key).to_string(),
            };
            return Err(Error::SameName { first: first.source, second: name.clone(), gguf });
        }
    }
    for (line, found) in lines.iter().zip(&found) {
        if line.required && found.is_none() {
            let name = line.source.clone();
            return Err(Error::MissingTensor { name, arch, task, n_layers: spec.n_layers });
        }
    }
    Ok((found.into_iter().flatten().collect(), skipped))
}

/// The name without what checkpoints vary.
fn canonical(arch: Arch, name: &str) -> String {
    match arch {
        Arch::Llama | Arch::Qwen2 => name.strip_prefix("model.").unwrap_or(name).to_string(),
        Arch::Bert => {
            let name = name.strip_prefix("bert.").unwrap_or(name);
            let norm = |old: &str, new: &str| Some(format!("{}.LayerNorm.{new}", name.strip_suffix(old)?));
            norm(".LayerNorm.gamma", "weight")
                .or_else(|| norm(".LayerNorm.beta", "bias"))
                .unwrap_or_else(|| name.to_string())
        }
    }
}

/// Why a tensor without a line may be left out; `None` when it may not.
fn unused(canonical: &str) -> Option<&'static str> {
    if canonical.ends_with("rotary_emb.inv_freq") {
        Some("a buffer: the runtime computes the rotary frequencies")
    } else if matches!(canonical, "embeddings.position_ids" | "embeddings.token_type_ids") {
        Some("a buffer: 0, 1, 2, ...")
    } else if canonical.starts_with("cls.predictions.") || canonical.starts_with("cls.seq_relationship.") {
        Some("a pre-training head: no task here uses it")
    } else {
        None
    }
}

struct Table(Vec<Line>);

impl Table {
    fn add(&mut self, required: bool, source: String, to: String, shape: &[usize]) -> &mut Line {
        self.0.push(Line { source, shape: shape.to_vec(), to: Destination::Tensor(to), heads: None, required });
        self.0.last_mut().expect("just pushed")
    }
    fn key(&mut self, source: &str, key: &'static str, shape: &[usize]) {
        self.add(true, source.into(), String::new(), shape).to = Destination::Key(key);
    }
}

/// Llama and Qwen2. C = hidden, H and K = query and key heads, D = head width, F = feed-forward width, V = vocabulary.
fn decoder(spec: &ModelSpec) -> Vec<Line> {
    let (c, f, v, d) = (spec.hidden_size, spec.intermediate_size, spec.vocab_size, spec.head_dim);
    let (q, kv) = (spec.n_heads * d, spec.n_kv_heads * d);
    let mut t = Table(Vec::new());
    t.add(true, "embed_tokens.weight".into(), "token_embd.weight".into(), &[v, c]);
    t.add(true, "norm.weight".into(), "output_norm.weight".into(), &[c]);
    match &spec.task {
        Task::Classify { labels } => t.key("score.weight", "edgeft.head.score.weight", &[labels.len(), c]),
        Task::Generate | Task::Answer | Task::Embed => {
            t.add(false, "lm_head.weight".into(), "output.weight".into(), &[v, c]);
        }
    }
    for i in 0..spec.n_layers {
        for (hf, gguf) in [("input_layernorm", "attn_norm"), ("post_attention_layernorm", "ffn_norm")] {
            t.add(true, format!("layers.{i}.{hf}.weight"), format!("blk.{i}.{gguf}.weight"), &[c]);
        }
        for (hf, gguf, out, input, heads) in [
            ("self_attn.q_proj", "attn_q", q, c, Some(spec.n_heads)),
            ("self_attn.k_proj", "attn_k", kv, c, Some(spec.n_kv_heads)),
            ("self_attn.v_proj", "attn_v", kv, c, None),
            ("self_attn.o_proj", "attn_output", c, q, None),
            ("mlp.gate_proj", "ffn_gate", f, c, None),
            ("mlp.up_proj", "ffn_up", f, c, None),
            ("mlp.down_proj", "ffn_down", c, f, None),
        ] {
            // llama.cpp rotates adjacent pairs in Llama files, and pairs half a head apart in Qwen2 files, as here.
            let heads = heads.filter(|_| spec.arch == Arch::Llama);
            let bias = spec.arch == Arch::Qwen2 && matches!(gguf, "attn_q" | "attn_k" | "attn_v");
            let (hf, gguf) = (format!("layers.{i}.{hf}"), format!("blk.{i}.{gguf}"));
            t.add(true, format!("{hf}.weight"), format!("{gguf}.weight"), &[out, input]).heads = heads;
            t.add(bias, format!("{hf}.bias"), format!("{gguf}.bias"), &[out]).heads = heads;
        }
    }
    t.0
}

fn bert(spec: &ModelSpec) -> Vec<Line> {
    let (c, f) = (spec.hidden_size, spec.intermediate_size);
    let mut t = Table(Vec::new());
    for (hf, gguf, rows) in [
        ("word_embeddings", "token_embd", spec.vocab_size),
        ("position_embeddings", "position_embd", spec.n_ctx),
        ("token_type_embeddings", "token_types", spec.type_vocab_size),
    ] {
        t.add(true, format!("embeddings.{hf}.weight"), format!("{gguf}.weight"), &[rows, c]);
    }
    let mut layer = |hf: String, gguf: String, out: usize, input: Option<usize>, required: bool| {
        let weight = [out, input.unwrap_or(0)];
        let weight = if input.is_some() { &weight[..] } else { &weight[..1] };
        t.add(required, format!("{hf}.weight"), format!("{gguf}.weight"), weight);
        t.add(required, format!("{hf}.bias"), format!("{gguf}.bias"), &[out]);
    };
    layer("embeddings.LayerNorm".into(), "token_embd_norm".into(), c, None, true);
    for i in 0..spec.n_layers {
        for (hf, gguf, out, input) in [
            ("attention.self.query", "attn_q", c, Some(c)),
            ("attention.self.key", "attn_k", c, Some(c)),
            ("attention.self.value", "attn_v", c, Some(c)),
            ("attention.output.dense", "attn_output", c, Some(c)),
            ("attention.output.LayerNorm", "attn_output_norm", c, None),
            ("intermediate.dense", "ffn_up", f, Some(c)),
            ("output.dense", "ffn_down", c, Some(f)),
            ("output.LayerNorm", "layer_output_norm", c, None),
        ] {
            layer(format!("encoder.layer.{i}.{hf}"), format!("blk.{i}.{gguf}"), out, input, true);
        }
    }
    let classify = matches!(spec.task, Task::Classify { .. });
    layer("pooler.dense".into(), "cls".into(), c, Some(c), classify);
    if let Task::Classify { labels } = &spec.task {
        layer("classifier".into(), "cls.output".into(), labels.len(), Some(c), true);
    }
    if spec.task == Task::Answer {
        t.key("qa_outputs.weight", "edgeft.head.qa_outputs.weight", &[2, c]);
        t.key("qa_outputs.bias", "edgeft.head.qa_outputs.bias", &[2]);
    }
    t.0
}

/// Turns the rows of each head from Hugging Face's pairs `(j, j + D/2)` to adjacent pairs `(2j, 2j + 1)`:
/// row `2j + s` of a head comes from row `s D/2 + j`. `x` is `(n_heads * D, width)`, or a bias with width 1.
///
/// # Panics
/// When `x` is not `n_heads` heads of an even number of rows of `width`.
pub fn interleave_heads(x: &[f32], n_heads: usize, width: usize) -> Vec<f32> {
    let rows = x.len() / width;
    let d = rows / n_heads;
    assert!(
        x.len() == n_heads * d * width && d.is_multiple_of(2),
        "{} values, {n_heads} heads, width {width}",
        x.len()
    );
    let mut out = Vec::with_capacity(x.len());
    for head in x.chunks_exact(d * width) {
        for row in 0..d {
            let from = row % 2 * (d / 2) + row / 2;
            out.extend_from_slice(&head[from * width..(from + 1) * width]);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::{TensorSource, tests::Tiny};

    fn names(tiny: &Tiny) -> Result<Vec<(String, String)>> {
        let (placed, _) = place(&tiny.spec, &tiny.tensors())?;
        Ok(placed
            .into_iter()
            .map(|p| match p.to {
                Destination::Tensor(name) => (p.source, name),
                Destination::Key(key) => (p.source, key.to_string()),
            })
            .collect())
    }

    #[test]
    fn llama_and_qwen2_names() {
        for (arch, n) in [(Arch::Llama, 9), (Arch::Qwen2, 12)] {
            let tiny = Tiny::decoder(arch, 64, 96, 2);
            let names = names(&tiny).unwrap();
            assert_eq!(names.len(), 3 + 2 * n);
            let of = |hf: &str| names.iter().find(|(a, _)| a == hf).map(|(_, b)| b.as_str());
            assert_eq!(of("model.embed_tokens.weight"), Some("token_embd.weight"));
            assert_eq!(of("lm_head.weight"), Some("output.weight"));
            assert_eq!(of("model.layers.1.post_attention_layernorm.weight"), Some("blk.1.ffn_norm.weight"));
            assert_eq!(of("model.layers.1.self_attn.o_proj.weight"), Some("blk.1.attn_output.weight"));
            assert_eq!(of("model.layers.0.mlp.down_proj.weight"), Some("blk.0.ffn_down.weight"));
        }
    }

    #[test]
    fn only_llama_reorders_and_key_rows_by_key_heads() {
        let heads = |arch| -> Vec<(String, usize)> {
            let tiny = Tiny::decoder(arch, 64, 96, 1);
            let (placed, _) = place(&tiny.spec, &tiny.tensors()).unwrap();
            placed.into_iter().filter_map(|p| Some((p.source, p.heads?))).collect()
        };
        assert_eq!(heads(Arch::Qwen2), []);
        let want = [("model.layers.0.self_attn.q_proj.weight", 4), ("model.layers.0.self_attn.k_proj.weight", 2)];
        assert_eq!(heads(Arch::Llama), want.map(|(n, h)| (n.to_string(), h)));
    }

    #[test]
    fn bert_names_with_and_without_prefix_old_and_new_norms() {
        let tiny = Tiny::bert();
        let with = names(&tiny).unwrap();
        let of = |hf: &str| with.iter().find(|(a, _)| a == hf).map(|(_, b)| b.as_str());
        assert_eq!(of("bert.embeddings.LayerNorm.gamma"), Some("token_embd_norm.weight"));
        assert_eq!(of("bert.encoder.layer.0.output.LayerNorm.bias"), Some("blk.0.layer_output_norm.bias"));
        assert_eq!(of("bert.pooler.dense.weight"), Some("cls.weight"));
        assert_eq!(of("classifier.bias"), Some("cls.output.bias"));
        let mut bare = Tiny::bert();
        bare.tensors = bare.tensors.into_iter().map(|(n, t)| (n.trim_start_matches("bert.").into(), t)).collect();
        let mut ggufs: Vec<_> = with.into_iter().map(|(_, g)| g).collect();
        let mut bares: Vec<_> = names(&bare).unwrap().into_iter().map(|(_, g)| g).collect();
        ggufs.sort();
        bares.sort();
        assert_eq!(ggufs, bares);
    }

    #[test]
    fn heads_without_a_tensor_become_keys() {
        let mut tiny = Tiny::llama();
        tiny.spec.task = Task::Classify { labels: vec!["x".into(), "y".into()] };
        tiny.tensors.remove("lm_head.weight");
        tiny.put("score.weight", &[2, 64]);
        assert!(names(&tiny).unwrap().contains(&("score.weight".into(), "edgeft.head.score.weight".into())));
        let mut qa = Tiny::bert();
        qa.spec.task = Task::Answer;
        qa.tensors.retain(|n, _| !n.starts_with("classifier") && !n.contains("pooler"));
        qa.put("qa_outputs.weight", &[2, 64]);
        qa.put("qa_outputs.bias", &[2]);
        assert!(names(&qa).unwrap().contains(&("qa_outputs.bias".into(), "edgeft.head.qa_outputs.bias".into())));
    }

    #[track_caller]
    fn refuses(change: impl FnOnce(&mut Tiny), because: &str) {
        let mut tiny = Tiny::llama();
        change(&mut tiny);
        assert_eq!(names(&tiny).unwrap_err().to_string(), because);
    }

    #[test]
    fn what_does_not_fit_is_named() {
        refuses(
            |t| t.put("model.layers.0.self_attn.q_norm.weight", &[16]),
            "tensor `model.layers.0.self_attn.q_norm.weight`: no rule of the llama architecture names it for the task \
             generate; remove it from the source or check the task",
        );
        refuses(
            |t| t.put("model.layers.2.mlp.up_proj.weight", &[96, 64]),
            "tensor `model.layers.2.mlp.up_proj.weight`: no rule of the llama architecture names it for the task \
             generate; remove it from the source or check the task",
        );
        refuses(
            |t| drop(t.tensors.remove("model.norm.weight")),
            "tensor `norm.weight` is missing: a llama model for the task generate with 2 layers needs it",
        );
        refuses(
            |t| t.put("embed_tokens.weight", &[40, 64]),
            "tensors `embed_tokens.weight` and `model.embed_tokens.weight` are both `token_embd.weight` in a GGUF file; \
             keep one",
        );
        refuses(
            |t| t.put("model.layers.0.self_attn.k_proj.weight", &[64, 64]),
            "tensor `model.layers.0.self_attn.k_proj.weight` has shape [64, 64], but the config says [32, 64]",
        );
    }

    #[test]
    fn buffers_are_left_out_and_listed() {
        let mut tiny = Tiny::llama();
        tiny.put("model.layers.0.self_attn.rotary_emb.inv_freq", &[8]);
        let (_, skipped) = place(&tiny.spec, &tiny.tensors()).unwrap();
        assert_eq!(skipped.len(), 1);
        assert_eq!(skipped[0].0, "model.layers.0.self_attn.rotary_emb.inv_freq");
    }

    #[test]
    fn rows_of_a_head_interleave() {
        // Two heads of four rows, width 2: rows 0 1 2 3 become 0 2 1 3 in each.
        let x: Vec<f32> = (0..16).map(|i| i as f32).collect();
        let want = [0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15].map(|i| i as f32);
        assert_eq!(interleave_heads(&x, 2, 2), want);
        assert_eq!(interleave_heads(&[0.0, 1.0, 2.0, 3.0, 4.0, 5.0], 1, 1), [0.0, 3.0, 1.0, 4.0, 2.0, 5.0]);
    }
}
