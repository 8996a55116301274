//! Llama (arXiv:2302.13971), Mistral (arXiv:2310.06825: a sliding window), Qwen2 (arXiv:2407.10671: biases on q, k, v).
//!
//! Tokens of all runs go through the blocks together, so many at once as the buffers have rows; a longer text takes several
//! passes, and each sees in the cache what the ones before it wrote.

use super::cache::Cache;
use super::device::Gpu;
use super::load::Loader;
use super::ops::{Heads, MOST_HEAD_DIM, Rows, Sight, Span, Then};
use super::pass::{Pass, Runner};
use super::pipelines::Kernel;
use super::weights::{Linear, Weight};
use crate::engine::Run;
use crate::engine::cpu::ops::Rope;
use crate::engine::cpu::{Finder, wanted};
use crate::error::{Error, Kind, Result};
use crate::model::{Arch, Hparams, Model, Task};
use std::ops::Range;
use wgpu::Buffer;

/// Tokens that go through the blocks together, at most.
const MOST_ROWS: usize = 256;
/// Bytes of output rows that are computed together, at most.
const MOST_OUTPUT: usize = 32 << 20;

/// Weights on the device, and buffers of one pass.
pub struct Llama {
    embedding: Weight,
    blocks: Vec<Block>,
    norm: Buffer,
    head: Linear,
    rope: Rope,
    adjacent: bool,
    buffers: Buffers,
    heads: Heads,
}

struct Block {
    attn_norm: Buffer,
    q: Linear,
    k: Linear,
    v: Linear,
    output: Linear,
    ffn_norm: Buffer,
    gate: Linear,
    up: Linear,
    down: Linear,
}

struct Buffers {
    /// N.
    rows: usize,
    /// Output rows that `logits` has room for.
    output_rows: usize,
    ids: Buffer,      // (N)
    angles: Buffer,   // (N, D / 2) of (cos, sin)
    x: Buffer,        // (N, C)
    normed: Buffer,   // (N, C)
    q: Buffer,        // (N, H * D)
    k: Buffer,        // (N, K * D)
    v: Buffer,        // (N, K * D)
    attended: Buffer, // (N, H * D)
    gate: Buffer,     // (N, F)
    up: Buffer,       // (N, F)
    logits: Buffer,   // (output rows, V or labels)
}

/// Tokens of one run that go through together.
struct Piece<'a> {
    seq: usize,
    tokens: &'a [u32],
    /// Row of the first of them in the pass.
    at: usize,
    /// Those whose output rows are wanted.
    wanted: Range<usize>,
}

impl Buffers {
    fn new(gpu: &Gpu, h: &Hparams, output_dim: usize, rows: usize) -> Result<Self> {
        let (q, kv) = (h.n_heads * h.head_dim, h.n_kv_heads * h.head_dim);
        let widest = [h.hidden, h.ffn, q, kv].into_iter().max().unwrap_or(1);
        let most = gpu.most_bytes() as usize / 4;
        // A matrix product spreads its tiles of rows over one dimension of workgroups.
        let tiles = gpu.limits.max_compute_workgroups_per_dimension as usize;
        let rows = rows.min(most / widest).min(tiles).max(1);
        let output_rows = rows.min(most.min(MOST_OUTPUT / 4) / output_dim).max(1);
        let buffer = |what: &str, n: usize, width: usize| gpu.storage(what, (n * width * 4) as u64);
        Ok(Self {
            rows,
            output_rows,
            ids: buffer("token ids", rows, 1)?,
            angles: buffer("rotations", rows, h.head_dim)?,
            x: buffer("hidden states", rows, h.hidden)?,
            normed: buffer("normed states", rows, h.hidden)?,
            q: buffer("queries", rows, q)?,
            k: buffer("keys", rows, kv)?,
            v: buffer("values", rows, kv)?,
            attended: buffer("attention", rows, q)?,
            gate: buffer("gates", rows, h.ffn)?,
            up: buffer("feed-forward", rows, h.ffn)?,
            logits: buffer("logits", output_rows, output_dim)?,
        })
    }
}

impl Llama {
    /// Puts every tensor on the device and compiles the kernels they need.
    /// - `most_tokens`: that a forward can bring
    ///
    /// # Errors
    /// `Limit` when the device has no room; `Input` when a tensor is missing.
    pub fn new(model: &Model, runner: &mut Runner, cache: &Cache, most_tokens: usize) -> Result<Self> {
        let (load, h) = (Loader { model, gpu: &runner.gpu }, model.hparams());
        if h.head_dim > MOST_HEAD_DIM {
            let message = format!("is {}, but the attention of --engine gpu takes at most {MOST_HEAD_DIM}", h.head_dim);
            return Err(Error::new(Kind::Limit, "head size", message));
        }
        let blocks = (0..h.n_layers)
            .map(|i| {
                let linear = |part: &str| load.linear(&format!("blk.{i}.{part}"));
                let norm = |part: &str| load.vector(&format!("blk.{i}.{part}.weight"));
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
            .collect::<Result<Vec<_>>>()?;
        let embedding = load.linear("token_embd")?;
        let find = Finder(model);
        let head = match model.task() {
            Task::Classify => Linear { weight: load.array("edgeft.head.score.weight", h.hidden)?, bias: None },
            _ if find.index("output.weight").is_some() => load.linear("output")?,
            _ => embedding.clone(),
        };
        let adjacent = h.arch == Arch::Llama;
        let factors = find.maybe("rope_freqs.weight");
        let rope = Rope::new(h.head_dim, h.rope_theta, h.rope_factor, factors.as_deref(), adjacent);
        let buffers = Buffers::new(&runner.gpu, h, head.weight.rows, most_tokens.min(MOST_ROWS))?;
        let norm = load.vector("output_norm.weight")?;
        let heads = Heads { heads: h.n_heads, kv_heads: h.n_kv_heads, d: h.head_dim };
        let mut kernels = vec![
            Kernel::RmsNorm,
            Kernel::Rope(cache.store()),
            Kernel::Attention(cache.store()),
            Kernel::SwiGlu,
            Kernel::Gather(embedding.weight.form),
        ];
        for linear in blocks.iter().flat_map(Block::linears).chain([&head]) {
            kernels.extend([Kernel::Matvec(linear.weight.form), Kernel::Matmul(linear.weight.form)]);
        }
        runner.prepare(kernels)?;
        Ok(Self { embedding: embedding.weight, blocks, norm, head, rope, adjacent, buffers, heads })
    }

    /// Numbers in an output row.
    pub fn output_dim(&self) -> usize {
        self.head.weight.rows
    }

    /// All runs, room for which is reserved; appends their rows to `out`.
    ///
    /// # Errors
    /// As [`Runner::run`]; then the cache holds what it held before.
    pub fn forward(
        &mut self,
        h: &Hparams,
        runner: &mut Runner,
        cache: &mut Cache,
        runs: &[Run],
        out: &mut Vec<f32>,
    ) -> Result<()> {
        let before: Vec<usize> = runs.iter().map(|r| cache.len(r.seq)).collect();
        let done = pieces(runs, self.buffers.rows).iter().try_for_each(|p| self.pass(h, runner, cache, p, out));
        if done.is_err() {
            runs.iter().zip(before).for_each(|(r, len)| cache.truncate(r.seq, len));
        }
        done
    }

    /// Tokens that fit the buffers.
    fn pass(
        &mut self,
        h: &Hparams,
        runner: &mut Runner,
        cache: &mut Cache,
        pieces: &[Piece],
        out: &mut Vec<f32>,
    ) -> Result<()> {
        let tokens: Vec<u32> = pieces.iter().flat_map(|p| p.tokens.iter().copied()).collect();
        let mut angles = Vec::new();
        for piece in pieces {
            let from = cache.len(piece.seq);
            (from..from + piece.tokens.len()).for_each(|p| self.rope.angles(p, &mut angles));
        }
        let angles: Vec<f32> = angles.into_iter().flat_map(|(cos, sin)| [cos, sin]).collect();
        let b = &self.buffers;
        runner.gpu.write(&b.ids, 0, bytemuck::cast_slice(&tokens))?;
        runner.gpu.write(&b.angles, 0, bytemuck::cast_slice(&angles))?;
        let mut pass = runner.begin();
        pass.gather(&self.embedding, (&b.ids).into(), &b.x, tokens.len(), Then::Set);
        for (i, block) in self.blocks.iter().enumerate() {
            self.block(&mut pass, h, block, &runner.nothing, tokens.len(), &|pass| {
                for piece in pieces {
                    let span = Span { at: piece.at, n: piece.tokens.len(), before: cache.len(piece.seq) };
                    let (store, kv) = (cache.store(), cache.layer(piece.seq, i));
                    pass.rope(store, [&b.q, &b.k, &b.v, &b.angles], kv, self.heads, span, self.adjacent);
                    let sight = Sight::Back(h.sliding_window);
                    pass.attention(store, &b.q, [&kv[0], &kv[1]], &b.attended, self.heads, span, sight);
                }
            });
        }
        // The rows that are asked for, side by side.
        let mut rows = 0;
        for piece in pieces {
            let x = Rows { buffer: &b.x, at: piece.at + piece.wanted.start };
            let y = Rows { buffer: &b.normed, at: rows };
            pass.rms_norm(x, &self.norm, y, piece.wanted.len(), h.hidden, h.norm_eps);
            rows += piece.wanted.len();
        }
        let mut done = 0;
        loop {
            let n = b.output_rows.min(rows - done);
            let x = Rows { buffer: &b.normed, at: done };
            pass.linear(&self.head, x, (&b.logits).into(), n, Then::Set, &runner.nothing);
            runner.run(&pass, &b.logits, n * self.head.weight.rows, out)?;
            done += n;
            if done == rows {
                break;
            }
            pass = runner.begin();
        }
        pieces.iter().for_each(|p| cache.advance(p.seq, p.tokens.len()));
        Ok(())
    }

    /// x through one block; `attend` stands between the projections.
    fn block(
        &self,
        pass: &mut Pass,
        h: &Hparams,
        block: &Block,
        nothing: &Buffer,
        n: usize,
        attend: &dyn Fn(&mut Pass),
    ) {
        let b = &self.buffers;
        let (x, normed) = (Rows::from(&b.x), Rows::from(&b.normed));
        pass.rms_norm(x, &block.attn_norm, normed, n, h.hidden, h.norm_eps);
        pass.linear(&block.q, normed, (&b.q).into(), n, Then::Set, nothing);
        pass.linear(&block.k, normed, (&b.k).into(), n, Then::Set, nothing);
        pass.linear(&block.v, normed, (&b.v).into(), n, Then::Set, nothing);
        attend(pass);
        pass.linear(&block.output, (&b.attended).into(), x, n, Then::Add, nothing);
        pass.rms_norm(x, &block.ffn_norm, normed, n, h.hidden, h.norm_eps);
        pass.linear(&block.gate, normed, (&b.gate).into(), n, Then::Set, nothing);
        pass.linear(&block.up, normed, (&b.up).into(), n, Then::Set, nothing);
        pass.swiglu(&b.gate, &b.up, n * h.ffn);
        pass.linear(&block.down, (&b.gate).into(), x, n, Then::Add, nothing);
    }
}

impl Block {
    fn linears(&self) -> [&Linear; 7] {
        [&self.q, &self.k, &self.v, &self.output, &self.gate, &self.up, &self.down]
    }
}

/// Runs cut so that each pass has at most `most` tokens.
fn pieces<'a>(runs: &[Run<'a>], most: usize) -> Vec<Vec<Piece<'a>>> {
    let mut passes = vec![Vec::new()];
    let mut rows = 0;
    for run in runs {
        let wanted = wanted(run);
        let mut done = 0;
        while done < run.tokens.len() {
            if rows == most {
                passes.push(Vec::new());
                rows = 0;
            }
            let n = (most - rows).min(run.tokens.len() - done);
            let within = |t: usize| t.clamp(done, done + n) - done;
            let piece = Piece {
                seq: run.seq,
                tokens: &run.tokens[done..done + n],
                at: rows,
                wanted: within(wanted.start)..within(wanted.end),
            };
            if let Some(pass) = passes.last_mut() {
                pass.push(piece);
            }
            (rows, done) = (rows + n, done + n);
        }
    }
    passes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::Rows as Wanted;

    #[test]
    fn long_runs_are_cut_and_every_wanted_row_stands_once() {
        let tokens: Vec<u32> = (0..10).collect();
        let run = |seq, n, rows| Run { seq, tokens: &tokens[..n], types: None, rows };
        let runs = [run(0, 3, Wanted::Last), run(1, 10, Wanted::All), run(2, 2, Wanted::None), run(3, 1, Wanted::Last)];
        for most in 1..18 {
            let passes = pieces(&runs, most);
            assert!(passes.iter().all(|p| p.iter().map(|p| p.tokens.len()).sum::<usize>() <= most), "{most}");
            let mut wanted = vec![Vec::new(); 4];
            let mut seen = vec![Vec::new(); 4];
            for pass in &passes {
                let mut at = 0;
                for p in pass {
                    assert_eq!(p.at, at);
                    at += p.tokens.len();
                    seen[p.seq].extend_from_slice(p.tokens);
                    wanted[p.seq].extend_from_slice(&p.tokens[p.wanted.clone()]);
                }
            }
            assert_eq!(seen, [&tokens[..3], &tokens, &tokens[..2], &tokens[..1]], "{most}");
            assert_eq!(wanted, [&tokens[2..3], &tokens, &[], &tokens[..1]], "{most}");
        }
    }
}
