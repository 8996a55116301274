//! An address in, an answer out: redirects followed by hand, the token sent to the endpoint alone, failures told apart
//! into those that may pass and those that will not.

use super::refusal::No;
pub use super::refusal::What;
use super::url::{Origin, next as next_of, origin, place};
use super::{HubError, Progress, Settings};
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

impl Client {
    /// # Errors
    /// [`HubError::Setting`] naming the endpoint, the token or the certificates.
    pub fn new(settings: &Settings) -> Result<Self, HubError> {
        let endpoint = settings.endpoint.trim().trim_end_matches('/').to_owned();
        if endpoint.contains(['@', '?', '#']) {
            // Not shown: what stands before an `@` may be a password.
            let reason = "HF_ENDPOINT has a user or a query in it; give scheme and host alone".to_owned();
            return Err(HubError::Setting(reason));
        }
        let bad_endpoint =
            |why: &str| HubError::Setting(format!("HF_ENDPOINT `{endpoint}` {why}, such as {}", super::ENDPOINT));
        let uri: Uri = endpoint.parse().map_err(|_| bad_endpoint("is no address; give scheme and host"))?;
        let origin = origin(&uri).ok_or_else(|| bad_endpoint("does not begin with http:// or https://; give both"))?;
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
            let location = header(&response, LOCATION.as_str());
            let next = location.ok_or_else(|| "sends on to an address that is no text".to_owned());
            let next = next.and_then(|to| next_of(&uri, &to)).map_err(|reason| broken(&place(&uri), reason))?;
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
        let stored = what.file.is_some() && origin(uri).as_ref() != Some(&self.origin);
        if passing || stored {
            let wait =
                header(&response, RETRY_AFTER.as_str()).and_then(|s| s.trim().parse().ok()).map(Duration::from_secs);
            return Err(HubError::Network { place: place(uri), reason: format!("answers HTTP {status}"), wait });
        }
        let said = |name| header(&response, name).unwrap_or_default();
        let no = No {
            endpoint: &self.endpoint,
            with_token: self.token.is_some(),
            status: status.as_u16(),
            code: &said("x-error-code"),
            message: &said("x-error-message"),
        };
        Err(HubError::Refused { what: what.to_string(), status: no.status, reason: no.meaning(what) })
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

fn broken(what: &str, reason: impl Into<String>) -> HubError {
    HubError::Answer { what: what.to_owned(), reason: reason.into() }
}

/// A failure of the connection, in words.
fn network(uri: &Uri, error: &ureq::Error) -> HubError {
    let reason = match error {
        ureq::Error::HostNotFound => "there is no host of this name, or no network".to_owned(),
        ureq::Error::Timeout(_) => "does not answer in time".to_owned(),
        // A certificate that is refused, or no TLS at all: it stays so.
        ureq::Error::Io(e) if e.kind() == std::io::ErrorKind::InvalidData => {
            return broken(
                &place(uri),
                format!("no secure connection: {e}. A network's own certificates go into SSL_CERT_FILE"),
            );
        }
        ureq::Error::Io(e) => e.to_string(),
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

#[cfg(test)]
mod tests {
    use super::*;

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
            let error = new(endpoint, None, None).unwrap_err();
            assert!(error.contains("HF_ENDPOINT") && !error.contains("secret"), "{error}");
        }
        let error = new("https://hub.example", Some("hf_secret\nX: y"), None).unwrap_err();
        assert!(error.contains("HF_TOKEN") && !error.contains("secret"), "{error}");
        assert!(new("https://hub.example", None, Some("nothing")).unwrap_err().contains("SSL_CERT_FILE"));
    }
}
