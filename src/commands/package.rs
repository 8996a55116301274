//! `edgeft package`: a model and all that serves it on a device, as a folder.

use super::{quantize, show, targets};
use crate::cli::Global;
use crate::package::runner::Runner;
use crate::package::{Bundle, Order, checked_name};
use crate::profile::{Profile, this};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Flags of `package`.
#[derive(clap::Args)]
#[command(
    after_help = "The folder holds the model, `edgeft-run`, `run.sh`, `manifest.json` (sizes, SHA-256, predicted memory and tokens/s) and a\n\
    README; for Linux also a systemd unit, a Dockerfile and Kubernetes manifests. It can be moved anywhere.\n\n\
    `edgeft-run` is the one beside this program. Build it, or one for another machine, with\n  \
    cargo build --release -p edgeft-runtime --features server [--target aarch64-unknown-linux-gnu]\n\n\
    Example:\n  edgeft package model.gguf --target x86-server --out bundle\n  \
    edgeft package RUN --target raspberry-pi-5 --runner target/aarch64-unknown-linux-gnu/release/edgeft-run --out bundle\n\
    Next:\n  bundle/run.sh"
)]
pub struct PackageArgs {
    /// GGUF file, taken as it is; a model folder, a RUN or `nano` is quantized first
    #[arg(value_name = "MODEL")]
    pub model: String,
    /// Device that it is for (see `edgeft targets`)
    #[arg(long, value_name = "NAME")]
    pub target: String,
    /// Folder to create
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Type of the weights of a model that is no GGUF [default: the one that suits the target]
    #[arg(long = "type", value_name = "TYPE")]
    pub ty: Option<String>,
    /// Name that clients use [default: that of the file or folder]
    #[arg(long)]
    pub name: Option<String>,
    /// Tokens that prompt and answer may hold together [default: the model's own, at most 4096]
    #[arg(long, value_name = "TOKENS", value_parser = super::run::at_least_one)]
    pub ctx: Option<usize>,
    /// An edgeft-run for the target [default: the one beside this program]
    #[arg(long, value_name = "FILE")]
    pub runner: Option<PathBuf>,
    /// Replace an existing folder
    #[arg(long)]
    pub force: bool,
}

/// Runs the verb.
pub fn run(args: &PackageArgs, global: &Global) -> anyhow::Result<ExitCode> {
    show::refuse_existing(&args.out, args.force)?;
    let mix = args.ty.as_deref().map(quantize::parse_mix).transpose()?;
    let name = args.name.clone().unwrap_or_else(|| show::model_name(&args.model));
    let name = checked_name(&name)?;
    let profile = targets::named(&args.target, None, global)?;
    let beside = std::env::current_exe()?;
    let beside = beside.parent().unwrap_or(Path::new("."));
    let order = Order { model: &args.model, profile: &profile, mix, name, ctx: args.ctx };
    order.check()?;
    let runner = Runner::find(&profile, args.runner.as_deref(), beside)?;
    let folder = show::NewFolder::create(&args.out, args.force)?;
    let bar = show::bar(100, "quantizing");
    let bundle = order.write(folder.path(), &runner, &mut |done, total| bar.set_position(done * 100 / total.max(1)))?;
    bar.finish_and_clear();
    folder.finish()?;
    let mut whole = json!({"out": args.out});
    for (key, value) in bundle.manifest.as_object().into_iter().flatten() {
        whole[key] = value.clone();
    }
    show::report(global, &whole, || print(args, &profile, &runner, &bundle));
    Ok(ExitCode::SUCCESS)
}

fn print(args: &PackageArgs, profile: &Profile, runner: &Runner, bundle: &Bundle) {
    let (out, manifest) = (args.out.display(), &bundle.manifest);
    let text = |pointer: &str| manifest.pointer(pointer).and_then(|v| v.as_str()).unwrap_or_default().to_owned();
    println!("{out}: {} as {} for {}\n", text("/model/name"), text("/model/type"), profile.name);
    let mut rows = Vec::new();
    for file in manifest["files"].as_array().into_iter().flatten() {
        let path = file["path"].as_str().unwrap_or_default();
        let note = if path == "edgeft-run" { runner.linked.to_string() } else { String::new() };
        rows.push(vec![path.to_owned(), show::bytes(file["bytes"].as_u64().unwrap_or(0)), note]);
    }
    print!("{}", show::table_with(&rows, &[0, 2]));
    println!("\n{}", bundle.prediction);
    let here = profile.name == this::NAME || profile.triple == this::triple();
    let copy = if here { String::new() } else { format!("  scp -r {out} DEVICE:\n") };
    println!("\nNext:\n{copy}  {out}/run.sh\n  curl http://127.0.0.1:8080/healthz");
}
