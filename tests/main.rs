//! Through the front door: the binary as typed, and the library as documented. Offline; one binary, so that it links once.

mod adapters;
mod beside;
mod budget;
mod cli;
mod common;
mod crash;
mod data;
mod embed;
mod export;
mod families;
mod golden;
mod hostile;
#[cfg(feature = "hub")]
mod hub;
mod importance;
mod judge;
mod layers;
mod learning;
mod measure;
mod onnx;
mod package;
mod parity;
mod pipeline;
mod preference;
mod server;
mod trials;
mod tune;
mod vectors;
