//! Engines × models, each pair measured by a process of its own: peak memory and cold start are then those of one model on one
//! engine, and an engine that dies takes nothing along.

use super::{BenchArgs, BenchEngine};
use crate::cli::Global;
use crate::commands::show;
use crate::error::BadInput;
use crate::profile::Footprint;
use crate::profile::prediction::rate;
use crate::report::{Bar, Bars, ReportData, Table, html};
use crate::tune::checkpoint::write_synced;
use edgeft_quantize::Mix;
use edgeft_runtime::engine::Backend;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

/// What came of one model on one engine.
struct Pair {
    model: String,
    engine: &'static str,
    /// Type of the weights and size of the file, where the model is one.
    file: Option<(String, u64)>,
    /// The bench's JSON, or why there is none.
    outcome: Result<Value, String>,
}

impl Pair {
    fn number(&self, pointer: &str) -> Option<f64> {
        self.outcome.as_ref().ok()?.pointer(pointer)?.as_f64()
    }

    /// First token, or the whole latency of a model that does not generate.
    fn first_ms(&self) -> Option<f64> {
        self.number("/ttft_ms").or_else(|| self.number("/latency_ms/p50"))
    }

    /// What engines are ranked by: generated tokens a second, or those read.
    fn speed(&self) -> Option<f64> {
        self.number("/decode_tokens_per_s").or_else(|| self.number("/prompt_tokens_per_s"))
    }

    fn json(&self) -> Value {
        let (ty, bytes) = self.file.clone().unzip();
        let (ty, bytes) = (json!(ty), json!(bytes));
        match &self.outcome {
            Ok(bench) => {
                let mut row = json!({"model": self.model, "engine": self.engine, "type": ty, "bytes": bytes});
                for (key, value) in bench.as_object().into_iter().flatten().filter(|(k, _)| *k != "runs") {
                    if row.get(key).is_none() {
                        row[key] = value.clone();
                    }
                }
                row
            }
            Err(why) => json!({"model": self.model, "engine": self.engine, "why": why}),
        }
    }
}

/// `--suite DIR`.
pub fn run(args: &BenchArgs, folder: &Path, global: &Global) -> anyhow::Result<ExitCode> {
    if let Some(page) = &args.html {
        show::refuse_existing_file(page, "--html", args.force)?;
    }
    let models = models_in(folder)?;
    let engines = args.engine.unwrap_or(BenchEngine::Auto).backends();
    let bar = show::bar((models.len() * engines.len()) as u64, "measuring");
    let mut pairs = Vec::new();
    for model in &models {
        for engine in &engines {
            bar.set_message(format!("{} on {}", file_name(model), engine.name()));
            pairs.push(measure(args, &model.display().to_string(), *engine, global)?);
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
    let (measured, failed): (Vec<Pair>, Vec<Pair>) = pairs.into_iter().partition(|p| p.outcome.is_ok());
    if measured.is_empty() {
        let reasons: Vec<String> = failed.iter().map(|p| format!("{} on {}: {}", p.model, p.engine, why(p))).collect();
        crate::bad_input!("no model of {} could be measured\n  {}", folder.display(), reasons.join("\n  "));
    }
    if let Some(page) = &args.html {
        write_synced(page, html(&page_of(folder, args, &measured, &failed)).as_bytes())?;
    }
    let whole = json!({
        "suite": folder,
        "device": measured[0].outcome.as_ref().map_or(&Value::Null, |b| &b["device"]),
        "rows": measured.iter().map(Pair::json).collect::<Vec<_>>(),
        "not_measured": failed.iter().map(Pair::json).collect::<Vec<_>>(),
        "fastest": fastest(&measured).map(|p| json!({"model": p.model, "engine": p.engine})),
        "html": args.html,
    });
    show::report(global, &whole, || {
        println!("{}\n", case_of(args, &measured));
        print_table(&measured);
        print_failed(&failed);
        println!("\nEach pair ran in a process of its own. share: of what a plain read of the same bytes allows.");
        let serve = fastest(&measured).map(|p| serve_line(&folder.join(&p.model).display().to_string(), p));
        match &args.html {
            Some(page) => println!("\nOpen {} for the plot.\n\nNext:", page.display()),
            None => println!("\nNext:\n  edgeft bench --suite {} --html bench.html", folder.display()),
        }
        println!("  {}", serve.unwrap_or_default());
    });
    Ok(ExitCode::SUCCESS)
}

/// `--engine auto` of one model.
pub fn auto(args: &BenchArgs, model: &str, global: &Global) -> anyhow::Result<ExitCode> {
    for (flag, given) in [
        ("--compare", args.compare.is_some()),
        ("--target", args.target.is_some()),
        ("--adapter", args.adapter.is_some()),
    ] {
        if given {
            crate::bad_input!("{flag} is about one engine; name it: --engine cpu, for instance");
        }
    }
    let mut pairs = Vec::new();
    for engine in BenchEngine::Auto.backends() {
        pairs.push(measure(args, model, engine, global)?);
    }
    let (measured, failed): (Vec<Pair>, Vec<Pair>) = pairs.into_iter().partition(|p| p.outcome.is_ok());
    let Some((best, bench)) = fastest(&measured).and_then(|p| Some((p, p.outcome.as_ref().ok()?))) else {
        let reasons: Vec<String> = failed.iter().map(|p| format!("{}: {}", p.engine, why(p))).collect();
        crate::bad_input!("no engine can measure {model}\n  {}", reasons.join("\n  "));
    };
    let why = choice(best, &measured);
    let mut whole = bench.clone();
    whole["auto"] = json!({
        "why": why,
        "measured": measured.iter().map(Pair::json).collect::<Vec<_>>(),
        "not_measured": failed.iter().map(Pair::json).collect::<Vec<_>>(),
    });
    show::report(global, &whole, || {
        println!("{}\n", case_of(args, &measured));
        print_table(&measured);
        print_failed(&failed);
        println!("\nfastest: {why}\n\nNext:\n  {}", serve_line(model, best));
    });
    Ok(ExitCode::SUCCESS)
}

/// Runs `edgeft bench MODEL --engine E --json`.
fn measure(args: &BenchArgs, model: &str, engine: Backend, global: &Global) -> anyhow::Result<Pair> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["bench", model, "--json", "--engine", engine.name()]);
    command.args(["--generate", &args.generate.to_string(), "--batch", &args.batch.to_string()]);
    command.args(["--runs", &args.runs.to_string(), "--threads", &global.threads().to_string()]);
    if let Some(prompt) = args.prompt {
        command.args(["--prompt", &prompt.to_string()]);
    }
    if let Some(library) = &args.ort.ort_lib {
        command.arg("--ort-lib").arg(library);
    }
    let output = command.stdin(std::process::Stdio::null()).output()?;
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let outcome = match (output.status.success(), out.lines().last().map(serde_json::from_str)) {
        (true, Some(Ok(json))) => Ok(json),
        _ => Err(match err.find("error: ") {
            Some(at) => err[at + 7..].split_whitespace().collect::<Vec<_>>().join(" "),
            None => format!("it ended with {}", output.status),
        }),
    };
    let path = Path::new(model);
    let is_file = outcome.is_ok() && path.extension().is_some_and(|e| e == "gguf");
    // A GGUF that was just measured opens.
    let file = if is_file { Some((Footprint::of(model, Mix::F32)?.ty, std::fs::metadata(path)?.len())) } else { None };
    Ok(Pair { model: file_name(path), engine: engine.name(), file, outcome })
}

/// GGUF files and ONNX folders, by name.
fn models_in(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(folder)
        .map_err(|e| BadInput(format!("--suite: cannot read the folder {}: {e}", folder.display())))?;
    let mut models: Vec<PathBuf> = entries.map(|e| Ok(e?.path())).collect::<std::io::Result<_>>()?;
    models.retain(|p| (p.is_file() && p.extension().is_some_and(|e| e == "gguf")) || p.join("model.onnx").is_file());
    models.sort();
    if models.is_empty() {
        crate::bad_input!(
            "--suite: no .gguf file and no ONNX folder in {}; make some with `edgeft quantize MODEL --type q8_0,q4_k_m --out {}`",
            folder.display(),
            folder.display()
        );
    }
    Ok(models)
}

fn file_name(path: &Path) -> String {
    path.file_name().map_or_else(|| path.display().to_string(), |n| n.to_string_lossy().into_owned())
}

fn fastest(pairs: &[Pair]) -> Option<&Pair> {
    let speed = |p: &Pair| p.speed().unwrap_or(0.0);
    pairs.iter().filter(|p| p.speed().is_some()).max_by(|a, b| speed(a).total_cmp(&speed(b)))
}

/// The command that serves it so.
fn serve_line(model: &str, pair: &Pair) -> String {
    let engine = if pair.engine == Backend::Cpu.name() { String::new() } else { format!(" --engine {}", pair.engine) };
    format!("edgeft serve {model}{engine}")
}

/// "cpu, 812 tokens/s against 455 of gpu".
fn choice(best: &Pair, measured: &[Pair]) -> String {
    let what = if best.number("/decode_tokens_per_s").is_some() { "generated" } else { "read" };
    let speed = |p: &Pair| p.speed().map_or("-".into(), rate);
    let others: Vec<String> =
        measured.iter().filter(|p| p.engine != best.engine).map(|p| format!("{} of {}", speed(p), p.engine)).collect();
    let against = match others.is_empty() {
        true => "the only engine that could".to_owned(),
        false => format!("against {}", others.join(" and ")),
    };
    format!("{}: {} tokens/s {what}, {against}", best.engine, speed(best))
}

const COLUMNS: [&str; 9] = ["model", "type", "engine", "size", "first token", "read", "generated", "memory", "share"];

fn print_table(measured: &[Pair]) {
    let all = [vec![COLUMNS.map(str::to_owned).to_vec()], rows(measured)].concat();
    print!("{}", show::table_with(&all, &[0, 1, 2]));
}

fn rows(pairs: &[Pair]) -> Vec<Vec<String>> {
    let or_dash = |value: Option<String>| value.unwrap_or_else(|| "-".into());
    let row = |p: &Pair| {
        vec![
            p.model.clone(),
            or_dash(p.file.as_ref().map(|(ty, _)| ty.clone())),
            p.engine.to_owned(),
            or_dash(p.file.as_ref().map(|(_, bytes)| show::bytes(*bytes))),
            or_dash(p.first_ms().map(|ms| format!("{ms:.1} ms"))),
            or_dash(p.number("/prompt_tokens_per_s").map(|r| format!("{} tokens/s", rate(r)))),
            or_dash(p.number("/decode_tokens_per_s").map(|r| format!("{} tokens/s", rate(r)))),
            or_dash(p.number("/peak_mib").map(|mib| format!("{mib:.1} MiB"))),
            or_dash(p.number("/ceiling/share").map(|share| format!("{:.0} %", 100.0 * share))),
        ]
    };
    pairs.iter().map(row).collect()
}

/// Prompt, generation, batch, threads, machine.
fn case_of(args: &BenchArgs, measured: &[Pair]) -> String {
    let Some(Ok(bench)) = measured.first().map(|p| p.outcome.as_ref()) else { return String::new() };
    let (threads, device) = (bench["threads"].as_u64().unwrap_or(0), &bench["device"]);
    let threads = if threads == 1 { "1 thread".to_owned() } else { format!("{threads} threads") };
    let prompt = args.prompt.map_or("prompt 128, or what fits".to_owned(), |n| format!("prompt {n}"));
    let cpu = device["cpu"].as_str().unwrap_or_default();
    format!(
        "{prompt}, generate {}, batch {}, {} runs after 1; {threads} on {cpu}, {}",
        args.generate,
        args.batch,
        args.runs,
        device["isa"].as_str().unwrap_or_default()
    )
}

fn why(pair: &Pair) -> &str {
    pair.outcome.as_ref().err().map_or("", String::as_str)
}

/// Models, engines and reason of what could not be measured, a row for each reason: an engine that is not here says the same
/// of every model, a broken file on every engine.
fn reasons(failed: &[Pair]) -> Vec<Vec<String>> {
    let mut told: Vec<&str> = Vec::new();
    let mut rows = Vec::new();
    for reason in failed.iter().map(why) {
        if told.contains(&reason) {
            continue;
        }
        told.push(reason);
        let same = || failed.iter().filter(|p| why(p) == reason);
        let distinct = |of: &dyn Fn(&Pair) -> String| {
            let mut names: Vec<String> = Vec::new();
            same().map(of).for_each(|n| {
                if !names.contains(&n) {
                    names.push(n)
                }
            });
            names
        };
        let (models, engines) = (distinct(&|p| p.model.clone()), distinct(&|p| p.engine.to_owned()));
        let models = if models.len() > 3 { format!("{} models", models.len()) } else { models.join(", ") };
        rows.push(vec![models, engines.join(", "), reason.to_owned()]);
    }
    rows
}

fn print_failed(failed: &[Pair]) {
    for (i, row) in reasons(failed).iter().enumerate() {
        let lead = if i == 0 { "\n" } else { "" };
        println!("{lead}  not measured: {} on {}: {}", row[0], row[1], row[2]);
    }
}

fn page_of(folder: &Path, args: &BenchArgs, measured: &[Pair], failed: &[Pair]) -> ReportData {
    let bars = |title: &str, unit: &str, value: &dyn Fn(&Pair) -> Option<f64>, bound: &dyn Fn(&Pair) -> Option<f64>| {
        let bar = |p: &Pair| {
            Some(Bar { label: p.model.clone(), group: p.engine.to_owned(), value: value(p)?, bound: bound(p) })
        };
        Bars {
            title: title.into(),
            unit: unit.into(),
            rows: measured.iter().filter_map(bar).collect(),
            note: String::new(),
        }
    };
    let none = |_: &Pair| None;
    let mut generated = bars("Tokens generated a second", "tokens/s", &|p| p.number("/decode_tokens_per_s"), &|p| {
        p.number("/ceiling/decode_tokens_per_s")
    });
    generated.note =
        "More is better. Where the ceiling, what a plain read of the same bytes allows, lies within the figure, \
        a line across marks it."
            .into();
    let mut first = bars("First token", "ms", &|p| p.first_ms(), &none);
    first.note =
        "Less is better. From the text of the prompt to the first token, tokenization included; of a model that does \
        not generate, the whole answer."
            .into();
    let mut memory = bars("Memory", "MiB", &|p| p.number("/peak_mib"), &none);
    memory.note = "Peak resident set of a process that does nothing else.".into();
    let figure = |pair: Option<&Pair>, text: &dyn Fn(&Pair) -> String| pair.map(text).unwrap_or_default();
    let least = |of: &dyn Fn(&Pair) -> Option<f64>| {
        let value = |p: &&Pair| of(p).unwrap_or(f64::INFINITY);
        measured.iter().min_by(|a, b| value(a).total_cmp(&value(b)))
    };
    let (soonest, smallest) = (least(&|p| p.first_ms()), least(&|p| p.number("/peak_mib")));
    ReportData {
        title: format!("edgeft bench: {}", folder.file_name().unwrap_or(folder.as_os_str()).to_string_lossy()),
        subtitle: case_of(args, measured),
        facts: vec![
            ("fastest".into(), figure(fastest(measured), &|p| format!("{} on {}", p.model, p.engine))),
            ("tokens a second".into(), figure(fastest(measured), &|p| p.speed().map_or("-".into(), rate))),
            ("first token".into(), figure(soonest, &|p| p.first_ms().map_or("-".into(), |ms| format!("{ms:.1} ms")))),
            (
                "least memory".into(),
                figure(smallest, &|p| p.number("/peak_mib").map_or("-".into(), |m| format!("{m:.1} MiB"))),
            ),
        ],
        bars: [generated, first, memory].into_iter().filter(|b| !b.rows.is_empty()).collect(),
        tables: vec![
            Table {
                title: "Every number".into(),
                columns: COLUMNS.map(str::to_owned).to_vec(),
                rows: rows(measured),
                note: "Medians of the runs. Each pair ran in a process of its own.".into(),
            },
            Table {
                title: "Not measured".into(),
                columns: ["models", "engines", "why"].map(str::to_owned).to_vec(),
                rows: reasons(failed),
                note: String::new(),
            },
        ]
        .into_iter()
        .filter(|t| !t.rows.is_empty())
        .collect(),
        next: fastest(measured)
            .map_or(Vec::new(), |p| vec![serve_line(&folder.join(&p.model).display().to_string(), p)]),
        ..ReportData::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(engine: &'static str, bench: Value) -> Pair {
        Pair { model: "m.gguf".into(), engine, file: Some(("q8_0".into(), 3)), outcome: Ok(bench) }
    }

    #[test]
    fn the_fastest_generates_most_and_the_reason_names_the_others() {
        let pairs = [
            pair("cpu", json!({"decode_tokens_per_s": 50.0, "prompt_tokens_per_s": 900.0})),
            pair("gpu", json!({"decode_tokens_per_s": 70.0, "prompt_tokens_per_s": 100.0})),
        ];
        let best = fastest(&pairs).unwrap();
        assert_eq!(choice(best, &pairs), "gpu: 70.0 tokens/s generated, against 50.0 of cpu");
        assert_eq!(choice(&pairs[0], &pairs[..1]), "cpu: 50.0 tokens/s generated, the only engine that could");
        let reads = [pair("cpu", json!({"decode_tokens_per_s": null, "prompt_tokens_per_s": 900.0}))];
        assert_eq!(choice(&reads[0], &reads), "cpu: 900 tokens/s read, the only engine that could");
    }

    #[test]
    fn a_reason_is_told_once_for_all_that_it_holds_for() {
        let pair =
            |model: &str, engine, why: &str| Pair { model: model.into(), engine, file: None, outcome: Err(why.into()) };
        let failed = [
            pair("a", "gpu", "no adapter"),
            pair("b", "cpu", "cut"),
            pair("b", "gpu", "cut"),
            pair("c", "gpu", "no adapter"),
        ];
        let rows = reasons(&failed);
        assert_eq!(rows, [["a, c", "gpu", "no adapter"], ["b", "cpu, gpu", "cut"]]);
    }

    #[test]
    fn a_row_keeps_the_benchs_fields_and_not_its_raw_runs() {
        let row = pair("cpu", json!({"engine": "cpu", "model": "a/m.gguf", "ttft_ms": 2.0, "runs": [1]})).json();
        assert_eq!(row, json!({"model": "m.gguf", "engine": "cpu", "type": "q8_0", "bytes": 3, "ttft_ms": 2.0}));
    }
}
