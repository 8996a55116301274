//! What the device carries: a GGUF reader, CPU kernels, tokenizer, sampling and, by feature, the HTTP server.

pub mod chat;
pub mod error;
pub mod format;
pub mod sample;
pub mod tokenizer;

pub use error::{Error, Kind, Result};
