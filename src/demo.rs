//! The embedded demonstration: a tiny model, the text it learned from, and small datasets to tune it on.

pub mod corpus;
pub mod datasets;
pub mod tokenizer;
