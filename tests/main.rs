//! Through the front door: the binary as typed, and the library as documented. Offline; one binary, so that it links once.

mod cli;
mod common;
mod crash;
mod golden;
mod hostile;
mod layers;
mod learning;
mod measure;
mod package;
mod parity;
mod pipeline;
mod server;
