//! One number a fold → mean and deviation.

use serde::{Deserialize, Serialize};
use std::fmt;

/// Mean and deviation of a metric over folds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// Mean of the folds.
    pub mean: f64,
    /// Standard deviation of the folds (n - 1 below).
    pub deviation: f64,
    /// Of each fold, in their order.
    pub values: Vec<f64>,
}

impl Spread {
    /// Of at least one value. The deviation of one is 0.
    pub fn of(values: &[f64]) -> Self {
        let n = values.len() as f64;
        let mean = values.iter().sum::<f64>() / n;
        let squares: f64 = values.iter().map(|v| (v - mean).powi(2)).sum();
        let deviation = if values.len() > 1 { (squares / (n - 1.0)).sqrt() } else { 0.0 };
        Self { mean, deviation, values: values.to_vec() }
    }
}

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.4} ± {:.4}", self.mean, self.deviation)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mean_and_deviation_are_those_of_a_sample() {
        let s = Spread::of(&[0.8, 0.9, 0.85, 0.95]);
        // numpy: mean 0.875, std(ddof=1) 0.06454972243679027
        assert!((s.mean - 0.875).abs() < 1e-12 && (s.deviation - 0.06454972243679027).abs() < 1e-12);
        assert_eq!(Spread::of(&[2.0]).deviation, 0.0);
        assert_eq!(s.to_string(), "0.8750 ± 0.0645");
    }
}
