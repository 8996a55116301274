//! What both families are made of: linear layers, heads, attention under a mask.

use super::graph::{Graph, Value, float, int};
use super::weights::Weights;
use crate::{error::Result, source::ModelSpec};

/// A network on its way into a graph. Shapes: B batch, S tokens of this call, P tokens in the cache, T = P + S, C hidden,
/// H heads, K key heads, G = H / K, D head width, V vocabulary.
pub(super) struct Net<'a> {
    pub spec: &'a ModelSpec,
    pub graph: Graph,
    pub weights: Weights<'a>,
}

impl Net<'_> {
    /// x (B, S, in) -> (B, S, out): `{name}.weight`, and `{name}.bias` where the model has one.
    pub fn linear(&mut self, x: &str, name: &str) -> Result<Value> {
        let y = self.weights.multiply(&mut self.graph, x, &format!("{name}.weight"))?;
        let bias = format!("{name}.bias");
        if !self.weights.has(&bias) {
            return Ok(y);
        }
        let b = self.weights.vector(&mut self.graph, &bias)?;
        Ok(self.graph.op("Add", &[&y, &b]))
    }

    /// x (..., C) -> the same, normed over C: RMSNorm by `{name}.weight`, or LayerNorm where the model has a bias there.
    pub fn norm(&mut self, x: &str, name: &str) -> Result<Value> {
        let (weight, bias) = (format!("{name}.weight"), format!("{name}.bias"));
        if self.weights.has(&bias) {
            let weight = self.weights.vector(&mut self.graph, &weight)?;
            let bias = self.weights.vector(&mut self.graph, &bias)?;
            let settings = vec![int("axis", -1), float("epsilon", self.spec.norm_eps)];
            return Ok(self.graph.op_with("LayerNormalization", &[x, &weight, &bias], settings));
        }
        // x / sqrt(mean(x^2) + eps) * weight, in the order of operators that runtimes know how to fuse.
        let weight = self.weights.vector(&mut self.graph, &weight)?;
        let g = &mut self.graph;
        let (two, eps) = (g.float(2.0), g.float(self.spec.norm_eps));
        let squares = g.op("Pow", &[x, &two]);
        let mean = g.reduce("ReduceMean", &squares, -1, true);
        let mean = g.op("Add", &[&mean, &eps]);
        let root = g.op("Sqrt", &[&mean]);
        let x = g.op("Div", &[x, &root]);
        Ok(g.op("Mul", &[&x, &weight]))
    }

    /// x (B, S, n D) -> (B, n, S, D).
    pub fn heads(&mut self, x: &str, n: usize) -> Value {
        let g = &mut self.graph;
        let x = g.reshape(x, &[0, 0, n as i64, self.spec.head_dim as i64]);
        g.transpose(&x, &[0, 2, 1, 3])
    }

    /// q (B, K, G S, D), k and v (B, K, T, D), bias that broadcasts over (B, K, G S, T) -> (B, S, H D).
    ///
    /// The G heads that share a key head lie one below the other as rows, so that keys and values are read where they are
    /// and never repeated.
    pub fn attention(&mut self, q: &str, k: &str, v: &str, bias: &str) -> Value {
        let (heads, d) = (self.spec.n_heads as i64, self.spec.head_dim as i64);
        let g = &mut self.graph;
        let scale = g.float(self.spec.scale());
        let q = g.op("Mul", &[q, &scale]);
        let k = g.transpose(k, &[0, 1, 3, 2]);
        let scores = g.op("MatMul", &[&q, &k]); // (B, K, G S, T)
        let scores = g.op("Add", &[&scores, bias]);
        let shares = g.op("Softmax", &[&scores]); // over the last axis
        let y = g.op("MatMul", &[&shares, v]); // (B, K, G S, D)
        let y = if self.spec.n_kv_heads == self.spec.n_heads { y } else { g.reshape(&y, &[0, heads, -1, d]) };
        let y = g.transpose(&y, &[0, 2, 1, 3]); // (B, S, H, D)
        g.reshape(&y, &[0, 0, heads * d])
    }

    /// What is added to scores: 0 where `seen`, the lowest finite float elsewhere. A row that sees nothing (padding before
    /// the first token) becomes an even mean, where minus infinity would make it NaN.
    pub fn bias(&mut self, seen: &str) -> Value {
        let g = &mut self.graph;
        let (zero, lowest) = (g.float(0.0), g.float(f32::MIN));
        g.op("Where", &[seen, &zero, &lowest])
    }
}
