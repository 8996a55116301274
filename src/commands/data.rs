//! `edgeft data`: what is wrong with a dataset, and how to part it.

pub mod check;
pub mod split;

use crate::cli::Global;
use std::process::ExitCode;

/// What to do with DATA.
#[derive(clap::Subcommand)]
pub enum DataVerb {
    /// Say what is wrong with a dataset before any weight loads; exit 3 on an error
    Check(check::CheckArgs),
    /// Part a dataset into rows to learn from, to hold out and to test on, or into folds
    Split(split::SplitArgs),
}

/// Runs the verb.
pub fn run(verb: &DataVerb, global: &Global) -> anyhow::Result<ExitCode> {
    match verb {
        DataVerb::Check(args) => check::run(args, global),
        DataVerb::Split(args) => split::run(args, global),
    }
}
