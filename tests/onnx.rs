//! ONNX folders as other exporters write them, on ONNX Runtime. The fixtures are of `tests/fixtures/onnx`; what needs the
//! library is skipped aloud where there is none. What is refused is refused before the library is asked.

use crate::common::fixtures::case;
use crate::common::{Folder, has_fields, ort};
use edgeft::eval::subject::{EngineName, Subject};
use edgeft_runtime::engine::{Backend, Engine, EngineOptions, KvType, Rows, Run};
use edgeft_runtime::format::onnx::Onnx;
use edgeft_runtime::model::{Model, Task};
use edgeft_runtime::session::{GenerateOptions, Session, SessionOptions};
use serde_json::json;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::ops::ControlFlow;
use std::path::Path;
use std::process::Stdio;

/// The same network three times: a cache that grows, one in float16, one that is written in place.
const DECODERS: [&str; 3] = ["llama", "llama_f16", "llama_gqa"];

/// Largest difference of two logits from the same tokens: older libraries add in another order where memory lies otherwise.
const SAME: f32 = 1e-5;

/// A case as a folder `m` of its own.
fn onnx(name: &str) -> Folder {
    let folder = Folder::new();
    let copy = |from: &Path| {
        for entry in std::fs::read_dir(from).expect("a case") {
            let entry = entry.expect("an entry");
            let name = entry.file_name().to_string_lossy().into_owned();
            folder.write(&format!("m/{name}"), std::fs::read(entry.path()).expect("a file"));
        }
    };
    if name.starts_with("llama") {
        copy(&case("onnx/llama")); // weights and text side are the same for all
    }
    if name == "llama_gqa" {
        std::fs::remove_file(folder.at("m/config.json")).expect("it"); // genai_config.json says the same
    }
    copy(&case(&format!("onnx/{name}")));
    folder
}

/// A case with a text in its model.onnx replaced by one as long.
fn with_text(name: &str, from: &str, to: &str) -> Folder {
    assert_eq!(from.len(), to.len());
    let folder = onnx(name);
    let mut bytes = folder.read("m/model.onnx");
    let mut found = 0;
    for at in 0..bytes.len() - from.len() {
        if &bytes[at..at + from.len()] == from.as_bytes() {
            bytes[at..at + from.len()].copy_from_slice(to.as_bytes());
            found += 1;
        }
    }
    assert!(found > 0, "no {from} in {name}");
    folder.write("m/model.onnx", bytes);
    folder
}

fn engine(folder: &Folder, n_seqs: usize) -> Box<dyn Engine> {
    let model = Model::open(folder.at("m")).unwrap_or_else(|e| panic!("{e}"));
    let options = EngineOptions { backend: Backend::Ort, threads: 1, ctx: 40, n_seqs, kv: KvType::F32 };
    model.engine(&options).unwrap_or_else(|e| panic!("{e}"))
}

fn forward(engine: &mut dyn Engine, seq: usize, tokens: &[u32], rows: Rows) -> Vec<f32> {
    let mut out = Vec::new();
    engine.forward(&[Run { seq, tokens, types: None, rows }], &mut out).unwrap_or_else(|e| panic!("{e}"));
    out
}

#[track_caller]
fn near(a: &[f32], b: &[f32], bound: f32, what: &str) {
    assert_eq!(a.len(), b.len(), "{what}");
    for (i, (x, y)) in a.iter().zip(b).enumerate() {
        assert!((x - y).abs() <= bound, "{what}, number {i}: {x} against {y}");
    }
}

#[test]
fn recorded_outputs_are_reproduced_by_every_kind_of_graph() {
    if !ort("recorded_outputs_are_reproduced_by_every_kind_of_graph") {
        return;
    }
    for (name, bound) in [("llama", "1e-5"), ("llama_gqa", "1e-4"), ("llama_f16", "2e-2"), ("bert_classify", "1e-5")] {
        let folder = onnx(name);
        let line = format!("verify m --against m/io.safetensors --max-abs {bound} --json");
        let ran = folder.edgeft(&line).ok();
        assert!(ran.stderr.contains("runs on ONNX Runtime 1."), "{}", ran.stderr);
        assert!(ran.json()["positions"].as_u64() >= Some(2), "{name}");
    }
}

#[test]
fn a_step_at_a_time_gives_what_one_pass_gives() {
    if !ort("a_step_at_a_time_gives_what_one_pass_gives") {
        return;
    }
    let tokens: Vec<u32> = (0..40).map(|i| 3 + (i * 7) % 30).collect();
    for name in DECODERS {
        let folder = onnx(name);
        let (mut whole, mut steps) = (engine(&folder, 1), engine(&folder, 1));
        let want = forward(whole.as_mut(), 0, &tokens, Rows::All); // (40, V)
        let v = whole.output_dim();
        let bound = if name == "llama_f16" { 2e-2 } else { 1e-4 };
        // Stretches of every kind, past the room that a cache in place has at first.
        let mut at = 0;
        for n in [5, 1, 1, 9, 1, 17, 1, 1, 1, 3] {
            let rows = forward(steps.as_mut(), 0, &tokens[at..at + n], Rows::All);
            near(&rows, &want[at * v..(at + n) * v], bound, &format!("{name}, {n} tokens at {at}"));
            at += n;
        }
        assert_eq!((at, steps.len(0)), (40, 40));
        let error = steps.forward(&[Run { seq: 0, tokens: &[3], types: None, rows: Rows::Last }], &mut Vec::new());
        assert!(error.unwrap_err().to_string().contains("the context holds 40"));
    }
}

#[test]
fn what_is_forgotten_leaves_no_trace() {
    if !ort("what_is_forgotten_leaves_no_trace") {
        return;
    }
    for name in DECODERS {
        let folder = onnx(name);
        let (mut used, mut fresh) = (engine(&folder, 1), engine(&folder, 1));
        forward(used.as_mut(), 0, &[3, 4, 5, 6, 7, 8, 9], Rows::None);
        used.truncate(0, 3);
        used.truncate(0, 5); // longer than what is left: nothing happens
        assert_eq!(used.len(0), 3);
        let again = forward(used.as_mut(), 0, &[20, 21], Rows::Last);
        forward(fresh.as_mut(), 0, &[3, 4, 5], Rows::None);
        let want = forward(fresh.as_mut(), 0, &[20, 21], Rows::Last);
        near(&again, &want, SAME, &format!("{name}: cut to 3 tokens"));
        used.truncate(0, 0);
        assert!(used.is_empty());
        fresh.truncate(0, 0);
        let (again, want) =
            (forward(used.as_mut(), 0, &[9, 8], Rows::All), forward(fresh.as_mut(), 0, &[9, 8], Rows::All));
        near(&again, &want, SAME, &format!("{name}: begun anew"));
    }
}

#[test]
fn sequences_side_by_side_do_not_touch() {
    if !ort("sequences_side_by_side_do_not_touch") {
        return;
    }
    for name in DECODERS {
        let folder = onnx(name);
        let (mut both, mut alone) = (engine(&folder, 2), engine(&folder, 1));
        forward(both.as_mut(), 1, &[9, 9, 9], Rows::None);
        let mut rows = Vec::new();
        let run = |seq, tokens| Run { seq, tokens, types: None, rows: Rows::Last };
        both.forward(&[run(0, &[3, 4, 5]), run(1, &[6])], &mut rows).expect("both");
        let v = both.output_dim();
        near(&rows[..v], &forward(alone.as_mut(), 0, &[3, 4, 5], Rows::Last), SAME, name);
        alone.truncate(0, 0);
        forward(alone.as_mut(), 0, &[9, 9, 9], Rows::None);
        near(&rows[v..], &forward(alone.as_mut(), 0, &[6], Rows::Last), SAME, name);
        assert!(both.forward(&[run(0, &[3]), run(0, &[3])], &mut rows).is_err());
        assert!(both.forward(&[run(2, &[3])], &mut rows).is_err());
    }
}

#[test]
fn a_prompt_that_begins_like_the_last_one_is_continued_alike() {
    if !ort("a_prompt_that_begins_like_the_last_one_is_continued_alike") {
        return;
    }
    for name in DECODERS {
        let folder = onnx(name);
        let model = Model::open(folder.at("m")).expect("a model");
        let options = SessionOptions { backend: model.backend(), threads: Some(1), ..SessionOptions::default() };
        let mut session = Session::new(&model, &options).expect("a session");
        let tokenizer = model.tokenizer().expect("a tokenizer");
        let text = |session: &mut Session, prompt: &str| {
            let ids = tokenizer.encode(prompt, true).expect("ids");
            let options = GenerateOptions { max_tokens: 12, ..GenerateOptions::default() };
            session.generate(&ids, &options, &mut |_| ControlFlow::Continue(())).expect("a text")
        };
        text(&mut session, "the hat in the rain");
        let again = text(&mut session, "the hat in a tree");
        assert!(again.timings.cached_tokens > 5, "{name}");
        session.reset();
        assert_eq!(text(&mut session, "the hat in a tree").token_ids, again.token_ids, "{name}");
    }
}

#[test]
fn a_graph_in_place_writes_the_text_of_the_one_that_grows() {
    if !ort("a_graph_in_place_writes_the_text_of_the_one_that_grows") {
        return;
    }
    let text = |name: &str| {
        let json = onnx(name).edgeft("run m -p 'the cat ' -n 20 --json").ok().json();
        has_fields(&json, "text token_ids finish_reason timings.load_ms timings.ttft_ms");
        json["token_ids"].clone()
    };
    assert_eq!(text("llama"), text("llama_gqa"));
}

#[test]
fn a_classifier_labels_texts_and_is_judged() {
    if !ort("a_classifier_labels_texts_and_is_judged") {
        return;
    }
    let folder = onnx("bert_classify");
    let json = folder.edgeft("run m -p 'a red hat' --engine ort --json").ok().json();
    let best = json["labels"][0]["label"].as_str().expect("a label").to_owned();
    assert!(["red", "green", "blue"].contains(&best.as_str()), "{json}");
    let row = json!({"text": "a red hat", "label": best});
    folder.write("rows.jsonl", format!("{row}\n"));
    let json = folder.edgeft("eval m --data rows.jsonl --json").ok().json();
    assert_eq!((&json["accuracy"], &json["examples"]), (&json!(1.0), &json!(1)));
}

#[test]
fn a_bench_names_the_engine_and_the_library() {
    if !ort("a_bench_names_the_engine_and_the_library") {
        return;
    }
    for name in ["llama", "llama_gqa", "bert_classify"] {
        let json = onnx(name).edgeft("bench m --runs 2 --generate 4 --prompt 8 --batch 2 --json").ok().json();
        has_fields(&json, "engine model threads prompt batch load_ms peak_mib ceiling.gb_per_s device.cpu");
        assert_eq!(json["engine"], "ort");
        assert!(json["device"]["runs_on"].as_str().expect("it").starts_with("ONNX Runtime 1."), "{json}");
        assert!(json["prompt_tokens_per_s"].as_f64() > Some(0.0), "{json}");
    }
}

#[test]
fn a_server_answers_from_an_onnx_folder() {
    if !ort("a_server_answers_from_an_onnx_folder") {
        return;
    }
    let folder = onnx("llama");
    let mut server = folder.command("serve m --port 0 --json").stdout(Stdio::piped()).spawn().expect("it starts");
    let mut line = String::new();
    BufReader::new(server.stdout.take().expect("stdout")).read_line(&mut line).expect("a line");
    let url =
        serde_json::from_str::<serde_json::Value>(&line).expect("JSON")["url"].as_str().expect("a url").to_owned();
    let mut stream = TcpStream::connect(url.trim_start_matches("http://")).expect("it listens");
    let body = r#"{"prompt": "the cat ", "max_tokens": 8}"#;
    write!(stream, "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}", body.len()).expect("sent");
    let mut answer = String::new();
    let read = stream.read_to_string(&mut answer);
    server.kill().expect("it ends");
    let _ = server.wait();
    read.expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("\"completion_tokens\":8"), "{answer}");
}

#[test]
fn a_folder_says_what_it_is_before_any_library_is_asked() {
    for (name, task) in [("llama", Task::Generate), ("llama_gqa", Task::Generate), ("bert_classify", Task::Classify)] {
        let folder = onnx(name);
        let model = Model::open(folder.at("m")).expect(name);
        assert_eq!((model.task(), model.backend()), (task, Backend::Ort));
        assert_eq!(model.hparams().causal, task == Task::Generate);
        assert!(model.tokenizer().expect("a tokenizer").vocab_size() <= model.hparams().n_vocab);
    }
    let model = Model::open(onnx("bert_classify").at("m")).expect("it");
    assert_eq!(model.labels(), ["red", "green", "blue"]);
    assert_eq!(Model::open(onnx("llama_f16").at("m")).expect("it").kv(), Some(KvType::F16));
    let ids = onnx("llama").edgeft("tokenize m --text 'the cat' --json").ok().json();
    assert_eq!(ids["tokens"][0], "<s>", "{ids}");
}

#[test]
fn an_engine_that_does_not_fit_the_files_says_the_way_out() {
    let folder = onnx("llama");
    folder.edgeft("quantize nano --type q8_0 --out v.gguf").ok();
    for (line, because) in [
        ("run m -p a --engine cpu", "runs on the engine ort; for another one, write a GGUF file"),
        ("bench m --engine cpu", "runs on the engine ort"),
        ("eval m --data rows.jsonl --engine candle", "an ONNX folder runs on --engine ort"),
        (
            "run nano -p a --engine ort",
            "takes an ONNX folder; write one with `edgeft quantize nano --to onnx --out DIR`",
        ),
        ("verify nano --against nano --engine ort", "takes an ONNX folder"),
        ("eval nano --data rows.jsonl --engine ort", "takes an ONNX folder"),
        ("eval v.gguf --data rows.jsonl --engine ort", "the engine ort takes an ONNX folder"),
        ("verify v.gguf --against nano --engine ort", "the engine ort takes an ONNX folder"),
        ("tune --model m --data rows.jsonl --out r", "can be run, but not tuned"),
    ] {
        // With the library or without: the files are looked at first.
        let ran = folder.edgeft(line).code(2);
        assert!(ran.stderr.contains(because), "{ran:#?}");
        let without = folder.command(line).env("PATH", "").env_remove("ORT_DYLIB_PATH").output().expect("it starts");
        let ran = crate::common::Ran::new(line, without).code(2);
        assert!(ran.stderr.contains(because), "{ran:#?}");
    }
}

#[test]
fn without_the_library_the_way_to_it_is_told() {
    let folder = onnx("llama");
    let output =
        folder.command("run m -p a").env("PATH", "").env_remove("ORT_DYLIB_PATH").output().expect("the binary starts");
    let ran = crate::common::Ran::new("run m -p a", output);
    if ran.code == 0 {
        eprintln!("skipped without_the_library_the_way_to_it_is_told: the system itself has one");
        return;
    }
    let ran = ran.code(2);
    for part in ["pip install onnxruntime", "--ort-lib", "ORT_DYLIB_PATH", "packages of python3: not there", "../lib"] {
        assert!(ran.stderr.contains(part), "no {part} in\n{}", ran.stderr);
    }
    assert!(ran.stdout.is_empty());
}

#[test]
fn a_library_that_is_named_is_taken_or_refused() {
    let folder = onnx("llama");
    folder.write("libonnxruntime.so", "no library");
    for line in ["run m -p a --ort-lib libonnxruntime.so", "verify m --against m/io.safetensors --ort-lib gone.so"] {
        let ran = folder.edgeft(line).code(2);
        assert!(ran.stderr.contains("--ort-lib: ") && ran.stderr.contains("cannot be loaded"), "{}", ran.stderr);
    }
    let output = folder.command("bench m").env("ORT_DYLIB_PATH", "libonnxruntime.so").output().expect("it starts");
    let ran = crate::common::Ran::new("bench m", output).code(2);
    assert!(ran.stderr.contains("ORT_DYLIB_PATH: ") && ran.stderr.contains("cannot be loaded"), "{}", ran.stderr);
}

#[test]
fn weights_are_read_from_the_folder_alone() {
    let folder = with_text("llama", "model.onnx_data", "../../../secret");
    let ran = folder.edgeft("run m -p a").code(2);
    assert!(ran.stderr.contains("`../../../secret`, which leads out of the folder"), "{}", ran.stderr);

    let folder = onnx("llama");
    let whole = folder.read("m/model.onnx_data");
    folder.write("m/model.onnx_data", &whole[..whole.len() - 1]);
    let ran = folder.edgeft("run m -p a").code(2);
    assert!(ran.stderr.contains("but that file has 9471 bytes; is it whole?"), "{}", ran.stderr);

    #[cfg(unix)]
    {
        let folder = onnx("llama");
        std::fs::rename(folder.at("m/model.onnx_data"), folder.at("elsewhere")).expect("moved");
        std::os::unix::fs::symlink("../elsewhere", folder.at("m/model.onnx_data")).expect("a link");
        let ran = folder.edgeft("run m -p a").code(2);
        assert!(ran.stderr.contains("a link that leads out of the folder"), "{}", ran.stderr);
    }
}

#[test]
fn an_input_that_is_not_known_is_named() {
    let folder = with_text("bert_classify", "token_type_ids", "pixel_values_2");
    let ran = folder.edgeft("run m -p a").code(2);
    assert!(ran.stderr.contains("m: model.onnx: input `pixel_values_2`: is not known"), "{}", ran.stderr);
}

#[test]
fn a_cut_or_spoiled_graph_is_an_error_and_never_a_panic() {
    let folder = onnx("llama");
    let whole = folder.read("m/model.onnx");
    for at in [0, 1, 100, whole.len() / 2, whole.len() - 1] {
        folder.write("m/model.onnx", &whole[..at]);
        let ran = folder.edgeft("run m -p a").code(2);
        assert!(ran.stderr.contains("model.onnx"), "{at}: {}", ran.stderr);
    }
    for at in 0..whole.len() {
        let mut bytes = whole.clone();
        bytes[at] ^= 0xff;
        let _ = Onnx::parse(&bytes);
        let _ = Onnx::parse(&whole[..at]);
    }
}

#[test]
fn a_graph_that_the_library_does_not_take_is_told_in_its_words() {
    if !ort("a_graph_that_the_library_does_not_take_is_told_in_its_words") {
        return;
    }
    let folder = with_text("llama", "Softmax", "Hardmix");
    let ran = folder.edgeft("run m -p a").code(2);
    assert!(ran.stderr.contains("does not take the graph") && ran.stderr.contains("Hardmix"), "{}", ran.stderr);
}

#[test]
fn a_subject_on_the_folder_is_the_one_on_its_engine() {
    if !ort("a_subject_on_the_folder_is_the_one_on_its_engine") {
        return;
    }
    let folder = onnx("llama");
    let place = folder.at("m").to_string_lossy().into_owned();
    let mut by_default = Subject::open(&place, None, None, 1).unwrap_or_else(|e| panic!("{e:#}"));
    let mut by_name = Subject::open(&place, Some(EngineName::Ort), None, 1).unwrap_or_else(|e| panic!("{e:#}"));
    assert_eq!(by_default.type_name(), "f32");
    let text = |s: &mut Subject| s.greedy(&[0, 5, 6], 6, &|_| false).expect("a text");
    assert_eq!(text(&mut by_default), text(&mut by_name));
}
