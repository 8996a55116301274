//! How well scores part two classes, whatever the threshold.

use super::{Interval, bootstrap};

/// Area under the ROC curve: the chance that a row of the class scores higher than one that is not, ties counting half
/// (Mann and Whitney 1947). `None` where one side has no row.
pub fn auroc(rows: &[(f64, bool)]) -> Option<f64> {
    let order = by_score(rows);
    area(rows, &order, &vec![1; rows.len()])
}

/// The same with its interval; resamples that lack a class are left out, as they have no area.
pub fn auroc_interval(rows: &[(f64, bool)], seed: u64) -> Option<Interval> {
    let value = auroc(rows)?;
    let order = by_score(rows);
    Some(bootstrap(rows.len(), seed, |draw| {
        let mut times = vec![0usize; rows.len()];
        draw.iter().for_each(|i| times[*i] += 1);
        area(rows, &order, &times).unwrap_or(value)
    }))
}

fn by_score(rows: &[(f64, bool)]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..rows.len()).collect();
    order.sort_by(|a, b| rows[*a].0.total_cmp(&rows[*b].0));
    order
}

/// Row `i` counts `times[i]` times; `order` is ascending by score.
fn area(rows: &[(f64, bool)], order: &[usize], times: &[usize]) -> Option<f64> {
    let (mut below, mut wins, mut members) = (0.0, 0.0, 0.0);
    let mut at = 0;
    while at < order.len() {
        let score = rows[order[at]].0;
        let (mut inside, mut outside) = (0.0, 0.0);
        while at < order.len() && rows[order[at]].0 == score {
            *(if rows[order[at]].1 { &mut inside } else { &mut outside }) += times[order[at]] as f64;
            at += 1;
        }
        wins += inside * (below + outside / 2.0);
        below += outside;
        members += inside;
    }
    (members > 0.0 && below > 0.0).then(|| wins / (members * below))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_area_matches_a_recorded_one_with_ties() {
        // `sklearn.metrics.roc_auc_score` 1.9.1.
        let truth = [0, 1, 1, 0, 1, 0, 1, 1, 0, 0, 1, 0];
        let scores = [0.1, 0.9, 0.4, 0.4, 0.8, 0.7, 0.35, 0.6, 0.2, 0.4, 0.55, 0.65];
        let rows: Vec<(f64, bool)> = scores.into_iter().zip(truth).map(|(s, t)| (s, t == 1)).collect();
        assert!((auroc(&rows).unwrap() - 0.6944444444444444).abs() < 1e-12);
        let interval = auroc_interval(&rows, 0).unwrap();
        assert!(interval.low < interval.value && interval.value < interval.high && interval.high <= 1.0);
    }

    #[test]
    fn the_ends_and_what_has_no_area() {
        assert_eq!(auroc(&[(0.1, false), (0.2, true)]), Some(1.0));
        assert_eq!(auroc(&[(0.1, true), (0.2, false)]), Some(0.0));
        assert_eq!(auroc(&[(0.5, true), (0.5, false)]), Some(0.5));
        assert_eq!(auroc(&[(0.5, true)]), None);
    }
}
