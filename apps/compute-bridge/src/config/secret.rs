//! Files that hold secrets: the process's user only, or the bridge does not start.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

/// Largest secret file read, in bytes.
const MAX_SECRET_BYTES: u64 = 64 * 1024;

/// Why a file with a secret is not used.
#[derive(Debug, thiserror::Error)]
pub enum SecretFileError {
    /// It cannot be read.
    #[error("{path} cannot be read")]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// Others may read it.
    #[error("{path} has mode {mode:03o}, so others may read the secret in it; run: chmod 600 {path}")]
    Permissions {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// It belongs to another user.
    #[error("{path} belongs to uid {owner}, this process runs as uid {me}; run: chown {me} {path}")]
    Owner {
        /// The file.
        path: PathBuf,
        /// Its owner.
        owner: u32,
        /// The process's user.
        me: u32,
    },
    /// Not a plain file, empty, or far too large.
    #[error("{path} {problem}")]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
}

/// Checks that `path` is a plain file which only this process's user can read.
///
/// # Errors
/// Every variant of [`SecretFileError`].
pub fn check_secret_file(path: &Path) -> Result<(), SecretFileError> {
    let meta = fs::metadata(path).map_err(|source| SecretFileError::Io { path: path.into(), source })?;
    let content = |problem: String| SecretFileError::Content { path: path.into(), problem };
    if !meta.is_file() {
        return Err(content("is not a plain file".into()));
    }
    let mode = meta.mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(SecretFileError::Permissions { path: path.into(), mode });
    }
    let me = nix::unistd::geteuid().as_raw();
    if meta.uid() != me {
        return Err(SecretFileError::Owner { path: path.into(), owner: meta.uid(), me });
    }
    if meta.len() == 0 || meta.len() > MAX_SECRET_BYTES {
        return Err(content(format!("has {} bytes; a secret file has 1 to {MAX_SECRET_BYTES}", meta.len())));
    }
    Ok(())
}

/// Checks the file as [`check_secret_file`] does and reads it as text. The text is wiped when dropped.
///
/// # Errors
/// Every variant of [`SecretFileError`].
pub fn read_secret_file(path: &Path) -> Result<Zeroizing<String>, SecretFileError> {
    check_secret_file(path)?;
    fs::read_to_string(path).map(Zeroizing::new).map_err(|source| SecretFileError::Io { path: path.into(), source })
}
