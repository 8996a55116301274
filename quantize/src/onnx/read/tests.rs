//! Our own models read as what they are; what is none is refused with the place; nothing panics.

use super::*;
use crate::{onnx::tests::written, plan::Mix, source::tests::Tiny};
use proptest::prelude::*;
use std::sync::LazyLock;

#[test]
fn a_written_model_reads_as_what_it_is() {
    let file = OnnxFile::parse(&written(&Tiny::llama(), Mix::Q4_0).bytes).unwrap();
    assert_eq!((file.ir_version, file.producer.as_str()), (10, "edgeft"));
    assert_eq!(file.opsets, [(String::new(), 21)]);
    let port = |ports: &[ValueInfo], name: &str| ports.iter().find(|p| p.name == name).cloned().unwrap();
    let dims = ["batch_size", "2", "past_sequence_length", "16"].map(String::from).to_vec();
    let key = port(&file.inputs, "past_key_values.1.key");
    assert_eq!((key.ty, key.dims), ("float", dims));
    assert_eq!(port(&file.outputs, "logits").dims, ["batch_size", "sequence_length", "40"]);
    assert_eq!(port(&file.inputs, "input_ids").ty, "int64");
    // Two layers of seven matrices, and the head.
    assert_eq!((file.operators["MatMul"], file.operators["Softmax"]), (2 * (7 + 2) + 1, 2));
    let tensor = |name: &str| file.tensors.iter().find(|t| t.name == name).unwrap();
    let q = tensor("model.layers.0.self_attn.q_proj.weight");
    assert_eq!((q.ty, q.dims.as_slice()), ("int4", &[64, 64][..]));
    let External { location, offset, length } = q.external.clone().unwrap();
    assert_eq!((location.as_str(), offset % 64, length), ("model.onnx.data", 0, Some(64 * 64 / 2)));
    let inside = OnnxTensor { external: None, ..q.clone() };
    assert_eq!((q.bytes(), inside.bytes()), (Some(64 * 64 / 2), Some(64 * 64 / 2)));
    let endless = OnnxTensor { dims: vec![u64::MAX, 2], ..inside };
    assert_eq!(endless.bytes(), None);
    assert_eq!(tensor("rotary.inv_freq").external, None);
    assert!(file.metadata.contains(&("edgeft.plan.mix".into(), "q4_0".into())));
}

#[track_caller]
fn refuses(bytes: &[u8], because: &str) {
    assert_eq!(OnnxFile::parse(bytes).unwrap_err().to_string(), because);
}

#[test]
fn what_is_no_model_is_refused_with_the_place() {
    refuses(b"", "not an ONNX model: it has no IR version");
    refuses(&[0x08, 10], "not an ONNX model: it has no graph");
    refuses(b"GGUF\x03\0\0\0", "the field at byte 0 has wire type 7; known: 0, 1, 2, 5");
    // IR version 10, then a graph that says it has 127 bytes, or 2^64 - 1, and has none.
    let cut = "a field at byte 4 ends at byte 131, but only 4 are there; it is cut short, or no ONNX model";
    refuses(&[8, 10, 0x3a, 127], cut);
    let endless = [&[8, 10, 0x3a][..], &[0xff; 9], &[1]].concat();
    assert!(OnnxFile::parse(&endless).unwrap_err().to_string().contains("byte 18446744073709551615"));
    refuses(&[[8].as_slice(), &[0xff; 10]].concat(), "the number at byte 1 has more than 64 bits; it is no ONNX model");
    refuses(&[8, 10, 0x12, 1, 0xff], "the text at byte 4 is not UTF-8");
    // A graph with a tensor `t` outside: its offset is a word, then its file is not named.
    let pair = |key: &str, value: &str| {
        let body = [&[0x0a, key.len() as u8], key.as_bytes(), &[0x12, value.len() as u8], value.as_bytes()].concat();
        [&[0x6a, body.len() as u8], body.as_slice()].concat()
    };
    let model = |entries: &[u8]| {
        let tensor = [&[0x42, 1, b't', 0x70, 1], entries].concat();
        let graph = [&[0x2a, tensor.len() as u8], tensor.as_slice()].concat();
        [&[8, 10, 0x3a, graph.len() as u8], graph.as_slice()].concat()
    };
    let word = [pair("location", "d"), pair("offset", "-1")].concat();
    refuses(&model(&word), "tensor `t`: `offset` is `-1`, which is no whole number");
    refuses(&model(&[]), "tensor `t` is in a file, but does not say in which");
    let dims = [[8u8, 1]; 33].concat();
    refuses(&model(&dims), "more than 32 dimensions of a tensor");
    let nodes = [[0x0a, 0]; 80].concat();
    let many = [&[8, 10, 0x3a, 0xa0, 1], nodes.as_slice()].concat();
    assert_eq!(OnnxFile::parse(&many).unwrap().operators[""], 80);
}

#[test]
fn a_count_that_no_model_has_is_refused() {
    let n = MOST + 1;
    let mut graph = vec![8, 10, 0x3a];
    let mut length = 2 * n;
    while length >= 128 {
        graph.push(((length % 128) | 128) as u8);
        length /= 128;
    }
    graph.push(length as u8);
    graph.extend([0x2a, 0].repeat(n));
    refuses(&graph, "more than 1048576 tensors");
}

static BERT: LazyLock<Vec<u8>> = LazyLock::new(|| written(&Tiny::bert(), Mix::Q8_0).bytes);

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn a_model_that_is_cut_is_refused(at in 0.0..0.8f64) {
        // The graph comes first but for a few bytes, and takes more than this share.
        let cut = (at * BERT.len() as f64) as usize;
        prop_assert!(OnnxFile::parse(&BERT[..cut]).is_err());
    }

    #[test]
    fn a_model_with_other_bytes_never_panics(flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)) {
        let mut bytes = BERT.clone();
        flips.iter().for_each(|(at, with)| bytes[at.index(BERT.len())] = *with);
        let _ = OnnxFile::parse(&bytes);
    }
}
