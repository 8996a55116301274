//! What `serve` is told on the command line, for every binary that has the verb: an address, the file of a key, adapters.

#[cfg(unix)]
use std::ffi::OsStr;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::Path;

use super::memory::Plan;
use super::{Hosted, Loaded};
use crate::error::{Error, Kind, Result};
use crate::model::Model;
use crate::model::adapter::Adapter;
use crate::session::SessionOptions;

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

/// The keys of a key file, one a line; empty lines and lines that begin with `#` are passed over.
///
/// # Errors
/// `Input` when the file cannot be read, or holds no key, or a key with other characters than visible ASCII.
pub fn read_keys(path: &Path) -> Result<Vec<String>> {
    let wrong = |message: String| Error::new(Kind::Input, "--api-key-file", message);
    let text = std::fs::read_to_string(path).map_err(|e| wrong(format!("cannot read {}: {e}", path.display())))?;
    let lines = text.lines().map(str::trim).enumerate();
    let keys: Vec<(usize, &str)> = lines.filter(|(_, l)| !l.is_empty() && !l.starts_with('#')).collect();
    if let Some((i, _)) = keys.iter().find(|(_, key)| !key.bytes().all(|b| b.is_ascii_graphic())) {
        let place = format!("line {} of {}", i + 1, path.display());
        return Err(wrong(format!("{place} is not a key of visible ASCII characters; put a # before a remark")));
    }
    if keys.is_empty() {
        return Err(wrong(format!("{} holds no key; put one on a line of its own, in ASCII", path.display())));
    }
    Ok(keys.into_iter().map(|(_, key)| key.to_owned()).collect())
}

/// Refuses an address that others can reach when nothing keeps them out.
///
/// # Errors
/// `Input` with the ways out.
pub fn safe(addr: SocketAddr, has_key: bool, insecure: bool) -> Result<()> {
    if addr.ip().is_loopback() || has_key || insecure {
        return Ok(());
    }
    let message = "whoever reaches this address may use the server; give --api-key-file FILE, or --insecure-no-auth \
                   where something else keeps strangers out, or leave out --host";
    Err(Error::new(Kind::Input, format!("--host {}", addr.ip()), message))
}

/// What each `--adapter NAME=FILE[=SCALE]` names: name, adapter and scale.
///
/// # Errors
/// `Input` for no name, one that a request could not give, or the same twice; as [`Adapter::named`].
pub fn adapters(given: &[String]) -> Result<Vec<(String, Adapter, f32)>> {
    let mut all: Vec<(String, Adapter, f32)> = Vec::new();
    for text in given {
        let wrong = |message: &str| Error::new(Kind::Input, format!("--adapter {text}"), message);
        let Some((name, file)) = text.split_once('=') else {
            return Err(wrong("expected NAME=FILE, such as polite=polite.gguf"));
        };
        if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b)) {
            return Err(wrong("a name holds letters, digits, -, _ and ., and at least one"));
        }
        if all.iter().any(|(other, ..)| other == name) {
            return Err(wrong("this name is given twice"));
        }
        let (adapter, scale) = Adapter::named(file).map_err(|e| e.at("--adapter"))?;
        all.push((name.to_owned(), adapter, scale));
    }
    Ok(all)
}

/// Which `--adapter` is whose: of one model all are; where there are several, each says so, as `MODEL:NAME=FILE`. Gives what
/// is left for [`adapters`], one list a model.
///
/// # Errors
/// `Input` for one that names none of several models.
pub fn adapters_of(models: &[String], given: &[String]) -> Result<Vec<Vec<String>>> {
    let mut all = vec![Vec::new(); models.len()];
    for text in given {
        let whose = |model: &String| text.strip_prefix(model.as_str()).and_then(|rest| rest.strip_prefix(':'));
        match models.iter().enumerate().find_map(|(i, model)| Some((i, whose(model)?))) {
            Some((i, rest)) => all[i].push(rest.to_owned()),
            None if models.len() == 1 => all[0].push(text.clone()),
            None => {
                let message = format!("say whose it is, as in {}:{text}; here are: {}", models[0], models.join(", "));
                return Err(Error::new(Kind::Input, format!("--adapter {text}"), message));
            }
        }
    }
    Ok(all)
}

/// A model with its adapters, and as many sequences as were asked for or there is memory for.
/// - `parallel`, `kept`, `most`: as [`Plan::new`] has them
/// - `in_memory`: whether its weights lie in no file, so that they stay when it is let go of
/// - `say` hears when memory has room for fewer answers than usual
///
/// # Errors
/// As [`Plan::new`]. What the engine and the adapters have is told when it is loaded.
pub fn host(
    model: Model,
    adapters: Vec<(String, Adapter, f32)>,
    options: SessionOptions,
    (parallel, kept): (Option<usize>, Option<usize>),
    most: Option<u64>,
    in_memory: bool,
    say: impl FnOnce(&str),
) -> Result<Hosted> {
    let beside = adapters.iter().map(|(_, adapter, _)| adapter.bytes()).sum();
    let plan = Plan::new(&model, beside, &options, parallel, kept, most)?;
    if let Some(line) = plan.fewer(parallel) {
        say(&line);
    }
    let stays = if in_memory { plan.weights } else { 0 };
    Ok(Hosted::new(plan.bytes() - stays, stays, move || {
        let mut loaded = Loaded::with_slots(&model, &options, plan.sequences)?;
        for (_, adapter, scale) in &adapters {
            loaded.session.add_adapter(adapter, *scale)?;
        }
        Ok(loaded)
    }))
}

/// Why a server did not start, with the way out of a port that is taken.
pub fn cannot_listen(error: &Error) -> String {
    let source = std::error::Error::source(error).and_then(|e| e.downcast_ref::<std::io::Error>());
    let taken = source.is_some_and(|e| e.kind() == std::io::ErrorKind::AddrInUse);
    let way_out = if taken { "; choose another --port, or 0 for a free one" } else { "" };
    format!("cannot listen on {error}{way_out}")
}

/// Tells a service manager that the model answers: a datagram `READY=1`, as sd_notify(3) has it. `socket` is what it puts into
/// `NOTIFY_SOCKET`: a path, or on Linux `@` and a name without one.
///
/// # Errors
/// `Io` when nobody listens there.
#[cfg(unix)]
pub fn notify_ready(socket: &OsStr) -> Result<()> {
    use std::os::unix::net::{SocketAddr, UnixDatagram};
    let io = |e| Error::io(format!("NOTIFY_SOCKET {}", socket.display()), e);
    #[cfg(target_os = "linux")]
    if let Some(name) = socket.as_encoded_bytes().strip_prefix(b"@") {
        use std::os::linux::net::SocketAddrExt;
        let addr = SocketAddr::from_abstract_name(name).map_err(io)?;
        UnixDatagram::unbound().and_then(|from| from.send_to_addr(READY, &addr)).map_err(io)?;
        return Ok(());
    }
    let addr = SocketAddr::from_pathname(socket).map_err(io)?;
    UnixDatagram::unbound().and_then(|from| from.send_to_addr(READY, &addr)).map_err(io)?;
    Ok(())
}

#[cfg(unix)]
const READY: &[u8] = b"READY=1";

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(target_os = "linux")]
    #[test]
    fn a_service_manager_is_told_by_a_path_or_a_name_and_its_absence_is_an_error() {
        use std::os::linux::net::SocketAddrExt;
        use std::os::unix::net::{SocketAddr, UnixDatagram};
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let name = format!("edgeft-test-{}", std::process::id());
        let listeners = [
            (UnixDatagram::bind(&path).unwrap(), path.as_os_str().to_owned()),
            (
                UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap(),
                format!("@{name}").into(),
            ),
        ];
        for (listener, socket) in listeners {
            notify_ready(&socket).unwrap();
            let mut told = [0; 16];
            let n = listener.recv(&mut told).unwrap();
            assert_eq!(&told[..n], b"READY=1");
        }
        let error = notify_ready(dir.path().join("nobody").as_os_str()).unwrap_err();
        assert!(error.to_string().contains("NOTIFY_SOCKET") && error.kind() == Kind::Io, "{error}");
    }

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
        let put = |text: &str| std::fs::write(file.path(), text).unwrap();
        assert!(read_keys(file.path()).unwrap_err().to_string().contains("holds no key"));
        put("\n# only a remark\n");
        assert!(read_keys(file.path()).unwrap_err().to_string().contains("holds no key"));
        put(" secret \n\n# of the second client\nother\r\n");
        assert_eq!(read_keys(file.path()).unwrap(), ["secret", "other"]);
        put("secret\nmy second key\n");
        assert!(read_keys(file.path()).unwrap_err().to_string().contains("line 2"));
    }

    #[test]
    fn an_adapter_of_a_server_has_a_name_of_its_own() {
        for (given, because) in [
            (&["a.gguf"][..], "expected NAME=FILE"),
            (&["=a.gguf"], "at least one"),
            (&["a:b=a.gguf"], "letters, digits"),
            (&["a=no such file.gguf"], "no such file"),
        ] {
            let given: Vec<String> = given.iter().map(|g| (*g).to_owned()).collect();
            let error = adapters(&given).unwrap_err();
            assert!(error.to_string().contains(because) && error.kind() == Kind::Input, "{error}");
        }
        assert!(adapters(&[]).unwrap().is_empty());
    }

    #[test]
    fn of_several_models_each_adapter_names_its_own() {
        let texts = |all: &[&str]| all.iter().map(|t| (*t).to_owned()).collect::<Vec<String>>();
        let one = adapters_of(&texts(&["m"]), &texts(&["a=a.gguf", "m:b=b.gguf"])).unwrap();
        assert_eq!(one, [texts(&["a=a.gguf", "b=b.gguf"])]);
        let two = texts(&["m", "m.q4"]);
        let found = adapters_of(&two, &texts(&["m.q4:a=a.gguf", "m:b=b.gguf=0.5"])).unwrap();
        assert_eq!(found, [texts(&["b=b.gguf=0.5"]), texts(&["a=a.gguf"])]);
        let error = adapters_of(&two, &texts(&["a=a.gguf"])).unwrap_err().to_string();
        assert!(error.contains("--adapter a=a.gguf") && error.contains("m:a=a.gguf"), "{error}");
    }

    #[test]
    fn an_address_that_others_reach_needs_a_key_or_a_word() {
        let (here, all) = ("127.0.0.1:1".parse().unwrap(), "0.0.0.0:1".parse().unwrap());
        safe(here, false, false).unwrap();
        safe(all, true, false).unwrap();
        safe(all, false, true).unwrap();
        let error = safe(all, false, false).unwrap_err();
        assert!(error.kind() == Kind::Input && error.to_string().contains("--insecure-no-auth"), "{error}");
    }
}
