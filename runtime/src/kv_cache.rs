//! Keys and values by layer, sequence and position. Memory grows with the tokens, up to a capacity that never moves.

use crate::error::{Error, Kind, Result};
use half::f16;
use half::slice::HalfFloatSliceExt;

/// Type of the elements of the cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum KvType {
    F32,
    F16,
}

/// Elements of one type.
enum Store {
    F32(Vec<f32>),
    F16(Vec<f16>),
}

/// Rows of one layer of one sequence, position by position.
#[derive(Clone, Copy)]
pub enum KvRows<'a> {
    /// (T, K * D).
    F32(&'a [f32]),
    /// (T, K * D).
    F16(&'a [f16]),
}

/// The cache of one engine.
pub struct KvCache {
    /// Keys and values of each (sequence, layer).
    stores: Vec<[Store; 2]>,
    /// Tokens that each sequence holds.
    lens: Vec<usize>,
    n_layers: usize,
    width: usize,
    capacity: usize,
}

impl KvCache {
    /// An empty cache.
    /// - `width`: numbers of a key row, K * D
    /// - `capacity`: tokens that a sequence may hold
    pub fn new(n_seqs: usize, n_layers: usize, width: usize, capacity: usize, ty: KvType) -> Self {
        let store = || match ty {
            KvType::F32 => Store::F32(Vec::new()),
            KvType::F16 => Store::F16(Vec::new()),
        };
        let stores = (0..n_seqs * n_layers).map(|_| [store(), store()]).collect();
        Self { stores, lens: vec![0; n_seqs], n_layers, width, capacity }
    }

    /// Tokens that a sequence may hold.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Number of sequences.
    pub fn n_seqs(&self) -> usize {
        self.lens.len()
    }

    /// Tokens that a sequence holds.
    pub fn len(&self, seq: usize) -> usize {
        self.lens[seq]
    }

    /// Whether no sequence holds a token.
    pub fn is_empty(&self) -> bool {
        self.lens.iter().all(|n| *n == 0)
    }

    /// Makes room for `n` more tokens of a sequence in every layer.
    ///
    /// # Errors
    /// `Limit` when the sequence would outgrow the capacity, or the system has no more memory.
    pub fn reserve(&mut self, seq: usize, n: usize) -> Result<()> {
        let (len, capacity) = (self.lens[seq], self.capacity);
        if len + n > capacity {
            let message =
                format!("{len} tokens and {n} more, but the context holds {capacity}; shorten the text or raise --ctx");
            return Err(Error::new(Kind::Limit, "context", message));
        }
        let elements = (len + n) * self.width;
        let layers = &mut self.stores[seq * self.n_layers..][..self.n_layers];
        for store in layers.iter_mut().flatten() {
            store.reserve(elements).map_err(|e| {
                Error::new(Kind::Limit, "key and value cache", format!("no memory for {} tokens: {e}", len + n))
            })?;
        }
        Ok(())
    }

    /// Writes keys and values (n, K * D) of one layer behind what the sequence holds; [`KvCache::advance`] counts them in
    /// once all layers are written.
    pub fn write(&mut self, seq: usize, layer: usize, k: &[f32], v: &[f32]) {
        let at = self.lens[seq] * self.width;
        let [keys, values] = &mut self.stores[seq * self.n_layers + layer];
        keys.write(at, k);
        values.write(at, v);
    }

    /// Keys and values of the first `len` tokens of one layer.
    pub fn rows(&self, seq: usize, layer: usize, len: usize) -> (KvRows<'_>, KvRows<'_>) {
        let [keys, values] = &self.stores[seq * self.n_layers + layer];
        (keys.rows(len * self.width), values.rows(len * self.width))
    }

    /// Counts `n` written tokens in.
    pub fn advance(&mut self, seq: usize, n: usize) {
        self.lens[seq] += n;
    }

    /// Makes `to` hold the first `len` tokens of `from` and no more; `false`, and all as before, when that holds fewer, or there
    /// is no memory.
    pub fn copy(&mut self, from: usize, to: usize, len: usize) -> bool {
        if from == to || len > self.lens[from] {
            return len <= self.lens[from];
        }
        let before = std::mem::take(&mut self.lens[to]);
        if self.reserve(to, len).is_err() {
            self.lens[to] = before;
            return false;
        }
        let (n, elements) = (self.n_layers, len * self.width);
        for layer in 0..n {
            let Ok([from, to]) = self.stores.get_disjoint_mut([from * n + layer, to * n + layer]) else { return false };
            from.iter().zip(to).for_each(|(from, to)| to.take(from, elements));
        }
        self.lens[to] = len;
        true
    }

    /// Forgets a sequence's tokens from position `len` on.
    pub fn truncate(&mut self, seq: usize, len: usize) {
        self.lens[seq] = self.lens[seq].min(len);
    }
}

impl Store {
    fn reserve(&mut self, elements: usize) -> Result<(), std::collections::TryReserveError> {
        match self {
            Self::F32(v) => v.try_reserve(elements.saturating_sub(v.len())),
            Self::F16(v) => v.try_reserve(elements.saturating_sub(v.len())),
        }
    }

    fn write(&mut self, at: usize, x: &[f32]) {
        match self {
            Self::F32(v) => {
                v.truncate(at);
                v.extend_from_slice(x);
            }
            Self::F16(v) => {
                v.resize(at + x.len(), f16::ZERO);
                v[at..].convert_from_f32_slice(x);
            }
        }
    }

    /// Becomes the first `elements` of another store of its type.
    fn take(&mut self, other: &Self, elements: usize) {
        match (self, other) {
            (Self::F32(to), Self::F32(from)) => {
                to.clear();
                to.extend_from_slice(&from[..elements]);
            }
            (Self::F16(to), Self::F16(from)) => {
                to.clear();
                to.extend_from_slice(&from[..elements]);
            }
            _ => {} // all stores of a cache have one type
        }
    }

    fn rows(&self, elements: usize) -> KvRows<'_> {
        match self {
            Self::F32(v) => KvRows::F32(&v[..elements]),
            Self::F16(v) => KvRows::F16(&v[..elements]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(cache: &KvCache, len: usize) -> Vec<f32> {
        match cache.rows(0, 0, len).0 {
            KvRows::F32(x) => x.to_vec(),
            KvRows::F16(x) => x.iter().map(|v| v.to_f32()).collect(),
        }
    }

    #[test]
    fn what_is_forgotten_is_written_over() {
        for ty in [KvType::F32, KvType::F16] {
            let mut cache = KvCache::new(1, 1, 2, 4, ty);
            cache.reserve(0, 2).unwrap();
            cache.write(0, 0, &[1.0, 2.0, 3.0, 4.0], &[0.0; 4]);
            cache.advance(0, 2);
            cache.truncate(0, 1);
            cache.reserve(0, 1).unwrap();
            cache.write(0, 0, &[5.0, 6.0], &[0.0; 2]);
            cache.advance(0, 1);
            assert_eq!((keys(&cache, 2), cache.len(0)), (vec![1.0, 2.0, 5.0, 6.0], 2));
        }
    }

    #[test]
    fn a_copied_beginning_is_the_others_and_apart_from_it() {
        for ty in [KvType::F32, KvType::F16] {
            let mut cache = KvCache::new(2, 1, 2, 4, ty);
            cache.reserve(1, 2).unwrap();
            cache.write(1, 0, &[1.0, 2.0, 3.0, 4.0], &[0.0; 4]);
            cache.advance(1, 2);
            assert!(!cache.copy(1, 0, 3), "more than there is");
            assert!(cache.copy(1, 0, 1));
            cache.reserve(0, 1).unwrap();
            cache.write(0, 0, &[5.0, 6.0], &[0.0; 2]);
            cache.advance(0, 1);
            assert_eq!((keys(&cache, 2), cache.len(0)), (vec![1.0, 2.0, 5.0, 6.0], 2));
            assert!(cache.copy(1, 0, 2));
            assert_eq!(keys(&cache, 2), [1.0, 2.0, 3.0, 4.0]);
        }
    }

    #[test]
    fn more_than_the_capacity_is_refused_with_both_numbers() {
        let mut cache = KvCache::new(2, 3, 2, 4, KvType::F32);
        let error = cache.reserve(1, 5).unwrap_err();
        assert_eq!((error.kind(), error.to_string().contains("5 more, but the context holds 4")), (Kind::Limit, true));
    }
}
