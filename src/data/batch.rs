//! Rows → batches, in an order that is a function of (lengths, batch size, seed, epoch) and of nothing else: a resumed
//! run needs no sampler state.
//!
//! Packing is not done here, and cuts nothing: the rows of a micro-batch are laid end to end as they are, each attends to
//! itself alone and counts its positions from its own beginning, so that a row learns the same in any company.

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
    /// An answer, and what is thought of it.
    Answer {
        /// As in [`Target::Tokens`].
        tokens: Vec<Option<u32>>,
        /// What is thought of it.
        side: Side,
        /// log p of the answer under the network as it was before the run, in nats; 0 until it is known.
        reference: f64,
    },
    /// A text whose vector is held against others'.
    Vector(Part),
}

/// What is thought of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The better of two; the other one is the next row.
    Chosen,
    /// The worse of two.
    Rejected,
    /// Wanted, by itself.
    Wanted,
    /// Not wanted, by itself.
    Unwanted,
    /// Of another question than the one before it: nothing is learned from it, it tells how far the network has drifted.
    Mismatched,
}

/// What a text is to its anchor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// What is asked for; its others are the next rows.
    Anchor,
    /// What should lie near it.
    Positive,
    /// What should lie far from it, and might be taken for near.
    Negative,
}

impl Target {
    /// What each position must predict, of those that predict tokens.
    pub fn tokens(&self) -> Option<&[Option<u32>]> {
        match self {
            Self::Tokens(tokens) | Self::Answer { tokens, .. } => Some(tokens),
            _ => None,
        }
    }

    /// What is thought of an answer.
    pub fn side(&self) -> Option<Side> {
        match self {
            Self::Answer { side, .. } => Some(*side),
            _ => None,
        }
    }
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
        if let Some(targets) = self.target.tokens()
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
            Target::Tokens(t) | Target::Answer { tokens: t, .. } => t.iter().flatten().count(),
            Target::Class(_) | Target::Span { .. } | Target::Vector(_) => 1,
        }
    }

    /// Whether an example begins with this row: a rejected answer belongs to the chosen one before it, a positive and its
    /// negatives to their anchor. What belongs together is drawn, cut and learned together.
    pub fn begins(&self) -> bool {
        !matches!(
            self.target,
            Target::Answer { side: Side::Rejected | Side::Mismatched, .. }
                | Target::Vector(Part::Positive | Part::Negative)
        )
    }

    /// Whether it is only read: it tells something about the network, and no gradient goes through it.
    pub fn is_only_read(&self) -> bool {
        self.target.side() == Some(Side::Mismatched)
    }
}

/// The rows of each example: one, but where several belong together.
pub fn units(rows: &[Row]) -> Vec<std::ops::Range<usize>> {
    let mut start = 0;
    let ends = (1..=rows.len()).filter(|end| rows.get(*end).is_none_or(Row::begins));
    ends.map(|end| std::mem::replace(&mut start, end)..end).collect()
}

/// Tokens of each of these examples.
pub fn lengths(rows: &[Row], units: &[std::ops::Range<usize>]) -> Vec<usize> {
    units.iter().map(|unit| rows[unit.clone()].iter().map(|r| r.ids.len()).sum()).collect()
}

/// Rows of a micro-batch of examples, those of equal length together: they share their attention GEMMs.
pub fn rows_of<'a>(rows: &'a [Row], units: &[std::ops::Range<usize>], batch: &[usize]) -> Vec<&'a Row> {
    let mut batch: Vec<&[Row]> = batch.iter().map(|i| &rows[units[*i].clone()]).collect();
    // Stable: equal lengths keep their order.
    batch.sort_by_key(|unit| (unit.iter().map(|r| r.ids.len()).sum::<usize>(), unit[0].keys));
    batch.into_iter().flatten().collect()
}

/// Batches are drawn from this many batches' worth of rows at a time: enough rows to find equal lengths among, few
/// enough that an epoch still mixes.
const POOL: usize = 50;

/// How large a micro-batch is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Size {
    /// So many rows.
    Rows(usize),
    /// As many rows as have at most so many tokens together; a longer row stands alone.
    Tokens(usize),
}

impl Size {
    /// Cuts rows, in their order, into batches.
    fn cut<'a>(self, rows: &'a [usize], lengths: &[usize]) -> Vec<&'a [usize]> {
        match self {
            Self::Rows(n) => rows.chunks(n).collect(),
            Self::Tokens(most) => cut_by(rows, most, |i| lengths[*i]),
        }
    }

    /// Rows that a pool is drawn from.
    fn pool(self, lengths: &[usize]) -> usize {
        match self {
            Self::Rows(n) => n * POOL,
            Self::Tokens(most) => {
                let mean = (lengths.iter().sum::<usize>() / lengths.len().max(1)).max(1);
                (most / mean).max(1) * POOL
            }
        }
    }
}

/// Cuts a list, in its order, into pieces that weigh at most `most` together; what is heavier by itself stands alone.
pub fn cut_by<T>(list: &[T], most: usize, weight: impl Fn(&T) -> usize) -> Vec<&[T]> {
    let (mut out, mut start, mut sum) = (Vec::new(), 0, 0);
    for (i, item) in list.iter().enumerate() {
        let w = weight(item);
        if i > start && sum + w > most {
            out.push(&list[start..i]);
            (start, sum) = (i, 0);
        }
        sum += w;
    }
    if start < list.len() {
        out.push(&list[start..]);
    }
    out
}

/// The micro-batches of an epoch: each row once.
///
/// With `group_by_length`, rows of similar length share a batch; which rows meet, and in which order the batches come,
/// still changes with the seed and the epoch.
pub fn order(lengths: &[usize], size: Size, seed: u64, epoch: u64, group_by_length: bool) -> Vec<Vec<usize>> {
    assert!(!matches!(size, Size::Rows(0) | Size::Tokens(0)), "a batch needs room for a row");
    let mut rows = rng::shuffled(lengths.len(), seed, rng::stream("order", epoch));
    if !group_by_length {
        return size.cut(&rows, lengths).into_iter().map(<[usize]>::to_vec).collect();
    }
    for pool in rows.chunks_mut(size.pool(lengths)) {
        pool.sort_by_key(|i| lengths[*i]); // stable: equal lengths stay shuffled
    }
    let batches = size.cut(&rows, lengths);
    let order = rng::shuffled(batches.len(), seed, rng::stream("order of batches", epoch));
    order.into_iter().map(|b| batches[b].to_vec()).collect()
}

/// Which rows each optimizer step of a run learns: a function of the step, walked from the first epoch on.
pub struct Course {
    lengths: Vec<usize>,
    size: Size,
    accumulate: usize,
    seed: u64,
    /// The epoch at hand, its first step, and its steps: each a list of micro-batches.
    epoch: u64,
    first: usize,
    steps: Vec<Vec<Vec<usize>>>,
}

impl Course {
    /// The course over rows of these lengths, `accumulate` micro-batches a step.
    pub fn new(lengths: Vec<usize>, size: Size, accumulate: usize, seed: u64) -> Self {
        let mut course = Self { lengths, size, accumulate, seed, epoch: 0, first: 0, steps: Vec::new() };
        course.steps = course.of_epoch(0);
        course
    }

    fn of_epoch(&self, epoch: u64) -> Vec<Vec<Vec<usize>>> {
        let order = order(&self.lengths, self.size, self.seed, epoch, true);
        order.chunks(self.accumulate).map(<[Vec<usize>]>::to_vec).collect()
    }

    /// Steps of the first epoch; by rows, every epoch has as many, by tokens about as many.
    pub fn per_epoch(&self) -> usize {
        if self.epoch == 0 { self.steps.len() } else { self.of_epoch(0).len() }
    }

    /// Steps that so many epochs have; of a last part of one, its share, rounded up.
    pub fn steps_in(&self, epochs: f64) -> usize {
        if let Size::Rows(_) = self.size {
            return (epochs * self.per_epoch() as f64).ceil() as usize;
        }
        let whole = epochs.floor() as u64;
        let done: usize = (0..whole).map(|e| self.of_epoch(e).len()).sum();
        done + ((epochs - whole as f64) * self.of_epoch(whole).len() as f64).ceil() as usize
    }

    /// Tokens of a step, on average.
    pub fn mean_tokens(&self) -> f64 {
        self.lengths.iter().sum::<usize>() as f64 / self.per_epoch().max(1) as f64
    }

    /// The micro-batches of a step (from 0), and whether its epoch ends with it.
    pub fn step(&mut self, step: usize) -> (&[Vec<usize>], bool) {
        if step < self.first {
            (self.epoch, self.first) = (0, 0);
            self.steps = self.of_epoch(0);
        }
        while step >= self.first + self.steps.len() {
            self.first += self.steps.len();
            self.epoch += 1;
            self.steps = self.of_epoch(self.epoch);
        }
        let at = step - self.first;
        (&self.steps[at], at + 1 == self.steps.len())
    }
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
                let batches = order(&lengths(n), Size::Rows(batch), 1, 0, grouped);
                assert_eq!(flat(&batches), (0..n).collect::<Vec<_>>());
                assert_eq!(batches.len(), n.div_ceil(batch));
                assert!(batches.iter().filter(|b| b.len() < batch).count() <= 1);
            }
        }
    }

    #[test]
    fn the_order_is_a_function_of_seed_and_epoch() {
        let l = lengths(300);
        assert_eq!(order(&l, Size::Rows(8), 5, 2, true), order(&l, Size::Rows(8), 5, 2, true));
        assert_ne!(order(&l, Size::Rows(8), 5, 2, true), order(&l, Size::Rows(8), 5, 3, true));
        assert_ne!(order(&l, Size::Rows(8), 5, 2, true), order(&l, Size::Rows(8), 6, 2, true));
    }

    #[test]
    fn by_tokens_every_row_comes_once_and_no_batch_is_too_large_but_a_row_alone() {
        let l = lengths(500);
        for most in [1, 64, 150, 1000, 1 << 20] {
            let batches = order(&l, Size::Tokens(most), 1, 3, true);
            assert_eq!(flat(&batches), (0..500).collect::<Vec<_>>());
            let tokens = |b: &Vec<usize>| b.iter().map(|i| l[*i]).sum::<usize>();
            assert!(batches.iter().all(|b| b.len() == 1 || tokens(b) <= most), "{most}");
        }
        let filled = order(&l, Size::Tokens(1000), 1, 3, true);
        assert!(filled.len() as f64 <= 1.15 * l.iter().sum::<usize>() as f64 / 1000.0, "{} batches", filled.len());
    }

    #[test]
    fn a_course_is_the_epochs_laid_end_to_end_and_can_begin_anywhere() {
        let l = lengths(130);
        for size in [Size::Rows(8), Size::Tokens(700)] {
            let mut course = Course::new(l.clone(), size, 3, 5);
            let mut all = Vec::new();
            for epoch in 0..3 {
                all.extend(order(&l, size, 5, epoch, true).chunks(3).map(<[Vec<usize>]>::to_vec));
            }
            assert_eq!(course.steps_in(3.0), all.len());
            let ends: Vec<bool> = (0..all.len()).map(|s| course.step(s).1).collect();
            assert_eq!(ends.iter().filter(|e| **e).count(), 3);
            assert!(ends[all.len() - 1]);
            for step in [all.len() - 1, 0, 7, all.len() / 2] {
                assert_eq!(course.step(step).0, all[step].as_slice());
                assert_eq!(Course::new(l.clone(), size, 3, 5).step(step).0, all[step].as_slice());
            }
        }
    }

    #[test]
    fn grouping_leaves_little_padding() {
        let l = lengths(2000);
        let spread = |grouped| -> usize {
            order(&l, Size::Rows(8), 0, 0, grouped)
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
    fn what_belongs_together_stays_together() {
        let answer = |n: usize, side| Row::new(vec![1; n], Target::Answer { tokens: vec![], side, reference: 0.0 }, 1);
        let vector = |n: usize, part| Row::new(vec![1; n], Target::Vector(part), 1);
        let rows =
            [answer(9, Side::Chosen), answer(1, Side::Rejected), answer(4, Side::Chosen), answer(3, Side::Rejected)];
        let both = units(&rows);
        assert_eq!((both.clone(), super::lengths(&rows, &both)), (vec![0..2, 2..4], vec![10, 7]));
        let drawn: Vec<usize> = rows_of(&rows, &both, &[0, 1]).iter().map(|r| r.ids.len()).collect();
        assert_eq!(drawn, [4, 3, 9, 1]);
        let rows =
            [vector(1, Part::Anchor), vector(2, Part::Positive), vector(3, Part::Negative), vector(1, Part::Anchor)];
        assert_eq!(units(&rows), [0..3, 3..4]);
        let rows = [answer(1, Side::Wanted), answer(2, Side::Mismatched), answer(1, Side::Unwanted)];
        assert_eq!(units(&rows), [0..2, 2..3]);
        assert_eq!(units(&[Row::new(vec![1], Target::Class(1), 1), Row::new(vec![1], Target::None, 2)]), [0..1, 1..2]);
        assert!(units(&[]).is_empty());
    }

    #[test]
    fn a_first_token_is_never_a_target() {
        let row = Row::language(vec![5, 6], &[true, true], 1);
        assert_eq!(row.learned(), 1);
    }
}
