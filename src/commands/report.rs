//! `edgeft report`: a RUN, or the JSON that a verb printed, as one page.

use super::show;
use crate::cli::Global;
use crate::report::{html, run};
use crate::tune::checkpoint::write_synced;
use crate::tune::run_folder::is_run;
use serde_json::json;
use std::path::PathBuf;
use std::process::ExitCode;

/// Flags of `report`.
#[derive(clap::Args, Debug, Clone)]
#[command(
    after_help = "Example:\n  edgeft report RUN --out run.html\n  edgeft report bench.json --out bench.html\nNext:\n  open the page in a browser: it needs nothing else"
)]
pub struct ReportArgs {
    /// A RUN folder, or a file that holds what a verb printed with --json
    #[arg(value_name = "RUN|FILE.json")]
    pub subject: PathBuf,
    /// The page
    #[arg(long, value_name = "FILE.html")]
    pub out: PathBuf,
    /// Replace an existing page
    #[arg(long)]
    pub force: bool,
}

/// Runs the verb.
pub fn run(args: &ReportArgs, global: &Global) -> anyhow::Result<ExitCode> {
    show::refuse_existing_file(&args.out, "--out", args.force)?;
    let subject = args.subject.display();
    let data = if is_run(&args.subject) {
        run::of_run(&args.subject)?
    } else if args.subject.is_file() {
        run::of_json(&args.subject)?
    } else {
        crate::bad_input!(
            "{subject}: neither a RUN folder nor a file; give what `edgeft tune` wrote, or a verb's --json"
        );
    };
    let page = html(&data);
    write_synced(&args.out, page.as_bytes())?;
    let out = args.out.display();
    show::report(global, &json!({"out": args.out, "bytes": page.len()}), || {
        println!("{out}: {}; open it in a browser", show::bytes(page.len() as u64));
    });
    Ok(ExitCode::SUCCESS)
}
