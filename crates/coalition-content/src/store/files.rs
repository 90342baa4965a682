//! The store's directory. Content is in `objects/<hash>`, its tree and holders beside it; uploads in `partial/<hash>.<size>`;
//! damaged copies in `damaged/`.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use coalition::UniqueId;
use coalition_universe::PeerId;
use serde::{Deserialize, Serialize};

use crate::tree::Content;

/// Who pushed content, and when.
pub(super) type Owners = BTreeMap<PeerId, Owner>;

/// One hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Owner {
    /// Unix milliseconds.
    pub(super) pushed_ms: u64,
    /// Whether it was no listed pusher.
    pub(super) stranger: bool,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct OwnersFile {
    version: u8,
    owners: Owners,
}

/// Paths below the store's directory.
#[derive(Debug)]
pub(super) struct Layout(pub(super) PathBuf);

impl Layout {
    pub(super) fn make(&self) -> io::Result<()> {
        for dir in [self.0.clone(), self.objects(), self.partials(), self.damaged()] {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        }
        Ok(())
    }

    pub(super) fn objects(&self) -> PathBuf {
        self.0.join("objects")
    }

    pub(super) fn partials(&self) -> PathBuf {
        self.0.join("partial")
    }

    pub(super) fn damaged(&self) -> PathBuf {
        self.0.join("damaged")
    }

    pub(super) fn object(&self, hash: UniqueId) -> PathBuf {
        self.objects().join(hash.to_string())
    }

    pub(super) fn partial(&self, content: Content) -> PathBuf {
        self.partials().join(format!("{}.{}", content.hash(), content.size()))
    }
}

/// `<path>.tree`.
pub(super) fn tree_of(path: &Path) -> PathBuf {
    with_end(path, ".tree")
}

/// `<path>.owners`.
pub(super) fn owners_of(path: &Path) -> PathBuf {
    with_end(path, ".owners")
}

fn with_end(path: &Path, end: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(end);
    name.into()
}

/// Opens a file for reading and writing, making it if it is not there.
pub(super) fn open_own(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
}

/// Syncs a directory, so that what was renamed in it stays.
pub(super) fn sync_dir(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Removes a file; that it is not there is as good.
pub(super) fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Removes content or an upload with what is beside it, the data first: without it, the rest counts for nothing.
pub(super) fn remove_all(path: &Path) -> io::Result<()> {
    remove(path)?;
    remove(&tree_of(path))?;
    remove(&owners_of(path))
}

/// Writes who holds something, whole or not at all.
pub(super) fn write_owners(path: &Path, owners: &Owners) -> io::Result<()> {
    let path = owners_of(path);
    if owners.is_empty() {
        return remove(&path);
    }
    let text = serde_json::to_vec(&OwnersFile { version: 1, owners: owners.clone() }).map_err(io::Error::other)?;
    let fresh = with_end(&path, ".new");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
    file.write_all(&text)?;
    file.sync_all()?;
    fs::rename(&fresh, &path)
}

/// Who holds something. A file that says nothing usable holds nothing: the content can be pushed again.
pub(super) fn read_owners(path: &Path) -> Owners {
    let path = owners_of(path);
    let Ok(text) = fs::read(&path) else { return Owners::new() };
    match serde_json::from_slice::<OwnersFile>(&text) {
        Ok(file) if file.version == 1 => file.owners,
        _ => {
            tracing::warn!(path = %path.display(), "unreadable; nobody holds this content now");
            Owners::new()
        }
    }
}

/// A file's modification time, Unix milliseconds.
pub(super) fn modified_ms(meta: &fs::Metadata) -> u64 {
    let since = meta.modified().ok().and_then(|at| at.duration_since(UNIX_EPOCH).ok());
    since.map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// Notes when a file was last used; best effort, for the next start.
pub(super) fn set_modified(path: &Path, ms: u64) {
    let at: SystemTime = UNIX_EPOCH + Duration::from_millis(ms);
    if let Ok(file) = File::open(path) {
        let _ = file.set_modified(at);
    }
}

/// What a file below `objects` or `partial` is.
pub(super) enum Named {
    /// Data: of this hash, and for an upload of this size.
    Data(UniqueId, Option<u64>),
    /// Beside data with this name.
    Beside(String),
    /// Nothing of ours.
    Other,
}

pub(super) fn named(name: &OsStr) -> Named {
    let Some(name) = name.to_str() else { return Named::Other };
    for end in [".tree", ".owners", ".owners.new"] {
        if let Some(data) = name.strip_suffix(end) {
            return Named::Beside(data.to_owned());
        }
    }
    let (hash, size) = match name.split_once('.') {
        Some((hash, size)) => (hash, size.parse().ok()),
        None => (name, None),
    };
    match coalition::parse_id(hash) {
        Ok(hash) if size.is_some() || !name.contains('.') => Named::Data(hash, size),
        _ => Named::Other,
    }
}
