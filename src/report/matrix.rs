//! A confusion matrix as a coloured table: right answers in one colour, wrong ones in another, by their share of the row.

use super::escape;
use crate::eval::metrics::Confusion;
use std::fmt::Write;

/// Above this many labels the numbers would not be read; the largest confusions are listed instead.
const MOST: usize = 14;

pub(super) fn figure(when: &str, confusion: &Confusion) -> String {
    let (total, accuracy) = (confusion.total(), 100.0 * confusion.accuracy());
    let title = if when.is_empty() { String::new() } else { format!("<b>{}</b> · ", escape(when)) };
    let mut out =
        format!("<figure><figcaption>{title}{accuracy:.1} % of {total} right</figcaption><div class=\"scroll\">");
    if confusion.labels.len() <= MOST {
        grid(&mut out, confusion);
    } else {
        largest(&mut out, confusion);
    }
    out.push_str("</div></figure>");
    out
}

fn grid(out: &mut String, confusion: &Confusion) {
    let n = confusion.labels.len();
    let (size, up) = (if n > 6 { " small" } else { "" }, if n > 3 { " class=\"up\"" } else { "" });
    let _ = write!(out, "<table class=\"matrix{size}\"><tr{up}><td></td>");
    for label in &confusion.labels {
        let label = escape(label);
        let _ = write!(out, "<th title=\"{label}\">{label}</th>");
    }
    out.push_str("</tr>");
    for (truth, row) in confusion.matrix.iter().enumerate() {
        let (label, support) = (escape(&confusion.labels[truth]), row.iter().sum::<usize>());
        let _ = write!(out, "<tr><th class=\"row\" title=\"{label}\">{label}</th>");
        for (predicted, count) in row.iter().enumerate() {
            let share = *count as f64 / support.max(1) as f64;
            let colour = if truth == predicted { "good" } else { "bad" };
            let alpha = if *count == 0 { 0.04 } else { 0.12 + 0.58 * share };
            let title = format!("{label}, predicted as {}: {count} of {support}", escape(&confusion.labels[predicted]));
            let small = if n > 6 { String::new() } else { format!("<small>{:.0} %</small>", 100.0 * share) };
            let _ = write!(
                out,
                "<td title=\"{title}\" style=\"background:rgba(var(--{colour}),{alpha:.2})\"><b>{count}</b>{small}</td>"
            );
        }
        out.push_str("</tr>");
    }
    out.push_str("</table>");
}

fn largest(out: &mut String, confusion: &Confusion) {
    let mut wrong: Vec<(usize, usize, usize)> = Vec::new();
    for (truth, row) in confusion.matrix.iter().enumerate() {
        wrong.extend(row.iter().enumerate().filter(|(p, n)| *p != truth && **n > 0).map(|(p, n)| (*n, truth, p)));
    }
    wrong.sort_by_key(|(n, truth, predicted)| (usize::MAX - n, *truth, *predicted));
    let _ = write!(
        out,
        "<table class=\"plain\"><thead><tr><th>largest of {} confusions</th><th>predicted as</th><th class=\"number\">rows</th></tr></thead><tbody>",
        wrong.len()
    );
    for (n, truth, predicted) in wrong.iter().take(10) {
        let (truth, predicted) = (escape(&confusion.labels[*truth]), escape(&confusion.labels[*predicted]));
        let _ = write!(out, "<tr><td>{truth}</td><td>{predicted}</td><td class=\"number\">{n}</td></tr>");
    }
    out.push_str("</tbody></table>");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_hold_counts_and_shares_of_their_row() {
        let labels = ["no".to_owned(), "yes".to_owned()].to_vec();
        let html = figure("After", &Confusion { labels, matrix: vec![vec![9, 1], vec![0, 0]] });
        assert!(html.contains("<b>After</b> · 90.0 % of 10 right"));
        assert!(html.contains("title=\"no, predicted as yes: 1 of 10\" style=\"background:rgba(var(--bad),0.18)\"><b>1</b><small>10 %</small>"));
        assert!(html.contains("yes, predicted as no: 0 of 0"));
    }

    #[test]
    fn many_labels_become_a_list_of_the_largest_confusions() {
        let n = MOST + 1;
        let labels = (0..n).map(|i| format!("l{i}")).collect();
        let mut matrix = vec![vec![0; n]; n];
        (matrix[3][4], matrix[5][6], matrix[2][2]) = (2, 7, 50);
        let html = figure("", &Confusion { labels, matrix });
        assert!(html.contains("largest of 2 confusions") && !html.contains("<b>"));
        let (first, second) =
            (html.find("<td>l5</td><td>l6</td>").unwrap(), html.find("<td>l3</td><td>l4</td>").unwrap());
        assert!(first < second);
    }
}
