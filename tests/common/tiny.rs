//! Model folders from a seed, in Hugging Face's layout: nothing is downloaded, nothing pretended. [`kin`]: more families.

mod kin;

use super::tensors::{self, Tensors, Values};
use super::{Folder, tokenizers};
use edgeft::rng;
use serde_json::{Value, json};

/// A model that can be written as a folder: its `config.json`, and the seed of its weights.
#[derive(Clone)]
pub struct Tiny {
    /// `config.json`.
    pub config: Value,
    seed: u64,
    liveliness: f32,
    embedding: f32,
    text: bool,
}

/// Tokens of every model here; the tokenizers have fewer, as real ones often do.
pub const VOCAB: usize = 384;

impl Tiny {
    /// Llama: two blocks, four heads that share two key heads.
    pub fn llama() -> Self {
        Self::of(json!({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": VOCAB, "hidden_size": 64,
            "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
            "max_position_embeddings": 128, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": false,
            "bos_token_id": 0, "eos_token_id": 1
        }))
    }

    /// Qwen2: biases on q, k and v, a tied head.
    pub fn qwen2() -> Self {
        Self::llama()
            .with("model_type", json!("qwen2"))
            .with("architectures", json!(["Qwen2ForCausalLM"]))
            .with("tie_word_embeddings", json!(true))
    }

    /// Mistral: a token sees eight back.
    pub fn mistral() -> Self {
        Self::llama()
            .with("model_type", json!("mistral"))
            .with("architectures", json!(["MistralForCausalLM"]))
            .with("sliding_window", json!(8))
    }

    /// BERT without a head: two layers, four heads.
    pub fn bert() -> Self {
        Self::of(json!({
            "architectures": ["BertModel"], "model_type": "bert", "vocab_size": VOCAB, "hidden_size": 64,
            "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 64,
            "layer_norm_eps": 1e-12, "type_vocab_size": 2, "hidden_act": "gelu", "pad_token_id": 0
        }))
    }

    /// BERT that tells labels apart.
    pub fn classifier(labels: &[&str]) -> Self {
        Self::bert().labelling(labels)
    }

    /// BERT that finds spans.
    pub fn reader() -> Self {
        Self::bert().reading()
    }

    fn of(config: Value) -> Self {
        Self { config, seed: 0, liveliness: 2.0, embedding: 0.8, text: true }
    }

    /// With one key of the config changed.
    pub fn with(mut self, key: &str, value: Value) -> Self {
        self.config[key] = value;
        self
    }

    /// With other weights.
    pub fn seed(self, seed: u64) -> Self {
        Self { seed, ..self }
    }

    /// With smaller weights, whose logits move less when they are rounded: nearer to a model that was trained.
    pub fn calm(self) -> Self {
        Self { liveliness: 0.6, ..self }
    }

    /// Without tokenizer and chat template.
    pub fn without_text(self) -> Self {
        Self { text: false, ..self }
    }

    /// Writes the folder.
    pub fn write(&self, folder: &Folder, name: &str) {
        let file = |part: &str| format!("{name}/{part}");
        folder.write(&file("config.json"), self.config.to_string());
        folder.write(&file("model.safetensors"), tensors::bytes(&self.tensors()));
        if self.text {
            let (json, config) = match self.config["model_type"].as_str() {
                Some("bert" | "distilbert") => tokenizers::wordpiece(),
                Some("roberta") => tokenizers::byte_level_pairs(),
                _ => tokenizers::byte_level(),
            };
            folder.write(&file("tokenizer.json"), json);
            folder.write(&file("tokenizer_config.json"), config.to_string());
        }
    }

    fn size(&self, key: &str) -> Option<usize> {
        self.config[key].as_u64().map(|n| n as usize)
    }

    fn flag(&self, key: &str) -> bool {
        self.config[key] == true
    }

    /// Every weight, by name.
    pub fn tensors(&self) -> Tensors {
        let (seed, liveliness, embedding) = (self.seed, self.liveliness, self.embedding);
        let mut out = Weights { seed, liveliness, embedding, middle: 1.0, tensors: Tensors::new() };
        match self.config["model_type"].as_str() {
            Some("gpt2") => self.gpt2_tensors(&mut out),
            Some("distilbert") => self.distilbert_tensors(&mut out),
            Some("bert" | "roberta") => self.encoder(&mut out),
            _ => self.decoder(&mut out),
        }
        if kin::is_encoder(&self.config) {
            self.head_tensors(&mut out, self.size("hidden_size").or(self.size("dim")).expect("a width"));
        }
        out.tensors
    }

    fn decoder(&self, out: &mut Weights) {
        let of = |key: &str| self.size(key).expect(key);
        let (v, c, f, heads) =
            (of("vocab_size"), of("hidden_size"), of("intermediate_size"), of("num_attention_heads"));
        let kv_heads = self.size("num_key_value_heads").unwrap_or(heads);
        let d = self.size("head_dim").unwrap_or(c / heads);
        let (qwen, bias) = (self.config["model_type"] == "qwen2", self.flag("attention_bias"));
        let [qwen3, gemma, phi] = ["qwen3", "gemma3_text", "phi3"].map(|t| self.config["model_type"] == t);
        if gemma {
            out.middle = 0.0; // norms less 1
        }
        out.put("model.embed_tokens.weight", &[v, c]);
        out.put("model.norm.weight", &[c]);
        if !self.flag("tie_word_embeddings") {
            out.put("lm_head.weight", &[v, c]);
        }
        for i in 0..of("num_hidden_layers") {
            out.put(&format!("model.layers.{i}.input_layernorm.weight"), &[c]);
            out.put(&format!("model.layers.{i}.post_attention_layernorm.weight"), &[c]);
            for part in ["pre_feedforward_layernorm", "post_feedforward_layernorm"].iter().filter(|_| gemma) {
                out.put(&format!("model.layers.{i}.{part}.weight"), &[c]);
            }
            for part in ["q_norm", "k_norm"].iter().filter(|_| gemma || qwen3) {
                out.put(&format!("model.layers.{i}.self_attn.{part}.weight"), &[d]);
            }
            if phi {
                for (part, rows, cols) in [
                    ("self_attn.qkv_proj", (heads + 2 * kv_heads) * d, c),
                    ("self_attn.o_proj", c, heads * d),
                    ("mlp.gate_up_proj", 2 * f, c),
                    ("mlp.down_proj", c, f),
                ] {
                    out.linear(&format!("model.layers.{i}.{part}"), rows, cols, false);
                }
                continue;
            }
            for (part, rows, cols, bias) in [
                ("self_attn.q_proj", heads * d, c, qwen || bias),
                ("self_attn.k_proj", kv_heads * d, c, qwen || bias),
                ("self_attn.v_proj", kv_heads * d, c, qwen || bias),
                ("self_attn.o_proj", c, heads * d, bias),
                ("mlp.gate_proj", f, c, self.flag("mlp_bias")),
                ("mlp.up_proj", f, c, self.flag("mlp_bias")),
                ("mlp.down_proj", c, f, self.flag("mlp_bias")),
            ] {
                out.linear(&format!("model.layers.{i}.{part}"), rows, cols, bias);
            }
        }
        if self.config["architectures"][0].as_str().is_some_and(|a| a.ends_with("ForSequenceClassification")) {
            out.put("score.weight", &[self.config["id2label"].as_object().expect("labels").len(), c]);
        }
    }

    /// BERT's trunk, or RoBERTa's.
    fn encoder(&self, out: &mut Weights) {
        let of = |key: &str| self.size(key).expect(key);
        let (v, c, f) = (of("vocab_size"), of("hidden_size"), of("intermediate_size"));
        let name = self.config["model_type"].as_str().expect("a family");
        out.put(&format!("{name}.embeddings.word_embeddings.weight"), &[v, c]);
        out.put(&format!("{name}.embeddings.position_embeddings.weight"), &[of("max_position_embeddings"), c]);
        out.put(&format!("{name}.embeddings.token_type_embeddings.weight"), &[of("type_vocab_size"), c]);
        out.norm(&format!("{name}.embeddings.LayerNorm"), c);
        for i in 0..of("num_hidden_layers") {
            let at = |part: &str| format!("{name}.encoder.layer.{i}.{part}");
            for part in ["attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"]
            {
                out.linear(&at(part), c, c, true);
            }
            out.linear(&at("intermediate.dense"), f, c, true);
            out.linear(&at("output.dense"), c, f, true);
            out.norm(&at("attention.output.LayerNorm"), c);
            out.norm(&at("output.LayerNorm"), c);
        }
    }
}

struct Weights {
    seed: u64,
    liveliness: f32,
    embedding: f32,
    /// Where the weights of norms lie about.
    middle: f32,
    tensors: Tensors,
}

impl Weights {
    /// Matrices of deviation 2/√in (unless calm), embeddings of 0.8: livelier than a fresh model's, so that a wrong
    /// rotation or norm shows.
    fn put(&mut self, name: &str, shape: &[usize]) {
        let deviation = match shape {
            [_, _] if name.contains("embed") || name.contains(".wte") || name.contains(".wpe") => self.embedding,
            [_, cols] => self.liveliness / (*cols as f32).sqrt(),
            _ => 0.1,
        };
        let norm = ["norm", "LayerNorm", "ln_1", "ln_2", "ln_f"].iter().any(|n| name.ends_with(&format!("{n}.weight")));
        let middle = if norm { self.middle } else { 0.0 };
        let stream = rng::stream(name, 0);
        let n: usize = shape.iter().product();
        let values = (0..n as u64).map(|i| middle + deviation * rng::normal(self.seed, stream, i)).collect();
        self.tensors.insert(name.to_owned(), (shape.to_vec(), Values::F32(values)));
    }

    fn linear(&mut self, name: &str, rows: usize, cols: usize, bias: bool) {
        self.put(&format!("{name}.weight"), &[rows, cols]);
        if bias {
            self.put(&format!("{name}.bias"), &[rows]);
        }
    }

    fn norm(&mut self, name: &str, width: usize) {
        self.put(&format!("{name}.weight"), &[width]);
        self.put(&format!("{name}.bias"), &[width]);
    }
}
