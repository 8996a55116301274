//! `edgeft serve`: a model behind OpenAI's API.

use super::run::{RunEngine, at_least_one, open};
use super::show;
use crate::cli::Global;
use crate::error::BadInput;
use edgeft_runtime::model::{Model, Task};
use edgeft_runtime::server::{Config, Limits, Loaded, Server};
use edgeft_runtime::{Error, Kind, SessionOptions};
use serde_json::json;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;

/// Flags of `serve`.
#[derive(clap::Args)]
#[command(
    after_help = "Endpoints: /v1/chat/completions, /v1/completions, /v1/classify, /v1/answer, /v1/models, /tokenize, /healthz, /readyz.\n\
    Requests are answered one after another; 32 may wait, one more gets 429. Without `temperature`, the likeliest token is taken.\n\
    Ctrl-C or SIGTERM lets what runs end, for at most 20 s; a second one does not wait.\n\n\
    Example:\n  edgeft serve model.gguf --port 8080\nNext:\n  \
    curl http://127.0.0.1:8080/v1/completions -d '{\"prompt\": \"Once upon a time\", \"max_tokens\": 32}'"
)]
pub struct ServeArgs {
    /// GGUF file; a model folder, a RUN or `nano` is converted in memory (f32 stays f32)
    #[arg(value_name = "MODEL")]
    pub model: String,
    /// Address to listen on; anything but this machine's own should have a key
    #[arg(long, value_name = "HOST", default_value = "127.0.0.1")]
    pub host: String,
    /// Port to listen on; 0 takes a free one
    #[arg(long, value_name = "PORT", default_value_t = 8080)]
    pub port: u16,
    /// Tokens that prompt and answer may hold together [default: the model's own, at most 4096]
    #[arg(long, value_name = "TOKENS", value_parser = at_least_one)]
    pub ctx: Option<usize>,
    /// File whose first line is the key that clients send as `Authorization: Bearer KEY`
    #[arg(long, value_name = "FILE")]
    pub api_key_file: Option<PathBuf>,
    /// Where to compute
    #[arg(long, value_enum, default_value = "cpu")]
    pub engine: RunEngine,
}

/// Runs the verb.
pub fn run(args: &ServeArgs, global: &Global) -> anyhow::Result<ExitCode> {
    let addr = address(&args.host, args.port)?;
    let api_key = args.api_key_file.as_deref().map(read_key).transpose()?;
    if api_key.is_none() && !addr.ip().is_loopback() {
        eprintln!("warning: whoever reaches {addr} may use this server; give --api-key-file, or leave out --host");
    }
    let model = name_of(&args.model);
    let config = Config { addr, model: model.clone(), api_key, limits: Limits::default() };
    let options = SessionOptions {
        backend: args.engine.into(),
        ctx: args.ctx,
        threads: Some(global.threads()),
        ..SessionOptions::default()
    };
    let (tell, told) = mpsc::channel();
    let server = Server::start(config, {
        let place = args.model.clone();
        // The server takes the runtime's errors alone; the whole chain, with its exit code, comes back by `told`.
        move || {
            let load = || {
                let model = open(&place)?;
                let loaded = Loaded::new(&model, &options)?;
                show::runs_on(loaded.session.runs_on());
                anyhow::Ok((loaded, model))
            };
            let (outcome, whole) = match load() {
                Ok((loaded, model)) => (Ok(loaded), Ok(model)),
                Err(e) => (Err(Error::new(Kind::Input, "", e.to_string())), Err(e)),
            };
            let _ = tell.send(whole); // nobody listens once a signal has ended the verb
            outcome
        }
    });
    let server = server.map_err(|e| {
        let way_out = if in_use(&e) { "; choose another --port, or 0 for a free one" } else { "" };
        let line = format!("cannot listen on {e}{way_out}");
        anyhow::Error::new(e).context(line)
    })?;
    let (stopper, stopping) = (server.stopper(), AtomicBool::new(false));
    ctrlc::set_handler(move || {
        if stopping.swap(true, Ordering::SeqCst) {
            std::process::exit(130); // a second signal does not wait
        }
        eprintln!("stopping; what runs may end");
        stopper.stop();
    })?;
    if let Err(e) = server.ready() {
        return Err(match told.try_recv() {
            Ok(Err(whole)) => whole,
            _ => e.into(),
        });
    }
    let opened = told.recv()??;
    let url = format!("http://{}", server.addr());
    show::report(global, &json!({"url": url, "model": model}), || {
        println!("serving {model} at {url}    try: {}", example(&opened, &url, args.api_key_file.as_deref()));
    });
    server.wait();
    Ok(ExitCode::SUCCESS)
}

/// Whether another program has the port.
fn in_use(error: &Error) -> bool {
    let source = std::error::Error::source(error).and_then(|e| e.downcast_ref::<std::io::Error>());
    source.is_some_and(|e| e.kind() == std::io::ErrorKind::AddrInUse)
}

/// What `--host` and `--port` name.
fn address(host: &str, port: u16) -> anyhow::Result<SocketAddr> {
    let bare = host.trim_start_matches('[').trim_end_matches(']'); // [::1] is how URLs spell it
    let found = (bare, port).to_socket_addrs().map_err(|e| BadInput(format!("--host {host}: {e}")))?.next();
    found.ok_or_else(|| BadInput(format!("--host {host}: it names no address")).into())
}

/// The first line of a key file.
fn read_key(path: &Path) -> anyhow::Result<String> {
    let text = std::fs::read_to_string(path)
        .map_err(|e| BadInput(format!("--api-key-file: cannot read {}: {e}", path.display())))?;
    let key = text.lines().next().unwrap_or_default().trim();
    if key.is_empty() || !key.is_ascii() {
        crate::bad_input!("--api-key-file: the first line of {} holds no key; put one there, in ASCII", path.display());
    }
    Ok(key.to_owned())
}

/// The name that clients use: the file's, or the folder's, without what leads there.
fn name_of(model: &str) -> String {
    let path = std::fs::canonicalize(model).unwrap_or_else(|_| model.into());
    let name = if path.is_file() { path.file_stem() } else { path.file_name() };
    name.map_or_else(|| model.to_owned(), |name| name.to_string_lossy().into_owned())
}

/// A first request.
fn example(model: &Model, url: &str, key_file: Option<&Path>) -> String {
    let chat = matches!(model.chat(), Ok(Some(_)));
    let (path, body) = match (model.task(), chat) {
        (Task::Classify, _) => ("v1/classify", json!({"input": "What a pleasant surprise."})),
        (Task::Answer, _) => ("v1/answer", json!({"question": "Who wrote it?", "context": "Ann wrote it."})),
        (Task::Embed, _) => ("tokenize", json!({"text": "Hello"})),
        (Task::Generate, true) => {
            ("v1/chat/completions", json!({"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 32}))
        }
        (Task::Generate, false) => ("v1/completions", json!({"prompt": "Once upon a time", "max_tokens": 32})),
    };
    let key =
        key_file.map_or(String::new(), |path| format!(" -H \"Authorization: Bearer $(head -1 {})\"", path.display()));
    format!("curl {url}/{path}{key} -d '{body}'")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_names_or_addresses_of_either_kind() {
        assert_eq!(address("127.0.0.1", 1).unwrap().to_string(), "127.0.0.1:1");
        assert_eq!(address("[::1]", 2).unwrap().to_string(), "[::1]:2");
        assert!(address("no such host", 3).unwrap_err().to_string().starts_with("--host no such host"));
    }

    #[test]
    fn a_key_file_without_a_key_is_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(read_key(file.path()).unwrap_err().to_string().contains("holds no key"));
        std::fs::write(file.path(), " secret \nignored\n").unwrap();
        assert_eq!(read_key(file.path()).unwrap(), "secret");
    }

    #[test]
    fn a_model_is_called_by_its_file_or_folder() {
        let folder = tempfile::Builder::new().prefix("model-v1.5-").tempdir().unwrap();
        assert_eq!(
            name_of(&format!("{}/", folder.path().display())),
            folder.path().file_name().unwrap().to_str().unwrap()
        );
        let file = folder.path().join("tiny.q8_0.gguf");
        std::fs::write(&file, "").unwrap();
        assert_eq!(name_of(file.to_str().unwrap()), "tiny.q8_0");
        assert_eq!(name_of("nano"), "nano");
    }
}
