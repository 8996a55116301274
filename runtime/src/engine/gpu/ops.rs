//! One function an operation: operands and sizes in, a kernel of the pass out. The structs are those of the WGSL, field by
//! field.

use super::pass::{GROUP, Pass};
use super::pipelines::{Kernel, Store};
use super::weights::{Linear, Weight};
use bytemuck::NoUninit;
use wgpu::Buffer;

/// Rows of activations up to which each gets a matrix-vector product of its own.
const FEW: usize = 4;
/// Rows of weights that a workgroup of the matrix-vector kernel takes.
const VEC_ROWS: usize = 4;
/// Side of the square of outputs that a workgroup of the matrix-matrix kernel takes.
const TILE: usize = 32;
/// Largest head that the attention kernel has room for.
pub const MOST_HEAD_DIM: usize = 512;

/// Rows of a buffer.
#[derive(Clone, Copy)]
pub struct Rows<'a> {
    /// (rows, width).
    pub buffer: &'a Buffer,
    /// The first row that is meant.
    pub at: usize,
}

impl<'a> From<&'a Buffer> for Rows<'a> {
    fn from(buffer: &'a Buffer) -> Self {
        Self { buffer, at: 0 }
    }
}

/// What a product becomes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Then {
    /// y = W x + b.
    Set,
    /// y += W x + b.
    Add,
}

#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
struct LinearParams {
    rows: u32,
    cols: u32,
    stride: u32,
    n: u32,
    x_at: u32,
    y_at: u32,
    y_width: u32,
    y_col: u32,
    bias: u32,
    add: u32,
}

#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
struct GatherParams {
    rows: u32,
    cols: u32,
    stride: u32,
    first: u32,
    n: u32,
    ids_at: u32,
    add: u32,
}

#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
struct RmsNormParams {
    cols: u32,
    n: u32,
    x_at: u32,
    y_at: u32,
    eps: f32,
}

#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
struct LayerNormParams {
    cols: u32,
    n: u32,
    eps: f32,
}

#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
struct RopeParams {
    n: u32,
    at: u32,
    heads: u32,
    kv_heads: u32,
    d: u32,
    before: u32,
    adjacent: u32,
}

#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
struct AttentionParams {
    n: u32,
    at: u32,
    heads: u32,
    kv_heads: u32,
    d: u32,
    before: u32,
    kv_at: u32,
    window: u32,
    causal: u32,
    scale: f32,
}

#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
struct ActivateParams {
    n: u32,
    tanh: u32,
}

#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
struct MeanParams {
    cols: u32,
    n: u32,
    x_at: u32,
    y_at: u32,
}

/// Heads of one layer.
#[derive(Clone, Copy)]
pub struct Heads {
    /// H.
    pub heads: usize,
    /// K.
    pub kv_heads: usize,
    /// D.
    pub d: usize,
}

/// Which tokens of a pass meet which keys.
#[derive(Clone, Copy)]
pub struct Span {
    /// First of the tokens in the pass.
    pub at: usize,
    /// How many.
    pub n: usize,
    /// Tokens that the cache held before them.
    pub before: usize,
}

/// How far a token sees.
#[derive(Clone, Copy)]
pub enum Sight {
    /// Itself and what came before, at most so many tokens.
    Back(Option<usize>),
    /// All tokens of its text, which begin at row [`Span::at`] of keys and values.
    Whole,
}

impl Pass {
    /// y = W x + b, or y += W x + b, for `n` rows. `nothing` is bound where there is no bias.
    pub fn linear(&mut self, linear: &Linear, x: Rows, y: Rows, n: usize, then: Then, nothing: &Buffer) {
        let Weight { form, rows, cols, stride, parts } = &linear.weight;
        let bias = linear.bias.as_ref();
        for part in parts {
            let params = LinearParams {
                rows: part.rows as u32,
                cols: *cols as u32,
                stride: *stride as u32,
                n: n as u32,
                x_at: x.at as u32,
                y_at: y.at as u32,
                y_width: *rows as u32,
                y_col: part.first as u32,
                bias: u32::from(bias.is_some()),
                add: u32::from(then == Then::Add),
            };
            let buffers = [&part.buffer, x.buffer, bias.unwrap_or(nothing), y.buffer];
            let (kernel, per_group, layers) = match n <= FEW {
                true => (Kernel::Matvec(*form), VEC_ROWS, n),
                false => (Kernel::Matmul(*form), TILE, n.div_ceil(TILE)),
            };
            self.run(kernel, &buffers, &params, part.rows.div_ceil(per_group) as u64, layers as u64);
        }
    }

    /// y (n, cols) = rows of a table, or y += them; `ids` from number `ids.at` on say which.
    pub fn gather(&mut self, table: &Weight, ids: Rows, y: &Buffer, n: usize, then: Then) {
        for part in &table.parts {
            let params = GatherParams {
                rows: part.rows as u32,
                cols: table.cols as u32,
                stride: table.stride as u32,
                first: part.first as u32,
                n: n as u32,
                ids_at: ids.at as u32,
                add: u32::from(then == Then::Add),
            };
            let invocations = (n * table.cols.div_ceil(8)) as u64;
            let buffers = [&part.buffer, ids.buffer, y];
            self.run(Kernel::Gather(table.form), &buffers, &params, invocations.div_ceil(GROUP), 1);
        }
    }

    /// y = x / rms(x) * w for `n` rows of `cols` numbers.
    pub fn rms_norm(&mut self, x: Rows, w: &Buffer, y: Rows, n: usize, cols: usize, eps: f32) {
        let params = RmsNormParams { cols: cols as u32, n: n as u32, x_at: x.at as u32, y_at: y.at as u32, eps };
        self.run(Kernel::RmsNorm, &[x.buffer, w, y.buffer], &params, n as u64, 1);
    }

    /// x = (x - mean) / deviation * w + b for `n` rows of `cols` numbers.
    pub fn layer_norm(&mut self, x: &Buffer, [w, b]: [&Buffer; 2], n: usize, cols: usize, eps: f32) {
        let params = LayerNormParams { cols: cols as u32, n: n as u32, eps };
        self.run(Kernel::LayerNorm, &[x, w, b], &params, n as u64, 1);
    }

    /// Turns q (n, H * D) in place by `angles` (n, D / 2), and writes k, turned, and v (n, K * D) into the cache.
    pub fn rope(
        &mut self,
        store: Store,
        [q, k, v, angles]: [&Buffer; 4],
        cache: &[Buffer; 2],
        heads: Heads,
        span: Span,
        adjacent: bool,
    ) {
        let params = RopeParams {
            n: span.n as u32,
            at: span.at as u32,
            heads: heads.heads as u32,
            kv_heads: heads.kv_heads as u32,
            d: heads.d as u32,
            before: span.before as u32,
            adjacent: u32::from(adjacent),
        };
        let invocations = (span.n * (heads.heads + heads.kv_heads) * heads.d / 2) as u64;
        let buffers = [q, k, v, angles, &cache[0], &cache[1]];
        self.run(Kernel::Rope(store), &buffers, &params, invocations.div_ceil(GROUP), 1);
    }

    /// `attended` (n, H * D) = softmax(q K' / sqrt(D)) V.
    pub fn attention(
        &mut self,
        store: Store,
        q: &Buffer,
        [keys, values]: [&Buffer; 2],
        attended: &Buffer,
        heads: Heads,
        span: Span,
        sight: Sight,
    ) {
        let params = AttentionParams {
            n: span.n as u32,
            at: span.at as u32,
            heads: heads.heads as u32,
            kv_heads: heads.kv_heads as u32,
            d: heads.d as u32,
            before: span.before as u32,
            kv_at: if matches!(sight, Sight::Whole) { span.at as u32 } else { 0 },
            window: if let Sight::Back(Some(window)) = sight { window as u32 } else { 0 },
            causal: u32::from(matches!(sight, Sight::Back(_))),
            scale: 1.0 / (heads.d as f32).sqrt(),
        };
        let groups = (span.n * heads.heads) as u64;
        self.run(Kernel::Attention(store), &[q, keys, values, attended], &params, groups, 1);
    }

    /// gate = silu(gate) * up, `count` numbers.
    pub fn swiglu(&mut self, gate: &Buffer, up: &Buffer, count: usize) {
        self.run(Kernel::SwiGlu, &[gate, up], &(count as u32), (count as u64).div_ceil(GROUP), 1);
    }

    /// x = GELU(x), `count` numbers.
    pub fn gelu(&mut self, x: &Buffer, count: usize) {
        let params = ActivateParams { n: count as u32, tanh: 0 };
        self.run(Kernel::Activate, &[x], &params, (count as u64).div_ceil(GROUP), 1);
    }

    /// x = tanh(x), `count` numbers.
    pub fn tanh(&mut self, x: &Buffer, count: usize) {
        let params = ActivateParams { n: count as u32, tanh: 1 };
        self.run(Kernel::Activate, &[x], &params, (count as u64).div_ceil(GROUP), 1);
    }

    /// One row of y = the mean of `n` rows of x.
    pub fn mean(&mut self, x: Rows, y: Rows, n: usize, cols: usize) {
        let params = MeanParams { cols: cols as u32, n: n as u32, x_at: x.at as u32, y_at: y.at as u32 };
        self.run(Kernel::Mean, &[x.buffer, y.buffer], &params, (cols as u64).div_ceil(GROUP), 1);
    }
}

#[cfg(test)]
mod tests;
