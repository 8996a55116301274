//! `edgeft demo`: an embedded example through every stage: data, tune, eval, merge, quantize, verify, run, bench.

mod lesson;
mod page;

use super::show;
use crate::cli::Global;
use crate::commands::{bench, tune, verify as gate};
use crate::demo::make;
use crate::error::GateFailed;
use crate::eval::rows::read_judged;
use crate::eval::subject::{EngineName, Subject};
use crate::eval::{Evaluation, evaluate};
use crate::export;
use crate::merge::Merged;
use crate::model::network::Task;
use crate::model::open::Opened;
use crate::tune::checkpoint::write_synced;
use crate::verify::Verification;
use edgeft_quantize::{Mix, PlanOptions};
use edgeft_runtime::measure::{Case, report::Report};
use edgeft_runtime::model::Model;
use edgeft_runtime::session::{GenerateOptions, Session, SessionOptions};
use lesson::{Lesson, Prompt};
use serde_json::json;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

/// Flags of `demo`.
#[derive(clap::Args)]
#[command(
    after_help = "Example:\n  edgeft demo\n  edgeft demo --task story --out story/\nNext:\n  edgeft run edgeft-demo/q4_k_m.gguf -p \"...\"\n  edgeft tune --model nano --data yours.jsonl --out RUN"
)]
pub struct DemoArgs {
    /// What to teach the embedded model
    #[arg(long, value_enum, default_value = "sentiment")]
    pub task: DemoTask,
    /// Folder for everything it leaves [default: edgeft-demo, edgeft-demo-story, edgeft-demo-answer]
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Replace what an earlier demo left in the folder
    #[arg(long)]
    pub force: bool,
    /// Write what the embedded model is made from into --out, and stop
    #[arg(long, hide = true, requires = "out")]
    pub make: bool,
    /// Write the weights of RUN as the embedded model's files into --out, and stop
    #[arg(long, hide = true, value_name = "RUN", requires = "out")]
    pub take: Option<String>,
}

/// What the demo can teach.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum DemoTask {
    /// Product reviews: positive, negative or neutral
    Sentiment,
    /// Pages of a lighthouse's log: text of a domain
    Story,
    /// Questions about a short text
    Answer,
}

impl DemoTask {
    fn name(self) -> &'static str {
        match self {
            Self::Sentiment => "sentiment",
            Self::Story => "story",
            Self::Answer => "answer",
        }
    }
}

/// Types that the demo quantizes to.
const MIXES: [&str; 2] = ["q8_0", "q4_k_m"];
/// Tokens that a story is continued by.
const STORY_TOKENS: usize = 80;

/// Everything that the demo found out.
pub(crate) struct Findings {
    task: DemoTask,
    lesson: Lesson,
    out: PathBuf,
    base_bytes: u64,
    before: Evaluation,
    tuned: tune::Tuned,
    after: Evaluation,
    files: Vec<Quantized>,
    answers: Vec<Answered>,
    seconds: f64,
}

/// One GGUF file, and what it is worth.
pub(crate) struct Quantized {
    mix: &'static str,
    path: PathBuf,
    bytes: u64,
    evaluation: Evaluation,
    verification: Verification,
    bench: Report,
}

/// What was asked, what was said, what was right.
pub(crate) struct Answered {
    asked: String,
    said: String,
    right: Option<String>,
}

/// Runs the verb.
pub fn run(args: &DemoArgs, global: &Global) -> anyhow::Result<ExitCode> {
    let named = || match args.task {
        DemoTask::Sentiment => PathBuf::from("edgeft-demo"),
        other => PathBuf::from(format!("edgeft-demo-{}", other.name())),
    };
    let out = args.out.clone().unwrap_or_else(named);
    if args.make {
        std::fs::create_dir_all(&out)?;
        make::write(&out, make::BYTES)?;
        return Ok(ExitCode::SUCCESS);
    }
    if let Some(run) = &args.take {
        return take(run, &out);
    }
    clear(&out, args.force)?;
    let findings = teach(args.task, &out, global)?;
    write_synced(&out.join("report.html"), crate::report::html(&findings.page()).as_bytes())?;
    show::report(global, &findings.json(), || findings.print());
    match findings.files.iter().find(|f| !f.verification.pass) {
        Some(f) => Err(GateFailed(format!("{} did not pass verification; see above", f.path.display())).into()),
        None => Ok(ExitCode::SUCCESS),
    }
}

/// The weights of a run as the files that `demo::nano` embeds.
fn take(run: &str, out: &Path) -> anyhow::Result<ExitCode> {
    let opened = Opened::open(run, 0)?;
    Merged::new(&opened)?.write_safetensors(&out.join("model.safetensors"), true)?;
    write_synced(&out.join("tokenizer.json"), &opened.text.tokenizer_json.unwrap_or_default())?;
    Ok(ExitCode::SUCCESS)
}

/// Makes room for the demo's files; `force` removes only what an earlier demo wrote.
fn clear(out: &Path, force: bool) -> anyhow::Result<()> {
    show::refuse_existing(out, force)?;
    if out.exists() {
        if !out.join("run").join("tune.toml").is_file() || !out.join("train.jsonl").is_file() {
            crate::bad_input!("{}: not the folder of an earlier demo; --force will not remove it", out.display());
        }
        std::fs::remove_dir_all(out)?;
    }
    std::fs::create_dir_all(out)
        .map_err(|e| crate::error::BadInput(format!("cannot create {}: {e}; choose another --out", out.display())))?;
    Ok(())
}

/// The whole way.
fn teach(task: DemoTask, out: &Path, global: &Global) -> anyhow::Result<Findings> {
    let start = Instant::now();
    let lesson = Lesson::of(task);
    let say = |stage: &str, line: String| {
        let line = format!("  {stage:<9} {line}");
        if global.json { eprintln!("{line}") } else { println!("{line}") }
    };
    let test = out.join("test.jsonl");

    let base = Opened::open("nano", 0)?;
    let base_bytes = crate::demo::nano::WEIGHTS.len() as u64;
    say(
        "model",
        format!("nano, a language model of {:.1} million weights that comes with edgeft", base_bytes as f64 / 2e6),
    );
    lesson.write(out)?;
    say("data", format!("{} {} to learn from, {} others held out", lesson.train.len(), lesson.rows, lesson.test.len()));

    let before = judge(before(&lesson, base, global)?, &test, &lesson)?;
    say("before", headline(&before));
    let args = tune::TuneArgs {
        model: "nano".into(),
        data: out.join("train.jsonl"),
        out: out.join("run"),
        val: Some(test.clone()),
        settings: lesson.settings.clone(),
        ..tune::TuneArgs::default()
    };
    let Some(tuned) = tune::tune(&args, global)? else { anyhow::bail!("the demo is no dry run") };
    if tuned.outcome.stopped_by == "interrupted" {
        anyhow::bail!("interrupted; what was tuned is in {}", out.join("run").display());
    }
    let first = tuned.outcome.curve.first().map_or(f64::NAN, |(_, loss)| *loss);
    let o = &tuned.outcome;
    say("tune", format!("{} steps of LoRA in {:.0} s: loss {first:.2} -> {:.2}", o.steps, o.seconds, o.loss));
    let run = out.join("run").display().to_string();
    let engine = (lesson.task != crate::data::schema::Task::Classify).then_some(EngineName::Cpu);
    let after = judge(Subject::open(&run, engine, None, global.threads())?, &test, &lesson)?;
    write_synced(&out.join("run/eval.json"), serde_json::to_string_pretty(&after.json())?.as_bytes())?;
    say("after", headline(&after));

    let opened = Opened::open(&run, 0)?;
    let merged = super::merge::merge(&opened, &out.join("merged"), false)?;
    say("merge", format!("{} adapters folded into the model, {}", merged.changed, show::bytes(merged.bytes)));

    let mut files = Vec::new();
    for name in MIXES {
        let mix: Mix = super::quantize::parse_mix(name)?;
        let path = out.join(format!("{name}.gguf"));
        let report = export::to_file(&opened, mix, &PlanOptions::default(), &path, false, &mut |_, _| ())?;
        let place = path.display().to_string();
        let evaluation = judge(Subject::open(&place, None, None, global.threads())?, &test, &lesson)?;
        let verification = gate::verify(&gate::Question {
            subject: &place,
            adapter: None,
            reference: &run,
            data: Some(&test),
            engine: None,
            bounds: None,
            threads: global.threads(),
        })?;
        let word = if verification.pass { "pass" } else { "FAIL" };
        say("quantize", format!("{name}: {}, {}", show::bytes(report.bytes), headline(&evaluation)));
        say(
            "verify",
            format!(
                "{word}: {:.1} % the same choice as before, mean KL {:.1e}",
                100.0 * verification.top1,
                verification.mean_kl
            ),
        );
        let case = Case { prompt: 64, generate: 64, ..Case::default() };
        let (_, bench) = bench::measure(&place, case, global.threads())?;
        files.push(Quantized { mix: mix.name(), path, bytes: report.bytes, evaluation, verification, bench });
    }
    let answers = match files.last() {
        Some(file) => ask(&file.path, &lesson.prompts, global)?,
        None => Vec::new(),
    };
    Ok(Findings {
        task,
        lesson,
        out: out.to_owned(),
        base_bytes,
        before,
        tuned,
        after,
        files,
        answers,
        seconds: start.elapsed().as_secs_f64(),
    })
}

/// The model before it is tuned. A classifier's head does not exist yet: it starts from noise, as tuning will find it.
fn before(lesson: &Lesson, base: Opened, global: &Global) -> anyhow::Result<Subject> {
    if lesson.task != crate::data::schema::Task::Classify {
        return Subject::open("nano", Some(EngineName::Cpu), None, global.threads());
    }
    let labels = crate::demo::datasets::LABELS.map(str::to_owned).to_vec();
    let network = base.network(Some(Task::Classify(labels)), lesson.settings.seed.unwrap_or(0))?;
    Ok(Subject::on_candle(network, base))
}

fn judge(mut subject: Subject, test: &Path, lesson: &Lesson) -> anyhow::Result<Evaluation> {
    let judged = read_judged(&subject, test, Some(lesson.task), None)?;
    let bar = show::bar(judged.len() as u64, "eval");
    let evaluation = evaluate(&mut subject, &judged, &mut |done| bar.set_position(done as u64))?;
    bar.finish_and_clear();
    Ok(evaluation)
}

/// The metric with its name and unit.
pub(crate) fn headline(e: &Evaluation) -> String {
    let (name, value) = e.headline();
    if name == "perplexity" { format!("{name} {value:.2}") } else { format!("{name} {:.1} %", 100.0 * value) }
}

/// Asks the finished file, as the device will.
fn ask(path: &Path, prompts: &[Prompt], global: &Global) -> anyhow::Result<Vec<Answered>> {
    let model = Model::open(path)?;
    let options = SessionOptions { threads: Some(global.threads()), ..SessionOptions::default() };
    let mut session = Session::new(&model, &options)?;
    prompts
        .iter()
        .map(|prompt| {
            Ok(match prompt {
                Prompt::Label(text, truth) => {
                    let scores = session.classify_text(text)?;
                    let said =
                        scores.first().map_or(String::new(), |s| format!("{} ({:.0} %)", s.label, 100.0 * s.score));
                    Answered { asked: text.clone(), said, right: Some((*truth).to_owned()) }
                }
                Prompt::Continue(text) => {
                    let ids = session.tokenizer()?.encode(text, true)?;
                    let options = GenerateOptions { max_tokens: STORY_TOKENS, ..GenerateOptions::default() };
                    let said = session.generate(&ids, &options, &mut |_| ControlFlow::Continue(()))?.text;
                    Answered { asked: text.trim().to_owned(), said, right: None }
                }
                Prompt::Ask(question, context, truth) => {
                    let said = session.answer(question, context)?.answer;
                    Answered { asked: format!("{context} {question}"), said, right: Some(truth.clone()) }
                }
            })
        })
        .collect()
}

impl Findings {
    /// The contract's fields.
    fn json(&self) -> serde_json::Value {
        let metric = |e: &Evaluation| {
            let (name, value) = e.headline();
            json!({"metric": name, "value": value})
        };
        let by_mix = |f: &dyn Fn(&Quantized) -> serde_json::Value| -> serde_json::Map<String, serde_json::Value> {
            self.files.iter().map(|q| (q.mix.to_owned(), f(q))).collect()
        };
        let place = |name: &str| self.out.join(name);
        json!({
            "task": self.task.name(),
            "base": metric(&self.before),
            "tuned": metric(&self.after),
            "quantized": by_mix(&|q| metric(&q.evaluation)),
            "verify": by_mix(&|q| json!(q.verification)),
            "bench": by_mix(&|q| q.bench.json()),
            "files": {
                "run": place("run"), "merged": place("merged"), "report": place("report.html"),
                "train": place("train.jsonl"), "test": place("test.jsonl"),
                "gguf": self.files.iter().map(|q| &q.path).collect::<Vec<_>>(),
            },
            "seconds": self.seconds,
        })
    }
}
