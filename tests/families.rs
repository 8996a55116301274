//! Every family of models, by the real binary: an adapter, the same merged, every weight; the spellings of their checkpoints;
//! and what is refused, by name.

use crate::common::{self, Folder, close, data, tensors, tiny::Tiny};
use edgeft::profile::footprint::Footprint;
use edgeft_quantize::Mix;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Name, model, rows, and the modules that get an adapter unless told otherwise.
fn families() -> Vec<(&'static str, Tiny, &'static str, Vec<&'static str>)> {
    let llama = vec!["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];
    let bert = vec!["query", "key", "value", "dense"];
    let roberta = vec!["query", "key", "value", "intermediate.dense", "output.dense"];
    let distilbert = vec!["q_lin", "k_lin", "v_lin", "out_lin", "lin1", "lin2"];
    vec![
        ("qwen3", Tiny::qwen3(), "chats.jsonl", llama.clone()),
        ("phi3", Tiny::phi3(), "chats.jsonl", vec!["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]),
        ("gemma3", Tiny::gemma3(), "chats.jsonl", llama),
        ("gpt2", Tiny::gpt2(), "chats.jsonl", vec!["c_attn", "c_proj", "c_fc"]),
        ("bert", Tiny::bert(), "reviews.jsonl", bert.clone()),
        ("bert-reader", Tiny::reader(), "questions.jsonl", bert),
        ("roberta", Tiny::roberta(), "reviews.jsonl", roberta.clone()),
        ("roberta-reader", Tiny::roberta().reading(), "questions.jsonl", roberta),
        ("distilbert", Tiny::distilbert(), "reviews.jsonl", distilbert.clone()),
        ("distilbert-reader", Tiny::distilbert().reading(), "questions.jsonl", distilbert),
    ]
}

fn folder(tiny: &Tiny) -> Folder {
    let folder = Folder::new();
    tiny.write(&folder, "base");
    folder.write("chats.jsonl", data::chats(24));
    folder.write("reviews.jsonl", data::reviews(24));
    folder.write("questions.jsonl", data::questions(24));
    folder
}

fn json_of(folder: &Folder, name: &str) -> Value {
    serde_json::from_slice(&folder.read(name)).expect("JSON")
}

#[test]
fn every_family_learns_by_adapter_and_merges_to_the_same_answers() {
    for (name, tiny, rows, targets) in families() {
        let folder = folder(&tiny);
        let json =
            folder.edgeft(&format!("tune --model base --data {rows} --out run --rank 4 --steps 20 --batch 8 --json"));
        let tuned = json.ok().json();
        assert!(tuned["loss"].as_f64().is_some_and(f64::is_finite), "{name}: {tuned}");
        let adapter = json_of(&folder, "run/adapter_config.json");
        assert_eq!(adapter["target_modules"], json!(targets), "{name}");
        assert_eq!(adapter["fan_in_fan_out"], name == "gpt2", "{name}");
        folder.edgeft("merge run --out merged").ok();
        folder.edgeft(&format!("verify merged --against run --data {rows} --max-abs 2e-4")).ok();
        // A head that is new has no base to be held against.
        if !rows.starts_with("reviews") {
            folder.edgeft(&format!("verify run --against base --data {rows} --max-abs 1e-2")).code(3);
        }
        // Names and shapes of the base, and the task's head.
        let shapes = |of: &str| -> BTreeMap<String, Vec<usize>> {
            let tensors = tensors::read(&folder.at(&format!("{of}/model.safetensors")));
            tensors.into_iter().map(|(name, (shape, _))| (name, shape)).collect()
        };
        let merged = shapes("merged");
        assert!(shapes("base").iter().all(|(name, shape)| merged.get(name) == Some(shape)), "{name}");
    }
}

#[test]
fn every_family_learns_with_every_weight_and_leaves_a_model_folder() {
    for (name, tiny, rows, _) in families() {
        let folder = folder(&tiny);
        let line = format!("tune --model base --data {rows} --val {rows} --out run --method full --steps 12 --batch 8");
        let tuned = folder.edgeft(&format!("{line} --json")).ok().json();
        let (base, run) =
            (tensors::read(&folder.at("base/model.safetensors")), tensors::read(&folder.at("run/model.safetensors")));
        let mut moved = 0;
        for (tensor, (shape, values)) in &base {
            let Some((found, now)) = run.get(tensor) else {
                // BERT's pooler is no part of a reader.
                assert!(tensor.contains("pooler"), "{name}: no {tensor}");
                continue;
            };
            assert_eq!(found, shape, "{name}: {tensor}");
            moved += usize::from(now != values);
        }
        assert!(moved + 1 >= base.len(), "{name}: {moved} of {} tensors moved", base.len());
        // What was written is what was learned: a matrix that lies the wrong way would be another model.
        if rows.starts_with("chats") {
            let eval = folder.edgeft(&format!("eval run --data {rows} --json")).ok().json();
            close(eval["loss"].as_f64().unwrap(), tuned["val"].as_f64().unwrap(), 1e-4, name);
            let before = folder.edgeft(&format!("eval base --data {rows} --json")).ok().json();
            assert!(eval["loss"].as_f64() < before["loss"].as_f64(), "{name}: {eval} {before}");
        } else {
            folder.edgeft(&format!("eval run --data {rows}")).ok();
        }
    }
}

#[test]
fn a_gpt2_without_the_prefix_and_with_its_masks_is_the_same_model() {
    let folder = folder(&Tiny::gpt2());
    let mut bare: tensors::Tensors = Tiny::gpt2()
        .tensors()
        .into_iter()
        .map(|(name, tensor)| (name.trim_start_matches("transformer.").to_owned(), tensor))
        .collect();
    for i in 0..2 {
        bare.insert(format!("h.{i}.attn.bias"), (vec![1, 1, 2, 2], tensors::Values::F32(vec![1.0, 0.0, 1.0, 1.0])));
    }
    Tiny::gpt2().write(&folder, "bare");
    folder.write("bare/model.safetensors", tensors::bytes(&bare));
    folder.edgeft("verify bare --against base --data chats.jsonl --max-abs 0").ok();
    // The adapter is PEFT's, with the prefix; what is merged keeps the spelling, and no mask.
    folder.edgeft("tune --model bare --data chats.jsonl --out run --rank 2 --steps 4").ok();
    let adapter = tensors::read(&folder.at("run/adapter_model.safetensors"));
    assert_eq!(adapter["base_model.model.transformer.h.0.attn.c_attn.lora_B.weight"].0, [192, 2]);
    folder.edgeft("merge run --out merged").ok();
    let merged = tensors::read(&folder.at("merged/model.safetensors"));
    assert!(merged.contains_key("h.1.mlp.c_fc.weight") && !merged.contains_key("h.0.attn.bias"));
    folder.edgeft("verify merged --against run --data chats.jsonl --max-abs 2e-4").ok();
}

/// Values that bfloat16 holds exactly, so that every spelling of them on disk is one model.
#[test]
fn shards_of_16_bits_are_the_model_in_one_file() {
    for tiny in [Tiny::gemma3(), Tiny::phi3(), Tiny::gpt2(), Tiny::roberta().reading(), Tiny::distilbert().reading()] {
        let folder = folder(&tiny);
        let rows = if tiny.config["architectures"][0].as_str().unwrap().ends_with("Answering") {
            "questions.jsonl"
        } else {
            "chats.jsonl"
        };
        let mut whole = tiny.tensors();
        for (_, values) in whole.values_mut() {
            let tensors::Values::F32(values) = values else { panic!("f32") };
            values.iter_mut().for_each(|v| *v = half::bf16::from_f32(*v).to_f32());
        }
        folder.write("base/model.safetensors", tensors::bytes(&whole));
        tiny.write(&folder, "shards");
        std::fs::remove_file(folder.at("shards/model.safetensors")).unwrap();
        let mut map = serde_json::Map::new();
        for part in 0..2 {
            let file = format!("model-0000{}-of-00002.safetensors", part + 1);
            let names: Vec<&String> = whole.keys().skip(part).step_by(2).collect();
            let raw: Vec<(&String, Vec<usize>, Vec<u8>)> = names
                .iter()
                .map(|name| {
                    let values = tensors::floats(&whole, name);
                    let bytes = values.iter().flat_map(|v| half::bf16::from_f32(*v).to_le_bytes()).collect();
                    (*name, whole[*name].0.clone(), bytes)
                })
                .collect();
            let views = raw.iter().map(|(name, shape, bytes)| {
                let view = safetensors::tensor::TensorView::new(safetensors::Dtype::BF16, shape.clone(), bytes);
                (name.as_str(), view.expect("a shape that fits"))
            });
            folder.write(&format!("shards/{file}"), safetensors::serialize(views, None).expect("safetensors"));
            names.iter().for_each(|name| drop(map.insert((*name).clone(), json!(file))));
        }
        let index = json!({"metadata": {}, "weight_map": map});
        folder.write("shards/model.safetensors.index.json", index.to_string());
        folder.edgeft(&format!("verify shards --against base --data {rows} --max-abs 0")).ok();
    }
}

/// Adapters of every kind, folded into matrices that are joined or lie the other way, and straight into the file.
#[test]
fn every_family_leaves_as_gguf_and_answers_on_the_cpu_as_it_was_tuned() {
    for (name, tiny, rows, _) in families() {
        let folder = folder(&tiny);
        for method in ["lora", "dora", "ia3"] {
            let line = format!("tune --model base --data {rows} --no-val --out {method} --method {method}");
            folder.edgeft(&format!("{line} --lr 2e-2 --steps 8 --batch 8")).ok();
            folder.edgeft(&format!("quantize {method} --type f32 --out {method}.gguf")).ok();
            let line = format!("verify {method}.gguf --against {method} --data {rows} --max-abs 5e-4 --json");
            let verified = folder.edgeft(&line).ok().json();
            assert_eq!(verified["tokens_identical"], true, "{name} {method}: {verified}");
            // An adapter that was left out on the way would be seen.
            if !rows.starts_with("reviews") {
                folder.edgeft(&format!("verify {method}.gguf --against base --data {rows} --max-abs 5e-4")).code(3);
            }
        }
        let [candle, cpu] = ["eval lora", "eval lora.gguf --engine cpu"]
            .map(|line| folder.edgeft(&format!("{line} --data {rows} --json")).ok().json());
        for metric in ["loss", "accuracy", "exact_match", "f1"] {
            if let (Some(a), Some(b)) = (candle[metric].as_f64(), cpu[metric].as_f64()) {
                close(a, b, 1e-4, &format!("{name} {metric}"));
            }
        }
        let line = format!("quantize lora --type q8_0,q4_k_m --out files --verify {rows}");
        let ran = folder.edgeft(&line);
        assert!(ran.code == 0 || ran.code == 3, "{name}: {}", ran.stderr); // so small a model may move much
        // What did not pass has no file; what follows asks for one whatever the gate says.
        folder.edgeft("quantize lora --type q8_0 --out small.gguf").ok();
        folder.edgeft("bench small.gguf --prompt 8 --generate 4 --runs 1 --json").ok();
        folder.edgeft("inspect lora.gguf").ok();
        let asked = match rows {
            "questions.jsonl" => "run small.gguf --question 'who is it' --context 'it is a cat' --json",
            _ => "run small.gguf -p 'the cat' -n 4 --json",
        };
        folder.edgeft(asked).ok();
    }
}

/// What a model takes and reads is the same by the plan and by the file; a window that some layers have makes it less.
#[test]
fn a_plan_and_the_file_made_by_it_have_the_same_footprint_in_every_family() {
    for (name, tiny, ..) in families() {
        let folder = folder(&tiny);
        folder.edgeft("quantize base --type f32 --out m.gguf").ok();
        let [plan, file] = ["base", "m.gguf"].map(|model| {
            let place = folder.at(model).to_string_lossy().into_owned();
            Footprint::of(&place, Mix::F32).unwrap_or_else(|e| panic!("{name}: {e:#}"))
        });
        let sums =
            |f: &Footprint| (f.weights, f.weights_read(), f.steps, f.cache(50), f.cache_read(50), f.activations(50));
        assert_eq!(sums(&plan), sums(&file), "{name}");
        // One of Gemma's two layers looks five tokens back.
        let seen = if name == "gemma3" { (50 + 5) * plan.cache(1) / 2 } else { plan.cache(50) };
        assert_eq!(plan.cache_read(50), seen, "{name}");
    }
}

#[test]
fn a_norm_that_was_tampered_with_does_not_pass() {
    for (tiny, tensor) in [
        (Tiny::qwen3(), "model.layers.1.self_attn.k_norm.weight"),
        (Tiny::phi3(), "model.layers.0.post_attention_layernorm.weight"),
        (Tiny::gemma3(), "model.layers.1.post_feedforward_layernorm.weight"),
        (Tiny::gemma3(), "model.layers.0.self_attn.q_norm.weight"),
        (Tiny::gpt2(), "transformer.ln_f.bias"),
        (Tiny::roberta().reading(), "roberta.encoder.layer.0.output.LayerNorm.weight"),
        (Tiny::distilbert().reading(), "distilbert.transformer.layer.1.sa_layer_norm.bias"),
    ] {
        let rows = if tensor.contains("bert") { "questions.jsonl" } else { "chats.jsonl" };
        let folder = folder(&tiny);
        folder.edgeft("quantize base --type f32 --out whole.gguf").ok();
        folder.edgeft(&format!("verify whole.gguf --against base --data {rows} --max-abs 5e-4")).ok();
        let mut weights = tiny.tensors();
        let tensors::Values::F32(values) = &mut weights.get_mut(tensor).expect(tensor).1 else { panic!("f32") };
        values.iter_mut().for_each(|v| *v += 0.05);
        tiny.write(&folder, "other");
        folder.write("other/model.safetensors", tensors::bytes(&weights));
        folder.edgeft("quantize other --type f32 --out other.gguf").ok();
        folder.edgeft(&format!("verify other.gguf --against base --data {rows} --max-abs 5e-4")).code(3);
    }
}

#[test]
fn what_cannot_leave_or_run_elsewhere_is_refused_by_name() {
    for (tiny, name, arch) in [
        (Tiny::qwen3(), "qwen3", "qwen3"),
        (Tiny::phi3(), "phi3", "phi3"),
        (Tiny::gemma3(), "gemma3_text", "gemma3"),
        (Tiny::gpt2(), "gpt2", "gpt2"),
        (Tiny::distilbert().reading(), "", "bert without token types"),
    ] {
        let folder = folder(&tiny);
        if !name.is_empty() {
            let ran = folder.edgeft("quantize base --to onnx --onnx ort --type f32 --out graph").code(2);
            let told = format!("{name} cannot be written in ONNX Runtime's own operators");
            assert!(ran.stderr.contains(&told) && ran.stderr.contains("portable"), "{}", ran.stderr);
            assert_eq!(folder.names("").iter().filter(|n| n.starts_with('g')).count(), 0);
        }
        folder.edgeft("quantize base --type f32 --out m.gguf").ok();
        if common::gpu("what_cannot_leave_or_run_elsewhere_is_refused_by_name") {
            let ran = folder.edgeft("verify m.gguf --against base --data questions.jsonl --engine gpu").code(2);
            assert!(ran.stderr.contains(&format!("no kernels for {arch}")), "{}", ran.stderr);
        }
        let ran = folder.edgeft("tune --model m.gguf --data questions.jsonl --out run --steps 1").code(2);
        assert!(ran.stderr.contains("cannot be tuned") && ran.stderr.contains("Hugging Face folder"), "{}", ran.stderr);
    }
    let some = Tiny::qwen2().with("use_sliding_window", json!(true)).with("sliding_window", json!(4));
    let folder = folder(&some.with("max_window_layers", json!(1)));
    let ran = folder.edgeft("quantize base --type f32 --out m.gguf").code(2);
    assert!(ran.stderr.contains("a window in some layers"), "{}", ran.stderr);
}

#[test]
fn rotations_that_gguf_has_no_keys_for_are_refused_by_name() {
    let scaled = json!({"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0});
    let parameters =
        json!({"full_attention": {"rope_type": "default", "rope_theta": 1e6}, "sliding_attention": scaled});
    let folder = folder(&Tiny::gemma3().with("rope_parameters", parameters));
    let ran = folder.edgeft("quantize base --type f32 --out m.gguf").code(2);
    assert!(ran.stderr.contains("scaled in layers with a window"), "{}", ran.stderr);
}

/// A RoBERTa in a GGUF file is a BERT, so it can go on learning there.
#[test]
fn a_roberta_of_a_gguf_file_learns_as_its_folder_does() {
    let folder = folder(&Tiny::roberta().reading());
    folder.edgeft("quantize base --type f32 --out m.gguf").ok();
    // IA3 starts from ones, whatever a module is called.
    let line = "--data questions.jsonl --no-val --steps 6 --batch 8 --method ia3 --targets query,value";
    let [a, b] = ["base", "m.gguf"].map(|model| {
        let out = if model == "base" { "one" } else { "two" };
        folder.edgeft(&format!("tune --model {model} --out {out} {line} --json")).ok().json()
    });
    close(a["loss"].as_f64().unwrap(), b["loss"].as_f64().unwrap(), 1e-4, "loss");
    folder.edgeft("quantize two --type f32 --out two.gguf").ok();
    folder.edgeft("verify two.gguf --against one --data questions.jsonl --max-abs 5e-3").ok();
}

#[test]
fn keys_that_change_the_mathematics_are_refused_by_name() {
    for (tiny, key, value) in [
        (Tiny::gemma3(), "final_logit_softcapping", json!(30.0)),
        (Tiny::gemma3(), "hidden_activation", json!("gelu")),
        (Tiny::phi3(), "rope_scaling", json!({"type": "longrope", "short_factor": [1.0], "long_factor": [1.0]})),
        (Tiny::gpt2(), "scale_attn_by_inverse_layer_idx", json!(true)),
        (Tiny::gpt2(), "activation_function", json!("relu")),
        (Tiny::distilbert(), "activation", json!("relu")),
        (Tiny::distilbert(), "sinusoidal_pos_embds", json!(true)),
        (Tiny::roberta(), "position_embedding_type", json!("relative_key_query")),
        (Tiny::qwen3(), "some_new_multiplier", json!(2.5)),
    ] {
        let folder = folder(&tiny.with(key, value.clone()));
        let ran = folder.edgeft("tune --model base --data chats.jsonl --out run --steps 1").code(2);
        let name = if key == "rope_scaling" { "longrope" } else { key };
        assert!(ran.stderr.contains("base/config.json") && ran.stderr.contains(name), "{key}: {}", ran.stderr);
        assert!(!folder.at("run").exists());
    }
}

/// A row longer than the table of positions is refused before a weight loads: RoBERTa's table has two rows less than its key
/// says.
#[test]
fn rows_end_where_the_table_of_positions_does() {
    let folder = Folder::new();
    for (name, tiny) in [("gpt2", Tiny::gpt2()), ("roberta", Tiny::roberta().labelling(&["a", "b"]))] {
        tiny.without_text().write(&folder, name);
        let rows = |n| if name == "gpt2" { data::ids(1, n, 1) } else { data::classes(1, n, 2, 1) };
        folder.write("fits.safetensors", tensors::bytes(&rows(64)));
        folder.write("long.safetensors", tensors::bytes(&rows(65)));
        let line = format!("tune --model {name} --rank 2 --steps 1 --out {name}-run --data");
        folder.edgeft(&format!("{line} fits.safetensors")).ok();
        let ran = folder.edgeft(&format!("{line} long.safetensors --force")).code(2);
        assert!(ran.stderr.contains("65 tokens, but --max-len is 64"), "{}", ran.stderr);
        // Few tokens, but the last stands behind the table.
        let mut apart = rows(70);
        let shown = (0..70).map(|c| i64::from(c < 4 || c == 64)).collect();
        apart.insert("attention_mask".into(), (vec![1, 70], tensors::Values::I64(shown)));
        if name == "gpt2" {
            let tensors::Values::I64(labels) = &mut apart.get_mut("labels").unwrap().1 else { panic!("i64") };
            labels.iter_mut().enumerate().for_each(|(c, l)| *l = if c == 3 { *l } else { -100 });
        }
        folder.write("apart.safetensors", tensors::bytes(&apart));
        let ran = folder.edgeft(&format!("{line} apart.safetensors --force")).code(2);
        assert!(ran.stderr.contains("position 64, but the model has 64 positions"), "{}", ran.stderr);
    }
}
