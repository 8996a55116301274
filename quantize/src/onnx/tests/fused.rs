//! The graphs in ONNX Runtime's own operators.

use super::*;

/// Operators of the domain `com.microsoft`.
const CONTRIB_OPERATORS: [&str; 5] = [
    "GatherBlockQuantized",
    "GroupQueryAttention",
    "MatMulNBits",
    "RotaryEmbedding",
    "SkipSimplifiedLayerNormalization",
];

fn ort(tiny: &Tiny, mix: Mix) -> Written {
    written_in(Operators::Ort, tiny, mix)
}

/// Heads of 8, as stories260K has them.
fn narrow_heads() -> Tiny {
    let mut tiny = Tiny::decoder(Arch::Llama, 64, 96, 2);
    let (d, heads, kv_heads) = (8, 4, 2);
    (tiny.spec.head_dim, tiny.spec.n_heads, tiny.spec.n_kv_heads) = (d, heads, kv_heads);
    for i in 0..2 {
        let at = |part: &str| format!("model.layers.{i}.self_attn.{part}.weight");
        tiny.put(&at("q_proj"), &[heads * d, 64]);
        tiny.put(&at("k_proj"), &[kv_heads * d, 64]);
        tiny.put(&at("v_proj"), &[kv_heads * d, 64]);
        tiny.put(&at("o_proj"), &[64, heads * d]);
    }
    tiny
}

fn decodes(tiny: &Tiny) -> bool {
    tiny.spec.arch != Arch::Bert && !matches!(tiny.spec.task, Task::Classify { .. })
}

fn count(written: &Written, op: &str) -> usize {
    written.graph().node.iter().filter(|n| n.op_type == op).count()
}

#[test]
fn every_graph_is_sound_in_the_operators_of_onnx_runtime() {
    let mut all = families();
    all.retain(|(family, _)| *family != "window"); // refused, see below
    all.push(("heads of 8", narrow_heads()));
    for (family, tiny) in all {
        for mix in MIXES {
            let (written, case) = (ort(&tiny, mix), format!("{family} {mix}"));
            is_sound(&written, &case);
            for node in &written.graph().node {
                let op = node.op_type.as_str();
                let known = match node.domain.as_str() {
                    "" => OPERATORS.contains(&op) || ["ReduceSum", "SimplifiedLayerNormalization"].contains(&op),
                    "com.microsoft" => CONTRIB_OPERATORS.contains(&op),
                    _ => false,
                };
                assert!(known && op != "DequantizeLinear", "{case}: {}.{op}", node.domain);
            }
            let fused = decodes(&tiny);
            let sets: Vec<_> = written.model.opset_import.iter().map(|s| (s.domain.as_str(), s.version)).collect();
            let contrib = fused || mix.is_quantized();
            assert_eq!(sets, [("", 17), ("com.microsoft", 1)][..1 + usize::from(contrib)], "{case}");
            assert_eq!(written.model.ir_version, 8, "{case}");
            assert_eq!(count(&written, "MatMulNBits") > 0, mix.is_quantized(), "{case}");
            let (layers, n) = (tiny.spec.n_layers, usize::from(fused));
            assert_eq!(count(&written, "GroupQueryAttention"), n * layers, "{case}");
            assert_eq!(count(&written, "SkipSimplifiedLayerNormalization"), n * 2 * layers, "{case}");
            assert_eq!(count(&written, "SimplifiedLayerNormalization"), n, "{case}");
        }
    }
}

#[test]
fn positions_are_asked_for_only_where_attention_cannot_turn_the_keys_itself() {
    let inputs = |tiny: &Tiny| {
        let written = ort(tiny, Mix::F32);
        let names: Vec<_> = written.graph().input.iter().map(|i| i.name.clone()).collect();
        (names[..3].join(" "), count(&written, "RotaryEmbedding"))
    };
    assert_eq!(inputs(&Tiny::llama()), ("input_ids attention_mask past_key_values.0.key".into(), 0));
    assert_eq!(inputs(&narrow_heads()), ("input_ids attention_mask position_ids".into(), 4));
    assert!(!Operators::Ort.takes_positions(64) && Operators::Ort.takes_positions(8));
    assert!(Operators::Portable.takes_positions(64));
}

#[test]
fn codes_lie_in_rows_and_are_those_of_the_gguf_file() {
    for mix in [Mix::Q8_0, Mix::Q4_0, Mix::Q6_K] {
        for tiny in [wide(Arch::Llama), without(wide(Arch::Llama), "lm_head"), wide(Arch::Qwen2), Tiny::bert()] {
            let plan = plan(&tiny, mix, &PlanOptions::default()).unwrap();
            let mut bytes = Vec::new();
            crate::write_gguf(&tiny, &Default::default(), &plan, &[], &mut bytes, &mut |_, _| {}).unwrap();
            let (gguf, onnx) = (Gguf::parse(&bytes).unwrap(), ort(&tiny, mix));
            let mut compared = 0;
            for t in plan.tensors.iter().filter(|t| t.ty.block_len() > 1) {
                let crate::plan::Origin::Source(placed) = &t.origin else { panic!() };
                let (want, rows) = codes_of(&gguf, &bytes, &tiny, &t.name);
                let (stored, bits) = (onnx.tensor(&placed.source), codes::bits(t.ty));
                let cols = want.codes.len() / rows;
                let shape: Vec<i64> = match t.name.starts_with("token_embd") {
                    true => vec![rows, cols * bits / 8],
                    false => vec![rows, cols / want.block, want.block * bits / 8],
                }
                .into_iter()
                .map(|n| n as i64)
                .collect();
                assert_eq!((stored.data_type, &stored.dims), (DataType::Uint8 as i32, &shape), "{mix} {}", t.name);
                let unsigned: Vec<u8> = match bits {
                    4 => onnx.bytes_of(stored).iter().flat_map(|b| [b & 15, b >> 4]).collect(),
                    _ => onnx.bytes_of(stored).to_vec(),
                };
                let middle = 1i16 << (bits - 1);
                let codes: Vec<i8> = unsigned.iter().map(|q| (i16::from(*q) - middle) as i8).collect();
                let scales = onnx.floats(&format!("{}.scale", placed.source));
                assert_eq!((codes, scales), (want.codes, want.scales), "{mix} {}", t.name);
                compared += 1;
            }
            assert!(compared >= 7, "{mix}: {compared} tensors");
        }
    }
}

#[test]
fn a_table_that_is_the_head_too_is_stored_once() {
    let tied = without(wide(Arch::Llama), "lm_head");
    let written = ort(&tied, Mix::Q8_0);
    let readers = |name: &str| -> Vec<&str> {
        let nodes = written.graph().node.iter().filter(|n| n.input.iter().any(|i| i == name));
        nodes.map(|n| n.op_type.as_str()).collect()
    };
    assert_eq!(readers("model.embed_tokens.weight"), ["GatherBlockQuantized", "Reshape"]);
    assert_eq!(readers("model.embed_tokens.weight.scale"), ["GatherBlockQuantized", "MatMulNBits"]);
    // Four bits stay four: a portable graph keeps eight for a table.
    let bytes = |operators| written_in(operators, &wide(Arch::Llama), Mix::Q4_0).report.tensors;
    let table = |operators| bytes(operators).into_iter().find(|t| t.name == "token_embd.weight").unwrap().bytes;
    let elements = (tied.spec.vocab_size * 256) as u64;
    assert_eq!((table(Operators::Portable), table(Operators::Ort)), (elements * 9 / 8, elements * 5 / 8));
}

#[test]
fn angles_are_those_of_every_position_of_the_context() {
    let tiny = llama3();
    let written = ort(&tiny, Mix::F32);
    let frequencies = super::written(&tiny, Mix::F32).floats("rotary.inv_freq");
    let (n, half) = (tiny.spec.n_ctx, frequencies.len());
    assert_eq!(written.tensor("rotary.cos").dims, [n as i64, half as i64]);
    let (cos, sin) = (written.floats("rotary.cos"), written.floats("rotary.sin"));
    for t in 0..n {
        for i in 0..half {
            let angle = t as f32 * frequencies[i];
            let off = (cos[t * half + i] - angle.cos()).abs().max((sin[t * half + i] - angle.sin()).abs());
            assert!(off <= 1e-6 * (t as f32 + 1.0), "position {t}, pair {i}: {off}");
        }
    }
}

#[test]
fn shapes_that_these_operators_do_not_take_are_refused_with_the_way_out() {
    let refused = |tiny: &Tiny| {
        let plan = plan(tiny, Mix::F32, &PlanOptions::default()).unwrap();
        let mut data = Vec::new();
        let error = write_onnx(tiny, &plan, Operators::Ort, &[], &mut data, &mut |_, _| {}).map(|_| ()).unwrap_err();
        assert!(data.is_empty());
        error.to_string()
    };
    let window = with(Tiny::llama(), |s| s.sliding_window = Some(8));
    let error = refused(&window);
    assert!(error.starts_with("sliding_window is 8, but ") && error.ends_with("write portable operators"), "{error}");
    let mut odd = narrow_heads();
    odd.spec.head_dim = 12;
    for i in 0..2 {
        for (part, shape) in [("q_proj", [48, 64]), ("k_proj", [24, 64]), ("v_proj", [24, 64]), ("o_proj", [64, 48])] {
            odd.put(&format!("model.layers.{i}.self_attn.{part}.weight"), &shape);
        }
    }
    assert!(refused(&odd).starts_with("head_dim is 12, but "), "{}", refused(&odd));
    // A window that the context never fills is none.
    let wide_window = with(Tiny::llama(), |s| s.sliding_window = Some(s.n_ctx));
    assert_eq!(count(&ort(&wide_window, Mix::F32), "GroupQueryAttention"), 2);
}
