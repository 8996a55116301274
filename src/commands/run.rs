//! `edgeft run`: one prompt → text as it comes, or labels, or the answer to a question.

use super::constraint::ConstraintArgs;
use super::ort::OrtArgs;
use super::{adapter, show};
use crate::cli::Global;
use crate::error::BadInput;
use crate::export::Runnable;
use edgeft_runtime::chat::Message;
use edgeft_runtime::engine::{Backend, KvType};
use edgeft_runtime::model::{Model, Task};
use edgeft_runtime::sample::Sampling;
use edgeft_runtime::session::{
    Answer, GenerateOptions, Generation, LabelScore, Piece, Session, SessionOptions, chat_ids,
};
use serde_json::json;
use std::io::{self, Read, Write};
use std::ops::ControlFlow;
use std::process::ExitCode;
use std::time::Instant;

/// Flags of `run`.
#[derive(clap::Args)]
#[command(
    after_help = "Special tokens that -p spells out (<|im_end|>) are taken as such; under --chat they are refused, since they would \
    forge a turn.\n\n\
    Example:\n  edgeft run model.gguf -p \"Once upon a time\" -n 64\n  edgeft run model.gguf --chat -p \"Hello\"\n  \
    edgeft run base.gguf --adapter polite.gguf -p \"Hello\"\n  \
    edgeft run model.gguf --chat -p \"A person, as JSON\" --schema person.json\n  \
    edgeft run model.gguf -p \"The answer is\" --regex \" (yes|no)\"\n  \
    edgeft run reader.gguf --question \"Who?\" --context \"Ann wrote it.\"\nNext:\n  edgeft serve model.gguf"
)]
pub struct RunArgs {
    /// GGUF file or ONNX folder; a model folder, a RUN or `nano` is converted in memory (f32 stays f32)
    #[arg(value_name = "MODEL")]
    pub model: String,
    /// GGUF adapter beside the model, from `edgeft quantize RUN --adapter-only`, at SCALE times its strength [default: 1]
    #[arg(long, value_name = "FILE[=SCALE]")]
    pub adapter: Option<String>,
    /// Prompt, or the text to label; `-` reads it from stdin
    #[arg(short, long, value_name = "TEXT", required_unless_present = "question", allow_hyphen_values = true)]
    pub prompt: Option<String>,
    /// At most so many tokens
    #[arg(short = 'n', long, value_name = "N", default_value_t = 256, value_parser = at_least_one)]
    pub max_tokens: usize,
    /// Put the prompt into the model's chat template, as one turn of the user
    #[arg(long)]
    pub chat: bool,
    /// 0 takes the likeliest token; 1 draws from the model's own distribution
    #[arg(long, value_name = "T", default_value_t = 0.0)]
    pub temperature: f32,
    /// Draw among the K likeliest; 0 is all
    #[arg(long, value_name = "K", default_value_t = 0)]
    pub top_k: usize,
    /// Draw among the likeliest that together reach P
    #[arg(long, value_name = "P", default_value_t = 1.0)]
    pub top_p: f32,
    /// Draw among those at least P times as likely as the likeliest
    #[arg(long, value_name = "P", default_value_t = 0.0)]
    pub min_p: f32,
    /// Same seed, same text
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
    /// Flags that hold the answer to a form
    #[command(flatten)]
    pub constraint: ConstraintArgs,
    /// Tokens that prompt and answer may hold together [default: the model's own, at most 4096]
    #[arg(long, value_name = "TOKENS", value_parser = at_least_one)]
    pub ctx: Option<usize>,
    /// Type of the key and value cache; an ONNX graph has its own
    #[arg(long, value_enum, default_value = "f16")]
    pub kv: Kv,
    /// Question about --context
    #[arg(long, value_name = "Q", requires = "context", conflicts_with_all = ["prompt", "chat"])]
    pub question: Option<String>,
    /// Text that holds the answer
    #[arg(long, value_name = "C", requires = "question")]
    pub context: Option<String>,
    /// Where to compute [default: ort for an ONNX folder, cpu for everything else]
    #[arg(long, value_enum)]
    pub engine: Option<RunEngine>,
    /// Flags of ONNX Runtime
    #[command(flatten)]
    pub ort: OrtArgs,
}

/// Engines that run a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum RunEngine {
    /// The device's CPU kernels
    Cpu,
    /// A GPU, by wgpu
    Gpu,
    /// ONNX Runtime
    Ort,
}

impl From<RunEngine> for Backend {
    fn from(engine: RunEngine) -> Self {
        match engine {
            RunEngine::Cpu => Self::Cpu,
            RunEngine::Gpu => Self::Gpu,
            RunEngine::Ort => Self::Ort,
        }
    }
}

/// Types of the cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Kv {
    /// Half the memory
    F16,
    /// What `verify` uses
    F32,
}

impl From<Kv> for KvType {
    fn from(kv: Kv) -> Self {
        match kv {
            Kv::F16 => Self::F16,
            Kv::F32 => Self::F32,
        }
    }
}

/// A count that is not 0.
pub(super) fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse::<usize>() {
        Ok(0) => Err("the least is 1".into()),
        Ok(n) => Ok(n),
        Err(e) => Err(e.to_string()),
    }
}

/// Runs the verb.
pub fn run(args: &RunArgs, global: &Global) -> anyhow::Result<ExitCode> {
    let sampling = Sampling {
        temperature: args.temperature,
        top_k: args.top_k,
        top_p: args.top_p,
        min_p: args.min_p,
        seed: args.seed,
        ..Sampling::default()
    };
    // Wrong flags and a missing prompt are told before a large model is loaded.
    sampling.check().map_err(|e| BadInput(format!("--{}", e.to_string().replacen('_', "-", 1))))?;
    let prompt = args.prompt.as_deref().map(prompt_text).transpose()?;

    let constraint = args.constraint.read()?;

    let adapter = args.adapter.as_deref().map(adapter::open).transpose()?;

    let start = Instant::now();
    let Runnable { model, backend, .. } = open(&args.model, args.engine, &args.ort)?;
    let options = SessionOptions { backend, ctx: args.ctx, threads: Some(global.threads()), kv: args.kv.into() };
    let mut session = Session::new(&model, &options)?;
    if let Some(named) = &adapter {
        let number = session.add_adapter(&named.adapter, named.scale)?;
        session.use_adapter(Some(number))?;
    }
    let load_ms = start.elapsed().as_secs_f64() * 1e3;
    show::runs_on(session.runs_on());
    session.tokenizer().map_err(|e| e.at(&args.model))?;

    if let (Some(question), Some(context)) = (&args.question, &args.context) {
        let answer = session.answer(question, context).map_err(|e| e.at(&args.model))?;
        show::report(global, &answer_json(&answer), || print_answer(&answer));
        return Ok(ExitCode::SUCCESS);
    }
    let prompt = prompt.unwrap_or_default(); // clap asks for one of the two
    if constraint.is_some() && !matches!(session.task(), Task::Generate | Task::Answer) {
        crate::bad_input!(
            "{}: it writes no text that could be held to a schema, an expression or a grammar",
            args.model
        );
    }
    match session.task() {
        Task::Classify => {
            let labels = session.classify_text(&prompt)?;
            show::report(global, &labels_json(&labels), || print_labels(&labels));
        }
        Task::Answer if !model.hparams().causal => {
            crate::bad_input!("{}: it finds answers in a text; give --question and --context instead of -p", args.model)
        }
        Task::Embed => {
            crate::bad_input!(
                "{}: it has no head, so it gives vectors and no text; tune it first (`edgeft tune --task classify`)",
                args.model
            )
        }
        Task::Generate | Task::Answer => {
            let ids = if args.chat {
                chat(&model, &session, &prompt)?
            } else {
                session.tokenizer()?.encode(&prompt, true)?
            };
            let options = GenerateOptions {
                max_tokens: args.max_tokens,
                sampling,
                own_text: args.chat,
                ..GenerateOptions::default()
            };
            let options = match &constraint {
                Some(asked) => asked.hold(&session, options)?,
                None => options,
            };
            let generation = stream(&mut session, &ids, &options, global.json)?;
            eprintln!("{}", timings(&generation, load_ms));
            if global.json {
                println!("{}", generation_json(&generation, load_ms));
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// A MODEL in the runtime's form, ready for its engine.
pub(super) fn open(model: &str, engine: Option<RunEngine>, ort: &OrtArgs) -> anyhow::Result<Runnable> {
    let runnable = Runnable::open(model, engine.map(Backend::from))?;
    if let Some(bytes) = runnable.converted_bytes {
        eprintln!("{model}: converted in memory, {} in f32", show::bytes(bytes));
    }
    if runnable.backend == Backend::Ort {
        ort.load()?;
    }
    Ok(runnable)
}

/// `-p`, or stdin without the line break that ends it.
fn prompt_text(given: &str) -> anyhow::Result<String> {
    let mut text = given.to_owned();
    if given == "-" {
        text.clear();
        io::stdin()
            .read_to_string(&mut text)
            .map_err(|e| BadInput(format!("-p -: stdin cannot be read as text: {e}")))?;
        if text.ends_with('\n') {
            text.pop();
            if text.ends_with('\r') {
                text.pop();
            }
        }
    }
    if text.is_empty() {
        crate::bad_input!("the prompt is empty; give -p TEXT, or -p - and the text on stdin");
    }
    Ok(text)
}

/// Ids of a chat of one turn.
fn chat(model: &Model, session: &Session, prompt: &str) -> anyhow::Result<Vec<u32>> {
    let tokenizer = session.tokenizer()?;
    let Some(template) = model.chat()? else {
        crate::bad_input!(
            "{}: no chat template in the model; leave out --chat, or tune it on chats first",
            model.name()
        );
    };
    if let Some(token) = tokenizer.control_token_in(prompt) {
        crate::bad_input!(
            "-p spells the control token {token}, which only the chat template may; leave it out, or leave out --chat"
        );
    }
    Ok(chat_ids(Some(template), tokenizer, &[Message::new("user", prompt)], None)?)
}

/// Generates, and prints each piece as it comes unless the whole is printed as JSON later.
fn stream(session: &mut Session, ids: &[u32], options: &GenerateOptions, quiet: bool) -> anyhow::Result<Generation> {
    let mut out = io::stdout().lock();
    let mut failed = None;
    let generation = session.generate(ids, options, &mut |piece: &Piece| {
        if quiet || piece.text.is_empty() {
            return ControlFlow::Continue(());
        }
        match out.write_all(piece.text.as_bytes()).and_then(|()| out.flush()) {
            Ok(()) => ControlFlow::Continue(()),
            Err(e) => {
                failed = Some(e);
                ControlFlow::Break(())
            }
        }
    })?;
    match failed {
        // `edgeft run ... | head` has seen enough.
        Some(e) if e.kind() == io::ErrorKind::BrokenPipe => {}
        Some(e) => return Err(anyhow::Error::new(e).context("cannot write to stdout")),
        None if !quiet => writeln!(out)?,
        None => {}
    }
    Ok(generation)
}

fn timings(generation: &Generation, load_ms: f64) -> String {
    let t = &generation.timings;
    let speed = t.decode_tokens_per_s.map_or(String::new(), |s| format!(", then {s:.1} tokens/s"));
    format!(
        "loaded in {load_ms:.0} ms; {} prompt tokens; first token after {:.1} ms{speed}; {} tokens, ended by {}",
        t.prompt_tokens,
        t.ttft_ms,
        generation.token_ids.len(),
        generation.finish_reason.as_str(),
    )
}

fn generation_json(generation: &Generation, load_ms: f64) -> serde_json::Value {
    let t = &generation.timings;
    json!({
        "text": generation.text,
        "token_ids": generation.token_ids,
        "finish_reason": generation.finish_reason.as_str(),
        "timings": {"load_ms": load_ms, "prompt_tokens": t.prompt_tokens, "ttft_ms": t.ttft_ms,
            "decode_tokens_per_s": t.decode_tokens_per_s},
    })
}

fn labels_json(labels: &[LabelScore]) -> serde_json::Value {
    let all: Vec<_> = labels.iter().map(|l| json!({"label": l.label, "score": l.score})).collect();
    json!({ "labels": all })
}

fn print_labels(labels: &[LabelScore]) {
    let rows: Vec<_> = labels.iter().map(|l| vec![l.label.clone(), format!("{:.4}", l.score)]).collect();
    print!("{}", show::table(&rows));
}

fn answer_json(answer: &Answer) -> serde_json::Value {
    json!({"answer": answer.answer, "start": answer.start, "end": answer.end, "score": answer.score,
        "no_answer_score": answer.no_answer_score})
}

fn print_answer(answer: &Answer) {
    println!("{}", answer.answer);
    let place =
        answer.start.zip(answer.end).map_or(String::new(), |(s, e)| format!(", characters {s} to {e} of the context"));
    let none = answer.no_answer_score.map_or(String::new(), |s| format!("; that the context does not say: {s:.4}"));
    eprintln!("score {:.4}{place}{none}", answer.score);
}
