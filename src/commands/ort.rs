//! Where ONNX Runtime is. The library is looked for when it is needed, and nowhere but in the places below, in this order;
//! what was named by the user is taken or refused, and nothing else is tried instead.
//!
//! 1. `--ort-lib FILE`
//! 2. `ORT_DYLIB_PATH`
//! 3. beside this program, and in `../lib`
//! 4. in the packages of `python3`, then of `python`: where `pip install onnxruntime` puts it, virtual environments included
//! 5. where the system's loader finds it

use crate::eval::subject::EngineName;
use crate::export::Runnable;
use crate::model::open::Place;
use edgeft_runtime::engine::Backend;
use std::path::PathBuf;

/// Flags of ONNX Runtime.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct OrtArgs {
    /// ONNX Runtime's library, for --engine ort [default: looked for in ORT_DYLIB_PATH, beside edgeft, in Python's packages]
    #[arg(long, value_name = "FILE")]
    pub ort_lib: Option<PathBuf>,
}

impl OrtArgs {
    /// Loads the library when one of the models, each with the engine that was asked for, needs it.
    ///
    /// # Errors
    /// A model that is no ONNX folder, which is told before a library is missed; as [`OrtArgs::load`].
    pub fn load_for(&self, models: &[(&str, Option<EngineName>)]) -> anyhow::Result<()> {
        let mut needed = false;
        for (model, engine) in models {
            let by_kind = engine.is_none() && matches!(Place::of(model), Ok(Place::Onnx(_)));
            if by_kind || *engine == Some(EngineName::Ort) {
                Runnable::open(model, Some(Backend::Ort))?;
                needed = true;
            }
        }
        if needed { self.load() } else { Ok(()) }
    }

    /// Finds and loads the library.
    ///
    /// # Errors
    /// What was tried, and the command that installs it.
    #[cfg(feature = "ort")]
    pub fn load(&self) -> anyhow::Result<()> {
        search::load(self.ort_lib.as_deref())
    }

    /// A build without the engine loads nothing; the engine says so when it is asked for.
    ///
    /// # Errors
    /// None.
    #[cfg(not(feature = "ort"))]
    pub fn load(&self) -> anyhow::Result<()> {
        Ok(())
    }
}

#[cfg(feature = "ort")]
mod search {
    use crate::error::BadInput;
    use edgeft_runtime::engine::ort::library::{INSTALL, load as load_library, loaded};
    use std::env::consts::{DLL_PREFIX, DLL_SUFFIX};
    use std::path::{Path, PathBuf};
    use std::process::{Command, Stdio};

    /// Asks Python where a package is, without importing it. The current folder is left out: code that lies there is nobody's
    /// choice.
    const ASK: &str = "import sys; sys.path = [p for p in sys.path if p]; import importlib.util as u; \
        s = u.find_spec('onnxruntime'); print(s.origin if s and s.origin else '')";

    pub fn load(named: Option<&Path>) -> anyhow::Result<()> {
        if loaded().is_ok() {
            return Ok(());
        }
        let variable = std::env::var_os("ORT_DYLIB_PATH").filter(|v| !v.is_empty()).map(PathBuf::from);
        for (by, path) in [("--ort-lib", named), ("ORT_DYLIB_PATH", variable.as_deref())] {
            if let Some(path) = path {
                load_library(&std::path::absolute(path)?).map_err(|e| BadInput(format!("{by}: {e}")))?;
                return Ok(());
            }
        }
        let mut tried = Vec::new();
        for place in PLACES {
            let (name, libraries) = place();
            if libraries.is_empty() {
                tried.push(format!("{name}: not there"));
            }
            for library in libraries {
                match load_library(&library) {
                    Ok(_) => return Ok(()),
                    Err(e) => tried.push(format!("{name}: {e}")),
                }
            }
        }
        Err(BadInput(format!(
            "engine ort: ONNX Runtime is not on this machine. Install it with\n  {INSTALL}\nor name its library by --ort-lib \
             or ORT_DYLIB_PATH. Looked for it in\n  {}",
            tried.join("\n  ")
        ))
        .into())
    }

    /// A place's name, and the libraries in it.
    type Found = (String, Vec<PathBuf>);

    const PLACES: [fn() -> Found; 4] = [beside, || in_python("python3"), || in_python("python"), by_the_loader];

    fn beside() -> Found {
        let exe = std::env::current_exe().ok();
        let dir = exe.as_deref().and_then(Path::parent);
        let libraries = dir.map_or(Vec::new(), |dir| [libraries_in(dir), libraries_in(&dir.join("../lib"))].concat());
        let name = dir.map_or("this program".into(), |dir| dir.display().to_string());
        (format!("{name} and its ../lib"), libraries)
    }

    fn in_python(python: &str) -> Found {
        let output = Command::new(python).args(["-c", ASK]).stdin(Stdio::null()).stderr(Stdio::null()).output();
        let origin = output.ok().and_then(|o| String::from_utf8(o.stdout).ok()).unwrap_or_default();
        let package = Path::new(origin.trim()).parent().filter(|p| p.is_absolute());
        (format!("packages of {python}"), package.map_or(Vec::new(), |p| libraries_in(&p.join("capi"))))
    }

    fn by_the_loader() -> Found {
        let name = format!("{DLL_PREFIX}onnxruntime{DLL_SUFFIX}");
        let versioned = PathBuf::from(format!("{name}.1"));
        ("the system's libraries".into(), vec![PathBuf::from(name), versioned])
    }

    /// ONNX Runtime in a folder, whatever version its name carries; not its helpers (`libonnxruntime_providers_shared.so`).
    fn libraries_in(dir: &Path) -> Vec<PathBuf> {
        let begins = format!("{DLL_PREFIX}onnxruntime.");
        let named = |path: &PathBuf| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.starts_with(&begins) && name.contains(DLL_SUFFIX)
        };
        let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
        let mut libraries: Vec<PathBuf> = entries.map(|e| e.path()).filter(named).collect();
        libraries.sort();
        libraries
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[cfg(target_os = "linux")]
        #[test]
        fn a_library_is_known_by_its_name_and_a_helper_is_none() {
            let dir = tempfile::tempdir().unwrap();
            for name in
                ["libonnxruntime.so.1.32.0", "libonnxruntime_providers_shared.so", "libonnxruntime.txt", "other.so"]
            {
                std::fs::write(dir.path().join(name), "").unwrap();
            }
            assert_eq!(libraries_in(dir.path()), [dir.path().join("libonnxruntime.so.1.32.0")]);
            assert!(libraries_in(&dir.path().join("gone")).is_empty());
        }
    }
}
