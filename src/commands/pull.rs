//! `edgeft pull`: a hub repository → a local folder. What the environment says becomes [`Settings`] here.

use super::show;
use crate::cli::Global;
use crate::error::BadInput;
use crate::hub::{self, Address, Choice, Destination, Progress, Pulled, Settings};
use serde_json::json;
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

/// Flags of `pull`.
#[derive(clap::Args)]
#[command(
    after_help = "Example:\n  edgeft pull org/name --out base/\n  edgeft pull org/name@v1.0\n  edgeft pull org/name-GGUF --include '*q4_k_m.gguf' --out gguf/\nNext:\n  edgeft tune --model base/ --data data.jsonl --out run/\n\n\
    Without --out the files go into Hugging Face's cache, which other programs share.\n\
    A download that was cut goes on where it stood: type the same again.\n\n\
    Environment:\n  HF_ENDPOINT    address of the hub [default: https://huggingface.co]\n  HF_TOKEN       for private and gated repositories [default: the file HF_HOME/token]\n  HF_HOME        token and cache [default: ~/.cache/huggingface]\n  HF_HUB_CACHE   the cache alone [default: HF_HOME/hub]\n  HTTPS_PROXY, NO_PROXY, SSL_CERT_FILE as elsewhere"
)]
pub struct PullArgs {
    /// Repository, and a branch, tag or commit [default: main]
    #[arg(value_name = "REPO[@REV]")]
    pub repo: String,
    /// Folder to create [default: a snapshot in the cache]
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Only files that match, such as '*q4_k_m.gguf'; may be repeated
    #[arg(long, value_name = "GLOB")]
    pub include: Vec<String>,
    /// Every file of the repository, not only what a model needs
    #[arg(long, conflicts_with = "include")]
    pub all: bool,
    /// Replace an existing model folder
    #[arg(long, requires = "out")]
    pub force: bool,
}

const KEPT: &str = "what has arrived is kept, and the same command goes on from there";

/// Runs the verb.
pub fn run(args: &PullArgs, global: &Global) -> anyhow::Result<ExitCode> {
    let start = Instant::now();
    let address: Address = args.repo.parse()?;
    let choice = match (args.all, args.include.as_slice()) {
        (true, _) => Choice::All,
        (false, []) => Choice::Model,
        (false, patterns) => Choice::Include(patterns.to_vec()),
    };
    let to = match &args.out {
        Some(path) => Destination::Folder { path: path.clone(), force: args.force },
        None => Destination::Cache,
    };
    let settings = settings(|name| std::env::var_os(name).filter(|v| !v.is_empty()))?;
    // Whatever has arrived is on the disk, so that there is nothing to wait for.
    let _ = ctrlc::set_handler(|| {
        eprintln!("\ninterrupted; {KEPT}");
        std::process::exit(130);
    });
    let (bar, mut arrived) = (bar(), false);
    let pulled = hub::pull(&settings, &address, &choice, &to, &mut |progress| match progress {
        Progress::Start { bytes, .. } => bar.set_length(bytes),
        Progress::At { file, done } => {
            arrived |= done > 0;
            if bar.message() != file {
                bar.set_message(file.to_owned());
            }
            bar.set_position(done);
        }
        Progress::Again { reason } => bar.suspend(|| eprintln!("{reason}")),
    });
    bar.finish_and_clear();
    let pulled = pulled.inspect_err(|e| {
        if arrived && e.keeps_pieces() {
            eprintln!("{KEPT}");
        }
    })?;
    let seconds = start.elapsed().as_secs_f64();
    let files: Vec<_> =
        pulled.files.iter().map(|f| json!({"name": f.name, "bytes": f.bytes, "hash": f.hash.to_string()})).collect();
    let line = json!({"out": pulled.out, "files": files, "bytes": pulled.bytes, "seconds": seconds,
        "revision": pulled.revision, "repo": address.repo, "downloaded_bytes": pulled.downloaded});
    show::report(global, &line, || print(&address, &pulled, seconds));
    Ok(ExitCode::SUCCESS)
}

fn print(address: &Address, pulled: &Pulled, seconds: f64) {
    let out = pulled.out.display();
    println!("{address} (commit {:.12}) -> {out}", pulled.revision);
    let came = match pulled.downloaded {
        0 => "all of it was here".to_owned(),
        n => format!("{} downloaded in {seconds:.1} s, {}/s", show::bytes(n), show::bytes((n as f64 / seconds) as u64)),
    };
    println!("{} files, {}; {came}; every hash is right", pulled.files.len(), show::bytes(pulled.bytes));
    let named = |ending: &str| pulled.files.iter().find(|f| f.name.ends_with(ending));
    match (named(".safetensors"), named(".gguf")) {
        (Some(_), _) if named("adapter_model.safetensors").is_none() => println!(
            "\nNext:\n  edgeft tune --model {out} --data data.jsonl --out run\n  edgeft quantize {out} --type q4_k_m --out model.gguf"
        ),
        (_, Some(gguf)) => println!("\nNext:\n  edgeft run {} -p \"Hello\"", pulled.out.join(&gguf.name).display()),
        _ => println!("\nNext:\n  edgeft inspect {out}"),
    }
}

/// A bar of bytes, with their rate.
fn bar() -> indicatif::ProgressBar {
    let style =
        "{prefix} {bar:24} {decimal_bytes}/{decimal_total_bytes}  {decimal_bytes_per_sec}  left {eta}  {wide_msg}";
    let style =
        indicatif::ProgressStyle::with_template(style).unwrap_or_else(|_| indicatif::ProgressStyle::default_bar());
    indicatif::ProgressBar::new(0).with_style(style).with_prefix("pull")
}

/// What Hugging Face's own programs take from the environment, by the same names.
fn settings(var: impl Fn(&str) -> Option<OsString>) -> anyhow::Result<Settings> {
    let text = |name: &str| -> anyhow::Result<Option<String>> {
        let Some(value) = var(name) else { return Ok(None) };
        let value = value.into_string().map_err(|_| BadInput(format!("{name} is no text")))?;
        Ok(Some(value.trim().to_owned()))
    };
    let under_cache = |folder: PathBuf| folder.join("huggingface");
    let home = var("HF_HOME")
        .map(PathBuf::from)
        .or_else(|| var("XDG_CACHE_HOME").map(PathBuf::from).map(under_cache))
        .or_else(|| std::env::home_dir().map(|home| under_cache(home.join(".cache"))));
    let hub = home.map(|home| home.join("hub"));
    let saved = hub.clone().and_then(|hub| hf_hub::Cache::new(hub).token());
    let roots = match var("SSL_CERT_FILE") {
        Some(file) => {
            let path = PathBuf::from(file);
            Some(
                std::fs::read(&path)
                    .map_err(|e| BadInput(format!("SSL_CERT_FILE: cannot read {}: {e}", path.display())))?,
            )
        }
        None => None,
    };
    Ok(Settings {
        endpoint: text("HF_ENDPOINT")?.unwrap_or_else(|| hub::ENDPOINT.to_owned()),
        token: text("HF_TOKEN")?.or(saved),
        cache: var("HF_HUB_CACHE").map(PathBuf::from).or(hub),
        proxy: ureq::Proxy::try_from_env(),
        roots,
        ..Settings::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_is_read_as_the_hubs_own_programs_read_it() {
        let folder = tempfile::tempdir().unwrap();
        let home = folder.path().to_str().unwrap().to_owned();
        let with = |vars: &[(&str, &str)]| {
            settings(|name| vars.iter().find(|(n, _)| *n == name).map(|(_, v)| OsString::from(v))).unwrap()
        };
        let plain = with(&[("HF_HOME", &home)]);
        assert_eq!(plain.endpoint, "https://huggingface.co");
        assert_eq!((plain.token, plain.cache), (None, Some(folder.path().join("hub"))));

        std::fs::write(folder.path().join("token"), "hf_saved\n").unwrap();
        assert_eq!(with(&[("HF_HOME", &home)]).token.as_deref(), Some("hf_saved"));
        let set =
            with(&[("HF_HOME", &home), ("HF_TOKEN", "hf_mine "), ("HF_HUB_CACHE", "c"), ("HF_ENDPOINT", "http://m")]);
        assert_eq!((set.token.as_deref(), set.endpoint.as_str()), (Some("hf_mine"), "http://m"));
        assert_eq!(set.cache, Some(PathBuf::from("c")));

        let xdg = with(&[("XDG_CACHE_HOME", &home)]);
        assert_eq!(xdg.cache, Some(folder.path().join("huggingface/hub")));
    }
}
