//! y = W x + b for n activation rows, spread over the threads by rows of W.

use super::adapters::Adapters;
use crate::kernels::acts::{Acts, Form};
use crate::kernels::{Kernels, Matrix};
use crate::model::Model;
use crate::threads::Pool;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::Range;

/// Weight rows that one task takes, at most: enough to be worth a turn, few enough to spread.
const MOST_ROWS: usize = 64;

/// Floats of a line of the cache.
const SIDE: usize = 16;

thread_local! {
    /// Where a kernel decodes a row of weights.
    static SCRATCH: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// A matrix of the file, or some rows of one, and its bias.
pub struct Linear {
    /// Place in the file's table.
    pub index: usize,
    /// Which rows, where several matrices lie one below the other in a tensor.
    pub rows: Option<Range<usize>>,
    /// (rows).
    pub bias: Option<Vec<f32>>,
}

impl Linear {
    /// The weights.
    fn matrix<'a>(&self, model: &'a Model) -> Matrix<'a> {
        let whole = model.matrix(self.index);
        self.rows.clone().map_or(whole, |rows| whole.part(rows))
    }
}

/// Kernels, threads, and the buffers that every matrix uses in turn.
pub struct Compute {
    /// The kernels of this CPU.
    pub kernels: Kernels,
    /// The threads.
    pub pool: Pool,
    /// What stands beside the weights.
    pub adapters: Adapters,
    acts: Acts,
    /// (rows, n), when n > 1: kernels give a weight row's products side by side.
    turned: Vec<f32>,
    /// While activations are counted.
    pub watch: Option<Watch>,
}

/// Sums of what goes into each matrix, for an importance matrix.
#[derive(Default)]
pub struct Watch {
    /// What each token of the pass counts.
    pub weights: Vec<f32>,
    /// By the tensor's place in the file: Σ weight x² (cols), Σ weight.
    pub sums: BTreeMap<usize, (Vec<f64>, f64)>,
}

impl Watch {
    /// Adds the activations of a pass. Products over other rows than the pass' tokens (a head's) are left out, and so are the
    /// second and third matrix that lie in one tensor, whose inputs are the first's.
    fn add(&mut self, linear: &Linear, acts: &Acts) {
        if acts.n != self.weights.len() || linear.rows.as_ref().is_some_and(|r| r.start > 0) {
            return;
        }
        let (sums, count) = self.sums.entry(linear.index).or_insert_with(|| (vec![0.0; acts.cols], 0.0));
        for (x, w) in acts.x.chunks(acts.cols).zip(&self.weights).filter(|(_, w)| **w > 0.0) {
            let w = f64::from(*w);
            sums.iter_mut().zip(x).for_each(|(s, x)| *s += w * f64::from(*x).powi(2));
            *count += w;
        }
    }
}

impl Compute {
    /// Empty buffers.
    pub fn new(kernels: Kernels, pool: Pool, adapters: Adapters) -> Self {
        Self { kernels, pool, adapters, acts: Acts::default(), turned: Vec::new(), watch: None }
    }

    /// Takes activations (n, cols) for the matrices that follow.
    pub fn set(&mut self, x: &[f32], cols: usize) {
        self.acts.set(x, cols);
    }

    /// y (n, rows) = W x + b for the activations that were set, and what an adapter adds in its rows.
    pub fn mul(&mut self, model: &Model, linear: &Linear, y: &mut Vec<f32>) {
        if let Some(watch) = &mut self.watch {
            watch.add(linear, &self.acts);
        }
        let w = linear.matrix(model);
        let (pool, turn) = (&self.pool, self.kernels.turn(w.ty, self.acts.n));
        self.acts.prepare_with(Form::of(w.ty), turn, &|rows, f| pool.run_chunks(rows, 1, &|t, row| f(t, &mut row[0])));
        let (n, rows, cols) = (self.acts.n, w.rows, w.cols);
        y.resize(n * rows, 0.0);
        let per_task = rows.div_ceil(4 * self.pool.threads()).clamp(1, MOST_ROWS);
        let (kernels, acts) = (self.kernels, &self.acts);
        let task = |i: usize, out: &mut [f32]| {
            SCRATCH.with_borrow_mut(|scratch| {
                scratch.resize(Kernels::scratch(cols).max(scratch.len()), 0.0);
                kernels.rows(&w, i * per_task, acts, out, scratch);
            });
        };
        if n == 1 {
            self.pool.run_chunks(y, per_task, &task);
        } else {
            self.turned.resize(n * rows, 0.0);
            self.pool.run_chunks(&mut self.turned, per_task * n, &task);
            let turned = &self.turned;
            // As many at a time as lie side by side in a line of the cache.
            self.pool.run_chunks(y, SIDE * rows, &|i, y| {
                for (r, products) in turned.chunks_exact(n).enumerate() {
                    let products = &products[i * SIDE..][..y.len() / rows];
                    products.iter().enumerate().for_each(|(t, product)| y[t * rows + r] = *product);
                }
            });
        }
        if let Some(bias) = &linear.bias {
            for y in y.chunks_mut(rows) {
                y.iter_mut().zip(bias).for_each(|(y, b)| *y += b);
            }
        }
        self.adapters.add(&self.kernels, &self.pool, linear, &self.acts.x, n, y);
    }
}
