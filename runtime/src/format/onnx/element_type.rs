//! Types of elements: names and sizes of `TensorProto.DataType` (ONNX 1.20).

/// Type of the elements of a tensor, by `TensorProto.DataType`'s code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct ElementType(pub u64);

/// Name and bits by code; no bits where elements have no size of their own.
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

#[allow(missing_docs)]
impl ElementType {
    pub const F32: Self = Self(1);
    pub const I32: Self = Self(6);
    pub const I64: Self = Self(7);
    pub const F16: Self = Self(10);
    pub const BF16: Self = Self(16);

    fn entry(self) -> Option<(&'static str, u64)> {
        usize::try_from(self.0).ok().and_then(|code| TYPES.get(code)).copied()
    }

    /// Bits of an element; `None` for strings and types not known here.
    pub fn bits(self) -> Option<u64> {
        self.entry().map(|(_, bits)| bits).filter(|bits| *bits > 0)
    }

    /// As ONNX calls it, lower case; `unknown` for a code that is not in the table.
    pub fn name(self) -> &'static str {
        self.entry().map_or("unknown", |(name, _)| name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_sizes_are_those_of_onnx_proto() {
        let of = |code| (ElementType(code).name(), ElementType(code).bits());
        assert_eq!(of(0), ("undefined", None));
        assert_eq!(of(8), ("string", None));
        assert_eq!(of(22), ("int4", Some(4)));
        assert_eq!(of(25), ("uint2", Some(2)));
        assert_eq!((of(29), of(u64::MAX)), (("unknown", None), ("unknown", None)));
        let named = [ElementType::F32, ElementType::I32, ElementType::I64, ElementType::F16, ElementType::BF16];
        assert_eq!(named.map(ElementType::name), ["float", "int32", "int64", "float16", "bfloat16"]);
        assert_eq!(named.map(ElementType::bits), [32, 32, 64, 16, 16].map(Some));
    }
}
