//! Sums in place: what would else be a product, a scaling and an addition, each with a matrix of its own. The target must
//! be a tensor that nobody else holds: candle's tensors share their storage when they are cloned.

use super::host::{Host, rows_per_task};
use super::math::wide;
use candle_core::{CpuStorage, InplaceOp1, InplaceOp2, InplaceOp3, Layout, Result, Tensor, bail};
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

/// y += s z M with z: (N, r), M: (r, C), y: (N, C); r is small, so one pass over y replaces three.
pub fn add_low_rank(y: &Tensor, z: &Tensor, m: &Tensor, scale: f64) -> Result<()> {
    let ((n, c), (nz, r), (rm, cm)) = (y.dims2()?, z.dims2()?, m.dims2()?);
    if (nz, rm, cm) != (n, r, c) {
        bail!("({n}, {c}) += ({nz}, {r}) ({rm}, {cm}): the shapes do not fit");
    }
    y.inplace_op3(&z.contiguous()?, &m.contiguous()?, &AddLowRank { r, c, scale: scale as f32 })
}

/// y += x, of one shape.
pub fn add(y: &Tensor, x: &Tensor) -> Result<()> {
    const CHUNK: usize = 16 * 1024;
    change_by(y, x, |y, x| {
        y.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK)).for_each(|(y, x)| {
            wide!(|y: &'a mut [f32], x: &'a [f32]| -> () {
                for (y, x) in y.iter_mut().zip(x) {
                    *y += x;
                }
            });
        });
    })
}

/// y += b, row by row. y: (N, C), b: (C).
pub fn add_row(y: &Tensor, b: &Tensor) -> Result<()> {
    let ((_, c), b) = (y.dims2()?, b.contiguous()?);
    if b.dims() != [c] {
        bail!("rows of {c} += {:?}: the shapes do not fit", b.shape());
    }
    let host = Host::new(&b)?;
    let b = host.slice();
    change(y, |y| {
        y.par_chunks_mut(rows_per_task(c) * c).for_each(|y| {
            wide!(|y: &'a mut [f32], b: &'a [f32]| -> () {
                for y in y.chunks_mut(b.len()) {
                    for (y, b) in y.iter_mut().zip(b) {
                        *y += b;
                    }
                }
            });
        });
    })
}

/// Hands the values of y to `f`, which may change them.
pub fn change(y: &Tensor, f: impl Fn(&mut [f32])) -> Result<()> {
    y.inplace_op1(&Change(f))
}

/// The same beside those of x, of the same shape.
pub fn change_by(y: &Tensor, x: &Tensor, f: impl Fn(&mut [f32], &[f32])) -> Result<()> {
    if y.shape() != x.shape() {
        bail!("{:?} is changed by {:?}: the shapes do not fit", y.shape(), x.shape());
    }
    y.inplace_op2(&x.contiguous()?, &Change(f))
}

struct Change<F>(F);

impl<F: Fn(&mut [f32])> InplaceOp1 for Change<F> {
    fn name(&self) -> &'static str {
        "change-in-place"
    }

    fn cpu_fwd(&self, y: &mut CpuStorage, ly: &Layout) -> Result<()> {
        self.0(slice_mut(y, ly)?);
        Ok(())
    }
}

impl<F: Fn(&mut [f32], &[f32])> InplaceOp2 for Change<F> {
    fn name(&self) -> &'static str {
        "change-in-place-by"
    }

    fn cpu_fwd(&self, y: &mut CpuStorage, ly: &Layout, x: &CpuStorage, lx: &Layout) -> Result<()> {
        self.0(slice_mut(y, ly)?, slice(x, lx)?);
        Ok(())
    }
}

struct AddLowRank {
    r: usize,
    c: usize,
    scale: f32,
}

/// Rows of y, and vectors of each, that stay in registers while the r rows of M pass: a vector of M that is loaded serves four
/// rows.
const ROWS: usize = 4;
const VECTORS: usize = 2;

/// y += s z M for some rows: (n, c) += (n, r) (r, c).
struct LowRank<'a> {
    y: &'a mut [f32],
    z: &'a [f32],
    m: &'a [f32],
    r: usize,
    c: usize,
    scale: f32,
}

impl WithSimd for LowRank<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { y, z, m, r, c, scale } = self;
        let m: Vec<(&[S::f32s], &[f32])> = m.chunks(c).map(S::as_simd_f32s).collect();
        for (y, z) in y.chunks_mut(ROWS * c).zip(z.chunks(ROWS * r)) {
            if y.len() == ROWS * c {
                low_rank::<S, ROWS>(simd, y, z, &m, scale);
            } else {
                y.chunks_mut(c).zip(z.chunks(r)).for_each(|(y, z)| low_rank::<S, 1>(simd, y, z, &m, scale));
            }
        }
    }
}

/// N rows.
#[inline(always)]
fn low_rank<S: Simd, const N: usize>(simd: S, y: &mut [f32], z: &[f32], m: &[(&[S::f32s], &[f32])], scale: f32) {
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

impl InplaceOp3 for AddLowRank {
    fn name(&self) -> &'static str {
        "add-low-rank"
    }

    fn cpu_fwd(
        &self,
        y: &mut CpuStorage,
        ly: &Layout,
        z: &CpuStorage,
        lz: &Layout,
        m: &CpuStorage,
        lm: &Layout,
    ) -> Result<()> {
        let (z, m, y) = (slice(z, lz)?, slice(m, lm)?, slice_mut(y, ly)?);
        let (r, c, scale) = (self.r, self.c, self.scale);
        let rows = rows_per_task(c);
        let arch = Arch::new();
        y.par_chunks_mut(rows * c)
            .zip(z.par_chunks(rows * r))
            .for_each(|(y, z)| arch.dispatch(LowRank { y, z, m, r, c, scale }));
        Ok(())
    }
}

fn slice<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&storage.as_slice::<f32>()?[start..end]),
        None => bail!("a change in place needs contiguous tensors, got strides {:?}", layout.stride()),
    }
}

fn slice_mut<'a>(storage: &'a mut CpuStorage, layout: &Layout) -> Result<&'a mut [f32]> {
    match (layout.contiguous_offsets(), storage) {
        (Some((start, end)), CpuStorage::F32(values)) => Ok(&mut values[start..end]),
        (None, _) => bail!("a change in place needs contiguous tensors, got strides {:?}", layout.stride()),
        _ => bail!("a change in place needs f32"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    fn tensor(n: usize, c: usize, salt: usize) -> Tensor {
        let value = |i: usize| ((i * 7919 + salt * 104_729) % 2003) as f32 / 1000.0 - 1.0;
        Tensor::from_vec((0..n * c).map(value).collect::<Vec<_>>(), (n, c), &Device::Cpu).unwrap()
    }

    #[test]
    fn a_low_rank_product_is_added_as_if_it_were_made() {
        for (n, r, c) in [(1, 1, 1), (3, 16, 64), (40, 8, 200), (70, 4, 1537)] {
            let (y, z, m) = (tensor(n, c, 1), tensor(n, r, 2), tensor(r, c, 3));
            let want = (&y + (z.matmul(&m).unwrap() * 0.5).unwrap()).unwrap();
            add_low_rank(&y, &z, &m, 0.5).unwrap();
            let off = (y - want).unwrap().abs().unwrap().flatten_all().unwrap().max(0).unwrap();
            assert!(off.to_scalar::<f32>().unwrap() < 2e-6, "({n}, {r}, {c}): {off}");
        }
        assert!(add_low_rank(&tensor(3, 4, 0), &tensor(3, 2, 0), &tensor(3, 4, 0), 1.0).is_err());
    }

    #[test]
    fn a_row_is_added_to_every_row() {
        let (y, b) = (tensor(5, 70, 1), tensor(1, 70, 2).flatten_all().unwrap());
        let want = y.broadcast_add(&b).unwrap();
        add_row(&y, &b).unwrap();
        assert_eq!(y.to_vec2::<f32>().unwrap(), want.to_vec2::<f32>().unwrap());
        assert!(add_row(&y, &tensor(1, 71, 2).flatten_all().unwrap()).is_err());
    }

    #[test]
    fn sums_reach_the_part_that_a_view_shows() {
        let whole = tensor(4, 10, 1);
        let (x, want) = (tensor(2, 10, 2), (whole.narrow(0, 1, 2).unwrap() + tensor(2, 10, 2)).unwrap());
        add(&whole.narrow(0, 1, 2).unwrap(), &x).unwrap();
        let rows = |t: &Tensor| t.to_vec2::<f32>().unwrap();
        assert_eq!(rows(&whole)[1..3], rows(&want));
        assert_eq!(rows(&whole)[3], rows(&tensor(4, 10, 1))[3]);
        assert!(add(&whole, &x).is_err());
    }
}
