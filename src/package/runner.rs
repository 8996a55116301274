//! An `edgeft-run` on disk: for what machine, what it needs there, whether it serves. It is read, never started: it may be made
//! for another machine.

use crate::error::BadInput;
use crate::profile::{Profile, this};
use edgeft_runtime::format::bundle::VERSION;
use std::path::{Path, PathBuf};

/// Where the dynamic linker of a program is named.
const PT_INTERP: u32 = 3;

/// What a program needs beside its own file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Linked {
    /// Nothing.
    Static,
    /// glibc, of this version at least.
    Glibc(String),
    /// Another dynamic linker.
    By(String),
    /// It is no ELF file, so this is not known.
    Unknown,
}

impl Linked {
    /// A container image that has it.
    pub fn base_image(&self) -> &'static str {
        match self {
            Self::Static => "scratch",
            _ => "debian:trixie-slim",
        }
    }
}

impl std::fmt::Display for Linked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Static => f.write_str("static: needs nothing else"),
            Self::Glibc(version) => write!(f, "needs glibc {version} or later"),
            Self::By(linker) => write!(f, "needs {linker}"),
            Self::Unknown => f.write_str("for this system"),
        }
    }
}

/// A program that serves bundles.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Runner {
    /// Where it is.
    pub path: PathBuf,
    /// What it needs.
    pub linked: Linked,
}

impl Runner {
    /// The runner for a target: `given`, or the `edgeft-run` beside this program when both are for the same machine.
    ///
    /// # Errors
    /// [`BadInput`], with the command that builds one, when there is none; when it is for another machine or does not serve.
    pub fn find(profile: &Profile, given: Option<&Path>, beside: &Path) -> anyhow::Result<Self> {
        let build = build_command(profile);
        let path = match given {
            Some(path) => path.to_owned(),
            None if !for_same_machine(profile) => crate::bad_input!(
                "{} is {}, and the edgeft-run beside this program is for {}; build one and give it:\n  {build}\n  \
                edgeft package ... --runner target/{}/release/edgeft-run",
                profile.name,
                profile.triple,
                this::triple(),
                profile.triple
            ),
            None => beside.join(format!("edgeft-run{}", std::env::consts::EXE_SUFFIX)),
        };
        if !path.is_file() {
            let way_out = if given.is_some() {
                "no such file; build one:"
            } else {
                "is not there; build it, or give --runner FILE:"
            };
            crate::bad_input!("{} {way_out}\n  {build}", path.display());
        }
        let bytes = std::fs::read(&path).map_err(|e| BadInput(format!("cannot read {}: {e}", path.display())))?;
        let serves = format!("edgeft-run serves bundles of format {VERSION}");
        if !bytes.windows(serves.len()).any(|w| w == serves.as_bytes()) {
            crate::bad_input!(
                "{} is no edgeft-run that serves bundles of format {VERSION}; build one:\n  {build}",
                path.display()
            );
        }
        let linked = linked(&bytes, profile).map_err(|e| BadInput(format!("{}: {e}", path.display())))?;
        Ok(Self { path, linked })
    }
}

fn for_same_machine(profile: &Profile) -> bool {
    let system = |triple: &str| (triple.contains("linux"), triple.contains("android"));
    profile.arch() == std::env::consts::ARCH && system(&profile.triple) == system(&this::triple())
}

/// The command that makes a runner for a target.
pub fn build_command(profile: &Profile) -> String {
    let target = if for_same_machine(profile) { String::new() } else { format!(" --target {}", profile.triple) };
    format!("cargo build --release -p edgeft-runtime --features server{target}")
}

/// What an ELF file needs, once it is seen to be for the target's machine.
fn linked(bytes: &[u8], profile: &Profile) -> Result<Linked, String> {
    if !profile.triple.contains("linux") {
        return Ok(Linked::Unknown);
    }
    let cut = || "it is cut short".to_owned();
    // ELF-64, little endian (System V ABI, chapters 4 and 5): e_machine at 18, e_phoff at 32, e_phentsize at 54.
    if bytes.get(..6) != Some(b"\x7fELF\x02\x01") {
        return Err(format!("it is no 64-bit ELF file, and {} runs nothing else", profile.name));
    }
    let number = |at: usize, size: usize| -> Option<u64> {
        let field = bytes.get(at..at.checked_add(size)?)?;
        Some(field.iter().rev().fold(0, |n, byte| n << 8 | u64::from(*byte)))
    };
    let machine = number(18, 2).ok_or_else(cut)?;
    let arch = match machine {
        62 => "x86_64",
        183 => "aarch64",
        243 => "riscv64",
        _ => "another machine",
    };
    if arch != profile.arch() {
        return Err(format!("it is for {arch} (ELF machine {machine}), and {} is {}", profile.name, profile.arch()));
    }
    let (table, size, count) = (number(32, 8), number(54, 2), number(56, 2));
    let (Some(table), Some(size), Some(count)) = (table, size, count) else { return Err(cut()) };
    for i in 0..count {
        let at = usize::try_from(table.saturating_add(i * size)).map_err(|_| cut())?;
        if number(at, 4).ok_or_else(cut)? != u64::from(PT_INTERP) {
            continue;
        }
        let (from, length) = (number(at + 8, 8).ok_or_else(cut)?, number(at + 32, 8).ok_or_else(cut)?);
        let (from, length) = (from as usize, length as usize);
        let name = bytes.get(from..from.saturating_add(length)).ok_or_else(cut)?;
        let linker = String::from_utf8_lossy(name).trim_end_matches('\0').to_owned();
        return Ok(match linker.contains("ld-linux") {
            true => Linked::Glibc(glibc(bytes)),
            false => Linked::By(linker),
        });
    }
    Ok(Linked::Static)
}

/// The highest version among the symbols that are asked of glibc: `GLIBC_2.34`.
fn glibc(bytes: &[u8]) -> String {
    const MARK: &[u8] = b"GLIBC_2.";
    let minor = |at: usize| -> Option<u32> {
        let digits: String =
            bytes[at + MARK.len()..].iter().take_while(|b| b.is_ascii_digit()).map(|b| *b as char).collect();
        digits.parse().ok()
    };
    let found = bytes.windows(MARK.len()).enumerate().filter(|(_, w)| *w == MARK).filter_map(|(at, _)| minor(at)).max();
    found.map_or_else(|| "2".into(), |minor| format!("2.{minor}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The head of an ELF file for `machine`, with one program header, and `tail` behind it.
    fn elf(machine: u16, kind: u32, tail: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0u8; 64 + 56];
        bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
        bytes[18..20].copy_from_slice(&machine.to_le_bytes());
        bytes[32..40].copy_from_slice(&64u64.to_le_bytes());
        bytes[54..56].copy_from_slice(&56u16.to_le_bytes());
        bytes[56..58].copy_from_slice(&1u16.to_le_bytes());
        bytes[64..68].copy_from_slice(&kind.to_le_bytes());
        bytes[72..80].copy_from_slice(&120u64.to_le_bytes());
        let name = tail.iter().position(|b| *b == 0).map_or(tail.len(), |n| n + 1);
        bytes[96..104].copy_from_slice(&(name as u64).to_le_bytes());
        bytes.extend(tail);
        bytes
    }

    fn board() -> Profile {
        Profile::named("raspberry-pi-5").unwrap()
    }

    #[test]
    fn an_elf_file_tells_its_machine_and_its_linker() {
        let tail = b"/lib/ld-linux-aarch64.so.1\0GLIBC_2.17\0GLIBC_2.34\0GLIBC_2.9\0";
        assert_eq!(linked(&elf(183, 3, tail), &board()), Ok(Linked::Glibc("2.34".into())));
        let musl = b"/lib/ld-musl-aarch64.so.1\0";
        assert_eq!(linked(&elf(183, 3, musl), &board()), Ok(Linked::By("/lib/ld-musl-aarch64.so.1".into())));
        assert_eq!(linked(&elf(183, 1, b""), &board()), Ok(Linked::Static));
        let error = linked(&elf(62, 1, b""), &board()).unwrap_err();
        assert_eq!(error, "it is for x86_64 (ELF machine 62), and raspberry-pi-5 is aarch64");
    }

    #[test]
    fn what_is_no_elf_file_or_is_cut_is_told() {
        assert!(linked(b"#!/bin/sh\n", &board()).unwrap_err().contains("no 64-bit ELF file"));
        let whole = elf(183, 3, b"/lib/ld-linux-aarch64.so.1\0");
        for length in 6..whole.len() {
            // Nothing but an answer or a reason, wherever it ends.
            let _ = linked(&whole[..length], &board());
        }
        assert_eq!(linked(&whole[..130], &board()), Err("it is cut short".into()));
    }

    #[test]
    fn a_runner_for_another_machine_is_asked_for_with_the_command_that_builds_it() {
        let profile = if cfg!(target_arch = "aarch64") { "x86-server" } else { "raspberry-pi-5" };
        let profile = Profile::named(profile).unwrap();
        let error = Runner::find(&profile, None, Path::new(".")).unwrap_err().to_string();
        let command = format!("-p edgeft-runtime --features server --target {}", profile.triple);
        assert!(error.contains(&command) && error.contains("--runner"), "{error}");
    }

    #[test]
    fn a_program_that_does_not_serve_is_no_runner() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), elf(183, 1, b"")).unwrap();
        let error = Runner::find(&board(), Some(file.path()), Path::new(".")).unwrap_err().to_string();
        assert!(error.contains("no edgeft-run that serves bundles of format 1"), "{error}");
        std::fs::write(file.path(), elf(183, 1, b"edgeft-run serves bundles of format 1")).unwrap();
        let runner = Runner::find(&board(), Some(file.path()), Path::new(".")).unwrap();
        assert_eq!(
            (runner.linked.to_string(), runner.linked.base_image()),
            ("static: needs nothing else".into(), "scratch")
        );
    }
}
