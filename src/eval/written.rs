//! What a model writes, against what should have been written: ROUGE-L and chrF.
//!
//! Each prompt is answered greedily, up to an end token or a number of tokens, and both texts are compared whole.

use super::metrics::overlap::{Chrf, rouge_l};
use super::metrics::{Interval, bootstrap_mean};
use super::rows::Judged;
use super::subject::Subject;
use super::{SEED, shortened};
use crate::data::chat::turns;
use crate::data::example::Example;
use edgeft_runtime::chat::{ChatTemplate, chat_ids};
use edgeft_runtime::tokenizer::Tokenizer;
use serde_json::{Value, json};

/// Numbers of what was written.
pub struct Written {
    /// Mean F1 of the longest common subsequence of words, 0 to 1.
    pub rouge_l: Interval,
    /// chrF2 over all rows together, 0 to 100.
    pub chrf: Interval,
    /// Rows that were written.
    pub rows: usize,
    /// Rows that there are.
    pub of: usize,
    /// Tokens that an answer could have.
    pub max_new: usize,
    /// Answers that did not end by themselves.
    pub cut: usize,
    /// A line a row.
    pub predictions: Vec<Value>,
}

/// Row numbers of `wanted` rows out of `all`, spread evenly.
fn spread(all: usize, wanted: usize) -> Vec<usize> {
    let wanted = wanted.min(all);
    (0..wanted).map(|i| i * all / wanted).collect()
}

/// How many rows would be written.
pub fn count(judged: &Judged, most: usize) -> usize {
    judged.asked.len().min(most)
}

/// Answers at most `most` of the conversations and prompts behind the rows; `None` where there are none.
///
/// # Errors
/// A prompt that leaves no room; what engine, tokenizer or template say.
pub fn evaluate(
    subject: &mut Subject,
    judged: &Judged,
    most: usize,
    max_new: usize,
    progress: &mut dyn FnMut(usize),
) -> anyhow::Result<Option<Written>> {
    if count(judged, most) == 0 {
        return Ok(None);
    }
    let tokenizer = subject.tokenizer()?;
    let name = |id: Option<u32>| id.and_then(|id| tokenizer.id_to_token(id)).unwrap_or_default();
    let template =
        subject.template().map(|t| ChatTemplate::new(&t, name(tokenizer.bos()), name(tokenizer.eos()))).transpose()?;
    let (mut rouge, mut chrf, mut predictions, mut cut) = (Vec::new(), Vec::new(), Vec::new(), 0);
    for (done, i) in spread(judged.asked.len(), most).into_iter().enumerate() {
        let (line, example) = &judged.asked[i];
        let Some((prompt, reference)) = prompt(&tokenizer, template.as_ref(), example)? else { continue };
        if prompt.len() >= subject.n_ctx() {
            crate::bad_input!(
                "row {line}: its prompt has {} tokens, and the model {} positions; nothing can be written behind it",
                prompt.len(),
                subject.n_ctx()
            );
        }
        let stops = |ids: &[u32]| ids.last().is_some_and(|id| tokenizer.stop_ids().contains(id));
        let ids = subject.greedy(&prompt, max_new, &stops)?;
        cut += usize::from(!stops(&ids));
        let text = tokenizer.decode(&ids, true);
        let (text, reference) = (text.trim(), reference.trim());
        let score = rouge_l(text, reference);
        predictions.push(json!({"row": line, "asked": shortened(&example.text()), "reference": reference,
            "written": text, "rouge_l": score}));
        rouge.push(score);
        chrf.push(Chrf::count(text, reference));
        progress(done + 1);
    }
    Ok(Some(Written {
        rouge_l: bootstrap_mean(&rouge, SEED),
        chrf: Chrf::interval(&chrf, SEED),
        rows: rouge.len(),
        of: judged.asked.len(),
        max_new,
        cut,
        predictions,
    }))
}

/// Ids that the model is asked with, and the text that should follow: of a conversation its last turn of the assistant.
fn prompt(
    tokenizer: &Tokenizer,
    template: Option<&ChatTemplate>,
    example: &Example,
) -> anyhow::Result<Option<(Vec<u32>, String)>> {
    Ok(match example {
        Example::Chat { messages, tools } => {
            let Some(last) = messages.iter().rposition(|m| m.role == "assistant") else { return Ok(None) };
            let tools = tools.as_ref().and_then(Value::as_array).map(Vec::as_slice);
            let ids = chat_ids(template, tokenizer, &turns(&messages[..last]), tools)?;
            Some((ids, messages[last].content.clone()))
        }
        Example::Completion { prompt, completion } => Some((tokenizer.encode(prompt, true)?, completion.clone())),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::spread;

    #[test]
    fn few_of_many_rows_are_spread_evenly() {
        assert_eq!(spread(10, 3), [0, 3, 6]);
        assert_eq!(spread(3, 100), [0, 1, 2]);
        assert_eq!(spread(0, 5), [0usize; 0]);
    }
}
