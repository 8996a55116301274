//! What the network said of each answer before the first step: the reference of DPO and KTO.
//!
//! It is made in one pass over all answers and kept, two numbers a pair, instead of in every step from a second model or with
//! the adapter off: each answer is read once and not once an epoch, and methods that leave no base behind (`--method full`,
//! `--init pissa`) need no other way. A fresh adapter does nothing yet, so this is the base; an adapter of `--init-adapter` is
//! part of what the run begins with. `reference.safetensors` of the RUN keeps it for `--resume`, to the bit.

use super::checkpoint::write_synced;
use crate::data::batch::{Row, Target};
use crate::error::BadInput;
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use std::path::Path;

/// Its file in a RUN.
pub const FILE: &str = "reference.safetensors";

/// Puts each answer's log p into the rows to learn and those held out: from the run's file where it has one, else from
/// `made`, which is written there.
///
/// # Errors
/// A file that is none, or of other rows.
pub fn fill(
    run: &Path,
    [train, val]: [&mut [Row]; 2],
    made: &mut dyn FnMut(&[Row]) -> anyhow::Result<Vec<f64>>,
) -> anyhow::Result<()> {
    let path = run.join(FILE);
    if path.is_file() {
        let bytes = std::fs::read(&path).map_err(|e| BadInput(format!("cannot read {}: {e}", path.display())))?;
        let bad = |e: String| BadInput(format!("{}: {e}; begin the run anew", path.display()));
        let file = SafeTensors::deserialize(&bytes).map_err(|e| bad(format!("not a whole safetensors file: {e}")))?;
        for (name, rows) in [("train", train), ("val", val)] {
            let tensor = file.tensor(name).map_err(|e| bad(e.to_string()))?;
            if tensor.dtype() != Dtype::F64 || tensor.shape() != [rows.len()] {
                let (found, want) = (tensor.shape(), rows.len());
                return Err(bad(format!("`{name}` has shape {found:?}, but the data gives {want} rows")).into());
            }
            let (values, _) = tensor.data().as_chunks::<8>();
            put(rows, values.iter().map(|b| f64::from_le_bytes(*b)));
        }
        return Ok(());
    }
    let (of_train, of_val) = (made(train)?, made(val)?);
    let bytes = |values: &[f64]| values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
    let (a, b) = (bytes(&of_train), bytes(&of_val));
    let views = [
        ("train", TensorView::new(Dtype::F64, vec![of_train.len()], &a)?),
        ("val", TensorView::new(Dtype::F64, vec![of_val.len()], &b)?),
    ];
    write_synced(&path, &safetensors::serialize(views, None)?)?;
    put(train, of_train.into_iter());
    put(val, of_val.into_iter());
    Ok(())
}

fn put(rows: &mut [Row], values: impl Iterator<Item = f64>) {
    for (row, value) in rows.iter_mut().zip(values) {
        if let Target::Answer { reference, .. } = &mut row.target {
            *reference = value;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::batch::Side;

    fn rows(n: usize) -> Vec<Row> {
        let target = || Target::Answer { tokens: vec![None, Some(1)], side: Side::Wanted, reference: 0.0 };
        (0..n).map(|i| Row::new(vec![1, 2], target(), i)).collect()
    }

    fn references(rows: &[Row]) -> Vec<f64> {
        let of = |r: &Row| match r.target {
            Target::Answer { reference, .. } => reference,
            _ => f64::NAN,
        };
        rows.iter().map(of).collect()
    }

    #[test]
    fn what_was_made_comes_back_to_the_bit_and_only_for_its_rows() {
        let dir = tempfile::tempdir().unwrap();
        let (mut train, mut val) = (rows(3), rows(1));
        let mut made = |rows: &[Row]| Ok(rows.iter().map(|r| -0.1 - r.source as f64 / 3.0).collect());
        fill(dir.path(), [&mut train, &mut val], &mut made).unwrap();
        let (mut again, mut held) = (rows(3), rows(1));
        fill(dir.path(), [&mut again, &mut held], &mut |_| anyhow::bail!("made twice")).unwrap();
        assert_eq!((references(&again), references(&held)), (references(&train), references(&val)));
        assert_eq!(references(&train)[2], -0.1 - 2.0 / 3.0);
        let error = fill(dir.path(), [&mut rows(2), &mut rows(1)], &mut |_| unreachable!()).unwrap_err().to_string();
        assert!(error.contains("`train` has shape [3], but the data gives 2 rows"), "{error}");
        std::fs::write(dir.path().join(FILE), b"no").unwrap();
        let error = fill(dir.path(), [&mut train, &mut val], &mut |_| unreachable!()).unwrap_err().to_string();
        assert!(error.contains("not a whole safetensors file"), "{error}");
    }
}
