//! The machine at hand as a profile: what it is, and what it reaches right now, beside whatever else it does.

use super::{Bandwidth, Cpu, Footprint, Handshake, Kernel, Memory, Position, Profile, Weights};
use edgeft_runtime::kernels::Kernels;
use edgeft_runtime::measure::bandwidth::{kernel_gb_per_s, read_gb_per_s};
use edgeft_runtime::measure::device::{self, Device};
use edgeft_runtime::measure::report::buffer;
use edgeft_runtime::measure::stats::median;
use edgeft_runtime::threads::Pool;
use std::time::{Duration, Instant};

/// Name of this profile.
pub const NAME: &str = "this";
/// Read when there is no model whose bytes could be read: past every cache.
const NO_MODEL_BYTES: u64 = 1 << 28;
/// Work of one thread between two handshakes, about that of a small matrix, and how often it is done.
const PIECE: Duration = Duration::from_micros(20);
const PIECES: u32 = 2000;
/// Types whose share of the weights is less are not measured.
const LEAST_SHARE: f64 = 0.02;

/// Measures this machine for a model, for about a second; without one, its memory alone.
///
/// # Errors
/// An instruction set in `EDGEFT_ISA` that this CPU lacks; threads that cannot be started.
pub fn profile(model: Option<(&Footprint, Position)>, threads: usize) -> anyhow::Result<Profile> {
    let device = Device::detect(&Kernels::detect()?);
    let bytes = model.map_or(NO_MODEL_BYTES, |(m, at)| m.weights_read() + at.batch as u64 * m.cache_read(at.depth));
    let buffer = buffer(bytes);
    let now = |what: &str| format!("measured just now: {what}");
    let gb_per_s = read_gb_per_s(buffer, threads);
    let mut kernels = Vec::new();
    if let Some((footprint, _)) = model {
        for (ty, share) in &footprint.read {
            if *share as f64 >= LEAST_SHARE * footprint.weights_read() as f64 {
                kernels.push(Kernel {
                    ty: ty.name().to_owned(),
                    gb_per_s: kernel_gb_per_s(*ty, footprint.hidden, buffer, threads)?,
                    source: now(&format!("{threads} threads, each on a matrix of its own")),
                    measured: true,
                });
            }
        }
    }
    // What fed a kernel is no slower than the kernel: its wide loads may outrun the plain read of what a cache holds.
    let gb_per_s = kernels.iter().map(|k| k.gb_per_s).fold(gb_per_s, f64::max);
    let memory = device::usable_bytes();
    let known = |measured: Option<u64>| measured.map_or("the system does not say", |_| "the system says so").to_owned();
    Ok(Profile {
        name: NAME.into(),
        title: "the machine at hand".into(),
        aliases: Vec::new(),
        triple: triple(),
        features: vec![device.isa.to_owned()],
        model: Weights { ty: "q8_0".into(), why: "nearly the answers of f32".into() },
        cpu: Cpu {
            name: device.cpu,
            cores: threads,
            source: "the threads that this process may use".into(),
            measured: true,
        },
        memory: Memory {
            mib: memory.unwrap_or(0) as f64 / 1048576.0,
            source: known(memory),
            measured: memory.is_some(),
        },
        cache: device::last_cache_bytes().map(|bytes| Memory {
            mib: bytes as f64 / 1048576.0,
            source: known(Some(bytes)),
            measured: true,
        }),
        bandwidth: Bandwidth {
            gb_per_s,
            source: now(&format!("{:.1} MB read by {threads} threads, plainly or by a kernel", buffer as f64 / 1e6)),
            measured: true,
        },
        sustained: None,
        kernels,
        handshake: Some(Handshake {
            us: handshake_us(threads)?,
            source: now(&format!("{threads} threads set to work of {} us each, and waited for", PIECE.as_micros())),
            measured: true,
        }),
        seen: Vec::new(),
    })
}

/// Target triple of this build, as Rust would name it.
pub fn triple() -> String {
    let (arch, os) = (std::env::consts::ARCH, std::env::consts::OS);
    let libc = if cfg!(target_env = "musl") { "musl" } else { "gnu" };
    match os {
        "linux" => format!("{arch}-unknown-linux-{libc}"),
        "macos" => format!("{arch}-apple-darwin"),
        "windows" => format!("{arch}-pc-windows-msvc"),
        other => format!("{arch}-unknown-{other}"),
    }
}

/// How much longer than its own time an equal piece of work on every thread takes, in microseconds: to wake them, and to wait
/// for the last. The median of many, as a step's median leaves out who else had the cores for a while.
fn handshake_us(threads: usize) -> anyhow::Result<f64> {
    let pool = Pool::new(threads)?;
    let work = |_: usize| {
        let begun = Instant::now();
        while begun.elapsed() < PIECE {
            std::hint::spin_loop();
        }
    };
    let once = || {
        let begun = Instant::now();
        pool.run(threads, &work);
        begun.elapsed().saturating_sub(PIECE).as_secs_f64() * 1e6
    };
    let times: Vec<f64> = (0..PIECES).map(|_| once()).collect();
    Ok(median(&times).unwrap_or(0.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::open::Opened;
    use edgeft_quantize::Mix;

    #[test]
    fn this_machine_is_measured_and_says_so() {
        let model = Footprint::of_plan(&Opened::open("nano", 0).unwrap(), Mix::Q4_K_M).unwrap();
        let at = Position { ctx: 64, depth: 16, batch: 1 };
        let this = profile(Some((&model, at)), 1).unwrap();
        assert!(this.is_measured() && this.cpu.cores == 1);
        assert!(this.kernels.iter().any(|k| k.ty == "q4_k"), "{:?}", this.kernels);
        let prediction = this.predict(&model, at);
        let likely = prediction.likely.unwrap();
        assert!(likely.decode_tokens_per_s <= prediction.decode_tokens_per_s.unwrap());
        assert!(likely.kernel_gb_per_s.is_some() && likely.handshake_us.is_some());
        assert!(triple().matches('-').count() >= 2);
    }
}
