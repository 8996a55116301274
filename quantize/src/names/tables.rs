//! The tables themselves, a family each: source name, GGUF name, shape in the source. C = hidden, H and K = query and key
//! heads, D = head width, F = feed-forward width, V = vocabulary.

use super::{Change, Destination, Line};
use crate::source::{Arch, ModelSpec, Task};

/// Every line of a spec's family.
pub(super) fn of(spec: &ModelSpec) -> Vec<Line> {
    let mut table = Table(Vec::new());
    match spec.arch {
        Arch::Llama | Arch::Qwen2 | Arch::Qwen3 | Arch::Gemma3 | Arch::Phi3 => decoder(spec, &mut table),
        Arch::Gpt2 => gpt2(spec, &mut table),
        Arch::Bert | Arch::Roberta | Arch::DistilBert => encoder(spec, &mut table),
    }
    table.0
}

struct Table(Vec<Line>);

impl Table {
    fn add(&mut self, required: bool, source: String, to: String, shape: &[usize]) -> &mut Line {
        let to = Destination::Tensor(to);
        self.0.push(Line { source, shape: shape.to_vec(), to, change: Change::None, required });
        self.0.last_mut().expect("just pushed")
    }

    fn key(&mut self, source: &str, key: &'static str, shape: &[usize]) {
        self.add(true, source.into(), String::new(), shape).to = Destination::Key(key);
    }

    /// A matrix (out, in) and its bias, or a layer norm where there is no `input`.
    fn layer(&mut self, hf: String, gguf: String, out: usize, input: Option<usize>, required: bool) {
        let weight = [out, input.unwrap_or(0)];
        let weight = if input.is_some() { &weight[..] } else { &weight[..1] };
        self.add(required, format!("{hf}.weight"), format!("{gguf}.weight"), weight);
        self.add(required, format!("{hf}.bias"), format!("{gguf}.bias"), &[out]);
    }

    /// What a decoder ends in: `lm_head`, unless it is tied, or the labels.
    fn head(&mut self, spec: &ModelSpec) {
        let (c, v) = (spec.hidden_size, spec.vocab_size);
        match &spec.task {
            Task::Classify { labels } => self.key("score.weight", "edgeft.head.score.weight", &[labels.len(), c]),
            Task::Generate | Task::Answer | Task::Embed => {
                self.add(false, "lm_head.weight".into(), "output.weight".into(), &[v, c]);
            }
        }
    }
}

/// Llama and its kin, Gemma 3 among them.
fn decoder(spec: &ModelSpec, t: &mut Table) {
    let (c, f, v, d) = (spec.hidden_size, spec.intermediate_size, spec.vocab_size, spec.head_dim);
    let (q, kv) = (spec.n_heads * d, spec.n_kv_heads * d);
    let gemma = spec.arch == Arch::Gemma3;
    let norm = if gemma { Change::PlusOne } else { Change::None };
    t.add(true, "embed_tokens.weight".into(), "token_embd.weight".into(), &[v, c]);
    t.add(true, "norm.weight".into(), "output_norm.weight".into(), &[c]).change = norm;
    t.head(spec);
    // The norm behind the attention of Gemma 3 has the name of Llama's before the feed-forward.
    let norms: &[(&str, &str)] = if gemma {
        &[
            ("input_layernorm", "attn_norm"),
            ("post_attention_layernorm", "post_attention_norm"),
            ("pre_feedforward_layernorm", "ffn_norm"),
            ("post_feedforward_layernorm", "post_ffw_norm"),
        ]
    } else {
        &[("input_layernorm", "attn_norm"), ("post_attention_layernorm", "ffn_norm")]
    };
    for i in 0..spec.n_layers {
        for (hf, gguf) in norms {
            t.add(true, format!("layers.{i}.{hf}.weight"), format!("blk.{i}.{gguf}.weight"), &[c]).change = norm;
        }
        if matches!(spec.arch, Arch::Qwen3 | Arch::Gemma3) {
            for (hf, gguf) in [("self_attn.q_norm", "attn_q_norm"), ("self_attn.k_norm", "attn_k_norm")] {
                t.add(true, format!("layers.{i}.{hf}.weight"), format!("blk.{i}.{gguf}.weight"), &[d]).change = norm;
            }
        }
        let apart = [
            ("self_attn.q_proj", "attn_q", q, c, Some(spec.n_heads)),
            ("self_attn.k_proj", "attn_k", kv, c, Some(spec.n_kv_heads)),
            ("self_attn.v_proj", "attn_v", kv, c, None),
            ("self_attn.o_proj", "attn_output", c, q, None),
            ("mlp.gate_proj", "ffn_gate", f, c, None),
            ("mlp.up_proj", "ffn_up", f, c, None),
            ("mlp.down_proj", "ffn_down", c, f, None),
        ];
        // q, k and v, then gate and up, lie one below the other in Phi-3's files, and in llama.cpp's of it.
        let joined = [
            ("self_attn.qkv_proj", "attn_qkv", q + 2 * kv, c, None),
            ("self_attn.o_proj", "attn_output", c, q, None),
            ("mlp.gate_up_proj", "ffn_up", 2 * f, c, None),
            ("mlp.down_proj", "ffn_down", c, f, None),
        ];
        let matrices = if spec.arch == Arch::Phi3 { &joined[..] } else { &apart[..] };
        for &(hf, gguf, out, input, heads) in matrices {
            // llama.cpp rotates adjacent pairs in Llama files, and pairs half a head apart in all others, as here.
            let heads = heads.filter(|_| spec.arch == Arch::Llama);
            let change = heads.map_or(Change::None, Change::Interleave);
            let bias = spec.arch == Arch::Qwen2 && matches!(gguf, "attn_q" | "attn_k" | "attn_v");
            let (hf, gguf) = (format!("layers.{i}.{hf}"), format!("blk.{i}.{gguf}"));
            t.add(true, format!("{hf}.weight"), format!("{gguf}.weight"), &[out, input]).change = change;
            t.add(bias, format!("{hf}.bias"), format!("{gguf}.bias"), &[out]).change = change;
        }
    }
}

/// GPT-2: matrices lie as (in, out) in its checkpoints.
fn gpt2(spec: &ModelSpec, t: &mut Table) {
    let (c, f) = (spec.hidden_size, spec.intermediate_size);
    t.add(true, "wte.weight".into(), "token_embd.weight".into(), &[spec.vocab_size, c]);
    t.add(true, "wpe.weight".into(), "position_embd.weight".into(), &[spec.n_ctx, c]);
    t.layer("ln_f".into(), "output_norm".into(), c, None, true);
    t.head(spec);
    for i in 0..spec.n_layers {
        for (hf, gguf) in [("ln_1", "attn_norm"), ("ln_2", "ffn_norm")] {
            t.layer(format!("h.{i}.{hf}"), format!("blk.{i}.{gguf}"), c, None, true);
        }
        for (hf, gguf, out, input) in [
            ("attn.c_attn", "attn_qkv", 3 * c, c),
            ("attn.c_proj", "attn_output", c, c),
            ("mlp.c_fc", "ffn_up", f, c),
            ("mlp.c_proj", "ffn_down", c, f),
        ] {
            let (hf, gguf) = (format!("h.{i}.{hf}"), format!("blk.{i}.{gguf}"));
            t.add(true, format!("{hf}.weight"), format!("{gguf}.weight"), &[input, out]).change = Change::Turn;
            t.add(true, format!("{hf}.bias"), format!("{gguf}.bias"), &[out]);
        }
    }
}

/// Parts of a layer in BERT's and RoBERTa's words, and in DistilBERT's.
const BERT: [&str; 8] = [
    "attention.self.query",
    "attention.self.key",
    "attention.self.value",
    "attention.output.dense",
    "attention.output.LayerNorm",
    "intermediate.dense",
    "output.dense",
    "output.LayerNorm",
];
const DISTILBERT: [&str; 8] = [
    "attention.q_lin",
    "attention.k_lin",
    "attention.v_lin",
    "attention.out_lin",
    "sa_layer_norm",
    "ffn.lin1",
    "ffn.lin2",
    "output_layer_norm",
];

/// BERT, RoBERTa and DistilBERT: all three are `bert` to llama.cpp.
fn encoder(spec: &ModelSpec, t: &mut Table) {
    let (c, f) = (spec.hidden_size, spec.intermediate_size);
    let (layers, parts) = match spec.arch {
        Arch::DistilBert => ("transformer.layer", DISTILBERT),
        _ => ("encoder.layer", BERT),
    };
    t.add(true, "embeddings.word_embeddings.weight".into(), "token_embd.weight".into(), &[spec.vocab_size, c]);
    let rows = spec.n_ctx + spec.position_offset;
    let to = "position_embd.weight".into();
    let positions = t.add(true, "embeddings.position_embeddings.weight".into(), to, &[rows, c]);
    if spec.position_offset > 0 {
        positions.change = Change::Skip(spec.position_offset);
    }
    if spec.type_vocab_size > 0 {
        let to = "token_types.weight".into();
        t.add(true, "embeddings.token_type_embeddings.weight".into(), to, &[spec.type_vocab_size, c]);
    }
    t.layer("embeddings.LayerNorm".into(), "token_embd_norm".into(), c, None, true);
    for i in 0..spec.n_layers {
        let gguf = [
            ("attn_q", c, Some(c)),
            ("attn_k", c, Some(c)),
            ("attn_v", c, Some(c)),
            ("attn_output", c, Some(c)),
            ("attn_output_norm", c, None),
            ("ffn_up", f, Some(c)),
            ("ffn_down", c, Some(f)),
            ("layer_output_norm", c, None),
        ];
        for (hf, (gguf, out, input)) in parts.into_iter().zip(gguf) {
            t.layer(format!("{layers}.{i}.{hf}"), format!("blk.{i}.{gguf}"), out, input, true);
        }
    }
    encoder_head(spec, t);
    if spec.task == Task::Answer {
        t.key("qa_outputs.weight", "edgeft.head.qa_outputs.weight", &[2, c]);
        t.key("qa_outputs.bias", "edgeft.head.qa_outputs.bias", &[2]);
    }
}

/// A pooler, and what tells labels apart. llama.cpp's head is tanh between two layers, which BERT's and RoBERTa's are;
/// DistilBERT's has ReLU, so it travels as keys.
fn encoder_head(spec: &ModelSpec, t: &mut Table) {
    let c = spec.hidden_size;
    let labels = match &spec.task {
        Task::Classify { labels } => Some(labels.len()),
        Task::Generate | Task::Answer | Task::Embed => None,
    };
    match (spec.arch, labels) {
        (Arch::DistilBert, Some(n)) => {
            t.key("pre_classifier.weight", "edgeft.head.pre_classifier.weight", &[c, c]);
            t.key("pre_classifier.bias", "edgeft.head.pre_classifier.bias", &[c]);
            t.key("classifier.weight", "edgeft.head.classifier.weight", &[n, c]);
            t.key("classifier.bias", "edgeft.head.classifier.bias", &[n]);
        }
        (Arch::DistilBert, None) => {}
        (Arch::Roberta, Some(n)) => {
            t.layer("classifier.dense".into(), "cls".into(), c, Some(c), true);
            t.layer("classifier.out_proj".into(), "cls.output".into(), n, Some(c), true);
        }
        (_, Some(n)) => {
            t.layer("pooler.dense".into(), "cls".into(), c, Some(c), true);
            t.layer("classifier".into(), "cls.output".into(), n, Some(c), true);
        }
        (_, None) => t.layer("pooler.dense".into(), "cls".into(), c, Some(c), false),
    }
}
