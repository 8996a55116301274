//! `--budget`: how many steps fit into a time, told from the first ones.
//!
//! The number is decided once and saved with the checkpoint, so that the learning rate falls to its end within the time and a
//! run that goes on takes the same steps. The clock has the last word: whatever slows the machine down after that, the run
//! ends in time with what it has.

use std::time::Instant;

/// Steps that are taken before the number is decided.
const LEAST_STEPS: usize = 3;
/// Share of the budget that has passed by then.
const LEAST_SHARE: f64 = 0.04;
/// Share that is planned for; the rest is for the last files, and for a machine that is slower later.
const PLANNED: f64 = 0.94;
/// What reading a token costs of what learning from it does: one pass of three.
const READING: f64 = 0.4;

/// A time to end in.
pub struct Budget {
    seconds: f64,
    before: f64,
    since: Instant,
    val_tokens: usize,
    steps: usize,
    s_per_token: f64,
}

impl Budget {
    /// `seconds` in all, of which earlier processes of this run had `before`; evaluations read `val_tokens`.
    pub fn new(seconds: f64, before: f64, since: Instant, val_tokens: usize) -> Self {
        Self { seconds, before, since, val_tokens, steps: 0, s_per_token: 0.0 }
    }

    /// Steps and tokens of this process so far, and its seconds.
    pub fn took(&mut self, steps: usize, tokens: usize, seconds: f64) {
        (self.steps, self.s_per_token) = (steps, seconds / tokens.max(1) as f64);
    }

    fn spent(&self) -> f64 {
        self.before + self.since.elapsed().as_secs_f64()
    }

    /// The last step, of at most `asked`, once enough is known; `evals` tells how many evaluations come up to a step.
    pub fn decide(
        &self,
        step: usize,
        asked: usize,
        tokens_a_step: f64,
        evals: &dyn Fn(usize) -> usize,
    ) -> Option<usize> {
        let spent = self.spent();
        if self.steps < LEAST_STEPS || spent < LEAST_SHARE * self.seconds {
            return None;
        }
        Some(last_step(
            self.seconds * PLANNED - spent,
            self.s_per_token * tokens_a_step,
            self.evaluation(),
            (step, asked),
            evals,
        ))
    }

    fn evaluation(&self) -> f64 {
        READING * self.s_per_token * self.val_tokens as f64
    }

    /// Whether another step and the last evaluation would end too late.
    pub fn is_spent(&self, tokens_a_step: f64) -> bool {
        self.spent() + self.s_per_token * tokens_a_step + self.evaluation() > 0.98 * self.seconds
    }
}

/// The largest step between the two of `within` up to which steps and evaluations take at most `left` seconds.
fn last_step(
    left: f64,
    step_s: f64,
    evaluation_s: f64,
    within: (usize, usize),
    evals: &dyn Fn(usize) -> usize,
) -> usize {
    let (now, asked) = within;
    let fits = |last: usize| (last - now) as f64 * step_s + evals(last) as f64 * evaluation_s <= left;
    let (mut low, mut high) = (now, asked + 1); // `low` is taken, `high` is not
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        if fits(middle) { low = middle } else { high = middle }
    }
    low
}

/// `90`, `90s`, `20m`, `1.5h` or `1h30m` in seconds.
///
/// # Errors
/// What is no time, in words for a person.
pub fn parse_duration(text: &str) -> Result<f64, String> {
    let refuse = || format!("`{text}` is no time; write 90s, 20m or 1h30m");
    let (mut sum, mut number, mut parts) = (0.0, String::new(), 0);
    for c in text.trim().chars() {
        let unit = match c {
            '0'..='9' | '.' => {
                number.push(c);
                continue;
            }
            's' => 1.0,
            'm' => 60.0,
            'h' => 3600.0,
            _ => return Err(refuse()),
        };
        sum += number.parse::<f64>().map_err(|_| refuse())? * unit;
        number.clear();
        parts += 1;
    }
    if !number.is_empty() {
        if parts > 0 {
            return Err(refuse());
        }
        sum = number.parse::<f64>().map_err(|_| refuse())?;
    }
    if sum > 0.0 && sum.is_finite() { Ok(sum) } else { Err(refuse()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_people_write_them() {
        for (text, s) in [("90", 90.0), ("90s", 90.0), ("20m", 1200.0), ("1.5h", 5400.0), ("1h30m", 5400.0)] {
            assert_eq!(parse_duration(text), Ok(s));
        }
        for text in ["", "m", "20 min", "0", "-3m", "1h30", "1e9h"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn steps_and_evaluations_fill_the_time_and_no_more() {
        let evals = |every: usize| move |last: usize| last / every;
        assert_eq!(last_step(100.0, 1.0, 0.0, (0, 1000), &evals(10)), 100);
        assert_eq!(last_step(100.0, 1.0, 0.0, (30, 1000), &evals(10)), 130);
        assert_eq!(last_step(100.0, 1.0, 0.0, (0, 50), &evals(10)), 50);
        let last = last_step(100.0, 1.0, 5.0, (0, 1000), &evals(10));
        assert!(last as f64 + 5.0 * (last / 10) as f64 <= 100.0 && last >= 66, "{last}");
        assert_eq!(last_step(-1.0, 1.0, 0.0, (7, 1000), &evals(10)), 7);
    }

    #[test]
    fn nothing_is_decided_before_some_steps_and_some_time() {
        let evals = |_: usize| 1;
        let mut budget = Budget::new(100.0, 0.0, Instant::now(), 0);
        budget.took(2, 200, 50.0);
        assert_eq!(budget.decide(2, 1000, 100.0, &evals), None);
        let mut budget = Budget::new(100.0, 10.0, Instant::now(), 0);
        budget.took(5, 500, 5.0);
        assert_eq!(budget.decide(5, 1000, 100.0, &evals), Some(5 + 83)); // 94 - 10 seconds, a bit of which has passed
        assert!(!budget.is_spent(100.0) && Budget::new(100.0, 99.0, Instant::now(), 0).is_spent(100.0));
    }
}
