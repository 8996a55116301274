//! What rounding leaves of what tuning changed: of each matrix W that an adapter adds ΔW to, how far Q(W + ΔW) lies from Q(W), and
//! whether in ΔW's direction. A change much smaller than a block's step is rounded away where no code moves, and where some do,
//! moves in steps: the length may be right and the direction lost. Both are measured.

use crate::export::{self, BEST};
use crate::merge::Exported;
use crate::model::open::Opened;
use edgeft_quantize::gguf::encoded;
use edgeft_quantize::plan::Origin;
use edgeft_quantize::{Mix, Plan, PlanOptions, Planned, Reason, TensorSource};
use edgeft_runtime::format::GgmlType;
use edgeft_runtime::format::block::decode;
use edgeft_runtime::format::gguf::Gguf;
use edgeft_runtime::format::map::Mapped;
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::Path;

/// ‖Q(W + ΔW) − Q(W)‖ / ‖ΔW‖ under which a change counts as erased.
pub const MIN_RATIO: f64 = 0.5;
/// Cosine between Q(W + ΔW) − Q(W) and ΔW under which it does.
pub const MIN_COSINE: f64 = 0.5;

/// Elements of a matrix that are looked at, at most: whole rows, evenly spaced. Blocks never cross rows.
const MOST: usize = 1 << 19;

/// Matrices that are named.
const NAMED: usize = 8;

/// One matrix.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Kept {
    /// GGUF name.
    pub name: String,
    /// Type in the file.
    #[serde(rename = "type")]
    pub ty: &'static str,
    /// ‖Q(W + ΔW) − Q(W)‖ / ‖ΔW‖.
    pub ratio: f64,
    /// Between Q(W + ΔW) − Q(W) and ΔW; 0 where nothing moved.
    pub cosine: f64,
}

/// All matrices that an adapter adds to.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Retention {
    /// How many.
    pub matrices: usize,
    /// How many lost their change, by either bound.
    pub erased: usize,
    /// Bound of the ratio.
    pub min_ratio: f64,
    /// Bound of the cosine.
    pub min_cosine: f64,
    /// Over all matrices together.
    pub ratio: f64,
    /// Over all matrices together.
    pub cosine: f64,
    /// Whether rounding W + ΔW anew gave the file's own blocks; it does not where the file was made with an importance matrix.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub as_in_file: Option<bool>,
    /// Those of the lowest cosine.
    pub worst: Vec<Kept>,
    /// Every one.
    #[serde(skip)]
    pub all: Vec<Kept>,
}

impl Retention {
    /// Names of the matrices that lost their change.
    fn lost(&self) -> impl Iterator<Item = &Kept> {
        // NaN is lost.
        self.all.iter().filter(|k| !(k.ratio >= self.min_ratio && k.cosine >= self.min_cosine))
    }
}

/// ⟨a, a⟩, ⟨b, b⟩, ⟨a, b⟩ of a change before and after rounding.
#[derive(Clone, Copy, Default)]
struct Products {
    delta: f64,
    left: f64,
    both: f64,
}

impl Products {
    fn ratio(self) -> f64 {
        (self.left / self.delta).sqrt()
    }

    fn cosine(self) -> f64 {
        if self.left == 0.0 { 0.0 } else { self.both / (self.left * self.delta).sqrt() }
    }
}

/// What a plan would leave of a tuned model's change; `None` where no adapter adds to any matrix.
///
/// # Errors
/// What reading and rounding have.
pub fn of_plan(opened: &Opened, plan: &Plan, min_cosine: f64) -> anyhow::Result<Option<Retention>> {
    measure(&Exported::new(opened)?, plan, min_cosine, None)
}

/// What a GGUF file leaves of it.
///
/// # Errors
/// What reading and rounding have; a file that is none.
pub fn of_file(opened: &Opened, file: &Path) -> anyhow::Result<Option<Retention>> {
    let bytes = Mapped::open(file)?;
    let gguf = Gguf::parse(&bytes)?;
    let mut plan = export::make_plan(opened, Mix::F32, &PlanOptions::default())?;
    plan.best = gguf.str("edgeft.plan.search").is_ok_and(|search| search == BEST);
    plan.tensors.retain_mut(|t| {
        let Some(info) = gguf.tensor(&t.name) else { return false };
        t.ty = info.ty;
        info.dims.iter().rev().map(|n| *n as usize).eq(t.shape.iter().copied())
    });
    measure(&Exported::new(opened)?, &plan, MIN_COSINE, Some((&gguf, &bytes)))
}

fn measure(
    source: &Exported,
    plan: &Plan,
    min_cosine: f64,
    file: Option<(&Gguf, &[u8])>,
) -> anyhow::Result<Option<Retention>> {
    let (mut all, mut sum, mut same) = (Vec::new(), Products::default(), true);
    for t in &plan.tensors {
        let Origin::Source(placed) = &t.origin else { continue };
        if !source.adds_to(&placed.source) {
            continue;
        }
        let tuned = source.read(&placed.source).map_err(|e| anyhow::anyhow!("{}: {e}", placed.source))?;
        let rows = Rows::of(t);
        let base = rows.take(&placed.change.apply(source.base(&placed.source)?, &placed.shape));
        let tuned = rows.take(&placed.change.apply(tuned, &placed.shape));
        let part = Planned { shape: vec![rows.count(), rows.cols], ..t.clone() };
        let round = |x: &[f32]| -> anyhow::Result<(Vec<u8>, Vec<f32>)> {
            let bytes = encoded(plan, &part, x)?;
            let mut y = vec![0.0; x.len()];
            decode(t.ty, &bytes, &mut y);
            Ok((bytes, y))
        };
        let ((_, q_base), (bytes, q_tuned)) = (round(&base)?, round(&tuned)?);
        if let Some((gguf, whole)) = file
            && let Some(info) = gguf.tensor(&t.name)
        {
            same &= rows.take_bytes(gguf.data(whole, info), bytes.len() / rows.count()) == bytes;
        }
        let mut products = Products::default();
        for i in 0..base.len() {
            let (delta, left) = (f64::from(tuned[i] - base[i]), f64::from(q_tuned[i] - q_base[i]));
            products.delta += delta * delta;
            products.left += left * left;
            products.both += delta * left;
        }
        // An adapter that has not moved has nothing to lose.
        if products.delta == 0.0 {
            continue;
        }
        sum.delta += products.delta;
        sum.left += products.left;
        sum.both += products.both;
        let (ratio, cosine) = (products.ratio(), products.cosine());
        all.push(Kept { name: t.name.clone(), ty: t.ty.name(), ratio, cosine });
    }
    if all.is_empty() {
        return Ok(None);
    }
    let mut worst = all.clone();
    worst.sort_by(|a, b| a.cosine.total_cmp(&b.cosine));
    worst.truncate(NAMED);
    let mut found = Retention {
        matrices: all.len(),
        erased: 0,
        min_ratio: MIN_RATIO,
        min_cosine,
        ratio: sum.ratio(),
        cosine: sum.cosine(),
        as_in_file: file.is_some().then_some(same),
        worst,
        all,
    };
    found.erased = found.lost().count();
    Ok(Some(found))
}

/// Evenly spaced rows of a matrix.
struct Rows {
    rows: usize,
    cols: usize,
    step: usize,
}

impl Rows {
    fn of(t: &Planned) -> Self {
        let cols = t.cols();
        Self { rows: t.elements() / cols, cols, step: t.elements().div_ceil(MOST).max(1) }
    }

    fn count(&self) -> usize {
        self.rows.div_ceil(self.step)
    }

    fn take(&self, x: &[f32]) -> Vec<f32> {
        x.chunks_exact(self.cols).step_by(self.step).flatten().copied().collect()
    }

    fn take_bytes(&self, bytes: &[u8], row: usize) -> Vec<u8> {
        bytes.chunks_exact(row).step_by(self.step).flatten().copied().collect()
    }
}

/// The types of matrices that lost their change, each one up, with the reason; none where all kept it.
pub fn lifted(found: &Retention) -> BTreeMap<String, (GgmlType, Reason)> {
    let up = |kept: &Kept| Some((kept.name.clone(), (one_up(GgmlType::from_name(kept.ty)?)?, Reason::Delta)));
    found.lost().filter_map(up).collect()
}

/// The next type with more bits of the same kind.
fn one_up(ty: GgmlType) -> Option<GgmlType> {
    use GgmlType::*;
    Some(match ty {
        Q2_K => Q3_K,
        Q3_K => Q4_K,
        IQ4_XS | Q4_K => Q5_K,
        Q5_K => Q6_K,
        IQ4_NL | Q4_0 => Q5_0,
        Q4_1 => Q5_1,
        Q5_0 | Q5_1 | Q6_K => Q8_0,
        Q8_0 => F16,
        BF16 | F16 => F32,
        _ => return None,
    })
}
