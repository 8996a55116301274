//! GGUF adapters beside a base on the CPU engine: the same answers as the RUN and as the merged file, each sequence under its
//! own, and files that are not what they say.

mod encoder;

use crate::common::{self, Folder, close, data, tiny::Tiny};
use edgeft::rng;
use edgeft_quantize::gguf::{Floats, floats};
use edgeft_runtime::engine::{Backend, Engine, EngineOptions, KvType, Rows, Run};
use edgeft_runtime::format::gguf::{Gguf, Value};
use edgeft_runtime::{Adapter, Kind, Model};
use proptest::prelude::*;
use serde_json::{Value as Json, json};

const TUNE: &str = "--no-val --steps 8 --batch 8 --warmup 0 --schedule constant --lr 2e-2 --rank 4";

/// A base in a folder, with rows for what it is.
fn folder(tiny: &Tiny) -> Folder {
    let folder = Folder::new();
    tiny.write(&folder, "base");
    folder.write("d.jsonl", data::chats(24));
    folder
}

/// base.gguf, run.gguf (merged) and run.adapter of a RUN.
fn files(folder: &Folder, run: &str) {
    if !folder.at("base.gguf").exists() {
        folder.edgeft("quantize base --type f32 --out base.gguf").ok();
    }
    folder.edgeft(&format!("quantize {run} --type f32 --out {run}.gguf --force")).ok();
    folder.edgeft(&format!("quantize {run} --adapter-only --out {run}.adapter.gguf --force")).ok();
}

/// The base with the adapter beside it is the merged file, and the RUN; without it, it is neither.
#[track_caller]
fn is_one_model(folder: &Folder, run: &str, name: &str) {
    files(folder, run);
    let verify = |beside: &str, against: &str, most: f64| {
        folder.edgeft(&format!("verify base.gguf {beside} --against {against} --data d.jsonl --max-abs {most} --json"))
    };
    let beside = format!("--adapter {run}.adapter.gguf");
    for against in [format!("{run}.gguf"), run.to_owned()] {
        let verified = verify(&beside, &against, 1e-4);
        assert_eq!(verified.code, 0, "{name} against {against}: {}", verified.stdout);
        assert_eq!(verified.json()["adapter"], format!("{run}.adapter.gguf"));
        verify("", &against, 1e-2).code(3);
    }
    verify(&format!("{beside}=0"), "base.gguf", 0.0).ok();
    verify(&format!("{beside}:0.5"), &format!("{run}.gguf"), 1e-4).code(3);
}

#[test]
fn a_base_with_its_adapter_is_the_run_and_the_merged_file_in_every_family() {
    for (name, tiny) in [
        ("llama", Tiny::llama()),
        ("mistral", Tiny::mistral()),
        ("qwen2", Tiny::qwen2()),
        ("qwen3", Tiny::qwen3()),
        ("phi3", Tiny::phi3()),
        ("gemma3", Tiny::gemma3()),
        ("gpt2", Tiny::gpt2()),
    ] {
        let folder = folder(&tiny);
        folder.edgeft(&format!("tune --model base --data d.jsonl --out run {TUNE}")).ok();
        is_one_model(&folder, "run", name);
    }
}

#[test]
fn a_scale_of_its_own_a_rank_of_its_own_and_a_head_come_along() {
    let folder = folder(&Tiny::llama());
    folder.edgeft(&format!("tune --model base --data d.jsonl --out rs {TUNE} --method rslora --alpha 6")).ok();
    is_one_model(&folder, "rs", "rslora");
    folder.edgeft(&format!("tune --model base --data d.jsonl --out run {TUNE} --alpha 12")).ok();
    let mut config: Json = serde_json::from_slice(&folder.read("run/adapter_config.json")).unwrap();
    config["alpha_pattern"] = json!({"v_proj": 3.0, "layers.1.mlp.up_proj": 31.0});
    folder.write("run/adapter_config.json", config.to_string());
    is_one_model(&folder, "run", "alpha by module");
}

/// An encoder that gives vectors; q8_0 under an f32 adapter.
#[test]
fn an_encoder_and_a_quantized_base_take_one_too() {
    let folder = folder(&Tiny::bert());
    let word = |i: usize| data::WORDS[i % data::WORDS.len()];
    let pair = |i: usize| json!({"query": format!("the {} and {}", word(i), word(3 * i)), "document": word(i + 7)});
    let pairs: String = (0..24).map(|i| format!("{}\n", pair(i))).collect();
    folder.write("d.jsonl", pairs);
    folder.edgeft(&format!("tune --model base --task embed --data d.jsonl --out run {TUNE}")).ok();
    is_one_model(&folder, "run", "bert");

    let folder = self::folder(&Tiny::llama().calm());
    folder.edgeft(&format!("tune --model base --data d.jsonl --out run {TUNE}")).ok();
    files(&folder, "run");
    folder.edgeft("quantize base --type q8_0 --out q.gguf").ok();
    let kl = |beside: &str| {
        let line = format!("verify q.gguf {beside} --against run --data d.jsonl --max-kl 10 --json");
        folder.edgeft(&line).ok().json()["mean_kl"].as_f64().unwrap()
    };
    let (with, without) = (kl("--adapter run.adapter.gguf"), kl(""));
    assert!(with < 0.005 && without > 10.0 * with, "{with} {without}");
    // By the type's bounds; nothing was merged, so there is nothing that rounding could have lost.
    let verified =
        folder.edgeft("verify q.gguf --adapter run.adapter.gguf --against run --data d.jsonl --json").ok().json();
    assert!(verified.get("retention").is_none(), "{verified}");
}

/// Every verb that runs a model.
#[test]
fn each_verb_runs_the_base_under_an_adapter_as_the_merged_file() {
    let folder = folder(&Tiny::llama());
    folder.edgeft(&format!("tune --model base --data d.jsonl --out run {TUNE}")).ok();
    files(&folder, "run");
    let run = |model: &str| {
        folder.edgeft(&format!("run {model} -p 'the cat' -n 12 --kv f32 --json")).ok().json()["token_ids"].clone()
    };
    let (base, merged, beside) = (run("base.gguf"), run("run.gguf"), run("base.gguf --adapter run.adapter.gguf"));
    assert!(beside == merged && base != merged, "{base} {merged} {beside}");
    assert_eq!(run("base.gguf --adapter run.adapter.gguf=0"), base);
    assert_eq!(run("base --adapter run.adapter.gguf"), merged); // a folder, converted in memory
    let loss = |model: &str| {
        folder.edgeft(&format!("eval {model} --data d.jsonl --json")).ok().json()["loss"].as_f64().unwrap()
    };
    close(loss("base.gguf --adapter run.adapter.gguf"), loss("run.gguf"), 1e-4, "loss");
    assert!((loss("base.gguf") - loss("run.gguf")).abs() > 1e-2);
    let bench = "bench base.gguf --prompt 8 --generate 4 --runs 5 --batch 2 --json";
    let json = folder.edgeft(&format!("{bench} --adapter run.adapter.gguf --target this")).ok().json();
    assert_eq!(json["adapter"], "run.adapter.gguf");
    folder.write("before.json", json.to_string());
    let ran = folder.edgeft(&format!("{bench} --compare before.json")).code(2);
    assert!(ran.stderr.contains("--adapter run.adapter.gguf") && ran.stderr.contains("no adapter"), "{}", ran.stderr);
    let ran = folder.edgeft("run base.gguf --adapter run -p a").code(2);
    assert!(ran.stderr.contains("--adapter-only"), "{}", ran.stderr);
    let ran = folder.edgeft("eval base --adapter run.adapter.gguf --engine candle --data d.jsonl").code(2);
    assert!(ran.stderr.contains("--engine cpu"), "{}", ran.stderr);
    let ran = folder.edgeft("run run.adapter.gguf -p a").code(2);
    assert!(ran.stderr.contains("--adapter"), "{}", ran.stderr);
    if common::gpu("each_verb_runs_the_base_under_an_adapter_as_the_merged_file") {
        let ran = folder.edgeft("run base.gguf --adapter run.adapter.gguf --engine gpu -p a").code(2);
        assert!(ran.stderr.contains("engine gpu: applies no adapters"), "{}", ran.stderr);
    }
}

/// Pairs of seeded numbers: a tensor's name, (out, in), r.
pub fn pairs(arch: &str, all: &[(&str, [usize; 2], usize)], seed: u64) -> Vec<u8> {
    let mut tensors = Vec::new();
    for (name, [out, cols], r) in all {
        for (end, shape) in [("lora_a", vec![*r, *cols]), ("lora_b", vec![*out, *r])] {
            let name = format!("{name}.{end}");
            let (stream, n) = (rng::stream(&name, 0), shape.iter().product::<usize>() as u64);
            let values = (0..n).map(|i| 0.3 * rng::normal(seed, stream, i)).collect();
            tensors.push(Floats { name, shape, values });
        }
    }
    floats(&keys(arch), tensors).unwrap()
}

fn keys(arch: &str) -> Vec<(String, Value)> {
    let text = |key: &str, value: &str| (key.to_owned(), Value::Str(value.to_owned()));
    vec![
        text("general.architecture", arch),
        text("general.type", "adapter"),
        text("adapter.type", "lora"),
        ("adapter.lora.alpha".into(), Value::F32(4.0)),
    ]
}

/// A tiny Llama as a file of a type, and two adapters: of all matrices of a block with the head, and of one alone.
fn model(ty: &str) -> Model {
    let folder = folder(&Tiny::llama().with("num_hidden_layers", 2.into()));
    folder.edgeft(&format!("quantize base --type {ty} --out m.gguf")).ok();
    Model::from_bytes(folder.read("m.gguf"), "m.gguf").unwrap()
}

fn two() -> [Adapter; 2] {
    let wide = [
        ("blk.0.attn_q.weight", [64, 64], 4),
        ("blk.0.attn_k.weight", [32, 64], 4),
        ("blk.1.attn_output.weight", [64, 64], 2),
        ("blk.1.ffn_gate.weight", [96, 64], 1),
        ("blk.1.ffn_down.weight", [64, 96], 4),
        ("output.weight", [384, 64], 3),
    ];
    let [a, b] = [(&wide[..], 1), (&wide[4..5], 2)].map(|(all, seed)| pairs("llama", all, seed));
    [a, b].map(|bytes| Adapter::from_bytes(bytes, "a.gguf").unwrap())
}

fn engine(model: &Model, n_seqs: usize, kv: KvType, threads: usize) -> Box<dyn Engine> {
    let options = EngineOptions { backend: Backend::Cpu, threads, ctx: 64, n_seqs, kv };
    let mut engine = model.engine(&options).unwrap();
    let [a, b] = two();
    assert_eq!((engine.add_adapter(&a, 1.0).unwrap(), engine.add_adapter(&b, 1.0).unwrap()), (0, 1));
    assert_eq!(engine.add_adapter(&a, 0.5).unwrap(), 2);
    engine
}

/// Four sequences under two adapters, one of them at half its strength, and none, in steps of any size: each is what it is
/// alone, in one pass, to the bit; that without an adapter is what a base gives that never heard of one.
#[test]
fn several_adapters_in_one_batch_are_each_what_it_is_alone_to_the_bit() {
    let chosen = [Some(0), None, Some(1), Some(2)];
    let texts: Vec<Vec<u32>> =
        [(37, 11), (29, 7), (41, 13), (33, 5)].map(|(n, step)| (0..n).map(|i| 5 + i * step % 300).collect()).to_vec();
    for (ty, kv) in [("f32", KvType::F32), ("q8_0", KvType::F16), ("q4_0", KvType::F16)] {
        let model = model(ty);
        let mut alone = Vec::new();
        for (text, adapter) in texts.iter().zip(chosen) {
            let mut out = Vec::new();
            let mut engine = engine(&model, 1, kv, 1);
            engine.choose(0, adapter).unwrap();
            engine.forward(&[Run { seq: 0, tokens: text, types: None, rows: Rows::All }], &mut out).unwrap();
            alone.push(out);
        }
        let mut plain = Vec::new();
        let options = EngineOptions { backend: Backend::Cpu, threads: 1, ctx: 64, n_seqs: 1, kv };
        let run = Run { seq: 0, tokens: &texts[1], types: None, rows: Rows::All };
        model.engine(&options).unwrap().forward(&[run], &mut plain).unwrap();
        assert!(alone[1] == plain, "{ty}: a row without an adapter");
        for (one, other) in [(0, 2), (0, 3)] {
            assert!(alone[one][..384] != alone[other][..384], "{ty}: adapters {one} and {other} do the same");
        }

        let (mut together, mut engine) = (vec![Vec::new(); 4], engine(&model, 4, kv, 2));
        chosen.iter().enumerate().for_each(|(seq, adapter)| engine.choose(seq, *adapter).unwrap());
        let mut steps = [1, 3, 7, 2, 12, 5, 1, 64].iter().cycle();
        while (0..4).any(|seq| engine.len(seq) < texts[seq].len()) {
            let runs: Vec<Run> = (0..4)
                .filter_map(|seq| {
                    let rest = &texts[seq][engine.len(seq)..];
                    let tokens = &rest[..rest.len().min(*steps.next().unwrap())];
                    (!tokens.is_empty()).then_some(Run { seq, tokens, types: None, rows: Rows::All })
                })
                .collect();
            let mut out = Vec::new();
            engine.forward(&runs, &mut out).unwrap();
            let mut out = out.chunks(engine.output_dim());
            for run in &runs {
                run.tokens.iter().for_each(|_| together[run.seq].extend_from_slice(out.next().unwrap()));
            }
        }
        for seq in 0..4 {
            assert!(alone[seq] == together[seq], "{ty}, sequence {seq}");
        }
        // The head's pair goes to the rows that are asked for, whichever they are.
        (0..4).for_each(|seq| engine.truncate(seq, 0));
        let rows = [Rows::None, Rows::Last, Rows::Last, Rows::Last];
        let runs: Vec<Run> = (0..4).map(|seq| Run { seq, tokens: &texts[seq], types: None, rows: rows[seq] }).collect();
        let mut out = Vec::new();
        engine.forward(&runs, &mut out).unwrap();
        for (row, alone) in out.chunks(384).zip(&alone[1..]) {
            assert!(row == &alone[alone.len() - 384..], "{ty}: last rows");
        }
    }
}

/// What a sequence holds was computed under its adapter: another one starts anew.
#[test]
fn another_adapter_forgets_what_a_sequence_holds() {
    let model = model("f32");
    let mut engine = engine(&model, 2, KvType::F32, 1);
    let read = |engine: &mut Box<dyn Engine>, seq| {
        engine.forward(&[Run { seq, tokens: &[5, 6, 7], types: None, rows: Rows::Last }], &mut Vec::new()).unwrap();
    };
    read(&mut engine, 0);
    read(&mut engine, 1);
    engine.choose(0, None).unwrap();
    assert_eq!(engine.len(0), 3);
    engine.choose(0, Some(1)).unwrap();
    assert_eq!((engine.len(0), engine.len(1)), (0, 3));
    for (seq, adapter) in [(2, None), (0, Some(3))] {
        assert_eq!(engine.choose(seq, adapter).unwrap_err().kind(), Kind::Input);
    }
}

/// A pair beside the embedding, which looks rows up, is its product added to the table; the head tied to it stays as it is.
#[test]
fn a_pair_beside_the_embedding_is_added_to_the_rows_that_are_looked_up() {
    for tiny in [Tiny::llama(), Tiny::gemma3(), Tiny::gpt2()] {
        let folder = folder(&tiny);
        folder.edgeft("quantize base --type f32 --out m.gguf").ok();
        let model = Model::from_bytes(folder.read("m.gguf"), "m.gguf").unwrap();
        let (arch, c) = (model.hparams().arch.name(), model.hparams().hidden);
        let (r, v) = (2, model.hparams().n_vocab);
        let value = |name: &str, i: usize| 0.2 * rng::normal(3, rng::stream(name, 0), i as u64);
        let (a, b): (Vec<f32>, Vec<f32>) =
            ((0..v * r).map(|i| value("a", i)).collect(), (0..c * r).map(|i| value("b", i)).collect());
        let tensors = vec![
            Floats { name: "token_embd.weight.lora_a".into(), shape: vec![v, r], values: a.clone() },
            Floats { name: "token_embd.weight.lora_b".into(), shape: vec![c, r], values: b.clone() },
        ];
        let adapter = Adapter::from_bytes(floats(&keys(arch), tensors).unwrap(), "e.gguf").unwrap();
        // The same table, written out; a head of its own keeps the old one.
        let whole = Gguf::parse(&folder.read("m.gguf")).unwrap();
        let mut bytes = folder.read("m.gguf");
        let info = whole.tensor("token_embd.weight").unwrap();
        let at = (whole.data_start + info.offset) as usize;
        for (i, w) in bytes[at..at + 4 * v * c].as_chunks_mut::<4>().0.iter_mut().enumerate() {
            let (id, col) = (i / c, i % c);
            let delta: f32 = (0..r).map(|k| 4.0 / r as f32 * a[id * r + k] * b[col * r + k]).sum();
            *w = (f32::from_le_bytes(*w) + delta).to_le_bytes();
        }
        let tied = whole.tensor("output.weight").is_none();
        let changed = Model::from_bytes(bytes, "changed.gguf").unwrap();
        let options = EngineOptions { backend: Backend::Cpu, threads: 1, ctx: 64, n_seqs: 1, kv: KvType::F32 };
        let (mut want, mut found, mut without) = (Vec::new(), Vec::new(), Vec::new());
        let run = Run { seq: 0, tokens: &[5, 9, 200, 7], types: None, rows: Rows::All };
        changed.engine(&options).unwrap().forward(&[run], &mut want).unwrap();
        let mut engine = model.engine(&options).unwrap();
        engine.forward(&[run], &mut without).unwrap();
        let number = engine.add_adapter(&adapter, 1.0).unwrap();
        engine.choose(0, Some(number)).unwrap();
        engine.forward(&[run], &mut found).unwrap();
        let far = |a: &[f32], b: &[f32]| a.iter().zip(b).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
        assert!(far(&found, &without) > 0.1, "{arch}");
        match tied {
            false => assert!(far(&found, &want) < 2e-4, "{arch}: {}", far(&found, &want)),
            true => assert!(far(&found, &want) > 0.1, "{arch}: the tied head was changed"),
        }
    }
}

#[track_caller]
fn refuses(model: &Model, adapter: &Adapter, kind: Kind, words: &[&str]) {
    let options = EngineOptions { backend: Backend::Cpu, threads: 1, ctx: 8, n_seqs: 1, kv: KvType::F32 };
    let error = model.engine(&options).unwrap().add_adapter(adapter, 1.0).expect_err("accepted");
    told(&error, kind, words);
}

#[track_caller]
fn told(error: &edgeft_runtime::Error, kind: Kind, words: &[&str]) {
    assert_eq!(error.kind(), kind, "{error}");
    words.iter().for_each(|word| assert!(error.to_string().contains(word), "no `{word}` in: {error}"));
}

#[test]
fn an_adapter_of_another_base_is_refused_by_tensor_and_both_shapes() {
    let model = model("f32");
    let of = |arch: &str, name: &str, shape: [usize; 2]| {
        Adapter::from_bytes(pairs(arch, &[(name, shape, 4)], 1), "a.gguf").unwrap()
    };
    refuses(&model, &of("qwen2", "blk.0.attn_q.weight", [64, 64]), Kind::Input, &["a.gguf", "`qwen2`", "`llama`"]);
    refuses(
        &model,
        &of("llama", "blk.7.attn_q.weight", [64, 64]),
        Kind::Input,
        &["blk.7.attn_q.weight", "no such tensor"],
    );
    let shape = |found: [usize; 2]| of("llama", "blk.1.ffn_up.weight", found);
    refuses(&model, &shape([128, 64]), Kind::Shape, &["blk.1.ffn_up.weight", "[128, 64]", "[96, 64]", "the base that"]);
    refuses(&model, &shape([96, 32]), Kind::Shape, &["blk.1.ffn_up.weight", "[96, 32]", "[96, 64]"]);
}

#[test]
fn what_is_no_low_rank_pair_is_refused_by_name() {
    let write = |keys: &[(String, Value)], tensors: &[(&str, &[usize])]| {
        let tensor = |(name, shape): &(&str, &[usize])| Floats {
            name: (*name).into(),
            shape: shape.to_vec(),
            values: vec![0.5; shape.iter().product()],
        };
        floats(keys, tensors.iter().map(tensor).collect()).unwrap()
    };
    let no = |bytes: Vec<u8>, kind: Kind, words: &[&str]| {
        told(&Adapter::from_bytes(bytes, "a.gguf").expect_err("accepted"), kind, &[words, &["a.gguf"]].concat());
    };
    let (q_a, q_b) = (("blk.0.attn_q.weight.lora_a", &[4, 64][..]), ("blk.0.attn_q.weight.lora_b", &[64, 4][..]));
    let all = keys("llama");
    let dora = ("blk.0.attn_q.weight.lora_magnitude", &[64][..]);
    no(write(&all, &[q_a, q_b, dora]), Kind::Input, &["lora_magnitude", "DoRA", "merge"]);
    no(write(&all, &[q_a]), Kind::Input, &["blk.0.attn_q.weight.lora_b", "is missing"]);
    no(write(&all, &[q_b]), Kind::Input, &["blk.0.attn_q.weight.lora_b", "no half of a low-rank pair"]);
    no(write(&all, &[q_a, (q_b.0, &[64, 8])]), Kind::Shape, &["attn_q", "[4, 64]", "[64, 8]", "no common rank"]);
    no(
        write(&all, &[("blk.0.attn_norm.weight.lora_a", &[4, 64]), ("blk.0.attn_norm.weight.lora_b", &[64, 4])]),
        Kind::Input,
        &["attn_norm", "not applied"],
    );
    no(write(&all, &[(q_a.0, &[2, 2, 64]), q_b]), Kind::Shape, &["lora_a", "3 dimensions"]);
    no(write(&all, &[]), Kind::Input, &["without a tensor"]);
    let with = |key: &str, value: Option<Value>| {
        let mut keys = all.clone();
        keys.retain(|(k, _)| k != key);
        keys.extend(value.map(|v| (key.to_owned(), v)));
        write(&keys, &[q_a, q_b])
    };
    no(
        with("general.type", Some(Value::Str("model".into()))),
        Kind::Input,
        &["general.type", "is model", "--adapter-only"],
    );
    no(with("general.type", None), Kind::Input, &["general.type", "is missing"]);
    no(with("adapter.type", Some(Value::Str("control".into()))), Kind::Input, &["adapter.type", "is control"]);
    no(with("adapter.lora.alpha", Some(Value::F32(f32::NAN))), Kind::Input, &["adapter.lora.alpha", "NaN"]);
    no(with("adapter.alora.invocation_tokens", Some(Value::U32(1))), Kind::Input, &["alora.invocation_tokens"]);
    assert!(Adapter::from_bytes(with("adapter.lora.alpha", None), "a.gguf").is_ok()); // scale 1, as llama.cpp has it
    let mut bytes = write(&all, &[q_a, q_b]);
    let (gguf, at) = (Gguf::parse(&bytes).unwrap(), 4 * (64 + 5));
    let at = (gguf.data_start + gguf.tensor(q_a.0).unwrap().offset) as usize + at;
    bytes[at..at + 4].copy_from_slice(&f32::INFINITY.to_le_bytes());
    no(bytes, Kind::Input, &["blk.0.attn_q.weight.lora_a", "row 1, column 5 is inf"]);
}

/// A file cut anywhere is an error; one with bytes changed is an error or another adapter, which the engine then checks.
#[test]
fn a_broken_adapter_is_a_typed_error_and_never_a_panic() {
    let whole = pairs("llama", &[("blk.0.attn_q.weight", [64, 64], 4), ("output.weight", [384, 64], 2)], 1);
    let head = Gguf::parse(&whole).unwrap().data_start as usize;
    for n in (0..head).chain((head..whole.len()).step_by(97)) {
        let error = Adapter::from_bytes(whole[..n].to_vec(), "a.gguf").expect_err("a cut file");
        told(&error, Kind::Input, &["a.gguf"]);
    }
    let model = model("f32");
    let options = EngineOptions { backend: Backend::Cpu, threads: 1, ctx: 8, n_seqs: 1, kv: KvType::F32 };
    let mut engine = model.engine(&options).unwrap();
    let mut open = |bytes: Vec<u8>| {
        let Ok(adapter) = Adapter::from_bytes(bytes, "a.gguf") else { return };
        let Ok(number) = engine.add_adapter(&adapter, 1.0) else { return };
        engine.choose(0, Some(number)).unwrap();
        engine.forward(&[Run { seq: 0, tokens: &[5], types: None, rows: Rows::Last }], &mut Vec::new()).unwrap();
    };
    for at in 0..head {
        for bit in [0x01, 0x80] {
            let mut bytes = whole.clone();
            bytes[at] ^= bit;
            open(bytes);
        }
    }
    let config = ProptestConfig { cases: 400, failure_persistence: None, ..Default::default() };
    let change = (0..head, any::<u8>(), prop_oneof![Just(1usize), Just(4), Just(8)]);
    let open = std::cell::RefCell::new(open);
    let changed = |(at, byte, n): (usize, u8, usize)| {
        let mut bytes = whole.clone();
        bytes[at..(at + n).min(head)].fill(byte);
        (open.borrow_mut())(bytes);
        Ok(())
    };
    proptest::test_runner::TestRunner::new(config).run(&change, changed).expect("no panic");
}
