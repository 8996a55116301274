//! `edgeft doctor`: what this build and this machine can do, a line each, with the command that would change it.

use super::ort::OrtArgs;
use super::show;
use crate::cli::Global;
use crate::export;
use crate::model::open::Opened;
use crate::package::runner::{Runner, build_command};
use crate::profile::{Profile, this};
use edgeft_quantize::onnx::Operators;
use edgeft_quantize::{Mix, PlanOptions};
use edgeft_runtime::engine::{Backend, EngineOptions, KvType, Rows, Run};
use edgeft_runtime::kernels::Kernels;
use edgeft_runtime::measure::cgroup::Limits;
use edgeft_runtime::measure::device::{self, Device};
use edgeft_runtime::model::Model;
use edgeft_runtime::{Error, Kind};
use serde::Serialize;
use serde_json::json;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

/// Flags of `doctor`.
#[derive(clap::Args)]
#[command(after_help = "Exit code 1 when something is broken; what is merely missing is not.\n\n\
    Example:\n  edgeft doctor\nNext:\n  edgeft demo")]
pub struct DoctorArgs {}

/// How a check came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// It is there and works.
    Ok,
    /// Worth knowing.
    Note,
    /// Not there; the rest works without.
    Missing,
    /// There, and does not work.
    Broken,
}

/// One line of the report.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Check {
    /// What was looked at.
    pub name: &'static str,
    /// How it came out.
    pub state: State,
    /// What was found.
    pub says: String,
    /// The command that would change it.
    pub fix: Option<String>,
}

impl Check {
    fn new(name: &'static str, state: State, says: impl Into<String>) -> Self {
        Self { name, state, says: says.into(), fix: None }
    }

    fn fix(mut self, command: impl Into<String>) -> Self {
        self.fix = Some(command.into());
        self
    }
}

/// Free space below which a warning is due.
const LITTLE: u64 = 2_000_000_000;

/// Runs the verb.
pub fn run(_: &DoctorArgs, global: &Global) -> anyhow::Result<ExitCode> {
    let mut checks = vec![build(), cpu(), threads(global), memory()];
    checks.extend(engines(global));
    checks.extend([serve(), runner(), disk("disk", Path::new(".")), cache(), python()]);
    let broken = checks.iter().filter(|c| c.state == State::Broken).count();
    let whole = json!({"ok": broken == 0, "version": env!("CARGO_PKG_VERSION"), "checks": checks});
    show::report(global, &whole, || {
        print!("{}", text(&checks));
        match broken {
            0 => println!("\nNothing is broken.\n\nNext:\n  edgeft demo"),
            n => println!("\n{n} broken; see the lines marked so."),
        }
    });
    Ok(ExitCode::from(u8::from(broken > 0)))
}

fn text(checks: &[Check]) -> String {
    let mut out = String::new();
    for check in checks {
        let state = match check.state {
            State::Ok => "ok",
            State::Note => "note",
            State::Missing => "missing",
            State::Broken => "BROKEN",
        };
        out.push_str(&format!("  {state:<8} {:<12} {}\n", check.name, check.says));
        if let Some(fix) = &check.fix {
            out.push_str(&format!("  {:<8} {:<12} -> {fix}\n", "", ""));
        }
    }
    out
}

fn build() -> Check {
    let kind = if cfg!(debug_assertions) { "debug build" } else { "release build" };
    let says = format!("{}, {kind} for {}", env!("CARGO_PKG_VERSION"), this::triple());
    match cfg!(debug_assertions) {
        true => Check::new("edgeft", State::Note, format!("{says}: ten times slower")).fix("cargo build --release"),
        false => Check::new("edgeft", State::Ok, says),
    }
}

fn cpu() -> Check {
    let have: Vec<&str> = Kernels::available().iter().map(|l| l.name()).collect();
    match Kernels::detect() {
        Ok(kernels) => {
            let device = Device::detect(&kernels);
            let says = format!("{}: kernels {} (of {})", device.cpu, device.isa, have.join(", "));
            match std::env::var_os("EDGEFT_ISA") {
                Some(_) => {
                    Check::new("cpu", State::Note, format!("{says}, as EDGEFT_ISA says")).fix("unset EDGEFT_ISA")
                }
                None => Check::new("cpu", State::Ok, says),
            }
        }
        Err(e) => Check::new("cpu", State::Broken, e.to_string()).fix("unset EDGEFT_ISA"),
    }
}

/// What `available_parallelism` says holds the affinity mask and the control group's quota.
fn threads(global: &Global) -> Check {
    let logical = std::fs::read_to_string("/proc/cpuinfo").ok();
    let logical = logical.map(|t| t.lines().filter(|l| l.starts_with("processor")).count()).filter(|n| *n > 0);
    let mut says = format!("{} will compute", global.threads());
    if let Some(n) = logical {
        says += &format!("; the machine has {n} logical CPUs");
    }
    let quota = Limits::of_this_process().cpus;
    if let Some(cpus) = quota {
        says += &format!("; the control group allows {cpus:.1} of them");
    }
    let fewer = logical.is_some_and(|n| n > global.threads());
    Check::new("threads", if fewer { State::Note } else { State::Ok }, says)
}

fn memory() -> Check {
    let Some(all) = device::usable_bytes() else { return Check::new("memory", State::Note, "the system does not say") };
    let mut says = show::bytes(all);
    if let Some(limit) = Limits::of_this_process().memory {
        says += &format!(" (the control group allows {})", show::bytes(limit));
    }
    let free = device::available_bytes();
    if let Some(free) = free {
        says += &format!(", {} free", show::bytes(free.min(all)));
    }
    let little = free.is_some_and(|free| free.min(all) < 500_000_000);
    Check::new("memory", if little { State::Note } else { State::Ok }, says)
}

/// Each engine runs a token of the embedded model; one that is not in this build, or that lacks something here, says so itself.
fn engines(global: &Global) -> Vec<Check> {
    let gguf = Opened::open("nano", 0).and_then(|nano| {
        let bytes = export::to_memory(&nano, Mix::Q8_0)?;
        Ok(Model::from_bytes(bytes, "nano")?)
    });
    match gguf {
        Ok(model) => vec![
            engine("engine cpu", Backend::Cpu, &model, global.threads()),
            engine("engine gpu", Backend::Gpu, &model, global.threads()),
            ort(global.threads()),
        ],
        Err(e) => vec![Check::new("engines", State::Broken, format!("the embedded model does not open: {e:#}"))],
    }
}

/// ONNX Runtime, on an ONNX folder of the embedded model.
fn ort(threads: usize) -> Check {
    const NAME: &str = "engine ort";
    if let Err(e) = OrtArgs::default().load() {
        let says = e.to_string();
        let first = says.lines().next().unwrap_or_default().trim_start_matches("engine ort: ");
        return Check::new(NAME, State::Missing, first.trim_end_matches(" Install it with"))
            .fix("pip install onnxruntime");
    }
    let folder = tempfile::tempdir().map_err(anyhow::Error::from).and_then(|dir| {
        let nano = Opened::open("nano", 0)?;
        let place = dir.path().join("nano");
        export::onnx::to_folder(
            &nano,
            Mix::F32,
            &PlanOptions::default(),
            Operators::Portable,
            &place,
            false,
            &mut |_, _| {},
        )?;
        Ok((Model::open(&place)?, dir))
    });
    match folder {
        Ok((model, _dir)) => engine(NAME, Backend::Ort, &model, threads),
        Err(e) => Check::new(NAME, State::Broken, format!("the embedded model does not become an ONNX folder: {e:#}")),
    }
}

fn engine(name: &'static str, backend: Backend, model: &Model, threads: usize) -> Check {
    let kv = model.kv().unwrap_or(KvType::F16);
    let options = EngineOptions { backend, threads, ctx: 8, n_seqs: 1, kv };
    let begun = std::time::Instant::now();
    let ran = model.engine(&options).and_then(|mut engine| {
        let mut rows = Vec::new();
        engine.forward(&[Run { seq: 0, tokens: &[1, 2, 3], types: None, rows: Rows::Last }], &mut rows)?;
        Ok((rows, engine.runs_on()))
    });
    match ran {
        Ok((rows, runs_on)) if !rows.is_empty() && rows.iter().all(|x| x.is_finite()) => {
            let ms = begun.elapsed().as_secs_f64() * 1e3;
            let place = runs_on.map_or(String::new(), |place| format!(" on {place}"));
            Check::new(name, State::Ok, format!("ran the embedded model in {ms:.1} ms{place}"))
        }
        Ok(_) => Check::new(name, State::Broken, "ran the embedded model, and gave numbers that are none"),
        Err(e) => cannot(name, backend, &e),
    }
}

/// The state of an engine that gave an error.
fn cannot(name: &'static str, backend: Backend, error: &Error) -> Check {
    let says = error.to_string();
    let says = says.strip_prefix(&format!("{name}: ")).unwrap_or(&says).to_owned();
    match error.kind() {
        Kind::Missing if says.starts_with("not in this build") => {
            let features = format!("cargo build --release --features {}", backend.name());
            Check::new(name, State::Missing, "not in this build").fix(features)
        }
        Kind::Missing => Check::new(name, State::Missing, says),
        _ => Check::new(name, State::Broken, says),
    }
}

fn serve() -> Check {
    match cfg!(feature = "server") {
        true => Check::new("serve", State::Ok, "in this build"),
        false => {
            Check::new("serve", State::Missing, "not in this build").fix("cargo build --release --features server")
        }
    }
}

/// What `package` puts into bundles for machines like this one.
fn runner() -> Check {
    let folder = std::env::current_exe().ok().and_then(|p| Some(p.parent()?.to_owned())).unwrap_or_default();
    let like_this = Profile::all().unwrap_or_default().into_iter().find(|p| p.triple == this::triple());
    let Some(profile) = like_this else {
        return Check::new("edgeft-run", State::Note, format!("no target is like this machine ({})", this::triple()));
    };
    match Runner::find(&profile, None, &folder) {
        Ok(runner) => Check::new("edgeft-run", State::Ok, format!("{}, {}", runner.path.display(), runner.linked)),
        Err(e) => {
            let first = e.to_string().lines().next().unwrap_or_default().to_owned();
            let says = first.trim_end_matches("; build it, or give --runner FILE:").trim_end_matches("; build one:");
            Check::new("edgeft-run", State::Missing, format!("{says} (`package` needs it)"))
                .fix(build_command(&profile))
        }
    }
}

/// Free space where a path is, and whether it can be written to.
fn disk(name: &'static str, path: &Path) -> Check {
    if let Err(e) = tempfile::tempfile_in(path) {
        return Check::new(name, State::Note, format!("nothing can be written in {}: {e}", path.display()));
    }
    match free_bytes(path) {
        Some(free) => {
            let state = if free < LITTLE { State::Note } else { State::Ok };
            Check::new(name, state, format!("{} free in {}", show::bytes(free), shown(path)))
        }
        None => Check::new(name, State::Ok, format!("{} can be written to", shown(path))),
    }
}

fn shown(path: &Path) -> String {
    std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned()).display().to_string()
}

/// Where models of the hub are kept, as Hugging Face's own programs have it.
fn cache() -> Check {
    let set = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let home = || Some(set("HOME")?.join(".cache").join("huggingface"));
    let Some(folder) = set("HF_HOME").or_else(home) else {
        return Check::new("cache", State::Note, "neither HF_HOME nor HOME is set, so there is no place for downloads")
            .fix("export HF_HOME=DIR");
    };
    match folder.is_dir() {
        true => disk("cache", &folder),
        false => {
            Check::new("cache", State::Note, format!("{} is not there yet; it is made when needed", folder.display()))
        }
    }
}

/// edgeft needs none; other exporters do.
fn python() -> Check {
    match first_line(Command::new("python3").arg("--version")) {
        Some(version) => Check::new("python3", State::Ok, format!("{version} (edgeft itself needs none)")),
        None => Check::new("python3", State::Note, "not found; edgeft itself needs none"),
    }
}

fn first_line(command: &mut Command) -> Option<String> {
    let output = command.stdin(Stdio::null()).stderr(Stdio::null()).output().ok().filter(|o| o.status.success())?;
    Some(String::from_utf8_lossy(&output.stdout).lines().next()?.trim().to_owned()).filter(|line| !line.is_empty())
}

#[cfg(unix)]
fn free_bytes(path: &Path) -> Option<u64> {
    let found = rustix::fs::statvfs(path).ok()?;
    Some(found.f_bavail * found.f_frsize)
}

#[cfg(not(unix))]
fn free_bytes(_: &Path) -> Option<u64> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_engine_that_is_not_there_is_missing_and_one_that_fails_is_broken() {
        let error = |kind, message: &str| Error::new(kind, "engine gpu", message);
        let absent = cannot("engine gpu", Backend::Gpu, &error(Kind::Missing, "not in this build; build with ..."));
        assert_eq!(absent.state, State::Missing);
        assert_eq!(absent.fix.as_deref(), Some("cargo build --release --features gpu"));
        let bare = cannot("engine gpu", Backend::Gpu, &error(Kind::Missing, "no adapter; install mesa-vulkan-drivers"));
        assert_eq!((bare.state, bare.says.as_str()), (State::Missing, "no adapter; install mesa-vulkan-drivers"));
        assert_eq!(cannot("engine gpu", Backend::Gpu, &error(Kind::Io, "device lost")).state, State::Broken);
    }

    #[test]
    fn every_line_has_its_state_and_the_way_out_stands_below() {
        let checks =
            [Check::new("disk", State::Ok, "2.0 GB free"), Check::new("cpu", State::Broken, "x").fix("unset Y")];
        assert_eq!(
            text(&checks),
            "  ok       disk         2.0 GB free\n  BROKEN   cpu          x\n                        -> unset Y\n"
        );
    }

    #[test]
    fn a_folder_that_is_not_there_is_a_note() {
        assert_eq!(disk("disk", Path::new("no/such/folder")).state, State::Note);
        let folder = tempfile::tempdir().unwrap();
        assert_ne!(disk("disk", folder.path()).state, State::Broken);
    }
}
