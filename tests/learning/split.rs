//! A batch teaches the same however it is cut, laid together or padded, and on however many threads.

use super::{Case, DECODER, labels, values};
use crate::common::{Folder, close, data, tensors, tiny::Tiny};
use edgeft::data::batch::{Row, Target};
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
            case.network.loss_and_grad(rows, 1.0 / targets as f32, Pass::EVAL, 0, &mut grads).expect("a gradient");
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

/// Dropout and noise at work.
const PASS: Pass = Pass { train: true, seed: 5, step: 9, noise: 5.0, ..Pass::EVAL };

/// Calm networks: in steep ones, whose softmaxes are all but hard, rounding alone comes to 1.5e-6 of the gradient.
fn cases() -> Vec<Case> {
    let encoder = ["query", "key", "value", "dense"];
    vec![
        Case::new(&Tiny::llama().calm(), Task::Generate, &data::ids(12, 20, 8)).with_lora(&DECODER, 0.2, false),
        Case::new(&Tiny::mistral().calm(), Task::Generate, &data::ids(12, 20, 8)).with_all(),
        Case::new(&Tiny::llama().calm(), labels(&["a", "b"]), &data::classes(12, 16, 2, 1))
            .with_lora(&DECODER, 0.2, false),
        Case::new(&Tiny::classifier(&["a", "b", "c"]).calm(), labels(&["a", "b", "c"]), &data::classes(12, 16, 3, 1))
            .with_lora(&encoder, 0.2, false),
        Case::new(&Tiny::reader().calm(), Task::Span, &data::spans(12, 16, 1)).with_lora(&encoder, 0.2, false),
    ]
}

/// The gradient of rows that are computed in parts of these lengths, one after the other.
fn gradient(case: &Case, rows: &[&Row], parts: &[usize], pass: Pass) -> std::collections::BTreeMap<String, Vec<f32>> {
    let mut grads = Grads::default();
    let (mut at, mut first) = (0, 0);
    for n in parts {
        let part = &rows[at..at + n];
        let pass = Pass { first, first_row: at, ..pass };
        case.network.loss_and_grad(part, 0.1, pass, at % 3, &mut grads).expect("a gradient");
        at += n;
        first += part.iter().map(|r| r.ids.len()).sum::<usize>();
    }
    assert_eq!(at, rows.len());
    grads.0.iter().map(|(name, g)| (name.clone(), values(g))).collect()
}

/// |a - b| over all weights, against |a|.
fn distance(a: &std::collections::BTreeMap<String, Vec<f32>>, b: &std::collections::BTreeMap<String, Vec<f32>>) -> f64 {
    assert_eq!(a.keys().collect::<Vec<_>>(), b.keys().collect::<Vec<_>>());
    let square = |x: f32| f64::from(x) * f64::from(x);
    let apart: f64 = a.values().flatten().zip(b.values().flatten()).map(|(a, b)| square(a - b)).sum();
    (apart / a.values().flatten().map(|v| square(*v)).sum::<f64>()).sqrt()
}

#[test]
fn any_cut_of_a_batch_gives_the_same_gradient_under_dropout_and_noise() {
    use proptest::prelude::*;
    let cases = cases();
    let whole: Vec<_> = cases.iter().map(|c| gradient(c, &c.rows(), &[12], PASS)).collect();
    let config = ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() };
    proptest!(config, |(cuts in proptest::collection::btree_set(1usize..12, 0..11), which in 0..cases.len())| {
        let mut ends: Vec<usize> = cuts.into_iter().collect();
        ends.push(12);
        let parts: Vec<usize> = ends.iter().scan(0, |at, end| Some(end - std::mem::replace(at, *end))).collect();
        let apart = distance(&whole[which], &gradient(&cases[which], &cases[which].rows(), &parts, PASS));
        prop_assert!(apart <= 1e-6, "case {which} in parts {parts:?}: {apart:e}");
    });
}

/// No row sees its neighbours, and padding teaches nothing: packed, padded to one length, and alone are the same.
#[test]
fn packed_is_padded_for_every_task() {
    for (i, case) in cases().iter().enumerate() {
        let rows = case.rows();
        let longest = rows.iter().map(|r| r.ids.len()).max().unwrap_or(0);
        let padded: Vec<Row> = rows.iter().map(|r| pad(r, longest)).collect();
        let padded: Vec<&Row> = padded.iter().collect();
        let packed = gradient(case, &rows, &[12], Pass::EVAL);
        let apart = distance(&packed, &gradient(case, &padded, &[12], Pass::EVAL));
        assert!(apart <= 1e-6, "case {i}, padded: {apart:e}");
        let mut turned = rows.clone();
        turned.reverse();
        let apart = distance(&packed, &gradient(case, &turned, &[12], Pass::EVAL));
        assert!(apart <= 1e-6, "case {i}, in another order: {apart:e}");
    }
}

fn pad(row: &Row, to: usize) -> Row {
    let mut row = row.clone();
    let n = row.ids.len();
    row.ids.resize(to, 3);
    row.positions.extend(n as u32..to as u32);
    if let Target::Tokens(targets) = &mut row.target {
        targets.resize(to, None);
    }
    if matches!(row.target, Target::Span { .. }) {
        return Row { ids: row.ids[..n].to_vec(), positions: row.positions[..n].to_vec(), ..row }; // spans choose among all tokens
    }
    row
}

#[test]
fn rows_one_at_a_time_by_tokens_and_under_a_bound_on_memory_teach_the_same() {
    let folder = Folder::new();
    Tiny::llama().without_text().write(&folder, "base");
    folder.write("d.safetensors", tensors::bytes(&data::ids(48, 60, 8)));
    let line = "tune --model base --data d.safetensors --no-val --steps 6 --rank 4 --lr 1e-3 --eps 1e-4 --warmup 0 \
                --dropout 0.1 --neftune 5 --json";
    let run = |name: &str, flags: &str| {
        let json = folder.edgeft(&format!("{line} --out {name} {flags}")).ok().json();
        (tensors::read(&folder.at(&format!("{name}/adapter_model.safetensors"))), json)
    };
    let (whole, json) = run("whole", "");
    let planned = json["planned_mib"].as_f64().expect("planned_mib");
    let (alone, _) = run("alone", "--no-pack");
    let worst = tensors::largest_difference(&whole, &alone);
    assert!(worst <= 2e-6, "one row at a time: {worst:e}");
    // The first bound below what is planned that cuts a batch: above it, one block that is computed again is enough.
    let cuts = |bound: &String| {
        let dry = folder.edgeft(&format!("{line} --out dry --dry-run {bound}")).ok().json();
        dry["parts"].as_u64().expect("parts") > 1
    };
    let bound = (1..20).map(|quarters| format!("--mem {}k", ((planned - 0.25 * f64::from(quarters)) * 1024.0) as u64));
    let bound = bound.into_iter().find(cuts).expect("a bound that cuts");
    let (bounded, _) = run("bounded", &bound);
    let worst = tensors::largest_difference(&whole, &bounded);
    assert!(worst <= 2e-6, "under a bound on memory: {worst:e}");
    // By tokens the rows meet others, so the steps differ; what must hold is that all are learned.
    let (_, json) = run("tokens", "--batch-tokens 300");
    assert_eq!(json["steps"], 6);
    let metrics = String::from_utf8(folder.read("tokens/metrics.jsonl")).expect("UTF-8");
    let mut before = 0;
    for line in metrics.lines() {
        let tokens = serde_json::from_str::<Value>(line).expect("JSON")["tokens"].as_u64().expect("tokens");
        assert!(tokens - before <= 300, "{line}");
        before = tokens;
    }
}

#[test]
fn threads_change_the_rounding_and_nothing_else() {
    let folder = Folder::new();
    Tiny::llama().without_text().write(&folder, "base");
    folder.write("d.safetensors", tensors::bytes(&data::ids(32, 40, 8)));
    let run = |threads: usize| {
        let name = format!("run-{threads}");
        let line =
            "tune --model base --data d.safetensors --no-val --steps 4 --rank 4 --lr 1e-3 --eps 1e-4 --dropout 0.1";
        folder.edgeft(&format!("{line} --neftune 5 --threads {threads} --out {name}")).ok();
        tensors::read(&folder.at(&format!("{name}/adapter_model.safetensors")))
    };
    let one = run(1);
    for threads in [2, 5] {
        let worst = tensors::largest_difference(&one, &run(threads));
        assert!(worst <= 2e-6, "{threads} threads: {worst:e}");
    }
}
