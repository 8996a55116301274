//! `edgeft eval`: judge a model on held-out rows.

use super::ort::OrtArgs;
use super::show;
use crate::cli::Global;
use crate::data::schema::Task as TaskName;
use crate::eval::rows::read_judged;
use crate::eval::subject::{EngineName, Subject};
use crate::eval::{Evaluation, evaluate};
use crate::model::layers::contrast::Pooling;
use crate::model::network::Task;
use crate::model::open::{Opened, Place};
use crate::tune::checkpoint::write_synced;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Flags of `eval`.
#[derive(clap::Args)]
#[command(
    after_help = "Example:\n  edgeft eval RUN --data test.jsonl\n  edgeft eval model.gguf --data test.jsonl --predictions out.jsonl\n  edgeft eval bert/ --task embed --data queries.jsonl\nNext:\n  edgeft quantize RUN --type q4_k_m --out model.gguf --verify test.jsonl"
)]
pub struct EvalArgs {
    /// Model, RUN, GGUF, ONNX folder, or `nano`
    #[arg(value_name = "MODEL")]
    pub model: String,
    /// Adapter folder over the model
    #[arg(long, value_name = "RUN")]
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
    /// Longest row, in tokens [default: the model's context]
    #[arg(long, value_name = "TOKENS")]
    pub max_len: Option<usize>,
    /// Write a line a row: what was predicted, and how surely
    #[arg(long, value_name = "FILE.jsonl")]
    pub predictions: Option<PathBuf>,
}

/// Runs the verb.
pub fn run(args: &EvalArgs, global: &Global) -> anyhow::Result<ExitCode> {
    if let Some(path) = &args.predictions {
        show::refuse_existing(path, false)?;
    }
    let evaluation = judge(args, global)?;
    if let Some(path) = &args.predictions {
        let lines: String = evaluation.predictions.iter().flat_map(|l| [l.to_string(), "\n".into()]).collect();
        write_synced(path, lines.as_bytes())?;
    }
    // A RUN keeps its last judgement.
    if crate::tune::run_folder::is_run(Path::new(&args.model)) {
        write_synced(
            &Path::new(&args.model).join("eval.json"),
            serde_json::to_string_pretty(&evaluation.json())?.as_bytes(),
        )?;
    }
    show::report(global, &evaluation.json(), || print!("{evaluation}"));
    Ok(ExitCode::SUCCESS)
}

fn judge(args: &EvalArgs, global: &Global) -> anyhow::Result<Evaluation> {
    args.ort.load_for(&[(&args.model, args.engine)])?;
    let mut subject = match &args.adapter {
        None => Subject::open(&args.model, args.engine, asked(args)?, global.threads())?,
        Some(adapter) => Subject::with_adapter(&args.model, adapter)?,
    };
    show::runs_on(subject.runs_on());
    let judged = read_judged(&subject, &args.data, args.task, args.max_len)?;
    let bar = show::bar(judged.len() as u64, "eval");
    let evaluation = evaluate(&mut subject, &judged, &mut |done| bar.set_position(done as u64))?;
    bar.finish_and_clear();
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
