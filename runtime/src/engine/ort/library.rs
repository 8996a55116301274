//! The ONNX Runtime library: loaded while the program runs, once a process, so that a build needs nothing of it and a machine
//! without it runs everything else. Where it may be is for the program to know: [`load`] is given a path.

use crate::error::{Error, Kind, Result};
use std::path::Path;
use std::sync::{Mutex, OnceLock, PoisonError};

/// The oldest that is taken, `1.N`: no `api-N` feature of the `ort` crate is on, and its floor is this.
pub const OLDEST: u32 = ort::MINOR_VERSION;

/// What installs the library where Python is.
pub const INSTALL: &str = "pip install onnxruntime";

/// A loaded library.
pub struct Library {
    pub(super) environment: ort::environment::Environment,
    minor: u32,
}

static LIBRARY: OnceLock<Library> = OnceLock::new();

impl Library {
    /// `1.N`.
    pub fn version(&self) -> String {
        format!("1.{}", self.minor)
    }

    /// N of version 1.N.
    pub(super) fn minor(&self) -> u32 {
        self.minor
    }
}

/// The library of this process.
///
/// # Errors
/// `Missing` when none was loaded.
pub fn loaded() -> Result<&'static Library> {
    LIBRARY.get().ok_or_else(|| {
        let message = format!("no library is loaded; install one with `{INSTALL}`");
        Error::new(Kind::Missing, "ONNX Runtime", message)
    })
}

/// Loads the library at a path, or by a name that the system's loader knows. Once one is loaded it stays: a later call gives
/// that one.
///
/// # Errors
/// `Missing` when it is no library for this machine, not ONNX Runtime, or older than 1.[`OLDEST`].
pub fn load(path: &Path) -> Result<&'static Library> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(library) = LIBRARY.get() {
        return Ok(library);
    }
    let place = path.display().to_string();
    let missing = |message: String| Error::new(Kind::Missing, &place, message);
    let environment = ort::init_from(path).map_err(|e| {
        use ort::LoadDynamicError as E;
        missing(match e {
            E::Dlopen { error, .. } => {
                let told = std::error::Error::source(&error).map(ToString::to_string); // the loader's own words
                format!("cannot be loaded: {}", told.unwrap_or_else(|| error.to_string()))
            }
            E::MissingApi { .. } | E::InvalidVersionString => "is a library, but not ONNX Runtime".into(),
            E::BadVersion { version_str, .. } => format!(
                "is ONNX Runtime {version_str}, but 1.{OLDEST} or newer is needed; update it with `{INSTALL} --upgrade`"
            ),
        })
    })?;
    // Telemetry is on by default in Microsoft's builds. What fails comes back as an error, so nothing needs to be logged.
    let environment = environment
        .with_name("edgeft")
        .with_telemetry(false)
        .build()
        .map_err(|e| missing(format!("cannot be set up: {e}")))?;
    environment.set_log_level(ort::logging::LogLevel::Fatal);
    let minor = ort::util::probe(path).unwrap_or(OLDEST);
    Ok(LIBRARY.get_or_init(|| Library { environment, minor }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn refuses(path: &Path, because: &str) {
        let Err(error) = load(path) else { panic!("{} was loaded", path.display()) };
        assert_eq!(error.kind(), Kind::Missing);
        assert!(
            error.to_string().starts_with(path.to_str().unwrap()) && error.to_string().contains(because),
            "{error}"
        );
    }

    #[test]
    fn what_is_no_library_is_told_and_another_may_be_tried() {
        let dir = tempfile::tempdir().unwrap();
        let text = dir.path().join("libonnxruntime.so");
        std::fs::write(&text, "not a library").unwrap();
        refuses(&text, "cannot be loaded");
        refuses(&dir.path().join("gone.so"), "cannot be loaded");
        assert!(loaded().is_err());
    }
}
