//! What can go wrong between a source and a finished file. Every message names the tensor or key, both numbers, the way out.

use crate::codec::CodecError;
use edgeft_runtime::format::GgmlType;
use std::path::PathBuf;

/// An error of somebody else's making: a source's, a tokenizer's.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Shorthand.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a model could not be planned or written.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // the message of each variant is its documentation
pub enum Error {
    #[error("unknown type `{0}`; known: {known}", known = crate::plan::Mix::names())]
    UnknownMix(String),
    #[error(
        "tensor `{name}`: no rule of the {arch} architecture names it for the task {task}; remove it from the source or check the task"
    )]
    UnknownTensor { name: String, arch: &'static str, task: &'static str },
    #[error("tensor `{name}` is missing: a {arch} model for the task {task} with {n_layers} layers needs it")]
    MissingTensor { name: String, arch: &'static str, task: &'static str, n_layers: usize },
    #[error("tensors `{first}` and `{second}` are both `{gguf}` in a GGUF file; keep one")]
    SameName { first: String, second: String, gguf: String },
    #[error("tensor `{name}` has shape {found:?}, but the config says {expected:?}")]
    Shape { name: String, found: Vec<usize>, expected: Vec<usize> },
    #[error("tensor `{name}` has {found} values, but its shape {shape:?} has {expected}", expected = shape.iter().product::<usize>())]
    Length { name: String, found: usize, shape: Vec<usize> },
    #[error("tensor name `{name}` has {} bytes, but GGUF allows {max}", name.len())]
    LongName { name: String, max: usize },
    #[error("{field} is {value}, but {need}")]
    Spec { field: &'static str, value: String, need: &'static str },
    #[error(
        "the override `{pattern}` matches no tensor that may be quantized; patterns are searched in GGUF names such as `blk.0.ffn_down.weight`"
    )]
    IdleOverride { pattern: String },
    #[error("importance matrix: {0}")]
    Importance(String),
    #[error("strict types: {} of the tensors cannot have the type that {mix} gives them: {}", .list.len(), .list.join("; "))]
    Fallbacks { mix: &'static str, list: Vec<String> },
    #[error("tensor `{name}`, row {row}, column {column}: {}", .cause.problem())]
    Weight { name: String, row: usize, column: usize, cause: CodecError },
    #[error("cannot read tensor `{name}`")]
    Source { name: String, source: BoxError },
    #[error("the plan does not fit the source: {0}; plan again")]
    StalePlan(String),
    #[error("metadata key `{key}`: {problem}")]
    Metadata { key: String, problem: String },
    #[error("tokenizer.json: {0}")]
    Tokenizer(String),
    #[error(
        "the tokenizer has {tokens} tokens, but the embedding has {rows} rows; resize the embedding or use the tokenizer the model was trained with"
    )]
    MoreTokensThanRows { tokens: usize, rows: usize },
    #[error("`{}` exists; remove it or force", .0.display())]
    Exists(PathBuf),
    #[error(
        "`{}` exists and holds no model.onnx, so it is not replaced; choose another place, or remove it yourself",
        .0.display()
    )]
    NotOurs(PathBuf),
    #[error("tensor `{name}` would be {ty}, which ONNX's operators cannot express; known: {}", crate::onnx::types())]
    OnnxType { name: String, ty: GgmlType },
    #[error("{model_type} cannot be written in ONNX Runtime's own operators yet; write portable operators")]
    OnnxFamily { model_type: &'static str },
    #[error("`{}` is not a GGUF file that can be read", path.display())]
    NotGguf { path: PathBuf, source: edgeft_runtime::format::gguf::GgufError },
    #[error("cannot write `{}`", path.display())]
    File { path: PathBuf, source: std::io::Error },
    #[error("cannot write")]
    Write(#[source] std::io::Error),
}

impl Error {
    /// Whether the way out is the caller's: another source, another flag. The rest is the system's doing.
    pub fn is_input(&self) -> bool {
        !matches!(self, Self::File { .. } | Self::Write(_))
    }
}
