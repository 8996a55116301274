//! An ONNX folder as a model: `model.onnx`, as `edgeft quantize --to onnx`, Optimum and ONNX Runtime GenAI write it, and the
//! JSON beside it.
//!
//! ```text
//! model.onnx --format::onnx--> inputs, outputs, weights outside --ports, external--> checked
//! config.json, genai_config.json --config--> shape     outputs, architectures, metadata_props --> task, labels
//! ```
//!
//! - [`ports`]: what each input and output of the graph is for; what is not known is refused by name
//! - [`config`]: the shape, the labels
//! - [`external`]: files with weights, which must lie in the folder

pub mod config;
pub mod external;
pub mod ports;

use super::{Hparams, Task, input};
use crate::engine::KvType;
use crate::error::{Error, Kind, Result};
use crate::format::map::Mapped;
use crate::format::onnx::{ElementType, Onnx, Weight};
use crate::tokenizer::{FolderFiles, Specials, Tokenizer};
use config::Config;
use ports::Ports;
use serde_json::Value as Json;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// A checked folder.
pub struct OnnxFolder {
    file: PathBuf,
    ports: Ports,
    weights: Vec<Weight>,
    blocked: bool,
    metadata: Vec<(String, String)>,
    tokenizer_json: Option<Vec<u8>>,
    tokenizer_config: Json,
    /// Where ids of special tokens are numbered.
    ids: Json,
    chat_template: Option<String>,
    encoder: bool,
}

impl OnnxFolder {
    /// Reads and checks a folder.
    pub(super) fn open(dir: &Path) -> Result<(Self, Hparams, Task, Vec<String>)> {
        let config = json(dir, "config.json")?;
        let genai = json(dir, "genai_config.json")?;
        let file = model_file(dir, &genai)?;
        let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let bytes = Mapped::open(&file).map_err(|e| match e.kind() {
            std::io::ErrorKind::InvalidData | std::io::ErrorKind::InvalidInput => {
                Error::new(Kind::Input, &name, e.to_string())
            }
            _ => Error::io(&name, e),
        })?;
        let onnx = Onnx::parse(&bytes).map_err(|e| Error::new(Kind::Input, &name, e.to_string()))?;
        drop(bytes);
        external::check(&file, &onnx.external).map_err(|e| e.at(&name))?;

        let given = Config { config: &config, genai: &genai, pooling: &json(dir, "1_Pooling/config.json")? };
        let ports = Ports::of(&onnx, &given).map_err(|e| e.at(&name))?;
        let task = match onnx.metadata("edgeft.task") {
            Some(task) => Task::from_name(task).ok_or_else(|| {
                input(format!("{name}: edgeft.task is `{task}`; known: generate, classify, answer, embed"))
            })?,
            None => ports.output.task(),
        };
        ports.output.must_serve(task).map_err(|e| e.at(&name))?;
        let hparams = given.hparams(&ports, task)?;
        let labels = if task == Task::Classify { given.labels(&onnx, &ports)? } else { Vec::new() };

        let tokenizer_config = json(dir, "tokenizer_config.json")?;
        let chat_template = match text(dir, "chat_template.jinja")? {
            Some(template) => Some(template),
            None => tokenizer_config["chat_template"].as_str().map(str::to_owned),
        };
        let folder = Self {
            file,
            ports,
            weights: onnx.weights,
            blocked: onnx.blocked,
            metadata: onnx.metadata,
            tokenizer_json: bytes_of(dir, "tokenizer.json")?,
            tokenizer_config,
            ids: if config.is_null() { genai["model"].clone() } else { config },
            chat_template,
            encoder: !hparams.causal,
        };
        Ok((folder, hparams, task, labels))
    }

    /// The file with the graph. All that it refers to lies in the folder.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// What goes in and out.
    pub fn ports(&self) -> &Ports {
        &self.ports
    }

    /// Weights of the graph.
    pub fn weights(&self) -> &[Weight] {
        &self.weights
    }

    /// Whether some weights are codes with a scale a block.
    pub fn blocked(&self) -> bool {
        self.blocked
    }

    /// The type or mix of the weights: what the writer noted, or the type that most of their bytes have.
    pub fn type_name(&self) -> String {
        if let Some((_, mix)) = self.metadata.iter().find(|(key, _)| key == "edgeft.plan.mix") {
            return mix.clone();
        }
        let mut bytes: BTreeMap<u64, u64> = BTreeMap::new();
        for weight in &self.weights {
            let sum = bytes.entry(weight.ty.0).or_default();
            *sum = sum.saturating_add(weight.bytes);
        }
        match bytes.into_iter().max_by_key(|(_, bytes)| *bytes).map(|(ty, _)| ElementType(ty)) {
            Some(ElementType::F32) | None => "f32".into(),
            Some(ElementType::F16) => "f16".into(),
            Some(ElementType::BF16) => "bf16".into(),
            Some(other) => other.name().into(),
        }
    }

    /// Type of the cache, when the graph has one.
    pub fn kv(&self) -> Option<KvType> {
        match self.ports.cache.first()?.key.ty {
            ElementType::F16 => Some(KvType::F16),
            _ => Some(KvType::F32),
        }
    }

    pub(super) fn tokenizer(&self) -> Result<Tokenizer> {
        let Some(json) = &self.tokenizer_json else {
            return Err(Error::new(
                Kind::Missing,
                "tokenizer.json",
                "is not in the folder; put it there to give texts",
            ));
        };
        let files = FolderFiles {
            tokenizer_json: json,
            tokenizer_config: &self.tokenizer_config,
            config: &self.ids,
            chat_template: self.chat_template.as_deref(),
            encoder: self.encoder,
        };
        Tokenizer::from_hf_json(json, Specials::of_folder(&files)?)
    }

    pub(super) fn chat_source(&self) -> Option<&str> {
        self.chat_template.as_deref()
    }
}

/// `model.onnx`, the file that genai_config.json names, or the only `.onnx` file of the folder.
fn model_file(dir: &Path, genai: &Json) -> Result<PathBuf> {
    let usual = dir.join("model.onnx");
    if usual.is_file() {
        return Ok(usual);
    }
    let files = onnx_files(dir).map_err(|e| Error::io("the folder", e))?;
    let named = genai["model"]["decoder"]["filename"].as_str().unwrap_or_default();
    if let Some(file) = files.iter().find(|f| f.file_name().is_some_and(|n| n == named)) {
        return Ok(file.clone());
    }
    match files.as_slice() {
        [only] => Ok(only.clone()),
        [] => Err(input("no model.onnx in the folder".into())),
        several => {
            let names: Vec<_> = several.iter().filter_map(|f| f.file_name()?.to_str()).collect();
            Err(input(format!(
                "{} .onnx files ({}), and none is called model.onnx; rename the one that is meant",
                names.len(),
                names.join(", ")
            )))
        }
    }
}

fn onnx_files(dir: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "onnx") && path.is_file() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn bytes_of(dir: &Path, name: &str) -> Result<Option<Vec<u8>>> {
    match std::fs::read(dir.join(name)) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::io(name, e)),
    }
}

fn text(dir: &Path, name: &str) -> Result<Option<String>> {
    let Some(bytes) = bytes_of(dir, name)? else { return Ok(None) };
    String::from_utf8(bytes).map(Some).map_err(|_| Error::new(Kind::Input, name, "not UTF-8"))
}

/// A JSON file, or null where there is none.
fn json(dir: &Path, name: &str) -> Result<Json> {
    let Some(bytes) = bytes_of(dir, name)? else { return Ok(Json::Null) };
    serde_json::from_slice(&bytes).map_err(|e| Error::new(Kind::Input, name, format!("not valid JSON: {e}")))
}
