//! `edgeft-run` as typed: what it says of itself, and its exit codes. Bundles are served in the workspace's own tests.

use std::process::{Command, Output};

fn edgeft_run(line: &str) -> Output {
    let words = line.split_whitespace();
    Command::new(env!("CARGO_BIN_EXE_edgeft-run")).args(words).output().expect("the binary starts")
}

/// Exit code, and words of stderr.
#[track_caller]
fn ends(line: &str, code: i32, words: &[&str]) {
    let output = edgeft_run(line);
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "edgeft-run {line}: {text}");
    for word in words {
        assert!(text.contains(word), "edgeft-run {line} does not say `{word}`: {text}");
    }
}

#[test]
fn it_says_its_version_and_whether_it_serves() {
    let text = String::from_utf8(edgeft_run("--version").stdout).expect("UTF-8");
    let mut lines = text.lines();
    assert_eq!(lines.next(), Some(concat!("edgeft-run ", env!("CARGO_PKG_VERSION"))));
    let serves = lines.next() == Some("edgeft-run serves bundles of format 1");
    assert_eq!(serves, cfg!(feature = "server"), "{text}");
    assert!(text.contains(&format!("format {}", edgeft_runtime::format::bundle::VERSION)) || !serves, "{text}");
}

#[test]
fn wrong_usage_ends_in_2_and_names_the_thing() {
    ends("walk", 2, &["walk", "run, serve, bench, health"]);
    ends("run missing.gguf -p a", 2, &["missing.gguf", "no such file"]);
    ends("bench src", 2, &["manifest.json", "no such file", "edgeft package"]);
    ends("serve", 2, &["MODEL", "is missing", "bundle"]);
}

#[cfg(feature = "server")]
#[test]
fn health_of_a_port_where_nobody_listens_ends_in_1() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("its number").port();
    ends(&format!("health --port {free}"), 1, &["/healthz"]);
    ends("health --host no.such.host.invalid", 2, &["--host no.such.host.invalid"]);
}

#[cfg(not(feature = "server"))]
#[test]
fn without_the_feature_serve_says_how_it_is_built() {
    ends("serve model.gguf", 2, &["cargo build --release -p edgeft-runtime --features server"]);
}
