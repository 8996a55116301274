//! `edgeft serve`: a model behind OpenAI's API.

use super::ort::OrtArgs;
use super::run::{RunEngine, at_least_one, open};
use super::show;
use crate::cli::Global;
use crate::export::Runnable;
use crate::package::request;
use edgeft_runtime::server::setup::{address, cannot_listen, read_key};
use edgeft_runtime::server::{Config, Limits, Loaded, Server};
use edgeft_runtime::{Error, Kind, SessionOptions};
use serde_json::json;
use std::path::PathBuf;
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
    /// GGUF file or ONNX folder; a model folder, a RUN or `nano` is converted in memory (f32 stays f32)
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
    /// Where to compute [default: ort for an ONNX folder, cpu for everything else]
    #[arg(long, value_enum)]
    pub engine: Option<RunEngine>,
    /// Flags of ONNX Runtime
    #[command(flatten)]
    pub ort: OrtArgs,
}

/// Runs the verb.
pub fn run(args: &ServeArgs, global: &Global) -> anyhow::Result<ExitCode> {
    let addr = address(&args.host, args.port)?;
    let api_key = args.api_key_file.as_deref().map(read_key).transpose()?;
    if api_key.is_none() && !addr.ip().is_loopback() {
        eprintln!("warning: whoever reaches {addr} may use this server; give --api-key-file, or leave out --host");
    }
    let model = show::model_name(&args.model);
    let config = Config { addr, model: model.clone(), api_key, limits: Limits::default() };
    let options = SessionOptions { ctx: args.ctx, threads: Some(global.threads()), ..SessionOptions::default() };
    let (tell, told) = mpsc::channel();
    let server = Server::start(config, {
        let (place, engine, ort) = (args.model.clone(), args.engine, args.ort.clone());
        // The server takes the runtime's errors alone; the whole chain, with its exit code, comes back by `told`.
        move || {
            let load = || {
                let Runnable { model, backend, .. } = open(&place, engine, &ort)?;
                let options = SessionOptions { backend, ..options };
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
        let line = cannot_listen(&e);
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
        println!("serving {model} at {url}    try: {}", request::first(&opened, &url, args.api_key_file.as_deref()));
    });
    server.wait();
    Ok(ExitCode::SUCCESS)
}
