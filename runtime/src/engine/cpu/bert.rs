//! BERT (arXiv:1810.04805), RoBERTa (arXiv:1907.11692) and DistilBERT (arXiv:1910.01108): learned positions, post-norm blocks,
//! GELU; a classifier, a span head, or a pooled vector.

use super::linear::{Compute, Linear};
use super::ops::{Norm, bend};
use super::{Finder, add, head, wanted};
use crate::engine::{Rows, Run};
use crate::error::{Error, Kind, Result};
use crate::format::block::decode;
use crate::format::gguf::GgufError;
use crate::kernels::attention::Seen;
use crate::kv_cache::KvRows;
use crate::model::{Model, Task};

/// Where the weights are, and buffers of one pass.
pub struct Bert {
    words: usize,
    positions: Vec<f32>, // (T, C)
    /// (types, C); DistilBERT has none.
    types: Option<Vec<f32>>,
    norm: Norm,
    layers: Vec<Layer>,
    head: Head,
    buffers: Buffers,
}

struct Layer {
    q: Linear,
    k: Linear,
    v: Linear,
    attn_output: Linear,
    attn_norm: Norm,
    up: Linear,
    down: Linear,
    norm: Norm,
}

enum Head {
    /// tanh(pooler(first token)), then the labels.
    Classify { pooler: Linear, output: Linear },
    /// relu(dense(first token)), then the labels: DistilBERT's, (C, C) and (labels, C) with their biases.
    Rectified { dense: [Vec<f32>; 2], output: [Vec<f32>; 2] },
    /// (2, C) and (2): start and end of the answer.
    Span { weight: Vec<f32>, bias: Vec<f32> },
    /// The mean of all tokens, or the first token.
    Pool { mean: bool },
}

#[derive(Default)]
struct Buffers {
    x: Vec<f32>,        // (T, C)
    q: Vec<f32>,        // (T, C)
    k: Vec<f32>,        // (T, C)
    v: Vec<f32>,        // (T, C)
    attended: Vec<f32>, // (T, C)
    y: Vec<f32>,        // (T, C)
    wide: Vec<f32>,     // (T, F)
}

/// Tokens that meet a block of keys together, at most.
const TOKENS: usize = 16;

/// llama.cpp's `pooling_type`.
const POOLING_MEAN: u32 = 1;
const POOLING_CLS: u32 = 2;

/// Whether a text's vector is the mean of all tokens, or else the first token.
///
/// # Errors
/// `Input` when the file asks for another pooling.
pub fn mean_pooling(model: &Model) -> Result<bool> {
    match model.gguf()?.u32("bert.pooling_type") {
        Ok(POOLING_CLS) => Ok(false),
        Ok(POOLING_MEAN) | Err(GgufError::NoKey(_)) => Ok(true),
        Ok(other) => {
            let message = format!("is {other}; known: {POOLING_MEAN} (mean), {POOLING_CLS} (first token)");
            Err(Error::new(Kind::Input, "bert.pooling_type", message))
        }
        Err(e) => Err(e.into()),
    }
}

impl Bert {
    /// Finds every tensor.
    pub fn new(model: &Model) -> Result<Self> {
        let (find, h) = (Finder(model), model.hparams());
        let norm = |name: String| find.norm(&name, true);
        let arrays = |name: &str| -> Result<[Vec<f32>; 2]> {
            Ok([find.array(&format!("{name}.weight"))?, find.array(&format!("{name}.bias"))?])
        };
        let layers = (0..h.n_layers)
            .map(|i| {
                let at = |part: &str| format!("blk.{i}.{part}");
                Ok(Layer {
                    q: find.linear(&at("attn_q"))?,
                    k: find.linear(&at("attn_k"))?,
                    v: find.linear(&at("attn_v"))?,
                    attn_output: find.linear(&at("attn_output"))?,
                    attn_norm: norm(at("attn_output_norm"))?,
                    up: find.linear(&at("ffn_up"))?,
                    down: find.linear(&at("ffn_down"))?,
                    norm: norm(at("layer_output_norm"))?,
                })
            })
            .collect::<Result<_>>()?;
        let head = match model.task() {
            Task::Classify if find.index("cls.weight").is_none() => Head::Rectified {
                dense: arrays("edgeft.head.pre_classifier")?,
                output: arrays("edgeft.head.classifier")?,
            },
            Task::Classify => Head::Classify { pooler: find.linear("cls")?, output: find.linear("cls.output")? },
            Task::Answer => {
                let [weight, bias] = arrays("edgeft.head.qa_outputs")?;
                Head::Span { weight, bias }
            }
            Task::Embed | Task::Generate => Head::Pool { mean: mean_pooling(model)? },
        };
        Ok(Self {
            words: find.linear("token_embd")?.index,
            positions: find.vector("position_embd.weight")?,
            types: find.maybe("token_types.weight"),
            norm: norm("token_embd_norm".into())?,
            layers,
            head,
            buffers: Buffers::default(),
        })
    }

    /// Texts, whole, in one pass; appends their rows to `out`.
    pub fn forward(&mut self, model: &Model, compute: &mut Compute, runs: &[Run], out: &mut Vec<f32>) -> Result<()> {
        let h = model.hparams();
        let b = &mut self.buffers;
        let (c, eps) = (h.hidden, h.norm_eps);
        let table = model.matrix(self.words);
        let spans = spans(runs);
        // Of every token, the text that it sees.
        let seen: Vec<(usize, usize)> = spans.iter().flat_map(|s| std::iter::repeat_n(*s, s.1 - s.0)).collect();
        let n = seen.len();
        b.x.resize(n * c, 0.0);
        let tokens = runs.iter().flat_map(|run| run.tokens.iter().enumerate().map(move |(t, id)| (run, t, *id)));
        for (row, (x, (run, t, id))) in b.x.chunks_mut(c).zip(tokens).enumerate() {
            decode(table.ty, table.row(id as usize), x);
            compute.adapters.embed(row, self.words, id, x);
            let position = &self.positions[t * c..][..c];
            match &self.types {
                None => add(x, position),
                Some(table) => {
                    let ty = run.types.map_or(0, |types| usize::from(types[t]));
                    let ty = &table[ty * c..][..c];
                    x.iter_mut().zip(position.iter().zip(ty)).for_each(|(x, (p, t))| *x += p + t);
                }
            }
        }
        self.norm.renew(&mut b.x, eps);
        for layer in &self.layers {
            compute.set(&b.x, c);
            compute.mul(model, &layer.q, &mut b.q);
            compute.mul(model, &layer.k, &mut b.k);
            compute.mul(model, &layer.v, &mut b.v);
            b.attended.resize(n * c, 0.0);
            let (kernels, d, q) = (compute.kernels, h.head_dim, &b.q);
            let (keys, values) = (KvRows::F32(&b.k), KvRows::F32(&b.v));
            let tokens = n.div_ceil(compute.pool.threads()).min(TOKENS);
            compute.pool.run_chunks(&mut b.attended, tokens * c, &|i, out| {
                let (q, spans) = (&q[i * tokens * c..][..out.len()], &seen[i * tokens..][..out.len() / c]);
                let mut scratch = Vec::new();
                for kv_head in 0..h.n_heads {
                    let scale = h.attention_scale;
                    let seen = Seen { keys, values, spans, kv_head, group: 1, d, stride: c, width: c, scale };
                    scratch.resize(seen.scratch(), 0.0);
                    kernels.attend(&q[kv_head * d..], &seen, &mut scratch, &mut out[kv_head * d..]);
                }
            });
            compute.set(&b.attended, c);
            compute.mul(model, &layer.attn_output, &mut b.y);
            add(&mut b.x, &b.y);
            layer.attn_norm.renew(&mut b.x, eps);
            compute.set(&b.x, c);
            compute.mul(model, &layer.up, &mut b.wide);
            compute.pool.run_chunks(&mut b.wide, h.ffn, &|_, x| bend(h.activation, x));
            compute.set(&b.wide, h.ffn);
            compute.mul(model, &layer.down, &mut b.y);
            add(&mut b.x, &b.y);
            layer.norm.renew(&mut b.x, eps);
        }
        let Buffers { x, q, y, .. } = b;
        for (run, (from, to)) in runs.iter().zip(spans).filter(|(run, _)| run.rows != Rows::None) {
            compute.adapters.lay(std::slice::from_ref(run), |_| 1); // a head's matrices read one row
            self.head.apply(model, compute, run, &x[from * c..to * c], (&mut *y, &mut *q), out);
        }
        Ok(())
    }
}

/// First token of each run, and one past its last.
fn spans(runs: &[Run]) -> Vec<(usize, usize)> {
    let mut to = 0;
    let span = |run: &Run| {
        let from = to;
        to += run.tokens.len();
        (from, to)
    };
    runs.iter().map(span).collect()
}

impl Head {
    /// Appends the rows of one text.
    /// - `x`: `(T, C)`, its last states;  `room`: two buffers
    fn apply(
        &self,
        model: &Model,
        compute: &mut Compute,
        run: &Run,
        x: &[f32],
        (y, z): (&mut Vec<f32>, &mut Vec<f32>),
        out: &mut Vec<f32>,
    ) {
        let c = model.hparams().hidden;
        let n = run.tokens.len();
        match self {
            Self::Classify { pooler, output } => {
                compute.set(&x[..c], c);
                compute.mul(model, pooler, y);
                y.iter_mut().for_each(|y| *y = y.tanh());
                compute.set(y, c);
                compute.mul(model, output, z);
                out.extend_from_slice(z);
            }
            Self::Rectified { dense, output } => {
                y.clear();
                head(&compute.kernels, &dense[0], Some(&dense[1]), &x[..c], y);
                y.iter_mut().for_each(|y| *y = y.max(0.0));
                head(&compute.kernels, &output[0], Some(&output[1]), y, out);
            }
            Self::Span { weight, bias } => {
                wanted(run).for_each(|t| head(&compute.kernels, weight, Some(bias), &x[t * c..][..c], out));
            }
            Self::Pool { mean: false } => out.extend_from_slice(&x[..c]),
            Self::Pool { mean: true } => {
                out.extend((0..c).map(|i| (0..n).map(|t| x[t * c + i]).sum::<f32>() / n as f32));
            }
        }
    }
}
