//! `edgeft bench`: first-token latency, tokens per second, memory, and how near the ceiling they come.

pub mod compare;
pub mod rank_test;

use super::ort::OrtArgs;
use super::run::RunEngine;
use super::show;
use crate::cli::Global;
use crate::error::GateFailed;
use crate::export::Runnable;
use crate::profile::{Prediction, Profile};
use compare::{Comparison, Earlier};
use edgeft_runtime::engine::{Backend, EngineOptions, KvType};
use edgeft_runtime::kernels::Kernels;
use edgeft_runtime::measure::device::{Device, peak_mib};
use edgeft_runtime::measure::report::{Ceiling, Report};
use edgeft_runtime::measure::{Bench, Case};
use edgeft_runtime::model::{Model, Task};
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
    /// GGUF file or ONNX folder; a model folder, a RUN or `nano` is converted in memory (f32 stays f32)
    #[arg(value_name = "MODEL")]
    pub model: String,
    /// Where to compute [default: ort for an ONNX folder, cpu for everything else]
    #[arg(long, value_enum)]
    pub engine: Option<RunEngine>,
    /// Flags of ONNX Runtime
    #[command(flatten)]
    pub ort: OrtArgs,
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
    let (model, report) = measure_case(|| open(args), fitted, global.threads())?;

    let prediction = profile.map(|p| p.predict(&model, &report.measurement.case, kv_of(&model)));
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
    measure_case(|| Runnable::open(name, Some(Backend::Cpu)), |_| case, threads)
}

/// The same of any engine, of a case that depends on the model.
fn measure_case(
    open: impl FnOnce() -> anyhow::Result<Runnable>,
    case: impl FnOnce(&Model) -> Case,
    threads: usize,
) -> anyhow::Result<(Model, Report)> {
    let start = Instant::now();
    let Runnable { model, backend, .. } = open()?;
    let (case, kv) = (case(&model), kv_of(&model));
    let ctx = case.ctx(model.task(), model.hparams().causal).clamp(1, model.hparams().n_ctx);
    let mut engine = model.engine(&EngineOptions { backend, threads, ctx, n_seqs: case.batch.max(1), kv })?;
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
    let ceiling = Ceiling::measure(&model, &measurement, threads, kv);
    let device = Device { runs_on: engine.runs_on(), ..Device::detect(&Kernels::detect()?) };
    let report = Report {
        engine: backend.name(),
        model: model.name().to_owned(),
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
fn open(args: &BenchArgs) -> anyhow::Result<Runnable> {
    let runnable = Runnable::open(&args.model, args.engine.map(Backend::from))?;
    if runnable.converted_bytes.is_some() && runnable.model.task() == Task::Embed {
        eprintln!("note: {} has no head; measured as an encoder that gives vectors", args.model);
    }
    if runnable.backend == Backend::Ort {
        args.ort.load()?;
    }
    Ok(runnable)
}

/// Type of the cache: the graph's own, or the runtime's default.
fn kv_of(model: &Model) -> KvType {
    model.kv().unwrap_or(KvType::F16)
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
