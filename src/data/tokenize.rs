//! Examples → rows: ids, and which of them are learned.
//!
//! A text is tokenized once and whole; what is learned is decided by characters, carried to tokens through their offsets.
//! So no marker is searched among ids, and prompt and completion are cut as they will be when the model is asked.

use super::answer;
use super::batch::{Row, Target};
use super::example::{Dataset, Example};
use super::sides::Sides;
use super::truncate::{TooLong, Truncate};
use super::{DataError, Labels, chat};
use edgeft_runtime::chat::ChatTemplate;
use edgeft_runtime::tokenizer::Tokenizer;
use rayon::prelude::*;

/// What examples are made rows for.
pub struct Tokenize<'a> {
    /// The model's tokenizer.
    pub tokenizer: &'a Tokenizer,
    /// The model's chat template, if it has one.
    pub template: Option<&'a ChatTemplate>,
    /// Labels by index; empty unless texts are classified.
    pub labels: &'a Labels,
    /// Whether the model is an encoder (BERT): a text stands between its special tokens, an answer is a span.
    pub encoder: bool,
    /// Tokens that a row may have.
    pub max_len: usize,
    /// What happens to longer ones. Plain text files and the contexts of answers (encoders) are always cut in windows.
    pub truncate: Truncate,
}

/// The rows of a dataset.
#[derive(Debug, Clone, PartialEq)]
pub struct Tokenized {
    /// Rows to learn from.
    pub rows: Vec<Row>,
    /// For each row, the example that it is from: its place in [`Dataset::rows`].
    pub of: Vec<usize>,
    /// Examples that `--truncate drop` left out.
    pub dropped: usize,
    /// Examples that were cut.
    pub cut: usize,
}

/// A sequence before it is cut to length.
#[derive(Debug, Clone, Default)]
pub(super) struct Sequence {
    pub ids: Vec<u32>,
    pub types: Vec<u8>,
    /// Which text a token is from; none for those that the tokenizer put around it.
    pub text: Vec<Option<u8>>,
    /// Which tokens are learned, for a language model.
    pub learned: Vec<bool>,
    pub class: Option<u32>,
}

/// A row's tokens before it is cut to length, and which of them are learned.
pub(super) struct Counted {
    pub ids: Vec<u32>,
    pub learned: Vec<bool>,
}

enum Made {
    Whole(Sequence),
    Windows(Vec<Row>),
    Sides(Sides),
}

impl Tokenize<'_> {
    /// Rows of every example.
    ///
    /// # Errors
    /// [`DataError::TooLong`], [`DataError::NothingLearned`], or the first row that cannot be, with its line.
    pub fn rows(&self, data: &Dataset) -> Result<Tokenized, DataError> {
        let made = |(line, example): &(usize, Example)| {
            self.example(*line, example).map_err(|reason| self.row_error(data, *line, reason))
        };
        let made: Vec<Result<Made, DataError>> = data.rows.par_iter().map(made).collect();
        let made: Vec<Made> = made.into_iter().collect::<Result<_, _>>()?; // the first error by line, not by thread
        if self.truncate == Truncate::Error {
            let length = |(made, (line, _)): (&Made, &(usize, Example))| match made {
                Made::Whole(s) => (*line, s.ids.len()),
                Made::Sides(sides) => (*line, sides.longest()),
                Made::Windows(_) => (*line, 0),
            };
            let lengths: Vec<(usize, usize)> = made.iter().zip(&data.rows).map(length).collect();
            if let Some(judged) = TooLong::judge(&data.path, &lengths, self.max_len) {
                return Err(DataError::TooLong(judged));
            }
        }
        let mut out = Tokenized { rows: Vec::new(), of: Vec::new(), dropped: 0, cut: 0 };
        let mut idle: Vec<(usize, String)> = Vec::new();
        for (i, (made, (line, _))) in made.into_iter().zip(&data.rows).enumerate() {
            let together = matches!(made, Made::Sides(_));
            let rows = match made {
                Made::Windows(rows) => rows,
                Made::Whole(s) if s.ids.len() <= self.max_len => vec![s.row(*line)],
                Made::Sides(sides) if sides.longest() <= self.max_len => sides.rows(*line),
                Made::Whole(_) | Made::Sides(_) if self.truncate == Truncate::Drop => {
                    out.dropped += 1;
                    continue;
                }
                Made::Sides(sides) => {
                    out.cut += 1;
                    sides.cut(self, *line).map_err(|reason| self.row_error(data, *line, reason))?
                }
                Made::Whole(s) => {
                    out.cut += 1;
                    self.cut(s, *line).map_err(|reason| self.row_error(data, *line, reason))?
                }
            };
            // Of rows that belong together, each must teach.
            let teach = rows.iter().filter(|r| r.learned() > 0).count();
            if teach == 0 || (together && teach < rows.len()) {
                idle.push((*line, self.why_idle(&rows)));
            }
            // Windows of a long row may hold a prompt alone.
            for row in rows.into_iter().filter(|r| r.learned() > 0) {
                out.rows.push(row);
                out.of.push(i);
            }
        }
        if !idle.is_empty() {
            let (count, examples) = (idle.len(), idle.into_iter().take(5).collect());
            return Err(DataError::NothingLearned { path: data.path.clone(), count, rows: data.rows.len(), examples });
        }
        if out.rows.is_empty() {
            let reason =
                format!("every row is longer than --max-len {}, and --truncate drop left them all out", self.max_len);
            return Err(DataError::Format { path: data.path.clone(), reason });
        }
        Ok(out)
    }

    /// The tokens of one example; of an answer that is found in windows, the first that holds it.
    ///
    /// # Errors
    /// What the tokenizer or the template says, and that nothing is learned.
    pub(super) fn counted(&self, line: usize, example: &Example) -> Result<Counted, String> {
        match self.example(line, example)? {
            Made::Whole(mut s) => {
                // A label is learned from the whole text, not token by token.
                s.learned.resize(s.ids.len(), false);
                let teaches = s.class.is_some() || s.learned.iter().skip(1).any(|l| *l);
                if !teaches {
                    return Err("what is to be learned gives no token".into());
                }
                Ok(Counted { ids: s.ids, learned: s.learned })
            }
            Made::Sides(sides) => {
                let mut s = sides.into_longest();
                s.learned.resize(s.ids.len(), false);
                Ok(Counted { ids: s.ids, learned: s.learned })
            }
            Made::Windows(rows) => {
                let span = |r: &Row| match r.target {
                    Target::Span { start, end } if end > 0 => Some((start as usize, end as usize)),
                    _ => None,
                };
                let row = rows.iter().find(|r| span(r).is_some()).or(rows.first());
                let row = row.ok_or("it has no token")?;
                let inside = |i: usize| span(row).is_some_and(|(start, end)| (start..=end).contains(&i));
                Ok(Counted { ids: row.ids.clone(), learned: (0..row.ids.len()).map(inside).collect() })
            }
        }
    }

    fn row_error(&self, data: &Dataset, line: usize, reason: String) -> DataError {
        DataError::Row { path: data.path.clone(), line, reason }
    }

    fn why_idle(&self, rows: &[Row]) -> String {
        match rows.iter().map(|r| r.ids.len()).max() {
            None | Some(0) => "it has no token".into(),
            Some(1) => "it has one token, and nothing stands before it to predict it from".into(),
            Some(n) if n >= self.max_len => {
                format!("--truncate {:?} leaves only what is given", self.truncate).to_lowercase()
            }
            Some(_) => "what is to be learned gives no token".into(),
        }
    }

    fn example(&self, line: usize, example: &Example) -> Result<Made, String> {
        let language = |what: &str| match self.encoder {
            true => Err(format!(
                "{what} needs a model that generates, and this one is an encoder; use --task classify or answer"
            )),
            false => Ok(()),
        };
        Ok(match example {
            Example::Text(text) => {
                language("plain text")?;
                Made::Whole(self.text(text)?)
            }
            Example::Document(text) => {
                language("plain text")?;
                Made::Windows(self.document(text)?)
            }
            Example::Completion { prompt, completion } => {
                language("a completion")?;
                Made::Whole(self.completion(prompt, completion)?)
            }
            Example::Chat { messages, tools } => {
                language("a conversation")?;
                let template = self.template.ok_or(
                    "the model has no chat template; use --task completion, or put chat_template.jinja into its folder",
                )?;
                Made::Whole(chat::sequence(self.tokenizer, template, messages, tools.as_ref())?)
            }
            Example::Classify { text, pair, label } => {
                let class = Some(self.labels.index(label)?);
                Made::Whole(Sequence { class, ..self.classified(text, pair.as_deref())? })
            }
            Example::Answer { question, context, answers } if self.encoder => {
                let windows = answer::windows(self.tokenizer, question, context, answers, self.max_len, line)?;
                Made::Windows(windows.into_iter().map(|w| w.row).collect())
            }
            Example::Answer { question, context, answers } => {
                let prompt = edgeft_runtime::chat::answer_prompt(question, context);
                let answer = answers.first().map(|a| format!(" {}", a.text)).unwrap_or_default();
                Made::Whole(self.completion(&prompt, &answer)?)
            }
            Example::Preference { prompt, chosen, rejected } => {
                language("a preference")?;
                Made::Sides(Sides::pair(self, prompt, chosen, rejected)?)
            }
            Example::Judged { prompt, completion, wanted } => {
                language("a preference")?;
                Made::Sides(Sides::judged(self, prompt, completion, *wanted)?)
            }
            Example::Embed { anchor, positive, negatives, .. } => {
                Made::Sides(Sides::vectors(self, anchor, positive, negatives)?)
            }
        })
    }

    /// `[CLS] a [SEP]` or `[CLS] a [SEP] b [SEP]` for encoders; for decoders the text as the tokenizer frames it, a pair
    /// on two lines. This is also what a classifier is asked with when it runs.
    ///
    /// # Errors
    /// What the tokenizer says, or that there is no token.
    pub(super) fn classified(&self, text: &str, pair: Option<&str>) -> Result<Sequence, String> {
        let encoding = match (pair, self.encoder) {
            (Some(pair), true) => self.tokenizer.encode_pair(text, pair),
            (Some(pair), false) => self.tokenizer.encode_with_offsets(&format!("{text}\n{pair}"), true),
            (None, _) => self.tokenizer.encode_with_offsets(text, true),
        }
        .map_err(|e| e.to_string())?;
        if encoding.ids.is_empty() {
            return Err("the text is empty, and the tokenizer puts nothing around it; leave the row out".into());
        }
        let types = if self.encoder { encoding.type_ids.iter().map(|t| *t as u8).collect() } else { Vec::new() };
        Ok(Sequence { types, text: encoding.sequence, ids: encoding.ids, ..Sequence::default() })
    }

    /// The beginning that the tokenizer puts before a text.
    fn bos(&self) -> Result<Option<u32>, String> {
        let framed = self.tokenizer.encode_with_offsets("a", true).map_err(|e| e.to_string())?;
        Ok(framed.ids.first().copied().filter(|_| framed.sequence[0].is_none()))
    }

    fn eos(&self) -> Result<u32, String> {
        self.tokenizer.eos().or(self.tokenizer.eot()).ok_or_else(|| {
            "the tokenizer names no end token (eos_token in tokenizer_config.json), so the model would never learn to stop".into()
        })
    }

    /// beginning + text + end, all learned.
    fn text(&self, text: &str) -> Result<Sequence, String> {
        let mut s = Sequence::default();
        s.extend(self.bos()?, None, true);
        s.extend(self.tokenizer.encode(text, false).map_err(|e| e.to_string())?, Some(0), true);
        s.extend([self.eos()?], None, true);
        Ok(s)
    }

    /// beginning + prompt + completion + end, the last two learned.
    pub(super) fn completion(&self, prompt: &str, completion: &str) -> Result<Sequence, String> {
        let whole =
            self.tokenizer.encode_with_offsets(&format!("{prompt}{completion}"), false).map_err(|e| e.to_string())?;
        let mut s = Sequence::default();
        s.extend(self.bos()?, None, false);
        // A token across the border is learned: it holds the completion's first letters.
        whole.ids.iter().zip(&whole.offsets).for_each(|(id, at)| s.extend([*id], Some(0), at.end > prompt.len()));
        s.extend([self.eos()?], None, true);
        Ok(s)
    }

    /// Windows that follow one another through a whole file, each behind the beginning that the tokenizer puts.
    fn document(&self, text: &str) -> Result<Vec<Row>, String> {
        let bos = self.bos()?;
        let whole = self.tokenizer.encode_with_offsets(text, false).map_err(|e| e.to_string())?;
        let body = self.max_len - usize::from(bos.is_some());
        let (mut rows, mut line, mut seen) = (Vec::new(), 1, 0);
        for (ids, at) in whole.ids.chunks(body).zip(whole.offsets.chunks(body)) {
            let begins = at[0].start.max(seen);
            line += text.as_bytes()[seen..begins].iter().filter(|b| **b == b'\n').count();
            seen = begins;
            let ids: Vec<u32> = bos.into_iter().chain(ids.iter().copied()).collect();
            let learned = vec![true; ids.len()];
            rows.push(Row::language(ids, &learned, line));
        }
        Ok(rows)
    }

    /// The parts of a sequence that is too long, as the policy says.
    fn cut(&self, s: Sequence, line: usize) -> Result<Vec<Row>, String> {
        match self.truncate {
            Truncate::Split => s.split(self.max_len, line),
            Truncate::Left => Ok(vec![s.shortened(self.max_len, true)?.row(line)]),
            _ => Ok(vec![s.shortened(self.max_len, false)?.row(line)]),
        }
    }
}

impl Sequence {
    pub fn extend(&mut self, ids: impl IntoIterator<Item = u32>, text: Option<u8>, learned: bool) {
        self.ids.extend(ids);
        self.text.resize(self.ids.len(), text);
        self.learned.resize(self.ids.len(), learned);
    }

    /// A text that is taken as a whole.
    pub fn framed(self, target: Target, line: usize) -> Row {
        Row { types: self.types, ..Row::new(self.ids, target, line) }
    }

    pub fn row(self, line: usize) -> Row {
        match self.class {
            Some(class) => self.framed(Target::Class(class), line),
            None => Row::language(self.ids, &self.learned, line),
        }
    }

    /// Leaves out tokens of the longer text, from its beginning (`left`) or its end, until `max_len` are left. What
    /// frames a text stays, but for the end after a text whose end is gone: nobody should learn to stop there.
    pub fn shortened(mut self, max_len: usize, left: bool) -> Result<Self, String> {
        if self.class.is_none() && !left && self.text.last() == Some(&None) {
            self.keep(|i, n| i + 1 < n);
        }
        while self.ids.len() > max_len {
            let of = |text| self.text.iter().filter(|t| **t == Some(text)).count();
            let (first, second) = (of(0), of(1));
            let (from, most, other) = if first > second { (0, first, second) } else { (1, second, first) };
            let drop = (self.ids.len() - max_len).min((most - other).max(1)).min(most);
            if drop == 0 {
                return Err(format!("--max-len {max_len} leaves no room for a text"));
            }
            let (text, mut at) = (self.text.clone(), 0);
            let skip = if left { 0 } else { most - drop };
            self.keep(|i, _| {
                let here = text[i] == Some(from);
                at += usize::from(here);
                !(here && at > skip && at <= skip + drop)
            });
        }
        Ok(self)
    }

    /// Leaves out what stands behind the first `n` tokens.
    pub fn keep_first(&mut self, n: usize) {
        self.keep(|i, _| i < n);
    }

    fn keep(&mut self, mut keep: impl FnMut(usize, usize) -> bool) {
        let n = self.ids.len();
        let kept: Vec<usize> = (0..n).filter(|i| keep(*i, n)).collect();
        self.learned = kept.iter().filter_map(|i| self.learned.get(*i).copied()).collect();
        self.types = kept.iter().filter_map(|i| self.types.get(*i).copied()).collect();
        self.ids = kept.iter().map(|i| self.ids[*i]).collect();
        self.text = kept.iter().map(|i| self.text[*i]).collect();
    }

    /// Windows that follow one another, each behind the sequence's beginning.
    fn split(self, max_len: usize, line: usize) -> Result<Vec<Row>, String> {
        if self.class.is_some() {
            return Err(
                "--truncate split would give each part of the text the whole text's label; use left, right or drop"
                    .into(),
            );
        }
        let head = usize::from(self.text[0].is_none());
        if head >= max_len {
            return Err(format!("--max-len {max_len} leaves no room for a text"));
        }
        let window = |(ids, learned): (&[u32], &[bool])| {
            let ids: Vec<u32> = self.ids[..head].iter().chain(ids).copied().collect();
            let learned: Vec<bool> = self.learned[..head].iter().chain(learned).copied().collect();
            Row::language(ids, &learned, line)
        };
        let body = max_len - head;
        Ok(self.ids[head..].chunks(body).zip(self.learned[head..].chunks(body)).map(window).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::super::schema::Task;
    use super::super::tiny::{decoder, encoder, words};
    use super::*;

    struct Case {
        encoder: bool,
        max_len: usize,
        truncate: Truncate,
    }

    const PLAIN: Case = Case { encoder: false, max_len: 64, truncate: Truncate::Error };

    /// Rows of a file of text: ids as words, learned ones as `(word)`, and the target of classes and spans behind `->`.
    fn rows(case: &Case, name: &str, text: &str, task: Option<Task>) -> Result<Vec<String>, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        let data = Dataset::read(&path, task).unwrap();
        let tokenizer = if case.encoder { encoder() } else { decoder() };
        let labels = Labels::known(&data.schema.labels);
        let (encoder, max_len, truncate) = (case.encoder, case.max_len, case.truncate);
        let how = Tokenize { tokenizer: &tokenizer, template: None, labels: &labels, encoder, max_len, truncate };
        let made =
            how.rows(&data).map_err(|e| e.to_string().rsplit_once('/').map_or(e.to_string(), |(_, e)| e.to_owned()))?;
        assert_eq!(made.rows.len(), made.of.len());
        let print = |row: &Row| {
            let learned = |i: usize| match &row.target {
                Target::Tokens(t) => i > 0 && t[i - 1].is_some(),
                _ => false,
            };
            let print = |i: usize| match (words(&tokenizer, &row.ids[i..=i]), learned(i)) {
                (word, true) => format!("({word})"),
                (word, false) => word,
            };
            let ids = (0..row.ids.len()).map(print).collect::<Vec<_>>().join(" ");
            match row.target {
                Target::Class(c) => format!("{ids} -> {c}"),
                Target::Span { start, end } => format!("{ids} -> {start}..{end}"),
                _ => ids,
            }
        };
        Ok(made.rows.iter().map(print).collect())
    }

    #[test]
    fn a_text_is_learned_whole_with_its_end() {
        assert_eq!(rows(&PLAIN, "d.jsonl", r#"{"text": "a b"}"#, None).unwrap(), ["<s> (a) (b) (</s>)"]);
    }

    #[test]
    fn a_completion_is_learned_and_its_prompt_is_not() {
        let text = r#"{"prompt": "a b ", "completion": "c"}"#;
        assert_eq!(rows(&PLAIN, "d.jsonl", text, None).unwrap(), ["<s> a b (c) (</s>)"]);
        // The border runs through a word: the word is learned.
        let text = r#"{"prompt": "a Ans", "completion": "wer: c"}"#;
        assert_eq!(rows(&PLAIN, "d.jsonl", text, None).unwrap(), ["<s> a (Answer:) (c) (</s>)"]);
    }

    #[test]
    fn a_decoder_answers_behind_the_prompt_that_serving_uses() {
        let text = r#"{"question": "b", "context": "a b", "answer": "a", "answer_start": 0}"#;
        let want = "<s> Context: a b Question: b Answer: (a) (</s>)";
        assert_eq!(rows(&PLAIN, "d.jsonl", text, None).unwrap(), [want]);
        let text = r#"{"question": "b", "context": "a b", "answer": ""}"#;
        assert_eq!(rows(&PLAIN, "d.jsonl", text, None).unwrap(), ["<s> Context: a b Question: b Answer: (</s>)"]);
    }

    #[test]
    fn classes_stand_behind_the_text_as_the_tokenizer_frames_it() {
        let text = "text,label\na b,no\nc,yes\n";
        assert_eq!(rows(&PLAIN, "d.csv", text, None).unwrap(), ["<s> a b -> 0", "<s> c -> 1"]);
        let bert = Case { encoder: true, ..PLAIN };
        assert_eq!(rows(&bert, "d.csv", text, None).unwrap(), ["[CLS] a b [SEP] -> 0", "[CLS] c [SEP] -> 1"]);
        let pair = "sentence1,sentence2,label\na b,c,no\n";
        assert_eq!(rows(&bert, "d.csv", pair, None).unwrap(), ["[CLS] a b [SEP] c [SEP] -> 0"]);
        assert_eq!(rows(&PLAIN, "d.csv", pair, None).unwrap(), ["<s> a b c -> 0"]);
    }

    #[test]
    fn a_file_of_text_is_cut_in_windows_that_know_their_line() {
        let case = Case { max_len: 4, ..PLAIN };
        let made = rows(&case, "d.txt", "a b\nc d\ne f g\n", None).unwrap();
        assert_eq!(made, ["<s> (a) (b) (c)", "<s> (d) (e) (f)", "<s> (g)"]);
        let document = Example::Document("a b\nc d\ne f g\n".into());
        let (tokenizer, labels) = (decoder(), Labels::known(&[]));
        let how = Tokenize {
            tokenizer: &tokenizer,
            template: None,
            labels: &labels,
            encoder: false,
            max_len: 4,
            truncate: Truncate::Error,
        };
        let Made::Windows(windows) = how.example(1, &document).unwrap() else { panic!() };
        assert_eq!(windows.iter().map(|r| r.source).collect::<Vec<_>>(), [1, 2, 3]);
    }

    #[test]
    fn long_rows_stop_the_run_unless_told_otherwise() {
        let text = "{\"text\": \"a\"}\n{\"text\": \"a b c d e f\"}\n";
        let cut = |truncate| rows(&Case { max_len: 5, truncate, ..PLAIN }, "d.jsonl", text, None);
        let error = cut(Truncate::Error).unwrap_err();
        assert!(error.starts_with("d.jsonl:2: 8 tokens, but --max-len is 5; 1 of 2 rows are too long."), "{error}");
        assert!(error.contains("give --max-len 8"), "{error}");
        assert_eq!(cut(Truncate::Drop).unwrap(), ["<s> (a) (</s>)"]);
        assert_eq!(cut(Truncate::Right).unwrap()[1], "<s> (a) (b) (c) (d)");
        assert_eq!(cut(Truncate::Left).unwrap()[1], "<s> (d) (e) (f) (</s>)");
        assert_eq!(cut(Truncate::Split).unwrap()[1..], ["<s> (a) (b) (c) (d)", "<s> (e) (f) (</s>)"]);
    }

    #[test]
    fn a_classified_text_keeps_its_frame_when_it_is_cut() {
        let case = |truncate| Case { encoder: true, max_len: 4, truncate };
        let cut = |truncate| rows(&case(truncate), "d.csv", "text,label\na b c d,x\n", None);
        assert_eq!(cut(Truncate::Right).unwrap(), ["[CLS] a b [SEP] -> 0"]);
        assert_eq!(cut(Truncate::Left).unwrap(), ["[CLS] c d [SEP] -> 0"]);
        assert!(cut(Truncate::Split).unwrap_err().contains("the whole text's label"));
        let pair = "sentence1,sentence2,label\na b c d e,f g h,x\n";
        let case = Case { max_len: 8, ..case(Truncate::Right) };
        assert_eq!(rows(&case, "d.csv", pair, None).unwrap(), ["[CLS] a b c [SEP] f g [SEP] -> 0"]);
    }

    #[test]
    fn rows_that_teach_nothing_are_named() {
        let text = "{\"prompt\": \"a b c d e\", \"completion\": \" f\"}\n";
        let error = rows(&Case { max_len: 4, truncate: Truncate::Right, ..PLAIN }, "d.jsonl", text, None).unwrap_err();
        let want =
            "d.jsonl: 1 of 1 rows teach nothing; the first are line 1 (--truncate right leaves only what is given)";
        assert_eq!(error, want);
        let text = "{\"text\": \"a b c d e\"}\n";
        let error = rows(&Case { max_len: 4, truncate: Truncate::Drop, ..PLAIN }, "d.jsonl", text, None).unwrap_err();
        assert!(error.contains("every row is longer than --max-len 4"), "{error}");
    }

    #[test]
    fn what_the_model_cannot_learn_is_refused() {
        let bert = Case { encoder: true, ..PLAIN };
        let error = rows(&bert, "d.jsonl", r#"{"text": "a"}"#, None).unwrap_err();
        assert!(error.starts_with("d.jsonl:1: plain text needs a model that generates"), "{error}");
        let chat = r#"{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}"#;
        let error = rows(&PLAIN, "d.jsonl", chat, None).unwrap_err();
        assert!(error.starts_with("d.jsonl:1: the model has no chat template; use --task completion"), "{error}");
    }

    #[test]
    fn a_label_that_the_model_never_saw_names_its_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("d.csv");
        std::fs::write(&path, "text,label\na,no\nb,maybe\n").unwrap();
        let data = Dataset::read(&path, None).unwrap();
        let (tokenizer, labels) = (decoder(), Labels::known(&["no".into(), "yes".into()]));
        let how = Tokenize {
            tokenizer: &tokenizer,
            template: None,
            labels: &labels,
            encoder: false,
            max_len: 8,
            truncate: Truncate::Error,
        };
        let error = how.rows(&data).unwrap_err().to_string();
        assert!(
            error.ends_with("d.csv:3: label `maybe` was never seen in training; the known labels are no, yes"),
            "{error}"
        );
    }
}
