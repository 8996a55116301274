//! `edgeft quantize`: a folder, a RUN or `nano` → GGUF files or ONNX folders.

mod budget;
pub mod delta;
mod gate;
mod importance;
mod plans;

use self::budget::BudgetArgs;
use self::importance::ImportanceArgs;
use super::ort::OrtArgs;
use super::show;
use crate::cli::Global;
use crate::error::{BadInput, GateFailed};
use crate::export;
use crate::model::open::Opened;
use crate::verify::Bounds;
use edgeft_quantize::onnx::{self, Operators};
use edgeft_quantize::{Mix, PlanOptions, Regex};
use edgeft_runtime::format::GgmlType;
use serde_json::json;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

/// Flags of `quantize`.
#[derive(clap::Args)]
#[command(
    after_help = "Example:\n  edgeft quantize RUN --type q4_k_m --out model.gguf\n  edgeft quantize RUN --type q8_0,q4_k_m --out out/\n  edgeft quantize RUN --type iq4_xs --calibrate train.jsonl --out model.gguf\n  edgeft quantize RUN --max-size 800MB --verify test.jsonl --out out/\n  edgeft quantize RUN --to onnx --type q4_0 --out model-onnx/\nNext:\n  edgeft verify model.gguf --against RUN\n  edgeft run model.gguf -p \"Hello\""
)]
pub struct QuantizeArgs {
    /// Model folder, RUN, a GGUF file of f32, f16 or bf16, or `nano`
    #[arg(value_name = "MODEL")]
    pub model: String,
    /// Types, by comma: f32 f16 bf16 q8_0 q6_k q5_k_m q4_k_m q4_0 iq4_xs ...; in ONNX f32 f16 bf16 q8_0 q4_0 q6_k
    #[arg(long = "type", value_delimiter = ',', required_unless_present_any = ["adapter_only", "max_size", "max_kl", "max_ms_per_token"], value_name = "TYPE")]
    pub types: Vec<String>,
    /// File (GGUF) or folder (ONNX) to write; with several types, the folder for TYPE.gguf or TYPE/
    #[arg(long, value_name = "FILE|DIR", required_unless_present = "plan")]
    pub out: Option<PathBuf>,
    /// File format
    #[arg(long, value_enum, default_value = "gguf")]
    pub to: Target,
    /// Operators of an ONNX graph [default: portable]
    #[arg(long, value_enum, value_name = "OPERATORS")]
    pub onnx: Option<OnnxOperators>,
    /// Print which tensor would get which type, and write nothing
    #[arg(long)]
    pub plan: bool,
    /// Give tensors whose GGUF name matches REGEX the type T; may be repeated
    #[arg(long = "tensor-type", value_name = "REGEX=T")]
    pub tensor_types: Vec<String>,
    /// Refuse when a tensor cannot have the type of the mix
    #[arg(long)]
    pub strict_types: bool,
    /// Write the RUN's LoRA adapter alone, unmerged, as a GGUF adapter that stands beside its base; e.g. --out adapter.gguf
    #[arg(long, conflicts_with_all = ["types", "plan", "verify", "calibrate", "imatrix", "onnx", "max_size", "max_kl", "max_ms_per_token"])]
    pub adapter_only: bool,
    /// Search longer inside each block than llama.cpp does: less error in the same bytes; e.g. --type q4_0 --best
    #[arg(long, conflicts_with_all = ["compat", "adapter_only"])]
    pub best: bool,
    /// Whose blocks: those that its llama-quantize writes, byte for byte
    #[arg(long, value_enum, default_value = "llama.cpp", value_name = "WHOSE")]
    pub compat: Compat,
    /// Give a matrix the next larger type where rounding would erase what tuning changed: less than this cosine between the
    /// change before and after; e.g. --keep-delta, or --keep-delta 0.7
    #[arg(long, value_name = "COSINE", num_args = 0..=1, default_missing_value = "0.5", value_parser = cosine,
        conflicts_with_all = ["adapter_only", "max_size", "max_kl", "max_ms_per_token"])]
    pub keep_delta: Option<f64>,
    /// How large, or how near
    #[command(flatten)]
    pub budget: BudgetArgs,
    /// Which columns matter
    #[command(flatten)]
    pub importance: ImportanceArgs,
    /// Hold each file against its source on the rows of DATA; exit 3 when one differs too much, and no GGUF file of that name
    #[arg(long, value_name = "DATA")]
    pub verify: Option<PathBuf>,
    /// Flags of ONNX Runtime, for --verify of an ONNX folder
    #[command(flatten)]
    pub ort: OrtArgs,
    /// Replace existing files
    #[arg(long)]
    pub force: bool,
}

/// File formats.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Target {
    /// One file, as llama.cpp reads it
    Gguf,
    /// A folder: graph, weights, tokenizer, as ONNX Runtime reads it
    Onnx,
}

/// Whose blocks.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Compat {
    /// Those of llama-quantize
    #[value(name = "llama.cpp")]
    LlamaCpp,
}

/// Operators of an ONNX graph.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum OnnxOperators {
    /// Standard ones: any runtime takes them
    Portable,
    /// ONNX Runtime's own as well, as ONNX Runtime GenAI has them: faster there, smaller files
    Ort,
}

impl Target {
    /// Where the output of one mix goes when several are written.
    fn place(self, folder: &Path, mix: Mix) -> PathBuf {
        match self {
            Self::Gguf => folder.join(format!("{}.gguf", mix.name())),
            Self::Onnx => folder.join(mix.name()),
        }
    }

    /// # Errors
    /// A mix that the format has no form for.
    fn check(self, mix: Mix) -> anyhow::Result<()> {
        if self == Self::Onnx && !onnx::MIXES.contains(&mix) {
            let known = onnx::MIXES.map(Mix::name).join(" ");
            crate::bad_input!(
                "--type {mix}: ONNX has no operator that takes it; known with --to onnx: {known}, the rest with --to gguf"
            );
        }
        Ok(())
    }
}

/// Runs the verb.
pub fn run(args: &QuantizeArgs, global: &Global) -> anyhow::Result<ExitCode> {
    let mixes = args.types.iter().map(|t| parse_mix(t)).collect::<anyhow::Result<Vec<_>>>()?;
    let overrides = overrides(&args.tensor_types)?;
    mixes.iter().try_for_each(|mix| args.to.check(*mix))?;
    if args.to == Target::Gguf && args.onnx.is_some() {
        crate::bad_input!("--onnx says which operators an ONNX graph has; it goes with --to onnx");
    }
    let operators = match args.onnx {
        Some(OnnxOperators::Ort) => Operators::Ort,
        Some(OnnxOperators::Portable) | None => Operators::Portable,
    };
    if args.to == Target::Onnx && args.verify.is_some() {
        // What verifies the folder is asked for before minutes are spent on it.
        if cfg!(not(feature = "ort")) {
            crate::bad_input!(
                "--verify runs an ONNX folder on the engine ort, which is not in this build; build with `--features ort`, or leave it out"
            );
        }
        args.ort.load()?;
    }
    args.budget.check(args)?;
    let opened = Opened::open(&args.model, 0)?;
    if args.adapter_only {
        return adapter_only(args, &opened, global);
    }
    if opened.adapter.is_none()
        && let Some(t) = opened.weights.metadata().and_then(|g| g.tensors.iter().find(|t| t.ty.block_len() > 1))
    {
        crate::bad_input!(
            "{}: a GGUF file that is quantized already (`{}` is {}); rounding it again would lose twice: give the folder or the RUN it was made from",
            args.model,
            t.name,
            t.ty
        );
    }
    let importance = args.importance.get(&args.model, args.force, global)?;
    let mut options =
        PlanOptions { strict: args.strict_types, overrides, importance, best: args.best, ..PlanOptions::default() };
    let (mut mixes, mut budget) = (mixes, None);
    if args.budget.asked() {
        let found = budget::solve(args, &opened, &options, &mixes, global)?;
        (mixes, options, budget) = (vec![found.mix], found.options, Some(found.json));
    }
    if args.plan {
        if args.to == Target::Onnx {
            eprintln!(
                "note: sizes are those of GGUF; ONNX keeps scales in f32, and codes of four bits in eight where rows are looked up"
            );
        }
        return plans::print(&opened, &mixes, &options, args.keep_delta, budget.as_ref(), global);
    }
    let Some(out) = &args.out else { crate::bad_input!("give --out") };
    // A file of chosen types in a folder is called by what it is.
    let named = match budget.is_some() && (out.is_dir() || out.as_os_str().to_string_lossy().ends_with('/')) {
        true => Some(out.join(format!("{}.gguf", export::make_plan(&opened, mixes[0], &options)?.name()))),
        false => None,
    };
    let out = named.as_ref().unwrap_or(out);
    let places: Vec<PathBuf> = match mixes.as_slice() {
        [_] => vec![out.clone()],
        many => many.iter().map(|m| args.to.place(out, *m)).collect(),
    };
    for place in &places {
        show::refuse_existing(place, args.force)?;
    }
    if mixes.len() == 1 && args.to == Target::Gguf && out.is_dir() {
        crate::bad_input!(
            "{} is a folder; give a file name such as {}",
            out.display(),
            out.join("model.gguf").display()
        );
    }
    let above = if mixes.len() > 1 {
        Some(out.as_path())
    } else {
        out.parent().filter(|_| args.to == Target::Onnx || named.is_some())
    };
    if let Some(folder) = above.filter(|f| !f.as_os_str().is_empty()) {
        std::fs::create_dir_all(folder).map_err(|e| BadInput(format!("cannot create {}: {e}", folder.display())))?;
    }
    let mut all = Vec::new();
    let mut failed = None;
    for (mix, place) in mixes.iter().zip(&places) {
        let (options, retention) = delta::kept(&opened, *mix, &options, args.keep_delta, global)?;
        // Nothing is called by the name that was asked for before it has passed.
        let staged = (args.verify.is_some() && args.to == Target::Gguf).then(|| gate::staging(place));
        let start = Instant::now();
        let bar = show::bar(100, mix.name());
        let mut progress = |done: u64, total: u64| bar.set_position(done * 100 / total.max(1));
        let report = match args.to {
            Target::Gguf => {
                let at = staged.as_ref().unwrap_or(place);
                export::to_file(&opened, *mix, &options, at, args.force || staged.is_some(), &mut progress)?
            }
            Target::Onnx => {
                export::onnx::to_folder(&opened, *mix, &options, operators, place, args.force, &mut progress)?
            }
        };
        bar.finish_and_clear();
        let _removed = staged.clone().map(gate::Removed);
        let seconds = start.elapsed().as_secs_f64();
        let types: BTreeMap<_, _> = report.types.iter().collect();
        let mut line = json!({"out": place, "bytes": report.bytes, "bpw": report.bpw, "type": report.mix, "types": types,
            "seconds": seconds, "peak_mib": show::peak_mib(), "sha256": report.sha256});
        if let Some(coverage) = &report.coverage {
            line["importance"] = importance::json_of(coverage);
        }
        if let Some(retention) = retention {
            line["retention"] = retention;
        }
        if let Some(budget) = &budget {
            line["budget"] = budget.clone();
        }
        if !global.json {
            println!("{} -> {report} in {seconds:.1} s", place.display());
            if let Some(coverage) = &report.coverage {
                importance::print(coverage);
            }
            for tensor in report.tensors.iter().filter(|t| t.fallback.is_some()).take(3) {
                println!("  {}: {}", tensor.name, tensor.fallback.as_deref().unwrap_or_default());
            }
        }
        if let Some(data) = &args.verify {
            let bounds = args.budget.max_kl.map(|x| Bounds { max_kl: Some(x), min_top1: None, max_abs: None });
            let gate = gate::Gate { model: &args.model, data, bounds, force: args.force };
            if !gate.pass(args.to, staged.as_deref(), place, &mut line, global)? {
                failed = Some(place.clone());
            }
        }
        all.push(line);
    }
    if global.json {
        println!("{}", if all.len() == 1 { all.remove(0) } else { json!({ "files": all }) });
    } else if failed.is_none() {
        let first = places[0].display();
        println!("\nNext:\n  edgeft verify {first} --against {}\n  edgeft run {first} -p \"...\"", args.model);
    }
    match failed {
        Some(place) => Err(GateFailed(format!(
            "{} did not pass verification; see above{}",
            place.display(),
            if args.to == Target::Gguf { ", and nothing is there" } else { "" }
        ))
        .into()),
        None => Ok(ExitCode::SUCCESS),
    }
}

/// `--adapter-only`.
fn adapter_only(args: &QuantizeArgs, opened: &Opened, global: &Global) -> anyhow::Result<ExitCode> {
    let Some(out) = &args.out else { crate::bad_input!("give --out") };
    if args.to == Target::Onnx {
        crate::bad_input!("--adapter-only writes GGUF; ONNX folders carry the adapter merged");
    }
    show::refuse_existing(out, args.force)?;
    let written = export::adapter::to_file(opened, out)?;
    let line = json!({"out": out, "bytes": written.bytes, "modules": written.modules, "alpha": written.alpha});
    show::report(global, &line, || {
        println!(
            "{} -> adapter of {} matrices, alpha {}, {}",
            out.display(),
            written.modules,
            written.alpha,
            show::bytes(written.bytes)
        );
        let file = out.display();
        println!("\nNext:\n  edgeft verify base.gguf --adapter {file} --against {}", opened.name);
        println!("  edgeft run base.gguf --adapter {file} -p \"...\"\n  llama-cli -m base.gguf --lora {file}");
    });
    Ok(ExitCode::SUCCESS)
}

fn cosine(text: &str) -> Result<f64, String> {
    let value = text.parse::<f64>().ok().filter(|v| *v > 0.0 && *v <= 1.0);
    value.ok_or_else(|| format!("`{text}` is no cosine: a number over 0, at most 1"))
}

/// A mix by its name.
pub fn parse_mix(name: &str) -> anyhow::Result<Mix> {
    name.parse::<Mix>().map_err(|e| BadInput(format!("--type: {e}")).into())
}

fn overrides(list: &[String]) -> anyhow::Result<Vec<(Regex, GgmlType)>> {
    list.iter()
        .map(|item| {
            let Some((pattern, ty)) = item.rsplit_once('=') else {
                crate::bad_input!("--tensor-type `{item}`: expected REGEX=TYPE, such as ffn_down=q6_k");
            };
            let Some(ty) = GgmlType::from_name(ty) else {
                crate::bad_input!(
                    "--tensor-type `{item}`: no tensor type `{ty}`; known: {}",
                    GgmlType::ALL.map(GgmlType::name).join(" ")
                );
            };
            let regex = Regex::new(pattern).map_err(|e| {
                // The crate draws the place over several lines; the last says what is wrong.
                let text = e.to_string();
                let reason = text.lines().last().unwrap_or_default().trim_start_matches("error: ");
                BadInput(format!("--tensor-type `{item}`: `{pattern}` is no regular expression: {reason}"))
            })?;
            Ok((regex, ty))
        })
        .collect()
}
