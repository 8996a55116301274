//! The rows of `tune`: DATA as typed → rows to learn and rows held out, arranged as the loss wants them.

use super::TuneArgs;
use crate::data::batch::{Row, Side, Target, lengths, order, units};
use crate::data::example::Example;
use crate::data::read::{Reading, Rows, TextSide};
use crate::data::sides;
use crate::export;
use crate::model::network::Task;
use crate::model::open::Opened;
use crate::tune::config::{PreferenceKind, Settings, TaskName, TuneConfig};
use crate::tune::run_folder::RunFile;
use std::path::Path;
use std::sync::Arc;

/// Longest row, where nothing else is said.
const DEFAULT_MAX_LEN: usize = 256;

/// Rows to learn and to hold out.
pub struct Read {
    pub task: TaskName,
    pub labels: Vec<String>,
    pub train: Vec<Row>,
    pub val: Vec<Row>,
    pub held_out: Vec<usize>,
    pub schema: String,
    /// For --task preference: the loss that the rows are arranged for.
    pub preference: Option<PreferenceKind>,
    /// All rows of DATA, where folds are made of them.
    pub all: Option<Rows>,
}

/// Reads DATA, and parts it into rows to learn and rows held out.
///
/// # Errors
/// What is wrong with DATA, with its line; rows that the loss asked for cannot learn from.
pub fn read_data(
    args: &TuneArgs,
    opened: &Opened,
    settings: &Settings,
    saved: Option<&RunFile>,
) -> anyhow::Result<Read> {
    // Labels of the run that goes on, or of a base that already is a classifier.
    let known = match (saved, opened.task()?) {
        (Some(file), _) => file.run.labels.clone(),
        (None, Some(Task::Classify(labels))) => labels,
        _ => Vec::new(),
    };
    let reading = Reading {
        task: settings.task,
        labels: (!known.is_empty()).then_some(&known),
        max_len: settings.max_len.unwrap_or(DEFAULT_MAX_LEN).min(opened.config.max_position_embeddings),
        truncate: settings.truncate,
        encoder: !opened.config.family.is_decoder(),
    };
    let tokenizer = || export::tokenizer(opened).map(Arc::new);
    let text = TextSide { tokenizer: &tokenizer, template: opened.text.chat_template.as_deref() };
    let all = Rows::read(&args.data, &reading, &text)?;
    let (task, labels) = (all.task, all.labels.clone());
    let (train, val, held_out) = match &args.val {
        Some(path) => {
            let reading = Reading { task: Some(task), labels: (!labels.is_empty()).then_some(&labels), ..reading };
            (all.rows.clone(), Rows::read(path, &reading, &text)?.rows, Vec::new())
        }
        None if args.no_val || all.is_pretokenized() => (all.rows.clone(), Vec::new(), Vec::new()),
        None => match saved {
            // A run that goes on keeps what it held out.
            Some(file) => {
                let (train, val) = all.part(&file.run.held_out);
                (train, val, file.run.held_out.clone())
            }
            None => all.hold_out(settings.seed.unwrap_or(0)),
        },
    };
    if train.is_empty() {
        crate::bad_input!("{}: no row is left to learn", args.data.display());
    }
    if task == TaskName::Classify && labels.len() < 2 {
        let only = labels.first().map_or("", String::as_str);
        crate::bad_input!("{}: every row has the label `{only}`; a classifier needs at least two", args.data.display());
    }
    check_targets(&args.data, &train)?;
    if let Some((path, line)) = scored(&all) {
        crate::bad_input!(
            "{path}:{line}: a score says how near two texts are, and --task embed learns from texts that belong together; \
             keep the near pairs without their score (`edgeft eval` judges a model by scored pairs)"
        );
    }
    let room = opened.config.room();
    for (path, rows) in [(Some(&args.data), &train), (args.val.as_ref().or(Some(&args.data)), &val)] {
        let misfit = |row: &Row| row.misfit(room).map(|what| (row.source, what));
        if let (Some(path), Some((row, what))) = (path, rows.iter().find_map(misfit)) {
            crate::bad_input!("{}: row {row}: {what}", path.display());
        }
    }
    let preference =
        (task == TaskName::Preference).then(|| kind_of(&args.data, &train, settings.preference)).transpose()?;
    let max_len = reading.max_len;
    let arrange = |rows: Vec<Row>| match preference {
        Some(PreferenceKind::Kto) => sides::with_mismatched(sides::one_by_one(rows), max_len),
        _ => rows,
    };
    if let (Some(kind), Some(path)) = (preference, &args.val) {
        kind_of(path, &val, Some(kind))?;
    }
    let (schema, train, val) = (all.schema.clone(), arrange(train), arrange(val));
    let all = args.folds.is_some().then_some(all);
    Ok(Read { task, labels, train, val, held_out, schema, preference, all })
}

/// Every row must teach something.
fn check_targets(path: &Path, rows: &[Row]) -> anyhow::Result<()> {
    if let Some(row) = rows.iter().find(|r| matches!(r.target, Target::None)) {
        crate::bad_input!("{}: row {}: nothing to learn (no labels, no positions)", path.display(), row.source);
    }
    Ok(())
}

/// The loss that rows can be learned by: the one asked for, or the one that their fields say.
fn kind_of(path: &Path, rows: &[Row], asked: Option<PreferenceKind>) -> anyhow::Result<PreferenceKind> {
    let has = |side| rows.iter().any(|r| r.target.side() == Some(side));
    let pairs = has(Side::Chosen);
    let kind = asked.unwrap_or(if pairs { PreferenceKind::Dpo } else { PreferenceKind::Kto });
    let path = path.display();
    if !pairs && kind != PreferenceKind::Kto {
        crate::bad_input!(
            "{path}: --preference {kind} needs `chosen` and `rejected`; rows with a `label` are for --preference kto"
        );
    }
    if kind == PreferenceKind::Kto && rows.len() < 2 {
        crate::bad_input!(
            "{path}: --preference kto needs at least two answers, to hold one against the prompt of another"
        );
    }
    Ok(kind)
}

/// An anchor that is alone in its micro-batch, without a negative, has nothing to be told from: where all are, nothing is learned.
pub fn check_company(path: &Path, rows: &[Row], config: &TuneConfig) -> anyhow::Result<()> {
    let units = units(rows);
    let alone = |batch: &Vec<usize>| batch.len() < 2 && batch.iter().all(|i| units[*i].len() < 3);
    if config.embed.is_some() && order(&lengths(rows, &units), config.size(), config.seed, 0, true).iter().all(alone) {
        crate::bad_input!(
            "{}: every anchor is alone in its micro-batch, with nothing to be told from; give more rows, a larger --batch, or \
             negatives",
            path.display()
        );
    }
    Ok(())
}

/// The first row that says how near its texts are: the file, and its line.
fn scored(all: &Rows) -> Option<(String, usize)> {
    let data = all.examples.as_ref()?;
    let has = |(_, example): &&(usize, Example)| matches!(example, Example::Embed { score: Some(_), .. });
    data.rows.iter().find(has).map(|(line, _)| (data.path.display().to_string(), *line))
}
