//! Losses over answers that are preferred to others, and their slopes: functions of log-probabilities alone.
//!
//! With π the log p of a whole answer under the network (nats, summed over its tokens), and ρ the same under the network as it
//! was before the first step:
//!
//! - DPO (arXiv:2305.18290): h = β ((π₊ - ρ₊) - (π₋ - ρ₋)); L = -(1 - ε) ln σ(h) - ε ln σ(-h), ε the label smoothing of cDPO.
//!   With `rpo-alpha` (RPO, arXiv:2404.19733) also α times the mean nats a token of the chosen answers.
//! - ORPO (arXiv:2403.07691), without ρ: with ℓ = π / tokens, L = nats a token of the chosen answers
//!   - β ln σ(log-odds), log-odds = (ℓ₊ - ℓ₋) - (ln(1 - e^ℓ₊) - ln(1 - e^ℓ₋)); β is the paper's λ.
//! - KTO (arXiv:2402.01306): r = π - ρ; L = w₊ (1 - σ(β (r - z))) of wanted answers and w₋ (1 - σ(β (z - r))) of unwanted ones;
//!   z = max(0, mean of r over mismatched answers) counts as a constant.
//!
//! Names, defaults and the estimate of z are TRL's. Two things are not: z is the mean over a whole optimizer step, and so are
//! the nats of RPO and ORPO, so that the cut of a step into micro-batches changes nothing; and those nats are of the answer
//! alone, where TRL's ORPO counts the prompt too.

use crate::data::batch::{Row, Side, Target};
use serde::{Deserialize, Serialize};

/// Which loss.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Direct preference optimization: pairs, held near the network as it was.
    Dpo,
    /// Odds ratio: pairs, learned with the chosen answers themselves; nothing to be held near.
    Orpo,
    /// Kahneman-Tversky: answers one by one, wanted or not, held near the network as it was.
    Kto,
}

impl Kind {
    /// Whether answers are held against the network as it was before the run.
    pub fn has_reference(self) -> bool {
        self != Self::Orpo
    }
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Dpo => "dpo",
            Self::Orpo => "orpo",
            Self::Kto => "kto",
        })
    }
}

/// A loss with its settings.
#[derive(Debug, Clone, Copy, PartialEq)]
#[allow(missing_docs)]
pub struct Preference {
    pub kind: Kind,
    pub beta: f64,
    pub label_smoothing: f64,
    pub rpo_alpha: f64,
    pub desirable_weight: f64,
    pub undesirable_weight: f64,
}

/// What a step divides by, and what it holds its answers against.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Step {
    /// Examples: pairs, or answers that are judged one by one.
    pub examples: usize,
    /// Tokens of the chosen answers.
    pub chosen_tokens: usize,
    /// KTO's z, in nats.
    pub drift: f64,
}

/// Sums over examples.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Tally {
    /// Loss of the examples, without the nats.
    pub loss: f64,
    /// Examples.
    pub examples: usize,
    /// -log p of the chosen answers, in nats.
    pub nll: f64,
    /// Tokens of them.
    pub chosen_tokens: usize,
    /// Rewards of chosen or wanted answers, and how many.
    pub chosen: (f64, usize),
    /// Rewards of rejected or unwanted answers, and how many.
    pub rejected: (f64, usize),
    /// Pairs whose chosen answer has the larger reward; answers judged one by one that are on their side of z.
    pub right: usize,
}

/// One answer, as the network sees it.
#[derive(Debug, Clone, Copy)]
struct Answer {
    log_p: f64,
    reference: f64,
    tokens: usize,
}

impl Preference {
    /// Loss of the examples of these rows, which begin with an example's first row, at their log-probabilities; and its slope
    /// with respect to each, for the mean over `step`.
    pub fn slopes(&self, rows: &[&Row], log_probs: &[f64], step: &Step, tally: &mut Tally) -> Vec<f64> {
        assert_eq!(rows.len(), log_probs.len(), "a log p for each row");
        let answer = |i: usize| match &rows[i].target {
            Target::Answer { side, reference, .. } => {
                (*side, Answer { log_p: log_probs[i], reference: *reference, tokens: rows[i].learned() })
            }
            other => panic!("row {}: no answer but {other:?}", rows[i].source),
        };
        let mut slopes = vec![0.0; rows.len()];
        let mut i = 0;
        while i < rows.len() {
            match answer(i) {
                (Side::Chosen, chosen) => {
                    let (side, rejected) = answer(i + 1);
                    assert_eq!(side, Side::Rejected, "row {}: a chosen answer without its other", rows[i].source);
                    (slopes[i], slopes[i + 1]) = self.pair(chosen, rejected, step, tally);
                    i += 2;
                }
                (side, one) => {
                    slopes[i] = self.one(one, side == Side::Wanted, step, tally);
                    i += 1;
                }
            }
        }
        slopes
    }

    /// The mean loss of a tally.
    pub fn loss(&self, tally: &Tally) -> f64 {
        let nats = tally.nll / tally.chosen_tokens.max(1) as f64;
        tally.loss / tally.examples.max(1) as f64 + self.nats_weight() * nats
    }

    /// What the nats a token of the chosen answers weigh.
    fn nats_weight(&self) -> f64 {
        match self.kind {
            Kind::Dpo => self.rpo_alpha,
            Kind::Orpo => 1.0,
            Kind::Kto => 0.0,
        }
    }

    fn pair(&self, chosen: Answer, rejected: Answer, step: &Step, tally: &mut Tally) -> (f64, f64) {
        let share = 1.0 / step.examples as f64;
        let (loss, slopes, rewards) = match self.kind {
            Kind::Orpo => self.odds(chosen, rejected),
            Kind::Dpo | Kind::Kto => self.direct(chosen, rejected),
        };
        tally.loss += loss;
        tally.examples += 1;
        tally.nll -= chosen.log_p;
        tally.chosen_tokens += chosen.tokens;
        tally.chosen = (tally.chosen.0 + rewards.0, tally.chosen.1 + 1);
        tally.rejected = (tally.rejected.0 + rewards.1, tally.rejected.1 + 1);
        tally.right += usize::from(rewards.0 > rewards.1);
        let nats = self.nats_weight() / step.chosen_tokens.max(1) as f64;
        (share * slopes.0 - nats, share * slopes.1)
    }

    /// Loss, its slopes and the rewards of a pair.
    fn direct(&self, chosen: Answer, rejected: Answer) -> (f64, (f64, f64), (f64, f64)) {
        let reward = |a: Answer| self.beta * (a.log_p - a.reference);
        let (e, h) = (self.label_smoothing, reward(chosen) - reward(rejected));
        let loss = -(1.0 - e) * log_sigmoid(h) - e * log_sigmoid(-h);
        let slope = self.beta * (e * sigmoid(h) - (1.0 - e) * sigmoid(-h));
        (loss, (slope, -slope), (reward(chosen), reward(rejected)))
    }

    fn odds(&self, chosen: Answer, rejected: Answer) -> (f64, (f64, f64), (f64, f64)) {
        // A mean of exactly 0, an answer that is certain, has infinite odds.
        let mean = |a: Answer| (a.log_p / a.tokens.max(1) as f64).min(-1e-12);
        let (c, r) = (mean(chosen), mean(rejected));
        let no = |l: f64| -l.exp_m1(); // 1 - e^l
        let odds = (c - r) - (no(c).ln() - no(r).ln());
        let slope = -self.beta * sigmoid(-odds);
        let slopes = (slope / no(c) / chosen.tokens.max(1) as f64, -slope / no(r) / rejected.tokens.max(1) as f64);
        (-self.beta * log_sigmoid(odds), slopes, (self.beta * c, self.beta * r))
    }

    fn one(&self, answer: Answer, wanted: bool, step: &Step, tally: &mut Tally) -> f64 {
        let ratio = answer.log_p - answer.reference;
        let (sign, weight) = if wanted { (1.0, self.desirable_weight) } else { (-1.0, self.undesirable_weight) };
        let s = sigmoid(sign * self.beta * (ratio - step.drift));
        tally.loss += weight * (1.0 - s);
        tally.examples += 1;
        let sum = if wanted { &mut tally.chosen } else { &mut tally.rejected };
        *sum = (sum.0 + self.beta * ratio, sum.1 + 1);
        tally.right += usize::from(sign * (ratio - step.drift) > 0.0);
        -sign * weight * self.beta * s * (1.0 - s) / step.examples as f64
    }
}

impl Tally {
    /// What is written of it into `metrics.jsonl`: mean rewards of either side, the margin between them, and how many are
    /// told right.
    pub fn fields(&self) -> serde_json::Map<String, serde_json::Value> {
        let mean = |(sum, n): (f64, usize)| (n > 0).then(|| sum / n as f64);
        let (chosen, rejected) = (mean(self.chosen), mean(self.rejected));
        let margin = chosen.zip(rejected).map(|(c, r)| c - r);
        let all = [
            ("rewards_chosen", chosen),
            ("rewards_rejected", rejected),
            ("rewards_margin", margin),
            ("rewards_accuracy", mean((self.right as f64, self.examples))),
        ];
        all.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?.into()))).collect()
    }
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// ln σ(x), whose largest term is never lost.
fn log_sigmoid(x: f64) -> f64 {
    x.min(0.0) - (-x.abs()).exp().ln_1p()
}

#[cfg(test)]
mod tests {
    use super::*;

    const DPO: Preference = Preference {
        kind: Kind::Dpo,
        beta: 0.1,
        label_smoothing: 0.0,
        rpo_alpha: 0.0,
        desirable_weight: 1.0,
        undesirable_weight: 1.0,
    };

    fn answer(side: Side, tokens: usize, reference: f64) -> Row {
        let tokens: Vec<Option<u32>> = (0..=tokens).map(|i| (i > 0).then_some(1)).collect();
        Row::new(vec![1; tokens.len()], Target::Answer { tokens, side, reference }, 1)
    }

    /// Two pairs, or four answers one by one.
    fn rows(pairs: bool) -> Vec<Row> {
        let sides = match pairs {
            true => [Side::Chosen, Side::Rejected, Side::Chosen, Side::Rejected],
            false => [Side::Wanted, Side::Unwanted, Side::Wanted, Side::Unwanted],
        };
        let numbers = [(5, -12.5), (4, -9.0), (7, -20.25), (6, -14.0)];
        sides.into_iter().zip(numbers).map(|(side, (tokens, reference))| answer(side, tokens, reference)).collect()
    }

    const LOG_P: [f64; 4] = [-11.0, -9.75, -21.0, -13.0];

    fn at(p: &Preference, log_p: &[f64]) -> (f64, Vec<f64>, Tally) {
        let rows = rows(p.kind != Kind::Kto);
        let rows: Vec<&Row> = rows.iter().collect();
        let mut tally = Tally::default();
        let step = match p.kind {
            Kind::Kto => Step { examples: 4, chosen_tokens: 0, drift: 0.375 },
            _ => Step { examples: 2, chosen_tokens: 12, drift: 0.0 },
        };
        let slopes = p.slopes(&rows, log_p, &step, &mut tally);
        (p.loss(&tally), slopes, tally)
    }

    fn all() -> Vec<Preference> {
        vec![
            DPO,
            Preference { label_smoothing: 0.2, beta: 0.5, ..DPO },
            Preference { rpo_alpha: 1.5, ..DPO },
            Preference { kind: Kind::Orpo, ..DPO },
            Preference { kind: Kind::Kto, desirable_weight: 1.0, undesirable_weight: 1.25, ..DPO },
        ]
    }

    /// Recorded from torch 2 in f64, by TRL's formulas over the numbers above:
    /// `-F.logsigmoid(beta * h) * (1 - e) - F.logsigmoid(-beta * h) * e` (dpo_trainer.py), `+ rpo_alpha * nll / 12`;
    /// `nll / 12 - beta * F.logsigmoid(log_odds)` (orpo_trainer.py); `1 - F.sigmoid(beta * (r - kl))` and
    /// `1 - F.sigmoid(beta * (kl - r))`, weighted (kto_trainer.py); means over the pairs or answers.
    const RECORDED: [f64; 5] = [
        0.685_716_216_356_375_4,
        0.777_297_358_626_684_6,
        4.685_716_216_356_376,
        2.757_366_780_371_207_4,
        0.558_601_419_160_821_4,
    ];

    #[test]
    fn losses_are_those_recorded() {
        for (p, want) in all().iter().zip(RECORDED) {
            let (loss, ..) = at(p, &LOG_P);
            assert!((loss - want).abs() < 1e-12, "{p:?}: {loss} against {want}");
        }
    }

    #[test]
    fn slopes_are_those_of_a_finite_difference() {
        for p in all() {
            let (_, slopes, _) = at(&p, &LOG_P);
            for i in 0..4 {
                let moved = |by: f64| {
                    let mut log_p = LOG_P;
                    log_p[i] += by;
                    at(&p, &log_p).0
                };
                let slope = (moved(1e-5) - moved(-1e-5)) / 2e-5;
                assert!((slopes[i] - slope).abs() < 1e-9, "{p:?}, answer {i}: {} against {slope}", slopes[i]);
            }
        }
    }

    #[test]
    fn rewards_are_what_was_gained_on_the_reference() {
        let (_, _, tally) = at(&DPO, &LOG_P);
        let fields = serde_json::Value::from(tally.fields());
        // β times (1.5, -0.75) of the chosen and (-0.75, 1) of the rejected.
        for (name, want) in [
            ("rewards_chosen", 0.0375),
            ("rewards_rejected", 0.0125),
            ("rewards_margin", 0.025),
            ("rewards_accuracy", 0.5),
        ] {
            assert!((fields[name].as_f64().unwrap() - want).abs() < 1e-12, "{fields}");
        }
        // One by one: 1.5 is above z = 0.375 and wanted, -0.75 below and unwanted; the other two are on the wrong side.
        assert_eq!(at(&all()[4], &LOG_P).2.right, 2);
    }

    #[test]
    fn answers_that_are_certain_or_impossible_have_finite_slopes() {
        for p in all() {
            for log_p in [[0.0, -1e4, -1e-9, -700.0], [-1e4, 0.0, -1e4, -1e-13]] {
                let (loss, slopes, _) = at(&p, &log_p);
                assert!(loss.is_finite() && slopes.iter().all(|s| s.is_finite()), "{p:?}: {loss} {slopes:?}");
            }
        }
    }
}
