//! A run or a benchmark → one self-contained HTML page: no script, no network, light and dark, readable on a phone.
//!
//! - [`curve`]: losses and other numbers over steps as SVG
//! - [`run`]: a RUN folder, or a verb's JSON, as what a page shows
//! - [`matrix`]: a confusion matrix as a coloured table
//! - [`bars`]: measurements side by side as SVG; [`reliability`]: accuracy over confidence
//! - [`judgement`]: an evaluation; [`beside`]: audit, verification, latency, folds, sweep; [`gap`]: when held-out loss parted
//! - [`card`]: README.md of a RUN, a model card

mod bars;
mod beside;
pub mod card;
mod curve;
mod gap;
mod judgement;
mod matrix;
mod reliability;
pub mod run;

pub use bars::{Bar, Bars};

use crate::eval::metrics::Confusion;
use crate::eval::metrics::calibration::Bin;
use serde::{Deserialize, Serialize};
use std::fmt::Write;

/// What a page shows; what is empty is left out.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ReportData {
    /// Headline.
    pub title: String,
    /// One line below it.
    pub subtitle: String,
    /// Name and value, shown large: the numbers one came for.
    pub facts: Vec<(String, String)>,
    /// (step, loss) while learning.
    pub loss: Vec<(usize, f64)>,
    /// (step, loss) on held-out rows.
    pub val: Vec<(usize, f64)>,
    /// A sentence below the two; may be empty.
    pub loss_note: String,
    /// What else was measured over the steps.
    pub curves: Vec<Curve>,
    /// Predictions of the base.
    pub confusion_before: Option<Confusion>,
    /// Predictions after tuning.
    pub confusion_after: Option<Confusion>,
    /// How often predictions of a confidence are right.
    pub calibration: Vec<Bin>,
    /// A sentence below; may be empty.
    pub calibration_note: String,
    /// Measurements side by side.
    pub bars: Vec<Bars>,
    /// Numbers in rows: verification, latency, classes.
    pub tables: Vec<Table>,
    /// What was asked, what was answered.
    pub samples: Vec<(String, String)>,
    /// Commands to go on with.
    pub next: Vec<String>,
}

/// One number over the steps.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Curve {
    /// Headline.
    pub title: String,
    /// (step, value).
    pub points: Vec<(usize, f64)>,
}

/// Rows of text; columns of numbers are set flush right, and `pass` and `fail` are coloured.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Table {
    /// Headline.
    pub title: String,
    /// Names of the columns.
    pub columns: Vec<String>,
    /// Cells, row by row.
    pub rows: Vec<Vec<String>>,
    /// A sentence below; may be empty.
    pub note: String,
}

/// The page.
pub fn html(data: &ReportData) -> String {
    let mut body = String::new();
    let _ = write!(body, "<header><h1>{}</h1>", escape(&data.title));
    if !data.subtitle.is_empty() {
        let _ = write!(body, "<p>{}</p>", escape(&data.subtitle));
    }
    body.push_str("</header>");
    if !data.facts.is_empty() {
        body.push_str("<section class=\"facts\" role=\"list\">");
        for (name, value) in &data.facts {
            let class = if value.chars().count() > 16 { " class=\"long\"" } else { "" };
            let _ =
                write!(body, "<div role=\"listitem\"><dt>{}</dt><dd{class}>{}</dd></div>", escape(name), escape(value));
        }
        body.push_str("</section>");
    }
    if let Some(curve) = curve::figure(&data.loss, &data.val) {
        let _ = write!(body, "<section><h2>Loss</h2>{curve}");
        note(&mut body, &data.loss_note);
        body.push_str("</section>");
    }
    let small: Vec<String> = data
        .curves
        .iter()
        .filter_map(|c| {
            let figure = curve::small(&c.title, &c.points)?;
            Some(format!("<figure><figcaption>{}</figcaption>{figure}</figure>", escape(&c.title)))
        })
        .collect();
    if !small.is_empty() {
        let _ = write!(body, "<section><h2>Over the steps</h2><div class=\"pair\">{}</div></section>", small.concat());
    }
    let confusions = [("Before", &data.confusion_before), ("After", &data.confusion_after)];
    let alone = data.confusion_before.is_none() || data.confusion_after.is_none();
    let figures: Vec<String> = confusions
        .into_iter()
        .filter_map(|(when, c)| Some(matrix::figure(if alone { "" } else { when }, c.as_ref()?)))
        .collect();
    if !figures.is_empty() {
        let note = "Rows are the truth, columns the prediction; a percentage is a share of its row.";
        let _ = write!(
            body,
            "<section><h2>What was predicted</h2><div class=\"pair\">{}</div><p class=\"note\">{note}</p></section>",
            figures.concat()
        );
    }
    if let Some(figure) = reliability::figure(&data.calibration) {
        let _ = write!(body, "<section><h2>Calibration</h2><div class=\"pair\"><figure>{figure}</figure><div>");
        note(&mut body, &data.calibration_note);
        body.push_str("</div></div></section>");
    }
    for bars in &data.bars {
        if let Some(figure) = bars::figure(bars) {
            let _ = write!(body, "<section><h2>{}</h2>{figure}", escape(&bars.title));
            note(&mut body, &bars.note);
            body.push_str("</section>");
        }
    }
    data.tables.iter().for_each(|t| table(&mut body, t));
    if !data.samples.is_empty() {
        body.push_str("<section><h2>Samples</h2>");
        for (asked, said) in &data.samples {
            let (asked, said) = (escape(asked), escape(said));
            let _ =
                write!(body, "<div class=\"sample\"><p class=\"asked\">{asked}</p><p class=\"said\">{said}</p></div>");
        }
        body.push_str("</section>");
    }
    if !data.next.is_empty() {
        body.push_str("<section><h2>Next</h2><ol class=\"next\">");
        data.next.iter().for_each(|command| {
            let _ = write!(body, "<li><code>{}</code></li>", escape(command));
        });
        body.push_str("</ol></section>");
    }
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>{}</title>\n<style>\n{}</style>\n</head>\n<body>\n<main>\n{body}\n\
         <footer>edgeft {}</footer>\n</main>\n</body>\n</html>\n",
        escape(&data.title),
        include_str!("report/style.css"),
        env!("CARGO_PKG_VERSION"),
    )
}

fn note(out: &mut String, text: &str) {
    if !text.is_empty() {
        let _ = write!(out, "<p class=\"note\">{}</p>", escape(text));
    }
}

fn table(out: &mut String, table: &Table) {
    let cell = |row: &Vec<String>, c: usize| row.get(c).cloned().unwrap_or_default();
    let width = table.rows.iter().map(Vec::len).chain([table.columns.len()]).max().unwrap_or(0);
    let numeric: Vec<bool> = (0..width)
        .map(|c| {
            table.rows.iter().any(|r| is_number(&cell(r, c)))
                && table.rows.iter().all(|r| is_number(&cell(r, c)) || is_blank(&cell(r, c)))
        })
        .collect();
    let class = |c: usize, text: &str| match (numeric[c], text.chars().count() > 40) {
        (true, _) => " class=\"number\"",
        (false, true) => " class=\"words\"",
        (false, false) => "",
    };
    let _ = write!(
        out,
        "<section><h2>{}</h2><div class=\"scroll\"><table class=\"plain\"><thead><tr>",
        escape(&table.title)
    );
    for c in 0..width {
        let name = table.columns.get(c).map_or("", String::as_str);
        let _ = write!(out, "<th{}>{}</th>", class(c, ""), escape(name));
    }
    out.push_str("</tr></thead><tbody>");
    for row in &table.rows {
        out.push_str("<tr>");
        for c in 0..width {
            let text = cell(row, c);
            let shown = match text.as_str() {
                "pass" | "fail" => format!("<span class=\"chip {text}\">{text}</span>"),
                _ => escape(&text),
            };
            let _ = write!(out, "<td{}>{shown}</td>", class(c, &text));
        }
        out.push_str("</tr>");
    }
    out.push_str("</tbody></table></div>");
    note(out, &table.note);
    out.push_str("</section>");
}

/// A number, possibly with a sign, a ≤, and a unit behind it.
fn is_number(text: &str) -> bool {
    let text = text.trim().trim_start_matches(['-', '−', '+', '≤', '≥', '<', '>', ' ']);
    text.starts_with(|c: char| c.is_ascii_digit()) && text.split_whitespace().count() <= 4
}

fn is_blank(text: &str) -> bool {
    matches!(text.trim(), "" | "-" | "–" | "—" | "n/a")
}

/// Text as HTML text or attribute value.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            // HTML has no way to write other control characters.
            c if c.is_control() && !matches!(c, '\n' | '\t') => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn confusion(matrix: &[&[usize]]) -> Confusion {
        let labels = (0..matrix.len()).map(|i| format!("class <{i}>")).collect();
        Confusion { labels, matrix: matrix.iter().map(|r| r.to_vec()).collect() }
    }

    fn full() -> ReportData {
        ReportData {
            title: "<script>alert(1)</script>".into(),
            subtitle: "a \"b\" & c".into(),
            facts: vec![("accuracy".into(), "0.91 <b>".into())],
            loss: (1..=60).map(|s| (s, 4.0 - s as f64 / 16.0)).collect(), // exact in binary: serde_json may miss the last bit
            val: vec![(20, 0.9), (40, 0.5), (60, 0.6)],
            loss_note: "<u>".into(),
            calibration: vec![Bin { count: 4, confidence: 0.75, accuracy: 0.5 }],
            calibration_note: "<i>".into(),
            curves: vec![Curve { title: "lr <&>".into(), points: vec![(1, 0.5), (2, 0.25)] }],
            confusion_before: Some(confusion(&[&[3, 7], &[5, 5]])),
            confusion_after: Some(confusion(&[&[9, 1], &[0, 10]])),
            bars: vec![Bars {
                title: "<u>speed".into(),
                unit: "<b>".into(),
                rows: vec![Bar { label: "<i>".into(), group: "<u>".into(), value: 1.5, bound: Some(1.75) }],
                note: "<u>".into(),
            }],
            tables: vec![Table {
                title: "Gate".into(),
                columns: vec!["type".into(), "mean KL".into(), "gate".into()],
                rows: vec![
                    vec!["q8_0".into(), "0.001".into(), "pass".into()],
                    vec!["q4_0".into(), "—".into(), "fail".into()],
                ],
                note: "<i>".into(),
            }],
            samples: vec![("<u>asked".into(), "said & done\u{7}".into())],
            next: vec!["edgeft run 'x' > y".into()],
        }
    }

    #[test]
    fn nothing_that_is_given_becomes_markup() {
        let page = html(&full());
        for raw in ["<script", "<b>\"", "<i>", "<u>", "class <0>", "\u{7}"] {
            assert!(!page.contains(raw), "{raw}");
        }
        assert!(page.contains("&lt;script&gt;alert(1)&lt;/script&gt;"));
        assert!(page.contains("edgeft run &#39;x&#39; &gt; y"));
    }

    #[test]
    fn the_page_asks_nobody_for_anything() {
        let page = html(&full());
        for far in ["http", "//", "src=", "href=", "@import", "url("] {
            assert!(!page.contains(far), "{far}");
        }
    }

    #[test]
    fn every_tag_that_opens_closes() {
        let page = html(&full());
        for tag in [
            "main", "header", "section", "div", "table", "tr", "td", "th", "svg", "text", "figure", "p", "ol", "li",
            "dd",
        ] {
            let opened = page.matches(&format!("<{tag}>")).count() + page.matches(&format!("<{tag} ")).count();
            assert_eq!(opened, page.matches(&format!("</{tag}>")).count(), "{tag}");
        }
    }

    #[test]
    fn what_is_empty_is_left_out() {
        let page = html(&ReportData { title: "t".into(), ..ReportData::default() });
        assert!(!page.contains("<section") && !page.contains("<h2>"));
    }

    #[test]
    fn numbers_stand_flush_right_and_verdicts_are_coloured() {
        let page = html(&full());
        assert!(page.contains("<td class=\"number\">0.001</td>") && page.contains("<td class=\"number\">—</td>"));
        assert!(page.contains("<td>q8_0</td>") && page.contains("<span class=\"chip pass\">pass</span>"));
        assert!(is_number("−1.5 ms") && is_number("≤ 0.02") && is_number("3 %") && !is_number("q8_0"));
    }

    #[test]
    fn data_survives_a_round_trip_through_json() {
        let data = full();
        let back: ReportData = serde_json::from_str(&serde_json::to_string(&data).unwrap()).unwrap();
        assert_eq!(back, data);
    }
}
