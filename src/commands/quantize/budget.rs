//! `--max-size` and `--max-kl`: types chosen matrix by matrix, by how much the answers change.

use super::{QuantizeArgs, Target};
use crate::budget::{Front, Probe, Tensor};
use crate::cli::Global;
use crate::commands::show;
use crate::data::batch::Row;
use crate::error::GateFailed;
use crate::eval::rows::{embedded_sample, held_out, read_judged};
use crate::eval::subject::{EngineName, Subject};
use crate::export;
use crate::model::open::Opened;
use edgeft_quantize::{Mix, PlanOptions, Reason};
use edgeft_runtime::format::GgmlType;
use edgeft_runtime::model::Model;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Flags about budgets.
#[derive(clap::Args)]
pub struct BudgetArgs {
    /// Largest file: choose each matrix' type, of all or of those that --type's mixes use, by how much the answers change
    /// on --verify's or --calibrate's rows; e.g. --max-size 800MB
    #[arg(long, value_name = "SIZE", value_parser = crate::tune::memory::parse_bytes)]
    pub max_size: Option<u64>,
    /// Smallest file whose mean KL divergence from MODEL is at most X nats a position; needs rows: --verify or --calibrate
    #[arg(long, value_name = "X")]
    pub max_kl: Option<f64>,
    /// Slowest step: the file that changes least among those that write a token in at most X ms here, as `bench` measures with
    /// these --threads
    #[arg(long, value_name = "X")]
    pub max_ms_per_token: Option<f64>,
}

/// A mix that was measured.
struct Chosen {
    point: usize,
    kl: f64,
    ms_per_token: Option<f64>,
}

impl BudgetArgs {
    /// Whether types are to be chosen.
    pub fn asked(&self) -> bool {
        self.max_size.is_some() || self.max_kl.is_some() || self.max_ms_per_token.is_some()
    }

    /// # Errors
    /// What does not go together.
    pub fn check(&self, args: &QuantizeArgs) -> anyhow::Result<()> {
        if self.asked() && args.to == Target::Onnx {
            crate::bad_input!(
                "--max-size, --max-kl and --max-ms-per-token choose types of GGUF blocks; they go with --to gguf"
            );
        }
        for (flag, x) in [("--max-kl", self.max_kl), ("--max-ms-per-token", self.max_ms_per_token)] {
            if let Some(x) = x.filter(|x| !(*x > 0.0 && x.is_finite())) {
                crate::bad_input!("{flag} {x}: give a number over 0");
            }
        }
        if self.max_kl.is_some() && args.verify.is_none() && args.importance.calibrate.is_none() {
            crate::bad_input!("--max-kl is measured on rows: give --verify DATA or --calibrate DATA");
        }
        Ok(())
    }
}

/// What the keys of a verification take at most, which come after the file is measured.
const VERIFICATION_BYTES: u64 = 2048;
/// Files that are made to find the smallest under a bound of KL.
const TRIES: usize = 6;
/// Points of the front that are printed.
const SHOWN: usize = 12;

/// The mix that was chosen.
pub struct Found {
    /// The one whose base type most weights have.
    pub mix: Mix,
    /// Types by tensor.
    pub options: PlanOptions,
    /// For `--json`.
    pub json: Value,
}

/// Chooses.
///
/// # Errors
/// A size that no mix has; a KL that none keeps, which is a gate that did not pass; what reading and running have.
pub fn solve(
    args: &QuantizeArgs,
    opened: &Opened,
    options: &PlanOptions,
    mixes: &[Mix],
    global: &Global,
) -> anyhow::Result<Found> {
    let (rows, of) = rows(args, opened, global)?;
    let probe = Probe::new(opened, &rows, options.importance.as_ref(), options.best, global.threads())?;
    let mut types: Vec<GgmlType> = Vec::new();
    for mix in mixes {
        types.extend(export::make_plan(opened, *mix, options)?.types().into_keys().filter(|ty| *ty != GgmlType::F32));
    }
    let bar = show::bar(probe.matrices().count() as u64, "measuring");
    let fixed = |name: &str| options.overrides.iter().find(|(pattern, _)| pattern.is_match(name)).map(|(_, ty)| *ty);
    let found = probe.sensitivity(&types, &fixed, &mut |done, _| bar.set_position(done as u64))?;
    bar.finish_and_clear();
    let header = export::header_bytes(opened, Mix::Q8_0, options)? + VERIFICATION_BYTES;
    let front = Front::new(&found.tensors, header + probe.other_bytes());
    let solver = Solver { opened, options, probe, tensors: &found.tensors, front };
    let Chosen { point, kl: measured, ms_per_token } = solver.choose(&args.budget, global.threads())?;
    let at = solver.front.points[point];
    let elements: u64 = found.tensors.iter().map(|t| t.elements).sum();
    let bpw = |bytes: u64| 8.0 * (bytes - header) as f64 / elements as f64;
    let (mix, chosen) = solver.options(point);
    let points: Vec<Value> =
        solver.front.points.iter().map(|p| json!({"bpw": bpw(p.bytes), "bytes": p.bytes, "kl": p.kl})).collect();
    let json = json!({"max_size": args.budget.max_size, "max_kl": args.budget.max_kl,
        "max_ms_per_token": args.budget.max_ms_per_token, "ms_per_token": ms_per_token, "rows": of,
        "positions": found.positions, "predicted_kl": at.kl, "measured_kl": measured, "front": points,
        "sensitivity": "KL divergence of each matrix alone in one type, carried to its other types by the squared error"});
    if !global.json {
        println!(
            "least change for the size, over {} matrices on {} positions of {of}:",
            found.tensors.len(),
            found.positions
        );
        let mut table = vec![["bits a weight", "file", "KL, predicted", ""].map(str::to_owned).to_vec()];
        for i in shown(solver.front.points.len(), point) {
            let p = solver.front.points[i];
            let mark = if i == point { format!("chosen; KL {measured:.2e} measured") } else { String::new() };
            table.push(vec![format!("{:.2}", bpw(p.bytes)), show::bytes(p.bytes), format!("{:.2e}", p.kl), mark]);
        }
        print!("{}", show::table_with(&table, &[3]));
    }
    Ok(Found { mix, options: chosen, json })
}

struct Solver<'a> {
    opened: &'a Opened,
    options: &'a PlanOptions,
    probe: Probe<'a>,
    tensors: &'a [Tensor],
    front: Front,
}

impl Solver<'_> {
    /// The mix of a point as a plan takes it.
    fn options(&self, point: usize) -> (Mix, PlanOptions) {
        let mut options = self.options.clone();
        let mut weights: BTreeMap<GgmlType, u64> = BTreeMap::new();
        for (tensor, ty) in self.tensors.iter().zip(self.front.types(point)) {
            *weights.entry(ty).or_default() += tensor.elements;
            options.chosen.insert(tensor.name.clone(), (ty, Reason::Budget));
        }
        let most = weights.into_iter().max_by_key(|(_, n)| *n).map_or(GgmlType::Q8_0, |(ty, _)| ty);
        (Mix::of_base(most), options)
    }

    fn measured(&self, point: usize) -> anyhow::Result<f64> {
        let (mix, options) = self.options(point);
        self.probe.of_file(export::to_memory_with(self.opened, mix, &options)?)
    }

    /// The largest point whose file writes a token in at most so many ms, and what it takes; larger files are taken to be slower.
    fn fast(&self, most: usize, bound: f64, threads: usize) -> anyhow::Result<(usize, f64)> {
        let step = |point: usize| -> anyhow::Result<f64> {
            let (mix, options) = self.options(point);
            let bytes = export::to_memory_with(self.opened, mix, &options)?;
            let model = Model::from_bytes(bytes, &self.opened.name)?;
            match crate::commands::bench::step_ms(model, threads)? {
                Some(ms) => Ok(ms),
                None => crate::bad_input!("{}: --max-ms-per-token asks for a model that writes", self.opened.name),
            }
        };
        let largest = step(most)?;
        if largest <= bound {
            return Ok((most, largest));
        }
        let mut best = (0, step(0)?);
        if best.1 > bound {
            return Err(GateFailed(format!(
                "--max-ms-per-token {bound}: even the smallest file, {}, takes {:.3} ms a token here with {threads} threads",
                show::bytes(self.front.points[0].bytes),
                best.1
            ))
            .into());
        }
        let mut high = most;
        while high - best.0 > 1 {
            let middle = best.0.midpoint(high);
            let ms = step(middle)?;
            if ms <= bound { best = (middle, ms) } else { high = middle }
        }
        Ok(best)
    }

    /// A point within the bounds, and the KL of its file.
    fn choose(&self, bounds: &BudgetArgs, threads: usize) -> anyhow::Result<Chosen> {
        let points = &self.front.points;
        let BudgetArgs { max_size, max_kl, max_ms_per_token } = *bounds;
        let mut largest = match max_size {
            None => points.len() - 1,
            Some(size) => match self.front.within(size) {
                Some(point) => point,
                None => crate::bad_input!(
                    "--max-size {}: the smallest file of these types has {}; allow more, or leave out --type and --tensor-type",
                    show::bytes(size),
                    show::bytes(points[0].bytes)
                ),
            },
        };
        let mut ms_per_token = None;
        if let Some(bound) = max_ms_per_token {
            let (point, ms) = self.fast(largest, bound, threads)?;
            (largest, ms_per_token) = (point, Some(ms));
        }
        let Some(bound) = max_kl else {
            return Ok(Chosen { point: largest, kl: self.measured(largest)?, ms_per_token });
        };
        // What is predicted is scaled by what the last file really changed.
        let next = |at: usize, measured: f64| self.front.changing(points[at].kl * 0.98 * bound / measured);
        let mut at = self.front.changing(bound).unwrap_or(largest).min(largest);
        let (mut fails, mut passes): (Option<usize>, Option<(usize, f64)>) = (None, None);
        for _ in 0..TRIES {
            let measured = self.measured(at)?;
            if measured <= bound {
                passes = Some((at, measured));
            } else {
                fails = Some(at);
            }
            let wanted = next(at, measured).unwrap_or(largest);
            let low = fails.map_or(0, |f| f + 1);
            let high = passes.map_or(largest, |p| p.0.saturating_sub(1));
            if low > high || (passes.is_some_and(|p| p.0 == at) && wanted >= at) {
                break;
            }
            at = wanted.clamp(low, high);
        }
        // The last word is the largest file's, when the steps towards it ran out.
        if passes.is_none() && fails != Some(largest) {
            let measured = self.measured(largest)?;
            passes = (measured <= bound).then_some((largest, measured));
        }
        let chosen =
            passes.map(|(point, kl)| Chosen { point, kl, ms_per_token: ms_per_token.filter(|_| point == largest) });
        chosen.ok_or_else(|| {
            let size = max_size.map_or(String::new(), |s| format!(" within {}", show::bytes(s)));
            GateFailed(format!(
                "no file{size} of these types keeps a mean KL of {bound}: the largest, {}, changes more; allow more",
                show::bytes(points[largest].bytes)
            ))
            .into()
        })
    }
}

/// Points to print: evenly spaced ones, and the chosen one.
fn shown(n: usize, chosen: usize) -> Vec<usize> {
    let mut out: Vec<usize> = (0..SHOWN).map(|i| i * (n - 1) / (SHOWN - 1)).chain([chosen]).collect();
    out.sort_unstable();
    out.dedup();
    out
}

/// Rows to measure on, and what they are.
fn rows(args: &QuantizeArgs, opened: &Opened, global: &Global) -> anyhow::Result<(Vec<Row>, String)> {
    let subject = Subject::open(&args.model, Some(EngineName::Cpu), None, global.threads())?;
    if let Some(data) = args.verify.as_ref().or(args.importance.calibrate.as_ref()) {
        let name = data.file_name().unwrap_or_default().to_string_lossy().into_owned();
        return Ok((read_judged(&subject, data, None, None)?.rows, name));
    }
    if let Some(run) = opened.run.as_ref().filter(|r| r.run.val.is_some() || !r.run.held_out.is_empty()) {
        return Ok((held_out(&subject, run)?.rows, "the rows that the run held out".into()));
    }
    Ok((embedded_sample(&subject, subject.n_ctx())?.rows, "the embedded sample of English".into()))
}
