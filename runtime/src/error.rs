//! One error for the whole runtime: a kind to act on, a place to look at, a cause.

use crate::format::gguf::GgufError;

/// What sort of thing went wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A file or an argument that cannot be used as it is.
    Input,
    /// The system refused to read, write, bind.
    Io,
    /// A tensor has another shape than the model needs.
    Shape,
    /// More than fits: tokens over the context, memory over the cap.
    Limit,
    /// Something that is needed is not there: a tokenizer, a template, a library.
    Missing,
}

/// An error: one clear line.
#[derive(Debug)]
pub struct Error {
    kind: Kind,
    place: String,
    message: String,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// Shorthand.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// `place` is a file, a tensor, a key, a field; it may be empty.
    pub fn new(kind: Kind, place: impl Into<String>, message: impl Into<String>) -> Self {
        Self { kind, place: place.into(), message: message.into(), source: None }
    }

    /// An I/O error at a place.
    pub fn io(place: impl Into<String>, error: std::io::Error) -> Self {
        Self { kind: Kind::Io, place: place.into(), message: error.to_string(), source: Some(Box::new(error)) }
    }

    /// What sort of thing went wrong.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Where: a file, a tensor, a key, a field.
    pub fn place(&self) -> &str {
        &self.place
    }

    /// The same error seen from further out: `place` in front of what is there.
    pub fn at(mut self, place: &str) -> Self {
        self.place = if self.place.is_empty() { place.to_owned() } else { format!("{place}: {}", self.place) };
        self
    }
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.place.is_empty() { f.write_str(&self.message) } else { write!(f, "{}: {}", self.place, self.message) }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_deref().map(|e| e as _)
    }
}

impl From<GgufError> for Error {
    fn from(e: GgufError) -> Self {
        Self::new(Kind::Input, "", e.to_string())
    }
}
