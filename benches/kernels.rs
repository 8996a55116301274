//! Weight matrix times activations, by block type, level and size: median ± deviation, ratio to the plain loops, GB/s of
//! weights and their share of a plain read. The last line is JSON.
//!
//! ```text
//! cargo bench --bench kernels                     every type, 1024 and 4096, one activation row and sixteen
//! cargo bench --bench kernels -- q4_k 4096        only cases whose line has all these words
//! ```

use edgeft_runtime::format::GgmlType;
use edgeft_runtime::kernels::acts::{Acts, Form};
use edgeft_runtime::kernels::{Kernels, Level, Matrix};
use edgeft_runtime::measure::bandwidth::read_gb_per_s;
use edgeft_runtime::measure::stats::{mad, median};
use serde_json::json;
use std::time::{Duration, Instant};

const TYPES: [GgmlType; 10] = [
    GgmlType::F32,
    GgmlType::F16,
    GgmlType::Q8_0,
    GgmlType::Q4_0,
    GgmlType::Q4_1,
    GgmlType::Q5_0,
    GgmlType::Q5_1,
    GgmlType::Q4_K,
    GgmlType::Q5_K,
    GgmlType::Q6_K,
];
const SIZES: [usize; 2] = [1024, 4096];
const ACTIVATION_ROWS: [usize; 2] = [1, 16];
/// Weight rows of one call, as the engine hands them out.
const ROWS: usize = 64;
/// A case is timed this long, and at least so often.
const TIME: Duration = Duration::from_millis(250);
const RUNS: usize = 9;

fn main() {
    let words: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with("--")).collect();
    let mut lines = Vec::new();
    for ty in TYPES {
        for size in SIZES {
            let data = weights(ty, size);
            let bytes = data.len();
            let read = read_gb_per_s(bytes, 1);
            for n in ACTIVATION_ROWS {
                let case = format!("matvec {ty}, {size} x {size}, {n} activation rows, 1 thread");
                if !words.iter().all(|w| case.split([' ', ',']).any(|part| part == w)) {
                    continue;
                }
                println!("{case}, median ± MAD");
                let matrix = Matrix { ty, rows: size, cols: size, data: &data };
                let mut plain = None;
                for level in Kernels::available() {
                    let (time, spread) = measure(&matrix, n, level);
                    let ratio = *plain.get_or_insert(time) / time;
                    let gb_per_s = bytes as f64 / time / 1e9;
                    let share = if n == 1 {
                        format!("{:3.0} % of a plain read at {read:.1} GB/s", 100.0 * gb_per_s / read)
                    } else {
                        String::new()
                    };
                    let gops = 2.0 * (size * size * n) as f64 / time / 1e9;
                    println!(
                        "  {:<8} {:9.4} ms ± {:.4} {ratio:7.2} x {gb_per_s:7.1} GB/s {gops:7.1} Gop/s  {share}",
                        level.name(),
                        time * 1e3,
                        spread * 1e3
                    );
                    lines.push(
                        json!({"bench": "matvec", "type": ty.name(), "size": size, "n": n, "level": level.name(),
                        "ms": time * 1e3, "ratio": ratio, "gb_per_s": gb_per_s, "gop_per_s": gops}),
                    );
                }
            }
        }
    }
    println!("{}", json!({ "rows": lines }));
}

/// Seconds of one product, median and deviation.
fn measure(w: &Matrix, n: usize, level: Level) -> (f64, f64) {
    let Some(kernels) = Kernels::of(level) else { return (f64::NAN, f64::NAN) };
    let x: Vec<f32> = (0..n * w.cols).map(|i| (i * 37 % 101) as f32 / 50.0 - 1.0).collect();
    let mut acts = Acts::default();
    acts.set(&x, w.cols);
    acts.prepare(Form::of(w.ty), kernels.turn(w.ty, n));
    let (mut out, mut scratch) = (vec![0.0; ROWS * n], vec![0.0; Kernels::scratch(w.cols)]);
    let mut once = || {
        for first in (0..w.rows).step_by(ROWS) {
            kernels.rows(w, first, &acts, &mut out, &mut scratch);
            std::hint::black_box(&mut out);
        }
    };
    once();
    let (begun, mut times) = (Instant::now(), Vec::new());
    while times.len() < RUNS || begun.elapsed() < TIME {
        let start = Instant::now();
        once();
        times.push(start.elapsed().as_secs_f64());
    }
    (median(&times).unwrap_or(f64::NAN), mad(&times).unwrap_or(f64::NAN))
}

/// `size` rows of blocks: any codes, scales near 1; those of the K types are subnormal halves, as they often are in files.
fn weights(ty: GgmlType, size: usize) -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..size * ty.row_bytes(size).unwrap_or(0)).map(|i| (i * 131 + i / 7) as u8).collect();
    let scales: &[usize] = match ty {
        GgmlType::Q4_1 | GgmlType::Q5_1 | GgmlType::Q4_K | GgmlType::Q5_K => &[1, 3],
        GgmlType::Q6_K => &[209],
        GgmlType::F32 => &[3],
        _ => &[1],
    };
    let high = if ty.block_len() == 256 { 0x01 } else { 0x3c };
    for block in bytes.chunks_mut(ty.block_bytes()) {
        scales.iter().for_each(|at| block[*at] = high);
    }
    bytes
}
