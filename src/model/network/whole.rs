//! What whole rows say: log-probabilities of answers, and vectors of texts. What a row weighs in the loss is known only when
//! others are, so each gradient here takes a function from what was found to its slope.

use super::{Head, Network};
use crate::data::batch::Row;
use crate::model::layers::linear::Linear;
use crate::model::layers::{Grads, Pass, sequence};
use candle_core::{Result, Tensor};

impl Network {
    /// log p of the learned tokens of each row, summed, in nats.
    pub fn log_probs(&self, rows: &[&Row]) -> Result<Vec<f64>> {
        let batch = Self::pack(rows);
        let (head, targets) = self.answers(rows)?;
        let h = self.trunk.forward(&batch, Pass::EVAL)?;
        Ok(by_row(rows, &sequence::log_probs(head, &h, &targets)?))
    }

    /// The same, and adds to `grads` the gradient of a loss whose slope with respect to each row's log p is what `slopes`
    /// says: it sees those of all rows, in their order.
    pub fn learn_log_probs(
        &self,
        rows: &[&Row],
        pass: Pass,
        again: usize,
        grads: &mut Grads,
        slopes: &mut dyn FnMut(&[f64]) -> Vec<f64>,
    ) -> Result<Vec<f64>> {
        let batch = Self::pack(rows);
        let (head, targets) = self.answers(rows)?;
        let (h, backward) = self.trunk.forward_keep(&batch, pass, again)?;
        let log_probs = by_row(rows, &sequence::log_probs(head, &h, &targets)?);
        let slopes = slopes(&log_probs);
        let by_token: Vec<f64> =
            rows.iter().zip(&slopes).flat_map(|(row, slope)| std::iter::repeat_n(*slope, row.ids.len())).collect();
        let dh = sequence::backward(head, &h, &targets, &by_token, grads)?;
        backward(&dh, grads)?;
        Ok(log_probs)
    }

    /// A vector a row, (rows, C), as long as it comes.
    pub fn vectors(&self, rows: &[&Row], pass: Pass) -> Result<Tensor> {
        let batch = Self::pack(rows);
        let Head::Pool(pooling) = &self.head else {
            candle_core::bail!("a network for {:?} has no vectors", self.task)
        };
        pooling.forward(&self.trunk.forward(&batch, pass)?, &batch.segments)
    }

    /// The same, and adds to `grads` the gradient of a loss whose gradient with respect to the vectors, (rows, C), is what
    /// `slope` says of them.
    pub fn learn_vectors(
        &self,
        rows: &[&Row],
        pass: Pass,
        again: usize,
        grads: &mut Grads,
        slope: &mut dyn FnMut(&Tensor) -> Result<Tensor>,
    ) -> Result<()> {
        let batch = Self::pack(rows);
        let Head::Pool(pooling) = &self.head else {
            candle_core::bail!("a network for {:?} has no vectors", self.task)
        };
        let (h, backward) = self.trunk.forward_keep(&batch, pass, again)?;
        let dv = slope(&pooling.forward(&h, &batch.segments)?)?;
        backward(&pooling.backward(&h, &batch.segments, &dv)?, grads)
    }

    /// The language head, and what each token of the packed rows must predict.
    fn answers(&self, rows: &[&Row]) -> Result<(&Linear, Vec<Option<u32>>)> {
        let Head::Language { linear, .. } = &self.head else {
            candle_core::bail!("a network for {:?} has no tokens to predict", self.task)
        };
        let mut targets = Vec::new();
        for row in rows {
            match row.target.tokens() {
                Some(tokens) => targets.extend_from_slice(tokens),
                None => candle_core::bail!("row {}: {:?} has no tokens to predict", row.source, row.target),
            }
        }
        Ok((linear, targets))
    }
}

fn by_row(rows: &[&Row], by_token: &[f64]) -> Vec<f64> {
    let mut rest = by_token;
    let mut sum = |row: &&Row| {
        let (own, behind) = rest.split_at(row.ids.len());
        rest = behind;
        own.iter().sum()
    };
    rows.iter().map(&mut sum).collect()
}
