//! What the device carries, and a library to build on: a GGUF file answers on this machine's own CPU or
//! GPU (feature `gpu`), and an ONNX folder by ONNX Runtime (feature `ort`).
//!
//! ```text
//! file or bytes --Model--> checked tensors --Session--> text piece by piece, labels, an answer, a vector
//! ```
//!
//! # In a program
//!
//! A [`Model`] is a checked file; clones and threads share it. A [`Session`] is one sequence of tokens on one engine; it
//! works for one caller at a time and may move between threads. More sessions of one model share its weights.
//!
//! ```
//! # fn main() -> edgeft_runtime::Result<()> {
//! # let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/tiny/generate.gguf");
//! use edgeft_runtime::{GenerateOptions, Model, Session, SessionOptions};
//! use std::ops::ControlFlow;
//!
//! let model = Model::open(file)?; // or Model::from_bytes(bytes, "its name")
//! let mut session = Session::new(&model, &SessionOptions::default())?;
//!
//! let options = GenerateOptions { max_tokens: 8, ..GenerateOptions::default() };
//! let done = session.generate_text("the apple is", &options, &mut |piece| {
//!     print!("{}", piece.text); // whole characters, as they come; Break(()) ends it
//!     ControlFlow::Continue(())
//! })?;
//! assert_eq!(done.text, " red");
//! # Ok(()) }
//! ```
//!
//! A chat goes through the template inside the file. The answer is a text of its own, which the options say:
//!
//! ```
//! # fn main() -> edgeft_runtime::Result<()> {
//! # let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/tiny/generate.gguf");
//! # use edgeft_runtime::{GenerateOptions, Message, Model, Session, SessionOptions};
//! # use std::ops::ControlFlow;
//! # let model = Model::open(file)?;
//! # let mut session = Session::new(&model, &SessionOptions::default())?;
//! let prompt = model.chat_ids(&[Message::new("user", "what colour is the river")])?;
//! let options = GenerateOptions { own_text: true, ..GenerateOptions::default() };
//! let done = session.generate(&prompt, &options, &mut |_| ControlFlow::Continue(()))?;
//! assert_eq!(done.text, "green");
//! # Ok(()) }
//! ```
//!
//! Adapters stand beside a model of any type, and several sessions, or turns of one, may use different ones:
//!
//! ```no_run
//! # fn main() -> edgeft_runtime::Result<()> {
//! # use edgeft_runtime::{Adapter, GenerateOptions, Model, Session, SessionOptions};
//! # use std::ops::ControlFlow;
//! # let mut session = Session::new(&Model::open("model.gguf")?, &SessionOptions::default())?;
//! // As `edgeft quantize RUN --adapter-only --out polite.gguf` and llama.cpp's converter write them.
//! let polite = session.add_adapter(&Adapter::open("polite.gguf")?, 1.0)?;
//! session.use_adapter(Some(polite))?; // None is the model alone
//! session.generate_text("the apple is", &GenerateOptions::default(), &mut |_| ControlFlow::Continue(()))?;
//! # Ok(()) }
//! ```
//!
//! What a model is for stands in its file ([`Model::task`]); asking for something else is an error that says so.
//!
//! ```
//! # fn main() -> edgeft_runtime::Result<()> {
//! # let file = |task: &str| format!("{}/../tests/fixtures/tiny/{task}.gguf", env!("CARGO_MANIFEST_DIR"));
//! # use edgeft_runtime::{Kind, Model, Session, SessionOptions};
//! # let options = SessionOptions::default();
//! let mut reviewer = Session::new(&Model::open(file("classify"))?, &options)?;
//! let labels = reviewer.classify_text("the bread was very good in the garden")?;
//! assert_eq!(labels[0].label, "positive"); // likeliest first, each with its probability
//!
//! let mut reader = Session::new(&Model::open(file("answer"))?, &options)?;
//! let found = reader.answer("what colour is the lamp", "the lamp is blue and it was on the table")?;
//! assert_eq!((found.answer.as_str(), found.start, found.end), ("blue", Some(12), Some(16)));
//!
//! let mut embedder = Session::new(&Model::open(file("embed"))?, &options)?;
//! let (a, b) = (embedder.embed_text("the red apple")?, embedder.embed_text("the green apple")?);
//! let cosine: f32 = a.iter().zip(&b).map(|(a, b)| a * b).sum(); // vectors have length 1
//! assert!(cosine > 0.5 && cosine < 1.0);
//!
//! let error = embedder.classify_text("the red apple").unwrap_err();
//! assert_eq!(error.kind(), Kind::Input);
//! assert_eq!(error.to_string(), "model: its task is embed, so it cannot classify");
//! # Ok(()) }
//! ```
//!
//! No network, no environment (but for `EDGEFT_ISA`), nothing printed, and no thread but the workers of a session, and
//! one while a constraint is compiled.
//!
//! # Elsewhere
//!
//! - C, and what calls C (Python's ctypes, Swift, Go): feature `capi`, header `targets/bundle/edgeft.h`
//! - `wasm32-unknown-unknown`: the same functions; one thread, no clock, and [`Model::from_bytes`], since there are no files
//!
//! # Inside
//!
//! - [`format`]: GGUF and ONNX bytes as checked views;  [`model`]: a file or an ONNX folder as a model, checked throughout
//! - [`kernels`], [`threads`]: the arithmetic, chosen once at start, and the pool that runs it
//! - [`engine`]: a batch of tokens in, output rows out, on the CPU or (features `gpu`, `ort`) by wgpu or ONNX Runtime;
//!   [`kv_cache`]: what a sequence remembers
//! - [`tokenizer`], [`chat`]: text <-> ids, messages -> text, from what the file carries
//! - `constrain` (feature `constrain`): a JSON schema, a regular expression, a grammar -> which ids may come next
//! - [`sample`]: logits -> next id;  [`session`]: prompt -> pieces of text, labels, spans
//! - [`measure`]: an engine under a clock -> first token, ms per token, percentiles; prints nothing
//! - `server` (feature `server`): HTTP request -> session -> SSE chunks
//! - `capi` (feature `capi`): this page for C

#[cfg(feature = "capi")]
pub mod capi;
pub mod chat;
mod clock;
#[cfg(feature = "constrain")]
pub mod constrain;
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

pub use chat::Message;
pub use engine::{Backend, KvType};
pub use error::{Error, Kind, Result};
pub use model::adapter::Adapter;
pub use model::{Model, Task};
pub use sample::Sampling;
pub use session::{
    Answer, FinishReason, GenerateOptions, Generation, LabelScore, Piece, Session, SessionOptions, Timings,
    TokenLogprobs,
};
pub use tokenizer::Tokenizer;

// A model is shared between threads, a session moves between them.
const _: () = {
    const fn shared<T: Send + Sync>() {}
    const fn moved<T: Send>() {}
    shared::<Model>();
    shared::<Adapter>();
    moved::<Session>();
};
