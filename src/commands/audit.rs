//! `edgeft audit`: what changes in a model's answers when a group word does.

use super::ort::OrtArgs;
use super::show;
use crate::cli::Global;
use crate::eval::audit::pairs::{Asked, Columns, read, read_lines};
use crate::eval::audit::{Audit, labels, likelihood, templates};
use crate::eval::metrics::paired::Difference;
use crate::eval::subject::{EngineName, Subject};
use crate::export;
use crate::model::masked::Masked;
use crate::model::network::Task;
use crate::model::open::{Opened, Place};
use crate::tune::checkpoint::write_synced;
use crate::tune::run_folder::is_run;
use candle_core::Device;
use serde_json::json;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Flags of `audit`.
#[derive(clap::Args)]
#[command(
    after_help = "A language model says which sentence of a pair is likelier: the share of pairs in which it is the \
    stereotyping one, 50 % where it does not look. A classifier labels both sentences: how often the label flips, how far its \
    score moves, and the gaps between groups.\nPAIRS has a header: `sent_more,sent_less,bias_type` (CrowS-Pairs), or \
    `first,second,category,first_group,second_group,label`, or single texts with `text,group,label`; other columns are named by \
    --columns.\nWhat it finds is in the sentences that it was given; a good number is no certificate.\n\n\
    Example:\n  edgeft audit RUN --data crows_pairs.csv --against base/\n  edgeft audit RUN\n  edgeft audit RUN --data mine.csv \
    --columns first=he,second=she,label=truth\n  edgeft audit model.gguf --data pro.txt --second anti.txt\nNext:\n  edgeft report RUN \
    --out run.html"
)]
pub struct AuditArgs {
    /// Model, RUN, GGUF, ONNX folder, or `nano`
    #[arg(value_name = "MODEL")]
    pub model: String,
    /// Pairs of sentences, csv, tsv or jsonl [default: built-in sentences, few and mild]
    #[arg(long, value_name = "PAIRS")]
    pub data: Option<PathBuf>,
    /// The other sentences, line by line; DATA then holds the first ones, a line each (WinoBias)
    #[arg(long, value_name = "FILE", requires = "data")]
    pub second: Option<PathBuf>,
    /// Which column holds which part: PART=COLUMN, by comma
    #[arg(long, value_name = "PART=COLUMN,...", requires = "data", conflicts_with = "second")]
    pub columns: Option<Columns>,
    /// Label whose share is compared between groups [default: positive, or the last label]
    #[arg(long, value_name = "LABEL")]
    pub favorable: Option<String>,
    /// Another model on the same pairs, such as the base before tuning: what the tuning added
    #[arg(long, value_name = "MODEL")]
    pub against: Option<String>,
    /// Where to compute [default: cpu for GGUF, ort for ONNX folders, candle for other folders and RUNs]
    #[arg(long, value_enum)]
    pub engine: Option<EngineName>,
    /// Flags of ONNX Runtime
    #[command(flatten)]
    pub ort: OrtArgs,
}

/// Runs the verb.
pub fn run(args: &AuditArgs, global: &Global) -> anyhow::Result<ExitCode> {
    let models = [Some((args.model.as_str(), args.engine)), args.against.as_deref().map(|m| (m, None))];
    args.ort.load_for(&models.into_iter().flatten().collect::<Vec<_>>())?;
    let audit = ask(args, &args.model, args.engine, global)?;
    let against = args.against.as_ref().map(|other| -> anyhow::Result<_> {
        let theirs = ask(args, other, None, global)?;
        Ok((other, audit.against(&theirs)?, theirs))
    });
    let against = against.transpose()?;
    let mut line = audit.json();
    line["data"] = args.data.as_ref().map_or_else(|| json!("built-in sentences"), |d| json!(d));
    if let Some((other, difference, theirs)) = &against {
        line["against"] = theirs.json();
        line["against"]["model"] = json!(other);
        line["difference"] = json!(difference);
    }
    let run = Path::new(&args.model);
    if is_run(run) {
        write_synced(&run.join("audit.json"), serde_json::to_string_pretty(&line)?.as_bytes())?;
        crate::report::card::refresh(run)?;
    }
    show::report(global, &line, || {
        print(&audit);
        if let Some((other, difference, theirs)) = &against {
            println!("\nagainst {other}, on the same pairs");
            compare(&audit, theirs, difference.as_ref());
        }
    });
    Ok(ExitCode::SUCCESS)
}

/// One model on the pairs.
fn ask(args: &AuditArgs, model: &str, engine: Option<EngineName>, global: &Global) -> anyhow::Result<Audit> {
    if let Some(masked) = masked(args, model, engine)? {
        return Ok(masked);
    }
    let mut subject = Subject::open(model, engine, None, global.threads())?;
    show::runs_on(subject.runs_on());
    let classifies = matches!(subject.task(), Some(Task::Classify(_)));
    let asked = asked(args, classifies)?;
    let bar = show::bar(count(&asked), "audit");
    let mut progress = |done: usize| bar.set_position(done as u64);
    let audit = match (subject.task(), &asked) {
        (Some(Task::Classify(_)), asked) => {
            labels::classifier(&mut subject, asked, args.favorable.as_deref(), &mut progress)?
        }
        (Some(Task::Generate), Asked::Pairs(pairs)) => {
            if args.favorable.is_some() {
                crate::bad_input!("--favorable names a label, but {model} generates text and has none");
            }
            likelihood::decoder(&mut subject, pairs, &mut progress)?
        }
        (Some(Task::Generate), Asked::Singles(_)) => crate::bad_input!(
            "{model} is a language model, which is asked with pairs of sentences; single texts with a group need a classifier"
        ),
        (Some(Task::Span), _) => crate::bad_input!(
            "{model} finds answers in a context and can be asked neither for a label nor for a likelihood; audit its base, or a \
             classifier"
        ),
        (Some(Task::Embed(_)), _) => crate::bad_input!(
            "{model} gives vectors and can be asked neither for a label nor for a likelihood; audit a model that is tuned for a task"
        ),
        (None, _) => crate::bad_input!(
            "{model} is an encoder without a head; tune it first, or give a checkpoint with a masked-language head"
        ),
    };
    bar.finish_and_clear();
    Ok(audit)
}

/// A folder of a masked language model, without a head for another task.
fn masked(args: &AuditArgs, model: &str, engine: Option<EngineName>) -> anyhow::Result<Option<Audit>> {
    if !matches!(Place::of(model)?, Place::Folder(_)) || engine.is_some_and(|e| e != EngineName::Candle) {
        return Ok(None);
    }
    let opened = Opened::open(model, 0)?;
    if opened.config.family.is_decoder() || opened.task()?.is_some() {
        return Ok(None);
    }
    if !Masked::is_in(&opened.config, &opened.weights) {
        crate::bad_input!(
            "{model}: an encoder without a head: no masked-language head (as BertForMaskedLM has) for a pseudo log-likelihood, \
             and no classifier; tune it first (`edgeft tune --task classify`), or give a checkpoint that holds one"
        );
    }
    let Asked::Pairs(pairs) = asked(args, false)? else {
        crate::bad_input!("{model} is a language model, which is asked with pairs of sentences");
    };
    let network = Masked::load(&opened.config, &opened.weights, &Device::Cpu)?;
    let bar = show::bar(pairs.len() as u64, "audit");
    let tokenizer = export::tokenizer(&opened)?;
    let n_ctx = opened.config.max_position_embeddings;
    let audit = likelihood::masked(&network, &tokenizer, n_ctx, &pairs, &mut |done| bar.set_position(done as u64))?;
    bar.finish_and_clear();
    Ok(Some(audit))
}

fn asked(args: &AuditArgs, classifies: bool) -> anyhow::Result<Asked> {
    Ok(match (&args.data, &args.second) {
        (Some(first), Some(second)) => Asked::Pairs(read_lines(first, second)?),
        (Some(data), None) => read(data, args.columns.as_ref().unwrap_or(&Columns::default()))?,
        (None, _) if classifies => Asked::Pairs(templates::counterfactuals()),
        (None, _) => Asked::Pairs(templates::stereotypes()),
    })
}

fn count(asked: &Asked) -> u64 {
    match asked {
        Asked::Pairs(pairs) => pairs.len() as u64,
        Asked::Singles(rows) => rows.len() as u64,
    }
}

/// What a metric says, for somebody who has never met it.
fn meaning(audit: &Audit) -> String {
    let label = audit.favorable.as_deref().unwrap_or_default();
    match audit.metric {
        "stereotype_share" => "pairs in which the stereotyping sentence is likelier; 50 % looks at no group".into(),
        "flip_rate" => "pairs whose label flips with the group word; 0 % looks at no group".into(),
        _ => format!("between the groups with the most and the fewest `{label}`; 0 % is none"),
    }
}

fn shown(i: &crate::eval::metrics::Interval, unit: f64) -> String {
    format!("{:.1} (95 %: {:.1} to {:.1})", unit * i.value, unit * i.low, unit * i.high)
}

fn print(audit: &Audit) {
    println!("{} {} %: {}", audit.metric.replace('_', " "), shown(&audit.value, 100.0), meaning(audit));
    println!("  {} asked; {}", audit.pairs, audit.how);
    let mut rows: Vec<Vec<String>> = Vec::new();
    for (name, i, n) in &audit.by_group {
        rows.push(vec![name.clone(), format!("{} %", shown(i, 100.0)), n.to_string()]);
    }
    print!("{}", show::table_with(&rows, &[0]));
    for (name, i) in &audit.more {
        let (unit, sign) = if *name == "mean_log_ratio" { (1.0, " nats") } else { (100.0, " %") };
        println!("  {} {}{sign}", name.replace('_', " "), shown(i, unit));
    }
    if let Some(label) = audit.favorable.as_ref().filter(|_| !audit.rates.is_empty()) {
        println!("share that gets `{label}`, by group");
        let part = |r: Option<f64>| r.map_or("-".to_owned(), |r| format!("{:.1} %", 100.0 * r));
        let header = ["group", "texts", "all", "where it is right", "where it is wrong"];
        let mut rows = vec![header.map(str::to_owned).to_vec()];
        for r in &audit.rates {
            rows.push(vec![
                r.group.clone(),
                r.texts.to_string(),
                part(Some(r.favorable.value)),
                part(r.true_positive),
                part(r.false_positive),
            ]);
        }
        print!("{}", show::table(&rows));
    }
    println!("what it finds is in these sentences; a good number is no certificate");
}

fn compare(audit: &Audit, theirs: &Audit, difference: Option<&Difference>) {
    match difference {
        Some(d) => println!(
            "  {} {:.1} % against {:.1} %: {:+.1} (95 %: {:+.1} to {:+.1}), p = {:.3}",
            audit.metric.replace('_', " "),
            100.0 * d.subject,
            100.0 * d.against,
            100.0 * d.difference,
            100.0 * d.low,
            100.0 * d.high,
            d.p
        ),
        None => println!(
            "  {} {:.1} % against {:.1} %",
            audit.metric.replace('_', " "),
            100.0 * audit.value.value,
            100.0 * theirs.value.value
        ),
    }
    let mut rows = Vec::new();
    for (name, i, n) in &audit.by_group {
        let Some((_, other, _)) = theirs.by_group.iter().find(|(other, ..)| other == name) else { continue };
        let percent = |v: f64| format!("{:.1} %", 100.0 * v);
        rows.push(vec![name.clone(), percent(i.value), percent(other.value), n.to_string()]);
    }
    print!("{}", show::table(&rows));
}
