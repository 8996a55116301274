//! Quantized blocks as ggml lays them out (`ggml-common.h`, `ggml-quants.c`), and the plain loops that decode them.
//!
//! The loops are the definition of every type: the kernels are proven against them.

use super::GgmlType;
use bytemuck::{Pod, Zeroable};
use half::slice::HalfFloatSliceExt;
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

block! {
    /// `x[i] = d * IQ4_VALUES[q[i]]`; byte `j` holds element `j` low and `j + 16` high.
    BlockIq4Nl { d: f16, qs: [u8; 16], } = 18
}
block! {
    /// 8 groups of 32 with six-bit scales: `x = d * (scale - 32) * IQ4_VALUES[q]`.
    BlockIq4Xs { d: f16, scales_h: [u8; 2], scales_l: [u8; 4], qs: [u8; 128], } = 136
}

/// Values of the four-bit codes of IQ4_NL and IQ4_XS.
pub const IQ4_VALUES: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// Decodes whole blocks.
/// - `bytes`: `ty.row_bytes(out.len())` of them, little-endian
/// - `out`: elements in order
///
/// # Panics
/// When the sizes do not fit each other; callers have checked them against the tensor table.
pub fn decode(ty: GgmlType, bytes: &[u8], out: &mut [f32]) {
    assert_eq!(ty.row_bytes(out.len()), Some(bytes.len()), "{} values of {ty} in {} bytes", out.len(), bytes.len());
    match ty {
        GgmlType::F32 => {
            bytes.chunks_exact(4).zip(out).for_each(|(b, x)| *x = f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
        }
        GgmlType::F16 => {
            // In stretches: what the CPU has for this takes eight at a time.
            for (bytes, x) in bytes.chunks(2 * STRETCH).zip(out.chunks_mut(STRETCH)) {
                let mut halves = [f16::ZERO; STRETCH];
                bytes.as_chunks().0.iter().zip(&mut halves).for_each(|(b, h)| *h = f16::from_le_bytes(*b));
                halves[..x.len()].convert_to_f32_slice(x);
            }
        }
        GgmlType::BF16 => {
            bytes.chunks_exact(2).zip(out).for_each(|(b, x)| *x = bf16::from_le_bytes([b[0], b[1]]).to_f32());
        }
        GgmlType::Q4_0 => blocks(bytes, out, BlockQ4_0::decode),
        GgmlType::Q4_1 => blocks(bytes, out, BlockQ4_1::decode),
        GgmlType::Q5_0 => blocks(bytes, out, BlockQ5_0::decode),
        GgmlType::Q5_1 => blocks(bytes, out, BlockQ5_1::decode),
        GgmlType::Q8_0 => blocks(bytes, out, BlockQ8_0::decode),
        GgmlType::Q2_K => blocks(bytes, out, BlockQ2K::decode),
        GgmlType::Q3_K => blocks(bytes, out, BlockQ3K::decode),
        GgmlType::Q4_K => blocks(bytes, out, BlockQ4K::decode),
        GgmlType::Q5_K => blocks(bytes, out, BlockQ5K::decode),
        GgmlType::Q6_K => blocks(bytes, out, BlockQ6K::decode),
        GgmlType::IQ4_NL => blocks(bytes, out, BlockIq4Nl::decode),
        GgmlType::IQ4_XS => blocks(bytes, out, BlockIq4Xs::decode),
    }
}

/// Halves that are converted at a time.
const STRETCH: usize = 64;

/// Runs `one` over each block. Blocks are copied out, so `bytes` need not be aligned.
fn blocks<B: Pod, const N: usize>(bytes: &[u8], out: &mut [f32], one: impl Fn(&B, &mut [f32; N])) {
    for (b, x) in bytes.chunks_exact(size_of::<B>()).zip(out.as_chunks_mut::<N>().0) {
        one(&bytemuck::pod_read_unaligned(b), x);
    }
}

impl BlockQ4_0 {
    /// 32 values.
    pub fn decode(&self, x: &mut [f32; 32]) {
        let d = self.d.to_f32();
        for j in 0..16 {
            x[j] = d * f32::from((self.qs[j] & 15) as i8 - 8);
            x[j + 16] = d * f32::from((self.qs[j] >> 4) as i8 - 8);
        }
    }
}

impl BlockQ4_1 {
    /// 32 values.
    pub fn decode(&self, x: &mut [f32; 32]) {
        let (d, m) = (self.d.to_f32(), self.m.to_f32());
        for j in 0..16 {
            x[j] = d * f32::from(self.qs[j] & 15) + m;
            x[j + 16] = d * f32::from(self.qs[j] >> 4) + m;
        }
    }
}

/// Five-bit codes of a block of 32.
pub fn codes5(qh: [u8; 4], qs: &[u8; 16]) -> [u8; 32] {
    let high = u32::from_le_bytes(qh);
    std::array::from_fn(|i| {
        let low = if i < 16 { qs[i] & 15 } else { qs[i - 16] >> 4 };
        low | ((high >> i & 1) as u8) << 4
    })
}

impl BlockQ5_0 {
    /// 32 values.
    pub fn decode(&self, x: &mut [f32; 32]) {
        let d = self.d.to_f32();
        let q = codes5(self.qh, &self.qs);
        (0..32).for_each(|i| x[i] = d * f32::from(q[i] as i8 - 16));
    }
}

impl BlockQ5_1 {
    /// 32 values.
    pub fn decode(&self, x: &mut [f32; 32]) {
        let (d, m) = (self.d.to_f32(), self.m.to_f32());
        let q = codes5(self.qh, &self.qs);
        (0..32).for_each(|i| x[i] = d * f32::from(q[i]) + m);
    }
}

impl BlockQ8_0 {
    /// 32 values.
    pub fn decode(&self, x: &mut [f32; 32]) {
        let d = self.d.to_f32();
        (0..32).for_each(|i| x[i] = d * f32::from(self.qs[i]));
    }
}

impl BlockQ2K {
    /// 256 values: two halves of 128, each four planes of two bits over the same 32 bytes.
    pub fn decode(&self, x: &mut [f32; 256]) {
        let (d, dmin) = (self.d.to_f32(), self.dmin.to_f32());
        for i in 0..256 {
            let (half, plane, byte) = (i / 128, i % 128 / 32, i % 32);
            let q = self.qs[half * 32 + byte] >> (2 * plane) & 3;
            let scale = self.scales[i / 16];
            x[i] = d * f32::from(scale & 15) * f32::from(q) - dmin * f32::from(scale >> 4);
        }
    }
}

/// Six-bit scales of Q3_K's 16 groups, before 32 is taken away.
pub fn scales_q3k(s: &[u8; 12]) -> [u8; 16] {
    std::array::from_fn(|j| {
        let low = if j < 8 { s[j] & 15 } else { s[j - 8] >> 4 };
        low | (s[8 + j % 4] >> (2 * (j / 4)) & 3) << 4
    })
}

impl BlockQ3K {
    /// 256 values.
    pub fn decode(&self, x: &mut [f32; 256]) {
        let d = self.d.to_f32();
        let scales = scales_q3k(&self.scales);
        for i in 0..256 {
            let (half, plane, byte) = (i / 128, i % 128 / 32, i % 32);
            let low = (self.qs[half * 32 + byte] >> (2 * plane) & 3) as i8;
            let high = self.hmask[byte] >> (half * 4 + plane) & 1;
            let q = if high == 1 { low } else { low - 4 };
            x[i] = d * f32::from(scales[i / 16] as i8 - 32) * f32::from(q);
        }
    }
}

impl BlockQ4K {
    /// 256 values: 64 at a time share 32 bytes, the first 32 in the low halves.
    pub fn decode(&self, x: &mut [f32; 256]) {
        let (d, dmin) = (self.d.to_f32(), self.dmin.to_f32());
        for (j, x) in x.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            let (scale, min) = scale_min_k4(j, &self.scales);
            let (scale, min) = (d * f32::from(scale), dmin * f32::from(min));
            let qs = &self.qs[j / 2 * 32..][..32];
            for i in 0..32 {
                x[i] = scale * f32::from(qs[i] >> (4 * (j % 2)) & 15) - min;
            }
        }
    }
}

impl BlockQ5K {
    /// 256 values.
    pub fn decode(&self, x: &mut [f32; 256]) {
        let (d, dmin) = (self.d.to_f32(), self.dmin.to_f32());
        for (j, x) in x.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            let (scale, min) = scale_min_k4(j, &self.scales);
            let (scale, min) = (d * f32::from(scale), dmin * f32::from(min));
            let qs = &self.qs[j / 2 * 32..][..32];
            for i in 0..32 {
                let q = (qs[i] >> (4 * (j % 2)) & 15) | (self.qh[i] >> j & 1) << 4;
                x[i] = scale * f32::from(q) - min;
            }
        }
    }
}

impl BlockQ6K {
    /// The 256 codes, 0..64.
    pub fn codes(&self) -> [u8; 256] {
        std::array::from_fn(|i| {
            let (half, quarter, j) = (i / 128, i % 128 / 32, i % 32);
            let low = self.ql[half * 64 + quarter % 2 * 32 + j] >> (4 * (quarter / 2)) & 15;
            low | (self.qh[half * 32 + j] >> (2 * quarter) & 3) << 4
        })
    }

    /// 256 values, 16 at a time, which have one scale.
    pub fn decode(&self, x: &mut [f32; 256]) {
        let d = self.d.to_f32();
        for (group, x) in x.as_chunks_mut::<16>().0.iter_mut().enumerate() {
            let (half, quarter, at) = (group / 8, group % 8 / 2, group % 2 * 16);
            let scale = d * f32::from(self.scales[group]);
            let low = &self.ql[half * 64 + quarter % 2 * 32 + at..][..16];
            let high = &self.qh[half * 32 + at..][..16];
            for j in 0..16 {
                let q = (low[j] >> (4 * (quarter / 2)) & 15) | (high[j] >> (2 * quarter) & 3) << 4;
                x[j] = scale * f32::from(q as i8 - 32);
            }
        }
    }
}

impl BlockIq4Nl {
    /// 32 values.
    pub fn decode(&self, x: &mut [f32; 32]) {
        let d = self.d.to_f32();
        for j in 0..16 {
            x[j] = d * f32::from(IQ4_VALUES[usize::from(self.qs[j] & 15)]);
            x[j + 16] = d * f32::from(IQ4_VALUES[usize::from(self.qs[j] >> 4)]);
        }
    }
}

impl BlockIq4Xs {
    /// 256 values.
    pub fn decode(&self, x: &mut [f32; 256]) {
        let high = u16::from_le_bytes(self.scales_h);
        for (j, x) in x.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            let low = self.scales_l[j / 2] >> (4 * (j % 2)) & 15;
            let scale = (low | ((high >> (2 * j) & 3) as u8) << 4) as i8 - 32;
            let d = self.d.to_f32() * f32::from(scale);
            let qs = &self.qs[j * 16..][..16];
            for i in 0..16 {
                x[i] = d * f32::from(IQ4_VALUES[usize::from(qs[i] & 15)]);
                x[i + 16] = d * f32::from(IQ4_VALUES[usize::from(qs[i] >> 4)]);
            }
        }
    }
}
