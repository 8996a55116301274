//! Header, metadata, table, aligned data -> temporary file -> rename.
//!
//! Every size is known from the plan, so the stream is written front to back in one pass, one tensor in memory at a time, and
//! of a large matrix some rows.
//! Rows are encoded in parallel in chunks whose size does not depend on the number of threads, so neither do the bytes.

pub(crate) mod encode;
mod file;
mod header;

pub use file::{copy_with_keys, write_gguf_file};
pub use header::header;

use crate::{
    error::{Error, Result},
    metadata,
    names::{Change, Placed},
    plan::{Origin, Plan, Planned, Reason},
    report::Report,
    source::TensorSource,
    stream::Hashed,
    tokenizer::{self, TokenizerFiles},
};
use edgeft_runtime::format::GgmlType;
use edgeft_runtime::format::gguf::{Array, DEFAULT_ALIGNMENT, MAX_NAME, Value};
use std::borrow::Cow;
use std::io::{ErrorKind, Write};
use std::sync::mpsc::sync_channel;

/// Writes a model as GGUF to a stream that need not seek, and reports what was lost in rounding.
///
/// `extra` is added to the metadata; a key that the model or tokenizer already has is replaced. `progress` hears
/// `(elements done, elements in all)` after each tensor.
///
/// # Errors
/// What [`metadata()`] refuses; a tensor that cannot be read, has another length than its shape, or holds a value that is not
/// finite or too large (with tensor, row and column); a plan made for another source; a failing `out`.
pub fn write_gguf(
    source: &dyn TensorSource,
    tokenizer: &TokenizerFiles,
    plan: &Plan,
    extra: &[(String, Value)],
    out: &mut dyn Write,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Report> {
    let keys = metadata(source, tokenizer, plan, extra)?;
    let mut out = Hashed::new(out);
    out.write(&header(&keys, &plan.tensors)?)?;
    let (mut done, total) = (0, plan.elements());
    let mut tensors = Vec::with_capacity(plan.tensors.len());
    // What is encoded is hashed and written while the next is encoded.
    std::thread::scope(|scope| {
        let (send, encoded) = sync_channel(1);
        scope.spawn(move || {
            for t in &plan.tensors {
                let ended = in_slabs(source, t, |from, x| {
                    let encoded = encode::encode(t, x, plan.importance_of(t), plan.best);
                    let encoded = encoded.map_err(|e| place(t, encode::Failed { at: from + e.at, ..e }))?;
                    // Nobody takes it once writing has failed, which is then what is told.
                    send.send(Ok((encoded, x.len()))).map_err(|_| Error::Write(ErrorKind::BrokenPipe.into()))
                });
                if let Err(e) = ended {
                    let _ = send.send(Err(e));
                    return;
                }
            }
        });
        for t in &plan.tensors {
            let (mut loss, mut at) = (encode::Loss::default(), 0);
            while at < t.elements() {
                // A channel that is closed before all came is a panic of the other thread, which the scope passes on.
                let (slab, elements) = encoded.recv().map_err(|_| Error::Write(ErrorKind::BrokenPipe.into()))??;
                out.write(&slab.bytes)?;
                loss.add(&slab);
                at += elements;
                done += elements as u64;
                progress(done, total);
            }
            out.pad(DEFAULT_ALIGNMENT)?;
            tensors.push(loss.report(t, t.bytes()));
        }
        Ok::<_, Error>(())
    })?;
    Ok(Report {
        mix: plan.name(),
        bytes: out.bytes,
        bpw: plan.bits_per_weight(),
        types: plan.types().into_iter().map(|(t, n)| (t.name(), n)).collect(),
        sha256: out.finish()?,
        tensors,
        coverage: plan.coverage.clone(),
        skipped: plan.skipped.clone(),
    })
}

/// The bytes that values, in the order of the file, become under a plan's tensor.
///
/// # Errors
/// A value that is not finite or too large.
///
/// # Panics
/// When they are not as many as the tensor has.
pub fn encoded(plan: &Plan, t: &Planned, x: &[f32]) -> Result<Vec<u8>> {
    assert_eq!(x.len(), t.elements(), "values of `{}`", t.name);
    let encoded = encode::encode(t, x, plan.importance_of(t), plan.best).map_err(|e| place(t, e))?;
    Ok(encoded.bytes)
}

/// A tensor of a file that holds no model: an adapter, statistics.
#[derive(Debug, Clone, PartialEq)]
pub struct Floats {
    /// GGUF name.
    pub name: String,
    /// Rows first.
    pub shape: Vec<usize>,
    /// As many as the shape says.
    pub values: Vec<f32>,
}

/// The bytes of a GGUF file of f32 tensors, in the order given.
///
/// # Errors
/// A name that is too long for GGUF, a key that is empty or given twice, values that are not as many as the shape says.
pub fn floats(keys: &[(String, Value)], tensors: Vec<Floats>) -> Result<Vec<u8>> {
    let planned = |t: Floats| {
        if t.name.len() > MAX_NAME {
            return Err(Error::LongName { name: t.name, max: MAX_NAME });
        }
        if t.values.len() != t.shape.iter().product::<usize>() {
            return Err(Error::Length { name: t.name, found: t.values.len(), shape: t.shape });
        }
        let (origin, ty) = (Origin::RopeDivisors(t.values), GgmlType::F32);
        Ok(Planned { name: t.name, shape: t.shape, origin, ty, wanted: ty, reason: Reason::Computed })
    };
    let tensors = tensors.into_iter().map(planned).collect::<Result<Vec<_>>>()?;
    let mut out = header(keys, &tensors)?;
    for t in &tensors {
        if let Origin::RopeDivisors(values) = &t.origin {
            out.extend(values.iter().flat_map(|v| v.to_le_bytes()));
        }
        out.resize(out.len() + padding(out.len() as u64) as usize, 0);
    }
    Ok(out)
}

/// All keys of the file: the model's, its heads', the tokenizer's, the caller's.
///
/// # Errors
/// A tokenizer that does not fit, a head that cannot be read or is not finite, an `extra` key that only the writer may set.
pub fn metadata(
    source: &dyn TensorSource,
    tokenizer: &TokenizerFiles,
    plan: &Plan,
    extra: &[(String, Value)],
) -> Result<Vec<(String, Value)>> {
    let spec = source.spec();
    let mut keys = metadata::model(spec, plan);
    for (key, head) in &plan.keys {
        let x = read(source, head)?;
        if let Some(at) = x.iter().position(|v| !v.is_finite()) {
            return Err(encode::not_finite(&head.source, &head.shape, at, x[at]));
        }
        keys.push(((*key).to_string(), Value::Array(Array::F32(x))));
    }
    if let Some(name) = tokenizer::telling_name(tokenizer, spec)?
        && let Some((_, value)) = keys.iter_mut().find(|(key, _)| key == "general.name")
    {
        *value = Value::Str(name);
    }
    keys.extend(tokenizer::keys(tokenizer, spec)?);
    metadata::extend(&mut keys, extra)?;
    Ok(keys)
}

/// Bytes of the padding after `n` bytes.
fn padding(n: u64) -> u64 {
    n.next_multiple_of(DEFAULT_ALIGNMENT) - n
}

/// Gives `each` a tensor's values in the order of the file, and how many came before: a large matrix some rows at a time, where
/// the source can, anything else at once.
fn in_slabs(source: &dyn TensorSource, t: &Planned, mut each: impl FnMut(usize, &[f32]) -> Result<()>) -> Result<()> {
    let (slab, mut from) = (encode::slab_rows(t.cols()), 0);
    if let Origin::Source(placed) = &t.origin
        && placed.change == Change::None
        && let [rows, cols] = placed.shape[..]
        && rows > slab
    {
        let name = &placed.source;
        while from < rows {
            let to = rows.min(from + slab);
            let x = source.read_rows(name, from..to);
            let Some(x) = x.map_err(|source| Error::Source { name: name.clone(), source })? else { break };
            if x.len() != (to - from) * cols {
                return Err(Error::Length { name: name.clone(), found: x.len(), shape: vec![to - from, cols] });
            }
            each(from * cols, &x)?;
            from = to;
        }
        if from == rows {
            return Ok(());
        }
        assert_eq!(from, 0, "`{name}` was readable by rows up to {from} of {rows}");
    }
    each(0, &values(source, t)?)
}

/// A tensor's values in the order of the file.
fn values<'a>(source: &dyn TensorSource, t: &'a Planned) -> Result<Cow<'a, [f32]>> {
    match &t.origin {
        Origin::RopeDivisors(x) => Ok(Cow::Borrowed(x)),
        Origin::Source(placed) => Ok(Cow::Owned(placed.change.apply(read(source, placed)?, &placed.shape))),
    }
}

/// A tensor's values in the order of the source.
pub(crate) fn read(source: &dyn TensorSource, placed: &Placed) -> Result<Vec<f32>> {
    let name = placed.source.clone();
    let x = source.read(&name).map_err(|e| Error::Source { name: name.clone(), source: e })?;
    if x.len() != placed.shape.iter().product::<usize>() {
        return Err(Error::Length { name, found: x.len(), shape: placed.shape.clone() });
    }
    Ok(x)
}

/// An encoding error in the source's terms: its name, and its row where rows were reordered.
fn place(t: &Planned, e: encode::Failed) -> Error {
    let (name, (row, column)) = match &t.origin {
        Origin::RopeDivisors(_) => (t.name.clone(), (e.at / t.cols(), e.at % t.cols())),
        Origin::Source(p) => (p.source.clone(), p.change.source_of(e.at, &p.shape)),
    };
    Error::Weight { name, row, column, cause: e.cause }
}

#[cfg(test)]
mod tests;
