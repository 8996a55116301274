//! Every method from rows to a merged model, and adapters in the files of others.

use crate::common::tensors::{self, Tensors, Values, floats};
use crate::common::{Folder, close, data, tiny::Tiny};
use serde_json::{Value, json};

fn folder() -> Folder {
    let folder = Folder::new();
    Tiny::qwen2().write(&folder, "base");
    folder.write("d.jsonl", data::chats(24));
    folder
}

/// `tune` of eight steps.
fn tune(folder: &Folder, out: &str, flags: &str) {
    let line = "tune --model base --data d.jsonl --no-val --steps 8 --batch 24 --warmup 0 --schedule constant";
    folder.edgeft(&format!("{line} --out {out} {flags}")).ok();
}

fn adapter(folder: &Folder, run: &str) -> Tensors {
    tensors::read(&folder.at(&format!("{run}/adapter_model.safetensors")))
}

fn config(folder: &Folder, run: &str) -> Value {
    serde_json::from_slice(&folder.read(&format!("{run}/adapter_config.json"))).unwrap()
}

fn losses(folder: &Folder, run: &str) -> Vec<f64> {
    let text = String::from_utf8(folder.read(&format!("{run}/metrics.jsonl"))).unwrap();
    text.lines().map(|l| serde_json::from_str::<Value>(l).unwrap()["loss"].as_f64().unwrap()).collect()
}

/// The RUN learned, and the RUN, its merged folder and its f32 file are one model.
fn is_one_model(folder: &Folder, run: &str) {
    let losses = losses(folder, run);
    assert!(losses.last() < losses.first(), "{run}: {losses:?}");
    folder.edgeft(&format!("merge {run} --out {run}-merged")).ok();
    folder.edgeft(&format!("verify {run}-merged --against {run} --data d.jsonl --max-abs 1e-3")).ok();
    folder.edgeft(&format!("verify base --against {run} --data d.jsonl --max-abs 1e-3")).code(3);
    folder.edgeft(&format!("quantize {run} --type f32 --out {run}.gguf")).ok();
    folder.edgeft(&format!("verify {run}.gguf --against {run} --data d.jsonl --max-abs 2e-3")).ok();
}

#[test]
fn a_magnitude_a_row_is_learned_saved_and_merged() {
    let folder = folder();
    tune(&folder, "run", "--method dora --rank 4 --dropout 0.1 --lr 5e-3");
    is_one_model(&folder, "run");
    assert_eq!(config(&folder, "run")["use_dora"], true);
    let name = "base_model.model.model.layers.1.mlp.up_proj.lora_magnitude_vector";
    assert_eq!(adapter(&folder, "run")[name].0, [Tiny::qwen2().config["intermediate_size"].as_u64().unwrap() as usize]);
}

#[test]
fn vectors_are_learned_saved_and_merged_into_weights_and_biases() {
    let folder = folder();
    tune(&folder, "run", "--method ia3 --lr 2e-2");
    is_one_model(&folder, "run");
    let c = config(&folder, "run");
    assert_eq!((&c["peft_type"], &c["feedforward_modules"]), (&json!("IA3"), &json!(["down_proj"])));
    let shape =
        |module: &str| adapter(&folder, "run")[&format!("base_model.model.model.layers.0.{module}.ia3_l")].0.clone();
    assert_eq!((shape("self_attn.k_proj")[1], shape("mlp.down_proj")[0]), (1, 1));
    let error = folder.edgeft("tune --model base --data d.jsonl --out no --method ia3 --rank 4").code(2).stderr;
    assert!(error.contains("--rank does not go with --method ia3"), "{error}");
}

#[test]
fn a_range_of_layers_alone_is_adapted() {
    let folder = folder();
    tune(&folder, "run", "--layers 1 --rank 4 --lr 5e-3");
    is_one_model(&folder, "run");
    assert_eq!(config(&folder, "run")["layers_to_transform"], json!([1]));
    assert!(adapter(&folder, "run").keys().all(|k| k.contains("layers.1.")));
    let error = folder.edgeft("tune --model base --data d.jsonl --out no --layers 1-9").code(2).stderr;
    assert!(error.contains("no layer 2: this model has layers 0-1"), "{error}");
}

#[test]
fn pairs_that_start_in_the_weight_leave_as_plain_pairs_of_twice_the_rank() {
    let folder = folder();
    tune(&folder, "run", "--init pissa --rank 4 --lr 5e-3 --save-every 3");
    tune(&folder, "plain", "--rank 4");
    is_one_model(&folder, "run");
    // The weight is only cut in two, so the first loss is the base's, as it is where B is zero.
    close(losses(&folder, "run")[0], losses(&folder, "plain")[0], 1e-5, "loss of the first step");
    let c = config(&folder, "run");
    assert_eq!((&c["r"], &c["lora_alpha"], &c["init_lora_weights"]), (&json!(8), &json!(16.0), &json!(true)));
    let a = &adapter(&folder, "run")["base_model.model.model.layers.0.mlp.up_proj.lora_A.weight"];
    assert_eq!(a.0[0], 8);
    // A run that goes on finds the start that it had.
    let whole = folder.read("run/adapter_model.safetensors");
    std::fs::remove_file(folder.at("run/adapter_model.safetensors")).unwrap();
    tune(&folder, "run", "--init pissa --rank 4 --lr 5e-3 --save-every 3 --resume");
    assert!(folder.read("run/adapter_model.safetensors") == whole);
    let error = folder.edgeft("tune --model base --data d.jsonl --out no --init pissa --rank 64").code(2).stderr;
    assert!(error.contains("--rank 64, but the weight has fewer singular values"), "{error}");
}

#[test]
fn an_embedding_and_a_head_are_learned_whole_beside_the_pairs() {
    let folder = Folder::new();
    Tiny::llama().write(&folder, "base");
    folder.write("d.jsonl", data::chats(24));
    tune(&folder, "run", "--rank 4 --lr 5e-3 --targets q_proj,v_proj --modules-to-save embed_tokens,lm_head");
    is_one_model(&folder, "run");
    assert_eq!(config(&folder, "run")["modules_to_save"], json!(["embed_tokens", "lm_head"]));
    let all = adapter(&folder, "run");
    assert!(
        all.contains_key("base_model.model.model.embed_tokens.weight")
            && all.contains_key("base_model.model.lm_head.weight")
    );
    let line = "tune --model base --init-adapter run --data d.jsonl --no-val --steps 1 --lr 1e-12 --out again";
    folder.edgeft(line).ok();
    folder.edgeft("verify again --against run --data d.jsonl --max-abs 1e-3").ok();
    let error = folder.edgeft("tune --model base --data d.jsonl --out no --modules-to-save lm_haed").code(2).stderr;
    assert!(error.contains("no module is called lm_haed"), "{error}");
    Tiny::qwen2().write(&folder, "tied");
    let error =
        folder.edgeft("tune --model tied --data d.jsonl --out no --modules-to-save embed_tokens").code(2).stderr;
    assert!(error.contains("`model.embed_tokens` is tied to the head"), "{error}");
}

#[test]
fn b_learns_as_many_times_faster_as_told() {
    let folder = folder();
    let largest = |ratio: f64| {
        let line = "tune --model base --data d.jsonl --no-val --steps 1 --lr 1e-3 --warmup 0 --weight-decay 0 --rank 4";
        folder.edgeft(&format!("{line} --lora-plus-ratio {ratio} --out run --force")).ok();
        let all = adapter(&folder, "run");
        let b = all.keys().filter(|k| k.ends_with("lora_B.weight")).flat_map(|k| floats(&all, k));
        f64::from(b.fold(0f32, |m, v| m.max(v.abs())))
    };
    // Adam's first step is the rate itself.
    close(largest(1.0), 1e-3, 1e-3, "B after one step");
    close(largest(16.0), 16e-3, 1e-3, "B after one step at 16 times the rate");
}

/// Each file once spoiled, for merging and for going on.
fn refused(folder: &Folder, because: &str) {
    for line in ["merge --adapter run --out no", "tune --init-adapter run --data d.jsonl --steps 1 --out no"] {
        let ran = folder.edgeft(&format!("{line} --model base")).code(2);
        assert!(ran.stderr.contains(because), "{line}: {}", ran.stderr);
    }
}

#[test]
fn an_adapter_that_does_not_fit_is_refused_by_the_tensors_name() {
    let folder = folder();
    tune(&folder, "run", "--method dora --rank 4 --targets q_proj,v_proj");
    let (whole, settings) = (adapter(&folder, "run"), config(&folder, "run"));
    let module = "model.layers.0.self_attn.q_proj";
    let key = |end: &str| format!("base_model.model.{module}.{end}");
    let spoil = |f: &dyn Fn(&mut Tensors)| {
        let mut all = whole.clone();
        f(&mut all);
        folder.write("run/adapter_model.safetensors", tensors::bytes(&all));
    };
    let cut = |name: String| {
        move |all: &mut Tensors| {
            all.insert(name.clone(), (vec![3], Values::F32(vec![1.0; 3])));
        }
    };
    for end in ["lora_A.weight", "lora_B.weight", "lora_magnitude_vector"] {
        spoil(&cut(key(end)));
        refused(&folder, module);
        spoil(&|all| drop(all.remove(&key(end))));
        refused(&folder, module);
    }
    spoil(&|all| drop(all.insert(key("x_proj.lora_A.weight"), all[&key("lora_A.weight")].clone())));
    refused(&folder, "q_proj.x_proj");
    spoil(&|all| drop(all.insert("elsewhere.lora_A.weight".into(), all[&key("lora_A.weight")].clone())));
    refused(&folder, "elsewhere.lora_A.weight");
    spoil(&|_| ());
    for (name, value, because) in [
        ("r", json!(8), module),
        ("use_dora", json!(false), "lora_magnitude_vector"),
        ("init_lora_weights", json!("pissa"), "path_initial_model_for_weight_conversion"),
        ("peft_type", json!("LOHA"), "LOHA"),
    ] {
        let mut changed = settings.clone();
        changed[name] = value;
        folder.write("run/adapter_config.json", changed.to_string());
        refused(&folder, because);
    }
}

/// The same pair as mlx-lm would have saved it.
#[test]
fn an_adapter_of_mlx_lm_is_read_as_the_one_that_it_is() {
    for method in ["lora", "dora"] {
        let folder = folder();
        tune(&folder, "run", &format!("--method {method} --rank 4 --alpha 10"));
        let mut theirs = Tensors::new();
        for (key, (shape, values)) in adapter(&folder, "run") {
            let name = key.strip_prefix("base_model.model.").unwrap();
            let Values::F32(values) = values else { panic!("{name}") };
            match shape[..] {
                [rows, columns] => {
                    let turned = (0..rows * columns).map(|i| values[i % rows * columns + i / rows]).collect();
                    let name = name.replace("lora_A.weight", "lora_a").replace("lora_B.weight", "lora_b");
                    theirs.insert(name, (vec![columns, rows], Values::F32(turned)));
                }
                _ => drop(theirs.insert(name.replace("lora_magnitude_vector", "m"), (shape, Values::F32(values)))),
            }
        }
        folder.write("mlx/adapters.safetensors", tensors::bytes(&theirs));
        let parameters = json!({"rank": 4, "scale": 2.5, "dropout": 0.0});
        let config = json!({"fine_tune_type": method, "lora_parameters": parameters, "num_layers": 2});
        folder.write("mlx/adapter_config.json", config.to_string());
        folder.edgeft("merge --model base --adapter mlx --out merged").ok();
        folder.edgeft("verify merged --against run --data d.jsonl --max-abs 1e-3").ok();
        // Tuned on by the vanishing rate, it is ours.
        let line = "tune --model base --init-adapter mlx --data d.jsonl --no-val --steps 1 --lr 1e-12 --out again";
        folder.edgeft(line).ok();
        folder.edgeft("verify again --against run --data d.jsonl --max-abs 1e-3").ok();
    }
}
