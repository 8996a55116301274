//! What must be known of an ONNX file before ONNX Runtime sees it: what goes in and out, where it keeps weights outside of
//! itself, what a forward reads. Field numbers are those of `onnx.proto3` (ONNX 1.18); the arithmetic of the graph is none of
//! our business.
//!
//! The file is hostile until proven otherwise: what is allocated is bounded by its size (some tens of bytes for each tensor
//! that it spells out, and no weight is copied), nesting is bounded, and weights that lie outside are found wherever a graph
//! may hide them (in attributes, in the branches of an `If`, in functions).

mod element_type;
mod messages;
mod walk;

pub use element_type::ElementType;

use super::protobuf::{Fields, WireError};
use messages::{entry, opset};
use std::collections::BTreeMap;

/// Graphs inside attributes inside graphs: real models have two or three levels.
const DEEPEST: usize = 32;
/// Nodes, tensors, keys, inputs: more of a kind than any model has.
const MOST: usize = 1 << 20;
/// Dimensions of a tensor.
const MOST_DIMS: usize = 32;

/// Why bytes are not a model.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub enum OnnxError {
    #[error("not a whole ONNX file: in {place}, {source}")]
    Wire { place: &'static str, source: WireError },
    #[error("graphs are nested more than {DEEPEST} deep")]
    Depth,
    #[error("no graph in it")]
    NoGraph,
    #[error("it does not say its IR version, so it is no ONNX model")]
    NoVersion,
    #[error("more than {most} {what}")]
    TooMany { what: &'static str, most: usize },
    #[error("tensor `{tensor}`: external_data `{key}` is `{value}`, which is no whole number")]
    ExternalNumber { tensor: String, key: String, value: String },
    #[error("tensor `{tensor}` is in another file, but does not say in which")]
    NoLocation { tensor: String },
    #[error("tensor `{tensor}` has dimensions {dims:?}, which no tensor can have")]
    Dimensions { tensor: String, dims: Vec<i64> },
}

/// An input or output of the graph.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Port {
    /// Its name.
    pub name: String,
    /// Type of its elements; code 0 when it is no tensor.
    pub ty: ElementType,
    /// Its dimensions, outermost first.
    pub dims: Vec<Dim>,
}

/// A dimension of an input or output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Dim {
    /// The same in every run.
    Fixed(u64),
    /// A run decides; the same number wherever the name stands.
    Named(String),
    /// A run decides.
    Unknown,
}

impl Dim {
    /// The number, where every run has the same.
    pub fn fixed(&self) -> Option<u64> {
        match self {
            Self::Fixed(n) => Some(*n),
            Self::Named(_) | Self::Unknown => None,
        }
    }
}

/// A weight of the main graph.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Weight {
    /// Its name.
    pub name: String,
    /// Type of its elements.
    pub ty: ElementType,
    /// Its dimensions.
    pub dims: Vec<u64>,
    /// Size, by type and dimensions; 0 for elements without a size of their own.
    pub bytes: u64,
    /// Only rows of it are looked up.
    pub gathered: bool,
    /// Where its bytes lie, when that is another file.
    pub external: Option<External>,
}

impl Weight {
    /// Bytes in a file: as many as the model says of another one, else by type and dimensions. `None` when neither tells.
    pub fn stored_bytes(&self) -> Option<u64> {
        let said = self.external.as_ref().and_then(|e| e.length);
        said.or_else(|| self.ty.bits().map(|_| self.bytes))
    }
}

/// A tensor whose bytes lie in another file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct External {
    /// Its name.
    pub tensor: String,
    /// The file, as the model names it.
    pub location: String,
    /// Where its bytes begin in it.
    pub offset: u64,
    /// How many there are, when the model says so.
    pub length: Option<u64>,
}

/// A model file, as far as this project looks into it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Onnx {
    /// Version of the container.
    pub ir_version: u64,
    /// Who wrote it.
    pub producer: String,
    /// Sets of operators: domain (empty for the standard one) and version.
    pub opsets: Vec<(String, u64)>,
    /// How many nodes of the main graph have each operator; those inside its nodes are not counted. Outside of the standard
    /// domain, an operator is written `domain.operator`.
    pub operators: BTreeMap<String, usize>,
    /// `metadata_props`.
    pub metadata: Vec<(String, String)>,
    /// What a run must give: the inputs of the main graph that are no weights.
    pub inputs: Vec<Port>,
    /// What a run may ask for.
    pub outputs: Vec<Port>,
    /// Weights of the main graph, wherever their bytes lie.
    pub weights: Vec<Weight>,
    /// Tensors whose bytes lie in other files, anywhere in the model.
    pub external: Vec<External>,
    /// Pairs of an input and an output that a GroupQueryAttention node takes as its past and gives as its present, where no
    /// other node reads the input: one buffer may serve as both.
    pub in_place: Vec<(String, String)>,
    /// Whether some weights are codes with a scale a block (DequantizeLinear with `block_size`).
    pub blocked: bool,
}

impl Onnx {
    /// Reads a whole file.
    ///
    /// # Errors
    /// [`OnnxError`] naming what is broken.
    pub fn parse(bytes: &[u8]) -> Result<Self, OnnxError> {
        let mut out = Self::default();
        let mut graph = None;
        for field in Fields::new(bytes) {
            let field = field.map_err(within("the model"))?;
            let body = || field.bytes().map_err(within("the model"));
            match field.number {
                1 => out.ir_version = field.number().map_err(within("the model"))?,
                2 => field.text().map_err(within("the model"))?.clone_into(&mut out.producer),
                7 => {
                    out.read_main(body()?)?;
                    graph = Some(());
                }
                8 => push(&mut out.opsets, opset(body()?)?, "sets of operators")?,
                14 => push(&mut out.metadata, entry(body()?, "metadata_props")?, "metadata keys")?,
                20 => out.read_training(body()?)?,
                25 => out.read_function(body()?)?,
                _ => {}
            }
        }
        let out = graph.map(|()| out).ok_or(OnnxError::NoGraph)?;
        if out.ir_version == 0 { Err(OnnxError::NoVersion) } else { Ok(out) }
    }

    /// The value of a `metadata_props` key.
    pub fn metadata(&self, key: &str) -> Option<&str> {
        self.metadata.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str())
    }
}

fn push<T>(list: &mut Vec<T>, item: T, what: &'static str) -> Result<(), OnnxError> {
    if list.len() >= MOST {
        return Err(OnnxError::TooMany { what, most: MOST });
    }
    list.push(item);
    Ok(())
}

fn within(place: &'static str) -> impl Fn(WireError) -> OnnxError {
    move |source| OnnxError::Wire { place, source }
}

/// Calls `f` with every field that is a message or bytes.
fn each<'a>(
    message: &'a [u8],
    place: &'static str,
    mut f: impl FnMut(u32, &'a [u8]) -> Result<(), OnnxError>,
) -> Result<(), OnnxError> {
    for field in Fields::new(message) {
        let field = field.map_err(within(place))?;
        if let Ok(body) = field.bytes() {
            f(field.number, body)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
