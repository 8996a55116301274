//! BERT (arXiv:1810.04805), RoBERTa and DistilBERT: learned positions, post-norm blocks, GELU.
//!
//! In: `input_ids`, `attention_mask`, and where the model has types `token_type_ids`, (B, S) each. Out: `logits` (B, labels) of a classifier,
//! `start_logits` and `end_logits` (B, S) of a model that answers with spans, else `last_hidden_state` (B, S, C).

use super::graph::{Dim, Value};
use super::net::Net;
use super::proto::DataType;
use crate::{
    error::Result,
    source::{Arch, Task},
};

const BATCH: Dim = Dim::Named("batch_size");
const TOKENS: Dim = Dim::Named("sequence_length");

pub(super) fn build(net: &mut Net) -> Result<()> {
    let spec = net.spec;
    let mut input = |name: &str| net.graph.input(name, DataType::Int64, &[BATCH, TOKENS]);
    let (ids, mask) = (input("input_ids"), input("attention_mask"));
    let types = (spec.type_vocab_size > 0).then(|| input("token_type_ids"));
    net.graph.scope = "mask".into();
    let shown = net.graph.cast(&mask, DataType::Bool);
    let shown = net.graph.unsqueeze(&shown, &[1, 2]); // (B, 1, 1, S)
    let bias = net.bias(&shown);
    let mut x = embeddings(net, &ids, types.as_deref())?;
    for i in 0..spec.n_layers {
        x = layer(net, i, &x, &bias)?;
    }
    match &spec.task {
        Task::Classify { labels } => {
            net.graph.scope = "pooler".into();
            let first = net.graph.int(0);
            let x = net.graph.gather(&x, &first, 1); // (B, C)
            let (dense, bend, output) = match spec.arch {
                Arch::DistilBert => ("edgeft.head.pre_classifier", "Relu", "edgeft.head.classifier"),
                _ => ("cls", "Tanh", "cls.output"),
            };
            let x = net.linear(&x, dense)?;
            let x = net.graph.op(bend, &[&x]);
            net.graph.scope = "classifier".into();
            let logits = net.linear(&x, output)?;
            net.graph.output("logits", &logits, DataType::Float, &[BATCH, Dim::Fixed(labels.len())]);
        }
        Task::Answer => {
            net.graph.scope = "qa_outputs".into();
            let both = net.linear(&x, "edgeft.head.qa_outputs")?; // (B, S, 2)
            for (name, side) in net.graph.halves(&both, 1).into_iter().zip(["start_logits", "end_logits"]) {
                let axes = net.graph.ints(&[2]);
                let logits = net.graph.op("Squeeze", &[&name, &axes]);
                net.graph.output(side, &logits, DataType::Float, &[BATCH, TOKENS]);
            }
        }
        Task::Generate | Task::Embed => {
            let dims = [BATCH, TOKENS, Dim::Fixed(spec.hidden_size)];
            net.graph.output("last_hidden_state", &x, DataType::Float, &dims);
        }
    }
    Ok(())
}

/// (B, S) ids and types -> (B, S, C). Positions count from 0 in every row, as the padding stands behind.
fn embeddings(net: &mut Net, ids: &str, types: Option<&str>) -> Result<Value> {
    net.graph.scope = "embeddings".into();
    let words = net.weights.table(&mut net.graph, "token_embd.weight")?;
    let positions = net.weights.table(&mut net.graph, "position_embd.weight")?;
    let kinds = match types {
        Some(types) => Some((types, net.weights.table(&mut net.graph, "token_types.weight")?)),
        None => None,
    };
    let g = &mut net.graph;
    let (zero, one, tokens) = (g.int(0), g.int(1), g.length(ids, 1));
    let index = g.op("Range", &[&zero, &tokens, &one]);
    let mut x = words.rows(g, ids, 2);
    let kinds = kinds.map(|(types, table)| table.rows(g, types, 2));
    let positions = positions.rows(g, &index, 1); // (S, C)
    if let Some(kinds) = kinds {
        x = g.op("Add", &[&x, &kinds]);
    }
    let x = g.op("Add", &[&x, &positions]);
    net.norm(&x, "token_embd_norm")
}

/// x (B, S, C) -> the same. Post-norm: each sum is normed, not what goes into it.
fn layer(net: &mut Net, i: usize, x: &str, bias: &str) -> Result<Value> {
    let at = |part: &str| format!("blk.{i}.{part}");
    net.graph.scope = format!("layer.{i}.attention");
    let mut part = |name: &str| -> Result<Value> {
        let y = net.linear(x, &at(name))?;
        Ok(net.heads(&y, net.spec.n_heads))
    };
    let (q, k, v) = (part("attn_q")?, part("attn_k")?, part("attn_v")?);
    let y = net.attention(&q, &k, &v, bias);
    let y = net.linear(&y, &at("attn_output"))?;
    let x = net.graph.op("Add", &[&y, x]);
    let x = net.norm(&x, &at("attn_output_norm"))?;
    net.graph.scope = format!("layer.{i}.mlp");
    let h = net.linear(&x, &at("ffn_up"))?;
    let h = gelu(net, &h);
    let y = net.linear(&h, &at("ffn_down"))?;
    let y = net.graph.op("Add", &[&y, &x]);
    net.norm(&y, &at("layer_output_norm"))
}

/// x / 2 (1 + erf(x / sqrt 2)), arXiv:1606.08415, in the order of operators that runtimes know how to fuse.
fn gelu(net: &mut Net, x: &str) -> Value {
    let g = &mut net.graph;
    let (root, one, half) = (g.float(std::f32::consts::SQRT_2), g.float(1.0), g.float(0.5));
    let y = g.op("Div", &[x, &root]);
    let y = g.op("Erf", &[&y]);
    let y = g.op("Add", &[&y, &one]);
    let y = g.op("Mul", &[x, &y]);
    g.op("Mul", &[&y, &half])
}
