use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use coalition_host::error::{Result, RunnerError};
use coalition_host::rootfs::{Owner, Unpacked, open_verified, unpack};
use coalition_host::{EndReason, Phase, RunnerState};

use super::harness::Host;

fn entry(tar: &mut tar::Builder<Vec<u8>>, kind: tar::EntryType, path: &str, link: &str, content: &[u8], mode: u32) {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(content.len() as u64);
    header.set_mtime(1);
    header.set_uid(0);
    header.set_gid(0);
    // Written by hand: the library refuses to write the paths an attacker would.
    header.as_gnu_mut().unwrap().name[..path.len()].copy_from_slice(path.as_bytes());
    header.as_gnu_mut().unwrap().linkname[..link.len()].copy_from_slice(link.as_bytes());
    header.set_cksum();
    tar.append(&header, content).unwrap();
}

fn try_unpack(bytes: &[u8], disk_mib: u64, root: &Path) -> Result<Unpacked> {
    let temp = tempfile::tempdir().unwrap();
    let image = temp.path().join("image");
    fs::write(&image, bytes).unwrap();
    let hash = blake3::hash(bytes);
    let file = open_verified(&image, bytes.len() as u64, &hash)?;
    unpack(file, &image, root, disk_mib, Owner::Ourselves)
}

fn code(result: Result<Unpacked>) -> String {
    result.map_or_else(|e| e.code().to_owned(), |_| "unpacked".to_owned())
}

#[test]
fn hostile_archives_write_nothing_outside() {
    use tar::EntryType as T;
    let outside = tempfile::tempdir().unwrap();
    let target = outside.path().join("target");
    let to = target.to_str().unwrap().to_owned();
    type Attack = Box<dyn Fn(&mut tar::Builder<Vec<u8>>)>;
    let attacks: Vec<(&str, Attack)> = vec![
        ("dot dot", Box::new(|t| entry(t, T::Regular, "../../../../../../../../tmp/x/target", "", b"x", 0o644))),
        ("inner dot dot", Box::new(|t| entry(t, T::Regular, "a/../../b", "", b"x", 0o644))),
        ("through a link", {
            let dir = outside.path().to_str().unwrap().to_owned();
            Box::new(move |t| {
                entry(t, T::Symlink, "out", &dir, b"", 0o777);
                entry(t, T::Regular, "out/target", "", b"x", 0o644);
            })
        }),
        ("hard link to a link", {
            Box::new(move |t| {
                entry(t, T::Symlink, "out", &to, b"", 0o777);
                entry(t, T::Link, "again", "out", b"", 0o644);
                entry(t, T::Regular, "again", "", b"x", 0o644);
                entry(t, T::Directory, "out/sub", "", b"", 0o755);
            })
        }),
        ("hard link outside", Box::new(|t| entry(t, T::Link, "passwd", "../../../etc/passwd", b"", 0o644))),
        ("block device", Box::new(|t| entry(t, T::Block, "disk", "", b"", 0o666))),
        ("character device", Box::new(|t| entry(t, T::Char, "mem", "", b"", 0o666))),
        ("pipe", Box::new(|t| entry(t, T::Fifo, "pipe", "", b"", 0o666))),
    ];
    for (name, attack) in attacks {
        let mut tar = tar::Builder::new(Vec::new());
        attack(&mut tar);
        let root = tempfile::tempdir().unwrap();
        assert_eq!(code(try_unpack(&tar.into_inner().unwrap(), 8, root.path())), "image_entry_refused", "{name}");
        assert!(!target.exists() && fs::read_dir(outside.path()).unwrap().count() == 0, "{name}");
    }
}

#[test]
fn a_link_replaced_by_a_file_of_its_name_stays_inside() {
    let outside = tempfile::tempdir().unwrap();
    let target = outside.path().join("target");
    fs::write(&target, "untouched").unwrap();
    let mut tar = tar::Builder::new(Vec::new());
    entry(&mut tar, tar::EntryType::Symlink, "file", target.to_str().unwrap(), b"", 0o777);
    entry(&mut tar, tar::EntryType::Regular, "file", "", b"mine", 0o644);
    let root = tempfile::tempdir().unwrap();
    try_unpack(&tar.into_inner().unwrap(), 8, root.path()).unwrap();
    assert_eq!(fs::read_to_string(&target).unwrap(), "untouched");
    assert_eq!(fs::read_to_string(root.path().join("file")).unwrap(), "mine");
}

#[test]
fn devices_below_dev_are_left_out_and_set_uid_bits_fall() {
    use tar::EntryType as T;
    let mut tar = tar::Builder::new(Vec::new());
    entry(&mut tar, T::Char, "dev/mem", "", b"", 0o666);
    entry(&mut tar, T::Regular, "bin/su", "", b"#!", 0o6755);
    entry(&mut tar, T::Directory, "closed", "", b"", 0);
    entry(&mut tar, T::Regular, "closed/file", "", b"x", 0o200);
    entry(&mut tar, T::Link, "bin/su2", "bin/su", b"", 0o755);
    let root = tempfile::tempdir().unwrap();
    try_unpack(&tar.into_inner().unwrap(), 8, root.path()).unwrap();
    assert!(!root.path().join("dev/mem").exists());
    let mode = |path: &str| fs::metadata(root.path().join(path)).unwrap().permissions().mode() & 0o7777;
    assert_eq!((mode("bin/su"), mode("bin/su2"), mode("closed")), (0o755, 0o755, 0o700));
    assert_eq!(fs::read_to_string(root.path().join("closed/file")).unwrap(), "x");
}

#[test]
fn bombs_are_stopped_at_the_disk_limit() {
    use std::io::Write;
    let mut tar = tar::Builder::new(Vec::new());
    entry(&mut tar, tar::EntryType::Regular, "zeros", "", &vec![0u8; 20 << 20], 0o644);
    let plain = tar.into_inner().unwrap();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    gzip.write_all(&plain).unwrap();
    let packed = gzip.finish().unwrap();
    assert!(packed.len() < 100_000);
    let root = tempfile::tempdir().unwrap();
    assert_eq!(code(try_unpack(&packed, 8, root.path())), "image_too_large");
    let root = tempfile::tempdir().unwrap();
    assert_eq!(code(try_unpack(&packed, 32, root.path())), "unpacked");
    // A few names that imply many directories: 25 x 101 of them take more than 8 MiB.
    let deep = |count: u8| {
        let mut tar = tar::Builder::new(Vec::new());
        for i in 0..count {
            let name = format!("{i}/{}f", "d/".repeat(100));
            let mut header = tar::Header::new_gnu();
            header.set_size(0);
            header.set_mode(0o644);
            tar.append_data(&mut header, &name, &b""[..]).unwrap();
        }
        tar.into_inner().unwrap()
    };
    let root = tempfile::tempdir().unwrap();
    assert_eq!(code(try_unpack(&deep(25), 8, root.path())), "image_too_large");
    let root = tempfile::tempdir().unwrap();
    assert_eq!(code(try_unpack(&deep(10), 8, root.path())), "unpacked");
    // A look beforehand says what disk it takes.
    let file = root.path().join("deep.tar");
    std::fs::write(&file, deep(25)).unwrap();
    let needed = coalition_host::image::inspect(&file).unwrap().disk_bytes.div_ceil(1 << 20);
    let (enough, short) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    assert_eq!(code(try_unpack(&deep(25), needed, enough.path())), "unpacked");
    assert_eq!(code(try_unpack(&deep(25), needed - 1, short.path())), "image_too_large");
    // A name that claims to be enormous.
    let mut tar = tar::Builder::new(Vec::new());
    entry(&mut tar, tar::EntryType::GNULongName, "@", "", &vec![b'a'; 1 << 20], 0o644);
    let root = tempfile::tempdir().unwrap();
    assert_eq!(code(try_unpack(&tar.into_inner().unwrap(), 8, root.path())), "image_not_an_archive");
}

#[test]
fn what_is_not_an_archive_is_said_to_be_none() {
    for bytes in [&b"x"[..], &[7u8; 4096][..], &[0u8; 4096][..], b"\x1f\x8bgarbage"] {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(code(try_unpack(bytes, 8, root.path())), "image_not_an_archive");
    }
}

#[test]
fn long_names_survive() {
    let name = format!("{}/{}", "d".repeat(120), "f".repeat(200));
    for gnu in [true, false] {
        let mut tar = tar::Builder::new(Vec::new());
        let mut header = if gnu { tar::Header::new_gnu() } else { tar::Header::new_ustar() };
        header.set_size(1);
        header.set_mode(0o644);
        if gnu {
            tar.append_data(&mut header, &name, &b"x"[..]).unwrap();
        } else {
            tar.append_pax_extensions([("path", name.as_bytes())]).unwrap();
            header.set_path("short").unwrap();
            header.set_cksum();
            tar.append(&header, &b"x"[..]).unwrap();
        }
        let root = tempfile::tempdir().unwrap();
        try_unpack(&tar.into_inner().unwrap(), 8, root.path()).unwrap();
        assert_eq!(fs::read_to_string(root.path().join(&name)).unwrap(), "x");
    }
}

#[test]
fn another_hash_or_size_is_found_before_unpacking() {
    let temp = tempfile::tempdir().unwrap();
    let image = temp.path().join("image");
    fs::write(&image, b"content").unwrap();
    let other = blake3::hash(b"other");
    let Err(RunnerError::ImageHash { expected, actual, .. }) = open_verified(&image, 7, &other) else { panic!() };
    assert_eq!(expected, other.to_hex().to_string());
    assert_eq!(actual, blake3::hash(b"content").to_hex().to_string());
    let size = open_verified(&image, 8, &other).unwrap_err().to_string();
    assert!(size.contains('7') && size.contains('8'), "{size}");
}

#[test]
fn a_refused_image_leaves_nothing_running() {
    for host in Host::each() {
        let grant = host.prepare(|spec| spec.image_blake3 = "ab".repeat(32));
        let failure = host.answer::<RunnerState>(&["start", "--dir", grant.dir_text()]).unwrap_err();
        assert_eq!(failure.code, "image_hash_mismatch");
        assert!(failure.message.contains(&"ab".repeat(32)) && failure.message.contains(&host.info.blake3), "{failure}");
        let state = grant.status();
        assert!(matches!(state.phase, Phase::Ended { reason: EndReason::FailedToStart, .. }));
        assert!(!grant.dir.join("rootfs").exists() && !coalition_host::proc::is_alive(&state.supervisor).unwrap());
        grant.clean();

        let grant = host.prepare(|spec| spec.disk_mib = 1);
        let failure = host.answer::<RunnerState>(&["start", "--dir", grant.dir_text()]).unwrap_err();
        assert_eq!(failure.code, "image_too_large");
        grant.clean();
    }
}
