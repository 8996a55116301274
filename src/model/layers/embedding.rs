//! Tables of vectors: words, learned positions, token types.

use super::Grads;
use super::weight::Weight;
use candle_core::{Result, Tensor};

/// A table, (rows, C).
pub struct Embedding {
    /// Module path.
    pub name: String,
    /// (rows, C).
    pub weight: Weight,
    /// A row that is read and never learned: torch's `padding_idx`.
    pub padding: Option<u32>,
    /// Whether the table is trained.
    pub trained: bool,
}

impl Embedding {
    /// A frozen table.
    pub fn new(name: String, weight: impl Into<Weight>, padding: Option<u32>) -> Self {
        Self { name, weight: weight.into(), padding, trained: false }
    }

    /// (N, C): a row for each id.
    pub fn forward(&self, ids: &[u32]) -> Result<Tensor> {
        self.weight.rows(ids, self.weight.device())
    }

    /// Adds the rows of dy: (N, C) to the gradient of those that were read.
    pub fn backward(&self, ids: &[u32], dy: &Tensor, grads: &mut Grads) -> Result<()> {
        if !self.trained {
            return Ok(());
        }
        let device = dy.device();
        let zeros = Tensor::zeros(self.weight.dims()?, dy.dtype(), device)?;
        let learned: Vec<u32> = (0..ids.len() as u32).filter(|i| Some(ids[*i as usize]) != self.padding).collect();
        let grad = if learned.len() == ids.len() {
            zeros.index_add(&Tensor::new(ids, device)?, dy, 0)?
        } else if learned.is_empty() {
            zeros
        } else {
            let ids: Vec<u32> = learned.iter().map(|i| ids[*i as usize]).collect();
            let dy = dy.index_select(&Tensor::new(learned, device)?, 0)?;
            zeros.index_add(&Tensor::new(ids, device)?, &dy, 0)?
        };
        grads.add(&format!("{}.weight", self.name), grad)
    }

    /// Calls `f` with the name and the place of the table, if it is trained.
    pub fn trained(&mut self, f: &mut dyn FnMut(String, &mut Tensor)) {
        if self.trained
            && let Some(w) = self.weight.trainable()
        {
            f(format!("{}.weight", self.name), w);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn rows_read_twice_learn_twice_and_padding_learns_nothing() {
        let table = Tensor::zeros((4, 2), candle_core::DType::F32, &Device::Cpu).unwrap();
        let mut e = Embedding::new("e".into(), table, Some(0));
        e.trained = true;
        let dy = Tensor::new(&[[1f32, 2.0], [3.0, 4.0], [5.0, 6.0]], &Device::Cpu).unwrap();
        for (ids, want) in [
            ([3, 1, 3], [[0.0, 0.0], [3.0, 4.0], [0.0, 0.0], [6.0, 8.0]]),
            ([0, 1, 0], [[0.0, 0.0], [3.0, 4.0], [0.0, 0.0], [0.0, 0.0]]),
            ([0, 0, 0], [[0.0; 2]; 4]),
        ] {
            let mut grads = Grads::default();
            e.backward(&ids, &dy, &mut grads).unwrap();
            assert_eq!(grads.0["e.weight"].to_vec2::<f32>().unwrap(), want.map(|r| r.to_vec()).to_vec(), "{ids:?}");
        }
    }
}
