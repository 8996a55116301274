//! What each type of each matrix costs: KL divergence of the answers when that matrix alone is rounded.
//!
//! It is measured once a matrix, under one type ([`probe`]), and carried over to its other types by the ratio of their errors: a
//! small change of one matrix moves the logits in proportion, and the divergence with the square of that. The error counts columns
//! by their importance where that is known. `tests/budget.rs` holds the prediction against measuring every type of every matrix.

use super::front::{Choice, Tensor};
use crate::data::batch::Row;
use crate::eval::subject::{Logits, Subject};
use crate::export;
use crate::merge::Exported;
use crate::model::open::Opened;
use crate::verify::divergence;
use edgeft_quantize::gguf::encoded;
use edgeft_quantize::plan::Origin;
use edgeft_quantize::{Importance, Mix, Plan, PlanOptions, Planned, Reason, TensorSource};
use edgeft_runtime::format::GgmlType;
use edgeft_runtime::format::block::decode;
use edgeft_runtime::format::gguf::Gguf;

/// Types of rows that are whole blocks of 256.
const WIDE: [GgmlType; 8] = [
    GgmlType::Q2_K,
    GgmlType::Q3_K,
    GgmlType::IQ4_XS,
    GgmlType::Q4_K,
    GgmlType::Q5_K,
    GgmlType::Q6_K,
    GgmlType::Q8_0,
    GgmlType::F16,
];
/// Types of other rows.
const NARROW: [GgmlType; 6] =
    [GgmlType::IQ4_NL, GgmlType::Q4_1, GgmlType::Q5_0, GgmlType::Q5_1, GgmlType::Q8_0, GgmlType::F16];

/// Tokens that are read for each matrix, at most, and bytes of the reference's logits that are held.
const MOST_TOKENS: usize = 2048;
const MOST_BYTES: usize = 256 << 20;

/// Offsets in a file are multiples of this.
const ALIGNMENT: u64 = 32;

/// The model in f32, what it answers, and the places of its matrices: what each is rounded in.
pub struct Probe<'a> {
    opened: &'a Opened,
    plan: Plan,
    source: Exported<'a>,
    bytes: Vec<u8>,
    gguf: Gguf,
    rows: Vec<Row>,
    reference: Vec<Logits>,
    threads: usize,
    ctx: usize,
}

/// What was found.
pub struct Sensitivity {
    /// Matrices with their types.
    pub tensors: Vec<Tensor>,
    /// Positions that were compared for each.
    pub positions: usize,
}

impl<'a> Probe<'a> {
    /// `rows`: evenly spaced ones of them are read.
    ///
    /// # Errors
    /// What converting the model and reading the rows have.
    pub fn new(
        opened: &'a Opened,
        rows: &[Row],
        importance: Option<&Importance>,
        best: bool,
        threads: usize,
    ) -> anyhow::Result<Self> {
        let options = PlanOptions { best, ..PlanOptions::default() };
        let mut plan = export::make_plan(opened, Mix::F32, &options)?;
        for t in &plan.tensors {
            if let Some(columns) = importance.map(|m| m.columns(&t.name, t.cols())).transpose()?.flatten() {
                plan.importance.insert(t.name.clone(), columns);
            }
        }
        let bytes = export::to_memory(opened, Mix::F32)?;
        let gguf = Gguf::parse(&bytes)?;
        let mut it = Self {
            opened,
            plan,
            source: Exported::new(opened)?,
            gguf,
            rows: Vec::new(),
            reference: Vec::new(),
            threads,
            ctx: rows.iter().map(|r| r.ids.len()).max().unwrap_or(1),
            bytes,
        };
        let mut subject = it.subject(&[])?;
        let tokens: usize = rows.iter().map(|r| r.keys.min(r.ids.len())).sum();
        let step = tokens.div_ceil(MOST_TOKENS).max(1);
        let mut held = 0;
        for row in rows.iter().step_by(step) {
            let logits = subject.logits(row)?;
            held += 4 * logits.values.len();
            if held > MOST_BYTES && !it.rows.is_empty() {
                break;
            }
            it.rows.push(row.clone());
            it.reference.push(logits);
        }
        if it.rows.is_empty() {
            crate::bad_input!("no rows to measure on");
        }
        Ok(it)
    }

    /// Matrices that may be rounded.
    pub fn matrices(&self) -> impl Iterator<Item = &Planned> {
        self.plan.tensors.iter().filter(|t| t.reason == Reason::Base)
    }

    /// Positions that are compared.
    pub fn positions(&self) -> usize {
        self.reference.iter().map(|l| l.values.len() / l.width.max(1)).sum()
    }

    /// Mean KL divergence when one matrix alone has a type.
    ///
    /// # Errors
    /// What rounding and running have.
    pub fn measured(&self, t: &Planned, ty: GgmlType) -> anyhow::Result<f64> {
        let (_, rounded) = self.rounded(t, &self.values(t)?, ty)?;
        let mut subject = self.subject(&[(t, rounded)])?;
        divergence(&mut subject, &self.reference, &self.rows)
    }

    /// Mean KL divergence of a finished file on the same rows.
    ///
    /// # Errors
    /// What running has.
    pub fn of_file(&self, bytes: Vec<u8>) -> anyhow::Result<f64> {
        let mut subject = Subject::of_bytes(bytes, &self.opened.name, self.threads, self.ctx)?;
        divergence(&mut subject, &self.reference, &self.rows)
    }

    /// Bytes of the tensors that are not rounded, padding included.
    pub fn other_bytes(&self) -> u64 {
        let others = self.plan.tensors.iter().filter(|t| t.reason != Reason::Base);
        others.map(|t| t.bytes().next_multiple_of(ALIGNMENT)).sum()
    }

    /// What `types` cost for each matrix; all that fit its rows where none are named. `fixed`: the type that a matrix must have.
    ///
    /// # Errors
    /// What rounding and running have; a matrix whose rows are whole blocks of none of them.
    pub fn sensitivity(
        &self,
        types: &[GgmlType],
        fixed: &dyn Fn(&str) -> Option<GgmlType>,
        progress: &mut dyn FnMut(usize, usize),
    ) -> anyhow::Result<Sensitivity> {
        let matrices: Vec<&Planned> = self.matrices().collect();
        let mut tensors = Vec::new();
        for (i, t) in matrices.iter().enumerate() {
            let x = self.values(t)?;
            let fits = |ty: &GgmlType| ty.row_bytes(t.cols()).is_some();
            let given = fixed(&t.name).map(|ty| vec![ty]);
            let mut candidates: Vec<GgmlType> = match given.as_deref().unwrap_or(types) {
                [] if fits(&GgmlType::Q4_K) => WIDE.to_vec(),
                [] => NARROW.iter().copied().filter(fits).collect(),
                named => named.iter().copied().filter(fits).collect(),
            };
            if candidates.is_empty() {
                candidates = vec![GgmlType::F16]; // rows of no whole block, as the mixes have it
            }
            let probe = probe(t.cols());
            let (at_probe, rounded) = self.rounded(t, &x, probe)?;
            let mut subject = self.subject(&[(t, rounded)])?;
            let kl = divergence(&mut subject, &self.reference, &self.rows)?;
            drop(subject);
            if !kl.is_finite() {
                anyhow::bail!("`{}` in {probe}: the answers are not numbers", t.name);
            }
            let mut choices = Vec::new();
            for ty in candidates {
                let error = self.rounded(t, &x, ty)?.0;
                let kl = if at_probe > 0.0 { kl * error / at_probe } else { 0.0 };
                choices.push(Choice { ty, bytes: bytes_of(t, ty), kl });
            }
            tensors.push(Tensor { name: t.name.clone(), elements: t.elements() as u64, choices });
            progress(i + 1, matrices.len());
        }
        Ok(Sensitivity { tensors, positions: self.positions() })
    }

    /// Values in the order of the file.
    fn values(&self, t: &Planned) -> anyhow::Result<Vec<f32>> {
        let Origin::Source(placed) = &t.origin else { anyhow::bail!("`{}` is computed", t.name) };
        let x = self.source.read(&placed.source).map_err(|e| anyhow::anyhow!("{}: {e}", placed.source))?;
        Ok(placed.change.apply(x, &placed.shape))
    }

    /// The error that counts columns by their importance, and the values that a type makes of a matrix.
    fn rounded(&self, t: &Planned, x: &[f32], ty: GgmlType) -> anyhow::Result<(f64, Vec<f32>)> {
        let part = Planned { ty, ..t.clone() };
        let mut y = vec![0.0; x.len()];
        decode(ty, &encoded(&self.plan, &part, x)?, &mut y);
        let columns = self.plan.importance_of(t);
        let cols = t.cols();
        let weight = |i: usize| columns.map_or(1.0, |w| f64::from(w[i % cols]));
        let error = x.iter().zip(&y).enumerate().map(|(i, (a, b))| weight(i) * f64::from(a - b).powi(2)).sum();
        Ok((error, y))
    }

    /// The model with other values in some matrices.
    fn subject(&self, changed: &[(&Planned, Vec<f32>)]) -> anyhow::Result<Subject> {
        let mut bytes = self.bytes.clone();
        for (t, values) in changed {
            let Some(info) = self.gguf.tensor(&t.name) else { anyhow::bail!("`{}` is not in the file", t.name) };
            let at = (self.gguf.data_start + info.offset) as usize;
            for (to, value) in bytes[at..at + info.bytes as usize].chunks_exact_mut(4).zip(values) {
                to.copy_from_slice(&value.to_le_bytes());
            }
        }
        Subject::of_bytes(bytes, &self.opened.name, self.threads, self.ctx)
    }
}

/// The type that a matrix is measured under: a change that is small, and far above what f32 sums differ by.
pub fn probe(cols: usize) -> GgmlType {
    [GgmlType::Q4_K, GgmlType::Q4_0].into_iter().find(|ty| ty.row_bytes(cols).is_some()).unwrap_or(GgmlType::F16)
}

/// Bytes of a matrix under a type, padding included.
fn bytes_of(t: &Planned, ty: GgmlType) -> u64 {
    Planned { ty, ..t.clone() }.bytes().next_multiple_of(ALIGNMENT)
}
