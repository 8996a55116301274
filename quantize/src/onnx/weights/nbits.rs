//! Codes as ONNX Runtime's own operators take them: rows of blocks, unsigned, as many bits as the type has.
//!
//! `MatMulNBits` and `GatherBlockQuantized` read `scale * (code - 2^(bits - 1))`. Codes lie along a row as in the source,
//! (out, in), those of four bits two a byte, the first in the low half. So `q4_0` keeps the very codes of its GGUF block,
//! in another order within it; `q8_0` and `q6_k` add 128.

use super::super::codes::Codes;
use super::super::graph::{Graph, Value, int};

/// Activations are rounded to eight bits a block, as by the kernels that ONNX Runtime makes of `DequantizeLinear`, and by
/// llama.cpp.
const ACCURACY: i64 = 4;

/// Names and sizes of a matrix of codes in the graph.
#[derive(Clone)]
pub(in crate::onnx) struct NBits {
    /// UINT8 (out, in / block, block * bits / 8), or a table's (rows, columns * bits / 8).
    pub codes: Value,
    /// f32 (out, in / block).
    pub scales: Value,
    pub bits: usize,
    pub block: usize,
    /// Rows.
    pub out: usize,
    /// Columns.
    pub input: usize,
}

/// Signed codes -> the bytes of a row after row.
pub(super) fn bytes(codes: &Codes, bits: usize) -> Vec<u8> {
    let unsigned = codes.codes.iter().map(|q| q.wrapping_add(if bits == 4 { 8 } else { i8::MIN }) as u8);
    if bits == 8 {
        return unsigned.collect();
    }
    let unsigned: Vec<u8> = unsigned.collect();
    unsigned.as_chunks::<2>().0.iter().map(|[low, high]| low | high << 4).collect()
}

impl NBits {
    /// x (..., in) times the turned matrix: (..., out). `codes` in the matrix's form.
    pub fn multiply(&self, g: &mut Graph, x: &str) -> Value {
        let settings = vec![
            int("K", self.input as i64),
            int("N", self.out as i64),
            int("bits", self.bits as i64),
            int("block_size", self.block as i64),
            int("accuracy_level", ACCURACY),
        ];
        let [y] = g.contrib("MatMulNBits", &[x, &self.codes, &self.scales], [0], settings);
        y
    }

    /// Rows by index (...): (..., columns) in f32. `codes` in a table's form.
    pub fn rows(&self, g: &mut Graph, index: &str) -> Value {
        let settings = vec![
            int("bits", self.bits as i64),
            int("block_size", self.block as i64),
            int("gather_axis", 0),
            int("quantize_axis", 1),
        ];
        let [y] = g.contrib("GatherBlockQuantized", &[&self.codes, index, &self.scales], [0], settings);
        y
    }

    /// A table's codes in a matrix's form.
    pub fn as_matrix(&self, g: &mut Graph) -> Self {
        let shape = [self.out, self.input / self.block, self.block * self.bits / 8].map(|n| n as i64);
        Self { codes: g.reshape(&self.codes, &shape), ..self.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{codec, onnx::codes::split};
    use edgeft_runtime::format::{GgmlType, block::BlockQ4_0};

    #[test]
    fn a_block_of_q4_0_keeps_its_codes_in_the_order_of_the_row() {
        let x = codec::tests::weights(3 * 32, 5);
        let mut blocks = Vec::new();
        codec::encode(GgmlType::Q4_0, &x, &mut blocks).unwrap();
        let got = bytes(&split(GgmlType::Q4_0, &blocks).unwrap(), 4);
        let halves = got.iter().flat_map(|b| [b & 15, b >> 4]);
        let want = blocks.chunks_exact(size_of::<BlockQ4_0>()).flat_map(|b| {
            let codes = &b[2..]; // behind the scale
            codes.iter().map(|q| q & 15).chain(codes.iter().map(|q| q >> 4))
        });
        assert!(halves.eq(want));
    }

    #[test]
    fn codes_of_eight_bits_are_counted_from_128() {
        let codes = Codes { codes: vec![-128, -127, -1, 0, 127], scales: vec![], block: 32 };
        assert_eq!(bytes(&codes, 8), [0, 1, 127, 128, 255]);
    }
}
