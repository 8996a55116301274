//! What the system tells a server that runs: stop, or read the keys again.

use super::Stopper;
use crate::error::{Error, Result};
use tokio::runtime::{Builder, Runtime};

/// From here on Ctrl-C and SIGTERM stop the server, and SIGHUP reads the files of keys and certificate again; `tell` gets a line for each. After
/// a second Ctrl-C or SIGTERM `at_once` is called, which should end the process: what runs is not waited for.
/// # Errors
/// [`crate::Kind::Io`] when the system takes no handler or gives no thread.
pub fn watch(
    stopper: Stopper,
    tell: impl Fn(&str) + Send + 'static,
    at_once: impl Fn() + Send + 'static,
) -> Result<()> {
    let io = |e| Error::io("signals", e);
    let runtime = Builder::new_current_thread().enable_all().build().map_err(io)?;
    let mut signals = Signals::new(&runtime).map_err(io)?;
    let watch = move || {
        let mut stopping = false;
        loop {
            match runtime.block_on(signals.next()) {
                Signal::Stop if stopping => at_once(),
                Signal::Stop => {
                    stopping = true;
                    tell("stopping; what runs may end");
                    stopper.stop();
                }
                Signal::Reload => {
                    match stopper.reload_keys() {
                        Ok(0) => (), // none are asked for
                        Ok(n) => tell(&format!("keys read again: {n}")),
                        Err(e) => tell(&format!("the keys stay as they were: {e}")),
                    }
                    #[cfg(feature = "tls")]
                    match stopper.reload_certificate() {
                        Some(Ok(())) => tell("certificate read again"),
                        Some(Err(e)) => tell(&format!("the certificate stays as it was: {e}")),
                        None => (),
                    }
                }
            }
        }
    };
    std::thread::Builder::new().name("edgeft-signals".into()).spawn(watch).map_err(io)?;
    Ok(())
}

enum Signal {
    Stop,
    Reload,
}

#[cfg(unix)]
struct Signals {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
    hangup: tokio::signal::unix::Signal,
}

#[cfg(unix)]
impl Signals {
    fn new(runtime: &Runtime) -> std::io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        let _inside = runtime.enter();
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) -> Signal {
        tokio::select! {
            _ = self.interrupt.recv() => Signal::Stop,
            _ = self.terminate.recv() => Signal::Stop,
            _ = self.hangup.recv() => Signal::Reload,
        }
    }
}

#[cfg(windows)]
struct Signals {
    interrupt: tokio::signal::windows::CtrlC,
    close: tokio::signal::windows::CtrlClose,
}

#[cfg(windows)]
impl Signals {
    fn new(runtime: &Runtime) -> std::io::Result<Self> {
        let _inside = runtime.enter();
        Ok(Self { interrupt: tokio::signal::windows::ctrl_c()?, close: tokio::signal::windows::ctrl_close()? })
    }

    async fn next(&mut self) -> Signal {
        tokio::select! {
            _ = self.interrupt.recv() => Signal::Stop,
            _ = self.close.recv() => Signal::Stop,
        }
    }
}
