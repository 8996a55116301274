//! Answers, judged by their words: exact match and F1 as SQuAD counts them.
//!
//! An encoder's answer is the likeliest span over all windows of the context; a decoder's is what it writes, greedily, up
//! to the end of the line: the same rules by which the runtime answers.

use super::metrics::{answer_scores, bootstrap_mean};
use super::rows::{Judged, Question};
use super::subject::Subject;
use super::{Evaluation, SEED};
use crate::data::answer::windows;
use crate::data::schema::Task as TaskName;
use edgeft_runtime::chat::answer_prompt;
use edgeft_runtime::session::{MAX_WRITTEN, best_span};
use edgeft_runtime::tokenizer::Tokenizer;
use serde_json::json;

/// Asks every question.
///
/// # Errors
/// Pre-tokenized rows, which hold no words to compare; what the engine or the tokenizer says.
pub fn evaluate(subject: &mut Subject, judged: &Judged, progress: &mut dyn FnMut(usize)) -> anyhow::Result<Evaluation> {
    if judged.questions.is_empty() {
        crate::bad_input!(
            "answers are judged by their words: give questions and contexts as text, not pre-tokenized rows"
        );
    }
    let tokenizer = subject.tokenizer()?;
    let (mut exact, mut f1, mut predictions) = (Vec::new(), Vec::new(), Vec::new());
    for (i, question) in judged.questions.iter().enumerate() {
        let (predicted, score) = if subject.is_decoder() {
            (written(subject, &tokenizer, question)?, None)
        } else {
            let (text, score) = found(subject, &tokenizer, question)?;
            (text, Some(score))
        };
        let (em, f) = answer_scores(&predicted, &question.answers);
        exact.push(em);
        f1.push(f);
        predictions.push(json!({"answers": question.answers, "predicted": predicted, "score": score}));
        progress(i + 1);
    }
    let answers = Some((bootstrap_mean(&exact, SEED), bootstrap_mean(&f1, SEED)));
    Ok(Evaluation { answers, ..Evaluation::new(TaskName::Answer, exact.len(), None, predictions) })
}

/// The likeliest span, and its probability. Empty when "the context does not say" is likelier.
fn found(subject: &mut Subject, tokenizer: &Tokenizer, q: &Question) -> anyhow::Result<(String, f64)> {
    let parts = windows(tokenizer, &q.question, &q.context, &[], subject.n_ctx(), 0).map_err(crate::error::BadInput)?;
    let (mut best, mut none): (Option<(f64, std::ops::Range<usize>)>, f64) = (None, f64::INFINITY);
    for window in &parts {
        let logits = subject.logits(&window.row)?;
        let in_context: Vec<bool> = window.offsets.iter().map(Option::is_some).collect();
        let (span, no_answer) = best_span(&logits.values, &in_context);
        none = none.min(no_answer);
        let Some(span) = span else { continue };
        if best.as_ref().is_none_or(|(score, _)| span.score > *score) {
            let place = |i: usize| window.offsets[i].clone().unwrap_or_default();
            best = Some((span.score, place(span.tokens.start).start..place(span.tokens.end - 1).end));
        }
    }
    Ok(match best {
        Some((score, bytes)) if score >= none => (q.context.get(bytes).unwrap_or_default().to_owned(), score),
        Some((score, _)) => (String::new(), score),
        None => (String::new(), 0.0),
    })
}

fn written(subject: &mut Subject, tokenizer: &Tokenizer, q: &Question) -> anyhow::Result<String> {
    let prompt = tokenizer.encode(&answer_prompt(&q.question, &q.context), true)?;
    if prompt.len() >= subject.n_ctx() {
        crate::bad_input!(
            "question `{}`: {} tokens with its context, but the model has {} positions",
            q.question,
            prompt.len(),
            subject.n_ctx()
        );
    }
    let ended = |ids: &[u32]| {
        ids.last().is_some_and(|id| tokenizer.stop_ids().contains(id)) || tokenizer.decode(ids, true).contains('\n')
    };
    let ids = subject.greedy(&prompt, MAX_WRITTEN, &ended)?;
    let text = tokenizer.decode(&ids, true);
    Ok(text.lines().find(|l| !l.trim().is_empty()).unwrap_or_default().trim().to_owned())
}
