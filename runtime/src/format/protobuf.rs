//! The protobuf wire format (protobuf.dev, "Encoding"), read field by field without a schema: as much as it takes to walk
//! through a file that another program will load, and to tell where it is broken.

/// Why bytes are not a protobuf message. Offsets count from the start of the message being read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub enum WireError {
    #[error("the number at byte {at} is cut off")]
    CutNumber { at: usize },
    #[error("the number at byte {at} has more than 64 bits")]
    LongNumber { at: usize },
    #[error("field {field} at byte {at} takes {needed} bytes, but {left} are left; it is cut short")]
    PastEnd { field: u32, at: usize, needed: u64, left: usize },
    #[error("the field at byte {at} has number {number}; fields count from 1 to 536870911")]
    FieldNumber { at: usize, number: u64 },
    #[error("field {field} at byte {at} has wire type {code}, which proto3 does not have")]
    WireType { field: u32, at: usize, code: u64 },
    #[error("field {field} is not UTF-8")]
    Utf8 { field: u32 },
    #[error("field {field} has another type than onnx.proto gives it")]
    Kind { field: u32 },
}

/// What a field holds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Wire<'a> {
    /// int32, int64, uint32, uint64, bool, enum.
    Varint(u64),
    /// fixed32, float.
    Fixed32([u8; 4]),
    /// fixed64, double.
    Fixed64([u8; 8]),
    /// string, bytes, a message, or packed numbers.
    Bytes(&'a [u8]),
}

/// A field as it stands in its message.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Field<'a> {
    /// Its number in the schema.
    pub number: u32,
    /// Its content.
    pub wire: Wire<'a>,
}

impl<'a> Field<'a> {
    /// A message, or bytes.
    ///
    /// # Errors
    /// [`WireError::Kind`] for a number.
    pub fn bytes(&self) -> Result<&'a [u8], WireError> {
        match self.wire {
            Wire::Bytes(bytes) => Ok(bytes),
            _ => Err(WireError::Kind { field: self.number }),
        }
    }

    /// A text.
    ///
    /// # Errors
    /// [`WireError::Kind`] for a number; [`WireError::Utf8`].
    pub fn text(&self) -> Result<&'a str, WireError> {
        std::str::from_utf8(self.bytes()?).map_err(|_| WireError::Utf8 { field: self.number })
    }

    /// A whole number.
    ///
    /// # Errors
    /// [`WireError::Kind`] for anything else.
    pub fn number(&self) -> Result<u64, WireError> {
        match self.wire {
            Wire::Varint(v) => Ok(v),
            _ => Err(WireError::Kind { field: self.number }),
        }
    }

    /// Appends a repeated int64 field, which may stand alone or be packed; both occur.
    ///
    /// # Errors
    /// [`WireError::Kind`] for a fixed number; a cut number among packed ones.
    pub fn push_int64s(&self, out: &mut Vec<i64>) -> Result<(), WireError> {
        match self.wire {
            Wire::Varint(v) => out.push(v as i64),
            Wire::Bytes(packed) => {
                let mut rest = Fields::new(packed);
                while rest.at < packed.len() {
                    out.push(rest.varint()? as i64);
                }
            }
            _ => return Err(WireError::Kind { field: self.number }),
        }
        Ok(())
    }
}

/// The fields of a message, in order. Ends after the first error.
#[derive(Debug, Clone)]
pub struct Fields<'a> {
    bytes: &'a [u8],
    at: usize,
    failed: bool,
}

impl<'a> Fields<'a> {
    /// Of a message's bytes.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0, failed: false }
    }

    fn varint(&mut self) -> Result<u64, WireError> {
        let (at, mut value) = (self.at, 0u64);
        for shift in (0..70).step_by(7) {
            let byte = *self.bytes.get(self.at).ok_or(WireError::CutNumber { at })?;
            self.at += 1;
            if shift == 63 && byte > 1 {
                return Err(WireError::LongNumber { at });
            }
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(WireError::LongNumber { at })
    }

    fn take(&mut self, field: u32, n: u64) -> Result<&'a [u8], WireError> {
        let (at, left) = (self.at, self.bytes.len() - self.at);
        let past = WireError::PastEnd { field, at, needed: n, left };
        let n = usize::try_from(n).ok().filter(|n| *n <= left).ok_or(past)?;
        self.at += n;
        Ok(&self.bytes[at..at + n])
    }

    fn field(&mut self) -> Result<Field<'a>, WireError> {
        let at = self.at;
        let tag = self.varint()?;
        let number = tag >> 3;
        if number == 0 || number >= 1 << 29 {
            return Err(WireError::FieldNumber { at, number });
        }
        let number = number as u32;
        let mut eight = [0; 8];
        let mut four = [0; 4];
        let wire = match tag & 7 {
            0 => Wire::Varint(self.varint()?),
            1 => {
                eight.copy_from_slice(self.take(number, 8)?);
                Wire::Fixed64(eight)
            }
            2 => {
                let n = self.varint()?;
                Wire::Bytes(self.take(number, n)?)
            }
            5 => {
                four.copy_from_slice(self.take(number, 4)?);
                Wire::Fixed32(four)
            }
            code => return Err(WireError::WireType { field: number, at, code }),
        };
        Ok(Field { number, wire })
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<Field<'a>, WireError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed || self.at == self.bytes.len() {
            return None;
        }
        let field = self.field();
        self.failed = field.is_err();
        Some(field)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(bytes: &[u8]) -> Result<Vec<Field<'_>>, WireError> {
        Fields::new(bytes).collect()
    }

    #[test]
    fn the_examples_of_the_specification_are_read() {
        // field 1 = 150; field 2 = "testing"; field 3 = a message whose field 1 is 150
        let bytes = [0x08, 0x96, 0x01, 0x12, 7, b't', b'e', b's', b't', b'i', b'n', b'g', 0x1a, 3, 0x08, 0x96, 0x01];
        let fields = all(&bytes).unwrap();
        assert_eq!(fields[0].number().unwrap(), 150);
        assert_eq!(fields[1].text().unwrap(), "testing");
        assert_eq!(all(fields[2].bytes().unwrap()).unwrap()[0].number().unwrap(), 150);
    }

    #[test]
    fn repeated_numbers_may_be_packed_or_not() {
        let mut out = Vec::new();
        for field in all(&[0x32, 6, 3, 0x8e, 0x02, 0x9e, 0xa7, 0x05, 0x30, 1]).unwrap() {
            field.push_int64s(&mut out).unwrap();
        }
        assert_eq!(out, [3, 270, 86942, 1]);
    }

    #[test]
    fn a_negative_number_has_ten_bytes() {
        let minus_one = [0x08, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01];
        assert_eq!(all(&minus_one).unwrap()[0].number().unwrap() as i64, -1);
    }

    #[track_caller]
    fn refuses(bytes: &[u8], because: WireError) {
        assert_eq!(all(bytes).unwrap_err(), because);
    }

    #[test]
    fn what_is_broken_is_told() {
        refuses(&[0x08], WireError::CutNumber { at: 1 });
        refuses(&[0x08, 0xff], WireError::CutNumber { at: 1 });
        refuses(&[0x12, 5, 1, 2], WireError::PastEnd { field: 2, at: 2, needed: 5, left: 2 });
        refuses(&[0x0d, 1, 2], WireError::PastEnd { field: 1, at: 1, needed: 4, left: 2 });
        refuses(&[0x00, 0], WireError::FieldNumber { at: 0, number: 0 });
        refuses(&[0x0b], WireError::WireType { field: 1, at: 0, code: 3 });
        let mut long = vec![0x08];
        long.extend([0xff; 9]);
        long.push(2);
        refuses(&long, WireError::LongNumber { at: 1 });
        let huge = [0x12, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01];
        refuses(&huge, WireError::PastEnd { field: 2, at: 11, needed: u64::MAX, left: 0 });
    }

    #[test]
    fn no_bytes_make_it_panic() {
        proptest::proptest!(|(bytes: Vec<u8>)| {
            for field in Fields::new(&bytes).flatten() {
                let _ = (field.text(), field.number(), field.push_int64s(&mut Vec::new()));
            }
        });
    }
}
