//! Systems of the requester's own: a unified kernel image made of the guests' kernel and this machine's OpenSSH and busybox, and
//! a disk with the same behind a boot loader. Really booted; skipped as the other virtual machines are.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use coalition_host::machine::uki::assemble;
use coalition_host::{EndReason, Failure, IsolationLevel, MachineSpec, Phase, RunnerState, WorkloadSpec, keys};

use super::harness::{As, Host, write_private};
use super::machine::host;

const COMMAND_LINE: &str = "console=ttyS0 quiet panic=-1 rdinit=/init";
/// Modules the system needs, with those they need.
const MODULES: [&str; 6] = ["virtio_pci", "virtio_blk", "virtio_net", "vfat", "nls_cp437", "nls_ascii"];
/// The system's first process: takes the keys as cloud-init does, by the disk's label, and serves SSH. Told `other`, it shows a
/// key of its own instead.
const INIT: &str = r#"#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc; mount -t sysfs sysfs /sys; mount -t devtmpfs dev /dev
mkdir -p /dev/pts /seed /run/sshd /root/.ssh /var/empty
mount -t devpts devpts /dev/pts
for module in /modules/*; do insmod "$module"; done
ip link set lo up; ip link set eth0 up; ip addr add 10.0.2.15/24 dev eth0
mount -t vfat -o ro "$(findfs LABEL=cidata)" /seed || echo "no seed"
said() { sed -n "s/.*\"$1\":\[*\"\([^\"]*\)\".*/\1/p" /seed/user-data; }
umask 077
printf '%b' "$(said ed25519_private)" > /etc/ssh/key
grep -q other /proc/cmdline && cp /etc/ssh/other /etc/ssh/key
said ssh_authorized_keys > /root/.ssh/authorized_keys
/usr/sbin/sshd -D -e -f /etc/ssh/sshd_config
poweroff -f
"#;
const SSHD: &str = "HostKey /etc/ssh/key\nUsePAM no\nPermitRootLogin prohibit-password\nStrictModes no\n";

fn output(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).env("PATH", path()).stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn path() -> String {
    format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default())
}

fn copy(root: &Path, file: &Path) {
    let target = root.join(file.strip_prefix("/").unwrap());
    fs::create_dir_all(target.parent().unwrap()).unwrap();
    fs::copy(file, &target).unwrap();
}

/// The initial file system, as an archive.
fn initrd(machine: &MachineSpec, at: &Path) -> Vec<u8> {
    let root = at.join("system");
    for dir in ["bin", "dev", "etc/ssh", "modules", "proc", "sys", "tmp", "usr/sbin"] {
        fs::create_dir_all(root.join(dir)).unwrap();
    }
    copy(&root, Path::new("/bin/busybox"));
    for program in ["/usr/sbin/sshd", "/usr/lib/openssh/sshd-session", "/usr/lib/openssh/sshd-auth"].map(Path::new) {
        if program.exists() {
            copy(&root, program);
            let needed = output("ldd", &[program.to_str().unwrap()]);
            needed
                .split_whitespace()
                .filter(|word| word.starts_with('/'))
                .for_each(|library| copy(&root, Path::new(library)));
        }
    }
    let modules = machine.modules.as_ref().unwrap();
    let (base, release) =
        (modules.ancestors().nth(3).unwrap().to_str().unwrap(), modules.file_name().unwrap().to_str().unwrap());
    let mut order: Vec<PathBuf> = Vec::new();
    for module in MODULES {
        for line in output("modprobe", &["-d", base, "-S", release, "--show-depends", module]).lines() {
            // What is built in has another word.
            let file = line.strip_prefix("insmod ").map(|file| PathBuf::from(file.trim()));
            order.extend(file.filter(|file| !order.contains(file)));
        }
    }
    for (number, file) in order.iter().enumerate() {
        let name = file.file_name().unwrap().to_str().unwrap();
        fs::copy(file, root.join(format!("modules/{number:02}-{name}"))).unwrap();
    }
    for (name, text) in [
        ("init", INIT),
        ("etc/passwd", "root::0:0:root:/root:/bin/sh\nsshd:x:100:65534::/run/sshd:/bin/false\n"),
        ("etc/group", "root:x:0:\nnogroup:x:65534:\n"),
        ("etc/ssh/sshd_config", SSHD),
    ] {
        fs::write(root.join(name), text).unwrap();
    }
    fs::set_permissions(root.join("init"), fs::Permissions::from_mode(0o755)).unwrap();
    write_private(&root.join("etc/ssh/other"), keys::generate("other").private_openssh.expose());
    symlink("busybox", root.join("bin/sh")).unwrap();
    let archive = at.join("initrd");
    let line = format!("cd {} && find . | busybox cpio -o -H newc > {}", root.display(), archive.display());
    output("sh", &["-c", &line]);
    fs::read(archive).unwrap()
}

fn use_image(spec: &mut WorkloadSpec, machine: &MachineSpec, path: &Path, bytes: &[u8]) {
    fs::write(path, bytes).unwrap();
    spec.machine = Some(machine.clone());
    spec.image = path.to_owned();
    spec.image_blake3 = blake3::hash(bytes).to_hex().to_string();
    spec.image_size_bytes = bytes.len() as u64;
    spec.ram_mib = 256;
    spec.valid_to_unix_ms += 600_000;
}

fn refused(host: &Host, change: impl FnOnce(&mut WorkloadSpec)) -> Failure {
    let grant = host.prepare(change);
    let failure = host.answer::<RunnerState>(&["start", "--dir", grant.dir_text()]).unwrap_err();
    grant.clean();
    failure
}

#[test]
fn a_unified_kernel_image_is_logged_into_with_the_keys_it_was_given() {
    let Some((host, machine)) = host(As::Root) else { return };
    let (kernel, initrd) = (fs::read(&machine.kernel).unwrap(), initrd(&machine, host.temp.path()));
    let image = |more: &str| {
        let line = format!("{COMMAND_LINE}{more}\n");
        assemble(&[
            (".osrel", b"NAME=test\n"),
            (".cmdline", line.as_bytes()),
            (".initrd", &initrd),
            (".linux", &kernel),
        ])
    };
    let at = host.temp.path().join("own.efi");
    let mut grant = host.prepare(|spec| {
        use_image(spec, &machine, &at, &image(""));
        spec.env = [("A".to_owned(), "b".to_owned())].into();
    });
    let state: RunnerState = host.answer(&["start", "--dir", grant.dir_text()]).unwrap();
    grant.ready(state);
    let Phase::Ready { isolation, .. } = &grant.state.as_ref().unwrap().phase else { panic!() };
    assert_eq!(isolation.level, IsolationLevel::Machine);
    for told in ["a system of its own", "environment variables"] {
        assert!(isolation.losses.iter().any(|loss| loss.contains(told)), "{:?}", isolation.losses);
    }
    // The harness' client knows no host key but the grant's.
    assert_eq!(grant.ssh("cat /proc/cmdline").out.trim(), COMMAND_LINE);
    let seen = grant.ssh(
        "grep -c io.systemd.credential.binary:tmpfiles.extra= /sys/firmware/dmi/tables/DMI; cat /sys/block/vd?/serial",
    );
    assert_eq!(seen.out, "1\nrootseed", "{seen:?}");
    assert!(grant.ssh(": > /dev/vdb").code != 0 || grant.ssh("cat /sys/block/vdb/ro").out == "1\n");

    // Nothing of ours is inside to be told of another end, and nothing has to be.
    let later = grant.spec.valid_to_unix_ms + 60_000;
    let moved: RunnerState =
        host.answer(&["extend", "--dir", grant.dir_text(), "--until", &later.to_string()]).unwrap();
    assert_eq!(moved.valid_to_unix_ms, later);

    grant.ssh("poweroff -f");
    let (reason, detail, usage) = grant.await_end(Duration::from_secs(60));
    assert_eq!(reason, EndReason::EnvironmentDied, "{detail:?}");
    assert!(usage.cpu_core_ms > 500 && usage.net_bytes > 1_000 && usage.guest.is_none(), "{usage:?}");
    let bytes = fs::read(&at).unwrap();
    assert_eq!(blake3::hash(&bytes).to_hex().to_string(), grant.spec.image_blake3, "the image was written to");
    grant.clean();

    let failure = refused(&host, |spec| use_image(spec, &machine, &at, &image(" other")));
    assert!(failure.code == "machine_failed" && failure.message.contains("shows the host key"), "{failure}");
}

/// A boot sector that reads the disk's second sector, writes it to the serial port up to a zero byte, and resets the machine.
const BOOT_SECTOR: [u8; 45] = [
    0x31, 0xc0, 0x8e, 0xd8, 0x8e, 0xc0, 0x8e, 0xd0, 0xbc, 0x00, 0x7c, // segments and stack
    0xb8, 0x01, 0x02, 0xb9, 0x02, 0x00, 0xb6, 0x00, 0xbb, 0x00, 0x7e, 0xcd, 0x13, // read sector 2 to 0x7e00
    0xbe, 0x00, 0x7e, 0xba, 0xf8, 0x03, // from there to the port
    0xac, 0x84, 0xc0, 0x74, 0x03, 0xee, 0xeb, 0xf8, // byte by byte
    0xb0, 0xfe, 0xe6, 0x64, 0xf4, 0xeb, 0xfd, // reset by the keyboard controller
];

fn disk() -> Vec<u8> {
    let mut disk = vec![0; 3 << 20];
    disk[..BOOT_SECTOR.len()].copy_from_slice(&BOOT_SECTOR);
    disk[510..512].copy_from_slice(&[0x55, 0xaa]);
    disk[512..][..22].copy_from_slice(b"the second sector says");
    disk
}

/// A disk with a kernel and its initial file system behind a boot loader of our own, `loader.s`; none without an assembler.
fn disk_with_loader(kernel: &[u8], initrd: &[u8], at: &Path) -> Option<Vec<u8>> {
    if !["as", "ld"].iter().all(|program| super::harness::has(program)) {
        eprintln!("SKIPPED: no assembler here; run .ci/setup");
        return None;
    }
    // The kernel says how many sectors its real mode part has beside the first.
    let setup = usize::from(kernel[0x1f1]) + 1;
    let sectors = |bytes: usize| bytes.div_ceil(512);
    let numbers = [
        format!("SETUP={setup}"),
        format!("KERNEL={}", sectors(kernel.len()) - setup),
        format!("INITRD={}", sectors(initrd.len())),
        format!("INITRD_BYTES={}", initrd.len()),
    ];
    fs::write(at.join("loader.s"), include_str!("loader.s")).unwrap();
    fs::write(at.join("line"), COMMAND_LINE).unwrap();
    let file = |name: &str| at.join(name).to_str().unwrap().to_owned();
    let (source, object, loader) = (file("loader.s"), file("loader.o"), file("loader"));
    let defined = numbers.iter().flat_map(|number| ["--defsym", number]);
    let words = ["--32", "-I", at.to_str().unwrap(), "-o", &object, &source];
    output("as", &words.into_iter().chain(defined).collect::<Vec<_>>());
    output("ld", &["-m", "elf_i386", "-Ttext", "0x7c00", "--oformat", "binary", "-o", &loader, &object]);
    let mut disk = fs::read(loader).unwrap();
    for part in [kernel, initrd] {
        disk.extend_from_slice(part);
        disk.resize(disk.len().next_multiple_of(512), 0);
    }
    Some(disk)
}

#[test]
fn a_disk_is_started_by_its_own_boot_loader_and_logged_into() {
    let Some((host, machine)) = host(As::User) else { return };
    let (kernel, initrd) = (fs::read(&machine.kernel).unwrap(), initrd(&machine, host.temp.path()));
    let Some(disk) = disk_with_loader(&kernel, &initrd, host.temp.path()) else { return };
    let at = host.temp.path().join("own.disk");
    let grant = host.start(|spec| use_image(spec, &machine, &at, &disk));
    assert_eq!(grant.ssh("cat /proc/cmdline").out.trim(), COMMAND_LINE);
    // Its disk is the image and empty beyond, of the size that was granted, and its own to write to.
    let seen =
        grant.ssh("cat /sys/block/vda/size; head -c 512 /dev/vda | md5sum; echo new > /dev/vda && head -c 3 /dev/vda");
    let first = output("sh", &["-c", &format!("head -c 512 {} | md5sum", at.display())]);
    assert_eq!(seen.out, format!("{}\n{first}new", grant.spec.disk_mib * 2048), "{seen:?}");
    assert_eq!(fs::read(&at).unwrap(), disk, "the image was written to");
    let Phase::Ended { reason, usage, .. } = grant.stop().phase else { panic!() };
    assert!(reason == EndReason::Stopped && usage.net_bytes > 1_000, "{usage:?}");
    grant.clean();
}

#[test]
fn a_disk_is_started_by_its_own_boot_sector() {
    let Some((host, machine)) = host(As::Root) else { return };
    let at = host.temp.path().join("own.disk");
    let failure = refused(&host, |spec| use_image(spec, &machine, &at, &disk()));
    assert_eq!(failure.code, "machine_failed", "{failure}");
    assert!(failure.message.contains("it ended") && failure.message.contains("the second sector says"), "{failure}");
}

#[test]
fn what_cannot_be_booted_is_refused_by_name_before_anything_is_made() {
    let Some((host, machine)) = host(As::User) else { return };
    let at = host.temp.path().join("own.disk");
    let failure = refused(&host, |spec| {
        use_image(spec, &machine, &at, &disk());
        spec.machine = None;
    });
    assert_eq!(failure.code, "image_needs_machine", "{failure}");
    assert!(
        failure.message.contains("bootable disk (MBR)") && failure.hint.unwrap().contains("isolation = \"machine\"")
    );
    for bytes in [&b"QFI\xfb and more"[..], &assemble(&[(".linux", &[0; 600])]), &assemble(&[(".text", b"x")])] {
        for machine in [Some(machine.clone()), None] {
            let failure = refused(&host, |spec| {
                use_image(spec, &MachineSpec::default(), &at, bytes);
                spec.machine = machine;
            });
            assert_eq!(failure.code, "image_not_bootable", "{failure}");
        }
    }
    let failure = refused(&host, |spec| {
        use_image(spec, &machine, &at, &disk());
        spec.disk_mib = 2;
    });
    assert_eq!(failure.code, "image_too_large", "{failure}");
    let failure = refused(&host, |spec| {
        use_image(spec, &machine, &at, &disk());
        spec.command = vec!["/bin/true".into()];
    });
    assert!(failure.code == "bad_spec" && failure.message.contains("without a command"), "{failure}");
    let mut kernel = vec![0; 9 << 20];
    kernel[0x202..0x206].copy_from_slice(b"HdrS");
    let failure = refused(&host, |spec| {
        use_image(spec, &machine, &at, &assemble(&[(".linux", &kernel)]));
        spec.ram_mib = 8;
    });
    assert!(failure.code == "image_not_bootable" && failure.message.contains("8 MiB of memory"), "{failure}");
}
