//! What the tasks ask of the settings: the losses of preference and embed, their defaults, and which flags go with which.

use super::{Method, Settings, TaskName, TuneConfig};
use crate::model::config::Config;
use crate::model::layers::contrast::Pooling;
use crate::tune::contrast::Contrast;
use crate::tune::objective::Objective;
use crate::tune::preference::{Kind, Preference};

/// What `--task embed` needs besides.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Embed {
    /// Which tokens make a vector.
    pub pooling: Pooling,
    /// Divides cosines.
    pub temperature: f64,
}

/// The loss of a preference, every value resolved.
pub(super) fn preference(s: &Settings, task: TaskName) -> Option<Preference> {
    (task == TaskName::Preference).then(|| Preference {
        kind: s.preference.unwrap_or(Kind::Dpo),
        beta: s.beta.unwrap_or(0.1),
        label_smoothing: s.label_smoothing.unwrap_or(0.0),
        rpo_alpha: s.rpo_alpha.unwrap_or(0.0),
        desirable_weight: s.desirable_weight.unwrap_or(1.0),
        undesirable_weight: s.undesirable_weight.unwrap_or(1.0),
    })
}

/// What vectors are learned with, every value resolved.
pub(super) fn embed(s: &Settings, task: TaskName) -> Option<Embed> {
    (task == TaskName::Embed)
        .then(|| Embed { pooling: s.pooling.unwrap_or_default(), temperature: s.temperature.unwrap_or(0.05) })
}

/// Peak learning rate: low-rank pairs want about ten times the rate of full tuning; small models bear more; and a preference
/// moves a network that already answers, whose answers a rate as for new tasks would spoil.
pub(super) fn lr(task: TaskName, method: Method, model: &Config) -> f64 {
    let (encoder, small) = (!model.family.is_decoder(), model.hidden_size <= 512);
    if task == TaskName::Preference {
        return match method {
            Method::Full => 1e-6,
            Method::Ia3 => 5e-4,
            _ if small => 2e-4,
            _ => 1e-5,
        };
    }
    match method {
        Method::Full => 3e-4,
        Method::Ia3 => 5e-3, // a vector has few weights, and each starts at one
        _ if encoder => 5e-4,
        _ if small => 2e-3,
        _ => 2e-4,
    }
}

/// Rows in a micro-batch: pairs are two rows each; the other texts of a batch are what an anchor is told from.
pub(super) fn batch(task: TaskName) -> usize {
    match task {
        TaskName::Preference => 8,
        TaskName::Embed => 64,
        _ => 16,
    }
}

/// Passes over the data: a preference that is seen often is learned by heart, and the answers suffer.
pub(super) fn epochs(task: TaskName) -> f64 {
    if task == TaskName::Preference { 1.0 } else { 3.0 }
}

impl TuneConfig {
    /// What a step minimizes.
    pub fn objective(&self) -> Objective {
        match (&self.preference, &self.embed) {
            (Some(preference), _) => Objective::Preference(*preference),
            (_, Some(embed)) => Objective::Contrast(Contrast { temperature: embed.temperature }),
            _ => Objective::Targets,
        }
    }

    /// A flag that the task has no use for would be believed and do nothing.
    pub(super) fn check_task(&self, given: &Settings) -> anyhow::Result<()> {
        let kind = self.preference.map(|p| p.kind);
        let (dpo, kto, embed) = (kind == Some(Kind::Dpo), kind == Some(Kind::Kto), self.embed.is_some());
        for (flag, given, fits) in [
            ("--preference", given.preference.is_some(), kind.is_some()),
            ("--beta", given.beta.is_some(), kind.is_some()),
            ("--label-smoothing", given.label_smoothing.is_some_and(|e| e != 0.0), dpo),
            ("--rpo-alpha", given.rpo_alpha.is_some_and(|a| a != 0.0), dpo),
            ("--desirable-weight", given.desirable_weight.is_some_and(|w| w != 1.0), kto),
            ("--undesirable-weight", given.undesirable_weight.is_some_and(|w| w != 1.0), kto),
            ("--pooling", given.pooling.is_some(), embed),
            ("--temperature", given.temperature.is_some(), embed),
        ] {
            if given && !fits {
                match kind {
                    Some(kind) => crate::bad_input!("{flag} does not go with --preference {kind}"),
                    None => crate::bad_input!("{flag} does not go with --task {}", self.task),
                }
            }
        }
        let p = self.preference;
        let positive = |v: Option<f64>| v.is_none_or(|v| v > 0.0 && v.is_finite());
        let not_negative = |v: Option<f64>| v.is_none_or(|v| v >= 0.0 && v.is_finite());
        for (name, value, ok) in [
            ("beta", p.map(|p| p.beta), positive as fn(Option<f64>) -> bool),
            // At a half, the two answers of a pair are one as good as the other.
            ("label-smoothing", p.map(|p| p.label_smoothing), |e| e.is_none_or(|e| (0.0..0.5).contains(&e))),
            ("rpo-alpha", p.map(|p| p.rpo_alpha), not_negative),
            ("desirable-weight", p.map(|p| p.desirable_weight), not_negative),
            ("undesirable-weight", p.map(|p| p.undesirable_weight), not_negative),
            ("temperature", self.embed.map(|e| e.temperature), positive),
        ] {
            if !ok(value) {
                crate::bad_input!("--{name} {} cannot be", value.unwrap_or(f64::NAN));
            }
        }
        if embed && self.batch_tokens.is_none() && self.batch < 2 {
            crate::bad_input!("--batch 1: an anchor is told from the other texts of its batch; give --batch 2 or more");
        }
        if self.task == TaskName::Embed && self.qat.is_some() {
            crate::bad_input!("--qat does not go with --task embed");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolved(text: &str, task: TaskName) -> anyhow::Result<TuneConfig> {
        let model: Config = crate::model::open::Opened::open("nano", 0)?.config;
        TuneConfig::resolve(&toml::from_str(text)?, task, &model)
    }

    #[test]
    fn every_loss_comes_back_from_its_file() {
        for (task, text) in [
            (TaskName::Preference, ""),
            (TaskName::Preference, "beta = 0.3\nlabel-smoothing = 0.1\nrpo-alpha = 1.0"),
            (TaskName::Preference, "preference = \"kto\"\nundesirable-weight = 1.5"),
            (TaskName::Preference, "preference = \"orpo\""),
            (TaskName::Embed, "temperature = 0.1\npooling = \"mean\""),
        ] {
            let config = resolved(text, task).unwrap();
            let written = toml::to_string(&config.to_settings()).unwrap();
            assert_eq!(resolved(&written, task).unwrap(), config, "{written}");
        }
    }

    #[test]
    fn flags_of_another_loss_are_refused_by_name() {
        for (task, text, because) in [
            (TaskName::Text, "beta = 0.3", "--beta does not go with --task text"),
            (TaskName::Text, "preference = \"dpo\"", "--preference does not go with --task text"),
            (
                TaskName::Preference,
                "preference = \"orpo\"\nlabel-smoothing = 0.1",
                "--label-smoothing does not go with --preference orpo",
            ),
            (TaskName::Preference, "desirable-weight = 2.0", "--desirable-weight does not go with --preference dpo"),
            (TaskName::Preference, "beta = 0.0", "--beta 0 cannot be"),
            (TaskName::Preference, "label-smoothing = 0.5", "--label-smoothing 0.5 cannot be"),
            (TaskName::Embed, "temperature = -1.0", "--temperature -1 cannot be"),
            (TaskName::Embed, "batch = 1", "--batch 1: an anchor"),
            (TaskName::Classify, "pooling = \"cls\"", "--pooling does not go with --task classify"),
        ] {
            let error = resolved(text, task).unwrap_err().to_string();
            assert!(error.contains(because), "{error}");
        }
    }
}
