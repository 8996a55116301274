//! Cases of a second implementation, checked in under `tests/fixtures` (its README says how each was made).

use std::path::PathBuf;

/// The folder of a case.
pub fn case(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

/// The same as text, for a command line.
pub fn typed(name: &str) -> String {
    case(name).to_str().expect("UTF-8").to_owned()
}
