//! `targets/*.toml` -> [`Profile`], and what it predicts. A prediction is arithmetic on the profile's figures, and is called
//! so wherever it is shown; no figure was measured by edgeft unless it says `measured = true`.
//!
//! - [`footprint`]: what a model takes and reads, from a file or from a plan of one
//! - [`prediction`]: a profile and a footprint -> memory and tokens a second, with every term
//! - [`this`]: the machine at hand, measured when it is asked for

pub mod footprint;
pub mod prediction;
pub mod this;

pub use footprint::Footprint;
pub use prediction::{Position, Prediction};

use crate::error::BadInput;
use edgeft_quantize::Mix;
use serde::{Deserialize, Serialize};

macro_rules! embedded {
    ($($name:literal)*) => { [$(($name, include_str!(concat!("../targets/", $name, ".toml")))),*] };
}

/// Name and text of every profile, from small to large.
const EMBEDDED: [(&str, &str); 9] = embedded! {
    "raspberry-pi-zero-2w" "raspberry-pi-4" "raspberry-pi-5" "orange-pi-5" "jetson-orin-nano" "android-arm64" "x86-laptop"
    "x86-server" "browser-webgpu"
};

/// A device, or a class of devices.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    /// Name of the file, or `this`.
    #[serde(skip_deserializing)]
    pub name: String,
    /// What people call it.
    pub title: String,
    /// Other names that are understood.
    #[serde(default)]
    pub aliases: Vec<String>,
    /// Rust's target triple.
    pub triple: String,
    /// CPU features that a binary for it may use.
    pub features: Vec<String>,
    /// What `package` makes of a model that is not quantized yet.
    pub model: Weights,
    /// Its CPU.
    pub cpu: Cpu,
    /// Its memory.
    pub memory: Memory,
    /// Its last cache, where one is known.
    pub cache: Option<Memory>,
    /// Transfers a second times width of the memory bus; of `this`, what a plain read reaches.
    pub bandwidth: Bandwidth,
    /// What reads really reach, where somebody measured it.
    pub sustained: Option<Bandwidth>,
    /// What edgeft's kernels reach, by type of the weights, where edgeft measured it.
    #[serde(default)]
    pub kernels: Vec<Kernel>,
    /// What it costs to set all threads to work once, where edgeft measured it.
    pub handshake: Option<Handshake>,
    /// What others saw on it.
    #[serde(default)]
    pub seen: Vec<Seen>,
}

/// Type of the weights that suits a device.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Weights {
    /// As `--type` spells it.
    #[serde(rename = "type")]
    pub ty: String,
    /// The reason.
    pub why: String,
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
    /// Whether edgeft measured it there.
    pub measured: bool,
}

/// Memory, or a cache, of a device.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Memory {
    /// All of it, or of the part that this process may have.
    pub mib: f64,
    /// Where the figure is from.
    pub source: String,
    /// Whether edgeft measured it there.
    pub measured: bool,
}

/// Speed of memory.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bandwidth {
    /// In units of 1e9 bytes a second.
    pub gb_per_s: f64,
    /// Where the figure is from.
    pub source: String,
    /// Whether edgeft measured it there.
    pub measured: bool,
}

/// Speed of our kernels on weights of one type, all threads together.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kernel {
    /// ggml's name of the type.
    #[serde(rename = "type")]
    pub ty: String,
    /// Of weights, in units of 1e9 bytes a second.
    pub gb_per_s: f64,
    /// Where the figure is from.
    pub source: String,
    /// Whether edgeft measured it there.
    pub measured: bool,
}

/// Cost of setting all threads to work.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Handshake {
    /// Microseconds.
    pub us: f64,
    /// Where the figure is from.
    pub source: String,
    /// Whether edgeft measured it there.
    pub measured: bool,
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

    /// The profile of that name; `this` is measured elsewhere, see [`this::profile`].
    ///
    /// # Errors
    /// [`BadInput`] that lists the known names.
    pub fn named(name: &str) -> anyhow::Result<Self> {
        let all = Self::all()?;
        let names: Vec<String> = all.iter().map(|p| p.name.clone()).collect();
        match all.into_iter().find(|p| p.name == name || p.aliases.iter().any(|a| a == name)) {
            Some(profile) => Ok(profile),
            None => crate::bad_input!("no target `{name}`; known: {}, this", names.join(", ")),
        }
    }

    /// The mix of [`Profile::model`].
    ///
    /// # Errors
    /// A name that is no type; a test keeps that from being shipped.
    pub fn mix(&self) -> anyhow::Result<Mix> {
        Ok(self.model.ty.parse()?)
    }

    /// The CPU architecture: the first part of the triple.
    pub fn arch(&self) -> &str {
        self.triple.split('-').next().unwrap_or_default()
    }

    /// Whether edgeft measured any figure on it.
    pub fn is_measured(&self) -> bool {
        let optional = [self.cache.as_ref().map(|c| c.measured), self.sustained.as_ref().map(|s| s.measured)];
        let plain = [self.cpu.measured, self.memory.measured, self.bandwidth.measured];
        plain
            .into_iter()
            .chain(optional.into_iter().flatten())
            .chain(self.kernels.iter().map(|k| k.measured))
            .any(|m| m)
    }

    fn parse(name: &str, text: &str) -> anyhow::Result<Self> {
        let profile: Self = toml::from_str(text).map_err(|e| BadInput(format!("targets/{name}.toml: {e}")))?;
        Ok(Self { name: name.to_owned(), ..profile })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_profile_parses_and_its_figures_make_sense() {
        for p in Profile::all().unwrap() {
            assert!(p.cpu.cores > 0 && p.memory.mib >= 256.0 && !p.features.is_empty(), "{}", p.name);
            assert!(p.mix().is_ok() && !p.model.why.is_empty() && !p.arch().is_empty(), "{}", p.name);
            assert!(p.triple.matches('-').count() >= 2, "{}: {}", p.name, p.triple);
            let sustained = p.sustained.as_ref().map_or(0.0, |s| s.gb_per_s);
            assert!(sustained < p.bandwidth.gb_per_s && p.bandwidth.gb_per_s > 1.0, "{}", p.name);
            let sources = [&p.cpu.source, &p.memory.source, &p.bandwidth.source];
            let seen = p.seen.iter().map(|s| &s.source).chain(p.sustained.iter().map(|s| &s.source));
            let cache = p.cache.as_ref().map_or(0.0, |c| c.mib);
            assert!(cache * 8.0 < p.memory.mib, "{}", p.name);
            let seen = seen.chain(p.cache.iter().map(|c| &c.source));
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
        let text = EMBEDDED[0].1.replace("cores = ", "watts = 3\ncores = ");
        let error = Profile::parse("x", &text).unwrap_err().to_string();
        assert!(error.starts_with("targets/x.toml: ") && error.contains("watts"), "{error}");
        let error = Profile::named("rpi6").unwrap_err().to_string();
        assert!(error.contains("no target `rpi6`") && error.contains("raspberry-pi-5"), "{error}");
    }

    #[test]
    fn a_target_answers_to_its_other_names_and_no_name_means_two() {
        assert_eq!(Profile::named("rpi5").unwrap().name, "raspberry-pi-5");
        let all = Profile::all().unwrap();
        let mut names: Vec<&String> = all.iter().flat_map(|p| p.aliases.iter().chain([&p.name])).collect();
        names.sort();
        let before = names.len();
        names.dedup();
        assert_eq!(names.len(), before);
    }
}
