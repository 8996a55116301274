//! base + adapter → tensors, one at a time, in f32: never two models in memory, never a 16-bit stop on the way.

use crate::error::BadInput;
use crate::model::config::{Config, Family, RopeScaling};
use crate::model::load::Checkpoint;
use crate::model::network::Task;
use crate::model::open::Opened;
use crate::model::peft::fold::Fold;
use crate::tune::checkpoint::finish;
use candle_core::{Device, Tensor};
use edgeft_quantize::BoxError;
use edgeft_quantize::source::{Arch, ModelSpec, RopeScaling as SpecScaling, RopeSpec, Task as SpecTask, TensorSource};
use serde_json::json;
use std::collections::BTreeMap;
use std::io::Write;
use std::ops::Range;
use std::path::Path;

/// A base with an adapter folded in, tensor by tensor.
pub struct Merged<'a> {
    base: &'a Checkpoint,
    family: Family,
    adapter: Option<Fold>,
    /// Name as the base spells it, shape.
    tensors: Vec<(String, Vec<usize>)>,
    /// Base tensor → adapter module, and which part of it.
    folded: BTreeMap<String, (String, Part)>,
    /// Tensor → name in the adapter that replaces it.
    replaced: BTreeMap<String, String>,
}

enum Part {
    Weight,
    Bias,
}

impl<'a> Merged<'a> {
    /// Lines up base and adapter.
    ///
    /// # Errors
    /// An adapter key that nothing takes, or a half of a pair, by name.
    pub fn new(opened: &'a Opened) -> anyhow::Result<Self> {
        let task = opened.task()?;
        let family = opened.config.family;
        let base = &opened.weights;
        let generates = matches!(task, Some(Task::Generate));
        let mut shapes: BTreeMap<String, Vec<usize>> = base
            .names()
            .filter(|n| !is_idle(family, n))
            .filter(|n| *n != "lm_head.weight" || (generates && !opened.config.tie_word_embeddings))
            .filter_map(|n| Some((n.to_owned(), base.shape(n)?)))
            .collect();
        let (mut folded, mut replaced) = (BTreeMap::new(), BTreeMap::new());
        let adapter = opened.adapter.as_deref().map(|dir| Fold::open(dir, family.prefix())).transpose()?;
        if let Some(fold) = &adapter {
            for module in fold.modules() {
                let at = |part: &str| base.called(&format!("{module}.{part}"));
                let Some(mut shape) = shapes.get(&at("weight")).cloned() else {
                    crate::bad_input!("{}: `{module}` is not in the base model", fold.file.path.display());
                };
                if family.stores_transposed() {
                    shape.reverse();
                }
                fold.fits(module, &shape)?;
                folded.insert(at("weight"), (module.to_owned(), Part::Weight));
                if fold.scales_bias(module) && shapes.contains_key(&at("bias")) {
                    folded.insert(at("bias"), (module.to_owned(), Part::Bias));
                }
            }
            for name in fold.whole() {
                let at = base.called(name);
                shapes.insert(at.clone(), fold.file.shape(name).unwrap_or_default());
                replaced.insert(at, name.to_owned());
            }
        }
        Ok(Self { base, family, adapter, tensors: shapes.into_iter().collect(), folded, replaced })
    }

    /// How many tensors the adapter changes.
    pub fn changed(&self) -> usize {
        self.folded.len() + self.replaced.len()
    }

    fn values(&self, name: &str) -> anyhow::Result<Vec<f32>> {
        let Some(fold) = &self.adapter else { return Ok(self.base.read(name)?.1) };
        if let Some(whole) = self.replaced.get(name) {
            return Ok(fold.file.tensor(whole, &Device::Cpu)?.flatten_all()?.to_vec1()?);
        }
        let (shape, values) = self.base.read(name)?;
        let Some((module, part)) = self.folded.get(name) else { return Ok(values) };
        let tensor = Tensor::from_vec(values, shape, &Device::Cpu)?;
        let tensor = match part {
            Part::Weight if self.family.stores_transposed() => fold.weight(module, &tensor.t()?)?.t()?,
            Part::Weight => fold.weight(module, &tensor)?,
            Part::Bias => fold.bias(module, &tensor)?,
        };
        Ok(tensor.flatten_all()?.to_vec1()?)
    }

    /// Some rows of a matrix that the adapter leaves alone; `None` for any other tensor.
    fn rows(&self, name: &str, rows: Range<usize>) -> anyhow::Result<Option<Vec<f32>>> {
        if self.replaced.contains_key(name) || self.folded.contains_key(name) {
            return Ok(None);
        }
        self.base.rows(name, rows)
    }

    /// Writes one safetensors file, tensor by tensor, beside its final name; f32, or f16 when `half`.
    pub fn write_safetensors(&self, path: &Path, half: bool) -> anyhow::Result<u64> {
        let mut header = serde_json::Map::new();
        header.insert("__metadata__".into(), serde_json::json!({"format": "pt"}));
        let (mut offset, size) = (0u64, if half { 2 } else { 4 });
        for (name, shape) in &self.tensors {
            let end = offset + shape.iter().product::<usize>() as u64 * size;
            let dtype = if half { "F16" } else { "F32" };
            header.insert(
                name.clone(),
                serde_json::json!({"dtype": dtype, "shape": shape, "data_offsets": [offset, end]}),
            );
            offset = end;
        }
        let mut head = serde_json::to_vec(&header)?;
        head.resize(head.len().next_multiple_of(8), b' ');
        let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mut file = std::io::BufWriter::new(tempfile::NamedTempFile::new_in(folder)?);
        file.write_all(&(head.len() as u64).to_le_bytes())?;
        file.write_all(&head)?;
        for (name, _) in &self.tensors {
            for value in self.values(name)? {
                if half {
                    file.write_all(&half::f16::from_f32(value).to_le_bytes())?;
                } else {
                    file.write_all(&value.to_le_bytes())?;
                }
            }
        }
        let file = file.into_inner().map_err(|e| anyhow::anyhow!("cannot write {}: {}", path.display(), e.error()))?;
        file.as_file().sync_all()?;
        finish(file, path)?;
        Ok(head.len() as u64 + 8 + offset)
    }
}

/// A merged model on its way into another format.
pub struct Exported<'a> {
    merged: Merged<'a>,
    spec: ModelSpec,
}

impl<'a> Exported<'a> {
    /// As [`Merged::new`].
    ///
    /// # Errors
    /// Those of it, and a family, or a shape of it, that the formats' writer does not know.
    pub fn new(opened: &'a Opened) -> anyhow::Result<Self> {
        let spec = spec(&opened.config, opened.task()?.as_ref(), &opened.name)?;
        Ok(Self { merged: Merged::new(opened)?, spec })
    }
}

impl Exported<'_> {
    /// Whether the adapter adds to a matrix of this name.
    pub fn adds_to(&self, name: &str) -> bool {
        matches!(self.merged.folded.get(name), Some((_, Part::Weight))) && !self.merged.replaced.contains_key(name)
    }

    /// A tensor as the base has it, without the adapter.
    ///
    /// # Errors
    /// What reading has.
    pub fn base(&self, name: &str) -> anyhow::Result<Vec<f32>> {
        Ok(self.merged.base.read(name)?.1)
    }
}

impl TensorSource for Exported<'_> {
    fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        self.merged.tensors.clone()
    }

    fn read(&self, name: &str) -> Result<Vec<f32>, BoxError> {
        self.merged.values(name).map_err(Into::into)
    }

    fn read_rows(&self, name: &str, rows: Range<usize>) -> Result<Option<Vec<f32>>, BoxError> {
        self.merged.rows(name, rows).map_err(Into::into)
    }
}

/// Tensors of a base that no task here uses: heads of pre-training, and buffers that are computed from the config.
fn is_idle(family: Family, name: &str) -> bool {
    match family {
        Family::Roberta if name.starts_with("lm_head.") => true,
        Family::DistilBert if name.starts_with("vocab_") => true,
        Family::Gpt2 if name.ends_with(".attn.bias") || name.ends_with(".attn.masked_bias") => true,
        _ => name.starts_with("cls.") || name.ends_with("position_ids") || name.ends_with("rotary_emb.inv_freq"),
    }
}

/// `config.json` of the merged model: the base's, with the task's class and labels.
pub fn merged_config(opened: &Opened) -> anyhow::Result<serde_json::Value> {
    let mut config = opened.config_json.clone();
    let family = opened.config.family;
    let class = |end: &str| json!([format!("{}{end}", family.class())]);
    match opened.task()? {
        Some(Task::Classify(labels)) => {
            config["architectures"] = match family {
                Family::Gemma3 => class("TextForSequenceClassification"),
                _ => class("ForSequenceClassification"),
            };
            let by_index: serde_json::Map<_, _> =
                labels.iter().enumerate().map(|(i, l)| (i.to_string(), json!(l))).collect();
            let by_label: serde_json::Map<_, _> =
                labels.iter().enumerate().map(|(i, l)| (l.clone(), json!(i))).collect();
            config["id2label"] = by_index.into();
            config["label2id"] = by_label.into();
        }
        Some(Task::Span) => config["architectures"] = class("ForQuestionAnswering"),
        Some(Task::Generate) if family == Family::Gpt2 => config["architectures"] = class("LMHeadModel"),
        Some(Task::Generate) => config["architectures"] = class("ForCausalLM"),
        Some(Task::Embed(_)) => {
            config["architectures"] = class(if family == Family::Gemma3 { "TextModel" } else { "Model" });
        }
        None => {}
    }
    for key in ["torch_dtype", "dtype"] {
        if config.get(key).is_some() {
            config[key] = json!("float32");
        }
    }
    Ok(config)
}

/// Whether a model can be written as GGUF or ONNX.
pub fn can_leave(config: &Config, task: Option<&Task>) -> bool {
    spec(config, task, "").is_ok()
}

/// The network's shape in the words of the quantizer.
fn spec(config: &Config, task: Option<&Task>, name: &str) -> anyhow::Result<ModelSpec> {
    let arch = match config.family {
        Family::Llama | Family::Mistral => Arch::Llama,
        Family::Qwen2 => Arch::Qwen2,
        Family::Qwen3 => Arch::Qwen3,
        Family::Gemma3 => Arch::Gemma3,
        Family::Phi3 => Arch::Phi3,
        Family::Gpt2 => Arch::Gpt2,
        Family::Bert => Arch::Bert,
        Family::Roberta => Arch::Roberta,
        Family::DistilBert => Arch::DistilBert,
    };
    let mixed = config.sliding_window.is_some() && config.local_layers.contains(&false);
    if mixed && arch != Arch::Gemma3 {
        crate::bad_input!("{name}: a window in some layers and none in others cannot be written as GGUF or ONNX yet");
    }
    let short = Path::new(name).file_name().and_then(|n| n.to_str()).unwrap_or(name);
    Ok(ModelSpec {
        arch,
        name: short.to_owned(),
        vocab_size: config.vocab_size,
        n_ctx: config.max_position_embeddings,
        hidden_size: config.hidden_size,
        intermediate_size: config.intermediate_size,
        n_layers: config.num_hidden_layers,
        n_heads: config.num_attention_heads,
        n_kv_heads: config.num_key_value_heads,
        head_dim: config.head_dim,
        norm_eps: config.norm_eps,
        rope: if config.family.rotates() { Some(rope(config, name)?) } else { None },
        position_offset: config.position_offset,
        attention_scale: (arch == Arch::Gemma3).then(|| 1.0 / config.query_pre_attn_scalar.sqrt()),
        sliding_window: config.sliding_window,
        local_layers: if mixed { config.local_layers.clone() } else { Vec::new() },
        task: match task {
            Some(Task::Generate) => SpecTask::Generate,
            Some(Task::Classify(labels)) if labels.is_empty() => {
                return Err(BadInput(format!("{name}: a classifier without labels")).into());
            }
            Some(Task::Classify(labels)) => SpecTask::Classify { labels: labels.clone() },
            Some(Task::Span) => SpecTask::Answer,
            Some(Task::Embed(_)) if config.family.is_decoder() => {
                crate::bad_input!(
                    "{name}: vectors of a decoder cannot be written as GGUF or ONNX yet; they can be merged, and judged on --engine candle"
                )
            }
            Some(Task::Embed(_)) | None => SpecTask::Embed,
        },
        type_vocab_size: config.type_vocab_size,
    })
}

/// Rotations.
///
/// # Errors
/// Kinds that GGUF has no keys for: two scalings in one network, or Llama 3's in one that has two bases.
fn rope(config: &Config, name: &str) -> anyhow::Result<RopeSpec> {
    let scaling = match config.rope_scaling {
        RopeScaling::None => SpecScaling::None,
        RopeScaling::Linear { factor } => SpecScaling::Linear { factor },
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } => {
            SpecScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings }
        }
    };
    if let Some((_, local)) = config.local_rope
        && (local != RopeScaling::None || matches!(scaling, SpecScaling::Llama3 { .. }))
    {
        crate::bad_input!(
            "{name}: rotations that are scaled in layers with a window, or by llama3 beside them, cannot be written as GGUF; \
             it can be tuned, merged, and run on --engine candle (eval, verify)"
        );
    }
    Ok(RopeSpec {
        theta: config.rope_theta,
        local_theta: config.local_rope.map(|(theta, _)| theta),
        dims: (config.rotary_dim != config.head_dim).then_some(config.rotary_dim),
        scaling,
    })
}
