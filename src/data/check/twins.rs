//! Rows that say the same: exactly, but for case and spaces, or nearly (MinHash, Broder 1997).
//!
//! A row becomes a few 64-bit keys; rows with a key in common are candidates. Keys of a large file go to temporary files,
//! parted by their first bits, so that memory stays bounded whatever the file's size.

use crate::rng;
use std::io::{Read, Seek, Write};

/// Values of the sketch: [`BANDS`] bands of [`ROWS`] each. Two texts with resemblance J share a band with probability
/// 1 - (1 - J⁴)⁸: 98 % at J = 0.8, 23 % at J = 0.4.
const BANDS: usize = 8;
const ROWS: usize = 4;
/// Words of a shingle.
const SHINGLE: usize = 3;
/// Texts of fewer words are not compared: short sentences resemble each other by nature.
pub const LEAST_WORDS: usize = 8;
/// Resemblance (Jaccard, of word triples) from which two rows are near-duplicates.
pub const NEAR: f64 = 0.8;

/// A key of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    /// What rows are compared by.
    pub hash: u64,
    /// Number of the row.
    pub row: u32,
    /// What the row teaches (a hash of its label), to find contradictions.
    pub label: u32,
}

/// A 64-bit hash of text; equal texts alone share it, but for one pair in 10⁵ million at ten million rows.
pub fn hash(text: &str) -> u64 {
    rng::bits(0, rng::stream(text, 0), text.len() as u64)
}

/// The distinct word triples of a text as hashes, ascending; none when it has fewer than [`LEAST_WORDS`] words.
pub fn shingles(text: &str) -> Vec<u64> {
    let words: Vec<String> =
        text.split(|c: char| !c.is_alphanumeric()).filter(|w| !w.is_empty()).map(str::to_lowercase).collect();
    if words.len() < LEAST_WORDS {
        return Vec::new();
    }
    let mut all: Vec<u64> = words.windows(SHINGLE).map(|w| hash(&w.join(" "))).collect();
    all.sort_unstable();
    all.dedup();
    all
}

/// One key a band from a text's shingles; none for no shingles.
pub fn bands(shingles: &[u64]) -> Vec<u64> {
    if shingles.is_empty() {
        return Vec::new();
    }
    let least = |salt: usize| shingles.iter().map(|s| rng::bits(1, salt as u64, *s)).min().unwrap_or(0);
    (0..BANDS)
        .map(|band| {
            (0..ROWS).fold(rng::stream("band", band as u64), |key, row| rng::bits(key, 2, least(band * ROWS + row)))
        })
        .collect()
}

/// Jaccard resemblance of two ascending sets.
pub fn resemblance(a: &[u64], b: &[u64]) -> f64 {
    let (mut i, mut j, mut both) = (0, 0, 0usize);
    while i < a.len() && j < b.len() {
        match a[i].cmp(&b[j]) {
            std::cmp::Ordering::Less => i += 1,
            std::cmp::Ordering::Greater => j += 1,
            std::cmp::Ordering::Equal => (i, j, both) = (i + 1, j + 1, both + 1),
        }
    }
    both as f64 / (a.len() + b.len() - both).max(1) as f64
}

/// Temporary files that keys are parted into once they are many.
const FILES: usize = 64;
/// Bytes of a key in a file.
const WIDTH: usize = 16;

/// Collects keys and gives back those that more than one row has.
pub struct Keys {
    held: Vec<Key>,
    most: usize,
    files: Vec<std::fs::File>,
}

impl Keys {
    /// Holds up to `most` keys in memory, and the others in temporary files.
    pub fn new(most: usize) -> Self {
        Self { held: Vec::new(), most, files: Vec::new() }
    }

    /// Adds a key.
    ///
    /// # Errors
    /// When the temporary files cannot be written.
    pub fn push(&mut self, key: Key) -> std::io::Result<()> {
        self.held.push(key);
        if self.held.len() >= self.most { self.spill() } else { Ok(()) }
    }

    fn spill(&mut self) -> std::io::Result<()> {
        while self.files.len() < FILES {
            self.files.push(tempfile::tempfile()?);
        }
        let part = |k: &Key| (k.hash >> 58) as usize;
        self.held.sort_unstable_by_key(part);
        for group in self.held.chunk_by(|a, b| part(a) == part(b)) {
            let mut bytes = Vec::with_capacity(group.len() * WIDTH);
            for key in group {
                bytes.extend(key.hash.to_le_bytes());
                bytes.extend(key.row.to_le_bytes());
                bytes.extend(key.label.to_le_bytes());
            }
            self.files[part(&group[0])].write_all(&bytes)?;
        }
        self.held.clear();
        Ok(())
    }

    /// Calls `f` with each group of rows that share a key, by row.
    ///
    /// # Errors
    /// When the temporary files cannot be read back.
    pub fn shared(mut self, f: &mut dyn FnMut(&[Key])) -> std::io::Result<()> {
        if self.files.is_empty() {
            groups(&mut self.held, f);
            return Ok(());
        }
        self.spill()?;
        for mut file in self.files {
            let mut bytes = Vec::new();
            file.rewind()?;
            file.read_to_end(&mut bytes)?;
            let word = |b: &[u8]| u32::from_le_bytes([b[0], b[1], b[2], b[3]]);
            let key = |b: &[u8]| Key {
                hash: u64::from(word(b)) | u64::from(word(&b[4..])) << 32,
                row: word(&b[8..]),
                label: word(&b[12..]),
            };
            groups(&mut bytes.chunks_exact(WIDTH).map(key).collect::<Vec<_>>(), f);
        }
        Ok(())
    }
}

fn groups(keys: &mut [Key], f: &mut dyn FnMut(&[Key])) {
    keys.sort_unstable();
    keys.chunk_by(|a, b| a.hash == b.hash).filter(|g| g.len() > 1).for_each(f);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn groups_of(most: usize, rows: u32) -> Vec<Vec<u32>> {
        let mut keys = Keys::new(most);
        for row in 0..rows {
            keys.push(Key { hash: hash(&format!("text {}", row % (rows - 3))), row, label: 0 }).unwrap();
        }
        let mut out = Vec::new();
        keys.shared(&mut |g| out.push(g.iter().map(|k| k.row).collect())).unwrap();
        out.sort();
        out
    }

    #[test]
    fn keys_in_files_give_the_same_groups_as_keys_in_memory() {
        let memory = groups_of(usize::MAX, 1000);
        assert_eq!(memory, [[0, 997], [1, 998], [2, 999]]);
        assert_eq!(groups_of(37, 1000), memory);
    }

    #[test]
    fn near_texts_share_a_band_and_far_ones_do_not() {
        let text = |n: usize| (0..60).map(|i| format!("word{}", i * n % 61)).collect::<Vec<_>>().join(" ");
        let (a, far) = (text(1), text(7));
        let near = a.replace("word30 ", "other ");
        let sets = [shingles(&a), shingles(&near), shingles(&far)];
        assert!(resemblance(&sets[0], &sets[1]) > NEAR && resemblance(&sets[0], &sets[2]) < 0.1);
        let [a, near, far] = sets.map(|s| bands(&s));
        let shared = |x: &[u64], y: &[u64]| x.iter().zip(y).filter(|(x, y)| x == y).count();
        assert!(shared(&a, &near) > 0 && shared(&a, &far) == 0);
    }

    #[test]
    fn bands_find_what_the_formula_promises() {
        // 400 pairs at J ≈ 0.8: the formula says 98 % are found.
        let found = (0..400).filter(|seed| {
            let set = |salt: u64, n: u64| (0..n).map(move |i| rng::bits(*seed, salt, i));
            let pair = |own: u64| -> Vec<u64> {
                let mut all: Vec<u64> = set(0, 80).chain(set(own, 10)).collect();
                all.sort_unstable();
                all
            };
            let (a, b) = (pair(1), pair(2));
            assert!((resemblance(&a, &b) - 0.8).abs() < 1e-9);
            bands(&a).iter().zip(bands(&b)).any(|(a, b)| *a == b)
        });
        let found = found.count();
        assert!((375..400).contains(&found), "{found} of 400");
    }

    #[test]
    fn short_texts_are_not_compared() {
        assert!(shingles("a good film, and a short one").is_empty());
    }
}
