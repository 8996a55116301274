//! `--budget`: how many steps fit into a time, told from the first ones.
//!
//! The number is decided early and saved with the checkpoint, so that the learning rate falls to its end within the time and
//! a run that goes on takes the same steps. It is looked at again with every tenth of the time that passes, and lowered when
//! the machine has become too slow for it; it is never raised. The clock has the last word: whatever slows the machine down
//! after that, the run ends in time with what it has.

use std::time::Instant;

/// Steps that are taken before the number is decided.
const LEAST_STEPS: usize = 3;
/// Share of the budget that has passed by then.
const LEAST_SHARE: f64 = 0.04;
/// Share that is planned for; the rest is for the last files, and for a machine that is slower later.
const PLANNED: f64 = 0.94;
/// What reading a token costs of what learning from it does: one pass of three.
const READING: f64 = 0.4;

/// Share of the budget between two looks at it.
const LOOK: f64 = 0.1;
/// A number of steps that is lower by less is not worth a change.
const LEAST_CHANGE: f64 = 0.03;

/// A time to end in.
pub struct Budget {
    seconds: f64,
    before: f64,
    since: Instant,
    val_tokens: usize,
    steps: usize,
    s_per_token: f64,
    /// Tokens and seconds at the last look, and the share of the budget that had passed then.
    looked: (usize, f64),
    next_look: f64,
}

impl Budget {
    /// `seconds` in all, of which earlier processes of this run had `before`; evaluations read `val_tokens`.
    pub fn new(seconds: f64, before: f64, since: Instant, val_tokens: usize) -> Self {
        let (looked, next_look) = ((0, 0.0), LEAST_SHARE);
        Self { seconds, before, since, val_tokens, steps: 0, s_per_token: 0.0, looked, next_look }
    }

    /// After a step: the tokens and seconds of this process so far.
    pub fn took(&mut self, tokens: usize, seconds: f64) {
        self.steps += 1;
        // Since the last look: how fast the machine is now.
        if tokens > self.looked.0 {
            self.s_per_token = (seconds - self.looked.1) / (tokens - self.looked.0) as f64;
        }
        if self.due() {
            self.looked = (tokens, seconds);
        }
    }

    fn spent(&self) -> f64 {
        self.before + self.since.elapsed().as_secs_f64()
    }

    fn due(&self) -> bool {
        self.steps >= LEAST_STEPS && self.spent() >= self.next_look * self.seconds
    }

    /// The last step, when there is something to decide: `at` is the step now and the most that were asked for, `planned`
    /// what was decided before; `evals` tells how many evaluations come up to a step.
    pub fn decide(
        &mut self,
        at: (usize, usize),
        planned: Option<usize>,
        tokens_a_step: f64,
        evals: &dyn Fn(usize) -> usize,
    ) -> Option<usize> {
        if !self.due() {
            return None;
        }
        let spent = self.spent();
        self.next_look = spent / self.seconds + LOOK;
        let within = (at.0, planned.unwrap_or(at.1));
        let left = self.seconds * PLANNED - spent;
        let last = last_step(left, self.s_per_token * tokens_a_step, self.evaluation(), within, evals);
        let worth = |planned: usize| (planned - last) as f64 > LEAST_CHANGE * (planned - at.0) as f64;
        planned.is_none_or(worth).then_some(last)
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
    fn it_is_decided_after_some_steps_and_lowered_when_the_machine_slows_down() {
        let evals = |_: usize| 0;
        let mut budget = Budget::new(100.0, 0.0, Instant::now(), 0);
        budget.took(200, 50.0);
        assert_eq!(budget.decide((1, 1000), None, 100.0, &evals), None, "one step tells nothing");
        let begin = |spent: f64| Budget::new(100.0, spent, Instant::now(), 0); // as if so much had passed before
        let mut budget = begin(10.0);
        (1..=3).for_each(|i| budget.took(100 * i, i as f64));
        assert_eq!(budget.decide((3, 1000), None, 100.0, &evals), Some(3 + 83)); // a second a step, 94 - 10 of them
        assert_eq!(budget.decide((3, 1000), Some(86), 100.0, &evals), None, "a tenth must pass first");
        let mut slow = begin(50.0);
        (1..=3).for_each(|i| slow.took(100 * i, 2.0 * i as f64));
        assert_eq!(slow.decide((40, 1000), Some(86), 100.0, &evals), Some(40 + 21), "two seconds a step by now");
        let mut fast = begin(50.0);
        (1..=3).for_each(|i| fast.took(100 * i, 0.5 * i as f64));
        assert_eq!(fast.decide((40, 1000), Some(86), 100.0, &evals), None, "never raised");
        assert!(!fast.is_spent(100.0) && begin(99.0).is_spent(100.0));
    }
}
