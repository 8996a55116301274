//! The same networks written a second time on candle's tape, from its slow differentiable operations: loss and every
//! element of every gradient must agree.

mod answers;
mod kin;

use super::{Case, DECODER, labels, pairs, values, vectors};
use crate::common::tensors::{self, Tensors};
use crate::common::{data, tiny::Tiny};
use candle_core::{D, DType, Device, Result, Tensor, Var};
use candle_nn::{ops, rotary_emb::rope_slow};
use edgeft::data::batch::{Row, Target};
use edgeft::model::layers::{Grads, Pass};
use edgeft::model::network::Task;
use edgeft::model::peft::{AdapterConfig, Kind};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Weights by name; those that are leaves of the tape are shared with it.
#[derive(Clone)]
struct Weights(BTreeMap<String, Tensor>);

impl Weights {
    /// Every tensor a leaf.
    fn leaves(tensors: &Tensors) -> Self {
        let leaf = |name: &String| {
            let values = tensors::floats(tensors, name);
            let tensor = Tensor::from_vec(values, tensors[name].0.as_slice(), &Device::Cpu).expect("a tensor");
            (name.clone(), Var::from_tensor(&tensor).expect("a leaf").as_tensor().clone())
        };
        Self(tensors.keys().map(leaf).collect())
    }

    fn get(&self, name: &str) -> &Tensor {
        &self.0[name]
    }

    /// W + s B A in the place of each W that has a pair, its rows as long as a magnitude says; l ⊙ W and l ⊙ b where there is
    /// a vector. A norm is a constant to the tape, as DoRA wants it.
    fn folded(&self, scale: f64) -> Result<Self> {
        let mut all = self.clone();
        for (name, tensor) in &mut all.0 {
            let (module, part) = name.rsplit_once('.').unwrap_or_default();
            let of = |end: &str| self.0.get(&format!("{module}.{end}"));
            if let (Some(a), Some(b), "weight") = (of("lora_A.weight"), of("lora_B.weight"), part) {
                *tensor = (&*tensor + (b.matmul(a)? * scale)?)?;
                if let Some(m) = of("lora_magnitude_vector") {
                    let norm = tensor.sqr()?.sum_keepdim(1)?.sqrt()?.detach();
                    *tensor = tensor.broadcast_div(&norm)?.broadcast_mul(&m.unsqueeze(1)?)?;
                }
            }
            match (of("ia3_l"), part) {
                (Some(l), "weight") => *tensor = tensor.broadcast_mul(l)?,
                (Some(l), "bias") if l.dim(1)? == 1 => *tensor = (&*tensor * l.flatten_all()?)?,
                _ => (),
            }
        }
        Ok(all)
    }

    fn linear(&self, name: &str, x: &Tensor) -> Result<Tensor> {
        let y = x.matmul(&self.get(&format!("{name}.weight")).t()?)?;
        match self.0.get(&format!("{name}.bias")) {
            Some(bias) => y.broadcast_add(bias),
            None => Ok(y),
        }
    }

    fn rms_norm(&self, name: &str, x: &Tensor, eps: f64) -> Result<Tensor> {
        let square = x.sqr()?.mean_keepdim(D::Minus1)?;
        x.broadcast_div(&(square + eps)?.sqrt()?)?.broadcast_mul(self.get(&format!("{name}.weight")))
    }

    fn layer_norm(&self, name: &str, x: &Tensor, eps: f64) -> Result<Tensor> {
        let x = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
        let square = x.sqr()?.mean_keepdim(D::Minus1)?;
        let x = x.broadcast_div(&(square + eps)?.sqrt()?)?;
        x.broadcast_mul(self.get(&format!("{name}.weight")))?.broadcast_add(self.get(&format!("{name}.bias")))
    }
}

struct Shape {
    layers: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    eps: f64,
    window: usize,
}

impl Shape {
    fn of(config: &Value) -> Self {
        let n = |key: &str| config[key].as_u64().map(|n| n as usize);
        let heads = n("num_attention_heads").unwrap();
        Self {
            layers: n("num_hidden_layers").unwrap(),
            heads,
            kv_heads: n("num_key_value_heads").unwrap_or(heads),
            head_dim: n("head_dim").unwrap_or(n("hidden_size").unwrap() / heads),
            eps: config["rms_norm_eps"].as_f64().or(config["layer_norm_eps"].as_f64()).unwrap(),
            window: n("sliding_window").unwrap_or(usize::MAX),
        }
    }
}

/// (T, n D) → (1, n, T, D).
fn heads(x: &Tensor, n: usize) -> Result<Tensor> {
    let (t, width) = x.dims2()?;
    x.reshape((1, t, n, width / n))?.transpose(1, 2)?.contiguous()
}

/// softmax(q kᵀ / √D + mask) v, heads side by side again: (T, H D).
fn attend(q: &Tensor, k: &Tensor, v: &Tensor, mask: &Tensor) -> Result<Tensor> {
    let (_, n, t, d) = q.dims4()?;
    let scores = (q.matmul(&k.transpose(2, 3)?.contiguous()?)? / (d as f64).sqrt())?;
    let p = ops::softmax(&scores.broadcast_add(mask)?, D::Minus1)?;
    p.matmul(v)?.transpose(1, 2)?.contiguous()?.reshape((t, n * d))
}

/// 0 where position i may see j, a very negative number elsewhere: (T, T).
fn mask(t: usize, sees: impl Fn(usize, usize) -> bool) -> Result<Tensor> {
    let values: Vec<f32> = (0..t * t).map(|i| if sees(i / t, i % t) { 0.0 } else { -1e9 }).collect();
    Tensor::from_vec(values, (t, t), &Device::Cpu)
}

/// Sum of -log p of the targets at the rows of logits that have one.
fn nll(logits: &Tensor, targets: &[Option<u32>]) -> Result<Tensor> {
    let log_p = ops::log_softmax(logits, D::Minus1)?;
    let at: Vec<u32> = targets.iter().map(|t| t.unwrap_or(0)).collect();
    let weight: Vec<f32> = targets.iter().map(|t| f32::from(u8::from(t.is_some()))).collect();
    let picked = log_p.gather(&Tensor::from_vec(at, (targets.len(), 1), &Device::Cpu)?, 1)?.squeeze(1)?;
    (picked * Tensor::from_vec(weight, targets.len(), &Device::Cpu)?)?.sum_all()?.neg()
}

/// The loss of one row of a Llama, Qwen2 or Mistral.
fn decoder(w: &Weights, shape: &Shape, row: &Row) -> Result<Tensor> {
    let t = row.ids.len();
    let half = shape.head_dim / 2;
    let angle = |i: usize| (i / half) as f32 * 10_000f32.powf(-2.0 * (i % half) as f32 / shape.head_dim as f32);
    let angles = Tensor::from_vec((0..t * half).map(angle).collect::<Vec<_>>(), (t, half), &Device::Cpu)?;
    let (cos, sin) = (angles.cos()?, angles.sin()?);
    let mask = mask(t, |i, j| j <= i && i - j < shape.window)?;
    let repeat = |x: Tensor| -> Result<Tensor> {
        let (_, n, t, d) = x.dims4()?;
        let times = shape.heads / n;
        x.unsqueeze(2)?.expand((1, n, times, t, d))?.contiguous()?.reshape((1, shape.heads, t, d))
    };
    let mut x = w.get("model.embed_tokens.weight").index_select(&Tensor::new(row.ids.as_slice(), &Device::Cpu)?, 0)?;
    for i in 0..shape.layers {
        let at = |part: &str| format!("model.layers.{i}.{part}");
        let n = w.rms_norm(&at("input_layernorm"), &x, shape.eps)?;
        let q = rope_slow(&heads(&w.linear(&at("self_attn.q_proj"), &n)?, shape.heads)?, &cos, &sin)?;
        let k = rope_slow(&heads(&w.linear(&at("self_attn.k_proj"), &n)?, shape.kv_heads)?, &cos, &sin)?;
        let v = heads(&w.linear(&at("self_attn.v_proj"), &n)?, shape.kv_heads)?;
        let o = attend(&q, &repeat(k)?, &repeat(v)?, &mask)?;
        x = (x + w.linear(&at("self_attn.o_proj"), &o)?)?;
        let n = w.rms_norm(&at("post_attention_layernorm"), &x, shape.eps)?;
        let gate = w.linear(&at("mlp.gate_proj"), &n)?.silu()?;
        x = (&x + w.linear(&at("mlp.down_proj"), &(gate * w.linear(&at("mlp.up_proj"), &n)?)?)?)?;
    }
    let head = if w.0.contains_key("lm_head.weight") { "lm_head" } else { "model.embed_tokens" };
    let logits = w.linear(head, &w.rms_norm("model.norm", &x, shape.eps)?)?;
    match &row.target {
        Target::Tokens(targets) => nll(&logits, targets),
        other => panic!("{other:?}"),
    }
}

/// The last hidden states of one row of a BERT, without padding: (T, C).
fn hidden(w: &Weights, shape: &Shape, row: &Row) -> Result<Tensor> {
    let t = row.ids.len();
    let pick = |name: &str, ids: &[u32]| {
        w.get(&format!("bert.embeddings.{name}.weight")).index_select(&Tensor::new(ids, &Device::Cpu)?, 0)
    };
    let x = ((pick("word_embeddings", &row.ids)? + pick("position_embeddings", &row.positions)?)?
        + pick("token_type_embeddings", &vec![0; t])?)?;
    let mut x = w.layer_norm("bert.embeddings.LayerNorm", &x, shape.eps)?;
    let mask = mask(t, |_, _| true)?;
    for i in 0..shape.layers {
        let at = |part: &str| format!("bert.encoder.layer.{i}.{part}");
        let part = |name: &str| heads(&w.linear(&at(&format!("attention.self.{name}")), &x)?, shape.heads);
        let o = attend(&part("query")?, &part("key")?, &part("value")?, &mask)?;
        let x1 = (&x + w.linear(&at("attention.output.dense"), &o)?)?;
        let x1 = w.layer_norm(&at("attention.output.LayerNorm"), &x1, shape.eps)?;
        let wide = w.linear(&at("intermediate.dense"), &x1)?.gelu_erf()?;
        x = w.layer_norm(&at("output.LayerNorm"), &(&x1 + w.linear(&at("output.dense"), &wide)?)?, shape.eps)?;
    }
    Ok(x)
}

/// The loss of one row of a BERT that classifies, without padding.
fn encoder(w: &Weights, shape: &Shape, row: &Row) -> Result<Tensor> {
    let x = hidden(w, shape, row)?;
    let pooled = w.linear("bert.pooler.dense", &x.narrow(0, 0, 1)?)?.tanh()?;
    match row.target {
        Target::Class(c) => nll(&w.linear("classifier", &pooled)?, &[Some(c)]),
        ref other => panic!("{other:?}"),
    }
}

/// Our loss and gradients against the tape's.
fn agrees(case: Case, weights: &Tensors, loss: impl Fn(&Weights, &Row) -> Result<Tensor>) {
    let leaves = Weights::leaves(weights);
    let losses: Vec<Tensor> = case.rows.iter().map(|row| loss(&leaves, row).expect("a loss")).collect();
    let total = Tensor::stack(&losses, 0).unwrap().sum_all().unwrap();
    let mut grads = Grads::default();
    let ours = case.network.loss_and_grad(&case.rows(), 1.0, Pass::EVAL, 0, &mut grads).expect("ours").nll;
    agree(ours, &grads, &total, &leaves);
}

/// A loss and its gradients against those of the tape that leads to `total`.
fn agree(ours: f64, grads: &Grads, total: &Tensor, leaves: &Weights) {
    let tape = total.backward().expect("the tape");
    let theirs = f64::from(total.to_dtype(DType::F32).unwrap().to_scalar::<f32>().unwrap());
    assert!((ours - theirs).abs() <= 1e-5 * theirs.abs(), "loss {ours} against {theirs}");
    assert!(!grads.0.is_empty());
    for (name, ours) in &grads.0 {
        let theirs = values(tape.get(leaves.get(name)).unwrap_or_else(|| panic!("the tape has no {name}")));
        let ours = values(ours);
        let largest = theirs.iter().fold(0f32, |m, v| m.max(v.abs()));
        if name.ends_with(".key.bias") || name.ends_with(".k_lin.bias") {
            // It adds the same to all scores of a query, which a softmax does not feel.
            let ours = ours.iter().fold(0f32, |m, v| m.max(v.abs()));
            assert!(largest < 1e-4 && ours < 1e-4, "{name}: {ours} and {largest}");
            continue;
        }
        assert!(largest > 1e-4, "{name} has no slope");
        for (i, (a, b)) in ours.iter().zip(&theirs).enumerate() {
            assert!((a - b).abs() <= 2e-4 * largest, "{name}[{i}]: {a} against {b}, the largest is {largest}");
        }
    }
}

fn decoder_agrees(tiny: &Tiny) {
    let (weights, shape) = (tiny.tensors(), Shape::of(&tiny.config));
    let case = Case::new(tiny, Task::Generate, &data::ids(3, 14, 6)).with_all();
    agrees(case, &weights, |leaves, row| decoder(leaves, &shape, row));
}

#[test]
fn a_llama_with_a_head_of_its_own_agrees_with_the_tape() {
    decoder_agrees(&Tiny::llama());
}

#[test]
fn tied_heads_biases_and_odd_sizes_agree_with_the_tape() {
    decoder_agrees(&Tiny::qwen2().seed(2));
    let odd =
        Tiny::llama().with("hidden_size", json!(40)).with("intermediate_size", json!(51)).with("head_dim", json!(6));
    decoder_agrees(&odd.with("num_key_value_heads", json!(1)));
}

#[test]
fn a_sliding_window_agrees_with_the_tape() {
    decoder_agrees(&Tiny::mistral().with("sliding_window", json!(4)));
}

/// Adapters of `config` by the tape, through the weights that they make: W + s B A with s = 2, and so on.
fn adapter_agrees(tiny: &Tiny, task: Task, rows: &Tensors, config: &AdapterConfig) {
    let shape = Shape::of(&tiny.config);
    let decodes = task == Task::Generate;
    let mut case = Case::new(tiny, task, rows).with(config);
    let mut weights = tiny.tensors();
    case.network.trained(&mut |name, tensor| {
        if name.contains("lora_") || name.ends_with("ia3_l") {
            weights.insert(name, (tensor.dims().to_vec(), tensors::Values::F32(values(tensor))));
        }
    });
    let model = if decodes { decoder } else { encoder };
    agrees(case, &weights, |leaves, row| model(&leaves.folded(2.0)?, &shape, row));
}

#[test]
fn adapters_of_a_bert_agree_with_the_tape() {
    let tiny = Tiny::classifier(&["a", "b", "c"]);
    let all = pairs(&["query", "key", "value", "dense"], 0.0);
    let dora = AdapterConfig { kind: Kind::Dora, ..all.clone() };
    for config in [all, dora, vectors(&["key", "value", "output.dense"], &["output.dense"])] {
        adapter_agrees(&tiny, labels(&["a", "b", "c"]), &data::classes(4, 12, 3, 3), &config);
    }
}

#[test]
fn adapters_of_a_decoder_agree_with_the_tape() {
    let all = pairs(&DECODER, 0.0);
    let dora = AdapterConfig { kind: Kind::Dora, ..all.clone() };
    let upper = AdapterConfig { layers: Some(vec![1]), ..dora.clone() };
    for config in [all, dora, upper, vectors(&["k_proj", "v_proj", "down_proj"], &["down_proj"])] {
        adapter_agrees(&Tiny::qwen2(), Task::Generate, &data::ids(3, 14, 6), &config);
    }
}
