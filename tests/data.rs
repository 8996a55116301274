//! `data check` and `data split` on sets with known faults: each is found on its line, and what --fix writes passes.

use crate::cli::refuses;
use crate::common::{Folder, data, tiny::Tiny};
use serde_json::{Value, json};
use std::collections::BTreeMap;

fn folder() -> Folder {
    let folder = Folder::new();
    Tiny::llama().write(&folder, "base");
    Tiny::bert().write(&folder, "bert");
    folder
}

fn review(i: usize, label: &str) -> Value {
    json!({"text": format!("sentence number {i} about a thing called {}", i * 7919 % 1000), "label": label})
}

/// Forty good rows, and behind them one of each fault.
fn dirty() -> String {
    let mut rows: Vec<String> =
        (0..40).map(|i| review(i, if i % 2 == 0 { "good" } else { "bad" }).to_string()).collect();
    rows.extend([
        review(3, "bad").to_string(),                       // 41: repeats 4
        "{\"text\": \"cut".into(),                          // 42: no JSON
        json!({"text": "no label here"}).to_string(),       // 43
        json!({"text": "   ", "label": "bad"}).to_string(), // 44: empty
        review(6, "bad").to_string(),                       // 45: contradicts 7
        json!({"text": "a cafÃ© with a very long name", "label": "good"}).to_string(), // 46
        json!({"text": "write to ann@example.org or pay 4111 1111 1111 1111", "label": "good"}).to_string(), // 47
        json!({"text": "one two three four five six seven eight nine ten eleven twelve thirteen a", "label": "bad"})
            .to_string(), // 48
        json!({"text": "one two three four five six seven eight nine ten eleven twelve thirteen b", "label": "bad"})
            .to_string(), // 49: nearly 48
    ]);
    rows.join("\n") + "\n"
}

/// Code -> (level, count, lines).
fn problems(json: &Value) -> BTreeMap<String, (String, u64, Vec<u64>)> {
    let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    json["problems"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|p| {
            let lines = p["examples"].as_array().expect("a list").iter().filter_map(|e| e["line"].as_u64()).collect();
            (text(&p["code"]), (text(&p["level"]), p["count"].as_u64().unwrap_or(0), lines))
        })
        .collect()
}

#[test]
fn each_fault_is_found_on_its_line_and_the_cleaned_set_passes() {
    let folder = folder();
    folder.write("d.jsonl", dirty());
    let ran = folder.edgeft("data check d.jsonl --model bert --fix clean.jsonl --redact --json").code(3);
    let found = problems(&ran.json());
    for (code, level, lines) in [
        ("bad_row", "error", vec![42, 43]),
        ("empty", "error", vec![44]),
        ("contradiction", "error", vec![7, 45]),
        ("duplicate", "warning", vec![41]),
        ("near_duplicate", "warning", vec![49]),
        ("mojibake", "warning", vec![46]),
        ("email", "warning", vec![47]),
        ("payment_card", "warning", vec![47]),
    ] {
        assert_eq!(found.get(code), Some(&(level.to_owned(), lines.len() as u64, lines)), "{code}: {found:?}");
    }
    assert_eq!(found.len(), 8, "{found:?}");
    let clean = String::from_utf8(folder.read("clean.jsonl")).expect("UTF-8");
    assert_eq!(clean.lines().count(), 49 - 6);
    assert!(clean.contains("a café with") && clean.contains("write to [EMAIL] or pay [CARD]"), "{clean}");
    let log = String::from_utf8(folder.read("clean.jsonl.changes.jsonl")).expect("UTF-8");
    let lines: Vec<u64> = log
        .lines()
        .map(|l| serde_json::from_str::<Value>(l).expect("JSON"))
        .filter(|l| l["action"] == "left out")
        .map(|l| l["line"].as_u64().expect("a number"))
        .collect();
    assert_eq!(lines, [7, 41, 42, 43, 44, 45]);
    folder.edgeft("data check clean.jsonl --model bert").ok();
    refuses(&folder, "data check d.jsonl --model bert --fix clean.jsonl", &["clean.jsonl", "exists", "--force"]);
    refuses(&folder, "data check d.jsonl --model bert --fix clean.csv", &["clean.csv", ".jsonl"]);
}

#[test]
fn rows_that_are_held_out_and_learned_do_not_pass() {
    let folder = folder();
    let rows = |from: usize| -> String {
        (from..from + 20).map(|i| format!("{}\n", review(i, if i % 2 == 0 { "good" } else { "bad" }))).collect()
    };
    folder.write("d.jsonl", rows(0));
    folder.write("val.jsonl", rows(18));
    let ran = folder.edgeft("data check d.jsonl --model bert --val val.jsonl --fix clean.jsonl --json").code(3);
    assert_eq!(problems(&ran.json())["leak"], ("error".to_owned(), 2, vec![1, 2]));
    folder.edgeft("data check clean.jsonl --model bert --val val.jsonl").ok();
}

#[test]
fn chats_show_what_is_learned_and_lengths_name_the_max_len_that_covers_them() {
    let folder = folder();
    folder.write("d.jsonl", data::chats(30));
    let json = folder.edgeft("data check d.jsonl --model base --json").ok().json();
    let tokens = json["shown"][0]["tokens"].as_array().expect("tokens");
    assert!(tokens.iter().any(|t| t[1] == true) && tokens.iter().any(|t| t[1] == false));
    let longest = json["lengths"]["p100"].as_u64().expect("a number");
    folder.edgeft(&format!("data check d.jsonl --model base --max-len {longest}")).ok();
    let ran = folder.edgeft(&format!("data check d.jsonl --model base --max-len {} --json", longest - 1)).code(3);
    assert!(problems(&ran.json()).contains_key("too_long"));
    let text = folder.edgeft("data check d.jsonl --model base").ok().stdout;
    assert!(text.contains('«') && text.contains("pass") && text.contains("edgeft tune --model base"), "{text}");
}

#[test]
fn parts_share_no_text_and_keep_the_labels_shares() {
    let folder = folder();
    let mut rows: Vec<String> = (0..200).map(|i| review(i, ["a", "b", "c", "c"][i % 4]).to_string()).collect();
    rows.extend((0..20).map(|i| review(i, ["a", "b", "c", "c"][i % 4]).to_string()));
    folder.write("d.jsonl", rows.join("\n"));
    let texts = |file: &str| -> Vec<(String, String)> {
        let text = String::from_utf8(folder.read(file)).expect("UTF-8");
        let row = |l: &str| serde_json::from_str::<Value>(l).expect("JSON");
        text.lines().map(row).map(|r| (r["text"].to_string(), r["label"].to_string())).collect()
    };
    folder.edgeft("data split d.jsonl --out parts --dedup").ok();
    let [train, val, test] = ["train", "val", "test"].map(|p| texts(&format!("parts/{p}.jsonl")));
    assert_eq!((train.len(), val.len(), test.len()), (160, 20, 20));
    let count = |rows: &[(String, String)], label: &str| rows.iter().filter(|r| r.1.contains(label)).count();
    assert_eq!([count(&val, "a"), count(&val, "b"), count(&val, "c")], [5, 5, 10]);
    assert!(val.iter().chain(&test).all(|r| !train.contains(r)) && val.iter().all(|r| !test.contains(r)));
    folder.edgeft("data split d.jsonl --out again --dedup").ok();
    assert_eq!(folder.read("parts/val.jsonl"), folder.read("again/val.jsonl"));
    // Folds: every row is held out once.
    folder.edgeft("data split d.jsonl --out folds --folds 4 --dedup").ok();
    let mut held: Vec<_> = (1..=4).flat_map(|f| texts(&format!("folds/fold-{f}/val.jsonl"))).collect();
    held.sort();
    let mut all = [train, val, test].concat();
    all.sort();
    assert_eq!(held, all);
    // Repeats stay together when they are kept.
    folder.edgeft("data split d.jsonl --out whole").ok();
    let [train, val] = ["train", "val"].map(|p| texts(&format!("whole/{p}.jsonl")));
    assert!(val.iter().all(|r| !train.contains(r)));
}

#[test]
fn groups_stay_together_and_tables_keep_their_form() {
    let folder = folder();
    let rows: String =
        (0..90).map(|i| format!("\"line {i},\nwith \"\"quotes\"\"\",{},p{}\n", ["x", "y"][i % 2], i / 3)).collect();
    folder.write("d.csv", format!("text,label,patient\n{rows}"));
    folder.edgeft("data split d.csv --out parts --group patient --val 0.2 --test 0").ok();
    assert_eq!(folder.names("parts"), ["train.csv", "val.csv"]);
    let groups = |file: &str| -> (usize, std::collections::BTreeSet<String>) {
        let text = String::from_utf8(folder.read(file)).expect("UTF-8");
        let ends: Vec<String> = text.lines().filter_map(|l| l.rsplit_once(",p")).map(|l| l.1.to_owned()).collect();
        (ends.len(), ends.into_iter().filter(|e| e != "atient").collect())
    };
    let ((_, train), (_, val)) = (groups("parts/train.csv"), groups("parts/val.csv"));
    assert!(train.is_disjoint(&val) && train.len() + val.len() == 30 && val.len() == 6, "{train:?} {val:?}");
    refuses(&folder, "data split d.csv --out p2 --group nobody", &["d.csv:2", "no field `nobody`", "`patient`"]);
    refuses(&folder, "data split d.csv --out p2 --val 0.6 --test 0.6", &["0.6", "nothing to learn from"]);
}
