//! Questions about a context → windows for an encoder, and which tokens are the answer.

use super::batch::{Row, Target};
use super::example::Span;
use edgeft_runtime::tokenizer::Tokenizer;
use std::ops::Range;

/// Tokens that neighbouring windows share, so that an answer cut by one stands whole in the next.
const STRIDE: usize = 128;

/// A part of a context, behind its question.
#[derive(Debug, Clone, PartialEq)]
pub struct Window {
    /// `[CLS] question [SEP] part of the context [SEP]`. The target is the first answer's first and last token, or 0 and 0
    /// when the answer is not wholly in this window.
    pub row: Row,
    /// Bytes of the context that each token covers, T of them; none for tokens that are not the context's.
    pub offsets: Vec<Option<Range<usize>>>,
}

/// Windows through the context, each no longer than `max_len`.
///
/// # Errors
/// An answer that does not stand in the context, a question that leaves no room for it, an empty context.
pub fn windows(
    tokenizer: &Tokenizer,
    question: &str,
    context: &str,
    answers: &[Span],
    max_len: usize,
    source: usize,
) -> Result<Vec<Window>, String> {
    let whole = tokenizer.encode_pair(question, context).map_err(|e| e.to_string())?;
    let of_context = |i: &usize| whole.sequence[*i] == Some(1);
    let (Some(first), Some(last)) = ((0..whole.ids.len()).find(of_context), (0..whole.ids.len()).rfind(of_context))
    else {
        return Err("field `context` gives no token".into());
    };
    let (head, tail) = (0..first, last + 1..whole.ids.len());
    let room = max_len.saturating_sub(head.len() + tail.len());
    if room == 0 {
        let n = head.len() + tail.len();
        return Err(format!("the question alone takes {n} tokens, but --max-len is {max_len}"));
    }
    let answer = answers.first().map(|a| place(context, a)).transpose()?;
    // The answer's first and last token in the whole sequence.
    let tokens = answer.and_then(|bytes| {
        let begins = (first..=last).find(|i| whole.offsets[*i].end > bytes.start)?;
        let ends = (first..=last).rfind(|i| whole.offsets[*i].start < bytes.end)?;
        (begins <= ends).then_some((begins, ends))
    });
    let step = room - STRIDE.min(room / 2);
    let mut windows = Vec::new();
    let mut from = first;
    loop {
        let to = (from + room).min(last + 1);
        let kept: Vec<usize> = head.clone().chain(from..to).chain(tail.clone()).collect();
        let target = match tokens {
            Some((begins, ends)) if begins >= from && ends < to => {
                let at = |i: usize| (head.len() + i - from) as u32;
                Target::Span { start: at(begins), end: at(ends) }
            }
            _ => Target::Span { start: 0, end: 0 },
        };
        let row = Row::new(kept.iter().map(|i| whole.ids[*i]).collect(), target, source);
        windows.push(Window {
            row: Row { types: kept.iter().map(|i| whole.type_ids[*i] as u8).collect(), ..row },
            offsets: kept.iter().map(|i| of_context(i).then(|| whole.offsets[*i].clone())).collect(),
        });
        if to > last {
            return Ok(windows);
        }
        from += step;
    }
}

/// Bytes of an answer in its context.
fn place(context: &str, answer: &Span) -> Result<Range<usize>, String> {
    let begins = match answer.start {
        Some(chars) => context.char_indices().nth(chars).map(|(at, _)| at),
        None => context.find(&answer.text),
    };
    let begins = begins.ok_or_else(|| format!("the answer `{}` does not stand in the context", answer.text))?;
    Ok(begins..begins + answer.text.len())
}

#[cfg(test)]
mod tests {
    use super::super::tiny::{encoder, words};
    use super::*;

    fn cut(context: &str, answer: &str, start: Option<usize>, max_len: usize) -> Result<Vec<Window>, String> {
        let answers = [Span { text: answer.into(), start }];
        windows(&encoder(), "a b", context, if answer.is_empty() { &[] } else { &answers }, max_len, 1)
    }

    #[test]
    fn a_short_context_is_one_window_with_the_answer_by_its_characters() {
        let made = cut("é c d é e", "é e", Some(6), 64).unwrap();
        let [window] = &made[..] else { panic!("{made:?}") };
        assert_eq!(words(&encoder(), &window.row.ids), "[CLS] a b [SEP] é c d é e [SEP]");
        assert_eq!(window.row.target, Target::Span { start: 7, end: 8 });
        assert_eq!(window.row.types, [0, 0, 0, 0, 1, 1, 1, 1, 1, 1]);
        assert_eq!((&window.offsets[0], &window.offsets[4]), (&None, &Some(0..2)));
    }

    #[test]
    fn an_answer_without_a_place_is_its_first_occurrence() {
        assert_eq!(cut("c d c", "c", None, 64).unwrap()[0].row.target, Target::Span { start: 4, end: 4 });
        assert!(cut("c d", "f", None, 64).unwrap_err().contains("`f` does not stand in the context"));
    }

    #[test]
    fn windows_overlap_and_those_without_the_answer_point_at_the_first_token() {
        let made = cut("a b c d e f", "d e", Some(6), 9).unwrap(); // room for 4 words, 2 of them shared
        let texts: Vec<String> = made.iter().map(|w| words(&encoder(), &w.row.ids[4..w.row.ids.len() - 1])).collect();
        assert_eq!(texts, ["a b c d", "c d e f"]);
        assert_eq!(made[0].row.target, Target::Span { start: 0, end: 0 });
        assert_eq!(made[1].row.target, Target::Span { start: 5, end: 6 });
        assert_eq!(made[1].offsets[4], Some(4..5));
    }

    #[test]
    fn a_question_that_the_context_does_not_answer_points_at_the_first_token() {
        assert_eq!(cut("c d", "", None, 64).unwrap()[0].row.target, Target::Span { start: 0, end: 0 });
    }

    #[test]
    fn every_token_of_the_context_is_in_a_window_and_none_is_too_long() {
        let context = "c d e f g h ".repeat(40);
        for max_len in [6, 7, 9, 50, 200, 244, 245, 300] {
            let made = cut(&context, "c", Some(0), max_len).unwrap();
            assert!(made.iter().all(|w| w.row.ids.len() <= max_len), "{max_len}");
            let covered: std::collections::BTreeSet<usize> =
                made.iter().flat_map(|w| w.offsets.iter().flatten().map(|at| at.start)).collect();
            assert_eq!(covered.len(), 240, "{max_len}");
        }
    }

    #[test]
    fn what_leaves_no_room_is_refused() {
        assert!(
            cut("c", "c", None, 5).unwrap_err().starts_with("the question alone takes 5 tokens, but --max-len is 5")
        );
        assert!(cut(" ", "", None, 64).unwrap_err().contains("`context` gives no token"));
    }
}
