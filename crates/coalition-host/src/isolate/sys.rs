//! The only `unsafe` of this crate, beside [`super::link`]: system calls that no safe wrapper covers.
#![allow(unsafe_code)]

use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::signal::SigSet;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, UnixAddr, recvmsg, sendmsg};
use nix::unistd::{ForkResult, Pid};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Makes the child the leader of a session of its own, with its standard input as controlling terminal when `tty`,
/// with no signal blocked (we block some), and the first candidate when the kernel runs out of memory (the
/// environment's first process must outlive it).
pub(crate) fn new_session(command: &mut Command, tty: bool) {
    let before_exec = move || {
        nix::unistd::setsid()?;
        SigSet::empty().thread_set_mask()?;
        // SAFETY: plain system calls on descriptors and constants, no memory handed over but a static string;
        // all are async-signal-safe, as code between fork and exec must be.
        unsafe {
            if tty && libc::ioctl(0, libc::TIOCSCTTY, 0) < 0 {
                return Err(io::Error::last_os_error());
            }
            let fd = libc::open(c"/proc/self/oom_score_adj".as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
            if fd >= 0 {
                libc::write(fd, c"500".as_ptr().cast(), 3);
                libc::close(fd);
            }
        }
        Ok(())
    };
    // SAFETY: the closure allocates nothing and takes no lock.
    unsafe { command.pre_exec(before_exec) };
}

#[repr(C)]
struct CapHeader {
    version: u32,
    pid: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct CapData {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// Keeps only the capabilities in the bit mask `keep`, in every set including the bounding set, for ever.
pub(crate) fn keep_capabilities(keep: u64) -> io::Result<()> {
    for cap in 0..64u64 {
        if keep & (1 << cap) != 0 {
            continue;
        }
        // SAFETY: integers only. EINVAL means that the kernel knows no such capability: the end of the list.
        let rc = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, cap, 0, 0, 0) };
        // EPERM means that we may not shrink the set; then we hold no capability that it could bound, and
        // `no_new_privs`, which callers set, keeps it so.
        if rc < 0 && matches!(Errno::last(), Errno::EINVAL | Errno::EPERM) {
            break;
        }
        if rc < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    // SAFETY: integers only. Kernels without ambient capabilities answer EINVAL, and have nothing to clear.
    unsafe { libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) };
    let header = CapHeader { version: 0x2008_0522, pid: 0 };
    let mut data = [CapData::default(); 2];
    // SAFETY: version 3 of the interface reads a header and writes exactly two data blocks, which both are.
    if unsafe { libc::syscall(libc::SYS_capget, &raw const header, data.as_mut_ptr()) } < 0 {
        return Err(io::Error::last_os_error());
    }
    for (i, block) in data.iter_mut().enumerate() {
        let mask = u32::try_from((keep >> (32 * i)) & 0xffff_ffff).unwrap_or(0);
        block.effective &= mask;
        block.permitted &= mask;
        block.inheritable = 0;
    }
    // SAFETY: as above, read only.
    if unsafe { libc::syscall(libc::SYS_capset, &raw const header, data.as_ptr()) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// A copy of a descriptor under the lowest free number from `from` on, which children inherit.
pub(crate) fn duplicate_from(fd: &OwnedFd, from: i32) -> io::Result<OwnedFd> {
    let copy = fcntl(fd, FcntlArg::F_DUPFD(from))?;
    // SAFETY: the kernel just made this descriptor for us and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(copy) })
}

/// Loads a kernel module from a file; one that is there already is fine.
pub(crate) fn load_module(file: &std::fs::File, compressed: bool) -> io::Result<()> {
    const MODULE_INIT_COMPRESSED_FILE: libc::c_int = 4;
    let flags = if compressed { MODULE_INIT_COMPRESSED_FILE } else { 0 };
    // SAFETY: an open descriptor, a static string and an integer.
    let rc = unsafe { libc::syscall(libc::SYS_finit_module, file.as_raw_fd(), c"".as_ptr(), flags) };
    if rc == 0 || Errno::last() == Errno::EEXIST { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Files of the shared libraries this program was loaded with, under the names it asked for.
pub(crate) fn loaded_libraries() -> Vec<std::path::PathBuf> {
    extern "C" fn note(info: *mut libc::dl_phdr_info, _size: usize, found: *mut libc::c_void) -> libc::c_int {
        // SAFETY: the loader hands out a valid entry with a terminated name, and `found` is the vector below, which
        // nobody else touches meanwhile.
        let (name, found) = unsafe {
            let name = (*info).dlpi_name;
            if name.is_null() {
                return 0;
            }
            (std::ffi::CStr::from_ptr(name), &mut *found.cast::<Vec<std::path::PathBuf>>())
        };
        let path = std::path::PathBuf::from(String::from_utf8_lossy(name.to_bytes()).into_owned());
        // The program itself has an empty name, and the kernel's own page is no file.
        if path.is_absolute() {
            found.push(path);
        }
        0
    }
    let mut found: Vec<std::path::PathBuf> = Vec::new();
    // SAFETY: the callback has the type asked for and the pointer outlives the call.
    unsafe { libc::dl_iterate_phdr(Some(note), (&raw mut found).cast()) };
    found
}

/// Sets a terminal's size.
pub(crate) fn set_window_size(tty: BorrowedFd<'_>, cols: u16, rows: u16, xpixel: u16, ypixel: u16) -> io::Result<()> {
    let size = libc::winsize { ws_row: rows, ws_col: cols, ws_xpixel: xpixel, ws_ypixel: ypixel };
    // SAFETY: the kernel reads one winsize from a valid reference.
    if unsafe { libc::ioctl(tty.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Sends one datagram with descriptors.
pub(crate) fn send_with_fds(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let raw: Vec<i32> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let messages = if raw.is_empty() { vec![] } else { vec![ControlMessage::ScmRights(&raw)] };
    let parts = [io::IoSlice::new(bytes)];
    sendmsg::<UnixAddr>(socket.as_raw_fd(), &parts, &messages, MsgFlags::MSG_NOSIGNAL, None)?;
    Ok(())
}

/// Receives one datagram with its descriptors (at most eight). None at the end of the stream.
pub(crate) fn receive_with_fds(socket: BorrowedFd<'_>, limit: usize) -> io::Result<Option<(Vec<u8>, Vec<OwnedFd>)>> {
    let mut bytes = vec![0u8; limit];
    let mut space = nix::cmsg_space!([i32; 8]);
    let mut parts = [io::IoSliceMut::new(&mut bytes)];
    let received = recvmsg::<UnixAddr>(socket.as_raw_fd(), &mut parts, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)?;
    let mut fds = Vec::new();
    for message in received.cmsgs()? {
        if let ControlMessageOwned::ScmRights(raw) = message {
            // SAFETY: the kernel just made these descriptors for us and nobody else knows them.
            fds.extend(raw.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
        }
    }
    let (length, cut) = (received.bytes, received.flags.contains(MsgFlags::MSG_TRUNC));
    if cut {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("a message of more than {limit} bytes")));
    }
    if length == 0 {
        return Ok(None);
    }
    bytes.truncate(length);
    Ok(Some((bytes, fds)))
}

/// Joins a new, empty session keyring. A kernel without keyrings has nothing to leave.
pub(crate) fn leave_keyring() {
    const KEYCTL_JOIN_SESSION_KEYRING: libc::c_long = 1;
    // SAFETY: a command number and a null name, which the kernel takes as "anonymous".
    unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, std::ptr::null::<libc::c_char>()) };
}

/// Makes every descriptor but the standard streams close on exec. Whoever called us may have left files of its own
/// open, and a workload must not inherit them.
pub(crate) fn close_inherited_on_exec() -> io::Result<()> {
    // SAFETY: integers only; no descriptor is closed now, so nothing in this process loses one it uses.
    let rc = unsafe { libc::syscall(libc::SYS_close_range, 3u32, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    if rc == 0 {
        return Ok(());
    }
    // Kernels before 5.11.
    for entry in std::fs::read_dir("/proc/self/fd")? {
        let Some(fd) = entry?.file_name().to_str().and_then(|n| n.parse::<i32>().ok()).filter(|fd| *fd > 2) else {
            continue;
        };
        // SAFETY: setting a flag on a number; one that was closed meanwhile answers EBADF.
        unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) };
    }
    Ok(())
}

/// Registers a descriptor with the runtime, without blocking from now on.
pub(crate) fn watch_fd(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    let flags = OFlag::from_bits_truncate(fcntl(&fd, FcntlArg::F_GETFL)?);
    fcntl(&fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    // SAFETY: an owned descriptor answers with the same number until it is dropped, which is when it is deregistered.
    Ok(unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE | Interest::WRITABLE) }?)
}

/// Makes a copy of this process that leads a session of its own, has `streams` as its standard streams and no other
/// descriptor, does `work`, and exits with what it answers. The caller must have one thread only.
pub(crate) fn fork_session(streams: &[OwnedFd; 3], work: impl FnOnce() -> i32) -> io::Result<Pid> {
    // SAFETY: with one thread, no lock is held by anybody who does not come along.
    match unsafe { nix::unistd::fork() }? {
        ForkResult::Parent { child } => Ok(child),
        ForkResult::Child => {
            let ready = || {
                nix::unistd::setsid()?;
                nix::unistd::dup2_stdin(&streams[0])?;
                nix::unistd::dup2_stdout(&streams[1])?;
                nix::unistd::dup2_stderr(&streams[2])?;
                // SAFETY: integers only. Owners of these descriptors are never dropped in this process. Kernels before 5.9
                // know no ranges; we have a handful of descriptors, all small.
                unsafe {
                    if libc::syscall(libc::SYS_close_range, 3u32, u32::MAX, 0u32) < 0 {
                        for fd in 3..4096 {
                            libc::close(fd);
                        }
                    }
                }
                SigSet::empty().thread_set_mask()
            };
            let work = std::panic::AssertUnwindSafe(|| if ready().is_ok() { work() } else { 1 });
            let code = std::panic::catch_unwind(work).unwrap_or(1);
            // SAFETY: ends the process without running anything of the original's, destructors included.
            unsafe { libc::_exit(code) }
        }
    }
}

/// Size check of the kernel interface structures above, at compile time.
const _: () = assert!(size_of::<CapHeader>() == 8 && size_of::<CapData>() == 12);
