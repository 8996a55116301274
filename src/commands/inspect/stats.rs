//! `--stats`: what the values of each tensor are like, decoded as a device decodes them.

use crate::error::BadInput;
use edgeft_runtime::format::GgmlType;
use edgeft_runtime::format::block::decode;
use safetensors::Dtype;
use serde_json::{Value, json};

/// Elements that are decoded at a time; whole blocks of every type.
const CHUNK: usize = 1 << 16;

/// Over all values of a tensor.
#[derive(Default)]
pub struct Stats {
    n: u64,
    min: f32,
    max: f32,
    sum: f64,
    squares: f64,
    zeros: u64,
    /// NaN and infinities, which nothing else counts.
    broken: u64,
}

impl Stats {
    /// Of a tensor in its blocks.
    pub fn of_blocks(ty: GgmlType, bytes: &[u8]) -> Self {
        let mut it = Self::default();
        let mut x = vec![0.0; CHUNK];
        for part in bytes.chunks(CHUNK / ty.block_len() * ty.block_bytes()) {
            let x = &mut x[..part.len() / ty.block_bytes() * ty.block_len()];
            decode(ty, part, x);
            it.add(x);
        }
        it
    }

    /// Of a tensor of a safetensors file; `None` for integers.
    pub fn of_safetensors(dtype: Dtype, bytes: &[u8]) -> Option<Self> {
        let ty = match dtype {
            Dtype::F32 => GgmlType::F32,
            Dtype::F16 => GgmlType::F16,
            Dtype::BF16 => GgmlType::BF16,
            _ => return None,
        };
        Some(Self::of_blocks(ty, bytes))
    }

    fn add(&mut self, x: &[f32]) {
        for v in x {
            if !v.is_finite() {
                self.broken += 1;
                continue;
            }
            (self.min, self.max) = if self.n == 0 { (*v, *v) } else { (self.min.min(*v), self.max.max(*v)) };
            self.n += 1;
            self.zeros += u64::from(*v == 0.0);
            self.sum += f64::from(*v);
            self.squares += f64::from(*v).powi(2);
        }
    }

    fn mean(&self) -> f64 {
        self.sum / self.n.max(1) as f64
    }

    fn rms(&self) -> f64 {
        (self.squares / self.n.max(1) as f64).sqrt()
    }

    /// For `--json`.
    pub fn json(&self) -> Value {
        json!({"min": self.min, "max": self.max, "mean": self.mean(), "rms": self.rms(), "zeros": self.zeros,
            "not_finite": self.broken})
    }

    /// Heads of [`Stats::cells`].
    pub const HEADS: [&'static str; 6] = ["min", "max", "mean", "rms", "zeros", "not finite"];

    /// For a table.
    pub fn cells(&self) -> Vec<String> {
        let share = 100.0 * self.zeros as f64 / self.n.max(1) as f64;
        vec![
            format!("{:.4}", self.min),
            format!("{:.4}", self.max),
            format!("{:.2e}", self.mean()),
            format!("{:.2e}", self.rms()),
            format!("{share:.2} %"),
            self.broken.to_string(),
        ]
    }
}

/// SHA-256 of the whole file.
///
/// # Errors
/// A file that cannot be read.
pub fn sha256(path: &std::path::Path) -> anyhow::Result<String> {
    crate::tune::run_folder::sha256(path).map_err(|e| BadInput(format!("cannot read {}: {e}", path.display())).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_counted_and_broken_ones_apart() {
        let x = [1.0f32, -3.0, 0.0, f32::NAN, 2.0];
        let bytes: Vec<u8> = x.iter().flat_map(|v| v.to_le_bytes()).collect();
        let json = Stats::of_safetensors(Dtype::F32, &bytes).unwrap().json();
        assert_eq!((&json["min"], &json["max"], &json["zeros"]), (&json!(-3.0), &json!(2.0), &json!(1)));
        assert_eq!((&json["mean"], &json["not_finite"]), (&json!(0.0), &json!(1)));
        assert!((json["rms"].as_f64().unwrap() - 3.5f64.sqrt()).abs() < 1e-12);
        assert!(Stats::of_safetensors(Dtype::I64, &bytes[..16]).is_none());
    }
}
