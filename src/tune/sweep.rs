//! `sweep.toml` → trials, and in how many rounds of which length they are halved.

use super::config::Settings;
use crate::error::BadInput;
use crate::rng;
use serde::Deserialize;
use serde_json::{Map, Value};
use std::path::Path;

/// Settings that may differ between trials over one base and the same rows.
const MAY: [&str; 20] = [
    "lr",
    "rank",
    "alpha",
    "dropout",
    "neftune",
    "targets",
    "layers",
    "lora-plus-ratio",
    "epochs",
    "steps",
    "batch",
    "batch-tokens",
    "accumulate",
    "schedule",
    "warmup",
    "weight-decay",
    "clip",
    "beta1",
    "beta2",
    "seed",
];

/// How trials are halved.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct How {
    /// Of a round's trials one in so many goes on, with so many times the steps.
    eta: usize,
    /// The most trials: drawn from all combinations when there are more.
    trials: Option<usize>,
    /// Rounds; as many as it takes to be left with fewer than `eta` trials, when not given.
    rounds: Option<usize>,
}

impl Default for How {
    fn default() -> Self {
        Self { eta: 3, trials: None, rounds: None }
    }
}

/// What is tried out.
#[derive(Debug, Clone, PartialEq)]
pub struct Sweep {
    how: How,
    /// Name of a setting and the values that it is given.
    lists: Vec<(String, Vec<toml::Value>)>,
}

/// One combination.
#[derive(Debug, Clone, PartialEq)]
pub struct Trial {
    /// From 1.
    pub number: usize,
    /// The values as they stand in the file.
    pub values: Map<String, Value>,
    /// The same as settings.
    pub settings: Settings,
}

impl Trial {
    /// The values in words.
    pub fn words(&self) -> String {
        self.values.iter().map(|(k, v)| format!("{k} {v}")).collect::<Vec<_>>().join(", ")
    }

    /// A setting that is given outside of the sweep, too.
    pub fn both(&self, given: &Settings) -> Option<String> {
        let given = serde_json::to_value(given).unwrap_or_default();
        self.values.keys().find(|k| given.get(k.as_str()).is_some_and(|v| !v.is_null())).cloned()
    }
}

impl Sweep {
    /// Reads the file.
    ///
    /// # Errors
    /// A setting that cannot differ between trials or has no list, a value that a setting cannot have, by name.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let bad = |why: String| BadInput(format!("{}: {why}", path.display()));
        let text =
            std::fs::read_to_string(path).map_err(|e| BadInput(format!("cannot read {}: {e}", path.display())))?;
        let mut table: toml::Table = toml::from_str(&text).map_err(|e| bad(e.to_string()))?;
        let how: How = match table.remove("sweep") {
            Some(how) => how.try_into().map_err(|e: toml::de::Error| bad(format!("[sweep]: {e}")))?,
            None => How::default(),
        };
        if how.eta < 2 || how.trials == Some(0) || how.rounds == Some(0) {
            return Err(bad("[sweep]: eta is at least 2, trials and rounds at least 1".into()).into());
        }
        let mut lists = Vec::new();
        for (name, value) in table {
            if !MAY.contains(&name.as_str()) {
                return Err(bad(format!(
                    "`{name}` cannot differ between trials over one base and the same rows; give it as a flag. What can: {}",
                    MAY.join(", ")
                ))
                .into());
            }
            let toml::Value::Array(values) = value else {
                return Err(bad(format!("`{name}` is no list; write {name} = [{value}], or give it as a flag")).into());
            };
            if values.is_empty() {
                return Err(bad(format!("`{name}` has no values")).into());
            }
            lists.push((name, values));
        }
        if lists.iter().map(|(_, v)| v.len()).product::<usize>() < 2 {
            return Err(bad(
                "one combination alone is no sweep; give a setting several values, such as lr = [2e-4, 1e-3]".into(),
            )
            .into());
        }
        let sweep = Self { how, lists };
        // Each value once by itself: a wrong one is named before anything is combined.
        for (name, values) in &sweep.lists {
            for value in values {
                let table = toml::Table::from_iter([(name.clone(), value.clone())]);
                table.try_into::<Settings>().map_err(|e| bad(format!("{name} = {value}: {}", e.message())))?;
            }
        }
        Ok(sweep)
    }

    /// Every combination, or as many as `trials` says, drawn by the seed.
    pub fn trials(&self, seed: u64) -> Vec<Trial> {
        let all: usize = self.lists.iter().map(|(_, v)| v.len()).product();
        let mut chosen: Vec<usize> = (0..all).collect();
        if let Some(most) = self.how.trials.filter(|most| *most < all) {
            chosen = rng::shuffled(all, seed, rng::stream("sweep", 0));
            chosen.truncate(most);
            chosen.sort_unstable();
        }
        chosen.into_iter().zip(1..).map(|(i, number)| self.combination(i, number)).collect()
    }

    fn combination(&self, mut i: usize, number: usize) -> Trial {
        let mut table = toml::Table::new();
        // The last list turns fastest, as one would write them down.
        for (name, values) in self.lists.iter().rev() {
            table.insert(name.clone(), values[i % values.len()].clone());
            i /= values.len();
        }
        let values = self
            .lists
            .iter()
            .map(|(name, _)| (name.clone(), serde_json::to_value(&table[name.as_str()]).unwrap_or_default()));
        Trial { number, values: values.collect(), settings: table.try_into().unwrap_or_default() }
    }

    /// Of each round the share of a trial's steps at which it ends, and how many trials are left then; in the last round all go to
    /// their end, and the best is left.
    pub fn rounds(&self, trials: usize) -> Vec<(f64, usize)> {
        let (mut left, mut survivors) = (trials, Vec::new());
        while left >= self.how.eta && self.how.rounds.is_none_or(|n| survivors.len() + 1 < n) {
            left = left.div_ceil(self.how.eta);
            survivors.push(left);
        }
        survivors.push(1);
        let last = survivors.len() - 1;
        let share = |round: usize| (self.how.eta as f64).powi(round as i32 - last as i32);
        survivors.into_iter().enumerate().map(|(round, left)| (share(round), left)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> anyhow::Result<Sweep> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sweep.toml");
        std::fs::write(&path, text).unwrap();
        Sweep::read(&path)
    }

    #[test]
    fn every_combination_is_a_trial_and_some_are_drawn_when_asked() {
        let sweep = read("lr = [1e-3, 2e-3]\nrank = [2, 4, 8]").unwrap();
        let trials = sweep.trials(0);
        assert_eq!(trials.len(), 6);
        assert_eq!((trials[1].settings.lr, trials[1].settings.rank), (Some(1e-3), Some(4)));
        assert_eq!(trials[5].words(), "lr 0.002, rank 8");
        assert_eq!(trials[0].both(&Settings { rank: Some(3), ..Settings::default() }), Some("rank".into()));
        assert_eq!(trials[0].both(&Settings::default()), None);
        let sweep = read("lr = [1e-3, 2e-3]\nrank = [2, 4, 8]\n[sweep]\ntrials = 4\neta = 2").unwrap();
        assert_eq!((sweep.trials(0).len(), sweep.trials(0)), (4, sweep.trials(0)));
    }

    #[test]
    fn rounds_grow_as_trials_get_fewer() {
        let sweep = read("lr = [1e-3, 2e-3]").unwrap();
        assert_eq!(sweep.rounds(9), [(1.0 / 9.0, 3), (1.0 / 3.0, 1), (1.0, 1)]);
        assert_eq!(sweep.rounds(2), [(1.0, 1)]);
        assert_eq!(sweep.rounds(6), [(1.0 / 3.0, 2), (1.0, 1)]);
        let two = read("lr = [1e-3, 2e-3]\n[sweep]\nrounds = 2").unwrap();
        assert_eq!(two.rounds(27), [(1.0 / 3.0, 9), (1.0, 1)]);
    }

    #[test]
    fn what_cannot_be_swept_is_named() {
        for (text, words) in [
            ("method = [\"lora\", \"dora\"]", "`method` cannot differ"),
            ("lr = 1e-3", "`lr` is no list"),
            ("lr = []", "no values"),
            ("lr = [1e-3]", "one combination"),
            ("lr = [1e-3, \"fast\"]", "lr = \"fast\""),
            ("lr = [1e-3, 2e-3]\n[sweep]\neta = 1", "at least 2"),
            ("lr = [1e-3, 2e-3]\n[sweep]\nhalve = 1", "halve"),
        ] {
            let error = read(text).unwrap_err().to_string();
            assert!(error.contains("sweep.toml") && error.contains(words), "{error}");
        }
    }
}
