//! Products with matrices of a few columns, which a GEMM packs for longer than it multiplies: into a low rank, out of it, and
//! the gradient of either. Sums run in one order, whatever the number of threads.

use super::fused;
use super::host::{Host, rows_per_task};
use super::mat;
use candle_core::{Result, Tensor, bail};
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

/// Ranks above this are left to the GEMM.
const LOW: usize = 64;
/// Low-rank rows are filled up with zeros to whole vectors of any CPU.
const WIDTH: usize = 16;
/// Rows, or columns, whose sums stay in registers: enough of them to hide the latency of an addition.
const SUMS: usize = 8;
/// Tokens whose sum is one sum, before it is added to the others.
const BLOCK: usize = 256;

/// x M. x: (N, C), M: (C, r) as it lies → (N, r).
pub fn down(x: &Tensor, m: &Tensor) -> Result<Tensor> {
    let ((n, c), (inner, r)) = (x.dims2()?, m.dims2()?);
    if c != inner {
        bail!("({n}, {c}) by ({inner}, {r}): the shapes do not fit");
    }
    if r > LOW || c == 0 {
        return mat::matmul(x, m);
    }
    let x = x.contiguous()?;
    let (hx, wide) = (Host::new(&x)?, r.next_multiple_of(WIDTH));
    let m = Host::strided(m)?.mat().filled_up(wide);
    let mut z = vec![0.0; n * wide];
    let (rows, arch) = (rows_per_task(c).next_multiple_of(SUMS), Arch::new());
    z.par_chunks_mut(rows * wide)
        .zip(hx.slice().par_chunks(rows * c))
        .for_each(|(z, x)| arch.dispatch(Down { z, x, m: &m, c, wide }));
    cut(z, n, wide, r, x.device())
}

/// yᵀ z. y: (N, C), z: (N, r) → (C, r).
pub fn across(y: &Tensor, z: &Tensor) -> Result<Tensor> {
    let ((n, c), (nz, r)) = (y.dims2()?, z.dims2()?);
    if n != nz {
        bail!("({n}, {c}) across ({nz}, {r}): the shapes do not fit");
    }
    if r > LOW || c == 0 {
        return mat::matmul(&y.t()?, z);
    }
    let y = y.contiguous()?;
    let (hy, wide) = (Host::new(&y)?, r.next_multiple_of(WIDTH));
    let z = Host::strided(z)?.mat().filled_up(wide);
    let mut out = vec![0.0; c * wide];
    let (columns, arch) = (c.div_ceil(4 * rayon::current_num_threads()).next_multiple_of(2 * SUMS), Arch::new());
    out.par_chunks_mut(columns * wide)
        .enumerate()
        .for_each(|(i, out)| arch.dispatch(Across { out, y: hy.slice(), z: &z, c, first: i * columns, wide }));
    cut(out, c, wide, r, y.device())
}

/// y += s z M with z: (N, r), M: (r, C), y: (N, C).
pub fn add(y: &Tensor, z: &Tensor, m: &Tensor, scale: f64) -> Result<()> {
    let ((n, c), (nz, r), (rm, cm)) = (y.dims2()?, z.dims2()?, m.dims2()?);
    if (nz, rm, cm) != (n, r, c) {
        bail!("({n}, {c}) += ({nz}, {r}) ({rm}, {cm}): the shapes do not fit");
    }
    if r == 0 || c == 0 {
        return Ok(());
    }
    let (z, m) = (z.contiguous()?, m.contiguous()?);
    let (hz, hm) = (Host::new(&z)?, Host::new(&m)?);
    let (rows, arch, scale) = (rows_per_task(c), Arch::new(), scale as f32);
    fused::change(y, |y| {
        y.par_chunks_mut(rows * c)
            .zip(hz.slice().par_chunks(rows * r))
            .for_each(|(y, z)| arch.dispatch(Add { y, z, m: hm.slice(), r, c, scale }));
    })
}

/// The first r of `wide` columns.
fn cut(values: Vec<f32>, n: usize, wide: usize, r: usize, device: &candle_core::Device) -> Result<Tensor> {
    Tensor::from_vec(values, (n, wide), device)?.narrow(1, 0, r)?.contiguous()
}

/// (n, wide) = (n, C) (C, wide).
struct Down<'a> {
    z: &'a mut [f32],
    x: &'a [f32],
    m: &'a [f32],
    c: usize,
    wide: usize,
}

impl WithSimd for Down<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { z, x, m, c, wide } = self;
        for (z, x) in z.chunks_mut(SUMS * wide).zip(x.chunks(SUMS * c)) {
            if z.len() == SUMS * wide {
                down_rows::<S, SUMS>(simd, z, x, m, c, wide);
            } else {
                z.chunks_mut(wide).zip(x.chunks(c)).for_each(|(z, x)| down_rows::<S, 1>(simd, z, x, m, c, wide));
            }
        }
    }
}

#[inline(always)]
fn down_rows<S: Simd, const N: usize>(simd: S, z: &mut [f32], x: &[f32], m: &[f32], c: usize, wide: usize) {
    let vectors = wide / S::F32_LANES;
    let x: [&[f32]; N] = std::array::from_fn(|i| &x[i * c..][..c]);
    let (z, _) = S::as_mut_simd_f32s(z);
    let (m, _) = S::as_simd_f32s(m);
    for v in 0..vectors {
        let mut sums = [simd.splat_f32s(0.0); N];
        for (k, m) in m.chunks_exact(vectors).take(c).enumerate() {
            for i in 0..N {
                sums[i] = simd.mul_add_f32s(simd.splat_f32s(x[i][k]), m[v], sums[i]);
            }
        }
        for i in 0..N {
            z[i * vectors + v] = sums[i];
        }
    }
}

/// Rows of (C, wide) = (N, C)ᵀ (N, wide), from row `first` on.
struct Across<'a> {
    out: &'a mut [f32],
    y: &'a [f32],
    z: &'a [f32],
    c: usize,
    first: usize,
    wide: usize,
}

impl WithSimd for Across<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { out, y, z, c, first, wide } = self;
        for (y, z) in y.chunks(BLOCK * c).zip(z.chunks(BLOCK * wide)) {
            for (i, out) in out.chunks_mut(SUMS * wide).enumerate() {
                let at = first + i * SUMS;
                if out.len() == SUMS * wide {
                    across_columns::<S, SUMS>(simd, out, y, z, c, at, wide);
                } else {
                    for (j, out) in out.chunks_mut(wide).enumerate() {
                        across_columns::<S, 1>(simd, out, y, z, c, at + j, wide);
                    }
                }
            }
        }
    }
}

#[inline(always)]
fn across_columns<S: Simd, const N: usize>(
    simd: S,
    out: &mut [f32],
    y: &[f32],
    z: &[f32],
    c: usize,
    at: usize,
    wide: usize,
) {
    let vectors = wide / S::F32_LANES;
    let (out, _) = S::as_mut_simd_f32s(out);
    let (z, _) = S::as_simd_f32s(z);
    for v in 0..vectors {
        let mut sums = [simd.splat_f32s(0.0); N];
        for (y, z) in y.chunks_exact(c).zip(z.chunks_exact(vectors)) {
            let y = &y[at..at + N];
            for i in 0..N {
                sums[i] = simd.mul_add_f32s(simd.splat_f32s(y[i]), z[v], sums[i]);
            }
        }
        for i in 0..N {
            out[i * vectors + v] = simd.add_f32s(out[i * vectors + v], sums[i]);
        }
    }
}

/// Rows of y, and vectors of each, that stay in registers while the r rows of M pass: a vector of M that is loaded serves four
/// rows.
const ROWS: usize = 4;
const VECTORS: usize = 2;

/// y += s z M for some rows: (n, C) += (n, r) (r, C).
struct Add<'a> {
    y: &'a mut [f32],
    z: &'a [f32],
    m: &'a [f32],
    r: usize,
    c: usize,
    scale: f32,
}

impl WithSimd for Add<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { y, z, m, r, c, scale } = self;
        let m: Vec<(&[S::f32s], &[f32])> = m.chunks(c).map(S::as_simd_f32s).collect();
        for (y, z) in y.chunks_mut(ROWS * c).zip(z.chunks(ROWS * r)) {
            if y.len() == ROWS * c {
                add_rows::<S, ROWS>(simd, y, z, &m, scale);
            } else {
                y.chunks_mut(c).zip(z.chunks(r)).for_each(|(y, z)| add_rows::<S, 1>(simd, y, z, &m, scale));
            }
        }
    }
}

/// N rows.
#[inline(always)]
fn add_rows<S: Simd, const N: usize>(simd: S, y: &mut [f32], z: &[f32], m: &[(&[S::f32s], &[f32])], scale: f32) {
    let Some((first, tail)) = m.first() else { return };
    let (vectors, rest) = (first.len(), tail.len());
    let c = y.len() / N;
    let mut at = 0;
    while at + VECTORS <= vectors {
        strip::<S, N, VECTORS>(simd, y, z, m, at, scale);
        at += VECTORS;
    }
    while at < vectors {
        strip::<S, N, 1>(simd, y, z, m, at, scale);
        at += 1;
    }
    for (y, z) in y.chunks_mut(c).zip(z.chunks(m.len())) {
        for (j, y) in y[c - rest..].iter_mut().enumerate() {
            *y += scale * z.iter().zip(m).fold(0.0, |sum, (z, m)| sum + z * m.1[j]);
        }
    }
}

/// N rows, W vectors of each from vector `at` on.
#[inline(always)]
fn strip<S: Simd, const N: usize, const W: usize>(
    simd: S,
    y: &mut [f32],
    z: &[f32],
    m: &[(&[S::f32s], &[f32])],
    at: usize,
    scale: f32,
) {
    let (r, c) = (m.len(), y.len() / N);
    let mut sums = [[simd.splat_f32s(0.0); W]; N];
    for (k, m) in m.iter().enumerate() {
        let m = &m.0[at..at + W];
        for i in 0..N {
            let z = simd.splat_f32s(z[i * r + k]);
            for j in 0..W {
                sums[i][j] = simd.mul_add_f32s(z, m[j], sums[i][j]);
            }
        }
    }
    let scale = simd.splat_f32s(scale);
    for (y, sums) in y.chunks_mut(c).zip(&sums) {
        let (y, _) = S::as_mut_simd_f32s(y);
        for (y, sum) in y[at..at + W].iter_mut().zip(sums) {
            *y = simd.mul_add_f32s(scale, *sum, *y);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::made::tensor;
    use super::*;

    /// (N, r, C): a row, no whole group of rows, ranks within, at and over a vector, more tokens than a block, a rank that is
    /// the GEMM's.
    const SHAPES: [(usize, usize, usize); 7] =
        [(1, 1, 1), (3, 16, 64), (40, 8, 200), (70, 4, 1537), (600, 17, 33), (9, 64, 48), (5, 65, 40)];

    fn close(got: &Tensor, want: &Tensor, within: f32, at: (usize, usize, usize)) {
        assert_eq!(got.dims(), want.dims(), "{at:?}");
        let off = (got - want).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
        assert!(off < within, "(N, r, C) = {at:?}: {off}");
    }

    #[test]
    fn low_rank_products_are_those_of_the_gemm() {
        for at @ (n, r, c) in SHAPES {
            let (x, a, z) = (tensor(n, c, 1), tensor(r, c, 2), tensor(n, r, 3));
            let a = a.t().unwrap();
            close(&down(&x, &a).unwrap(), &x.matmul(&a).unwrap(), 1e-6 * (c + 1) as f32, at);
            close(&across(&x, &z).unwrap(), &x.t().unwrap().matmul(&z).unwrap(), 1e-6 * (n + 1) as f32, at);
        }
        assert!(down(&tensor(3, 4, 0), &tensor(5, 2, 0)).is_err());
        assert!(across(&tensor(3, 4, 0), &tensor(4, 2, 0)).is_err());
    }

    #[test]
    fn a_low_rank_product_is_added_as_if_it_were_made() {
        for at @ (n, r, c) in SHAPES {
            let (y, z, m) = (tensor(n, c, 1), tensor(n, r, 2), tensor(r, c, 3));
            let want = (&y + (z.matmul(&m).unwrap() * 0.5).unwrap()).unwrap();
            add(&y, &z, &m, 0.5).unwrap();
            close(&y, &want, 1e-5, at);
        }
        assert!(add(&tensor(3, 4, 0), &tensor(3, 2, 0), &tensor(3, 4, 0), 1.0).is_err());
    }
}
