//! Time since a start, where the platform can tell it: `wasm32-unknown-unknown` has no clock, and std panics when asked.

use std::time::Instant;

/// Whether this platform can tell the time.
pub const THERE: bool = !cfg!(all(target_arch = "wasm32", target_os = "unknown"));

/// A clock that runs.
#[derive(Debug, Clone, Copy)]
pub struct Clock(Option<Instant>);

impl Clock {
    /// Starts now.
    pub fn start() -> Self {
        Self(THERE.then(Instant::now))
    }

    /// Milliseconds since the start; 0 where there is no clock.
    pub fn ms(self) -> f64 {
        self.0.map_or(0.0, |start| start.elapsed().as_secs_f64() * 1e3)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_goes_on() {
        let clock = Clock::start();
        std::thread::sleep(std::time::Duration::from_millis(2));
        assert!(clock.ms() >= 2.0 && clock.ms() < 60_000.0);
    }
}
