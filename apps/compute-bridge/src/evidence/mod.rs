//! What clouds themselves counted of machines, signed and kept: what the `evidence` of a final log points to.
//!
//! One file per snapshot, `<data_dir>/evidence/<blake3>.telemetry`, in the form `docs/protocol/compute.md` specifies. Written whole or
//! not at all, and never changed. Kept are the newest [`KEEP`], none longer than [`KEEP_DAYS`] days.

mod show;
mod take;

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use coalition::{EvidencePointer, ProviderId, RequestId, UniqueId};
use coalition_compute::{MAX_TELEMETRY_BYTES, Signed, TelemetryError, TelemetrySnapshot, telemetry_pointer};
use serde::Serialize;

use crate::journal::GrantState;

pub use show::{Line, Shown};
pub use take::{About, Taken, Untaken};

/// Snapshots kept: as many as grants the journal remembers, and more than a provider may have live.
pub const KEEP: usize = 4_096;
/// Days a snapshot is kept at most.
pub const KEEP_DAYS: u64 = 90;
const DAY_MS: u64 = 86_400_000;
/// Ends of the files' names.
const SUFFIX: &str = "telemetry";

/// Why evidence is not kept, not found or not believed.
#[derive(Debug, thiserror::Error)]
pub enum EvidenceError {
    /// The directory, or a file in it.
    #[error("{path} cannot be {what}")]
    Io {
        /// Which.
        path: PathBuf,
        /// What was to be done.
        what: &'static str,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// It is not what it should be.
    #[error("{path} is not what it should be")]
    Bad {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: TelemetryError,
    },
    /// Nothing of that name.
    #[error(
        "{dir} has no snapshot {wanted}; expected are 64 hex digits of one that `evidence list` shows, or of a grant's id"
    )]
    Unknown {
        /// Where it was looked for.
        dir: PathBuf,
        /// What for.
        wanted: String,
    },
    /// Text that names none.
    #[error("{given:?} is no {what}; expected {expected}")]
    Name {
        /// As given, cut short.
        given: String,
        /// What it was to be.
        what: &'static str,
        /// What it looks like.
        expected: &'static str,
    },
}

/// One kept snapshot, in short.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Kept {
    /// blake3 of its bytes, as the pointer has it.
    pub digest: UniqueId,
    /// Its size in bytes.
    pub bytes: u64,
    /// The grant.
    pub grant_id: RequestId,
    /// The machine's name.
    pub instance: String,
    /// Which cloud, and its region.
    pub cloud: String,
    /// The region.
    pub region: String,
    /// When it was taken, Unix milliseconds.
    pub taken_ms: u64,
    /// The provider that signed.
    pub provider: ProviderId,
}

impl Kept {
    fn of(signed: &Signed<TelemetrySnapshot>, bytes: &[u8]) -> Self {
        let (pointer, about) = (telemetry_pointer(signed.statement.provider, bytes), &signed.statement);
        Self {
            digest: pointer.digest,
            bytes: pointer.index,
            grant_id: about.grant_id,
            instance: about.instance.clone(),
            cloud: about.cloud.clone(),
            region: about.region.clone(),
            taken_ms: about.taken_ms,
            provider: about.provider,
        }
    }

    /// One line, for an operator or a program.
    #[must_use]
    pub fn line(&self, json: bool) -> String {
        if json {
            return format!("{}\n", serde_json::to_string(self).unwrap_or_default());
        }
        let at = coalition_cloud::rfc3339(self.taken_ms / 1_000);
        format!(
            "{at}  {}  grant {}  {} on {} {}, {} bytes\n",
            self.digest, self.grant_id, self.instance, self.cloud, self.region, self.bytes
        )
    }

    /// What a log that this backs carries.
    #[must_use]
    pub fn pointer(&self) -> EvidencePointer {
        EvidencePointer {
            organism: coalition_compute::telemetry_store(self.provider),
            index: self.bytes,
            digest: self.digest,
        }
    }
}

/// The store of one bridge.
pub struct EvidenceStore {
    dir: PathBuf,
    kept: Mutex<BTreeMap<UniqueId, Kept>>,
}

fn io_error(path: &Path, what: &'static str) -> impl Fn(io::Error) -> EvidenceError {
    move |source| EvidenceError::Io { path: path.into(), what, source }
}

impl EvidenceStore {
    /// Opens or makes the store in a bridge's data directory. Files that are no snapshots are left alone, and said.
    ///
    /// # Errors
    /// [`EvidenceError::Io`].
    pub fn open(data_dir: &Path) -> Result<Self, EvidenceError> {
        let dir = data_dir.join("evidence");
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir).map_err(io_error(&dir, "made"))?;
        let kept = list(data_dir)?.into_iter().map(|kept| (kept.digest, kept)).collect();
        let store = Self { dir, kept: Mutex::new(kept) };
        store.drop_old(crate::now_ms())?;
        Ok(store)
    }

    fn with<R>(&self, act: impl FnOnce(&mut BTreeMap<UniqueId, Kept>) -> R) -> R {
        act(&mut self.kept.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Keeps a snapshot; when this returns, it survives any crash.
    ///
    /// # Errors
    /// [`EvidenceError::Io`].
    pub fn keep(&self, signed: &Signed<TelemetrySnapshot>) -> Result<Kept, EvidenceError> {
        let bytes = TelemetrySnapshot::bytes(signed);
        let kept = Kept::of(signed, &bytes);
        let path = path_of(&self.dir, kept.digest);
        write_whole(&path, &bytes).map_err(io_error(&path, "written"))?;
        self.with(|all| all.insert(kept.digest, kept.clone()));
        self.drop_old(kept.taken_ms)?;
        Ok(kept)
    }

    /// What the log of a grant points to: the snapshot of the machine that ran for it, and of no other that was tried before; where
    /// none ran, the newest of those that were tried.
    #[must_use]
    pub fn of_log(&self, state: &GrantState) -> Option<Kept> {
        let ran = state.attempts.last().filter(|last| last.failed.is_none()).map(|last| last.instance.as_str());
        let grant = state.grant.request_id;
        let is_meant = |kept: &&Kept| kept.grant_id == grant && ran.is_none_or(|name| kept.instance == name);
        self.with(|all| all.values().filter(is_meant).max_by_key(|kept| kept.taken_ms).cloned())
    }

    fn drop_old(&self, now_ms: u64) -> Result<(), EvidenceError> {
        let old: Vec<UniqueId> = self.with(|all| {
            let mut by_age: Vec<(u64, UniqueId)> = all.values().map(|kept| (kept.taken_ms, kept.digest)).collect();
            by_age.sort_unstable();
            let surplus = by_age.len().saturating_sub(KEEP);
            let is_old = |(n, (taken_ms, _)): &(usize, (u64, UniqueId))| {
                *n < surplus || taken_ms.saturating_add(KEEP_DAYS * DAY_MS) < now_ms
            };
            by_age.into_iter().enumerate().filter(is_old).map(|(_, (_, digest))| digest).collect()
        });
        for digest in old {
            let path = path_of(&self.dir, digest);
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(io_error(&path, "removed")(error)),
                _ => drop(self.with(|all| all.remove(&digest))),
            }
        }
        Ok(())
    }
}

fn path_of(dir: &Path, digest: UniqueId) -> PathBuf {
    dir.join(format!("{}.{SUFFIX}", hex::encode(digest.as_bytes())))
}

fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let draft = path.with_extension("new");
    let _ = fs::remove_file(&draft);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&draft, path)?;
    path.parent().map_or(Ok(()), |dir| File::open(dir)?.sync_all())
}

/// Reads a file that may be a snapshot, no more of it than one can have.
///
/// # Errors
/// [`EvidenceError::Io`].
pub fn read_file(path: &Path) -> Result<Vec<u8>, EvidenceError> {
    let file = File::open(path).map_err(io_error(path, "opened"))?;
    let mut bytes = Vec::new();
    file.take(MAX_TELEMETRY_BYTES as u64 + 1).read_to_end(&mut bytes).map_err(io_error(path, "read"))?;
    Ok(bytes)
}

/// What is kept in a bridge's data directory, oldest first; its bridge may be running. Files that are no snapshots are left out,
/// and said.
///
/// # Errors
/// [`EvidenceError::Io`] when the directory cannot be read; one that is not there holds nothing.
pub fn list(data_dir: &Path) -> Result<Vec<Kept>, EvidenceError> {
    let dir = data_dir.join("evidence");
    let entries = match fs::read_dir(&dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(io_error(&dir, "read"))?,
    };
    let mut all = Vec::new();
    for entry in entries {
        let path = entry.map_err(io_error(&dir, "read"))?.path();
        if path.extension().is_none_or(|end| end != SUFFIX) {
            continue;
        }
        let read = read_file(&path).and_then(|bytes| {
            let signed = TelemetrySnapshot::read(&bytes);
            let signed = signed.map_err(|source| EvidenceError::Bad { path: path.clone(), source })?;
            Ok(Kept::of(&signed, &bytes))
        });
        match read {
            Ok(kept) if path_of(&dir, kept.digest) == path => all.push(kept),
            Ok(kept) => {
                tracing::warn!(path = %path.display(), digest = %kept.digest, "a snapshot under another's name is left out")
            }
            Err(error) => {
                tracing::warn!(error = %crate::fleet::chain(&error), "a file that is no snapshot is left out")
            }
        }
    }
    all.sort_by_key(|kept| (kept.taken_ms, kept.digest));
    Ok(all)
}

/// An id as 64 hex digits.
///
/// # Errors
/// [`EvidenceError::Name`].
pub fn parse_id(what: &'static str, text: &str) -> Result<UniqueId, EvidenceError> {
    let bytes = hex::decode(text).ok().and_then(|bytes| <[u8; 32]>::try_from(bytes).ok());
    let given = || text.chars().take(80).collect();
    let bytes = bytes.ok_or_else(|| EvidenceError::Name { given: given(), what, expected: "64 hex digits" })?;
    Ok(UniqueId::from_bytes(bytes))
}

/// The snapshot of this digest, or the newest of this grant, with its signature checked.
///
/// # Errors
/// [`EvidenceError`].
pub fn find(data_dir: &Path, wanted: &str) -> Result<(Kept, Signed<TelemetrySnapshot>), EvidenceError> {
    let id = parse_id("snapshot or grant", wanted)?;
    let all = list(data_dir)?;
    let is_wanted = |kept: &&Kept| kept.digest == id || kept.grant_id == RequestId(id);
    let dir = data_dir.join("evidence");
    let unknown = || EvidenceError::Unknown { dir: dir.clone(), wanted: wanted.to_owned() };
    let kept = all.iter().rev().find(is_wanted).cloned().ok_or_else(unknown)?;
    let path = path_of(&dir, kept.digest);
    let signed = verify(&path, kept.digest, kept.provider)?;
    Ok((kept, signed))
}

/// Checks a file against what a log's pointer and its provider say.
///
/// # Errors
/// [`EvidenceError`].
pub fn verify(path: &Path, digest: UniqueId, provider: ProviderId) -> Result<Signed<TelemetrySnapshot>, EvidenceError> {
    let bytes = read_file(path)?;
    TelemetrySnapshot::verify(&bytes, digest, provider)
        .map_err(|source| EvidenceError::Bad { path: path.into(), source })
}
