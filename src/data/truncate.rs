//! What happens to rows longer than `--max-len`: nothing is cut unless somebody said so.

use std::fmt;
use std::path::PathBuf;

/// What to do with a row longer than `--max-len`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Truncate {
    /// Stop, and say which length would cover the rows.
    #[default]
    Error,
    /// Leave the row out.
    Drop,
    /// Keep its end.
    Left,
    /// Keep its beginning.
    Right,
    /// Cut it into several.
    Split,
}

/// How long the rows of a dataset are, in tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TooLong {
    path: PathBuf,
    max_len: usize,
    /// Of every row, ascending.
    lengths: Vec<usize>,
    /// Line and length of the first that is too long.
    first: (usize, usize),
}

impl TooLong {
    /// Judges the rows: (line, length) of each. None when all fit.
    pub fn judge(path: &std::path::Path, rows: &[(usize, usize)], max_len: usize) -> Option<Self> {
        let first = *rows.iter().find(|(_, length)| *length > max_len)?;
        let mut lengths: Vec<usize> = rows.iter().map(|(_, length)| *length).collect();
        lengths.sort_unstable();
        Some(Self { path: path.to_owned(), max_len, lengths, first })
    }

    /// The length that covers a share of the rows.
    pub fn covers(&self, share: f64) -> usize {
        let n = self.lengths.len();
        self.lengths[((n as f64 * share).ceil() as usize).clamp(1, n) - 1]
    }
}

impl fmt::Display for TooLong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let n = self.lengths.len();
        let long = n - self.lengths.partition_point(|l| *l <= self.max_len);
        let ((line, length), max_len) = (self.first, self.max_len);
        write!(f, "{}:{line}: {length} tokens, but --max-len is {max_len}; ", self.path.display())?;
        if n == 1 {
            return write!(f, "give --max-len {length}, or cut it with --truncate left, right or split");
        }
        let (p50, p99, p100) = (self.covers(0.5), self.covers(0.99), self.covers(1.0));
        write!(
            f,
            "{long} of {n} rows are too long. Half of the rows have at most {p50} tokens, 99 % at most {p99}, all at most {p100}: "
        )?;
        let some = if p99 < p100 && p99 > max_len { format!("{p99} (99 %) or {p100} (all)") } else { p100.to_string() };
        write!(f, "give --max-len {some}, or say what to do with long rows: --truncate drop, left, right or split")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn rows_that_fit_are_no_matter() {
        assert_eq!(TooLong::judge(Path::new("d.jsonl"), &[(1, 8), (2, 3)], 8), None);
    }

    #[test]
    fn the_message_says_which_length_covers_the_rows() {
        let rows: Vec<(usize, usize)> = (1..=200).map(|i| (i, i)).collect();
        let judged = TooLong::judge(Path::new("d.jsonl"), &rows, 150).unwrap();
        assert_eq!((judged.covers(0.5), judged.covers(0.99), judged.covers(1.0)), (100, 198, 200));
        assert_eq!(
            judged.to_string(),
            "d.jsonl:151: 151 tokens, but --max-len is 150; 50 of 200 rows are too long. Half of the rows have at most 100 \
             tokens, 99 % at most 198, all at most 200: give --max-len 198 (99 %) or 200 (all), or say what to do with \
             long rows: --truncate drop, left, right or split"
        );
    }

    #[test]
    fn one_long_row_gets_a_short_message() {
        let one = TooLong::judge(Path::new("d.txt"), &[(1, 9)], 8).unwrap();
        let want =
            "d.txt:1: 9 tokens, but --max-len is 8; give --max-len 9, or cut it with --truncate left, right or split";
        assert_eq!(one.to_string(), want);
    }
}
