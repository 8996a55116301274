//! The paths beside chat and completion, and the fields that steer an answer.

use super::*;
use crate::common::{Folder, tiny::Tiny};

/// A server of a tiny encoder.
fn serve(tiny: Tiny) -> Server {
    let folder = Folder::new();
    tiny.calm().write(&folder, "base");
    let opened = Opened::open(folder.at("base").to_str().unwrap(), 0).unwrap();
    let model = Model::from_bytes(export::to_memory(&opened, Mix::F32).unwrap(), "tiny").unwrap();
    let server = Server::start(config(), move || Loaded::new(&model, &options())).unwrap();
    server.ready().unwrap();
    server
}

#[test]
fn several_answers_are_those_of_their_seeds_whole_and_streamed() {
    let server = start(config());
    let body = |seed: u64, n: u64| json!({"prompt": "Once", "max_tokens": 8, "temperature": 1.5, "seed": seed, "n": n});
    let whole = post(&server, "/v1/completions", body(11, 3)).json();
    let choices = whole["choices"].as_array().unwrap();
    let mut texts = Vec::new();
    for (i, choice) in choices.iter().enumerate() {
        let alone = post(&server, "/v1/completions", body(11 + i as u64, 1)).json();
        assert_eq!((choice["index"].as_u64(), &choice["text"]), (Some(i as u64), &alone["choices"][0]["text"]));
        texts.push(choice["text"].as_str().unwrap().to_owned());
    }
    assert!(texts[0] != texts[1] && texts[1] != texts[2], "{texts:?}");
    let mut streamed = body(11, 3);
    streamed["stream"] = true.into();
    streamed["stream_options"] = json!({"include_usage": true});
    let chunks = post(&server, "/v1/completions", streamed).chunks();
    for (i, text) in texts.iter().enumerate() {
        let own = chunks.iter().flat_map(|c| c["choices"].as_array().unwrap()).filter(|c| c["index"] == i);
        assert_eq!(&own.filter_map(|c| c["text"].as_str()).collect::<String>(), text);
    }
    assert_eq!(chunks.iter().filter(|c| c["choices"][0]["finish_reason"].is_string()).count(), 3);
    assert_eq!(chunks.last().unwrap()["usage"]["completion_tokens"], whole["usage"]["completion_tokens"]);
    post(&server, "/v1/completions", body(0, 5)).refuses(400, "invalid_value", "at most 4");
}

#[test]
fn a_bias_forces_a_token_and_a_penalty_ends_repeats() {
    let server = start(config());
    let ask = |more: Value| {
        let mut body = json!({"prompt": [5, 6], "max_tokens": 6, "logprobs": 0});
        more.as_object().unwrap().iter().for_each(|(name, value)| body[name] = value.clone());
        let reply = post(&server, "/v1/completions", body).json();
        reply["choices"][0]["logprobs"]["tokens"].as_array().unwrap_or_else(|| panic!("{reply}")).clone()
    };
    let forced = ask(json!({"logit_bias": {"40": 100}}));
    assert_eq!(forced.len(), 6);
    assert!(forced.iter().all(|t| t == &forced[0]), "{forced:?}");
    let penalized = ask(json!({"logit_bias": {"40": 100}, "frequency_penalty": 2, "presence_penalty": 2,
        "repeat_penalty": 100}));
    assert_eq!(penalized[0], forced[0]);
    assert!(penalized.iter().skip(1).all(|t| t != &forced[0]), "{penalized:?}");
    let outside = json!({"prompt": [5], "logit_bias": {"999999": 1}});
    post(&server, "/v1/completions", outside).refuses(400, "invalid_value", "vocabulary");
}

#[test]
fn tokens_become_the_text_they_came_from() {
    let server = start(config());
    let ids = post(&server, "/tokenize", json!({"text": "The sea is wide"})).json()["ids"].clone();
    let back = post(&server, "/detokenize", json!({ "ids": ids })).json()["text"].clone();
    assert!(back.as_str().unwrap().contains("The sea is wide"), "{back}");
    post(&server, "/detokenize", json!({"ids": [9_999_999]})).refuses(400, "invalid_value", "9999999");
    post(&server, "/detokenize", json!({"ids": "a"})).refuses(400, "invalid_type", "ids");
}

#[test]
fn vectors_are_those_of_the_session_in_either_encoding() {
    let server = serve(Tiny::bert());
    let texts = ["what is red", "the lamp of the house"];
    let reply = post(&server, "/v1/embeddings", json!({"input": texts, "model": "tiny", "user": "x"})).json();
    let vectors: Vec<Vec<f32>> = reply["data"]
        .as_array()
        .unwrap_or_else(|| panic!("{reply}"))
        .iter()
        .map(|d| d["embedding"].as_array().unwrap().iter().map(|x| x.as_f64().unwrap() as f32).collect())
        .collect();
    assert_eq!((vectors.len(), vectors[0].len(), &reply["object"]), (2, 64, &json!("list")));
    for v in &vectors {
        assert!((v.iter().map(|x| x * x).sum::<f32>() - 1.0).abs() < 1e-5);
    }
    assert_ne!(vectors[0], vectors[1]);
    // The same bits in base64, from ids as from the text.
    let ids = post(&server, "/tokenize", json!({"text": texts[1]})).json()["ids"].clone();
    let coded = post(&server, "/v1/embeddings", json!({"input": ids, "encoding_format": "base64"})).json();
    let coded = coded["data"][0]["embedding"].as_str().unwrap().to_owned();
    let digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let bits: Vec<u8> = coded.trim_end_matches('=').chars().map(|c| digits.find(c).unwrap() as u8).collect();
    let bytes: Vec<u8> = bits
        .chunks(4)
        .flat_map(|four| {
            let all = four.iter().enumerate().fold(0u32, |all, (i, d)| all | u32::from(*d) << (18 - 6 * i));
            all.to_be_bytes()[1..four.len()].to_vec()
        })
        .collect();
    let floats: Vec<f32> = bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
    assert_eq!(floats, vectors[1]);
    let refused = json!({"input": "a", "dimensions": 8});
    post(&server, "/v1/embeddings", refused).refuses(400, "unsupported_parameter", "dimensions");
    post(&server, "/v1/embeddings", json!({"input": []})).refuses(400, "invalid_value", "0 texts");
    post(&server, "/v1/completions", json!({"prompt": "a"})).refuses(400, "unsupported_by_model", "/v1/embeddings");
    let infer = json!({"inputs": [{"name": "text", "shape": [2, 1], "datatype": "BYTES", "data": texts}]});
    let tensor = post(&server, "/v2/models/tiny/infer", infer).json()["outputs"][0].clone();
    assert_eq!((&tensor["name"], &tensor["shape"]), (&json!("embedding"), &json!([2, 64])));
    let flat: Vec<f32> = tensor["data"].as_array().unwrap().iter().map(|x| x.as_f64().unwrap() as f32).collect();
    assert_eq!(flat, vectors.concat());
}

#[test]
fn the_open_inference_protocol_gives_what_the_other_paths_give() {
    let server = serve(Tiny::classifier(&["good", "bad", "so so"]));
    let texts = ["what is red", "broken lamp"];
    let want = post(&server, "/v1/classify", json!({"input": texts})).json();
    let infer = |more: Value| {
        let mut body = json!({"inputs": [{"name": "text", "shape": [2], "datatype": "BYTES", "data": texts}]});
        more.as_object().unwrap().iter().for_each(|(name, value)| body[name] = value.clone());
        post(&server, "/v2/models/tiny/infer", body)
    };
    let reply = infer(json!({"id": "seven", "outputs": [{"name": "label"}, {"name": "scores"}]})).json();
    assert_eq!((&reply["id"], &reply["model_name"]), (&json!("seven"), &json!("tiny")));
    let names: Vec<&Value> = reply["outputs"].as_array().unwrap().iter().map(|o| &o["name"]).collect();
    assert_eq!(names, ["label", "scores"]);
    for i in 0..2 {
        let (label, best) = (&reply["outputs"][0]["data"][i], &reply["outputs"][1]["data"][3 * i]);
        assert_eq!(label, &want["data"][i]["label"]);
        assert_eq!(best, &want["data"][i]["scores"][label.as_str().unwrap()]);
    }
    let error = |reply: Reply, status: u16, words: &str| {
        let json = reply.json();
        assert_eq!(reply.status, status, "{json}");
        assert!(json["error"].as_str().unwrap_or_else(|| panic!("{json}")).contains(words), "{json}");
    };
    error(infer(json!({"outputs": [{"name": "logits"}]})), 400, "logits");
    error(infer(json!({"parameters": {"max_tokens": 3}})), 400, "parameters.max_tokens");
    error(infer(json!({"inputs": [{"name": "text", "shape": [3], "datatype": "BYTES", "data": texts}]})), 400, "[3]");
    error(infer(json!({"inputs": [{"name": "text", "shape": [1], "datatype": "FP32", "data": [1.0]}]})), 400, "FP32");
    error(infer(json!({"inputs": [{"name": "words", "shape": [1], "datatype": "BYTES", "data": ["a"]}]})), 400, "text");
    error(get(&server, "/v2/models/other/ready"), 404, "`other`");
    error(get(&server, "/v2/models"), 404, "/v2/models");
    assert_eq!(get(&server, "/v2/health/live").json(), json!({"live": true}));
    assert_eq!(get(&server, "/v2/health/ready").json(), json!({"ready": true}));
    assert_eq!(get(&server, "/v2/models/tiny/ready").json(), json!({"name": "tiny", "ready": true}));
    let model = get(&server, "/v2/models/tiny").json();
    assert_eq!((&model["inputs"][0]["name"], &model["outputs"][2]["name"]), (&json!("text"), &json!("scores")));

    let server = start(config());
    let body = json!({"inputs": [{"name": "text", "shape": [2], "datatype": "BYTES", "data": ["Once", "The sea"]}],
        "parameters": {"max_tokens": 5}});
    let reply = post(&server, "/v2/models/tiny/infer", body).json();
    for (i, prompt) in ["Once", "The sea"].iter().enumerate() {
        let want = post(&server, "/v1/completions", json!({"prompt": prompt, "max_tokens": 5})).json();
        assert_eq!(reply["outputs"][0]["data"][i], want["choices"][0]["text"]);
    }
}

#[test]
fn the_description_names_every_path_that_is_served_and_no_other() {
    let server = start(config());
    let reply = get(&server, "/openapi.json");
    let document = reply.json();
    assert_eq!(document["openapi"], "3.1.0");
    let paths = document["paths"].as_object().unwrap();
    for (path, methods) in paths {
        let real = path.replace("{name}", "tiny");
        for method in ["get", "post"] {
            let served = methods.get(method).is_some();
            let reply = ask(server.addr(), &method.to_uppercase(), &real, "{}");
            assert_eq!(reply.status != 405 && reply.status != 404, served, "{method} {path}: {reply:?}");
            assert!(!served || methods[method]["responses"].get(reply.status.to_string()).is_some(), "{path}");
        }
    }
    // What a body may hold is what the description says: an unknown field is refused by name.
    for (path, methods) in paths {
        let Some(post_) = methods.get("post") else { continue };
        let schema = &post_["requestBody"]["content"]["application/json"]["schema"];
        assert_eq!(schema["additionalProperties"], false, "{path}");
        let real = path.replace("{name}", "tiny");
        let refused = post(&server, &real, json!({"nonsense": 1}));
        assert!(refused.status == 400 && refused.body.contains("nonsense"), "{path}: {refused:?}");
    }
    for known in ["/v1/embeddings", "/v2/models/{name}/infer", "/metrics", "/", "/healthz"] {
        assert!(paths.contains_key(known), "{known}");
    }
    for absent in ["/v1", "/v1/images", "/v2/models/tiny/versions/1", "/admin", "/v1/models/"] {
        assert_eq!(get(&server, absent).status, 404, "{absent}");
    }
}
