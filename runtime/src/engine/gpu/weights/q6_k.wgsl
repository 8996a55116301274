// A row is its blocks of 256 as ggml lays them out, each filled up to 53 words: 32 of low bits, 16 of high bits, 4 of scales,
// and d.
fn codes(low: u32, low_shift: u32, high: u32, high_shift: u32) -> vec4<f32> {
    return bytes(((low >> low_shift) & 0x0f0f0f0fu) | (((high >> high_shift) & 0x03030303u) << 4u)) - 32.0;
}

fn weights8(row: u32, k: u32) -> Eight {
    let block = row + k / 256u * 53u;
    let i = k % 256u;
    let part = i / 128u;
    let quarter = (i % 128u) / 32u;
    let word = (i % 32u) / 4u;
    let at = block + part * 16u + (quarter & 1u) * 8u + word;
    let high = block + 32u + part * 8u + word;
    let scales = bitcast<i32>(w[block + 48u + i / 64u] << (24u - 8u * ((i / 16u) & 3u)));
    let d = half(w[block + 52u]) * f32(scales >> 24u);
    let low_shift = 4u * (quarter / 2u);
    let high_shift = 2u * quarter;
    return Eight(
        d * codes(w[at], low_shift, w[high], high_shift),
        d * codes(w[at + 1u], low_shift, w[high + 1u], high_shift),
    );
}
