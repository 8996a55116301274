//! `edgeft bench`: first-token latency, tokens per second, memory, and how near the ceiling they come.
//!
//! - one model on one engine is measured here, in this process
//! - [`suite`]: engines × models, each in a process of its own, so that memory and loading are its own too
//! - [`compare`], [`rank_test`]: an earlier bench against this one
//! - [`load`], [`client`]: servers that speak OpenAI's API, under a load

mod client;
pub mod compare;
mod load;
pub mod rank_test;
mod suite;

use super::adapter::{self, Named};
use super::ort::OrtArgs;
use super::run::RunEngine;
use super::{show, targets};
use crate::cli::Global;
use crate::error::GateFailed;
use crate::export::Runnable;
use crate::profile::prediction::rate;
use crate::profile::{Footprint, Position, Prediction, Profile, this};
use crate::tune::checkpoint::write_synced;
use crate::tune::run_folder::is_run;
use compare::{Comparison, Earlier};
use edgeft_runtime::engine::{Backend, EngineOptions, KvType};
use edgeft_runtime::kernels::Kernels;
use edgeft_runtime::measure::device::{Device, peak_mib};
use edgeft_runtime::measure::report::{Ceiling, Report};
use edgeft_runtime::measure::stats::median;
use edgeft_runtime::measure::{Bench, Case};
use edgeft_runtime::model::{Model, Task};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

/// Flags of `bench`.
#[derive(clap::Args)]
#[command(
    after_help = "The first token's time begins with the prompt as text: tokenization, prefill and the choice of the token. A later\n\
    token's time is one forward, the choice and its text. `engine_only` in the JSON leaves all but the forwards out, as\n\
    llama-bench does. p99 is null below 200 steps.\n\n\
    Example:\n  edgeft bench model.gguf --threads 2\n  edgeft bench model.gguf --json > before.json\n  edgeft bench model.gguf --compare before.json\n  \
    edgeft bench model.gguf --engine auto\n  edgeft bench --suite models/ --html bench.html\n  \
    edgeft bench --server http://127.0.0.1:8080 --server http://127.0.0.1:8081 --concurrency 1,4,16 --seconds 60\n\
    Exit code 3: slower than FILE, by 5 % or more and beyond chance (p < 0.01).\nNext:\n  edgeft serve model.gguf"
)]
pub struct BenchArgs {
    /// GGUF file or ONNX folder; a model folder, a RUN or `nano` is converted in memory (f32 stays f32)
    #[arg(value_name = "MODEL", required_unless_present_any = ["suite", "server"])]
    pub model: Option<String>,
    /// GGUF adapter beside the model, at SCALE times its strength [default: 1]
    #[arg(long, value_name = "FILE[=SCALE]", conflicts_with_all = ["suite", "server"])]
    pub adapter: Option<String>,
    /// Where to compute; `auto` tries every engine that this build and machine have [default: ort for an ONNX folder, cpu for
    /// everything else; with --suite: auto]
    #[arg(long, value_enum)]
    pub engine: Option<BenchEngine>,
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
    /// Also predict what a device can reach, `this` machine for instance (see `edgeft targets`)
    #[arg(long, value_name = "NAME")]
    pub target: Option<String>,
    /// Hold the numbers against an earlier --json line of the same case
    #[arg(long, value_name = "FILE")]
    pub compare: Option<PathBuf>,
    /// Measure every model in this folder (.gguf files, ONNX folders) on every engine
    #[arg(long, value_name = "DIR", conflicts_with_all = ["model", "target", "compare"])]
    pub suite: Option<PathBuf>,
    /// Measure a server of OpenAI's API by streamed completions; two take turns and are shown as ratios (repeatable)
    #[arg(long, value_name = "URL", conflicts_with_all = ["model", "suite", "target", "compare", "engine"])]
    pub server: Vec<String>,
    /// Name of the model to ask a server for [default: the first in its list]
    #[arg(long = "model", value_name = "NAME", requires = "server")]
    pub served: Option<String>,
    /// Clients at once, one load after another; each asks again once it is answered
    #[arg(long, value_name = "N,...", value_delimiter = ',', default_values_t = [1, 2, 4, 8], requires = "server")]
    pub concurrency: Vec<usize>,
    /// Requests a second in place of clients, sent whether or not earlier ones are answered
    #[arg(long, value_name = "R", requires = "server", conflicts_with = "concurrency")]
    pub rate: Option<f64>,
    /// Seconds that each server is asked at each load
    #[arg(long, value_name = "S", default_value_t = 10.0, value_parser = seconds, requires = "server")]
    pub seconds: f64,
    /// Write the table and a plot as one self-contained page
    #[arg(long, value_name = "FILE", requires = "suite")]
    pub html: Option<PathBuf>,
    /// Replace an existing page
    #[arg(long, requires = "html")]
    pub force: bool,
}

/// A time that ends.
fn seconds(text: &str) -> Result<f64, String> {
    text.parse().ok().filter(|s| (0.1..=86_400.0).contains(s)).ok_or_else(|| "give 0.1 to 86400".into())
}

/// Engines, and the choice among them by measuring.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum BenchEngine {
    /// The fastest, by trying all
    Auto,
    /// The device's CPU kernels
    Cpu,
    /// A GPU, by wgpu
    Gpu,
    /// ONNX Runtime
    Ort,
}

impl BenchEngine {
    /// Engines to try.
    fn backends(self) -> Vec<Backend> {
        let one = |engine: RunEngine| vec![engine.into()];
        match self {
            Self::Auto => vec![Backend::Cpu, Backend::Gpu, Backend::Ort],
            Self::Cpu => one(RunEngine::Cpu),
            Self::Gpu => one(RunEngine::Gpu),
            Self::Ort => one(RunEngine::Ort),
        }
    }
}

/// Runs the verb.
pub fn run(args: &BenchArgs, global: &Global) -> anyhow::Result<ExitCode> {
    if !args.server.is_empty() {
        return load::run(args, global);
    }
    if let Some(folder) = &args.suite {
        return suite::run(args, folder, global);
    }
    let Some(model) = &args.model else { crate::bad_input!("give a MODEL, --suite DIR or --server URL") };
    match args.engine {
        Some(BenchEngine::Auto) => suite::auto(args, model, global),
        engine => one(args, model, engine.map(|e| e.backends()[0]), global),
    }
}

/// One model on one engine, in this process; without one, on the engine that takes the model as it is.
fn one(args: &BenchArgs, name: &str, backend: Option<Backend>, global: &Global) -> anyhow::Result<ExitCode> {
    // Everything that can be refused is refused before minutes are spent.
    if let Some(target) = args.target.as_deref().filter(|t| *t != this::NAME) {
        Profile::named(target)?;
    }
    let earlier = args.compare.as_deref().map(Earlier::read).transpose()?;
    if let Some(earlier) = &earlier {
        earlier.must_be_comparable(args, global.threads())?;
    }

    let adapter = args.adapter.as_deref().map(adapter::open).transpose()?;
    let usual = Case::default();
    let prompt = args.prompt.unwrap_or(usual.prompt);
    let case = Case { prompt, generate: args.generate, batch: args.batch, runs: args.runs, ..usual };
    let fitted = |model: &Model| match args.prompt {
        Some(_) => case,
        None => case.within(model.task(), model.hparams().causal, model.hparams().n_ctx),
    };
    let (model, report) = measure_case(|| open(args, name, backend), adapter.as_ref(), fitted, global.threads())?;

    let beside = adapter.as_ref().map_or(0, |named| named.adapter.bytes());
    let predict = |target| predict(target, name, (&model, beside), &report, global);
    let prediction = args.target.as_deref().map(predict).transpose()?;
    let comparison = earlier.map(|e| e.compare(&report)).transpose()?;
    let mut whole = report.json();
    if let Some(named) = &adapter {
        whole["adapter"] = named.text.as_str().into();
    }
    if let Some(prediction) = &prediction {
        whole["predicted"] = prediction.json();
    }
    if let Some(comparison) = &comparison {
        whole["compare"] = serde_json::to_value(comparison)?;
    }
    // A RUN keeps its last measurement, for its page.
    if is_run(Path::new(name)) {
        write_synced(&Path::new(name).join("bench.json"), serde_json::to_string_pretty(&whole)?.as_bytes())?;
    }
    show::report(global, &whole, || print(name, &report, prediction.as_ref(), comparison.as_ref()));
    match comparison.filter(|c| !c.pass) {
        Some(slower) => Err(GateFailed(slower.verdict()).into()),
        None => Ok(ExitCode::SUCCESS),
    }
}

/// Opens a MODEL on the CPU engine and measures it.
pub fn measure(name: &str, case: Case, threads: usize) -> anyhow::Result<(Model, Report)> {
    measure_case(|| Runnable::open(name, Some(Backend::Cpu)), None, |_| case, threads)
}

/// Median time of a step of a model that writes, on the CPU engine, in ms; `None` for one that does not.
///
/// # Errors
/// What the engine gives.
pub fn step_ms(model: Model, threads: usize) -> anyhow::Result<Option<f64>> {
    let runnable = Runnable { model, backend: Backend::Cpu, converted_bytes: None };
    let case = Case { prompt: 32, generate: 32, runs: 3, ..Case::default() };
    let fitted = |model: &Model| case.within(model.task(), model.hparams().causal, model.hparams().n_ctx);
    let (_, report) = measure_case(|| Ok(runnable), None, fitted, threads)?;
    Ok(median(&report.measurement.itl_ms()))
}

/// The same of any engine, of a case that depends on the model.
fn measure_case(
    open: impl FnOnce() -> anyhow::Result<Runnable>,
    adapter: Option<&Named>,
    case: impl FnOnce(&Model) -> Case,
    threads: usize,
) -> anyhow::Result<(Model, Report)> {
    let start = Instant::now();
    let Runnable { model, backend, .. } = open()?;
    let (case, kv) = (case(&model), kv_of(&model));
    let ctx = case.ctx(model.task(), model.hparams().causal).clamp(1, model.hparams().n_ctx);
    let mut engine = model.engine(&EngineOptions { backend, threads, ctx, n_seqs: case.batch.max(1), kv })?;
    if let Some(named) = adapter {
        let number = engine.add_adapter(&named.adapter, named.scale)?;
        (0..engine.n_seqs()).try_for_each(|seq| engine.choose(seq, Some(number)))?;
    }
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
        Backend::Cpu | Backend::Ort => Ceiling::measure(&model, &measurement, threads, kv),
        Backend::Gpu => Ceiling::UNKNOWN, // its memory is not the one that a CPU reads
    };
    let device = Device { runs_on: engine.runs_on(), ..Device::detect(&Kernels::detect()?) };
    let report = Report {
        engine: backend.name(),
        model: model.name().to_owned(),
        threads,
        kv,
        load_ms,
        peak_mib,
        measurement,
        ceiling,
        device,
    };
    Ok((model, report))
}

/// What a target can reach in the case that was measured, with so many bytes beside the model.
fn predict(
    target: &str,
    name: &str,
    (model, beside): (&Model, u64),
    report: &Report,
    global: &Global,
) -> anyhow::Result<Prediction> {
    let file_bytes = std::fs::metadata(name).ok().filter(|m| m.is_file()).map_or(model.weight_bytes(), |m| m.len());
    let footprint = Footprint::of_model(model, file_bytes)?.with_adapter(beside);
    let case = &report.measurement.case;
    let at = Position { ctx: case.prompt + case.generate, depth: case.prompt + case.generate / 2, batch: case.batch };
    Ok(targets::named(target, Some((&footprint, at)), global)?.predict(&footprint, at))
}

/// The one prediction that can be checked here, that of this machine, against the median step: who interrupts a step now and
/// then says nothing of the model.
fn held_against(report: &Report, prediction: &Prediction) -> Option<String> {
    let step = median(&report.measurement.itl_ms()).filter(|_| prediction.target == this::NAME)?;
    let measured = 1e3 * report.measurement.case.batch as f64 / step;
    let share = |of: f64| format!("{:.0} %", 100.0 * measured / of);
    let likely =
        prediction.likely.map_or(String::new(), |l| format!(", {} of what is likely", share(l.decode_tokens_per_s)));
    let at_most = share(prediction.decode_tokens_per_s?);
    Some(format!("measured  {} tokens/s in the median step: {at_most} of the bound{likely}", rate(measured)))
}

/// The model in the runtime's form.
fn open(args: &BenchArgs, name: &str, backend: Option<Backend>) -> anyhow::Result<Runnable> {
    let runnable = Runnable::open(name, backend)?;
    if runnable.converted_bytes.is_some() && runnable.model.task() == Task::Embed {
        eprintln!("note: {} has no head; measured as an encoder that gives vectors", name);
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

fn print(name: &str, report: &Report, prediction: Option<&Prediction>, comparison: Option<&Comparison>) {
    print!("{report}");
    if let Some(prediction) = prediction {
        println!("\n{prediction}");
        if let Some(line) = held_against(report, prediction) {
            println!("  {line}");
        }
    }
    if let Some(comparison) = comparison {
        println!("\n{comparison}");
    }
    let next = match comparison {
        None => format!("edgeft bench {} --json > before.json    and later --compare before.json", name),
        Some(_) => format!("edgeft serve {}", name),
    };
    println!("\nNext:\n  {next}");
}
