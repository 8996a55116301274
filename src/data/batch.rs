//! Rows → batches, in an order that is a function of (lengths, batch size, seed, epoch) and of nothing else: a resumed
//! run needs no sampler state.

use crate::rng;

/// One sequence and what is learned from it.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// Token ids, T of them.
    pub ids: Vec<u32>,
    /// Position of each token, T of them: 0.. but for pre-tokenized rows, which keep their column.
    pub positions: Vec<u32>,
    /// Tokens `0..keys` may be attended to (encoders); padding stands behind them only in pre-tokenized answer rows.
    pub keys: usize,
    /// Token types of encoders, T of them; empty = all 0.
    pub types: Vec<u8>,
    /// What is learned.
    pub target: Target,
    /// Where the row is from: line of the file, from 1; of a pre-tokenized file the row, from 0.
    pub source: usize,
}

/// What a row teaches.
#[derive(Debug, Clone, PartialEq)]
pub enum Target {
    /// Nothing: the row is only read.
    None,
    /// Entry i is what position i must predict; already shifted, T entries.
    Tokens(Vec<Option<u32>>),
    /// The index of a label.
    Class(u32),
    /// First and last position of the answer; 0 and 0 when it is not in this window.
    Span {
        /// First token.
        start: u32,
        /// Last token, included.
        end: u32,
    },
}

/// How far the tables of a network reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// Rows of the token embedding.
    pub vocab: usize,
    /// Rows of the position embedding; without one, there is no end.
    pub positions: usize,
    /// Rows of the token type embedding; without one, types are not looked at.
    pub types: usize,
}

impl Row {
    /// What of the row lies outside of the network's tables; only pre-tokenized rows and other models' tokenizers can.
    pub fn misfit(&self, room: Room) -> Option<String> {
        let beyond = |id: &&u32| **id as usize >= room.vocab;
        if let Some(id) = self.ids.iter().find(beyond) {
            return Some(format!("token id {id}, but the model's vocabulary has {} tokens", room.vocab));
        }
        if let Target::Tokens(targets) = &self.target
            && let Some(id) = targets.iter().flatten().find(beyond)
        {
            return Some(format!("label {id}, but the model's vocabulary has {} tokens", room.vocab));
        }
        if let Some(position) = self.positions.iter().find(|p| **p as usize >= room.positions) {
            return Some(format!("position {position}, but the model has {} positions", room.positions));
        }
        let other = self.types.iter().find(|t| usize::from(**t) >= room.types)?;
        Some(format!("token type {other}, but the model has {} types", room.types))
    }

    /// A row without padding whose positions count from 0.
    pub fn new(ids: Vec<u32>, target: Target, source: usize) -> Self {
        let (positions, keys) = ((0..ids.len() as u32).collect(), ids.len());
        Self { ids, positions, keys, types: Vec::new(), target, source }
    }

    /// A row for a language model: token i is learned where `learned[i]`, from the tokens before it.
    pub fn language(ids: Vec<u32>, learned: &[bool], source: usize) -> Self {
        let target = (1..=ids.len()).map(|next| (*learned.get(next)?).then(|| ids[next])).collect();
        Self::new(ids, Target::Tokens(target), source)
    }

    /// The same tokens, teaching this.
    pub fn with(self, target: Target) -> Self {
        Self { target, ..self }
    }

    /// How many predictions the row teaches.
    pub fn learned(&self) -> usize {
        match &self.target {
            Target::None => 0,
            Target::Tokens(t) => t.iter().flatten().count(),
            Target::Class(_) | Target::Span { .. } => 1,
        }
    }
}

/// Batches are drawn from this many batches' worth of rows at a time: enough rows to find equal lengths among, few
/// enough that an epoch still mixes.
const POOL: usize = 50;

/// The batches of an epoch: each row once, `batch` rows each (one may have fewer).
///
/// With `group_by_length`, rows of similar length share a batch; which rows meet, and in which order the batches come,
/// still changes with the seed and the epoch.
pub fn order(lengths: &[usize], batch: usize, seed: u64, epoch: u64, group_by_length: bool) -> Vec<Vec<usize>> {
    assert!(batch > 0, "a batch needs at least one row");
    let mut rows = rng::shuffled(lengths.len(), seed, rng::stream("order", epoch));
    if !group_by_length {
        return rows.chunks(batch).map(<[usize]>::to_vec).collect();
    }
    for pool in rows.chunks_mut(batch * POOL) {
        pool.sort_by_key(|i| lengths[*i]); // stable: equal lengths stay shuffled
    }
    let batches: Vec<&[usize]> = rows.chunks(batch).collect();
    let order = rng::shuffled(batches.len(), seed, rng::stream("order of batches", epoch));
    order.into_iter().map(|b| batches[b].to_vec()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lengths(n: usize) -> Vec<usize> {
        (0..n).map(|i| 1 + (rng::bits(9, 0, i as u64) % 200) as usize).collect()
    }

    fn flat(batches: &[Vec<usize>]) -> Vec<usize> {
        let mut all = batches.concat();
        all.sort_unstable();
        all
    }

    #[test]
    fn every_row_comes_once_an_epoch_in_full_batches_but_one() {
        for (n, batch) in [(1, 4), (7, 3), (1000, 8), (1003, 8), (16, 16)] {
            for grouped in [false, true] {
                let batches = order(&lengths(n), batch, 1, 0, grouped);
                assert_eq!(flat(&batches), (0..n).collect::<Vec<_>>());
                assert_eq!(batches.len(), n.div_ceil(batch));
                assert!(batches.iter().filter(|b| b.len() < batch).count() <= 1);
            }
        }
    }

    #[test]
    fn the_order_is_a_function_of_seed_and_epoch() {
        let l = lengths(300);
        assert_eq!(order(&l, 8, 5, 2, true), order(&l, 8, 5, 2, true));
        assert_ne!(order(&l, 8, 5, 2, true), order(&l, 8, 5, 3, true));
        assert_ne!(order(&l, 8, 5, 2, true), order(&l, 8, 6, 2, true));
    }

    #[test]
    fn grouping_leaves_little_padding() {
        let l = lengths(2000);
        let spread = |grouped| -> usize {
            order(&l, 8, 0, 0, grouped)
                .iter()
                .map(|b| b.iter().map(|i| l[*i]).max().unwrap() - b.iter().map(|i| l[*i]).min().unwrap())
                .sum()
        };
        assert!(spread(true) * 10 < spread(false), "{} {}", spread(true), spread(false));
    }

    #[test]
    fn targets_are_shifted_by_one() {
        let row = Row::language(vec![1, 7, 8, 2], &[false, false, true, true], 3);
        assert_eq!(row.target, Target::Tokens(vec![None, Some(8), Some(2), None]));
        assert_eq!((row.positions, row.keys), (vec![0, 1, 2, 3], 4));
    }

    #[test]
    fn a_first_token_is_never_a_target() {
        let row = Row::language(vec![5, 6], &[true, true], 1);
        assert_eq!(row.learned(), 1);
    }
}
