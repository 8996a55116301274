// x = f(x): the exact GELU, or tanh.

struct Activate {
    n: u32,
    tanh: u32, // 1: tanh; 0: GELU
}

@group(0) @binding(0) var<storage, read_write> x: array<f32>;
@group(0) @binding(1) var<uniform> p: Activate;

// The error function, by Abramowitz and Stegun 7.1.26: at most 1.5e-7 off.
fn erf(v: f32) -> f32 {
    let size = min(abs(v), 8.0);
    let t = 1.0 / (1.0 + 0.3275911 * size);
    let sum = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))));
    let value = 1.0 - sum * exp(-size * size);
    return select(value, -value, v < 0.0);
}

@compute @workgroup_size(64)
fn activate(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = (group.x + group.y * groups.x) * 64u + lane;
    if (i >= p.n) {
        return;
    }
    let v = x[i];
    if (p.tanh != 0u) {
        x[i] = tanh(clamp(v, -20.0, 20.0)); // drivers compute it by exponentials, which overflow
    } else {
        x[i] = 0.5 * v * (1.0 + erf(v * 0.70710678));
    }
}
