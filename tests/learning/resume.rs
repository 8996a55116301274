//! A run that was killed, or stopped by Ctrl-C, goes on to the bytes of a run that was not.

use crate::common::{Folder, Ran, data, tiny::Tiny};
use serde_json::Value;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

const FLAGS: &str =
    "--model base --data d.jsonl --rank 4 --steps 240 --batch 4 --dropout 0.1 --save-every 7 --eval-every 50 --lr 1e-3";

fn folder() -> Folder {
    let folder = Folder::new();
    Tiny::llama().write(&folder, "base");
    folder.write("d.jsonl", data::chats(60));
    folder
}

/// (step, loss) of every line, validation left out.
fn losses(folder: &Folder, run: &str) -> Vec<(u64, f64)> {
    let text = String::from_utf8(folder.read(&format!("{run}/metrics.jsonl"))).unwrap();
    let step = |v: Value| Some((v["step"].as_u64()?, v["loss"].as_f64()?));
    text.lines().filter_map(|l| step(serde_json::from_str(l).unwrap())).collect()
}

/// Starts a run and waits until it has taken some steps.
fn started(folder: &Folder, run: &str) -> Child {
    let mut command = folder.command(&format!("tune {FLAGS} --out {run} --json"));
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("starts");
    let (metrics, since) = (folder.at(&format!("{run}/metrics.jsonl")), Instant::now());
    while std::fs::read_to_string(&metrics).map_or(0, |t| t.lines().count()) < 20 {
        assert!(since.elapsed() < Duration::from_secs(60), "no step in a minute");
        std::thread::sleep(Duration::from_millis(2));
    }
    child
}

/// The resumed run must be the whole run, byte for byte.
fn goes_on(folder: &Folder, run: &str) {
    assert!(!folder.at(&format!("{run}/adapter_model.safetensors")).exists(), "the run was over before it was stopped");
    folder.edgeft(&format!("eval {run} --data d.jsonl")).code(2); // half a run is no model
    let json = folder.edgeft(&format!("tune {FLAGS} --out {run} --resume --json")).ok().json();
    assert_eq!((&json["steps"], &json["stopped_by"]), (&240.into(), &"steps".into()));
    folder.edgeft(&format!("tune {FLAGS} --out whole")).ok();
    let file = |run: &str, name: &str| folder.read(&format!("{run}/{name}"));
    for name in ["adapter_model.safetensors", "adapter_config.json", "tune.toml"] {
        assert!(file(run, name) == file("whole", name), "{name} differs");
    }
    assert_eq!(losses(folder, run), losses(folder, "whole"));
}

#[test]
fn a_killed_run_goes_on_to_the_same_bytes() {
    let folder = folder();
    let mut child = started(&folder, "run");
    child.kill().expect("killed");
    child.wait().expect("gone");
    goes_on(&folder, "run");
}

#[cfg(unix)]
#[test]
fn an_interrupted_run_ends_with_130_keeps_its_steps_and_goes_on_to_the_same_bytes() {
    let folder = folder();
    let child = started(&folder, "run");
    let sent = std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status().expect("kill");
    assert!(sent.success());
    let ran = Ran::new("tune", child.wait_with_output().expect("ends")).code(130);
    let json = ran.json();
    assert_eq!(json["stopped_by"], "interrupted");
    let done = json["steps"].as_u64().expect("steps");
    assert!((20..240).contains(&done), "{done}");
    assert_eq!(losses(&folder, "run").len() as u64, done);
    goes_on(&folder, "run");
}

#[test]
fn a_resumed_run_refuses_another_flag_by_name() {
    let folder = folder();
    folder.edgeft("tune --model base --data d.jsonl --out run --rank 4 --steps 2").ok();
    let ran = folder.edgeft("tune --model base --data d.jsonl --out run --rank 8 --steps 2 --resume").code(2);
    assert!(ran.stderr.contains("--rank is 8, but the run was begun with 4"), "{}", ran.stderr);
    let ran = folder.edgeft("tune --model base --data other.jsonl --out run --resume").code(2);
    assert!(ran.stderr.contains("--data"), "{}", ran.stderr);
}

#[test]
fn the_same_seed_gives_the_same_bytes_and_another_seed_others() {
    let folder = folder();
    let run = |name: &str, seed: u64| {
        let line = "tune --model base --data d.jsonl --rank 4 --steps 12 --batch 4 --dropout 0.1 --threads 2";
        folder.edgeft(&format!("{line} --out {name} --seed {seed}")).ok();
        folder.read(&format!("{name}/adapter_model.safetensors"))
    };
    let a = run("a", 1);
    assert!(a == run("b", 1));
    assert!(a != run("c", 2));
}
