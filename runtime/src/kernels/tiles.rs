//! How rows of weights and of activations are cut, for every level that has functions of its own. Those are compiled for their
//! level and named by it, so what calls them is a macro.

use bytemuck::AnyBitPattern;

/// A row's blocks by fours. What is missing of the last four is zero, there as in the activations.
#[inline(always)]
pub(super) fn fours<B: AnyBitPattern>(row: &[u8]) -> (&[[B; 4]], Option<[B; 4]>) {
    let (fours, rest) = bytemuck::cast_slice::<u8, B>(row).as_chunks();
    let mut last = [B::zeroed(); 4];
    last.iter_mut().zip(rest).for_each(|(last, block)| *last = *block);
    (fours, (!rest.is_empty()).then_some(last))
}

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
