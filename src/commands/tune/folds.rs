//! `tune --folds K`: K adapters over one base, each judged on the rows that it did not see.
//!
//! RUN holds a RUN for each fold, `fold-1` and so on, `folds.json` (mean and deviation of each metric) and `out_of_fold.jsonl`
//! (a prediction for every row, by an adapter that never saw it).

use super::dry_run::DryRun;
use super::shared::{Shared, restore, snapshot};
use super::watch::Bar;
use super::{TuneArgs, finish, step_of};
use crate::cli::Global;
use crate::commands::show;
use crate::eval::folds::Spread;
use crate::eval::rows::judged;
use crate::eval::subject::Subject;
use crate::eval::{Evaluation, evaluate};
use crate::tune::checkpoint::{self, write_synced};
use crate::tune::config::TuneConfig;
use crate::tune::run_folder::{RunFile, RunFolder, is_run};
use crate::tune::trainer::Trainer;
use anyhow::Context;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

/// Runs the verb for K folds.
pub fn run(args: &TuneArgs, k: usize, global: &Global) -> anyhow::Result<ExitCode> {
    let since = Instant::now();
    let saved = if args.resume { Some(RunFile::read(&args.out)?) } else { None };
    if let Some(then) = saved.as_ref().map(|s| s.run.folds).filter(|f| *f != Some(k)) {
        let then = then.map_or("without --folds".to_owned(), |f| format!("with {f}"));
        crate::bad_input!("--resume: --folds is {k}, but the run was begun {then}");
    }
    let mut shared = Shared::open(args, "--folds", saved.as_ref())?;
    let Some(all) = shared.read.all.take() else { anyhow::bail!("the rows were not kept") };
    let config = TuneConfig::resolve(&shared.settings, shared.read.task, &shared.opened.config)?;
    let folds = all.folds(k, config.seed);
    if let Some(empty) = folds.iter().position(Vec::is_empty) {
        crate::bad_input!(
            "{}: fold {} of {k} would hold no row: there are too few different texts; give fewer --folds",
            args.data.display(),
            empty + 1
        );
    }
    if args.dry_run {
        (shared.read.train, shared.read.val) = all.part(&folds[0]);
        shared.read.schema.push_str(&format!(" (fold 1 of {k}; each of them takes that time)"));
        return dry_run(args, &shared, &config, global);
    }
    begin(args, k, &shared, &config)?;
    let mut network = shared.network(config.seed)?;
    let adapted = shared.adapt(&mut network, args, &config)?;
    let fresh = snapshot(&mut network);
    let trainable_params: usize = fresh.values().map(candle_core::Tensor::elem_count).sum();
    let mut tokens_per_s = Vec::new();
    for (i, held_out) in folds.iter().enumerate() {
        let folder = args.out.join(format!("fold-{}", i + 1));
        if folder.join("eval.json").is_file() {
            continue;
        }
        if !global.json {
            eprintln!("fold {} of {k}: {} rows held out", i + 1, held_out.len());
        }
        restore(&mut network, &fresh);
        let (train, val) = all.part(held_out);
        let plan = shared.plan(args, &config, &train, &val)?;
        let (mut run, from) = if is_run(&folder) {
            let newest = checkpoint::newest(&folder)?;
            (RunFolder::resume(&folder, newest.as_deref().and_then(step_of).unwrap_or(0))?, newest)
        } else {
            let mut file = shared.file(args, &config, held_out)?;
            file.run.fold = Some(i + 1);
            (RunFolder::create(&folder, &file, false)?, None)
        };
        shared.write_text(&folder)?;
        let mut watch = Bar::new();
        let mut trainer = Trainer {
            network: &mut network,
            config: &config,
            objective: config.objective(),
            train: &train,
            val: &val,
            activations: plan.activations,
            since: Instant::now(), // a --budget is a fold's
            folder: &mut run,
        };
        let outcome = trainer.run(from.as_deref(), &mut watch).with_context(|| format!("fold {} failed", i + 1))?;
        watch.finish();
        if outcome.stopped_by == "interrupted" {
            eprintln!("interrupted in fold {}; go on with the same command and --resume", i + 1);
            return Ok(ExitCode::from(130));
        }
        tokens_per_s.push(outcome.tokens_per_s);
        finish(&shared.opened, &mut network, Some(&adapted), &run)?;
        // The network goes into a subject to be judged, and comes back.
        let rows = judged(&all, Some(held_out));
        let mut subject = Subject::on_candle(network, shared.opened);
        let bar = show::bar(rows.len() as u64, "eval");
        let evaluation = evaluate(&mut subject, &rows, &mut |done| bar.set_position(done as u64))?;
        bar.finish_and_clear();
        let Subject::Candle(inside) = subject else { anyhow::bail!("the subject changed its engine") };
        (network, shared.opened) = (inside.network, inside.opened);
        keep(&folder, i + 1, &evaluation, args)?;
    }
    let summary = summarize(args, k, &folds)?;
    let mut line = summary.clone();
    line["out"] = json!(args.out);
    line["trainable_params"] = json!(trainable_params);
    line["tokens_per_s"] = json!((!tokens_per_s.is_empty()).then(|| Spread::of(&tokens_per_s).mean));
    line["peak_mib"] = json!(show::peak_mib());
    line["seconds"] = json!(since.elapsed().as_secs_f64());
    show::report(global, &line, || print(args, k, &summary, shared.can_leave()));
    Ok(ExitCode::SUCCESS)
}

/// The folder that the folds lie in.
fn begin(args: &TuneArgs, k: usize, shared: &Shared, config: &TuneConfig) -> anyhow::Result<()> {
    if args.resume {
        return Ok(());
    }
    let mut file = shared.file(args, config, &[])?;
    file.run.folds = Some(k);
    // The metrics stay empty: each fold has its own.
    RunFolder::create(&args.out, &file, args.force).map(drop)
}

/// What came of a fold; its evaluation is written last, and says that the fold is done.
fn keep(folder: &Path, fold: usize, evaluation: &Evaluation, args: &TuneArgs) -> anyhow::Result<()> {
    let line = |p: &Value| {
        let mut p = p.clone();
        p["fold"] = json!(fold);
        format!("{p}\n")
    };
    let lines: String = evaluation.predictions.iter().map(line).collect();
    write_synced(&folder.join("predictions.jsonl"), lines.as_bytes())?;
    let mut json = evaluation.json();
    json["data"] = json!(format!("{} (fold {fold})", args.data.display()));
    write_synced(&folder.join("eval.json"), serde_json::to_string_pretty(&json)?.as_bytes())?;
    crate::report::card::refresh(folder)
}

/// Mean and deviation of every metric, and the predictions of all folds in the order of their rows.
fn summarize(args: &TuneArgs, k: usize, folds: &[Vec<usize>]) -> anyhow::Result<Value> {
    let mut values: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    let (mut rows, mut per_fold) = (Vec::new(), Vec::new());
    for (fold, held_out) in (1..=k).zip(folds) {
        let folder = args.out.join(format!("fold-{fold}"));
        let read = |name: &str| {
            let path = folder.join(name);
            std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
        };
        let eval: Value = serde_json::from_str(&read("eval.json")?)?;
        let metrics: Vec<String> =
            eval["ci95"].as_object().into_iter().flatten().map(|(name, _)| name.clone()).collect();
        let mut own = serde_json::Map::new();
        for name in metrics.into_iter().chain(["loss".to_owned()]) {
            if let Some(v) = eval[name.as_str()].as_f64() {
                own.insert(name.clone(), json!(v));
                values.entry(name).or_default().push(v);
            }
        }
        per_fold.push(json!({"fold": fold, "out": folder, "held_out": held_out.len(), "metrics": own}));
        for line in read("predictions.jsonl")?.lines() {
            let row: Value = serde_json::from_str(line)?;
            rows.push((row["row"].as_u64().unwrap_or(0), line.to_owned()));
        }
    }
    rows.sort_by_key(|(row, _)| *row);
    let lines: String = rows.into_iter().map(|(_, line)| line + "\n").collect();
    write_synced(&args.out.join("out_of_fold.jsonl"), lines.as_bytes())?;
    // A metric that some fold lacks (an area without one of the classes) has no mean over folds.
    values.retain(|_, v| v.len() == k);
    let spreads: serde_json::Map<String, Value> =
        values.iter().map(|(name, v)| (name.clone(), json!(Spread::of(v)))).collect();
    let summary = json!({"folds": per_fold, "metrics": spreads, "out_of_fold": args.out.join("out_of_fold.jsonl")});
    write_synced(&args.out.join("folds.json"), serde_json::to_string_pretty(&summary)?.as_bytes())?;
    let report = crate::report::run::of_run(&args.out)?;
    write_synced(&args.out.join("report.html"), crate::report::html(&report).as_bytes())?;
    Ok(summary)
}

fn print(args: &TuneArgs, k: usize, summary: &Value, can_leave: bool) {
    let out = args.out.display();
    println!("{k} folds: each adapter judged on the rows that it had not seen");
    let mut rows = vec![["", "mean", "deviation"].map(str::to_owned).to_vec()];
    rows[0].extend((1..=k).map(|i| format!("fold {i}")));
    for (name, m) in summary["metrics"].as_object().into_iter().flatten() {
        let number = |v: &Value| format!("{:.4}", v.as_f64().unwrap_or(f64::NAN));
        let mut row = vec![name.replace('_', " "), number(&m["mean"]), number(&m["deviation"])];
        row.extend(m["values"].as_array().into_iter().flatten().map(number));
        rows.push(row);
    }
    print!("{}", show::table(&rows));
    println!(
        "\n{out}/out_of_fold.jsonl holds a prediction for every row. Folds say how good such a model is, not which to ship."
    );
    let next = if can_leave { "quantize FINAL --type q4_k_m --out model.gguf" } else { "merge FINAL --out merged/" };
    println!(
        "\nNext:\n  edgeft tune --model {} --data {} --out FINAL --no-val   # on every row",
        args.model,
        args.data.display()
    );
    println!("  edgeft {next}\n  edgeft report {out} --out folds.html");
}

/// The plan of the first fold; the others take as long.
fn dry_run(args: &TuneArgs, shared: &Shared, config: &TuneConfig, global: &Global) -> anyhow::Result<ExitCode> {
    let read = &shared.read;
    let plan = shared.plan(args, config, &read.train, &read.val)?;
    let weights = shared.weights(args, config)?;
    DryRun { given: &shared.settings, config, model: &shared.opened.config, read, weights, plan: &plan }
        .print(global)?;
    Ok(ExitCode::SUCCESS)
}
