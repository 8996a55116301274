//! `edgeft targets NAME --models DIR...`: candidates for a device and a task, the likeliest first.
//!
//! What is known before anything is tuned: whether a model can do the task at all, what it takes, how fast it would be. How good
//! it will be is not; `eval` says that.

use super::{predict, show};
use crate::cli::Global;
use crate::data::schema::Task as TaskName;
use crate::error::BadInput;
use crate::model::open::{Opened, Place};
use crate::profile::prediction::rate;
use crate::profile::{Prediction, Profile};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// What speaks for and against a model.
struct Candidate {
    model: String,
    /// What it cannot do of the task, if it cannot.
    unfit: Option<String>,
    /// Weights, where the model's files say.
    params: Option<u64>,
    prediction: Result<Prediction, String>,
}

impl Candidate {
    /// Whether it does the task, fits, and how fast it is at best.
    fn standing(&self) -> (bool, bool, f64) {
        let Ok(p) = &self.prediction else { return (false, false, 0.0) };
        let rate = p.likely.map(|l| l.decode_tokens_per_s).or(p.decode_tokens_per_s);
        // A model that does not decode reads a text in one pass: what a pass moves stands for its time.
        let passes = p.gb_per_s * 1e9 / (p.weights_per_forward.max(1)) as f64;
        (self.unfit.is_none(), p.fits(), rate.unwrap_or(passes))
    }

    fn json(&self, rank: usize) -> Value {
        let mut out = match &self.prediction {
            Ok(p) => p.json(),
            Err(why) => json!({"kind": "predicted", "refused": why}),
        };
        out["rank"] = json!(rank);
        out["path"] = json!(self.model);
        out["params"] = json!(self.params);
        out["suits_task"] = json!(self.unfit.is_none() && self.prediction.is_ok());
        out["unfit"] = json!(self.unfit);
        out["context"] = json!(self.prediction.as_ref().ok().map(|p| p.memory.ctx));
        out
    }
}

/// Ranks the models for the device.
pub fn run(
    name: &str,
    models: &[PathBuf],
    task: Option<TaskName>,
    ctx: Option<usize>,
    global: &Global,
) -> anyhow::Result<ExitCode> {
    let mut found = Vec::new();
    for place in models {
        found.extend(within(place)?);
    }
    let mut profile = super::named(name, None, global)?;
    let mut all = Vec::new();
    for model in found {
        let prediction = match predict(name, &model, ctx, global) {
            Ok((with_model, prediction)) => {
                profile = with_model;
                Ok(prediction)
            }
            Err(why) => Err(format!("{why:#}")),
        };
        let opened = Opened::open(&model, 0).ok();
        let unfit = task.and_then(|t| unfit(t, opened.as_ref()));
        all.push(Candidate { unfit, params: opened.as_ref().map(params), prediction, model });
    }
    // Those that do the task and fit stand first, the fastest of them at the top; names settle what is equal.
    all.sort_by(|a, b| {
        let ((suits_a, fits_a, rate_a), (suits_b, fits_b, rate_b)) = (a.standing(), b.standing());
        (suits_b, fits_b).cmp(&(suits_a, fits_a)).then(rate_b.total_cmp(&rate_a)).then_with(|| a.model.cmp(&b.model))
    });
    let line = json!({
        "target": profile.name, "task": task, "kind": "predicted",
        "ranking": all.iter().zip(1..).map(|(c, rank)| c.json(rank)).collect::<Vec<_>>(),
        "sources": {"memory": profile.memory.source, "bandwidth": profile.bandwidth.source,
            "sustained": profile.sustained.as_ref().map(|s| &s.source),
            "kernels": profile.kernels.iter().map(|k| &k.source).collect::<Vec<_>>()},
    });
    show::report(global, &line, || print(&profile, task, &all));
    Ok(ExitCode::SUCCESS)
}

/// A place that is a model, or the models in a folder of them.
fn within(place: &Path) -> anyhow::Result<Vec<String>> {
    let name = place.display().to_string();
    let whole = Place::of(&name);
    if whole.is_ok() || !place.is_dir() {
        whole?;
        return Ok(vec![name]);
    }
    let mut inside: Vec<String> = std::fs::read_dir(place)
        .map_err(|e| BadInput(format!("cannot read {name}: {e}")))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|p| p.is_dir() || p.extension().is_some_and(|e| e == "gguf"))
        .map(|p| p.display().to_string())
        .filter(|p| Place::of(p).is_ok())
        .collect();
    inside.sort();
    if inside.is_empty() {
        crate::bad_input!("{name}: neither a model nor a folder of models (folders with config.json, .gguf files)");
    }
    Ok(inside)
}

/// What a model lacks for a task, as far as its files say.
fn unfit(task: TaskName, opened: Option<&Opened>) -> Option<String> {
    let Some(opened) = opened else { return Some("it cannot be tuned here".into()) };
    let decoder = opened.config.family.is_decoder();
    match task {
        TaskName::Chat if decoder && opened.text.chat_template.is_none() => Some("no chat template".into()),
        TaskName::Chat | TaskName::Completion | TaskName::Text | TaskName::Preference if !decoder => {
            Some("an encoder: it writes nothing".into())
        }
        _ => None,
    }
}

/// Weights by the shapes of the checkpoint.
fn params(opened: &Opened) -> u64 {
    let of = |name: &str| opened.weights.shape(name).map_or(0, |s| s.iter().map(|n| *n as u64).product());
    opened.weights.names().map(of).sum()
}

fn print(profile: &Profile, task: Option<TaskName>, all: &[Candidate]) {
    let what = task.map_or(String::new(), |t| format!(" for --task {t}"));
    println!("{}{what}: predicted by arithmetic on the profile's figures, nothing measured\n", profile.title);
    let header = ["", "model", "weights", "type", "memory", "fits", "context", "tokens/s at most", "likely", "remark"];
    let mut rows = vec![header.map(str::to_owned).to_vec()];
    for (c, rank) in all.iter().zip(1..) {
        let name = Path::new(&c.model).file_name().map_or_else(|| c.model.clone(), |n| n.to_string_lossy().into());
        let params = c.params.filter(|n| *n > 0).map_or("-".into(), |n| format!("{:.1} M", n as f64 / 1e6));
        let mut row = vec![rank.to_string(), name, params];
        match &c.prediction {
            Ok(p) => row.extend([
                p.ty.clone(),
                show::bytes(p.memory.total()),
                if p.fits() { "yes" } else { "NO" }.into(),
                p.memory.ctx.to_string(),
                p.decode_tokens_per_s.map_or("-".into(), rate),
                p.likely.map_or("-".into(), |l| rate(l.decode_tokens_per_s)),
                c.unfit.clone().unwrap_or_else(|| match p.decode_tokens_per_s {
                    Some(_) => String::new(),
                    None => "reads in one pass".into(),
                }),
            ]),
            Err(why) => {
                row.extend(["-", "-", "-", "-", "-", "-"].map(str::to_owned));
                row.push(why.lines().next().unwrap_or_default().to_owned());
            }
        }
        rows.push(row);
    }
    print!("{}", show::table_with(&rows, &[1, 3, 5, 9]));
    println!("\nmemory      {:.0} MiB: {}", profile.memory.mib, profile.memory.source);
    println!("at most     {:.1} GB/s: {}", profile.bandwidth.gb_per_s, profile.bandwidth.source);
    if let Some(s) = &profile.sustained {
        println!("likely      {:.1} GB/s: {}", s.gb_per_s, s.source);
    }
    println!("Which of them learns best is not predicted: tune the first ones and let `edgeft eval` say.");
    if let Some(first) = all.first().filter(|c| c.standing().0) {
        let task = task.map_or(String::new(), |t| format!(" --task {t}"));
        println!("\nNext:\n  edgeft tune --model {} --data DATA{task} --out RUN --dry-run", first.model);
    }
}
