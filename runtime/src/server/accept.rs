//! Connections, bounded in number, each under deadlines, so that slow or silent sockets cannot pile up.
//!
//! `axum::serve` gives hyper no timer, so hyper's own header timeout never fires. The deadlines stand here instead, at the
//! socket, where the one that hyper does not have (a client that never reads) belongs too.

#[cfg(feature = "tls")]
use super::tls::Tls;
use super::{Config, Limits};
use axum::extract::connect_info::Connected;
use axum::serve::{IncomingStream, Listener};
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep, sleep_until};

/// Pause after the system refused a connection, mostly for lack of file descriptors.
const AFTER_ERROR: Duration = Duration::from_millis(100);

/// Accepts while there is room; what comes above the limit waits in the system's backlog.
pub(super) struct Door {
    listener: TcpListener,
    room: Arc<Semaphore>,
    limits: Limits,
    #[cfg(feature = "tls")]
    tls: Option<Tls>,
}

impl Door {
    pub fn new(listener: TcpListener, config: &Config) -> Self {
        let room = Arc::new(Semaphore::new(config.limits.connections));
        Self {
            listener,
            room,
            limits: config.limits,
            #[cfg(feature = "tls")]
            tls: config.tls.clone(),
        }
    }

    fn dress(&self, stream: TcpStream) -> Box<dyn Socket> {
        #[cfg(feature = "tls")]
        if let Some(tls) = &self.tls {
            return Box::new(tls.secure(stream));
        }
        Box::new(stream)
    }
}

/// What bytes come from and go to: a stream of TCP, or of TLS above it.
pub(super) trait Socket: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Socket for T {}

impl Listener for Door {
    type Io = Guarded;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Guarded, SocketAddr) {
        loop {
            // The semaphore is never closed; were it, waiting would be all that is left.
            let Ok(permit) = self.room.clone().acquire_owned().await else { std::future::pending().await };
            match self.listener.accept().await {
                Ok((stream, addr)) => {
                    let _ = stream.set_nodelay(true); // a token is a small packet; a refusal only costs latency
                    return (Guarded::new(self.dress(stream), self.limits, permit), addr);
                }
                Err(_) => tokio::time::sleep(AFTER_ERROR).await,
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// How many requests of one connection are being answered, and since when none is.
#[derive(Clone)]
pub(super) struct Activity(Arc<Mutex<(usize, Instant)>>);

impl Activity {
    fn new() -> Self {
        Self(Arc::new(Mutex::new((0, Instant::now()))))
    }

    /// A request is being answered until the guard is dropped.
    pub fn begin(&self) -> Busy {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).0 += 1;
        Busy(self.clone())
    }

    /// `None` while a request is being answered.
    fn idle_since(&self) -> Option<Instant> {
        let state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        (state.0 == 0).then_some(state.1)
    }
}

/// See [`Activity::begin`].
pub(super) struct Busy(Activity);

impl Drop for Busy {
    fn drop(&mut self) {
        let mut state = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.0 -= 1;
        state.1 = Instant::now();
    }
}

impl Connected<IncomingStream<'_, Door>> for Activity {
    fn connect_info(stream: IncomingStream<'_, Door>) -> Self {
        stream.io().activity.clone()
    }
}

/// A socket under two deadlines: a request's head must be whole within [`Limits::head`] of the connection's start or of the
/// last answer, and a client must take some bytes within [`Limits::write_stall`].
pub(super) struct Guarded {
    stream: Box<dyn Socket>,
    activity: Activity,
    limits: Limits,
    reading: Pin<Box<Sleep>>,
    writing: Pin<Box<Sleep>>,
    stalled: bool,
    _permit: OwnedSemaphorePermit,
}

impl Guarded {
    fn new(stream: Box<dyn Socket>, limits: Limits, permit: OwnedSemaphorePermit) -> Self {
        let now = Instant::now();
        let (reading, writing) =
            (Box::pin(sleep_until(now + limits.head)), Box::pin(sleep_until(now + limits.write_stall)));
        Self { stream, activity: Activity::new(), limits, reading, writing, stalled: false, _permit: permit }
    }

    /// Whether the head of the next request is overdue; otherwise the task is woken when that may change.
    fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            let now = Instant::now();
            let due = self.activity.idle_since().unwrap_or(now) + self.limits.head;
            if due <= now {
                return Poll::Ready(());
            }
            if self.reading.deadline() < due {
                self.reading.as_mut().reset(due);
            }
            ready!(self.reading.as_mut().poll(cx));
        }
    }

    /// Bounds how long a write may wait for the client.
    fn poll_stall<T>(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.stalled = false;
            return written;
        }
        if !self.stalled {
            self.stalled = true;
            self.writing.as_mut().reset(Instant::now() + self.limits.write_stall);
        }
        ready!(self.writing.as_mut().poll(cx));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncRead for Guarded {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        // Asked first, so that bytes which drip in one by one do not put the deadline off.
        if self.poll_head(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Guarded {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.poll_stall(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.poll_stall(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(cx); // TLS takes bytes of its own and waits here
        self.poll_stall(cx, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
