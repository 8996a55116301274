//! edgeft: from a dataset to a small language model running, measured, on an edge device.
//!
//! Data flows one way: data → tune → merge → quantize → verify → package → run → measure.

pub mod data;
pub mod error;
pub mod eval;
pub mod report;
pub mod rng;
