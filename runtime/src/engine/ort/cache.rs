//! What a sequence remembers, as ONNX Runtime's own tensors: a step's presents are the next one's pasts, and nobody copies
//! them through a vector of ours.
//!
//! Graphs come in two kinds. Most give a present one step longer than its past, in memory of its own. Where
//! GroupQueryAttention writes behind its past, past and present are one buffer with room to spare, and a step copies nothing.

use super::told;
use crate::error::Result;
use crate::format::onnx::ElementType;
use half::f16;
use ort::memory::Allocator;
use ort::value::{DynValue, PrimitiveTensorElementType, Tensor};

/// Positions that a buffer has room for at first.
const FIRST_ROOM: usize = 32;

/// Shape of the keys, or of the values, of every layer: (1, heads, positions, dim).
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// K.
    pub heads: usize,
    /// D.
    pub dim: usize,
    /// float32 or float16.
    pub ty: ElementType,
}

/// Keys and values of one sequence.
pub struct Memory {
    /// Keys, values, keys, values: by layer.
    pub tensors: Vec<DynValue>,
    /// Positions of the tensors.
    positions: usize,
    /// Tokens that count.
    pub len: usize,
}

impl Memory {
    /// An empty one.
    pub fn new() -> Self {
        Self { tensors: Vec::new(), positions: 0, len: 0 }
    }

    /// Makes the tensors ready for a step of `n` tokens. `layers` holds a shape for every tensor.
    /// - `room`: `None` when the graph gives longer presents; else the most positions a buffer may ever have
    ///
    /// # Errors
    /// When there is no memory.
    pub fn ready(&mut self, layers: &[Shape], n: usize, room: Option<usize>) -> Result<()> {
        let needed = self.len + n;
        let positions = match room {
            None => self.len, // a shorter sequence than the tensors hold was cut
            Some(_) if needed <= self.positions => self.positions,
            Some(most) => needed.max(2 * self.positions).max(FIRST_ROOM).min(most.max(needed)),
        };
        if self.tensors.len() == layers.len() && self.positions == positions {
            return Ok(());
        }
        let tensors: Result<Vec<DynValue>> = layers
            .iter()
            .enumerate()
            .map(|(i, shape)| {
                let old = self.tensors.get(i).filter(|_| self.len > 0);
                match shape.ty {
                    ElementType::F16 => resized::<f16>(shape, old, self.positions, self.len, positions),
                    _ => resized::<f32>(shape, old, self.positions, self.len, positions),
                }
            })
            .collect();
        self.tensors = tensors?;
        self.positions = positions;
        Ok(())
    }

    /// Takes the presents of a step as the next one's pasts.
    pub fn take(&mut self, presents: Vec<DynValue>) {
        self.tensors = presents;
    }

    /// Counts `n` tokens in. In graphs that give longer presents, the tensors have grown by as many.
    pub fn advance(&mut self, n: usize, grown: bool) {
        self.len += n;
        if grown {
            self.positions = self.len;
        }
    }

    /// Forgets tokens from `len` on; the tensors are cut before the next step.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
        if self.len == 0 {
            *self = Self::new();
        }
    }
}

/// A tensor of `to` positions that begins, in every head, with the first `len` of an old one of `from`.
fn resized<T>(shape: &Shape, old: Option<&DynValue>, from: usize, len: usize, to: usize) -> Result<DynValue>
where
    T: PrimitiveTensorElementType + Copy + std::fmt::Debug,
{
    let allocator = Allocator::default();
    let mut new = Tensor::<T>::new(&allocator, [1, shape.heads, to, shape.dim]).map_err(told)?;
    if let Some(old) = old {
        let (_, source) = old.try_extract_tensor::<T>().map_err(told)?;
        let (_, target) = new.extract_tensor_mut();
        for (source, target) in source.chunks(from * shape.dim).zip(target.chunks_mut(to * shape.dim)) {
            target[..len * shape.dim].copy_from_slice(&source[..len * shape.dim]);
        }
    }
    Ok(new.into_dyn())
}
