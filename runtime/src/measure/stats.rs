//! Median, deviation and percentile, defined once.

/// The value at `share` (0..=1) of the sorted samples: rank `share * (n - 1)`, and between two ranks the straight line
/// through their values (numpy's default, type 7 of Hyndman and Fan 1996). Half way of an even number of samples it is the
/// mean of the middle two. `None` of no samples.
pub fn percentile(samples: &[f64], share: f64) -> Option<f64> {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = share.clamp(0.0, 1.0) * sorted.len().checked_sub(1)? as f64;
    let (below, above) = (sorted[rank.floor() as usize], sorted[rank.ceil() as usize]);
    Some(below + (above - below) * rank.fract())
}

/// Half the samples lie on each side.
pub fn median(samples: &[f64]) -> Option<f64> {
    percentile(samples, 0.5)
}

/// Median absolute deviation from the median: half the samples lie this near. Not scaled to a standard deviation.
pub fn mad(samples: &[f64]) -> Option<f64> {
    let middle = median(samples)?;
    median(&samples.iter().map(|x| (x - middle).abs()).collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_even_number_is_the_mean_of_the_middle_two() {
        assert_eq!(median(&[4.0, 1.0, 3.0, 2.0]), Some(2.5));
        assert_eq!(median(&[5.0, 1.0]), Some(3.0));
        assert_eq!(median(&[9.0, 1.0, 5.0]), Some(5.0));
        assert_eq!(median(&[7.0]), Some(7.0));
        assert_eq!(median(&[]), None);
    }

    #[test]
    fn percentiles_lie_on_the_line_between_ranks() {
        let samples: Vec<f64> = (1..=11).rev().map(f64::from).collect();
        assert_eq!(percentile(&samples, 0.0), Some(1.0));
        assert_eq!(percentile(&samples, 0.9), Some(10.0));
        assert_eq!(percentile(&samples, 1.0), Some(11.0));
        // rank 0.9 * 3 = 2.7: 30 + 0.7 * (70 - 30)
        assert!((percentile(&[10.0, 20.0, 30.0, 70.0], 0.9).unwrap() - 58.0).abs() < 1e-12);
        assert_eq!(percentile(&[10.0, 20.0], 2.0), Some(20.0));
    }

    #[test]
    fn one_outlier_does_not_move_the_deviation() {
        // median 3; deviations 2 1 0 1 97; their median 1
        assert_eq!(mad(&[1.0, 2.0, 3.0, 4.0, 100.0]), Some(1.0));
        assert_eq!(mad(&[]), None);
    }
}
