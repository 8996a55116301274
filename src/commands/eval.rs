//! `edgeft eval`: judge a model on held-out rows.

use super::ort::OrtArgs;
use super::{adapter, show};
use crate::cli::Global;
use crate::data::schema::Task as TaskName;
use crate::eval::metrics::paired::Difference;
use crate::eval::rows::{Judged, held_out, read_judged};
use crate::eval::show::{difference_line, differences};
use crate::eval::subject::{EngineName, Subject};
use crate::eval::text::{self, Windows};
use crate::eval::{Evaluation, Fit, against, evaluate_with, written};
use crate::model::layers::contrast::Pooling;
use crate::model::network::Task;
use crate::model::open::{Opened, Place};
use crate::tune::checkpoint::write_synced;
use crate::tune::run_folder::{RunFile, is_run};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Flags of `eval`.
#[derive(clap::Args)]
#[command(
    after_help = "Example:\n  edgeft eval RUN --data test.jsonl\n  edgeft eval RUN --data test.jsonl --against base/\n  edgeft eval model.gguf --data test.jsonl --predictions out.jsonl\n  edgeft eval model.gguf --data book.txt --max-len 512 --stride 256\n  edgeft eval bert/ --task embed --data queries.jsonl\nNext:\n  edgeft report RUN --out run.html\n  edgeft quantize RUN --type q4_k_m --out model.gguf --verify test.jsonl"
)]
pub struct EvalArgs {
    /// Model, RUN, GGUF, ONNX folder, or `nano`
    #[arg(value_name = "MODEL")]
    pub model: String,
    /// Adapter folder over the model, on candle; or a GGUF adapter beside it, FILE.gguf[=SCALE], on cpu
    #[arg(long, value_name = "RUN|FILE.gguf")]
    pub adapter: Option<PathBuf>,
    /// Rows to judge on
    #[arg(long, value_name = "DATA")]
    pub data: PathBuf,
    /// What the rows ask [default: what the model was tuned for]
    #[arg(long, value_enum)]
    pub task: Option<TaskName>,
    /// Where to compute [default: cpu for GGUF, ort for ONNX folders, candle for other folders and RUNs]
    #[arg(long, value_enum)]
    pub engine: Option<EngineName>,
    /// Flags of ONNX Runtime
    #[command(flatten)]
    pub ort: OrtArgs,
    /// Longest row, in tokens; with --stride the window [default: the model's context; of windows at most 1024]
    #[arg(long, value_name = "TOKENS")]
    pub max_len: Option<usize>,
    /// Another model on the same rows: each difference with its interval and p, paired row by row
    #[arg(long, value_name = "MODEL")]
    pub against: Option<String>,
    /// Rows to fit on what is fitted: the temperature of a classifier, the threshold below which a question stays unanswered
    /// [default: the rows that the RUN held out]
    #[arg(long, value_name = "DATA")]
    pub fit: Option<PathBuf>,
    /// Leave a question unanswered when its chance of "no answer" is above P, from 0 to 1 [default: fitted where it can be,
    /// else 0.5: no answer is likelier than the best one]
    #[arg(long, value_name = "P", value_parser = chance)]
    pub no_answer_threshold: Option<f64>,
    /// Of chats and completions, let the model write the answers of N rows, spread evenly, and compare them with the right
    /// ones: ROUGE-L (0 to 1) and chrF (0 to 100); 0 writes none
    #[arg(long, value_name = "N", default_value_t = 100)]
    pub write: usize,
    /// Longest answer that is written, in tokens
    #[arg(long, value_name = "TOKENS", default_value_t = 128, value_parser = super::run::at_least_one)]
    pub max_new: usize,
    /// Perplexity of a text in windows that begin N tokens apart, where each token counts once, with the context before it
    #[arg(long, value_name = "N")]
    pub stride: Option<usize>,
    /// Perplexity of a text as llama.cpp's llama-perplexity counts it: windows one after another, their second halves
    #[arg(long, conflicts_with = "stride")]
    pub second_half: bool,
    /// Write a line a row: what was predicted, and how surely
    #[arg(long, value_name = "FILE.jsonl")]
    pub predictions: Option<PathBuf>,
}

fn chance(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(p) if (0.0..=1.0).contains(&p) => Ok(p),
        _ => Err("a chance from 0 to 1, such as 0.5".into()),
    }
}

/// Windows of texts, where nothing else is said.
const WINDOW: usize = 1024;

/// What two models differ by, and the other one.
type Compared = (String, Vec<(&'static str, Difference)>);

/// Runs the verb.
pub fn run(args: &EvalArgs, global: &Global) -> anyhow::Result<ExitCode> {
    if let Some(path) = &args.predictions {
        show::refuse_existing(path, false)?;
    }
    let models = [Some((args.model.as_str(), args.engine)), args.against.as_deref().map(|m| (m, None))];
    args.ort.load_for(&models.into_iter().flatten().collect::<Vec<_>>())?;
    let evaluation = judge(args, global)?;
    let compared = args.against.as_ref().map(|other| compare(args, other, &evaluation, global)).transpose()?;
    if let Some(path) = &args.predictions {
        let written = evaluation.written.iter().flat_map(|w| &w.predictions);
        let lines: String =
            evaluation.predictions.iter().chain(written).flat_map(|l| [l.to_string(), "\n".into()]).collect();
        write_synced(path, lines.as_bytes())?;
    }
    let mut line = evaluation.json();
    line["data"] = json!(args.data);
    if let Some((other, found)) = &compared {
        line["against"] = json!({"model": other, "metrics": differences(found)});
    }
    keep(args, &line)?;
    show::report(global, &line, || {
        print!("{evaluation}");
        if let Some((other, found)) = &compared {
            println!("against {other}, on the same rows");
            found.iter().for_each(|(name, d)| println!("{}", difference_line(name, d)));
        }
    });
    Ok(ExitCode::SUCCESS)
}

/// A RUN keeps its last judgement, and what its card and its page say of it.
fn keep(args: &EvalArgs, line: &Value) -> anyhow::Result<()> {
    let run = Path::new(&args.model);
    if !is_run(run) {
        return Ok(());
    }
    write_synced(&run.join("eval.json"), serde_json::to_string_pretty(line)?.as_bytes())?;
    crate::report::card::refresh(run)
}

fn judge(args: &EvalArgs, global: &Global) -> anyhow::Result<Evaluation> {
    let mut subject = match &args.adapter {
        None => Subject::open(&args.model, args.engine, asked(args)?, global.threads())?,
        Some(given) if given.to_string_lossy().contains(".gguf") && !given.is_dir() => {
            let named = adapter::open(&given.to_string_lossy())?;
            Subject::beside(&args.model, (&named.adapter, named.scale), args.engine, global.threads())?
        }
        Some(folder) => Subject::with_adapter(&args.model, folder)?,
    };
    show::runs_on(subject.runs_on());
    let judged = rows(args, &subject)?;
    let fit_rows = fit_rows(args, &subject, &judged)?;
    let fit = Fit { on: fit_rows.as_ref().map(|(rows, on)| (rows, on.clone())), threshold: args.no_answer_threshold };
    let all = judged.len() + fit_rows.as_ref().map_or(0, |(rows, _)| rows.len());
    let bar = show::bar(all as u64, "eval");
    let mut evaluation = evaluate_with(&mut subject, &judged, &fit, &mut |done| bar.set_position(done as u64))?;
    bar.finish_and_clear();
    if written::count(&judged, args.write) > 0 {
        evaluation.written = write(args, &mut subject, &judged, global)?;
    }
    Ok(evaluation)
}

/// The task that a model is opened for, where that is another than it says of itself: any network gives vectors.
fn asked(args: &EvalArgs) -> anyhow::Result<Option<Task>> {
    let folder = matches!(Place::of(&args.model)?, Place::Folder(_) | Place::Nano);
    if args.task != Some(TaskName::Embed) || !folder {
        return Ok(None);
    }
    Ok(match Opened::open(&args.model, 0)?.task()? {
        Some(Task::Embed(_)) => None,
        _ => Some(Task::Embed(Pooling::default())),
    })
}

/// Writing goes through the cpu engine, which has a cache; a network that cannot leave writes on candle.
fn write(
    args: &EvalArgs,
    subject: &mut Subject,
    judged: &Judged,
    global: &Global,
) -> anyhow::Result<Option<written::Written>> {
    let longest = judged.rows.iter().map(|r| r.ids.len()).max().unwrap_or(0);
    let mut writer = subject.writer(global.threads(), longest + args.max_new + 1)?;
    if writer.is_none() && matches!(subject, Subject::Candle(_)) {
        eprintln!("writing on candle, which has no cache: slow; --write 0 leaves it out");
    }
    let bar = show::bar(written::count(judged, args.write) as u64, "write");
    let mut progress = |done: usize| bar.set_position(done as u64);
    let out = written::evaluate(writer.as_mut().unwrap_or(subject), judged, args.write, args.max_new, &mut progress)?;
    bar.finish_and_clear();
    Ok(out)
}

fn rows(args: &EvalArgs, subject: &Subject) -> anyhow::Result<Judged> {
    let windows = match (args.stride, args.second_half) {
        (Some(n), _) => Windows::Stride(n),
        (None, true) => Windows::SecondHalf,
        (None, false) => return read_judged(subject, &args.data, args.task, args.max_len),
    };
    if let Some(task) = args.task.filter(|t| *t != TaskName::Text) {
        crate::bad_input!("--stride and --second-half cut plain text; --task {task} has rows of its own");
    }
    if let Some(asked) = args.max_len.filter(|n| *n > subject.n_ctx()) {
        crate::bad_input!("--max-len {asked}, but the model has {} positions", subject.n_ctx());
    }
    text::read(subject, &args.data, args.max_len.unwrap_or(subject.n_ctx().min(WINDOW)), windows)
}

/// Rows to fit on, and what they are called.
fn fit_rows(args: &EvalArgs, subject: &Subject, judged: &Judged) -> anyhow::Result<Option<(Judged, String)>> {
    let fits = |rows: &Judged| match judged.task {
        TaskName::Classify => rows.task == TaskName::Classify,
        // Only an encoder has a chance of "no answer", and only where some have none is there something to fit.
        TaskName::Answer => {
            !subject.is_decoder()
                && args.no_answer_threshold.is_none()
                && rows.questions.iter().any(|q| q.answers.is_empty())
        }
        _ => false,
    };
    if let Some(data) = &args.fit {
        let rows = read_judged(subject, data, Some(judged.task), args.max_len)?;
        if !fits(&rows) {
            crate::bad_input!(
                "--fit {}: nothing is fitted for this model on these rows; classifiers get a temperature, encoders that \
                 answer questions a threshold, where some questions have no answer",
                data.display()
            );
        }
        return Ok(Some((rows, data.display().to_string())));
    }
    let run = Path::new(&args.model);
    if !matches!(judged.task, TaskName::Classify | TaskName::Answer) || !is_run(run) {
        return Ok(None);
    }
    let file = RunFile::read(run)?;
    if file.run.val.is_none() && file.run.held_out.is_empty() {
        return Ok(None);
    }
    match held_out(subject, &file) {
        Ok(rows) => Ok(Some((rows, "the rows that the run held out".to_owned())).filter(|(rows, _)| fits(rows))),
        Err(why) => {
            eprintln!("nothing is fitted: {why}");
            Ok(None)
        }
    }
}

fn compare(args: &EvalArgs, other: &str, evaluation: &Evaluation, global: &Global) -> anyhow::Result<Compared> {
    let mut subject = Subject::open(other, None, None, global.threads())?;
    show::runs_on(subject.runs_on());
    let judged = rows(args, &subject)?;
    let fit = Fit { on: None, threshold: args.no_answer_threshold };
    let bar = show::bar(judged.len() as u64, "against");
    let theirs = evaluate_with(&mut subject, &judged, &fit, &mut |done| bar.set_position(done as u64))?;
    bar.finish_and_clear();
    Ok((other.to_owned(), against::against(evaluation, &theirs)?))
}
