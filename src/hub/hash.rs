//! The two hashes that a hub knows its files by: sha256 of large files (git LFS), and git's blob id of small ones.
//!
//! A blob id is the SHA-1 of `blob LENGTH\0` and the bytes (`git help hash-object`). It finds damage; against
//! somebody who forges files only sha256 is a proof, and weights have that one.

use sha1::Sha1;
use sha2::{Digest, Sha256};
use std::fmt;

/// What a file's bytes must give.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Hash {
    kind: Kind,
    hex: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Sha256,
    GitBlob,
}

impl Hash {
    /// 64 hex digits are a sha256, 40 a blob id; an `ETag` may have quotes and a `W/` around them.
    pub fn parse(text: &str) -> Option<Self> {
        let hex = text.trim().trim_start_matches("W/").trim_matches('"').to_ascii_lowercase();
        let kind = match hex.len() {
            64 => Kind::Sha256,
            40 => Kind::GitBlob,
            _ => return None,
        };
        hex.bytes().all(|b| b.is_ascii_hexdigit()).then_some(Self { kind, hex })
    }

    /// Its digits: the name of the blob in the cache.
    pub fn hex(&self) -> &str {
        &self.hex
    }

    /// Begins the same hash over a file of `bytes` bytes.
    pub fn begin(&self, bytes: u64) -> Hasher {
        match self.kind {
            Kind::Sha256 => Hasher::Sha256(Sha256::new()),
            Kind::GitBlob => Hasher::GitBlob(Sha1::new_with_prefix(format!("blob {bytes}\0"))),
        }
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let kind = match self.kind {
            Kind::Sha256 => "sha256",
            Kind::GitBlob => "git blob",
        };
        write!(f, "{kind} {}", self.hex)
    }
}

/// A hash on its way.
pub enum Hasher {
    /// Of the bytes.
    Sha256(Sha256),
    /// Of git's header and the bytes.
    GitBlob(Sha1),
}

impl Hasher {
    /// Takes the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(h) => h.update(bytes),
            Self::GitBlob(h) => h.update(bytes),
        }
    }

    /// What came out.
    pub fn finish(self) -> Hash {
        let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect();
        match self {
            Self::Sha256(h) => Hash { kind: Kind::Sha256, hex: hex(&h.finalize()) },
            Self::GitBlob(h) => Hash { kind: Kind::GitBlob, hex: hex(&h.finalize()) },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The second pair is what `printf 'hello\n' | git hash-object --stdin` and `sha256sum` print.
    #[test]
    fn hashes_are_those_of_git_and_sha256sum() {
        for (text, hex) in [
            ("", "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391"),
            ("hello\n", "ce013625030ba8dba906f756967f9e9ca394464a"),
            ("hello\n", "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03"),
        ] {
            let want = Hash::parse(hex).unwrap();
            let mut hasher = want.begin(text.len() as u64);
            hasher.update(text.as_bytes());
            assert_eq!(hasher.finish(), want);
        }
    }

    #[test]
    fn an_etag_is_a_hash_only_when_it_is_one() {
        let hex = "ce013625030ba8dba906f756967f9e9ca394464a";
        for etag in [hex.to_owned(), format!("\"{hex}\""), format!("W/\"{hex}\""), hex.to_uppercase()] {
            assert_eq!(Hash::parse(&etag).map(|h| h.hex().to_owned()).as_deref(), Some(hex), "{etag}");
        }
        for etag in ["", "\"6ff7e8-12\"", "../../../../../../../../../../../../etc/", &"g".repeat(64)] {
            assert_eq!(Hash::parse(etag), None, "{etag}");
        }
    }
}
