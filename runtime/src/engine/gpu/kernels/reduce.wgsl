// Sums and maxima over the 64 invocations of a workgroup. Every invocation must call them, and all get the result.

var<workgroup> lanes: array<f32, 64>;

fn group_sum(lane: u32, value: f32) -> f32 {
    lanes[lane] = value;
    workgroupBarrier();
    for (var step = 32u; step > 0u; step >>= 1u) {
        if (lane < step) {
            lanes[lane] += lanes[lane + step];
        }
        workgroupBarrier();
    }
    let sum = lanes[0];
    workgroupBarrier();
    return sum;
}

fn group_max(lane: u32, value: f32) -> f32 {
    lanes[lane] = value;
    workgroupBarrier();
    for (var step = 32u; step > 0u; step >>= 1u) {
        if (lane < step) {
            lanes[lane] = max(lanes[lane], lanes[lane + step]);
        }
        workgroupBarrier();
    }
    let most = lanes[0];
    workgroupBarrier();
    return most;
}
