// y = x / rms(x) * w, a workgroup a row (Zhang and Sennrich, arXiv:1910.07467).

struct RmsNorm {
    cols: u32,
    n: u32,
    x_at: u32, // first row in x
    y_at: u32, // first row in y
    eps: f32,
}

@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read> w: array<f32>;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;
@group(0) @binding(3) var<uniform> p: RmsNorm;

@compute @workgroup_size(64)
fn rms_norm(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let t = group.x + group.y * groups.x;
    if (t >= p.n) {
        return;
    }
    let from_at = (p.x_at + t) * p.cols;
    let to_at = (p.y_at + t) * p.cols;
    var squares = 0.0;
    for (var i = lane; i < p.cols; i += 64u) {
        squares += x[from_at + i] * x[from_at + i];
    }
    let r = 1.0 / sqrt(group_sum(lane, squares) / f32(p.cols) + p.eps);
    for (var i = lane; i < p.cols; i += 64u) {
        y[to_at + i] = x[from_at + i] * r * w[i];
    }
}
