//! What `tune` says before it begins, what it refuses, and what it leaves for people to look at.

use crate::cli::{folder, refuses};
use crate::common::tensors::{self, Values};
use crate::common::{Folder, data, has_fields, tiny::Tiny};
use serde_json::Value;

/// The plan counts from names and shapes what the run counts in tensors.
#[test]
fn a_dry_run_says_what_the_run_will_do_and_writes_nothing() {
    let folder = folder();
    folder.write("ids.safetensors", tensors::bytes(&data::ids(20, 30, 1)));
    Tiny::qwen2().write(&folder, "tied");
    Tiny::classifier(&["negative", "positive"]).write(&folder, "judge");
    Tiny::reader().write(&folder, "reader");
    folder.write("q.jsonl", data::questions(30));
    for line in [
        "--model base --data d.jsonl --epochs 1.5 --batch 4",
        "--model base --data d.jsonl --targets q_proj,down_proj --rank 3 --steps 5",
        "--model base --data d.jsonl --method full --steps 3",
        "--model tied --data ids.safetensors --method full --batch-tokens 90 --epochs 2",
        "--model base --data r.jsonl --epochs 1",
        "--model bert --data r.jsonl --steps 3",
        "--model judge --data r.jsonl --steps 3",
        "--model reader --data q.jsonl --targets query,value --steps 3",
        "--model nano --data d.jsonl --steps 2",
        "--model base/config.json --method full --data ids.safetensors --steps 2",
    ] {
        let before = folder.names("");
        let plan = folder.edgeft(&format!("tune {line} --out run --dry-run --json")).ok().json();
        assert_eq!(folder.names(""), before, "{line} left something");
        has_fields(
            &plan,
            "data rows held_out tokens longest trainable_params params share steps evaluations memory.weights_bytes \
             memory.kept_bytes planned_mib recompute parts expected.seconds expected.tokens_per_s expected.gflops settings",
        );
        let ran = folder.edgeft(&format!("tune {line} --out run --json")).ok().json();
        for key in ["trainable_params", "steps"] {
            assert_eq!(plan[key], ran[key], "{line}: {key}");
        }
        assert_eq!(plan["planned_mib"], ran["planned_mib"], "{line}");
        let reasons = plan["reasons"].as_array().expect("reasons");
        let why = |name: &str| reasons.iter().find(|r| r["name"] == name).map(|r| r["why"].as_str().expect("why"));
        assert!(reasons.iter().all(|r| r["why"] != ""), "{reasons:?}");
        assert_eq!(why("lr") == Some("given"), line.contains("--lr"), "{line}");
        assert_eq!(why("method") == Some("given"), line.contains("--method"), "{line}");
        folder.edgeft("report run --out page.html --force").ok();
        std::fs::remove_dir_all(folder.at("run")).expect("gone");
        std::fs::remove_file(folder.at("page.html")).expect("gone");
    }
    let text = folder.edgeft("tune --model base --data d.jsonl --out run --dry-run").ok().stdout;
    for word in ["trained ", "steps ", "time ", "memory ", "weights ", "warmup", "Nothing was written"] {
        assert!(text.contains(word), "no `{word}` in\n{text}");
    }
    refuses(&folder, "tune --model base --data d.jsonl --out run --dry-run --targets nose", &["nose", "q_proj"]);
}

#[test]
fn what_cannot_fit_is_refused_with_its_terms_and_what_would_fit() {
    let folder = folder();
    let tune = |flags: &str| format!("tune --model base --data d.jsonl --out run {flags}");
    refuses(&folder, &tune("--mem 20MiB"), &["--mem 20MiB", "weights", "moments", "--mem ", "one row of"]);
    refuses(&folder, &tune("--mem 20MiB --dry-run"), &["--mem 20MiB"]);
    refuses(&folder, &tune("--mem lots"), &["`lots` is no size", "2GiB"]);
    refuses(&folder, &tune("--budget soon"), &["`soon` is no time", "20m"]);
    refuses(&folder, &tune("--neftune -1"), &["-1"]);
    refuses(&folder, &tune("--batch-tokens 0"), &["--batch-tokens 0"]);
    refuses(&folder, &tune("--batch-tokens 100 --batch 4"), &["--batch-tokens", "--batch"]);
    folder.write("tune.toml", "mem = \"lots\"\n");
    refuses(&folder, &tune("--config tune.toml"), &["tune.toml", "`lots` is no size"]);
    folder.write(
        "tune.toml",
        "mem = \"2GiB\"\nbudget = \"10m\"\nneftune = 5.0\nbatch-tokens = 64\nno-pack = true\nsteps = 2\n",
    );
    folder.edgeft(&tune("--config tune.toml --no-val")).ok();
    let resolved = String::from_utf8(folder.read("run/tune.toml")).expect("UTF-8");
    for line in ["mem = \"2147483648\"", "budget = \"600s\"", "neftune = 5.0", "batch-tokens = 64", "no-pack = true"] {
        assert!(resolved.contains(line), "no `{line}` in\n{resolved}");
    }
}

#[test]
fn rows_that_teach_nothing_and_weights_that_are_no_numbers_are_named() {
    let folder = folder();
    let mut rows = data::ids(6, 12, 1);
    if let Some((_, Values::I64(labels))) = rows.get_mut("labels") {
        labels[4 * 12..5 * 12].fill(-100);
    }
    folder.write("ids.safetensors", tensors::bytes(&rows));
    refuses(
        &folder,
        "tune --model base --data ids.safetensors --out run --no-val",
        &["ids.safetensors", "1 of 6 rows teach nothing", "line 4", "masked"],
    );
    let mut weights = Tiny::llama().tensors();
    if let Some((_, Values::F32(v))) = weights.get_mut("model.layers.1.mlp.up_proj.weight") {
        v[64 * 3 + 7] = f32::NAN;
    }
    folder.write("base/model.safetensors", tensors::bytes(&weights));
    let words = ["base/model.safetensors", "model.layers.1.mlp.up_proj.weight", "NaN", "row 3, column 7"];
    refuses(&folder, "tune --model base --data d.jsonl --out run", &words);
}

#[test]
fn an_adapter_of_another_base_is_refused_before_the_run_begins() {
    let folder = folder();
    Tiny::llama().with("hidden_size", 48.into()).write(&folder, "other");
    folder.edgeft("tune --model base --data d.jsonl --out first --steps 1 --rank 2").ok();
    refuses(
        &folder,
        "tune --model other --data d.jsonl --init-adapter first --out run --steps 1",
        &["lora_A", "is it the base it was tuned on?"],
    );
    refuses(
        &folder,
        "tune --model base --data d.jsonl --init-adapter first --method full --out run",
        &["--init-adapter and --method full"],
    );
}

#[test]
fn a_run_leaves_events_for_tensorboard_and_a_page() {
    let folder = folder();
    folder.edgeft("tune --model base --data d.jsonl --out run --steps 40 --rank 2 --batch 4").ok();
    let events: Vec<String> =
        folder.names("run").into_iter().filter(|n| n.starts_with("events.out.tfevents.")).collect();
    assert_eq!(events.len(), 1, "{:?}", folder.names("run"));
    let bytes = folder.read(&format!("run/{}", events[0]));
    for tag in ["train/loss", "train/lr", "train/grad_norm", "val/loss"] {
        assert!(bytes.windows(tag.len()).any(|w| w == tag.as_bytes()), "no {tag}");
    }
    folder.edgeft("eval run --data d.jsonl").ok();
    folder.edgeft("report run --out page.html").ok();
    for page in ["run/report.html", "page.html"] {
        let text = String::from_utf8(folder.read(page)).expect("UTF-8");
        for word in ["<svg", "Learning rate", "Norm of the gradient", "Tokens per second", "prefers-color-scheme: dark"]
        {
            assert!(text.contains(word), "no `{word}` in {page}");
        }
        assert!(!text.contains("<script") && !text.contains("http://") && !text.contains("https://"), "{page}");
    }
    assert!(String::from_utf8(folder.read("page.html")).expect("UTF-8").contains("perplexity (eval)"));
    let json = folder.edgeft("eval run --data d.jsonl --json").ok().json();
    folder.write("eval.json", json.to_string());
    folder.edgeft("report eval.json --out eval.html").ok();
    refuses(&folder, "report eval.json --out eval.html", &["eval.html exists", "--force"]);
    refuses(&folder, "report missing --out new.html", &["missing", "neither a RUN"]);
    folder.write("list.json", "[1]");
    refuses(&folder, "report list.json --out new.html", &["list.json", "not a JSON object"]);
    folder.write("run/metrics.jsonl", "{\"step\": 1\n");
    refuses(&folder, "report run --out new.html", &["metrics.jsonl:1", "not valid JSON"]);
}

/// A page after an interruption shows the whole run, not the part since.
#[test]
fn curves_of_a_resumed_run_begin_at_the_beginning() {
    let folder = Folder::new();
    Tiny::llama().write(&folder, "base");
    folder.write("d.jsonl", data::chats(30));
    let line = "tune --model base --data d.jsonl --out run --steps 30 --rank 2 --batch 4 --save-every 10";
    folder.edgeft(line).ok();
    std::fs::remove_file(folder.at("run/adapter_model.safetensors")).expect("gone");
    std::fs::remove_file(folder.at("run/report.html")).expect("gone");
    let json = folder.edgeft(&format!("{line} --resume --json")).ok().json();
    assert_eq!(json["steps"], 30);
    let steps: Vec<u64> = String::from_utf8(folder.read("run/metrics.jsonl"))
        .expect("UTF-8")
        .lines()
        .map(|l| serde_json::from_str::<Value>(l).expect("JSON"))
        .filter(|v| v["loss"].is_f64())
        .map(|v| v["step"].as_u64().expect("step"))
        .collect();
    assert_eq!(steps, (1..=30).collect::<Vec<_>>());
    assert!(folder.at("run/report.html").exists());
}
