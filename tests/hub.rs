//! `edgeft pull` against a hub on loopback: what arrives, what is refused, what a broken line leaves, where a token goes.

use crate::common::hub::{COMMIT, Content, Fault, Hub, hash, sha256};
use crate::common::{Folder, Ran, has_fields, tiny::Tiny};
use edgeft::hub::{Choice, Destination, HubError, Progress, Settings, pull};
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::process::Command;
use std::time::{Duration, Instant};

/// A model that runs, and what else lies in a repository.
fn content() -> Content {
    let folder = Folder::new();
    Tiny::llama().write(&folder, "m");
    let mut files: BTreeMap<String, Vec<u8>> =
        folder.names("m").into_iter().map(|name| (name.clone(), folder.read(&format!("m/{name}")))).collect();
    for (name, text) in [
        ("README.md", "read me"),
        ("LICENSE", "do what you like"),
        (".gitattributes", "*.safetensors filter=lfs"),
        ("onnx/model.onnx", "graph"),
        ("odd name ü#1.txt", "odd"),
        ("empty.txt", ""),
        ("vocab.txt", "read me"), // the same bytes as README.md
    ] {
        files.insert(name.to_owned(), text.as_bytes().to_vec());
    }
    Content { files, ..Content::default() }
}

/// `edgeft` with this hub for the only one: no token, no cache and no proxy of whoever runs the tests.
fn command(folder: &Folder, hub: &Hub, line: &str) -> Command {
    let mut command = folder.command(line);
    for name in ["HF_TOKEN", "HF_HUB_CACHE", "SSL_CERT_FILE"] {
        command.env_remove(name);
    }
    for name in ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"] {
        command.env_remove(name).env_remove(name.to_lowercase());
    }
    command.env("HF_ENDPOINT", &hub.endpoint).env("HF_HOME", folder.at("home"));
    command
}

#[track_caller]
fn edgeft(folder: &Folder, hub: &Hub, line: &str) -> Ran {
    Ran::new(line, command(folder, hub, line).output().expect("the binary starts"))
}

/// No output, and nothing beside it but what a resumed call needs.
#[track_caller]
fn nothing_at(folder: &Folder, name: &str) {
    assert!(!folder.at(name).exists(), "{name} exists");
}

const WEIGHTS: &str = "model.safetensors";

#[test]
fn a_pulled_folder_is_a_model_that_runs() {
    let (folder, hub) = (Folder::new(), Hub::new(content()));
    let json = edgeft(&folder, &hub, "pull org/name --out base --json").ok().json();
    has_fields(&json, "out files bytes seconds revision repo downloaded_bytes");
    assert_eq!((json["out"].as_str(), json["revision"].as_str()), (Some("base"), Some(COMMIT)));
    let twice = content().files["vocab.txt"].len() as u64; // README.md has the same bytes
    assert_eq!(json["downloaded_bytes"].as_u64(), json["bytes"].as_u64().map(|all| all - twice));
    let (content, names) = (content(), folder.names("base"));
    for kept in ["config.json", WEIGHTS, "tokenizer.json", "README.md", "LICENSE"] {
        assert_eq!(folder.read(&format!("base/{kept}")), content.files[kept], "{kept}");
    }
    for left in [".gitattributes", "onnx", "empty.txt"] {
        assert!(!names.contains(&left.to_owned()), "{left} in {names:?}");
    }
    let listed: Vec<&str> = json["files"].as_array().unwrap().iter().map(|f| f["name"].as_str().unwrap()).collect();
    assert_eq!(listed, names);
    folder.write("base/vocab.txt", "edited");
    assert_eq!(folder.read("base/README.md"), b"read me");
    assert_eq!(folder.names(""), ["base"]);
    assert!(hub.asked().iter().any(|a| a.store && a.path.contains(WEIGHTS)), "the large file comes from the store");
    folder.edgeft("run base -p 'the river was' -n 3").ok();
}

#[test]
fn all_and_include_choose_other_files() {
    let (folder, hub) = (Folder::new(), Hub::new(content()));
    edgeft(&folder, &hub, "pull org/name --all --out all").ok();
    for (name, bytes) in content().files {
        assert_eq!(folder.read(&format!("all/{name}")), bytes, "{name}");
    }
    edgeft(&folder, &hub, "pull org/name --include '*.ONNX' --include 'license' --out some").ok();
    assert_eq!(
        (folder.names("some"), folder.names("some/onnx")),
        (vec!["LICENSE".into(), "onnx".into()], vec!["model.onnx".into()])
    );
    let ran = edgeft(&folder, &hub, "pull org/name --include '*.gguf' --out none").code(2);
    assert!(ran.stderr.contains("'*.gguf'") && ran.stderr.contains(WEIGHTS), "{}", ran.stderr);
    nothing_at(&folder, "none");
}

#[test]
fn a_repository_of_ggufs_asks_which_and_pickles_are_refused() {
    let ggufs = ["m-Q4_K_M.gguf", "m-Q8_0.gguf"].map(|n| (n.to_owned(), vec![7; 2000]));
    let (folder, hub) = (Folder::new(), Hub::new(Content { files: ggufs.into(), ..Content::default() }));
    let ran = edgeft(&folder, &hub, "pull org/name --out g").code(2);
    assert!(ran.stderr.contains("--include '*q4_k_m.gguf'") && ran.stderr.contains("m-Q8_0.gguf"), "{}", ran.stderr);
    let ran = edgeft(&folder, &hub, "pull org/name --include '*q4_k_m.gguf' --out g").ok();
    assert_eq!(folder.names("g"), ["m-Q4_K_M.gguf"]);
    assert!(ran.stdout.contains("edgeft run g/m-Q4_K_M.gguf"), "{}", ran.stdout);
    hub.change(|c| c.files = [("pytorch_model.bin".to_owned(), vec![1; 2000])].into());
    let ran = edgeft(&folder, &hub, "pull org/name --out p").code(2);
    assert!(ran.stderr.contains("pickles (pytorch_model.bin)"), "{}", ran.stderr);
}

#[test]
fn a_revision_is_resolved_once_and_files_are_asked_for_by_commit() {
    let (folder, hub) = (Folder::new(), Hub::new(Content { revisions: vec!["refs/pr/1".into()], ..content() }));
    edgeft(&folder, &hub, "pull org/name@refs/pr/1 --out base").ok();
    let asked = hub.asked();
    assert!(asked[0].line.contains("/revision/refs%2Fpr%2F1?blobs=true"), "{asked:?}");
    assert!(
        asked.iter().skip(1).filter(|a| a.line.contains("/resolve/")).all(|a| a.line.contains(COMMIT)),
        "{asked:?}"
    );
    edgeft(&folder, &hub, &format!("pull org/name@{COMMIT} --out by-commit")).ok();
}

#[test]
fn a_token_goes_to_the_hub_and_to_nobody_else() {
    let (folder, hub) = (Folder::new(), Hub::new(Content { token: Some("hf_secret".into()), ..content() }));
    let line = "pull org/name --out base";
    let ran = Ran::new(line, command(&folder, &hub, line).env("HF_TOKEN", "hf_secret").output().unwrap()).ok();
    assert!(!format!("{}{}", ran.stdout, ran.stderr).contains("hf_secret"));
    let (store, home): (Vec<_>, Vec<_>) = hub.asked().into_iter().partition(|a| a.store);
    assert!(!store.is_empty() && store.iter().all(|a| a.token.is_none()), "{store:?}");
    assert!(home.iter().all(|a| a.token.as_deref() == Some("Bearer hf_secret")), "{home:?}");
    // Without the variable, the one that was saved at login.
    folder.write("home/token", "hf_secret\n");
    edgeft(&folder, &hub, "pull org/name --out again").ok();
    assert!(hub.asked().iter().all(|a| a.store != a.token.is_some()));
}

#[test]
fn every_no_says_what_it_means_and_what_to_do() {
    let (folder, hub) = (Folder::new(), Hub::new(content()));
    let refused = |line: &str, token: Option<&str>| {
        let mut command = command(&folder, &hub, line);
        token.map(|t| command.env("HF_TOKEN", t));
        let ran = Ran::new(line, command.output().unwrap()).code(2);
        assert_eq!(ran.stdout, "");
        assert!(folder.names("").is_empty(), "{:?}", folder.names(""));
        ran.stderr
    };
    let no_repo = refused("pull org/other --out x", None);
    assert!(no_repo.contains("no such repository, or it is private") && no_repo.contains("HTTP 401"), "{no_repo}");
    let no_repo = refused("pull org/other --out x", Some("t"));
    assert!(no_repo.contains("the token may not see it") && no_repo.contains("HTTP 404"), "{no_repo}");
    let no_revision = refused("pull org/name@v9 --out x", None);
    assert!(no_revision.contains("no branch, tag or commit `v9`"), "{no_revision}");
    hub.change(|c| c.token = Some("right".into()));
    assert!(refused("pull org/name --out x", None).contains("set HF_TOKEN"));
    assert!(refused("pull org/name --out x", Some("wrong")).contains("does not accept the token"));
    hub.change(|c| c.gated = true);
    for (token, way) in [(None, "set HF_TOKEN to a token of yours"), (Some("right"), "same account's token")] {
        let gated = refused("pull org/name --out x", token);
        assert!(
            gated.contains(&format!("accept the terms at {}/org/name", hub.endpoint)) && gated.contains(way),
            "{gated}"
        );
    }
    for typed in ["../name", "org/name@../x", "http://hub/org/name"] {
        refused(&format!("pull {typed} --out x"), None);
    }
}

#[test]
fn a_file_that_the_listing_promises_and_the_hub_lacks_is_named() {
    let (folder, hub) = (Folder::new(), Hub::new(Content { listed: vec!["merges.txt".into()], ..content() }));
    let ran = edgeft(&folder, &hub, "pull org/name --out x").code(2);
    assert!(ran.stderr.contains("org/name@main: merges.txt") && ran.stderr.contains("HTTP 404"), "{}", ran.stderr);
    nothing_at(&folder, "x");
}

#[test]
fn a_cut_connection_goes_on_where_it_broke() {
    let (folder, hub) = (Folder::new(), Hub::new(content()));
    let half = content().files[WEIGHTS].len() / 2;
    hub.change(|c| {
        c.faults = vec![Fault::Cut(WEIGHTS, half), Fault::Cut("tokenizer.json", 0), Fault::Status(WEIGHTS, 503)]
    });
    let ran = edgeft(&folder, &hub, "pull org/name --out base").ok();
    assert!(ran.stderr.contains("try 1 of 5") && ran.stderr.contains("HTTP 503"), "{}", ran.stderr);
    assert_eq!(folder.read("base/model.safetensors"), content().files[WEIGHTS]);
    let ranges: Vec<_> =
        hub.asked().into_iter().filter(|a| a.store && a.path.contains(WEIGHTS)).map(|a| a.range).collect();
    let rest = Some(format!("bytes={half}-"));
    assert_eq!(ranges, [None, rest.clone(), rest]);
}

/// A limit on the size of a file stands in for a full disk, as in `crash.rs`.
#[cfg(unix)]
#[test]
fn a_full_disk_leaves_no_folder_and_the_next_call_goes_on() {
    let (folder, hub) = (Folder::new(), Hub::new(content()));
    let line = "trap '' XFSZ; ulimit -f 16; exec \"$EDGEFT\" pull org/name --out base";
    let mut shell = Command::new("sh");
    shell.args(["-c", line]).env("EDGEFT", env!("CARGO_BIN_EXE_edgeft")).current_dir(folder.path());
    for (name, value) in command(&folder, &hub, "").get_envs() {
        match value {
            Some(value) => shell.env(name, value),
            None => shell.env_remove(name),
        };
    }
    let ran = Ran::new(line, shell.output().unwrap()).code(1);
    assert!(ran.stderr.contains("cannot write base.partial/"), "{}", ran.stderr);
    assert!(ran.stderr.contains("the same command goes on from there"), "{}", ran.stderr);
    nothing_at(&folder, "base");
    let part = format!("base.partial/{}.incomplete", sha256(&content().files[WEIGHTS]));
    let kept = folder.read(&part).len();
    assert!(kept > 0);
    hub.asked();
    edgeft(&folder, &hub, "pull org/name --out base").ok();
    let asked = hub.asked();
    assert!(asked.iter().any(|a| a.store && a.range == Some(format!("bytes={kept}-"))), "{asked:?}");
    assert_eq!(folder.read("base/model.safetensors"), content().files[WEIGHTS]);
    assert_eq!(folder.names(""), ["base"]);
}

#[test]
fn what_does_not_fit_is_refused_before_a_byte_comes() {
    let claimed = [(WEIGHTS.to_owned(), u64::MAX / 2)].into();
    let (folder, hub) = (Folder::new(), Hub::new(Content { claimed, ..content() }));
    let ran = edgeft(&folder, &hub, "pull org/name --out base").code(1);
    assert!(ran.stderr.contains("9223372036.9 GB are needed") && ran.stderr.contains("are free"), "{}", ran.stderr);
    assert!(folder.names("").is_empty() && !hub.asked().iter().any(|a| a.store));
}

#[test]
fn wrong_bytes_are_never_kept() {
    for (name, fault) in [
        (WEIGHTS, Fault::Spoil(WEIGHTS)),
        ("README.md", Fault::Spoil("README.md")),
        (WEIGHTS, Fault::Longer(WEIGHTS)),
        ("LICENSE", Fault::Longer("LICENSE")),
    ] {
        let (folder, hub) = (Folder::new(), Hub::new(Content { faults: vec![fault], ..content() }));
        let ran = edgeft(&folder, &hub, "pull org/name --out base").code(1);
        let said = ran.stderr.contains("nothing of it is kept") || ran.stderr.contains("more than the");
        assert!(said && ran.stderr.contains(name), "{}", ran.stderr);
        nothing_at(&folder, "base");
        let id = hash(&content().files[name]);
        assert!(!folder.at(&format!("base.partial/{id}")).exists());
        edgeft(&folder, &hub, "pull org/name --out base").ok();
        assert_eq!(folder.read(&format!("base/{name}")), content().files[name]);
    }
}

/// The ways in which a piece of an earlier call can be of no use.
#[test]
fn a_bad_piece_is_dropped_and_fetched_anew() {
    let weights = content().files[WEIGHTS].clone();
    let part = format!("base.partial/{}.incomplete", sha256(&weights));
    let longer = [weights.as_slice(), b"!"].concat();
    for (piece, rangeless) in [
        (vec![0; 100], false),           // other bytes
        (vec![0; weights.len()], false), // all of them other
        (longer, false),                 // too long
        (weights[..100].to_vec(), true), // good, but the server sends the whole
    ] {
        let (folder, hub) = (Folder::new(), Hub::new(Content { rangeless, ..content() }));
        folder.write(&part, piece);
        folder.write("base.partial/.edgeft-pull", "");
        edgeft(&folder, &hub, "pull org/name --out base").ok();
        assert!(folder.read("base/model.safetensors") == weights);
        assert_eq!(folder.names(""), ["base"]);
    }
    let (folder, hub) = (Folder::new(), Hub::new(Content { faults: vec![Fault::WrongRange(WEIGHTS)], ..content() }));
    folder.write(&part, &weights[..100]);
    let ran = edgeft(&folder, &hub, "pull org/name --out base").code(2);
    assert!(ran.stderr.contains("base.partial is in the way"), "{}", ran.stderr);
    folder.write("base.partial/.edgeft-pull", "");
    let ran = edgeft(&folder, &hub, "pull org/name --out base").code(1);
    assert!(ran.stderr.contains("asked for the bytes from 100 on"), "{}", ran.stderr);
}

#[test]
fn a_listing_that_leaves_its_folder_is_refused_whole() {
    for name in ["../evil.json", "/evil.json", "a/../../evil.json"] {
        let (folder, hub) = (Folder::new(), Hub::new(Content { listed: vec![name.into()], ..content() }));
        let ran = edgeft(&folder, &hub, "pull org/name --all --out in/base").code(1);
        assert!(ran.stderr.contains(name) && ran.stderr.contains("outside its folder"), "{}", ran.stderr);
        assert!(folder.names("").is_empty() && hub.asked().len() == 1);
    }
}

#[test]
fn sizes_and_hashes_may_come_with_the_files_but_they_must_come() {
    let (folder, hub) = (Folder::new(), Hub::new(Content { bare: true, ..content() }));
    edgeft(&folder, &hub, "pull org/name --out base").ok();
    assert_eq!(folder.read("base/model.safetensors"), content().files[WEIGHTS]);
    hub.change(|c| c.faults = vec![Fault::Spoil(WEIGHTS)]);
    edgeft(&folder, &hub, "pull org/name --out spoilt").code(1);
    hub.change(|c| c.hashless = true);
    let ran = edgeft(&folder, &hub, "pull org/name --out unchecked").code(1);
    assert!(ran.stderr.contains("cannot be checked"), "{}", ran.stderr);
    nothing_at(&folder, "unchecked");
}

#[test]
fn an_existing_folder_is_replaced_only_when_told() {
    let (folder, hub) = (Folder::new(), Hub::new(content()));
    folder.write("base/config.json", "mine");
    let ran = edgeft(&folder, &hub, "pull org/name --out base").code(2);
    assert!(ran.stderr.contains("base exists") && hub.asked().is_empty(), "{}", ran.stderr);
    hub.change(|c| c.faults = vec![Fault::Spoil(WEIGHTS)]);
    edgeft(&folder, &hub, "pull org/name --out base --force").code(1);
    assert_eq!((folder.names("base"), folder.read("base/config.json")), (vec!["config.json".into()], b"mine".to_vec()));
    edgeft(&folder, &hub, "pull org/name --out base --force").ok();
    assert_eq!(
        (folder.read("base/config.json"), folder.names("")),
        (content().files["config.json"].clone(), vec!["base".into()])
    );
    folder.write("letters/letter.txt", "dear");
    edgeft(&folder, &hub, "pull org/name --out letters --force").code(2);
    assert_eq!(folder.read("letters/letter.txt"), b"dear");
}

#[test]
fn without_out_the_files_go_into_the_cache_that_others_read() {
    let (folder, hub) = (Folder::new(), Hub::new(Content { revisions: vec!["v1".into()], ..content() }));
    let first = edgeft(&folder, &hub, "pull org/name --json").ok().json();
    let snapshot = folder.at("home/hub/models--org--name/snapshots").join(COMMIT);
    assert_eq!(first["out"].as_str(), snapshot.to_str());
    // As hf-hub finds it, and so candle, and by the same rules Transformers.
    let cache = hf_hub::Cache::new(folder.at("home/hub"));
    let weights = cache.model("org/name".to_owned()).get(WEIGHTS).expect("in the cache");
    assert_eq!(std::fs::read(weights).unwrap(), content().files[WEIGHTS]);
    folder.edgeft(&format!("run {} -p 'the river' -n 2", snapshot.display())).ok();

    // A second time, under another name and into a folder: nothing is downloaded twice.
    hub.asked();
    for line in ["pull org/name --json", "pull org/name@v1 --json", "pull org/name --out base --json"] {
        assert_eq!(edgeft(&folder, &hub, line).ok().json()["downloaded_bytes"], 0, "{line}");
    }
    assert!(hub.asked().iter().all(|a| a.line.contains("/api/models/")));
    assert_eq!(folder.read("home/hub/models--org--name/refs/v1"), COMMIT.as_bytes());

    // A file that rotted is found and replaced; one more of the commit joins the rest.
    folder.write(&format!("home/hub/models--org--name/blobs/{}", sha256(&content().files[WEIGHTS])), "rotten");
    let ran = edgeft(&folder, &hub, "pull org/name --all").ok();
    assert!(ran.stderr.contains("is damaged and will be replaced"), "{}", ran.stderr);
    assert_eq!(std::fs::read(snapshot.join(WEIGHTS)).unwrap(), content().files[WEIGHTS]);
    assert_eq!(std::fs::read(snapshot.join("onnx/model.onnx")).unwrap(), b"graph");
}

#[test]
fn a_failed_pull_into_the_cache_leaves_no_snapshot() {
    let (folder, hub) = (Folder::new(), Hub::new(Content { faults: vec![Fault::Spoil(WEIGHTS)], ..content() }));
    edgeft(&folder, &hub, "pull org/name").code(1);
    for name in ["snapshots", "refs"] {
        nothing_at(&folder, &format!("home/hub/models--org--name/{name}"));
    }
    edgeft(&folder, &hub, "pull org/name").ok();
}

#[test]
fn a_silent_server_is_left_after_its_time_and_a_closed_port_is_named() {
    let (folder, hub) = (Folder::new(), Hub::new(content()));
    let settings = Settings {
        endpoint: hub.endpoint.clone(),
        silence: Duration::from_millis(200),
        retries: 2,
        pause: Duration::from_millis(10),
        ..Settings::default()
    };
    let to = Destination::Folder { path: folder.at("base"), force: false };
    let run = |settings: &Settings| {
        let mut again = 0;
        let start = Instant::now();
        let outcome = pull(settings, &"org/name".parse().unwrap(), &Choice::Model, &to, &mut |p| {
            again += usize::from(matches!(p, Progress::Again { .. }));
        });
        (outcome, again, start.elapsed())
    };
    hub.change(|c| c.faults = vec![Fault::Silent(WEIGHTS); 3]);
    let (outcome, again, took) = run(&settings);
    let error = outcome.unwrap_err();
    assert!(matches!(error, HubError::Network { .. }) && error.to_string().contains("in time"), "{error}");
    assert!(again == 2 && took < Duration::from_secs(2), "{again} times in {took:?}");
    hub.change(|c| c.faults = vec![Fault::Silent("revision/main?blobs=true"), Fault::Silent(WEIGHTS)]);
    let (outcome, again, _) = run(&settings);
    assert_eq!((outcome.unwrap().revision.as_str(), again), (COMMIT, 2));
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    std::fs::remove_dir_all(folder.at("base")).unwrap();
    let (outcome, again, _) = run(&Settings { endpoint: format!("http://{closed}"), ..settings });
    let error = outcome.unwrap_err();
    assert!(error.to_string().contains(&closed) && again == 2 && !error.is_bad_input(), "{error}");
}

#[cfg(unix)]
#[test]
fn two_pulls_into_one_folder_do_not_meet_and_an_interrupted_one_is_130() {
    let (folder, hub) = (Folder::new(), Hub::new(content()));
    hub.change(|c| c.faults = vec![Fault::Silent(WEIGHTS)]);
    let line = "pull org/name --out base";
    let child = command(&folder, &hub, line).stderr(std::process::Stdio::piped()).spawn().unwrap();
    let patience = Instant::now();
    while !hub.asked().iter().any(|a| a.store) {
        assert!(patience.elapsed() < Duration::from_secs(20), "the first pull never came to the store");
        std::thread::sleep(Duration::from_millis(5));
    }
    let ran = edgeft(&folder, &hub, line).code(1);
    assert!(ran.stderr.contains("another process"), "{}", ran.stderr);
    Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    let ran = Ran::new(line, child.wait_with_output().unwrap()).code(130);
    assert!(ran.stderr.contains("the same command goes on"), "{}", ran.stderr);
    nothing_at(&folder, "base");
    edgeft(&folder, &hub, line).ok();
    assert_eq!(folder.names(""), ["base"]);
}

/// A port that speaks no TLS: what it answers is no certificate.
#[test]
fn a_connection_that_cannot_be_made_secure_is_not_tried_again() {
    let (folder, hub) = (Folder::new(), Hub::new(content()));
    let line = "pull org/name --out base";
    let plain = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("https://{}", plain.local_addr().unwrap());
    std::thread::spawn(move || {
        for mut stream in plain.incoming().flatten() {
            let _ = stream.read(&mut [0; 4096]); // the client's hello
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n");
        }
    });
    let ran = Ran::new(line, command(&folder, &hub, line).env("HF_ENDPOINT", endpoint).output().unwrap()).code(1);
    assert!(ran.stderr.contains("no secure connection") && !ran.stderr.contains("try 1"), "{}", ran.stderr);
    let ran = Ran::new(line, command(&folder, &hub, line).env("SSL_CERT_FILE", "none.pem").output().unwrap()).code(2);
    assert!(ran.stderr.contains("SSL_CERT_FILE: cannot read none.pem"), "{}", ran.stderr);
}
