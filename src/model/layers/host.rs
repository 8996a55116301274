//! Slices of CPU tensors, for the loops that candle has no differentiable kernel for.

use candle_core::{Result, Storage, Tensor, bail};
use parking_lot::RwLockReadGuard;

/// Borrowed view of a contiguous f32 tensor on the CPU.
pub struct Host<'a> {
    storage: RwLockReadGuard<'a, Storage>,
    start: usize,
    len: usize,
}

impl<'a> Host<'a> {
    /// # Errors
    /// When `tensor` is not contiguous, not f32, or not on the CPU.
    pub fn new(tensor: &'a Tensor) -> Result<Self> {
        if !tensor.is_contiguous() {
            bail!("a host loop needs a contiguous tensor, got strides {:?} of {:?}", tensor.stride(), tensor.shape());
        }
        let (storage, layout) = tensor.storage_and_layout();
        if !matches!(&*storage, Storage::Cpu(_)) {
            bail!("this build computes on the CPU; the tensor is on {:?}", tensor.device());
        }
        Ok(Self { start: layout.start_offset(), len: tensor.elem_count(), storage })
    }

    /// The values, row-major.
    pub fn slice(&self) -> &[f32] {
        match &*self.storage {
            Storage::Cpu(cpu) => match cpu.as_slice::<f32>() {
                Ok(values) => &values[self.start..self.start + self.len],
                Err(_) => &[],
            },
            _ => &[],
        }
    }
}

/// Rows handled by one task: enough work to pay for handing it out.
pub fn rows_per_task(width: usize) -> usize {
    (16 * 1024 / width.max(1)).max(1)
}
