//! A hub repository becomes a local folder; every other stage reads local folders.
//!
//! What was typed → [`Address`] → the commit and its listing: names, sizes, hashes ([`listing`]) → the files a model
//! needs ([`choice`]) → bytes, held against their hash and kept under it ([`download`]) → a folder of the user's, or
//! Hugging Face's cache ([`place`]). [`client`] is the only one that talks to the network. Nothing here prints or reads
//! the environment: [`Settings`] says all there is to know.
//!
//! The crate `hf-hub` names things: how a repository, a revision and a commit are spelled in the hub's addresses, where
//! its cache keeps blobs, snapshots and refs, and where `hf auth login` left the token. Bytes are moved by code of ours
//! over the HTTP client that it brings, because its 0.5 does not hold what `pull` promises: it checks no hash and no
//! length, appends a whole answer to half a file when a server does not know ranges, asks a file's address again with the
//! token when that leads to another host, and takes two ports of one host for the same one.

pub mod address;
pub mod choice;
pub mod client;
pub mod download;
mod error;
pub mod hash;
pub mod listing;
pub mod place;
mod refusal;
mod url;

pub use address::Address;
pub use choice::Choice;
pub use error::HubError;

use client::Client;
use download::Source;
use hash::Hash;
use place::{Cache, Folder, Place};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where the hub is when nobody says otherwise.
pub const ENDPOINT: &str = "https://huggingface.co";

/// How to reach the hub.
#[derive(Clone)]
pub struct Settings {
    /// Address of the hub, [`ENDPOINT`] or a mirror's.
    pub endpoint: String,
    /// Sent to the endpoint (scheme, host and port) and to nobody else.
    pub token: Option<String>,
    /// Folder of Hugging Face's cache (`HF_HOME/hub`), if there is one.
    pub cache: Option<PathBuf>,
    /// The way out of this network, if there is only one.
    pub proxy: Option<ureq::Proxy>,
    /// Certificates (PEM) to trust in place of the built-in ones.
    pub roots: Option<Vec<u8>>,
    /// How long a silent connection is waited for.
    pub silence: Duration,
    /// How often in a row a failed transfer is tried again.
    pub retries: u32,
    /// Before the first new try; doubled each time.
    pub pause: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            endpoint: ENDPOINT.to_owned(),
            token: None,
            cache: None,
            proxy: None,
            roots: None,
            silence: Duration::from_secs(30),
            retries: 5,
            pause: Duration::from_millis(500),
        }
    }
}

/// Where the files go.
#[derive(Debug, Clone)]
pub enum Destination {
    /// Into Hugging Face's cache, which other programs share.
    Cache,
    /// Into a folder that appears when it is whole.
    Folder {
        /// Its name.
        path: PathBuf,
        /// Whether a model folder of that name may be replaced.
        force: bool,
    },
}

/// What happens meanwhile.
#[derive(Debug)]
pub enum Progress<'a> {
    /// So many files and bytes are wanted, of commit `revision`.
    Start {
        /// The commit.
        revision: &'a str,
        /// How many files.
        files: usize,
        /// Their bytes.
        bytes: u64,
    },
    /// `done` of all bytes are here; `file` is on its way.
    At {
        /// Name in the repository.
        file: &'a str,
        /// Bytes of all files together.
        done: u64,
    },
    /// Something went wrong and is tried again.
    Again {
        /// What, and what is done about it.
        reason: String,
    },
}

/// A repository that is here now.
#[derive(Debug)]
pub struct Pulled {
    /// The folder.
    pub out: PathBuf,
    /// The commit, 40 hex digits.
    pub revision: String,
    /// By name.
    pub files: Vec<PulledFile>,
    /// Bytes of all files.
    pub bytes: u64,
    /// Of these, what came over the network this time.
    pub downloaded: u64,
}

/// One file of it.
#[derive(Debug)]
pub struct PulledFile {
    /// Name in the repository and in the folder, with `/`.
    pub name: String,
    /// Its size.
    pub bytes: u64,
    /// What it was held against.
    pub hash: Hash,
}

/// Brings the chosen files of a repository here. Nothing stands under the final name before every file is whole and its
/// hash is right; what has arrived is kept beside it, and the same call goes on from there.
///
/// # Errors
/// [`HubError`] by case; [`HubError::is_bad_input`] tells what the user can mend from what failed.
pub fn pull(
    settings: &Settings,
    address: &Address,
    choice: &Choice,
    to: &Destination,
    tell: &mut dyn FnMut(Progress),
) -> Result<Pulled, HubError> {
    if let Destination::Folder { path, force } = to {
        place::refuse_existing(path, *force)?;
    }
    let client = Client::new(settings)?;
    let listing = client.patiently(tell, || listing::fetch(&client, address))?;
    let from = Source { client: &client, address, commit: &listing.commit };
    let mut files = Vec::new();
    for remote in choice::choose(address, &listing, choice)? {
        let (bytes, hash) = match remote.known() {
            Some(known) => known,
            None => client.patiently(tell, || listing::ask(&client, address, from.commit, &remote.name))?,
        };
        files.push((remote.path.as_path(), PulledFile { name: remote.name.clone(), bytes, hash }));
    }
    let bytes = files.iter().map(|(_, f)| f.bytes).fold(0, u64::saturating_add);
    tell(Progress::Start { revision: from.commit, files: files.len(), bytes });

    let cache = settings.cache.as_deref().map(|root| Cache::new(root, address));
    let place: Box<dyn Place> = match (to, cache) {
        (Destination::Folder { path, .. }, cache) => Box::new(Folder::new(path, cache.as_ref())?),
        (Destination::Cache, Some(cache)) => Box::new(cache),
        (Destination::Cache, None) => {
            return Err(HubError::Setting(
                "there is no home folder for the cache: set HF_HOME, or give --out".to_owned(),
            ));
        }
    };
    let store = place.store()?;
    store.make_room(&files.iter().map(|(_, f)| (&f.hash, f.bytes)).collect())?;
    let (mut before, mut downloaded) = (0, 0);
    for (_, file) in &files {
        downloaded += store.bring(&from, file, before, tell)?;
        before += file.bytes;
    }
    let laid: Vec<(&Path, &Hash)> = files.iter().map(|(path, f)| (*path, &f.hash)).collect();
    let out = place.lay_out(&store, from.commit, &laid)?;
    let files = files.into_iter().map(|(_, f)| f).collect();
    Ok(Pulled { out, revision: listing.commit.clone(), files, bytes, downloaded })
}
