//! The whole engine against the CPU's, on a model made on the spot: sequences, limits, failures.

use super::{Draw, device};
use crate::engine::gpu::GpuEngine;
use crate::engine::{Backend, Engine, EngineOptions, KvType, Rows, Run};
use crate::{Kind, Model};

const HIDDEN: usize = 24;
const FFN: usize = 40;
const VOCAB: usize = 61;

/// A Llama of two blocks in f32: four heads of eight, two key heads, 700 positions.
fn llama(window: Option<u32>) -> Model {
    let mut file = Draft::default();
    for (key, value) in [
        ("llama.embedding_length", HIDDEN),
        ("llama.attention.head_count", 4),
        ("llama.attention.head_count_kv", 2),
        ("llama.attention.key_length", 8),
        ("llama.attention.value_length", 8),
        ("llama.rope.dimension_count", 8),
        ("llama.context_length", 700),
        ("llama.feed_forward_length", FFN),
        ("llama.block_count", 2),
    ] {
        file.key(key, 4, &(value as u32).to_le_bytes());
    }
    if let Some(window) = window {
        file.key("edgeft.attention.sliding_window", 4, &window.to_le_bytes());
    }
    file.key("llama.attention.layer_norm_rms_epsilon", 6, &1e-5f32.to_le_bytes());
    let name = [&5u64.to_le_bytes()[..], b"llama"].concat();
    file.key("general.architecture", 8, &name);
    let mut draw = Draw(1);
    file.tensor("token_embd.weight", &[HIDDEN, VOCAB], &mut draw);
    file.tensor("output_norm.weight", &[HIDDEN], &mut draw);
    for i in 0..2 {
        for (part, cols, rows) in [
            ("attn_q", HIDDEN, 32),
            ("attn_k", HIDDEN, 16),
            ("attn_v", HIDDEN, 16),
            ("attn_output", 32, HIDDEN),
            ("ffn_gate", HIDDEN, FFN),
            ("ffn_up", HIDDEN, FFN),
            ("ffn_down", FFN, HIDDEN),
        ] {
            file.tensor(&format!("blk.{i}.{part}.weight"), &[cols, rows], &mut draw);
        }
        file.tensor(&format!("blk.{i}.attn_norm.weight"), &[HIDDEN], &mut draw);
        file.tensor(&format!("blk.{i}.ffn_norm.weight"), &[HIDDEN], &mut draw);
    }
    Model::from_bytes(file.bytes(), "tiny").unwrap()
}

/// A GGUF file in the making.
#[derive(Default)]
struct Draft {
    keys: (u64, Vec<u8>),
    tensors: (u64, Vec<u8>),
    data: Vec<u8>,
}

impl Draft {
    fn key(&mut self, name: &str, ty: u32, value: &[u8]) {
        let text = [&(name.len() as u64).to_le_bytes()[..], name.as_bytes()].concat();
        self.keys.0 += 1;
        self.keys.1.extend([&text[..], &ty.to_le_bytes(), value].concat());
    }

    fn tensor(&mut self, name: &str, dims: &[usize], draw: &mut Draw) {
        self.tensors.0 += 1;
        let table = &mut self.tensors.1;
        table.extend((name.len() as u64).to_le_bytes());
        table.extend(name.as_bytes());
        table.extend((dims.len() as u32).to_le_bytes());
        dims.iter().for_each(|d| table.extend((*d as u64).to_le_bytes()));
        table.extend(0u32.to_le_bytes());
        table.extend((self.data.len() as u64).to_le_bytes());
        let numbers = draw.numbers(dims.iter().product());
        self.data.extend(numbers.iter().flat_map(|v| (0.6 * v).to_le_bytes()));
        self.data.resize(self.data.len().next_multiple_of(32), 0);
    }

    fn bytes(self) -> Vec<u8> {
        let ((n_keys, keys), (n_tensors, tensors)) = (self.keys, self.tensors);
        let mut out = [b"GGUF", &3u32.to_le_bytes()[..], &n_tensors.to_le_bytes(), &n_keys.to_le_bytes()].concat();
        out.extend([keys, tensors].concat());
        out.resize(out.len().next_multiple_of(32), 0);
        out.extend(self.data);
        out
    }
}

fn options(backend: Backend, kv: KvType) -> EngineOptions {
    EngineOptions { backend, threads: 1, ctx: 700, n_seqs: 3, kv }
}

/// The same model on a GPU of lowered limits, and on the CPU.
fn both(test: &str, model: &Model, kv: KvType, lower: impl FnOnce(&mut wgpu::Limits)) -> Option<[Box<dyn Engine>; 2]> {
    let gpu = device(test, lower)?;
    let gpu = GpuEngine::on(gpu, model.clone(), &options(Backend::Gpu, kv)).unwrap();
    Some([Box::new(gpu), model.engine(&options(Backend::Cpu, kv)).unwrap()])
}

#[track_caller]
fn agree(engines: &mut [Box<dyn Engine>; 2], runs: &[Run], bound: f32) {
    let (mut gpu, mut cpu) = (vec![9.0], Vec::new());
    engines[0].forward(runs, &mut gpu).unwrap();
    engines[1].forward(runs, &mut cpu).unwrap();
    assert_eq!(gpu.len(), cpu.len());
    for (i, (g, c)) in gpu.iter().zip(&cpu).enumerate() {
        assert!((g - c).abs() <= bound, "row {}, logit {}: gpu {g}, cpu {c}", i / VOCAB, i % VOCAB);
    }
    (0..3).for_each(|s| assert_eq!(engines[0].len(s), engines[1].len(s), "sequence {s}"));
}

fn ids(n: usize, seed: u64) -> Vec<u32> {
    let mut draw = Draw(seed);
    (0..n).map(|_| draw.below(VOCAB as u64) as u32).collect()
}

fn run(seq: usize, tokens: &[u32], rows: Rows) -> Run<'_> {
    Run { seq, tokens, types: None, rows }
}

/// Prompts and steps of several sequences together, forgetting, a text of several passes, a cache that grows.
fn story(engines: &mut [Box<dyn Engine>; 2], bound: f32) {
    let (a, b, c) = (ids(40, 1), ids(7, 2), ids(600, 3));
    agree(engines, &[run(2, &a, Rows::All), run(0, &b, Rows::Last)], bound);
    agree(engines, &[run(0, &a[..1], Rows::Last), run(2, &b[..1], Rows::Last), run(1, &b, Rows::None)], bound);
    engines.iter_mut().for_each(|e| e.truncate(2, 11));
    agree(engines, &[run(2, &b, Rows::All), run(1, &a[..2], Rows::All)], bound);
    agree(engines, &[run(0, &c, Rows::Last), run(1, &a[..1], Rows::Last)], bound);
    agree(engines, &[run(0, &a[..1], Rows::Last)], bound);
}

#[test]
fn sequences_side_by_side_are_those_of_the_cpu() {
    for (kv, bound) in [(KvType::F32, 5e-4), (KvType::F16, 2e-2)] {
        for window in [None, Some(9)] {
            let test = "sequences_side_by_side_are_those_of_the_cpu";
            let Some(mut engines) = both(test, &llama(window), kv, |_| ()) else { return };
            story(&mut engines, bound);
        }
    }
}

#[test]
fn the_limits_that_webgpu_promises_are_enough() {
    let test = "the_limits_that_webgpu_promises_are_enough";
    let promised = |limits: &mut wgpu::Limits| *limits = wgpu::Limits::default().or_worse_values_from(limits);
    let Some(mut engines) = both(test, &llama(None), KvType::F16, promised) else { return };
    story(&mut engines, 2e-2);
}

#[test]
fn a_binding_smaller_than_a_matrix_changes_nothing() {
    let test = "a_binding_smaller_than_a_matrix_changes_nothing";
    let tiny = |limits: &mut wgpu::Limits| {
        // The embedding has 5856 bytes, the cache of a long text 700 * 16 * 2 = 22400.
        limits.max_storage_buffer_binding_size = 22_400;
        limits.max_buffer_size = 22_400;
        limits.max_compute_workgroups_per_dimension = 48;
    };
    let Some(mut engines) = both(test, &llama(Some(9)), KvType::F16, tiny) else { return };
    story(&mut engines, 2e-2);
    let smaller = |limits: &mut wgpu::Limits| limits.max_storage_buffer_binding_size = 1024;
    let gpu = device(test, smaller).unwrap();
    let options = EngineOptions { ctx: 16, ..options(Backend::Gpu, KvType::F32) };
    let mut engine = GpuEngine::on(gpu, llama(None), &options).unwrap();
    let (mut small, mut cpu) = (Vec::new(), Vec::new());
    let tokens = ids(16, 4);
    engine.forward(&[run(0, &tokens, Rows::All)], &mut small).unwrap();
    let mut reference = llama(None).engine(&EngineOptions { backend: Backend::Cpu, ..options }).unwrap();
    reference.forward(&[run(0, &tokens, Rows::All)], &mut cpu).unwrap();
    assert!(small.len() == cpu.len() && small.iter().zip(&cpu).all(|(a, b)| (a - b).abs() < 5e-4));
}

#[test]
fn what_no_binding_holds_is_refused_with_both_numbers() {
    let test = "what_no_binding_holds_is_refused_with_both_numbers";
    let open = |bytes: u64| device(test, |limits| limits.max_storage_buffer_binding_size = bytes);
    let Some(gpu) = open(128) else { return };
    let e = GpuEngine::on(gpu, llama(None), &options(Backend::Gpu, KvType::F32)).err().unwrap();
    assert_eq!(e.kind(), Kind::Limit);
    assert!(e.to_string().contains("a row needs 160 bytes, but this GPU binds at most 128"), "{e}");
    let Some(gpu) = open(8192) else { return };
    let mut engine = GpuEngine::on(gpu, llama(None), &options(Backend::Gpu, KvType::F32)).unwrap();
    let (tokens, mut out) = (ids(200, 4), Vec::new());
    let e = engine.forward(&[run(0, &tokens, Rows::Last)], &mut out).unwrap_err();
    assert_eq!((e.kind(), engine.len(0)), (Kind::Limit, 0));
    assert!(e.to_string().contains("needs 16384 bytes, but this GPU binds at most 8192"), "{e}");
    engine.forward(&[run(0, &tokens[..100], Rows::Last)], &mut out).unwrap();
    assert_eq!(out.len(), VOCAB);
}

#[test]
fn a_buffer_that_the_device_refuses_is_an_error_and_not_a_panic() {
    let test = "a_buffer_that_the_device_refuses_is_an_error_and_not_a_panic";
    let Some(gpu) = device(test, |_| ()) else { return };
    let e = gpu.buffer("too much", 1 << 60, wgpu::BufferUsages::STORAGE).unwrap_err();
    assert!(e.to_string().contains("too much") && e.to_string().contains("1152921504606846976"), "{e}");
    gpu.wait().unwrap();
}

#[test]
fn a_lost_device_is_an_error_and_not_a_panic() {
    let Some(gpu) = device("a_lost_device_is_an_error_and_not_a_panic", |_| ()) else { return };
    let mut engine = GpuEngine::on(gpu, llama(None), &options(Backend::Gpu, KvType::F32)).unwrap();
    let (tokens, mut out) = (ids(3, 4), Vec::new());
    engine.forward(&[run(0, &tokens, Rows::Last)], &mut out).unwrap();
    engine.runner.gpu.device.destroy();
    for _ in 0..3 {
        let e = engine.forward(&[run(0, &tokens, Rows::Last)], &mut out).unwrap_err();
        assert!(e.kind() == Kind::Io && e.to_string().contains(&engine.adapter().name), "{e}");
    }
    assert_eq!(engine.len(0), 3);
}

#[test]
fn wrong_runs_are_refused_in_the_words_of_the_cpu() {
    let Some(mut engines) = both("wrong_runs_are_refused_in_the_words_of_the_cpu", &llama(None), KvType::F32, |_| ())
    else {
        return;
    };
    let long = vec![0; 701];
    for runs in [
        vec![run(3, &[1], Rows::Last)],
        vec![run(0, &[], Rows::Last)],
        vec![run(0, &[61], Rows::Last)],
        vec![run(0, &[1], Rows::Last), run(0, &[1], Rows::Last)],
        vec![run(0, &long, Rows::Last)],
    ] {
        let [gpu, cpu] = engines.each_mut().map(|e| e.forward(&runs, &mut Vec::new()).unwrap_err());
        assert_eq!((gpu.kind(), gpu.to_string()), (cpu.kind(), cpu.to_string()));
    }
}
