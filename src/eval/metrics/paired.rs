//! Whether one model is better than another on the same rows, or was lucky.

use super::{RESAMPLES, percentile};
use crate::rng;
use rayon::prelude::*;
use serde::Serialize;

/// A difference of one metric, first model less second.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Difference {
    /// Of the first model.
    pub subject: f64,
    /// Of the second.
    pub against: f64,
    /// First less second.
    pub difference: f64,
    /// 2.5th percentile of the difference over paired resamples of the rows.
    pub low: f64,
    /// 97.5th percentile.
    pub high: f64,
    /// Chance of a difference at least so large if the models were alike, by the test that is named.
    pub p: f64,
    /// `randomization` or `mcnemar`.
    pub test: &'static str,
}

/// Compares any metric of the same rows: the interval from a paired bootstrap (both models keep their rows together), p from
/// approximate randomization (Noreen 1989): in each of 1,000 rounds the two answers to a row change sides by a coin flip.
///
/// `metric` takes (row, whether the sides change) and gives the metric of both sides.
pub fn compare(n: usize, seed: u64, metric: impl Fn(&[(usize, bool)]) -> (f64, f64) + Sync) -> Difference {
    let (subject, against) = metric(&(0..n).map(|row| (row, false)).collect::<Vec<_>>());
    let difference = subject - against;
    let less = |(a, b): (f64, f64)| a - b;
    let mut drawn: Vec<f64> = (0..RESAMPLES)
        .into_par_iter()
        .map(|draw| {
            let stream = rng::stream("bootstrap", draw as u64);
            let row = |i: usize| ((rng::bits(seed, stream, i as u64) % n.max(1) as u64) as usize, false);
            less(metric(&(0..n).map(row).collect::<Vec<_>>()))
        })
        .collect();
    drawn.sort_by(f64::total_cmp);
    let as_large = (0..RESAMPLES)
        .into_par_iter()
        .filter(|draw| {
            let stream = rng::stream("randomization", *draw as u64);
            let row = |i: usize| (i, rng::bits(seed, stream, i as u64) & 1 == 1);
            let swapped = less(metric(&(0..n).map(row).collect::<Vec<_>>()));
            swapped.abs() >= difference.abs() - 1e-12
        })
        .count();
    let (low, high) = match n {
        0 | 1 => (difference, difference),
        _ => (percentile(&drawn, 0.025), percentile(&drawn, 0.975)),
    };
    let p = (as_large + 1) as f64 / (RESAMPLES + 1) as f64;
    Difference { subject, against, difference, low, high, p, test: "randomization" }
}

/// Compares two models that are right or wrong row by row: the interval as in [`compare`], p from McNemar's exact test.
pub fn compare_right(rows: &[(bool, bool)], seed: u64) -> Difference {
    let share = |rows: &[(usize, bool)], of: &dyn Fn(usize, bool) -> bool| {
        rows.iter().filter(|(i, swap)| of(*i, *swap)).count() as f64 / rows.len().max(1) as f64
    };
    let found = compare(rows.len(), seed, |draw| {
        let first = |i: usize, swap: bool| if swap { rows[i].1 } else { rows[i].0 };
        let second = |i: usize, swap: bool| if swap { rows[i].0 } else { rows[i].1 };
        (share(draw, &first), share(draw, &second))
    });
    let only = |wanted: (bool, bool)| rows.iter().filter(|r| **r == wanted).count();
    Difference { p: mcnemar(only((true, false)), only((false, true))), test: "mcnemar", ..found }
}

/// McNemar's exact test, two-sided: the chance that of so many rows on which only one model is right, no more are on one side
/// than there were, if a coin decided. 1 without such rows.
pub fn mcnemar(only_first: usize, only_second: usize) -> f64 {
    let (n, few) = (only_first + only_second, only_first.min(only_second));
    // ln of n choose k, built up from k = 0.
    let (mut log, mut sum) = (-(n as f64) * std::f64::consts::LN_2, 0.0);
    for k in 0..=few {
        sum += log.exp();
        log += ((n - k) as f64 / (k + 1) as f64).ln();
    }
    (2.0 * sum).min(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mcnemar_matches_recorded_values() {
        // `scipy.stats.binomtest(min(b, c), b + c, 0.5).pvalue` 1.17.1.
        for (b, c, p) in
            [(3, 11, 0.057373046875), (5, 5, 1.0), (1, 9, 0.021484375), (40, 60, 0.05688793364098089), (0, 0, 1.0)]
        {
            assert!((mcnemar(b, c) - p).abs() < 1e-9, "{b} {c}: {}", mcnemar(b, c));
            assert_eq!(mcnemar(b, c), mcnemar(c, b));
        }
        assert!(mcnemar(1200, 1500) < 1e-7 && mcnemar(100_000, 100_000) > 0.99);
    }

    #[test]
    fn a_clear_difference_is_told_from_none() {
        let better: Vec<(bool, bool)> = (0..300).map(|i| (i % 10 != 0, i % 3 != 0)).collect();
        let d = compare_right(&better, 0);
        assert!((d.difference - (0.9 - 2.0 / 3.0)).abs() < 1e-9 && d.low > 0.1 && d.high < 0.35 && d.p < 1e-6, "{d:?}");
        let alike: Vec<(bool, bool)> = (0..300).map(|i| (i % 10 != 0, i % 10 != 1)).collect();
        let d = compare_right(&alike, 0);
        assert!(d.difference == 0.0 && d.low < 0.0 && d.high > 0.0 && d.p == 1.0, "{d:?}");
    }

    #[test]
    fn randomization_comes_near_the_exact_test() {
        // 14 rows part the models, 11 against 3; McNemar says 0.0574.
        let rows: Vec<(f64, f64)> =
            (0..60).map(|i| if i < 11 { (1.0, 0.0) } else { (0.0, f64::from(u8::from(i < 14))) }).collect();
        let mean = |draw: &[(usize, bool)]| {
            let n = draw.len() as f64;
            let side = |first: bool| {
                draw.iter().map(|(i, swap)| if *swap == first { rows[*i].1 } else { rows[*i].0 }).sum::<f64>() / n
            };
            (side(true), side(false))
        };
        let d = compare(60, 1, mean);
        assert!((d.p - 0.0574).abs() < 0.025 && d.subject < d.high + d.against, "{d:?}");
    }
}
