//! Answers that are preferred to others, through the front door: margins grow, runs go on to the same bytes, and what cannot be
//! learned is named.

use crate::cli::refuses;
use crate::common::{Folder, data, has_fields, tensors, tiny::Tiny};
use serde_json::{Value, json};

const COLOURS: [&str; 3] = ["red", "green", "blue"];

fn thing(i: usize) -> (&'static str, &'static str, &'static str) {
    (data::WORDS[i % 10], COLOURS[i % 10 % 3], COLOURS[(i % 10 + 1 + i / 10 % 2) % 3])
}

/// `n` pairs: the right colour of a thing is chosen, another is rejected.
fn pairs(n: usize) -> String {
    let row = |i: usize| {
        let (thing, right, wrong) = thing(i);
        json!({"prompt": format!("what colour is the {thing}"), "chosen": right, "rejected": wrong})
    };
    (0..n).map(|i| format!("{}\n", row(i))).collect()
}

/// `n` answers, the right ones wanted.
fn judged(n: usize) -> String {
    let row = |i: usize| {
        let (thing, right, wrong) = thing(i / 2);
        let answer = if i.is_multiple_of(2) { right } else { wrong };
        json!({"prompt": [{"role": "user", "content": format!("what colour is the {thing}")}],
            "completion": [{"role": "assistant", "content": answer}], "label": i.is_multiple_of(2)})
    };
    (0..n).map(|i| format!("{}\n", row(i))).collect()
}

fn folder() -> Folder {
    let folder = Folder::new();
    Tiny::llama().calm().write(&folder, "base");
    folder.write("pairs.jsonl", pairs(40));
    folder.write("judged.jsonl", judged(40));
    folder
}

fn metrics(folder: &Folder, run: &str) -> Vec<Value> {
    let text = String::from_utf8(folder.read(&format!("{run}/metrics.jsonl"))).expect("UTF-8");
    text.lines().map(|l| serde_json::from_str(l).expect("JSON")).collect()
}

fn number(line: &Value, name: &str) -> f64 {
    line[name].as_f64().unwrap_or_else(|| panic!("no {name} in {line}"))
}

/// Lines of steps, and of evaluations.
fn lines(folder: &Folder, run: &str) -> (Vec<Value>, Vec<Value>) {
    metrics(folder, run).into_iter().partition(|l| l["loss"].is_f64())
}

#[test]
fn margins_grow_until_every_pair_is_told_right_under_every_loss_and_method() {
    let folder = folder();
    // Learned by heart: who is asked about has a colour of its own, and what is held out is the same.
    folder.write("pairs.jsonl", pairs(20));
    folder.write("judged.jsonl", judged(40));
    for (i, flags) in [
        "--data pairs.jsonl --val pairs.jsonl --epochs 20",
        "--data pairs.jsonl --val pairs.jsonl --epochs 30 --label-smoothing 0.1 --rpo-alpha 0.2 --method dora",
        "--data pairs.jsonl --val pairs.jsonl --epochs 30 --preference orpo --beta 1",
        "--data pairs.jsonl --val pairs.jsonl --epochs 16 --preference kto",
        "--data judged.jsonl --val judged.jsonl --epochs 16",
        "--data pairs.jsonl --val pairs.jsonl --epochs 20 --method full --lr 1e-3",
        "--data pairs.jsonl --val pairs.jsonl --epochs 20 --preference dpo --method qlora",
    ]
    .into_iter()
    .enumerate()
    {
        let run = format!("run-{i}");
        let lr = if flags.contains("--lr") { "" } else { "--lr 5e-3" };
        let line = format!(
            "tune --model base --out {run} --task preference --batch 10 --schedule constant {lr} {flags} --json"
        );
        let json = folder.edgeft(&line).ok().json();
        let (steps, evals) = lines(&folder, &run);
        let (first, last) = (&steps[0], &steps[steps.len() - 1]);
        let margin = |line: &Value, prefix: &str| number(line, &format!("{prefix}rewards_margin"));
        assert!(margin(last, "") > margin(first, "") + 0.2, "{flags}: {first}\n{last}");
        assert!(number(last, "loss") < number(first, "loss"), "{flags}");
        let held = &evals[evals.len() - 1];
        assert_eq!(number(held, "val_accuracy"), 1.0, "{flags}: {held}");
        assert_eq!(number(held, "val_rewards_accuracy"), 1.0, "{flags}");
        assert!(margin(held, "val_") > 0.2, "{flags}: {held}");
        assert_eq!(number(held, "val_loss"), json["val"].as_f64().expect("val"), "{flags}");
        // At the first step nothing has been learned: the network is its own reference.
        if !flags.contains("orpo") {
            assert!(number(first, "rewards_chosen").abs() < 1e-4 && margin(first, "").abs() < 1e-4, "{flags}: {first}");
            assert!(folder.at(&format!("{run}/reference.safetensors")).exists());
        }
        assert_eq!(flags.contains("kto") || flags.contains("judged"), last["kl"].is_f64(), "{flags}");
        let toml = String::from_utf8(folder.read(&format!("{run}/tune.toml"))).expect("UTF-8");
        let kind = if toml.contains("preference = \"kto\"") { "kto" } else { "other" };
        assert_eq!(kind == "kto", flags.contains("kto") || flags.contains("judged"), "{toml}");
    }
    // Pairs under KTO are the same answers, one by one.
    assert!(folder.read("run-3/adapter_model.safetensors") == folder.read("run-4/adapter_model.safetensors"));
    // DPO begins at ln 2: nothing tells the two answers apart yet.
    let (steps, _) = lines(&folder, "run-0");
    assert!((number(&steps[0], "loss") - std::f64::consts::LN_2).abs() < 1e-4, "{}", steps[0]);
    // What was learned is in the model that is left, as any engine has it.
    let accuracy = |model: &str| {
        let json = folder.edgeft(&format!("eval {model} --data pairs.jsonl --json")).ok().json();
        has_fields(&json, "task examples loss accuracy accuracy_per_token margin ci95.accuracy ci95.margin");
        json["accuracy"].as_f64().expect("accuracy")
    };
    assert!(accuracy("base") < 0.9, "{}", accuracy("base"));
    assert_eq!(accuracy("run-0"), 1.0);
    folder.edgeft("quantize run-0 --type q8_0 --out tuned.gguf").ok();
    assert_eq!(accuracy("tuned.gguf"), 1.0);
    let page = String::from_utf8(folder.read("run-0/report.html")).expect("UTF-8");
    assert!(page.contains("Margin of the rewards"));
    // And an adapter goes on from where it is: its own answers are the reference.
    let line = "tune --model base --init-adapter run-0 --data pairs.jsonl --out more --steps 1 --no-val";
    folder.edgeft(line).ok();
    let (steps, _) = lines(&folder, "more");
    assert!(number(&steps[0], "rewards_margin").abs() < 1e-4, "{}", steps[0]);
}

#[test]
fn a_run_that_goes_on_leaves_the_bytes_of_one_that_did_not_stop() {
    let folder = folder();
    for kind in ["dpo", "kto"] {
        let flags = format!(
            "--model base --data pairs.jsonl --preference {kind} --lr 2e-3 --dropout 0.1 --batch 3 --accumulate 2 \
             --steps 30 --save-every 4 --rank 4"
        );
        let whole = format!("{kind}-whole");
        folder.edgeft(&format!("tune {flags} --out {whole}")).ok();
        let run = format!("{kind}-run");
        let mut command = folder.command(&format!("tune {flags} --out {run}"));
        let mut child =
            command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()).spawn().expect("starts");
        let metrics = folder.at(&format!("{run}/metrics.jsonl"));
        let since = std::time::Instant::now();
        while std::fs::read_to_string(&metrics).map_or(0, |t| t.lines().count()) < 8 {
            assert!(since.elapsed().as_secs() < 60, "no step in a minute");
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        child.kill().expect("killed");
        child.wait().expect("gone");
        assert!(!folder.at(&format!("{run}/adapter_model.safetensors")).exists(), "over before it was stopped");
        folder.edgeft(&format!("tune {flags} --out {run} --resume")).ok();
        for name in ["adapter_model.safetensors", "reference.safetensors", "tune.toml"] {
            assert!(folder.read(&format!("{run}/{name}")) == folder.read(&format!("{whole}/{name}")), "{kind}: {name}");
        }
        let losses = |run: &str| -> Vec<(f64, f64)> {
            lines(&folder, run).0.iter().map(|l| (number(l, "loss"), number(l, "rewards_accuracy"))).collect()
        };
        assert_eq!(losses(&run), losses(&whole), "{kind}");
        let ran = folder.edgeft(&format!("tune {flags} --beta 0.5 --out {run} --resume")).code(2);
        assert!(ran.stderr.contains("--beta is 0.5, but the run was begun with 0.1"), "{}", ran.stderr);
    }
}

#[test]
fn a_step_is_the_same_in_micro_batches_and_under_a_bound_on_memory() {
    let folder = folder();
    let line = "tune --model base --no-val --steps 2 --lr 1e-3 --eps 1e-4 --warmup 0 --rank 4 --json";
    for (kind, file, n) in [("dpo", "pairs", 40), ("orpo", "pairs", 40), ("kto", "judged", 40)] {
        let run = |name: &str, flags: &str| {
            let line = format!("{line} --data {file}.jsonl --preference {kind} --out {kind}-{name} {flags}");
            let json = folder.edgeft(&line).ok().json();
            (tensors::read(&folder.at(&format!("{kind}-{name}/adapter_model.safetensors"))), json)
        };
        let (whole, json) = run("whole", &format!("--batch {n}"));
        let (cut, _) = run("cut", "--batch 8 --accumulate 5");
        let worst = tensors::largest_difference(&whole, &cut);
        assert!(worst <= 2e-6, "{kind} in micro-batches: {worst:e}");
        let (alone, _) = run("alone", &format!("--batch {n} --no-pack"));
        let worst = tensors::largest_difference(&whole, &alone);
        assert!(worst <= 2e-6, "{kind} one at a time: {worst:e}");
        let bound =
            format!("--batch {n} --mem {}k", ((json["planned_mib"].as_f64().expect("planned") - 0.5) * 1024.0) as u64);
        let dry = folder
            .edgeft(&format!("{line} --data {file}.jsonl --preference {kind} --out dry --dry-run {bound}"))
            .ok()
            .json();
        assert!(dry["parts"].as_u64().expect("parts") > 1, "{kind}: {dry}");
        let (bounded, _) = run("bounded", &bound);
        let worst = tensors::largest_difference(&whole, &bounded);
        assert!(worst <= 2e-6, "{kind} under a bound: {worst:e}");
    }
}

#[test]
fn a_dry_run_knows_pairs_and_what_they_take() {
    let folder = folder();
    for (flags, kind, held) in [
        ("--data pairs.jsonl", "dpo", 4),
        ("--data judged.jsonl", "kto", 4),
        ("--data pairs.jsonl --preference kto", "kto", 8),
    ] {
        let line = format!("tune --model base {flags} --steps 3 --out run");
        let plan = folder.edgeft(&format!("{line} --dry-run --json")).ok().json();
        assert!(plan["data"].as_str().expect("data").contains("-> preference"), "{plan}");
        let ran = folder.edgeft(&format!("{line} --json")).ok().json();
        assert_eq!((&plan["trainable_params"], &plan["planned_mib"]), (&ran["trainable_params"], &ran["planned_mib"]));
        assert_eq!(plan["settings"]["preference"], kind);
        assert_eq!(plan["held_out"], held, "{flags}");
        let reasons = plan["reasons"].as_array().expect("reasons");
        let why = |name: &str| {
            reasons.iter().find(|r| r["name"] == name).unwrap_or_else(|| panic!("no {name}"))["why"].clone()
        };
        assert_eq!(why("preference") == "given", flags.contains("--preference"), "{flags}");
        assert!(why("beta") != "given");
        std::fs::remove_dir_all(folder.at("run")).expect("gone");
    }
    let text = folder.edgeft("tune --model base --data pairs.jsonl --out run --dry-run").ok().stdout;
    for word in ["a chosen and a rejected answer each", "by the chat template", "label-smoothing"] {
        assert!(text.contains(word), "no `{word}` in\n{text}");
    }
    // Two rows a pair: the same tokens as chats of half the batch take no more.
    let text = folder.edgeft("data check pairs.jsonl --model base").ok().stdout;
    assert!(text.contains("-> preference"), "{text}");
    folder.edgeft("data split judged.jsonl --out parts").ok();
    assert!(folder.at("parts/train.jsonl").exists());
}

#[test]
fn what_cannot_be_preferred_is_refused_with_its_line() {
    let folder = folder();
    Tiny::bert().write(&folder, "bert");
    Tiny::llama().without_text().write(&folder, "bare");
    let row = |chosen: &str, rejected: &str| json!({"prompt": "a", "chosen": chosen, "rejected": rejected}).to_string();
    let good = row("red", "blue");
    folder.write("same.jsonl", format!("{good}\n{}\n", row("red", "red")));
    folder.write("empty.jsonl", format!("{good}\n{}\n", row("", "red")));
    folder.write("half.jsonl", format!("{good}\n{{\"prompt\": \"a\", \"chosen\": \"b\"}}\n"));
    folder.write("label.jsonl", "{\"prompt\": \"a\", \"completion\": \"b\", \"label\": true}\n{\"prompt\": \"a\", \"completion\": \"b\", \"label\": 3}\n");
    folder.write("one.jsonl", "{\"prompt\": \"a\", \"completion\": \"b\", \"label\": true}\n");
    folder.write(
        "long.jsonl",
        format!("{good}\n{}\n", json!({"prompt": "the ".repeat(60), "chosen": "red", "rejected": "blue"})),
    );
    let tune = |data: &str, flags: &str| format!("tune --model base --data {data} --out run {flags}");
    refuses(&folder, &tune("same.jsonl", ""), &["same.jsonl:2", "`chosen` and `rejected` are the same"]);
    refuses(&folder, &tune("empty.jsonl", ""), &["empty.jsonl:2", "field `chosen` is empty"]);
    refuses(&folder, &tune("half.jsonl", ""), &["half.jsonl:2", "no field `rejected`"]);
    refuses(&folder, &tune("label.jsonl", ""), &["label.jsonl:2", "field `label` is 3", "true"]);
    refuses(&folder, &tune("one.jsonl", "--no-val"), &["one.jsonl", "at least two answers"]);
    refuses(
        &folder,
        &tune("judged.jsonl", "--preference dpo"),
        &["judged.jsonl", "needs `chosen` and `rejected`", "kto"],
    );
    refuses(&folder, &tune("long.jsonl", "--max-len 20"), &["long.jsonl:2", "--max-len is 20"]);
    refuses(
        &folder,
        &tune("long.jsonl", "--max-len 20 --truncate right"),
        &["long.jsonl:2", "are the same in their first 20 tokens"],
    );
    refuses(
        &folder,
        &tune("long.jsonl", "--max-len 20 --truncate split"),
        &["long.jsonl:2", "--truncate split would part"],
    );
    folder.edgeft(&tune("long.jsonl", "--max-len 20 --truncate left --steps 1 --no-val")).ok();
    refuses(&folder, &tune("pairs.jsonl", "--force --preference kto --rpo-alpha 1"), &["--rpo-alpha", "kto"]);
    refuses(&folder, &tune("pairs.jsonl", "--force --beta 0"), &["--beta 0"]);
    refuses(&folder, &tune("pairs.jsonl", "--force --task chat"), &["chosen", "--task chat needs"]);
    refuses(&folder, "tune --model bert --data pairs.jsonl --out other", &["pairs.jsonl:1", "encoder"]);
    refuses(&folder, "eval base --data judged.jsonl", &["judged by pairs"]);
    let help = folder.edgeft("tune --help").ok().stdout;
    for word in [
        "--preference",
        "--beta <",
        "--label-smoothing",
        "--rpo-alpha",
        "--desirable-weight",
        "--preference dpo --beta 0.1",
    ] {
        assert!(help.contains(word), "no `{word}` in --help");
    }
}

/// A model without a chat template reads prompt and answer end to end.
#[test]
fn early_stopping_looks_at_the_loss_of_held_out_pairs() {
    let folder = folder();
    let mut config: Value = serde_json::from_slice(&folder.read("base/tokenizer_config.json")).expect("JSON");
    config.as_object_mut().expect("an object").remove("chat_template");
    folder.write("base/tokenizer_config.json", config.to_string());
    // Held-out pairs that say the opposite: the loss rises from the first step.
    let turned: String = pairs(8).replace("chosen", "x").replace("rejected", "chosen").replace("\"x\"", "\"rejected\"");
    folder.write("turned.jsonl", turned);
    let line = "tune --model base --data pairs.jsonl --val turned.jsonl --out run --lr 2e-3 --epochs 8 --eval-every 2 --patience 2 --json";
    let ran = folder.edgeft(line).ok().json();
    assert_eq!(ran["stopped_by"], "patience");
    let (_, evals) = lines(&folder, "run");
    assert!(number(&evals[evals.len() - 1], "val_loss") > number(&evals[0], "val_loss"));
    assert_eq!(ran["val"], evals[0]["val_loss"]);
    let plan = folder.edgeft(&line.replace("--out run", "--out other --dry-run")).ok().json();
    assert!(plan["data"].as_str().expect("data").contains("verbatim, end to end"), "{plan}");
}
