//! Which weight rows meet which rows of activations at a time, for every level that has functions of its own. Those are
//! compiled for their level and named by it, so these are macros where they call one, and plain code where they do not.

use bytemuck::AnyBitPattern;

use super::Matrix;

/// `R` weight rows in fours of blocks. What is missing of the last four is zero, there as in the activations.
pub(super) struct Fours<'a, B, const R: usize> {
    whole: [&'a [[B; 4]]; R],
    last: [[B; 4]; R],
    some_last: bool,
}

impl<'a, B: AnyBitPattern, const R: usize> Fours<'a, B, R> {
    /// Rows `row..` of `w`; past its end, the last one again.
    #[inline(always)]
    pub(super) fn of(w: &Matrix<'a>, row: usize) -> Self {
        let (mut whole, mut last, mut some_last) = ([&[][..]; R], [[B::zeroed(); 4]; R], false);
        for r in 0..R {
            let blocks: &[B] = bytemuck::cast_slice(w.row((row + r).min(w.rows - 1)));
            let (fours, rest) = blocks.as_chunks::<4>();
            whole[r] = fours;
            last[r].iter_mut().zip(rest).for_each(|(last, block)| *last = *block);
            some_last = !rest.is_empty();
        }
        Self { whole, last, some_last }
    }

    /// Fours of a row.
    #[inline(always)]
    pub(super) fn len(&self) -> usize {
        self.whole[0].len() + usize::from(self.some_last)
    }

    /// Bytes of the whole fours of all rows.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    pub(super) fn bytes(&self) -> usize {
        R * size_of_val(self.whole[0])
    }

    /// Four `i` of row `r`.
    #[inline(always)]
    pub(super) fn at(&self, r: usize, i: usize) -> &[B; 4] {
        if i < self.whole[0].len() { &self.whole[r][i] } else { &self.last[r] }
    }
}

/// Calls `$dot` for all rows of weights, `$rows` at a time, and the one row of activations.
macro_rules! column {
    ($rows:literal, [$($dot:tt)+], $w:ident, $first:ident, $acts:ident, $out:ident) => {
        (0..$out.len()).step_by($rows).for_each(|r| $($dot)+::<$rows, 1>($w, $first + r, $acts, 0, &mut $out[r..]))
    };
}
pub(super) use column;

/// The same of any number of rows of activations, of which several meet one row of weights at a time.
macro_rules! grid {
    ($rows:literal, [$($dot:tt)+], $w:ident, $first:ident, $acts:ident, $out:ident) => {{
        const TILE: usize = $crate::kernels::scalar::TILE;
        let n = $acts.n;
        if n == 1 {
            return $crate::kernels::grid::column!($rows, [$($dot)+], $w, $first, $acts, $out);
        }
        for from in (0..n).step_by(TILE) {
            for (r, out) in $out.chunks_mut(n).enumerate() {
                if from + TILE <= n {
                    $($dot)+::<1, TILE>($w, $first + r, $acts, from, &mut out[from..]);
                } else {
                    (from..n).for_each(|t| $($dot)+::<1, 1>($w, $first + r, $acts, t, &mut out[t..]));
                }
            }
        }
    }};
}
pub(super) use grid;

/// Calls `$dot` for every row of weights as bytes: a full tile of activation rows at once, what is left over row by row.
macro_rules! tiles {
    ([$($dot:tt)+], $w:ident, $first:ident, $acts:ident, $out:ident) => {
        $crate::kernels::scalar::tiles($w, $first, $acts, $out, |row, acts, from, out| {
            const TILE: usize = $crate::kernels::scalar::TILE;
            if out.len() == TILE {
                $($dot)+::<TILE>(row, acts, from, out);
            } else {
                (0..out.len()).for_each(|t| $($dot)+::<1>(row, acts, from + t, &mut out[t..t + 1]));
            }
        })
    };
}
pub(super) use tiles;

/// Calls `$store` with what `$body` makes of a panel of weight rows and each tile of activation rows, and then of those that are
/// left over, one by one.
macro_rules! panels {
    ($store:ident, $acts:ident, $codes:expr, $out:ident, |$x:ident| $body:expr) => {
        let mut from = 0;
        while from + 4 <= $acts.n {
            let four = &$codes[from..from + 4];
            let $x: [&Codes; 4] = [&four[0], &four[1], &four[2], &four[3]];
            $store($body, $acts.n, from, $out);
            from += 4;
        }
        while from < $acts.n {
            let $x = [&$codes[from]];
            $store($body, $acts.n, from, $out);
            from += 1;
        }
    };
}
pub(super) use panels;
