//! A node's secret key and the file it lives in.

use std::{
    fmt, fs, io,
    io::Write,
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use zeroize::Zeroizing;

use crate::PeerId;

/// Why a key file could not be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The file could not be read or written.
    #[error("key file {path}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// Others may read the file.
    #[error("key file {path} has mode {mode:03o}; only its owner may read it: chmod 600 {path}")]
    Permissions {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The file belongs to another user.
    #[error("key file {path} belongs to uid {owner}, this process runs as uid {me}")]
    Owner {
        /// The file.
        path: PathBuf,
        /// Its owner.
        owner: u32,
        /// The effective user of this process.
        me: u32,
    },
    /// Not 64 hex digits.
    #[error("key file {path} does not hold 64 hex digits")]
    Malformed {
        /// The file.
        path: PathBuf,
    },
}

/// An ed25519 secret: zeroized when dropped, never printed.
#[derive(Clone)]
pub struct NodeKey(Zeroizing<[u8; 32]>);

impl NodeKey {
    /// A fresh random key.
    #[must_use]
    pub fn generate() -> Self {
        Self(Zeroizing::new(mosaik::SecretKey::generate().to_bytes()))
    }

    /// Wraps existing secret bytes.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// The secret bytes, for libraries that sign with the same key.
    #[must_use]
    pub fn expose(&self) -> &[u8; 32] {
        &self.0
    }

    /// The public identity.
    #[must_use]
    pub fn peer_id(&self) -> PeerId {
        PeerId::from_mosaik(&self.to_mosaik().public())
    }

    /// Reads a key file: 64 hex digits, owned by this user, readable by nobody else.
    ///
    /// # Errors
    /// Every variant of [`KeyError`].
    pub fn load(path: &Path) -> Result<Self, KeyError> {
        let io = |source| KeyError::Io { path: path.into(), source };
        let meta = fs::metadata(path).map_err(io)?;
        let mode = meta.mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(KeyError::Permissions { path: path.into(), mode });
        }
        let me = nix::unistd::geteuid().as_raw();
        if meta.uid() != me {
            return Err(KeyError::Owner { path: path.into(), owner: meta.uid(), me });
        }
        let text = Zeroizing::new(fs::read_to_string(path).map_err(io)?);
        let mut bytes = Zeroizing::new([0; 32]);
        hex::decode_to_slice(text.trim(), bytes.as_mut()).map_err(|_| KeyError::Malformed { path: path.into() })?;
        Ok(Self(bytes))
    }

    /// Writes the key to a new file with mode 600; an existing file is an error.
    ///
    /// # Errors
    /// [`KeyError::Io`].
    pub fn save_new(&self, path: &Path) -> Result<(), KeyError> {
        let io = |source| KeyError::Io { path: path.into(), source };
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(io)?;
        let text = Zeroizing::new(hex::encode(*self.0));
        file.write_all(text.as_bytes()).and_then(|()| file.write_all(b"\n")).and_then(|()| file.sync_all()).map_err(io)
    }

    /// [`load`](Self::load), or a fresh key saved to the path when there is no file.
    ///
    /// # Errors
    /// Every variant of [`KeyError`].
    pub fn load_or_create(path: &Path) -> Result<Self, KeyError> {
        if path.exists() {
            return Self::load(path);
        }
        let key = Self::generate();
        key.save_new(path)?;
        Ok(key)
    }

    pub(crate) fn to_mosaik(&self) -> mosaik::SecretKey {
        mosaik::SecretKey::from_bytes(&self.0)
    }
}

impl fmt::Debug for NodeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NodeKey({:?}, secret redacted)", self.peer_id())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_key_survives_its_file_and_refuses_company() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("node.key");
        let key = NodeKey::load_or_create(&path).unwrap();
        assert_eq!(NodeKey::load_or_create(&path).unwrap().expose(), key.expose());
        assert!(matches!(key.save_new(&path), Err(KeyError::Io { .. })));

        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let refused = NodeKey::load(&path).unwrap_err().to_string();
        assert!(refused.contains("mode 640") && refused.contains("chmod 600"), "{refused}");

        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(&path, "not a key").unwrap();
        assert!(matches!(NodeKey::load(&path), Err(KeyError::Malformed { .. })));
    }

    #[test]
    fn debug_never_shows_the_secret() {
        let shown = format!("{:?}", NodeKey::from_bytes([0xab; 32]));
        assert!(!shown.contains(&hex::encode([0xab; 32])) && shown.contains("redacted"), "{shown}");
    }
}
