//! The GGUF v3 reader: the spec (ggml's `docs/gguf.md`, and `gguf.cpp` where it is stricter) as code. Each field is
//! checked on the line that reads it; nothing is allocated before its size is known to fit in the file.

use super::GgmlType;
use std::collections::HashSet;

/// First four bytes.
pub const MAGIC: [u8; 4] = *b"GGUF";
/// Version that is written; 2 and 3 are read.
pub const VERSION: u32 = 3;
/// Alignment of tensor data where `general.alignment` does not say otherwise.
pub const DEFAULT_ALIGNMENT: u64 = 32;
/// Longest tensor name, in bytes (`GGML_MAX_NAME` less its zero).
pub const MAX_NAME: usize = 63;
/// Most dimensions of a tensor.
pub const MAX_DIMS: u32 = 4;

/// Value of a metadata key.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub enum Value {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    F32(f32),
    Bool(bool),
    Str(String),
    Array(Array),
    U64(u64),
    I64(i64),
    F64(f64),
}

/// Array of one element type; arrays of arrays are refused, as ggml does.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub enum Array {
    U8(Vec<u8>),
    I8(Vec<i8>),
    U16(Vec<u16>),
    I16(Vec<i16>),
    U32(Vec<u32>),
    I32(Vec<i32>),
    F32(Vec<f32>),
    Bool(Vec<bool>),
    Str(Vec<String>),
    U64(Vec<u64>),
    I64(Vec<i64>),
    F64(Vec<f64>),
}

impl Value {
    /// GGUF's code of the value's type.
    pub fn code(&self) -> u32 {
        match self {
            Self::U8(_) => 0,
            Self::I8(_) => 1,
            Self::U16(_) => 2,
            Self::I16(_) => 3,
            Self::U32(_) => 4,
            Self::I32(_) => 5,
            Self::F32(_) => 6,
            Self::Bool(_) => 7,
            Self::Str(_) => 8,
            Self::Array(_) => 9,
            Self::U64(_) => 10,
            Self::I64(_) => 11,
            Self::F64(_) => 12,
        }
    }

    /// Name of the type, for messages.
    pub fn type_name(&self) -> &'static str {
        ["u8", "i8", "u16", "i16", "u32", "i32", "f32", "bool", "string", "array", "u64", "i64", "f64"]
            [self.code() as usize]
    }
}

impl Array {
    /// GGUF's code of the element type.
    pub fn code(&self) -> u32 {
        match self {
            Self::U8(_) => 0,
            Self::I8(_) => 1,
            Self::U16(_) => 2,
            Self::I16(_) => 3,
            Self::U32(_) => 4,
            Self::I32(_) => 5,
            Self::F32(_) => 6,
            Self::Bool(_) => 7,
            Self::Str(_) => 8,
            Self::U64(_) => 10,
            Self::I64(_) => 11,
            Self::F64(_) => 12,
        }
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        match self {
            Self::U8(a) => a.len(),
            Self::I8(a) => a.len(),
            Self::U16(a) => a.len(),
            Self::I16(a) => a.len(),
            Self::U32(a) => a.len(),
            Self::I32(a) => a.len(),
            Self::F32(a) => a.len(),
            Self::Bool(a) => a.len(),
            Self::Str(a) => a.len(),
            Self::U64(a) => a.len(),
            Self::I64(a) => a.len(),
            Self::F64(a) => a.len(),
        }
    }

    /// Whether there is no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A line of the tensor table.
#[derive(Debug, Clone, PartialEq)]
pub struct TensorInfo {
    /// At most [`MAX_NAME`] bytes.
    pub name: String,
    /// Element type.
    pub ty: GgmlType,
    /// ggml's order: the fastest dimension first, the reverse of Hugging Face's shape.
    pub dims: Vec<u64>,
    /// From [`Gguf::data_start`].
    pub offset: u64,
    /// Size of the data.
    pub bytes: u64,
}

/// Header, metadata and tensor table of a file.
#[derive(Debug, Clone, PartialEq)]
pub struct Gguf {
    /// 2 or 3.
    pub version: u32,
    /// `general.alignment`.
    pub alignment: u64,
    /// Where tensor data begins, from the start of the file.
    pub data_start: u64,
    /// In file order.
    pub metadata: Vec<(String, Value)>,
    /// In file order.
    pub tensors: Vec<TensorInfo>,
}

/// Why a file is not a GGUF file that can be used.
#[derive(Debug, thiserror::Error, PartialEq)]
#[allow(missing_docs)] // the message of each variant is its documentation
pub enum GgufError {
    #[error("the file is empty")]
    Empty,
    #[error("not a GGUF file: it begins with {0:02x?}, a GGUF file with \"GGUF\"")]
    Magic([u8; 4]),
    #[error("GGUF version {0} is not read; known: 2, 3")]
    Version(u32),
    #[error("the file is big-endian, which is not read; convert it on a little-endian machine")]
    BigEndian,
    #[error(
        "{what} at byte {at} ends at byte {end}, but the file has {file_bytes} bytes; it is cut short: fetch it again"
    )]
    Truncated { what: &'static str, at: u64, end: u64, file_bytes: u64 },
    #[error("{n} {what} cannot fit in {file_bytes} bytes")]
    Count { what: &'static str, n: u64, file_bytes: u64 },
    #[error("{what} at byte {at} is not UTF-8")]
    Utf8 { what: &'static str, at: u64 },
    #[error("metadata key number {0} is empty")]
    EmptyKey(u64),
    #[error("metadata key `{0}` stands twice")]
    DuplicateKey(String),
    #[error("metadata key `{key}` has type code {code}; known: 0 to 12")]
    ValueType { key: String, code: u32 },
    #[error("metadata key `{0}` is an array of arrays, which GGUF does not allow")]
    NestedArray(String),
    #[error("metadata key `{key}` is {value}, which is no bool (0 or 1)")]
    Bool { key: String, value: u8 },
    #[error("general.alignment is {0}; it must be a power of two from 1 to 65536")]
    Alignment(u64),
    #[error("tensor `{name}` has a name of {bytes} bytes; at most {MAX_NAME} are allowed")]
    LongName { name: String, bytes: u64 },
    #[error("tensor number {0} has no name")]
    NoName(u64),
    #[error("tensor `{0}` stands twice")]
    DuplicateTensor(String),
    #[error("tensor `{name}` has {n} dimensions; 1 to {MAX_DIMS} are allowed")]
    Dims { name: String, n: u32 },
    #[error("tensor `{name}` has a dimension of 0")]
    ZeroDim { name: String },
    #[error("tensor `{name}` has ggml type {code}, which this version does not read{}", named(*.code))]
    Type { name: String, code: u32 },
    #[error("tensor `{name}` has rows of {row} elements, which is no whole number of {ty} blocks of {block}")]
    Row { name: String, row: u64, ty: GgmlType, block: usize },
    #[error("tensor `{name}` with dimensions {dims:?} overflows")]
    Overflow { name: String, dims: Vec<u64> },
    #[error(
        "tensor `{name}` begins at offset {found} of the data, expected {expected}: tensors must follow each other"
    )]
    Offset { name: String, found: u64, expected: u64 },
    #[error("tensor `{name}` ends at byte {end}, but the file has {file_bytes} bytes; it is cut short: fetch it again")]
    PastEnd { name: String, end: u64, file_bytes: u64 },
    #[error("no metadata key `{0}`")]
    NoKey(String),
    #[error("metadata key `{key}` is {found}, expected {expected}")]
    KeyType { key: String, found: &'static str, expected: &'static str },
}

/// Name of a ggml type that is known but not read.
fn named(code: u32) -> String {
    let name = match code {
        9 => "q8_1",
        15 => "q8_k",
        16 => "iq2_xxs",
        17 => "iq2_xs",
        18 => "iq3_xxs",
        19 => "iq1_s",
        21 => "iq3_s",
        22 => "iq2_s",
        24 => "i8",
        25 => "i16",
        26 => "i32",
        27 => "i64",
        28 => "f64",
        29 => "iq1_m",
        34 => "tq1_0",
        35 => "tq2_0",
        39 => "mxfp4",
        40 => "nvfp4",
        41 => "q1_0",
        42 => "q2_0",
        _ => return String::new(),
    };
    format!(" ({name})")
}

impl Gguf {
    /// Reads header, metadata and tensor table of a whole file.
    ///
    /// # Errors
    /// The first thing that is wrong, with the place and both numbers.
    pub fn parse(bytes: &[u8]) -> Result<Self, GgufError> {
        if bytes.is_empty() {
            return Err(GgufError::Empty);
        }
        let mut r = Reader { bytes, at: 0 };
        let magic = r.array::<4>("magic")?;
        if magic != MAGIC {
            return Err(GgufError::Magic(magic));
        }
        let version = r.u32("version")?;
        match version {
            2 | 3 => {}
            v if v & 0xffff == 0 && v != 0 => return Err(GgufError::BigEndian),
            v => return Err(GgufError::Version(v)),
        }
        let n_tensors = r.u64("tensor count")?;
        let n_keys = r.u64("key count")?;
        // The least that a key (length, one byte, type, value) and a tensor line can take.
        r.fits("keys", n_keys, 14)?;
        r.fits("tensors", n_tensors, 8 + 1 + 4 + 8 + 4 + 8)?;

        let mut metadata = Vec::with_capacity(n_keys as usize);
        let mut seen = HashSet::new();
        for i in 0..n_keys {
            let key = r.string("metadata key")?;
            if key.is_empty() {
                return Err(GgufError::EmptyKey(i));
            }
            if !seen.insert(key.clone()) {
                return Err(GgufError::DuplicateKey(key));
            }
            let value = r.value(&key)?;
            metadata.push((key, value));
        }
        let alignment = match metadata.iter().find(|(k, _)| k == "general.alignment") {
            None => DEFAULT_ALIGNMENT,
            Some((_, Value::U32(a))) => u64::from(*a),
            Some((key, other)) => {
                return Err(GgufError::KeyType { key: key.clone(), found: other.type_name(), expected: "u32" });
            }
        };
        if !alignment.is_power_of_two() || alignment > 1 << 16 {
            return Err(GgufError::Alignment(alignment));
        }
        let tensors = r.tensors(n_tensors, alignment)?;
        let data_start = r.at.next_multiple_of(alignment);
        let file_bytes = bytes.len() as u64;
        for t in &tensors {
            let end = data_start.checked_add(t.offset).and_then(|s| s.checked_add(t.bytes));
            let end = end.ok_or_else(|| GgufError::Overflow { name: t.name.clone(), dims: t.dims.clone() })?;
            if end > file_bytes {
                return Err(GgufError::PastEnd { name: t.name.clone(), end, file_bytes });
            }
        }
        Ok(Self { version, alignment, data_start, metadata, tensors })
    }

    /// Value of a key.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.metadata.iter().find(|(k, _)| k == key).map(|(_, v)| v)
    }

    /// A whole number of any width that is not negative and fits.
    pub fn u32(&self, key: &str) -> Result<u32, GgufError> {
        let value = self.need(key)?;
        let number = match value {
            Value::U8(v) => Some(u64::from(*v)),
            Value::U16(v) => Some(u64::from(*v)),
            Value::U32(v) => Some(u64::from(*v)),
            Value::U64(v) => Some(*v),
            Value::I8(v) => u64::try_from(*v).ok(),
            Value::I16(v) => u64::try_from(*v).ok(),
            Value::I32(v) => u64::try_from(*v).ok(),
            Value::I64(v) => u64::try_from(*v).ok(),
            _ => None,
        };
        number.and_then(|n| u32::try_from(n).ok()).ok_or_else(|| wrong(key, value, "a whole number below 2^32"))
    }

    /// A float.
    pub fn f32(&self, key: &str) -> Result<f32, GgufError> {
        match self.need(key)? {
            Value::F32(v) => Ok(*v),
            Value::F64(v) => Ok(*v as f32),
            other => Err(wrong(key, other, "f32")),
        }
    }

    /// A string.
    pub fn str(&self, key: &str) -> Result<&str, GgufError> {
        match self.need(key)? {
            Value::Str(v) => Ok(v),
            other => Err(wrong(key, other, "string")),
        }
    }

    /// A bool.
    pub fn bool(&self, key: &str) -> Result<bool, GgufError> {
        match self.need(key)? {
            Value::Bool(v) => Ok(*v),
            other => Err(wrong(key, other, "bool")),
        }
    }

    /// An array.
    pub fn array(&self, key: &str) -> Result<&Array, GgufError> {
        match self.need(key)? {
            Value::Array(v) => Ok(v),
            other => Err(wrong(key, other, "array")),
        }
    }

    /// An array of strings.
    pub fn strings(&self, key: &str) -> Result<&[String], GgufError> {
        match self.array(key)? {
            Array::Str(v) => Ok(v),
            _ => {
                Err(GgufError::KeyType { key: key.to_owned(), found: "array of numbers", expected: "array of strings" })
            }
        }
    }

    /// A line of the tensor table.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.iter().find(|t| t.name == name)
    }

    /// The data of a tensor of this file; `bytes` is the file that was parsed.
    pub fn data<'a>(&self, bytes: &'a [u8], tensor: &TensorInfo) -> &'a [u8] {
        let start = (self.data_start + tensor.offset) as usize;
        &bytes[start..start + tensor.bytes as usize]
    }

    fn need(&self, key: &str) -> Result<&Value, GgufError> {
        self.get(key).ok_or_else(|| GgufError::NoKey(key.to_owned()))
    }
}

fn wrong(key: &str, found: &Value, expected: &'static str) -> GgufError {
    GgufError::KeyType { key: key.to_owned(), found: found.type_name(), expected }
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: u64,
}

impl<'a> Reader<'a> {
    fn take(&mut self, n: u64, what: &'static str) -> Result<&'a [u8], GgufError> {
        let file_bytes = self.bytes.len() as u64;
        let end = self.at.saturating_add(n);
        if end > file_bytes {
            return Err(GgufError::Truncated { what, at: self.at, end, file_bytes });
        }
        let slice = &self.bytes[self.at as usize..end as usize];
        self.at = end;
        Ok(slice)
    }

    fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], GgufError> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N as u64, what)?);
        Ok(out)
    }

    fn u32(&mut self, what: &'static str) -> Result<u32, GgufError> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }

    fn u64(&mut self, what: &'static str) -> Result<u64, GgufError> {
        Ok(u64::from_le_bytes(self.array(what)?))
    }

    /// `n` things of at least `least` bytes each must fit in the rest of the file, before anything is allocated.
    fn fits(&self, what: &'static str, n: u64, least: u64) -> Result<(), GgufError> {
        let file_bytes = self.bytes.len() as u64;
        if n.checked_mul(least).is_none_or(|b| b > file_bytes - self.at) {
            return Err(GgufError::Count { what, n, file_bytes });
        }
        Ok(())
    }

    fn string(&mut self, what: &'static str) -> Result<String, GgufError> {
        let n = self.u64(what)?;
        let at = self.at;
        let bytes = self.take(n, what)?;
        std::str::from_utf8(bytes).map(str::to_owned).map_err(|_| GgufError::Utf8 { what, at })
    }

    fn bool(&mut self, key: &str) -> Result<bool, GgufError> {
        match self.array::<1>("bool")?[0] {
            0 => Ok(false),
            1 => Ok(true),
            value => Err(GgufError::Bool { key: key.to_owned(), value }),
        }
    }

    fn value(&mut self, key: &str) -> Result<Value, GgufError> {
        let code = self.u32("value type")?;
        Ok(match code {
            0 => Value::U8(self.array::<1>("u8")?[0]),
            1 => Value::I8(i8::from_le_bytes(self.array("i8")?)),
            2 => Value::U16(u16::from_le_bytes(self.array("u16")?)),
            3 => Value::I16(i16::from_le_bytes(self.array("i16")?)),
            4 => Value::U32(u32::from_le_bytes(self.array("u32")?)),
            5 => Value::I32(i32::from_le_bytes(self.array("i32")?)),
            6 => Value::F32(f32::from_le_bytes(self.array("f32")?)),
            7 => Value::Bool(self.bool(key)?),
            8 => Value::Str(self.string("string")?),
            9 => Value::Array(self.elements(key)?),
            10 => Value::U64(u64::from_le_bytes(self.array("u64")?)),
            11 => Value::I64(i64::from_le_bytes(self.array("i64")?)),
            12 => Value::F64(f64::from_le_bytes(self.array("f64")?)),
            code => return Err(GgufError::ValueType { key: key.to_owned(), code }),
        })
    }

    fn elements(&mut self, key: &str) -> Result<Array, GgufError> {
        let code = self.u32("element type")?;
        let n = self.u64("array length")?;
        macro_rules! numbers {
            ($variant:ident, $ty:ty) => {{
                const SIZE: usize = size_of::<$ty>();
                self.fits("array elements", n, SIZE as u64)?;
                let bytes = self.take(n * SIZE as u64, "array")?;
                let one = |b: &[u8]| {
                    let mut a = [0; SIZE];
                    a.copy_from_slice(b);
                    <$ty>::from_le_bytes(a)
                };
                Array::$variant(bytes.chunks_exact(SIZE).map(one).collect())
            }};
        }
        Ok(match code {
            0 => numbers!(U8, u8),
            1 => numbers!(I8, i8),
            2 => numbers!(U16, u16),
            3 => numbers!(I16, i16),
            4 => numbers!(U32, u32),
            5 => numbers!(I32, i32),
            6 => numbers!(F32, f32),
            7 => {
                self.fits("array elements", n, 1)?;
                Array::Bool((0..n).map(|_| self.bool(key)).collect::<Result<_, _>>()?)
            }
            8 => {
                self.fits("array elements", n, 8)?;
                Array::Str((0..n).map(|_| self.string("string")).collect::<Result<_, _>>()?)
            }
            9 => return Err(GgufError::NestedArray(key.to_owned())),
            10 => numbers!(U64, u64),
            11 => numbers!(I64, i64),
            12 => numbers!(F64, f64),
            code => return Err(GgufError::ValueType { key: key.to_owned(), code }),
        })
    }

    fn tensors(&mut self, n: u64, alignment: u64) -> Result<Vec<TensorInfo>, GgufError> {
        let mut tensors = Vec::with_capacity(n as usize);
        let mut seen = HashSet::new();
        let mut expected = 0u64;
        for i in 0..n {
            let name = self.string("tensor name")?;
            if name.is_empty() {
                return Err(GgufError::NoName(i));
            }
            if name.len() > MAX_NAME {
                let bytes = name.len() as u64;
                return Err(GgufError::LongName { name, bytes });
            }
            if !seen.insert(name.clone()) {
                return Err(GgufError::DuplicateTensor(name));
            }
            let n_dims = self.u32("dimension count")?;
            if n_dims == 0 || n_dims > MAX_DIMS {
                return Err(GgufError::Dims { name, n: n_dims });
            }
            let dims = (0..n_dims).map(|_| self.u64("dimension")).collect::<Result<Vec<_>, _>>()?;
            if dims.contains(&0) {
                return Err(GgufError::ZeroDim { name });
            }
            let code = self.u32("tensor type")?;
            let Some(ty) = GgmlType::from_code(code) else { return Err(GgufError::Type { name, code }) };
            let offset = self.u64("tensor offset")?;
            let block = ty.block_len();
            if !dims[0].is_multiple_of(block as u64) {
                return Err(GgufError::Row { name, row: dims[0], ty, block });
            }
            let elements = dims.iter().try_fold(1u64, |n, d| n.checked_mul(*d));
            let bytes = elements.and_then(|e| (e / block as u64).checked_mul(ty.block_bytes() as u64));
            let padded = bytes.and_then(|b| b.checked_next_multiple_of(alignment));
            let (Some(bytes), Some(padded)) = (bytes, padded) else { return Err(GgufError::Overflow { name, dims }) };
            if offset != expected {
                return Err(GgufError::Offset { name, found: offset, expected });
            }
            expected = offset
                .checked_add(padded)
                .ok_or_else(|| GgufError::Overflow { name: name.clone(), dims: dims.clone() })?;
            tensors.push(TensorInfo { name, ty, dims, offset, bytes });
        }
        Ok(tensors)
    }
}
