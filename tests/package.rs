//! Bundles through the front door: packaged, moved, served by their own `run.sh`, tampered with; and every file of theirs read
//! by what reads such files.

use crate::common::{Folder, can_use, data, has_fields, runner, tiny::Tiny, yaml};
use serde_json::Value;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// A target like this machine, whose edgeft-run lies beside edgeft.
const TARGET: &str = if cfg!(target_arch = "aarch64") { "raspberry-pi-5" } else { "x86-server" };

/// A server that is killed with the test.
struct Served {
    child: Child,
    address: String,
}

impl Served {
    /// Starts `command`, which prints where it listens.
    fn start(command: &mut Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("it starts");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("stdout")).read_line(&mut line).expect("a line");
        let address =
            line.split("http://").nth(1).unwrap_or_else(|| panic!("no address in `{line}`")).trim().to_owned();
        Self { child, address }
    }

    /// Status line and body of a request.
    fn ask(&self, head: &str, body: &str) -> (String, String) {
        let mut stream = TcpStream::connect(&self.address).expect("a connection");
        let length = body.len();
        write!(stream, "{head} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}")
            .expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("UTF-8");
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
        (head.lines().next().unwrap_or_default().to_owned(), body.to_owned())
    }

    /// SIGTERM, and the exit code.
    fn stop(mut self) -> Option<i32> {
        let killed = Command::new("kill").arg(self.child.id().to_string()).status().expect("kill starts");
        assert!(killed.success());
        self.child.wait().expect("it ends").code()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
    }
}

/// A bundle of a tiny Llama at `bundle`.
fn packaged(folder: &Folder) -> Value {
    Tiny::llama().write(folder, "base");
    folder.edgeft("quantize base --type q8_0 --out tiny.gguf").ok();
    folder.edgeft(&format!("package tiny.gguf --target {TARGET} --out bundle --json")).ok().json()
}

#[cfg(unix)]
#[test]
fn a_bundle_serves_wherever_it_is_moved() {
    if !runner("a_bundle_serves_wherever_it_is_moved") {
        return;
    }
    let folder = Folder::new();
    let json = packaged(&folder);
    has_fields(
        &json,
        "out format version edgeft model.name model.type model.ctx target.name target.triple runner.linked predicted.kind \
        predicted.decode_tokens_per_s predicted.bytes_needed predicted.memory.total files.0.path files.0.bytes files.0.sha256",
    );
    assert_eq!((&json["predicted"]["kind"], &json["model"]["type"]), (&"predicted".into(), &"q8_0".into()));
    assert_eq!(folder.read("bundle/model.gguf"), folder.read("tiny.gguf"), "a GGUF file goes in as it is");
    assert!(
        folder.edgeft("serve bundle --port 0").code(2).stderr.contains("run.sh"),
        "edgeft says what serves a bundle"
    );

    std::fs::create_dir(folder.at("else where")).expect("a folder");
    std::fs::rename(folder.at("bundle"), folder.at("else where/moved")).expect("moved");
    let served = Served::start(
        Command::new(folder.at("else where/moved/run.sh")).current_dir("/").env("PORT", "0").env("HOST", "127.0.0.1"),
    );
    assert_eq!(served.ask("GET /healthz", ""), ("HTTP/1.1 200 OK".into(), r#"{"status":"ok"}"#.into()));
    let (status, body) = served.ask("POST /v1/completions", r#"{"prompt": "the river", "max_tokens": 3}"#);
    assert_eq!(status, "HTTP/1.1 200 OK", "{body}");
    let body: Value = serde_json::from_str(&body).expect("JSON");
    assert_eq!((&body["model"], &body["usage"]["completion_tokens"]), (&"tiny".into(), &3.into()), "{body}");

    let port = served.address.rsplit(':').next().expect("a port");
    let health = |port: &str| {
        let program = folder.at("else where/moved/edgeft-run");
        Command::new(program).args(["health", "--port", port]).output().expect("it starts").status.code()
    };
    assert_eq!(health(port), Some(0));
    let (port, peak) = (port.to_owned(), peak_bytes(served.child.id()));
    let predicted = json["predicted"]["bytes_needed"].as_u64().expect("a number");
    if let Some(peak) = peak {
        assert!(peak <= predicted, "{peak} bytes were resident, {predicted} were predicted");
        assert!(predicted < 4 * peak, "{predicted} bytes were predicted, {peak} are resident");
    }
    assert_eq!(served.stop(), Some(0));
    assert_eq!(health(&port), Some(1));
}

/// Peak resident set of a process, where the system tells.
fn peak_bytes(process: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let kib = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?.split_whitespace().next()?.parse::<u64>().ok()?;
    Some(kib * 1024)
}

#[cfg(unix)]
#[test]
fn a_bundle_that_was_tampered_with_does_not_serve() {
    if !runner("a_bundle_that_was_tampered_with_does_not_serve") {
        return;
    }
    let folder = Folder::new();
    packaged(&folder);
    let refused = |file: &str, because: &str| {
        let ran = folder.shell("PORT=0 ./bundle/run.sh").code(2);
        assert!(ran.stderr.contains(file) && ran.stderr.contains(because), "{}", ran.stderr);
        assert!(ran.stdout.is_empty(), "{}", ran.stdout);
    };
    let model = folder.read("bundle/model.gguf");
    let mut other = model.clone();
    *other.last_mut().expect("a byte") ^= 1;
    folder.write("bundle/model.gguf", &other);
    refused("model.gguf", "has SHA-256");
    folder.write("bundle/model.gguf", &model[..model.len() - 1]);
    refused("model.gguf", "bytes, the manifest says");
    folder.write("bundle/model.gguf", &model);
    folder.write("bundle/README.md", "");
    refused("README.md", "has 0 bytes");
    std::fs::remove_file(folder.at("bundle/README.md")).expect("removed");
    refused("README.md", "not in the bundle");
    std::fs::remove_file(folder.at("bundle/manifest.json")).expect("removed");
    refused("manifest.json", "no such file");
    // `run` and `bench` look as well.
    let ran = folder.shell("./bundle/edgeft-run run bundle -p a").code(2);
    assert!(ran.stderr.contains("manifest.json"), "{}", ran.stderr);
}

#[test]
fn a_folder_and_a_run_are_quantized_to_what_suits_the_target() {
    if !runner("a_folder_and_a_run_are_quantized_to_what_suits_the_target") {
        return;
    }
    let folder = Folder::new();
    Tiny::llama().write(&folder, "base");
    let suits = folder.edgeft(&format!("package base --target {TARGET} --out one --json")).ok().json();
    let profile = folder.edgeft(&format!("targets {TARGET} --json")).ok().json();
    assert_eq!(suits["model"]["type"], profile["model"]["type"]);
    let line = "package base --target this --type f16 --ctx 64 --name 'Tiny v2' --out two --json";
    let chosen = folder.edgeft(line).ok().json();
    assert_eq!((&chosen["model"]["type"], &chosen["model"]["name"]), (&"f16".into(), &"Tiny v2".into()));
    assert_eq!(chosen["model"]["ctx"], 64);
    assert!(folder.at("two/edgeft-tiny-v2.service").is_file(), "{:?}", folder.names("two"));
    folder.write("d.jsonl", data::chats(20));
    folder.edgeft("tune --model base --data d.jsonl --out RUN --steps 2 --rank 2").ok();
    let tuned = folder.edgeft(&format!("package RUN --target {TARGET} --out three --json")).ok().json();
    assert_eq!((&tuned["model"]["type"], &tuned["model"]["name"]), (&suits["model"]["type"], &"RUN".into()));
    assert!(folder.read("three/model.gguf") != folder.read("one/model.gguf"), "the adapter is folded in");
    // The same inputs, the same bytes.
    folder.edgeft(&format!("package base --target {TARGET} --out again --name base")).ok();
    for name in folder.names("one") {
        assert!(folder.read(&format!("one/{name}")) == folder.read(&format!("again/{name}")), "{name} differs");
    }
}

#[test]
fn what_cannot_be_packaged_is_refused_and_leaves_nothing() {
    let folder = Folder::new();
    Tiny::llama().write(&folder, "base");
    folder.edgeft("quantize base --type q8_0 --out tiny.gguf").ok();
    folder.write("there/file", "");
    folder.write("script", "#!/bin/sh\n");
    let other = if cfg!(target_arch = "aarch64") { "x86-server" } else { "raspberry-pi-5" };
    let refuses = |line: &str, words: &[&str]| {
        let before = folder.names("");
        let ran = folder.edgeft(line).code(2);
        for word in words {
            assert!(ran.stderr.contains(word), "edgeft {line}\n  does not say `{word}`:\n{}", ran.stderr);
        }
        assert_eq!(folder.names(""), before, "edgeft {line} left something");
    };
    refuses("package tiny.gguf --target toaster --out b", &["no target `toaster`", "raspberry-pi-5", "this"]);
    refuses("package missing.gguf --target this --out b", &["missing.gguf", "no such file"]);
    refuses(&format!("package tiny.gguf --target {TARGET} --out there"), &["there exists", "--force"]);
    refuses("package tiny.gguf --target browser-webgpu --out b", &["browser-webgpu", "no bundle", "x86-server"]);
    refuses(&format!("package tiny.gguf --target {TARGET} --type q4_0 --out b"), &["--type", "tiny.gguf", "as it is"]);
    refuses(&format!("package tiny.gguf --target {TARGET} --ctx 999 --out b"), &["--ctx 999", "128 positions"]);
    refuses(&format!("package tiny.gguf --target {TARGET} --name 'a;b' --out b"), &["--name `a;b`", "letters"]);
    let build = "cargo build --release -p edgeft-runtime --features server --target";
    refuses(&format!("package tiny.gguf --target {other} --out b"), &[other, build, "--runner"]);
    refuses(
        &format!("package tiny.gguf --target {TARGET} --runner script --out b"),
        &["script", "no edgeft-run that serves"],
    );
    refuses(&format!("package tiny.gguf --target {TARGET} --runner none --out b"), &["none", "no such file"]);
    if runner("a runner for another machine") {
        let here = Path::new(env!("CARGO_BIN_EXE_edgeft")).with_file_name("edgeft-run");
        let line = format!("package tiny.gguf --target {other} --runner {} --out b", here.display());
        refuses(&line, &["ELF machine", other]);
    }
}

/// The document of this kind in a file of several.
fn document<'a>(documents: &'a [Value], kind: &str) -> &'a Value {
    documents.iter().find(|d| d["kind"] == kind).unwrap_or_else(|| panic!("no {kind}"))
}

#[test]
fn the_manifests_of_kubernetes_agree_with_each_other_and_with_the_plan() {
    if !runner("the_manifests_of_kubernetes_agree_with_each_other_and_with_the_plan") {
        return;
    }
    let folder = Folder::new();
    let json = packaged(&folder);
    let text = String::from_utf8(folder.read("bundle/kubernetes.yaml")).expect("UTF-8");
    let documents = yaml::documents(&text);
    assert_eq!(documents.len(), 2);
    let (deployment, service) = (document(&documents, "Deployment"), document(&documents, "Service"));
    let labels = &deployment["spec"]["template"]["metadata"]["labels"];
    let selector = &service["spec"]["selector"]["app.kubernetes.io/name"];
    assert_eq!(selector, &labels["app.kubernetes.io/name"]);
    assert_eq!(selector, &deployment["spec"]["selector"]["matchLabels"]["app.kubernetes.io/name"]);
    assert_eq!(selector, "edgeft-tiny");
    let container = &deployment["spec"]["template"]["spec"]["containers"][0];
    let port = &container["ports"][0];
    assert_eq!(port["name"], service["spec"]["ports"][0]["targetPort"]);
    assert_eq!(container["args"][3], port["containerPort"].to_string());
    for (probe, path) in [("startupProbe", "/readyz"), ("readinessProbe", "/readyz"), ("livenessProbe", "/healthz")] {
        assert_eq!(container[probe]["httpGet"]["path"], path, "{probe}");
        assert_eq!(container[probe]["httpGet"]["port"], port["name"], "{probe}");
    }
    let memory = |which: &str| -> u64 {
        let text = container["resources"][which]["memory"].as_str().expect("a size");
        text.strip_suffix("Mi").expect("in Mi").parse().expect("a number")
    };
    let planned = json["predicted"]["bytes_needed"].as_u64().expect("a number").div_ceil(1 << 20);
    assert_eq!(memory("requests"), planned);
    assert!(memory("limits") > planned, "a limit at the plan kills at the first byte over it");
    let security = &container["securityContext"];
    assert_eq!(security["readOnlyRootFilesystem"], true);
    assert_eq!(security["allowPrivilegeEscalation"], false);
    assert_eq!(deployment["spec"]["template"]["spec"]["securityContext"]["runAsNonRoot"], true);
}

#[test]
fn the_image_holds_every_file_of_the_manifest_and_the_readme_says_predicted() {
    if !runner("the_image_holds_every_file_of_the_manifest_and_the_readme_says_predicted") {
        return;
    }
    let folder = Folder::new();
    let json = packaged(&folder);
    let text = |name: &str| String::from_utf8(folder.read(&format!("bundle/{name}"))).expect("UTF-8");
    let dockerfile = text("Dockerfile");
    let copied = dockerfile.lines().find(|l| l.starts_with("COPY ")).expect("COPY");
    let copied: Vec<&str> = copied.split_whitespace().skip(1).collect();
    let mut files: Vec<&str> =
        json["files"].as_array().expect("files").iter().map(|f| f["path"].as_str().expect("a path")).collect();
    files.push("manifest.json");
    for file in &files {
        assert!(copied.contains(file), "{file} is not copied, and the bundle would be refused in the container");
    }
    assert_eq!(copied.len(), files.len() + 1, "{copied:?}");
    let user = dockerfile.lines().find_map(|l| l.strip_prefix("USER ")).expect("USER");
    assert!(!user.starts_with('0') && !user.starts_with("root"), "{user}");
    assert!(dockerfile.contains("HEALTHCHECK") && dockerfile.contains("\"health\""));
    for name in folder.names("bundle").iter().filter(|n| !n.ends_with(".gguf") && *n != "edgeft-run") {
        assert!(!text(name).contains("{{"), "a brace was left in {name}");
    }
    let readme = text("README.md");
    assert!(
        readme.contains("Predicted, not measured") && readme.contains("curl http://127.0.0.1:8080/v1/"),
        "{readme}"
    );
}

#[cfg(target_os = "linux")]
#[test]
fn systemd_finds_nothing_wrong_with_the_unit() {
    const TEST: &str = "systemd_finds_nothing_wrong_with_the_unit";
    let there = Command::new("systemd-analyze").arg("--version").output().is_ok_and(|o| o.status.success());
    let found = there.then_some(()).ok_or_else(|| "no systemd-analyze here".to_owned());
    if !runner(TEST) || !can_use("systemd", TEST, found) {
        return;
    }
    let folder = Folder::new();
    packaged(&folder);
    // The unit names the place that it is made for; here it lies elsewhere.
    let unit = String::from_utf8(folder.read("bundle/edgeft-tiny.service")).expect("UTF-8");
    let here = folder.at("bundle").display().to_string();
    assert!(unit.contains("/opt/edgeft/tiny/edgeft-run serve /opt/edgeft/tiny "), "{unit}");
    folder.write("edgeft-tiny.service", unit.replace("/opt/edgeft/tiny", &here));
    let ran = folder.shell("systemd-analyze verify --man=no --recursive-errors=no ./edgeft-tiny.service");
    assert!(ran.code == 0 && ran.stderr.is_empty(), "{ran:#?}");
}
