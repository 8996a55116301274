//! TLS at the socket, by rustls. A handshake is the first thing that is read from a connection, under the same deadline as the
//! head of a request, so that a slow one holds up nobody else.

use crate::error::{Error, Kind, Result};
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, PoisonError, RwLock};
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::rustls::crypto::{CryptoProvider, ring};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::{ClientHello, ResolvesServerCert};
use tokio_rustls::rustls::sign::CertifiedKey;
use tokio_rustls::rustls::{self, ServerConfig};
use tokio_rustls::server::TlsStream;
use tokio_rustls::{Accept, TlsAcceptor};

/// A certificate with its key, as two PEM files, and what answers clients with it. TLS 1.2 and 1.3.
#[derive(Clone)]
pub struct Tls {
    cert: PathBuf,
    key: PathBuf,
    current: Arc<Current>,
    acceptor: TlsAcceptor,
}

/// What the next client is shown.
#[derive(Debug)]
struct Current(RwLock<Arc<CertifiedKey>>);

impl ResolvesServerCert for Current {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.read().unwrap_or_else(PoisonError::into_inner).clone())
    }
}

impl Tls {
    /// Reads the certificate, its chain behind it, and its private key.
    ///
    /// # Errors
    /// `Input` when a file cannot be read, is no PEM file of that kind, or the two do not belong together.
    pub fn open(cert: &Path, key: &Path) -> Result<Self> {
        let provider = Arc::new(ring::default_provider());
        let current = Arc::new(Current(RwLock::new(Arc::new(read(cert, key, &provider)?))));
        let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let config = config.map_err(|e| Error::new(Kind::Input, "TLS", e.to_string()))?;
        let mut config = config.with_no_client_auth().with_cert_resolver(current.clone());
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self { cert: cert.into(), key: key.into(), current, acceptor: Arc::new(config).into() })
    }

    /// Reads both files again, for connections to come.
    ///
    /// # Errors
    /// As [`Tls::open`]; clients are then shown the certificate that they were shown before.
    pub fn reload(&self) -> Result<()> {
        let fresh = read(&self.cert, &self.key, &ring::default_provider())?;
        *self.current.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(fresh);
        Ok(())
    }

    /// A connection whose handshake begins once it is read from.
    pub(super) fn secure(&self, stream: TcpStream) -> Secured {
        Secured::Shaking(self.acceptor.accept(stream))
    }
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tls").field("cert", &self.cert).finish_non_exhaustive()
    }
}

fn read(cert: &Path, key: &Path, provider: &CryptoProvider) -> Result<CertifiedKey> {
    let wrong = |flag: &str, message: String| Error::new(Kind::Input, flag, message);
    let pem = |flag: &'static str, file: &Path, what: &str| {
        let bytes = std::fs::read(file).map_err(|e| wrong(flag, format!("cannot read {}: {e}", file.display())))?;
        let told = format!("{} holds no {what} in PEM", file.display());
        Ok::<_, Error>((bytes, move |why: Option<rustls::pki_types::pem::Error>| {
            wrong(flag, why.map_or_else(|| told.clone(), |e| format!("{told}: {e}")))
        }))
    };
    let (bytes, none) = pem("--tls-cert", cert, "certificate")?;
    let chain = CertificateDer::pem_slice_iter(&bytes).collect::<Result<Vec<_>, _>>().map_err(|e| none(Some(e)))?;
    if chain.is_empty() {
        return Err(none(None));
    }
    let (bytes, none) = pem("--tls-key", key, "private key")?;
    let secret = PrivateKeyDer::from_pem_slice(&bytes).map_err(|e| none(Some(e)))?;
    CertifiedKey::from_der(chain, secret, provider).map_err(|e| {
        let (cert, key) = (cert.display(), key.display());
        wrong("--tls-key", format!("the key of {key} does not go with the certificate of {cert}: {e}"))
    })
}

/// A socket in its handshake, then behind it.
pub(super) enum Secured {
    Shaking(Accept<TcpStream>),
    Open(TlsStream<TcpStream>),
    /// No handshake came of it, which was told once.
    Failed,
}

impl Secured {
    fn poll_open(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Pin<&mut TlsStream<TcpStream>>>> {
        if let Self::Shaking(accept) = self {
            match ready!(Pin::new(accept).poll(cx)) {
                Ok(stream) => *self = Self::Open(stream),
                Err(e) => {
                    *self = Self::Failed;
                    return Poll::Ready(Err(e));
                }
            }
        }
        match self {
            Self::Open(stream) => Poll::Ready(Ok(Pin::new(stream))),
            Self::Shaking(_) | Self::Failed => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
        }
    }
}

impl AsyncRead for Secured {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_open(cx))?.poll_read(cx, buf)
    }
}

impl AsyncWrite for Secured {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.poll_open(cx))?.poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_open(cx))?.poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_open(cx))?.poll_shutdown(cx)
    }
}
