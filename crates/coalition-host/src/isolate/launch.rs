//! Starting one process inside an environment.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::pty::{PtyMaster, posix_openpt, ptsname_r, unlockpt};
use nix::unistd::Pid;

use super::proto::{Launch, MACHINE_FDS, Program, Setup, Terminal, Workload};
use super::{pty, sys};
use crate::types::IsolationLevel;

const SYSTEM_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Marks every process of a grant; see `proc::with_environment`.
pub(crate) const GRANT_VARIABLE: &str = "COALITION_GRANT";
/// Where images keep an SFTP server, if they have one.
const SFTP_SERVERS: [&str; 4] = [
    "/usr/lib/openssh/sftp-server",
    "/usr/libexec/openssh/sftp-server",
    "/usr/lib/ssh/sftp-server",
    "/usr/libexec/sftp-server",
];
const MOTD_LIMIT: u64 = 3000;

/// A started process.
pub(crate) struct Started {
    pub(crate) leader: Pid,
    pub(crate) master: Option<OwnedFd>,
}

/// The user of the environment.
struct Account {
    /// "" when isolated; the unpacked root when not.
    root: PathBuf,
    home: PathBuf,
    shell: PathBuf,
    path: String,
}

impl Account {
    fn of(setup: &Setup) -> Self {
        if setup.level == IsolationLevel::ProcessLimits {
            let root = setup.rootfs.clone();
            let own = root.join("bin/sh");
            let dirs = SYSTEM_PATH.split(':').map(|d| format!("{}{d}", root.display())).collect::<Vec<_>>();
            return Self {
                home: if root.join("root").is_dir() { root.join("root") } else { root.clone() },
                shell: if own.exists() { own } else { "/bin/sh".into() },
                path: format!("{}:{SYSTEM_PATH}", dirs.join(":")),
                root,
            };
        }
        let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
        let (home, shell) = root_entry(&passwd);
        let shell = if Path::new(&shell).exists() { shell } else { "/bin/sh".to_owned() };
        let home = if Path::new(&home).is_dir() { home } else { "/".to_owned() };
        Self { root: PathBuf::new(), home: home.into(), shell: shell.into(), path: SYSTEM_PATH.to_owned() }
    }

    fn inside(&self, path: &str) -> PathBuf {
        if self.root.as_os_str().is_empty() { path.into() } else { self.root.join(path.trim_start_matches('/')) }
    }
}

/// Home and shell of uid 0 in a passwd file, with defaults.
fn root_entry(passwd: &str) -> (String, String) {
    let entry = passwd.lines().map(|l| l.split(':').collect::<Vec<_>>()).find(|f| f.len() >= 7 && f[2] == "0");
    let (home, shell) = entry.map_or(("", ""), |f| (f[5], f[6]));
    let or = |value: &str, default: &str| if value.starts_with('/') { value.to_owned() } else { default.to_owned() };
    (or(home, "/root"), or(shell, "/bin/sh"))
}

/// Starts a process. `streams` are its standard input, output and error when it has no terminal.
pub(crate) fn start(setup: &Setup, launch: &Launch, streams: Vec<OwnedFd>) -> Result<Started, String> {
    let account = Account::of(setup);
    if launch.program == Program::Sftp && sftp_server(&account).is_none() {
        return own_sftp_server(&account, streams);
    }
    let mut command = program(&account, setup, launch)?;
    environment(&mut command, &account, setup, launch);
    let mut passed = Vec::new();
    let master = match &launch.terminal {
        Some(terminal) => Some(attach_terminal(&mut command, &account, launch, terminal)?),
        None => {
            passed = attach_streams(&mut command, launch, streams)?;
            None
        }
    };
    sys::new_session(&mut command, launch.terminal.is_some());
    let child = command.spawn().map_err(|e| {
        let name = command.get_program().to_string_lossy().into_owned();
        format!("cannot run {name} inside the workload's image: {e}")
    })?;
    drop(passed);
    let leader = Pid::from_raw(i32::try_from(child.id()).map_err(|e| e.to_string())?);
    Ok(Started { leader, master: master.map(Into::into) })
}

fn program(account: &Account, setup: &Setup, launch: &Launch) -> Result<Command, String> {
    let mut command = match &launch.program {
        Program::Shell => {
            let mut command = Command::new(&account.shell);
            let name = account.shell.file_name().unwrap_or_default().to_string_lossy();
            command.arg0(format!("-{name}"));
            command
        }
        Program::Command(line) => {
            let mut command = Command::new(&account.shell);
            command.arg("-c").arg(line);
            command
        }
        Program::Workload(workload) => return self::workload(account, setup, workload),
        Program::Machine(argv) => arguments(argv)?,
        Program::Sftp => Command::new(sftp_server(account).ok_or("the image has no sftp-server")?),
    };
    command.current_dir(&account.home);
    Ok(command)
}

/// The image's own SFTP server, if it has one.
fn sftp_server(account: &Account) -> Option<PathBuf> {
    SFTP_SERVERS.iter().map(|path| account.inside(path)).find(|path| path.exists())
}

/// Serves files from a copy of this process, which has given up everything that a workload must not have. A program of
/// its own would be in the workload's reach, by `/proc`; a copy is as opaque as we are.
fn own_sftp_server(account: &Account, streams: Vec<OwnedFd>) -> Result<Started, String> {
    let streams = <[OwnedFd; 3]>::try_from(streams).map_err(|s| format!("{} streams came, 3 are needed", s.len()))?;
    let all = if account.root.as_os_str().is_empty() { PathBuf::from("/") } else { account.root.clone() };
    let home = account.home.clone();
    let leader = sys::fork_session(&streams, move || crate::sftp::serve_standard_streams(&home, &all))
        .map_err(|e| format!("cannot start the file server: {e}"))?;
    Ok(Started { leader, master: None })
}

fn arguments(argv: &[String]) -> Result<Command, String> {
    let (first, rest) = argv.split_first().ok_or("the workload's command is empty")?;
    let mut command = Command::new(first);
    command.args(rest);
    Ok(command)
}

/// The workload's command, where and as whom its image wants it run.
fn workload(account: &Account, setup: &Setup, workload: &Workload) -> Result<Command, String> {
    let mut command = arguments(&workload.argv)?;
    let dir = workload.workdir.as_ref().map(|dir| account.inside(dir));
    command.current_dir(dir.as_ref().unwrap_or(&account.home));
    if let Some(wanted) = workload.user.as_ref().filter(|_| setup.level == IsolationLevel::RootNamespaces) {
        let read = |path: &str| fs::read_to_string(account.inside(path)).unwrap_or_default();
        let (uid, gid) = ids_of(wanted, &read("/etc/passwd"), &read("/etc/group"))?;
        if (uid, gid) != (0, 0) {
            command.gid(gid).uid(uid);
        }
    }
    Ok(command)
}

/// Numbers of `user[:group]`, from the image's own files. A user given by number alone that has no entry gets group 0,
/// as container runtimes have it.
fn ids_of(wanted: &str, passwd: &str, group: &str) -> Result<(u32, u32), String> {
    let (user, of_group) = wanted.split_once(':').map_or((wanted, None), |(u, g)| (u, Some(g)));
    let number = |text: &str| text.parse::<u32>().ok().filter(|id| *id < 65_536);
    let entry = |text: &str, at: usize, value: &str| {
        let mut lines = text.lines().map(|line| line.split(':').map(str::to_owned).collect::<Vec<_>>());
        lines.find(|fields| fields.len() > 3.min(at + 2) && fields[at] == value)
    };
    let known = entry(passwd, 0, user).or_else(|| entry(passwd, 2, user));
    let uid = number(user).or_else(|| number(known.as_ref()?.get(2)?));
    let uid =
        uid.ok_or_else(|| format!("the image wants to run as {wanted:?}, and its /etc/passwd has no such user"))?;
    let gid = match of_group.filter(|g| !g.is_empty()) {
        Some(name) => number(name).or_else(|| number(entry(group, 0, name)?.get(2)?)),
        None => Some(known.and_then(|fields| number(fields.get(3)?)).unwrap_or(0)),
    };
    let gid =
        gid.ok_or_else(|| format!("the image wants to run as {wanted:?}, and its /etc/group has no such group"))?;
    Ok((uid, gid))
}

fn environment(command: &mut Command, account: &Account, setup: &Setup, launch: &Launch) {
    let mut env: BTreeMap<&str, String> = BTreeMap::new();
    env.insert("PATH", account.path.clone());
    env.insert("HOME", account.home.display().to_string());
    env.insert("SHELL", account.shell.display().to_string());
    env.insert("USER", "root".to_owned());
    env.insert("LOGNAME", "root".to_owned());
    if let Some(terminal) = &launch.terminal {
        env.insert("TERM", terminal.name.clone());
    }
    for (name, value) in &launch.env {
        env.insert(name, value.clone());
    }
    env.insert(GRANT_VARIABLE, setup.grant_id.clone());
    command.env_clear().envs(env);
}

/// Answers what has to be closed once the child is started.
fn attach_streams(command: &mut Command, launch: &Launch, mut streams: Vec<OwnedFd>) -> Result<Vec<OwnedFd>, String> {
    if let Program::Workload(_) = launch.program {
        let [stdout, stderr] =
            <[OwnedFd; 2]>::try_from(streams).map_err(|s| format!("{} streams came, 2 are needed", s.len()))?;
        command.stdin(Stdio::null()).stdout(Stdio::from(stdout)).stderr(Stdio::from(stderr));
        return Ok(Vec::new());
    }
    let further = streams.split_off(streams.len().min(3));
    let [stdin, stdout, stderr] =
        <[OwnedFd; 3]>::try_from(streams).map_err(|s| format!("{} streams came, 3 are needed", s.len()))?;
    command.stdin(Stdio::from(stdin)).stdout(Stdio::from(stdout)).stderr(Stdio::from(stderr));
    further.into_iter().zip(MACHINE_FDS..).map(|(fd, number)| place(&fd, number)).collect()
}

/// A copy of a descriptor under this number, which the next child inherits. The caller closes it once that is started.
fn place(fd: &OwnedFd, number: i32) -> Result<OwnedFd, String> {
    let copy = sys::duplicate_from(fd, number).map_err(|e| format!("cannot pass a descriptor on: {e}"))?;
    if copy.as_raw_fd() == number { Ok(copy) } else { Err(format!("descriptor {number} is taken")) }
}

fn attach_terminal(
    command: &mut Command,
    account: &Account,
    launch: &Launch,
    terminal: &Terminal,
) -> Result<PtyMaster, String> {
    let failed = |e: nix::errno::Errno| format!("cannot make a terminal inside: {e}");
    let master = posix_openpt(OFlag::O_RDWR | OFlag::O_NOCTTY).map_err(failed)?;
    fcntl(&master, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).map_err(failed)?;
    unlockpt(&master).map_err(failed)?;
    let name = ptsname_r(&master).map_err(failed)?;
    let mut slave = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(OFlag::O_NOCTTY.bits())
        .open(&name)
        .map_err(|e| format!("cannot open {name} inside: {e}"))?;
    pty::apply_modes(&slave, &terminal.modes).map_err(failed)?;
    sys::set_window_size(slave.as_fd(), terminal.cols, terminal.rows, terminal.xpixel, terminal.ypixel)
        .map_err(|e| format!("cannot size the terminal: {e}"))?;
    if launch.program == Program::Shell {
        // A greeting that does not fit or cannot be read is no reason to refuse the shell.
        let _ = greeting(account).map(|text| slave.write_all(&text));
    }
    let clone = |file: &File| file.try_clone().map_err(|e| format!("cannot copy the terminal: {e}"));
    command.stdin(Stdio::from(clone(&slave)?)).stdout(Stdio::from(clone(&slave)?)).stderr(Stdio::from(slave));
    Ok(master)
}

/// `/etc/motd`, if it is a small ordinary file.
fn greeting(account: &Account) -> Option<Vec<u8>> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags((OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits())
        .open(account.inside("/etc/motd"))
        .ok()?;
    let meta = file.metadata().ok()?;
    if !meta.is_file() || meta.nlink() == 0 {
        return None;
    }
    let mut text = Vec::new();
    file.take(MOTD_LIMIT).read_to_end(&mut text).ok()?;
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwd_is_read_and_defaults_fill_gaps() {
        let passwd = "daemon:x:1:1::/:/bin/false\ntoor:x:0:0:r:/home/r:/bin/ash\n";
        assert_eq!(root_entry(passwd), ("/home/r".into(), "/bin/ash".into()));
        assert_eq!(root_entry("root:x:0:0:::\n"), ("/root".into(), "/bin/sh".into()));
        assert_eq!(root_entry("\u{0}garbage"), ("/root".into(), "/bin/sh".into()));
    }

    #[test]
    fn users_are_names_or_numbers_and_must_be_the_images_own() {
        let (passwd, group) = ("root:x:0:0::/:/bin/sh\nweb:x:33:44::/:/bin/sh\n", "staff:x:50:\n");
        let of = |wanted| ids_of(wanted, passwd, group);
        assert_eq!((of("web").unwrap(), of("33").unwrap()), ((33, 44), (33, 44)));
        assert_eq!((of("web:staff").unwrap(), of("1000").unwrap(), of("7:8").unwrap()), ((33, 50), (1000, 0), (7, 8)));
        for bad in ["nobody", "web:nobody", "70000", ""] {
            assert!(of(bad).is_err(), "{bad}");
        }
    }
}
