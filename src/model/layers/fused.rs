//! Changes in place: what would else be a matrix of its own. The target must
//! be a tensor that nobody else holds: candle's tensors share their storage when they are cloned.

use super::host::{Host, rows_per_task};
use super::math::wide;
use candle_core::{CpuStorage, InplaceOp1, InplaceOp2, Layout, Result, Tensor, bail};
use rayon::prelude::*;

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
fn change_by(y: &Tensor, x: &Tensor, f: impl Fn(&mut [f32], &[f32])) -> Result<()> {
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
    use super::super::made::tensor;
    use super::*;

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
