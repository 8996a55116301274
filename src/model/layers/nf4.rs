//! NF4 with double quantization (Dettmers et al., arXiv:2305.14314), code for code as bitsandbytes stores it.
//!
//! A matrix is a row of values in blocks of 64. A value is one of sixteen quantiles of the normal distribution times its
//! block's largest magnitude (absmax). The absmax, less their mean, are codes themselves: one of the 256 values of a dynamic
//! 8-bit map (Dettmers, arXiv:1511.04561) times the largest of 256 neighbours. 4.127 bits a weight in all.
//!
//! It stands here and not among quantize's codecs because no file that edgeft writes holds it: GGUF has no such type. It is
//! how a base waits in memory while adapters learn on it.

use super::weight::Rows;
use rayon::prelude::*;
use std::sync::LazyLock;

/// The sixteen values of a code.
pub const NF4: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];
/// Values that share an absmax.
const BLOCK: usize = 64;
/// Absmax that share a scale.
const NESTED: usize = 256;

/// The dynamic map: seven decades, each cut twice as fine as the one below it; 0 and 1.
static DYNAMIC: LazyLock<[f32; 256]> = LazyLock::new(|| {
    let mut values = vec![0.0, 1.0];
    for decade in 0..7i32 {
        let cuts = 1usize << decade;
        // From both ends to the middle and fused, as torch.linspace goes, so that the last bits agree.
        let step = (1.0f32 - 0.1) / cuts as f32;
        let at = |i: usize| {
            if i < cuts.div_ceil(2) { step.mul_add(i as f32, 0.1) } else { (-step).mul_add((cuts - i) as f32, 1.0) }
        };
        let scale = 10f64.powi(decade - 6) as f32;
        for i in 0..cuts {
            let value = scale * ((at(i) + at(i + 1)) / 2.0);
            values.extend([value, -value]);
        }
    }
    values.sort_by(f32::total_cmp);
    std::array::from_fn(|i| values[i])
});

/// A matrix in NF4.
pub struct Nf4 {
    rows: usize,
    columns: usize,
    /// Two values a byte, the first in the high half.
    codes: Vec<u8>,
    /// A code of [`DYNAMIC`] a block.
    absmax: Vec<u8>,
    /// A scale for each [`NESTED`] of them.
    nested: Vec<f32>,
    /// Mean of the absmax.
    offset: f32,
}

impl Nf4 {
    /// Bytes that `n` values take: half a byte each, a byte a block of 64, and an f32 for 256 of those.
    pub fn bytes(n: usize) -> usize {
        n.div_ceil(2) + n.div_ceil(64) + 4 * n.div_ceil(64 * 256)
    }

    /// Rounds a (rows, columns) matrix, row-major.
    ///
    /// # Panics
    /// When the number of values is another.
    pub fn quantize(values: &[f32], rows: usize, columns: usize) -> Self {
        assert_eq!(values.len(), rows * columns, "values of a ({rows}, {columns}) matrix");
        let bounds: [f32; 15] = std::array::from_fn(|i| (NF4[i] + NF4[i + 1]) / 2.0);
        let mut codes = vec![0u8; values.len().div_ceil(2)];
        let mut absmax = vec![0f32; values.len().div_ceil(BLOCK)];
        codes.par_chunks_mut(BLOCK / 2).zip(values.par_chunks(BLOCK)).zip(absmax.par_iter_mut()).for_each(
            |((codes, block), absmax)| {
                *absmax = block.iter().fold(0.0, |m, v| v.abs().max(m));
                let inverse = 1.0 / absmax.max(1e-38);
                let code = |v: f32| -> u8 {
                    // A block that ends the matrix early is divided, a whole one multiplied: bitsandbytes does so.
                    let scaled = if block.len() == BLOCK { v * inverse } else { v / absmax.max(1e-38) };
                    bounds.iter().map(|b| u8::from(*b < scaled)).sum()
                };
                for (byte, pair) in codes.iter_mut().zip(block.chunks(2)) {
                    // The half behind the last value of an odd number is that of 0.
                    let low = pair.get(1).copied().unwrap_or(0.0);
                    *byte = code(pair[0]) << 4 | code(low);
                }
            },
        );
        let offset = (absmax.iter().map(|v| f64::from(*v)).sum::<f64>() / absmax.len().max(1) as f64) as f32;
        let (absmax, nested) = nest(&absmax, offset);
        Self { rows, columns, codes, absmax, nested, offset }
    }

    /// All values again.
    pub fn dequantize(&self) -> Vec<f32> {
        let mut out = vec![0.0; self.rows * self.columns];
        out.par_chunks_mut(self.columns.max(1)).enumerate().for_each(|(i, out)| self.decode(i, out));
        out
    }

    fn absmax(&self, block: usize) -> f32 {
        DYNAMIC[usize::from(self.absmax[block])] * self.nested[block / NESTED] + self.offset
    }
}

/// Codes and scales of the absmax less their mean.
fn nest(absmax: &[f32], offset: f32) -> (Vec<u8>, Vec<f32>) {
    let mut codes = Vec::with_capacity(absmax.len());
    let mut scales = Vec::with_capacity(absmax.len().div_ceil(NESTED));
    for block in absmax.chunks(NESTED) {
        let scale = block.iter().fold(0f32, |m, v| m.max((v - offset).abs()));
        let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
        codes.extend(block.iter().map(|v| nearest((v - offset) * inverse)));
        scales.push(scale);
    }
    (codes, scales)
}

/// The nearest value of [`DYNAMIC`]; of two as near, the lower.
fn nearest(v: f32) -> u8 {
    let map = &*DYNAMIC;
    let above = map.partition_point(|m| *m <= v);
    match above {
        0 => 0,
        256 => 255,
        _ if map[above] - v < v - map[above - 1] => above as u8,
        _ => above as u8 - 1,
    }
}

impl Rows for Nf4 {
    fn dims(&self) -> (usize, usize) {
        (self.rows, self.columns)
    }

    fn decode(&self, i: usize, out: &mut [f32]) {
        let (mut at, end) = (i * self.columns, (i + 1) * self.columns);
        let mut out = out.iter_mut();
        // Blocks go on across rows.
        while at < end {
            let stop = end.min((at / BLOCK + 1) * BLOCK);
            let absmax = self.absmax(at / BLOCK);
            for (at, out) in (at..stop).zip(&mut out) {
                let code = self.codes[at / 2] >> (4 * (1 - at % 2)) & 15;
                *out = NF4[usize::from(code)] * absmax;
            }
            at = stop;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use safetensors::SafeTensors;

    const ROWS: usize = 160;
    const COLUMNS: usize = 130;

    /// The matrix that the fixture was made from: blocks of seven magnitudes, one of zeros.
    fn matrix() -> Vec<f32> {
        let mut s = 0x9e37_79b9_7f4a_7c15u64;
        (0..ROWS * COLUMNS)
            .map(|i| {
                s ^= s << 13;
                s ^= s >> 7;
                s ^= s << 17;
                let v = (s >> 40) as f32 / (1u32 << 24) as f32 - 0.5;
                if i / BLOCK == 5 { 0.0 } else { v * 0.5f32.powi(1 + (i / BLOCK % 7) as i32) }
            })
            .collect()
    }

    /// What bitsandbytes made of it: see tests/fixtures/README.md.
    fn golden<T>(name: &str, read: impl Fn(&[u8]) -> Vec<T>) -> Vec<T> {
        let bytes = include_bytes!("../../../tests/fixtures/nf4.safetensors");
        read(SafeTensors::deserialize(bytes).unwrap().tensor(name).unwrap().data())
    }

    fn floats(bytes: &[u8]) -> Vec<f32> {
        bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
    }

    #[test]
    fn codes_are_those_of_bitsandbytes() {
        let ours = Nf4::quantize(&matrix(), ROWS, COLUMNS);
        assert_eq!(ours.codes, golden("codes", <[u8]>::to_vec));
        assert_eq!(DYNAMIC.to_vec(), golden("map", floats));
        // The mean is a sum whose order torch leaves to the machine: its last bit may differ.
        let (absmax, offset) = (golden("absmax", floats), golden("offset", floats)[0]);
        assert!((ours.offset - offset).abs() <= offset * f32::EPSILON, "{} {offset}", ours.offset);
        let (codes, scales) = nest(&absmax, offset);
        assert_eq!(codes, golden("nested_codes", <[u8]>::to_vec));
        assert_eq!(scales, golden("nested", floats));
        assert_eq!(ours.absmax, codes);
    }

    #[test]
    fn the_same_values_by_row_and_whole_and_zeros_stay() {
        let (values, nf4) = (matrix(), Nf4::quantize(&matrix(), ROWS, COLUMNS));
        let back = nf4.dequantize();
        for (i, (v, b)) in values.iter().zip(&back).enumerate() {
            // Half of the widest gap between codes, times the absmax, and what the absmax lost.
            let absmax = values[i / BLOCK * BLOCK..].iter().take(BLOCK).fold(0f32, |m, v| m.max(v.abs()));
            assert!((v - b).abs() <= 0.16 * absmax + 0.01, "{i}: {v} became {b}");
        }
        assert!(back[5 * BLOCK..6 * BLOCK].iter().all(|v| *v == 0.0));
        let mut row = vec![0.0; COLUMNS];
        nf4.decode(7, &mut row);
        assert_eq!(row, back[7 * COLUMNS..8 * COLUMNS]);
    }

    #[test]
    fn an_odd_number_of_values_ends_in_half_a_byte() {
        let values = [0.5, -1.0, 0.25];
        let nf4 = Nf4::quantize(&values, 1, 3);
        assert_eq!(nf4.codes.len(), 2);
        let back = nf4.dequantize();
        assert!(values.iter().zip(&back).all(|(v, b)| (v - b).abs() < 0.1), "{back:?}");
    }
}
