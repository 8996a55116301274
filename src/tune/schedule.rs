//! The learning rate as a pure function of the step.

use serde::{Deserialize, Serialize};

/// Shape of the learning rate after warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Schedule {
    /// Stays.
    Constant,
    /// Falls in a line to zero.
    Linear,
    /// Falls along half a cosine to zero.
    Cosine,
    /// Stays, then falls in a line to zero over the last fifth (warm-up, stable, decay).
    Wsd,
}

impl Schedule {
    /// Factor of the peak rate at `step` (from 0) of `total`, after `warmup` steps that rise in a line.
    pub fn factor(self, step: usize, warmup: usize, total: usize) -> f64 {
        if step < warmup {
            return (step + 1) as f64 / (warmup + 1) as f64;
        }
        let length = total.saturating_sub(warmup).max(1) as f64;
        let done = ((step - warmup) as f64 / length).min(1.0);
        match self {
            Self::Constant => 1.0,
            Self::Linear => 1.0 - done,
            Self::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * done).cos()),
            Self::Wsd => ((1.0 - done) / 0.2).min(1.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedules_start_at_the_peak_and_end_near_zero() {
        for schedule in [Schedule::Linear, Schedule::Cosine, Schedule::Wsd] {
            assert_eq!(schedule.factor(10, 10, 110), 1.0, "{schedule:?}");
            assert!(schedule.factor(109, 10, 110) < 0.06, "{schedule:?}");
        }
        assert_eq!(Schedule::Constant.factor(109, 10, 110), 1.0);
    }

    #[test]
    fn warmup_rises_in_a_line_and_never_starts_at_zero() {
        let rates: Vec<f64> = (0..4).map(|s| Schedule::Constant.factor(s, 3, 10)).collect();
        assert_eq!(rates, [0.25, 0.5, 0.75, 1.0]);
    }
}
