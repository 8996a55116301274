// A workgroup takes 32 rows of weights and 32 of activations, 16 columns at a time through its own memory; each invocation
// sums a square of 4 x 4.

const SIDE = 32u;
const STEP = 16u;

// (STEP, SIDE) each.
var<workgroup> tile_w: array<f32, 512>;
var<workgroup> tile_x: array<f32, 512>;

@compute @workgroup_size(64)
fn matmul(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let r0 = (group.x + group.y * groups.x) * SIDE;
    let t0 = group.z * SIDE;
    // What this invocation loads: eight columns of one row of each.
    let row = lane / 2u;
    let col = (lane & 1u) * 8u;
    // What it sums.
    let r = (lane & 7u) * 4u;
    let t = (lane / 8u) * 4u;
    var s0 = vec4<f32>();
    var s1 = vec4<f32>();
    var s2 = vec4<f32>();
    var s3 = vec4<f32>();
    for (var k = 0u; k < p.cols; k += STEP) {
        var ew = Eight();
        var ex = Eight();
        if (k + col < p.cols) {
            if (r0 + row < p.rows) {
                ew = weights8((r0 + row) * p.stride, k + col);
            }
            if (t0 + row < p.n) {
                ex = x8(t0 + row, k + col);
            }
        }
        for (var i = 0u; i < 4u; i++) {
            tile_w[(col + i) * SIDE + row] = ew.a[i];
            tile_w[(col + i + 4u) * SIDE + row] = ew.b[i];
            tile_x[(col + i) * SIDE + row] = ex.a[i];
            tile_x[(col + i + 4u) * SIDE + row] = ex.b[i];
        }
        workgroupBarrier();
        for (var i = 0u; i < STEP; i++) {
            let at_w = i * SIDE + r;
            let at_x = i * SIDE + t;
            let v = vec4<f32>(tile_w[at_w], tile_w[at_w + 1u], tile_w[at_w + 2u], tile_w[at_w + 3u]);
            s0 += v * tile_x[at_x];
            s1 += v * tile_x[at_x + 1u];
            s2 += v * tile_x[at_x + 2u];
            s3 += v * tile_x[at_x + 3u];
        }
        workgroupBarrier();
    }
    for (var i = 0u; i < 4u; i++) {
        put(t0 + t, r0 + r + i, s0[i]);
        put(t0 + t + 1u, r0 + r + i, s1[i]);
        put(t0 + t + 2u, r0 + r + i, s2[i]);
        put(t0 + t + 3u, r0 + r + i, s3[i]);
    }
}
