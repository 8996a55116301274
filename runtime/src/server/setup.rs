//! What `serve` is told on the command line, for every binary that has the verb: an address, and the file of a key.

use std::net::{SocketAddr, ToSocketAddrs};
use std::path::Path;

use crate::error::{Error, Kind, Result};

/// What `--host` and `--port` name.
///
/// # Errors
/// `Input` when the host is no address and no name that resolves to one.
pub fn address(host: &str, port: u16) -> Result<SocketAddr> {
    let wrong = |message: String| Error::new(Kind::Input, format!("--host {host}"), message);
    let bare = host.trim_start_matches('[').trim_end_matches(']'); // [::1] is how URLs spell it
    let found = (bare, port).to_socket_addrs().map_err(|e| wrong(e.to_string()))?.next();
    found.ok_or_else(|| wrong("it names no address".into()))
}

/// The first line of a key file.
///
/// # Errors
/// `Input` when the file cannot be read, or holds no key.
pub fn read_key(path: &Path) -> Result<String> {
    let wrong = |message: String| Error::new(Kind::Input, "--api-key-file", message);
    let text = std::fs::read_to_string(path).map_err(|e| wrong(format!("cannot read {}: {e}", path.display())))?;
    let key = text.lines().next().unwrap_or_default().trim();
    if key.is_empty() || !key.is_ascii() {
        return Err(wrong(format!("the first line of {} holds no key; put one there, in ASCII", path.display())));
    }
    Ok(key.to_owned())
}

/// Why a server did not start, with the way out of a port that is taken.
pub fn cannot_listen(error: &Error) -> String {
    let source = std::error::Error::source(error).and_then(|e| e.downcast_ref::<std::io::Error>());
    let taken = source.is_some_and(|e| e.kind() == std::io::ErrorKind::AddrInUse);
    let way_out = if taken { "; choose another --port, or 0 for a free one" } else { "" };
    format!("cannot listen on {error}{way_out}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_names_or_addresses_of_either_kind() {
        assert_eq!(address("127.0.0.1", 1).unwrap().to_string(), "127.0.0.1:1");
        assert_eq!(address("[::1]", 2).unwrap().to_string(), "[::1]:2");
        let error = address("no such host", 3).unwrap_err();
        assert!(error.to_string().starts_with("--host no such host: ") && error.kind() == Kind::Input, "{error}");
    }

    #[test]
    fn a_key_file_without_a_key_is_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(read_key(file.path()).unwrap_err().to_string().contains("holds no key"));
        std::fs::write(file.path(), " secret \nignored\n").unwrap();
        assert_eq!(read_key(file.path()).unwrap(), "secret");
    }
}
