//! Files that `edgeft-quantize` writes, read back by both.

use edgeft_quantize::{
    Arch, BoxError, Mix, ModelSpec, PlanOptions, RopeScaling, RopeSpec, Task, TensorSource, TokenizerFiles, plan,
    write_gguf,
};
use gguf_rs_check::compare;
use std::path::PathBuf;

/// A Llama of one layer with a head that travels as a key; every value is a function of its position.
struct Tiny(ModelSpec);

impl Tiny {
    fn new() -> Self {
        Self(ModelSpec {
            arch: Arch::Llama,
            name: "tiny \u{2581} ünï".into(),
            vocab_size: 300,
            n_ctx: 64,
            hidden_size: 256,
            intermediate_size: 512,
            n_layers: 1,
            n_heads: 4,
            n_kv_heads: 2,
            head_dim: 64,
            norm_eps: 1e-5,
            rope: Some(RopeSpec {
                theta: 5e5,
                local_theta: None,
                dims: None,
                scaling: RopeScaling::Llama3 {
                    factor: 8.0,
                    low_freq_factor: 1.0,
                    high_freq_factor: 4.0,
                    original_max_position_embeddings: 32,
                },
            }),
            position_offset: 0,
            attention_scale: None,
            sliding_window: Some(16),
            local_layers: Vec::new(),
            task: Task::Classify { labels: vec!["no".into(), "yes".into(), "может".into()] },
            type_vocab_size: 0,
        })
    }
}

impl TensorSource for Tiny {
    fn spec(&self) -> &ModelSpec {
        &self.0
    }
    fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        [
            ("model.embed_tokens.weight", vec![300, 256]),
            ("model.norm.weight", vec![256]),
            ("score.weight", vec![3, 256]),
            ("model.layers.0.input_layernorm.weight", vec![256]),
            ("model.layers.0.post_attention_layernorm.weight", vec![256]),
            ("model.layers.0.self_attn.q_proj.weight", vec![256, 256]),
            ("model.layers.0.self_attn.k_proj.weight", vec![128, 256]),
            ("model.layers.0.self_attn.v_proj.weight", vec![128, 256]),
            ("model.layers.0.self_attn.o_proj.weight", vec![256, 256]),
            ("model.layers.0.mlp.gate_proj.weight", vec![512, 256]),
            ("model.layers.0.mlp.up_proj.weight", vec![512, 256]),
            ("model.layers.0.mlp.down_proj.weight", vec![256, 512]),
        ]
        .map(|(name, shape)| (name.to_string(), shape))
        .to_vec()
    }
    fn read(&self, name: &str) -> Result<Vec<f32>, BoxError> {
        let (_, shape) = self.tensors().into_iter().find(|(n, _)| n == name).ok_or("no such tensor")?;
        let n: usize = shape.iter().product();
        Ok((0..n).map(|i| ((i as f32 + name.len() as f32) * 0.7).sin() * 0.1).collect())
    }
}

/// A byte-level tokenizer of 256 bytes, two merges and two special tokens; 40 rows stay without a token.
fn tokenizer() -> TokenizerFiles {
    let mut vocab = Vec::new();
    let printable = |b: u32| matches!(b, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let mut next = 0x100;
    for b in 0..256u32 {
        let c = if printable(b) {
            b
        } else {
            next += 1;
            next - 1
        };
        let c = char::from_u32(c).unwrap().to_string();
        vocab.push(format!("{}:{b}", serde_json::to_string(&c).unwrap()));
    }
    vocab.push("\"he\":256".into());
    vocab.push("\"\u{120}t\":257".into());
    let json = format!(
        r#"{{"version":"1.0","added_tokens":[
            {{"id":258,"content":"<|bos|>","special":true}},{{"id":259,"content":"<|eos|>","special":true}}],
          "normalizer":null,
          "pre_tokenizer":{{"type":"ByteLevel","add_prefix_space":false,"trim_offsets":true,"use_regex":true}},
          "post_processor":null,"decoder":{{"type":"ByteLevel"}},
          "model":{{"type":"BPE","vocab":{{{}}},"merges":[["h","e"],["{}","t"]]}}}}"#,
        vocab.join(","),
        '\u{120}',
    );
    TokenizerFiles {
        tokenizer_json: Some(json.into_bytes()),
        chat_template: Some("{{ messages }}".into()),
        bos: Some(258),
        eos: Some(259),
        ..Default::default()
    }
}

fn write(mix: Mix, dir: &tempfile::TempDir) -> PathBuf {
    let tiny = Tiny::new();
    let plan = plan(&tiny, mix, &PlanOptions::default()).unwrap();
    let path = dir.path().join(format!("{mix}.gguf"));
    let mut file = std::fs::File::create(&path).unwrap();
    write_gguf(&tiny, &tokenizer(), &plan, &[], &mut file, &mut |_, _| {}).unwrap();
    path
}

#[test]
fn every_mix_reads_the_same_twice() {
    let dir = tempfile::tempdir().unwrap();
    for mix in Mix::all() {
        let agreed = compare(&write(mix, &dir)).unwrap_or_else(|e| panic!("{mix}: {e}"));
        assert_eq!(agreed.tensors, 12, "{mix}"); // eleven weights and rope_freqs; the head is a key
        assert!(agreed.keys > 25, "{mix}: {}", agreed.keys);
    }
}

#[test]
fn a_difference_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let path = write(Mix::Q8_0, &dir);
    let bytes = std::fs::read(&path).unwrap();
    let cut = |n: usize| {
        std::fs::write(&path, &bytes[..n]).unwrap();
        compare(&path).unwrap_err()
    };
    assert!(cut(bytes.len() - 4000).starts_with("edgeft refuses it: "));
    assert!(cut(100).starts_with("edgeft refuses it: "));
    // A second `general.type` in place of `general.name`: gguf-rs keeps the last, edgeft refuses.
    let mut twice = bytes.clone();
    let at = twice.windows(12).position(|w| w == b"general.name").unwrap();
    twice[at..at + 12].copy_from_slice(b"general.type");
    std::fs::write(&path, &twice).unwrap();
    let e = compare(&path).unwrap_err();
    assert!(e.starts_with("edgeft refuses it: ") && e.contains("general.type"), "{e}");
}
