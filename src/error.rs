//! Errors that decide the exit code.
//!
//! A command returns `anyhow::Error`; `main` looks through its chain: [`BadInput`] and the libraries' input errors end in
//! exit code 2, [`GateFailed`] in 3, everything else in 1 (see the contract).

/// What the user gave cannot be used: a file, a field, a flag. The message names the thing, the place and the way out.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct BadInput(pub String);

/// A gate (`verify`, `data check`, `bench --compare`) measured and did not pass.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct GateFailed(pub String);

/// Shorthand for `Err(BadInput(..).into())` with a formatted message.
#[macro_export]
macro_rules! bad_input {
    ($($arg:tt)*) => { return Err(::anyhow::Error::new($crate::error::BadInput(format!($($arg)*)))) };
}
