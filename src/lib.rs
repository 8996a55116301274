//! edgeft: from a dataset to a small language model running, measured, on an edge device.
//!
//! Data flows one way: data → tune → merge → quantize → verify → package → run → measure. The modules in that order:
//!
//! - `hub` (feature `hub`): a hub repository becomes a local folder
//! - [`data`]: a line becomes a batch
//! - [`model`]: the network while it learns, each forward beside its backward
//! - [`tune`]: batches become an adapter
//! - [`eval`]: a model and a dataset become numbers with intervals
//! - [`merge`], [`export`]: base + adapter → tensors → GGUF, by way of `edgeft-quantize`
//! - [`budget`]: which types give the least change for a file's size
//! - [`retention`]: what rounding leaves of what tuning changed
//! - [`verify`]: two stages of one model, held against each other; the gate
//! - [`package`]: a model, a profile and the device's binary → a folder that serves by itself
//! - [`profile`]: `targets/*.toml` → device profiles, and what they predict
//! - [`report`]: a run → one self-contained page
//! - [`demo`]: the embedded model and datasets, and the program that made them
//! - [`cli`], [`commands`]: what is typed; the only place that prints

pub mod budget;
pub mod calibrate;
pub mod cli;
pub mod commands;
pub mod data;
pub mod demo;
pub mod error;
pub mod eval;
pub mod export;
#[cfg(feature = "hub")]
pub mod hub;
pub mod merge;
pub mod model;
pub mod package;
pub mod profile;
pub mod report;
pub mod retention;
pub mod rng;
pub mod tune;
pub mod verify;
