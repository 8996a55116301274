//! `targets/*.toml` -> [`Profile`], and what it predicts. A prediction is arithmetic on the profile's figures, and is called
//! so wherever it is shown; nothing here was measured on the device unless the profile says `measured = true`.

use crate::error::BadInput;
use edgeft_runtime::engine::KvType;
use edgeft_runtime::measure::{Case, bandwidth, generates};
use edgeft_runtime::model::Model;
use serde::{Deserialize, Serialize};

macro_rules! embedded {
    ($($name:literal)*) => { [$(($name, include_str!(concat!("../targets/", $name, ".toml")))),*] };
}

/// Name and text of every profile, from small to large.
const EMBEDDED: [(&str, &str); 9] = embedded! {
    "rpi-zero2w" "rpi4" "rpi5" "orangepi5" "jetson-orin-nano" "android-arm64-dotprod" "x86-laptop-avx2" "x86-server-avx512"
    "browser-webgpu"
};

/// A device, or a class of devices.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    /// Name of the file.
    #[serde(skip_deserializing)]
    pub name: String,
    /// What people call it.
    pub title: String,
    /// Rust's target triple.
    pub triple: String,
    /// CPU features that a binary for it may use.
    pub features: Vec<String>,
    /// Whether figures of edgeft were measured on it.
    pub measured: bool,
    /// Its CPU.
    pub cpu: Cpu,
    /// Its memory.
    pub memory: Memory,
    /// Transfers a second times width of the memory bus.
    pub bandwidth: Bandwidth,
    /// What reads really reach, where somebody measured it.
    pub sustained: Option<Bandwidth>,
    /// What others saw on it.
    #[serde(default)]
    pub seen: Vec<Seen>,
}

/// CPU of a device.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cpu {
    /// Name, with its cores.
    pub name: String,
    /// Threads worth using.
    pub cores: usize,
    /// Where the figures are from.
    pub source: String,
}

/// Memory of a device.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Memory {
    /// All of it.
    pub mib: u64,
    /// Where the figure is from.
    pub source: String,
}

/// Speed of memory.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bandwidth {
    /// In units of 1e9 bytes a second.
    pub gb_per_s: f64,
    /// Where the figure is from.
    pub source: String,
}

/// A figure that others published.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Seen {
    /// Model.
    pub model: String,
    /// Type of its weights.
    #[serde(rename = "type")]
    pub ty: String,
    /// What ran it.
    pub engine: String,
    /// Prefill.
    pub prompt_tokens_per_s: Option<f64>,
    /// Decoding.
    pub decode_tokens_per_s: f64,
    /// Who says so.
    pub source: String,
}

impl Profile {
    /// All profiles, from small to large.
    ///
    /// # Errors
    /// A profile that does not parse; a test keeps that from being shipped.
    pub fn all() -> anyhow::Result<Vec<Self>> {
        EMBEDDED.iter().map(|(name, text)| Self::parse(name, text)).collect()
    }

    /// The profile of that name.
    ///
    /// # Errors
    /// [`BadInput`] that lists the known names.
    pub fn named(name: &str) -> anyhow::Result<Self> {
        let Some((name, text)) = EMBEDDED.iter().find(|(n, _)| *n == name) else {
            let known: Vec<&str> = EMBEDDED.iter().map(|(n, _)| *n).collect();
            crate::bad_input!("no target `{name}`; known: {}", known.join(", "));
        };
        Self::parse(name, text)
    }

    fn parse(name: &str, text: &str) -> anyhow::Result<Self> {
        let profile: Self = toml::from_str(text).map_err(|e| BadInput(format!("targets/{name}.toml: {e}")))?;
        Ok(Self { name: name.to_owned(), ..profile })
    }

    /// What decoding cannot exceed on the device: its bandwidth over the bytes that a token reads.
    pub fn predict(&self, model: &Model, case: &Case, kv: KvType) -> Prediction {
        let depth = case.prompt + case.generate / 2;
        let weights = bandwidth::weight_bytes(model);
        let cache = bandwidth::kv_bytes(model, case.prompt + case.generate, kv);
        let bytes = weights + case.batch as u64 * bandwidth::kv_bytes(model, depth, kv);
        let decodes = generates(model.task(), model.hparams().causal);
        let rate = |b: &Bandwidth| b.gb_per_s * 1e9 / bytes as f64 * case.batch as f64;
        let needed = model.weight_bytes() + case.batch as u64 * cache;
        Prediction {
            target: self.name.clone(),
            kind: "predicted",
            formula: "decode_tokens_per_s = batch * gb_per_s * 1e9 / bytes_per_forward",
            bytes_per_forward: bytes,
            gb_per_s: self.bandwidth.gb_per_s,
            decode_tokens_per_s: decodes.then(|| rate(&self.bandwidth)),
            sustained_gb_per_s: self.sustained.as_ref().map(|s| s.gb_per_s),
            sustained_decode_tokens_per_s: self.sustained.as_ref().filter(|_| decodes).map(rate),
            bytes_needed: needed,
            fits: needed < self.memory.mib << 20,
        }
    }
}

/// What a profile says of a model. Bounds, not measurements.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Prediction {
    /// Name of the profile.
    pub target: String,
    /// Always `predicted`.
    pub kind: &'static str,
    /// How it was computed.
    pub formula: &'static str,
    /// Weights once, and the cache at the middle of the generation.
    pub bytes_per_forward: u64,
    /// Of the memory bus.
    pub gb_per_s: f64,
    /// At that bandwidth; null for a model that does not decode.
    pub decode_tokens_per_s: Option<f64>,
    /// What reads really reach there, where known.
    pub sustained_gb_per_s: Option<f64>,
    /// At that bandwidth.
    pub sustained_decode_tokens_per_s: Option<f64>,
    /// Weights and the whole cache.
    pub bytes_needed: u64,
    /// Whether those are less than the device's memory.
    pub fits: bool,
}

impl std::fmt::Display for Prediction {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "Predicted for {} (arithmetic, not measured):", self.target)?;
        let megabytes = |bytes: u64| bytes as f64 / 1e6;
        match self.decode_tokens_per_s {
            Some(rate) => {
                writeln!(
                    f,
                    "  decode       at most {rate:.1} tokens/s: {} GB/s over {:.1} MB a forward",
                    self.gb_per_s,
                    megabytes(self.bytes_per_forward)
                )?;
            }
            None => writeln!(
                f,
                "  latency      not predicted: this model does not decode, and its speed is a matter of arithmetic"
            )?,
        }
        if let (Some(rate), Some(speed)) = (self.sustained_decode_tokens_per_s, self.sustained_gb_per_s) {
            writeln!(f, "               at most {rate:.1} tokens/s at the {speed} GB/s that reads reach there")?;
        }
        let fits = if self.fits { "fits" } else { "does NOT fit" };
        write!(f, "  memory       {:.1} MB of weights and cache: {fits}", megabytes(self.bytes_needed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_profile_parses_and_its_figures_make_sense() {
        for p in Profile::all().unwrap() {
            assert!(p.cpu.cores > 0 && p.memory.mib >= 256 && !p.features.is_empty(), "{}", p.name);
            assert!(p.triple.matches('-').count() >= 2, "{}: {}", p.name, p.triple);
            let sustained = p.sustained.as_ref().map_or(0.0, |s| s.gb_per_s);
            assert!(sustained < p.bandwidth.gb_per_s && p.bandwidth.gb_per_s > 1.0, "{}", p.name);
            let sources = [&p.cpu.source, &p.memory.source, &p.bandwidth.source];
            let seen = p.seen.iter().map(|s| &s.source).chain(p.sustained.iter().map(|s| &s.source));
            assert!(sources.into_iter().chain(seen).all(|s| !s.trim().is_empty()), "{}", p.name);
        }
    }

    #[test]
    fn every_file_of_targets_is_embedded() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("targets");
        let mut files: Vec<String> = std::fs::read_dir(folder)
            .unwrap()
            .filter_map(|entry| Some(entry.unwrap().file_name().to_str()?.strip_suffix(".toml")?.to_owned()))
            .collect();
        let mut embedded = EMBEDDED.map(|(name, _)| name.to_owned()).to_vec();
        files.sort();
        embedded.sort();
        assert_eq!(files, embedded);
    }

    #[test]
    fn unknown_keys_and_names_are_refused() {
        let text = EMBEDDED[0].1.replace("measured = false", "measured = false\nwatts = 3");
        let error = Profile::parse("x", &text).unwrap_err().to_string();
        assert!(error.starts_with("targets/x.toml: ") && error.contains("watts"), "{error}");
        let error = Profile::named("rpi6").unwrap_err().to_string();
        assert!(error.contains("no target `rpi6`") && error.contains("rpi5"), "{error}");
    }
}
