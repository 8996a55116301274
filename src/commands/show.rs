//! How commands print: one JSON object or a short report, bars on a terminal, numbers with units.

use crate::cli::Global;
use std::path::{Path, PathBuf};

/// Prints the JSON object as the last line of stdout, or runs `text`.
pub fn report(global: &Global, json: &serde_json::Value, text: impl FnOnce()) {
    if global.json {
        println!("{json}");
    } else {
        text();
    }
}

/// Says on stderr what computes, where that is more than this program.
pub fn runs_on(what: Option<String>) {
    if let Some(what) = what {
        eprintln!("runs on {what}");
    }
}

/// 1234567 → `1.2 MB`.
pub fn bytes(n: u64) -> String {
    let (n, units) = (n as f64, ["B", "kB", "MB", "GB", "TB"]);
    let power = if n < 1.0 { 0 } else { ((n.log10() / 3.0) as usize).min(4) };
    let value = n / 1000f64.powi(power as i32);
    if power == 0 { format!("{value:.0} B") } else { format!("{value:.1} {}", units[power]) }
}

/// Peak resident set of this process in MiB, where the system tells.
pub fn peak_mib() -> Option<f64> {
    edgeft_runtime::measure::device::peak_mib()
}

/// A progress bar on stderr when that is a terminal; hidden otherwise.
pub fn bar(steps: u64, what: &str) -> indicatif::ProgressBar {
    let bar = indicatif::ProgressBar::new(steps);
    let style = "{prefix:<10} {bar:30} {pos}/{len}  {msg}  {elapsed} (left {eta})";
    if let Ok(style) = indicatif::ProgressStyle::with_template(style) {
        bar.set_style(style);
    }
    bar.set_prefix(what.to_owned());
    bar
}

/// A count on stderr, for work whose end is not known, when that is a terminal; hidden otherwise.
pub fn counter(what: &str) -> indicatif::ProgressBar {
    let bar = indicatif::ProgressBar::no_length();
    if let Ok(style) = indicatif::ProgressStyle::with_template("{spinner} {human_pos} {prefix}  {elapsed}") {
        bar.set_style(style);
    }
    bar.set_prefix(what.to_owned());
    bar
}

/// Columns padded to their widest cell; the first is text, the rest are numbers.
pub fn table(rows: &[Vec<String>]) -> String {
    table_with(rows, &[0])
}

/// Columns padded to their widest cell: those of `text` align left, the others right.
pub fn table_with(rows: &[Vec<String>], text: &[usize]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |c: usize| rows.iter().filter_map(|r| r.get(c)).map(|s| s.chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut out = String::new();
    for row in rows {
        let line: Vec<String> = row
            .iter()
            .enumerate()
            .map(|(c, cell)| {
                let pad = " ".repeat(widths[c] - cell.chars().count());
                if text.contains(&c) { format!("{cell}{pad}") } else { format!("{pad}{cell}") }
            })
            .collect();
        out.push_str(format!("  {}", line.join("  ")).trim_end());
        out.push('\n');
    }
    out
}

/// A folder that appears under its name only when it is whole; dropped before that, it leaves nothing.
pub struct NewFolder {
    temporary: tempfile::TempDir,
    place: PathBuf,
}

impl NewFolder {
    /// # Errors
    /// When `place` exists and `force` was not given.
    pub fn create(place: &Path, force: bool) -> anyhow::Result<Self> {
        refuse_existing(place, force)?;
        let parent = place.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        std::fs::create_dir_all(parent)
            .map_err(|e| crate::error::BadInput(format!("cannot create {}: {e}", parent.display())))?;
        let temporary = tempfile::Builder::new()
            .prefix(".edgeft-")
            .tempdir_in(parent)
            .map_err(|e| crate::error::BadInput(format!("cannot write in {}: {e}", parent.display())))?;
        Ok(Self { temporary, place: place.to_owned() })
    }

    /// Where to write.
    pub fn path(&self) -> &Path {
        self.temporary.path()
    }

    /// Gives the folder its name.
    pub fn finish(self) -> anyhow::Result<()> {
        if self.place.exists() {
            if self.place.is_dir() { std::fs::remove_dir_all(&self.place)? } else { std::fs::remove_file(&self.place)? }
        }
        let path = self.temporary.keep();
        open_to_readers(&path)?;
        std::fs::rename(&path, &self.place)?;
        Ok(())
    }
}

/// Temporary folders are private; a finished output is as readable as any other.
#[cfg(unix)]
fn open_to_readers(path: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755))
}

#[cfg(not(unix))]
fn open_to_readers(_: &Path) -> std::io::Result<()> {
    Ok(())
}

/// # Errors
/// When `place` exists and `force` was not given.
pub fn refuse_existing(place: &Path, force: bool) -> anyhow::Result<()> {
    if place.exists() && !force {
        crate::bad_input!("{} exists; choose another --out, or replace it with --force", place.display());
    }
    Ok(())
}

/// The name of a MODEL for clients: the file's without its end, or the folder's, without what leads there.
pub fn model_name(model: &str) -> String {
    let path = std::fs::canonicalize(model).unwrap_or_else(|_| model.into());
    let name = if path.is_file() { path.file_stem() } else { path.file_name() };
    name.map_or_else(|| model.to_owned(), |name| name.to_string_lossy().into_owned())
}

/// # Errors
/// When `place`, which `flag` names, exists and `force` was not given, or when it is a folder.
pub fn refuse_existing_file(place: &Path, flag: &str, force: bool) -> anyhow::Result<()> {
    if place.is_dir() {
        crate::bad_input!("{flag}: {} is a folder; give the name of a file", place.display());
    }
    if place.exists() && !force {
        crate::bad_input!("{} exists; choose another {flag}, or replace it with --force", place.display());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_have_units_people_read() {
        for (n, text) in
            [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (7_345_678, "7.3 MB"), (2_500_000_000, "2.5 GB")]
        {
            assert_eq!(bytes(n), text);
        }
    }

    #[test]
    fn tables_line_up() {
        let rows = [vec!["a".to_owned(), "10".into()], vec!["long".to_owned(), "2".into()]];
        assert_eq!(table(&rows), "  a     10\n  long   2\n");
        assert_eq!(table_with(&rows, &[1]), "     a  10\n  long  2\n");
    }

    #[test]
    fn a_model_is_called_by_its_file_or_folder() {
        let folder = tempfile::Builder::new().prefix("model-v1.5-").tempdir().unwrap();
        assert_eq!(
            model_name(&format!("{}/", folder.path().display())),
            folder.path().file_name().unwrap().to_str().unwrap()
        );
        let file = folder.path().join("tiny.q8_0.gguf");
        std::fs::write(&file, "").unwrap();
        assert_eq!(model_name(file.to_str().unwrap()), "tiny.q8_0");
        assert_eq!(model_name("nano"), "nano");
    }
}
