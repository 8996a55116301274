//! `eval`, `audit` and `report` through the front door: every number with its interval, what is fitted, two models on the same
//! rows, and what a page and a card show of it.

use crate::cli::{folder, refuses};
use crate::common::{Folder, close, data, has_fields, tensors, tensors::Values, tiny::Tiny};
use edgeft::rng;
use serde_json::{Value, json};

/// The number at a place.
pub fn at(json: &Value, place: &str) -> f64 {
    json.pointer(place).and_then(Value::as_f64).unwrap_or_else(|| panic!("no number at {place} in {json}"))
}

/// A file as text.
pub fn text(folder: &Folder, name: &str) -> String {
    String::from_utf8(folder.read(name)).expect("UTF-8")
}

/// A RUN that classifies reviews.
fn judged() -> Folder {
    let folder = folder();
    folder.write("many.jsonl", data::reviews(80));
    folder.write("test.jsonl", data::reviews(40));
    folder.edgeft("tune --model bert --data many.jsonl --out run --epochs 4 --batch 8 --lr 2e-3 --seed 1").ok();
    folder
}

#[test]
fn a_classifier_is_judged_with_intervals_and_its_temperature_is_kept() {
    let folder = judged();
    let json = folder.edgeft("eval run --data test.jsonl --predictions p.jsonl --json").ok().json();
    for metric in ["accuracy", "macro_f1", "auroc", "ece"] {
        let (value, low, high) = (
            at(&json, &format!("/ci95/{metric}/value")),
            at(&json, &format!("/ci95/{metric}/low")),
            at(&json, &format!("/ci95/{metric}/high")),
        );
        assert!(low <= value && value <= high || metric == "ece", "{metric}: {low} {value} {high}");
        assert_eq!(json[metric], json["ci95"][metric]["value"], "{metric}");
    }
    has_fields(
        &json,
        "calibration.bins calibration.temperature calibration.fitted_on calibration.ece_at_temperature per_class auroc_of",
    );
    assert!(at(&json, "/calibration/temperature") > 0.0 && json["calibration"]["fitted_rows"] == 8);
    assert_eq!(serde_json::from_slice::<Value>(&folder.read("run/eval.json")).unwrap(), json);
    // The numbers once more, from the predictions that were written.
    let rows: Vec<Value> = text(&folder, "p.jsonl").lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let right = rows.iter().filter(|r| r["label"] == r["predicted"]).count();
    close(right as f64 / rows.len() as f64, at(&json, "/accuracy"), 1e-12, "accuracy");
    let positive = |r: &&Value| r["label"] == json["auroc_of"];
    let score = |r: &Value| r["scores"][json["auroc_of"].as_str().unwrap()].as_f64().unwrap();
    let (mut wins, mut pairs) = (0.0, 0.0);
    for a in rows.iter().filter(positive) {
        for b in rows.iter().filter(|r| !positive(r)) {
            wins += if score(a) > score(b) {
                1.0
            } else if score(a) == score(b) {
                0.5
            } else {
                0.0
            };
            pairs += 1.0;
        }
    }
    close(wins / pairs, at(&json, "/auroc"), 1e-12, "auroc");
    assert!(rows.iter().enumerate().all(|(i, r)| r["row"] == i + 1), "{rows:?}");
    // Other rows to fit on, and rows on which nothing can be fitted.
    let other = folder.edgeft("eval run --data test.jsonl --fit r.jsonl --json").ok().json();
    assert_eq!(other["calibration"]["fitted_on"], "r.jsonl");
    assert_eq!(other["accuracy"], json["accuracy"]);
    let said = folder.edgeft("eval run --data test.jsonl").ok().stdout;
    assert!(said.contains("temperature") && said.contains("the rows that the run held out"), "{said}");
    refuses(&folder, "eval base --data d.jsonl --fit d.jsonl", &["--fit d.jsonl", "nothing is fitted"]);
}

#[test]
fn two_models_are_compared_row_by_row() {
    let folder = judged();
    Tiny::classifier(&["negative", "positive"]).write(&folder, "judge");
    let json = folder.edgeft("eval run --data test.jsonl --against judge --json").ok().json();
    let d = &json["against"]["metrics"]["accuracy"];
    close(at(d, "/difference"), at(d, "/subject") - at(d, "/against"), 1e-9, "difference");
    assert_eq!((d["test"].as_str(), d["subject"].as_f64()), (Some("mcnemar"), json["accuracy"].as_f64()));
    assert!(at(d, "/low") <= at(d, "/difference") && at(d, "/difference") <= at(d, "/high") && at(d, "/p") <= 1.0);
    let theirs = folder.edgeft("eval judge --data test.jsonl --json").ok().json();
    assert_eq!(d["against"], theirs["accuracy"]);
    let same = folder.edgeft("eval run --data test.jsonl --against run --json").ok().json();
    let d = &same["against"]["metrics"]["macro_f1"];
    assert_eq!((at(d, "/difference"), at(d, "/p")), (0.0, 1.0));
    refuses(&folder, "eval run --data test.jsonl --against base", &["generates text"]);
    // Texts: the same tokens, or no comparison.
    let json = folder.edgeft("eval base --data d.jsonl --against base --write 0 --json").ok().json();
    assert_eq!(json["against"]["metrics"]["perplexity"]["difference"], 0.0);
    refuses(&folder, "eval base --data d.jsonl --write 0 --against nano", &["--against", "tokenize"]);
}

#[test]
fn what_a_model_writes_is_compared_with_what_it_should_have() {
    let folder = folder();
    let tune = "tune --model base --data d.jsonl --out run --epochs 30 --batch 10 --lr 3e-3 --no-val --seed 3";
    folder.edgeft(tune).ok();
    let json = folder.edgeft("eval run --data d.jsonl --write 10 --max-new 8 --predictions p.jsonl --json").ok().json();
    assert_eq!((json["written"]["rows"].as_u64(), json["written"]["of"].as_u64()), (Some(10), Some(30)));
    let (rouge, chrf) = (at(&json, "/rouge_l"), at(&json, "/chrf"));
    assert!(rouge > 0.8 && chrf > 80.0, "{json}");
    has_fields(&json, "ci95.rouge_l.low ci95.chrf.high");
    let rows: Vec<Value> = text(&folder, "p.jsonl").lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let written: Vec<&Value> = rows.iter().filter(|r| r.get("written").is_some()).collect();
    assert_eq!((written.len(), rows.len()), (10, 40));
    let mean: f64 = written.iter().map(|r| r["rouge_l"].as_f64().unwrap()).sum::<f64>() / 10.0;
    close(mean, rouge, 1e-12, "ROUGE-L");
    // A file on the cpu engine writes the same.
    folder.edgeft("quantize run --type f32 --out m.gguf").ok();
    let file = folder.edgeft("eval m.gguf --data d.jsonl --write 10 --max-new 8 --json").ok().json();
    assert_eq!((&file["rouge_l"], &file["chrf"]), (&json["rouge_l"], &json["chrf"]));
    assert!(folder.edgeft("eval base --data d.jsonl --write 0 --json").ok().json().get("rouge_l").is_none());
}

#[test]
fn a_text_in_one_window_has_the_same_perplexity_however_it_is_cut() {
    let folder = folder();
    let words: Vec<&str> = (0..50).map(|i| data::WORDS[i * i % 40]).collect();
    folder.write("t.jsonl", json!({"text": words.join(" ")}).to_string());
    let eval = |flags: &str| folder.edgeft(&format!("eval base --data t.jsonl {flags} --json")).ok().json();
    let (whole, small, none) =
        (eval("--stride 128"), eval("--max-len 20 --stride 4"), eval("--max-len 20 --stride 20"));
    // More context before each token, a lower loss is likely but not certain; the count of tokens is certain.
    let count = |json: &Value| (json["loss"].as_f64().unwrap(), json["examples"].as_u64().unwrap());
    assert_eq!(count(&whole).1, 1);
    assert!(count(&small).1 > count(&none).1 && count(&small).0 != count(&none).0);
    close(at(&whole, "/perplexity"), count(&whole).0.exp(), 1e-9, "perplexity");
    refuses(&folder, "eval base --data t.jsonl --max-len 20 --stride 21", &["--stride 21", "gaps"]);
    refuses(&folder, "eval base --data t.jsonl --second-half --max-len 128", &["t.jsonl", "128 tokens"]);
    refuses(&folder, "eval base --data t.jsonl --stride 4 --second-half", &["--stride", "--second-half"]);
    refuses(&folder, "eval base --data t.jsonl --stride 4 --task chat", &["--stride", "--task chat"]);
}

/// nano on a text of this repository's, as torch computes it: transformers 5.24.0, `LlamaForCausalLM` on nano's files in f32, the
/// recipe of the documentation for models of fixed length (window 64, stride 16), and llama.cpp's rule (windows of 64 that follow
/// one another, logits 32 .. 62 of each) on the same logits. Made with `tests/fixtures/judge.py`.
#[test]
fn perplexity_with_a_stride_matches_transformers() {
    let folder = Folder::new();
    folder.write("t.txt", STORY.repeat(3));
    let eval = |flags: &str| folder.edgeft(&format!("eval nano --data t.txt --max-len 64 {flags} --json")).ok().json();
    close(at(&eval("--stride 16"), "/perplexity"), STRIDED, 1e-4, "stride 16");
    close(at(&eval("--stride 64"), "/perplexity"), DISJOINT, 1e-4, "stride 64");
    close(at(&eval("--second-half"), "/perplexity"), SECOND_HALF, 1e-4, "second half");
}

const STORY: &str = "Once there was a lamp that stood on the table in the kitchen. Anna took the lamp to the garden, and the wind blew it out. \
    She laughed and carried it back into the house.\n";
const STRIDED: f64 = 273.751168025074;
const DISJOINT: f64 = 552.6389500188287;
const SECOND_HALF: f64 = 368.73255141270454;

/// Questions of which every third has no answer in its context.
fn some_unanswerable(n: usize) -> String {
    data::questions(n)
        .lines()
        .enumerate()
        .map(|(i, line)| {
            let mut row: Value = serde_json::from_str(line).unwrap();
            if i % 3 == 0 {
                row["context"] =
                    json!(format!("the {} was very lovely and it was on the table", data::WORDS[i / 3 % 10]));
                row["answers"] = json!({"text": [], "answer_start": []});
            }
            format!("{row}\n")
        })
        .collect()
}

#[test]
fn questions_without_an_answer_are_judged_by_staying_unanswered() {
    let folder = folder();
    folder.write("q.jsonl", some_unanswerable(120));
    folder.write("test.jsonl", some_unanswerable(45));
    folder.edgeft("tune --model bert --task answer --data q.jsonl --out run --epochs 8 --batch 12 --lr 2e-3").ok();
    let json = folder.edgeft("eval run --data test.jsonl --predictions p.jsonl --json").ok().json();
    let u = &json["unanswerable"];
    assert_eq!((u["has_answer"]["total"].as_u64(), u["no_answer"]["total"].as_u64()), (Some(30), Some(15)));
    let (has, none) = (at(u, "/has_answer/exact_match/value"), at(u, "/no_answer/exact_match/value"));
    close((30.0 * has + 15.0 * none) / 45.0, at(&json, "/exact_match"), 1e-9, "the parts make the whole");
    assert!(u["threshold_from"].as_str().unwrap().contains("held out"), "{u}");
    assert!(at(u, "/best_f1/value") >= at(&json, "/f1") - 1e-9);
    // Silent exactly where the chance of no answer is above the threshold.
    for row in text(&folder, "p.jsonl").lines().map(|l| serde_json::from_str::<Value>(l).unwrap()) {
        assert_eq!(row["predicted"] == "", at(&row, "/no_answer_score") > at(u, "/threshold"), "{row}");
    }
    let never = folder.edgeft("eval run --data test.jsonl --no-answer-threshold 1 --json").ok().json();
    assert_eq!(
        (at(&never, "/unanswerable/no_answer/f1/value"), never["unanswerable"]["threshold_from"].as_str()),
        (0.0, Some("given"))
    );
    let always = folder.edgeft("eval run --data test.jsonl --no-answer-threshold 0 --json").ok().json();
    close(at(&always, "/f1"), 15.0 / 45.0, 1e-9, "silence is right a third of the time");
    refuses(&folder, "eval run --data test.jsonl --no-answer-threshold 2", &["0 to 1"]);
}

const CROWS: &str = "sent_more,sent_less,stereo_antistereo,bias_type\n\
    the lamp was very good,the lamp was very bad,stereo,things\n\
    \"the red house, it was fine\",\"the blue house, it was fine\",antistereo,colours\n\
    the stone is green,the stone is red,stereo,colours\n";

#[test]
fn a_language_model_says_which_sentence_is_likelier() {
    let folder = folder();
    folder.write("crows.csv", CROWS);
    folder.edgeft("tune --model base --data d.jsonl --out run --steps 3 --no-val").ok();
    let json = folder.edgeft("audit run --data crows.csv --against base --json").ok().json();
    has_fields(
        &json,
        "pairs metric value ci95.low ci95.high by_group.things.value by_group.colours.pairs against.value difference.p",
    );
    assert_eq!((json["metric"].as_str(), json["pairs"].as_u64()), (Some("stereotype_share"), Some(3)));
    // The same by hand: perplexity of each sentence as a text.
    let mut nll = Vec::new();
    for sentence in ["the stone is green", "the stone is red"] {
        folder.write("one.jsonl", json!({"text": sentence}).to_string());
        folder.edgeft("eval base --data one.jsonl --stride 128 --predictions one.p --json").ok();
        nll.push(at(&serde_json::from_slice(&folder.read("one.p")).unwrap(), "/nll"));
        std::fs::remove_file(folder.at("one.p")).unwrap();
    }
    let base = folder.edgeft("audit base --data crows.csv --json").ok().json();
    let shown = base["examples"].as_array().unwrap().iter().find(|e| e["row"] == 4).expect("the third pair");
    close(at(shown, "/difference"), nll[1] - nll[0], 1e-4, "log-likelihood ratio");
    assert_eq!(folder.edgeft("audit base --data crows.csv --json").ok().json(), base);
    // Built-in sentences; every kind of bad input.
    let built_in = folder.edgeft("audit nano --json").ok().json();
    assert!(built_in["pairs"].as_u64().unwrap() > 80 && built_in["by_group"].get("gender").is_some());
    let words = folder.edgeft("audit nano").ok().stdout;
    assert!(words.contains("stereotype share") && words.contains("no certificate"), "{words}");
    folder.write("bad.csv", "a,b\nx,y\n");
    refuses(&folder, "audit base --data bad.csv", &["bad.csv", "`a`, `b`", "--columns"]);
    folder.edgeft("audit base --data bad.csv --columns first=a,second=b").ok();
    refuses(&folder, "audit base --data bad.csv --columns third=a", &["third", "first"]);
    folder.write("single.csv", "text,group\nx,y\n");
    refuses(&folder, "audit base --data single.csv", &["pairs of sentences"]);
    refuses(&folder, "audit base --favorable good", &["--favorable"]);
    refuses(&folder, "audit bert --data crows.csv", &["bert", "no masked-language head", "BertForMaskedLM"]);
    folder.write("pro.txt", "1 [the lamp] is good\n2 the stone is bad\n");
    folder.write("anti.txt", "1 [the lamp] is bad\n2 the stone is good\n");
    assert_eq!(folder.edgeft("audit base --data pro.txt --second anti.txt --json").ok().json()["pairs"], 2);
}

#[test]
fn a_classifier_is_audited_by_flips_shifts_and_gaps() {
    let folder = judged();
    let json = folder.edgeft("audit run --json").ok().json();
    assert_eq!((json["metric"].as_str(), json["favorable"].as_str()), (Some("flip_rate"), Some("positive")));
    has_fields(
        &json,
        "metrics.mean_score_shift metrics.mean_absolute_score_shift metrics.demographic_parity_gap metrics.equalized_odds_gap",
    );
    folder.write(
        "mine.csv",
        "he,she,truth\nthe red lamp was very good,the blue lamp was very good,positive\n\
         the red chair was very awful,the blue chair was very great,negative\n",
    );
    let json = folder.edgeft("audit run --data mine.csv --columns first=he,second=she,label=truth --json").ok().json();
    assert_eq!(json["pairs"], 2);
    let shift = |label: &str| {
        let line = format!("audit run --data mine.csv --columns first=he,second=she --favorable {label} --json");
        at(&folder.edgeft(&line).ok().json(), "/metrics/mean_score_shift/value")
    };
    close(shift("positive"), -shift("negative"), 1e-9, "what one label gains the other loses");
    folder.write(
        "groups.csv",
        "text,group,label\nthe lamp was very good,a,positive\nthe lamp was very bad,a,negative\n\
         the lamp was very good,b,positive\nthe lamp was very bad,b,negative\n",
    );
    let gap = folder.edgeft("audit run --data groups.csv --json").ok().json();
    assert_eq!((gap["metric"].as_str(), at(&gap, "/value")), (Some("demographic_parity_gap"), 0.0));
    assert_eq!(at(&gap, "/metrics/equalized_odds_gap/value"), 0.0);
    has_fields(&gap, "by_group.a.low by_group.b.pairs");
    assert_eq!(serde_json::from_slice::<Value>(&folder.read("run/audit.json")).unwrap(), gap);
    refuses(&folder, "audit run --favorable lukewarm", &["--favorable", "lukewarm", "negative, positive"]);
    refuses(&folder, "audit run --against base", &["--against", "flip_rate"]);
}

/// A BERT with the head it learned its language with. Its numbers are held against transformers in `.ci`; here against itself.
#[test]
fn a_masked_model_is_asked_through_its_own_head() {
    let folder = folder();
    folder.write("crows.csv", CROWS);
    let bert = Tiny::bert().with("architectures", json!(["BertForMaskedLM"]));
    let mut weights = bert.tensors();
    let mut put = |name: &str, shape: &[usize]| {
        let n: usize = shape.iter().product();
        let values = (0..n as u64).map(|i| 0.2 * rng::normal(9, rng::stream(name, 0), i)).collect();
        weights.insert(name.to_owned(), (shape.to_vec(), Values::F32(values)));
    };
    put("cls.predictions.transform.dense.weight", &[64, 64]);
    put("cls.predictions.transform.dense.bias", &[64]);
    put("cls.predictions.transform.LayerNorm.weight", &[64]);
    put("cls.predictions.transform.LayerNorm.bias", &[64]);
    put("cls.predictions.bias", &[crate::common::tiny::VOCAB]);
    bert.write(&folder, "masked");
    folder.write("masked/model.safetensors", tensors::bytes(&weights));
    let json = folder.edgeft("audit masked --data crows.csv --json").ok().json();
    assert!(json["how"].as_str().unwrap().starts_with("pseudo log-likelihood") && json["pairs"] == 3, "{json}");
    assert!(json["examples"].as_array().unwrap().iter().all(|e| at(e, "/difference") != 0.0), "{json}");
}

#[test]
fn a_page_and_a_card_show_what_was_found() {
    let folder = judged();
    let card = text(&folder, "run/README.md");
    for words in ["library_name: peft", "Not evaluated yet", "Not audited"] {
        assert!(card.contains(words), "no `{words}` in\n{card}");
    }
    folder.edgeft("eval run --data test.jsonl --against run").ok();
    folder.edgeft("audit run").ok();
    folder.edgeft("quantize run --type f32 --out m.gguf").ok();
    folder.edgeft("verify m.gguf --against run --data test.jsonl").ok();
    folder.edgeft("bench run --runs 2 --prompt 8").ok();
    folder.edgeft("report run --out page.html").ok();
    let page = text(&folder, "page.html");
    for words in [
        "held-out loss",
        "Metrics",
        "Calibration",
        "accuracy over confidence",
        "Labels",
        "Against run",
        "Audit: flip rate",
        "Verification of m.gguf",
        "Latency",
        "What was predicted",
        "Settings",
    ] {
        assert!(page.contains(words), "no `{words}`");
    }
    assert!(!page.contains("<script") && !page.contains("http"));
    let card = text(&folder, "run/README.md");
    assert!(card.contains("| Accuracy |") && card.contains("flip rate") && card.contains("model-index"), "{card}");
    let here = folder.path().to_string_lossy().into_owned();
    assert!(!card.contains(&here), "{card}");
    // A classifier that is wrong leaves its errors with their texts.
    Tiny::classifier(&["negative", "positive"]).write(&folder, "judge");
    let json = folder.edgeft("eval judge --data test.jsonl --json").ok().json();
    let worst = json["worst"].as_array().unwrap();
    assert!(!worst.is_empty() && worst.iter().all(|w| w["text"].as_str().unwrap().starts_with("the ")), "{json}");
    folder.write("run/audit.json", "{");
    refuses(&folder, "report run --out other.html", &["run/audit.json", "not valid JSON"]);
}

#[test]
fn candidates_are_ranked_by_task_and_room_and_speed() {
    let folder = folder();
    Tiny::llama().write(&folder, "models/small");
    Tiny::llama().with("intermediate_size", json!(384)).write(&folder, "models/wide");
    Tiny::bert().write(&folder, "models/reader");
    folder.write("models/note.txt", "no model");
    let rank =
        |task: &str| folder.edgeft(&format!("targets raspberry-pi-5 --task {task} --models models --json")).ok().json();
    let names = |json: &Value| -> Vec<String> {
        json["ranking"].as_array().unwrap().iter().map(|c| c["path"].as_str().unwrap().to_owned()).collect()
    };
    let chat = rank("chat");
    assert_eq!(names(&chat), ["models/small", "models/wide", "models/reader"]);
    assert_eq!(chat["ranking"][2]["unfit"], "an encoder: it writes nothing");
    has_fields(&chat, "kind sources.memory sources.bandwidth");
    has_fields(&chat["ranking"][0], "rank params fits context decode_tokens_per_s memory.total suits_task");
    assert!(rank("classify")["ranking"].as_array().unwrap().iter().all(|c| c["suits_task"] == true));
    let words = folder.edgeft("targets raspberry-pi-5 --models models/small nano").ok().stdout;
    assert!(words.contains("nothing measured") && words.contains("GB/s: "), "{words}");
    folder.write("none/note.txt", "");
    refuses(&folder, "targets raspberry-pi-5 --models none", &["none", "neither a model nor a folder of models"]);
    refuses(&folder, "targets --models models", &["NAME"]);
    refuses(&folder, "targets raspberry-pi-5 --task chat", &["--models"]);
}
