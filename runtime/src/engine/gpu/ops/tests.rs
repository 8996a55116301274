//! Every kernel against plain loops, on sizes that fill no tile, with the device's own limits and with hardly any.

use super::*;
use crate::engine::cpu::ops as plain;
use crate::engine::gpu::pass::Runner;
use crate::engine::gpu::tests::{Draw, device};
use crate::engine::gpu::weights::{Form, vector};
use crate::format::GgmlType;
use crate::format::block::decode;
use crate::kernels::Matrix;
use half::f16;

const FORMS: [Form; 6] = [Form::F32, Form::F16, Form::Q8_0, Form::Q4_0, Form::Q4_K, Form::Q6_K];

/// A device of a test, and buffers on it.
struct Lab(Runner);

impl Lab {
    /// `tight`: bindings of 4 KiB and seven workgroups a dimension, so that everything is split.
    fn open(test: &str, tight: bool) -> Option<Self> {
        let gpu = device(test, |limits| {
            if tight {
                limits.max_storage_buffer_binding_size = 4096;
                limits.max_compute_workgroups_per_dimension = 7;
            }
        })?;
        Some(Self(Runner::new(gpu).unwrap()))
    }

    fn buffer(&self, numbers: &[f32]) -> Buffer {
        vector(&self.0.gpu, "numbers", numbers).unwrap()
    }

    fn ids(&self, ids: &[u32]) -> Buffer {
        let buffer = self.0.gpu.storage("ids", ids.len() as u64 * 4).unwrap();
        self.0.gpu.write(&buffer, 0, bytemuck::cast_slice(ids)).unwrap();
        buffer
    }

    fn weight(&self, w: &Blocks) -> Weight {
        Weight::load(&self.0.gpu, "w", &w.matrix()).unwrap()
    }

    /// Runs what `record` says, and reads `count` numbers of a buffer.
    fn run(&mut self, buffer: &Buffer, count: usize, record: impl FnOnce(&mut Pass)) -> Vec<f32> {
        let mut pass = self.0.begin();
        record(&mut pass);
        let mut out = Vec::new();
        self.0.run(&pass, buffer, count, &mut out).unwrap();
        out
    }
}

/// A matrix as a file has it.
struct Blocks {
    ty: GgmlType,
    rows: usize,
    cols: usize,
    data: Vec<u8>,
}

impl Blocks {
    /// Random codes under scales of a usual size, some of them subnormal.
    fn draw(draw: &mut Draw, ty: GgmlType, rows: usize, cols: usize) -> Self {
        let blocks = rows * cols / ty.block_len();
        let scale = |draw: &mut Draw| f16::from_f32(if draw.below(4) == 0 { 3e-6 } else { 0.01 }).to_le_bytes();
        let data = (0..blocks).flat_map(|_| {
            let mut block: Vec<u8> = (0..ty.block_bytes()).map(|_| draw.below(256) as u8).collect();
            match ty {
                GgmlType::F32 => block = draw.number().to_le_bytes().to_vec(),
                GgmlType::F16 => block = f16::from_f32(draw.number()).to_le_bytes().to_vec(),
                GgmlType::Q6_K => block[208..].copy_from_slice(&scale(draw)),
                _ => block[..2].copy_from_slice(&scale(draw)),
            }
            if matches!(ty, GgmlType::Q4_K | GgmlType::Q5_K) {
                block[2..4].copy_from_slice(&scale(draw));
            }
            block
        });
        Self { ty, rows, cols, data: data.collect() }
    }

    fn matrix(&self) -> Matrix<'_> {
        Matrix { ty: self.ty, rows: self.rows, cols: self.cols, data: &self.data }
    }

    fn row(&self, r: usize) -> Vec<f32> {
        let mut x = vec![0.0; self.cols];
        decode(self.ty, self.matrix().row(r), &mut x);
        x
    }
}

/// An odd number of whole blocks, of plain floats an odd number of columns; `tight`: a few rows must fit 4 KiB.
fn cols_of(form: Form, tight: bool) -> usize {
    match form.ty().block_len() {
        1 => 51,
        32 => 7 * 32,
        n => n * if tight { 1 } else { 3 },
    }
}

#[track_caller]
fn near(what: &str, got: &[f32], want: &[f32], tolerance: f32) {
    assert_eq!(got.len(), want.len(), "{what}");
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        assert!((g - w).abs() <= tolerance * w.abs().max(1.0), "{what}, number {i}: {g}, should be {w}");
    }
}

#[test]
fn products_of_every_form_are_those_of_the_decoded_weights() {
    for tight in [false, true] {
        let Some(mut lab) = Lab::open("products_of_every_form_are_those_of_the_decoded_weights", tight) else { return };
        let mut draw = Draw(7);
        for (form, n) in FORMS.into_iter().flat_map(|f| [1, 3, 5, 33].map(|n| (f, n))) {
            let (rows, cols) = (81, cols_of(form, tight));
            let n = if tight { n.min(4096 / 4 / cols - 1).min(9) } else { n };
            let w = Blocks::draw(&mut draw, form.ty(), rows, cols);
            let (x, bias, old) = (draw.numbers((n + 1) * cols), draw.numbers(rows), draw.numbers((n + 2) * rows));
            // From row 1 of x into row 2 of y, with a bias, on top of what is there.
            let (mut want, mut largest) = (old.clone(), 1.0f64);
            for t in 0..n {
                for r in 0..rows {
                    let products =
                        w.row(r).into_iter().zip(&x[(t + 1) * cols..]).map(|(w, x)| f64::from(w) * f64::from(*x));
                    want[(t + 2) * rows + r] += bias[r] + products.clone().sum::<f64>() as f32;
                    largest = largest.max(products.map(f64::abs).sum());
                }
            }
            let rounding = 2e-6 * largest as f32;
            let linear = Linear { weight: lab.weight(&w), bias: Some(lab.buffer(&bias)) };
            assert_eq!(linear.weight.parts.len() > 1, tight, "{form:?}");
            let (x, y, nothing) = (lab.buffer(&x), lab.buffer(&old), lab.0.nothing.clone());
            let got = lab.run(&y, old.len(), |pass| {
                let (x, y) = (super::Rows { buffer: &x, at: 1 }, super::Rows { buffer: &y, at: 2 });
                pass.linear(&linear, x, y, n, Then::Add, &nothing);
            });
            near(&format!("{form:?}, {n} rows, tight {tight}"), &got, &want, rounding);
            let plain = Linear { bias: None, ..linear };
            let y = lab.buffer(&old);
            let got = lab.run(&y, rows, |pass| {
                pass.linear(&plain, super::Rows { buffer: &x, at: 1 }, (&y).into(), 1, Then::Set, &nothing);
            });
            let want: Vec<f32> = (0..rows).map(|r| want[2 * rows + r] - bias[r] - old[2 * rows + r]).collect();
            near(&format!("{form:?}, alone, tight {tight}"), &got, &want, rounding);
        }
    }
}

#[test]
fn types_without_a_kernel_are_decoded() {
    let Some(mut lab) = Lab::open("types_without_a_kernel_are_decoded", false) else { return };
    let w = Blocks::draw(&mut Draw(3), GgmlType::Q5_K, 9, 256);
    let (table, ids) = (lab.weight(&w), lab.ids(&[8, 0, 3]));
    assert_eq!(table.form, Form::F32);
    let y = lab.buffer(&[0.0; 3 * 256]);
    let got = lab.run(&y, 3 * 256, |pass| pass.gather(&table, (&ids).into(), &y, 3, Then::Set));
    assert_eq!(got, [w.row(8), w.row(0), w.row(3)].concat());
}

#[test]
fn gathered_rows_are_the_decoded_rows() {
    for tight in [false, true] {
        let Some(mut lab) = Lab::open("gathered_rows_are_the_decoded_rows", tight) else { return };
        let mut draw = Draw(11);
        for form in FORMS {
            let (rows, cols) = (81, cols_of(form, tight));
            let w = Blocks::draw(&mut draw, form.ty(), rows, cols);
            let ids = if tight { vec![99, 80, 0] } else { vec![99, 80, 0, 17, 17] };
            let n = ids.len() - 1;
            let old = draw.numbers(n * cols);
            let (table, ids_there, y) = (lab.weight(&w), lab.ids(&ids), lab.buffer(&old));
            assert_eq!(table.parts.len() > 1, tight, "{form:?}");
            let at_one = super::Rows { buffer: &ids_there, at: 1 };
            let added = lab.run(&y, n * cols, |pass| pass.gather(&table, at_one, &y, n, Then::Add));
            let set = lab.run(&y, n * cols, |pass| pass.gather(&table, at_one, &y, n, Then::Set));
            let rows: Vec<f32> = ids[1..].iter().flat_map(|id| w.row(*id as usize)).collect();
            near(&format!("{form:?}, set"), &set, &rows, 1e-7);
            let sums: Vec<f32> = old.iter().zip(&rows).map(|(a, b)| a + b).collect();
            near(&format!("{form:?}, added"), &added, &sums, 1e-6);
        }
    }
}

/// Drivers may flush small halves to zero; scales must survive.
#[test]
fn every_finite_half_is_decoded_exactly() {
    let Some(mut lab) = Lab::open("every_finite_half_is_decoded_exactly", false) else { return };
    let halves: Vec<u16> = (0..=u16::MAX).filter(|bits| f16::from_bits(*bits).is_finite()).collect();
    let data = halves.iter().flat_map(|bits| [&bits.to_le_bytes()[..], &[1; 32]].concat()).collect();
    let w = Blocks { ty: GgmlType::Q8_0, rows: halves.len(), cols: 32, data };
    let table = lab.weight(&w);
    let ids: Vec<u32> = (0..halves.len() as u32).collect();
    let (ids, y) = (lab.ids(&ids), lab.0.gpu.storage("y", halves.len() as u64 * 128).unwrap());
    let got = lab.run(&y, halves.len() * 32, |pass| pass.gather(&table, (&ids).into(), &y, halves.len(), Then::Set));
    for (bits, row) in halves.iter().zip(got.chunks(32)) {
        assert_eq!(row, [f16::from_bits(*bits).to_f32(); 32], "{bits:#06x}");
    }
}

#[test]
fn norms_are_the_plain_ones() {
    for tight in [false, true] {
        let Some(mut lab) = Lab::open("norms_are_the_plain_ones", tight) else { return };
        for cols in [1, 51, 64, 100] {
            let (mut draw, n, eps) = (Draw(5), 9, 1e-5);
            let (x, w, b) = (draw.numbers(n * cols), draw.numbers(cols), draw.numbers(cols));
            let (there, w_there, b_there) = (lab.buffer(&x), lab.buffer(&w), lab.buffer(&b));
            let y = lab.buffer(&vec![0.0; n * cols]);
            let got = lab.run(&y, n * cols, |pass| {
                let (from, to) = (super::Rows { buffer: &there, at: 2 }, super::Rows { buffer: &y, at: 1 });
                pass.rms_norm(from, &w_there, to, n - 2, cols, eps);
            });
            let mut want = Vec::new();
            plain::rms_norm(&x[2 * cols..], &w, eps, &mut want);
            near(&format!("rms of {cols}"), &got[cols..(n - 1) * cols], &want, 1e-5);
            assert!(got[..cols].iter().chain(&got[(n - 1) * cols..]).all(|v| *v == 0.0), "rows beside them");
            let got = lab.run(&there, n * cols, |pass| {
                pass.layer_norm(&there, [&w_there, &b_there], n, cols, eps);
            });
            let mut want = x;
            plain::layer_norm(&mut want, &w, &b, eps);
            near(&format!("layer norm of {cols}"), &got, &want, 2e-5);
        }
    }
}

/// Keys and values as a cache of each type keeps them.
fn kept(store: Store, x: &[f32]) -> Vec<f32> {
    x.iter().map(|v| if store == Store::F16 { f16::from_f32(*v).to_f32() } else { *v }).collect()
}

/// What a cache buffer holds, from its words as floats.
fn unpacked(store: Store, words: &[f32]) -> Vec<f32> {
    match store {
        Store::F32 => words.to_vec(),
        Store::F16 => words
            .iter()
            .flat_map(|w| [w.to_bits() as u16, (w.to_bits() >> 16) as u16])
            .map(|bits| f16::from_bits(bits).to_f32())
            .collect(),
    }
}

#[test]
fn rotations_are_the_plain_ones_and_land_in_the_cache() {
    let Some(mut lab) = Lab::open("rotations_are_the_plain_ones_and_land_in_the_cache", false) else { return };
    let heads = Heads { heads: 6, kv_heads: 3, d: 10 };
    let (q_dim, kv_dim) = (60, 30);
    for (store, adjacent) in [Store::F32, Store::F16].into_iter().flat_map(|s| [(s, true), (s, false)]) {
        let (mut draw, span) = (Draw(1), Span { at: 2, n: 5, before: 3 });
        let (mut q, mut k, mut v) = (draw.numbers(7 * q_dim), draw.numbers(7 * kv_dim), draw.numbers(7 * kv_dim));
        // Beyond f16: the end of its range stands for it.
        v[3 * kv_dim] = 1e6;
        let rope = plain::Rope::new(10, 100.0, 1.0, None, adjacent);
        let mut angles = Vec::new();
        (1..8).for_each(|position| rope.angles(position, &mut angles));
        let flat: Vec<f32> = angles.iter().flat_map(|(cos, sin)| [*cos, *sin]).collect();
        let [q_there, k_there, v_there, angles_there] = [&q, &k, &v, &flat].map(|x| lab.buffer(x));
        let words = if store == Store::F16 { 10 * kv_dim / 2 } else { 10 * kv_dim };
        let cache = [lab.buffer(&vec![0.0; words]), lab.buffer(&vec![0.0; words])];
        let record = |pass: &mut Pass| {
            pass.rope(store, [&q_there, &k_there, &v_there, &angles_there], &cache, heads, span, adjacent);
        };
        let turned = lab.run(&q_there, 7 * q_dim, record);
        let keys = unpacked(store, &lab.run(&cache[0], words, |_| ()));
        let values = unpacked(store, &lab.run(&cache[1], words, |_| ()));
        for t in span.at..span.at + span.n {
            rope.rotate(&mut q[t * q_dim..][..q_dim], &angles[t * 5..][..5]);
            rope.rotate(&mut k[t * kv_dim..][..kv_dim], &angles[t * 5..][..5]);
        }
        near("queries", &turned, &q, 1e-6);
        if store == Store::F16 {
            v[3 * kv_dim] = 65504.0;
        }
        let (slot, end) = (span.before * kv_dim, (span.before + span.n) * kv_dim);
        let rounding = if store == Store::F16 { 1e-3 } else { 1e-6 };
        near("keys", &keys[slot..end], &k[span.at * kv_dim..], rounding);
        near("values", &values[slot..end], &v[span.at * kv_dim..], rounding);
        assert!(keys[..slot].iter().chain(&keys[end..]).all(|v| *v == 0.0), "slots beside them");
    }
}

/// Attention in plain f64.
fn attended(q: &[f32], k: &[f32], v: &[f32], heads: Heads, seen: std::ops::Range<usize>) -> Vec<f32> {
    let Heads { heads: n, kv_heads, d } = heads;
    let mut out = Vec::new();
    for head in 0..n {
        let of = |x: &[f32], t: usize, e: usize| f64::from(x[(t * kv_heads + head / (n / kv_heads)) * d + e]);
        let score =
            |t: usize| (0..d).map(|e| f64::from(q[head * d + e]) * of(k, t, e)).sum::<f64>() / (d as f64).sqrt();
        let scores: Vec<f64> = seen.clone().map(score).collect();
        let most = scores.iter().copied().fold(f64::MIN, f64::max);
        let shares: Vec<f64> = scores.iter().map(|s| (s - most).exp()).collect();
        let total: f64 = shares.iter().sum();
        out.extend(
            (0..d)
                .map(|e| (seen.clone().zip(&shares).map(|(t, share)| share * of(v, t, e)).sum::<f64>() / total) as f32),
        );
    }
    out
}

#[test]
fn attention_is_the_plain_one_for_every_sight() {
    let Some(mut lab) = Lab::open("attention_is_the_plain_one_for_every_sight", false) else { return };
    for (store, d, window) in [
        (Store::F32, 16, None),
        (Store::F32, 10, Some(7)),
        (Store::F32, 10, Some(70)),
        (Store::F16, 16, None),
        (Store::F16, 10, Some(1)),
        (Store::F32, 200, None),
    ] {
        let heads = Heads { heads: 6, kv_heads: 2, d };
        let (mut draw, span) = (Draw(9), Span { at: 1, n: 9, before: 130 });
        let length = span.before + span.n;
        let q: Vec<f32> = draw.numbers((span.at + span.n) * 6 * d).iter().map(|v| 4.0 * v).collect();
        let (k, v) = (draw.numbers(length * 2 * d), draw.numbers(length * 2 * d));
        let words = |x: &[f32]| match store {
            Store::F32 => x.to_vec(),
            Store::F16 => x
                .chunks(2)
                .map(|p| [0, 1].map(|i| u32::from(f16::from_f32(p[i]).to_bits())))
                .map(|[low, high]| f32::from_bits(low | high << 16))
                .collect(),
        };
        let [q_there, k_there, v_there] = [q.clone(), words(&k), words(&v)].map(|x| lab.buffer(&x));
        let out = lab.buffer(&vec![0.0; q.len()]);
        let sight = Sight::Back(window);
        let got = lab.run(&out, q.len(), |pass| {
            pass.attention(store, &q_there, [&k_there, &v_there], &out, heads, span, sight);
        });
        let (k, v) = (kept(store, &k), kept(store, &v));
        for t in 0..span.n {
            let to = span.before + t + 1;
            let from = window.map_or(0, |w| to.saturating_sub(w));
            let row = (span.at + t) * 6 * d..(span.at + t + 1) * 6 * d;
            let want = attended(&q[row.clone()], &k, &v, heads, from..to);
            near(&format!("{store:?}, {d}, {window:?}, token {t}"), &got[row], &want, 2e-5);
        }
    }
}

#[test]
fn attention_of_whole_texts_stays_in_its_text() {
    for tight in [false, true] {
        let Some(mut lab) = Lab::open("attention_of_whole_texts_stays_in_its_text", tight) else { return };
        let heads = Heads { heads: 3, kv_heads: 3, d: 5 };
        let (mut draw, span) = (Draw(2), Span { at: 4, n: 11, before: 0 });
        let [q, k, v] = [(); 3].map(|()| draw.numbers(20 * 15));
        let [q_there, k_there, v_there] = [&q, &k, &v].map(|x| lab.buffer(x));
        let out = lab.buffer(&[0.0; 20 * 15]);
        let got = lab.run(&out, 20 * 15, |pass| {
            pass.attention(Store::F32, &q_there, [&k_there, &v_there], &out, heads, span, Sight::Whole);
        });
        for t in 4..15 {
            let want = attended(&q[t * 15..][..15], &k, &v, heads, 4..15);
            near(&format!("token {t}"), &got[t * 15..][..15], &want, 1e-5);
        }
        assert!(got[..60].iter().chain(&got[225..]).all(|v| *v == 0.0), "texts beside it");
    }
}

#[test]
fn gates_and_activations_are_the_plain_ones_and_stay_finite() {
    for tight in [false, true] {
        let Some(mut lab) = Lab::open("gates_and_activations_are_the_plain_ones_and_stay_finite", tight) else {
            return;
        };
        let mut draw = Draw(4);
        let mut x: Vec<f32> = draw.numbers(333).iter().map(|v| 5.0 * v).collect();
        x.extend([0.0, -0.0, 1e4, -1e4, 90.0, -90.0, 1e30, -1e30]);
        let up = draw.numbers(x.len());
        let (gate, up_there) = (lab.buffer(&x), lab.buffer(&up));
        let got = lab.run(&gate, x.len(), |pass| pass.swiglu(&gate, &up_there, x.len()));
        let mut want = x.clone();
        plain::swiglu(&mut want, &up);
        near("swiglu", &got, &want, 1e-5);
        let there = lab.buffer(&x);
        let got = lab.run(&there, x.len(), |pass| pass.gelu(&there, x.len()));
        let mut want = x.clone();
        plain::gelu(&mut want);
        near("gelu", &got, &want, 1e-5);
        let there = lab.buffer(&x);
        let got = lab.run(&there, x.len(), |pass| pass.tanh(&there, x.len()));
        near("tanh", &got, &x.iter().map(|v| v.tanh()).collect::<Vec<_>>(), 1e-5);
    }
}

#[test]
fn means_are_over_the_rows_that_are_named() {
    let Some(mut lab) = Lab::open("means_are_over_the_rows_that_are_named", false) else { return };
    let x = Draw(6).numbers(9 * 70);
    let (there, y) = (lab.buffer(&x), lab.buffer(&[0.0; 3 * 70]));
    let got = lab.run(&y, 3 * 70, |pass| {
        pass.mean(super::Rows { buffer: &there, at: 2 }, super::Rows { buffer: &y, at: 1 }, 5, 70);
    });
    let want: Vec<f32> = (0..70).map(|i| (2..7).map(|t| x[t * 70 + i]).sum::<f32>() / 5.0).collect();
    near("mean", &got[70..140], &want, 1e-6);
    assert!(got[..70].iter().chain(&got[140..]).all(|v| *v == 0.0));
}
