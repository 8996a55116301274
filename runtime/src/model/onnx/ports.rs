//! What each input and output of a graph is for, by the names that Optimum, ONNX Runtime GenAI and this project give them.
//! A name that is not known is refused: what it should hold could only be guessed.

use super::config::Config;
use crate::error::{Error, Kind, Result};
use crate::format::onnx::{ElementType, Onnx, Port};
use crate::model::Task;

/// Inputs and outputs, each with its role.
#[derive(Debug, Clone, PartialEq)]
pub struct Ports {
    /// Token ids (1, T).
    pub ids: Port,
    /// 1 for every position up to the last (1, past + T).
    pub mask: Option<Port>,
    /// Positions of the tokens (1, T).
    pub positions: Option<Port>,
    /// Token types (1, T).
    pub types: Option<Port>,
    /// Keys and values by layer; empty when the graph remembers nothing.
    pub cache: Vec<LayerPorts>,
    /// Whether past and present of every layer may be one buffer, which GroupQueryAttention writes behind its past.
    pub in_place: bool,
    /// What is asked for.
    pub output: Output,
}

/// Keys and values of one layer.
#[derive(Debug, Clone, PartialEq)]
pub struct LayerPorts {
    /// Keys.
    pub key: CachePort,
    /// Values.
    pub value: CachePort,
}

/// A past and its present: (1, K, positions, D).
#[derive(Debug, Clone, PartialEq)]
pub struct CachePort {
    /// Name of the input.
    pub past: String,
    /// Name of the output.
    pub present: String,
    /// float32 or float16.
    pub ty: ElementType,
    /// K, when the graph says so.
    pub n_heads: Option<usize>,
    /// D, when the graph says so.
    pub head_dim: Option<usize>,
}

/// What a graph gives for a text.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub enum Output {
    /// Logits of the next token, (1, T, V), or of the last position alone, (1, 1, V).
    Tokens { logits: Port },
    /// Logits of the labels, (1, labels).
    Labels { logits: Port },
    /// Logits of where an answer begins and ends, (1, T) each.
    Span { start: Port, end: Port },
    /// A vector a token, (1, T, C), of which the mean or the first is the text's.
    States { states: Port, mean: bool },
    /// The text's vector, (1, C).
    Vector { vector: Port },
}

impl Output {
    /// The ports to ask for.
    pub fn ports(&self) -> Vec<&Port> {
        match self {
            Self::Tokens { logits } | Self::Labels { logits } => vec![logits],
            Self::Span { start, end } => vec![start, end],
            Self::States { states, .. } => vec![states],
            Self::Vector { vector } => vec![vector],
        }
    }

    /// The task that a graph of such an output is for.
    pub fn task(&self) -> Task {
        match self {
            Self::Tokens { .. } => Task::Generate,
            Self::Labels { .. } => Task::Classify,
            Self::Span { .. } => Task::Answer,
            Self::States { .. } | Self::Vector { .. } => Task::Embed,
        }
    }

    /// # Errors
    /// `Input` when `edgeft.task` asks for what the graph does not give.
    pub fn must_serve(&self, task: Task) -> Result<()> {
        let answers = task == Task::Answer && matches!(self, Self::Tokens { .. }); // in words
        if task == self.task() || answers {
            return Ok(());
        }
        let names: Vec<_> = self.ports().iter().map(|p| format!("`{}`", p.name)).collect();
        let message = format!("edgeft.task is {task:?}, but the graph gives {}", names.join(" and ")).to_lowercase();
        Err(Error::new(Kind::Input, "metadata_props", message))
    }
}

impl Ports {
    /// Takes up every input, and the output that the graph is for.
    ///
    /// # Errors
    /// `Input` naming an input, an output or a type that is not known here.
    pub(super) fn of(onnx: &Onnx, config: &Config) -> Result<Self> {
        let (mut ids, mut mask, mut positions, mut types) = (None, None, None, None);
        let mut pasts: Vec<(usize, bool, &Port)> = Vec::new(); // layer, whether values
        for port in &onnx.inputs {
            let role = match port.name.as_str() {
                "input_ids" => &mut ids,
                "attention_mask" => &mut mask,
                "position_ids" => &mut positions,
                "token_type_ids" => &mut types,
                name => {
                    let (layer, values) = past(name).ok_or_else(|| unknown(name))?;
                    float(port)?;
                    pasts.push((layer, values, port));
                    continue;
                }
            };
            integer(port)?;
            *role = Some(port.clone());
        }
        let Some(ids) = ids else {
            return Err(Error::new(Kind::Input, "inputs", "there is no `input_ids`, so it is no model of texts"));
        };
        let cache = cache(onnx, &pasts)?;
        let in_place = |port: &CachePort| onnx.in_place.iter().any(|(p, q)| *p == port.past && *q == port.present);
        let in_place = !cache.is_empty() && cache.iter().all(|l| in_place(&l.key) && in_place(&l.value));
        let output = output(onnx, config, !cache.is_empty())?;
        Ok(Self { ids, mask, positions, types, cache, in_place, output })
    }
}

/// `past_key_values.3.value` -> (3, true).
fn past(name: &str) -> Option<(usize, bool)> {
    let (layer, kind) = name.strip_prefix("past_key_values.")?.split_once('.')?;
    let values = match kind {
        "key" => false,
        "value" => true,
        _ => return None,
    };
    Some((layer.parse().ok().filter(|n: &usize| *n < 10_000 && n.to_string() == layer)?, values))
}

/// Layers from 0 on, each with keys and values, and a present for each past.
fn cache(onnx: &Onnx, pasts: &[(usize, bool, &Port)]) -> Result<Vec<LayerPorts>> {
    let find = |layer: usize, values: bool| -> Result<CachePort> {
        let kind = if values { "value" } else { "key" };
        let missing = |what: &str, name: String| Err(Error::new(Kind::Input, format!("{what} `{name}`"), "is missing"));
        let Some((.., port)) = pasts.iter().find(|(l, v, _)| (*l, *v) == (layer, values)) else {
            return missing("input", format!("past_key_values.{layer}.{kind}"));
        };
        let present = format!("present.{layer}.{kind}");
        if !onnx.outputs.iter().any(|p| p.name == present) {
            return missing("output", present);
        }
        if !matches!(port.dims.len(), 0 | 4) {
            let message = format!("has {} dimensions; known are (1, heads, positions, head size)", port.dims.len());
            return Err(Error::new(Kind::Shape, format!("input `{}`", port.name), message));
        }
        let dim = |i: usize| port.dims.get(i)?.fixed().map(|d| d as usize);
        Ok(CachePort { past: port.name.clone(), present, ty: port.ty, n_heads: dim(1), head_dim: dim(3) })
    };
    let n_layers = pasts.iter().map(|(layer, ..)| layer + 1).max().unwrap_or(0);
    let layers: Result<Vec<LayerPorts>> =
        (0..n_layers).map(|i| Ok(LayerPorts { key: find(i, false)?, value: find(i, true)? })).collect();
    let layers = layers?;
    let first = layers.first().map(|l| l.key.ty);
    if let Some(odd) = layers.iter().flat_map(|l| [&l.key, &l.value]).find(|p| Some(p.ty) != first) {
        let message = format!("is {}, but the cache begins with {}", odd.ty.name(), first.unwrap_or_default().name());
        return Err(Error::new(Kind::Input, format!("input `{}`", odd.past), message));
    }
    Ok(layers)
}

fn output(onnx: &Onnx, config: &Config, remembers: bool) -> Result<Output> {
    let find = |name: &str| onnx.outputs.iter().find(|p| p.name == name).cloned();
    if let (Some(start), Some(end)) = (find("start_logits"), find("end_logits")) {
        float(&start)?;
        float(&end)?;
        return Ok(Output::Span { start, end });
    }
    if let Some(logits) = find("logits") {
        float(&logits)?;
        let class = config.architecture().unwrap_or_default();
        let language =
            remembers || class.is_empty() || class.ends_with("ForCausalLM") || class.ends_with("LMHeadModel");
        let labels = class.ends_with("ForSequenceClassification");
        return match logits.dims.len() {
            3 if language => Ok(Output::Tokens { logits }),
            2 => Ok(Output::Labels { logits }),
            0 if labels => Ok(Output::Labels { logits }),
            0 if language => Ok(Output::Tokens { logits }),
            n => {
                let message = format!(
                    "{n} dimensions, from {class}; known are next tokens (1, T, V) and labels (1, labels): a class that ends in \
                     ForCausalLM, LMHeadModel or ForSequenceClassification"
                );
                Err(Error::new(Kind::Input, "output `logits`", message))
            }
        };
    }
    if let Some(vector) = find("sentence_embedding") {
        float(&vector)?;
        return Ok(Output::Vector { vector });
    }
    if let Some(states) = find("last_hidden_state").or_else(|| find("token_embeddings")) {
        float(&states)?;
        return Ok(Output::States { states, mean: config.pools_by_mean()? });
    }
    let names: Vec<_> = onnx.outputs.iter().take(8).map(|p| p.name.as_str()).collect();
    let message = format!(
        "{}: none is known; known are logits, start_logits with end_logits, last_hidden_state, sentence_embedding",
        names.join(", ")
    );
    Err(Error::new(Kind::Input, "outputs", message))
}

fn unknown(name: &str) -> Error {
    let message = "is not known, and what it should hold would be a guess; known are input_ids, attention_mask, position_ids, \
        token_type_ids, past_key_values.N.key and .value; export the model without it";
    Error::new(Kind::Input, format!("input `{name}`"), message)
}

fn integer(port: &Port) -> Result<()> {
    match port.ty {
        ElementType::I64 | ElementType::I32 => Ok(()),
        other => Err(wrong_type(port, other, "int64, int32")),
    }
}

fn float(port: &Port) -> Result<()> {
    match port.ty {
        ElementType::F32 | ElementType::F16 => Ok(()),
        other => Err(wrong_type(port, other, "float, float16")),
    }
}

fn wrong_type(port: &Port, ty: ElementType, known: &str) -> Error {
    Error::new(Kind::Input, format!("`{}`", port.name), format!("holds {}; known are {known}", ty.name()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::onnx::Dim;
    use serde_json::{Value as Json, json};

    fn port(name: &str, ty: ElementType, rank: usize) -> Port {
        Port { name: name.into(), ty, dims: vec![Dim::Unknown; rank] }
    }

    fn decoder() -> Onnx {
        let past = |kind: &str| Port {
            dims: vec![Dim::Unknown, Dim::Fixed(2), Dim::Unknown, Dim::Fixed(8)],
            ..port(&format!("past_key_values.0.{kind}"), ElementType::F32, 4)
        };
        Onnx {
            inputs: vec![port("input_ids", ElementType::I64, 2), past("key"), past("value")],
            outputs: ["logits", "present.0.key", "present.0.value"].map(|n| port(n, ElementType::F32, 3)).to_vec(),
            ..Onnx::default()
        }
    }

    fn ports(onnx: &Onnx, config: &Json) -> Result<Ports> {
        Ports::of(onnx, &Config { config, genai: &Json::Null, pooling: &Json::Null })
    }

    #[track_caller]
    fn refuses(spoil: impl FnOnce(&mut Onnx), because: &str) {
        let mut onnx = decoder();
        spoil(&mut onnx);
        let error = ports(&onnx, &Json::Null).unwrap_err().to_string();
        assert!(error.contains(because), "{error}");
    }

    #[test]
    fn a_decoder_with_a_cache_generates() {
        let found = ports(&decoder(), &Json::Null).unwrap();
        assert_eq!((found.cache.len(), found.in_place, found.output.task()), (1, false, Task::Generate));
        assert_eq!((found.cache[0].value.n_heads, found.cache[0].value.head_dim), (Some(2), Some(8)));
    }

    #[test]
    fn one_buffer_serves_where_every_layer_is_written_in_place() {
        let mut onnx = decoder();
        let pair = |kind: &str| (format!("past_key_values.0.{kind}"), format!("present.0.{kind}"));
        onnx.in_place.push(pair("key"));
        assert!(!ports(&onnx, &Json::Null).unwrap().in_place);
        onnx.in_place.push(pair("value"));
        assert!(ports(&onnx, &Json::Null).unwrap().in_place);
    }

    #[test]
    fn what_is_not_known_is_named() {
        refuses(|o| o.inputs.push(port("pixel_values", ElementType::F32, 4)), "input `pixel_values`: is not known");
        refuses(|o| o.inputs.push(port("past_key_values.00.key", ElementType::F32, 4)), "`past_key_values.00.key`");
        refuses(|o| o.inputs[0].ty = ElementType::F32, "`input_ids`: holds float; known are int64, int32");
        refuses(|o| o.inputs[1].ty = ElementType::BF16, "holds bfloat16");
        refuses(
            |o| o.inputs[1].ty = ElementType::F16,
            "`past_key_values.0.value`: is float, but the cache begins with float16",
        );
        refuses(|o| drop(o.inputs.pop()), "input `past_key_values.0.value`: is missing");
        refuses(|o| drop(o.outputs.pop()), "output `present.0.value`: is missing");
        refuses(|o| drop(o.inputs.remove(0)), "no `input_ids`");
        refuses(
            |o| o.outputs[0].name = "scores".into(),
            "outputs: scores, present.0.key, present.0.value: none is known",
        );
    }

    #[test]
    fn an_encoder_is_what_its_outputs_say() {
        let task = |outputs: &[(&str, usize)], class: &str| {
            let onnx = Onnx {
                inputs: vec![port("input_ids", ElementType::I64, 2)],
                outputs: outputs.iter().map(|(n, rank)| port(n, ElementType::F32, *rank)).collect(),
                ..Onnx::default()
            };
            ports(&onnx, &json!({ "architectures": [class] })).map(|p| p.output.task())
        };
        assert_eq!(task(&[("logits", 2)], "BertForSequenceClassification").unwrap(), Task::Classify);
        assert_eq!(task(&[("start_logits", 2), ("end_logits", 2)], "BertForQuestionAnswering").unwrap(), Task::Answer);
        assert_eq!(task(&[("last_hidden_state", 3)], "BertForSequenceClassification").unwrap(), Task::Embed);
        assert_eq!(task(&[("token_embeddings", 3), ("sentence_embedding", 2)], "BertModel").unwrap(), Task::Embed);
        let error = task(&[("logits", 3)], "BertForTokenClassification").unwrap_err().to_string();
        assert!(error.contains("BertForTokenClassification"), "{error}");
    }
}
