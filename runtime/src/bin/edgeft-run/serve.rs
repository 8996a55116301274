//! `edgeft-run serve` and `edgeft-run health`: a model or a bundle behind OpenAI's API, and the question whether it answers.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use edgeft_runtime::format::bundle::Bundle;
use edgeft_runtime::server::memory::{MOST, PARALLEL};
use edgeft_runtime::server::setup::{self, adapters, address, cannot_listen, read_keys, safe};
use edgeft_runtime::server::{Access, Config, Limits, Log, Served, Server, signals};
use edgeft_runtime::{Error, Kind, Model, Result, SessionOptions};
use serde_json::json;

use super::{Arguments, model_file, print, usage};

/// Where it listens unless told.
const PORT: u16 = 8080;
/// How long `health` waits for a connection, and for an answer.
const PATIENCE: Duration = Duration::from_secs(3);

/// Serves until a signal.
pub fn serve(a: &Arguments) -> Result<()> {
    let addr = address(a.text("--host").unwrap_or("127.0.0.1"), a.number("--port")?.unwrap_or(PORT))?;
    let key_file = a.text("--api-key-file").map(PathBuf::from);
    key_file.as_deref().map(read_keys).transpose()?;
    safe(addr, key_file.is_some(), a.text("--insecure-no-auth").is_some())?;
    let slots = |flag: &str| match a.number::<usize>(flag)? {
        Some(n) if !(1..=MOST).contains(&n) => Err(usage(flag, format!("{n} is not from 1 to {MOST}"))),
        n => Ok(n),
    };
    let (parallel, kept) = (slots("--parallel")?, slots("--cache-slots")?);
    let request = match a.number("--deadline")? {
        Some(0) => return Err(usage("--deadline", "is 0; the least is 1")),
        n => n.map_or(Limits::default().request, Duration::from_secs),
    };
    let drain = a.number("--drain")?.map_or(Limits::default().drain, Duration::from_secs);
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
    let adapters = adapters(&a.texts("--adapter"))?;
    let config = Config {
        models: vec![Served { name: name.clone(), adapters: adapters.iter().map(|(name, ..)| name.clone()).collect() }],
        access: Access { key_file, hosts: a.texts("--allow-host"), origins: a.texts("--allow-origin") },
        limits: Limits { drain, request, parallel: parallel.unwrap_or(PARALLEL), ..Limits::default() },
        log: a.text("--log").map(|_| Log::new(|line| eprintln!("{line}"))),
        ..Config::new(addr, name.as_str())
    };
    // The socket is bound first, so that /healthz answers and /readyz says no while hashes are checked and weights load.
    let given = a.model.clone();
    let server = Server::host(config, move || {
        let model = Model::open(&model_file(&given)?)?;
        let (counts, most) = ((parallel, kept), None);
        Ok(vec![setup::host(model, adapters, options, counts, most, false, |line| eprintln!("{line}"))?])
    });
    let server = server.map_err(|e| Error::new(e.kind(), "", cannot_listen(&e)))?;
    signals::watch(server.stopper(), |line| eprintln!("{line}"), || std::process::exit(130))?;
    server.ready()?;
    let url = server.url();
    print(a, &json!({"url": url, "model": name}), &format!("serving {name} at {url}"));
    #[cfg(unix)]
    if let Some(socket) = std::env::var_os("NOTIFY_SOCKET")
        && let Err(e) = setup::notify_ready(&socket)
    {
        eprintln!("the service manager was not told: {e}");
    }
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
