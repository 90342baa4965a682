//! How much a tree occupies, and removing it, whatever its shape and permissions.
//!
//! A workload makes the tree: it may be deeper than paths are long and than a process has descriptors. Nothing here names
//! a file by its path from the root, recurses, or holds a descriptor a level.

use std::collections::HashSet;
use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, openat, renameat};
use nix::libc;
use nix::sys::stat::{FchmodatFlags, FileStat, Mode, SFlag, fchmodat, fstat, fstatat};
use nix::unistd::{UnlinkatFlags, unlinkat};

/// One level of a walk: which directory it is, under which name it was found, and its subdirectories still to be looked at.
struct Level {
    name: CString,
    id: (libc::dev_t, libc::ino_t),
    left: Vec<CString>,
}

/// Bytes allocated by everything in a tree, hard links once, other file systems not at all. Directories that cannot be
/// read count as themselves only. Never follows links.
///
/// One directory is open at a time; the way back up is `..`, so that the time is linear in the tree's size.
pub fn disk_bytes(root: &Path) -> u64 {
    let Ok(mut here) = openat(AT_FDCWD, root, OPEN, Mode::empty()) else { return 0 };
    let Ok(id) = identity(&here) else { return 0 };
    let mut sum = Sum { device: id.0, total: 0, seen: HashSet::new() };
    let left = sum.add(&here);
    let mut levels = vec![Level { name: CString::default(), id, left }];
    while let Some(level) = levels.last_mut() {
        if let Some(name) = level.left.pop() {
            // Gone or moved since it was listed: the workload goes on while we look.
            let Ok(below) = open_at(&here, &name) else { continue };
            let Ok(id) = identity(&below) else { continue };
            let left = sum.add(&below);
            if !left.is_empty() {
                levels.push(Level { name, id, left });
                here = below;
            }
            continue;
        }
        levels.pop();
        let Some(above) = levels.last() else { break };
        let up = open_at(&here, c"..").ok().filter(|up| identity(up).is_ok_and(|id| id == above.id));
        match up.or_else(|| reopen(root, &mut levels)) {
            Some(up) => here = up,
            None => break,
        }
    }
    sum.total
}

/// Opens the last level anew, because somebody moved what was below it. Levels that are not there any more are dropped.
fn reopen(root: &Path, levels: &mut Vec<Level>) -> Option<OwnedFd> {
    let mut here = openat(AT_FDCWD, root, OPEN, Mode::empty()).ok()?;
    for depth in 1..levels.len() {
        let next = open_at(&here, &levels[depth].name).ok();
        match next.filter(|next| identity(next).is_ok_and(|id| id == levels[depth].id)) {
            Some(next) => here = next,
            None => {
                levels.truncate(depth);
                break;
            }
        }
    }
    Some(here)
}

fn identity(dir: &OwnedFd) -> nix::Result<(libc::dev_t, libc::ino_t)> {
    fstat(dir).map(|stat| (stat.st_dev, stat.st_ino))
}

const OPEN: OFlag = OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);

fn open_at(dir: impl AsFd, name: &CStr) -> nix::Result<OwnedFd> {
    openat(dir, name, OPEN, Mode::empty())
}

struct Sum {
    device: libc::dev_t,
    total: u64,
    seen: HashSet<libc::ino_t>,
}

impl Sum {
    /// Counts what is directly in a directory; answers its subdirectories.
    fn add(&mut self, dir: &OwnedFd) -> Vec<CString> {
        let mut below = Vec::new();
        for name in names(dir) {
            let Ok(stat) = fstatat(dir, name.as_c_str(), AtFlags::AT_SYMLINK_NOFOLLOW) else { continue };
            let is_dir = is_dir(&stat);
            if stat.st_dev != self.device || (stat.st_nlink > 1 && !is_dir && !self.seen.insert(stat.st_ino)) {
                continue;
            }
            self.total = self.total.saturating_add(u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(512));
            if is_dir {
                below.push(name);
            }
        }
        below
    }
}

fn is_dir(stat: &FileStat) -> bool {
    SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == SFlag::S_IFDIR
}

/// Names in a directory that is open; none when it cannot be read.
pub(super) fn names(dir: &OwnedFd) -> Vec<CString> {
    let Ok(entries) = std::fs::read_dir(format!("/proc/self/fd/{}", dir.as_raw_fd())) else { return Vec::new() };
    entries.flatten().filter_map(|entry| CString::new(entry.file_name().into_vec()).ok()).collect()
}

/// Removes a tree, opening directories whose permissions are in the way. A missing tree is fine.
///
/// Every directory found below the first level is moved up to it before it is emptied, so that the tree gets flat instead
/// of the removal deep. Nobody may be changing the tree any more.
pub fn remove_tree(root: &Path) -> io::Result<()> {
    let open = || openat(AT_FDCWD, root, OPEN, Mode::empty());
    let top = match open() {
        Ok(top) => top,
        Err(Errno::ENOENT) => return Ok(()),
        Err(Errno::ENOTDIR | Errno::ELOOP) => return std::fs::remove_file(root),
        Err(_) => {
            std::fs::set_permissions(root, std::fs::Permissions::from_mode(0o700))?;
            open()?
        }
    };
    let mut moved = 0;
    loop {
        let entries = names(&top);
        if entries.is_empty() {
            break;
        }
        for name in entries {
            if !unlink(&top, &name)? {
                flatten(&top, &name, &mut moved)?;
                unlinkat(&top, name.as_c_str(), UnlinkatFlags::RemoveDir)?;
            }
        }
    }
    drop(top);
    std::fs::remove_dir(root)
}

/// Removes a file; false when it is a directory.
fn unlink(dir: &OwnedFd, name: &CStr) -> io::Result<bool> {
    match unlinkat(dir, name, UnlinkatFlags::NoRemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => Ok(true),
        Err(Errno::EISDIR | Errno::EPERM) => Ok(false),
        Err(Errno::EACCES) => {
            fchmodat(dir, c".", Mode::S_IRWXU, FchmodatFlags::FollowSymlink)?;
            match unlinkat(dir, name, UnlinkatFlags::NoRemoveDir) {
                Err(Errno::EISDIR | Errno::EPERM) => Ok(false),
                done => Ok(done.map(|()| true)?),
            }
        }
        Err(errno) => Err(errno.into()),
    }
}

/// Empties a directory of the first level: its files are removed, its directories move up beside it.
fn flatten(top: &OwnedFd, name: &CStr, moved: &mut u64) -> io::Result<()> {
    // Whatever its permissions: it is ours, or we are root.
    let _ = fchmodat(top, name, Mode::S_IRWXU, FchmodatFlags::FollowSymlink);
    let dir = open_at(top, name)?;
    for entry in names(&dir) {
        if unlink(&dir, &entry)? {
            continue;
        }
        // Another parent needs another `..`, which takes permission to write the directory itself.
        let _ = fchmodat(&dir, entry.as_c_str(), Mode::S_IRWXU, FchmodatFlags::FollowSymlink);
        loop {
            *moved += 1;
            let flat = CString::new(format!(".removed-{moved}")).unwrap_or_default();
            match renameat(&dir, entry.as_c_str(), top, flat.as_c_str()) {
                Ok(()) => break,
                // The workload has used this name.
                Err(Errno::ENOTEMPTY | Errno::EEXIST | Errno::ENOTDIR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use nix::sys::stat::mkdirat;

    use super::*;

    #[test]
    fn counts_hard_links_once_and_removes_closed_directories() {
        let temp = tempfile::tempdir().unwrap();
        let root = temp.path().join("tree");
        fs::create_dir_all(root.join("a/b")).unwrap();
        fs::write(root.join("a/b/file"), vec![1u8; 1 << 20]).unwrap();
        let once = disk_bytes(&root);
        fs::hard_link(root.join("a/b/file"), root.join("a/again")).unwrap();
        assert!(once >= 1 << 20);
        assert_eq!(disk_bytes(&root), once);
        fs::set_permissions(root.join("a/b"), fs::Permissions::from_mode(0o0)).unwrap();
        remove_tree(&root).unwrap();
        assert!(!root.exists());
        remove_tree(&root).unwrap();
    }

    #[test]
    fn a_tree_deeper_than_paths_and_descriptors_is_counted_and_removed() {
        let temp = tempfile::tempdir().unwrap();
        let root = temp.path().join("tree");
        fs::create_dir_all(root.join(".removed-1/full")).unwrap();
        let mut here = openat(AT_FDCWD, &root, OPEN, Mode::empty()).unwrap();
        let name = CString::new("d".repeat(100)).unwrap();
        for _ in 0..3_000 {
            mkdirat(&here, name.as_c_str(), Mode::S_IRWXU).unwrap();
            mkdirat(&here, c"beside", Mode::S_IRWXU).unwrap();
            here = open_at(&here, &name).unwrap();
        }
        let hidden = openat(&here, c"hidden", OFlag::O_CREAT | OFlag::O_WRONLY, Mode::S_IRWXU).unwrap();
        io::Write::write_all(&mut fs::File::from(hidden), &vec![1u8; 1 << 20]).unwrap();
        drop(here);
        assert!(disk_bytes(&root) >= 1 << 20);
        remove_tree(&root).unwrap();
        assert!(!root.exists());
    }

    #[test]
    fn a_walk_finds_back_when_directories_are_moved_under_it() {
        let temp = tempfile::tempdir().unwrap();
        let root = temp.path().join("tree");
        fs::create_dir_all(root.join("a/b/c")).unwrap();
        let level = |path: &str, name: &CStr| {
            let dir = openat(AT_FDCWD, &root.join(path), OPEN, Mode::empty()).unwrap();
            Level { name: name.into(), id: identity(&dir).unwrap(), left: Vec::new() }
        };
        let levels = || vec![level("", c""), level("a", c"a"), level("a/b", c"b"), level("a/b/c", c"c")];
        let (mut whole, mut moved) = (levels(), levels());
        let found = reopen(&root, &mut whole).unwrap();
        assert_eq!((whole.len(), identity(&found).unwrap()), (4, whole[3].id));
        fs::rename(root.join("a/b"), root.join("elsewhere")).unwrap();
        let found = reopen(&root, &mut moved).unwrap();
        assert_eq!((moved.len(), identity(&found).unwrap()), (2, moved[1].id));
    }

    #[test]
    fn links_are_removed_and_not_followed() {
        let temp = tempfile::tempdir().unwrap();
        let (root, other) = (temp.path().join("tree"), temp.path().join("other"));
        fs::create_dir_all(root.join("a")).unwrap();
        fs::create_dir(&other).unwrap();
        fs::write(other.join("file"), vec![1u8; 1 << 20]).unwrap();
        std::os::unix::fs::symlink(&other, root.join("a/link")).unwrap();
        assert!(disk_bytes(&root) < 1 << 20);
        remove_tree(&root).unwrap();
        assert!(other.join("file").exists() && !root.exists());
    }
}
