//! One verb a file: arguments in, report out. Only this folder and the binaries print, read the environment or exit.

pub mod adapter;
pub mod audit;
pub mod bench;
pub mod constraint;
pub mod data;
pub mod demo;
pub mod doctor;
pub mod eval;
pub mod inspect;
pub mod merge;
pub mod ort;
pub mod package;
#[cfg(feature = "hub")]
pub mod pull;
pub mod quantize;
pub mod report;
pub mod run;
#[cfg(feature = "server")]
pub mod serve;
pub mod show;
pub mod targets;
pub mod tokenize;
pub mod tune;
pub mod verify;

use crate::cli::{Cli, Verb};
use crate::data::DataError;
use crate::error::{BadInput, GateFailed};
use std::process::ExitCode;

/// Runs the verb and turns its outcome into an exit code (see the contract: 0, 1, 2, 3, 130).
pub fn main(cli: Cli) -> ExitCode {
    leave_when_nobody_reads();
    let global = &cli.global;
    // One pool for all: candle's GEMM and our loops share it. A trainer works on a thread of it (see its `run`); where nothing
    // else asks the pool for work that is this one, whose memory the allocator keeps closer together.
    let pool = rayon::ThreadPoolBuilder::new().num_threads(global.threads());
    let pool = if matches!(cli.verb, Verb::Tune(_)) { pool.use_current_thread() } else { pool };
    if let Err(e) = pool.build_global() {
        eprintln!("error: cannot start {} threads: {e}", global.threads());
        return ExitCode::from(1);
    }
    let outcome = match &cli.verb {
        Verb::Demo(args) => demo::run(args, global),
        #[cfg(feature = "hub")]
        Verb::Pull(args) => pull::run(args, global),
        Verb::Data(verb) => data::run(verb, global),
        Verb::Tune(args) => tune::run(args, global),
        Verb::Eval(args) => eval::run(args, global),
        Verb::Merge(args) => merge::run(args, global),
        Verb::Quantize(args) => quantize::run(args, global),
        Verb::Verify(args) => verify::run(args, global),
        Verb::Tokenize(args) => tokenize::run(args, global),
        Verb::Run(args) => run::run(args, global),
        #[cfg(feature = "server")]
        Verb::Serve(args) => serve::run(args, global),
        Verb::Package(args) => package::run(args, global),
        Verb::Audit(args) => audit::run(args, global),
        Verb::Bench(args) => bench::run(args, global),
        Verb::Inspect(args) => inspect::run(args, global),
        Verb::Targets(args) => targets::run(args, global),
        Verb::Report(args) => report::run(args, global),
        Verb::Doctor(args) => doctor::run(args, global),
    };
    match outcome {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {}", chain(&error));
            ExitCode::from(exit_code(&error))
        }
    }
}

/// `edgeft inspect ... | head` has seen enough: `println!` panics when its reader is gone, which is no fault to tell of.
fn leave_when_nobody_reads() {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        let text = info.payload().downcast_ref::<String>().map_or("", String::as_str);
        // Caught where parquet files are read, and told as an error of the file.
        if info.location().is_some_and(|l| l.file().contains("/parquet-")) {
            return;
        }
        if text.starts_with("failed printing to stdout") && text.contains("Broken pipe") {
            std::process::exit(0);
        }
        usual(info);
    }));
}

/// The chain of causes, a line each, without saying the same thing twice.
fn chain(error: &anyhow::Error) -> String {
    let mut lines: Vec<String> = Vec::new();
    for cause in error.chain() {
        let text = cause.to_string();
        if !lines.iter().any(|l| l.contains(&text)) {
            lines.push(text);
        }
    }
    lines.join("\n  ")
}

/// 2 for what the user gave, 3 for a gate, 1 for what failed while working.
fn exit_code(error: &anyhow::Error) -> u8 {
    for cause in error.chain() {
        if cause.is::<GateFailed>() {
            return 3;
        }
        // A disk that is full or a device that fails is nobody's bad input, whatever was being read or written.
        if let Some(io) = cause.downcast_ref::<std::io::Error>()
            && matches!(io.kind(), std::io::ErrorKind::StorageFull | std::io::ErrorKind::AddrInUse)
        {
            return 1;
        }
    }
    for cause in error.chain() {
        if cause.is::<BadInput>() {
            return 2;
        }
        if let Some(e) = cause.downcast_ref::<DataError>() {
            return if e.is_bad_input() { 2 } else { 1 };
        }
        #[cfg(feature = "hub")]
        if let Some(e) = cause.downcast_ref::<crate::hub::HubError>() {
            return if e.is_bad_input() { 2 } else { 1 };
        }
        if let Some(e) = cause.downcast_ref::<edgeft_runtime::Error>() {
            use edgeft_runtime::Kind;
            return match e.kind() {
                Kind::Io => 1,
                _ => 2,
            };
        }
        if let Some(e) = cause.downcast_ref::<edgeft_quantize::Error>() {
            return if e.is_input() { 2 } else { 1 };
        }
    }
    1
}
