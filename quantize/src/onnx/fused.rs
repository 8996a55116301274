//! A Llama, Mistral or Qwen2 decoder in ONNX Runtime's own operators (`com.microsoft`, and `SimplifiedLayerNormalization`):
//! a node is an attention, a norm with the sum before it, a product with codes. The layout is that of ONNX Runtime GenAI's
//! model builder, so that one buffer may serve as past and present.
//!
//! In: `input_ids` (B, S), `attention_mask` (B, T), `past_key_values.{i}.key|value` (B, K, P, D), and `position_ids` (B, S)
//! where D is no multiple of 16, which GroupQueryAttention needs to turn the keys itself. Out: `logits` (B, S, V),
//! `present.{i}.key|value` (B, K, T, D), or as long as the past where that has room for T.
//!
//! Padding stands behind the tokens: GroupQueryAttention is told how many tokens a row has, not where they are.

use super::graph::{Graph, Value, float, int};
use super::llama::{BATCH, PAST, TOKENS, TOTAL, frequencies, swiglu};
use super::net::Net;
use super::proto::DataType;
use super::{Operators, graph::Dim, weights::Table};
use crate::error::{Error, Result};
use crate::source::{Arch, ModelSpec};

/// What GroupQueryAttention is told beside queries, keys and values.
struct Told {
    /// Tokens of each row but one, INT32 (B).
    last: Value,
    /// T, INT32.
    total: Value,
    /// Cosines and sines of every position, (context, D/2).
    cos: Value,
    sin: Value,
    /// (B, S), where the keys are turned before.
    positions: Option<Value>,
}

/// # Errors
/// A shape that these operators do not take, or take differently from version to version.
pub(super) fn check(spec: &ModelSpec) -> Result<()> {
    if !matches!(spec.arch, Arch::Llama | Arch::Qwen2) {
        return Err(Error::OnnxFamily { model_type: spec.arch.model_type() });
    }
    if let Some(window) = spec.sliding_window.filter(|w| *w < spec.n_ctx) {
        return Err(Error::Spec {
            field: "sliding_window",
            value: window.to_string(),
            need: "GroupQueryAttention looks back one token less in ONNX Runtime 1.32 than in 1.22; write portable operators",
        });
    }
    if !spec.head_dim.is_multiple_of(8) {
        return Err(Error::Spec {
            field: "head_dim",
            value: spec.head_dim.to_string(),
            need: "GroupQueryAttention takes multiples of 8; write portable operators",
        });
    }
    Ok(())
}

pub(super) fn build(net: &mut Net) -> Result<()> {
    let spec = net.spec;
    let g = &mut net.graph;
    let ids = g.input("input_ids", DataType::Int64, &[BATCH, TOKENS]);
    let mask = g.input("attention_mask", DataType::Int64, &[BATCH, TOTAL]);
    let positions = Operators::Ort
        .takes_positions(spec.head_dim)
        .then(|| g.input("position_ids", DataType::Int64, &[BATCH, TOKENS]));
    let heads = |length| [BATCH, Dim::Fixed(spec.n_kv_heads), length, Dim::Fixed(spec.head_dim)];
    let mut past = Vec::new();
    for i in 0..spec.n_layers {
        past.push(
            ["key", "value"].map(|part| g.input(&format!("past_key_values.{i}.{part}"), DataType::Float, &heads(PAST))),
        );
    }
    let told = told(net, &mask, positions)?;
    net.graph.scope = "embed_tokens".into();
    let embedding = net.weights.table(&mut net.graph, "token_embd.weight")?;
    let mut x = embedding.rows(&mut net.graph, &ids, 2); // (B, S, C)
    net.graph.scope = "layers.0.self_attn".into();
    let mut n = first_norm(net, &x)?;
    let mut present = Vec::new();
    for i in 0..spec.n_layers {
        let at = |part: &str| format!("blk.{i}.{part}");
        net.graph.scope = format!("layers.{i}.self_attn");
        let (y, cache) = attention(net, i, &n, &told, &past[i])?;
        present.push(cache);
        net.graph.scope = format!("layers.{i}.mlp");
        let h = add_and_norm(net, &y, &x, &at("ffn_norm.weight"), true)?;
        let y = swiglu(net, i, &h.normed)?;
        let last = i + 1 == spec.n_layers;
        let next = if last { "output_norm.weight".to_owned() } else { format!("blk.{}.attn_norm.weight", i + 1) };
        net.graph.scope = if last { "norm".to_owned() } else { format!("layers.{}.self_attn", i + 1) };
        let sum = add_and_norm(net, &y, &h.sum, &next, !last)?;
        (n, x) = (sum.normed, sum.sum);
    }
    net.graph.scope = "lm_head".into();
    let logits = head(net, &n, &embedding)?;
    net.graph.output("logits", &logits, DataType::Float, &[BATCH, TOKENS, Dim::Fixed(spec.vocab_size)]);
    for (i, cache) in present.iter().enumerate() {
        for (part, value) in ["key", "value"].into_iter().zip(cache) {
            net.graph.output(&format!("present.{i}.{part}"), value, DataType::Float, &heads(TOTAL));
        }
    }
    Ok(())
}

/// n (B, S, C) -> (B, S, C), and the cache's keys and values.
fn attention(net: &mut Net, i: usize, n: &str, told: &Told, past: &[Value; 2]) -> Result<(Value, [Value; 2])> {
    let spec = net.spec;
    let mut q = net.linear(n, &format!("blk.{i}.attn_q"))?; // (B, S, H D)
    let mut k = net.linear(n, &format!("blk.{i}.attn_k"))?; // (B, S, K D)
    let v = net.linear(n, &format!("blk.{i}.attn_v"))?;
    if let Some(positions) = &told.positions {
        q = turn(&mut net.graph, &q, positions, told, spec.n_heads);
        k = turn(&mut net.graph, &k, positions, told, spec.n_kv_heads);
    }
    let mut inputs = vec![q.as_str(), &k, &v, &past[0], &past[1], &told.last, &told.total];
    let turns = told.positions.is_none();
    if turns {
        inputs.extend([told.cos.as_str(), &told.sin]);
    }
    let settings = vec![
        int("num_heads", spec.n_heads as i64),
        int("kv_num_heads", spec.n_kv_heads as i64),
        float("scale", 1.0 / (spec.head_dim as f32).sqrt()),
        int("do_rotary", i64::from(turns)),
        int("rotary_interleaved", 0),
    ];
    let [y, key, value] = net.graph.contrib("GroupQueryAttention", &inputs, [0, 1, 2], settings);
    Ok((net.linear(&y, &format!("blk.{i}.attn_output"))?, [key, value]))
}

/// x (B, S, n D): pairs half a head apart are turned by the angle of their position.
fn turn(g: &mut Graph, x: &str, positions: &str, told: &Told, heads: usize) -> Value {
    let settings = vec![int("num_heads", heads as i64), int("interleaved", 0)];
    let [x] = g.contrib("RotaryEmbedding", &[x, positions, &told.cos, &told.sin], [0], settings);
    x
}

fn told(net: &mut Net, mask: &str, positions: Option<Value>) -> Result<Told> {
    net.graph.scope = "mask".into();
    let g = &mut net.graph;
    let (one, axes) = (g.int(1), g.ints(&[1]));
    let tokens = g.op_with("ReduceSum", &[mask, &axes], vec![int("keepdims", 0)]); // (B)
    let last = g.op("Sub", &[&tokens, &one]);
    let last = g.cast(&last, DataType::Int32);
    let total = g.length(mask, 1);
    let total = g.cast(&total, DataType::Int32);
    net.graph.scope = "rotary".into();
    let frequencies: Vec<f64> = frequencies(net);
    let (n, half) = (net.spec.n_ctx, frequencies.len());
    let mut table = |name: &str, f: fn(f64) -> f64| -> Result<Value> {
        let angles = (0..n).flat_map(|t| frequencies.iter().map(move |w| t as f64 * w));
        let values: Vec<f32> = angles.map(|a| f(a) as f32).collect();
        net.weights.computed(&mut net.graph, name, &[n, half], &values)
    };
    let (cos, sin) = (table("rotary.cos", f64::cos)?, table("rotary.sin", f64::sin)?);
    Ok(Told { last, total, cos, sin, positions })
}

/// x / sqrt(mean(x^2) + eps) * weight: the first norm, which no sum comes before.
fn first_norm(net: &mut Net, x: &str) -> Result<Value> {
    let weight = net.weights.vector(&mut net.graph, "blk.0.attn_norm.weight")?;
    let settings = vec![int("axis", -1), float("epsilon", net.spec.norm_eps), int("stash_type", 1)];
    Ok(net.graph.op_with("SimplifiedLayerNormalization", &[x, &weight], settings))
}

/// A sum and its norm.
struct Summed {
    normed: Value,
    sum: Value,
}

/// `summed`: whether somebody reads the sum as well.
fn add_and_norm(net: &mut Net, x: &str, y: &str, weight: &str, summed: bool) -> Result<Summed> {
    let weight = net.weights.vector(&mut net.graph, weight)?;
    let settings = vec![float("epsilon", net.spec.norm_eps)];
    let op = "SkipSimplifiedLayerNormalization";
    if !summed {
        let [normed] = net.graph.contrib(op, &[x, y, &weight], [0], settings);
        return Ok(Summed { normed, sum: Value::new() });
    }
    let [normed, sum] = net.graph.contrib(op, &[x, y, &weight], [0, 3], settings);
    Ok(Summed { normed, sum })
}

fn head(net: &mut Net, x: &str, embedding: &Table) -> Result<Value> {
    if net.weights.has("output.weight") {
        return net.weights.multiply(&mut net.graph, x, "output.weight");
    }
    Ok(embedding.multiply(&mut net.graph, x)) // (B, S, V)
}
