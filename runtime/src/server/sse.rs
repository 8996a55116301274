//! Events of one job -> `data:` lines, until `data: [DONE]`.
//!
//! The stream owns the job's receiver: when the client leaves, hyper drops the body, the body drops the stream, and the
//! worker sees it before its next token.

use super::accept::Busy;
use super::queue::Event;
use super::reply::Chunks;
use super::wire::ApiError;
use axum::body::{Body, Bytes};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use futures_core::Stream;
use serde_json::Value;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::{Instant, Sleep, sleep};

/// A comment is sent after so long a silence, so that proxies keep the connection while a prompt is read.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// See the module.
pub(super) struct SseStream {
    events: UnboundedReceiver<Event>,
    chunks: Chunks,
    silence: Pin<Box<Sleep>>,
    done: bool,
    /// The connection's clock for idle sockets stands still while the answer comes.
    _busy: Arc<Busy>,
}

impl SseStream {
    pub fn new(events: UnboundedReceiver<Event>, chunks: Chunks, busy: Arc<Busy>) -> Self {
        Self { events, chunks, silence: Box::pin(sleep(KEEP_ALIVE)), done: false, _busy: busy }
    }

    /// An event's lines; an error is JSON in a `data:` line too, since clients see nothing else once a stream runs.
    fn lines(&mut self, event: Option<Event>) -> String {
        let mut out = String::new();
        match event {
            Some(Event::Piece { index, token, text, logprobs }) => {
                self.chunks.piece(index, token, &text, logprobs).iter().for_each(|chunk| data(&mut out, chunk));
                return out;
            }
            Some(Event::Generated { index, generation }) => match self.chunks.end(index, &generation) {
                Ok(chunks) => {
                    chunks.iter().for_each(|chunk| data(&mut out, chunk));
                    if !self.chunks.done() {
                        return out;
                    }
                }
                Err(e) => data(&mut out, &e.body()),
            },
            Some(Event::Failed(e)) => data(&mut out, &e.body()),
            Some(Event::Classified(_) | Event::Embedded(_) | Event::Answered(_)) | None => {
                data(&mut out, &ApiError::broken_off().body())
            }
        }
        out.push_str("data: [DONE]\n\n");
        self.done = true;
        self.events.close();
        out
    }
}

impl Stream for SseStream {
    type Item = Result<Bytes, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        while !self.done {
            match self.events.poll_recv(cx) {
                Poll::Ready(event) => {
                    self.silence.as_mut().reset(Instant::now() + KEEP_ALIVE);
                    let lines = self.lines(event);
                    if !lines.is_empty() {
                        return Poll::Ready(Some(Ok(lines.into())));
                    }
                }
                Poll::Pending => {
                    std::task::ready!(self.silence.as_mut().poll(cx));
                    self.silence.as_mut().reset(Instant::now() + KEEP_ALIVE);
                    return Poll::Ready(Some(Ok(Bytes::from_static(b": still working\n\n"))));
                }
            }
        }
        Poll::Ready(None)
    }
}

impl IntoResponse for SseStream {
    fn into_response(self) -> Response {
        let headers = [
            (header::CONTENT_TYPE, "text/event-stream"),
            (header::CACHE_CONTROL, "no-cache"),
            (header::HeaderName::from_static("x-accel-buffering"), "no"), // nginx would hold tokens back
        ];
        (headers, Body::from_stream(self)).into_response()
    }
}

fn data(out: &mut String, json: &Value) {
    out.push_str(&format!("data: {json}\n\n"));
}
