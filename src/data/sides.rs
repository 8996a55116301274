//! Examples of several rows: two answers to one prompt, and texts that belong together. Each becomes a row, and the rows of
//! one example stand behind one another; what a loss wants of them besides is arranged here.

use super::batch::{Part, Row, Side, Target};
use super::chat;
use super::messages::Message;
use super::tokenize::{Sequence, Tokenize};
use super::truncate::Truncate;

/// What a sequence is to its example.
#[derive(Debug, Clone, Copy)]
pub(super) enum Role {
    Answer(Side),
    Vector(Part),
}

/// The sequences of one example, before they are cut to length.
pub(super) struct Sides(Vec<(Sequence, Role)>);

impl Sides {
    /// Two answers to one prompt.
    pub fn pair(how: &Tokenize, prompt: &[Message], chosen: &str, rejected: &str) -> Result<Self, String> {
        let side = |name: &str, answer: &str, side| {
            if answer.trim().is_empty() {
                return Err(format!("field `{name}` is empty; leave the row out"));
            }
            let s = answered(how, prompt, answer).map_err(|e| format!("field `{name}`: {e}"))?;
            Ok((s, Role::Answer(side)))
        };
        let both = Self(vec![side("chosen", chosen, Side::Chosen)?, side("rejected", rejected, Side::Rejected)?]);
        if both.are_the_same() {
            return Err("`chosen` and `rejected` give the same tokens; the row teaches nothing".into());
        }
        Ok(both)
    }

    /// One answer, wanted or not.
    pub fn judged(how: &Tokenize, prompt: &[Message], completion: &str, wanted: bool) -> Result<Self, String> {
        if completion.trim().is_empty() {
            return Err("the completion is empty; leave the row out".into());
        }
        let side = if wanted { Side::Wanted } else { Side::Unwanted };
        Ok(Self(vec![(answered(how, prompt, completion)?, Role::Answer(side))]))
    }

    /// Texts, each framed as a text that stands alone.
    pub fn vectors(how: &Tokenize, anchor: &str, positive: &str, negatives: &[String]) -> Result<Self, String> {
        let near = [(anchor, Part::Anchor), (positive, Part::Positive)];
        let far = negatives.iter().map(|text| (text.as_str(), Part::Negative));
        let part = |(text, part)| Ok((how.classified(text, None)?, Role::Vector(part)));
        near.into_iter().chain(far).map(part).collect::<Result<_, _>>().map(Self)
    }

    /// Tokens of the longest.
    pub fn longest(&self) -> usize {
        self.0.iter().map(|(s, _)| s.ids.len()).max().unwrap_or(0)
    }

    /// Its longest sequence, for those who count tokens.
    pub fn into_longest(self) -> Sequence {
        self.0.into_iter().map(|(s, _)| s).max_by_key(|s| s.ids.len()).unwrap_or_default()
    }

    fn are_the_same(&self) -> bool {
        matches!(&self.0[..], [(a, Role::Answer(_)), (b, _)] if a.ids == b.ids)
    }

    /// Its rows, all of which fit.
    pub fn rows(self, line: usize) -> Vec<Row> {
        let row = |(s, role): (Sequence, Role)| match role {
            Role::Vector(part) => s.framed(Target::Vector(part), line),
            Role::Answer(side) => {
                let row = s.row(line);
                let tokens = row.target.tokens().map(<[_]>::to_vec).unwrap_or_default();
                row.with(Target::Answer { tokens, side, reference: 0.0 })
            }
        };
        self.0.into_iter().map(row).collect()
    }

    /// Its rows, each cut by itself where it is too long.
    pub fn cut(self, how: &Tokenize, line: usize) -> Result<Vec<Row>, String> {
        if how.truncate == Truncate::Split {
            return Err("--truncate split would part what is compared as a whole; use left, right or drop".into());
        }
        let shorten = |(s, role): (Sequence, Role)| match s.ids.len() > how.max_len {
            true => Ok((s.shortened(how.max_len, how.truncate == Truncate::Left)?, role)),
            false => Ok((s, role)),
        };
        let cut = Self(self.0.into_iter().map(shorten).collect::<Result<_, String>>()?);
        if cut.are_the_same() {
            let (kept, most) = (if how.truncate == Truncate::Left { "last" } else { "first" }, how.max_len);
            return Err(format!("`chosen` and `rejected` are the same in their {kept} {most} tokens; raise --max-len"));
        }
        Ok(cut.rows(line))
    }
}

/// Prompt and answer by the model's template, or where it has none, verbatim and end to end.
fn answered(how: &Tokenize, prompt: &[Message], answer: &str) -> Result<Sequence, String> {
    let Some(template) = how.template else {
        let [Message { role, content, .. }] = prompt else {
            return Err(
                "the model has no chat template, so a prompt is one text; put chat_template.jinja into its folder"
                    .into(),
            );
        };
        if role != "user" {
            return Err(format!("the model has no chat template, so the prompt cannot be the {role}'s"));
        }
        return how.completion(content, answer);
    };
    let mut messages = prompt.to_vec();
    messages.push(Message::new("assistant", answer.to_owned()));
    chat::sequence(how.tokenizer, template, &messages, None)
}

/// Pairs as answers that are judged one by one: the chosen one is wanted, the rejected one is not.
pub fn one_by_one(rows: Vec<Row>) -> Vec<Row> {
    let mut rows = rows;
    for row in &mut rows {
        if let Target::Answer { side, .. } = &mut row.target {
            *side = match *side {
                Side::Chosen => Side::Wanted,
                Side::Rejected => Side::Unwanted,
                other => other,
            };
        }
    }
    rows
}

/// How far it is looked for an answer to another prompt.
const LOOK: usize = 64;

/// Behind each judged answer, its prompt with the answer of the next row that has another prompt, at most `max_len` tokens:
/// from those KTO tells how far the network has drifted as a whole (arXiv:2402.01306, section 4.1). Rows of one prompt
/// alone are given each other's answers.
pub fn with_mismatched(rows: Vec<Row>, max_len: usize) -> Vec<Row> {
    let first = |row: &Row| row.target.tokens().and_then(|t| t.iter().position(Option::is_some)).map_or(0, |i| i + 1);
    let parts: Vec<(&[u32], &[u32])> = rows.iter().map(|r| r.ids.split_at(first(r))).collect();
    let n = rows.len();
    let mismatched: Vec<Row> = (0..n)
        .map(|i| {
            let other = (1..n.min(LOOK)).map(|d| (i + d) % n).find(|j| parts[*j].0 != parts[i].0);
            let (prompt, answer) = (parts[i].0, parts[other.unwrap_or((i + 1) % n)].1);
            // What is too long loses the answer's end, then the prompt's beginning.
            let kept = answer.len().min(max_len.saturating_sub(prompt.len()).max(max_len / 2));
            let prompt = &prompt[prompt.len() - prompt.len().min(max_len - kept)..];
            let ids: Vec<u32> = prompt.iter().chain(&answer[..kept]).copied().collect();
            let learned: Vec<bool> = (0..ids.len()).map(|at| at >= prompt.len()).collect();
            let row = Row::language(ids, &learned, rows[i].source);
            let tokens = row.target.tokens().map(<[_]>::to_vec).unwrap_or_default();
            row.with(Target::Answer { tokens, side: Side::Mismatched, reference: 0.0 })
        })
        .collect();
    rows.into_iter().zip(mismatched).flat_map(|(row, other)| [row, other]).collect()
}

#[cfg(test)]
mod tests {
    use super::super::Labels;
    use super::super::example::Dataset;
    use super::super::tiny::{decoder, encoder, words};
    use super::*;
    use edgeft_runtime::chat::ChatTemplate;

    const TURNS: &str = "{% for m in messages %}{{ m.role }}: {{ m.content }} <|end|>\n{% endfor %}\
        {% if add_generation_prompt %}assistant: {% endif %}";

    struct Case<'a> {
        template: Option<&'a str>,
        max_len: usize,
        truncate: Truncate,
    }

    const PLAIN: Case = Case { template: None, max_len: 64, truncate: Truncate::Error };

    fn made(case: &Case, text: &str) -> Result<Vec<Row>, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("d.jsonl");
        std::fs::write(&path, text).unwrap();
        let data = Dataset::read(&path, None).unwrap();
        let is_encoder = data.schema.task == crate::data::Task::Embed;
        let tokenizer = if is_encoder { encoder() } else { decoder() };
        let template = case.template.map(|t| ChatTemplate::new(t, "<s>", "</s>").unwrap());
        let labels = Labels::known(&[]);
        let (max_len, truncate) = (case.max_len, case.truncate);
        let template = template.as_ref();
        let how = Tokenize { tokenizer: &tokenizer, template, labels: &labels, encoder: is_encoder, max_len, truncate };
        let made =
            how.rows(&data).map_err(|e| e.to_string().rsplit_once('/').map_or(String::new(), |e| e.1.to_owned()))?;
        assert_eq!(made.rows.len(), made.of.len());
        Ok(made.rows)
    }

    /// Ids as words, learned ones as `(word)`, and what is thought of them.
    fn print(rows: &[Row]) -> Vec<String> {
        let print = |row: &Row| {
            let is_encoder = matches!(row.target, Target::Vector(_));
            let tokenizer = if is_encoder { encoder() } else { decoder() };
            let learned = |i: usize| i > 0 && row.target.tokens().is_some_and(|t| t[i - 1].is_some());
            let word = |i: usize| match (words(&tokenizer, &row.ids[i..=i]), learned(i)) {
                (word, true) => format!("({word})"),
                (word, false) => word,
            };
            let what = match &row.target {
                Target::Answer { side, .. } => format!("{side:?}"),
                Target::Vector(part) => format!("{part:?}"),
                other => format!("{other:?}"),
            };
            format!("{}: {what}", (0..row.ids.len()).map(word).collect::<Vec<_>>().join(" "))
        };
        rows.iter().map(print).collect()
    }

    #[test]
    fn only_the_answers_are_learned_with_and_without_a_template() {
        let pair = r#"{"prompt": "a ", "chosen": "b", "rejected": "c d"}"#;
        assert_eq!(print(&made(&PLAIN, pair).unwrap()), ["<s> a (b) (</s>): Chosen", "<s> a (c) (d) (</s>): Rejected"]);
        let case = Case { template: Some(TURNS), ..PLAIN };
        assert_eq!(
            print(&made(&case, pair).unwrap()),
            ["<unk> a <|end|> <unk> (b) (<|end|>): Chosen", "<unk> a <|end|> <unk> (c) (d) (<|end|>): Rejected"]
        );
        let judged = "{\"prompt\": \"a \", \"completion\": \"b\", \"label\": true}\n{\"prompt\": \"c \", \"completion\": \"d\", \"label\": false}";
        assert_eq!(print(&made(&PLAIN, judged).unwrap()), ["<s> a (b) (</s>): Wanted", "<s> c (d) (</s>): Unwanted"]);
        let texts = r#"{"anchor": "a", "positive": "b c", "negative": "d"}"#;
        assert_eq!(
            print(&made(&PLAIN, texts).unwrap()),
            ["[CLS] a [SEP]: Anchor", "[CLS] b c [SEP]: Positive", "[CLS] d [SEP]: Negative"]
        );
    }

    #[test]
    fn what_cannot_be_compared_is_refused_by_line() {
        let pair = |chosen: &str, rejected: &str| {
            format!("{{\"prompt\": \"a \", \"chosen\": \"{chosen}\", \"rejected\": \"{rejected}\"}}")
        };
        let short = Case { max_len: 4, truncate: Truncate::Right, ..PLAIN };
        let messages = r#"{"prompt": [{"role": "system", "content": "a"}, {"role": "user", "content": "b"}], "chosen": "c", "rejected": "d"}"#;
        for (case, text, because) in [
            (&PLAIN, pair("", "b"), "d.jsonl:1: field `chosen` is empty"),
            (&PLAIN, pair("b", " "), "d.jsonl:1: field `rejected` is empty"),
            (&PLAIN, pair("x", "y"), "d.jsonl:1: `chosen` and `rejected` give the same tokens"),
            (&short, pair("b c d", "b c e"), "are the same in their first 4 tokens; raise --max-len"),
            (&Case { truncate: Truncate::Split, ..short }, pair("b c d", "b"), "--truncate split would part"),
            (
                &Case { truncate: Truncate::Error, ..short },
                pair("b c d", "b"),
                "d.jsonl:1: 6 tokens, but --max-len is 4",
            ),
            (&PLAIN, messages.to_owned(), "d.jsonl:1: field `chosen`: the model has no chat template"),
        ] {
            let error = made(case, &text).unwrap_err();
            assert!(error.contains(because), "{error}");
        }
        let long = r#"{"prompt": "a b c d ", "chosen": "e", "rejected": "f"}"#;
        let error = made(&short, long).unwrap_err();
        assert!(error.contains("are the same"), "{error}");
        let left = Case { truncate: Truncate::Left, ..short };
        assert_eq!(print(&made(&left, long).unwrap()), ["<s> d (e) (</s>): Chosen", "<s> d (f) (</s>): Rejected"]);
    }

    #[test]
    fn judged_answers_get_one_of_another_prompt() {
        let pairs = "{\"prompt\": \"a \", \"chosen\": \"b\", \"rejected\": \"c d\"}\n{\"prompt\": \"e \", \"chosen\": \"f\", \"rejected\": \"g\"}";
        let rows = with_mismatched(one_by_one(made(&PLAIN, pairs).unwrap()), 4);
        assert_eq!(
            print(&rows),
            [
                "<s> a (b) (</s>): Wanted",
                "<s> a (f) (</s>): Mismatched",
                "<s> a (c) (d) (</s>): Unwanted",
                "<s> a (f) (</s>): Mismatched",
                "<s> e (f) (</s>): Wanted",
                "<s> e (b) (</s>): Mismatched",
                "<s> e (g) (</s>): Unwanted",
                "<s> e (b) (</s>): Mismatched",
            ]
        );
        let long = with_mismatched(made(&PLAIN, "{\"prompt\": \"a b c d e \", \"completion\": \"f\", \"label\": true}\n{\"prompt\": \"a \", \"completion\": \"b c d e\", \"label\": true}").unwrap(), 5);
        assert_eq!(print(&long)[1], "c d e (b) (c): Mismatched");
        assert_eq!(print(&long)[3], "<s> a (f) (</s>): Mismatched");
    }
}
