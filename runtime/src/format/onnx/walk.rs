//! Through the graphs of a model: how its weights are used, and where each tensor lies that is not in the file.

use super::messages::{places, port, weight};
use super::{DEEPEST, External, MOST, Onnx, OnnxError, each, push, within};
use crate::format::protobuf::Fields;
use std::collections::HashMap;

impl Onnx {
    /// GraphProto of the model itself. Weights and inputs first, so that only uses of them need to be counted.
    pub(super) fn read_main(&mut self, graph: &[u8]) -> Result<(), OnnxError> {
        let mut inputs = Vec::new();
        each(graph, "the graph", |number, body| {
            match number {
                5 => push(&mut self.weights, weight(body)?, "tensors")?,
                11 => push(&mut inputs, port(body)?, "inputs")?,
                12 => push(&mut self.outputs, port(body)?, "outputs")?,
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
        let (mut pairs, mut blocked, mut nodes) = (Vec::new(), false, 0);
        let operators = &mut self.operators;
        let mut count = |node: &Node, depth: usize| {
            if depth == 0 {
                nodes += 1;
                if nodes > MOST {
                    return Err(OnnxError::TooMany { what: "nodes", most: MOST });
                }
                *operators.entry(node.full_name()).or_insert(0) += 1;
            }
            blocked |= node.op == "DequantizeLinear" && node.attributes.contains(&"block_size");
            for (i, name) in node.inputs.iter().enumerate() {
                if let Some(uses) = input_uses.get_mut(*name) {
                    *uses += 1;
                }
                if let Some(at) = by_name.get(name) {
                    weight_uses[*at][usize::from(!node.looks_up(i))] += 1;
                }
            }
            if node.op == "GroupQueryAttention" && node.domain == "com.microsoft" {
                for (past, present) in [(3, 1), (4, 2)] {
                    if let (Some(past), Some(present)) = (node.inputs.get(past), node.outputs.get(present)) {
                        pairs.push(((*past).to_owned(), (*present).to_owned()));
                    }
                }
            }
            Ok(())
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

    /// `TrainingInfoProto`, for the tensors outside that its graphs name.
    pub(super) fn read_training(&mut self, message: &[u8]) -> Result<(), OnnxError> {
        each(message, "training_info", |number, body| match number {
            1 | 2 => self.walk_graph(body, 0, &mut |_, _| Ok(())),
            _ => Ok(()),
        })
    }

    /// `FunctionProto`, for the tensors outside that its nodes and the defaults of its attributes name.
    pub(super) fn read_function(&mut self, message: &[u8]) -> Result<(), OnnxError> {
        each(message, "functions", |number, body| match number {
            7 => self.walk_node(body, 0, &mut |_, _| Ok(())),
            11 => self.walk_attribute(body, 0, &mut |_, _| Ok(())),
            _ => Ok(()),
        })
    }

    /// GraphProto anywhere: every node is shown to `seen`, every tensor outside of the file is noted.
    fn walk_graph(&mut self, graph: &[u8], depth: usize, seen: Seen) -> Result<(), OnnxError> {
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

    fn walk_node(&mut self, node: &[u8], depth: usize, seen: Seen) -> Result<(), OnnxError> {
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
        seen(&summary, depth)
    }

    fn walk_attribute(&mut self, attribute: &[u8], depth: usize, seen: Seen) -> Result<(), OnnxError> {
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

    /// `TensorProto`. Readers merge a message that stands twice, so a place is noted whether or not this very part says that
    /// the bytes lie there.
    fn note_external(&mut self, tensor: &[u8]) -> Result<(), OnnxError> {
        let (name, places) = places(tensor)?;
        for (location, offset, length) in places {
            let external = External { tensor: name.to_owned(), location, offset, length };
            push(&mut self.external, external, "tensors in other files")?;
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

impl Node<'_> {
    /// Whether the node takes rows of its i-th input, and not the whole.
    fn looks_up(&self, i: usize) -> bool {
        match self.op {
            "Gather" => i == 0,
            "GatherBlockQuantized" => matches!(i, 0 | 2), // codes, scales
            "RotaryEmbedding" => matches!(i, 2 | 3),      // cosines, sines
            "GroupQueryAttention" => matches!(i, 7 | 8),
            _ => false,
        }
    }

    fn full_name(&self) -> String {
        match self.domain {
            "" | "ai.onnx" => self.op.to_owned(),
            domain => format!("{domain}.{}", self.op),
        }
    }
}

/// Is shown every node, and how deep it lies: 0 in a graph that no node holds.
type Seen<'a> = &'a mut dyn FnMut(&Node, usize) -> Result<(), OnnxError>;
