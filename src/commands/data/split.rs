//! `edgeft data split`: rows to learn from, to hold out, and to test on.

use crate::cli::Global;
use crate::commands::show;
use crate::data::split::files::{Division, divide};
use serde_json::json;
use std::path::PathBuf;
use std::process::ExitCode;

/// Flags of `data split`.
#[derive(clap::Args)]
#[command(
    after_help = "Example:\n  edgeft data split reviews.csv --out parts/\n  edgeft data split visits.jsonl --out parts/ --folds 5 --group patient\nNext:\n  edgeft tune --model base/ --data parts/train.csv --val parts/val.csv --out RUN"
)]
pub struct SplitArgs {
    /// File of rows
    #[arg(value_name = "DATA")]
    pub data: PathBuf,
    /// Folder for the parts
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Share that is held out while learning [default: 0.1; none with --folds]
    #[arg(long, value_name = "SHARE", value_parser = share, conflicts_with = "folds")]
    pub val: Option<f64>,
    /// Share that is kept for the last judgement [default: 0.1; none with --folds]
    #[arg(long, value_name = "SHARE", value_parser = share)]
    pub test: Option<f64>,
    /// Write K folds, each with its own train and val
    #[arg(long, value_name = "K", value_parser = clap::value_parser!(u16).range(2..=100))]
    pub folds: Option<u16>,
    /// Give every part its share of each value of this field [default: the label, where there is one]
    #[arg(long, value_name = "FIELD")]
    pub stratify: Option<String>,
    /// Keep rows with the same value of this field in one part
    #[arg(long, value_name = "FIELD")]
    pub group: Option<String>,
    /// Leave out rows that repeat another
    #[arg(long)]
    pub dedup: bool,
    /// Seed
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Replace DIR if it exists
    #[arg(long)]
    pub force: bool,
}

fn share(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(share) if (0.0..1.0).contains(&share) => Ok(share),
        _ => Err("a share from 0 to below 1, such as 0.1".into()),
    }
}

/// Runs the verb.
pub fn run(args: &SplitArgs, global: &Global) -> anyhow::Result<ExitCode> {
    let default = if args.folds.is_some() { 0.0 } else { 0.1 };
    let how = Division {
        val: args.val.unwrap_or(default),
        test: args.test.unwrap_or(default),
        folds: args.folds.map(usize::from),
        stratify: args.stratify.clone(),
        group: args.group.clone(),
        dedup: args.dedup,
        seed: args.seed,
    };
    if how.val + how.test >= 1.0 {
        crate::bad_input!("--val {} and --test {} leave nothing to learn from", how.val, how.test);
    }
    let folder = show::NewFolder::create(&args.out, args.force)?;
    let done = divide(&args.data, &how, folder.path())?;
    folder.finish()?;
    let files: Vec<(String, usize)> =
        done.files.iter().map(|(file, rows)| (args.out.join(file).display().to_string(), *rows)).collect();
    let json = json!({
        "out": args.out, "rows": done.rows, "repeats_left_out": done.repeats, "stratified_by": done.stratified_by,
        "files": files.iter().map(|(file, rows)| json!({"file": file, "rows": rows})).collect::<Vec<_>>(),
    });
    show::report(global, &json, || {
        let rows: Vec<Vec<String>> = files.iter().map(|(file, rows)| vec![file.clone(), rows.to_string()]).collect();
        print!("{}", show::table(&rows));
        let by = done.stratified_by.map_or(String::new(), |f| format!(", each part with its share of every `{f}`"));
        let out = if done.repeats > 0 { format!(", {} repeats left out", done.repeats) } else { String::new() };
        println!("{} rows; the same text is never in two parts{by}{out}", done.rows);
        let find = |name: &str| files.iter().find(|(f, _)| f.rsplit('/').next().is_some_and(|f| f.starts_with(name)));
        let val = find("val.").map_or(String::new(), |(f, _)| format!(" --val {f}"));
        if let Some((train, _)) = find("train.") {
            println!("\nNext:\n  edgeft tune --model MODEL --data {train}{val} --out RUN");
        }
    });
    Ok(ExitCode::SUCCESS)
}
