//! Batches become an adapter.
//!
//! - [`config`]: `tune.toml` and flags → [`config::TuneConfig`]
//! - [`schedule`], [`optimizer`]: the learning rate of a step; AdamW with f32 moments
//! - [`trainer`]: the loop, top to bottom: batch, loss, backward, clip, step, report
//! - [`guard`]: what is trained and does not learn stops a run
//! - [`checkpoint`]: weights + moments + cursor, so that a resumed run gives the same bytes
//! - [`run_folder`]: the files of a RUN

pub mod checkpoint;
pub mod config;
pub mod guard;
pub mod optimizer;
pub mod run_folder;
pub mod schedule;
pub mod trainer;
