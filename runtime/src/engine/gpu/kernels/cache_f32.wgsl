// How the cache holds numbers: one a word.

fn cached(word: u32, i: u32) -> f32 {
    return bitcast<f32>(word);
}

fn cache_word(i: u32) -> u32 {
    return i;
}
