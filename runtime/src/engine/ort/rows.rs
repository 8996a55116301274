//! What a graph gave -> the rows that a run wants, each output held against the shape it must have.

use super::told;
use crate::engine::Rows;
use crate::error::{Error, Kind, Result};
use crate::format::onnx::{ElementType, Port};
use crate::model::onnx::ports::Output;
use half::f16;
use ort::value::DynValue;
use std::borrow::Cow;

/// Appends the rows that a run wants.
/// - `(kept, n)`: positions of the pass before those of the run, and of the run
pub fn append_rows(
    output: &Output,
    values: &[DynValue],
    width: usize,
    (kept, n): (usize, usize),
    wanted: Rows,
    out: &mut Vec<f32>,
) -> Result<()> {
    let positions = kept + n;
    let ports = output.ports();
    let floats: Result<Vec<Cow<[f32]>>> = ports.iter().zip(values).map(|(port, value)| floats(port, value)).collect();
    let floats = floats?;
    let expect = |i: usize, dims: &[usize]| {
        let found: &[i64] = values[i].shape();
        if found.iter().map(|d| *d as usize).eq(dims.iter().copied()) {
            return Ok(());
        }
        let message = format!("has shape {found:?}, expected {dims:?}");
        Err(Error::new(Kind::Shape, format!("output `{}`", ports[i].name), message))
    };
    match output {
        Output::Tokens { logits } => {
            let only_last = values[0].shape().get(1) == Some(&1) && positions > 1;
            if only_last && wanted == Rows::All {
                let message =
                    "gives the last position alone, and every position is asked for; export the model without that";
                return Err(Error::new(Kind::Shape, format!("output `{}`", logits.name), message));
            }
            let given = if only_last { 1 } else { positions };
            expect(0, &[1, given, width])?;
            let first = if wanted == Rows::All { kept } else { given - 1 };
            out.extend_from_slice(&floats[0][first * width..]);
        }
        Output::Labels { .. } | Output::Vector { .. } => {
            expect(0, &[1, width])?;
            out.extend_from_slice(&floats[0]);
        }
        Output::Span { .. } => {
            expect(0, &[1, positions])?;
            expect(1, &[1, positions])?;
            let first = if wanted == Rows::All { kept } else { positions - 1 };
            out.extend((first..positions).flat_map(|t| [floats[0][t], floats[1][t]]));
        }
        Output::States { mean, .. } => {
            expect(0, &[1, positions, width])?;
            let states = &floats[0];
            match mean {
                false => out.extend_from_slice(&states[..width]),
                true => {
                    out.extend((0..width).map(|i| states.iter().skip(i).step_by(width).sum::<f32>() / positions as f32))
                }
            }
        }
    }
    Ok(())
}

/// A tensor's numbers in f32.
fn floats<'a>(port: &Port, value: &'a DynValue) -> Result<Cow<'a, [f32]>> {
    if port.ty == ElementType::F16 {
        let (_, halves) = value.try_extract_tensor::<f16>().map_err(told)?;
        return Ok(Cow::Owned(halves.iter().map(|x| x.to_f32()).collect()));
    }
    let (_, floats) = value.try_extract_tensor::<f32>().map_err(told)?;
    Ok(Cow::Borrowed(floats))
}
