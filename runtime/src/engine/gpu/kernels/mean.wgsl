// y = the mean of n rows of x, one invocation a column.

struct Mean {
    cols: u32,
    n: u32,
    x_at: u32, // first row in x
    y_at: u32, // row of y
}

@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read_write> y: array<f32>;
@group(0) @binding(2) var<uniform> p: Mean;

@compute @workgroup_size(64)
fn mean(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = (group.x + group.y * groups.x) * 64u + lane;
    if (i >= p.cols) {
        return;
    }
    var sum = 0.0;
    for (var t = 0u; t < p.n; t++) {
        sum += x[(p.x_at + t) * p.cols + i];
    }
    y[p.y_at * p.cols + i] = sum / f32(p.n);
}
