//! The largest singular values of a matrix and their vectors, by randomized subspace iteration (Halko, Martinsson and
//! Tropp, arXiv:0909.4061, algorithms 4.4 and 5.1) and a one-sided Jacobi on the small matrix that is left. When the subspace is as
//! wide as the matrix, as on small ones, nothing is left to chance and the result is exact.

use crate::model::layers::host::Host;
use crate::rng;
use candle_core::{Result, Tensor};

/// A side up to which the whole matrix is taken apart.
const WHOLE: usize = 128;
/// Columns beyond the rank asked for, at least, and rounds of W Wᵀ: each raises every singular value to two powers more. PiSSA's
/// authors find 16 rounds as good as the whole decomposition.
const OVERSAMPLE: usize = 16;
const ROUNDS: usize = 16;

/// W ≈ U diag(s) Vᵀ.
pub struct Svd {
    /// (out, r), orthonormal columns.
    pub u: Tensor,
    /// r of them, largest first.
    pub s: Vec<f64>,
    /// (in, r), orthonormal columns.
    pub v: Tensor,
}

/// The `r` largest singular values of `w`: (out, in), or as many as there are. `stream` seeds the subspace.
pub fn largest(w: &Tensor, r: usize, seed: u64, stream: u64) -> Result<Svd> {
    let (out, input) = w.dims2()?;
    let side = out.min(input);
    let k = if side <= WHOLE { side } else { (r + OVERSAMPLE.max(r)).min(side) };
    let noise: Vec<f32> = (0..input * k).map(|i| rng::normal(seed, stream, i as u64)).collect();
    let mut q = orthonormal(&w.matmul(&Tensor::from_vec(noise, (input, k), w.device())?)?)?.0; // (out, k)
    let wt = w.t()?;
    for _ in 0..if k < side { ROUNDS } else { 0 } {
        let z = orthonormal(&wt.matmul(&tensor(&q, w)?)?)?.0; // (in, k)
        q = orthonormal(&w.matmul(&tensor(&z, w)?)?)?.0;
    }
    // Qᵀ W = (P R)ᵀ with P: (in, k), R: (k, k); with Rᵀ = X diag(s) Yᵀ, W ≈ (Q X) diag(s) (P Y)ᵀ.
    let (p, upper) = orthonormal(&wt.matmul(&tensor(&q, w)?)?)?;
    let (x, s, y) = jacobi(upper);
    let r = r.min(k);
    Ok(Svd { u: tensor(&combine(&q, &x[..r]), w)?, v: tensor(&combine(&p, &y[..r]), w)?, s: s[..r].to_vec() })
}

/// Columns in f64.
type Columns = Vec<Vec<f64>>;

/// (n, k) → orthonormal columns and the upper triangle R (by column) that makes the matrix of them again. Gram and Schmidt, each
/// column twice; a column that is a sum of others becomes zero.
fn orthonormal(m: &Tensor) -> Result<(Columns, Columns)> {
    let (n, k) = m.dims2()?;
    let m = m.contiguous()?;
    let host = Host::new(&m)?;
    let values = host.slice();
    let mut q: Columns = Vec::with_capacity(k);
    let mut upper: Columns = Vec::with_capacity(k);
    for j in 0..k {
        let mut column: Vec<f64> = (0..n).map(|i| f64::from(values[i * k + j])).collect();
        let (before, mut r) = (dot(&column, &column).sqrt(), vec![0.0; k]);
        for _ in 0..2 {
            for (i, other) in q.iter().enumerate() {
                let along = dot(&column, other);
                column.iter_mut().zip(other).for_each(|(c, o)| *c -= along * o);
                r[i] += along;
            }
        }
        let norm = dot(&column, &column).sqrt();
        // What is left of a sum of others is rounding (the GEMM's is f32), not a direction.
        r[j] = if norm > 1e-6 * before { norm } else { 0.0 };
        let inverse = if r[j] > 0.0 { 1.0 / norm } else { 0.0 };
        column.iter_mut().for_each(|c| *c *= inverse);
        q.push(column);
        upper.push(r);
    }
    Ok((q, upper))
}

/// For R by column: Rᵀ = X diag(s) Yᵀ, largest first, X and Y by column. One-sided: the rows of Rᵀ are never touched; its
/// columns are turned, two at a time, until all are orthogonal; what they were turned by is Y, their lengths are s.
fn jacobi(upper: Columns) -> (Columns, Vec<f64>, Columns) {
    let k = upper.len();
    // Column j of Rᵀ is row j of R.
    let mut a: Columns = (0..k).map(|j| (0..k).map(|i| upper[i][j]).collect()).collect();
    let mut y: Columns = (0..k).map(|j| (0..k).map(|i| f64::from(u8::from(i == j))).collect()).collect();
    for _ in 0..60 {
        let mut turned = false;
        for p in 0..k {
            for q in p + 1..k {
                let (pp, qq, pq) = (dot(&a[p], &a[p]), dot(&a[q], &a[q]), dot(&a[p], &a[q]));
                if pq.abs() <= 1e-15 * (pp * qq).sqrt() || pq == 0.0 {
                    continue;
                }
                turned = true;
                let zeta = (qq - pp) / (2.0 * pq);
                let t = zeta.signum() / (zeta.abs() + (1.0 + zeta * zeta).sqrt());
                let c = 1.0 / (1.0 + t * t).sqrt();
                for m in [&mut a, &mut y] {
                    let (left, right) = m.split_at_mut(q);
                    for (u, v) in left[p].iter_mut().zip(&mut right[0]) {
                        (*u, *v) = (c * *u - c * t * *v, c * t * *u + c * *v);
                    }
                }
            }
        }
        if !turned {
            break;
        }
    }
    let s: Vec<f64> = a.iter().map(|c| dot(c, c).sqrt()).collect();
    let mut order: Vec<usize> = (0..k).collect();
    order.sort_by(|i, j| s[*j].total_cmp(&s[*i]));
    let unit = |j: &usize| a[*j].iter().map(|v| if s[*j] > 0.0 { v / s[*j] } else { 0.0 }).collect();
    (
        order.iter().map(unit).collect(),
        order.iter().map(|j| s[*j]).collect(),
        order.iter().map(|j| y[*j].clone()).collect(),
    )
}

/// Σ of the columns of `q` by the weights of each column of `by`.
fn combine(q: &Columns, by: &[Vec<f64>]) -> Columns {
    let n = q.first().map_or(0, Vec::len);
    let sum = |weights: &Vec<f64>| {
        let mut out = vec![0.0; n];
        for (column, weight) in q.iter().zip(weights) {
            out.iter_mut().zip(column).for_each(|(o, c)| *o += weight * c);
        }
        out
    };
    by.iter().map(sum).collect()
}

/// Columns → (n, k) in f32, where `like` is.
fn tensor(columns: &Columns, like: &Tensor) -> Result<Tensor> {
    let (k, n) = (columns.len(), columns.first().map_or(0, Vec::len));
    let values: Vec<f32> = (0..n * k).map(|i| columns[i % k][i / k] as f32).collect();
    Tensor::from_vec(values, (n, k), like.device())
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    fn random(name: &str, rows: usize, columns: usize) -> Tensor {
        let values: Vec<f32> = (0..rows * columns).map(|i| rng::normal(1, rng::stream(name, 0), i as u64)).collect();
        Tensor::from_vec(values, (rows, columns), &Device::Cpu).unwrap()
    }

    fn worst(t: &Tensor) -> f32 {
        t.abs().unwrap().max_all().unwrap().to_scalar().unwrap()
    }

    fn product(svd: &Svd) -> Tensor {
        let s: Vec<f32> = svd.s.iter().map(|s| *s as f32).collect();
        let s = Tensor::from_vec(s, (1, svd.s.len()), &Device::Cpu).unwrap();
        svd.u.broadcast_mul(&s).unwrap().matmul(&svd.v.t().unwrap()).unwrap()
    }

    fn is_orthonormal(m: &Tensor) {
        let k = m.dim(1).unwrap();
        let eye = Tensor::eye(k, candle_core::DType::F32, &Device::Cpu).unwrap();
        assert!(worst(&(m.t().unwrap().contiguous().unwrap().matmul(m).unwrap() - eye).unwrap()) < 1e-5);
    }

    #[test]
    fn of_a_small_matrix_all_of_it_comes_back() {
        for (out, input) in [(5, 5), (3, 9), (12, 4)] {
            let w = random("w", out, input);
            let svd = largest(&w, out.min(input), 0, 0).unwrap();
            assert!(worst(&(product(&svd) - w).unwrap()) < 1e-5, "{out} x {input}");
            assert!(svd.s.is_sorted_by(|a, b| a >= b));
            is_orthonormal(&svd.u);
            is_orthonormal(&svd.v);
        }
    }

    #[test]
    fn known_singular_values_are_found_among_many() {
        // Orthonormal sides and a spectrum that falls slowly: 1, 1/2, 1/3, ...
        let (u, v) = (orthonormal(&random("u", 190, 150)).unwrap().0, orthonormal(&random("v", 170, 150)).unwrap().0);
        let scaled: Columns =
            v.iter().enumerate().map(|(j, c)| c.iter().map(|x| x / (j + 1) as f64).collect()).collect();
        let like = random("w", 1, 1);
        let (u, v) = (tensor(&u, &like).unwrap(), tensor(&scaled, &like).unwrap());
        let w = u.matmul(&v.t().unwrap()).unwrap();
        let svd = largest(&w, 4, 3, 1).unwrap();
        for (j, s) in svd.s.iter().enumerate() {
            assert!((s - 1.0 / (j + 1) as f64).abs() < 1e-6, "{j}: {s}");
        }
        is_orthonormal(&svd.u);
        // The rest has nothing left along what was found: ‖W - U S Vᵀ‖ is the fifth value.
        let rest = (w - product(&svd)).unwrap();
        assert!((largest(&rest, 1, 3, 2).unwrap().s[0] - 0.2).abs() < 1e-6);
    }

    #[test]
    fn a_matrix_of_low_rank_has_zeros_beyond_it() {
        let w = random("u", 20, 2).matmul(&random("v", 2, 30)).unwrap();
        let svd = largest(&w, 4, 0, 0).unwrap();
        assert!(svd.s[1] > 1.0 && svd.s[2] < 1e-4 * svd.s[0], "{:?}", svd.s);
        assert!(worst(&(product(&svd) - w).unwrap()) < 1e-4);
        let zero = Tensor::zeros((4, 3), candle_core::DType::F32, &Device::Cpu).unwrap();
        assert_eq!(largest(&zero, 2, 0, 0).unwrap().s, [0.0, 0.0]);
    }
}
