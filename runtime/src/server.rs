//! HTTP request -> [`Session`] -> JSON, or SSE chunks, in the shapes of OpenAI's API. Prints nothing.
//!
//! ```text
//! socket -> accept (limits, deadlines) -> routes (key, size) -> ask (fields) -> ids -> queue -> worker (the engine)
//!                                                                            reply or sse <- events <-'
//! ```
//!
//! - [`config`]: how a server is set up, and the bounds on what clients may take
//! - [`accept`], `tls`: connections, bounded in number and in time; the secure ones
//! - [`routes`], [`guard`]: which path asks what, what every request has in common; who may ask
//! - [`handlers`]: what each path does
//! - [`wire`], [`schema`], [`ask`], [`reply`]: errors and fields; requests in; answers out;  [`names`]: of model and adapters
//! - `shape`, `tools`, `calls` (feature `constrain`): what an answer must be, what it may call, which calls it holds
//! - [`messages`]: the turns of a chat
//! - [`v2`]: the same in the Open Inference Protocol
//! - [`openapi`], [`metrics`], [`page`]: what the server says of itself
//! - [`queue`], [`worker`]: what waits, within bounds; a loaded model, which steps what was taken up together
//! - [`hosts`]: the models, on the one thread that owns them, and which of them are loaded
//! - [`memory`]: what all that may take, before it is taken
//! - [`sse`]: answers that stream
//! - [`setup`], [`signals`]: address and keys, as they are typed; what the system tells the process
//!
//! The socket is bound before the model loads, so that `/healthz` and `/readyz` answer meanwhile. Requests are checked and
//! tokenized before they are queued, so the engine never meets one that is malformed.

mod accept;
mod ask;
#[cfg(feature = "constrain")]
mod calls;
mod config;
mod guard;
mod handlers;
mod hosts;
pub mod memory;
mod messages;
mod metrics;
mod names;
mod openapi;
mod page;
mod queue;
mod reply;
mod routes;
mod schema;
pub mod setup;
#[cfg(feature = "constrain")]
mod shape;
pub mod signals;
mod sse;
#[cfg(feature = "tls")]
pub mod tls;
#[cfg(feature = "constrain")]
mod tools;
mod v2;
mod wire;
mod worker;

use crate::chat::ChatTemplate;
use crate::error::{Error, Result};
use crate::model::{Model, Task};
use crate::session::{GenerateOptions, Session, SessionOptions};
use crate::tokenizer::Tokenizer;
use accept::{Activity, Door};
pub use config::{Config, Limits, Log, Served};
pub use guard::Access;
use guard::Keys;
pub use hosts::Hosted;
use hosts::Hosts;
use metrics::Metrics;
use names::{Names, Target};
use queue::Queue;
use std::future::IntoFuture;
use std::net::{SocketAddr, TcpListener};
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::watch;

/// Threads that speak HTTP, and threads that tokenize; few, since the engine wants the cores.
const HTTP_THREADS: usize = 1;
const TOKENIZE_THREADS: usize = 2;
/// What is left of a connection once its time to drain is over.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// A model ready to answer.
pub struct Loaded {
    /// It answers.
    pub session: Session,
    /// Without one, chats are refused.
    pub chat: Option<ChatTemplate>,
}

impl Loaded {
    /// # Errors
    /// As [`Session::new`] and [`Model::chat`].
    pub fn new(model: &Model, options: &SessionOptions) -> Result<Self> {
        Self::with_slots(model, options, 1)
    }

    /// The same with `n` sequences, so that as many answers go on beside each other, and as many chats where they were.
    /// # Errors
    /// As [`Loaded::new`].
    pub fn with_slots(model: &Model, options: &SessionOptions, n: usize) -> Result<Self> {
        Ok(Self { session: Session::with_slots(model, options, n)?, chat: model.chat()?.cloned() })
    }

    /// The first run touches every weight; better now than in the first client's time.
    fn warm_up(&mut self) -> Result<()> {
        if matches!(self.session.task(), Task::Generate) {
            let options = GenerateOptions { max_tokens: 1, ..GenerateOptions::default() };
            if self.session.capacity() > 1 {
                self.session.generate(&[0], &options, &mut |_| ControlFlow::Continue(()))?;
            }
        } else {
            self.session.logits(&[0], None)?;
        }
        self.session.reset();
        Ok(())
    }
}

/// What handlers know of a model, whether it is loaded or not.
struct Serving {
    tokenizer: Option<Arc<Tokenizer>>,
    chat: Option<ChatTemplate>,
    task: Task,
    capacity: usize,
    output_dim: usize,
}

impl Serving {
    fn of(loaded: &Loaded) -> Self {
        let session = &loaded.session;
        Self {
            tokenizer: session.tokenizer().ok().cloned(),
            chat: loaded.chat.clone(),
            task: session.task(),
            capacity: session.capacity(),
            output_dim: session.output_dim(),
        }
    }
}

/// How far the models are.
enum Phase {
    Loading,
    Ready,
    Failed(Option<Error>),
}

/// What the threads share.
struct Shared {
    config: Config,
    names: Names,
    since: u64,
    keys: Keys,
    metrics: Metrics,
    queue: Queue,
    /// One a model; each is known once all have been loaded.
    serving: Vec<OnceLock<Serving>>,
    draining: AtomicBool,
    phase: Mutex<Phase>,
    changed: Condvar,
    stop: watch::Sender<bool>,
}

impl Shared {
    fn set(&self, phase: Phase) {
        *self.phase.lock().unwrap_or_else(PoisonError::into_inner) = phase;
        self.changed.notify_all();
    }

    /// Of the first model.
    fn name(&self) -> &Arc<str> {
        self.names.of(Target::default())
    }

    fn stop(&self) {
        self.draining.store(true, Ordering::SeqCst);
        self.stop.send_replace(true);
    }
}

/// Stops a server from anywhere, such as a signal handler.
#[derive(Clone)]
pub struct Stopper(Arc<Shared>);

impl Stopper {
    /// Accepts no more; what runs and what waits is answered, for at most [`Limits::drain`].
    pub fn stop(&self) {
        self.0.stop();
    }

    /// Reads [`Access::key_file`] again, and gives the number of keys that are good from here on.
    /// # Errors
    /// As [`setup::read_keys`]; the keys are then as before.
    pub fn reload_keys(&self) -> Result<usize> {
        let config = &self.0.config;
        self.0.keys.reload(config.api_key.as_deref(), &config.access)
    }

    /// Reads the certificate and its key again; `None` where clients are shown none.
    /// # Errors
    /// As [`tls::Tls::reload`].
    #[cfg(feature = "tls")]
    pub fn reload_certificate(&self) -> Option<Result<()>> {
        self.0.config.tls.as_ref().map(tls::Tls::reload)
    }
}

/// A running server. Dropping it stops it.
pub struct Server {
    addr: SocketAddr,
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Server {
    /// Serves one model that stays: binds, then loads it by `load` on the thread that will own it.
    /// # Errors
    /// As [`Server::host`].
    pub fn start(config: Config, load: impl FnOnce() -> Result<Loaded> + Send + 'static) -> Result<Self> {
        Self::host(config, || Ok(vec![load()?.into()]))
    }

    /// Binds, then opens and loads the models of [`Config::models`], in their order, on the thread that will own them.
    /// # Errors
    /// [`crate::Kind::Io`] when the address cannot be bound or a thread cannot be started; as [`setup::read_keys`] for a key
    /// file. What `open` gives, and what is wrong with a model, comes from [`Server::ready`].
    pub fn host(config: Config, open: impl FnOnce() -> Result<Vec<Hosted>> + Send + 'static) -> Result<Self> {
        let keys = Keys::new(config.api_key.as_deref(), &config.access)?;
        let place = config.addr.to_string();
        let io = |e| Error::io(&place, e);
        let listener = TcpListener::bind(config.addr).map_err(io)?;
        listener.set_nonblocking(true).map_err(io)?;
        let addr = listener.local_addr().map_err(io)?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(HTTP_THREADS)
            .max_blocking_threads(TOKENIZE_THREADS)
            .thread_name("edgeft-http")
            .enable_all()
            .build()
            .map_err(|e| Error::io("HTTP threads", e))?;
        let shared = Arc::new(Shared {
            names: Names::new(&config.models),
            since: reply::now(),
            keys,
            metrics: Metrics::default(),
            queue: Queue::new(config.limits.queue),
            serving: config.models.iter().map(|_| OnceLock::new()).collect(),
            draining: AtomicBool::new(false),
            phase: Mutex::new(Phase::Loading),
            changed: Condvar::new(),
            stop: watch::Sender::new(false),
            config,
        });
        let mut server = Self { addr, shared, threads: Vec::new() };
        let shared = server.shared.clone();
        server.spawn("edgeft-engine", move || run_engine(&shared, open))?;
        let shared = server.shared.clone();
        server.spawn("edgeft-accept", move || {
            // Connections fail one by one, never the whole; a listener that cannot be registered ends the server.
            if let Err(e) = runtime.block_on(run_http(&shared, listener)) {
                shared.set(Phase::Failed(Some(Error::io(addr.to_string(), e))));
            }
            shared.queue.cancel();
            runtime.shutdown_timeout(LAST_WORDS);
        })?;
        Ok(server)
    }

    fn spawn(&mut self, name: &str, body: impl FnOnce() + Send + 'static) -> Result<()> {
        let thread = std::thread::Builder::new().name(name.into()).spawn(body).map_err(|e| Error::io(name, e))?;
        self.threads.push(thread);
        Ok(())
    }

    /// Where it listens, with the real port.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// What clients put before a path.
    pub fn url(&self) -> String {
        #[cfg(feature = "tls")]
        if self.shared.config.tls.is_some() {
            return format!("https://{}", self.addr);
        }
        format!("http://{}", self.addr)
    }

    /// Waits until each model has been loaded and run once.
    /// # Errors
    /// Why it could not be loaded; the server has stopped then.
    pub fn ready(&self) -> Result<()> {
        let mut phase = self.shared.phase.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            match &mut *phase {
                Phase::Ready => return Ok(()),
                Phase::Failed(error) => {
                    let told = || Error::new(crate::Kind::Io, &**self.shared.name(), "the server has stopped");
                    return Err(error.take().unwrap_or_else(told));
                }
                Phase::Loading => phase = self.shared.changed.wait(phase).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }

    /// A handle that stops this server.
    pub fn stopper(&self) -> Stopper {
        Stopper(self.shared.clone())
    }

    /// Waits until the server has stopped.
    pub fn wait(mut self) {
        self.join();
    }

    fn join(&mut self) {
        for thread in self.threads.drain(..) {
            let _ = thread.join(); // a panic there has been reported by the panic hook
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.stop();
        self.shared.queue.close();
        self.join();
    }
}

/// Without an engine nothing can be answered: however its thread ends, whoever waits is told and the server stops.
struct EngineThread<'a>(&'a Shared);

impl Drop for EngineThread<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.set(Phase::Failed(Some(Error::new(crate::Kind::Io, &**self.0.name(), "its thread panicked"))));
        }
        self.0.stop();
        self.0.queue.cancel();
    }
}

/// Loads, warms up, then does what the queue holds.
fn run_engine(shared: &Shared, open: impl FnOnce() -> Result<Vec<Hosted>>) {
    let _told = EngineThread(shared);
    match open().and_then(|hosted| Hosts::open(shared, hosted)) {
        Ok(mut hosts) => {
            shared.set(Phase::Ready);
            hosts.work();
        }
        Err(error) => shared.set(Phase::Failed(Some(error))),
    }
}

/// Serves until told to stop, then drains.
async fn run_http(shared: &Arc<Shared>, listener: TcpListener) -> std::io::Result<()> {
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let limits = shared.config.limits;
    let app = routes::router(shared.clone()).into_make_service_with_connect_info::<Activity>();
    let stopped = || {
        let mut stop = shared.stop.subscribe();
        async move {
            let _ = stop.wait_for(|stop| *stop).await; // the sender lives as long as `shared`
        }
    };
    let serving = axum::serve(Door::new(listener, &shared.config), app).with_graceful_shutdown(stopped()).into_future();
    tokio::pin!(serving);
    let over = async {
        stopped().await;
        tokio::time::sleep(limits.drain).await;
    };
    tokio::select! {
        result = &mut serving => result,
        () = over => {
            shared.queue.cancel();
            tokio::time::timeout(LAST_WORDS, serving).await.unwrap_or(Ok(()))
        }
    }
}
