//! The file system an environment sees: its own root, a private /proc, /dev, /tmp, and nothing of the host.

use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use nix::fcntl::{OFlag, open};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::Mode;
use nix::sys::statvfs::{FsFlags, statvfs};
use nix::unistd::{chdir, fchdir, pivot_root};

use super::proto::Setup;
use crate::types::IsolationLevel;

/// What failed, in words.
pub(crate) type Problem = String;

const DEVICES: [&str; 6] = ["null", "zero", "full", "random", "urandom", "tty"];
/// Kernel files that even a reader with uid 0 has no business with.
const MASKED: [&str; 6] =
    ["/proc/kcore", "/proc/keys", "/proc/timer_list", "/proc/sched_debug", "/proc/sysrq-trigger", "/proc/kmsg"];

fn at<T, E: std::fmt::Display>(what: impl std::fmt::Display, result: Result<T, E>) -> Result<T, Problem> {
    result.map_err(|e| format!("{what}: {e}"))
}

fn mnt(source: &str, target: &str, kind: Option<&str>, flags: MsFlags, data: Option<&str>) -> Result<(), Problem> {
    at(format_args!("mount {source} on {target}"), mount(Some(source), target, kind, flags, data))
}

/// Builds the view and enters it. Needs to be pid 1 of fresh mount and pid namespaces with mount rights there. Returns
/// what had to be left out. Afterwards nothing of the host's file system can be reached by any path.
pub(crate) fn enter(setup: &Setup) -> Result<Vec<String>, Problem> {
    let mut losses = Vec::new();
    at(
        "make mounts private",
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>),
    )?;
    let host =
        at("open the host's root", open("/", OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty()))?;
    bind_root(&setup.rootfs)?;
    at("enter the root file system", chdir(&setup.rootfs))?;
    at("pivot_root", pivot_root(".", "."))?;
    // The old root lies on top of the new one and is the current directory: relative paths are the host's, absolute
    // ones are the new root's. Symbolic links of the image therefore resolve inside it, whatever they say.
    at("return to the host's root", fchdir(&host))?;
    if let Some(view) = &setup.machine {
        view.paths.iter().try_for_each(|path| show(path))?;
    }
    mount_proc(&mut losses)?;
    mount_dev(setup, &mut losses)?;
    mount_temporary(setup)?;
    mask(setup)?;
    leave_host(host)?;
    Ok(losses)
}

/// Makes the root file system a mount point of its own, without set-uid programs and device nodes.
fn bind_root(rootfs: &Path) -> Result<(), Problem> {
    let what = format!("bind {}", rootfs.display());
    at(&what, mount(Some(rootfs), rootfs, None::<&str>, MsFlags::MS_BIND, None::<&str>))?;
    let now = at("read mount flags", statvfs(rootfs))?.flags();
    if now.contains(FsFlags::ST_NOEXEC) {
        return Err(format!("{} lies on a file system mounted noexec; nothing could run there", rootfs.display()));
    }
    let mut flags = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    keep_flags(&mut flags, now);
    at(format_args!("re{what} without set-uid"), mount(None::<&str>, rootfs, None::<&str>, flags, None::<&str>))
}

/// Shows a path of the host inside, read-only; nothing where the host has nothing. Links are repeated, not followed.
fn show(path: &Path) -> Result<(), Problem> {
    let relative = path.strip_prefix("/").unwrap_or(path);
    let Ok(meta) = fs::symlink_metadata(relative) else { return Ok(()) };
    let what = format!("show {}", path.display());
    if let Some(parent) = path.parent() {
        at(&what, fs::create_dir_all(parent))?;
    }
    if meta.is_symlink() {
        let target = at(&what, fs::read_link(relative))?;
        return at(&what, symlink(target, path));
    }
    if meta.is_dir() {
        at(&what, fs::create_dir_all(path))?;
    } else {
        at(&what, fs::File::create(path))?;
    }
    let bind = MsFlags::MS_BIND | MsFlags::MS_REC;
    at(&what, mount(Some(relative), path, None::<&str>, bind, None::<&str>))?;
    let now = at(&what, statvfs(path))?.flags();
    let mut flags =
        MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    keep_flags(&mut flags, now);
    flags.set(MsFlags::MS_NOEXEC, now.contains(FsFlags::ST_NOEXEC));
    at(&what, mount(None::<&str>, path, None::<&str>, flags, None::<&str>))
}

/// A less privileged mount namespace may only add to the flags its parent set, so those are repeated.
fn keep_flags(flags: &mut MsFlags, now: FsFlags) {
    for (bit, flag) in [
        (FsFlags::ST_NOATIME, MsFlags::MS_NOATIME),
        (FsFlags::ST_NODIRATIME, MsFlags::MS_NODIRATIME),
        (FsFlags::ST_RELATIME, MsFlags::MS_RELATIME),
    ] {
        flags.set(flag, now.contains(bit));
    }
}

/// The door to the kernel's hypervisor, for the one user inside. Root makes a node of its own, because the host's belongs to
/// a group that means nothing inside; anybody else needs access to the host's.
fn show_kvm(setup: &Setup) -> Result<(), Problem> {
    let what = "show /dev/kvm";
    let Some(base) = setup.uid_base else {
        at(what, fs::File::create("/dev/kvm"))?;
        return mnt("dev/kvm", "/dev/kvm", None, MsFlags::MS_BIND, None);
    };
    use std::os::unix::fs::MetadataExt;
    let device = at(what, fs::metadata("dev/kvm"))?.rdev();
    let mode = Mode::S_IRUSR | Mode::S_IWUSR;
    at(what, nix::sys::stat::mknod("/dev/kvm", nix::sys::stat::SFlag::S_IFCHR, mode, device))?;
    at(what, std::os::unix::fs::chown("/dev/kvm", Some(base), Some(base)))
}

/// Makes sure that a mount point is there: a real directory, not a link.
fn mount_point(path: &str) -> Result<(), Problem> {
    match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => Ok(()),
        Ok(_) => Err(format!("the image has a {path} that is not a directory")),
        Err(e) if e.kind() == io::ErrorKind::NotFound => at(format_args!("create {path}"), fs::create_dir(path)),
        Err(e) => Err(format!("look at {path}: {e}")),
    }
}

fn mount_proc(losses: &mut Vec<String>) -> Result<(), Problem> {
    mount_point("/proc")?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    match mount(Some("proc"), "/proc", Some("proc"), flags, None::<&str>) {
        Ok(()) => Ok(()),
        // Inside containers that hide parts of /proc, the kernel refuses an unprivileged user a complete one.
        Err(nix::errno::Errno::EPERM) => {
            losses
                .push("there is no /proc inside, because this host does not let an unprivileged user mount one".into());
            Ok(())
        }
        Err(e) => Err(format!("mount /proc: {e}")),
    }
}

fn mount_dev(setup: &Setup, losses: &mut Vec<String>) -> Result<(), Problem> {
    mount_point("/dev")?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    mnt("tmpfs", "/dev", Some("tmpfs"), flags, Some("mode=755,size=64k,nr_inodes=64"))?;
    for device in DEVICES {
        let inside = format!("/dev/{device}");
        at(format_args!("create {inside}"), fs::File::create(&inside))?;
        mnt(&format!("dev/{device}"), &inside, None, MsFlags::MS_BIND, None)?;
    }
    if setup.machine.as_ref().is_some_and(|view| view.kvm) {
        show_kvm(setup)?;
    }
    for dir in ["/dev/pts", "/dev/shm"] {
        at(format_args!("create {dir}"), fs::create_dir(dir))?;
    }
    // Group 5 is `tty` by convention; with one mapped id only, there is no such group.
    let options = match (setup.level, setup.uid_base) {
        (_, Some(base)) => format!("newinstance,ptmxmode=0666,mode=0620,gid={}", base.saturating_add(5)),
        (IsolationLevel::RootNamespaces, None) => "newinstance,ptmxmode=0666,mode=0620,gid=5".to_owned(),
        _ => "newinstance,ptmxmode=0666,mode=0620".to_owned(),
    };
    mnt("devpts", "/dev/pts", Some("devpts"), flags, Some(&options))?;
    for (name, target) in [
        ("/dev/ptmx", "pts/ptmx"),
        ("/dev/fd", "/proc/self/fd"),
        ("/dev/stdin", "/proc/self/fd/0"),
        ("/dev/stdout", "/proc/self/fd/1"),
        ("/dev/stderr", "/proc/self/fd/2"),
    ] {
        at(format_args!("link {name}"), symlink(target, name))?;
    }
    if fs::symlink_metadata("/proc/self").is_err() && losses.is_empty() {
        losses.push("/proc is not usable inside".into());
    }
    Ok(())
}

fn mount_temporary(setup: &Setup) -> Result<(), Problem> {
    let size = (setup.ram_mib / 2).max(4);
    let owner = setup.uid_base.map(|base| format!(",uid={base},gid={base}")).unwrap_or_default();
    let options = format!("mode=1777,size={size}m,nr_inodes=65536{owner}");
    for target in ["/tmp", "/dev/shm"] {
        mount_point(target)?;
        mnt("tmpfs", target, Some("tmpfs"), MsFlags::MS_NOSUID | MsFlags::MS_NODEV, Some(&options))?;
    }
    Ok(())
}

/// Covers kernel files; where the workload's root is the host's root, the kernel's switches are also made read-only.
fn mask(setup: &Setup) -> Result<(), Problem> {
    for file in MASKED {
        if fs::symlink_metadata(file).is_ok() {
            mnt("dev/null", file, None, MsFlags::MS_BIND, None)?;
        }
    }
    if setup.level == IsolationLevel::RootNamespaces && setup.uid_base.is_none() {
        for dir in ["/proc/sys", "/proc/bus", "/proc/irq", "/proc/fs"] {
            if fs::symlink_metadata(dir).is_ok() {
                mnt(dir, dir, None, MsFlags::MS_BIND | MsFlags::MS_REC, None)?;
                let flags = MsFlags::MS_REMOUNT
                    | MsFlags::MS_BIND
                    | MsFlags::MS_RDONLY
                    | MsFlags::MS_NOSUID
                    | MsFlags::MS_NODEV
                    | MsFlags::MS_NOEXEC;
                at(format_args!("make {dir} read-only"), mount(None::<&str>, dir, None::<&str>, flags, None::<&str>))?;
            }
        }
    }
    Ok(())
}

fn leave_host(host: OwnedFd) -> Result<(), Problem> {
    drop(host);
    at("unmount the host's root", umount2(".", MntFlags::MNT_DETACH))?;
    at("enter the new root", chdir("/"))
}

/// Lets the workload's root, which has no power over the network namespace, use low ports and ping.
pub(crate) fn open_ports() {
    // Both are conveniences: an old kernel without them is no reason to refuse.
    let _ = fs::write("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0");
    let _ = fs::write("/proc/sys/net/ipv4/ping_group_range", "0 2147483647");
}

/// Writes an `/etc/resolv.conf` that names this resolver, instead of the image's: the one that names cannot be reached from here. It
/// is the workload's file, which it may change.
pub(crate) fn name_resolver(resolver: Ipv4Addr) -> Result<(), Problem> {
    const FILE: &str = "/etc/resolv.conf";
    at("create /etc", fs::create_dir_all("/etc"))?;
    // A link may lead anywhere, to nowhere mostly.
    match fs::remove_file(FILE) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(format!("replace {FILE}: {e}")),
        _ => {}
    }
    at(format_args!("write {FILE}"), fs::write(FILE, format!("nameserver {resolver}\n")))?;
    at(format_args!("write {FILE}"), fs::set_permissions(FILE, fs::Permissions::from_mode(0o644)))
}

/// Makes `/root` and `/var/log` exist for the user inside, best effort: sessions start in one and programs log to the other.
pub(crate) fn make_home() {
    for dir in ["/root", "/var", "/var/log"] {
        if fs::create_dir(dir).is_ok() {
            let _ = fs::set_permissions(dir, fs::Permissions::from_mode(0o755));
        }
    }
}
