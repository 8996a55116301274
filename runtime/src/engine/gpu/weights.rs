//! Weights on the device: the blocks of the file as words, rows padded to whole words, a matrix in as many parts as the
//! device's bindings ask for.
//!
//! - `weights.wgsl` and `weights/`: how kernels decode them

use super::device::Gpu;
use crate::error::{Error, Kind, Result};
use crate::format::GgmlType;
use crate::format::block::decode;
use crate::kernels::Matrix;
use wgpu::Buffer;

/// Words that are packed before they are handed over.
const PACKED: usize = 1 << 20;

/// How a matrix lies on the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(non_camel_case_types)]
pub enum Form {
    F32,
    F16,
    Q8_0,
    Q4_0,
    Q4_K,
    Q6_K,
}

impl Form {
    /// Where a type of the file lies: as it is, or decoded to f32 where there is no kernel for it.
    pub fn of(ty: GgmlType) -> Self {
        match ty {
            GgmlType::F16 => Self::F16,
            GgmlType::Q8_0 => Self::Q8_0,
            GgmlType::Q4_0 => Self::Q4_0,
            GgmlType::Q4_K => Self::Q4_K,
            GgmlType::Q6_K => Self::Q6_K,
            _ => Self::F32,
        }
    }

    /// The type of the file that lies so without decoding.
    pub fn ty(self) -> GgmlType {
        match self {
            Self::F32 => GgmlType::F32,
            Self::F16 => GgmlType::F16,
            Self::Q8_0 => GgmlType::Q8_0,
            Self::Q4_0 => GgmlType::Q4_0,
            Self::Q4_K => GgmlType::Q4_K,
            Self::Q6_K => GgmlType::Q6_K,
        }
    }

    /// `weights8` in WGSL.
    pub fn source(self) -> &'static str {
        match self {
            Self::F32 => include_str!("weights/f32.wgsl"),
            Self::F16 => include_str!("weights/f16.wgsl"),
            Self::Q8_0 => include_str!("weights/q8_0.wgsl"),
            Self::Q4_0 => include_str!("weights/q4_0.wgsl"),
            Self::Q4_K => include_str!("weights/q4_k.wgsl"),
            Self::Q6_K => include_str!("weights/q6_k.wgsl"),
        }
    }

    /// Words of a row.
    fn words(self, cols: usize) -> usize {
        match self {
            Self::F32 => cols.next_multiple_of(8),
            Self::F16 => cols.next_multiple_of(8) / 2,
            Self::Q8_0 => cols / 4 + (cols / 32).div_ceil(2),
            Self::Q4_0 => cols / 8 + (cols / 32).div_ceil(2),
            Self::Q4_K => cols / 256 * 36,
            Self::Q6_K => cols / 256 * 53,
        }
    }

    /// Packs one row of the file's bytes into its words.
    fn pack(self, ty: GgmlType, row: &[u8], words: &mut [u32], scratch: &mut [f32]) {
        words.fill(0);
        match self {
            Self::F32 => {
                decode(ty, row, scratch);
                words.iter_mut().zip(scratch).for_each(|(w, x)| *w = x.to_bits());
            }
            Self::F16 | Self::Q4_K => fill(words, row),
            Self::Q8_0 | Self::Q4_0 => {
                // A block is its scale (two bytes) and its codes.
                let block_bytes = ty.block_bytes();
                let per_block = (block_bytes - 2) / 4;
                let (codes, scales) = words.split_at_mut(row.len() / block_bytes * per_block);
                for (i, block) in row.chunks_exact(block_bytes).enumerate() {
                    fill(&mut codes[i * per_block..][..per_block], &block[2..]);
                    scales[i / 2] |= u32::from(u16::from_le_bytes([block[0], block[1]])) << (16 * (i % 2));
                }
            }
            Self::Q6_K => {
                let blocks = row.chunks_exact(ty.block_bytes());
                words.chunks_exact_mut(53).zip(blocks).for_each(|(words, block)| fill(words, block));
            }
        }
    }
}

/// Bytes as little-endian words, the last filled up with zeros.
fn fill(words: &mut [u32], bytes: &[u8]) {
    for (word, bytes) in words.iter_mut().zip(bytes.chunks(4)) {
        let mut whole = [0; 4];
        whole[..bytes.len()].copy_from_slice(bytes);
        *word = u32::from_le_bytes(whole);
    }
}

/// A matrix (rows, cols) on the device.
#[derive(Clone)]
pub struct Weight {
    /// How it lies there.
    pub form: Form,
    /// Output size.
    pub rows: usize,
    /// Input size.
    pub cols: usize,
    /// Words from one row to the next.
    pub stride: usize,
    /// All rows, in order.
    pub parts: Vec<Part>,
}

/// Rows of a matrix that are bound together.
#[derive(Clone)]
pub struct Part {
    /// Their words.
    pub buffer: Buffer,
    /// Number of the first.
    pub first: usize,
    /// How many.
    pub rows: usize,
}

impl Weight {
    /// Packs a matrix of the file and hands it over.
    /// - `name`: stands in messages
    ///
    /// # Errors
    /// `Limit` when a single row is larger than a binding, or the memory is used up.
    pub fn load(gpu: &Gpu, name: &str, matrix: &Matrix) -> Result<Self> {
        let (rows, cols, form) = (matrix.rows, matrix.cols, Form::of(matrix.ty));
        let stride = form.words(cols);
        let most = gpu.most_bytes() as usize / 4 / stride.max(1);
        if most == 0 {
            let message =
                format!("a row needs {} bytes, but this GPU binds at most {} at once", stride * 4, gpu.most_bytes());
            return Err(Error::new(Kind::Limit, format!("tensor `{name}`"), message));
        }
        let mut parts = Vec::new();
        let (mut words, mut scratch) = (Vec::new(), vec![0.0; cols]);
        for first in (0..rows).step_by(most) {
            let part_rows = most.min(rows - first);
            let buffer = gpu.storage(name, (part_rows * stride * 4) as u64)?;
            let step = (PACKED / stride).max(1);
            for row in (0..part_rows).step_by(step) {
                let n = step.min(part_rows - row);
                words.resize(n * stride, 0);
                for (i, words) in words.chunks_mut(stride).enumerate() {
                    form.pack(matrix.ty, matrix.row(first + row + i), words, &mut scratch);
                }
                gpu.write(&buffer, (row * stride * 4) as u64, bytemuck::cast_slice(&words))?;
            }
            parts.push(Part { buffer, first, rows: part_rows });
        }
        Ok(Self { form, rows, cols, stride, parts })
    }

    /// The same of plain numbers.
    ///
    /// # Errors
    /// As [`Weight::load`].
    pub fn of_numbers(gpu: &Gpu, name: &str, numbers: &[f32], cols: usize) -> Result<Self> {
        let data = bytemuck::cast_slice(numbers);
        Self::load(gpu, name, &Matrix { ty: GgmlType::F32, rows: numbers.len() / cols.max(1), cols, data })
    }
}

/// A matrix and its bias.
#[derive(Clone)]
pub struct Linear {
    /// W.
    pub weight: Weight,
    /// (rows).
    pub bias: Option<Buffer>,
}

/// Numbers in a buffer of their own.
///
/// # Errors
/// As [`Gpu::storage`].
pub fn vector(gpu: &Gpu, name: &str, numbers: &[f32]) -> Result<Buffer> {
    let buffer = gpu.storage(name, (numbers.len() * 4) as u64)?;
    gpu.write(&buffer, 0, bytemuck::cast_slice(numbers))?;
    Ok(buffer)
}
