//! Vectors, judged by what lies near: of each anchor among all positives of the data, or against scores that people gave.

use super::metrics::{Interval, bootstrap, bootstrap_mean};
use super::rows::Judged;
use super::subject::Subject;
use super::{Evaluation, Outcomes, SEED};
use crate::data::batch::{Part, Row, Target};
use crate::data::schema::Task as TaskName;
use serde_json::json;

/// Numbers of vectors.
pub struct Vectors {
    /// Texts that an anchor is held against: all positives and negatives of the data, each once.
    pub candidates: usize,
    /// Share of anchors whose nearest text is right.
    pub accuracy_at_1: Interval,
    /// Share of anchors with a right text among the nearest ten.
    pub recall_at_10: Interval,
    /// Mean of one over the place of the first right text.
    pub mrr: Interval,
    /// Rank correlation of cosines with the data's scores, in place of the above.
    pub spearman: Option<Interval>,
}

/// Makes every vector, and ranks.
///
/// # Errors
/// What the engine says; rows without vectors.
pub fn evaluate(subject: &mut Subject, judged: &Judged, progress: &mut dyn FnMut(usize)) -> anyhow::Result<Evaluation> {
    let mut vectors = Vec::with_capacity(judged.rows.len());
    for (i, row) in judged.rows.iter().enumerate() {
        vectors.push(unit(&subject.logits(row)?.values));
        progress(i + 1);
    }
    let texts = Texts::of(&judged.rows)?;
    let blank = Interval { value: f64::NAN, low: f64::NAN, high: f64::NAN };
    let mut found = Vectors {
        candidates: texts.candidates.len(),
        accuracy_at_1: blank,
        recall_at_10: blank,
        mrr: blank,
        spearman: None,
    };
    let mut predictions = Vec::new();
    let outcomes;
    if judged.scores.is_empty() {
        let mut places = Vec::new();
        for (i, anchor) in texts.anchors.iter().enumerate() {
            let own = texts.right(i, &judged.rows);
            let cosines: Vec<f64> = texts.candidates.iter().map(|c| dot(&vectors[*anchor], &vectors[*c])).collect();
            let best = own.iter().map(|c| cosines[*c]).fold(f64::NEG_INFINITY, f64::max);
            // A tie with a wrong text is no success.
            let nearer = |c: &usize| !own.contains(c) && cosines[*c] >= best;
            let place = 1 + (0..cosines.len()).filter(nearer).count();
            places.push(place as f64);
            predictions.push(json!({"row": judged.rows[*anchor].source, "place": place, "cosine": best}));
        }
        let mean = |f: &dyn Fn(f64) -> f64| bootstrap_mean(&places.iter().map(|p| f(*p)).collect::<Vec<_>>(), SEED);
        found.accuracy_at_1 = mean(&|p| f64::from(u8::from(p == 1.0)));
        found.recall_at_10 = mean(&|p| f64::from(u8::from(p <= 10.0)));
        found.mrr = mean(&|p| 1.0 / p);
        outcomes = Outcomes::Places(places.iter().map(|p| 1.0 / p).collect());
    } else {
        let cosines: Vec<f64> = texts.anchors.iter().map(|a| dot(&vectors[*a], &vectors[*a + 1])).collect();
        let pick = |values: &[f64], rows: &[usize]| rows.iter().map(|i| values[*i]).collect::<Vec<f64>>();
        found.spearman =
            Some(bootstrap(cosines.len(), SEED, |rows| spearman(&pick(&cosines, rows), &pick(&judged.scores, rows))));
        for ((anchor, cosine), score) in texts.anchors.iter().zip(&cosines).zip(&judged.scores) {
            predictions.push(json!({"row": judged.rows[*anchor].source, "cosine": cosine, "score": score}));
        }
        outcomes = Outcomes::Scores(cosines.into_iter().zip(judged.scores.iter().copied()).collect());
    }
    let examples = texts.anchors.len();
    Ok(Evaluation { vectors: Some(found), ..Evaluation::new(TaskName::Embed, examples, outcomes, predictions) })
}

/// Which rows are what.
struct Texts {
    /// Rows of anchors; the next row of each is its positive.
    anchors: Vec<usize>,
    /// Rows of different texts that an anchor is held against.
    candidates: Vec<usize>,
}

impl Texts {
    fn of(rows: &[Row]) -> anyhow::Result<Self> {
        let (mut anchors, mut candidates) = (Vec::new(), Vec::new());
        let mut seen = std::collections::BTreeSet::new();
        for (i, row) in rows.iter().enumerate() {
            match row.target {
                Target::Vector(Part::Anchor) => anchors.push(i),
                Target::Vector(_) if seen.insert(&row.ids) => candidates.push(i),
                Target::Vector(_) => {}
                _ => crate::bad_input!("row {}: vectors are judged by texts that belong together", row.source),
            }
        }
        Ok(Self { anchors, candidates })
    }

    /// Places among the candidates of what is right for anchor `i`: the positives of every anchor that says the same.
    fn right(&self, i: usize, rows: &[Row]) -> Vec<usize> {
        let same = self.anchors.iter().filter(|a| rows[**a].ids == rows[self.anchors[i]].ids);
        let own: Vec<&[u32]> = same.map(|a| rows[*a + 1].ids.as_slice()).collect();
        (0..self.candidates.len()).filter(|c| own.contains(&rows[self.candidates[*c]].ids.as_slice())).collect()
    }
}

/// Spearman's rank correlation: Pearson's of the ranks, ties sharing the mean of theirs. NaN where one side does not vary.
pub fn spearman(a: &[f64], b: &[f64]) -> f64 {
    let (a, b) = (ranks(a), ranks(b));
    let mean = (a.len() as f64 + 1.0) / 2.0;
    let sum = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| (x - mean) * (y - mean)).sum::<f64>();
    sum(&a, &b) / (sum(&a, &a) * sum(&b, &b)).sqrt()
}

fn ranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|a, b| values[*a].total_cmp(&values[*b]));
    let mut out = vec![0.0; values.len()];
    let mut below = 0;
    for tied in order.chunk_by(|a, b| values[*a] == values[*b]) {
        tied.iter().for_each(|i| out[*i] = below as f64 + (tied.len() as f64 + 1.0) / 2.0);
        below += tied.len();
    }
    out
}

fn unit(v: &[f32]) -> Vec<f64> {
    let length = v.iter().map(|x| f64::from(*x) * f64::from(*x)).sum::<f64>().sqrt().max(1e-12);
    v.iter().map(|x| f64::from(*x) / length).collect()
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// scipy.stats.spearmanr of the same numbers: 0.8207826816681233 and -1.
    #[test]
    fn ranks_share_their_ties() {
        assert_eq!(ranks(&[3.0, 1.0, 3.0, 2.0]), [3.5, 1.0, 3.5, 2.0]);
        let r = spearman(&[1.0, 2.0, 3.0, 4.0, 5.0], &[5.0, 6.0, 7.0, 8.0, 7.0]);
        assert!((r - 0.820_782_681_668_123_3).abs() < 1e-12, "{r}");
        assert!((spearman(&[1.0, 2.0, 9.0], &[3.0, 1.0, -7.0]) + 1.0).abs() < 1e-12);
        assert!(spearman(&[1.0, 1.0], &[1.0, 2.0]).is_nan());
    }

    #[test]
    fn what_is_right_for_one_anchor_is_right_for_its_twin() {
        let row = |id: u32, part| Row::new(vec![id], Target::Vector(part), 1);
        use Part::{Anchor, Negative, Positive};
        let rows = [
            row(1, Anchor),
            row(2, Positive),
            row(3, Anchor),
            row(4, Positive),
            row(2, Negative),
            row(1, Anchor),
            row(4, Positive),
        ];
        let texts = Texts::of(&rows).unwrap();
        assert_eq!((&texts.anchors[..], &texts.candidates[..]), (&[0, 2, 5][..], &[1, 3][..]));
        assert_eq!((texts.right(0, &rows), texts.right(1, &rows)), (vec![0, 1], vec![1]));
        assert!(Texts::of(&[Row::new(vec![1], Target::Class(0), 1)]).is_err());
    }
}
