//! A hub on loopback: the addresses, headers, redirects and faults of a real one, on two ports. One is the hub, the other
//! the store of large files that it sends on to; what both were asked is kept.

use serde_json::json;
use sha1::Digest;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// The commit of everything here.
pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// What the hub holds, and how it misbehaves.
#[derive(Clone, Default)]
pub struct Content {
    /// Name → bytes; those of 1000 bytes and more are large, and live in the store.
    pub files: BTreeMap<String, Vec<u8>>,
    /// Branches and tags, beside `main` and the commit itself.
    pub revisions: Vec<String>,
    /// Only with this token, if any.
    pub token: Option<String>,
    /// Whether the token's owner has still to accept the terms.
    pub gated: bool,
    /// Names that the listing adds.
    pub listed: Vec<String>,
    /// Size that the listing claims, for files whose real one is another.
    pub claimed: BTreeMap<String, u64>,
    /// Whether the listing leaves sizes and hashes out.
    pub bare: bool,
    /// Whether the files' headers leave the hash out.
    pub hashless: bool,
    /// Whether the store knows ranges.
    pub rangeless: bool,
    /// Faults, each used once, in order.
    pub faults: Vec<Fault>,
}

/// A misbehaviour towards one request for a file (of its end of the name).
#[derive(Clone, Copy, PartialEq)]
pub enum Fault {
    /// The connection ends after so many bytes of the body.
    Cut(&'static str, usize),
    /// Every byte is another.
    Spoil(&'static str),
    /// More bytes than announced.
    Longer(&'static str),
    /// Nothing comes, for two seconds.
    Silent(&'static str),
    /// This status, at the hub or at the store.
    Status(&'static str, u16),
    /// The store answers ranges with another one.
    WrongRange(&'static str),
}

/// A request as it came.
#[derive(Debug, Clone)]
pub struct Asked {
    /// Whether it came to the store.
    pub store: bool,
    /// Method and path.
    pub line: String,
    /// The path, with `%XX` resolved.
    pub path: String,
    /// Value of `Authorization`.
    pub token: Option<String>,
    /// Value of `Range`.
    pub range: Option<String>,
}

/// A hub that listens until the test ends.
pub struct Hub {
    /// `http://127.0.0.1:PORT`.
    pub endpoint: String,
    state: Arc<Mutex<(Content, Vec<Asked>)>>,
}

impl Hub {
    /// Opens both ports.
    pub fn new(content: Content) -> Self {
        let listen = || TcpListener::bind("127.0.0.1:0").expect("a port");
        let (hub, store) = (listen(), listen());
        let of = |l: &TcpListener| format!("http://{}", l.local_addr().expect("an address"));
        let (endpoint, store_at) = (of(&hub), of(&store));
        let state = Arc::new(Mutex::new((content, Vec::new())));
        for (listener, is_store) in [(hub, false), (store, true)] {
            let (state, store_at) = (state.clone(), store_at.clone());
            std::thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    let (state, store_at) = (state.clone(), store_at.clone());
                    std::thread::spawn(move || answer(stream, is_store, &store_at, &state));
                }
            });
        }
        Self { endpoint, state }
    }

    /// Changes what it holds.
    pub fn change(&self, change: impl FnOnce(&mut Content)) {
        change(&mut self.state.lock().expect("no panic").0);
    }

    /// What it was asked since the last time.
    pub fn asked(&self) -> Vec<Asked> {
        std::mem::take(&mut self.state.lock().expect("no panic").1)
    }
}

/// The blob id that git gives to bytes.
pub fn blob_id(bytes: &[u8]) -> String {
    let mut hash = sha1::Sha1::new_with_prefix(format!("blob {}\0", bytes.len()));
    hash.update(bytes);
    hex(&hash.finalize())
}

/// The sha256 of bytes.
pub fn sha256(bytes: &[u8]) -> String {
    hex(&sha2::Sha256::digest(bytes))
}

/// The hash that the hub knows a file by.
pub fn hash(bytes: &[u8]) -> String {
    if is_large(bytes) { sha256(bytes) } else { blob_id(bytes) }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn is_large(bytes: &[u8]) -> bool {
    bytes.len() >= 1000
}

/// Answers one request and closes.
fn answer(stream: TcpStream, store: bool, store_at: &str, state: &Mutex<(Content, Vec<Asked>)>) {
    let Some((line, headers)) = request(&stream) else { return };
    let path = unescape(line.split(' ').nth(1).unwrap_or_default());
    let head_only = line.starts_with("HEAD");
    let (token, range) = (headers.get("authorization").cloned(), headers.get("range").cloned());
    let (content, fault) = {
        let mut state = state.lock().expect("no panic");
        state.1.push(Asked { store, line, path: path.clone(), token: token.clone(), range: range.clone() });
        let content = &mut state.0;
        let fault = content.faults.iter().position(|f| store == f.at_store(content) && f.is_due(&path));
        let fault = fault.map(|i| content.faults.remove(i));
        (content.clone(), fault)
    };
    let out = Out { stream, head_only, fault };
    match fault {
        Some(Fault::Status(_, status)) => return out.body(status, &[("Retry-After", "0".to_owned())], b"no"),
        Some(Fault::Silent(_)) => return std::thread::sleep(Duration::from_secs(2)),
        _ => {}
    }
    match store {
        true => out.file(&content, path.trim_start_matches("/store/"), range.as_deref()),
        false => hub(out, &content, &path, token.as_deref(), range.as_deref(), store_at),
    }
}

impl Fault {
    fn file(&self) -> &'static str {
        match self {
            Self::Cut(f, _)
            | Self::Spoil(f)
            | Self::Longer(f)
            | Self::Silent(f)
            | Self::Status(f, _)
            | Self::WrongRange(f) => f,
        }
    }

    /// A small file is sent from the second address that is asked for it.
    fn is_due(&self, path: &str) -> bool {
        path.ends_with(self.file()) && ["/store/", "/resolve-cache/", "?blobs"].iter().any(|part| path.contains(part))
    }

    /// Whether it is the store that misbehaves: where the file is large.
    fn at_store(&self, content: &Content) -> bool {
        content.files.get(self.file()).is_some_and(|bytes| is_large(bytes))
    }
}

fn request(stream: &TcpStream) -> Option<(String, BTreeMap<String, String>)> {
    let mut lines = BufReader::new(stream).lines();
    let first = lines.next()?.ok()?;
    let mut headers = BTreeMap::new();
    for line in lines {
        let line = line.ok()?;
        let Some((name, value)) = line.split_once(": ") else { break };
        headers.insert(name.to_lowercase(), value.to_owned());
    }
    Some((first, headers))
}

/// `%C3%BC` → `ü`.
fn unescape(path: &str) -> String {
    let (mut bytes, mut rest) = (Vec::new(), path.as_bytes());
    while let [first, tail @ ..] = rest {
        let hex = if *first == b'%' { tail.get(..2).and_then(|h| std::str::from_utf8(h).ok()) } else { None };
        let byte = hex.and_then(|h| u8::from_str_radix(h, 16).ok());
        bytes.push(byte.unwrap_or(*first));
        rest = if byte.is_some() { &tail[2..] } else { tail };
    }
    String::from_utf8(bytes).expect("UTF-8")
}

/// Every byte as `%XX`, which is allowed, and not what edgeft itself would write.
fn escape(name: &str) -> String {
    name.bytes().map(|b| format!("%{b:02x}")).collect()
}

/// The hub: rights, listing, and where a file is.
fn hub(out: Out, content: &Content, path: &str, token: Option<&str>, range: Option<&str>, store_at: &str) {
    if !path.contains("/org/name/") {
        return out.refuse(if token.is_some() { 404 } else { 401 }, "RepoNotFound");
    }
    if let Some(want) = &content.token {
        match token {
            None if content.gated => return out.refuse(401, "GatedRepo"),
            None => return out.refuse(401, "RepoNotFound"),
            Some(t) if t != format!("Bearer {want}") => return out.refuse(401, ""),
            Some(_) if content.gated => return out.refuse(403, "GatedRepo"),
            Some(_) => {}
        }
    }
    if let Some(rest) = path.strip_prefix("/api/models/org/name/revision/") {
        let revision = rest.trim_end_matches("?blobs=true");
        let known = revision == "main" || revision == COMMIT || content.revisions.iter().any(|r| r == revision);
        return if known { out.body(200, &[], &listing(content)) } else { out.refuse(404, "RevisionNotFound") };
    }
    // A small file is found by way of a relative redirect, as the real hub does it.
    if let Some(name) = path.strip_prefix("/api/resolve-cache/models/org/name/") {
        return out.file(content, name, range);
    }
    let named = path.strip_prefix("/org/name/resolve/").and_then(|rest| rest.split_once('/'));
    let Some((_, name)) = named.filter(|(revision, _)| ["main", COMMIT].contains(revision)) else {
        return out.refuse(404, "RevisionNotFound");
    };
    match content.files.get(name) {
        None => out.refuse(404, "EntryNotFound"),
        Some(bytes) if is_large(bytes) => {
            let mut headers =
                vec![("Location", format!("{store_at}/store/{}", escape(name))), ("X-Repo-Commit", COMMIT.to_owned())];
            if !content.hashless {
                headers.push(("X-Linked-ETag", format!("\"{}\"", sha256(bytes))));
                headers.push(("X-Linked-Size", bytes.len().to_string()));
            }
            out.body(302, &headers, b"Found. Redirecting")
        }
        Some(_) => out.body(307, &[("Location", format!("/api/resolve-cache/models/org/name/{}", escape(name)))], b""),
    }
}

fn listing(content: &Content) -> Vec<u8> {
    let one = |(name, bytes): (&String, &Vec<u8>)| {
        let size = content.claimed.get(name).copied().unwrap_or(bytes.len() as u64);
        if content.bare {
            json!({"rfilename": name})
        } else if is_large(bytes) {
            let pointer =
                format!("version https://git-lfs.github.com/spec/v1\noid sha256:{}\nsize {size}\n", sha256(bytes));
            json!({"rfilename": name, "size": size, "blobId": blob_id(pointer.as_bytes()),
                "lfs": {"sha256": sha256(bytes), "size": size, "pointerSize": pointer.len()}})
        } else {
            json!({"rfilename": name, "size": size, "blobId": blob_id(bytes)})
        }
    };
    let mut siblings: Vec<_> = content.files.iter().map(one).collect();
    siblings.extend(content.listed.iter().map(|name| json!({"rfilename": name, "size": 1, "blobId": blob_id(b"x")})));
    json!({"id": "org/name", "sha": COMMIT, "private": false, "siblings": siblings}).to_string().into_bytes()
}

struct Out {
    stream: TcpStream,
    head_only: bool,
    fault: Option<Fault>,
}

impl Out {
    /// A file or a part of it, with the fault that is due.
    fn file(self, content: &Content, name: &str, range: Option<&str>) {
        let Some(bytes) = content.files.get(name) else { return self.refuse(404, "EntryNotFound") };
        let mut bytes = bytes.clone();
        let etag = if content.hashless { "\"abc-1\"".to_owned() } else { format!("\"{}\"", hash(&bytes)) };
        let mut headers = vec![("ETag", etag)];
        let from = range
            .filter(|_| !content.rangeless)
            .map(|r| r.trim_start_matches("bytes=").trim_end_matches('-').parse::<usize>().expect("a range from N on"));
        if let Some(Fault::Spoil(_)) = self.fault {
            bytes.iter_mut().for_each(|b| *b ^= 1);
        }
        if let Some(Fault::Longer(_)) = self.fault {
            bytes.push(b'!');
        }
        match (self.fault, from) {
            (_, Some(from)) if from >= bytes.len() => self.body(416, &[], b""),
            (fault, Some(from)) => {
                let first = if matches!(fault, Some(Fault::WrongRange(_))) { 0 } else { from };
                headers.push(("Content-Range", format!("bytes {first}-{}/{}", bytes.len() - 1, bytes.len())));
                self.body(206, &headers, &bytes[first..]);
            }
            _ => self.body(200, &headers, &bytes),
        }
    }

    fn refuse(self, status: u16, code: &str) {
        self.body(status, &[("X-Error-Code", code.to_owned())], br#"{"error":"no"}"#);
    }

    fn body(mut self, status: u16, headers: &[(&str, String)], body: &[u8]) {
        let mut head = format!("HTTP/1.1 {status} X\r\nConnection: close\r\nContent-Length: {}\r\n", body.len());
        for (name, value) in headers {
            head += &format!("{name}: {value}\r\n");
        }
        head += "\r\n";
        let end = match self.fault {
            Some(Fault::Cut(_, n)) => n.min(body.len()),
            _ => body.len(),
        };
        let body = if self.head_only { &[] } else { &body[..end] };
        let _ = self.stream.write_all(head.as_bytes()).and_then(|()| self.stream.write_all(body)); // a client may leave
    }
}
