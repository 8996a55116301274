//! Hugging Face name -> GGUF name, and what changes on the way ([`Change`]): order, direction, offsets.
//!
//! The table is built from the spec, so it works in both directions: a tensor that no line names is an error, and so is a
//! line without its tensor. Names that differ only in an optional prefix (`model.`, `bert.`) or in TensorFlow's old
//! `gamma`/`beta` are the same line.

mod change;
mod tables;

pub use change::{Change, interleave_heads};

use crate::{
    error::{Error, Result},
    source::{Arch, ModelSpec},
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
    /// What happens to its values.
    pub change: Change,
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
    change: Change,
    required: bool,
}

/// Places every tensor of a source.
///
/// # Errors
/// By name: a tensor that no rule knows, one that is missing, two that are the same, one whose shape is not the config's.
pub fn place(spec: &ModelSpec, tensors: &[(String, Vec<usize>)]) -> Result<(Vec<Placed>, Vec<Skipped>)> {
    let (arch, task) = (spec.arch.name(), spec.task.name());
    let lines = tables::of(spec);
    let index: HashMap<&str, usize> = lines.iter().enumerate().map(|(i, l)| (l.source.as_str(), i)).collect();
    let mut found: Vec<Option<Placed>> = vec![None; lines.len()];
    let mut skipped = Vec::new();
    for (name, shape) in tensors {
        let canonical = canonical(spec.arch, name);
        let Some(&i) = index.get(canonical.as_str()) else {
            match unused(spec, &canonical) {
                Some(why) => skipped.push((name.clone(), why)),
                None => return Err(Error::UnknownTensor { name: name.clone(), arch, task }),
            }
            continue;
        };
        let line = &lines[i];
        if *shape != line.shape {
            return Err(Error::Shape { name: name.clone(), found: shape.clone(), expected: line.shape.clone() });
        }
        let placed = Placed { source: name.clone(), shape: shape.clone(), to: line.to.clone(), change: line.change };
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
    let name = name.strip_prefix(arch.prefix()).unwrap_or(name);
    if !arch.is_encoder() {
        return name.to_string();
    }
    let norm = |old: &str, new: &str| Some(format!("{}.LayerNorm.{new}", name.strip_suffix(old)?));
    norm(".LayerNorm.gamma", "weight").or_else(|| norm(".LayerNorm.beta", "bias")).unwrap_or_else(|| name.to_string())
}

/// Why a tensor without a line may be left out; `None` when it may not.
fn unused(spec: &ModelSpec, canonical: &str) -> Option<&'static str> {
    const HEAD: &str = "a pre-training head: no task here uses it";
    if canonical.ends_with("rotary_emb.inv_freq") {
        return Some("a buffer: the runtime computes the rotary frequencies");
    }
    if matches!(canonical, "embeddings.position_ids" | "embeddings.token_type_ids") {
        return Some("a buffer: 0, 1, 2, ...");
    }
    if canonical.starts_with("cls.predictions.") || canonical.starts_with("cls.seq_relationship.") {
        return Some(HEAD);
    }
    match spec.arch {
        Arch::Gpt2 if canonical.ends_with(".attn.bias") || canonical.ends_with(".attn.masked_bias") => {
            Some("a buffer: the causal mask")
        }
        Arch::Roberta if canonical.starts_with("lm_head.") => Some(HEAD),
        Arch::Roberta if canonical.starts_with("pooler.") => Some("its classifier has a layer in the pooler's place"),
        Arch::DistilBert if canonical.starts_with("vocab_") => Some(HEAD),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::{Task, TensorSource, tests::Tiny};

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
            let heads = |change| if let Change::Interleave(heads) = change { Some(heads) } else { None };
            placed.into_iter().filter_map(|p| Some((p.source, heads(p.change)?))).collect()
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

    #[test]
    fn the_other_families_names_and_what_changes_on_the_way() {
        let line = |tiny: &Tiny, hf: &str| {
            let (placed, _) = place(&tiny.spec, &tiny.tensors()).unwrap();
            let p = placed.into_iter().find(|p| p.source == hf).unwrap_or_else(|| panic!("{hf}"));
            let Destination::Tensor(name) = p.to else { panic!("{hf}") };
            (name, p.change)
        };
        let gemma = Tiny::gemma3();
        for (hf, gguf) in [
            ("model.norm", "output_norm"),
            ("model.layers.0.post_attention_layernorm", "blk.0.post_attention_norm"),
            ("model.layers.1.pre_feedforward_layernorm", "blk.1.ffn_norm"),
            ("model.layers.1.post_feedforward_layernorm", "blk.1.post_ffw_norm"),
            ("model.layers.1.self_attn.k_norm", "blk.1.attn_k_norm"),
        ] {
            assert_eq!(line(&gemma, &format!("{hf}.weight")), (format!("{gguf}.weight"), Change::PlusOne));
        }
        assert_eq!(line(&gemma, "model.layers.0.self_attn.q_proj.weight").1, Change::None);
        let phi = Tiny::phi3();
        assert_eq!(line(&phi, "model.layers.1.self_attn.qkv_proj.weight").0, "blk.1.attn_qkv.weight");
        assert_eq!(line(&phi, "model.layers.1.mlp.gate_up_proj.weight").0, "blk.1.ffn_up.weight");
        let gpt = Tiny::gpt2();
        for (hf, gguf) in [("attn.c_attn", "attn_qkv"), ("mlp.c_fc", "ffn_up"), ("mlp.c_proj", "ffn_down")] {
            let hf = format!("transformer.h.0.{hf}.weight");
            assert_eq!(line(&gpt, &hf), (format!("blk.0.{gguf}.weight"), Change::Turn));
        }
        assert_eq!(line(&gpt, "transformer.wpe.weight").0, "position_embd.weight");
        assert_eq!(line(&gpt, "transformer.h.1.ln_2.bias").0, "blk.1.ffn_norm.bias");
    }

    #[test]
    fn roberta_and_distilbert_are_bert_with_other_names() {
        let renamed = |arch: Arch, names: &[(&str, &str)]| {
            let mut tiny = Tiny::bert();
            tiny.spec.arch = arch;
            tiny.tensors = std::mem::take(&mut tiny.tensors)
                .into_iter()
                .map(|(n, t)| (names.iter().fold(n, |n, (from, to)| n.replace(from, to)), t))
                .collect();
            tiny
        };
        let mut roberta = renamed(
            Arch::Roberta,
            &[("classifier", "classifier.out_proj"), ("bert.pooler.dense", "classifier.dense"), ("bert.", "roberta.")],
        );
        roberta.spec.position_offset = 2;
        roberta.put("roberta.embeddings.position_embeddings.weight", &[130, 64]);
        let (placed, _) = place(&roberta.spec, &roberta.tensors()).unwrap();
        let of = |hf: &str| placed.iter().find(|p| p.source == hf).map(|p| (&p.to, p.change));
        let tensor = |name: &str| Destination::Tensor(name.into());
        assert_eq!(
            of("roberta.embeddings.position_embeddings.weight"),
            Some((&tensor("position_embd.weight"), Change::Skip(2)))
        );
        assert_eq!(of("classifier.dense.bias"), Some((&tensor("cls.bias"), Change::None)));
        assert_eq!(of("classifier.out_proj.weight"), Some((&tensor("cls.output.weight"), Change::None)));
        let distilbert = [
            ("bert.pooler.dense", "pre_classifier"),
            ("bert.encoder.layer", "distilbert.transformer.layer"),
            ("bert.embeddings", "distilbert.embeddings"),
            ("attention.self.query", "attention.q_lin"),
            ("attention.self.key", "attention.k_lin"),
            ("attention.self.value", "attention.v_lin"),
            ("attention.output.dense", "attention.out_lin"),
            ("attention.output.LayerNorm", "sa_layer_norm"),
            ("intermediate.dense", "ffn.lin1"),
            ("0.output.dense", "0.ffn.lin2"),
            ("0.output.LayerNorm", "0.output_layer_norm"),
        ];
        let mut distilbert = renamed(Arch::DistilBert, &distilbert);
        distilbert.spec.type_vocab_size = 0;
        distilbert.tensors.remove("distilbert.embeddings.token_type_embeddings.weight");
        let (placed, _) = place(&distilbert.spec, &distilbert.tensors()).unwrap();
        let keys = placed.iter().filter(|p| matches!(p.to, Destination::Key(_))).count();
        assert_eq!((placed.len(), keys), (1 + 1 + 2 + 16 + 4, 4));
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
}
