//! Eight AdamW steps of PEFT, step by step.

use crate::common::fixtures::{case, typed};
use crate::common::{Folder, close, tensors};
use serde_json::Value;

/// `tune` as torch ran it: one batch, a constant rate, nothing clipped, nothing held out.
fn tune(folder: &Folder, name: &str) {
    let case = typed(name);
    let line = format!(
        "tune --model {case} --data {case}/io.safetensors --init-adapter {case}/lora/lora/adapter_init --out run --no-val \
         --steps 8 --batch 3 --lr 0.01 --schedule constant --warmup 0 --weight-decay 0.01 --clip 0"
    );
    folder.edgeft(&line).ok();
}

fn reproduces(name: &str) {
    let folder = Folder::new();
    tune(&folder, name);
    let trace: Value =
        serde_json::from_slice(&std::fs::read(case(name).join("lora/lora/trace.json")).unwrap()).unwrap();
    let metrics = String::from_utf8(folder.read("run/metrics.jsonl")).unwrap();
    let steps: Vec<Value> = metrics.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(steps.len(), 8);
    for (i, step) in steps.iter().enumerate() {
        for (ours, theirs) in [("loss", "losses"), ("grad_norm", "grad_norms")] {
            let (a, b) = (step[ours].as_f64().unwrap(), trace[theirs][i].as_f64().unwrap());
            close(a, b, 1e-3, &format!("{name}, step {i}, {ours}"));
        }
    }
}

#[test]
fn a_llama_loses_what_peft_lost() {
    reproduces("llama");
}

#[test]
fn a_bert_classifier_loses_what_peft_lost() {
    reproduces("bert_classify");
}

#[test]
fn a_bert_reader_loses_what_peft_lost() {
    reproduces("bert_qa");
}

/// The recorded outputs of PEFT's merged model, with the inputs that they are of.
fn merged_reference(folder: &Folder, name: &str) {
    let mut reference = tensors::read(&case(name).join("io.safetensors"));
    reference.extend(tensors::read(&case(name).join("lora/lora/merged.safetensors")));
    folder.write("reference.safetensors", tensors::bytes(&reference));
}

#[test]
fn the_tuned_adapter_answers_as_pefts_does() {
    for name in ["llama", "bert_classify"] {
        let folder = Folder::new();
        merged_reference(&folder, name);
        tune(&folder, name);
        folder.edgeft("verify run --against reference.safetensors --max-abs 1e-2").ok();
        let base = format!("verify {} --against reference.safetensors --max-abs 1e-2", typed(name));
        folder.edgeft(&base).code(3); // the base without the adapter does not
    }
}

#[test]
fn an_adapter_of_peft_merges_as_peft_merges_it() {
    for name in ["llama", "bert_classify"] {
        let folder = Folder::new();
        merged_reference(&folder, name);
        let case = typed(name);
        folder.edgeft(&format!("merge --model {case} --adapter {case}/lora/lora/adapter_final --out merged")).ok();
        folder.edgeft("verify merged --against reference.safetensors --max-abs 5e-4").ok();
        folder.edgeft("quantize merged --type f32 --out merged.gguf").ok();
        folder.edgeft("verify merged.gguf --against reference.safetensors --max-abs 5e-4").ok();
    }
}
