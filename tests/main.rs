//! Through the front door: the binary as typed, and the library as documented. Offline; one binary, so that it links once.

mod cli;
mod common;
mod crash;
mod embed;
mod export;
mod golden;
mod hostile;
#[cfg(feature = "hub")]
mod hub;
mod layers;
mod learning;
mod measure;
mod onnx;
mod package;
mod parity;
mod pipeline;
mod server;
mod tune;
