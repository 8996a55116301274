// gate = silu(gate) * up.

struct SwiGlu { n: u32 }

@group(0) @binding(0) var<storage, read_write> gate: array<f32>;
@group(0) @binding(1) var<storage, read> up: array<f32>;
@group(0) @binding(2) var<uniform> p: SwiGlu;

@compute @workgroup_size(64)
fn swiglu(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = (group.x + group.y * groups.x) * 64u + lane;
    if (i >= p.n) {
        return;
    }
    let g = gate[i];
    // The exponential stays finite: e^88 is the last whole power that f32 holds.
    gate[i] = g / (1.0 + exp(min(-g, 88.0))) * up[i];
}
