//! What the demo found, as a table on the terminal and as a page.

use super::{DemoTask, Findings, headline};
use crate::commands::show;
use crate::report::{ReportData, Table};

/// Names of the table's columns.
const COLUMNS: [&str; 6] = ["", "size", "metric", "verified", "first answer", "speed"];

impl Findings {
    /// Rows of the summary: base, tuned, each file.
    fn rows(&self) -> Vec<Vec<String>> {
        let blank = String::new;
        let value = |e: &crate::eval::Evaluation| {
            let text = headline(e);
            text.strip_prefix(e.headline().0).unwrap_or(&text).trim().to_owned()
        };
        let mut rows = vec![
            vec![
                "nano, before tuning".into(),
                show::bytes(self.base_bytes),
                value(&self.before),
                blank(),
                blank(),
                blank(),
            ],
            vec!["tuned".into(), show::bytes(2 * self.base_bytes), value(&self.after), blank(), blank(), blank()],
        ];
        for file in &self.files {
            let m = &file.bench.measurement;
            let first = edgeft_runtime::measure::stats::median(&m.first_ms());
            let decode = edgeft_runtime::measure::stats::median(&m.decode_rates());
            let prompt = edgeft_runtime::measure::stats::median(&m.prompt_rates());
            let speed = match (decode, prompt) {
                (Some(rate), _) => format!("writes {rate:.0} tokens/s"),
                (None, Some(rate)) => format!("reads {rate:.0} tokens/s"),
                (None, None) => blank(),
            };
            rows.push(vec![
                format!("{}.gguf", file.mix),
                show::bytes(file.bytes),
                value(&file.evaluation),
                if file.verification.pass { "pass".into() } else { "fail".into() },
                first.map_or_else(blank, |ms| format!("{ms:.1} ms")),
                speed,
            ]);
        }
        rows
    }

    fn columns(&self) -> Vec<String> {
        COLUMNS
            .iter()
            .map(|c| if *c == "metric" { self.after.headline().0.to_owned() } else { (*c).to_owned() })
            .collect()
    }

    /// Commands to go on with.
    fn next(&self) -> Vec<String> {
        let small = self.out.join("q4_k_m.gguf").display().to_string();
        let mut next = vec![match self.task {
            DemoTask::Sentiment => format!("edgeft run {small} -p \"The kettle is dreadful.\""),
            DemoTask::Story => format!("edgeft run {small} -p \"LIGHT LOG, Gull Point.\" -n 80"),
            DemoTask::Answer => {
                format!(
                    "edgeft run {small} --question \"Where is the lamp?\" --context \"The lamp is kept in the attic.\""
                )
            }
        }];
        next.push(format!("edgeft serve {small}"));
        next.push("edgeft tune --model nano --data YOURS.jsonl --out RUN".into());
        next
    }

    /// Prints the summary.
    pub fn print(&self) {
        println!();
        let mut rows = vec![self.columns()];
        rows.extend(self.rows());
        print!("{}", show::table_with(&rows, &[0, 3, 5]));
        println!("\n  {}", self.lesson.meaning);
        println!(
            "  verified: the file gives nearly the same probabilities as the tuned model, within the bounds of its type"
        );
        for a in &self.answers {
            let right = a.right.as_ref().map_or(String::new(), |r| format!("   (right: {r})"));
            println!("\n  > {}\n  {}{right}", a.asked, a.said.trim_end().replace('\n', "\n  "));
        }
        println!(
            "\n{:.0} s in all. Open {} for the pictures.\n\nNext:",
            self.seconds,
            self.out.join("report.html").display()
        );
        self.next().iter().for_each(|command| println!("  {command}"));
    }

    /// The page.
    pub fn page(&self) -> ReportData {
        let o = &self.tuned.outcome;
        let gate = self
            .files
            .iter()
            .map(|f| {
                let (v, bound) = (&f.verification, |b: Option<f64>| b.map_or("—".to_owned(), |b| format!("{b}")));
                vec![
                    f.mix.to_owned(),
                    format!("{:.2e}", v.mean_kl),
                    bound(v.bounds.max_kl),
                    format!("{:.2} %", 100.0 * v.top1),
                    v.bounds.min_top1.map_or("—".to_owned(), |b| format!("{:.0} %", 100.0 * b)),
                    v.positions.to_string(),
                    if v.pass { "pass".into() } else { "fail".into() },
                ]
            })
            .collect();
        let latency = self
            .files
            .iter()
            .flat_map(|f| {
                f.bench.rows().into_iter().map(|[what, value, note]| vec![f.mix.to_owned(), what, value, note])
            })
            .collect();
        let strings = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect();
        let last = self.files.last();
        ReportData {
            title: format!("edgeft demo: {}", self.task.name()),
            subtitle: format!("A model of {:.1} million weights learned to {}, on this machine.", self.base_bytes as f64 / 2e6, self.lesson.aim),
            facts: [
                Some(("Before".to_owned(), headline(&self.before))),
                Some(("After".to_owned(), headline(&self.after))),
                last.map(|f| (f.mix.to_owned(), headline(&f.evaluation))),
                last.map(|f| ("Size".to_owned(), show::bytes(f.bytes))),
                Some(("Tuning took".to_owned(), format!("{:.0} s", o.seconds))),
            ]
            .into_iter()
            .flatten()
            .collect(),
            bars: Vec::new(),
            loss: o.curve.clone(),
            val: o.val_curve.clone(),
            curves: Vec::new(),
            confusion_before: self.before.classes.as_ref().map(|c| c.confusion.clone()),
            confusion_after: self.after.classes.as_ref().map(|c| c.confusion.clone()),
            tables: vec![
                Table { title: "What each step left".into(), columns: self.columns(), rows: self.rows(), note: self.lesson.meaning.into() },
                Table {
                    title: "Verification against the tuned model".into(),
                    columns: strings(&["type", "mean KL", "at most", "same choice", "at least", "positions", "gate"]),
                    rows: gate,
                    note: "KL is the distance between the two models' probabilities, in nats; 0 is none. A file that does not pass ends the demo with exit code 3.".into(),
                },
                Table {
                    title: "Speed on this machine".into(),
                    columns: strings(&["type", "what", "median ± deviation", "remark"]),
                    rows: latency,
                    note: last.map_or(String::new(), |f| format!("{}, {} threads, {}", f.bench.device.cpu, f.bench.threads, f.bench.device.isa)),
                },
            ],
            samples: self.answers.iter().map(|a| (a.asked.clone(), a.said.clone())).collect(),
            next: self.next(),
            ..ReportData::default()
        }
    }
}
