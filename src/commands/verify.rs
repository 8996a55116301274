//! `edgeft verify`: hold two stages of one model against each other.

use super::ort::OrtArgs;
use super::{adapter, show};
use crate::cli::Global;
use crate::data::tokens::Reference;
use crate::error::BadInput;
use crate::eval::evaluate;
use crate::eval::rows::{Judged, read_judged};
use crate::eval::subject::{EngineName, Subject};
use crate::model::open::{Opened, Place};
use crate::tune::checkpoint::write_synced;
use crate::tune::run_folder::is_run;
use crate::verify::{Bounds, Sides, Verification, compare, compare_recorded};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Flags of `verify`.
#[derive(clap::Args)]
#[command(
    after_help = "Example:\n  edgeft verify model.q4_k_m.gguf --against RUN --data test.jsonl\n  edgeft verify base.gguf --adapter polite.gguf --against RUN\n  edgeft verify CASE --against CASE/io.safetensors --max-abs 5e-4\nExit code 3: the gate did not pass.\nNext:\n  edgeft run model.q4_k_m.gguf -p \"...\""
)]
pub struct VerifyArgs {
    /// Model that is examined
    #[arg(value_name = "SUBJECT")]
    pub subject: String,
    /// GGUF adapter beside the subject, at SCALE times its strength [default: 1]
    #[arg(long, value_name = "FILE[=SCALE]")]
    pub adapter: Option<String>,
    /// Model it is held against, or a .safetensors with input_ids and logits
    #[arg(long, value_name = "REFERENCE")]
    pub against: String,
    /// Rows to compare on [default: the rows that the RUN held out, else an embedded sample]
    #[arg(long, value_name = "DATA")]
    pub data: Option<PathBuf>,
    /// Engine of the subject [default: cpu for GGUF, ort for ONNX folders, candle for other folders]
    #[arg(long, value_enum)]
    pub engine: Option<EngineName>,
    /// Flags of ONNX Runtime
    #[command(flatten)]
    pub ort: OrtArgs,
    /// Largest mean KL divergence, nats a position [default: by the subject's type]
    #[arg(long, value_name = "X")]
    pub max_kl: Option<f64>,
    /// Least share of positions with the same top 1 [default: by the subject's type]
    #[arg(long, value_name = "X")]
    pub min_top1: Option<f64>,
    /// Largest difference of two logits [default: not bounded]
    #[arg(long, value_name = "X")]
    pub max_abs: Option<f64>,
}

/// What is to be compared.
pub struct Question<'a> {
    /// SUBJECT as typed.
    pub subject: &'a str,
    /// GGUF adapter beside it, as typed.
    pub adapter: Option<&'a str>,
    /// REFERENCE as typed.
    pub reference: &'a str,
    /// Rows, if given.
    pub data: Option<&'a Path>,
    /// Engine of the subject, if given.
    pub engine: Option<EngineName>,
    /// Bounds, if given; else by the subject's type.
    pub bounds: Option<Bounds>,
    /// Threads of the CPU engine.
    pub threads: usize,
}

/// Runs the verb.
pub fn run(args: &VerifyArgs, global: &Global) -> anyhow::Result<ExitCode> {
    let given = Bounds { max_kl: args.max_kl, min_top1: args.min_top1, max_abs: args.max_abs };
    args.ort.load_for(&[(&args.subject, args.engine), (&args.against, None)])?;
    let any = args.max_kl.is_some() || args.min_top1.is_some() || args.max_abs.is_some();
    let verification = verify(&Question {
        subject: &args.subject,
        adapter: args.adapter.as_deref(),
        reference: &args.against,
        data: args.data.as_deref(),
        engine: args.engine,
        bounds: any.then_some(given),
        threads: global.threads(),
    })?;
    let mut line = serde_json::to_value(&verification)?;
    if let Some(adapter) = &args.adapter {
        line["adapter"] = adapter.as_str().into();
    }
    keep(&mut line, &args.subject, &args.against)?;
    show::report(global, &line, || print(&verification));
    Ok(if verification.pass { ExitCode::SUCCESS } else { ExitCode::from(3) })
}

/// A RUN that was compared with keeps its last verification, for its page.
pub fn keep(line: &mut serde_json::Value, subject: &str, against: &str) -> anyhow::Result<()> {
    (line["subject"], line["against"]) = (subject.into(), against.into());
    match [against, subject].into_iter().find(|m| is_run(Path::new(m))) {
        Some(run) => write_synced(&Path::new(run).join("verify.json"), serde_json::to_string_pretty(line)?.as_bytes()),
        None => Ok(()),
    }
}

/// Measures.
pub fn verify(q: &Question) -> anyhow::Result<Verification> {
    let mut subject = match q.adapter.map(adapter::open).transpose()? {
        None => Subject::open(q.subject, q.engine, None, q.threads)?,
        Some(named) => Subject::beside(q.subject, (&named.adapter, named.scale), q.engine, q.threads)?,
    };
    show::runs_on(subject.runs_on());
    let bounds = match q.bounds {
        Some(bounds) => bounds,
        None => Bounds::of_type(&subject.type_name()).ok_or_else(|| {
            BadInput(format!("no usual bounds for type {}; give --max-kl or --min-top1", subject.type_name()))
        })?,
    };
    if Path::new(q.reference).extension().is_some_and(|e| e == "safetensors") {
        return compare_recorded(&mut subject, &Reference::read(Path::new(q.reference))?, bounds);
    }
    let mut reference = Subject::open(q.reference, None, None, q.threads)?;
    let judged = rows(q, &subject, &reference)?;
    let mut verification = compare(&mut subject, &mut reference, &judged.rows, bounds)?;
    if !judged.questions.is_empty() {
        let bar = show::bar(2 * judged.len() as u64, "answering");
        let exact_match = |side: &mut Subject, done: usize| {
            let evaluation = evaluate(side, &judged, &mut |n| bar.set_position((done + n) as u64))?;
            anyhow::Ok(evaluation.answers.map_or(f64::NAN, |a| a.exact_match.value))
        };
        let sides =
            Sides { subject: exact_match(&mut subject, 0)?, reference: exact_match(&mut reference, judged.len())? };
        bar.finish_and_clear();
        verification.require_exact_match(sides);
    }
    if let (Ok(a), Ok(b)) = (subject.tokenizer(), reference.tokenizer()) {
        let mut difference = None;
        for text in &judged.texts {
            let (x, y) = (a.encode(text, true)?, b.encode(text, true)?);
            if x != y {
                let at = x.iter().zip(&y).position(|(x, y)| x != y).unwrap_or(x.len().min(y.len()));
                difference =
                    Some(format!("tokens differ at {at} of {text:?}: {:?} against {:?}", x.get(at), y.get(at)));
                break;
            }
        }
        verification.require(difference.is_none(), "tokens", difference);
    }
    if subject.template().is_some() || reference.template().is_some() {
        let same = subject.template() == reference.template();
        verification.require(same, "template", (!same).then(|| "the chat templates differ".to_owned()));
    }
    if let (Place::Gguf(file), Place::Run(_)) = (Place::of(q.subject)?, Place::of(q.reference)?) {
        let opened = Opened::open(q.reference, 0)?;
        // Beside a base nothing was merged, so nothing was rounded away.
        if opened.adapter.is_some() && q.adapter.is_none() {
            verification.retention = crate::retention::of_file(&opened, &file)?;
        }
    }
    Ok(verification)
}

/// DATA, or what the RUN held out, or the embedded sample; the last two are named on stderr.
fn rows(q: &Question, subject: &Subject, reference: &Subject) -> anyhow::Result<Judged> {
    if let Some(data) = q.data {
        return read_judged(reference, data, None, None);
    }
    for model in [q.reference, q.subject] {
        if let Place::Run(_) = Place::of(model)? {
            let opened = Opened::open(model, 0)?;
            if let Some(run) = opened.run.as_ref().filter(|r| r.run.val.is_some() || !r.run.held_out.is_empty()) {
                eprintln!("comparing on the rows that {model} held out");
                return crate::eval::rows::held_out(reference, run);
            }
        }
    }
    eprintln!("comparing on the embedded sample of English; give --data for rows of your own");
    crate::eval::rows::embedded_sample(reference, subject.n_ctx().min(reference.n_ctx()))
}

/// Prints a verification for people.
pub fn print(v: &Verification) {
    let word = if v.pass { "pass" } else { "FAIL" };
    let kl = v.bounds.max_kl.map_or(String::new(), |b| format!(" (at most {b})"));
    let top1 = v.bounds.min_top1.map_or(String::new(), |b| format!(" (at least {b})"));
    println!(
        "{word}: {} positions, mean KL {:.2e}{kl}, p99 {:.2e}, same top 1 {:.2} %{top1}, largest difference {:.2e}",
        v.positions,
        v.mean_kl,
        v.p99_kl,
        100.0 * v.top1,
        v.max_abs
    );
    if let Some(p) = v.perplexity {
        println!("  perplexity {:.3} against {:.3}", p.subject, p.reference);
    }
    if let Some(a) = v.accuracy {
        println!("  accuracy {:.3} against {:.3}", a.subject, a.reference);
    }
    if let Some(e) = v.exact_match {
        println!("  exact match {:.3} against {:.3}", e.subject, e.reference);
    }
    if let Some(found) = &v.retention {
        super::quantize::delta::print(found);
    }
    if let Some(place) = &v.first_difference {
        println!("  {place}");
    }
}
