// Turns queries in place and keys on their way into the cache by their position's angles (RoFormer, arXiv:2104.09864), and
// writes the values beside them. One invocation for two neighbouring numbers of one head of one token.

struct Rope {
    n: u32,
    at: u32,       // first token in q, k, v and angles
    heads: u32,
    kv_heads: u32,
    d: u32,        // size of a head
    before: u32,   // tokens that the cache holds already
    adjacent: u32, // 1: pairs are (2i, 2i + 1); 0: (i, i + d/2)
}

@group(0) @binding(0) var<storage, read_write> q: array<f32>;
@group(0) @binding(1) var<storage, read> k: array<f32>;
@group(0) @binding(2) var<storage, read> v: array<f32>;
@group(0) @binding(3) var<storage, read> angles: array<vec2<f32>>; // (cos, sin)
@group(0) @binding(4) var<storage, read_write> keys: array<u32>;
@group(0) @binding(5) var<storage, read_write> values: array<u32>;
@group(0) @binding(6) var<uniform> p: Rope;

// Number e of the key head at `base`, turned.
fn turned_key(base: u32, angle_at: u32, e: u32) -> f32 {
    let middle = p.d / 2u;
    var pair = e % middle;
    var partner = select(e + middle, e - middle, e >= middle);
    var second = e >= middle;
    if (p.adjacent != 0u) {
        pair = e / 2u;
        partner = e ^ 1u;
        second = (e & 1u) != 0u;
    }
    let turn = angles[angle_at + pair];
    return k[base + e] * turn.x + select(-turn.y, turn.y, second) * k[base + partner];
}

@compute @workgroup_size(64)
fn rope(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = (group.x + group.y * groups.x) * 64u + lane;
    let middle = p.d / 2u;
    let pair = i % middle;
    let head = i / middle % (p.heads + p.kv_heads);
    let t = i / (middle * (p.heads + p.kv_heads));
    if (t >= p.n) {
        return;
    }
    let row = p.at + t;
    let angle_at = row * middle;
    if (head < p.heads) {
        let base = (row * p.heads + head) * p.d;
        let a = base + select(pair, 2u * pair, p.adjacent != 0u);
        let b = base + select(pair + middle, 2u * pair + 1u, p.adjacent != 0u);
        let turn = angles[angle_at + pair];
        let first = q[a];
        let second = q[b];
        q[a] = first * turn.x - second * turn.y;
        q[b] = second * turn.x + first * turn.y;
        return;
    }
    let base = (row * p.kv_heads + head - p.heads) * p.d;
    let e = 2u * pair;
    let slot = ((p.before + t) * p.kv_heads + head - p.heads) * p.d + e;
    let key = vec2<f32>(turned_key(base, angle_at, e), turned_key(base, angle_at, e + 1u));
    write_pair(slot, key, vec2<f32>(v[base + e], v[base + e + 1u]));
}
