//! `gguf-rs-check FILE...`: one line a file; exit code 1 when the readers differ on any, 2 without a file.

use std::{path::Path, process::ExitCode};

fn main() -> ExitCode {
    let files: Vec<String> = std::env::args().skip(1).collect();
    if files.is_empty() {
        eprintln!("usage: gguf-rs-check FILE...");
        return ExitCode::from(2);
    }
    let mut code = ExitCode::SUCCESS;
    for file in files {
        match gguf_rs_check::compare(Path::new(&file)) {
            Ok(a) => {
                println!("{file}: both readers agree on {} keys and {} tensors in {} bytes", a.keys, a.tensors, a.bytes)
            }
            Err(e) => {
                println!("{file}: {e}");
                code = ExitCode::FAILURE;
            }
        }
    }
    code
}
