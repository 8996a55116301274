// A row is its numbers.
fn weights8(row: u32, k: u32) -> Eight {
    let at = row + k;
    return Eight(
        bitcast<vec4<f32>>(vec4<u32>(w[at], w[at + 1u], w[at + 2u], w[at + 3u])),
        bitcast<vec4<f32>>(vec4<u32>(w[at + 4u], w[at + 5u], w[at + 6u], w[at + 7u])),
    );
}
