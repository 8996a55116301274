//! Answers, judged by their words: exact match and F1 as SQuAD counts them, and when to stay silent as SQuAD 2.0 does.
//!
//! An encoder's answer is the likeliest span over all windows of the context; a decoder's is what it writes, greedily, up
//! to the end of the line: the same rules by which the runtime answers.

use super::metrics::no_answer::{Asked, best_threshold};
use super::metrics::{Interval, answer_scores, bootstrap_mean};
use super::rows::{Judged, Question};
use super::subject::Subject;
use super::{Evaluation, Fit, Outcomes, SEED, Worst, worst_of};
use crate::data::answer::windows;
use crate::data::schema::Task as TaskName;
use edgeft_runtime::chat::answer_prompt;
use edgeft_runtime::session::{MAX_WRITTEN, best_span};
use edgeft_runtime::tokenizer::Tokenizer;
use serde_json::json;

/// Numbers of answers.
pub struct Answers {
    /// Share of answers in exactly the right words.
    pub exact_match: Interval,
    /// Mean F1 of their words.
    pub f1: Interval,
    /// Where some questions have no answer in their context.
    pub silence: Option<Silence>,
}

/// Of questions with and without an answer.
pub struct Silence {
    /// Exact match, F1 and number of those that have one.
    pub has_answer: (Interval, Interval, usize),
    /// The same of those that have none: both are the share of them that stayed unanswered.
    pub no_answer: (Interval, Interval, usize),
    /// Chance of "no answer" above which a question stays unanswered, and where it is from. `None` from a decoder, which is
    /// silent by writing nothing.
    pub threshold: Option<(f64, String)>,
    /// Threshold that would have been best for exact match on these very rows, and what it gives.
    pub best_exact: Option<(f64, f64)>,
    /// The same for F1.
    pub best_f1: Option<(f64, f64)>,
}

/// Without rows to fit on, "no answer" must be likelier than the best answer.
const EVEN: f64 = 0.5;

/// What would be answered.
struct Answered {
    /// Empty where a decoder writes nothing.
    text: String,
    score: Option<f64>,
    /// Chance of "no answer" against the best answer, 0 to 1; of encoders.
    no_answer: Option<f64>,
}

/// Asks every question.
///
/// # Errors
/// Pre-tokenized rows, which hold no words to compare; what the engine or the tokenizer says.
pub fn evaluate(
    subject: &mut Subject,
    judged: &Judged,
    fit: &Fit,
    progress: &mut dyn FnMut(usize),
) -> anyhow::Result<Evaluation> {
    let (mut threshold, mut before) = (fit.threshold.map(|t| (t, "given".to_owned())), 0);
    if let (None, Some((rows, on)), false) = (&threshold, &fit.on, subject.is_decoder()) {
        before = rows.questions.len();
        let fitted = asked(&ask(subject, rows, progress)?, rows, false);
        // Rows that all have an answer say nothing of when to be silent.
        if fitted.iter().any(|a| !a.has_answer) {
            threshold = Some((best_threshold(&fitted).0, format!("{on} ({before} questions)")));
        }
    }
    let answered = ask(subject, judged, &mut |n| progress(before + n))?;
    let (limit, from) = threshold.unwrap_or((EVEN, "likelier than the best answer".into()));
    let (mut outcomes, mut predictions, mut all) = (Vec::new(), Vec::new(), Vec::new());
    for (question, a) in judged.questions.iter().zip(&answered) {
        let silent = a.no_answer.is_some_and(|p| p > limit);
        let predicted = if silent { "" } else { a.text.as_str() };
        let (exact, f1) = answer_scores(predicted, &question.answers);
        outcomes.push((exact, f1));
        predictions.push(json!({"row": question.source, "answers": question.answers, "predicted": predicted,
            "score": a.score, "no_answer_score": a.no_answer}));
        if f1 < 1.0 {
            all.push(Worst {
                row: question.source,
                text: question.question.clone(),
                right: question.answers.first().cloned().unwrap_or_else(|| "(no answer)".into()),
                predicted: if predicted.is_empty() { "(no answer)".into() } else { predicted.to_owned() },
                badness: 1.0 - f1,
            });
        }
    }
    let part = |wanted: Option<bool>| {
        let kept = || {
            let is = |q: &Question| wanted.is_none_or(|w| w != q.answers.is_empty());
            judged.questions.iter().zip(&outcomes).filter(move |(q, _)| is(q)).map(|(_, o)| *o)
        };
        let (exact, f1): (Vec<f64>, Vec<f64>) = kept().unzip();
        (bootstrap_mean(&exact, SEED), bootstrap_mean(&f1, SEED), exact.len())
    };
    let silence = judged.questions.iter().any(|q| q.answers.is_empty()).then(|| {
        let best = |exact| {
            let rows = asked(&answered, judged, exact);
            (!rows.is_empty()).then(|| best_threshold(&rows))
        };
        Silence {
            has_answer: part(Some(true)),
            no_answer: part(Some(false)),
            threshold: (!subject.is_decoder()).then_some((limit, from)),
            best_exact: best(true),
            best_f1: best(false),
        }
    });
    let (exact_match, f1, examples) = part(None);
    Ok(Evaluation {
        answers: Some(Answers { exact_match, f1, silence }),
        worst: worst_of(all),
        ..Evaluation::new(TaskName::Answer, examples, Outcomes::Answers(outcomes), predictions)
    })
}

/// Every question with the score of its answer, were it given; none of a decoder's.
fn asked(answered: &[Answered], judged: &Judged, exact: bool) -> Vec<Asked> {
    let of = |(a, q): (&Answered, &Question)| {
        let (em, f1) = answer_scores(&a.text, &q.answers);
        let score = if exact { em } else { f1 };
        Some(Asked { score, no_answer: a.no_answer?, has_answer: !q.answers.is_empty() })
    };
    answered.iter().zip(&judged.questions).filter_map(of).collect()
}

fn ask(subject: &mut Subject, judged: &Judged, progress: &mut dyn FnMut(usize)) -> anyhow::Result<Vec<Answered>> {
    if judged.questions.is_empty() {
        crate::bad_input!(
            "answers are judged by their words: give questions and contexts as text, not pre-tokenized rows"
        );
    }
    let tokenizer = subject.tokenizer()?;
    let mut out = Vec::with_capacity(judged.questions.len());
    for (i, question) in judged.questions.iter().enumerate() {
        out.push(match subject.is_decoder() {
            true => Answered { text: written(subject, &tokenizer, question)?, score: None, no_answer: None },
            false => found(subject, &tokenizer, question)?,
        });
        progress(i + 1);
    }
    Ok(out)
}

/// The likeliest span over all windows, its probability, and the chance that there is none: of the least that any window
/// gives it and the span's, its share.
fn found(subject: &mut Subject, tokenizer: &Tokenizer, q: &Question) -> anyhow::Result<Answered> {
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
        Some((score, bytes)) => Answered {
            text: q.context.get(bytes).unwrap_or_default().to_owned(),
            score: Some(score),
            // Where both underflowed, neither is likelier.
            no_answer: Some(if none + score > 0.0 { none / (none + score) } else { EVEN }),
        },
        None => Answered { text: String::new(), score: Some(0.0), no_answer: Some(1.0) },
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
