//! File operations whose failure is fatal, and the order of syncs that makes a file durable.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use super::StoreError;

/// Maps an I/O error of `operation` on `path` to [`StoreError::Fatal`].
pub(super) fn fatal<'a>(operation: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> StoreError + 'a {
    move |source| StoreError::Fatal { operation, path: path.to_owned(), source }
}

/// Maps an I/O error while reading `path`.
pub(super) fn unreadable(path: &Path) -> impl FnOnce(io::Error) -> StoreError + '_ {
    move |source| StoreError::Read { path: path.to_owned(), source }
}

/// The file's bytes, or `None` when it does not exist.
pub(super) fn read_if_there(path: &Path) -> Result<Option<Vec<u8>>, StoreError> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(unreadable(path)(e)),
    }
}

/// Replaces `path` by `bytes` in one step, without making it durable. Creates missing directories.
pub(super) fn replace(path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
    let parent = parent_of(path);
    fs::create_dir_all(parent).map_err(fatal("create directory", parent))?;
    write_beside(path, bytes, false)
}

/// Replaces `path` by `bytes` in one step and makes that durable. Its directory must exist.
///
/// # Errors
/// [`StoreError::Fatal`]: whether the old or the new content is durable is unknown then.
pub fn replace_durably(path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
    write_beside(path, bytes, true)?;
    sync(parent_of(path))
}

/// Makes files written by [`replace`] below `root` durable, with the directories that name them.
pub(super) fn sync_all(root: &Path, files: &[PathBuf]) -> Result<(), StoreError> {
    let mut directories = BTreeSet::new();
    for file in files {
        sync(file)?;
        directories.extend(file.ancestors().skip(1).take_while(|dir| dir.starts_with(root)));
    }
    directories.into_iter().try_for_each(sync)
}

/// Flushes one file or directory to the disk.
pub(super) fn sync(path: &Path) -> Result<(), StoreError> {
    let file = File::open(path).map_err(fatal("open for syncing", path))?;
    file.sync_all().map_err(fatal("sync", path))
}

fn write_beside(path: &Path, bytes: &[u8], durable: bool) -> Result<(), StoreError> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let beside = path.with_file_name(name);
    let mut file = File::create(&beside).map_err(fatal("create", &beside))?;
    file.write_all(bytes).map_err(fatal("write", &beside))?;
    if durable {
        file.sync_all().map_err(fatal("sync", &beside))?;
    }
    fs::rename(&beside, path).map_err(fatal("rename into place", path))
}

fn parent_of(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new("."))
}
