//! A virtual machine whose system is the requester's own: a disk or a unified kernel image. Nothing of ours runs in it, so it
//! is given the grant's keys as a cloud would, and it is ready when its SSH server shows the grant's host key.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use russh::client;
use russh::keys::{Algorithm, HashAlg, PublicKey, PublicKeyOrCertificate};

use super::machine::{DISKS, Filled, Running, blank_disk, make_disk, secret_file};
use super::relay;
use crate::error::{Result, RunnerError};
use crate::isolate::control::Control;
use crate::isolate::proto::MACHINE_FDS;
use crate::machine::bootable::Bootable;
use crate::machine::qemu::{Boot, Credentials, Disk, System};
use crate::machine::seed::Keys;
use crate::machine::uki::Section;
use crate::rootfs::ImageFile;
use crate::spec::CheckedSpec;
use crate::ssh::keys;
use crate::types::{MachineSpec, WorkloadSpec};

/// Longest one look at the SSH server may take; an emulated one takes seconds to agree on keys.
const LOOK: Duration = Duration::from_secs(20);
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(300);
const LOSS: &str =
    "the image is a system of its own: what its workload exits with, writes and uses inside is not known here";
const ENV_LOSS: &str = "the request's environment variables are not given to a system of its own";

/// What is in the machine: the image's system, the grant's disk, and the keys.
pub(super) fn fill(
    spec: &WorkloadSpec,
    machine: &MachineSpec,
    (mut image, path): (ImageFile, &Path),
    kind: Bootable,
    jail: &Path,
    disk: &Path,
) -> Result<Filled> {
    check(spec, machine, path, &kind)?;
    let host_public = host_public(spec)?;
    let keys = Keys {
        grant_id: &spec.grant_id,
        host_private: spec.ssh_host_key.expose(),
        host_public: &host_public,
        login_public: &spec.ssh_authorized_key,
    };
    let seed = secret_file(&keys.disk().map_err(|e| RunnerError::io("cannot make the disk with the keys", e))?)?;
    let secret = secret_file(keys.secret_credential().as_bytes())?;
    let credentials = Credentials { strings: keys.public_credentials().to_vec(), secret_fd: MACHINE_FDS + 2 };
    let (system, root) = match kind {
        Bootable::Disk(_) => {
            let root = blank_disk(disk, spec.disk_mib)?;
            copy_disk(&mut image, path, &root.1)?;
            (System::Disk(credentials), root)
        }
        Bootable::Uki { parts, command_line, .. } => {
            let initrd = take_apart(&mut image, path, (parts.linux, parts.initrd), jail)?;
            let boot = Boot { kernel: "/machine/kernel".into(), initrd, command_line };
            (System::Kernel(boot, credentials), make_disk(disk, spec.disk_mib)?)
        }
    };
    let disks = vec![
        Disk { serial: DISKS[0], fd: MACHINE_FDS, writable: Some(MACHINE_FDS + 4) },
        Disk { serial: "seed", fd: MACHINE_FDS + 1, writable: None },
    ];
    Ok(Filled { system, memory_mib: spec.ram_mib, disks, root, second: seed, third: secret })
}

/// Refuses what cannot be done for such an image, before anything is made.
fn check(spec: &WorkloadSpec, machine: &MachineSpec, path: &Path, kind: &Bootable) -> Result<()> {
    let wrong = |problem: String| Err(RunnerError::ImageUnbootable { path: path.into(), problem });
    if machine.tdx.is_some() {
        return wrong(format!("it is {kind}, and this host makes TDX guests, which start from a kernel of the host"));
    }
    if !spec.command.is_empty() {
        let problem = format!("the image is {kind}, which runs what is in it; ask for it without a command");
        return Err(RunnerError::Spec { field: "command", problem });
    }
    match kind {
        Bootable::Disk(_) if spec.image_size_bytes > spec.disk_mib << 20 => {
            Err(RunnerError::ImageTooLarge { limit_mib: spec.disk_mib })
        }
        Bootable::Disk(_) => Ok(()),
        Bootable::Uki { parts, .. } => {
            let needed = (parts.linux.size + parts.initrd.map_or(0, |initrd| initrd.size)).div_ceil(1 << 20);
            if needed < spec.ram_mib {
                return Ok(());
            }
            wrong(format!(
                "its kernel and initial file system have {needed} MiB, the machine {} MiB of memory",
                spec.ram_mib
            ))
        }
    }
}

/// The public half of the host key, which must be of the kind that every such system is known to take.
fn host_public(spec: &WorkloadSpec) -> Result<String> {
    let wrong = |problem: &str| RunnerError::Spec { field: "ssh_host_key", problem: problem.to_owned() };
    let private = keys::private(&spec.ssh_host_key).map_err(|_| wrong("not an OpenSSH private key"))?;
    if private.algorithm() != Algorithm::Ed25519 {
        return Err(wrong("systems that boot by themselves are given Ed25519 keys only"));
    }
    private.public_key().to_openssh().map_err(|_| wrong("has no public half"))
}

/// Copies a disk image to the grant's disk, leaving holes where there is nothing. A copy rather than a layer on top of the
/// image: that would be a format more for QEMU to read for a guest, and the image is read for its hash anyway.
fn copy_disk(image: &mut ImageFile, path: &Path, disk: &File) -> Result<()> {
    image.each_piece(path, |at, piece| {
        if piece.iter().all(|byte| *byte == 0) {
            return Ok(());
        }
        disk.write_all_at(piece, at).map_err(|e| RunnerError::io("cannot copy the image to the grant's disk", e))
    })
}

/// Writes kernel and initial file system into `jail`; answers where the machine sees the latter.
fn take_apart(
    image: &mut ImageFile,
    path: &Path,
    (linux, initrd): (Section, Option<Section>),
    jail: &Path,
) -> Result<Option<PathBuf>> {
    let create = |name: &str| {
        let path = jail.join(name);
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
        file.map_err(|e| RunnerError::io(format!("cannot create {}", path.display()), e))
    };
    let mut parts = vec![(linux, create("kernel")?)];
    if let Some(initrd) = initrd {
        parts.push((initrd, create("initrd")?));
    }
    image.each_piece(path, |at, piece| {
        parts.iter().try_for_each(|(section, file)| {
            let (within, bytes) = overlap(*section, at, piece);
            file.write_all_at(bytes, within).map_err(|e| RunnerError::io("cannot take the image apart", e))
        })
    })?;
    Ok(initrd.map(|_| "/machine/initrd".into()))
}

/// What of a piece of a file belongs to a section, and where in the section.
fn overlap(section: Section, at: u64, piece: &[u8]) -> (u64, &[u8]) {
    let from = section.offset.max(at);
    let to = (section.offset + section.size).min(at + piece.len() as u64);
    let place = |offset: u64| usize::try_from(offset - at).unwrap_or(piece.len());
    if from >= to { (0, &[]) } else { (from - section.offset, &piece[place(from)..place(to)]) }
}

/// Waits until the machine's SSH server shows the grant's host key; answers what is weaker than elsewhere.
pub(super) async fn ready(
    running: &mut Running,
    control: &Control,
    checked: &CheckedSpec,
    limit: Duration,
) -> Result<Vec<String>> {
    let console = running.console.clone();
    let failed = |problem: String, console: String| RunnerError::MachineFailed { problem, console };
    let expected = checked.host_key.public_key();
    tokio::select! {
        () = tokio::time::sleep(limit) => {
            let limit = limit.as_secs();
            let problem = format!(
                "no SSH server with the grant's host key on its port 22 within {limit} s; the system has to take keys from \
                 cloud-init (NoCloud) or systemd's credentials, and its address by DHCP"
            );
            return Err(failed(problem, console.text()));
        }
        ended = &mut running.exit => {
            let how = ended.map_or_else(|_| "unseen".to_owned(), |outcome| format!("{outcome:?}"));
            return Err(failed(format!("it ended ({how})"), console.last_words().await));
        }
        shown = shown_key(control) => if shown.key_data() != expected.key_data() {
            let print = |key: &PublicKey| key.fingerprint(HashAlg::Sha256);
            let (other, own) = (print(&shown), print(expected));
            let problem = format!("its SSH server shows the host key {other}; the grant's, which it was given, is {own}");
            return Err(failed(problem, console.text()));
        }
    }
    let env = (!checked.spec.env.is_empty()).then_some(ENV_LOSS);
    Ok([LOSS].into_iter().chain(env).map(str::to_owned).collect())
}

/// The host key that the machine shows, as soon as it shows one.
async fn shown_key(control: &Control) -> PublicKey {
    loop {
        if let Ok(Some(key)) = tokio::time::timeout(LOOK, look(control)).await {
            return key;
        }
        tokio::time::sleep(PAUSE).await;
    }
}

async fn look(control: &Control) -> Option<PublicKey> {
    let stream = relay::connect(control).await.ok()?;
    let mut config = client::Config::default();
    config.preferred.key = std::borrow::Cow::Borrowed(&[Algorithm::Ed25519]);
    let shown = Shown::default();
    // Done when both have agreed on keys. Whether anybody may log in is not our concern.
    client::connect_stream(Arc::new(config), stream, shown.clone()).await.ok()?;
    shown.0.lock().unwrap_or_else(PoisonError::into_inner).take()
}

/// Remembers the key it is shown, whatever it is: it is the server's once the exchange of keys has succeeded with it.
#[derive(Clone, Default)]
struct Shown(Arc<Mutex<Option<PublicKey>>>);

impl client::Handler for Shown {
    type Error = russh::Error;

    async fn check_server_key(&mut self, shown: &PublicKeyOrCertificate) -> Result<bool, russh::Error> {
        if let PublicKeyOrCertificate::PublicKey { key, .. } = shown {
            *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(key.clone());
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use proptest::prelude::*;

    use super::*;

    fn image(bytes: &[u8], dir: &Path) -> (ImageFile, PathBuf) {
        let path = dir.join("image");
        std::fs::write(&path, bytes).unwrap();
        let file = crate::rootfs::open_verified(&path, bytes.len() as u64, &blake3::hash(bytes)).unwrap();
        (file, path)
    }

    #[test]
    fn a_disk_is_copied_with_its_holes_and_another_one_is_not() {
        use std::os::unix::fs::MetadataExt;
        let temp = tempfile::tempdir().unwrap();
        let mut bytes = vec![0; 4 << 20];
        bytes[3 << 20..][..5].copy_from_slice(b"there");
        let (mut file, path) = image(&bytes, temp.path());
        let (mut disk, writable) = blank_disk(&temp.path().join("disk"), 8).unwrap();
        copy_disk(&mut file, &path, &writable).unwrap();
        let mut copied = Vec::new();
        disk.read_to_end(&mut copied).unwrap();
        assert_eq!((copied.len(), &copied[..4 << 20]), (8 << 20, &bytes[..]));
        assert!(disk.metadata().unwrap().blocks() * 512 <= 512 * 1024, "holes are filled");
        file.hash = blake3::hash(b"other");
        assert_eq!(copy_disk(&mut file, &path, &writable).unwrap_err().code(), "image_hash_mismatch");
    }

    proptest! {
        #[test]
        fn pieces_put_a_section_together(offset in 0u64..90, size in 0u64..90, step in 1usize..40) {
            let bytes: Vec<u8> = (0..=180).collect();
            let mut found = vec![0; usize::try_from(size).unwrap()];
            for (number, piece) in bytes.chunks(step).enumerate() {
                let (within, part) = overlap(Section { offset, size }, (number * step) as u64, piece);
                found[usize::try_from(within).unwrap()..][..part.len()].copy_from_slice(part);
            }
            prop_assert_eq!(&found[..], &bytes[usize::try_from(offset).unwrap()..][..found.len()]);
        }
    }
}
