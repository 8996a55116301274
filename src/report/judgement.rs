//! `eval.json` of a RUN, as what a page shows of it.

use super::run::plain;
use super::{ReportData, Table};
use crate::eval::Worst;
use crate::eval::metrics::Confusion;
use crate::eval::metrics::calibration::Bin;
use serde_json::Value;

/// Metrics by their names in JSON, and how a page writes them.
const NAMES: [(&str, &str); 15] = [
    ("accuracy", "Accuracy"),
    ("macro_f1", "Macro F1"),
    ("auroc", "AUROC"),
    ("ece", "Calibration error"),
    ("exact_match", "Exact match"),
    ("f1", "F1"),
    ("perplexity", "Perplexity"),
    ("rouge_l", "ROUGE-L"),
    ("chrf", "chrF"),
    ("accuracy_per_token", "Accuracy a token"),
    ("margin", "Margin, nats"),
    ("accuracy_at_1", "Accuracy at 1"),
    ("recall_at_10", "Recall at 10"),
    ("mrr", "Mean reciprocal rank"),
    ("spearman", "Spearman's correlation"),
];

/// Adds what the evaluation holds.
pub(super) fn add(data: &mut ReportData, eval: &Value) {
    for name in
        ["accuracy", "macro_f1", "exact_match", "f1", "perplexity", "margin", "accuracy_at_1", "mrr", "spearman"]
    {
        if let Some(v) = eval[name].as_f64() {
            data.facts.push((format!("{} (eval)", name.replace('_', " ")), format!("{v:.4}")));
        }
    }
    data.confusion_after = confusion(eval);
    data.calibration = serde_json::from_value::<Vec<Bin>>(eval["calibration"]["bins"].clone()).unwrap_or_default();
    data.calibration_note = calibration_note(&eval["calibration"]);
    data.tables.extend(metrics(eval));
    data.tables.extend(per_class(eval));
    data.tables.extend(unanswerable(&eval["unanswerable"]));
    data.tables.extend(against(&eval["against"]));
    data.tables.extend(worst(eval));
}

/// Counts and labels, where they fit one another.
pub(super) fn confusion(eval: &Value) -> Option<Confusion> {
    let matrix: Vec<Vec<usize>> = serde_json::from_value(eval["confusion"].clone()).ok()?;
    let labels: Vec<String> = serde_json::from_value(eval["labels"].clone()).ok()?;
    let square = labels.len() == matrix.len() && matrix.iter().all(|r| r.len() == labels.len());
    square.then_some(Confusion { labels, matrix })
}

fn strings(names: &[&str]) -> Vec<String> {
    names.iter().map(|n| (*n).to_owned()).collect()
}

fn metrics(eval: &Value) -> Option<Table> {
    let row = |(key, name): &(&str, &str)| {
        let ci = eval["ci95"].get(key)?;
        Some(vec![(*name).to_owned(), plain(&ci["value"]), plain(&ci["low"]), plain(&ci["high"])])
    };
    let rows: Vec<_> = NAMES.iter().filter_map(row).collect();
    let from = eval["data"].as_str().map_or(String::new(), |d| format!(" of {}", super::run::last_part(d)));
    (!rows.is_empty()).then(|| Table {
        title: "Metrics".into(),
        columns: strings(&["metric", "value", "from", "to"]),
        rows,
        note: format!(
            "On {} rows{from}. From and to bound 95 % of 1,000 resamples of the rows: where another set of that size would likely put it.",
            plain(&eval["examples"])
        ),
    })
}

fn per_class(eval: &Value) -> Option<Table> {
    let classes = eval["per_class"].as_array()?;
    let keys = ["label", "precision", "recall", "f1", "support"];
    Some(Table {
        title: "Labels".into(),
        columns: strings(&["label", "precision", "recall", "F1", "rows"]),
        rows: classes.iter().map(|c| keys.iter().map(|k| plain(&c[k])).collect()).collect(),
        note: String::new(),
    })
}

fn calibration_note(c: &Value) -> String {
    if c.is_null() {
        return String::new();
    }
    let fitted = match c["temperature"].as_f64() {
        Some(t) => format!(
            " Dividing the logits by {t:.3}, fitted on {}, changes the error to {}.",
            plain(&c["fitted_on"]),
            plain(&c["ece_at_temperature"]["value"])
        ),
        None => String::new(),
    };
    format!(
        "Bars on the dashed line: of predictions made with 80 % confidence, 80 % are right. Below it the model is too sure of itself; \
         pale bars hold few rows. The mean distance, weighted by rows, is {}.{fitted}",
        plain(&c["ece"])
    )
}

fn unanswerable(u: &Value) -> Option<Table> {
    let part = |name: &str, key: &str| {
        let p = u.get(key)?;
        Some(vec![name.to_owned(), plain(&p["exact_match"]["value"]), plain(&p["f1"]["value"]), plain(&p["total"])])
    };
    let rows: Vec<_> =
        [part("with an answer", "has_answer"), part("without one", "no_answer")].into_iter().flatten().collect();
    (!rows.is_empty()).then(|| Table {
        title: "Questions with and without an answer".into(),
        columns: strings(&["questions", "exact match", "F1", "rows"]),
        rows,
        note: match u["threshold"].as_f64() {
            Some(t) => format!(
                "A question stays unanswered where its chance of no answer is above {t:.4} ({}).",
                plain(&u["threshold_from"])
            ),
            None => String::new(),
        },
    })
}

fn against(a: &Value) -> Option<Table> {
    let metrics = a["metrics"].as_object()?;
    let keys = ["subject", "against", "difference", "low", "high", "p", "test"];
    let row = |(name, d): (&String, &Value)| {
        std::iter::once(name.replace('_', " ")).chain(keys.iter().map(|k| plain(&d[k]))).collect()
    };
    Some(Table {
        title: format!("Against {}", super::run::last_part(a["model"].as_str().unwrap_or_default())),
        columns: strings(&["metric", "this", "the other", "difference", "from", "to", "p", "test"]),
        rows: metrics.iter().map(row).collect(),
        note: "Both models on the same rows; p is the chance of such a difference if they were alike.".into(),
    })
}

fn worst(eval: &Value) -> Option<Table> {
    let worst: Vec<Worst> = serde_json::from_value(eval["worst"].clone()).ok()?;
    let predicts = worst.iter().any(|w| !w.predicted.is_empty());
    let row = |w: &Worst| {
        let mut row = vec![w.row.to_string(), w.text.clone()];
        if predicts {
            row.extend([w.right.clone(), w.predicted.clone()]);
        }
        row.push(format!("{:.3}", w.badness));
        row
    };
    let (columns, note) = match (predicts, eval["task"].as_str()) {
        (true, Some("classify")) => (
            strings(&["row", "text", "right", "predicted", "confidence"]),
            "The wrong predictions that the model was surest of.",
        ),
        (true, _) => (
            strings(&["row", "question", "right", "answered", "1 - F1"]),
            "Answers that share fewest words with the right one.",
        ),
        (false, _) => (strings(&["row", "text", "nats a token"]), "The texts that the model finds least likely."),
    };
    (!worst.is_empty()).then(|| Table {
        title: "Worst errors".into(),
        columns,
        rows: worst.iter().map(row).collect(),
        note: note.into(),
    })
}
