//! As much of an HTTP client as a load generator needs: one streamed completion a connection, each token with its time.

use anyhow::{Context, bail};
use serde_json::Value;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

/// How long a connection may take, and how long a server may say nothing.
const CONNECT: Duration = Duration::from_secs(5);
const SILENCE: Duration = Duration::from_secs(120);

/// Where a server is: `http://HOST[:PORT][/BASE]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    host: String,
    port: u16,
    base: String,
}

impl Place {
    /// Reads a URL. Its path may end in `/v1`, as clients of OpenAI write it.
    pub fn parse(url: &str) -> anyhow::Result<Self> {
        let Some(rest) = url.strip_prefix("http://") else {
            crate::bad_input!("--server {url}: give http://HOST:PORT; TLS would be measured along with the server");
        };
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => (host, port.parse().ok()),
            _ => (authority, Some(80)),
        };
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let Some(port) = port.filter(|_| !host.is_empty()) else {
            crate::bad_input!("--server {url}: `{authority}` is not HOST:PORT");
        };
        let path = path.trim_end_matches('/');
        let base = path.strip_suffix("v1").unwrap_or(path).trim_end_matches('/');
        let base = if base.is_empty() { String::new() } else { format!("/{base}") };
        Ok(Self { host: host.to_owned(), port, base })
    }

    fn connect(&self) -> anyhow::Result<TcpStream> {
        let at = || format!("cannot connect to {}:{}", self.host, self.port);
        let addr = (self.host.as_str(), self.port).to_socket_addrs().with_context(at)?.next().with_context(at)?;
        let socket = TcpStream::connect_timeout(&addr, CONNECT).with_context(at)?;
        socket.set_read_timeout(Some(SILENCE))?;
        socket.set_nodelay(true)?;
        Ok(socket)
    }

    fn send(&self, method: &str, path: &str, body: &str) -> anyhow::Result<Box<dyn BufRead>> {
        let mut socket = self.connect()?;
        let Self { host, port, base } = self;
        let length = body.len();
        write!(
            socket,
            "{method} {base}{path} HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\n\
             Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
        )?;
        let mut answer = BufReader::new(socket);
        let status = line(&mut answer)?;
        let mut chunked = false;
        loop {
            let header = line(&mut answer)?.to_ascii_lowercase();
            if header.is_empty() {
                break;
            }
            chunked |= header.starts_with("transfer-encoding:") && header.contains("chunked");
        }
        let mut body: Box<dyn BufRead> = match chunked {
            true => Box::new(BufReader::new(Chunked { inner: answer, left: 0, over: false })),
            false => Box::new(answer),
        };
        if status.split(' ').nth(1) != Some("200") {
            let mut why = String::new();
            let _ = body.as_mut().take(4096).read_to_string(&mut why); // what came of it
            let why: Value = serde_json::from_str(&why).unwrap_or(Value::String(why));
            let message = why["error"]["message"].as_str().or(why.as_str()).unwrap_or_default();
            bail!("{status}: {message}");
        }
        Ok(body)
    }

    /// The name of the first model that is served.
    pub fn model(&self) -> anyhow::Result<String> {
        let mut text = String::new();
        self.send("GET", "/v1/models", "")?.take(1 << 20).read_to_string(&mut text)?;
        let list: Value = serde_json::from_str(&text).context("/v1/models is not JSON")?;
        Ok(list["data"][0]["id"].as_str().context("/v1/models names no model")?.to_owned())
    }

    /// Streams one completion. `body` asks for a stream with its usage.
    pub fn complete(&self, body: &Value) -> anyhow::Result<Completed> {
        let start = Instant::now();
        let mut answer = self.send("POST", "/v1/completions", &body.to_string())?;
        let mut done =
            Completed { start, tokens: Vec::new(), ended: false, prompt_tokens: None, completion_tokens: None };
        loop {
            let line = line(&mut answer)?;
            let Some(data) = line.strip_prefix("data:").map(str::trim) else { continue };
            if data == "[DONE]" {
                break;
            }
            let chunk: Value = serde_json::from_str(data).with_context(|| format!("not JSON: {data}"))?;
            if let Some(message) = chunk["error"]["message"].as_str() {
                bail!("{message}");
            }
            if chunk["choices"][0]["text"].as_str().is_some_and(|text| !text.is_empty()) {
                done.tokens.push(Instant::now());
            }
            done.ended |= chunk["choices"][0]["finish_reason"].is_string();
            let usage = |name: &str| chunk["usage"][name].as_u64().map(|n| n as usize);
            done.prompt_tokens = usage("prompt_tokens").or(done.prompt_tokens);
            done.completion_tokens = usage("completion_tokens").or(done.completion_tokens);
        }
        Ok(done)
    }
}

/// A completion.
pub struct Completed {
    /// When it was asked for.
    pub start: Instant,
    /// When each piece of text came.
    pub tokens: Vec<Instant>,
    /// Whether the server said why it ended.
    pub ended: bool,
    /// As the server counts.
    pub prompt_tokens: Option<usize>,
    /// As the server counts; there may be fewer pieces of text.
    pub completion_tokens: Option<usize>,
}

/// A line without its end; an error where there is none.
fn line(from: &mut impl BufRead) -> anyhow::Result<String> {
    let mut line = Vec::new();
    if from.read_until(b'\n', &mut line)? == 0 {
        bail!("the server closed the connection before its answer was whole");
    }
    Ok(String::from_utf8_lossy(&line).trim_end().to_owned())
}

/// A body in chunks (RFC 9112, section 7.1).
struct Chunked<R> {
    inner: R,
    /// Bytes of the chunk that are not read yet.
    left: usize,
    over: bool,
}

impl<R: BufRead> Read for Chunked<R> {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        if self.left == 0 && !self.over {
            let mut size = String::new();
            self.inner.read_line(&mut size)?;
            let digits = size.trim().split(';').next().unwrap_or_default();
            let wrong = || std::io::Error::new(std::io::ErrorKind::InvalidData, format!("no chunk size: `{digits}`"));
            self.left = usize::from_str_radix(digits, 16).map_err(|_| wrong())?;
            self.over = self.left == 0;
        }
        if self.over {
            return Ok(0);
        }
        let most = out.len().min(self.left);
        let n = self.inner.read(&mut out[..most])?;
        self.left -= n;
        if n == 0 && most > 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        if self.left == 0 {
            self.inner.read_until(b'\n', &mut Vec::new())?;
        }
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_read_as_they_are_written() {
        let place = |url: &str| Place::parse(url).map(|p| (p.host, p.port, p.base)).map_err(|e| e.to_string());
        let want = |host: &str, port, base: &str| Ok((host.to_owned(), port, base.to_owned()));
        assert_eq!(place("http://127.0.0.1:8080"), want("127.0.0.1", 8080, ""));
        assert_eq!(place("http://localhost/v1/"), want("localhost", 80, ""));
        assert_eq!(place("http://[::1]:90/models/a/v1"), want("::1", 90, "/models/a"));
        assert!(place("https://example.org").unwrap_err().contains("http://HOST:PORT"));
        assert!(place("http://:80").unwrap_err().contains("HOST:PORT"));
        assert!(place("http://a:b").unwrap_err().contains("`a:b`"));
    }

    #[test]
    fn chunks_are_joined_and_a_cut_is_an_error() {
        let read = |bytes: &str| {
            let mut out = String::new();
            Chunked { inner: bytes.as_bytes(), left: 0, over: false }.read_to_string(&mut out).map(|_| out)
        };
        assert_eq!(read("3\r\nabc\r\nA;x=1\r\n0123456789\r\n0\r\n\r\n").unwrap(), "abc0123456789");
        assert!(read("5\r\nabc").is_err());
        assert!(read("x\r\nabc").is_err());
    }
}
