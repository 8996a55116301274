//! An adapter folded into the weights it stands beside, module by module, in f32.

use super::config::{AdapterConfig, Kind};
use super::file::AdapterFile;
use crate::model::layers::dora::Dora;
use crate::model::layers::ia3::Ia3;
use crate::model::layers::lora::Lora;
use candle_core::{Device, Tensor};
use std::collections::BTreeSet;
use std::path::Path;

/// Ends of the names of an adapter's own tensors; what ends otherwise replaces a tensor of the base.
const PARTS: [&str; 4] = [".lora_A.weight", ".lora_B.weight", ".lora_magnitude_vector", ".ia3_l"];

/// An adapter on its way into its base.
pub struct Fold {
    config: AdapterConfig,
    /// Its tensors.
    pub file: AdapterFile,
}

impl Fold {
    /// Opens an adapter's folder; `trunk` as [`AdapterFile::open`] takes it.
    pub fn open(dir: &Path, trunk: &str) -> anyhow::Result<Self> {
        Ok(Self { config: AdapterConfig::read(dir)?, file: AdapterFile::open(dir, trunk)? })
    }

    /// The modules that have an adapter.
    pub fn modules(&self) -> BTreeSet<&str> {
        self.file.names().filter_map(module_of).collect()
    }

    /// Names of the tensors that replace the base's.
    pub fn whole(&self) -> impl Iterator<Item = &str> {
        self.file.names().filter(|name| module_of(name).is_none())
    }

    /// # Errors
    /// A module whose tensors are not all there, are of another method, or do not fit a weight of (out, in) = `weight`.
    pub fn fits(&self, module: &str, weight: &[usize]) -> anyhow::Result<()> {
        let file = self.file.path.display();
        let [out, input] = weight[..] else {
            crate::bad_input!("{file}: `{module}` is no matrix in the base model: {weight:?}");
        };
        let shape = |end: &str| self.file.shape(&format!("{module}{end}"));
        let [a, b, magnitude, vector] = PARTS.map(shape);
        let expected = match self.config.kind {
            Kind::Ia3 => [false, false, false, true],
            kind => [true, true, kind == Kind::Dora, false],
        };
        for ((end, found), expected) in PARTS.iter().zip([&a, &b, &magnitude, &vector]).zip(expected) {
            let end = end.trim_start_matches('.').trim_end_matches(".weight");
            if expected && found.is_none() {
                crate::bad_input!("{file}: `{module}` has no {end}");
            }
            if !expected && found.is_some() {
                crate::bad_input!(
                    "{file}: `{module}` has {end}, which {:?} in adapter_config.json does not",
                    self.config.kind
                );
            }
        }
        let base = format!("the base's {weight:?}; is it the base it was tuned on?");
        if let (Some(a), Some(b)) = (a, b) {
            let r = self.config.rank(module);
            if a.len() == 2 && a[0] != r {
                crate::bad_input!("{file}: `{module}`: A is {a:?}, of rank {}, but adapter_config.json says {r}", a[0]);
            }
            if a != [r, input] || b != [out, r] {
                crate::bad_input!("{file}: `{module}`: A {a:?} and B {b:?} do not fit {base}");
            }
        }
        if let Some(m) = magnitude.filter(|m| *m != [out]) {
            crate::bad_input!("{file}: `{module}`: a magnitude {m:?} does not fit {base}");
        }
        let fit = if self.config.is_feedforward(module) { [1, input] } else { [out, 1] };
        if let Some(l) = vector.filter(|l| *l != fit) {
            crate::bad_input!("{file}: `{module}`: a vector {l:?} does not fit {base}");
        }
        Ok(())
    }

    /// Whether the module's bias changes too.
    pub fn scales_bias(&self, module: &str) -> bool {
        self.config.kind == Kind::Ia3 && !self.config.is_feedforward(module)
    }

    /// W' of a module, from W: (out, in).
    pub fn weight(&self, module: &str, weight: &Tensor) -> anyhow::Result<Tensor> {
        if self.config.kind == Kind::Ia3 {
            return Ok(Ia3::folded(&self.part(module, ".ia3_l")?, weight)?);
        }
        let pair = Lora {
            a: self.part(module, ".lora_A.weight")?,
            b: self.part(module, ".lora_B.weight")?,
            scale: self.config.scale(module),
            dropout: 0.0,
        };
        Ok(match self.config.kind {
            Kind::Dora => Dora::folded(&pair, &self.part(module, ".lora_magnitude_vector")?, weight)?,
            _ => pair.folded(weight)?,
        })
    }

    /// b' of a module whose bias changes, from b: (out).
    pub fn bias(&self, module: &str, bias: &Tensor) -> anyhow::Result<Tensor> {
        Ok((bias * self.part(module, ".ia3_l")?.flatten_all()?)?)
    }

    fn part(&self, module: &str, end: &str) -> anyhow::Result<Tensor> {
        self.file.tensor(&format!("{module}{end}"), &Device::Cpu)
    }
}

fn module_of(name: &str) -> Option<&str> {
    PARTS.iter().find_map(|end| name.strip_suffix(end))
}
