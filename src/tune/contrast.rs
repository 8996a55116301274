//! Texts that belong together, among those of a micro-batch: which vectors an anchor is held against.

use crate::data::batch::{Part, Row, Target};
use crate::model::layers::contrast::{Candidates, Contrasted, info_nce};
use candle_core::{Result, Tensor};
use std::collections::BTreeMap;

/// The loss with its settings.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Contrast {
    /// Cosines are divided by it; 0.05 is a scale of 20.
    pub temperature: f64,
}

impl Contrast {
    /// Sums over the anchors of these rows, whose vectors are v: (rows, C), and the gradient of v for `weight` times the
    /// summed loss. An anchor is held against every positive and negative of the batch but those that are as right as its
    /// own: the same text once more, and the positives of an anchor that says the same.
    pub fn learn(&self, v: &Tensor, rows: &[&Row], weight: f64) -> Result<(Contrasted, Tensor)> {
        // Equal texts have one number.
        let mut numbers: BTreeMap<&[u32], usize> = BTreeMap::new();
        let texts: Vec<usize> = rows
            .iter()
            .map(|row| {
                let next = numbers.len();
                *numbers.entry(&row.ids).or_insert(next)
            })
            .collect();
        let (mut anchors, mut own, mut candidates, mut of) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for (i, row) in rows.iter().enumerate() {
            match row.target {
                Target::Vector(Part::Anchor) => anchors.push(i),
                Target::Vector(part) => {
                    if part == Part::Positive {
                        own.push(i);
                    }
                    candidates.push(i);
                    of.push((part == Part::Positive).then(|| anchors.len() - 1));
                }
                ref other => candle_core::bail!("row {}: {other:?} has no vector", row.source),
            }
        }
        let hidden = |i: usize, j: usize| {
            texts[candidates[j]] == texts[own[i]] || of[j].is_some_and(|a| texts[anchors[a]] == texts[anchors[i]])
        };
        info_nce(
            v,
            &Candidates { own: &own, anchors: &anchors, rows: &candidates, hidden: &hidden },
            self.temperature,
            weight,
        )
    }
}

/// Anchors among rows.
pub fn anchors(rows: &[&Row]) -> usize {
    rows.iter().filter(|r| r.target == Target::Vector(Part::Anchor)).count()
}

/// Rows written into `metrics.jsonl` besides the loss: mean cosine with the own positive, and with the nearest other text.
pub fn fields(sums: &Contrasted) -> serde_json::Map<String, serde_json::Value> {
    let mean = |sum: f64| (sum / sums.count.max(1) as f64).into();
    let share = sums.right as f64 / sums.count.max(1) as f64;
    [("cosine_own", mean(sums.own)), ("cosine_other", mean(sums.other)), ("anchors_right", share.into())]
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn a_text_that_is_as_right_as_the_own_one_is_not_pushed_away() {
        let row = |id: u32, part| Row::new(vec![id], Target::Vector(part), 1);
        let vectors = |n: usize| {
            let value = |i: usize| ((i * 7919 + 13) % 2003) as f32 / 700.0 - 1.4;
            Tensor::from_vec((0..n * 3).map(value).collect::<Vec<_>>(), (n, 3), &Device::Cpu).unwrap()
        };
        let slope = |rows: &[Row], at: usize| {
            let rows: Vec<&Row> = rows.iter().collect();
            let (_, dv) = Contrast { temperature: 0.5 }.learn(&vectors(rows.len()), &rows, 1.0).unwrap();
            dv.get(at).unwrap().to_vec1::<f32>().unwrap().iter().fold(0f32, |m, v| m.max(v.abs()))
        };
        use Part::{Anchor, Negative, Positive};
        let different = [row(1, Anchor), row(2, Positive), row(3, Anchor), row(4, Positive), row(5, Negative)];
        assert!((0..5).all(|i| slope(&different, i) > 1e-3));
        // Both anchors ask the same: each one's positive is right for both, and nothing is left to part them from.
        let same = [row(1, Anchor), row(2, Positive), row(1, Anchor), row(4, Positive)];
        assert!((0..4).all(|i| slope(&same, i) == 0.0));
        // A negative of one that is the positive of the other.
        let shared = [row(1, Anchor), row(2, Positive), row(3, Anchor), row(4, Positive), row(2, Negative)];
        assert!(slope(&shared, 4) > 1e-3, "it is wrong for the second");
    }
}
