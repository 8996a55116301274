//! What else lies in a RUN: an audit, a verification, a measurement, folds, a sweep.

use super::run::{last_part, optional_json, plain};
use super::{ReportData, Table};
use serde_json::Value;
use std::path::Path;

/// What makes tables of a file.
type Maker = fn(&Value) -> Vec<Table>;

/// Adds a table for each file that is there.
///
/// # Errors
/// A file that is no JSON, by name.
pub(super) fn add(data: &mut ReportData, run: &Path) -> anyhow::Result<()> {
    let makers: [(&str, Maker); 5] = [
        ("audit.json", audit),
        ("verify.json", verification),
        ("bench.json", latency),
        ("folds.json", folds),
        ("sweep.json", sweep),
    ];
    for (name, tables) in makers {
        if let Some(value) = optional_json(run, name)? {
            data.tables.extend(tables(&value));
        }
    }
    Ok(())
}

fn strings(names: &[&str]) -> Vec<String> {
    names.iter().map(|n| (*n).to_owned()).collect()
}

fn audit(a: &Value) -> Vec<Table> {
    let before = &a["against"];
    let compared = !before.is_null();
    let cells = |name: String, now: &Value, then: &Value| {
        let mut row = vec![name, plain(&now["value"]), plain(&now["low"]), plain(&now["high"]), plain(&now["pairs"])];
        if compared {
            row.push(plain(&then["value"]));
        }
        row
    };
    let mut all = a["ci95"].clone();
    all["pairs"] = a["pairs"].clone();
    let mut rows = vec![cells("all".into(), &all, &before["ci95"])];
    for (group, now) in a["by_group"].as_object().into_iter().flatten() {
        rows.push(cells(group.clone(), now, &before["by_group"][group.as_str()]));
    }
    for (name, now) in a["metrics"].as_object().into_iter().flatten() {
        rows.push(cells(name.replace('_', " "), now, &before["metrics"][name.as_str()]));
    }
    let mut columns = strings(&["group", "value", "from", "to", "pairs"]);
    if compared {
        columns.push(last_part(before["model"].as_str().unwrap_or("before")).to_owned());
    }
    let p = match a["difference"]["p"].as_f64() {
        Some(p) => format!(" The difference of the two has p = {p:.3}."),
        None => String::new(),
    };
    let mut out = vec![Table {
        title: format!("Audit: {}", plain(&a["metric"]).replace('_', " ")),
        columns,
        rows,
        note: format!(
            "{}; a model that does not look at the group has {}. What it finds is in the sentences of {}, and no others.{p}",
            plain(&a["how"]),
            plain(&a["ideal"]),
            last_part(a["data"].as_str().unwrap_or_default())
        ),
    }];
    if let Some(rates) = a["rates"].as_array().filter(|r| !r.is_empty()) {
        let keys = ["group", "texts", "favorable", "true_positive", "false_positive"];
        let cell = |r: &Value, k: &str| if k == "favorable" { plain(&r[k]["value"]) } else { plain(&r[k]) };
        out.push(Table {
            title: format!("Share that gets “{}”, by group", plain(&a["favorable"])),
            columns: strings(&["group", "texts", "all", "where it is right", "where it is wrong"]),
            rows: rates.iter().map(|r| keys.iter().map(|k| cell(r, k)).collect()).collect(),
            note: String::new(),
        });
    }
    out
}

fn verification(v: &Value) -> Vec<Table> {
    let gate = if v["pass"] == true { "pass" } else { "fail" };
    let row = |name: &str, value: String| vec![name.to_owned(), value];
    let mut rows = vec![
        row("gate", gate.into()),
        row("positions", plain(&v["positions"])),
        row("mean KL, nats", plain(&v["mean_kl"])),
        row("at most", plain(&v["bounds"]["max_kl"])),
        row("same choice", plain(&v["top1"])),
        row("at least", plain(&v["bounds"]["min_top1"])),
        row("largest difference of two logits", plain(&v["max_abs"])),
    ];
    rows.extend(v["first_difference"].as_str().map(|d| row("first difference", d.to_owned())));
    vec![Table {
        title: format!("Verification of {}", last_part(v["subject"].as_str().unwrap_or("a file"))),
        columns: strings(&["what", "value"]),
        rows,
        note: format!("Held against {}.", last_part(v["against"].as_str().unwrap_or("this run"))),
    }]
}

fn latency(b: &Value) -> Vec<Table> {
    let named = [
        ("prompt_tokens_per_s", "reads, tokens/s"),
        ("decode_tokens_per_s", "writes, tokens/s"),
        ("ttft_ms", "first token, ms"),
        ("load_ms", "load, ms"),
        ("peak_mib", "peak memory, MiB"),
    ];
    let mut rows: Vec<Vec<String>> = named
        .iter()
        .filter(|(key, _)| !b[key].is_null())
        .map(|(key, name)| vec![(*name).to_owned(), plain(&b[key])])
        .collect();
    for p in ["p50", "p90", "p99"] {
        if let Some(ms) = b["itl_ms"][p].as_f64() {
            rows.push(vec![format!("between tokens, ms, {p}"), format!("{ms:.3}")]);
        }
    }
    vec![Table {
        title: "Latency".into(),
        columns: strings(&["what", "value"]),
        rows,
        note: format!(
            "Engine {}, {} threads, a prompt of {} tokens and {} written.",
            plain(&b["engine"]),
            plain(&b["threads"]),
            plain(&b["prompt"]),
            plain(&b["generate"])
        ),
    }]
}

fn folds(f: &Value) -> Vec<Table> {
    let metrics = f["metrics"].as_object().into_iter().flatten();
    let k = f["folds"].as_array().map_or(0, Vec::len);
    let mut columns = strings(&["metric", "mean", "deviation"]);
    columns.extend((1..=k).map(|i| format!("fold {i}")));
    let rows = metrics
        .map(|(name, m)| {
            let values = m["values"].as_array().into_iter().flatten().map(plain);
            [name.replace('_', " "), plain(&m["mean"]), plain(&m["deviation"])].into_iter().chain(values).collect()
        })
        .collect();
    vec![Table {
        title: format!("Cross-validation, {k} folds"),
        columns,
        rows,
        note: "Each adapter was judged on the rows that it had not seen.".into(),
    }]
}

fn sweep(s: &Value) -> Vec<Table> {
    let trials: Vec<&Value> = s["trials"].as_array().into_iter().flatten().collect();
    let Some(first) = trials.first() else { return Vec::new() };
    let keys: Vec<String> = first["settings"].as_object().into_iter().flatten().map(|(k, _)| k.clone()).collect();
    let mut columns = strings(&["trial"]);
    columns.extend(keys.iter().cloned());
    columns.extend(strings(&["steps", "held-out loss", ""]));
    let rows = trials
        .iter()
        .map(|t| {
            let mut row = vec![plain(&t["trial"])];
            row.extend(keys.iter().map(|k| plain(&t["settings"][k.as_str()])));
            let winner = if t["trial"] == s["winner"] { "winner" } else { "" };
            row.extend([plain(&t["steps"]), plain(&t["val_loss"]), winner.into()]);
            row
        })
        .collect();
    vec![Table {
        title: "Sweep".into(),
        columns,
        rows,
        note: "Successive halving: after each round the better ones went on, the others stopped.".into(),
    }]
}
