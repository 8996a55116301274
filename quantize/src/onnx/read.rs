//! What is in an ONNX file, without its weights: read field by field from the protobuf wire format, so that nothing a file
//! says can ask for more memory than the file has, and no weight is copied.

use std::collections::BTreeMap;

/// Nodes, tensors, keys, inputs: more of a kind than any model has.
const MOST: usize = 1 << 20;
/// Dimensions of a tensor.
const MOST_DIMS: usize = 32;

/// The description of a model.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct OnnxFile {
    /// Version of the container.
    pub ir_version: u64,
    /// Who wrote it.
    pub producer: String,
    /// Sets of operators: domain (empty for the standard one) and version.
    pub opsets: Vec<(String, u64)>,
    /// What the caller gives.
    pub inputs: Vec<ValueInfo>,
    /// What the model gives.
    pub outputs: Vec<ValueInfo>,
    /// How many nodes have each operator; those outside the standard domain are written `domain.operator`.
    pub operators: BTreeMap<String, usize>,
    /// Constants, in the order of the file.
    pub tensors: Vec<OnnxTensor>,
    /// `metadata_props`.
    pub metadata: Vec<(String, String)>,
}

/// An input or output.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ValueInfo {
    /// Its name.
    pub name: String,
    /// Element type.
    pub ty: &'static str,
    /// Numbers, or names of numbers that the caller chooses.
    pub dims: Vec<String>,
}

/// A constant.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OnnxTensor {
    /// Its name.
    pub name: String,
    /// Element type, as ONNX calls it, lower case.
    pub ty: &'static str,
    /// Bits of an element; 0 when it has no size of its own.
    pub bits: u64,
    /// Dimensions, outermost first.
    pub dims: Vec<u64>,
    /// Where its values are, when they are outside of the model's file.
    pub external: Option<External>,
}

/// A piece of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct External {
    /// The file, relative to the model's folder.
    pub location: String,
    /// Where the piece begins.
    pub offset: u64,
    /// Its bytes, when the model says how many.
    pub length: Option<u64>,
}

impl OnnxTensor {
    /// Bytes of its values: by type and dimensions, or as the model says of a piece of a file. `None` when neither tells, or
    /// the dimensions are more than 64 bits can count.
    pub fn bytes(&self) -> Option<u64> {
        let counted = self.dims.iter().try_fold(self.bits, |n, d| n.checked_mul(*d)).map(|bits| bits.div_ceil(8));
        self.external.as_ref().and_then(|e| e.length).or(counted.filter(|_| self.bits > 0))
    }
}

/// Why a file is no ONNX model that can be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)] // the message of each variant is its documentation
pub enum ReadError {
    #[error("not an ONNX model: it has no {0}")]
    Missing(&'static str),
    #[error("{what} at byte {at} ends at byte {end}, but only {bytes} are there; it is cut short, or no ONNX model")]
    PastEnd { what: &'static str, at: usize, end: u64, bytes: usize },
    #[error("the number at byte {at} has more than 64 bits; it is no ONNX model")]
    LongNumber { at: usize },
    #[error("the field at byte {at} has wire type {wire}; known: 0, 1, 2, 5")]
    WireType { at: usize, wire: u64 },
    #[error("the text at byte {at} is not UTF-8")]
    Utf8 { at: usize },
    #[error("more than {most} {what}")]
    TooMany { what: &'static str, most: usize },
    #[error("tensor `{name}`: `{key}` is `{value}`, which is no whole number")]
    External { name: String, key: String, value: String },
    #[error("tensor `{name}` is in a file, but does not say in which")]
    NoLocation { name: String },
}

type Result<T> = std::result::Result<T, ReadError>;

impl OnnxFile {
    /// Reads the bytes of a `.onnx` file.
    ///
    /// # Errors
    /// [`ReadError`], with the place; never a panic.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let mut file = Self::default();
        let mut graph = None;
        let mut fields = Fields { bytes, at: 0, base: 0 };
        while let Some((field, value)) = fields.next()? {
            match (field, value) {
                (1, Wire::Number(v)) => file.ir_version = v,
                (2, Wire::Bytes(v)) => file.producer = v.text()?,
                (7, Wire::Bytes(v)) => graph = Some(v),
                (8, Wire::Bytes(v)) => push(&mut file.opsets, opset(v)?, "sets of operators")?,
                (14, Wire::Bytes(v)) => push(&mut file.metadata, pair(v)?, "metadata keys")?,
                _ => {}
            }
        }
        if file.ir_version == 0 {
            return Err(ReadError::Missing("IR version"));
        }
        file.graph(graph.ok_or(ReadError::Missing("graph"))?)?;
        Ok(file)
    }

    fn graph(&mut self, mut fields: Fields) -> Result<()> {
        let mut nodes = 0;
        while let Some((field, value)) = fields.next()? {
            let Wire::Bytes(v) = value else { continue };
            match field {
                1 => {
                    nodes += 1;
                    if nodes > MOST {
                        return Err(ReadError::TooMany { what: "nodes", most: MOST });
                    }
                    *self.operators.entry(operator(v)?).or_insert(0) += 1;
                }
                5 => push(&mut self.tensors, tensor(v)?, "tensors")?,
                11 => push(&mut self.inputs, value_info(v)?, "inputs")?,
                12 => push(&mut self.outputs, value_info(v)?, "outputs")?,
                _ => {}
            }
        }
        Ok(())
    }
}

fn push<T>(list: &mut Vec<T>, item: T, what: &'static str) -> Result<()> {
    if list.len() >= MOST {
        return Err(ReadError::TooMany { what, most: MOST });
    }
    list.push(item);
    Ok(())
}

/// `OperatorSetIdProto`.
fn opset(mut fields: Fields) -> Result<(String, u64)> {
    let mut out = (String::new(), 0);
    while let Some((field, value)) = fields.next()? {
        match (field, value) {
            (1, Wire::Bytes(v)) => out.0 = v.text()?,
            (2, Wire::Number(v)) => out.1 = v,
            _ => {}
        }
    }
    Ok(out)
}

/// `StringStringEntryProto`.
fn pair(mut fields: Fields) -> Result<(String, String)> {
    let mut out = (String::new(), String::new());
    while let Some((field, value)) = fields.next()? {
        match (field, value) {
            (1, Wire::Bytes(v)) => out.0 = v.text()?,
            (2, Wire::Bytes(v)) => out.1 = v.text()?,
            _ => {}
        }
    }
    Ok(out)
}

/// `NodeProto`: the operator's name alone.
fn operator(mut fields: Fields) -> Result<String> {
    let (mut name, mut domain) = (String::new(), String::new());
    while let Some((field, value)) = fields.next()? {
        match (field, value) {
            (4, Wire::Bytes(v)) => name = v.text()?,
            (7, Wire::Bytes(v)) => domain = v.text()?,
            _ => {}
        }
    }
    Ok(if domain.is_empty() || domain == "ai.onnx" { name } else { format!("{domain}.{name}") })
}

/// `TensorProto`, without its values.
fn tensor(mut fields: Fields) -> Result<OnnxTensor> {
    let mut out = OnnxTensor { ty: type_of(0).0, ..OnnxTensor::default() };
    let (mut entries, mut outside) = (Vec::new(), false);
    while let Some((field, value)) = fields.next()? {
        match (field, value) {
            (1, Wire::Number(v)) => dim(&mut out.dims, v)?,
            (1, Wire::Bytes(mut packed)) => {
                while packed.at < packed.bytes.len() {
                    let v = packed.number()?;
                    dim(&mut out.dims, v)?;
                }
            }
            (2, Wire::Number(v)) => (out.ty, out.bits) = type_of(v),
            (8, Wire::Bytes(v)) => out.name = v.text()?,
            (13, Wire::Bytes(v)) => push(&mut entries, pair(v)?, "entries of external data")?,
            (14, Wire::Number(v)) => outside = v == 1,
            _ => {}
        }
    }
    if outside {
        let of = |key: &str| entries.iter().find(|(k, _)| k == key).map(|(_, v)| v.clone());
        let number = |key: &str| -> Result<Option<u64>> {
            let Some(value) = of(key) else { return Ok(None) };
            let (name, key) = (out.name.clone(), key.to_owned());
            value.parse().map(Some).map_err(|_| ReadError::External { name, key, value })
        };
        let location = of("location").ok_or_else(|| ReadError::NoLocation { name: out.name.clone() })?;
        out.external = Some(External { location, offset: number("offset")?.unwrap_or(0), length: number("length")? });
    }
    Ok(out)
}

fn dim<T>(dims: &mut Vec<T>, value: T) -> Result<()> {
    if dims.len() >= MOST_DIMS {
        return Err(ReadError::TooMany { what: "dimensions of a tensor", most: MOST_DIMS });
    }
    dims.push(value);
    Ok(())
}

/// `ValueInfoProto`: name, and `type.tensor_type` as far as it is there.
fn value_info(mut fields: Fields) -> Result<ValueInfo> {
    let mut out = ValueInfo { ty: "not a tensor", ..ValueInfo::default() };
    while let Some((field, value)) = fields.next()? {
        match (field, value) {
            (1, Wire::Bytes(v)) => out.name = v.text()?,
            (2, Wire::Bytes(mut ty)) => {
                while let Some((field, value)) = ty.next()? {
                    if let (1, Wire::Bytes(v)) = (field, value) {
                        tensor_type(v, &mut out)?;
                    }
                }
            }
            _ => {}
        }
    }
    Ok(out)
}

/// `TypeProto.Tensor`.
fn tensor_type(mut fields: Fields, out: &mut ValueInfo) -> Result<()> {
    out.ty = type_of(0).0;
    while let Some((field, value)) = fields.next()? {
        match (field, value) {
            (1, Wire::Number(v)) => out.ty = type_of(v).0,
            (2, Wire::Bytes(mut shape)) => {
                while let Some((field, value)) = shape.next()? {
                    let (1, Wire::Bytes(mut d)) = (field, value) else { continue };
                    let mut text = "?".to_owned();
                    while let Some((field, value)) = d.next()? {
                        match (field, value) {
                            (1, Wire::Number(v)) => text = v.to_string(),
                            (2, Wire::Bytes(v)) => text = v.text()?,
                            _ => {}
                        }
                    }
                    dim(&mut out.dims, text)?;
                }
            }
            _ => {}
        }
    }
    Ok(())
}

/// Name and bits of `TensorProto.DataType`'s codes; no bits where elements have no size of their own.
const TYPES: [(&str, u64); 29] = [
    ("undefined", 0),
    ("float", 32),
    ("uint8", 8),
    ("int8", 8),
    ("uint16", 16),
    ("int16", 16),
    ("int32", 32),
    ("int64", 64),
    ("string", 0),
    ("bool", 8),
    ("float16", 16),
    ("double", 64),
    ("uint32", 32),
    ("uint64", 64),
    ("complex64", 64),
    ("complex128", 128),
    ("bfloat16", 16),
    ("float8e4m3fn", 8),
    ("float8e4m3fnuz", 8),
    ("float8e5m2", 8),
    ("float8e5m2fnuz", 8),
    ("uint4", 4),
    ("int4", 4),
    ("float4e2m1", 4),
    ("float8e8m0", 8),
    ("uint2", 2),
    ("int2", 2),
    ("float6e2m3", 6),
    ("float6e3m2", 6),
];

fn type_of(code: u64) -> (&'static str, u64) {
    usize::try_from(code).ok().and_then(|i| TYPES.get(i)).copied().unwrap_or(("unknown", 0))
}

/// The fields of one message.
#[derive(Clone, Copy)]
struct Fields<'a> {
    bytes: &'a [u8],
    at: usize,
    /// Where the message begins in the file.
    base: usize,
}

enum Wire<'a> {
    Number(u64),
    Bytes(Fields<'a>),
    /// Four or eight bytes, which no field read here has.
    Fixed,
}

impl<'a> Fields<'a> {
    /// Number and value of the next field; `None` at the end.
    fn next(&mut self) -> Result<Option<(u64, Wire<'a>)>> {
        if self.at >= self.bytes.len() {
            return Ok(None);
        }
        let at = self.base + self.at;
        let key = self.number()?;
        let value = match key & 7 {
            0 => Wire::Number(self.number()?),
            1 => self.take("a number", 8).map(|_| Wire::Fixed)?,
            2 => {
                let length = self.number()?;
                Wire::Bytes(self.take("a field", length)?)
            }
            5 => self.take("a number", 4).map(|_| Wire::Fixed)?,
            wire => return Err(ReadError::WireType { at, wire }),
        };
        Ok(Some((key >> 3, value)))
    }

    /// A varint: seven bits a byte, the lowest first.
    fn number(&mut self) -> Result<u64> {
        let start = self.base + self.at;
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.take("a number", 1)?.bytes[0];
            if shift == 63 && byte > 1 {
                break;
            }
            value |= u64::from(byte & 127) << shift;
            if byte < 128 {
                return Ok(value);
            }
        }
        Err(ReadError::LongNumber { at: start })
    }

    fn take(&mut self, what: &'static str, n: u64) -> Result<Fields<'a>> {
        let (at, bytes) = (self.base + self.at, self.base + self.bytes.len());
        let past = || ReadError::PastEnd { what, at, end: (at as u64).saturating_add(n), bytes };
        let end = usize::try_from(n).ok().and_then(|n| self.at.checked_add(n)).ok_or_else(past)?;
        let part = self.bytes.get(self.at..end).ok_or_else(past)?;
        self.at = end;
        Ok(Fields { bytes: part, at: 0, base: at })
    }

    fn text(&self) -> Result<String> {
        String::from_utf8(self.bytes.to_vec()).map_err(|_| ReadError::Utf8 { at: self.base })
    }
}

#[cfg(test)]
mod tests;
