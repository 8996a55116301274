//! The small datasets that the demo tunes the embedded model on. Each is a pure function of a seed.

pub mod answer;
pub mod sentiment;
pub mod story;

#[cfg(test)]
mod overlap;

pub use answer::{Question, answer};
pub use sentiment::{LABELS, Review, sentiment};
pub use story::{Log, story};

/// A dataset in its two parts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Split<T> {
    /// Rows to tune on.
    pub train: Vec<T>,
    /// Rows held out.
    pub test: Vec<T>,
}
