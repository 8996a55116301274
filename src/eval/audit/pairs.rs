//! PAIRS: two sentences that differ in a group word, or single texts with the group they speak of.
//!
//! CrowS-Pairs' columns (`sent_more`, `sent_less`, `bias_type`; Nangia et al., arXiv:2010.00133) and a few other names are
//! known; any other columns are named by `--columns`. Two files of sentences, line by line, are WinoBias' form.

use crate::data::formats::{Record, Records};
use crate::error::BadInput;
use std::collections::BTreeMap;
use std::path::Path;

/// Two sentences.
#[derive(Debug, Clone, PartialEq)]
pub struct Pair {
    /// Line of the file.
    pub row: usize,
    /// The one that a stereotype expects, where the pairs are of that kind.
    pub first: String,
    /// The other.
    pub second: String,
    /// What kind of group it is about.
    pub category: String,
    /// Groups of first and second, where they are named.
    pub groups: Option<(String, String)>,
    /// The label that both should get, where it is known.
    pub label: Option<String>,
}

/// One text that speaks of a group.
#[derive(Debug, Clone, PartialEq)]
pub struct Single {
    /// Line of the file.
    pub row: usize,
    /// The text.
    pub text: String,
    /// The group.
    pub group: String,
    /// The right label, where it is known.
    pub label: Option<String>,
}

/// What an audit asks.
#[derive(Debug, Clone, PartialEq)]
pub enum Asked {
    /// Pairs.
    Pairs(Vec<Pair>),
    /// Single texts.
    Singles(Vec<Single>),
}

/// Parts of a row, and the names they are known by; the first is the name that `--columns` takes.
const PARTS: [(&str, &[&str]); 8] = [
    ("first", &["sent_more", "stereotype", "text_a", "text1", "sentence1", "original", "pro"]),
    (
        "second",
        &["sent_less", "antistereotype", "anti_stereotype", "text_b", "text2", "sentence2", "counterfactual", "anti"],
    ),
    ("category", &["bias_type", "axis", "kind", "domain"]),
    ("first_group", &["group_a", "group1"]),
    ("second_group", &["group_b", "group2"]),
    ("text", &["sentence", "review", "content"]),
    ("group", &["demographic", "identity", "gender"]),
    ("label", &["true_label", "gold", "target"]),
];

/// Which column holds which part.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Columns(pub BTreeMap<String, String>);

impl std::str::FromStr for Columns {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut out = BTreeMap::new();
        for part in text.split(',') {
            let Some((part, column)) = part.split_once('=') else {
                return Err(format!("`{part}` is no PART=COLUMN, such as first=sent_more"));
            };
            if !PARTS.iter().any(|(name, _)| *name == part.trim()) {
                let known: Vec<&str> = PARTS.iter().map(|(name, _)| *name).collect();
                return Err(format!("no part `{part}`; known: {}", known.join(", ")));
            }
            out.insert(part.trim().to_owned(), column.trim().to_owned());
        }
        Ok(Self(out))
    }
}

/// Reads PAIRS.
///
/// # Errors
/// Columns that are not there, empty sentences, with the line.
pub fn read(path: &Path, columns: &Columns) -> anyhow::Result<Asked> {
    let rows: Vec<Record> = Records::open(path)?.collect::<Result<_, _>>()?;
    let names: Vec<&String> = rows[0].fields.keys().collect();
    let mut found: BTreeMap<&str, String> = BTreeMap::new();
    for (part, known) in PARTS {
        let there = |wanted: &str| names.iter().find(|n| n.trim().eq_ignore_ascii_case(wanted)).map(|n| (*n).clone());
        let column = match columns.0.get(part) {
            Some(given) => Some(there(given).ok_or_else(|| {
                let names: Vec<&str> = names.iter().map(|n| n.as_str()).collect();
                BadInput(format!(
                    "{}: --columns {part}={given}: no such column; there are {}",
                    path.display(),
                    names.join(", ")
                ))
            })?),
            None => std::iter::once(&part).chain(known).find_map(|n| there(n)),
        };
        found.extend(column.map(|c| (part, c)));
    }
    let value = |row: &Record, part: &str| -> Option<String> {
        let value = row.fields.get(found.get(part)?)?;
        let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        Some(text).filter(|t| !t.trim().is_empty() && t != "null")
    };
    let needed = |row: &Record, part: &str| {
        value(row, part).ok_or_else(|| BadInput(format!("{}:{}: `{}` is empty", path.display(), row.line, found[part])))
    };
    if found.contains_key("first") && found.contains_key("second") {
        let pair = |row: &Record| -> anyhow::Result<Pair> {
            Ok(Pair {
                row: row.line,
                first: needed(row, "first")?,
                second: needed(row, "second")?,
                category: value(row, "category").unwrap_or_else(|| "all".into()),
                groups: value(row, "first_group").zip(value(row, "second_group")),
                label: value(row, "label"),
            })
        };
        return Ok(Asked::Pairs(rows.iter().map(pair).collect::<anyhow::Result<_>>()?));
    }
    if found.contains_key("text") && found.contains_key("group") {
        let single = |row: &Record| -> anyhow::Result<Single> {
            let (text, group) = (needed(row, "text")?, needed(row, "group")?);
            Ok(Single { row: row.line, text, group, label: value(row, "label") })
        };
        return Ok(Asked::Singles(rows.iter().map(single).collect::<anyhow::Result<_>>()?));
    }
    let names: Vec<String> = names.iter().map(|n| format!("`{n}`")).collect();
    crate::bad_input!(
        "{}: the columns are {}, but an audit needs two sentences (`sent_more` and `sent_less`, `first` and `second`) or `text` \
         and `group`; name yours with --columns first=COLUMN,second=COLUMN",
        path.display(),
        names.join(", ")
    );
}

/// Two files of sentences, paired line by line, as WinoBias has them: the numbers in front and the brackets around the words
/// that refer to one another are left out.
///
/// # Errors
/// Files of other lengths, files without lines.
pub fn read_lines(first: &Path, second: &Path) -> anyhow::Result<Vec<Pair>> {
    let read = |path: &Path| -> anyhow::Result<Vec<String>> {
        let text =
            std::fs::read_to_string(path).map_err(|e| BadInput(format!("cannot read {}: {e}", path.display())))?;
        Ok(text.lines().map(plain).filter(|l| !l.is_empty()).collect())
    };
    let (a, b) = (read(first)?, read(second)?);
    if a.len() != b.len() || a.is_empty() {
        crate::bad_input!(
            "{} has {} sentences and {} has {}; they are paired line by line",
            first.display(),
            a.len(),
            second.display(),
            b.len()
        );
    }
    let pair =
        |(i, (first, second))| Pair { row: i + 1, first, second, category: "all".into(), groups: None, label: None };
    Ok(a.into_iter().zip(b).enumerate().map(pair).collect())
}

fn plain(line: &str) -> String {
    let line = line.trim();
    let body = line.trim_start_matches(|c: char| c.is_ascii_digit());
    let body = if body.len() < line.len() && body.starts_with(char::is_whitespace) { body } else { line };
    body.chars().filter(|c| !matches!(c, '[' | ']')).collect::<String>().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str, columns: &str) -> anyhow::Result<Asked> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pairs.csv");
        std::fs::write(&path, text).unwrap();
        let columns = if columns.is_empty() { Columns::default() } else { columns.parse().unwrap() };
        read(&path, &columns)
    }

    #[test]
    fn crows_pairs_and_named_columns_are_read() {
        let crows = "row,sent_more,sent_less,stereo_antistereo,bias_type\n2,\"He, a man\",She,stereo,gender\n";
        let Asked::Pairs(pairs) = of(crows, "").unwrap() else { panic!("no pairs") };
        assert_eq!((pairs[0].first.as_str(), pairs[0].category.as_str(), pairs[0].row), ("He, a man", "gender", 2));
        let mine = "a,b,who a,who b,says\nx,y,A,B,good\n";
        let named = "first=a,second=b,first_group=who a,second_group=who b,label=says";
        let Asked::Pairs(pairs) = of(mine, named).unwrap() else { panic!("no pairs") };
        assert_eq!(pairs[0].groups, Some(("A".into(), "B".into())));
        assert_eq!(pairs[0].label.as_deref(), Some("good"));
        let Asked::Singles(rows) = of("text,group,label\nx,A,1\n", "").unwrap() else { panic!("no texts") };
        assert_eq!((rows[0].group.as_str(), rows[0].label.as_deref()), ("A", Some("1")));
    }

    #[test]
    fn what_is_missing_is_named_with_what_is_there() {
        let error = of("a,b\n1,2\n", "").unwrap_err().to_string();
        assert!(error.contains("`a`, `b`") && error.contains("--columns"), "{error}");
        let error = of("a,b\n1,2\n", "first=c,second=b").unwrap_err().to_string();
        assert!(error.contains("first=c") && error.contains("there are a, b"), "{error}");
        let error = of("first,second\nx,y\n ,y\n", "").unwrap_err().to_string();
        assert!(error.contains(":3: `first` is empty"), "{error}");
        assert!("first:a".parse::<Columns>().is_err() && "third=a".parse::<Columns>().is_err());
    }

    #[test]
    fn lines_lose_their_numbers_and_brackets() {
        assert_eq!(plain("12 [The cook] saw that [she] won."), "The cook saw that she won.");
        assert_eq!(plain("3rd place"), "3rd place");
        let dir = tempfile::tempdir().unwrap();
        let [a, b] = ["a", "b"].map(|n| dir.path().join(n));
        std::fs::write(&a, "1 [He] sat.\n2 [He] ran.\n").unwrap();
        std::fs::write(&b, "1 [She] sat.\n").unwrap();
        assert!(read_lines(&a, &b).unwrap_err().to_string().contains("2 sentences"));
        std::fs::write(&b, "1 [She] sat.\n2 [She] ran.\n").unwrap();
        assert_eq!(read_lines(&a, &b).unwrap()[1].second, "She ran.");
    }
}
