//! GGUF blocks taken apart: codes and scales, each a matrix of its own, as `DequantizeLinear` wants them. Not a bit is
//! computed anew, so `scale * code` here is what the GGUF of that type decodes to.

use bytemuck::Pod;
use edgeft_runtime::format::{
    GgmlType,
    block::{BlockQ4_0, BlockQ6K, BlockQ8_0},
};

/// A quantized matrix (R, C): element `(r, c)` is `scales[r, c / block] * codes[r, c]`, in f32.
pub(super) struct Codes {
    /// (R, C); -8..=7 from q4_0, -32..=31 from q6_k.
    pub codes: Vec<i8>,
    /// (R, C / block). An f16 of the block as f32; of q6_k its product with the group's whole number, which is exact
    /// in f32.
    pub scales: Vec<f32>,
    /// Elements that share a scale.
    pub block: usize,
}

/// Bits that `DequantizeLinear` spends on a code of this type.
pub(super) fn bits(ty: GgmlType) -> usize {
    if ty == GgmlType::Q4_0 { 4 } else { 8 }
}

/// Takes rows of whole blocks apart; `None` for a type that has other terms than scale and code.
pub(super) fn split(ty: GgmlType, bytes: &[u8]) -> Option<Codes> {
    let mut out = Codes { codes: Vec::new(), scales: Vec::new(), block: 32 };
    match ty {
        GgmlType::Q8_0 => each(bytes, |b: &BlockQ8_0| {
            out.scales.push(b.d.to_f32());
            out.codes.extend(b.qs);
        }),
        GgmlType::Q4_0 => each(bytes, |b: &BlockQ4_0| {
            out.scales.push(b.d.to_f32());
            out.codes.extend(b.qs.iter().map(|q| (q & 15) as i8 - 8));
            out.codes.extend(b.qs.iter().map(|q| (q >> 4) as i8 - 8));
        }),
        GgmlType::Q6_K => {
            out.block = 16;
            each(bytes, |b: &BlockQ6K| {
                out.scales.extend(b.scales.iter().map(|s| b.d.to_f32() * f32::from(*s)));
                out.codes.extend(b.codes().iter().map(|q| *q as i8 - 32));
            });
        }
        _ => return None,
    }
    Some(out)
}

/// Blocks are copied out: `bytes` need not be aligned.
fn each<B: Pod>(bytes: &[u8], mut f: impl FnMut(&B)) {
    bytes.chunks_exact(size_of::<B>()).for_each(|b| f(&bytemuck::pod_read_unaligned(b)));
}

/// (R, C) -> (C, R). Bands of rows, so that a large matrix is read along its rows and not once a line of the cache.
pub(super) fn transpose<T: Copy + Default>(x: &[T], rows: usize) -> Vec<T> {
    const BAND: usize = 64;
    let cols = x.len() / rows;
    let mut out = vec![T::default(); x.len()];
    for first in (0..rows).step_by(BAND) {
        let last = rows.min(first + BAND);
        for c in 0..cols {
            for r in first..last {
                out[c * rows + r] = x[r * cols + c];
            }
        }
    }
    out
}

/// Two codes a byte, the first in the low half: ONNX's INT4. An odd last code stands alone.
pub(super) fn nibbles(codes: &[i8]) -> Vec<u8> {
    codes.chunks(2).map(|p| (p[0] as u8 & 15) | (p.get(1).map_or(0, |q| *q as u8 & 15) << 4)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::{encode, tests::weights};
    use edgeft_runtime::format::block::decode;

    #[test]
    fn scale_times_code_is_what_the_blocks_decode_to_bit_for_bit() {
        for (ty, range) in [(GgmlType::Q8_0, -127..=127), (GgmlType::Q4_0, -8..=7), (GgmlType::Q6_K, -32..=31i8)] {
            let x = weights(4 * 256, 11);
            let (mut bytes, mut want) = (Vec::new(), vec![0.0; x.len()]);
            encode(ty, &x, &mut bytes).unwrap();
            decode(ty, &bytes, &mut want);
            let got = split(ty, &bytes).unwrap();
            assert_eq!((got.codes.len(), got.scales.len() * got.block), (x.len(), x.len()), "{ty}");
            for (i, want) in want.iter().enumerate() {
                let y = got.scales[i / got.block] * f32::from(got.codes[i]);
                assert_eq!(y.to_bits(), want.to_bits(), "{ty}, element {i}: {y} {want}");
            }
            assert!(got.codes.iter().all(|q| range.contains(q)), "{ty}");
        }
        assert!(split(GgmlType::Q4_K, &[]).is_none() && split(GgmlType::F16, &[]).is_none());
    }

    #[test]
    fn nibbles_are_low_first_and_twos_complement() {
        assert_eq!(nibbles(&[-8, 7, 0, -1, 3]), [0x78, 0xf0, 0x03]);
    }

    #[test]
    fn rows_become_columns() {
        assert_eq!(transpose(&[1, 2, 3, 4, 5, 6], 2), [1, 4, 2, 5, 3, 6]);
        let x: Vec<usize> = (0..150 * 7).collect(); // two whole bands and a part
        let y = transpose(&x, 150);
        assert!((0..150).all(|r| (0..7).all(|c| y[c * 150 + r] == r * 7 + c)));
        assert_eq!(transpose(&y, 7), x);
    }
}
