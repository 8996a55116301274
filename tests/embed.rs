//! The device's half inside other programs: the C library built, linked and run from C, loaded from Python, and its header
//! held against the code.
//!
//! The library is built here by cargo, beside the test's own binaries: an ordinary build never makes it.

use crate::common::{Folder, Ran, data, program, tiny::Tiny};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

fn top() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Models that answer what they were taught, 30 to 120 KB each; `make_the_models` wrote them.
fn models() -> PathBuf {
    top().join("tests/fixtures/tiny")
}

/// The C library of this build's profile.
fn library() -> &'static Path {
    static LIBRARY: OnceLock<PathBuf> = OnceLock::new();
    LIBRARY.get_or_init(|| {
        let beside = Path::new(env!("CARGO_BIN_EXE_edgeft")).parent().expect("a folder");
        let profile = match beside.file_name().and_then(|n| n.to_str()).expect("a profile") {
            "debug" => "dev",
            other => other,
        };
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args(["rustc", "--offline", "--quiet", "-p", "edgeft-runtime", "--lib", "--features", "capi"]);
        cargo.args(["--crate-type", "cdylib", "--profile", profile]);
        cargo.arg("--target-dir").arg(beside.parent().expect("the target folder")).current_dir(top());
        Ran::new("cargo rustc", cargo.stdin(Stdio::null()).output().expect("cargo starts")).ok();
        let name = format!("{}edgeft_runtime{}", std::env::consts::DLL_PREFIX, std::env::consts::DLL_SUFFIX);
        beside.join(name)
    })
}

#[track_caller]
fn run(command: &mut Command) -> String {
    let line = format!("{command:?}");
    Ran::new(&line, command.stdin(Stdio::null()).output().unwrap_or_else(|e| panic!("{line}: {e}"))).ok().stdout
}

#[test]
fn a_c_program_links_and_runs() {
    if !program("cc", "embed::a_c_program_links_and_runs", "cc") {
        return;
    }
    let folder = Folder::new();
    let beside = library().parent().expect("a folder");
    let mut cc = Command::new("cc");
    cc.args(["-std=c11", "-Wall", "-Wextra", "-Werror", "-o"]).arg(folder.at("main"));
    cc.arg("-I").arg(top().join("targets/bundle")).arg(top().join("tests/embed/main.c"));
    cc.arg("-L").arg(beside).args(["-ledgeft_runtime", "-lm"]).arg(format!("-Wl,-rpath,{}", beside.display()));
    run(&mut cc);
    let all = [("blk.0.attn_q.weight", [64, 64], 4), ("blk.0.attn_output.weight", [64, 64], 4)];
    folder.write("adapter.gguf", crate::beside::pairs("llama", &all, 1));
    let said = run(Command::new(folder.at("main")).arg(models()).arg(folder.at("adapter.gguf")));
    let version = env!("CARGO_PKG_VERSION");
    assert_eq!(
        said,
        format!(
            "edgeft {version}\ngenerate: the apple is red\nchat: green\nclassify: positive, not negative\n\
             answer: blue, characters 12 to 16\nembed: 32 numbers, length 1.000\n"
        )
    );
}

#[test]
fn python_needs_forty_lines() {
    if !program("python", "embed::python_needs_forty_lines", "python3") {
        return;
    }
    let script = top().join("tests/embed/main.py");
    let lines = std::fs::read_to_string(&script).expect("the script").lines().count();
    assert!(lines < 40, "{lines} lines");
    let said = run(Command::new("python3").arg(&script).arg(library()).arg(models()));
    assert_eq!(said, " red | red | positive\n");
}

#[test]
fn the_header_is_what_the_code_says() {
    let mut config = cbindgen::Config { language: cbindgen::Language::C, ..cbindgen::Config::default() };
    config.include_guard = Some("EDGEFT_H".into());
    config.cpp_compat = true;
    config.documentation_style = cbindgen::DocumentationStyle::C99;
    config.line_length = 120;
    config.enumeration.rename_variants = cbindgen::RenameRule::QualifiedScreamingSnakeCase;
    config.usize_is_size_t = true;
    config.header = Some(HEAD.into());
    let mut builder = cbindgen::Builder::new().with_config(config);
    for part in ["capi.rs", "capi/options.rs", "capi/results.rs"] {
        builder = builder.with_src(top().join("runtime/src").join(part));
    }
    let mut made = Vec::new();
    builder.generate().expect("cbindgen reads the sources").write(&mut made);
    let made = String::from_utf8(made).expect("UTF-8");
    let path = top().join("targets/bundle/edgeft.h");
    if std::env::var_os("EDGEFT_WRITE").is_some() {
        std::fs::write(&path, &made).expect("the header is written");
    }
    let there = std::fs::read_to_string(&path).unwrap_or_default();
    let differ = there.lines().zip(made.lines()).enumerate().find(|(_, (a, b))| a != b);
    assert!(
        there == made,
        "targets/bundle/edgeft.h is not what the code says ({differ:?}); write it anew:\n\
         EDGEFT_WRITE=1 cargo test --release --test main the_header"
    );
}

/// What stands above the header's first line.
const HEAD: &str = "\
/* edgeft: small language models on this machine's own CPU, for C.

   Made from runtime/src/capi.rs by cbindgen; a test holds the two together. The library:
     cargo rustc --release -p edgeft-runtime --lib --features capi --crate-type cdylib      (or staticlib)
     cc main.c -Itargets/bundle -Ltarget/release -ledgeft_runtime

   - A function that can fail returns a code; edgeft_last_error() has the sentence to it, for each thread its own.
   - Texts that go in are UTF-8 and end with a zero. What comes out is freed by its own function, never by free().
   - Structs that you fill begin with their size, and zero in a field is its default: EdgeftGenerateOptions o = {sizeof o};
     Structs that you get may grow at their end in a later version.
   - Threads: models may be shared. A session takes one call at a time, from whichever thread; a second call gets
     EDGEFT_CODE_BUSY at once. Free what no call is using. */";

/// Trains the models of `tests/fixtures/tiny` from random weights and writes them anew; half a minute.
#[test]
#[ignore = "writes tests/fixtures/tiny"]
fn make_the_models() {
    let folder = Folder::new();
    let small = |tiny: Tiny| tiny.with("hidden_size", json!(32)).with("intermediate_size", json!(64));
    let decoder = Tiny::llama().with("tie_word_embeddings", json!(true));
    let lora = "--method lora --rank 32 --model";
    for (name, how, tiny, rows) in [
        ("generate", "--task text --steps 600 --lr 3e-3 --method full --model", decoder, data::colours()),
        ("classify", lora, small(Tiny::classifier(&["negative", "positive"])), data::reviews(400)),
        ("answer", lora, small(Tiny::reader()), data::questions(400)),
    ] {
        tiny.write(&folder, name);
        folder.write("rows.jsonl", rows);
        let how = if how == lora { format!("--steps 800 --lr 5e-3 {how}") } else { how.to_owned() };
        folder.edgeft(&format!("tune --data rows.jsonl --no-val --out {name}-run {how} {name}")).ok();
        folder.edgeft(&format!("quantize {name}-run --type q8_0 --out {name}.gguf")).ok();
    }
    small(Tiny::bert()).write(&folder, "embed");
    folder.edgeft("quantize embed --type q8_0 --out embed.gguf").ok();
    for name in ["generate", "classify", "answer", "embed"] {
        std::fs::create_dir_all(models()).expect("a folder");
        std::fs::write(models().join(format!("{name}.gguf")), folder.read(&format!("{name}.gguf"))).expect("a file");
    }
}
