//! Two models on the same rows: is one better, and by how much.

use super::metrics::paired::{Difference, compare, compare_right};
use super::metrics::{Confusion, perplexity};
use super::vectors::spearman;
use super::{Evaluation, Outcomes, SEED};

/// Every metric that both models have, by name.
///
/// # Errors
/// Evaluations of other tasks, labels or rows: then nothing is paired. Texts that the two cut into other tokens: nats a token
/// are then counted over different things.
pub fn against(subject: &Evaluation, other: &Evaluation) -> anyhow::Result<Vec<(&'static str, Difference)>> {
    let rows = |n: usize, m: usize| -> anyhow::Result<()> {
        if n != m {
            crate::bad_input!("--against: the other model was judged on {m} rows, this one on {n}; nothing is paired");
        }
        Ok(())
    };
    Ok(match (&subject.outcomes, &other.outcomes) {
        (Outcomes::Classes(a), Outcomes::Classes(b)) => {
            rows(a.len(), b.len())?;
            let labels = |e: &Evaluation| e.classes.as_ref().map_or(Vec::new(), |c| c.confusion.labels.clone());
            let (ours, theirs) = (labels(subject), labels(other));
            if ours != theirs || a.iter().zip(b).any(|(a, b)| a.0 != b.0) {
                crate::bad_input!(
                    "--against: the other model has the labels {}, this one {}",
                    theirs.join(", "),
                    ours.join(", ")
                );
            }
            let right: Vec<(bool, bool)> = a.iter().zip(b).map(|(a, b)| (a.0 == a.1, b.0 == b.1)).collect();
            let macro_f1 = |draw: &[(usize, bool)]| {
                let side = |first: bool| {
                    let pairs: Vec<(u32, u32)> =
                        draw.iter().map(|(i, swap)| if first != *swap { a[*i] } else { b[*i] }).collect();
                    Confusion::count(&ours, &pairs).macro_f1()
                };
                (side(true), side(false))
            };
            vec![("accuracy", compare_right(&right, SEED)), ("macro_f1", compare(a.len(), SEED, macro_f1))]
        }
        (Outcomes::Answers(a), Outcomes::Answers(b)) => {
            rows(a.len(), b.len())?;
            let right: Vec<(bool, bool)> = a.iter().zip(b).map(|(a, b)| (a.0 == 1.0, b.0 == 1.0)).collect();
            let f1 = |draw: &[(usize, bool)]| {
                let side = |first: bool| {
                    draw.iter().map(|(i, swap)| if first != *swap { a[*i].1 } else { b[*i].1 }).sum::<f64>()
                        / draw.len().max(1) as f64
                };
                (side(true), side(false))
            };
            vec![("exact_match", compare_right(&right, SEED)), ("f1", compare(a.len(), SEED, f1))]
        }
        (Outcomes::Text(a), Outcomes::Text(b)) => {
            rows(a.len(), b.len())?;
            if let Some(i) = (0..a.len()).find(|i| a[*i].1 != b[*i].1) {
                crate::bad_input!(
                    "--against: row {i} has {} tokens to predict for this model and {} for the other: they tokenize \
                     differently, and perplexities a token cannot be compared",
                    a[i].1,
                    b[i].1
                );
            }
            let of = |draw: &[(usize, bool)]| {
                let side = |first: bool| {
                    let (nll, count) = draw.iter().fold((0.0, 0), |(nll, count), (i, swap)| {
                        let row = if first != *swap { a[*i] } else { b[*i] };
                        (nll + row.0, count + row.1)
                    });
                    perplexity(nll, count)
                };
                (side(true), side(false))
            };
            vec![("perplexity", compare(a.len(), SEED, of))]
        }
        (Outcomes::Pairs(a), Outcomes::Pairs(b)) => {
            rows(a.len(), b.len())?;
            let right: Vec<(bool, bool)> = a.iter().copied().zip(b.iter().copied()).collect();
            vec![("accuracy", compare_right(&right, SEED))]
        }
        (Outcomes::Places(a), Outcomes::Places(b)) => {
            rows(a.len(), b.len())?;
            let mean = |draw: &[(usize, bool)]| {
                let side = |first: bool| {
                    draw.iter().map(|(i, swap)| if first != *swap { a[*i] } else { b[*i] }).sum::<f64>()
                        / draw.len().max(1) as f64
                };
                (side(true), side(false))
            };
            vec![("mrr", compare(a.len(), SEED, mean))]
        }
        (Outcomes::Scores(a), Outcomes::Scores(b)) => {
            rows(a.len(), b.len())?;
            let of = |draw: &[(usize, bool)]| {
                let side = |first: bool| {
                    let drawn = draw.iter().map(|(i, swap)| if first != *swap { a[*i] } else { b[*i] });
                    let (cosines, scores): (Vec<f64>, Vec<f64>) = drawn.unzip();
                    spearman(&cosines, &scores)
                };
                (side(true), side(false))
            };
            vec![("spearman", compare(a.len(), SEED, of))]
        }
        _ => crate::bad_input!("--against: the two models were judged on different tasks"),
    })
}
