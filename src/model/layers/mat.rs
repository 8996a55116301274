//! Products of matrices where they lie: strided views of slices, and the GEMM that candle uses too. Candle's own call zeroes
//! what it is about to write, and takes whole tensors only.

use super::host::Host;
use candle_core::{Result, Tensor, bail};
use gemm::{Parallelism, gemm};

/// A matrix in a slice.
#[derive(Clone, Copy)]
pub struct Mat<'a> {
    values: &'a [f32],
    /// Rows and columns.
    dims: (usize, usize),
    /// From a row to the next, from a column to the next.
    strides: (usize, usize),
}

impl<'a> Mat<'a> {
    /// (rows, cols) whose rows are `stride` apart.
    ///
    /// # Panics
    /// When the slice ends before the matrix does.
    pub fn new(values: &'a [f32], dims: (usize, usize), stride: usize) -> Self {
        Self::strided(values, dims, (stride, 1))
    }

    /// (rows, cols) at any strides.
    ///
    /// # Panics
    /// When the slice ends before the matrix does.
    pub fn strided(values: &'a [f32], dims: (usize, usize), strides: (usize, usize)) -> Self {
        let needs = end(dims, strides);
        assert!(needs <= values.len(), "{dims:?} at strides {strides:?}: {needs} values, not {}", values.len());
        Self { values, dims, strides }
    }

    /// (rows, cols).
    pub fn dims(&self) -> (usize, usize) {
        self.dims
    }

    /// So many columns from one on.
    ///
    /// # Panics
    /// When it has not as many.
    pub fn columns(self, from: usize, n: usize) -> Self {
        assert!(from + n <= self.dims.1, "columns {from} to {} of {:?}", from + n, self.dims);
        let skipped = if self.dims.0 == 0 || n == 0 { 0 } else { from * self.strides.1 };
        Self::strided(&self.values[skipped..], (self.dims.0, n), self.strides)
    }

    /// Rows as columns.
    pub fn t(self) -> Self {
        Self { dims: (self.dims.1, self.dims.0), strides: (self.strides.1, self.strides.0), ..self }
    }
}

impl Mat<'_> {
    /// A copy whose rows are filled up with zeros to `width`.
    pub fn filled_up(&self, width: usize) -> Vec<f32> {
        let ((rows, cols), (down, right)) = (self.dims, self.strides);
        let mut out = vec![0.0; rows * width];
        for (i, out) in out.chunks_mut(width).enumerate() {
            for (j, out) in out[..cols].iter_mut().enumerate() {
                *out = self.values[i * down + j * right];
            }
        }
        out
    }
}

/// Values from the first to the last of a matrix.
fn end((rows, cols): (usize, usize), (down, right): (usize, usize)) -> usize {
    if rows == 0 || cols == 0 { 0 } else { (rows - 1) * down + (cols - 1) * right + 1 }
}

/// What becomes of the values that stand where a product goes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Onto {
    /// They are written over.
    Nothing,
    /// The product is added to them.
    Sum,
}

/// Who computes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum By {
    /// The calling thread.
    One,
    /// The pool.
    All,
}

/// out = a b, or out += a b; rows of `out` are `stride` apart.
///
/// # Panics
/// When the shapes do not fit, or `out` is too short.
pub fn product(out: &mut [f32], stride: usize, a: Mat, b: Mat, onto: Onto, by: By) {
    let ((m, k), (inner, n)) = (a.dims, b.dims);
    assert_eq!(k, inner, "({m}, {k}) by ({inner}, {n})");
    assert!(n <= stride && end((m, n), (stride, 1)) <= out.len(), "({m}, {n}) in {} values", out.len());
    if k == 0 && onto == Onto::Nothing {
        out.chunks_mut(stride.max(1)).take(m).for_each(|row| row[..n].fill(0.0));
    }
    // SAFETY: `out` is borrowed mutably and reaches over (m, n) at its stride, just asserted.
    unsafe { write(out.as_mut_ptr(), stride, a, b, onto, by) }
}

/// a b: (m, n), row by row.
///
/// # Panics
/// When the shapes do not fit.
pub fn new_product(a: Mat, b: Mat) -> Vec<f32> {
    let ((m, k), (inner, n)) = (a.dims, b.dims);
    assert_eq!(k, inner, "({m}, {k}) by ({inner}, {n})");
    if k == 0 {
        return vec![0.0; m * n];
    }
    let mut out = Vec::with_capacity(m * n);
    // SAFETY: the vector has room for (m, n) values at stride n, and with [`Onto::Nothing`] and k > 0 a GEMM writes each of
    // them and reads none.
    unsafe {
        write(out.as_mut_ptr(), n, a, b, Onto::Nothing, By::All);
        out.set_len(m * n);
    }
    out
}

/// The GEMM; nothing is written when k is 0.
///
/// # Safety
/// `out` is valid for writes of (m, n) values at the stride, for reads too with [`Onto::Sum`], and nobody else uses it.
unsafe fn write(out: *mut f32, stride: usize, a: Mat, b: Mat, onto: Onto, by: By) {
    let ((m, k), n) = (a.dims, b.dims.1);
    if m == 0 || n == 0 || k == 0 {
        return;
    }
    let parallelism = match by {
        By::One => Parallelism::None,
        By::All => Parallelism::Rayon(rayon::current_num_threads()),
    };
    let step = |s: usize| s as isize;
    // SAFETY: `a` and `b` reach over what their dimensions and strides say, checked when they were made; `out` by contract.
    unsafe {
        gemm(
            m,
            n,
            k,
            out,
            1,
            step(stride),
            onto == Onto::Sum,
            a.values.as_ptr(),
            step(a.strides.1),
            step(a.strides.0),
            b.values.as_ptr(),
            step(b.strides.1),
            step(b.strides.0),
            1.0,
            1.0,
            false,
            false,
            false,
            parallelism,
        );
    }
}

/// a b of tensors as they lie, transposed or narrowed: (m, k), (k, n) → (m, n).
pub fn matmul(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let ((m, k), (inner, n)) = (a.dims2()?, b.dims2()?);
    if k != inner {
        bail!("({m}, {k}) by ({inner}, {n}): the shapes do not fit");
    }
    let (ha, hb) = (Host::strided(a)?, Host::strided(b)?);
    Tensor::from_vec(new_product(ha.mat(), hb.mat()), (m, n), a.device())
}

#[cfg(test)]
mod tests {
    use super::super::made::{numbers, tensor};
    use super::*;

    /// The definition.
    fn plain(a: Mat, b: Mat) -> Vec<f32> {
        let at = |m: &Mat, i: usize, j: usize| f64::from(m.values[i * m.strides.0 + j * m.strides.1]);
        let ((m, k), n) = (a.dims, b.dims.1);
        (0..m * n).map(|i| (0..k).map(|l| at(&a, i / n, l) * at(&b, l, i % n)).sum::<f64>() as f32).collect()
    }

    #[test]
    fn products_are_those_of_the_definition_at_any_stride_onto_anything() {
        for (m, k, n) in [(1, 1, 1), (3, 16, 64), (40, 70, 9), (17, 0, 5), (0, 4, 5), (65, 257, 33)] {
            let (av, bv) = (numbers((m + 1) * (k + 3), 1), numbers((n + 1) * (k + 2), 2));
            let (a, b) = (Mat::new(&av, (m, k), k + 3), Mat::new(&bv, (n, k), k + 2).t());
            let want = plain(a, b);
            let close = |got: f32, want: f32| (got - want).abs() <= 1e-5 * (k as f32).max(1.0);
            assert!(new_product(a, b).iter().zip(&want).all(|(g, w)| close(*g, *w)), "({m}, {k}, {n})");
            for (onto, by) in [(Onto::Nothing, By::One), (Onto::Sum, By::All), (Onto::Sum, By::One)] {
                let (stride, before) = (n + 4, numbers(m * (n + 4), 3));
                let mut out = before.clone();
                product(&mut out, stride, a, b, onto, by);
                for i in 0..m * stride {
                    let (row, col) = (i / stride, i % stride);
                    let was = if onto == Onto::Sum || col >= n { before[i] } else { 0.0 };
                    let more = if col < n { want[row * n + col] } else { 0.0 };
                    assert!(close(out[i], was + more), "({m}, {k}, {n}) at {row}, {col}");
                }
            }
        }
    }

    #[test]
    fn tensors_are_taken_as_they_lie() {
        let (a, b) = (tensor(10, 6, 1), tensor(10, 4, 2));
        let (at, b) = (a.narrow(1, 1, 3).unwrap().t().unwrap(), b.narrow(0, 0, 10).unwrap());
        let off = (matmul(&at, &b).unwrap() - at.contiguous().unwrap().matmul(&b).unwrap()).unwrap();
        assert!(off.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap() < 1e-6);
        let error = matmul(&a, &b).unwrap_err().to_string();
        assert!(error.starts_with("(10, 6) by (10, 4)"), "{error}");
    }

    #[test]
    #[should_panic(expected = "(3, 4) at strides (4, 1): 12 values, not 11")]
    fn a_view_does_not_reach_beyond_its_slice() {
        Mat::new(&[0.0; 11], (3, 4), 4);
    }
}
