//! Llama (arXiv:2302.13971) and its kin: Mistral (arXiv:2310.06825: a sliding window), Qwen2 (arXiv:2407.10671: biases on q,
//! k, v), Qwen3 (arXiv:2505.09388: norms of each head's query and key), Phi-3 (arXiv:2404.14219: q, k, v in one matrix, gate
//! and up in another), Gemma 3 (arXiv:2503.19786: norms behind each half of a block too, windows and rotations by layer) and
//! GPT-2 (learned positions, layer norms, no gate).

use super::linear::{Compute, Linear};
use super::ops::{Norm, Rope, bend, gated, rms_norm_heads};
use super::{Finder, add, head, wanted};
use crate::engine::Run;
use crate::error::Result;
use crate::format::block::decode;
use crate::kernels::attention::Seen;
use crate::kv_cache::KvCache;
use crate::model::{Arch, Hparams, Model, Task};
use std::cell::RefCell;

thread_local! {
    /// Scores, and some keys or values, of one attention task.
    static SCRATCH: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// Tokens that meet a block of keys together, at most.
const TOKENS: usize = 16;
/// Floats of their scores, at most, while they are several: 1 MiB.
const SCORES: usize = 1 << 18;

/// Where the weights are, and buffers of one pass.
pub struct Llama {
    embedding: usize,
    /// (T, C), where positions are learned.
    positions: Option<Vec<f32>>,
    blocks: Vec<Block>,
    norm: Norm,
    head: Head,
    /// Of layers that see all, then of local ones; none where positions are learned.
    ropes: Vec<Rope>,
    buffers: Buffers,
}

enum Head {
    /// (V, C): `output`, or the embedding it is tied to.
    Language(Linear),
    /// (labels, C), a classifier on the last token.
    Score(Vec<f32>),
}

/// x₁ = x + attention(norm x); y = x₁ + feed-forward(norm x₁), each half under a second norm where there is one.
struct Block {
    attn_norm: Norm,
    q: Linear,
    k: Linear,
    v: Linear,
    /// (D) each: norms of a head's query and key.
    head_norms: Option<[Vec<f32>; 2]>,
    output: Linear,
    post_attn_norm: Option<Norm>,
    ffn_norm: Norm,
    /// Absent where the feed-forward has no gate.
    gate: Option<Linear>,
    up: Linear,
    down: Linear,
    post_ffn_norm: Option<Norm>,
    /// Which of the rotations.
    rope: usize,
}

#[derive(Default)]
struct Buffers {
    x: Vec<f32>,                  // (N, C)
    normed: Vec<f32>,             // (N, C)
    q: Vec<f32>,                  // (N, H * D)
    k: Vec<f32>,                  // (N, K * D)
    v: Vec<f32>,                  // (N, K * D)
    attended: Vec<f32>,           // (N, H * D)
    y: Vec<f32>,                  // (N, C)
    gate: Vec<f32>,               // (N, F)
    up: Vec<f32>,                 // (N, F)
    angles: Vec<Vec<(f32, f32)>>, // (N, D / 2) for each kind of rotations
}

impl Llama {
    /// Finds every tensor.
    pub fn new(model: &Model) -> Result<Self> {
        let (find, h) = (Finder(model), model.hparams());
        let blocks = (0..h.n_layers).map(|i| Block::new(&find, h, i)).collect::<Result<_>>()?;
        let embedding = find.linear("token_embd")?;
        let at = embedding.index;
        let head = match model.task() {
            Task::Classify => Head::Score(find.array("edgeft.head.score.weight")?),
            _ if find.index("output.weight").is_some() => Head::Language(find.linear("output")?),
            _ => Head::Language(embedding),
        };
        let positions = if h.rotary_dim == 0 { Some(find.vector("position_embd.weight")?) } else { None };
        let norm = find.norm("output_norm", h.arch == Arch::Gpt2)?;
        Ok(Self { embedding: at, positions, blocks, norm, head, ropes: ropes(&find, h), buffers: Buffers::default() })
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
        // Sequence and position of every token.
        let places: Vec<(usize, usize)> =
            runs.iter().flat_map(|r| (0..r.tokens.len()).map(|i| (r.seq, cache.len(r.seq) + i))).collect();
        let positions = || places.iter().map(|(_, p)| *p);
        let table = model.matrix(self.embedding);
        b.x.resize(tokens.len() * c, 0.0);
        for (t, (x, id)) in b.x.chunks_mut(c).zip(&tokens).enumerate() {
            decode(table.ty, table.row(*id as usize), x);
            compute.adapters.embed(t, self.embedding, *id, x);
        }
        if h.embedding_scale != 1.0 {
            b.x.iter_mut().for_each(|x| *x *= h.embedding_scale);
        }
        if let Some(table) = &self.positions {
            b.x.chunks_mut(c).zip(positions()).for_each(|(x, p)| add(x, &table[p * c..][..c]));
        }
        b.angles.resize(self.ropes.len(), Vec::new());
        for (rope, angles) in self.ropes.iter().zip(&mut b.angles) {
            angles.clear();
            positions().for_each(|p| rope.angles(p, angles));
        }
        for (layer, block) in self.blocks.iter().enumerate() {
            block.attn_norm.apply(&b.x, h.norm_eps, &mut b.normed);
            compute.set(&b.normed, c);
            compute.mul(model, &block.q, &mut b.q);
            compute.mul(model, &block.k, &mut b.k);
            compute.mul(model, &block.v, &mut b.v);
            if let Some([q_norm, k_norm]) = &block.head_norms {
                rms_norm_heads(&mut b.q, q_norm, h.norm_eps);
                rms_norm_heads(&mut b.k, k_norm, h.norm_eps);
            }
            if let Some(rope) = self.ropes.get(block.rope) {
                for (t, angles) in b.angles[block.rope].chunks(rope.pairs()).enumerate() {
                    rope.rotate(&mut b.q[t * q_dim..][..q_dim], angles);
                    rope.rotate(&mut b.k[t * kv_dim..][..kv_dim], angles);
                }
            }
            b.attended.resize(tokens.len() * q_dim, 0.0);
            let mut at = 0;
            for run in runs {
                let n = run.tokens.len();
                cache.write(run.seq, layer, &b.k[at * kv_dim..][..n * kv_dim], &b.v[at * kv_dim..][..n * kv_dim]);
                at += n;
            }
            attend(h, compute, cache, &places, layer, &b.q, &mut b.attended);
            compute.set(&b.attended, q_dim);
            compute.mul(model, &block.output, &mut b.y);
            add_normed(&mut b.x, &b.y, block.post_attn_norm.as_ref(), h.norm_eps, &mut b.normed);
            block.ffn_norm.apply(&b.x, h.norm_eps, &mut b.normed);
            compute.set(&b.normed, c);
            compute.mul(model, &block.up, &mut b.up);
            let bent = match &block.gate {
                Some(gate) => {
                    compute.mul(model, gate, &mut b.gate);
                    let up = &b.up;
                    let act = |t: usize, gate: &mut [f32]| gated(h.activation, gate, &up[t * h.ffn..][..h.ffn]);
                    compute.pool.run_chunks(&mut b.gate, h.ffn, &act);
                    &b.gate
                }
                None => {
                    compute.pool.run_chunks(&mut b.up, h.ffn, &|_, up| bend(h.activation, up));
                    &b.up
                }
            };
            compute.set(bent, h.ffn);
            compute.mul(model, &block.down, &mut b.y);
            add_normed(&mut b.x, &b.y, block.post_ffn_norm.as_ref(), h.norm_eps, &mut b.normed);
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
        compute.adapters.lay(runs, |run| wanted(run).len());
        self.norm.apply(&rows, h.norm_eps, &mut b.normed);
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

impl Block {
    /// Finds the tensors of layer `i`.
    fn new(find: &Finder, h: &Hparams, i: usize) -> Result<Self> {
        let at = |part: &str| format!("blk.{i}.{part}");
        let (q_dim, kv_dim) = (h.n_heads * h.head_dim, h.n_kv_heads * h.head_dim);
        let norm = |part: &str| find.norm(&at(part), h.arch == Arch::Gpt2);
        let linear = |part: &str| find.linear(&at(part));
        let behind = |part: &str| if h.arch == Arch::Gemma3 { norm(part).map(Some) } else { Ok(None) };
        let [q, k, v] = match h.arch {
            Arch::Phi3 | Arch::Gpt2 => find.linears(&at("attn_qkv"), [q_dim, kv_dim, kv_dim])?,
            _ => [linear("attn_q")?, linear("attn_k")?, linear("attn_v")?],
        };
        let (gate, up) = match h.arch {
            Arch::Gpt2 => (None, linear("ffn_up")?),
            Arch::Phi3 => {
                let [gate, up] = find.linears(&at("ffn_up"), [h.ffn, h.ffn])?;
                (Some(gate), up)
            }
            _ => (Some(linear("ffn_gate")?), linear("ffn_up")?),
        };
        let head_norms = match h.arch {
            Arch::Qwen3 | Arch::Gemma3 => {
                Some([find.vector(&at("attn_q_norm.weight"))?, find.vector(&at("attn_k_norm.weight"))?])
            }
            _ => None,
        };
        Ok(Self {
            attn_norm: norm("attn_norm")?,
            q,
            k,
            v,
            head_norms,
            output: linear("attn_output")?,
            post_attn_norm: behind("post_attention_norm")?,
            ffn_norm: norm("ffn_norm")?,
            gate,
            up,
            down: linear("ffn_down")?,
            post_ffn_norm: behind("post_ffw_norm")?,
            rope: usize::from(h.local_rope_theta.is_some() && h.is_local(i)),
        })
    }
}

/// The rotations of layers that see all, then those of local ones where they are others.
fn ropes(find: &Finder, h: &Hparams) -> Vec<Rope> {
    if h.rotary_dim == 0 {
        return Vec::new();
    }
    let factors = find.maybe("rope_freqs.weight");
    let rope = |theta, linear, factors| {
        Rope::new(h.rotary_dim, theta, linear, factors, h.arch == Arch::Llama).of_heads(h.head_dim)
    };
    let mut ropes = vec![rope(h.rope_theta, h.rope_factor, factors.as_deref())];
    ropes.extend(h.local_rope_theta.map(|theta| rope(theta, 1.0, None)));
    ropes
}

/// Causal attention of all tokens, already written to the cache, each over its own sequence.
fn attend(
    h: &Hparams,
    compute: &Compute,
    cache: &KvCache,
    places: &[(usize, usize)],
    layer: usize,
    q: &[f32],
    out: &mut [f32],
) {
    let (d, group, window) = (h.head_dim, h.n_heads / h.n_kv_heads, h.window(layer));
    let (stride, kernels) = (h.n_heads * d, compute.kernels);
    let span = |position: usize| (window.map_or(0, |w| (position + 1).saturating_sub(w)), position + 1);
    // Neighbours of one sequence; `q` and `out` begin with the first token's first head of the group.
    let part = |places: &[(usize, usize)], kv_head: usize, q: &[f32], out: &mut [f32]| {
        let spans: Vec<(usize, usize)> = places.iter().map(|(_, position)| span(*position)).collect();
        let Some(((seq, _), (_, to))) = places.first().zip(spans.last()) else { return };
        let (keys, values) = cache.rows(*seq, layer, *to);
        let (width, scale) = (h.n_kv_heads * d, h.attention_scale);
        let seen = Seen { keys, values, spans: &spans, kv_head, group, d, stride, width, scale };
        SCRATCH.with_borrow_mut(|scratch| {
            scratch.resize(scratch.len().max(seen.scratch()), 0.0);
            kernels.attend(q, &seen, scratch, out);
        });
    };
    // Tokens of different sequences are spread by heads, those of one by tokens; as many together as their scores leave room
    // for.
    if places.windows(2).all(|two| two[0].0 != two[1].0) {
        compute.pool.run_chunks(out, group * d, &|i, out| {
            let (t, kv_head) = (i / h.n_kv_heads, i % h.n_kv_heads);
            part(&places[t..=t], kv_head, &q[i * group * d..], out);
        });
        return;
    }
    let longest = places.iter().map(|(_, position)| position + 1).max().unwrap_or(1);
    let tokens = places.len().div_ceil(compute.pool.threads()).min(TOKENS).min(SCORES / (group * longest)).max(1);
    compute.pool.run_chunks(out, tokens * stride, &|i, out| {
        let mut at = 0;
        for places in places[i * tokens..][..out.len() / stride].chunk_by(|a, b| a.0 == b.0) {
            for k in 0..h.n_kv_heads {
                let head = at * stride + k * group * d;
                part(places, k, &q[i * tokens * stride + head..], &mut out[head..]);
            }
            at += places.len();
        }
    });
}

/// x = x + y, or x + norm(y); `normed` is room for it.
fn add_normed(x: &mut [f32], y: &[f32], norm: Option<&Norm>, eps: f32, normed: &mut Vec<f32>) {
    match norm {
        None => add(x, y),
        Some(norm) => {
            norm.apply(y, eps, normed);
            add(x, normed);
        }
    }
}
