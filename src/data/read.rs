//! DATA as typed → rows that a model can learn from or be judged on.

use super::batch::{Row, Target};
use super::example::Dataset;
use super::formats::Format;
use super::tokenize::Tokenize;
use super::{DataError, Labels, Task, Truncate, split, tokens};
use edgeft_runtime::chat::ChatTemplate;
use edgeft_runtime::tokenizer::Tokenizer;
use std::path::Path;
use std::sync::Arc;

/// Share of DATA that is held out when no other held-out rows are given.
const HELD_OUT: f64 = 0.1;
/// The most rows that are held out so.
const MOST_HELD_OUT: usize = 500;

/// How DATA is read.
#[derive(Debug, Clone, Copy)]
pub struct Reading<'a> {
    /// What the rows teach; read off their fields when not given.
    pub task: Option<Task>,
    /// Labels by index, when they are settled; else those that stand in the rows.
    pub labels: Option<&'a [String]>,
    /// Tokens that a row may have.
    pub max_len: usize,
    /// What happens to longer rows; when not given, text files are cut in windows and anything else is an error.
    pub truncate: Option<Truncate>,
    /// Whether the model is an encoder.
    pub encoder: bool,
}

/// What a model brings along to read text.
pub struct TextSide<'a> {
    /// Makes the tokenizer; asked only when DATA is text.
    pub tokenizer: &'a dyn Fn() -> anyhow::Result<Arc<Tokenizer>>,
    /// Jinja source of its chat template, if it has one.
    pub template: Option<&'a str>,
}

/// Rows of a file, and where they are from.
#[derive(Debug, Clone)]
pub struct Rows {
    /// What they teach.
    pub task: Task,
    /// Labels by index; empty unless texts are classified.
    pub labels: Vec<String>,
    /// The rows.
    pub rows: Vec<Row>,
    /// What was detected, for people.
    pub schema: String,
    /// The examples behind the rows; none for pre-tokenized files.
    pub examples: Option<Dataset>,
    /// For each row, the number of its example.
    of: Vec<usize>,
}

impl Rows {
    /// Reads a file.
    ///
    /// # Errors
    /// [`DataError`] with file and line; what the tokenizer or the template says.
    pub fn read(path: &Path, how: &Reading, text: &TextSide) -> anyhow::Result<Self> {
        if Format::of(path)? == Format::Tokens {
            return Self::pretokenized(path, how);
        }
        let data = Dataset::read(path, how.task)?;
        let tokenizer = (text.tokenizer)()?;
        let name = |id: Option<u32>| id.and_then(|id| tokenizer.id_to_token(id)).unwrap_or_default();
        let template =
            text.template.map(|t| ChatTemplate::new(t, name(tokenizer.bos()), name(tokenizer.eos()))).transpose()?;
        let labels = Labels::known(how.labels.unwrap_or(&data.schema.labels));
        let tokenize = Tokenize {
            tokenizer: &tokenizer,
            template: template.as_ref(),
            labels: &labels,
            encoder: how.encoder,
            max_len: how.max_len,
            truncate: how.truncate.unwrap_or_default(),
        };
        let made = tokenize.rows(&data)?;
        let mut schema = format!("{}: {}", path.display(), data.schema);
        for (n, what) in [(made.dropped, "left out"), (made.cut, "cut")] {
            if n > 0 {
                schema.push_str(&format!(
                    "; {n} of {} rows longer than {} tokens {what}",
                    data.rows.len(),
                    how.max_len
                ));
            }
        }
        if data.schema.task == Task::Preference && !how.encoder {
            schema.push_str(match template {
                Some(_) => "; prompts and answers by the chat template",
                None => "; prompts and answers verbatim, end to end: the model has no chat template",
            });
        }
        let labels = labels.names().to_vec();
        Ok(Self { task: data.schema.task, labels, rows: made.rows, schema, examples: Some(data), of: made.of })
    }

    fn pretokenized(path: &Path, how: &Reading) -> anyhow::Result<Self> {
        let rows = tokens::read_rows(path)?;
        let found = match rows.iter().map(|r| &r.target).find(|t| **t != Target::None) {
            Some(Target::Class(_)) => Task::Classify,
            Some(Target::Span { .. }) => Task::Answer,
            _ => Task::Text,
        };
        let generates = |task| matches!(task, Task::Text | Task::Chat | Task::Completion);
        let task = match how.task {
            Some(asked) if asked == found || (generates(asked) && generates(found)) => asked,
            Some(asked) => {
                let reason = format!("its labels are for --task {found}, not {asked}");
                return Err(DataError::Format { path: path.to_owned(), reason }.into());
            }
            None => found,
        };
        if let Some(row) = rows.iter().find(|r| r.ids.len() > how.max_len) {
            let (n, most) = (row.ids.len(), how.max_len);
            let reason =
                format!("row {}: {n} tokens, but --max-len is {most}; pre-tokenized rows are never cut", row.source);
            return Err(DataError::Format { path: path.to_owned(), reason }.into());
        }
        let mut labels = Vec::new();
        if task == Task::Classify {
            let class = |r: &Row| match r.target {
                Target::Class(c) => c as usize + 1,
                _ => 0,
            };
            let n = rows.iter().map(class).max().unwrap_or(0);
            labels = match how.labels {
                Some(known) if n <= known.len() => known.to_vec(),
                Some(known) => {
                    let reason = format!("has label {}, but the model has {} labels", n - 1, known.len());
                    return Err(DataError::Tensor { path: path.to_owned(), tensor: "labels".into(), reason }.into());
                }
                None => (0..n).map(|i| format!("LABEL_{i}")).collect(),
            };
        }
        let schema = format!("{}: pre-tokenized -> {task}, {} rows", path.display(), rows.len());
        let of = (0..rows.len()).collect();
        Ok(Self { task, labels, rows, schema, examples: None, of })
    }

    /// Whether the file held ids and no text.
    pub fn is_pretokenized(&self) -> bool {
        self.examples.is_none()
    }

    /// Holds out a tenth, at most 500: rows to learn from, rows held out, and the numbers of the latter (of examples, or of
    /// windows where DATA is one long text).
    pub fn hold_out(&self, seed: u64) -> (Vec<Row>, Vec<Row>, Vec<usize>) {
        let several = self.examples.as_ref().filter(|_| self.by_example());
        let n = several.map_or(self.rows.len(), |d| d.rows.len());
        let share = HELD_OUT.min(MOST_HELD_OUT as f64 / n.max(1) as f64);
        let (_, held) = match several {
            Some(data) => split::hold_out(&data.rows, share, seed),
            None => split::hold_out_rows(&self.rows, share, seed),
        };
        let (train, val) = self.part(&held);
        (train, val, held)
    }

    /// The numbers that each of `k` folds holds out: every one in one fold, each fold with its share of every label, the same
    /// text never in two.
    pub fn folds(&self, k: usize, seed: u64) -> Vec<Vec<usize>> {
        let fold_of = match self.examples.as_ref().filter(|d| d.rows.len() > 1) {
            Some(data) => {
                let (keys, strata) = split::keys(&data.rows);
                split::folds(&keys, &strata, k, seed)
            }
            None => {
                let (keys, strata) = split::keys_of_rows(&self.rows);
                split::folds(&keys, &strata, k, seed)
            }
        };
        (0..k).map(|fold| (0..fold_of.len()).filter(|i| fold_of[*i] == fold).collect()).collect()
    }

    /// Rows beside, and rows of, the numbers that [`Rows::hold_out`] gave.
    pub fn part(&self, numbers: &[usize]) -> (Vec<Row>, Vec<Row>) {
        let inside = |i: usize| numbers.binary_search(&self.number(i)).is_ok();
        let pick = |wanted: bool| {
            (0..self.rows.len()).filter(|i| inside(*i) == wanted).map(|i| self.rows[i].clone()).collect()
        };
        (pick(false), pick(true))
    }

    /// The number by which row `i` is held out.
    pub fn number(&self, i: usize) -> usize {
        if self.by_example() { self.of[i] } else { i }
    }

    /// Whether whole examples are held out, and not windows of a single one.
    fn by_example(&self) -> bool {
        let together = matches!(self.task, Task::Preference | Task::Embed);
        self.examples.as_ref().is_some_and(|d| d.rows.len() > 1 || together)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tiny::decoder;
    use super::*;

    fn read(name: &str, text: &str, task: Option<Task>) -> anyhow::Result<Rows> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        let how = Reading { task, labels: None, max_len: 8, truncate: None, encoder: false };
        Rows::read(&path, &how, &TextSide { tokenizer: &|| Ok(Arc::new(decoder())), template: None })
    }

    #[test]
    fn rows_and_windows_are_held_out_by_number_and_come_back_the_same() {
        let lines: String = (0..40).map(|i| format!("{{\"text\": \"{}\"}}\n", "a ".repeat(1 + i % 5))).collect();
        // Windows that differ: equal ones stay on one side.
        let word = |i: usize| ["a", "b", "c", "d", "e", "f", "g", "h"][i * i / 3 % 8];
        let document = (0..280).map(word).collect::<Vec<_>>().join(" ");
        for (name, text) in [("d.jsonl", lines), ("d.txt", document)] {
            let rows = read(name, &text, None).unwrap();
            let (train, val, held) = rows.hold_out(3);
            assert!(!val.is_empty() && train.len() + val.len() == rows.rows.len(), "{name}");
            assert_eq!(rows.part(&held), (train, val), "{name}");
        }
    }

    #[test]
    fn labels_that_are_settled_are_kept_in_their_order() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("d.csv");
        std::fs::write(&path, "text,label\na,yes\n").unwrap();
        let labels = ["yes".to_owned(), "no".into()];
        let how = Reading { task: None, labels: Some(&labels), max_len: 8, truncate: None, encoder: false };
        let rows =
            Rows::read(&path, &how, &TextSide { tokenizer: &|| Ok(Arc::new(decoder())), template: None }).unwrap();
        assert_eq!((rows.labels.as_slice(), &rows.rows[0].target), (&labels[..], &Target::Class(0)));
    }
}
