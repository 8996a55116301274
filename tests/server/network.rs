//! What a server on a network needs: counts, keys, hosts and origins, a page, and chats that go on where they were.

use super::*;
use crate::cli::refuses;
use crate::common::Folder;
use std::sync::Mutex;

fn with(server: &Server, method: &str, path: &str, headers: &str, body: &str) -> Reply {
    let length = body.len();
    let request =
        format!("{method} {path} HTTP/1.1\r\nConnection: close\r\nContent-Length: {length}\r\n{headers}\r\n{body}");
    finish(open(server.addr(), &request))
}

fn metric(server: &Server, line: &str) -> f64 {
    let text = get(server, "/metrics").body;
    let found = text.lines().find_map(|l| l.strip_prefix(line)).unwrap_or_else(|| panic!("no {line} in\n{text}"));
    found.trim().parse().unwrap()
}

#[test]
fn counts_follow_the_requests_and_do_not_wait_for_the_engine() {
    let (server, go, steps) = start_paced(config());
    let body = json!({"prompt": [5, 6, 7], "max_tokens": 4, "temperature": 1.0}).to_string();
    let client = open(server.addr(), &request("POST", "/v1/completions", "", &body));
    go.send(()).unwrap();
    soon("the first step", || steps.load(Ordering::SeqCst) == 1);
    let waiting = open(server.addr(), &request("POST", "/v1/completions", "", &body));
    // The engine stands inside a step now.
    soon("one that waits", || metric(&server, "edgeft_requests_waiting ") == 1.0);
    assert_eq!(metric(&server, "edgeft_requests_running "), 1.0);
    drop(go);
    let replies = [finish(client).json(), finish(waiting).json()];
    let tokens: f64 = replies.iter().map(|r| r["usage"]["completion_tokens"].as_f64().unwrap()).sum();
    assert_eq!(metric(&server, "edgeft_completion_tokens_total "), tokens);
    assert_eq!(metric(&server, "edgeft_prompt_tokens_total "), 6.0);
    assert_eq!(metric(&server, "edgeft_cached_prompt_tokens_total "), 2.0);
    for (name, n) in [("queue", 2.0), ("first_token", 2.0), ("inter_token", tokens - 2.0)] {
        assert_eq!(metric(&server, &format!("edgeft_{name}_seconds_count ")), n, "{name}");
        assert_eq!(metric(&server, &format!("edgeft_{name}_seconds_bucket{{le=\"+Inf\"}} ")), n, "{name}");
    }
    post(&server, "/v1/completions", json!({"prompt": 1})).refuses(400, "invalid_type", "prompt");
    get(&server, "/nowhere/at/all").refuses(404, "unknown_url", "");
    let count = |method: &str, route: &str, status: u16| {
        let labels = format!("method=\"{method}\",route=\"{route}\",status=\"{status}\"");
        metric(&server, &format!("edgeft_requests_total{{{labels}}} "))
    };
    assert_eq!(count("POST", "/v1/completions", 200), 2.0);
    assert_eq!(count("POST", "/v1/completions", 400), 1.0);
    assert_eq!(count("", "none", 404), 1.0);
    assert!(!cfg!(target_os = "linux") || metric(&server, "process_resident_memory_bytes ") > 1e6);
}

#[test]
fn keys_are_read_again_and_a_broken_file_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("keys");
    std::fs::write(&file, "# two clients\nfirst\n\nsecond\n").unwrap();
    let mut config = config();
    config.access.key_file = Some(file.clone());
    let server = start(config);
    let status = |key: &str| {
        with(&server, "GET", "/v1/models", &format!("Host: x\r\nAuthorization: Bearer {key}\r\n"), "").status
    };
    assert_eq!(["first", "second", "third", "#"].map(status), [200, 200, 401, 401]);
    assert_eq!((get(&server, "/metrics").status, get(&server, "/v2/health/ready").status), (401, 200));
    std::fs::write(&file, "third\n").unwrap();
    assert_eq!(["first", "third"].map(status), [200, 401], "nothing changes before it is told");
    assert_eq!(server.stopper().reload_keys().unwrap(), 1);
    assert_eq!(["first", "third"].map(status), [401, 200]);
    std::fs::write(&file, "\n").unwrap();
    assert!(server.stopper().reload_keys().unwrap_err().to_string().contains("holds no key"));
    assert_eq!(["first", "third"].map(status), [401, 200], "a file without a key does not open the server");
}

#[test]
fn other_hosts_and_origins_are_refused_and_cors_is_only_for_those_asked_for() {
    let server = start(Config::new("127.0.0.1:0".parse().unwrap(), "tiny"));
    let port = server.addr().port();
    let asked = |headers: String| with(&server, "GET", "/v1/models", &headers, "");
    assert_eq!(asked(format!("Host: localhost:{port}\r\n")).status, 200);
    assert_eq!(asked(format!("Host: 127.0.0.1:{port}\r\n")).status, 200);
    asked(format!("Host: rebound.example:{port}\r\n")).refuses(403, "host_not_allowed", "--allow-host rebound.example");
    let evil = format!("Host: localhost:{port}\r\nOrigin: https://evil.example\r\n");
    asked(evil.clone()).refuses(403, "origin_not_allowed", "--allow-origin https://evil.example");
    let preflight =
        with(&server, "OPTIONS", "/v1/models", &format!("{evil}Access-Control-Request-Method: GET\r\n"), "");
    preflight.refuses(403, "origin_not_allowed", "");
    let own = asked(format!("Host: localhost:{port}\r\nOrigin: http://localhost:{port}\r\n"));
    assert_eq!((own.status, own.header("access-control-allow-origin")), (200, None));
    // Probes come from wherever.
    assert_eq!(with(&server, "GET", "/healthz", "Host: pod.cluster\r\n", "").status, 200);

    let mut config = config();
    config.access.origins = vec!["https://app.example".into()];
    let server = start(config);
    let good = "Host: x\r\nOrigin: https://app.example\r\n";
    let reply = with(&server, "GET", "/v1/models", good, "");
    assert_eq!((reply.status, reply.header("access-control-allow-origin")), (200, Some("https://app.example")));
    let preflight =
        with(&server, "OPTIONS", "/v1/models", &format!("{good}Access-Control-Request-Method: POST\r\n"), "");
    assert_eq!((preflight.status, preflight.header("access-control-allow-methods")), (204, Some("GET, POST")));
    assert_eq!(with(&server, "GET", "/v1/models", "Host: x\r\nOrigin: https://b.example\r\n", "").status, 403);
}

#[test]
fn the_log_tells_of_requests_and_nothing_of_what_was_said() {
    let lines = Arc::new(Mutex::new(Vec::<String>::new()));
    let kept = lines.clone();
    let log = edgeft_runtime::server::Log::new(move |line| kept.lock().unwrap().push(line.into()));
    let server = start(Config { log: Some(log), ..config() });
    let _ = post(&server, "/v1/completions", json!({"prompt": "a dark secret", "max_tokens": 2}));
    let _ = post(&server, "/v1/completions", json!({"prompt": "x", "secret_field": 2}));
    let _ = get(&server, "/secret/path");
    let lines = lines.lock().unwrap();
    assert!(lines.iter().all(|l| !l.contains("secret")), "{lines:?}");
    let json: Vec<Value> = lines.iter().map(|l| serde_json::from_str(l).unwrap()).collect();
    let told: Vec<_> = json.iter().map(|l| (l["route"].as_str(), l["status"].as_u64(), l["error"].as_str())).collect();
    let route = Some("/v1/completions");
    let want = [
        (route, Some(200), None),
        (route, Some(400), Some("unsupported_parameter")),
        (None, Some(404), Some("unknown_url")),
    ];
    assert_eq!(told, want);
}

#[test]
fn the_page_needs_no_other_host_and_says_so_to_the_browser() {
    let mut config = config();
    config.api_key = Some("secret".into()); // the page itself needs none; it asks for one
    let server = start(config);
    let reply = get(&server, "/");
    assert_eq!((reply.status, reply.header("content-type")), (200, Some("text/html; charset=utf-8")));
    let policy = reply.header("content-security-policy").unwrap();
    for part in ["default-src 'none'", "script-src 'sha256-", "style-src 'sha256-", "connect-src 'self'"] {
        assert!(policy.contains(part), "{part}: {policy}");
    }
    assert!(!policy.contains("unsafe"), "{policy}");
    let page = &reply.body;
    for other in ["http:", "https:", "//cdn", "@import", "src=", "<link", "<iframe", "eval(", "innerHTML", " style="] {
        assert!(!page.contains(other), "`{other}` in the page");
    }
    for own in ["/v1/models", "/v1/chat/completions", "/v1/classify", "/v1/answer", "<title>", "lang=\"en\""] {
        assert!(page.contains(own), "no `{own}` in the page");
    }
    assert!(page.len() < 40_000, "{} bytes: the device's binary carries it", page.len());
}

/// A server with two caches and the keys `a` and `b`.
fn start_slots(keys: &str) -> (Server, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config();
    if !keys.is_empty() {
        let file = dir.path().join("keys");
        std::fs::write(&file, keys).unwrap();
        config.access.key_file = Some(file);
    }
    let server = Server::start(config, || Loaded::with_slots(&model(), &options(), 2)).unwrap();
    server.ready().unwrap();
    (server, dir)
}

#[test]
fn the_next_turn_reads_only_what_is_new_and_says_what_a_cold_one_says() {
    let (server, _dir) = start_slots("");
    let turn = |server: &Server, words: &[&str]| {
        let role = |i: usize| if i.is_multiple_of(2) { "user" } else { "assistant" };
        let messages: Vec<Value> =
            words.iter().enumerate().map(|(i, w)| json!({"role": role(i), "content": w})).collect();
        let body = json!({"messages": messages, "max_tokens": 6, "logprobs": true, "top_logprobs": 5});
        post(server, "/v1/chat/completions", body).json()
    };
    let cached = |reply: &Value| reply["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap();
    let read = |reply: &Value| reply["usage"]["prompt_tokens"].as_u64().unwrap() - cached(reply);
    let first = turn(&server, &["the sea is wide and the sky is blue"]);
    assert_eq!(cached(&first), 0);
    // Another chat in between does not cost the first its place.
    let other = turn(&server, &["zebras run far away in big herds today"]);
    let more = ["the sea is wide and the sky is blue", "Yes.", "and why is it so"];
    let second = turn(&server, &more);
    let length = |reply: &Value| reply["usage"]["prompt_tokens"].as_u64().unwrap();
    assert!(cached(&second) + 4 >= length(&first), "{second}");
    assert!(read(&second) <= length(&second) - length(&first) + 4, "{second}");
    let again = turn(&server, &["zebras run far away in big herds today"]);
    assert_eq!((read(&again), &again["choices"]), (1, &other["choices"]));
    // Bit for bit what a server says that never saw the first turn.
    let cold = start(config());
    let fresh = turn(&cold, &more);
    assert_eq!((cached(&fresh), &fresh["choices"]), (0, &second["choices"]));
}

#[test]
fn nobody_learns_from_a_cache_what_another_key_asked() {
    let (server, _dir) = start_slots("a\nb\n");
    let cached = |key: &str| {
        let body = json!({"prompt": [5, 6, 7, 8, 9, 10], "max_tokens": 2}).to_string();
        let headers = format!("Host: x\r\nAuthorization: Bearer {key}\r\n");
        let reply = with(&server, "POST", "/v1/completions", &headers, &body).json();
        reply["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap_or_else(|| panic!("{reply}"))
    };
    assert_eq!(["a", "a", "b", "b", "a"].map(cached), [0, 5, 0, 5, 5]);
}

#[test]
fn an_address_that_others_reach_is_refused_without_a_key_or_a_word() {
    let folder = Folder::new();
    folder.write("keys", "my first key\n");
    refuses(&folder, "serve nano --port 0 --host 0.0.0.0", &["0.0.0.0", "--api-key-file", "--insecure-no-auth"]);
    refuses(&folder, "serve nano --port 0 --api-key-file keys", &["line 1", "visible ASCII"]);
    refuses(&folder, "serve nano --port 0 --cache-slots 0", &["--cache-slots", "1 to 64"]);
}

#[cfg(unix)]
#[test]
fn signals_read_the_keys_again_and_stop_the_server() {
    use std::io::{BufRead, BufReader};
    use std::process::{Command, Stdio};
    let folder = Folder::new();
    folder.write("keys", "first\n");
    let mut command = folder.command("serve nano --port 0 --api-key-file keys --drain 5");
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut told = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let addr =
        line.split("http://").nth(1).and_then(|l| l.split([' ', '\n']).next()).unwrap_or_else(|| panic!("{line}"));
    let addr: SocketAddr = addr.parse().unwrap();
    let status = |key: &str| {
        let headers = format!("Authorization: Bearer {key}\r\nConnection: close\r\n");
        finish(open(addr, &format!("GET /v1/models HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n"))).status
    };
    let signal = |name: &str| {
        let done = Command::new("kill").args([name, &child.id().to_string()]).status().unwrap();
        assert!(done.success());
    };
    assert_eq!(["first", "second"].map(status), [200, 401]);
    folder.write("keys", "first\nsecond\n");
    signal("-HUP");
    assert!(told.any(|l| l == "keys read again: 2"), "no word of the keys");
    assert_eq!(["first", "second"].map(status), [200, 200]);
    signal("-TERM");
    assert!(told.any(|l| l.starts_with("stopping")), "no word of the end");
    assert_eq!(child.wait().unwrap().code(), Some(0));
}
