// A row is the bytes of all its blocks of 32, then their scales, two a word.
fn weights8(row: u32, k: u32) -> Eight {
    let block = k / 32u;
    let d = half(w[row + p.cols / 4u + block / 2u] >> (16u * (block & 1u)));
    let at = row + k / 4u;
    return Eight(d * signed_bytes(w[at]), d * signed_bytes(w[at + 1u]));
}
