//! `tune --sweep`: settings tried out over one base, by successive halving (Jamieson and Talwalkar, arXiv:1502.07943).
//!
//! Every trial runs under its own whole schedule and is only interrupted at the end of a round, so that the winner is, to the
//! byte, the adapter that its settings give when they are tuned alone. RUN becomes the winner's RUN, with `best.toml` (its settings
//! resolved, for `--config`), `sweep.json` and the other trials under `trials/`.

use super::shared::{Shared, restore, snapshot};
use super::watch::Bar;
use super::{TuneArgs, finish, step_of};
use crate::cli::Global;
use crate::commands::show;
use crate::data::batch::Course;
use crate::error::BadInput;
use crate::tune::checkpoint::{self, write_synced};
use crate::tune::config::{Init, Method, TuneConfig};
use crate::tune::run_folder::{RunFile, RunFolder, is_run};
use crate::tune::sweep::{Sweep, Trial};
use crate::tune::trainer::{StepReport, Trainer, Watch};
use anyhow::Context;
use candle_core::Tensor;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

/// What a trial reached at the end of a round.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
struct Reached {
    /// Optimizer steps by then.
    steps: usize,
    /// Held-out loss; what the trials are ranked by.
    val_loss: f64,
    /// Of the last step.
    loss: f64,
}

/// A trial with its settings resolved.
struct Run {
    trial: Trial,
    config: TuneConfig,
    folder: PathBuf,
    reached: Vec<Reached>,
}

/// Stops a trial at the end of its round.
struct Until<'a> {
    bar: &'a mut Bar,
    step: usize,
    end: usize,
    by_hand: bool,
}

impl Watch for Until<'_> {
    fn step(&mut self, report: StepReport) {
        self.step = report.step;
        self.bar.step(report);
    }

    fn evaluation(&mut self, step: usize, loss: f64, accuracy: f64) {
        self.bar.evaluation(step, loss, accuracy);
    }

    fn stop(&mut self) -> bool {
        self.by_hand = self.bar.stop();
        self.by_hand || self.step >= self.end
    }
}

/// Runs the verb for a sweep.
pub fn run(args: &TuneArgs, file: &Path, global: &Global) -> anyhow::Result<ExitCode> {
    let since = Instant::now();
    let sweep = Sweep::read(file)?;
    let shared = Shared::open(args, "--sweep", None)?;
    if shared.read.val.is_empty() {
        crate::bad_input!("--sweep: trials are ranked by the loss of held-out rows; give --val, or leave --no-val out");
    }
    let mut trials = trials(args, &sweep, &shared)?;
    let rounds = sweep.rounds(trials.len());
    if args.dry_run {
        print_plan(&trials, &rounds, &shared, global);
        return Ok(ExitCode::SUCCESS);
    }
    begin(args, file)?;
    let seed = trials[0].config.seed;
    let mut network = shared.network(seed)?;
    // Heads and what else is trained whole start alike in every trial.
    shared.adapt(&mut network, args, &trials[0].config)?;
    let mut fresh = snapshot(&mut network);
    fresh.retain(|name, _| !name.contains(".lora_") && !name.contains(".ia3_"));
    let mut alive: Vec<usize> = (0..trials.len()).collect();
    for (round, (share, survivors)) in rounds.iter().enumerate() {
        for i in &alive {
            let run = &mut trials[*i];
            if !global.json {
                let what = run.trial.words();
                eprintln!("round {} of {}, trial {}: {what}", round + 1, rounds.len(), run.trial.number);
            }
            let Some(reached) = one_round(args, &shared, &mut network, &fresh, run, round, *share)? else {
                eprintln!("interrupted in trial {}; go on with the same command and --resume", run.trial.number);
                return Ok(ExitCode::from(130));
            };
            run.reached.truncate(round);
            run.reached.push(reached);
            write_synced(&run.folder.join("rounds.json"), serde_json::to_string(&run.reached)?.as_bytes())?;
        }
        alive.sort_by(|a, b| loss_of(&trials[*a]).total_cmp(&loss_of(&trials[*b])).then(a.cmp(b)));
        alive.truncate(*survivors);
    }
    let winner = alive[0];
    let line = crown(args, &shared, &trials, winner)?;
    let mut whole = line.clone();
    let best = trials[winner].reached.last().copied();
    whole["out"] = json!(args.out);
    whole["steps"] = json!(best.map(|b| b.steps));
    whole["loss"] = json!(best.map(|b| b.loss));
    whole["val"] = json!(best.map(|b| b.val_loss));
    whole["peak_mib"] = json!(show::peak_mib());
    whole["seconds"] = json!(since.elapsed().as_secs_f64());
    whole["stopped_by"] = json!("steps");
    show::report(global, &whole, || print(args, &trials, winner));
    Ok(ExitCode::SUCCESS)
}

/// Every combination, resolved: a value that cannot be is refused before anything is trained.
fn trials(args: &TuneArgs, sweep: &Sweep, shared: &Shared) -> anyhow::Result<Vec<Run>> {
    let mut out = Vec::new();
    for trial in sweep.trials(shared.settings.seed.unwrap_or(0)) {
        if let Some(name) = trial.both(&shared.settings) {
            crate::bad_input!("--{name} is given, and the sweep has a list of it; leave one of them out");
        }
        let settings = trial.settings.clone().over(shared.settings.clone());
        if settings.budget.is_some() {
            crate::bad_input!(
                "--sweep and --budget: trials are halved by steps, and a budget would give each another number"
            );
        }
        let config = TuneConfig::resolve(&settings, shared.read.task, &shared.opened.config)
            .with_context(|| format!("trial {}: {}", trial.number, trial.words()))?;
        if config.init == Init::Pissa || config.method == Method::Full {
            crate::bad_input!("--sweep: pissa takes a part out of the base, and every trial needs the same base");
        }
        let folder = args.out.join("trials").join(format!("{:02}", trial.number));
        let reached = match std::fs::read_to_string(folder.join("rounds.json")) {
            Ok(text) if args.resume => serde_json::from_str(&text)
                .map_err(|e| BadInput(format!("{}: {e}", folder.join("rounds.json").display())))?,
            _ => Vec::new(),
        };
        out.push(Run { trial, config, folder, reached });
    }
    Ok(out)
}

/// The folder of the sweep, with the file that it was begun with.
fn begin(args: &TuneArgs, file: &Path) -> anyhow::Result<()> {
    let (kept, text) = (args.out.join("sweep.toml"), std::fs::read_to_string(file)?);
    if args.resume {
        let then = std::fs::read_to_string(&kept).map_err(|e| {
            BadInput(format!("--resume: cannot read {}: {e}; no sweep was begun there", kept.display()))
        })?;
        if then != text {
            crate::bad_input!(
                "--resume: {} is not what the sweep was begun with: see {}",
                file.display(),
                kept.display()
            );
        }
        if is_run(&args.out) {
            crate::bad_input!("--resume: the sweep in {} is finished", args.out.display());
        }
        return Ok(());
    }
    if args.out.exists() {
        if !args.force {
            crate::bad_input!(
                "{} exists; choose another --out, go on in it with --resume, or replace it with --force",
                args.out.display()
            );
        }
        if !is_run(&args.out) && !kept.is_file() && std::fs::read_dir(&args.out)?.next().is_some() {
            crate::bad_input!("{} is not a RUN folder; --force will not remove it", args.out.display());
        }
        std::fs::remove_dir_all(&args.out)?;
    }
    std::fs::create_dir_all(args.out.join("trials"))
        .map_err(|e| BadInput(format!("cannot create {}: {e}", args.out.display())))?;
    write_synced(&kept, text.as_bytes())
}

fn loss_of(run: &Run) -> f64 {
    run.reached.last().map_or(f64::INFINITY, |r| if r.val_loss.is_finite() { r.val_loss } else { f64::INFINITY })
}

/// Trains a trial to the end of a round; `None` when somebody interrupted.
fn one_round(
    args: &TuneArgs,
    shared: &Shared,
    network: &mut crate::model::network::Network,
    fresh: &BTreeMap<String, Tensor>,
    run: &Run,
    round: usize,
    share: f64,
) -> anyhow::Result<Option<Reached>> {
    if let Some(done) = run.reached.get(round) {
        return Ok(Some(*done)); // in an earlier process
    }
    let (read, c) = (&shared.read, &run.config);
    let steps = steps(read.train.iter().map(|r| r.ids.len()).collect(), c);
    let end = ((share * steps as f64).ceil() as usize).clamp(1, steps);
    let adapted = shared.adapt(network, args, c)?;
    restore(network, fresh);
    let plan = shared.plan(args, c, &read.train, &read.val)?;
    let (mut folder, from) = if is_run(&run.folder) {
        let newest = checkpoint::newest(&run.folder)?;
        (RunFolder::resume(&run.folder, newest.as_deref().and_then(step_of).unwrap_or(0))?, newest)
    } else {
        (RunFolder::create(&run.folder, &shared.file(args, c, &read.held_out)?, false)?, None)
    };
    let mut bar = Bar::new();
    let mut until = Until { bar: &mut bar, step: 0, end, by_hand: false };
    let mut trainer = Trainer {
        network,
        config: c,
        objective: c.objective(),
        train: &read.train,
        val: &read.val,
        activations: plan.activations,
        since: Instant::now(),
        folder: &mut folder,
    };
    let outcome =
        trainer.run(from.as_deref(), &mut until).with_context(|| format!("trial {} failed", run.trial.number))?;
    if until.by_hand && outcome.stopped_by == "interrupted" {
        return Ok(None);
    }
    let val_loss = match outcome.val.filter(|_| outcome.stopped_by != "interrupted") {
        Some(val) => val,
        None => trainer.judge()?.loss,
    };
    bar.finish();
    if outcome.stopped_by != "interrupted" {
        shared.write_text(&run.folder)?;
        finish(&shared.opened, network, Some(&adapted), &folder)?;
    }
    Ok(Some(Reached { steps: outcome.steps, val_loss, loss: outcome.loss }))
}

/// Steps of a whole run.
fn steps(lengths: Vec<usize>, c: &TuneConfig) -> usize {
    let course = Course::new(lengths, c.size(), c.accumulate, c.seed);
    c.steps.unwrap_or_else(|| course.steps_in(c.epochs.unwrap_or(1.0)))
}

/// Moves the winner's files up into RUN; the others keep their curves and lose their checkpoints.
fn crown(args: &TuneArgs, shared: &Shared, trials: &[Run], winner: usize) -> anyhow::Result<Value> {
    let line = json!({
        "winner": trials[winner].trial.number,
        "trials": trials.iter().map(|t| json!({
            "trial": t.trial.number, "settings": t.trial.values, "steps": t.reached.last().map(|r| r.steps),
            "val_loss": t.reached.last().map(|r| r.val_loss), "rounds": t.reached,
        })).collect::<Vec<_>>(),
        "settings": trials[winner].config.to_settings(), "data": shared.read.schema,
    });
    write_synced(&args.out.join("sweep.json"), serde_json::to_string_pretty(&line)?.as_bytes())?;
    write_synced(&args.out.join("best.toml"), toml::to_string(&trials[winner].config.to_settings())?.as_bytes())?;
    for (_, run) in trials.iter().enumerate().filter(|(i, _)| *i != winner) {
        let checkpoints = run.folder.join("checkpoints");
        if checkpoints.is_dir() {
            std::fs::remove_dir_all(checkpoints)?;
        }
    }
    // tune.toml last: with it the folder is a RUN.
    let mut entries: Vec<PathBuf> =
        std::fs::read_dir(&trials[winner].folder)?.map(|e| Ok(e?.path())).collect::<std::io::Result<_>>()?;
    entries.sort_by_key(|p| p.ends_with("tune.toml"));
    for entry in entries {
        if let Some(name) = entry.file_name() {
            std::fs::rename(&entry, args.out.join(name))?;
        }
    }
    std::fs::remove_dir(&trials[winner].folder)?;
    RunFile::read(&args.out)?;
    let report = crate::report::run::of_run(&args.out)?;
    write_synced(&args.out.join("report.html"), crate::report::html(&report).as_bytes())?;
    crate::report::card::refresh(&args.out)?;
    Ok(line)
}

fn print_plan(trials: &[Run], rounds: &[(f64, usize)], shared: &Shared, global: &Global) {
    let line = json!({"data": shared.read.schema,
        "trials": trials.iter().map(|t| json!({"trial": t.trial.number, "settings": t.trial.values})).collect::<Vec<_>>(),
        "rounds": rounds.iter().map(|(share, left)| json!({"share": share, "survivors": left})).collect::<Vec<_>>()});
    show::report(global, &line, || {
        println!("data    {}", shared.read.schema);
        println!("trials  {}", trials.len());
        trials.iter().for_each(|t| println!("        {:>2}  {}", t.trial.number, t.trial.words()));
        let mut there = trials.len();
        for (i, (share, left)) in rounds.iter().enumerate() {
            println!("round {}  {there} trials up to {:.0} % of their steps, {left} left", i + 1, 100.0 * share);
            there = *left;
        }
        println!("\nNothing was written. The same command without --dry-run begins.");
    });
}

fn print(args: &TuneArgs, trials: &[Run], winner: usize) {
    let mut ranked: Vec<&Run> = trials.iter().collect();
    ranked.sort_by(|a, b| b.reached.len().cmp(&a.reached.len()).then(loss_of(a).total_cmp(&loss_of(b))));
    let mut rows = vec![["trial", "settings", "rounds", "steps", "held-out loss"].map(str::to_owned).to_vec()];
    for run in ranked {
        let steps = run.reached.last().map_or(0, |r| r.steps);
        rows.push(vec![
            run.trial.number.to_string(),
            run.trial.words(),
            run.reached.len().to_string(),
            steps.to_string(),
            format!("{:.4}", loss_of(run)),
        ]);
    }
    print!("{}", show::table_with(&rows, &[1]));
    let out = args.out.display();
    println!("\nwinner: trial {}, {}", trials[winner].trial.number, trials[winner].trial.words());
    println!("{out} is its RUN; {out}/best.toml holds its settings, for --config");
    println!("\nNext:\n  edgeft eval {out} --data test.jsonl\n  edgeft report {out} --out run.html");
}
