//! The rank-sum test of Mann and Whitney (1947): do the values of one sample tend to be larger than those of another?
//! Nothing is assumed of their distribution, so a few slow runs do not upset it.

/// Samples of up to this size together get the exact distribution; larger ones the normal approximation.
const EXACT: usize = 60;

/// Chance that values of `a` would lie as far above those of `b` as they do, or farther, if both came from one distribution
/// (one-sided). Exact for up to 60 values, ties included; else the normal approximation with corrections for ties and
/// continuity. 1 when a sample is empty.
pub fn p_greater(a: &[f64], b: &[f64]) -> f64 {
    if a.is_empty() || b.is_empty() {
        return 1.0;
    }
    let ranks = doubled_ranks(a, b);
    let sum: usize = ranks[..a.len()].iter().sum();
    if ranks.len() <= EXACT { exact(&ranks, a.len(), sum) } else { normal(&ranks, a.len(), sum) }
}

/// The least that [`p_greater`] can be for samples of these sizes without ties: one over n + m choose n.
pub fn least_p(n: usize, m: usize) -> f64 {
    (1..=n).fold(1.0, |p, i| p * i as f64 / (m + i) as f64)
}

/// Twice the rank of each value among all, `a`'s first; equal values share the mean of their ranks.
fn doubled_ranks(a: &[f64], b: &[f64]) -> Vec<usize> {
    let all: Vec<f64> = a.iter().chain(b).copied().collect();
    all.iter()
        .map(|x| {
            let below = all.iter().filter(|y| *y < x).count();
            let equal = all.iter().filter(|y| *y == x).count().max(1);
            2 * below + equal + 1
        })
        .collect()
}

/// Share of all ways to pick `n` of the ranks whose sum reaches `sum`.
fn exact(ranks: &[usize], n: usize, sum: usize) -> f64 {
    let total: usize = ranks.iter().sum();
    // ways[k][s]: choices of k ranks that sum to s
    let mut ways = vec![vec![0.0f64; total + 1]; n + 1];
    ways[0][0] = 1.0;
    for rank in ranks {
        for k in (1..=n).rev() {
            for s in *rank..=total {
                ways[k][s] += ways[k - 1][s - rank];
            }
        }
    }
    ways[n][sum..].iter().sum::<f64>() / ways[n].iter().sum::<f64>()
}

fn normal(ranks: &[usize], n: usize, sum: usize) -> f64 {
    let (n, all) = (n as f64, ranks.len() as f64);
    let m = all - n;
    let u = sum as f64 / 2.0 - n * (n + 1.0) / 2.0;
    let ties: f64 = ranks.iter().map(|r| ranks.iter().filter(|s| *s == r).count() as f64).map(|t| t * t - 1.0).sum();
    let variance = n * m / 12.0 * ((all + 1.0) - ties / (all * (all - 1.0)));
    if variance <= 0.0 {
        return 1.0; // all values are equal
    }
    upper_tail((u - n * m / 2.0 - 0.5) / variance.sqrt())
}

/// Chance of a standard normal value above `z`, to 1e-7 (Abramowitz and Stegun 26.2.17).
fn upper_tail(z: f64) -> f64 {
    let t = 1.0 / (1.0 + 0.231_641_9 * z.abs());
    let series = [0.319_381_530, -0.356_563_782, 1.781_477_937, -1.821_255_978, 1.330_274_429];
    let density = (-z * z / 2.0).exp() / (2.0 * std::f64::consts::PI).sqrt();
    let tail = density * series.iter().rev().fold(0.0, |sum, c| (sum + c) * t);
    if z >= 0.0 { tail } else { 1.0 - tail }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(a: f64, b: f64, within: f64) {
        assert!((a - b).abs() <= within, "{a} {b}");
    }

    #[test]
    fn small_samples_by_hand() {
        // 20 ways to pick 3 of 6; one reaches 4 + 5 + 6, two reach 3 + 5 + 6
        close(p_greater(&[4.0, 5.0, 6.0], &[1.0, 2.0, 3.0]), 1.0 / 20.0, 1e-12);
        close(p_greater(&[3.0, 5.0, 6.0], &[1.0, 2.0, 4.0]), 2.0 / 20.0, 1e-12);
        close(p_greater(&[1.0, 2.0, 3.0], &[4.0, 5.0, 6.0]), 1.0, 1e-12);
        // five and five, wholly apart: one of 252
        close(p_greater(&[6.0, 7.0, 8.0, 9.0, 10.0], &[1.0, 2.0, 3.0, 4.0, 5.0]), 1.0 / 252.0, 1e-12);
        close(least_p(5, 5), 1.0 / 252.0, 1e-12);
        close(least_p(4, 4), 1.0 / 70.0, 1e-12);
    }

    #[test]
    fn ties_share_their_ranks() {
        assert_eq!(doubled_ranks(&[2.0, 3.0], &[1.0, 2.0]), [5, 8, 2, 5]);
        // ranks 1, 2.5, 2.5, 4: of 6 pairs, 2.5 + 4 and the other 2.5 + 4 reach 6.5
        close(p_greater(&[2.0, 3.0], &[1.0, 2.0]), 2.0 / 6.0, 1e-12);
        close(p_greater(&[1.0; 5], &[1.0; 5]), 1.0, 1e-12);
        close(p_greater(&[1.0; 40], &[1.0; 40]), 1.0, 1e-12);
        assert_eq!(p_greater(&[], &[1.0]), 1.0);
    }

    #[test]
    fn the_approximation_meets_the_exact_distribution() {
        close(upper_tail(1.959_964), 0.025, 1e-6);
        close(upper_tail(-1.0), 0.841_344_7, 1e-6);
        let a: Vec<f64> = (0..30).map(|i| f64::from(i * 7 % 30) + 4.3).collect();
        let b: Vec<f64> = (0..30).map(|i| f64::from(i * 11 % 30)).collect();
        let ranks = doubled_ranks(&a, &b);
        let sum = ranks[..30].iter().sum();
        close(exact(&ranks, 30, sum), normal(&ranks, 30, sum), 2e-3);
    }

    #[test]
    fn under_no_change_the_test_calls_slower_as_often_as_it_says() {
        // All 252 orders of 10 values: the share with p < 0.01 is at most 0.01.
        let orders = (0u32..1 << 10).filter(|mask| mask.count_ones() == 5);
        let (mut all, mut called) = (0, 0);
        for mask in orders {
            let side = |bit: u32| (0..10u32).filter(move |i| mask >> i & 1 == bit).map(f64::from).collect::<Vec<_>>();
            all += 1;
            called += usize::from(p_greater(&side(1), &side(0)) < 0.01);
        }
        assert!(all == 252 && called == 2, "{called} of {all}"); // U of 25 and 24: 1/252 and 2/252
    }
}
