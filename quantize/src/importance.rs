//! How much each input column of a matrix matters: the mean square of what went into it on calibration data.
//!
//! Read and written as llama.cpp's importance matrices: a GGUF file of `general.type` "imatrix", with `NAME.in_sum2` (columns)
//! and `NAME.counts` (1) for each matrix, f32; its older `.dat` files are read too.

use crate::{
    error::{Error, Result},
    gguf::{Floats, floats},
};
use edgeft_runtime::format::{
    GgmlType,
    block::decode,
    gguf::{Array, Gguf, MAGIC, Value},
};
use std::collections::BTreeMap;

/// What ends the names of sums and of counts.
const ENDS: [&str; 2] = [".in_sum2", ".counts"];

/// Entries that an old file may claim to have.
const MOST_ENTRIES: usize = 1 << 20;

/// Statistics of a model's matrices, by GGUF name.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Importance {
    /// By the matrix' name, such as `blk.0.ffn_down.weight`.
    pub entries: BTreeMap<String, Entry>,
    /// What it was computed on.
    pub datasets: Vec<String>,
    /// Chunks that were read: here, rows of the dataset.
    pub chunks: u32,
    /// Tokens of a chunk; of chunks of several lengths, the longest.
    pub chunk_size: u32,
}

/// Statistics of one matrix.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Entry {
    /// Σ weight x², a number for each input column; where an expert layer has several matrices, one after the other.
    pub sums: Vec<f32>,
    /// Σ weight, a number for each matrix.
    pub counts: Vec<f32>,
}

impl Entry {
    /// The mean square of each column; 1 for all columns of a matrix that nothing reached.
    pub fn means(&self) -> Vec<f32> {
        let columns = self.sums.len() / self.counts.len().max(1);
        let mean = |i: usize, sum: &f32| match self.counts[i / columns.max(1)] {
            n if n > 0.0 => sum / n,
            _ => 1.0,
        };
        self.sums.iter().enumerate().map(|(i, sum)| mean(i, sum)).collect()
    }
}

/// Which matrices of a plan have statistics, of those whose type looks at them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Coverage {
    /// Matrices with statistics.
    pub with: usize,
    /// Names of those without; their columns count alike.
    pub without: Vec<String>,
}

impl Importance {
    /// Reads either form.
    ///
    /// # Errors
    /// Bytes that are neither, with the place; sums without counts; a number that is negative or not finite.
    pub fn read(bytes: &[u8]) -> Result<Self> {
        let it = if bytes.starts_with(MAGIC.as_ref()) { Self::read_gguf(bytes)? } else { Self::read_dat(bytes)? };
        for (name, entry) in &it.entries {
            let bad = |v: &&f32| !(v.is_finite() && **v >= 0.0);
            if let Some(v) = entry.sums.iter().chain(&entry.counts).find(bad) {
                return Err(problem(format!("`{name}` has {v}, which no sum of squares is")));
            }
        }
        if it.entries.is_empty() {
            return Err(problem("it has no entries".into()));
        }
        Ok(it)
    }

    fn read_gguf(bytes: &[u8]) -> Result<Self> {
        let gguf = Gguf::parse(bytes).map_err(|e| problem(e.to_string()))?;
        let kind = gguf.str("general.type").unwrap_or("model");
        if kind != "imatrix" {
            return Err(problem(format!("a GGUF file of general.type `{kind}`, not `imatrix`")));
        }
        let mut found: BTreeMap<String, [Option<Vec<f32>>; 2]> = BTreeMap::new();
        for t in &gguf.tensors {
            let end = ENDS.iter().position(|end| t.name.ends_with(end));
            let (Some(end), GgmlType::F32) = (end, t.ty) else {
                return Err(problem(format!("tensor `{}` ({}) is no f32 {} or {}", t.name, t.ty, ENDS[0], ENDS[1])));
            };
            let mut x = vec![0.0; t.dims.iter().product::<u64>() as usize];
            decode(t.ty, gguf.data(bytes, t), &mut x);
            found.entry(t.name[..t.name.len() - ENDS[end].len()].to_owned()).or_default()[end] = Some(x);
        }
        let mut entries = BTreeMap::new();
        for (name, parts) in found {
            let [Some(sums), Some(counts)] = parts else {
                return Err(problem(format!("`{name}` has only one of {} and {}", ENDS[0], ENDS[1])));
            };
            if counts.is_empty() || sums.is_empty() || !sums.len().is_multiple_of(counts.len()) {
                return Err(problem(format!("`{name}` has {} sums for {} counts", sums.len(), counts.len())));
            }
            entries.insert(name, Entry { sums, counts });
        }
        let datasets = gguf.strings("imatrix.datasets").map(<[String]>::to_vec).unwrap_or_default();
        let number = |key| gguf.u32(key).unwrap_or(0);
        Ok(Self { entries, datasets, chunks: number("imatrix.chunk_count"), chunk_size: number("imatrix.chunk_size") })
    }

    /// i32 entries; of each its name (i32 length, bytes), i32 calls, i32 n, n f32 (mean square × calls); i32 chunks, and the
    /// dataset's name (i32 length, bytes), where they are there.
    fn read_dat(bytes: &[u8]) -> Result<Self> {
        let mut at = Cursor { bytes, at: 0 };
        let n = at.length("the number of entries", MOST_ENTRIES)?;
        let mut it = Self::default();
        for i in 0..n {
            let place = format!("entry {i}");
            let length = at.length(&place, 4096)?;
            let name = String::from_utf8_lossy(at.take(length, &place)?).into_owned();
            let calls = at.i32(&name)?;
            let n = at.length(&name, bytes.len() / 4)?;
            let sums = at.take(4 * n, &name)?.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
            let entry = Entry { sums: sums.collect(), counts: vec![calls.max(1) as f32] };
            if it.entries.insert(name.clone(), entry).is_some() {
                return Err(problem(format!("`{name}` stands there twice")));
            }
        }
        if at.at < bytes.len() {
            it.chunks = u32::try_from(at.i32("the number of chunks")?).unwrap_or(0);
        }
        if at.at < bytes.len() {
            let length = at.length("the dataset", 1 << 16)?;
            it.datasets.push(String::from_utf8_lossy(at.take(length, "the dataset")?).into_owned());
        }
        Ok(it)
    }

    /// The bytes of a GGUF file, entries by name.
    ///
    /// # Errors
    /// A name that is too long for GGUF.
    pub fn to_gguf(&self) -> Result<Vec<u8>> {
        let keys = vec![
            ("general.type".into(), Value::Str("imatrix".into())),
            ("imatrix.datasets".into(), Value::Array(Array::Str(self.datasets.clone()))),
            ("imatrix.chunk_count".into(), Value::U32(self.chunks)),
            ("imatrix.chunk_size".into(), Value::U32(self.chunk_size)),
        ];
        let mut tensors = Vec::new();
        for (name, entry) in &self.entries {
            let n = entry.counts.len();
            for (end, values, columns) in [(0, &entry.sums, entry.sums.len() / n), (1, &entry.counts, 1)] {
                let name = format!("{name}{}", ENDS[end]);
                tensors.push(Floats { name, shape: vec![n, columns], values: values.clone() });
            }
        }
        floats(&keys, tensors)
    }

    /// The importance of a matrix' columns, if it has statistics.
    ///
    /// # Errors
    /// Statistics of another number of columns.
    pub fn columns(&self, name: &str, columns: usize) -> Result<Option<Vec<f32>>> {
        let Some(entry) = self.entries.get(name) else { return Ok(None) };
        if entry.sums.len() != columns {
            return Err(problem(format!(
                "`{name}` has statistics of {} columns, but the model's matrix has {columns}; was it computed on this model?",
                entry.sums.len()
            )));
        }
        Ok(Some(entry.means()))
    }
}

fn problem(what: String) -> Error {
    Error::Importance(what)
}

struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn take(&mut self, n: usize, what: &str) -> Result<&'a [u8]> {
        let end = self.at.checked_add(n).filter(|end| *end <= self.bytes.len()).ok_or_else(|| {
            let left = self.bytes.len() - self.at;
            problem(format!(
                "neither GGUF nor a whole .dat file: {what} needs {n} bytes at {}, {left} are left",
                self.at
            ))
        })?;
        let part = &self.bytes[self.at..end];
        self.at = end;
        Ok(part)
    }

    fn i32(&mut self, what: &str) -> Result<i32> {
        self.take(4, what).map(|b| i32::from_le_bytes([b[0], b[1], b[2], b[3]]))
    }

    fn length(&mut self, what: &str, most: usize) -> Result<usize> {
        let at = self.at;
        let n = self.i32(what)?;
        usize::try_from(n).ok().filter(|n| *n <= most).ok_or_else(|| {
            problem(format!("neither GGUF nor a .dat file: the length of {what} at byte {at} is {n}, at most {most}"))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn two() -> Importance {
        let entry = |sums: &[f32], counts: &[f32]| Entry { sums: sums.to_vec(), counts: counts.to_vec() };
        Importance {
            entries: BTreeMap::from([
                ("blk.0.attn_q.weight".to_owned(), entry(&[2.0, 4.0, 0.0], &[4.0])),
                ("blk.0.ffn_up.weight".to_owned(), entry(&[1.0, 2.0, 3.0, 4.0], &[2.0, 0.0])),
            ]),
            datasets: vec!["train.jsonl".into()],
            chunks: 7,
            chunk_size: 128,
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let it = two();
        assert_eq!(Importance::read(&it.to_gguf().unwrap()).unwrap(), it);
        assert_eq!(it.columns("blk.0.attn_q.weight", 3).unwrap().unwrap(), [0.5, 1.0, 0.0]);
        // A matrix that nothing reached counts every column alike.
        assert_eq!(it.entries["blk.0.ffn_up.weight"].means(), [0.5, 1.0, 1.0, 1.0]);
        assert_eq!(it.columns("blk.1.attn_q.weight", 3).unwrap(), None);
        let e = it.columns("blk.0.attn_q.weight", 4).unwrap_err().to_string();
        assert!(e.contains("`blk.0.attn_q.weight` has statistics of 3 columns, but the model's matrix has 4"), "{e}");
    }

    #[test]
    fn old_files_are_read_and_their_faults_named_by_place() {
        let mut old = Vec::new();
        let number = |out: &mut Vec<u8>, n: i32| out.extend(n.to_le_bytes());
        number(&mut old, 1);
        number(&mut old, 4);
        old.extend(b"blk.");
        number(&mut old, 5);
        number(&mut old, 2);
        old.extend([10f32, 5.0].iter().flat_map(|v| v.to_le_bytes()));
        let bare = old.len();
        number(&mut old, 9);
        number(&mut old, 3);
        old.extend(b"abc");
        let it = Importance::read(&old).unwrap();
        assert_eq!((it.chunks, it.datasets.as_slice()), (9, &["abc".to_owned()][..]));
        assert_eq!(it.columns("blk.", 2).unwrap().unwrap(), [2.0, 1.0]);
        for cut in (0..old.len()).filter(|n| ![bare, bare + 4].contains(n)) {
            assert!(Importance::read(&old[..cut]).is_err(), "{cut} bytes");
        }
        let e = Importance::read(b"no matrix at all").unwrap_err().to_string();
        assert!(e.contains("the number of entries at byte 0"), "{e}");
        old[8..12].copy_from_slice(&(-1i32).to_le_bytes());
        assert!(Importance::read(&old).is_ok()); // a name of other bytes is a name
        let mut nan = two();
        nan.entries.get_mut("blk.0.attn_q.weight").unwrap().sums[1] = f32::NAN;
        let e = Importance::read(&nan.to_gguf().unwrap()).unwrap_err().to_string();
        assert!(e.contains("`blk.0.attn_q.weight` has NaN"), "{e}");
    }
}
