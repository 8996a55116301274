//! A line becomes a batch.
//!
//! - [`formats`]: jsonl, json, csv, tsv, txt, possibly packed → records of named fields
//! - [`schema`]: the fields of the first rows → what they can teach, printed back
//! - [`example`], [`messages`], [`labels`]: a record → an [`example::Example`]; errors name file and line
//! - [`chat`]: messages → text, and which spans of it are learned
//! - [`tokenize`], [`answer`], [`truncate`]: text and spans → rows of ids and targets, none longer than it may be; [`sides`]:
//!   answers that are compared and texts that belong together, each a row
//! - [`split`]: train, validation, test, folds: seeded, stratified, the same text never on two sides
//! - [`tokens`]: pre-tokenized safetensors → rows, and the recorded outputs of a second implementation
//! - [`check`]: what is wrong with a dataset, before any weight loads
//! - [`read`]: DATA as typed → rows, held-out rows beside them
//! - [`batch`]: rows → batches, in an order that is a function of (seed, epoch)

pub mod answer;
pub mod batch;
pub mod chat;
pub mod check;
mod error;
pub mod example;
pub mod formats;
pub mod labels;
pub mod messages;
pub mod read;
pub mod schema;
pub mod sides;
pub mod split;
#[cfg(test)]
mod tiny;
pub mod tokenize;
pub mod tokens;
pub mod truncate;

pub use error::DataError;
pub use example::{Dataset, Example};
pub use labels::Labels;
pub use schema::{Schema, Task};
pub use truncate::Truncate;
