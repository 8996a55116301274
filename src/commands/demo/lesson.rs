//! The three lessons that the demo teaches: rows, settings, and the words around them.

use super::DemoTask;
use crate::data::schema::Task as TaskName;
use crate::demo::datasets;
use crate::tune::config::Settings;
use serde_json::{Value, json};
use std::path::Path;

/// Seed of every dataset and run of the demo.
const SEED: u64 = 1;

/// One lesson.
pub struct Lesson {
    /// What the rows teach.
    pub task: TaskName,
    /// What a row is, in the plural.
    pub rows: &'static str,
    /// What the model learns, after "teach a model to".
    pub aim: &'static str,
    /// What the metric says, for somebody who has never met it.
    pub meaning: &'static str,
    /// How it is tuned.
    pub settings: Settings,
    /// Rows to learn from.
    pub train: Vec<Value>,
    /// Rows held out.
    pub test: Vec<Value>,
    /// Prompts to answer in the end.
    pub prompts: Vec<Prompt>,
}

/// Something to ask the finished model.
pub enum Prompt {
    /// A text to label, and its true label.
    Label(String, &'static str),
    /// A beginning to continue.
    Continue(String),
    /// A question, its context, and the right answer.
    Ask(String, String, String),
}

impl Lesson {
    /// The rows and settings of a task.
    pub fn of(task: DemoTask) -> Self {
        match task {
            DemoTask::Sentiment => sentiment(),
            DemoTask::Story => story(),
            DemoTask::Answer => answer(),
        }
    }

    /// Writes `train.jsonl` and `test.jsonl`.
    pub fn write(&self, folder: &Path) -> anyhow::Result<()> {
        for (name, rows) in [("train.jsonl", &self.train), ("test.jsonl", &self.test)] {
            let lines: String = rows.iter().map(|r| format!("{r}\n")).collect();
            crate::tune::checkpoint::write_synced(&folder.join(name), lines.as_bytes())?;
        }
        Ok(())
    }
}

fn settings(task: TaskName, epochs: f64, lr: f64, batch: usize) -> Settings {
    Settings {
        task: Some(task),
        epochs: Some(epochs),
        lr: Some(lr),
        batch: Some(batch),
        seed: Some(SEED),
        ..Settings::default()
    }
}

fn sentiment() -> Lesson {
    let data = datasets::sentiment(SEED);
    let row = |r: &datasets::Review| json!({"text": r.text, "label": r.label});
    let one_of_each = ["positive", "negative"].map(|label| data.test.iter().find(|r| r.label == label));
    Lesson {
        task: TaskName::Classify,
        rows: "product reviews",
        aim: "tell positive, negative and neutral product reviews apart",
        meaning: "accuracy: the share of held-out reviews that get the right one of 3 labels; guessing gets 33 %",
        settings: settings(TaskName::Classify, 6.0, 2e-3, 16),
        train: data.train.iter().map(row).collect(),
        test: data.test.iter().map(row).collect(),
        prompts: one_of_each.into_iter().flatten().map(|r| Prompt::Label(r.text.clone(), r.label)).collect(),
    }
}

fn story() -> Lesson {
    let data = datasets::story(SEED);
    let row = |r: &datasets::Log| json!({"text": r.text});
    // The first line of a page: the model writes the rest.
    let beginnings = data.test.iter().take(2).filter_map(|r| r.text.lines().next().map(|l| format!("{l}\n")));
    Lesson {
        task: TaskName::Text,
        rows: "pages of a lighthouse's log",
        aim: "write pages of a lighthouse's log",
        meaning: "perplexity: among how many equally likely tokens the model is torn at each step; 1 is certainty",
        settings: Settings { max_len: Some(512), ..settings(TaskName::Text, 3.0, 3e-3, 8) },
        prompts: beginnings.map(Prompt::Continue).collect(),
        train: data.train.iter().map(row).collect(),
        test: data.test.iter().map(row).collect(),
    }
}

fn answer() -> Lesson {
    let data = datasets::answer(SEED);
    let row = |r: &datasets::Question| {
        json!({"question": r.question, "context": r.context,
            "answers": {"text": [r.answer], "answer_start": [r.answer_start]}})
    };
    let ask = |r: &datasets::Question| Prompt::Ask(r.question.clone(), r.context.clone(), r.answer.clone());
    Lesson {
        task: TaskName::Answer,
        rows: "questions over a short text",
        aim: "answer questions from a short text",
        meaning: "exact match: the share of held-out questions answered in exactly the right words",
        settings: settings(TaskName::Answer, 6.0, 2e-3, 16),
        prompts: data.test.iter().take(2).map(ask).collect(),
        train: data.train.iter().map(row).collect(),
        test: data.test.iter().map(row).collect(),
    }
}
