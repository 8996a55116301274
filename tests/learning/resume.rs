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

/// Killed again and again, wherever it happens to be: while it reads, between two steps, in the middle of a save.
#[test]
fn a_run_killed_at_any_moments_goes_on_to_the_same_bytes() {
    let folder = folder();
    let flags = "--model base --data d.jsonl --rank 4 --steps 160 --batch 3 --accumulate 2 --dropout 0.1 --neftune 5 \
                 --save-every 3 --eval-every 20 --lr 1e-3";
    let mut kills = 0;
    for draw in 0..12 {
        let again = if folder.at("run/tune.toml").exists() { "--resume" } else { "--force" };
        let mut command = folder.command(&format!("tune {flags} --out run {again}"));
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("starts");
        let ms = 20 + edgeft::rng::bits(7, 0, draw) % 400;
        std::thread::sleep(Duration::from_millis(ms));
        if child.try_wait().expect("a child").is_some() {
            break;
        }
        child.kill().expect("killed");
        child.wait().expect("gone");
        kills += 1;
    }
    assert!(kills >= 3, "the run was over after {kills} kills");
    if !folder.at("run/adapter_model.safetensors").exists() {
        folder.edgeft(&format!("tune {flags} --out run --resume")).ok();
    }
    folder.edgeft(&format!("tune {flags} --out whole")).ok();
    for name in ["adapter_model.safetensors", "adapter_config.json", "tune.toml"] {
        assert!(folder.read(&format!("run/{name}")) == folder.read(&format!("whole/{name}")), "{name} differs");
    }
    assert_eq!(losses(&folder, "run"), losses(&folder, "whole"));
}

#[test]
fn a_budget_ends_in_time_with_the_rate_at_its_end_and_the_steps_it_decided_are_kept() {
    let folder = folder();
    let line =
        "tune --model base --data d.jsonl --rank 4 --epochs 100000 --batch 4 --dropout 0.1 --lr 1e-3 --eval-every 200";
    let since = Instant::now();
    let json = folder.edgeft(&format!("{line} --budget 6s --out run --json")).ok().json();
    assert!(since.elapsed() < Duration::from_millis(6800), "{:?}", since.elapsed());
    assert_eq!(json["stopped_by"], "budget");
    assert!(json["val"].is_f64() && json["steps"].as_u64().expect("steps") > 20, "{json}");
    assert!(folder.at("run/adapter_model.safetensors").exists());
    let metrics = String::from_utf8(folder.read("run/metrics.jsonl")).expect("UTF-8");
    let rates: Vec<f64> =
        metrics.lines().filter_map(|l| serde_json::from_str::<Value>(l).expect("JSON")["lr"].as_f64()).collect();
    let (peak, last) = (rates.iter().copied().fold(0.0, f64::max), rates[rates.len() - 1]);
    assert!(last < 0.35 * peak, "the rate ended at {last} of {peak}");
    // Once decided, the number of steps is the run's: it goes on to it after an interruption.
    let mut child =
        folder.command(&format!("{line} --budget 8s --out other --json")).stdout(Stdio::null()).spawn().unwrap();
    let planned = |folder: &Folder| -> Option<u64> {
        let inside = folder.at("other/checkpoints");
        let newest = std::fs::read_dir(inside).ok()?.filter_map(|e| {
            let text = std::fs::read_to_string(e.ok()?.path().join("state.json")).ok()?;
            serde_json::from_str::<Value>(&text).ok()?["planned"].as_u64()
        });
        newest.max()
    };
    while planned(&folder).is_none() {
        assert!(child.try_wait().expect("a child").is_none(), "over before it was decided");
        std::thread::sleep(Duration::from_millis(5));
    }
    child.kill().expect("killed");
    child.wait().expect("gone");
    let decided = planned(&folder).expect("planned");
    let json = folder.edgeft(&format!("{line} --budget 8s --out other --resume --json")).ok().json();
    assert!(json["steps"].as_u64().expect("steps") <= decided && json["stopped_by"] == "budget", "{json} of {decided}");
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
