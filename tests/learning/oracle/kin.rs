//! The other families on the tape: Qwen3, Phi-3, Gemma 3, GPT-2, RoBERTa and DistilBERT, written from their papers and
//! configs, not from `src/model`.

use super::*;
use crate::learning::labels;

/// Numbers of a config, whatever the family calls them.
fn number(config: &Value, keys: &[&str]) -> usize {
    keys.iter().find_map(|k| config[*k].as_u64()).unwrap_or_else(|| panic!("{keys:?}")) as usize
}

/// x + w: the norms of Gemma are stored less 1.
fn norm(w: &Weights, name: &str, x: &Tensor, eps: f64, more: f64) -> Result<Tensor> {
    let square = x.sqr()?.mean_keepdim(D::Minus1)?;
    x.broadcast_div(&(square + eps)?.sqrt()?)?.broadcast_mul(&(w.get(&format!("{name}.weight")) + more)?)
}

/// (1, n, T, D), its first `r` dimensions rotated.
fn rotate(x: &Tensor, r: usize, theta: f32) -> Result<Tensor> {
    let (_, _, t, d) = x.dims4()?;
    let half = r / 2;
    let angle = |i: usize| (i / half) as f32 * theta.powf(-2.0 * (i % half) as f32 / r as f32);
    let angles = Tensor::from_vec((0..t * half).map(angle).collect::<Vec<_>>(), (t, half), &Device::Cpu)?;
    let turned = rope_slow(&x.narrow(3, 0, r)?.contiguous()?, &angles.cos()?, &angles.sin()?)?;
    if r == d { Ok(turned) } else { Tensor::cat(&[turned, x.narrow(3, r, d - r)?], 3) }
}

/// The loss of one row of a Qwen3, Phi-3 or Gemma 3.
fn rotary(w: &Weights, config: &Value, row: &Row) -> Result<Tensor> {
    let [gemma, qwen3, phi] = ["gemma3_text", "qwen3", "phi3"].map(|t| config["model_type"] == t);
    let (c, h, k) = (
        number(config, &["hidden_size"]),
        number(config, &["num_attention_heads"]),
        number(config, &["num_key_value_heads"]),
    );
    let d = config["head_dim"].as_u64().map_or(c / h, |d| d as usize);
    let (eps, more) = (config["rms_norm_eps"].as_f64().unwrap(), f64::from(u8::from(gemma)));
    let scalar = config["query_pre_attn_scalar"].as_f64().unwrap_or(d as f64);
    let rotated = (d as f64 * config["partial_rotary_factor"].as_f64().unwrap_or(1.0)) as usize;
    let t = row.ids.len();
    let mut x = w.get("model.embed_tokens.weight").index_select(&Tensor::new(row.ids.as_slice(), &Device::Cpu)?, 0)?;
    if gemma {
        x = (x * (c as f64).sqrt())?;
    }
    for i in 0..number(config, &["num_hidden_layers"]) {
        let at = |part: &str| format!("model.layers.{i}.{part}");
        let local = config["layer_types"][i] == "sliding_attention" || (phi && config["sliding_window"].is_u64());
        let window = if local { number(config, &["sliding_window"]) } else { usize::MAX };
        let theta = if gemma && local { "rope_local_base_freq" } else { "rope_theta" };
        let theta = config[theta].as_f64().unwrap() as f32;
        let n = norm(w, &at("input_layernorm"), &x, eps, more)?;
        let (q, key, v) = if phi {
            let qkv = w.linear(&at("self_attn.qkv_proj"), &n)?;
            (qkv.narrow(1, 0, h * d)?, qkv.narrow(1, h * d, k * d)?, qkv.narrow(1, (h + k) * d, k * d)?)
        } else {
            let one = |part: &str| w.linear(&at(&format!("self_attn.{part}_proj")), &n);
            (one("q")?, one("k")?, one("v")?)
        };
        let (mut q, mut key, v) = (heads(&q, h)?, heads(&key, k)?, heads(&v, k)?);
        if gemma || qwen3 {
            q = norm(w, &at("self_attn.q_norm"), &q, eps, more)?;
            key = norm(w, &at("self_attn.k_norm"), &key, eps, more)?;
        }
        // `attend` divides by √D.
        let q = (rotate(&q, rotated, theta)? * (d as f64 / scalar).sqrt())?;
        let repeat = |x: Tensor| x.unsqueeze(2)?.expand((1, k, h / k, t, d))?.contiguous()?.reshape((1, h, t, d));
        let mask = mask(t, |i, j| j <= i && i - j < window)?;
        let o = attend(&q, &repeat(rotate(&key, rotated, theta)?)?, &repeat(v)?, &mask)?;
        let mut o = w.linear(&at("self_attn.o_proj"), &o)?;
        if gemma {
            o = norm(w, &at("post_attention_layernorm"), &o, eps, more)?;
        }
        x = (x + o)?;
        let before = if gemma { "pre_feedforward_layernorm" } else { "post_attention_layernorm" };
        let n = norm(w, &at(before), &x, eps, more)?;
        let (gate, up) = if phi {
            let both = w.linear(&at("mlp.gate_up_proj"), &n)?.chunk(2, 1)?;
            (both[0].clone(), both[1].clone())
        } else {
            (w.linear(&at("mlp.gate_proj"), &n)?, w.linear(&at("mlp.up_proj"), &n)?)
        };
        let gate = if gemma { gate.gelu()? } else { gate.silu()? };
        let mut y = w.linear(&at("mlp.down_proj"), &(gate * up)?)?;
        if gemma {
            y = norm(w, &at("post_feedforward_layernorm"), &y, eps, more)?;
        }
        x = (x + y)?;
    }
    language(w, "model.embed_tokens", &norm(w, "model.norm", &x, eps, more)?, row)
}

/// The loss of one row of a GPT-2, whose matrices here stand as (out, in).
fn gpt2(w: &Weights, config: &Value, row: &Row) -> Result<Tensor> {
    let (c, h) = (number(config, &["n_embd"]), number(config, &["n_head"]));
    let eps = config["layer_norm_epsilon"].as_f64().unwrap();
    let pick = |name: &str, ids: &[u32]| {
        w.get(&format!("transformer.{name}.weight")).index_select(&Tensor::new(ids, &Device::Cpu)?, 0)
    };
    let mut x = (pick("wte", &row.ids)? + pick("wpe", &row.positions)?)?;
    let mask = mask(row.ids.len(), |i, j| j <= i)?;
    for i in 0..number(config, &["n_layer"]) {
        let at = |part: &str| format!("transformer.h.{i}.{part}");
        let qkv = w.linear(&at("attn.c_attn"), &w.layer_norm(&at("ln_1"), &x, eps)?)?;
        let part = |n: usize| heads(&qkv.narrow(1, n * c, c)?, h);
        x = (&x + w.linear(&at("attn.c_proj"), &attend(&part(0)?, &part(1)?, &part(2)?, &mask)?)?)?;
        let wide = w.linear(&at("mlp.c_fc"), &w.layer_norm(&at("ln_2"), &x, eps)?)?.gelu()?;
        x = (&x + w.linear(&at("mlp.c_proj"), &wide)?)?;
    }
    language(w, "transformer.wte", &w.layer_norm("transformer.ln_f", &x, eps)?, row)
}

/// The loss of one row without padding of a RoBERTa or DistilBERT that classifies.
fn classifier(w: &Weights, config: &Value, row: &Row) -> Result<Tensor> {
    let roberta = config["model_type"] == "roberta";
    let prefix = if roberta { "roberta" } else { "distilbert" };
    let (heads_n, layers) =
        (number(config, &["num_attention_heads", "n_heads"]), number(config, &["num_hidden_layers", "n_layers"]));
    let eps = config["layer_norm_eps"].as_f64().unwrap_or(1e-12);
    let t = row.ids.len();
    let pick = |name: &str, ids: &[u32]| {
        w.get(&format!("{prefix}.embeddings.{name}.weight")).index_select(&Tensor::new(ids, &Device::Cpu)?, 0)
    };
    // Behind the row of the padding, which is 1.
    let positions: Vec<u32> = (0..t as u32).map(|i| if roberta { i + 2 } else { i }).collect();
    let mut x = (pick("word_embeddings", &row.ids)? + pick("position_embeddings", &positions)?)?;
    if roberta {
        x = (x + pick("token_type_embeddings", &vec![0; t])?)?;
    }
    let names = if roberta {
        [
            "attention.self.query",
            "attention.self.key",
            "attention.self.value",
            "attention.output.dense",
            "attention.output.LayerNorm",
            "intermediate.dense",
            "output.dense",
            "output.LayerNorm",
        ]
    } else {
        [
            "attention.q_lin",
            "attention.k_lin",
            "attention.v_lin",
            "attention.out_lin",
            "sa_layer_norm",
            "ffn.lin1",
            "ffn.lin2",
            "output_layer_norm",
        ]
    };
    let stack = if roberta { "encoder.layer" } else { "transformer.layer" };
    let mut x = w.layer_norm(&format!("{prefix}.embeddings.LayerNorm"), &x, eps)?;
    let mask = mask(t, |_, _| true)?;
    for i in 0..layers {
        let [q, k, v, out, norm1, up, down, norm2] = names.map(|n| format!("{prefix}.{stack}.{i}.{n}"));
        let part = |name: &str| heads(&w.linear(name, &x)?, heads_n);
        let o = attend(&part(&q)?, &part(&k)?, &part(&v)?, &mask)?;
        let x1 = w.layer_norm(&norm1, &(&x + w.linear(&out, &o)?)?, eps)?;
        let y = w.linear(&down, &w.linear(&up, &x1)?.gelu_erf()?)?;
        x = w.layer_norm(&norm2, &(&x1 + y)?, eps)?;
    }
    let first = x.narrow(0, 0, 1)?;
    let logits = if roberta {
        w.linear("classifier.out_proj", &w.linear("classifier.dense", &first)?.tanh()?)?
    } else {
        w.linear("classifier", &w.linear("pre_classifier", &first)?.relu()?)?
    };
    match row.target {
        Target::Class(c) => nll(&logits, &[Some(c)]),
        ref other => panic!("{other:?}"),
    }
}

fn language(w: &Weights, words: &str, h: &Tensor, row: &Row) -> Result<Tensor> {
    let head = if w.0.contains_key("lm_head.weight") { "lm_head" } else { words };
    match &row.target {
        Target::Tokens(targets) => nll(&w.linear(head, h)?, targets),
        other => panic!("{other:?}"),
    }
}

fn learns_as_the_tape(tiny: &Tiny, loss: impl Fn(&Weights, &Value, &Row) -> Result<Tensor>) {
    let case = Case::new(tiny, Task::Generate, &data::ids(3, 14, 6)).with_all();
    agrees(case, &upright(tiny), |leaves, row| loss(leaves, &tiny.config, row));
}

/// Every tensor, GPT-2's matrices turned to (out, in).
fn upright(tiny: &Tiny) -> Tensors {
    let mut tensors = tiny.tensors();
    for (name, (shape, values)) in &mut tensors {
        let conv = ["c_attn.weight", "c_proj.weight", "c_fc.weight"].iter().any(|end| name.ends_with(end));
        if let (true, tensors::Values::F32(v)) = (conv, values) {
            let (rows, cols) = (shape[0], shape[1]);
            *v = (0..rows * cols).map(|i| v[i % rows * cols + i / rows]).collect();
            shape.reverse();
        }
    }
    tensors
}

#[test]
fn a_qwen3_agrees_with_the_tape() {
    learns_as_the_tape(&Tiny::qwen3(), rotary);
    let tiny = Tiny::qwen3().with("attention_bias", json!(true)).with("tie_word_embeddings", json!(true));
    learns_as_the_tape(&tiny.with("head_dim", json!(10)).with("num_key_value_heads", json!(1)), rotary);
}

#[test]
fn windows_in_some_layers_of_a_qwen3_agree_with_the_tape() {
    let tiny = Tiny::qwen3().with("use_sliding_window", json!(true)).with("sliding_window", json!(4));
    let tiny = tiny.with("layer_types", json!(["full_attention", "sliding_attention"]));
    learns_as_the_tape(&tiny, rotary);
}

#[test]
fn a_phi3_agrees_with_the_tape() {
    learns_as_the_tape(&Tiny::phi3(), rotary);
    let tiny = Tiny::phi3().with("sliding_window", json!(5)).with("partial_rotary_factor", json!(0.75));
    learns_as_the_tape(&tiny.with("num_key_value_heads", json!(1)).with("tie_word_embeddings", json!(true)), rotary);
}

#[test]
fn a_gemma3_agrees_with_the_tape() {
    learns_as_the_tape(&Tiny::gemma3(), rotary);
    let tiny = Tiny::gemma3().with("tie_word_embeddings", json!(false)).with("attention_bias", json!(true));
    learns_as_the_tape(&tiny.with("hidden_size", json!(40)).with("intermediate_size", json!(51)), rotary);
}

#[test]
fn a_gpt2_agrees_with_the_tape() {
    learns_as_the_tape(&Tiny::gpt2(), gpt2);
    // Heads of 15 dimensions: nothing is rotated, so that they may be odd.
    let tiny =
        Tiny::gpt2().with("n_embd", json!(60)).with("tie_word_embeddings", json!(false)).with("n_inner", json!(77));
    learns_as_the_tape(&tiny, gpt2);
}

#[test]
fn encoders_agree_with_the_tape_down_to_their_tables() {
    let names = ["a", "b", "c"];
    let rows = data::classes(4, 12, 3, 3);
    let bert = Tiny::classifier(&names);
    let shape = Shape::of(&bert.config);
    let case = Case::new(&bert, labels(&names), &rows).with_all();
    agrees(case, &bert.tensors(), |leaves, row| encoder(leaves, &shape, row));
    for tiny in [Tiny::roberta(), Tiny::distilbert()] {
        let tiny = tiny.labelling(&names);
        let case = Case::new(&tiny, labels(&names), &rows).with_all();
        agrees(case, &tiny.tensors(), |leaves, row| classifier(leaves, &tiny.config, row));
    }
}
