// A row is its blocks of 256 as ggml lays them out, 36 words each: d and dmin, three words of six-bit scales and mins, codes.
fn weights8(row: u32, k: u32) -> Eight {
    let block = row + k / 256u * 36u;
    let d = half(w[block]);
    let dmin = half(w[block] >> 16u);
    let group = (k % 256u) / 32u;
    let byte = 8u * (group & 3u);
    let low = (w[block + 1u] >> byte) & 255u;
    let middle = (w[block + 2u] >> byte) & 255u;
    let high = (w[block + 3u] >> byte) & 255u;
    let later = group >= 4u;
    let scale = d * f32(select(low & 63u, (high & 15u) | ((low >> 6u) << 4u), later));
    let least = dmin * f32(select(middle & 63u, (high >> 4u) | ((middle >> 6u) << 4u), later));
    let at = block + 4u + group / 2u * 8u + (k % 32u) / 4u;
    let shift = 4u * (group & 1u);
    let codes_a = bytes((w[at] >> shift) & 0x0f0f0f0fu);
    let codes_b = bytes((w[at + 1u] >> shift) & 0x0f0f0f0fu);
    return Eight(scale * codes_a - least, scale * codes_b - least);
}
