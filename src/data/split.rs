//! Train, validation, test, folds: seeded, stratified by label, and the same text never on two sides.
//!
//! - [`files`]: a file of rows → a file for each part

pub mod files;

use super::batch::{Row, Target};
use super::example::Example;
use super::labels::Labels;
use crate::rng;
use std::collections::BTreeMap;

/// Which part each row belongs to: 0 for the rest, then one part a share. A part gets at least one group of rows when
/// there are enough.
///
/// - `keys`: rows with the same key stay together
/// - `strata`: rows are dealt out stratum by stratum, so that each part has its share of each
/// - `shares`: of parts 1, 2, ...; their sum is below 1
pub fn parts<K: Ord>(keys: &[K], strata: &[usize], shares: &[f64], seed: u64) -> Vec<usize> {
    assert!(shares.iter().all(|s| *s >= 0.0) && shares.iter().sum::<f64>() < 1.0, "shares {shares:?}");
    let n = shares.len() + 1;
    let choose = |done: &[usize], rows: usize| {
        // The part that is furthest behind its share of the rows dealt out so far; the rest when none is.
        let behind = |part: usize| shares[part - 1] * (done.iter().sum::<usize>() + rows) as f64 - done[part] as f64;
        let neediest = (1..n).max_by(|a, b| behind(*a).total_cmp(&behind(*b)).then(b.cmp(a)));
        neediest.filter(|part| behind(*part) >= rows as f64 / 2.0).unwrap_or(0)
    };
    let mut part_of = deal(keys, strata, seed, choose, n);
    for part in (1..n).filter(|p| shares[p - 1] > 0.0) {
        if part_of.contains(&part) {
            continue;
        }
        // Too few rows for the share to come up: the last of the rest goes, if something is left.
        let rest: Vec<usize> = (0..keys.len()).filter(|row| part_of[*row] == 0).collect();
        if let Some(last) = rest.last().filter(|last| rest.iter().any(|row| keys[*row] != keys[**last])) {
            rest.iter().filter(|row| keys[**row] == keys[*last]).for_each(|row| part_of[*row] = part);
        }
    }
    part_of
}

/// Which of `k` folds each row belongs to.
pub fn folds<K: Ord>(keys: &[K], strata: &[usize], k: usize, seed: u64) -> Vec<usize> {
    assert!(k > 1, "{k} folds");
    deal(keys, strata, seed, |done, _| (0..k).min_by_key(|fold| done[*fold]).unwrap_or(0), k)
}

/// Gives each group of equal keys to the part that `choose` names, from how many rows each part has and the group's size.
fn deal<K: Ord>(
    keys: &[K],
    strata: &[usize],
    seed: u64,
    choose: impl Fn(&[usize], usize) -> usize,
    n: usize,
) -> Vec<usize> {
    let mut groups: BTreeMap<&K, Vec<usize>> = BTreeMap::new();
    for (row, key) in keys.iter().enumerate() {
        groups.entry(key).or_default().push(row);
    }
    // In the order of their first rows, so that the split does not depend on how texts sort.
    let mut groups: Vec<Vec<usize>> = groups.into_values().collect();
    groups.sort();
    let mut by_stratum: BTreeMap<usize, Vec<&Vec<usize>>> = BTreeMap::new();
    for at in rng::shuffled(groups.len(), seed, rng::stream("split", 0)) {
        by_stratum.entry(strata[groups[at][0]]).or_default().push(&groups[at]);
    }
    let (mut part_of, mut done) = (vec![0; keys.len()], vec![0; n]);
    for group in by_stratum.into_values().flatten() {
        let part = choose(&done, group.len());
        done[part] += group.len();
        group.iter().for_each(|row| part_of[*row] = part);
    }
    part_of
}

/// Keys and strata of examples: the text that must not be on two sides, and the label.
pub fn keys(rows: &[(usize, Example)]) -> (Vec<String>, Vec<usize>) {
    let labels = Labels::of(rows);
    let stratum = |e: &Example| match e {
        Example::Classify { label, .. } => labels.index(label).map_or(0, |i| i as usize),
        Example::Judged { wanted, .. } => usize::from(*wanted),
        _ => 0,
    };
    rows.iter().map(|(_, e)| (normal(&e.text()), stratum(e))).unzip()
}

/// Row numbers to learn from and to hold out, both ascending.
pub fn hold_out(rows: &[(usize, Example)], share: f64, seed: u64) -> (Vec<usize>, Vec<usize>) {
    let (keys, strata) = keys(rows);
    let part = parts(&keys, &strata, &[share], seed);
    (0..rows.len()).partition(|row| part[*row] == 0)
}

/// As [`hold_out`], for rows of ids: windows of a text file, and pre-tokenized rows.
pub fn hold_out_rows(rows: &[Row], share: f64, seed: u64) -> (Vec<usize>, Vec<usize>) {
    let (keys, strata) = keys_of_rows(rows);
    let part = parts(&keys, &strata, &[share], seed);
    (0..rows.len()).partition(|row| part[*row] == 0)
}

/// As [`keys`], for rows of ids.
pub fn keys_of_rows(rows: &[Row]) -> (Vec<String>, Vec<usize>) {
    let class = |row: &Row| match row.target {
        Target::Class(class) => class as usize,
        _ => 0,
    };
    rows.iter().map(|r| (format!("{:?}", r.ids), class(r))).unzip()
}

/// Texts that differ in case and spaces alone are the same.
pub(super) fn normal(text: &str) -> String {
    text.split_whitespace().map(str::to_lowercase).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labelled(n: usize) -> Vec<(usize, Example)> {
        let label = |i: usize| if i.is_multiple_of(5) { "rare" } else { "often" };
        let row = |i| (i, Example::Classify { text: format!("text {i}"), pair: None, label: label(i).into() });
        (0..n).map(row).collect()
    }

    #[test]
    fn a_split_keeps_the_shares_of_the_labels() {
        let rows = labelled(1000);
        let (train, val) = hold_out(&rows, 0.1, 3);
        assert_eq!((train.len(), val.len()), (900, 100));
        assert_eq!(val.iter().filter(|i| **i % 5 == 0).count(), 20);
        assert_eq!(hold_out(&rows, 0.1, 3).1, val);
        assert_ne!(hold_out(&rows, 0.1, 4).1, val);
    }

    #[test]
    fn three_parts_get_their_shares() {
        let (keys, strata) = keys(&labelled(500));
        let part = parts(&keys, &strata, &[0.2, 0.1], 0);
        let count = |p| part.iter().filter(|x| **x == p).count();
        assert_eq!((count(0), count(1), count(2)), (350, 100, 50));
    }

    #[test]
    fn the_same_text_is_never_on_two_sides() {
        let row =
            |i: usize| (i, Example::Text(format!("{} {}", if i.is_multiple_of(2) { "Text" } else { " text " }, i / 4)));
        let rows: Vec<_> = (0..400).map(row).collect();
        let (train, val) = hold_out(&rows, 0.25, 0);
        assert_eq!(val.len(), 100);
        assert!(train.iter().all(|t| val.iter().all(|v| t / 4 != v / 4)));
    }

    #[test]
    fn rows_of_ids_are_held_out_by_class() {
        let row = |i: u32| Row::new(vec![i / 2, 7], Target::Class(u32::from(i % 4 < 2)), i as usize);
        let rows: Vec<Row> = (0..80).map(row).collect();
        let (train, val) = hold_out_rows(&rows, 0.25, 0);
        assert_eq!(val.len(), 20);
        assert_eq!(val.iter().filter(|i| rows[**i].target == Target::Class(1)).count(), 10);
        assert!(val.iter().all(|v| train.iter().all(|t| rows[*t].ids != rows[*v].ids)));
    }

    #[test]
    fn folds_are_even_and_stratified() {
        let (keys, strata) = keys(&labelled(100));
        let fold = folds(&keys, &strata, 5, 1);
        for f in 0..5 {
            let rows: Vec<usize> = (0..100).filter(|i| fold[*i] == f).collect();
            assert_eq!((rows.len(), rows.iter().filter(|i| **i % 5 == 0).count()), (20, 4));
        }
    }

    #[test]
    fn few_rows_leave_something_on_each_side() {
        for n in 2..10 {
            let rows: Vec<_> = (0..n).map(|i| (i, Example::Text(i.to_string()))).collect();
            let (train, val) = hold_out(&rows, 0.1, 0);
            assert!(!train.is_empty() && !val.is_empty(), "{n} rows: {} and {}", train.len(), val.len());
        }
    }
}
