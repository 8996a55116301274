// x = (x - mean) / deviation * w + b in place, a workgroup a row (Ba et al., arXiv:1607.06450).

struct LayerNorm {
    cols: u32,
    n: u32,
    eps: f32,
}

@group(0) @binding(0) var<storage, read_write> x: array<f32>;
@group(0) @binding(1) var<storage, read> w: array<f32>;
@group(0) @binding(2) var<storage, read> b: array<f32>;
@group(0) @binding(3) var<uniform> p: LayerNorm;

@compute @workgroup_size(64)
fn layer_norm(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let t = group.x + group.y * groups.x;
    if (t >= p.n) {
        return;
    }
    let at = t * p.cols;
    var sum = 0.0;
    for (var i = lane; i < p.cols; i += 64u) {
        sum += x[at + i];
    }
    let mean = group_sum(lane, sum) / f32(p.cols);
    var squares = 0.0;
    for (var i = lane; i < p.cols; i += 64u) {
        let from_mean = x[at + i] - mean;
        squares += from_mean * from_mean;
    }
    let r = 1.0 / sqrt(group_sum(lane, squares) / f32(p.cols) + p.eps);
    for (var i = lane; i < p.cols; i += 64u) {
        x[at + i] = (x[at + i] - mean) * r * w[i] + b[i];
    }
}
