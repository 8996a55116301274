//! Energy of the CPU's packages, by Linux's powercap (Intel and AMD RAPL). Most systems let only root read it; what cannot be
//! read is not guessed. The counters are the package's: whatever else ran on it is in them.

use std::fs::read_to_string;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Where Linux keeps the counters.
pub const POWERCAP: &str = "/sys/class/powercap";

/// What was taken in a stretch of time.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Energy {
    /// All packages together.
    pub joules: f64,
    /// Length of the stretch.
    pub seconds: f64,
}

/// The counters at the beginning of a stretch.
pub struct Meter {
    /// Folder and microjoules of each package.
    packages: Vec<(PathBuf, u64)>,
    begun: Instant,
}

impl Meter {
    /// Reads every package's counter under `root`; `None` when there is none, or when it may not be read.
    pub fn start(root: &Path) -> Option<Self> {
        let entries = std::fs::read_dir(root).ok()?.filter_map(|e| Some(e.ok()?.path()));
        // Parts of a package (cores, memory) have names such as intel-rapl:0:1, and are counted in it.
        let folders = entries.filter(|p| read_to_string(p.join("name")).is_ok_and(|name| name.starts_with("package")));
        let packages: Vec<_> = folders.map(|p| Some((p.clone(), number(&p, "energy_uj")?))).collect::<Option<_>>()?;
        (!packages.is_empty()).then(|| Self { packages, begun: Instant::now() })
    }

    /// What was taken since. A counter that went over its end is taken to have done so once.
    pub fn stop(self) -> Option<Energy> {
        let seconds = self.begun.elapsed().as_secs_f64();
        let mut microjoules = 0;
        for (folder, before) in &self.packages {
            let now = number(folder, "energy_uj")?;
            microjoules += match now.checked_sub(*before) {
                Some(taken) => taken,
                None => (now + number(folder, "max_energy_range_uj")?).checked_sub(*before)?,
            };
        }
        Some(Energy { joules: microjoules as f64 / 1e6, seconds })
    }
}

fn number(folder: &Path, file: &str) -> Option<u64> {
    read_to_string(folder.join(file)).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(root: &Path, folder: &str, name: &str, microjoules: &str) {
        let folder = root.join(folder);
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("name"), format!("{name}\n")).unwrap();
        std::fs::write(folder.join("energy_uj"), microjoules).unwrap();
        std::fs::write(folder.join("max_energy_range_uj"), "1000000000\n").unwrap();
    }

    #[test]
    fn packages_are_added_and_their_parts_are_not() {
        let root = tempfile::tempdir().unwrap();
        package(root.path(), "intel-rapl:0", "package-0", "5000000\n");
        package(root.path(), "intel-rapl:0:0", "core", "1\n");
        package(root.path(), "intel-rapl:1", "package-1", "999000000\n");
        let meter = Meter::start(root.path()).unwrap();
        package(root.path(), "intel-rapl:0", "package-0", "7500000\n");
        package(root.path(), "intel-rapl:0:0", "core", "900000000\n");
        package(root.path(), "intel-rapl:1", "package-1", "1000000\n"); // over its end: 2 J
        let energy = meter.stop().unwrap();
        assert_eq!(energy.joules, 4.5);
        assert!(energy.seconds >= 0.0);
    }

    #[test]
    fn what_is_not_there_or_not_readable_is_not_guessed() {
        let root = tempfile::tempdir().unwrap();
        assert!(Meter::start(&root.path().join("none")).is_none() && Meter::start(root.path()).is_none());
        package(root.path(), "intel-rapl:0", "package-0", "5\n");
        package(root.path(), "intel-rapl:1", "package-1", "not for you");
        assert!(Meter::start(root.path()).is_none());
    }
}
