//! What must be known of an ONNX file before ONNX Runtime sees it: what goes in and out, where it keeps weights outside of
//! itself, what a forward reads. Field numbers are those of `onnx.proto3` (ONNX 1.18); the arithmetic of the graph is none of
//! our business.
//!
//! The file is hostile until proven otherwise: what is allocated is bounded by its size (some tens of bytes for each tensor
//! that it spells out, and no weight is copied), nesting is bounded, and weights that lie outside are found wherever a graph
//! may hide them (in attributes, in the branches of an `If`, in functions).

use super::protobuf::{Fields, WireError};
use std::collections::HashMap;

/// Graphs inside attributes inside graphs: real models have two or three levels.
const DEEPEST: usize = 32;

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
    #[error("tensor `{tensor}`: external_data `{key}` is `{value}`, which is no whole number")]
    ExternalNumber { tensor: String, key: String, value: String },
    #[error("tensor `{tensor}` has dimensions {dims:?}, which no tensor can have")]
    Dimensions { tensor: String, dims: Vec<i64> },
}

/// Type of the elements of a tensor, by `TensorProto.DataType`'s code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ElementType(pub u64);

#[allow(missing_docs)]
impl ElementType {
    pub const F32: Self = Self(1);
    pub const I32: Self = Self(6);
    pub const I64: Self = Self(7);
    pub const F16: Self = Self(10);
    pub const BF16: Self = Self(16);

    /// Bits of an element; `None` for strings and types not known here.
    pub fn bits(self) -> Option<u64> {
        Some(match self.0 {
            2 | 3 | 9 | 17..=20 | 24 => 8,
            4 | 5 | 10 | 16 => 16,
            1 | 6 | 12 => 32,
            7 | 11 | 13 | 14 => 64,
            15 => 128,
            21..=23 => 4,
            25 | 26 => 2,
            _ => return None,
        })
    }

    /// In ONNX's words.
    pub fn name(self) -> String {
        let name = match self.0 {
            1 => "float32",
            2 => "uint8",
            3 => "int8",
            6 => "int32",
            7 => "int64",
            9 => "bool",
            10 => "float16",
            11 => "float64",
            16 => "bfloat16",
            21 => "uint4",
            22 => "int4",
            other => return format!("data type {other}"),
        };
        name.to_owned()
    }
}

/// An input or output of the graph.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Port {
    /// Its name.
    pub name: String,
    /// Type of its elements; code 0 when it is no tensor.
    pub ty: ElementType,
    /// Its dimensions; `None` where a run decides.
    pub dims: Vec<Option<u64>>,
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
    /// Size.
    pub bytes: u64,
    /// Only rows of it are looked up.
    pub gathered: bool,
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
            match field.number {
                7 => {
                    let body = field.bytes().map_err(within("the model"))?;
                    out.read_main(body)?;
                    graph = Some(());
                }
                14 => out.metadata.push(entry(field.bytes().map_err(within("metadata_props"))?, "metadata_props")?),
                20 => each(field.bytes().map_err(within("training_info"))?, "training_info", |number, body| {
                    if matches!(number, 1 | 2) { out.walk_graph(body, 0, &mut |_| ()) } else { Ok(()) }
                })?,
                25 => each(field.bytes().map_err(within("functions"))?, "functions", |number, body| match number {
                    7 => out.walk_node(body, 0, &mut |_| ()),
                    11 => out.walk_attribute(body, 0, &mut |_| ()),
                    _ => Ok(()),
                })?,
                _ => {}
            }
        }
        graph.map(|()| out).ok_or(OnnxError::NoGraph)
    }

    /// The value of a `metadata_props` key.
    pub fn metadata(&self, key: &str) -> Option<&str> {
        self.metadata.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str())
    }

    /// GraphProto of the model itself. Weights and inputs first, so that only uses of them need to be counted.
    fn read_main(&mut self, graph: &[u8]) -> Result<(), OnnxError> {
        let mut inputs = Vec::new();
        each(graph, "the graph", |number, body| {
            match number {
                5 => self.weights.push(weight(body)?),
                11 => inputs.push(port(body)?),
                12 => self.outputs.push(port(body)?),
                _ => {}
            }
            Ok(())
        })?;
        let by_name: HashMap<&str, usize> =
            self.weights.iter().enumerate().map(|(i, w)| (w.name.as_str(), i)).collect();
        inputs.retain(|port| !by_name.contains_key(port.name.as_str()));
        // Uses of an input, and of a weight: [as rows to look up, otherwise].
        let mut input_uses: HashMap<String, usize> = inputs.iter().map(|p| (p.name.clone(), 0)).collect();
        let mut weight_uses = vec![[0usize; 2]; by_name.len().max(self.weights.len())];
        let (mut pairs, mut blocked) = (Vec::new(), false);
        let mut count = |node: &Node| {
            blocked |= node.op == "DequantizeLinear" && node.attributes.contains(&"block_size");
            for (i, name) in node.inputs.iter().enumerate() {
                if let Some(uses) = input_uses.get_mut(*name) {
                    *uses += 1;
                }
                if let Some(at) = by_name.get(name) {
                    let rows = i == 0 && matches!(node.op, "Gather" | "GatherBlockQuantized");
                    weight_uses[*at][usize::from(!rows)] += 1;
                }
            }
            if node.op == "GroupQueryAttention" && node.domain == "com.microsoft" {
                for (past, present) in [(3, 1), (4, 2)] {
                    if let (Some(past), Some(present)) = (node.inputs.get(past), node.outputs.get(present)) {
                        pairs.push(((*past).to_owned(), (*present).to_owned()));
                    }
                }
            }
        };
        let mut outside = Self::default();
        outside.walk_graph(graph, 0, &mut count)?;
        drop(by_name);
        pairs.retain(|(past, _)| input_uses.get(past) == Some(&1));
        for (weight, [rows, otherwise]) in self.weights.iter_mut().zip(weight_uses) {
            weight.gathered = rows > 0 && otherwise == 0;
        }
        self.external.append(&mut outside.external);
        self.inputs.append(&mut inputs);
        self.in_place.append(&mut pairs);
        self.blocked |= blocked;
        Ok(())
    }

    /// GraphProto anywhere: every node is shown to `seen`, every tensor outside of the file is noted.
    fn walk_graph(&mut self, graph: &[u8], depth: usize, seen: &mut dyn FnMut(&Node)) -> Result<(), OnnxError> {
        if depth == DEEPEST {
            return Err(OnnxError::Depth);
        }
        each(graph, "a graph", |number, body| match number {
            1 => self.walk_node(body, depth, seen),
            5 => self.note_external(body),
            15 => self.walk_sparse(body),
            _ => Ok(()),
        })
    }

    fn walk_node(&mut self, node: &[u8], depth: usize, seen: &mut dyn FnMut(&Node)) -> Result<(), OnnxError> {
        let mut summary = Node::default();
        for field in Fields::new(node) {
            let field = field.map_err(within("a node"))?;
            match field.number {
                1 => summary.inputs.push(field.text().map_err(within("a node"))?),
                2 => summary.outputs.push(field.text().map_err(within("a node"))?),
                4 => summary.op = field.text().map_err(within("a node"))?,
                7 => summary.domain = field.text().map_err(within("a node"))?,
                5 => {
                    let attribute = field.bytes().map_err(within("a node"))?;
                    let name = Fields::new(attribute).flatten().find(|f| f.number == 1);
                    summary.attributes.extend(name.and_then(|f| f.text().ok()));
                    self.walk_attribute(attribute, depth, seen)?;
                }
                _ => {}
            }
        }
        seen(&summary);
        Ok(())
    }

    fn walk_attribute(&mut self, attribute: &[u8], depth: usize, seen: &mut dyn FnMut(&Node)) -> Result<(), OnnxError> {
        each(attribute, "an attribute", |number, body| match number {
            5 | 10 => self.note_external(body),
            6 | 11 => self.walk_graph(body, depth + 1, seen),
            22 | 23 => self.walk_sparse(body),
            _ => Ok(()),
        })
    }

    fn walk_sparse(&mut self, sparse: &[u8]) -> Result<(), OnnxError> {
        each(sparse, "a sparse tensor", |number, body| match number {
            1 | 2 => self.note_external(body),
            _ => Ok(()),
        })
    }

    /// TensorProto. Readers merge a message that stands twice, so a place is noted whether or not this very part says that
    /// the bytes lie there.
    fn note_external(&mut self, tensor: &[u8]) -> Result<(), OnnxError> {
        let mut name = "";
        let mut entries = Vec::new();
        for field in Fields::new(tensor) {
            let field = field.map_err(within("a tensor"))?;
            match field.number {
                8 => name = field.text().map_err(within("a tensor"))?,
                13 => entries.push(entry(field.bytes().map_err(within("a tensor"))?, "external_data")?),
                _ => {}
            }
        }
        let number = |key: &str| -> Result<Option<u64>, OnnxError> {
            let Some((_, value)) = entries.iter().rev().find(|(k, _)| k == key) else { return Ok(None) };
            value.parse().map(Some).map_err(|_| OnnxError::ExternalNumber {
                tensor: name.to_owned(),
                key: key.to_owned(),
                value: value.clone(),
            })
        };
        let (offset, length) = (number("offset")?.unwrap_or(0), number("length")?);
        for (_, location) in entries.iter().filter(|(key, _)| key == "location") {
            self.external.push(External { tensor: name.to_owned(), location: location.clone(), offset, length });
        }
        Ok(())
    }
}

/// NodeProto, its names alone.
#[derive(Default)]
struct Node<'a> {
    op: &'a str,
    domain: &'a str,
    inputs: Vec<&'a str>,
    outputs: Vec<&'a str>,
    attributes: Vec<&'a str>,
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

/// StringStringEntryProto.
fn entry(message: &[u8], place: &'static str) -> Result<(String, String), OnnxError> {
    let (mut key, mut value) = (String::new(), String::new());
    for field in Fields::new(message) {
        let field = field.map_err(within(place))?;
        match field.number {
            1 => key = field.text().map_err(within(place))?.to_owned(),
            2 => value = field.text().map_err(within(place))?.to_owned(),
            _ => {}
        }
    }
    Ok((key, value))
}

/// ValueInfoProto: name, and TypeProto.tensor_type with its TensorShapeProto.
fn port(message: &[u8]) -> Result<Port, OnnxError> {
    let place = "an input or output";
    let mut port = Port::default();
    for field in Fields::new(message) {
        let field = field.map_err(within(place))?;
        match field.number {
            1 => port.name = field.text().map_err(within(place))?.to_owned(),
            2 => each(field.bytes().map_err(within(place))?, place, |number, tensor| {
                if number != 1 {
                    return Ok(()); // sequences, maps and options have no element type here
                }
                for field in Fields::new(tensor) {
                    let field = field.map_err(within(place))?;
                    match field.number {
                        1 => port.ty = ElementType(field.number().map_err(within(place))?),
                        2 => each(field.bytes().map_err(within(place))?, place, |number, dim| {
                            if number == 1 {
                                port.dims.push(dimension(dim)?);
                            }
                            Ok(())
                        })?,
                        _ => {}
                    }
                }
                Ok(())
            })?,
            _ => {}
        }
    }
    Ok(port)
}

/// TensorShapeProto.Dimension.
fn dimension(message: &[u8]) -> Result<Option<u64>, OnnxError> {
    let mut value = None;
    for field in Fields::new(message) {
        let field = field.map_err(within("a dimension"))?;
        if field.number == 1 {
            // Some exporters write -1 or 0 for what a run decides.
            value = Some(field.number().map_err(within("a dimension"))?).filter(|v| (1..1 << 62).contains(v));
        }
    }
    Ok(value)
}

/// TensorProto: name, type, dimensions.
fn weight(message: &[u8]) -> Result<Weight, OnnxError> {
    let place = "a tensor";
    let (mut name, mut ty, mut dims) = (String::new(), ElementType::default(), Vec::new());
    for field in Fields::new(message) {
        let field = field.map_err(within(place))?;
        match field.number {
            1 => field.push_int64s(&mut dims).map_err(within(place))?,
            2 => ty = ElementType(field.number().map_err(within(place))?),
            8 => name = field.text().map_err(within(place))?.to_owned(),
            _ => {}
        }
    }
    let sizes: Option<Vec<u64>> = dims.iter().map(|d| u64::try_from(*d).ok()).collect();
    let count = |sizes: &[u64]| sizes.iter().try_fold(1u64, |n, d| n.checked_mul(*d));
    let Some((elements, sizes)) = sizes.and_then(|sizes| Some((count(&sizes)?, sizes))) else {
        return Err(OnnxError::Dimensions { tensor: name, dims });
    };
    let bytes = elements.checked_mul(ty.bits().unwrap_or(0)).map_or(u64::MAX, |bits| bits.div_ceil(8));
    Ok(Weight { name, ty, dims: sizes, bytes, gathered: false })
}

#[cfg(test)]
mod tests;
