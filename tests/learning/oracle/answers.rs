//! Losses over whole answers and over vectors, on the tape.

use super::{Shape, Weights, agree, decoder};
use crate::common::{data, tiny::Tiny};
use crate::learning::whole::{DPO, KTO, ORPO, answers, learn, texts};
use crate::learning::{Case, values};
use candle_core::{Device, Result, Tensor};
use edgeft::data::batch::{Part, Row, Side, Target};
use edgeft::model::layers::contrast::Pooling;
use edgeft::model::network::Task;
use edgeft::tune::contrast::Contrast;
use edgeft::tune::objective::Objective;
use edgeft::tune::preference::{Kind, Preference};

/// log p of each answer.
fn log_probs(w: &Weights, shape: &Shape, rows: &[Row]) -> Vec<Tensor> {
    let plain = |row: &Row| row.clone().with(Target::Tokens(row.target.tokens().expect("an answer").to_vec()));
    rows.iter().map(|row| decoder(w, shape, &plain(row)).and_then(|nll| nll.neg()).expect("log p")).collect()
}

fn log_sigmoid(x: &Tensor) -> Result<Tensor> {
    (x.neg()?.exp()? + 1.0)?.log()?.neg()
}

/// The mean loss, from its formula.
fn loss(p: &Preference, rows: &[Row], log_p: &[Tensor]) -> Result<Tensor> {
    let reference = |i: usize| match rows[i].target {
        Target::Answer { reference, .. } => reference,
        _ => f64::NAN,
    };
    let is = |i: usize, side| rows[i].target.side() == Some(side);
    let tokens = |i: usize| rows[i].learned() as f64;
    let n = rows.len();
    let (mut losses, mut nats, mut chosen_tokens) = (Vec::new(), Vec::new(), 0.0);
    let drift = (0..n).filter(|i| is(*i, Side::Mismatched)).map(|i| f64::from(values(&log_p[i])[0]) - reference(i));
    let drift = (drift.sum::<f64>() / (n / 2) as f64).max(0.0);
    for i in 0..n {
        if is(i, Side::Chosen) {
            chosen_tokens += tokens(i);
            nats.push(log_p[i].neg()?);
        }
        let ratio = (&log_p[i] - reference(i))?;
        match p.kind {
            Kind::Dpo if is(i, Side::Chosen) => {
                let h = ((&ratio - (&log_p[i + 1] - reference(i + 1))?)? * p.beta)?;
                let e = p.label_smoothing;
                losses.push(((log_sigmoid(&h)? * (e - 1.0))? - (log_sigmoid(&h.neg()?)? * e)?)?);
            }
            Kind::Orpo if is(i, Side::Chosen) => {
                let (c, r) = ((&log_p[i] / tokens(i))?, (&log_p[i + 1] / tokens(i + 1))?);
                let no = |l: &Tensor| (l.exp()?.neg()? + 1.0)?.log();
                let odds = ((&c - &r)? - (no(&c)? - no(&r)?)?)?;
                losses.push((log_sigmoid(&odds)? * -p.beta)?);
            }
            Kind::Kto if !is(i, Side::Mismatched) => {
                let (sign, weight) =
                    if is(i, Side::Wanted) { (1.0, p.desirable_weight) } else { (-1.0, p.undesirable_weight) };
                let s = log_sigmoid(&((ratio - drift)? * (sign * p.beta))?)?.exp()?;
                losses.push(((s.neg()? + 1.0)? * weight)?);
            }
            _ => {}
        }
    }
    let mean = (Tensor::stack(&losses, 0)?.sum_all()? / losses.len() as f64)?;
    let weight = match p.kind {
        Kind::Dpo => p.rpo_alpha,
        Kind::Orpo => 1.0,
        Kind::Kto => return Ok(mean),
    };
    mean + (Tensor::stack(&nats, 0)?.sum_all()? * (weight / chosen_tokens))?
}

#[test]
fn every_loss_over_answers_agrees_with_the_tape() {
    for p in [
        DPO,
        Preference { label_smoothing: 0.2, rpo_alpha: 0.7, ..DPO },
        ORPO,
        Preference { undesirable_weight: 1.25, ..KTO },
    ] {
        let tiny = Tiny::qwen2();
        let (weights, shape) = (tiny.tensors(), Shape::of(&tiny.config));
        // Two nats of drift on what is mismatched.
        let case = answers(Case::new(&tiny, Task::Generate, &data::ids(4, 14, 6)).with_all(), p.kind, -2.0);
        let leaves = Weights::leaves(&weights);
        let total = loss(&p, &case.rows, &log_probs(&leaves, &shape, &case.rows)).expect("a loss");
        let (found, grads) = learn(&case, &Objective::Preference(p), &case.rows());
        assert_eq!(found.fields.get("kl").is_some_and(|z| z.as_f64() > Some(1.9)), p.kind == Kind::Kto);
        agree(found.loss, &grads, &total, &leaves);
    }
}

/// The last hidden states of a BERT, pooled.
fn vector(w: &Weights, shape: &Shape, row: &Row, pooling: Pooling) -> Result<Tensor> {
    let h = super::hidden(w, shape, row)?;
    match pooling {
        Pooling::Mean => h.mean(0),
        Pooling::Cls => h.get(0),
    }
}

#[test]
fn vectors_of_a_bert_agree_with_the_tape() {
    for pooling in [Pooling::Mean, Pooling::Cls] {
        let tiny = Tiny::bert();
        let (weights, shape) = (tiny.tensors(), Shape::of(&tiny.config));
        let case = texts(Case::new(&tiny, Task::Embed(pooling), &data::ids(9, 12, 3)).with_all());
        let leaves = Weights::leaves(&weights);
        let all: Vec<Tensor> =
            case.rows.iter().map(|row| vector(&leaves, &shape, row, pooling).expect("a vector")).collect();
        let v = Tensor::stack(&all, 0).unwrap();
        let unit = v.broadcast_div(&v.sqr().unwrap().sum_keepdim(1).unwrap().sqrt().unwrap()).unwrap();
        let pick = |wanted: &dyn Fn(Part) -> bool| -> Vec<u32> {
            let is = |row: &Row| matches!(row.target, Target::Vector(part) if wanted(part));
            (0..case.rows.len()).filter(|i| is(&case.rows[*i])).map(|i| i as u32).collect()
        };
        let (anchors, others) = (pick(&|p| p == Part::Anchor), pick(&|p| p != Part::Anchor));
        let own: Vec<u32> = anchors.iter().map(|a| others.iter().position(|o| *o == a + 1).unwrap() as u32).collect();
        let rows = |at: &[u32]| unit.index_select(&Tensor::new(at, &Device::Cpu).unwrap(), 0).unwrap();
        let scores = (rows(&anchors).matmul(&rows(&others).t().unwrap()).unwrap() / 0.3).unwrap();
        let own = Tensor::new(own, &Device::Cpu).unwrap();
        let total = candle_nn::loss::cross_entropy(&scores, &own).unwrap();
        let (found, grads) = learn(&case, &Objective::Contrast(Contrast { temperature: 0.3 }), &case.rows());
        agree(found.loss, &grads, &total, &leaves);
    }
}
