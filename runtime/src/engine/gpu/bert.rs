//! BERT (arXiv:1810.04805): learned positions, post-norm blocks, GELU; a classifier, a span head, or a pooled vector.
//!
//! Texts go through the blocks together, as many as the buffers have rows for; the buffers grow to the longest text.

use super::device::Gpu;
use super::load::Loader;
use super::ops::{Heads, MOST_HEAD_DIM, Rows, Sight, Span, Then};
use super::pass::{Pass, Runner};
use super::pipelines::{Kernel, Store};
use super::weights::{Linear, Weight, vector};
use crate::engine::cpu::bert::mean_pooling;
use crate::engine::cpu::{Finder, wanted};
use crate::engine::{Rows as Wanted, Run};
use crate::error::{Error, Kind, Result};
use crate::model::{Hparams, Model, Task};
use wgpu::Buffer;

/// Rows that the buffers have at first, and tokens of short texts that go together.
const FEW_ROWS: usize = 256;

/// Weights on the device, and buffers of one pass.
pub struct Bert {
    words: Weight,
    positions: Weight,
    types: Weight,
    norm: Norm,
    layers: Vec<Layer>,
    head: Head,
    output_dim: usize,
    heads: Heads,
    buffers: Buffers,
}

struct Norm {
    weight: Buffer,
    bias: Buffer,
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
    /// Start and end of the answer.
    Span(Linear),
    /// The mean of all tokens, or the first token.
    Pool { mean: bool },
}

struct Buffers {
    /// N.
    rows: usize,
    /// (3, N): words, positions, types.
    ids: Buffer,
    x: Buffer,        // (N, C)
    q: Buffer,        // (N, C)
    k: Buffer,        // (N, C)
    v: Buffer,        // (N, C)
    attended: Buffer, // (N, C)
    wide: Buffer,     // (N, F)
    output: Buffer,   // (N, output)
}

impl Buffers {
    fn new(gpu: &Gpu, h: &Hparams, output_dim: usize, rows: usize) -> Result<Self> {
        let what = format!("a text of {rows} tokens");
        let buffer = |width: usize| gpu.storage(&what, (rows * width * 4) as u64);
        let tiles = gpu.limits.max_compute_workgroups_per_dimension as usize;
        if rows > tiles {
            let message = format!("is longer than {tiles}, all that this GPU takes at once; shorten it");
            return Err(Error::new(Kind::Limit, what, message));
        }
        let q = h.n_heads * h.head_dim;
        Ok(Self {
            rows,
            ids: buffer(3)?,
            x: buffer(h.hidden)?,
            q: buffer(q)?,
            k: buffer(q)?,
            v: buffer(q)?,
            attended: buffer(q)?,
            wide: buffer(h.ffn)?,
            output: buffer(output_dim)?,
        })
    }

    fn all(&self) -> [&Buffer; 8] {
        [&self.ids, &self.x, &self.q, &self.k, &self.v, &self.attended, &self.wide, &self.output]
    }
}

impl Bert {
    /// Puts every tensor on the device and compiles the kernels they need.
    ///
    /// # Errors
    /// `Limit` when the device has no room; `Input` when a tensor is missing.
    pub fn new(model: &Model, runner: &mut Runner, ctx: usize) -> Result<Self> {
        let (load, h) = (Loader { model, gpu: &runner.gpu }, model.hparams());
        if h.head_dim > MOST_HEAD_DIM {
            let message = format!("is {}, but the attention of --engine gpu takes at most {MOST_HEAD_DIM}", h.head_dim);
            return Err(Error::new(Kind::Limit, "head size", message));
        }
        let norm = |name: &str| -> Result<Norm> {
            Ok(Norm { weight: load.vector(&format!("{name}.weight"))?, bias: load.vector(&format!("{name}.bias"))? })
        };
        let layers = (0..h.n_layers)
            .map(|i| {
                let at = |part: &str| format!("blk.{i}.{part}");
                Ok(Layer {
                    q: load.linear(&at("attn_q"))?,
                    k: load.linear(&at("attn_k"))?,
                    v: load.linear(&at("attn_v"))?,
                    attn_output: load.linear(&at("attn_output"))?,
                    attn_norm: norm(&at("attn_output_norm"))?,
                    up: load.linear(&at("ffn_up"))?,
                    down: load.linear(&at("ffn_down"))?,
                    norm: norm(&at("layer_output_norm"))?,
                })
            })
            .collect::<Result<Vec<_>>>()?;
        let head = match model.task() {
            Task::Classify => Head::Classify { pooler: load.linear("cls")?, output: load.linear("cls.output")? },
            Task::Answer => {
                let key = "edgeft.head.qa_outputs.bias";
                let bias = vector(&runner.gpu, key, &Finder(model).array(key)?)?;
                Head::Span(Linear { weight: load.array("edgeft.head.qa_outputs.weight", h.hidden)?, bias: Some(bias) })
            }
            Task::Embed | Task::Generate => Head::Pool { mean: mean_pooling(model)? },
        };
        let (words, positions) = (load.weight("token_embd.weight")?, load.weight("position_embd.weight")?);
        let types = load.weight("token_types.weight")?;
        let norm = norm("token_embd_norm")?;
        let heads = Heads { heads: h.n_heads, kv_heads: h.n_kv_heads, d: h.head_dim };
        let output_dim = match &head {
            Head::Classify { output, .. } => output.weight.rows,
            Head::Span(linear) => linear.weight.rows,
            Head::Pool { .. } => h.hidden,
        };
        let buffers = Buffers::new(&runner.gpu, h, output_dim, ctx.min(FEW_ROWS))?;
        let mut kernels = vec![Kernel::LayerNorm, Kernel::Attention(Store::F32), Kernel::Activate, Kernel::Mean];
        kernels.extend([&words, &positions, &types].map(|w| Kernel::Gather(w.form)));
        let of_head = match &head {
            Head::Classify { pooler, output } => vec![pooler, output],
            Head::Span(linear) => vec![linear],
            Head::Pool { .. } => vec![],
        };
        for linear in layers.iter().flat_map(Layer::linears).chain(of_head) {
            kernels.extend([Kernel::Matvec(linear.weight.form), Kernel::Matmul(linear.weight.form)]);
        }
        runner.prepare(kernels)?;
        Ok(Self { words, positions, types, norm, layers, head, output_dim, heads, buffers })
    }

    /// Numbers in an output row.
    pub fn output_dim(&self) -> usize {
        self.output_dim
    }

    /// Whole texts; appends their rows to `out`.
    ///
    /// # Errors
    /// As [`Runner::run`]; `Limit` when a text is too long for the device.
    pub fn forward(&mut self, h: &Hparams, runner: &mut Runner, runs: &[Run], out: &mut Vec<f32>) -> Result<()> {
        let longest = runs.iter().map(|r| r.tokens.len()).max().unwrap_or(0);
        if longest > self.buffers.rows {
            let rows = longest.next_power_of_two().min(h.n_ctx);
            let larger = Buffers::new(&runner.gpu, h, self.output_dim, rows)?;
            self.buffers.all().iter().for_each(|b| runner.gpu.release(b));
            self.buffers = larger;
            runner.forget_buffers();
        }
        let mut rest = runs;
        while !rest.is_empty() {
            let mut rows = 0;
            let fits = rest.iter().take_while(|r| {
                rows += r.tokens.len();
                rows <= self.buffers.rows
            });
            let (now, later) = rest.split_at(fits.count());
            self.pass(h, runner, now, out)?;
            rest = later;
        }
        Ok(())
    }

    /// Texts that fit the buffers together.
    fn pass(&self, h: &Hparams, runner: &mut Runner, runs: &[Run], out: &mut Vec<f32>) -> Result<()> {
        let b = &self.buffers;
        let n: usize = runs.iter().map(|r| r.tokens.len()).sum();
        let words = runs.iter().flat_map(|r| r.tokens.iter().copied());
        let positions = runs.iter().flat_map(|r| 0..r.tokens.len() as u32);
        let types =
            runs.iter().flat_map(|r| (0..r.tokens.len()).map(|t| r.types.map_or(0, |types| u32::from(types[t]))));
        let ids: Vec<u32> = words.chain(positions).chain(types).collect();
        runner.gpu.write(&b.ids, 0, bytemuck::cast_slice(&ids))?;
        let mut pass = runner.begin();
        for (i, table) in [&self.words, &self.positions, &self.types].into_iter().enumerate() {
            let then = if i == 0 { Then::Set } else { Then::Add };
            pass.gather(table, Rows { buffer: &b.ids, at: i * n }, &b.x, n, then);
        }
        pass.layer_norm(&b.x, self.norm.both(), n, h.hidden, h.norm_eps);
        for layer in &self.layers {
            self.layer(&mut pass, h, layer, &runner.nothing, runs, n);
        }
        let rows = self.head(&mut pass, h, &runner.nothing, runs);
        runner.run(&pass, &b.output, rows * self.output_dim, out)
    }

    fn layer(&self, pass: &mut Pass, h: &Hparams, layer: &Layer, nothing: &Buffer, runs: &[Run], n: usize) {
        let b = &self.buffers;
        let x = Rows::from(&b.x);
        pass.linear(&layer.q, x, (&b.q).into(), n, Then::Set, nothing);
        pass.linear(&layer.k, x, (&b.k).into(), n, Then::Set, nothing);
        pass.linear(&layer.v, x, (&b.v).into(), n, Then::Set, nothing);
        let mut at = 0;
        for run in runs {
            let span = Span { at, n: run.tokens.len(), before: 0 };
            pass.attention(Store::F32, &b.q, [&b.k, &b.v], &b.attended, self.heads, span, Sight::Whole);
            at += run.tokens.len();
        }
        pass.linear(&layer.attn_output, (&b.attended).into(), x, n, Then::Add, nothing);
        pass.layer_norm(&b.x, layer.attn_norm.both(), n, h.hidden, h.norm_eps);
        pass.linear(&layer.up, x, (&b.wide).into(), n, Then::Set, nothing);
        pass.gelu(&b.wide, n * h.ffn);
        pass.linear(&layer.down, (&b.wide).into(), x, n, Then::Add, nothing);
        pass.layer_norm(&b.x, layer.norm.both(), n, h.hidden, h.norm_eps);
    }

    /// Output rows of all runs, side by side; how many.
    fn head(&self, pass: &mut Pass, h: &Hparams, nothing: &Buffer, runs: &[Run]) -> usize {
        let b = &self.buffers;
        let (mut at, mut rows) = (0, 0);
        for run in runs {
            let n = run.tokens.len();
            let first = Rows { buffer: &b.x, at };
            let row = |buffer| Rows { buffer, at: rows };
            let wanted = wanted(run);
            match &self.head {
                Head::Span(linear) => {
                    let x = Rows { buffer: &b.x, at: at + wanted.start };
                    pass.linear(linear, x, row(&b.output), wanted.len(), Then::Set, nothing);
                    rows += wanted.len();
                }
                _ if run.rows == Wanted::None => {}
                Head::Classify { pooler, .. } => {
                    // `q` is free by now, and has a row for each text.
                    pass.linear(pooler, first, row(&b.q), 1, Then::Set, nothing);
                    rows += 1;
                }
                Head::Pool { mean } => {
                    pass.mean(first, row(&b.output), if *mean { n } else { 1 }, h.hidden);
                    rows += 1;
                }
            }
            at += n;
        }
        if let Head::Classify { output, .. } = &self.head
            && rows > 0
        {
            pass.tanh(&b.q, rows * h.hidden);
            pass.linear(output, (&b.q).into(), (&b.output).into(), rows, Then::Set, nothing);
        }
        rows
    }
}

impl Norm {
    fn both(&self) -> [&Buffer; 2] {
        [&self.weight, &self.bias]
    }
}

impl Layer {
    fn linears(&self) -> [&Linear; 6] {
        [&self.q, &self.k, &self.v, &self.attn_output, &self.up, &self.down]
    }
}
