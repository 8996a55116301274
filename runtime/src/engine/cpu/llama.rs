//! Llama (arXiv:2302.13971), Mistral (arXiv:2310.06825: a sliding window), Qwen2 (arXiv:2407.10671: biases on q, k, v).

use super::linear::{Compute, Linear};
use super::ops::{Rope, rms_norm, swiglu};
use super::{Finder, head, wanted};
use crate::engine::Run;
use crate::error::Result;
use crate::format::block::decode;
use crate::kernels::attention::Seen;
use crate::kv_cache::KvCache;
use crate::model::{Arch, Hparams, Model, Task};
use std::cell::RefCell;

thread_local! {
    /// Scores, and one key or value, of one attention task.
    static SCRATCH: RefCell<(Vec<f32>, Vec<f32>)> = const { RefCell::new((Vec::new(), Vec::new())) };
}

/// Where the weights are, and buffers of one pass.
pub struct Llama {
    embedding: usize,
    blocks: Vec<Block>,
    norm: Vec<f32>,
    head: Head,
    rope: Rope,
    buffers: Buffers,
}

enum Head {
    /// (V, C): `output`, or the embedding it is tied to.
    Language(Linear),
    /// (labels, C), a classifier on the last token.
    Score(Vec<f32>),
}

struct Block {
    attn_norm: Vec<f32>,
    q: Linear,
    k: Linear,
    v: Linear,
    output: Linear,
    ffn_norm: Vec<f32>,
    gate: Linear,
    up: Linear,
    down: Linear,
}

#[derive(Default)]
struct Buffers {
    x: Vec<f32>,             // (N, C)
    normed: Vec<f32>,        // (N, C)
    q: Vec<f32>,             // (N, H * D)
    k: Vec<f32>,             // (N, K * D)
    v: Vec<f32>,             // (N, K * D)
    attended: Vec<f32>,      // (N, H * D)
    y: Vec<f32>,             // (N, C)
    gate: Vec<f32>,          // (N, F)
    up: Vec<f32>,            // (N, F)
    angles: Vec<(f32, f32)>, // (N, D / 2)
}

impl Llama {
    /// Finds every tensor.
    pub fn new(model: &Model) -> Result<Self> {
        let (find, h) = (Finder(model), model.hparams());
        let blocks = (0..h.n_layers)
            .map(|i| {
                let linear = |part: &str| find.linear(&format!("blk.{i}.{part}"));
                let norm = |part: &str| find.vector(&format!("blk.{i}.{part}.weight"));
                Ok(Block {
                    attn_norm: norm("attn_norm")?,
                    q: linear("attn_q")?,
                    k: linear("attn_k")?,
                    v: linear("attn_v")?,
                    output: linear("attn_output")?,
                    ffn_norm: norm("ffn_norm")?,
                    gate: linear("ffn_gate")?,
                    up: linear("ffn_up")?,
                    down: linear("ffn_down")?,
                })
            })
            .collect::<Result<_>>()?;
        let embedding = find.linear("token_embd")?;
        let at = embedding.index;
        let head = match model.task() {
            Task::Classify => Head::Score(find.array("edgeft.head.score.weight")?),
            _ if find.index("output.weight").is_some() => Head::Language(find.linear("output")?),
            _ => Head::Language(embedding),
        };
        let factors = find.maybe("rope_freqs.weight");
        let rope = Rope::new(h.head_dim, h.rope_theta, h.rope_factor, factors.as_deref(), h.arch == Arch::Llama);
        let norm = find.vector("output_norm.weight")?;
        Ok(Self { embedding: at, blocks, norm, head, rope, buffers: Buffers::default() })
    }

    /// All runs in one pass; appends their rows to `out`.
    pub fn forward(
        &mut self,
        model: &Model,
        compute: &mut Compute,
        cache: &mut KvCache,
        runs: &[Run],
        out: &mut Vec<f32>,
    ) -> Result<()> {
        let h = model.hparams();
        let b = &mut self.buffers;
        let (c, d) = (h.hidden, h.head_dim);
        let (q_dim, kv_dim) = (h.n_heads * d, h.n_kv_heads * d);
        let tokens: Vec<u32> = runs.iter().flat_map(|r| r.tokens.iter().copied()).collect();
        let table = model.matrix(self.embedding);
        b.x.resize(tokens.len() * c, 0.0);
        for (x, id) in b.x.chunks_mut(c).zip(&tokens) {
            decode(table.ty, table.row(*id as usize), x);
        }
        b.angles.clear();
        for run in runs {
            let from = cache.len(run.seq);
            (from..from + run.tokens.len()).for_each(|p| self.rope.angles(p, &mut b.angles));
        }
        for (layer, block) in self.blocks.iter().enumerate() {
            rms_norm(&b.x, &block.attn_norm, h.norm_eps, &mut b.normed);
            compute.set(&b.normed, c);
            compute.mul(model, &block.q, &mut b.q);
            compute.mul(model, &block.k, &mut b.k);
            compute.mul(model, &block.v, &mut b.v);
            for (t, angles) in b.angles.chunks(d / 2).enumerate() {
                self.rope.rotate(&mut b.q[t * q_dim..][..q_dim], angles);
                self.rope.rotate(&mut b.k[t * kv_dim..][..kv_dim], angles);
            }
            b.attended.resize(tokens.len() * q_dim, 0.0);
            let mut at = 0;
            for run in runs {
                let n = run.tokens.len();
                cache.write(run.seq, layer, &b.k[at * kv_dim..][..n * kv_dim], &b.v[at * kv_dim..][..n * kv_dim]);
                let (q, attended) = (&b.q[at * q_dim..][..n * q_dim], &mut b.attended[at * q_dim..][..n * q_dim]);
                attend(h, compute, cache, run.seq, layer, q, attended);
                at += n;
            }
            compute.set(&b.attended, q_dim);
            compute.mul(model, &block.output, &mut b.y);
            add(&mut b.x, &b.y);
            rms_norm(&b.x, &block.ffn_norm, h.norm_eps, &mut b.normed);
            compute.set(&b.normed, c);
            compute.mul(model, &block.gate, &mut b.gate);
            compute.mul(model, &block.up, &mut b.up);
            let up = &b.up;
            compute.pool.run_chunks(&mut b.gate, h.ffn, &|t, gate| swiglu(gate, &up[t * h.ffn..][..h.ffn]));
            compute.set(&b.gate, h.ffn);
            compute.mul(model, &block.down, &mut b.y);
            add(&mut b.x, &b.y);
        }
        // The rows that are asked for, through the final norm and the head.
        let (mut at, mut rows) = (0, Vec::new());
        for run in runs {
            wanted(run).for_each(|t| rows.extend_from_slice(&b.x[(at + t) * c..][..c]));
            at += run.tokens.len();
            cache.advance(run.seq, run.tokens.len());
        }
        if rows.is_empty() {
            return Ok(());
        }
        rms_norm(&rows, &self.norm, h.norm_eps, &mut b.normed);
        match &self.head {
            Head::Language(linear) => {
                compute.set(&b.normed, c);
                compute.mul(model, linear, out);
            }
            Head::Score(weight) => b.normed.chunks(c).for_each(|x| head(&compute.kernels, weight, None, x, out)),
        }
        Ok(())
    }
}

/// Causal attention of a run's tokens, already written to the cache, over their sequence.
fn attend(h: &Hparams, compute: &Compute, cache: &KvCache, seq: usize, layer: usize, q: &[f32], out: &mut [f32]) {
    let (d, group) = (h.head_dim, h.n_heads / h.n_kv_heads);
    let n = q.len() / (h.n_heads * d);
    let before = cache.len(seq);
    let (keys, values) = cache.rows(seq, layer, before + n);
    let kernels = compute.kernels;
    compute.pool.run_chunks(out, group * d, &|i, out| {
        let (t, kv_head) = (i / h.n_kv_heads, i % h.n_kv_heads);
        let to = before + t + 1;
        let from = h.sliding_window.map_or(0, |w| to.saturating_sub(w));
        let seen =
            Seen { keys, values, span: (from, to), kv_head, width: h.n_kv_heads * d, scale: 1.0 / (d as f32).sqrt() };
        let q = &q[i * group * d..][..group * d];
        SCRATCH.with_borrow_mut(|(scores, row)| {
            scores.resize(scores.len().max(group * (to - from)), 0.0);
            row.resize(d, 0.0);
            kernels.attend(q, &seen, &mut scores[..group * (to - from)], row, out);
        });
    });
}

fn add(x: &mut [f32], y: &[f32]) {
    x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
}
