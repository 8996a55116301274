//! ONNX folders as typed: what is refused, what a folder holds, what `inspect` tells of it; and, where ONNX Runtime is, that
//! every family answers as the folder it was made from.

use crate::cli::{folder, refuses};
use crate::common::tiny::Tiny;
use crate::common::{has_fields, ort};
use serde_json::json;

#[test]
fn an_onnx_folder_is_refused_before_anything_is_written() {
    let folder = folder();
    let line = |rest: &str| format!("quantize base --to onnx {rest}");
    refuses(&folder, &line("--type q4_k_m --out m"), &["--type q4_k_m", "f32 f16 bf16 q8_0 q4_0 q6_k", "--to gguf"]);
    refuses(&folder, &line("--type q8_0,q5_0 --out m"), &["--type q5_0", "q8_0 q4_0"]);
    refuses(
        &folder,
        &line("--type q8_0 --out m --tensor-type ffn_down=q4_1"),
        &["ffn_down", "q4_1", "ONNX", "q8_0 q4_0"],
    );
    refuses(&folder, &line("--type q8_0"), &["--out"]);
    refuses(&folder, "quantize base --type q8_0 --out m.gguf --onnx ort", &["--onnx", "--to onnx"]);
    refuses(&folder, &line("--type q8_0 --out m --onnx tract"), &["'tract'", "portable", "ort"]);
    refuses(&folder, &line("--type q8_0 --out base"), &["base", "exists", "--force"]);
    refuses(&folder, &line("--type q8_0 --out base --force"), &["base", "holds no model.onnx"]);
    folder.write("note.txt", "mine");
    refuses(&folder, &line("--type q8_0 --out note.txt --force"), &["note.txt", "holds no model.onnx"]);
    let verified = line("--type q8_0 --out m --verify d.jsonl --ort-lib missing.so");
    refuses(&folder, &verified, &["--ort-lib", "missing.so"]);
}

#[test]
fn an_onnx_folder_holds_all_that_a_program_needs() {
    let folder = folder();
    let line = "quantize base --to onnx --type q8_0 --out m";
    let json = folder.edgeft(&format!("{line} --json")).ok().json();
    has_fields(&json, "out bytes bpw type types.q8_0 types.f32 seconds peak_mib");
    let files = [
        "config.json",
        "genai_config.json",
        "model.onnx",
        "model.onnx.data",
        "tokenizer.json",
        "tokenizer_config.json",
    ];
    assert_eq!(folder.names("m"), files);
    let size: u64 = files.iter().map(|f| folder.read(&format!("m/{f}")).len() as u64).sum();
    assert_eq!(json["bytes"], size);
    assert_eq!(folder.read("m/tokenizer.json"), folder.read("base/tokenizer.json"));
    let read = |name: &str| -> serde_json::Value { serde_json::from_slice(&folder.read(name)).expect("JSON") };
    let genai = read("m/genai_config.json");
    assert_eq!(genai["model"]["decoder"]["num_key_value_heads"], 2);
    assert_eq!((&genai["model"]["type"], &genai["model"]["vocab_size"]), (&"llama".into(), &384.into()));
    assert!(genai["model"]["eos_token_id"].as_array().is_some_and(|ids| ids.contains(&1.into())), "{genai}");
    assert!(read("m/tokenizer_config.json")["chat_template"].is_string());
    // The same again: refused, replaced by force, and the bytes do not change.
    let (model, data) = (folder.read("m/model.onnx"), folder.read("m/model.onnx.data"));
    refuses(&folder, line, &["m exists", "--force"]);
    folder.edgeft(&format!("{line} --force --threads 1")).ok();
    assert!(model == folder.read("m/model.onnx") && data == folder.read("m/model.onnx.data"));
    folder.edgeft("quantize base --to onnx --type f16 --out new/deep/m").ok();
    assert_eq!(folder.names("new/deep"), ["m"]);
    // Several types: a folder each.
    folder.edgeft("quantize bert --to onnx --type f32,q4_0 --out both").ok();
    assert_eq!(folder.names("both"), ["f32", "q4_0"]);
    assert_eq!(folder.names("both/f32").iter().filter(|n| *n == "genai_config.json").count(), 0);
}

#[test]
fn a_run_that_classifies_leaves_as_a_classifier() {
    let folder = folder();
    folder.edgeft("tune --model bert --data r.jsonl --out run --steps 1 --rank 2 --no-val").ok();
    folder.edgeft("quantize run --to onnx --type f32 --out m").ok();
    let config: serde_json::Value = serde_json::from_slice(&folder.read("m/config.json")).expect("JSON");
    assert_eq!(config["architectures"][0], "BertForSequenceClassification");
    assert_eq!(config["id2label"]["1"], "positive");
    let json = folder.edgeft("inspect m/model.onnx --json").ok().json();
    assert_eq!(json["metadata"]["edgeft.labels"], r#"["negative","positive"]"#);
    for key in ["base", "data", "adapter"] {
        let hash = &json["metadata"][&format!("edgeft.provenance.{key}_sha256")];
        assert_eq!(hash.as_str().map(str::len), Some(64), "{key}: {hash}");
    }
}

#[test]
fn inspect_shows_an_onnx_file_and_names_what_is_broken() {
    let folder = folder();
    folder.edgeft("quantize base --to onnx --type q4_0 --out m").ok();
    let json = folder.edgeft("inspect m/model.onnx --json").ok().json();
    has_fields(&json, "file bytes ir_version opsets inputs outputs operators types.int4 data_files metadata tensors");
    assert_eq!((&json["ir_version"], &json["opsets"]["ai.onnx"]), (&10.into(), &21.into()));
    assert_eq!(json["inputs"][0]["dims"], serde_json::json!(["batch_size", "sequence_length"]));
    assert_eq!(json["outputs"][0]["name"], "logits");
    let text = folder.edgeft("inspect m/model.onnx").ok().stdout;
    for words in
        ["IR 10, opset ai.onnx 21", "model.onnx.data", "past_key_values.1.value", "int4", "edgeft.task = generate"]
    {
        assert!(text.contains(words), "no `{words}` in\n{text}");
    }
    let (model, data) = (folder.read("m/model.onnx"), folder.read("m/model.onnx.data"));
    folder.write("m/model.onnx.data", &data[..data.len() - 1]);
    refuses(&folder, "inspect m/model.onnx", &["m/model.onnx", "model.onnx.data", "fetch it again"]);
    folder.write("m/cut.onnx", &model[..model.len() / 2]);
    refuses(&folder, "inspect m/cut.onnx", &["m/cut.onnx", "cut short"]);
    folder.write("m/text.onnx", "hello");
    refuses(&folder, "inspect m/text.onnx", &["m/text.onnx"]);
    folder.write("m/empty.onnx", "");
    refuses(&folder, "inspect m/empty.onnx", &["m/empty.onnx"]);
    // Without its weights there is still something to see.
    folder.write("alone/model.onnx", &model);
    let json = folder.edgeft("inspect alone/model.onnx --json").ok().json();
    assert_eq!(json["data_files"], serde_json::json!({"model.onnx.data": null}));
}

#[test]
fn a_folder_for_onnx_runtime_says_so_in_its_operators_and_to_genai() {
    let folder = folder();
    let read = |name: &str| -> serde_json::Value { serde_json::from_slice(&folder.read(name)).expect("JSON") };
    let genai = |flags: &str, out: &str| {
        folder.edgeft(&format!("quantize base --to onnx --type q4_0 --out {out} {flags}")).ok();
        let json = folder.edgeft(&format!("inspect {out}/model.onnx --json")).ok().json();
        let asked = read(&format!("{out}/genai_config.json"));
        let shared = asked["search"]["past_present_share_buffer"].as_bool().expect("a flag");
        let named = asked["model"]["decoder"]["inputs"]["position_ids"].is_string();
        let taken = json["inputs"].as_array().is_some_and(|i| i.iter().any(|i| i["name"] == "position_ids"));
        assert_eq!(named, taken, "{out}: genai_config.json names the inputs that the graph has");
        (json, shared)
    };
    let (portable, shared) = genai("--onnx portable", "portable");
    assert!(!shared && portable["opsets"]["com.microsoft"].is_null());
    let (fused, shared) = genai("--onnx ort", "fused");
    assert!(shared);
    assert_eq!(fused["opsets"], json!({"ai.onnx": 17, "com.microsoft": 1}));
    let operators = &fused["operators"];
    assert_eq!(operators["com.microsoft.GroupQueryAttention"], 2, "{operators}");
    assert_eq!(operators["com.microsoft.MatMulNBits"], 2 * 7 + 1, "{operators}");
    let bytes = |json: &serde_json::Value| json["data_files"]["model.onnx.data"].as_u64().expect("a size");
    assert!(bytes(&fused) < bytes(&portable), "{} and {}", bytes(&fused), bytes(&portable));
}

#[test]
fn every_family_answers_as_the_folder_it_was_made_from() {
    if !ort("every_family_answers_as_the_folder_it_was_made_from") {
        return;
    }
    let folder = folder();
    let llama3 = json!({"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16});
    for (name, tiny, rows) in [
        ("llama", Tiny::llama(), "d.jsonl"),
        ("stretched", Tiny::llama().with("rope_scaling", llama3).with("num_key_value_heads", json!(1)), "d.jsonl"),
        ("biased", Tiny::llama().with("attention_bias", json!(true)).with("mlp_bias", json!(true)), "d.jsonl"),
        ("qwen2", Tiny::qwen2(), "d.jsonl"),
        ("window", Tiny::mistral(), "d.jsonl"),
        ("classifier", Tiny::classifier(&["negative", "positive"]), "r.jsonl"),
    ] {
        tiny.write(&folder, name);
        let line = format!("quantize {name} --to onnx --type f32 --out {name}.onnx --verify {rows} --json");
        let json = folder.edgeft(&line).ok().json();
        assert_eq!(json["verify"]["pass"], true, "{name}: {json}");
        assert!(json["verify"]["max_abs"].as_f64().is_some_and(|d| d < 1e-3), "{name}: {json}");
    }
}
