fn write_pair(slot: u32, key: vec2<f32>, value: vec2<f32>) {
    keys[slot] = bitcast<u32>(key.x);
    keys[slot + 1u] = bitcast<u32>(key.y);
    values[slot] = bitcast<u32>(value.x);
    values[slot + 1u] = bitcast<u32>(value.y);
}
