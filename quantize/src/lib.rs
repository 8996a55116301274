//! f32 rows become file bytes.
//!
//! A [`source::TensorSource`] (a Hugging Face folder, a merge in progress) is planned, then streamed:
//!
//! ```text
//! source, mix --plan--> tensor -> (GGUF name, type, reason) --write_gguf--> GGUF bytes, report
//!                                                           --write_onnx--> model.onnx, model.onnx.data, report
//! ```
//!
//! - [`plan()`]: which tensor gets which type, and why, before a weight is read
//! - [`write_gguf`] and [`write_gguf_file`]: one pass, one tensor in memory, the same bytes for any number of threads
//! - [`write_onnx`] and [`write_onnx_folder`]: the same plan, codes and scales as an ONNX graph with its weights beside it
//! - [`codec`]: the block formats, byte for byte ggml's reference quantizers
//! - [`importance`]: which columns of a matrix matter, as llama.cpp's importance matrices
//! - [`tokenizer`]: tokenizer.json in GGUF's keys, and the proof that both give the same ids
#![forbid(unsafe_code)]

pub mod codec;
pub mod error;
pub mod gguf;
pub mod importance;
pub mod metadata;
pub mod names;
pub mod onnx;
pub mod plan;
pub mod report;
pub mod source;
mod stream;
pub mod tokenizer;

pub use error::{BoxError, Error, Result};
pub use gguf::{write_gguf, write_gguf_file};
pub use importance::Importance;
pub use onnx::{write_onnx, write_onnx_folder};
pub use plan::{Mix, Plan, PlanOptions, Planned, Reason, Regex, plan};
pub use report::Report;
pub use source::{Arch, ModelSpec, RopeScaling, RopeSpec, Task, TensorSource};
pub use tokenizer::{FirstDifference, TokenizerFiles, prove};
