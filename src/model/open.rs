//! MODEL, as the contract spells it: a Hugging Face folder, a RUN folder, a `.gguf` file, an ONNX folder, or `nano`.

use super::config::Config;
use super::layers::contrast::Pooling;
use super::load::{Checkpoint, Random};
use super::network::{Network, Task};
use super::peft::{self, AdapterConfig};
use crate::demo::nano;
use crate::error::BadInput;
use crate::tune::run_folder::{RunFile, is_run};
use candle_core::Device;
use edgeft_runtime::format::bundle::Bundle;
use edgeft_runtime::format::gguf::Gguf;
use serde_json::Value;
use std::path::{Path, PathBuf};

/// Where a MODEL is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// The embedded model.
    Nano,
    /// A Hugging Face folder.
    Folder(PathBuf),
    /// A RUN folder.
    Run(PathBuf),
    /// A GGUF file.
    Gguf(PathBuf),
    /// A folder with an ONNX file, and without a Hugging Face checkpoint.
    Onnx(PathBuf),
    /// A `config.json` alone: random weights.
    Config(PathBuf),
}

impl Place {
    /// # Errors
    /// [`BadInput`] when nothing of the kind is there.
    pub fn of(model: &str) -> anyhow::Result<Self> {
        let path = PathBuf::from(model);
        // Always the embedded model: a folder of that name is ./nano.
        if model == "nano" {
            return Ok(Self::Nano);
        }
        if path.is_dir() {
            if is_run(&path) {
                return Ok(Self::Run(path));
            }
            let weights = ["model.safetensors", "model.safetensors.index.json"].iter().any(|f| path.join(f).is_file());
            if holds_onnx(&path) && !weights {
                return Ok(Self::Onnx(path));
            }
            if path.join("config.json").is_file() {
                return Ok(Self::Folder(path));
            }
            if Bundle::is_at(&path) {
                crate::bad_input!("{model}: a bundle serves itself, by its run.sh; or give the .gguf file inside");
            }
            crate::bad_input!(
                "{model}: no config.json (a model folder), no tune.toml (a RUN) and no .onnx file (an ONNX folder) in it"
            );
        }
        if !path.exists() {
            crate::bad_input!("{model}: no such file or folder; MODEL is a folder, a .gguf file, a RUN, or `nano`");
        }
        match path.extension().and_then(|e| e.to_str()) {
            Some("gguf") => Ok(Self::Gguf(path)),
            Some("json") => Ok(Self::Config(path)),
            _ => crate::bad_input!("{model}: not a model folder, a .gguf file, a RUN, or `nano`"),
        }
    }
}

/// Whether a folder has a file that ends in `.onnx`.
pub fn holds_onnx(dir: &Path) -> bool {
    let mut entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries.any(|entry| entry.path().extension().is_some_and(|e| e == "onnx"))
}

/// Text side of a model folder.
#[derive(Debug, Clone, Default)]
pub struct TextFiles {
    /// `tokenizer.json`.
    pub tokenizer_json: Option<Vec<u8>>,
    /// `tokenizer_config.json`.
    pub tokenizer_config: Option<Value>,
    /// Jinja source of the chat template.
    pub chat_template: Option<String>,
}

impl TextFiles {
    fn read(dir: &Path) -> anyhow::Result<Self> {
        let optional = |name: &str| -> anyhow::Result<Option<Vec<u8>>> {
            let path = dir.join(name);
            if !path.is_file() {
                return Ok(None);
            }
            Ok(Some(std::fs::read(&path).map_err(|e| BadInput(format!("cannot read {}: {e}", path.display())))?))
        };
        let tokenizer_config = optional("tokenizer_config.json")?
            .map(|bytes| {
                serde_json::from_slice::<Value>(&bytes).map_err(|e| {
                    BadInput(format!("{}: not valid JSON: {e}", dir.join("tokenizer_config.json").display()))
                })
            })
            .transpose()?;
        let chat_template = match optional("chat_template.jinja")? {
            Some(bytes) => Some(
                String::from_utf8(bytes)
                    .map_err(|_| BadInput(format!("{}: not UTF-8", dir.join("chat_template.jinja").display())))?,
            ),
            None => tokenizer_config.as_ref().and_then(|c| c["chat_template"].as_str().map(str::to_owned)),
        };
        Ok(Self { tokenizer_json: optional("tokenizer.json")?, tokenizer_config, chat_template })
    }

    /// The text side of a GGUF file; tokenizer.json where the file carries it whole, as ours do.
    fn of_gguf(gguf: &Gguf) -> Self {
        let text = |key: &str| gguf.str(key).ok().map(str::to_owned);
        let tokens = gguf.strings("tokenizer.ggml.tokens").unwrap_or_default();
        let mut config = serde_json::Map::new();
        for (key, name) in [("bos", "bos"), ("eos", "eos"), ("unknown", "unk"), ("padding", "pad"), ("mask", "mask")] {
            let id = gguf.u32(&format!("tokenizer.ggml.{key}_token_id")).ok();
            if let Some(token) = id.and_then(|id| tokens.get(id as usize)) {
                config.insert(format!("{name}_token"), token.as_str().into());
            }
        }
        let tokenizer_json = text("tokenizer.huggingface.json").map(String::into_bytes);
        Self {
            tokenizer_config: tokenizer_json.is_some().then(|| config.into()),
            tokenizer_json,
            chat_template: text("tokenizer.chat_template"),
        }
    }

    /// Text of a special token such as `bos_token`: a string, or an object with `content`.
    pub fn special(&self, key: &str) -> Option<&str> {
        let value = &self.tokenizer_config.as_ref()?[key];
        value.as_str().or_else(|| value["content"].as_str())
    }
}

/// A model opened for learning, merging or the candle engine.
pub struct Opened {
    /// As the user named it.
    pub name: String,
    /// Shape of the base.
    pub config: Config,
    /// `config.json` of the base.
    pub config_json: Value,
    /// Weights of the base.
    pub weights: Checkpoint,
    /// Tokenizer and template.
    pub text: TextFiles,
    /// What the run was, when the model is a RUN.
    pub run: Option<RunFile>,
    /// Adapter over the base.
    pub adapter: Option<PathBuf>,
    /// How a folder of sentence-transformers makes one vector of a text.
    pub pooling: Option<Pooling>,
    /// Files that make up the base, to be hashed; empty for `nano`.
    pub base_path: Option<PathBuf>,
}

impl Opened {
    /// Opens a Hugging Face folder, a RUN, a GGUF file, `nano` or a bare `config.json` (random weights from `seed`).
    ///
    /// # Errors
    /// [`BadInput`] for an ONNX folder (it opens in the runtime), and for all that cannot be read.
    pub fn open(model: &str, seed: u64) -> anyhow::Result<Self> {
        match Place::of(model)? {
            Place::Nano => Self::nano(),
            Place::Folder(dir) => Self::folder(model, &dir),
            Place::Config(file) => {
                let dir = file.parent().unwrap_or(Path::new("")).to_owned();
                let config = Config::read(&file)?;
                let random = Random { seed, deviation: config.initializer_range, n_layers: config.num_hidden_layers };
                Ok(Self {
                    name: model.to_owned(),
                    config,
                    config_json: read_json(&file)?,
                    weights: Checkpoint::random(random),
                    text: TextFiles::read(&dir)?,
                    run: None,
                    adapter: None,
                    pooling: None,
                    base_path: Some(file),
                })
            }
            Place::Run(dir) => {
                let run = RunFile::read(&dir)?;
                if dir.join("config.json").is_file() {
                    let mut opened = Self::folder(model, &dir)?; // --method full: the RUN is itself a model folder
                    opened.run = Some(run);
                    return Ok(opened);
                }
                if let Some(k) = run.run.folds {
                    crate::bad_input!("{model}: {k} folds, each a RUN of its own; give one, such as {model}/fold-1");
                }
                let mut opened = Self::open(&run.run.model, seed)?;
                if opened.adapter.is_some() {
                    crate::bad_input!(
                        "{model}: its base {} is a RUN with an adapter; merge that one first",
                        run.run.model
                    );
                }
                if !dir.join("adapter_model.safetensors").is_file() {
                    crate::bad_input!(
                        "{model}: no adapter_model.safetensors: the run is not finished; go on with `edgeft tune --out {model} --resume`"
                    );
                }
                opened.name = model.to_owned();
                opened.adapter = Some(dir);
                opened.under(run)
            }
            Place::Gguf(path) => Self::gguf(model, &path),
            Place::Onnx(path) => crate::bad_input!(
                "{}: an ONNX folder can be run, but not tuned, merged or converted; give the Hugging Face folder it was made from",
                path.display()
            ),
        }
    }

    fn folder(model: &str, dir: &Path) -> anyhow::Result<Self> {
        let path = dir.join("config.json");
        Ok(Self {
            name: model.to_owned(),
            config: Config::read(&path)?,
            config_json: read_json(&path)?,
            weights: Checkpoint::open(dir)?,
            text: TextFiles::read(dir)?,
            run: None,
            adapter: None,
            pooling: pooling(dir)?,
            base_path: Some(dir.to_owned()),
        })
    }

    fn gguf(model: &str, file: &Path) -> anyhow::Result<Self> {
        let weights = Checkpoint::gguf(file)?;
        let bad = |e: String| BadInput(format!("{}: {e}", file.display()));
        let divisors = weights.rope_divisors();
        let Some(metadata) = weights.metadata() else { unreachable!("a checkpoint of a GGUF file") };
        let config_json = super::gguf::config::of(metadata, divisors).map_err(bad)?;
        Ok(Self {
            name: model.to_owned(),
            config: Config::from_json(&config_json).map_err(bad)?,
            text: TextFiles::of_gguf(metadata),
            config_json,
            weights,
            run: None,
            adapter: None,
            pooling: None,
            base_path: Some(file.to_owned()),
        })
    }

    fn nano() -> anyhow::Result<Self> {
        let config_json: Value = serde_json::from_str(nano::CONFIG)?;
        Ok(Self {
            name: "nano".into(),
            config: Config::from_json(&config_json).map_err(BadInput)?,
            config_json,
            weights: Checkpoint::embedded("nano/model.safetensors", nano::WEIGHTS)?,
            text: TextFiles {
                tokenizer_json: Some(nano::TOKENIZER.as_bytes().to_vec()),
                tokenizer_config: Some(serde_json::from_str(nano::TOKENIZER_CONFIG)?),
                chat_template: Some(crate::demo::tokenizer::CHAT_TEMPLATE.to_owned()),
            },
            run: None,
            adapter: None,
            pooling: None,
            base_path: None,
        })
    }

    /// The same model under an adapter: a RUN's folder, or one of PEFT's. A RUN brings its task and labels along.
    ///
    /// # Errors
    /// When the model already has an adapter, or the folder holds none.
    pub fn with_adapter(mut self, adapter: &Path) -> anyhow::Result<Self> {
        if let Some(own) = &self.adapter {
            crate::bad_input!("{}: already under the adapter {}; give its base", self.name, own.display());
        }
        if !adapter.join("adapter_config.json").is_file() {
            crate::bad_input!("{}: no adapter_config.json; an adapter folder holds it", adapter.display());
        }
        self.adapter = Some(adapter.to_owned());
        if is_run(adapter) { self.under(RunFile::read(adapter)?) } else { Ok(self) }
    }

    /// The base as the run saw it.
    fn under(mut self, run: RunFile) -> anyhow::Result<Self> {
        if run.rounds_to_nf4()? {
            self.weights = self.weights.in_nf4();
        }
        self.run = Some(run);
        Ok(self)
    }

    /// What the model answers, as its run or its `architectures` say.
    pub fn task(&self) -> anyhow::Result<Option<Task>> {
        if let Some(run) = &self.run {
            return Ok(Some(task_of_run(run, self.config.family.is_decoder())));
        }
        let architecture = self.config.architecture.as_deref().unwrap_or_default();
        Ok(if architecture.ends_with("ForSequenceClassification") {
            Some(Task::Classify(self.config.labels.clone()))
        } else if architecture.ends_with("ForQuestionAnswering") {
            Some(Task::Span)
        } else if let Some(pooling) = self.pooling {
            Some(Task::Embed(pooling))
        } else if self.config.family.is_decoder() {
            Some(Task::Generate)
        } else {
            None
        })
    }

    /// The network with its adapter, for evaluation. `task` wins over what the model says of itself.
    pub fn network(&self, task: Option<Task>, seed: u64) -> anyhow::Result<Network> {
        let Some(task) = task.or(self.task()?) else {
            crate::bad_input!(
                "{}: an encoder without a head; tune it first (`edgeft tune --task classify`), or take its vectors (--task embed)",
                self.name
            );
        };
        let mut network = Network::load(&self.config, &self.weights, task, seed, &Device::Cpu)?;
        if let Some(dir) = &self.adapter {
            let adapter = AdapterConfig::read(dir)?;
            peft::attach(&mut network, &adapter, seed)?;
            peft::load_into(&mut network, dir)?;
        }
        Ok(network)
    }
}

/// The task that a run taught.
pub fn task_of_run(run: &RunFile, decoder: bool) -> Task {
    use crate::tune::config::TaskName;
    match run.tune.task {
        Some(TaskName::Classify) => Task::Classify(run.run.labels.clone()),
        Some(TaskName::Answer) if !decoder => Task::Span,
        Some(TaskName::Embed) => Task::Embed(run.tune.pooling.unwrap_or_default()),
        _ => Task::Generate,
    }
}

/// What `1_Pooling/config.json` says, in the words of sentence-transformers; nothing where there is none.
fn pooling(dir: &Path) -> anyhow::Result<Option<Pooling>> {
    let path = dir.join(POOLING_FILE);
    if !path.is_file() {
        return Ok(None);
    }
    let config = read_json(&path)?;
    let on = |(name, value): (&String, &Value)| {
        (*value == true).then(|| name.strip_prefix("pooling_mode_").map(str::to_owned)).flatten()
    };
    let mut modes: Vec<String> = config.as_object().into_iter().flatten().filter_map(on).collect();
    modes.extend(config["pooling_mode"].as_str().map(str::to_owned)); // how later versions say it
    match modes.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] | ["mean_tokens" | "mean"] => Ok(Some(Pooling::Mean)),
        ["cls_token" | "cls"] => Ok(Some(Pooling::Cls)),
        _ => crate::bad_input!("{}: pooling by {}; known are mean and cls", path.display(), modes.join(" and ")),
    }
}

/// Where sentence-transformers keeps how it pools.
pub const POOLING_FILE: &str = "1_Pooling/config.json";

fn read_json(path: &Path) -> anyhow::Result<Value> {
    let text = std::fs::read_to_string(path).map_err(|e| BadInput(format!("cannot read {}: {e}", path.display())))?;
    serde_json::from_str(&text).map_err(|e| BadInput(format!("{}: not valid JSON: {e}", path.display())).into())
}
