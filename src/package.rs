//! Model + profile + the device's binary -> a bundle: a folder that serves by itself, with a manifest of hashes.
//!
//! - [`runner`]: an `edgeft-run` on disk -> what machine it is for, what it needs there, whether it serves
//! - [`request`]: a first request that fits a model
//! - `targets/bundle/`: the templates that are filled here; `edgeft_runtime::format::bundle` reads what is written

pub mod request;
pub mod runner;

use crate::error::BadInput;
use crate::export;
use crate::model::open::{Opened, Place};
use crate::profile::{Footprint, Position, Prediction, Profile};
use anyhow::Context;
use edgeft_quantize::{Mix, PlanOptions};
use edgeft_runtime::format::bundle::{FORMAT, MANIFEST, VERSION, sha256};
use edgeft_runtime::model::{Model, Task};
use runner::Runner;
use serde_json::{Value, json};
use std::path::Path;

/// Name of the model's file in a bundle.
const MODEL: &str = "model.gguf";
/// Name of the program.
const RUNNER: &str = "edgeft-run";
const RUN_SH: &str = include_str!("../targets/bundle/run.sh");
const SERVICE: &str = include_str!("../targets/bundle/edgeft.service");
const DOCKERFILE: &str = include_str!("../targets/bundle/Dockerfile");
const KUBERNETES: &str = include_str!("../targets/bundle/kubernetes.yaml");
const README: &str = include_str!("../targets/bundle/README.md");
const README_SERVICES: &str = include_str!("../targets/bundle/README.services.md");

/// What is packaged, for what.
pub struct Order<'a> {
    /// MODEL, as it was named.
    pub model: &'a str,
    /// The device.
    pub profile: &'a Profile,
    /// Type of the weights of a model that is no GGUF yet; that of the profile otherwise.
    pub mix: Option<Mix>,
    /// Name for clients.
    pub name: &'a str,
    /// Tokens of context; the model's own, at most 4096, otherwise.
    pub ctx: Option<usize>,
}

/// A finished bundle.
pub struct Bundle {
    /// What `manifest.json` says.
    pub manifest: Value,
    /// What the profile predicts.
    pub prediction: Prediction,
}

impl Order<'_> {
    /// Type that a model gets which is no GGUF.
    fn mix(&self) -> anyhow::Result<Mix> {
        self.mix.map_or_else(|| self.profile.mix(), Ok)
    }

    /// What can be refused before anything is written.
    ///
    /// # Errors
    /// [`BadInput`] on a target without an operating system, a GGUF file with a type, a context beyond the model's, a plan
    /// beyond the device's memory.
    pub fn check(&self) -> anyhow::Result<Prediction> {
        if self.profile.arch() == "wasm32" {
            crate::bad_input!(
                "{}: a page runs no service, so there is no bundle for it; targets with one: {}",
                self.profile.name,
                Profile::all()?
                    .into_iter()
                    .filter(|p| p.arch() != "wasm32")
                    .map(|p| p.name)
                    .collect::<Vec<_>>()
                    .join(", ")
            );
        }
        if matches!(Place::of(self.model)?, Place::Gguf(_)) && self.mix.is_some() {
            crate::bad_input!(
                "--type: {} is a GGUF file and goes into the bundle as it is; give the folder or RUN that it was made from",
                self.model
            );
        }
        self.predict(&Footprint::of(self.model, self.mix()?)?)
    }

    fn predict(&self, footprint: &Footprint) -> anyhow::Result<Prediction> {
        if let Some(ctx) = self.ctx.filter(|ctx| *ctx > footprint.n_ctx) {
            crate::bad_input!("--ctx {ctx}: {} has {} positions", self.model, footprint.n_ctx);
        }
        let prediction = self.profile.predict(footprint, Position::usual(footprint, self.ctx));
        if !prediction.fits() {
            crate::bad_input!(
                "{} does not fit {}: it takes {:.0} MiB (predicted, with {} tokens of context) and the device has {:.0}; lower \
                --ctx, or choose a smaller --type (q4_0), or a larger device",
                self.model,
                self.profile.name,
                mib(prediction.memory.total()),
                prediction.memory.ctx,
                self.profile.memory.mib
            );
        }
        Ok(prediction)
    }

    /// Writes the bundle, with `runner` as its program, into an empty folder; `progress` hears bytes of the model, done and in all.
    ///
    /// # Errors
    /// As [`Order::check`], and what reading and writing give.
    pub fn write(&self, folder: &Path, runner: &Runner, progress: &mut dyn FnMut(u64, u64)) -> anyhow::Result<Bundle> {
        self.check()?;
        let place = folder.join(MODEL);
        match Place::of(self.model)? {
            Place::Gguf(file) => copy(&file, &place)?,
            _ => {
                let opened = Opened::open(self.model, 0)?;
                export::to_file(&opened, self.mix()?, &PlanOptions::default(), &place, false, progress)?;
            }
        }
        let model = Model::open(&place)?;
        let bytes = std::fs::metadata(&place)?.len();
        let prediction =
            Prediction { model: self.name.to_owned(), ..self.predict(&Footprint::of_model(&model, bytes)?)? };
        copy(&runner.path, &folder.join(RUNNER))?;
        executable(&folder.join(RUNNER))?;

        let mut files = vec![MODEL.to_owned(), RUNNER.to_owned()];
        let values = self.values(&model, bytes, runner, &prediction);
        let mut put = |name: &str, template: &str| -> anyhow::Result<()> {
            let place = folder.join(name);
            std::fs::write(&place, fill(template, &values)?)
                .with_context(|| format!("cannot write {}", place.display()))?;
            files.push(name.to_owned());
            Ok(())
        };
        put("run.sh", RUN_SH)?;
        put("README.md", README)?;
        if self.has_services() {
            put(&format!("edgeft-{}.service", slug(self.name)), SERVICE)?;
            put("Dockerfile", DOCKERFILE)?;
            put("kubernetes.yaml", KUBERNETES)?;
        }
        executable(&folder.join("run.sh"))?;

        let manifest = self.manifest(folder, &files, &model, runner, &prediction)?;
        let text = serde_json::to_string_pretty(&manifest)? + "\n";
        std::fs::write(folder.join(MANIFEST), text).with_context(|| format!("cannot write {MANIFEST}"))?;
        for name in files.iter().map(String::as_str).chain([MANIFEST]) {
            let flushed = std::fs::File::open(folder.join(name)).and_then(|file| file.sync_all());
            flushed.with_context(|| format!("cannot flush {name}"))?;
        }
        Ok(Bundle { manifest, prediction })
    }

    /// A phone has neither systemd nor containers.
    fn has_services(&self) -> bool {
        self.profile.triple.contains("linux") && !self.profile.triple.contains("android")
    }

    fn manifest(
        &self,
        folder: &Path,
        files: &[String],
        model: &Model,
        runner: &Runner,
        prediction: &Prediction,
    ) -> anyhow::Result<Value> {
        let entry = |name: &String| -> anyhow::Result<Value> {
            let place = folder.join(name);
            let told = || format!("cannot read {}", place.display());
            let bytes = std::fs::metadata(&place).with_context(told)?.len();
            Ok(json!({"path": name, "bytes": bytes, "sha256": sha256(&place).with_context(told)?}))
        };
        let task = match model.task() {
            Task::Generate => "generate",
            Task::Classify => "classify",
            Task::Answer => "answer",
            Task::Embed => "embed",
        };
        Ok(json!({
            "format": FORMAT,
            "version": VERSION,
            "edgeft": env!("CARGO_PKG_VERSION"),
            "model": {"name": self.name, "file": MODEL, "type": prediction.ty, "task": task, "ctx": prediction.memory.ctx},
            "target": {"name": self.profile.name, "title": self.profile.title, "triple": self.profile.triple},
            "runner": {"file": RUNNER, "linked": runner.linked.to_string()},
            "predicted": prediction.json(),
            "files": files.iter().map(entry).collect::<anyhow::Result<Vec<_>>>()?,
        }))
    }

    /// What stands in the templates' braces.
    fn values(
        &self,
        model: &Model,
        bytes: u64,
        runner: &Runner,
        prediction: &Prediction,
    ) -> Vec<(&'static str, String)> {
        let slug = slug(self.name);
        let memory_mib = mib(prediction.memory.total()).ceil() as u64;
        let all = [MODEL, RUNNER, MANIFEST, "run.sh", "README.md", "Dockerfile", "kubernetes.yaml"];
        let files = format!("{} edgeft-{slug}.service", all.join(" "));
        let arch = match self.profile.arch() {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        let mut values = vec![
            ("name", self.name.to_owned()),
            ("slug", slug),
            ("title", self.profile.title.clone()),
            ("target", self.profile.name.clone()),
            ("triple", self.profile.triple.clone()),
            ("arch", arch.to_owned()),
            ("cores", self.profile.cpu.cores.to_string()),
            ("type", prediction.ty.clone()),
            ("model_mb", format!("{:.1}", bytes as f64 / 1e6)),
            ("ctx", prediction.memory.ctx.to_string()),
            ("memory_mib", memory_mib.to_string()),
            // A quarter more, and room for a few dozen connections.
            ("limit_mib", (memory_mib + memory_mib / 4 + 64).to_string()),
            ("edgeft", env!("CARGO_PKG_VERSION").to_owned()),
            ("linked", runner.linked.to_string()),
            ("base", runner.linked.base_image().to_owned()),
            ("files", files),
            ("request", request::first(model, "http://127.0.0.1:8080", None)),
            ("prediction", prediction.to_string()),
        ];
        let more = if self.has_services() { README_SERVICES } else { "" };
        let more =
            values.iter().fold(more.to_owned(), |text, (key, value)| text.replace(&format!("{{{{{key}}}}}"), value));
        values.push(("more", more));
        values
    }
}

/// `{{key}}` -> value, everywhere.
fn fill(template: &str, values: &[(&'static str, String)]) -> anyhow::Result<String> {
    let mut out = String::with_capacity(template.len());
    let mut rest = template;
    while let Some(at) = rest.find("{{") {
        let (before, after) = rest.split_at(at);
        let Some((key, tail)) = after[2..].split_once("}}") else { break };
        let value = values.iter().find(|(k, _)| *k == key).with_context(|| format!("a template asks for `{key}`"))?;
        out.push_str(before);
        out.push_str(&value.1);
        rest = tail;
    }
    out.push_str(rest);
    Ok(out)
}

/// A name as DNS, systemd and Docker take it: lower-case letters, digits and hyphens, a letter or digit at both ends, at most
/// 40 of them.
pub fn slug(name: &str) -> String {
    let plain: String = name.to_lowercase().chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
    let words: Vec<&str> = plain.split('-').filter(|w| !w.is_empty()).collect();
    let joined: String = words.join("-").chars().take(40).collect();
    match joined.trim_end_matches('-') {
        "" => "model".to_owned(),
        slug => slug.to_owned(),
    }
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / 1048576.0
}

fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    std::fs::copy(from, to).with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))?;
    mode(to, 0o644)
}

fn executable(path: &Path) -> anyhow::Result<()> {
    mode(path, 0o755)
}

#[cfg(unix)]
fn mode(path: &Path, mode: u32) -> anyhow::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
        .with_context(|| format!("cannot set the mode of {}", path.display()))
}

#[cfg(not(unix))]
fn mode(_: &Path, _: u32) -> anyhow::Result<()> {
    Ok(())
}

/// A name for clients: no line breaks or braces, which would forge a template's lines.
///
/// # Errors
/// [`BadInput`] on anything but letters, digits and common signs.
pub fn checked_name(name: &str) -> anyhow::Result<&str> {
    let fine = |c: char| c.is_alphanumeric() || "-_.+@ ".contains(c);
    if name.trim().is_empty() || name.len() > 100 || !name.chars().all(fine) {
        let message = format!("--name `{}`: letters, digits and -_.+@ only, at most 100 bytes", name.escape_debug());
        return Err(BadInput(message).into());
    }
    Ok(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slug_is_a_dns_label_whatever_the_name() {
        for (name, want) in [
            ("Stories_260K.q8_0", "stories-260k-q8-0"),
            ("--x--", "x"),
            ("模型", "model"),
            ("", "model"),
            (&"ab-".repeat(40), "ab-ab-ab-ab-ab-ab-ab-ab-ab-ab-ab-ab-ab-a"),
        ] {
            assert_eq!(slug(name), want, "{name}");
        }
    }

    #[test]
    fn names_cannot_forge_lines_of_a_template() {
        for bad in ["", "a\nb", "{{slug}}", "a`b", "$(reboot)", &"a".repeat(101)] {
            assert!(checked_name(bad).is_err(), "{bad}");
        }
        assert_eq!(checked_name("Tiny v1.5").unwrap(), "Tiny v1.5");
    }

    #[test]
    fn every_brace_of_a_template_is_known() {
        assert_eq!(fill("a {{x}} {{x}}b", &[("x", "1 {{y}}".into())]).unwrap(), "a 1 {{y}} 1 {{y}}b");
        assert!(fill("{{z}}", &[]).unwrap_err().to_string().contains("`z`"));
    }
}
