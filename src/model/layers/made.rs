//! Numbers for the tests of layers: between -1 and 1, others for each salt.

use candle_core::{Device, Tensor};

/// So many of them.
pub fn numbers(n: usize, salt: usize) -> Vec<f32> {
    (0..n).map(|i| ((i * 7919 + salt * 104_729) % 2003) as f32 / 1000.0 - 1.0).collect()
}

/// (n, c).
pub fn tensor(n: usize, c: usize, salt: usize) -> Tensor {
    Tensor::from_vec(numbers(n * c, salt), (n, c), &Device::Cpu).expect("a matrix")
}
