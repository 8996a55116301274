//! Texts as vectors, through the front door: what belongs together is found, and leaves as the vectors it was learned as.

use crate::cli::refuses;
use crate::common::{Folder, close, data, has_fields, tensors, tiny::Tiny};
use edgeft_runtime::model::Model;
use edgeft_runtime::session::{Session, SessionOptions};
use serde_json::{Value, json};

const PLACES: [&str; 6] = ["garden", "house", "window", "table", "river", "train"];
/// What stands for a place in an answer.
const MARKS: [&str; 6] = ["broken", "house", "was", "this", "assistant", "lamp"];

/// `n` questions and the text that answers each: a thing and a place are told by other words, one for each of them.
fn pairs(n: usize, negatives: bool) -> String {
    let row = |i: usize| {
        let (thing, place) = (i % 10, i / 10 % 6);
        let text = |thing: usize| format!("{} and {} of it", data::WORDS[10 + thing % 10], MARKS[place]);
        let query = format!("what is the {} in the {}", data::WORDS[thing], PLACES[place]);
        let mut row = json!({"query": query, "document": text(thing)});
        if negatives {
            row["negative"] = json!(text(thing + 3));
        }
        row
    };
    (0..n).map(|i| format!("{}\n", row(i))).collect()
}

fn folder() -> Folder {
    let folder = Folder::new();
    Tiny::bert().calm().write(&folder, "base");
    folder.write("pairs.jsonl", pairs(60, false));
    folder.write("hard.jsonl", pairs(60, true));
    folder
}

fn judged(folder: &Folder, line: &str) -> Value {
    let json = folder.edgeft(&format!("eval {line} --json")).ok().json();
    has_fields(&json, "task examples accuracy_at_1 recall_at_10 mrr candidates ci95.mrr");
    json
}

fn number(json: &Value, name: &str) -> f64 {
    json[name].as_f64().unwrap_or_else(|| panic!("no {name} in {json}"))
}

#[test]
fn recall_rises_and_the_file_gives_the_vectors_that_were_learned() {
    let folder = folder();
    let before = judged(&folder, "base --task embed --data pairs.jsonl");
    for (i, flags) in [
        "--data pairs.jsonl --lr 3e-3",
        "--data hard.jsonl --lr 3e-3 --method dora --temperature 0.1",
        "--data pairs.jsonl --lr 1e-3 --method full",
        "--data pairs.jsonl --lr 3e-3 --pooling cls --epochs 60",
    ]
    .into_iter()
    .enumerate()
    {
        let run = format!("run-{i}");
        let epochs = if flags.contains("--epochs") { "" } else { "--epochs 30" };
        folder.edgeft(&format!("tune --model base --task embed --out {run} {epochs} --batch 30 --no-val {flags}")).ok();
        let after = judged(&folder, &format!("{run} --data pairs.jsonl"));
        let (a, b) = (number(&before, "accuracy_at_1"), number(&after, "accuracy_at_1"));
        assert!(a < 0.2 && b > 0.8, "{flags}: {a} before, {b} after");
        assert!(number(&after, "mrr") > number(&before, "mrr"));
        // What leaves is what was learned.
        folder.edgeft(&format!("quantize {run} --type f32 --out {run}.gguf")).ok();
        let left = judged(&folder, &format!("{run}.gguf --data pairs.jsonl --predictions {run}.cpu.jsonl"));
        close(number(&left, "mrr"), number(&after, "mrr"), 1e-6, flags);
        folder.edgeft(&format!("eval {run} --data pairs.jsonl --predictions {run}.candle.jsonl")).ok();
        let cosines = |engine: &str| -> Vec<f64> {
            let text = String::from_utf8(folder.read(&format!("{run}.{engine}.jsonl"))).expect("UTF-8");
            text.lines().map(|l| number(&serde_json::from_str(l).expect("JSON"), "cosine")).collect()
        };
        for (a, b) in cosines("cpu").iter().zip(cosines("candle")) {
            assert!((a - b).abs() < 1e-5, "{flags}: {a} {b}");
        }
        if !flags.contains("full") {
            folder.edgeft(&format!("merge {run} --out merged-{i}")).ok();
            let merged = judged(&folder, &format!("merged-{i} --data pairs.jsonl"));
            close(number(&merged, "mrr"), number(&after, "mrr"), 1e-6, flags);
        }
        let made = if flags.contains("full") { run.clone() } else { format!("merged-{i}") };
        let pooling: Value =
            serde_json::from_slice(&folder.read(&format!("{made}/1_Pooling/config.json"))).expect("JSON");
        assert_eq!(pooling["pooling_mode_cls_token"], flags.contains("cls"), "{flags}");
        // The merged folder knows by itself how it pools.
        folder.edgeft(&format!("quantize {made} --type f32 --out again-{i}.gguf")).ok();
        let again = judged(&folder, &format!("again-{i}.gguf --data pairs.jsonl"));
        close(number(&again, "mrr"), number(&after, "mrr"), 1e-6, flags);
    }
    // And what is tuned further pools as it did.
    let plan = folder.edgeft("tune --model merged-3 --data pairs.jsonl --out next --dry-run --json").ok().json();
    assert_eq!(plan["settings"]["pooling"], "cls");
    // As PEFT has it on a trunk without a head.
    let keys = tensors::read(&folder.at("run-0/adapter_model.safetensors"));
    assert!(
        keys.contains_key("base_model.model.encoder.layer.0.attention.self.query.lora_A.weight"),
        "{:?}",
        keys.keys()
    );
    let config: Value = serde_json::from_slice(&folder.read("run-0/adapter_config.json")).expect("JSON");
    assert_eq!(config["task_type"], "FEATURE_EXTRACTION");
    // And an ONNX folder carries it along.
    folder.edgeft("quantize run-3 --type f32 --to onnx --out onnx").ok();
    let pooling: Value = serde_json::from_slice(&folder.read("onnx/1_Pooling/config.json")).expect("JSON");
    assert_eq!(pooling["pooling_mode_cls_token"], true);
    // The device's own session, by the interface that programs use.
    let vector = |text: &str| {
        let model = Model::open(folder.at("run-0.gguf")).expect("opens");
        let ids = model.tokenizer().expect("a tokenizer").encode(text, true).expect("ids");
        let mut session = Session::new(&model, &SessionOptions::default()).expect("a session");
        session.embed(&ids).expect("a vector")
    };
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(a * b)).sum::<f64>();
    let (asked, own) = (vector("what is the apple in the garden"), vector("red and broken of it"));
    let text = String::from_utf8(folder.read("run-0.candle.jsonl")).expect("UTF-8");
    let first: Value = serde_json::from_str(text.lines().next().expect("a line")).expect("JSON");
    assert!((dot(&asked, &own) - number(&first, "cosine")).abs() < 1e-5, "{first}");
}

#[test]
fn a_run_goes_on_to_the_same_bytes_and_memory_changes_nothing() {
    let folder = folder();
    let line = "tune --model base --task embed --data hard.jsonl --no-val --steps 8 --lr 1e-3 --eps 1e-4 --warmup 0 --batch 20 --dropout 0.1 --json";
    let json = folder.edgeft(&format!("{line} --save-every 3 --out whole")).ok().json();
    let adapter = |run: &str| folder.read(&format!("{run}/adapter_model.safetensors"));
    folder.edgeft(&format!("{line} --save-every 3 --out run")).ok();
    std::fs::remove_file(folder.at("run/adapter_model.safetensors")).expect("gone");
    for name in folder.names("run/checkpoints") {
        assert_eq!(name, "step-6");
    }
    folder.edgeft(&format!("{line} --save-every 3 --out run --resume")).ok();
    assert!(adapter("run") == adapter("whole"));
    let bound = format!("--mem {}k", ((number(&json, "planned_mib") - 2.2) * 1024.0) as u64);
    let dry = folder.edgeft(&format!("{line} --out dry --dry-run {bound}")).ok().json();
    assert!(number(&dry, "parts") > 1.0, "{dry}");
    folder.edgeft(&format!("{line} --out bounded {bound}")).ok();
    let read = |run: &str| tensors::read(&folder.at(&format!("{run}/adapter_model.safetensors")));
    let worst = tensors::largest_difference(&read("whole"), &read("bounded"));
    assert!(worst <= 2e-6, "{worst:e}");
}

#[test]
fn scored_pairs_are_judged_and_not_learned() {
    let folder = folder();
    let score = |i: usize| {
        let (a, b) = (data::WORDS[i % 10], data::WORDS[i * 3 % 10]);
        json!({"sentence1": format!("the {a}"), "sentence2": format!("the {b}"), "score": if a == b { 5.0 } else { 1.0 + (i % 3) as f64 }})
    };
    folder.write("scored.jsonl", (0..40).map(|i| format!("{}\n", score(i))).collect::<String>());
    let json = folder.edgeft("eval base --task embed --data scored.jsonl --json").ok().json();
    has_fields(&json, "task examples spearman ci95.spearman");
    let spearman = number(&json, "spearman");
    assert!(spearman > 0.2 && spearman <= 1.0, "{spearman}");
    assert!(json["mrr"].is_null());
    refuses(
        &folder,
        "tune --model base --data scored.jsonl --out run",
        &["scored.jsonl:1", "a score says how near", "eval"],
    );
    let text = folder.edgeft("data check scored.jsonl --model base").code(0).stdout;
    assert!(text.contains("-> embed"), "{text}");
}

#[test]
fn what_gives_no_vector_is_refused() {
    let folder = folder();
    Tiny::llama().calm().write(&folder, "decoder");
    folder.write("empty.jsonl", "{\"anchor\": \"a\", \"positive\": \"b\"}\n{\"anchor\": \" \", \"positive\": \"b\"}\n");
    let tune = |data: &str, flags: &str| format!("tune --model base --data {data} --out run {flags}");
    refuses(&folder, &tune("empty.jsonl", ""), &["empty.jsonl:2", "field `anchor` is empty"]);
    refuses(&folder, &tune("pairs.jsonl", "--batch 1"), &["--batch 1", "--batch 2"]);
    refuses(&folder, &tune("pairs.jsonl", "--batch-tokens 4"), &["pairs.jsonl", "alone in its micro-batch"]);
    folder.edgeft(&tune("hard.jsonl", "--batch-tokens 4 --steps 2 --force")).ok();
    std::fs::remove_dir_all(folder.at("run")).expect("gone");
    refuses(&folder, &tune("pairs.jsonl", "--temperature 0"), &["--temperature 0"]);
    refuses(&folder, &tune("pairs.jsonl", "--beta 1"), &["--beta", "--task embed"]);
    refuses(&folder, "tune --model decoder --data pairs.jsonl --pooling cls --out run", &["--pooling cls", "use mean"]);
    refuses(&folder, "eval decoder --data pairs.jsonl", &["--task embed", "no vectors"]);
    let plan = folder.edgeft(&tune("hard.jsonl", "--dry-run --json --steps 4")).ok().json();
    assert_eq!((&plan["settings"]["batch"], &plan["settings"]["pooling"]), (&json!(64), &json!("mean")));
    let ran = folder.edgeft(&tune("hard.jsonl", "--json --steps 4")).ok().json();
    assert_eq!((&plan["trainable_params"], &plan["planned_mib"]), (&ran["trainable_params"], &ran["planned_mib"]));
    // A decoder learns too; its vectors stay with candle.
    let line = "tune --model decoder --data pairs.jsonl --out decoded --epochs 30 --batch 30 --lr 3e-3 --no-val";
    let before = judged(&folder, "decoder --task embed --data pairs.jsonl");
    folder.edgeft(line).ok();
    let after = judged(&folder, "decoded --data pairs.jsonl");
    assert!(number(&after, "mrr") > number(&before, "mrr") + 0.2, "{before}\n{after}");
    refuses(&folder, "quantize decoded --type f32 --out d.gguf", &["vectors of a decoder"]);
    folder.edgeft("merge decoded --out merged").ok();
    let merged = judged(&folder, "merged --data pairs.jsonl");
    close(number(&merged, "mrr"), number(&after, "mrr"), 1e-6, "merged");
}
