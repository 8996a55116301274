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

use anyhow::{Context, bail};
use candle_core::{DType, Device, Tensor};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::path::Path;
use std::process::Command;

/// Layers, hidden size, heads, key heads, feed-forward, vocabulary.
const SHAPES: [(&str, [usize; 6]); 3] = [
    ("smollm2-135m", [30, 576, 9, 3, 1536, 49152]),
    ("smollm2-360m", [32, 960, 15, 5, 2560, 49152]),
    ("llama-3.2-1b", [16, 2048, 32, 8, 8192, 128_256]),
];

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
    write_model(&args, folder.path())?;
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
    let median = |runs: &[(f64, f64)], of: fn(&(f64, f64)) -> f64| {
        edgeft_runtime::measure::stats::median(&runs.iter().map(of).collect::<Vec<_>>())
    };
    let (speed, peak) = (median(&ours, |r| r.0), median(&ours, |r| r.1));
    let ratio = |own: Option<f64>, of: fn(&(f64, f64)) -> f64| Some(own? / median(&theirs, of)?);
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

/// Random weights and random rows: what they are changes no time.
fn write_model(args: &Args, folder: &Path) -> anyhow::Result<()> {
    let Some((_, shape)) = SHAPES.iter().find(|(name, _)| *name == args.shape) else {
        bail!("--shape {}: known are {}", args.shape, SHAPES.map(|s| s.0).join(", "));
    };
    let [layers, c, h, k, f, v] = *shape;
    let d = c / h;
    let noise = |rows: usize, cols: usize| Tensor::randn(0f32, 0.02, (rows, cols), &Device::Cpu);
    let ones = || Tensor::ones(c, DType::F32, &Device::Cpu);
    let mut tensors = HashMap::new();
    tensors.insert("model.embed_tokens.weight".to_owned(), noise(v, c)?);
    tensors.insert("model.norm.weight".to_owned(), ones()?);
    for i in 0..layers {
        let at = |part: &str| format!("model.layers.{i}.{part}.weight");
        tensors.insert(at("input_layernorm"), ones()?);
        tensors.insert(at("post_attention_layernorm"), ones()?);
        let matrices = [
            ("self_attn.q_proj", c, c),
            ("self_attn.k_proj", k * d, c),
            ("self_attn.v_proj", k * d, c),
            ("self_attn.o_proj", c, c),
            ("mlp.gate_proj", f, c),
            ("mlp.up_proj", f, c),
            ("mlp.down_proj", c, f),
        ];
        for (name, rows, cols) in matrices {
            tensors.insert(at(name), noise(rows, cols)?);
        }
    }
    candle_core::safetensors::save(&tensors, folder.join("model.safetensors"))?;
    let config = json!({"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": v, "hidden_size": c,
        "intermediate_size": f, "num_hidden_layers": layers, "num_attention_heads": h, "num_key_value_heads": k,
        "max_position_embeddings": 8192, "rms_norm_eps": 1e-6, "rope_theta": 1e4, "hidden_act": "silu",
        "tie_word_embeddings": true});
    std::fs::write(folder.join("config.json"), config.to_string())?;
    let rows = args.batch * args.steps;
    let ids: Vec<i64> = (0..rows * args.seq).map(|i| (i as i64 * 7919 + 13) % v as i64).collect();
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
    let step = edgeft_runtime::measure::stats::median(&steps).context("fewer than two steps")?;
    Ok(((args.batch * args.seq) as f64 / step, line["peak_mib"].as_f64().context("no peak_mib")?))
}

fn peer_run(args: &Args, peer: &str) -> anyhow::Result<(f64, f64)> {
    let mut words = peer.split_whitespace();
    let ran = Command::new(words.next().context("--peer is empty")?)
        .args(words)
        .args(["--shape", &args.shape, "--batch", &args.batch.to_string(), "--seq", &args.seq.to_string()])
        .args(["--rank", &args.rank.to_string(), "--steps", &(args.steps - 1).to_string()])
        .args(["--threads", &args.threads.to_string()])
        .output()?;
    let line = last_line(&ran, "the peer")?;
    let number = |key: &str| line[key].as_f64().with_context(|| format!("the peer's last line has no {key}: {line}"));
    Ok((number("tokens_per_s")?, number("peak_mib")?))
}

fn last_line(ran: &std::process::Output, who: &str) -> anyhow::Result<Value> {
    if !ran.status.success() {
        bail!("{who} ended with {}: {}", ran.status, String::from_utf8_lossy(&ran.stderr));
    }
    let text = String::from_utf8_lossy(&ran.stdout);
    let last = text.lines().last().with_context(|| format!("{who} printed nothing"))?;
    serde_json::from_str(last).with_context(|| format!("{who}: its last line is no JSON: {last}"))
}
