//! JSONL to a spoken token: every stage by the real binary, as the README types it, and what each leaves for scripts.

use crate::common::{Folder, Ran, data, has_fields, tiny::Tiny};
use serde_json::{Value, json};

/// Two blocks wide enough for super-blocks of 256, so that q4_k_m is what its name says.
fn decoder() -> Tiny {
    Tiny::llama()
        .with("hidden_size", json!(256))
        .with("intermediate_size", json!(256))
        .with("num_attention_heads", json!(8))
        .calm()
}

fn json_of(folder: &Folder, line: &str) -> Value {
    folder.edgeft(&format!("{line} --json")).ok().json()
}

/// Merged and RUN are one model; RUN and base are two.
fn merged_is_the_run_and_the_base_is_not(folder: &Folder, data: &str) {
    let merged = json_of(folder, &format!("verify merged --against run --data {data} --max-abs 1e-3"));
    has_fields(
        &merged,
        "pass positions max_abs mean_kl p99_kl top1 perplexity tokens_identical template_identical first_difference",
    );
    assert_eq!((&merged["pass"], &merged["tokens_identical"]), (&true.into(), &true.into()));
    let cpu = json_of(folder, &format!("verify merged --engine cpu --against run --data {data} --max-abs 2e-3"));
    assert_eq!(cpu["pass"], true);
}

/// Every file within the bounds of its own type.
fn quantized_files_pass(folder: &Folder, data: &str) {
    for ty in ["f32", "q8_0", "q4_k_m"] {
        let line = json_of(folder, &format!("quantize run --type {ty} --out {ty}.gguf"));
        has_fields(&line, "out bytes bpw type types seconds peak_mib");
        assert_eq!(line["bytes"].as_u64(), Some(folder.read(&format!("{ty}.gguf")).len() as u64));
        let verified = json_of(folder, &format!("verify {ty}.gguf --against run --data {data}"));
        assert_eq!(
            (&verified["pass"], &verified["tokens_identical"]),
            (&true.into(), &true.into()),
            "{ty}: {verified}"
        );
    }
    let many = json_of(folder, &format!("quantize run --type f16,q5_k_m --out both --verify {data}"));
    assert_eq!(folder.names("both"), ["f16.gguf", "q5_k_m.gguf"]);
    assert_eq!(many["files"].as_array().map(Vec::len), Some(2));
    // The merged folder is quantized to the same weights as the run.
    folder.edgeft("quantize merged --type q8_0 --out merged.gguf").ok();
    let same = json_of(folder, &format!("verify merged.gguf --against q8_0.gguf --data {data} --max-abs 1e-4"));
    assert_eq!(same["pass"], true);
}

#[test]
fn chats_teach_a_decoder_that_answers_from_a_file() {
    let folder = Folder::new();
    decoder().write(&folder, "base");
    folder.write("train.jsonl", data::chats(120));
    folder.write("test.jsonl", data::chats(10));

    // Until it is sure of every answer: a coin that is still in the air falls otherwise in q8_0.
    let tuned = json_of(
        &folder,
        "tune --model base --data train.jsonl --out run --epochs 24 --batch 8 --lr 3e-3 --schedule cosine --val test.jsonl",
    );
    has_fields(&tuned, "out steps loss val trainable_params tokens_per_s peak_mib seconds stopped_by");
    assert_eq!(tuned["steps"], 360);
    for name in [
        "tune.toml",
        "metrics.jsonl",
        "adapter_config.json",
        "adapter_model.safetensors",
        "report.html",
        "tokenizer.json",
    ] {
        assert!(folder.at("run").join(name).is_file(), "no run/{name}");
    }
    assert!(folder.names("run").iter().all(|n| !n.starts_with('.')), "{:?}", folder.names("run"));

    let (before, after) =
        (json_of(&folder, "eval base --data test.jsonl"), json_of(&folder, "eval run --data test.jsonl"));
    has_fields(&after, "task examples loss perplexity ci95.perplexity.low ci95.perplexity.high");
    let perplexity = |v: &Value| v["perplexity"].as_f64().expect("a number");
    assert!(perplexity(&after) < 1.2 && perplexity(&before) > 20.0, "{before} {after}");
    // The adapter is a thing of its own: over its base it is the run.
    let beside = json_of(&folder, "eval base --adapter run --data test.jsonl");
    assert_eq!(beside["loss"], after["loss"]);

    let merged = json_of(&folder, "merge run --out merged");
    assert_eq!(merged["tensors_changed"], 14);
    merged_is_the_run_and_the_base_is_not(&folder, "test.jsonl");
    folder.edgeft("verify base --against run --data test.jsonl --max-abs 1e-3").code(3);
    quantized_files_pass(&folder, "test.jsonl");

    for model in ["q8_0.gguf", "f32.gguf", "merged", "run", "q4_k_m.gguf"] {
        let ran = folder.edgeft(&format!("run {model} --chat -p 'what colour is the river' -n 8 --json")).ok();
        let json = ran.json();
        has_fields(
            &json,
            "text token_ids finish_reason timings.load_ms timings.prompt_tokens timings.ttft_ms timings.decode_tokens_per_s",
        );
        assert_eq!(json["text"], "green", "{model}: {json}");
        assert_eq!(json["finish_reason"], "stop", "{model}: {json}");
    }
    let bench = json_of(&folder, "bench q8_0.gguf --prompt 16 --generate 8 --runs 2");
    has_fields(
        &bench,
        "engine model threads prompt generate batch prompt_tokens_per_s decode_tokens_per_s ttft_ms itl_ms.p50 \
        itl_ms.p90 itl_ms.p99 load_ms peak_mib ceiling.gb_per_s ceiling.decode_tokens_per_s ceiling.share device runs",
    );
    let tokens = json_of(&folder, "tokenize q8_0.gguf --text 'what colour is the river'");
    has_fields(&tokens, "ids tokens");
    assert_eq!(tokens, json_of(&folder, "tokenize base --text 'what colour is the river'"));
}

#[test]
fn sentences_teach_a_bert_that_labels_from_a_file() {
    let folder = Folder::new();
    Tiny::bert().calm().write(&folder, "base");
    folder.write("train.jsonl", data::reviews(160));
    folder.write("test.jsonl", data::reviews(24));

    let line = "tune --model base --data train.jsonl --out run --task classify --epochs 10 --lr 2e-3 --batch 8";
    let tuned = json_of(&folder, line);
    assert!(tuned["val"].as_f64().is_some(), "a tenth is held out: {tuned}");
    let json = json_of(&folder, "eval run --data test.jsonl --predictions p.jsonl");
    has_fields(
        &json,
        "task examples loss accuracy macro_f1 per_class confusion labels ci95.accuracy.value ci95.macro_f1.low",
    );
    assert!(json["accuracy"].as_f64() >= Some(0.95), "{json}");
    assert_eq!(json["labels"], json!(["negative", "positive"]));
    let predictions = String::from_utf8(folder.read("p.jsonl")).expect("UTF-8");
    assert_eq!(predictions.lines().count(), 24);
    let first: Value = serde_json::from_str(predictions.lines().next().expect("a line")).expect("JSON");
    has_fields(&first, "label predicted scores.negative scores.positive");

    json_of(&folder, "merge run --out merged");
    merged_is_the_run_and_the_base_is_not(&folder, "test.jsonl");
    quantized_files_pass(&folder, "test.jsonl");
    // The verification that needs no --data: the rows that the run held out.
    assert_eq!(json_of(&folder, "verify q8_0.gguf --against run")["pass"], true);
    let file = json_of(&folder, "eval q8_0.gguf --data test.jsonl");
    assert!(file["accuracy"].as_f64() >= Some(0.95), "{file}");
    for (text, want) in
        [("the lamp was very awful in the river", "negative"), ("the bread was very lovely in the garden", "positive")]
    {
        for model in ["q8_0.gguf", "q4_k_m.gguf", "run"] {
            let json = json_of(&folder, &format!("run {model} -p '{text}'"));
            let labels = json["labels"].as_array().expect("labels");
            let total: f64 = labels.iter().filter_map(|l| l["score"].as_f64()).sum();
            assert!((total - 1.0).abs() < 1e-5, "{json}");
            let best =
                labels.iter().max_by(|a, b| a["score"].as_f64().partial_cmp(&b["score"].as_f64()).expect("numbers"));
            assert_eq!(best.expect("a label")["label"], want, "{model}: {text}: {json}");
        }
    }
}

#[test]
fn questions_teach_a_bert_that_finds_the_answer() {
    let folder = Folder::new();
    Tiny::bert().write(&folder, "base");
    folder.write("train.jsonl", data::questions(120));
    folder.write("test.jsonl", data::questions(30));
    json_of(
        &folder,
        "tune --model base --data train.jsonl --out run --task answer --epochs 8 --lr 2e-3 --batch 8 --no-val",
    );
    let json = json_of(&folder, "eval run --data test.jsonl");
    has_fields(&json, "task examples exact_match f1 ci95.exact_match.low ci95.f1.high");
    assert!(json["exact_match"].as_f64() >= Some(0.9), "{json}");
    folder.edgeft("quantize run --type q8_0 --out m.gguf").ok();
    let file = json_of(&folder, "eval m.gguf --data test.jsonl");
    assert!(file["exact_match"].as_f64() >= Some(0.9), "{file}");
    let verified = json_of(&folder, "verify m.gguf --against run --data test.jsonl");
    assert_eq!(verified["exact_match"]["subject"], file["exact_match"], "{verified}");
    assert_eq!(verified["exact_match"]["reference"], json["exact_match"], "{verified}");
    // The untuned head answers worse, and that alone closes the gate.
    folder.edgeft("tune --model base --data train.jsonl --out poor --task answer --steps 1 --no-val").ok();
    let shut = folder.edgeft("verify poor --against run --data test.jsonl --max-kl 100 --json").code(3).json();
    assert!(shut["first_difference"].as_str().is_some_and(|d| d.contains("exact match fell")), "{shut}");
    let context = "the lamp is blue and it was on the table";
    let json = json_of(&folder, &format!("run m.gguf --question 'what colour is the lamp' --context '{context}'"));
    has_fields(&json, "answer start end score");
    let at = |key: &str| json[key].as_u64().expect(key) as usize;
    assert_eq!((&json["answer"], &context[at("start")..at("end")]), (&"blue".into(), "blue"));
}

#[test]
fn a_decoder_starts_from_noise_and_learns_every_weight() {
    let folder = Folder::new();
    Tiny::llama().with("initializer_range", json!(0.05)).write(&folder, "base");
    std::fs::remove_file(folder.at("base/model.safetensors")).expect("gone");
    folder.write("d.jsonl", data::chats(60));
    json_of(
        &folder,
        "tune --model base/config.json --method full --data d.jsonl --out run --epochs 10 --lr 3e-3 --batch 8 --no-val",
    );
    assert!(folder.at("run/model.safetensors").is_file());
    let json = json_of(&folder, "eval run --data d.jsonl");
    assert!(json["perplexity"].as_f64() < Some(2.0), "{json}");
    // What it left is a model folder, and a base for the next run.
    let next = json_of(&folder, "tune --model run --data d.jsonl --out next --steps 2 --rank 2 --no-val");
    assert!(next["loss"].as_f64() < Some(1.0), "{next}");
}

/// Text goes to stdout, everything else to stderr; the report is for people when `--json` is not asked for.
#[test]
fn reports_are_readable_and_name_the_next_command() {
    let folder = Folder::new();
    Tiny::llama().write(&folder, "base");
    folder.write("d.jsonl", data::chats(20));
    let says = |line: &str, words: &[&str]| {
        let ran: Ran = folder.edgeft(line).ok();
        for word in words {
            assert!(ran.stdout.contains(word), "edgeft {line} does not say `{word}`:\n{}", ran.stdout);
        }
    };
    says(
        "tune --model base --data d.jsonl --out run --steps 3 --rank 2",
        &["tuned", "in 3 steps", "Next:", "edgeft quantize run"],
    );
    says("eval run --data d.jsonl", &["20 rows", "perplexity"]);
    says("merge run --out merged", &["merged 14 tensors into merged", "Next:", "edgeft quantize merged"]);
    says(
        "quantize run --type q8_0 --out m.gguf",
        &["m.gguf", "bits a weight", "Next:", "edgeft verify m.gguf --against run"],
    );
    says("quantize run --type q4_0 --plan", &["blk.0.attn_q.weight", "token_embd.weight"]);
    says("verify m.gguf --against run --data d.jsonl --max-kl 1", &["pass", "mean KL"]);
    says("inspect m.gguf", &["general.architecture", "blk.1.ffn_down.weight"]);
    says("inspect base/model.safetensors", &["model.layers.0.mlp.up_proj.weight"]);
    says("tune --model base --data d.jsonl --out other --dry-run", &["rows", "chat"]);
    assert!(!folder.at("other").exists());
}
