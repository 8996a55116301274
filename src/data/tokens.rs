//! Pre-tokenized safetensors → rows; and the recorded outputs of a second implementation, to verify against.
//!
//! Tensors and their meaning are Hugging Face's: `input_ids` (B, T), `attention_mask` (B, T), and `labels` (B, T) that
//! are not shifted, −100 where nothing is learned; or `labels` (B), a class a row; or `start_positions` and
//! `end_positions` (B). Tokens under the mask are left out, and the others keep their column as position, which is what
//! a padded batch computes. Answer rows keep their padding: the span loss of transformers runs over padded positions.

use super::DataError;
use super::batch::{Row, Target};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use std::path::Path;

/// −100 in `labels`: nothing is learned here.
const IGNORED: i64 = -100;

/// Reads pre-tokenized DATA. A target whose preceding token is masked (the first token behind left padding) is not
/// learned: nothing would predict it.
///
/// # Errors
/// [`DataError`], with the tensor, or the row (from 0) and the column.
pub fn read_rows(path: &Path) -> Result<Vec<Row>, DataError> {
    let bytes = read(path)?;
    let file = File::parse(path, &bytes)?;
    let grid = Grid::read(&file)?;
    let (labels, starts) = (file.ints("labels")?, file.ints("start_positions")?);
    let mut rows = Vec::with_capacity(grid.n_rows);
    for b in 0..grid.n_rows {
        let row = match (&labels, &starts) {
            (Some(_), Some(_)) => {
                return Err(
                    file.tensor("labels", "stands beside `start_positions`: a row has a label or an answer".into())
                );
            }
            (Some((shape, labels)), None) if *shape == [grid.n_rows] => {
                let class = u32::try_from(labels[b])
                    .map_err(|_| file.row(b, format!("label {}; classes count from 0", labels[b])))?;
                grid.visible(b, &file)?.with(Target::Class(class))
            }
            (Some((shape, labels)), None) if *shape == [grid.n_rows, grid.n_cols] => {
                grid.language(b, &labels[b * grid.n_cols..][..grid.n_cols], &file)?
            }
            (Some((shape, _)), None) => {
                let (b, t) = (grid.n_rows, grid.n_cols);
                return Err(
                    file.tensor("labels", format!("has shape {shape:?}; expected [{b}, {t}], or [{b}] for classes"))
                );
            }
            (None, Some((shape, starts))) => {
                let Some((end_shape, ends)) = file.ints("end_positions")? else {
                    return Err(file.tensor("end_positions", "is missing beside `start_positions`".into()));
                };
                if *shape != [grid.n_rows] || end_shape != *shape {
                    let n = grid.n_rows;
                    return Err(file.tensor(
                        "start_positions",
                        format!("has shape {shape:?}, `end_positions` {end_shape:?}; expected [{n}]"),
                    ));
                }
                grid.span(b, starts[b], ends[b], &file)?
            }
            (None, None) => grid.visible(b, &file)?,
        };
        rows.push(row);
    }
    let empty: Vec<(usize, String)> = rows
        .iter()
        .filter(|r| matches!(r.target, Target::Tokens(_)) && r.learned() == 0)
        .map(|r| (r.source, "every label is −100 or masked".to_owned()))
        .collect();
    if !empty.is_empty() {
        let (count, examples) = (empty.len(), empty.into_iter().take(5).collect());
        return Err(DataError::NothingLearned { path: path.to_owned(), count, rows: rows.len(), examples });
    }
    Ok(rows)
}

/// What a second implementation answered on the same tokens.
#[derive(Debug, Clone)]
pub struct Reference {
    /// Its inputs, without what the mask hides.
    pub rows: Vec<Row>,
    /// Its outputs, of the same rows.
    pub outputs: Outputs,
}

/// Outputs by row, f32.
#[derive(Debug, Clone)]
pub enum Outputs {
    /// (T, V) a row, the positions of [`Row::ids`].
    Tokens {
        /// V.
        vocab: usize,
        /// T times V values a row.
        logits: Vec<Vec<f32>>,
    },
    /// (labels) a row.
    Class {
        /// A value a label.
        logits: Vec<Vec<f32>>,
    },
    /// (T) a row, twice.
    Span {
        /// Of the first token.
        start: Vec<Vec<f32>>,
        /// Of the last token.
        end: Vec<Vec<f32>>,
    },
}

impl Reference {
    /// Reads a REFERENCE: `input_ids`, `attention_mask`, and `logits` or `start_logits` and `end_logits`.
    ///
    /// # Errors
    /// [`DataError::Tensor`] naming what is missing or has another shape.
    pub fn read(path: &Path) -> Result<Self, DataError> {
        let bytes = read(path)?;
        let file = File::parse(path, &bytes)?;
        let grid = Grid::read(&file)?;
        let (n_rows, n_cols) = (grid.n_rows, grid.n_cols);
        let rows = (0..n_rows).map(|b| grid.visible(b, &file)).collect::<Result<Vec<_>, _>>()?;
        // Values of the visible positions of a row; `width` values each.
        let visible = |values: &[f32], width: usize| -> Vec<Vec<f32>> {
            let row = |r: &Row| {
                let at = |p: &u32| (r.source * n_cols + *p as usize) * width;
                r.positions.iter().flat_map(|p| values[at(p)..at(p) + width].iter().copied()).collect()
            };
            rows.iter().map(row).collect()
        };
        let logits = file.floats("logits")?;
        let outputs = match (logits, file.floats("start_logits")?, file.floats("end_logits")?) {
            (Some((shape, values)), None, None) => match *shape {
                [b, t, vocab] if b == n_rows && t == n_cols => {
                    Outputs::Tokens { vocab, logits: visible(&values, vocab) }
                }
                [b, labels] if b == n_rows && labels > 0 => {
                    Outputs::Class { logits: values.chunks(labels).map(<[f32]>::to_vec).collect() }
                }
                _ => {
                    let expected =
                        format!("has shape {shape:?}; expected [{n_rows}, {n_cols}, V], or [{n_rows}, labels]");
                    return Err(file.tensor("logits", expected));
                }
            },
            (None, Some((shape, start)), Some((end_shape, end))) => {
                if shape != [n_rows, n_cols] || end_shape != shape {
                    let reason =
                        format!("has shape {shape:?}, `end_logits` {end_shape:?}; expected [{n_rows}, {n_cols}]");
                    return Err(file.tensor("start_logits", reason));
                }
                Outputs::Span { start: visible(&start, 1), end: visible(&end, 1) }
            }
            _ => {
                let reason = "is missing; a reference holds `logits`, or `start_logits` and `end_logits`";
                return Err(file.tensor("logits", reason.into()));
            }
        };
        Ok(Self { rows, outputs })
    }
}

fn read(path: &Path) -> Result<Vec<u8>, DataError> {
    std::fs::read(path).map_err(|e| DataError::Open { path: path.to_owned(), reason: e.to_string() })
}

/// A shape, and its values in row-major order.
type Shaped<T> = (Vec<usize>, Vec<T>);

/// (B, T) of tokens, and which of them are seen.
struct Grid {
    n_rows: usize,
    n_cols: usize,
    ids: Vec<u32>,
    mask: Vec<bool>,
    types: Vec<u8>,
}

impl Grid {
    fn read(file: &File) -> Result<Self, DataError> {
        let Some((shape, ids)) = file.ints("input_ids")? else {
            return Err(file.tensor("input_ids", format!("is missing; the file holds {}", file.names())));
        };
        let [n_rows, n_cols] = shape[..] else {
            return Err(file.tensor("input_ids", format!("has shape {shape:?}; expected [rows, tokens]")));
        };
        if n_rows == 0 || n_cols == 0 {
            return Err(DataError::Empty { path: file.path.to_owned() });
        }
        let id = |(i, id): (usize, &i64)| {
            let reason = || format!("column {}: token id {id} is not one", i % n_cols);
            u32::try_from(*id).map_err(|_| file.row(i / n_cols, reason()))
        };
        let ids = ids.iter().enumerate().map(id).collect::<Result<Vec<_>, _>>()?;
        let same_shape = |name: &str| -> Result<Option<Vec<i64>>, DataError> {
            match file.ints(name)? {
                Some((other, _)) if other != shape => {
                    Err(file.tensor(name, format!("has shape {other:?}, `input_ids` {shape:?}")))
                }
                found => Ok(found.map(|(_, values)| values)),
            }
        };
        let mask = match same_shape("attention_mask")? {
            Some(mask) => mask.iter().map(|m| *m != 0).collect(),
            None => vec![true; ids.len()],
        };
        let types = match same_shape("token_type_ids")? {
            None => Vec::new(),
            Some(types) => {
                let small = |(i, t): (usize, &i64)| {
                    u8::try_from(*t).map_err(|_| file.row(i / n_cols, format!("column {}: token type {t}", i % n_cols)))
                };
                types.iter().enumerate().map(small).collect::<Result<_, _>>()?
            }
        };
        Ok(Self { n_rows, n_cols, ids, mask, types })
    }

    /// The tokens of a row that the mask shows, at the positions of their columns.
    fn visible(&self, b: usize, file: &File) -> Result<Row, DataError> {
        let at = b * self.n_cols;
        let columns: Vec<usize> = (0..self.n_cols).filter(|c| self.mask[at + c]).collect();
        if columns.is_empty() {
            return Err(file.row(b, "`attention_mask` hides every token; leave the row out".into()));
        }
        Ok(Row {
            ids: columns.iter().map(|c| self.ids[at + c]).collect(),
            positions: columns.iter().map(|c| *c as u32).collect(),
            keys: columns.len(),
            types: if self.types.is_empty() {
                Vec::new()
            } else {
                columns.iter().map(|c| self.types[at + c]).collect()
            },
            target: Target::None,
            source: b,
        })
    }

    fn language(&self, b: usize, labels: &[i64], file: &File) -> Result<Row, DataError> {
        let row = self.visible(b, file)?;
        for (c, label) in labels.iter().enumerate() {
            if *label != IGNORED && u32::try_from(*label).is_err() {
                return Err(file.row(b, format!("column {c}: label {label}; a label is a token id, or −100")));
            }
            if *label != IGNORED && !self.mask[b * self.n_cols + c] {
                let reason = format!(
                    "column {c}: label {label} is learned, but `attention_mask` hides the token; padding has label −100"
                );
                return Err(file.row(b, reason));
            }
        }
        let next = |p: &u32| labels.get(*p as usize + 1).filter(|l| **l != IGNORED).map(|l| *l as u32);
        let target = row.positions.iter().map(next).collect();
        Ok(row.with(Target::Tokens(target)))
    }

    fn span(&self, b: usize, start: i64, end: i64, file: &File) -> Result<Row, DataError> {
        let at = b * self.n_cols;
        let mask = &self.mask[at..at + self.n_cols];
        let keys = mask.iter().take_while(|m| **m).count();
        if keys == 0 || mask[keys..].iter().any(|m| *m) {
            return Err(
                file.row(b, "`attention_mask` is not ones followed by zeros; an answer row is padded behind".into())
            );
        }
        if start < 0 || end < start || end >= self.n_cols as i64 {
            let t = self.n_cols;
            return Err(file.row(b, format!("answer from {start} to {end}; expected 0 ≤ start ≤ end < {t}")));
        }
        Ok(Row {
            ids: self.ids[at..at + self.n_cols].to_vec(),
            positions: (0..self.n_cols as u32).collect(),
            keys,
            types: if self.types.is_empty() { Vec::new() } else { self.types[at..at + self.n_cols].to_vec() },
            target: Target::Span { start: start as u32, end: end as u32 },
            source: b,
        })
    }
}

/// A safetensors file and the name under which its errors appear.
struct File<'a> {
    path: &'a Path,
    tensors: SafeTensors<'a>,
}

impl<'a> File<'a> {
    fn parse(path: &'a Path, bytes: &'a [u8]) -> Result<Self, DataError> {
        let refuse =
            |e| DataError::Format { path: path.to_owned(), reason: format!("not a whole safetensors file: {e}") };
        Ok(Self { path, tensors: SafeTensors::deserialize(bytes).map_err(refuse)? })
    }

    fn get(&self, name: &str) -> Option<TensorView<'_>> {
        self.tensors.tensor(name).ok()
    }

    fn ints(&self, name: &str) -> Result<Option<Shaped<i64>>, DataError> {
        let Some(view) = self.get(name) else { return Ok(None) };
        let data = view.data();
        let values = match view.dtype() {
            Dtype::I64 => data.as_chunks().0.iter().map(|b| i64::from_le_bytes(*b)).collect(),
            Dtype::I32 => data.as_chunks().0.iter().map(|b| i32::from_le_bytes(*b).into()).collect(),
            Dtype::U32 => data.as_chunks().0.iter().map(|b| u32::from_le_bytes(*b).into()).collect(),
            Dtype::I16 => data.as_chunks().0.iter().map(|b| i16::from_le_bytes(*b).into()).collect(),
            Dtype::U8 | Dtype::BOOL => data.iter().map(|b| i64::from(*b)).collect(),
            other => return Err(self.tensor(name, format!("is {other:?}; expected whole numbers, I64"))),
        };
        Ok(Some((view.shape().to_vec(), values)))
    }

    fn floats(&self, name: &str) -> Result<Option<Shaped<f32>>, DataError> {
        let Some(view) = self.get(name) else { return Ok(None) };
        let data = view.data();
        let values: Vec<f32> = match view.dtype() {
            Dtype::F32 => data.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
            Dtype::F16 => data.as_chunks().0.iter().map(|b| half::f16::from_le_bytes(*b).to_f32()).collect(),
            Dtype::BF16 => data.as_chunks().0.iter().map(|b| half::bf16::from_le_bytes(*b).to_f32()).collect(),
            other => return Err(self.tensor(name, format!("is {other:?}; expected F32"))),
        };
        if let Some(at) = values.iter().position(|v| v.is_nan()) {
            return Err(self.tensor(name, format!("has NaN at element {at}")));
        }
        Ok(Some((view.shape().to_vec(), values)))
    }

    fn names(&self) -> String {
        let mut names: Vec<String> = self.tensors.names().iter().map(ToString::to_string).collect();
        names.sort();
        super::schema::quoted(&names)
    }

    fn tensor(&self, tensor: &str, reason: String) -> DataError {
        DataError::Tensor { path: self.path.to_owned(), tensor: tensor.to_owned(), reason }
    }

    fn row(&self, row: usize, reason: String) -> DataError {
        DataError::Row { path: self.path.to_owned(), line: row, reason }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Writes tensors: name, shape, values (i64, or f32 when the name ends in `logits`).
    fn write(tensors: &[(&str, &[usize], &[f32])]) -> tempfile::NamedTempFile {
        let bytes: Vec<(&str, Dtype, &[usize], Vec<u8>)> = tensors
            .iter()
            .map(|(name, shape, values)| {
                if name.ends_with("logits") {
                    (*name, Dtype::F32, *shape, values.iter().flat_map(|v| v.to_le_bytes()).collect())
                } else {
                    (*name, Dtype::I64, *shape, values.iter().flat_map(|v| (*v as i64).to_le_bytes()).collect())
                }
            })
            .collect();
        let views = bytes.iter().map(|(n, d, s, b)| (*n, TensorView::new(*d, s.to_vec(), b).unwrap()));
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&file, safetensors::serialize(views, None).unwrap()).unwrap();
        file
    }

    const IDS: (&str, &[usize], &[f32]) = ("input_ids", &[2, 4], &[5., 6., 7., 8., 9., 10., 0., 0.]);
    const MASK: (&str, &[usize], &[f32]) = ("attention_mask", &[2, 4], &[1., 1., 1., 1., 1., 1., 0., 0.]);

    #[test]
    fn labels_of_a_language_model_are_shifted_and_padding_is_left_out() {
        let labels = [-100., 6., -100., 8., -100., 10., -100., -100.];
        let rows = read_rows(write(&[IDS, MASK, ("labels", &[2, 4], &labels)]).path()).unwrap();
        assert_eq!(rows[0].target, Target::Tokens(vec![Some(6), None, Some(8), None]));
        assert_eq!((&rows[1].ids[..], rows[1].keys, rows[1].source), (&[9, 10][..], 2, 1));
        assert_eq!(rows[1].target, Target::Tokens(vec![Some(10), None]));
    }

    #[test]
    fn left_padding_keeps_columns_as_positions() {
        let mask = ("attention_mask", &[1, 4][..], &[0., 0., 1., 1.][..]);
        let ids = ("input_ids", &[1, 4][..], &[0., 0., 7., 8.][..]);
        let labels = ("labels", &[1, 4][..], &[-100., -100., 7., 8.][..]);
        let rows = read_rows(write(&[ids, mask, labels]).path()).unwrap();
        assert_eq!((&rows[0].ids[..], &rows[0].positions[..]), (&[7, 8][..], &[2, 3][..]));
        assert_eq!(rows[0].target, Target::Tokens(vec![Some(8), None]));
    }

    #[test]
    fn classes_and_spans_are_told_by_their_tensors() {
        let rows = read_rows(write(&[IDS, MASK, ("labels", &[2], &[1., 0.])]).path()).unwrap();
        assert_eq!((&rows[0].target, rows[1].ids.len()), (&Target::Class(1), 2));
        let spans = [IDS, MASK, ("start_positions", &[2][..], &[1., 0.][..]), ("end_positions", &[2], &[3., 1.])];
        let rows = read_rows(write(&spans).path()).unwrap();
        assert_eq!(rows[0].target, Target::Span { start: 1, end: 3 });
        assert_eq!((rows[1].ids.len(), rows[1].keys), (4, 2), "padding asks, but is not attended to");
        assert_eq!(read_rows(write(&[IDS]).path()).unwrap()[1].ids.len(), 4);
    }

    #[test]
    fn a_reference_holds_the_visible_outputs() {
        let logits: Vec<f32> = (0..24).map(|v| v as f32).collect();
        let reference = Reference::read(write(&[IDS, MASK, ("logits", &[2, 4, 3], &logits)]).path()).unwrap();
        let Outputs::Tokens { vocab: 3, logits } = reference.outputs else { panic!() };
        assert_eq!((logits[0].len(), &logits[1][..]), (12, &[12., 13., 14., 15., 16., 17.][..]));
        let reference = Reference::read(write(&[IDS, MASK, ("logits", &[2, 2], &[1., 2., 3., 4.])]).path()).unwrap();
        assert!(matches!(reference.outputs, Outputs::Class { logits } if logits == [[1., 2.], [3., 4.]]));
        let span: Vec<f32> = (0..8).map(|v| v as f32).collect();
        let both = [IDS, MASK, ("start_logits", &[2, 4][..], &span[..]), ("end_logits", &[2, 4], &span)];
        let Outputs::Span { start, end } = Reference::read(write(&both).path()).unwrap().outputs else { panic!() };
        assert_eq!((&start[1][..], end[0].len()), (&[4., 5.][..], 4));
    }

    #[test]
    fn what_does_not_fit_is_named() {
        type Tensors<'a> = &'a [(&'a str, &'a [usize], &'a [f32])];
        let cases: [(Tensors, &str); 11] = [
            (&[MASK], "tensor `input_ids` is missing; the file holds `attention_mask`"),
            (&[("input_ids", &[4], &[1., 2., 3., 4.])], "tensor `input_ids` has shape [4]; expected [rows, tokens]"),
            (&[("input_ids", &[1, 2], &[1., -2.])], ":0: column 1: token id -2 is not one"),
            (&[IDS, ("attention_mask", &[2], &[1., 1.])], "tensor `attention_mask` has shape [2], `input_ids` [2, 4]"),
            (
                &[IDS, ("labels", &[3], &[1., 1., 1.])],
                "tensor `labels` has shape [3]; expected [2, 4], or [2] for classes",
            ),
            (&[IDS, ("labels", &[2], &[1., -1.])], ":1: label -1; classes count from 0"),
            (
                &[IDS, MASK, ("labels", &[2, 4], &[1.; 8])],
                ":1: column 2: label 1 is learned, but `attention_mask` hides",
            ),
            (
                &[IDS, ("labels", &[2, 4], &[-100.; 8])],
                ": 2 of 2 rows teach nothing; the first are line 0 (every label",
            ),
            (&[IDS, ("start_positions", &[2], &[1., 1.])], "tensor `end_positions` is missing beside"),
            (
                &[IDS, ("start_positions", &[2], &[1., 1.]), ("end_positions", &[2], &[1., 4.])],
                ":1: answer from 1 to 4; expected 0 ≤ start ≤ end < 4",
            ),
            (
                &[("input_ids", &[1, 2], &[1., 2.]), ("attention_mask", &[1, 2], &[0., 0.])],
                ":0: `attention_mask` hides every",
            ),
        ];
        for (tensors, because) in cases {
            let error = read_rows(write(tensors).path()).unwrap_err().to_string();
            assert!(error.contains(because), "{error}");
        }
        let error = Reference::read(write(&[IDS]).path()).unwrap_err().to_string();
        assert!(error.contains("tensor `logits` is missing; a reference holds"), "{error}");
        let error = read_rows(Path::new("Cargo.toml")).unwrap_err().to_string();
        assert!(error.starts_with("Cargo.toml: not a whole safetensors file: "), "{error}");
    }
}
