//! What can keep a repository from coming here: each message says what, where, and the way out.

use super::hash::Hash;
use std::path::PathBuf;
use std::time::Duration;

/// Why there is no folder.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// What was typed is no repository.
    #[error("`{typed}`: {reason}")]
    Address {
        /// As typed.
        typed: String,
        /// What is wrong with it, and what is right.
        reason: String,
    },
    /// An address, a token, a certificate that cannot be used.
    #[error("{0}")]
    Setting(String),
    /// The hub said no, and will say it again.
    #[error("{what}: {reason} (HTTP {status})")]
    Refused {
        /// Repository, or a file of it.
        what: String,
        /// The hub's status.
        status: u16,
        /// What it means, and the way out.
        reason: String,
    },
    /// The repository has nothing that can be used, or more than one thing.
    #[error("{0}")]
    Choose(String),
    /// The output is there.
    #[error("{} {reason}", path.display())]
    Exists {
        /// The output.
        path: PathBuf,
        /// What it is, and the way out.
        reason: String,
    },
    /// The hub's answer is not what a hub answers.
    #[error("{what}: {reason}")]
    Answer {
        /// Repository, or a file of it.
        what: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The line is bad, or a server is; trying again may help.
    #[error("{place}: {reason}")]
    Network {
        /// Host and path.
        place: String,
        /// What happened.
        reason: String,
        /// How long the server wants to be left alone.
        wait: Option<Duration>,
    },
    /// The bytes are not those that the hub named.
    #[error(
        "{file}: its hash is {got}, and the hub says {want}; nothing of it is kept. Try again, or another endpoint"
    )]
    Damaged {
        /// Name in the repository.
        file: String,
        /// The hub's.
        want: Hash,
        /// Of what came.
        got: Hash,
    },
    /// It does not fit.
    #[error("{}: {} are needed, {} are free on that disk", path.display(), size(*need), size(*free))]
    Space {
        /// The folder.
        path: PathBuf,
        /// Bytes still to come.
        need: u64,
        /// Bytes that the disk has for us.
        free: u64,
    },
    /// The disk fails, or is full.
    #[error("cannot write {}: {source}", path.display())]
    Write {
        /// File or folder.
        path: PathBuf,
        /// The system's words.
        source: std::io::Error,
    },
    /// Another process is at it.
    #[error("{}: another process is downloading it; wait for that one, or stop it", path.display())]
    Busy {
        /// What is locked.
        path: PathBuf,
    },
}

/// Bytes as people read them.
pub(super) fn size(bytes: u64) -> String {
    match bytes {
        0..1_000_000_000 => format!("{:.1} MB", bytes as f64 / 1e6),
        _ => format!("{:.1} GB", bytes as f64 / 1e9),
    }
}

impl HubError {
    /// Whether the user can mend it (exit code 2), and not only wait (1).
    pub fn is_bad_input(&self) -> bool {
        matches!(
            self,
            Self::Address { .. } | Self::Setting(_) | Self::Refused { .. } | Self::Choose(_) | Self::Exists { .. }
        )
    }

    /// Whether trying again may help.
    pub fn is_temporary(&self) -> bool {
        matches!(self, Self::Network { .. })
    }

    /// Whether it ended a transfer in the middle, so that there may be pieces to go on from.
    pub fn keeps_pieces(&self) -> bool {
        matches!(self, Self::Network { .. } | Self::Damaged { .. } | Self::Write { .. })
    }

    /// For `map_err` of whatever is done with `path`.
    pub(super) fn write(path: &std::path::Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Write { path, source }
    }
}
