//! Which archive entries become which files. Pure.

/// Longest path, in bytes.
const MAX_PATH: usize = 4096;
/// Deepest path, in components.
const MAX_DEPTH: usize = 128;
/// Longest component, in bytes.
const MAX_NAME: usize = 255;
/// Most entries in one archive.
const MAX_ENTRIES: u64 = 1_000_000;
/// What an entry costs besides its contents, so that a billion empty files are not free.
pub const ENTRY_COST: u64 = 256;
/// What a directory takes of the disk, whatever is in it.
pub const DIRECTORY_BYTES: u64 = 4096;

/// Entry types, as far as they matter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A hard link to an earlier entry.
    HardLink,
    /// A device node, pipe or anything else that is not data.
    Special,
}

/// One archive entry as read, names still bytes.
#[derive(Clone, Debug)]
pub struct Header<'a> {
    /// Its path.
    pub path: &'a [u8],
    /// Its type.
    pub kind: EntryKind,
    /// Content size, bytes.
    pub size: u64,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u64,
    /// Group.
    pub gid: u64,
    /// Link target, for links.
    pub link: &'a [u8],
}

/// What to create.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Planned {
    /// Nothing: the entry is harmless and of no use inside.
    Skip,
    /// A directory with these permissions.
    Directory {
        /// Path below the root, never empty.
        path: Vec<Vec<u8>>,
        /// Permissions, always including the owner's.
        mode: u32,
    },
    /// A file of this size.
    File {
        /// Path below the root, never empty.
        path: Vec<Vec<u8>>,
        /// Permissions without set-uid, set-gid and sticky bits.
        mode: u32,
        /// Size in bytes.
        size: u64,
    },
    /// A symbolic link; its target is a text that only the workload will ever follow.
    Symlink {
        /// Path below the root, never empty.
        path: Vec<Vec<u8>>,
        /// The text.
        target: Vec<u8>,
    },
    /// Another name of a file unpacked before.
    HardLink {
        /// Path below the root, never empty.
        path: Vec<Vec<u8>>,
        /// Path of the file below the root, never empty.
        target: Vec<Vec<u8>>,
    },
}

/// Splits an archive path into components below the root. Leading slashes and `.` components mean nothing; `..` is
/// refused wherever it leads, because no tool that packs a root file system writes it.
fn components(path: &[u8]) -> Result<Vec<Vec<u8>>, String> {
    if path.len() > MAX_PATH {
        return Err(format!("its path has {} bytes, at most {MAX_PATH} are taken", path.len()));
    }
    if path.contains(&0) {
        return Err("its path contains a zero byte".into());
    }
    let parts: Vec<Vec<u8>> =
        path.split(|b| *b == b'/').filter(|c| !c.is_empty() && *c != b".").map(<[u8]>::to_vec).collect();
    if parts.iter().any(|c| c == b"..") {
        return Err("its path contains \"..\" and could leave the root file system".into());
    }
    if parts.len() > MAX_DEPTH {
        return Err(format!("it lies {} directories deep, at most {MAX_DEPTH} are taken", parts.len()));
    }
    if parts.iter().any(|c| c.len() > MAX_NAME) {
        return Err(format!("a name in its path is longer than {MAX_NAME} bytes"));
    }
    Ok(parts)
}

/// Decides about one entry. The error says what is wrong with it.
pub fn plan(header: &Header<'_>) -> Result<Planned, String> {
    let path = components(header.path)?;
    let Some(first) = path.first() else {
        // "./", the root itself: it is there already.
        return if header.kind == EntryKind::Directory {
            Ok(Planned::Skip)
        } else {
            Err("it names the root itself and is not a directory".into())
        };
    };
    // A private /dev is mounted over whatever the image has there.
    if first == b"dev" && (path.len() > 1 || header.kind == EntryKind::Special) {
        return Ok(Planned::Skip);
    }
    match header.kind {
        EntryKind::Directory => Ok(Planned::Directory { path, mode: (header.mode & 0o1777) | 0o700 }),
        EntryKind::File => Ok(Planned::File { path, mode: (header.mode & 0o777) | 0o600, size: header.size }),
        EntryKind::Symlink => plan_symlink(path, header.link),
        EntryKind::HardLink => {
            let target = components(header.link).map_err(|e| format!("as a link target, {e}"))?;
            if target.is_empty() || target == path {
                return Err("it is a hard link to the root or to itself".into());
            }
            Ok(Planned::HardLink { path, target })
        }
        EntryKind::Special => Err("device nodes and pipes are not unpacked outside /dev".into()),
    }
}

/// What a layer of an OCI image takes away from those below it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Whiteout {
    /// This path.
    Path(Vec<Vec<u8>>),
    /// Everything in this directory.
    Contents(Vec<Vec<u8>>),
}

/// The whiteout that an entry of this path is (OCI image-spec, layer.md), or none when it is an ordinary entry. The
/// error says what is wrong with it.
pub fn whiteout(path: &[u8]) -> Result<Option<Whiteout>, String> {
    let last = path.rsplit(|b| *b == b'/').find(|c| !c.is_empty()).unwrap_or_default();
    let Some(hidden) = last.strip_prefix(b".wh.") else { return Ok(None) };
    let mut parts = components(path)?;
    parts.pop();
    if hidden == b".wh..opq" {
        return Ok(Some(Whiteout::Contents(parts)));
    }
    if hidden.is_empty() || hidden == b"." || hidden == b".." || hidden.starts_with(b".wh.") {
        return Err("it is no whiteout that a host knows".into());
    }
    parts.push(hidden.to_vec());
    Ok(Some(Whiteout::Path(parts)))
}

fn plan_symlink(path: Vec<Vec<u8>>, target: &[u8]) -> Result<Planned, String> {
    if target.is_empty() || target.len() > MAX_PATH || target.contains(&0) {
        return Err("its link target is empty, too long or contains a zero byte".into());
    }
    Ok(Planned::Symlink { path, target: target.to_vec() })
}

/// The owner a file gets, 16 bits: ids beyond mean `nobody`.
pub(super) fn owner(id: u64) -> u32 {
    u32::try_from(id).ok().filter(|id| *id < 65_536).unwrap_or(65_534)
}

/// How much more may be unpacked.
#[derive(Clone, Debug)]
pub struct Budget {
    bytes_left: u64,
    entries_left: u64,
}

impl Budget {
    /// `disk_mib` for everything together.
    pub fn new(disk_mib: u64) -> Self {
        Self { bytes_left: disk_mib.saturating_mul(1024 * 1024), entries_left: MAX_ENTRIES }
    }

    /// Takes an entry of `size` content bytes; false when there is no room for it.
    #[must_use]
    pub fn take(&mut self, size: u64) -> bool {
        let cost = size.saturating_add(ENTRY_COST);
        if self.entries_left == 0 || cost > self.bytes_left {
            return false;
        }
        self.entries_left -= 1;
        self.bytes_left -= cost;
        true
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn header<'a>(path: &'a [u8], kind: EntryKind, link: &'a [u8]) -> Header<'a> {
        Header { path, kind, size: 3, mode: 0o6755, uid: 0, gid: 0, link }
    }

    fn text(parts: &[&str]) -> Vec<Vec<u8>> {
        parts.iter().map(|p| p.as_bytes().to_vec()).collect()
    }

    #[test]
    fn ordinary_entries_lose_set_uid_bits() {
        let file = plan(&header(b"./bin/su", EntryKind::File, b"")).unwrap();
        assert_eq!(file, Planned::File { path: text(&["bin", "su"]), mode: 0o755, size: 3 });
        let dir = plan(&header(b"/var/", EntryKind::Directory, b"")).unwrap();
        assert_eq!(dir, Planned::Directory { path: text(&["var"]), mode: 0o755 });
        assert_eq!(plan(&header(b"./", EntryKind::Directory, b"")).unwrap(), Planned::Skip);
    }

    #[test]
    fn escapes_are_refused() {
        for path in [&b"../etc/passwd"[..], b"a/../../b", b"/..", b"a/b/.."] {
            let error = plan(&header(path, EntryKind::File, b"")).unwrap_err();
            assert!(error.contains(".."), "{error}");
        }
        assert!(plan(&header(b"x", EntryKind::HardLink, b"../../etc/shadow")).is_err());
        assert!(plan(&header(b"x", EntryKind::HardLink, b"/")).is_err());
        assert!(plan(&header(b"disk", EntryKind::Special, b"")).is_err());
        assert!(plan(&header(b".", EntryKind::Symlink, b"/etc")).is_err());
        assert_eq!(plan(&header(b"dev/sda", EntryKind::Special, b"")).unwrap(), Planned::Skip);
    }

    #[test]
    fn whiteouts_name_what_is_below_the_root() {
        let parts = text(&["a", "b"]);
        assert_eq!(whiteout(b"a/.wh.b").unwrap(), Some(Whiteout::Path(parts.clone())));
        assert_eq!(whiteout(b"./a/b/.wh..wh..opq").unwrap(), Some(Whiteout::Contents(parts)));
        assert_eq!(whiteout(b".wh..wh..opq").unwrap(), Some(Whiteout::Contents(vec![])));
        assert_eq!(whiteout(b"a/b").unwrap(), None);
        for bad in [&b"a/.wh..."[..], b".wh..", b"a/.wh.", b"../.wh.b", b".wh..wh.plnk"] {
            assert!(whiteout(bad).is_err(), "{}", String::from_utf8_lossy(bad));
        }
    }

    #[test]
    fn a_budget_counts_empty_files_too() {
        let mut budget = Budget::new(1);
        let taken = (0..10_000).take_while(|_| budget.take(0)).count();
        assert_eq!(taken, 4096);
        assert!(!Budget::new(1).take(u64::MAX));
    }

    fn any_kind() -> impl Strategy<Value = EntryKind> {
        prop_oneof![
            Just(EntryKind::File),
            Just(EntryKind::Directory),
            Just(EntryKind::Symlink),
            Just(EntryKind::HardLink),
            Just(EntryKind::Special)
        ]
    }

    fn safe(path: &[Vec<u8>]) -> bool {
        !path.is_empty()
            && path.iter().all(|c| !c.is_empty() && c != b"." && c != b".." && !c.contains(&b'/') && !c.contains(&0))
    }

    proptest! {
        #[test]
        fn whatever_is_planned_stays_below_the_root(
            path in "[a./\\x00]{0,40}", link in "[a./\\x00]{0,40}", kind in any_kind(), mode in any::<u32>()) {
            let header = Header { path: path.as_bytes(), kind, size: 1, mode, uid: 0, gid: 0, link: link.as_bytes() };
            match plan(&header) {
                Err(_) | Ok(Planned::Skip) => {}
                Ok(Planned::Directory { path, mode }) => prop_assert!(safe(&path) && mode & 0o6000 == 0),
                Ok(Planned::File { path, mode, .. }) => prop_assert!(safe(&path) && mode & !0o777 == 0),
                Ok(Planned::Symlink { path, target }) => prop_assert!(safe(&path) && !target.is_empty()),
                Ok(Planned::HardLink { path, target }) => prop_assert!(safe(&path) && safe(&target)),
            }
        }
    }
}
