// A row is the four words of each of its blocks of 32, then the scales, two a word. Byte j of a block holds element j low
// and j + 16 high.
fn weights8(row: u32, k: u32) -> Eight {
    let block = k / 32u;
    let d = half(w[row + p.cols / 8u + block / 2u] >> (16u * (block & 1u)));
    let at = row + block * 4u + (k % 16u) / 4u;
    let shift = 4u * ((k / 16u) & 1u);
    let codes_a = bytes((w[at] >> shift) & 0x0f0f0f0fu);
    let codes_b = bytes((w[at + 1u] >> shift) & 0x0f0f0f0fu);
    return Eight(d * (codes_a - 8.0), d * (codes_b - 8.0));
}
