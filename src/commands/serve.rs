//! `edgeft serve`: models behind OpenAI's API.

use super::ort::OrtArgs;
use super::run::{RunEngine, at_least_one, open};
use super::show;
use crate::cli::Global;
use crate::export::Runnable;
use crate::package::request;
use crate::tune::memory::parse_bytes;
use edgeft_runtime::measure::device::usable_bytes;
use edgeft_runtime::model::adapter::Adapter;
use edgeft_runtime::server::memory::{MOST, PARALLEL};
use edgeft_runtime::server::setup::{self, adapters, adapters_of, address, cannot_listen, read_keys, safe};
use edgeft_runtime::server::tls::Tls;
use edgeft_runtime::server::{Access, Config, Hosted, Limits, Log, Served, Server, signals};
use edgeft_runtime::{Error, Kind, Model, SessionOptions};
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
    edgeft serve base.gguf --adapter polite=polite.gguf --adapter brief=brief.gguf=0.5\n  \
    edgeft serve chat.gguf labels.gguf --max-memory 2GB\nNext:\n  \
    curl http://127.0.0.1:8080/v1/completions -d '{\"prompt\": \"Once upon a time\", \"max_tokens\": 32}'"
)]
pub struct ServeArgs {
    /// GGUF files or ONNX folders; a model folder, a RUN or `nano` is converted in memory (f32 stays f32). A request names the one
    /// it asks, by its file's name without the ending; the first answers those that name none
    #[arg(value_name = "MODEL", required = true)]
    pub models: Vec<String>,
    /// GGUF adapter beside the model, at SCALE times its strength [default: 1]; a request asks for it by `"model": "MODEL:NAME"`.
    /// Of several models, MODEL:NAME=FILE says whose it is (repeatable)
    #[arg(long, value_name = "NAME=FILE[=SCALE]")]
    pub adapter: Vec<String>,
    /// Most that the models may take at a time: weights, adapters and caches, e.g. 2GB. Those that nobody has asked for the
    /// longest make room for one that is asked for [default: the memory there is]
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    pub max_memory: Option<u64>,
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

/// What requests call the models.
fn names(models: &[String]) -> anyhow::Result<Vec<String>> {
    let names: Vec<String> = models.iter().map(|model| show::model_name(model)).collect();
    for (i, name) in names.iter().enumerate() {
        if let Some(other) = names[..i].iter().position(|n| n == name) {
            crate::bad_input!("{} and {} are both called `{name}`; rename one of them", models[other], models[i]);
        }
    }
    Ok(names)
}

/// Runs the verb.
pub fn run(args: &ServeArgs, global: &Global) -> anyhow::Result<ExitCode> {
    let addr = address(&args.host, args.port)?;
    let keys = args.api_key_file.as_deref().map(read_keys).transpose()?;
    safe(addr, keys.is_some(), args.insecure_no_auth)?;
    let tls = args.tls_cert.as_deref().zip(args.tls_key.as_deref());
    let tls = tls.map(|(cert, key)| Tls::open(cert, key)).transpose()?;
    let names = names(&args.models)?;
    let adapters =
        adapters_of(&names, &args.adapter)?.iter().map(|given| adapters(given)).collect::<Result<Vec<_>, _>>()?;
    let served = |(name, adapters): (&String, &Vec<(String, Adapter, f32)>)| Served {
        name: name.clone(),
        adapters: adapters.iter().map(|(name, ..)| name.clone()).collect(),
    };
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
        models: names.iter().zip(&adapters).map(served).collect(),
        // One model is planned by itself, and on a GPU not within this memory.
        memory: args.max_memory.or_else(|| if names.len() > 1 { usable_bytes() } else { None }),
        tls,
        log: args.log.then(|| Log::new(|line| eprintln!("{line}"))),
        ..Config::new(addr, names[0].as_str())
    };
    let (parallel, kept) = (args.parallel, args.cache_slots);
    let options = SessionOptions { ctx: args.ctx, threads: Some(global.threads()), ..SessionOptions::default() };
    let (tell, told) = mpsc::channel();
    let server = Server::host(config, {
        let (places, engine, ort, most) = (args.models.clone(), args.engine, args.ort.clone(), args.max_memory);
        // The server takes the runtime's errors alone; the whole chain, with its exit code, comes back by `told`.
        let several = places.len() > 1;
        move || {
            let host = |(place, adapters): (&String, Vec<_>)| {
                let Runnable { model, backend, converted_bytes } = open(place, engine, &ort)?;
                let options = SessionOptions { backend, ..options.clone() };
                let (counts, in_memory) = ((parallel, kept), converted_bytes.is_some());
                let opened = model.clone();
                let hosted = setup::host(model, adapters, options, counts, most, in_memory, |line| eprintln!("{line}"));
                // Of several models, which one does not fit.
                let hosted = hosted.map_err(|e| if several { e.at(&show::model_name(place)) } else { e })?;
                anyhow::Ok((hosted.on_load(|loaded| show::runs_on(loaded.session.runs_on())), opened))
            };
            let all = places.iter().zip(adapters).map(host).collect::<anyhow::Result<(Vec<Hosted>, Vec<Model>)>>();
            let (outcome, whole) = match all {
                Ok((hosted, mut models)) => (Ok(hosted), Ok(models.swap_remove(0))),
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
    show::report(global, &json!({"url": url, "model": names[0], "models": names}), || {
        println!(
            "serving {} at {url}    try: {}",
            names.join(", "),
            request::first(&opened, &url, args.api_key_file.as_deref())
        );
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
