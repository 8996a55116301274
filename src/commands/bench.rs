//! `edgeft bench`: first-token latency, tokens per second, memory, and how near the ceiling they come.

pub mod compare;
pub mod rank_test;

use super::run::RunEngine;
use super::show;
use crate::cli::Global;
use crate::error::GateFailed;
use crate::export;
use crate::model::open::{Opened, Place};
use crate::profile::{Prediction, Profile};
use compare::{Comparison, Earlier};
use edgeft_quantize::Mix;
use edgeft_runtime::engine::{Backend, EngineOptions, KvType};
use edgeft_runtime::kernels::Kernels;
use edgeft_runtime::measure::device::{Device, peak_mib};
use edgeft_runtime::measure::report::{Ceiling, Report};
use edgeft_runtime::measure::{Bench, Case};
use edgeft_runtime::model::Model;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

/// Flags of `bench`.
#[derive(clap::Args)]
#[command(
    after_help = "The first token's time begins with the prompt as text: tokenization, prefill and the choice of the token. A later\n\
    token's time is one forward, the choice and its text. `engine_only` in the JSON leaves all but the forwards out, as\n\
    llama-bench does.\n\n\
    Example:\n  edgeft bench model.gguf --threads 2\n  edgeft bench model.gguf --json > before.json\n  edgeft bench model.gguf --compare before.json\n\
    Exit code 3: slower than FILE, by 5 % or more and beyond chance (p < 0.01).\nNext:\n  edgeft serve model.gguf"
)]
pub struct BenchArgs {
    /// GGUF file; a model folder, a RUN or `nano` is converted in memory (f32 stays f32)
    #[arg(value_name = "MODEL")]
    pub model: String,
    /// Where to compute
    #[arg(long, value_enum, default_value = "cpu")]
    pub engine: RunEngine,
    /// Tokens of the prompt, or of a text that is classified [default: 128, or what the model has room for]
    #[arg(long, value_name = "N")]
    pub prompt: Option<usize>,
    /// Tokens generated
    #[arg(long, default_value_t = 32, value_name = "N")]
    pub generate: usize,
    /// Sequences side by side
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub batch: usize,
    /// Measured runs, after one that is not counted
    #[arg(long, default_value_t = 5, value_name = "N")]
    pub runs: usize,
    /// Also predict what a device can reach (see `edgeft targets`)
    #[arg(long, value_name = "NAME")]
    pub target: Option<String>,
    /// Hold the numbers against an earlier --json line of the same case
    #[arg(long, value_name = "FILE")]
    pub compare: Option<PathBuf>,
}

/// Type of the cache: the runtime's default.
const KV: KvType = KvType::F16;

/// Runs the verb.
pub fn run(args: &BenchArgs, global: &Global) -> anyhow::Result<ExitCode> {
    // Everything that can be refused is refused before minutes are spent.
    let profile = args.target.as_deref().map(Profile::named).transpose()?;
    let earlier = args.compare.as_deref().map(Earlier::read).transpose()?;
    if let Some(earlier) = &earlier {
        earlier.must_be_comparable(args, global.threads())?;
    }

    let usual = Case::default();
    let prompt = args.prompt.unwrap_or(usual.prompt);
    let case = Case { prompt, generate: args.generate, batch: args.batch, runs: args.runs, ..usual };
    let fitted = |model: &Model| match args.prompt {
        Some(_) => case,
        None => case.within(model.task(), model.hparams().causal, model.hparams().n_ctx),
    };
    let (model, report) = measure_case(&args.model, args.engine.into(), fitted, global.threads())?;

    let prediction = profile.map(|p| p.predict(&model, &report.measurement.case, KV));
    let comparison = earlier.map(|e| e.compare(&report)).transpose()?;
    let mut whole = report.json();
    if let Some(prediction) = &prediction {
        whole["predicted"] = serde_json::to_value(prediction)?;
    }
    if let Some(comparison) = &comparison {
        whole["compare"] = serde_json::to_value(comparison)?;
    }
    show::report(global, &whole, || print(args, &report, prediction.as_ref(), comparison.as_ref()));
    match comparison.filter(|c| !c.pass) {
        Some(slower) => Err(GateFailed(slower.verdict()).into()),
        None => Ok(ExitCode::SUCCESS),
    }
}

/// Opens a MODEL on the CPU engine and measures it.
pub fn measure(name: &str, case: Case, threads: usize) -> anyhow::Result<(Model, Report)> {
    measure_case(name, Backend::Cpu, |_| case, threads)
}

/// The same, of a case that depends on the model.
fn measure_case(
    name: &str,
    backend: Backend,
    case: impl FnOnce(&Model) -> Case,
    threads: usize,
) -> anyhow::Result<(Model, Report)> {
    let start = Instant::now();
    let model = open(name)?;
    let case = case(&model);
    let ctx = case.ctx(model.task(), model.hparams().causal).clamp(1, model.hparams().n_ctx);
    let mut engine = model.engine(&EngineOptions { backend, threads, ctx, n_seqs: case.batch.max(1), kv: KV })?;
    let tokenizer = match model.tokenizer() {
        Ok(tokenizer) => Some(tokenizer),
        Err(e) if e.kind() == edgeft_runtime::Kind::Missing => None,
        Err(e) => return Err(e.into()),
    };
    let load_ms = start.elapsed().as_secs_f64() * 1e3;

    let mut bench = Bench::new(&model, engine.as_mut(), tokenizer.as_deref(), case)?;
    let bar = show::bar((case.warmups + case.runs) as u64, "measuring");
    let measurement = bench.measure(&mut |done| bar.set_position(done as u64))?;
    bar.finish_and_clear();
    let peak_mib = peak_mib(); // before the ceiling's buffer
    let ceiling = match backend {
        Backend::Gpu => Ceiling::UNKNOWN,
        Backend::Cpu | Backend::Ort => Ceiling::measure(&model, &measurement, threads, KV),
    };
    let device = Device { runs_on: engine.runs_on(), ..Device::detect(&Kernels::detect()?) };
    let report = Report {
        engine: backend.name(),
        model: name.to_owned(),
        threads,
        load_ms,
        peak_mib,
        measurement,
        ceiling,
        device,
    };
    Ok((model, report))
}

/// The model in the runtime's form.
fn open(model: &str) -> anyhow::Result<Model> {
    match Place::of(model)? {
        Place::Gguf(path) => Ok(Model::open(&path)?),
        _ => {
            let opened = Opened::open(model, 0)?;
            if opened.task()?.is_none() {
                eprintln!("note: {model} has no head; measured as an encoder that gives vectors");
            }
            Ok(Model::from_bytes(export::to_memory(&opened, Mix::F32)?, model)?)
        }
    }
}

fn print(args: &BenchArgs, report: &Report, prediction: Option<&Prediction>, comparison: Option<&Comparison>) {
    print!("{report}");
    if let Some(prediction) = prediction {
        println!("\n{prediction}");
    }
    if let Some(comparison) = comparison {
        println!("\n{comparison}");
    }
    let next = match comparison {
        None => format!("edgeft bench {} --json > before.json    and later --compare before.json", args.model),
        Some(_) => format!("edgeft serve {}", args.model),
    };
    println!("\nNext:\n  {next}");
}
