//! The writer's tests end in the reader.

use super::*;
use crate::{
    names::Destination,
    plan::{Mix, PlanOptions, plan},
    source::{Task, tests::Tiny},
};
use edgeft_runtime::format::{
    GgmlType,
    block::decode,
    gguf::{Gguf, Value},
};

fn written(tiny: &Tiny, mix: Mix, extra: &[(String, Value)]) -> (Vec<u8>, Report, Plan) {
    let plan = plan(tiny, mix, &PlanOptions::default()).unwrap();
    let mut bytes = Vec::new();
    let report = write_gguf(tiny, &TokenizerFiles::default(), &plan, extra, &mut bytes, &mut |_, _| {}).unwrap();
    (bytes, report, plan)
}

fn refused(tiny: &Tiny, mix: Mix) -> String {
    let plan = plan(tiny, mix, &PlanOptions::default()).unwrap();
    let mut bytes = Vec::new();
    write_gguf(tiny, &TokenizerFiles::default(), &plan, &[], &mut bytes, &mut |_, _| {}).unwrap_err().to_string()
}

/// One key, one tensor of two rows of one f32, spelled out byte by byte from the specification.
#[test]
fn the_header_has_the_bytes_of_the_spec() {
    let t = Planned {
        name: "t".into(),
        shape: vec![2, 1],
        origin: Origin::RopeDivisors(vec![1.0, 2.0]),
        ty: GgmlType::F32,
        wanted: GgmlType::F32,
        reason: crate::plan::Reason::Computed,
    };
    let got = header(&[("k".into(), Value::Array(Array::U32(vec![7])))], std::slice::from_ref(&t)).unwrap();
    #[rustfmt::skip]
    let mut want = vec![
        b'G', b'G', b'U', b'F', 3, 0, 0, 0,                 // magic, version
        1, 0, 0, 0, 0, 0, 0, 0,  1, 0, 0, 0, 0, 0, 0, 0,    // tensors, keys
        1, 0, 0, 0, 0, 0, 0, 0, b'k',                       // key
        9, 0, 0, 0,  4, 0, 0, 0,  1, 0, 0, 0, 0, 0, 0, 0,  7, 0, 0, 0, // array of one u32
        1, 0, 0, 0, 0, 0, 0, 0, b't',                       // tensor name
        2, 0, 0, 0,  1, 0, 0, 0, 0, 0, 0, 0,  2, 0, 0, 0, 0, 0, 0, 0,  // two dimensions, columns first
        0, 0, 0, 0,  0, 0, 0, 0, 0, 0, 0, 0,                // f32, offset
    ];
    assert_eq!(want.len(), 94);
    want.resize(96, 0); // padded to 32
    assert_eq!(got, want);
    let twice = [("k".into(), Value::U8(1)), ("k".into(), Value::U8(2))];
    assert_eq!(header(&twice, &[]).unwrap_err().to_string(), "metadata key `k`: it is given twice");
}

#[test]
fn every_mix_of_every_family_reads_back() {
    let decoder = |arch| Tiny::decoder(arch, 256, 512, 2);
    for tiny in
        [Tiny::llama(), decoder(crate::source::Arch::Qwen2), Tiny::gemma3(), Tiny::phi3(), Tiny::gpt2(), Tiny::bert()]
    {
        for mix in Mix::all() {
            let (bytes, report, plan) = written(&tiny, mix, &[]);
            let gguf = Gguf::parse(&bytes).unwrap();
            assert_eq!((gguf.tensors.len(), report.bytes), (plan.tensors.len(), bytes.len() as u64));
            assert_eq!(gguf.metadata[0], ("general.architecture".into(), Value::Str(tiny.spec.arch.name().into())));
            assert_eq!(gguf.get("general.file_type"), Some(&Value::U32(mix.file_type())));
            assert_eq!(gguf.get("general.quantization_version").is_some(), mix.is_quantized(), "{mix}");
            assert_eq!(bytes.len() % 32, 0);
            for ((t, info), told) in plan.tensors.iter().zip(&gguf.tensors).zip(&report.tensors) {
                let mut dims: Vec<u64> = t.shape.iter().map(|n| *n as u64).collect();
                dims.reverse();
                assert_eq!((&info.name, info.ty, &info.dims), (&t.name, t.ty, &dims));
                let x = values(&tiny, t).unwrap();
                let mut y = vec![0.0; x.len()];
                decode(info.ty, gguf.data(&bytes, info), &mut y);
                let error: f64 = x.iter().zip(&y).map(|(a, b)| f64::from(a - b).powi(2)).sum();
                let rms = (error / x.len() as f64).sqrt();
                assert!((rms - told.rms_error).abs() <= 1e-6 * rms, "{mix} {}: {rms} {}", t.name, told.rms_error);
                assert!(told.relative_error < 0.35, "{mix} {}: {}", t.name, told.relative_error);
            }
        }
    }
}

#[test]
fn the_bytes_do_not_depend_on_the_number_of_threads() {
    // Rows of 512: more than one chunk, the last one shorter.
    let mut tiny = Tiny::decoder(crate::source::Arch::Llama, 256, 512, 2);
    tiny.spec.vocab_size = 700;
    tiny.put("model.embed_tokens.weight", &[700, 256]);
    tiny.put("lm_head.weight", &[700, 256]);
    let at = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let (bytes, report, _) = written(&tiny, Mix::Q4_K_M, &[]);
            (bytes, report.sha256, report.tensors.iter().map(|t| t.rms_error).collect::<Vec<_>>())
        })
    };
    let one = at(1);
    assert!(one == at(2) && one == at(3) && one == at(8));
}

#[test]
fn the_reported_hash_is_of_the_file() {
    let (bytes, report, _) = written(&Tiny::llama(), Mix::Q8_0, &[]);
    assert_eq!(report.sha256, crate::stream::sha256(&bytes));
    assert_eq!(report.to_string(), "q8_0: 0.1 MB, 8.61 bits a weight, 21 tensors (5 f32, 16 q8_0)");
}

#[test]
fn query_rows_are_interleaved_and_value_rows_are_not() {
    let tiny = Tiny::llama();
    let (bytes, ..) = written(&tiny, Mix::F32, &[]);
    let gguf = Gguf::parse(&bytes).unwrap();
    let row = |name: &str, row: usize| -> Vec<f32> {
        let data = gguf.data(&bytes, gguf.tensor(name).unwrap());
        data[row * 256..(row + 1) * 256].chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
    };
    let source = |name: &str, row: usize| tiny.tensors[name].1[row * 64..(row + 1) * 64].to_vec();
    // Head 1 of q has rows 16..32; its second row is its ninth in the source.
    assert_eq!(row("blk.0.attn_q.weight", 17), source("model.layers.0.self_attn.q_proj.weight", 24));
    assert_eq!(row("blk.0.attn_k.weight", 18), source("model.layers.0.self_attn.k_proj.weight", 17));
    assert_eq!(row("blk.0.attn_v.weight", 17), source("model.layers.0.self_attn.v_proj.weight", 17));
}

#[test]
fn a_bad_value_is_named_where_the_source_has_it() {
    let spoil = |name: &str, at: usize, value: f32, mix| {
        let mut tiny = Tiny::llama();
        tiny.tensors.get_mut(name).unwrap().1[at] = value;
        refused(&tiny, mix)
    };
    assert_eq!(
        spoil("model.layers.1.mlp.up_proj.weight", 5 * 64 + 9, f32::NAN, Mix::Q8_0),
        "tensor `model.layers.1.mlp.up_proj.weight`, row 5, column 9: NaN is a value that no type can hold"
    );
    // Row 24 of q is written as row 17; the message has the source's.
    assert_eq!(
        spoil("model.layers.0.self_attn.q_proj.weight", 24 * 64 + 3, f32::NEG_INFINITY, Mix::F32),
        "tensor `model.layers.0.self_attn.q_proj.weight`, row 24, column 3: -inf is a value that no type can hold"
    );
    assert_eq!(
        spoil("model.layers.0.self_attn.o_proj.weight", 64, 1e5, Mix::F16),
        "tensor `model.layers.0.self_attn.o_proj.weight`, row 1, column 0: 1e5 is too large for f16"
    );
    assert_eq!(
        spoil("model.norm.weight", 3, f32::INFINITY, Mix::Q4_0),
        "tensor `model.norm.weight`, row 0, column 3: inf is a value that no type can hold"
    );
}

#[test]
fn a_source_that_gives_another_length_or_fails_is_named() {
    let mut tiny = Tiny::llama();
    tiny.tensors.get_mut("model.norm.weight").unwrap().1.pop();
    assert_eq!(refused(&tiny, Mix::F16), "tensor `model.norm.weight` has 63 values, but its shape [64] has 64");
}

#[test]
fn heads_travel_as_keys_and_their_values_are_checked() {
    let mut tiny = Tiny::llama();
    tiny.spec.task = Task::Classify { labels: vec!["no".into(), "yes".into()] };
    tiny.tensors.remove("lm_head.weight");
    tiny.put("score.weight", &[2, 64]);
    let (bytes, _, plan) = written(&tiny, Mix::Q8_0, &[]);
    assert!(plan.tied && matches!(plan.keys[0].1.to, Destination::Key(_)));
    let gguf = Gguf::parse(&bytes).unwrap();
    let head = Value::Array(Array::F32(tiny.tensors["score.weight"].1.clone()));
    assert_eq!(gguf.get("edgeft.head.score.weight"), Some(&head));
    assert_eq!(gguf.get("edgeft.task"), Some(&Value::Str("classify".into())));
    tiny.tensors.get_mut("score.weight").unwrap().1[70] = f32::NAN;
    assert_eq!(
        refused(&tiny, Mix::Q8_0),
        "tensor `score.weight`, row 1, column 6: NaN is a value that no type can hold"
    );
}

#[test]
fn extra_keys_are_added_and_replace_but_never_lie_about_the_bytes() {
    let key = |k: &str, v| (k.to_string(), v);
    let (bytes, ..) = written(
        &Tiny::bert(),
        Mix::F16,
        &[key("edgeft.base", Value::Str("abc".into())), key("bert.pooling_type", Value::U32(2))],
    );
    let gguf = Gguf::parse(&bytes).unwrap();
    assert_eq!(gguf.get("edgeft.base"), Some(&Value::Str("abc".into())));
    assert_eq!(gguf.get("bert.pooling_type"), Some(&Value::U32(2)));
    assert_eq!(gguf.get("tokenizer.ggml.model"), Some(&Value::Str("no_vocab".into())));
    assert_eq!(gguf.get("tokenizer.ggml.token_type_count"), Some(&Value::U32(2)));
    let mut keys = vec![];
    let e = metadata::extend(&mut keys, &[key("general.file_type", Value::U32(0))]).unwrap_err().to_string();
    assert_eq!(e, "metadata key `general.file_type`: it describes the bytes of the file, so only the writer sets it");
    let e = metadata::extend(&mut keys, &[key("a", Value::U8(0)), key("a", Value::U8(0))]).unwrap_err().to_string();
    assert_eq!(e, "metadata key `a`: it is given twice");
}

#[test]
fn progress_ends_at_the_total() {
    let tiny = Tiny::llama();
    let plan = plan(&tiny, Mix::Q4_0, &PlanOptions::default()).unwrap();
    let mut heard = Vec::new();
    let mut out = Vec::new();
    write_gguf(&tiny, &TokenizerFiles::default(), &plan, &[], &mut out, &mut |d, t| heard.push((d, t))).unwrap();
    assert!(heard.windows(2).all(|w| w[0].0 < w[1].0) && heard.iter().all(|h| h.1 == plan.elements()));
    assert_eq!(heard.last(), Some(&(plan.elements(), plan.elements())));
}

#[test]
fn a_stream_that_breaks_is_an_error() {
    struct Full(usize);
    impl Write for Full {
        fn write(&mut self, b: &[u8]) -> std::io::Result<usize> {
            self.0 = self.0.checked_sub(b.len()).ok_or(std::io::ErrorKind::StorageFull)?;
            Ok(b.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let tiny = Tiny::llama();
    let plan = plan(&tiny, Mix::Q4_0, &PlanOptions::default()).unwrap();
    for room in [0, 100, 10_000] {
        let e = write_gguf(&tiny, &TokenizerFiles::default(), &plan, &[], &mut Full(room), &mut |_, _| {}).unwrap_err();
        assert!(matches!(e, Error::Write(_)), "{e}");
    }
}
