//! `edgeft quantize` of a network of a known shape, f16 → a mix, beside a peer: whole processes, alternating, on the same machine.
//! Ratios, and whether both wrote the same blocks; the last line is JSON.
//!
//! ```text
//! cargo bench --bench quantize                                                       seconds and peak memory of edgeft alone
//! cargo bench --bench quantize -- --type q4_0 --shape llama-3.2-1b --threads 2       another mix, another shape
//! cargo bench --bench quantize -- --peer 'python3 quantize_llama_cpp.py' [--rounds 3]    beside the peer
//! cargo bench --bench quantize -- --best                                             the longer search
//! ```
//!
//! The peer is a command that takes `IN.gguf OUT.gguf TYPE --threads N` (IN is the same model in f16) and ends with one line of
//! JSON that has `seconds` and `peak_mib`. Both times are those of the work as each tells it, without starting the process.

mod beside;
mod shapes;

use anyhow::{Context, bail};
use beside::{last_line, middle, number, peer};
use candle_core::DType;
use edgeft_runtime::format::gguf::Gguf;
use edgeft_runtime::format::map::Mapped;
use serde_json::{Value, json};
use shapes::write_model;
use std::path::Path;
use std::process::Command;

struct Args {
    shape: String,
    ty: String,
    peer: Option<String>,
    best: bool,
    rounds: usize,
    threads: usize,
}

fn main() -> anyhow::Result<()> {
    let args = args()?;
    let folder = tempfile::tempdir()?;
    write_model(&args.shape, DType::F16, folder.path())?;
    let at = |name: &str| folder.path().join(name);
    if args.peer.is_some() {
        edgeft(&args, "f16", folder.path(), &at("f16.gguf"))?;
    }
    let (mut ours, mut theirs, mut same) = (Vec::new(), Vec::new(), None);
    for round in 0..args.rounds {
        let own = edgeft(&args, &args.ty, folder.path(), &at("ours.gguf"))?;
        println!("round {}: edgeft {:.2} s, {:.0} MiB", round + 1, own.0, own.1);
        ours.push(own);
        if let Some(peer) = &args.peer {
            let other = peer_run(&args, peer, &at("f16.gguf"), &at("theirs.gguf"))?;
            println!("         peer   {:.2} s, {:.0} MiB", other.0, other.1);
            theirs.push(other);
            same = Some(same_blocks(&at("ours.gguf"), &at("theirs.gguf"))?);
        }
    }
    let (seconds, peak) = (middle(&ours, |r| r.0), middle(&ours, |r| r.1));
    let speed = middle(&theirs, |r| r.0).zip(seconds).map(|(theirs, ours)| theirs / ours);
    let memory = middle(&theirs, |r| r.1).zip(peak).map(|(theirs, ours)| ours / theirs);
    if let (Some(speed), Some(memory)) = (speed, memory) {
        println!("edgeft / peer: {speed:.2} x its speed, {memory:.3} of its peak memory");
    }
    if let Some((same, all)) = same {
        println!("{same} of {all} tensors have the same bytes");
    }
    println!(
        "{}",
        json!({"bench": "quantize", "shape": args.shape, "type": args.ty, "best": args.best, "threads": args.threads,
            "rounds": args.rounds, "seconds": seconds, "peak_mib": peak, "ratio": {"speed": speed, "peak_mib": memory},
            "same_tensors": same.map(|s| s.0), "tensors": same.map(|s| s.1)})
    );
    Ok(())
}

fn args() -> anyhow::Result<Args> {
    let mut args = Args {
        shape: "smollm2-135m".into(),
        ty: "q4_k_m".into(),
        peer: None,
        best: false,
        rounds: 1,
        threads: std::thread::available_parallelism().map_or(1, usize::from),
    };
    let mut words = std::env::args().skip(1).filter(|a| a != "--bench");
    while let Some(flag) = words.next() {
        if flag == "--best" {
            args.best = true;
            continue;
        }
        let value = words.next().with_context(|| format!("{flag} needs a value"))?;
        let number = || value.parse::<usize>().with_context(|| format!("{flag} {value}: not a number"));
        match flag.as_str() {
            "--shape" => args.shape.clone_from(&value),
            "--type" => args.ty.clone_from(&value),
            "--peer" => args.peer = Some(value.clone()),
            "--rounds" => args.rounds = number()?,
            "--threads" => args.threads = number()?,
            _ => bail!("{flag}: known are --shape --type --peer --best --rounds --threads"),
        }
    }
    Ok(args)
}

/// Seconds and peak MiB.
fn edgeft(args: &Args, ty: &str, folder: &Path, out: &Path) -> anyhow::Result<(f64, f64)> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_edgeft"));
    command.arg("quantize").arg(folder).args([
        "--type",
        ty,
        "--force",
        "--json",
        "--threads",
        &args.threads.to_string(),
    ]);
    if args.best && ty != "f16" {
        command.arg("--best");
    }
    numbers(&last_line(&command.arg("--out").arg(out).output()?, "edgeft")?)
}

fn peer_run(args: &Args, words: &str, from: &Path, to: &Path) -> anyhow::Result<(f64, f64)> {
    let mut command = peer(words)?;
    command.arg(from).arg(to).args([&args.ty, "--threads", &args.threads.to_string()]);
    numbers(&last_line(&command.output()?, "the peer")?)
}

fn numbers(line: &Value) -> anyhow::Result<(f64, f64)> {
    Ok((number(line, "seconds")?, number(line, "peak_mib")?))
}

/// How many tensors of how many have the same type and bytes.
fn same_blocks(ours: &Path, theirs: &Path) -> anyhow::Result<(usize, usize)> {
    let (a, b) = (Mapped::open(ours)?, Mapped::open(theirs)?);
    let (ours, theirs) = (Gguf::parse(&a)?, Gguf::parse(&b)?);
    let same = ours
        .tensors
        .iter()
        .filter(|t| theirs.tensor(&t.name).is_some_and(|u| u.ty == t.ty && ours.data(&a, t) == theirs.data(&b, u)));
    Ok((same.count(), ours.tensors.len()))
}
