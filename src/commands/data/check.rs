//! `edgeft data check`: what is wrong with a dataset, and the way out.

use crate::cli::Global;
use crate::commands::show;
use crate::data::Task;
use crate::data::check::problem::{Level, Problem};
use crate::data::check::tokens::{Lengths, Shown};
use crate::data::check::{Check, Report, fix};
use crate::export;
use crate::model::open::Opened;
use edgeft_runtime::chat::ChatTemplate;
use serde_json::json;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;

/// Flags of `data check`.
#[derive(clap::Args)]
#[command(
    after_help = "Example:\n  edgeft data check reviews.csv --model nano\n  edgeft data check chats.jsonl --model base/ --val held.jsonl --fix clean.jsonl\nNext:\n  edgeft data split clean.jsonl --out parts/"
)]
pub struct CheckArgs {
    /// Rows to learn from
    #[arg(value_name = "DATA")]
    pub data: PathBuf,
    /// Model whose tokenizer and template will read them
    #[arg(long, value_name = "MODEL")]
    pub model: String,
    /// What the rows teach; read off their fields when not given
    #[arg(long, value_enum)]
    pub task: Option<Task>,
    /// Rows that will be held out: finds those that are in both files
    #[arg(long, value_name = "DATA")]
    pub val: Option<PathBuf>,
    /// Longest row, in tokens [default: the model's context]
    #[arg(long, value_name = "TOKENS", value_parser = clap::value_parser!(u32).range(2..))]
    pub max_len: Option<u32>,
    /// Write the cleaned set, and OUT.changes.jsonl with every change
    #[arg(long, value_name = "OUT")]
    pub fix: Option<PathBuf>,
    /// With --fix: replace likely e-mail addresses, telephone, card and account numbers
    #[arg(long, requires = "fix")]
    pub redact: bool,
    /// Rows to show as the model will see them
    #[arg(long, value_name = "N", default_value_t = 3)]
    pub show: usize,
    /// Seed of the sample of large files
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Replace OUT if it exists
    #[arg(long, requires = "fix")]
    pub force: bool,
}

/// Runs the verb.
pub fn run(args: &CheckArgs, global: &Global) -> anyhow::Result<ExitCode> {
    if let Some(out) = &args.fix {
        fix::fits(&args.data, out)?;
        show::refuse_existing_file(out, "--fix", args.force)?;
        show::refuse_existing_file(&fix::log_of(out), "--fix", args.force)?;
    }
    let opened = Opened::open(&args.model, 0)?;
    let tokenizer = export::tokenizer(&opened)?;
    let name = |id: Option<u32>| id.and_then(|id| tokenizer.id_to_token(id)).unwrap_or_default();
    let source = opened.text.chat_template.as_deref();
    let template = source.map(|t| ChatTemplate::new(t, name(tokenizer.bos()), name(tokenizer.eos()))).transpose()?;
    let context = opened.config.max_position_embeddings;
    if let Some(n) = args.max_len.filter(|n| *n as usize > context) {
        crate::bad_input!("--max-len {n}: the model's context has {context} tokens");
    }
    let check = Check {
        path: &args.data,
        val: args.val.as_deref(),
        task: args.task,
        labels: None,
        tokenizer: &tokenizer,
        template: template.as_ref(),
        encoder: !opened.config.family.is_decoder(),
        max_len: (args.max_len.map_or(context, |n| n as usize), args.max_len.is_some()),
        context,
        seed: args.seed,
        show: args.show,
    };
    let bar = show::counter("rows");
    let report = check.run(&mut |rows| bar.set_position(rows as u64))?;
    bar.finish_and_clear();
    let fixed = args.fix.as_ref().map(|out| fix::write(&check, &report, out, args.redact)).transpose()?;
    let passed = report.problems.iter().all(|p| p.level != Level::Error);
    let json = json!({
        "pass": passed, "task": report.task, "schema": report.schema, "rows": report.rows, "usable": report.usable,
        "val_rows": args.val.is_some().then_some(report.val_rows),
        "labels": report.labels.iter().map(|(label, rows)| json!({"label": label, "rows": rows})).collect::<Vec<_>>(),
        "lengths": report.lengths, "problems": report.problems, "shown": report.shown,
        "fixed": fixed.as_ref().map(|f| json!({"out": args.fix, "log": f.log, "kept": f.kept, "dropped": f.dropped, "changed": f.changed})),
        "peak_mib": show::peak_mib(),
    });
    show::report(global, &json, || print(args, &report, fixed.as_ref(), passed));
    Ok(if passed { ExitCode::SUCCESS } else { ExitCode::from(3) })
}

fn print(args: &CheckArgs, report: &Report, fixed: Option<&fix::Fixed>, passed: bool) {
    let paint = Paint::of_stdout();
    println!("data      {}: {}", args.data.display(), report.schema);
    println!("rows      {}, of which {} can be learned from as they are", report.rows, report.usable);
    if args.val.is_some() {
        println!("held out  {}", report.val_rows);
    }
    if !report.labels.is_empty() {
        println!("labels");
        print!("{}", bars(report.labels.iter().map(|(label, n)| (label.clone(), *n)), 12));
    }
    lengths(&report.lengths, report);
    for level in [Level::Error, Level::Warning, Level::Note] {
        report.problems.iter().filter(|p| p.level == level).for_each(|p| problem(p, &paint));
    }
    if !report.shown.is_empty() {
        println!("rows as the model sees them; {}", paint.legend());
        report.shown.iter().for_each(|s| println!("  {}", shown(s, &paint)));
    }
    if let (Some(fixed), Some(out)) = (fixed, &args.fix) {
        println!(
            "fixed     {}: {} rows kept, {} left out, {} altered; each change in {}",
            out.display(),
            fixed.kept,
            fixed.dropped,
            fixed.changed,
            fixed.log.display()
        );
    }
    let data = args.fix.as_ref().unwrap_or(&args.data).display();
    let model = &args.model;
    if !passed && fixed.is_none() {
        println!("not passed\n\nNext:\n  edgeft data check {data} --model {model} --fix clean.jsonl");
        return;
    }
    println!("{}\n\nNext:", if passed { "pass" } else { "not passed as it was; check the cleaned set again" });
    if !report.document {
        println!("  edgeft data split {data} --out parts/");
    }
    println!("  edgeft tune --model {model} --data {data} --out RUN");
}

fn lengths(l: &Lengths, report: &Report) {
    if l.counted == 0 {
        return;
    }
    if report.document {
        println!("tokens    about {} in {} lines; `tune` cuts them in windows of --max-len", l.tokens, l.counted);
        return;
    }
    let of = if l.all { String::new() } else { format!(" (of {} rows drawn by the seed, and the longest)", l.counted) };
    println!("tokens    half of the rows have at most {}, 90 % {}, 99 % {}, all {}{of}", l.p50, l.p90, l.p99, l.p100);
    print!("{}", bars(l.histogram.iter().map(|(end, n)| (format!("up to {end}"), *n)), 16));
    if !matches!(report.task, Task::Classify | Task::Answer | Task::Embed) {
        let share = 100.0 * l.learned as f64 / l.tokens.max(1) as f64;
        println!("          {} tokens, of which {} ({share:.1} %) are learned", l.tokens, l.learned);
    }
    println!("          --max-len {} keeps every row whole, {} keeps 99 %", l.p100, l.p99);
}

/// A bar and a number for each; the largest `most`.
fn bars(counts: impl Iterator<Item = (String, usize)>, most: usize) -> String {
    let all: Vec<(String, usize)> = counts.collect();
    let (total, top) =
        (all.iter().map(|c| c.1).sum::<usize>().max(1), all.iter().map(|c| c.1).max().unwrap_or(1).max(1));
    let width = all.iter().take(most).map(|(name, _)| name.chars().count().min(24)).max().unwrap_or(0);
    let mut out = String::new();
    for (name, n) in all.iter().take(most) {
        let name: String = name.chars().take(24).collect();
        let bar = "█".repeat((n * 30).div_ceil(top));
        out.push_str(&format!("  {name:<width$}  {bar:<30} {n}  {:.1} %\n", 100.0 * *n as f64 / total as f64));
    }
    if all.len() > most {
        let rest: usize = all.iter().skip(most).map(|c| c.1).sum();
        out.push_str(&format!("  and {} more with {rest} rows\n", all.len() - most));
    }
    out
}

fn problem(p: &Problem, paint: &Paint) {
    let level = match p.level {
        Level::Error => paint.red("error"),
        Level::Warning => paint.yellow("warning"),
        Level::Note => "note".to_owned(),
    };
    println!("{level}: {} {}", p.count, p.what);
    for place in &p.examples {
        match (place.line, place.note.as_str()) {
            (Some(line), "") => println!("    line {line}"),
            (Some(line), note) => println!("    line {line}: {note}"),
            (None, note) => println!("    {note}"),
        }
    }
    if p.count > p.examples.len() {
        println!("    and {} more", p.count - p.examples.len());
    }
    println!("    -> {}", p.way_out);
}

/// The tokens of a row, those that are learned marked; neighbours of one kind together.
fn shown(row: &Shown, paint: &Paint) -> String {
    const MOST: usize = 160;
    let mut out = format!("line {}: ", row.line);
    let tokens = &row.tokens[..row.tokens.len().min(MOST)];
    for run in tokens.chunk_by(|a, b| a.1 == b.1) {
        let text: String = run.iter().map(|(t, _)| t.replace('\n', "⏎").replace('\r', "␍")).collect();
        out.push_str(&if run[0].1 { paint.learned(&text) } else { paint.masked(&text) });
    }
    if row.tokens.len() > MOST {
        out.push_str(&format!(" … and {} more tokens", row.tokens.len() - MOST));
    }
    if let Some(label) = &row.label {
        out.push_str(&format!("  -> {}", paint.learned(label)));
    }
    out
}

/// Colours where somebody sees them, marks elsewhere.
struct Paint {
    colour: bool,
}

impl Paint {
    fn of_stdout() -> Self {
        let plain = std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty());
        Self { colour: std::io::stdout().is_terminal() && !plain }
    }

    fn with(&self, code: &str, text: &str) -> String {
        if self.colour { format!("\u{1b}[{code}m{text}\u{1b}[0m") } else { text.to_owned() }
    }

    fn red(&self, text: &str) -> String {
        self.with("1;31", text)
    }

    fn yellow(&self, text: &str) -> String {
        self.with("33", text)
    }

    fn learned(&self, text: &str) -> String {
        if self.colour { self.with("1;32", text) } else { format!("«{text}»") }
    }

    fn masked(&self, text: &str) -> String {
        self.with("2", text)
    }

    fn legend(&self) -> String {
        if self.colour {
            format!("{} is learned, {} is only read", self.learned("this"), self.masked("this"))
        } else {
            "«this» is learned".into()
        }
    }
}
