//! Block bytes against libggml's: every type on rows of every kind, without importance and with it. `fixtures/ggml.py` recorded
//! the hashes.

use super::{WRITTEN, encode, encode_weighted_into};
use crate::stream::sha256;
use edgeft_runtime::format::GgmlType;
use std::collections::BTreeMap;

const ROWS: usize = 8;
const COLS: usize = 1024;

/// splitmix64 of a counter, 24 bits of it, in 0..1.
fn draw(seed: u64, i: usize) -> f64 {
    let mut z = (i as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(seed << 32);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^= z >> 31;
    (z >> 40) as f64 / f64::from(1 << 24)
}

fn gaussian(seed: u64, i: usize) -> f64 {
    (0..12).fold(0.0, |sum, k| sum + draw(seed, 12 * i + k)) - 6.0
}

fn rows(kind: &str) -> Vec<f32> {
    let value = |i: usize| match kind {
        "gaussian" => gaussian(1, i) * 0.02,
        "heavy" => gaussian(2, i) / (draw(3, i) + 0.02) * 0.01,
        "sparse" => (if draw(4, i) < 0.1 { gaussian(1, i) } else { 0.0 }) * 0.05,
        "constant" => 0.0371,
        "negative" => -gaussian(1, i).abs() * 0.3 - 0.5,
        "zero" => 0.0,
        "denormal" => gaussian(1, i) * 1e-41,
        "tiny" => gaussian(1, i) * 1e-12,
        "huge" => gaussian(1, i) * 8000.0,
        "two_values" => (if draw(5, i) < 0.5 { 1.0 } else { 0.0 }) * 0.75 - 0.25,
        other => panic!("{other}"),
    };
    (0..ROWS * COLS).map(|i| value(i) as f32).collect()
}

fn importance() -> Vec<f32> {
    let value = |i: usize| {
        let u = draw(6, i);
        if draw(7, i) < 0.05 { 0.0 } else { u * u * 10.0 }
    };
    (0..COLS).map(|i| value(i) as f32).collect()
}

#[test]
fn blocks_are_those_of_libggml() {
    let recorded: BTreeMap<String, String> =
        serde_json::from_str(include_str!("fixtures/hashes.json")).expect("hashes");
    assert_eq!(recorded.len(), 240);
    let weights = importance();
    let mut different = Vec::new();
    for (key, want) in &recorded {
        let [ty, kind, how] = key.split('/').collect::<Vec<_>>()[..] else { panic!("{key}") };
        let ty = GgmlType::from_name(ty).expect("a type");
        assert!(WRITTEN.contains(&ty));
        let x = rows(kind);
        let mut bytes = Vec::new();
        if how == "importance" {
            bytes.resize(ROWS * ty.row_bytes(COLS).expect("whole blocks"), 0);
            encode_weighted_into(ty, &x, &weights, &mut bytes).unwrap_or_else(|e| panic!("{key}: {e}"));
        } else {
            encode(ty, &x, &mut bytes).unwrap_or_else(|e| panic!("{key}: {e}"));
        }
        if sha256(&bytes) != *want {
            different.push(key.as_str());
        }
    }
    assert!(different.is_empty(), "{} of {}: {different:#?}", different.len(), recorded.len());
}
