// softmax(q K' / sqrt(d)) V of one head of one token, a workgroup each: 64 keys at a time, the sum so far rescaled whenever
// a larger score appears (Milakov and Gimelshein, arXiv:1805.02867).

struct Attention {
    n: u32,
    at: u32,       // first token in q and in `attended`
    heads: u32,
    kv_heads: u32,
    d: u32,        // size of a head, at most MOST_D
    before: u32,   // tokens in the cache before the first of these
    kv_at: u32,    // row of the keys at which the sequence begins
    window: u32,   // a token sees so many, itself included; 0: all
    causal: u32,   // 0: every token sees all
    scale: f32,
}

@group(0) @binding(0) var<storage, read> q: array<f32>;
@group(0) @binding(1) var<storage, read> keys: array<u32>;
@group(0) @binding(2) var<storage, read> values: array<u32>;
@group(0) @binding(3) var<storage, read_write> attended: array<f32>;
@group(0) @binding(4) var<uniform> p: Attention;

const MOST_D = 512u;
const LOWEST = -3.0e38; // below every score, and finite

var<workgroup> query: array<f32, MOST_D>;
var<workgroup> sums: array<f32, MOST_D>;
var<workgroup> shares: array<f32, 64>;

@compute @workgroup_size(64)
fn attention(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = group.x + group.y * groups.x;
    let t = i / p.heads;
    let head = i % p.heads;
    if (t >= p.n) {
        return;
    }
    let row = ((p.at + t) * p.heads + head) * p.d;
    let width = p.kv_heads * p.d;
    let column = p.kv_at * width + head / (p.heads / p.kv_heads) * p.d;
    var to = p.before + p.n;
    var first = 0u;
    if (p.causal != 0u) {
        to = p.before + t + 1u;
        if (p.window != 0u && to > p.window) {
            first = to - p.window;
        }
    }
    for (var e = lane; e < p.d; e += 64u) {
        query[e] = q[row + e];
        sums[e] = 0.0;
    }
    workgroupBarrier();
    var most = LOWEST;
    var total = 0.0;
    for (var start = first; start < to; start += 64u) {
        let position = start + lane;
        var score = LOWEST;
        if (position < to) {
            let at = column + position * width;
            score = 0.0;
            for (var e = 0u; e < p.d; e++) {
                score += query[e] * cached(keys[cache_word(at + e)], at + e);
            }
            score *= p.scale;
        }
        let larger = max(most, group_max(lane, score));
        let rescale = exp(most - larger);
        most = larger;
        let share = select(0.0, exp(score - larger), position < to);
        shares[lane] = share;
        total = total * rescale + group_sum(lane, share);
        let here = min(64u, to - start);
        for (var e = lane; e < p.d; e += 64u) {
            var sum = sums[e] * rescale;
            for (var j = 0u; j < here; j++) {
                let at = column + (start + j) * width + e;
                sum += shares[j] * cached(values[cache_word(at)], at);
            }
            sums[e] = sum;
        }
        workgroupBarrier();
    }
    for (var e = lane; e < p.d; e += 64u) {
        attended[row + e] = sums[e] / total;
    }
}
