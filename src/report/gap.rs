//! How far held-out loss lies above training loss, and since when it has grown.

/// What the two curves say, as a sentence; `None` without both.
///
/// Held-out loss that has risen by more than 2 % above its best while training loss went on falling is overfitting; one bad
/// evaluation that was made up for is not.
pub(super) fn sentence(loss: &[(usize, f64)], val: &[(usize, f64)]) -> Option<String> {
    let val: Vec<(usize, f64)> = val.iter().copied().filter(|v| v.1.is_finite()).collect();
    let last = *val.last()?;
    let best = val.iter().copied().min_by(|a, b| a.1.total_cmp(&b.1))?;
    let (now, then) = (trained(loss, last.0)?, trained(loss, best.0)?);
    let gap = last.1 - now;
    if last.1 > RISE * best.1 && now < then {
        return Some(format!(
            "Overfitting: since step {} held-out loss has risen from {:.3} to {:.3} while training loss fell from {then:.3} to \
             {now:.3}; the gap is {gap:.3} nats. Fewer --epochs, --patience 2 (which keeps the best weights), --dropout, a smaller \
             --rank or more rows would help.",
            best.0, best.1, last.1
        ));
    }
    Some(format!(
        "At the end held-out loss ({:.3}) lies {:.3} nats {} training loss ({now:.3}), and has not risen above its best: no \
         overfitting is seen.",
        last.1,
        gap.abs(),
        if gap < 0.0 { "below" } else { "above" }
    ))
}

/// Held-out loss this much above its best has risen.
const RISE: f64 = 1.02;
/// Steps that training loss is the mean of: single batches differ.
const STEPS: usize = 20;

/// Mean training loss of the steps up to `step`.
fn trained(loss: &[(usize, f64)], step: usize) -> Option<f64> {
    let before: Vec<f64> = loss.iter().filter(|l| l.0 <= step && l.1.is_finite()).map(|l| l.1).collect();
    // Early in a run the mean must not reach back to its beginning.
    let n = STEPS.min(before.len().div_ceil(4));
    (n > 0).then(|| before[before.len() - n..].iter().sum::<f64>() / n as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gap_that_opens_is_named_with_its_step() {
        let loss: Vec<(usize, f64)> = (1..=100).map(|s| (s, 2.0 / s as f64)).collect();
        let opened = sentence(&loss, &[(25, 0.5), (50, 0.4), (75, 0.5), (100, 0.7)]).unwrap();
        assert!(opened.starts_with("Overfitting: since step 50") && opened.contains("from 0.400 to 0.700"), "{opened}");
        let shut = sentence(&loss, &[(25, 0.5), (50, 0.45), (75, 0.4), (100, 0.39)]).unwrap();
        assert!(shut.contains("no overfitting") && shut.contains("above training loss"), "{shut}");
        // One that was made up for.
        let shut = sentence(&loss, &[(25, 0.4), (50, 0.6), (75, 0.4), (100, 0.39)]).unwrap();
        assert!(shut.contains("no overfitting"), "{shut}");
        assert_eq!(sentence(&loss, &[]), None);
        assert_eq!(sentence(&[], &[(1, 1.0)]), None);
    }
}
