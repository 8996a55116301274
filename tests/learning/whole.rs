//! Losses over whole answers and over vectors: their gradients against finite differences, and the same however a step is cut.

use super::{Case, DECODER, pairs, random, values};
use crate::common::{data, tiny::Tiny};
use edgeft::data::batch::{Part, Row, Side, Target, units};
use edgeft::model::layers::contrast::Pooling;
use edgeft::model::layers::{Grads, Pass};
use edgeft::model::network::Task;
use edgeft::model::peft::{AdapterConfig, Kind as Method};
use edgeft::tune::contrast::Contrast;
use edgeft::tune::memory::Activations;
use edgeft::tune::objective::{Found, Objective};
use edgeft::tune::preference::{Kind, Preference};
use std::collections::BTreeMap;

pub const DPO: Preference = Preference {
    kind: Kind::Dpo,
    beta: 0.3,
    label_smoothing: 0.0,
    rpo_alpha: 0.0,
    desirable_weight: 1.0,
    undesirable_weight: 1.0,
};
pub const ORPO: Preference = Preference { kind: Kind::Orpo, ..DPO };
pub const KTO: Preference = Preference { kind: Kind::Kto, ..DPO };

/// The rows as answers, each some nats away from its reference; what is mismatched is `drift` nats away.
pub fn answers(mut case: Case, kind: Kind, drift: f64) -> Case {
    let sides = match kind {
        Kind::Kto => [Side::Wanted, Side::Mismatched, Side::Unwanted, Side::Mismatched],
        _ => [Side::Chosen, Side::Rejected, Side::Chosen, Side::Rejected],
    };
    let rows = std::mem::take(&mut case.rows);
    let answer = |(i, row): (usize, Row)| {
        let tokens = row.target.tokens().expect("tokens").to_vec();
        row.with(Target::Answer { tokens, side: sides[i % 4], reference: 0.0 })
    };
    case.rows = rows.into_iter().enumerate().map(answer).collect();
    let now = case.network.log_probs(&case.rows()).expect("log p");
    for (i, (row, now)) in case.rows.iter_mut().zip(now).enumerate() {
        if let Target::Answer { side, reference, .. } = &mut row.target {
            let off = if *side == Side::Mismatched { drift } else { [0.7, 0.0, -0.4, 1.1, -0.9][i % 5] };
            *reference = now + off;
        }
    }
    case
}

/// Three rows each: an anchor, its positive, and a negative.
pub fn texts(mut case: Case) -> Case {
    let parts = [Part::Anchor, Part::Positive, Part::Negative];
    let rows = std::mem::take(&mut case.rows);
    case.rows = rows.into_iter().enumerate().map(|(i, row)| row.with(Target::Vector(parts[i % 3]))).collect();
    case
}

fn activations(case: &Case) -> Activations {
    Activations::new(&case.network.config, case.network.config.family.is_decoder(), false)
}

/// As little memory as an example takes.
fn tight(a: &Activations) -> Activations {
    let mut tight = a.clone();
    tight.room = Some(0);
    tight
}

/// A step's gradient and what it found.
fn step(case: &Case, objective: &Objective, micro: &[Vec<&Row>], a: &Activations, pass: Pass) -> (Found, Grads) {
    let mut grads = Grads::default();
    let found = objective.learn(&case.network, micro, a, pass, &mut grads).expect("a gradient");
    (found, grads)
}

/// Of one micro-batch, without dropout.
pub fn learn(case: &Case, objective: &Objective, rows: &[&Row]) -> (Found, Grads) {
    step(case, objective, &[rows.to_vec()], &activations(case), Pass::EVAL)
}

/// Dropout draws the same mask at every call.
const PASS: Pass = Pass { train: true, seed: 5, step: 2, ..Pass::EVAL };

/// The slope of the loss along gradient and noise together, by four values of it.
fn gradients_match(mut case: Case, objective: &Objective) {
    const STEP: f64 = 0.01;
    let a = activations(&case);
    let loss = |case: &Case| step(case, objective, &[case.rows()], &a, PASS).0.loss;
    let (_, grads) = step(&case, objective, &[case.rows()], &a, PASS);
    assert!(!grads.0.is_empty());
    let set = |case: &mut Case, name: &str, value: &candle_core::Tensor| {
        case.network.trained(&mut |n, tensor| {
            if n == name {
                *tensor = value.clone();
            }
        });
        case.network.trained(&mut |_, _| ()); // a tied head follows
    };
    for (name, g) in &grads.0 {
        let norm = values(g).iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
        if name.ends_with(".key.bias") {
            continue; // a softmax does not feel it
        }
        assert!(norm > 1e-5, "{name} has no slope: {norm:e}");
        let mut home = None;
        case.network.trained(&mut |n, tensor| {
            if n == *name {
                home = Some(tensor.clone());
            }
        });
        let home = home.expect("a trained tensor");
        let unit = |t: &candle_core::Tensor| {
            let length = f64::from(t.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap()).sqrt();
            (t / length).unwrap()
        };
        let mixed = unit(&(unit(g) + unit(&random(name, g.dims(), 1.0))).unwrap());
        let along = f64::from((g * &mixed).unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap());
        let mut at = |steps: f64| {
            set(&mut case, name, &(&home + (&mixed * (steps * STEP)).unwrap()).unwrap());
            loss(&case)
        };
        let slope = (8.0 * (at(1.0) - at(-1.0)) - (at(2.0) - at(-2.0))) / (12.0 * STEP);
        set(&mut case, name, &home);
        assert!(
            (along - slope).abs() <= 5e-3 * norm + 1e-5,
            "{name}: {along} along the gradient, the slope is {slope}"
        );
    }
}

/// Calm networks: in the steep ones a step of a finite difference leaves the line.
#[test]
fn gradients_of_every_loss_over_answers_match_finite_differences() {
    for p in [DPO, Preference { label_smoothing: 0.2, rpo_alpha: 0.7, ..DPO }, ORPO, KTO] {
        // What is mismatched lies below its reference: z is held at 0, which no step of a finite difference moves.
        let new = |tiny: Tiny| Case::new(&tiny.calm(), Task::Generate, &data::ids(8, 14, 2));
        let lora = answers(new(Tiny::llama()).with_lora(&DECODER, 0.2, false), p.kind, 3.0);
        gradients_match(lora, &Objective::Preference(p));
        let full = answers(new(Tiny::qwen2()).with_all(), p.kind, 3.0);
        gradients_match(full, &Objective::Preference(p));
    }
}

#[test]
fn gradients_of_vectors_match_finite_differences() {
    let contrast = Objective::Contrast(Contrast { temperature: 0.2 });
    for pooling in [Pooling::Mean, Pooling::Cls] {
        let new = || Case::new(&Tiny::bert().calm(), Task::Embed(pooling), &data::ids(9, 14, 2));
        gradients_match(texts(new().with_lora(&["query", "value", "dense"], 0.2, false)), &contrast);
        gradients_match(texts(new().with_all()), &contrast);
    }
    let llama = Case::new(&Tiny::llama().calm(), Task::Embed(Pooling::Mean), &data::ids(9, 14, 2));
    gradients_match(texts(llama.with_lora(&DECODER, 0.2, false)), &contrast);
}

fn flat(grads: &Grads) -> BTreeMap<String, Vec<f32>> {
    grads.0.iter().map(|(name, g)| (name.clone(), values(g))).collect()
}

/// |a - b| over all weights, against |a|.
fn distance(a: &BTreeMap<String, Vec<f32>>, b: &BTreeMap<String, Vec<f32>>) -> f64 {
    assert_eq!(a.keys().collect::<Vec<_>>(), b.keys().collect::<Vec<_>>());
    let square = |x: f32| f64::from(x) * f64::from(x);
    let apart: f64 = a.values().flatten().zip(b.values().flatten()).map(|(a, b)| square(a - b)).sum();
    (apart / a.values().flatten().map(|v| square(*v)).sum::<f64>()).sqrt()
}

#[test]
fn a_step_over_answers_is_the_same_however_it_is_cut() {
    let dora = AdapterConfig { kind: Method::Dora, ..pairs(&DECODER, 0.0) };
    for (p, drift) in [(DPO, 0.0), (Preference { rpo_alpha: 0.5, ..DPO }, 0.0), (ORPO, 0.0), (KTO, -2.0)] {
        let case = Case::new(&Tiny::llama().calm(), Task::Generate, &data::ids(16, 20, 8)).with(&dora);
        let case = answers(case, p.kind, drift);
        let objective = Objective::Preference(p);
        let a = activations(&case);
        let whole = step(&case, &objective, &[case.rows()], &a, Pass::EVAL);
        let examples = units(&case.rows);
        for n in [1, 2, 3] {
            let micro: Vec<Vec<&Row>> = examples
                .chunks(n)
                .map(|part| part.iter().flat_map(|unit| &case.rows[unit.clone()]).collect())
                .collect();
            let cut = step(&case, &objective, &micro, &a, Pass::EVAL);
            assert!((cut.0.loss - whole.0.loss).abs() < 1e-6, "{p:?} by {n}: {} {}", cut.0.loss, whole.0.loss);
            let apart = distance(&flat(&whole.1), &flat(&cut.1));
            assert!(apart < 1e-6, "{p:?} by {n}: {apart:e}");
        }
        // In parts that fit little memory, under dropout: each draws what the whole would have drawn.
        let dropped = AdapterConfig { dropout: 0.2, ..pairs(&DECODER, 0.0) };
        let case = answers(
            Case::new(&Tiny::llama().calm(), Task::Generate, &data::ids(16, 20, 8)).with(&dropped),
            p.kind,
            drift,
        );
        let whole = step(&case, &objective, &[case.rows()], &a, PASS);
        let tight = tight(&a);
        assert_eq!(tight.parts(&case.rows()).len(), examples.len(), "a pair is never parted");
        let parts = step(&case, &objective, &[case.rows()], &tight, PASS);
        let apart = distance(&flat(&whole.1), &flat(&parts.1));
        assert!(apart < 1e-6, "{p:?} in parts: {apart:e}");
    }
}

/// The vectors of a micro-batch are learned from all of it, however little of it is in memory at once.
#[test]
fn vectors_learned_in_parts_are_learned_from_the_whole_batch() {
    let new = || Case::new(&Tiny::bert().calm(), Task::Embed(Pooling::Mean), &data::ids(18, 14, 2));
    let case = texts(new().with_lora(&["query", "value", "dense"], 0.2, false));
    let objective = Objective::Contrast(Contrast { temperature: 0.1 });
    let a = activations(&case);
    let whole = step(&case, &objective, &[case.rows()], &a, PASS);
    let tight = tight(&a);
    assert_eq!(tight.parts(&case.rows()).len(), 6);
    let parts = step(&case, &objective, &[case.rows()], &tight, PASS);
    assert!((whole.0.loss - parts.0.loss).abs() < 1e-6);
    let apart = distance(&flat(&whole.1), &flat(&parts.1));
    assert!(apart < 1e-6, "{apart:e}");
    // And not from the parts alone.
    let alone: Vec<Vec<&Row>> = case.rows.chunks(3).map(|unit| unit.iter().collect()).collect();
    let alone = step(&case, &objective, &alone, &tight, PASS);
    assert!((whole.0.loss - alone.0.loss).abs() > 0.1, "{} {}", whole.0.loss, alone.0.loss);
}
