//! Starting one process inside an environment.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::pty::{PtyMaster, posix_openpt, ptsname_r, unlockpt};
use nix::unistd::Pid;

use super::proto::{Launch, Program, Setup, Terminal};
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
    let mut command = program(&account, launch)?;
    environment(&mut command, &account, setup, launch);
    let master = match &launch.terminal {
        Some(terminal) => Some(attach_terminal(&mut command, &account, launch, terminal)?),
        None => {
            attach_streams(&mut command, launch, streams)?;
            None
        }
    };
    sys::new_session(&mut command, launch.terminal.is_some());
    let child = command.spawn().map_err(|e| {
        let name = command.get_program().to_string_lossy().into_owned();
        format!("cannot run {name} inside the workload's image: {e}")
    })?;
    let leader = Pid::from_raw(i32::try_from(child.id()).map_err(|e| e.to_string())?);
    Ok(Started { leader, master: master.map(Into::into) })
}

fn program(account: &Account, launch: &Launch) -> Result<Command, String> {
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
        Program::Workload(argv) => {
            let (first, rest) = argv.split_first().ok_or("the workload's command is empty")?;
            let mut command = Command::new(first);
            command.args(rest);
            command
        }
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
    let leader = sys::fork_session(streams, move || crate::sftp::serve_standard_streams(&home, &all))
        .map_err(|e| format!("cannot start the file server: {e}"))?;
    Ok(Started { leader, master: None })
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

fn attach_streams(command: &mut Command, launch: &Launch, streams: Vec<OwnedFd>) -> Result<(), String> {
    if let Program::Workload(_) = launch.program {
        let [stdout, stderr] =
            <[OwnedFd; 2]>::try_from(streams).map_err(|s| format!("{} streams came, 2 are needed", s.len()))?;
        command.stdin(Stdio::null()).stdout(Stdio::from(stdout)).stderr(Stdio::from(stderr));
        return Ok(());
    }
    let [stdin, stdout, stderr] =
        <[OwnedFd; 3]>::try_from(streams).map_err(|s| format!("{} streams came, 3 are needed", s.len()))?;
    command.stdin(Stdio::from(stdin)).stdout(Stdio::from(stdout)).stderr(Stdio::from(stderr));
    Ok(())
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
}
