//! What the methods ask of the settings: which flags go with which, where pairs start, and the adapter that comes of it.

use super::{Method, Settings, TuneConfig};
use crate::model::peft::targets::Layers;
use crate::model::peft::{AdapterConfig, Kind};
use serde::{Deserialize, Serialize};

/// Where the low-rank pairs start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Init {
    /// A random, B zero.
    #[default]
    Lora,
    /// At the largest singular values of each weight, which keeps the rest; saved as a plain pair of twice the rank.
    Pissa,
}

impl Method {
    /// Whether it has pairs, and so a rank.
    pub fn has_pairs(self) -> bool {
        !matches!(self, Self::Ia3 | Self::Full)
    }

    /// What it puts beside a weight, and whether s = α/√r.
    fn kind(self) -> (Kind, bool) {
        match self {
            Self::Dora => (Kind::Dora, false),
            Self::Ia3 => (Kind::Ia3, false),
            _ => (Kind::Lora, self == Self::Rslora),
        }
    }
}

impl Settings {
    /// As `--init-adapter` has it: the adapter brings its own method, rank, scale and modules.
    ///
    /// # Errors
    /// A value given that is another than the adapter's.
    pub fn with_adapter(mut self, adapter: &AdapterConfig) -> anyhow::Result<Self> {
        let rslora = adapter.kind == Kind::Lora && adapter.rslora;
        let own = match adapter.kind {
            Kind::Ia3 => Method::Ia3,
            Kind::Dora => Method::Dora,
            Kind::Lora if rslora => Method::Rslora,
            Kind::Lora => Method::Lora,
        };
        // Another method that has the same adapter may be meant: it differs in the base.
        let own = self.method.filter(|m| m.kind() == (adapter.kind, rslora)).unwrap_or(own);
        let pairs = (adapter.kind != Kind::Ia3).then_some((adapter.r, adapter.alpha));
        let layers = adapter.layers.clone().map(Layers);
        let targets = Some(adapter.target_modules.clone()).filter(|t| !t.is_empty());
        keep("method", &mut self.method, Some(own))?;
        keep("rank", &mut self.rank, pairs.map(|p| p.0))?;
        keep("alpha", &mut self.alpha, pairs.map(|p| p.1))?;
        keep("layers", &mut self.layers, layers)?;
        let whole = Some(adapter.modules_to_save.clone()).filter(|names| !names.is_empty());
        keep("targets", &mut self.targets, targets)?;
        keep("modules-to-save", &mut self.modules_to_save, whole)?;
        Ok(self)
    }
}

fn keep<T: PartialEq + std::fmt::Debug>(flag: &str, given: &mut Option<T>, own: Option<T>) -> anyhow::Result<()> {
    if let Some(value) = given.as_ref().filter(|_| *given != own) {
        crate::bad_input!("--{flag} {value:?}, but --init-adapter brings its own: {own:?}; leave the flag out");
    }
    *given = own;
    Ok(())
}

impl TuneConfig {
    /// The adapter that this configuration puts on a base.
    pub fn adapter(&self, base: &str) -> AdapterConfig {
        let (kind, rslora) = self.method.kind();
        let feedforward = |t: &&String| FEEDFORWARD.iter().any(|end| t.ends_with(end));
        AdapterConfig {
            kind,
            feedforward_modules: match kind {
                Kind::Ia3 => self.targets.iter().filter(feedforward).cloned().collect(),
                _ => Vec::new(),
            },
            layers: self.layers.as_ref().map(|l| l.0.clone()),
            r: self.rank,
            alpha: self.alpha,
            dropout: self.dropout,
            rslora,
            target_modules: self.targets.clone(),
            modules_to_save: self.modules_to_save.clone(),
            base: Some(base.to_owned()),
            ..AdapterConfig::default()
        }
    }

    /// A flag that the method has no use for would be believed and do nothing.
    pub(super) fn check_method(&self, given: &Settings) -> anyhow::Result<()> {
        let method = format!("{:?}", self.method).to_lowercase();
        for (flag, given, fits) in [
            ("--rank", given.rank.is_some(), self.method != Method::Ia3),
            ("--alpha", given.alpha.is_some(), self.method != Method::Ia3),
            ("--dropout", given.dropout.is_some_and(|p| p > 0.0), self.method != Method::Ia3),
            ("--layers", given.layers.is_some(), !matches!(self.method, Method::Ia3 | Method::Full)),
            ("--lora-plus-ratio", self.lora_plus_ratio != 1.0, self.method.has_pairs()),
            ("--modules-to-save", !self.modules_to_save.is_empty(), self.method != Method::Full),
            ("--init pissa", self.init == Init::Pissa, matches!(self.method, Method::Lora | Method::Rslora)),
        ] {
            if given && !fits {
                crate::bad_input!("{flag} does not go with --method {method}");
            }
        }
        Ok(())
    }
}

/// Ends of the names of projections whose input (IA)³ scales: the last ones of the feed-forward.
const FEEDFORWARD: [&str; 4] = ["down_proj", "output.dense", "mlp.c_proj", "lin2"];

/// Keys, values and the feed-forward of a family, as PEFT chooses them for most.
pub(super) fn ia3_targets(model_type: &str) -> Vec<String> {
    let names: &[&str] = match model_type {
        "gpt2" => &["c_attn", "mlp.c_proj"],
        "phi3" => &["qkv_proj", "down_proj"],
        "bert" | "roberta" => &["key", "value", "output.dense"],
        "distilbert" => &["k_lin", "v_lin", "lin2"],
        _ => &["k_proj", "v_proj", "down_proj"],
    };
    names.iter().map(|n| (*n).to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::super::TaskName;
    use super::*;

    #[test]
    fn an_adapter_brings_its_own_method_and_rank() {
        let adapter = AdapterConfig { r: 4, alpha: 8.0, rslora: true, ..AdapterConfig::default() };
        let settings = Settings { rank: Some(4), ..Settings::default() }.with_adapter(&adapter).unwrap();
        assert_eq!((settings.method, settings.alpha), (Some(Method::Rslora), Some(8.0)));
        let error = Settings { rank: Some(8), ..Settings::default() }.with_adapter(&adapter).unwrap_err().to_string();
        assert!(error.contains("--rank 8, but --init-adapter brings its own: Some(4)"), "{error}");
    }

    #[test]
    fn every_method_comes_back_from_its_file() {
        let model: crate::model::config::Config = crate::model::open::Opened::open("nano", 0).unwrap().config;
        for text in [
            "method = \"dora\"\nrank = 4\nlayers = \"1-2\"",
            "method = \"ia3\"",
            "method = \"rslora\"\ninit = \"pissa\"\nlora-plus-ratio = 4.0",
            "method = \"full\"",
        ] {
            let given: Settings = toml::from_str(text).unwrap();
            let config = TuneConfig::resolve(&given, TaskName::Text, &model).unwrap();
            let written = toml::to_string(&config.to_settings()).unwrap();
            let read: Settings = toml::from_str(&written).unwrap();
            assert_eq!(TuneConfig::resolve(&read, TaskName::Text, &model).unwrap(), config, "{written}");
        }
        for (text, flag) in [
            ("method = \"ia3\"\nrank = 4", "--rank does not go with --method ia3"),
            ("method = \"dora\"\ninit = \"pissa\"", "--init pissa"),
            ("method = \"full\"\nlayers = \"0\"", "--layers"),
            ("method = \"full\"\nlora-plus-ratio = 2.0", "--lora-plus-ratio"),
            ("lora-plus-ratio = 0.0", "--lora-plus-ratio 0"),
        ] {
            let given: Settings = toml::from_str(text).unwrap();
            let error = TuneConfig::resolve(&given, TaskName::Text, &model).unwrap_err().to_string();
            assert!(error.contains(flag), "{error}");
        }
    }
}
