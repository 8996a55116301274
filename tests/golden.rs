//! The bytes we write, and the bytes of others that we read.

use crate::common::{Folder, data, tiny::Tiny};
use edgeft_quantize::codec::encode;
use edgeft_quantize::gguf::header;
use edgeft_quantize::plan::{Origin, Planned, Reason};
use edgeft_runtime::format::GgmlType;
use edgeft_runtime::format::block::decode;
use edgeft_runtime::format::gguf::{Array, Gguf, Value};

/// Assembled by hand from the specification, byte by byte; `fixtures/README.md` walks through it.
pub const ONE_TENSOR: &[u8] = include_bytes!("fixtures/one_tensor.gguf");

fn keys() -> Vec<(String, Value)> {
    vec![
        ("general.architecture".into(), Value::Str("llama".into())),
        ("edgeft.numbers".into(), Value::Array(Array::U32(vec![7, u32::MAX]))),
    ]
}

/// Two rows of 32: halves from -63.5 to 7.5, and whole numbers from 127 down to -121 by eights. Their largest are 127
/// scales, so that q8_0 loses nothing.
fn weights() -> Vec<f32> {
    let halves = std::iter::once(-127).chain(-15..16).map(|q| 0.5 * q as f32);
    halves.chain((0..32).map(|i| 127.0 - 8.0 * i as f32)).collect()
}

#[test]
fn the_reader_reads_what_the_specification_says() {
    let gguf = Gguf::parse(ONE_TENSOR).expect("a GGUF file");
    assert_eq!((gguf.version, gguf.alignment, gguf.data_start), (3, 32, 160));
    assert_eq!(gguf.metadata, keys());
    let [t] = gguf.tensors.as_slice() else { panic!("{:?}", gguf.tensors) };
    assert_eq!(
        (t.name.as_str(), t.ty, t.dims.as_slice(), t.offset, t.bytes),
        ("t", GgmlType::Q8_0, &[32, 2][..], 0, 68)
    );
    let mut values = vec![0.0; 64];
    decode(t.ty, gguf.data(ONE_TENSOR, t), &mut values);
    assert_eq!(values, weights());
}

#[test]
fn the_writer_gives_the_bytes_of_the_specification() {
    let planned = Planned {
        name: "t".into(),
        shape: vec![2, 32],
        origin: Origin::RopeDivisors(weights()),
        ty: GgmlType::Q8_0,
        wanted: GgmlType::Q8_0,
        reason: Reason::Computed,
    };
    let mut bytes = header(&keys(), &[planned]).expect("a header");
    encode(GgmlType::Q8_0, &weights(), &mut bytes).expect("blocks");
    bytes.resize(bytes.len().next_multiple_of(32), 0);
    assert_eq!(bytes, ONE_TENSOR);
}

#[test]
fn inspect_shows_it_as_it_is() {
    let folder = Folder::new();
    folder.write("one.gguf", ONE_TENSOR);
    let json = folder.edgeft("inspect one.gguf --json").ok().json();
    assert_eq!((&json["version"], &json["alignment"], &json["bytes"]), (&3.into(), &32.into(), &256.into()));
    assert_eq!(json["metadata"]["general.architecture"], "llama");
    let t = &json["tensors"][0];
    assert_eq!(
        (&t["name"], &t["type"], &t["offset"], &t["bytes"]),
        (&"t".into(), &"q8_0".into(), &160.into(), &68.into())
    );
    assert_eq!(t["dims"], serde_json::json!([32, 2]));
}

/// The same bytes for any number of threads, and from a folder, a RUN that changed nothing, and at any time.
#[test]
fn quantize_writes_the_same_bytes_for_any_number_of_threads() {
    let folder = Folder::new();
    Tiny::llama().with("hidden_size", 256.into()).with("intermediate_size", 512.into()).write(&folder, "base");
    folder.write("d.jsonl", data::chats(8));
    for ty in ["q4_k_m", "q8_0", "f16", "q3_k_s"] {
        let file = |threads: usize| {
            folder.edgeft(&format!("quantize base --type {ty} --out {ty}.{threads}.gguf --threads {threads}")).ok();
            folder.read(&format!("{ty}.{threads}.gguf"))
        };
        let one = file(1);
        assert!(one == file(2) && one == file(5), "{ty}");
    }
}
