//! Llama (arXiv:2302.13971), Mistral (arXiv:2310.06825: a sliding window), Qwen2 (arXiv:2407.10671: biases on q, k, v).
//!
//! In: `input_ids` (B, S), `attention_mask` (B, T), `position_ids` (B, S), `past_key_values.{i}.key|value` (B, K, P, D).
//! Out: `logits` (B, S, V), `present.{i}.key|value` (B, K, T, D), with the rotated keys. A classifier has neither cache nor
//! V: T = S, and its `logits` (B, labels) are those of each row's last token that the mask shows.

use super::graph::{Dim, Value, int};
use super::net::Net;
use super::proto::DataType;
use crate::{
    error::Result,
    source::{RopeScaling, Task},
};

pub(super) const BATCH: Dim = Dim::Named("batch_size");
pub(super) const TOKENS: Dim = Dim::Named("sequence_length");
pub(super) const PAST: Dim = Dim::Named("past_sequence_length");
pub(super) const TOTAL: Dim = Dim::Named("total_sequence_length");

/// Cosines and sines of the positions, (B, 1, S, D/2).
struct Angles {
    cos: Value,
    sin: Value,
}

pub(super) fn build(net: &mut Net) -> Result<()> {
    let spec = net.spec;
    let labels = match &spec.task {
        Task::Classify { labels } => Some(labels.len()),
        Task::Generate | Task::Answer | Task::Embed => None,
    };
    let g = &mut net.graph;
    let ids = g.input("input_ids", DataType::Int64, &[BATCH, TOKENS]);
    let total = if labels.is_none() { TOTAL } else { TOKENS };
    let mask = g.input("attention_mask", DataType::Int64, &[BATCH, total]);
    let positions = g.input("position_ids", DataType::Int64, &[BATCH, TOKENS]);
    let heads = |length| [BATCH, Dim::Fixed(spec.n_kv_heads), length, Dim::Fixed(spec.head_dim)];
    let mut past = Vec::new();
    if labels.is_none() {
        for i in 0..spec.n_layers {
            past.push(
                ["key", "value"]
                    .map(|part| g.input(&format!("past_key_values.{i}.{part}"), DataType::Float, &heads(PAST))),
            );
        }
    }
    let angles = angles(net, &positions);
    let bias = causal(net, &ids, &mask);
    net.graph.scope = "embed_tokens".into();
    let embedding = net.weights.table(&mut net.graph, "token_embd.weight")?;
    let mut x = embedding.rows(&mut net.graph, &ids, 2); // (B, S, C)
    let mut present = Vec::new();
    for i in 0..spec.n_layers {
        let (y, cache) = block(net, i, &x, &angles, &bias, past.get(i))?;
        x = y;
        present.push(cache);
    }
    net.graph.scope = "norm".into();
    let x = rms_norm(net, &x, "output_norm.weight")?;
    net.graph.scope = "lm_head".into();
    if let Some(labels) = labels {
        let x = last_token(net, &x, &ids, &mask); // (B, C)
        let logits = net.linear(&x, "edgeft.head.score")?;
        net.graph.output("logits", &logits, DataType::Float, &[BATCH, Dim::Fixed(labels)]);
        return Ok(());
    }
    let logits = if net.weights.has("output.weight") {
        net.weights.multiply(&mut net.graph, &x, "output.weight")?
    } else {
        embedding.multiply(&mut net.graph, &x) // (B, S, V)
    };
    net.graph.output("logits", &logits, DataType::Float, &[BATCH, TOKENS, Dim::Fixed(spec.vocab_size)]);
    for (i, cache) in present.iter().enumerate() {
        for (part, value) in ["key", "value"].into_iter().zip(cache) {
            net.graph.output(&format!("present.{i}.{part}"), value, DataType::Float, &heads(TOTAL));
        }
    }
    Ok(())
}

/// x (B, S, C) -> the same, and the cache's keys and values (B, K, T, D). Pre-norm, as in section 2.2 of the Llama paper.
fn block(
    net: &mut Net,
    i: usize,
    x: &str,
    angles: &Angles,
    bias: &str,
    past: Option<&[Value; 2]>,
) -> Result<(Value, [Value; 2])> {
    let (heads, kv_heads) = (net.spec.n_heads, net.spec.n_kv_heads);
    net.graph.scope = format!("layers.{i}.self_attn");
    let n = rms_norm(net, x, &format!("blk.{i}.attn_norm.weight"))?;
    let q = net.linear(&n, &format!("blk.{i}.attn_q"))?; // (B, S, H D)
    let k = net.linear(&n, &format!("blk.{i}.attn_k"))?; // (B, S, K D)
    let v = net.linear(&n, &format!("blk.{i}.attn_v"))?;
    let (q, k, mut v) = (net.heads(&q, heads), net.heads(&k, kv_heads), net.heads(&v, kv_heads));
    let (mut q, mut k) = (rotate(net, &q, angles), rotate(net, &k, angles));
    if let Some([past_k, past_v]) = past {
        k = net.graph.concat(&[past_k, &k], 2); // (B, K, T, D)
        v = net.graph.concat(&[past_v, &v], 2);
    }
    if heads != kv_heads {
        q = net.graph.reshape(&q, &[0, kv_heads as i64, -1, net.spec.head_dim as i64]); // (B, K, G S, D)
    }
    let y = net.attention(&q, &k, &v, bias);
    let y = net.linear(&y, &format!("blk.{i}.attn_output"))?;
    let x = net.graph.op("Add", &[x, &y]);
    net.graph.scope = format!("layers.{i}.mlp");
    let n = rms_norm(net, &x, &format!("blk.{i}.ffn_norm.weight"))?;
    let y = swiglu(net, i, &n)?;
    Ok((net.graph.op("Add", &[&x, &y]), [k, v]))
}

/// n (B, S, C) -> the same: down(silu(gate) * up), arXiv:2002.05202.
pub(super) fn swiglu(net: &mut Net, i: usize, n: &str) -> Result<Value> {
    let gate = net.linear(n, &format!("blk.{i}.ffn_gate"))?; // (B, S, F)
    let up = net.linear(n, &format!("blk.{i}.ffn_up"))?;
    let share = net.graph.op("Sigmoid", &[&gate]);
    let gate = net.graph.op("Mul", &[&gate, &share]); // SiLU
    let h = net.graph.op("Mul", &[&gate, &up]);
    net.linear(&h, &format!("blk.{i}.ffn_down"))
}

/// x / sqrt(mean(x^2) + eps) * weight, in the order of operators that runtimes know how to fuse.
fn rms_norm(net: &mut Net, x: &str, weight: &str) -> Result<Value> {
    let weight = net.weights.vector(&mut net.graph, weight)?;
    let g = &mut net.graph;
    let (two, eps) = (g.float(2.0), g.float(net.spec.norm_eps));
    let squares = g.op("Pow", &[x, &two]);
    let mean = g.reduce("ReduceMean", &squares, -1, true);
    let mean = g.op("Add", &[&mean, &eps]);
    let root = g.op("Sqrt", &[&mean]);
    let x = g.op("Div", &[x, &root]);
    Ok(g.op("Mul", &[&x, &weight]))
}

/// Angles of (B, S) positions: position times frequency, computed, so that no table ends a context.
fn angles(net: &mut Net, positions: &str) -> Angles {
    net.graph.scope = "rotary".into();
    let frequencies: Vec<f32> = frequencies(net).into_iter().map(|f| f as f32).collect();
    let g = &mut net.graph;
    let frequencies = g.floats("rotary.inv_freq", &frequencies);
    let positions = g.cast(positions, DataType::Float);
    let positions = g.unsqueeze(&positions, &[1, 3]); // (B, 1, S, 1)
    let angles = g.op("Mul", &[&positions, &frequencies]); // (B, 1, S, D/2)
    Angles { cos: g.op("Cos", &[&angles]), sin: g.op("Sin", &[&angles]) }
}

/// (D/2) radians a position.
pub(super) fn frequencies(net: &mut Net) -> Vec<f64> {
    let d = net.spec.head_dim;
    let divisors = net.weights.rope_divisors();
    let rope = net.spec.rope.as_ref();
    let (theta, linear) = match rope.map(|r| (r.theta, r.scaling)) {
        Some((theta, RopeScaling::Linear { factor })) => (theta, factor),
        Some((theta, _)) => (theta, 1.0),
        None => (1.0, 1.0), // the plan refuses a decoder without rotary positions
    };
    let divisor = |i: usize| f64::from(linear) * f64::from(divisors.as_ref().map_or(1.0, |x| x[i]));
    (0..d / 2).map(|i| f64::from(theta).powf(-2.0 * i as f64 / d as f64) / divisor(i)).collect()
}

/// x (B, n, S, D): pairs lie half a head apart, as Hugging Face has them. RoFormer, arXiv:2104.09864, section 3.4.2.
fn rotate(net: &mut Net, x: &str, angles: &Angles) -> Value {
    let g = &mut net.graph;
    let [a, b] = g.halves(x, net.spec.head_dim / 2);
    let (a_cos, b_sin) = (g.op("Mul", &[&a, &angles.cos]), g.op("Mul", &[&b, &angles.sin]));
    let (b_cos, a_sin) = (g.op("Mul", &[&b, &angles.cos]), g.op("Mul", &[&a, &angles.sin]));
    let (first, second) = (g.op("Sub", &[&a_cos, &b_sin]), g.op("Add", &[&b_cos, &a_sin]));
    g.concat(&[&first, &second], -1)
}

/// Token i of this call, at index P + i, sees index j when j <= P + i, the mask shows j, and the window reaches it.
/// Returns (B, 1, G S, T): a copy of the rows for each head that shares a key head.
fn causal(net: &mut Net, ids: &str, mask: &str) -> Value {
    let (window, group) = (net.spec.sliding_window, net.spec.n_heads / net.spec.n_kv_heads);
    net.graph.scope = "mask".into();
    let g = &mut net.graph;
    let (tokens, total) = (g.length(ids, 1), g.length(mask, 1));
    let before = g.op("Sub", &[&total, &tokens]);
    let (zero, one) = (g.int(0), g.int(1));
    let j = g.op("Range", &[&zero, &total, &one]); // (T)
    let i = g.op("Range", &[&before, &total, &one]);
    let i = g.unsqueeze(&i, &[1]); // (S, 1)
    let mut seen = g.op("LessOrEqual", &[&j, &i]); // (S, T)
    if let Some(window) = window {
        let back = g.op("Sub", &[&i, &j]);
        let window = g.int(window as i64);
        let near = g.op("Less", &[&back, &window]);
        seen = g.op("And", &[&seen, &near]);
    }
    let shown = g.cast(mask, DataType::Bool);
    let shown = g.unsqueeze(&shown, &[1, 2]); // (B, 1, 1, T)
    let seen = g.op("And", &[&seen, &shown]); // (B, 1, S, T)
    let bias = net.bias(&seen);
    if group == 1 { bias } else { net.graph.concat(&vec![bias.as_str(); group], 2) }
}

/// x (B, S, C) -> (B, C): each row's last token that the mask shows, wherever the padding is.
fn last_token(net: &mut Net, x: &str, ids: &str, mask: &str) -> Value {
    let g = &mut net.graph;
    let (zero, one, tokens) = (g.int(0), g.int(1), g.length(ids, 1));
    let index = g.op("Range", &[&zero, &tokens, &one]); // (S)
    let shown = g.op("Mul", &[mask, &index]); // (B, S)
    let last = g.reduce("ReduceMax", &shown, 1, true); // (B, 1)
    g.op_with("GatherND", &[x, &last], vec![int("batch_dims", 1)])
}
