//! Importance matrices from data to file and back, and adapters as files of their own.

use crate::common::tensors::{self, floats};
use crate::common::{Folder, data, tiny::Tiny};
use edgeft_quantize::Importance;
use edgeft_runtime::format::block::decode;
use edgeft_runtime::format::gguf::Gguf;
use std::collections::BTreeMap;

/// Rows of 256 elements, so that K types fit.
fn wide() -> Tiny {
    Tiny::llama().with("hidden_size", 256.into()).with("intermediate_size", 512.into())
}

/// Every f32 tensor of a GGUF file by name: values, and its dims, fastest first.
fn gguf_floats(bytes: &[u8]) -> BTreeMap<String, (Vec<f32>, Vec<u64>)> {
    let gguf = Gguf::parse(bytes).expect("a GGUF file");
    let values = |t: &edgeft_runtime::format::gguf::TensorInfo| {
        let mut x = vec![0.0; t.dims.iter().product::<u64>() as usize];
        decode(t.ty, gguf.data(bytes, t), &mut x);
        (t.name.clone(), (x, t.dims.clone()))
    };
    gguf.tensors.iter().map(values).collect()
}

#[test]
fn what_goes_into_a_matrix_is_counted_by_what_is_learned() {
    let folder = Folder::new();
    Tiny::llama().write(&folder, "base");
    let rows = data::ids(6, 20, 3);
    folder.write("d.safetensors", tensors::bytes(&rows));
    folder.edgeft("quantize base --type q4_0 --calibrate d.safetensors --save-imatrix m.gguf --out a.gguf").ok();
    let matrix = Importance::read(&folder.read("m.gguf")).expect("an importance matrix");
    assert_eq!(
        (matrix.entries.len(), matrix.chunks, matrix.datasets.as_slice()),
        (14, 6, &["d.safetensors".into()][..])
    );
    // By hand: the first block's norm of the embeddings; a token counts 1 where the next one is learned, and 0.1 where not.
    let model = tensors::read(&folder.at("base/model.safetensors"));
    let (table, norm) =
        (floats(&model, "model.embed_tokens.weight"), floats(&model, "model.layers.0.input_layernorm.weight"));
    let (tensors::Values::I64(ids), tensors::Values::I64(mask)) = (&rows["input_ids"].1, &rows["attention_mask"].1)
    else {
        panic!("ids")
    };
    let (mut sums, mut count) = (vec![0f64; 64], 0f64);
    for row in 0..6 {
        let len = mask[row * 20..][..20].iter().sum::<i64>() as usize;
        for col in 0..len {
            let weight = if (3..len).contains(&(col + 1)) { 1.0 } else { f64::from(0.1f32) };
            let x = &table[ids[row * 20 + col] as usize * 64..][..64];
            let mean = x.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / 64.0;
            let scale = 1.0 / (mean + 1e-5).sqrt();
            for (c, sum) in sums.iter_mut().enumerate() {
                *sum += weight * (f64::from(x[c]) * scale * f64::from(norm[c])).powi(2);
            }
            count += weight;
        }
    }
    for name in ["attn_q", "attn_k", "attn_v"] {
        let entry = &matrix.entries[&format!("blk.0.{name}.weight")];
        assert!((f64::from(entry.counts[0]) - count).abs() < 1e-3, "{} {count}", entry.counts[0]);
        for (found, want) in entry.sums.iter().zip(&sums) {
            assert!((f64::from(*found) - want).abs() <= 1e-4 * want.max(1.0), "{name}: {found} {want}");
        }
    }
}

#[test]
fn a_saved_matrix_gives_the_file_that_calibrating_gave() {
    let folder = Folder::new();
    wide().write(&folder, "base");
    folder.write("d.jsonl", data::chats(12));
    for ty in ["q4_k_m", "iq4_xs", "q4_0"] {
        let line =
            format!("quantize base --type {ty} --calibrate d.jsonl --save-imatrix {ty}.m --out {ty}.gguf --json");
        let json = folder.edgeft(&line).ok().json();
        assert_eq!(json["importance"]["with"], 14, "{json}");
        // llama.cpp's tools count no embedding and no output matrix, and neither does this.
        let without: Vec<&str> =
            json["importance"]["without"].as_array().unwrap().iter().map(|n| n.as_str().unwrap()).collect();
        assert_eq!(without, ["output.weight", "token_embd.weight"]);
        folder.edgeft(&format!("quantize base --type {ty} --imatrix {ty}.m --out {ty}.again.gguf")).ok();
        assert!(folder.read(&format!("{ty}.gguf")) == folder.read(&format!("{ty}.again.gguf")), "{ty}");
        folder.edgeft(&format!("quantize base --type {ty} --out {ty}.plain.gguf")).ok();
        let (with, plain) = (folder.read(&format!("{ty}.gguf")), folder.read(&format!("{ty}.plain.gguf")));
        let (with, plain) = (gguf_floats(&with), gguf_floats(&plain));
        assert_ne!(with["blk.1.ffn_up.weight"].0, plain["blk.1.ffn_up.weight"].0, "{ty}");
        assert_eq!(with["output.weight"].0, plain["output.weight"].0, "{ty}");
    }
    folder.edgeft("verify iq4_xs.gguf --against base --data d.jsonl --max-kl 1 --min-top1 0.1").ok();
    let json = folder.edgeft("inspect q4_0.m --json").ok().json();
    assert_eq!(json["imatrix"]["entries"].as_array().unwrap().len(), 14);
    let other = Folder::new();
    Tiny::llama().write(&other, "base");
    other.write("m", folder.read("q4_0.m"));
    let ran = other.edgeft("quantize base --type q4_0 --imatrix m --out x.gguf").code(2);
    assert!(ran.stderr.contains("has statistics of 256 columns, but the model's matrix has 64"), "{}", ran.stderr);
    other.write("none", "no matrix at all");
    let ran = other.edgeft("quantize base --type q4_0 --imatrix none --out x.gguf").code(2);
    assert!(ran.stderr.contains("neither GGUF nor a .dat file"), "{}", ran.stderr);
    assert!(!other.at("x.gguf").exists());
}

/// Base + alpha / r B A is the merged matrix, in GGUF's names and order of rows: what llama.cpp computes beside the base.
#[test]
fn an_adapter_of_its_own_is_what_merging_adds() {
    for method in ["lora --alpha 12", "rslora --alpha 6"] {
        let folder = Folder::new();
        Tiny::llama().write(&folder, "base");
        folder.write("d.jsonl", data::chats(24));
        let line =
            "tune --model base --data d.jsonl --no-val --steps 8 --batch 24 --lr 5e-3 --rank 4 --out run --method";
        folder.edgeft(&format!("{line} {method}")).ok();
        folder.edgeft("quantize base --type f32 --out base.gguf").ok();
        folder.edgeft("quantize run --type f32 --out merged.gguf").ok();
        let json = folder.edgeft("quantize run --adapter-only --out a.gguf --json").ok().json();
        let bytes = folder.read("a.gguf");
        let gguf = Gguf::parse(&bytes).expect("a GGUF file");
        assert_eq!((gguf.str("general.type"), gguf.str("adapter.type")), (Ok("adapter"), Ok("lora")));
        assert_eq!(gguf.str("general.architecture"), Ok("llama"));
        let alpha = gguf.f32("adapter.lora.alpha").expect("alpha");
        let adapter = gguf_floats(&bytes);
        let (base, merged) = (gguf_floats(&folder.read("base.gguf")), gguf_floats(&folder.read("merged.gguf")));
        let names: Vec<&str> = adapter.keys().filter_map(|n| n.strip_suffix(".lora_a")).collect();
        assert_eq!(json["modules"], names.len());
        assert!(names.contains(&"blk.1.attn_q.weight"), "{names:?}");
        let mut moved = 0f32;
        for name in names {
            let ((a, a_dims), (b, b_dims)) = (&adapter[&format!("{name}.lora_a")], &adapter[&format!("{name}.lora_b")]);
            let (cols, r) = (a_dims[0] as usize, b_dims[0] as usize);
            assert_eq!(r, 4);
            let (w, want) = (&base[name].0, &merged[name].0);
            for (i, want) in want.iter().enumerate() {
                let (row, col) = (i / cols, i % cols);
                let product: f32 = (0..r).map(|k| b[row * r + k] * a[k * cols + col]).sum();
                let found = w[i] + alpha / r as f32 * product;
                assert!((found - want).abs() < 1e-5, "{method}: {name} ({row}, {col}): {found} {want}");
                moved = moved.max((want - w[i]).abs());
            }
        }
        assert!(moved > 1e-3, "{method} changed nothing: {moved}");
    }
}

#[test]
fn what_no_pair_can_say_is_refused_with_the_reason() {
    let folder = Folder::new();
    Tiny::llama().write(&folder, "base");
    folder.write("d.jsonl", data::chats(24));
    for (method, reason) in [("dora --rank 4", "scales each row"), ("ia3", "scales activations")] {
        let line = "tune --model base --data d.jsonl --no-val --steps 2 --batch 24 --force --out run --method";
        folder.edgeft(&format!("{line} {method}")).ok();
        let ran = folder.edgeft("quantize run --adapter-only --out a.gguf").code(2);
        assert!(ran.stderr.contains(reason), "{}", ran.stderr);
        folder.edgeft("quantize base --adapter-only --out a.gguf").code(2);
        assert!(!folder.at("a.gguf").exists());
    }
}
