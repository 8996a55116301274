//! What the device carries: a GGUF reader, CPU kernels, tokenizer, sampling and, by feature, the HTTP server.
//!
//! ```text
//! file --model::Model--> checked tensors --engine--> logits --sample--> ids --session--> text, labels, spans
//! ```
//!
//! - [`format`]: GGUF bytes as checked views;  [`model`]: a file as a model, every tensor's shape checked
//! - [`kernels`], [`threads`]: the arithmetic, chosen once at start, and the pool that runs it
//! - [`engine`]: a batch of tokens in, output rows out, on the CPU or (feature `gpu`) by wgpu; [`kv_cache`]: what a sequence
//!   remembers
//! - [`tokenizer`], [`chat`]: text <-> ids, messages -> text, from what the file carries
//! - [`sample`]: logits -> next id;  [`session`]: prompt -> pieces of text, labels, spans
//! - [`measure`]: an engine under a clock -> first token, ms per token, percentiles; prints nothing
//! - `server` (feature `server`): HTTP request -> session -> SSE chunks

pub mod chat;
pub mod engine;
pub mod error;
pub mod format;
pub mod kernels;
pub mod kv_cache;
pub mod measure;
pub mod model;
pub mod sample;
#[cfg(feature = "server")]
pub mod server;
pub mod session;
pub mod threads;
pub mod tokenizer;

pub use error::{Error, Kind, Result};
pub use model::Model;
pub use session::{Session, SessionOptions};
