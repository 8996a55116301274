//! Why each setting is what it is: given, or a default with its reason.

use super::config::{Method, PreferenceKind, Settings, TaskName, TuneConfig};
use crate::model::config::Config;

/// A setting as it will be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reason {
    /// As the flag is called.
    pub name: &'static str,
    /// Its value.
    pub value: String,
    /// `given`, or why this default.
    pub why: &'static str,
}

/// Every setting that shapes what is learned, in the order of `--help`.
pub fn reasons(given: &Settings, c: &TuneConfig, model: &Config) -> Vec<Reason> {
    let full = c.method == Method::Full;
    let encoder = !model.family.is_decoder();
    let mut out = Vec::new();
    let mut add = |name: &'static str, value: String, is_given: bool, why: &'static str| {
        out.push(Reason { name, value, why: if is_given { "given" } else { why } });
    };
    add("task", c.task.to_string(), given.task.is_some(), "what the fields of the rows say");
    if let Some(p) = &c.preference {
        let why = match p.kind {
            PreferenceKind::Dpo => "pairs, held near the base: the usual choice",
            PreferenceKind::Orpo => "pairs and the chosen answers at once: no reference is read",
            PreferenceKind::Kto => "answers that are wanted or not, one by one: what a `label` says",
        };
        add("preference", p.kind.to_string(), given.preference.is_some(), why);
        add("beta", p.beta.to_string(), given.beta.is_some(), "what the authors of each loss used most");
        match p.kind {
            PreferenceKind::Dpo => {
                let smooth = given.label_smoothing.is_some();
                add("label-smoothing", p.label_smoothing.to_string(), smooth, "off: the pairs are taken to be right");
                add(
                    "rpo-alpha",
                    p.rpo_alpha.to_string(),
                    given.rpo_alpha.is_some(),
                    "off: the margin alone is learned",
                );
            }
            PreferenceKind::Kto => {
                let weighs = "as much as the other side; raise it where one has fewer rows";
                add("desirable-weight", p.desirable_weight.to_string(), given.desirable_weight.is_some(), weighs);
                add("undesirable-weight", p.undesirable_weight.to_string(), given.undesirable_weight.is_some(), weighs);
            }
            PreferenceKind::Orpo => {}
        }
    }
    if let Some(e) = &c.embed {
        let (pooling, t) = (format!("{:?}", e.pooling).to_lowercase(), e.temperature.to_string());
        add(
            "pooling",
            pooling,
            given.pooling.is_some(),
            "the base's own; or every token has a say, as in most retrieval models",
        );
        add("temperature", t, given.temperature.is_some(), "a scale of 20, as sentence-transformers has it");
    }
    add(
        "method",
        format!("{:?}", c.method).to_lowercase(),
        given.method.is_some(),
        "trains about a hundredth of the weights, and what it learns can be taken off again",
    );
    if !full {
        if c.method.has_pairs() {
            add("rank", c.rank.to_string(), given.rank.is_some(), "enough for a task of some thousand rows");
            add(
                "alpha",
                c.alpha.to_string(),
                given.alpha.is_some(),
                "twice the rank: adapters count double, as is usual",
            );
        }
        let why_targets = match c.method {
            Method::Ia3 => "keys, values and what the feed-forward takes: those that its authors scale",
            _ => "every projection: the MLP's teach most, and attention alone learns less at the same size",
        };
        add("targets", c.targets.join(","), given.targets.is_some(), why_targets);
        add("dropout", c.dropout.to_string(), given.dropout.is_some(), "off: early stopping guards against too much");
    }
    add("neftune", c.neftune.to_string(), given.neftune.is_some(), "off: it helps chats, and hurts short labels");
    let epochs = c.epochs.map_or_else(|| "-".to_owned(), |e| e.to_string());
    match c.steps {
        Some(steps) => add("steps", steps.to_string(), true, ""),
        None => add(
            "epochs",
            epochs,
            given.epochs.is_some(),
            match c.task {
                TaskName::Preference => "once: a preference known by heart spoils the answers",
                _ => "small sets are seen a few times before they are known by heart",
            },
        ),
    }
    match c.batch_tokens {
        Some(n) => add("batch-tokens", n.to_string(), true, ""),
        None => {
            let why = match c.task {
                TaskName::Preference => "pairs, each of two rows",
                TaskName::Embed => {
                    "the other texts of a batch are what an anchor is told from: it is never cut for that"
                }
                _ => "low rank learns worse in large batches",
            };
            add("batch", c.batch.to_string(), given.batch.is_some(), why);
        }
    }
    add("accumulate", c.accumulate.to_string(), given.accumulate.is_some(), "one micro-batch is one step");
    add(
        "max-len",
        c.max_len.to_string(),
        given.max_len.is_some(),
        "256, or the model's context: longer rows are refused, not cut in silence",
    );
    let why_lr = match (c.method, encoder) {
        _ if c.task == TaskName::Preference => "the answers are there already: a rate for new tasks would spoil them",
        (Method::Full, _) => "every weight moves: a tenth of what low rank bears",
        (Method::Ia3, _) => "a vector has few weights, and each starts at one",
        (_, true) => "encoders with low rank: what the GLUE recipes of LoRA use",
        (_, false) if model.hidden_size <= 512 => "a small model: narrow layers bear a higher rate",
        _ => "low rank wants about ten times the rate of full tuning",
    };
    add("lr", c.lr.to_string(), given.lr.is_some(), why_lr);
    add(
        "schedule",
        format!("{:?}", c.schedule).to_lowercase(),
        given.schedule.is_some(),
        "falls to zero: the last steps settle what the first ones found",
    );
    add(
        "warmup",
        c.warmup.to_string(),
        given.warmup.is_some(),
        "AdamW's second moment needs some steps to be worth something",
    );
    add(
        "weight-decay",
        c.weight_decay.to_string(),
        given.weight_decay.is_some(),
        "a little, as AdamW's authors have it",
    );
    add("clip", c.clip.to_string(), given.clip.is_some(), "one odd row cannot throw the run off");
    add("seed", c.seed.to_string(), given.seed.is_some(), "the same bytes each time");
    out
}
