//! `edgeft tune`: rows → adapter, in a RUN folder.
//!
//! - [`rows`]: DATA, read and arranged; [`dry_run`]: the plan, printed; [`watch`]: the bar, and Ctrl-C
//! - [`folds`]: K adapters, each judged on rows it did not see; [`sweep`]: settings tried out; [`shared`]: one base for them all

mod dry_run;
mod folds;
mod rows;
mod shared;
mod sweep;
mod watch;

use super::show;
use crate::cli::Global;
use crate::data::batch::Row;
use crate::error::BadInput;
use crate::export;
use crate::model::network::{HEADS, Network, Task};
use crate::model::open::{Opened, Place, task_of_run};
use crate::model::peft::{self, AdapterConfig, pissa};
use crate::tune::checkpoint::{self, write_synced, write_tensors};
use crate::tune::config::{Init, Method, Settings, TaskName, TuneConfig};
use crate::tune::memory::{Activations, Plan, Weights};
use crate::tune::objective::log_probs;
use crate::tune::reference;
use crate::tune::run_folder::{Hashes, Origin, RunFile, RunFolder, sha256, sha256_bytes};
use crate::tune::trainer::{Outcome, Trainer};
use anyhow::Context;
use candle_core::{Device, Tensor};
use dry_run::DryRun;
use rows::{Read, check_company, read_data};
use serde_json::json;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;
use watch::Bar;

/// Flags of `tune`.
#[derive(clap::Args, Debug, Clone, Default)]
#[command(
    after_help = "Example:\n  edgeft tune --model nano --data reviews.jsonl --task classify --out RUN\n  edgeft tune --model base/ --data chats.jsonl --out RUN --epochs 2\n  edgeft tune --model model.q4_k_m.gguf --method qlora --data chats.jsonl --out RUN\n  edgeft tune --model base/ --data reviews.csv --out FOLDS --folds 5\n  edgeft tune --model base/ --data pairs.jsonl --preference dpo --beta 0.1 --out RUN\n  edgeft tune --model bert/ --data queries.jsonl --task embed --out RUN\n  edgeft tune --model base/ --data reviews.csv --out BEST --sweep sweep.toml   # lr = [2e-4, 1e-3] and rank = [4, 16] in it\nNext:\n  edgeft eval RUN --data test.jsonl\n  edgeft quantize RUN --type q4_k_m --out model.gguf"
)]
pub struct TuneArgs {
    /// Model folder, GGUF file or `nano`; a config.json with --method full starts from random weights
    #[arg(long, value_name = "MODEL")]
    pub model: String,
    /// Rows to learn: jsonl, json, csv, tsv, txt (also .gz, .zst), or pre-tokenized .safetensors
    #[arg(long, value_name = "DATA")]
    pub data: PathBuf,
    /// Folder of the run
    #[arg(long, value_name = "RUN")]
    pub out: PathBuf,
    /// Held-out rows [default: a tenth of DATA, at most 500 rows]
    #[arg(long, value_name = "DATA")]
    pub val: Option<PathBuf>,
    /// Hold nothing out
    #[arg(long, conflicts_with = "val")]
    pub no_val: bool,
    /// Adapter to start from; it brings its own method, rank and scale
    #[arg(long, value_name = "DIR")]
    pub init_adapter: Option<PathBuf>,
    /// File with any of the settings below
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Train K adapters over one base, each on the rows that another fold holds out, and say mean and deviation of every
    /// metric; --resume goes on in the fold that was interrupted
    #[arg(long, value_name = "K", value_parser = clap::value_parser!(u16).range(2..=50), conflicts_with_all = ["val", "no_val"])]
    pub folds: Option<u16>,
    /// Try settings out over one base: a file with lists such as lr = [2e-4, 1e-3], and how under [sweep]; after each round the
    /// better ones go on
    #[arg(long, value_name = "FILE.toml", conflicts_with_all = ["folds", "no_val"])]
    pub sweep: Option<PathBuf>,
    /// Go on with an interrupted run
    #[arg(long)]
    pub resume: bool,
    /// Replace an existing run
    #[arg(long, conflicts_with = "resume")]
    pub force: bool,
    /// Print what would be done, what it takes in memory and time, and why; write nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Settings.
    #[command(flatten, next_help_heading = "Settings")]
    pub settings: Settings,
}

/// What a run left, for whoever called it.
pub struct Tuned {
    /// How it ended.
    pub outcome: Outcome,
    /// Weights that were trained.
    pub trainable_params: usize,
    /// Rows held out.
    pub val_rows: usize,
    /// Bytes that the plan said it would take.
    pub planned_bytes: u64,
    /// Whether what was tuned can be written as GGUF.
    pub can_leave: bool,
}

/// Runs the verb.
pub fn run(args: &TuneArgs, global: &Global) -> anyhow::Result<ExitCode> {
    if let Some(k) = args.folds {
        return folds::run(args, k.into(), global);
    }
    if let Some(file) = &args.sweep {
        return sweep::run(args, file, global);
    }
    let Some(tuned) = tune(args, global)? else { return Ok(ExitCode::SUCCESS) };
    let o = &tuned.outcome;
    let line = json!({"out": args.out, "steps": o.steps, "loss": o.loss, "val": o.val, "trainable_params": tuned.trainable_params,
        "tokens_per_s": o.tokens_per_s, "peak_mib": show::peak_mib(),
        "planned_mib": tuned.planned_bytes as f64 / 1048576.0, "seconds": o.seconds, "stopped_by": o.stopped_by});
    let out = args.out.display();
    show::report(global, &line, || {
        let val = o.val.map_or(String::new(), |v| format!(", validation loss {v:.3}"));
        println!(
            "tuned {} weights in {} steps: loss {:.3}{val}, {:.0} tokens/s, {:.0} s",
            tuned.trainable_params, o.steps, o.loss, o.tokens_per_s, o.seconds
        );
        match o.stopped_by {
            "budget" => println!("stopped by --budget, the learning rate at its end"),
            "patience" => println!("stopped by --patience; the best weights were kept"),
            _ => (),
        }
        if o.stopped_by == "interrupted" {
            println!("interrupted; go on with the same command and --resume");
        } else {
            println!("\nNext:\n  edgeft eval {out} --data test.jsonl");
            match tuned.can_leave {
                true => println!("  edgeft quantize {out} --type q4_k_m --out model.gguf"),
                false => println!("  edgeft merge {out} --out merged/"),
            }
        }
    });
    Ok(if o.stopped_by == "interrupted" { ExitCode::from(130) } else { ExitCode::SUCCESS })
}

/// Tunes; `None` after a dry run.
pub fn tune(args: &TuneArgs, global: &Global) -> anyhow::Result<Option<Tuned>> {
    let since = Instant::now();
    let saved = if args.resume { Some(RunFile::read(&args.out)?) } else { None };
    if let Some(k) = saved.as_ref().and_then(|s| s.run.folds) {
        crate::bad_input!("--resume: the run was begun with --folds {k}; give it again");
    }
    let mut settings = settings(args, saved.as_ref())?;
    let full = settings.method == Some(Method::Full);
    if let Some(dir) = args.init_adapter.as_deref().filter(|_| !full) {
        settings = settings.with_adapter(&AdapterConfig::read(dir)?)?;
    }
    let mut opened = Opened::open(&args.model, settings.seed.unwrap_or(0))?;
    if matches!(Place::of(&args.model)?, Place::Config(_)) && !full {
        crate::bad_input!(
            "{}: a config.json alone has no weights to adapt; use --method full to train from random weights",
            args.model
        );
    }
    if opened.adapter.is_some() {
        crate::bad_input!(
            "{}: a RUN with an adapter cannot be the base of another; merge it first: edgeft merge {} --out merged/",
            args.model,
            args.model
        );
    }
    // A GGUF file is tuned on as it is; a folder in NF4, where that was asked for.
    let nf4 = settings.method == Some(Method::Qlora) && opened.weights.metadata().is_none();
    if nf4 {
        opened.weights = opened.weights.in_nf4();
    }
    // Rows and labels.
    let mut read = read_data(args, &opened, &settings, saved.as_ref())?;
    let given = settings.clone();
    settings.preference = settings.preference.or(read.preference);
    if read.task == TaskName::Embed {
        settings.pooling = settings.pooling.or(opened.pooling);
    }
    let config = TuneConfig::resolve(&settings, read.task, &opened.config)?;
    check_company(&args.data, &read.train, &config)?;
    // What it takes, before a weight is read.
    let adapter = adapter(args, &config)?;
    let weights = Weights::count(&opened.config, &opened.weights, read.task, read.labels.len(), adapter.as_ref());
    let text = opened.text.tokenizer_json.as_ref().map_or(0, Vec::len);
    let no_words = matches!(read.task, TaskName::Classify | TaskName::Embed);
    let language = !no_words && opened.config.family.is_decoder();
    let activations = Activations::new(&opened.config, language, config.no_pack);
    let plan = Plan::new(&config, activations, &weights, (&read.train, &read.val), text)?;
    if args.dry_run {
        if let Some((target, has)) = adapter.as_ref().and_then(|a| Weights::missing_target(&opened.weights, a)) {
            crate::bad_input!("no module is called {target}; this model has: {has}");
        }
        let (config, model) = (&config, &opened.config);
        DryRun { given: &given, config, model, read: &read, weights, plan: &plan }.print(global)?;
        return Ok(None);
    }
    let file = match saved {
        Some(file) => file,
        None => run_file(args, &opened, &config, &read, nf4)?,
    };
    // The network, and what of it is trained.
    let task = task_of_run(&file, opened.config.family.is_decoder());
    let mut network = Network::load(&opened.config, &opened.weights, task, config.seed, &Device::Cpu)?;
    let adapter = prepare(&mut network, args, &opened, &config, adapter)?;
    let mut trainable_params = 0;
    network.trained(&mut |_, t| trainable_params += t.elem_count());
    // The run.
    let (mut folder, from) = if args.resume {
        let newest = checkpoint::newest(&args.out)?;
        let step = newest.as_deref().and_then(step_of).unwrap_or(0);
        (RunFolder::resume(&args.out, step)?, newest)
    } else {
        (RunFolder::create(&args.out, &file, args.force)?, None)
    };
    super::merge::write_text_files(&opened, &folder.path)?;
    let objective = config.objective();
    if objective.has_reference() {
        refer(&network, &mut read, &config, &plan.activations, &folder)?;
    }
    let mut watch = Bar::new();
    let mut trainer = Trainer {
        network: &mut network,
        config: &config,
        objective,
        train: &read.train,
        val: &read.val,
        activations: plan.activations,
        since,
        folder: &mut folder,
    };
    let outcome = trainer.run(from.as_deref(), &mut watch).with_context(|| format!("tuning {} failed", args.model))?;
    watch.finish();
    if outcome.stopped_by != "interrupted" {
        finish(&opened, &mut network, adapter.as_ref(), &folder)?;
    }
    let planned_bytes = plan.terms.peak();
    let can_leave = crate::merge::can_leave(&opened.config, Some(&network.task));
    Ok(Some(Tuned { outcome, trainable_params, val_rows: read.val.len(), planned_bytes, can_leave }))
}

/// What the network says of each answer before the first step; it stands in the run already when that goes on.
fn refer(
    network: &Network,
    read: &mut Read,
    config: &TuneConfig,
    activations: &Activations,
    folder: &RunFolder,
) -> anyhow::Result<()> {
    let bar = show::bar((read.train.len() + read.val.len()) as u64, "reference");
    let mut before = 0;
    let made = &mut |rows: &[Row]| {
        let found =
            log_probs(network, rows, activations, config.size(), &mut |n| bar.set_position((before + n) as u64))?;
        before += rows.len();
        Ok(found)
    };
    reference::fill(&folder.path, [&mut read.train, &mut read.val], made).context("the reference cannot be made")?;
    bar.finish_and_clear();
    Ok(())
}

/// Flags over the file over, when resuming, what the run saved.
fn settings(args: &TuneArgs, saved: Option<&RunFile>) -> anyhow::Result<Settings> {
    let mut settings = args.settings.clone();
    if let Some(path) = &args.config {
        settings = settings.over(Settings::read(path)?);
    }
    if let Some(saved) = saved {
        if let Some((name, now, then)) = settings.difference(&saved.tune) {
            crate::bad_input!("--resume: {name} is {now}, but the run was begun with {then}");
        }
        for (name, now, then) in
            [("--model", args.model.clone(), &saved.run.model), ("--data", place(&args.data), &saved.run.data)]
        {
            if absolute(&now) != *then && now != *then {
                crate::bad_input!("--resume: {name} is {now}, but the run was begun with {then}");
            }
        }
        settings = settings.over(saved.tune.clone());
    }
    Ok(settings)
}

fn run_file(args: &TuneArgs, opened: &Opened, config: &TuneConfig, read: &Read, nf4: bool) -> anyhow::Result<RunFile> {
    let base = match &opened.base_path {
        Some(path) => sha256(path)?,
        None => sha256_bytes(crate::demo::nano::WEIGHTS),
    };
    Ok(RunFile {
        run: Origin {
            model: absolute(&args.model),
            data: absolute(&place(&args.data)),
            val: args.val.as_ref().map(|v| absolute(&place(v))),
            init_adapter: args.init_adapter.as_ref().map(|v| absolute(&place(v))),
            base_rounding: nf4.then(|| "nf4".into()),
            labels: read.labels.clone(),
            held_out: read.held_out.clone(),
            folds: None,
            fold: None,
            edgeft: env!("CARGO_PKG_VERSION").into(),
        },
        tune: config.to_settings(),
        sha256: Hashes {
            base,
            data: sha256(&args.data)?,
            val: args.val.as_deref().map(sha256).transpose()?,
            tokenizer: opened.text.tokenizer_json.as_deref().map(sha256_bytes),
            template: opened.text.chat_template.as_ref().map(|t| sha256_bytes(t.as_bytes())),
        },
    })
}

/// What is put on the network: `--init-adapter`'s, or a fresh one; nothing when every weight is trained.
fn adapter(args: &TuneArgs, config: &TuneConfig) -> anyhow::Result<Option<AdapterConfig>> {
    match (&args.init_adapter, config.method) {
        (Some(_), Method::Full) => {
            crate::bad_input!("--init-adapter and --method full: merge the adapter first, then tune every weight")
        }
        (None, Method::Full) => Ok(None),
        (Some(dir), _) => Ok(Some(AdapterConfig { dropout: config.dropout, ..AdapterConfig::read(dir)? })),
        (None, _) => Ok(Some(config.adapter(&absolute(&args.model)))),
    }
}

/// An adapter on the network, as it will be saved.
struct Adapted {
    config: AdapterConfig,
    /// What PiSSA moved out of the base.
    start: Option<pissa::Start>,
}

/// Marks what is trained: adapters (fresh, or from `--init-adapter`) or every weight.
fn prepare(
    network: &mut Network,
    args: &TuneArgs,
    opened: &Opened,
    config: &TuneConfig,
    adapter: Option<AdapterConfig>,
) -> anyhow::Result<Option<Adapted>> {
    let Some(mut adapter) = adapter else {
        network.train_all().map_err(|e| BadInput(format!("{}: {e}", args.model)))?;
        if let Some(qat) = &config.qat {
            let mix =
                super::quantize::parse_mix(qat).map_err(|e| BadInput(e.to_string().replace("--type", "--qat")))?;
            if matches!(Place::of(&args.model)?, Place::Config(_)) {
                crate::bad_input!("--qat: random weights have nothing to be rounded to; train without it first");
            }
            network.round(&export::types(opened, mix)?);
        }
        return Ok(None);
    };
    if args.init_adapter.is_none() {
        peft::every_target_is_there(network, &adapter)?;
    }
    peft::attach(network, &adapter, config.seed)?;
    let start = match (config.init, &args.init_adapter) {
        (Init::Pissa, Some(_)) => crate::bad_input!("--init pissa and --init-adapter: an adapter has its own start"),
        (Init::Pissa, None) => Some(pissa::start(network, config.seed)?),
        (Init::Lora, Some(dir)) => peft::load_into(network, dir).map(|()| None)?,
        (Init::Lora, None) => None,
    };
    adapter.modules_to_save.retain(|name| !HEADS.contains(&name.as_str()));
    adapter.modules_to_save.extend(network.modules_to_save());
    adapter.modules_to_save.sort();
    adapter.modules_to_save.dedup();
    adapter.base = Some(absolute(&args.model));
    Ok(Some(Adapted { config: adapter, start }))
}

impl Adapted {
    /// `adapter_config.json` and the tensors beside it.
    fn files(&self, network: &mut Network) -> anyhow::Result<(serde_json::Value, BTreeMap<String, Tensor>)> {
        let tensors = peft::tensors(network);
        let (json, tensors) = match &self.start {
            Some(start) => (pissa::Start::widened(&self.config).to_json(&network.task), start.plain(tensors)?),
            None => (self.config.to_json(&network.task), tensors),
        };
        Ok(match network.task {
            Task::Embed(_) => (json, peft::on_the_trunk(tensors, network.config.family.prefix())),
            _ => (json, tensors),
        })
    }
}

/// The run's last files; the weights appear last.
fn finish(opened: &Opened, network: &mut Network, adapter: Option<&Adapted>, folder: &RunFolder) -> anyhow::Result<()> {
    let report = crate::report::run::of_run(&folder.path)?;
    folder.write("report.html", crate::report::html(&report).as_bytes())?;
    crate::report::card::refresh(&folder.path)?;
    match adapter {
        Some(adapter) => {
            let (mut json, tensors) = adapter.files(network)?;
            json["fan_in_fan_out"] = network.config.family.stores_transposed().into();
            folder.write("adapter_config.json", serde_json::to_string_pretty(&json)?.as_bytes())?;
            write_tensors(&folder.path.join("adapter_model.safetensors"), &tensors)?;
        }
        None => {
            let config = crate::merge::merged_config(opened)?;
            super::merge::write_pooling_files(opened, Some(&network.task), &folder.path)?;
            write_synced(&folder.path.join("config.json"), serde_json::to_string_pretty(&config)?.as_bytes())?;
            write_tensors(&folder.path.join("model.safetensors"), &network.checkpoint()?)?;
        }
    }
    Ok(())
}

/// A path as the run remembers it; `nano` stays `nano`.
fn absolute(model: &str) -> String {
    if model == "nano" {
        return model.to_owned();
    }
    std::fs::canonicalize(model).map_or_else(|_| model.to_owned(), |p| p.display().to_string())
}

fn place(path: &Path) -> String {
    path.display().to_string()
}

fn step_of(checkpoint: &Path) -> Option<usize> {
    checkpoint.file_name()?.to_str()?.strip_prefix("step-")?.parse().ok()
}
