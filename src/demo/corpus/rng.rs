//! Choices in a row, so that every document is a pure function of its seed.

use crate::rng::bits;

/// The draws of one stream, one after the other.
#[derive(Clone, Debug)]
pub struct Rng {
    seed: u64,
    stream: u64,
    index: u64,
}

impl Rng {
    /// A stream of its own for each use (`name`) of a seed.
    pub fn new(seed: u64, name: &str) -> Self {
        Rng { seed, stream: crate::rng::stream(name, 0), index: 0 }
    }

    /// A number in `0..n`; `n` must not be 0. The bias of the multiply-shift is below n / 2^64.
    pub fn below(&mut self, n: usize) -> usize {
        let word = bits(self.seed, self.stream, self.index);
        self.index += 1;
        ((u128::from(word) * n as u128) >> 64) as usize
    }

    /// A number in `low..=high`.
    pub fn within(&mut self, low: usize, high: usize) -> usize {
        low + self.below(high - low + 1)
    }

    /// True in `percent` of a hundred calls.
    pub fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    /// One item; `items` must not be empty.
    pub fn pick<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.below(items.len())]
    }

    /// The index of one of `weights`, each as likely as its share.
    pub fn weighted(&mut self, weights: &[usize]) -> usize {
        let mut at = self.below(weights.iter().sum());
        for (i, &weight) in weights.iter().enumerate() {
            if at < weight {
                return i;
            }
            at -= weight;
        }
        unreachable!("a draw below the sum of the weights falls into one of them")
    }

    /// Fisher and Yates.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i + 1));
        }
    }

    /// `n` different items in random order, or all of them where there are fewer.
    pub fn sample<T: Clone>(&mut self, items: &[T], n: usize) -> Vec<T> {
        let mut all = items.to_vec();
        self.shuffle(&mut all);
        all.truncate(n);
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_met_and_streams_differ() {
        let draw = |name| {
            let mut rng = Rng::new(1, name);
            (0..4000).map(|_| rng.weighted(&[1, 0, 3])).collect::<Vec<_>>()
        };
        let (a, b) = (draw("a"), draw("b"));
        assert_ne!(a, b);
        let count = |i| a.iter().filter(|&&x| x == i).count();
        assert!((900..1100).contains(&count(0)) && count(1) == 0, "{} {} {}", count(0), count(1), count(2));
    }

    #[test]
    fn a_sample_holds_different_items() {
        let mut rng = Rng::new(2, "sample");
        let mut five = rng.sample(&[1, 2, 3, 4, 5, 6, 7], 5);
        five.sort_unstable();
        five.dedup();
        assert_eq!(five.len(), 5);
        assert_eq!(rng.sample(&[1, 2], 5).len(), 2);
    }
}
