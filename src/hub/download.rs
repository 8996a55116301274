//! A file of a commit → a blob on the disk, named after its hash and held against it.
//!
//! A blob on its way is `HASH.incomplete`. Named after what it will be, it can be gone on with whatever the revision or
//! the file is called, and pieces of two files never meet. A piece that turns out to be wrong is dropped.

use super::client::{Client, Patience, What, cut, header};
use super::hash::{Hash, Hasher};
use super::listing::address_of;
use super::{Address, HubError, Progress, PulledFile};
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};

/// Bytes at a time.
const PIECE: usize = 256 << 10;

/// A connection that brought this much before it broke was a good one: the count of failures begins anew.
const MUCH: u64 = 1 << 20;

/// A folder of blobs.
#[derive(Debug)]
pub struct Store {
    /// The folder.
    pub blobs: PathBuf,
    /// Where a lock for each blob lies, when other programs work in the same folder.
    pub locks: Option<PathBuf>,
    /// Another folder of blobs, to copy from what is there already.
    pub spare: Option<PathBuf>,
}

/// Where a file comes from.
pub struct Source<'a> {
    /// The connection.
    pub client: &'a Client,
    /// The repository.
    pub address: &'a Address,
    /// 40 hex digits.
    pub commit: &'a str,
}

impl Store {
    /// The place of a blob.
    pub fn blob(&self, hash: &Hash) -> PathBuf {
        self.blobs.join(hash.hex())
    }

    fn part(&self, hash: &Hash) -> PathBuf {
        self.blobs.join(format!("{}.incomplete", hash.hex()))
    }

    /// Whether what is still missing fits on the disk; where the system does not tell, it will show.
    ///
    /// # Errors
    /// [`HubError::Space`], with both numbers.
    pub fn make_room(&self, files: &BTreeMap<&Hash, u64>) -> Result<(), HubError> {
        let len = |path: PathBuf| std::fs::metadata(path).map_or(0, |m| m.len());
        let missing = |(hash, bytes): (&&Hash, &u64)| match self.blob(hash).exists() {
            true => 0,
            false => bytes.saturating_sub(len(self.part(hash))),
        };
        let need = files.iter().map(missing).fold(0, u64::saturating_add);
        match free(&self.blobs) {
            Some(free) if free < need => Err(HubError::Space { path: self.blobs.clone(), need, free }),
            _ => Ok(()),
        }
    }

    /// Brings one file here, unless it is; `before` are the bytes of the files before it. Gives the bytes that came over
    /// the network.
    ///
    /// # Errors
    /// [`HubError::Damaged`] when the hash is wrong; [`HubError::Network`] when it failed too often: what came is kept.
    pub fn bring(
        &self,
        from: &Source,
        file: &PulledFile,
        before: u64,
        tell: &mut dyn FnMut(Progress),
    ) -> Result<u64, HubError> {
        let (blob, part) = (self.blob(&file.hash), self.part(&file.hash));
        let _lock = self.lock(&file.hash)?;
        tell(Progress::At { file: &file.name, done: before });
        if blob.exists() {
            if is_whole(&blob, file)? {
                tell(Progress::At { file: &file.name, done: before + file.bytes });
                return Ok(0);
            }
            tell(Progress::Again { reason: format!("{} is damaged and will be replaced", blob.display()) });
            std::fs::remove_file(&blob).map_err(HubError::write(&blob))?;
        }
        if let Some(known) = self.spare.as_ref().map(|s| s.join(file.hash.hex())).filter(|s| s.is_file())
            && is_whole(&known, file)?
        {
            std::fs::copy(&known, &part).map_err(HubError::write(&part))?; // and held against its hash below
        }
        let (mut patience, mut downloaded) = (Patience::default(), 0);
        loop {
            let mut arrived = 0;
            let outcome = go_on(from, file, &part, &mut |at, n| {
                arrived += n;
                tell(Progress::At { file: &file.name, done: before + at });
            });
            downloaded += arrived;
            match outcome {
                Ok(()) => break,
                Err(e) => {
                    if arrived >= MUCH {
                        patience.restore();
                    }
                    patience.wait(from.client, e, tell)?;
                }
            }
        }
        std::fs::rename(&part, &blob).map_err(HubError::write(&blob))?;
        Ok(downloaded)
    }

    /// Held until it is dropped.
    fn lock(&self, hash: &Hash) -> Result<Option<File>, HubError> {
        let Some(locks) = &self.locks else { return Ok(None) };
        std::fs::create_dir_all(locks).map_err(HubError::write(locks))?;
        lock(&locks.join(format!("{}.lock", hash.hex())), &self.part(hash)).map(Some)
    }
}

/// Locks `path` for this process alone; `what` is named when another has it.
///
/// # Errors
/// [`HubError::Busy`].
pub fn lock(path: &Path, what: &Path) -> Result<File, HubError> {
    let options = OpenOptions::new().create(true).truncate(false).write(true).open(path);
    let file = options.map_err(HubError::write(path))?;
    match file.try_lock() {
        Err(TryLockError::WouldBlock) => Err(HubError::Busy { path: what.to_owned() }),
        // A file system without locks: two at once then spoil each other's piece, and the hash will tell.
        Ok(()) | Err(TryLockError::Error(_)) => Ok(file),
    }
}

/// Makes `part` whole, from where it stands, and holds it against the hash. `arrived(at, n)`: `n` more bytes, `at` in all.
fn go_on(from: &Source, want: &PulledFile, part: &Path, arrived: &mut dyn FnMut(u64, u64)) -> Result<(), HubError> {
    let size = want.bytes;
    let what = What { address: from.address, file: Some(&want.name) };
    let answer = |reason: String| HubError::Answer { what: what.to_string(), reason };
    let again = |reason: String| HubError::Network { place: what.to_string(), reason, wait: None };
    let open = OpenOptions::new().read(true).append(true).create(true).open(part);
    let mut file = open.map_err(HubError::write(part))?;
    let empty = |file: &File| file.set_len(0).map_err(HubError::write(part));
    let mut at = file.metadata().map_err(HubError::write(part))?.len();
    if at > size {
        empty(&file)?;
        at = 0;
    }
    let mut hasher = want.hash.begin(size);
    if at > 0 {
        hash_all(&mut file, &mut hasher).map_err(HubError::write(part))?;
        arrived(at, 0);
    }
    let mut resumed = at > 0;
    if at < size {
        let path = address_of(from.address, from.commit, &want.name);
        let response = from.client.get(&path, at, &what)?;
        match response.status().as_u16() {
            206 if first_byte(header(&response, "content-range").as_deref()) == Some(at) => {}
            206 => {
                let range = header(&response, "content-range").unwrap_or_default();
                return Err(answer(format!("asked for the bytes from {at} on, the server sends `{range}`")));
            }
            416 => {
                empty(&file)?;
                return Err(again(format!("the server has no byte {at} of {size}; from the beginning")));
            }
            // The whole file: this server knows no ranges.
            _ if resumed => {
                empty(&file)?;
                (hasher, at, resumed) = (want.hash.begin(size), 0, false);
            }
            _ => {}
        }
        let (mut body, mut piece) = (response.into_body().into_reader(), vec![0; PIECE]);
        loop {
            let n = match body.read(&mut piece) {
                Ok(0) => break,
                Ok(n) => n,
                Err(e) if e.kind() == ErrorKind::Interrupted => continue,
                Err(e) => return Err(cut(&what.to_string(), &e)),
            };
            if n as u64 > size - at {
                empty(&file)?;
                return Err(answer(format!("more than the {size} bytes of the listing come")));
            }
            file.write_all(&piece[..n]).map_err(HubError::write(part))?;
            hasher.update(&piece[..n]);
            at += n as u64;
            arrived(at, n as u64);
        }
        if at < size {
            return Err(again(format!("the connection ended after {at} of {size} bytes")));
        }
    }
    file.sync_all().map_err(HubError::write(part))?;
    let got = hasher.finish();
    if got == want.hash {
        return Ok(());
    }
    empty(&file)?;
    drop(file);
    std::fs::remove_file(part).map_err(HubError::write(part))?;
    match resumed {
        true => Err(again("what was kept of an earlier try is damaged; from the beginning".to_owned())),
        false => Err(HubError::Damaged { file: what.to_string(), want: want.hash.clone(), got }),
    }
}

/// Whether a file has the size and the hash.
fn is_whole(path: &Path, want: &PulledFile) -> Result<bool, HubError> {
    let mut file = File::open(path).map_err(HubError::write(path))?;
    if file.metadata().map_err(HubError::write(path))?.len() != want.bytes {
        return Ok(false);
    }
    let mut hasher = want.hash.begin(want.bytes);
    hash_all(&mut file, &mut hasher).map_err(HubError::write(path))?;
    Ok(hasher.finish() == want.hash)
}

fn hash_all(file: &mut File, hasher: &mut Hasher) -> std::io::Result<()> {
    let mut piece = vec![0; PIECE];
    loop {
        match file.read(&mut piece) {
            Ok(0) => return Ok(()),
            Ok(n) => hasher.update(&piece[..n]),
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

/// `bytes 100-199/200` → 100 (RFC 9110, section 14.4).
fn first_byte(range: Option<&str>) -> Option<u64> {
    range?.trim().strip_prefix("bytes ")?.split('-').next()?.trim().parse().ok()
}

/// Bytes that this user may still write on the disk of `path`.
#[cfg(unix)]
fn free(path: &Path) -> Option<u64> {
    let disk = rustix::fs::statvfs(path).ok()?;
    Some(disk.f_bavail.saturating_mul(disk.f_frsize))
}

#[cfg(not(unix))]
fn free(_: &Path) -> Option<u64> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_byte_of_a_range_is_read() {
        for (text, want) in
            [("bytes 100-199/200", Some(100)), ("bytes 0-0/*", Some(0)), ("items 1-2/3", None), ("bytes */9", None)]
        {
            assert_eq!(first_byte(Some(text)), want, "{text}");
        }
    }

    #[test]
    fn a_lock_is_for_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.lock");
        let first = lock(&path, &path).unwrap();
        assert!(matches!(lock(&path, &path), Err(HubError::Busy { .. })));
        drop(first);
        lock(&path, &path).unwrap();
    }
}
