//! Images pushed from here: what `request` needs to know of one when only its hash is given. `images/<hash>.json` below the home.

use std::path::PathBuf;

use coalition::UniqueId;
use coalition_universe::PeerAddress;
use serde::{Deserialize, Serialize};

use crate::{
    error::{CliError, Context, Result},
    home::{Home, private_dir, private_write},
};

const VERSION: u8 = 1;
/// Largest file read, in bytes.
const MAX_FILE_BYTES: u64 = 16 << 10;

/// An image that was pushed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KnownImage {
    /// Version of the file; 1.
    pub version: u8,
    /// Name of the file it was pushed from.
    pub name: String,
    /// Its size.
    pub size_bytes: u64,
    /// What it unpacks to.
    pub disk_bytes: u64,
    /// The stores it was pushed to, the newest last.
    pub stores: Vec<PeerAddress>,
}

impl KnownImage {
    /// An image in no store yet.
    #[must_use]
    pub const fn new(name: String, size_bytes: u64, disk_bytes: u64) -> Self {
        Self { version: VERSION, name, size_bytes, disk_bytes, stores: Vec::new() }
    }

    /// Notes that a store has it.
    pub fn is_in(&mut self, store: PeerAddress) {
        self.stores.retain(|known| known.peer != store.peer);
        self.stores.push(store);
    }

    /// What is known of this hash.
    ///
    /// # Errors
    /// When the file is damaged.
    pub fn load(home: &Home, hash: UniqueId) -> Result<Option<Self>> {
        let path = file(home, hash);
        let damaged = || format!("{} cannot be used; remove it, and push the image again", path.display());
        match std::fs::metadata(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Ok(meta) if meta.len() > MAX_FILE_BYTES => return Err(CliError::input("image_record_damaged", damaged())),
            Ok(_) => {}
            Err(error) => return Err(CliError::input("image_record_damaged", damaged()).because(error)),
        }
        let text = std::fs::read_to_string(&path).or_input("image_record_damaged", damaged)?;
        let known: Self = serde_json::from_str(&text).or_input("image_record_damaged", damaged)?;
        if known.version == VERSION { Ok(Some(known)) } else { Err(CliError::input("image_record_damaged", damaged())) }
    }

    /// Writes it down.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn save(&self, home: &Home, hash: UniqueId) -> Result<()> {
        private_dir(&directory(home))?;
        let text = serde_json::to_string_pretty(self).or_fault("disk", || "cannot describe the image".into())?;
        private_write(&file(home, hash), text.as_bytes())
    }

    /// Forgets it, once no store has it any more.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn forget(home: &Home, hash: UniqueId, store: &PeerAddress) -> Result<()> {
        let Some(mut known) = Self::load(home, hash)? else { return Ok(()) };
        known.stores.retain(|other| other.peer != store.peer);
        if !known.stores.is_empty() {
            return known.save(home, hash);
        }
        let path = file(home, hash);
        std::fs::remove_file(&path).or_fault("disk", || format!("cannot remove {}", path.display()))
    }
}

fn directory(home: &Home) -> PathBuf {
    home.root().join("images")
}

fn file(home: &Home, hash: UniqueId) -> PathBuf {
    directory(home).join(format!("{hash}.json"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_known_while_a_store_has_it() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::locate(Some(dir.path())).unwrap();
        let hash = UniqueId::from_bytes([7; 32]);
        assert_eq!(KnownImage::load(&home, hash).unwrap(), None);
        let address = |seed: u8| -> PeerAddress {
            let peer = coalition_universe::NodeKey::from_bytes([seed; 32]).peer_id();
            format!("{peer}@127.0.0.1:40{seed:02}").parse().unwrap()
        };
        let mut known = KnownImage::new("a.tar".into(), 5, 9);
        known.is_in(address(1));
        known.is_in(address(2));
        known.is_in(address(1));
        assert_eq!(known.stores, [address(2), address(1)]);
        known.save(&home, hash).unwrap();
        assert_eq!(KnownImage::load(&home, hash).unwrap(), Some(known));
        KnownImage::forget(&home, hash, &address(2)).unwrap();
        assert_eq!(KnownImage::load(&home, hash).unwrap().unwrap().stores, [address(1)]);
        KnownImage::forget(&home, hash, &address(1)).unwrap();
        assert_eq!(KnownImage::load(&home, hash).unwrap(), None);
        std::fs::write(file(&home, hash), "{").unwrap();
        assert_eq!(KnownImage::load(&home, hash).unwrap_err().code(), "image_record_damaged");
    }
}
