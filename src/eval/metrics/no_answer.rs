//! Questions that the context does not answer (SQuAD 2.0, Rajpurkar et al., arXiv:1806.03822): above which chance of "no
//! answer" to stay silent, found as the official script finds it.

/// One question: the score of what would be answered (exact match or F1), the chance that there is no answer, and whether
/// there is one.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Asked {
    /// Of the answer, were it given.
    pub score: f64,
    /// 0 to 1.
    pub no_answer: f64,
    /// Whether the context holds an answer.
    pub has_answer: bool,
}

/// The threshold with the best mean score, and that score, 0 to 1: a question is answered when its chance of "no answer" is
/// not above the threshold. All are silent at 0, which is returned when nothing is better. Of equal ones the lowest.
///
/// The script counts rows one at a time, and may so part questions of the same chance, which no threshold can; here they are
/// taken together.
pub fn best_threshold(rows: &[Asked]) -> (f64, f64) {
    let mut order: Vec<&Asked> = rows.iter().collect();
    order.sort_by(|a, b| a.no_answer.total_cmp(&b.no_answer));
    // Silent everywhere: right where there is no answer.
    let mut score = rows.iter().filter(|r| !r.has_answer).count() as f64;
    let (mut best, mut threshold) = (score, 0.0);
    for (i, row) in order.iter().enumerate() {
        score += if row.has_answer { row.score } else { -1.0 };
        let last_of_its_chance = order.get(i + 1).is_none_or(|next| next.no_answer > row.no_answer);
        if last_of_its_chance && score > best + 1e-12 {
            (best, threshold) = (score, row.no_answer);
        }
    }
    (threshold, best / rows.len().max(1) as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_threshold_matches_the_scripts() {
        // find_best_thresh of the SQuAD 2.0 evaluation script (v2.0) on the same rows, each with an answer to give.
        for (scores, want) in [(EXACT, BEST_EXACT), (F1, BEST_F1)] {
            let rows: Vec<Asked> = (0..scores.len())
                .map(|i| Asked { score: scores[i], no_answer: NO_ANSWER[i], has_answer: HAS_ANSWER[i] == 1 })
                .collect();
            let (threshold, best) = best_threshold(&rows);
            assert!((threshold - want.0).abs() < 1e-12 && (best - want.1).abs() < 1e-12, "{threshold} {best}");
        }
    }

    const HAS_ANSWER: [u8; 12] = [1, 1, 0, 1, 0, 0, 1, 1, 0, 1, 0, 1];
    const NO_ANSWER: [f64; 12] = [0.02, 0.31, 0.87, 0.12, 0.44, 0.95, 0.57, 0.09, 0.28, 0.63, 0.71, 0.99];
    const EXACT: [f64; 12] = [1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0, 1.0];
    const F1: [f64; 12] = [1.0, 0.5, 0.0, 1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.8, 0.0, 1.0];
    const BEST_EXACT: (f64, f64) = (0.12, 0.6666666666666666);
    const BEST_F1: (f64, f64) = (0.63, 0.6916666666666668);

    #[test]
    fn questions_of_one_chance_are_answered_together_or_not() {
        let row = |score, has_answer| Asked { score, no_answer: 0.5, has_answer };
        assert_eq!(best_threshold(&[row(1.0, true), row(0.0, false), row(0.0, false)]), (0.0, 2.0 / 3.0));
        assert_eq!(best_threshold(&[row(1.0, true), row(1.0, true), row(0.0, false)]), (0.5, 2.0 / 3.0));
        assert_eq!(best_threshold(&[]), (0.0, 0.0));
    }
}
