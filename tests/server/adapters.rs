//! One base with several adapters behind one server, each under a name of its own.

use super::*;
use crate::beside::pairs;
use edgeft_runtime::{Adapter, GenerateOptions};
use std::ops::ControlFlow;

fn adapters() -> [Adapter; 2] {
    let all = [("blk.0.attn_q.weight", [32, 32], 4), ("blk.1.ffn_down.weight", [32, 64], 4)];
    [1, 2].map(|seed| Adapter::from_bytes(pairs("llama", &all, seed), "a.gguf").unwrap())
}

fn served(slots: usize) -> Server {
    let config = Config { adapters: vec!["first".into(), "second".into()], ..config() };
    let server = Server::start(config, move || {
        let mut loaded = Loaded::with_slots(&model(), &options(), slots)?;
        for adapter in adapters() {
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
    const NAMES: [(&str, Option<usize>); 3] = [("tiny", None), ("tiny:first", Some(0)), ("tiny:second", Some(1))];
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
