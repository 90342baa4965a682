//! An image to try things with, made from what a Debian-like machine has, and a look at any image before it is sent.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, Read, Seek};
use std::path::{Path, PathBuf};
use std::process::Command;

use flate2::read::MultiGzDecoder;

use crate::error::RunnerError;
use crate::machine::bootable::{self, Bootable, BootableError};
use crate::rootfs::oci::ImageConfig;
use crate::rootfs::{DIRECTORY_BYTES, ENTRY_COST, EntryKind, Header, Planned, find_oci, plan, whiteout};

/// What was made or found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageInfo {
    /// BLAKE3 of the file, 64 hex digits.
    pub blake3: String,
    /// Size of the file, bytes.
    pub size_bytes: u64,
    /// The program the example was made from.
    pub source: PathBuf,
}

/// What a look at an image shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inspection {
    /// BLAKE3 of the file, 64 hex digits.
    pub blake3: String,
    /// Size of the file, bytes.
    pub size_bytes: u64,
    /// True when it is gzipped.
    pub gzip: bool,
    /// Entries.
    pub entries: u64,
    /// Bytes of content once unpacked.
    pub unpacked_bytes: u64,
    /// Bytes of disk that a host counts for it, or a little less: contents in whole blocks, and what files and
    /// directories take whatever is in them. A workload needs room beside it.
    pub disk_bytes: u64,
    /// True when there is a `/bin/sh` or `/usr/bin/sh`; without one, nobody can log in.
    pub has_shell: bool,
    /// The first entry a host would refuse, and why.
    pub refused: Option<String>,
    /// What an OCI archive says beyond that; none for a plain root file system.
    pub oci: Option<OciSummary>,
    /// A system of its own, which takes a virtual machine; nothing inside it is looked at then.
    pub boots: Option<Bootable>,
}

/// What an OCI archive says about its image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OciSummary {
    /// Layers.
    pub layers: usize,
    /// How it wants to be run.
    pub config: ImageConfig,
}

/// Why there is no image.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// No static busybox on this machine.
    #[error("there is no statically linked busybox on this machine (looked at {looked_at})")]
    NoBusybox {
        /// Where.
        looked_at: String,
    },
    /// The file is not an archive.
    #[error("{path} is not a tar or gzipped tar archive")]
    NotAnArchive {
        /// The file.
        path: PathBuf,
        /// What the archive reader says.
        #[source]
        source: io::Error,
    },
    /// It is an OCI archive that no host takes.
    #[error("{path} is no OCI archive that a host can run")]
    Oci {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: Box<RunnerError>,
    },
    /// It looks like something that boots and is nothing that a host starts.
    #[error("{path} cannot be started")]
    Unbootable {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: BootableError,
    },
    /// The file is empty, or an archive without entries.
    #[error("{path} contains nothing")]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// A file cannot be read or written.
    #[error("cannot {what} {path}")]
    Io {
        /// "read", "write".
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl ImageError {
    /// What to do about it.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::NoBusybox { .. } => Some("apt-get install busybox-static"),
            Self::Oci { .. } => Some("make one with `podman save --format oci-archive -o image.tar NAME`"),
            Self::NotAnArchive { .. } | Self::Empty { .. } => {
                Some("give a tar of a root file system, e.g. `tar -C rootfs -cf image.tar .`")
            }
            Self::Unbootable { .. } => Some("give a raw disk, a unified kernel image, or a tar of a root file system"),
            Self::Io { .. } => None,
        }
    }
}

const BUSYBOX: [&str; 4] = ["/bin/busybox", "/usr/bin/busybox", "/usr/local/bin/busybox", "/bin/busybox.static"];
/// Applets worth a name, if this busybox has them.
const APPLETS: &str = "ash awk base64 basename cat chmod chown cp cut date dd df dirname du echo env expr false find \
    free grep gunzip gzip head hexdump hostname httpd id kill less ln ls md5sum mkdir mknod mktemp more mount mv nc nproc od \
    ping printf ps pwd readlink realpath reset rm rmdir sed seq sh sha256sum sleep sort stat stty sync tail tar tee \
    test time timeout top touch tr true truncate tty umount uname uniq uptime vi watch wc wget which who whoami xargs \
    yes zcat";

const MOTD: &str =
    "\n  Hello from a machine of your own.\n  It is yours until the grant ends; nothing of it is left afterwards.\n\n";

/// Writes the example image: a root file system of one static busybox, `hello` and a few files. The same busybox gives
/// the same bytes.
pub fn make_example(path: &Path) -> Result<ImageInfo, ImageError> {
    let busybox = find_busybox().ok_or_else(|| ImageError::NoBusybox { looked_at: BUSYBOX.join(", ") })?;
    make_example_from(&busybox, path)
}

/// [`make_example`] from a particular static busybox.
pub fn make_example_from(busybox: &Path, path: &Path) -> Result<ImageInfo, ImageError> {
    let program = fs::read(busybox).map_err(|source| ImageError::Io { what: "read", path: busybox.into(), source })?;
    let written = |source| ImageError::Io { what: "write", path: path.into(), source };
    // Written beside and renamed, so that an interrupted run leaves no half image under the name.
    let temporary = path.with_extension("partial");
    let outcome = File::create(&temporary)
        .and_then(|file| write_example(io::BufWriter::new(file), &program, &applets(busybox)))
        .and_then(|()| fs::rename(&temporary, path));
    if outcome.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    outcome.map_err(written)?;
    let (blake3, size_bytes) = hash_file(path)?;
    Ok(ImageInfo { blake3, size_bytes, source: busybox.into() })
}

fn find_busybox() -> Option<PathBuf> {
    BUSYBOX.iter().map(PathBuf::from).find(|p| fs::read(p).is_ok_and(|bytes| is_static_elf(&bytes)))
}

/// True for a 64-bit little-endian ELF program that asks for no dynamic loader.
fn is_static_elf(bytes: &[u8]) -> bool {
    let number = |at: usize, n: usize| -> Option<u64> {
        let field = bytes.get(at..at.checked_add(n)?)?;
        Some(field.iter().rev().fold(0u64, |acc, b| acc << 8 | u64::from(*b)))
    };
    if !bytes.starts_with(b"\x7fELF\x02\x01") {
        return false;
    }
    let (Some(table), Some(entry), Some(count)) = (number(32, 8), number(54, 2), number(56, 2)) else { return false };
    const PT_INTERP: u64 = 3;
    (0..count).all(|i| {
        let at = i.checked_mul(entry).and_then(|o| o.checked_add(table)).and_then(|o| usize::try_from(o).ok());
        at.and_then(|at| number(at, 4)).is_some_and(|kind| kind != PT_INTERP)
    })
}

fn applets(busybox: &Path) -> Vec<String> {
    let listed = Command::new(busybox).arg("--list").output();
    let has: Vec<String> =
        listed.map(|o| String::from_utf8_lossy(&o.stdout).lines().map(str::to_owned).collect()).unwrap_or_default();
    let wanted = APPLETS.split_ascii_whitespace();
    let mut found: Vec<String> =
        wanted.filter(|a| has.is_empty() || has.iter().any(|h| h == a)).map(str::to_owned).collect();
    found.sort();
    found.dedup();
    found
}

fn header(kind: tar::EntryType, mode: u32, size: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header
}

fn write_example(out: impl io::Write, busybox: &[u8], applets: &[String]) -> io::Result<()> {
    let mut tar = tar::Builder::new(out);
    let dir = |tar: &mut tar::Builder<_>, name: &str, mode| {
        tar.append_data(&mut header(tar::EntryType::Directory, mode, 0), name, io::empty())
    };
    for name in ["bin/", "dev/", "etc/", "home/", "proc/", "root/", "usr/", "usr/bin/", "var/", "var/log/"] {
        dir(&mut tar, name, 0o755)?;
    }
    dir(&mut tar, "tmp/", 0o1777)?;
    let file = |tar: &mut tar::Builder<_>, name: &str, mode, bytes: &[u8]| {
        tar.append_data(&mut header(tar::EntryType::Regular, mode, bytes.len() as u64), name, bytes)
    };
    file(&mut tar, "bin/busybox", 0o755, busybox)?;
    let files: [(&str, u32, &str); 7] = [
        ("bin/hello", 0o755, "#!/bin/sh\necho \"hello from $(hostname), $(nproc) cpu(s), $(date -u)\"\n"),
        ("etc/group", 0o644, "root:x:0:\ntty:x:5:\nnogroup:x:65534:\n"),
        ("etc/hostname", 0o644, "hello\n"),
        ("etc/hosts", 0o644, "127.0.0.1 localhost\n"),
        ("etc/motd", 0o644, MOTD),
        ("etc/passwd", 0o644, "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n"),
        ("etc/profile", 0o644, "export PS1='\\u@\\h:\\w\\$ '\n"),
    ];
    for (name, mode, text) in files {
        file(&mut tar, name, mode, text.as_bytes())?;
    }
    for applet in applets {
        let mut link = header(tar::EntryType::Symlink, 0o777, 0);
        tar.append_link(&mut link, format!("bin/{applet}"), "busybox")?;
    }
    tar.append_link(&mut header(tar::EntryType::Symlink, 0o777, 0), "usr/bin/env", "../../bin/busybox")?;
    tar.into_inner()?.flush()
}

fn hash_file(path: &Path) -> Result<(String, u64), ImageError> {
    let failed = |source| ImageError::Io { what: "read", path: path.into(), source };
    let file = File::open(path).map_err(failed)?;
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(&file).map_err(failed)?;
    Ok((hasher.finalize().to_hex().to_string(), hasher.count()))
}

/// Looks at an image: its hash and size, whether it is an archive, whether a host would take every entry, and whether
/// there is a shell to log in with. Reads the whole file, writes nothing.
pub fn inspect(path: &Path) -> Result<Inspection, ImageError> {
    let (blake3, size_bytes) = hash_file(path)?;
    let failed = |source| ImageError::Io { what: "read", path: path.into(), source };
    let mut file = File::open(path).map_err(failed)?;
    let refused = |source: RunnerError| ImageError::Oci { path: path.into(), source: Box::new(source) };
    let unbootable = |source| ImageError::Unbootable { path: path.into(), source };
    let boots = bootable::find(&mut file, size_bytes).map_err(unbootable)?;
    let oci = match boots {
        None => find_oci(&mut file, path).map_err(refused)?,
        Some(_) => None,
    };
    file.rewind().map_err(failed)?;
    let mut magic = [0u8; 2];
    let gzip = file.read_exact(&mut magic).is_ok() && magic == [0x1f, 0x8b];
    let mut found = Inspection {
        blake3,
        size_bytes,
        gzip,
        entries: 0,
        unpacked_bytes: 0,
        disk_bytes: 0,
        has_shell: false,
        refused: None,
        oci: oci.as_ref().map(|oci| OciSummary { layers: oci.layers.len(), config: oci.config.clone() }),
        boots,
    };
    if let Some(kind) = &found.boots {
        // A disk is copied to the grant's; a unified kernel image finds an empty one beside it.
        found.disk_bytes = if matches!(kind, Bootable::Disk(_)) { size_bytes } else { 0 };
        return Ok(found);
    }
    if let Some(oci) = oci {
        let damaged = |e: io::Error| RunnerError::ImageFormat { path: path.into(), problem: e.to_string() };
        for layer in 0..oci.layers.len() {
            let looked = oci.read_layer(&mut file, path, layer, u64::MAX, |tar| look(tar, &mut found).map_err(damaged));
            looked.map_err(refused)?;
        }
        return if found.entries == 0 { Err(ImageError::Empty { path: path.into() }) } else { Ok(found) };
    }
    let source = io::Cursor::new(magic).chain(io::BufReader::new(file));
    let read = if gzip { look(MultiGzDecoder::new(source), &mut found) } else { look(source, &mut found) };
    read.map_err(|source| ImageError::NotAnArchive { path: path.into(), source })?;
    if found.entries == 0 {
        return Err(ImageError::Empty { path: path.into() });
    }
    Ok(found)
}

fn look(source: impl Read, found: &mut Inspection) -> io::Result<()> {
    let mut archive = tar::Archive::new(source);
    let mut directories = HashSet::new();
    for entry in archive.entries()? {
        let entry = entry?;
        let kind = match entry.header().entry_type() {
            tar::EntryType::Regular | tar::EntryType::Continuous => EntryKind::File,
            tar::EntryType::Directory => EntryKind::Directory,
            tar::EntryType::Symlink => EntryKind::Symlink,
            tar::EntryType::Link => EntryKind::HardLink,
            tar::EntryType::XGlobalHeader => continue,
            _ => EntryKind::Special,
        };
        let (path, link) = (entry.path_bytes(), entry.link_name_bytes().unwrap_or_default());
        if found.oci.is_some() && matches!(whiteout(&path), Ok(Some(_))) {
            continue;
        }
        let header = Header { path: &path, kind, size: entry.size(), mode: 0o755, uid: 0, gid: 0, link: &link };
        match plan(&header) {
            Ok(Planned::Skip) => {}
            Ok(planned) => {
                found.entries += 1;
                let size = if kind == EntryKind::File { header.size } else { 0 };
                found.unpacked_bytes = found.unpacked_bytes.saturating_add(size);
                let blocks = size.checked_next_multiple_of(DIRECTORY_BYTES).unwrap_or(u64::MAX);
                let made =
                    count_new_directories(&planned, &mut directories).saturating_mul(DIRECTORY_BYTES + ENTRY_COST);
                found.disk_bytes =
                    found.disk_bytes.saturating_add(blocks).saturating_add(ENTRY_COST).saturating_add(made);
                let name = String::from_utf8_lossy(&path);
                let name = name.trim_start_matches("./").trim_start_matches('/');
                found.has_shell |= matches!(name, "bin/sh" | "usr/bin/sh");
            }
            Err(problem) => {
                let name = String::from_utf8_lossy(&path).into_owned();
                found.refused.get_or_insert(format!("{name:?}: {problem}"));
            }
        }
    }
    Ok(())
}

/// Directories that a host makes for this entry and has not made before: itself, if it is one, and those above it.
fn count_new_directories(planned: &Planned, known: &mut HashSet<blake3::Hash>) -> u64 {
    let (path, depth) = match planned {
        Planned::Skip => return 0,
        Planned::Directory { path, .. } => (path, path.len()),
        Planned::File { path, .. } | Planned::Symlink { path, .. } | Planned::HardLink { path, .. } => {
            (path, path.len().saturating_sub(1))
        }
    };
    let (mut hasher, mut new) = (blake3::Hasher::new(), 0);
    for name in &path[..depth] {
        // No name holds a slash, so no two paths hash the same.
        hasher.update(name).update(b"/");
        new += u64::from(known.insert(hasher.finalize()));
    }
    new
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Enough of an ELF header for one program header of the given type.
    fn elf(kind: u32) -> Vec<u8> {
        let mut bytes = vec![0u8; 64 + 56];
        bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
        bytes[32] = 64;
        bytes[54] = 56;
        bytes[56] = 1;
        bytes[64..68].copy_from_slice(&kind.to_le_bytes());
        bytes
    }

    #[test]
    fn static_programs_are_told_from_dynamic_ones() {
        assert!(is_static_elf(&elf(1)));
        assert!(!is_static_elf(&elf(3)));
        assert!(!is_static_elf(b"#!/bin/sh\n") && !is_static_elf(&elf(1)[..66]));
    }

    #[test]
    fn the_example_is_deterministic_and_passes_inspection() {
        let temp = tempfile::tempdir().unwrap();
        let busybox = temp.path().join("busybox");
        fs::write(&busybox, elf(1)).unwrap();
        let (a, b) = (temp.path().join("a.tar"), temp.path().join("b.tar"));
        let first = make_example_from(&busybox, &a).unwrap();
        let second = make_example_from(&busybox, &b).unwrap();
        assert_eq!(first.blake3, second.blake3);
        let seen = inspect(&a).unwrap();
        assert!(seen.has_shell && !seen.gzip && seen.refused.is_none(), "{seen:?}");
        assert_eq!((seen.blake3, seen.size_bytes), (first.blake3, first.size_bytes));
    }

    #[test]
    fn what_is_not_an_image_is_said_to_be_none() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("x.tar");
        fs::write(&path, b"this is not a tar archive, only a text that is a little longer than a name").unwrap();
        assert!(matches!(inspect(&path), Err(ImageError::NotAnArchive { .. } | ImageError::Empty { .. })));
        fs::write(&path, b"").unwrap();
        assert!(inspect(&path).is_err());
        assert!(inspect(&temp.path().join("none")).unwrap_err().to_string().contains("none"));
    }
}
