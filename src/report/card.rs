//! `README.md` of a RUN: a model card in the Hugging Face hub's format, filled from what the RUN's files hold. What nobody knows
//! is named as a gap.

use super::run::{last_part, optional_json, plain};
use crate::tune::checkpoint::write_synced;
use crate::tune::config::{Method, TaskName};
use crate::tune::run_folder::RunFile;
use serde_json::Value;
use std::fmt::Write;
use std::path::Path;

/// Ends the part that is written anew each time; what a person writes below it stays.
const MARK: &str =
    "<!-- Written by edgeft up to here, again after each `eval` and `audit`; what stands below is kept. -->";

/// Writes the card of a finished RUN, or writes it anew after an evaluation or an audit.
///
/// # Errors
/// Files of the RUN that cannot be read or are no JSON.
pub fn refresh(run: &Path) -> anyhow::Result<()> {
    let path = run.join("README.md");
    let kept = match std::fs::read_to_string(&path) {
        // A card without the mark is a person's own: it is left alone.
        Ok(text) => match text.split_once(MARK) {
            Some((_, below)) => below.to_owned(),
            None => return Ok(()),
        },
        Err(_) => "\n".to_owned(),
    };
    let card = card(run)?;
    write_synced(&path, format!("{card}\n{MARK}{kept}").as_bytes())
}

/// The metrics of `eval.json` that a card lists: their names there, the hub's names, and how people write them.
const METRICS: [(&str, &str, &str); 10] = [
    ("accuracy", "accuracy", "Accuracy"),
    ("macro_f1", "f1", "Macro F1"),
    ("auroc", "roc_auc", "AUROC"),
    ("exact_match", "exact_match", "Exact match"),
    ("f1", "f1", "F1"),
    ("perplexity", "perplexity", "Perplexity"),
    ("rouge_l", "rouge", "ROUGE-L"),
    ("chrf", "chrf", "chrF"),
    ("ece", "ece", "Expected calibration error"),
    ("loss", "loss", "Loss"),
];

fn card(run: &Path) -> anyhow::Result<String> {
    let file = RunFile::read(run)?;
    let (eval, audit) = (optional_json(run, "eval.json")?, optional_json(run, "audit.json")?);
    let name = run.canonicalize().ok().and_then(|p| Some(p.file_name()?.to_string_lossy().into_owned()));
    let name = name.unwrap_or_else(|| "run".into());
    let mut out = front(&file, &name, eval.as_ref());
    let base = base(&file);
    let method = method(&file);
    let task = file.tune.task.map_or_else(|| "text".to_owned(), |t| t.to_string());
    let _ = write!(out, "\n# {name}\n\n");
    let _ = match file.tune.method {
        Some(Method::Full) => {
            writeln!(out, "All weights of `{base}`, tuned for the task `{task}` with edgeft {}.", file.run.edgeft)
        }
        _ => writeln!(
            out,
            "An adapter ({method}) over `{base}`, tuned for the task `{task}` with edgeft {}. It is in PEFT's format.",
            file.run.edgeft
        ),
    };
    if !file.run.labels.is_empty() {
        let _ = writeln!(out, "\nLabels, by index: {}.", file.run.labels.join(", "));
    }
    how_to_use(&mut out, &file, &base);
    data(&mut out, &file);
    training(&mut out, run, &file)?;
    evaluation(&mut out, eval.as_ref());
    bias(&mut out, audit.as_ref());
    gaps(&mut out, &file, eval.as_ref(), audit.as_ref());
    Ok(out)
}

/// The base as its own files call it: a name on the hub where one is known, else the last part of its path: where it lay on
/// this machine is nobody's business.
fn base(file: &RunFile) -> String {
    let path = Path::new(&file.run.model);
    let hub = path.ancestors().filter_map(|p| p.file_name()?.to_str()?.strip_prefix("models--")).next();
    if let Some((owner, name)) = hub.and_then(|n| n.split_once("--")) {
        return format!("{owner}/{name}");
    }
    let config = std::fs::read_to_string(path.join("config.json")).unwrap_or_default();
    let config: Value = serde_json::from_str(&config).unwrap_or_default();
    match config["_name_or_path"].as_str() {
        Some(name) if is_hub_name(name) => name.to_owned(),
        _ => last_part(&file.run.model).to_owned(),
    }
}

/// `owner/name`, and no path.
fn is_hub_name(name: &str) -> bool {
    let fine = |part: &str| !part.is_empty() && part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
    name.split_once('/').is_some_and(|(a, b)| fine(a) && fine(b) && !a.starts_with('.'))
}

fn method(file: &RunFile) -> String {
    format!("{:?}", file.tune.method.unwrap_or(Method::Lora)).to_lowercase()
}

/// A string as YAML takes it whatever stands in it: JSON's is YAML's.
fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}

fn front(file: &RunFile, name: &str, eval: Option<&Value>) -> String {
    let (base, full) = (base(file), file.tune.method == Some(Method::Full));
    let mut out = String::from("---\n");
    let local = if is_hub_name(&base) { "" } else { " # a local name; put the hub's here" };
    let _ = writeln!(out, "base_model: {}{local}", quoted(&base));
    let _ = writeln!(out, "library_name: {}", if full { "transformers" } else { "peft" });
    let pipeline = match file.tune.task {
        Some(TaskName::Classify) => "text-classification",
        Some(TaskName::Answer) => "question-answering",
        _ => "text-generation",
    };
    let _ = writeln!(out, "pipeline_tag: {pipeline}\ntags:\n- edgeft");
    if full {
        out.push_str("- full-fine-tuning\n");
    } else {
        if is_hub_name(&base) {
            let _ = writeln!(out, "- base_model:adapter:{base}");
        }
        let _ = writeln!(out, "- {}", method(file));
    }
    let Some(eval) = eval else {
        out.push_str("---\n");
        return out;
    };
    let there: Vec<_> = METRICS.iter().filter_map(|(key, hub, _)| Some((*hub, eval[key].as_f64()?))).collect();
    out.push_str("metrics:\n");
    let mut names: Vec<&str> = there.iter().map(|(hub, _)| *hub).collect();
    names.dedup();
    names.iter().for_each(|n| {
        let _ = writeln!(out, "- {n}");
    });
    let data = eval["data"].as_str().map_or("not recorded", last_part);
    let _ = writeln!(
        out,
        "model-index:\n- name: {}\n  results:\n  - task:\n      type: {pipeline}\n    dataset:\n      name: {}\n      type: local\n    metrics:",
        quoted(name),
        quoted(data)
    );
    for (hub, value) in there {
        let _ = writeln!(out, "    - type: {hub}\n      value: {value}");
    }
    out.push_str("---\n");
    out
}

fn how_to_use(out: &mut String, file: &RunFile, base: &str) {
    let ask = match file.tune.task {
        Some(TaskName::Answer) => "--question \"...\" --context \"...\"",
        Some(TaskName::Chat) => "--chat -p \"...\"",
        _ => "-p \"...\"",
    };
    let _ = write!(out, "\n## How to use it\n\n```\nedgeft run RUN {ask}\n```\n");
    if file.tune.method != Some(Method::Full) {
        let class = match file.tune.task {
            Some(TaskName::Classify) => "AutoModelForSequenceClassification",
            Some(TaskName::Answer) => "AutoModelForQuestionAnswering or AutoModelForCausalLM, as the base is",
            _ => "AutoModelForCausalLM",
        };
        let _ = write!(
            out,
            "\nIn Python, PEFT loads this folder over the base `{base}` ({class}): `PeftModel.from_pretrained(base, \"RUN\")`.\n"
        );
    }
}

fn data(out: &mut String, file: &RunFile) {
    let _ = write!(out, "\n## Data\n\n| file | sha256 |\n|---|---|\n");
    let _ = writeln!(out, "| {} | `{}` |", last_part(&file.run.data), file.sha256.data);
    if let (Some(val), Some(hash)) = (&file.run.val, &file.sha256.val) {
        let _ = writeln!(out, "| {} (held out) | `{hash}` |", last_part(val));
    }
    if !file.run.held_out.is_empty() {
        let _ = writeln!(out, "\n{} rows of it were held out.", file.run.held_out.len());
    }
}

fn training(out: &mut String, run: &Path, file: &RunFile) -> anyhow::Result<()> {
    let _ = write!(out, "\n## Training\n\n| setting | value |\n|---|---|\n");
    let values = serde_json::to_value(&file.tune)?;
    for (key, value) in values.as_object().into_iter().flatten() {
        let _ = writeln!(out, "| {key} | {} |", plain(value).replace('|', "\\|"));
    }
    let text = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap_or_default();
    let lines: Vec<Value> = text.lines().filter_map(|l| serde_json::from_str(l).ok()).collect();
    let last = |key: &str| lines.iter().rev().find_map(|l| l[key].as_f64());
    let mut facts = Vec::new();
    facts.extend(last("step").map(|s| format!("{s} steps")));
    facts.extend(last("tokens").map(|t| format!("{t} tokens")));
    facts.extend(last("loss").map(|l| format!("last training loss {l:.4}")));
    let best = lines.iter().filter_map(|l| l["val_loss"].as_f64()).min_by(f64::total_cmp);
    facts.extend(best.map(|b| format!("best held-out loss {b:.4}")));
    facts.extend(last("seconds").map(|s| format!("{s:.0} s")));
    let _ = write!(out, "\n{}.\nBase, by sha256: `{}`.\n", facts.join(", "), file.sha256.base);
    Ok(())
}

fn evaluation(out: &mut String, eval: Option<&Value>) {
    out.push_str("\n## Evaluation\n\n");
    let Some(eval) = eval else {
        out.push_str("Not evaluated yet: `edgeft eval RUN --data test.jsonl`.\n");
        return;
    };
    let data = eval["data"].as_str().map_or("rows that were not recorded", last_part);
    let _ = writeln!(out, "On {} rows of {data}; intervals are 95 %, by bootstrap.\n", plain(&eval["examples"]));
    out.push_str("| metric | value | from | to |\n|---|---|---|---|\n");
    for (key, _, name) in METRICS {
        let Some(value) = eval[key].as_f64() else { continue };
        let ci = &eval["ci95"][key];
        let cell = |v: &Value| if v.is_null() { "—".to_owned() } else { plain(v) };
        let _ = writeln!(out, "| {name} | {} | {} | {} |", plain(&value.into()), cell(&ci["low"]), cell(&ci["high"]));
    }
    if let Some(classes) = eval["per_class"].as_array() {
        out.push_str("\n| label | precision | recall | F1 | rows |\n|---|---|---|---|---|\n");
        for c in classes {
            let cells = ["label", "precision", "recall", "f1", "support"].map(|k| plain(&c[k]).replace('|', "\\|"));
            let _ = writeln!(out, "| {} |", cells.join(" | "));
        }
    }
    if let Some(t) = eval["calibration"]["temperature"].as_f64() {
        let _ = writeln!(
            out,
            "\nProbabilities are best trusted after dividing the logits by {t:.3} (fitted on {}).",
            plain(&eval["calibration"]["fitted_on"])
        );
    }
    if let Some(t) = eval["unanswerable"]["threshold"].as_f64() {
        let _ = writeln!(out, "\nA question stays unanswered where its chance of no answer is above {t:.4}.");
    }
}

fn bias(out: &mut String, audit: Option<&Value>) {
    out.push_str("\n## Bias\n\n");
    let Some(audit) = audit else {
        out.push_str("Not audited: `edgeft audit RUN`.\n");
        return;
    };
    let ci = &audit["ci95"];
    let _ = writeln!(
        out,
        "{}: {} (95 %: {} to {}) on {} pairs ({}); a model that does not look at the group has {}.\n",
        plain(&audit["metric"]).replace('_', " "),
        plain(&audit["value"]),
        plain(&ci["low"]),
        plain(&ci["high"]),
        plain(&audit["pairs"]),
        audit["data"].as_str().map_or("?", last_part),
        plain(&audit["ideal"])
    );
    out.push_str("| group | value | from | to | pairs |\n|---|---|---|---|---|\n");
    for (group, v) in audit["by_group"].as_object().into_iter().flatten() {
        let cells = ["value", "low", "high", "pairs"].map(|k| plain(&v[k]));
        let _ = writeln!(out, "| {} | {} |", group.replace('|', "\\|"), cells.join(" | "));
    }
    out.push_str("\nIt was asked with these sentences and no others.\n");
}

fn gaps(out: &mut String, file: &RunFile, eval: Option<&Value>, audit: Option<&Value>) {
    out.push_str("\n## What is not known\n\n");
    let mut gaps = vec![
        "The licence: that of the base and of the data decide.",
        "What it is meant for, and what it must not be used for: whoever tuned it did not say.",
        "Where the rows are from, who wrote and labelled them, and in which language.",
    ];
    if !is_hub_name(&base(file)) {
        gaps.push("The base's name on the hub.");
    }
    if eval.is_none() {
        gaps.push("How good it is: it was not evaluated.");
    }
    if audit.is_none() {
        gaps.push("Whether its answers change with a group word: it was not audited.");
    }
    gaps.iter().for_each(|g| {
        let _ = writeln!(out, "- {g}");
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    const TUNE: &str = "[run]\nmodel = \"/somewhere/deep/base\"\ndata = \"/somewhere/deep/d.jsonl\"\nlabels = [\"a|b\", \"c\"]\nheld-out = [1, 2]\n\
        edgeft = \"0.1.0\"\n[tune]\ntask = \"classify\"\nmethod = \"lora\"\nrank = 4\n[sha256]\nbase = \"ab\"\ndata = \"cd\"\n";

    fn run() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("tune.toml"), TUNE).unwrap();
        dir
    }

    fn read(dir: &tempfile::TempDir) -> String {
        std::fs::read_to_string(dir.path().join("README.md")).unwrap()
    }

    #[test]
    fn a_card_names_its_gaps_and_no_place_on_this_machine() {
        let dir = run();
        refresh(dir.path()).unwrap();
        let card = read(&dir);
        let front = card.split("---\n").nth(1).unwrap();
        for line in ["base_model: \"base\" #", "library_name: peft", "pipeline_tag: text-classification", "- lora"] {
            assert!(front.contains(line), "no `{line}` in\n{front}");
        }
        for line in ["Not evaluated yet", "Not audited", "| rank | 4 |", "The licence", "2 rows of it were held out"] {
            assert!(card.contains(line), "no `{line}` in\n{card}");
        }
        assert!(!card.contains("somewhere"), "{card}");
    }

    #[test]
    fn it_is_written_anew_after_an_evaluation_and_keeps_what_a_person_wrote() {
        let dir = run();
        refresh(dir.path()).unwrap();
        std::fs::write(dir.path().join("README.md"), read(&dir) + "\nMine.\n").unwrap();
        let eval = r#"{"data": "x/test.jsonl", "examples": 9, "accuracy": 0.875, "ci95": {"accuracy": {"low": 0.5, "high": 1.0}}}"#;
        std::fs::write(dir.path().join("eval.json"), eval).unwrap();
        refresh(dir.path()).unwrap();
        let card = read(&dir);
        assert!(
            card.contains("| Accuracy | 0.875 | 0.5 | 1 |") && card.contains("- type: accuracy\n      value: 0.875")
        );
        assert!(card.ends_with("\nMine.\n") && !card.contains("Not evaluated"), "{card}");
        std::fs::write(dir.path().join("README.md"), "all mine").unwrap();
        refresh(dir.path()).unwrap();
        assert_eq!(read(&dir), "all mine");
    }

    #[test]
    fn hub_names_are_told_from_paths() {
        assert!(is_hub_name("HuggingFaceTB/SmolLM2-135M") && is_hub_name("a/b.c_d-e"));
        assert!(!is_hub_name("base") && !is_hub_name("/a/b") && !is_hub_name("./a") && !is_hub_name("a/b/c"));
    }
}
