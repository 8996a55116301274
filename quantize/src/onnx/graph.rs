//! A graph under construction: operators by name, constants written once, every name unique.

use super::proto::{
    AttributeKind, AttributeProto, DataType, DimensionProto, GraphProto, NodeProto, TensorProto, TensorShapeProto,
    TensorTypeProto, TypeProto, ValueInfoProto,
};
use std::collections::HashSet;

/// Opset without blocks: `LayerNormalization` came with 17. ONNX Runtime 1.17 and every later one runs it.
pub(super) const OPSET: i64 = 17;
/// Opset of blocked `DequantizeLinear` and of four-bit integers.
pub(super) const OPSET_BLOCKS: i64 = 21;

/// Domain of ONNX Runtime's own operators, and its version.
pub(super) const CONTRIB: (&str, i64) = ("com.microsoft", 1);

/// The name of a value: a node's output, a constant, an input.
pub(super) type Value = String;

/// A dimension of an input or output.
#[derive(Clone, Copy)]
pub(super) enum Dim {
    /// The same in every call.
    Fixed(usize),
    /// Told by the caller.
    Named(&'static str),
}

pub(super) struct Graph {
    opset: i64,
    /// Where the next nodes belong, such as `layers.0.attn`.
    pub scope: String,
    parts: GraphProto,
    constants: HashSet<String>,
}

impl Graph {
    pub fn new(opset: i64) -> Self {
        Self { opset, scope: String::new(), parts: GraphProto::default(), constants: HashSet::new() }
    }

    pub fn opset(&self) -> i64 {
        self.opset
    }

    pub fn finish(self, name: &str) -> GraphProto {
        GraphProto { name: name.to_owned(), ..self.parts }
    }

    /// An operator without settings, and its one output.
    pub fn op(&mut self, op: &str, inputs: &[&str]) -> Value {
        self.op_with(op, inputs, vec![])
    }

    /// An operator with settings, and its one output.
    pub fn op_with(&mut self, op: &str, inputs: &[&str], attributes: Vec<AttributeProto>) -> Value {
        let [out] = self.op_many(op, inputs, attributes);
        out
    }

    /// An operator with `N` outputs.
    pub fn op_many<const N: usize>(
        &mut self,
        op: &str,
        inputs: &[&str],
        attributes: Vec<AttributeProto>,
    ) -> [Value; N] {
        self.node("", op, inputs, std::array::from_fn(|i| i), attributes)
    }

    /// An operator of ONNX Runtime's own, and those of its outputs that stand at `places`.
    pub fn contrib<const N: usize>(
        &mut self,
        op: &str,
        inputs: &[&str],
        places: [usize; N],
        attributes: Vec<AttributeProto>,
    ) -> [Value; N] {
        self.node(CONTRIB.0, op, inputs, places, attributes)
    }

    fn node<const N: usize>(
        &mut self,
        domain: &str,
        op: &str,
        inputs: &[&str],
        places: [usize; N],
        attributes: Vec<AttributeProto>,
    ) -> [Value; N] {
        // The count of all nodes so far makes the name unique.
        let name = format!("{}/{op}.{}", self.scope, self.parts.node.len());
        let values = places.map(|i| if N == 1 { name.clone() } else { format!("{name}.{i}") });
        let mut output = vec![String::new(); places.iter().max().map_or(0, |last| last + 1)]; // "" is given to nobody
        places.iter().zip(&values).for_each(|(i, value)| value.clone_into(&mut output[*i]));
        self.parts.node.push(NodeProto {
            input: inputs.iter().map(|s| (*s).to_owned()).collect(),
            output,
            name,
            op_type: op.to_owned(),
            attribute: attributes,
            domain: domain.to_owned(),
        });
        values
    }

    /// Whether a node is ONNX Runtime's own.
    pub fn has_contrib(&self) -> bool {
        self.parts.node.iter().any(|n| n.domain == CONTRIB.0)
    }

    /// Gives a value out under `name`.
    pub fn output(&mut self, name: &str, value: &str, ty: DataType, dims: &[Dim]) {
        // The node that made it takes the name, so that no copy is made.
        for node in &mut self.parts.node {
            node.input.iter_mut().chain(&mut node.output).filter(|v| *v == value).for_each(|v| name.clone_into(v));
        }
        self.parts.output.push(info(name, ty, dims));
    }

    pub fn input(&mut self, name: &str, ty: DataType, dims: &[Dim]) -> Value {
        self.parts.input.push(info(name, ty, dims));
        name.to_owned()
    }

    /// A constant whose values are outside of the graph.
    pub fn initializer(&mut self, tensor: TensorProto) -> Value {
        let name = tensor.name.clone();
        self.parts.initializer.push(tensor);
        name
    }

    /// A list of whole numbers (1-D): shapes, axes.
    pub fn ints(&mut self, values: &[i64]) -> Value {
        let name = format!("const.{}", values.iter().map(i64::to_string).collect::<Vec<_>>().join(","));
        let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.constant(name, DataType::Int64, vec![values.len() as i64], bytes)
    }

    /// One whole number (0-D).
    pub fn int(&mut self, value: i64) -> Value {
        self.constant(format!("const.scalar.{value}"), DataType::Int64, vec![], value.to_le_bytes().to_vec())
    }

    /// One float (0-D).
    pub fn float(&mut self, value: f32) -> Value {
        self.constant(format!("const.scalar.{value:?}f"), DataType::Float, vec![], value.to_le_bytes().to_vec())
    }

    /// Floats (1-D) that the config gives, no tensor of the source.
    pub fn floats(&mut self, name: &str, values: &[f32]) -> Value {
        let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.constant(name.to_owned(), DataType::Float, vec![values.len() as i64], bytes)
    }

    fn constant(&mut self, name: String, ty: DataType, dims: Vec<i64>, bytes: Vec<u8>) -> Value {
        if self.constants.insert(name.clone()) {
            let raw_data = Some(bytes);
            let tensor = TensorProto { dims, data_type: ty as i32, name: name.clone(), raw_data, ..Default::default() };
            self.parts.initializer.push(tensor);
        }
        name
    }

    // Operators whose settings differ between opsets, or that need a constant each time.

    pub fn reshape(&mut self, x: &str, shape: &[i64]) -> Value {
        let shape = self.ints(shape);
        self.op("Reshape", &[x, &shape])
    }

    pub fn transpose(&mut self, x: &str, order: &[i64]) -> Value {
        self.op_with("Transpose", &[x], vec![ints("perm", order)])
    }

    pub fn unsqueeze(&mut self, x: &str, axes: &[i64]) -> Value {
        let axes = self.ints(axes);
        self.op("Unsqueeze", &[x, &axes])
    }

    pub fn concat(&mut self, parts: &[&str], axis: i64) -> Value {
        self.op_with("Concat", parts, vec![int("axis", axis)])
    }

    pub fn gather(&mut self, table: &str, index: &str, axis: i64) -> Value {
        self.op_with("Gather", &[table, index], vec![int("axis", axis)])
    }

    pub fn cast(&mut self, x: &str, to: DataType) -> Value {
        self.op_with("Cast", &[x], vec![int("to", to as i64)])
    }

    /// `ReduceMean`, `ReduceMax` over one axis. Axes are a setting until opset 17, an input from 18 on.
    pub fn reduce(&mut self, op: &str, x: &str, axis: i64, keep: bool) -> Value {
        let keep = int("keepdims", i64::from(keep));
        if self.opset < 18 {
            return self.op_with(op, &[x], vec![ints("axes", &[axis]), keep]);
        }
        let axes = self.ints(&[axis]);
        self.op_with(op, &[x, &axes], vec![keep])
    }

    /// Length of one dimension (0-D).
    pub fn length(&mut self, x: &str, axis: i64) -> Value {
        let shape = self.op("Shape", &[x]);
        let axis = self.int(axis);
        self.gather(&shape, &axis, 0)
    }

    /// Two halves of the last dimension, `half` each.
    pub fn halves(&mut self, x: &str, half: usize) -> [Value; 2] {
        self.parts(x, [half, half])
    }

    /// Stretches of the last dimension.
    pub fn parts<const N: usize>(&mut self, x: &str, sizes: [usize; N]) -> [Value; N] {
        let sizes = self.ints(&sizes.map(|n| n as i64));
        self.op_many("Split", &[x, &sizes], vec![int("axis", -1)])
    }
}

pub(super) fn int(name: &str, value: i64) -> AttributeProto {
    AttributeProto { name: name.into(), i: Some(value), kind: AttributeKind::Int as i32, ..Default::default() }
}

pub(super) fn float(name: &str, value: f32) -> AttributeProto {
    AttributeProto { name: name.into(), f: Some(value), kind: AttributeKind::Float as i32, ..Default::default() }
}

pub(super) fn ints(name: &str, values: &[i64]) -> AttributeProto {
    AttributeProto { name: name.into(), ints: values.to_vec(), kind: AttributeKind::Ints as i32, ..Default::default() }
}

fn info(name: &str, ty: DataType, dims: &[Dim]) -> ValueInfoProto {
    let dim = dims
        .iter()
        .map(|d| match d {
            Dim::Fixed(n) => DimensionProto { dim_value: Some(*n as i64), dim_param: None },
            Dim::Named(n) => DimensionProto { dim_value: None, dim_param: Some((*n).to_owned()) },
        })
        .collect();
    let tensor = TensorTypeProto { elem_type: ty as i32, shape: Some(TensorShapeProto { dim }) };
    ValueInfoProto { name: name.to_owned(), r#type: Some(TypeProto { tensor_type: Some(tensor) }) }
}
