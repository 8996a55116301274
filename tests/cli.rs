//! Commands as typed: exit codes and messages. Each kind of bad input gets one clear error that names the thing and the way
//! out, on stderr, and exit code 2; what the machine could not do ends in 1.

use crate::common::tensors::{self, Values};
use crate::common::{Folder, Ran, data, has_fields, tiny::Tiny};
use std::net::TcpListener;

/// A base, chats for it, a run, a file; a BERT and reviews.
pub fn folder() -> Folder {
    let folder = Folder::new();
    Tiny::llama().write(&folder, "base");
    Tiny::bert().write(&folder, "bert");
    folder.write("d.jsonl", data::chats(30));
    folder.write("r.jsonl", data::reviews(30));
    folder
}

/// Refused with this code and these words; nothing new in the folder, nothing on stdout.
#[track_caller]
fn refuses_with(code: i32, folder: &Folder, line: &str, words: &[&str]) {
    let before = folder.names("");
    let ran = folder.edgeft(line).code(code);
    let errors: Vec<&str> = ran.stderr.lines().filter(|l| l.starts_with("error: ")).collect();
    assert_eq!(errors.len(), 1, "edgeft {line}\n{}", ran.stderr);
    for word in words {
        assert!(ran.stderr.contains(word), "edgeft {line}\n  does not say `{word}`:\n{}", ran.stderr);
    }
    assert!(ran.stdout.is_empty(), "edgeft {line}\n{}", ran.stdout);
    assert_eq!(folder.names(""), before, "edgeft {line} left something");
}

/// Refused as bad input: exit code 2.
#[track_caller]
pub fn refuses(folder: &Folder, line: &str, words: &[&str]) {
    refuses_with(2, folder, line, words);
}

#[test]
fn models_that_are_not_there_or_are_none() {
    let folder = folder();
    folder.write("empty/note.txt", "");
    folder.write("plain.txt", "hello");
    refuses(&folder, "run missing.gguf -p a", &["missing.gguf", "no such file or folder", "`nano`"]);
    refuses(&folder, "eval empty --data d.jsonl", &["empty", "no config.json", "no tune.toml"]);
    refuses(&folder, "quantize plain.txt --type q8_0 --out m.gguf", &["plain.txt", "not a model folder"]);
    refuses(&folder, "tune --model base/config.json --data d.jsonl --out run", &["base/config.json", "--method full"]);
    std::fs::remove_file(folder.at("base/model.safetensors")).expect("gone");
    refuses(&folder, "quantize base --type q8_0 --out m.gguf", &["base", "model.safetensors"]);
}

#[test]
fn a_file_where_a_folder_is_needed_and_the_other_way_round() {
    let folder = folder();
    folder.edgeft("quantize base --type q8_0 --out m.gguf").ok();
    let full = "tune --model m.gguf --method full --data d.jsonl --out run";
    refuses(&folder, full, &["m.gguf", "quantized", "Hugging Face folder"]);
    refuses(&folder, "quantize m.gguf --type q4_0 --out n.gguf", &["m.gguf", "GGUF"]);
    refuses(&folder, "eval m.gguf --data d.jsonl --engine candle", &["m.gguf", "--engine cpu"]);
    refuses(&folder, "eval base --data base", &["base", "folder"]);
    refuses(&folder, "inspect base", &["base"]);
    refuses(&folder, "quantize base --type q8_0 --out base", &["base", "exists"]);
}

#[test]
fn a_folder_without_a_tokenizer() {
    let folder = folder();
    Tiny::llama().without_text().write(&folder, "mute");
    for line in ["tune --model mute --data d.jsonl --out run", "eval mute --data d.jsonl", "tokenize mute --text a"] {
        refuses(&folder, line, &["mute", "no tokenizer.json", "put it there"]);
    }
    // It still converts, and says so when it is asked for text.
    folder.edgeft("quantize mute --type q8_0 --out m.gguf").ok();
    refuses(&folder, "run m.gguf -p a", &["m.gguf", "tokenizer"]);
    refuses(&folder, "tokenize m.gguf --text a", &["m.gguf", "tokenizer"]);
}

#[test]
fn data_that_is_not_there_or_is_no_data() {
    let folder = folder();
    let tune = |data: &str| format!("tune --model base --data {data} --out run");
    for (name, text) in
        [("empty.jsonl", ""), ("blank.jsonl", "\n\n"), ("empty.csv", ""), ("blank.txt", "  \n"), ("none.json", "[]")]
    {
        folder.write(name, text);
        refuses(&folder, &tune(name), &[name, "no rows in it"]);
    }
    refuses(&folder, &tune("missing.jsonl"), &["cannot open missing.jsonl", "No such file"]);
    folder.write("d.docx", "x");
    refuses(&folder, &tune("d.docx"), &["d.docx", ".jsonl", ".csv"]);
    folder.write("d.parquet", "PAR1");
    refuses(&folder, &tune("d.parquet"), &["d.parquet", "convert it"]);
    folder.write("cut.jsonl.gz", [0x1f, 0x8b, 8, 0]);
    refuses(&folder, &tune("cut.jsonl.gz"), &["cut.jsonl.gz", "is the file cut"]);
}

#[test]
fn rows_that_are_wrong_are_named_by_line_and_field() {
    let folder = folder();
    let chat = r#"{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}"#;
    let bad = |text: &str, flags: &str, words: &[&str]| {
        folder.write("bad.jsonl", text);
        refuses(&folder, &format!("tune --model base --data bad.jsonl --out run {flags}"), words);
    };
    bad(&format!("{chat}\n{{\"messages\": \n{chat}\n"), "", &["bad.jsonl:2", "not valid JSON", "one object a line"]);
    bad(&format!("{chat}\n[1, 2]\n"), "", &["bad.jsonl:2", "object"]);
    bad(&format!("{chat}\n{{\"text\": \"a\"}}\n"), "", &["bad.jsonl:2", "no field `messages`", "text"]);
    bad("{\"weather\": \"fine\"}\n", "", &["bad.jsonl:1", "weather", "`messages`"]);
    bad("{\"text\": \"a\"}\n", "--task classify", &["bad.jsonl:1", "label"]);
    bad("{\"text\": 5}\n", "--task text", &["bad.jsonl:1", "field `text`", "not a string"]);
    bad("{\"messages\": [{\"role\": \"king\", \"content\": \"a\"}]}\n", "", &["bad.jsonl:1", "king"]);
    bad(
        "{\"question\": \"q\", \"context\": \"c\", \"answers\": {\"text\": [\"zzz\"], \"answer_start\": [0]}}\n",
        "",
        &["bad.jsonl:1", "zzz", "answer_start"],
    );
    bad("{\"text\": \"\u{0}\"", "", &["bad.jsonl:1"]);
    folder.write("bad.jsonl", b"{\"text\": \"\xff\"}\n");
    refuses(&folder, "tune --model base --data bad.jsonl --out run", &["bad.jsonl:1", "UTF-8"]);
    folder.write("bad.csv", "text,label\n\"a,b\nc,d\n");
    refuses(&folder, "tune --model bert --data bad.csv --out run", &["bad.csv"]);
}

#[test]
fn rows_too_long_for_the_model_say_which_length_would_do() {
    let folder = folder();
    let long = "river ".repeat(300);
    folder.write("long.jsonl", format!("{{\"text\": \"a\"}}\n{{\"text\": \"{long}\"}}\n"));
    refuses(&folder, "tune --model base --data long.jsonl --out run", &["long.jsonl:2", "--max-len", "--truncate"]);
    refuses(&folder, "tune --model base --data d.jsonl --out run --max-len 4096", &["--max-len 4096", "128 positions"]);
    folder.edgeft("tune --model base --data long.jsonl --out run --truncate split --steps 1 --no-val").ok();
}

#[test]
fn labels_and_tasks_that_do_not_fit() {
    let folder = folder();
    folder.edgeft("tune --model bert --data r.jsonl --out run --steps 1").ok();
    folder.write(
        "other.jsonl",
        "{\"text\": \"a\", \"label\": \"positive\"}\n{\"text\": \"b\", \"label\": \"lukewarm\"}\n",
    );
    refuses(&folder, "eval run --data other.jsonl", &["other.jsonl:2", "`lukewarm`", "negative, positive"]);
    refuses(&folder, "tune --model bert --data r.jsonl --out new --val other.jsonl", &["other.jsonl:2", "`lukewarm`"]);
    refuses(&folder, "tune --model bert --data d.jsonl --out new", &["d.jsonl:1", "encoder", "--task classify"]);
    refuses(&folder, "eval bert --data r.jsonl", &["bert", "head", "tune"]);
    refuses(&folder, "tune --model base --data r.jsonl --out new --task sing", &["'sing'", "classify"]);
    folder.write("ids.safetensors", tensors::bytes(&data::classes(4, 8, 5, 1)));
    refuses(&folder, "eval run --data ids.safetensors", &["ids.safetensors", "label 3", "2 labels"]);
}

#[test]
fn pretokenized_rows_that_do_not_fit_together() {
    let folder = folder();
    let bad = |change: &dyn Fn(&mut tensors::Tensors), words: &[&str]| {
        let mut all = data::ids(3, 10, 1);
        change(&mut all);
        folder.write("ids.safetensors", tensors::bytes(&all));
        refuses(&folder, "tune --model base --data ids.safetensors --out run --no-val", words);
    };
    bad(&|t| drop(t.remove("input_ids")), &["ids.safetensors", "`input_ids`", "missing"]);
    bad(&|t| drop(t.remove("labels")), &["ids.safetensors", "row 0", "nothing to learn"]);
    bad(
        &|t| drop(t.insert("labels".into(), (vec![3, 9], Values::I64(vec![0; 27])))),
        &["`labels`", "[3, 9]", "[3, 10]"],
    );
    bad(
        &|t| drop(t.insert("attention_mask".into(), (vec![3, 10], Values::I64(vec![0; 30])))),
        &["ids.safetensors:0", "hides every token"],
    );
    bad(
        &|t| {
            let Values::I64(ids) = &mut t.get_mut("input_ids").expect("ids").1 else { panic!() };
            ids[13] = 1_000_000;
        },
        &["ids.safetensors", "row 1", "1000000", "384"],
    );
}

#[test]
fn settings_that_cannot_be() {
    let folder = folder();
    let tune = |flags: &str| format!("tune --model base --data d.jsonl --out run {flags}");
    refuses(&folder, &tune("--rank 0"), &["--rank 0"]);
    refuses(&folder, &tune("--lr -1"), &["-1"]);
    refuses(&folder, &tune("--lr 0"), &["--lr 0"]);
    refuses(&folder, &tune("--dropout 1"), &["--dropout 1"]);
    refuses(&folder, &tune("--batch 0"), &["--batch 0"]);
    refuses(&folder, &tune("--steps ten"), &["'ten'", "--steps"]);
    refuses(&folder, &tune("--epochs 1 --steps 1"), &["--epochs", "--steps"]);
    refuses(&folder, &tune("--targets q_proj,nose"), &["nose", "q_proj"]);
    refuses(&folder, &tune("--resume"), &["run", "tune.toml"]);
    folder.write("tune.toml", "rank = 4\nlearning_rate = 0.1\n");
    refuses(&folder, &tune("--config tune.toml"), &["tune.toml", "unknown field `learning_rate`", "line 2"]);
    folder.write("tune.toml", "rank = \"four\"\n");
    refuses(&folder, &tune("--config tune.toml"), &["tune.toml", "rank"]);
    refuses(&folder, &tune("--config missing.toml"), &["cannot read missing.toml"]);
    folder.write("tune.toml", "rank = 2\nsteps = 3\nlr = 0.5\n");
    let json = folder.edgeft(&tune("--config tune.toml --lr 1e-3 --json --no-val")).ok().json();
    assert_eq!(json["steps"], 3);
    let resolved = String::from_utf8(folder.read("run/tune.toml")).expect("UTF-8");
    assert!(resolved.contains("rank = 2") && resolved.contains("lr = 0.001"), "{resolved}"); // flags win over the file
}

#[test]
fn types_and_patterns_that_are_none() {
    let folder = folder();
    refuses(&folder, "quantize base --type q9_x --out m.gguf", &["unknown type `q9_x`", "q4_k_m", "q8_0"]);
    refuses(&folder, "quantize base --type q8_0 --out m.gguf --tensor-type ffn_down", &["`ffn_down`", "REGEX=TYPE"]);
    refuses(&folder, "quantize base --type q8_0 --out m.gguf --tensor-type ffn_down=q99", &["`q99`", "q6_k"]);
    refuses(
        &folder,
        "quantize base --type q8_0 --out m.gguf --tensor-type '(=q6_k'",
        &["`(=q6_k`", "no regular expression", "unclosed group"],
    );
    refuses(
        &folder,
        "quantize base --type q8_0 --out m.gguf --tensor-type nose=q6_k",
        &["`nose`", "matches no tensor"],
    );
    refuses(&folder, "quantize base --type q4_k_m --out m.gguf --strict-types", &["q4_k_m", "attn_q"]);
    refuses(&folder, "quantize base --type q8_0", &["--out"]);
    refuses(&folder, "quantize base --type q8_0 --out m.gguf --to tflite", &["'tflite'", "gguf", "onnx"]);
}

#[test]
fn adapters_that_are_missing_or_of_another_base() {
    let folder = folder();
    Tiny::llama().with("hidden_size", 48.into()).write(&folder, "other");
    folder.edgeft("tune --model base --data d.jsonl --out run --steps 1 --rank 2").ok();
    refuses(&folder, "merge --model base --adapter missing --out merged", &["missing", "adapter_config.json"]);
    refuses(&folder, "eval base --adapter missing --data d.jsonl", &["missing", "adapter_config.json"]);
    refuses(
        &folder,
        "merge --model other --adapter run --out merged",
        &["mlp.down_proj", "[48, 96]", "is it the base it was tuned on?"],
    );
    refuses(&folder, "eval other --adapter run --data d.jsonl", &["lora_A", "is it the base it was tuned on?"]);
    refuses(&folder, "merge base --out merged", &["base", "no adapter"]);
    refuses(&folder, "merge --out merged", &["RUN"]);
    std::fs::remove_file(folder.at("run/adapter_model.safetensors")).expect("gone");
    refuses(&folder, "merge run --out merged", &["run", "not finished", "--resume"]);
}

#[test]
fn gates_and_references_that_do_not_fit() {
    let folder = folder();
    folder.edgeft("quantize base --type q2_k --out m.gguf").ok();
    refuses(&folder, "verify m.gguf --against base --data d.jsonl", &["q2_k", "--max-kl"]);
    refuses(&folder, "verify m.gguf --against missing --data d.jsonl --max-kl 1", &["missing"]);
    folder.write("other.safetensors", tensors::bytes(&data::ids(2, 8, 1)));
    refuses(&folder, "verify base --against other.safetensors --max-abs 1", &["other.safetensors", "`logits`"]);
    let mut reference = data::ids(2, 8, 1);
    reference.insert("logits".into(), (vec![2, 8, 7], Values::F32(vec![0.0; 2 * 8 * 7])));
    folder.write("other.safetensors", tensors::bytes(&reference));
    refuses(&folder, "verify base --against other.safetensors --max-abs 1", &["384", "7"]);
    // A gate that does not pass is no error: the report stands on stdout, and the code is 3.
    let ran = folder.edgeft("verify m.gguf --against base --data d.jsonl --max-kl 1e-9 --json").code(3);
    let json = ran.json();
    has_fields(
        &json,
        "pass positions max_abs mean_kl p99_kl top1 perplexity tokens_identical template_identical first_difference",
    );
    assert_eq!(json["pass"], false);
    assert!(json["first_difference"].as_str().is_some_and(|d| d.contains("mean KL")), "{json}");
}

#[test]
fn prompts_that_cannot_be_answered() {
    let folder = folder();
    Tiny::classifier(&["a", "b"]).write(&folder, "classifier");
    Tiny::reader().write(&folder, "reader");
    refuses(&folder, "run base", &["--prompt"]);
    refuses(&folder, "run base -p ''", &["empty"]);
    refuses(&folder, "run base -p a -n 0", &["0", "least is 1"]);
    refuses(&folder, "run base -p a --temperature -1", &["'-1'"]);
    refuses(&folder, "run base -p a --top-p 2", &["--top-p", "2"]);
    refuses(&folder, &format!("run base -p '{}'", "river ".repeat(300)), &["base", "128"]);
    refuses(&folder, "run reader -p a", &["reader", "--question"]);
    refuses(&folder, "run base --question q", &["--context"]);
    refuses(&folder, "run bert -p a", &["bert", "tune"]);
    Tiny::llama().write(&folder, "plain");
    folder.write("plain/tokenizer_config.json", "{}");
    refuses(&folder, "run plain --chat -p a", &["plain", "no chat template"]);
}

#[cfg(feature = "constrain")]
#[test]
fn an_answer_is_held_to_an_expression_a_schema_or_a_grammar_and_to_one_of_them_alone() {
    let folder = folder();
    folder.write("s.json", r#"{"enum": ["red", "blue"]}"#);
    folder.write("g.lark", "start: \"a\" start \"b\" | \"c\"");
    folder.write("bad.json", r#"{"$ref": "http://127.0.0.1/s.json"}"#);
    folder.write("no.json", "{");
    let text = |flags: &str| {
        let ran = folder.edgeft(&format!("run base -p the -n 60 --temperature 1 --json {flags}")).ok().json();
        assert_eq!(ran["finish_reason"], "stop", "{ran}");
        ran["text"].as_str().unwrap().to_owned()
    };
    for flag in ["--schema", "--json-schema"] {
        assert!(["\"red\"", "\"blue\""].contains(&text(&format!("{flag} s.json")).as_str()));
    }
    assert!([" yes", " no"].contains(&text("--regex ' (yes|no)'").as_str()));
    let balanced = text("--grammar g.lark --seed 3");
    let (before, after) = balanced.split_once('c').unwrap();
    assert!(before.len() == after.len() && before.chars().all(|c| c == 'a'), "{balanced}");
    refuses(&folder, "run base -p a --schema bad.json", &["--schema bad.json", "outside the document"]);
    refuses(&folder, "run base -p a --schema no.json", &["--schema no.json", "no JSON"]);
    refuses(&folder, "run base -p a --grammar none.lark", &["--grammar none.lark"]);
    refuses(&folder, "run base -p a --regex (a", &["--regex", "regular expression"]);
    refuses(&folder, "run base -p a --regex a --schema s.json", &["--schema", "--regex", "cannot be used"]);
    Tiny::classifier(&["a", "b"]).write(&folder, "classifier");
    refuses(&folder, "run classifier -p a --regex a", &["classifier", "no text"]);
}

#[test]
fn a_port_in_use_ends_in_1_and_a_wrong_address_in_2() {
    let folder = folder();
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("its number").port();
    refuses_with(1, &folder, &format!("serve base --port {port}"), &["cannot listen", &port.to_string(), "--port"]);
    refuses(&folder, "serve missing.gguf --port 0", &["missing.gguf"]);
    refuses(&folder, "serve base --port 0 --host no.such.host.invalid", &["no.such.host.invalid"]);
    refuses(&folder, "serve base --port 0 --api-key-file missing.key", &["missing.key"]);
    refuses(&folder, "serve base --port 70000", &["70000", "--port"]);
}

#[test]
fn verbs_and_flags_that_are_none() {
    let folder = folder();
    refuses(&folder, "train --model base", &["'train'"]);
    refuses(&folder, "tune --model base --data d.jsonl --out run --learning-rate 1", &["'--learning-rate'"]);
    refuses(&folder, "eval base", &["--data"]);
    refuses(&folder, "eval base --data d.jsonl --threads 0", &["0", "--threads"]);
    refuses(&folder, "tokenize base", &["--text"]);
    refuses(&folder, "tokenize base --file missing.txt", &["cannot read missing.txt"]);
    refuses(&folder, "targets toaster", &["toaster", "raspberry-pi-5", "this"]);
    refuses(&folder, "bench base --target toaster", &["toaster", "raspberry-pi-5", "this"]);
    refuses(&folder, "bench base --compare missing.json", &["missing.json"]);
    refuses(&folder, "inspect d.jsonl", &["d.jsonl", "GGUF"]);
}

#[test]
fn every_verb_has_help_with_an_example_and_a_next_step() {
    let folder = Folder::new();
    let help = folder.edgeft("--help").ok().stdout;
    let verbs: Vec<&str> = help
        .lines()
        .skip_while(|l| !l.starts_with("Commands:"))
        .skip(1)
        .take_while(|l| !l.is_empty())
        .filter_map(|l| l.strip_prefix("  ")?.split_whitespace().next())
        .collect();
    for verb in [
        "demo", "tune", "eval", "merge", "quantize", "verify", "tokenize", "run", "serve", "bench", "inspect",
        "targets", "package", "doctor",
    ] {
        assert!(verbs.contains(&verb), "{verb} is not among {verbs:?}");
    }
    for verb in verbs {
        let help = folder.edgeft(&format!("{verb} --help")).ok().stdout;
        assert!(help.contains(&format!("Example:\n  edgeft {verb}")), "{verb} --help has no example:\n{help}");
        assert!(help.contains("Next:\n  "), "{verb} --help names no next step:\n{help}");
        assert!(help.contains("--json"), "{verb}");
        // An example that is not understood helps nobody.
        for line in help.lines().filter_map(|l| l.strip_prefix("  edgeft ")) {
            let known = line.split_whitespace().next().is_some_and(|verb| help_names(&folder, verb));
            assert!(known, "{verb} --help: {line}");
        }
    }
    assert!(folder.edgeft("--version").ok().stdout.starts_with("edgeft "));
}

fn help_names(folder: &Folder, verb: &str) -> bool {
    folder.edgeft(&format!("{verb} --help")).code == 0
}

#[test]
fn json_is_one_object_on_the_last_line_of_stdout() {
    let folder = folder();
    for (line, fields) in [
        (
            "tune --model base --data d.jsonl --out run --steps 2 --rank 2",
            "out steps loss val trainable_params tokens_per_s peak_mib seconds stopped_by",
        ),
        (
            "tune --model base --data d.jsonl --out other --dry-run",
            "data rows held_out tokens longest trainable_params settings.rank",
        ),
        ("eval run --data d.jsonl", "task examples loss perplexity"),
        ("merge run --out merged", "out bytes seconds"),
        ("quantize run --type q8_0 --out m.gguf", "out bytes bpw type types seconds peak_mib"),
        ("quantize run --type q8_0 --plan", "type bytes bpw types tensors"),
        ("verify m.gguf --against run --data d.jsonl --max-kl 9", "pass positions"),
        ("tokenize base --text a", "ids tokens"),
        ("run m.gguf -p a -n 2", "text token_ids finish_reason timings"),
        ("bench m.gguf --prompt 4 --generate 2 --runs 1", "engine decode_tokens_per_s"),
        ("quantize run --to onnx --type f16 --out onnx", "out bytes bpw type types seconds peak_mib"),
        ("inspect m.gguf", "metadata tensors"),
        ("inspect onnx/model.onnx", "opsets inputs outputs types tensors"),
        ("inspect base/model.safetensors", "tensors"),
        ("targets", "targets"),
        ("targets rpi5", "name measured model.type cpu.source predictions"),
        ("targets --model m.gguf", "predictions.0.kind predictions.0.memory.total predictions.8.target"),
        ("targets this --model m.gguf", "kernels predictions.0.likely.decode_tokens_per_s"),
        ("bench m.gguf --prompt 4 --generate 2 --runs 1 --target this", "predicted.likely energy kv version"),
        (
            "bench m.gguf --prompt 4 --generate 2 --runs 1 --engine auto",
            "engine decode_tokens_per_s ttft_ms runs auto.why auto.measured.0.engine auto.not_measured",
        ),
        ("doctor", "ok version checks.0.name checks.0.state checks.0.says checks.0.fix"),
    ] {
        let ran = folder.edgeft(&format!("{line} --json")).ok();
        assert_eq!(ran.stdout.lines().count(), 1, "edgeft {line}\n{}", ran.stdout);
        has_fields(&ran.json(), fields);
    }
}

/// A machine without any Vulkan driver, as the loader's variables make it.
#[cfg(all(target_os = "linux", feature = "gpu"))]
#[test]
fn a_gpu_that_is_not_there_says_what_to_install() {
    let folder = folder();
    for line in [
        "run base -p hello --engine gpu",
        "bench base --engine gpu",
        "serve base --port 0 --engine gpu",
        "eval base --data d.jsonl --engine gpu",
        "verify base --against base --data d.jsonl --engine gpu",
    ] {
        let mut command = folder.command(line);
        command.env("VK_DRIVER_FILES", "no.json").env("VK_ICD_FILENAMES", "no.json");
        let ran = Ran::new(line, command.output().expect("the binary starts")).code(2);
        assert!(ran.stderr.contains("apt-get install mesa-vulkan-drivers libvulkan1"), "{line}: {}", ran.stderr);
    }
}

#[cfg(feature = "gpu")]
#[test]
fn every_verb_that_runs_a_model_runs_it_on_a_gpu_and_says_which() {
    if !crate::common::gpu("every_verb_that_runs_a_model_runs_it_on_a_gpu_and_says_which") {
        return;
    }
    let folder = folder();
    folder.edgeft("quantize base --type f32 --out m.gguf").ok();
    let text = |engine: &str| {
        let ran = folder.edgeft(&format!("run m.gguf -p hello -n 8 --kv f32 --engine {engine} --json")).ok();
        (ran.stderr.contains("runs on "), ran.json()["token_ids"].clone())
    };
    let (named, on_gpu) = text("gpu");
    assert_eq!((named, on_gpu), (true, text("cpu").1));
    let bench =
        folder.edgeft("bench m.gguf --engine gpu --prompt 8 --generate 2 --runs 1 --batch 2 --json").ok().json();
    has_fields(&bench, "device.runs_on decode_tokens_per_s");
    assert!(bench["device"]["runs_on"].is_string() && bench["ceiling"]["gb_per_s"].is_null(), "{bench}");
    let loss = |engine: &str| {
        folder.edgeft(&format!("eval m.gguf --data d.jsonl --engine {engine} --json")).ok().json()["loss"].as_f64()
    };
    crate::common::close(loss("gpu").expect("a loss"), loss("cpu").expect("a loss"), 1e-4, "the loss");
}
