//! Quantized blocks as ggml lays them out (`ggml-common.h`, `ggml-quants.c`), and the plain loops that decode them.
//!
//! The loops are the definition of every type: the kernels are proven against them.

use super::GgmlType;
use bytemuck::{Pod, Zeroable};
use half::{bf16, f16};

/// Elements in a K-quant super-block.
pub const QK_K: usize = 256;

macro_rules! block {
    ($(#[$doc:meta])* $name:ident { $($field:ident: $ty:ty,)* } = $bytes:literal) => {
        $(#[$doc])*
        #[repr(C)]
        #[derive(Debug, Clone, Copy, Pod, Zeroable)]
        #[allow(missing_docs)]
        pub struct $name { $(pub $field: $ty,)* }
        const _: () = assert!(size_of::<$name>() == $bytes);
    };
}

block! {
    /// `x[i] = d * (q[i] - 8)`; byte `j` holds element `j` low and `j + 16` high.
    BlockQ4_0 { d: f16, qs: [u8; 16], } = 18
}
block! {
    /// `x[i] = d * q[i] + m`.
    BlockQ4_1 { d: f16, m: f16, qs: [u8; 16], } = 20
}
block! {
    /// `x[i] = d * (q[i] - 16)`; bit `i` of `qh` is the fifth bit of element `i`.
    BlockQ5_0 { d: f16, qh: [u8; 4], qs: [u8; 16], } = 22
}
block! {
    /// `x[i] = d * q[i] + m`, five bits.
    BlockQ5_1 { d: f16, m: f16, qh: [u8; 4], qs: [u8; 16], } = 24
}
block! {
    /// `x[i] = d * qs[i]`.
    BlockQ8_0 { d: f16, qs: [i8; 32], } = 34
}
block! {
    /// 16 groups of 16: `x = d * (scale & 15) * q - dmin * (scale >> 4)`.
    BlockQ2K { scales: [u8; 16], qs: [u8; 64], d: f16, dmin: f16, } = 84
}
block! {
    /// 16 groups of 16: `x = d * (scale - 32) * q`, `q` in -4..=3.
    BlockQ3K { hmask: [u8; 32], qs: [u8; 64], scales: [u8; 12], d: f16, } = 110
}
block! {
    /// 8 groups of 32: `x = d * scale * q - dmin * min`; scales and mins in six bits ([`scale_min_k4`]).
    BlockQ4K { d: f16, dmin: f16, scales: [u8; 12], qs: [u8; 128], } = 144
}
block! {
    /// As [`BlockQ4K`] with a fifth bit in `qh`.
    BlockQ5K { d: f16, dmin: f16, scales: [u8; 12], qh: [u8; 32], qs: [u8; 128], } = 176
}
block! {
    /// 16 groups of 16: `x = d * scale * (q - 32)`.
    BlockQ6K { ql: [u8; 128], qh: [u8; 64], scales: [i8; 16], d: f16, } = 210
}

/// Six-bit scale and min of group `j` (0..8) in the 12 packed bytes of Q4_K and Q5_K.
pub fn scale_min_k4(j: usize, q: &[u8; 12]) -> (u8, u8) {
    if j < 4 {
        (q[j] & 63, q[j + 4] & 63)
    } else {
        ((q[j + 4] & 15) | ((q[j - 4] >> 6) << 4), (q[j + 4] >> 4) | ((q[j] >> 6) << 4))
    }
}

