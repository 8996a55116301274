//! Gemma 3, Phi-3, GPT-2 and DistilBERT, small.

use super::{labels, with, without};
use crate::source::{Arch, Task, tests::Tiny};

/// BERT without a head.
pub(super) fn encoder() -> Tiny {
    with(without(Tiny::bert(), "classifier"), |s| s.task = Task::Embed)
}

/// The families that only standard operators have graphs of.
pub(super) fn families() -> Vec<(&'static str, Tiny)> {
    let mut distilbert = with(encoder(), |s| (s.arch, s.type_vocab_size) = (Arch::DistilBert, 0));
    let renamed = |name: String| {
        [
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
        ]
        .into_iter()
        .fold(name, |name, (from, to)| name.replace(from, to))
    };
    let of_bert = |name: &String| !name.contains("token_type") && !name.contains("pooler");
    let tensors = std::mem::take(&mut distilbert.tensors).into_iter().filter(|(name, _)| of_bert(name));
    distilbert.tensors = tensors.map(|(name, tensor)| (renamed(name), tensor)).collect();
    distilbert.spec.task = labels();
    for (name, shape) in [("pre_classifier", [64, 64]), ("classifier", [2, 64])] {
        distilbert.put(&format!("{name}.weight"), &shape);
        distilbert.put(&format!("{name}.bias"), &shape[..1]);
    }
    let mut untied = Tiny::gpt2();
    untied.put("lm_head.weight", &[40, 64]);
    vec![
        ("gemma3", Tiny::gemma3()),
        ("phi3", Tiny::phi3()),
        ("phi3 in part", with(Tiny::phi3(), |s| s.rope.as_mut().unwrap().dims = Some(8))),
        ("gpt2", Tiny::gpt2()),
        ("untied gpt2", untied),
        ("distilbert", distilbert),
    ]
}
