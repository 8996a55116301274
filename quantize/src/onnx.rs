//! A plan becomes an ONNX folder: `model.onnx`, which is the graph, and `model.onnx.data`, which holds the weights.
//!
//! The graph has standard operators alone, of opset 17 (21 where blocks are, which need its `DequantizeLinear`), so that
//! any runtime takes it. Inputs and outputs have the names and the order that Optimum gives them and onnxruntime-genai
//! expects. B batch, S tokens of a call, P tokens in the cache, T = P + S, C hidden, K key heads, D head width:
//!
//! | model | in | out |
//! |---|---|---|
//! | decoder | `input_ids` (B, S), `attention_mask` (B, T), `position_ids` (B, S), `past_key_values.{i}.key`, `.value` (B, K, P, D) | `logits` (B, S, V), `present.{i}.key`, `.value` (B, K, T, D) |
//! | decoder that classifies | `input_ids`, `attention_mask`, `position_ids` (B, S) | `logits` (B, labels) |
//! | encoder | `input_ids`, `attention_mask`, `token_type_ids` (B, S), the last where the model has types | `logits` (B, labels); `start_logits`, `end_logits` (B, S); or `last_hidden_state` (B, S, C) |
//!
//! Ids, masks and positions are INT64, the rest is f32. Padding may stand before or behind the tokens of a decoder, as its
//! positions are told; behind those of an encoder.
//!
//! With [`Operators::Ort`] the nodes are ONNX Runtime's own where it has some; a decoder then takes `position_ids` only if
//! its head width is no multiple of 16, and padding stands behind its tokens.
//!
//! Where the file comes from, its task and its labels are in `metadata_props`, under the keys of the GGUF file. Codes and
//! scales are those of the GGUF file of the same plan, bit for bit: both come from [`crate::codec`].

mod bert;
mod codes;
mod folder;
mod fused;
mod graph;
mod llama;
mod net;
pub mod proto;
#[cfg(test)]
mod tests;
mod weights;

pub use folder::{MODEL_FILE, add_keys, write_onnx_folder};
pub use weights::DATA_FILE;

use crate::{
    error::{Error, Result},
    metadata,
    plan::{Mix, Plan},
    report::Report,
    source::{Arch, TensorSource},
    stream::sha256,
};
use edgeft_runtime::format::gguf::{Array, Value};
use graph::{CONTRIB, Graph, OPSET};
use net::Net;
use prost::Message;
use proto::{ModelProto, OperatorSetIdProto, StringStringEntryProto};
use std::{collections::BTreeMap, io::Write};
use weights::Weights;

/// Which operators a graph is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Operators {
    /// Standard ones alone: any runtime takes them.
    #[default]
    Portable,
    /// ONNX Runtime's own as well, where it has some: MatMulNBits and GatherBlockQuantized for codes, and in decoders with a
    /// cache GroupQueryAttention and SkipSimplifiedLayerNormalization, in the layout of ONNX Runtime GenAI.
    Ort,
}

impl Operators {
    /// Whether a decoder of heads this wide has the input `position_ids`.
    pub fn takes_positions(self, head_dim: usize) -> bool {
        self == Self::Portable || !head_dim.is_multiple_of(16)
    }
}

/// Mixes that ONNX's operators can express.
pub const MIXES: [Mix; 6] = [Mix::F32, Mix::F16, Mix::BF16, Mix::Q8_0, Mix::Q4_0, Mix::Q6_K];

/// Names of the tensor types that have a form in ONNX's operators, for messages.
pub(crate) fn types() -> String {
    weights::TYPES.map(|t| t.name()).join(" ")
}

/// Keys of a GGUF file that speak of its own bytes.
const GGUF_ONLY: [&str; 3] = ["general.type", "general.file_type", "general.quantization_version"];

/// Streams the weights of a plan to `data`, and returns the bytes of `model.onnx`, which finds them in [`DATA_FILE`] beside
/// itself.
///
/// `extra` is added to the metadata, as in [`crate::write_gguf`]. `progress` hears `(elements done, elements in all)`.
///
/// # Errors
/// A tensor whose type has no form in ONNX; a shape that the operators do not take; a tensor that cannot be read, has another length than its shape, or holds a value
/// that is not finite or too large (with tensor, row and column); a plan made for another source; a failing `data`.
pub fn write_onnx(
    source: &dyn TensorSource,
    plan: &Plan,
    operators: Operators,
    extra: &[(String, Value)],
    data: &mut dyn Write,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<(Vec<u8>, Report)> {
    let spec = source.spec();
    let fused = operators == Operators::Ort
        && !spec.arch.is_encoder()
        && !matches!(spec.task, crate::source::Task::Classify { .. });
    // What is refused is refused before a weight is read.
    let mut metadata_props = properties(source, plan, extra)?;
    if fused {
        fused::check(spec)?;
    }
    let weights = Weights::new(source, plan, operators, data, progress)?;
    let mut net = Net { spec, graph: Graph::new(weights.opset()), weights };
    match spec.arch {
        Arch::Bert | Arch::Roberta | Arch::DistilBert => bert::build(&mut net)?,
        _ if fused => fused::build(&mut net)?,
        _ => llama::build(&mut net)?,
    }
    let Net { graph, weights, .. } = net;
    let (payload, tensors) = (weights.payload, weights.reports.clone());
    let (unused, data_sha256, data_bytes) = weights.finish()?;
    metadata_props.push(StringStringEntryProto { key: "edgeft.data_sha256".into(), value: data_sha256 });
    let opset = graph.opset();
    let mut sets = vec![OperatorSetIdProto { domain: String::new(), version: opset }];
    if graph.has_contrib() {
        sets.push(OperatorSetIdProto { domain: CONTRIB.0.into(), version: CONTRIB.1 });
    }
    let model = ModelProto {
        ir_version: if opset == OPSET { 8 } else { 10 },
        producer_name: "edgeft".into(),
        producer_version: env!("CARGO_PKG_VERSION").into(),
        graph: Some(graph.finish(&spec.name)),
        opset_import: sets,
        metadata_props,
    };
    let bytes = model.encode_to_vec();
    let elements: u64 = tensors.iter().map(|t| t.bytes_before / 4).sum();
    let mut types = BTreeMap::new();
    for t in &tensors {
        *types.entry(t.ty.name()).or_insert(0) += 1;
    }
    let mut skipped = plan.skipped.clone();
    skipped.extend(unused.into_iter().map(|name| (name, "the graph for this task does not use it")));
    let report = Report {
        mix: plan.name(),
        bytes: bytes.len() as u64 + data_bytes,
        bpw: 8.0 * payload as f64 / elements as f64,
        types,
        sha256: sha256(&bytes),
        tensors,
        coverage: plan.coverage.clone(),
        skipped,
    };
    Ok((bytes, report))
}

/// The keys of the GGUF file, as text.
fn properties(
    source: &dyn TensorSource,
    plan: &Plan,
    extra: &[(String, Value)],
) -> Result<Vec<StringStringEntryProto>> {
    let mut keys = metadata::model(source.spec(), plan);
    metadata::extend(&mut keys, extra)?;
    keys.retain(|(key, _)| !GGUF_ONLY.contains(&key.as_str()));
    keys.into_iter().map(|(key, value)| Ok(StringStringEntryProto { value: text(&key, &value)?, key })).collect()
}

/// A value of the metadata as `metadata_props` hold it: numbers in decimal, lists as JSON.
fn text(key: &str, value: &Value) -> Result<String> {
    Ok(match value {
        Value::Str(v) => v.clone(),
        Value::U8(v) => v.to_string(),
        Value::I8(v) => v.to_string(),
        Value::U16(v) => v.to_string(),
        Value::I16(v) => v.to_string(),
        Value::U32(v) => v.to_string(),
        Value::I32(v) => v.to_string(),
        Value::U64(v) => v.to_string(),
        Value::I64(v) => v.to_string(),
        Value::F32(v) => format!("{v:?}"), // 1e-6, not 0.000001
        Value::F64(v) => format!("{v:?}"),
        Value::Bool(v) => v.to_string(),
        Value::Array(Array::Str(v)) => serde_json::json!(v).to_string(),
        Value::Array(Array::Bool(v)) => serde_json::json!(v).to_string(),
        Value::Array(_) => {
            return Err(Error::Metadata {
                key: key.into(),
                problem: "only lists of strings and flags go into ONNX".into(),
            });
        }
    })
}
