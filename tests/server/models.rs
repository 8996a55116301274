//! Several models behind one server, as many loaded as memory has room for.

use super::*;
use crate::common::{Folder, tiny::Tiny};
use edgeft_runtime::server::{Hosted, Served, setup};
use std::sync::atomic::AtomicBool;

const NAMES: [&str; 3] = ["tiny", "other", "labels"];

/// Two that write different texts, and one that tells labels apart.
fn models() -> [Model; 3] {
    static MODELS: OnceLock<[Model; 3]> = OnceLock::new();
    let open = |tiny: Tiny| {
        let folder = Folder::new();
        tiny.calm().write(&folder, "base");
        let opened = Opened::open(folder.at("base").to_str().unwrap(), 0).unwrap();
        Model::from_bytes(export::to_memory(&opened, Mix::F32).unwrap(), "tiny").unwrap()
    };
    MODELS.get_or_init(|| [model(), open(Tiny::llama()), open(Tiny::classifier(&["bad", "good"]))]).clone()
}

fn hosted(model: &Model) -> edgeft_runtime::Result<Hosted> {
    setup::host(model.clone(), Vec::new(), options(), (Some(2), None), None, false, |_| {})
}

/// With room for `bytes`.
fn serve(memory: Option<u64>) -> Server {
    let config = Config { models: NAMES.map(Served::new).to_vec(), memory, ..config() };
    let server = Server::host(config, || models().iter().map(hosted).collect()).unwrap();
    server.ready().unwrap();
    server
}

/// What one model takes, as the server counts it.
fn bytes(model: &Model) -> u64 {
    edgeft_runtime::server::memory::Plan::new(model, 0, &options(), Some(2), None, None).unwrap().bytes()
}

/// A number of `/metrics`.
fn count(server: &Server, name: &str) -> u64 {
    let text = get(server, "/metrics").body;
    let line = text.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(' ')).unwrap_or_else(|| panic!("{text}"));
    line.parse().unwrap()
}

fn write(server: &Server, name: &str) -> String {
    let reply =
        post(server, "/v1/completions", json!({"model": name, "prompt": "The sea is", "max_tokens": 12})).json();
    assert_eq!(reply["model"], name, "{reply}");
    reply["choices"][0]["text"].as_str().unwrap_or_else(|| panic!("{reply}")).to_owned()
}

fn alone(model: &Model) -> String {
    let mut session = Session::new(model, &options()).unwrap();
    let options = edgeft_runtime::GenerateOptions { max_tokens: 12, ..Default::default() };
    session.generate_text("The sea is", &options, &mut |_| std::ops::ControlFlow::Continue(())).unwrap().text
}

#[test]
fn each_model_answers_by_its_name_whether_all_fit_or_one_does() {
    let [tiny, other, labels] = models();
    let largest = [&tiny, &other, &labels].map(bytes).into_iter().max().unwrap();
    for (memory, fit) in [(None, 3), (Some(largest), 1)] {
        let server = serve(memory);
        for _ in 0..2 {
            assert_eq!(write(&server, "tiny"), alone(&tiny));
            assert_eq!(write(&server, "other"), alone(&other));
            let body = json!({"model": "labels", "input": "fine"});
            let reply = post(&server, "/v1/classify", body.clone()).json();
            assert_eq!((&reply["model"], reply["data"][0]["scores"].is_null()), (&json!("labels"), false), "{reply}");
        }
        let nameless = post(&server, "/v1/completions", json!({"prompt": "The sea is", "max_tokens": 12})).json();
        assert_eq!(
            (&nameless["model"], nameless["choices"][0]["text"].as_str()),
            (&json!("tiny"), Some(&*alone(&tiny)))
        );
        assert_eq!(count(&server, "edgeft_models_loaded"), fit);
        let (loads, unloads) =
            (count(&server, "edgeft_model_loads_total"), count(&server, "edgeft_model_unloads_total"));
        assert_eq!(loads - unloads, fit);
        // Loaded once each at the start; afterwards each request but the first one met another model.
        assert_eq!(loads, if fit == 3 { 3 } else { 3 + 6 });
    }
}

#[test]
fn what_is_said_of_the_models_is_each_ones_own() {
    let server = serve(None);
    let list = get(&server, "/v1/models").json();
    let of = |key: &str| list["data"].as_array().unwrap().iter().map(|m| m[key].clone()).collect::<Vec<_>>();
    assert_eq!(of("id"), NAMES);
    assert_eq!(of("task"), ["generate", "generate", "classify"]);
    assert_eq!(of("chat"), [true, true, false]);
    let error = post(&server, "/v1/completions", json!({"model": "fourth", "prompt": "a"}));
    error.refuses(404, "model_not_found", "`tiny`, `other`, `labels`");
    let error = post(&server, "/v1/completions", json!({"model": "labels", "prompt": "a"}));
    error.refuses(400, "unsupported_by_model", "`labels` does not generate text");
    let error = post(&server, "/v1/classify", json!({"model": "other", "input": "a"}));
    error.refuses(400, "unsupported_by_model", "`other` does not classify");
    let tokens =
        |name: &str| post(&server, "/tokenize", json!({"model": name, "text": "The sea is"})).json()["ids"].clone();
    assert_ne!(tokens("tiny"), tokens("other"));
    assert_eq!(get(&server, "/v2/models/labels").json()["outputs"][0]["name"], "label");
    assert_eq!(get(&server, "/v2/models/other").json()["outputs"][0]["name"], "text");
    let description = get(&server, "/openapi.json").json();
    assert_eq!(description["info"]["title"], format!("edgeft serve: {}", NAMES.join(", ")));
    assert_eq!(description["paths"]["/v2/models/{name}"]["get"]["parameters"][0]["schema"]["enum"], json!(NAMES));
}

#[test]
fn a_model_that_does_not_fit_even_alone_is_refused_before_it_is_loaded() {
    let [tiny, ..] = models();
    let config = Config { memory: Some(bytes(&tiny) - 1), ..config() };
    let server = Server::host(config, move || Ok(vec![hosted(&tiny)?])).unwrap();
    let error = server.ready().unwrap_err();
    assert!(error.kind() == Kind::Limit && error.to_string().contains("tiny: "), "{error}");
    let [tiny, other, _] = models();
    // Weights that lie in no file stay, so that two such models need both.
    let most = bytes(&tiny) + other.weight_bytes() - 1;
    let config =
        Config { models: vec![Served::new("tiny"), Served::new("other")], memory: Some(most), ..super::config() };
    let server = Server::host(config, move || {
        let host = |model| setup::host(model, Vec::new(), options(), (Some(2), None), None, true, |_| {});
        Ok(vec![host(tiny)?, host(other)?])
    });
    assert_eq!(server.unwrap().ready().unwrap_err().kind(), Kind::Limit);
}

#[test]
fn who_waits_for_a_model_without_room_is_not_overtaken_and_what_goes_on_ends_first() {
    let (go_tx, go) = mpsc::channel::<()>();
    let go = Arc::new(std::sync::Mutex::new(go));
    let config = Config { models: NAMES[..2].iter().map(|n| Served::new(*n)).collect(), memory: Some(1), ..config() };
    let server = Server::host(config, move || {
        let [tiny, other, _] = models();
        let paced = move || {
            let inner = tiny.engine(&options().engine(&tiny, 1))?;
            let go = go.clone();
            let forward = move |inner: &mut dyn Engine, runs: &[Run], out: &mut Vec<f32>| {
                if inner.len(0) > 0 {
                    let _ = go.lock().unwrap().recv(); // a test that is over lets it run
                }
                inner.forward(runs, out)
            };
            let engine = Box::new(Watched { inner, forward });
            let session = Session::from_parts(engine, Some(tiny.tokenizer()?), Task::Generate, Vec::new());
            Ok(Loaded { session, chat: None })
        };
        Ok(vec![Hosted::new(1, 0, paced), Hosted::new(1, 0, move || Loaded::new(&other, &options()))])
    });
    let server = server.unwrap();
    server.ready().unwrap();
    let body = |name: &str| json!({"model": name, "prompt": "The sea is", "max_tokens": 4}).to_string();
    let send = |name: &str| open(server.addr(), &request("POST", "/v1/completions", "", &body(name)));
    let first = send("tiny");
    soon("the first request's start", || count(&server, "edgeft_slots_busy") == 1);
    let second = send("other");
    soon("the second request's wait", || count(&server, "edgeft_requests_waiting") == 1);
    let third = send("tiny");
    soon("the third request's wait", || count(&server, "edgeft_requests_waiting") == 2);
    assert_eq!(count(&server, "edgeft_model_unloads_total"), 1, "what goes on keeps its model");
    drop(go_tx);
    let text = |socket| finish(socket).json()["choices"][0]["text"].as_str().map(str::to_owned);
    assert!(text(first).is_some());
    assert!(text(second).is_some() && text(third).is_some());
    // other at the start, then tiny, other for the second request, tiny again for the third.
    assert_eq!(count(&server, "edgeft_model_loads_total"), 4);
}

#[test]
fn a_model_that_cannot_be_loaded_again_is_told_to_who_asked_and_the_others_go_on() {
    let broken = Arc::new(AtomicBool::new(false));
    let breaks = broken.clone();
    let config = Config { models: NAMES[..2].iter().map(|n| Served::new(*n)).collect(), memory: Some(1), ..config() };
    let server = Server::host(config, move || {
        let [tiny, other, _] = models();
        let load = move || match breaks.load(Ordering::SeqCst) {
            true => Err(Error::new(Kind::Io, "other.gguf", "it is gone")),
            false => Loaded::new(&other, &options()),
        };
        Ok(vec![Hosted::new(1, 0, move || Loaded::new(&tiny, &options())), Hosted::new(1, 0, load)])
    });
    let server = server.unwrap();
    server.ready().unwrap();
    broken.store(true, Ordering::SeqCst);
    for _ in 0..2 {
        let error = post(&server, "/v1/completions", json!({"model": "other", "prompt": "a"}));
        error.refuses(503, "model_unavailable", "other.gguf");
        assert_eq!(write(&server, "tiny"), alone(&models()[0]));
    }
    broken.store(false, Ordering::SeqCst);
    assert_eq!(write(&server, "other"), alone(&models()[1]));
}
