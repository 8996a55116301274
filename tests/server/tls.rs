//! TLS: clients that know the certificate, clients that do not speak it, and certificates that change.

use super::*;
use crate::cli::refuses;
use crate::common::Folder;
use edgeft_runtime::server::tls::Tls;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

/// Writes a fresh pair for `localhost` as `NAME.pem` and `NAME.key`.
fn pair(folder: &Folder, name: &str) -> CertificateDer<'static> {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    folder.write(&format!("{name}.pem"), made.cert.pem());
    folder.write(&format!("{name}.key"), made.signing_key.serialize_pem());
    made.cert.der().clone()
}

fn secure(folder: &Folder, name: &str) -> (Server, Tls) {
    let tls = Tls::open(&folder.at(&format!("{name}.pem")), &folder.at(&format!("{name}.key"))).unwrap();
    (start(Config { tls: Some(tls.clone()), ..config() }), tls)
}

/// What a client gets that trusts this certificate alone.
fn asked(server: &Server, trusted: &CertificateDer<'static>, request: &str) -> std::io::Result<Reply> {
    let mut roots = RootCertStore::empty();
    roots.add(trusted.clone()).unwrap();
    let client = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let client = client.with_safe_default_protocol_versions().unwrap().with_root_certificates(roots);
    let session = ClientConnection::new(Arc::new(client.with_no_client_auth()), "localhost".try_into().unwrap());
    let mut stream = StreamOwned::new(session.unwrap(), TcpStream::connect(server.addr()).unwrap());
    stream.write_all(request.as_bytes())?;
    Ok(finish(stream))
}

#[test]
fn answers_come_through_tls_streamed_or_whole_and_plain_http_gets_none() {
    let folder = Folder::new();
    let cert = pair(&folder, "own");
    let (server, _) = secure(&folder, "own");
    assert_eq!(server.url(), format!("https://{}", server.addr()));
    let body = json!({"prompt": [5, 6, 7], "max_tokens": 8, "stream": true}).to_string();
    let streamed = asked(&server, &cert, &request("POST", "/v1/completions", "", &body)).unwrap().chunks();
    let text: String = streamed.iter().filter_map(|c| c["choices"][0]["text"].as_str()).collect();
    let body = body.replace("true", "false");
    let whole = asked(&server, &cert, &request("POST", "/v1/completions", "", &body)).unwrap();
    assert_eq!(whole.json()["choices"][0]["text"], text);

    let plain = finish(open(server.addr(), &request("GET", "/healthz", "", "")));
    assert!(!plain.head.starts_with("HTTP/"), "{plain:?}");
    let stranger = pair(&folder, "stranger");
    let refused = asked(&server, &stranger, &request("GET", "/healthz", "", ""));
    assert!(refused.unwrap_err().to_string().contains("certificate"), "a client that trusts another certificate");
    assert_eq!(asked(&server, &cert, &request("GET", "/healthz", "", "")).unwrap().status, 200);
}

#[test]
fn a_handshake_that_does_not_go_on_is_cut_and_holds_up_nobody() {
    let folder = Folder::new();
    let cert = pair(&folder, "own");
    let tls = Tls::open(&folder.at("own.pem"), &folder.at("own.key")).unwrap();
    let limits = Limits { head: Duration::from_millis(300), ..Limits::default() };
    let server = start(Config { tls: Some(tls), limits, ..config() });
    // The first bytes of a hello, of which more is promised.
    let mut silent: Vec<TcpStream> = (0..20).map(|_| open(server.addr(), "\x16\x03\x01\x02\x00\x01")).collect();
    assert_eq!(asked(&server, &cert, &request("GET", "/healthz", "", "")).unwrap().status, 200);
    for socket in &mut silent {
        let start = Instant::now();
        let _ = socket.read(&mut [0; 64]); // an end, a reset or an alert
        let _ = socket.read_to_end(&mut Vec::new());
        assert!(start.elapsed() < Duration::from_secs(20), "it was not cut");
    }
}

#[test]
fn a_certificate_that_changed_is_shown_once_it_is_told_and_a_broken_one_never() {
    let folder = Folder::new();
    let (first, (server, tls)) = (pair(&folder, "own"), secure(&folder, "own"));
    let works = |cert| asked(&server, cert, &request("GET", "/healthz", "", "")).is_ok();
    let second = pair(&folder, "own");
    assert_eq!([works(&first), works(&second)], [true, false], "nothing changes before it is told");
    server.stopper().reload_certificate().unwrap().unwrap();
    assert_eq!([works(&first), works(&second)], [false, true]);
    folder.write("own.key", "-----BEGIN PRIVATE KEY-----\nAAAA\n");
    let error = tls.reload().unwrap_err().to_string();
    assert!(error.contains("own.key") && error.contains("no private key in PEM"), "{error}");
    assert!(works(&second));
}

#[test]
fn what_is_no_certificate_or_not_its_key_is_refused_before_the_model_loads() {
    let folder = Folder::new();
    pair(&folder, "own");
    pair(&folder, "other");
    folder.write("text.pem", "no certificate");
    let serve = |flags: &str, words: &[&str]| refuses(&folder, &format!("serve nano --port 0 {flags}"), words);
    serve("--tls-cert own.pem", &["--tls-key"]);
    serve("--tls-cert none.pem --tls-key own.key", &["--tls-cert", "none.pem"]);
    serve("--tls-cert text.pem --tls-key own.key", &["--tls-cert", "text.pem", "no certificate in PEM"]);
    serve("--tls-cert own.pem --tls-key own.pem", &["--tls-key", "own.pem", "no private key in PEM"]);
    serve("--tls-cert own.pem --tls-key other.key", &["other.key does not go with", "own.pem"]);
}
