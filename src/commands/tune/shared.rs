//! What folds and the trials of a sweep have in common: rows that were read once, and one base in memory.

use super::{Adapted, Read, TuneArgs, adapter, prepare, read_data, run_file, settings};
use crate::data::batch::Row;
use crate::model::network::{Network, Task};
use crate::model::open::{Opened, Place};
use crate::model::peft::AdapterConfig;
use crate::tune::config::{Init, Method, Settings, TaskName, TuneConfig};
use crate::tune::memory::{Activations, Plan, Weights};
use crate::tune::run_folder::RunFile;
use candle_core::{Device, Tensor};
use std::collections::BTreeMap;

/// A base, and what is to be taught on it several times.
pub struct Shared {
    /// The base's files.
    pub opened: Opened,
    /// What was given, by flags, by `--config`, or by the run that goes on.
    pub settings: Settings,
    /// Whether the base is rounded to NF4.
    pub nf4: bool,
    /// Rows, and those that a single run would hold out.
    pub read: Read,
}

impl Shared {
    /// Opens the base and reads DATA. `flag` is what asks for several runs.
    ///
    /// # Errors
    /// A base or a method of which only one run can be made; what DATA has.
    pub fn open(args: &TuneArgs, flag: &str, saved: Option<&RunFile>) -> anyhow::Result<Self> {
        let mut settings = settings(args, saved)?;
        if settings.method == Some(Method::Full) {
            crate::bad_input!(
                "{flag} and --method full: each run would need every weight anew; {flag} trains adapters over one base"
            );
        }
        if let Some(dir) = args.init_adapter.as_deref() {
            settings = settings.with_adapter(&AdapterConfig::read(dir)?)?;
        }
        let mut opened = Opened::open(&args.model, settings.seed.unwrap_or(0))?;
        if matches!(Place::of(&args.model)?, Place::Config(_)) || opened.adapter.is_some() {
            crate::bad_input!("{}: {flag} needs a base with weights and without an adapter", args.model);
        }
        let nf4 = settings.method == Some(Method::Qlora) && opened.weights.metadata().is_none();
        if nf4 {
            opened.weights = opened.weights.in_nf4();
        }
        let read = read_data(args, &opened, &settings, saved)?;
        if matches!(read.task, TaskName::Preference | TaskName::Embed) {
            crate::bad_input!(
                "{flag} and --task {}: not there yet, for rows that are learned from each other; give --val, and one run",
                read.task
            );
        }
        Ok(Self { opened, settings, nf4, read })
    }

    /// The head that the rows ask for.
    fn task(&self) -> Task {
        match self.read.task {
            TaskName::Classify => Task::Classify(self.read.labels.clone()),
            TaskName::Answer if !self.opened.config.family.is_decoder() => Task::Span,
            _ => Task::Generate,
        }
    }

    /// Reads the base's weights.
    ///
    /// # Errors
    /// What the checkpoint has.
    pub fn network(&self, seed: u64) -> anyhow::Result<Network> {
        Network::load(&self.opened.config, &self.opened.weights, self.task(), seed, &Device::Cpu)
    }

    /// What weights a run of these settings reads and trains.
    ///
    /// # Errors
    /// What the settings have.
    pub fn weights(&self, args: &TuneArgs, config: &TuneConfig) -> anyhow::Result<Weights> {
        let adapter = adapter(args, config)?;
        Ok(Weights::count(
            &self.opened.config,
            &self.opened.weights,
            self.read.task,
            self.read.labels.len(),
            adapter.as_ref(),
        ))
    }

    /// What a run on these rows takes.
    ///
    /// # Errors
    /// A plan over `--mem`.
    pub fn plan(&self, args: &TuneArgs, config: &TuneConfig, train: &[Row], val: &[Row]) -> anyhow::Result<Plan> {
        let c = &self.opened.config;
        let text = self.opened.text.tokenizer_json.as_ref().map_or(0, Vec::len);
        let language = !matches!((self.read.task, c.family.is_decoder()), (TaskName::Classify, _) | (_, false));
        let activations = Activations::new(c, language, config.no_pack);
        Plan::new(config, activations, &self.weights(args, config)?, (train, val), text)
    }

    /// `tune.toml` of a run that holds out these rows.
    ///
    /// # Errors
    /// Files that cannot be read again, to be hashed.
    pub fn file(&self, args: &TuneArgs, config: &TuneConfig, held_out: &[usize]) -> anyhow::Result<RunFile> {
        let mut file = run_file(args, &self.opened, config, &self.read, self.nf4)?;
        file.run.held_out = held_out.to_vec();
        Ok(file)
    }

    /// The tokenizer, for whoever reads the run's folder.
    ///
    /// # Errors
    /// A full disk.
    pub fn write_text(&self, folder: &std::path::Path) -> anyhow::Result<()> {
        crate::commands::merge::write_text_files(&self.opened, folder)
    }

    /// Fresh adapters on the network, in the place of those that were there.
    ///
    /// # Errors
    /// Targets that no module is called.
    pub fn adapt(&self, network: &mut Network, args: &TuneArgs, config: &TuneConfig) -> anyhow::Result<Adapted> {
        if config.init == Init::Pissa && network.linears().iter().any(|l| l.adapter.is_some()) {
            anyhow::bail!("pissa would take its part out of the base twice"); // callers refuse it
        }
        network.linears().into_iter().for_each(|l| l.adapter = None);
        match prepare(network, args, &self.opened, config, adapter(args, config)?)? {
            Some(adapted) => Ok(adapted),
            None => anyhow::bail!("nothing was adapted"),
        }
    }

    /// Whether a network of these rows can be written as GGUF.
    pub fn can_leave(&self) -> bool {
        crate::merge::can_leave(&self.opened.config, Some(&self.task()))
    }
}

/// What is trained, as it stands.
pub fn snapshot(network: &mut Network) -> BTreeMap<String, Tensor> {
    let mut out = BTreeMap::new();
    network.trained(&mut |name, tensor| {
        out.insert(name, tensor.clone());
    });
    out
}

/// Puts back what a snapshot holds; a step of the optimizer makes new tensors, so that those of the snapshot are as they were.
pub fn restore(network: &mut Network, saved: &BTreeMap<String, Tensor>) {
    for _ in 0..2 {
        // twice: tied tensors follow on the second visit
        network.trained(&mut |name, tensor| {
            if let Some(kept) = saved.get(&name) {
                *tensor = kept.clone();
            }
        });
    }
}
