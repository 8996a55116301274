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

use anyhow::{Context, bail};
use candle_core::{DType, Device, Tensor};
use edgeft_runtime::format::gguf::Gguf;
use edgeft_runtime::format::map::Mapped;
use edgeft_runtime::measure::stats::median;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::path::Path;
use std::process::{Command, Output};

/// Layers, hidden size, heads, key heads, feed-forward, vocabulary.
const SHAPES: [(&str, [usize; 6]); 3] = [
    ("smollm2-135m", [30, 576, 9, 3, 1536, 49152]),
    ("smollm2-360m", [32, 960, 15, 5, 2560, 49152]),
    ("llama-3.2-1b", [16, 2048, 32, 8, 8192, 128_256]),
];

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
    write_model(&args.shape, folder.path())?;
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
    let middle = |runs: &[(f64, f64)], of: fn(&(f64, f64)) -> f64| median(&runs.iter().map(of).collect::<Vec<_>>());
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

/// Random weights in f16: time and memory depend on shapes.
fn write_model(shape: &str, folder: &Path) -> anyhow::Result<()> {
    let Some((_, dims)) = SHAPES.iter().find(|(name, _)| *name == shape) else {
        bail!("--shape {shape}: known are {}", SHAPES.map(|s| s.0).join(", "));
    };
    let [layers, c, h, k, f, v] = *dims;
    let d = c / h;
    let noise = |rows: usize, cols: usize| Tensor::randn(0f32, 0.02, (rows, cols), &Device::Cpu)?.to_dtype(DType::F16);
    let ones = || Tensor::ones(c, DType::F16, &Device::Cpu);
    let mut tensors = HashMap::new();
    tensors.insert("model.embed_tokens.weight".to_owned(), noise(v, c)?);
    tensors.insert("model.norm.weight".to_owned(), ones()?);
    for i in 0..layers {
        let at = |part: &str| format!("model.layers.{i}.{part}.weight");
        tensors.insert(at("input_layernorm"), ones()?);
        tensors.insert(at("post_attention_layernorm"), ones()?);
        for (name, rows, cols) in [
            ("self_attn.q_proj", c, c),
            ("self_attn.k_proj", k * d, c),
            ("self_attn.v_proj", k * d, c),
            ("self_attn.o_proj", c, c),
            ("mlp.gate_proj", f, c),
            ("mlp.up_proj", f, c),
            ("mlp.down_proj", c, f),
        ] {
            tensors.insert(at(name), noise(rows, cols)?);
        }
    }
    candle_core::safetensors::save(&tensors, folder.join("model.safetensors"))?;
    let config = json!({"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": v, "hidden_size": c,
        "intermediate_size": f, "num_hidden_layers": layers, "num_attention_heads": h, "num_key_value_heads": k,
        "max_position_embeddings": 8192, "rms_norm_eps": 1e-6, "rope_theta": 1e4, "hidden_act": "silu",
        "tie_word_embeddings": true});
    std::fs::write(folder.join("config.json"), config.to_string())?;
    Ok(())
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

fn peer_run(args: &Args, peer: &str, from: &Path, to: &Path) -> anyhow::Result<(f64, f64)> {
    let mut words = peer.split_whitespace();
    let mut command = Command::new(words.next().context("--peer is empty")?);
    command.args(words).arg(from).arg(to).args([&args.ty, "--threads", &args.threads.to_string()]);
    numbers(&last_line(&command.output()?, "the peer")?)
}

fn numbers(line: &Value) -> anyhow::Result<(f64, f64)> {
    let number = |key: &str| line[key].as_f64().with_context(|| format!("no {key} in {line}"));
    Ok((number("seconds")?, number("peak_mib")?))
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

fn last_line(ran: &Output, who: &str) -> anyhow::Result<Value> {
    if !ran.status.success() {
        bail!("{who} ended with {}: {}", ran.status, String::from_utf8_lossy(&ran.stderr));
    }
    let text = String::from_utf8_lossy(&ran.stdout);
    let last = text.lines().last().with_context(|| format!("{who} printed nothing"))?;
    serde_json::from_str(last).with_context(|| format!("{who}: its last line is no JSON: {last}"))
}
