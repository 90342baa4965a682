//! The files of states beside a log: written whole or not at all, the last two kept, a bad one set aside.

use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

use super::StoreError;
use super::files::{fatal, replace_durably, sync, unreadable};
use crate::state::MAX_STATE_BYTES;

const STATES_DIR: &str = "state";
/// How many states are kept: the newest, and the one before in case the newest turns out damaged or not certified yet.
const KEPT: usize = 2;

/// The states kept beside one log. Cheap to clone, usable from any thread.
#[derive(Clone, Debug)]
pub struct States {
    dir: PathBuf,
}

impl States {
    pub(super) fn beside(log: &Path) -> Self {
        Self { dir: log.join(STATES_DIR) }
    }

    /// The file of the state after `covers` entries.
    pub fn path(&self, covers: u64) -> PathBuf {
        self.dir.join(format!("{covers:020}"))
    }

    /// What the kept states cover, newest first.
    ///
    /// # Errors
    /// [`StoreError::Read`].
    pub fn list(&self) -> Result<Vec<u64>, StoreError> {
        let files = match fs::read_dir(&self.dir) {
            Ok(files) => files,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(unreadable(&self.dir)(e)),
        };
        let mut found = Vec::new();
        for file in files {
            let name = file.map_err(unreadable(&self.dir))?.file_name();
            let name = name.to_string_lossy();
            let is_state = name.len() == 20 && name.bytes().all(|byte| byte.is_ascii_digit());
            found.extend(is_state.then(|| name.parse::<u64>().ok()).flatten());
        }
        found.sort_unstable_by(|a: &u64, b| b.cmp(a));
        Ok(found)
    }

    /// A whole state.
    ///
    /// # Errors
    /// [`StoreError::Read`], [`StoreError::Malformed`] when the file is longer than any state.
    pub fn read(&self, covers: u64) -> Result<Vec<u8>, StoreError> {
        let path = self.path(covers);
        let length = fs::metadata(&path).map_err(unreadable(&path))?.len();
        if length > MAX_STATE_BYTES as u64 {
            let reason = "it is longer than any state";
            return Err(StoreError::Malformed { path, offset: MAX_STATE_BYTES as u64, reason });
        }
        fs::read(&path).map_err(unreadable(&path))
    }

    /// At most `length` bytes of a state, from `offset` on; unverified.
    ///
    /// # Errors
    /// [`StoreError::Read`].
    pub fn read_part(&self, covers: u64, offset: u64, length: usize) -> Result<Vec<u8>, StoreError> {
        let path = self.path(covers);
        let read = || {
            let mut file = File::open(&path)?;
            file.seek(SeekFrom::Start(offset))?;
            let mut part = Vec::new();
            file.take(length as u64).read_to_end(&mut part)?;
            Ok(part)
        };
        read().map_err(unreadable(&path))
    }

    /// Keeps a state durably, and drops all but the last two and the one that `usable` names.
    pub(super) fn put(&self, covers: u64, state: &[u8], usable: Option<u64>) -> Result<(), StoreError> {
        if !self.dir.is_dir() {
            fs::create_dir_all(&self.dir).map_err(fatal("create directory", &self.dir))?;
            self.dir.parent().map_or(Ok(()), sync)?;
        }
        replace_durably(&self.path(covers), state)?;
        for old in self.list()?.into_iter().skip(KEPT).filter(|old| Some(*old) != usable) {
            remove(&self.path(old))?;
        }
        self.drop_unfinished()
    }

    /// Removes what a crash left of a state that was being written. Nothing is being written now.
    fn drop_unfinished(&self) -> Result<(), StoreError> {
        for file in fs::read_dir(&self.dir).map_err(unreadable(&self.dir))? {
            let path = file.map_err(unreadable(&self.dir))?.path();
            if path.extension().is_some_and(|extension| extension == "new") {
                remove(&path)?;
            }
        }
        Ok(())
    }

    /// Renames a state that is not what was certified, so that it is neither used nor served nor lost for inspection.
    /// Answers its new path.
    ///
    /// # Errors
    /// [`StoreError::Fatal`].
    pub fn set_aside(&self, covers: u64) -> Result<PathBuf, StoreError> {
        let path = self.path(covers);
        let aside = path.with_extension("damaged");
        fs::rename(&path, &aside).map_err(fatal("rename", &path))?;
        sync(&self.dir)?;
        Ok(aside)
    }
}

fn remove(path: &Path) -> Result<(), StoreError> {
    fs::remove_file(path).map_err(fatal("remove", path))
}
