//! `edgeft targets`: the device profiles, where their figures are from, and what they predict of a model.
//!
//! - [`rank`]: candidates for a device and a task

mod rank;

use super::show;
use crate::cli::Global;
use crate::data::schema::Task as TaskName;
use crate::profile::prediction::rate;
use crate::profile::{Footprint, Position, Prediction, Profile, this};
use serde_json::{Value, json};
use std::path::PathBuf;
use std::process::ExitCode;

/// Flags of `targets`.
#[derive(clap::Args)]
#[command(after_help = "`this` is the machine at hand, measured when it is asked for.\n\n\
    Example:\n  edgeft targets\n  edgeft targets raspberry-pi-5\n  edgeft targets --model model.gguf\n  \
    edgeft targets this --model model.gguf --model RUN\n  \
    edgeft targets raspberry-pi-5 --task chat --models models/*\n\
    Next:\n  edgeft package model.gguf --target raspberry-pi-5 --out bundle\n  edgeft bench model.gguf --target this")]
pub struct TargetsArgs {
    /// Profile to show in full
    #[arg(value_name = "NAME")]
    pub name: Option<String>,
    /// Predict this model: a GGUF file as it is; a folder, a RUN or `nano` in the type that suits the device. May be repeated
    #[arg(long = "model", value_name = "MODEL")]
    pub models: Vec<String>,
    /// Rank these models for the device: models, or folders of models
    #[arg(long = "models", value_name = "DIR", num_args = 1.., requires = "name", conflicts_with = "models")]
    pub candidates: Vec<PathBuf>,
    /// With --models: what they are to be tuned for
    #[arg(long, value_enum, requires = "candidates")]
    pub task: Option<TaskName>,
    /// Tokens that prompt and answer may hold together [default: the model's own, at most 4096]
    #[arg(long, value_name = "TOKENS", value_parser = super::run::at_least_one)]
    pub ctx: Option<usize>,
}

/// Runs the verb.
pub fn run(args: &TargetsArgs, global: &Global) -> anyhow::Result<ExitCode> {
    match &args.name {
        Some(name) if !args.candidates.is_empty() => {
            return rank::run(name, &args.candidates, args.task, args.ctx, global);
        }
        Some(name) => {
            let (mut profile, mut predictions) = (None, Vec::new());
            for model in &args.models {
                let (with_model, prediction) = predict(name, model, args.ctx, global)?;
                predictions.push(prediction);
                profile = Some(with_model); // of `this`, it holds what was measured for the model
            }
            let profile = profile.map_or_else(|| named(name, None, global), Ok)?;
            let mut whole = serde_json::to_value(&profile)?;
            whole["measured"] = json!(profile.is_measured());
            whole["predictions"] = predictions.iter().map(Prediction::json).collect();
            show::report(global, &whole, || {
                detail(&profile);
                predictions.iter().for_each(|p| println!("\n{p}"));
                next(&profile.name, args.models.first());
            });
        }
        None => {
            let all = Profile::all()?;
            let mut rows = Vec::new();
            for profile in &all {
                for model in &args.models {
                    rows.push(predict(&profile.name, model, args.ctx, global)?.1);
                }
            }
            let targets: Vec<Value> = all.iter().map(|p| json!(p)).collect();
            let whole =
                json!({"targets": targets, "predictions": rows.iter().map(Prediction::json).collect::<Vec<_>>()});
            show::report(global, &whole, || {
                if rows.is_empty() {
                    list(&all);
                } else {
                    table(&rows);
                }
                next("raspberry-pi-5", args.models.first());
            });
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// A profile by name; `this` is measured, for a model when there is one.
pub fn named(name: &str, model: Option<(&Footprint, Position)>, global: &Global) -> anyhow::Result<Profile> {
    if name == this::NAME { this::profile(model, global.threads()) } else { Profile::named(name) }
}

/// A model on a target, and the profile that it was predicted with.
pub fn predict(
    target: &str,
    model: &str,
    ctx: Option<usize>,
    global: &Global,
) -> anyhow::Result<(Profile, Prediction)> {
    let mix = if target == this::NAME { edgeft_quantize::Mix::Q8_0 } else { Profile::named(target)?.mix()? };
    let footprint = Footprint::of(model, mix)?;
    if let Some(ctx) = ctx.filter(|ctx| *ctx > footprint.n_ctx) {
        crate::bad_input!("--ctx {ctx}: {model} has {} positions", footprint.n_ctx);
    }
    let at = Position::usual(&footprint, ctx);
    let profile = named(target, Some((&footprint, at)), global)?;
    let prediction = profile.predict(&footprint, at);
    Ok((profile, prediction))
}

fn list(all: &[Profile]) {
    let mut rows = vec![["target", "cores", "memory", "bandwidth", "device"].map(str::to_owned).to_vec()];
    for p in all {
        rows.push(vec![
            p.name.clone(),
            p.cpu.cores.to_string(),
            format!("{} MiB", p.memory.mib),
            format!("{:.1} GB/s", p.bandwidth.gb_per_s),
            p.title.clone(),
        ]);
    }
    rows.push(["this", "", "", "", "the machine at hand, measured when it is asked for"].map(str::to_owned).to_vec());
    print!("{}", show::table_with(&rows, &[0, 4]));
    println!("\nBandwidth is that of the memory bus: decoding cannot be faster than it allows.");
}

fn table(predictions: &[Prediction]) {
    let header = ["target", "model", "type", "memory", "of", "fits", "tokens/s at most", "likely"];
    let mut rows = vec![header.map(str::to_owned).to_vec()];
    for p in predictions {
        let at_most = match (p.decode_tokens_per_s, p.in_cache_mib) {
            (Some(tokens), None) => rate(tokens),
            (Some(tokens), Some(_)) => format!("{}*", rate(tokens)),
            (None, _) => "-".into(),
        };
        rows.push(vec![
            p.target.clone(),
            p.model.clone(),
            p.ty.clone(),
            show::bytes(p.memory.total()),
            show::bytes(p.memory_there),
            if p.fits() { "yes" } else { "NO" }.into(),
            at_most,
            p.likely.map_or("-".into(), |l| rate(l.decode_tokens_per_s)),
        ]);
    }
    println!("Predicted (arithmetic on the profiles' figures, not measured):\n");
    print!("{}", show::table_with(&rows, &[0, 1, 2, 5]));
    println!("\nat most: what the memory bus allows. likely: where somebody measured how much of it reads reach.");
    if predictions.iter().any(|p| p.in_cache_mib.is_some()) {
        println!("*: the weights fit into the device's last cache, so the bus is no bound.");
    }
    println!("`edgeft targets NAME --model MODEL` shows the terms.");
}

fn detail(p: &Profile) {
    let from = |source: &str, measured: bool| match measured && !source.starts_with("measured") {
        true => format!("{source} (measured)"),
        false => source.to_owned(),
    };
    println!("{}: {}\n", p.name, p.title);
    println!("  triple      {}", p.triple);
    println!("  features    {}", p.features.join(", "));
    println!("  type        {}\n              {}", p.model.ty, p.model.why);
    println!(
        "  cpu         {}; {} threads\n              {}",
        p.cpu.name,
        p.cpu.cores,
        from(&p.cpu.source, p.cpu.measured)
    );
    println!("  memory      {:.0} MiB\n              {}", p.memory.mib, from(&p.memory.source, p.memory.measured));
    if let Some(c) = &p.cache {
        println!("  cache       {} MiB\n              {}", c.mib, from(&c.source, c.measured));
    }
    let b = &p.bandwidth;
    println!("  bandwidth   {:.1} GB/s\n              {}", b.gb_per_s, from(&b.source, b.measured));
    if let Some(s) = &p.sustained {
        println!("  sustained   {} GB/s\n              {}", s.gb_per_s, from(&s.source, s.measured));
    }
    for k in &p.kernels {
        println!("  kernels     {:.1} GB/s of {}\n              {}", k.gb_per_s, k.ty, from(&k.source, k.measured));
    }
    if let Some(h) = &p.handshake {
        println!("  handshake   {:.1} us\n              {}", h.us, from(&h.source, h.measured));
    }
    if !p.is_measured() {
        println!("  measured    no figure of edgeft was measured on it");
    }
    if !p.seen.is_empty() {
        println!("\nSeen by others, tokens/s:");
        let mut rows = vec![["model", "type", "prompt", "decode", "by"].map(str::to_owned).to_vec()];
        for s in &p.seen {
            let prompt = s.prompt_tokens_per_s.map_or("-".into(), |r| format!("{r:.1}"));
            let by = format!("{} ({})", s.engine, s.source);
            rows.push(vec![s.model.clone(), s.ty.clone(), prompt, format!("{:.1}", s.decode_tokens_per_s), by]);
        }
        print!("{}", show::table_with(&rows, &[0, 1, 4]));
    }
}

fn next(target: &str, model: Option<&String>) {
    let given = model.map_or("model.gguf", String::as_str);
    println!("\nNext:");
    if model.is_none() {
        println!("  edgeft targets {target} --model {given}");
    }
    if target == this::NAME {
        println!("  edgeft bench {given} --target this");
    } else {
        println!("  edgeft package {given} --target {target} --out bundle");
    }
}
