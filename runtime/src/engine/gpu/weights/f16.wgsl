// A row is its numbers, two a word.
fn weights8(row: u32, k: u32) -> Eight {
    let at = row + k / 2u;
    return Eight(
        vec4<f32>(unpack2x16float(w[at]), unpack2x16float(w[at + 1u])),
        vec4<f32>(unpack2x16float(w[at + 2u]), unpack2x16float(w[at + 3u])),
    );
}
