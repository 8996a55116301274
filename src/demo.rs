//! The embedded demonstration: a tiny model, the text it learned from, and small datasets to tune it on.
//!
//! - [`corpus`], [`tokenizer`]: the text that [`nano`] is trained on, and its tokenizer; both pure functions of a seed
//! - [`nano`]: the model itself, as it lies in this folder
//! - [`datasets`]: what the demo tunes it on
//! - [`make`]: the files from which `edgeft tune --method full` makes it anew

pub mod corpus;
pub mod datasets;
pub mod make;
pub mod nano;
pub mod tokenizer;
