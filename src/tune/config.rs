//! How to tune: flags over `tune.toml` over defaults. The resolved values are saved beside the adapter.

mod method;
mod task;
mod units;

pub use method::Init;
pub use task::Embed;
pub use units::{Mem, Time};

use super::schedule::Schedule;
use crate::data::batch::Size;
use crate::error::BadInput;
use crate::model::config::Config;
use crate::model::peft::targets::Layers;
use serde::{Deserialize, Serialize};
use std::path::Path;

pub use crate::data::Truncate;
pub use crate::data::schema::Task as TaskName;
pub use crate::model::layers::contrast::Pooling;
pub use crate::tune::preference::{Kind as PreferenceKind, Preference};

/// Which weights are trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// Low-rank adapters, scaled by α/r.
    Lora,
    /// Low-rank adapters, scaled by α/√r.
    Rslora,
    /// Low-rank adapters that turn each row of a weight, and a magnitude a row.
    Dora,
    /// A vector a module that scales keys, values and the feed-forward's input.
    Ia3,
    /// Low-rank adapters, scaled by α/r, over a base in few bits: a GGUF file as it is, a folder rounded to NF4
    Qlora,
    /// Every weight.
    Full,
}

macro_rules! settings {
    ($($(#[$meta:meta])* $name:ident: $ty:ty,)*) => {
        /// Values a user may give, as flags or in `tune.toml`; unknown keys are refused.
        #[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, clap::Args)]
        #[serde(deny_unknown_fields, rename_all = "kebab-case")]
        pub struct Settings { $($(#[$meta])* #[serde(skip_serializing_if = "Option::is_none")] pub $name: Option<$ty>,)* }

        impl Settings {
            /// These values where given, else `under`'s.
            pub fn over(self, under: Settings) -> Settings {
                Settings { $($name: self.$name.or(under.$name),)* }
            }

            /// The first value given here that differs from `saved`: flag, this, that.
            pub fn difference(&self, saved: &Settings) -> Option<(String, String, String)> {
                $(if self.$name.is_some() && self.$name != saved.$name {
                    let flag = format!("--{}", stringify!($name).replace('_', "-"));
                    let then = saved.$name.as_ref().map_or_else(|| "the default".to_owned(), |v| format!("{v:?}"));
                    return self.$name.as_ref().map(|now| (flag, format!("{now:?}"), then));
                })*
                None
            }
        }
    };
}

settings! {
    /// What the rows teach; read off their fields when not given
    #[arg(long, value_enum)]
    task: TaskName,
    /// Loss of --task preference [default: dpo; kto where rows have a `label`]
    #[arg(long, value_enum)]
    preference: PreferenceKind,
    /// Preference: how much answers may drift from the base, less with more; of orpo, what the odds weigh [default: 0.1]
    #[arg(long)]
    beta: f64,
    /// DPO: share of pairs that may be labelled the wrong way round [default: 0]
    #[arg(long, value_name = "SHARE")]
    label_smoothing: f64,
    /// DPO: weight of learning the chosen answers themselves beside; 1 is usual [default: 0, off]
    #[arg(long, value_name = "ALPHA")]
    rpo_alpha: f64,
    /// KTO: weight of wanted answers [default: 1]
    #[arg(long, value_name = "WEIGHT")]
    desirable_weight: f64,
    /// KTO: weight of unwanted answers [default: 1]
    #[arg(long, value_name = "WEIGHT")]
    undesirable_weight: f64,
    /// Embed: which tokens make the vector of a text [default: mean]
    #[arg(long, value_enum)]
    pooling: Pooling,
    /// Embed: divides cosines; lower looks at the nearest wrong texts alone [default: 0.05, a scale of 20]
    #[arg(long, value_name = "T")]
    temperature: f64,
    /// Which weights are trained [default: lora]
    #[arg(long, value_enum)]
    method: Method,
    /// With --method full: learn through the rounding of this type of file (q8_0 q4_0 q4_k_m q6_k ...)
    #[arg(long, value_name = "TYPE")]
    qat: String,
    /// Rank of the adapters [default: 16]
    #[arg(long, value_name = "R")]
    rank: usize,
    /// Scale of the adapters is ALPHA / R [default: twice the rank]
    #[arg(long)]
    alpha: f64,
    /// Share of adapter inputs dropped while training [default: 0]
    #[arg(long, value_name = "P")]
    dropout: f32,
    /// Noise on the embeddings while training, NEFTune's ALPHA; 5 is usual [default: 0, off]
    #[arg(long, value_name = "ALPHA")]
    neftune: f32,
    /// Modules that get an adapter, by comma [default: every projection; ia3: keys, values, last of the feed-forward]
    #[arg(long, value_delimiter = ',', value_name = "NAMES")]
    targets: Vec<String>,
    /// Layers that get adapters, such as 4-11 or 0,2,8-9 [default: all]
    #[arg(long, value_name = "RANGE")]
    layers: Layers,
    /// Where the low-rank pairs start [default: lora]
    #[arg(long, value_enum)]
    init: Init,
    /// LoRA+: B and vectors learn at RATIO times --lr; 16 in its paper [default: 1]
    #[arg(long, value_name = "RATIO")]
    lora_plus_ratio: f64,
    /// Modules trained and saved whole beside adapters and head, by comma, such as embed_tokens [default: none]
    #[arg(long, value_delimiter = ',', value_name = "NAMES")]
    modules_to_save: Vec<String>,
    /// Passes over the data [default: 3; preference 1]
    #[arg(long, conflicts_with = "steps")]
    epochs: f64,
    /// Optimizer steps, instead of epochs
    #[arg(long)]
    steps: usize,
    /// Rows in one micro-batch; pairs of preference, anchors of embed [default: 16; preference 8, embed 64]
    #[arg(long)]
    batch: usize,
    /// Instead of rows: as many rows as have at most N tokens together
    #[arg(long, value_name = "N", conflicts_with = "batch")]
    batch_tokens: usize,
    /// Compute rows one at a time instead of end to end: the same result, slower
    #[arg(long, num_args = 0, default_missing_value = "true")]
    no_pack: bool,
    /// Micro-batches in one optimizer step [default: 1]
    #[arg(long)]
    accumulate: usize,
    /// Longest row, in tokens [default: 256, or the model's context]
    #[arg(long, value_name = "TOKENS")]
    max_len: usize,
    /// What to do with longer rows [default: error; txt files are cut in windows]
    #[arg(long, value_enum)]
    truncate: Truncate,
    /// Peak learning rate
    #[arg(long)]
    lr: f64,
    /// Course of the learning rate [default: linear]
    #[arg(long, value_enum)]
    schedule: Schedule,
    /// Warm-up: a share of the steps below 1, or a number of steps [default: 0.06]
    #[arg(long)]
    warmup: f64,
    /// Weight decay of AdamW [default: 0.01]
    #[arg(long)]
    weight_decay: f64,
    /// Largest global norm of the gradient; 0 is off [default: 1]
    #[arg(long)]
    clip: f64,
    /// AdamW's beta 1 [default: 0.9]
    #[arg(long)]
    beta1: f64,
    /// AdamW's beta 2 [default: 0.999]
    #[arg(long)]
    beta2: f64,
    /// AdamW's epsilon [default: 1e-8]
    #[arg(long)]
    eps: f64,
    /// Evaluate every N steps [default: once an epoch]
    #[arg(long, value_name = "N")]
    eval_every: usize,
    /// Stop after N evaluations without a better loss; the best adapter is kept [default: never]
    #[arg(long, value_name = "N")]
    patience: usize,
    /// Checkpoint every N steps [default: once an epoch]
    #[arg(long, value_name = "N")]
    save_every: usize,
    /// Memory that the run may take, such as 2GiB: activations are computed again and batches in parts until it fits, or
    /// the run is refused [default: no bound]
    #[arg(long, value_name = "SIZE")]
    mem: Mem,
    /// Time that the run may take, such as 20m: the learning rate falls to its end within it [default: no bound]
    #[arg(long, value_name = "TIME")]
    budget: Time,
    /// Seed of order, initial weights, dropout and noise [default: 0]
    #[arg(long)]
    seed: u64,
}

impl Settings {
    /// Reads a `tune.toml` that a person wrote.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let text =
            std::fs::read_to_string(path).map_err(|e| BadInput(format!("cannot read {}: {e}", path.display())))?;
        toml::from_str(&text).map_err(|e| BadInput(format!("{}: {e}", path.display())).into())
    }
}

/// Every value resolved.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub struct TuneConfig {
    pub task: TaskName,
    /// For answers that are preferred to others.
    pub preference: Option<Preference>,
    /// For vectors.
    pub embed: Option<Embed>,
    pub method: Method,
    /// Name of a mix.
    pub qat: Option<String>,
    pub rank: usize,
    pub alpha: f64,
    pub dropout: f32,
    pub neftune: f32,
    pub targets: Vec<String>,
    pub layers: Option<Layers>,
    pub init: Init,
    pub lora_plus_ratio: f64,
    pub modules_to_save: Vec<String>,
    pub epochs: Option<f64>,
    pub steps: Option<usize>,
    pub batch: usize,
    /// Tokens of a micro-batch, instead of rows.
    pub batch_tokens: Option<usize>,
    pub no_pack: bool,
    pub accumulate: usize,
    pub max_len: usize,
    pub truncate: Truncate,
    pub lr: f64,
    pub schedule: Schedule,
    pub warmup: f64,
    pub weight_decay: f64,
    pub clip: f64,
    pub beta1: f64,
    pub beta2: f64,
    pub eps: f64,
    pub eval_every: Option<usize>,
    pub patience: Option<usize>,
    pub save_every: Option<usize>,
    /// Bytes.
    pub mem: Option<u64>,
    /// Seconds.
    pub budget: Option<f64>,
    pub seed: u64,
}

impl TuneConfig {
    /// Fills in what was not given, and refuses what cannot be.
    pub fn resolve(settings: &Settings, task: TaskName, model: &Config) -> anyhow::Result<Self> {
        let s = settings.clone();
        let method = s.method.unwrap_or(Method::Lora);
        let rank = s.rank.unwrap_or(16);
        let config = Self {
            task,
            preference: task::preference(&s, task),
            embed: task::embed(&s, task),
            method,
            qat: s.qat,
            rank,
            alpha: s.alpha.unwrap_or(2.0 * rank as f64),
            dropout: s.dropout.unwrap_or(0.0),
            neftune: s.neftune.unwrap_or(0.0),
            targets: s.targets.unwrap_or_else(|| match method {
                Method::Ia3 => method::ia3_targets(model.family.model_type()),
                _ => model.family.projections().iter().map(|n| (*n).to_owned()).collect(),
            }),
            layers: s.layers,
            init: s.init.unwrap_or_default(),
            lora_plus_ratio: s.lora_plus_ratio.unwrap_or(1.0),
            modules_to_save: s.modules_to_save.unwrap_or_default(),
            epochs: s.steps.is_none().then(|| s.epochs.unwrap_or(task::epochs(task))),
            steps: s.steps,
            batch: s.batch.unwrap_or(task::batch(task)),
            batch_tokens: s.batch_tokens,
            no_pack: s.no_pack.unwrap_or(false),
            accumulate: s.accumulate.unwrap_or(1),
            max_len: s.max_len.unwrap_or(256).min(model.max_position_embeddings),
            truncate: s.truncate.unwrap_or(Truncate::Error),
            lr: s.lr.unwrap_or(task::lr(task, method, model)),
            schedule: s.schedule.unwrap_or(Schedule::Linear),
            warmup: s.warmup.unwrap_or(0.06),
            weight_decay: s.weight_decay.unwrap_or(0.01),
            clip: s.clip.unwrap_or(1.0),
            beta1: s.beta1.unwrap_or(0.9),
            beta2: s.beta2.unwrap_or(0.999),
            eps: s.eps.unwrap_or(1e-8),
            eval_every: s.eval_every,
            patience: s.patience,
            save_every: s.save_every,
            mem: s.mem.map(|m| m.0),
            budget: s.budget.map(|b| b.0),
            seed: s.seed.unwrap_or(0),
        };
        if let Some(given) = settings.max_len
            && given > model.max_position_embeddings
        {
            crate::bad_input!("--max-len {given}, but the model has {} positions", model.max_position_embeddings);
        }
        if config.qat.is_some() && method != Method::Full {
            crate::bad_input!(
                "--qat needs --method full: adapters are merged before the file is rounded, so they cannot learn through it"
            );
        }
        config.check()?;
        config.check_method(settings)?;
        config.check_task(settings)?;
        Ok(config)
    }

    fn check(&self) -> anyhow::Result<()> {
        for (name, value, ok) in [
            ("rank", self.rank as f64, self.rank > 0),
            ("alpha", self.alpha, self.alpha.is_finite()),
            ("dropout", f64::from(self.dropout), (0.0..1.0).contains(&self.dropout)),
            ("neftune", f64::from(self.neftune), self.neftune >= 0.0 && self.neftune.is_finite()),
            ("batch", self.batch as f64, self.batch > 0),
            ("batch-tokens", self.batch_tokens.unwrap_or(1) as f64, self.batch_tokens != Some(0)),
            ("accumulate", self.accumulate as f64, self.accumulate > 0),
            ("max-len", self.max_len as f64, self.max_len > 1),
            ("epochs", self.epochs.unwrap_or(1.0), self.epochs.is_none_or(|e| e > 0.0 && e.is_finite())),
            ("steps", self.steps.unwrap_or(1) as f64, self.steps != Some(0)),
            ("lora-plus-ratio", self.lora_plus_ratio, self.lora_plus_ratio > 0.0 && self.lora_plus_ratio.is_finite()),
            ("lr", self.lr, self.lr > 0.0 && self.lr.is_finite()),
            ("warmup", self.warmup, self.warmup >= 0.0 && self.warmup.is_finite()),
            ("weight-decay", self.weight_decay, self.weight_decay >= 0.0),
            ("clip", self.clip, self.clip >= 0.0),
            ("beta1", self.beta1, (0.0..1.0).contains(&self.beta1)),
            ("beta2", self.beta2, (0.0..1.0).contains(&self.beta2)),
            ("eps", self.eps, self.eps > 0.0),
            ("eval-every", self.eval_every.unwrap_or(1) as f64, self.eval_every != Some(0)),
            ("save-every", self.save_every.unwrap_or(1) as f64, self.save_every != Some(0)),
        ] {
            if !ok {
                crate::bad_input!("--{name} {value} cannot be");
            }
        }
        Ok(())
    }

    /// Whether something is trained beside the weights of the base.
    pub fn adapts(&self) -> bool {
        self.method != Method::Full
    }

    /// How large a micro-batch is.
    pub fn size(&self) -> Size {
        self.batch_tokens.map_or(Size::Rows(self.batch), Size::Tokens)
    }

    /// As [`Settings`] again, every value given: what `tune.toml` of a RUN holds.
    pub fn to_settings(&self) -> Settings {
        let c = self.clone();
        let ranked = c.method != Method::Ia3;
        Settings {
            task: Some(c.task),
            preference: c.preference.map(|p| p.kind),
            beta: c.preference.map(|p| p.beta),
            label_smoothing: c.preference.filter(|p| p.kind == PreferenceKind::Dpo).map(|p| p.label_smoothing),
            rpo_alpha: c.preference.filter(|p| p.kind == PreferenceKind::Dpo).map(|p| p.rpo_alpha),
            desirable_weight: c.preference.filter(|p| p.kind == PreferenceKind::Kto).map(|p| p.desirable_weight),
            undesirable_weight: c.preference.filter(|p| p.kind == PreferenceKind::Kto).map(|p| p.undesirable_weight),
            pooling: c.embed.map(|e| e.pooling),
            temperature: c.embed.map(|e| e.temperature),
            method: Some(c.method),
            qat: c.qat,
            rank: ranked.then_some(c.rank),
            alpha: ranked.then_some(c.alpha),
            dropout: ranked.then_some(c.dropout),
            neftune: Some(c.neftune),
            targets: Some(c.targets),
            layers: c.layers,
            init: c.method.has_pairs().then_some(c.init),
            lora_plus_ratio: c.method.has_pairs().then_some(c.lora_plus_ratio),
            modules_to_save: Some(c.modules_to_save).filter(|names| !names.is_empty()),
            epochs: c.epochs,
            steps: c.steps,
            batch: c.batch_tokens.is_none().then_some(c.batch),
            batch_tokens: c.batch_tokens,
            no_pack: Some(c.no_pack),
            accumulate: Some(c.accumulate),
            max_len: Some(c.max_len),
            truncate: Some(c.truncate),
            lr: Some(c.lr),
            schedule: Some(c.schedule),
            warmup: Some(c.warmup),
            weight_decay: Some(c.weight_decay),
            clip: Some(c.clip),
            beta1: Some(c.beta1),
            beta2: Some(c.beta2),
            eps: Some(c.eps),
            eval_every: c.eval_every,
            patience: c.patience,
            save_every: c.save_every,
            mem: c.mem.map(Mem),
            budget: c.budget.map(Time),
            seed: Some(c.seed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_win_over_the_file_and_unknown_keys_are_refused() {
        let file: Settings = toml::from_str("rank = 4\nlr = 0.1\nmax-len = 32").unwrap();
        let flags = Settings { rank: Some(8), ..Settings::default() };
        let both = flags.over(file);
        assert_eq!((both.rank, both.lr, both.max_len), (Some(8), Some(0.1), Some(32)));
        let error = toml::from_str::<Settings>("learning_rate = 0.1").unwrap_err().to_string();
        assert!(error.contains("unknown field `learning_rate`"), "{error}");
    }

    #[test]
    fn a_resumed_run_names_the_flag_that_differs() {
        let saved = Settings { rank: Some(4), lr: Some(0.1), ..Settings::default() };
        let now = Settings { rank: Some(8), ..Settings::default() };
        assert_eq!(now.difference(&saved).unwrap(), ("--rank".into(), "8".into(), "4".into()));
        assert_eq!(Settings { lr: Some(0.1), ..Settings::default() }.difference(&saved), None);
    }
}
