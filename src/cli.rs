//! The list of verbs; each verb's flags and help live with its command.

use crate::commands;
use clap::{Args, Parser, Subcommand};

/// From a dataset to a small language model running, measured, on an edge device.
#[derive(Parser)]
#[command(
    name = "edgeft",
    version,
    about,
    long_about = "From a dataset to a small language model running, measured, on an edge device.\n\n\
        data -> tune -> merge -> quantize -> verify -> run -> serve -> bench, in one binary.",
    after_help = "Start here:\n  edgeft demo\n\nMODEL is a Hugging Face folder, a .gguf file, an ONNX folder, a RUN folder, or `nano` (the embedded model).",
    disable_help_subcommand = true
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub verb: Verb,
    /// Flags of every verb.
    #[command(flatten)]
    pub global: Global,
}

/// Flags of every verb.
#[derive(Debug, Clone, Args)]
pub struct Global {
    /// Print one JSON object as the last line of stdout; everything else goes to stderr
    #[arg(long, global = true, help_heading = "Everywhere")]
    pub json: bool,
    /// Threads [default: as many as this process may really use]
    #[arg(long, global = true, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024), help_heading = "Everywhere")]
    pub threads: Option<u16>,
}

impl Global {
    /// Threads to use.
    pub fn threads(&self) -> usize {
        self.threads.map_or_else(|| std::thread::available_parallelism().map_or(1, usize::from), usize::from)
    }
}

/// Verbs, in the order in which data flows.
#[derive(Subcommand)]
pub enum Verb {
    /// Take an embedded example through every stage, in under three minutes
    Demo(commands::demo::DemoArgs),
    /// Bring a model from a hub into a local folder
    #[cfg(feature = "hub")]
    Pull(commands::pull::PullArgs),
    /// Check a dataset, or part it
    #[command(
        subcommand,
        after_help = "Example:\n  edgeft data check reviews.csv --model nano\nNext:\n  edgeft data split reviews.csv --out parts/"
    )]
    Data(commands::data::DataVerb),
    /// Teach a model from a dataset: LoRA or every weight
    Tune(Box<commands::tune::TuneArgs>),
    /// Judge a model on held-out rows
    Eval(commands::eval::EvalArgs),
    /// Fold an adapter into its base model
    Merge(commands::merge::MergeArgs),
    /// Write a GGUF file or an ONNX folder, in the type you choose
    Quantize(commands::quantize::QuantizeArgs),
    /// Hold two stages of one model against each other; exit 3 when they differ too much
    Verify(commands::verify::VerifyArgs),
    /// Show the tokens of a text
    Tokenize(commands::tokenize::TokenizeArgs),
    /// Answer one prompt
    Run(commands::run::RunArgs),
    /// Answer over HTTP, as OpenAI's API does
    #[cfg(feature = "server")]
    Serve(commands::serve::ServeArgs),
    /// Put a model and all that serves it on a device into a folder
    Package(commands::package::PackageArgs),
    /// Measure first-token latency, tokens per second and memory
    Bench(commands::bench::BenchArgs),
    /// Ask what changes in a model's answers when a group word does
    Audit(commands::audit::AuditArgs),
    /// Show what is in a GGUF, safetensors or ONNX file
    Inspect(commands::inspect::InspectArgs),
    /// Make one page of a RUN, or of what a verb printed with --json
    Report(commands::report::ReportArgs),
    /// List device profiles, and what they predict of a model
    Targets(commands::targets::TargetsArgs),
    /// Say what this build and this machine can do
    Doctor(commands::doctor::DoctorArgs),
}
