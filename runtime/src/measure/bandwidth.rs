//! The ceiling of decoding: a token reads every weight once, so it takes at least the time of a plain read of them; and
//! what our own kernels reach when nothing but one matrix after the other stands between them and the next token.

use std::hint::black_box;
use std::sync::Barrier;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use super::generates;
use crate::engine::KvType;
use crate::error::Result;
use crate::format::GgmlType;
use crate::format::onnx::Weight;
use crate::kernels::acts::{Acts, Form};
use crate::kernels::{Kernels, Matrix};
use crate::model::Model;

/// Rounds that may pass without a better one before the best is believed: on a machine that others use too, most rounds are
/// cut by somebody.
const PATIENCE: usize = 24;
/// Rounds at most.
const ROUNDS: usize = 240;
/// What all threads read in a round, at least: a few milliseconds, beside which their start does not count, and short enough
/// to lie between two interruptions.
const ROUND_BYTES: usize = 64 << 20;
/// The same of kernels, which are slower.
const KERNEL_ROUND_BYTES: usize = 8 << 20;

/// Bytes that one forward of a single position reads at cache depth `depth`: every weight once, and the keys and values of
/// the positions before. An input embedding apart from the output's is only gathered: one row of it counts.
pub fn pass_bytes(model: &Model, depth: usize, kv: KvType) -> u64 {
    weight_bytes(model) + kv_bytes(model, depth, kv)
}

/// Bytes of weights that one forward reads.
pub fn weight_bytes(model: &Model) -> u64 {
    if let Ok(folder) = model.onnx() {
        let read =
            |w: &Weight| if w.gathered { w.bytes / w.dims.first().copied().unwrap_or(1).max(1) } else { w.bytes };
        return folder.weights().iter().map(read).sum();
    }
    let tensors = model.gguf().map_or(&[][..], |gguf| &gguf.tensors).iter();
    let tensors = tensors.map(|t| (t.name.as_str(), t.dims.get(1).copied().unwrap_or(1), t.bytes));
    let tied = model.tensor("output.weight").is_none() && generates(model.task(), model.hparams().causal);
    tensors.map(|(name, rows, bytes)| bytes_read(name, rows, bytes, tied)).sum()
}

/// What one forward reads of a tensor: all of it, or one row where rows are looked up.
/// - `name`: GGUF's;  `tied`: the token embedding is the output matrix too
pub fn bytes_read(name: &str, rows: u64, bytes: u64, tied: bool) -> u64 {
    let looked_up = match name {
        "token_embd.weight" => !tied,
        "position_embd.weight" | "token_types.weight" => true,
        _ => false,
    };
    if looked_up { bytes / rows.max(1) } else { bytes }
}

/// Bytes of keys and values that one position reads at `depth`.
pub fn kv_bytes(model: &Model, depth: usize, kv: KvType) -> u64 {
    let h = model.hparams();
    let element = match kv {
        KvType::F32 => 4,
        KvType::F16 => 2,
    };
    (2 * h.seen(depth) * h.n_kv_heads * h.head_dim * element) as u64
}

/// Bytes a second, in units of 1e9, that `threads` threads together read of a buffer of `bytes`, over and over; the best
/// round counts, and a round ends with its slowest thread. Give it what a forward reads, and the caches help this read as
/// they help the forward; a buffer much larger than the caches gives the memory's own speed.
pub fn read_gb_per_s(bytes: usize, threads: usize) -> f64 {
    let words = (bytes / 8 / threads.max(1)).max(1);
    best_round(threads, words * 8, ROUND_BYTES, || {
        // Every thread fills its own part, so that the pages lie near the core that reads them.
        let part: Vec<u64> = (0..words as u64).collect();
        move || {
            black_box(sum(black_box(&part)));
        }
    })
}

/// The same of our kernels: bytes of weights of type `ty` in rows of `cols` that they multiply with one token a second, in
/// units of 1e9. `bytes` is what all threads share, as in [`read_gb_per_s`].
///
/// # Errors
/// An instruction set in `EDGEFT_ISA` that this CPU lacks.
pub fn kernel_gb_per_s(ty: GgmlType, cols: usize, bytes: usize, threads: usize) -> Result<f64> {
    let kernels = Kernels::detect()?;
    let cols = cols.next_multiple_of(ty.block_len()).max(ty.block_len());
    let row = cols / ty.block_len() * ty.block_bytes();
    let rows = (bytes / threads.max(1) / row).max(1);
    Ok(best_round(threads, rows * row, KERNEL_ROUND_BYTES, || {
        // Zeros take as long as any other weights.
        let (data, x) = (vec![0u8; rows * row], vec![1.0f32; cols]);
        let (mut acts, mut out, mut scratch) =
            (Acts::default(), vec![0.0f32; rows], vec![0.0f32; Kernels::scratch(cols)]);
        acts.set(&x, cols);
        acts.prepare(Form::of(ty), None);
        move || {
            let w = Matrix { ty, rows, cols, data: black_box(&data) };
            kernels.rows(&w, 0, &acts, &mut out, &mut scratch);
            black_box(&out);
        }
    }))
}

/// Speed of `threads` threads that each do the work that `make` gives them, `bytes` of it a time, and `round` bytes together
/// between two looks at the clock.
fn best_round<W: FnMut()>(threads: usize, bytes: usize, round: usize, make: impl Fn() -> W + Sync) -> f64 {
    let threads = threads.max(1);
    let repeats = (round / (bytes * threads)).max(1);
    let barrier = Barrier::new(threads);
    // Nanoseconds of the slowest thread in each round, and the round that is the last.
    let slowest: Vec<AtomicU64> = (0..ROUNDS).map(|_| AtomicU64::new(0)).collect();
    let best = AtomicU64::new(u64::MAX);
    let thread = || {
        let mut work = make();
        work();
        let mut best_at = 0;
        for (round, slowest) in slowest.iter().enumerate() {
            barrier.wait();
            let begun = Instant::now();
            (0..repeats).for_each(|_| work());
            slowest.fetch_max(begun.elapsed().as_nanos() as u64, Relaxed);
            // All see the same times after the barrier, so all stop at the same round.
            barrier.wait();
            let time = slowest.load(Relaxed);
            // Nobody is waited for because of one part in a hundred.
            if time < best.load(Relaxed) - best.load(Relaxed) / 128 {
                best_at = round;
            }
            barrier.wait();
            best.fetch_min(time, Relaxed);
            if round - best_at >= PATIENCE {
                break;
            }
        }
    };
    std::thread::scope(|scope| {
        (1..threads).for_each(|_| drop(scope.spawn(thread)));
        thread();
    });
    (bytes * threads * repeats) as f64 / best.into_inner().max(1) as f64
}

/// Many sums side by side, so that no addition waits for another, over four places at once: one stream leaves a quarter of
/// what the memory gives a core unasked for (19 against 23 GB/s on a Xeon), and a ceiling must not lie under what is reached.
fn sum(words: &[u64]) -> u64 {
    let quarter = words.len() / 32 * 8;
    let (a, rest) = words.split_at(quarter);
    let (b, rest) = rest.split_at(quarter);
    let (c, rest) = rest.split_at(quarter);
    let (d, tail) = rest.split_at(quarter);
    let [a, b, c, d] = [a, b, c, d].map(|part| part.as_chunks::<8>().0);
    let mut sums = [0u64; 8];
    for ((a, b), (c, d)) in a.iter().zip(b).zip(c.iter().zip(d)) {
        for i in 0..8 {
            let both = a[i].wrapping_add(b[i]).wrapping_add(c[i].wrapping_add(d[i]));
            sums[i] = sums[i].wrapping_add(both);
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

    #[test]
    fn kernels_have_a_speed_and_rows_are_whole_blocks() {
        for ty in [GgmlType::F32, GgmlType::Q8_0, GgmlType::Q4_K] {
            let speed = kernel_gb_per_s(ty, 65, 1 << 12, 1).unwrap();
            assert!(speed > 0.001 && speed < 10_000.0, "{speed} GB/s of {ty}");
        }
    }

    #[test]
    fn a_table_that_is_looked_up_costs_one_row() {
        assert_eq!(bytes_read("token_embd.weight", 10, 400, false), 40);
        assert_eq!(bytes_read("token_embd.weight", 10, 400, true), 400);
        assert_eq!(bytes_read("position_embd.weight", 0, 400, true), 400);
        assert_eq!(bytes_read("blk.0.attn_q.weight", 10, 400, false), 400);
    }
}
