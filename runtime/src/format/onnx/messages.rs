//! Messages that hold no graph: keys, sets of operators, inputs and outputs, tensors without their values.

use super::{Dim, ElementType, External, MOST_DIMS, OnnxError, Port, Weight, each, push, within};
use crate::format::protobuf::Fields;

/// `StringStringEntryProto`.
pub(super) fn entry(message: &[u8], place: &'static str) -> Result<(String, String), OnnxError> {
    let (mut key, mut value) = (String::new(), String::new());
    for field in Fields::new(message) {
        let field = field.map_err(within(place))?;
        match field.number {
            1 => key = field.text().map_err(within(place))?.to_owned(),
            2 => value = field.text().map_err(within(place))?.to_owned(),
            _ => {}
        }
    }
    Ok((key, value))
}

/// `OperatorSetIdProto`.
pub(super) fn opset(message: &[u8]) -> Result<(String, u64), OnnxError> {
    let (mut domain, mut version) = (String::new(), 0);
    for field in Fields::new(message) {
        let field = field.map_err(within("opset_import"))?;
        match field.number {
            1 => domain = field.text().map_err(within("opset_import"))?.to_owned(),
            2 => version = field.number().map_err(within("opset_import"))?,
            _ => {}
        }
    }
    Ok((domain, version))
}

/// `ValueInfoProto`: name, and `TypeProto.tensor_type` with its `TensorShapeProto`.
pub(super) fn port(message: &[u8]) -> Result<Port, OnnxError> {
    let place = "an input or output";
    let mut port = Port::default();
    for field in Fields::new(message) {
        let field = field.map_err(within(place))?;
        match field.number {
            1 => port.name = field.text().map_err(within(place))?.to_owned(),
            2 => each(field.bytes().map_err(within(place))?, place, |number, tensor| {
                // Sequences, maps and options have no element type here.
                if number == 1 { tensor_type(tensor, &mut port) } else { Ok(()) }
            })?,
            _ => {}
        }
    }
    Ok(port)
}

/// `TypeProto.Tensor`.
fn tensor_type(message: &[u8], port: &mut Port) -> Result<(), OnnxError> {
    let place = "an input or output";
    for field in Fields::new(message) {
        let field = field.map_err(within(place))?;
        match field.number {
            1 => port.ty = ElementType(field.number().map_err(within(place))?),
            2 => each(field.bytes().map_err(within(place))?, place, |number, dim| {
                if number == 1 {
                    if port.dims.len() == MOST_DIMS {
                        return Err(too_many_dims());
                    }
                    port.dims.push(dimension(dim)?);
                }
                Ok(())
            })?,
            _ => {}
        }
    }
    Ok(())
}

fn too_many_dims() -> OnnxError {
    OnnxError::TooMany { what: "dimensions of a tensor", most: MOST_DIMS }
}

/// `TensorShapeProto.Dimension`.
fn dimension(message: &[u8]) -> Result<Dim, OnnxError> {
    let mut dim = Dim::Unknown;
    for field in Fields::new(message) {
        let field = field.map_err(within("a dimension"))?;
        match field.number {
            // Some exporters write -1 or 0 for what a run decides.
            1 => match field.number().map_err(within("a dimension"))? {
                n if (1..1 << 62).contains(&n) => dim = Dim::Fixed(n),
                _ => dim = Dim::Unknown,
            },
            2 => dim = Dim::Named(field.text().map_err(within("a dimension"))?.to_owned()),
            _ => {}
        }
    }
    Ok(dim)
}

/// `TensorProto` as a weight.
pub(super) fn weight(message: &[u8]) -> Result<Weight, OnnxError> {
    let place = "a tensor";
    let (mut ty, mut dims, mut outside) = (ElementType::default(), Vec::new(), false);
    for field in Fields::new(message) {
        let field = field.map_err(within(place))?;
        match field.number {
            1 => field.push_int64s(&mut dims).map_err(within(place))?,
            2 => ty = ElementType(field.number().map_err(within(place))?),
            14 => outside = field.number().map_err(within(place))? == 1,
            _ => {}
        }
        if dims.len() > MOST_DIMS {
            return Err(too_many_dims());
        }
    }
    let (name, mut places) = places(message)?;
    let name = name.to_owned();
    let sizes: Option<Vec<u64>> = dims.iter().map(|d| u64::try_from(*d).ok()).collect();
    let count = |sizes: &[u64]| sizes.iter().try_fold(1u64, |n, d| n.checked_mul(*d));
    let Some((elements, sizes)) = sizes.and_then(|sizes| Some((count(&sizes)?, sizes))) else {
        return Err(OnnxError::Dimensions { tensor: name, dims });
    };
    let bytes = elements.checked_mul(ty.bits().unwrap_or(0)).map_or(u64::MAX, |bits| bits.div_ceil(8));
    let external = match (outside, places.pop()) {
        (false, _) => None,
        (true, None) => return Err(OnnxError::NoLocation { tensor: name }),
        (true, Some((location, offset, length))) => Some(External { tensor: name.clone(), location, offset, length }),
    };
    Ok(Weight { name, ty, dims: sizes, bytes, gathered: false, external })
}

/// Location, offset and length.
type Place = (String, u64, Option<u64>);

/// Name of a `TensorProto`, and each file that it names; of entries that stand twice, the last counts.
pub(super) fn places(tensor: &[u8]) -> Result<(&str, Vec<Place>), OnnxError> {
    let mut name = "";
    let mut entries = Vec::new();
    for field in Fields::new(tensor) {
        let field = field.map_err(within("a tensor"))?;
        match field.number {
            8 => name = field.text().map_err(within("a tensor"))?,
            13 => {
                let pair = entry(field.bytes().map_err(within("a tensor"))?, "external_data")?;
                push(&mut entries, pair, "entries of external_data")?;
            }
            _ => {}
        }
    }
    let number = |key: &str| -> Result<Option<u64>, OnnxError> {
        let Some((_, value)) = entries.iter().rev().find(|(k, _)| k == key) else { return Ok(None) };
        value.parse().map(Some).map_err(|_| OnnxError::ExternalNumber {
            tensor: name.to_owned(),
            key: key.to_owned(),
            value: value.clone(),
        })
    };
    let (offset, length) = (number("offset")?.unwrap_or(0), number("length")?);
    let locations = entries.into_iter().filter(|(key, _)| key == "location");
    Ok((name, locations.map(|(_, location)| (location, offset, length)).collect()))
}
