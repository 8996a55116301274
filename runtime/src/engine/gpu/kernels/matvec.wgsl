// A workgroup takes four rows of weights and one row of activations: lanes stride over the columns, eight at a time.

var<workgroup> sums: array<vec4<f32>, 64>;

fn part(row: u32, k: u32, v: Eight) -> f32 {
    let e = weights8(min(row, p.rows - 1u) * p.stride, k);
    return dot(e.a, v.a) + dot(e.b, v.b);
}

@compute @workgroup_size(64)
fn matvec(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let r = (group.x + group.y * groups.x) * 4u;
    let t = group.z;
    var sum = vec4<f32>();
    if (r < p.rows) {
        for (var k = lane * 8u; k < p.cols; k += 512u) {
            let v = x8(t, k);
            sum += vec4<f32>(part(r, k, v), part(r + 1u, k, v), part(r + 2u, k, v), part(r + 3u, k, v));
        }
    }
    sums[lane] = sum;
    workgroupBarrier();
    for (var half_way = 32u; half_way > 0u; half_way >>= 1u) {
        if (lane < half_way) {
            sums[lane] += sums[lane + half_way];
        }
        workgroupBarrier();
    }
    if (lane < 4u) {
        put(t, r + lane, sums[0][lane]);
    }
}
