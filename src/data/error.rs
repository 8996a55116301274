//! What can be wrong with a dataset: each message names the file, the line and the way out.

use std::path::PathBuf;

/// Why DATA cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// The file is not there, or may not be read.
    #[error("cannot open {}: {reason}", path.display())]
    Open {
        /// As the user named it.
        path: PathBuf,
        /// The system's words.
        reason: String,
    },
    /// Reading stopped in the middle: a damaged disk, or a compressed stream that is cut or not what its name says.
    #[error("{}: cannot be read to its end after line {line}: {reason}; is the file cut, or not what its ending says?", path.display())]
    Read {
        /// As the user named it.
        path: PathBuf,
        /// Last whole line, from 1.
        line: usize,
        /// The reader's words.
        reason: String,
        /// Whether the system failed, and not the file's content.
        system: bool,
    },
    /// The ending is of no format that is read.
    #[error("{}: {reason}", path.display())]
    Format {
        /// As the user named it.
        path: PathBuf,
        /// What is known, and what to do.
        reason: String,
    },
    /// Nothing in it.
    #[error("{}: no rows in it; DATA needs at least one", path.display())]
    Empty {
        /// As the user named it.
        path: PathBuf,
    },
    /// One row is not what it should be.
    #[error("{}:{line}: {reason}", path.display())]
    Row {
        /// As the user named it.
        path: PathBuf,
        /// Line of the file, from 1; of a pre-tokenized file the row, from 0.
        line: usize,
        /// The field, what is wrong with it, and the way out.
        reason: String,
    },
    /// A pre-tokenized file whose tensors do not fit together.
    #[error("{}: tensor `{tensor}` {reason}", path.display())]
    Tensor {
        /// As the user named it.
        path: PathBuf,
        /// Its key in the file.
        tensor: String,
        /// Both numbers, and what was expected.
        reason: String,
    },
    /// Rows longer than `--max-len`, and the policy is to stop.
    #[error("{0}")]
    TooLong(super::truncate::TooLong),
    /// Rows of which no token is learned.
    #[error("{}: {count} of {rows} rows teach nothing; the first are {}", path.display(), list(examples))]
    NothingLearned {
        /// As the user named it.
        path: PathBuf,
        /// How many.
        count: usize,
        /// Of how many.
        rows: usize,
        /// Line and reason of the first few.
        examples: Vec<(usize, String)>,
    },
    /// Model and rows do not go together.
    #[error("{0}")]
    Unfit(String),
}

impl DataError {
    /// Whether the user's input is at fault (exit code 2), and not the machine (1).
    pub fn is_bad_input(&self) -> bool {
        !matches!(self, Self::Read { system: true, .. })
    }
}

fn list(examples: &[(usize, String)]) -> String {
    examples.iter().map(|(line, why)| format!("line {line} ({why})")).collect::<Vec<_>>().join(", ")
}
