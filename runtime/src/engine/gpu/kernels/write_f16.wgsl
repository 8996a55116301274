// Beyond the range of f16 the packing is undefined, so that the ends stand for it.
fn packed(pair: vec2<f32>) -> u32 {
    return pack2x16float(clamp(pair, vec2<f32>(-65504.0), vec2<f32>(65504.0)));
}

fn write_pair(slot: u32, key: vec2<f32>, value: vec2<f32>) {
    keys[slot / 2u] = packed(key);
    values[slot / 2u] = packed(value);
}
