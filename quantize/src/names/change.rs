//! What happens to a tensor's values between a checkpoint and a GGUF file.

/// How a tensor changes on its way into the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// Not at all.
    None,
    /// The rows of so many heads turn from half-apart pairs to adjacent pairs ([`interleave_heads`]): Llama's q and k.
    Interleave(usize),
    /// Rows become columns: GPT-2's `Conv1D` holds (in, out), where GGUF has (out, in).
    Turn,
    /// 1 is added: Gemma's checkpoints hold the weights of norms less 1.
    PlusOne,
    /// The first rows are left out: RoBERTa's positions begin behind the row of the padding.
    Skip(usize),
}

impl Change {
    /// The shape in the file, of a tensor that has `shape` in the source.
    pub fn shape(self, shape: &[usize]) -> Vec<usize> {
        let mut shape = shape.to_vec();
        match self {
            Self::None | Self::Interleave(_) | Self::PlusOne => {}
            Self::Turn => shape.reverse(),
            Self::Skip(rows) => shape[0] -= rows,
        }
        shape
    }

    /// The values in the order of the file. `shape` is the source's, and `x` has all of it.
    pub fn apply(self, x: Vec<f32>, shape: &[usize]) -> Vec<f32> {
        match self {
            Self::None => x,
            Self::Interleave(heads) => interleave_heads(&x, heads, width(shape)),
            Self::Turn => turn(&x, width(shape)),
            Self::PlusOne => x.into_iter().map(|v| v + 1.0).collect(),
            Self::Skip(rows) => x[rows * width(shape)..].to_vec(),
        }
    }

    /// Row and column, in the source, of element `at` of the file; a vector is one row.
    pub fn source_of(self, at: usize, shape: &[usize]) -> (usize, usize) {
        let width = width(shape);
        let (row, column) = match self {
            Self::None | Self::PlusOne => (at / width, at % width),
            Self::Interleave(heads) => {
                let (row, d) = (at / width, shape[0] / heads);
                (row / d * d + row % d % 2 * (d / 2) + row % d / 2, at % width)
            }
            Self::Turn => (at % shape[0], at / shape[0]),
            Self::Skip(rows) => (at / width + rows, at % width),
        };
        if shape.len() == 1 { (0, row) } else { (row, column) }
    }
}

/// Values beside each other in a row: 1 for a bias, whose rows are its elements.
fn width(shape: &[usize]) -> usize {
    shape[1..].iter().product()
}

/// (rows, width) -> (width, rows).
fn turn(x: &[f32], width: usize) -> Vec<f32> {
    let rows = x.len() / width;
    let mut out = Vec::with_capacity(x.len());
    for column in 0..width {
        out.extend((0..rows).map(|row| x[row * width + column]));
    }
    out
}

/// Turns the rows of each head from Hugging Face's pairs `(j, j + D/2)` to adjacent pairs `(2j, 2j + 1)`:
/// row `2j + s` of a head comes from row `s D/2 + j`. `x` is `(n_heads * D, width)`, or a bias with width 1.
///
/// # Panics
/// When `x` is not `n_heads` heads of an even number of rows of `width`.
pub fn interleave_heads(x: &[f32], n_heads: usize, width: usize) -> Vec<f32> {
    let rows = x.len() / width;
    let d = rows / n_heads;
    assert!(
        x.len() == n_heads * d * width && d.is_multiple_of(2),
        "{} values, {n_heads} heads, width {width}",
        x.len()
    );
    let mut out = Vec::with_capacity(x.len());
    for head in x.chunks_exact(d * width) {
        for row in 0..d {
            let from = row % 2 * (d / 2) + row / 2;
            out.extend_from_slice(&head[from * width..(from + 1) * width]);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_a_head_interleave() {
        // Two heads of four rows, width 2: rows 0 1 2 3 become 0 2 1 3 in each.
        let x: Vec<f32> = (0..16).map(|i| i as f32).collect();
        let want = [0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15].map(|i| i as f32);
        assert_eq!(interleave_heads(&x, 2, 2), want);
        assert_eq!(interleave_heads(&[0.0, 1.0, 2.0, 3.0, 4.0, 5.0], 1, 1), [0.0, 3.0, 1.0, 4.0, 2.0, 5.0]);
    }

    #[test]
    fn matrices_turn_norms_grow_and_the_padding_goes() {
        let x: Vec<f32> = (0..6).map(|i| i as f32).collect();
        assert_eq!(Change::Turn.apply(x.clone(), &[2, 3]), [0.0, 3.0, 1.0, 4.0, 2.0, 5.0]);
        assert_eq!(Change::Turn.shape(&[2, 3]), [3, 2]);
        assert_eq!(Change::Skip(2).apply(x.clone(), &[3, 2]), [4.0, 5.0]);
        assert_eq!(Change::Skip(2).shape(&[3, 2]), [1, 2]);
        assert_eq!(Change::PlusOne.apply(vec![-1.0, 0.5], &[2]), [0.0, 1.5]);
    }

    /// Whatever moves, the place that is told holds the value.
    #[test]
    fn every_value_is_found_where_it_came_from() {
        let (shape, x): (_, Vec<f32>) = ([8, 3], (0..24).map(|i| i as f32).collect());
        for change in [Change::None, Change::Interleave(2), Change::Turn, Change::Skip(3)] {
            for (at, v) in change.apply(x.clone(), &shape).into_iter().enumerate() {
                let (row, column) = change.source_of(at, &shape);
                assert_eq!(x[row * 3 + column], v, "{change:?} {at}");
            }
        }
        assert_eq!(Change::Interleave(2).source_of(1, &[8]), (0, 2));
        assert_eq!(Change::PlusOne.source_of(5, &[8]), (0, 5));
    }
}
