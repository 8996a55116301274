//! The kernels of aarch64: four blocks' sums are folded into one register, as in AVX2. All CPUs of this kind have NEON, which
//! multiplies bytes into words of 16 bits; most since 2018 also have `sdot`, which sums four products of bytes at once. Beyond
//! that the two levels are the same lines. What is not here (the other types, and attention but for its halves) runs the plain
//! loops, which the compiler turns into NEON by itself.
//!
//! Instructions for 32 weights and a row of activations, as qemu counts them over whole rows of 1024, one row of activations and
//! (panels included) sixteen. Time on a real CPU is not measured yet:
//!
//! | weights | plain loops | `neon` | `dotprod` | `dotprod`, 16 rows |
//! |---------|------------:|-------:|----------:|-------------------:|
//! | `q8_0`  |          58 |     18 |        15 |                  7 |
//! | `q4_0`  |          63 |     19 |        17 |                  7 |
//! | `q4_k`  |         145 |     20 |        18 |                  9 |
//! | `q6_k`  |          55 |     23 |        22 |                  7 |
//!
//! Not here, and why: tiles of 2 × 2 products (`smmla`) pay only for many rows, on CPUs of 2021 and later; asking memory ahead
//! needs a CPU to find the distance on.

mod blocks;
mod panels;
mod shares;

use std::arch::aarch64::*;
use std::arch::asm;
use std::arch::is_aarch64_feature_detected;
use std::marker::PhantomData;

use half::f16;

use super::Matrix;
use super::acts::{Acts, Turn};
use super::attention::{self, Seen};
use super::scalar;
use super::tiles::tiles;
use crate::format::GgmlType;
use crate::format::block::{self, BlockQ4_0, BlockQ4_1, BlockQ4K, BlockQ5_0, BlockQ5_1, BlockQ5K, BlockQ6K, BlockQ8_0};

/// Exists only where the CPU has NEON.
#[derive(Debug, Clone, Copy)]
pub struct Neon(());

/// Exists only where the CPU has NEON and its products of four bytes.
#[derive(Debug, Clone, Copy)]
pub struct DotProd(());

impl Neon {
    /// Asks the CPU.
    pub fn detect() -> Option<Self> {
        is_aarch64_feature_detected!("neon").then_some(Self(()))
    }

    /// See [`super::Kernels::rows`].
    pub fn rows(self, w: &Matrix, first: usize, acts: &Acts, out: &mut [f32], scratch: &mut [f32]) {
        // SAFETY: `Self` exists only after `detect` saw what the function is compiled for.
        unsafe { rows(self, w, first, acts, out, scratch) }
    }

    /// See [`super::Kernels::attend`].
    pub fn attend(self, q: &[f32], seen: &Seen, scratch: &mut [f32], out: &mut [f32]) {
        // SAFETY: as above.
        unsafe { attend(q, seen, scratch, out) }
    }
}

impl DotProd {
    /// Asks the CPU.
    pub fn detect() -> Option<Self> {
        (is_aarch64_feature_detected!("neon") && is_aarch64_feature_detected!("dotprod")).then_some(Self(()))
    }

    /// See [`super::Kernels::rows`].
    pub fn rows(self, w: &Matrix, first: usize, acts: &Acts, out: &mut [f32], scratch: &mut [f32]) {
        // SAFETY: `Self` exists only after `detect` saw NEON too.
        unsafe {
            match panels::turn(w.ty, acts.n) {
                Some(_) => panels::rows(self, w, first, acts, out, scratch),
                None => rows(self, w, first, acts, out, scratch),
            }
        }
    }

    /// See [`super::Kernels::turn`].
    pub fn turn(self, ty: GgmlType, n: usize) -> Turn {
        panels::turn(ty, n)
    }

    /// Adds the products of each four bytes. The compiler's own function for it is not stable yet.
    #[inline(always)]
    fn add_products(self, mut sums: int32x4_t, w: int8x16_t, x: int8x16_t) -> int32x4_t {
        // SAFETY: registers in, a register out, and `Self` exists only after `detect` saw `sdot`. The first line lets the
        // assembler take the second one wherever it ends up.
        unsafe {
            asm!(
                ".arch_extension dotprod",
                "sdot {sums:v}.4s, {w:v}.16b, {x:v}.16b",
                sums = inout(vreg) sums,
                w = in(vreg) w,
                x = in(vreg) x,
                options(pure, nomem, nostack, preserves_flags),
            );
        }
        sums
    }
}

/// Sums of products of signed codes, in the way of one level.
trait Multiply: Copy {
    /// Whether several rows of activations meet panels.
    const PANELS: bool;

    /// The sums of four blocks of 32. Where codes are `small`, none is beyond ±31.
    fn blocks(self, small: bool, w: [[int8x16_t; 2]; 4], x: [[int8x16_t; 2]; 4]) -> int32x4_t;

    /// The sums of four shares of 16 codes, of which none is beyond ±32.
    fn sixteens(self, w: [int8x16_t; 4], x: [int8x16_t; 4]) -> int32x4_t;
}

impl Multiply for Neon {
    const PANELS: bool = false;

    #[inline(always)]
    fn blocks(self, small: bool, w: [[int8x16_t; 2]; 4], x: [[int8x16_t; 2]; 4]) -> int32x4_t {
        // SAFETY: `Self` exists only after `detect` saw NEON.
        unsafe { if small { small_blocks(w, x) } else { wide_blocks(w, x) } }
    }

    #[inline(always)]
    fn sixteens(self, w: [int8x16_t; 4], x: [int8x16_t; 4]) -> int32x4_t {
        // SAFETY: as above.
        unsafe { sixteens(w, x) }
    }
}

impl Multiply for DotProd {
    const PANELS: bool = true;

    #[inline(always)]
    fn blocks(self, _: bool, w: [[int8x16_t; 2]; 4], x: [[int8x16_t; 2]; 4]) -> int32x4_t {
        // SAFETY: `Self` exists only after `detect` saw NEON.
        unsafe {
            let first = |i: usize| self.add_products(vdupq_n_s32(0), w[i][0], x[i][0]);
            let of = |i: usize| self.add_products(first(i), w[i][1], x[i][1]);
            fold([of(0), of(1), of(2), of(3)])
        }
    }

    #[inline(always)]
    fn sixteens(self, w: [int8x16_t; 4], x: [int8x16_t; 4]) -> int32x4_t {
        // SAFETY: as above.
        unsafe {
            let of = |i: usize| self.add_products(vdupq_n_s32(0), w[i], x[i]);
            fold([of(0), of(1), of(2), of(3)])
        }
    }
}

/// The same codes, without what the compiler knows of them: where it sees that they are not negative, it widens them as such,
/// finds no product of the two kinds, and narrows them again.
#[inline]
#[target_feature(enable = "neon")]
fn forget(mut codes: int8x16_t) -> int8x16_t {
    // SAFETY: no instruction at all.
    unsafe { asm!("/* {0:v} */", inout(vreg) codes, options(pure, nomem, nostack, preserves_flags)) };
    codes
}

/// Pairs of products, 16 bits: at most 2 * 128 * 127.
#[inline]
#[target_feature(enable = "neon")]
fn pairs(w: int8x16_t, x: int8x16_t) -> int16x8_t {
    vmlal_high_s8(vmull_s8(vget_low_s8(w), vget_low_s8(x)), w, x)
}

#[inline]
#[target_feature(enable = "neon")]
fn wide_blocks(w: [[int8x16_t; 2]; 4], x: [[int8x16_t; 2]; 4]) -> int32x4_t {
    let of = |i: usize| vpadalq_s16(vpaddlq_s16(pairs(w[i][0], x[i][0])), pairs(w[i][1], x[i][1]));
    fold([of(0), of(1), of(2), of(3)])
}

/// Words of 16 bits hold eight products of small codes: 8 * 31 * 127.
#[inline]
#[target_feature(enable = "neon")]
fn small_blocks(w: [[int8x16_t; 2]; 4], x: [[int8x16_t; 2]; 4]) -> int32x4_t {
    let of = |i: usize| {
        let (a, b) = (forget(w[i][0]), forget(w[i][1]));
        let four = vmlal_s8(pairs(a, x[i][0]), vget_low_s8(b), vget_low_s8(x[i][1]));
        vmlal_high_s8(four, b, x[i][1])
    };
    vpaddq_s32(vpaddlq_s16(vpaddq_s16(of(0), of(1))), vpaddlq_s16(vpaddq_s16(of(2), of(3))))
}

/// As above: 8 * 32 * 127.
#[inline]
#[target_feature(enable = "neon")]
fn sixteens(w: [int8x16_t; 4], x: [int8x16_t; 4]) -> int32x4_t {
    let of = |i: usize| pairs(w[i], x[i]);
    vpaddlq_s16(vpaddq_s16(vpaddq_s16(of(0), of(1)), vpaddq_s16(of(2), of(3))))
}

/// The sums of the four integers of each of four registers.
#[inline]
#[target_feature(enable = "neon")]
fn fold([a, b, c, d]: [int32x4_t; 4]) -> int32x4_t {
    vpaddq_s32(vpaddq_s32(a, b), vpaddq_s32(c, d))
}

#[target_feature(enable = "neon")]
fn rows<M: Multiply>(cpu: M, w: &Matrix, first: usize, acts: &Acts, out: &mut [f32], scratch: &mut [f32]) {
    /// Row by row where panels take what is more.
    macro_rules! dot {
        ($block:ty, $meet:ident) => {{
            let dot = Dot::<M, $block>::of(cpu);
            if M::PANELS {
                scalar::tiles(w, first, acts, out, |row, acts, t, out| dot.$meet::<1>(row, acts, t, out))
            } else {
                tiles!([dot.$meet], w, first, acts, out)
            }
        }};
    }
    match w.ty {
        GgmlType::Q8_0 => dot!(BlockQ8_0, blocks),
        GgmlType::Q4_0 => dot!(BlockQ4_0, blocks),
        GgmlType::Q4_1 => dot!(BlockQ4_1, blocks),
        GgmlType::Q5_0 => dot!(BlockQ5_0, blocks),
        GgmlType::Q5_1 => dot!(BlockQ5_1, blocks),
        GgmlType::Q4_K => dot!(BlockQ4K, shares),
        GgmlType::Q5_K => dot!(BlockQ5K, shares),
        GgmlType::Q6_K => dot!(BlockQ6K, sixteens),
        GgmlType::F16 => tiles!([dot_f16], w, first, acts, out),
        GgmlType::F32 => tiles!([dot_f32], w, first, acts, out),
        _ => scalar::rows(w, first, acts, out, scratch),
    }
}

/// Repeats lines for each `$t` below `$n`, at most four: the compiler leaves so long a loop as it is, and its sums in memory.
macro_rules! each {
    ($t:ident < $n:ident, $body:block) => {
        each!(@ $t, $n, $body, 0);
        each!(@ $t, $n, $body, 1);
        each!(@ $t, $n, $body, 2);
        each!(@ $t, $n, $body, 3);
    };
    (@ $t:ident, $n:ident, $body:block, $i:literal) => {
        if $i < $n {
            let $t = $i;
            $body
        }
    };
}
use each;

/// Products of rows of `B` in the way of `M`.
#[derive(Clone, Copy)]
struct Dot<M, B> {
    cpu: M,
    of: PhantomData<B>,
}

impl<M: Multiply, B> Dot<M, B> {
    fn of(cpu: M) -> Self {
        Self { cpu, of: PhantomData }
    }
}

#[target_feature(enable = "neon")]
fn attend(q: &[f32], seen: &Seen, scratch: &mut [f32], out: &mut [f32]) {
    attention::attend_with(q, seen, scratch, out, |halves, floats| {
        let (eights, rest) = halves.as_chunks::<8>();
        let (wide, last) = floats.as_chunks_mut::<8>();
        for (eight, wide) in eights.iter().zip(wide) {
            let [low, high] = floats_of(load(eight));
            put(low, &mut wide.as_chunks_mut().0[0]);
            put(high, &mut wide.as_chunks_mut().0[1]);
        }
        attention::unpack_halves(rest, last);
    });
}

#[inline]
#[target_feature(enable = "neon")]
fn load<T: bytemuck::Pod>(values: &T) -> int8x16_t {
    const { assert!(size_of::<T>() == 16) };
    // SAFETY: the reference makes 16 bytes readable, any bytes are a register, and the load needs no alignment.
    unsafe { vld1q_s8((&raw const *values).cast()) }
}

#[inline]
#[target_feature(enable = "neon")]
fn store<T: bytemuck::Pod>(register: int8x16_t, out: &mut T) {
    const { assert!(size_of::<T>() == 16) };
    // SAFETY: as in `load`, of 16 writable bytes.
    unsafe { vst1q_s8((&raw mut *out).cast(), register) };
}

/// Two registers of codes.
#[inline]
#[target_feature(enable = "neon")]
fn two(codes: &[i8; 32]) -> [int8x16_t; 2] {
    let [a, b] = bytemuck::cast_ref::<[i8; 32], [[i8; 16]; 2]>(codes);
    [load(a), load(b)]
}

/// Four times two registers of codes.
#[inline]
#[target_feature(enable = "neon")]
fn eight(codes: &[[i8; 32]; 4]) -> [[int8x16_t; 2]; 4] {
    [two(&codes[0]), two(&codes[1]), two(&codes[2]), two(&codes[3])]
}

#[inline]
#[target_feature(enable = "neon")]
fn load_u8(bytes: &[u8; 16]) -> uint8x16_t {
    vreinterpretq_u8_s8(load(bytes))
}

/// Low nibbles of 16 bytes, and the high ones.
#[inline]
#[target_feature(enable = "neon")]
fn nibbles(bytes: &[u8; 16]) -> [uint8x16_t; 2] {
    let both = load_u8(bytes);
    [vandq_u8(both, vdupq_n_u8(15)), vshrq_n_u8::<4>(both)]
}

/// Codes as they are: below 128 both kinds of bytes say the same.
#[inline]
#[target_feature(enable = "neon")]
fn signed([a, b]: [uint8x16_t; 2]) -> [int8x16_t; 2] {
    [vreinterpretq_s8_u8(a), vreinterpretq_s8_u8(b)]
}

#[inline]
#[target_feature(enable = "neon")]
fn load_i16(sums: &[i16; 4]) -> int16x4_t {
    vcreate_s16(bytemuck::cast(*sums))
}

#[inline]
#[target_feature(enable = "neon")]
fn floats(x: &[f32; 4]) -> float32x4_t {
    vreinterpretq_f32_s8(load(x))
}

#[inline]
#[target_feature(enable = "neon")]
fn put(x: float32x4_t, out: &mut [f32; 4]) {
    store(vreinterpretq_s8_f32(x), out);
}

/// Sums as the plain loops keep and add them.
#[inline]
#[target_feature(enable = "neon")]
fn tree(strands: float32x4_t) -> f32 {
    let mut out = [0.0; scalar::STRANDS];
    put(strands, &mut out);
    scalar::tree(out)
}

/// Eight halves as floats.
#[inline]
#[target_feature(enable = "neon")]
fn floats_of(halves: int8x16_t) -> [float32x4_t; 2] {
    let halves = vreinterpretq_f16_s8(halves);
    [vcvt_f32_f16(vget_low_f16(halves)), vcvt_high_f32_f16(halves)]
}

/// Four halves as floats.
#[inline]
#[target_feature(enable = "neon")]
fn quad(halves: [f16; 4]) -> float32x4_t {
    vcvt_f32_f16(vreinterpret_f16_u16(vcreate_u16(bytemuck::cast(halves))))
}

/// Rows of floats, 16 of them four registers.
macro_rules! dot_of_floats {
    ($name:ident, $ty:expr, $bytes:literal, $load:expr) => {
        #[inline]
        #[target_feature(enable = "neon")]
        fn $name<const T: usize>(row: &[u8], acts: &Acts, from: usize, out: &mut [f32]) {
            let (chunks, rest) = row.as_chunks::<{ 16 * $bytes }>();
            let mut x = [(&[][..], &[][..]); T];
            for t in 0..T {
                x[t] = acts.floats($ty)[(from + t) * acts.cols..][..acts.cols].as_chunks::<16>();
            }
            let mut lanes = [[vdupq_n_f32(0.0); 4]; T];
            for (c, chunk) in chunks.iter().enumerate() {
                let w: [float32x4_t; 4] = $load(chunk);
                for t in 0..T {
                    let x = x[t].0[c].as_chunks::<4>().0;
                    for i in 0..4 {
                        lanes[t][i] = vaddq_f32(lanes[t][i], vmulq_f32(w[i], floats(&x[i])));
                    }
                }
            }
            let mut last = [0.0; 16];
            let last = &mut last[..rest.len() / $bytes];
            block::decode($ty, rest, last);
            for t in 0..T {
                let [a, b, c, d] = lanes[t];
                out[t] = tree(vaddq_f32(vaddq_f32(a, c), vaddq_f32(b, d))) + scalar::tail(last, x[t].1);
            }
        }
    };
}

dot_of_floats!(dot_f16, GgmlType::F16, 2, |chunk: &[u8; 32]| {
    let eights = chunk.as_chunks::<16>().0;
    let of = |i: usize| floats_of(load(&eights[i]));
    let ([a, b], [c, d]) = (of(0), of(1));
    [a, b, c, d]
});
dot_of_floats!(dot_f32, GgmlType::F32, 4, |chunk: &[u8; 64]| {
    let fours = chunk.as_chunks::<16>().0;
    let of = |i: usize| vreinterpretq_f32_s8(load(&fours[i]));
    [of(0), of(1), of(2), of(3)]
});
