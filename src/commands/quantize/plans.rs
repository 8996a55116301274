//! `--plan`: which tensor would get which type, and why.

use super::{delta, importance};
use crate::cli::Global;
use crate::commands::show;
use crate::export;
use crate::model::open::Opened;
use edgeft_quantize::{Mix, Plan, PlanOptions};
use serde_json::json;
use std::collections::BTreeMap;
use std::process::ExitCode;

/// Prints what each mix would be.
///
/// # Errors
/// What planning has.
pub fn print(
    opened: &Opened,
    mixes: &[Mix],
    options: &PlanOptions,
    keep_delta: Option<f64>,
    budget: Option<&serde_json::Value>,
    global: &Global,
) -> anyhow::Result<ExitCode> {
    let mut all = Vec::new();
    for mix in mixes {
        let (options, retention) = delta::kept(opened, *mix, options, keep_delta, global)?;
        let plan = export::make_plan(opened, *mix, &options)?;
        if global.json {
            let mut json = plan_json(&plan);
            if let Some(retention) = retention {
                json["retention"] = retention;
            }
            if let Some(budget) = budget {
                json["budget"] = budget.clone();
            }
            all.push(json);
        } else {
            print_plan(&plan);
        }
    }
    if global.json {
        println!("{}", if all.len() == 1 { all.remove(0) } else { json!({ "plans": all }) });
    }
    Ok(ExitCode::SUCCESS)
}

fn plan_json(plan: &Plan) -> serde_json::Value {
    let types: BTreeMap<_, _> = plan.types().into_iter().map(|(t, n)| (t.name(), n)).collect();
    let tensors: Vec<_> = plan
        .tensors
        .iter()
        .map(|t| json!({"name": t.name, "shape": t.shape, "type": t.ty.name(), "reason": t.reason.to_string(), "fallback": t.fallback()}))
        .collect();
    let importance = plan.coverage.as_ref().map(importance::json_of);
    json!({"type": plan.name(), "bytes": plan.bytes(), "bpw": plan.bits_per_weight(), "types": types, "tensors": tensors,
        "importance": importance})
}

fn print_plan(plan: &Plan) {
    let mut rows = vec![["tensor", "shape", "type", "bytes", "why"].map(str::to_owned).to_vec()];
    for t in &plan.tensors {
        let why = t.fallback().unwrap_or_else(|| t.reason.to_string());
        rows.push(vec![t.name.clone(), format!("{:?}", t.shape), t.ty.name().into(), show::bytes(t.bytes()), why]);
    }
    print!("{}", show::table(&rows));
    println!(
        "{}: {}, {:.2} bits a weight, {} of {} tensors fall back\n",
        plan.name(),
        show::bytes(plan.bytes()),
        plan.bits_per_weight(),
        plan.fallbacks().count(),
        plan.tensors.len()
    );
    if let Some(coverage) = &plan.coverage {
        importance::print(coverage);
    }
}
