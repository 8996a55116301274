// y = W x + b: what matvec and matmul share. A matrix may come in parts, each of some rows.

struct Linear {
    rows: u32,    // of this part
    cols: u32,
    stride: u32,  // words from one row of weights to the next
    n: u32,       // rows of activations
    x_at: u32,    // the first of them in x
    y_at: u32,    // row of y that takes the first
    y_width: u32, // numbers in a row of y
    y_col: u32,   // row of the whole matrix at which this part begins
    bias: u32,    // 1: add b
    add: u32,     // 1: add to what y holds
}

@group(0) @binding(0) var<storage, read> w: array<u32>;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read> b: array<f32>;
@group(0) @binding(3) var<storage, read_write> y: array<f32>;
@group(0) @binding(4) var<uniform> p: Linear;

fn within(at: u32, k: u32) -> f32 {
    if (k < p.cols) {
        return x[at];
    }
    return 0.0;
}

// Eight numbers of activation row t, zeros behind its end.
fn x8(t: u32, k: u32) -> Eight {
    let at = (p.x_at + t) * p.cols + k;
    if (k + 8u <= p.cols) {
        return Eight(
            vec4<f32>(x[at], x[at + 1u], x[at + 2u], x[at + 3u]),
            vec4<f32>(x[at + 4u], x[at + 5u], x[at + 6u], x[at + 7u]),
        );
    }
    return Eight(
        vec4<f32>(within(at, k), within(at + 1u, k + 1u), within(at + 2u, k + 2u), within(at + 3u, k + 3u)),
        vec4<f32>(within(at + 4u, k + 4u), within(at + 5u, k + 5u), within(at + 6u, k + 6u), within(at + 7u, k + 7u)),
    );
}

fn put(t: u32, r: u32, sum: f32) {
    if (t >= p.n || r >= p.rows) {
        return;
    }
    let at = (p.y_at + t) * p.y_width + p.y_col + r;
    var value = sum;
    if (p.bias != 0u) {
        value += b[p.y_col + r];
    }
    if (p.add != 0u) {
        value += y[at];
    }
    y[at] = value;
}
