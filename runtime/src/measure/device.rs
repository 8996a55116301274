//! What this machine is: CPU, cores, instruction set, memory, and what the process took of it. Unknown is `None`: nothing is
//! guessed where the system does not tell.

use super::cgroup::Limits;
use crate::kernels::Kernels;

/// The machine that a number was measured on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// Name of the CPU, or its architecture where the system has no name for it.
    pub cpu: String,
    /// Logical cores that the process may use.
    pub cores: usize,
    /// Level of the kernels in use, as [`crate::kernels::Level::name`] has it.
    pub isa: &'static str,
    /// Memory of the machine.
    pub memory_mib: Option<u64>,
    /// What computed, where it was not the CPU by our own kernels: see [`crate::engine::Engine::runs_on`].
    pub runs_on: Option<String>,
}

impl Device {
    /// Asks the system.
    pub fn detect(kernels: &Kernels) -> Self {
        Self {
            cpu: cpu_name().unwrap_or_else(|| std::env::consts::ARCH.to_owned()),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            isa: kernels.level().name(),
            memory_mib: meminfo("MemTotal").map(|kib| kib / 1024),
            runs_on: None,
        }
    }
}

impl std::fmt::Display for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let plural = if self.cores == 1 { "" } else { "s" };
        write!(f, "{}, {} core{plural}, {}", self.cpu, self.cores, self.isa)?;
        if let Some(runs_on) = &self.runs_on { write!(f, "; runs on {runs_on}") } else { Ok(()) }
    }
}

/// Peak resident set of this process in MiB, to one decimal.
pub fn peak_mib() -> Option<f64> {
    let kib = field(&std::fs::read_to_string("/proc/self/status").ok()?, "VmHWM")?;
    Some((kib as f64 / 102.4).round() / 10.0)
}

/// Memory that is free or can be freed at once, in bytes.
pub fn available_bytes() -> Option<u64> {
    meminfo("MemAvailable").map(|kib| kib * 1024)
}

/// Memory of the machine, or of the group that this process is in when that has less, in bytes.
pub fn usable_bytes() -> Option<u64> {
    let all = meminfo("MemTotal").map(|kib| kib * 1024);
    all.into_iter().chain(Limits::of_this_process().memory).min()
}

/// Size of the last level of cache, in bytes.
pub fn last_cache_bytes() -> Option<u64> {
    let size = |index: usize| {
        let text = std::fs::read_to_string(format!("/sys/devices/system/cpu/cpu0/cache/index{index}/size")).ok()?;
        text.trim().strip_suffix('K')?.parse::<u64>().ok().map(|k| k * 1024)
    };
    (0..8).map_while(size).max()
}

fn meminfo(key: &str) -> Option<u64> {
    field(&std::fs::read_to_string("/proc/meminfo").ok()?, key)
}

/// Number after `key:` in a file of the kernel's.
fn field(text: &str, key: &str) -> Option<u64> {
    let rest = text.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix(':'))?;
    rest.split_whitespace().next()?.parse().ok()
}

fn cpu_name() -> Option<String> {
    cpu_name_in(&std::fs::read_to_string("/proc/cpuinfo").ok()?).or_else(|| {
        // Arm boards name themselves in the device tree, whose strings end with a zero.
        let model = std::fs::read_to_string("/proc/device-tree/model").ok()?;
        Some(model.trim_end_matches('\0').to_owned())
    })
}

fn cpu_name_in(cpuinfo: &str) -> Option<String> {
    let value = |line: &str| line.split_once(':').map(|(_, v)| v.trim().to_owned());
    cpuinfo.lines().find(|l| l.starts_with("model name")).and_then(value).filter(|v| !v.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_by_their_whole_name() {
        let text = "MemTotalHuge:  1 kB\nMemTotal:       24105 kB\n";
        assert_eq!(field(text, "MemTotal"), Some(24105));
        assert_eq!(field(text, "Mem"), None);
        assert_eq!(field("VmHWM: many kB", "VmHWM"), None);
    }

    #[test]
    fn a_cpu_without_a_name_stays_without() {
        assert_eq!(cpu_name_in("model name\t: Some CPU @ 2 GHz\n").as_deref(), Some("Some CPU @ 2 GHz"));
        assert_eq!(cpu_name_in("BogoMIPS : 108.00\nFeatures : asimd\n"), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn the_peak_holds_what_was_touched() {
        let touched = vec![1u8; 32 << 20];
        std::hint::black_box(&touched);
        assert!(peak_mib().unwrap() > 32.0);
    }
}
