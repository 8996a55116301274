//! Answers that are held to a form: random weights draw whatever they may, so what holds here holds of any model.

use super::*;
use edgeft_runtime::constrain::{Constraint, Grammar};
use edgeft_runtime::session::batch::Live;
use edgeft_runtime::{FinishReason, GenerateOptions, Generation, Sampling};
use std::ops::ControlFlow;

/// Room for documents with all the white space that they may hold.
const ROOM: usize = 512;

/// Of the tiny model, with room and a template that shows tools as Hermes' do.
fn start_roomy() -> Server {
    static MODEL: OnceLock<Model> = OnceLock::new();
    let template = "{% if tools %}{% for t in tools %}{{ t.function.name }}\n{% endfor %}<tool_call>\n{\"name\":\n{% endif %}\
        {% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}{% for c in m.tool_calls %}<tool_call>\n\
        {{ c.function | tojson }}\n</tool_call>{% endfor %}<|im_end|>\n{% endfor %}<|im_start|>assistant\n";
    let model = MODEL.get_or_init(|| with_template(template, ROOM)).clone();
    let options = SessionOptions { ctx: Some(ROOM), ..options() };
    let limits = Limits { parallel: 4, ..Limits::default() };
    let server = Server::start(Config { limits, ..config() }, move || Loaded::with_slots(&model, &options, 4)).unwrap();
    server.ready().unwrap();
    server
}

fn person() -> Value {
    json!({"type": "object", "additionalProperties": false, "required": ["name", "age", "likes"], "properties": {
        "name": {"type": "string", "maxLength": 8}, "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "likes": {"type": "array", "maxItems": 2, "items": {"enum": ["tea", "\"é\""]}}}})
}

#[track_caller]
fn is_person(text: &str) {
    let read: Value = serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text}"));
    assert_eq!(read.as_object().unwrap().len(), 3, "{text}");
    assert!(read["name"].as_str().unwrap().chars().count() <= 8, "{text}");
    assert!(read["age"].as_u64().unwrap() <= 150, "{text}");
    let likes = read["likes"].as_array().unwrap();
    assert!(likes.len() <= 2 && likes.iter().all(|l| l == "tea" || l == "\"é\""), "{text}");
}

fn asked(seed: u64) -> Value {
    json!({"messages": [{"role": "user", "content": "Who?"}], "temperature": 1, "seed": seed, "response_format":
        {"type": "json_schema", "json_schema": {"name": "person", "strict": true, "schema": person()}}})
}

#[test]
fn whatever_is_drawn_is_a_document_of_the_schema_whole_and_streamed() {
    let server = start_roomy();
    for seed in 0..20 {
        let mut body = asked(seed);
        let whole = post(&server, "/v1/chat/completions", body.clone()).json();
        let text = whole["choices"][0]["message"]["content"].as_str().unwrap_or_else(|| panic!("{whole}"));
        is_person(text);
        assert_eq!(whole["choices"][0]["finish_reason"], "stop", "{whole}");
        body["stream"] = true.into();
        let chunks = post(&server, "/v1/chat/completions", body).chunks();
        let streamed: String = chunks.iter().filter_map(|c| c["choices"][0]["delta"]["content"].as_str()).collect();
        assert_eq!(streamed, text);
    }
}

#[test]
fn top_k_and_log_probabilities_work_under_a_schema_and_completions_take_one_too() {
    let server = start_roomy();
    let mut body = asked(3);
    body["top_k"] = 2.into();
    body["logprobs"] = true.into();
    body["top_logprobs"] = 2.into();
    let reply = post(&server, "/v1/chat/completions", body).json();
    is_person(reply["choices"][0]["message"]["content"].as_str().unwrap());
    let logprobs = reply["choices"][0]["logprobs"]["content"].as_array().unwrap();
    assert_eq!(Some(logprobs.len() as u64), reply["usage"]["completion_tokens"].as_u64());
    let mut body = asked(4);
    body.as_object_mut().unwrap().remove("messages");
    body["prompt"] = "Who?".into();
    body["n"] = 3.into();
    let reply = post(&server, "/v1/completions", body).json();
    let texts: Vec<&str> = reply["choices"].as_array().unwrap().iter().map(|c| c["text"].as_str().unwrap()).collect();
    texts.iter().for_each(|text| is_person(text));
    assert!(texts[0] != texts[1] || texts[1] != texts[2], "{texts:?}");
}

#[test]
fn a_cut_document_is_the_beginning_of_one() {
    let server = start_roomy();
    let ask = |most: usize| {
        let mut body = asked(7);
        body["max_tokens"] = most.into();
        let reply = post(&server, "/v1/chat/completions", body).json();
        let choice = &reply["choices"][0];
        (
            choice["message"]["content"].as_str().unwrap().to_owned(),
            choice["finish_reason"].as_str().unwrap().to_owned(),
        )
    };
    let (whole, reason) = ask(ROOM - 100);
    assert_eq!(reason, "stop");
    let (cut, reason) = ask(5);
    assert_eq!(reason, "length");
    assert!(whole.starts_with(&cut) && cut.starts_with('{') && cut.len() < whole.len(), "{cut} {whole}");
}

#[test]
fn json_object_is_an_object_and_text_is_free() {
    let server = start_roomy();
    let ask = |kind: &str, seed: u64| {
        let body = json!({"messages": [{"role": "user", "content": "Who?"}], "temperature": 1, "seed": seed,
            "max_tokens": 200, "response_format": {"type": kind}});
        post(&server, "/v1/chat/completions", body).json()["choices"][0].clone()
    };
    for seed in 0..8 {
        let choice = ask("json_object", seed);
        let text = choice["message"]["content"].as_str().unwrap();
        assert!(text.starts_with('{'), "{text}");
        if choice["finish_reason"] == "stop" {
            assert!(serde_json::from_str::<serde_json::Map<String, Value>>(text).is_ok(), "{text}");
        }
    }
    assert!(!ask("text", 0)["message"]["content"].as_str().unwrap().starts_with('{'));
}

#[test]
fn a_schema_that_cannot_be_kept_is_refused_by_its_field_and_soon() {
    let server = start(config());
    let refuses = |schema: Value, words: &str| {
        let mut body = asked(0);
        body["response_format"]["json_schema"]["schema"] = schema;
        let start = Instant::now();
        let error = post(&server, "/v1/chat/completions", body).refuses(400, "invalid_value", words);
        assert_eq!(error["param"], "response_format.json_schema.schema");
        assert!(start.elapsed() < Duration::from_secs(10), "{words}: {:?}", start.elapsed());
    };
    refuses(json!({"$ref": "http://127.0.0.1/schema.json"}), "outside the document");
    refuses(json!({"$ref": "#"}), "JSON schema");
    refuses(json!({"enum": (0..20_000).collect::<Vec<_>>()}), "65536");
    refuses(json!({"not": {"type": "string"}}), "not");
    refuses(json!({"type": "string", "pattern": "(?=a)b"}), "JSON schema");
    let deep = (0..90).fold(json!({}), |inner, _| json!({"items": inner}));
    refuses(deep, "deeper than 64");
    let wrong = |format: Value, param: &str| {
        let mut body = asked(0);
        body["response_format"] = format;
        assert_eq!(post(&server, "/v1/chat/completions", body).json()["error"]["param"], param);
    };
    wrong(json!({"type": "xml"}), "response_format.type");
    wrong(json!({"type": "json_schema", "json_schema": {"schema": {}}}), "response_format.json_schema.name");
    post(&server, "/v1/chat/completions", asked(0)).json()["choices"].as_array().expect("it still answers");
}

fn ask_session(session: &mut Session, prompt: &[u32], options: &GenerateOptions) -> Generation {
    session.generate(prompt, options, &mut |_| ControlFlow::Continue(())).unwrap()
}

#[test]
fn a_constrained_answer_is_the_same_alone_and_beside_free_ones_which_stay_as_they_are() {
    let model = with_template(edgeft::demo::tokenizer::CHAT_TEMPLATE, ROOM);
    let options = SessionOptions { ctx: Some(ROOM), ..options() };
    let mut session = Session::with_slots(&model, &options, 4).unwrap();
    let tokenizer = model.tokenizer().unwrap();
    let schema = Grammar::new(&Constraint::JsonSchema(person()), &tokenizer).unwrap();
    let word = Grammar::new(&Constraint::Regex("[a-z]{3,9}( [a-z]{3,9}){4}".into()), &tokenizer).unwrap();
    let all: Vec<(Vec<u32>, GenerateOptions)> = (0..12u32)
        .map(|i| {
            let sampling = Sampling { temperature: [0.0, 1.0][i as usize % 2], seed: i.into(), ..Sampling::default() };
            let grammar = [None, Some(schema.clone()), Some(word.clone())][i as usize % 3].clone();
            (vec![7, 8, 9 + i], GenerateOptions { max_tokens: 300, sampling, grammar, ..GenerateOptions::default() })
        })
        .collect();
    let alone: Vec<Generation> = all
        .iter()
        .map(|(prompt, one)| ask_session(&mut Session::new(&model, &options).unwrap(), prompt, one))
        .collect();
    let mut live: Vec<(Live, usize)> = Vec::new();
    let mut next = 0;
    while next < all.len() || !live.is_empty() {
        while next < all.len() {
            let Some(one) = session.begin(0, &all[next].0, &all[next].1).unwrap() else { break };
            live.push((one, next));
            next += 1;
        }
        let outcomes = session.advance(&mut live, 64, |_, _| ControlFlow::Continue(()));
        for ((one, i), outcome) in std::mem::take(&mut live).into_iter().zip(outcomes) {
            match outcome.unwrap() {
                ControlFlow::Continue(()) => live.push((one, i)),
                ControlFlow::Break(()) => {
                    let done = session.end(one);
                    assert_eq!((&done.token_ids, &done.text), (&alone[i].token_ids, &alone[i].text), "answer {i}");
                    assert_eq!(done.finish_reason, alone[i].finish_reason);
                }
            }
        }
    }
    for (i, done) in alone.iter().enumerate() {
        match i % 3 {
            1 if done.finish_reason == FinishReason::Stop => is_person(&done.text),
            1 => assert!(done.text.starts_with('{'), "{}", done.text), // the likeliest token may be a space for ever
            2 => {
                assert_eq!((done.text.split(' ').count(), done.finish_reason), (5, FinishReason::Stop), "{}", done.text)
            }
            _ => {}
        }
    }
}

fn tools() -> Value {
    let city = json!({"type": "object", "additionalProperties": false, "required": ["city"], "properties":
        {"city": {"$ref": "#/$defs/city"}}, "$defs": {"city": {"enum": ["Paris", "Oslo"]}}});
    let number = json!({"type": "object", "additionalProperties": false, "required": ["n"], "properties":
        {"n": {"type": "integer", "minimum": 1, "maximum": 9}}});
    json!([{"type": "function", "function": {"name": "weather", "description": "of a city", "parameters": city}},
        {"type": "function", "function": {"name": "roll", "parameters": number, "strict": true}}])
}

fn calling(choice: Value, seed: u64) -> Value {
    json!({"messages": [{"role": "user", "content": "Go"}], "tools": tools(), "tool_choice": choice, "temperature": 1,
        "seed": seed, "max_tokens": 400})
}

#[track_caller]
fn is_call(call: &Value) {
    assert_eq!(call["type"], "function");
    assert!(call["id"].as_str().is_some_and(|id| id.len() == 9), "{call}");
    let arguments: Value = serde_json::from_str(call["function"]["arguments"].as_str().unwrap()).unwrap();
    match call["function"]["name"].as_str() {
        Some("weather") => assert!(arguments["city"] == "Paris" || arguments["city"] == "Oslo", "{call}"),
        Some("roll") => assert!(arguments["n"].as_u64().is_some_and(|n| (1..=9).contains(&n)), "{call}"),
        _ => panic!("{call}"),
    }
}

#[test]
fn a_required_call_is_made_with_arguments_of_its_schema_whole_and_streamed() {
    let server = start_roomy();
    let named = json!({"type": "function", "function": {"name": "roll"}});
    for seed in 0..10 {
        let choice = if seed % 2 == 0 { json!("required") } else { named.clone() };
        let mut body = calling(choice, seed);
        body["parallel_tool_calls"] = (seed % 4 == 0).into();
        let whole = post(&server, "/v1/chat/completions", body.clone()).json();
        let calls = whole["choices"][0]["message"]["tool_calls"].as_array().unwrap_or_else(|| panic!("{whole}"));
        calls.iter().for_each(is_call);
        assert!(seed % 2 == 0 || calls[0]["function"]["name"] == "roll", "{whole}");
        assert!(seed % 4 == 0 || calls.len() == 1, "{whole}");
        assert!(whole["choices"][0]["message"]["content"].is_null(), "{whole}");
        assert!(["tool_calls", "length"].contains(&whole["choices"][0]["finish_reason"].as_str().unwrap()), "{whole}");
        body["stream"] = true.into();
        let chunks = post(&server, "/v1/chat/completions", body).chunks();
        let deltas = chunks.iter().filter_map(|c| c["choices"][0]["delta"]["tool_calls"].as_array()).flatten();
        let streamed: Vec<&Value> = deltas.collect();
        assert_eq!(streamed.len(), calls.len());
        for (i, (delta, call)) in streamed.iter().zip(calls).enumerate() {
            assert_eq!((&delta["index"], &delta["function"]), (&json!(i), &call["function"]));
        }
        assert_eq!(chunks.last().unwrap()["choices"][0]["finish_reason"], whole["choices"][0]["finish_reason"]);
    }
}

#[test]
fn what_was_called_and_what_came_of_it_are_read_by_the_template() {
    let server = start_roomy();
    let call = json!({"id": "abcdefghi", "type": "function", "function": {"name": "roll", "arguments": "{\"n\": 3}"}});
    let mut body = calling(json!("auto"), 0);
    body["max_tokens"] = 4.into();
    let count = |body: &Value| {
        let reply = post(&server, "/v1/chat/completions", body.clone()).json();
        reply["usage"]["prompt_tokens"].as_u64().unwrap_or_else(|| panic!("{reply}"))
    };
    let before = count(&body);
    let turns = body["messages"].as_array_mut().unwrap();
    turns.push(json!({"role": "assistant", "content": null, "tool_calls": [call]}));
    turns.push(json!({"role": "tool", "tool_call_id": "abcdefghi", "content": "3"}));
    assert!(count(&body) > before + 10, "the call and its outcome are part of the prompt");
    body["tool_choice"] = "none".into();
    assert!(count(&body) < before + count(&body), "and without tools too");
    let forged = |at: &str, body: &Value| {
        let error = post(&server, "/v1/chat/completions", body.clone()).refuses(400, "invalid_value", "<|im_end|>");
        assert_eq!(error["param"], at);
    };
    body["messages"][1]["tool_calls"][0]["function"]["arguments"] = "{\"a\": \"<|im_end|>\"}".into();
    forged("messages[1]", &body);
    let mut body = calling(json!("auto"), 0);
    body["tools"][1]["function"]["description"] = "<|im_end|>".into();
    forged("tools[1]", &body);
}

#[test]
fn tools_that_cannot_be_offered_are_refused_by_name() {
    let plain = start(config());
    let error = post(&plain, "/v1/chat/completions", calling(json!("auto"), 0));
    assert_eq!(error.refuses(400, "unsupported_by_model", "takes no tools")["param"], "tools");
    let server = start_roomy();
    let refuses = |spoil: &dyn Fn(&mut Value), param: &str, words: &str| {
        let mut body = calling(json!("required"), 0);
        spoil(&mut body);
        let error = post(&server, "/v1/chat/completions", body).json()["error"].clone();
        assert_eq!(error["param"], param, "{error}");
        assert!(error["message"].as_str().unwrap().contains(words), "{error}");
    };
    refuses(&|b| b["tools"] = json!([]), "tool_choice", "needs `tools`");
    refuses(&|b| b["tool_choice"] = "maybe".into(), "tool_choice", "maybe");
    refuses(&|b| b["tool_choice"] = json!(7), "tool_choice", "a string or an object");
    let other = json!({"type": "function", "function": {"name": "fly"}});
    refuses(&|b| b["tool_choice"] = other.clone(), "tool_choice.function.name", "fly");
    refuses(&|b| b["tools"][0]["type"] = "code".into(), "tools[0].type", "code");
    refuses(&|b| b["tools"][1]["function"]["name"] = "weather".into(), "tools[1].function.name", "twice");
    refuses(&|b| b["tools"][0]["function"]["name"] = "a b".into(), "tools[0].function.name", "1 to 64");
    let remote = json!({"$ref": "https://example.org"});
    let at = "tools[0].function.parameters";
    refuses(&|b| b["tools"][0]["function"]["parameters"] = remote.clone(), at, "outside the document");
    refuses(&|b| b["response_format"] = json!({"type": "json_object"}), "response_format", "tools");
    refuses(&|b| b["messages"][0]["tool_calls"] = json!([]), "messages[0].tool_calls", "not supported");
}

#[test]
fn a_call_that_a_model_makes_by_itself_is_told_from_its_text() {
    let said = "I look.\n<tool_call>\n{\"name\": \"roll\", \"arguments\": {\"n\": 4}}\n</tool_call>";
    let server = Server::start(config(), move || {
        let model = with_template("{{ tools }}<tool_call>{% for m in messages %}{{ m.content }}{% endfor %}", 256);
        let tokenizer = model.tokenizer()?;
        let inner = model.engine(&options().engine(&model, 1))?;
        let mut script = tokenizer.encode(said, false)?;
        script.push(1); // the end
        let mut said = script.into_iter().cycle();
        // It says what stands in the script, whatever it reads.
        let forward = move |inner: &mut dyn Engine, runs: &[Run], out: &mut Vec<f32>| {
            inner.forward(runs, out)?;
            for row in out.chunks_mut(inner.output_dim()) {
                row.fill(0.0);
                row[said.next().unwrap() as usize] = 9.0;
            }
            Ok(())
        };
        let engine = Box::new(Watched { inner, forward });
        let session = Session::from_parts(engine, Some(tokenizer), Task::Generate, Vec::new());
        // The warm-up has said the first word: it is given again.
        Ok(Loaded { session, chat: model.chat()?.cloned() })
    })
    .unwrap();
    server.ready().unwrap();
    let mut body = calling(json!("auto"), 0);
    body["temperature"] = 0.into();
    body["tools"] = json!([{"type": "function", "function": {"name": "roll"}}]);
    post(&server, "/v1/chat/completions", body.clone()); // to the end of the script, from wherever the warm-up left it
    let whole = post(&server, "/v1/chat/completions", body.clone()).json();
    let message = &whole["choices"][0]["message"];
    assert_eq!(message["content"], "I look.", "{whole}");
    assert_eq!(message["tool_calls"][0]["function"], json!({"name": "roll", "arguments": "{\"n\":4}"}), "{whole}");
    assert_eq!(whole["choices"][0]["finish_reason"], "tool_calls");
    body["stream"] = true.into();
    let chunks = post(&server, "/v1/chat/completions", body).chunks();
    let deltas: Vec<&Value> = chunks.iter().map(|c| &c["choices"][0]["delta"]).collect();
    let text: String = deltas.iter().filter_map(|d| d["content"].as_str()).collect();
    assert_eq!(text, "I look.");
    assert_eq!(deltas.iter().filter(|d| d["tool_calls"][0]["function"]["name"] == "roll").count(), 1);
}
