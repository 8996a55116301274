//! `edgeft serve` beside another server of OpenAI's API: the same GGUF file, the same threads, the same clients, in turns.
//! Ratios; the last line is JSON.
//!
//! ```text
//! cargo bench --bench serve -- model.gguf                                                      edgeft alone
//! cargo bench --bench serve -- model.gguf --peer 'python3 benches/serve_llama_cpp.py'          beside llama.cpp's server
//! cargo bench --bench serve -- model.gguf --peer '...' --concurrency 4 --long 1500             with a long prompt in the mix
//! ```
//!
//! The peer is a command that takes `MODEL --threads --parallel --ctx`, prints its address and serves until its input ends.
//! Clients are those of `edgeft bench --server`. With `--long N` one more client asks about N words again and again; it is not
//! measured, the others' first tokens are.

mod beside;

use anyhow::{Context, bail};
use beside::{last_line, middle, number, peer};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

struct Args {
    model: String,
    peer: Option<String>,
    concurrency: Vec<usize>,
    rounds: usize,
    seconds: usize,
    threads: usize,
    prompt: usize,
    generate: usize,
    ctx: usize,
    long: usize,
}

/// A server that ends with its bench.
struct Server {
    child: Child,
    /// `http://127.0.0.1:PORT`
    url: String,
}

fn main() -> anyhow::Result<()> {
    let args = args()?;
    let ours = Server::start(&args, Command::new(env!("CARGO_BIN_EXE_edgeft")).arg("serve"), "--port 0")?;
    let theirs = args.peer.as_ref().map(|words| Server::start(&args, &mut peer(words)?, "")).transpose()?;
    let mut rows = Vec::new();
    for &clients in &args.concurrency {
        let (mut own, mut other) = (Vec::new(), Vec::new());
        for _ in 0..args.rounds {
            own.push(load(&args, &ours, clients)?);
            if let Some(theirs) = &theirs {
                other.push(load(&args, theirs, clients)?);
            }
        }
        let (own, other) = (summary(&own)?, theirs.is_some().then(|| summary(&other)).transpose()?);
        println!("{clients} at once: edgeft {own}");
        let mut row = json!({"concurrency": clients, "edgeft": own});
        if let Some(other) = other {
            let ratio = |key: &str| Some(number(&own, key).ok()? / number(&other, key).ok()?);
            let ratios = json!({"tokens_per_s": ratio("tokens_per_s"), "ttft_p50_ms": ratio("ttft_p50_ms"),
                "ttft_p99_ms": ratio("ttft_p99_ms"), "itl_p50_ms": ratio("itl_p50_ms")});
            println!("            peer   {other}\n            edgeft / peer {ratios}");
            row["peer"] = other;
            row["ratio"] = ratios;
        }
        rows.push(row);
    }
    println!(
        "{}",
        json!({"model": args.model, "threads": args.threads, "prompt": args.prompt, "generate": args.generate,
        "long": args.long, "rounds": args.rounds, "seconds": args.seconds, "rows": rows})
    );
    Ok(())
}

fn args() -> anyhow::Result<Args> {
    let mut words = std::env::args().skip(1).filter(|a| a != "--bench");
    let mut args = Args {
        model: words.next().context("give a GGUF file first")?,
        peer: None,
        concurrency: vec![1, 4, 16],
        rounds: 3,
        seconds: 10,
        threads: std::thread::available_parallelism().map_or(1, usize::from),
        prompt: 64,
        generate: 64,
        ctx: 2048,
        long: 0,
    };
    while let Some(flag) = words.next() {
        let value = words.next().with_context(|| format!("{flag} needs a value"))?;
        let number = || value.parse::<usize>().with_context(|| format!("{flag} {value}: not a number"));
        match flag.as_str() {
            "--peer" => args.peer = Some(value.clone()),
            "--concurrency" => {
                let numbers = value.split(',').map(str::parse).collect::<Result<_, _>>();
                args.concurrency = numbers.with_context(|| format!("--concurrency {value}: not numbers"))?;
            }
            "--rounds" => args.rounds = number()?,
            "--seconds" => args.seconds = number()?,
            "--threads" => args.threads = number()?,
            "--prompt" => args.prompt = number()?,
            "--generate" => args.generate = number()?,
            "--ctx" => args.ctx = number()?,
            "--long" => args.long = number()?,
            _ => bail!(
                "{flag}: known are --peer --concurrency --rounds --seconds --threads --prompt --generate --ctx --long"
            ),
        }
    }
    Ok(args)
}

impl Server {
    fn start(args: &Args, command: &mut Command, more: &str) -> anyhow::Result<Self> {
        let most = args.concurrency.iter().max().context("--concurrency is empty")? + usize::from(args.long > 0);
        let mut child = command
            .arg(&args.model)
            .args(["--threads", &args.threads.to_string(), "--parallel", &most.to_string()])
            .args(["--ctx", &args.ctx.to_string()])
            .args(more.split_whitespace())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let out = child.stdout.take().context("a piped stdout")?;
        let mut server = Self { child, url: String::new() };
        let mut line = String::new();
        BufReader::new(out).read_line(&mut line)?;
        let word = line.split_whitespace().find(|w| w.starts_with("http://"));
        server.url = word.with_context(|| format!("no address in {line:?}"))?.trim_end_matches('/').to_owned();
        Ok(server)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // One that has ended already needs no end.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One turn: clients at once, and the client with long prompts beside them.
fn load(args: &Args, server: &Server, clients: usize) -> anyhow::Result<Value> {
    let over = AtomicBool::new(false);
    let ran = std::thread::scope(|scope| {
        let long = (args.long > 0).then(|| scope.spawn(|| ask_long(args, server, &over)));
        let ran = Command::new(env!("CARGO_BIN_EXE_edgeft"))
            .args(["bench", "--json", "--server", &server.url, "--concurrency", &clients.to_string()])
            .args(["--seconds", &args.seconds.to_string(), "--prompt", &args.prompt.to_string()])
            .args(["--generate", &args.generate.to_string()])
            .output();
        over.store(true, Ordering::Relaxed);
        match long.map(std::thread::ScopedJoinHandle::join) {
            Some(Ok(Err(e))) => Err(e.context("the client with long prompts")),
            Some(Err(_)) => bail!("the client with long prompts panicked"),
            _ => Ok(ran?),
        }
    })?;
    let line = last_line(&ran, "edgeft bench")?;
    let row = line["rows"][0].clone();
    if row["failed"] != 0 {
        bail!("{} of {} requests failed at {}: {}", row["failed"], row["requests"], server.url, row["why"]);
    }
    Ok(row)
}

/// Long prompts, no two alike, until it is over.
fn ask_long(args: &Args, server: &Server, over: &AtomicBool) -> anyhow::Result<()> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let place = server.url.trim_start_matches("http://");
    while !over.load(Ordering::Relaxed) {
        let n = COUNT.fetch_add(1, Ordering::Relaxed);
        let prompt: Vec<String> = (0..args.long as u64).map(|i| ((n * 31 + i * 7) % 10).to_string()).collect();
        let body = json!({"prompt": prompt.join(" "), "max_tokens": 8, "temperature": 0}).to_string();
        let mut stream = TcpStream::connect(place)?;
        stream.set_read_timeout(Some(Duration::from_secs(120)))?;
        write!(
            stream,
            "POST /v1/completions HTTP/1.1\r\nHost: {place}\r\nContent-Type: application/json\r\nConnection: close\r\n\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        )?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        if !answer.starts_with("HTTP/1.1 200") {
            bail!("{}", answer.lines().next().unwrap_or("no answer"));
        }
    }
    Ok(())
}

/// Medians over the turns.
fn summary(turns: &[Value]) -> anyhow::Result<Value> {
    let of = |path: &str| -> anyhow::Result<f64> {
        let all = turns.iter().map(|t| t.pointer(path).and_then(Value::as_f64)).collect::<Option<Vec<f64>>>();
        all.and_then(|all| middle(&all, |x| *x)).with_context(|| format!("no {path} in a turn; give it more --seconds"))
    };
    Ok(json!({"tokens_per_s": of("/tokens_per_s")?, "ttft_p50_ms": of("/ttft_ms/p50")?,
        "ttft_p99_ms": of("/ttft_ms/p99").ok(), "itl_p50_ms": of("/itl_ms/p50")?}))
}
