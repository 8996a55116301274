//! Logits -> next id. The same seed gives the same text: draw `n` of a sequence depends on the seed and `n` alone, not on
//! what else the process does.
//!
//! Filters run in llama.cpp's order: bias, penalties, top-k, top-p, min-p, then the temperature over what is left.

use crate::error::{Error, Kind, Result};

/// How the next id is chosen. The default is greedy.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampling {
    /// 0 takes the likeliest id; 1 draws from the model's own distribution.
    pub temperature: f32,
    /// Keep the `k` likeliest; 0 keeps all.
    pub top_k: usize,
    /// Keep the likeliest that together reach this probability; 1 keeps all.
    pub top_p: f32,
    /// Keep those at least this share as likely as the likeliest; 0 keeps all.
    pub min_p: f32,
    /// Divides the positive logits of recent ids, multiplies the negative ones; 1 is off.
    pub repeat_penalty: f32,
    /// Taken from the logit of each recent id once for every time it stands there; 0 is off.
    pub frequency_penalty: f32,
    /// Taken once from the logit of each recent id; 0 is off.
    pub presence_penalty: f32,
    /// How many recent ids, prompt included, the three penalties look at.
    pub repeat_last: usize,
    /// Added to the logits of these ids before anything else; an id outside the vocabulary is passed over.
    pub logit_bias: Vec<(u32, f32)>,
    /// Same seed, same text.
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repeat_penalty: 1.0,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            repeat_last: 64,
            logit_bias: Vec::new(),
            seed: 0,
        }
    }
}

impl Sampling {
    /// Checks that every number lies in its range.
    /// # Errors
    /// [`Kind::Input`] that names the field, its value and its range.
    pub fn check(&self) -> Result<()> {
        let within = |name: &str, x: f32, ok: bool, range: &str| match ok {
            true => Ok(()),
            false => Err(Error::new(Kind::Input, name, format!("{x} is not {range}"))),
        };
        let Self { temperature, top_p, min_p, repeat_penalty, frequency_penalty, presence_penalty, .. } = *self;
        within("temperature", temperature, (0.0..=100.0).contains(&temperature), "from 0 to 100")?;
        within("top_p", top_p, top_p > 0.0 && top_p <= 1.0, "above 0 and at most 1")?;
        within("min_p", min_p, (0.0..=1.0).contains(&min_p), "from 0 to 1")?;
        within(
            "repeat_penalty",
            repeat_penalty,
            repeat_penalty > 0.0 && repeat_penalty <= 100.0,
            "above 0 and at most 100",
        )?;
        // OpenAI's ranges.
        for (name, x) in [("frequency_penalty", frequency_penalty), ("presence_penalty", presence_penalty)] {
            within(name, x, (-2.0..=2.0).contains(&x), "from -2 to 2")?;
        }
        self.logit_bias
            .iter()
            .try_for_each(|&(_, x)| within("logit_bias", x, (-100.0..=100.0).contains(&x), "from -100 to 100"))
    }
}

/// Chooses the ids of one sequence.
#[derive(Debug, Clone)]
pub struct Sampler {
    how: Sampling,
    drawn: u64,
    candidates: Vec<(f32, u32)>,
}

impl Sampler {
    /// # Errors
    /// As [`Sampling::check`].
    pub fn new(how: Sampling) -> Result<Self> {
        how.check()?;
        Ok(Self { how, drawn: 0, candidates: Vec::new() })
    }

    /// The next id.
    /// - `logits`: `(V)`; bias and penalties change them in place.
    /// - `recent`: ids so far, prompt included, oldest first.
    /// # Errors
    /// [`Kind::Shape`] when no logit is a finite number: the model's weights or its arithmetic are broken.
    pub fn next(&mut self, logits: &mut [f32], recent: &[u32]) -> Result<u32> {
        self.penalize(logits, recent);
        let best = argmax(logits).ok_or_else(|| {
            Error::new(Kind::Shape, "logits", format!("none of {} logits is a finite number", logits.len()))
        })?;
        if self.how.temperature == 0.0 {
            return Ok(best);
        }
        let top = logits[best as usize];
        self.candidates.clear();
        self.candidates.extend((0u32..).zip(logits.iter()).filter(|(_, x)| x.is_finite()).map(|(id, &x)| (x, id)));
        let Sampling { top_k, top_p, min_p, temperature, .. } = self.how;
        if top_k > 0 {
            keep_best(&mut self.candidates, top_k);
        }
        if top_p < 1.0 {
            keep_mass(&mut self.candidates, top, top_p as f64);
        }
        if min_p > 0.0 {
            let least = top + min_p.ln();
            self.candidates.retain(|&(x, _)| x >= least);
        }
        // One order, so that a draw does not depend on how the filters left the candidates.
        self.candidates.sort_unstable_by_key(|&(_, id)| id);
        let weight = |x: f32| (((x - top) / temperature) as f64).exp();
        let total: f64 = self.candidates.iter().map(|&(x, _)| weight(x)).sum();
        let mut left = uniform(self.how.seed, self.drawn) * total;
        self.drawn += 1;
        for &(x, id) in &self.candidates {
            left -= weight(x);
            if left < 0.0 {
                return Ok(id);
            }
        }
        Ok(best) // rounding left a crumb
    }

    fn penalize(&self, logits: &mut [f32], recent: &[u32]) {
        for &(id, bias) in &self.how.logit_bias {
            if let Some(x) = logits.get_mut(id as usize) {
                *x += bias;
            }
        }
        let Sampling { repeat_penalty, frequency_penalty, presence_penalty, .. } = self.how;
        if repeat_penalty == 1.0 && frequency_penalty == 0.0 && presence_penalty == 0.0 {
            return;
        }
        let from = recent.len().saturating_sub(self.how.repeat_last);
        let mut seen = recent[from..].to_vec();
        seen.sort_unstable();
        for same in seen.chunk_by(|a, b| a == b) {
            if let Some(x) = logits.get_mut(same[0] as usize) {
                *x = if *x > 0.0 { *x / repeat_penalty } else { *x * repeat_penalty };
                *x -= same.len() as f32 * frequency_penalty + presence_penalty;
            }
        }
    }
}

/// Likelier first; of equals, the smaller id.
fn likelier(a: &(f32, u32), b: &(f32, u32)) -> std::cmp::Ordering {
    b.0.total_cmp(&a.0).then(a.1.cmp(&b.1))
}

fn keep_best(candidates: &mut Vec<(f32, u32)>, k: usize) {
    if k < candidates.len() {
        candidates.select_nth_unstable_by(k, likelier);
        candidates.truncate(k);
    }
}

/// Keeps the fewest likeliest whose probabilities, among the candidates, reach `mass`.
fn keep_mass(candidates: &mut Vec<(f32, u32)>, top: f32, mass: f64) {
    let weight = |x: f32| ((x - top) as f64).exp();
    let total: f64 = candidates.iter().map(|&(x, _)| weight(x)).sum();
    // The likeliest few usually hold the mass: sort no more than needed.
    let mut sorted = 0;
    let mut sum = 0.0;
    let mut step = 256;
    while sorted < candidates.len() {
        let end = (sorted + step).min(candidates.len());
        if end < candidates.len() {
            candidates[sorted..].select_nth_unstable_by(end - sorted, likelier);
        }
        candidates[sorted..end].sort_unstable_by(likelier);
        for i in sorted..end {
            sum += weight(candidates[i].0);
            if sum >= mass * total {
                candidates.truncate(i + 1);
                return;
            }
        }
        sorted = end;
        step *= 4;
    }
}

/// The likeliest id; the smallest on a tie; `None` when no logit is finite.
pub fn argmax(logits: &[f32]) -> Option<u32> {
    let mut best: Option<(u32, f32)> = None;
    for (id, &x) in (0u32..).zip(logits) {
        if x.is_finite() && best.is_none_or(|(_, y)| x > y) {
            best = Some((id, x));
        }
    }
    best.map(|(id, _)| id)
}

/// Natural logarithm of the sum of exponentials of a row, in f64.
pub fn log_sum_exp(logits: &[f32]) -> f64 {
    let top = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max) as f64;
    top + logits.iter().map(|&x| (x as f64 - top).exp()).sum::<f64>().ln()
}

/// Log-probability of `id`, in nats; `None` when it lies outside the row.
pub fn logprob(logits: &[f32], id: u32) -> Option<f64> {
    Some(*logits.get(id as usize)? as f64 - log_sum_exp(logits))
}

/// The `n` likeliest ids with their log-probabilities, likeliest first.
pub fn top_logprobs(logits: &[f32], n: usize) -> Vec<(u32, f64)> {
    let norm = log_sum_exp(logits);
    let mut all: Vec<(f32, u32)> = logits.iter().copied().zip(0u32..).filter(|(x, _)| x.is_finite()).collect();
    keep_best(&mut all, n);
    all.sort_unstable_by(likelier);
    all.truncate(n);
    all.into_iter().map(|(x, id)| (id, x as f64 - norm)).collect()
}

/// Probabilities of a row of logits, in f64 inside: `(N)` -> `(N)`.
pub fn softmax(logits: &[f32]) -> Vec<f32> {
    let norm = log_sum_exp(logits);
    logits.iter().map(|&x| (x as f64 - norm).exp() as f32).collect()
}

/// Draw `n` under `seed`, in [0, 1): splitmix64 (Steele, Lea and Flood, 2014) on a counter.
fn uniform(seed: u64, n: u64) -> f64 {
    let mut z = seed.wrapping_add(n.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    // Mixed once more than usual, so that neighbouring seeds do not give shifted copies of one sequence.
    for _ in 0..2 {
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^= z >> 31;
        z = z.wrapping_add(seed.rotate_left(32));
    }
    (z >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn warm(seed: u64) -> Sampling {
        Sampling { temperature: 1.0, seed, ..Sampling::default() }
    }

    fn draw(how: Sampling, logits: &[f32], n: usize) -> Vec<u32> {
        let mut sampler = Sampler::new(how).unwrap();
        (0..n).map(|_| sampler.next(&mut logits.to_vec(), &[]).unwrap()).collect()
    }

    #[test]
    fn greedy_takes_the_first_of_equals_and_passes_over_what_is_not_a_number() {
        assert_eq!(draw(Sampling::default(), &[1.0, f32::NAN, 3.0, 3.0], 1), [2]);
        let error = Sampler::new(Sampling::default()).unwrap().next(&mut [f32::NAN; 2], &[]).unwrap_err();
        assert_eq!(error.to_string(), "logits: none of 2 logits is a finite number");
    }

    #[test]
    fn draws_follow_the_distribution() {
        let p = [0.1f32, 0.2, 0.7];
        let logits = p.map(f32::ln);
        let all = draw(warm(1), &logits, 30_000);
        for (id, p) in (0..).zip(p) {
            let share = all.iter().filter(|&&x| x == id).count() as f32 / all.len() as f32;
            // Five standard deviations of a binomial share.
            assert!((share - p).abs() < 5.0 * (p * (1.0 - p) / all.len() as f32).sqrt(), "{id}: {share} for {p}");
        }
    }

    #[test]
    fn the_same_seed_draws_the_same_and_neighbours_are_not_shifted_copies() {
        let logits = [0.0f32; 1000];
        let (a, b) = (draw(warm(7), &logits, 50), draw(warm(8), &logits, 50));
        assert_eq!(a, draw(warm(7), &logits, 50));
        assert_ne!(a, b);
        assert_ne!(a[1..], b[..49]);
    }

    #[test]
    fn filters_leave_only_the_likely() {
        let logits = [0.5f32, 0.3, 0.15, 0.05].map(f32::ln);
        let seen = |how: Sampling| {
            let mut ids = draw(how, &logits, 500);
            ids.sort_unstable();
            ids.dedup();
            ids
        };
        assert_eq!(seen(Sampling { top_k: 2, ..warm(3) }), [0, 1]);
        assert_eq!(seen(Sampling { top_p: 0.79, ..warm(3) }), [0, 1]);
        assert_eq!(seen(Sampling { top_p: 0.81, ..warm(3) }), [0, 1, 2]);
        assert_eq!(seen(Sampling { min_p: 0.2, ..warm(3) }), [0, 1, 2]);
        assert_eq!(seen(warm(3)), [0, 1, 2, 3]);
        // More candidates than one sorting step of top-p takes.
        let flat = vec![0.0f32; 3000];
        assert!(draw(Sampling { top_p: 0.5, ..warm(3) }, &flat, 500).iter().all(|&id| id < 1500));
    }

    #[test]
    fn the_penalty_pushes_repeats_down_on_both_sides_of_zero() {
        let how = Sampling { repeat_penalty: 2.0, repeat_last: 2, ..Sampling::default() };
        let mut sampler = Sampler::new(how).unwrap();
        let mut logits = [3.0, 2.0, -1.0, 4.0];
        assert_eq!(sampler.next(&mut logits, &[3, 0, 2]).unwrap(), 3); // 3 is too long ago
        assert_eq!(logits, [1.5, 2.0, -2.0, 4.0]);
    }

    #[test]
    fn frequency_counts_each_repeat_presence_counts_once_and_the_bias_comes_first() {
        let how = Sampling {
            frequency_penalty: 0.5,
            presence_penalty: 1.0,
            repeat_penalty: 2.0,
            logit_bias: vec![(1, 3.0), (9, 1.0)],
            ..Sampling::default()
        };
        let mut logits = [4.0, -2.0, 3.0];
        assert_eq!(Sampler::new(how).unwrap().next(&mut logits, &[0, 1, 0]).unwrap(), 2);
        assert_eq!(logits, [4.0 / 2.0 - 2.0 * 0.5 - 1.0, (-2.0 + 3.0) / 2.0 - 0.5 - 1.0, 3.0]);
        let far = Sampling { logit_bias: vec![(0, -101.0)], ..Sampling::default() };
        assert_eq!(far.check().unwrap_err().to_string(), "logit_bias: -101 is not from -100 to 100");
    }

    #[test]
    fn log_probabilities_sum_to_one_at_any_scale() {
        for scale in [1e-3f32, 1.0, 80.0] {
            let logits: Vec<f32> = (0..50).map(|i| scale * (i as f32 * 0.37).sin()).collect();
            let sum: f64 = top_logprobs(&logits, 50).iter().map(|(_, p)| p.exp()).sum();
            assert!((sum - 1.0).abs() < 1e-9, "{scale}: {sum}");
            let (id, p) = top_logprobs(&logits, 3)[0];
            assert_eq!((Some(id), Some(p)), (argmax(&logits), logprob(&logits, id)));
        }
    }

    #[test]
    fn a_number_out_of_range_is_named() {
        let error = Sampler::new(Sampling { top_p: 0.0, ..Sampling::default() }).unwrap_err();
        assert_eq!(error.to_string(), "top_p: 0 is not above 0 and at most 1");
        assert!(Sampler::new(Sampling { temperature: f32::NAN, ..Sampling::default() }).is_err());
    }
}
