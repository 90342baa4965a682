//! Unpacking an archive into a fresh directory. Every path is walked component by component without following links,
//! so nothing an archive says can make us write elsewhere.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use flate2::read::MultiGzDecoder;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{FchmodatFlags, Mode, SFlag, fchmod, fchmodat, fstatat, mkdirat};
use nix::unistd::{Gid, LinkatFlags, Uid, UnlinkatFlags, fchownat, linkat, symlinkat, unlinkat};
use tar::EntryType;

use super::archive::{OciImage, find_oci};
use super::oci::ImageConfig;
use super::policy::{Budget, DIRECTORY_BYTES, EntryKind, Header, Planned, Whiteout, owner, plan, whiteout};
use super::usage::{names, remove_tree};
use crate::error::{Result, RunnerError};

/// Longest long name or extended header believed.
const MAX_META: u64 = 64 * 1024;
/// Bytes of an image that are copied at once.
const PIECE_BYTES: usize = 256 * 1024;
/// Most whiteouts of one layer.
const MAX_WHITEOUTS: usize = 1_000_000;

/// Who owns unpacked files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// Whoever runs us; only root can do otherwise.
    Ourselves,
    /// This host uid plus the archive's uid.
    From(u32),
}

/// What was unpacked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unpacked {
    /// Entries created.
    pub entries: u64,
    /// Content bytes.
    pub bytes: u64,
    /// How the image wants to be run; says nothing for a plain root file system.
    pub config: ImageConfig,
}

/// An image that is open: the bytes that are unpacked must be the bytes named.
#[derive(Debug)]
pub struct ImageFile {
    /// The file, or a block device that begins with the image.
    pub file: File,
    /// Bytes of the image.
    pub size: u64,
    /// BLAKE3 of these bytes.
    pub hash: blake3::Hash,
}

/// Opens an image and checks size and BLAKE3 before anybody looks inside.
pub fn open_verified(path: &Path, size: u64, hash: &blake3::Hash) -> Result<ImageFile> {
    let context = |e| RunnerError::io(format!("cannot read image {}", path.display()), e);
    let file = File::open(path).map_err(context)?;
    let meta = file.metadata().map_err(context)?;
    if !meta.is_file() {
        return Err(RunnerError::ImageFormat { path: path.into(), problem: "it is not a file".into() });
    }
    if meta.len() != size {
        return Err(RunnerError::ImageSize { path: path.into(), expected: size, actual: meta.len() });
    }
    let mut image = ImageFile { file, size, hash: *hash };
    image.check(path)?;
    Ok(image)
}

impl ImageFile {
    /// Hashes the whole image and goes back to its beginning.
    fn check(&mut self, path: &Path) -> Result<()> {
        let context = |e| RunnerError::io(format!("cannot read image {}", path.display()), e);
        self.file.rewind().map_err(context)?;
        let actual = blake3::Hasher::new().update_reader((&self.file).take(self.size)).map_err(context)?.finalize();
        self.file.rewind().map_err(context)?;
        self.expect(path, actual)
    }

    /// Hands out the whole image piece by piece, each with its place. What was handed out must not be used before this returns:
    /// only then it is known to be the image.
    ///
    /// # Errors
    /// [`RunnerError::ImageHash`] when it is another one; whatever `put` says.
    pub fn each_piece(&mut self, path: &Path, mut put: impl FnMut(u64, &[u8]) -> Result<()>) -> Result<()> {
        let context = |e| RunnerError::io(format!("cannot read image {}", path.display()), e);
        self.file.rewind().map_err(context)?;
        let (mut hasher, mut piece, mut at) = (blake3::Hasher::new(), vec![0; PIECE_BYTES], 0);
        let mut source = (&self.file).take(self.size);
        loop {
            let got = source.read(&mut piece).map_err(context)?;
            if got == 0 {
                break;
            }
            hasher.update(&piece[..got]);
            put(at, &piece[..got])?;
            at += got as u64;
        }
        self.expect(path, hasher.finalize())
    }

    fn expect(&self, path: &Path, actual: blake3::Hash) -> Result<()> {
        if actual == self.hash {
            return Ok(());
        }
        Err(RunnerError::ImageHash {
            path: path.into(),
            expected: self.hash.to_hex().to_string(),
            actual: actual.to_hex().to_string(),
        })
    }
}

/// Hashes what passes through, so that the bytes unpacked are known to be the bytes verified.
struct Hashing<R> {
    inner: R,
    hasher: blake3::Hasher,
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        self.hasher.update(&buf[..n]);
        Ok(n)
    }
}

/// Unpacks an image (a plain or gzipped tar of a root file system, or an OCI archive, told apart by content) into the empty
/// directory `rootfs`. Fails, leaving a partial tree for the caller to remove, on the first entry that is refused, when
/// `disk_mib` is used up, or when the file turns out not to have its hash after all.
pub fn unpack(mut file: ImageFile, image: &Path, rootfs: &Path, disk_mib: u64, owner: Owner) -> Result<Unpacked> {
    let oci = find_oci(&mut file.file, image)?;
    let mut unpacker = Unpacker::new(image, rootfs, disk_mib, owner, oci.is_some())?;
    // Archives carry padding and headers on top of contents; anything far beyond that is a bomb.
    let limit = disk_mib.saturating_mul(1 << 20).saturating_mul(2).saturating_add(16 << 20);
    if let Some(oci) = oci {
        for layer in 0..oci.layers.len() {
            unpacker.layer(&oci, &mut file.file, layer, limit)?;
        }
        unpacker.done.config = oci.config;
        file.check(image)?;
    } else {
        unpack_plain(&mut unpacker, &mut file, limit)?;
    }
    if unpacker.done.entries == 0 {
        return Err(RunnerError::ImageFormat { path: image.into(), problem: "it contains nothing".into() });
    }
    Ok(unpacker.done)
}

fn unpack_plain(unpacker: &mut Unpacker<'_>, file: &mut ImageFile, limit: u64) -> Result<()> {
    let image = unpacker.image;
    file.file.rewind().map_err(|e| format_error(image, e))?;
    let inner = io::BufReader::with_capacity(1 << 18, (&file.file).take(file.size));
    let mut hashing = Hashing { inner, hasher: blake3::Hasher::new() };
    let mut magic = [0u8; 2];
    let got = read_full(&mut hashing, &mut magic).map_err(|e| format_error(image, e))?;
    let source = io::Cursor::new(magic[..got].to_vec()).chain(&mut hashing);
    if magic == [0x1f, 0x8b] {
        unpacker.run(MultiGzDecoder::new(source).take(limit))?;
    } else {
        unpacker.run(source.take(limit))?;
    }
    io::copy(&mut hashing, &mut io::sink()).map_err(|e| format_error(image, e))?;
    file.expect(image, hashing.hasher.finalize())
}

fn read_full(source: &mut impl Read, buf: &mut [u8]) -> io::Result<usize> {
    let mut got = 0;
    while got < buf.len() {
        match source.read(&mut buf[got..])? {
            0 => break,
            n => got += n,
        }
    }
    Ok(got)
}

fn format_error(image: &Path, e: impl std::fmt::Display) -> RunnerError {
    RunnerError::ImageFormat { path: image.into(), problem: e.to_string() }
}

/// Names that extension entries announce for the entry after them.
#[derive(Default)]
struct Announced {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
}

struct Unpacker<'a> {
    image: &'a Path,
    tree: Tree,
    budget: Budget,
    disk_mib: u64,
    done: Unpacked,
}

impl<'a> Unpacker<'a> {
    fn new(image: &'a Path, rootfs: &Path, disk_mib: u64, owner: Owner, layered: bool) -> Result<Self> {
        let tree = Tree::open(rootfs, owner, layered)
            .map_err(|e| RunnerError::io(format!("cannot open {}", rootfs.display()), e))?;
        Ok(Self { image, tree, budget: Budget::new(disk_mib), disk_mib, done: Unpacked::default() })
    }

    /// Verifies one layer of an OCI image, takes away what it hides, and unpacks it. Whiteouts are about the layers below,
    /// wherever they stand in this one, so they come first.
    fn layer(&mut self, oci: &OciImage, file: &mut File, layer: usize, limit: u64) -> Result<()> {
        let image = self.image;
        let hidden = oci.read_layer(file, image, layer, limit, |tar| whiteouts(image, tar))?;
        for whiteout in hidden {
            let taken = self.tree.take_away(&whiteout);
            taken.map_err(|e| format_error(image, format!("whiteout {whiteout:?}: {e}")))?;
        }
        oci.read_layer(file, image, layer, limit, |tar| self.run(tar))
    }

    fn run(&mut self, source: impl Read) -> Result<()> {
        let mut archive = tar::Archive::new(source);
        let mut announced = Announced::default();
        for entry in archive.entries().map_err(|e| format_error(self.image, e))?.raw(true) {
            let mut entry = entry.map_err(|e| format_error(self.image, e))?;
            match entry.header().entry_type() {
                EntryType::GNULongName => announced.path = Some(self.long_text(&mut entry)?),
                EntryType::GNULongLink => announced.link = Some(self.long_text(&mut entry)?),
                EntryType::XHeader => self.pax(&mut entry, &mut announced)?,
                EntryType::XGlobalHeader => {}
                EntryType::GNUSparse => {
                    return Err(format_error(self.image, "it has sparse entries; pack it without --sparse"));
                }
                _ => self.entry(&mut entry, std::mem::take(&mut announced))?,
            }
        }
        Ok(())
    }

    fn long_text<R: Read>(&self, entry: &mut tar::Entry<'_, R>) -> Result<Vec<u8>> {
        let size = entry.size();
        Ok(trimmed(meta(self.image, entry, size)?))
    }

    fn pax<R: Read>(&self, entry: &mut tar::Entry<'_, R>, announced: &mut Announced) -> Result<()> {
        let size = entry.size();
        let bytes = meta(self.image, entry, size)?;
        for extension in tar::PaxExtensions::new(&bytes) {
            let extension = extension.map_err(|e| format_error(self.image, e))?;
            let value = extension.value_bytes().to_vec();
            match extension.key_bytes() {
                b"path" => announced.path = Some(value),
                b"linkpath" => announced.link = Some(value),
                b"size" | b"GNU.sparse.major" | b"GNU.sparse.map" => {
                    return Err(format_error(
                        self.image,
                        "it uses sparse or oversized pax entries; pack it with --format=gnu and without --sparse",
                    ));
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn entry<R: Read>(&mut self, entry: &mut tar::Entry<'_, R>, announced: Announced) -> Result<()> {
        let kind = match entry.header().entry_type() {
            EntryType::Regular | EntryType::Continuous => EntryKind::File,
            EntryType::Directory => EntryKind::Directory,
            EntryType::Symlink => EntryKind::Symlink,
            EntryType::Link => EntryKind::HardLink,
            _ => EntryKind::Special,
        };
        let path = announced.path.unwrap_or_else(|| entry.path_bytes().into_owned());
        let link = announced.link.or_else(|| entry.link_name_bytes().map(|l| l.into_owned())).unwrap_or_default();
        if self.tree.layered && matches!(whiteout(&path), Ok(Some(_))) {
            return Ok(());
        }
        let shown = String::from_utf8_lossy(&path).into_owned();
        let refuse = |problem: String| RunnerError::ImageEntry { entry: shown.clone(), problem };
        let raw = entry.header();
        let header = Header {
            path: &path,
            kind,
            size: entry.size(),
            mode: raw.mode().map_err(|e| refuse(e.to_string()))?,
            uid: raw.uid().unwrap_or(u64::MAX),
            gid: raw.gid().unwrap_or(u64::MAX),
            link: &link,
        };
        let mtime = raw.mtime().unwrap_or(0);
        let planned = plan(&header).map_err(refuse)?;
        let cost = if matches!(planned, Planned::File { .. }) { header.size } else { 0 };
        if planned != Planned::Skip && !self.budget.take(cost) {
            return Err(RunnerError::ImageTooLarge { limit_mib: self.disk_mib });
        }
        self.done.entries += u64::from(planned != Planned::Skip);
        self.done.bytes += cost;
        let ids = (owner(header.uid), owner(header.gid));
        self.tree.create(planned, ids, mtime, entry).map_err(|e| {
            if e.kind() == io::ErrorKind::StorageFull {
                RunnerError::io(format!("cannot unpack {shown:?}"), e)
            } else {
                refuse(e.to_string())
            }
        })?;
        // Also those that no entry of their own announces.
        let mut made = 0..std::mem::take(&mut self.tree.made);
        if made.all(|_| self.budget.take(DIRECTORY_BYTES)) {
            return Ok(());
        }
        Err(RunnerError::ImageTooLarge { limit_mib: self.disk_mib })
    }
}

/// The whiteouts of a layer.
fn whiteouts(image: &Path, tar: impl Read) -> Result<Vec<Whiteout>> {
    let mut found = Vec::new();
    let mut long = None;
    for entry in tar::Archive::new(tar).entries().map_err(|e| format_error(image, e))?.raw(true) {
        let mut entry = entry.map_err(|e| format_error(image, e))?;
        let size = entry.size();
        match entry.header().entry_type() {
            EntryType::GNULongName => long = Some(trimmed(meta(image, &mut entry, size)?)),
            EntryType::XHeader => {
                let bytes = meta(image, &mut entry, size)?;
                let named = tar::PaxExtensions::new(&bytes).flatten().find(|e| e.key_bytes() == b"path");
                long = named.map(|e| e.value_bytes().to_vec()).or(long);
            }
            EntryType::GNULongLink | EntryType::XGlobalHeader => {}
            _ => {
                let path = long.take().unwrap_or_else(|| entry.path_bytes().into_owned());
                let refuse =
                    |problem| RunnerError::ImageEntry { entry: String::from_utf8_lossy(&path).into_owned(), problem };
                found.extend(whiteout(&path).map_err(refuse)?);
            }
        }
        if found.len() > MAX_WHITEOUTS {
            return Err(format_error(image, format!("a layer has more than {MAX_WHITEOUTS} whiteouts")));
        }
    }
    Ok(found)
}

/// The content of an extension header.
fn meta(image: &Path, entry: &mut impl Read, size: u64) -> Result<Vec<u8>> {
    if size > MAX_META {
        return Err(format_error(image, format!("an extension header of {size} bytes")));
    }
    let mut bytes = Vec::new();
    entry.take(size).read_to_end(&mut bytes).map_err(|e| format_error(image, e))?;
    Ok(bytes)
}

fn trimmed(mut bytes: Vec<u8>) -> Vec<u8> {
    while bytes.last() == Some(&0) {
        bytes.pop();
    }
    bytes
}

/// A directory tree being filled.
struct Tree {
    /// Entries of one layer may replace what another made, of whatever kind.
    layered: bool,
    root: OwnedFd,
    owner: Owner,
    /// The directory used last: archives list a directory's files one after the other.
    last: Option<(Vec<Vec<u8>>, OwnedFd)>,
    /// Directories made since somebody last asked.
    made: u64,
}

const DIRECTORY: OFlag = OFlag::O_DIRECTORY.union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC).union(OFlag::O_RDONLY);

impl Tree {
    fn open(path: &Path, owner: Owner, layered: bool) -> io::Result<Self> {
        let root = nix::fcntl::open(path, DIRECTORY, Mode::empty())?;
        let tree = Self { layered, root, owner, last: None, made: 0 };
        tree.own(tree.root.as_fd(), b".", (0, 0))?;
        Ok(tree)
    }

    fn own(&self, dir: impl AsFd, name: &[u8], ids: (u32, u32)) -> nix::Result<()> {
        let Owner::From(base) = self.owner else { return Ok(()) };
        let (uid, gid) = (Uid::from_raw(base + ids.0), Gid::from_raw(base + ids.1));
        fchownat(dir, OsStr::from_bytes(name), Some(uid), Some(gid), AtFlags::AT_SYMLINK_NOFOLLOW)
    }

    /// The directory of these components, made where missing. A component that is a link is an error: what lies behind
    /// it would be somewhere else.
    fn directory(&mut self, path: &[Vec<u8>]) -> io::Result<OwnedFd> {
        if let Some((known, fd)) = &self.last
            && known == path
        {
            return fd.try_clone();
        }
        let mut here = self.root.try_clone()?;
        for name in path {
            let name = OsStr::from_bytes(name);
            here = match openat(&here, name, DIRECTORY, Mode::empty()) {
                Ok(fd) => fd,
                Err(Errno::ENOENT) => {
                    mkdirat(&here, name, Mode::from_bits_truncate(0o755))?;
                    self.made += 1;
                    self.own(&here, name.as_bytes(), (0, 0))?;
                    openat(&here, name, DIRECTORY, Mode::empty())?
                }
                Err(Errno::ELOOP | Errno::ENOTDIR) => {
                    let text = format!("{:?} in its path is a link or a file, not a directory", name.display());
                    return Err(io::Error::new(io::ErrorKind::NotADirectory, text));
                }
                Err(e) => return Err(e.into()),
            };
        }
        self.last = Some((path.to_vec(), here.try_clone()?));
        Ok(here)
    }

    /// What an entry is, not following links; none when there is none.
    fn kind_of(&self, dir: &OwnedFd, name: &[u8]) -> io::Result<Option<SFlag>> {
        match fstatat(dir, OsStr::from_bytes(name), AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT)),
            Err(Errno::ENOENT) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    /// Removes a directory with everything in it.
    fn remove_below(&mut self, dir: &OwnedFd, name: &[u8]) -> io::Result<()> {
        self.last = None;
        remove_tree(&Path::new(&format!("/proc/self/fd/{}", dir.as_raw_fd())).join(OsStr::from_bytes(name)))
    }

    /// Applies a whiteout. What is not there cannot be hidden, which is fine; what lies behind a link is not touched.
    fn take_away(&mut self, whiteout: &Whiteout) -> io::Result<()> {
        let (Whiteout::Path(path) | Whiteout::Contents(path)) = whiteout;
        let parents = match whiteout {
            Whiteout::Path(path) => path.split_last().map_or(&path[..], |(_, parents)| parents),
            Whiteout::Contents(path) => path,
        };
        let mut here = self.root.try_clone()?;
        for name in parents {
            here = match openat(&here, OsStr::from_bytes(name), DIRECTORY, Mode::empty()) {
                Ok(fd) => fd,
                Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => return Ok(()),
                Err(e) => return Err(e.into()),
            };
        }
        let names: Vec<Vec<u8>> = match whiteout {
            Whiteout::Path(_) => path.last().cloned().into_iter().collect(),
            Whiteout::Contents(_) => names(&here).into_iter().map(std::ffi::CString::into_bytes).collect(),
        };
        for name in names {
            match self.kind_of(&here, &name)? {
                None => {}
                Some(SFlag::S_IFDIR) => self.remove_below(&here, &name)?,
                Some(_) => unlinkat(&here, OsStr::from_bytes(&name), UnlinkatFlags::NoRemoveDir)?,
            }
        }
        Ok(())
    }

    fn create(&mut self, planned: Planned, ids: (u32, u32), mtime: u64, content: &mut impl Read) -> io::Result<()> {
        match planned {
            Planned::Skip => Ok(()),
            Planned::Directory { path, mode } => self.create_directory(&path, mode, ids),
            Planned::File { path, mode, size } => {
                let (dir, name) = self.place(&path)?;
                self.create_file(&dir, name, mode, ids, mtime, content.take(size))
            }
            Planned::Symlink { path, target } => {
                let (dir, name) = self.place(&path)?;
                symlinkat(OsStr::from_bytes(&target), &dir, OsStr::from_bytes(name))?;
                Ok(self.own(&dir, name, ids)?)
            }
            Planned::HardLink { path, target } => self.create_link(&path, &target),
        }
    }

    /// The directory an entry goes into and its name there, which is free afterwards.
    fn place<'p>(&mut self, path: &'p [Vec<u8>]) -> io::Result<(OwnedFd, &'p [u8])> {
        let (name, parents) = path.split_last().ok_or(io::ErrorKind::InvalidInput)?;
        let dir = self.directory(parents)?;
        match unlinkat(&dir, OsStr::from_bytes(name), UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => Ok((dir, name)),
            Err(Errno::EISDIR | Errno::EPERM) if self.layered => {
                self.remove_below(&dir, name)?;
                Ok((dir, name))
            }
            Err(Errno::EISDIR | Errno::EPERM) => {
                Err(io::Error::new(io::ErrorKind::AlreadyExists, "an earlier entry made a directory of that name"))
            }
            Err(e) => Err(e.into()),
        }
    }

    fn create_directory(&mut self, path: &[Vec<u8>], mode: u32, ids: (u32, u32)) -> io::Result<()> {
        let (name, parents) = path.split_last().ok_or(io::ErrorKind::InvalidInput)?;
        let dir = self.directory(parents)?;
        if self.layered && self.kind_of(&dir, name)?.is_some_and(|kind| kind != SFlag::S_IFDIR) {
            unlinkat(&dir, OsStr::from_bytes(name), UnlinkatFlags::NoRemoveDir)?;
        }
        self.directory(path)?;
        self.own(&dir, name, ids)?;
        let mode = Mode::from_bits_truncate(mode);
        Ok(fchmodat(&dir, OsStr::from_bytes(name), mode, FchmodatFlags::FollowSymlink)?)
    }

    fn create_file(
        &self,
        dir: &OwnedFd,
        name: &[u8],
        mode: u32,
        ids: (u32, u32),
        mtime: u64,
        mut content: impl Read,
    ) -> io::Result<()> {
        let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let fd = openat(dir, OsStr::from_bytes(name), flags, Mode::from_bits_truncate(0o600))?;
        let mut file = File::from(fd);
        io::copy(&mut content, &mut file)?;
        file.flush()?;
        self.own(dir, name, ids)?;
        fchmod(&file, Mode::from_bits_truncate(mode))?;
        let when = std::time::UNIX_EPOCH + std::time::Duration::from_secs(mtime.min(1 << 33));
        file.set_modified(when)
    }

    fn create_link(&mut self, path: &[Vec<u8>], target: &[Vec<u8>]) -> io::Result<()> {
        let (name, parents) = target.split_last().ok_or(io::ErrorKind::InvalidInput)?;
        let from = self.directory(parents)?;
        let name = OsStr::from_bytes(name).to_owned();
        let stat = fstatat(&from, name.as_os_str(), AtFlags::AT_SYMLINK_NOFOLLOW)
            .map_err(|_| io::Error::new(io::ErrorKind::NotFound, "its link target is not an earlier entry"))?;
        if SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT != SFlag::S_IFREG {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "its link target is not a file"));
        }
        let (dir, new) = self.place(path)?;
        Ok(linkat(&from, name.as_os_str(), &dir, OsStr::from_bytes(new), LinkatFlags::empty())?)
    }
}
