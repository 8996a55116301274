//! The labels of a classification, and the index of each.

use super::example::Example;
use super::schema::shortened;
use std::collections::BTreeSet;

/// Names of labels; a label's place is its index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Labels(Vec<String>);

impl Labels {
    /// The labels that stand in the rows, each once: whole numbers by size, names by alphabet.
    pub fn of(rows: &[(usize, Example)]) -> Self {
        let seen: BTreeSet<&String> = rows
            .iter()
            .filter_map(|(_, e)| match e {
                Example::Classify { label, .. } => Some(label),
                _ => None,
            })
            .collect();
        Self::in_order(seen.into_iter().cloned())
    }

    /// Names of which each stands once: whole numbers by size, names by alphabet.
    pub fn in_order(names: impl Iterator<Item = String>) -> Self {
        let mut names: Vec<String> = names.collect();
        names.sort();
        if names.iter().all(|n| n.parse::<i64>().is_ok()) {
            names.sort_by_key(|n| n.parse::<i64>().ok());
        }
        Self(names)
    }

    /// Labels that a model already has, by index.
    pub fn known(names: &[String]) -> Self {
        Self(names.to_vec())
    }

    /// Their names, by index.
    pub fn names(&self) -> &[String] {
        &self.0
    }

    /// The index of a label. A number also finds the `LABEL_n` of a model whose labels were never named.
    ///
    /// # Errors
    /// The label, and the known ones.
    pub fn index(&self, label: &str) -> Result<u32, String> {
        let named = || self.0.iter().position(|n| n == label);
        let unnamed = || {
            let name = format!("LABEL_{}", label.parse::<u32>().ok()?);
            self.0.iter().position(|n| *n == name)
        };
        named().or_else(unnamed).map(|i| i as u32).ok_or_else(|| {
            format!("label `{label}` was never seen in training; the known labels are {}", shortened(&self.0, 20))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(labels: &[&str]) -> Labels {
        let row = |l: &&str| (1, Example::Classify { text: String::new(), pair: None, label: (*l).into() });
        Labels::of(&labels.iter().map(row).collect::<Vec<_>>())
    }

    #[test]
    fn labels_are_unique_and_in_order() {
        assert_eq!(of(&["b", "a", "b"]).names(), ["a", "b"]);
        assert_eq!(of(&["10", "9", "-1"]).names(), ["-1", "9", "10"]);
        assert_eq!(of(&["10", "9", "x"]).names(), ["10", "9", "x"]);
    }

    #[test]
    fn a_label_never_seen_names_the_known_ones() {
        let labels = of(&["no", "yes"]);
        assert_eq!(labels.index("yes"), Ok(1));
        let error = labels.index("maybe").unwrap_err();
        assert_eq!(error, "label `maybe` was never seen in training; the known labels are no, yes");
    }

    #[test]
    fn numbers_find_the_labels_of_a_model_that_has_no_names() {
        let labels = Labels::known(&["LABEL_0".into(), "LABEL_1".into()]);
        assert_eq!(labels.index("1"), Ok(1));
        assert!(labels.index("2").is_err());
    }
}
