// Eight weights of one row. Each file in weights/ says how its type packs them:
//   fn weights8(row: u32, k: u32) -> Eight
//     row: word at which the row begins;  k: first column, a multiple of 8 below p.cols
// Rows of plain floats are padded with zeros to a multiple of 8.

struct Eight { a: vec4<f32>, b: vec4<f32> }

// The four bytes of a word, lowest first.
fn bytes(word: u32) -> vec4<f32> {
    return vec4<f32>((vec4<u32>(word) >> vec4<u32>(0u, 8u, 16u, 24u)) & vec4<u32>(255u));
}

// The same as signed numbers.
fn signed_bytes(word: u32) -> vec4<f32> {
    let high = bitcast<vec4<i32>>(vec4<u32>(word) << vec4<u32>(24u, 16u, 8u, 0u));
    return vec4<f32>(high >> vec4<u32>(24u));
}

// Two bytes of f16, exactly: unpack2x16float may flush subnormal numbers, and scales of K-quants are often that small.
fn half(bits: u32) -> f32 {
    let exponent = (bits >> 10u) & 31u;
    let fraction = bits & 1023u;
    let normal = bitcast<f32>(((exponent + 112u) << 23u) | (fraction << 13u));
    let subnormal = f32(fraction) * 5.9604644775390625e-8; // 2^-24
    let size = select(normal, subnormal, exponent == 0u);
    return select(size, -size, (bits & 0x8000u) != 0u);
}
