//! The families beside Llama, Mistral, Qwen2 and BERT: their configs, and what their tensors are called.

use super::{Tiny, VOCAB, Weights};
use serde_json::{Value, json};

impl Tiny {
    /// Qwen3: norms of each head's query and key, a head width of its own.
    pub fn qwen3() -> Self {
        Self::llama()
            .with("model_type", json!("qwen3"))
            .with("architectures", json!(["Qwen3ForCausalLM"]))
            .with("head_dim", json!(24))
    }

    /// Phi-3: q, k and v in one matrix, gate and up in another.
    pub fn phi3() -> Self {
        Self::llama().with("model_type", json!("phi3")).with("architectures", json!(["Phi3ForCausalLM"]))
    }

    /// Gemma 3, text: a local layer, and one that sees all.
    pub fn gemma3() -> Self {
        let mut config = Self::llama()
            .with("model_type", json!("gemma3_text"))
            .with("architectures", json!(["Gemma3ForCausalLM"]))
            .with("head_dim", json!(20))
            .with("query_pre_attn_scalar", json!(30))
            .with("hidden_activation", json!("gelu_pytorch_tanh"))
            .with("layer_types", json!(["sliding_attention", "full_attention"]))
            .with("sliding_window", json!(5))
            .with("rope_theta", json!(1_000_000.0))
            .with("rope_local_base_freq", json!(10_000.0))
            .with("tie_word_embeddings", json!(true));
        // √C of it is what the blocks see.
        config.embedding = 0.1;
        config
    }

    /// GPT-2: learned positions, matrices that lie as (in, out).
    pub fn gpt2() -> Self {
        Self::of(json!({
            "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "vocab_size": VOCAB, "n_embd": 64, "n_inner": 96,
            "n_layer": 2, "n_head": 4, "n_positions": 64, "layer_norm_epsilon": 1e-5, "activation_function": "gelu_new",
            "bos_token_id": 0, "eos_token_id": 1
        }))
    }

    /// RoBERTa without a head.
    pub fn roberta() -> Self {
        Self::bert()
            .with("model_type", json!("roberta"))
            .with("architectures", json!(["RobertaModel"]))
            .with("pad_token_id", json!(1))
            .with("type_vocab_size", json!(1))
            .with("max_position_embeddings", json!(66))
    }

    /// DistilBERT without a head.
    pub fn distilbert() -> Self {
        Self::of(json!({
            "architectures": ["DistilBertModel"], "model_type": "distilbert", "vocab_size": VOCAB, "dim": 64, "hidden_dim": 96,
            "n_layers": 2, "n_heads": 4, "max_position_embeddings": 64, "activation": "gelu", "pad_token_id": 0
        }))
    }

    /// This encoder, telling labels apart.
    pub fn labelling(self, labels: &[&str]) -> Self {
        let by_index: serde_json::Map<_, _> =
            labels.iter().enumerate().map(|(i, l)| (i.to_string(), json!(l))).collect();
        let class = format!("{}ForSequenceClassification", self.class());
        self.with("architectures", json!([class])).with("id2label", by_index.into())
    }

    /// This encoder, finding spans.
    pub fn reading(self) -> Self {
        let class = format!("{}ForQuestionAnswering", self.class());
        self.with("architectures", json!([class]))
    }

    fn class(&self) -> &'static str {
        match self.config["model_type"].as_str() {
            Some("roberta") => "Roberta",
            Some("distilbert") => "DistilBert",
            _ => "Bert",
        }
    }

    pub(super) fn gpt2_tensors(&self, out: &mut Weights) {
        let of = |key: &str| self.size(key).expect(key);
        let (c, f) = (of("n_embd"), of("n_inner"));
        out.put("transformer.wte.weight", &[of("vocab_size"), c]);
        out.put("transformer.wpe.weight", &[of("n_positions"), c]);
        if self.config["tie_word_embeddings"] == false {
            out.put("lm_head.weight", &[of("vocab_size"), c]);
        }
        for i in 0..of("n_layer") {
            let at = |part: &str| format!("transformer.h.{i}.{part}");
            out.norm(&at("ln_1"), c);
            out.norm(&at("ln_2"), c);
            for (part, rows, cols) in
                [("attn.c_attn", c, 3 * c), ("attn.c_proj", c, c), ("mlp.c_fc", c, f), ("mlp.c_proj", f, c)]
            {
                out.put(&format!("{}.weight", at(part)), &[rows, cols]);
                out.put(&format!("{}.bias", at(part)), &[cols]);
            }
        }
        out.norm("transformer.ln_f", c);
        if self.config["architectures"][0] == "GPT2ForSequenceClassification" {
            out.put("score.weight", &[self.config["id2label"].as_object().expect("labels").len(), c]);
        }
    }

    pub(super) fn distilbert_tensors(&self, out: &mut Weights) {
        let of = |key: &str| self.size(key).expect(key);
        let (c, f) = (of("dim"), of("hidden_dim"));
        out.put("distilbert.embeddings.word_embeddings.weight", &[of("vocab_size"), c]);
        out.put("distilbert.embeddings.position_embeddings.weight", &[of("max_position_embeddings"), c]);
        out.norm("distilbert.embeddings.LayerNorm", c);
        for i in 0..of("n_layers") {
            let at = |part: &str| format!("distilbert.transformer.layer.{i}.{part}");
            for part in ["q_lin", "k_lin", "v_lin", "out_lin"] {
                out.linear(&at(&format!("attention.{part}")), c, c, true);
            }
            out.linear(&at("ffn.lin1"), f, c, true);
            out.linear(&at("ffn.lin2"), c, f, true);
            out.norm(&at("sa_layer_norm"), c);
            out.norm(&at("output_layer_norm"), c);
        }
    }

    /// The modules of an encoder's task.
    pub(super) fn head_tensors(&self, out: &mut Weights, c: usize) {
        let labels = || self.config["id2label"].as_object().expect("labels").len();
        let class = self.config["architectures"][0].as_str().expect("a class");
        match (self.class(), &class[self.class().len()..]) {
            ("Bert", "ForSequenceClassification") => {
                out.linear("bert.pooler.dense", c, c, true);
                out.linear("classifier", labels(), c, true);
            }
            ("Roberta", "ForSequenceClassification") => {
                out.linear("classifier.dense", c, c, true);
                out.linear("classifier.out_proj", labels(), c, true);
            }
            ("DistilBert", "ForSequenceClassification") => {
                out.linear("pre_classifier", c, c, true);
                out.linear("classifier", labels(), c, true);
            }
            (_, "ForQuestionAnswering") => out.linear("qa_outputs", 2, c, true),
            ("Bert", _) => out.linear("bert.pooler.dense", c, c, true),
            _ => {}
        }
    }
}

/// Whether a config is an encoder's.
pub(super) fn is_encoder(config: &Value) -> bool {
    ["bert", "roberta", "distilbert"].iter().any(|t| config["model_type"] == *t)
}
