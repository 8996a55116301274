//! Whether probabilities mean what they say (Guo et al., arXiv:1706.04599): expected calibration error, and the one number
//! that mends most of it.

use super::{Interval, bootstrap};
use serde::{Deserialize, Serialize};

/// Bins of equal width that confidences are counted in, as in the paper.
pub const BINS: usize = 15;

/// Temperatures that are looked among; a fit that ends at either has no finite answer.
const COLDEST: f64 = 0.01;
const HOTTEST: f64 = 100.0;

/// Probabilities of every label for one row, and the right label.
pub type Scored = (Vec<f64>, u32);

/// Rows of one bin.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Bin {
    /// How many.
    pub count: usize,
    /// Mean probability of the label that was predicted.
    pub confidence: f64,
    /// Share that was predicted right.
    pub accuracy: f64,
}

/// Of each row the probability of the likeliest label, and whether it is the right one.
pub fn confidences(rows: &[Scored]) -> Vec<(f64, bool)> {
    rows.iter()
        .map(|(p, truth)| {
            let best = likeliest(p);
            (p[best], best as u32 == *truth)
        })
        .collect()
}

/// The first of the likeliest labels.
pub fn likeliest(p: &[f64]) -> usize {
    (0..p.len()).fold(0, |b, i| if p[i] > p[b] { i } else { b })
}

/// Bin i holds the rows whose confidence lies in (i/15, (i + 1)/15].
pub fn bins(rows: &[(f64, bool)]) -> Vec<Bin> {
    let mut out = vec![Bin::default(); BINS];
    for (confidence, right) in rows {
        let at = (confidence * BINS as f64).ceil().clamp(1.0, BINS as f64) as usize - 1;
        let bin = &mut out[at];
        bin.count += 1;
        bin.confidence += confidence;
        bin.accuracy += f64::from(u8::from(*right));
    }
    for bin in out.iter_mut().filter(|b| b.count > 0) {
        bin.confidence /= bin.count as f64;
        bin.accuracy /= bin.count as f64;
    }
    out
}

/// Mean distance between confidence and accuracy, each bin weighing as much as it has rows.
pub fn ece(rows: &[(f64, bool)]) -> f64 {
    let gap = |b: Bin| b.count as f64 * (b.accuracy - b.confidence).abs();
    bins(rows).into_iter().map(gap).sum::<f64>() / rows.len().max(1) as f64
}

/// The same with its interval.
pub fn ece_interval(rows: &[(f64, bool)], seed: u64) -> Interval {
    bootstrap(rows.len(), seed, |draw| ece(&draw.iter().map(|i| rows[*i]).collect::<Vec<_>>()))
}

/// Mean negative log-likelihood of the right labels, nats.
pub fn nll(rows: &[Scored]) -> f64 {
    let sum: f64 = rows.iter().map(|(p, truth)| -log(p[*truth as usize])).sum();
    sum / rows.len().max(1) as f64
}

/// The temperature T > 0 for which softmax(logits / T) makes the right labels likeliest. Logits are known up to a constant
/// a row, as logarithms of the probabilities. The loss is convex in 1/T, so that its slope has one zero.
pub fn temperature(rows: &[Scored]) -> f64 {
    let logs: Vec<(Vec<f64>, usize)> =
        rows.iter().map(|(p, truth)| (p.iter().map(|v| log(*v)).collect(), *truth as usize)).collect();
    // d NLL / d(1/T): what is expected of the logits, less the right one.
    let slope = |inverse: f64| -> f64 {
        let of = |(z, truth): &(Vec<f64>, usize)| {
            let (weights, sum) = weights(z, inverse);
            // Differences first: near an end the sum would be lost beside the logits.
            z.iter().zip(&weights).map(|(v, w)| (v - z[*truth]) * w).sum::<f64>() / sum
        };
        logs.iter().map(of).sum()
    };
    let (mut low, mut high) = ((1.0 / HOTTEST).ln(), (1.0 / COLDEST).ln());
    for _ in 0..80 {
        let middle = (low + high) / 2.0;
        if slope(middle.exp()) <= 0.0 { low = middle } else { high = middle }
    }
    (-(low + high) / 2.0).exp()
}

/// Whether a temperature lies at an end of what is looked among: every row right (or wrong), so that there is no best one.
pub fn is_unbounded(temperature: f64) -> bool {
    !(COLDEST * 1.01..=HOTTEST / 1.01).contains(&temperature)
}

/// The rows as they are at a temperature.
pub fn at_temperature(rows: &[Scored], temperature: f64) -> Vec<Scored> {
    let of = |(p, truth): &Scored| {
        let z: Vec<f64> = p.iter().map(|v| log(*v)).collect();
        let (weights, sum) = weights(&z, 1.0 / temperature);
        (weights.into_iter().map(|w| w / sum).collect(), *truth)
    };
    rows.iter().map(of).collect()
}

fn weights(z: &[f64], inverse: f64) -> (Vec<f64>, f64) {
    let max = z.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let weights: Vec<f64> = z.iter().map(|z| ((z - max) * inverse).exp()).collect();
    let sum = weights.iter().sum();
    (weights, sum)
}

/// ln, with an end: a probability that underflowed is not impossible.
fn log(p: f64) -> f64 {
    p.max(1e-300).ln()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 20 rows of logits of 3 labels, and the right ones. Numbers below: numpy 2 (bins as `linspace(0, 1, 16)`, open below),
    /// `sklearn.metrics.log_loss` 1.9.1, and `scipy.optimize.minimize_scalar` 1.17.1 over T in 0.05..50.
    fn recorded() -> Vec<Scored> {
        let logits = [
            [0.25, -0.26, 1.28],
            [0.21, -1.07, 0.72],
            [2.61, 1.89, -1.41],
            [-2.53, -1.25, 0.08],
            [-4.65, -0.44, -2.49],
            [-1.46, -1.09, -0.63],
            [0.82, 2.09, -0.26],
            [2.73, -1.33, 0.7],
            [1.81, 0.19, -1.49],
            [-1.84, -0.92, 0.44],
            [-2.02, -0.42, -0.32],
            [1.08, 0.43, 0.71],
            [-1.31, -0.26, 1.57],
            [2.99, -2.52, 3.03],
            [2.69, 1.56, 0.53],
            [-0.63, 2.92, 3.92],
            [3.6, 2.63, 0.71],
            [-2.42, -0.01, 1.31],
            [-2.58, 0.79, 0.86],
            [1.39, -2.37, -1.32],
        ];
        let truth = [2, 1, 0, 0, 2, 0, 1, 0, 0, 1, 2, 0, 0, 2, 2, 1, 0, 2, 1, 0];
        let row = |z: &[f64; 3]| {
            let (w, sum) = weights(z, 1.0);
            w.into_iter().map(|w| w / sum).collect::<Vec<f64>>()
        };
        logits.iter().map(row).zip(truth).collect()
    }

    #[test]
    fn error_and_temperature_match_recorded_values() {
        let rows = recorded();
        assert!((ece(&confidences(&rows)) - 0.26143777400582446).abs() < 1e-12);
        assert!((nll(&rows) - 1.1385435882194483).abs() < 1e-12);
        let t = temperature(&rows);
        assert!((t - 2.506964908).abs() < 1e-6, "{t}");
        assert!((nll(&at_temperature(&rows, t)) - 0.9890702532174955).abs() < 1e-9);
        assert!(!is_unbounded(t));
    }

    #[test]
    fn sharpened_probabilities_ask_for_the_temperature_that_they_were_sharpened_by() {
        let t = temperature(&recorded());
        let again = temperature(&at_temperature(&recorded(), 0.5));
        assert!((again / (2.0 * t) - 1.0).abs() < 1e-9, "{again}");
    }

    #[test]
    fn a_row_is_counted_in_the_bin_whose_upper_end_it_meets() {
        let counted = bins(&[(1.0, true), (1.0, false), (3.0 / 15.0, true), (0.0, false)]);
        assert_eq!(counted[14], Bin { count: 2, confidence: 1.0, accuracy: 0.5 });
        assert_eq!((counted[2].count, counted[0].count), (1, 1));
        assert_eq!(counted.iter().map(|b| b.count).sum::<usize>(), 4);
    }

    #[test]
    fn where_every_row_is_right_no_temperature_is_best() {
        assert!(is_unbounded(temperature(&[(vec![0.6, 0.4], 0), (vec![0.3, 0.7], 1)])));
        assert!(is_unbounded(temperature(&[(vec![0.6, 0.4], 1), (vec![0.3, 0.7], 0)])));
    }
}
