//! Progress on stderr, and Ctrl-C.

use super::show;
use crate::tune::trainer::{StepReport, Watch};
use indicatif::ProgressBar;
use std::sync::atomic::{AtomicBool, Ordering};

/// Set by Ctrl-C.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Progress on stderr, and Ctrl-C.
pub struct Bar {
    bar: ProgressBar,
    val: String,
}

impl Bar {
    /// A bar, and a Ctrl-C that lets the step end.
    pub fn new() -> Self {
        // A second handler in one process (demo runs several tunes) is refused; the first serves.
        let _ = ctrlc::set_handler(|| {
            if INTERRUPTED.swap(true, Ordering::SeqCst) {
                std::process::exit(130); // a second Ctrl-C does not wait for the step to end
            }
        });
        Self { bar: show::bar(0, "tune"), val: String::new() }
    }

    /// Takes the bar away.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

impl Watch for Bar {
    fn step(&mut self, r: StepReport) {
        self.bar.set_length(r.steps as u64);
        self.bar.set_position(r.step as u64);
        let memory = show::peak_mib().map_or(String::new(), |m| format!(", {m:.0} MiB"));
        self.bar.set_message(format!("loss {:.3}{}, {:.0} tokens/s{memory}", r.loss, self.val, r.tokens_per_s));
    }

    fn evaluation(&mut self, _: usize, loss: f64, _: f64) {
        self.val = format!(", held out {loss:.3}");
    }

    fn stop(&mut self) -> bool {
        INTERRUPTED.load(Ordering::SeqCst)
    }
}
