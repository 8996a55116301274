//! Llama (arXiv:2302.13971), Mistral (arXiv:2310.06825: a sliding window), Qwen2 (arXiv:2407.10671: biases on q, k, v), Qwen3
//! (arXiv:2505.09388: norms of each head's query and key), Phi-3 (arXiv:2404.14219: joined matrices), Gemma 3
//! (arXiv:2503.19786: norms behind each half of a block too, windows and rotations by layer) and GPT-2 (learned positions, layer
//! norms, no gate).
//!
//! In: `input_ids` (B, S), `attention_mask` (B, T), `position_ids` (B, S), `past_key_values.{i}.key|value` (B, K, P, D).
//! Out: `logits` (B, S, V), `present.{i}.key|value` (B, K, T, D), with the rotated keys. A classifier has neither cache nor
//! V: T = S, and its `logits` (B, labels) are those of each row's last token that the mask shows.

use super::graph::{Dim, Graph, Value, int};
use super::net::Net;
use super::proto::DataType;
use crate::{
    error::Result,
    source::{Arch, RopeScaling, Task},
};

pub(super) const BATCH: Dim = Dim::Named("batch_size");
pub(super) const TOKENS: Dim = Dim::Named("sequence_length");
pub(super) const PAST: Dim = Dim::Named("past_sequence_length");
pub(super) const TOTAL: Dim = Dim::Named("total_sequence_length");

/// Cosines and sines of the positions, (B, 1, S, R/2), R rotated dimensions of a head.
struct Angles {
    cos: Value,
    sin: Value,
}

/// What layers of one kind (those that see all, local ones) look at besides their input.
struct Told {
    /// None where positions are learned.
    angles: Option<Angles>,
    /// (B, 1, G S, T): added to scores.
    bias: Value,
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
    let [whole, local] = told(net, &ids, &mask, &positions);
    net.graph.scope = "embed_tokens".into();
    let embedding = net.weights.table(&mut net.graph, "token_embd.weight")?;
    let mut x = embedding.rows(&mut net.graph, &ids, 2); // (B, S, C)
    if spec.arch == Arch::Gemma3 {
        let scale = net.graph.float((spec.hidden_size as f32).sqrt());
        x = net.graph.op("Mul", &[&x, &scale]);
    }
    if spec.arch == Arch::Gpt2 {
        let table = net.weights.table(&mut net.graph, "position_embd.weight")?;
        let at = table.rows(&mut net.graph, &positions, 2); // (B, S, C)
        x = net.graph.op("Add", &[&x, &at]);
    }
    let mut present = Vec::new();
    for i in 0..spec.n_layers {
        let told = if spec.is_local(i) { &local } else { &whole };
        let told = told.as_ref().expect("made for every kind of layer that there is");
        let (y, cache) = block(net, i, &x, told, past.get(i))?;
        x = y;
        present.push(cache);
    }
    net.graph.scope = "norm".into();
    let x = net.norm(&x, "output_norm")?;
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
fn block(net: &mut Net, i: usize, x: &str, told: &Told, past: Option<&[Value; 2]>) -> Result<(Value, [Value; 2])> {
    let (heads, kv_heads) = (net.spec.n_heads, net.spec.n_kv_heads);
    let at = |part: &str| format!("blk.{i}.{part}");
    net.graph.scope = format!("layers.{i}.self_attn");
    let n = net.norm(x, &at("attn_norm"))?;
    let [q, k, v] = projections(net, i, &n)?; // (B, S, H D), (B, S, K D) twice
    let (mut q, mut k, mut v) = (net.heads(&q, heads), net.heads(&k, kv_heads), net.heads(&v, kv_heads));
    if matches!(net.spec.arch, Arch::Qwen3 | Arch::Gemma3) {
        (q, k) = (net.norm(&q, &at("attn_q_norm"))?, net.norm(&k, &at("attn_k_norm"))?);
    }
    if let Some(angles) = &told.angles {
        (q, k) = (rotate(net, &q, angles), rotate(net, &k, angles));
    }
    if let Some([past_k, past_v]) = past {
        k = net.graph.concat(&[past_k, &k], 2); // (B, K, T, D)
        v = net.graph.concat(&[past_v, &v], 2);
    }
    if heads != kv_heads {
        q = net.graph.reshape(&q, &[0, kv_heads as i64, -1, net.spec.head_dim as i64]); // (B, K, G S, D)
    }
    let y = net.attention(&q, &k, &v, &told.bias);
    let mut y = net.linear(&y, &at("attn_output"))?;
    if net.spec.arch == Arch::Gemma3 {
        y = net.norm(&y, &at("post_attention_norm"))?;
    }
    let x = net.graph.op("Add", &[x, &y]);
    net.graph.scope = format!("layers.{i}.mlp");
    let n = net.norm(&x, &at("ffn_norm"))?;
    let mut y = feed_forward(net, i, &n)?;
    if net.spec.arch == Arch::Gemma3 {
        y = net.norm(&y, &at("post_ffw_norm"))?;
    }
    Ok((net.graph.op("Add", &[&x, &y]), [k, v]))
}

/// n (B, S, C) -> q (B, S, H D), k and v (B, S, K D), by three matrices or by one that holds all.
fn projections(net: &mut Net, i: usize, n: &str) -> Result<[Value; 3]> {
    if matches!(net.spec.arch, Arch::Phi3 | Arch::Gpt2) {
        let (q, kv) = (net.spec.n_heads * net.spec.head_dim, net.spec.n_kv_heads * net.spec.head_dim);
        let all = net.linear(n, &format!("blk.{i}.attn_qkv"))?;
        return Ok(net.graph.parts(&all, [q, kv, kv]));
    }
    let q = net.linear(n, &format!("blk.{i}.attn_q"))?;
    let k = net.linear(n, &format!("blk.{i}.attn_k"))?;
    let v = net.linear(n, &format!("blk.{i}.attn_v"))?;
    Ok([q, k, v])
}

/// n (B, S, C) -> the same.
fn feed_forward(net: &mut Net, i: usize, n: &str) -> Result<Value> {
    let f = net.spec.intermediate_size;
    let at = |part: &str| format!("blk.{i}.{part}");
    let h = match net.spec.arch {
        Arch::Phi3 => {
            let both = net.linear(n, &at("ffn_up"))?;
            let [gate, up] = net.graph.parts(&both, [f, f]);
            let gate = silu(&mut net.graph, &gate);
            net.graph.op("Mul", &[&gate, &up])
        }
        Arch::Gemma3 => {
            let (gate, up) = (net.linear(n, &at("ffn_gate"))?, net.linear(n, &at("ffn_up"))?);
            let gate = gelu_tanh(&mut net.graph, &gate);
            net.graph.op("Mul", &[&gate, &up])
        }
        Arch::Gpt2 => {
            let up = net.linear(n, &at("ffn_up"))?;
            gelu_tanh(&mut net.graph, &up)
        }
        _ => return swiglu(net, i, n),
    };
    net.linear(&h, &at("ffn_down"))
}

/// n (B, S, C) -> the same: down(silu(gate) * up), arXiv:2002.05202.
pub(super) fn swiglu(net: &mut Net, i: usize, n: &str) -> Result<Value> {
    let gate = net.linear(n, &format!("blk.{i}.ffn_gate"))?; // (B, S, F)
    let up = net.linear(n, &format!("blk.{i}.ffn_up"))?;
    let gate = silu(&mut net.graph, &gate);
    let h = net.graph.op("Mul", &[&gate, &up]);
    net.linear(&h, &format!("blk.{i}.ffn_down"))
}

fn silu(g: &mut Graph, x: &str) -> Value {
    let share = g.op("Sigmoid", &[x]);
    g.op("Mul", &[x, &share])
}

/// x (1 + tanh(√(2/π) (x + 0.044715 x³))) / 2, arXiv:1606.08415.
fn gelu_tanh(g: &mut Graph, x: &str) -> Value {
    let (cubic, root) = (g.float(0.044_715), g.float(0.797_884_6));
    let (one, half) = (g.float(1.0), g.float(0.5));
    let square = g.op("Mul", &[x, x]);
    let cube = g.op("Mul", &[&square, x]);
    let cube = g.op("Mul", &[&cube, &cubic]);
    let y = g.op("Add", &[x, &cube]);
    let y = g.op("Mul", &[&y, &root]);
    let y = g.op("Tanh", &[&y]);
    let y = g.op("Add", &[&y, &one]);
    let y = g.op("Mul", &[x, &y]);
    g.op("Mul", &[&y, &half])
}

/// What layers that see all look at, then local ones; nothing for a kind that no layer is.
fn told(net: &mut Net, ids: &str, mask: &str, positions: &str) -> [Option<Told>; 2] {
    let spec = net.spec;
    [false, true].map(|local| {
        if !(0..spec.n_layers).any(|i| spec.is_local(i) == local) {
            return None;
        }
        let angles = spec.rope.is_some().then(|| angles(net, positions, local));
        Some(Told { angles, bias: causal(net, ids, mask, spec.sliding_window.filter(|_| local)) })
    })
}

/// Angles of (B, S) positions: position times frequency, computed, so that no table ends a context.
fn angles(net: &mut Net, positions: &str, local: bool) -> Angles {
    let other = net.spec.rope.and_then(|r| r.local_theta).filter(|_| local);
    let name = if other.is_some() { "rotary.local" } else { "rotary" };
    net.graph.scope = name.into();
    let frequencies = match other {
        Some(theta) => wavelengths(theta, net.spec.rotary_dim()),
        None => frequencies(net),
    };
    let frequencies: Vec<f32> = frequencies.into_iter().map(|f| f as f32).collect();
    let g = &mut net.graph;
    let frequencies = g.floats(&format!("{name}.inv_freq"), &frequencies);
    let positions = g.cast(positions, DataType::Float);
    let positions = g.unsqueeze(&positions, &[1, 3]); // (B, 1, S, 1)
    let angles = g.op("Mul", &[&positions, &frequencies]); // (B, 1, S, R/2)
    Angles { cos: g.op("Cos", &[&angles]), sin: g.op("Sin", &[&angles]) }
}

/// (R/2) radians a position.
pub(super) fn frequencies(net: &mut Net) -> Vec<f64> {
    let divisors = net.weights.rope_divisors();
    let (theta, linear) = match net.spec.rope.map(|r| (r.theta, r.scaling)) {
        Some((theta, RopeScaling::Linear { factor })) => (theta, factor),
        Some((theta, _)) => (theta, 1.0),
        None => (1.0, 1.0), // no dimension is rotated
    };
    let divisor = |i: usize| f64::from(linear) * f64::from(divisors.as_ref().map_or(1.0, |x| x[i]));
    wavelengths(theta, net.spec.rotary_dim()).into_iter().enumerate().map(|(i, f)| f / divisor(i)).collect()
}

fn wavelengths(theta: f32, dims: usize) -> Vec<f64> {
    (0..dims / 2).map(|i| f64::from(theta).powf(-2.0 * i as f64 / dims as f64)).collect()
}

/// x (B, n, S, D): pairs of the first R dimensions lie half of R apart, as Hugging Face has them. RoFormer, arXiv:2104.09864,
/// section 3.4.2.
fn rotate(net: &mut Net, x: &str, angles: &Angles) -> Value {
    let (d, dims) = (net.spec.head_dim, net.spec.rotary_dim());
    let g = &mut net.graph;
    let (x, rest) = if dims == d {
        (x.to_owned(), None)
    } else {
        let [x, rest] = g.parts(x, [dims, d - dims]);
        (x, Some(rest))
    };
    let [a, b] = g.halves(&x, dims / 2);
    let (a_cos, b_sin) = (g.op("Mul", &[&a, &angles.cos]), g.op("Mul", &[&b, &angles.sin]));
    let (b_cos, a_sin) = (g.op("Mul", &[&b, &angles.cos]), g.op("Mul", &[&a, &angles.sin]));
    let (first, second) = (g.op("Sub", &[&a_cos, &b_sin]), g.op("Add", &[&b_cos, &a_sin]));
    match rest {
        None => g.concat(&[&first, &second], -1),
        Some(rest) => g.concat(&[&first, &second, &rest], -1),
    }
}

/// Token i of this call, at index P + i, sees index j when j <= P + i, the mask shows j, and the window reaches it.
/// Returns (B, 1, G S, T): a copy of the rows for each head that shares a key head.
fn causal(net: &mut Net, ids: &str, mask: &str, window: Option<usize>) -> Value {
    let group = net.spec.n_heads / net.spec.n_kv_heads;
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
