//! What every test here needs: a folder of its own, the real binary run in it, and models small enough to make on the spot.

pub mod data;
pub mod fixtures;
#[cfg(feature = "hub")]
pub mod hub;
pub mod tensors;
pub mod tiny;
pub mod tokenizers;
pub mod yaml;

use serde_json::Value;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// A folder that is gone after the test. Commands run in it, so that they stand in tests as a person would type them.
pub struct Folder(tempfile::TempDir);

impl Folder {
    /// An empty folder.
    pub fn new() -> Self {
        Self(tempfile::tempdir().expect("a temporary folder"))
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// The path of something in it.
    pub fn at(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    /// Writes a file, and the folders above it.
    pub fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        let path = self.at(name);
        std::fs::create_dir_all(path.parent().expect("a parent")).expect("a folder");
        std::fs::write(path, bytes).expect("a file");
    }

    /// The bytes of a file.
    #[track_caller]
    pub fn read(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.at(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
    }

    /// Names in the folder, or in one inside it, sorted; hidden ones too.
    pub fn names(&self, inside: &str) -> Vec<String> {
        let entries = std::fs::read_dir(self.at(inside)).expect("a folder");
        let mut names: Vec<String> =
            entries.map(|e| e.expect("an entry").file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    /// Runs `edgeft` with these words in this folder; words in '' may hold spaces.
    #[track_caller]
    pub fn edgeft(&self, line: &str) -> Ran {
        let output = self.command(line).output().expect("the binary starts");
        Ran::new(line, output)
    }

    /// The same, not yet started.
    pub fn command(&self, line: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_edgeft"));
        command.args(words(line)).current_dir(self.path()).stdin(Stdio::null());
        command
    }

    /// Runs a line of `sh` in this folder; `$EDGEFT` is the binary.
    #[cfg(unix)]
    pub fn shell(&self, line: &str) -> Ran {
        let mut command = Command::new("sh");
        command.args(["-c", line]).env("EDGEFT", env!("CARGO_BIN_EXE_edgeft")).current_dir(self.path());
        Ran::new(line, command.stdin(Stdio::null()).output().expect("sh starts"))
    }
}

fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    for (i, part) in line.split('\'').enumerate() {
        match i % 2 {
            0 => words.extend(part.split_whitespace().map(str::to_owned)),
            _ => words.push(part.to_owned()),
        }
    }
    words
}

/// What a command left.
#[derive(Debug)]
pub struct Ran {
    /// The command, as typed.
    pub line: String,
    /// Exit code; -1 when a signal ended it.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Ran {
    /// Of an output; a panic is never an answer.
    #[track_caller]
    pub fn new(line: &str, output: Output) -> Self {
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
        let code = output.status.code().unwrap_or(-1);
        let ran = Self { line: line.to_owned(), code, stdout: text(output.stdout), stderr: text(output.stderr) };
        assert!(!ran.stderr.contains("panicked at"), "{ran:#?}");
        ran
    }

    /// Must have ended with this code.
    #[track_caller]
    pub fn code(self, code: i32) -> Self {
        assert_eq!(self.code, code, "edgeft {}\n{}{}", self.line, self.stdout, self.stderr);
        self
    }

    /// Must have ended well.
    #[track_caller]
    pub fn ok(self) -> Self {
        self.code(0)
    }

    /// The one JSON object that `--json` puts on the last line of stdout.
    #[track_caller]
    pub fn json(self) -> Value {
        let lines: Vec<&str> = self.stdout.lines().collect();
        let objects = lines.iter().filter(|l| l.starts_with('{')).count();
        assert_eq!(
            objects, 1,
            "one JSON object on stdout of `edgeft {}`:\n{}\n{}",
            self.line, self.stdout, self.stderr
        );
        let last = lines.last().expect("a line");
        serde_json::from_str(last).unwrap_or_else(|e| panic!("the last line of `edgeft {}`: {e}: {last}", self.line))
    }
}

/// Whether a test that needs a part of the machine can run: `found` says what is missing. A test that cannot says so by name;
/// it fails where EDGEFT_REQUIRE (a list: `gpu,ort`) names the part.
#[track_caller]
pub fn can_use(part: &str, test: &str, found: Result<(), String>) -> bool {
    let Err(why) = found else { return true };
    let required = std::env::var("EDGEFT_REQUIRE").unwrap_or_default();
    assert!(!required.split(',').any(|r| r == part), "{test} needs {part}: {why}");
    // Not by `eprintln!`, which tests that pass swallow.
    let _ = writeln!(std::io::stderr(), "skipped {test}: {why}");
    false
}

/// Whether a test that needs ONNX Runtime can run; it is looked for as the binary does.
#[track_caller]
pub fn ort(test: &str) -> bool {
    // What was tried follows from the third line on.
    let why = |e: anyhow::Error| e.to_string().lines().take(2).map(str::trim).collect::<Vec<_>>().join(" ");
    let found = edgeft::commands::ort::OrtArgs::default().load().map_err(why);
    can_use("ort", test, found)
}

/// Whether a test that needs `edgeft-run` can run: the workspace's tests build it, those of `edgeft` alone do not.
#[track_caller]
pub fn runner(test: &str) -> bool {
    let beside = Path::new(env!("CARGO_BIN_EXE_edgeft")).with_file_name("edgeft-run");
    let serves = Command::new(&beside).arg("--version").output().is_ok_and(|o| {
        String::from_utf8_lossy(&o.stdout).starts_with(concat!(
            "edgeft-run ",
            env!("CARGO_PKG_VERSION"),
            "\nedgeft-run serves"
        ))
    });
    let why = || "no edgeft-run that serves beside edgeft; `cargo test --workspace` builds it".to_owned();
    can_use("edgeft-run", test, serves.then_some(()).ok_or_else(why))
}

/// Whether a test that needs a GPU, be it one in software, can run.
#[track_caller]
pub fn gpu(test: &str) -> bool {
    #[cfg(feature = "gpu")]
    let found = edgeft_runtime::engine::gpu::describe().map(|_| ()).map_err(|e| e.to_string());
    #[cfg(not(feature = "gpu"))]
    let found = Err("built without the feature `gpu`".to_owned());
    can_use("gpu", test, found)
}

/// The JSON object has these fields (and may have more).
#[track_caller]
pub fn has_fields(json: &Value, fields: &str) {
    for field in fields.split_whitespace() {
        let place = format!("/{}", field.replace('.', "/"));
        assert!(json.pointer(&place).is_some(), "no `{field}` in {json}");
    }
}

/// |a - b| ≤ share of the larger.
#[track_caller]
pub fn close(a: f64, b: f64, share: f64, what: &str) {
    assert!((a - b).abs() <= share * a.abs().max(b.abs()), "{what}: {a} against {b}");
}

/// Whether a test that needs a program (`cc`, `python3`) can run.
#[track_caller]
pub fn program(part: &str, test: &str, name: &str) -> bool {
    let started = Command::new(name).arg("--version").stdin(Stdio::null()).output();
    can_use(part, test, started.map(|_| ()).map_err(|e| format!("{name} cannot be started: {e}")))
}

#[test]
fn quoted_words_keep_their_spaces() {
    assert_eq!(words("run m.gguf -p 'two words' -n 4"), ["run", "m.gguf", "-p", "two words", "-n", "4"]);
}
