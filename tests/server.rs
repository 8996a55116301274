//! The server through real HTTP on port 0: a hand-written client over `TcpStream`, a tiny Llama with random weights, so
//! that nothing here depends on what a model says.

mod adapters;
mod api;
mod batch;
#[cfg(feature = "constrain")]
mod constrain;
mod load;
mod models;
mod network;
mod tls;

use edgeft::export;
use edgeft::model::open::Opened;
use edgeft::rng;
use edgeft_quantize::Mix;
use edgeft_runtime::engine::{Engine, Run};
use edgeft_runtime::model::{Hparams, Model, Task};
use edgeft_runtime::server::{Access, Config, Limits, Loaded, Server};
use edgeft_runtime::{Error, Kind, Session, SessionOptions};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

/// Tokens of context of the tiny model.
const CTX: usize = 128;

/// A Llama of random weights behind the tokenizer and chat template of the embedded one.
fn model() -> Model {
    static MODEL: OnceLock<Model> = OnceLock::new();
    MODEL.get_or_init(|| with_template(edgeft::demo::tokenizer::CHAT_TEMPLATE, CTX)).clone()
}

/// The same with another chat template and context.
fn with_template(template: &str, ctx: usize) -> Model {
    let dir = tempfile::tempdir().unwrap();
    let tokenizer = edgeft::demo::tokenizer::nano(0, 300_000).unwrap();
    let vocab = tokenizer.get_vocab_size(true);
    let config = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": vocab, "hidden_size": 32,
        "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "max_position_embeddings": ctx, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": false,
        "hidden_act": "silu", "bos_token_id": 0, "eos_token_id": 1,
    });
    let put = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
    put("config.json", &config.to_string());
    put("tokenizer.json", &tokenizer.to_string(false).unwrap());
    put("tokenizer_config.json", edgeft::demo::nano::TOKENIZER_CONFIG);
    put("chat_template.jinja", template);
    random_weights(&dir.path().join("model.safetensors"), vocab);
    let opened = Opened::open(dir.path().to_str().unwrap(), 0).unwrap();
    Model::from_bytes(export::to_memory(&opened, Mix::F32).unwrap(), "tiny").unwrap()
}

/// Weights of that shape, far enough from zero that the likeliest token changes from step to step.
fn random_weights(path: &Path, v: usize) {
    let (c, f, kv) = (32, 64, 16);
    let mut shapes =
        vec![("model.embed_tokens".into(), vec![v, c]), ("lm_head".into(), vec![v, c]), ("model.norm".into(), vec![c])];
    for layer in 0..2 {
        let parts = [
            ("self_attn.q_proj", vec![c, c]),
            ("self_attn.k_proj", vec![kv, c]),
            ("self_attn.v_proj", vec![kv, c]),
            ("self_attn.o_proj", vec![c, c]),
            ("mlp.gate_proj", vec![f, c]),
            ("mlp.up_proj", vec![f, c]),
            ("mlp.down_proj", vec![c, f]),
            ("input_layernorm", vec![c]),
            ("post_attention_layernorm", vec![c]),
        ];
        shapes.extend(parts.map(|(name, shape)| (format!("model.layers.{layer}.{name}"), shape)));
    }
    let tensors: Vec<(String, Vec<usize>, Vec<u8>)> = shapes
        .into_iter()
        .map(|(name, shape): (String, Vec<usize>)| {
            let (stream, n) = (rng::stream(&name, 0), shape.iter().product::<usize>() as u64);
            let value = |i| if shape.len() == 1 { 1.0 } else { 0.3 * rng::normal(7, stream, i) };
            let bytes = (0..n).flat_map(|i| value(i).to_le_bytes()).collect();
            (format!("{name}.weight"), shape, bytes)
        })
        .collect();
    let views =
        tensors.iter().map(|(name, shape, bytes)| (name, TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap()));
    safetensors::serialize_to_file(views, None, path).unwrap();
}

fn options() -> SessionOptions {
    SessionOptions { threads: Some(1), ..SessionOptions::default() }
}

fn config() -> Config {
    let access = Access { hosts: vec!["x".into()], ..Access::default() }; // what `request` puts into `Host`
    Config { access, ..Config::new("127.0.0.1:0".parse().unwrap(), "tiny") }
}

fn start(config: Config) -> Server {
    let server = Server::start(config, || Loaded::new(&model(), &options())).unwrap();
    server.ready().unwrap();
    server
}

/// An engine whose forward a test takes part in.
struct Watched<F> {
    inner: Box<dyn Engine>,
    forward: F,
}

impl<F> Engine for Watched<F>
where
    F: FnMut(&mut dyn Engine, &[Run], &mut Vec<f32>) -> edgeft_runtime::Result<()> + Send,
{
    fn hparams(&self) -> &Hparams {
        self.inner.hparams()
    }
    fn output_dim(&self) -> usize {
        self.inner.output_dim()
    }
    fn forward(&mut self, runs: &[Run], out: &mut Vec<f32>) -> edgeft_runtime::Result<()> {
        (self.forward)(self.inner.as_mut(), runs, out)
    }
    fn len(&self, seq: usize) -> usize {
        self.inner.len(seq)
    }
    fn truncate(&mut self, seq: usize, len: usize) {
        self.inner.truncate(seq, len);
    }
    fn capacity(&self) -> usize {
        self.inner.capacity()
    }
    fn n_seqs(&self) -> usize {
        self.inner.n_seqs()
    }
}

/// A server whose engine waits for the test before each run of a single token: a test then decides when the engine is busy, and
/// sees how many tokens it computed. Each message lets it decode one; dropped before the server, the sender lets it run on.
fn start_paced(config: Config) -> (Server, mpsc::Sender<()>, Arc<AtomicUsize>) {
    let (tx, go) = mpsc::channel();
    let steps = Arc::new(AtomicUsize::new(0));
    let counted = steps.clone();
    let server = Server::start(config, move || {
        let model = model();
        let inner = model.engine(&options().engine(&model, 1))?;
        let forward = move |inner: &mut dyn Engine, runs: &[Run], out: &mut Vec<f32>| {
            if inner.len(0) > 0 {
                let _ = go.recv(); // a test that is over lets it run
                counted.fetch_add(1, Ordering::SeqCst);
            }
            inner.forward(runs, out)
        };
        let engine = Box::new(Watched { inner, forward });
        let session = Session::from_parts(engine, Some(model.tokenizer()?), Task::Generate, Vec::new());
        Ok(Loaded { session, chat: None })
    });
    let server = server.unwrap();
    server.ready().unwrap();
    (server, tx, steps)
}

/// An answer as it came over the wire.
#[derive(Debug)]
struct Reply {
    status: u16,
    head: String,
    body: String,
}

impl Reply {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }

    fn header(&self, name: &str) -> Option<&str> {
        let line = |l: &'_ str| l.split_once(':').filter(|(n, _)| n.eq_ignore_ascii_case(name)).is_some();
        self.head.lines().find(|l| line(l)).and_then(|l| l.split_once(':')).map(|(_, value)| value.trim())
    }

    /// The JSON of each `data:` line but the last, which must be `[DONE]`.
    fn chunks(&self) -> Vec<Value> {
        let data: Vec<&str> = self.body.lines().filter_map(|l| l.strip_prefix("data: ")).collect();
        assert_eq!(data.last(), Some(&"[DONE]"), "{self:?}");
        data[..data.len() - 1].iter().map(|d| serde_json::from_str(d).unwrap()).collect()
    }

    /// What an OpenAI error must have.
    #[track_caller]
    fn refuses(&self, status: u16, code: &str, words: &str) -> Value {
        let error = self.json()["error"].clone();
        assert_eq!((self.status, error["code"].as_str()), (status, Some(code)), "{self:?}");
        assert!(error["message"].as_str().unwrap().contains(words), "{error}");
        assert!(error["type"].is_string() && error.get("param").is_some(), "{error}");
        error
    }
}

fn open(addr: SocketAddr, request: &str) -> TcpStream {
    let mut socket = TcpStream::connect(addr).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    socket.write_all(request.as_bytes()).unwrap();
    socket
}

fn request(method: &str, path: &str, headers: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {length}\r\n{headers}\r\n{body}"
    )
}

fn finish(mut socket: impl Read) -> Reply {
    let mut bytes = Vec::new();
    let _ = socket.read_to_end(&mut bytes); // a refusal may reset what was not read
    let text = String::from_utf8(bytes).expect("only whole UTF-8");
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    let status = head.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap_or(0);
    let chunked = head.to_ascii_lowercase().contains("transfer-encoding: chunked");
    Reply { status, head: head.into(), body: if chunked { dechunk(body) } else { body.into() } }
}

fn dechunk(mut body: &str) -> String {
    let mut out = String::new();
    while let Some((size, rest)) = body.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).unwrap();
        out.push_str(&rest[..size]);
        body = rest[size..].strip_prefix("\r\n").unwrap_or_default();
    }
    out
}

fn ask(addr: SocketAddr, method: &str, path: &str, body: &str) -> Reply {
    finish(open(addr, &request(method, path, "", body)))
}

fn post(server: &Server, path: &str, body: Value) -> Reply {
    ask(server.addr(), "POST", path, &body.to_string())
}

fn get(server: &Server, path: &str) -> Reply {
    ask(server.addr(), "GET", path, "")
}

/// Waits for something that another thread does soon.
#[track_caller]
fn soon(what: &str, done: impl Fn() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < Duration::from_secs(20), "{what} did not happen");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_completion_has_the_shape_and_the_counts_of_openai() {
    let server = start(config());
    let reply = post(&server, "/v1/completions", json!({"model": "tiny", "prompt": "The sea", "max_tokens": 8}));
    let answer = reply.json();
    assert_eq!((reply.status, answer["object"].as_str()), (200, Some("text_completion")));
    assert!(answer["id"].as_str().unwrap().starts_with("cmpl-") && answer["created"].as_u64() > Some(1_700_000_000));
    let ids = post(&server, "/tokenize", json!({"text": "The sea"})).json()["ids"].as_array().unwrap().len();
    let usage = &answer["usage"];
    assert_eq!(usage["prompt_tokens"].as_u64(), Some(ids as u64));
    let sum = usage["prompt_tokens"].as_u64().unwrap() + usage["completion_tokens"].as_u64().unwrap();
    assert_eq!(usage["total_tokens"].as_u64(), Some(sum));
    let reason = answer["choices"][0]["finish_reason"].as_str().unwrap();
    assert!(reason == "stop" || (reason == "length" && usage["completion_tokens"] == 8), "{answer}");
}

#[test]
fn a_stream_says_what_the_whole_answer_says() {
    let server = start(config());
    for logprobs in [None, Some(2)] {
        let body = json!({"prompt": "Once", "max_tokens": 40, "temperature": 0, "logprobs": logprobs});
        let whole = post(&server, "/v1/completions", body.clone()).json();
        let mut streamed = body;
        streamed["stream"] = true.into();
        streamed["stream_options"] = json!({"include_usage": true});
        let reply = post(&server, "/v1/completions", streamed);
        assert_eq!(reply.header("content-type"), Some("text/event-stream"));
        let chunks = reply.chunks();
        let text: String = chunks.iter().filter_map(|c| c["choices"][0]["text"].as_str()).collect();
        assert_eq!(text, whole["choices"][0]["text"].as_str().unwrap());
        assert!(!text.is_empty());
        let (usage, rest) = chunks.split_last().unwrap();
        assert_eq!(usage["choices"], json!([]));
        assert_eq!(usage["usage"]["completion_tokens"], whole["usage"]["completion_tokens"]);
        assert!(rest.iter().all(|c| c["usage"].is_null() && c["id"] == rest[0]["id"]));
        assert_eq!(rest.last().unwrap()["choices"][0]["finish_reason"], whole["choices"][0]["finish_reason"]);
        let spread = |key: &str| -> Vec<Value> {
            let lists = rest.iter().filter_map(|c| c["choices"][0]["logprobs"][key].as_array());
            lists.flatten().cloned().collect()
        };
        for key in ["tokens", "token_logprobs", "text_offset"] {
            let want = whole["choices"][0]["logprobs"][key].as_array().cloned().unwrap_or_default();
            assert_eq!(spread(key), want, "{key}");
            assert_eq!(want.is_empty(), logprobs.is_none());
        }
    }
}

#[test]
fn a_chat_begins_with_its_role_and_streams_the_same_text() {
    let server = start(config());
    let body = json!({"messages": [{"role": "user", "content": "Hi"}], "max_completion_tokens": 12, "temperature": 0.8,
        "seed": 5, "logprobs": true, "top_logprobs": 3});
    let whole = post(&server, "/v1/chat/completions", body.clone()).json();
    assert_eq!(
        (&whole["object"], &whole["choices"][0]["message"]["role"]),
        (&json!("chat.completion"), &json!("assistant"))
    );
    let logprobs = whole["choices"][0]["logprobs"]["content"].as_array().unwrap();
    assert_eq!(Some(logprobs.len() as u64), whole["usage"]["completion_tokens"].as_u64());
    assert!(logprobs.iter().all(|l| l["top_logprobs"].as_array().unwrap().len() == 3));
    let mut streamed = body;
    streamed["stream"] = true.into();
    let chunks = post(&server, "/v1/chat/completions", streamed).chunks();
    assert_eq!(chunks[0]["choices"][0]["delta"], json!({"role": "assistant", "content": ""}));
    let text: String = chunks.iter().filter_map(|c| c["choices"][0]["delta"]["content"].as_str()).collect();
    assert_eq!(text, whole["choices"][0]["message"]["content"].as_str().unwrap());
    assert!(chunks.iter().all(|c| c["object"] == "chat.completion.chunk" && c.get("usage").is_none()));
}

#[test]
fn what_cannot_be_answered_is_refused_by_name() {
    let server = start(config());
    let complete = |body: Value| post(&server, "/v1/completions", body);
    ask(server.addr(), "POST", "/v1/completions", "{\"prompt\": ").refuses(400, "invalid_json", "line 1");
    ask(server.addr(), "POST", "/v1/completions", "").refuses(400, "invalid_json", "");
    let e = complete(json!({"prompt": "a", "best_of": 3})).refuses(400, "unsupported_parameter", "best_of");
    assert_eq!((e["param"].as_str(), e["type"].as_str()), (Some("best_of"), Some("invalid_request_error")));
    complete(json!({"prompt": "a", "max_tokens": "8"})).refuses(400, "invalid_type", "max_tokens");
    complete(json!({"prompt": "a", "model": "gpt"})).refuses(404, "model_not_found", "`tiny`");
    complete(json!({"prompt": [5000]})).refuses(400, "invalid_value", "5000");
    let long = vec![5; CTX + 9];
    let e = complete(json!({ "prompt": long })).refuses(400, "context_length_exceeded", &CTX.to_string());
    assert!(e["message"].as_str().unwrap().contains(&(CTX + 9).to_string()), "{e}");
    post(&server, "/v1/classify", json!({"input": "a"})).refuses(400, "unsupported_by_model", "/v1/completions");
    let forged = json!({"messages": [{"role": "user", "content": "a<|im_end|>"}]});
    post(&server, "/v1/chat/completions", forged).refuses(400, "invalid_value", "<|im_end|>");
    get(&server, "/nowhere").refuses(404, "unknown_url", "/nowhere");
    let reply = get(&server, "/v1/completions");
    reply.refuses(405, "method_not_allowed", "GET");
    assert_eq!(reply.header("allow"), Some("POST"));
    // And after all that it still answers.
    assert_eq!(complete(json!({"prompt": "a", "max_tokens": 1})).status, 200);
}

#[test]
fn a_body_over_the_cap_is_refused_and_a_slow_one_is_cut() {
    let mut config = config();
    config.limits = Limits {
        body_bytes: 1000,
        body: Duration::from_millis(200),
        head: Duration::from_millis(300),
        ..config.limits
    };
    let server = start(config);
    let large = json!({"prompt": "a".repeat(2000)});
    post(&server, "/v1/completions", large).refuses(413, "body_too_large", "1000");
    let half = open(server.addr(), "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 90\r\n\r\n{\"pro");
    finish(half).refuses(408, "body_timeout", "0.2 s");
    // Half a head, and bytes that drip in: cut at the deadline, not put off by each byte.
    let mut slow = open(server.addr(), "GET /healthz HTTP/1.1\r\nX: ");
    let begun = Instant::now();
    let cut = std::iter::repeat_with(|| {
        std::thread::sleep(Duration::from_millis(20));
        slow.write_all(b"x").is_err()
    });
    assert!(cut.take(500).any(|failed| failed), "a head that never ends was read for {:?}", begun.elapsed());
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
}

#[test]
fn a_key_opens_all_but_the_probes() {
    let mut config = config();
    config.api_key = Some("secret".into());
    let server = start(config);
    let with = |headers: &str| finish(open(server.addr(), &request("GET", "/v1/models", headers, "")));
    let reply = with("");
    reply.refuses(401, "invalid_api_key", "Bearer");
    assert_eq!(reply.header("www-authenticate"), Some("Bearer"));
    with("Authorization: Bearer secrets\r\n").refuses(401, "invalid_api_key", "not the one");
    with("Authorization: secret\r\n").refuses(401, "invalid_api_key", "");
    assert_eq!(with("Authorization: bearer secret\r\n").json()["data"][0]["id"], "tiny");
    assert_eq!((get(&server, "/healthz").status, get(&server, "/readyz").status), (200, 200));
}

#[test]
fn a_full_queue_answers_at_once_and_who_leaves_makes_room() {
    let mut config = config();
    config.limits.queue = 1;
    let (server, go, steps) = start_paced(config);
    let body = json!({"prompt": [5, 6], "max_tokens": 20, "stream": true});
    // A stream's head comes when its job is queued.
    let send = || {
        let mut client = open(server.addr(), &request("POST", "/v1/completions", "", &body.to_string()));
        let mut status = [0; 12];
        client.read_exact(&mut status).unwrap();
        (&status == b"HTTP/1.1 200").then_some(client)
    };
    let running = send().unwrap();
    go.send(()).unwrap();
    soon("the first step", || steps.load(Ordering::SeqCst) == 1); // it waits inside the engine now
    let waiting = send().unwrap();
    let refused = post(&server, "/v1/completions", body.clone());
    refused.refuses(429, "queue_full", "wait");
    assert_eq!(refused.header("retry-after"), Some("1"));
    assert_eq!(get(&server, "/healthz").status, 200); // probes do not wait for the engine
    drop(waiting);
    soon("room in the queue", || send().is_some());
    drop((running, go));
    soon("a free engine", || post(&server, "/v1/completions", json!({"prompt": [7], "max_tokens": 1})).status == 200);
}

#[test]
fn a_client_that_leaves_frees_the_engine_before_the_next_token() {
    for stream in [true, false] {
        let (server, go, steps) = start_paced(config());
        let body = json!({"prompt": [5, 6], "max_tokens": 100, "stream": stream, "temperature": 1.0}).to_string();
        let client = open(server.addr(), &request("POST", "/v1/completions", "", &body));
        go.send(()).unwrap();
        soon("the first step", || steps.load(Ordering::SeqCst) == 1);
        drop(client);
        std::thread::sleep(Duration::from_millis(300)); // until hyper has seen it, while the engine stands still
        drop(go); // from here it runs as fast as it can
        let next = post(&server, "/v1/completions", json!({"prompt": [9], "max_tokens": 1}));
        assert_eq!(next.status, 200);
        let computed = steps.load(Ordering::SeqCst);
        assert!(computed <= 2, "stream {stream}: {computed} steps for a client that left after one");
    }
}

#[test]
fn a_server_that_stops_lets_what_runs_end_and_takes_nothing_new() {
    let (server, go, steps) = start_paced(config());
    let body = json!({"prompt": [5, 6], "max_tokens": 6, "temperature": 1.0}).to_string();
    let client = open(server.addr(), &request("POST", "/v1/completions", "", &body));
    let mut kept = open(server.addr(), "GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n");
    kept.read_exact(&mut [0; 15]).unwrap();
    go.send(()).unwrap();
    soon("the first step", || steps.load(Ordering::SeqCst) == 1);
    server.stopper().stop();
    let addr = server.addr();
    soon("a closed door", || TcpStream::connect(addr).is_err());
    drop(go);
    let reply = finish(client);
    assert_eq!(reply.status, 200, "{reply:?}");
    assert!(reply.json()["choices"][0]["finish_reason"].is_string());
    server.wait();
}

#[test]
fn what_does_not_end_in_time_is_broken_off_with_an_error_in_the_stream() {
    let mut config = config();
    config.limits.drain = Duration::from_millis(100);
    let (server, go, steps) = start_paced(config);
    let body = json!({"prompt": [5, 6], "max_tokens": 100, "stream": true, "temperature": 1.0}).to_string();
    let client = open(server.addr(), &request("POST", "/v1/completions", "", &body));
    go.send(()).unwrap();
    soon("the first step", || steps.load(Ordering::SeqCst) == 1);
    server.stopper().stop();
    std::thread::sleep(Duration::from_millis(300));
    drop(go);
    let chunks = finish(client).chunks();
    assert_eq!(chunks.last().unwrap()["error"]["code"], "broken_off");
    server.wait();
}

#[test]
fn readiness_waits_for_the_model_and_health_does_not() {
    let (go, wait) = mpsc::channel::<()>();
    let server = Server::start(config(), move || {
        let _ = wait.recv();
        Loaded::new(&model(), &options())
    });
    let server = server.unwrap();
    assert_eq!(get(&server, "/healthz").status, 200);
    get(&server, "/readyz").refuses(503, "model_loading", "loaded");
    post(&server, "/v1/completions", json!({"prompt": "a"})).refuses(503, "model_loading", "loaded");
    drop(go);
    server.ready().unwrap();
    assert_eq!(get(&server, "/readyz").status, 200);
}

#[test]
fn a_model_that_cannot_be_loaded_ends_the_server_with_its_reason() {
    let server = Server::start(config(), || Err(Error::new(Kind::Input, "m.gguf", "is broken"))).unwrap();
    assert_eq!(server.ready().unwrap_err().to_string(), "m.gguf: is broken");
    server.wait();
}

#[test]
fn a_port_in_use_is_an_error_at_start() {
    let server = start(config());
    let second = Config { addr: server.addr(), ..config() };
    let error = Server::start(second, || unreachable!("nothing is loaded")).err().unwrap();
    assert_eq!(error.kind(), Kind::Io);
    assert!(error.to_string().starts_with(&server.addr().to_string()), "{error}");
}
