//! The kernels in AVX-512 with VNNI. One row of activations meets the weight rows as they are, four at a time: in blocks of 32
//! ([`single`]), in blocks of 256 ([`supers`]). Several rows meet [`panels`] of eight weight rows. Types without a function run
//! the loops of [`super::scalar`], compiled for this level.

mod panels;
mod single;
mod supers;

use std::arch::x86_64::*;

use super::Matrix;
use super::acts::{Acts, Turn};
use super::attention::{self, Seen};
use super::scalar;
use super::tiles::tiles;
use crate::format::GgmlType;
use crate::format::block::{self, BlockQ4_0, BlockQ4_1, BlockQ4K, BlockQ5_0, BlockQ5_1, BlockQ5K, BlockQ8_0};

/// Exists only where the CPU has AVX-512 F, BW, VL, DQ and VNNI (and F16C, which all of these have).
#[derive(Debug, Clone, Copy)]
pub struct Avx512(());

impl Avx512 {
    /// Asks the CPU.
    pub fn detect() -> Option<Self> {
        let all = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vnni")
            && is_x86_feature_detected!("f16c");
        all.then_some(Self(()))
    }

    /// See [`super::Kernels::rows`].
    pub fn rows(self, w: &Matrix, first: usize, acts: &Acts, out: &mut [f32], scratch: &mut [f32]) {
        // SAFETY: `Self` exists only after `detect` saw the features that the function is compiled for.
        unsafe { rows(w, first, acts, out, scratch) }
    }

    /// See [`super::Kernels::turn`].
    pub fn turn(self, ty: GgmlType, n: usize) -> Turn {
        turn(ty, n)
    }

    /// See [`super::Kernels::dot_f32`].
    pub fn dot_f32(self, a: &[f32], b: &[f32]) -> f32 {
        // SAFETY: as above.
        unsafe { dot_f32(a, b) }
    }

    /// See [`super::Kernels::attend`].
    pub fn attend(self, q: &[f32], seen: &Seen, scratch: &mut [f32], out: &mut [f32]) {
        // SAFETY: as above.
        unsafe { attend(q, seen, scratch, out) }
    }
}

/// Rows of activations that are worth a panel.
const MANY: usize = 2;

/// How activations must be turned for panels, where they are used.
fn turn(ty: GgmlType, n: usize) -> Turn {
    match ty {
        _ if n < MANY => None,
        GgmlType::Q8_0 | GgmlType::Q4_0 | GgmlType::Q4_1 | GgmlType::Q5_0 | GgmlType::Q5_1 => Some(32),
        GgmlType::Q4_K | GgmlType::Q5_K => Some(32),
        GgmlType::Q6_K => Some(16),
        _ => None,
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,f16c")]
fn rows(w: &Matrix, first: usize, acts: &Acts, out: &mut [f32], scratch: &mut [f32]) {
    // What is left of quantized types is one row of activations.
    if turn(w.ty, acts.n).is_some() {
        return panels::rows(w, first, acts, out, scratch);
    }
    match w.ty {
        GgmlType::Q8_0 => single::rows::<BlockQ8_0>(w, first, acts, out),
        GgmlType::Q4_0 => single::rows::<BlockQ4_0>(w, first, acts, out),
        GgmlType::Q4_1 => single::rows::<BlockQ4_1>(w, first, acts, out),
        GgmlType::Q5_0 => single::rows::<BlockQ5_0>(w, first, acts, out),
        GgmlType::Q5_1 => single::rows::<BlockQ5_1>(w, first, acts, out),
        GgmlType::Q4_K => supers::shares::<BlockQ4K>(w, first, acts, out),
        GgmlType::Q5_K => supers::shares::<BlockQ5K>(w, first, acts, out),
        GgmlType::Q6_K => supers::sixteens(w, first, acts, out),
        GgmlType::F16 => tiles!([dot_f16], w, first, acts, out),
        GgmlType::F32 => tiles!([dot_f32_row], w, first, acts, out),
        _ => scalar::rows(w, first, acts, out, scratch),
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,f16c")]
fn dot_f32(a: &[f32], b: &[f32]) -> f32 {
    scalar::dot_f32(a, b)
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,f16c")]
fn attend(q: &[f32], seen: &Seen, scratch: &mut [f32], out: &mut [f32]) {
    attention::attend(q, seen, scratch, out);
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load(bytes: &[i8; 64]) -> __m512i {
    // SAFETY: the reference makes 64 bytes readable, and the load needs no alignment.
    unsafe { _mm512_loadu_si512(bytes.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load_f32(x: &[f32; 16]) -> __m512 {
    // SAFETY: as in `load`.
    unsafe { _mm512_loadu_ps(x.as_ptr()) }
}

#[inline]
#[target_feature(enable = "avx")]
fn load_256(bytes: &[u8; 32]) -> __m256i {
    // SAFETY: as in `load`, of 32 bytes.
    unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn tree(lanes: __m512) -> f32 {
    let mut out = [0.0; 16];
    // SAFETY: `out` is 64 writable bytes.
    unsafe { _mm512_storeu_ps(out.as_mut_ptr(), lanes) };
    scalar::tree(out)
}

/// Rows of floats, 16 of them a register.
macro_rules! dot_of_floats {
    ($name:ident, $ty:expr, $bytes:literal, $load:expr) => {
        #[inline]
        #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,f16c")]
        fn $name<const T: usize>(row: &[u8], acts: &Acts, from: usize, out: &mut [f32]) {
            let (chunks, rest) = row.as_chunks::<{ 16 * $bytes }>();
            let mut x = [(&[][..], &[][..]); T];
            for t in 0..T {
                x[t] = acts.floats($ty)[(from + t) * acts.cols..][..acts.cols].as_chunks::<16>();
            }
            let mut lanes = [_mm512_setzero_ps(); T];
            for (c, chunk) in chunks.iter().enumerate() {
                let w = $load(chunk);
                for t in 0..T {
                    lanes[t] = _mm512_add_ps(lanes[t], _mm512_mul_ps(w, load_f32(&x[t].0[c])));
                }
            }
            let mut last = [0.0; 16];
            let last = &mut last[..rest.len() / $bytes];
            block::decode($ty, rest, last);
            (0..T).for_each(|t| out[t] = tree(lanes[t]) + scalar::tail(last, x[t].1));
        }
    };
}

dot_of_floats!(dot_f16, GgmlType::F16, 2, |chunk| _mm512_cvtph_ps(load_256(chunk)));
dot_of_floats!(dot_f32_row, GgmlType::F32, 4, |chunk| _mm512_castsi512_ps(load(bytemuck::cast_ref::<
    [u8; 64],
    [i8; 64],
>(chunk))));
