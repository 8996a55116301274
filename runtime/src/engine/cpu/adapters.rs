//! Adapters beside the weights, chosen by sequence: y += scale · B (A x), in those rows of a batch whose sequence has one.
//!
//! All is f32, and a number of y is summed by itself, over the rank, before it is added: it is the same in every batch and on
//! any number of threads, and rows without an adapter are not touched.

use super::linear::Linear;
use crate::engine::Run;
use crate::error::{Error, Kind, Result};
use crate::kernels::Kernels;
use crate::model::adapter::{Adapter, Pair};
use crate::threads::Pool;

/// Numbers of y that are summed at a time, in registers.
const WIDE: usize = 16;
/// Products of one row from which on its columns are spread over the threads.
const MUCH: usize = 1 << 17;

/// An adapter, and where its pairs stand.
struct Placed {
    adapter: Adapter,
    /// What its user multiplies it by.
    scale: f32,
    /// By the tensor's place in the base's table: the pair's number.
    pairs: Vec<Option<usize>>,
}

/// Those of an engine.
#[derive(Default)]
pub struct Adapters {
    all: Vec<Placed>,
    /// By sequence.
    chosen: Vec<Option<usize>>,
    /// By row of the pass; empty where no row has one.
    rows: Vec<Option<usize>>,
    /// (n, r): A x.
    low: Vec<f32>,
}

impl Adapters {
    /// None, for so many sequences.
    pub fn new(n_seqs: usize) -> Self {
        Self { chosen: vec![None; n_seqs], ..Self::default() }
    }

    /// Takes one whose pairs stand at `places` of the base's `n_tensors`; gives its number.
    pub fn push(&mut self, adapter: &Adapter, scale: f32, places: &[usize], n_tensors: usize) -> usize {
        let mut pairs = vec![None; n_tensors];
        places.iter().enumerate().for_each(|(i, at)| pairs[*at] = Some(i));
        self.all.push(Placed { adapter: adapter.clone(), scale, pairs });
        self.all.len() - 1
    }

    /// Whether the sequence had another one until now.
    ///
    /// # Errors
    /// `Input` for a sequence or a number that there is not.
    pub fn choose(&mut self, seq: usize, adapter: Option<usize>) -> Result<bool> {
        let (n_seqs, n) = (self.chosen.len(), self.all.len());
        if seq >= n_seqs || adapter.is_some_and(|a| a >= n) {
            let message = format!("number {adapter:?} for sequence {seq}: there are {n}, and {n_seqs} sequences");
            return Err(Error::new(Kind::Input, "adapter", message));
        }
        Ok(std::mem::replace(&mut self.chosen[seq], adapter) != adapter)
    }

    /// The rows that follow are so many of each run.
    pub fn lay(&mut self, runs: &[Run], rows: fn(&Run) -> usize) {
        self.rows.clear();
        if runs.iter().all(|r| self.chosen[r.seq].is_none()) {
            return;
        }
        for run in runs {
            self.rows.extend(std::iter::repeat_n(self.chosen[run.seq], rows(run)));
        }
    }

    /// The pair of row `t` beside a tensor, and its whole scale.
    fn pair(&self, t: usize, index: usize) -> Option<(&Pair, f32)> {
        let placed = &self.all[(*self.rows.get(t)?)?];
        let pair = &placed.adapter.pairs()[placed.pairs[index]?];
        Some((pair, pair.scale * placed.scale))
    }

    /// x += what the adapter of row `t` has for a token of the embedding at `index`. x: (C).
    pub fn embed(&self, t: usize, index: usize, id: u32, x: &mut [f32]) {
        if let Some((pair, scale)) = self.pair(t, index).filter(|(pair, _)| pair.is_embedding()) {
            let low: Vec<f32> = pair.a[id as usize * pair.rank..][..pair.rank].iter().map(|a| scale * a).collect();
            add(&low, pair, 0, x);
        }
    }

    /// y += scale · B (A x) beside `linear`. x: (n, cols), y: (n, width).
    pub fn add(&mut self, kernels: &Kernels, pool: &Pool, linear: &Linear, x: &[f32], n: usize, y: &mut [f32]) {
        if self.rows.is_empty() {
            return;
        }
        // The embedding's pair is no part of a head that is tied to it.
        let beside =
            |s: &Self, t: usize| s.pair(t, linear.index).map_or(0, |(p, _)| if p.is_embedding() { 0 } else { p.rank });
        let most = (0..n).map(|t| beside(self, t)).max().unwrap_or(0);
        if most == 0 {
            return;
        }
        let (cols, width) = (x.len() / n, y.len() / n);
        let mut low = std::mem::take(&mut self.low);
        low.resize(n * most, 0.0);
        let rows = &*self;
        pool.run_chunks(&mut low, most, &|t, low| {
            let Some((pair, scale)) = rows.pair(t, linear.index) else { return };
            let x = &x[t * cols..][..cols];
            for (low, a) in low.iter_mut().zip(pair.a.chunks(cols)) {
                *low = scale * kernels.dot_f32(a, x);
            }
        });
        let from = linear.rows.as_ref().map_or(0, |r| r.start);
        let per = if n == 1 && most * width > MUCH { width.div_ceil(pool.threads()) } else { width };
        pool.run_chunks(y, per, &|i, y| {
            let (t, at) = if n == 1 { (0, i * per) } else { (i, 0) };
            if let Some((pair, _)) = rows.pair(t, linear.index) {
                add(&low[t * most..][..pair.rank], pair, from + at, y);
            }
        });
        self.low = low;
    }
}

/// y += Σ low[k] B[k], from a row of B on.
fn add(low: &[f32], pair: &Pair, from: usize, y: &mut [f32]) {
    for (i, y) in y.chunks_mut(WIDE).enumerate() {
        let mut sum = [0.0f32; WIDE];
        for (k, low) in low.iter().enumerate() {
            let b = &pair.b[k * pair.out + from + i * WIDE..];
            match b.first_chunk::<WIDE>() {
                Some(b) => sum.iter_mut().zip(b).for_each(|(s, b)| *s += low * b),
                None => sum.iter_mut().zip(b).for_each(|(s, b)| *s += low * b),
            }
        }
        y.iter_mut().zip(sum).for_each(|(y, s)| *y += s);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::Rows;

    const RANK: usize = 16;
    const COLS: usize = 24;
    /// So wide that one row of it is spread over the threads, and no multiple of what is summed at a time.
    const WIDTH: usize = MUCH / RANK + 809;
    /// Rows of the tensor before those of the matrix.
    const BEFORE: usize = 100;

    fn numbers(n: usize, step: usize) -> Vec<f32> {
        (0..n).map(|i| ((i * step % 97) as f32 - 48.0) * 0.021).collect()
    }

    /// y of `n` rows, whose sequences have adapter 0 but for the second, on so many threads.
    fn computed(n: usize, threads: usize, x: &[f32]) -> Vec<f32> {
        let (a, b) = (numbers(RANK * COLS, 31), numbers(RANK * (WIDTH + 2 * BEFORE), 57));
        let adapter = Adapter::of_one("output.weight", RANK, a, b);
        let mut adapters = Adapters::new(n);
        assert_eq!(adapters.push(&adapter, 0.5, &[0], 1), 0);
        (0..n).filter(|seq| *seq != 1).for_each(|seq| drop(adapters.choose(seq, Some(0))));
        let run = |seq| Run { seq, tokens: &[7], types: None, rows: Rows::All };
        adapters.lay(&(0..n).map(run).collect::<Vec<_>>(), |run| run.tokens.len());
        let linear = Linear { index: 0, rows: Some(BEFORE..BEFORE + WIDTH), bias: None };
        let mut y = numbers(n * WIDTH, 13);
        let (kernels, pool) = (Kernels::detect().unwrap(), Pool::new(threads).unwrap());
        adapters.add(&kernels, &pool, &linear, &x[..n * COLS], n, &mut y);
        y
    }

    #[test]
    fn a_row_is_the_plain_product_and_the_same_however_it_is_cut() {
        let x = numbers(3 * COLS, 71);
        let (a, b) = (numbers(RANK * COLS, 31), numbers(RANK * (WIDTH + 2 * BEFORE), 57));
        let (alone, together) = (computed(1, 1, &x), computed(3, 1, &x));
        for threads in [2, 3] {
            assert!(computed(1, threads, &x) == alone && computed(3, threads, &x) == together, "{threads} threads");
        }
        assert!(together[..WIDTH] == alone, "a row beside others");
        let before = numbers(3 * WIDTH, 13);
        assert!(together[WIDTH..2 * WIDTH] == before[WIDTH..2 * WIDTH], "a row without an adapter");
        for (i, y) in together.iter().enumerate().filter(|(i, _)| i / WIDTH != 1) {
            let (t, row) = (i / WIDTH, i % WIDTH);
            let low = |k: usize| (0..COLS).map(|c| f64::from(a[k * COLS + c] * x[t * COLS + c])).sum::<f64>();
            let delta: f64 =
                (0..RANK).map(|k| 0.5 * low(k) * f64::from(b[k * (WIDTH + 2 * BEFORE) + BEFORE + row])).sum();
            assert!((f64::from(before[i]) + delta - f64::from(*y)).abs() < 1e-4, "row {t}, number {row}");
        }
    }

    #[test]
    fn a_head_tied_to_the_embedding_is_left_alone() {
        let adapter = Adapter::of_one("token_embd.weight", 1, vec![2.0, 3.0], vec![10.0, 20.0]);
        let mut adapters = Adapters::new(1);
        adapters.push(&adapter, 1.0, &[0], 1);
        assert!(adapters.choose(0, Some(0)).unwrap() && !adapters.choose(0, Some(0)).unwrap());
        let run = Run { seq: 0, tokens: &[1], types: None, rows: Rows::All };
        adapters.lay(&[run], |_| 1);
        let (mut x, mut y) = ([1.0, 1.0], [1.0, 1.0]);
        adapters.embed(0, 0, 1, &mut x);
        assert_eq!(x, [31.0, 61.0]);
        let linear = Linear { index: 0, rows: None, bias: None };
        let (kernels, pool) = (Kernels::detect().unwrap(), Pool::new(1).unwrap());
        adapters.add(&kernels, &pool, &linear, &[1.0, 1.0], 1, &mut y);
        assert_eq!(y, [1.0, 1.0]);
        assert_eq!(adapters.choose(1, None).unwrap_err().kind(), Kind::Input);
        assert_eq!(adapters.choose(0, Some(1)).unwrap_err().kind(), Kind::Input);
    }
}
