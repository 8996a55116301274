//! `edgeft serve`: a model behind OpenAI's API.

use super::ort::OrtArgs;
use super::run::{RunEngine, at_least_one, open};
use super::show;
use crate::cli::Global;
use crate::export::Runnable;
use crate::package::request;
use edgeft_runtime::server::memory::{MOST, PARALLEL};
use edgeft_runtime::server::setup::{self, adapters, address, cannot_listen, read_keys, safe};
use edgeft_runtime::server::tls::Tls;
use edgeft_runtime::server::{Access, Config, Limits, Log, Server, signals};
use edgeft_runtime::{Error, Kind, SessionOptions};
use serde_json::json;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::mpsc;
use std::time::Duration;

/// Flags of `serve`.
#[derive(clap::Args)]
#[command(
    after_help = "A page to try the model is at /; what may be sent, at /openapi.json; counts and times, at /metrics.\n\
    Endpoints: /v1/chat/completions, /v1/completions, /v1/embeddings, /v1/classify, /v1/answer, /v1/models, /tokenize,\n\
    /detokenize, the Open Inference Protocol under /v2, and for probes /healthz and /readyz.\n\
    --parallel answers go on beside each other, 32 more requests may wait, one more gets 429. Without `temperature`, the likeliest\n\
    token is taken. What is asked alone, in company or after a cache hit gets the same answer, on --engine cpu bit for bit.\n\
    Ctrl-C or SIGTERM lets what runs end, for at most --drain seconds; a second one does not wait. SIGHUP reads keys and certificate again.\n\n\
    Example:\n  edgeft serve model.gguf --port 8080\n  edgeft serve model.gguf --host 0.0.0.0 --api-key-file keys.txt --log\n  \
    edgeft serve model.gguf --host 0.0.0.0 --api-key-file keys.txt --tls-cert cert.pem --tls-key key.pem\n  \
    edgeft serve model.gguf --parallel 16 --ctx 2048 --deadline 60\n  \
    edgeft serve base.gguf --adapter polite=polite.gguf --adapter brief=brief.gguf=0.5\nNext:\n  \
    curl http://127.0.0.1:8080/v1/completions -d '{\"prompt\": \"Once upon a time\", \"max_tokens\": 32}'"
)]
pub struct ServeArgs {
    /// GGUF file or ONNX folder; a model folder, a RUN or `nano` is converted in memory (f32 stays f32)
    #[arg(value_name = "MODEL")]
    pub model: String,
    /// GGUF adapter beside the model, at SCALE times its strength [default: 1]; a request asks for it by `"model": "MODEL:NAME"`
    /// (repeatable)
    #[arg(long, value_name = "NAME=FILE[=SCALE]")]
    pub adapter: Vec<String>,
    /// Address to listen on; any but this machine's own needs --api-key-file or --insecure-no-auth
    #[arg(long, value_name = "HOST", default_value = "127.0.0.1")]
    pub host: String,
    /// Port to listen on; 0 takes a free one
    #[arg(long, value_name = "PORT", default_value_t = 8080)]
    pub port: u16,
    /// Tokens that prompt and answer may hold together [default: the model's own, at most 4096]
    #[arg(long, value_name = "TOKENS", value_parser = at_least_one)]
    pub ctx: Option<usize>,
    /// File of keys, one a line (# begins a remark); clients send one as `Authorization: Bearer KEY`
    #[arg(long, value_name = "FILE")]
    pub api_key_file: Option<PathBuf>,
    /// Let whoever reaches --host use the server without a key
    #[arg(long, conflicts_with = "api_key_file")]
    pub insecure_no_auth: bool,
    /// Speak TLS: the certificate in PEM, with its chain behind it; SIGHUP reads it again
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,
    /// The certificate's private key in PEM
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,
    /// Name that clients may use for this server, besides localhost and addresses (repeatable)
    #[arg(long, value_name = "NAME")]
    pub allow_host: Vec<String>,
    /// Origin of web pages that may ask, such as https://example.org (repeatable) [default: this server's own page alone]
    #[arg(long, value_name = "ORIGIN")]
    pub allow_origin: Vec<String>,
    /// Answers that go on beside each other [default: 4, or as many as there is memory for]
    #[arg(long, value_name = "N", value_parser = slots)]
    pub parallel: Option<usize>,
    /// Chats whose next turn reads only its new tokens, in all; each may take the memory of a whole context [default: --parallel]
    #[arg(long, value_name = "N", value_parser = slots)]
    pub cache_slots: Option<usize>,
    /// Seconds that a request may take, waiting included; later it gets 504
    #[arg(long, value_name = "SECONDS", default_value_t = Limits::default().request.as_secs(), value_parser = clap::value_parser!(u64).range(1..))]
    pub deadline: u64,
    /// Seconds that requests may take to end once the server is told to stop
    #[arg(long, value_name = "SECONDS", default_value_t = Limits::default().drain.as_secs())]
    pub drain: u64,
    /// Write a line of JSON for each request to stderr; never what was asked or answered
    #[arg(long)]
    pub log: bool,
    /// Where to compute [default: ort for an ONNX folder, cpu for everything else]
    #[arg(long, value_enum)]
    pub engine: Option<RunEngine>,
    /// Flags of ONNX Runtime
    #[command(flatten)]
    pub ort: OrtArgs,
}

/// Caches are allocated at once, so a slip of the finger must not ask for thousands.
fn slots(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(n @ 1..=MOST) => Ok(n),
        _ => Err(format!("give 1 to {MOST}")),
    }
}

/// Runs the verb.
pub fn run(args: &ServeArgs, global: &Global) -> anyhow::Result<ExitCode> {
    let addr = address(&args.host, args.port)?;
    let keys = args.api_key_file.as_deref().map(read_keys).transpose()?;
    safe(addr, keys.is_some(), args.insecure_no_auth)?;
    let tls = args.tls_cert.as_deref().zip(args.tls_key.as_deref());
    let tls = tls.map(|(cert, key)| Tls::open(cert, key)).transpose()?;
    let model = show::model_name(&args.model);
    let adapters = adapters(&args.adapter)?;
    let config = Config {
        access: Access {
            key_file: args.api_key_file.clone(),
            hosts: args.allow_host.clone(),
            origins: args.allow_origin.clone(),
        },
        limits: Limits {
            drain: Duration::from_secs(args.drain),
            request: Duration::from_secs(args.deadline),
            parallel: args.parallel.unwrap_or(PARALLEL),
            ..Limits::default()
        },
        adapters: adapters.iter().map(|(name, ..)| name.clone()).collect(),
        tls,
        log: args.log.then(|| Log::new(|line| eprintln!("{line}"))),
        ..Config::new(addr, model.as_str())
    };
    let (parallel, kept) = (args.parallel, args.cache_slots);
    let options = SessionOptions { ctx: args.ctx, threads: Some(global.threads()), ..SessionOptions::default() };
    let (tell, told) = mpsc::channel();
    let server = Server::start(config, {
        let (place, engine, ort) = (args.model.clone(), args.engine, args.ort.clone());
        // The server takes the runtime's errors alone; the whole chain, with its exit code, comes back by `told`.
        move || {
            let load = || {
                let Runnable { model, backend, .. } = open(&place, engine, &ort)?;
                let options = SessionOptions { backend, ..options };
                let loaded = setup::load(&model, &adapters, &options, (parallel, kept), |line| eprintln!("{line}"))?;
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
    signals::watch(server.stopper(), |line| eprintln!("{line}"), || std::process::exit(130))?;
    if let Err(e) = server.ready() {
        return Err(match told.try_recv() {
            Ok(Err(whole)) => whole,
            _ => e.into(),
        });
    }
    let opened = told.recv()??;
    let url = server.url();
    show::report(global, &json!({"url": url, "model": model}), || {
        println!("serving {model} at {url}    try: {}", request::first(&opened, &url, args.api_key_file.as_deref()));
    });
    #[cfg(unix)]
    if let Some(socket) = std::env::var_os("NOTIFY_SOCKET")
        && let Err(e) = setup::notify_ready(&socket)
    {
        eprintln!("the service manager was not told: {e}");
    }
    server.wait();
    Ok(ExitCode::SUCCESS)
}
