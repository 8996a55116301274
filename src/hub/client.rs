//! An address in, an answer out: redirects followed by hand, the token sent to the endpoint alone, failures told apart
//! into those that may pass and those that will not.

use super::{Address, HubError, Progress, Settings};
use std::time::Duration;
use ureq::Body;
use ureq::http::header::{AUTHORIZATION, HeaderValue, LOCATION, RANGE, RETRY_AFTER};
use ureq::http::{Response, StatusCode, Uri};
use ureq::tls::{PemItem, RootCerts, TlsConfig};

/// One hop is usual (to the store of large files), two for a renamed repository.
const MAX_REDIRECTS: usize = 10;

/// Longest wait that a server may ask for.
const MAX_WAIT: Duration = Duration::from_secs(60);

/// A connection to one hub.
pub struct Client {
    agent: ureq::Agent,
    endpoint: String,
    origin: Origin,
    token: Option<HeaderValue>,
    retries: u32,
    pause: Duration,
}

/// Scheme, host and port: what a token is for.
type Origin = (String, String, u16);

impl Client {
    /// # Errors
    /// [`HubError::Setting`] naming the endpoint, the token or the certificates.
    pub fn new(settings: &Settings) -> Result<Self, HubError> {
        let endpoint = settings.endpoint.trim().trim_end_matches('/').to_owned();
        let bad_endpoint =
            |why: &str| HubError::Setting(format!("HF_ENDPOINT `{endpoint}` {why}, such as {}", super::ENDPOINT));
        let uri: Uri = endpoint.parse().map_err(|_| bad_endpoint("is no address; give scheme and host"))?;
        let origin = origin(&uri).ok_or_else(|| bad_endpoint("does not begin with http:// or https://; give both"))?;
        if endpoint.contains(['@', '?', '#']) {
            return Err(bad_endpoint("has a user or a query in it; give scheme and host alone"));
        }
        let token = settings.token.as_deref().map(|token| {
            let mut value = HeaderValue::from_str(&format!("Bearer {token}")).map_err(|_| {
                HubError::Setting("the token has characters in it that no token has; look at HF_TOKEN".to_owned())
            })?;
            value.set_sensitive(true);
            Ok(value)
        });
        let mut tls = TlsConfig::builder();
        if let Some(pem) = &settings.roots {
            tls = tls.root_certs(roots(pem)?);
        }
        let agent = ureq::Agent::config_builder()
            .user_agent(concat!("edgeft/", env!("CARGO_PKG_VERSION")))
            .accept_encoding("identity") // sizes and ranges are those of the file, not of its packed form
            .http_status_as_error(false)
            .max_redirects(0)
            .proxy(settings.proxy.clone())
            .tls_config(tls.build())
            .timeout_resolve(Some(settings.silence))
            .timeout_connect(Some(settings.silence))
            .timeout_per_read(Some(settings.silence))
            .timeout_per_write(Some(settings.silence))
            .build();
        Ok(Self {
            agent: agent.into(),
            endpoint,
            origin,
            token: token.transpose()?,
            retries: settings.retries,
            pause: settings.pause,
        })
    }

    /// The endpoint, without a slash at its end.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// Asks for `path` of the endpoint, from byte `from` on, wherever that leads.
    ///
    /// # Errors
    /// Whatever is no 2xx: [`HubError::Refused`], or [`HubError::Network`] when it may pass. 416 is an answer.
    pub fn get(&self, path: &str, from: u64, what: &What) -> Result<Response<Body>, HubError> {
        let (response, uri) = self.follow(path, from, Follow::Everywhere)?;
        self.judge(response, &uri, what)
    }

    /// Asks for the headers of `path` as the hub gives them, before it sends on to another host.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub fn head(&self, path: &str, what: &What) -> Result<Response<Body>, HubError> {
        let (response, uri) = self.follow(path, 0, Follow::HeadersAtHome)?;
        if response.status().is_redirection() { Ok(response) } else { self.judge(response, &uri, what) }
    }

    fn follow(&self, path: &str, from: u64, how: Follow) -> Result<(Response<Body>, Uri), HubError> {
        let typed = format!("{}{path}", self.endpoint);
        let mut uri: Uri = typed.parse().map_err(|e| broken(&typed, format!("is no address: {e}")))?;
        for _ in 0..=MAX_REDIRECTS {
            let mut request = match how {
                Follow::Everywhere => self.agent.get(&uri),
                Follow::HeadersAtHome => self.agent.head(&uri),
            };
            if from > 0 {
                request = request.header(RANGE, format!("bytes={from}-"));
            }
            let at_home = origin(&uri).as_ref() == Some(&self.origin);
            if let (true, Some(token)) = (at_home, &self.token) {
                request = request.header(AUTHORIZATION, token);
            }
            let response = request.call().map_err(|e| network(&uri, &e))?;
            if !(response.status().is_redirection() && response.headers().contains_key(LOCATION)) {
                return Ok((response, uri));
            }
            let next = next(&uri, &response).map_err(|reason| broken(&place(&uri), reason))?;
            let leaves = origin(&next).as_ref() != Some(&self.origin);
            if leaves && matches!(how, Follow::HeadersAtHome) {
                return Ok((response, uri));
            }
            uri = next;
        }
        Err(broken(&place(&uri), format!("more than {MAX_REDIRECTS} redirects")))
    }

    fn judge(&self, response: Response<Body>, uri: &Uri, what: &What) -> Result<Response<Body>, HubError> {
        let status = response.status();
        if status.is_success() || status == StatusCode::RANGE_NOT_SATISFIABLE {
            return Ok(response);
        }
        let passing = status.is_server_error() || matches!(status.as_u16(), 408 | 425 | 429);
        // A store of files signs its addresses for a time: when it says no, the hub has to be asked for a new one.
        if passing || origin(uri).as_ref() != Some(&self.origin) {
            let wait =
                header(&response, RETRY_AFTER.as_str()).and_then(|s| s.trim().parse().ok()).map(Duration::from_secs);
            return Err(HubError::Network { place: place(uri), reason: format!("answers HTTP {status}"), wait });
        }
        Err(self.refusal(&response, what))
    }

    /// What a status of the hub means for the user.
    fn refusal(&self, response: &Response<Body>, what: &What) -> HubError {
        let (status, repo) = (response.status().as_u16(), &what.address.repo);
        let code = header(response, "x-error-code").unwrap_or_default();
        let token = self.token.is_some();
        let reason = match (status, code.as_str()) {
            (401 | 403, "GatedRepo") => format!(
                "its owner asks for consent first: accept the terms at {}/{repo} in a browser, then {}",
                self.endpoint,
                if token { "pull again with the same account's token" } else { "set HF_TOKEN to a token of yours" }
            ),
            (401, _) if token => "the hub does not accept the token: look at HF_TOKEN, or log in anew".to_owned(),
            (401, _) => {
                "no such repository, or it is private: check the name, or set HF_TOKEN to a token that may read it"
                    .to_owned()
            }
            (403, _) if token => "the token may not read it: give it that right in the hub's settings".to_owned(),
            (403, _) => "the hub forbids it without a token: set HF_TOKEN to one that may read it".to_owned(),
            (404, "RevisionNotFound") => {
                format!("the repository has no branch, tag or commit `{}`", what.address.revision)
            }
            (404, "EntryNotFound") => "the repository lists this file, but the hub does not have it".to_owned(),
            (404, "RepoNotFound") => self.no_repo(),
            (404, _) if what.file.is_some() => "the hub does not have this file".to_owned(),
            (404, _) => format!("{}, or it has no revision `{}`", self.no_repo(), what.address.revision),
            _ => match header(response, "x-error-message") {
                Some(said) => format!("the hub says: {}", plain(&said)),
                None => "the hub refuses".to_owned(),
            },
        };
        HubError::Refused { what: what.to_string(), status, reason }
    }

    fn no_repo(&self) -> String {
        let or = if self.token.is_some() {
            ", or the token may not see it"
        } else {
            ", or it is private and needs HF_TOKEN"
        };
        format!("no such repository at {}{or}", self.endpoint)
    }

    /// Calls until it works, fails for good, or has failed too often.
    ///
    /// # Errors
    /// The last one.
    pub fn patiently<T>(
        &self,
        tell: &mut dyn FnMut(Progress),
        mut ask: impl FnMut() -> Result<T, HubError>,
    ) -> Result<T, HubError> {
        let mut patience = Patience::default();
        loop {
            match ask() {
                Ok(answer) => return Ok(answer),
                Err(e) => patience.wait(self, e, tell)?,
            }
        }
    }
}

enum Follow {
    Everywhere,
    HeadersAtHome,
}

/// What is asked for, for messages.
pub struct What<'a> {
    /// The repository.
    pub address: &'a Address,
    /// A file of it, if it is not the repository itself.
    pub file: Option<&'a str>,
}

impl std::fmt::Display for What<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        match self.file {
            Some(file) => write!(f, "{}: {file}", self.address),
            None => write!(f, "{}", self.address),
        }
    }
}

/// How often in a row it has failed.
#[derive(Default)]
pub struct Patience(u32);

impl Patience {
    /// Something arrived: the count begins anew.
    pub fn restore(&mut self) {
        self.0 = 0;
    }

    /// Waits for the next try, longer each time.
    ///
    /// # Errors
    /// The same, when it will not pass or has come too often.
    pub fn wait(&mut self, client: &Client, error: HubError, tell: &mut dyn FnMut(Progress)) -> Result<(), HubError> {
        if !error.is_temporary() || self.0 >= client.retries {
            return Err(error);
        }
        let longer = client.pause * 2u32.saturating_pow(self.0);
        let asked = if let HubError::Network { wait: Some(wait), .. } = &error { *wait } else { Duration::ZERO };
        let wait = longer.max(asked).min(MAX_WAIT);
        self.0 += 1;
        let (n, of) = (self.0, client.retries);
        tell(Progress::Again { reason: format!("{error}; try {n} of {of} in {:.1} s", wait.as_secs_f64()) });
        std::thread::sleep(wait);
        Ok(())
    }
}

/// A header as text.
pub fn header(response: &Response<Body>, name: &str) -> Option<String> {
    response.headers().get(name)?.to_str().ok().map(str::to_owned)
}

/// A file's name inside an address: all but letters, digits and `-._~/` as `%XX`.
pub fn escape(name: &str) -> String {
    let one = |b: u8| match b {
        b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => char::from(b).to_string(),
        _ => format!("%{b:02X}"),
    };
    name.bytes().map(one).collect()
}

fn origin(uri: &Uri) -> Option<Origin> {
    let (scheme, host) = (uri.scheme_str()?, uri.host()?);
    let usual = match scheme {
        "http" => 80,
        "https" => 443,
        _ => return None,
    };
    Some((scheme.to_owned(), host.to_ascii_lowercase(), uri.port_u16().unwrap_or(usual)))
}

/// Where an answer sends on to (RFC 9110, section 10.2.2; the reference may be relative).
fn next(from: &Uri, response: &Response<Body>) -> Result<Uri, String> {
    let location = header(response, LOCATION.as_str()).ok_or("sends on to an address that is no text")?;
    let (scheme, authority) = (from.scheme_str().unwrap_or_default(), from.authority().map_or("", |a| a.as_str()));
    let absolute = location.split(['/', '?', '#']).next().is_some_and(|head| head.ends_with(':'));
    let text = if absolute {
        location
    } else if location.starts_with("//") {
        format!("{scheme}:{location}")
    } else if location.starts_with('/') {
        format!("{scheme}://{authority}{location}")
    } else {
        let folder = from.path().rsplit_once('/').map_or("", |(folder, _)| folder);
        format!("{scheme}://{authority}{folder}/{location}")
    };
    let next: Uri = text.parse().map_err(|_| "sends on to what is no address".to_owned())?;
    match origin(&next) {
        None => Err("sends on to what is neither http nor https".to_owned()),
        Some((to, host, _)) if scheme == "https" && to == "http" => {
            Err(format!("sends on from https to http, at {host}; refused"))
        }
        Some(_) => Ok(next),
    }
}

/// Host and path; a query may hold a signature, which is nobody's business.
fn place(uri: &Uri) -> String {
    format!("{}://{}{}", uri.scheme_str().unwrap_or("?"), uri.authority().map_or("?", |a| a.as_str()), uri.path())
}

fn broken(what: &str, reason: impl Into<String>) -> HubError {
    HubError::Answer { what: what.to_owned(), reason: reason.into() }
}

/// A failure of the connection, in words.
fn network(uri: &Uri, error: &ureq::Error) -> HubError {
    let reason = match error {
        ureq::Error::HostNotFound => "there is no host of this name, or no network".to_owned(),
        ureq::Error::Timeout(_) => "does not answer in time".to_owned(),
        // What is wrong with a certificate stays wrong.
        ureq::Error::Rustls(e) => {
            return broken(&place(uri), format!("{e}; a network's own certificates go into SSL_CERT_FILE"));
        }
        other => other.to_string(),
    };
    HubError::Network { place: place(uri), reason, wait: None }
}

/// A failure in the middle of a body.
pub fn cut(path: &str, error: &std::io::Error) -> HubError {
    let inner = error.get_ref().and_then(|e| e.downcast_ref::<ureq::Error>());
    let reason = match inner {
        Some(ureq::Error::Timeout(_)) => "went silent".to_owned(),
        _ => error.to_string(),
    };
    HubError::Network { place: path.to_owned(), reason, wait: None }
}

fn roots(pem: &[u8]) -> Result<RootCerts, HubError> {
    let bad = |why: String| HubError::Setting(format!("SSL_CERT_FILE: {why}"));
    let mut found = Vec::new();
    for item in ureq::tls::parse_pem(pem) {
        match item.map_err(|e| bad(e.to_string()))? {
            PemItem::Certificate(c) => found.push(c),
            _ => continue,
        }
    }
    if found.is_empty() {
        return Err(bad("no certificate in it".to_owned()));
    }
    Ok(RootCerts::from(found))
}

/// One short line of what a server says.
fn plain(said: &str) -> String {
    said.chars().filter(|c| !c.is_control()).take(200).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent_on(from: &str, location: &str) -> Result<String, String> {
        let response =
            Response::builder().status(302).header(LOCATION, location).body(Body::builder().data("")).unwrap();
        next(&from.parse().unwrap(), &response).map(|uri| uri.to_string())
    }

    #[test]
    fn a_redirect_may_be_relative() {
        let from = "https://hub.example/org/name/resolve/main/a.bin?x=1";
        for (location, want) in [
            ("https://store.example:81/b?sig=2", "https://store.example:81/b?sig=2"),
            ("//store.example/b", "https://store.example/b"),
            ("/b/c", "https://hub.example/b/c"),
            ("b", "https://hub.example/org/name/resolve/main/b"),
            ("b?next=http://x/", "https://hub.example/org/name/resolve/main/b?next=http://x/"),
        ] {
            assert_eq!(sent_on(from, location).as_deref(), Ok(want));
        }
    }

    #[test]
    fn a_redirect_out_of_https_or_http_is_refused() {
        for location in ["http://hub.example/b", "file:///etc/passwd", "ftp://hub.example/b", "https://"] {
            assert!(sent_on("https://hub.example/a", location).is_err(), "{location}");
        }
        assert!(sent_on("http://127.0.0.1:1/a", "https://store.example/b").is_ok());
    }

    #[test]
    fn a_port_is_part_of_what_a_token_is_for() {
        let of = |text: &str| origin(&text.parse().unwrap());
        assert_eq!(of("https://Hub.example/a"), of("https://hub.example:443/b"));
        for other in
            ["https://hub.example:444", "http://hub.example", "https://hub.example.evil", "https://cdn.hub.example"]
        {
            assert_ne!(of("https://hub.example"), of(other), "{other}");
        }
    }

    #[test]
    fn settings_that_cannot_work_are_named() {
        let new = |endpoint: &str, token: Option<&str>, roots: Option<&str>| {
            let settings = Settings {
                endpoint: endpoint.to_owned(),
                token: token.map(str::to_owned),
                roots: roots.map(|r| r.as_bytes().to_vec()),
                ..Settings::default()
            };
            Client::new(&settings).map(|c| c.endpoint).map_err(|e| e.to_string())
        };
        assert_eq!(new("https://hub.example/mirror/", None, None).as_deref(), Ok("https://hub.example/mirror"));
        for endpoint in
            ["", "hub.example", "ftp://hub.example", "https://me:secret@hub.example", "https://hub.example?x"]
        {
            assert!(new(endpoint, None, None).unwrap_err().contains("HF_ENDPOINT"), "{endpoint}");
        }
        let error = new("https://hub.example", Some("hf_secret\nX: y"), None).unwrap_err();
        assert!(error.contains("HF_TOKEN") && !error.contains("secret"), "{error}");
        assert!(new("https://hub.example", None, Some("nothing")).unwrap_err().contains("SSL_CERT_FILE"));
    }

    #[test]
    fn names_are_escaped_for_an_address() {
        assert_eq!(escape("a b/ü#?%.json"), "a%20b/%C3%BC%23%3F%25.json");
    }
}
