//! `edgeft-run serve` and `edgeft-run health`: a model or a bundle behind OpenAI's API, and the question whether it answers.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use edgeft_runtime::format::bundle::Bundle;
use edgeft_runtime::server::setup::{address, cannot_listen, read_key};
use edgeft_runtime::server::{Config, Limits, Loaded, Server};
use edgeft_runtime::{Error, Kind, Model, Result, SessionOptions};
use serde_json::json;

use super::{Arguments, model_file, print};

/// Where it listens unless told.
const PORT: u16 = 8080;
/// How long `health` waits for a connection, and for an answer.
const PATIENCE: Duration = Duration::from_secs(3);

/// Serves until a signal.
pub fn serve(a: &Arguments) -> Result<()> {
    let addr = address(a.text("--host").unwrap_or("127.0.0.1"), a.number("--port")?.unwrap_or(PORT))?;
    let api_key = a.text("--api-key-file").map(|file| read_key(Path::new(file))).transpose()?;
    if api_key.is_none() && !addr.ip().is_loopback() {
        eprintln!("warning: whoever reaches {addr} may use this server; give --api-key-file, or leave out --host");
    }
    let place = Path::new(&a.model);
    let bundle = if place.is_dir() { Some(Bundle::open(place)?) } else { None };
    let stem = || place.file_stem().map_or_else(|| a.model.clone(), |s| s.to_string_lossy().into_owned());
    let name = bundle.as_ref().map_or_else(stem, |b| b.name.clone());
    let planned = bundle.map(|b| b.ctx);
    let options = SessionOptions {
        ctx: a.number("--ctx")?.or(planned),
        threads: Some(a.threads()?),
        ..SessionOptions::default()
    };
    let config = Config { addr, model: name.clone(), api_key, limits: Limits::default() };
    // The socket is bound first, so that /healthz answers and /readyz says no while hashes are checked and weights load.
    let given = a.model.clone();
    let server = Server::start(config, move || Loaded::new(&Model::open(&model_file(&given)?)?, &options));
    let server = server.map_err(|e| Error::new(e.kind(), "", cannot_listen(&e)))?;
    let (stopper, stopping) = (server.stopper(), AtomicBool::new(false));
    let handler = move || {
        if stopping.swap(true, Ordering::SeqCst) {
            std::process::exit(130); // a second signal does not wait
        }
        eprintln!("stopping; what runs may end");
        stopper.stop();
    };
    ctrlc::set_handler(handler).map_err(|e| Error::new(Kind::Io, "signals", e.to_string()))?;
    server.ready()?;
    let url = format!("http://{}", server.addr());
    print(a, &json!({"url": url, "model": name}), &format!("serving {name} at {url}"));
    server.wait();
    Ok(())
}

/// Asks a server whether it lives: for health checks where there is no curl.
pub fn health(a: &Arguments) -> Result<()> {
    let addr = address(a.text("--host").unwrap_or("127.0.0.1"), a.number("--port")?.unwrap_or(PORT))?;
    let place = format!("http://{addr}/healthz");
    let io = |e| Error::io(&place, e);
    let mut stream = TcpStream::connect_timeout(&addr, PATIENCE).map_err(io)?;
    stream.set_read_timeout(Some(PATIENCE)).map_err(io)?;
    stream.set_write_timeout(Some(PATIENCE)).map_err(io)?;
    write!(stream, "GET /healthz HTTP/1.1\r\nHost: {addr}\r\nConnection: close\r\n\r\n").map_err(io)?;
    let mut answer = String::new();
    stream.take(1 << 16).read_to_string(&mut answer).map_err(io)?;
    let status = answer.lines().next().unwrap_or_default();
    if status.split(' ').nth(1) != Some("200") {
        return Err(Error::new(Kind::Io, place, format!("answered `{status}`")));
    }
    print(a, &json!({"status": "ok", "url": place}), "ok");
    Ok(())
}
