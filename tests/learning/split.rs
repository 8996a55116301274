//! A batch cut into micro-batches teaches the same.

use super::{Case, DECODER, values};
use crate::common::{Folder, close, data, tensors, tiny::Tiny};
use edgeft::data::batch::Row;
use edgeft::model::layers::{Grads, Pass};
use edgeft::model::network::Task;
use serde_json::Value;

/// Sixteen rows of unequal lengths at once, four at a time, and one at a time.
#[test]
fn sixteen_rows_give_the_same_gradient_however_they_are_cut() {
    let case = Case::new(&Tiny::llama(), Task::Generate, &data::ids(16, 20, 8)).with_lora(&DECODER, 0.0, false);
    let rows: Vec<&Row> = case.rows();
    let targets: usize = rows.iter().map(|r| r.learned()).sum();
    let cut = |n: usize| {
        let mut grads = Grads::default();
        for rows in rows.chunks(n) {
            case.network.loss_and_grad(rows, 1.0 / targets as f32, Pass::EVAL, false, &mut grads).expect("a gradient");
        }
        grads.0
    };
    let whole = cut(16);
    for n in [4, 1, 5] {
        for (name, part) in cut(n) {
            let (a, b) = (values(&whole[&name]), values(&part));
            let largest = a.iter().fold(0f32, |m, v| m.max(v.abs()));
            for (a, b) in a.iter().zip(&b) {
                assert!((a - b).abs() <= 1e-6 * largest.max(1.0), "{name} at {n} rows: {a} against {b}");
            }
        }
    }
}

#[test]
fn one_step_of_tune_is_the_same_at_1x16_4x4_and_16x1() {
    let folder = Folder::new();
    Tiny::llama().without_text().write(&folder, "base");
    folder.write("d.safetensors", tensors::bytes(&data::ids(16, 20, 8)));
    let mut first: Option<(tensors::Tensors, Value)> = None;
    for (batch, accumulate) in [(16, 1), (4, 4), (1, 16)] {
        let run = format!("run-{batch}");
        let line = format!(
            "tune --model base --data d.safetensors --out {run} --no-val --steps 1 --batch {batch} --accumulate {accumulate} \
             --rank 4 --lr 1e-3 --eps 1e-6 --warmup 0"
        );
        folder.edgeft(&line).ok();
        let adapter = tensors::read(&folder.at(&format!("{run}/adapter_model.safetensors")));
        let metrics = String::from_utf8(folder.read(&format!("{run}/metrics.jsonl"))).unwrap();
        let step: Value = serde_json::from_str(metrics.lines().next().unwrap()).unwrap();
        let Some((adapter_1, step_1)) = &first else {
            first = Some((adapter, step));
            continue;
        };
        for key in ["loss", "grad_norm"] {
            close(step[key].as_f64().unwrap(), step_1[key].as_f64().unwrap(), 1e-6, key);
        }
        assert_eq!((&step["tokens"], &step["learned_tokens"]), (&step_1["tokens"], &step_1["learned_tokens"]));
        let worst = tensors::largest_difference(&adapter, adapter_1);
        assert!(worst <= 1e-6, "{batch} x {accumulate}: {worst}");
    }
}
