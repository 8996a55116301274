//! Measuring through the front door: suites, the prediction that can be checked here, and what the machine is found to have.

use crate::common::{Folder, has_fields, tiny::Tiny};
use serde_json::{Value, json};

/// Refused with 2 and these words; nothing on stdout.
#[track_caller]
fn refuses(folder: &Folder, line: &str, words: &[&str]) {
    let ran = folder.edgeft(line).code(2);
    for word in words {
        assert!(ran.stderr.contains(word), "edgeft {line}\n  does not say `{word}`:\n{}", ran.stderr);
    }
    assert!(ran.stdout.is_empty(), "edgeft {line}\n{}", ran.stdout);
}

#[test]
fn a_suite_measures_every_file_and_says_why_not() {
    let folder = Folder::new();
    Tiny::llama().write(&folder, "base");
    Tiny::bert().write(&folder, "bert");
    folder.edgeft("quantize base --type q8_0 --out m.gguf").ok();
    folder.edgeft("quantize base --type q8_0,f32 --out models").ok();
    folder.edgeft("quantize bert --type f32 --out models/bert.gguf").ok();
    folder.write("models/broken.gguf", "GGUF");
    folder.write("models/note.txt", "");
    let line = "bench --suite models --engine cpu --prompt 4 --generate 2 --runs 1 --html page.html --json";
    let json = folder.edgeft(line).ok().json();
    let of = |list: &str| -> Vec<String> {
        json[list].as_array().expect("rows").iter().map(|r| r["model"].as_str().expect("a name").to_owned()).collect()
    };
    assert_eq!(of("rows"), ["bert.gguf", "f32.gguf", "q8_0.gguf"]);
    assert_eq!(of("not_measured"), ["broken.gguf"]);
    has_fields(
        &json,
        "device.cpu fastest.model html rows.1.type rows.1.bytes rows.1.ttft_ms rows.1.peak_mib rows.0.latency_ms",
    );
    assert!(json["not_measured"][0]["why"].as_str().is_some_and(|w| w.contains("broken.gguf")), "{json}");
    assert!(json["rows"][0]["runs"].is_null() && json["rows"][1]["decode_tokens_per_s"].is_number(), "{json}");
    let page = String::from_utf8(folder.read("page.html")).expect("UTF-8");
    assert!(page.contains("<svg") && page.contains("q8_0.gguf") && page.contains("broken.gguf"));
    assert!(!page.contains("src=") && !page.contains("http"), "the page asks somebody");

    refuses(&folder, line.trim_end_matches(" --json"), &["page.html exists", "--force"]);
    refuses(&folder, "bench --suite base", &["no .gguf file", "base", "edgeft quantize"]);
    refuses(&folder, "bench --suite none", &["none", "cannot read the folder"]);
    refuses(&folder, "bench", &["MODEL"]);
    refuses(&folder, "bench m.gguf --engine auto --target this", &["--target", "--engine cpu"]);
    refuses(&folder, "bench missing.gguf --engine auto", &["missing.gguf", "cpu"]);
    std::fs::remove_file(folder.at("models/bert.gguf")).expect("removed");
    for name in ["q8_0", "f32"] {
        std::fs::remove_file(folder.at(&format!("models/{name}.gguf"))).expect("removed");
    }
    refuses(
        &folder,
        "bench --suite models --engine cpu",
        &["no model of models could be measured", "broken.gguf on cpu"],
    );
}

#[test]
fn a_prediction_for_this_machine_is_a_bound() {
    let folder = Folder::new();
    // Large enough that the weights, and not the steps between, decide; one thread, so that neighbours decide little.
    let large = Tiny::llama().with("hidden_size", json!(512)).with("intermediate_size", json!(1536));
    large.write(&folder, "base");
    folder.edgeft("quantize base --type f32 --out m.gguf").ok();
    let bench = "bench m.gguf --prompt 4 --generate 24 --runs 3 --threads 1 --target this --json";
    let json = folder.edgeft(bench).ok().json();
    let number = |at: &str| json.pointer(at).and_then(Value::as_f64).unwrap_or_else(|| panic!("{at}: {json}"));
    let (measured, bound) = (number("/decode_tokens_per_s"), number("/predicted/decode_tokens_per_s"));
    assert!(measured < 1.2 * bound, "{measured} tokens/s measured, {bound} at most were predicted");
    assert!(number("/predicted/likely/decode_tokens_per_s") <= bound);
    // Resident memory is what was planned, or less: this process converts nothing.
    let (peak, planned) = (number("/peak_mib"), number("/predicted/bytes_needed") / 1048576.0);
    assert!(peak < 1.5 * planned + 16.0, "{peak} MiB resident, {planned} planned");
}

#[test]
fn doctor_finds_what_is_broken() {
    let folder = Folder::new();
    let well = folder.edgeft("doctor").ok().stdout;
    assert!(well.contains("ok       engine cpu   ran the embedded model"), "{well}");
    assert!(well.contains("Nothing is broken."), "{well}");
    let ill = folder.command("doctor --json").env("EDGEFT_ISA", "abacus").output().expect("it starts");
    assert_eq!(ill.status.code(), Some(1));
    let json: Value = serde_json::from_slice(&ill.stdout).expect("JSON");
    let cpu = json["checks"].as_array().expect("checks").iter().find(|c| c["name"] == "cpu").expect("cpu");
    assert_eq!((&cpu["state"], &cpu["fix"]), (&json!("broken"), &json!("unset EDGEFT_ISA")), "{cpu}");
}
