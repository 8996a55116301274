//! Slices of CPU tensors, for the loops that candle has no differentiable kernel for.

use super::mat::Mat;
use candle_core::{Result, Storage, Tensor, bail};
use parking_lot::RwLockReadGuard;

/// Borrowed view of an f32 tensor on the CPU.
pub struct Host<'a> {
    storage: RwLockReadGuard<'a, Storage>,
    start: usize,
    tensor: &'a Tensor,
}

impl<'a> Host<'a> {
    /// Of a contiguous tensor.
    ///
    /// # Errors
    /// When `tensor` is not contiguous, not f32, or not on the CPU.
    pub fn new(tensor: &'a Tensor) -> Result<Self> {
        if !tensor.is_contiguous() {
            bail!("a host loop needs a contiguous tensor, got strides {:?} of {:?}", tensor.stride(), tensor.shape());
        }
        Self::strided(tensor)
    }

    /// Of a tensor as it lies.
    ///
    /// # Errors
    /// When `tensor` is not f32, or not on the CPU.
    pub fn strided(tensor: &'a Tensor) -> Result<Self> {
        let (storage, layout) = tensor.storage_and_layout();
        match &*storage {
            Storage::Cpu(cpu) => cpu.as_slice::<f32>()?,
            _ => bail!("this build computes on the CPU; the tensor is on {:?}", tensor.device()),
        };
        Ok(Self { start: layout.start_offset(), storage, tensor })
    }

    /// The values, row-major.
    ///
    /// # Panics
    /// When the tensor is not contiguous: then it has rows and columns alone.
    pub fn slice(&self) -> &[f32] {
        assert!(self.tensor.is_contiguous(), "a slice of strides {:?}", self.tensor.stride());
        &self.all()[..self.tensor.elem_count()]
    }

    /// The matrix.
    ///
    /// # Panics
    /// When the tensor has not two dimensions.
    pub fn mat(&self) -> Mat<'_> {
        match (self.tensor.dims(), self.tensor.stride()) {
            ([rows, cols], [down, right]) => Mat::strided(self.all(), (*rows, *cols), (*down, *right)),
            (dims, _) => panic!("{dims:?} is no matrix"),
        }
    }

    fn all(&self) -> &[f32] {
        match &*self.storage {
            Storage::Cpu(cpu) => cpu.as_slice::<f32>().map_or(&[], |values| &values[self.start..]),
            _ => &[],
        }
    }
}

/// Rows handled by one task: enough work to pay for handing it out.
pub fn rows_per_task(width: usize) -> usize {
    (16 * 1024 / width.max(1)).max(1)
}
