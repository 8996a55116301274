//! A RUN folder, or the JSON of a verb, as what a page shows.

use super::judgement::{self, confusion};
use super::{Curve, ReportData, Table, beside, gap};
use crate::error::BadInput;
use crate::tune::run_folder::RunFile;
use serde_json::Value;
use std::path::Path;

/// What a RUN folder holds by now: its curves, its settings, and its last evaluation if there was one.
///
/// # Errors
/// [`BadInput`] when `tune.toml` or `metrics.jsonl` is missing or not what it should be, with the line.
pub fn of_run(run: &Path) -> anyhow::Result<ReportData> {
    let file = RunFile::read(run)?;
    let path = run.join("metrics.jsonl");
    let text = std::fs::read_to_string(&path).map_err(|e| BadInput(format!("cannot read {}: {e}", path.display())))?;
    let mut lines = Vec::new();
    for (i, line) in text.lines().enumerate() {
        let value: Value = serde_json::from_str(line)
            .map_err(|e| BadInput(format!("{}:{}: not valid JSON: {e}", path.display(), i + 1)))?;
        lines.push(value);
    }
    let of = |name: &str| -> Vec<(usize, f64)> {
        lines.iter().filter_map(|l| Some((l["step"].as_u64()? as usize, l[name].as_f64()?))).collect()
    };
    let (loss, val) = (of("loss"), of("val_loss"));
    let curve = |title: &str, points: Vec<(usize, f64)>| Curve { title: title.to_owned(), points };
    let mut data = ReportData {
        title: format!("{} tuned on {}", last_part(&file.run.model), last_part(&file.run.data)),
        subtitle: run.display().to_string(),
        curves: vec![
            curve("Learning rate", of("lr")),
            curve("Norm of the gradient", of("grad_norm")),
            curve("Tokens per second", rates(&lines)),
        ]
        .into_iter()
        .chain(
            // What only some objectives have.
            [
                ("Margin of the rewards", "rewards_margin"),
                ("Margin of the rewards, held out", "val_rewards_margin"),
                ("Answers told right", "rewards_accuracy"),
                ("Drift from the base, nats", "kl"),
                ("Cosine with the own text", "cosine_own"),
                ("Cosine with the nearest other text", "cosine_other"),
            ]
            .into_iter()
            .map(|(title, name)| curve(title, of(name)))
            .filter(|curve| !curve.points.is_empty()),
        )
        .collect(),
        next: vec![
            format!("edgeft eval {} --data test.jsonl", run.display()),
            format!("edgeft quantize {} --type q4_k_m --out model.gguf", run.display()),
        ],
        ..ReportData::default()
    };
    let mut fact = |name: &str, value: String| data.facts.push((name.to_owned(), value));
    if let Some(method) = file.tune.method {
        fact("Method", format!("{method:?}").to_lowercase());
    }
    fact("Steps", loss.last().map_or(0, |l| l.0).to_string());
    if let Some((_, last)) = loss.last() {
        fact("Last loss", format!("{last:.4}"));
    }
    if let Some((step, best)) = val.iter().min_by(|a, b| a.1.total_cmp(&b.1)) {
        fact("Best held-out loss", format!("{best:.4} (step {step})"));
    }
    let last = |name: &str| lines.iter().rev().find_map(|l| l[name].as_f64());
    if let (Some(tokens), Some(seconds)) = (last("tokens"), last("seconds")) {
        fact("Tokens per second", format!("{:.0}", tokens / seconds.max(1e-9)));
        fact("Learning took", format!("{seconds:.0} s"));
    }
    data.loss_note = gap::sentence(&loss, &val).unwrap_or_default();
    if let Some(eval) = optional_json(run, "eval.json")? {
        judgement::add(&mut data, &eval);
    }
    beside::add(&mut data, run)?;
    // Settings are looked up, not read: they come last.
    data.tables.push(settings(&file)?);
    (data.loss, data.val) = (loss, val);
    Ok(data)
}

/// A page that was kept as JSON, or the object that a verb's `--json` printed.
///
/// # Errors
/// [`BadInput`] when it is neither.
pub fn of_json(path: &Path) -> anyhow::Result<ReportData> {
    let text = std::fs::read_to_string(path).map_err(|e| BadInput(format!("cannot read {}: {e}", path.display())))?;
    let value: Value =
        serde_json::from_str(&text).map_err(|e| BadInput(format!("{}: not valid JSON: {e}", path.display())))?;
    let Value::Object(fields) = &value else {
        crate::bad_input!("{}: not a JSON object; give a RUN, or what a verb printed with --json", path.display());
    };
    if let Ok(page) = serde_json::from_value::<ReportData>(value.clone())
        && !page.title.is_empty()
    {
        return Ok(page);
    }
    let mut data = ReportData { title: last_part(&path.display().to_string()).to_owned(), ..ReportData::default() };
    data.confusion_after = confusion(&value);
    for (name, value) in fields {
        let shown = name.replace('_', " ");
        match value {
            Value::Null => (),
            Value::Array(_) if data.confusion_after.is_some() && ["confusion", "labels"].contains(&name.as_str()) => (),
            Value::Object(inner) => data.tables.push(Table {
                title: shown,
                columns: vec!["what".into(), "value".into()],
                rows: inner.iter().map(|(k, v)| vec![k.replace('_', " "), plain(v)]).collect(),
                note: String::new(),
            }),
            Value::Array(list) if list.iter().all(Value::is_object) && !list.is_empty() => {
                let columns: Vec<String> =
                    list[0].as_object().into_iter().flatten().map(|(k, _)| k.to_owned()).collect();
                let rows = list.iter().map(|row| columns.iter().map(|c| plain(&row[c])).collect()).collect();
                data.tables.push(Table { title: shown, columns, rows, note: String::new() });
            }
            other => data.facts.push((shown, plain(other))),
        }
    }
    Ok(data)
}

/// Tokens per second of each step, from the differences between lines.
fn rates(lines: &[Value]) -> Vec<(usize, f64)> {
    let mut before = (0.0, 0.0);
    let mut out = Vec::new();
    for line in lines {
        let (Some(step), Some(tokens), Some(seconds)) =
            (line["step"].as_u64(), line["tokens"].as_f64(), line["seconds"].as_f64())
        else {
            continue;
        };
        if seconds > before.1 {
            out.push((step as usize, (tokens - before.0) / (seconds - before.1)));
        }
        before = (tokens, seconds);
    }
    out
}

fn settings(file: &RunFile) -> anyhow::Result<Table> {
    let values = serde_json::to_value(&file.tune)?;
    let rows = values.as_object().into_iter().flatten().map(|(k, v)| vec![k.clone(), plain(v)]).collect();
    Ok(Table {
        title: "Settings".into(),
        columns: vec!["name".into(), "value".into()],
        rows,
        note: "What tune.toml of the run holds: every value, whether given or by default.".into(),
    })
}

/// A file of a RUN that may be there.
///
/// # Errors
/// [`BadInput`] when it is no JSON.
pub(super) fn optional_json(run: &Path, name: &str) -> anyhow::Result<Option<Value>> {
    let path = run.join(name);
    let Ok(text) = std::fs::read_to_string(&path) else { return Ok(None) };
    match serde_json::from_str(&text) {
        Ok(value) => Ok(Some(value)),
        Err(e) => crate::bad_input!("{}: not valid JSON: {e}", path.display()),
    }
}

/// A value as a cell shows it.
pub(super) fn plain(value: &Value) -> String {
    match value {
        Value::String(s) => s.clone(),
        Value::Null => "—".into(),
        Value::Number(n) if n.is_f64() => {
            let v = n.as_f64().unwrap_or(f64::NAN);
            if v != 0.0 && (v.abs() < 1e-3 || v.abs() >= 1e7) {
                format!("{v:.2e}")
            } else {
                format!("{v:.4}").trim_end_matches('0').trim_end_matches('.').to_owned()
            }
        }
        Value::Array(list) => list.iter().map(plain).collect::<Vec<_>>().join(", "),
        Value::Object(fields) => fields.iter().map(|(k, v)| format!("{k} {}", plain(v))).collect::<Vec<_>>().join(", "),
        other => other.to_string(),
    }
}

pub(super) fn last_part(path: &str) -> &str {
    path.trim_end_matches('/').rsplit('/').next().unwrap_or(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_json_of_a_verb_becomes_facts_and_tables() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("bench.json");
        let text =
            r#"{"engine": "cpu", "ttft_ms": 8.25, "itl_ms": {"p50": 1.5}, "rows": [{"a": 1, "b": "x"}], "none": null}"#;
        std::fs::write(&path, text).unwrap();
        let data = of_json(&path).unwrap();
        assert_eq!(data.facts, [("engine".into(), "cpu".into()), ("ttft ms".into(), "8.25".into())]);
        assert_eq!(data.tables[0].rows, [["p50", "1.5"]]);
        assert_eq!(data.tables[1].rows, [["1", "x"]]);
        std::fs::write(&path, "[1]").unwrap();
        assert!(of_json(&path).unwrap_err().to_string().contains("not a JSON object"));
    }

    #[test]
    fn a_page_kept_as_json_comes_back_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("page.json");
        let page = ReportData { title: "a run".into(), loss: vec![(1, 0.5)], ..ReportData::default() };
        std::fs::write(&path, serde_json::to_string(&page).unwrap()).unwrap();
        assert_eq!(of_json(&path).unwrap(), page);
    }

    #[test]
    fn rates_are_differences_and_leave_out_what_has_none() {
        let line = |s: u64, t: u64, at: f64| serde_json::json!({"step": s, "tokens": t, "seconds": at});
        let lines = [line(1, 100, 2.0), serde_json::json!({"step": 1, "val_loss": 1.0}), line(2, 300, 3.0)];
        assert_eq!(rates(&lines), [(1, 50.0), (2, 200.0)]);
    }
}
