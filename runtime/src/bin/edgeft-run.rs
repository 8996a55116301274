//! `edgeft-run`, the device's own binary: answer one prompt, serve, or measure. GGUF files, and bundles that hold one;
//! nothing else is carried. `serve` and `health` are there when it is built with the feature `server`.
//!
//! Exit codes: 0 done, 1 failed while working, 2 wrong usage or bad input.

use std::io::Write as _;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use edgeft_runtime::chat::Message;
use edgeft_runtime::format::bundle::Bundle;
use edgeft_runtime::kernels::Kernels;
use edgeft_runtime::measure::device::{Device, peak_mib};
use edgeft_runtime::measure::report::{Ceiling, Report};
use edgeft_runtime::measure::{Bench, Case};
use edgeft_runtime::model::{Model, Task};
use edgeft_runtime::session::{GenerateOptions, Session, SessionOptions, chat_ids};
use edgeft_runtime::{Adapter, Error, Kind, Result};
use serde_json::{Value, json};

#[cfg(feature = "server")]
#[path = "edgeft-run/serve.rs"]
mod serve;

/// Stands in the binary only when it serves: `edgeft package` looks for it in a runner that it cannot start, made for
/// another machine.
#[cfg(feature = "server")]
const SERVES: &str = "edgeft-run serves bundles of format 1";
#[cfg(not(feature = "server"))]
const SERVES: &str = "built without `serve`; build with `cargo build --release -p edgeft-runtime --features server`";

const HELP: &str = "\
edgeft-run: run, serve and measure a small language model on a device

Usage:
  edgeft-run run   MODEL.gguf -p TEXT [-n N] [--chat] [--temperature T] [--top-k K] [--top-p P] [--min-p P] [--seed N]
  edgeft-run run   MODEL.gguf --question Q --context C
  edgeft-run run   MODEL.gguf --adapter FILE[=SCALE] ...        bench takes it too; serve: --adapter NAME=FILE[=SCALE]
  edgeft-run bench MODEL.gguf [--prompt 128, or what fits] [--generate 32] [--batch 1] [--runs 5]
  edgeft-run serve MODEL.gguf [--host 127.0.0.1] [--port 8080] [--api-key-file FILE | --insecure-no-auth]
                   [--parallel N] [--cache-slots N] [--deadline SECONDS] [--drain SECONDS] [--allow-host NAME]
                   [--allow-origin ORIGIN] [--log]
  edgeft-run health           [--host 127.0.0.1] [--port 8080]      exit code 0 when a server answers there

In place of MODEL.gguf, the folder of a bundle: its files are first compared with its manifest.

Everywhere:
  --threads N   threads that compute [default: as many as this process may use]
  --ctx N       tokens that prompt and answer may hold together
  --json        one JSON object as the last line of stdout
  --help, --version

Example:
  edgeft-run run model.gguf -p \"Once upon a time\" -n 64
";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.is_empty() || arguments.iter().any(|a| a == "--help" || a == "-h") {
        print!("{HELP}");
        return ExitCode::from(if arguments.is_empty() { 2 } else { 0 });
    }
    if arguments[0] == "--version" {
        println!("edgeft-run {}\n{SERVES}", env!("CARGO_PKG_VERSION"));
        return ExitCode::SUCCESS;
    }
    let done = Arguments::parse(&arguments).and_then(|a| match a.verb.as_str() {
        "run" => run(&a),
        "bench" => bench(&a),
        #[cfg(feature = "server")]
        "serve" => serve::serve(&a),
        #[cfg(feature = "server")]
        "health" => serve::health(&a),
        verb => Err(usage(verb, SERVES)),
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(if error.kind() == Kind::Io { 1 } else { 2 })
        }
    }
}

/// What was typed.
#[derive(Debug, Default, PartialEq)]
struct Arguments {
    verb: String,
    model: String,
    /// Flag and value, in order; a later one wins.
    values: Vec<(String, String)>,
    chat: bool,
    json: bool,
}

/// Flags that take a value, by verb.
const EVERYWHERE: [&str; 2] = ["--threads", "--ctx"];
const OF_RUN: [&str; 10] =
    ["-p", "-n", "--temperature", "--top-k", "--top-p", "--min-p", "--seed", "--question", "--context", "--adapter"];
const OF_BENCH: [&str; 5] = ["--prompt", "--generate", "--batch", "--runs", "--adapter"];
const OF_SERVE: [&str; 10] = [
    "--host",
    "--port",
    "--api-key-file",
    "--parallel",
    "--cache-slots",
    "--deadline",
    "--drain",
    "--allow-host",
    "--allow-origin",
    "--adapter",
];
/// Flags of `serve` that take no value.
const SWITCHES_OF_SERVE: [&str; 2] = ["--insecure-no-auth", "--log"];
const OF_HEALTH: [&str; 2] = ["--host", "--port"];

impl Arguments {
    fn parse(arguments: &[String]) -> Result<Self> {
        let mut out = Self::default();
        let mut rest = arguments.iter();
        out.verb = rest.next().cloned().unwrap_or_default();
        let own: &[&str] = match out.verb.as_str() {
            "run" => &OF_RUN,
            "bench" => &OF_BENCH,
            "serve" => &OF_SERVE,
            "health" => &OF_HEALTH,
            other => return Err(usage(other, "no such verb; known: run, serve, bench, health")),
        };
        while let Some(argument) = rest.next() {
            let (flag, attached) = match argument.split_once('=') {
                Some((flag, value)) if flag.starts_with("--") => (flag, Some(value.to_owned())),
                _ => (argument.as_str(), None),
            };
            match flag {
                "--json" => out.json = true,
                "--chat" if out.verb == "run" => out.chat = true,
                _ if out.verb == "serve" && attached.is_none() && SWITCHES_OF_SERVE.contains(&flag) => {
                    out.values.push((flag.to_owned(), String::new()));
                }
                _ if own.contains(&flag) || EVERYWHERE.contains(&flag) => {
                    let value =
                        attached.or_else(|| rest.next().cloned()).ok_or_else(|| usage(flag, "needs a value"))?;
                    out.values.push((flag.to_owned(), value));
                }
                _ if flag.starts_with('-') => {
                    return Err(usage(flag, format!("no such flag of `{}`; see --help", out.verb)));
                }
                _ if out.model.is_empty() => out.model = argument.clone(),
                _ => return Err(usage(argument, "one MODEL is enough; put a prompt after -p, in quotes")),
            }
        }
        if out.model.is_empty() && out.verb != "health" {
            return Err(usage("MODEL", "is missing; give a .gguf file, or the folder of a bundle"));
        }
        Ok(out)
    }

    fn text(&self, flag: &str) -> Option<&str> {
        self.values.iter().rev().find(|(name, _)| name == flag).map(|(_, value)| value.as_str())
    }

    /// Every value of a flag that may stand several times.
    #[cfg(feature = "server")]
    fn texts(&self, flag: &str) -> Vec<String> {
        self.values.iter().filter(|(name, _)| name == flag).map(|(_, value)| value.clone()).collect()
    }

    fn number<T: std::str::FromStr>(&self, flag: &str) -> Result<Option<T>> {
        self.text(flag)
            .map(|v| v.parse().map_err(|_| usage(flag, format!("`{v}` is not a number it takes"))))
            .transpose()
    }

    fn threads(&self) -> Result<usize> {
        match self.number("--threads")? {
            Some(0) => Err(usage("--threads", "is 0; give at least 1")),
            Some(n) if n > 1024 => Err(usage("--threads", format!("{n} is more than 1024"))),
            Some(n) => Ok(n),
            None => Ok(std::thread::available_parallelism().map_or(1, usize::from)),
        }
    }
}

fn usage(place: &str, message: impl Into<String>) -> Error {
    Error::new(Kind::Input, place, message)
}

/// The GGUF file that was given, or that of a bundle, all of whose files are what its manifest says.
fn model_file(given: &str) -> Result<PathBuf> {
    let place = Path::new(given);
    if !place.is_dir() {
        return Ok(place.to_owned());
    }
    let bundle = Bundle::open(place)?;
    bundle.verify()?;
    Ok(bundle.model())
}

fn run(a: &Arguments) -> Result<()> {
    let start = Instant::now();
    let model = Model::open(&model_file(&a.model)?)?;
    let options = SessionOptions { ctx: a.number("--ctx")?, threads: Some(a.threads()?), ..SessionOptions::default() };
    let mut session = Session::new(&model, &options)?;
    if let Some((adapter, scale)) = a.text("--adapter").map(Adapter::named).transpose()? {
        let number = session.add_adapter(&adapter, scale)?;
        session.use_adapter(Some(number))?;
    }
    let load_ms = start.elapsed().as_secs_f64() * 1e3;
    if let (Some(question), Some(context)) = (a.text("--question"), a.text("--context")) {
        let found = session.answer(question, context)?;
        let json = json!({"answer": found.answer, "start": found.start, "end": found.end, "score": found.score});
        print(a, &json, &found.answer);
        return Ok(());
    }
    let Some(prompt) = a.text("-p") else {
        return Err(usage("-p", "is missing; give the prompt, or --question and --context"));
    };
    match model.task() {
        Task::Classify => {
            let scores = session.classify_text(prompt)?;
            let json: Vec<Value> = scores.iter().map(|s| json!({"label": s.label, "score": s.score})).collect();
            let lines: Vec<String> =
                scores.iter().map(|s| format!("{:>6.2} %  {}", 100.0 * s.score, s.label)).collect();
            print(a, &json!({ "labels": json }), &lines.join("\n"));
            Ok(())
        }
        Task::Embed => Err(usage(&a.model, "gives vectors; it is served (`/v1/embeddings`) or measured, not run")),
        Task::Generate | Task::Answer => generate(a, &model, &mut session, prompt, load_ms),
    }
}

fn generate(a: &Arguments, model: &Model, session: &mut Session, prompt: &str, load_ms: f64) -> Result<()> {
    let mut options = GenerateOptions { own_text: a.chat, ..GenerateOptions::default() };
    options.max_tokens = a.number("-n")?.unwrap_or(options.max_tokens);
    let s = &mut options.sampling;
    s.temperature = a.number("--temperature")?.unwrap_or(s.temperature);
    s.top_k = a.number("--top-k")?.unwrap_or(s.top_k);
    s.top_p = a.number("--top-p")?.unwrap_or(s.top_p);
    s.min_p = a.number("--min-p")?.unwrap_or(s.min_p);
    s.seed = a.number("--seed")?.unwrap_or(s.seed);
    let tokenizer = session.tokenizer()?.clone();
    let ids = if a.chat {
        chat_ids(model.chat()?, &tokenizer, &[Message::new("user", prompt)], None)?
    } else {
        tokenizer.encode(prompt, true)?
    };
    let mut out = std::io::stdout();
    let done = session.generate(&ids, &options, &mut |piece| {
        // A reader that left ends the generation.
        match a.json || (write!(out, "{}", piece.text).and_then(|()| out.flush()).is_ok()) {
            true => ControlFlow::Continue(()),
            false => ControlFlow::Break(()),
        }
    })?;
    let t = &done.timings;
    let json = json!({"text": done.text, "token_ids": done.token_ids, "finish_reason": done.finish_reason.as_str(),
        "timings": {"load_ms": load_ms, "prompt_tokens": t.prompt_tokens, "ttft_ms": t.ttft_ms,
            "decode_tokens_per_s": t.decode_tokens_per_s}});
    print(a, &json, "");
    eprintln!(
        "{} prompt tokens, first token after {:.1} ms, {} tokens/s",
        t.prompt_tokens,
        t.ttft_ms,
        t.decode_tokens_per_s.map_or("-".into(), |r| format!("{r:.1}"))
    );
    Ok(())
}

fn print(a: &Arguments, json: &Value, text: &str) {
    if a.json { println!("{json}") } else { println!("{text}") }
}

fn bench(a: &Arguments) -> Result<()> {
    let usual = Case::default();
    let prompt: Option<usize> = a.number("--prompt")?;
    let case = Case {
        prompt: prompt.unwrap_or(usual.prompt),
        generate: a.number("--generate")?.unwrap_or(usual.generate),
        batch: a.number("--batch")?.unwrap_or(usual.batch),
        runs: a.number("--runs")?.unwrap_or(usual.runs),
        ..usual
    };
    let threads = a.threads()?;
    let file = model_file(&a.model)?; // hashes are no part of loading
    let start = Instant::now();
    let model = Model::open(&file)?;
    let case = match prompt {
        Some(_) => case,
        None => case.within(model.task(), model.hparams().causal, model.hparams().n_ctx),
    };
    let needed = case.ctx(model.task(), model.hparams().causal).clamp(1, model.hparams().n_ctx);
    let setup = SessionOptions {
        ctx: a.number("--ctx")?.or(Some(needed)),
        threads: Some(threads),
        ..SessionOptions::default()
    };
    let mut engine = model.engine(&setup.engine(&model, case.batch.max(1)))?;
    if let Some((adapter, scale)) = a.text("--adapter").map(Adapter::named).transpose()? {
        let number = engine.add_adapter(&adapter, scale)?;
        (0..engine.n_seqs()).try_for_each(|seq| engine.choose(seq, Some(number)))?;
    }
    let tokenizer = match model.tokenizer() {
        Ok(tokenizer) => Some(tokenizer),
        Err(e) if e.kind() == Kind::Missing => None,
        Err(e) => return Err(e),
    };
    let load_ms = start.elapsed().as_secs_f64() * 1e3;
    let measurement = Bench::new(&model, engine.as_mut(), tokenizer.as_deref(), case)?.measure(&mut |_| ())?;
    let peak_mib = peak_mib(); // before the ceiling's buffer
    let ceiling = Ceiling::measure(&model, &measurement, threads, setup.kv);
    let device = Device::detect(&Kernels::detect()?);
    let report = Report {
        engine: "cpu",
        model: a.model.clone(),
        threads,
        kv: setup.kv,
        load_ms,
        peak_mib,
        measurement,
        ceiling,
        device,
    };
    print(a, &report.json(), report.to_string().trim_end());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Arguments> {
        Arguments::parse(&line.split(' ').map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn flags_stand_anywhere_and_the_last_one_wins() {
        let a = parse("run --threads 2 m.gguf -p hello --chat -n=3 --threads=4 --json");
        assert!(a.is_err()); // a short flag takes its value apart
        let a = parse("run --threads 2 m.gguf -p hello --chat -n 3 --threads=4 --json").unwrap();
        assert_eq!((a.model.as_str(), a.text("-p"), a.chat, a.json), ("m.gguf", Some("hello"), true, true));
        assert_eq!((a.threads().unwrap(), a.number::<usize>("-n").unwrap()), (4, Some(3)));
    }

    #[test]
    fn wrong_usage_names_the_flag() {
        for (line, because) in [
            ("walk m.gguf", "walk: no such verb"),
            ("run m.gguf --prompt 3", "--prompt: no such flag of `run`"),
            ("bench m.gguf --runs", "--runs: needs a value"),
            ("bench --runs 3", "MODEL: is missing"),
            ("serve m.gguf --runs 3", "--runs: no such flag of `serve`"),
            ("health --prompt 3", "--prompt: no such flag of `health`"),
            ("run m.gguf two", "two: one MODEL is enough"),
        ] {
            let error = parse(line).unwrap_err();
            assert!(error.to_string().starts_with(because) && error.kind() == Kind::Input, "{error}");
        }
        let a = parse("bench m.gguf --threads many").unwrap();
        assert_eq!(a.threads().unwrap_err().to_string(), "--threads: `many` is not a number it takes");
        assert!(parse("bench m.gguf --threads 0").unwrap().threads().is_err());
    }
}
