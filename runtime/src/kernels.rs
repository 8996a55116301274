//! Chosen once, at start: [`scalar`] is the meaning; the other levels say the same in wider registers, lane by lane, so that
//! every level gives the same bits.
//!
//! A kernel never allocates; it takes slices and sizes. Weights of a quantized type meet activations rounded to eight bits
//! ([`acts`]), as ggml does, and their products are summed as integers inside a block.

pub mod acts;
pub mod attention;
#[cfg(target_arch = "x86_64")]
pub mod avx2;
#[cfg(target_arch = "x86_64")]
pub mod avx512;
pub mod exp;
#[cfg(target_arch = "aarch64")]
pub mod neon;
pub mod scalar;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod tiles;

use crate::error::{Error, Kind, Result};
use crate::format::GgmlType;
use acts::{Acts, Turn};
use attention::Seen;

/// Rows of one weight matrix.
#[derive(Clone, Copy)]
pub struct Matrix<'a> {
    /// Element type.
    pub ty: GgmlType,
    /// Output size.
    pub rows: usize,
    /// Input size: elements of a row.
    pub cols: usize,
    /// `rows` rows of `ty.row_bytes(cols)` bytes.
    pub data: &'a [u8],
}

impl<'a> Matrix<'a> {
    /// Bytes of row `r`.
    pub fn row(&self, r: usize) -> &'a [u8] {
        let n = self.data.len() / self.rows;
        &self.data[r * n..(r + 1) * n]
    }

    /// Some of its rows.
    pub fn part(&self, rows: std::ops::Range<usize>) -> Self {
        let n = self.data.len() / self.rows;
        Self { rows: rows.len(), data: &self.data[rows.start * n..rows.end * n], ..*self }
    }
}

/// Instruction sets, from narrow to wide.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// What every CPU of the target has.
    Scalar,
    /// x86-64 with AVX2, FMA, F16C.
    Avx2,
    /// x86-64 with AVX-512 F, BW, VL, DQ, VNNI.
    Avx512,
    /// aarch64 with NEON, which all of them have.
    Neon,
    /// aarch64 with `sdot`, products of four bytes at once.
    DotProd,
}

impl Level {
    /// As `EDGEFT_ISA` names it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Scalar => "scalar",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
            Self::Neon => "neon",
            Self::DotProd => "dotprod",
        }
    }
}

/// The kernels of one level.
#[derive(Debug, Clone, Copy)]
pub struct Kernels {
    level: Level,
}

impl Kernels {
    /// The widest level that this CPU has, or what `EDGEFT_ISA` names.
    ///
    /// # Errors
    /// `Input` when `EDGEFT_ISA` names a level that is unknown or that this CPU lacks.
    pub fn detect() -> Result<Self> {
        let have = Self::available();
        let Ok(wanted) = std::env::var("EDGEFT_ISA") else {
            return Ok(Self { level: have.last().copied().unwrap_or(Level::Scalar) });
        };
        match have.iter().find(|l| l.name() == wanted) {
            Some(level) => Ok(Self { level: *level }),
            None => {
                let names: Vec<&str> = have.iter().map(|l| l.name()).collect();
                Err(Error::new(
                    Kind::Input,
                    "EDGEFT_ISA",
                    format!("`{wanted}` is not to be had here; this CPU has: {}", names.join(", ")),
                ))
            }
        }
    }

    /// The kernels of a level, if this CPU has it.
    pub fn of(level: Level) -> Option<Self> {
        Self::available().contains(&level).then_some(Self { level })
    }

    /// Levels of this CPU, from narrow to wide.
    pub fn available() -> Vec<Level> {
        #[allow(unused_mut)]
        let mut levels = vec![Level::Scalar];
        #[cfg(target_arch = "x86_64")]
        {
            if avx2::Avx2::detect().is_some() {
                levels.push(Level::Avx2);
            }
            if avx512::Avx512::detect().is_some() {
                levels.push(Level::Avx512);
            }
        }
        #[cfg(target_arch = "aarch64")]
        {
            if neon::Neon::detect().is_some() {
                levels.push(Level::Neon);
            }
            if neon::DotProd::detect().is_some() {
                levels.push(Level::DotProd);
            }
        }
        levels
    }

    /// The level in use.
    pub fn level(&self) -> Level {
        self.level
    }

    /// How n rows of activations must be turned besides, for weights of `ty`.
    pub fn turn(&self, ty: GgmlType, n: usize) -> Turn {
        #[cfg(target_arch = "x86_64")]
        if let (Level::Avx512, Some(cpu)) = (self.level, avx512::Avx512::detect()) {
            return cpu.turn(ty, n);
        }
        #[cfg(target_arch = "aarch64")]
        if let (Level::DotProd, Some(cpu)) = (self.level, neon::DotProd::detect()) {
            return cpu.turn(ty, n);
        }
        let _ = (ty, n);
        None
    }

    /// Floats of scratch for rows of `cols` weights: a row decoded, or some of them in a panel.
    pub fn scratch(cols: usize) -> usize {
        4 * cols + 1024
    }

    /// Rows `first..first + out.len() / n` of `w` times every activation row: `out[r][t]`, n activation rows side by side,
    /// prepared as [`Form::of`](acts::Form::of) and [`Kernels::turn`] say.
    /// - `scratch`: [`Kernels::scratch`] floats
    pub fn rows(&self, w: &Matrix, first: usize, acts: &Acts, out: &mut [f32], scratch: &mut [f32]) {
        #[cfg(target_arch = "x86_64")]
        match self.level {
            Level::Avx512 => {
                if let Some(cpu) = avx512::Avx512::detect() {
                    return cpu.rows(w, first, acts, out, scratch);
                }
            }
            Level::Avx2 => {
                if let Some(cpu) = avx2::Avx2::detect() {
                    return cpu.rows(w, first, acts, out, scratch);
                }
            }
            _ => {}
        }
        #[cfg(target_arch = "aarch64")]
        match self.level {
            Level::DotProd => {
                if let Some(cpu) = neon::DotProd::detect() {
                    return cpu.rows(w, first, acts, out, scratch);
                }
            }
            Level::Neon => {
                if let Some(cpu) = neon::Neon::detect() {
                    return cpu.rows(w, first, acts, out, scratch);
                }
            }
            _ => {}
        }
        scalar::rows(w, first, acts, out, scratch);
    }

    /// Sum of a[i] * b[i].
    pub fn dot_f32(&self, a: &[f32], b: &[f32]) -> f32 {
        #[cfg(target_arch = "x86_64")]
        match self.level {
            Level::Avx512 => {
                if let Some(cpu) = avx512::Avx512::detect() {
                    return cpu.dot_f32(a, b);
                }
            }
            Level::Avx2 => {
                if let Some(cpu) = avx2::Avx2::detect() {
                    return cpu.dot_f32(a, b);
                }
            }
            _ => {}
        }
        scalar::dot_f32(a, b)
    }

    /// See [`attention::attend`].
    pub fn attend(&self, q: &[f32], seen: &Seen, scratch: &mut [f32], out: &mut [f32]) {
        #[cfg(target_arch = "x86_64")]
        match self.level {
            Level::Avx512 => {
                if let Some(cpu) = avx512::Avx512::detect() {
                    return cpu.attend(q, seen, scratch, out);
                }
            }
            Level::Avx2 => {
                if let Some(cpu) = avx2::Avx2::detect() {
                    return cpu.attend(q, seen, scratch, out);
                }
            }
            _ => {}
        }
        #[cfg(target_arch = "aarch64")]
        if let (Level::DotProd | Level::Neon, Some(cpu)) = (self.level, neon::Neon::detect()) {
            return cpu.attend(q, seen, scratch, out);
        }
        attention::attend(q, seen, scratch, out);
    }
}
