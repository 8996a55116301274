// y[t] = W[ids[t]], or y[t] += W[ids[t]]: rows of a table, decoded. A table may come in parts: rows of other parts are left.

struct Gather {
    rows: u32,   // of this part
    cols: u32,
    stride: u32, // words from one row to the next
    first: u32,  // row of the whole table at which this part begins
    n: u32,
    ids_at: u32, // where the ids begin
    add: u32,    // 1: add to what y holds
}

@group(0) @binding(0) var<storage, read> w: array<u32>;
@group(0) @binding(1) var<storage, read> ids: array<u32>;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;
@group(0) @binding(3) var<uniform> p: Gather;

fn put(at: u32, value: f32) {
    if (p.add != 0u) {
        y[at] += value;
    } else {
        y[at] = value;
    }
}

@compute @workgroup_size(64)
fn gather(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = (group.x + group.y * groups.x) * 64u + lane;
    let chunks = (p.cols + 7u) / 8u;
    let t = i / chunks;
    let k = i % chunks * 8u;
    if (t >= p.n) {
        return;
    }
    // An id below `first` wraps around to a large number.
    let row = ids[p.ids_at + t] - p.first;
    if (row >= p.rows) {
        return;
    }
    let e = weights8(row * p.stride, k);
    for (var j = 0u; j < 4u; j++) {
        if (k + j < p.cols) {
            put(t * p.cols + k + j, e.a[j]);
        }
        if (k + j + 4u < p.cols) {
            put(t * p.cols + k + j + 4u, e.b[j]);
        }
    }
}
