//! Our own models in the device's reader: what it finds in them, and that no spoiled one makes it panic.

use super::written;
use crate::{plan::Mix, source::tests::Tiny};
use edgeft_runtime::format::onnx::{Dim, ElementType, External, Onnx, Port};
use proptest::prelude::*;
use std::sync::LazyLock;

#[test]
fn a_written_model_reads_as_what_it_is() {
    let file = Onnx::parse(&written(&Tiny::llama(), Mix::Q4_0).bytes).unwrap();
    assert_eq!((file.ir_version, file.producer.as_str()), (10, "edgeft"));
    assert_eq!(file.opsets, [(String::new(), 21)]);
    let port = |ports: &[Port], name: &str| ports.iter().find(|p| p.name == name).cloned().unwrap();
    let named = |name: &str| Dim::Named(name.to_owned());
    let dims = vec![named("batch_size"), Dim::Fixed(2), named("past_sequence_length"), Dim::Fixed(16)];
    let key = port(&file.inputs, "past_key_values.1.key");
    assert_eq!((key.ty, key.dims), (ElementType::F32, dims));
    let logits = port(&file.outputs, "logits").dims;
    assert_eq!(logits, [named("batch_size"), named("sequence_length"), Dim::Fixed(40)]);
    assert_eq!(port(&file.inputs, "input_ids").ty, ElementType::I64);
    // Two layers of seven matrices, and the head.
    assert_eq!((file.operators["MatMul"], file.operators["Softmax"]), (2 * (7 + 2) + 1, 2));
    assert!(file.blocked && file.in_place.is_empty());
    let weight = |name: &str| file.weights.iter().find(|t| t.name == name).unwrap();
    let q = weight("model.layers.0.self_attn.q_proj.weight");
    assert_eq!((q.ty.name(), q.dims.as_slice(), q.gathered), ("int4", &[64, 64][..], false));
    let External { location, offset, length, .. } = q.external.clone().unwrap();
    assert_eq!((location.as_str(), offset % 64, length), ("model.onnx.data", 0, Some(64 * 64 / 2)));
    assert_eq!((q.stored_bytes(), q.bytes), (Some(64 * 64 / 2), 64 * 64 / 2));
    assert!(weight("model.embed_tokens.weight").gathered);
    assert_eq!(weight("rotary.inv_freq").external, None);
    assert_eq!(file.metadata("edgeft.plan.mix"), Some("q4_0"));
    assert_eq!(file.external.len(), file.weights.iter().filter(|w| w.external.is_some()).count());
}

static BERT: LazyLock<Vec<u8>> = LazyLock::new(|| written(&Tiny::bert(), Mix::Q8_0).bytes);

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn a_model_that_is_cut_is_refused(at in 0.0..0.8f64) {
        // The graph comes first but for a few bytes, and takes more than this share.
        let cut = (at * BERT.len() as f64) as usize;
        prop_assert!(Onnx::parse(&BERT[..cut]).is_err());
    }

    #[test]
    fn a_model_with_other_bytes_never_panics(flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)) {
        let mut bytes = BERT.clone();
        flips.iter().for_each(|(at, with)| bytes[at.index(BERT.len())] = *with);
        let _ = Onnx::parse(&bytes);
    }
}
