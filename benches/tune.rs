//! LoRA on a network of a known shape beside a peer: whole processes, alternating, on the same machine. Ratios; the last line is
//! JSON.
//!
//! ```text
//! cargo bench --bench tune                                                          tokens/s and peak memory of edgeft alone
//! cargo bench --bench tune -- --peer 'python3 bench_peft_lora.py' [--rounds 3]      beside the peer
//! cargo bench --bench tune -- --shape llama-3.2-1b --batch 1 --seq 512              another shape
//! ```
//!
//! The peer is a command that takes `--shape --batch --seq --rank --steps --threads` and ends with one line of JSON that has
//! `tokens_per_s` and `peak_mib`. Speed is the median over the steps but the first, in both.

mod beside;
mod shapes;

use anyhow::{Context, bail};
use beside::{last_line, middle, number, peer};
use candle_core::{DType, Device, Tensor};
use edgeft_runtime::measure::stats::median;
use serde_json::{Value, json};
use shapes::write_model;
use std::collections::HashMap;
use std::path::Path;
use std::process::Command;

struct Args {
    shape: String,
    peer: Option<String>,
    rounds: usize,
    batch: usize,
    seq: usize,
    rank: usize,
    steps: usize,
    threads: usize,
}

fn main() -> anyhow::Result<()> {
    let args = args()?;
    let folder = tempfile::tempdir()?;
    let vocab = write_model(&args.shape, DType::F32, folder.path())?;
    write_rows(&args, vocab, folder.path())?;
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for round in 0..args.rounds {
        let own = edgeft(&args, folder.path())?;
        println!("round {}: edgeft {:.1} tokens/s, {:.0} MiB", round + 1, own.0, own.1);
        ours.push(own);
        if let Some(peer) = &args.peer {
            let other = peer_run(&args, peer)?;
            println!("         peer   {:.1} tokens/s, {:.0} MiB", other.0, other.1);
            theirs.push(other);
        }
    }
    let (speed, peak) = (middle(&ours, |r| r.0), middle(&ours, |r| r.1));
    let ratio = |own: Option<f64>, of: fn(&(f64, f64)) -> f64| Some(own? / middle(&theirs, of)?);
    let ratios = (ratio(speed, |r| r.0), ratio(peak, |r| r.1));
    if let (Some(speed), Some(peak)) = ratios {
        println!("edgeft / peer: {speed:.2} of its tokens/s, {peak:.3} of its peak memory");
    }
    println!(
        "{}",
        json!({"shape": args.shape, "batch": args.batch, "seq": args.seq, "rank": args.rank, "threads": args.threads,
            "rounds": args.rounds, "tokens_per_s": speed, "peak_mib": peak, "ratio": {"tokens_per_s": ratios.0, "peak_mib": ratios.1}})
    );
    Ok(())
}

fn args() -> anyhow::Result<Args> {
    let mut args = Args {
        shape: "smollm2-135m".into(),
        peer: None,
        rounds: 1,
        batch: 4,
        seq: 256,
        rank: 16,
        steps: 5,
        threads: std::thread::available_parallelism().map_or(1, usize::from),
    };
    let mut words = std::env::args().skip(1).filter(|a| a != "--bench");
    while let Some(flag) = words.next() {
        let value = words.next().with_context(|| format!("{flag} needs a value"))?;
        let number = || value.parse::<usize>().with_context(|| format!("{flag} {value}: not a number"));
        match flag.as_str() {
            "--shape" => args.shape.clone_from(&value),
            "--peer" => args.peer = Some(value.clone()),
            "--rounds" => args.rounds = number()?,
            "--batch" => args.batch = number()?,
            "--seq" => args.seq = number()?,
            "--rank" => args.rank = number()?,
            "--steps" => args.steps = number()?,
            "--threads" => args.threads = number()?,
            _ => bail!("{flag}: known are --shape --peer --rounds --batch --seq --rank --steps --threads"),
        }
    }
    Ok(args)
}

/// Random rows: what they are changes no time.
fn write_rows(args: &Args, vocab: usize, folder: &Path) -> anyhow::Result<()> {
    let rows = args.batch * args.steps;
    let ids: Vec<i64> = (0..rows * args.seq).map(|i| (i as i64 * 7919 + 13) % vocab as i64).collect();
    let ids = Tensor::from_vec(ids, (rows, args.seq), &Device::Cpu)?;
    let mask = ids.ones_like()?;
    let named = [("input_ids", ids.clone()), ("attention_mask", mask), ("labels", ids)];
    candle_core::safetensors::save(&HashMap::from(named), folder.join("rows.safetensors"))?;
    Ok(())
}

/// Tokens a second and peak MiB.
fn edgeft(args: &Args, folder: &Path) -> anyhow::Result<(f64, f64)> {
    let out = folder.join("run");
    let text = format!(
        "tune --task text --batch {} --steps {} --rank {} --max-len {} --threads {} --force --json",
        args.batch, args.steps, args.rank, args.seq, args.threads
    );
    let ran = Command::new(env!("CARGO_BIN_EXE_edgeft"))
        .args(text.split(' '))
        .arg("--model")
        .arg(folder)
        .arg("--data")
        .arg(folder.join("rows.safetensors"))
        .arg("--out")
        .arg(&out)
        .output()?;
    let line = last_line(&ran, "edgeft")?;
    let metrics = std::fs::read_to_string(out.join("metrics.jsonl"))?;
    let ends: Vec<f64> =
        metrics.lines().filter_map(|l| serde_json::from_str::<Value>(l).ok()?.get("seconds")?.as_f64()).collect();
    let steps: Vec<f64> = ends.windows(2).map(|w| w[1] - w[0]).collect();
    let step = median(&steps).context("fewer than two steps")?;
    Ok(((args.batch * args.seq) as f64 / step, number(&line, "peak_mib")?))
}

fn peer_run(args: &Args, words: &str) -> anyhow::Result<(f64, f64)> {
    let ran = peer(words)?
        .args(["--shape", &args.shape, "--batch", &args.batch.to_string(), "--seq", &args.seq.to_string()])
        .args(["--rank", &args.rank.to_string(), "--steps", &(args.steps - 1).to_string()])
        .args(["--threads", &args.threads.to_string()])
        .output()?;
    let line = last_line(&ran, "the peer")?;
    Ok((number(&line, "tokens_per_s")?, number(&line, "peak_mib")?))
}
