//! What Linux's control groups leave to this process: a container's memory and CPU time are less than the machine's.

use std::fs::read_to_string;
use std::path::{Path, PathBuf};

/// Limits of the group that a process is in, and of those above it.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Limits {
    /// Bytes of memory; `None` when there is no limit.
    pub memory: Option<u64>,
    /// CPUs' worth of time, 1.5 for instance; `None` when there is no limit.
    pub cpus: Option<f64>,
}

impl Limits {
    /// Of this process.
    pub fn of_this_process() -> Self {
        let groups = read_to_string("/proc/self/cgroup").unwrap_or_default();
        Self::read(Path::new("/sys/fs/cgroup"), &groups)
    }

    /// - `root`: where the groups are mounted
    /// - `groups`: a process's `/proc/PID/cgroup`: `0::/path` of version 2, `3:memory:/path` of version 1
    fn read(root: &Path, groups: &str) -> Self {
        let mut limits = Self::default();
        for line in groups.lines() {
            let mut parts = line.splitn(3, ':');
            let (Some(_), Some(controllers), Some(path)) = (parts.next(), parts.next(), parts.next()) else { continue };
            let (two, names) = (controllers.is_empty(), controllers.split(','));
            let mounted = if two { root.to_owned() } else { root.join(controllers) };
            for folder in upwards(&mounted, path) {
                if two {
                    limits.less_memory(number(&folder.join("memory.max")));
                    let text = read_to_string(folder.join("cpu.max")).unwrap_or_default();
                    let mut words = text.split_whitespace().map(|w| w.parse::<f64>().ok());
                    limits.less_cpus(words.next().flatten(), words.next().flatten());
                } else if names.clone().any(|n| n == "memory") {
                    // Version 1 says "no limit" by a number near the largest.
                    limits.less_memory(number(&folder.join("memory.limit_in_bytes")).filter(|n| *n < 1 << 60));
                } else if names.clone().any(|n| n == "cpu") {
                    let part = |file: &str| number(&folder.join(file)).map(|n| n as f64);
                    limits.less_cpus(part("cpu.cfs_quota_us"), part("cpu.cfs_period_us"));
                }
            }
        }
        limits
    }

    fn less_memory(&mut self, bytes: Option<u64>) {
        self.memory = self.memory.into_iter().chain(bytes).min();
    }

    fn less_cpus(&mut self, quota: Option<f64>, period: Option<f64>) {
        let cpus = quota.zip(period).filter(|(_, period)| *period > 0.0).map(|(quota, period)| quota / period);
        self.cpus = self.cpus.into_iter().chain(cpus).reduce(f64::min);
    }
}

/// The folder of a group and of each above it. Inside a container the path may be the host's, and only the last exists.
fn upwards(mounted: &Path, path: &str) -> Vec<PathBuf> {
    let own = Path::new(path.trim_start_matches('/'));
    own.ancestors().map(|group| mounted.join(group)).collect()
}

/// "max" and -1, no limits, are no numbers here.
fn number(file: &Path) -> Option<u64> {
    read_to_string(file).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(root: &Path, file: &str, text: &str) {
        let path = root.join(file);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    #[test]
    fn the_tightest_group_on_the_way_up_counts() {
        let root = tempfile::tempdir().unwrap();
        write(root.path(), "memory.max", "4000\n");
        write(root.path(), "a/memory.max", "1000\n");
        write(root.path(), "a/b/memory.max", "max\n");
        write(root.path(), "a/b/cpu.max", "150000 100000\n");
        write(root.path(), "a/cpu.max", "max 100000\n");
        assert_eq!(Limits::read(root.path(), "0::/a/b\n"), Limits { memory: Some(1000), cpus: Some(1.5) });
        // The path of the host, seen from inside.
        assert_eq!(Limits::read(root.path(), "0::/x/y\n").memory, Some(4000));
    }

    #[test]
    fn version_1_keeps_a_folder_for_each_controller() {
        let root = tempfile::tempdir().unwrap();
        write(root.path(), "memory/c/memory.limit_in_bytes", "2000\n");
        write(root.path(), "memory/memory.limit_in_bytes", "9223372036854771712\n");
        write(root.path(), "cpu,cpuacct/c/cpu.cfs_quota_us", "50000\n");
        write(root.path(), "cpu,cpuacct/c/cpu.cfs_period_us", "100000\n");
        write(root.path(), "cpu,cpuacct/cpu.cfs_quota_us", "-1\n");
        let limits = Limits::read(root.path(), "4:cpu,cpuacct:/c\n3:memory:/c\n1:name=systemd:/c\n");
        assert_eq!(limits, Limits { memory: Some(2000), cpus: Some(0.5) });
    }

    #[test]
    fn without_groups_there_is_no_limit() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(Limits::read(root.path(), ""), Limits::default());
        assert_eq!(Limits::read(root.path(), "nonsense\n0::/\n"), Limits::default());
    }
}
