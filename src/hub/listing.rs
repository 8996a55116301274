//! A repository at a revision → its commit, and the name, size and hash of every file in it.

use super::client::{Client, What, header};
use super::hash::Hash;
use super::url::escape;
use super::{Address, HubError};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Component, Path, PathBuf};

/// A listing of a hundred thousand files has some 30 MB.
const LONGEST: u64 = 128 << 20;

/// What a repository holds.
#[derive(Debug)]
pub struct Listing {
    /// 40 hex digits.
    pub commit: String,
    /// By name.
    pub files: Vec<Remote>,
}

/// A file of the repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remote {
    /// As the hub spells it, with `/`.
    pub name: String,
    /// The same as a path that stays in its folder.
    pub path: PathBuf,
    /// Size, when the listing has it.
    pub bytes: Option<u64>,
    /// Hash, when the listing has it.
    pub hash: Option<Hash>,
}

impl Remote {
    /// Size and hash, when the listing had both.
    pub fn known(&self) -> Option<(u64, Hash)> {
        Some((self.bytes?, self.hash.clone()?))
    }
}

/// The hub's answer to `/api/models/ORG/NAME/revision/REV?blobs=true`.
#[derive(Deserialize)]
struct Info {
    sha: String,
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
    size: Option<u64>,
    #[serde(rename = "blobId")]
    blob_id: Option<String>,
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    size: Option<u64>,
    sha256: Option<String>,
}

/// Asks for the listing.
///
/// # Errors
/// [`HubError::Refused`] when there is no such thing, [`HubError::Answer`] when what comes is no listing, or names a file
/// outside its folder.
pub fn fetch(client: &Client, address: &Address) -> Result<Listing, HubError> {
    let path = format!("/api/{}?blobs=true", address.repo().api_url());
    let what = What { address, file: None };
    let response = client.get(&path, 0, &what)?;
    let mut json = Vec::new();
    let read = response.into_body().into_reader().take(LONGEST + 1).read_to_end(&mut json);
    read.map_err(|e| super::client::cut(&format!("{}{path}", client.endpoint()), &e))?;
    if json.len() as u64 > LONGEST {
        return Err(HubError::Answer {
            what: what.to_string(),
            reason: format!("its listing has more than {LONGEST} bytes"),
        });
    }
    parse(&json).map_err(|reason| HubError::Answer { what: what.to_string(), reason })
}

fn parse(json: &[u8]) -> Result<Listing, String> {
    let info: Info = serde_json::from_slice(json)
        .map_err(|e| format!("what came is no listing of a repository ({e}); is HF_ENDPOINT the address of a hub?"))?;
    if info.sha.len() != 40 || !info.sha.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(format!("its commit is `{}`, not 40 hex digits", info.sha));
    }
    let mut files = BTreeMap::new();
    for file in info.siblings {
        // No git tree can hold such a name: whoever sends it means harm.
        let path =
            inside(&file.rfilename).ok_or_else(|| format!("it lists `{}`, outside its folder", file.rfilename))?;
        let (bytes, hash) = match file.lfs {
            // The blob id of a large file is that of a pointer to it.
            Some(lfs) => (lfs.size.or(file.size), lfs.sha256),
            None => (file.size, file.blob_id),
        };
        let hash = hash.as_deref().and_then(Hash::parse);
        files.insert(file.rfilename.clone(), Remote { name: file.rfilename, path, bytes, hash });
    }
    Ok(Listing { commit: info.sha.to_ascii_lowercase(), files: files.into_values().collect() })
}

/// The name as a path, when it stays in the folder that it is joined to.
fn inside(name: &str) -> Option<PathBuf> {
    let mut path = PathBuf::new();
    for part in Path::new(name).components() {
        match part {
            Component::Normal(part) => path.push(part),
            _ => return None,
        }
    }
    (!path.as_os_str().is_empty() && !name.ends_with('/') && !name.contains('\0')).then_some(path)
}

/// Address of a file at a commit.
pub fn address_of(address: &Address, commit: &str, name: &str) -> String {
    format!("/{}/resolve/{commit}/{}", address.repo().url(), escape(name))
}

/// Asks for size and hash of one file, for hubs whose listing leaves them out: they are in the headers of the file.
///
/// # Errors
/// [`HubError::Answer`] when they are not there either: what cannot be checked is not taken.
pub fn ask(client: &Client, address: &Address, commit: &str, name: &str) -> Result<(u64, Hash), HubError> {
    let what = What { address, file: Some(name) };
    let response = client.head(&address_of(address, commit, name), &what)?;
    let first = |names: [&str; 2]| names.iter().find_map(|n| header(&response, n));
    let hash = first(["x-linked-etag", "etag"]).and_then(|tag| Hash::parse(&tag));
    let bytes = first(["x-linked-size", "content-length"]).and_then(|n| n.parse().ok());
    bytes.zip(hash).ok_or_else(|| HubError::Answer {
        what: what.to_string(),
        reason: format!(
            "{} gives no size or no hash of it, so that it cannot be checked; try another HF_ENDPOINT",
            client.endpoint()
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn listing(siblings: serde_json::Value) -> Result<Listing, String> {
        parse(
            json!({"id": "org/name", "sha": "0123456789abcdef0123456789abcdef01234567", "siblings": siblings})
                .to_string()
                .as_bytes(),
        )
    }

    #[test]
    fn a_large_file_is_known_by_its_sha256_and_a_small_one_by_its_blob_id() {
        let (blob, sha256) = ("ce013625030ba8dba906f756967f9e9ca394464a", "5".repeat(64));
        let listing = listing(json!([
            {"rfilename": "model.safetensors", "size": 130, "blobId": blob, "lfs": {"size": 99, "sha256": sha256, "pointerSize": 130}},
            {"rfilename": "config.json", "size": 6, "blobId": blob},
            {"rfilename": "README.md"},
        ]))
        .unwrap();
        let known: Vec<_> = listing.files.iter().map(|f| (f.name.as_str(), f.known())).collect();
        assert_eq!(
            known,
            [
                ("README.md", None),
                ("config.json", Some((6, Hash::parse(blob).unwrap()))),
                ("model.safetensors", Some((99, Hash::parse(&sha256).unwrap()))),
            ]
        );
    }

    #[test]
    fn a_name_outside_the_folder_condemns_the_listing() {
        for name in ["../x", "a/../../x", "/etc/passwd", "..", "", "a/", "./x", "a\0b"] {
            let error = listing(json!([{"rfilename": name}, {"rfilename": "config.json"}])).unwrap_err();
            assert!(error.contains("outside its folder"), "{name}: {error}");
        }
        assert!(listing(json!([{"rfilename": "a..b/..c"}])).is_ok());
    }

    #[test]
    fn what_is_no_listing_is_said_to_be_none() {
        for json in ["", "<html>", "{}", r#"{"sha": "../..", "siblings": []}"#] {
            assert!(parse(json.as_bytes()).is_err(), "{json}");
        }
    }
}
