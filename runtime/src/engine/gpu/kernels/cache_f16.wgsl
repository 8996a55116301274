// How the cache holds numbers: two a word, each rounded to f16.

fn cached(word: u32, i: u32) -> f32 {
    return unpack2x16float(word)[i & 1u];
}

fn cache_word(i: u32) -> u32 {
    return i / 2u;
}
