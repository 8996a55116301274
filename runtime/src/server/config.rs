//! How a server is set up: where it listens, for whom, within which bounds.

use super::guard::Access;
use super::memory;
#[cfg(feature = "tls")]
use super::tls::Tls;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// Bounds on what clients may take.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Connections at a time; more wait in the system's backlog.
    pub connections: usize,
    /// Requests that wait for the engine; one more is answered 429.
    pub queue: usize,
    /// Answers, or lists of texts, that go on beside each other; never more than the session has sequences.
    pub parallel: usize,
    /// From a request to its whole answer; later is answered 504.
    pub request: Duration,
    /// Bytes of a request's body; more is answered 413.
    pub body_bytes: usize,
    /// From a connection's start, or its last answer, to a request's whole head.
    pub head: Duration,
    /// From the head to the whole body; later is answered 408.
    pub body: Duration,
    /// How long a client may take nothing of what is sent to it.
    pub write_stall: Duration,
    /// How long requests may take to end once the server stops.
    pub drain: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self {
            connections: 256,
            queue: 32,
            parallel: memory::PARALLEL,
            request: seconds(1800),
            body_bytes: 2 << 20,
            head: seconds(30),
            body: seconds(30),
            write_stall: seconds(15),
            drain: seconds(20),
        }
    }
}

/// What one model is called, in requests and answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Served {
    /// Its own name.
    pub name: String,
    /// Names of its adapters, in the order of their numbers; a request's `model` asks for one as `name:adapter`.
    pub adapters: Vec<String>,
}

impl Served {
    /// A model without adapters.
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), adapters: Vec::new() }
    }
}

/// How a server is set up.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where to listen; port 0 takes a free one.
    pub addr: SocketAddr,
    /// What is served, at least one; a request that names none gets the first.
    pub models: Vec<Served>,
    /// Bytes that the models which are loaded at a time may take together; `None` leaves that to whoever loads them.
    pub memory: Option<u64>,
    /// When given, or with keys in [`Access::key_file`], requests need `Authorization: Bearer KEY`; probes do not.
    pub api_key: Option<String>,
    /// Who else may ask.
    pub access: Access,
    /// Speaks TLS, and nothing else, when given.
    #[cfg(feature = "tls")]
    pub tls: Option<Tls>,
    /// Bounds on what clients may take.
    pub limits: Limits,
    /// Gets a line for each request; none is written without it.
    pub log: Option<Log>,
}

impl Config {
    /// On `addr`, `model` for whoever reaches it, within the usual bounds.
    pub fn new(addr: SocketAddr, model: impl Into<String>) -> Self {
        Self {
            addr,
            models: vec![Served::new(model)],
            memory: None,
            api_key: None,
            access: Access::default(),
            #[cfg(feature = "tls")]
            tls: None,
            limits: Limits::default(),
            log: None,
        }
    }
}

/// Where lines of JSON about requests go: time, route, status, milliseconds until the answer began. No line holds what was
/// asked or answered, nor a key.
#[derive(Clone)]
pub struct Log(Arc<dyn Fn(&str) + Send + Sync>);

impl Log {
    /// Gives each line, without its end, to `write`, on the thread that speaks HTTP.
    pub fn new(write: impl Fn(&str) + Send + Sync + 'static) -> Self {
        Self(Arc::new(write))
    }

    pub(super) fn line(&self, json: &serde_json::Value) {
        (self.0)(&json.to_string());
    }
}

impl std::fmt::Debug for Log {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Log")
    }
}
