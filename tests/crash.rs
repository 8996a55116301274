//! Whatever ends a command, the old bytes or the whole new ones stand under the final name, and nothing of its own beside.

use crate::common::{Folder, data, tiny::Tiny};

fn folder() -> Folder {
    let folder = Folder::new();
    Tiny::llama().write(&folder, "base");
    folder.write("d.jsonl", data::chats(30));
    folder.edgeft("tune --model base --data d.jsonl --out run --steps 2 --rank 2 --no-val").ok();
    folder
}

#[test]
fn an_output_that_exists_is_refused_and_force_replaces_it() {
    let folder = folder();
    for (line, out) in [
        ("tune --model base --data d.jsonl --steps 1 --rank 2 --no-val --out run", "run/tune.toml"),
        ("merge run --out merged", "merged/config.json"),
        ("quantize run --type q8_0 --out m.gguf", "m.gguf"),
        ("quantize run --type q8_0,f16 --out both", "both/f16.gguf"),
    ] {
        if !folder.at(out).exists() {
            folder.edgeft(line).ok();
        }
        let before = folder.read(out);
        let ran = folder.edgeft(line).code(2);
        assert!(ran.stderr.contains("exists") && ran.stderr.contains("--force"), "edgeft {line}\n{}", ran.stderr);
        assert!(folder.read(out) == before, "edgeft {line} changed {out}");
        folder.write(out, "something else");
        folder.edgeft(&format!("{line} --force")).ok();
        assert_ne!(folder.read(out), b"something else", "edgeft {line} --force");
    }
    let eval = "eval run --data d.jsonl --predictions p.jsonl";
    folder.edgeft(eval).ok();
    assert!(folder.edgeft(eval).code(2).stderr.contains("p.jsonl exists"));
    assert!(folder.names("").iter().all(|n| !n.starts_with('.')), "{:?}", folder.names(""));
}

#[test]
fn force_never_removes_a_folder_that_is_no_run() {
    let folder = folder();
    folder.write("precious/letter.txt", "do not lose this");
    let ran = folder.edgeft("tune --model base --data d.jsonl --out precious --force --steps 1 --no-val").code(2);
    assert!(ran.stderr.contains("precious is not a RUN folder"), "{}", ran.stderr);
    assert_eq!(folder.read("precious/letter.txt"), b"do not lose this");
}

/// A limit on the size of a file stands in for a full disk: the write fails in the middle, wherever the disk is.
#[cfg(unix)]
mod full_disk {
    use super::*;

    /// `ulimit -f` counts blocks of 512 or 1024 bytes; 16 of them hold small files and no weights.
    const FULL: &str = "trap '' XFSZ; ulimit -f 16; exec \"$EDGEFT\"";

    #[test]
    fn a_failed_write_leaves_nothing_under_the_final_name_or_beside_it() {
        let folder = folder();
        let before = folder.names("");
        for line in
            ["quantize run --type f32 --out m.gguf", "quantize run --type f32,f16 --out both", "merge run --out merged"]
        {
            let ran = folder.shell(&format!("{FULL} {line}")).code(1);
            assert!(ran.stderr.starts_with("error: cannot "), "edgeft {line}\n{}", ran.stderr);
            assert!(
                ran.stderr.contains("m.gguf") || ran.stderr.contains("both") || ran.stderr.contains("merged"),
                "{}",
                ran.stderr
            );
            let left: Vec<String> =
                folder.names("").into_iter().filter(|n| !before.contains(n) && n != "both").collect();
            assert!(left.is_empty(), "edgeft {line} left {left:?}");
        }
        assert!(!folder.at("both").exists() || folder.names("both").is_empty(), "{:?}", folder.names("both"));
    }

    #[test]
    fn a_failed_forced_write_leaves_the_old_bytes() {
        let folder = folder();
        folder.edgeft("quantize run --type q4_0 --out m.gguf").ok();
        folder.edgeft("merge run --out merged").ok();
        let (file, merged) = (folder.read("m.gguf"), folder.read("merged/model.safetensors"));
        for line in ["quantize run --type f32 --out m.gguf --force", "merge run --out merged --force"] {
            folder.shell(&format!("{FULL} {line}")).code(1);
        }
        assert!(folder.read("m.gguf") == file && folder.read("merged/model.safetensors") == merged);
        assert!(folder.names("").iter().all(|n| !n.starts_with('.')), "{:?}", folder.names(""));
    }

    #[test]
    fn a_run_that_could_not_save_is_no_model_and_goes_on_when_there_is_room() {
        let folder = folder();
        let line = "tune --model base --data d.jsonl --out new --steps 12 --save-every 5 --rank 8 --no-val";
        let ran = folder.shell(&format!("{FULL} {line}")).code(1);
        assert!(ran.stderr.contains("cannot write"), "{}", ran.stderr);
        assert!(!folder.at("new/adapter_model.safetensors").exists());
        let ran = folder.edgeft("quantize new --type q8_0 --out m.gguf").code(2);
        assert!(ran.stderr.contains("not finished") && ran.stderr.contains("--resume"), "{}", ran.stderr);
        folder.edgeft(&format!("{line} --resume")).ok();
        folder.edgeft(&line.replace("new", "whole")).ok();
        let adapter = |run: &str| folder.read(&format!("{run}/adapter_model.safetensors"));
        assert!(adapter("new") == adapter("whole"));
    }
}

/// Bad input is found before anything is written.
#[test]
fn a_refused_command_leaves_nothing() {
    let folder = folder();
    folder.write("bad.jsonl", "{\"messages\": [{\"role\": \"user\"}]}\n");
    let before = folder.names("");
    for line in [
        "tune --model base --data bad.jsonl --out new",
        "tune --model base --data d.jsonl --out new --rank 0",
        "tune --model base --data d.jsonl --out new --targets nothing_of_the_kind",
        "merge base --out new",
        "quantize base --type q9 --out new",
        "quantize base --type q4_k_m --strict-types --out new",
        "eval run --data bad.jsonl --predictions new",
    ] {
        folder.edgeft(line).code(2);
        assert_eq!(folder.names(""), before, "edgeft {line}");
    }
}

#[cfg(unix)]
#[test]
fn outputs_are_as_readable_as_any_file() {
    use std::os::unix::fs::PermissionsExt;
    let folder = folder();
    folder.edgeft("merge run --out merged").ok();
    folder.edgeft("quantize run --type q8_0 --out m.gguf").ok();
    for name in [
        "run/adapter_model.safetensors",
        "run/tune.toml",
        "run/metrics.jsonl",
        "merged/model.safetensors",
        "merged/config.json",
        "m.gguf",
    ] {
        let mode = std::fs::metadata(folder.at(name)).expect(name).permissions().mode();
        assert_eq!(mode & 0o444, 0o444, "{name} has mode {mode:o}");
    }
}
