//! Learning on a base in few bits is learning on the values that its bits stand for, and learning through a rounding is
//! learning on the file that will be written.

use super::{DECODER, values};
use crate::common::{Folder, data, tensors, tiny::Tiny};
use candle_core::{Device, Tensor};
use edgeft::data::tokens::read_rows;
use edgeft::export;
use edgeft::merge::{Merged, merged_config};
use edgeft::model::layers::nf4::Nf4;
use edgeft::model::layers::weight::Weight;
use edgeft::model::layers::{Grads, Pass};
use edgeft::model::network::{Network, Task};
use edgeft::model::open::Opened;
use edgeft::tune::optimizer::AdamW;
use edgeft_quantize::{Mix, PlanOptions};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Wide enough for super-blocks of 256.
fn wide(tiny: Tiny) -> Tiny {
    tiny.with("hidden_size", json!(256))
        .with("intermediate_size", json!(512))
        .with("num_attention_heads", json!(8))
        .calm()
}

fn open(folder: &Folder, name: &str) -> Opened {
    Opened::open(folder.at(name).to_str().expect("UTF-8"), 0).expect("opens")
}

/// A Hugging Face folder of what a model's weights stand for.
fn dense(folder: &Folder, model: &str, out: &str) {
    let opened = open(folder, model);
    folder.write(&format!("{out}/config.json"), merged_config(&opened).expect("a config").to_string());
    let file = folder.at(&format!("{out}/model.safetensors"));
    Merged::new(&opened).expect("a source").write_safetensors(&file, false).expect("written");
    if let Some(json) = &opened.text.tokenizer_json {
        folder.write(&format!("{out}/tokenizer.json"), json);
        folder.write(&format!("{out}/tokenizer_config.json"), opened.text.tokenizer_config.expect("both").to_string());
    }
    if let Some(template) = &opened.text.chat_template {
        folder.write(&format!("{out}/chat_template.jinja"), template);
    }
}

fn losses(folder: &Folder, run: &str) -> Vec<f64> {
    let text = String::from_utf8(folder.read(&format!("{run}/metrics.jsonl"))).expect("UTF-8");
    text.lines().filter_map(|l| serde_json::from_str::<Value>(l).expect("JSON")["loss"].as_f64()).collect()
}

/// Two runs learned the same.
fn the_same(folder: &Folder, a: &str, b: &str) {
    let (ours, theirs) = (losses(folder, a), losses(folder, b));
    assert_eq!((ours.len(), theirs.len()), (10, 10));
    assert!(ours[9] < ours[0], "{ours:?}");
    for (x, y) in ours.iter().zip(&theirs) {
        assert!((x - y).abs() <= 1e-6 * y.abs(), "{a} {ours:?}\n{b} {theirs:?}");
    }
}

const FLAGS: &str = "--data d.jsonl --rank 4 --steps 10 --batch 8 --lr 2e-3 --no-val";

fn a_file_teaches_what_its_values_teach(tiny: &Tiny, mix: &str, rows: String) {
    let folder = Folder::new();
    tiny.write(&folder, "base");
    folder.write("d.jsonl", rows);
    folder.edgeft(&format!("quantize base --type {mix} --out base.gguf")).ok();
    dense(&folder, "base.gguf", "dense");
    folder.edgeft(&format!("tune --model base.gguf --method qlora {FLAGS} --out run")).ok();
    folder.edgeft(&format!("tune --model dense {FLAGS} --out dense-run")).ok();
    the_same(&folder, "run", "dense-run");
    // Merged onto the values of the file, evaluated on them, and exported from them.
    folder.edgeft("merge run --out merged").ok();
    folder.edgeft("merge dense-run --out dense-merged").ok();
    let read = |name: &str| tensors::read(&folder.at(&format!("{name}/model.safetensors")));
    let (ours, theirs) = (read("merged"), read("dense-merged"));
    assert_eq!(ours.keys().collect::<Vec<_>>(), theirs.keys().collect::<Vec<_>>());
    for name in ours.keys() {
        let (a, b) = (tensors::floats(&ours, name), tensors::floats(&theirs, name));
        assert!(a.iter().zip(&b).all(|(a, b)| (a - b).abs() <= 1e-5), "{mix}: {name}");
    }
    folder.edgeft("quantize run --type f32 --out f32.gguf").ok();
    let verified = folder.edgeft("verify f32.gguf --against run --data d.jsonl --json").ok().json();
    assert_eq!((&verified["pass"], &verified["tokens_identical"]), (&true.into(), &true.into()), "{mix}: {verified}");
}

#[test]
fn a_gguf_base_teaches_what_its_values_teach() {
    a_file_teaches_what_its_values_teach(&wide(Tiny::llama()), "q4_k_m", data::chats(40));
    a_file_teaches_what_its_values_teach(&Tiny::qwen2(), "q8_0", data::chats(40));
    a_file_teaches_what_its_values_teach(&Tiny::mistral(), "q4_0", data::chats(40));
    a_file_teaches_what_its_values_teach(&Tiny::classifier(&["negative", "positive"]), "q5_0", data::reviews(40));
}

#[test]
fn an_f32_file_is_the_folder_it_was_made_from() {
    let scaling = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16});
    let linear = json!({"rope_type": "linear", "factor": 2.0});
    for tiny in [
        Tiny::llama().with("rope_scaling", scaling),
        Tiny::llama().with("rope_scaling", linear).with("head_dim", json!(8)),
        Tiny::qwen2(),
        Tiny::mistral(),
        Tiny::reader(),
        Tiny::classifier(&["a", "b", "c"]),
    ] {
        let folder = Folder::new();
        tiny.write(&folder, "base");
        folder.edgeft("quantize base --type f32 --out base.gguf").ok();
        let (file, base) = (open(&folder, "base.gguf"), open(&folder, "base"));
        assert_eq!(format!("{:?}", file.config.family), format!("{:?}", base.config.family));
        assert_eq!((file.config.rope_scaling, &file.config.labels), (base.config.rope_scaling, &base.config.labels));
        for name in base.weights.names().filter(|n| *n != "lm_head.weight" || !base.config.tie_word_embeddings) {
            assert!(file.weights.read(name).expect(name) == base.weights.read(name).expect(name), "{name}");
        }
        assert_eq!(file.task().unwrap(), base.task().unwrap());
    }
}

#[test]
fn nf4_teaches_and_merges_onto_what_the_codes_stand_for() {
    let folder = Folder::new();
    wide(Tiny::llama()).write(&folder, "base");
    folder.write("d.jsonl", data::chats(40));
    folder.edgeft(&format!("tune --model base --method qlora {FLAGS} --out run")).ok();
    let toml = String::from_utf8(folder.read("run/tune.toml")).unwrap();
    assert!(toml.contains("base-rounding = \"nf4\""), "{toml}");

    // A folder whose projections, and they alone, are rounded beforehand.
    let (base, mut rounded) = (open(&folder, "base"), BTreeMap::new());
    for name in base.weights.names() {
        let (shape, mut x) = base.weights.read(name).unwrap();
        if DECODER.iter().any(|d| name.ends_with(&format!("{d}.weight"))) {
            x = Nf4::quantize(&x, shape[0], shape[1]).dequantize();
        }
        rounded.insert(name.to_owned(), (shape, tensors::Values::F32(x)));
    }
    for name in ["config.json", "tokenizer.json", "tokenizer_config.json"] {
        folder.write(&format!("rounded/{name}"), folder.read(&format!("base/{name}")));
    }
    folder.write("rounded/model.safetensors", tensors::bytes(&rounded));
    folder.edgeft(&format!("tune --model rounded {FLAGS} --out rounded-run")).ok();
    the_same(&folder, "run", "rounded-run");

    // The run, read again, is on the rounded base: an adapter that adds nothing shows it.
    let (_, run) = (open(&folder, "base"), open(&folder, "run"));
    let name = "model.layers.0.mlp.up_proj.weight";
    assert_eq!(run.weights.read(name).unwrap().1, tensors::floats(&rounded, name));
    folder.edgeft("merge run --out merged").ok();
    folder.edgeft("merge rounded-run --out rounded-merged").ok();
    let verified = folder.edgeft("verify merged --against run --data d.jsonl --max-abs 1e-4 --json").ok().json();
    assert_eq!(verified["pass"], true);
    // Merged onto the weights as they were, it would be another model.
    let other = folder.edgeft("verify rounded-merged --against base --data d.jsonl --max-abs 1e-4 --json").code(3);
    assert_eq!(other.json()["pass"], false);
}

#[test]
fn a_file_holds_the_very_weights_of_the_last_forward_under_qat() {
    for (tiny, mix) in [
        (wide(Tiny::llama()), Mix::Q4_K_M),
        (wide(Tiny::qwen2()), Mix::Q6_K),
        (Tiny::llama(), Mix::Q4_0),
        (Tiny::qwen2(), Mix::Q8_0),
    ] {
        let folder = Folder::new();
        tiny.write(&folder, "base");
        folder.write("rows.safetensors", tensors::bytes(&data::ids(4, 14, 2)));
        let opened = open(&folder, "base");
        let rows = read_rows(&folder.at("rows.safetensors")).unwrap();
        let rows: Vec<_> = rows.iter().collect();
        let mut network = Network::load(&opened.config, &opened.weights, Task::Generate, 0, &Device::Cpu).unwrap();
        network.train_all().unwrap();
        network.round(&export::types(&opened, mix).unwrap());
        let mut optimizer = AdamW {
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: 0.0,
            decay_vectors: false,
            lora_plus: 1.0,
            t: 0,
            moments: BTreeMap::new(),
        };
        let before = network.loss(&rows).unwrap().nll;
        for _ in 0..8 {
            let mut grads = Grads::default();
            network.loss_and_grad(&rows, 0.02, Pass::EVAL, 0, &mut grads).unwrap();
            optimizer.step(&mut network, &grads, 2e-3, 1.0).unwrap();
        }
        let after = network.loss(&rows).unwrap().nll;
        assert!(after < before, "{before} to {after}");

        // What the run would keep, as a folder, and the file that is made of it.
        let mut masters = tensors::Tensors::new();
        network.trained(&mut |name, t| {
            masters.insert(name, (t.dims().to_vec(), tensors::Values::F32(values(t))));
        });
        folder.write("kept/config.json", tiny.config.to_string());
        folder.write("kept/model.safetensors", tensors::bytes(&masters));
        let (kept, file) = (open(&folder, "kept"), folder.at("kept.gguf"));
        export::to_file(&kept, mix, &PlanOptions::default(), &file, false, &mut |_, _| ()).unwrap();
        let written = open(&folder, "kept.gguf");
        let mut rounded = 0;
        for linear in network.linears() {
            let name = format!("{}.weight", linear.name);
            let (seen, held) = (values(&linear.weight.dense().unwrap()), written.weights.read(&name).unwrap().1);
            assert!(seen == held, "{mix}: {name}");
            rounded += usize::from(matches!(linear.weight, Weight::Rounded(_)));
        }
        assert_eq!(rounded, 14, "{mix}");
        let network_of_file = written.network(None, 0).unwrap();
        let loss = network_of_file.loss(&rows).unwrap().nll;
        assert!((loss - after).abs() <= 1e-6 * after, "{mix}: {after} while learning, {loss} from the file");
    }
}

/// The slope at the rounded weight, handed to the weight behind it: equal to that of a network made of the rounded weights.
#[test]
fn the_gradient_under_qat_is_that_of_the_rounded_network() {
    let folder = Folder::new();
    Tiny::llama().write(&folder, "base");
    folder.write("rows.safetensors", tensors::bytes(&data::ids(4, 14, 2)));
    folder.edgeft("quantize base --type q4_0 --out base.gguf").ok();
    dense(&folder, "base.gguf", "dense");
    let rows = read_rows(&folder.at("rows.safetensors")).unwrap();
    let rows: Vec<_> = rows.iter().collect();
    let gradient = |name: &str, mix: Option<Mix>| -> BTreeMap<String, Tensor> {
        let opened = open(&folder, name);
        let mut network = Network::load(&opened.config, &opened.weights, Task::Generate, 0, &Device::Cpu).unwrap();
        network.train_all().unwrap();
        if let Some(mix) = mix {
            network.round(&export::types(&opened, mix).unwrap());
        }
        let mut grads = Grads::default();
        network.loss_and_grad(&rows, 1.0, Pass::EVAL, 0, &mut grads).unwrap();
        grads.0
    };
    let (through, rounded) = (gradient("base", Some(Mix::Q4_0)), gradient("dense", None));
    assert_eq!(through.len(), rounded.len());
    for (name, g) in &through {
        assert!(values(g) == values(&rounded[name]), "{name}");
    }
}

#[test]
fn a_run_under_qat_is_judged_as_it_will_ship() {
    let folder = Folder::new();
    wide(Tiny::llama()).write(&folder, "base");
    folder.write("d.jsonl", data::chats(40));
    folder
        .edgeft("tune --model base --method full --qat q4_k_m --data d.jsonl --steps 10 --batch 8 --no-val --out run")
        .ok();
    folder.edgeft("quantize run --type q4_k_m --out run.gguf").ok();
    folder.edgeft("quantize run --type q8_0 --out other.gguf").ok();
    let kl = |file: &str| {
        let line = format!("verify {file} --against run --data d.jsonl --max-kl 1 --min-top1 0 --json");
        folder.edgeft(&line).ok().json()["mean_kl"].as_f64().expect("a number")
    };
    // What is left is the engine's rounding of activations; eight bits round the weights behind, which are not what was seen.
    assert!(kl("run.gguf") < kl("other.gguf"), "{} {}", kl("run.gguf"), kl("other.gguf"));
}

#[test]
fn what_cannot_be_is_refused() {
    let folder = Folder::new();
    Tiny::llama().write(&folder, "base");
    folder.write("d.jsonl", data::chats(20));
    folder.edgeft("quantize base --type q8_0 --out base.gguf").ok();
    let refuses = |line: &str, because: &str| {
        let ran = folder.edgeft(line).code(2);
        assert!(ran.stderr.contains(because), "{line}\n{}", ran.stderr);
    };
    refuses(
        "tune --model base.gguf --method full --data d.jsonl --out run",
        "is quantized and cannot be trained; give the Hugging Face folder, or use --method qlora",
    );
    refuses("tune --model base --qat q8_0 --data d.jsonl --out run", "--qat needs --method full");
    refuses("tune --model base --method full --qat q9 --data d.jsonl --out run", "--qat:");
    refuses(
        "quantize base.gguf --type q4_0 --out again.gguf",
        "base.gguf: a GGUF file that is quantized already (`output.weight` is q8_0)",
    );
    assert!(!folder.at("run").exists() && !folder.at("again.gguf").exists());
}
