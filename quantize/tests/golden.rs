//! What transformers computed, on the device's half alone: a Hugging Face folder becomes GGUF bytes here, the runtime
//! reads them and gives the recorded logits. No candle is needed, so this also runs under an emulator of another CPU.

use edgeft_quantize::error::BoxError;
use edgeft_quantize::{
    Arch, Mix, ModelSpec, PlanOptions, RopeScaling, RopeSpec, Task, TensorSource, TokenizerFiles, plan, write_gguf,
};
use edgeft_runtime::{Backend, KvType, Model, Session, SessionOptions};
use safetensors::SafeTensors;
use serde_json::Value;
use std::path::{Path, PathBuf};

/// Largest difference of two logits, f32 on both sides: sums of a few hundred products in another order, two blocks deep.
const BOUND: f32 = 5e-4;

fn case(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures").join(name)
}

/// A folder as `save_pretrained` wrote it.
struct Folder {
    spec: ModelSpec,
    weights: Vec<u8>,
}

impl Folder {
    fn read(folder: &Path) -> Self {
        let config = std::fs::read_to_string(folder.join("config.json")).expect("config.json");
        let config: Value = serde_json::from_str(&config).expect("JSON");
        let n = |key: &str| config[key].as_u64().map(|n| n as usize);
        let arch = match config["model_type"].as_str() {
            Some("llama") => Arch::Llama,
            Some("qwen2") => Arch::Qwen2,
            Some("bert") => Arch::Bert,
            other => panic!("{other:?}"),
        };
        let head = config["architectures"][0].as_str().expect("a head");
        let task = match head {
            _ if head.ends_with("SequenceClassification") => {
                let labels = config["id2label"].as_object().expect("labels");
                Task::Classify { labels: labels.values().map(|l| l.as_str().expect("a label").to_owned()).collect() }
            }
            _ if head.ends_with("QuestionAnswering") => Task::Answer,
            _ => Task::Generate,
        };
        let heads = n("num_attention_heads").expect("heads");
        let hidden_size = n("hidden_size").expect("a width");
        let eps = config["rms_norm_eps"].as_f64().or(config["layer_norm_eps"].as_f64()).expect("an epsilon");
        let rope = &config["rope_parameters"];
        let spec = ModelSpec {
            arch,
            name: head.to_owned(),
            vocab_size: n("vocab_size").expect("a vocabulary"),
            n_ctx: n("max_position_embeddings").expect("positions"),
            hidden_size,
            intermediate_size: n("intermediate_size").expect("a width"),
            n_layers: n("num_hidden_layers").expect("layers"),
            n_heads: heads,
            n_kv_heads: n("num_key_value_heads").unwrap_or(heads),
            head_dim: n("head_dim").unwrap_or(hidden_size / heads),
            norm_eps: eps as f32,
            rope: rope["rope_theta"].as_f64().map(|t| RopeSpec {
                theta: t as f32,
                local_theta: None,
                dims: None,
                scaling: RopeScaling::None,
            }),
            position_offset: 0,
            attention_scale: None,
            sliding_window: None,
            local_layers: Vec::new(),
            task,
            type_vocab_size: n("type_vocab_size").unwrap_or(0),
        };
        Self { spec, weights: std::fs::read(folder.join("model.safetensors")).expect("weights") }
    }

    fn tensors(&self) -> SafeTensors<'_> {
        SafeTensors::deserialize(&self.weights).expect("safetensors")
    }
}

impl TensorSource for Folder {
    fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        self.tensors().iter().map(|(name, t)| (name.to_owned(), t.shape().to_vec())).collect()
    }

    fn read(&self, name: &str) -> Result<Vec<f32>, BoxError> {
        Ok(numbers(self.tensors().tensor(name)?.data(), f32::from_le_bytes))
    }
}

fn numbers<T, const N: usize>(bytes: &[u8], read: fn([u8; N]) -> T) -> Vec<T> {
    bytes.chunks_exact(N).map(|b| read(b.try_into().expect("N bytes"))).collect()
}

/// Holds every position that the mask lets through against the recorded outputs; how many numbers that were.
fn compare(name: &str) -> usize {
    let folder = Folder::read(&case(name));
    let plan = plan(&folder, Mix::F32, &PlanOptions::default()).expect("a plan");
    let mut bytes = Vec::new();
    write_gguf(&folder, &TokenizerFiles::default(), &plan, &[], &mut bytes, &mut |_, _| ()).expect("GGUF");
    let model = Model::from_bytes(bytes, name).expect("a model");
    let options = SessionOptions { backend: Backend::Cpu, ctx: None, threads: Some(2), kv: KvType::F32 };
    let mut session = Session::new(&model, &options).expect("a session");

    let io = std::fs::read(case(name).join("io.safetensors")).expect("io.safetensors");
    let io = SafeTensors::deserialize(&io).expect("safetensors");
    let ints = |name: &str| numbers(io.tensor(name).expect(name).data(), i64::from_le_bytes);
    let floats = |name: &str| numbers(io.tensor(name).expect(name).data(), f32::from_le_bytes);
    let shape = io.tensor("input_ids").expect("ids").shape().to_vec(); // (B, T)
    let (ids, mask) = (ints("input_ids"), ints("attention_mask"));
    let width = session.output_dim();
    // (B, T, width), or (B, width) where a sequence gives one row
    let outputs: Vec<f32> = match model.task() {
        edgeft_runtime::Task::Answer => {
            floats("start_logits").into_iter().zip(floats("end_logits")).flat_map(|(s, e)| [s, e]).collect()
        }
        _ => floats("logits"),
    };
    let a_row = outputs.len() / shape[0];
    let mut compared = 0;
    for row in 0..shape[0] {
        let of_row = row * shape[1]..(row + 1) * shape[1];
        let kept: Vec<usize> = of_row.clone().filter(|&i| mask[i] == 1).collect();
        let tokens: Vec<u32> = kept.iter().map(|&i| ids[i] as u32).collect();
        let types = (folder.spec.type_vocab_size > 0).then(|| vec![0u8; tokens.len()]);
        let got = session.logits(&tokens, types.as_deref()).expect("logits");
        let want = &outputs[row * a_row..(row + 1) * a_row];
        let want: Vec<f32> = match a_row == width {
            true => want.to_vec(),
            false => kept.iter().flat_map(|i| want[(i - of_row.start) * width..][..width].to_vec()).collect(),
        };
        assert_eq!(got.len(), want.len(), "{name}, row {row}");
        for (i, (g, w)) in got.iter().zip(&want).enumerate() {
            assert!((g - w).abs() <= BOUND, "{name}, row {row}, number {i}: {g}, transformers {w}");
        }
        compared += got.len();
    }
    compared
}

#[test]
fn llama() {
    assert!(compare("llama") > 10_000);
}

#[test]
fn qwen2() {
    assert!(compare("qwen2") > 5_000);
}

#[test]
fn bert_that_classifies() {
    assert_eq!(compare("bert_classify"), 9);
}

#[test]
fn bert_that_answers() {
    assert!(compare("bert_qa") > 50);
}
