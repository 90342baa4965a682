//! Where systemd runs the host: starting what lasts as a unit of its, finding and ending such units, and a unit's own side
//! of it. systemd is spoken to by its own programs, which any operator can run as well.

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::stat::Mode;
use nix::unistd::{Uid, User, mkfifo};

use super::log;
use crate::error::{Result, RunnerError};
use crate::isolate::cgroup::Hierarchies;
use crate::types::{ServiceManager, Supervision};
use crate::units::{self, ALL_GRANTS, SHOWN, Shown, Unit};

/// There exactly when systemd is this host's first process: sd_booted(3).
const BOOTED: &str = "/run/systemd/system";
/// Where logind remembers whose managers run without a login.
const LINGERING: &str = "/var/lib/systemd/linger";

/// The service manager that takes units from us.
#[derive(Clone, Debug)]
pub(super) struct Systemd {
    pub(super) manager: ServiceManager,
    /// A user's directory of sockets, in which its manager listens.
    runtime_dir: Option<PathBuf>,
}

/// What a started unit says on its standard output.
pub(super) type Answer = BufReader<File>;

impl Systemd {
    /// The manager that grants are to be units of; else why none is, or nothing where systemd does not run the host.
    pub(super) fn find() -> std::result::Result<Self, Option<String>> {
        if !Path::new(BOOTED).is_dir() {
            return Err(None);
        }
        let hierarchies = Hierarchies::discover();
        if hierarchies.v2.is_none() || !hierarchies.v1.is_empty() {
            return Err(Some("its cgroups are not those of version 2 alone".into()));
        }
        let uid = nix::unistd::geteuid();
        if uid.is_root() {
            return Ok(Self { manager: ServiceManager::System, runtime_dir: None });
        }
        let runtime_dir = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
        let runtime_dir = runtime_dir.unwrap_or_else(|| PathBuf::from(format!("/run/user/{uid}")));
        of_user(uid, runtime_dir).map_err(Some)
    }

    /// One of systemd's programs, asked of this manager.
    fn ask(&self, program: &str, arguments: &[&str]) -> std::io::Result<Output> {
        let mut command = Command::new(program);
        if let Some(dir) = &self.runtime_dir {
            command.arg("--user").env("XDG_RUNTIME_DIR", dir);
        }
        command.args(arguments).stdin(Stdio::null()).output()
    }

    /// Starts a unit; returns when its program runs, with what that says. `unit.output` must not exist, and does not after.
    /// A unit that was refused does not run.
    pub(super) fn start(&self, unit: &Unit) -> std::result::Result<Answer, String> {
        let arguments = unit.arguments()?;
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let pipe = listen(&unit.output).map_err(|e| format!("no pipe {}: {e}", unit.output.display()))?;
        let started = self.ask("systemd-run", &arguments);
        let removed = fs::remove_file(&unit.output);
        let done = started.map_err(|e| format!("systemd-run: {e}"))?;
        if !done.status.success() {
            return Err(format!("systemd-run: {}", last_words(&done)));
        }
        removed.and_then(|()| waiting(pipe)).map_err(|e| format!("the unit's pipe: {e}"))
    }

    /// True when a unit of that name has processes, or may; none when the manager does not say.
    pub(super) fn is_live(&self, name: &str) -> Option<bool> {
        let shown = self.ask("systemctl", &["show", "--property=ActiveState", "--value", name]).ok()?;
        shown.status.success().then(|| units::is_live(&String::from_utf8_lossy(&shown.stdout)))
    }

    /// Units of grants that have processes.
    fn grants(&self) -> Vec<Shown> {
        let shown = self.ask("systemctl", &["show", SHOWN, ALL_GRANTS]);
        shown.map(|shown| units::parse_shown(&String::from_utf8_lossy(&shown.stdout))).unwrap_or_default()
    }

    /// Ends a unit and returns when it is gone.
    fn end(&self, name: &str) -> Result<()> {
        let stopped = self.ask("systemctl", &["stop", name]);
        if self.is_live(name) != Some(true) {
            return Ok(());
        }
        let problem = stopped.map_or_else(|e| e.to_string(), |done| last_words(&done));
        Err(RunnerError::Environment(format!("systemd did not end {name}: {problem}")))
    }
}

fn of_user(uid: Uid, runtime_dir: PathBuf) -> std::result::Result<Systemd, String> {
    let user = User::from_uid(uid).ok().flatten().map_or_else(|| uid.to_string(), |user| user.name);
    if !Path::new(LINGERING).join(&user).exists() {
        return Err(format!(
            "lingering is off for {user}, so it may end this user's grants with its last login; `loginctl enable-linger \
             {user}` switches it on"
        ));
    }
    if !["systemd/private", "bus"].iter().any(|socket| runtime_dir.join(socket).exists()) {
        return Err(format!("no service manager of {user}'s listens in {}", runtime_dir.display()));
    }
    Ok(Systemd { manager: ServiceManager::User, runtime_dir: Some(runtime_dir) })
}

/// The end of what a program complained about.
fn last_words(done: &Output) -> String {
    let said = String::from_utf8_lossy(&done.stderr);
    let said = said.trim().lines().last().unwrap_or_default().to_owned();
    if said.is_empty() { done.status.to_string() } else { said }
}

/// A pipe by name, open for reading: whoever opens it for writing need not wait.
fn listen(path: &Path) -> std::io::Result<File> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e),
        _ => mkfifo(path, Mode::S_IRUSR | Mode::S_IWUSR)?,
    }
    OpenOptions::new().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(path)
}

/// The same pipe, on which reading waits: its writer has it open by now, so its end is the writer's.
fn waiting(pipe: File) -> std::io::Result<Answer> {
    fcntl(&pipe, FcntlArg::F_SETFL(OFlag::empty()))?;
    Ok(BufReader::new(pipe))
}

/// The first line that a unit says; none when it ended without a word.
pub(super) fn first_line(answer: &mut Answer) -> Option<String> {
    let mut line = String::new();
    answer.read_line(&mut line).ok().filter(|read| *read > 0)?;
    Some(line.trim_end().to_owned())
}

/// This program's file, for whoever is not its child.
pub(super) fn own_program() -> std::result::Result<String, String> {
    let path = std::env::current_exe().map_err(|e| format!("the runner's own file: {e}"))?;
    match path.to_str() {
        Some(text) if path.is_file() => Ok(text.to_owned()),
        _ => Err(format!("the runner's own file {path:?} is not there any more")),
    }
}

/// Variables that a unit is to have of ours.
pub(super) fn variables() -> Vec<(String, String)> {
    std::env::var("PATH").map(|path| ("PATH".to_owned(), path)).into_iter().collect()
}

/// In words for whoever uses a grant here; none when there is nothing to say.
pub(super) fn loss(supervision: &Supervision) -> Option<String> {
    let problem = supervision.problem.as_ref()?;
    Some(format!("systemd runs this host and grants are not units of it: {problem}"))
}

/// Ends a grant's unit, if it is one, and returns when it is gone.
pub(super) fn end(unit: Option<&str>) -> Result<()> {
    match (unit, Systemd::find()) {
        (Some(name), Ok(systemd)) => systemd.end(name),
        // Units go with their manager.
        _ => Ok(()),
    }
}

/// Units whose grant's directory was directly below `root` and is not there any more.
pub(super) fn strays(root: &Path) -> Vec<Shown> {
    let Ok(systemd) = Systemd::find() else { return Vec::new() };
    let root = root.canonicalize().unwrap_or_else(|_| root.to_owned());
    let mut found = systemd.grants();
    found.retain(|unit| unit.dir.parent() == Some(&root) && !unit.dir.exists());
    found
}

/// Ends the units of a grant whose directory is gone; their names.
pub(super) fn end_stray(dir: &Path) -> Result<Vec<String>> {
    let Some(root) = dir.parent() else { return Ok(Vec::new()) };
    let of_dir = strays(root).into_iter().filter(|unit| unit.dir.file_name() == dir.file_name());
    of_dir.map(|unit| end(Some(&unit.name)).map(|()| unit.name)).collect()
}

/// The unit that this process is.
#[derive(Debug)]
pub(super) struct Own {
    pub(super) name: String,
}

impl Own {
    /// Makes room in its cgroup for groups below: one with groups below that pass controllers on may have no processes.
    pub(super) fn enter(name: &str) -> Self {
        if let Err(problem) = Hierarchies::discover().leave_unit_free(name) {
            log(&format!("unit: {problem}"));
        }
        Self { name: name.to_owned() }
    }

    /// Has systemd let it live for so long from now. What is longer already stays: that is the last of three timers.
    pub(super) fn lasts(&self, left: Duration) -> Result<()> {
        let told = notify(&units::lasts_longer(left + units::GRACE));
        told.map_err(|e| RunnerError::io(format!("cannot tell systemd that {} lasts longer", self.name), e))
    }

    /// A word for `systemctl status`.
    pub(super) fn says(&self, status: &str) {
        let _ = notify(&format!("STATUS={status}"));
    }

    /// True while the manager, and so mostly the host, is on its way down.
    pub(super) fn is_shutting_down() -> bool {
        let asked = Systemd::find().ok().and_then(|systemd| systemd.ask("systemctl", &["is-system-running"]).ok());
        asked.is_some_and(|done| String::from_utf8_lossy(&done.stdout).trim() == "stopping")
    }
}

/// Tells the manager something: sd_notify(3).
fn notify(state: &str) -> std::io::Result<()> {
    let missing = || std::io::Error::new(std::io::ErrorKind::NotFound, "NOTIFY_SOCKET is not set");
    let path = std::env::var("NOTIFY_SOCKET").map_err(|_| missing())?;
    let address = match path.strip_prefix('@') {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(&path)?,
    };
    UnixDatagram::unbound()?.send_to_addr(state.as_bytes(), &address).map(|_| ())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_pipe_carries_one_answer_and_ends_with_its_writer() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("answer");
        for said in [Some("ready"), None] {
            let pipe = listen(&path).unwrap();
            let mut writer = OpenOptions::new().write(true).open(&path).unwrap();
            let mut answer = waiting(pipe).unwrap();
            said.iter().for_each(|said| writeln!(writer, "{said}").unwrap());
            drop(writer);
            assert_eq!(first_line(&mut answer).as_deref(), said);
        }
    }

    #[test]
    fn a_user_needs_lingering_and_a_manager() {
        let temp = tempfile::tempdir().unwrap();
        let nobody = Uid::from_raw(4_000_000_001);
        let problem = of_user(nobody, temp.path().into()).unwrap_err();
        assert!(problem.contains("loginctl enable-linger 4000000001"), "{problem}");
        let told = loss(&Supervision { manager: None, problem: Some(problem) }).unwrap();
        assert!(told.starts_with("systemd runs this host and grants are not units of it: lingering is off"), "{told}");
        assert_eq!(loss(&Supervision::default()), None);
    }
}
