//! The rules of the house, checked on its sources: who may import whom, where `unsafe` may stand, who may print.
//! Each rule comes with a snippet that breaks it and one that does not, so that no rule can rot into one that allows all.

mod source;

use source::Source;
use std::path::{Path, PathBuf};

/// A rule: what it says, how a file breaks it, and two snippets with the paths they would stand at.
struct Rule {
    says: &'static str,
    breaks: fn(&Source) -> Option<String>,
    bad: (&'static str, &'static str),
    good: (&'static str, &'static str),
}

const RULES: [Rule; 16] = [
    Rule {
        says: "runtime imports nothing of this workspace",
        breaks: |s| if s.is_in("runtime/src") { any(s, &["edgeft", "edgeft_quantize"]) } else { None },
        bad: ("runtime/src/model.rs", "use edgeft_quantize::codec;"),
        good: ("runtime/src/model.rs", "use edgeft_runtime::model::Model;"),
    },
    Rule {
        says: "neither runtime nor quantize knows candle",
        breaks: |s| match s.is_in("runtime/src") || s.is_in("quantize/src") {
            true => any(s, &["candle_core", "candle_nn", "candle_transformers"]),
            false => None,
        },
        bad: ("quantize/src/codec.rs", "fn f(t: candle_core::Tensor) {}"),
        good: ("src/merge.rs", "use candle_core::Tensor;"),
    },
    Rule {
        says: "the runtime's core never mentions its server",
        breaks: |s| {
            let outside = ["runtime/src/server", "runtime/src/lib", "runtime/src/bin"].iter().any(|m| s.is_in(m));
            if s.is_in("runtime/src") && !outside { any(s, &["crate::server", "axum", "tokio"]) } else { None }
        },
        bad: ("runtime/src/session.rs", "use crate::{error::Result, server::wire::Usage};"),
        good: ("runtime/src/server/wire.rs", "use crate::server::Error; use tokio::sync::mpsc;"),
    },
    Rule {
        says: "inside runtime: format <- kernels <- engine <- session <- batch <- server",
        breaks: |s| {
            let rank = RANKS.iter().position(|r| r.iter().any(|m| s.is_in(&format!("runtime/src/{m}"))))?;
            let later: Vec<String> = RANKS[rank + 1..].concat().iter().map(|m| format!("crate::{m}")).collect();
            later.iter().find_map(|m| s.mentions(m)).map(str::to_owned)
        },
        bad: ("runtime/src/kernels/avx2.rs", "use crate::engine::Engine;"),
        good: ("runtime/src/engine/cpu.rs", "use crate::{format::gguf::Gguf, kernels::Isa};"),
    },
    Rule {
        says: "tokenizer, chat, sample and constrain stand beside the engine and know nothing of it",
        breaks: |s| {
            let beside = ["tokenizer", "chat", "sample", "constrain", "error"];
            let beside = beside.iter().any(|m| s.is_in(&format!("runtime/src/{m}")));
            if beside { any(s, &["crate::engine", "crate::kernels", "crate::model", "crate::session"]) } else { None }
        },
        bad: ("runtime/src/sample.rs", "use crate::engine::Rows;"),
        good: ("runtime/src/tokenizer/ggml.rs", "use crate::format::gguf::Gguf;"),
    },
    Rule {
        says: "an engine never opens a file, but for the library that ONNX Runtime is",
        breaks: |s| {
            let engine = s.is_in("runtime/src/engine") && s.path != "runtime/src/engine/ort/library.rs";
            if engine { any(s, &["std::fs", "std::path", "memmap2", "File"]) } else { None }
        },
        bad: ("runtime/src/engine/cpu.rs", "let f = std::fs::read(path)?;"),
        good: ("runtime/src/format/map.rs", "use std::fs::File;"),
    },
    Rule {
        says: "quantize uses of runtime only format, tokenizer and chat, and their errors",
        breaks: |s| match s.is_in("quantize/src") {
            true => {
                let runtime = s.beyond("edgeft_runtime", &["format", "tokenizer", "chat", "error", "Error"]);
                runtime.map(str::to_owned).or_else(|| any(s, &["edgeft"]))
            }
            false => None,
        },
        bad: ("quantize/src/gguf.rs", "use edgeft_runtime::{format::gguf::Gguf, model::Model};"),
        good: ("quantize/src/gguf.rs", "use edgeft_runtime::{format::gguf::Gguf, tokenizer::Tokenizer};"),
    },
    Rule {
        says: "data, model and tune know of runtime only format, tokenizer and chat, and of quantize only codec",
        breaks: |s| {
            if !["src/data", "src/model", "src/tune"].iter().any(|m| s.is_in(m)) {
                return None;
            }
            let runtime = s.beyond("edgeft_runtime", &["format", "tokenizer", "chat"]);
            runtime.or(s.beyond("edgeft_quantize", &["codec"])).map(str::to_owned)
        },
        bad: ("src/tune/trainer.rs", "use edgeft_runtime::engine::Engine;"),
        good: ("src/data/chat.rs", "use edgeft_runtime::chat::ChatTemplate;"),
    },
    Rule {
        says: "only main.rs and the list of verbs in cli.rs import commands",
        breaks: |s| {
            let may = s.is_in("src/commands") || ["src/main.rs", "src/cli.rs", "src/lib.rs"].contains(&s.path.as_str());
            if s.is_in("src") && !may { any(s, &["crate::commands", "edgeft::commands"]) } else { None }
        },
        bad: ("src/demo.rs", "use crate::commands::tune::tune;"),
        good: ("src/commands/demo.rs", "use crate::commands::tune::tune;"),
    },
    Rule {
        says: "only commands and binaries print",
        breaks: |s| {
            let words = ["println", "eprintln", "print", "eprint", "dbg"];
            if s.may_speak() {
                None
            } else {
                words.iter().find(|w| s.code.contains(&format!("{w}!("))).map(|w| format!("{w}!"))
            }
        },
        bad: ("src/merge.rs", "fn f() { println!(\"merged\"); }"),
        good: ("src/commands/merge.rs", "fn f() { println!(\"merged\"); }"),
    },
    Rule {
        says: "only commands and binaries read the environment or exit (but for EDGEFT_ISA in kernels.rs)",
        breaks: |s| {
            if s.may_speak() || s.path == "runtime/src/kernels.rs" {
                return None;
            }
            // `std::env::consts` is the compiler's.
            let reads =
                |p: &&String| (p.starts_with("std::env") || p.starts_with("env::")) && !p.contains("env::consts");
            let read = s.paths.iter().find(reads).cloned();
            read.or_else(|| any(s, &["std::process::exit", "process::exit"]))
        },
        bad: ("src/tune/trainer.rs", "use std::env; fn f() { env::var(\"HOME\"); }"),
        good: ("src/export.rs", "const V: &str = env!(\"CARGO_PKG_VERSION\");"),
    },
    Rule {
        says: "unsafe stands in the named files alone",
        breaks: |s| {
            let may = UNSAFE.contains(&s.path.as_str()) || !s.path.ends_with(".rs");
            (s.has_word("unsafe") && !may).then(|| "unsafe".to_owned())
        },
        bad: ("src/model/network.rs", "fn f(p: *const u8) -> u8 { unsafe { *p } }"),
        good: ("src/model/network.rs", "// no unsafe here\n#![forbid(unsafe_code)]"),
    },
    Rule {
        says: "inner types of the runtime do not derive serde",
        breaks: |s| {
            let inner = ["format", "kernels", "engine", "session", "kv_cache", "batch", "sample"];
            let inner = inner.iter().any(|m| s.is_in(&format!("runtime/src/{m}")));
            if inner {
                ["Serialize", "Deserialize"].iter().find(|w| s.has_word(w)).map(|w| (*w).to_owned())
            } else {
                None
            }
        },
        bad: ("runtime/src/sample.rs", "#[derive(serde::Serialize)] struct S;"),
        good: ("runtime/src/server/wire.rs", "#[derive(serde::Serialize)] struct S;"),
    },
    Rule {
        says: "a folder has its .rs beside it, no mod.rs",
        breaks: |s| s.path.ends_with("/mod.rs").then(|| s.path.clone()),
        bad: ("src/tune/mod.rs", ""),
        good: ("src/tune.rs", ""),
    },
    Rule {
        says: "a file holds one idea: at most 460 lines, but for those listed",
        breaks: |s| {
            let (lines, most) = (s.text.lines().count(), if LONG.contains(&s.path.as_str()) { 600 } else { 460 });
            (lines > most).then(|| format!("{lines} lines, more than {most}"))
        },
        bad: ("src/tune/trainer.rs", LINES_461),
        good: ("runtime/src/format/gguf.rs", LINES_461),
    },
    Rule {
        says: "no path of somebody's machine",
        breaks: |s| MACHINES.iter().map(|m| format!("/{m}/")).find(|p| s.text.contains(p.as_str())),
        bad: ("README.md", concat!("run it in /ho", "me/me/edgeft")),
        good: ("README.md", "run it in ../shared or at home/"),
    },
];

/// Modules of the runtime, those below first.
const RANKS: [&[&str]; 6] = [&["format"], &["kernels"], &["engine", "model"], &["session"], &["batch"], &["server"]];

/// Where `unsafe` may stand, each block with its reason (clippy sees to that).
const UNSAFE: [&str; 17] = [
    "runtime/src/kernels/avx2.rs",
    "runtime/src/kernels/avx512.rs",
    "runtime/src/kernels/avx512/panels.rs",
    "runtime/src/kernels/avx512/single.rs",
    "runtime/src/kernels/avx512/supers.rs",
    "runtime/src/kernels/neon.rs",
    "runtime/src/kernels/neon/blocks.rs",
    "runtime/src/kernels/neon/shares.rs",
    "runtime/src/threads.rs",
    "runtime/src/format/map.rs",
    "runtime/src/capi.rs",
    "runtime/src/capi/border.rs",
    "runtime/src/capi/options.rs",
    "runtime/src/capi/results.rs",
    "runtime/src/capi/seeds.rs",
    "src/model/layers/mat.rs", // the call of the GEMM
    "src/model/load.rs",       // the line that maps safetensors, and the one that gives their pages back
];

/// Longer than others because their idea is: formats read field by field, a kernel for each block type, and tables of cases.
const LONG: [&str; 7] = [
    "runtime/src/format/gguf.rs",
    "runtime/src/kernels/scalar.rs",
    "runtime/src/chat.rs",
    "runtime/src/tokenizer.rs",
    "src/data/example.rs",
    "src/data/tokenize.rs",
    "tests/server.rs",
];

/// A text of one line more than a file may have.
const LINES_461: &str = match std::str::from_utf8(&[b'\n'; 461]) {
    Ok(lines) => lines,
    Err(_) => "",
};

/// First folders of paths that exist on one machine only.
const MACHINES: [&str; 5] = ["work", "home", "root", "Users", "farm"];

fn any(s: &Source, heads: &[&str]) -> Option<String> {
    heads.iter().find_map(|h| s.mentions(h)).map(str::to_owned)
}

impl Source {
    /// Commands and binaries; tests are not looked at by the rules that ask.
    fn may_speak(&self) -> bool {
        let speaks = self.is_in("src/commands") || self.is_in("runtime/src/bin") || self.is_in("src/bin");
        let rust = self.path.ends_with(".rs");
        speaks
            || self.path == "src/main.rs"
            || !rust
            || self.path.starts_with("tests/")
            || self.path.starts_with("benches/")
    }
}

fn top() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Every text of the project that a person wrote.
fn sources() -> Vec<Source> {
    let mut found = Vec::new();
    for part in
        ["src", "runtime", "quantize", "tests", "benches", "targets", ".ci", "README.md", "CHANGELOG.md", "Cargo.toml"]
    {
        collect(&top().join(part), &mut found);
    }
    found
}

fn collect(path: &Path, found: &mut Vec<Source>) {
    if path.is_dir() {
        if ["target", "fixtures"].iter().any(|skip| path.ends_with(skip)) {
            return;
        }
        let mut entries: Vec<PathBuf> =
            std::fs::read_dir(path).expect("a folder").map(|e| e.expect("an entry").path()).collect();
        entries.sort();
        entries.iter().for_each(|e| collect(e, found));
        return;
    }
    let name = path.strip_prefix(top()).expect("inside").to_string_lossy().replace('\\', "/");
    // Data (weights, locks) is not source.
    if let Ok(text) = std::fs::read_to_string(path)
        && !name.ends_with(".lock")
    {
        found.push(Source::new(&name, &text));
    }
}

#[test]
fn the_house_keeps_its_rules() {
    let sources = sources();
    assert!(sources.len() > 100, "only {} files found", sources.len());
    let mut broken = Vec::new();
    for rule in &RULES {
        for source in &sources {
            if let Some(what) = (rule.breaks)(source) {
                broken.push(format!("{}: {what}\n    {}", source.path, rule.says));
            }
        }
    }
    assert!(broken.is_empty(), "\n{}", broken.join("\n"));
}

#[test]
fn every_rule_catches_its_offender_and_lets_the_innocent_pass() {
    for rule in &RULES {
        let ((bad, code), (good, fine)) = (rule.bad, rule.good);
        assert!((rule.breaks)(&Source::new(bad, code)).is_some(), "not caught: {}", rule.says);
        assert_eq!((rule.breaks)(&Source::new(good, fine)), None, "{}", rule.says);
    }
}

#[test]
fn the_lists_of_exceptions_name_files_that_need_them() {
    for path in LONG {
        let lines = std::fs::read_to_string(top().join(path)).unwrap_or_else(|e| panic!("{path}: {e}")).lines().count();
        assert!(lines > 460, "{path} has {lines} lines and needs no exception");
    }
}

#[test]
fn the_runtime_is_small_by_default() {
    let text = std::fs::read_to_string(top().join("runtime/Cargo.toml")).expect("runtime/Cargo.toml");
    assert!(text.contains("\ndefault = []\n"), "edgeft-runtime has default features");
    for heavy in ["tokio", "axum", "llguidance", "ort", "wgpu", "pollster"] {
        let line =
            text.lines().find(|l| l.starts_with(&format!("{heavy} = {{"))).unwrap_or_else(|| panic!("no {heavy}"));
        assert!(line.contains("optional = true"), "{line}");
    }
    for never in ["candle", "rayon", "edgeft-quantize", "hf-hub", "ureq"] {
        assert!(!text.contains(never), "{never} in runtime/Cargo.toml");
    }
}
