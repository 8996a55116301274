//! The ceiling of decoding: a token reads every weight once, so it takes at least the time of a plain read of them.

use std::hint::black_box;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use super::generates;
use crate::engine::KvType;
use crate::format::onnx::Weight;
use crate::model::Model;

/// Rounds of reading.
const ROUNDS: usize = 9;
/// What all threads read in a round, at least: some milliseconds, beside which their start does not count.
const ROUND_BYTES: usize = 256 << 20;

/// Bytes that one forward of a single position reads at cache depth `depth`: every weight once, and the keys and values of
/// the positions before. An input embedding apart from the output's is only gathered: one row of it counts.
pub fn pass_bytes(model: &Model, depth: usize, kv: KvType) -> u64 {
    weight_bytes(model) + kv_bytes(model, depth, kv)
}

/// Bytes of weights that one forward reads.
pub fn weight_bytes(model: &Model) -> u64 {
    let tied = model.tensor("output.weight").is_none() && generates(model.task(), model.hparams().causal);
    let gathered = |name: &str| match name {
        "token_embd.weight" => !tied,
        "position_embd.weight" | "token_types.weight" => true,
        _ => false,
    };
    if let Ok(folder) = model.onnx() {
        let rows =
            |w: &Weight| if w.gathered { w.bytes / w.dims.first().copied().unwrap_or(1).max(1) } else { w.bytes };
        return folder.weights().iter().map(rows).sum();
    }
    let tensors = model.gguf().map_or(&[][..], |gguf| &gguf.tensors);
    let whole = tensors.iter().filter(|t| !gathered(&t.name)).map(|t| t.bytes).sum::<u64>();
    let rows =
        tensors.iter().filter(|t| gathered(&t.name)).map(|t| t.bytes / t.dims.get(1).copied().unwrap_or(1).max(1));
    whole + rows.sum::<u64>()
}

/// Bytes of keys and values that one position reads at `depth`.
pub fn kv_bytes(model: &Model, depth: usize, kv: KvType) -> u64 {
    let h = model.hparams();
    let element = match kv {
        KvType::F32 => 4,
        KvType::F16 => 2,
    };
    let seen = h.sliding_window.map_or(depth, |w| w.min(depth));
    (2 * h.n_layers * h.n_kv_heads * h.head_dim * seen * element) as u64
}

/// Bytes a second, in units of 1e9, that `threads` threads together read of a buffer of `bytes`, over and over; the best
/// round counts, and a round ends with its slowest thread. Give it what a forward reads, and the caches help this read as
/// they help the forward; a buffer much larger than the caches gives the memory's own speed.
pub fn read_gb_per_s(bytes: usize, threads: usize) -> f64 {
    let threads = threads.max(1);
    let words = (bytes / 8 / threads).max(1);
    let repeats = (ROUND_BYTES / (words * 8 * threads)).max(1);
    let barrier = Barrier::new(threads);
    // Every thread fills its own part, so that the pages lie near the core that reads them.
    let thread = || -> [Duration; ROUNDS] {
        let part: Vec<u64> = (0..words as u64).collect();
        black_box(sum(&part));
        std::array::from_fn(|_| {
            barrier.wait();
            let begun = Instant::now();
            for _ in 0..repeats {
                black_box(sum(black_box(&part)));
            }
            begun.elapsed()
        })
    };
    let times: Vec<[Duration; ROUNDS]> = std::thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(thread)).collect();
        let own = thread();
        std::iter::once(own).chain(others.into_iter().filter_map(|t| t.join().ok())).collect()
    });
    let slowest = |round: usize| times.iter().map(|t| t[round]).max();
    let best = (0..ROUNDS).filter_map(slowest).min().unwrap_or_default();
    (words * 8 * threads * repeats) as f64 / best.as_secs_f64().max(1e-9) / 1e9
}

/// Many sums side by side, so that no addition waits for another.
fn sum(words: &[u64]) -> u64 {
    let (chunks, tail) = words.as_chunks::<32>();
    let mut sums = [0u64; 32];
    for chunk in chunks {
        for i in 0..32 {
            sums[i] = sums[i].wrapping_add(chunk[i]);
        }
    }
    sums.iter().chain(tail).fold(0, |a, b| a.wrapping_add(*b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_is_read_once() {
        for n in [0u64, 1, 31, 32, 33, 1000] {
            assert_eq!(sum(&(0..n).collect::<Vec<_>>()), n * n.saturating_sub(1) / 2, "{n}");
        }
    }

    #[test]
    fn a_read_has_a_speed() {
        for threads in [1, 2] {
            let speed = read_gb_per_s(1 << 20, threads);
            assert!(speed > 0.01 && speed < 10_000.0, "{speed} GB/s on {threads} threads");
        }
    }
}
