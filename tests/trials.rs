//! `tune --folds` and `tune --sweep`: many adapters over one base, each what it would be alone.

use crate::cli::{folder, refuses};
use crate::common::{close, data};
use crate::judge::{at, text};
use serde_json::Value;

#[test]
fn folds_judge_every_row_by_an_adapter_that_never_saw_it() {
    let folder = folder();
    folder.write("many.jsonl", data::reviews(60));
    let tune = "tune --model bert --data many.jsonl --out folds --folds 3 --epochs 3 --batch 8 --lr 2e-3";
    let plan = folder.edgeft(&format!("{tune} --dry-run")).ok().stdout;
    assert!(plan.contains("fold 1 of 3") && plan.contains("40 to learn, 20 held out"), "{plan}");
    let json = folder.edgeft(&format!("{tune} --json")).ok().json();
    assert_eq!(json["folds"].as_array().unwrap().len(), 3);
    let accuracy = &json["metrics"]["accuracy"];
    let values: Vec<f64> = accuracy["values"].as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect();
    close(values.iter().sum::<f64>() / 3.0, at(accuracy, "/mean"), 1e-12, "mean");
    assert!(at(accuracy, "/deviation") >= 0.0);
    // Every row once, by the fold that held it out.
    let rows: Vec<Value> =
        text(&folder, "folds/out_of_fold.jsonl").lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(rows.iter().map(|r| r["row"].as_u64().unwrap()).collect::<Vec<_>>(), (1..=60).collect::<Vec<_>>());
    let right = |fold: u64| {
        let own: Vec<&Value> = rows.iter().filter(|r| r["fold"] == fold).collect();
        own.iter().filter(|r| r["label"] == r["predicted"]).count() as f64 / own.len() as f64
    };
    (1..=3).for_each(|f| close(right(f), values[f as usize - 1], 1e-12, "a fold's rows"));
    // A fold is a RUN: the same numbers once more, and the same bytes as the run alone on those rows gives.
    let tune_toml = text(&folder, "folds/fold-2/tune.toml");
    assert!(tune_toml.contains("fold = 2") && tune_toml.contains("held-out = ["), "{tune_toml}");
    let all: Vec<String> = data::reviews(60).lines().map(str::to_owned).collect();
    let part = |held: bool| -> String {
        let is = |i: &usize| rows[*i]["fold"] == 2;
        (0..60).filter(|i| is(i) == held).map(|i| format!("{}\n", all[i])).collect()
    };
    folder.write("train.jsonl", part(false));
    folder.write("val.jsonl", part(true));
    folder
        .edgeft("tune --model bert --data train.jsonl --val val.jsonl --out alone --epochs 3 --batch 8 --lr 2e-3")
        .ok();
    assert_eq!(folder.read("alone/adapter_model.safetensors"), folder.read("folds/fold-2/adapter_model.safetensors"));
    let again = folder.edgeft("eval folds/fold-2 --data val.jsonl --json").ok().json();
    close(at(&again, "/accuracy"), values[1], 1e-12, "fold 2");
    // What is done is not done again; what is missing is.
    let kept = folder.read("folds/fold-1/adapter_model.safetensors");
    std::fs::remove_dir_all(folder.at("folds/fold-3")).unwrap();
    std::fs::remove_file(folder.at("folds/fold-2/eval.json")).unwrap();
    let resumed = folder.edgeft(&format!("{tune} --resume --json")).ok().json();
    assert_eq!((&resumed["metrics"], folder.read("folds/fold-1/adapter_model.safetensors")), (&json["metrics"], kept));
    folder.edgeft("report folds --out page.html").ok();
    assert!(text(&folder, "page.html").contains("Cross-validation, 3 folds"));
    refuses(&folder, "eval folds --data val.jsonl", &["folds", "3 folds", "folds/fold-1"]);
    refuses(&folder, &format!("{tune} --resume --folds 4").replace("--folds 3", ""), &["--folds is 4", "with 3"]);
    refuses(
        &folder,
        &format!("{tune} --method full").replace("out folds", "out other"),
        &["--folds and --method full"],
    );
    refuses(
        &folder,
        &tune.replace("--folds 3", "--folds 50").replace("out folds", "out other"),
        &["fold", "fewer --folds"],
    );
    refuses(&folder, &tune.replace("--folds 3", "--folds 1"), &["--folds"]);
}

#[test]
fn folds_of_chats_and_questions_are_judged_by_their_own_metrics() {
    let folder = folder();
    folder.write("q.jsonl", data::questions(30));
    for (flags, metric) in
        [("--model base --data d.jsonl", "perplexity"), ("--model bert --task answer --data q.jsonl", "f1")]
    {
        let json = folder.edgeft(&format!("tune {flags} --out {metric} --folds 2 --steps 2 --json")).ok().json();
        assert_eq!(json["metrics"][metric]["values"].as_array().unwrap().len(), 2, "{json}");
    }
}

#[test]
fn a_sweep_keeps_the_better_settings_and_the_winner_is_what_they_give_alone() {
    let folder = folder();
    folder.write("many.jsonl", data::reviews(60));
    folder.write("sweep.toml", "lr = [1e-7, 2e-3, 1e-6]\nrank = [2, 4]\n[sweep]\neta = 3\n");
    let tune = "tune --model bert --data many.jsonl --out best --sweep sweep.toml --epochs 3 --batch 8";
    let plan = folder.edgeft(&format!("{tune} --dry-run")).ok().stdout;
    assert!(plan.contains("trials  6") && plan.contains("2 left"), "{plan}");
    let json = folder.edgeft(&format!("{tune} --json")).ok().json();
    let trials = json["trials"].as_array().unwrap();
    let winner = trials.iter().find(|t| t["trial"] == json["winner"]).unwrap();
    assert_eq!((trials.len(), winner["settings"]["lr"].as_f64()), (6, Some(2e-3)), "{json}");
    let ended = trials.iter().filter(|t| t["rounds"].as_array().unwrap().len() == 2).count();
    assert_eq!(ended, 2);
    let loss = |t: &Value| t["val_loss"].as_f64().unwrap();
    // Those that went on were the better ones of their round.
    let first = |t: &Value| t["rounds"][0]["val_loss"].as_f64().unwrap();
    let went_on = |t: &&Value| t["rounds"].as_array().unwrap().len() == 2;
    let worst = trials.iter().filter(went_on).map(first).fold(0.0, f64::max);
    assert!(trials.iter().filter(|t| !went_on(t)).all(|t| first(t) >= worst), "{json}");
    assert!(trials.iter().filter(went_on).all(|t| loss(t) >= loss(winner)), "{json}");
    // The same settings alone give the same bytes; best.toml holds them.
    folder.edgeft("tune --model bert --data many.jsonl --out alone --config best/best.toml").ok();
    assert_eq!(folder.read("alone/adapter_model.safetensors"), folder.read("best/adapter_model.safetensors"));
    folder.edgeft("eval best --data r.jsonl").ok();
    folder.edgeft("report best --out page.html").ok();
    assert!(text(&folder, "page.html").contains("Successive halving"));
    let table = folder.edgeft(&format!("{} --force", tune)).ok().stdout;
    assert!(table.contains("winner: trial") && table.contains("held-out loss"), "{table}");
    assert_eq!(folder.read("alone/adapter_model.safetensors"), folder.read("best/adapter_model.safetensors"));
    refuses(&folder, tune, &["best exists", "--force"]);
    refuses(&folder, &format!("{tune} --resume"), &["finished"]);
    refuses(&folder, &format!("{tune} --lr 1e-3").replace("out best", "out other"), &["--lr is given"]);
    folder.write("bad.toml", "epoch = [1, 2]\n");
    refuses(
        &folder,
        &tune.replace("sweep.toml", "bad.toml").replace("out best", "out other"),
        &["bad.toml", "`epoch`"],
    );
}
