//! f32 rows become file bytes.
#![forbid(unsafe_code)]

pub mod codec;
