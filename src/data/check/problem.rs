//! What is reported: a code that scripts may rely on, how grave it is, the lines, and the way out.

use serde::Serialize;
use std::collections::BTreeMap;

/// How grave a problem is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Tuning on it would fail, or give figures that mislead: the check does not pass.
    Error,
    /// Likely to cost quality.
    Warning,
    /// Worth knowing.
    Note,
}

/// One kind of problem.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)]
pub enum Code {
    BadRow,
    Empty,
    Untrainable,
    DoubleBos,
    TooLong,
    BeyondContext,
    OneLabel,
    Leak,
    Contradiction,
    Duplicate,
    NearLeak,
    NearDuplicate,
    RareLabel,
    Imbalance,
    ControlToken,
    Mojibake,
    LostCharacters,
    ControlCharacters,
    Email,
    PaymentCard,
    BankAccount,
    Phone,
    LongerThanDefault,
    NotCompared,
}

impl Code {
    /// Level, what it is, and the way out.
    fn facts(self) -> (Level, &'static str, &'static str) {
        use Level::{Error, Note, Warning};
        match self {
            Self::BadRow => (Error, "rows that cannot be read", "correct them, or leave them out with --fix"),
            Self::Empty => (Error, "rows without text to learn", "leave them out with --fix"),
            Self::Untrainable => (
                Error,
                "rows that the model's tokenizer or template refuses",
                "correct them, or leave them out with --fix",
            ),
            Self::DoubleBos => (
                Error,
                "rows that begin with the beginning token twice",
                "take it out of the texts: the tokenizer puts it there by itself",
            ),
            Self::TooLong => (
                Error,
                "rows longer than --max-len",
                "give a longer --max-len, or let `tune --truncate` drop, cut or split them",
            ),
            Self::BeyondContext => (
                Error,
                "rows longer than the model's context",
                "let `tune --truncate` drop, cut or split them, or take a model with a longer context",
            ),
            Self::OneLabel => (Error, "only one label", "a classifier needs rows of at least two"),
            Self::Leak => (
                Error,
                "held-out rows that are also learned, so that the figures on them mislead",
                "--fix leaves them out of DATA; or split anew: edgeft data split",
            ),
            Self::Contradiction => (
                Warning,
                "rows with the same text under different labels",
                "decide which is right; --fix leaves all of them out",
            ),
            Self::Duplicate => (Warning, "rows that repeat another", "--fix keeps the first of each"),
            Self::NearLeak => (
                Warning,
                "held-out rows that are nearly rows to learn from",
                "--fix leaves those out of DATA; or split anew: edgeft data split",
            ),
            Self::NearDuplicate => (Warning, "rows that nearly repeat another", "vary them, or keep one of each"),
            Self::RareLabel => {
                (Warning, "labels with fewer than 10 rows", "find more rows, or join them with another label")
            }
            Self::Imbalance => (
                Warning,
                "labels with less than a twentieth of the commonest label's rows",
                "find more rows, and judge by macro F1, not by accuracy",
            ),
            Self::ControlToken => (
                Warning,
                "texts that hold a control token of the tokenizer",
                "take it out: inside a text it ends or opens a turn",
            ),
            Self::Mojibake => (Warning, "texts in UTF-8 that was read as Windows-1252", "--fix reads them rightly"),
            Self::LostCharacters => (
                Warning,
                "texts with lost characters (U+FFFD)",
                "export the data anew, as UTF-8: these cannot be won back",
            ),
            Self::ControlCharacters => (Warning, "texts with control characters", "--fix takes them out"),
            Self::Email => (Warning, "likely e-mail addresses", "--fix OUT --redact writes [EMAIL] in their place"),
            Self::PaymentCard => (Warning, "likely payment cards", "--fix OUT --redact writes [CARD] in their place"),
            Self::BankAccount => (Warning, "likely bank accounts", "--fix OUT --redact writes [IBAN] in their place"),
            Self::Phone => (Warning, "likely telephone numbers", "--fix OUT --redact writes [PHONE] in their place"),
            Self::LongerThanDefault => (
                Note,
                "rows longer than the 256 tokens that `tune` allows by default",
                "give `tune` the --max-len that is named under lengths",
            ),
            Self::NotCompared => {
                (Note, "likely near-duplicates, too many to compare word by word", "split the file to compare them")
            }
        }
    }
}

/// One kind of problem, with where it stands.
#[derive(Debug, Clone, Serialize)]
pub struct Problem {
    /// For scripts.
    pub code: Code,
    /// How grave.
    pub level: Level,
    /// How many rows (or labels).
    pub count: usize,
    /// In words.
    pub what: &'static str,
    /// What to do.
    pub way_out: &'static str,
    /// The first few.
    pub examples: Vec<Place>,
}

/// One row with a problem.
#[derive(Debug, Clone, Serialize)]
pub struct Place {
    /// Line of the file, from 1; none for what concerns the file as a whole.
    pub line: Option<usize>,
    /// What is wrong there.
    pub note: String,
}

/// Places that are kept of each kind.
const PLACES: usize = 5;

/// Problems while they are found.
#[derive(Default)]
pub struct Problems(BTreeMap<Code, Problem>);

impl Problems {
    /// None yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// One more; line 0 for what concerns the file as a whole.
    pub fn add(&mut self, code: Code, line: usize, note: String) {
        let (level, what, way_out) = code.facts();
        let problem =
            self.0.entry(code).or_insert(Problem { code, level, count: 0, what, way_out, examples: Vec::new() });
        problem.count += 1;
        let line = (line > 0).then_some(line);
        // The lowest lines, whatever the order in which they are found.
        let at = problem.examples.partition_point(|p| p.line <= line);
        if at < PLACES {
            problem.examples.insert(at, Place { line, note });
            problem.examples.truncate(PLACES);
        }
    }

    /// How many so far.
    pub fn count(&self, code: Code) -> usize {
        self.0.get(&code).map_or(0, |p| p.count)
    }

    /// Makes an error of it.
    pub fn aggravate(&mut self, code: Code) {
        if let Some(problem) = self.0.get_mut(&code) {
            problem.level = Level::Error;
        }
    }

    /// The gravest first, then in the order of [`Code`].
    pub fn sorted(self) -> Vec<Problem> {
        let mut all: Vec<Problem> = self.0.into_values().collect();
        all.sort_by_key(|p| (p.level, p.code));
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_lines_are_kept_and_all_are_counted() {
        let mut problems = Problems::new();
        (1..=20).rev().for_each(|line| problems.add(Code::Duplicate, line, String::new()));
        problems.add(Code::BadRow, 30, "x".into());
        let sorted = problems.sorted();
        assert_eq!((sorted[0].code, sorted[1].count), (Code::BadRow, 20));
        let lines: Vec<_> = sorted[1].examples.iter().map(|p| p.line).collect();
        assert_eq!(lines, [Some(1), Some(2), Some(3), Some(4), Some(5)]);
    }
}
