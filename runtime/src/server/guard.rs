//! Who may ask: keys, names of the host, origins of web pages.
//!
//! A page on any site can make its visitor's browser send requests to this machine. A name that was made to resolve to
//! 127.0.0.1 is caught by its `Host`, a page from elsewhere by its `Origin`; both are refused before anything is read.

use super::wire::{ApiError, ApiResult};
use crate::error::Result;
use axum::extract::Request;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use sha2::{Digest, Sha256};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::{PoisonError, RwLock};

/// Who may ask, besides who knows the key.
#[derive(Debug, Clone, Default)]
pub struct Access {
    /// Keys, one a line; clients send one of them. Read at the start and on [`super::Stopper::reload_keys`].
    pub key_file: Option<PathBuf>,
    /// Names in `Host` that are this server's. On a loopback address, `localhost` and plain addresses always are; on
    /// another, an empty list allows every name.
    pub hosts: Vec<String>,
    /// Origins of web pages that may ask, such as `https://example.org`; the server's own page always may.
    pub origins: Vec<String>,
}

/// Hashes of the keys that open the server; none opens it to all.
pub(super) struct Keys(RwLock<Vec<[u8; 32]>>);

impl Keys {
    /// # Errors
    /// As [`super::setup::read_keys`].
    pub fn new(key: Option<&str>, access: &Access) -> Result<Self> {
        let keys = Self(RwLock::new(key.map(|k| hash(k.as_bytes())).into_iter().collect()));
        if access.key_file.is_some() {
            keys.reload(key, access)?;
        }
        Ok(keys)
    }

    /// Reads the file again; when it cannot be read, the keys stay as they were.
    pub fn reload(&self, key: Option<&str>, access: &Access) -> Result<usize> {
        let mut all: Vec<[u8; 32]> = key.map(|k| hash(k.as_bytes())).into_iter().collect();
        if let Some(file) = &access.key_file {
            all.extend(super::setup::read_keys(file)?.iter().map(|k| hash(k.as_bytes())));
        }
        let n = all.len();
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = all;
        Ok(n)
    }

    pub fn needed(&self) -> bool {
        !self.0.read().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    /// Whose request it is: 0 where no keys are asked for.
    pub fn owner(&self, headers: &HeaderMap) -> ApiResult<u64> {
        let keys = self.0.read().unwrap_or_else(PoisonError::into_inner);
        if keys.is_empty() {
            return Ok(0);
        }
        let given = headers.get(header::AUTHORIZATION).map(HeaderValue::as_bytes);
        let given =
            given.and_then(|v| v.split_at_checked(7)).filter(|(scheme, _)| scheme.eq_ignore_ascii_case(b"bearer "));
        let hashed = given.map(|(_, token)| hash(token));
        // All keys are looked at, so that the time tells nothing of which one came close.
        let known = hashed.is_some_and(|h| keys.iter().fold(false, |found, key| found | same(&h, key)));
        if let (Some(h), true) = (hashed, known) {
            let first = h.first_chunk::<8>().copied().unwrap_or_default();
            return Ok(u64::from_le_bytes(first).max(1));
        }
        let message = match given {
            None => "this server needs a key: send `Authorization: Bearer KEY`",
            Some(_) => "the key is not the one of this server",
        };
        Err(ApiError::new(StatusCode::UNAUTHORIZED, "invalid_api_key", message))
    }
}

fn hash(key: &[u8]) -> [u8; 32] {
    Sha256::digest(key).into()
}

/// Equality in a time that depends on nothing that was given.
fn same(a: &[u8; 32], b: &[u8; 32]) -> bool {
    std::hint::black_box(a.iter().zip(b).fold(0, |differ, (x, y)| std::hint::black_box(differ | (x ^ y)))) == 0
}

/// `name:port`, `[v6]:port` or either without the port -> the name, without brackets.
fn name_of(host: &str) -> &str {
    match host.strip_prefix('[') {
        Some(v6) => v6.split(']').next().unwrap_or_default(),
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    }
}

/// Refuses a request for a host that is not this one, or from a page of another origin.
pub(super) fn check(access: &Access, addr: SocketAddr, headers: &HeaderMap) -> ApiResult<()> {
    let text = |name: HeaderName| headers.get(name).map(|v| v.to_str().unwrap_or("?"));
    let host = text(header::HOST);
    if let Some(host) = host.filter(|_| addr.ip().is_loopback() || !access.hosts.is_empty()) {
        let name = name_of(host);
        let own = name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok();
        if !own && !access.hosts.iter().any(|h| h.eq_ignore_ascii_case(name)) {
            let message = format!("`{name}` is not a name of this server; start it with --allow-host {name}");
            return Err(ApiError::new(StatusCode::FORBIDDEN, "host_not_allowed", message));
        }
    }
    let Some(origin) = text(header::ORIGIN) else { return Ok(()) };
    let own = host.is_some_and(|host| origin.split_once("://").is_some_and(|(_, o)| o.eq_ignore_ascii_case(host)));
    if own || allowed(access, origin) {
        return Ok(());
    }
    let message = format!("pages of {origin} may not ask here; start the server with --allow-origin {origin}");
    Err(ApiError::new(StatusCode::FORBIDDEN, "origin_not_allowed", message))
}

fn allowed(access: &Access, origin: &str) -> bool {
    access.origins.iter().any(|o| o.eq_ignore_ascii_case(origin))
}

/// The answer to a browser that asks, before its request, whether it may send it.
pub(super) fn preflight(request: &Request) -> Option<Response> {
    let headers = request.headers();
    let asks = headers.contains_key(header::ORIGIN) && headers.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD);
    (request.method() == Method::OPTIONS && asks).then(|| {
        let answer = [
            (header::ACCESS_CONTROL_ALLOW_METHODS, "GET, POST"),
            (header::ACCESS_CONTROL_ALLOW_HEADERS, "authorization, content-type"),
            (header::ACCESS_CONTROL_MAX_AGE, "600"),
        ];
        (StatusCode::NO_CONTENT, answer).into_response()
    })
}

/// Lets the browser hand an answer to a page of an origin on the list; without a list, no header of CORS is ever sent.
pub(super) fn share(access: &Access, origin: Option<HeaderValue>, response: &mut Response) {
    if access.origins.is_empty() {
        return;
    }
    response.headers_mut().append(header::VARY, HeaderValue::from_static("origin"));
    if let Some(origin) = origin.filter(|o| o.to_str().is_ok_and(|o| allowed(access, o))) {
        response.headers_mut().insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_and_origins_that_are_not_ours_are_refused() {
        let local = "127.0.0.1:80".parse().unwrap();
        let check = |access: &Access, addr, host: &str, origin: Option<&str>| {
            let mut headers = HeaderMap::new();
            headers.insert(header::HOST, host.parse().unwrap());
            origin.map(|o| headers.insert(header::ORIGIN, o.parse().unwrap()));
            super::check(access, addr, &headers).err().and_then(|e| e.code)
        };
        let none = Access::default();
        for host in ["localhost:80", "LOCALHOST", "127.0.0.1", "[::1]:80", "[::1]"] {
            assert_eq!(check(&none, local, host, None), None, "{host}");
        }
        assert_eq!(check(&none, local, "evil.example:80", None), Some("host_not_allowed"));
        assert_eq!(check(&none, "0.0.0.0:80".parse().unwrap(), "svc", None), None);
        assert_eq!(check(&none, local, "localhost:80", Some("http://localhost:80")), None);
        for origin in ["http://localhost:81", "https://evil.example", "null", "http://localhost.evil.example:80"] {
            assert_eq!(check(&none, local, "localhost:80", Some(origin)), Some("origin_not_allowed"), "{origin}");
        }
        let some = Access { hosts: vec!["svc".into()], origins: vec!["https://a.example".into()], key_file: None };
        assert_eq!(check(&some, local, "svc:80", Some("https://a.example")), None);
        assert_eq!(check(&some, "0.0.0.0:80".parse().unwrap(), "other", None), Some("host_not_allowed"));
    }

    #[test]
    fn a_key_matches_only_itself() {
        let keys = Keys(RwLock::new(vec![hash(b"first"), hash(b"secret")]));
        let owner = |token: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::AUTHORIZATION, format!("Bearer {token}").parse().unwrap());
            keys.owner(&headers)
        };
        let both = (owner("first").unwrap(), owner("secret").unwrap());
        assert_ne!(both.0, both.1);
        for wrong in ["", "secre", "secrets", "secretsecret", "Secret", "firstsecret"] {
            assert_eq!(owner(wrong).unwrap_err().status, StatusCode::UNAUTHORIZED, "{wrong}");
        }
        assert!(keys.owner(&HeaderMap::new()).is_err());
    }
}
