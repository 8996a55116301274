//! Perplexity of rows as they are learned, and of long texts with a stride.

use super::metrics::perplexity_interval;
use super::rows::Judged;
use super::subject::Subject;
use super::{Evaluation, Outcomes, SEED, Worst, worst_of};
use crate::data::batch::{Row, Target};
use crate::data::example::{Dataset, Example};
use crate::data::schema::Task as TaskName;
use serde_json::json;
use std::path::Path;

/// How a long text is cut into windows, and which of their tokens count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Windows {
    /// Windows begin so many tokens apart; each token counts once, in the first window that holds it: Hugging Face's recipe
    /// for models of fixed length. The smaller, the more context, and the slower.
    Stride(usize),
    /// Windows that follow one another, each begun with the beginning token; the second half counts, and a last window that
    /// is not full is left out: what llama.cpp's `llama-perplexity` does.
    SecondHalf,
}

/// Judges text.
///
/// # Errors
/// A row without targets; what the engine says.
pub fn evaluate(subject: &mut Subject, judged: &Judged, progress: &mut dyn FnMut(usize)) -> anyhow::Result<Evaluation> {
    let (mut sums, mut predictions, mut all): (Vec<(f64, usize)>, _, _) = (Vec::new(), Vec::new(), Vec::new());
    let texts = judged.texts_of_rows();
    for (i, row) in judged.rows.iter().enumerate() {
        let (nll, count) = log_loss(subject, row)?;
        sums.push((nll, count));
        predictions.push(json!({"row": row.source, "nll": nll, "tokens": count}));
        if let Some(texts) = texts.filter(|_| count > 0) {
            let badness = nll / count as f64;
            let (right, predicted) = (String::new(), String::new());
            all.push(Worst { row: row.source, text: texts[i].clone(), right, predicted, badness });
        }
        progress(i + 1);
    }
    let (nll, count) = sums.iter().fold((0.0, 0), |(a, n), (b, m)| (a + b, n + m));
    Ok(Evaluation {
        loss: Some(nll / count.max(1) as f64),
        perplexity: Some(perplexity_interval(&sums, SEED)),
        worst: worst_of(all),
        ..Evaluation::new(judged.task, sums.len(), Outcomes::Text(sums), predictions)
    })
}

/// Summed nats of a row's targets, and how many they are.
///
/// # Errors
/// A row without targets; what the engine says.
pub fn log_loss(subject: &mut Subject, row: &Row) -> anyhow::Result<(f64, usize)> {
    let Target::Tokens(targets) = &row.target else { anyhow::bail!("row {}: no tokens to predict", row.source) };
    let logits = subject.logits(row)?;
    let (mut nll, mut count) = (0.0, 0);
    for (target, x) in targets.iter().zip(logits.values.chunks(logits.width)) {
        if let Some(t) = target {
            let max = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let sum: f64 = x.iter().map(|v| f64::from(v - max).exp()).sum();
            nll += sum.ln() - f64::from(x[*t as usize] - max);
            count += 1;
        }
    }
    Ok((nll, count))
}

/// DATA as windows of `max_len` tokens: a txt file, or rows with a text, each tokenized whole.
///
/// # Errors
/// A stride that leaves gaps, a text that gives no window; what the tokenizer or DATA has.
pub fn read(subject: &Subject, data: &Path, max_len: usize, windows: Windows) -> anyhow::Result<Judged> {
    match windows {
        Windows::Stride(n) if n == 0 || n > max_len => {
            crate::bad_input!("--stride {n} with windows of {max_len} tokens would leave gaps; give 1 to {max_len}")
        }
        _ if max_len < 2 => crate::bad_input!("--max-len {max_len}: a window needs two tokens"),
        _ => (),
    }
    let dataset = Dataset::read(data, Some(TaskName::Text))?;
    let tokenizer = subject.tokenizer()?;
    let (mut rows, mut longest) = (Vec::new(), 0);
    for (line, example) in &dataset.rows {
        let (Example::Text(text) | Example::Document(text)) = example else { continue };
        let ids = tokenizer.encode(text, true)?;
        longest = longest.max(ids.len());
        let begin = tokenizer.bos().filter(|_| tokenizer.add_bos());
        rows.extend(cut(&ids, max_len, windows, begin, *line));
    }
    if rows.is_empty() {
        let (least, what) = match windows {
            Windows::Stride(_) => (2, "two tokens to predict one from the other"),
            Windows::SecondHalf => (max_len, "one whole window; give a smaller --max-len"),
        };
        crate::bad_input!(
            "{}: no text has {least} tokens (the longest has {longest}), and it takes {what}",
            data.display()
        );
    }
    Ok(Judged { rows, ..Judged::of(TaskName::Text) })
}

/// The windows of one text.
fn cut(ids: &[u32], max_len: usize, windows: Windows, begin: Option<u32>, line: usize) -> Vec<Row> {
    let row = |ids: Vec<u32>, counts: &dyn Fn(usize) -> bool| {
        let target = |i: usize| (i + 1 < ids.len() && counts(i + 1)).then(|| ids[i + 1]);
        let targets: Vec<Option<u32>> = (0..ids.len()).map(target).collect();
        Row::new(ids.clone(), Target::Tokens(targets), line)
    };
    let mut out = Vec::new();
    match windows {
        Windows::Stride(stride) => {
            let (mut from, mut done) = (0, 0);
            while done < ids.len() {
                let to = (from + max_len).min(ids.len());
                let made = row(ids[from..to].to_vec(), &|i| from + i >= done);
                out.extend(Some(made).filter(|r| r.learned() > 0));
                (from, done) = (from + stride, to);
            }
        }
        Windows::SecondHalf => {
            for window in ids.chunks_exact(max_len) {
                let mut window = window.to_vec();
                if let Some(begin) = begin {
                    window[0] = begin;
                }
                // The logits of positions n/2 .. n - 2 are looked at: they predict the tokens behind them.
                out.push(row(window, &|i| i > max_len / 2));
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(rows: &[Row]) -> Vec<(Vec<u32>, Vec<u32>)> {
        let learned = |r: &Row| match &r.target {
            Target::Tokens(t) => t.iter().flatten().copied().collect(),
            _ => Vec::new(),
        };
        rows.iter().map(|r| (r.ids.clone(), learned(r))).collect()
    }

    #[test]
    fn with_a_stride_every_token_but_the_first_counts_once() {
        let ids: Vec<u32> = (0..10).collect();
        let rows = counted(&cut(&ids, 4, Windows::Stride(2), None, 1));
        assert_eq!(rows[0], (vec![0, 1, 2, 3], vec![1, 2, 3]));
        assert_eq!(rows[1], (vec![2, 3, 4, 5], vec![4, 5]));
        assert_eq!(rows.iter().flat_map(|r| r.1.clone()).collect::<Vec<_>>(), (1..10).collect::<Vec<u32>>());
        for (n, max_len, stride) in [(1, 4, 2), (2, 4, 4), (37, 8, 3), (64, 16, 16), (5, 9, 1)] {
            let ids: Vec<u32> = (0..n).collect();
            let rows = counted(&cut(&ids, max_len, Windows::Stride(stride), None, 1));
            let seen: Vec<u32> = rows.iter().flat_map(|r| r.1.clone()).collect();
            // Where windows do not overlap, the first token of each has nothing before it.
            let want: Vec<u32> =
                (1..n).filter(|i| stride < max_len || !(*i as usize).is_multiple_of(max_len)).collect();
            assert_eq!(seen, want, "{n} {max_len} {stride}");
            assert!(rows.iter().all(|r| r.0.len() <= max_len));
        }
    }

    #[test]
    fn the_second_half_of_whole_windows_counts_behind_a_beginning_of_its_own() {
        let ids: Vec<u32> = (10..29).collect();
        let rows = counted(&cut(&ids, 8, Windows::SecondHalf, Some(1), 1));
        assert_eq!(rows.len(), 2);
        assert_eq!(rows[1], (vec![1, 19, 20, 21, 22, 23, 24, 25], vec![23, 24, 25]));
    }
}
