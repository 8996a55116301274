//! One base with several adapters behind one server, each under a name of its own.

use super::*;
use crate::beside::pairs;
use crate::common::{Folder, tiny::Tiny};
use edgeft_runtime::server::Served;
use edgeft_runtime::{Adapter, GenerateOptions};
use std::ops::ControlFlow;

const NAMES: [(&str, Option<usize>); 3] = [("tiny", None), ("tiny:first", Some(0)), ("tiny:second", Some(1))];

fn adapters() -> [Adapter; 2] {
    let all = [("blk.0.attn_q.weight", [32, 32], 4), ("blk.1.ffn_down.weight", [32, 64], 4)];
    [1, 2].map(|seed| Adapter::from_bytes(pairs("llama", &all, seed), "a.gguf").unwrap())
}

fn served(slots: usize) -> Server {
    serve(model(), adapters(), slots)
}

fn serve(model: Model, adapters: [Adapter; 2], slots: usize) -> Server {
    let served = Served { adapters: vec!["first".into(), "second".into()], ..Served::new("tiny") };
    let config = Config { models: vec![served], ..config() };
    let server = Server::start(config, move || {
        let mut loaded = Loaded::with_slots(&model, &options(), slots)?;
        for adapter in adapters {
            loaded.session.add_adapter(&adapter, 1.0)?;
        }
        Ok(loaded)
    });
    let server = server.unwrap();
    server.ready().unwrap();
    server
}

/// What a session of its own writes.
fn alone(adapter: Option<usize>, prompt: &str) -> String {
    let mut session = Session::new(&model(), &options()).unwrap();
    for (i, adapter) in adapters().iter().enumerate() {
        assert_eq!(session.add_adapter(adapter, 1.0).unwrap(), i);
    }
    session.use_adapter(adapter).unwrap();
    let options = GenerateOptions { max_tokens: 12, ..GenerateOptions::default() };
    session.generate_text(prompt, &options, &mut |_| ControlFlow::Continue(())).unwrap().text
}

#[test]
fn a_name_with_a_colon_asks_for_an_adapter_and_turns_may_change_it() {
    for slots in [1, 3] {
        let server = served(slots);
        let ask = |name: &str, prompt: &str| {
            let reply =
                post(&server, "/v1/completions", json!({"model": name, "prompt": prompt, "max_tokens": 12})).json();
            assert_eq!(reply["model"], name, "{reply}");
            reply["choices"][0]["text"].as_str().unwrap_or_else(|| panic!("{reply}")).to_owned()
        };
        // The same prompt under one after another: a cache that the other filled would be seen.
        let mut texts = Vec::new();
        for _ in 0..2 {
            for (name, adapter) in NAMES {
                let text = ask(name, "The sea is wide and");
                assert_eq!(text, alone(adapter, "The sea is wide and"), "{name}");
                texts.push(text);
            }
        }
        assert!(texts[0] != texts[1] && texts[1] != texts[2], "{texts:?}");
        let nameless =
            post(&server, "/v1/completions", json!({"prompt": "The sea is wide and", "max_tokens": 12})).json();
        assert_eq!(nameless["choices"][0]["text"].as_str(), Some(texts[0].as_str()));
    }
}

#[test]
fn adapters_are_listed_and_a_name_that_is_none_is_not_found() {
    let server = served(1);
    let list = get(&server, "/v1/models").json();
    let ids: Vec<&str> = list["data"].as_array().unwrap().iter().map(|m| m["id"].as_str().unwrap()).collect();
    assert_eq!(ids, ["tiny", "tiny:first", "tiny:second"]);
    assert_eq!((&list["data"][0]["parent"], &list["data"][1]["parent"]), (&Value::Null, &json!("tiny")));
    for name in ["tiny:third", "tiny:", "first", "tiny:FIRST"] {
        let error = post(&server, "/v1/completions", json!({"model": name, "prompt": "a"}));
        error.refuses(404, "model_not_found", "`tiny:second`");
    }
    let infer = |name: &str| {
        let input = json!({"name": "text", "datatype": "BYTES", "shape": [1], "data": ["The sea"]});
        post(&server, &format!("/v2/models/{name}/infer"), json!({"inputs": [input], "parameters": {"max_tokens": 12}}))
    };
    let reply = infer("tiny:second").json();
    assert_eq!(
        (&reply["model_name"], reply["outputs"][0]["data"][0].as_str()),
        (&json!("tiny:second"), Some(alone(Some(1), "The sea").as_str()))
    );
    assert_eq!(infer("tiny:third").status, 404);
    let body = json!({"model": "tiny:first", "prompt": "The sea", "max_tokens": 12, "stream": true});
    let chunks = post(&server, "/v1/completions", body).chunks();
    let text: String = chunks.iter().filter_map(|c| c["choices"][0]["text"].as_str()).collect();
    assert_eq!((text, &chunks[0]["model"]), (alone(Some(0), "The sea"), &json!("tiny:first")));
}

/// Sends all at once, and gives the answers with the most that went on side by side.
fn at_once(server: &Server, path: &str, bodies: &[Value]) -> (Vec<Value>, usize) {
    let request = |body: &Value| request("POST", path, "", &body.to_string());
    let sockets: Vec<TcpStream> = bodies.iter().map(|body| open(server.addr(), &request(body))).collect();
    let replies = sockets.into_iter().map(|socket| finish(socket).json()).collect();
    let text = get(server, "/metrics").body;
    let count = |line: &str| {
        let found = text.lines().find_map(|l| l.strip_prefix(line)).unwrap_or_else(|| panic!("no {line} in\n{text}"));
        found.trim().parse::<f64>().unwrap()
    };
    let all = count("edgeft_batch_size_count ");
    let most = [1, 2].into_iter().find(|n| count(&format!("edgeft_batch_size_bucket{{le=\"{n}\"}} ")) == all);
    (replies, most.unwrap_or(3))
}

#[test]
fn adapters_and_the_base_asked_at_once_each_say_what_they_say_alone() {
    // Of each of four prompts, two of which begin alike, every name at once: what one reads could be the other's beginning.
    let prompts = ["The sea is wide and", "The sea is wide and the old men look", "A house", "near the hill"];
    let asked: Vec<(&str, Value)> = prompts
        .iter()
        .flat_map(|prompt| NAMES.map(|(name, _)| (name, prompt)))
        .enumerate()
        .map(|(i, (name, prompt))| {
            let n = 1 + i % 2;
            let body = json!({"model": name, "prompt": prompt, "max_tokens": 40, "logprobs": 2, "n": n, "seed": i,
                "temperature": 0.9 * (n - 1) as f64, "logit_bias": {"1": -100, "0": -100}});
            (name, body)
        })
        .collect();
    let alone: Vec<Value> = asked
        .iter()
        .map(|(_, body)| post(&served(1), "/v1/completions", body.clone()).json()["choices"].clone())
        .collect();
    for prompt in 0..prompts.len() {
        let same = &alone[3 * prompt..][..3];
        assert!(same[0] != same[1] && same[1] != same[2] && same[0] != same[2], "an adapter says what another says");
    }
    let bodies: Vec<Value> = asked.iter().map(|(_, body)| body.clone()).collect();
    let server = served(4);
    for round in 0..2 {
        // The second round finds the caches that the first one left.
        let (replies, most) = at_once(&server, "/v1/completions", &bodies);
        assert!(most > 2, "never more than {most} side by side");
        for (i, (reply, alone)) in replies.iter().zip(&alone).enumerate() {
            assert_eq!((&reply["choices"], reply["model"].as_str()), (alone, Some(asked[i].0)), "round {round}, {i}");
        }
    }
    let cached = post(&server, "/v1/completions", bodies[bodies.len() - 1].clone()).json();
    assert!(cached["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64() > Some(0), "{cached}");
}

#[test]
fn texts_under_several_adapters_are_labelled_side_by_side_as_alone() {
    let folder = Folder::new();
    Tiny::classifier(&["good", "bad"]).write(&folder, "base");
    let opened = Opened::open(folder.at("base").to_str().unwrap(), 0).unwrap();
    let model = Model::from_bytes(export::to_memory(&opened, Mix::F32).unwrap(), "tiny").unwrap();
    let all =
        [("blk.0.attn_q.weight", [64, 64], 4), ("blk.1.ffn_down.weight", [64, 96], 4), ("cls.weight", [64, 64], 2)];
    let [a, b] = [(&all[..], 1), (&all[2..], 2)].map(|(all, seed)| pairs("bert", all, seed));
    let adapters = [a, b].map(|bytes| Adapter::from_bytes(bytes, "a.gguf").unwrap());
    let text = |i: usize| format!("{} the lamp of the house", "what is red ".repeat(i % 4));
    let texts: Vec<String> = (0..12).map(text).collect();
    let bodies = NAMES.map(|(name, _)| json!({"model": name, "input": texts}));
    let (replies, most) = at_once(&serve(model.clone(), adapters.clone(), 4), "/v1/classify", &bodies);
    assert!(most > 2, "never more than {most} side by side");
    let mut session = Session::new(&model, &options()).unwrap();
    for adapter in &adapters {
        session.add_adapter(adapter, 1.0).unwrap();
    }
    for ((name, adapter), reply) in NAMES.into_iter().zip(&replies) {
        session.use_adapter(adapter).unwrap();
        assert_eq!(reply["model"], name);
        for (i, text) in texts.iter().enumerate() {
            for score in session.classify_text(text).unwrap() {
                let told = reply["data"][i]["scores"][&score.label].as_f64().unwrap() as f32;
                assert_eq!(told.to_bits(), score.score.to_bits(), "{name}: {text}");
            }
        }
    }
    assert!(replies[0]["data"] != replies[1]["data"] && replies[1]["data"] != replies[2]["data"]);
}

/// What a generation reads of its prompt comes from no cache of another adapter, be it of one that goes on.
#[test]
fn a_generation_begins_with_what_was_read_under_its_own_adapter() {
    let mut session = Session::with_slots(&model(), &options(), 4).unwrap();
    for adapter in &adapters() {
        session.add_adapter(adapter, 1.0).unwrap();
    }
    let prompt: Vec<u32> = (0..30).map(|i| 5 + i).collect();
    let options = GenerateOptions { max_tokens: 4, stop_ids: Some(Vec::new()), ..GenerateOptions::default() };
    let mut live = Vec::new();
    for adapter in [None, Some(0), Some(1), Some(0)] {
        session.use_adapter(adapter).unwrap();
        live.push((session.begin(0, &prompt, &options).unwrap().unwrap(), ()));
        let outcomes = session.advance(&mut live, 64, |(), _| ControlFlow::Continue(()));
        assert!(outcomes.into_iter().enumerate().all(|(i, o)| i == 0 && live.len() == 4 || o.unwrap().is_continue()));
    }
    let ended: Vec<_> = live.into_iter().map(|(live, ())| session.end(live)).collect();
    assert_eq!(ended.iter().map(|g| g.timings.cached_tokens).collect::<Vec<_>>(), [0, 0, 0, 29]);
    assert_eq!(ended[3].token_ids[..1], ended[1].token_ids[..1]);
    // What has ended is gone on with under its own alone, too.
    session.use_adapter(Some(1)).unwrap();
    let again = session.begin(0, &prompt, &options).unwrap().unwrap();
    assert_eq!(session.end(again).timings.cached_tokens, 29);
    assert!(session.use_adapter(Some(2)).is_err());
}
