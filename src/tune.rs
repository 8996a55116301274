//! Batches become an adapter.
//!
//! - [`config`]: `tune.toml` and flags → [`config::TuneConfig`]
//! - [`schedule`], [`optimizer`]: the learning rate of a step; AdamW with f32 moments
//! - [`memory`]: what a run takes, before a weight is read, and how a micro-batch is cut so that it fits `--mem`
//! - [`speed`]: how long it will take on this machine; [`reasons`]: why a default is what it is
//! - [`budget`]: how many steps fit into `--budget`; [`sweep`]: settings that are tried out, and in which rounds
//! - [`objective`]: what a step minimizes; [`preference`], [`contrast`]: losses over answers and over vectors; [`reference`]: what
//!   the network said of each answer before the first step
//! - [`trainer`]: the loop, top to bottom: batch, loss, backward, clip, step, report
//! - [`guard`]: what is trained and does not learn stops a run
//! - [`checkpoint`]: weights + moments + cursor, so that a resumed run gives the same bytes
//! - [`run_folder`], [`events`]: the files of a RUN; its metrics once more, as TensorBoard reads them

pub mod budget;
pub mod checkpoint;
pub mod config;
pub mod contrast;
pub mod events;
pub mod guard;
pub mod memory;
pub mod objective;
pub mod optimizer;
pub mod preference;
pub mod reasons;
pub mod reference;
pub mod run_folder;
pub mod schedule;
pub mod speed;
pub mod sweep;
pub mod trainer;
