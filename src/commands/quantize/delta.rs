//! `--keep-delta`: matrices in which rounding would erase what tuning changed get the next larger type.

use crate::cli::Global;
use crate::commands::show;
use crate::export;
use crate::model::open::Opened;
use crate::retention::{self, Retention};
use edgeft_quantize::{Mix, PlanOptions};
use serde_json::{Value, json};

/// Options with the lifted types, and what was found before and after; as they were where nothing was asked.
///
/// # Errors
/// A model without an adapter that adds to matrices; what planning and rounding have.
pub fn kept(
    opened: &Opened,
    mix: Mix,
    options: &PlanOptions,
    min_cosine: Option<f64>,
    global: &Global,
) -> anyhow::Result<(PlanOptions, Option<Value>)> {
    let mut options = options.clone();
    let Some(min_cosine) = min_cosine else { return Ok((options, None)) };
    let look =
        |options: &PlanOptions| retention::of_plan(opened, &export::make_plan(opened, mix, options)?, min_cosine);
    let Some(before) = look(&options)? else {
        crate::bad_input!(
            "{}: --keep-delta holds what an adapter changed, and no adapter adds to a matrix here; give a RUN of lora, rslora, dora or qlora",
            opened.name
        );
    };
    options.chosen.extend(retention::lifted(&before));
    let after = if before.erased > 0 { look(&options)?.unwrap_or_else(|| before.clone()) } else { before.clone() };
    if !global.json {
        println!(
            "{}: rounding erases what tuning changed in {} of {} matrices (cosine under {min_cosine} or length under {}); {} lifted one type up",
            mix.name(),
            before.erased,
            before.matrices,
            retention::MIN_RATIO,
            options.chosen.len()
        );
        println!(
            "  of the change, before and after: length {:.2} and {:.2}, cosine {:.2} and {:.2}; {} still under",
            before.ratio, after.ratio, before.cosine, after.cosine, after.erased
        );
    }
    let lifted: Vec<&String> = options.chosen.keys().collect();
    let json = json!({"lifted": lifted, "before": before, "after": after});
    Ok((options, Some(json)))
}

/// The matrices that lost most, for people.
pub fn print(found: &Retention) {
    println!(
        "  what tuning changed: {} of {} matrices lost it (cosine under {} or length under {}); over all, length {:.2}, cosine {:.2}",
        found.erased, found.matrices, found.min_cosine, found.min_ratio, found.ratio, found.cosine
    );
    if found.as_in_file == Some(false) {
        println!("  (by plain rounding: the file's own blocks are others, as an importance matrix makes them)");
    }
    if found.erased == 0 {
        return;
    }
    let mut rows = vec![["matrix", "type", "length left", "cosine"].map(str::to_owned).to_vec()];
    for k in &found.worst {
        rows.push(vec![k.name.clone(), k.ty.into(), format!("{:.3}", k.ratio), format!("{:.3}", k.cosine)]);
    }
    print!("{}", show::table(&rows));
}
