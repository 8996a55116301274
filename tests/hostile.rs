//! Files that are not what they say: cut, oversized, overlapping, zero, twice. Each gets an error that names the field and
//! ends in exit code 2; nothing panics, hangs or asks for the memory that a number promises.

use crate::common::tensors::{self, Tensors, Values};
use crate::common::{Folder, Ran, tiny::Tiny};
use crate::golden::ONE_TENSOR;
use edgeft_runtime::format::gguf::Gguf;
use edgeft_runtime::model::Model;
use proptest::prelude::*;

/// Where things stand in the hand-made file.
mod at {
    pub const VERSION: usize = 4;
    pub const TENSORS: usize = 8;
    pub const KEYS: usize = 16;
    pub const FIRST_KEY_LENGTH: usize = 24;
    pub const FIRST_KEY: usize = 32;
    pub const FIRST_TYPE: usize = 52;
    pub const FIRST_VALUE_LENGTH: usize = 56;
    pub const ARRAY_TYPE: usize = 95;
    pub const ARRAY_LENGTH: usize = 99;
    pub const NAME_LENGTH: usize = 115;
    pub const NAME: usize = 123;
    pub const N_DIMS: usize = 124;
    pub const DIM_0: usize = 128;
    pub const DIM_1: usize = 136;
    pub const TYPE: usize = 144;
    pub const OFFSET: usize = 148;
}

#[track_caller]
fn refuses(spoil: impl FnOnce(&mut Vec<u8>), because: &str) {
    let mut bytes = ONE_TENSOR.to_vec();
    spoil(&mut bytes);
    assert_eq!(Gguf::parse(&bytes).expect_err("accepted").to_string(), because);
}

fn put(bytes: &mut [u8], at: usize, with: &[u8]) {
    bytes[at..at + with.len()].copy_from_slice(with);
}

#[test]
fn every_number_of_a_gguf_file_is_checked_where_it_is_read() {
    let u32 = |n: u32| n.to_le_bytes();
    let u64 = |n: u64| n.to_le_bytes();
    refuses(|b| b.clear(), "the file is empty");
    refuses(|b| put(b, 0, b"GGML"), "not a GGUF file: it begins with [47, 47, 4d, 4c], a GGUF file with \"GGUF\"");
    refuses(|b| put(b, at::VERSION, &u32(4)), "GGUF version 4 is not read; known: 2, 3");
    refuses(
        |b| put(b, at::VERSION, &3u32.to_be_bytes()),
        "the file is big-endian, which is not read; convert it on a little-endian machine",
    );
    refuses(|b| put(b, at::TENSORS, &u64(u64::MAX)), "18446744073709551615 tensors cannot fit in 256 bytes");
    refuses(|b| put(b, at::KEYS, &u64(1 << 40)), "1099511627776 keys cannot fit in 256 bytes");
    refuses(
        |b| put(b, at::FIRST_KEY_LENGTH, &u64(1 << 63)),
        "metadata key at byte 32 ends at byte 9223372036854775840, but the file has 256 bytes; it is cut short: fetch it again",
    );
    refuses(|b| b[at::FIRST_KEY] = 0xff, "metadata key at byte 32 is not UTF-8");
    refuses(
        |b| put(b, at::FIRST_TYPE, &u32(13)),
        "metadata key `general.architecture` has type code 13; known: 0 to 12",
    );
    refuses(
        |b| put(b, at::FIRST_VALUE_LENGTH, &u64(u64::MAX)),
        "string at byte 64 ends at byte 18446744073709551615, but the file has 256 bytes; it is cut short: fetch it again",
    );
    refuses(
        |b| put(b, at::ARRAY_TYPE, &u32(9)),
        "metadata key `edgeft.numbers` is an array of arrays, which GGUF does not allow",
    );
    refuses(
        |b| put(b, at::ARRAY_LENGTH, &u64(u64::MAX)),
        "18446744073709551615 array elements cannot fit in 256 bytes",
    );
    refuses(
        |b| put(b, at::NAME_LENGTH, &u64(1 << 20)),
        "tensor name at byte 123 ends at byte 1048699, but the file has 256 bytes; it is cut short: fetch it again",
    );
    refuses(|b| b[at::NAME] = 0x80, "tensor name at byte 123 is not UTF-8");
    refuses(|b| put(b, at::N_DIMS, &u32(0)), "tensor `t` has 0 dimensions; 1 to 4 are allowed");
    refuses(|b| put(b, at::N_DIMS, &u32(5)), "tensor `t` has 5 dimensions; 1 to 4 are allowed");
    refuses(|b| put(b, at::DIM_1, &u64(0)), "tensor `t` has a dimension of 0");
    refuses(
        |b| put(b, at::DIM_0, &u64(33)),
        "tensor `t` has rows of 33 elements, which is no whole number of q8_0 blocks of 32",
    );
    refuses(|b| put(b, at::DIM_1, &u64(1 << 62)), "tensor `t` with dimensions [32, 4611686018427387904] overflows");
    refuses(
        |b| put(b, at::DIM_1, &u64(4)),
        "tensor `t` ends at byte 296, but the file has 256 bytes; it is cut short: fetch it again",
    );
    refuses(|b| put(b, at::TYPE, &u32(16)), "tensor `t` has ggml type 16, which this version does not read (iq2_xxs)");
    refuses(|b| put(b, at::TYPE, &u32(99)), "tensor `t` has ggml type 99, which this version does not read");
    refuses(
        |b| put(b, at::OFFSET, &u64(32)),
        "tensor `t` begins at offset 32 of the data, expected 0: tensors must follow each other",
    );
    refuses(
        |b| put(b, at::OFFSET, &u64(u64::MAX)),
        "tensor `t` begins at offset 18446744073709551615 of the data, expected 0: tensors must follow each other",
    );
    // The same line of the table twice: overlapping data under one name.
    refuses(
        |b| {
            let line = b[at::NAME_LENGTH..at::OFFSET + 8].to_vec();
            b.splice(at::NAME_LENGTH..at::NAME_LENGTH, line);
            put(b, at::TENSORS, &u64(2));
        },
        "tensor `t` stands twice",
    );
}

#[test]
fn a_file_cut_anywhere_is_an_error_and_never_a_panic() {
    for n in 0..ONE_TENSOR.len() - 28 {
        assert!(Gguf::parse(&ONE_TENSOR[..n]).is_err(), "{n} bytes were accepted");
    }
    // The padding behind the last tensor is no data.
    assert!(Gguf::parse(&ONE_TENSOR[..228]).is_ok());
}

/// A real file of a tiny model, with its tokenizer and chat template.
fn model() -> Vec<u8> {
    let folder = Folder::new();
    Tiny::llama().with("num_hidden_layers", 1.into()).write(&folder, "base");
    folder.edgeft("quantize base --type q8_0 --out m.gguf").ok();
    folder.read("m.gguf")
}

/// Opened as far as a device would: shapes, tokenizer, template. Wrong bytes may still make a model, another one.
fn open(bytes: Vec<u8>) {
    if let Ok(model) = Model::from_bytes(bytes, "m.gguf") {
        let _ = model.tokenizer().map(|t| t.encode("a b", true));
        let _ = model.chat();
    }
}

#[test]
fn a_model_with_any_byte_of_its_head_changed_is_opened_or_refused() {
    let whole = model();
    let head = Gguf::parse(&whole).expect("a GGUF file").data_start as usize;
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        cases: 600,
        failure_persistence: None,
        ..Default::default()
    });
    let change = (0..head, any::<u8>(), prop_oneof![Just(1usize), Just(4), Just(8)]);
    runner
        .run(&change, |(at, byte, n)| {
            let mut bytes = whole.clone();
            bytes[at..(at + n).min(head)].fill(byte);
            open(bytes);
            Ok(())
        })
        .expect("no panic");
    for n in (0..whole.len()).step_by(whole.len() / 300) {
        assert!(
            Model::from_bytes(whole[..n].to_vec(), "m.gguf").is_err(),
            "{n} of {} bytes were accepted",
            whole.len()
        );
    }
}

/// Every verb that opens a GGUF file says what is wrong with a cut one.
#[test]
fn each_verb_refuses_a_cut_gguf_and_names_it() {
    let folder = Folder::new();
    let whole = model();
    folder.write("d.jsonl", "{\"text\": \"a\"}\n");
    for (n, says) in [(whole.len() / 2, "cut short"), (100, "100 bytes"), (3, "cut short"), (0, "empty")] {
        folder.write("m.gguf", &whole[..n]);
        for line in [
            "run m.gguf -p a",
            "inspect m.gguf",
            "eval m.gguf --data d.jsonl",
            "verify m.gguf --against m.gguf --data d.jsonl --max-kl 1",
            "tokenize m.gguf --text a",
            "bench m.gguf",
            "serve m.gguf --port 0",
        ] {
            one_line(&folder.edgeft(line).code(2), &["m.gguf", says]);
        }
    }
}

/// One clear error with these words, and nothing on stdout.
#[track_caller]
fn one_line(ran: &Ran, words: &[&str]) {
    let errors: Vec<&str> = ran.stderr.lines().filter(|l| l.starts_with("error: ")).collect();
    assert_eq!(errors.len(), 1, "edgeft {}\n{}", ran.line, ran.stderr);
    assert!(ran.stdout.is_empty(), "edgeft {}\n{}", ran.line, ran.stdout);
    for word in words {
        assert!(ran.stderr.contains(word), "edgeft {}: no `{word}` in\n{}", ran.line, ran.stderr);
    }
}

/// A base whose weights file is these bytes.
#[track_caller]
fn weights_refused(bytes: &[u8], says: &str) {
    let folder = Folder::new();
    Tiny::llama().write(&folder, "base");
    folder.write("base/model.safetensors", bytes);
    folder.write("d.jsonl", "{\"text\": \"a b\"}\n");
    for line in [
        "quantize base --type f32 --out m.gguf",
        "tune --model base --data d.jsonl --out run --no-val",
        "inspect base/model.safetensors",
    ] {
        one_line(&folder.edgeft(line).code(2), &["model.safetensors", says]);
        assert!(!folder.at("m.gguf").exists() && !folder.at("run").exists(), "edgeft {line} left something");
    }
}

/// safetensors bytes with this header and this many bytes of data.
fn safetensors(header: &str, data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend(vec![0; data]);
    bytes
}

#[test]
fn broken_safetensors_are_refused_by_every_verb_that_reads_them() {
    let whole = tensors::bytes(&Tiny::llama().tensors());
    for n in [0, 4, 100, whole.len() / 2, whole.len() - 1] {
        weights_refused(&whole[..n], if n == 0 { "empty" } else { "not a whole safetensors file" });
    }
    let not_whole = "not a whole safetensors file";
    weights_refused(&u64::MAX.to_le_bytes(), not_whole); // a header larger than memory
    weights_refused(&[&(1u64 << 40).to_le_bytes()[..], b"{}"].concat(), not_whole);
    weights_refused(&safetensors("{\"a\": ", 0), not_whole);
    let one = |dtype: &str, shape: &str, offsets: &str| {
        safetensors(&format!(r#"{{"a":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}}}"#), 16)
    };
    weights_refused(&one("F32", "[4]", "[0,12]"), not_whole); // shape and bytes differ
    weights_refused(&one("F32", "[4]", "[4,20]"), not_whole); // begins behind a hole, ends behind the file
    weights_refused(&one("F32", "[4]", "[16,0]"), not_whole); // ends before it begins
    weights_refused(&one("F32", "[18446744073709551615,4]", "[0,16]"), not_whole); // overflows
    weights_refused(&one("F33", "[4]", "[0,16]"), not_whole); // a type that is none
    let two = |offsets: &str| {
        let entry = |name: &str, o: &str| format!(r#""{name}":{{"dtype":"F32","shape":[4],"data_offsets":{o}}}"#);
        safetensors(&format!("{{{},{}}}", entry("a", "[0,16]"), entry("b", offsets)), 32)
    };
    weights_refused(&two("[8,24]"), not_whole); // overlapping
    weights_refused(&two("[0,16]"), not_whole); // the same bytes twice
    // The same name twice: one of the two is a hole.
    let entry = |o: &str| format!(r#""a":{{"dtype":"F32","shape":[4],"data_offsets":{o}}}"#);
    weights_refused(&safetensors(&format!("{{{},{}}}", entry("[0,16]"), entry("[16,32]")), 32), not_whole);
}

/// The tiny Llama's tensors, changed.
fn changed(change: impl FnOnce(&mut Tensors)) -> Vec<u8> {
    let mut all = Tiny::llama().tensors();
    change(&mut all);
    tensors::bytes(&all)
}

#[test]
fn sound_files_with_wrong_tensors_are_refused_by_name() {
    let folder = Folder::new();
    Tiny::llama().write(&folder, "base");
    folder.write("d.jsonl", "{\"text\": \"a b\"}\n");
    let refused = |bytes: Vec<u8>, words: &[&str]| {
        folder.write("base/model.safetensors", bytes);
        for line in
            ["quantize base --type q8_0 --out m.gguf", "tune --model base --data d.jsonl --out run --no-val --steps 1"]
        {
            one_line(&folder.edgeft(line).code(2), words);
            assert!(!folder.at("m.gguf").exists() && !folder.at("run").exists(), "edgeft {line} left something");
        }
    };
    let up = "model.layers.1.mlp.up_proj.weight";
    refused(changed(|t| drop(t.remove(up))), &["base", "layers.1.mlp.up_proj.weight"]);
    refused(
        changed(|t| drop(t.insert(up.into(), (vec![96, 63], Values::F32(vec![0.0; 96 * 63]))))),
        &["base", "layers.1.mlp.up_proj.weight", "[96, 63]", "[96, 64]"],
    );
    refused(changed(|t| drop(t.insert(up.into(), (vec![96, 64], Values::I64(vec![0; 96 * 64]))))), &[up, "I64"]);
}

#[test]
fn a_weight_that_is_no_number_is_named_with_its_place() {
    let folder = Folder::new();
    Tiny::llama().write(&folder, "base");
    folder.write(
        "base/model.safetensors",
        changed(|t| {
            if let Some((_, Values::F32(v))) = t.get_mut("model.layers.0.mlp.down_proj.weight") {
                v[96 + 5] = f32::NAN;
            }
        }),
    );
    let ran = folder.edgeft("quantize base --type q8_0 --out m.gguf").code(2);
    one_line(&ran, &["model.layers.0.mlp.down_proj.weight", "row 1", "column 5"]);
    assert_eq!(folder.names(""), ["base"]);
}

#[test]
fn a_tokenizer_cut_anywhere_is_an_error_and_never_a_panic() {
    let folder = Folder::new();
    Tiny::llama().write(&folder, "base");
    let whole = String::from_utf8(folder.read("base/tokenizer.json")).expect("UTF-8");
    let decoder = whole.find("\"decoder\"").expect("a decoder");
    let cuts = (0..whole.len()).step_by(whole.len() / 12).chain(decoder..decoder + 24);
    for n in cuts {
        folder.write("base/tokenizer.json", &whole[..whole.floor_char_boundary(n)]);
        one_line(&folder.edgeft("tokenize base --text a").code(2), &["base", "tokenizer.json"]);
    }
    folder.write("base/tokenizer.json", whole.replace("\"BPE\"", "\"XPE\""));
    one_line(&folder.edgeft("quantize base --type q8_0 --out m.gguf").code(2), &["base", "tokenizer.json"]);
}

#[test]
fn configs_that_lie_are_refused() {
    let folder = Folder::new();
    Tiny::llama().write(&folder, "base");
    let refused = |config: &str, words: &[&str]| {
        folder.write("base/config.json", config);
        one_line(&folder.edgeft("quantize base --type f32 --out m.gguf").code(2), words);
    };
    refused("", &["base/config.json", "not valid JSON"]);
    refused("[]", &["base/config.json", "not a JSON object"]);
    refused("{}", &["base/config.json", "model_type"]);
    refused(r#"{"model_type": "mamba"}"#, &["base/config.json", "`mamba`", "known: llama"]);
    let huge = Tiny::llama().with("num_hidden_layers", 2_000_000_000.into()).config.to_string();
    refused(&huge, &["base/config.json", "`num_hidden_layers` is 2000000000", "10000"]);
    // A shard list that leads out of the folder.
    folder.write("base/config.json", Tiny::llama().config.to_string());
    std::fs::remove_file(folder.at("base/model.safetensors")).expect("gone");
    folder.write("base/model.safetensors.index.json", r#"{"weight_map": {"a": "../../secret.safetensors"}}"#);
    one_line(
        &folder.edgeft("quantize base --type f32 --out m.gguf").code(2),
        &["../../secret.safetensors", "leaves the folder"],
    );
}
