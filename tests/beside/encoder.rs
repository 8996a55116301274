//! Several texts of an encoder in one pass, under adapters of their own.

use super::*;

/// Texts of an encoder that are read in one pass, each under its own: in the embedding, the blocks and the head.
#[test]
fn texts_under_several_adapters_are_each_labelled_as_alone_to_the_bit() {
    let folder = folder(&Tiny::classifier(&["good", "bad", "odd"]));
    folder.edgeft("quantize base --type f32 --out m.gguf").ok();
    let model = Model::from_bytes(folder.read("m.gguf"), "m.gguf").unwrap();
    let value = |name: &str, seed, n| (0..n).map(|i| 0.3 * rng::normal(seed, rng::stream(name, 0), i)).collect();
    let adapter = |seed: u64, all: &[(&str, [usize; 2], usize)]| {
        let part = |(name, [a, b], r): &(&str, [usize; 2], usize)| {
            let one = |end: &str, shape: [usize; 2]| {
                let name = format!("{name}.weight.{end}");
                let values = value(&name, seed, (shape[0] * shape[1]) as u64);
                Floats { name, shape: shape.to_vec(), values }
            };
            // The embedding's A has a row for each token.
            let of_a = if *name == "token_embd" { [*a, *r] } else { [*r, *a] };
            [one("lora_a", of_a), one("lora_b", [*b, *r])]
        };
        Adapter::from_bytes(floats(&keys("bert"), all.iter().flat_map(part).collect()).unwrap(), "a.gguf").unwrap()
    };
    let whole = [
        ("token_embd", [common::tiny::VOCAB, 64], 2),
        ("blk.0.attn_q", [64, 64], 4),
        ("blk.1.ffn_down", [96, 64], 3),
        ("cls", [64, 64], 2),
        ("cls.output", [64, 3], 1),
    ];
    let all = [adapter(1, &whole), adapter(2, &whole[..1]), adapter(3, &whole[3..])];
    let chosen = [Some(0), None, Some(1), Some(2), None, Some(0)];
    let texts: Vec<Vec<u32>> =
        (0..6).map(|i| (0..3 + 5 * i % 17).map(|t| 5 + (t * 7 + i * 11) % 300).collect()).collect();
    let types: Vec<Vec<u8>> = texts.iter().map(|text| (0..text.len()).map(|t| u8::from(t > 4)).collect()).collect();
    let rows = |seq| if seq == 4 { Rows::None } else { Rows::Last };
    let run = |seq: usize, i: usize| Run { seq, tokens: &texts[i], types: Some(&types[i]), rows: rows(i) };
    let engine = |n_seqs, threads| {
        let options = EngineOptions { backend: Backend::Cpu, threads, ctx: 64, n_seqs, kv: KvType::F32 };
        let mut engine = model.engine(&options).unwrap();
        for adapter in &all {
            engine.add_adapter(adapter, 1.0).unwrap();
        }
        engine
    };
    let alone = |i: usize, adapter| {
        let (mut engine, mut out) = (engine(1, 1), Vec::new());
        engine.choose(0, adapter).unwrap();
        engine.forward(&[run(0, i)], &mut out).unwrap();
        out
    };
    let far = |a: &[f32], b: &[f32]| a.iter().zip(b).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
    for adapter in chosen.into_iter().flatten() {
        assert!(far(&alone(1, Some(adapter)), &alone(1, None)) > 1e-3, "adapter {adapter} changes no label");
    }
    for threads in [1, 3] {
        let (mut engine, mut out) = (engine(6, threads), Vec::new());
        chosen.iter().enumerate().for_each(|(seq, adapter)| engine.choose(seq, *adapter).unwrap());
        engine.forward(&(0..6).map(|i| run(i, i)).collect::<Vec<_>>(), &mut out).unwrap();
        let want: Vec<f32> = (0..6).flat_map(|i| alone(i, chosen[i])).collect();
        assert_eq!(want.len(), 5 * 3);
        assert!(out == want, "{threads} threads: {out:?} {want:?}");
    }
}
