//! Parse, run one command, print the error chain, set the exit code.

use clap::Parser;
use edgeft::cli::Cli;
use std::process::ExitCode;

fn main() -> ExitCode {
    let cli = Cli::parse(); // clap itself ends with 2 on wrong usage
    edgeft::commands::main(cli)
}
