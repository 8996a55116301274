//! One model on several engines, and on two implementations: the learning half's forward (candle) and the device's CPU kernels
//! give the logits that transformers gave, within 5e-4, and so do ONNX Runtime, within the same, and the GPU, within 2e-3.

mod kin;

use crate::common::fixtures::{case, typed};
use crate::common::tensors::{self, Tensors};
use crate::common::{self, Folder, data, tiny::Tiny};
use candle_core::{DType, Device, Tensor};
use candle_transformers::models::llama as reference;
use edgeft::data::batch::Row;
use edgeft::data::tokens::read_rows;
use edgeft::eval::subject::{EngineName, Subject};
use edgeft_quantize::Mix;
use edgeft_runtime::engine::{Backend, EngineOptions, KvType, Rows, Run};
use edgeft_runtime::model::Model;
use serde_json::json;

/// Largest difference of two logits, f32 on both sides: sums of a few hundred products in another order, two blocks deep.
const BOUND: f32 = 5e-4;

const CASES: [&str; 4] = ["llama", "qwen2", "bert_classify", "bert_qa"];

#[test]
fn fixtures_on_candle() {
    for name in CASES {
        let folder = Folder::new();
        let line = format!("verify {0} --against {0}/io.safetensors --max-abs 5e-4 --json", typed(name));
        let json = folder.edgeft(&line).ok().json();
        assert_eq!(json["pass"], true, "{name}");
        assert!(json["positions"].as_u64() > Some(2), "{name}: {json}");
    }
}

#[test]
fn fixtures_on_the_cpu_engine_from_a_written_file() {
    for name in CASES {
        let (folder, case) = (Folder::new(), typed(name));
        folder.edgeft(&format!("quantize {case} --type f32 --out m.gguf")).ok();
        folder.edgeft(&format!("verify m.gguf --against {case}/io.safetensors --max-abs 5e-4")).ok();
    }
}

#[test]
fn a_wrong_weight_does_not_pass() {
    let folder = Folder::new();
    let mut weights = tensors::read(&case("llama").join("model.safetensors"));
    let tensors::Values::F32(values) = &mut weights.get_mut("model.layers.1.mlp.up_proj.weight").expect("it").1 else {
        panic!()
    };
    values[7] += 0.05;
    folder.write("model/model.safetensors", tensors::bytes(&weights));
    folder.write("model/config.json", std::fs::read(case("llama").join("config.json")).expect("it"));
    let ran = folder
        .edgeft(&format!("verify model --against {}/io.safetensors --max-abs 5e-4 --json", typed("llama")))
        .code(3);
    let json = ran.json();
    assert_eq!(json["pass"], false);
    assert!(json["first_difference"].as_str().is_some_and(|d| d.contains("largest difference")), "{json}");
}

/// Shapes that the fixtures do not have, each with other weights.
fn shapes() -> Vec<(&'static str, Tiny)> {
    let llama3 = json!({"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16});
    let llama = Tiny::llama;
    let all = [
        ("grouped queries", llama()),
        ("a key head for each head", llama().with("num_key_value_heads", json!(4))),
        ("one key head", llama().with("num_key_value_heads", json!(1))),
        ("a head of its own size", llama().with("head_dim", json!(24))),
        ("a tied head", llama().with("tie_word_embeddings", json!(true))),
        ("biases", llama().with("attention_bias", json!(true)).with("mlp_bias", json!(true))),
        ("llama3 rotations", llama().with("rope_scaling", llama3).with("rope_theta", json!(500_000.0))),
        ("linear rotations", llama().with("rope_scaling", json!({"rope_type": "linear", "factor": 2.5}))),
        (
            "odd sizes",
            llama().with("hidden_size", json!(52)).with("intermediate_size", json!(51)).with("head_dim", json!(10)),
        ),
        ("odd vocabulary", llama().with("vocab_size", json!(389)).with("num_hidden_layers", json!(1))),
        ("five layers", llama().with("num_hidden_layers", json!(5)).with("rms_norm_eps", json!(1e-6))),
        ("qwen2", Tiny::qwen2()),
        ("qwen2 with a head of its own", Tiny::qwen2().with("tie_word_embeddings", json!(false))),
        ("a window of eight", Tiny::mistral()),
        ("a window of one", Tiny::mistral().with("sliding_window", json!(1))),
        ("no window", Tiny::mistral().with("sliding_window", json!(null))),
    ];
    (0..).zip(all).map(|(seed, (name, tiny))| (name, tiny.seed(seed).without_text())).collect()
}

/// Both engines on the same rows.
struct Pair {
    candle: Subject,
    cpu: Subject,
    rows: Vec<Row>,
}

impl Pair {
    fn new(tiny: &Tiny, rows: &Tensors) -> Self {
        let folder = Folder::new();
        tiny.write(&folder, "base");
        folder.write("rows.safetensors", tensors::bytes(rows));
        let base = folder.at("base").to_string_lossy().into_owned();
        let open = |engine| Subject::open(&base, Some(engine), None, 2).unwrap_or_else(|e| panic!("{e:#}"));
        let rows = read_rows(&folder.at("rows.safetensors")).expect("rows");
        Self { candle: open(EngineName::Candle), cpu: open(EngineName::Cpu), rows }
    }

    #[track_caller]
    fn agree(&mut self, name: &str) {
        for row in &self.rows {
            let (a, b) = (self.candle.logits(row).expect("candle"), self.cpu.logits(row).expect("cpu"));
            assert_eq!((a.width, a.values.len()), (b.width, b.values.len()), "{name}");
            for (i, (x, y)) in a.values.iter().zip(&b.values).enumerate() {
                let at = (row.source, i / a.width, i % a.width);
                assert!((x - y).abs() <= BOUND, "{name}, row, position, logit {at:?}: candle {x}, cpu {y}");
            }
        }
    }
}

#[test]
fn decoders_of_other_shapes_agree_at_every_position() {
    for (name, tiny) in shapes().into_iter().chain(kin::shapes()) {
        Pair::new(&tiny, &data::ids(4, 40, 3)).agree(name);
    }
}

#[test]
fn heads_agree() {
    let labels = json!({"0": "a", "1": "b", "2": "c"});
    let score = Tiny::llama().with("architectures", json!(["LlamaForSequenceClassification"])).with("id2label", labels);
    for (name, tiny) in [
        ("a classifier on BERT", Tiny::classifier(&["a", "b", "c"])),
        (
            "a classifier of two on a BERT of one layer",
            Tiny::classifier(&["a", "b"]).with("num_hidden_layers", json!(1)).seed(4),
        ),
        ("a classifier on Llama", score),
    ] {
        Pair::new(&tiny.without_text(), &data::classes(5, 30, 2, 1)).agree(name);
    }
    Pair::new(&Tiny::reader().without_text(), &data::spans(5, 30, 2)).agree("a reader on BERT");
}

#[test]
fn both_engines_write_the_same_forty_tokens() {
    for (name, tiny) in shapes().into_iter().chain(kin::shapes()) {
        let mut pair = Pair::new(&tiny, &data::ids(1, 12, 5));
        let prompt = pair.rows[0].ids.clone();
        let a = pair.candle.greedy(&prompt, 40, &|_| false).expect("candle");
        let b = pair.cpu.greedy(&prompt, 40, &|_| false).expect("cpu");
        assert_eq!((a.len(), &a), (40, &b), "{name}");
    }
}

/// How tokens reach the CPU engine, and how many threads work on them, changes no bit.
#[test]
fn the_cpu_engine_gives_the_same_bits_for_any_threads() {
    for (name, tiny) in shapes().into_iter().chain(kin::shapes()) {
        for mix in [Mix::F32, Mix::Q8_0] {
            let folder = Folder::new();
            tiny.write(&folder, "base");
            let opened = edgeft::model::open::Opened::open(&folder.at("base").to_string_lossy(), 0).expect("opens");
            let model =
                Model::from_bytes(edgeft::export::to_memory(&opened, mix).expect("a file"), name).expect("a model");
            let ids: Vec<u32> = (0..33).map(|i| 5 + i * 11 % 300).collect();
            let logits = |threads: usize| {
                let options = EngineOptions { backend: Backend::Cpu, threads, ctx: 64, n_seqs: 1, kv: KvType::F32 };
                let mut engine = model.engine(&options).expect("an engine");
                let mut out = Vec::new();
                engine
                    .forward(&[Run { seq: 0, tokens: &ids, types: None, rows: Rows::All }], &mut out)
                    .expect("logits");
                out
            };
            let one = logits(1);
            assert!(one == logits(2) && one == logits(5), "{name}, {mix}");
        }
    }
}

/// candle-transformers' own Llama, another author's code on the same weights.
#[test]
fn candle_transformers_agrees() {
    for (name, tiny) in
        [("llama", Tiny::llama()), ("tied", Tiny::llama().with("tie_word_embeddings", json!(true)).seed(6))]
    {
        let tiny = tiny.without_text();
        let mut pair = Pair::new(&tiny, &data::ids(2, 18, 9));
        let n = |key: &str| tiny.config[key].as_u64().expect(key) as usize;
        let config = reference::Config {
            hidden_size: n("hidden_size"),
            intermediate_size: n("intermediate_size"),
            vocab_size: n("vocab_size"),
            num_hidden_layers: n("num_hidden_layers"),
            num_attention_heads: n("num_attention_heads"),
            num_key_value_heads: n("num_key_value_heads"),
            use_flash_attn: false,
            rms_norm_eps: tiny.config["rms_norm_eps"].as_f64().expect("eps"),
            rope_theta: 10_000.0,
            bos_token_id: None,
            eos_token_id: None,
            rope_scaling: None,
            max_position_embeddings: n("max_position_embeddings"),
            tie_word_embeddings: tiny.config["tie_word_embeddings"] == true,
        };
        let weights = tensors::bytes(&tiny.tensors());
        let weights =
            candle_nn::VarBuilder::from_buffered_safetensors(weights, DType::F32, &Device::Cpu).expect("weights");
        let theirs = reference::Llama::load(weights, &config).expect("loads");
        for row in pair.rows.clone() {
            let ours = pair.candle.logits(&row).expect("ours");
            for t in 0..row.ids.len() {
                let mut cache = reference::Cache::new(false, DType::F32, &config, &Device::Cpu).expect("a cache");
                let ids = Tensor::new(&row.ids[..=t], &Device::Cpu).and_then(|t| t.unsqueeze(0)).expect("ids");
                let last: Vec<f32> =
                    theirs.forward(&ids, 0, &mut cache).and_then(|l| l.flatten_all()?.to_vec1()).expect("logits");
                for (a, b) in ours.values[t * ours.width..].iter().zip(&last) {
                    assert!((a - b).abs() <= BOUND, "{name}, position {t}: {a} against {b}");
                }
            }
        }
    }
}

/// A model of the fixtures' kinds on the GPU: sums in another order once more, and exponentials of the driver's.
const GPU_BOUND: f32 = 2e-3;

#[test]
fn fixtures_on_the_gpu_from_a_written_file() {
    if !common::gpu("fixtures_on_the_gpu_from_a_written_file") {
        return;
    }
    for name in CASES {
        let (folder, case) = (Folder::new(), typed(name));
        folder.edgeft(&format!("quantize {case} --type f32 --out m.gguf")).ok();
        folder.edgeft(&format!("verify m.gguf --against {case}/io.safetensors --engine gpu --max-abs 2e-3")).ok();
    }
}

/// One model on the CPU and on another engine of the runtime.
struct Elsewhere {
    engine: EngineName,
    bound: f32,
    cpu: Subject,
    there: Subject,
    rows: Vec<Row>,
}

impl Elsewhere {
    /// `flags` of `quantize`, for a graph.
    fn new(engine: EngineName, flags: &str, tiny: &Tiny, rows: &Tensors) -> Self {
        let folder = Folder::new();
        tiny.write(&folder, "base");
        folder.write("rows.safetensors", tensors::bytes(rows));
        let open = |name: &str, engine| {
            let place = folder.at(name).to_string_lossy().into_owned();
            Subject::open(&place, Some(engine), None, 2).unwrap_or_else(|e| panic!("{e:#}"))
        };
        let (bound, there) = match engine {
            EngineName::Ort => {
                folder.edgeft(&format!("quantize base --to onnx --type f32 --out graph {flags}")).ok();
                (BOUND, open("graph", engine))
            }
            _ => (GPU_BOUND, open("base", engine)),
        };
        let rows = read_rows(&folder.at("rows.safetensors")).expect("rows");
        Self { engine, bound, cpu: open("base", EngineName::Cpu), there, rows }
    }

    #[track_caller]
    fn agree(&mut self, name: &str) {
        for row in &self.rows {
            let (a, b) = (self.cpu.logits(row).expect("cpu"), self.there.logits(row).expect("there"));
            assert_eq!((a.width, a.values.len()), (b.width, b.values.len()), "{name}");
            for (i, (x, y)) in a.values.iter().zip(&b.values).enumerate() {
                let at = (row.source, i / a.width, i % a.width);
                let close = (x - y).abs() <= self.bound;
                assert!(close, "{name}, row, position, logit {at:?}: cpu {x}, {:?} {y}", self.engine);
            }
        }
    }

    /// The prompt goes in at once, the rest token by token through the cache.
    #[track_caller]
    fn write_the_same(&mut self, name: &str) {
        let prompt = self.rows[0].ids[..12].to_vec();
        let a = self.cpu.greedy(&prompt, 40, &|_| false).expect("cpu");
        let b = self.there.greedy(&prompt, 40, &|_| false).expect("there");
        assert_eq!((a.len(), &a), (40, &b), "{name}");
    }
}

/// Decoders of every shape but those named, then heads.
fn as_on_the_cpu(engine: EngineName, flags: &str, but: &[&str]) {
    for (name, tiny) in shapes().into_iter().filter(|(name, _)| !but.contains(name)) {
        let mut pair = Elsewhere::new(engine, flags, &tiny, &data::ids(2, 40, 3));
        pair.agree(name);
        pair.write_the_same(name);
    }
    let labels = json!({"0": "a", "1": "b", "2": "c"});
    let score = Tiny::llama().with("architectures", json!(["LlamaForSequenceClassification"])).with("id2label", labels);
    for (name, tiny) in [
        ("a classifier on BERT", Tiny::classifier(&["a", "b", "c"])),
        ("a classifier on Llama", score),
        (
            "a BERT of odd sizes",
            Tiny::classifier(&["a", "b"]).with("hidden_size", json!(60)).with("intermediate_size", json!(51)),
        ),
    ] {
        Elsewhere::new(engine, flags, &tiny.without_text(), &data::classes(5, 30, 2, 1)).agree(name);
    }
    let mut reader = Elsewhere::new(engine, flags, &Tiny::reader().without_text(), &data::spans(5, 30, 2));
    reader.agree("a reader on BERT");
}

#[test]
fn the_gpu_answers_as_the_cpu() {
    if common::gpu("the_gpu_answers_as_the_cpu") {
        as_on_the_cpu(EngineName::Gpu, "", &[]);
    }
}

#[test]
fn onnx_runtime_answers_as_the_cpu() {
    if common::ort("onnx_runtime_answers_as_the_cpu") {
        as_on_the_cpu(EngineName::Ort, "", &[]);
    }
}

/// Shapes that ONNX Runtime's own operators do not take.
const NOT_FUSED: [&str; 3] = ["odd sizes", "a window of eight", "a window of one"];

#[test]
fn the_operators_of_onnx_runtime_answer_as_the_cpu() {
    for (name, tiny) in shapes().into_iter().filter(|(name, _)| NOT_FUSED.contains(name)) {
        let folder = Folder::new();
        tiny.write(&folder, "base");
        let ran = folder.edgeft("quantize base --to onnx --onnx ort --type f32 --out graph").code(2);
        assert!(ran.stderr.contains("write portable operators"), "{name}: {}", ran.stderr);
        assert_eq!(folder.names(""), ["base"], "{name}");
    }
    if common::ort("the_operators_of_onnx_runtime_answer_as_the_cpu") {
        as_on_the_cpu(EngineName::Ort, "--onnx ort", &NOT_FUSED);
    }
}

#[test]
fn fixtures_on_onnx_runtime_from_a_written_folder() {
    if !common::ort("fixtures_on_onnx_runtime_from_a_written_folder") {
        return;
    }
    for name in CASES {
        let (folder, case) = (Folder::new(), typed(name));
        folder.edgeft(&format!("quantize {case} --to onnx --type f32 --out graph")).ok();
        folder.edgeft(&format!("verify graph --against {case}/io.safetensors --max-abs 5e-4")).ok();
    }
}

/// Texts of an encoder together, longer than the buffers at first, and its pooled vectors.
#[test]
fn texts_of_an_encoder_go_together_on_the_gpu() {
    if !common::gpu("texts_of_an_encoder_go_together_on_the_gpu") {
        return;
    }
    let long = |tiny: Tiny| tiny.with("max_position_embeddings", json!(320)).without_text();
    for (name, tiny) in [("a reader", long(Tiny::reader())), ("vectors", long(Tiny::bert()))] {
        let folder = Folder::new();
        tiny.write(&folder, "base");
        let opened = edgeft::model::open::Opened::open(&folder.at("base").to_string_lossy(), 0).expect("opens");
        let file = edgeft::export::to_memory(&opened, Mix::F32).expect("a file");
        let model = Model::from_bytes(file, name).expect("a model");
        let ids: Vec<u32> = (0..310).map(|i| 5 + i * 11 % 300).collect();
        let types: Vec<u8> = (0..310).map(|i| u8::from(i > 100)).collect();
        let runs = [(0, 40, Rows::Last), (1, 310, Rows::All), (2, 7, Rows::None), (3, 90, Rows::All)]
            .map(|(seq, n, rows)| Run { seq, tokens: &ids[..n], types: Some(&types[..n]), rows });
        let [cpu, gpu] = [Backend::Cpu, Backend::Gpu].map(|backend| {
            let options = EngineOptions { backend, threads: 2, ctx: 320, n_seqs: 4, kv: KvType::F16 };
            let mut engine = model.engine(&options).unwrap_or_else(|e| panic!("{e}"));
            let mut out = Vec::new();
            engine.forward(&runs, &mut out).unwrap_or_else(|e| panic!("{e}"));
            assert!(engine.forward(&runs[..1], &mut Vec::new()).is_err(), "an encoder's text goes on");
            (0..4).for_each(|seq| engine.truncate(seq, 0));
            engine.forward(&runs[..1], &mut Vec::new()).unwrap_or_else(|e| panic!("{e}"));
            out
        });
        assert_eq!(cpu.len(), gpu.len(), "{name}");
        for (i, (c, g)) in cpu.iter().zip(&gpu).enumerate() {
            assert!((c - g).abs() <= GPU_BOUND, "{name}, number {i}: cpu {c}, gpu {g}");
        }
    }
}
