//! Answers side by side: each says what it says alone, bit for bit; none waits for another's prompt; what fails, fails alone.

use super::*;
use crate::common::{Folder, tiny::Tiny};
use edgeft_runtime::engine::EngineOptions;
use edgeft_runtime::server::memory::Plan;
use edgeft_runtime::session::batch::Live;
use edgeft_runtime::{GenerateOptions, Generation, KvType, Piece, Sampling};
use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::sync::Mutex;

/// Numbers from a seed.
struct Draw(u64, u64);

impl Draw {
    fn below(&mut self, n: usize) -> usize {
        self.1 += 1;
        (rng::bits(self.0, 3, self.1) % n as u64) as usize
    }
}

fn gguf(tiny: &Tiny, mix: Mix) -> Model {
    let folder = Folder::new();
    tiny.write(&folder, "base");
    let opened = Opened::open(folder.at("base").to_str().unwrap(), 0).unwrap();
    Model::from_bytes(export::to_memory(&opened, mix).unwrap(), "tiny").unwrap()
}

/// A request, and after how many tokens its client leaves.
#[derive(Clone)]
struct Asked {
    prompt: Vec<u32>,
    options: GenerateOptions,
    leaves: Option<usize>,
}

/// Tokens with the bits of their log-probabilities, and of the three likeliest.
type Said = Vec<(u32, u64, Vec<(u32, u64)>)>;

fn note(said: &mut Said, piece: &Piece) {
    if let (Some(id), Some(l)) = (piece.token, &piece.logprobs) {
        said.push((id, l.logprob.to_bits(), l.top.iter().map(|(id, p)| (*id, p.to_bits())).collect()));
    }
}

/// Prompts that share beginnings of several lengths, likeliest tokens and drawn ones.
fn asked(draw: &mut Draw) -> Asked {
    let common = draw.below(50);
    let mut prompt: Vec<u32> = (0..common as u32).map(|i| 5 + i * 7 % 290).collect();
    prompt.extend((0..1 + draw.below(40)).map(|_| 5 + draw.below(290) as u32));
    let sampling = match draw.below(3) {
        0 => Sampling::default(),
        _ => Sampling {
            temperature: 1.3,
            top_p: 0.95,
            frequency_penalty: 0.5,
            seed: draw.below(1000) as u64,
            ..Sampling::default()
        },
    };
    let max_tokens = 1 + draw.below(24);
    let options = GenerateOptions { max_tokens, sampling, logprobs: Some(3), ..GenerateOptions::default() };
    let leaves = (draw.below(4) == 0).then(|| 1 + draw.below(max_tokens));
    Asked { prompt, options, leaves }
}

/// Requests that begin and leave at random moments, in steps of random size, say what each says alone from a cold start.
#[track_caller]
fn same_in_company(model: &Model, options: &SessionOptions, seed: u64) {
    let mut draw = Draw(seed, 0);
    let all: Vec<Asked> = (0..20).map(|_| asked(&mut draw)).collect();
    let mut session = Session::with_slots(model, options, 4).unwrap();
    let mut waiting: VecDeque<usize> = (0..all.len()).collect();
    let mut live: Vec<(Live, usize)> = Vec::new();
    let mut said: Vec<Said> = vec![Said::new(); all.len()];
    let mut ended: Vec<Option<Generation>> = vec![None; all.len()];
    let mut company = 0;
    while !waiting.is_empty() || !live.is_empty() {
        while let Some(&i) = waiting.front().filter(|_| live.is_empty() || draw.below(3) == 0) {
            let Some(one) = session.begin(0, &all[i].prompt, &all[i].options).unwrap() else { break };
            live.push((one, i));
            waiting.pop_front();
        }
        company = company.max(live.len());
        let outcomes = session.advance(&mut live, 1 + draw.below(30), |i, piece| {
            note(&mut said[*i], piece);
            match all[*i].leaves == Some(said[*i].len()) {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            }
        });
        for ((one, i), outcome) in std::mem::take(&mut live).into_iter().zip(outcomes) {
            match outcome.unwrap() {
                ControlFlow::Continue(()) => live.push((one, i)),
                ControlFlow::Break(()) => ended[i] = Some(session.end(one)),
            }
        }
    }
    assert!(company > 2, "{company} side by side");
    let cached = |g: &Option<Generation>| g.as_ref().unwrap().timings.cached_tokens > 0;
    assert!(ended.iter().filter(|g| cached(g)).count() > 3, "caches were hardly used");
    for (i, one) in all.iter().enumerate() {
        let mut cold = Said::new();
        let alone = Session::new(model, options).unwrap().generate(&one.prompt, &one.options, &mut |piece| {
            note(&mut cold, piece);
            ControlFlow::Continue(())
        });
        let (alone, ended) = (alone.unwrap(), ended[i].take().unwrap());
        if one.leaves.is_none() {
            assert_eq!((&ended.text, ended.finish_reason), (&alone.text, alone.finish_reason), "request {i}");
        } else {
            cold.truncate(said[i].len());
        }
        assert_eq!(said[i], cold, "request {i} of seed {seed}");
    }
}

#[test]
fn an_answer_is_the_same_alone_in_company_and_behind_a_cache() {
    let wide = Tiny::llama().with("hidden_size", json!(256)).with("intermediate_size", json!(256));
    let models = [
        gguf(&Tiny::llama(), Mix::F32),
        gguf(&Tiny::llama(), Mix::Q8_0),
        gguf(&Tiny::mistral(), Mix::F16),
        gguf(&wide, Mix::Q4_K_M),
        gguf(&wide, Mix::Q6_K),
    ];
    for (i, model) in models.iter().enumerate() {
        for (threads, kv) in [(1, KvType::F16), (3, KvType::F32)] {
            let options = SessionOptions { threads: Some(threads), kv, ..SessionOptions::default() };
            same_in_company(model, &options, i as u64 + 1);
        }
    }
}

/// The tiny model's engine, which tells what each step reads, waits where a test wants it to, and panics at one token.
struct Watched {
    inner: Box<dyn Engine>,
    /// Sequence and number of tokens of each run, step by step.
    steps: Steps,
    /// Once the first step is over, each waits for a word.
    go: Option<mpsc::Receiver<()>>,
    bad: Option<u32>,
}

impl Engine for Watched {
    fn hparams(&self) -> &Hparams {
        self.inner.hparams()
    }
    fn output_dim(&self) -> usize {
        self.inner.output_dim()
    }
    fn forward(&mut self, runs: &[Run], out: &mut Vec<f32>) -> edgeft_runtime::Result<()> {
        let many = runs.iter().map(|run| (run.seq, run.tokens.len())).collect();
        self.steps.lock().unwrap().push(many);
        if let Some(go) = &self.go {
            let _ = go.recv(); // a test that is over lets it run
        }
        let bad = |run: &Run| self.bad.is_some_and(|bad| run.tokens.contains(&bad));
        assert!(!runs.iter().any(bad), "a bug in the engine, as the test wants it");
        self.inner.forward(runs, out)
    }
    fn len(&self, seq: usize) -> usize {
        self.inner.len(seq)
    }
    fn truncate(&mut self, seq: usize, len: usize) {
        self.inner.truncate(seq, len);
    }
    fn copy(&mut self, from: usize, to: usize, len: usize) -> bool {
        self.inner.copy(from, to, len)
    }
    fn capacity(&self) -> usize {
        self.inner.capacity()
    }
    fn n_seqs(&self) -> usize {
        self.inner.n_seqs()
    }
}

/// What each step read, and the sender that lets steps go on.
type Steps = Arc<Mutex<Vec<Vec<(usize, usize)>>>>;

fn start_watched(config: Config, model: Model, paced: bool, bad: Option<u32>) -> (Server, Steps, mpsc::Sender<()>) {
    let (tx, go) = mpsc::channel();
    let steps = Steps::default();
    let seen = steps.clone();
    let server = Server::start(config, move || {
        let engine: EngineOptions = options().engine(&model, 4);
        let go = paced.then_some(go);
        let watched = Box::new(Watched { inner: model.engine(&engine)?, steps: seen, go, bad });
        let (task, labels) = (model.task(), model.labels().to_vec());
        let tokenizer = Some(model.tokenizer()?);
        Ok(Loaded { session: Session::from_parts(watched, tokenizer, task, labels), chat: None })
    });
    let server = server.unwrap();
    if paced {
        tx.send(()).unwrap(); // the first run, before anybody asks
    }
    server.ready().unwrap();
    steps.lock().unwrap().clear();
    (server, steps, tx)
}

fn send(server: &Server, path: &str, body: &Value) -> TcpStream {
    open(server.addr(), &request("POST", path, "", &body.to_string()))
}

fn metric(server: &Server, line: &str) -> f64 {
    let text = get(server, "/metrics").body;
    let found = text.lines().find_map(|l| l.strip_prefix(line)).unwrap_or_else(|| panic!("no {line} in\n{text}"));
    found.trim().parse().unwrap()
}

#[test]
fn clients_at_once_get_what_each_gets_alone() {
    let bodies: Vec<Value> = (0..12)
        .map(|i| {
            let prompt: Vec<u64> = (0..3 + 5 * (i % 5)).map(|t| 5 + (t * 7 + i / 3) % 40).collect();
            json!({"prompt": prompt, "max_tokens": 20, "temperature": 0.9 * (i % 2) as f64, "seed": i, "n": 1 + i % 3,
                "logprobs": 2, "stream": false})
        })
        .collect();
    let alone: Vec<Value> = bodies
        .iter()
        .map(|body| post(&start(config()), "/v1/completions", body.clone()).json()["choices"].clone())
        .collect();
    let server = Server::start(config(), || Loaded::with_slots(&model(), &options(), 4)).unwrap();
    server.ready().unwrap();
    let sockets: Vec<TcpStream> = bodies.iter().map(|body| send(&server, "/v1/completions", body)).collect();
    for (i, (socket, alone)) in sockets.into_iter().zip(alone).enumerate() {
        assert_eq!(finish(socket).json()["choices"], alone, "request {i}");
    }
    assert_eq!((metric(&server, "edgeft_slots "), metric(&server, "edgeft_requests_running ")), (4.0, 0.0));
    let steps = metric(&server, "edgeft_batch_size_count ");
    assert!(metric(&server, "edgeft_batch_size_bucket{le=\"2\"} ") < steps, "never more than two side by side");
    assert!(metric(&server, "edgeft_batch_size_sum ") > 1.5 * steps);
}

#[test]
fn a_long_prompt_is_read_beside_the_others_and_who_leaves_makes_room_at_once() {
    let (server, steps, go) = start_watched(config(), model(), true, None);
    let stream = |prompt: Vec<u32>| {
        let body = json!({"prompt": prompt, "max_tokens": 60, "temperature": 1.0, "stream": true,
            "logit_bias": {"1": -100, "0": -100}});
        let mut client = send(&server, "/v1/completions", &body);
        client.read_exact(&mut [0; 12]).unwrap(); // its head comes when it is queued
        client
    };
    let count = || steps.lock().unwrap().len();
    let step = || {
        let n = count();
        go.send(()).unwrap();
        soon("a step", || count() > n);
        steps.lock().unwrap().last().unwrap().clone()
    };
    let first = stream(vec![5, 6, 7]);
    soon("the first prompt", || count() == 1);
    let beside = [step(), step()];
    assert!(beside.iter().all(|runs| runs == &[(beside[0][0].0, 1)]), "{beside:?}");
    // Beside a token of the first, at most 64 of the long prompt; the short prompt does not wait behind it.
    let _long = stream((0..120).map(|i| 9 + i % 50).collect());
    let _short = stream(vec![60, 61, 62, 63]);
    let mut seen = Vec::new();
    for _ in 0..4 {
        let runs = step();
        assert_eq!(runs.iter().filter(|(seq, n)| *seq == beside[0][0].0 && *n == 1).count(), 1, "{runs:?}");
        assert!(runs.iter().filter(|(_, n)| *n > 1).map(|(_, n)| n).sum::<usize>() <= 64, "{runs:?}");
        seen.push(runs);
    }
    let at = |tokens: usize| seen.iter().position(|runs| runs.iter().any(|(_, n)| *n == tokens));
    assert!(at(4).is_some_and(|short| short <= 1) && at(60).is_some(), "{seen:?}");
    assert_eq!(seen[3].iter().map(|(_, n)| *n).collect::<Vec<_>>(), [1, 1, 1], "{seen:?}");
    assert_eq!(metric(&server, "edgeft_slots_busy "), 3.0);
    // A fourth, and a fifth that waits, until the first leaves.
    let _fourth = stream(vec![70, 71]);
    let _fifth = stream(vec![80, 81, 82, 83, 84]);
    let runs = step();
    assert_eq!(runs.len(), 4, "{runs:?}");
    drop(first);
    std::thread::sleep(Duration::from_millis(300)); // until hyper has seen it, while the engine stands still
    let runs = step();
    assert!(runs.len() == 4 && runs.contains(&(beside[0][0].0, 5)), "{runs:?}");
    drop(go);
}

#[test]
fn answers_to_one_prompt_share_its_reading() {
    let (server, steps, _) = start_watched(config(), model(), false, None);
    let prompt: Vec<u32> = (0..40).map(|i| 5 + i).collect();
    let body = json!({"prompt": prompt, "max_tokens": 12, "temperature": 1.2, "seed": 4, "n": 3, "logprobs": 1,
        "logit_bias": {"1": -100, "0": -100}});
    let reply = post(&server, "/v1/completions", body.clone()).json();
    let read =
        |steps: &Steps| steps.lock().unwrap().iter().flatten().map(|(_, n)| n).filter(|n| **n > 1).sum::<usize>();
    assert_eq!(read(&steps), 40, "the prompt is read once: {steps:?}");
    assert!(steps.lock().unwrap().iter().any(|runs| runs.len() == 3), "three side by side");
    assert_eq!(reply["usage"]["prompt_tokens_details"]["cached_tokens"], 0);
    for i in 0..3 {
        let mut alone = body.clone();
        (alone["n"], alone["seed"]) = (1.into(), (4 + i).into());
        let alone = post(&start(config()), "/v1/completions", alone).json();
        for part in ["text", "logprobs", "finish_reason"] {
            assert_eq!(reply["choices"][i][part], alone["choices"][0][part], "{part} of choice {i}");
        }
    }
}

#[test]
fn what_breaks_the_engine_breaks_one_answer_alone() {
    let (server, ..) = start_watched(config(), model(), false, Some(77));
    let body = |prompt: &[u32]| json!({"prompt": prompt, "max_tokens": 30, "logprobs": 1, "logit_bias": {"77": -100}});
    let prompts: [&[u32]; 3] = [&[5, 6, 7], &[8, 77, 9], &[10, 11, 12, 13]];
    let sockets = prompts.map(|prompt| send(&server, "/v1/completions", &body(prompt)));
    for (socket, prompt) in sockets.into_iter().zip(prompts) {
        let reply = finish(socket);
        if prompt.contains(&77) {
            reply.refuses(500, "engine_failed", "report this");
        } else {
            let alone = post(&start(config()), "/v1/completions", body(prompt)).json();
            assert_eq!(reply.json()["choices"], alone["choices"]);
        }
    }
    soon("free slots", || metric(&server, "edgeft_slots_busy ") == 0.0);
    assert_eq!(post(&server, "/v1/completions", body(&[5, 6, 7])).status, 200);
}

#[test]
fn what_takes_too_long_is_told_so_and_frees_its_slot() {
    let mut config = config();
    config.limits.request = Duration::from_millis(300);
    config.limits.parallel = 1;
    let (server, steps, go) = start_watched(config, model(), true, None);
    let body = json!({"prompt": [5, 6], "max_tokens": 100, "temperature": 1.0, "logit_bias": {"1": -100, "0": -100}});
    let running = send(&server, "/v1/completions", &body);
    soon("the first step", || !steps.lock().unwrap().is_empty());
    let waiting = send(&server, "/v1/completions", &body);
    std::thread::sleep(Duration::from_millis(400));
    go.send(()).unwrap();
    finish(running).refuses(504, "deadline_exceeded", "0.3 s");
    finish(waiting).refuses(504, "deadline_exceeded", "--deadline");
    drop(go);
    assert_eq!(post(&server, "/v1/completions", json!({"prompt": [7], "max_tokens": 1})).status, 200);
}

#[test]
fn a_short_list_of_texts_does_not_wait_for_a_long_one_and_labels_are_the_same() {
    let labeller = gguf(&Tiny::classifier(&["good", "bad"]).calm(), Mix::Q8_0);
    let (server, steps, go) = start_watched(config(), labeller.clone(), true, None);
    let texts: Vec<String> =
        (0..40).map(|i| format!("{} the lamp of the house", "what is red ".repeat(i % 4))).collect();
    let long = send(&server, "/v1/classify", &json!({"input": texts}));
    soon("the first step", || steps.lock().unwrap().len() == 1);
    let short = send(&server, "/v1/classify", &json!({"input": "the lamp"}));
    soon("both", || metric(&server, "edgeft_requests_waiting ") == 1.0);
    [(); 2].iter().for_each(|()| go.send(()).unwrap());
    let short = finish(short).json(); // while the long list has most of its texts before it
    assert!(steps.lock().unwrap().len() <= 3, "{steps:?}");
    drop(go);
    let reply = finish(long).json();
    let mut session = Session::new(&labeller, &options()).unwrap();
    let mut same = |text: &str, answer: &Value| {
        for score in session.classify_text(text).unwrap() {
            let told = answer["scores"][&score.label].as_f64().unwrap() as f32;
            assert_eq!(told.to_bits(), score.score.to_bits(), "{text}");
        }
    };
    same("the lamp", &short["data"][0]);
    for (i, text) in texts.iter().enumerate() {
        same(text, &reply["data"][i]);
    }
    assert!(steps.lock().unwrap().iter().any(|runs| runs.len() == 4), "four side by side: {steps:?}");
}

#[test]
fn spans_are_found_window_by_window_beside_other_questions() {
    let reader = gguf(&Tiny::reader().calm(), Mix::F32);
    let (server, steps, _) = start_watched(config(), reader.clone(), false, None);
    let context = "the lamp is blue and the house is red and the sea is wide ".repeat(12);
    let long = json!({"question": "what is red", "context": context});
    let short = json!({"question": "what is blue", "context": "the lamp is blue"});
    let sockets = [&long, &short, &long].map(|body| send(&server, "/v1/answer", body));
    let mut session = Session::new(&reader, &options()).unwrap();
    for (socket, body) in sockets.into_iter().zip([&long, &short, &long]) {
        let want = session.answer(body["question"].as_str().unwrap(), body["context"].as_str().unwrap()).unwrap();
        let reply = finish(socket).json();
        assert_eq!(
            (&reply["answer"], &reply["start"], &reply["score"]),
            (&json!(want.answer), &json!(want.start), &json!(want.score))
        );
    }
    assert!(steps.lock().unwrap().len() > 2, "a window each");
}

#[test]
fn more_than_the_memory_holds_is_refused_before_it_is_taken() {
    let model = model();
    // 2 layers, 2 key heads of 8 numbers, keys and values, two bytes each, 128 positions.
    let each = 2 * 2 * 2 * 8 * 2 * 128;
    let weights = model.weight_bytes();
    let plan = |parallel, kept, sequences: u64| {
        Plan::within(&model, 0, &options(), parallel, kept, Some(weights + sequences * each))
    };
    let open = plan(None, None, 9).unwrap();
    assert_eq!((open.parallel, open.sequences, open.caches), (4, 4, 4 * each));
    let tight = plan(None, None, 3).unwrap();
    assert_eq!((tight.parallel, tight.sequences), (3, 3));
    assert!(tight.fewer(None).unwrap().contains("3 of 4") && open.fewer(None).is_none());
    let kept = plan(Some(2), Some(7), 7).unwrap();
    assert_eq!((kept.parallel, kept.sequences), (2, 7));
    for (parallel, kept, room) in [(Some(4), None, 3), (None, Some(5), 4), (None, None, 0)] {
        let error = plan(parallel, kept, room).unwrap_err();
        assert_eq!(error.kind(), Kind::Limit);
        assert!(error.to_string().contains("--parallel"), "{error}");
    }
    // What stands beside the model takes the room of an answer.
    let beside = |bytes, room: u64| Plan::within(&model, bytes, &options(), None, None, Some(weights + room * each));
    assert_eq!(beside(1, 4).unwrap().parallel, 3);
    assert_eq!(beside(each, 4).unwrap().parallel, 3);
    let error = beside(each + 1, 1).unwrap_err().to_string();
    assert!(error.contains("adapters 1 MiB") && error.contains("fewer adapters"), "{error}");
}
