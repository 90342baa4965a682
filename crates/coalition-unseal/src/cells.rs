//! The cells a member holds, on disk: what it acknowledged is still there when its process was killed.
//!
//! One file per cell, `<expiry, Unix ms, 20 digits>-<cell id, 64 hex digits>.cell`, whose content is the cell's 4,096 bytes.
//! The id is the hash of the content, so a file proves itself; the expiry is in the name, so holding a cell longer is a
//! rename. A file is complete before it has its name: written aside, synced, renamed, and the directory synced. Nothing
//! tells who submitted a cell. Only what the machine holds is kept, so its limits bound the directory as well.

use std::{
    collections::BTreeMap,
    fs::{self, DirBuilder, File, OpenOptions, TryLockError},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use coalition::UniqueId;
use coalition_shuffle::{CellId, Member};

const DIR_MODE: u32 = 0o700;
const FILE_MODE: u32 = 0o600;
/// Longest file that is read back; one byte more than a cell, so that a longer one is seen to be none.
const READ_BYTES: u64 = 4_097;
const SUFFIX: &str = ".cell";
const PARTIAL: &str = "partial";

/// Why a member cannot keep its cells. Fatal: the member must stop.
#[derive(Debug, thiserror::Error)]
pub enum CellStoreError {
    /// Another process keeps cells there.
    #[error("another member is using {}; stop it first, or give this one its own data directory", .0.display())]
    Busy(PathBuf),
    /// No room.
    #[error(
        "the disk of {} is full: nothing more can be accepted. Free some space there and start the member again; what it \
         accepted before is kept",
        .path.display()
    )]
    Full {
        /// What could not be written.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The disk refuses.
    #[error("cannot {doing} {}", .path.display())]
    Io {
        /// What was tried.
        doing: &'static str,
        /// On which path.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

fn failed(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> CellStoreError {
    let path = path.to_path_buf();
    move |source| match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => CellStoreError::Full { path, source },
        _ => CellStoreError::Io { doing, path, source },
    }
}

/// The directory of one member's cells.
#[derive(Debug)]
pub(crate) struct CellFiles {
    dir: PathBuf,
    /// Until when each cell on disk is held.
    held: BTreeMap<CellId, u64>,
    /// Held while this process uses the directory; released by the kernel however it ends.
    _lock: File,
}

impl CellFiles {
    /// Opens the directory, making it if it is not there, and gives the machine every cell that is not expired. A file that
    /// is no cell of this committee is named in the log and removed; its cell may be submitted again.
    pub(crate) fn open(dir: &Path, machine: &mut Member, now_ms: u64) -> Result<Self, CellStoreError> {
        let make = |path: &Path| DirBuilder::new().recursive(true).mode(DIR_MODE).create(path);
        make(dir).map_err(failed("make directory", dir))?;
        let lock = lock(dir)?;
        let mut files = Self { dir: dir.to_path_buf(), held: BTreeMap::new(), _lock: lock };
        for entry in fs::read_dir(dir).map_err(failed("read directory", dir))? {
            let path = entry.map_err(failed("read directory", dir))?.path();
            if path.extension().is_some_and(|extension| extension == PARTIAL) {
                // Never had its name, so it was never acknowledged.
                fs::remove_file(&path).map_err(failed("remove", &path))?;
            } else if let Some((expires_at_ms, cell)) = path.file_name().and_then(|name| parse(name.to_str()?)) {
                files.take_up(&path, expires_at_ms, cell, machine, now_ms)?;
            }
        }
        files.sweep(now_ms)?;
        Ok(files)
    }

    fn take_up(
        &mut self,
        path: &Path,
        expires_at_ms: u64,
        cell: CellId,
        machine: &mut Member,
        now_ms: u64,
    ) -> Result<(), CellStoreError> {
        if let Some(known) = self.held.insert(cell, expires_at_ms) {
            // Two names of one cell: a crash between two renames cannot make them, a copied directory can.
            let (longer, shorter) = (known.max(expires_at_ms), known.min(expires_at_ms));
            self.held.insert(cell, longer);
            let path = self.path(shorter, cell);
            return fs::remove_file(&path).map_err(failed("remove", &path));
        }
        if expires_at_ms <= now_ms {
            return Ok(());
        }
        let bytes = read(path).map_err(failed("read", path))?;
        let restored = if CellId(UniqueId::hash(&bytes)) == cell {
            machine.restore_cell(now_ms, expires_at_ms, &bytes).map_err(|refusal| refusal.to_string())
        } else {
            Err("its content is not what its name says".to_owned())
        };
        if let Err(problem) = restored {
            tracing::warn!(file = %path.display(), problem, "a kept cell cannot be used; submitting it again mends it");
            self.held.remove(&cell);
            fs::remove_file(path).map_err(failed("remove", path))?;
        }
        Ok(())
    }

    /// Makes sure that the cell is on disk and held at least until then. When it returns, that survives a crash.
    pub(crate) fn hold(&mut self, cell: CellId, expires_at_ms: u64, bytes: &[u8]) -> Result<(), CellStoreError> {
        let path = self.path(expires_at_ms, cell);
        match self.held.get(&cell) {
            Some(held) if *held >= expires_at_ms => return Ok(()),
            Some(held) => {
                let before = self.path(*held, cell);
                fs::rename(&before, &path).map_err(failed("rename", &before))?;
            }
            None => self.write(&path, bytes)?,
        }
        File::open(&self.dir).and_then(|dir| dir.sync_all()).map_err(failed("sync", &self.dir))?;
        self.held.insert(cell, expires_at_ms);
        Ok(())
    }

    fn write(&self, path: &Path, bytes: &[u8]) -> Result<(), CellStoreError> {
        let partial = path.with_extension(PARTIAL);
        let write = || {
            let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(FILE_MODE).open(&partial)?;
            file.write_all(bytes)?;
            file.sync_all()?;
            fs::rename(&partial, path)
        };
        write().map_err(|error| {
            // Makes room at least for what is not kept.
            let _ = fs::remove_file(&partial);
            failed("write", path)(error)
        })
    }

    /// Removes what has expired.
    pub(crate) fn sweep(&mut self, now_ms: u64) -> Result<(), CellStoreError> {
        let expired: Vec<(CellId, u64)> =
            self.held.iter().filter(|(_, at)| **at <= now_ms).map(|(cell, at)| (*cell, *at)).collect();
        for (cell, at) in expired {
            let path = self.path(at, cell);
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed("remove", &path)(error)),
                _ => self.held.remove(&cell),
            };
        }
        Ok(())
    }

    fn path(&self, expires_at_ms: u64, cell: CellId) -> PathBuf {
        self.dir.join(format!("{expires_at_ms:020}-{}{SUFFIX}", cell.0))
    }
}

fn lock(dir: &Path) -> Result<File, CellStoreError> {
    let path = dir.join("lock");
    let opened = OpenOptions::new().write(true).create(true).truncate(false).mode(FILE_MODE).open(&path);
    let file = opened.map_err(failed("open", &path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(CellStoreError::Busy(dir.to_path_buf())),
        Err(TryLockError::Error(error)) => Err(failed("lock", &path)(error)),
    }
}

fn parse(name: &str) -> Option<(u64, CellId)> {
    let (expires, id) = name.strip_suffix(SUFFIX)?.split_once('-')?;
    let canonical = expires.len() == 20 && expires.bytes().all(|b| b.is_ascii_digit()) && id.len() == 64;
    Some((expires.parse().ok().filter(|_| canonical)?, CellId(coalition::parse_id(id).ok()?)))
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    use io::Read;
    let mut bytes = Vec::new();
    File::open(path)?.take(READ_BYTES).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use coalition::RequestId;
    use coalition_shuffle::{
        CellScope, DealerOutput, Envelope, MemberLimits, ReceiverKey, RotatingPeer, SealedRequest, WorkloadSpec,
    };
    use rand_core::OsRng;

    use super::*;

    const NOW: u64 = 1_000_000;

    fn scope() -> CellScope {
        CellScope { coalition: UniqueId::hash(b"coalition"), compute: UniqueId::hash(b"compute") }
    }

    struct World {
        dir: tempfile::TempDir,
        dealt: DealerOutput,
    }

    impl World {
        fn new() -> Self {
            Self { dir: tempfile::tempdir().unwrap(), dealt: DealerOutput::deal(1, 1, &mut OsRng).unwrap() }
        }

        fn member(&self) -> Member {
            let share = self.dealt.shares[0].clone();
            Member::new(self.dealt.params.clone(), share, scope(), MemberLimits::default()).unwrap()
        }

        /// A member started on what the directory holds, at this time.
        fn start(&self, now_ms: u64) -> (CellFiles, Member) {
            let mut member = self.member();
            let files = CellFiles::open(&self.cells(), &mut member, now_ms).unwrap();
            (files, member)
        }

        fn cells(&self) -> PathBuf {
            self.dir.path().join("cells")
        }

        fn cell(&self, n: u8) -> (CellId, Vec<u8>) {
            let workload = WorkloadSpec {
                image_hash: UniqueId::hash(&[n]),
                image_size_bytes: 1,
                requested_region: None,
                image_pointer: vec![],
                cpu_millicores: 1,
                ram_mib: 1,
                disk_mib: 0,
                command: vec![],
                env: vec![],
                ssh_authorized_key: None,
            };
            let peer_x25519 = ReceiverKey::generate(&mut OsRng).public();
            let envelope = Envelope { peer_id: RotatingPeer::from_bytes([n; 32]), peer_x25519, workload };
            let request = RequestId(UniqueId::hash(&[n, n]));
            let sealed = SealedRequest::build(&envelope, &self.dealt.params, &scope(), request, &mut OsRng).unwrap();
            (sealed.cell.id(), sealed.cell.as_bytes().to_vec())
        }

        fn names(&self) -> Vec<String> {
            let entries = fs::read_dir(self.cells()).unwrap();
            let mut names: Vec<String> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
            names.retain(|name| name != "lock");
            names.sort();
            names
        }
    }

    #[test]
    fn cells_come_back_until_they_expire() {
        let world = World::new();
        let ((one, one_bytes), (two, two_bytes)) = (world.cell(1), world.cell(2));
        let (mut files, _) = world.start(NOW);
        files.hold(one, NOW + 1_000, &one_bytes).unwrap();
        files.hold(one, NOW + 1_000, &one_bytes).unwrap();
        files.hold(two, NOW + 2_000, &two_bytes).unwrap();
        // A grant makes it last longer; nothing makes it last shorter.
        files.hold(one, NOW + 9_000, &one_bytes).unwrap();
        files.hold(one, NOW + 5_000, &one_bytes).unwrap();
        assert_eq!(world.names().len(), 2);
        for entry in fs::read_dir(world.cells()).unwrap() {
            assert_eq!(entry.unwrap().metadata().unwrap().permissions().mode() & 0o077, 0);
        }
        drop(files);
        let (mut files, member) = world.start(NOW + 100);
        let mut held: Vec<u64> = member.export_cells().map(|(at, _)| at).collect();
        held.sort_unstable();
        assert_eq!(held, [NOW + 2_000, NOW + 9_000]);
        files.sweep(NOW + 2_000).unwrap();
        assert_eq!(world.names().len(), 1);
        drop(files);
        let (_files, member) = world.start(NOW + 9_000);
        assert_eq!((member.stats().cells, world.names().len()), (0, 0));
    }

    #[test]
    fn what_a_crash_leaves_is_not_a_cell_and_damage_is_not_believed() {
        let world = World::new();
        let ((one, one_bytes), (two, mut two_bytes)) = (world.cell(1), world.cell(2));
        let (mut files, _) = world.start(NOW);
        files.hold(one, NOW + 1_000, &one_bytes).unwrap();
        two_bytes[100] ^= 1;
        files.hold(two, NOW + 1_000, &two_bytes).unwrap();
        drop(files);
        fs::write(world.cells().join("00000000000001001000-ab.partial"), &one_bytes[..9]).unwrap();
        fs::write(world.cells().join("notes.txt"), "somebody's").unwrap();
        let (mut files, member) = world.start(NOW);
        assert_eq!(member.stats().cells, 1);
        assert_eq!(world.names().len(), 2, "{:?}", world.names());
        // The damaged one can be submitted again.
        two_bytes[100] ^= 1;
        files.hold(two, NOW + 1_000, &two_bytes).unwrap();
        drop(files);
        assert_eq!(world.start(NOW).1.stats().cells, 2);
    }

    #[test]
    fn one_process_at_a_time() {
        let world = World::new();
        let (_files, _) = world.start(NOW);
        let refused = CellFiles::open(&world.cells(), &mut world.member(), NOW).unwrap_err();
        assert!(matches!(&refused, CellStoreError::Busy(_)) && refused.to_string().contains("another member"));
    }

    #[test]
    fn a_disk_that_refuses_is_named() {
        let world = World::new();
        let (cell, bytes) = world.cell(1);
        let (mut files, _) = world.start(NOW);
        fs::remove_dir_all(world.cells()).unwrap();
        let refused = files.hold(cell, NOW + 1, &bytes).unwrap_err();
        assert!(refused.to_string().contains(world.cells().to_str().unwrap()), "{refused}");
        let full = failed("write", Path::new("/data/x"))(io::ErrorKind::StorageFull.into());
        assert!(full.to_string().contains("/data/x is full") && full.to_string().contains("Free some space"), "{full}");
    }
}
