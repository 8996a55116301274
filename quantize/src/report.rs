//! What a file became: per tensor the bytes before and after and the error that rounding left.

use crate::importance::Coverage;
use edgeft_runtime::format::GgmlType;
use serde::Serialize;
use std::collections::BTreeMap;

/// A finished file, or an ONNX folder.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Name of the mix, or what a file of chosen types is called.
    pub mix: String,
    /// Bytes of the whole file, or of all files of the folder.
    pub bytes: u64,
    /// Bits that a weight really takes, without metadata and padding.
    pub bpw: f64,
    /// How many tensors got each type.
    pub types: BTreeMap<&'static str, usize>,
    /// SHA-256 of the whole file, lower-case hexadecimal; of a folder that of `model.onnx`, which holds that of its data.
    pub sha256: String,
    /// In file order.
    pub tensors: Vec<TensorReport>,
    /// Which matrices have statistics, if there was an importance matrix.
    #[serde(skip)]
    pub coverage: Option<Coverage>,
    /// Source tensors that were left out, and why.
    pub skipped: Vec<(String, &'static str)>,
}

/// One tensor of a finished file.
#[derive(Debug, Clone, Serialize)]
pub struct TensorReport {
    /// GGUF name.
    pub name: String,
    /// Type in the file.
    #[serde(serialize_with = "by_name", rename = "type")]
    pub ty: GgmlType,
    /// Why.
    pub reason: String,
    /// Why it is not what was asked for, if so.
    pub fallback: Option<String>,
    /// Bytes as f32.
    pub bytes_before: u64,
    /// Bytes in the file.
    pub bytes: u64,
    /// Root of the mean squared difference between what was read and what the file decodes to.
    pub rms_error: f64,
    /// `rms_error` over the root mean square of the values; 0 for a tensor of zeros.
    pub relative_error: f64,
}

fn by_name<S: serde::Serializer>(ty: &GgmlType, s: S) -> Result<S::Ok, S::Error> {
    s.serialize_str(ty.name())
}

impl std::fmt::Display for Report {
    /// One line: what a person wants to know first.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let types: Vec<String> = self.types.iter().map(|(t, n)| format!("{n} {t}")).collect();
        let fallbacks = self.tensors.iter().filter(|t| t.fallback.is_some()).count();
        write!(
            f,
            "{}: {:.1} MB, {:.2} bits a weight, {} tensors ({})",
            self.mix,
            self.bytes as f64 / 1e6,
            self.bpw,
            self.tensors.len(),
            types.join(", ")
        )?;
        if fallbacks > 0 {
            write!(f, "; {fallbacks} could not have the type of the mix")?;
        }
        Ok(())
    }
}
