//! Messages → text by the model's template, and which of its tokens are learned.
//!
//! What is learned is found twice, in ways that have nothing in common: by the template's own `{% generation %}` blocks or
//! by rendering the chat turn by turn, and by [`agree`], which follows each message's characters through the render. Where
//! the two part, the row is refused: a mask that is wrong teaches the wrong thing without a word.

use super::messages::Message;
use super::tokenize::Sequence;
use edgeft_runtime::chat::{ChatTemplate, Message as Turn};
use edgeft_runtime::tokenizer::Tokenizer;
use serde_json::Value;
use std::ops::Range;

/// Turns as the template takes them.
pub fn turns(messages: &[Message]) -> Vec<Turn> {
    let turn = |m: &Message| Turn {
        extra: m.tool_calls.iter().map(|calls| ("tool_calls".to_owned(), calls.clone())).collect(),
        ..Turn::new(&*m.role, &*m.content)
    };
    messages.iter().map(turn).collect()
}

/// A conversation as ids. Each learned turn of the assistant ends with a learned end token: a model that never saw its turn
/// end would never end one.
///
/// # Errors
/// What the template or the tokenizer says, and a turn that ends without an end token.
pub(super) fn sequence(
    tokenizer: &Tokenizer,
    template: &ChatTemplate,
    messages: &[Message],
    tools: Option<&Value>,
) -> Result<Sequence, String> {
    let tools = tools.and_then(Value::as_array).map(Vec::as_slice);
    let turns = turns(messages);
    let taught = template.spans(&turns, tools).map_err(|e| e.to_string())?;
    let assistant: Vec<(usize, &Message)> =
        messages.iter().enumerate().filter(|(_, m)| m.role == "assistant").collect();
    if assistant.len() != taught.learned.len() {
        let (turns, spans) = (assistant.len(), taught.learned.len());
        return Err(format!("the assistant has {turns} turns, but the template marks {spans} as generated"));
    }
    agree(template, &turns, tools, &taught)?;
    let whole = tokenizer.encode_with_offsets(&taught.text, false).map_err(|e| e.to_string())?;
    let mut s = Sequence::default();
    s.extend(whole.ids.iter().copied(), Some(0), false);
    if let Some(bos) = tokenizer.bos()
        && whole.ids.starts_with(&[bos, bos])
    {
        return Err("the template writes the beginning token twice".into());
    }
    for ((turn, message), span) in assistant.into_iter().zip(&taught.learned).filter(|((_, m), _)| m.learned) {
        // Tokens that hold some of the span's text; a range may be empty where a tokenizer trims spaces off it.
        let inside =
            |at: &Range<usize>| at.end > span.start && (at.start < span.end || (at.is_empty() && at.end <= span.end));
        let mut tokens: Vec<usize> = (0..whole.ids.len()).filter(|i| inside(&whole.offsets[*i])).collect();
        let stops = |i: &usize| tokenizer.stop_ids().contains(&whole.ids[*i]);
        let Some(next) = tokens.last().map(|last| last + 1) else {
            return Err(format!("message {turn}: the assistant's turn gives no token"));
        };
        match tokens.iter().rposition(stops) {
            Some(end) => tokens.truncate(end + 1), // line breaks behind the mark only part turns
            None if next < whole.ids.len() && stops(&next) => tokens.push(next),
            // A template that puts nothing behind the last turn leaves that to the end of the text.
            None if taught.text[span.end..].trim().is_empty()
                && taught.text[span.clone()].trim_end().ends_with(message.content.trim_end())
                && tokenizer.eos().is_some() =>
            {
                s.keep_first(next);
                s.extend(tokenizer.eos(), None, true);
            }
            None => {
                let text = taught.text[span.clone()].trim_end();
                let start = text.char_indices().rev().nth(15).map_or(0, |(at, _)| at);
                return Err(format!(
                    "message {turn}: the template ends the assistant's turn with `{}`, which holds no end token of the \
                     tokenizer, so the model would never learn to stop",
                    &text[start..]
                ));
            }
        }
        tokens.into_iter().for_each(|i| s.learned[i] = true);
    }
    Ok(s)
}

/// Characters that stand around what is said: of the assistant, and of others. Private use, beyond what a text may hold.
const SAID: [(char, char); 2] = [('\u{F8FE0}', '\u{F8FE1}'), ('\u{F8FE2}', '\u{F8FE3}')];

/// The second way to what is learned: the chat is rendered once more with marks around every message's text. Without them
/// the render must be the same, and of the marks those of the assistant must lie inside its spans, in the order of its
/// turns, and all others outside.
fn agree(
    template: &ChatTemplate,
    turns: &[Turn],
    tools: Option<&[Value]>,
    taught: &edgeft_runtime::chat::Taught,
) -> Result<(), String> {
    let is_mark = |c: char| SAID.iter().any(|(open, close)| c == *open || c == *close);
    let marked: Vec<Turn> = turns
        .iter()
        .enumerate()
        .map(|(i, turn)| {
            if turn.content.contains(is_mark) {
                return Err(format!("message {i} holds a character that is kept for marks (U+F8FE0 to U+F8FE3)"));
            }
            let (open, close) = SAID[usize::from(turn.role != "assistant")];
            let body = turn.content.trim();
            if body.is_empty() {
                return Ok(turn.clone());
            }
            // Space around a text stays outside: templates trim it.
            let at = turn.content.len() - turn.content.trim_start().len();
            let (before, after) = (&turn.content[..at], &turn.content[at + body.len()..]);
            Ok(Turn { content: format!("{before}{open}{body}{close}{after}"), ..turn.clone() })
        })
        .collect::<Result<_, _>>()?;
    let render = template.render(&marked, false, tools).map_err(|e| e.to_string())?;
    let (mut text, mut marks) = (String::with_capacity(render.len()), Vec::new());
    for c in render.chars() {
        if is_mark(c) { marks.push((text.len(), c)) } else { text.push(c) }
    }
    if text != taught.text {
        // The template looks into what is said (as those do that part thoughts from answers): marks would lead it astray.
        return follow(turns, taught);
    }
    let spoken = turns.iter().enumerate().filter(|(_, t)| t.role == "assistant");
    for ((turn, message), span) in spoken.clone().zip(&taught.learned) {
        let own = |(at, c): &&(usize, char)| {
            (*c == SAID[0].0 && span.start <= *at && *at < span.end)
                || (*c == SAID[0].1 && span.start < *at && *at <= span.end)
        };
        if !message.content.trim().is_empty() && marks.iter().filter(own).count() == 0 {
            return Err(differ(turn, "what is said in it stands elsewhere in the text"));
        }
    }
    for (at, c) in marks {
        let of_assistant = c == SAID[0].0 || c == SAID[0].1;
        // A mark between two characters belongs to the text on its inner side.
        let inside = taught.learned.iter().position(|s| match c == SAID[0].0 || c == SAID[1].0 {
            true => s.start <= at && at < s.end,
            false => s.start < at && at <= s.end,
        });
        if of_assistant != inside.is_some() {
            let turn = inside.and_then(|i| spoken.clone().nth(i)).map_or(0, |(turn, _)| turn);
            let what = if of_assistant {
                "some of what the assistant says is not in it"
            } else {
                "it holds what another says"
            };
            return Err(differ(turn, what));
        }
    }
    Ok(())
}

/// Where marks cannot be used: the end of what the assistant says must stand in its span, in order.
fn follow(turns: &[Turn], taught: &edgeft_runtime::chat::Taught) -> Result<(), String> {
    let spoken = turns.iter().enumerate().filter(|(_, t)| t.role == "assistant");
    for ((turn, message), span) in spoken.zip(&taught.learned) {
        let last = message.content.trim().lines().next_back().unwrap_or("").trim();
        if !taught.text[span.clone()].contains(last) {
            return Err(differ(turn, "it does not end with what is said"));
        }
    }
    Ok(())
}

fn differ(turn: usize, what: &str) -> String {
    format!(
        "message {turn}: two ways to tell what the assistant is taught do not agree: {what}. Use a template with \
         {{% generation %}} blocks around what the assistant says, and nothing else"
    )
}

#[cfg(test)]
mod tests {
    use super::super::tiny::{decoder, words};
    use super::*;

    const TURNS: &str = "{% for m in messages %}{{ m.role }}: {{ m.content }} <|end|>\n{% endfor %}\
        {% if add_generation_prompt %}assistant: {% endif %}";

    fn message(role: &str, content: &str) -> Message {
        Message::new(role, content.into())
    }

    fn chat() -> Vec<Message> {
        vec![message("user", "a"), message("assistant", "b"), message("user", "c"), message("assistant", "d e")]
    }

    /// The learned tokens as words, `..` where others stand between.
    fn learned(template: &str, messages: &[Message]) -> Result<String, String> {
        let tokenizer = decoder();
        let template = ChatTemplate::new(template, "<s>", "</s>").unwrap();
        let s = sequence(&tokenizer, &template, messages, None)?;
        assert_eq!(s.ids.len(), s.learned.len());
        let word = |i: usize| if s.learned[i] { words(&tokenizer, &s.ids[i..=i]) } else { "..".into() };
        let mut all: Vec<String> = (0..s.ids.len()).map(word).collect();
        all.dedup_by(|a, b| a == ".." && b == "..");
        Ok(all.join(" "))
    }

    #[test]
    fn the_assistants_turns_are_learned_with_their_end() {
        assert_eq!(learned(TURNS, &chat()).unwrap(), ".. b <|end|> .. d e <|end|>");
    }

    #[test]
    fn a_turn_of_weight_0_is_not_learned() {
        let mut messages = chat();
        messages[1].learned = false;
        assert_eq!(learned(TURNS, &messages).unwrap(), ".. d e <|end|>");
    }

    #[test]
    fn generation_blocks_say_what_is_learned_and_the_end_behind_them_is_too() {
        let marked = "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}\
            {% else %}{{ m.content }}{% endif %} <|end|>\n{% endfor %}";
        assert_eq!(learned(marked, &chat()).unwrap(), ".. b <|end|> .. d e <|end|>");
    }

    #[test]
    fn a_template_that_ends_nothing_gets_the_end_of_the_text_or_is_refused() {
        let endless = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}\
            {% if add_generation_prompt %}assistant: {% endif %}";
        assert_eq!(learned(endless, &chat()[..2]).unwrap(), ".. b </s>");
        let error = learned(endless, &chat()).unwrap_err();
        assert!(
            error.starts_with("message 1: the template ends the assistant's turn with `b`, which holds no end token"),
            "{error}"
        );
        // A mark that the tokenizer does not know as one token is no end, even where the text ends.
        let error = learned(&TURNS.replace("<|end|>", "<|fin|>"), &chat()[..2]).unwrap_err();
        assert!(error.contains("turn with `b <|fin|>`, which holds no end token"), "{error}");
    }

    #[test]
    fn two_ways_that_do_not_agree_refuse_the_row() {
        // Generation blocks around the wrong turns, and around too much.
        let wrong = "{% for m in messages %}{% if m.role == 'user' %}{% generation %}{{ m.content }} <|end|>{% endgeneration %}\
            {% else %}{{ m.content }} <|end|>{% endif %}\n{% endfor %}";
        let error = learned(wrong, &chat()).unwrap_err();
        assert!(error.contains("message 1: two ways") && error.contains("stands elsewhere"), "{error}");
        let wide = "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }} {% else %}{% generation %}{{ m.content }} <|end|>\
            {% for n in messages %}{% if loop.first %} {{ n.content }}{% endif %}{% endfor %}{% endgeneration %}{% endif %}\n{% endfor %}";
        let error = learned(wide, &chat()).unwrap_err();
        assert!(error.contains("message 1: two ways") && error.contains("what another says"), "{error}");
        // Text that looks like another turn does not lead astray.
        let mut messages = chat();
        messages[0].content = "assistant: b <|end|>".into();
        assert_eq!(learned(TURNS, &messages).unwrap(), ".. b <|end|> .. d e <|end|>");
        messages[0].content = "a\u{F8FE0}".into();
        assert!(learned(TURNS, &messages).unwrap_err().contains("message 0 holds a character that is kept"));
    }

    #[test]
    fn a_template_that_parts_thoughts_from_answers_is_followed_by_its_ends() {
        let thinks = "{% for m in messages %}{{ m.role }}: {% if '</think>' in m.content %}\
            {{ m.content.split('</think>')[0].split('<think>')[-1].strip() }} c {{ m.content.split('</think>')[-1].strip() }}\
            {% else %}{{ m.content }}{% endif %} <|end|>\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}";
        let mut messages = chat();
        messages[3].content = "<think> a </think> d e".into();
        assert_eq!(learned(thinks, &messages).unwrap(), ".. b <|end|> .. a c d e <|end|>");
    }

    #[test]
    fn a_template_that_rewrites_what_was_said_is_refused() {
        let forgetful = "{% for m in messages %}{% if loop.last or m.role != 'assistant' %}{{ m.role }}: {{ m.content }} <|end|>\n\
            {% endif %}{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}";
        assert!(learned(forgetful, &chat()).unwrap_err().contains("message 1"));
        assert!(learned("{{ bos_token }} {{ bos_token }} <|end|>", &[]).unwrap_err().contains("beginning token twice"));
    }
}
