//! The loops of [`super::scalar`], compiled for AVX-512.

use super::Matrix;
use super::acts::Acts;
use super::attention::{self, Seen};
use super::scalar;

/// Exists only where the CPU has AVX-512 F, BW, VL and DQ.
#[derive(Debug, Clone, Copy)]
pub struct Avx512(());

impl Avx512 {
    /// Asks the CPU.
    pub fn detect() -> Option<Self> {
        let all = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512dq");
        all.then_some(Self(()))
    }

    /// See [`super::Kernels::rows`].
    pub fn rows(self, w: &Matrix, first: usize, acts: &Acts, out: &mut [f32], scratch: &mut [f32]) {
        // SAFETY: `Self` exists only after `detect` saw the features that the function is compiled for.
        unsafe { rows(w, first, acts, out, scratch) }
    }

    /// See [`super::Kernels::dot_f32`].
    pub fn dot_f32(self, a: &[f32], b: &[f32]) -> f32 {
        // SAFETY: as above.
        unsafe { dot_f32(a, b) }
    }

    /// See [`super::Kernels::attend`].
    pub fn attend(self, q: &[f32], seen: &Seen, scores: &mut [f32], row: &mut [f32], out: &mut [f32]) {
        // SAFETY: as above.
        unsafe { attend(q, seen, scores, row, out) }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
fn rows(w: &Matrix, first: usize, acts: &Acts, out: &mut [f32], scratch: &mut [f32]) {
    scalar::rows(w, first, acts, out, scratch);
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
fn dot_f32(a: &[f32], b: &[f32]) -> f32 {
    scalar::dot_f32(a, b)
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
fn attend(q: &[f32], seen: &Seen, scores: &mut [f32], row: &mut [f32], out: &mut [f32]) {
    attention::attend(q, seen, scores, row, out);
}
