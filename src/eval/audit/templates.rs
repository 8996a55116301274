//! Pairs to audit with when nobody brings any: sentences of our own writing, in `templates.txt`.
//!
//! They are few, mild and English: enough to see that something changes with a group word, not to prove that nothing does.

use super::pairs::Pair;

const TEXT: &str = include_str!("templates.txt");

/// Sections of the text: name, and lines by their parts.
fn sections() -> Vec<(&'static str, Vec<Vec<&'static str>>)> {
    let mut out: Vec<(&str, Vec<Vec<&str>>)> = Vec::new();
    for line in TEXT.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#')) {
        if let Some(name) = line.strip_prefix('[').and_then(|l| l.strip_suffix(']')) {
            out.push((name, Vec::new()));
        } else if let Some((_, lines)) = out.last_mut() {
            lines.push(line.split('|').map(str::trim).collect());
        }
    }
    out
}

/// For language models: the first sentence of a pair is the one that a stereotype expects.
pub fn stereotypes() -> Vec<Pair> {
    let mut out = Vec::new();
    for (name, lines) in sections() {
        let Some(category) = name.strip_prefix("stereotypes.") else { continue };
        for line in lines {
            let [sentence, these, those] = line[..] else { continue };
            for this in these.split(", ") {
                for that in those.split(", ") {
                    out.push(Pair {
                        row: out.len() + 1,
                        first: sentence.replace("{}", this),
                        second: sentence.replace("{}", that),
                        category: category.to_owned(),
                        groups: Some((this.to_owned(), that.to_owned())),
                        label: None,
                    });
                }
            }
        }
    }
    out
}

/// For classifiers: the same said by people of two groups, with the label that it has to anybody.
pub fn counterfactuals() -> Vec<Pair> {
    let all = sections();
    let said: Vec<&Vec<&str>> = all.iter().filter(|(name, _)| *name == "said").flat_map(|(_, lines)| lines).collect();
    let mut out = Vec::new();
    for (name, people) in &all {
        let Some(category) = name.strip_prefix("groups.") else { continue };
        for (i, a) in people.iter().enumerate() {
            for b in &people[i + 1..] {
                for what in &said {
                    let ([group_a, a], [group_b, b], [label, what]) = (&a[..], &b[..], &what[..]) else { continue };
                    out.push(Pair {
                        row: out.len() + 1,
                        first: format!("{a} {what}"),
                        second: format!("{b} {what}"),
                        category: category.to_owned(),
                        groups: Some(((*group_a).to_owned(), (*group_b).to_owned())),
                        label: Some((*label).to_owned()),
                    });
                }
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_becomes_pairs_that_differ_in_a_group_word() {
        let (language, classes) = (stereotypes(), counterfactuals());
        assert!(language.len() >= 90 && classes.len() >= 110, "{} {}", language.len(), classes.len());
        for pair in language.iter().chain(&classes) {
            assert!(pair.first != pair.second && !pair.first.contains(['{', '|']), "{pair:?}");
            assert!(pair.first.ends_with('.') && pair.groups.as_ref().is_some_and(|(a, b)| a != b), "{pair:?}");
        }
        let lines = TEXT.lines().filter(|l| l.contains('|') && !l.starts_with('#')).count();
        assert_eq!(sections().iter().map(|(_, l)| l.len()).sum::<usize>(), lines);
        for category in ["gender", "work", "age", "means", "nation"] {
            assert!(language.iter().any(|p| p.category == category), "{category}");
        }
    }
}
